"""Of which requests promise P3 speaks: "every write that reaches a node with W reachable succeeds" (design §1; paper §4.6).

A request is **served** if, from its sending to its end, the node asked was up, and at least W nodes (itself among them) were up,
had room on their disks, and could be reached from it in both directions. What the nemesis did is known: ``Away`` says when a
process was dead, stopped or starting, or its node no member (of one that leaves: from the commit on), ``Fault.links`` which
directions were cut, and a disk is full while it is filled. A split that comes and goes counts as cut all the time.

No time is allowed for noticing, but that a disk has room again (``ROOM_S``): a request that is sent in the very moment in which
the last link is up again counts.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Sequence
from functools import cache

from cartwheel.chaos.history import Away, Direction, Fault
from cartwheel.chaos.nemesis import Nemesis
from cartwheel.core.types import NodeId

ROOM_S = 2.0
"""A node looks at its disk once a second, and tells the others as often."""


class Premise:
    """The state of the cluster over time, as stretches in which nothing changed."""

    def __init__(self, nodes: Sequence[NodeId], w: int, faults: Sequence[Fault], aways: Iterable[Away]) -> None:
        self._nodes = tuple(nodes)
        self._w = w
        self._aways = tuple(aways)
        self._cuts = tuple(fault for fault in faults if fault.links)
        self._full = tuple(
            Away(node, fault.start, fault.end + ROOM_S)
            for fault in faults
            for node in fault.nodes
            if fault.kind == Nemesis.FILL
        )
        spans = [(each.start, each.end) for each in self._aways + self._full]
        spans += [(each.start, each.end) for each in self._cuts]
        self._edges = sorted({edge for span in spans for edge in span})
        self._reach = cache(self._reach_during)

    def serves(self, node: NodeId, start: float, end: float) -> bool:
        """Whether ``node`` was up and reached W nodes, all the time from ``start`` to ``end``."""
        first = bisect_left(self._edges, start) - 1
        last = bisect_right(self._edges, end) - 1
        return self._reach(node, first, last) >= self._w

    def _reach_during(self, node: NodeId, first: int, last: int) -> int:
        """How many nodes that take writes ``node`` reached, itself among them, throughout the stretches ``first`` to ``last``."""
        edges = self._edges
        start = edges[first] if first >= 0 else float("-inf")
        end = edges[last + 1] if last + 1 < len(edges) else float("inf")
        away = _within(self._aways, start, end)
        if node in away:
            return 0
        cut: set[Direction] = set()
        for fault in self._cuts:
            if fault.start < end and fault.end > start:
                cut.update(fault.links)
        unable = away | _within(self._full, start, end)
        able = (each for each in self._nodes if each not in unable)
        return sum((node, each) not in cut and (each, node) not in cut for each in able)


def _within(spans: Iterable[Away], start: float, end: float) -> set[NodeId]:
    """Whose spans meet this one."""
    return {each.node for each in spans if each.start < end and each.end > start}
