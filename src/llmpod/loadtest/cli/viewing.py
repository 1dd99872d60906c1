"""Report options of a recorded run: those given now, else those the run was started with."""

import dataclasses
from typing import Any

from llmpod.loadtest.analysis import slo
from llmpod.loadtest.analysis.latency import METRICS
from llmpod.loadtest.analysis.phase import View
from llmpod.loadtest.analysis.slo import Slo
from llmpod.loadtest.analysis.timeline import Scaler
from llmpod.loadtest.errors import UsageError
from llmpod.loadtest.model.plan import Mode
from llmpod.loadtest.model.run_files import Recorded
from llmpod.loadtest.options import ViewOptions

# What a mode cannot measure: RunPod's own times are not in an OpenAI reply, and only streams have a first token.
NOT_MEASURED: dict[str, tuple[str, ...]] = {
    "openai": ("delay", "exec", "overhead"),
    "http": ("delay", "exec", "overhead"),
    "runsync": ("ttft", "tpot", "chunk_gap"),
    "run": ("ttft", "tpot", "chunk_gap"),
    "stream": (),
}
OUTPUTS = frozenset({"format", "out", "csv", "junit", "summary"})


def make_view(chosen: ViewOptions, saved: dict[str, Any] | None = None) -> View:
    """`saved` is plan.json; its options hold wherever `chosen` has the default. Raises UsageError."""
    before = saved.get("options") if saved else None
    if isinstance(before, dict):
        untouched = vars(ViewOptions())
        names = untouched.keys() - OUTPUTS - ({"slo", "slo_preset"} if chosen.slo or chosen.slo_preset else set())
        kept = {name: before[name] for name in names if name in before and getattr(chosen, name) == untouched[name]}
        chosen = dataclasses.replace(chosen, **kept)
    slos = [slo.parse(text) for text in chosen.slo]
    for name in chosen.slo_preset:
        slos += slo.preset(name)
    assumed = chosen.scaler_value is None
    return View(
        percentiles=parse_percentiles(chosen.percentiles),
        slos=tuple(slos),
        goodput=parse_goodput(chosen.goodput),
        scaler=Scaler(chosen.scaler_value or 1.0, chosen.workers_min or 0, chosen.workers_max, assumed),
        usd_per_hour=chosen.gpu_price,
        slice_s=chosen.slice,
        allow_worker_change=bool(chosen.allow_worker_change),
    )


def make_saved_view(recorded: Recorded) -> View:
    """As it was asked for when the run was made; an imported run asked for nothing."""
    return make_view(ViewOptions(), recorded.plan)


def parse_percentiles(text: str) -> tuple[float, ...]:
    try:
        values = sorted({float(part) for part in text.split(",") if part.strip()})
    except ValueError:
        values = []
    if not values or not all(0 < value < 100 for value in values):
        raise UsageError(f"--percentiles '{text}': write numbers between 0 and 100, like 50,95,99")
    return tuple(values)


def parse_goodput(texts: list[str]) -> tuple[tuple[str, float], ...]:
    out = []
    for text in texts:
        name, _, limit = text.partition(":")
        if name not in METRICS:
            raise UsageError(f"--goodput '{text}': no metric is called '{name}'. There are {', '.join(METRICS)}")
        try:
            out.append((name, float(limit.removesuffix("ms"))))
        except ValueError:
            raise UsageError(f"--goodput '{text}': write METRIC:MILLISECONDS, like ttft:500") from None
    return tuple(out)


def check_measurable(slos: tuple[Slo, ...], goodput: tuple[tuple[str, float], ...], mode: Mode, closed: bool) -> None:
    """An objective on what this mode cannot measure could only fail: that is a usage error, said before anything is
    sent."""
    missing = set(NOT_MEASURED[mode]) | ({"scheduled", "schedule_delay"} if closed else set())
    for name in [one.name for one in slos] + [metric for metric, _ in goodput]:
        if name in missing:
            why = "a closed loop has no schedule" if name.startswith("schedule") else f"mode {mode} does not measure it"
            raise UsageError(f"no objective on '{name}' is possible here: {why}")
        if name == "goodput" and not goodput:
            raise UsageError("an objective on goodput needs --goodput METRIC:MS")
