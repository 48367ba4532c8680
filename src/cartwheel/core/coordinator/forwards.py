"""Puts that this node hands to another one: no owner of the key itself, it lets one coordinate (section 4.5).

    asked to coordinate ──> forward to a healthy owner ──> relay its answer
                                 │ it is lost, found silent, says that it does not reach W nodes, or takes half of the time
                                 └──> forward to the next one, once each; with none left, or little time, coordinate here

A put is forwarded again only when nothing else is left, for the first one may have stamped it (as in Riak: its
``retry_put_coordinator_failure``). A forwarded put always carries a request id, so two stamps of one put are two versions with
one id, which readers see as one (``versions.siblings``). A node that was stopped for a while does not take up the puts that
waited for it: their clients have been served elsewhere (``Coordinator.handle_forward``).
"""

from __future__ import annotations

from collections.abc import Callable, Collection

import msgspec

from cartwheel.core.coordinator.requests import Done, Requests
from cartwheel.core.errors import Code
from cartwheel.core.local import Local
from cartwheel.core.messages import Failure, Forward, Forwarded, PutRequest, Result
from cartwheel.core.types import Durability, NodeId


class Forwarding:
    """A put handed to an owner, or to several in turn. The first that stores it answers for all."""

    __slots__ = ("asked", "deadline_s", "done", "ended", "failed", "forwards", "half_s", "ids", "put")

    def __init__(self, forwards: Forwards, put: PutRequest, now_s: float, deadline_s: float, done: Done) -> None:
        self.forwards = forwards
        self.put = put
        self.deadline_s = deadline_s
        self.half_s = (now_s + deadline_s) / 2
        self.done = done
        self.asked: list[NodeId] = []
        self.failed: dict[NodeId, str] = {}
        self.ids: list[int] = []  # of the Forward to each of them
        self.ended = False

    def waiting(self) -> list[NodeId]:
        """See ``Request``."""
        return [node for node in self.asked if node not in self.failed]

    def fail(self, node: NodeId, reason: str) -> None:
        """See ``Request``."""
        self.failed[node] = reason
        if not self.waiting() and not self.forwards.again(self):
            self.give_up()

    def late(self) -> None:
        """See ``Request``. A slow node will stamp it yet, and once however often it is asked: its request id sees to that. But
        one that has not finished in half of the time may be cut off from the others: then we, who can be reached, coordinate."""
        self.forwards.remind(self)
        self.forwards.maybe_coordinate(self)

    def doubt(self, node: NodeId) -> None:
        """This node was found silent: try elsewhere, though it may answer yet."""
        if node in self.waiting():
            self.forwards.again(self)

    def again(self, node: NodeId) -> None:
        """See ``Request``. A Forward is taken whatever the view."""

    def replan(self) -> None:
        """See ``Request``. Who coordinates need not be an owner."""

    def expire(self) -> None:
        """See ``Request``."""
        for node in self.waiting():
            self.failed[node] = "no answer in time"
        self.give_up()

    def answer(self, node: NodeId, result: Result) -> None:
        """A coordinator's answer: relay it, unless it is that this node does not reach enough others, and another might."""
        if isinstance(result, Failure):
            if result.code is Code.NOQUORUM:
                self.fail(node, result.text)
                return
            # The network may repeat our Forward, and the owner take it then: only a refusal of our own is certain.
            result = Failure(result.code, result.text, unknown=True)
        self.end(result)

    def give_up(self) -> None:
        """Nobody has stored it, as far as we know."""
        text = "; ".join(f"forwarded to {node}: {reason}" for node, reason in self.failed.items())
        self.end(Failure(Code.NOQUORUM, text, unknown=True))

    def end(self, result: Result) -> None:
        """Answer the client."""
        if not self.ended:
            self.ended = True
            for request_id in self.ids:
                self.forwards.requests.end(request_id)
            self.done(result, Durability.MEMORY)


class Forwards:
    """The puts that this node has forwarded."""

    def __init__(
        self,
        local: Local,
        requests: Requests,
        route: Callable[[PutRequest, Collection[NodeId]], NodeId | None],
        coordinate: Callable[[PutRequest, Done], None],
    ) -> None:
        """``route`` says who should coordinate a put, if none of these can; ``coordinate`` does it here."""
        self._local = local
        self.requests = requests
        self._route = route
        self._coordinate = coordinate

    def forward(self, put: PutRequest, target: NodeId, done: Done) -> None:
        """Hand the put to ``target``."""
        local = self._local
        if not put.request_id:
            # Ids are unique within a node only, and two puts with one id would be taken for one.
            put = msgspec.structs.replace(put, request_id=b"fwd:%s/%d" % (local.node.encode(), local.last_id + 1))
        self._send(Forwarding(self, put, local.now_s, local.deadline_s(put.timeout_s), done), target)

    def _send(self, forwarding: Forwarding, target: NodeId) -> None:
        local = self._local
        request_id = local.new_id()
        forwarding.asked.append(target)
        forwarding.ids.append(request_id)
        self.requests.add(request_id, forwarding, forwarding.deadline_s)
        local.count("puts_forwarded")
        self._tell(forwarding, target, request_id)

    def _tell(self, forwarding: Forwarding, target: NodeId, request_id: int) -> None:
        left_s = forwarding.deadline_s - self._local.now_s
        if left_s > 0:
            self._local.send(target, Forward(request_id, msgspec.structs.replace(forwarding.put, timeout_s=left_s)))

    def remind(self, forwarding: Forwarding) -> None:
        """Forward to the same nodes once more: the message may be lost."""
        for node, request_id in zip(forwarding.asked, forwarding.ids, strict=True):
            if node not in forwarding.failed and node != self._local.node:
                self._tell(forwarding, node, request_id)

    def maybe_coordinate(self, forwarding: Forwarding) -> None:
        """If half of the time for this put is over, do it here, as a fallback."""
        local = self._local
        if local.now_s >= forwarding.half_s and local.node not in forwarding.asked and not forwarding.ended:
            self._do_here(forwarding)

    def _do_here(self, forwarding: Forwarding) -> None:
        me = self._local.node
        forwarding.asked.append(me)
        forwarding.ids.append(0)  # of no message
        self._local.count("puts_rerouted")
        left_s = max(forwarding.deadline_s - self._local.now_s, 0.001)
        put = msgspec.structs.replace(forwarding.put, timeout_s=left_s)
        self._coordinate(put, lambda result, hold: forwarding.answer(me, result))

    def again(self, forwarding: Forwarding) -> bool:
        """Try elsewhere, in place of those that do not answer. False: there is nowhere left."""
        local = self._local
        if forwarding.ended or local.now_s >= forwarding.deadline_s:
            return forwarding.ended
        target = self._route(forwarding.put, forwarding.asked)
        if target is None and local.node not in forwarding.asked:
            target = local.node  # each owner may be cut off from the others: we are the last that may reach enough
        if target is None:
            return False
        if target == local.node:
            self._do_here(forwarding)
        else:
            local.count("puts_rerouted")
            self._send(forwarding, target)
        return True

    def handle_forwarded(self, src: NodeId, message: Forwarded) -> None:
        """The answer of a node that coordinates for us."""
        forwarding = self.requests.by_id.get(message.id)
        if isinstance(forwarding, Forwarding) and src in forwarding.waiting():
            forwarding.answer(src, message.result)
