"""Decisions of the load balancer: which worker gets a request, who waits, what a health check means, which headers."""

import asyncio
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st
from multidict import CIMultiDict, CIMultiDictProxy

from llmpod.endpoint.balancer.pool import HttpPool
from llmpod.endpoint.balancer.routing import Affinity, Health, choose, end_to_end, health_of, parse_affinity
from llmpod.endpoint.errors import ApiError
from llmpod.endpoint.options import Options


@dataclass
class Candidate:
    id: str
    in_flight: int
    turn: int
    routable: bool


candidates = st.lists(
    st.builds(Candidate, st.sampled_from("abcdef"), st.integers(0, 5), st.integers(0, 50), st.booleans()),
    max_size=6,
    unique_by=lambda one: one.id,
)
affinities = st.none() | st.builds(Affinity, st.sampled_from("abcdefg"), st.booleans())


@given(candidates, st.integers(0, 5), affinities)
def test_the_worker_chosen_is_free_and_the_asked_or_the_least_busy_one(workers, capacity, affinity):
    chosen = choose(workers, capacity, affinity)
    free = {one.id: one for one in workers if one.routable and (not capacity or one.in_flight < capacity)}
    asked = affinity is not None and affinity.worker_id in free
    if chosen is None:
        assert not free or (affinity.strict and not asked)
    elif asked:
        assert chosen == affinity.worker_id
    else:
        assert affinity is None or not affinity.strict
        least = min(one.in_flight for one in free.values())
        equals = [one.turn for one in free.values() if one.in_flight == least]
        assert (free[chosen].in_flight, free[chosen].turn) == (least, min(equals))


@pytest.mark.parametrize(
    ("header", "meant"),
    [
        ("", None),
        ("  ", None),
        ("abc", Affinity("abc", strict=False)),
        ("strict abc", Affinity("abc", strict=True)),
        ("strict-resume abc", Affinity("abc", strict=True)),
        ("strict", Affinity("strict", strict=False)),
        ("loose abc", None),
        ("strict abc def", None),
    ],
)
def test_the_affinity_header_is_read_as_documented(header, meant):
    assert parse_affinity(header) == meant


@given(st.text())
def test_no_affinity_header_is_an_error(header):
    parse_affinity(header)


@pytest.mark.parametrize(
    ("status", "started", "health"),
    [
        (200, False, Health.HEALTHY),
        (204, False, Health.INITIALIZING),
        (204, True, Health.INITIALIZING),
        (500, False, Health.UNHEALTHY),
        (302, True, Health.UNHEALTHY),
        (None, False, Health.UNREACHABLE),
        (None, True, Health.UNHEALTHY),
    ],
)
def test_a_health_check_means_what_runpod_s_table_says(status, started, health):
    assert health_of(status, started=started) is health


def test_headers_of_the_connection_stay_behind_and_the_others_go_on_as_they_are():
    headers = CIMultiDictProxy(
        CIMultiDict(
            [
                ("Connection", "close, X-Mine"),
                ("x-mine", "1"),
                ("TE", "trailers"),
                ("Cookie", "a"),
                ("Cookie", "b"),
                ("Transfer-Encoding", "chunked"),
                ("Authorization", "secret"),
                ("Content-Length", "3"),
            ]
        )
    )
    passed = end_to_end(headers, "authorization")
    assert list(passed.items()) == [("Cookie", "a"), ("Cookie", "b"), ("Content-Length", "3")]


def make_pool(**changes):
    options = Options(kind="load-balancer", port=0, journal="", console=False, **changes)
    now = [100.0]
    pool = HttpPool(options, lambda: now[0])
    return pool, now


def healthy(pool, worker_id):
    worker = pool.add(worker_id, owned=True)
    pool.see(worker, 200, 1.0)
    return worker


steps = st.lists(
    st.tuples(st.sampled_from(["ask", "ask strict", "end", "leave", "sick", "well", "lose", "add"]), st.integers(0, 7)),
    max_size=40,
)


