"""The hot records: a small cache of what was read or written last, verified and decoded.

A read of a hot key costs a dictionary look-up in place of an engine read, a checksum and a decode, on each replica. Two
generations: what is used goes into the young one; when that is full it becomes the old one, and what was old is forgotten.
So a record survives if it is used once in a generation, and nothing needs moving on a hit in the young one.

The node is the only writer of its records, and every write comes through here, so an entry is never stale. Invariant: an
entry is what the store would give, and its checksum was verified, or made, by this process.

Memory: at most ``2 * ENTRIES_MAX`` records of at most ``RECORD_BYTES_MAX``: some 3 MB of small records, 64 MB at the worst.
"""

from __future__ import annotations

from cartwheel.core.versions import Record

ENTRIES_MAX = 4096
RECORD_BYTES_MAX = 8192
"""Larger records are cheap to read compared with sending them."""

Entry = tuple[bytes, Record]
"""A sealed record, and the same decoded."""


class HotRecords:
    """Record key -> entry."""

    __slots__ = ("_old", "_young")

    def __init__(self) -> None:
        self._young: dict[bytes, Entry] = {}
        self._old: dict[bytes, Entry] = {}

    def get(self, record_key: bytes) -> Entry | None:
        """The entry, if it is still here."""
        entry = self._young.get(record_key)
        if entry is None:
            entry = self._old.get(record_key)
            if entry is not None:
                self._add(record_key, entry)
        return entry

    def put(self, record_key: bytes, sealed: bytes, record: Record) -> None:
        """Note what was read, or written in place of what was here."""
        if len(sealed) <= RECORD_BYTES_MAX:
            if record_key in self._young:
                self._young[record_key] = sealed, record
            else:
                self._add(record_key, (sealed, record))
        else:
            self.drop(record_key)

    def drop(self, record_key: bytes) -> None:
        """Forget one."""
        self._young.pop(record_key, None)
        self._old.pop(record_key, None)

    def clear(self) -> None:
        """Forget all: the next reads come from the disk and verify it."""
        self._young, self._old = {}, {}

    def _add(self, record_key: bytes, entry: Entry) -> None:
        if len(self._young) >= ENTRIES_MAX:
            self._old, self._young = self._young, {}
        self._young[record_key] = entry
