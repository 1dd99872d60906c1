"""Plan from options: phases and their shapes. Contradictions are found before anything is sent."""

import json
import math
from collections.abc import Callable
from typing import Any, TypeVar, cast

from llmpod.loadtest.errors import UsageError
from llmpod.loadtest.model.arrivals import Arrivals, Segment, stages, steady
from llmpod.loadtest.model.plan import Mode, Phase, Plan, Sweep
from llmpod.loadtest.options import RunOptions
from llmpod.loadtest.run.payload import read_text
from llmpod.loadtest.units import parse_duration_s

OLD_MODES: dict[str, Mode] = {"sync": "runsync", "async": "run"}
DEFAULT_RUNS = 40
N = TypeVar("N", int, float)
DEFAULT_LADDER = (1, 2, 4, 8, 16, 32, 64, 128)


def make_plan(options: RunOptions) -> Plan:
    """Raises UsageError when the options ask for two shapes at once, or for a shape without its numbers."""
    mode = OLD_MODES.get(options.mode) or cast("Mode", options.mode)
    chosen = {
        "--request-rate": options.request_rate,
        "--ramp": options.ramp,
        "--stages": options.stages,
        "--replay": options.replay,
        "--sweep": options.sweep,
        "--sweep-rate": options.sweep_rate,
    }
    given = [flag for flag, value in chosen.items() if value is not None]
    if len(given) > 1:
        raise UsageError(f"{' and '.join(given)} are different shapes; choose one")
    if given and options.concurrency:
        raise UsageError(f"{given[0]} and --concurrency are different shapes (--max-concurrency caps an open loop)")
    if (options.arrival or options.burstiness) and not {"--request-rate", "--sweep-rate", "--ramp", "--stages"} & set(
        given
    ):
        raise UsageError("--arrival and --burstiness need --request-rate, --sweep-rate, --ramp or --stages")
    if options.soak is not None and (options.duration is not None or given not in ([], ["--request-rate"])):
        raise UsageError("--soak is a duration of its own, with --concurrency or --request-rate")
    if not given:
        return Plan(_closed(options), mode, options.seed)
    if options.sweep is not None:
        return _sweep(options, options.sweep.strip(), mode)
    if options.sweep_rate is not None:
        rates = _ladder(options.sweep_rate.strip(), "--sweep-rate", float, lambda rung: float(f"{1.5 * rung:.3g}"))
        phases = tuple(_open(options, rate) for rate in rates)
        return Plan(phases, mode, options.seed, Sweep(tuple(rates), auto=False, by_rate=True))
    return Plan((_open(options),), mode, options.seed)


def _closed(options: RunOptions) -> tuple[Phase, ...]:
    levels = [level for group in options.concurrency or [] for level in group] or ([1] if options.soak else [1, 4, 8])
    if options.max_concurrency is not None:
        raise UsageError("--max-concurrency caps an open loop; in a closed loop --concurrency is the cap")
    soak = options.soak is not None
    duration = options.soak if soak else options.duration
    requests = options.runs or (None if duration is not None else DEFAULT_RUNS)
    phases = []
    for number, level in enumerate(levels):
        name = f"c={level}" if levels.count(level) == 1 else f"c={level} ({levels[:number].count(level) + 1})"
        phases.append(_closed_phase(options, name, "soak" if soak else "closed", level, requests, duration))
    return tuple(phases)


def _closed_phase(
    options: RunOptions, name: str, shape: str, level: int, requests: int | None, duration: float | None
) -> Phase:
    return Phase(
        name=name,
        kind="closed",
        shape=shape,
        concurrency=level,
        requests=requests,
        duration_s=duration,
        ramp_up_s=options.ramp_up,
        warmup_requests=options.warmup_requests if options.warmup_requests is not None else level,
        warmup_s=options.warmup_duration,
        workers_may_change=shape == "soak",
    )


def _sweep(options: RunOptions, text: str, mode: Mode) -> Plan:
    rungs = list(DEFAULT_LADDER)
    if text != "auto":
        rungs = _ladder(text, "--sweep", int, lambda rung: 2 * rung)
    runs = options.runs or (None if options.duration else DEFAULT_RUNS)
    phases = tuple(
        _closed_phase(options, f"c={rung}", "sweep", rung, max(runs, 3 * rung) if runs else None, options.duration)
        for rung in rungs
    )
    return Plan(phases, mode, options.seed, Sweep(tuple(rungs), text == "auto"))


