"""Clients that know nothing of RunPod: the `openai` and `anthropic` packages, a local endpoint, real workers.

The generating worker has a LoRA adapter, made here. The pooling worker serves the demonstration model's weights as an
embedding model.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
import os
import re
import shutil
import signal
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import anthropic
import numpy as np
import openai
import pytest
from safetensors.numpy import load_file, save_file

from llmpod.endpoint import LocalEndpoint, Options
from llmpod.worker.settings import DEMO_MODEL
from tests.worker.adapters import make_adapter
from tests.worker.processes import WorkerProcess, spawn

pytestmark = [pytest.mark.slow, pytest.mark.engine]

FOLDER = DEMO_MODEL.name
"""A name of the model beside its served one: that of the folder it was loaded from."""
QUESTION: list[Any] = [{"role": "user", "content": "How do I write a CV?"}]
WEATHER: Any = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather in a city",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "maxLength": 12}},
            "required": ["city"],
            "additionalProperties": False,
        },
    },
}


BOOLEAN = {
    "type": "object",
    "properties": {"ok": {"type": "boolean"}},
    "required": ["ok"],
    "additionalProperties": False,
}


class Served:
    """A local endpoint, its worker, and clients for it."""

    def __init__(self, endpoint: LocalEndpoint, worker: WorkerProcess) -> None:
        self.endpoint = endpoint
        self.worker = worker
        self.openai = openai.AsyncOpenAI(base_url=endpoint.openai_url, api_key="none", max_retries=0)
        self.anthropic = anthropic.AsyncAnthropic(
            base_url=endpoint.url + "/openai", api_key="none", max_retries=0, timeout=60
        )

    async def job(self, job_input: Any, how: str = "runsync") -> Any:
        async with (
            aiohttp.ClientSession() as session,
            session.post(f"{self.endpoint.url}/{how}", json={"input": job_input}) as response,
        ):
            return await response.json()

    async def post(self, route: str, body: Any) -> tuple[int, Any]:
        async with (
            aiohttp.ClientSession() as session,
            session.post(f"{self.endpoint.url}/openai{route}", json=body) as response,
        ):
            return response.status, await response.json()

    async def running(self) -> float:
        metrics: str = (await self.job({"route": "/metrics"}))["output"]
        return sum(float(line.split()[-1]) for line in metrics.splitlines() if line.startswith("vllm:num_requests_"))

    async def idle(self) -> None:
        async with asyncio.timeout(60):
            while await self.running():
                await asyncio.sleep(0.05)


async def serve(**variables: str) -> AsyncIterator[Served]:
    options = Options(port=0, fleet=False, journal="", console=False, take_hold_s=1, stop_hold_s=1)
    async with LocalEndpoint(options) as endpoint:
        worker = await spawn(endpoint, "worker", **variables)
        try:
            await worker.event("ready")
            await endpoint.ready()
            yield Served(endpoint, worker)
            worker.process.terminate()
            await worker.end()
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(worker.process.pid, signal.SIGKILL)


@pytest.fixture(scope="module")
async def served(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Served]:
    adapter = make_adapter(tmp_path_factory.mktemp("lora") / "coach")
    async for served in serve(
        LORA_MODULES=json.dumps({"Coach": str(adapter)}),
        ENABLE_PROMPT_TOKENS_DETAILS="true",
        MAX_PROMPT_CHARS="8000",
        MAX_TOKENS_MAX="2000",
        MAX_MODEL_LEN="3000",
        MAX_NUM_SEQS="32",
        SCHEDULING_POLICY="priority",
        ALLOWED_ROUTES="/is_scaling_elastic_ep,/v1/load_lora_adapter,/v1/unload_lora_adapter",
        VLLM_ALLOW_RUNTIME_LORA_UPDATING="1",
    ):
        yield served


@pytest.fixture(scope="module")
async def pooling() -> AsyncIterator[Served]:
    async for served in serve(RUNNER="pooling", CONVERT="embed", MAX_INPUT_CHARS="2000", MAX_MODEL_LEN="1000"):
        yield served


@pytest.fixture(scope="module")
async def reasoning() -> AsyncIterator[Served]:
    """A worker that reads reasoning. The model has none, so the tests make its marks part of a constraint."""
    constrained = {"backend": "xgrammar", "enable_in_reasoning": True}
    async for served in serve(REASONING_PARSER="qwen3", STRUCTURED_OUTPUTS_CONFIG=json.dumps(constrained)):
        yield served


@pytest.fixture(scope="module")
async def classifying(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Served]:
    """A cross-encoder: the demonstration model's weights under a random head of one label."""
    folder = tmp_path_factory.mktemp("model") / "judge"
    shutil.copytree(DEMO_MODEL, folder)
    config = json.loads((folder / "config.json").read_text())
    config |= {"architectures": ["Qwen2ForSequenceClassification"], "num_labels": 1, "id2label": {"0": "fits"}}
    (folder / "config.json").write_text(json.dumps(config))
    weights = load_file(folder / "model.safetensors")
    head = np.random.default_rng(0).normal(size=(1, config["hidden_size"])).astype("float16")
    save_file(weights | {"score.weight": head}, folder / "model.safetensors")
    async for served in serve(MODEL_NAME=str(folder), RUNNER="pooling", MAX_MODEL_LEN="1000"):
        yield served


