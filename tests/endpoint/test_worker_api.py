"""The worker side of the protocol, played by hand: hand-outs, results, stops, pings, and what must change nothing."""

import asyncio
import json

import pytest

from llmpod.endpoint.state.job import JobRequest
from llmpod.endpoint.state.worker import Worker, absent
from tests.endpoint.conftest import serve

pytestmark = pytest.mark.process


async def take(client, worker="w1", **query):
    status, body = await client.get(f"/job-take/{worker}?gpu=x&job_in_progress=0", params=query)
    assert status == 200
    return body


async def done(client, job_id, body, worker="w1"):
    text = body if isinstance(body, bytes) else json.dumps(body, ensure_ascii=False).encode()
    headers = {"Content-Type": "application/x-www-form-urlencoded", "charset": "utf-8"}
    return await client.call("POST", f"/job-done/{worker}/{job_id}?gpu=x&isStream=false", data=text, headers=headers)


async def settled(check, wait_s=5.0):
    async with asyncio.timeout(wait_s):
        while not check():
            await asyncio.sleep(0.01)


async def test_a_job_is_taken_as_an_object_with_id_and_input(bare):
    job_id = await bare.run({"text": "ü"})
    job = await take(bare)
    assert job == {"id": job_id, "input": {"text": "ü"}}
    body = (await bare.get(f"/status/{job_id}"))[1]
    assert body["status"] == "IN_PROGRESS"
    assert body["workerId"] == "w1"


async def test_a_held_poll_gets_a_job_the_moment_it_is_submitted(bare):
    poll = asyncio.create_task(take(bare))
    await settled(lambda: bare.endpoint.broker.polls)
    job_id = await bare.run({})
    assert (await asyncio.wait_for(poll, 1.5))["id"] == job_id


async def test_a_poll_without_a_job_is_held_and_ends_with_204(bare):
    loop = asyncio.get_running_loop()
    started = loop.time()
    status, body = await bare.get("/job-take/w1?gpu=x")
    assert (status, body) == (204, b"")
    assert loop.time() - started >= 1.9


@pytest.mark.parametrize(("policy", "expected"), [("fill", 3), ("one", 1)])
async def test_a_batch_follows_the_take_policy(bare, policy, expected):
    bare.endpoint.set_faults(take_policy=policy)
    ids = [await bare.run({"n": n}) for n in range(5)]
    status, jobs = await bare.get("/job-take-batch/w1?gpu=x&batch_size=3&job_in_progress=0")
    assert status == 200
    assert [job["id"] for job in jobs] == ids[:expected]


async def test_a_poll_whose_client_has_gone_gets_no_job(bare):
    gone = asyncio.create_task(take(bare))
    await settled(lambda: bare.endpoint.broker.polls)
    gone.cancel()
    await settled(lambda: not bare.endpoint.broker.polls)
    job_id = await bare.run({})
    assert bare.endpoint.job(job_id).state == "IN_QUEUE"
    assert (await take(bare))["id"] == job_id


