"""The membership history: a set of explicit changes that only grows and is merged by union.

Dynamo section 4.8.1 wants "an explicit mechanism to initiate the addition and removal of nodes": an administrator issues a
change at any node. "The node that serves the request writes the membership change and its time of issue to persistent store. The
membership changes form a history because nodes can be removed and added back multiple times." Gossip spreads it. Nothing else
changes a ring, least of all an outage. *Departs from the paper:* ``leave`` is for nodes that may come back under their name,
``remove`` is final, so that a dead disk's old owner cannot return with old data; and bucket properties travel the same way.

**Staged and committed.** Changes that move data are staged first: several can be prepared, shown by ``plan`` and then carried out
at once by a *commit*, so that three nodes that join together move less than three in a row. ``fold`` goes through the history in
(at, id) order, and each kind does this:

============  ========  ==========================================================================================================
kind          staged    what it does
============  ========  ==========================================================================================================
``join``      yes       adds the member; it steals tokens. Of a present member or a removed id: ignored.
``leave``     yes       hands out the member's tokens. It may join again. Of an absent node: ignored.
``remove``    yes       a leave after which the id is barred for ever, also if it is not, or not yet, a member.
``reweigh``   yes       sets a member's weight; tokens move in or out. Of an absent node: ignored.
``relocate``  yes       the member stands on another host or in another zone. No token moves; preference lists change.
``replace``   yes       ``member`` takes the node's tokens and weight, and the node is no member any more; with ``barred``, never
                        again. Ignored if the node is absent, or the new one is present or removed.
``double``    yes       each partition becomes two with the same owner; nothing moves. Ignored if there would be too many.
``address``   no        where a node's door for peers is. The latest of a node's addresses and the join that made it counts.
``bucket``    no        sets properties of a bucket, each overriding its earlier value. It moves nothing.
``commit``    no        carries out the staged changes with these ids, in the order in which it lists them, then lets the nodes
                        claim tokens once. Ids that are unknown, or were carried out by an earlier commit, are passed over.
``abandon``   no        takes the staged changes with these ids off the list, unless there is a commit of them, earlier or later.
============  ========  ==========================================================================================================

*Founding* joins, those with a time before ``FOUNDING_END``, are not staged: they are the members that a cluster is created with,
and come before all else, in one claim.

A record that makes no sense in itself (a weight of 0, a join without a member) cannot be made: the constructor refuses it,
and so does decoding. One that makes no sense *now* is ignored as above: two administrators may act at once. For the same reason
a commit beats an abandon: who commits has seen the plan carried out, and a ring must not jump back when a late abandon arrives.

Invariants:

1. Equal histories have equal bytes, hence equal digests; ``union`` is commutative, associative and idempotent.
2. A ``Change`` and its bytes stay what they are through any number of hops: no field has two encodings. Fields at the end that
   have their default are left out, so a field that a later version appends changes no bytes, and no epoch, of earlier records.

A few dozen bytes per change, kept for ever. ``encode`` and ``digest`` are O(changes); the digest is computed once.
"""

from __future__ import annotations

import enum
import hashlib
from collections.abc import Callable, Iterable, Iterator
from typing import Final

import msgspec

from cartwheel.core.errors import CorruptData
from cartwheel.core.types import NodeId

WEIGHT_MIN: Final = 0.01
WEIGHT_MAX: Final = 10_000.0
"""Weights are relative and compared in thousandths; use whatever unit is handy (terabytes, or 1 for all)."""

NAME_BYTES_MAX: Final = 255
"""Longest name of a bucket, host, zone or change, in bytes of UTF-8. ``position`` gives the length of the bucket one byte."""

CHANGES_MAX: Final = 4096
"""Most ids in one commit or abandon: more nodes than a cluster has, and a record still fits a message."""

FOUNDING_END: Final = 1 << 16
"""Joins with a time before this are founding ones. A clock reading of 1970 is larger after two seconds."""

EPOCH_BYTES: Final = 16
"""Size of a placement epoch. It travels in every frame, so it is no longer than it must be."""

NODE_CHARACTERS: Final = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._-")


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
    RELOCATE = "relocate"
    REPLACE = "replace"
    DOUBLE = "double"
    ADDRESS = "address"
    COMMIT = "commit"
    ABANDON = "abandon"


_WITH_MEMBER: Final = (ChangeKind.JOIN, ChangeKind.REPLACE)
_WITH_NODE: Final = (
    ChangeKind.LEAVE,
    ChangeKind.REMOVE,
    ChangeKind.REWEIGH,
    ChangeKind.RELOCATE,
    ChangeKind.REPLACE,
    ChangeKind.ADDRESS,
)
_AT_ONCE: Final = (ChangeKind.BUCKET, ChangeKind.ADDRESS, ChangeKind.COMMIT, ChangeKind.ABANDON)


