"""Charts as inline SVG in the colors of the page; dashes and marks tell lines apart without any."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

WIDTH = 360
"""Units of every chart; on a telephone one unit is about one pixel, so text keeps its size."""

_DASHES = ("", "7 3", "2 3", "9 3 2 3", "4 2", "1 4")
_LEFT, _RIGHT, _TOP = 44, 12, 10
_LEGEND = 17


@dataclass(frozen=True)
class Series:
    """One line: a name and its points, in ascending x."""

    name: str
    points: Sequence[tuple[float, float]]


def line_chart(
    series: Sequence[Series],
    *,
    label: str,
    x_label: str,
    y_label: str,
    log_x: bool = False,
    marks: bool = False,
    y_zero: bool = False,
) -> Markup:
    """Draw at most six lines over a common x axis; one alone has no legend.

    `label` is for a person who cannot see the chart; on a logarithmic x ticks are powers of two.
    """
    xs = sorted({x for each in series for x, _ in each.points})
    ys = [y for each in series for _, y in each.points]
    y_ticks = _ticks(0.0 if y_zero else min(ys), max(ys))
    rows = len(series) if len(series) > 1 else 0
    bottom = 190
    place_x = _scale(xs[0], xs[-1], _LEFT, WIDTH - _RIGHT, log_x)
    place_y = _scale(y_ticks[0], y_ticks[-1], bottom, _TOP + 18)
    parts = [_text("axis", 0, _TOP + 2, y_label)]
    for tick in y_ticks:
        y = place_y(tick)
        parts.append(_line("grid", _LEFT, WIDTH - _RIGHT, y, y))
        parts.append(_text("tick", _LEFT - 6, y + 3.5, _number(tick, y_ticks), "end"))
    x_ticks = (
        _powers(xs[0], xs[-1])
        if log_x
        else [tick for tick in _ticks(xs[0], xs[-1], 4) if xs[0] <= tick <= xs[-1]]
    )
    parts += [_x_tick(tick, x_ticks, place_x, bottom) for tick in x_ticks]
    parts.append(_x_label(bottom, x_label))
    for i, each in enumerate(series):
        path = " ".join(f"{place_x(x):.1f},{place_y(y):.1f}" for x, y in each.points)
        parts.append(f'<polyline class="line s{i}" points="{path}"{_dash(i)}/>')
        if marks:
            parts.extend(_mark(i, place_x(x), place_y(y)) for x, y in each.points)
        if rows:
            row = bottom + 46 + _LEGEND * i
            parts.append(_line(f"line s{i}", _LEFT, _LEFT + 34, row - 4, row - 4, _dash(i)))
            if marks:
                parts.append(_mark(i, _LEFT + 17, row - 4))
            parts.append(_text("name", _LEFT + 42, row, each.name))
    return _svg(bottom + 36 + _LEGEND * rows, label, parts)


def dot_plot(
    rows: Sequence[tuple[str, Sequence[float | None]]],
    names: Sequence[str],
    *,
    label: str,
    x_label: str,
) -> Markup:
    """Draw a line of marks a row: where each of at most six models stands.

    `label` is for a person who cannot see the chart.
    """
    values = [value for _, row in rows for value in row if value is not None]
    ticks = _ticks(min(values), max(values), 4)
    left = 8 + 6.2 * max(len(name) for name, _ in rows)
    place = _scale(ticks[0], ticks[-1], left + 8, WIDTH - _RIGHT)
    bottom = _TOP + 26 * len(rows)
    parts = _x_grid(ticks, place, bottom)
    for r, (name, row) in enumerate(rows):
        y = _TOP + 26 * r + 13
        marks = [place(value) for value in row if value is not None]
        parts.append(_text("name", 0, y + 4, name))
        if len(marks) > 1:
            parts.append(_line("span", min(marks), max(marks), y, y))
        parts.extend(_mark(i, place(value), y) for i, value in enumerate(row) if value is not None)
    parts.append(_x_label(bottom, x_label))
    for i, name in enumerate(names):
        y = bottom + 46 + _LEGEND * i
        parts += [_mark(i, left + 12, y - 4), _text("name", left + 24, y, name)]
    return _svg(bottom + 40 + _LEGEND * len(names), label, parts)


def interval_chart(
    rows: Sequence[tuple[str, float, float, float]], *, label: str, x_label: str
) -> Markup:
    """Draw an interval a row with its value; what lies across the line at zero may be nothing.

    `label` is for a person who cannot see the chart.
    """
    low_end, high_end = min(low for _, _, low, _ in rows), max(high for *_, high in rows)
    ticks = _ticks(min(0.0, low_end), max(0.0, high_end), 4)
    left = 8 + 6.2 * max(len(name) for name, *_ in rows)
    place = _scale(ticks[0], ticks[-1], left + 8, WIDTH - _RIGHT)
    bottom = _TOP + 22 * len(rows)
    parts = _x_grid(ticks, place, bottom, zero="zero")
    for r, (name, value, low, high) in enumerate(rows):
        y = _TOP + 22 * r + 11
        parts.append(_text("name", 0, y + 4, name))
        parts.append(_line("line s0", place(low), place(high), y, y))
        parts.append(_mark(0, place(value), y))
    parts.append(_x_label(bottom, x_label))
    return _svg(bottom + 38, label, parts)


def _x_grid(
    ticks: Sequence[float], place: Callable[[float], float], bottom: int, zero: str = "grid"
) -> list[str]:
    """Draw a vertical line and a number at every tick; the line at zero may be of another class."""
    parts = []
    for tick in ticks:
        x = place(tick)
        parts.append(_line(zero if tick == 0 else "grid", x, x, _TOP, bottom))
        parts.append(_x_tick(tick, ticks, place, bottom))
    return parts


def _x_tick(
    tick: float, ticks: Sequence[float], place: Callable[[float], float], bottom: int
) -> str:
    return _text("tick", place(tick), bottom + 15, _number(tick, ticks), "middle")


def _x_label(bottom: int, label: str) -> str:
    return _text("axis", WIDTH - _RIGHT, bottom + 30, label, "end")


def _text(style: str, x: float, y: float, text: str, anchor: str = "") -> str:
    place = f' text-anchor="{anchor}"' if anchor else ""
    return f'<text class="{style}" x="{_unit(x)}" y="{_unit(y)}"{place}>{escape(text)}</text>'


def _line(style: str, x1: float, x2: float, y1: float, y2: float, dash: str = "") -> str:
    ends = f'x1="{_unit(x1)}" x2="{_unit(x2)}" y1="{_unit(y1)}" y2="{_unit(y2)}"'
    return f'<line class="{style}" {ends}{dash}/>'


def _unit(value: float) -> str:
    return f"{value:.1f}" if isinstance(value, float) else str(value)


def _svg(height: float, label: str, parts: Sequence[str]) -> Markup:
    return Markup(
        f'<svg viewBox="0 0 {WIDTH} {height:.0f}" role="img"'
        f' aria-label="{escape(label)}">{"".join(parts)}</svg>'
    )


def _scale(
    low: float, high: float, start: float, end: float, log: bool = False
) -> Callable[[float], float]:
    if log:
        low, high = math.log2(low), math.log2(high)
    width = high - low or 1.0

    def place(value: float) -> float:
        return start + (end - start) * ((math.log2(value) if log else value) - low) / width

    return place


def _ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Return round numbers that enclose a range."""
    if high - low <= 1e-9 * max(1.0, abs(high)):  # equal but for rounding
        low, high = low - abs(low) * 0.05 - 1e-9, high + abs(high) * 0.05 + 1e-9
    rough = (high - low) / count
    unit = 10.0 ** math.floor(math.log10(rough))
    step = next(unit * factor for factor in (1, 2, 2.5, 5, 10) if unit * factor >= rough * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(i * step, 12) for i in range(first, last + 1)]


