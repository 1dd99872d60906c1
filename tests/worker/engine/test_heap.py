"""What a start leaves is not looked through again, and everything later is collected as ever."""

from __future__ import annotations

import gc

import pytest

from llmpod.worker.engine.engine import Engine
from llmpod.worker.engine.start.heap import frozen_afterwards


def test_what_is_built_is_frozen_and_collection_goes_on_after_it() -> None:
    before = gc.get_freeze_count()
    with frozen_afterwards():
        assert not gc.isenabled()
        built = [[] for _ in range(1000)]
    assert gc.get_freeze_count() >= before + len(built)
    assert gc.isenabled()


def test_collection_goes_on_after_a_failure() -> None:
    with pytest.raises(RuntimeError), frozen_afterwards():
        raise RuntimeError
    assert gc.isenabled()


async def test_an_engine_s_start_is_frozen(engine: Engine) -> None:
    assert gc.isenabled()
    assert gc.get_freeze_count() > 100_000
