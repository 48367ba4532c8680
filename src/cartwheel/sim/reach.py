"""Who could exchange frames with whom, and when: the books that the availability judge (C8, P3) goes by.

A pair is **open** from the moment both were told of their connection until it is dropped. Besides, a node or a pair may be
**hindered** for a time: paused, with a slow or full disk; cut one way, clogged. Two nodes reached each other throughout a span of
time if the pair was open all the while, and neither it nor one of them was hindered in any part of it.
"""

from __future__ import annotations

import math
from collections import defaultdict

from cartwheel.core.types import NodeId

Span = tuple[float, float]
Pair = tuple[NodeId, NodeId]


class Reach:
    """The books. Times must not go back."""

    def __init__(self) -> None:
        self._told: set[Pair] = set()  # (a, b): a was told that it is connected to b
        self._open_since: dict[Pair, float] = {}
        self._was_open: defaultdict[Pair, list[Span]] = defaultdict(list)
        self._hindered: defaultdict[tuple[NodeId, ...], list[Span]] = defaultdict(list)

    def told(self, node: NodeId, peer: NodeId, now: float) -> None:
        """A node learns that it is connected to a peer."""
        self._told.add((node, peer))
        if (peer, node) in self._told:
            self._open_since.setdefault(_pair(node, peer), now)

    def dropped(self, a: NodeId, b: NodeId, now: float) -> None:
        """Their connection is gone."""
        self._told -= {(a, b), (b, a)}
        since = self._open_since.pop(_pair(a, b), None)
        if since is not None:
            self._was_open[_pair(a, b)].append((since, now))

    def hindered(self, who: tuple[NodeId, ...], start: float, end: float) -> None:
        """Something is wrong with a node, or between two."""
        self._hindered[who if len(who) == 1 else _pair(*who)].append((start, end))

    def well(self, node: NodeId, start: float, end: float) -> bool:
        """Whether nothing was wrong with a node."""
        return not _overlaps(self._hindered.get((node,), ()), start, end)

    def reached(self, a: NodeId, b: NodeId, start: float, end: float) -> bool:
        """Whether they could exchange frames all the while."""
        pair = _pair(a, b)
        spans = [*self._was_open.get(pair, ()), (self._open_since.get(pair, math.inf), math.inf)]
        is_open = any(since <= start and end <= until for since, until in spans)
        clear = not _overlaps(self._hindered.get(pair, ()), start, end)
        return is_open and clear and self.well(a, start, end) and self.well(b, start, end)


def _pair(a: NodeId, b: NodeId) -> Pair:
    return (a, b) if a < b else (b, a)


def _overlaps(spans: list[Span] | tuple[Span, ...], start: float, end: float) -> bool:
    return any(since <= end and start <= until for since, until in spans)
