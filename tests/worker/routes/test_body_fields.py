"""Fields that vLLM's routes do not read, with the models of the installed vLLM: which are taken, refused, ignored."""

from __future__ import annotations

import json
import time
import types
import typing
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter
from vllm import SamplingParams
from vllm.entrypoints.anthropic import api_router as messages
from vllm.entrypoints.openai.chat_completion import api_router as chat
from vllm.entrypoints.openai.completion import api_router as completions
from vllm.entrypoints.openai.responses import api_router as responses
from vllm.entrypoints.pooling.embed import api_router as embeddings
from vllm.entrypoints.pooling.scoring import api_router as scoring

from llmpod.worker.engine.app import route_table
from llmpod.worker.engine.sampling import Sampling
from llmpod.worker.errors import Code, JobError
from llmpod.worker.jobs.client_fields import MOVED, REFUSED, Settled
from llmpod.worker.jobs.inputs import NativeRequest, parse
from llmpod.worker.jobs.route_catalog import RULES
from llmpod.worker.routes.body_fields import MAX_IGNORED, SDK_PARAMETERS, settle
from llmpod.worker.routes.prompt_fields import PROMPT_FIELDS

ROUTERS = [module.router for module in (chat, completions, responses, messages, embeddings, scoring)]
FIELDS = {
    route.path: route.fields
    for router in ROUTERS
    for route in route_table.read(types.SimpleNamespace(routes=router.routes))
    if route.fields
}
MODELS = {
    route.path: typing.get_type_hints(route.endpoint)["request"]  # type: ignore[attr-defined]
    for router in ROUTERS
    for route in router.routes
    if route.path in FIELDS  # type: ignore[attr-defined]
}
GENERATING = (
    "/v1/chat/completions",
    "/v1/chat/completions/batch",
    "/v1/completions",
    "/v1/responses",
    "/v1/messages",
)
ROUTES = (*GENERATING, "/v1/embeddings", "/rerank")
SAMPLING = Sampling({}, 100).values_without_effect


def settled(path: str, body: dict[str, Any]) -> Settled:
    return settle(RULES[path], body, FIELDS[path], SAMPLING)


def refusal(path: str, body: dict[str, Any]) -> JobError:
    with pytest.raises(JobError) as caught:
        settled(path, body)
    assert caught.value.code is Code.UNKNOWN_FIELD
    assert caught.value.failure.status == 400
    return caught.value


def test_the_models_of_the_routes_are_read() -> None:
    assert {"messages", "temperature", "tools"} <= FIELDS["/v1/chat/completions"]
    assert SAMPLING["temperature"] == SamplingParams().temperature


@pytest.mark.parametrize("path", ROUTES)
def test_whatever_vllm_reads_reaches_it_unchanged(path: str) -> None:
    body = dict.fromkeys(FIELDS[path], "x")
    assert settled(path, body) == Settled(body)


@pytest.mark.parametrize("path", ROUTES)
def test_null_asks_for_nothing_whatever_its_name(path: str) -> None:
    names = {*FIELDS[path], *SDK_PARAMETERS.get(path, ()), *REFUSED, *MOVED, *PROMPT_FIELDS, "temprature", "foreign"}
    assert settled(path, dict.fromkeys(names)) == Settled({})


@pytest.mark.parametrize("path", sorted(SDK_PARAMETERS.keys() & FIELDS.keys()))
def test_every_parameter_of_the_routes_own_package_is_taken_or_has_a_cure(path: str) -> None:
    for name in SDK_PARAMETERS[path]:
        if name in REFUSED and name not in FIELDS[path]:
            assert refusal(path, {name: ["asks"]}).field == name
        else:
            settled(path, {name: "x"})


