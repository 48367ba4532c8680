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
A list is made when first asked for. ``preference`` walks on until every member is met, O(q) at worst; ``owners_of`` only until
the first n entries are certain, a few microseconds where zones and hosts are mixed.
"""

from __future__ import annotations

import functools
import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Final, NamedTuple

import msgspec

from cartwheel.core.errors import CorruptData
from cartwheel.core.ring.claim import REPLICAS, claim
from cartwheel.core.ring.history import NAME_BYTES_MAX, Change, ChangeKind, History, Member
from cartwheel.core.types import NodeId

Q_MAX: Final = 65536
"""``partition_of`` reads two bytes of the position. At 64 tokens per node it suffices for a thousand nodes."""

RINGS_MAX: Final = 8
"""Rings that ``fold`` remembers. One would do for a node; a simulation has nodes at different epochs in one process."""

FOLD_VERSION: Final = b"cartwheel ring 1"
"""Goes up when the same history gives another ring than before, so that a snapshot of the older way does not fit."""

_CHECK_BYTES: Final = 16

_rings: Final[dict[bytes, Ring]] = {}
"""Digest of the changes that made it -> ring, by last use. A memory only: forgetting costs time and changes nothing."""

_CLAIMING: Final = (ChangeKind.JOIN, ChangeKind.LEAVE, ChangeKind.REMOVE, ChangeKind.REWEIGH)
"""After these the nodes claim tokens. A relocation, a replacement and a doubling leave every token with its data."""

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

    __slots__ = (
        "_firsts",
        "_lists",
        "_place",
        "_rounds",
        "_shift",
        "_spare",
        "_twice",
        "doublings",
        "members",
        "owners",
        "q",
    )

    q: int  # Invariant: a power of two, 1 <= q <= Q_MAX
    members: dict[NodeId, Member]  # sorted by id; not to be changed
    owners: tuple[NodeId, ...]  # token -> owner. Invariant: q long; all "" if, and only if, there are no members
    doublings: int  # how often q was doubled since the founding

    def __init__(
        self, q: int, members: Mapping[NodeId, Member], owners: tuple[NodeId, ...], doublings: int = 0
    ) -> None:
        """Every owner must be a member.

        Raises:
            ValueError: ``q`` is not a power of two up to ``Q_MAX``.
        """
        if not 1 <= q <= Q_MAX or q & (q - 1):
            raise ValueError(f"q must be a power of two from 1 to {Q_MAX}, not {q}")
        assert len(owners) == q, "one owner per token"
        owning = set(owners)
        assert owning <= (members.keys() or {""}), "every token has a member for its owner"
        assert 0 <= doublings < q.bit_length(), "the founding ring had a partition at least"
        self.q = q
        self.members = {node: members[node] for node in sorted(members)}
        self.owners = owners
        self.doublings = doublings
        self._shift = 16 - (q.bit_length() - 1)
        self._twice = owners * 2
        self._spare = [node for node in self.members if node not in owning]
        self._place = {node: ((m.zone, m.host), m.zone) for node, m in self.members.items()}
        self._rounds = _rounds(self.members)
        self._lists: list[tuple[NodeId, ...] | None] = [None] * q
        self._firsts: dict[int, list[tuple[NodeId, ...] | None]] = {}  # n -> partition -> the first n of its list

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
            found = self._lists[partition] = self._walk(partition, len(self.members))
        return found

    def owners_of(self, partition: int, n: int) -> tuple[NodeId, ...]:
        """The first n entries of ``preference(partition)``, without making the rest."""
        lists = self._firsts.get(n)
        if lists is None:
            lists = self._firsts[n] = [None] * self.q
        found = lists[partition]
        if found is None:
            found = lists[partition] = self._walk(partition, min(n, len(self.members)))
        return found

    def _met(self, partition: int) -> Iterator[NodeId]:
        """Every node once, clockwise from the partition; then those without a token."""
        seen = set()
        for at in range(partition, partition + self.q):
            node = self._twice[at]
            if node not in seen:
                seen.add(node)
                yield node
        spare = self._spare
        turn = (partition >> self.doublings) % max(1, len(spare))  # both halves of a doubled partition as their parent
        yield from spare[turn:]
        yield from spare[:turn]

    def _walk(self, partition: int, n: int) -> tuple[NodeId, ...]:
        """Meet nodes clockwise from the partition, and deal them out in rounds (see the module) until n places are filled."""
        # (nth node of its host, turn of its zone) -> entries that this round still takes
        room: dict[tuple[int, int], int] = {}
        left = n
        for deal, size in self._rounds:
            if not left:
                break
            room[deal] = min(size, left)
            left -= room[deal]
        nth_of_host: dict[tuple[str, str], int] = {}
        nth_of_zone: dict[tuple[str, int], int] = {}
        dealt: list[tuple[int, int, int, NodeId]] = []
        met = self._met(partition) if n else ()
        for order, node in enumerate(met):
            host, zone = self._place[node]
            nth = nth_of_host[host] = nth_of_host.get(host, -1) + 1
            turn = nth_of_zone[zone, nth] = nth_of_zone.get((zone, nth), -1) + 1
            if room.get((nth, turn)):
                room[nth, turn] -= 1
                dealt.append((nth, turn, order, node))
                if len(dealt) == n:
                    break
        dealt.sort()
        return tuple([node for _, _, _, node in dealt])

    def readdressed(self, members: Mapping[NodeId, Member]) -> Ring:
        """The same ring, its members being reached at other addresses; it shares the lists that were made so far."""
        ring = Ring.__new__(Ring)
        for name in Ring.__slots__:
            setattr(ring, name, getattr(self, name))
        ring.members = {node: members[node] for node in self.members}
        return ring

    def encode(self) -> bytes:
        """The canonical bytes: equal rings are equal bytes. An owner is the number of a member."""
        number = {node: i for i, node in enumerate(self.members)}
        owners = [number[owner] for owner in self.owners] if number else []
        return _encode((self.q, self.doublings, tuple(self.members.values()), owners))

    @classmethod
    def decode(cls, data: bytes) -> Ring:
        """The inverse of ``encode``.

        Raises:
            CorruptData: The bytes are no ring, or not the canonical ones.
        """
        try:
            q, doublings, members, numbers = _decode(data)
            nodes = [member.node for member in members]
            owners = tuple([nodes[number] for number in numbers]) if members else ("",) * min(q, Q_MAX)
            if len(owners) != q or not 0 <= doublings < q.bit_length():
                raise ValueError("its numbers do not go together")
            ring = cls(q, dict(zip(nodes, members, strict=True)), owners, doublings)
        except (msgspec.DecodeError, UnicodeDecodeError, ValueError, IndexError) as error:
            raise CorruptData(f"not a ring: {error}") from error
        if ring.encode() != data:
            raise CorruptData("not a ring: not its canonical bytes")
        return ring

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Ring):
            return NotImplemented
        mine = (self.q, self.doublings, self.members, self.owners)
        return mine == (other.q, other.doublings, other.members, other.owners)

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"Ring(q={self.q}, {len(self.members)} members)"


_encode: Final = msgspec.msgpack.Encoder().encode
_decode: Final = msgspec.msgpack.Decoder(tuple[int, int, list[Member], list[int]]).decode


def _rounds(members: Mapping[NodeId, Member]) -> list[tuple[tuple[int, int], int]]:
    """The rounds in which nodes are dealt, each as (nth node of its host, turn of its zone), with their sizes."""
    sizes: Counter[tuple[int, int]] = Counter()
    nodes_of_host = Counter((member.zone, member.host) for member in members.values())
    turns: Counter[tuple[str, int]] = Counter()
    for (zone, _), nodes in nodes_of_host.items():
        for nth in range(nodes):
            sizes[nth, turns[zone, nth]] += 1
            turns[zone, nth] += 1
    return sorted(sizes.items())


class Folded(msgspec.Struct, frozen=True):
    """What a history amounts to."""

    ring: Ring
    removed: frozenset[NodeId]  # ids that may never join again
    buckets: dict[str, dict[str, str]]  # bucket -> property -> value, as last set
    staged: tuple[Change, ...] = ()  # neither committed nor abandoned, in order; also those that would have no effect
    made_by: bytes = b""  # digest of the changes that made the ring, addresses apart: the key of its snapshot
    addresses: dict[
        NodeId, str
    ] = {}  # of members, of nodes whose join is staged, and of those that left: the latest known


_Move = tuple[NodeId, NodeId]
"""Whose tokens go to whom before the claim: to its replacement, or to "" if the node left."""


class _Step(NamedTuple):
    """What one commit, or the founding, does to the ring. Equal keys, equal rings."""

    key: bytes
    """The digest of all changes that led here, by commit, and of the founding q."""
    moves: tuple[_Move, ...]
    doublings: int
    members: dict[NodeId, Member]
    claims: bool
    """Whether the nodes claim tokens. They do not for what moves none: places, doublings, replacements."""


class _Folding:
    """A history on its way to a ring: who is a member, and the steps that the tokens go through. No claim is made here."""

    def __init__(self, q: int) -> None:
        self.q = q
        self.members: dict[NodeId, Member] = {}
        self.made: dict[NodeId, Change] = {}  # member -> the join or replacement that made it one
        self.removed: set[NodeId] = set()
        self.steps: list[_Step] = []
        self._trail = hashlib.blake2b(q.to_bytes(4, "big"), digest_size=32, person=FOLD_VERSION)

    def step(self, changes: Iterable[tuple[bytes, Change]]) -> None:
        """Carry out the changes of one commit, in this order."""
        group = hashlib.blake2b(digest_size=32)
        moves: list[_Move] = []
        doublings, claims, effect = 0, False, False
        for record, change in changes:
            if change.kind is ChangeKind.DOUBLE:
                if self.q * 2 > Q_MAX:
                    continue
                self.q *= 2
                doublings += 1
            elif not self._apply(change, moves):
                continue
            claims |= change.kind in _CLAIMING
            effect = True
            group.update(record)  # a record tells its own end
        if effect:
            self._trail.update(group.digest())
            self.steps.append(_Step(self._trail.digest(), tuple(moves), doublings, dict(self.members), claims))

    def _apply(self, change: Change, moves: list[_Move]) -> bool:
        """Carry out one change of membership. Returns whether it had an effect."""
        node, members = change.subject, self.members
        present = members.get(node)
        new = change.member
        match change.kind:
            case ChangeKind.JOIN:
                assert new is not None, "the constructor saw to it"
                if present is not None or node in self.removed:
                    return False
                members[node], self.made[node] = new, change
                return True
            case ChangeKind.REMOVE:
                self.removed.add(node)
        if present is None:
            return False
        match change.kind:
            case ChangeKind.REWEIGH:
                members[node] = msgspec.structs.replace(present, weight=change.weight)
            case ChangeKind.RELOCATE:
                members[node] = msgspec.structs.replace(present, host=change.host, zone=change.zone)
            case ChangeKind.REPLACE:
                assert new is not None, "the constructor saw to it"
                if new.node in members or new.node in self.removed:
                    return False
                del members[node]
                members[new.node] = msgspec.structs.replace(new, weight=present.weight)
                self.made[new.node] = change
                moves.append((node, new.node))
                if change.barred:
                    self.removed.add(node)
            case _:
                del members[node]
                moves.append((node, ""))
        return True

    def addresses(self, history: History) -> dict[NodeId, str]:
        """Where the nodes are. A member's address is the latest of its address changes and of the record that made it a member;
        any other node's is the latest of all."""
        found: dict[NodeId, str] = {}
        for change in history:
            if change.kind is ChangeKind.ADDRESS:
                found[change.node] = change.address
            elif (member := change.member) is not None:
                node = member.node
                if node not in self.members or self.made[node] is change:
                    found[node] = member.address
        return found