# -- the worker's own --------------------------------------------------------------------------------------------------


async def status_of(served: Served) -> tuple[set[str], set[str]]:
    """What a worker says it can do, and what it has tried with success."""
    status = (await served.job({"route": "/status"}))["output"]
    failed = {name: result for name, result in status["warm_up"].items() if not result["ok"]}
    assert not failed, failed
    return {name for name, can in status["capabilities"].items() if can}, set(status["warm_up"])


async def test_a_generating_worker_has_tried_its_adapter(served: Served) -> None:
    assert await status_of(served) == ({"generate", "tools"}, {"generate", "lora:Coach"})


async def test_an_embedding_worker_has_tried_to_embed_and_to_score(pooling: Served) -> None:
    assert await status_of(pooling) == ({"embed", "score"}, {"embed", "score"})


async def test_a_classifying_worker_has_tried_to_classify_and_to_score(classifying: Served) -> None:
    assert await status_of(classifying) == ({"classify", "score"}, {"classify", "score"})


# -- openai ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def model(served: Served) -> str:
    return "llmpod-demo"


async def test_models_are_listed_with_their_adapters(served: Served) -> None:
    models = await served.openai.models.list()
    assert [model.id for model in models.data] == ["llmpod-demo", "Coach"]


@pytest.mark.parametrize("name", ["llmpod-demo", "Coach", FOLDER])
async def test_a_model_is_retrieved_by_any_of_its_names(served: Served, name: str) -> None:
    found = await served.openai.models.retrieve(name)
    assert found.id == {FOLDER: "llmpod-demo"}.get(name, name)
    assert found.object == "model"


async def test_a_model_that_is_not_served_is_not_retrieved(served: Served) -> None:
    with pytest.raises(openai.NotFoundError, match="serves: llmpod-demo, Coach"):
        await served.openai.models.retrieve("org/gpt-4")


@pytest.mark.parametrize("base", ["/openai", "/openai/v1/v1"])
async def test_a_wrong_base_url_is_told_the_route_that_was_meant(served: Served, base: str, model: str) -> None:
    client = openai.AsyncOpenAI(base_url=served.endpoint.url + base, api_key="none", max_retries=0)
    with pytest.raises(openai.NotFoundError, match=r"/v1/chat/completions is.*base_url ends in /openai/v1, once"):
        await client.chat.completions.create(model=model, messages=QUESTION)
    with pytest.raises(openai.NotFoundError, match="/v1/models is"):
        await client.models.list()


async def test_an_adapter_is_loaded_at_run_time_where_the_route_is_opened(
    served: Served, tmp_path_factory: pytest.TempPathFactory
) -> None:
    adapter = make_adapter(tmp_path_factory.mktemp("lora") / "later")
    loaded = await served.job(
        {"route": "/v1/load_lora_adapter", "body": {"lora_name": "Later", "lora_path": str(adapter)}}
    )
    assert loaded["status"] == "COMPLETED", loaded
    done = await served.openai.chat.completions.create(model="later", messages=QUESTION, max_tokens=3)
    assert done.model == "Later"
    removed = await served.job({"route": "/v1/unload_lora_adapter", "body": {"lora_name": "Later"}})
    assert removed["status"] == "COMPLETED", removed