HARMLESS: dict[str, list[Any]] = {
    "audio": [None],
    "modalities": [None, [], ["text"]],
    "functions": [None, []],
    "function_call": [None, "none", "auto"],
    "web_search_options": [None],
    "plugins": [None, []],
    "store": [None, False],
    "background": [None, False],
    "conversation": [None],
    "previous_response_id": [None, ""],
    "thread": [None],
    "compaction": [None],
    "container": [None],
    "mcp_servers": [None, []],
    "moderation": [None],
    "inference_geo": [None, "global"],
    "best_of": [None, 1],
    "use_beam_search": [None, False],
    "early_stopping": [None, False],
    "length_penalty": [None, 1, 1.0],
    "kv_transfer_params": [None, {}],
    "ec_transfer_params": [None, {}],
    "vllm_xargs": [None, {}],
    "logits_processors": [None, []],
    "response_format": [None],
    "json_schema": [None, {}],
    "tools": [None, []],
    "tool_choice": [None, "none", "auto"],
    "top_logprobs": [None, 0],
    "stop_sequences": [None, []],
    "stop": [None, []],
    "system": [None, ""],
    "rank_fields": [None, [], ["text"]],
    "extra_body": [None, {}],
    "allow_regeneration": [None, False],
}
HARMFUL: dict[str, list[Any]] = {
    "audio": [{"voice": "alloy", "format": "mp3"}, {}],
    "modalities": [["text", "audio"], ["audio"]],
    "functions": [[{"name": "f", "parameters": {}}]],
    "function_call": [{"name": "f"}],
    "web_search_options": [{}, {"search_context_size": "low"}],
    "plugins": [[{"id": "web"}]],
    "store": [True],
    "background": [True],
    "conversation": ["conv_1", {"id": "conv_1"}],
    "previous_response_id": ["resp_1"],
    "thread": [{"type": "create"}],
    "compaction": [{"type": "compact"}],
    "container": ["container_1", {"skills": []}],
    "mcp_servers": [[{"type": "url", "url": "https://example.org", "name": "x"}]],
    "moderation": [{"model": "omni-moderation-latest"}],
    "inference_geo": ["us"],
    "best_of": [2],
    "use_beam_search": [True],
    "early_stopping": [True, "never"],
    "length_penalty": [0.5],
    "kv_transfer_params": [{"prompt_token_ids": [1]}],
    "ec_transfer_params": [{"x": 1}],
    "vllm_xargs": [{"kv_transfer_params": "x"}],
    "logits_processors": [["module.Class"]],
    "response_format": [{"type": "json_object"}],
    "json_schema": [{"type": "object"}],
    "tools": [[{"type": "function", "function": {"name": "f"}}]],
    "tool_choice": ["required", {"type": "function", "function": {"name": "f"}}],
    "top_logprobs": [3],
    "stop_sequences": [["x"]],
    "stop": ["x", ["x"]],
    "system": ["Be brief."],
    "rank_fields": [["title", "text"]],
    "extra_body": [{"top_k": 5}],
    "allow_regeneration": [True],
}


def test_the_tables_have_every_field_that_may_be_refused() -> None:
    assert HARMLESS.keys() == HARMFUL.keys() == REFUSED.keys()


@pytest.mark.parametrize("path", ROUTES)
@pytest.mark.parametrize("name", sorted(REFUSED))
def test_a_value_that_asks_for_what_is_not_done_is_refused_and_one_that_asks_for_nothing_is_not(
    path: str, name: str
) -> None:
    if name in FIELDS[path]:  # vLLM's to judge
        assert settled(path, {name: HARMFUL[name][0]}).body == {name: HARMFUL[name][0]}
        return
    for value in HARMFUL[name]:
        error = refusal(path, {name: value})
        assert error.field == name
        assert error.message.endswith(REFUSED[name].cure)
    for value in HARMLESS[name]:
        assert settled(path, {name: value}) == Settled({}, [] if value is None else [name])


@pytest.mark.parametrize("extra", ["schema", "response_schema", "json_schema"])
@pytest.mark.parametrize("kind", ["text", "json_object"])
@pytest.mark.parametrize("path", GENERATING)
def test_a_schema_that_binds_nothing_is_refused(path: str, kind: str, extra: str) -> None:
    shape = {"type": kind, extra: {"type": "object"}}
    assert refusal(path, {"response_format": shape}).field == f"response_format.{extra}"
    assert refusal("/v1/responses", {"text": {"format": shape}}).field == f"text.format.{extra}"
    fine = {"response_format": {"type": kind, extra: None}}
    if "response_format" in FIELDS[path]:
        assert settled(path, fine).body == fine


