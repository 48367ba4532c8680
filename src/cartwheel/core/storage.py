"""The storage contract: what an engine must do, how records lie in it, and the staging of writes above it.

    record key    position (16 bytes) | bucket length (1) | bucket | key      ordered by ring position (section 4.2)
    sealed value  checksum (8 bytes)  | canonical record                      checksum over ring position and record

Keys are in ring order, so a partition is one contiguous range: scan, transfer and drop work by range. The checksum is made
once, by the node that made the record, and travels with it: every replica verifies what it received and what it reads.

Writes are **staged** in memory, visible at once to this node's reads, and committed in groups by the driver:

    stage()  ->  open group  -- take() -->  group in flight  -- committed() -->  engine only

**The buffer** (section 6.1). A group of which nobody waits for a write stays open as the buffer of objects in memory, from
which reads are served: for 0.1 s at most, or until it holds a thousand objects, as in the paper. The first write that somebody
waits for takes all of it along. What it holds is lost when the process dies.

Invariants:
1. A read sees the newest staged value, then the one in flight, then the engine's.
2. At most one group is in flight; groups reach the engine in the order staged; one key's last write in a group wins.
3. Whoever makes a staged value known outside this process waits for its group (``pending``).
"""

from __future__ import annotations

import bisect
from collections.abc import Sequence
from enum import IntEnum
from typing import NamedTuple, Protocol

import xxhash

from cartwheel.core.errors import CorruptData
from cartwheel.core.ring import record_key
from cartwheel.core.types import Durability

__all__ = [
    "BUCKET_BYTES_MAX", "CHECKSUM_BYTES", "POSITION_BYTES",
    "Engine", "Group", "MemoryEngine", "Space", "Store", "Writes",
    "record_key", "seal", "split_record_key", "unseal",
]  # fmt: skip

POSITION_BYTES = 16
CHECKSUM_BYTES = 8
BUCKET_BYTES_MAX = 255
"""Longest name of a bucket, in bytes of UTF-8: a record key gives its length one byte."""


BUFFER_WRITES = 1000
"""The paper's buffer "of a thousand objects" (section 6.1)."""
BUFFER_S = 0.05
"""Writes that nobody waits for are committed in the first turn after so long: with a tick every 0.05 s, within 0.1 s. Some 20
batches a second cost nothing, and a process that dies loses little."""


class Space(IntEnum):
    """The column families of a data directory: separate ordered key spaces, written together atomically."""

    RECORDS = 0
    META = 1
    """The node's own few facts: stint, clean stop, membership history, counters."""
    HINTS = 2
    """Records kept for another node until it is back (section 4.6)."""


FACTS = b"\x02"
"""What lies in ``Space.META`` under keys before this may be lost at any restart: an engine that mends itself drops it. Those keys
begin with a zero; an engine may note the end of their block as anything up to one."""

Writes = dict[bytes, bytes | None]
"""Key -> new value; None deletes the key."""


class Group(NamedTuple):
    """Writes that are committed together: one dict for each ``Space``, and how durable the most careful of them must be."""

    spaces: tuple[Writes, ...]
    durability: Durability


class Engine(Protocol):
    """An ordered, durable map with atomic batches. One contract test covers every engine.

    ``get`` and ``scan`` are called on the event loop's thread only and must be quick; ``apply`` may be called from the commit
    thread while ``get`` or ``scan`` run, but never by two threads at once. Keys are 1 to 64 KiB and some hundred bytes long.

    A damaged engine may raise ``CorruptData`` from ``get`` and ``scan`` (this data is lost here), or ``StorageFailed`` (the disk
    is broken). After one failed ``apply``, each further one raises ``StorageFailed``.
    """

    name: str
    quick_unsynced: bool
    """Whether an ``apply`` without ``sync`` takes microseconds, so that it may run on the event loop."""

    def get(self, space: Space, key: bytes) -> bytes | None:
        """The value, or None. Sees every batch whose ``apply`` has returned."""

    def scan(
        self, space: Space, start: bytes = b"", end: bytes | None = None, *, limit: int
    ) -> list[tuple[bytes, bytes]]:
        """At most ``limit`` entries with start <= key < end (None: to the last), in key order, from one consistent view."""

    def apply(self, spaces: Sequence[Writes], *, sync: bool) -> None:
        """Write one batch atomically (all spaces together). With ``sync``, return only when it is on the disk.

        Raises:
            StorageFailed: any error. The state of the batch is then unknown, and the node halts: a failed sync is never
                tried again (the kernel may have dropped the pages and report success next time).
        """

    def size_bytes(self) -> int:
        """About how much disk (or memory) the data takes."""

    def close(self) -> None:
        """Sync and release everything. Further calls are an error."""


