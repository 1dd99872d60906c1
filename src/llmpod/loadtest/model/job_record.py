"""Job record: one measured job, and its line in requests.jsonl.

Times are milliseconds on the run's monotonic clock, 0 being the start of the run; `sent_at` is the one wall-clock
stamp. A record is filled in while its job runs and is not changed once it is written.
"""

from array import array
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, fields
from types import UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin

from llmpod.loadtest.intake import MOST, line
from llmpod.loadtest.model.failures import NOT_THE_ENDPOINTS_FAULT, Outcome

# A worker that changes a job's state in every reply would fill the disk.
MOST_STATES = 50

Role = Literal["warmup", "measured", "cooldown"]
Key = TypeVar("Key")


@dataclass(slots=True)
class Job:
    phase: str
    index: int
    role: Role
    mode: str
    scheduled_ms: float | None = None  # when it was due; None in a closed loop, which has no schedule
    sent_ms: float | None = None
    sent_at: str | None = None
    accepted_ms: float | None = None  # the service had given it an id
    first_chunk_ms: float | None = None
    first_chunk_after_ms: float | None = None  # the latest moment it was certainly not there yet (GET /stream)
    last_token_ms: float | None = None
    done_ms: float | None = None  # the final state, or the whole answer, was received
    total_ms: float | None = None  # service latency: sent -> done, corrected where it was polled
    total_lower_ms: float | None = None
    total_upper_ms: float | None = None
    delay_ms: float | None = None
    exec_ms: float | None = None
    job_id: str | None = None
    worker_id: str | None = None
    platform_retries: int | None = None
    states: list[tuple[str, float]] = field(default_factory=list)
    polls: int = 0
    empty_polls: int = 0
    chunks: int = 0
    attempts: int = 1
    attempt_log: list[str] = field(default_factory=list)  # the submits that were refused, in order
    retry_wait_ms: float | None = None  # from the first sending to that of the attempt that was not refused
    http_status: int | None = None
    prompt_tokens: int | None = None
    output_tokens: int | None = None
    tokens_estimated: bool = False
    finish_reason: str | None = None
    prompt: str | None = None  # the name of its kind, in a mix
    gap_p50_ms: float | None = None  # between chunks or SSE events of this one job
    gap_max_ms: float | None = None
    gaps: "array[float] | None" = None  # all of them, ms, in order
    ok: bool = False
    outcome: Outcome | None = None  # None: the load test took the job back
    code: str | None = None  # the worker's own name for what went wrong
    valid: bool | None = None  # the worker's validation; None: it did not validate
    intent: str | None = None
    error_class: str | None = None
    error: str | None = None
    warnings: list[str] = field(default_factory=list)
    workers_at_submit: int | None = None

    @property
    def scheduled_total_ms(self) -> float | None:
        """Latency from the scheduled send time (free of coordinated omission). None in a closed loop."""
        late_ms = self.schedule_delay_ms
        return None if self.total_ms is None or late_ms is None else self.total_ms + late_ms

    @property
    def schedule_delay_ms(self) -> float | None:
        if self.scheduled_ms is None or self.sent_ms is None:
            return None
        return self.sent_ms - self.scheduled_ms

    def share_within(self, start_ms: float, end_ms: float) -> float:
        """How much of the job's time, from sent to done, lies in a window: 0 to 1; 0 too if it never ended."""
        if self.sent_ms is None or self.done_ms is None or self.done_ms <= self.sent_ms:
            return 0.0
        inside_ms = min(self.done_ms, end_ms) - max(self.sent_ms, start_ms)
        return max(0.0, inside_ms) / (self.done_ms - self.sent_ms)

    @property
    def overhead_ms(self) -> float | None:
        """What of the total is neither queue nor execution nor waiting to submit again: network, the platform's
        hand-overs, this client."""
        if self.total_ms is None or self.delay_ms is None or self.exec_ms is None:
            return None
        return self.total_ms - self.delay_ms - self.exec_ms - (self.retry_wait_ms or 0.0)

    @property
    def ttft_ms(self) -> float | None:
        """First token or chunk after sending. None when the mode does not stream: the whole answer is no first
        token."""
        if self.first_chunk_ms is None or self.sent_ms is None:
            return None
        return self.first_chunk_ms - self.sent_ms

    @property
    def tpot_ms(self) -> float | None:
        """Mean time per output token after the first."""
        if self.first_chunk_ms is None or self.last_token_ms is None or (self.output_tokens or 0) < 2:
            return None
        return (self.last_token_ms - self.first_chunk_ms) / ((self.output_tokens or 0) - 1)

    @property
    def counts(self) -> bool:
        """Whether it is one of those the statistics are about."""
        return self.role == "measured" and self.error_class not in NOT_THE_ENDPOINTS_FAULT

    def see(self, state: str, at_ms: float) -> None:
        """Notes a state the first time it is seen, and each time it changes."""
        state = line(state, 40)
        if (not self.states or self.states[-1][0] != state) and len(self.states) < MOST_STATES:
            self.states.append((state, round(at_ms, 3)))

    def warn(self, name: str) -> None:
        if name not in self.warnings:
            self.warnings.append(name)

    def fail(self, error_class: str, detail: str | None) -> None:
        self.ok, self.error_class, self.error = False, error_class, detail
        self.outcome = None if error_class in NOT_THE_ENDPOINTS_FAULT else "failed"


