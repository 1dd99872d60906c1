"""What the endpoint tells: webhooks, metrics, the journal, and the control route."""

import asyncio
import io
import json
import re

import pytest
from aiohttp import web

from llmpod.endpoint import Options
from llmpod.endpoint.observe.job_log import Journal
from tests.endpoint.conftest import serve
from tests.endpoint.test_worker_api import done, take

pytestmark = pytest.mark.process


class Receiver:
    """A client's web server that answers webhooks with the given codes, then 200."""

    def __init__(self, *codes):
        self.codes = list(codes)
        self.got = []

    async def __aenter__(self):
        app = web.Application()
        app.router.add_post("/hook", self.receive)
        self.runner = web.AppRunner(app)
        await self.runner.setup()
        await web.TCPSite(self.runner, "127.0.0.1", 0).start()
        self.url = f"http://127.0.0.1:{self.runner.addresses[0][1]}/hook"
        return self

    async def __aexit__(self, *error):
        await self.runner.cleanup()

    async def receive(self, request):
        self.got.append(await request.json())
        return web.Response(status=self.codes.pop(0) if self.codes else 200)

    async def received(self, count):
        async with asyncio.timeout(5):
            while len(self.got) < count:
                await asyncio.sleep(0.01)
        await asyncio.sleep(0.15)
        return self.got


@pytest.mark.parametrize(
    ("codes", "tries"), [((), 1), ((500,), 2), ((204, 302), 3), ((500, 500, 500, 500), 3)], ids=str
)
async def test_a_webhook_gets_the_status_object_until_it_answers_200_three_times_at_most(codes, tries):
    async with serve(fleet=False, webhook_pause_s=0.02) as client, Receiver(*codes) as receiver:
        job_id = await client.run({}, webhook=receiver.url)
        await take(client)
        await done(client, job_id, {"output": "x"})
        got = await receiver.received(tries)
        status = (await client.get(f"/status/{job_id}"))[1]
        assert got == [status] * tries


async def test_a_webhook_that_cannot_be_reached_disturbs_nobody(bare):
    job_id = await bare.run({}, webhook="http://127.0.0.1:1/hook")
    await take(bare)
    await done(bare, job_id, {"output": "x"})
    assert (await bare.get(f"/status/{job_id}"))[1]["status"] == "COMPLETED"


async def test_metrics_are_prometheus_text_with_the_counts_of_what_happened(bare):
    for outcome in ({"output": 1}, {"error": "x"}):
        job_id = await bare.run({})
        await take(bare)
        await done(bare, job_id, outcome)
    await bare.run({})
    async with bare.session.get(bare.endpoint.base_url.removesuffix("v2") + "metrics") as response:
        assert response.content_type == "text/plain"
        text = await response.text()
    values = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    assert values['llmpod_endpoint_jobs_total{state="COMPLETED"}'] == "1.0"
    assert values['llmpod_endpoint_jobs_total{state="FAILED"}'] == "1.0"
    assert values["llmpod_endpoint_submitted_total"] == "3.0"
    assert values["llmpod_endpoint_jobs_in_queue"] == "1.0"
    assert values["llmpod_endpoint_delay_seconds_count"] == "2.0"
    assert values['llmpod_endpoint_workers{state="idle"}'] == "1.0"


async def test_a_journal_that_cannot_be_written_says_so_once_and_goes_on_when_it_can(tmp_path, capfd):
    async def written(condition):
        async with asyncio.timeout(10):
            while not condition():
                await asyncio.sleep(0.01)

    path = tmp_path / "journal"
    async with serve(fleet=False, journal=str(path)) as client:
        journal = client.endpoint.journal
        good, journal._file = journal._file, io.FileIO("/dev/full", "ab")
        for lost in (1, 2, 3):
            await client.run({"prompt": "a"})
            await written(lambda lost=lost: journal._lost == lost)
        assert capfd.readouterr().err.count("cannot be written: No space left on device") == 1
        journal._file.close()
        journal._file = good
        await client.run({"prompt": "a"})
        await written(lambda: not journal._lost)
    assert "is written again; 3 lines are missing" in capfd.readouterr().err
    [line] = path.read_text().splitlines()
    assert json.loads(line)["to"] == "IN_QUEUE"


def test_a_line_that_was_cut_by_a_full_disk_is_closed_before_the_next(tmp_path, capfd):
    class Disk:
        def __init__(self):
            self.data, self.room = b"", 12

        def write(self, data):
            if not self.room:
                raise OSError(28, "No space left on device")
            taken = data[: self.room]
            self.room -= len(taken)
            self.data += taken
            return len(taken)

    journal = Journal(Options(port=0, journal=""))
    journal._file = disk = Disk()
    for room, number in ((12, 1), (0, 2), (100, 3)):
        disk.room = room
        journal._write([b'{"line": %d}\n' % number])
    assert disk.data == b'{"line": 1}\n{"line": 3}\n'
    disk.room = 5
    journal._write([b'{"line": 4}\n'])
    disk.room = 100
    journal._write([b'{"line": 5}\n'])
    assert disk.data.endswith(b'{"line": 3}\n{"lin\n{"line": 5}\n')


