"""Worker processes: started and stopped by the scaler, lost, crashing, frozen, and never left behind."""

import asyncio
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from llmpod.endpoint import LocalEndpoint, StartError
from llmpod.endpoint.fleet.process_guard import NICENESS
from tests.endpoint.conftest import WORKERS, make_options, serve

pytestmark = pytest.mark.process

STUBBORN = [sys.executable, "-u", str(WORKERS / "stubborn.py")]


def state_of(pid):
    """The letter /proc gives a process, None when it is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return None


def alive(pid):
    return state_of(pid) not in (None, "Z")


async def eventually(check, wait_s=15.0):
    async with asyncio.timeout(wait_s):
        while not check():
            await asyncio.sleep(0.02)


async def pids_in(path):
    await eventually(lambda: path.exists() and len(path.read_text().split()) == 4)
    return [int(pid) for pid in path.read_text().split()]


async def test_workers_leave_the_processors_to_the_endpoint_and_its_clients():
    async with serve(workers_min=1, workers_max=1) as client:
        (worker_id,) = await client.endpoint.ready()
        pid = client.endpoint.fleet.processes[worker_id].pid
        assert os.getpriority(os.PRIO_PROCESS, pid) == os.getpriority(os.PRIO_PROCESS, 0) + NICENESS
        assert session_niceness(pid) in (NICENESS, None)


def session_niceness(pid):
    """Of the process's session; None where the kernel does not weigh sessions."""
    try:
        return int(Path(f"/proc/{pid}/autogroup").read_text().split()[-1])
    except OSError:
        return None


async def test_the_first_job_starts_a_worker_and_idle_timeout_ends_it():
    async with serve(workers_min=0, workers_max=1, idle_timeout_s=0.5) as client:
        assert not client.endpoint.broker.workers
        body = await client.runsync({"echo": 1})
        assert body["output"]["echo"] == 1
        assert body["delayTime"] > 300, "the cold start counts as delay"
        (worker,) = client.endpoint.broker.workers.values()
        await eventually(lambda: worker.state == "dead")
        assert "exited with code 0" in worker.dead


async def test_a_killed_worker_s_job_runs_again_and_its_ping_process_dies_too(tmp_path):
    note = tmp_path / "ran"
    async with serve(workers_max=1) as client:
        (first,) = await client.endpoint.ready()
        supervisor = client.endpoint.fleet.processes[first]
        await eventually(lambda: supervisor.pid is not None)
        family = [supervisor.pid, *children_of(supervisor.pid)]
        assert len(family) > 1, "the SDK's ping process is a child of the worker"
        job_id = await client.run({"sleep_ms": 700, "echo": "again", "note": str(note)})
        await eventually(lambda: note.exists() and note.read_text())
        assert client.endpoint.kill_worker(first)
        await eventually(lambda: not any(map(alive, family)), 3)
        body = await client.end(job_id)
        assert body["status"] == "COMPLETED"
        assert body["output"]["echo"] == "again"
        assert body["retries"] == 1
        assert body["workerId"] != first
        assert note.read_text().split() == [job_id, job_id]


def children_of(pid):
    listing = subprocess.run(
        ["ps", "-o", "pid=", "--ppid", str(pid)], capture_output=True, text=True, check=False
    ).stdout
    return [int(child) for child in listing.split()]


async def test_a_worker_that_exits_by_itself_loses_its_job_at_once():
    async with serve(max_retries=0) as client:
        started = time.monotonic()
        body = await client.runsync({"exit": 7})
        assert time.monotonic() - started < 3
        assert body["status"] == "FAILED"
        assert "exited with code 7" in body["error"]


async def test_stop_pod_replaces_the_worker_after_its_result(echo):
    (before,) = await echo.endpoint.ready()
    body = await echo.runsync({"refresh_worker": True, "echo": "kept"})
    assert body["status"] == "COMPLETED"
    assert body["output"] == {"echo": "kept"}
    worker = echo.endpoint.worker(before)
    assert worker.draining
    assert (await echo.runsync({"echo": 2}))["workerId"] != before
    await eventually(lambda: worker.state == "dead")


async def test_an_unhealthy_ping_replaces_the_worker(echo):
    (before,) = await echo.endpoint.ready()
    await echo.get(f"/ping/{before}?status=unhealthy&check=disk&reason=full&runpod_version=1.12.0")
    worker = echo.endpoint.worker(before)
    assert worker.unhealthy == "disk: full"
    await eventually(lambda: worker.state == "dead")
    assert (await echo.endpoint.ready())[0] != before


