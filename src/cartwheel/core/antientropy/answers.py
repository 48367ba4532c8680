"""The node that is asked: it compares what it is told with what it holds at that moment, and keeps nothing in between.

So every answer may be lost, repeated or late. Who asked goes on, or begins again in the next round, which finds what still
differs.
"""

from __future__ import annotations

from cartwheel.core import merkle
from cartwheel.core.antientropy.books import Ages, Traffic
from cartwheel.core.antientropy.rows import Held, Row, Rows, told
from cartwheel.core.local import Local
from cartwheel.core.messages import LeafDiff, LeafKeys, LeafRows, Purpose, TreeLeaves, TreeRoots
from cartwheel.core.summary import Summary
from cartwheel.core.types import Durability, NodeId

LEAVES_PARTITIONS_MAX = 16
"""Partitions of which the leaves are told in one answer: 8 KiB."""
MOVED_MAX = 64
"""Records in one message: some 2 ms of work for who takes them,"""
MOVED_BYTES_MAX = 256 * 1024
"""and at most so many bytes, or one record."""
WANTED_MAX = 128
"""Records asked for in one answer: they come in two messages."""


class Answers:
    """This node as the one that is asked."""

    def __init__(self, local: Local, summary: Summary, rows: Rows, traffic: Traffic, ages: Ages) -> None:
        self._local = local
        self._summary = summary
        self._rows = rows
        self._traffic = traffic
        self._ages = ages

    def handle_roots(self, src: NodeId, message: TreeRoots) -> None:
        """Tell where our trees differ, and the leaves of the first partitions that do."""
        summary = self._summary
        partitions = numbers(message.partitions)
        tree = summary.trees.get(message.n)
        if tree is None or (message.purpose is Purpose.SHARED and message.epoch != self._local.epoch):
            # One of us does not know the other's history yet (it is on its way): what we share is uncertain.
            self._traffic.send(src, TreeLeaves(message.id, b"", b"", message.partitions))
            return
        roots = message.roots
        unready, differing = [], []
        for i, partition in enumerate(partitions):
            if partition >= tree.q or not summary.ready(partition) or not self._knows(src, message, partition):
                unready.append(partition)
            elif tree.roots((partition,)) != roots[i * merkle.HASH_BYTES : (i + 1) * merkle.HASH_BYTES]:
                differing.append(partition)
            else:
                self._ages.note(message.n, src, partition)
        leaves = b"".join([tree.packed(partition) for partition in differing[:LEAVES_PARTITIONS_MAX]])
        self._traffic.send(src, TreeLeaves(message.id, packed(differing), leaves, packed(unready)))

    def _knows(self, src: NodeId, message: TreeRoots, partition: int) -> bool:
        """Whether we see what this comparison is for. A gainer may catch up only with who knows that it gains: otherwise a write
        that was meant for the giver alone might come to it afterwards."""
        if message.purpose is Purpose.SHARED:
            return True
        placement = self._local.placement
        assert placement is not None
        slots = placement.slots(partition, message.n)
        if self._local.node not in slots.owners:
            return False
        return (src in slots.writers) == (message.purpose is Purpose.GAINED)

    def handle_keys(self, src: NodeId, message: LeafKeys) -> None:
        """Tell what the asker should have, and ask for what we should have."""
        local = self._local
        tree = self._summary.trees.get(message.n)
        try:
            theirs = told(message.keys)
        except ValueError:
            local.count("messages_refused")
            return
        if tree is None or message.partition >= tree.q:
            local.count("messages_refused")
            return
        if not local.budget(1):  # asked before anything is read: to read and to refuse then would be the dearer part
            self._traffic.send(src, LeafDiff(message.id, [], b"", message.start, busy=True))
            return
        leaves = self._rows.compared(message.partition, message.leaves)
        first = message.partition * merkle.LEAVES
        ours, reached = self._rows.read(
            tree, message.n, first, leaves, message.start, message.end, len(theirs) + MOVED_MAX
        )
        passed_over = message.leaves & ~leaves
        if passed_over:
            theirs = {at: held for at, held in theirs.items() if not passed_over >> (tree.leaf_of(at) - first) & 1}
        rows, want, reached = self._difference(ours, theirs, reached or message.end, message)
        local.spend(len(ours) // 16 + len(rows) + len(want))
        hold = max((local.pending(row.record_key) for row in rows), default=Durability.MEMORY)
        self._traffic.sent += len(rows)
        moved = [(row.record_key, row.sealed) for row in rows]
        self._traffic.send(src, LeafDiff(message.id, moved, b"".join(want), reached), hold)

    def _difference(
        self, ours: dict[bytes, Row], theirs: dict[bytes, Held], reached: bytes, ask: LeafKeys
    ) -> tuple[list[Row], list[bytes], bytes]:
        """What to send, the positions of what to ask for, and how far that goes. Writes that may be under way are left alone."""
        young, takes = self._rows.young, self._local.takes_writes
        rows: list[Row] = []
        want: list[bytes] = []
        size = 0
        for at in sorted(ours.keys() | theirs.keys()):
            if reached and at >= reached:
                break
            row, held = ours.get(at), theirs.get(at)
            if row is not None and held is not None and row.held.hash == held.hash:
                continue
            our_reading = row.held.reading if row is not None else -1
            their_reading = held.reading if held is not None else -1
            if young(max(our_reading, their_reading), ask.settle_ms):
                continue
            if len(rows) >= MOVED_MAX or size >= MOVED_BYTES_MAX or len(want) >= WANTED_MAX:
                return rows, want, at
            if our_reading >= their_reading and row is not None:
                if ask.pull:
                    rows.append(row)
                    size += len(row.record_key) + len(row.sealed)
            elif takes:
                want.append(at)
        return rows, want, reached

    def handle_rows(self, src: NodeId, message: LeafRows) -> None:
        """Merge what we asked for; send back what came of it, if that is more."""
        if not self._local.takes_writes:
            return
        back: list[tuple[bytes, bytes]] = []
        hold = Durability.MEMORY
        for record_key, sealed in message.rows:
            held, changed = self._rows.take(record_key, sealed)
            self._traffic.received += changed
            if held is not None and held != sealed and not message.last:
                back.append((record_key, held))
                hold = max(hold, self._local.pending(record_key))
        if back:
            self._traffic.sent += len(back)
            self._traffic.send(src, LeafRows(back, last=True), hold)


def packed(partitions: list[int]) -> bytes:
    """2 bytes each."""
    return b"".join([partition.to_bytes(2) for partition in partitions])


def numbers(data: bytes) -> list[int]:
    """What ``packed`` packed."""
    return [data[i] << 8 | data[i + 1] for i in range(0, len(data) - 1, 2)]
