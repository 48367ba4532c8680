"""RocksDB as a storage engine, by rocksdict: the default.

Each ``Space`` is a column family; a batch across them is one record of the write-ahead log, hence atomic.

    apply(sync=False)   log -> operating system, then memtable          survives a kill: the log is written at once
    apply(sync=True)    the same, then sync of every log not yet synced  survives a loss of power

Invariants:
1. Log records reach the disk in the order applied: a sync covers all earlier batches, older log files first. After a crash,
   recovery stops at the first damaged record, so what is left is a prefix of what was applied.
2. After one failed apply all others fail. A log that failed to sync may have lost its pages while the next sync succeeds.
3. No call on the event loop waits for the disk, except a read that misses block cache and page cache.

Two things about rocksdict 0.3.29, found by measuring:

- ``Rdict.write`` **keeps the GIL**, also while it syncs: a commit thread would stop the event loop for every fdatasync, and
  for as long as RocksDB holds writers back. ``flush_wal`` releases it. So we write without sync, then call ``flush_wal(True)``:
  the same two system calls and the same time (240 us for one small write on the disk we measured with), but the loop runs
  on. And we write with ``no_slowdown``: rather than sleep in there, RocksDB refuses, and we wait with the GIL released.
- ``items()`` ends on a damaged block as if it were the end of the data. Only ``RdictIter.status`` tells, so we scan with that
  (0.5 instead of 0.3 us per row).

Cost, measured: get 2.1 us from the memtable and 2.6 from a cached block, 0.7 if the key is absent (bloom filters); scan 6 us and
0.5 us per row; apply of one small write 7 us, of fifty 65 us, during which the GIL is held. A process with 100,000 small keys
in here: about 70 MB, 31 of them Python.

A damaged block is reported, marked, and salvaged at the next start: see ``salvage``.

No prefix extractor, though keys have a natural prefix: scans go across positions, and with an extractor an iterator that
forgets ``total_order_seek`` skips rows without a word.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from rocksdict import (
    BlockBasedOptions,
    Cache,
    ColumnFamily,
    DBCompressionType,
    Options,
    Rdict,
    ReadOptions,
    WriteBatch,
    WriteOptions,
)

from cartwheel.core.errors import CorruptData, StorageFailed
from cartwheel.core.storage import Space, Writes
from cartwheel.runtime.engines import salvage

log = logging.getLogger(__name__)

KIB, MIB = 1 << 10, 1 << 20

CACHE_BYTES = 32 * MIB
"""Uncompressed blocks with their indexes and filters. Modest: the operating system's page cache stands behind it."""
WRITE_BUFFER_BYTES = {Space.RECORDS: 16 * MIB, Space.META: 1 * MIB, Space.HINTS: 4 * MIB}
"""A memtable; there are at most two per family. 16 MiB fills in seconds under load, and is replayed in well under one."""
LOG_BYTES_MAX = 64 * MIB
"""Of write-ahead log: bounds the replay. A family that is seldom written would else keep old logs for ever."""
BLOCK_BYTES = 8 * KIB
OPEN_FILES_MAX = 512
"""Half of the usual limit of 1,024 per process; the rest is for connections."""
SCAN_CACHED_MAX = 64
"""Rows: a longer scan is one of many pages over a partition, and must not push out of the cache what is read often."""
STALL_POLL_S = 0.001
STALL_MAX_S = 60.0
"""If compaction has not made room by then, the disk is as good as broken."""
STALLED = "Result incomplete"
"""How RocksDB's refusal under ``no_slowdown`` begins. Nothing of the batch has been written then."""
DAMAGED = "Corruption"


def _family_options(space: Space, cache: Cache, *, compact: bool) -> Options:
    table = BlockBasedOptions()
    table.set_block_cache(cache)
    table.set_block_size(BLOCK_BYTES)
    table.set_bloom_filter(10, False)  # 1 % false positives at 10 bits a key
    table.set_format_version(5)
    # Indexes and filters in the cache: else they grow with the data, outside any limit. Those of level 0 are on every read's way.
    table.set_cache_index_and_filter_blocks(True)
    table.set_pin_l0_filter_and_index_blocks_in_cache(True)
    options = Options(raw_mode=True)
    options.set_block_based_table_factory(table)
    options.set_write_buffer_size(WRITE_BUFFER_BYTES[space])
    options.set_max_write_buffer_number(2)
    # A bloom filter over the memtable's whole keys: a get for what lies in the tables skips the memtable (2.3 instead of 3.0 us).
    options.set_memtable_prefix_bloom_ratio(0.1)
    options.set_memtable_whole_key_filtering(True)
    options.set_compression_type(DBCompressionType.lz4())
    options.set_level_compaction_dynamic_level_bytes(True)
    options.set_disable_auto_compactions(not compact)
    return options


