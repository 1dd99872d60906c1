"""What is an answer and what is none, in every shape that workers use, whole and streamed."""

import itertools
import json
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmpod.loadtest.analysis.analyse import drift
from llmpod.loadtest.model.failures import ERROR_CLASSES, error_code
from llmpod.loadtest.model.job_record import Job
from llmpod.loadtest.run.answer import Answer
from llmpod.loadtest.run.outcomes import Verdict, failed, judge, note
from llmpod.loadtest.run.output import Reading, read_output
from tests.loadtest.conftest import Result
from tests.loadtest.scripted import OUTPUT, JobScript, Script, scripted

pytestmark = pytest.mark.process

LoadTest = Callable[..., Awaitable[Result]]


def chat(message: dict[str, Any], reason: str = "stop", tokens: int = 6) -> dict[str, Any]:
    choice = {"index": 0, "message": {"role": "assistant", **message}, "finish_reason": reason}
    usage = {"prompt_tokens": 9, "completion_tokens": tokens}
    return {"object": "chat.completion", "choices": [choice], "usage": usage}


def sse(*events: dict[str, Any] | str) -> str:
    return "".join(f"data: {event if isinstance(event, str) else json.dumps(event)}\n\n" for event in events)


def delta(piece: dict[str, Any], reason: str | None = None) -> dict[str, Any]:
    return {"object": "chat.completion.chunk", "choices": [{"index": 0, "delta": piece, "finish_reason": reason}]}


CALL = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Oslo"}'}}
RESPONSE = {
    "object": "response",
    "status": "completed",
    "error": None,
    "usage": {"input_tokens": 9, "output_tokens": 6},
}
SAID = {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "Hi there"}]}
MESSAGE = {"type": "message", "role": "assistant", "usage": {"input_tokens": 9, "output_tokens": 6}}
ERROR = {"message": "too long", "type": "invalid_request_error", "code": "prompt_too_long", "retryable": False}
BLOCKED = {"blocked": True, "intent": "salary_intelligence", "message": "…", "model": "m", "request_id": "r"}
NATIVE = {"choices": [{"index": 0, "text": "Hi", "finish_reason": "stop"}], "usage": {"input": 9, "output": 6}}

