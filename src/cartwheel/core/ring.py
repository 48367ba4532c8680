"""The ring: which nodes hold a key, and the history of explicit changes that every node folds into the same ring.

Dynamo sections 4.1 to 4.3, 4.8.1 and 6.2 (strategy 3). A key's *position* is the MD5 of bucket and key, 128 bits. The ring of
positions is cut into q equal *partitions*; each is a *token* that one node owns, so each owned token is a virtual node::

           0 a                  q = 8, owners = a c b a c a c b
     7 b         1 c
                                position c4ca4238...: the top log2(q) = 3 bits, 110, say partition 6
    6 c    ->      2 b
                                preference(3) = a c b    tokens 5 and 6 are met again: skipped
     5 a         3 a            preference(6) = c b a    on past the end of the ring
           4 c

**Preference list** (section 4.3: "skipping positions in the ring to ensure that the list contains only distinct physical
nodes"; section 4.6: "spread across multiple data centers"). One list per partition serves every n: its first n entries are the
replicas, the rest are the fallbacks in order. Walk clockwise from the partition and meet every node once. Then deal in rounds,
each round in the order met: first one node of each zone; then for each zone a second host, then a third, and so on until all
hosts are used; then the second node of each host, zone by zone in the same manner; and so on. So *every* prefix has as many
zones as it can, with those as many hosts, and its nodes are even over the zones: with two zones, n = 4 keeps two replicas
through the loss of either. The first entry is always the token's owner. A host belongs to its zone: equal host names in two zones
are two hosts. Nodes that own no token (more nodes than tokens) are met last, from a different one for each partition.

**Membership is a history** (section 4.8.1: "the membership change history"): a set of ``Change`` records that only grows and is
merged by union. ``fold`` applies them in (at, id) order:

=========  ============================================================================================================
``join``   Adds the member; it steals tokens. Of a present member: its address, host and zone change (its machine moved), no
           token moves; the weight is ``reweigh``'s business. Of a removed id: ignored.
``leave``  The member's tokens are handed out. Of an absent node: ignored. It may join again.
``remove`` Like leave, and the id is barred for ever, also if it is not (or not yet) a member.
``reweigh``Sets a member's weight; tokens move in or out. Of an absent node: ignored.
``bucket`` Sets properties of a bucket, each overriding its earlier value. Moves nothing.
=========  ============================================================================================================

A record that makes no sense in itself (a weight of 0, a join without a member) cannot be made: the constructor refuses it,
and so does decoding. One that makes no sense *now* is ignored as above: two administrators may act at once.

Invariants:

1. Same set of changes, same ring: in every process, on every machine. No ``hash()``, no set order, no float decides.
2. ``preference(p)`` holds every member exactly once; its first entry is ``owners[p]``.
3. Primary load: a node's number of tokens is its share by weight rounded down or up (a node due less than one token has one, if
   q allows). So it is within 5 % of the share from 20 tokens per node on.
4. A change moves at most 1.2 times as many tokens as it must.
5. Replica load is aimed at, not guaranteed: see ``placement.claim``.

Cost: ``position`` about a microsecond, ``partition_of`` and a repeated ``preference`` a tenth of one. The first
``preference`` of a partition is O(q + members). A fold costs 10 to 50 ms per membership change at q = 1024, whatever the
number of nodes; it runs when the history changes, never on a request.
"""

from __future__ import annotations

import enum
import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Final

import msgspec

from cartwheel.core.errors import CorruptData
from cartwheel.core.placement.claim import claim
from cartwheel.core.types import NodeId

Q_MAX: Final = 65536
"""``partition_of`` reads two bytes of the position. At 64 tokens per node it suffices for a thousand nodes."""

WEIGHT_MIN: Final = 0.01
WEIGHT_MAX: Final = 10_000.0
"""Weights are relative and compared in thousandths; use whatever unit is handy (terabytes, or 1 for all)."""

NAME_BYTES_MAX: Final = 255
"""Longest name of a bucket, host, zone or change, in bytes of UTF-8. ``position`` gives the length of the bucket one byte."""

EPOCH_BYTES: Final = 16
"""Size of a placement epoch. It travels in every frame, so it is no longer than it must be."""

