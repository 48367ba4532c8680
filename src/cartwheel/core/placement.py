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


Changed = frozenset[tuple[int, int]] | None
"""The parts (n, partition) of which slots may be others than in the view before. None: all."""


class Placement:
    """The ring, and who holds what of it. Immutable."""

    def __init__(
        self,
        ring: Ring,
        founding: Ring,
        removed: frozenset[NodeId],
        holdings: Mapping[NodeId, Holding],
        begun: Mapping[int, Ring] = NO_RINGS,
        before: Placement | None = None,
    ) -> None:
        """``begun``: n -> the ring at the time when a bucket first had it; for an n that is not there it is the founding one.
        ``before``: the view that this one follows; most often one node has given or gained a few partitions, and all else
        stays."""
        self.ring = ring
        self._begun = begun
        self.removed = removed
        self._founding = founding
        self._holdings = {node: holding for node, holding in holdings.items() if node not in removed}
        self._given = [(node, holding) for node, holding in sorted(self._holdings.items()) if holding.given]
        self._slots: dict[tuple[int, int], Slots] = {}
        self._maps: dict[tuple[NodeId, int], bytes] = {}
        self._said: dict[tuple[NodeId, int], bytes] = {}
        known = (founding.members.keys() | self._holdings.keys()) - removed - ring.members.keys()
        self.leaving = tuple(node for node in sorted(known) if node not in holdings or not holdings[node].left)
        """Those that are no members any more, but have not said that they are gone."""
        self.peers = frozenset((*ring.members, *self.leaving))
        """Everyone who takes part."""
        self.changed: Changed = self._take_over(before) if before is not None else None

    def _take_over(self, before: Placement) -> Changed:
        """What of the view before holds in this one, too. Slots are what they were where no node holds otherwise: looking for
        them goes from node to node, and would ask the same ones again."""
        same = self.ring is before.ring and self.removed == before.removed and self.leaving == before.leaving
        if not same or self._founding is not before._founding or self._begun != before._begun:
            return None
        affected = {
            node
            for node in self._holdings.keys() | before._holdings.keys()
            if self._holdings.get(node) is not before._holdings.get(node)
        }
        for node in list(affected):
            for holding in (self._holdings.get(node), before._holdings.get(node)):
                if holding is not None:
                    affected.update(gainer for by_gainer in holding.given.values() for gainer in by_gainer)
        self._said = {at: said for at, said in before._said.items() if at[0] not in affected}
        self._maps = {at: held for at, held in before._maps.items() if at[0] not in affected}
        bits: dict[int, int] = {}
        for (node, n), was in before._maps.items():
            if node in affected:
                differ = int.from_bytes(was, "little") ^ int.from_bytes(self._held(node, n), "little")
                bits[n] = bits.get(n, 0) | differ
        self._slots = before._slots.copy()
        changed = frozenset((n, partition) for n, found in bits.items() for partition in _set_bits(found))
        for n, partition in changed:
            self._slots.pop((partition, n), None)
        return changed

    # --- who holds what ---

    def holds(self, node: NodeId, n: int, partition: int) -> bool:
        """Whether the node has all records of the partition for buckets of this n, or was told so by who gave it."""
        held = self._maps.get((node, n)) or self._held(node, n)
        return bool(held[partition >> 3] >> (partition & 7) & 1)

    def held(self, node: NodeId, n: int) -> bytes:
        """All that ``holds`` says of a node, as a bitmap."""
        return self._maps.get((node, n)) or self._held(node, n)

    def says(self, node: NodeId, n: int, partition: int) -> bool:
        """Whether the node itself says that it holds this."""
        at = node, n
        said = self._said.get(at)
        if said is None:
            holding = self._holdings.get(node)
            if holding is None:
                bits = self._had(node, n)
            else:
                data = holding.held.get(n)
                bits = 0 if data is None else self._fit(data, holding.q)
            said = self._said[at] = self._packed(bits)
        return bool(said[partition >> 3] >> (partition & 7) & 1)

    def _held(self, node: NodeId, n: int) -> bytes:
        bits = 0
        if node not in self.removed:
            holding = self._holdings.get(node)
            data = None if holding is None else holding.held.get(n)
            if holding is None or data is None:  # it has not told of this n
                bits = self._had(node, n)
            else:
                bits = self._fit(data, holding.q)
            seen = {} if holding is None else holding.seen
            for giver, giving in self._given:
                for version, gift in giving.given.get(n, {}).get(node, ()):
                    if version > seen.get(giver, 0):
                        bits |= self._fit(gift, giving.q)
        held = self._maps[node, n] = self._packed(bits)
        return held

    def _had(self, node: NodeId, n: int) -> int:
        """What the node owned when there first was something to hold: a bitmap."""
        ring, q = self._begun.get(n, self._founding), self.ring.q
        if node not in ring.members:
            return 0
        owned = {partition for partition in range(q) if node in ring.owners_of(partition * ring.q // q, n)}
        return int.from_bytes(bitmap(owned, q), "little")

    def _fit(self, data: bytes, q: int) -> int:
        """A bitmap of q partitions as one of the present ring, which may be finer, or coarser than the teller's."""
        ours = self.ring.q
        if q == ours:
            return int.from_bytes(data, "little")
        if q < ours:
            return int.from_bytes(recut(data, q, ours), "little")
        bits, parts = int.from_bytes(data, "little"), q // ours
        whole = (1 << parts) - 1
        fitting = {partition for partition in range(ours) if bits >> partition * parts & whole == whole}
        return int.from_bytes(bitmap(fitting, ours), "little")

    def _packed(self, bits: int) -> bytes:
        q = self.ring.q
        return (bits & (1 << q) - 1).to_bytes((q + 7) // 8, "little")

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
    return set(_set_bits(int.from_bytes(data, "little")))


def _set_bits(bits: int) -> list[int]:
    """The places of the ones."""
    return [at for at, one in enumerate(reversed(f"{bits:b}")) if one == "1"] if bits else []


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