@given(steps, st.integers(0, 2))
def test_no_request_is_lost_or_waits_while_a_worker_could_take_it(steps, capacity):
    async def play():
        pool, _ = make_pool(worker_capacity=capacity, worker_wait_s=60)
        tasks = []
        for number, (what, which) in enumerate(steps):
            workers = list(pool.workers.values())
            worker = workers[which % len(workers)] if workers else None
            served = [task for task in tasks if task.done() and not task.cancelled() and not task.exception()]
            match what:
                case "ask":
                    tasks.append(asyncio.create_task(pool.acquire(None)))
                case "ask strict" if worker:
                    tasks.append(asyncio.create_task(pool.acquire(Affinity(worker.id, strict=True))))
                case "end" if served:
                    task = served[which % len(served)]
                    tasks.remove(task)
                    pool.release(task.result(), answered=True)
                case "leave" if tasks:
                    tasks[which % len(tasks)].cancel()
                case "sick" | "well" if worker:
                    pool.see(worker, 200 if what == "well" else 503, 1.0)
                case "lose" if worker:
                    pool.lose(worker, "test")
                case "add":
                    healthy(pool, f"w{number}")
            await asyncio.sleep(0)
            await asyncio.sleep(0)
        await asyncio.sleep(0)
        tasks = [task for task in tasks if not task.cancelled()]
        held = [task.result() for task in tasks if task.done() and not task.exception()]
        assert pool.in_flight == len(held)
        assert all(worker.in_flight == held.count(worker) for worker in pool.workers.values())
        free = [one for one in pool.workers.values() if one.routable and (not capacity or one.in_flight < capacity)]
        waiting = [waiter.affinity for waiter in pool.waiting]
        assert not free or None not in waiting
        assert not {one.id for one in free} & {asked.worker_id for asked in waiting if asked}
        assert len(waiting) == sum(not task.done() for task in tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert not pool.waiting

    asyncio.run(play())


async def test_who_waits_is_served_in_order_and_told_when_it_was_in_vain():
    pool, _ = make_pool(worker_capacity=1, worker_wait_s=0.05, waiting_max=2)
    first, second = asyncio.create_task(pool.acquire(None)), asyncio.create_task(pool.acquire(None))
    await asyncio.sleep(0)
    with pytest.raises(ApiError) as refused:
        await pool.acquire(None)
    assert refused.value.status == 429
    worker = healthy(pool, "w")
    assert await first is worker
    with pytest.raises(ApiError, match="no workers available") as late:
        await second
    assert late.value.status == 400
    with pytest.raises(ApiError, match="affinity_worker_gone") as gone:
        await pool.acquire(Affinity("elsewhere", strict=True))
    assert gone.value.status == 404
    assert await asyncio.gather(pool.acquire(Affinity("w", strict=True)), release_soon(pool, worker))


async def release_soon(pool, worker):
    await asyncio.sleep(0)
    pool.release(worker, answered=True)
    return True


def test_a_worker_is_routed_to_while_it_is_healthy_and_counts_while_it_lives():
    pool, now = make_pool(health_failures=2)
    worker = pool.add("w", owned=True)
    assert (worker.state, worker.routable, worker.counted) == ("initializing", False, True)
    pool.see(worker, None, 1.0)
    pool.see(worker, 204, 1.0)
    now[0] += 3
    assert not worker.routable
    pool.see(worker, 200, 1.0)
    assert (worker.state, worker.routable, worker.cold_start_ms) == ("idle", True, 3000)
    pool.see(worker, 503, 1.0)
    assert worker.routable, "one failure of two"
    pool.see(worker, None, 1.0)
    assert (worker.state, worker.routable, worker.counted) == ("unhealthy", False, True)
    assert worker.unhealthy == "health check: no answer"
    pool.see(worker, 200, 1.0)
    assert worker.state == "idle"


@given(st.lists(st.integers(0, 9), max_size=6), st.integers(0, 9), st.integers(0, 3), st.integers(3, 6))
def test_only_workers_that_were_idle_long_enough_leave_and_never_too_many(loads, idle_s, least, most):
    pool, now = make_pool(scaler_value=2, idle_timeout_s=5, workers_min=least, workers_max=most)
    workers = [healthy(pool, f"w{number}") for number in range(len(loads))]
    for worker, load in zip(workers, loads, strict=True):
        worker.in_flight = load
    now[0] += idle_s
    target = pool.target(workers, least, most)
    assert least <= target <= most
    assert target == min(max(-(-sum(loads) // 2), least), most)
    leaving = pool.surplus(workers, target, least, most)
    assert all(worker.in_flight == 0 for worker in leaving)
    over = max(0, len(workers) - most)
    assert len(leaving) <= max(over, len(workers) - target)
    assert idle_s >= 5 or len(leaving) <= over
