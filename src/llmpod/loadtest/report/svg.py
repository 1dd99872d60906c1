"""Plots as inline SVG, styled by the CSS of the page, so that they follow its light and dark colours."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 860, 280
LEFT, RIGHT, TOP, BOTTOM = 64, 30, 14, 54
DASHES = 4
"""How many dash patterns report_template.html has (dash0 is solid)."""


@dataclass(frozen=True, slots=True)
class Series:
    """Data of one colour. `kind`: dots, line or steps. `css` names the colour class; `points` are (x, y) or, for a gap
    in a line, (x, None)."""

    label: str
    css: str
    kind: str
    points: Sequence[tuple[float, float | None]]


def plot(
    series: Sequence[Series],
    *,
    title: str,
    x_text: Callable[[float], str],
    y_text: Callable[[float], str],
    x_ticks: Sequence[float] | None = None,
    shaded: Sequence[tuple[float, float]] = (),
    marks: Sequence[tuple[float, str]] = (),
    x_name: str = "time since the start of the measured window",
    whole: bool = False,
) -> str:
    """One figure; x is a time in seconds unless `x_ticks` says otherwise. `shaded` are x ranges behind the data,
    `marks` horizontal limits with their names; `whole` keeps the grid lines on whole numbers. Each line has a dash
    pattern of its own, and is drawn over the ones before it, which stay visible in its gaps. "" without data."""
    points = [(x, y) for one in series for x, y in one.points if y is not None and math.isfinite(y)]
    if not points:
        return ""
    x_low, x_high = min(x for x, _ in points), max(x for x, _ in points)
    y_high = max(max(y for _, y in points), *(value for value, _ in marks), 0.0) * 1.06 or 1.0
    if x_high == x_low:
        x_low, x_high = x_low - 0.5, x_high + 0.5

    def at_x(x: float) -> float:
        return LEFT + (x - x_low) / (x_high - x_low) * (WIDTH - LEFT - RIGHT)

    def at_y(y: float) -> float:
        return HEIGHT - BOTTOM - y / y_high * (HEIGHT - TOP - BOTTOM)

    out = [f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}">']
    for start, end in shaded:
        left, right = at_x(max(start, x_low)), at_x(min(end, x_high))
        if right > left:
            out.append(
                f'<rect class="shade" x="{left:.1f}" y="{TOP}" width="{right - left:.1f}" '
                f'height="{HEIGHT - TOP - BOTTOM}"/>'
            )
    for tick in nice_ticks(0.0, y_high, whole=whole):
        y = at_y(tick)
        out.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        out.append(f'<text class="tick" x="{LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{escape(y_text(tick))}</text>')
    for tick in x_ticks if x_ticks is not None else time_ticks(x_low, x_high):
        if x_low <= tick <= x_high:
            label = escape(x_text(tick))
            out.append(
                f'<text class="tick" x="{at_x(tick):.1f}" y="{HEIGHT - BOTTOM + 18}" '
                f'text-anchor="middle">{label}</text>'
            )
    out.append(f'<text class="tick" x="{LEFT}" y="{HEIGHT - 8}">{escape(x_name)}</text>')
    for value, name in marks:
        y = at_y(value)
        out.append(f'<line class="limit" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        out.append(
            f'<text class="limit-name" x="{WIDTH - RIGHT - 4}" y="{y - 4:.1f}" text-anchor="end">{escape(name)}</text>'
        )
    drawn = [one for one in series if any(y is not None and math.isfinite(y) for _, y in one.points)]
    dashes = ["" if one.kind == "dots" else f"line dash{number % DASHES}" for number, one in enumerate(drawn)]
    out += [_marks(one, dash, at_x, at_y) for one, dash in zip(drawn, dashes, strict=True)]
    out.append("</svg>")
    names = legend([(one.label, f"{one.css} {dash}".strip()) for one, dash in zip(drawn, dashes, strict=True)])
    return scrolling("".join(out)) + names


def scrolling(svg: str) -> str:
    """A figure that keeps a legible size on a narrow screen and scrolls there."""
    return f'<div class="scroll">{svg}</div>'


def _marks(one: Series, dash: str, at_x: Callable[[float], float], at_y: Callable[[float], float]) -> str:
    known = [(x, y) for x, y in one.points if y is not None and math.isfinite(y)]
    if one.kind == "dots":
        # One path of tiny strokes instead of one element per dot: thousands of them stay light.
        path = "".join(f"M{at_x(x):.1f} {at_y(y):.1f}h0" for x, y in known)
        return f'<path class="dots {one.css}" d="{path}"/>'
    path, before = "", None
    for x, y in one.points:
        if y is None or not math.isfinite(y):
            before = None
            continue
        px, py = f"{at_x(x):.1f}", f"{at_y(y):.1f}"
        if before is None:
            path += f"M{px} {py}"
        else:
            path += f"H{px}V{py}" if one.kind == "steps" else f"L{px} {py}"
        before = y
    return f'<path class="{dash} {one.css}" d="{path}"/>'


def stack(rows: Sequence[tuple[str, Sequence[tuple[str, float]]]], text: Callable[[float], str]) -> str:
    """Horizontal bars of parts: rows are (label, [(css, value), …])."""
    top = max((math.fsum(max(0.0, value) for _, value in parts) for _, parts in rows), default=0.0)
    if top <= 0:
        return ""
    height = 34 * len(rows) + 8
    out = [f'<svg viewBox="0 0 {WIDTH} {height}" role="img" aria-label="where the time went">']
    for number, (label, parts) in enumerate(rows):
        y, x = 34 * number + 6, 80.0
        out.append(f'<text class="tick" x="72" y="{y + 17}" text-anchor="end">{escape(label)}</text>')
        for css, value in parts:
            width = max(0.0, value) / top * (WIDTH - 180)
            out.append(f'<rect class="{css}" x="{x:.1f}" y="{y}" width="{width:.1f}" height="24"/>')
            x += width
        whole = math.fsum(value for _, value in parts)
        out.append(f'<text class="tick" x="{x + 8:.1f}" y="{y + 17}">{escape(text(whole))}</text>')
    return scrolling("".join(out) + "</svg>")


def legend(names: Sequence[tuple[str, str]]) -> str:
    """A key of (name, CSS classes of the mark)."""
    return (
        '<p class="legend">'
        + "".join(f'<span><i class="{css}"></i>{escape(name)}</span>' for name, css in names)
        + "</p>"
    )


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
