"""The strategies of Dynamo's section 6.2, and the ring that Cartwheel makes: each gives a ``Placement``, who holds which keys.

Nodes are numbers from 0. A node's load is the width of the ranges that it holds as one of the n on their lists (the package has
the drawings). All functions are pure; whoever calls brings the generator.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from random import Random
from typing import Final

from cartwheel.core.ring.claim import claim

RING_BITS: Final = 64
"""Tokens are drawn with so many bits. The ring itself has 128; no figure here depends on the difference."""

Tokens = list[tuple[int, int]]
"""(position, node), sorted."""


@dataclass(frozen=True, slots=True)
class Placement:
    """Ranges of the ring, in its order, and who holds each. Invariants: widths and lists are alike in number, every list names n
    different nodes below ``nodes``; integers throughout, so loads add up exactly."""

    nodes: int
    widths: Sequence[int]  # of the ranges, in whatever unit; the ring is their sum
    lists: Sequence[tuple[int, ...]]

    def loads(self) -> list[int]:
        """The width that each node holds. They add up to n times the ring."""
        loads = [0] * self.nodes
        for width, holders in zip(self.widths, self.lists, strict=True):
            for node in holders:
                loads[node] += width
        return loads

    def efficiency(self) -> float:
        """Load balancing efficiency (section 6.2): mean load to the highest, above 0, and 1 if all are alike."""
        loads = self.loads()
        return sum(loads) / (self.nodes * max(loads))


def draw_tokens(nodes: int, tokens: int, random: Random) -> Tokens:
    """Give each node so many tokens at random positions."""
    return sorted((random.getrandbits(RING_BITS), node) for node in range(nodes) for _ in range(tokens))


def _distinct(owners: tuple[int, ...], at: int, n: int) -> tuple[int, ...]:
    """The first n different owners from ``at`` on. The caller sees to it that there are so many."""
    next_n = owners[at : at + n]
    if len(set(next_n)) == n:  # nine times out of ten, at 30 nodes
        return next_n
    found: list[int] = []
    while len(found) < n:
        owner = owners[at]
        if owner not in found:
            found.append(owner)
        at += 1
    return tuple(found)


def strategy_1(nodes: int, n: int, tokens: Tokens) -> Placement:
    """Random tokens, and partitions between them: token i is the end of range i."""
    positions = [position for position, _ in tokens]
    widths = [end - start for start, end in pairwise(positions)]
    widths.insert(0, positions[0] + (1 << RING_BITS) - positions[-1])  # the range that goes round the end of the ring
    owners = tuple([node for _, node in tokens]) * 2
    return Placement(nodes, widths, [_distinct(owners, i, n) for i in range(len(tokens))])


def strategy_2(nodes: int, n: int, tokens: Tokens, q: int) -> Placement:
    """Random tokens that only order the nodes; a partition goes to the first n nodes met clockwise from its end."""
    positions = [position for position, _ in tokens]
    owners = tuple([node for _, node in tokens]) * 2
    ends = [(partition + 1 << RING_BITS) // q for partition in range(q)]
    return Placement(nodes, [1] * q, [_distinct(owners, bisect_left(positions, end), n) for end in ends])


def strategy_3(nodes: int, n: int, tokens: int, random: Random) -> Placement:
    """Equal partitions, ``tokens`` of them to each node, shuffled: the paper's random assignment. q is nodes * tokens."""
    owners = [node for node in range(nodes) for _ in range(tokens)]
    random.shuffle(owners)
    return owned(nodes, n, owners)


def owned(nodes: int, n: int, owners: Sequence[int]) -> Placement:
    """Strategy 3 for given owners of the partitions: a partition's own node first, then those of the partitions that follow.

    It is what ``core.ring.Ring.preference`` says for nodes of one zone on hosts of their own; a test compares the two.
    """
    q = len(owners)
    twice = (*owners, *owners)
    return Placement(nodes, [1] * q, [_distinct(twice, partition, n) for partition in range(q)])


def founded(nodes: int, n: int, q: int) -> Placement:
    """Strategy 3 as Cartwheel does it, the nodes being the first members of a new cluster: one claim. Takes q >= nodes."""
    return owned(nodes, n, claim([-1] * q, [1] * nodes, [(0, node) for node in range(nodes)]))


def grown(nodes: int, n: int, q: int) -> Placement:
    """The same when the nodes join one by one: each join moves as little as it can, and what is uneven by then adds up."""
    owners = [-1] * q
    for members in range(1, nodes + 1):
        owners = claim(owners, [1] * members, [(0, node) for node in range(members)])
    return owned(nodes, n, owners)