# ruff: noqa: E501 - a table is read line by line
# name -> (output of a COMPLETED job, outcome, error class, code, output tokens)
WHOLE: dict[str, tuple[Any, str, str | None, str | None, int | None]] = {
    "ours": (NATIVE, "answered", None, None, 6),
    "ours, valid": ({**NATIVE, "validation": {"valid": True, "issues": []}}, "answered", None, None, 6),
    "ours, invalid": ({**NATIVE, "validation": {"valid": False, "issues": ["x"]}}, "invalid", None, None, 6),
    "ours, cut": ({**NATIVE, "choices": [{"text": "Hi", "finish_reason": "length"}]}, "cut", None, None, 6),
    "ours, blocked": (BLOCKED, "blocked", "blocked", "blocked", None),
    "ours, aggregated": ([{"choices": [{"text": "Hi"}]}, {"choices": [], "usage": {"output": 6}}], "answered", None, None, 6),
    "ours, a stream that failed": (
        [{"choices": [{"text": "Hi"}]}, {"choices": [], "failure": ERROR}], "failed", "output_error", "prompt_too_long", 1,
    ),
    "official, batches": ([{"choices": [{"tokens": ["Hi", " you"]}], "usage": {"input": 9, "output": 6}}], "answered", None, None, 6),
    "official, error object": (
        [{"object": "error", "message": "gone", "type": "NotFoundError", "code": 404}], "failed", "output_error", "NotFoundError", None,
    ),
    "official, nested error": ({"error": {"message": "x", "type": "BadRequestError"}}, "failed", "output_error", "BadRequestError", None),
    "official, err and traceback": ({"err": "boom", "traceback": "Traceback …"}, "failed", "output_error", None, None),
    "official, raw events": (sse(delta({"content": "Hi"}), {"choices": [], "usage": {"completion_tokens": 6}}, "[DONE]"), "answered", None, None, 6),
    "official, raw events in a list": ([sse(delta({"content": "Hi"})), sse(delta({}, "length"), "[DONE]")], "cut", None, None, 1),
    "official, raw lines in a list": (["data: " + json.dumps(delta({"content": "Hi you"})), "data: [DONE]"], "answered", None, None, 2),
    "official, raw error event": (sse({"error": {"message": "x", "code": "context_length_exceeded"}}), "failed", "output_error", "context_length_exceeded", None),
    "success false": ({"success": False, "message": "no"}, "failed", "output_error", None, None),
    "status error": ({"status": "error", "message": "no"}, "failed", "output_error", None, None),
    "error text": ({"error": "HTTP 200"}, "failed", "output_error", None, None),
    "error as JSON text": ({"error": json.dumps(ERROR)}, "failed", "output_error", "prompt_too_long", None),
    "chat": (chat({"content": "Hi"}), "answered", None, None, 6),
    "chat, cut": (chat({"content": "Hi"}, "length"), "cut", None, None, 6),
    "chat, tool call": (chat({"content": None, "tool_calls": [CALL]}, "tool_calls"), "answered", None, None, 6),
    "chat, legacy call": (chat({"content": None, "function_call": CALL["function"]}, "function_call"), "answered", None, None, 6),
    "chat, refusal": (chat({"content": None, "refusal": "I won't."}), "answered", None, None, 6),
    "chat, parts": (chat({"content": [{"type": "text", "text": "Hi"}]}), "answered", None, None, 6),
    "chat, reasoning": (chat({"content": None, "reasoning_content": "Hm."}), "answered", None, None, 6),
    "chat, nothing said": (chat({"content": ""}, tokens=0), "failed", "empty_output", None, 0),
    "chat, tokens without text": (chat({"content": ""}, tokens=6), "answered", None, None, 6),
    "chat, filtered": (chat({"content": ""}, "content_filter"), "blocked", "blocked", "blocked", 6),
    "chat, aborted": (chat({"content": "Hi"}, "abort"), "failed", "output_error", None, 6),
    "responses": ({**RESPONSE, "output": [SAID]}, "answered", None, None, 6),
    "responses, call": ({**RESPONSE, "output": [{"type": "function_call", "name": "w"}]}, "answered", None, None, 6),
    "responses, cut": (
        {**RESPONSE, "status": "incomplete", "incomplete_details": {"reason": "max_output_tokens"}, "output": [SAID]}, "cut", None, None, 6,
    ),
    "responses, failed": ({**RESPONSE, "status": "failed", "output": [], "error": {"code": "server_error", "message": "x"}}, "failed", "output_error", "server_error", 6),
    "messages": ({**MESSAGE, "content": [{"type": "text", "text": "Hi"}], "stop_reason": "end_turn"}, "answered", None, None, 6),
    "messages, tool use": ({**MESSAGE, "content": [{"type": "tool_use", "name": "w", "input": {}}], "stop_reason": "tool_use"}, "answered", None, None, 6),
    "messages, cut": ({**MESSAGE, "content": [{"type": "text", "text": "Hi"}], "stop_reason": "max_tokens"}, "cut", None, None, 6),
    "messages, error": ({"type": "error", "error": {"type": "overloaded_error", "message": "x"}}, "failed", "output_error", "overloaded_error", None),
    "embeddings": ({"object": "list", "data": [{"embedding": [0.1]}], "usage": {"prompt_tokens": 3}}, "answered", None, None, None),
    "rerank": ({"results": [{"index": 0, "relevance_score": 0.5}]}, "answered", None, None, None),
    "transcription": ({"text": "hello"}, "answered", None, None, 1),
    "text": ("a plain answer", "answered", None, None, 4),
    "text about data": ("data: the new oil", "answered", None, None, 4),
    "zero": (0, "answered", None, None, None),
    "false": (False, "answered", None, None, None),
    "a handler's own": ({"items": [], "total": 0}, "answered", None, None, None),
    "nothing": (None, "failed", "empty_output", None, None),
    "blank": ("  \n", "failed", "empty_output", None, 1),
    "no choices": ({"choices": []}, "failed", "empty_output", None, None),
    "an insane count": ({"choices": [{"text": "four"}], "usage": {"output": 10**400}}, "answered", None, None, 1),
    "a count that is true": ({"choices": [{"text": "four"}], "usage": {"output": True}}, "answered", None, None, 1),
}  # fmt: skip


