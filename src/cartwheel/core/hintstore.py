"""The hints of a node: records that it keeps for other nodes until those are back (section 4.6).

    hint key    intended node's length (1) | intended node | record key          in ``Space.HINTS``
    value       the sealed record, as it would lie at the intended node
    total       b"hints/" | intended node -> since when, how many, bytes         in ``Space.META``

Kept apart from the node's own records, ordered by intended node and ring position, so that delivery is a scan and what a hint
says never counts as a record of ours. A hint is the merge of everything that was kept for its node under its key.

A total is staged with each change of its hints, so both are committed in one atomic group: after a restart it is exact, and
nothing need be counted. Only the last total of a group is written.

Invariants:
1. ``totals`` has an entry for each intended node with hints, and none besides.
2. A hint is removed only after its intended node has the record durably, or with the write that keeps it elsewhere.

Cost: O(intended nodes) engine reads for ``held``, one for the others; memory for the totals only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import msgspec

from cartwheel.core.errors import CorruptData, HintsFull
from cartwheel.core.storage import POSITION_BYTES, Space, Store
from cartwheel.core.types import Durability, NodeId

META_TOTAL = b"hints/"
META_TOTAL_END = b"hints0"
NODE_BYTES_MAX = 64
"""The longest name of a node (see ``types.NodeId``)."""
NODES_MAX = 1024
"""For so many nodes hints are kept at most: each costs every read an engine read, and names come from peers."""


class HintTotal(msgspec.Struct, array_like=True):
    """How much is kept for one node."""

    since_ms: int
    """The wall time of the first hint since there was none: no hint is older."""
    hints: int = 0
    bytes: int = 0
    """Of keys and values."""
    exact: bool = True
    """False: the total was damaged, and hints were found without one."""


class Held(msgspec.Struct, gc=False):
    """A hint found under a key."""

    intended: NodeId
    sealed: bytes
    pending: Durability
    """What telling it must wait for."""


class HintStore:
    """Hints by intended node and record key. Values are as they lie on the disk: whoever uses one verifies its checksum. One that
    the engine cannot read shows as ``b""``, which no checksum fits."""

    def __init__(
        self, store: Store, wall_ms: Callable[[], int], *, node_bytes_max: int = 1 << 62, bytes_max: int = 1 << 62
    ) -> None:
        """
        Args:
            wall_ms: the wall clock.
            node_bytes_max: of the hints for one node; ``bytes_max``: of all.
        """
        self._store = store
        self._wall_ms = wall_ms
        self._node_bytes_max = node_bytes_max
        self._bytes_max = bytes_max
        self.totals: dict[NodeId, HintTotal] = {}
        self.bytes = 0
        """Of all totals."""

    def start(self) -> None:
        """Find the totals on the disk, and that none is missing: one seek for each intended node. Where the engine cannot read
        the hints, the totals are believed: their deliveries go around what is damaged."""
        store = self._store
        stored = store.scan(Space.META, META_TOTAL, META_TOTAL_END, limit=NODES_MAX)
        readable = True
        try:
            self._find_intended()
        except CorruptData:
            readable = False
        for key, value in stored:
            intended = key[len(META_TOTAL) :].decode("utf-8", "replace")
            total = _decode_total(value)
            if total is None or (readable and intended not in self.totals):
                store.stage(Space.META, key, None, Durability.OS)
            else:
                self.totals[intended] = total
        self.bytes = sum(total.bytes for total in self.totals.values())

    def _find_intended(self) -> None:
        """An entry in ``totals``, not exact, for each node with hints."""
        store, at = self._store, b""
        while rows := store.scan(Space.HINTS, at, limit=1):
            key = rows[0][0]
            intended = intended_of(key)
            if intended is None:
                store.stage(Space.HINTS, key, None, Durability.OS)  # no hint of ours: a damaged key
                at = key + b"\x00"
                continue
            self.totals[intended] = HintTotal(self._wall_ms(), exact=False)
            at = _prefix(intended)[:-1] + bytes([key[key[0]] + 1])

    def held(self, record_key: bytes) -> list[Held]:
        """What is kept under this key for whomever, in the order of the intended nodes' names."""
        found = []
        for intended in sorted(self.totals):
            key = hint_key(intended, record_key)
            sealed = self._read(key)
            if sealed is not None:
                found.append(Held(intended, sealed, self._store.pending(Space.HINTS, key)))
        return found

    def holds_any(self, record_keys: Iterable[bytes]) -> list[bool]:
        """For each of these keys, whether anything is kept under it for anybody."""
        intended = sorted(self.totals)
        return [any(self._read(hint_key(node, key)) is not None for node in intended) for key in record_keys]

    def get(self, intended: NodeId, record_key: bytes) -> bytes | None:
        """What is kept for this node under this key.

        Raises:
            ValueError: that is not the name of a node.
        """
        return self._read(hint_key(intended, record_key))

    def rows(self, intended: NodeId, start: bytes, limit: int) -> list[tuple[bytes, bytes]]:
        """At most ``limit`` (record key, sealed record) kept for this node, in ring order from the record key ``start`` on.

        Raises:
            CorruptData: the engine cannot read them.
        """
        prefix = _prefix(intended)
        end = prefix[:-1] + bytes([prefix[-1] + 1])
        at = len(prefix)
        return [(key[at:], sealed) for key, sealed in self._store.scan(Space.HINTS, prefix + start, end, limit=limit)]

    def pending(self, intended: NodeId, record_key: bytes) -> Durability:
        """What telling this hint must wait for."""
        return self._store.pending(Space.HINTS, hint_key(intended, record_key))

    def put(
        self, intended: NodeId, record_key: bytes, sealed: bytes, durability: Durability, *, limited: bool = True
    ) -> None:
        """Keep a record in place of what was kept. A new one that is ``limited`` must find room.

        Raises:
            HintsFull: there is none.
            ValueError: ``intended`` is not the name of a node.
        """
        key = hint_key(intended, record_key)
        old = self._read(key)
        total = self.totals.get(intended)
        grown = len(sealed) - len(old) if old is not None else len(key) + len(sealed)
        if old is None and limited and not self._has_room(total, grown):
            raise HintsFull(f"as many hints as it may keep for {intended}")
        if total is None:
            total = self.totals[intended] = HintTotal(self._wall_ms())
        total.hints += old is None
        total.bytes += grown
        self.bytes += grown
        self._store.stage(Space.HINTS, key, sealed, durability)
        self._store.stage(Space.META, META_TOTAL + intended.encode(), _encode_total(total), durability)

    def remove(self, intended: NodeId, record_key: bytes, sealed: bytes) -> None:
        """Remove a hint, which is this: the intended node has it, or it is kept elsewhere, or it is corrupt."""
        key = hint_key(intended, record_key)
        total = self.totals[intended]
        self._store.stage(Space.HINTS, key, None, Durability.OS)
        gone = min(len(key) + len(sealed), total.bytes)
        total.hints = max(total.hints - 1, 0)
        total.bytes -= gone
        self.bytes -= gone
        if total.hints or (not total.exact and self._any(intended)):
            self._store.stage(Space.META, META_TOTAL + intended.encode(), _encode_total(total), Durability.OS)
        else:
            self.forget(intended)

    def forget(self, intended: NodeId) -> None:
        """There is no hint for this node any more."""
        self.bytes -= self.totals.pop(intended).bytes
        self._store.stage(Space.META, META_TOTAL + intended.encode(), None, Durability.OS)

    def _has_room(self, total: HintTotal | None, size: int) -> bool:
        if total is None and len(self.totals) >= NODES_MAX:
            return False
        kept = 0 if total is None else total.bytes
        return kept + size <= self._node_bytes_max and self.bytes + size <= self._bytes_max

    def _any(self, intended: NodeId) -> bool:
        try:
            return bool(self.rows(intended, b"", 1))
        except CorruptData:
            return True

    def _read(self, key: bytes) -> bytes | None:
        try:
            return self._store.get(Space.HINTS, key)
        except CorruptData:
            return b""


_encode_total = msgspec.msgpack.Encoder().encode
_total_decoder = msgspec.msgpack.Decoder(HintTotal)


def _decode_total(value: bytes) -> HintTotal | None:
    try:
        return _total_decoder.decode(value)
    except msgspec.DecodeError:
        return None


def hint_key(intended: NodeId, record_key: bytes) -> bytes:
    """Where a hint lies.

    Raises:
        ValueError: that is not the name of a node.
    """
    return _prefix(intended) + record_key


def _prefix(intended: NodeId) -> bytes:
    name = intended.encode()
    if not 0 < len(name) <= NODE_BYTES_MAX:
        raise ValueError(f"{intended[:NODE_BYTES_MAX]!r} is not the name of a node")
    return bytes((len(name),)) + name


def intended_of(key: bytes) -> NodeId | None:
    """For whom a hint is; None if that is no hint's key."""
    length = key[0]
    name = key[1 : 1 + length]
    if not 0 < length <= NODE_BYTES_MAX or len(key) < 1 + length + POSITION_BYTES or not name.isascii():
        return None
    return name.decode()