def _database_options() -> Options:
    options = Options(raw_mode=True)
    options.create_if_missing(True)
    options.create_missing_column_families(True)
    options.set_max_background_jobs(2)  # one thread flushes, one compacts
    options.set_max_total_wal_size(LOG_BYTES_MAX)
    options.set_max_open_files(OPEN_FILES_MAX)
    options.set_bytes_per_sync(
        MIB
    )  # tables go to the disk as they are written, not in a heap that a log sync waits for
    options.set_write_buffer_size(MIB)  # of the family "default", which RocksDB insists on and we do not use
    options.set_allow_concurrent_memtable_write(False)  # one writer
    # The text logs (LOG*) and manifests: bounded.
    options.set_keep_log_file_num(2)
    options.set_max_log_file_size(4 * MIB)
    options.set_max_manifest_file_size(16 * MIB)
    options.set_stats_dump_period_sec(0)
    options.set_stats_persist_period_sec(0)
    return options


class RocksEngine:
    """See ``core.storage.Engine`` and the module's theory."""

    name = "rocksdb"
    quick_unsynced = True

    def __init__(self, path: Path, *, cache_bytes: int = CACHE_BYTES) -> None:
        """Open or create the database.

        Raises:
            StorageFailed: locked, damaged, or not writable.
        """
        self._path = path
        self._failure: str | None = None
        try:
            salvage.finish(path)
            if salvage.is_marked(path):
                _salvage(path)
        except OSError as error:
            raise self._storage_failed("cannot be salvaged", error) from None
        self._open(cache_bytes)

    def _open(self, cache_bytes: int, *, compact: bool = True) -> None:
        cache = Cache(cache_bytes)
        families = {space.name.lower(): _family_options(space, cache, compact=compact) for space in Space}
        try:
            self._db = Rdict(str(self._path), _database_options(), families)
            self._families = tuple(self._db.get_column_family(name) for name in families)
            self._handles = tuple(self._db.get_column_family_handle(name) for name in families)
        except Exception as error:  # noqa: BLE001 - rocksdict raises bare Exception
            advice = (
                "; start the node on an empty directory: the other nodes will fill it" if DAMAGED in str(error) else ""
            )
            raise self._storage_failed("cannot be opened", f"{error}{advice}") from None
        self._gets = tuple(family.get for family in self._families)
        self._write_options = WriteOptions()
        self._write_options.no_slowdown = True

    def _storage_failed(self, what: str, error: object) -> StorageFailed:
        return StorageFailed(f"rocksdb in {self._path}: {what}: {error}")

    def _read_failed(self, error: Exception) -> StorageFailed | CorruptData:
        """A damaged block is one replica's lost data, which the others can give back; anything else is a broken disk."""
        if str(error).startswith(DAMAGED):
            salvage.mark(self._path)
            return CorruptData(f"rocksdb in {self._path}: {error}")
        return self._storage_failed("a read failed", error)

    def get(self, space: Space, key: bytes) -> bytes | None:
        try:
            value: bytes | None = self._gets[space](key)
        except Exception as error:  # noqa: BLE001 - rocksdict raises bare Exception
            raise self._read_failed(error) from None
        return value

    def scan(
        self, space: Space, start: bytes = b"", end: bytes | None = None, *, limit: int
    ) -> list[tuple[bytes, bytes]]:
        if limit <= 0 or (end is not None and end <= start):
            return []
        options = ReadOptions()
        if limit > SCAN_CACHED_MAX:
            options.fill_cache(False)  # type: ignore[call-arg]  # its stub lacks the argument
        if end is not None:
            # Not only to spare a comparison: without it the last step would go on through all tombstones behind the end.
            options.set_iterate_upper_bound(end)
        rows: list[tuple[bytes, bytes]] = []
        try:
            rows_iter = self._families[space].iter(options)
            valid, key, value, step = rows_iter.valid, rows_iter.key, rows_iter.value, rows_iter.next
            rows_iter.seek(start)
            while valid():
                rows.append((key(), value()))
                if len(rows) == limit:
                    break
                step()
            rows_iter.status()
        except Exception as error:  # noqa: BLE001 - rocksdict raises bare Exception
            raise self._read_failed(error) from None
        return rows

    def apply(self, spaces: Sequence[Writes], *, sync: bool) -> None:
        if self._failure is not None:
            raise self._storage_failed("an earlier write failed", self._failure)
        try:
            if any(spaces):
                self._write(spaces)
            if sync:
                self._db.flush_wal(True)
        except Exception as error:  # noqa: BLE001 - rocksdict raises bare Exception
            self._failure = str(error)
            if DAMAGED in self._failure:  # a compaction met it
                salvage.mark(self._path)
            raise self._storage_failed("a write failed", error) from None

    def _batch(self, spaces: Sequence[Writes]) -> WriteBatch:
        batch = WriteBatch(raw_mode=True)
        put, delete = batch.put, batch.delete
        handle: ColumnFamily
        for handle, writes in zip(self._handles, spaces, strict=True):
            for key, value in writes.items():
                if value is None:
                    delete(key, handle)
                else:
                    put(key, value, handle)
        return batch

    def _write(self, spaces: Sequence[Writes]) -> None:
        """Write one batch to the log and the memtables; while RocksDB holds writers back, wait (with the GIL released)."""
        deadline = None
        while True:
            try:
                # A batch is used up by the call, also when it is refused.
                return self._db.write(self._batch(spaces), self._write_options)
            except Exception as error:
                if not str(error).startswith(STALLED):
                    raise
                now = time.monotonic()
                if deadline is None:
                    deadline = now + STALL_MAX_S
                elif now > deadline:
                    raise
            time.sleep(STALL_POLL_S)

    def size_bytes(self) -> int:
        total = 0
        for family in self._families:
            for what in ("rocksdb.total-sst-files-size", "rocksdb.cur-size-all-mem-tables"):
                total += family.property_int_value(what) or 0
        return total

    def close(self) -> None:
        """Flush the memtables, so that the next start replays nothing, and close.

        Raises:
            StorageFailed: that failed, or an apply before: then nothing is flushed.
        """
        # RocksDB closes when the last of these is gone.
        families, db = self._families, self._db
        self._gets, self._handles, self._families = (), (), ()
        try:
            if self._failure is None:
                for family in families:
                    family.close()
                db.close()
        except Exception as error:  # noqa: BLE001 - rocksdict raises bare Exception
            self._failure = str(error)
            raise self._storage_failed("cannot be closed in order", error) from None
        finally:
            del self._db


