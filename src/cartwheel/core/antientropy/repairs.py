"""The repairs that people ask for: ``cartwheel repair`` compares now, not at its turn, and tells how far it is.

One at a time. It compares what this node holds (all, or one partition) with the other owners (all, or one), both ways; what
cannot be compared, because the peer is away or builds its hash tree, is counted as failed, with the reason.
"""

from __future__ import annotations

from collections import deque

from cartwheel.core.antientropy.books import Shares
from cartwheel.core.antientropy.session import CROSSED, Part, Session
from cartwheel.core.errors import Code
from cartwheel.core.local import Local
from cartwheel.core.messages import ClientRepair, ClientRepairStatus, Failure, Repairing
from cartwheel.core.summary import Summary
from cartwheel.core.types import NodeId


class Repair:
    """A repair: the comparisons to be made, peer by peer, and what came of them."""

    def __init__(self, repair_id: int, tasks: list[tuple[NodeId, list[Part]]]) -> None:
        self.id = repair_id
        self._tasks = deque(tasks)
        self._total = sum(len(parts) for _, parts in tasks)
        self._done = self._failed = self._received = self._sent = 0
        self._reasons: dict[NodeId, str] = {}

    @property
    def peer(self) -> NodeId:
        """With whom the next comparison is; "": all are made."""
        return self._tasks[0][0] if self._tasks else ""

    def begin(self) -> tuple[NodeId, list[Part]]:
        """The next peer, and what to compare with it."""
        return self._tasks[0]

    def take(self, session: Session) -> None:
        """The session with this peer has ended."""
        self._received += session.received
        self._sent += session.sent
        peer, parts = self._tasks[0]
        if session.ended == CROSSED:  # what is left is tried again
            self._done += len(parts) - len(session.left)
            self._tasks[0] = peer, list(session.left)
            return
        self._tasks.popleft()
        failed = len(session.left)
        self._done += len(parts) - failed
        if failed:
            self._failed += failed
            self._reasons[peer] = session.ended if session.ended != "done" else "its hash trees are being built"

    def skip(self, reason: str) -> None:
        """The next peer cannot be asked."""
        peer, parts = self._tasks.popleft()
        self._failed += len(parts)
        self._reasons[peer] = reason

    def told(self, session: Session | None) -> Repairing:
        """How far it is. ``session``: the one of this repair that is under way."""
        done, received, sent = self._done, self._received, self._sent
        if session is not None:
            done += len(self._tasks[0][1]) - len(session.left)
            received += session.received
            sent += session.sent
        return Repairing(
            self.id,
            self._total,
            done,
            self._failed,
            received,
            sent,
            not self._tasks,
            dict(sorted(self._reasons.items())),
        )


class Repairs:
    """The repair under way, or the last one."""

    def __init__(self, local: Local, summary: Summary, shares: Shares) -> None:
        self._local = local
        self._summary = summary
        self._shares = shares
        self._repair: Repair | None = None

    def next(self) -> Repair | None:
        """The repair, if it has a comparison to be begun now."""
        repair, local = self._repair, self._local
        if repair is None or self._summary.unready:
            return None  # our own trees first
        while repair.peer and repair.peer not in local.reachable:
            repair.skip(local.why_unreachable(repair.peer))
        return repair if repair.peer else None

    def ask(self, event: ClientRepair) -> None:
        """Begin one."""
        local = self._local
        if self._repair is not None and self._repair.peer:
            local.reply(event.client, Failure(Code.BUSY, "a repair is under way here"))
            return
        assert local.ring is not None
        if event.partition is not None and not 0 <= event.partition < local.ring.q:
            text = f"there is no partition {event.partition}: they are numbered from 0 to {local.ring.q - 1}"
            local.reply(event.client, Failure(Code.INVALID, text))
            return
        parts: dict[NodeId, list[Part]] = {}
        for n in self._summary.trees:
            for peer, partitions in self._shares.at(n).items():
                shared = [(n, each) for each in partitions if event.partition in (None, each)]
                if shared and event.peer in ("", peer):
                    parts.setdefault(peer, []).extend(shared)
        if not parts:
            what = "no partition" if event.partition is None else f"not partition {event.partition}"
            whom = f"with {event.peer}" if event.peer else "with any other node"
            local.reply(event.client, Failure(Code.INVALID, f"{local.node} shares {what} {whom}"))
            return
        self._repair = Repair(local.new_id(), sorted(parts.items()))
        local.count("repairs")
        local.reply(event.client, self._repair.told(None))

    def tell(self, event: ClientRepairStatus, session: Session | None) -> None:
        """How far is it?"""
        if self._repair is None:
            self._local.reply(event.client, Failure(Code.INVALID, "no repair was asked for since this node started"))
        else:
            self._local.reply(event.client, self._repair.told(session))
