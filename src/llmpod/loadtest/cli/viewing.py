"""Report options of a recorded run: those given now, else those the run was started with."""

import argparse
from typing import Any

from llmpod.loadtest.analysis import slo
from llmpod.loadtest.analysis.analyse import View
from llmpod.loadtest.analysis.latency import METRICS
from llmpod.loadtest.analysis.slo import Slo
from llmpod.loadtest.analysis.timeline import Scaler
from llmpod.loadtest.errors import UsageError
from llmpod.loadtest.model.plan import Mode
from llmpod.loadtest.model.run_files import Recorded

# What a mode cannot measure: RunPod's own times are not in an OpenAI reply, and only streams have a first token.
NOT_MEASURED: dict[str, tuple[str, ...]] = {
    "openai": ("delay", "exec", "overhead"),
    "runsync": ("ttft", "tpot", "chunk_gap"),
    "run": ("ttft", "tpot", "chunk_gap"),
    "stream": (),
}
VIEW_FLAGS = [
    "slo",
    "slo_preset",
    "goodput",
    "percentiles",
    "gpu_price",
    "slice",
    "scaler_value",
    "workers_min",
    "workers_max",
    "allow_worker_change",
    "metric",
]


def make_view(chosen: argparse.Namespace, saved: dict[str, Any] | None = None) -> View:
    """`saved` is plan.json; its options hold wherever `chosen` has the default. Raises UsageError."""
    options: dict[str, Any] = {name: getattr(chosen, name) for name in VIEW_FLAGS}
    before = saved.get("options") if saved else None
    if isinstance(before, dict):
        untouched = {"percentiles": "50,90,95,99"}
        if options["slo"] or options["slo_preset"]:
            before = {name: value for name, value in before.items() if name not in ("slo", "slo_preset")}
        for name, value in options.items():
            if name in before and (not value or untouched.get(name) == value):
                options[name] = before[name]
    percentiles = parse_percentiles(options["percentiles"])
    slos = [slo.parse(text) for text in options["slo"]]
    for name in options["slo_preset"]:
        slos += slo.preset(name)
    assumed = options["scaler_value"] is None
    return View(
        percentiles=percentiles,
        slos=tuple(slos),
        goodput=parse_goodput(options["goodput"]),
        scaler=Scaler(options["scaler_value"] or 1.0, options["workers_min"] or 0, options["workers_max"], assumed),
        usd_per_hour=options["gpu_price"],
        slice_s=options["slice"],
        allow_worker_change=bool(options["allow_worker_change"]),
    )


def make_saved_view(recorded: Recorded) -> View:
    """As it was asked for when the run was made; an imported run asked for nothing."""
    from llmpod.loadtest.cli.options import report_parser

    return make_view(report_parser().parse_args([]), recorded.plan)


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
