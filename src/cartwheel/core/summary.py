"""What a node keeps in memory about all its records, up to date on every write: how many live keys, and the hash trees.

    write ──> Local.write_sealed ──> note_write ─┬─ counts[bucket][partition]      for DBSIZE (``coverage``)
                                                 └─ trees[n].leaves[leaf] ^= ...   for ``antientropy``

**One tree for each n.** The owners of a key are the first n of its partition's preference list, and n is a property of the
bucket. Two nodes share only the keys of buckets whose n reaches both; so a tree holds the records of the buckets with one n, and
the trees of two nodes that share a partition at that n must be equal.

**Building.** Both are saved at a clean stop. After an unclean one, or when a bucket's n has changed, they are built again in the
background by reading all records, a slice a tick. A partition whose records turned out corrupt is built again alone: what its
leaves held of them is unknown. A partition that is not built yet is not compared (``ready``).

Invariants:
1. A built partition's leaves are the XOR of the hashes of its records, staged ones included; a record known to be corrupt has no
   part in them. Of the partition that is being built this holds for what lies below the cursor.
2. Nothing here is written to the disk while the node runs: what an unclean stop may have lost of the records is read anew.

Cost: 0.5 us a write; half a KiB for each partition and n; building reads some 10,000 records a second.
"""

from __future__ import annotations

from array import array

import msgspec

from cartwheel.core import merkle
from cartwheel.core.errors import CorruptData
from cartwheel.core.local import DEFAULT_PROPS, Local
from cartwheel.core.merkle import HashTree
from cartwheel.core.ring import record_key as key_of
from cartwheel.core.storage import POSITION_BYTES, Space, split_record_key
from cartwheel.core.types import Durability
from cartwheel.core.versions import Record

META_SUMMARY = b"\x00summary"
"""May be lost (``storage.FACTS``). It sorts before the other facts, so damage to its many bytes spares their block."""
BUILD_ROWS = 500
"""Rows read a tick while building: a millisecond or two."""

_hash = merkle.record_hash


class Saved(msgspec.Struct, array_like=True):
    """A summary on the disk, from a clean stop to the next start."""

    n: dict[str, int]
    """The bucket properties that the trees were built for."""
    counts: dict[str, dict[int, int]]
    trees: dict[int, bytes]
    scrubbed: int
    """How far the scrub has come: a leaf."""


