"""Plots as SVG, which every browser shows: bars with their intervals, and lines over the layers of a model."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape

from .interval import Estimate

_COLOURS = ("#2f6f4f", "#b3541e", "#3b5b92", "#8a8f98")
_LEFT, _WIDTH, _HEIGHT = 220, 420, 260


def bars(title: str, rows: Sequence[tuple[str, Estimate]]) -> str:
    """One bar a row, with a line from the lower to the upper bound; all begin at 0. What is not finite has none."""
    finite = [number for _, row in rows for number in row if math.isfinite(number)]
    most = max(finite, default=0.0) or 1.0
    marks = []
    for index, (name, row) in enumerate(rows):
        y = 44 + 30 * index
        marks.append(_text(_LEFT - 8, y + 15, name, anchor="end"))
        if math.isfinite(row.value):
            marks.append(f'<rect x="{_LEFT}" y="{y}" width="{row.value / most * _WIDTH:.1f}" height="20" fill="{_COLOURS[0]}"/>')
        if math.isfinite(row.low) and math.isfinite(row.high):
            low, high = (_LEFT + value / most * _WIDTH for value in (row.low, row.high))
            marks.append(f'<path d="M{low:.1f} {y + 10}H{high:.1f}M{low:.1f} {y + 5}v10M{high:.1f} {y + 5}v10" stroke="#000" fill="none"/>')
        marks.append(_text(_LEFT + _WIDTH + 12, y + 15, str(row)))
    return _page(title, _LEFT + _WIDTH + 210, 54 + 30 * len(rows), marks)


def lines(title: str, across: str, series: Mapping[str, Sequence[float]]) -> str:
    """One line a series over 0, 1, 2, ..., which are so many `across`; the height begins at 0."""
    most = max((value for values in series.values() for value in values if math.isfinite(value)), default=0.0) or 1.0
    count = max((len(values) for values in series.values()), default=1)
    left, top, step = 70, 44, _WIDTH / max(count - 1, 1)
    marks = [f'<path d="M{left} {top}V{top + _HEIGHT}H{left + _WIDTH}" stroke="#8a8f98" fill="none"/>']
    for part in range(5):
        y = top + _HEIGHT * (1 - part / 4)
        marks += [_text(left - 6, y + 4, f"{most * part / 4:.3g}", anchor="end"), f'<path d="M{left} {y:.1f}h{_WIDTH}" stroke="#eee"/>']
    shown = range(0, count, max(1, count // 8))
    marks += [_text(left + index * step, top + _HEIGHT + 16, str(index), anchor="middle") for index in shown]
    marks.append(_text(left + _WIDTH / 2, top + _HEIGHT + 34, across, anchor="middle"))
    for index, (name, values) in enumerate(series.items()):
        colour = _COLOURS[index % len(_COLOURS)]
        points = " ".join(
            f"{left + at * step:.1f},{top + _HEIGHT * (1 - value / most):.1f}" for at, value in enumerate(values) if math.isfinite(value)
        )
        marks.append(f'<polyline points="{points}" stroke="{colour}" stroke-width="2" fill="none"/>')
        marks += [f'<rect x="{left + _WIDTH + 14}" y="{top + 20 * index}" width="12" height="12" fill="{colour}"/>']
        marks.append(_text(left + _WIDTH + 32, top + 20 * index + 11, name))
    return _page(title, left + _WIDTH + 240, top + _HEIGHT + 46, marks)


def _text(x: float, y: float, text: str, anchor: str = "start") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def _page(title: str, width: int, height: int, marks: Sequence[str]) -> str:
    head = f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" font-family="sans-serif" font-size="13">'
    return "\n".join([head, '<rect width="100%" height="100%" fill="#fff"/>', _text(12, 22, title), *marks, "</svg>", ""])
