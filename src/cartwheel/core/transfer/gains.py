"""Gaining: compare with whom the partitions come from until nothing differs, then ask to be counted.

    a pair's gainer     has one source: the giver
    a blank owner       has all owners for sources; one blank at a time, in the order of the slots, so that coordinators never
                        see views that differ by more than one owner

Invariant: this node counts itself only for parts that each of their sources has let it count for, at the slots it sees now.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Protocol

from cartwheel.core.local import Local
from cartwheel.core.messages import HandedOver, HandOver, MemberTransfer, Purpose
from cartwheel.core.placement import Placement
from cartwheel.core.summary import Summary
from cartwheel.core.transfer.unseen import Part, Unseen
from cartwheel.core.types import NodeId

PARTS_MAX = 64
"""Partitions in one comparison: when it is done they change hands together, and the work so far counts."""
ANSWER_S = 3.0
"""After so long a HandOver is asked again."""
RETRY_S = 0.5
"""After a comparison or a question that came to nothing."""
FRESH_S = 10.0
"""A comparison counts for so long: what came between it and the question is sent to us anyway, as long as the slots are the
same."""

Gain = Callable[[dict[int, set[int]]], None]
"""``Membership.gain``."""


class Compared(Protocol):
    """A comparison that has ended (``antientropy.Session``)."""

    ended: str
    left: dict[Part, None]
    lacked: set[Part]
    received: int


Compare = Callable[[NodeId, list[Part], Purpose, Callable[[Compared], None]], bool]
"""``AntiEntropy.compare``."""


class _Gaining:
    """A part that we are to own."""

    __slots__ = ("asked_s", "compared_s", "granted", "sources", "tag")

    def __init__(self, tag: int, sources: tuple[NodeId, ...]) -> None:
        self.tag = tag
        self.sources = sources
        self.compared_s: dict[NodeId, float] = {}
        self.asked_s: dict[NodeId, float] = {}
        self.granted: set[NodeId] = set()


class Gains:
    """What this node gains."""

    def __init__(self, local: Local, summary: Summary, compare: Compare, gain: Gain) -> None:
        self._local = local
        self._summary = summary
        self._compare = compare
        self._gain = gain
        self.unseen = Unseen(summary)
        self._parts: dict[Part, _Gaining] = {}
        self._turn_of_others: dict[Part, NodeId] = {}  # blank parts in which another blank owner comes first
        self._comparing: dict[NodeId, set[Part]] = {}  # with whom comparisons are under way, and of what
        self._rest_until_s: dict[NodeId, float] = {}
        self._why: dict[NodeId, str] = {}
        self._asked: dict[int, list[Part]] = {}
        self.gained = self.received = 0

    # --- the view ---

    def _look(self, placement: Placement) -> None:
        """What is to be gained in this view. What was done counts on where the slots are the same."""
        me, before = self._local.node, self._parts
        if self.unseen.all:
            self._parts, self._turn_of_others = {}, {}
        learned: dict[int, set[int]] = {}
        for part in self.unseen.take(placement.ring.q):
            n, partition = part
            if n not in self._summary.trees:
                continue
            known = before.get(part)
            self._parts.pop(part, None)
            self._turn_of_others.pop(part, None)
            slots = placement.slots(partition, n)
            if me in slots.owners:
                if not placement.says(me, n, partition):  # the giver has told us; or nobody has it
                    learned.setdefault(n, set()).add(partition)
                continue
            if not slots.moving:
                continue
            sources = tuple(giver for giver, gainer in slots.gainers.items() if gainer == me)
            if me in slots.blanks:
                if slots.blanks[0] != me or slots.gainers:
                    self._turn_of_others[part] = slots.blanks[0]
                    continue
                sources = slots.owners
            if sources:
                same = known is not None and known.tag == slots.tag
                self._parts[part] = known if known is not None and same else _Gaining(slots.tag, sources)
        if learned:
            self._count_for(learned)

    def _count_for(self, parts: dict[int, set[int]]) -> None:
        self.gained += sum(len(partitions) for partitions in parts.values())
        self._gain(parts)

    # --- time ---

    def handle_tick(self) -> None:
        """Compare, and ask."""
        local = self._local
        placement = local.placement
        assert placement is not None
        if self.unseen:
            self._look(placement)
        if not self._parts:
            return
        by_source: dict[NodeId, list[Part]] = {}
        for part, gaining in self._parts.items():
            for source in gaining.sources:
                by_source.setdefault(source, []).append(part)
        for source, parts in by_source.items():
            if source not in local.reachable:
                self._why[source] = f"unreachable: {local.why_unreachable(source)}"
            else:
                self._ask(source, parts)
                self._maybe_compare(source, parts)

    def _maybe_compare(self, source: NodeId, parts: list[Part]) -> None:
        local = self._local
        if not local.takes_writes:
            self._why[source] = "our disk is nearly full"
            return
        if local.now_s < self._rest_until_s.get(source, 0.0):
            return
        comparing = self._comparing.setdefault(source, set())
        todo = [part for part in parts if part not in comparing and not self._is_compared(self._parts[part], source)]
        ready = [part for part in todo if self._summary.ready(part[1])]
        if todo and not ready and not comparing:
            self._why[source] = "our hash trees are being built"
        while ready:
            piece, ready = ready[:PARTS_MAX], ready[PARTS_MAX:]
            comparing.update(piece)
            tags = {part: self._parts[part].tag for part in piece}
            if not self._compare(source, piece, Purpose.GAINED, partial(self._compared, source, tags)):
                comparing.difference_update(piece)
                return
            self._why[source] = ""

    def _is_compared(self, gaining: _Gaining, source: NodeId) -> bool:
        return self._local.now_s - gaining.compared_s.get(source, float("-inf")) < FRESH_S

    def _compared(self, source: NodeId, tags: dict[Part, int], session: Compared) -> None:
        """A comparison has ended."""
        local = self._local
        self._comparing[source].difference_update(tags)
        self.received += session.received
        done = [part for part in tags if part not in session.left]
        for part in done:
            gaining = self._parts.get(part)
            if gaining is not None and gaining.tag == tags[part]:
                gaining.compared_s[source] = local.now_s
        if session.left:
            self._why[source] = session.ended if session.ended != "done" else "it cannot compare now"
            self._rest_until_s[source] = local.now_s + RETRY_S
        self._ask(source, done)

    # --- the question ---

    def _ask(self, source: NodeId, parts: list[Part]) -> None:
        """Ask to be counted, for what we have compared with every source."""
        local, now_s = self._local, self._local.now_s
        asks: list[tuple[int, int, int]] = []
        for part in parts:
            gaining = self._parts.get(part)
            if gaining is None or not gaining.compared_s or source in gaining.granted:
                continue
            if now_s < gaining.asked_s.get(source, float("-inf")):
                continue
            if all(self._is_compared(gaining, each) for each in gaining.sources):
                gaining.asked_s[source] = now_s + ANSWER_S
                asks.append((*part, gaining.tag))
        if asks:
            request_id = local.new_id()
            self._asked = {**dict(list(self._asked.items())[-16:]), request_id: [(n, at) for n, at, _ in asks]}
            local.send(source, HandOver(request_id, asks))

    def handle_handed_over(self, src: NodeId, message: HandedOver) -> None:
        """A source's answer. What it gave is ours; where there are several, when all have agreed."""
        asked = self._asked.pop(message.id, None)
        if asked is None:
            return
        self._why[src] = message.waits
        granted = {(n, partition) for n, partition in message.parts}
        gained: dict[int, set[int]] = {}
        for part in asked:
            gaining = self._parts.get(part)
            if gaining is None or src not in gaining.sources:
                continue
            if part not in granted:
                gaining.asked_s[src] = self._local.now_s + RETRY_S
                gaining.compared_s.pop(src, None)
                continue
            gaining.granted.add(src)
            if gaining.granted >= set(gaining.sources):
                gained.setdefault(part[0], set()).add(part[1])
                del self._parts[part]
        if gained:
            self._count_for(gained)

    def handle_peer_down(self, node: NodeId) -> None:
        """What it granted may be out of date when it is back."""
        for gaining in self._parts.values():
            gaining.granted.discard(node)
            gaining.asked_s.pop(node, None)

    # --- for people ---

    def status(self) -> list[MemberTransfer]:
        """What is gained from whom, and what it waits for."""
        left: dict[NodeId, int] = {}
        for gaining in self._parts.values():
            for source in gaining.sources:
                left[source] = left.get(source, 0) + (source not in gaining.granted)
        found = [
            MemberTransfer(source, count, bool(self._comparing.get(source)), self._why.get(source, ""))
            for source, count in sorted(left.items())
        ]
        if self._turn_of_others:
            first = sorted(set(self._turn_of_others.values()))
            found.append(MemberTransfer("", len(self._turn_of_others), False, f"{', '.join(first)} comes first"))
        return found
