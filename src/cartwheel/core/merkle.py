"""The hash tree of a node's records, one level of hashing below each partition (section 4.7).

    partition p                root   = hash of its leaves
      leaf 64p .. 64p + 63     leaf   = XOR of the hashes of its records: the next 6 bits of the ring position
        records                hash   = the checksum that stands in front of the sealed record (``storage.seal``)

A leaf is a contiguous range of keys, so where two trees differ a scan of that range finds the keys. XOR makes a write O(1): take
the old record's hash out, put the new one's in, in whatever order writes come. A record's hash is over its canonical bytes, and
seeded by its ring position: equal records have equal hashes on all nodes, and the same value under two keys does not cancel out.

*Departs from the paper:* its trees have hashes of keys for leaves and are many levels deep. Here two levels suffice: the roots of
all partitions fit into one message (8 bytes each), the leaves of one partition into half a KiB, and a leaf of a node with a
million records and 1,024 partitions holds fifteen of them.

Memory: 512 bytes for each partition. A write costs about 0.1 us, a root 0.6 us.
"""

from __future__ import annotations

import struct
import sys
from array import array
from collections.abc import Iterable

import xxhash

from cartwheel.core.errors import CorruptData

LEAF_BITS = 6
LEAVES = 1 << LEAF_BITS
"""Of a partition."""
ALL_LEAVES = (1 << LEAVES) - 1
"""As a bitmap: bit i is leaf i."""
HASH_BYTES = 8
POSITION_BITS = 128

record_hash = struct.Struct(">Q").unpack_from
"""The hash of a sealed record: ``record_hash(sealed)[0]``. Written out where it must be quick."""


class HashTree:
    """The leaves of all partitions. Invariant: a leaf is the XOR of the hashes of all records noted in its range."""

    __slots__ = ("leaves", "q", "shift")

    def __init__(self, q: int, leaves: array[int] | None = None) -> None:
        """An empty tree of ``q`` partitions (a power of two, at most 65,536)."""
        self.q = q
        self.leaves = array("Q", bytes(q * LEAVES * HASH_BYTES)) if leaves is None else leaves
        self.shift = 24 - LEAF_BITS - (q.bit_length() - 1)
        """What is left of the first 24 bits of a position, shifted right by this, is the leaf."""

    def leaf_of(self, position: bytes) -> int:
        """The leaf that a ring position (or record key) lies in."""
        return int.from_bytes(position[:3]) >> self.shift

    def bounds(self, first: int, end: int) -> tuple[bytes, bytes | None]:
        """The first position of leaf ``first``, and the one after leaf ``end - 1``; None: the ring ends there."""
        width = POSITION_BITS - LEAF_BITS - (self.q.bit_length() - 1)
        stop = None if end == self.q * LEAVES else (end << width).to_bytes(16)
        return (first << width).to_bytes(16), stop

    def note(self, position: bytes, change: int) -> None:
        """Note a write: ``change`` is the old record's hash XOR the new one's (0 for none)."""
        self.leaves[self.leaf_of(position)] ^= change

    def clear(self, partition: int) -> None:
        """Forget all records of a partition."""
        at = partition * LEAVES
        self.leaves[at : at + LEAVES] = array("Q", bytes(LEAVES * HASH_BYTES))

    def is_empty(self, partition: int) -> bool:
        """Whether no record is noted there."""
        return not any(self.leaves[partition * LEAVES : (partition + 1) * LEAVES])

    def packed(self, partition: int) -> bytes:
        """A partition's leaves, 8 bytes each."""
        at = partition * LEAVES
        return _portable(self.leaves[at : at + LEAVES]).tobytes()

    def roots(self, partitions: Iterable[int]) -> bytes:
        """The roots of these partitions, 8 bytes each."""
        packed, digest = self.packed, xxhash.xxh3_64_digest
        return b"".join([digest(packed(partition)) for partition in partitions])

    def differing(self, partition: int, packed: bytes) -> int:
        """Which leaves of the partition differ from another tree's: a bitmap."""
        at = partition * LEAVES
        theirs = unpacked(packed)
        found = 0
        for i, leaf in enumerate(self.leaves[at : at + LEAVES]):
            if leaf != theirs[i]:
                found |= 1 << i
        return found

    def encode(self) -> bytes:
        """All leaves, for the disk."""
        return _portable(self.leaves[:]).tobytes()

    @staticmethod
    def decode(q: int, data: bytes) -> HashTree:
        """What ``encode`` made.

        Raises:
            CorruptData: of another number of partitions.
        """
        if len(data) != q * LEAVES * HASH_BYTES:
            raise CorruptData(f"a hash tree of {len(data)} bytes is not one of {q} partitions")
        return HashTree(q, unpacked(data))


def unpacked(data: bytes) -> array[int]:
    """Hashes of 8 bytes each, as ``packed``, ``roots`` and ``encode`` write them. Their number must be whole."""
    return _portable(array("Q", data))


def runs(leaves: int) -> list[tuple[int, int]]:
    """The runs of consecutive leaves in a bitmap: (first, end)."""
    found: list[tuple[int, int]] = []
    for i in range(LEAVES):
        if leaves >> i & 1:
            if found and found[-1][1] == i:
                found[-1] = found[-1][0], i + 1
            else:
                found.append((i, i + 1))
    return found


def _portable(hashes: array[int]) -> array[int]:
    """To or from little-endian, in place."""
    if sys.byteorder == "big":
        hashes.byteswap()
    return hashes
