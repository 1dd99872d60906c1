"""The load tester's data set for the career profile: its rows expect what the profile decides."""

from __future__ import annotations

import pytest

from llmpod.loadtest.quality import dataset
from llmpod.loadtest.quality.dataset import Row
from tests.worker.profile import cases

CAREER = cases.words_alone()


@pytest.mark.parametrize("row", dataset.read("career"), ids=lambda row: row.id)
def test_a_row_expects_what_the_profile_decides(row: Row) -> None:
    texts = (row.input["prompt"],)
    verdict = CAREER.verdict(texts)
    assert (verdict is not None) == row.expect.blocked
    decided = verdict.policy.name if verdict else CAREER.intent_of(texts).name
    assert row.expect.intent in (None, decided)
