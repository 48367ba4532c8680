"""Count the answers to one get() or put() and say when the outcome is known.

Dynamo section 4.5: a put() succeeds once ``W`` nodes have answered, a get() once ``R`` have. This is quorum-*like*: the
nodes asked are the first N healthy ones (section 4.6), so ``R + W > N`` does not promise that a get() meets the latest put().
``pr`` and ``pw`` (Riak's) demand that so many of the answers come from **primaries**, the first n of the preference list.

A ``Tally`` is pure. O(1) per answer, O(N) memory per request.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence

from cartwheel.core.types import NodeId


class Outcome(enum.Enum):
    """What the answers so far amount to."""

    PENDING = 0
    MET = 1
    UNREACHABLE = 2
    """Too few nodes are left to answer."""


class Tally:
    """The answers to one request. Invariants: acked and failed are disjoint subsets of asked; an outcome, once known, stays."""

    __slots__ = ("acked", "asked", "failed", "needed", "outcome", "primaries", "primaries_needed")

    def __init__(
        self, asked: Sequence[NodeId], needed: int, *, primaries: Sequence[NodeId] = (), primaries_needed: int = 0
    ) -> None:
        assert needed >= 1
        self.asked = asked
        self.needed = needed
        self.primaries = primaries
        self.primaries_needed = primaries_needed
        self.acked: list[NodeId] = []
        self.failed: dict[NodeId, str] = {}
        self.outcome = Outcome.PENDING

    def ack(self, node: NodeId) -> Outcome:
        """Count a node's success. Only a node's first answer counts: the network may deliver twice."""
        assert node in self.asked, f"an answer from {node}, which was never asked"
        acked = self.acked
        if node not in acked and node not in self.failed:
            acked.append(node)
            if len(acked) >= self.needed and self.outcome is Outcome.PENDING and self._primaries_met():
                self.outcome = Outcome.MET
        return self.outcome

    def fail(self, node: NodeId, reason: str) -> Outcome:
        """Count a node's failure, and why."""
        assert node in self.asked, f"an answer from {node}, which was never asked"
        if node not in self.acked and node not in self.failed:
            self.failed[node] = reason
            if self.outcome is Outcome.PENDING and not self._still_possible():
                self.outcome = Outcome.UNREACHABLE
        return self.outcome

    def add(self, node: NodeId) -> None:
        """One more node is asked, in place of one that does not answer; or one that had failed is asked once more."""
        assert node not in self.acked, f"{node} has answered"
        self.failed.pop(node, None)
        if node not in self.asked:
            self.asked = [*self.asked, node]

    def replace(self, node: NodeId, better: NodeId, *, again: bool) -> Outcome:
        """Count ``better`` in place of ``node``: together they are one copy. ``again``: ``node`` is asked anew."""
        if better not in self.failed:
            self.acked[self.acked.index(node)] = better
            if not again:
                self.failed[node] = f"it stood in for {better}, which has answered"
            if self.outcome is Outcome.PENDING and len(self.acked) >= self.needed and self._primaries_met():
                self.outcome = Outcome.MET
            elif self.outcome is Outcome.PENDING and not self._still_possible():
                self.outcome = Outcome.UNREACHABLE
        return self.outcome

    @property
    def answered(self) -> bool:
        """Whether every node asked has succeeded or failed."""
        return len(self.acked) + len(self.failed) == len(self.asked)

    def waiting(self) -> list[NodeId]:
        """The nodes that have not answered, in the order asked."""
        return [n for n in self.asked if n not in self.acked and n not in self.failed]

    def _primaries_met(self) -> bool:
        need = self.primaries_needed
        return not need or sum(n in self.primaries for n in self.acked) >= need

    def _still_possible(self) -> bool:
        hopeful = [n for n in self.asked if n not in self.failed]
        enough = len(hopeful) >= self.needed
        return enough and sum(n in self.primaries for n in hopeful) >= self.primaries_needed


def effective(wanted: int, n: int, members: int) -> int:
    """R or W in a cluster of fewer nodes than n: n is what there is, and r and w are capped at its majority."""
    if members >= n:
        return wanted
    return min(wanted, members // 2 + 1)