def _powers(low: float, high: float) -> list[float]:
    """Return powers of two within a range, few enough to stand side by side."""
    first, last = math.ceil(math.log2(low)), math.floor(math.log2(high))
    stride = 1 if last - first < 7 else 2
    return [2.0**power for power in range(first, last + 1, stride)]


def _number(tick: float, ticks: Sequence[float]) -> str:
    """Write a tick with as many digits as the step between ticks has."""
    step = ticks[1] - ticks[0] if len(ticks) > 1 else 1.0
    digits = next((n for n in range(9) if math.isclose(round(step, n), step, rel_tol=1e-9)), 9)
    return f"{tick:,.{digits}f}"


def _dash(i: int) -> str:
    dashes = _DASHES[i % len(_DASHES)]
    return f' stroke-dasharray="{dashes}"' if dashes else ""


def _mark(i: int, x: float, y: float) -> str:
    shapes = (
        "M-4,0a4,4 0 1,0 8,0a4,4 0 1,0 -8,0z",
        "M-3.6,-3.6h7.2v7.2h-7.2z",
        "M0,-4.6L4.4,3.4H-4.4z",
        "M0,-5L5,0L0,5L-5,0z",
        "M-4,-4L4,4M-4,4L4,-4",
        "M-5,0H5M0,-5V5",
    )
    return (
        f'<path class="mark s{i}" transform="translate({x:.1f} {y:.1f})"'
        f' d="{shapes[i % len(shapes)]}"/>'
    )
