"""Requests through the load balancer as records: those in flight, those that ended, totals."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass
from enum import StrEnum

from llmpod.endpoint.api.page_state import Ended
from llmpod.endpoint.observe.job_log import utc_now


class Ending(StrEnum):
    """How a request ended, as seen from its client."""

    ANSWERED = "answered"
    """The worker's answer was passed on whole, whatever its code."""
    REFUSED = "refused"
    """The load balancer answered itself: no worker, too many requests, too large, no key."""
    WORKER_FAILED = "worker failed"
    """The worker broke the connection or sent no HTTP: 502, or cut where the answer had begun."""
    TIMED_OUT = "timed out"
    CLIENT_LEFT = "client left"


@dataclass(slots=True, eq=False)
class Exchange:
    """One request and its answer. Times are milliseconds since it arrived."""

    number: int
    method: str
    path: str
    """Without the query, which may hold a secret."""
    arrived_s: float
    at: float
    """Seconds since the epoch."""
    worker_id: str | None = None
    status: int | None = None
    wait_ms: float | None = None
    first_byte_ms: float | None = None
    total_ms: float | None = None
    bytes_in: int = 0
    bytes_out: int = 0
    ending: Ending = Ending.REFUSED

    def row(self) -> dict[str, object]:
        """As page and journal show it."""
        row = asdict(self) | {"ending": None if self.total_ms is None else self.ending.value}
        del row["arrived_s"]
        return row


class Traffic:
    """Every request passes `open` and `close`. `listeners` hear of each that ended."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self.clock = clock
        self.open_now: dict[int, Exchange] = {}
        self.ended: Ended[Exchange] = Ended()
        self.totals: Counter[str] = Counter()
        self.listeners: list[Callable[[Exchange], None]] = []
        self._number = 0

    def open(self, method: str, path: str) -> Exchange:
        """A request has arrived."""
        self._number += 1
        exchange = Exchange(self._number, method, path[:200], self.clock(), time.time())
        self.open_now[exchange.number] = exchange
        return exchange

    def since_ms(self, exchange: Exchange) -> float:
        """Milliseconds since the request arrived."""
        return round(1000 * (self.clock() - exchange.arrived_s), 1)

    def close(self, exchange: Exchange) -> None:
        """It has ended, as its `ending` says."""
        exchange.total_ms = self.since_ms(exchange)
        del self.open_now[exchange.number]
        self.ended.add(exchange)
        self.totals[exchange.ending.value] += 1
        for listener in self.listeners:
            listener(exchange)


def journal_line(exchange: Exchange) -> dict[str, object]:
    """The fields of one line of the journal."""
    row = exchange.row()
    del row["at"]
    return {"ts": utc_now(), "event": "request", **row}
