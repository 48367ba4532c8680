"""The replica: stores what coordinators send, tells them what it holds (section 4.5).

A write is answered only once its group is durable; the answers to one batch travel together. A read that shows a staged
value waits for its group as well, so nobody outside ever sees a value that a crash could take back.
Every handler is idempotent: a write is a merge.
"""

from __future__ import annotations

from cartwheel.core.errors import ClockSkew, CorruptData
from cartwheel.core.local import Local
from cartwheel.core.messages import (
    ReplicaRead,
    ReplicaRefused,
    ReplicaRepair,
    ReplicaValue,
    ReplicaWrite,
    ReplicaWrote,
)  # fmt: skip
from cartwheel.core.storage import Space
from cartwheel.core.types import Durability, NodeId


class Replica:
    """This node as a holder of records."""

    def __init__(self, local: Local) -> None:
        self._local = local
        self._wrote: list[int] = []
        self._hold = Durability.MEMORY

    def handle_write(self, src: NodeId, message: ReplicaWrite) -> None:
        """Merge and, once durable, acknowledge (``acknowledge`` after the batch)."""
        local = self._local
        try:
            local.clock.observe(message.reading, local.wall_ms)
            durability = Durability(message.durability)
            local.absorb(message.record_key, message.sealed, durability)
        except (ClockSkew, CorruptData, ValueError) as error:
            local.count("writes_refused")
            for request_id in message.ids:
                local.send(src, ReplicaRefused(request_id, str(error)))
            return
        self._wrote += message.ids
        if durability > self._hold:
            self._hold = durability

    def acknowledge(self, src: NodeId) -> None:
        """The batch from ``src`` is handled: promise its writes in one message, held until they are durable."""
        if self._wrote:
            self._local.send(src, ReplicaWrote(self._wrote), self._hold)
            self._wrote, self._hold = [], Durability.MEMORY

    def handle_read(self, src: NodeId, message: ReplicaRead) -> None:
        """Tell what we hold."""
        local = self._local
        record_key = message.record_key
        try:
            entry = local.read_entry(record_key)
        except CorruptData:
            local.send(src, ReplicaRefused(message.id, "its copy fails the checksum"))
            return
        sealed = None if entry is None else entry[0]
        local.send(src, ReplicaValue(message.id, sealed), local.store.pending(Space.RECORDS, record_key))

    def handle_repair(self, src: NodeId, message: ReplicaRepair) -> None:
        """Merge what a read found newer elsewhere. A merge is never refused, whatever its clock readings."""
        local = self._local
        try:
            local.absorb(message.record_key, message.sealed, Durability.OS)
        except CorruptData:
            local.count("repairs_refused")
            return
        local.count("read_repairs_received")