async def test_a_job_chosen_for_a_client_that_just_left_goes_back_to_the_front(bare):
    """The race itself: the poll has its job, and the connection is cut before the answer is written."""
    reader, writer = await asyncio.open_connection("127.0.0.1", bare.endpoint.port)
    writer.write(b"GET /v2/local/job-take/w1?gpu=x HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
    await settled(lambda: bare.endpoint.broker.polls)
    connections = bare.endpoint._runners[0].server.connections
    # No await between the hand-out and the cut: the poll's handler has not run since it was given the job.
    job = bare.endpoint.store.submit(JobRequest(input=b'{"n":1}'), sync=False)
    assert job.state == "IN_PROGRESS"
    for connection in connections:
        connection.transport.abort()
    assert await reader.read() == b""
    writer.close()
    await settled(lambda: job.state == "IN_QUEUE")
    assert job.retries == 0
    await bare.run({"n": 2})
    assert (await take(bare))["id"] == job.id


async def test_a_result_completes_the_job_whatever_the_content_type_says(bare):
    job_id = await bare.run({})
    await take(bare)
    assert (await done(bare, job_id, {"output": "é"}))[0] == 200
    assert (await bare.get(f"/status/{job_id}"))[1]["output"] == "é"


async def test_an_empty_result_completes_without_output_and_null_is_an_output(bare):
    for sent, expected in (({}, {}), ({"output": None}, {"output": None})):
        job_id = await bare.run({})
        await take(bare)
        await done(bare, job_id, sent)
        body = (await bare.get(f"/status/{job_id}"))[1]
        assert body["status"] == "COMPLETED"
        assert {key: body[key] for key in body if key == "output"} == expected


async def test_a_second_result_for_a_job_changes_nothing(bare):
    job_id = await bare.run({})
    await take(bare)
    await done(bare, job_id, {"output": 1})
    assert await done(bare, job_id, {"output": 2}) == (200, {"status": "ignored"})
    assert (await bare.get(f"/status/{job_id}"))[1]["output"] == 1


async def test_a_result_from_a_worker_that_does_not_hold_the_job_is_refused(bare):
    job_id = await bare.run({})
    await take(bare)
    status, body = await done(bare, job_id, {"output": 1}, worker="w2")
    assert status == 400
    assert "does not hold" in body["error"]
    status, _ = await bare.call("POST", f"/job-stream/w2/{job_id}?gpu=x", json={"output": 1})
    assert status == 400
    assert bare.endpoint.job(job_id).state == "IN_PROGRESS"
    assert (await done(bare, "unknown", {"output": 1}))[0] == 404
    assert (await done(bare, job_id, {"output": 3}))[0] == 200


@pytest.mark.parametrize("body", [b"{", b'{"output": NaN}', b"[1]", b'"x"', b"\xff"])
async def test_an_unreadable_result_is_answered_400_and_completes_the_job_without_output(bare, body):
    job_id = await bare.run({})
    await take(bare)
    status, answer = await done(bare, job_id, body)
    assert status == 400
    assert set(answer) == {"error"}
    ended = (await bare.get(f"/status/{job_id}"))[1]
    assert ended["status"] == "COMPLETED"
    assert "output" not in ended


async def test_a_bad_chunk_is_answered_400_and_the_stream_goes_on(bare):
    job_id = await bare.run({})
    await take(bare)
    for body in (b"{", b"[]", b"{}", b'{"output": NaN}'):
        status, _ = await bare.call("POST", f"/job-stream/w1/{job_id}?gpu=x", data=body)
        assert status == 400
    status, _ = await bare.call("POST", f"/job-stream/w1/{job_id}?gpu=x", data=b'{"output":"ok"}')
    assert status == 200
    big = json.dumps({"output": ["x" * 2_000_000]})
    assert (await bare.call("POST", f"/job-stream/w1/{job_id}?gpu=x", data=big))[0] == 400
    assert (await bare.get(f"/stream/{job_id}"))[1] == {"status": "IN_PROGRESS", "stream": [{"output": "ok"}]}


async def test_cancelling_a_running_job_is_signalled_on_job_stop(bare):
    job_id = await bare.run({})
    await take(bare)
    poll = asyncio.create_task(bare.get("/job-stop/w1?gpu=x"))
    await settled(lambda: bare.endpoint.worker("w1").stop_asked.waiting)
    await bare.post(f"/cancel/{job_id}")
    assert await asyncio.wait_for(poll, 1.5) == (200, {"jobsToStop": [job_id]})
    assert (await bare.get("/job-stop/w1?gpu=x"))[0] == 204


async def test_a_stop_is_repeated_while_pings_still_report_the_job(bare):
    job_id = await bare.run({})
    await take(bare)
    await bare.post(f"/cancel/{job_id}")
    assert (await bare.get("/job-stop/w1?gpu=x"))[1]["jobsToStop"] == [job_id]
    await bare.get(f"/ping/w1?gpu=x&job_id={job_id}")
    assert (await bare.get("/job-stop/w1?gpu=x"))[1]["jobsToStop"] == [job_id]
    await bare.get("/ping/w1?gpu=x")
    assert not bare.endpoint.worker("w1").stop_ids


async def test_a_worker_whose_pings_stop_loses_its_jobs_to_the_queue(bare):
    job_id = await bare.run({})
    await take(bare)
    await bare.get(f"/ping/w1?gpu=x&job_id={job_id}")
    await settled(lambda: bare.endpoint.job(job_id).state == "IN_QUEUE", 8)
    assert (await take(bare, "w2"))["id"] == job_id
    await done(bare, job_id, {"output": 2}, worker="w2")
    body = (await bare.get(f"/status/{job_id}"))[1]
    assert body["retries"] == 1
    assert body["workerId"] == "w2"
    assert (await bare.get("/health"))[1]["jobs"]["retried"] == 1


async def test_a_worker_that_never_pinged_is_not_taken_for_dead(bare):
    job_id = await bare.run({})
    await take(bare)
    await asyncio.sleep(3.5)
    assert bare.endpoint.job(job_id).state == "IN_PROGRESS"


async def test_a_job_that_pings_no_longer_name_is_queued_again(bare):
    """Its result was lost on the way: the SDK does not repeat a POST whose connection broke."""
    job_id = await bare.run({})
    await take(bare)
    job = bare.endpoint.job(job_id)
    ping = "/ping/w1?gpu=x&runpod_version=1.12.0"
    for _ in range(3):
        await bare.get(ping)
    assert job.state == "IN_PROGRESS", "the worker may still be reading the answer to its poll"
    await asyncio.sleep(2.1)
    for query in (ping, ping + "&job_id=" + job_id, "/ping/w1?gpu=x", ping):
        await bare.get(query)
        assert job.state == "IN_PROGRESS"
    await bare.get(ping)
    assert job.state == "IN_QUEUE"
    assert (await done(bare, job_id, {"output": "late"}))[0] == 400
    assert job.state == "IN_QUEUE"


async def test_a_job_whose_workers_keep_dying_fails_after_the_last_retry():
    async with serve(fleet=False, max_retries=2) as client:
        job_id = await client.run({})
        for number in range(3):
            assert (await take(client, f"w{number}"))["id"] == job_id
            client.endpoint.lose_worker(f"w{number}")
        body = (await client.get(f"/status/{job_id}"))[1]
        assert body["status"] == "FAILED"
        assert body["retries"] == 2
        assert "gave up after 2 retries" in body["error"]


async def test_a_worker_that_comes_back_from_silence_may_take_jobs_again(bare):
    await bare.run({})
    await take(bare)
    bare.endpoint.lose_worker("w1")
    assert bare.endpoint.worker("w1").state == "dead"
    await take(bare)
    assert bare.endpoint.worker("w1").state == "running"


async def test_a_late_progress_update_changes_nothing_unless_asked_to(bare):
    job_id = await bare.run({})
    await take(bare)
    await done(bare, job_id, {"output": 1})
    await done(bare, job_id, {"status": "IN_PROGRESS", "output": "late"})
    assert (await bare.get(f"/status/{job_id}"))[1]["output"] == 1
    async with serve(fleet=False, late_progress="overwrite") as client:
        job_id = await client.run({})
        await take(client)
        await done(client, job_id, {"output": 1})
        await done(client, job_id, {"status": "IN_PROGRESS", "output": "late"})
        body = (await client.get(f"/status/{job_id}"))[1]
        assert (body["status"], body["output"]) == ("IN_PROGRESS", "late")


async def test_a_purge_among_takes_hands_out_or_cancels_each_job_and_never_both(bare):
    ids = [await bare.run({"n": n}) for n in range(60)]
    takes = [bare.get(f"/job-take-batch/w{n}?gpu=x&batch_size=3") for n in range(10)]
    answers = await asyncio.gather(*takes[:5], bare.post("/purge-queue"), *takes[5:])
    taken = {job["id"] for _, body in answers if isinstance(body, list) for job in body}
    (removed,) = [body["removed"] for _, body in answers if isinstance(body, dict)]
    assert len(taken) + removed == len(ids)
    for job_id in ids:
        assert bare.endpoint.job(job_id).state == ("IN_PROGRESS" if job_id in taken else "CANCELLED")


async def test_of_many_retries_at_once_one_counts_and_the_old_run_cannot_answer(bare):
    job_id = await bare.run({})
    await take(bare)
    await done(bare, job_id, {"error": "no"})
    codes = [status for status, _ in await asyncio.gather(*[bare.post(f"/retry/{job_id}") for _ in range(3)])]
    assert sorted(codes) == [200, 400, 400]
    assert (await done(bare, job_id, {"output": "late"}))[0] == 400
    status = (await bare.get(f"/status/{job_id}"))[1]
    assert (status["status"], status["retries"]) == ("IN_QUEUE", 1)


async def test_a_ping_with_hundreds_of_jobs_in_its_address_is_read(bare):
    ids = ",".join(f"{n:036d}-u1" for n in range(1500))
    await bare.run({})
    await take(bare)
    assert (await bare.get("/ping/w1", params={"gpu": "x", "job_id": ids}))[0] == 200
    assert bare.endpoint.worker("w1").last_ping_s is not None


@pytest.mark.parametrize("path", ["/job-done/stranger/{}?gpu=x", "/job-stream/stranger/{}?gpu=x"])
async def test_a_report_of_an_unknown_worker_makes_no_worker_of_it(bare, path):
    job_id = await bare.run({})
    assert (await bare.post(path.format(job_id), {"output": 1}))[0] == 400
    await bare.get("/ping/stranger?gpu=x&status=unhealthy")
    assert not bare.endpoint.broker.workers


async def test_an_external_worker_that_stops_asking_is_forgotten_in_time():
    worker = Worker("w", owned=False, since_s=0)
    worker.last_poll_s = 100.0
    assert not absent(worker, 105.0, 1.0, 3)
    assert absent(worker, 107.0, 1.0, 3)
    worker.open_polls = 1
    assert not absent(worker, 1000.0, 1.0, 3)
