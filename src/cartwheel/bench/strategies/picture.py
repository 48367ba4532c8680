"""Figures 8 and 6 as one SVG, in the paper's manner: our lines, and what was read off the paper as marks of the same colour."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape
from typing import Final

from cartwheel.bench.strategies.figure_6 import Figure6
from cartwheel.bench.strategies.figure_8 import Figure8, Row
from cartwheel.bench.strategies.simulate import Options, Report

WIDTH: Final = 860
LEFT, RIGHT = 70, 790
TOP, BOTTOM = 62, 372
"""Of the plot within its panel."""
PANEL: Final = 440
"""The height of a figure with its title and labels; the next one stands below."""

BLUE, RED, GREEN, PURPLE, GREY = "#1f6fb2", "#c0392b", "#3d8b40", "#8e6bbf", "#777"
MARKS: Final = (
    ("strategy_1", BLUE, 4.0, "circle"),
    ("strategy_2", RED, 1.6, "square"),
    ("strategy_3", GREEN, 2.0, "diamond"),
)
"""Field of a ``Row``, its colour and width, and the mark of the paper's value. Where 1 and 2 are one, 1 shows behind 2."""

Point = tuple[float, float]


@dataclass(frozen=True, slots=True)
class Plot:
    """A panel's frame: from values to where they are drawn."""

    top: float  # of the panel
    x_min: float
    x_max: float
    y_min: float
    y_max: float
    logarithmic: bool = False

    def x(self, value: float) -> float:
        """Across."""
        scale: Callable[[float], float] = math.log2 if self.logarithmic else float
        span = scale(self.x_max) - scale(self.x_min)
        return round(LEFT + (scale(value) - scale(self.x_min)) / span * (RIGHT - LEFT), 1)

    def y(self, value: float) -> float:
        """Down."""
        share = (value - self.y_min) / (self.y_max - self.y_min)
        return round(self.top + BOTTOM - share * (BOTTOM - TOP), 1)

    def line(self, points: Sequence[Point], colour: str, *, dashes: str = "", width: float = 2) -> str:
        """Through these values."""
        path = " ".join(f"{self.x(x)},{self.y(y)}" for x, y in points)
        dashed = f' stroke-dasharray="{dashes}"' if dashes else ""
        return f'<polyline fill="none" stroke="{colour}" stroke-width="{width}"{dashed} points="{path}"/>'

    def frame(self, title: str, x_label: str, y_label: str) -> list[str]:
        """The title and what the axes mean."""
        middle = self.top + (TOP + BOTTOM) / 2
        return [
            _text(LEFT, self.top + 22, title, size=15),
            f'<rect x="{LEFT}" y="{self.top + TOP}" width="{RIGHT - LEFT}" height="{BOTTOM - TOP}" '
            'fill="none" stroke="#999"/>',
            _text((LEFT + RIGHT) / 2, self.top + BOTTOM + 42, x_label, anchor="middle"),
            _text(20, middle, y_label, anchor="middle", turn=-90),
        ]

    def x_tick(self, value: float, text: str) -> list[str]:
        """A vertical line, and its value below."""
        x, top, bottom = self.x(value), self.top + TOP, self.top + BOTTOM
        return [
            f'<line x1="{x}" x2="{x}" y1="{top}" y2="{bottom}" stroke="#eee"/>',
            _text(x, bottom + 18, text, anchor="middle"),
        ]

    def y_tick(self, value: float, text: str) -> list[str]:
        """A horizontal line, and its value on the left."""
        y = self.y(value)
        return [
            f'<line x1="{LEFT}" x2="{RIGHT}" y1="{y}" y2="{y}" stroke="#ddd"/>',
            _text(LEFT - 8, y + 4, text, anchor="end"),
        ]


def picture(report: Report) -> str:
    """The figures of a report, one below the other."""
    panels: list[list[str]] = []
    if report.figure_8 is not None:
        panels.append(_efficiencies(report.figure_8, report.options, 0))
    if report.figure_6 is not None:
        panels.append(_imbalance(report.figure_6, report.options, PANEL * len(panels)))
    height = PANEL * len(panels)
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" viewBox="0 0 {WIDTH} {height}" '
        'font-family="sans-serif" font-size="12">'
    )
    ground = f'<rect width="{WIDTH}" height="{height}" fill="white"/>'
    return "\n".join([head, ground, *(part for panel in panels for part in panel), "</svg>\n"])


def _text(
    x: float, y: float, text: str, *, anchor: str = "start", size: int = 12, fill: str = "#333", turn: int = 0
) -> str:
    turned = f' transform="rotate({turn} {x} {y})"' if turn else ""
    return (
        f'<text x="{x}" y="{y}" text-anchor="{anchor}" font-size="{size}" fill="{fill}"{turned}>{escape(text)}</text>'
    )


def _mark(x: float, y: float, shape: str, colour: str) -> str:
    """A hollow mark, so that the line below it shows."""
    look = f'fill="white" fill-opacity="0.7" stroke="{colour}" stroke-width="1.5"'
    if shape == "circle":
        return f'<circle cx="{x}" cy="{y}" r="4.5" {look}/>'
    if shape == "square":
        return f'<rect x="{x - 4:.1f}" y="{y - 4:.1f}" width="8" height="8" {look}/>'
    return f'<path d="M{x:.1f} {y - 6:.1f} l6 6 l-6 6 l-6 -6 Z" {look}/>'