IGNORED_ON: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    ("/v1/responses", {"input": "Hi", "max_output_tokens": 3}, {"client_metadata": {"x": "1"}}),
    ("/v1/chat/completions", {"messages": QUESTION, "max_tokens": 3}, {"reasoning": {"effort": "low"}, "provider": {}}),
    ("/v1/messages", {"messages": QUESTION, "max_tokens": 3}, {"context_management": {"edits": []}}),
]


@pytest.mark.parametrize(("route", "body", "extra"), IGNORED_ON)
async def test_what_was_ignored_is_in_the_answer_the_first_event_and_the_log(
    served: Served, model: str, route: str, body: dict[str, Any], extra: dict[str, Any]
) -> None:
    status, said = await served.post(route, {"model": model} | body | extra)
    assert status == 200, said
    assert said["limits"] == {"ignored": list(extra)}
    job = await served.job({"route": route, "body": {"model": model, "stream": True} | body | extra})
    events = [line[6:] for line in "".join(job["output"]).splitlines() if line.startswith("data: {")]
    assert json.loads(events[0])["limits"] == {"ignored": list(extra)}
    end = await served.worker.event("end", job["id"])
    assert end["ignored"] == list(extra)


async def test_a_field_that_would_change_the_answer_is_the_clients_error(served: Served, model: str) -> None:
    options: Any = {"model": model, "messages": QUESTION, "max_tokens": 3}
    with pytest.raises(openai.BadRequestError, match="Give them as tools") as caught:
        await served.openai.chat.completions.create(**options, functions=[{"name": "f", "parameters": {}}])
    assert caught.value.param == "functions"
    done = await served.openai.chat.completions.create(**options, functions=[], function_call="none", store=False)
    assert done.choices


async def test_an_older_spelling_of_a_constraint_binds(served: Served, model: str) -> None:
    done = await served.openai.chat.completions.create(
        model=model, messages=QUESTION, max_tokens=9, extra_body={"guided_choice": ["yes", "no"]}
    )
    assert done.choices[0].message.content in ("yes", "no")
    assert done.limits["moved"] == {"guided_choice": "structured_outputs.choice"}  # type: ignore[attr-defined]


async def test_jobs_of_langchain_runpod_are_answered_where_it_looks(served: Served) -> None:
    """langchain-runpod 0.2.0: the body as chat_models.py and llms.py write it, the output as they read it."""
    prompt = "System: Be brief\nUser: How do I write a CV?"
    job_input = {"prompt": prompt, "temperature": 0.2, "max_tokens": 64, "top_p": 0.9, "top_k": 20, "stop": ["END"]}
    job = await served.job(job_input)
    assert job["status"] == "COMPLETED", job
    output = job["output"]
    for places in (("content", "text", "message"), ("text", "content", "message")):
        said = next(output[place] for place in places if isinstance(output.get(place), str))
        assert said == output["choices"][0]["text"] != ""
    assert output["limits"]["moved"].keys() == job_input.keys() - {"prompt"}


async def test_a_response_format_binds_a_native_job(served: Served) -> None:
    shape = {"type": "json_schema", "json_schema": {"name": "a", "schema": BOOLEAN}}
    job = await served.job({"prompt": "Does it fit?", "response_format": shape, "max_tokens": 64})
    assert isinstance(json.loads(job["output"]["text"])["ok"], bool), job


async def test_chat_streamed_and_not_gives_the_same_answer(served: Served, model: str) -> None:
    options: Any = {"messages": QUESTION, "model": model, "temperature": 0, "max_tokens": 40}
    whole = await served.openai.chat.completions.create(**options)
    text, usage, finish = "", None, None
    stream = await served.openai.chat.completions.create(**options, stream=True, stream_options={"include_usage": True})
    async for chunk in stream:
        usage = chunk.usage or usage
        for choice in chunk.choices:
            text += choice.delta.content or ""
            finish = choice.finish_reason or finish
    assert text == whole.choices[0].message.content
    assert whole.usage
    assert usage
    assert usage.completion_tokens == whole.usage.completion_tokens
    assert finish == whole.choices[0].finish_reason