class _Damaged(RocksEngine):
    """A database to be salvaged: nothing is compacted, for that would come upon the damage (``salvage.Source``)."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._failure = None
        self._open(CACHE_BYTES, compact=False)

    def read_until_damage(self, space: Space, start: bytes) -> Iterator[tuple[bytes, bytes]]:
        try:
            found = self._families[space].iter(ReadOptions())
            found.seek(start)
            while found.valid():
                yield found.key(), found.value()
                found.next()
            found.status()
        except Exception as error:  # noqa: BLE001 - rocksdict raises bare Exception
            raise self._read_failed(error) from None

    def first_from(self, space: Space, start: bytes) -> bytes | None:
        rows = self.scan(space, start, limit=1)
        return rows[0][0] if rows else None


def _salvage(path: Path) -> None:
    log.warning("rocksdb in %s has damaged blocks: copying what can be read into a new database", path)
    source = _Damaged(path)
    try:
        target = RocksEngine(salvage.target_path(path))
        try:
            rows, holes = salvage.copy_readable(source, target)
        finally:
            target.close()
    finally:
        source.close()
    salvage.swap(path, keep=holes > 0)
    log.warning("kept %d rows; %d stretches could not be read", rows, holes)
    if holes:
        where = salvage.unreadable_path(path)
        log.warning(
            "the other nodes have copies of those; when 'cartwheel verify' finds all replicas identical, remove %s",
            where,
        )
