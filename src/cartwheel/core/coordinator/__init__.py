"""The coordinator: one small state machine per get() and put() (sections 4.5 and 5).

``gets`` and ``puts`` hold the two machines, ``requests`` what is under way and its deadlines. Invariants:

1. A client is answered exactly once.
2. Stored is sent only after W distinct owners, counted by name, hold the write as durably as the bucket demands.
3. A put is stamped with one dot, by one coordinator: a forwarded put is never forwarded again, a retry that this
   coordinator remembers is not stamped again.
4. Minting happens in one synchronous step from reading the record to staging it (versions, invariant A).
5. A failed put is "rejected" only if nothing of it was staged or sent; otherwise its outcome is "unknown".

O(N) messages and memory per request; requests end at their deadline at the latest.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TypeVar

from cartwheel.core.coordinator.gets import Gets, Reading, check_key
from cartwheel.core.coordinator.puts import Puts
from cartwheel.core.coordinator.requests import Refused, Requests
from cartwheel.core.errors import Code
from cartwheel.core.local import Local
from cartwheel.core.messages import ClientExplain, ClientGet, ClientPut, Failure, Forward, Forwarded, ReplicaRefused
from cartwheel.core.types import NodeId

AnyRead = TypeVar("AnyRead", ClientGet, ClientExplain)


class Coordinator:
    """This node as a coordinator of requests."""

    def __init__(self, local: Local) -> None:
        self._local = local
        self._requests = Requests()
        self._most = local.config.requests_max
        self.gets = Gets(local, self._requests)
        self.puts = Puts(local, self._requests, self.gets)

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
        if self._is_busy():
            self._local.reply(event.client, self._busy())
            return
        try:
            check_key(event.key, self._local.plan(event.bucket))
        except Refused as refused:
            self._local.reply(event.client, refused.failure)
        else:
            start(event)

    def put(self, event: ClientPut) -> None:
        """A client's put or delete."""
        if self._is_busy():
            self._local.reply(event.client, self._busy())
        else:
            self.puts.put(event.put, partial(self._local.reply, event.client))

    def handle_forward(self, src: NodeId, message: Forward) -> None:
        """A put from a node outside the preference list: admitted like a client's."""
        if not self._is_busy():
            self.puts.handle_forward(src, message)
            return
        self._local.send(src, Forwarded(message.id, self._busy()))

    def _is_busy(self) -> bool:
        """Whether too much is under way: a bounded queue beats a late answer."""
        return len(self._requests.by_id) >= self._most and self._requests.under_way >= self._most

    def _busy(self) -> Failure:
        self._local.count("busy")
        return Failure(Code.BUSY, f"{self.under_way} requests are under way here; try again later")

    def handle_refused(self, src: NodeId, message: ReplicaRefused) -> None:
        """A replica cannot serve a read or write."""
        request = self._requests.by_id.get(message.id)
        if request is not None and src in request.waiting():
            if isinstance(request, Reading):
                request.corrupt.append(src)  # a replica has no other reason to refuse a read
            request.fail(src, message.reason)

    def handle_tick(self) -> None:
        """Give up on what is overdue."""
        self._requests.tick(self._local.now_s)

    def handle_peer_down(self, node: NodeId, reason: str) -> None:
        """What was asked of this peer will not be answered."""
        self._requests.peer_down(node, reason)

    def check(self) -> None:
        """Assert that no request can leak."""
        self._requests.check()
