"""Helpers for tests of anti-entropy: records planted in single nodes, what moved, and what a node says of it."""

from __future__ import annotations

from collections import Counter
from typing import Any

from tests.core.wire import WALL_MS, Wire

from cartwheel.core.antientropy import AntiEntropy
from cartwheel.core.clock import reading
from cartwheel.core.errors import CorruptData
from cartwheel.core.messages import (
    AntiEntropyStatus,
    ClientRepairStatus,
    Fetch,
    Fetched,
    LeafDiff,
    LeafKeys,
    LeafRows,
    Message,
    Repairing,
    TreeLeaves,
    TreeRoots,
    encode_batch,
)
from cartwheel.core.storage import MemoryEngine, Space, record_key
from cartwheel.core.types import Durability
from cartwheel.core.versions import Record, Version

KINDS = (TreeRoots, TreeLeaves, LeafKeys, LeafDiff, LeafRows, Fetch, Fetched)
OLD = reading(WALL_MS - 60_000)
"""A reading of a write that is no longer under way."""


def machine(wire: Wire, name: str) -> AntiEntropy:
    """A node's anti-entropy."""
    return wire.nodes[name]._antientropy


def told(wire: Wire, name: str) -> AntiEntropyStatus:
    """What a node says of it."""
    return wire.nodes[name].status().antientropy


def old(value: bytes | None, actor: str = "x/1", counter: int = 1, **clock: int) -> Record:
    """A record written a minute ago."""
    return Record({actor: OLD + counter, **clock}, (Version(actor, OLD + counter, value),))


def plant(wire: Wire, name: str, records: dict[bytes, Record], bucket: str = "0") -> None:
    """Let a node hold these records, whatever the others hold."""
    local = wire.nodes[name].local
    for key, record in records.items():
        at = record_key(bucket, key)
        local.write_record(at, local.read_record(at), record, Durability.OS)
    wire._commit(name)


def tick(wire: Wire, seconds: float, grain_s: float = 0.05) -> None:
    """Let time pass as it does."""
    for _ in range(round(seconds / grain_s)):
        wire.advance(grain_s)


def held(wire: Wire, name: str) -> dict[bytes, bytes]:
    """All records of a node."""
    return dict(wire.stores[name].scan(Space.RECORDS, limit=1 << 30))


def moved(wire: Wire) -> Counter[str]:
    """How many records each kind of message carried."""
    found: Counter[str] = Counter()
    for _, _, message in wire.sent:
        if isinstance(message, LeafDiff | LeafRows):
            found[type(message).__name__] += len(message.rows)
    return +found


def sent_bytes(wire: Wire) -> int:
    """What anti-entropy sent, as encoded."""
    return sum(len(encode_batch(b"", [m])) for _, _, m in wire.sent if isinstance(m, KINDS))


def catch(wire: Wire, kind: type) -> list[Any]:
    """From now on lose the messages of this kind: they come here."""
    caught: list[Any] = []

    def lose(src: str, dst: str, message: Message) -> bool:
        if isinstance(message, kind):
            caught.append(message)
        return isinstance(message, kind)

    wire.lose = lose
    return caught


def paused_at(wire: Wire, kind: type) -> Any:
    """Let a ask b, and lose b's answer of this kind: the question's id stays open."""
    caught = catch(wire, kind)
    machine(wire, "b")._next_s = 1e9
    while not caught:
        wire.advance(0.05)
    wire.lose = lambda src, dst, message: False
    return caught[0]


class Damaged(MemoryEngine):
    """A disk with unreadable spots, as long as nothing new lies above them for a get: scans over them fail in any case."""

    def __init__(self) -> None:
        super().__init__()
        self.spots: set[bytes] = set()
        self.rewritten: set[bytes] = set()

    def get(self, space, key):
        if space is Space.RECORDS and key in self.spots - self.rewritten:
            raise CorruptData("block")
        return super().get(space, key)

    def apply(self, spaces, *, sync):
        self.rewritten |= spaces[Space.RECORDS].keys() & self.spots
        super().apply(spaces, sync=sync)

    def scan(self, space, start=b"", end=None, *, limit):
        rows = super().scan(space, start, end, limit=limit)
        if space is Space.RECORDS and any(key in self.spots for key, _ in rows):
            raise CorruptData("block")
        return rows


def progress(wire: Wire, at: str = "a") -> Repairing:
    """How far the repair is."""
    result = wire.ask(at, ClientRepairStatus(0))
    assert isinstance(result, Repairing), result
    return result