@pytest.mark.parametrize("path", GENERATING)
@pytest.mark.parametrize("name", sorted(MOVED))
def test_an_old_name_is_taken_under_the_new_one_where_there_is_one(path: str, name: str) -> None:
    outer, inner = MOVED[name]
    if outer not in FIELDS[path]:
        refusal(path, {name: "x"})
        return
    assert settled(path, {name: "x"}) == Settled({outer: {inner: "x"}}, [], {name: f"{outer}.{inner}"})
    beside = {outer: {"other": 1}, name: "x"}
    for body in (beside, dict(reversed(beside.items()))):
        assert settled(path, body).body == {outer: {"other": 1, inner: "x"}}
    assert settled(path, {outer: {inner: "x"}, name: "x"}).body == {outer: {inner: "x"}}
    for contrary in ({inner: "y"}, "y"):
        with pytest.raises(JobError) as caught:
            settled(path, {outer: contrary, name: "x"})
        assert caught.value.code is Code.INVALID_INPUT
    assert beside[outer] == {"other": 1}, "the client's input is not changed"


@pytest.mark.parametrize(
    ("path", "name", "meant"),
    [
        ("/v1/chat/completions", "temprature", "temperature"),
        ("/v1/chat/completions", "max_token", "max_tokens"),
        ("/v1/chat/completions", "maxTokens", "max_tokens"),
        ("/v1/chat/completions", "max-tokens", "max_tokens"),
        ("/v1/chat/completions", "max_new_tokens", "max_tokens"),
        ("/v1/chat/completions", "tokens_max", "max_tokens"),
        ("/v1/chat/completions", "top_K", "top_k"),
        ("/v1/chat/completions", "responseformat", "response_format"),
        ("/v1/chat/completions", "frequncy_penalty", "frequency_penalty"),
        ("/v1/chat/completions", "paralel_tool_calls", "parallel_tool_calls"),
        ("/v1/chat/completions", "prompt_cache_kee", "prompt_cache_key"),
        ("/v1/responses", "instruction", "instructions"),
        ("/v1/messages", "stop_sequence", "stop_sequences"),
        ("/v1/embeddings", "dimension", "dimensions"),
        ("/rerank", "document", "documents"),
    ],
)
def test_a_misspelt_field_is_refused_with_the_one_that_was_meant(path: str, name: str, meant: str) -> None:
    error = refusal(path, {name: 1})
    assert error.field == name
    assert f"Did you mean {meant}?" in error.message


@pytest.mark.parametrize(
    ("path", "name", "value", "meant"),
    [
        ("/v1/chat/completions", "max_output_tokens", 5, "max_completion_tokens"),
        ("/v1/responses", "max_tokens", 5, "max_output_tokens"),
        ("/v1/messages", "max_completion_tokens", 5, "max_tokens"),
        ("/v1/chat/completions", "input", "Hi", None),
        ("/v1/completions", "messages", [{"role": "user", "content": "Hi"}], None),
        ("/v1/messages", "frequency_penalty", 0.5, None),
        ("/v1/responses", "min_tokens", 5, None),
        ("/v1/messages", "seed", 0, None),
        ("/v1/embeddings", "prompt", "Hi", None),
    ],
)
def test_what_another_route_reads_is_not_ignored_here(path: str, name: str, value: Any, meant: str | None) -> None:
    error = refusal(path, {name: value})
    assert error.field == name
    assert path in error.message
    assert (f"Did you mean {meant}?" in error.message) if meant else True


def test_a_sampling_parameter_whose_value_changes_nothing_is_ignored() -> None:
    body = {"frequency_penalty": 0, "presence_penalty": 0.0, "n": 1, "logit_bias": {}, "ignore_eos": False}
    assert settled("/v1/messages", body) == Settled({}, list(body))


def test_documents_to_rank_may_be_objects_with_a_text() -> None:
    documents = [{"text": "a"}, "b", {"content": []}, {"text": "c", "title": "d"}]
    body = {"query": "q", "documents": documents, "rank_fields": ["text"]}
    for path in ("/rerank", "/v1/rerank", "/v2/rerank"):
        found = settle(RULES[path], body, FIELDS["/rerank"], SAMPLING)
        assert found.body["documents"] == ["a", "b", {"content": []}, {"text": "c", "title": "d"}]
        assert found.ignored == ["rank_fields"]
    assert documents[0] == {"text": "a"}, "the client's input is not changed"


