"""Digests: what a node itself holds of a partition, key by key, so that somebody can compare all replicas (``cartwheel verify``).

Anti-entropy (section 4.7) compares hash trees, and mends. Whoever wants to know whether it did must not ask its trees: here
every record is read from the store, and its checksum verified. Replicas with equal records tell equal digests, because the bytes
of a record are canonical and the checksum is made over them and the key's position.

Without state between calls: a page says where the next one begins. Cost: a page reads ``ROWS_MAX`` rows, or some more than
``BYTES_MAX`` bytes, whichever is less: a millisecond or two of the loop.
"""

from __future__ import annotations

from cartwheel.core.errors import Code, CorruptData
from cartwheel.core.local import Local
from cartwheel.core.messages import ClientDigests, Digest, Digests, Failure
from cartwheel.core.storage import CHECKSUM_BYTES, Space, split_record_key
from cartwheel.core.versions import siblings

ROWS_MAX = 512
BYTES_MAX = 1 << 20
STEP_ROWS = 32
"""Rows read in one go: with values of the largest size, 1 MiB, that is what a page may take of memory."""


class DigestReader:
    """Reads pages of this node's own records."""

    def __init__(self, local: Local) -> None:
        self._local = local

    def read(self, event: ClientDigests) -> None:
        """One page of a partition."""
        local, ring, partition = self._local, self._local.ring, event.partition
        assert ring is not None
        if not 0 <= partition < ring.q:
            local.reply(event.client, Failure(Code.INVALID, f"partitions are numbered from 0 to {ring.q - 1}"))
            return
        first, end = ring.bounds(partition)
        rows: list[Digest] = []
        unreadable = ""
        try:
            reached = self._fill(rows, max(first, event.start), end)
        except CorruptData as error:  # a damaged block: what lies behind it cannot be listed
            reached, unreadable = None, str(error)
        buckets = sorted({split_record_key(row.record_key)[0] for row in rows})
        owners = {bucket: min(local.props(bucket).n, local.members) for bucket in buckets}
        local.reply(
            event.client, Digests(rows, reached, list(ring.preference(partition)), owners, local.epoch, unreadable)
        )

    def _fill(self, rows: list[Digest], start: bytes, end: bytes | None) -> bytes | None:
        """Add rows from ``start`` on. Returns where the next page begins; None: there is none."""
        local, size = self._local, 0
        while len(rows) < ROWS_MAX and size < BYTES_MAX:
            found = local.store.scan(Space.RECORDS, start, end, limit=STEP_ROWS)
            for record_key, sealed in found:
                rows.append(self._digest(record_key, sealed))
                size += len(record_key) + len(sealed)
            if len(found) < STEP_ROWS:
                return None
            start = found[-1][0] + b"\x00"
        return start

    def _digest(self, record_key: bytes, sealed: bytes) -> Digest:
        entry = self._local.opened(record_key, sealed)
        if (
            entry is None or entry[0] is not sealed
        ):  # the latter: mended from memory, but what lay on the disk was corrupt
            return Digest(record_key, None, live=False)
        return Digest(record_key, sealed[:CHECKSUM_BYTES], live=bool(siblings(entry[1], self._local.wall_ms)))
