"""The coordinator: one small state machine per get() and put() (sections 4.5 and 5).

``gets`` and ``puts`` hold the two machines, ``requests`` what is under way and its deadlines. Invariants:

1. A client is answered exactly once.
2. Stored is sent only after W distinct nodes, counted by name, hold the write as durably as the bucket demands: owners, or
   fallbacks that keep it as a hint (sloppy quorum, section 4.6).
3. A put is stamped with one dot, by one coordinator: a forwarded put is never forwarded again, a retry that this
   coordinator remembers is not stamped again.
4. A request that hears nothing from a node for ``late_s``, or hears that it cannot serve, asks a fallback in its place.
5. Minting happens in one synchronous step from reading the record to staging it (versions, invariant A).
6. A failed put is "rejected" only if nothing of it was staged or sent; otherwise its outcome is "unknown".

O(N) messages and memory per request; requests end at their deadline at the latest.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import TypeVar

from cartwheel.core.coordinator.gets import Gets, Reading, check_key
from cartwheel.core.coordinator.puts import Puts
from cartwheel.core.coordinator.requests import Refused, Requests
from cartwheel.core.coordinator.writing import Writing
from cartwheel.core.errors import Code
from cartwheel.core.local import Local
from cartwheel.core.messages import (
    ClientExplain,
    ClientGet,
    ClientPut,
    Disagree,
    Failure,
    Forward,
    Forwarded,
    ReplicaRefused,
)  # fmt: skip
from cartwheel.core.types import Crowd, NodeId

AnyRead = TypeVar("AnyRead", ClientGet, ClientExplain)


STALL_S = 1.0
"""A node that has not ticked for so long was stopped: what it reads now may have waited as long."""


class Coordinator:
    """This node as a coordinator of requests."""

    def __init__(self, local: Local) -> None:
        self._local = local
        self._requests = Requests(local.last_id)
        self._ticked_s = math.inf  # no tick yet
        self.disagreeing: dict[NodeId, list[int]] = {}  # these requests wait until we and this node see the ring alike
        self.gets = Gets(local, self._requests)
        self.puts = Puts(local, self._requests)

    @property
    def under_way(self) -> int:
        """Requests not answered yet."""
        return self._requests.under_way

    def get(self, event: ClientGet) -> None:
        """A client's get."""
        self._read(event, self.gets.get)

    def explain(self, event: ClientExplain) -> None:
        """A client asks where a key lives."""
        self._read(event, self.gets.explain)

    def _read(self, event: AnyRead, start: Callable[[AnyRead], None]) -> None:
        if self._is_busy() or not self._local.coordinates:
            self._local.reply(event.client, self._busy() if self._local.coordinates else self._outside())
            return
        try:
            check_key(event.key, self._local.plan(event.bucket))
        except Refused as refused:
            self._local.reply(event.client, refused.failure)
        else:
            start(event)

    def put(self, event: ClientPut) -> None:
        """A client's put or delete."""
        if self._is_busy() or not self._local.coordinates:
            self._local.reply(event.client, self._busy() if self._local.coordinates else self._outside())
        else:
            self.puts.put(event.put, partial(self._local.reply, event.client))

    def handle_forward(self, src: NodeId, message: Forward) -> None:
        """A put from a node outside the preference list: admitted like a client's. What waited while this node was stopped is
        refused: the forwarder has found it silent, and gone elsewhere."""
        local = self._local
        if local.now_s - self._ticked_s > STALL_S:
            local.count("forwards_too_old")
            local.send(src, Forwarded(message.id, Failure(Code.NOQUORUM, f"{local.node} was stopped for a while")))
        elif self._is_busy() or not local.coordinates:
            local.send(src, Forwarded(message.id, self._busy() if local.coordinates else self._outside()))
        else:
            self.puts.handle_forward(src, message)

    def crowd(self) -> Crowd:
        """How much is under way: a bounded queue beats a late answer."""
        local, requests = self._local, self._requests
        limit = local.requests_limit
        high = limit - limit // 4
        if len(requests.by_id) < high or requests.under_way < high:
            return Crowd.NONE
        local.crowded = True
        return Crowd.FULL if requests.under_way >= limit else Crowd.HIGH

    def _is_busy(self) -> bool:
        """Whether there is no room even for the later steps of commands that a door let in."""
        limit = self._local.requests_limit
        return self.crowd() is Crowd.FULL and self._requests.under_way >= limit + limit // 4

    def _outside(self) -> Failure:
        return Failure(Code.NOQUORUM, f"{self._local.node} is no member of the cluster; ask one that is")

    def _busy(self) -> Failure:
        self._local.count("busy")
        return Failure(Code.BUSY, f"{self.under_way} requests are under way here; try again later")

    def handle_refused(self, src: NodeId, message: ReplicaRefused) -> None:
        """A replica cannot serve a read or write."""
        local = self._local
        request = self._requests.by_id.get(message.id)
        heard = local.heard_read if isinstance(request, Reading) else local.heard_write
        heard[src] = max(message.id, heard.get(src, 0))
        if message.hint:
            local.mark_missing(message.hint)  # its intended node may have to get it from the other owners
        if request is not None and src in request.waiting():
            if isinstance(request, Reading):
                request.corrupt.append(src)  # a replica has no other reason to refuse a read
            elif isinstance(request, Writing):
                request.refused = [*request.refused, src]
            request.fail(src, message.reason)

    # --- views of the ring ---

    def handle_disagree(self, src: NodeId, message: Disagree) -> None:
        """A node that sees the slots of these requests' keys otherwise than we do."""
        waiting = self.disagreeing.setdefault(src, [])
        waiting += [request_id for request_id in message.ids if request_id in self._requests.by_id]
        heard = self._local.heard_read, self._local.heard_write
        for request_id in message.ids[-1:]:
            ids = heard[not isinstance(self._requests.by_id.get(request_id), Reading)]
            ids[src] = max(request_id, ids.get(src, 0))

    def handle_agreement(self, src: NodeId) -> None:
        """Our views are the same."""
        for request_id in self.disagreeing.pop(src, ()):
            request = self._requests.by_id.get(request_id)
            if request is not None:
                request.again(src)

    def replan(self) -> None:
        """Our view has changed."""
        self.disagreeing.clear()
        for request in list({id(request): request for request in self._requests.by_id.values()}.values()):
            request.replan()

    def handle_tick(self) -> None:
        """Ask others in place of those that are late; give up on what is overdue."""
        local = self._local
        self._ticked_s = local.now_s
        self._requests.mark_late(local.now_s, local.last_id, local.config.late_s)
        self._requests.tick(local.now_s)

    def handle_silent(self, node: NodeId) -> None:
        """This peer was found not to answer reads."""
        for request in list(self._requests.by_id.values()):
            request.doubt(node)

    def handle_peer_down(self, node: NodeId, reason: str) -> None:
        """What was asked of this peer will not be answered."""
        self.disagreeing.pop(node, None)
        self._requests.peer_down(node, reason)

    def check(self) -> None:
        """Assert that no request can leak."""
        self._requests.check()