NODE_CHARACTERS: Final = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._-")

_LENGTH: Final = tuple(bytes((length,)) for length in range(NAME_BYTES_MAX + 1))
_POSITION_BITS: Final = 128
_md5: Final = hashlib.md5


def position(bucket: str, key: bytes) -> bytes:
    """Where a key lies on the ring: 16 bytes, MD5 of the bucket's length (one byte), the bucket (UTF-8) and the key.

    The length keeps ("a", b"bc") apart from ("ab", b"c"). MD5 spreads keys here (section 4.1); it protects nothing.

    Raises:
        ValueError: The bucket's name is longer than ``NAME_BYTES_MAX``.
    """
    name = bucket.encode()
    try:
        return _md5(_LENGTH[len(name)] + name + key, usedforsecurity=False).digest()
    except IndexError:
        raise ValueError(f"the bucket's name is {len(name)} bytes long; at most {NAME_BYTES_MAX} are allowed") from None


def _check_node(node: NodeId) -> None:
    if not 1 <= len(node) <= 64 or not NODE_CHARACTERS.issuperset(node):
        raise ValueError(f"a node's name must be 1 to 64 of A-Z a-z 0-9 . _ -, not {node!r}")


def _check_name(what: str, name: str) -> None:
    if len(name.encode()) > NAME_BYTES_MAX:
        raise ValueError(f"the {what} is longer than {NAME_BYTES_MAX} bytes: {name[:40]!r}...")


def _check_weight(weight: float) -> None:
    if not WEIGHT_MIN <= weight <= WEIGHT_MAX:  # also refuses NaN
        raise ValueError(f"a weight must be between {WEIGHT_MIN} and {WEIGHT_MAX:.0f}, not {weight}")


class Member(msgspec.Struct, frozen=True, array_like=True):
    """A node of the cluster and where it stands. Raises ``ValueError`` if a field is out of bounds."""

    node: NodeId
    address: str  # "host:port" of its door for peers
    host: str  # the physical machine
    zone: str = ""  # the data centre or availability zone; "" is a zone like any other
    weight: float = 1.0  # its capacity relative to the others'

    def __post_init__(self) -> None:
        _check_node(self.node)
        _check_name("address", self.address)
        _check_name("host", self.host)
        _check_name("zone", self.zone)
        _check_weight(self.weight)
        msgspec.structs.force_setattr(self, "weight", float(self.weight))  # 1 and 1.0 have different bytes


class ChangeKind(enum.StrEnum):
    """What a change does; the module's table says it in full."""

    JOIN = "join"
    LEAVE = "leave"
    REMOVE = "remove"
    REWEIGH = "reweigh"
    BUCKET = "bucket"


class Change(msgspec.Struct, frozen=True, array_like=True):
    """One record of the membership history (section 4.8.1). Never changed once written, so treat ``props`` as frozen, too.

    Raises ``ValueError`` if the fields that its kind needs are missing or out of bounds.
    """

    id: str  # unique in the cluster for ever; who issues a change draws it at random
    at: int  # the author's hybrid logical clock
    author: NodeId  # the node that accepted the administrator's command
    kind: ChangeKind
    node: NodeId = ""  # whom it is about; in a join it may be left out, for it is the member's
    member: Member | None = None  # join only
    weight: float = 1.0  # reweigh only
    bucket: str = ""  # bucket only
    props: dict[str, str] = {}  # bucket only

    def __post_init__(self) -> None:
        if not self.id:
            raise ValueError("a change needs an id")
        _check_name("id of a change", self.id)
        if not 0 <= self.at < 1 << 64:
            raise ValueError(f"the time of a change must be a clock reading, not {self.at}")
        kind = ChangeKind(self.kind)
        if (self.member is not None) != (kind is ChangeKind.JOIN):
            raise ValueError("a join, and nothing else, needs a member")
        if self.member is not None and self.node not in ("", self.member.node):
            raise ValueError(f"a join of {self.member.node!r} cannot be about {self.node!r}")
        if kind is ChangeKind.BUCKET:
            _check_name("bucket's name", self.bucket)
        elif kind is not ChangeKind.JOIN:
            _check_node(self.node)
        _check_weight(self.weight)
        msgspec.structs.force_setattr(self, "kind", kind)
        msgspec.structs.force_setattr(self, "weight", float(self.weight))

    @property
    def subject(self) -> NodeId:
        """The node it is about; "" for a bucket."""
        return self.member.node if self.member is not None else self.node