FOREIGN = [
    ("/v1/responses", {"client_metadata": {"x": "1"}}),
    ("/rerank", {"return_documents": True, "rank_fields": ["text"], "max_chunks_per_doc": 10}),
    ("/v1/chat/completions", {"reasoning": {"effort": "high"}, "thinking": {"type": "enabled", "budget_tokens": 9}}),
    (
        "/v1/chat/completions",
        {
            "provider": {"order": ["x"]},
            "transforms": [],
            "models": ["a", "b"],
            "route": "fallback",
            "usage": {"include": True},
            "top_a": 0.1,
        },
    ),
    ("/v1/chat/completions", {"litellm_metadata": {}, "num_retries": 2, "timeout": 5, "drop_params": True}),
    ("/v1/messages", {"betas": ["x"], "context_management": {"edits": []}, "service_tier": "auto", "speed": "fast"}),
    ("/v1/chat/completions", {"prediction": {"type": "content", "content": "x"}, "service_tier": "flex"}),
    ("/v1/embeddings", {"input_type": "query", "truncate": "END"}),
]


@pytest.mark.parametrize(("path", "body"), FOREIGN)
def test_fields_of_other_services_are_ignored_and_reported(path: str, body: dict[str, Any]) -> None:
    found = settled(path, body)
    assert found == Settled({}, list(body))
    assert found.as_dict() == {"ignored": list(body)}


BODIES = json.loads((Path(__file__).parents[1] / "data" / "client_bodies.json").read_text(encoding="utf-8"))
"""What real clients sent to a real worker, recorded; texts, schemas and ids are shortened, fields are not."""
RECORDED = [pytest.param(entry, id=f"{entry['client']} {entry['route']} {n}") for n, entry in enumerate(BODIES)]


@pytest.mark.parametrize("entry", RECORDED)
def test_what_real_clients_send_is_taken(entry: dict[str, Any]) -> None:
    body = entry["body"]
    if entry["route"] == "/run":
        assert isinstance(parse(body["input"], SAMPLING.keys()), NativeRequest)
        return
    if body.get("functions"):  # sent on purpose: the client has no such function any more
        assert refusal(entry["route"], body).field == "functions"
        return
    found = settled(entry["route"], body)
    assert found.body.keys() | set(found.ignored) == {name for name, value in body.items() if value is not None}
    TypeAdapter(MODELS[entry["route"]]).validate_python(found.body)


def test_what_the_worker_reads_itself_is_neither_refused_nor_reported() -> None:
    body = {"model": "m", "stream": False, "user": "u", "metadata": {"a": "b"}, "request_id": "r", "filename": "a.wav"}
    for path in ROUTES:
        assert settled(path, body) == Settled(body)


values = st.none() | st.booleans() | st.integers() | st.text(max_size=5) | st.lists(st.integers(), max_size=2)
names = st.text(max_size=20) | st.sampled_from([*REFUSED, *MOVED, *PROMPT_FIELDS, *FIELDS["/v1/chat/completions"]])


@given(st.sampled_from(ROUTES), st.dictionaries(names, values | st.dictionaries(st.text(max_size=5), values)))
def test_a_field_is_passed_on_moved_reported_or_refused_and_never_lost(path: str, body: dict[str, Any]) -> None:
    before = repr(body)
    try:
        found = settled(path, body)
    except JobError as error:
        assert error.field is not None
        assert error.failure.status == 400
    else:
        for name, value in body.items():
            assert value is None or name in found.body or name in found.ignored or name in found.moved
    assert repr(body) == before


def test_many_unknown_fields_are_refused_before_they_cost_anything() -> None:
    body = {f"no_such_field_{number}": 1 for number in range(20_000)} | {"x" * 1_000_000: 1}
    started = time.process_time()
    error = refusal("/v1/chat/completions", body)
    assert time.process_time() - started < 1
    assert str(MAX_IGNORED) in error.message
