"""Routing decisions of the load balancer on plain data: which worker, how healthy, which headers."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from multidict import CIMultiDict, CIMultiDictProxy

WORKER_ID = "X-Runpod-Worker-Id"
"""On every response the worker that answered; on a request the worker that is asked for."""

HOP_BY_HOP = frozenset(
    [
        *("connection", "keep-alive", "proxy-authenticate", "proxy-authorization", "proxy-connection", "te"),
        *("trailer", "transfer-encoding", "upgrade"),
    ]
)
"""Headers of one connection (RFC 9110, 7.6.1), with those that the Connection header names."""


class Health(StrEnum):
    """What a worker's health check said last."""

    UNREACHABLE = "unreachable"
    INITIALIZING = "initializing"
    HEALTHY = "healthy"
    UNHEALTHY = "unhealthy"


def health_of(status: int | None, *, started: bool) -> Health:
    """RunPod's table: 200 healthy, 204 initializing, anything else unhealthy.

    No answer at all (None) is what a container gives that has not opened its port yet; later it is unhealthy.
    """
    if status == 200:
        return Health.HEALTHY
    if status == 204:
        return Health.INITIALIZING
    return Health.UNREACHABLE if status is None and not started else Health.UNHEALTHY


class Candidate(Protocol):
    """A worker as far as routing is concerned. `turn` is the number of the latest request it was given."""

    id: str
    in_flight: int
    turn: int

    @property
    def routable(self) -> bool: ...


@dataclass(frozen=True, slots=True)
class Affinity:
    """The worker that a request asks for; `strict`: no other will do."""

    worker_id: str
    strict: bool


def parse_affinity(header: str) -> Affinity | None:
    """`ID`, `strict ID` or `strict-resume ID`; anything else asks for nothing, since soft affinity never fails.

    A stopped worker cannot be resumed here, so strict-resume is strict.
    """
    match header.split():
        case [("strict" | "strict-resume"), worker_id]:
            return Affinity(worker_id, strict=True)
        case [worker_id]:
            return Affinity(worker_id, strict=False)
        case _:
            return None


def choose(candidates: Iterable[Candidate], capacity: int, affinity: Affinity | None) -> str | None:
    """The worker for a request: the asked one, else the one with the fewest requests in flight; None: it has to wait.

    Among equals the one whose latest request is longest ago. A worker with `capacity` requests gets no more (0: no
    limit).
    """
    free = [one for one in candidates if one.routable and (capacity == 0 or one.in_flight < capacity)]
    if affinity is not None:
        if any(one.id == affinity.worker_id for one in free):
            return affinity.worker_id
        if affinity.strict:
            return None
    return min(free, key=lambda one: (one.in_flight, one.turn, one.id)).id if free else None


def end_to_end(headers: CIMultiDictProxy[str], *dropped: str) -> CIMultiDict[str]:
    """The headers that go to the other side: not those of the connection, and not the `dropped` (lower case)."""
    named = {name.strip().lower() for value in headers.getall("Connection", ()) for name in value.split(",")}
    gone = HOP_BY_HOP | named | set(dropped)
    return CIMultiDict((name, value) for name, value in headers.items() if name.lower() not in gone)
