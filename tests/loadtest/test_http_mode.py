"""--mode http: requests straight to a load-balancing endpoint, which has no queue, no jobs and no times of its own."""

import csv
import json
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from llmpod.endpoint import LoadBalancer, Options
from llmpod.loadtest.cli.target import resolve
from llmpod.loadtest.environ import Environment, Secret
from llmpod.loadtest.errors import UsageError
from llmpod.loadtest.options import RunOptions
from tests.loadtest.conftest import Result, command
from tests.loadtest.scripted import Script, scripted, sse_answer

pytestmark = pytest.mark.process

LoadTest = Callable[..., Awaitable[Result]]
HTTP = ("--mode", "http", "--warmup-requests", "0")
HTTP_WORKER = Path(__file__).parents[1] / "endpoint" / "workers" / "http_worker.py"


async def test_first_token_and_totals_are_those_of_the_server_and_queue_and_execution_are_unknown(
    load_test: LoadTest,
) -> None:
    script = Script(sse=lambda _: sse_answer(["w "] * 21, gap_s=0.03, first_s=0.3))
    async with scripted(script) as server:
        result = await load_test(server.url + "/openai", *HTTP, "-c", "2", "--runs", "4", key="s3cret-key")
        assert {op for op, _ in server.calls} == {"openai"}, "nothing but the requests, /health neither"
        assert server.authorization == {"Bearer s3cret-key"}
    assert result.p("ttft", 50) == pytest.approx(300, abs=40)
    assert result.p("tpot", 50) == pytest.approx(30, abs=5)
    assert result.p("total", 50) == pytest.approx(900, abs=60)
    assert result.measured[0].output_tokens == 21
    assert not result.phase["rows"].keys() & {"delay", "exec", "overhead"}
    assert all((job.delay_ms, job.exec_ms, job.job_id) == (None, None, None) for job in result.measured)
    assert "Queue and execution are not measurable on this route" in result.phase["why"]
    with (result.directory / "requests.csv").open() as lines:
        assert {(row["delay_ms"], row["exec_ms"]) for row in csv.DictReader(lines)} == {("", "")}
    assert "s3cret-key" not in "".join(path.read_text() for path in result.directory.iterdir())


@pytest.mark.parametrize(
    ("status", "body", "error_class"),
    [
        (400, '{"error": "no workers available"}', "no_worker"),
        (400, '{"error": "timed out waiting for worker"}', "no_worker"),
        (400, '{"error": {"message": "max_tokens: must be positive", "type": "BadRequestError"}}', "submit_4xx"),
        (401, '{"status": 401, "title": "Unauthorized", "detail": "invalid api key"}', "submit_401"),
        (404, '{"error": "affinity_worker_gone"}', "submit_404"),
        (413, "<html>too large</html>", "submit_4xx"),
        (429, "", "submit_429"),
        (502, '{"error": "worker abc: connection reset"}', "submit_5xx"),
        (524, '{"error": "no answer within 330 s"}', "submit_5xx"),
    ],
)
async def test_refusals_are_classified(load_test: LoadTest, status: int, body: str, error_class: str) -> None:
    async with scripted(Script(refuse=lambda _op, _number: (status, body, {}))) as server:
        result = await load_test(server.url + "/openai", *HTTP, "-c", "1", "--runs", "1")
    (job,) = result.measured
    assert (job.error_class, job.http_status, job.total_ms is not None) == (error_class, status, True)


async def test_a_cold_start_that_found_no_worker_is_sent_again(load_test: LoadTest) -> None:
    def refuse(_op: str, number: int) -> Any:
        return (400, '{"error": "no workers available"}', {}) if number == 0 else None

    async with scripted(Script(refuse=refuse)) as server:
        result = await load_test(server.url + "/openai", *HTTP, "-c", "1", "--runs", "1", "--retries", "1")
    assert (result.measured[0].ok, result.measured[0].attempts) == (True, 2)


async def test_any_route_any_body_and_any_json_answer(load_test: LoadTest, tmp_path: Path) -> None:
    template = tmp_path / "body.json"
    template.write_text('{"question": "{{prompt}}"}')
    async with scripted(Script(openai_json={"score": 0.5, "model": "mine"})) as server:
        words = (*HTTP, "--path", "/openai/v1/chat/completions", "--payload-template", str(template))
        result = await load_test(server.url, *words, "-c", "1", "--runs", "1")
        (body,) = server.submitted
    assert list(body) == ["question"]
    (job,) = result.measured
    assert (job.ok, job.outcome, job.ttft_ms) == (True, "answered", None)


async def test_a_data_set_s_input_is_the_whole_body(load_test: LoadTest, tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text(json.dumps({"input": {"text": "hello"}}))
    async with scripted(Script(openai_json={"ok": 1})) as server:
        await load_test(server.url + "/openai", *HTTP, "--dataset", str(rows), "-c", "1", "--runs", "1")
        assert server.submitted == [{"text": "hello"}]


def test_the_endpoint_s_id_becomes_its_address() -> None:
    environment = Environment(api_key=Secret("k"), endpoint_id="abc123", plain=True)
    assert resolve(RunOptions(mode="http"), environment) == "https://abc123.api.runpod.ai"


@pytest.mark.parametrize("flag", ["http_path", "openai_path"])
@pytest.mark.parametrize("path", ["@elsewhere.example/", ".elsewhere.example/", "v1/chat", ""])
def test_a_path_cannot_turn_the_address_into_another_host_s(flag: str, path: str) -> None:
    environment = Environment(api_key=Secret("k"), endpoint_id="abc123", plain=True)
    with pytest.raises(UsageError, match="must start with /"):
        resolve(RunOptions(mode="http", **{flag: path}), environment)


def test_what_cannot_be_measured_is_refused_before_anything_is_sent() -> None:
    url = ("--base-url", "http://127.0.0.1:9", "--mode", "http")
    refused = command(*url, "--slo", "delay.p95<1s")
    assert refused.code == 2
    assert "delay" in refused.err
    said = command(*url, "--dry-run", "-c", "1").out
    assert "requests go to POST /v1/chat/completions; RunPod names no rate limit" in said


async def test_the_local_load_balancer_is_measured_and_its_workers_are_told_apart(load_test: LoadTest) -> None:
    options = Options(
        kind="load-balancer", port=0, command=[sys.executable, "-u", str(HTTP_WORKER)], workers_min=2, workers_max=2,
        health_period_s=0.05, scale_period_s=0.05, grace_s=2, journal="", console=False,
    )  # fmt: skip
    async with LoadBalancer(options) as endpoint:
        workers = await endpoint.ready(2)
        result = await load_test(endpoint.url, *HTTP, "--path", "/anything", "-c", "2", "--runs", "8")
    assert all(job.ok for job in result.measured)
    assert {job.worker_id for job in result.measured} == set(workers)
