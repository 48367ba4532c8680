"""The replica: stores what coordinators send, tells them what it holds (section 4.5).

A write is answered only once its group is durable; the answers to one batch travel together. A read that shows a staged
value waits for its group as well, so nobody outside ever sees a value that a crash could take back.
Every handler is idempotent: a write is a merge.
"""

from __future__ import annotations

from cartwheel.core.errors import ClockSkew, CorruptData, HintsFull
from cartwheel.core.local import Local
from cartwheel.core.messages import (
    Disagree,
    ReplicaRead,
    ReplicaRefused,
    ReplicaRepair,
    ReplicaValue,
    ReplicaWrite,
    ReplicaWrote,
)  # fmt: skip
from cartwheel.core.storage import split_record_key
from cartwheel.core.types import Durability, NodeId


class Replica:
    """This node as a holder of records."""

    def __init__(self, local: Local) -> None:
        self._local = local
        self._wrote: tuple[list[int], ...] = tuple([] for _ in Durability)  # by what the ack waits for
        self.epoch = b""
        """Of the batch that is being handled: of its sender's view when it was sent."""

    def _agrees(self, record_key: bytes, tag: int) -> bool:
        """Whether the coordinator sees the key's slots as we do (``placement``). Equal epochs make it sure."""
        local = self._local
        if self.epoch == local.epoch or not tag:
            return True
        return tag == local.slots(record_key, local.props(split_record_key(record_key)[0]).n).tag

    def handle_write(self, src: NodeId, message: ReplicaWrite) -> None:
        """Merge, into our own record or the hint for whom we stand in for, and, once durable, acknowledge (``acknowledge`` after
        the batch)."""
        local = self._local
        local.served += 1
        try:
            self._observe(message)
            durability = Durability(message.durability)
            local.take(message.intended, message.record_key, message.sealed, durability)
        except (ClockSkew, CorruptData, HintsFull, ValueError) as error:
            local.count("writes_refused")
            hint = message.record_key if message.intended else b""
            for request_id in message.ids:
                local.send(src, ReplicaRefused(request_id, str(error), hint))
            return
        if self._agrees(message.record_key, message.tag):
            self._wrote[durability].extend(message.ids)
        else:
            local.count("views_differ")
            local.send(src, Disagree(message.ids))

    def _observe(self, message: ReplicaWrite) -> None:
        """Let our clock follow the write's. One too far ahead is not followed; only where the last writer wins it is refused:
        there it would outdo every later write."""
        local = self._local
        try:
            local.clock.observe(message.reading, local.wall_ms)
        except ClockSkew:
            local.count("clock_skew")
            if local.plan(split_record_key(message.record_key)[0]).lww:
                raise

    def acknowledge(self, src: NodeId) -> None:
        """The batch from ``src`` is handled: promise its writes in one message, held until they are durable. (One for each
        durability: an ack from memory must not wait for another write's sync.)"""
        for durability, ids in zip(Durability, self._wrote, strict=True):
            if ids:
                self._local.send(src, ReplicaWrote(ids.copy()), durability)
                ids.clear()

    def handle_read(self, src: NodeId, message: ReplicaRead) -> None:
        """Tell what we hold, hints for others included (section 4.6)."""
        local = self._local
        local.served += 1
        try:
            if not self._agrees(message.record_key, message.tag):
                local.count("views_differ")
                local.send(src, Disagree([message.id]))
                return
            entry, hold = local.answer(message.record_key)
        except CorruptData:
            local.send(src, ReplicaRefused(message.id, "its copy fails the checksum"))
            return
        local.send(src, ReplicaValue(message.id, None if entry is None else entry[0]), hold)

    def handle_repair(self, src: NodeId, message: ReplicaRepair) -> None:
        """Merge what a read found newer elsewhere. A merge is never refused, whatever its clock readings."""
        local = self._local
        try:
            if not local.is_writer(local.node, message.record_key):
                return  # the reader's view is an earlier one
            local.absorb(message.record_key, message.sealed, Durability.OS)
        except CorruptData:
            local.count("repairs_refused")
            return
        local.count("read_repairs_received")
