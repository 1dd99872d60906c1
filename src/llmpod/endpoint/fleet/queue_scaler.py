"""Scaler of a queue: QUEUE_DELAY and REQUEST_COUNT over the jobs of a store."""

from __future__ import annotations

from collections.abc import Sequence

from llmpod.endpoint.fleet.autoscaler import queue_delay_target, request_count_target, surplus
from llmpod.endpoint.options import Options
from llmpod.endpoint.state.fleet_worker import WorkerState
from llmpod.endpoint.state.store import JobStore
from llmpod.endpoint.state.worker import Worker


class QueueScaler:
    """How many workers a queue needs, by the rule of `scaler_type`."""

    def __init__(self, store: JobStore, options: Options) -> None:
        self.store = store
        self.options = options

    def target(self, live: Sequence[Worker], least: int, most: int) -> int:
        options = self.options
        if options.scaler_type == "REQUEST_COUNT":
            queued = sum(1 for _ in self.store.waits_s())
            return request_count_target(queued, len(self.store.running), options.scaler_value, least, most)
        starting = sum(1 for worker in live if not worker.started)
        return queue_delay_target(
            self.store.waits_s(), len(live), starting, options.scaler_value, options.scale_step,
            least, most, first_at_once=options.first_worker_at_once,
        )  # fmt: skip

    def surplus(self, live: Sequence[Worker], target: int, least: int, most: int) -> list[Worker]:
        now = self.store.clock()
        idle = [worker for worker in live if worker.state is WorkerState.IDLE]
        idle_s = [now - (worker.idle_since_s or now) for worker in idle]
        if self.options.scaler_type == "REQUEST_COUNT":
            # idleTimeout does not apply to this rule: whatever is above the formula goes, as soon as it is idle.
            return [idle[position] for position in surplus(idle_s, len(live), target, target, 0.0)]
        chosen = surplus(idle_s, len(live), least, most, self.options.idle_timeout_s)
        return [idle[position] for position in chosen]