async def test_n_logprobs_stop_and_seed_do_what_vllm_does(served: Served, model: str) -> None:
    options: Any = {
        "messages": QUESTION,
        "model": model,
        "max_tokens": 6,
        "seed": 7,
        "logprobs": True,
        "top_logprobs": 2,
    }
    first = await served.openai.chat.completions.create(**options, n=2)
    again = await served.openai.chat.completions.create(**options, n=2)
    assert len(first.choices) == 2
    assert [choice.message for choice in first.choices] == [choice.message for choice in again.choices]
    logprobs = first.choices[0].logprobs
    assert logprobs
    assert logprobs.content
    assert len(logprobs.content[0].top_logprobs) == 2
    stopped = await served.openai.completions.create(model=model, prompt="How do I", max_tokens=40, stop=["e"])
    assert "e" not in stopped.choices[0].text


async def test_completions_echo_and_several_prompts(served: Served, model: str) -> None:
    done = await served.openai.completions.create(model=model, prompt=["How do I", "What is"], max_tokens=4, echo=True)
    assert [choice.text[:7] for choice in done.choices] == ["How do ", "What is"]
    text = ""
    async for chunk in await served.openai.completions.create(model=model, prompt="How", max_tokens=8, stream=True):
        text += chunk.choices[0].text if chunk.choices else ""
    assert text


@pytest.mark.parametrize(
    ("extra", "check"),
    [
        ({"structured_outputs": {"choice": ["yes", "no"]}}, lambda text: text in ("yes", "no")),
        ({"structured_outputs": {"regex": "[0-9]{4}"}}, lambda text: len(text) == 4 and text.isdigit()),
        ({"structured_outputs": {"grammar": 'root ::= "ab" | "cd"'}}, lambda text: text in ("ab", "cd")),
        ({"structured_outputs": {"json": BOOLEAN}}, lambda text: isinstance(json.loads(text)["ok"], bool)),
    ],
)
async def test_structured_output_holds(served: Served, model: str, extra: Any, check: Any) -> None:
    done = await served.openai.completions.create(model=model, prompt="Answer:", max_tokens=60, extra_body=extra)
    assert check(done.choices[0].text), done.choices[0].text


async def test_a_response_format_is_kept_streamed_and_not(served: Served, model: str) -> None:
    options: Any = {
        "model": model,
        "messages": QUESTION,
        "max_tokens": 60,
        "response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": BOOLEAN}},
    }
    done = await served.openai.chat.completions.create(**options)
    assert isinstance(json.loads(done.choices[0].message.content or "")["ok"], bool)
    text = ""
    async for chunk in await served.openai.chat.completions.create(**options, stream=True):
        text += (chunk.choices[0].delta.content or "") if chunk.choices else ""
    assert isinstance(json.loads(text)["ok"], bool)


NAMED: Any = {"type": "function", "function": {"name": "get_weather"}}


def is_weather_call(name: str | None, arguments: str) -> bool:
    """What is asked for by WEATHER's schema: one field, a city of at most twelve characters."""
    given = json.loads(arguments)
    return name == "get_weather" and list(given) == ["city"] and len(given["city"]) <= 12


@pytest.mark.parametrize("choice", [NAMED, "required"])
async def test_a_forced_tool_is_called_with_arguments_that_fit_its_schema(
    served: Served, model: str, choice: Any
) -> None:
    options: Any = {"model": model, "messages": QUESTION, "tools": [WEATHER], "tool_choice": choice, "max_tokens": 300}
    options["parallel_tool_calls"] = False
    done = await served.openai.chat.completions.create(**options)
    (call,) = done.choices[0].message.tool_calls or ()
    assert call.type == "function"
    assert is_weather_call(call.function.name, call.function.arguments)
    async with served.openai.chat.completions.stream(**options) as stream:
        final = await stream.get_final_completion()
    (streamed,) = final.choices[0].message.tool_calls or ()
    assert is_weather_call(streamed.function.name, streamed.function.arguments)