def fold(q: int, changes: Iterable[Change]) -> Folded:
    """Apply all changes in (at, id) order, whatever order they come in, to an empty ring of ``q`` partitions.

    ``q`` is what the cluster was created with; the ring has more after a ``double``. The last few rings are remembered by the
    changes that made them. So a bucket's change costs no claim, a commit at the end of a long history costs one, and the nodes of
    a simulation share their rings.

    Raises:
        ValueError: ``q`` is not a power of two up to ``Q_MAX``.
    """
    history = changes if isinstance(changes, History) else History(changes)
    empty = Ring(q, {}, ("",) * q)
    folding = _Folding(q)
    staged: dict[str, list[tuple[bytes, Change]]] = {}
    for record, change in history.records():
        if change.staged:
            staged.setdefault(change.id, []).append((record, change))
    folding.step(item for item in history.records() if item[1].founding)
    settled: set[str] = set()
    buckets: dict[str, dict[str, str]] = {}
    for change in history:
        if change.kind is ChangeKind.BUCKET:
            buckets.setdefault(change.bucket, {}).update(change.props)
        elif change.kind is ChangeKind.COMMIT:
            named = [item for item in dict.fromkeys(change.changes) if item in staged]
            folding.step(item for name in named for item in staged.pop(name))
        elif change.kind is ChangeKind.ABANDON:
            settled.update(change.changes)
    addresses = folding.addresses(history)
    ring = _ring(empty, folding, addresses)
    open_ = [change for name, items in staged.items() if name not in settled for _, change in items]
    return Folded(
        ring,
        frozenset(folding.removed),
        {name: buckets[name] for name in sorted(buckets)},
        History(open_).changes,
        folding.steps[-1].key if folding.steps else b"",
        {node: addresses[node] for node in sorted(addresses)},
    )


