"""Of which requests promise P3 speaks: "every write that reaches a node with W reachable succeeds" (design §1; paper §4.6).

A request is **served** if, from its sending to its end, the node asked was up, and at least W nodes (itself among them) were up
and could be reached from it in both directions. What the nemesis did is known: ``Away`` says when a process was dead, stopped or
starting, ``Fault.links`` which directions were cut. A split that comes and goes counts as cut all the time.

No time is allowed for noticing: a request that is sent in the very moment in which the last link is up again counts.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Sequence
from functools import cache

from cartwheel.chaos.history import Away, Direction, Fault
from cartwheel.core.types import NodeId


class Premise:
    """The state of the cluster over time, as stretches in which nothing changed."""

    def __init__(self, nodes: Sequence[NodeId], w: int, faults: Iterable[Fault], aways: Iterable[Away]) -> None:
        self._nodes = tuple(nodes)
        self._w = w
        self._aways = tuple(aways)
        self._cuts = tuple(fault for fault in faults if fault.links)
        spans = [(away.start, away.end) for away in self._aways] + [(fault.start, fault.end) for fault in self._cuts]
        self._edges = sorted({edge for span in spans for edge in span})
        self._reach = cache(self._reach_during)

    def serves(self, node: NodeId, start: float, end: float) -> bool:
        """Whether ``node`` was up and reached W nodes, all the time from ``start`` to ``end``."""
        first = bisect_left(self._edges, start) - 1
        last = bisect_right(self._edges, end) - 1
        return self._reach(node, first, last) >= self._w

    def _reach_during(self, node: NodeId, first: int, last: int) -> int:
        """How many nodes ``node`` reached, itself among them, throughout the stretches ``first`` to ``last``."""
        edges = self._edges
        start = edges[first] if first >= 0 else float("-inf")
        end = edges[last + 1] if last + 1 < len(edges) else float("inf")
        away = {each.node for each in self._aways if each.start < end and each.end > start}
        if node in away:
            return 0
        cut: set[Direction] = set()
        for fault in self._cuts:
            if fault.start < end and fault.end > start:
                cut.update(fault.links)
        others = (other for other in self._nodes if other != node and other not in away)
        return 1 + sum((node, other) not in cut and (other, node) not in cut for other in others)
