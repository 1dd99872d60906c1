"""Report tables as text, shared by the terminal, report.html and the summary."""

from collections.abc import Iterable
from dataclasses import dataclass

from llmpod.loadtest.analysis.latency import MEANING, SPREADS, Spread
from llmpod.loadtest.analysis.phase import PhaseReport
from llmpod.loadtest.report.report import Report
from llmpod.loadtest.stats import Quantile
from llmpod.loadtest.units import show_ms, show_rate

MOST_WORKERS = 50


@dataclass(frozen=True, slots=True)
class Cell:
    """`small` stands under or behind `text`; `tone` is good, bad, warn, dim or nothing."""

    text: str
    small: str = ""
    tone: str = ""


@dataclass(frozen=True, slots=True)
class Table:
    """Columns named in `left` are aligned to the left, all others to the right."""

    title: str
    heads: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    left: frozenset[str] = frozenset()


def _table(title: str, heads: Iterable[str], rows: Iterable[Iterable[Cell | str]], *left: str) -> Table | None:
    """None without rows. A text alone is a plain cell."""
    cells = tuple(tuple(one if isinstance(one, Cell) else Cell(one) for one in row) for row in rows)
    return Table(title, tuple(heads), cells, frozenset(left)) if cells else None


def phases(report: Report) -> Table | None:
    """A line per phase; None where there is one phase only."""
    if len(report.phases) < 2:
        return None
    ttft = ["ttft"] if any("ttft" in phase.rows for phase in report.phases) else []
    heads = ["phase", "jobs", "failed", "done", "total p50", "p95", "max", "delay p50", "exec p50"]
    heads += [*(f"{name} p50" for name in ttft), "valid"]
    heads += ["objectives"] if any(phase.verdicts for phase in report.phases) else []

    def cells(phase: PhaseReport) -> list[Cell | str]:
        total, best = phase.rows.get("total"), report.answer is not None and report.answer.best == phase.phase.name
        return [
            Cell(phase.phase.name, tone="good" if best else ""),
            str(phase.counted),
            Cell(str(phase.failed), tone="bad" if phase.failed else "dim"),
            show_rate(phase.throughput_per_s),
            _at(phase, "total"),
            _at(phase, "total", 95),
            show_ms(total.max_ms) if total else "",
            *(_at(phase, name) for name in ("delay", "exec", *ttft)),
            Cell("yes", tone="good") if phase.valid else Cell("no", tone="warn"),
            *([_objectives(phase)] if phase.verdicts else []),
        ]

    return _table("Phases", heads, map(cells, report.phases), "phase", "objectives")


def _objectives(phase: PhaseReport) -> Cell:
    missed = [verdict.slo.text for verdict in phase.verdicts if not verdict.passed]
    if missed:
        return Cell(f"missed {', '.join(missed)}", tone="bad")
    unsure = any(verdict.unsure for verdict in phase.verdicts)
    return Cell("met, not certain", tone="warn") if unsure else Cell("met", tone="good")


def _at(phase: PhaseReport, metric: str, p: float = 50) -> str:
    found = phase.value(metric, p)
    return "" if found is None else show_ms(found)


def interval(found: Quantile) -> str:
    """From and to in one unit, or why there is none."""
    if found.low is None or found.high is None:
        return f"n/a ({found.size}, need {found.needed_n})"
    low, high = show_ms(found.low), show_ms(found.high)
    unit = high.rpartition(" ")[2]
    return f"{low.removesuffix(' ' + unit)}–{high}"


def latencies(phase: PhaseReport, metric: str | None = None) -> Table | None:
    rows = [row for name, row in phase.rows.items() if metric is None or name == metric]
    ps = [found.p for found in rows[0].quantiles] if rows else []
    out: list[list[Cell | str]] = []
    for row in rows:
        cells = [Cell(show_ms(found.value), interval(found)) for found in row.quantiles]
        few = f"n_eff {row.n_eff:.0f}" if row.n_eff <= 0.9 * row.n else ""
        few += f" -{row.missing} unknown" if row.missing else ""
        ends = (show_ms(row.max_ms), show_ms(row.mean_ms), Cell(str(row.n), few.strip()))
        out.append([Cell(row.metric, MEANING[row.metric]), *cells, *ends])
        if phase.failed and row.adjusted is not None:
            label = Cell("  with failures", "failed jobs counted as infinitely slow", "dim")
            slow = [show_ms(row.adjusted[f"p{p:g}"]) for p in ps]
            out.append([label, *slow, "", "", str(row.n + phase.failed)])
    heads = ("latency", *(f"p{p:g}" for p in ps), "max", "mean", "n")
    return _table("Latency, with 95 % intervals", heads, out, "latency")


def spreads(phase: PhaseReport) -> Table | None:
    """Gaps between chunks, speed and lengths of the answers."""
    names = list(phase.spreads[0].percentiles) if phase.spreads else []

    def cells(one: Spread) -> tuple[Cell | str, ...]:
        show = show_ms if one.name == "gap" else _number
        values = [one.percentiles[name] for name in names]
        return (Cell(one.name, SPREADS[one.name]), *map(show, (*values, one.max, one.mean)), str(one.n))

    return _table("Answers", ("per answer", *names, "max", "mean", "n"), map(cells, phase.spreads), "per answer")


def _number(value: float) -> str:
    return f"{value:.0f}" if value >= 100 or value == int(value) else f"{value:.1f}"


def verdicts(phase: PhaseReport) -> Table | None:
    heads = ("", "objective", "measured")
    rows = [
        (
            Cell("✓ met", tone="good") if verdict.passed else Cell("✗ missed", tone="bad"),
            verdict.slo.text,
            Cell(verdict.shown, f"not certain: {verdict.unsure}" if verdict.unsure else ""),
        )
        for verdict in phase.verdicts
    ]
    return _table("Objectives", heads, rows, *heads)


def workers(phase: PhaseReport, most: int = MOST_WORKERS) -> Table | None:
    rows = []
    for one in phase.workers[:most]:
        note = Cell("SLOW", tone="warn") if one.slow else Cell("")
        if one.slow is None and len(phase.workers) > 1:
            note = Cell("speed unknown: too few jobs", tone="dim")
        at_once = "n/a" if one.exec_p50_ms is None else str(one.at_once)  # read from the executions' times
        times = show_ms(one.exec_p50_ms), show_ms(one.exec_p95_ms), at_once
        rows.append((one.worker_id, str(one.jobs), str(one.failed), *times, note))
    heads = ("worker", "jobs", "failed", "exec p50", "exec p95", "at once", "")
    more = len(phase.workers) - most
    title = "Workers" + (f" (evenness {phase.jain:.2f})" if phase.jain is not None else "")
    return _table(title + (f", and {more} more" if more > 0 else ""), heads, rows, "worker", "")


def prompts(phase: PhaseReport) -> Table | None:
    """A line per named kind of prompt of a mix."""
    rows = [(one.name, str(one.n), str(one.failed), show_ms(one.p50_ms), show_ms(one.p95_ms)) for one in phase.prompts]
    return _table("By prompt", ("prompt", "jobs", "failed", "total p50", "p95"), rows, "prompt")


def failures(phase: PhaseReport) -> Table | None:
    heads = ("failures", "n", "meaning", "for example")
    rows = [
        (Cell(one.name, tone="bad"), str(one.n), one.meaning, one.example + (f" [{one.job_id}]" if one.job_id else ""))
        for one in phase.failures
    ]
    return _table("Failures", heads, rows, "failures", "meaning", "for example")