def grouped(jobs: Iterable[Job], key: Callable[[Job], Key | None]) -> dict[Key, list[Job]]:
    """Jobs by a key of theirs, in their order; those without one are left out. A missing group is an empty one."""
    groups: dict[Key, list[Job]] = defaultdict(list)
    for job in jobs:
        if (found := key(job)) is not None:
            groups[found].append(job)
    return groups


_FIELDS = tuple(f.name for f in fields(Job))
_ALWAYS = frozenset({"phase", "index", "role", "mode", "ok", "scheduled_ms", "delay_ms", "exec_ms", "total_ms"})
_FARTHEST = 1e6 * MOST


def _types(hint: Any) -> frozenset[type]:
    """The types of JSON values that a field of this annotation can have."""
    if isinstance(hint, str) or get_origin(hint) is list:  # `gaps` is quoted: an array is a list in JSON
        return frozenset({list, type(None)} if isinstance(hint, str) else {list})
    if get_origin(hint) is Literal:
        return frozenset({str})
    if get_origin(hint) in (Union, UnionType):
        return frozenset().union(*map(_types, get_args(hint)))
    return frozenset({int, float} if hint is float else {hint})


_TYPES = {f.name: _types(f.type) for f in fields(Job)}


def to_dict(job: Job) -> dict[str, Any]:
    """Only what is known: a missing key reads as "not seen"; the few that people look for are always there."""
    out: dict[str, Any] = {}
    for name in _FIELDS:
        value = getattr(job, name)
        if name in _ALWAYS or (value is not None and (value is not False or name == "valid") and value != []):
            out[name] = round(value, 3) if isinstance(value, float) else value
    if job.gaps is not None:
        out["gaps"] = [round(gap, 2) for gap in job.gaps]
    return out


def from_dict(data: dict[str, Any]) -> Job:
    """Raises KeyError, TypeError, ValueError or OverflowError when `data` is no record. Fields of a later version are
    passed over."""
    job = Job(data["phase"], data["index"], data["role"], data["mode"])
    for name, value in data.items():
        types = _TYPES.get(name)
        if types is None:
            continue
        kind = type(value)
        if kind not in types:
            raise TypeError(f"{name} is no {' or '.join(sorted(one.__name__ for one in types))}")
        if kind is str:
            value = value if value.isprintable() else line(value)
        elif (kind is float or kind is int) and not -_FARTHEST < value < _FARTHEST:
            raise ValueError(f"{name} is beyond all measure")
        setattr(job, name, value)
    if job.role not in ("warmup", "measured", "cooldown"):
        raise ValueError(f"unknown role {job.role!r}")
    job.gaps = array("f", job.gaps) if job.gaps is not None else None
    job.states = [(line(state), float(at)) for state, at in job.states]
    job.warnings, job.attempt_log = [line(text) for text in job.warnings], [line(text) for text in job.attempt_log]
    return job
