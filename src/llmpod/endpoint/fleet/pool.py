"""What the fleet asks of an endpoint: a pool of workers to report to, and a scaler that says how many are wanted."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from llmpod.endpoint.faults import Faults
from llmpod.endpoint.state.fleet_worker import W


class WorkerPool(Protocol[W]):
    """The workers by id, dead ones included, and what the fleet tells about them."""

    workers: dict[str, W]
    faults: Faults

    def add(self, worker_id: str, *, owned: bool) -> W: ...

    def drain(self, worker: W) -> None:
        """Gives it nothing more to do."""

    def lose(self, worker: W, reason: str) -> None:
        """It is gone for good."""


class Scaler(Protocol[W]):
    """`live` are the workers that count, `least` and `most` are workersMin and workersMax as they are now."""

    def target(self, live: Sequence[W], least: int, most: int) -> int:
        """How many workers there should be."""

    def surplus(self, live: Sequence[W], target: int, least: int, most: int) -> list[W]:
        """Which of them are not needed."""
