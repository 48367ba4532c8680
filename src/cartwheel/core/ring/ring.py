"""Where a key lies, who holds it, and how the history of changes becomes a ring.

**Preference list** (section 4.3: "skipping positions in the ring to ensure that the list contains only distinct physical
nodes"; section 4.6: "spread across multiple data centers"). One list per partition serves every n: its first n entries are the
replicas, the rest are the fallbacks in order. Walk clockwise from the partition and meet every node once. Then deal in rounds,
each round in the order met: first one node of each zone; then for each zone a second host, then a third, and so on until all
hosts are used; then the second node of each host, zone by zone in the same manner; and so on. So *every* prefix has as many
zones as it can, with those as many hosts, and its nodes are even over the zones: with two zones, n = 4 keeps two replicas
through the loss of either. The first entry is always the token's owner. A host belongs to its zone: equal host names in two zones
are two hosts. Nodes that own no token (more nodes than tokens) are met last, from a different one for each partition.

A position is cheap (about a microsecond) and so is looking up a list (a tenth of that): both are on the path of every request.
A list is made when first asked for, in O(q + members).
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterable, Mapping
from typing import Final

import msgspec

from cartwheel.core.ring.claim import claim
from cartwheel.core.ring.history import NAME_BYTES_MAX, Change, ChangeKind, History, Member
from cartwheel.core.types import NodeId

Q_MAX: Final = 65536
"""``partition_of`` reads two bytes of the position. At 64 tokens per node it suffices for a thousand nodes."""

RINGS_MAX: Final = 8
"""Rings that ``fold`` remembers. One would do for a node; a simulation has nodes at different epochs in one process."""

_rings: Final[dict[bytes, Ring]] = {}
"""Digest of the changes that made it -> ring; oldest first. A memory only: forgetting costs time and changes nothing."""

_POSITION_BITS: Final = 128

try:  # CPython's own: half the time of OpenSSL's through hashlib, and allowed where a security policy bars that one
    from _md5 import md5  # type: ignore[import-not-found,unused-ignore]
except ImportError:
    md5 = functools.partial(hashlib.md5, usedforsecurity=False)


@functools.lru_cache(maxsize=1024)
def _prefix(bucket: str) -> bytes:
    """What stands before a key in its full name: the bucket's length (one byte) and the bucket (UTF-8).

    The length keeps ("a", b"bc") apart from ("ab", b"c").
    """
    name = bucket.encode()
    if len(name) > NAME_BYTES_MAX:
        raise ValueError(f"the bucket's name is {len(name)} bytes long; at most {NAME_BYTES_MAX} are allowed")
    return bytes((len(name),)) + name


def position(bucket: str, key: bytes) -> bytes:
    """Where a key lies on the ring: 16 bytes, the MD5 of bucket and key (section 4.1). It spreads keys; it protects nothing."""
    return record_key(bucket, key)[:16]


def record_key(bucket: str, key: bytes) -> bytes:
    """A key's position, then its full name: the key under which its record is stored, in ring order."""
    name = _prefix(bucket) + key
    digest: bytes = md5(name).digest()
    return digest + name


class Ring:
    """Who owns each token, and the preference lists that follow. Immutable; built by ``fold``."""

    __slots__ = ("_lists", "_shift", "_spare", "_twice", "members", "owners", "q")

    q: int  # Invariant: a power of two, 1 <= q <= Q_MAX
    members: dict[NodeId, Member]  # sorted by id; not to be changed
    owners: tuple[NodeId, ...]  # token -> owner. Invariant: q long; all "" if, and only if, there are no members

    def __init__(self, q: int, members: Mapping[NodeId, Member], owners: tuple[NodeId, ...]) -> None:
        """Every owner must be a member.

        Raises:
            ValueError: ``q`` is not a power of two up to ``Q_MAX``.
        """
        if not 1 <= q <= Q_MAX or q & (q - 1):
            raise ValueError(f"q must be a power of two from 1 to {Q_MAX}, not {q}")
        assert len(owners) == q, "one owner per token"
        assert set(owners) <= (members.keys() or {""}), "every token has a member for its owner"
        self.q = q
        self.members = {node: members[node] for node in sorted(members)}
        self.owners = owners
        self._shift = 16 - (q.bit_length() - 1)
        self._twice = owners * 2
        owning = set(owners)
        self._spare = [node for node in self.members if node not in owning]
        self._lists: list[tuple[NodeId, ...] | None] = [None] * q

    def partition_of(self, position: bytes) -> int:
        """The partition that a position lies in: its top log2(q) bits."""
        return (position[0] << 8 | position[1]) >> self._shift

    def bounds(self, partition: int) -> tuple[bytes, bytes | None]:
        """The first position of the partition, and the first after it: None behind the last one."""
        assert 0 <= partition < self.q, "no such partition"
        width = _POSITION_BITS - (self.q.bit_length() - 1)
        first = (partition << width).to_bytes(16, "big")
        return first, ((partition + 1) << width).to_bytes(16, "big") if partition + 1 < self.q else None

    def preference(self, partition: int) -> tuple[NodeId, ...]:
        """All members in the order in which they are asked to hold the partition: the first n are its replicas."""
        found = self._lists[partition]
        if found is None:
            found = self._lists[partition] = self._walk(partition)
        return found

    def _walk(self, partition: int) -> tuple[NodeId, ...]:
        """Meet every node clockwise from the partition, then deal them out in rounds (see the module)."""
        if not self.members:
            return ()
        met = list(dict.fromkeys(self._twice[partition : partition + self.q]))
        if spare := self._spare:
            turn = partition % len(spare)
            met += spare[turn:] + spare[:turn]
        nth_of_host: dict[tuple[str, str], int] = {}
        nth_of_zone: dict[tuple[str, int], int] = {}
        rounds: list[tuple[int, int, int]] = []
        for order, node in enumerate(met):
            member = self.members[node]
            host = (member.zone, member.host)
            nth = nth_of_host[host] = nth_of_host.get(host, -1) + 1
            zone = (member.zone, nth)
            turn = nth_of_zone[zone] = nth_of_zone.get(zone, -1) + 1
            rounds.append((nth, turn, order))
        rounds.sort()
        return tuple([met[order] for _, _, order in rounds])

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Ring):
            return NotImplemented
        return (self.q, self.members, self.owners) == (other.q, other.members, other.owners)

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"Ring(q={self.q}, {len(self.members)} members)"


