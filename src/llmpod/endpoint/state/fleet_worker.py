"""Worker process as the fleet sees it (whether it is up, busy, on its way out, how it ended), and the pool of them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Generic, TypeVar

from llmpod.endpoint.options import Options
from llmpod.endpoint.state.autoscaler import surplus

SIGTERM_CODE = 128 + 15
DEAD_KEPT = 20
"""Dead workers that are remembered, so that their logs can be read and their late calls recognised."""


class WorkerState(StrEnum):
    """RunPod's worker states, as /health counts them, with two that it does not show: stopping and dead."""

    THROTTLED = "throttled"
    INITIALIZING = "initializing"
    IDLE = "idle"
    RUNNING = "running"
    UNHEALTHY = "unhealthy"
    STOPPING = "stopping"
    DEAD = "dead"


LIVE = frozenset({WorkerState.INITIALIZING, WorkerState.IDLE, WorkerState.RUNNING})


@dataclass(slots=True, eq=False)
class FleetWorker:
    """One worker, ours (`owned`: we started its process) or somebody else's. Clock readings are monotonic seconds."""

    id: str
    owned: bool
    since_s: float
    log_lines: int = 2000
    started: bool = False
    """It has shown once that it works: a queue's worker by its first job-take, an HTTP worker by a healthy ping."""
    throttled: bool = False
    draining: bool = False
    unhealthy: str | None = None
    dead: str | None = None
    retired: bool = False
    """The endpoint asked it to leave: the scaler, somebody at the page, or the end of the endpoint itself."""
    exit_code: int | None = None
    """Of its process, if that was ours and has ended; 128 + N if signal N ended it."""
    idle_since_s: float | None = None
    done: int = 0
    """Jobs or requests it has finished."""
    logs: deque[str] = field(default_factory=deque)

    def __post_init__(self) -> None:
        self.logs = deque(maxlen=self.log_lines)

    @property
    def load(self) -> int:
        """Jobs or requests that it holds now."""
        return 0

    @property
    def takes_work(self) -> bool:
        """Whether it may be given jobs or requests, now or once it has started."""
        return self.dead is None and not self.draining and self.unhealthy is None

    @property
    def state(self) -> WorkerState:
        if self.dead is not None:
            return WorkerState.DEAD
        if self.unhealthy is not None:
            return WorkerState.UNHEALTHY
        if self.draining:
            return WorkerState.STOPPING
        if self.throttled:
            return WorkerState.THROTTLED
        if not self.started:
            return WorkerState.INITIALIZING
        return WorkerState.RUNNING if self.load else WorkerState.IDLE

    @property
    def counted(self) -> bool:
        """Whether the scaler counts it as one of its workers."""
        return self.owned and self.state in LIVE | {WorkerState.THROTTLED}

    @property
    def ending(self) -> str | None:
        """How a dead worker ended, in a word: `stopped` as it was asked to or by itself in order, `crashed (137)` with
        the code that a shell would show, `gone` if its process is not ours. None while it lives."""
        if self.dead is None:
            return None
        code = self.exit_code
        if not self.owned:
            return "gone"
        if self.retired:
            return "stopped" if code in (None, 0, SIGTERM_CODE) else f"stopped ({code})"
        return "stopped" if code == 0 else "crashed" if code is None else f"crashed ({code})"


W = TypeVar("W", bound=FleetWorker)


class WorkerPool(ABC, Generic[W]):
    """Workers by id, dead ones included: what fleet, control and page know of an endpoint."""

    def __init__(self, options: Options, clock: Callable[[], float]) -> None:
        self.options = options
        self.clock = clock
        self.faults = options.faults  # those in force: they are replaced while the endpoint runs
        self.workers: dict[str, W] = {}

    @abstractmethod
    def add(self, worker_id: str, *, owned: bool) -> W:
        """A new worker, before its process starts."""

    @abstractmethod
    def drain(self, worker: W) -> None:
        """Gives it nothing more to do."""

    @abstractmethod
    def lose(self, worker: W, reason: str) -> None:
        """It is gone for good."""

    @abstractmethod
    def target(self, live: Sequence[W], least: int, most: int) -> int:
        """How many workers there should be: from workersMin to workersMax as they are now, of which `live` count."""

    @abstractmethod
    def surplus(self, live: Sequence[W], target: int, least: int, most: int) -> list[W]:
        """Which of them are not needed."""

    def _idle(self, live: Sequence[W], least: int, most: int, idle_timeout_s: float) -> list[W]:
        """Those above `least` that were idle so long, and those above `most`."""
        now = self.clock()
        idle = [worker for worker in live if worker.state is WorkerState.IDLE]
        idle_s = [now - (worker.idle_since_s or now) for worker in idle]
        return [idle[position] for position in surplus(idle_s, len(live), least, most, idle_timeout_s)]

    def counts(self) -> dict[str, int]:
        """Workers per state as /health shows them; `ready` is everything that could take work now."""
        found = dict.fromkeys(("idle", "initializing", "ready", "running", "throttled", "unhealthy"), 0)
        for worker in self.workers.values():
            state = worker.state
            if state.value in found:
                found[state.value] += 1
            if state in (WorkerState.IDLE, WorkerState.RUNNING):
                found["ready"] += 1
        return found

    def _keep(self, worker: W) -> W:
        """Adds it, and forgets all but the latest DEAD_KEPT of the dead ones."""
        self.workers[worker.id] = worker
        dead = [one.id for one in self.workers.values() if one.dead is not None]
        for worker_id in dead[:-DEAD_KEPT]:
            del self.workers[worker_id]
        return worker
