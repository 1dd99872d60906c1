"""RunPod's public API, in front of a worker that runs the unmodified SDK."""

import asyncio
import re
import time

import pytest

pytestmark = pytest.mark.process

ASYNC_ID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}-[a-z0-9]+")


async def test_run_answers_at_once_and_status_shows_the_result(echo):
    status, body = await echo.post("/run", {"input": {"echo": "hello"}})
    assert status == 200
    assert set(body) == {"id", "status"}
    assert body["status"] == "IN_QUEUE"
    assert ASYNC_ID.fullmatch(body["id"])
    ended = await echo.end(body["id"])
    assert ended["status"] == "COMPLETED"
    assert ended["output"]["echo"] == "hello"
    assert ended["output"]["id"] == body["id"]
    assert {"delayTime", "executionTime", "workerId"} < set(ended)
    assert isinstance(ended["delayTime"], int)
    assert isinstance(ended["executionTime"], int)
    assert "error" not in ended


async def test_runsync_answers_with_the_result_and_a_sync_id(echo):
    body = await echo.runsync({"echo": [1, "ü", None]})
    assert body["status"] == "COMPLETED"
    assert body["output"]["echo"] == [1, "ü", None]
    assert body["id"].startswith("sync-")
    assert ASYNC_ID.fullmatch(body["id"].removeprefix("sync-"))


async def test_runsync_answers_without_result_when_wait_is_over(echo):
    started = time.monotonic()
    status, body = await echo.post("/runsync?wait=1000", {"input": {"sleep_ms": 3000}})
    assert status == 200
    assert 0.9 < time.monotonic() - started < 2.5
    assert body["status"] == "IN_PROGRESS"
    assert "output" not in body
    assert (await echo.end(body["id"]))["status"] == "COMPLETED"


@pytest.mark.parametrize("method", ["GET", "POST"])
@pytest.mark.parametrize("operation", ["status", "status-sync", "stream"])
async def test_reading_a_job_works_with_get_and_post(echo, method, operation):
    job_id = (await echo.runsync({}))["id"]
    status, body = await echo.call(method, f"/{operation}/{job_id}?wait=90000")
    assert status == 200
    assert body["status"] == "COMPLETED"
    if operation == "stream":
        assert body["stream"] == []


async def test_an_exception_in_the_handler_is_a_failed_job_with_the_sdk_s_error_text(echo):
    body = await echo.runsync({"fail": "on purpose"})
    assert body["status"] == "FAILED"
    assert isinstance(body["error"], str)
    assert "on purpose" in body["error"]
    assert "output" not in body


async def test_an_error_value_fails_the_job_and_is_always_text(echo):
    assert (await echo.runsync({"error": "no"}))["error"] == "no"
    body = await echo.runsync({"error": {"code": 7}})
    assert body["status"] == "FAILED"
    assert body["error"] == '{"code":7}'


async def test_nan_output_completes_the_job_without_output(echo):
    body = await echo.runsync({"nan": True})
    assert body["status"] == "COMPLETED"
    assert "output" not in body


async def test_output_above_the_limit_completes_the_job_without_output(echo):
    job_id = await echo.run({"size": 11 * 2**20})
    body = await echo.end(job_id)
    assert body["status"] == "COMPLETED"
    assert "output" not in body
    within = await echo.runsync({"size": 11 * 2**20})
    assert len(within["output"]["text"]) == 11 * 2**20


async def test_progress_updates_show_in_status_while_the_job_runs(echo):
    job_id = await echo.run({"progress": "half", "sleep_ms": 1500})
    async with asyncio.timeout(5):
        while (await echo.get(f"/status/{job_id}"))[1].get("output") != "half":
            await asyncio.sleep(0.05)
    assert (await echo.get(f"/status/{job_id}"))[1]["status"] == "IN_PROGRESS"
    assert (await echo.end(job_id))["output"]["echo"] is None


async def test_cancel_stops_a_running_job_in_the_worker(echo, tmp_path):
    job_id = await echo.run({"sleep_ms": 60_000})
    await echo.until(job_id, "IN_PROGRESS")
    await asyncio.sleep(0.3)
    status, body = await echo.post(f"/cancel/{job_id}")
    assert status == 200
    assert body["id"] == job_id
    assert body["status"] == "CANCELLED"
    worker = echo.endpoint.worker(echo.endpoint.job(job_id).worker_id)
    async with asyncio.timeout(5):
        while not any("Stopping job" in line and job_id in line for line in worker.logs):
            await asyncio.sleep(0.05)
    assert (await echo.get(f"/status/{job_id}"))[1]["status"] == "CANCELLED"


async def test_a_late_result_of_a_cancelled_job_is_ignored(echo):
    job_id = await echo.run({"sleep_ms": 60_000, "ignore_cancel": True, "echo": "late"})
    await echo.until(job_id, "IN_PROGRESS")
    await asyncio.sleep(0.3)
    await echo.post(f"/cancel/{job_id}")
    worker = echo.endpoint.worker(echo.endpoint.job(job_id).worker_id)
    async with asyncio.timeout(5):
        while not any("Finished." in line and job_id in line for line in worker.logs):
            await asyncio.sleep(0.05)
    body = (await echo.get(f"/status/{job_id}"))[1]
    assert body["status"] == "CANCELLED"
    assert "output" not in body