class MemoryEngine:
    """The engine in memory: for tests, for the ``memory`` setting, and inside the simulator's disks. For one thread.

    Keys are sorted only when scanned after a change: get and put are O(1), such a scan is O(n) after new keys (they are merged
    in) and O(n log n) after a deletion.
    """

    name = "memory"
    quick_unsynced = True

    def __init__(self) -> None:
        self._maps: tuple[dict[bytes, bytes], ...] = tuple({} for _ in Space)
        self._keys: list[list[bytes]] = [[] for _ in Space]
        """Sorted. Invariant: unless the space is in ``_stale``, with ``_fresh`` they are the keys of its map, each once."""
        self._fresh: list[list[bytes]] = [[] for _ in Space]
        self._stale: set[Space] = set()
        self._bytes = 0

    def get(self, space: Space, key: bytes) -> bytes | None:
        return self._maps[space].get(key)

    def _sorted_keys(self, space: Space) -> list[bytes]:
        if space in self._stale:
            self._stale.remove(space)
            self._keys[space] = sorted(self._maps[space])
            self._fresh[space] = []
        elif self._fresh[space]:
            self._fresh[space].sort()
            self._keys[space] += self._fresh[space]
            self._keys[space].sort()  # two sorted runs: one merge
            self._fresh[space] = []
        return self._keys[space]

    def scan(
        self, space: Space, start: bytes = b"", end: bytes | None = None, *, limit: int
    ) -> list[tuple[bytes, bytes]]:
        keys, values = self._sorted_keys(space), self._maps[space]
        first = bisect.bisect_left(keys, start)
        last = len(keys) if end is None else bisect.bisect_left(keys, end)
        return [(k, values[k]) for k in keys[first : min(last, first + limit)]]

    def apply(self, spaces: Sequence[Writes], *, sync: bool) -> None:
        for space, writes in zip(Space, spaces, strict=True):
            values, fresh = self._maps[space], self._fresh[space]
            for key, value in writes.items():
                old = values.get(key)
                if old is not None:
                    self._bytes -= len(key) + len(old)
                    if value is None:
                        del values[key]
                        self._stale.add(space)
                elif value is not None:
                    fresh.append(key)
                if value is not None:
                    values[key] = value
                    self._bytes += len(key) + len(value)

    def size_bytes(self) -> int:
        return self._bytes

    def close(self) -> None:
        self._maps = ()


