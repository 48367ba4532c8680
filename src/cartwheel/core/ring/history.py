"""The membership history: a set of explicit changes that only grows and is merged by union.

Dynamo section 4.8.1 wants "an explicit mechanism to initiate the addition and removal of nodes": an administrator issues a
change at any node. "The node that serves the request writes the membership change and its time of issue to persistent store. The
membership changes form a history because nodes can be removed and added back multiple times." Gossip spreads it. Nothing else
changes a ring, least of all an outage. *Departs from the paper:* ``leave`` is for nodes that may come back under their name,
``remove`` is final, so that a dead disk's old owner cannot return with old data; and bucket properties travel the same way.

What each kind does when ``fold`` comes to it, in (at, id) order:

- ``join`` adds the member; it steals tokens. Of a present member: its address, host and zone change (its machine moved), but no
  token moves and its weight stays, for that is what ``reweigh`` is for. Of a removed id: ignored.
- ``leave`` hands out the member's tokens. It may join again. Of an absent node: ignored.
- ``remove`` is a leave after which the id is barred for ever, also if it is not, or not yet, a member.
- ``reweigh`` sets a member's weight; tokens move in or out. Of an absent node: ignored.
- ``bucket`` sets properties of a bucket, each overriding its earlier value. It moves nothing.

A record that makes no sense in itself (a weight of 0, a join without a member) cannot be made: the constructor refuses it,
and so does decoding. One that makes no sense *now* is ignored as above: two administrators may act at once.

Invariants:

1. Equal histories have equal bytes, hence equal digests; ``union`` is commutative, associative and idempotent.
2. A ``Change`` and its bytes stay what they are through any number of hops: no field has two encodings.

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
