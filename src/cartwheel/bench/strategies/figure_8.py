"""Dynamo's Figure 8: load balancing efficiency against the size of the membership metadata, for the three strategies.

The package's docstring tells how the figure is read. Next to the strategies stand the rings that Cartwheel makes: ``claimed`` at
the same q as strategy 3, and ``rings``, those that a cluster can have, for its q is a power of two. There S does not
divide q, so some nodes own one token more than others, and with it n more places on preference lists.
"""

from __future__ import annotations

from collections.abc import Sequence
from random import Random
from statistics import fmean, stdev
from typing import Final

import msgspec

from cartwheel.bench.strategies import placement

PAPER_NODES: Final = 30
PAPER_N: Final = 3
PAPER: Final[dict[int, tuple[float, float, float]]] = {
    2: (0.52, 0.53, 0.86),
    4: (0.61, 0.61, 0.87),
    8: (0.69, 0.70, 0.90),
    16: (0.76, 0.76, 0.92),
    32: (0.82, 0.82, 0.94),
    64: (0.87, 0.85, 0.96),
    128: (0.91, 0.88, 0.97),
    256: (0.93, 0.87, 0.98),
    512: (0.95, 0.85, 0.98),
    1024: (0.96, 0.84, 0.99),
}
"""Tokens a node -> the efficiency of strategies 1, 2, 3, read off the printed figure by eye: .01 either way."""

NO_PAPER: Final = (None, None, None)
SMALL: Final = 64
"""Rings of fewer tokens a node are drawn ``SMALL / tokens`` times per seed: they vary most, and cost least."""

DIGITS: Final = 4
"""Of an efficiency in the result. The third moves with the seeds already."""


class Efficiency(msgspec.Struct, frozen=True):
    """Of one strategy at one size."""

    mean: float
    deviation: float  # the standard deviation between draws; 0 if there was one
    paper: float | None  # as read off the figure; None where the figure has no such point


class Row(msgspec.Struct, frozen=True):
    """All strategies with the same size of metadata."""

    metadata: int  # entries: nodes * tokens
    tokens: int  # of each node; in strategy 3 these are its partitions
    strategy_1: Efficiency
    strategy_2: Efficiency
    strategy_3: Efficiency
    claimed: float  # strategy 3 with the owners that Cartwheel's claim gives a new cluster


class RingRow(msgspec.Struct, frozen=True):
    """A ring that a Cartwheel cluster of so many nodes can have."""

    q: int
    founded: float  # all nodes are first members
    grown: float  # they joined one by one


class Figure8(msgspec.Struct, frozen=True):
    """The figure's data."""

    q: int  # of strategy 2
    rows: list[Row]
    rings: list[RingRow]


def figure_8(*, nodes: int, n: int, seeds: Sequence[int], q: int, tokens_max: int, ring_q_max: int) -> Figure8:
    """Simulate it: the strategies with 2 tokens a node and more, the rings with two partitions a node and more."""
    sizes = [1 << power for power in range(1, tokens_max.bit_length())]
    qs = [1 << power for power in range(1, ring_q_max.bit_length()) if 1 << power >= 2 * nodes]
    return Figure8(q, [_row(nodes, n, seeds, q, tokens) for tokens in sizes], [_ring(nodes, n, each) for each in qs])


def _row(nodes: int, n: int, seeds: Sequence[int], q: int, tokens: int) -> Row:
    found: tuple[list[float], list[float], list[float]] = ([], [], [])
    for seed in seeds:
        random = Random(f"{seed}: figure 8, {tokens} tokens a node")
        for _ in range(max(1, SMALL // tokens)):
            # Strategies 1 and 2 have the same tokens, so what differs between them is not the luck of the draw.
            drawn = placement.draw_tokens(nodes, tokens, random)
            found[0].append(placement.strategy_1(nodes, n, drawn).efficiency())
            found[1].append(placement.strategy_2(nodes, n, drawn, q).efficiency())
            found[2].append(placement.strategy_3(nodes, n, tokens, random).efficiency())
    paper = PAPER.get(tokens, NO_PAPER) if (nodes, n) == (PAPER_NODES, PAPER_N) else NO_PAPER
    first, second, third = (_efficiency(values, theirs) for values, theirs in zip(found, paper, strict=True))
    claimed = placement.founded(nodes, n, nodes * tokens).efficiency()
    return Row(nodes * tokens, tokens, first, second, third, round(claimed, DIGITS))


def _efficiency(values: Sequence[float], paper: float | None) -> Efficiency:
    deviation = stdev(values) if len(values) > 1 else 0.0
    return Efficiency(round(fmean(values), DIGITS), round(deviation, DIGITS), paper)


def _ring(nodes: int, n: int, q: int) -> RingRow:
    founded = placement.founded(nodes, n, q).efficiency()
    grown = placement.grown(nodes, n, q).efficiency()
    return RingRow(q, round(founded, DIGITS), round(grown, DIGITS))
