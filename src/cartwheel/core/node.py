"""One node: the machines together, as a function from an event to effects (design: one pure core, two drivers).

    driver                         Node.handle(now_s, wall_ms, event) -> effects
      client request ───────────────> coordinator, coverage, membership, antientropy
      Received(src, batch) ─────────> each message to its machine; then one acknowledgement for all its writes
      PeerUp / PeerDown ────────────> membership; coordinator and coverage (fail what was asked of it)
      Tick ─────────────────────────> deadlines, verdicts on peers, background work
      TurnEnd ──────────────────────> coordinator: writes of one key leave together

A driver must: commit what ``start`` staged before the first ``handle``; hand in ``TurnEnd`` before it commits or sends; perform
held effects only once every write staged before them is durable enough; perform the others at once, in order; give ``now_s``
from a clock that never goes back, and that has moved on once a message caused by an earlier event has left (equal ``now_s``
means simultaneous: see ``coordinator.gets``).

Invariants (``check``): every request under way has a deadline; the actor is this node's; we never reach ourselves.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

from cartwheel.core.admission import Admission
from cartwheel.core.antientropy import AntiEntropy
from cartwheel.core.clock import HybridClock
from cartwheel.core.config import Config
from cartwheel.core.coordinator import Coordinator
from cartwheel.core.coverage import Coverage
from cartwheel.core.digests import DigestReader
from cartwheel.core.errors import CorruptData
from cartwheel.core.failure import Detector
from cartwheel.core.hints import Hints
from cartwheel.core.local import META_STINT, Local
from cartwheel.core.membership import Membership
from cartwheel.core.membership.administration import Administration, describe
from cartwheel.core.messages import (
    ClientAbandon,
    ClientBucketSet,
    ClientCommit,
    ClientCount,
    ClientDigests,
    ClientExplain,
    ClientGet,
    ClientHints,
    ClientJoin,
    ClientPut,
    ClientRepair,
    ClientRepairStatus,
    ClientScan,
    ClientStage,
    CountAsk,
    Counts,
    Disagree,
    DiskSpace,
    Drain,
    Effect,
    Event,
    Fetch,
    Fetched,
    Forward,
    Forwarded,
    Gossip,
    HandedOver,
    HandOver,
    Health,
    HintDeliver,
    HintGrant,
    HintOffer,
    HintsAsk,
    HintsTold,
    HintTaken,
    JoinAsk,
    JoinTold,
    LeafDiff,
    LeafKeys,
    LeafRows,
    MemberStatus,
    PeerDown,
    PeerUp,
    PlanTold,
    Probe,
    Probed,
    Reap,
    ReapAsk,
    ReapReady,
    Received,
    ReplicaRead,
    ReplicaRefused,
    ReplicaRepair,
    ReplicaValue,
    ReplicaWrite,
    ReplicaWrote,
    ScanAsk,
    ScanPage,
    Status,
    Tick,
    TreeLeaves,
    TreeRoots,
    TurnEnd,
    ViewDigest,
    ViewPush,
)  # fmt: skip
from cartwheel.core.reaper import Reaper
from cartwheel.core.replica import Replica
from cartwheel.core.ring import Change, History, Member
from cartwheel.core.storage import Space, Store
from cartwheel.core.summary import Summary
from cartwheel.core.transfer import Transfer
from cartwheel.core.types import Durability, NodeId, make_actor, node_of

STRANGERS_MAY = frozenset({ViewPush, ViewDigest, Gossip, JoinAsk, JoinTold})
"""What is heard from nodes that are no members (trap: a removed node that goes on acknowledging)."""
META_CLEAN = b"\x00clean-stop"
"""The clock's last reading, if the node stopped cleanly."""

Handler = Callable[[NodeId, Any], None]