async def test_the_journal_has_one_json_line_per_transition_and_no_content(tmp_path):
    path = tmp_path / "journal"
    async with serve(fleet=False, journal=str(path)) as client:
        job_id = await client.run({"prompt": "private words"})
        await take(client)
        await done(client, job_id, {"output": "private answer"})
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [(line.get("from"), line["to"]) for line in lines] == [
        (None, "IN_QUEUE"),
        ("IN_QUEUE", "IN_PROGRESS"),
        ("IN_PROGRESS", "COMPLETED"),
    ]
    assert all(line["job_id"] == job_id and line["event"] == "job" for line in lines)
    assert all(re.fullmatch(r"\d{4}-\d\d-\d\dT[\d:.]+\+00:00", line["ts"]) for line in lines)
    assert lines[2]["worker_id"] == "w1"
    assert {"delay_ms", "execution_ms"} <= set(lines[2])
    assert "private" not in path.read_text()


async def test_worker_lines_are_shown_with_their_worker_s_name_and_kept(echo):
    from rich.console import Console

    from llmpod.endpoint.observe.console import Console as EndpointConsole

    (worker_id,) = await echo.endpoint.ready()
    worker = echo.endpoint.worker(worker_id)
    assert any("Starting Serverless Worker" in line for line in worker.logs)
    console = EndpointConsole(enabled=True)
    console._console = Console(file=io.StringIO(), width=200)
    console.log(worker, "[bold]not markup[/bold]")
    console.flush()
    assert f"{worker_id} | [bold]not markup[/bold]" in console._console.file.getvalue()


async def test_faults_turn_over_the_control_route_while_it_runs(bare):
    root = bare.endpoint.base_url.removesuffix("v2")
    status, body = await bare.post(
        root + "control/faults",
        {"take_policy": "one", "faults": [{"operation": "job-done", "outcome": 503, "probability": 1}]},
    )
    assert status == 200
    assert body["take_policy"] == "one"
    job_id = await bare.run({})
    await take(bare)
    assert (await done(bare, job_id, {"output": 1}))[0] == 503
    assert bare.endpoint.job(job_id).state == "IN_PROGRESS"
    await bare.post(root + "control/faults", {"faults": [], "post_latency_ms": 300})
    started = asyncio.get_running_loop().time()
    assert (await done(bare, job_id, {"output": 1}))[0] == 200
    assert asyncio.get_running_loop().time() - started >= 0.3
    assert (await bare.get(root + "control/faults"))[1]["take_policy"] == "one", "the other knobs stay"


@pytest.mark.parametrize(
    "body", [{"nothing": 1}, {"take_policy": "all"}, {"post_latency_ms": -1}, {"faults": [{"operation": "x"}]}, []]
)
async def test_a_wrong_knob_is_400_and_changes_nothing(bare, body):
    before = bare.endpoint.broker.faults
    status, answer = await bare.post(bare.endpoint.base_url.removesuffix("v2") + "control/faults", body)
    assert status == 400
    assert set(answer) == {"error"}
    assert bare.endpoint.broker.faults == before


@pytest.mark.parametrize(("outcome", "state"), [("drop", "IN_PROGRESS"), ("drop-after", "COMPLETED")])
async def test_a_dropped_result_is_lost_before_or_after_it_took_effect(bare, outcome, state):
    import aiohttp

    job_id = await bare.run({})
    await take(bare)
    bare.endpoint.control.set_faults({"faults": [{"operation": "job-done", "outcome": outcome, "probability": 1}]})
    with pytest.raises(aiohttp.ClientConnectionError):
        await done(bare, job_id, {"output": 1})
    assert bare.endpoint.job(job_id).state == state


async def test_a_dropped_take_hands_out_nothing(bare):
    import aiohttp

    job_id = await bare.run({})
    bare.endpoint.control.set_faults({"faults": [{"operation": "job-take", "outcome": "drop", "probability": 1}]})
    with pytest.raises(aiohttp.ClientConnectionError):
        await take(bare)
    assert bare.endpoint.job(job_id).state == "IN_QUEUE"


@pytest.mark.parametrize(
    ("method", "path", "code"),
    [
        ("POST", "control/state", 405),
        ("GET", "control/scale", 405),
        ("GET", "control/nothing", 404),
        ("POST", "control/workers/none/kill", 404),
        ("POST", "control/scale", 400),
        ("POST", "metrics", 405),
        ("GET", "favicon.ico", 404),
    ],
)
async def test_the_control_route_answers_mistakes_in_json(bare, method, path, code):
    status, body = await bare.call(method, bare.endpoint.base_url.removesuffix("v2") + path, data=b"{}")
    assert status == code
    assert set(body) == {"error"}


async def test_the_scale_can_be_changed_while_it_runs(echo):
    root = echo.endpoint.base_url.removesuffix("v2")
    assert (await echo.post(root + "control/scale", {"workersMin": 3}))[0] == 400
    assert (await echo.post(root + "control/scale", {"workersMin": 2, "workersMax": 2}))[0] == 200
    ids = await echo.endpoint.ready(2)
    assert len(ids) == 2
    await echo.post(root + "control/scale", {"workersMin": 1, "workersMax": 1})
    async with asyncio.timeout(5):
        while len(echo.endpoint._up()) != 1:
            await asyncio.sleep(0.05)


@pytest.mark.parametrize("operation", ["cancel", "purge-queue"])
async def test_above_the_documented_rate_the_answer_is_429(operation):
    limit = {"cancel": 100, "purge-queue": 2}[operation]
    async with serve(fleet=False, rate_limits=True) as client:
        path = f"/{operation}" + ("/x" if operation == "cancel" else "")
        codes = [(await client.post(path))[0] for _ in range(limit + 1)]
        assert 429 not in codes[:limit]
        assert codes[limit] == 429
        assert (await client.get("/health"))[0] == 200