class Folded(msgspec.Struct, frozen=True):
    """What a history amounts to."""

    ring: Ring
    removed: frozenset[NodeId]  # ids that may never join again
    buckets: dict[str, dict[str, str]]  # bucket -> property -> value, as last set


def fold(q: int, changes: Iterable[Change]) -> Folded:
    """Apply all changes in (at, id) order, whatever order they come in, to an empty ring of ``q`` partitions.

    The last few rings are remembered by the changes that made them. So a bucket's change costs no claim, a change at the end of a
    long history costs one, and the nodes of a simulation share their rings.

    Raises:
        ValueError: ``q`` is not a power of two up to ``Q_MAX``.
    """
    history = changes if isinstance(changes, History) else History(changes)
    ring = Ring(q, {}, ("",) * q)
    members: dict[NodeId, Member] = {}
    removed: set[NodeId] = set()
    buckets: dict[str, dict[str, str]] = {}
    steps: list[tuple[bytes, dict[NodeId, Member]]] = []  # after each effective change: what led here, and the members
    trail = hashlib.blake2b(q.to_bytes(4, "big"), digest_size=32)
    for record, change in history.records():
        if change.kind is ChangeKind.BUCKET:
            buckets.setdefault(change.bucket, {}).update(change.props)
        elif _apply(change, members, removed):
            trail.update(record)
            steps.append((trail.digest(), dict(members)))
    done = next((i for i in range(len(steps), 0, -1) if steps[i - 1][0] in _rings), 0)
    if done:
        ring = _rings[steps[done - 1][0]]
    owners = ring.owners
    for _, at_the_time in steps[done:]:
        owners = _claimed(owners, at_the_time)
    if done < len(steps):
        ring = _rings[steps[-1][0]] = Ring(q, members, owners)
        while len(_rings) > RINGS_MAX:
            del _rings[next(iter(_rings))]
    return Folded(ring, frozenset(removed), {name: buckets[name] for name in sorted(buckets)})


def _apply(change: Change, members: dict[NodeId, Member], removed: set[NodeId]) -> bool:
    """Carry out one change of membership. Returns whether the members are any different."""
    node = change.subject
    present = members.get(node)
    if change.kind is ChangeKind.REMOVE:
        removed.add(node)
    if change.member is not None:
        if node in removed:
            return False
        members[node] = change.member  # if present: its machine moved; the claim will find no token to move
        if present is not None:
            members[node] = msgspec.structs.replace(change.member, weight=present.weight)
    elif present is None:
        return False
    elif change.kind is ChangeKind.REWEIGH:
        members[node] = msgspec.structs.replace(present, weight=change.weight)
    else:
        del members[node]
    return True


def _claimed(owners: tuple[NodeId, ...], members: Mapping[NodeId, Member]) -> tuple[NodeId, ...]:
    """The owners after the members became these: ``claim`` in terms of nodes."""
    nodes = sorted(members)
    if not nodes:
        return ("",) * len(owners)
    number = {node: i for i, node in enumerate(nodes)}
    zones: dict[str, int] = {}
    hosts: dict[tuple[str, str], int] = {}
    places = []
    for node in nodes:
        zone, host = members[node].zone, members[node].host
        places.append((zones.setdefault(zone, len(zones)), hosts.setdefault((zone, host), len(hosts))))
    weights = [round(members[node].weight * 1000) for node in nodes]
    return tuple([nodes[i] for i in claim([number.get(owner, -1) for owner in owners], weights, places)])