_encode: Final[Callable[[object], bytes]] = msgspec.msgpack.Encoder(order="deterministic").encode
_decode: Final = msgspec.msgpack.Decoder(list[Change]).decode


class History:
    """A set of changes, iterated in (at, id) order. Immutable: ``union`` makes another one.

    Two records that share an id by mistake but differ are both kept, ordered by their bytes: nodes must agree even on a mistake.
    """

    __slots__ = ("_digest", "_records", "changes")

    changes: tuple[Change, ...]

    def __init__(self, changes: Iterable[Change] = ()) -> None:
        records = {_encode(change): change for change in changes}
        ordered = sorted(records.items(), key=lambda item: (item[1].at, item[1].id, item[0]))
        self._records = dict(ordered)
        self.changes = tuple(self._records.values())
        self._digest = b""

    def union(self, other: History | Iterable[Change]) -> History:
        """All changes of both. Commutative, associative, idempotent. Returns ``self`` itself if ``other`` has nothing new."""
        others = other if isinstance(other, History) else History(other)
        if others._records.keys() <= self._records.keys():
            return self
        return History((*self.changes, *others.changes))

    def digest(self) -> bytes:
        """The placement epoch: equal if, and only if, the histories are."""
        if not self._digest:
            self._digest = hashlib.blake2b(self.encode(), digest_size=EPOCH_BYTES).digest()
        return self._digest

    def encode(self) -> bytes:
        """The canonical bytes: equal histories are equal bytes."""
        return _encode(self.changes)

    @classmethod
    def decode(cls, data: bytes) -> History:
        """The inverse of ``encode``.

        Raises:
            CorruptData: The bytes are no history, hold a record that cannot be, or are not the canonical ones.
        """
        try:
            history = cls(_decode(data))
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise CorruptData(f"not a membership history: {error}") from error
        if history.encode() != data:
            raise CorruptData("not a membership history: its records are out of order, repeated, or of another version")
        return history

    def __iter__(self) -> Iterator[Change]:
        return iter(self.changes)

    def __len__(self) -> int:
        return len(self.changes)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, History) and self._records.keys() == other._records.keys()

    def __hash__(self) -> int:
        return int.from_bytes(self.digest()[:8], "big")

    def __repr__(self) -> str:
        return f"History({len(self.changes)} changes, epoch {self.digest().hex()[:8]})"


class Ring:
    """Who owns each token, and the preference lists that follow. Immutable; built by ``fold``."""

    __slots__ = ("_lists", "_members", "_shift", "_spare", "_twice", "members", "owners", "q")

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

    Raises:
        ValueError: ``q`` is not a power of two up to ``Q_MAX``.
    """
    history = changes if isinstance(changes, History) else History(changes)
    members: dict[NodeId, Member] = {}
    removed: set[NodeId] = set()
    buckets: dict[str, dict[str, str]] = {}
    ring = Ring(q, {}, ("",) * q)
    owners = ring.owners
    for change in history:
        node = change.subject
        present = members.get(node)
        if change.kind is ChangeKind.BUCKET:
            buckets.setdefault(change.bucket, {}).update(change.props)
            continue
        if change.kind is ChangeKind.REMOVE:
            removed.add(node)
        if change.member is not None:
            if node in removed:
                continue
            if present is not None:  # its machine moved: no token does
                members[node] = msgspec.structs.replace(change.member, weight=present.weight)
                continue
            members[node] = change.member
        elif present is None:
            continue
        elif change.kind is ChangeKind.REWEIGH:
            members[node] = msgspec.structs.replace(present, weight=change.weight)
        else:
            del members[node]
        owners = _claimed(owners, members)
    return Folded(Ring(q, members, owners), frozenset(removed), {name: buckets[name] for name in sorted(buckets)})


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
