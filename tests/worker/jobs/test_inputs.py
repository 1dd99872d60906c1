"""What reaches a worker as job["input"], and what it says about it."""

from __future__ import annotations

import contextlib
from collections.abc import Collection
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmpod.worker.errors import JobError
from llmpod.worker.jobs import bounds, inputs
from llmpod.worker.jobs.bounds import MAX_DEPTH, Size
from llmpod.worker.jobs.inputs import Message, NativeRequest, RouteRequest

SAMPLING = frozenset({"temperature", "top_p", "n", "seed", "stop", "structured_outputs"})


def parse(job_input: Any, sampling_names: Collection[str]) -> inputs.Request:
    """As the worker does: what is within bounds is read."""
    for _ in bounds.walk(job_input, 20_000, Size()):
        pass
    return inputs.parse(job_input, sampling_names)


def deep(levels: int) -> object:
    value: object = "x"
    for _ in range(levels):
        value = [value]
    return value


REJECTED = [
    (None, "invalid_input", "input"),
    ("hello", "invalid_input", "input"),
    ([], "invalid_input", "input"),
    (7, "invalid_input", "input"),
    ({}, "invalid_input", "prompt"),
    ({"prompt": None}, "invalid_input", "prompt"),
    ({"prompt": ""}, "invalid_input", "prompt"),
    ({"prompt": " \n\t"}, "invalid_input", "prompt"),
    ({"prompt": ["a"]}, "invalid_input", "prompt"),
    ({"prompt": 5}, "invalid_input", "prompt"),
    ({"prompt": "a", "messages": [{"role": "user", "content": "b"}]}, "invalid_input", "messages"),
    ({"messages": []}, "invalid_input", "messages"),
    ({"messages": "hi"}, "invalid_input", "messages"),
    ({"messages": [{"role": "user"}]}, "invalid_input", "messages[0].content"),
    ({"messages": [{"role": "king", "content": "a"}]}, "invalid_input", "messages[0].role"),
    ({"messages": [{"role": "user", "content": 3}]}, "invalid_input", "messages[0].content"),
    ({"messages": [{"role": "user", "content": "a", "nmae": "b"}]}, "unknown_field", "messages[0].nmae"),
    ({"messages": [{"role": "user", "content": [{"type": "text", "text": 1}]}]}, "invalid_input", None),
    ({"messages": [{"role": "user", "content": "  "}]}, "invalid_input", "messages"),
    ({"prompt": "a", "promt": "b"}, "unknown_field", "promt"),
    ({"prompt": "a", "str": 1}, "unknown_field", "str"),
    ({"prompt": "a", "stream": "yes"}, "invalid_input", "stream"),
    ({"prompt": "a", "stream": 1}, "invalid_input", "stream"),
    ({"prompt": "a", "sampling_params": {"stream": "yes"}}, "invalid_input", "sampling_params.stream"),
    ({"prompt": "a", "stream": True, "sampling_params": {"stream": False}}, "invalid_input", "stream"),
    ({"prompt": "a", "sampling_params": []}, "invalid_input", "sampling_params"),
    ({"prompt": "a", "sampling_params": {"max_tokens": "abc"}}, "invalid_input", "sampling_params.max_tokens"),
    ({"prompt": "a", "sampling_params": {"max_tokens": 1.5}}, "invalid_input", "sampling_params.max_tokens"),
    ({"prompt": "a", "sampling_params": {"max_tokens": True}}, "invalid_input", "sampling_params.max_tokens"),
    ({"prompt": "a", "sampling_params": {"max_tokens": 0}}, "invalid_input", "sampling_params.max_tokens"),
    ({"prompt": "a", "sampling_params": {"max_tokens": -1}}, "invalid_input", "sampling_params.max_tokens"),
    ({"prompt": "a", "sampling_params": {"temperatur": 1}}, "unknown_field", "sampling_params.temperatur"),
    ({"prompt": "a", "sampling_params": {"temperature": float("nan")}}, "invalid_input", "sampling_params.temperature"),
    ({"prompt": "a", "sampling_params": {"temperature": float("inf")}}, "invalid_input", "sampling_params.temperature"),
    ({"prompt": "a\ud800b"}, "invalid_input", "prompt"),
    ({"prompt": "a", "enable_validation": "true"}, "invalid_input", "enable_validation"),
    ({"openai_route": 5}, "invalid_input", "openai_route"),
    ({"openai_route": None}, "invalid_input", "openai_route"),
    ({"openai_route": "/v1/models", "openai_input": []}, "invalid_input", "openai_input"),
    ({"openai_route": "/v1/models", "openai_input": "{}"}, "invalid_input", "openai_input"),
    ({"openai_route": "/v1/models", "openai_input": {"a": float("nan")}}, "invalid_input", "a"),
    ({"openai_route": "/v1/models", "openai_input": {"\ud800": 1}}, "invalid_input", "input"),
    ({"openai_route": "/v1/models", "openai_input": {"a": [{"b\ud800": 1}]}}, "invalid_input", "a[0]"),
    ({"route": "/v1/models", "body": {"a": "\ud800"}}, "invalid_input", "a"),
    ({"openai_route": "/v1/models", "openai_input": {"seed": 1 << 64}}, "invalid_input", "seed"),
    ({"prompt": "a", "sampling_params": {"seed": -(1 << 63) - 1}}, "invalid_input", "sampling_params.seed"),
    ({"openai_route": "/v1/models", "openai_input": {"max_tokens": 1e20}}, "invalid_input", "max_tokens"),
    ({"route": "/v1/models", "body": {"prompt": [[1, -1e300]]}}, "invalid_input", "prompt[0][1]"),
    ({"prompt": "a", "sampling_params": {"logit_bias": {"5": 2.0**64}}}, "invalid_input", None),
    ({"prompt": "a", "k" * 1001: 1}, "invalid_input", "input"),
    ({"prompt": "a", "sampling_params": {"seed": {"k" * 1001: 1}}}, "invalid_input", "sampling_params.seed"),
    ({"prompt": "a", "sampling_params": {"stop": ["b"] * 20_001}}, "invalid_input", None),
    ({"route": ["/health"]}, "invalid_input", "route"),
    ({"route": "/health", "method": 1}, "invalid_input", "method"),
    ({"route": "/health", "boddy": {}}, "unknown_field", "boddy"),
]


