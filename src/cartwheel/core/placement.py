"""Who counts for a key while the ring changes: hand-over per partition (section 4.9; design: hand-over).

The **ring** says who is to own a partition. A node that is to own it, but does not hold its records yet, must not be counted: its
"never heard of it" would be false. So each node tells what it **holds** (``Holding``: one bitmap for each n in use; gossiped, and
written by that node alone), and the slots of a partition follow from both::

    ring says    A  B  C  G     n = 4        held by A, B, C and L
    slots        A  B  C  L+G                L keeps its slot, G stands beside it

- A **settled** slot: an owner that holds the partition.
- A **pair** ``L+G``: the giver L, which holds it but is to own it no more, and the gainer G. Writes go to both and count once
  both have it; reads ask L.
- A **blank** owner gains a slot that nobody gives: the cluster was smaller than n, or the giver was removed. It is sent all
  writes, and counts for nothing: until it is caught up the cluster is as small as before.

When G has caught up, L says so in its own holding (``given``), in one step with giving up the partition: from this moment L is no
owner in its own eyes. Which nodes know that is told by the **tag**, a digest of the slots: a coordinator counts a node's answer
only if that node sees the key's slots as the coordinator does (``coordinator``). So a write or read by the old slots cannot be
completed by L any more, and nobody else needs to be asked before G counts. A blank owner must be known to all who hold the
partition before it counts (``transfer``).

Why R + W > N stays good. Two coordinators with different views agree on all nodes but those of the pair. The one with the older
view cannot count L, once L has given; before that, each write that counted the pair's slot is on G as well.

Founding members hold from the start what the founding ring gives them. Of an n that a holding does not mention (no bucket had it
yet) a node holds what the ring gave it when a bucket first had this n. Where the n of a bucket is raised that has records already
by then, anti-entropy fills the new owners.

Invariants: a slot's owner holds the partition, unless nobody does; no node is in two slots; equal views give equal tags.

Pure data. ``slots`` is computed once for each partition, n and view; then a look-up.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from typing import NamedTuple

import msgspec

from cartwheel.core.errors import CorruptData
from cartwheel.core.ring import Ring
from cartwheel.core.types import NodeId

LEVELS_MAX = 64
"""Different n in one holding: more come from no node of ours."""


class Holding(msgspec.Struct, frozen=True, array_like=True):
    """What a node says that it holds. Only that node makes a later one: the higher version replaces the lower."""

    node: NodeId
    version: int
    q: int
    held: dict[int, bytes]
    """n -> bitmap, one bit for each of q partitions, the first partition in the lowest bit, little endian."""
    given: dict[int, dict[NodeId, list[tuple[int, bytes]]]] = {}
    """n -> gainer -> what was handed over to it, each with the version of this holding that told so first; until the gainer has
    ``seen`` that."""
    left: bool = False
    """It has left the ring, and has nothing left over: it is gone."""
    seen: dict[NodeId, int] = {}
    """Giver -> the version of its holding up to which what it gave to this node is in ``held``, or was given away since."""


class Slots(NamedTuple):
    """Who takes part in the requests for a partition, at one n."""

    owners: tuple[NodeId, ...]
    """One for each slot that counts: who is asked to read."""
    gainers: dict[NodeId, NodeId]
    """Giver -> gainer, of the pairs."""
    blanks: tuple[NodeId, ...]
    tag: int
    """Never 0."""

    @property
    def writers(self) -> tuple[NodeId, ...]:
        """All that are sent writes."""
        return (*self.owners, *self.gainers.values(), *self.blanks) if self.moving else self.owners

    @property
    def moving(self) -> bool:
        """Whether anybody gains the partition."""
        return bool(self.gainers or self.blanks)


NOBODY: dict[NodeId, NodeId] = {}
"""Shared, never changed."""


NO_RINGS: dict[int, Ring] = {}


class Placement:
    """The ring, and who holds what of it. Immutable."""

    def __init__(
        self,
        ring: Ring,
        founding: Ring,
        removed: frozenset[NodeId],
        holdings: Mapping[NodeId, Holding],
        begun: Mapping[int, Ring] = NO_RINGS,
    ) -> None:
        """``begun``: n -> the ring at the time when a bucket first had it; for an n that is not there it is the founding one."""
        self.ring = ring
        self._begun = begun
        self.removed = removed
        self._founding = founding
        self._holdings = {node: holding for node, holding in holdings.items() if node not in removed}
        self._given = [(node, holding) for node, holding in sorted(self._holdings.items()) if holding.given]
        self._slots: dict[tuple[int, int], Slots] = {}
        self._bits: dict[tuple[NodeId, int], int | None] = {}
        known = (founding.members.keys() | self._holdings.keys()) - removed - ring.members.keys()
        self.leaving = tuple(node for node in sorted(known) if node not in holdings or not holdings[node].left)
        """Those that are no members any more, but have not said that they are gone."""
        self.peers = frozenset((*ring.members, *self.leaving))
        """Everyone who takes part."""

    # --- who holds what ---

    def holds(self, node: NodeId, n: int, partition: int) -> bool:
        """Whether the node has all records of the partition for buckets of this n, or was told so by who gave it."""
        if node in self.removed:
            return False
        holding = self._holdings.get(node)
        bits = None if holding is None else self._bitmap(holding, n)
        if holding is None or bits is None:  # it has not told of this n
            if self._had(node, n, partition):
                return True
        elif self._bit(bits, holding.q, partition):
            return True
        return any(self._gave(other, n, node, partition) for _, other in self._given)

    def says(self, node: NodeId, n: int, partition: int) -> bool:
        """Whether the node itself says that it holds this."""
        holding = self._holdings.get(node)
        if holding is None:
            return self._had(node, n, partition)
        bits = self._bitmap(holding, n)
        return bits is not None and self._bit(bits, holding.q, partition)

    def _had(self, node: NodeId, n: int, partition: int) -> bool:
        """Whether the node owned this when there first was something to hold."""
        ring = self._begun.get(n, self._founding)
        return node in ring.owners_of(partition * ring.q // self.ring.q, n)

    def _bitmap(self, holding: Holding, n: int) -> int | None:
        at = (holding.node, n)
        if at not in self._bits:
            data = holding.held.get(n)
            self._bits[at] = None if data is None else int.from_bytes(data, "little")
        return self._bits[at]

    def _bit(self, bits: int, q: int, partition: int) -> bool:
        """The bit of a partition, in a bitmap of a ring that may have been half as fine, or finer than we know."""
        ours = self.ring.q
        if q <= ours:
            return bool(bits >> (partition * q // ours) & 1)
        parts = q // ours
        whole = (1 << parts) - 1
        return bits >> partition * parts & whole == whole

    def _gave(self, holding: Holding, n: int, gainer: NodeId, partition: int) -> bool:
        known = self._holdings.get(gainer)
        seen = 0 if known is None else known.seen.get(holding.node, 0)
        return any(
            version > seen and self._bit(int.from_bytes(data, "little"), holding.q, partition)
            for version, data in holding.given.get(n, {}).get(gainer, ())
        )

    # --- slots ---

    def slots(self, partition: int, n: int) -> Slots:
        """Who takes part in the requests for this partition, for buckets of this n."""
        found = self._slots.get((partition, n))
        if found is None:
            found = self._slots[partition, n] = self._find_slots(partition, n)
        return found

    def _find_slots(self, partition: int, n: int) -> Slots:
        due = self.ring.owners_of(partition, n)
        missing = [node for node in due if not self.holds(node, n, partition)]
        if not missing:
            return Slots(due, NOBODY, (), _tag(due, NOBODY, ()))
        givers = iter(
            [node for node in self._others(partition, n) if self.holds(node, n, partition)],
        )
        owners: list[NodeId] = []
        gainers: dict[NodeId, NodeId] = {}
        blanks: list[NodeId] = []
        for node in due:
            if node not in missing:
                owners.append(node)
            elif (giver := next(givers, None)) is not None:
                owners.append(giver)
                gainers[giver] = node
            else:
                blanks.append(node)
        if not owners:
            owners, blanks = blanks, []  # nobody holds it: nobody has anything better
        slots = tuple(owners), gainers or NOBODY, tuple(blanks)
        return Slots(*slots, _tag(*slots))

    def _others(self, partition: int, n: int) -> tuple[NodeId, ...]:
        """Everyone but those who are to own it, members first, in the order of the preference list."""
        return (*self.ring.preference(partition)[n:], *self.leaving)

    def fallbacks(self, partition: int, n: int) -> tuple[NodeId, ...]:
        """Who stands in for owners that cannot be asked, in this order: the members that have no part in the partition; then
        those that gain it."""
        slots = self.slots(partition, n)
        due = self.ring.preference(partition)
        if not slots.moving:
            return tuple(node for node in due if node not in slots.owners)
        pure = [node for node in due if node not in slots.writers]
        return (*pure, *slots.gainers.values(), *slots.blanks)


def _tag(owners: tuple[NodeId, ...], gainers: Mapping[NodeId, NodeId], blanks: tuple[NodeId, ...]) -> int:
    """A digest of the slots in which the order of owners does not matter."""
    text = ",".join([*sorted(f"{owner}+{gainers.get(owner, '')}" for owner in owners), *sorted(blanks)])
    return zlib.crc32(f"{len(blanks)};{text}".encode()) or 1


# --- bitmaps ----------------------------------------------------------------------------------------------------------


def bitmap(partitions: set[int], q: int) -> bytes:
    """A holding's bitmap of these partitions."""
    bits = 0
    for partition in partitions:
        bits |= 1 << partition
    return bits.to_bytes((q + 7) // 8, "little")


def partitions_of(data: bytes) -> set[int]:
    """The partitions in a bitmap."""
    bits, found, at = int.from_bytes(data, "little"), set(), 0
    while bits:
        step = (bits & -bits).bit_length() - 1
        at += step
        found.add(at)
        bits >>= step + 1
        at += 1
    return found


def recut(data: bytes, q: int, finer: int) -> bytes:
    """The same bitmap for a ring of ``finer`` partitions."""
    if q == finer:
        return data
    parts = finer // q
    return bitmap({partition * parts + i for partition in partitions_of(data) for i in range(parts)}, finer)


def check_holding(holding: Holding) -> Holding:
    """Refuse a holding that cannot be.

    Raises:
        CorruptData: it is from no node of ours.
    """
    q = holding.q
    most = (q + 7) // 8
    given = (gifts for each in holding.given.values() for gifts in each.values())
    maps = [*holding.held.values(), *(data for gifts in given for _, data in gifts)]
    if not 1 <= q <= 65536 or q & (q - 1) or holding.version < 0 or len(holding.held) > LEVELS_MAX:
        raise CorruptData(f"{holding.node!r} holds what no node can hold")
    if any(len(data) > most for data in maps) or any(not 1 <= n <= 255 for n in (*holding.held, *holding.given)):
        raise CorruptData(f"{holding.node!r} holds partitions that do not exist")
    return holding