@pytest.mark.parametrize("stream", [False, True])
async def test_a_forced_tool_of_a_response_is_called(served: Served, model: str, stream: bool) -> None:
    tool = {"type": "function"} | {name: WEATHER["function"][name] for name in ("name", "parameters")}
    choice = {"type": "function", "name": "get_weather"}
    options: Any = {"model": model, "input": "Hi", "tools": [tool], "tool_choice": choice, "max_output_tokens": 300}
    if stream:
        async with served.openai.responses.stream(**options) as events:
            done: Any = await events.get_final_response()
    else:
        done = await served.openai.responses.create(**options)
    (call,) = done.output
    assert is_weather_call(call.name, call.arguments)


async def test_a_call_that_max_tokens_cut_off_ends_with_length(served: Served, model: str) -> None:
    options: Any = {"model": model, "messages": QUESTION, "tools": [WEATHER], "tool_choice": NAMED, "max_tokens": 3}
    whole = await served.openai.chat.completions.create(**options)
    assert whole.choices[0].finish_reason == "length"
    chunks = [chunk async for chunk in await served.openai.chat.completions.create(**options, stream=True)]
    assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices][-1] == "length"


async def test_a_priority_is_taken_by_a_scheduler_that_has_priorities(served: Served, model: str) -> None:
    options: Any = {"model": model, "messages": QUESTION, "max_tokens": 3}
    done = await served.openai.chat.completions.create(**options, extra_body={"priority": -5})
    assert done.choices
    with pytest.raises(openai.BadRequestError) as bad:
        await served.openai.chat.completions.create(**options, extra_body={"priority": "first"})
    assert bad.value.param == "priority"


THOUGHT: Any = {"structured_outputs": {"regex": "<think>[a-m]{3}</think>[0-9]{2}"}}


async def test_reasoning_of_a_chat_is_told_apart_from_the_answer_streamed_and_not(
    reasoning: Served, model: str
) -> None:
    options: Any = {"model": model, "messages": QUESTION, "max_tokens": 60, "extra_body": THOUGHT}
    whole = await reasoning.openai.chat.completions.create(**options)
    thought, content = whole.choices[0].message.reasoning, whole.choices[0].message.content  # type: ignore[attr-defined]
    deltas: list[Any] = []
    async for chunk in await reasoning.openai.chat.completions.create(**options, stream=True):
        deltas += [choice.delta for choice in chunk.choices]
    streamed = "".join(getattr(delta, "reasoning", None) or "" for delta in deltas)
    rest = "".join(delta.content or "" for delta in deltas)
    for said, answer in ((thought, content), (streamed, rest)):
        assert re.fullmatch("[a-m]{3}", said)
        assert re.fullmatch("[0-9]{2}", answer or "")


async def test_reasoning_of_a_response_is_an_item_of_its_own(reasoning: Served, model: str) -> None:
    options: Any = {"model": model, "input": "Hi", "max_output_tokens": 60, "extra_body": THOUGHT}
    whole = await reasoning.openai.responses.create(**options)
    assert [item.type for item in whole.output] == ["reasoning", "message"]
    assert re.fullmatch("[0-9]{2}", whole.output_text)
    kinds = [event.type async for event in await reasoning.openai.responses.create(**options, stream=True)]
    assert "response.reasoning_text.delta" in kinds
    assert "response.output_text.delta" in kinds


async def test_reasoning_of_a_message_is_a_thinking_block(reasoning: Served, model: str) -> None:
    """Anthropic's route takes no regex. Without an end mark, all that this model says counts as reasoning."""
    options: Any = {"model": model, "messages": QUESTION, "max_tokens": 30}
    whole = await reasoning.anthropic.messages.create(**options)
    async with reasoning.anthropic.messages.stream(**options) as stream:
        streamed = await stream.get_final_message()
    for message in (whole, streamed):
        assert message.content[0].type == "thinking"
        assert message.content[0].thinking


async def test_tools_may_be_left_to_the_model(served: Served, model: str) -> None:
    done = await served.openai.chat.completions.create(
        model=model, messages=QUESTION, tools=[WEATHER], tool_choice="auto", max_tokens=8
    )
    assert done.choices[0].finish_reason in ("length", "stop", "tool_calls")


