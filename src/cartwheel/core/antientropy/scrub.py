"""The scrub: every record is read and verified now and then, though nobody asks for it, so that bit rot is found while others
still hold good copies.

It goes leaf by leaf around the ring, evenly over ``scrub_days``. A corrupt record is forgotten and fetched, as if a client had
read it. What is read also proves the hash tree: a leaf that is not the XOR of its records is put right, and counted as drift.
"""

from __future__ import annotations

from cartwheel.core.antientropy.books import Damage
from cartwheel.core.errors import CorruptData
from cartwheel.core.local import Local
from cartwheel.core.merkle import LEAVES, record_hash
from cartwheel.core.storage import Space, split_record_key
from cartwheel.core.summary import Summary

ROWS_MAX = 200
"""Rows read a tick: half a millisecond."""
LEAVES_MAX = 64
"""Leaves a tick: most may be empty."""
DAY_S = 86_400.0


class Scrub:
    """The pass under way. It goes on where a clean stop left it."""

    def __init__(self, local: Local, summary: Summary, damage: Damage) -> None:
        self._local = local
        self._summary = summary
        self._damage = damage
        self._due_s = 0.0
        self._cursor = b""  # in a leaf that takes more than a slice; b"": at the beginning of a leaf
        self._kept: dict[int, int] = {}  # n -> the leaf as the tree had it when its reading began
        self._read: dict[int, int] = {}  # n -> XOR of what was read of it

    def start(self) -> None:
        """The first leaf is due a leaf's time from now."""
        self._due_s = self._local.now_s + self._leaf_s()

    @property
    def _leaves(self) -> int:
        """Of the whole ring."""
        assert self._local.ring is not None
        return self._local.ring.q * LEAVES

    def _leaf_s(self) -> float:
        return self._local.config.scrub_days * DAY_S / self._leaves

    @property
    def part(self) -> float:
        """How much of the present pass is done."""
        return self._summary.scrubbed / self._leaves

    def handle_tick(self) -> None:
        """Read what is due."""
        local = self._local
        leaf_s = self._leaf_s()
        if not leaf_s:
            return
        rows, leaves = ROWS_MAX, LEAVES_MAX
        while rows > 0 and leaves > 0 and local.now_s >= self._due_s and local.budget(1):
            read, done = self._slice(rows)
            rows -= read
            if done:
                leaves -= 1
                self._due_s += leaf_s
                self._next_leaf()

    def _next_leaf(self) -> None:
        self._cursor = b""
        self._summary.scrubbed += 1
        if self._summary.scrubbed >= self._leaves:
            self._summary.scrubbed = 0
            self._local.count("scrubs")

    def _slice(self, limit: int) -> tuple[int, bool]:
        """Read on in the present leaf. Returns how many rows were read, and whether the leaf is done."""
        local, trees, leaf = self._local, self._summary.trees, self._summary.scrubbed
        start, stop = next(iter(trees.values())).bounds(leaf, leaf + 1)
        if not self._cursor:
            self._kept = {n: tree.leaves[leaf] for n, tree in trees.items()}
            self._read = dict.fromkeys(trees, 0)
        try:
            rows = local.store.scan(Space.RECORDS, self._cursor or start, stop, limit=limit)
        except CorruptData:
            local.count("scans_damaged")
            self._damage.note(leaf)
            return limit, True
        for record_key, sealed in rows:
            entry = local.opened(record_key, sealed)
            if entry is not None:
                n = local.props(split_record_key(record_key)[0]).n
                self._read[n] = self._read.get(n, 0) ^ record_hash(entry[0])[0]
        if len(rows) == limit:
            self._cursor = rows[-1][0] + b"\x00"
            return limit, False
        self._prove(leaf)
        return len(rows), True

    def _prove(self, leaf: int) -> None:
        """The whole leaf was read, and the tree's leaf did not change meanwhile: so they must be equal."""
        if not self._summary.ready(leaf // LEAVES):
            return
        for n, tree in self._summary.trees.items():
            if n in self._kept and tree.leaves[leaf] == self._kept[n] and self._read[n] != self._kept[n]:
                self._local.count("tree_drift")
                tree.leaves[leaf] = self._read[n]
