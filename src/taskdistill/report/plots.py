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
    height = bottom + 36 + _LEGEND * rows
    place_x = _scale(xs[0], xs[-1], _LEFT, WIDTH - _RIGHT, log_x)
    place_y = _scale(y_ticks[0], y_ticks[-1], bottom, _TOP + 18)
    parts = [f'<text class="axis" x="0" y="{_TOP + 2}">{escape(y_label)}</text>']
    for tick in y_ticks:
        y = place_y(tick)
        parts.append(
            f'<line class="grid" x1="{_LEFT}" x2="{WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
        )
        parts.append(
            f'<text class="tick" x="{_LEFT - 6}" y="{y + 3.5:.1f}"'
            f' text-anchor="end">{_number(tick, y_ticks)}</text>'
        )
    x_ticks = (
        _powers(xs[0], xs[-1])
        if log_x
        else [tick for tick in _ticks(xs[0], xs[-1], 4) if xs[0] <= tick <= xs[-1]]
    )
    for tick in x_ticks:
        parts.append(
            f'<text class="tick" x="{place_x(tick):.1f}" y="{bottom + 15}"'
            f' text-anchor="middle">{_number(tick, x_ticks)}</text>'
        )
    parts.append(
        f'<text class="axis" x="{WIDTH - _RIGHT}" y="{bottom + 30}"'
        f' text-anchor="end">{escape(x_label)}</text>'
    )
    for i, each in enumerate(series):
        path = " ".join(f"{place_x(x):.1f},{place_y(y):.1f}" for x, y in each.points)
        parts.append(f'<polyline class="line s{i}" points="{path}"{_dash(i)}/>')
        if marks:
            parts.extend(_mark(i, place_x(x), place_y(y)) for x, y in each.points)
        if rows:
            y = bottom + 46 + _LEGEND * i
            parts.append(
                f'<line class="line s{i}" x1="{_LEFT}" x2="{_LEFT + 34}" y1="{y - 4}"'
                f' y2="{y - 4}"{_dash(i)}/>'
            )
            parts.append(
                (_mark(i, _LEFT + 17, y - 4) if marks else "")
                + f'<text class="name" x="{_LEFT + 42}" y="{y}">{escape(each.name)}</text>'
            )
    return _svg(height, label, parts)


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
    parts = []
    for tick in ticks:
        parts.append(
            f'<line class="grid" x1="{place(tick):.1f}" x2="{place(tick):.1f}" y1="{_TOP}"'
            f' y2="{bottom}"/>'
        )
        parts.append(
            f'<text class="tick" x="{place(tick):.1f}" y="{bottom + 15}"'
            f' text-anchor="middle">{_number(tick, ticks)}</text>'
        )
    for r, (name, row) in enumerate(rows):
        y = _TOP + 26 * r + 13
        result = [place(value) for value in row if value is not None]
        parts.append(f'<text class="name" x="0" y="{y + 4}">{escape(name)}</text>')
        if len(result) > 1:
            parts.append(
                f'<line class="span" x1="{min(result):.1f}" x2="{max(result):.1f}" y1="{y}"'
                f' y2="{y}"/>'
            )
        parts.extend(_mark(i, place(value), y) for i, value in enumerate(row) if value is not None)
    parts.append(
        f'<text class="axis" x="{WIDTH - _RIGHT}" y="{bottom + 30}"'
        f' text-anchor="end">{escape(x_label)}</text>'
    )
    for i, name in enumerate(names):
        y = bottom + 46 + _LEGEND * i
        parts.append(
            _mark(i, left + 12, y - 4)
            + f'<text class="name" x="{left + 24:.1f}" y="{y}">{escape(name)}</text>'
        )
    return _svg(bottom + 40 + _LEGEND * len(names), label, parts)


def interval_chart(
    rows: Sequence[tuple[str, float, float, float]], *, label: str, x_label: str
) -> Markup:
    """Draw an interval a row with its value; what lies across the line at zero may be nothing.

    `label` is for a person who cannot see the chart.
    """
    ticks = _ticks(
        min(0.0, *(low for _, _, low, _ in rows)), max(0.0, *(high for *_, high in rows)), 4
    )
    left = 8 + 6.2 * max(len(name) for name, *_ in rows)
    place = _scale(ticks[0], ticks[-1], left + 8, WIDTH - _RIGHT)
    bottom = _TOP + 22 * len(rows)
    parts = []
    for tick in ticks:
        kind = "zero" if tick == 0 else "grid"
        parts.append(
            f'<line class="{kind}" x1="{place(tick):.1f}" x2="{place(tick):.1f}" y1="{_TOP}"'
            f' y2="{bottom}"/>'
        )
        parts.append(
            f'<text class="tick" x="{place(tick):.1f}" y="{bottom + 15}"'
            f' text-anchor="middle">{_number(tick, ticks)}</text>'
        )
    for r, (name, value, low, high) in enumerate(rows):
        y = _TOP + 22 * r + 11
        parts.append(f'<text class="name" x="0" y="{y + 4}">{escape(name)}</text>')
        parts.append(
            f'<line class="line s0" x1="{place(low):.1f}" x2="{place(high):.1f}" y1="{y}"'
            f' y2="{y}"/>'
        )
        parts.append(_mark(0, place(value), y))
    parts.append(
        f'<text class="axis" x="{WIDTH - _RIGHT}" y="{bottom + 30}"'
        f' text-anchor="end">{escape(x_label)}</text>'
    )
    return _svg(bottom + 38, label, parts)


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
