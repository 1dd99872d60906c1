"""Which routes are open, and what becomes of a body: decisions that need no engine."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmpod.worker.errors import Code, JobError, StartError
from llmpod.worker.jobs import route_catalog
from llmpod.worker.routes import error_fields, prompt_fields, rewrite
from llmpod.worker.settings import Settings

CHAT = route_catalog.RULES["/v1/chat/completions"]
COMPLETIONS = route_catalog.RULES["/v1/completions"]
USER = [{"role": "user", "content": "Hi"}]

HOSTILE_ROUTES = [
    "",
    "/",
    "v1/models",
    "@169.254.169.254/latest/meta-data",
    "/@169.254.169.254/latest",
    "//169.254.169.254/latest",
    "///etc/passwd",
    "http://169.254.169.254/",
    "https:/v1/models",
    "/http://host/",
    ":8000/v1/models",
    "/../admin",
    "/v1/../v1/load_lora_adapter",
    "/v1/./models",
    "/v1//models",
    "/v1/models//",
    "/v1/%2e%2e/sleep",
    "/v1%2fload_lora_adapter",
    "/v1/models%00",
    "/v1/models\x00",
    "/v1/models\r\nHost: evil",
    "/v1/models\nX: y",
    "/v1\\models",
    "\\\\host\\share",
    "/v1/models#x",
    "/v1/models;x=y",
    "/v1/models?a=\r\nb",
    "/v1/models?a=//host",
    "/v1/modéls",
    "/v1/models ",
    " /v1/models",
    "/v1/models\u2028",
    "/v1/\uff0e\uff0e/sleep",
    "/" + "a" * 1000,
]


@pytest.mark.parametrize("route", HOSTILE_ROUTES)
def test_a_route_that_is_no_plain_path_is_refused(route: str) -> None:
    with pytest.raises(JobError) as caught:
        route_catalog.clean(route, field="openai_route")
    assert (caught.value.code, caught.value.field) == (Code.INVALID_INPUT, "openai_route")


@given(st.text(max_size=60))
def test_no_text_becomes_anything_but_a_plain_path(route: str) -> None:
    try:
        path, query = route_catalog.clean(route, field="route")
    except JobError:
        return
    assert path.startswith("/")
    assert not set(path) & set("@%\\:?#; \r\n")
    assert "//" not in path
    assert ".." not in path.split("/")
    assert query.isascii()


def test_a_trailing_slash_and_a_query_mean_the_same_route() -> None:
    assert route_catalog.clean("/v1/models/", field="route") == ("/v1/models", "")
    assert route_catalog.clean("/v1/messages?beta=true", field="route") == ("/v1/messages", "beta=true")


ADMIN = [
    "/v1/load_lora_adapter",
    "/v1/unload_lora_adapter",
    "/sleep",
    "/wake_up",
    "/is_sleeping",
    "/start_profile",
    "/stop_profile",
    "/scale_elastic_ep",
    "/reset_prefix_cache",
    "/reset_mm_cache",
    "/collective_rpc",
    "/server_info",
    "/pause",
    "/resume",
    "/update_weights",
    "/tokenizer_info",
    "/invocations",
    "/inference/v1/generate",
    "/abort_requests",
    "/v1/chat/completions/render",
    "/docs",
    "/openapi.json",
    "/v1/a_route_of_next_year",
]


@pytest.mark.parametrize("path", ADMIN)
def test_admin_and_unknown_routes_are_closed_until_named(path: str) -> None:
    with pytest.raises(JobError) as caught:
        route_catalog.rule_for(path, ())
    assert caught.value.code is Code.ROUTE_CLOSED
    assert route_catalog.rule_for(path, (path,)).path == path


@pytest.mark.parametrize(
    ("path", "meant"),
    [
        ("/chat/completions", "/v1/chat/completions"),
        ("/v1/v1/chat/completions", "/v1/chat/completions"),
        ("/openai/v1/chat/completions", "/v1/chat/completions"),
        ("/completions", "/v1/completions"),
        ("/responses", "/v1/responses"),
        ("/messages", "/v1/messages"),
        ("/v1/v1/messages", "/v1/messages"),
        ("/models", "/v1/models"),
        ("/v1/v1/models", "/v1/models"),
        ("/embeddings", "/v1/embeddings"),
        ("/v1/health", "/health"),
        ("/v1/tokenize", "/tokenize"),
        ("/v1/chat", "/v1/chat/completions"),
        ("/v1/chat/completion", "/v1/chat/completions"),
        ("/v1/respones", "/v1/responses"),
    ],
)
def test_a_near_miss_names_the_route_that_was_meant(path: str, meant: str) -> None:
    with pytest.raises(JobError) as caught:
        route_catalog.rule_for(path, (), exists=False)
    assert caught.value.code is Code.NOT_FOUND
    assert f"{meant} is." in caught.value.message


@pytest.mark.parametrize("path", [*ADMIN, "/api/generate", "/v1/engines/x/completion", "/x" * 200])
def test_a_path_that_resembles_none_is_closed(path: str) -> None:
    with pytest.raises(JobError) as caught:
        route_catalog.rule_for(path, (), exists=False)
    assert caught.value.code is Code.ROUTE_CLOSED


@pytest.mark.parametrize(
    ("route", "name"),
    [
        ("/v1/models/demo", "demo"),
        ("/v1/models/org/Model-7B", "org/Model-7B"),
        ("/v1/models/org%2FModel-7B?x=y", "org/Model-7B"),
        ("/v1/models/demo/", "demo"),
        ("/v1/models", None),
        ("/v1/models/", None),
        ("/v1/models//", None),
        ("/v1/models?a=b", None),
    ],
)
def test_the_model_that_is_asked_for_is_read_from_the_path(route: str, name: str | None) -> None:
    assert route_catalog.asked_model(route) == name


@pytest.mark.parametrize(
    ("name", "needs"),
    [
        ("/sleep", "VLLM_SERVER_DEV_MODE=1 and ENABLE_SLEEP_MODE=true"),
        ("v1/load_lora_adapter/", "VLLM_ALLOW_RUNTIME_LORA_UPDATING=1 and ENABLE_LORA=true"),
        ("/v1/chat/competions", "Remove or correct it"),
    ],
)
def test_an_opened_route_that_vllm_does_not_have_stops_the_start_with_the_reason(name: str, needs: str) -> None:
    existing = {"/v1/chat/completions", "/scale_elastic_ep"}
    with pytest.raises(StartError) as caught:
        route_catalog.check_opened(("/scale_elastic_ep", name), existing)
    assert caught.value.setting == "ALLOWED_ROUTES"
    assert needs in caught.value.cure
    route_catalog.check_opened(("/scale_elastic_ep", "v1/embeddings"), existing)


def test_what_the_documentation_opens_is_what_vllm_mounts_with_its_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    from fastapi import FastAPI
    from vllm.entrypoints.serve import register_vllm_dev_api_routers
    from vllm.entrypoints.serve.lora.api_router import attach_router

    page = (Path(__file__).resolve().parents[3] / "docs" / "routes.md").read_text(encoding="utf-8")
    examples = dict(re.findall(r"^ALLOWED_ROUTES=(\S+) (VLLM_\w+)=1", page, re.MULTILINE))
    mount = {"VLLM_ALLOW_RUNTIME_LORA_UPDATING": attach_router, "VLLM_SERVER_DEV_MODE": register_vllm_dev_api_routers}
    assert len(examples) == len(mount)
    for routes, variable in examples.items():
        monkeypatch.setenv(variable, "1")
        app = FastAPI()
        mount[variable](app)
        existing = {getattr(route, "path", "") for route in app.routes}
        route_catalog.check_opened(routes.split(","), existing)
        for route in routes.split(","):
            with pytest.raises(StartError) as caught:
                route_catalog.check_opened((route,), ())
            assert f"{variable}=1" in caught.value.cure


@pytest.mark.parametrize(
    ("path", "generates", "existing", "reason"),
    [
        ("/v1/embeddings", True, (), "RUNNER=pooling"),
        ("/v1/chat/completions", False, (), "RUNNER=generate"),
        ("/v1/audio/transcriptions", True, (), "speech model"),
        ("/v1/audio/translations", False, (), "speech model"),
        ("/classify", False, ("/v1/embeddings", "/score"), "What it can: /v1/embeddings, /score."),
        ("/tokenize", True, ("/tokenize",), "does not take GET there"),
    ],
)
def test_a_route_that_the_model_does_not_have_says_why(
    path: str, generates: bool, existing: tuple[str, ...], reason: str
) -> None:
    error = route_catalog.absent(route_catalog.RULES[path], "GET", path, generates=generates, existing=existing)
    assert error.code is Code.NOT_FOUND
    assert reason in error.message


def test_allowed_routes_are_read_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALLOWED_ROUTES", "/sleep, wake_up/")
    allowed = Settings().allowed_routes
    assert route_catalog.rule_for("/sleep", allowed)
    assert route_catalog.rule_for("/wake_up", allowed)


@pytest.mark.parametrize(
    ("path", "given_method", "has_body", "method"),
    [
        ("/v1/models", None, False, "GET"),
        ("/v1/models", None, True, "GET"),
        ("/v1/chat/completions", None, False, "POST"),
        ("/v1/chat/completions", "POST", True, "POST"),
        ("/v1/responses/resp_1", None, False, "GET"),
        ("/v1/responses/resp_1/cancel", None, False, "POST"),
        ("/ping", None, False, "GET"),
    ],
)
def test_the_method_is_what_the_route_takes(path: str, given_method: str | None, has_body: bool, method: str) -> None:
    assert route_catalog.method_for(route_catalog.rule_for(path, ()), given_method, has_body=has_body) == method


def test_a_method_that_the_route_does_not_take_is_refused() -> None:
    for method in ("GET", "DELETE", "CONNECT", "post "):
        with pytest.raises(JobError):
            route_catalog.method_for(CHAT, method, has_body=True)


@pytest.mark.parametrize(
    ("path", "body", "texts"),
    [
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "a"}]}, ("a",)),
        (
            "/v1/chat/completions",
            {"messages": [{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}]},
            ("a", "b"),
        ),
        ("/v1/completions", {"prompt": ["a", "b"], "suffix": "c"}, ("a", "b", "c")),
        ("/v1/messages", {"system": "s", "messages": [{"role": "user", "content": "a"}]}, ("a", "s")),
        ("/v1/responses", {"instructions": "i", "input": "a"}, ("a", "i")),
        ("/v1/embeddings", {"input": ["a", "b"]}, ("a", "b")),
        ("/rerank", {"query": "q", "documents": ["a", {"text": "b"}]}, ("a", "b", "q")),
        ("/score", {"text_1": "a", "text_2": ["b"]}, ("a", "b")),
    ],
)
def test_every_text_that_reaches_the_model_is_counted(path: str, body: dict[str, Any], texts: tuple[str, ...]) -> None:
    prompt = prompt_fields.prompt_of(body)
    assert sorted(prompt.texts) == sorted(texts), path
    assert prompt.chars == sum(map(len, texts))


def test_tools_count_and_files_do_not() -> None:
    tools = [{"type": "function", "function": {"name": "f", "description": "what it does", "parameters": {"x": 5}}}]
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64," + "A" * 5000}}
    prompt = prompt_fields.prompt_of({"messages": [{"role": "user", "content": [image]}], "tools": tools})
    assert "what it does" in prompt.texts
    assert prompt.chars < 100
    assert prompt.token_ids == ()


def test_prompts_given_as_token_ids_are_found() -> None:
    assert prompt_fields.prompt_of({"prompt": [[1, 2], [3]]}).token_ids == (1, 2, 3)


@pytest.mark.parametrize(
    ("rule", "body", "sent", "requested", "effective"),
    [
        (CHAT, {"max_tokens": 10}, {"max_tokens": 10}, 10, 10),
        (CHAT, {"max_tokens": 5000}, {"max_tokens": 256}, 5000, 256),
        (CHAT, {"max_completion_tokens": 5000}, {"max_completion_tokens": 256}, 5000, 256),
        (
            CHAT,
            {"max_completion_tokens": 300, "max_tokens": 9},
            {"max_completion_tokens": 256, "max_tokens": 9},
            300,
            256,
        ),
        (CHAT, {"max_tokens": 7.0}, {"max_tokens": 7}, 7, 7),
        (CHAT, {"use_beam_search": True}, {"use_beam_search": True, "max_completion_tokens": 150}, None, 150),
        (route_catalog.RULES["/v1/responses"], {"max_output_tokens": 999}, {"max_output_tokens": 256}, 999, 256),
        (route_catalog.RULES["/v1/messages"], {"max_tokens": 999}, {"max_tokens": 256}, 999, 256),
    ],
)
def test_max_tokens_is_lowered_and_never_raised(
    rule: route_catalog.Rule, body: dict[str, Any], sent: dict[str, Any], requested: int | None, effective: int
) -> None:
    new = rewrite.rewrite(rule, body, Settings())
    assert new.body == sent
    assert new.max_tokens is not None
    assert (new.max_tokens.requested, new.max_tokens.effective) == (requested, effective)


GENERATING = [rule for rule in route_catalog.RULES.values() if rule.max_tokens and not rule.anthropic]


@pytest.mark.parametrize("rule", GENERATING, ids=lambda rule: rule.path)
def test_every_generating_route_gets_the_limit_in_its_body(rule: route_catalog.Rule) -> None:
    """vLLM has defaults of its own, checks the parameters by them, and gives no second look to what comes after."""
    new = rewrite.rewrite(rule, {}, Settings(max_tokens_default=99))
    assert new.body == {rule.max_tokens[0]: 99}
    assert new.max_tokens is not None
    assert (new.max_tokens.requested, new.max_tokens.effective, new.max_tokens.reason) == (None, 99, "default")
    short = rewrite.rewrite(rule, {}, Settings(max_tokens_default=99), max_model_len=50)
    assert short.body == {rule.max_tokens[0]: 50}, "vLLM refuses what exceeds the context, which no client asked for"


def test_a_route_that_only_the_operator_opened_gets_the_field_that_it_takes() -> None:
    rule = route_catalog.rule_for("/v1/next_year", ("/v1/next_year",))
    assert rewrite.rewrite(rule, {}, Settings(), fields={"max_tokens"}).body == {"max_tokens": 150}
    assert rewrite.rewrite(rule, {}, Settings(), fields={"level"}).body == {}
    assert rewrite.rewrite(rule, {}, Settings(), fields=None).body == {}


@given(
    st.sampled_from([rule for rule in GENERATING if rule.sampling is None]),
    st.integers(0, 400),
    st.none() | st.integers(1, 400),
    st.integers(1, 300),
    st.integers(0, 150),
)
def test_min_tokens_never_exceeds_the_limit_that_the_engine_gets(
    rule: route_catalog.Rule, min_tokens: int, max_tokens: int | None, most: int, operators: int
) -> None:
    settings = Settings(max_tokens_max=most, max_tokens_min=1, default_sampling_params={"min_tokens": operators})
    asked = {} if max_tokens is None else {rule.max_tokens[0]: max_tokens}
    limit = rewrite.rewrite(rule, asked, settings)
    assert limit.max_tokens is not None
    assert limit.body["min_tokens"] == min(operators, limit.max_tokens.effective)
    try:
        new = rewrite.rewrite(rule, asked | {"min_tokens": min_tokens}, settings)
    except JobError as error:
        assert (error.code, error.field) == (Code.INVALID_INPUT, "min_tokens")
        assert min_tokens > limit.max_tokens.effective
    else:
        assert new.body["min_tokens"] <= new.body[rule.max_tokens[0]]


def test_max_tokens_is_rejected_where_the_operator_wants_it() -> None:
    with pytest.raises(JobError) as caught:
        rewrite.rewrite(CHAT, {"max_completion_tokens": 257}, Settings(max_tokens_policy="reject"))
    assert caught.value.field == "max_completion_tokens"
    assert "256" in caught.value.message


@pytest.mark.parametrize(
    ("rule", "body", "field"),
    [
        (CHAT, {"max_tokens": "5000"}, "max_tokens"),
        (CHAT, {"max_tokens": True}, "max_tokens"),
        (CHAT, {"max_tokens": [1]}, "max_tokens"),
        (CHAT, {"n": 5}, "n"),
        (CHAT, {"n": "5"}, "n"),
        (COMPLETIONS, {"prompt": ["a"] * 5}, "n"),
        (COMPLETIONS, {"prompt": [[1], [2], [3]], "n": 2}, "n"),
        (COMPLETIONS, {"prompt": ["a"] * 5, "n": 0}, "n"),
        (COMPLETIONS, {"prompt": [[1]] * 5, "n": -0.0}, "n"),
        (COMPLETIONS, {"prompt": [[1]] * 5, "n": -3}, "n"),
        (CHAT, {"kv_transfer_params": {"prompt_token_ids": [1]}}, "kv_transfer_params"),
    ],
)
def test_a_number_that_would_slip_past_a_limit_is_refused(
    rule: route_catalog.Rule, body: dict[str, Any], field: str
) -> None:
    with pytest.raises(JobError) as caught:
        rewrite.rewrite(rule, body, Settings())
    assert caught.value.field == field
    assert caught.value.failure.status == 400


def test_the_operators_sampling_defaults_hold_on_routes_and_a_clients_own_win() -> None:
    settings = Settings(default_sampling_params={"temperature": 0.3, "stop": ["x"]})
    chat = {"temperature": 1, "stop": ["x"], "max_completion_tokens": 150}
    assert rewrite.rewrite(CHAT, {"temperature": 1}, settings).body == chat
    assert rewrite.rewrite(route_catalog.RULES["/v1/messages"], {}, settings).body == {"temperature": 0.3}
    assert rewrite.rewrite(route_catalog.RULES["/v1/embeddings"], {}, settings).body == {}


def test_the_clients_ids_are_kept_for_the_log_and_its_request_id_is_not_sent_on() -> None:
    body = {"user": "u1", "request_id": "r1", "metadata": {"trace": "t1", "n": 5, "long": "x" * 500}}
    new = rewrite.rewrite(CHAT, body, Settings())
    assert new.client == {"user": "u1", "request_id": "r1", "metadata.trace": "t1", "metadata.long": "x" * 128}
    assert "request_id" not in new.body
    assert new.body["user"] == "u1"


NAMES = {"org/Model-7B": "served", "/models/Model-7B": "served", "Model-7B": "served", "served": "served", "ad": "ad"}


@pytest.mark.parametrize(
    ("given", "served"),
    [
        ("org/Model-7B", "served"),
        ("ORG/MODEL-7b", "served"),
        ("model-7b", "served"),
        ("/models/Model-7B", "served"),
        ("served", "served"),
        ("AD", "ad"),
        (None, None),
        ("", None),
    ],
)
def test_every_name_of_the_model_is_the_model(given: str | None, served: str | None) -> None:
    assert rewrite.resolve_model(given, NAMES) == served


def test_an_unknown_model_is_a_404_that_lists_the_valid_names() -> None:
    with pytest.raises(JobError) as caught:
        rewrite.resolve_model("gpt-4", NAMES)
    assert (caught.value.failure.status, caught.value.field) == (404, "model")
    assert "served, ad" in caught.value.message


CALLS = [{"role": "assistant", "content": None, "tool_calls": [{"id": "1", "function": {"name": "f"}}]}]


@pytest.mark.parametrize(
    ("param", "message", "body", "field"),
    [
        ("body.messages.0.role", "", {"messages": [{"content": "Hi"}]}, "messages.0.role"),
        ("messages.0.ChatCompletionUserMessageParam.content", "", {"messages": [{"content": 5}]}, "messages.0.content"),
        ("tools.0.function", "", {"tools": [{"type": "function"}]}, "tools.0.function"),
        ("prompt.0", "", {"prompt": [[5]]}, "prompt.0"),
        ("messages", "", {}, "messages"),
        ("0.function", "", {"messages": CALLS, "tools": [{"function": {}}]}, "messages"),
        ("temperature", "", {"temperature": -1}, "temperature"),
        (None, "The prompt cannot be empty", {"documents": ["a"], "query": ""}, "query"),
        (None, "The prompt cannot be empty", {"documents": [], "query": "a"}, "documents"),
        (None, "temperature must be positive", {"messages": [], "temperature": -1}, "temperature"),
    ],
)
def test_an_error_names_a_field_that_the_client_can_find(
    param: str | None, message: str, body: Any, field: str
) -> None:
    assert error_fields.field_of(param, message, body) == field


def test_pydantics_list_is_cut_down_to_the_field() -> None:
    body = {"messages": [{"role": "user", "content": 5}]}
    errors = [
        {"type": "string_type", "loc": "body.messages.0.UserMessage.content", "msg": "Input should be a valid string"},
        {"type": "list_type", "loc": "body.messages.0.UserMessage.content", "msg": "Input should be a valid list"},
        {"type": "string_type", "loc": "body.messages.0.ToolMessage.content", "msg": "Input should be a valid string"},
        {"type": "missing", "loc": "body.messages.0.ToolMessage.tool_call_id", "msg": "Field required"},
    ]
    message = "4 validation errors:\n" + "\n".join(f"  {error}" for error in errors)
    plain = error_fields.plain(message, "messages.0.content", body)
    assert plain == "messages.0.content: Input should be a valid string; Input should be a valid list."
    assert error_fields.plain("Another message.", "messages", body) == "Another message."


@pytest.mark.parametrize("given", [[5.0], ["5"], [5, True], [None]])
def test_ids_to_score_are_whole_numbers(given: list[object]) -> None:
    rule = route_catalog.RULES["/generative_scoring"]
    for body, field in (({"query": given, "items": ["a"]}, "query"), ({"query": "a", "items": [[5], given]}, "items")):
        with pytest.raises(JobError) as caught:
            rewrite.rewrite(rule, body, Settings())
        assert (caught.value.code, caught.value.field) == (Code.INVALID_INPUT, field)
    rewrite.rewrite(rule, {"query": [5], "items": [[5, 6], [7]]}, Settings())
    rewrite.rewrite(rule, {"query": "5", "items": ["5"]}, Settings())


@pytest.mark.parametrize(
    ("body", "chars"),
    [
        ({"input": "Hello"}, {"input": [5]}),
        ({"input": ["a", "bcd", ""]}, {"input": [1, 3, 1]}),
        ({"input": [7, 8, 9]}, {"input": [3]}),  # the ids of one text
        ({"input": [[7, 8], [9]]}, {"input": [2, 1]}),
        ({"query": "ab", "documents": ["c", {"text": "def"}]}, {"query": [2], "documents": [1, 3]}),
        ({"text_1": "a", "text_2": ["b", "cd"]}, {"text_1": [1], "text_2": [1, 2]}),
        ({"messages": [{"role": "user", "content": "Hi"}, {"role": "user", "content": "you"}]}, {"messages": [5]}),
        ({"input": []}, {"input": [0]}),
    ],
)
def test_inputs_are_counted_one_by_one(body: dict[str, Any], chars: dict[str, list[int]]) -> None:
    assert dict(prompt_fields.inputs_of(body)) == chars


TWENTY = Settings(max_inputs=20, max_input_chars=20, max_prompt_chars=1)


@given(st.integers(1, 40), st.integers(1, 40))
def test_inputs_are_limited_in_number_and_length_and_not_together(count: int, length: int) -> None:
    rule = route_catalog.RULES["/v1/embeddings"]
    body = {"input": ["x" * length] * count}
    if count <= 20 and length <= 20:
        rewrite.rewrite(rule, body, TWENTY)
        return
    with pytest.raises(JobError) as refusal:
        rewrite.rewrite(rule, body, TWENTY)
    assert refusal.value.code is (Code.INVALID_INPUT if count > 20 else Code.PROMPT_TOO_LONG)
    assert (refusal.value.field, refusal.value.details["limit"]) == ("input", 20)
