"""Report tables as text, shared by the terminal, report.html and the summary."""

from dataclasses import dataclass

from llmpod.loadtest.analysis.latency import MEANING, SPREADS, Row, Spread
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


def phases(report: Report) -> Table | None:
    """A line per phase; None where there is one phase only."""
    if len(report.phases) < 2:
        return None
    ttft = any("ttft" in phase.rows for phase in report.phases)
    heads = ["phase", "jobs", "failed", "done", "total p50", "p95", "max", "delay p50", "exec p50"]
    heads += ["ttft p50"] if ttft else []
    rows = []
    for phase in report.phases:
        total = phase.rows.get("total")
        cells = [
            Cell(phase.phase.name, tone="good" if report.answer and report.answer.best == phase.phase.name else ""),
            Cell(str(phase.counted)),
            Cell(str(phase.failed), tone="bad" if phase.failed else "dim"),
            Cell(show_rate(phase.throughput_per_s)),
            _at(total, 50),
            _at(total, 95),
            Cell(show_ms(total.max_ms) if total else ""),
            _at(phase.rows.get("delay"), 50),
            _at(phase.rows.get("exec"), 50),
            *([_at(phase.rows.get("ttft"), 50)] if ttft else []),
            Cell("yes", tone="good") if phase.valid else Cell("no", tone="warn"),
            *([_objectives(phase)] if phase.verdicts else []),
        ]
        rows.append(tuple(cells))
    heads += ["valid"] + (["objectives"] if any(phase.verdicts for phase in report.phases) else [])
    return Table("Phases", tuple(heads), tuple(rows), frozenset({"phase", "objectives"}))


def _objectives(phase: PhaseReport) -> Cell:
    missed = [verdict.slo.text for verdict in phase.verdicts if not verdict.passed]
    if missed:
        return Cell(f"missed {', '.join(missed)}", tone="bad")
    unsure = any(verdict.unsure for verdict in phase.verdicts)
    return Cell("met, not certain", tone="warn") if unsure else Cell("met", tone="good")


def _at(row: Row | None, p: float) -> Cell:
    found = row.at(p) if row else None
    return Cell(show_ms(found.value) if found else "")


def size(found: Quantile | Row) -> str:
    return f"n={found.n}" if found.n_eff > 0.9 * found.n else f"n_eff={found.n_eff:.0f}"


def interval(found: Quantile) -> str:
    """From and to in one unit, or why there is none."""
    if found.low is None or found.high is None:
        return f"n/a ({size(found)}, need {found.needed_n})"
    low, high = show_ms(found.low), show_ms(found.high)
    unit = high.rpartition(" ")[2]
    return f"{low.removesuffix(' ' + unit)}–{high}"


def latencies(phase: PhaseReport, metric: str | None = None) -> Table | None:
    rows = [row for name, row in phase.rows.items() if metric is None or name == metric]
    if not rows:
        return None
    ps = [found.p for found in rows[0].quantiles]
    out = []
    for row in rows:
        cells = [Cell(show_ms(found.value), interval(found)) for p in ps if (found := row.at(p)) is not None]
        few = f"n_eff {row.n_eff:.0f}" if row.n_eff <= 0.9 * row.n else ""
        few += f" -{row.missing} unknown" if row.missing else ""
        ends = (Cell(show_ms(row.max_ms)), Cell(show_ms(row.mean_ms)), Cell(str(row.n), few.strip()))
        out.append((Cell(row.metric, MEANING[row.metric]), *cells, *ends))
        if phase.failed and row.adjusted is not None:
            slow = [Cell(show_ms(row.adjusted[f"p{p:g}"])) for p in ps]
            label = Cell("  with failures", "failed jobs counted as infinitely slow", "dim")
            out.append((label, *slow, Cell(""), Cell(""), Cell(str(row.n + phase.failed))))
    heads = ("latency", *(f"p{p:g}" for p in ps), "max", "mean", "n")
    return Table("Latency, with 95 % intervals", heads, tuple(out), frozenset({"latency"}))


def spreads(phase: PhaseReport) -> Table | None:
    """Gaps between chunks, speed and lengths of the answers."""
    if not phase.spreads:
        return None
    names = list(phase.spreads[0].percentiles)

    def cells(one: Spread) -> tuple[Cell, ...]:
        show = show_ms if one.name == "gap" else _number
        values = [show(one.percentiles[name]) for name in names]
        numbers = (*values, show(one.max), show(one.mean), str(one.n))
        return (Cell(one.name, SPREADS[one.name]), *(Cell(text) for text in numbers))

    heads = ("per answer", *names, "max", "mean", "n")
    return Table("Answers", heads, tuple(cells(one) for one in phase.spreads), frozenset({"per answer"}))


def _number(value: float) -> str:
    return f"{value:.0f}" if value >= 100 or value == int(value) else f"{value:.1f}"


def verdicts(phase: PhaseReport) -> Table | None:
    if not phase.verdicts:
        return None
    rows = tuple(
        (
            Cell("✓ met", tone="good") if verdict.passed else Cell("✗ missed", tone="bad"),
            Cell(verdict.slo.text),
            Cell(verdict.shown, f"not certain: {verdict.unsure}" if verdict.unsure else ""),
        )
        for verdict in phase.verdicts
    )
    return Table("Objectives", ("", "objective", "measured"), rows, frozenset({"", "objective", "measured"}))


def workers(phase: PhaseReport, most: int = MOST_WORKERS) -> Table | None:
    if not phase.workers:
        return None
    rows = []
    for one in phase.workers[:most]:
        note = Cell("SLOW", tone="warn") if one.slow else Cell("")
        if one.slow is None and len(phase.workers) > 1:
            note = Cell("speed unknown: too few jobs", tone="dim")
        at_once = "n/a" if one.exec_p50_ms is None else str(one.at_once)  # read from the executions' times
        cells = (str(one.jobs), str(one.failed), show_ms(one.exec_p50_ms), show_ms(one.exec_p95_ms), at_once)
        rows.append((Cell(one.worker_id), *(Cell(text) for text in cells), note))
    heads = ("worker", "jobs", "failed", "exec p50", "exec p95", "at once", "")
    more = len(phase.workers) - most
    title = "Workers" + (f" (evenness {phase.jain:.2f})" if phase.jain is not None else "")
    return Table(title + (f", and {more} more" if more > 0 else ""), heads, tuple(rows), frozenset({"worker", ""}))


def prompts(phase: PhaseReport) -> Table | None:
    """A line per named kind of prompt of a mix."""
    if not phase.prompts:
        return None
    rows = tuple(
        (
            Cell(one.name),
            *(Cell(text) for text in (str(one.n), str(one.failed), show_ms(one.p50_ms), show_ms(one.p95_ms))),
        )
        for one in phase.prompts
    )
    return Table("By prompt", ("prompt", "jobs", "failed", "total p50", "p95"), rows, frozenset({"prompt"}))


def failures(phase: PhaseReport) -> Table | None:
    if not phase.failures:
        return None
    rows = tuple(
        (
            Cell(one.name, tone="bad"),
            Cell(str(one.n)),
            Cell(one.meaning),
            Cell(one.example + (f" [{one.job_id}]" if one.job_id else "")),
        )
        for one in phase.failures
    )
    heads = ("failures", "n", "meaning", "for example")
    return Table("Failures", heads, rows, frozenset({"failures", "meaning", "for example"}))
