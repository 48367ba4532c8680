"""Anti-entropy: owners of a partition compare what they hold, all the time, and mend what differs (section 4.7).

    every ae_interval_s: the next peer in turn
      I ── TreeRoots: all partitions that both of us own ──────> P      8 bytes each (and 2 to name it)
      I <─ TreeLeaves: those that differ, leaves of the first ── P      512 bytes each
      I ── LeafKeys: what I hold in the leaves that differ ────> P      32 bytes a key
      I <─ LeafDiff: what is newer there; what is wanted ─────── P      the records
      I ── LeafRows: what is newer here ───────────────────────> P      the records

Only P's answers and I's ``session`` have a state, and only I keeps one. Nothing is believed about the other side but what it says
in the message at hand, everything taken in is a merge, and every record is read again when it is sent: so loss, repetition, delay
and restarts cost time only, and a deleted record does not come back from an old list.

*Departs from the paper:* there the trees are walked level by level, and ranges whose trees must be computed again after a
change of membership are its problem; here partitions are fixed (its strategy 3), so a tree never changes its range. The trees:
``merkle`` and ``summary``.

**Writes under way** differ between two owners until they have arrived. They are told by their clock reading: a key whose newest
write is younger than ``ae_settle_s`` is left alone. Under load some roots differ in every round and some keys are listed; no
record is moved.

**The pace.** The node that asks pays for what was moved before it asks on, the node that answers before it answers
(``Local.budget``: admission control). Messages are bounded, and one session's questions follow one another.

Besides: ``fetches`` for corrupt records, ``scrub`` to find them, and the repairs that people ask for.

Cost of a round with nothing to mend, for 1,024 partitions: 10 KB, a millisecond on either side.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from cartwheel.core.antientropy.answers import Answers
from cartwheel.core.antientropy.books import Ages, Damage, Shares, Traffic
from cartwheel.core.antientropy.fetches import Fetches
from cartwheel.core.antientropy.repairs import Repair, Repairs
from cartwheel.core.antientropy.rows import Rows
from cartwheel.core.antientropy.scrub import Scrub
from cartwheel.core.antientropy.session import CROSSED, Part, Session
from cartwheel.core.local import Local
from cartwheel.core.messages import (
    AntiEntropyStatus,
    ClientRepair,
    ClientRepairStatus,
    LeafDiff,
    Purpose,
    TreeLeaves,
    TreeRoots,
)  # fmt: skip
from cartwheel.core.storage import POSITION_BYTES
from cartwheel.core.summary import Summary
from cartwheel.core.types import NodeId

__all__ = ["AntiEntropy"]

Ended = Callable[[Session], None]
"""Told of a session that has ended."""

SETTLE_TOLD_S = 0.5
"""For a repair that somebody asked for: who waits for it wants all of it, and a few records too many do no harm."""
RETRY_S = 0.5
"""A repair that gave way to the other node's session tries again after so long."""
TOLD_MAX = 4
"""Comparisons with one peer for one purpose: while an answer is on its way, or made, others are worked on."""
SESSION_S_MAX = 30.0
"""A session with more to do ends, so that the next peer has its turn: a node with an empty disk hears all of them."""