async def test_sigterm_lets_a_running_job_finish(echo):
    (before,) = await echo.endpoint.ready()
    job_id = await echo.run({"sleep_ms": 800, "echo": "kept"})
    await echo.until(job_id, "IN_PROGRESS")
    await asyncio.sleep(0.2)
    assert (await echo.post(f"{root(echo)}/control/workers/{before}/stop"))[0] == 200
    body = await echo.end(job_id)
    assert (body["status"], body["workerId"], body.get("retries")) == ("COMPLETED", before, None)


def root(client):
    return client.endpoint.base_url.removesuffix("/v2")


async def test_a_frozen_worker_is_found_by_its_silence_and_replaced():
    async with serve(dead_after_pings=2) as client:
        (before,) = await client.endpoint.ready()
        await eventually(lambda: client.endpoint.worker(before).last_ping_s is not None)
        job_id = await client.run({"sleep_ms": 500})
        await client.until(job_id, "IN_PROGRESS")
        assert (await client.post(f"{root(client)}/control/workers/{before}/freeze"))[0] == 200
        body = await client.end(job_id)
        assert body["status"] == "COMPLETED"
        assert body["workerId"] != before
        assert body["retries"] == 1
        await eventually(lambda: before not in client.endpoint.fleet.processes)


async def test_thawed_in_time_a_worker_goes_on(echo):
    (before,) = await echo.endpoint.ready()
    await echo.post(f"{root(echo)}/control/workers/{before}/freeze")
    poll = asyncio.create_task(echo.runsync({}))
    await asyncio.sleep(0.5)
    assert not poll.done()
    await echo.post(f"{root(echo)}/control/workers/{before}/thaw")
    assert (await poll)["workerId"] == before


async def test_a_crash_loop_backs_off_and_says_why_in_one_line():
    said = []
    crash = "import sys; sys.exit('ImportError: no module named brain')"
    options = make_options(command=[sys.executable, "-c", crash])
    endpoint = LocalEndpoint(options)
    endpoint.fleet._report = said.append
    async with endpoint:
        await eventually(lambda: endpoint.fleet.crashes >= 3)
        starts = endpoint.fleet.starts
        await asyncio.sleep(0.8)
        assert endpoint.fleet.starts <= starts + 1
    crashes = [line for line in said if "next start" in line]
    assert "exited with code 1" in crashes[2]
    assert "ImportError: no module named brain" in crashes[2]
    assert crashes[1].endswith("next start in 1 s")
    assert crashes[2].endswith("next start in 2 s")


async def test_a_worker_that_never_asks_for_a_job_is_unhealthy_and_killed():
    command = [sys.executable, "-c", "import time; time.sleep(600)"]
    async with serve(command=command, workers_min=0, init_timeout_s=0.5) as client:
        job_id = await client.run({})
        await eventually(lambda: client.endpoint.broker.workers)
        (worker, *_) = client.endpoint.broker.workers.values()
        assert worker.state == "initializing"
        await eventually(lambda: worker.state == "dead")
        assert "no job-take within 0.5 s" in worker.unhealthy
        assert client.endpoint.job(job_id).state == "IN_QUEUE"


async def test_scarce_machines_leave_workers_throttled_until_there_are_more():
    async with serve(workers_min=0, workers_max=2) as client:
        client.endpoint.set_faults(machines=0, cold_start_s=0.3)
        job_id = await client.run({})
        await eventually(lambda: client.endpoint.broker.counts()["throttled"] == 1)
        assert (await client.get("/health"))[1]["workers"]["throttled"] == 1
        await asyncio.sleep(0.3)
        assert not client.endpoint.fleet.processes
        client.endpoint.set_faults(machines=1)
        assert (await client.end(job_id))["status"] == "COMPLETED"


async def test_request_count_starts_as_many_workers_as_the_formula_says():
    command = [sys.executable, "-c", "import time; time.sleep(600)"]
    async with serve(
        command=command, workers_min=0, workers_max=3, scaler_type="REQUEST_COUNT", scaler_value=2
    ) as client:
        for _ in range(3):
            await client.run({})
        await client.run({}, policy={"lowPriority": True})
        await eventually(lambda: client.endpoint.fleet.starts == 2)
        await asyncio.sleep(0.2)
        assert client.endpoint.fleet.starts == 2


