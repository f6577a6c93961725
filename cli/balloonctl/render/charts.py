"""Charts as inline SVG for the pages that `--html` writes; colours are those of `balloonctl.render.page`.

All are 760 units wide and scale with the page. Every mark has a title, which browsers show under the mouse.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from html import escape

__all__ = ["CHART_STYLE", "Bar", "Hill", "bars", "hills", "lines"]

WIDTH = 760

#: Where figures end and labels of rows begin.
_LABELS = 190
_RIGHT = 20

#: Rules for the page that has charts.
CHART_STYLE = """\
svg.chart { width: 100%; max-width: 760px; height: auto; display: block; margin: 0.75rem 0; font-size: 12px; }
svg.chart text { fill: var(--ink); } svg.chart text.dim { fill: var(--dim); }
svg.chart .grid { stroke: var(--line); } svg.chart .whisker { stroke: var(--ink); }
"""

#: A logarithmic axis is used where the largest value is this many times the smallest.
_LOG_FROM = 30


@dataclass(frozen=True, slots=True)
class Bar:
    """A row of a bar chart."""

    label: str
    samples: Sequence[float]
    median: float
    limit: bool = False
    """Drawn as what others are held against."""


@dataclass(frozen=True, slots=True)
class Hill:
    """A distribution: values in buckets."""

    label: str
    low: Sequence[int]
    """Lowest value of each bucket that is not empty, ascending."""
    counts: Sequence[int]
    marks: Mapping[str, float]
    """Named values, such as p99."""


class _Axis:
    """From values to places, straight or logarithmic."""

    def __init__(self, values: Sequence[float], begin: float, end: float, *, log: bool | None = None) -> None:
        positive = [value for value in values if value > 0]
        self.top = max(values, default=1.0) or 1.0
        low = min(positive, default=self.top)
        self.log = bool(positive) and (self.top / low > _LOG_FROM if log is None else log)
        self.begin, self.end = begin, end
        self.low = low / 1.3 if self.log else 0.0
        self.high = self.top * 1.3 if self.log else self.top * 1.04

    def __call__(self, value: float) -> float:
        if self.log:
            share = math.log(max(value, self.low) / self.low) / math.log(self.high / self.low)
        else:
            share = value / self.high
        return self.begin + share * (self.end - self.begin)

    def ticks(self) -> list[float]:
        """Round values in between: 1, 2 and 5 times powers of ten, at most about eight."""
        if self.log:
            powers = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
            factors = (1, 2, 5) if len(powers) <= 3 else (1,)
            found = [factor * 10.0**power for power in powers for factor in factors]
            found = [tick for tick in found if self.low <= tick <= self.high]
            return found[:: max(1, math.ceil(len(found) / 8))]
        step = 10.0 ** math.floor(math.log10(self.high / 4))
        step *= next(factor for factor in (1, 2, 5, 10) if self.high / (step * factor) <= 6)
        return [step * number for number in range(int(self.high / step) + 1)]


def _text(x: float, y: float, words: str, *, anchor: str = "start", kind: str = "") -> str:
    style = f' class="{kind}"' if kind else ""
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{style}>{escape(words)}</text>'


def _line(x1: float, y1: float, x2: float, y2: float, kind: str) -> str:
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" class="{kind}"/>'


def _svg(height: float, title: str, parts: Sequence[str]) -> str:
    body = "\n".join(parts)
    return (
        f'<svg class="chart" viewBox="0 0 {WIDTH} {height:.0f}" role="img" aria-label="{escape(title)}">\n'
        f"{body}\n</svg>"
    )


def _x_axis(axis: _Axis, top: float, bottom: float, tell: Callable[[float], str]) -> list[str]:
    """Grid lines with their values below; a remark if the axis is logarithmic."""
    parts = []
    for tick in axis.ticks():
        x = axis(tick)
        parts += [
            _line(x, top, x, bottom, "grid"),
            _text(x, bottom + 15, tell(tick), anchor="middle", kind="dim"),
        ]
    if axis.log:
        parts.append(_text(0, bottom + 15, "logarithmic", kind="dim"))
    return parts


def _short(label: str) -> str:
    return label if len(label) <= 30 else label[:29] + "…"


def bars(rows: Sequence[Bar], tell: Callable[[float], str], title: str) -> str:
    """Medians as bars, smallest to largest as a line, every sample as a dot.

    Args:
        rows: from top to bottom.
        tell: a value for people.
        title: for who cannot see it.
    """
    axis = _Axis([value for row in rows for value in row.samples], _LABELS, WIDTH - _RIGHT)
    step, top = 30, 6
    bottom = top + step * len(rows)
    parts = _x_axis(axis, top, bottom, tell)
    for number, row in enumerate(rows):
        y = top + step * number + step / 2
        colour = "--a3" if row.limit else "--a0"
        low, high = min(row.samples), max(row.samples)
        parts += [
            _text(_LABELS - 8, y + 4, _short(row.label), anchor="end"),
            (
                f'<rect x="{_LABELS}" y="{y - 8:.1f}" width="{max(1.0, axis(row.median) - _LABELS):.1f}" height="16" '
                f'fill="var({colour})" fill-opacity="0.55"><title>{escape(row.label)}: {escape(tell(row.median))} '
                f"({escape(tell(low))} to {escape(tell(high))})</title></rect>"
            ),
            _line(axis(low), y, axis(high), y, "whisker"),
        ]
        dots = row.samples if len(row.samples) <= 200 else sorted(row.samples)[:: len(row.samples) // 200]
        parts += [
            f'<circle cx="{axis(value):.1f}" cy="{y:.1f}" r="2.5" fill="var({colour})" stroke="var(--paper)" '
            f'stroke-width="0.6"><title>{escape(tell(value))}</title></circle>'
            for value in dots
        ]
    return _svg(bottom + 22, title, parts)


def hills(rows: Sequence[Hill], tell: Callable[[float], str], title: str) -> str:
    """Distributions below each other on one logarithmic axis, with their percentiles.

    Buckets are those of csrc/histogram.h: powers of two, each cut into 16.
    """
    axis = _Axis([value for row in rows for value in row.low if value > 0], _LABELS, WIDTH - _RIGHT, log=True)
    step, top = 56, 14
    bottom = top + step * len(rows)
    parts = _x_axis(axis, top, bottom, tell)
    for number, row in enumerate(rows):
        base = top + step * (number + 1) - 4
        tallest, total = max(row.counts), sum(row.counts)
        parts.append(_text(_LABELS - 8, base - 6, _short(row.label), anchor="end"))
        parts.append(_text(_LABELS - 8, base - 22, f"{total:,}", anchor="end", kind="dim"))
        for low, counted in zip(row.low, row.counts, strict=True):
            x, beyond = axis(low), axis(low + (1 << max(0, low.bit_length() - 5)))
            height = max(1.0, (step - 18) * counted / tallest)
            parts.append(
                f'<rect x="{x:.1f}" y="{base - height:.1f}" width="{max(0.8, beyond - x):.1f}" '
                f'height="{height:.1f}" fill="var(--a0)" fill-opacity="0.7"><title>{escape(tell(low))}: '
                f"{counted:,}</title></rect>"
            )
        parts.append(_line(_LABELS, base, WIDTH - _RIGHT, base, "grid"))
        parts += [
            _mark(axis(value), base, step, name, tell(value), 11 * (place % 2))
            for place, (name, value) in enumerate(row.marks.items())
        ]
    return _svg(bottom + 22, title, parts)


def _mark(x: float, base: float, step: float, name: str, value: str, lower: float) -> str:
    """A percentile: a line and its name, so much lower, since neighbours may be near."""
    return (
        f'<g><title>{escape(name)}: {escape(value)}</title><line x1="{x:.1f}" y1="{base:.1f}" x2="{x:.1f}" '
        f'y2="{base - step + 14:.1f}" stroke="var(--a1)"/>{_text(x + 2, base - step + 16 + lower, name, kind="dim")}</g>'
    )


def lines(
    series: Mapping[str, Sequence[tuple[float, float]]],
    tell: Callable[[float], str],
    tell_x: Callable[[float], str],
    title: str,
) -> str:
    """Values over a parameter: a line a row, its name at its end.

    Args:
        series: label -> (parameter, value), ascending.
        tell: a value for people.
        tell_x: a parameter for people.
        title: for who cannot see it.
    """
    points = [point for line in series.values() for point in line]
    height, top, left = 300, 12, 80
    right = WIDTH - _LABELS
    places = sorted({x for x, _ in points})
    across = _Axis(places, left, right, log=places[0] > 0 and places[-1] / places[0] >= 4)
    if not across.log:  # the first value stands at the left edge, not zero
        across = _Between(places, left, right)
    up = _Axis([y for _, y in points], height - 30, top)
    parts = []
    for tick in up.ticks():
        parts += [
            _line(left, up(tick), right, up(tick), "grid"),
            _text(left - 6, up(tick) + 4, tell(tick), anchor="end", kind="dim"),
        ]
    parts += [_text(across(x), height - 12, tell_x(x), anchor="middle", kind="dim") for x in places]
    heights: list[float] = []
    for number, (label, line) in enumerate(sorted(series.items(), key=lambda item: up(item[1][-1][1]))):
        colour = f"var(--a{number % 4})"
        path = " ".join(f"{across(x):.1f},{up(y):.1f}" for x, y in line)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="1.8"/>')
        parts += [
            f'<circle cx="{across(x):.1f}" cy="{up(y):.1f}" r="3" fill="{colour}"><title>{escape(label)}, '
            f"{escape(tell_x(x))}: {escape(tell(y))}</title></circle>"
            for x, y in line
        ]
        y = max(up(line[-1][1]) + 4, heights[-1] + 13 if heights else 0)  # names do not cover each other
        heights.append(y)
        parts.append(_text(right + 10, y, _short(label)))
    return _svg(max(height, max(heights, default=0) + 6), title, parts)


class _Between(_Axis):
    """A straight axis from the first to the last value."""

    def __init__(self, values: Sequence[float], begin: float, end: float) -> None:
        super().__init__(values, begin, end, log=False)
        self._first, self._last = values[0], values[-1]

    def __call__(self, value: float) -> float:
        span = self._last - self._first
        share = (value - self._first) / span if span else 0.5
        return self.begin + share * (self.end - self.begin)