class Summary:
    """Counts and trees of one node."""

    def __init__(self, local: Local) -> None:
        self._local = local
        self._counts: dict[str, dict[int, int]] = {}
        self._n: dict[str, int] = {}  # of the buckets that have one of their own
        self._cut(local.config.q)
        self.trees: dict[int, HashTree] = {DEFAULT_PROPS.n: HashTree(self._q)}
        self._leaves: dict[bytes, array[int]] = {}  # a bucket as it stands in record keys -> its tree's leaves
        self._default = self.trees[DEFAULT_PROPS.n].leaves
        self._todo: set[int] = set()  # partitions to be built
        self._current = -1  # the one that is being built
        self._cursor = b""  # its rows below are noted
        self._reading = False
        self.scrubbed = 0

    def _cut(self, q: int) -> None:
        """The ring has so many partitions."""
        self._q = q
        self._partition_shift = 24 - (q.bit_length() - 1)
        self._leaf_shift = HashTree(1).shift - (q.bit_length() - 1)

    # --- life ---

    def start(self, *, clean: bool) -> None:
        """Take what a clean stop saved; otherwise build anew. The ring is known."""
        store, data = self._local.store, None
        if clean:
            try:
                data = store.get(Space.META, META_SUMMARY)
            except CorruptData:
                self._local.count("summaries_unreadable")
        store.stage(Space.META, META_SUMMARY, None, Durability.SYNC)
        if data is None or not self._take(data):
            self._build_all()

    def _take(self, data: bytes) -> bool:
        try:
            saved = msgspec.msgpack.decode(data, type=Saved)
            trees = {n: HashTree.decode(self._q, leaves) for n, leaves in saved.trees.items()}
        except (msgspec.DecodeError, CorruptData):
            return False
        if saved.n != self._n or trees.keys() != self.trees.keys():
            return False
        self._counts, self.trees, self.scrubbed = saved.counts, trees, saved.scrubbed
        self._todo = set()
        self._route()
        return True

    def save(self) -> None:
        """Stage everything for a clean stop; what is still incomplete is not saved, so it is made again."""
        saved = None
        if not self._todo:
            trees = {n: tree.encode() for n, tree in sorted(self.trees.items())}
            saved = msgspec.msgpack.encode(Saved(self._n, self._counts, trees, self.scrubbed))
        self._local.store.stage(Space.META, META_SUMMARY, saved, Durability.SYNC)

    def place(self) -> None:
        """There is another view (``Local.on_place``). A bucket with records may need another tree; and where the ring has been
        doubled, every partition needs trees of its own."""
        ring = self._local.ring
        assert ring is not None
        if ring.q != self._q:
            self._cut(ring.q)
            self.trees = {each: HashTree(ring.q) for each in self.trees}
            self._counts = {}
            self._route()
            self._build_all()
        n = {name: props.n for name, props in sorted(self._local.buckets.items()) if props.n != DEFAULT_PROPS.n}
        if n == self._n:
            return
        moved = [name for name in self._n.keys() | n.keys() if self._n.get(name) != n.get(name)]
        rebuild = bool(self._todo) or any(name in self._counts for name in moved)
        self._n = n
        kept = {DEFAULT_PROPS.n, *n.values()}
        self.trees = {each: self.trees.get(each) or HashTree(self._q) for each in sorted(kept)}
        self._route()
        if rebuild:
            self._build_all()

    def _route(self) -> None:
        """From buckets to leaves."""
        self._default = self.trees[DEFAULT_PROPS.n].leaves
        self._leaves = {key_of(name, b"")[POSITION_BYTES:]: self.trees[n].leaves for name, n in self._n.items()}

    def _build_all(self) -> None:
        self._todo, self._current = set(range(self._q)), -1
        self.scrubbed = 0  # building reads everything

    # --- writes ---

    def note_write(self, record_key: bytes, old: Record, new: Record, was: bytes | None, sealed: bytes | None) -> None:
        """Keep up with a write (``Local.on_write``).

        Args:
            was: ``old`` as it was stored; None: there was nothing, or nothing that could be read.
            sealed: ``new``, sealed; None: the record is removed.
        """
        if not self._todo or self._counted(record_key):
            change = _hash(sealed)[0] if sealed is not None else 0
            if was is not None:
                change ^= _hash(was)[0]
            leaves = self._default
            if self._leaves:
                leaves = self._leaves.get(record_key[16 : 17 + record_key[16]], leaves)
            leaves[(record_key[0] << 16 | record_key[1] << 8 | record_key[2]) >> self._leaf_shift] ^= change
            before, after = old.versions, new.versions
            if not before or not after or before[0].value is None or after[0].value is None:
                self._count(
                    record_key, shows(new) - shows(old)
                )  # the rare write: otherwise a value was, and a value is

    def _counted(self, record_key: bytes) -> bool:
        """Whether what is being built already covers this key: if not, it will be read later."""
        partition = int.from_bytes(record_key[:3]) >> self._partition_shift
        return partition not in self._todo or (partition == self._current and record_key < self._cursor)

    def _count(self, record_key: bytes, delta: int) -> None:
        counts = self._counts.setdefault(split_record_key(record_key)[0], {})
        if delta:
            partition = int.from_bytes(record_key[:3]) >> self._partition_shift
            counts[partition] = counts.get(partition, 0) + delta

    # --- building ---

    @property
    def unready(self) -> int:
        """How many partitions are still to be built."""
        return len(self._todo)

    def ready(self, partition: int) -> bool:
        """Whether the partition's leaves and counts are right."""
        return partition not in self._todo

    def rebuild(self, partition: int) -> None:
        """What this partition's leaves say is in doubt."""
        if not (self._reading and partition == self._current):
            self._todo.add(partition)
            if partition == self._current:
                self._current = -1

    def note_corrupt(self, record_key: bytes) -> None:
        """A record turned out corrupt: it has no part in its leaf any more, and what part it had is unknown."""
        self.rebuild(int.from_bytes(record_key[:3]) >> self._partition_shift)

    def handle_tick(self) -> None:
        """Build a slice, budget permitting."""
        if self._todo and self._local.budget(BUILD_ROWS // 8):  # reading a row is about an eighth of moving one
            rows = BUILD_ROWS
            while self._todo and rows > 0:
                rows -= self._build_slice(rows)

    def _build_slice(self, limit: int) -> int:
        """Read up to ``limit`` rows of consecutive partitions. Returns how many; at least 1, so that empty ones end, too."""
        local, todo = self._local, self._todo
        if self._current < 0:
            self._begin(min(todo))
        end = self._current
        while end + 1 in todo:
            end += 1
        tree = self.trees[DEFAULT_PROPS.n]
        _, stop = tree.bounds(0, (end + 1) * merkle.LEAVES)
        try:
            rows = local.store.scan(Space.RECORDS, self._cursor, stop, limit=limit)
        except CorruptData:
            local.count("scans_damaged")
            return self._build_alone(limit)
        self._reading = True
        for record_key, sealed in rows:
            self._pass_to(int.from_bytes(record_key[:3]) >> self._partition_shift)
            self._read(record_key, sealed)
        self._reading = False
        if len(rows) == limit:
            self._cursor = rows[-1][0] + b"\x00"
        else:
            self._pass_to(end)
            self._end(end)
        return max(len(rows), 1)

    def _build_alone(self, limit: int) -> int:
        """The current partition leaf by leaf: the disk is damaged there or behind. A damaged leaf stays incomplete, so it differs
        from what others hold, and comparing finds out."""
        local, partition = self._local, self._current
        self._reading = True
        for first in range(partition * merkle.LEAVES, (partition + 1) * merkle.LEAVES):
            start, stop = self.trees[DEFAULT_PROPS.n].bounds(first, first + 1)
            try:
                rows = local.store.scan(Space.RECORDS, max(start, self._cursor), stop, limit=1 << 30)
            except CorruptData:
                continue
            for record_key, sealed in rows:
                self._read(record_key, sealed)
        self._reading = False
        self._end(partition)
        return limit

    def _begin(self, partition: int) -> None:
        self._current = partition
        self._cursor, _ = self.trees[DEFAULT_PROPS.n].bounds(partition * merkle.LEAVES, (partition + 1) * merkle.LEAVES)
        for tree in self.trees.values():
            tree.clear(partition)
        for counts in self._counts.values():
            counts.pop(partition, None)

    def _end(self, partition: int) -> None:
        self._todo.discard(partition)
        self._current = -1

    def _pass_to(self, partition: int) -> None:
        """All rows before this partition are read."""
        while self._current < partition:
            done = self._current
            self._end(done)
            self._begin(done + 1)

    def _read(self, record_key: bytes, sealed: bytes) -> None:
        entry = self._local.opened(record_key, sealed)
        if entry is not None:
            leaves = self._leaves.get(record_key[16 : 17 + record_key[16]], self._default)
            leaves[int.from_bytes(record_key[:3]) >> self._leaf_shift] ^= _hash(entry[0])[0]
            self._count(record_key, shows(entry[1]))

    # --- for coverage ---

    def buckets(self) -> list[str]:
        """The buckets with live keys here."""
        return sorted(name for name, counts in self._counts.items() if any(n > 0 for n in counts.values()))

    def keys(self, bucket: str) -> dict[int, int]:
        """Live keys of a bucket by partition: those with any."""
        return {p: n for p, n in self._counts.get(bucket, {}).items() if n > 0}


def shows(record: Record) -> int:
    """1 if the record holds any value, else 0."""
    for version in record.versions:
        if version.value is not None:
            return 1
    return 0
