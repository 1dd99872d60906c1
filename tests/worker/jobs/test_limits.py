"""The guardrails, as pure decisions."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmpod.worker.errors import Code, JobError
from llmpod.worker.jobs import limits
from llmpod.worker.jobs.inputs import NativeRequest, parse
from llmpod.worker.jobs.limits import (
    Context,
    MaxTokens,
    check,
    check_constraint,
    check_words,
    clamp_max_tokens,
    fit_context,
)
from llmpod.worker.settings import Settings


def request(prompt: str = "Hello", **sampling: object) -> NativeRequest:
    return parse({"prompt": prompt, "sampling_params": sampling}, {"n"})


@pytest.mark.parametrize(
    ("requested", "effective", "reason"),
    [
        (None, 150, "default"),
        (1, 64, "raised"),
        (10, 64, "raised"),
        (64, 64, None),
        (100, 100, None),
        (256, 256, None),
        (257, 256, "lowered"),
        (99999, 256, "lowered"),
    ],
)
def test_max_tokens_is_clamped_and_says_so(requested: int | None, effective: int, reason: str | None) -> None:
    assert clamp_max_tokens(requested, Settings()) == MaxTokens(requested, effective, reason)


def test_the_clamp_is_a_setting() -> None:
    open_worker = Settings(max_tokens_min=1, max_tokens_max=0, max_tokens_default=20)
    assert clamp_max_tokens(5, open_worker).effective == 5
    assert clamp_max_tokens(100_000, open_worker).effective == 100_000
    assert clamp_max_tokens(None, open_worker).effective == 20


@given(st.none() | st.integers(1, 10**9), st.integers(1, 1000), st.integers(0, 1000), st.integers(1, 2000))
def test_the_effective_value_is_always_within_the_limits(
    requested: int | None, low: int, extra: int, default: int
) -> None:
    settings = Settings(max_tokens_min=low, max_tokens_max=low + extra, max_tokens_default=default)
    clamped = clamp_max_tokens(requested, settings)
    assert low <= clamped.effective <= low + extra
    assert (clamped.reason is None) == (clamped.effective == requested)


@pytest.mark.parametrize(("length", "limit", "fits"), [(1024, 1024, True), (1025, 1024, False), (5_000_000, 0, True)])
def test_prompt_length_is_limited_in_characters(length: int, limit: int, fits: bool) -> None:
    settings = Settings(max_prompt_chars=limit)
    if fits:
        check(request("x" * length), settings, Context())
        return
    with pytest.raises(JobError) as caught:
        check(request("x" * length), settings, Context())
    assert caught.value.failure.code == "prompt_too_long"
    assert str(length) in caught.value.message
    assert str(limit) in caught.value.message


def test_the_limit_counts_all_messages_together() -> None:
    long_talk = parse({"messages": [{"role": "user", "content": "x" * 600}] * 2}, set())
    with pytest.raises(JobError) as caught:
        check(long_talk, Settings(), Context())
    assert caught.value.details == {"chars": 1200, "limit": 1024}
    assert caught.value.field == "messages"


def test_characters_are_counted_not_bytes() -> None:
    check(request("é" * 1024), Settings(), Context())


def test_the_number_of_answers_is_limited() -> None:
    check(request(n=4), Settings(), Context())
    with pytest.raises(JobError, match="at most 4"):
        check(request(n=5), Settings(), Context())


@pytest.mark.parametrize(
    ("max_tokens", "prompt_tokens", "effective"),
    [
        (MaxTokens(100, 100), 412, 100),  # fits exactly
        (MaxTokens(None, 150, "default"), 500, 12),  # the default gives way
        (MaxTokens(10, 64, "raised"), 500, 12),  # so does a raise
        (MaxTokens(9999, 256, "lowered"), 256, 256),
    ],
)
def test_what_the_worker_added_gives_way_to_the_context(
    max_tokens: MaxTokens, prompt_tokens: int, effective: int
) -> None:
    fitted = fit_context(max_tokens, prompt_tokens, 512)
    assert fitted.effective == effective
    assert fitted.requested == max_tokens.requested
    assert (fitted.reason == "context") == (effective != max_tokens.effective)


@pytest.mark.parametrize(
    ("max_tokens", "prompt_tokens", "field"),
    [
        (MaxTokens(101, 101), 412, "sampling_params.max_tokens"),
        (MaxTokens(None, 150), 512, "prompt"),
        (MaxTokens(None, 150), 9000, "prompt"),
    ],
)
def test_what_was_asked_for_and_does_not_fit_is_refused(max_tokens: MaxTokens, prompt_tokens: int, field: str) -> None:
    with pytest.raises(JobError) as caught:
        fit_context(max_tokens, prompt_tokens, 512)
    assert caught.value.failure.code == "context_length_exceeded"
    assert caught.value.field == field
    assert str(prompt_tokens) in caught.value.message
    assert "512" in caught.value.message


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"structured_outputs": {"choice": ["x" * 20_001]}}, "structured_outputs"),
        ({"text": {"format": {"schema": {"enum": ["x" * 20_000]}}}}, "text"),
        ({"output_config": {"format": {"schema": {"description": "x" * 20_000}}}}, "output_config"),
    ],
)
def test_a_constraint_beyond_the_size_limit_is_refused(body: dict[str, Any], field: str) -> None:
    with pytest.raises(JobError) as caught:
        check_constraint(body, Settings())
    assert (caught.value.code, caught.value.field) == (Code.INVALID_INPUT, field)
    check_constraint(body, Settings(max_constraint_chars=0))
    check_constraint(body, Settings(max_constraint_chars=100_000))


def test_ordinary_constraints_pass() -> None:
    pattern = "^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$"
    schema = {"properties": {f"id{number}": {"type": "string", "pattern": pattern} for number in range(20)}}
    bodies: tuple[dict[str, Any], ...] = (
        {},
        {"structured_outputs": None, "text": {"verbosity": "low"}},
        {"response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": schema}}},
        {"structured_outputs": {"choice": [f"choice {number}" for number in range(1000)]}},
        {"structured_outputs": {"structural_tag": "no json", "json": "{"}},
        {"tools": [{"function": {"description": "x" * 50_000}}]},
    )
    for body in bodies:
        check_constraint(body, Settings())


@pytest.mark.parametrize(
    ("given_fields", "binds"),
    [
        ({}, False),
        ({"structured_outputs": None}, False),
        ({"structured_outputs": {"json": {}}}, True),
        ({"structured_outputs": {"json_object": False}}, False),
        ({"structured_outputs": {"choice": ["a"]}}, True),
        ({"structured_outputs": {"disable_any_whitespace": True}}, False),
        ({"response_format": {"type": "text"}}, False),
        ({"response_format": {"type": "json_object"}}, True),
        ({"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {}}}}, True),
        ({"text": {"verbosity": "low"}}, False),
        ({"text": {"format": {"type": "text"}}}, False),
        ({"text": {"format": {"type": "json_schema", "schema": {}}}}, True),
        ({"output_config": {"effort": "low"}}, False),
        ({"output_config": {"format": {"type": "json_schema", "schema": {}}}}, True),
        ({"output_format": {"type": "json_schema", "schema": {}}}, True),
        ({"structured_outputs": [1], "text": "hello"}, False),
    ],
)
def test_whether_an_answer_must_have_a_form(given_fields: dict[str, Any], binds: bool) -> None:
    assert limits.constrained(given_fields) == binds


@pytest.mark.parametrize("field", ["stop", "bad_words", "stop_sequences"])
def test_stop_strings_and_bad_words_are_bounded_in_number_and_length(field: str) -> None:
    for good in (None, "x" * 10_000, ["x" * 10] * 1000, 5, [7] * 1000):
        check_words({field: good})
    for bad, count in (("x" * 10_001, 10_001), (["x"] * 1001, 1001), (["x" * 6000] * 2, 12_000)):
        with pytest.raises(JobError) as caught:
            check_words({field: bad}, within="sampling_params.")
        assert caught.value.field == f"sampling_params.{field}"
        assert caught.value.details["given"] == count


def test_an_empty_message_counts_as_a_character() -> None:
    empty = parse({"messages": [{"role": "user", "content": "x"}, *[{"role": "user", "content": ""}] * 99]}, ())
    assert empty.chars == 100


@pytest.mark.parametrize(("text", "fits"), [("a" * 250_000, True), ("a" * 250_001, False), ("\ufdfa" * 90_000, False)])
def test_a_text_that_is_only_tokenized_is_limited_by_its_bytes(text: str, fits: bool) -> None:
    if fits:
        limits.check_bytes(["", text], field="prompt")
        return
    with pytest.raises(JobError, match="tokenizes 250000 at a time") as refused:
        limits.check_bytes([text], field="prompt")
    assert (refused.value.code, refused.value.field) == (Code.PROMPT_TOO_LONG, "prompt")