class AntiEntropy:
    """This node's part in keeping replicas equal."""

    def __init__(self, local: Local, summary: Summary) -> None:
        self._local = local
        self._summary = summary
        self._shares = Shares(local)
        self._ages = Ages(local, self._shares)
        self._traffic = Traffic(local)
        damage = Damage(local)
        self._rows = Rows(local, damage)
        self.answers = Answers(local, summary, self._rows, self._traffic, self._ages)
        self.fetches = Fetches(local, self._rows, self._traffic)
        self.repairs = Repairs(local, summary, self._shares)
        self._scrub = Scrub(local, summary, damage)
        self._session: Session | None = None
        self._told: list[tuple[Session, Ended]] = []  # comparisons for other machines
        self._repair: Repair | None = None  # what the session is part of
        self._last_peer: NodeId = ""
        self._next_s = 0.0
        self._retry_s = 0.0
        self._urged: dict[int, None] = {}
        self._urgent: deque[tuple[NodeId, list[Part]]] = deque()
        self._rounds = self._interrupted = 0

    def start(self) -> None:
        """The first comparison is due an interval from now."""
        self._ages.since_s = self._local.now_s
        self._next_s = self._local.now_s + self._local.config.ae_interval_s
        self._scrub.start()

    def urge(self, partition: int) -> None:
        """Compare this partition soon with all that share it: something is known to be missing. For other machines."""
        self._urged[partition] = None

    def urge_key(self, record_key: bytes) -> None:
        """The same for the partition of a key (``Local.mark_missing``)."""
        assert self._local.ring is not None
        self.urge(self._local.ring.partition_of(record_key.ljust(POSITION_BYTES, b"\0")))

    def compare(self, peer: NodeId, parts: list[Part], purpose: Purpose, ended: Ended) -> bool:
        """Compare these parts with a peer now, beside the rounds, and leave out nothing that is young. ``ended`` is told the
        session once it has ended. False: as many as may be are under way with this peer, for this purpose. For ``transfer``."""
        if sum(session.peer == peer and session.purpose is purpose for session, _ in self._told) >= TOLD_MAX:
            return False
        session = Session(
            self._local, self._summary, self._rows, self._traffic, self._ages, peer, parts, float("inf"), 0.0, purpose,
        )  # fmt: skip
        self._told.append((session, ended))
        session.advance()
        return True

    def _end_told(self) -> None:
        for session, ended in [told for told in self._told if told[0].ended]:
            self._told.remove((session, ended))
            ended(session)

    # --- repairs ---

    def repair(self, event: ClientRepair) -> None:
        """Compare now: the session under way makes room."""
        self.repairs.ask(event)
        if self._session is not None and self._repair is None:
            self._session.end_s = self._local.now_s

    def repair_status(self, event: ClientRepairStatus) -> None:
        """How far is the repair?"""
        self.repairs.tell(event, self._session if self._repair is not None else None)

    # --- messages ---

    def handle_roots(self, src: NodeId, message: TreeRoots) -> None:
        """Somebody compares with us. If we are comparing with it, one of both is enough: that of the first in the alphabet."""
        if self._session is not None and self._session.peer == src and message.purpose is Purpose.SHARED:
            if self._local.node < src:
                self._traffic.send(src, TreeLeaves(message.id, b"", b"", crossed=True))
                return
            self._session.ended = CROSSED
            self._maybe_end()
        self.answers.handle_roots(src, message)

    def handle_leaves(self, src: NodeId, message: TreeLeaves) -> None:
        """The answer to our roots."""
        if self._session is not None and self._session.peer == src:
            self._session.handle_leaves(message)
            self._maybe_end()
        for session, _ in self._told:
            if session.peer == src:
                session.handle_leaves(message)  # which is for one of them
        self._end_told()

    def handle_diff(self, src: NodeId, message: LeafDiff) -> None:
        """The answer to our keys."""
        if self._session is not None and self._session.peer == src:
            self._session.handle_diff(message)
            self._maybe_end()
        for session, _ in self._told:
            if session.peer == src:
                session.handle_diff(message)
        self._end_told()

    def handle_peer_down(self, node: NodeId, reason: str) -> None:
        """What was asked of this peer will not be answered."""
        if self._session is not None and self._session.peer == node:
            self._session.ended = reason
            self._maybe_end()
        for session, _ in self._told:
            if session.peer == node:
                session.ended = reason
        self._end_told()

    # --- sessions ---

    def handle_tick(self) -> None:
        """Go on, or begin; fetch and scrub a little."""
        if self._session is not None:
            self._session.handle_tick()
            self._maybe_end()
        if self._session is None:
            self._maybe_begin()
        for session, _ in self._told:
            session.handle_tick()
        self._end_told()
        self.fetches.handle_tick()
        self._scrub.handle_tick()

    def _maybe_end(self) -> None:
        session, repair = self._session, self._repair
        if session is None or not session.ended:
            return
        self._session = self._repair = None
        if session.ended == "done":
            self._rounds += repair is None
        elif session.ended != CROSSED:
            self._interrupted += 1
        if repair is not None:
            repair.take(session)
            if session.ended == CROSSED:
                self._retry_s = self._local.now_s + RETRY_S

    def _maybe_begin(self) -> None:
        now_s, interval_s = self._local.now_s, self._local.config.ae_interval_s
        repair = self.repairs.next() if now_s >= self._retry_s else None
        if repair is not None:
            self._begin(*repair.begin(), float("inf"), repair)
            return
        if self._urged:
            self._sort_urged()
        while self._urgent:
            peer, parts = self._urgent.popleft()
            if peer in self._local.reachable:
                self._begin(peer, parts, now_s + SESSION_S_MAX)
                return
        if interval_s and now_s >= self._next_s:
            self._next_s = now_s + interval_s
            peer, parts = self._next_round()
            if parts:
                self._begin(peer, parts, now_s + SESSION_S_MAX)

    def _begin(self, peer: NodeId, parts: list[Part], end_s: float, repair: Repair | None = None) -> None:
        self._repair = repair
        self._session = Session(
            self._local, self._summary, self._rows, self._traffic, self._ages, peer, parts, end_s,
            self._local.config.ae_settle_s if repair is None else SETTLE_TOLD_S,
        )  # fmt: skip
        self._session.advance()
        self._maybe_end()

    def _next_round(self) -> tuple[NodeId, list[Part]]:
        """The reachable peer after the last one, and all that we share with it."""
        shares = {n: self._shares.at(n) for n in self._summary.trees}
        sharing = {peer for peers in shares.values() for peer in peers}
        peers = sorted(sharing & self._local.reachable)
        if not peers:
            return "", []
        peer = next((peer for peer in peers if peer > self._last_peer), peers[0])
        self._last_peer = peer
        return peer, [(n, partition) for n, peers_at in shares.items() for partition in peers_at.get(peer, [])]

    def _sort_urged(self) -> None:
        """One session for each peer that shares an urged partition."""
        urged, self._urged = self._urged, {}
        parts: dict[NodeId, list[Part]] = {}
        for n in self._summary.trees:
            for peer, partitions in self._shares.at(n).items():
                shared = [(n, partition) for partition in partitions if partition in urged]
                if shared:
                    parts.setdefault(peer, []).extend(shared)
        self._urgent.extend(parts.items())

    # --- for people ---

    def status(self) -> AntiEntropyStatus:
        """A snapshot."""
        ages = self._ages.by_partition(list(self._summary.trees))
        oldest = max(ages, key=lambda partition: (ages[partition], -partition), default=-1)
        return AntiEntropyStatus(
            oldest_s=ages.get(oldest, 0.0),
            oldest_partition=oldest,
            ages_s={partition: round(age_s, 1) for partition, age_s in ages.items()},
            peer="" if self._session is None else self._session.peer,
            rounds=self._rounds,
            interrupted=self._interrupted,
            received=self._traffic.received,
            sent=self._traffic.sent,
            unready=self._summary.unready,
            fetching=len(self.fetches),
            scrubbed=self._scrub.part,
            sent_bytes=dict(sorted(self._traffic.sent_bytes.items())),
        )

    def check(self) -> None:
        """Assert the invariants."""
        for session in (self._session, *(session for session, _ in self._told)):
            if session is not None:
                session.check()