class Change(msgspec.Struct, frozen=True, array_like=True):
    """One record of the membership history (section 4.8.1). Never changed once written, so treat ``props`` as frozen, too.

    Raises ``ValueError`` if the fields that its kind needs are missing or out of bounds.
    """

    id: str  # unique in the cluster for ever; who issues a change draws it at random
    at: int  # the author's hybrid logical clock
    author: NodeId  # the node that accepted the administrator's command
    kind: ChangeKind
    node: NodeId = (
        ""  # whom it is about; in a join it may be left out, for it is the member's; in a replace the old node
    )
    member: Member | None = None  # join, and replace: the new node
    weight: float = 1.0  # reweigh only
    bucket: str = ""  # bucket only
    props: dict[str, str] = {}  # bucket only
    address: str = ""  # address only
    host: str = ""  # relocate only; it needs one
    zone: str = ""  # relocate only
    changes: tuple[str, ...] = ()  # commit and abandon only: the ids of staged changes, at least one
    barred: bool = False  # replace only: the old node may never join again

    def __post_init__(self) -> None:
        if not self.id:
            raise ValueError("a change needs an id")
        _check_name("id of a change", self.id)
        if not 0 <= self.at < 1 << 64:
            raise ValueError(f"the time of a change must be a clock reading, not {self.at}")
        msgspec.structs.force_setattr(self, "kind", ChangeKind(self.kind))
        msgspec.structs.force_setattr(self, "changes", tuple(self.changes))
        _check_weight(self.weight)
        msgspec.structs.force_setattr(self, "weight", float(self.weight))
        self._check_nodes()
        self._check_fields()

    def _check_nodes(self) -> None:
        kind = self.kind
        if (self.member is not None) != (kind in _WITH_MEMBER):
            raise ValueError("a join or replace, and nothing else, needs a member")
        if kind in _WITH_NODE:
            _check_node(self.node)
        if self.member is None:
            return
        if kind is ChangeKind.JOIN and self.node not in ("", self.member.node):
            raise ValueError(f"a join of {self.member.node!r} cannot be about {self.node!r}")
        if kind is ChangeKind.REPLACE and self.node == self.member.node:
            raise ValueError(f"{self.node!r} cannot replace itself")

    def _check_fields(self) -> None:
        """Each of the other fields belongs to its kinds, which need it."""
        kind = self.kind
        if bool(self.address) != (kind is ChangeKind.ADDRESS):
            raise ValueError("a change of address, and nothing else, needs an address")
        if bool(self.host) != (kind is ChangeKind.RELOCATE) or (self.zone and not self.host):
            raise ValueError("a relocation, and nothing else, needs a host")
        if bool(self.changes) != (kind in (ChangeKind.COMMIT, ChangeKind.ABANDON)):
            raise ValueError("a commit or abandon, and nothing else, needs ids of changes")
        if self.barred and kind is not ChangeKind.REPLACE:
            raise ValueError("only a replace can bar the old node")
        if len(self.changes) > CHANGES_MAX:
            raise ValueError(f"{len(self.changes)} changes in one record; at most {CHANGES_MAX} are allowed")
        for named in self.changes:
            if not named:
                raise ValueError("the id of a change is never empty")
            _check_name("id of a change", named)
        for what, name in (
            ("bucket's name", self.bucket),
            ("address", self.address),
            ("host", self.host),
            ("zone", self.zone),
        ):
            _check_name(what, name)

    @property
    def subject(self) -> NodeId:
        """The node it is about, in a replace the old one; "" if it is about none."""
        return self.member.node if self.member is not None and self.kind is ChangeKind.JOIN else self.node

    @property
    def founding(self) -> bool:
        """Whether it is a join of the cluster's creation: in effect from the start, with all others of its kind."""
        return self.kind is ChangeKind.JOIN and self.at < FOUNDING_END

    @property
    def staged(self) -> bool:
        """Whether it takes effect only by a commit."""
        return not self.founding and self.kind not in _AT_ONCE


_encode: Final[Callable[[object], bytes]] = msgspec.msgpack.Encoder(order="deterministic").encode
_decode: Final = msgspec.msgpack.Decoder(list[Change]).decode

_BASE_FIELDS: Final = 9
_APPENDED: Final = ("", "", "", (), False)
"""The defaults of the fields after the first nine. Those at the end that have theirs are left out of a record's bytes."""


def _record(change: Change) -> bytes:
    """The change's canonical bytes."""
    fields = msgspec.structs.astuple(change)
    end = len(fields)
    while end > _BASE_FIELDS and fields[end - 1] == _APPENDED[end - 1 - _BASE_FIELDS]:
        end -= 1
    return _encode(fields[:end])


class History:
    """A set of changes, iterated in (at, id) order. Immutable: ``union`` makes another one.

    Two records that share an id by mistake but differ are both kept, ordered by their bytes: nodes must agree even on a mistake.
    """

    __slots__ = ("_digest", "_records", "changes")

    changes: tuple[Change, ...]

    def __init__(self, changes: Iterable[Change] = ()) -> None:
        records = {_record(change): change for change in changes}
        ordered = sorted(records.items(), key=lambda item: (item[1].at, item[1].id, item[0]))
        self._records = dict(ordered)
        self.changes = tuple(self._records.values())
        self._digest = b""

    def records(self) -> Iterable[tuple[bytes, Change]]:
        """The changes, each with its canonical bytes."""
        return self._records.items()

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
        return _encode([msgspec.Raw(record) for record in self._records])

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
