"""How many requests a worker keeps in its engine."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from llmpod.worker.jobs.capacity import engine_capacity
from llmpod.worker.settings import Settings


@dataclass
class Numbers:
    max_num_seqs: int = 128
    kv_cache_tokens: int | None = None
    max_model_len: int = 32_768
    generates: bool = True


def test_concurrency_follows_the_scarcer_of_sequences_and_kv_cache() -> None:
    settings = Settings(max_prompt_chars=600, max_tokens_max=300)  # 500 tokens a job
    capacities = {kv: engine_capacity(Numbers(128, kv), settings) for kv in (None, 1_000_000, 10_000, 100)}
    assert capacities == {None: 128 + 32, 1_000_000: 128 + 32, 10_000: 20 + 5, 100: 1 + 1}


def test_the_engine_gets_a_quarter_more_than_it_decodes_together() -> None:
    assert [engine_capacity(Numbers(most), Settings()) for most in (1, 4, 128)] == [2, 5, 160]


@pytest.mark.parametrize(
    ("generates", "max_model_len", "limits", "tokens"),
    [
        (True, 32_768, {"max_prompt_chars": 1024, "max_tokens_max": 256}, 1024 // 3 + 256),
        (True, 512, {"max_prompt_chars": 1024, "max_tokens_max": 256}, 512),
        (True, 131_072, {"max_prompt_chars": 0, "max_tokens_max": 256}, 2048),
        (True, 131_072, {"max_prompt_chars": 1024, "max_tokens_max": 0}, 2048),
        (True, 1024, {"max_prompt_chars": 0, "max_tokens_max": 0}, 1024),
        (False, 32_768, {"max_input_chars": 3000, "max_tokens_max": 0}, 1000),
        (False, 512, {"max_input_chars": 3000}, 512),
        (False, 32_768, {"max_input_chars": 0}, 2048),
    ],
)
def test_a_job_needs_what_the_guardrails_let_it_have(
    generates: bool, max_model_len: int, limits: dict[str, int], tokens: int
) -> None:
    settings = Settings.model_validate(limits)
    capacities = [
        engine_capacity(Numbers(128, kv, max_model_len, generates), settings) for kv in (8 * tokens, 8 * tokens - 1)
    ]
    assert capacities == [8 + 2, 7 + 1]


def test_a_profiles_longer_answers_need_room() -> None:
    settings = Settings(max_prompt_chars=600, max_tokens_max=300)
    assert engine_capacity(Numbers(128, 10_000), settings, profile_tokens=800) == 10 + 2
