"""The records of some leaves: read, told in 32 bytes each, told apart from another node's, and taken in."""

from __future__ import annotations

from collections import deque
from typing import NamedTuple

from cartwheel.core import merkle, versions
from cartwheel.core.antientropy.books import Damage
from cartwheel.core.clock import wall_ms_of
from cartwheel.core.errors import CorruptData
from cartwheel.core.hot import Entry
from cartwheel.core.local import Local
from cartwheel.core.merkle import HASH_BYTES, LEAVES, HashTree
from cartwheel.core.storage import POSITION_BYTES, Space, split_record_key
from cartwheel.core.types import Durability
from cartwheel.core.versions import Record

READING_BYTES = 8
TOLD_BYTES = POSITION_BYTES + HASH_BYTES + READING_BYTES


class Held(NamedTuple):
    """What is told of a record, to find out whether another node's is the same, and whose is newer."""

    hash: bytes
    reading: int


class Row(NamedTuple):
    """A record that lies here, verified."""

    held: Held
    record_key: bytes
    sealed: bytes


def reading_of(record: Record) -> int:
    """The latest clock reading among the writes that a record shows, or else knows of."""
    latest = 0
    for version in record.versions:
        latest = max(latest, version.counter)
    for _, counter in record.cloud:
        latest = max(latest, counter)
    return latest or max(record.clock.values(), default=0)


def tell(rows: dict[bytes, Row]) -> bytes:
    """Position -> row, packed for LeafKeys."""
    return b"".join([at + row.held.hash + row.held.reading.to_bytes(READING_BYTES) for at, row in rows.items()])


def told(packed: bytes) -> dict[bytes, Held]:
    """What ``tell`` packed.

    Raises:
        ValueError: it is not whole.
    """
    if len(packed) % TOLD_BYTES:
        raise ValueError("keys cut short")
    split = POSITION_BYTES + HASH_BYTES
    found = {}
    for at in range(0, len(packed), TOLD_BYTES):
        one = packed[at : at + TOLD_BYTES]
        found[one[:POSITION_BYTES]] = Held(one[POSITION_BYTES:split], int.from_bytes(one[split:]))
    return found


def after(position: bytes) -> bytes:
    """The next position; b"": that was the last."""
    following = int.from_bytes(position) + 1
    return b"" if following >> 8 * POSITION_BYTES else following.to_bytes(POSITION_BYTES)


class Rows:
    """This node's records, as anti-entropy reads and writes them."""

    def __init__(self, local: Local, damage: Damage) -> None:
        self._local = local
        self._damage = damage

    def read(
        self, tree: HashTree, n: int, first_leaf: int, leaves: int, start: bytes, end: bytes, limit: int
    ) -> tuple[dict[bytes, Row], bytes]:
        """The records of buckets of this n in these leaves (a bitmap that begins at ``first_leaf``), from position ``start``
        up to ``end`` (b"": all), in ring order, at most ``limit``; and where to go on (b"": all are read).

        A corrupt record is passed over (and fetched: ``Local.on_corrupt``), a leaf that cannot be read is passed over and noted.
        """
        local = self._local
        found: dict[bytes, Row] = {}
        pieces = deque(merkle.runs(leaves))
        while pieces:
            first, stop = pieces.popleft()
            low, high = tree.bounds(first_leaf + first, first_leaf + stop)
            low = max(low, start)
            if end and (high is None or end < high):
                high = end
            if high is not None and low >= high:
                continue
            try:
                rows = local.store.scan(Space.RECORDS, low, high, limit=limit)
            except CorruptData:
                if stop - first > 1:
                    pieces.extendleft((leaf, leaf + 1) for leaf in reversed(range(first, stop)))
                else:
                    local.count("scans_damaged")
                    self._damage.note(first_leaf + first)
                continue
            for record_key, sealed in rows:
                if local.props(split_record_key(record_key)[0]).n == n:
                    entry = local.opened(record_key, sealed)
                    if entry is not None:
                        held = Held(entry[0][:HASH_BYTES], reading_of(entry[1]))
                        found[record_key[:POSITION_BYTES]] = Row(held, record_key, entry[0])
            limit -= len(rows)
            if limit <= 0:
                return found, after(rows[-1][0][:POSITION_BYTES])
        return found, b""

    def young(self, reading: int, settle_ms: int) -> bool:
        """Whether a write with this reading may still be on its way. One from far in the future is not: its clock is wrong."""
        if not settle_ms:
            return False
        age_ms = self._local.wall_ms - wall_ms_of(reading)
        return -self._local.config.skew_ms_max <= age_ms < settle_ms

    def take(self, record_key: bytes, sealed: bytes) -> tuple[bytes | None, bool]:
        """Merge another owner's record into ours. Returns what we hold now (None: it was refused), and whether that changed.

        What is not ours to hold is refused; but what is left here of a partition that was ours is merged before it goes.
        """
        local = self._local
        try:
            before, ours = self._entry(record_key) or (None, versions.EMPTY)
            if before is None and not local.is_writer(local.node, record_key):
                local.count("repairs_refused")
                return None, False
            if before == sealed:
                return sealed, False
            local.absorb(record_key, sealed, Durability.OS, ours)
        except CorruptData:
            local.count("repairs_refused")
            return None, False
        held = self.sealed(record_key)
        return held, held != before

    def sealed(self, record_key: bytes) -> bytes | None:
        """What lies here now, verified; None: nothing good."""
        entry = self._entry(record_key)
        return None if entry is None else entry[0]

    def _entry(self, record_key: bytes) -> Entry | None:
        try:
            return self._local.read_entry(record_key)
        except CorruptData:
            return None

    def compared(self, partition: int, leaves: int) -> int:
        """These leaves without those that are damaged here."""
        first = partition * LEAVES
        return leaves & ~self._damage.resting(first, first + LEAVES)