async def test_a_stop_that_the_sdk_ignored_is_repeated_until_the_job_is_gone(echo):
    """The SDK drops a stop for a job that still waits in its own queue; the job would run to its end."""
    block = await echo.run({"block_ms": 1200})
    await echo.until(block, "IN_PROGRESS")
    await asyncio.sleep(0.3)
    job_id = await echo.run({"sleep_ms": 60_000})
    await echo.until(job_id, "IN_PROGRESS")
    await echo.post(f"/cancel/{job_id}")
    worker = echo.endpoint.worker(echo.endpoint.job(job_id).worker_id)
    async with asyncio.timeout(8):
        while job_id in worker.stopping or job_id in worker.stop_ids:
            await asyncio.sleep(0.05)


async def test_a_result_whose_connection_broke_is_missed_and_the_job_runs_again(echo, tmp_path):
    """The SDK posts a result once; the worker lives on and knows nothing of the job any more."""
    note = tmp_path / "ran"
    echo.endpoint.set_faults(faults=[{"operation": "job-done", "outcome": "drop", "probability": 1}])
    job_id = await echo.run({"echo": "kept", "note": str(note)})
    async with asyncio.timeout(5):
        while not note.exists():
            await asyncio.sleep(0.05)
    await asyncio.sleep(0.3)
    echo.endpoint.set_faults(faults=[])
    body = await echo.end(job_id)
    assert body["output"]["echo"] == "kept"
    assert body["retries"] == 1
    assert note.read_text().split() == [job_id, job_id]


async def test_execution_timeout_ends_the_job_and_stops_it_in_the_worker(echo):
    body = await echo.runsync({"sleep_ms": 60_000}, policy={"executionTimeout": 500})
    assert body["status"] == "TIMED_OUT"
    assert "executionTimeout" in body["error"]
    assert 450 < body["executionTime"] < 5000


async def test_retry_runs_a_failed_job_again_under_the_same_id(echo):
    failed = await echo.runsync({"fail": "again"})
    status, body = await echo.post(f"/retry/{failed['id']}")
    assert (status, body) == (200, {"id": failed["id"], "status": "IN_QUEUE"})
    again = await echo.end(failed["id"])
    assert again["status"] == "FAILED"
    assert again["retries"] == 1
    done = await echo.runsync({})
    status, body = await echo.post(f"/retry/{done['id']}")
    assert status == 400
    assert "COMPLETED" in body["error"]


async def test_request_fields_reach_the_worker(echo):
    fields = {"webhook": "http://127.0.0.1:9/hook", "s3Config": {"accessId": "a"}, "policy": {"ttl": 60_000}}
    body = await echo.runsync({}, **fields)
    assert body["output"]["job"] == {"id": body["id"], **fields}


async def test_health_counts_jobs_and_workers(echo):
    before = (await echo.get("/health"))[1]
    assert set(before["jobs"]) == {"completed", "failed", "inProgress", "inQueue", "retried"}
    assert {"idle", "initializing", "ready", "running", "throttled"} <= set(before["workers"])
    running = await echo.run({"sleep_ms": 700})
    await echo.until(running, "IN_PROGRESS")
    during = (await echo.get("/health"))[1]
    assert during["jobs"]["inProgress"] == 1
    assert during["workers"]["running"] == 1
    await echo.end(running)
    after = (await echo.get("/health"))[1]
    assert after["jobs"]["completed"] == before["jobs"]["completed"] + 1
    assert after["workers"]["idle"] == 1


async def test_requests_lists_the_latest_jobs(echo):
    job_id = (await echo.runsync({}))["id"]
    status, body = await echo.get("/requests")
    assert status == 200
    assert body["requests"][0]["id"] == job_id


async def test_stream_gives_each_chunk_once_and_the_final_state_with_the_last(streaming):
    job_id = await streaming.run({"chunks": 5, "pause_ms": 120})
    seen = []
    polls = 0
    while True:
        status, body = await streaming.get(f"/stream/{job_id}")
        assert status == 200
        polls += 1
        seen += [chunk["output"]["n"] for chunk in body["stream"]]
        if body["status"] == "COMPLETED":
            break
        assert body["status"] == "IN_PROGRESS"
    assert seen == [0, 1, 2, 3, 4]
    assert polls > 2
    assert (await streaming.get(f"/stream/{job_id}"))[1] == {"status": "COMPLETED", "stream": []}
    assert [item["n"] for item in (await streaming.end(job_id))["output"]] == [0, 1, 2, 3, 4]


async def test_an_exception_in_a_generator_keeps_the_chunks_before_it(streaming):
    job_id = await streaming.run({"chunks": 3, "fail_at": 2})
    ended = await streaming.end(job_id)
    assert ended["status"] == "FAILED"
    assert "told to fail" in ended["error"]
    body = (await streaming.get(f"/stream/{job_id}"))[1]
    assert [chunk["output"]["n"] for chunk in body["stream"]] == [0, 1]


async def test_a_text_chunk_above_one_megabyte_is_split_and_loses_nothing(streaming):
    job_id = await streaming.run({"chunks": 1, "chunk_size": 2_500_000})
    await streaming.end(job_id)
    pieces = [chunk["output"] for chunk in (await streaming.get(f"/stream/{job_id}"))[1]["stream"]]
    assert len(pieces) > 2
    assert all(len(piece) <= 2**20 for piece in pieces)
    assert "".join(pieces) == "x" * 2_500_000
