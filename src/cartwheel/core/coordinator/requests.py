"""The requests under way at one coordinator, and their deadlines.

Deadlines are kept in buckets of one tick, so setting one costs an append and ending a request costs nothing: its id stays in
the bucket and is found gone. Memory: an id for each request of the last ``timeout_s`` seconds.

Invariant: every request is in a bucket that a later tick will open: none can leak.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Protocol

from cartwheel.core.errors import Code
from cartwheel.core.messages import TICK_S, Failure, Result
from cartwheel.core.quorum import Tally
from cartwheel.core.types import Durability, NodeId

Done = Callable[[Result, Durability], None]
"""How a request is answered, once: the result, and what its telling must wait for."""


class Request(Protocol):
    """A get, put or forwarded put under way."""

    def waiting(self) -> list[NodeId]:
        """The nodes whose answers are outstanding."""

    def fail(self, node: NodeId, reason: str) -> None:
        """This node will not answer: ask another in its place, or count it."""

    def late(self) -> None:
        """It is under way for long, another ``late_s``: ask again, and others in place of those that have not answered."""

    def doubt(self, node: NodeId) -> None:
        """This node was found not to answer anything; it may answer yet."""

    def again(self, node: NodeId) -> None:
        """This node did not answer because our views differed. They are the same now: ask it again."""

    def replan(self) -> None:
        """The ring or what nodes hold of it has changed: if that concerns this request's key, ask those who count now."""

    def expire(self) -> None:
        """Its deadline is over."""


class Requests:
    """All of them, by id."""

    __slots__ = (
        "_deadline_s",
        "_due",
        "_last_due",
        "_late",
        "_late_until",
        "_marks",
        "_opened",
        "_stragglers",
        "by_id",
    )

    def __init__(self, first_id: int) -> None:
        self.by_id: dict[int, Request] = {}
        self._due: dict[int, list[int]] = {}
        self._opened = 0
        self._deadline_s = -1.0  # of the request added last,
        self._last_due: list[int] = []  # and its bucket: requests of one turn mostly share it
        self._stragglers: set[int] = set()
        self._marks: deque[tuple[float, int]] = deque()  # at each tick: the time, and the id given out last
        self._late: deque[tuple[float, int]] = deque()  # the late ones, and when they were found so
        self._late_until = first_id  # those below have been looked at

    @property
    def under_way(self) -> int:
        """Requests not answered yet. A get that waits for its last replicas is no burden: one hung peer must not make
        every coordinator busy."""
        return len(self.by_id) - len(self._stragglers)

    def answered(self, request_id: int) -> None:
        """The client has its answer, the request goes on until its deadline."""
        self._stragglers.add(request_id)

    def add(self, request_id: int, request: Request, deadline_s: float) -> None:
        """Take a request in; at the first tick after ``deadline_s`` (monotonic) its outstanding answers are given up."""
        self.by_id[request_id] = request
        if deadline_s == self._deadline_s:
            self._last_due.append(request_id)
            return
        bucket = max(int(deadline_s / TICK_S) + 1, self._opened + 1)
        due = self._due.get(bucket)
        if due is None:
            due = self._due[bucket] = []
        due.append(request_id)
        self._deadline_s, self._last_due = deadline_s, due

    def end(self, request_id: int) -> None:
        """The request is over."""
        self.by_id.pop(request_id, None)
        self._stragglers.discard(request_id)

    def tick(self, now_s: float) -> None:
        """Give up what is overdue."""
        current = int(now_s / TICK_S)
        if len(self._due) < current - self._opened:
            buckets = sorted(bucket for bucket in self._due if bucket <= current)
        else:
            buckets = list(range(self._opened + 1, current + 1))
        self._opened = max(self._opened, current)
        self._deadline_s = -1.0
        for bucket in buckets:
            for request_id in self._due.pop(bucket, ()):
                request = self.by_id.get(request_id)
                if request is not None:
                    request.expire()

    def mark_late(self, now_s: float, last_id: int, late_s: float) -> None:
        """Called on each tick with the id given out last: requests that began ``late_s`` ago and are still here are late, and
        once more after each further ``late_s``.

        So nothing is noted when a request begins, and what ended in time costs a look-up.
        """
        self._marks.append((now_s, last_id))
        while self._late and self._late[0][0] <= now_s - late_s:
            self._is_late(self._late.popleft()[1], now_s)
        while self._marks[0][0] <= now_s - late_s:
            _, until = self._marks.popleft()
            for request_id in range(self._late_until + 1, until + 1):
                self._is_late(request_id, now_s)
            self._late_until = until

    def _is_late(self, request_id: int, now_s: float) -> None:
        request = self.by_id.get(request_id)
        if request is not None and request_id not in self._stragglers:
            self._late.append((now_s, request_id))
            request.late()

    def peer_down(self, node: NodeId, reason: str) -> None:
        """What was asked of this peer will not be answered."""
        for request in list(self.by_id.values()):
            if node in request.waiting():
                request.fail(node, reason)

    def check(self) -> None:
        """Assert the invariant."""
        due = {request_id for bucket in self._due.values() for request_id in bucket}
        assert self.by_id.keys() <= due, "a request without a deadline"
        assert self._stragglers <= self.by_id.keys(), "an ended request still counts as answered"


class Refused(Exception):
    """The request was not applied anywhere. Raised within the coordinator, told to the client as a Failure."""

    def __init__(self, code: Code, text: str) -> None:
        super().__init__(text)
        self.failure = Failure(code, text)


def shortfall(name: str, needed: int, got: int, failed: dict[NodeId, str]) -> str:
    """``need W=2, got 1 (n3: no answer in time)``."""
    reasons = "; ".join(f"{node}: {reason}" for node, reason in sorted(failed.items()))
    return f"need {name}={needed}, got {got}" + (f" ({reasons})" if reasons else "")


def tally_shortfall(name: str, tally: Tally) -> str:
    """The same, of a tally."""
    return shortfall(name, tally.needed, len(tally.acked), tally.failed)
