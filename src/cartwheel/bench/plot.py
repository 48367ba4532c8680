"""Small plots of a few series over time: as blocks for a terminal, and as an SVG file."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape

BLOCKS = "▁▂▃▄▅▆▇█"
COLOURS = ("#c0392b", "#1f6fb2", "#3d8b40", "#8e6bbf")
WIDTH, HEIGHT = 720, 360
LEFT, RIGHT, TOP, BOTTOM = 60, 20, 40, 50
TICKS = 5


def blocks(values: Sequence[float], highest: float) -> str:
    """One character for each value, as high as its share of ``highest``."""
    scale = len(BLOCKS) / highest if highest > 0 else 0.0
    return "".join(BLOCKS[min(len(BLOCKS) - 1, int(value * scale))] for value in values)


def round_up(value: float) -> float:
    """The next of 1, 2, 5, 10, 20, ..."""
    if value <= 0:
        return 1.0
    power = 10.0 ** math.floor(math.log10(value))
    return next(step * power for step in (1, 2, 5, 10) if step * power >= value * (1 - 1e-9))


def svg(title: str, series: Mapping[str, Sequence[float]], *, step_s: float) -> str:
    """A line for each series of milliseconds, one value every ``step_s`` seconds."""
    highest = round_up(max((max(values, default=0.0) for values in series.values()), default=0.0))
    longest = max((len(values) for values in series.values()), default=0)
    x_scale = (WIDTH - LEFT - RIGHT) / max(1, longest - 1)
    y_scale = (HEIGHT - TOP - BOTTOM) / highest
    floor = HEIGHT - BOTTOM
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" font-size="12">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
        f'<text x="{LEFT}" y="18" font-size="14">{escape(title)}</text>',
    ]
    for tick in range(TICKS + 1):
        y = floor - tick * highest / TICKS * y_scale
        parts.append(f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}" stroke="#ddd"/>')
        parts.append(f'<text x="{LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{tick * highest / TICKS:g}</text>')
    for (name, values), colour in zip(series.items(), COLOURS, strict=False):
        number = list(series).index(name)
        points = " ".join(f"{LEFT + i * x_scale:.1f},{floor - value * y_scale:.1f}" for i, value in enumerate(values))
        parts.append(f'<polyline fill="none" stroke="{colour}" stroke-width="2" points="{points}"/>')
        x = LEFT + 100 * number
        parts.append(f'<text x="{x}" y="{TOP - 6}" fill="{colour}">{escape(name)}</text>')
    seconds = max(0, longest - 1) * step_s
    parts.append(f'<text x="{LEFT}" y="{floor + 20}">0</text>')
    parts.append(f'<text x="{WIDTH - RIGHT}" y="{floor + 20}" text-anchor="end">{seconds:g} s</text>')
    parts.append(f'<text x="{LEFT}" y="{HEIGHT - 10}">milliseconds, over the time measured</text>')
    return "\n".join([*parts, "</svg>"]) + "\n"