class Node:
    """A node of the ring. Not reentrant; one thread."""

    def __init__(
        self, config: Config, store: Store, *, history: History, stint: str, boot: int, copied: bool = False
    ) -> None:
        """
        Args:
            history: the cluster's first membership, used only by a new disk.
            stint: a name that no stint of this node had before, used unless the disk was closed cleanly.
            boot: 32 bits that differ from every earlier start of this node; the high half of its request ids.
            copied: the disk may be a copy of one that another process goes on with: two of one stint would make dots that look
                as if one of them had superseded the other's.
        """
        self._first_history = history
        try:
            clean = store.get(Space.META, META_CLEAN)
        except CorruptData:
            clean = None
        self._clean = clean is not None
        self._copied = copied
        clock = HybridClock(last=int.from_bytes(clean or b""), skew_ms_max=config.skew_ms_max)
        self._local = Local(config, store, clock, stint=stint, boot=boot)
        self._admission = Admission(self._local)
        self._coordinator = Coordinator(self._local)
        self.crowd = self._coordinator.crowd
        """Whether a door should refuse new requests, or let them wait a little: cheaper than to hand them in."""
        self._replica = Replica(self._local)
        self._hints = Hints(self._local)
        self._summary = Summary(self._local)
        self._coverage = Coverage(self._local, self._summary)
        self._antientropy = AntiEntropy(self._local, self._summary)
        self._membership = Membership(self._local)
        self._administration = Administration(self._local, self._membership)
        self._detector = Detector(self._local)
        self._reaper = Reaper(self._local)
        self._transfer = Transfer(
            self._local,
            self._summary,
            compare=self._antientropy.compare,
            gain=self._membership.gain,
            give=self._membership.give,
            leave=self._leave,
        )
        self._local.on_write = self._summary.note_write
        self._local.on_mortal = self._reaper.note_write
        self._local.mark_missing = self._antientropy.urge_key
        self._local.before_place = self._coordinator.puts.leave
        self._local.on_place = self._placed
        self._local.on_corrupt = self._note_corrupt
        self._background = deque(
            [
                self._hints.handle_tick,
                self._antientropy.handle_tick,
                self._summary.handle_tick,
                self._reaper.handle_tick,
                self._transfer.handle_tick,
            ]
        )
        self._can_leave = False  # found in this tick
        self._messages = self._message_handlers()
        self._events = self._event_handlers()

    def _message_handlers(self) -> dict[type, Handler]:
        return {
            ReplicaWrite: self._replica.handle_write,
            ReplicaRead: self._replica.handle_read,
            ReplicaRepair: self._replica.handle_repair,
            ReplicaWrote: self._coordinator.puts.handle_wrote,
            ReplicaValue: self._coordinator.gets.handle_value,
            ReplicaRefused: self._coordinator.handle_refused,
            Forward: self._coordinator.handle_forward,
            Forwarded: self._coordinator.puts.forwards.handle_forwarded,
            ScanAsk: self._coverage.handle_scan_ask,
            ScanPage: self._coverage.handle_scan_page,
            CountAsk: self._coverage.handle_count_ask,
            Counts: self._coverage.handle_counts,
            ViewPush: self._membership.handle_push,
            ViewDigest: self._membership.handle_digest,
            Gossip: self._membership.handle_gossip,
            JoinAsk: self._membership.handle_join_ask,
            JoinTold: self._membership.handle_join_told,
            Disagree: self._coordinator.handle_disagree,
            HandOver: self._transfer.gives.handle_hand_over,
            HandedOver: self._transfer.gains.handle_handed_over,
            HintOffer: self._hints.handle_offer,
            HintGrant: self._hints.handle_grant,
            HintDeliver: self._hints.handle_deliver,
            HintTaken: self._hints.handle_taken,
            HintsAsk: self._hints.handle_ask,
            HintsTold: self._hints.handle_told,
            ReapAsk: self._reaper.handle_ask,
            ReapReady: self._reaper.handle_ready,
            Reap: self._reaper.handle_reap,
            TreeRoots: self._antientropy.handle_roots,
            TreeLeaves: self._antientropy.handle_leaves,
            LeafKeys: self._antientropy.answers.handle_keys,
            LeafDiff: self._antientropy.handle_diff,
            LeafRows: self._antientropy.answers.handle_rows,
            Fetch: self._antientropy.fetches.handle_fetch,
            Fetched: self._antientropy.fetches.handle_fetched,
            Probe: self._detector.handle_probe,
            Probed: self._detector.handle_probed,
            Health: self._detector.handle_health,
        }

    def _event_handlers(self) -> dict[type, Callable[[Any], None]]:
        return {
            Received: self._received,
            ClientGet: self._coordinator.get,
            ClientPut: self._coordinator.put,
            ClientExplain: self._coordinator.explain,
            ClientScan: self._coverage.scan,
            ClientCount: self._coverage.count,
            ClientHints: self._hints.ask,
            ClientDigests: DigestReader(self._local).read,
            ClientBucketSet: self._membership.set_bucket,
            ClientRepair: self._antientropy.repair,
            ClientRepairStatus: self._antientropy.repair_status,
            ClientStage: self._administration.stage,
            ClientCommit: self._administration.commit,
            ClientAbandon: self._administration.abandon,
            ClientJoin: self._administration.join,
            PeerUp: self._peer_up,
            PeerDown: self._peer_down,
            Tick: self._tick,
            TurnEnd: self._turn_end,
            DiskSpace: self._detector.handle_disk,
            Drain: self._detector.drain,
        }

    @property
    def local(self) -> Local:
        """What the machines share: read-only for drivers."""
        return self._local

    @property
    def epoch(self) -> bytes:
        """The placement epoch that travels with every batch."""
        return self._local.epoch

    # --- life ---

    def start(self, now_s: float, wall_ms: int) -> None:
        """Read the node's own facts and stage those of this start: the driver commits them, synced, before anything else.

        After a clean stop the stint goes on; otherwise what was staged last may be lost, so a new one begins.
        """
        local, store = self._local, self._local.store
        local.now_s, local.wall_ms = now_s, wall_ms
        stored = store.get(Space.META, META_STINT)
        if self._clean and stored is not None and not self._copied:
            local.stint = stored.decode()
            local.actor = make_actor(local.node, local.stint)
        store.stage(Space.META, META_STINT, local.stint.encode(), Durability.SYNC)
        store.stage(Space.META, META_CLEAN, None, Durability.SYNC)
        local.mind_clock()
        self._detector.start()
        self._membership.start(self._first_history)
        self._reaper.start()
        self._hints.start()
        self._summary.start(clean=self._clean)
        self._antientropy.start()

    def shutdown(self) -> None:
        """Stage the mark of a clean stop. The driver commits it, synced, handles nothing more, and closes the store."""
        local = self._local
        local.store.stage(Space.META, META_CLEAN, local.clock.last.to_bytes(8), Durability.SYNC)
        self._summary.save()

    def handle(self, now_s: float, wall_ms: int, event: Event) -> list[Effect]:
        """React to one event: change state now, return what is to be done.

        Args:
            now_s: monotonic seconds, for deadlines.
            wall_ms: wall clock, milliseconds since 1970, for versions.
        """
        local = self._local
        local.now_s, local.wall_ms = now_s, wall_ms
        out: list[Effect] = []
        local.out = out
        self._events[type(event)](event)
        return out

    # --- events ---

    def _received(self, event: Received) -> None:
        src, batch = event.src, event.batch
        local = self._local
        handlers = self._messages
        self._replica.epoch = batch.epoch
        if local.serves and src in local.peers:
            for message in batch.messages:
                handlers[type(message)](src, message)
            self._replica.acknowledge(src)
        else:
            for message in batch.messages:
                if type(message) in STRANGERS_MAY:
                    handlers[type(message)](src, message)
        if src == local.node:
            return
        if batch.epoch != local.epoch:
            self._membership.handle_epoch(src, batch.epoch)
        elif src in self._coordinator.disagreeing:
            self._coordinator.handle_agreement(src)

    def _placed(self) -> None:
        """There is a new view of the ring."""
        self._summary.place()
        self._reaper.handle_place()
        assert self._local.placement is not None
        self._transfer.handle_place(self._local.placement.changed)
        self._detector.handle_place()  # before requests are planned anew: who has just joined can be asked
        self._coordinator.replan()

    def _leave(self) -> None:
        """Nothing is left to hand over. Take no more requests, and be gone once those under way are answered: nobody hears a node
        that is gone."""
        self._local.retired = self._can_leave = True
        if not self.requests_under_way:
            self._membership.leave()

    def _peer_up(self, event: PeerUp) -> None:
        assert event.node != self._local.node, "a node reached itself"
        self._coordinator.puts.leave()  # what was gathered was meant for those reachable before
        self._local.reachable.add(event.node)
        self._local.unreachable.pop(event.node, None)
        self._detector.handle_peer_up(event.node)
        self._membership.handle_peer_up(event.node, event.protocol)

    def _peer_down(self, event: PeerDown) -> None:
        self._coordinator.puts.leave()
        self._local.reachable.discard(event.node)
        self._local.unreachable[event.node] = event.reason
        self._detector.handle_peer_down(event.node)
        self._coordinator.handle_peer_down(event.node, event.reason)
        self._coverage.handle_peer_down(event.node, event.reason)
        self._antientropy.handle_peer_down(event.node, event.reason)
        self._hints.handle_peer_down(event.node, event.reason)
        self._transfer.gains.handle_peer_down(event.node)

    def _note_corrupt(self, record_key: bytes) -> None:
        self._summary.note_corrupt(record_key)
        self._antientropy.fetches.note(record_key)
        self._transfer.leftovers.note_corrupt(record_key)

    def _judge_peers(self) -> None:
        """Let the detector judge, and the coordinator know who fell silent."""
        before = self._local.readable.copy()
        self._detector.handle_tick()
        for node in sorted(before - self._local.readable):
            self._coordinator.handle_silent(node)

    def _turn_end(self, event: TurnEnd) -> None:
        del event
        self._coordinator.puts.leave()

    def _tick(self, event: Tick) -> None:
        self._admission.handle_tick(self._coordinator.under_way, event.late_s)
        self._coordinator.puts.leave()
        self._judge_peers()
        self._coordinator.handle_tick()
        self._coverage.handle_tick()
        self._local.mind_clock()
        self._membership.handle_tick()
        self._can_leave = False
        for handle_tick in self._background:
            handle_tick()
        self._local.retired = self._can_leave  # if it was sent a hint meanwhile it is of use until that is delivered
        self._background.rotate(1)  # at its floor the budget is for who comes first

    # --- for people and tests ---

    @property
    def requests_under_way(self) -> int:
        """Of clients, and puts that others forwarded to us: not answered yet."""
        return self._coordinator.under_way + self._coverage.under_way + self._hints.under_way

    def buckets_with_keys(self) -> list[str]:
        """The buckets that this node holds live keys of."""
        return self._summary.buckets()

    def plan(self) -> PlanTold:
        """What the staged changes would do."""
        return self._administration.plan()

    def changes(self) -> list[tuple[Change, str]]:
        """All changes that this node knows, in their order, each with what it says in words."""
        return [(change, describe(change)) for change in self._membership.history]

    @property
    def changes_known(self) -> History:
        """The history of membership."""
        return self._membership.history

    def safe_to_stop(self, node: NodeId) -> list[str]:
        """Why this node may not be stopped now; empty: it may."""
        return self._membership.why_not_stop(node)

    def addresses(self) -> dict[NodeId, str]:
        """Where to dial: those that take part, and those that want to."""
        return self._membership.addresses()

    def status(self) -> Status:
        """A snapshot for ``status`` and ``INFO``."""
        local = self._local
        ring = local.ring
        assert ring is not None
        assert local.placement is not None
        owned: dict[NodeId, int] = {}
        for owner in ring.owners:
            owned[owner] = owned.get(owner, 0) + 1
        members = [self._member_status(member, owned.get(member.node, 0)) for member in ring.members.values()]
        return Status(
            node=local.node,
            cluster=local.config.cluster,
            epoch=local.epoch.hex(),
            stint=local.stint,
            q=ring.q,
            members=members,
            requests=self._coordinator.under_way,
            counters=dict(sorted(local.counters.items())),
            notes=self._notes(),
            admission=self._admission.status(),
            hints=self._hints.status(),
            antientropy=self._antientropy.status(),
            transfer=self._transfer.status(),
            leaving=list(local.placement.leaving),
        )

    def _member_status(self, member: Member, partitions: int) -> MemberStatus:
        state, since_s, reason = self._detector.view(member.node)
        return MemberStatus(
            node=member.node,
            address=member.address,
            host=member.host,
            zone=member.zone,
            weight=member.weight,
            partitions=partitions,
            reachable=member.node == self._local.node or member.node in self._local.reachable,
            reason=reason,
            state=state,
            since_s=round(since_s, 3),
            door=self._detector.door(member.node),
        )

    def _notes(self) -> list[str]:
        local = self._local
        notes = []
        if not local.takes_writes:
            notes.append(f"the disk is {local.config.disk_used_max:.0%} full or more: only deletes are written here")
        if local.counters["scans_damaged"]:
            notes.append(
                "parts of the data here cannot be read: look at the disk, and restart this node. It keeps what is readable then, "
                "and fetches the rest from the others"
            )
        if not local.is_member:
            notes.append(self._membership.why_no_member())
        size = local.members
        if 0 < size < 3:
            notes.append(
                f"the cluster has {size} node{'s' * (size > 1)}: a bucket's n above that means {size}, "
                f"its r and w at most {size // 2 + 1}"
            )
        return notes

    def check(self) -> None:
        """Assert the invariants."""
        local = self._local
        assert node_of(local.actor) == local.node
        assert local.node not in local.reachable
        self._coordinator.check()
        self._hints.check()
        self._antientropy.check()
        self._detector.check()