async def test_sigkill_after_grace_ends_a_worker_that_ignores_sigterm_and_all_it_started(tmp_path):
    path = tmp_path / "pids"
    async with serve(command=STUBBORN, workers_min=0, grace_s=0.3, worker_variables={"PIDS": str(path)}) as client:
        job_id = await client.run({})
        pids = await pids_in(path)
        await client.until(job_id, "IN_PROGRESS")
        (worker,) = client.endpoint.broker.workers.values()
        client.endpoint.fleet.workers_max = 0
        client.endpoint.fleet.retire(worker, "test")
        assert all(map(alive, pids))
        await eventually(lambda: not any(map(alive, pids)), 5)
        await eventually(lambda: client.endpoint.job(job_id).state == "IN_QUEUE", 2)


async def test_what_a_worker_leaves_behind_when_it_exits_is_killed(tmp_path):
    path = tmp_path / "pids"
    async with serve(
        command=STUBBORN, workers_min=0, worker_variables={"PIDS": str(path), "LEAVE": "1"}, crash_backoff_max_s=60
    ) as client:
        await client.run({})
        await eventually(lambda: client.endpoint.fleet.crashes >= 1)
        pids = await pids_in(path)
        await eventually(lambda: not any(map(alive, pids)), 5)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
async def test_nothing_survives_the_end_of_the_endpoint_s_own_process(tmp_path, number):
    path = tmp_path / "pids"
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "llmpod.endpoint", "--port", "0", "--workers-min", "1", "--workers-max", "1",
        "--grace-s", "0.3", "--command", " ".join(STUBBORN),
        env=os.environ | {"PIDS": str(path)}, stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.DEVNULL,
    )  # fmt: skip
    pids = await pids_in(path)
    keepers = children_of(process.pid)
    assert keepers
    assert all(map(alive, pids))
    process.send_signal(number)
    code = await asyncio.wait_for(process.wait(), 10)
    await eventually(lambda: not any(map(alive, [*pids, *keepers])), 5)
    assert code == (-signal.SIGKILL if number == signal.SIGKILL else 0)


async def test_a_killed_keeper_takes_its_worker_with_it(tmp_path):
    async with serve() as client:
        (before,) = await client.endpoint.ready()
        process = client.endpoint.fleet.processes[before]
        await eventually(lambda: process.pid is not None)
        family = [process.pid, *children_of(process.pid)]
        os.kill(process._process.pid, signal.SIGKILL)
        await eventually(lambda: not any(map(alive, family)), 5)
        assert client.endpoint.worker(before).state == "dead"


async def test_kill_every_kills_again_and_again_and_jobs_still_end():
    async with serve(workers_min=2, workers_max=2, max_retries=50) as client:
        client.endpoint.set_faults(kill_every_s=0.5, seed=1)
        await eventually(lambda: client.endpoint.fleet.starts >= 4)
        ids = [await client.run({"sleep_ms": 100, "echo": n}) for n in range(6)]
        bodies = [await client.end(job_id) for job_id in ids]
        assert [body["output"]["echo"] for body in bodies] == list(range(6))
        assert client.endpoint.fleet.crashes == 0, "a kill on purpose is no crash"


async def test_freeze_every_freezes_a_worker_s_processes():
    async with serve(dead_after_pings=0) as client:
        (worker_id,) = await client.endpoint.ready()
        process = client.endpoint.fleet.processes[worker_id]
        await eventually(lambda: process.pid is not None)
        client.endpoint.set_faults(freeze_every_s=0.1)
        family = [process.pid, *children_of(process.pid)]
        await eventually(lambda: all(state_of(pid) == "T" for pid in family), 3)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"command": ["no-such-program"]}, "there is no program 'no-such-program'"),
        ({"cwd": "/no/such/folder"}, "no such directory"),
        ({"host": "0.0.0.0"}, "is not loopback: set --api-key"),
    ],
)
async def test_an_endpoint_that_cannot_work_says_so_in_one_line(changes, told):
    with pytest.raises(StartError, match=told) as caught:
        await LocalEndpoint(make_options(**changes)).start()
    assert "\n" not in str(caught.value)


async def test_a_port_in_use_is_one_line(bare):
    with pytest.raises(StartError, match=f"cannot listen on 127.0.0.1:{bare.endpoint.port}: .*in use"):
        await LocalEndpoint(make_options(port=bare.endpoint.port, fleet=False)).start()