class Store:
    """What the machines read and write: an engine, with the writes staged above it (invariants 1 to 3)."""

    __slots__ = ("_buffered_since_s", "_durability", "_engine", "_flying", "_flying_durability", "_open")

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._open: tuple[Writes, ...] = tuple({} for _ in Space)
        self._durability = Durability.MEMORY
        self._buffered_since_s = -1.0  # when the open group was first seen to hold a write; -1: not yet
        self._flying: tuple[Writes, ...] = ()
        self._flying_durability = Durability.MEMORY

    def get(self, space: Space, key: bytes) -> bytes | None:
        """The newest value, staged ones included."""
        writes = self._open[space]
        if writes and key in writes:
            return writes[key]
        if self._flying:
            writes = self._flying[space]
            if key in writes:
                return writes[key]
        return self._engine.get(space, key)

    def pending(self, space: Space, key: bytes) -> Durability:
        """What a reply that shows this key must wait for: the durability of the groups it is staged in, or MEMORY: nothing.

        Of both: a value staged over one in flight shows that one, too (its clock accounts for it).
        """
        pending = self._durability if key in self._open[space] else Durability.MEMORY
        if self._flying and self._flying_durability > pending and key in self._flying[space]:
            return self._flying_durability
        return pending

    def stage(self, space: Space, key: bytes, value: bytes | None, durability: Durability) -> None:
        """Write, to be committed with the open group."""
        self._open[space][key] = value
        if durability > self._durability:
            self._durability = durability

    @property
    def staged(self) -> bool:
        """Whether the open group holds any write."""
        return any(self._open)

    @property
    def durability(self) -> Durability:
        """What the open group needs."""
        return self._durability

    def due(self, now_s: float) -> bool:
        """Whether the open group is to be committed now. To be asked in every turn: an age counts from the first time."""
        if self._durability:
            return True
        writes = sum(map(len, self._open))
        if not writes:
            return False
        if self._buffered_since_s < 0:
            self._buffered_since_s = now_s
        return writes >= BUFFER_WRITES or now_s - self._buffered_since_s >= BUFFER_S

    def take(self) -> Group:
        """Close the open group and hand it over for committing. ``committed`` must follow before the next ``take``."""
        assert not self._flying, "one group at a time"
        group = Group(self._open, self._durability)
        self._flying, self._flying_durability = self._open, self._durability
        self._open = tuple({} for _ in Space)
        self._durability = Durability.MEMORY
        self._buffered_since_s = -1.0
        return group

    def committed(self) -> None:
        """The group in flight is in the engine."""
        self._flying = ()

    def scan(
        self, space: Space, start: bytes = b"", end: bytes | None = None, *, limit: int
    ) -> list[tuple[bytes, bytes]]:
        """At most ``limit`` entries from ``start``, as ``Engine.scan``, staged writes included."""
        staged: Writes = {}
        for group in (self._flying, self._open):
            if group:
                staged |= {k: v for k, v in group[space].items() if k >= start and (end is None or k < end)}
        if not staged:
            return self._engine.scan(space, start, end, limit=limit)
        gone = sum(v is None for v in staged.values())
        rows = self._engine.scan(space, start, end, limit=limit + gone)
        complete = len(rows) < limit + gone
        horizon = rows[-1][0] if rows and not complete else None
        merged = dict(rows) | {k: v for k, v in staged.items() if horizon is None or k <= horizon}
        return [(k, v) for k, v in sorted(merged.items()) if v is not None][:limit]

    def size_bytes(self) -> int:
        return self._engine.size_bytes()


def split_record_key(record_key: bytes) -> tuple[str, bytes]:
    """The (bucket, key) of a record key.

    Raises:
        CorruptData: it is not a record key.
    """
    start = POSITION_BYTES + 1
    if len(record_key) < start:
        raise CorruptData("a record key is shorter than its position")
    end = start + record_key[POSITION_BYTES]
    if len(record_key) < end:
        raise CorruptData("a record key is shorter than its bucket's name")
    try:
        return record_key[start:end].decode(), record_key[end:]
    except UnicodeDecodeError:
        raise CorruptData("a record key's bucket name is not UTF-8") from None


def seal(record_key: bytes, record: bytes) -> bytes:
    """Put the checksum of a record in front of its canonical bytes. Its seed is the first half of the ring position, itself a
    hash of bucket and key: so a record under a wrong key fails, too."""
    return xxhash.xxh3_64_digest(record, int.from_bytes(record_key[:8])) + record


def unseal(record_key: bytes, sealed: bytes) -> memoryview:
    """The record's bytes, without a copy.

    Raises:
        CorruptData: the checksum does not match: bit rot, a torn write, or a value under a wrong key.
    """
    record = memoryview(sealed)[CHECKSUM_BYTES:]
    if xxhash.xxh3_64_digest(record, int.from_bytes(record_key[:8])) != sealed[:CHECKSUM_BYTES]:
        raise CorruptData(f"checksum of record {record_key[POSITION_BYTES:80]!r} does not match")
    return record