async def test_responses_streamed_and_not_and_one_after_another(served: Served, model: str) -> None:
    first = await served.openai.responses.create(model=model, input="How do I write a CV?", max_output_tokens=30)
    assert first.usage
    assert first.usage.output_tokens > 0
    second = await served.openai.responses.create(
        model=model, input="And then?", previous_response_id=first.id, max_output_tokens=10
    )
    assert second.usage
    assert second.usage.input_tokens > first.usage.input_tokens
    kinds = [
        event.type
        async for event in await served.openai.responses.create(
            model=model, input="How do I write a CV?", max_output_tokens=20, stream=True
        )
    ]
    assert kinds[0] == "response.created"
    assert kinds[-1] in ("response.completed", "response.incomplete")
    assert (await served.openai.responses.retrieve(first.id)).id == first.id


async def test_a_background_response_is_refused_through_the_client(served: Served, model: str) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        await served.openai.responses.create(model=model, input="Count", background=True)
    assert caught.value.param == "background"
    await served.idle()


async def test_an_adapter_answers_under_its_name_in_any_case(served: Served) -> None:
    options: Any = {"messages": QUESTION, "temperature": 0, "max_tokens": 8}
    names = ("coach", "llmpod-demo", "LLMPOD-DEMO", FOLDER, str(DEMO_MODEL))
    answers = [await served.openai.chat.completions.create(model=name, **options) for name in names]
    assert [answer.model for answer in answers] == ["Coach", *["llmpod-demo"] * 4]
    texts = [answer.choices[0].message.model_dump_json() for answer in answers]
    assert texts[0] != texts[1] == texts[2] == texts[3] == texts[4]


async def test_tokenize_and_detokenize(served: Served) -> None:
    _, tokens = await served.post("/tokenize", {"prompt": "Hello there"})
    _, text = await served.post("/detokenize", {"tokens": tokens["tokens"]})
    assert text == {"prompt": "Hello there"}


@pytest.mark.parametrize("stream", [False, True])
async def test_the_client_raises_its_own_errors(served: Served, model: str, stream: bool) -> None:
    create = served.openai.chat.completions.create
    with pytest.raises(openai.NotFoundError, match="This worker serves: llmpod-demo, Coach") as missing:
        await create(model="gpt-4", messages=QUESTION, stream=stream)
    assert missing.value.param == "model"
    with pytest.raises(openai.BadRequestError) as bad:
        await create(model=model, messages=QUESTION, temperature=-1, stream=stream)
    assert bad.value.param == "temperature"
    with pytest.raises(openai.BadRequestError, match="9000 characters; this worker accepts 8000"):
        await create(model=model, messages=[{"role": "user", "content": "x" * 9000}], stream=stream)
    with pytest.raises(openai.BadRequestError) as too_long:
        await create(model=model, messages=[{"role": "user", "content": "ü1 " * 2600}], stream=stream)
    assert "3000" in str(too_long.value)
    with pytest.raises(openai.BadRequestError):
        await create(model=model, messages=QUESTION, extra_body={"temprature": 1}, stream=stream)
    with pytest.raises(openai.NotFoundError, match="RUNNER=pooling"):
        await served.openai.embeddings.create(model=model, input="Hi")


async def test_a_closed_route_is_a_403_and_an_opened_one_answers(served: Served) -> None:
    status, body = await served.post("/scale_elastic_ep", {"new_data_parallel_size": 2})
    assert (status, body["error"]["type"]) == (403, "PermissionDeniedError")
    status, body = await served.post("/is_scaling_elastic_ep", {"a": 1})
    assert (status, body["is_scaling_elastic_ep"]) == (200, False)


async def test_a_failed_call_is_a_failed_job(served: Served) -> None:
    job = await served.job({"openai_route": "/v1/chat/completions", "openai_input": {"messages": "Hi"}})
    assert job["status"] == "FAILED"
    error = json.loads(job["error"])
    assert (error["status"], error["error"]["code"], error["retryable"]) == (400, 400, False)


@pytest.mark.parametrize("stream", [False, True])
async def test_a_client_that_leaves_ends_its_request_in_the_engine(served: Served, model: str, stream: bool) -> None:
    async def call() -> None:
        answer: Any = await served.openai.chat.completions.create(
            model=model, messages=QUESTION, max_tokens=2000, stream=stream, extra_body={"ignore_eos": True}
        )
        if stream:
            async for _ in answer:
                pass

    for _ in range(5):  # a machine that stalls may let it finish before it is seen
        task = asyncio.create_task(call())
        while not task.done() and not await served.running():
            await asyncio.sleep(0.02)
        if not task.done():
            break
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await served.idle()


