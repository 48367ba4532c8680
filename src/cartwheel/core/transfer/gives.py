"""Giving: let a gainer count, for what it has caught up with.

Invariant: a partition is given only while this node sees the same slots as the gainer, and keeps no hint for it there. (A hint is
a write that was counted, and which the gainer may not have.)
"""

from __future__ import annotations

from collections.abc import Callable

from cartwheel.core.errors import CorruptData
from cartwheel.core.local import Local
from cartwheel.core.messages import HandedOver, HandOver
from cartwheel.core.placement import Slots
from cartwheel.core.types import Durability, NodeId

Give = Callable[[NodeId, dict[int, set[int]]], None]
"""``Membership.give``."""


class Gives:
    """This node as a giver, and as an owner beside whom another one begins to count."""

    def __init__(self, local: Local, give: Give) -> None:
        self._local = local
        self._give = give
        self.given = 0

    def handle_hand_over(self, src: NodeId, message: HandOver) -> None:
        """Answer for each part."""
        local, placement = self._local, self._local.placement
        assert placement is not None
        granted: list[tuple[int, int]] = []
        given: dict[int, set[int]] = {}
        waits = ""
        for n, partition, tag in message.parts:
            if not 0 <= partition < placement.ring.q or not 1 <= n <= 255:
                continue
            slots = placement.slots(partition, n)
            why = self._why_not(src, slots, partition, tag)
            if why:
                waits = why
                continue
            granted.append((n, partition))
            if local.node in slots.gainers:
                given.setdefault(n, set()).add(partition)
        if given:
            self.given += sum(len(partitions) for partitions in given.values())
            self._give(src, given)
        local.send(src, HandedOver(message.id, granted, waits), Durability.SYNC)

    def _why_not(self, src: NodeId, slots: Slots, partition: int, tag: int) -> str:
        me = self._local.node
        if slots.tag != tag:
            return f"{me} sees the ring otherwise"
        is_giver = slots.gainers.get(me) == src
        if not is_giver and not (me in slots.owners and slots.blanks[:1] == (src,) and not slots.gainers):
            return f"{me} does not see {src} gain it"
        if self._keeps_hint(src, partition):
            return f"{me} keeps hints for {src} there"
        return ""

    def _keeps_hint(self, intended: NodeId, partition: int) -> bool:
        local = self._local
        if intended not in local.hints.totals:
            return False
        assert local.ring is not None
        start, end = local.ring.bounds(partition)
        try:
            rows = local.hints.rows(intended, start, 1)
        except CorruptData:
            return True
        return bool(rows) and (end is None or rows[0][0] < end)
