"""Native jobs that were made for other workers: RunPod's vLLM worker, langchain-runpod, earlier handlers."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmpod.worker.errors import JobError
from llmpod.worker.jobs.inputs import NativeRequest, parse
from llmpod.worker.jobs.native_fields import NATIVE_IGNORED, NATIVE_REFUSED

SAMPLING = frozenset({"temperature", "top_p", "top_k", "n", "seed", "stop", "structured_outputs", "logprobs"})
SCHEMA = {"type": "object", "properties": {"a": {"type": "string"}}}


def read(**fields: Any) -> NativeRequest:
    request = parse({"prompt": "Hi"} | fields, SAMPLING)
    assert isinstance(request, NativeRequest)
    return request


def refusal(**fields: Any) -> JobError:
    with pytest.raises(JobError) as caught:
        parse({"prompt": "Hi"} | fields, SAMPLING)
    assert caught.value.failure.status == 400
    return caught.value


def test_sampling_parameters_at_the_top_mean_what_they_mean_inside() -> None:
    top = {"temperature": 0.5, "max_tokens": 9, "top_p": 0.9, "top_k": 5, "stop": ["x"]}
    outside, inside = read(**top), read(sampling_params=top)
    assert (outside.sampling, outside.max_tokens) == (inside.sampling, inside.max_tokens)
    assert outside.adapted == {"moved": {name: f"sampling_params.{name}" for name in top}}
    assert inside.adapted == {}


def test_what_is_given_at_the_top_and_inside_must_agree() -> None:
    assert read(temperature=0.5, sampling_params={"temperature": 0.5}).sampling == {"temperature": 0.5}
    assert read(temperature=None, sampling_params={"temperature": 0.5}).sampling == {"temperature": 0.5}
    assert read(temperature=0.5, sampling_params={"temperature": None}).sampling == {"temperature": 0.5}
    error = refusal(temperature=0.5, sampling_params={"temperature": 0})
    assert error.field == "temperature"
    assert "differ" in error.message


def test_a_misspelt_parameter_at_the_top_gets_a_suggestion() -> None:
    error = refusal(temperatur=0.5)
    assert (error.failure.code, error.field) == ("unknown_field", "temperatur")
    assert "Did you mean temperature?" in error.message


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ({"guided_json": SCHEMA}, {"json": SCHEMA}),
        ({"guided_regex": "a+"}, {"regex": "a+"}),
        ({"guided_choice": ["a", "b"]}, {"choice": ["a", "b"]}),
        ({"guided_grammar": 'root ::= "a"'}, {"grammar": 'root ::= "a"'}),
        ({"response_format": {"type": "json_object"}}, {"json_object": True}),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": SCHEMA}}},
            {"json": SCHEMA},
        ),
    ],
)
def test_constraints_of_older_and_openais_spelling_bind(old: dict[str, Any], new: dict[str, Any]) -> None:
    (name,) = old
    (kind,) = new
    for request in (read(**old), read(sampling_params=old)):
        assert request.sampling == {"structured_outputs": new}
        assert request.adapted == {"moved": {name: f"sampling_params.structured_outputs.{kind}"}}


def test_a_response_format_of_text_binds_nothing() -> None:
    assert read(response_format={"type": "text"}).sampling == {}
    assert read(response_format=None).sampling == {}


@pytest.mark.parametrize(
    ("response_format", "field"),
    [
        ("json", "response_format.type"),
        ({}, "response_format.type"),
        ({"type": "xml"}, "response_format.type"),
        ({"type": "json_schema"}, "response_format.json_schema"),
        ({"type": "json_schema", "json_schema": {"name": "a"}}, "response_format.json_schema"),
        ({"type": "json_object", "schema": SCHEMA}, "response_format.schema"),
    ],
)
def test_a_response_format_that_binds_nothing_is_refused(response_format: Any, field: str) -> None:
    assert refusal(response_format=response_format).field == field
    inner = refusal(sampling_params={"response_format": response_format})
    assert inner.field == f"sampling_params.{field}"


def test_max_completion_tokens_is_max_tokens() -> None:
    assert read(sampling_params={"max_completion_tokens": 7}).max_tokens == 7
    refusal(sampling_params={"max_completion_tokens": 7, "max_tokens": 8})


@pytest.mark.parametrize("value", [None, True, False, 1, "x"])
@pytest.mark.parametrize("name", sorted(NATIVE_IGNORED))
def test_fields_that_change_no_answer_are_ignored_and_reported(name: str, value: Any) -> None:
    for request, path in (
        (read(**{name: value}), name),
        (read(sampling_params={name: value}), f"sampling_params.{name}"),
    ):
        assert request.sampling == {}
        assert request.adapted == ({} if value is None else {"ignored": [path]})


WITHOUT_EFFECT: dict[str, Any] = {
    "best_of": 1,
    "use_beam_search": False,
    "length_penalty": 1.0,
    "early_stopping": False,
    "detokenize": True,
    "logits_processors": [],
    "tools": [],
    "tool_choice": "auto",
    "allow_regeneration": False,
    "store": False,
    "echo": False,
    "top_logprobs": 0,
    "modalities": ["text"],
}
ASKING: dict[str, Any] = {
    "best_of": 3,
    "use_beam_search": True,
    "length_penalty": 0.8,
    "early_stopping": True,
    "detokenize": False,
    "logits_processors": ["a.B"],
    "tools": [{"type": "function", "function": {"name": "f"}}],
    "tool_choice": "required",
    "chat_template_kwargs": {"enable_thinking": False},
    "enable_thinking": False,
    "images": ["data:image/png;base64,AAAA"],
    "model": "another",
    "allow_regeneration": True,
    "endpoint": "/extract",
    "data": {"text": "x"},
    "functions": [{"name": "f"}],
}


@pytest.mark.parametrize("name", sorted(WITHOUT_EFFECT))
def test_a_default_without_effect_is_ignored(name: str) -> None:
    for fields in ({name: WITHOUT_EFFECT[name]}, {"sampling_params": {name: WITHOUT_EFFECT[name]}}):
        assert read(**fields).sampling == {}
    assert read(**{name: None}).adapted == {}


@pytest.mark.parametrize("name", sorted(ASKING))
def test_what_would_change_the_answer_is_refused_with_its_new_place(name: str) -> None:
    outer, inner = refusal(**{name: ASKING[name]}), refusal(sampling_params={name: ASKING[name]})
    assert (outer.failure.code, outer.field) == ("unknown_field", name)
    assert inner.field == f"sampling_params.{name}"
    for error in (outer, inner):
        assert error.message.endswith(NATIVE_REFUSED[name].cure)


def test_best_of_as_many_as_are_returned_is_no_choice() -> None:
    assert read(sampling_params={"n": 2, "best_of": 2}).sampling == {"n": 2}


@pytest.mark.parametrize(
    "part",
    [
        {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}},
        {"type": "input_audio", "input_audio": {"data": "AAAA", "format": "wav"}},
        {"type": "file", "file": {"file_data": "AAAA"}},
    ],
)
def test_a_file_in_native_messages_is_told_where_files_go(part: dict[str, Any]) -> None:
    messages = [{"role": "user", "content": "Hi"}, {"role": "user", "content": [{"type": "text", "text": "?"}, part]}]
    with pytest.raises(JobError, match="/v1/chat/completions") as caught:
        parse({"messages": messages}, SAMPLING)
    assert caught.value.field == "messages[1].content[1]"


values = st.none() | st.booleans() | st.integers() | st.text(max_size=5) | st.lists(st.integers(), max_size=2)
fields = st.dictionaries(
    st.text(max_size=12) | st.sampled_from([*NATIVE_IGNORED, *NATIVE_REFUSED, *SAMPLING, "guided_json", "max_tokens"]),
    values | st.dictionaries(st.text(max_size=5), values),
)


@given(fields, st.none() | fields)
def test_a_job_is_read_or_refused_by_name_and_nothing_in_it_is_lost(
    top: dict[str, Any], inner: dict[str, Any] | None
) -> None:
    job = {"prompt": "Hi"} | top | {"sampling_params": inner}
    before = repr(job)
    try:
        request = parse(job, SAMPLING)
    except JobError as error:
        assert error.field is not None
        assert error.failure.status == 400
    else:
        assert isinstance(request, NativeRequest)
        assert set(request.sampling) <= SAMPLING
        said = repr(request.adapted)
        assert all(
            value is None or name in ("prompt", "stream") or repr(name)[1:-1] in said for name, value in top.items()
        )
    assert repr(job) == before