def _ring(empty: Ring, folding: _Folding, addresses: Mapping[NodeId, str]) -> Ring:
    """The ring after all steps: on from the last one that is remembered."""
    steps = folding.steps
    members = {
        node: member if member.address == addresses[node] else msgspec.structs.replace(member, address=addresses[node])
        for node, member in folding.members.items()
    }
    done = next((i for i in range(len(steps), 0, -1) if steps[i - 1].key in _rings), 0)
    ring = _rings[steps[done - 1].key] if done else empty
    if done == len(steps):
        if ring.members != members:
            ring = ring.readdressed(members)
        if steps:
            _remember(steps[-1].key, ring)
        return ring
    for step in steps[done:]:
        ring = _after(ring, step)
    ring = ring.readdressed(members)
    _remember(steps[-1].key, ring)
    return ring


def _after(ring: Ring, step: _Step) -> Ring:
    """The ring after one step."""
    heir = {node: node for node in (*ring.members, "")}
    for giver, taker in step.moves:
        heir = {node: taker if now == giver else now for node, now in heir.items()}
    times = 1 << step.doublings
    q = ring.q * times
    owners = tuple([heir[owner] for owner in ring.owners for _ in range(times)])
    if step.claims and step.members:
        nodes = sorted(step.members)
        number = {node: i for i, node in enumerate(nodes)}
        lists = None
        if ring.members and len(nodes) > REPLICAS:  # with fewer, everyone has everything
            firsts = [ring.owners_of(partition // times, REPLICAS) for partition in range(q)]
            lists = [[number.get(heir[node], -1) for node in first] for first in firsts]
        weights = [round(step.members[node].weight * 1000) for node in nodes]
        numbers = [number.get(owner, -1) for owner in owners]
        owners = tuple([nodes[i] for i in claim(numbers, weights, places_of(step.members), lists)])
    return Ring(q, step.members, owners, ring.doublings + step.doublings)


def _remember(key: bytes, ring: Ring) -> None:
    """Remember the ring as the latest that was in use, and forget the one that was not for the longest time."""
    _rings.pop(key, None)
    _rings[key] = ring
    while len(_rings) > RINGS_MAX:
        del _rings[next(iter(_rings))]


def snapshot(folded: Folded) -> bytes:
    """The ring with the digest of the changes that made it, to be kept on a disk and given to ``remember`` after a restart."""
    body = _encode((FOLD_VERSION, folded.made_by, folded.ring.encode()))
    return _check(body) + body


def _check(body: bytes) -> bytes:
    return hashlib.blake2b(body, digest_size=_CHECK_BYTES).digest()


def remember(data: bytes) -> bool:
    """Let ``fold`` go on from the ring of a snapshot, if it comes by the changes that made it. Returns whether it was of use.

    A snapshot that is damaged, or of a version with other rings, is ignored; one that fits no history is never asked for.
    """
    check, body = data[:_CHECK_BYTES], data[_CHECK_BYTES:]
    if _check(body) != check:
        return False
    try:
        version, key, ring = msgspec.msgpack.decode(body, type=tuple[bytes, bytes, bytes])
        if version != FOLD_VERSION or not key:
            return False
        _remember(key, Ring.decode(ring))
    except (msgspec.DecodeError, CorruptData):
        return False
    return True


def places_of(members: Mapping[NodeId, Member]) -> list[tuple[int, int]]:
    """For each member, by id, its (zone, host) as numbers, which is what ``claim`` wants."""
    zones: dict[str, int] = {}
    hosts: dict[tuple[str, str], int] = {}
    places = []
    for node in sorted(members):
        zone, host = members[node].zone, members[node].host
        places.append((zones.setdefault(zone, len(zones)), hosts.setdefault((zone, host), len(hosts))))
    return places