@pytest.mark.parametrize(("job_input", "code", "field"), REJECTED)
def test_bad_input_is_a_typed_error_that_names_the_field(job_input: object, code: str, field: str | None) -> None:
    with pytest.raises(JobError) as caught:
        parse(job_input, SAMPLING)
    assert caught.value.failure.code == code
    assert caught.value.field is not None
    if field is not None:
        assert caught.value.field == field


def test_nesting_is_bounded_and_the_bound_is_not_hit_by_recursion() -> None:
    with pytest.raises(JobError, match="nested deeper"):
        parse({"prompt": "a", "sampling_params": {"stop": deep(100_000)}}, SAMPLING)
    with pytest.raises(JobError, match="nested deeper"):
        parse({"prompt": deep(MAX_DEPTH)}, SAMPLING)


def test_a_misspelt_parameter_gets_a_suggestion() -> None:
    with pytest.raises(JobError, match="Did you mean temperature"):
        parse({"prompt": "a", "sampling_params": {"temperatur": 1}}, SAMPLING)


def test_a_prompt_of_five_megabytes_is_read_whole() -> None:
    request = parse({"prompt": "x" * 5_000_000}, SAMPLING)
    assert request.chars == 5_000_000


def test_stream_is_accepted_at_the_top_and_among_the_sampling_parameters() -> None:
    assert parse({"prompt": "a", "stream": True}, SAMPLING).stream
    assert parse({"prompt": "a", "sampling_params": {"stream": True}}, SAMPLING).stream
    assert not parse({"prompt": "a", "stream": False}, SAMPLING).stream
    assert not parse({"prompt": "a"}, SAMPLING).stream


def test_text_parts_are_joined_and_chars_count_all_messages() -> None:
    request = parse(
        {
            "messages": [
                {"role": "system", "content": "Be kind."},
                {"role": "user", "content": [{"type": "text", "text": "Hel"}, {"type": "text", "text": "lo"}]},
            ]
        },
        SAMPLING,
    )
    assert request.messages == (Message("system", "Be kind."), Message("user", "Hello"))
    assert request.chars == len("Be kind.Hello")


def test_a_null_max_tokens_is_none_asked_for() -> None:
    assert parse({"prompt": "a", "sampling_params": {"max_tokens": None}}, SAMPLING).max_tokens is None


@pytest.mark.parametrize("field", sorted(inputs._Native.model_fields.keys() - {"prompt"}))
def test_null_is_no_value_for_any_field(field: str) -> None:
    assert parse({"prompt": "a", field: None}, SAMPLING) == parse({"prompt": "a"}, SAMPLING)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=20,
)
known_keys = st.sampled_from(["prompt", "messages", "sampling_params", "stream", "enable_validation"])


@given(json_values | st.dictionaries(known_keys, json_values))
def test_any_json_is_a_request_or_a_typed_error(job_input: object) -> None:
    try:
        request = parse(job_input, SAMPLING)
    except JobError as error:
        assert error.failure.status == 400
        assert error.field is not None
    else:
        assert isinstance(request, NativeRequest)
        assert any(text.strip() for text in request.texts)
        assert set(request.sampling) <= SAMPLING


@given(st.dictionaries(known_keys, json_values))
def test_the_clients_input_is_not_changed(job_input: dict[str, object]) -> None:
    before = repr(job_input)
    with contextlib.suppress(JobError):
        parse(job_input, SAMPLING)
    assert repr(job_input) == before


@pytest.mark.parametrize("empty", [{}, {"openai_input": None}, {"openai_input": {}}])
def test_a_get_of_runpods_proxy_has_no_body_null_or_an_empty_object(empty: dict[str, Any]) -> None:
    assert parse({"openai_route": "/v1/models"} | empty, ()) == RouteRequest("openai_route", "/v1/models", None)


def test_the_three_shapes_are_told_apart_by_their_keys() -> None:
    chat = {"messages": [{"role": "user", "content": "Hi"}], "stream": True}
    proxied = parse({"openai_route": "/v1/chat/completions", "openai_input": chat, "from_runpod": 1}, ())
    assert proxied == RouteRequest("openai_route", "/v1/chat/completions", chat)
    assert proxied.stream
    direct = parse({"route": "/v1/chat/completions", "body": chat, "method": "post"}, ())
    assert direct == RouteRequest("route", "/v1/chat/completions", chat, "POST")
    assert isinstance(parse({"prompt": "Hi"}, ()), NativeRequest)
