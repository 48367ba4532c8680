"""LMDB as a storage engine, by py-lmdb: a memory-mapped B-tree, for read-heavy use.

Each ``Space`` is a named database; a batch is one write transaction, hence atomic.

**Durability.** We open with ``metasync=False``: each commit writes its pages, syncs them, then writes (without sync) the meta
page that makes them current; ``apply(sync=True)`` adds one sync for that page.

    apply(sync=False)   pages, sync, meta page      survives a kill; survives a loss of power except perhaps for the last batch
    apply(sync=True)    the same, sync              survives a loss of power

So an unsynced batch costs a sync, too, and durability ``os`` buys little here. The mode without (``sync=False``) is not for
us: LMDB's pages carry no checksum, and if the kernel happens to write a meta page before the pages it points to, a loss of
power leaves a corrupt tree and nobody the wiser. This order holds because a commit never overwrites the pages of the last
two snapshots, whichever of their two meta pages survives.

**Reads** go through one read transaction, kept until the next commit: opening one for each get would add 0.3 us to 1.1. The
commit thread drops it as soon as its commit is done, so it never holds pages that LMDB could reuse otherwise: the snapshot
before last is kept anyway. (An idle reader is what makes an LMDB file grow without end: we saw 1,389 overwrites of one key
fill 16 MiB.) The lock is held while it is in use, by ``get``, ``scan``, and whoever drops it.

**Growth.** When the map is full the transaction is aborted, the map enlarged, and the batch tried again. LMDB allows that
only while this process has no transaction open: the kept one is dropped first, under the lock. The map is address space, not
memory or disk. The file never shrinks; freed pages are used again.

**Long keys.** LMDB's limit is 511 bytes. A longer one is stored folded, the whole key in front of the value:

    key <= 510 bytes    key                                                     ->  value
    key  > 510 bytes    first 479 bytes | BLAKE2b of the whole key (32 bytes)   ->  key length (4) | key | value

A folded key is 511 bytes long and no other is, so the two cannot meet. Keys that agree in their first 479 bytes (record keys
begin with a 16-byte digest: practically none do) may lie in another order than their own; a scan reads such a family to its
end and sorts it. An empty key is refused.

Invariants:
1. The kept read transaction is the last committed snapshot, or there is none; it is used and dropped only under ``_lock``.
2. After one failed apply all others fail: LMDB itself would carry on after a failed sync (measured: the next one succeeds).

Cost, measured: get 1.1 us, found or not; scan 2 us and 0.3 us per row; an apply is one sync or two, in which the GIL is released:
to be called off the event loop in either case.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Sequence
from pathlib import Path

import lmdb

from cartwheel.core.errors import StorageFailed
from cartwheel.core.storage import Space, Writes

KEY_BYTES_MAX = 511
"""``env.max_key_size()`` of LMDB as it is built everywhere."""
DIGEST_BYTES = 32
HEAD_BYTES = KEY_BYTES_MAX - DIGEST_BYTES
LENGTH_BYTES = 4
MAP_BYTES = 1 << 30
"""The map to begin with; it doubles when full."""


def _fold(key: bytes) -> bytes:
    """The key under which a long key is stored."""
    return key[:HEAD_BYTES] + hashlib.blake2b(key, digest_size=DIGEST_BYTES).digest()


def _unfold(stored: bytes) -> tuple[bytes, bytes]:
    """The (key, value) in the stored value of a folded key."""
    end = LENGTH_BYTES + int.from_bytes(stored[:LENGTH_BYTES], "big")
    return stored[LENGTH_BYTES:end], stored[end:]


class LmdbEngine:
    """See ``core.storage.Engine`` and the module's theory."""

    name = "lmdb"
    quick_unsynced = False

    def __init__(self, path: Path, *, map_bytes: int = MAP_BYTES) -> None:
        """Open or create the database.

        Raises:
            StorageFailed: damaged, not writable, or of another version.
        """
        self._path = path
        self._failure: str | None = None
        self._lock = threading.Lock()
        self._reader: lmdb.Transaction[bytes] | None = None
        try:
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
            data = path / "data.mdb"
            size = data.stat().st_size if data.exists() else 0
            while map_bytes < 2 * size:
                map_bytes *= 2
            self._env = lmdb.Environment(
                str(path), map_size=map_bytes, max_dbs=len(Space), max_spare_txns=1, metasync=False, mode=0o700
            )
            self._env.reader_check()  # slots of a process that was killed would hold its pages
            self._dbs = tuple(self._env.open_db(space.name.lower().encode()) for space in Space)
        except (lmdb.Error, OSError) as error:
            raise self._storage_failed("cannot be opened", error) from None

    def _storage_failed(self, what: str, error: object) -> StorageFailed:
        return StorageFailed(f"lmdb in {self._path}: {what}: {error}")

    def get(self, space: Space, key: bytes) -> bytes | None:
        stored_key = key if len(key) < KEY_BYTES_MAX else _fold(key)
        try:
            with self._lock:
                reader = self._reader
                if reader is None:
                    reader = self._reader = self._env.begin()
                value = reader.get(stored_key, None, self._dbs[space])
        except lmdb.Error as error:
            raise self._storage_failed("a read failed", error) from None
        if value is None or stored_key is key:
            return value
        return _unfold(value)[1]

    def scan(
        self, space: Space, start: bytes = b"", end: bytes | None = None, *, limit: int
    ) -> list[tuple[bytes, bytes]]:
        if limit <= 0 or (end is not None and end <= start):
            return []
        try:
            with self._lock:
                if self._reader is None:
                    self._reader = self._env.begin()
                return self._scan(self._reader, space, start, end, limit)
        except lmdb.Error as error:
            raise self._storage_failed("a read failed", error) from None

    def _scan(
        self, reader: lmdb.Transaction[bytes], space: Space, start: bytes, end: bytes | None, limit: int
    ) -> list[tuple[bytes, bytes]]:
        """Walk the stored keys; where folded ones are among them, see the family of equal heads through, and sort."""
        rows: list[tuple[bytes, bytes]] = []
        end_head = None if end is None else end[:HEAD_BYTES]
        family, folded = b"", False  # the head of the last long enough row; whether any row was folded
        with reader.cursor(self._dbs[space]) as cursor:
            first = start[:HEAD_BYTES]
            if not (cursor.set_range(first) if first else cursor.first()):
                return []
            for key, value in cursor.iternext():
                # A row may be out of order only within its family, so a bound is certain only across families.
                head = key[:HEAD_BYTES]
                if end_head is not None and head > end_head:
                    break
                if len(rows) >= limit and (len(head) < HEAD_BYTES or head != family):
                    break
                if len(head) == HEAD_BYTES:
                    family = head
                    if len(key) == KEY_BYTES_MAX:
                        key, value = _unfold(value)
                        folded = True
                if key >= start and (end is None or key < end):
                    rows.append((key, value))
        if folded:
            rows.sort()
        del rows[limit:]
        return rows

    def apply(self, spaces: Sequence[Writes], *, sync: bool) -> None:
        if self._failure is not None:
            raise self._storage_failed("an earlier write failed", self._failure)
        try:
            while True:
                try:
                    self._write(spaces)
                    break
                except lmdb.MapFullError:
                    self._grow()
            self._drop_reader()
            if sync:
                self._env.sync(True)
        except lmdb.Error as error:
            self._failure = str(error)
            raise self._storage_failed("a write failed", error) from None

    def _write(self, spaces: Sequence[Writes]) -> None:
        with self._env.begin(write=True) as transaction:
            put, delete = transaction.put, transaction.delete
            for db, writes in zip(self._dbs, spaces, strict=True):
                for key, value in writes.items():
                    if len(key) < KEY_BYTES_MAX:
                        stored_key = key
                    else:
                        stored_key = _fold(key)
                        if value is not None:
                            value = len(key).to_bytes(LENGTH_BYTES, "big") + key + value
                    if value is None:
                        delete(stored_key, b"", db)
                    else:
                        put(stored_key, value, True, True, False, db)

    def _drop_reader(self) -> None:
        with self._lock:
            if self._reader is not None:
                self._reader.abort()
                self._reader = None

    def _grow(self) -> None:
        """Double the map. The write transaction has been aborted; no reader may be open, hence the lock."""
        with self._lock:
            if self._reader is not None:
                self._reader.abort()
                self._reader = None
            self._env.set_mapsize(self._env.info()["map_size"] * 2)

    def size_bytes(self) -> int:
        """Of the pages ever used: about the size of the file."""
        return (self._env.info()["last_pgno"] + 1) * self._env.stat()["psize"]

    def close(self) -> None:
        """Sync and close.

        Raises:
            StorageFailed: the sync failed.
        """
        self._drop_reader()
        try:
            if self._failure is None:
                self._env.sync(True)
        except lmdb.Error as error:
            self._failure = str(error)
            raise self._storage_failed("cannot be closed in order", error) from None
        finally:
            self._env.close()
