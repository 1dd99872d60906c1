"""What a run is going to do, decided before it starts: phases on plain data, so that a plan can be printed, priced and
resumed."""

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal

from llmpod.loadtest.errors import UsageError
from llmpod.loadtest.model.arrivals import Arrivals, Segment

Mode = Literal["runsync", "run", "stream", "openai", "http"]
MODES: tuple[Mode, ...] = ("runsync", "run", "stream", "openai", "http")

ONE_REQUEST: frozenset[str] = frozenset({"openai", "http"})
"""Modes in which a job is one HTTP request: its reply tells no queue time, no execution time and no id."""


@dataclass(frozen=True, slots=True)
class Phase:
    """One stretch of load with one set of numbers in the report.

    closed: `concurrency` clients, each sends when its last answer is back; `requests` and/or `duration_s` end it.
    open: requests leave when `arrivals` says, whatever came back so far; `max_in_flight` caps (and counts) that.
    replay: like open, with the due times of a file.
    """

    name: str
    kind: Literal["closed", "open", "replay"]
    shape: str
    concurrency: int = 0
    requests: int | None = None
    duration_s: float | None = None
    ramp_up_s: float = 0.0
    arrivals: Arrivals | None = None
    replay_s: tuple[float, ...] = ()
    max_in_flight: int | None = None
    warmup_requests: int = 0
    warmup_s: float = 0.0
    cooldown_s: float = 0.0
    fill_until_done: bool = True
    workers_may_change: bool = False

    @property
    def requested_rate_per_s(self) -> float | None:
        """The rate that was asked for, averaged over the measured part; None where none was."""
        if self.kind == "open" and self.arrivals is not None and self.arrivals.duration_s > 0:
            return self.arrivals.expected / self.arrivals.duration_s
        if self.kind == "replay" and len(self.replay_s) > 1 and self.replay_s[-1] > 0:
            return len(self.replay_s) / self.replay_s[-1]
        return None

    @property
    def planned_requests(self) -> int | None:
        """How many measured requests it will send, where that is known beforehand."""
        if self.kind == "replay":
            return len(self.replay_s)
        if self.kind == "open" and self.arrivals is not None:
            expected = round(self.arrivals.expected)
            return min(expected, self.requests) if self.requests else expected
        return self.requests


@dataclass(frozen=True, slots=True)
class Sweep:
    """A ladder of phases: of clients, or of rates (`by_rate`). It stops climbing when an SLO breaks; `auto` also where
    more clients bring no more throughput, `by_rate` where the endpoint does not keep up."""

    rungs: tuple[float, ...]
    auto: bool
    by_rate: bool = False


@dataclass(frozen=True, slots=True)
class Plan:
    phases: tuple[Phase, ...]
    mode: Mode
    seed: int
    sweep: Sweep | None = None


def to_dict(plan: Plan) -> dict[str, Any]:
    return dataclasses.asdict(plan)


def from_dict(data: dict[str, Any]) -> Plan:
    """The inverse of `to_dict`. Raises UsageError when the plan was written by a version with another idea of a
    phase."""
    try:
        phases = []
        for raw in data["phases"]:
            fields = dict(raw)
            arrivals = fields.get("arrivals")
            if arrivals is not None:
                segments = tuple(Segment(**segment) for segment in arrivals["segments"])
                fields["arrivals"] = Arrivals(segments, arrivals["burstiness"], arrivals["seed"])
            fields["replay_s"] = tuple(fields.get("replay_s", ()))
            phases.append(Phase(**fields))
        sweep = data.get("sweep")
        if data["mode"] not in MODES:
            raise UsageError(f"the saved plan has the unknown mode '{data['mode']}'")
        return Plan(
            phases=tuple(phases),
            mode=data["mode"],
            seed=int(data["seed"]),
            sweep=Sweep(tuple(sweep["rungs"]), bool(sweep["auto"]), bool(sweep.get("by_rate"))) if sweep else None,
        )
    except (KeyError, TypeError, ValueError) as error:
        raise UsageError(f"the saved plan is not one of this version ({type(error).__name__}: {error})") from None
