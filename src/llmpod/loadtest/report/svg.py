"""Plots as plain data: positions, labels and paths, which figures.html draws as SVG in the page's colours."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

WIDTH, HEIGHT = 860, 280
LEFT, RIGHT, TOP, BOTTOM = 64, 30, 14, 54
BAR = 24
DASHES = 4
"""How many dash patterns report_template.html has (dash0 is solid)."""
MARKS = {"dots": ("h0", "●"), "crosses": ("m-3.5-3.5l7 7m0-7l-7 7", "✕"), "ticks": ("m-3.5 0h7", "–")}
"""Of each kind of marker the path from its centre, and the sign in the legend."""


@dataclass(frozen=True, slots=True)
class Series:
    """Data of one colour. `kind`: steps (a line), or a kind of marker. `css` names the colour class; `points` are
    (x, y) or, for a gap in a line, (x, None)."""

    label: str
    css: str
    kind: str
    points: Sequence[tuple[float, float | None]]

    @property
    def known(self) -> list[tuple[float, float]]:
        return [(x, y) for x, y in self.points if y is not None and math.isfinite(y)]


@dataclass(frozen=True, slots=True)
class Drawn:
    """A series on the plot: CSS classes, path, and its sign in the legend ("" for a line)."""

    label: str
    css: str
    path: str
    sign: str


@dataclass(frozen=True, slots=True)
class Plot:
    """One figure in pixels. Ticks and limits are (position, label), `shaded` are (left, width)."""

    title: str
    x_name: str
    x_ticks: list[tuple[float, str]]
    y_ticks: list[tuple[float, str]]
    shaded: list[tuple[float, float]]
    limits: list[tuple[float, str]]
    drawn: list[Drawn]


def plot(
    series: Sequence[Series],
    *,
    title: str,
    x_text: Callable[[float], str],
    y_text: Callable[[float], str],
    x_ticks: Sequence[float] | None = None,
    shaded: Sequence[tuple[float, float]] = (),
    limits: Sequence[tuple[float, str]] = (),
    x_name: str = "time since the start of the measured window",
    whole: bool = False,
) -> Plot | None:
    """None without data. x is a time in seconds unless `x_ticks` says otherwise; `shaded` are x ranges behind the data,
    `limits` horizontal lines with their names; `whole` keeps the grid lines on whole numbers. Each line has a dash
    pattern of its own, and is drawn over the ones before it, which stay visible in its gaps."""
    points = [point for one in series for point in one.known]
    if not points:
        return None
    x_low, x_high = min(x for x, _ in points), max(x for x, _ in points)
    y_high = max(max(y for _, y in points), *(value for value, _ in limits), 0.0) * 1.06 or 1.0
    if x_high == x_low:
        x_low, x_high = x_low - 0.5, x_high + 0.5

    def at_x(x: float) -> float:
        return round(LEFT + (min(max(x, x_low), x_high) - x_low) / (x_high - x_low) * (WIDTH - LEFT - RIGHT), 1)

    def at_y(y: float) -> float:
        return round(HEIGHT - BOTTOM - y / y_high * (HEIGHT - TOP - BOTTOM), 1)

    ticks = x_ticks if x_ticks is not None else time_ticks(x_low, x_high)
    drawn = []
    for number, one in enumerate(one for one in series if one.known):
        if one.kind in MARKS:
            # One path of tiny strokes instead of one element per marker: thousands of them stay light.
            stroke, sign = MARKS[one.kind]
            path = "".join(f"M{at_x(x)} {at_y(y)}{stroke}" for x, y in one.known)
            drawn.append(Drawn(one.label, f"{one.kind} {one.css}", path, sign))
        else:
            drawn.append(Drawn(one.label, f"line dash{number % DASHES} {one.css}", _steps(one, at_x, at_y), ""))
    edges = [(at_x(start), at_x(end)) for start, end in shaded]
    return Plot(
        title,
        x_name,
        [(at_x(tick), x_text(tick)) for tick in ticks if x_low <= tick <= x_high],
        [(at_y(tick), y_text(tick)) for tick in nice_ticks(0.0, y_high, whole=whole)],
        [(left, round(right - left, 1)) for left, right in edges if right > left],
        [(at_y(value), name) for value, name in limits],
        drawn,
    )


def _steps(one: Series, at_x: Callable[[float], float], at_y: Callable[[float], float]) -> str:
    path, broken = "", True
    for x, y in one.points:
        if y is None or not math.isfinite(y):
            broken = True
            continue
        path += f"M{at_x(x)} {at_y(y)}" if broken else f"H{at_x(x)}V{at_y(y)}"
        broken = False
    return path


@dataclass(frozen=True, slots=True)
class Bar:
    """A horizontal bar in pixels: (CSS class, left, width, hatching as a path) of each part, and where it ends."""

    label: str
    y: int
    parts: list[tuple[str, float, float, str]]
    end: float
    text: str


def stack(rows: Sequence[tuple[str, dict[str, float]]], text: Callable[[float], str]) -> list[Bar]:
    """Bars of parts on one scale: rows are (label, CSS class -> value). Empty without data."""
    top = max((math.fsum(max(0.0, value) for value in parts.values()) for _, parts in rows), default=0.0)
    if top <= 0:
        return []
    bars = []
    for number, (label, values) in enumerate(rows):
        x, y, parts = 80.0, 34 * number + 6, []
        for css, value in values.items():
            width = round(max(0.0, value) / top * (WIDTH - 180), 1)
            parts.append((css, round(x, 1), width, hatching(css, x, y, width)))
            x += width
        bars.append(Bar(label, y, parts, round(x, 1), text(math.fsum(values.values()))))
    return bars


def hatching(css: str, x: float, y: float, width: float) -> str:
    """Lines over a part of a bar, by which it is told without its colour: none in an execution, upright ones in a
    queue, level ones in the overhead, wide upright ones in a wait, and a grid where submits were refused."""
    upright = {"delay": 6, "wait": 14, "bad": 6}.get(css)
    level = {"overhead": 6, "bad": 6}.get(css)
    path = "".join(f"M{x + at:.1f} {y}v{BAR}" for at in range(upright, int(width), upright)) if upright else ""
    return path + ("".join(f"M{x:.1f} {y + at}h{width}" for at in range(level, BAR, level)) if level else "")


def time_ticks(low_s: float, high_s: float, count: int = 7) -> list[float]:
    """Tick positions at full seconds, minutes or quarters of an hour."""
    steps = (0.1, 0.2, 0.5, 1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 14400, 43200, 86400)
    step = next((size for size in steps if (high_s - low_s) / size <= count), 86400.0)
    return [number * step for number in range(math.ceil(low_s / step), math.floor(high_s / step) + 1)]


def nice_ticks(low: float, high: float, count: int = 5, *, whole: bool = False) -> list[float]:
    """Tick positions at round numbers between low and high; `whole`: at whole numbers only."""
    span = high - low
    if span <= 0 or not math.isfinite(span):
        return [low]
    rough = span / count
    size = 10 ** math.floor(math.log10(rough))
    step = next(size * factor for factor in (1, 2, 2.5, 5, 10) if size * factor >= rough)
    step = max(1.0, math.ceil(step)) if whole else step
    first = math.ceil(low / step)
    return [round(number * step, 12) for number in range(first, math.floor(high / step) + 1)]