def tokens_of(answer: Answer) -> int | None:
    job = Job("p", 0, "measured", "run")
    note(job, answer, judge(answer))
    return job.output_tokens


@pytest.mark.parametrize("name", WHOLE)
def test_the_outcome_of_a_whole_output(name: str) -> None:
    output, outcome, error_class, code, tokens = WHOLE[name]
    answer = read_output(output)
    verdict = judge(answer)
    assert (verdict.outcome, verdict.error_class, verdict.code) == (outcome, error_class, code)
    assert tokens_of(answer) == tokens
    assert error_class is None or (error_class in ERROR_CLASSES and verdict.error)


EVENTS: dict[str, tuple[list[dict[str, Any] | str], str, str | None, int]] = {
    # name -> (events, outcome, code, how many of them carry a token)
    "chat": ([delta({"role": "assistant"}), delta({"content": "Hi"}), delta({"content": " "}), delta({}, "stop"), "[DONE]"], "answered", None, 2),
    "chat, tool call": ([delta({"tool_calls": [{"index": 0, **CALL}]}), delta({}, "tool_calls"), "[DONE]"], "answered", None, 1),
    "chat, refusal": ([delta({"refusal": "no"}), delta({}, "stop"), "[DONE]"], "answered", None, 1),
    "chat, cut": ([delta({"content": "Hi"}), delta({}, "length"), "[DONE]"], "cut", None, 1),
    "chat, error": ([delta({"content": "Hi"}), {"error": {"message": "x", "code": "engine_stalled"}}, "[DONE]"], "failed", "engine_stalled", 1),
    "chat, blocked": ([{"error": {"message": "no", "code": "blocked"}}, "[DONE]"], "blocked", "blocked", 0),
    "chat, empty": ([delta({"role": "assistant"}), delta({}, "stop"), "[DONE]"], "failed", None, 0),
    "responses": (
        [
            {"type": "response.created", "response": {**RESPONSE, "status": "in_progress"}},
            {"type": "response.output_text.delta", "delta": "Hi"},
            {"type": "response.output_text.done", "text": "Hi"},
            {"type": "response.completed", "response": {**RESPONSE, "output": [SAID]}},
        ],
        "answered", None, 1,
    ),
    "responses, failed": ([{"type": "response.failed", "response": {**RESPONSE, "status": "failed", "error": {"code": "server_error"}}}], "failed", "server_error", 0),
    "messages": (
        [
            {"type": "message_start", "message": {**MESSAGE, "content": []}},
            {"type": "content_block_start", "content_block": {"type": "text", "text": ""}},
            {"type": "ping"},
            {"type": "content_block_delta", "delta": {"type": "text_delta", "text": "Hi"}},
            {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 6}},
            {"type": "message_stop"},
        ],
        "answered", None, 1,
    ),
    "messages, tool use": (
        [
            {"type": "content_block_delta", "delta": {"type": "input_json_delta", "partial_json": '{"a'}},
            {"type": "message_delta", "delta": {"stop_reason": "tool_use"}, "usage": {"output_tokens": 6}},
            {"type": "message_stop"},
        ],
        "answered", None, 1,
    ),
    "messages, error": ([{"type": "error", "error": {"type": "overloaded_error", "message": "x"}}], "failed", "overloaded_error", 0),
}  # fmt: skip


@pytest.mark.parametrize("name", EVENTS)
def test_the_outcome_of_a_stream_whatever_it_is_wrapped_in(name: str) -> None:
    events, outcome, code, tokens = EVENTS[name]
    reading = Reading()
    pieces = [reading.event(event if isinstance(event, str) else json.dumps(event), str) for event in events]
    verdict = judge(reading.close())
    assert (verdict.outcome, verdict.code) == (outcome, code)
    assert sum(1 for piece in pieces if piece.chars or piece.content) == tokens
    assert reading.whole.ended or outcome == "failed"
    assert read_output(sse(*events)) == reading.whole  # the official worker passes the bytes on as text


