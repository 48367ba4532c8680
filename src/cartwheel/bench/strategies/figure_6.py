"""Dynamo's Figure 6: the share of nodes that are out of balance over a day, against the load of the whole system.

The paper counts each node's requests in windows of half an hour for a day. A node is in balance if its requests differ from the
mean by less than 15 %. "During low loads the imbalance ratio is as high as 20% and during high loads it is close to 10%", because
"under high loads, a large number of popular keys are accessed and due to uniform distribution of keys the load is evenly
distributed. However, during low loads (where load is 1/8th of the measured peak load), fewer popular keys are accessed".

The model is that sentence and no more: in a window as many popular keys are accessed as the load has it, each equally often, each
at a random place on the ring, and each access reaches the n nodes of the key's list. Two things are uneven, then: the placement,
the same all day, and which keys are popular, anew in each window, less so the more they are.

*What is fitted and what is found.* The paper tells neither T nor the number of popular keys. ``TOKENS`` and ``POPULAR_KEYS`` are
chosen so that strategy 1, which the measured system had, is at 10 % at the peak and 20 % at an eighth of it. That the ratio falls
with load, and how between those two, is found; and so is what the same load does on Cartwheel's ring. The shape of the day is
the figure's by eye: a night, and three peaks.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import accumulate, pairwise
from random import Random
from statistics import fmean
from typing import Final

import msgspec

from cartwheel.bench.strategies import placement
from cartwheel.bench.strategies.placement import Placement

TOKENS: Final = 44
"""Of each node in strategy 1. Fitted: the unevenness that is left at the peak is nearly all the placement's, about 1/sqrt(3T)."""

POPULAR_KEYS: Final = 12_000
"""At the peak. Fitted: at an eighth of it, chance alone (a node is on the lists of 150 of 1,500 keys) is 8 %."""

WINDOWS: Final = 48
"""Half hours of a day."""

DAY: Final = ((0.0, 0.45), (4.0, 0.125), (9.0, 1.0), (11.5, 0.75), (14.0, 1.0), (16.5, 0.75), (19.0, 1.0), (24.0, 0.45))
"""(hour, load as a share of the peak), straight lines between."""

BANDS: Final = ((0.0, 0.2), (0.2, 0.4), (0.4, 0.7), (0.7, 1.0))
"""Loads that are reported together: above the first, up to the second. The load is never 0."""

DIGITS: Final = 4


class Window(msgspec.Struct, frozen=True):
    """Half an hour: the shares of nodes that were out of balance, the mean of the seeds."""

    hour: float  # its start
    load: float  # as a share of the peak
    strategy_1: float
    claimed: float


class Band(msgspec.Struct, frozen=True):
    """The windows whose load is above ``load_min`` and up to ``load_max``: the mean of their shares."""

    load_min: float
    load_max: float
    windows: int
    strategy_1: float
    claimed: float


class Figure6(msgspec.Struct, frozen=True):
    """The figure's data."""

    tokens: int  # of each node, in strategy 1
    q: int  # of Cartwheel's ring
    popular_keys: int  # at the peak
    windows: list[Window]
    bands: list[Band]


def load_at(hour: float) -> float:
    """The load at an hour of the day, as a share of the peak."""
    for (before, low), (after, high) in pairwise(DAY):
        if before <= hour <= after:
            return low + (high - low) * (hour - before) / (after - before)
    raise ValueError(f"a day has no hour {hour}")


def out_of_balance(loads: Sequence[int]) -> int:
    """How many of these differ from their mean by 15 % of it or more. In integers, so that 15 % is 15 %."""
    total, nodes = sum(loads), len(loads)
    return sum(20 * abs(load * nodes - total) >= 3 * total for load in loads) if total else 0


def range_ends(placed: Placement) -> list[float]:
    """Where the ranges end, the ring being 1. Floats, since ``requests`` compares them with floats: half its time."""
    whole = sum(placed.widths)
    return [end / whole for end in accumulate(placed.widths)]


def requests(placed: Placement, ends: Sequence[float], keys: int, random: Random) -> list[int]:
    """How many requests each node gets if so many keys, anywhere on the ring, are accessed once; ``ends`` are the ranges'."""
    counts = [0] * placed.nodes
    hit = Counter(random.choices(range(len(ends)), cum_weights=ends, k=keys))
    for part, times in hit.items():
        for node in placed.lists[part]:
            counts[node] += times
    return counts


def figure_6(*, nodes: int, n: int, seeds: Sequence[int], q: int, tokens: int, popular_keys: int) -> Figure6:
    """Simulate the day once per seed: strategy 1 with tokens drawn anew, and Cartwheel's ring, which is always the same."""
    hours = [24 * window / WINDOWS for window in range(WINDOWS)]
    keys = [max(1, round(popular_keys * load_at(hour))) for hour in hours]
    ours = placement.founded(nodes, n, q)
    out: list[tuple[list[float], list[float]]] = [([], []) for _ in hours]
    for seed in seeds:
        drawn = placement.draw_tokens(nodes, tokens, Random(f"{seed}: figure 6, tokens"))
        for side, placed in enumerate((placement.strategy_1(nodes, n, drawn), ours)):
            random = Random(f"{seed}: figure 6, keys")
            ends = range_ends(placed)
            for window, popular in enumerate(keys):
                uneven = out_of_balance(requests(placed, ends, popular, random))
                out[window][side].append(uneven / nodes)
    windows = [
        Window(hour, round(load_at(hour), DIGITS), *(round(fmean(shares), DIGITS) for shares in sides))
        for hour, sides in zip(hours, out, strict=True)
    ]
    return Figure6(tokens, q, popular_keys, windows, _bands(windows))


def _bands(windows: Sequence[Window]) -> list[Band]:
    bands = []
    for low, high in BANDS:
        inside = [window for window in windows if low < window.load <= high]
        means = [fmean(getattr(window, name) for window in inside) for name in ("strategy_1", "claimed")]
        bands.append(Band(low, high, len(inside), *(round(mean, DIGITS) for mean in means)))
    return bands
