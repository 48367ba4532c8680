"""A put() that this node coordinates, from its stamp to the W-th durable ack (sections 4.5 and 4.6).

    asked ── acks ──> an owner, or who stands in for it, has the write: its slot counts ── W slots ──> Stored
      └── silent ──> another is asked in its place (``puts``)

While the partition changes hands (``placement``), the slot of a pair counts when both of its halves have the write: the giver and
the gainer, or who stands in for one of them.

Invariant: a slot counts once; acks of requests before the last ``aim`` count for nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from cartwheel.core.coordinator.requests import Done, tally_shortfall
from cartwheel.core.coordinator.targets import Targets
from cartwheel.core.errors import Code
from cartwheel.core.local import Plan
from cartwheel.core.messages import Failure, PutRequest, Stored
from cartwheel.core.quorum import Outcome, Tally
from cartwheel.core.types import Dot, Durability, NodeId

if TYPE_CHECKING:
    from cartwheel.core.coordinator.puts import Puts

NOBODY: list[NodeId] = []
NONE_ANEW: dict[NodeId, int] = {}
UNCOVERED: dict[NodeId, NodeId] = {}
"""Shared, never changed."""


class Writing:
    """A put that this node coordinates. Among the requests, with an id and an answer, once it is stamped."""

    __slots__ = (
        "also", "anew", "at", "began_s", "by", "deadline_s", "done", "dot", "id", "intended", "plan", "put", "puts", "refused",
        "replaced", "requests", "revived", "sealed", "slots", "stored", "tally",
    )  # fmt: skip

    def __init__(
        self,
        puts: Puts,
        put: PutRequest,
        plan: Plan,
        at: bytes,
        targets: Targets,
        needed: int,
        done: Done,
    ) -> None:
        self.puts = puts
        self.began_s = puts.now_s
        self.requests = puts.requests
        self.put = put
        self.plan = plan
        self.at = at  # the record key
        self.done = done
        self.id = 0
        self.deadline_s = 0.0
        self.dot: Dot = ("", 0)
        self.sealed = b""  # the record as it was sent first
        self.stored: Stored | None = None
        self.aim(plan, targets, needed)

    def aim(self, plan: Plan, targets: Targets, needed: int) -> None:
        """Count the acks of these targets, none of which has come yet."""
        self.plan = plan
        self.slots = targets.slots
        self.also = targets.also  # gainers asked besides
        self.tally = Tally(targets.asked, needed, primaries=targets.owners, primaries_needed=plan.pw)
        self.intended = targets.intended  # fallback -> whom it stands in for
        self.replaced: list[NodeId] = NOBODY  # another was asked in place of these
        self.revived: list[NodeId] = NOBODY  # owners asked after all, though they could not be reached before
        self.refused: list[NodeId] = NOBODY  # these will not take it, however often they are asked
        self.anew = NONE_ANEW  # node -> id of the request by which it stands in for another one now
        self.by = UNCOVERED  # of a moving partition: owner or gainer -> who has the write in its place

    def ack(self, node: NodeId, request_id: int) -> None:
        """This node has the write durably: as the request with this id told it."""
        if request_id != self.anew.get(node, request_id):
            return  # it speaks of the slot that it had before
        if not self.slots.gainers:
            if node not in self.also:
                self._count(node)
            return
        for whole in self._cover(node):
            if self.id in self.requests.by_id:
                self._count(whole)

    def _cover(self, node: NodeId) -> list[NodeId]:
        """Note whose copies this ack stands for. Returns who fills the slots that are whole by now: a pair's slot takes both."""
        gainers = self.slots.gainers
        places = [node] if node in self.slots.writers else []
        places += [self.intended[node]] if node in self.intended else []
        self.by = {**dict.fromkeys(places, node), **self.by}
        givers = {gainer: giver for giver, gainer in gainers.items()}
        whole = []
        for place in places:
            owner = givers.get(place, place)
            if owner in self.by and gainers.get(owner, owner) in self.by:
                whole.append(self.by[owner])
        return [filler for filler in dict.fromkeys(whole) if filler in self.tally.asked]

    def _count(self, node: NodeId) -> None:
        """A slot that counts has the write."""
        twin = self._twin(node) if self.intended else None
        if twin is None:
            outcome = self.tally.ack(node)
        elif node not in self.tally.primaries:
            if self.puts.reassign(self, node):
                return
            outcome = self.tally.fail(node, f"it stands in for {twin}, which has answered")
        else:
            outcome = self.tally.replace(twin, node, again=self.puts.reassign(self, twin))
        if outcome is Outcome.MET:
            self._end()
            assert self.stored is not None, "acknowledged before it was stamped"
            self.puts.note_stored(self.began_s)
            self.done(self.stored, Durability.MEMORY)
        elif outcome is Outcome.UNREACHABLE:
            self._give_up()

    def _twin(self, node: NodeId) -> NodeId | None:
        """Who has acked in the same place: an owner and the fallback that stands in for it. Once the hint is delivered they are
        one copy, so they count as one."""
        slot = self._slot(node)
        return next((n for n in self.tally.acked if n != node and self._slot(n) == slot), None)

    def _slot(self, node: NodeId) -> NodeId:
        """Whose slot this node fills. (An owner that stands in for a gainer, too, fills its own.)"""
        return node if node in self.tally.primaries else self.intended.get(node, node)

    def open_slot(self) -> NodeId | None:
        """An owner that has not answered, and for which nobody who has stands in."""
        held = {self._slot(node) for node in self.tally.acked}
        return next((owner for owner in self.tally.primaries if owner not in held), None)

    def waiting(self) -> list[NodeId]:
        """See ``Request``. Of a pair whose other half has answered, those that have not."""
        by = self.by
        return [
            node for node in (*self.tally.waiting(), *self.also) if node not in by and node not in self.slots.blanks
        ]

    def fail(self, node: NodeId, reason: str) -> None:
        """See ``Request``."""
        if self.id in self.requests.by_id:
            if node in self.tally.asked:
                self.puts.ask_another(self, node)
                self._fail(node, reason)
            else:
                self.puts.ask_giver(self, node)

    def late(self) -> None:
        """See ``Request``."""
        for node in self.waiting():
            self.puts.remind(self, node)
        for gainer in self.slots.gainers.values():
            if gainer not in self.also:  # it could not be asked from the start
                self.puts.ask_giver(self, gainer)
        self.puts.ask_returned(self)

    def doubt(self, node: NodeId) -> None:
        """See ``Request``. A fallback was asked when it was late."""

    def again(self, node: NodeId) -> None:
        """See ``Request``."""
        self.puts.write_to(self, node)

    def replan(self) -> None:
        """See ``Request``."""
        if self.puts.slots(self).tag != self.slots.tag:
            self._end()
            self.puts.restart(self)

    def expire(self) -> None:
        """See ``Request``."""
        for node in self.tally.waiting():
            self._fail(node, "no answer in time")
        self._give_up()

    def _fail(self, node: NodeId, reason: str) -> None:
        if self.tally.fail(node, reason) is Outcome.UNREACHABLE:
            self._give_up()

    def _end(self) -> None:
        del self.requests.by_id[self.id]
        for request_id in self.anew.values():
            self.requests.end(request_id)

    def _give_up(self) -> None:
        if self.id in self.requests.by_id:
            self._end()
            self.done(Failure(Code.NOQUORUM, tally_shortfall("W", self.tally), unknown=True), Durability.MEMORY)