@given(st.sampled_from(sorted(EVENTS)), st.lists(st.integers(0, 2000), max_size=8))
def test_raw_events_read_the_same_wherever_a_worker_cuts_them(name: str, cuts: list[int]) -> None:
    text = sse(*EVENTS[name][0])
    at = [0, 8, *sorted(min(8 + cut, len(text)) for cut in cuts), len(text)]  # 8: it can be told for events
    pieces = [text[low:high] for low, high in itertools.pairwise(at)]
    assert read_output(pieces) == read_output(text)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(
        st.sampled_from(["error", "choices", "usage", "status", "type", "output", "delta", "message", "content", "text",
                         "tool_calls", "blocked", "validation", "limits", "finish_reason", "object", "data", "x"]),
        inner, max_size=5),
    max_leaves=25,
)  # fmt: skip


@given(json_values, st.sampled_from(["COMPLETED", "FAILED", "TIMED_OUT", "CANCELLED", "ODD"]), json_values)
def test_any_output_has_an_outcome_and_any_failure_a_class_and_a_line(output: Any, status: str, error: Any) -> None:
    verdict = judge(read_output(output), status, error)
    assert verdict.error_class is None or verdict.error_class in ERROR_CLASSES
    assert (verdict.outcome in ("answered", "invalid", "cut")) == (verdict.error_class is None)
    assert verdict.error is None or (len(verdict.error) <= 300 and verdict.error.isprintable())
    tokens_of(read_output(output))


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (json.dumps(ERROR), "prompt_too_long"),
        ({"error_type": "<class 'ValueError'>", "error_message": "x"}, "ValueError"),
        ({"message": "x", "type": "NotFoundError", "code": 404}, "NotFoundError"),
        ({"error": {"code": "overloaded"}}, "overloaded"),
        ({"error": "HTTP 200"}, None),
        ({"code": "two words"}, None),
        ("plain", None),
        (None, None),
    ],
)
def test_the_code_of_an_error_is_the_services_own_name_for_it(error: Any, code: str | None) -> None:
    assert error_code(error) == code


def test_a_policys_refusal_is_blocked_by_whatever_way_it_comes() -> None:
    refusal = {"type": "policy", "code": "blocked", "message": "not here"}
    assert judge(Answer(), "FAILED", json.dumps(refusal)) == Verdict(
        "blocked", "blocked", "blocked: not here", "blocked"
    )
    assert failed("submit_4xx", {"error": refusal}).outcome == "blocked"
    assert judge(read_output({"error": refusal})).outcome == "blocked"


# -- through the load tester --

ONCE = ["-c", "1", "--runs", "3", "--warmup-requests", "0"]


def script_of(output: Any, mode: str) -> Script:
    if mode == "openai":
        return Script(openai_json=output)
    chunks = [(0.0, item) for item in (output if isinstance(output, list) else [output])]
    return Script(job=lambda _: JobScript(output=output, chunks=chunks if mode == "stream" else []))


@pytest.mark.parametrize("mode", ["runsync", "run", "stream", "openai"])
async def test_a_worker_that_answers_nothing_is_not_certified(load_test: LoadTest, mode: str) -> None:
    """Every job blocked, no token generated, and objectives that say nothing of it: the run is not valid."""
    output = {"error": {"code": "blocked", "message": "no"}} if mode == "openai" else BLOCKED
    async with scripted(script_of(output, mode)) as server:
        result = await load_test(server.url, "--mode", mode, *ONCE, "--slo", "total.p50<5s")
        assert {(job.outcome, job.code, job.ok) for job in result.measured} == {("blocked", "blocked", False)}
        assert (result.code, result.phase["outcomes"]) == (5, {"blocked": 3})
        assert "nothing was generated" in result.phase["doubts"][0]["text"]
        expected = await load_test(server.url, "--mode", mode, *ONCE, "--expect-blocked", "--slo", "blocked_rate>=100%")
    assert (expected.code, expected.phase["ok"], expected.phase["outcomes"]) == (0, 3, {"blocked": 3})


@pytest.mark.parametrize("mode", ["runsync", "run", "stream", "openai"])
async def test_a_tool_call_is_an_answer_in_every_mode(load_test: LoadTest, mode: str) -> None:
    async with scripted(script_of(WHOLE["chat, tool call"][0], mode)) as server:
        result = await load_test(server.url, "--mode", mode, *ONCE)
    assert {(job.outcome, job.ok, job.output_tokens, job.error) for job in result.measured} == {
        ("answered", True, 6, None)
    }