async def test_a_stopped_job_ends_its_request_in_the_engine(served: Served) -> None:
    body = {"messages": QUESTION, "max_tokens": 2000, "ignore_eos": True}
    job = await served.job({"openai_route": "/v1/chat/completions", "openai_input": body}, how="run")
    start = await served.worker.event("start", job["id"])
    assert start["route"] == "/v1/chat/completions"
    async with (
        aiohttp.ClientSession() as session,
        session.post(f"{served.endpoint.url}/cancel/{job['id']}") as response,
    ):
        assert response.status == 200
    end = await served.worker.event("end", job["id"])
    assert end["outcome"] == "cancelled"
    await served.idle()


# -- anthropic ---------------------------------------------------------------------------------------------------------


async def test_anthropic_messages_streamed_and_not(served: Served, model: str) -> None:
    options: Any = {"model": model, "messages": QUESTION, "max_tokens": 30, "system": "Be brief."}
    whole = await served.anthropic.messages.create(**options)
    assert whole.role == "assistant"
    assert whole.usage.output_tokens > 0
    async with served.anthropic.messages.stream(**options) as stream:
        kinds = [event.type async for event in stream]
        final = await stream.get_final_message()
    assert kinds[0] == "message_start"
    assert kinds[-1] == "message_stop"
    assert final.usage.output_tokens > 0


@pytest.mark.parametrize("choice", [{"type": "tool", "name": "get_weather"}, {"type": "any"}])
async def test_anthropic_forced_tool_is_used(served: Served, model: str, choice: Any) -> None:
    tool: Any = {"name": "get_weather", "input_schema": WEATHER["function"]["parameters"]}
    options: Any = {"model": model, "messages": QUESTION, "tools": [tool], "max_tokens": 300}
    options["tool_choice"] = choice | {"disable_parallel_tool_use": True}
    whole = await served.anthropic.messages.create(**options)
    async with served.anthropic.messages.stream(**options) as stream:
        streamed = await stream.get_final_message()
    for message in (whole, streamed):
        (use,) = message.content
        assert message.stop_reason == "tool_use"
        assert is_weather_call(use.name, json.dumps(use.input))  # type: ignore[union-attr]


async def test_anthropic_counts_tokens(served: Served, model: str) -> None:
    counted = await served.anthropic.messages.count_tokens(model=model, messages=QUESTION)
    assert counted.input_tokens > 5


async def test_anthropic_raises_its_own_errors(served: Served, model: str) -> None:
    with pytest.raises(anthropic.NotFoundError) as missing:
        await served.anthropic.messages.create(model="claude", messages=QUESTION, max_tokens=5)
    assert "llmpod-demo" in str(missing.value)
    with pytest.raises(anthropic.BadRequestError):
        await served.anthropic.messages.create(
            model=model, messages=QUESTION, max_tokens=5, extra_body={"temperature": -3}
        )


# -- embeddings, scores ------------------------------------------------------------------------------------------------


async def test_embeddings_in_every_encoding(pooling: Served) -> None:
    floats = await pooling.openai.embeddings.create(
        model="llmpod-demo", input=["Hello", "Goodbye"], encoding_format="float"
    )
    packed = await pooling.openai.embeddings.create(model=FOLDER, input=["Hello", "Goodbye"])
    assert len(floats.data) == 2
    norm = math.sqrt(sum(x * x for x in floats.data[0].embedding))
    assert norm == pytest.approx(1, abs=1e-3)
    assert packed.data[1].embedding == pytest.approx(floats.data[1].embedding, abs=1e-6)
    ids = await pooling.openai.embeddings.create(model=FOLDER, input=[[50, 51, 52]])
    assert len(ids.data[0].embedding) == len(floats.data[0].embedding)