def _legend(x: float, y: float, entries: Sequence[tuple[str, str, str]]) -> list[str]:
    """A line and a name for each: (name, colour, dashes)."""
    parts = []
    for number, (name, colour, dashes) in enumerate(entries):
        at = y + 18 * number
        dashed = f' stroke-dasharray="{dashes}"' if dashes else ""
        parts.append(
            f'<line x1="{x}" x2="{x + 28}" y1="{at - 4}" y2="{at - 4}" stroke="{colour}" stroke-width="2"{dashed}/>'
        )
        parts.append(_text(x + 36, at, name))
    return parts


# --- Figure 8 ---


def _efficiencies(figure: Figure8, options: Options, top: float) -> list[str]:
    rows, rings = figure.rows, figure.rings
    sizes = [row.metadata for row in rows] + [ring.q for ring in rings]
    values = [getattr(row, name).mean for row in rows for name, *_ in MARKS] + [ring.grown for ring in rings]
    y_min = min(0.4, math.floor(min(values) * 10) / 10)
    plot = Plot(top, min(sizes) / 1.1, max(*sizes, 2 * min(sizes)) * 1.1, y_min, 1.02, logarithmic=True)
    parts = plot.frame(
        f"Load balancing efficiency of the strategies: {options.nodes} nodes, N = {options.n} (Dynamo, Figure 8)",
        "membership metadata kept by each node: entries, logarithmic (tokens; in strategy 3, partitions)",
        "efficiency: mean load / highest load",
    )
    for row in rows:
        parts += plot.x_tick(row.metadata, f"{row.metadata:,}")
    for tenth in range(round(y_min * 10), 11):
        parts += plot.y_tick(tenth / 10, f"{tenth / 10:.1f}")
    if rings:
        parts.append(plot.line([(ring.q, ring.grown) for ring in rings], PURPLE, dashes="2 4"))
        parts.append(plot.line([(ring.q, ring.founded) for ring in rings], PURPLE, dashes="8 4"))
    parts += [part for mark in MARKS for part in _strategy(plot, rows, *mark)]
    entries = [
        ("strategy 1: T random tokens a node", BLUE, ""),
        (f"strategy 2: the same, and Q = {figure.q:,} equal partitions", RED, ""),
        ("strategy 3: Q/S tokens a node, drawn at random", GREEN, ""),
    ]
    if rings:
        entries += [
            ("Cartwheel's ring, q a power of two, all nodes from the start", PURPLE, "8 4"),
            ("the same, nodes joined one by one", PURPLE, "2 4"),
        ]
    compared = any(row.strategy_1.paper is not None for row in rows)
    lines = len(entries) + compared
    x, y = RIGHT - 430, plot.top + BOTTOM - 18 * lines
    parts.append(f'<rect x="{x - 10}" y="{y - 18}" width="430" height="{18 * lines + 10}" fill="white" stroke="#ddd"/>')
    parts += _legend(x, y, entries)
    if compared:
        at = y + 18 * len(entries)
        parts += [_mark(x + 4 + 10 * i, at - 4, shape, colour) for i, (_, colour, _, shape) in enumerate(MARKS)]
        parts.append(_text(x + 36, at, "the paper's values, as read off its figure"))
    return parts


def _strategy(plot: Plot, rows: Sequence[Row], name: str, colour: str, width: float, shape: str) -> list[str]:
    """One strategy's line, and the paper's marks."""
    found = [(row.metadata, getattr(row, name)) for row in rows]
    parts = [plot.line([(size, each.mean) for size, each in found], colour, width=width)]
    parts += [_mark(plot.x(size), plot.y(each.paper), shape, colour) for size, each in found if each.paper is not None]
    return parts


# --- Figure 6 ---


def _imbalance(figure: Figure6, options: Options, top: float) -> list[str]:
    windows = figure.windows
    highest = max(max(window.strategy_1, window.claimed) for window in windows)
    plot = Plot(top, 0, 24, 0, max(0.3, math.ceil(highest * 10) / 10))
    loads = Plot(top, 0, 24, 0, 1.1)
    parts = plot.frame(
        f"Nodes out of balance over a day: {options.nodes} nodes, N = {options.n} (Dynamo, Figure 6)",
        "hour of the day, in windows of half an hour",
        "share of nodes 15 % or more off the mean",
    )
    for hour in range(0, 25, 3):
        parts += plot.x_tick(hour, f"{hour}")
    step = 0.05 if plot.y_max <= 0.5 else 0.1
    for tick in range(round(plot.y_max / step) + 1):
        parts += plot.y_tick(tick * step, f"{tick * step:.0%}")
    for quarter in range(5):
        parts.append(_text(RIGHT + 8, loads.y(quarter / 4) + 4, f"{quarter / 4:g}", fill=GREY))
    middle = top + (TOP + BOTTOM) / 2
    parts.append(_text(WIDTH - 18, middle, "load, as a share of its peak", anchor="middle", turn=-90, fill=GREY))
    hours = [window.hour + 12 / len(windows) for window in windows]
    parts.append(loads.line([(hour, each.load) for hour, each in zip(hours, windows, strict=True)], GREY, dashes="5 4"))
    for name, colour in (("claimed", PURPLE), ("strategy_1", BLUE)):
        parts.append(plot.line([(at, getattr(each, name)) for at, each in zip(hours, windows, strict=True)], colour))
    names = (
        (f"strategy 1, T = {figure.tokens}", BLUE, ""),
        (f"Cartwheel's ring, q = {figure.q:,}", PURPLE, ""),
        ("load", GREY, "5 4"),
    )
    for number, entry in enumerate(names):
        parts += _legend(LEFT + 230 * number, top + 48, [entry])
    return parts