@pytest.mark.parametrize("mode", ["runsync", "run", "stream"])
@pytest.mark.parametrize(
    "name", ["official, error object", "official, err and traceback", "success false", "status error"]
)
async def test_an_error_in_a_completed_output_is_a_failure_in_every_mode(
    load_test: LoadTest, mode: str, name: str
) -> None:
    async with scripted(script_of(WHOLE[name][0], mode)) as server:
        result = await load_test(server.url, "--mode", mode, *ONCE)
    assert {(job.outcome, job.error_class, job.code) for job in result.measured} == {
        ("failed", "output_error", WHOLE[name][3])
    }


async def test_shares_of_outcomes_and_objectives_on_them(load_test: LoadTest) -> None:
    kinds = [
        NATIVE,
        {**NATIVE, "validation": {"valid": True, "issues": [], "intent": "resume"}},
        {**NATIVE, "validation": {"valid": False, "issues": ["x"], "intent": "resume"}},
        {**NATIVE, "choices": [{"text": "Hi", "finish_reason": "length"}]},
        BLOCKED,
    ]
    script = Script(job=lambda number: JobScript(output=kinds[number % 5]))
    objectives = [
        "blocked_rate<25%",
        "valid_rate>=50%",
        "valid_rate[resume]<50%",
        "truncated_rate<=0.2",
        "valid_rate[x]>0",
        "drift<=10%",
    ]
    words = [word for one in objectives for word in ("--slo", one)]
    async with scripted(script) as server:
        result = await load_test(server.url, "-c", "1", "--runs", "40", "--warmup-requests", "0", *words)
    assert result.phase["outcomes"] == {"answered": 16, "cut": 8, "invalid": 8, "blocked": 8}
    assert result.phase["validated"] == {"": [8, 16], "resume": [8, 16]}
    values = [(verdict["value"], verdict["passed"]) for verdict in result.phase["verdicts"]]
    assert values == [(0.2, True), (0.5, True), (0.5, False), (0.2, True), (None, False), (0.0, True)]
    rows = (result.directory / "requests.csv").read_text().splitlines()
    assert "outcome,code,valid,intent,retry_wait_ms" in rows[0]
    assert sum("invalid,,False,resume," in row for row in rows) == 8
    page = (result.directory / "report.html").read_text()
    assert "answered 16, cut 8, invalid 8, blocked 8; valid: all 8 of 16, resume 8 of 16" in page


async def test_failures_are_grouped_by_the_workers_code(load_test: LoadTest) -> None:
    errors = [ERROR, {**ERROR, "code": "overloaded"}]
    script = Script(job=lambda number: JobScript(status="FAILED", output=None, error=json.dumps(errors[number % 2])))
    async with scripted(script) as server:
        result = await load_test(server.url, "-c", "1", "--runs", "4", "--warmup-requests", "0")
    groups = {(one["error_class"], one["code"], one["n"]) for one in result.phase["failures"]}
    assert groups == {("job_failed", "prompt_too_long", 2), ("job_failed", "overloaded", 2)}


async def test_what_200_is_not_an_answer_is_said(load_test: LoadTest) -> None:
    async with scripted(Script(refuse=lambda _op, _n: (200, '{"hello": "world"}', {}))) as server:
        result = await load_test(server.url, *ONCE)
    assert result.measured[0].error == "HTTP 200, but no job: its keys are hello"


def test_our_own_native_reply_stays_an_answer() -> None:
    assert read_output(OUTPUT) == Answer(9, True, True, False, 7, 50, "stop")


@pytest.mark.parametrize(("later_ms", "drifted"), [(100.0, 0.0), (125.0, 0.25), (75.0, 0.25)])
def test_drift_compares_the_last_quarter_with_the_first(later_ms: float, drifted: float) -> None:
    jobs = [
        Job(
            "p",
            n,
            "measured",
            "run",
            sent_ms=n * 10.0,
            done_ms=n * 10.0,
            exec_ms=100.0 if n < 70 else later_ms,
            ok=True,
        )
        for n in range(100)
    ]
    assert drift(jobs, 0.0, 1000.0) == pytest.approx(drifted)
    assert drift(jobs[:28], 0.0, 1000.0) is None