async def test_rerank_score_and_pooling(pooling: Served) -> None:
    documents = ["A CV is one page", "Bananas are yellow"]
    for route in ("/rerank", "/v1/rerank", "/v2/rerank"):
        status, ranked = await pooling.post(route, {"model": FOLDER, "query": "CV", "documents": documents})
        assert (status, len(ranked["results"])) == (200, 2)
        objects = {
            "documents": [{"text": text} for text in documents],
            "rank_fields": ["text"],
            "return_documents": True,
        }
        status, again = await pooling.post(route, {"model": FOLDER, "query": "CV"} | objects)
        assert (status, again["results"]) == (200, ranked["results"])
    for route in ("/score", "/v1/score"):
        status, scored = await pooling.post(route, {"model": FOLDER, "text_1": "CV", "text_2": documents})
        assert (status, len(scored["data"])) == (200, 2)
    status, embedded = await pooling.post("/v2/embed", {"model": FOLDER, "texts": documents})
    assert (status, len(embedded["embeddings"]["float"])) == (200, 2), embedded
    status, pooled = await pooling.post("/pooling", {"model": FOLDER, "input": "Hello", "task": "embed"})
    assert status == 200, pooled


async def test_a_cross_encoder_classifies_scores_and_reranks(classifying: Served) -> None:
    documents = ["A CV is one page", "Bananas are yellow"]
    status, classes = await classifying.post("/classify", {"model": "judge", "input": documents})
    assert status == 200, classes
    assert [len(one["probs"]) for one in classes["data"]] == [1, 1]
    status, scores = await classifying.post("/score", {"model": "judge", "text_1": "CV", "text_2": documents})
    assert status == 200, scores
    status, ranked = await classifying.post("/rerank", {"model": "judge", "query": "CV", "documents": documents})
    assert status == 200, ranked
    by_document = {one["index"]: one["relevance_score"] for one in ranked["results"]}
    assert [by_document[one["index"]] for one in scores["data"]] == pytest.approx(
        [one["score"] for one in scores["data"]], abs=1e-4
    )
    status, refused = await classifying.post("/v1/embeddings", {"model": "judge", "input": "x"})
    assert status == 404, refused


async def test_embedding_errors_are_the_clients_own_and_limits_hold(pooling: Served) -> None:
    with pytest.raises(openai.BadRequestError, match="2001 characters; this worker accepts 2000"):
        await pooling.openai.embeddings.create(model=FOLDER, input="x" * 2001)
    with pytest.raises(openai.NotFoundError):
        await pooling.openai.embeddings.create(model="text-embedding-3-small", input="x")
    with pytest.raises(openai.BadRequestError):
        await pooling.openai.embeddings.create(model=FOLDER, input="x", dimensions=3)


async def test_inputs_are_limited_in_number_and_each_in_length(pooling: Served) -> None:
    ten = ["word " * 200] * 10  # 10,000 characters together, which no limit of one prompt would let pass
    assert len((await pooling.openai.embeddings.create(model=FOLDER, input=ten)).data) == 10
    assert len((await pooling.openai.embeddings.create(model=FOLDER, input=["x"] * 32)).data) == 32
    for inputs in (33, 10_000):
        with pytest.raises(openai.BadRequestError, match=f"input has {inputs} inputs; this worker accepts 32"):
            await pooling.openai.embeddings.create(model=FOLDER, input=["x"] * inputs)
    with pytest.raises(openai.BadRequestError, match="Input 1 of input has 2001 characters"):
        await pooling.openai.embeddings.create(model=FOLDER, input=["x", "x" * 2001])


async def test_the_generating_side_is_refused_by_a_pooling_worker(pooling: Served) -> None:
    with pytest.raises(openai.NotFoundError, match="RUNNER=generate"):
        await pooling.openai.chat.completions.create(model=FOLDER, messages=QUESTION)
    job = await pooling.job({"prompt": "Hello"})
    assert job["status"] == "FAILED"
    assert json.loads(job["error"])["code"] == "unsupported"


async def test_a_pooling_job_has_one_start_and_one_end_line(pooling: Served) -> None:
    job = await pooling.job({"openai_route": "/v1/embeddings", "openai_input": {"input": "Hello", "user": "u"}})
    assert job["status"] == "COMPLETED"
    await pooling.worker.event("end", job["id"])
    start, end = [event for event in pooling.worker.of(job["id"]) if event["event"] in ("start", "end")]
    assert (start["route"], start["client"]) == ("/v1/embeddings", {"user": "u"})
    assert (end["outcome"], end["model"]) == ("ok", "llmpod-demo")
