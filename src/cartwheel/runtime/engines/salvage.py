"""What is left of a RocksDB with damaged blocks, in a new one.

RocksDB checks each block that it reads, and gives nothing of one that fails. A single get fails then, which the node mends from
its replicas. But a scan cannot step over the block, not even once all its keys have been written anew: so the ranges around it
stay out of anti-entropy, and a compaction that comes upon it stops all writes. So whoever meets damage **marks** the database,
and the next start **salvages** it before anything is served:

    engine.damaged       the mark: an empty file beside the directory
    engine.salvaged/     everything that can be read, as a new database
    engine.old/          the damaged one, during the swap
    engine.unreadable/   the same, kept if something of it could not be read: a cluster of one node has no other copy

Records and hints in damaged blocks are gone, as if the disk had lost them: the others hold copies. Facts (``Space.META``) must
all be there, except those that may be lost (``SPARE``): what a node knows of itself is nowhere else. The mark of a clean stop
is one of these, so the node starts as after a crash: with a new stint, and its summary built anew.

A power cut at any point leaves the damaged database or the salvaged one, and the mark with the former.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Protocol

from cartwheel.core.errors import CorruptData, StorageFailed
from cartwheel.core.storage import FACTS, Space, Writes

BATCH_ROWS = 1000
SEEK_BYTES = 96
"""The end of damage is looked for among keys of this length: enough for any position behind any node's name."""

Row = tuple[bytes, bytes]


class Source(Protocol):
    """The damaged database."""

    def read_until_damage(self, space: Space, start: bytes) -> Iterator[Row]:
        """The rows from ``start`` on. Raises CorruptData behind the last row before the first damaged block."""

    def first_from(self, space: Space, start: bytes) -> bytes | None:
        """The first key from ``start`` on; None: there is none. Raises CorruptData."""


class Target(Protocol):
    """The new one."""

    def apply(self, spaces: list[Writes], *, sync: bool) -> None:
        """As ``Engine.apply``."""


def _mark(path: Path) -> Path:
    return path.with_name(path.name + ".damaged")


def target_path(path: Path) -> Path:
    """Where to write the new database."""
    return path.with_name(path.name + ".salvaged")


def _old(path: Path) -> Path:
    return path.with_name(path.name + ".old")


def unreadable_path(path: Path) -> Path:
    """Where a damaged database is kept."""
    return path.with_name(path.name + ".unreadable")


def facts_lost(error: CorruptData) -> StorageFailed:
    """A damaged record is fetched from the other nodes, but what a node knows of itself is nowhere else."""
    return StorageFailed(
        f"{error}. What this node knows of itself cannot be read, so it cannot go on with this data. Look at the disk, then "
        "start the node on an empty directory: the other nodes will fill it"
    )


def mark(path: Path) -> None:
    """The database at ``path`` has a damaged block: salvage it at the next start. Best effort: it will be met again."""
    try:
        _mark(path).touch()
    except OSError:
        return


def is_marked(path: Path) -> bool:
    """Whether the database is to be salvaged."""
    return _mark(path).exists()


def finish(path: Path) -> None:
    """Finish, or take back, what a power cut interrupted. To be called before the database is opened.

    Raises:
        OSError: the directory cannot be written.
    """
    new, old = target_path(path), _old(path)
    if old.exists():  # so the new one was complete
        if new.exists():
            shutil.rmtree(path, ignore_errors=True)  # empty, if it is there at all
            _rename(new, path)
        shutil.rmtree(unreadable_path(path), ignore_errors=True)
        _rename(old, unreadable_path(path))
        _mark(path).unlink(missing_ok=True)
    elif new.exists():
        shutil.rmtree(new)


def copy_readable(source: Source, target: Target) -> tuple[int, int]:
    """Copy what can be read. Returns how many rows, and how many stretches could not be.

    Raises:
        StorageFailed: a fact is among these, or a row cannot be written.
    """
    rows = holes = 0
    for space in Space:
        batch: Writes = {}
        for row in _readable(source, space):
            if row is None:
                holes += 1
                continue
            batch[row[0]] = row[1]
            rows += 1
            if len(batch) == BATCH_ROWS:
                target.apply(_spaces(space, batch), sync=False)
                batch = {}
        target.apply(_spaces(space, batch), sync=True)
    return rows, holes


def swap(path: Path, *, keep: bool) -> None:
    """Put the salvaged database, which is closed and on the disk, in the place of the damaged one, which is kept or removed."""
    _rename(path, _old(path))
    finish(path)
    if not keep:
        shutil.rmtree(unreadable_path(path))


def _rename(path: Path, to: Path) -> None:
    """Rename, and make that survive a power cut before anything else does."""
    path.rename(to)
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _spaces(space: Space, batch: Writes) -> list[Writes]:
    return [batch if each is space else {} for each in Space]


def _readable(source: Source, space: Space) -> Iterator[Row | None]:
    """All rows that can be read; None for each stretch between them that cannot."""
    start: bytes | None = FACTS if space is Space.META else b""
    while start is not None:
        try:
            for row in source.read_until_damage(space, start):
                yield row
                start = row[0] + b"\x00"
            return
        except CorruptData as error:
            if space is Space.META:
                raise facts_lost(error) from error
            yield None
            start = _end_of_damage(source, space, start)


def _end_of_damage(source: Source, space: Space, start: bytes) -> bytes | None:
    """The first key behind the damage that begins at ``start``; None: nothing behind it can be read."""
    base, last = int.from_bytes(start[:SEEK_BYTES].ljust(SEEK_BYTES, b"\x00")), (1 << 8 * SEEK_BYTES) - 1

    def reads(number: int) -> bool:
        try:
            source.first_from(space, number.to_bytes(SEEK_BYTES))
        except CorruptData:
            return False
        return True

    good = _first_good(reads, base, last)
    return None if good is None else source.first_from(space, good.to_bytes(SEEK_BYTES))


def _first_good(reads: Callable[[int], bool], bad: int, last: int) -> int | None:
    """The smallest number above ``bad`` that reads, if all smaller ones do not: by doubling the step, then halving it."""
    step = 1
    while not reads(min(bad + step, last)):
        if bad + step >= last:
            return None
        step *= 2
    low, high = bad, min(bad + step, last)
    while high - low > 1:
        middle = (low + high) // 2
        if reads(middle):
            high = middle
        else:
            low = middle
    return high