def _ladder(text: str, flag: str, number: Callable[[str], N], above: Callable[[N], N]) -> list[N]:
    """`A..B`: from A each rung is the one `above` the last, up to B; `A,B,C`: the very rungs."""
    try:
        low, dots, high = text.partition("..")
        rungs = [number(part) for part in ([low] if dots else text.split(","))]
        if dots:
            while 0 < (rung := above(rungs[-1])) < number(high) * 0.99:
                rungs.append(rung)
            rungs.append(number(high))
    except ValueError:
        raise UsageError(f"{flag} '{text}': write numbers, like 1..16 or 1,2,4") from None
    if rungs != sorted(set(rungs)) or not 0 < rungs[0] <= rungs[-1] < math.inf:
        raise UsageError(f"{flag} '{text}': the numbers must grow from above 0")
    return rungs


def _open(options: RunOptions, rung: float | None = None) -> Phase:
    cap: dict[str, Any] = {
        "max_in_flight": options.max_concurrency,
        "warmup_requests": options.warmup_requests if options.warmup_requests is not None else 1,
    }
    if options.replay is not None:
        times = tuple(at * options.time_scale for at in read_times(options.replay))
        return Phase(name="replay", kind="replay", shape="replay", replay_s=times, **cap)
    burstiness = None if options.arrival == "constant" else options.burstiness or 1.0
    if options.arrival == "constant" and options.burstiness:
        raise UsageError("--burstiness does not go with --arrival constant")
    if options.arrival == "poisson" and options.burstiness not in (None, 1.0):
        raise UsageError("--burstiness other than 1 is --arrival gamma")
    if options.arrival == "gamma" and options.burstiness is None:
        raise UsageError("--arrival gamma needs --burstiness (0.5 is bursty, 1 is Poisson, 4 is nearly regular)")
    kind = "constant" if burstiness is None else "poisson" if burstiness == 1.0 else "gamma"
    requests = options.runs
    if options.stages is not None:
        name, shape, segments = f"stages ({kind})", "stages", _stages(options.stages)
    elif options.ramp is not None:
        if options.duration is None:
            raise UsageError("--ramp needs --duration")
        line = _ramp(options.ramp, options.duration)
        name, shape, segments = f"{line.start_per_s:g}..{line.end_per_s:g}/s", "ramp", (line,)
    else:
        rate = rung or options.request_rate or 1.0  # one of the two is there
        length = options.duration if options.soak is None else options.soak
        if length is None:
            # Enough time for the requests asked for; where the draw is slow, the schedule is cut by count, not by time.
            requests = options.runs or DEFAULT_RUNS
            length = requests / rate * (1.0 if burstiness is None else 2.0) + 1e-6
        name, shape = f"{rate:g}/s {kind}", "soak" if options.soak is not None else kind if rung is None else "sweep"
        segments = steady(rate, length + options.warmup_duration + options.cooldown)
    return Phase(
        name=name,
        kind="open",
        shape=shape,
        requests=requests,
        arrivals=Arrivals(segments, burstiness, options.seed),
        warmup_s=options.warmup_duration,
        cooldown_s=options.cooldown,
        workers_may_change=shape in ("soak", "stages", "ramp"),
        **cap,
    )


def _stages(text: str) -> tuple[Segment, ...]:
    targets = []
    for part in text.split(","):
        duration, _, rate = part.partition(":")
        try:
            targets.append((parse_duration_s(duration), float(rate)))
        except (ValueError, UsageError):
            raise UsageError(f"--stages '{part}': write TIME:RATE, like 2m:2,10m:8,2m:0") from None
    if any(rate < 0 for _, rate in targets) or not any(rate > 0 for _, rate in targets):
        raise UsageError("--stages: rates are not negative, and one of them is above 0")
    return stages(targets)


def _ramp(text: str, duration_s: float) -> Segment:
    try:
        low, high = map(float, text.split(".."))
    except ValueError:
        low = high = -1.0
    if min(low, high) < 0 or low == high:
        raise UsageError(f"--ramp '{text}': write two different numbers, like 1..16")
    return Segment(duration_s, low, high)


def read_times(path: str) -> list[float]:
    """Due times in seconds from the first, ascending."""
    times = []
    for number, line in enumerate(read_text(path, "--replay").splitlines(), 1):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
            times.append(float(value["timestamp"] if isinstance(value, dict) else value))
        except (ValueError, KeyError, TypeError):
            raise UsageError(
                f"--replay {path} line {number}: neither a number nor an object with 'timestamp'"
            ) from None
    if not times:
        raise UsageError(f"--replay {path} is empty")
    times.sort()
    return [at - times[0] for at in times]
