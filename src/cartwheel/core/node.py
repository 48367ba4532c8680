"""One node: the machines together, as a function from an event to effects (design: one pure core, two drivers).

    driver                         Node.handle(now_s, wall_ms, event) -> effects
      client request ───────────────> coordinator, coverage, membership
      Received(src, batch) ─────────> each message to its machine; then one acknowledgement for all its writes
      PeerUp / PeerDown ────────────> membership; coordinator and coverage (fail what was asked of it)
      Tick ─────────────────────────> deadlines, the clock's mark, counting
      TurnEnd ──────────────────────> coordinator: writes of one key leave together

A driver must: commit what ``start`` staged before the first ``handle``; hand in ``TurnEnd`` before it commits or sends; perform
held effects only once every write staged before them is durable enough; perform the others at once, in order; give ``now_s``
from a clock that never goes back, and that has moved on once a message caused by an earlier event has left (equal ``now_s``
means simultaneous: see ``coordinator.gets``).

Invariants (``check``): every request under way has a deadline; the actor is this node's; we never reach ourselves.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from cartwheel.core.clock import HybridClock
from cartwheel.core.config import Config
from cartwheel.core.coordinator import Coordinator
from cartwheel.core.coverage import Coverage
from cartwheel.core.local import META_MARK, META_STINT, Local
from cartwheel.core.membership import Membership
from cartwheel.core.messages import (
    ClientBucketSet,
    ClientCount,
    ClientExplain,
    ClientGet,
    ClientPut,
    ClientScan,
    CountAsk,
    Counts,
    Effect,
    Event,
    Forward,
    Forwarded,
    HistoryPush,
    MemberStatus,
    PeerDown,
    PeerUp,
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
    TurnEnd,
)  # fmt: skip
from cartwheel.core.replica import Replica
from cartwheel.core.ring import History
from cartwheel.core.storage import Space, Store
from cartwheel.core.types import Durability, NodeId, make_actor, node_of

META_CLEAN = b"clean-stop"

Handler = Callable[[NodeId, Any], None]


class Node:
    """A node of the ring. Not reentrant; one thread."""

    def __init__(self, config: Config, store: Store, *, history: History, stint: str, boot: int) -> None:
        """
        Args:
            history: the cluster's first membership, used only by a new disk.
            stint: a name that no stint of this node had before, used unless the disk was closed cleanly.
            boot: 32 bits that differ from every earlier start of this node; the high half of its request ids.
        """
        self._first_history = history
        mark = store.get(Space.META, META_MARK)
        clock = HybridClock(
            mark=int.from_bytes(mark) if mark else 0, skew_ms_max=config.skew_ms_max, lease_ms=config.clock_lease_ms
        )
        self._local = Local(config, store, clock, stint=stint, boot=boot)
        self._coordinator = Coordinator(self._local)
        self._replica = Replica(self._local)
        self._coverage = Coverage(self._local)
        self._membership = Membership(self._local)
        self._local.on_write = self._coverage.note_write
        self._messages: dict[type, Handler] = {
            ReplicaWrite: self._replica.handle_write,
            ReplicaRead: self._replica.handle_read,
            ReplicaRepair: self._replica.handle_repair,
            ReplicaWrote: self._coordinator.puts.handle_wrote,
            ReplicaValue: self._coordinator.gets.handle_value,
            ReplicaRefused: self._coordinator.handle_refused,
            Forward: self._coordinator.handle_forward,
            Forwarded: self._coordinator.puts.handle_forwarded,
            ScanAsk: self._coverage.handle_scan_ask,
            ScanPage: self._coverage.handle_scan_page,
            CountAsk: self._coverage.handle_count_ask,
            Counts: self._coverage.handle_counts,
            HistoryPush: self._membership.handle_push,
        }
        self._events: dict[type, Callable[[Any], None]] = {
            Received: self._received,
            ClientGet: self._coordinator.get,
            ClientPut: self._coordinator.put,
            ClientExplain: self._coordinator.explain,
            ClientScan: self._coverage.scan,
            ClientCount: self._coverage.count,
            ClientBucketSet: self._membership.set_bucket,
            PeerUp: self._peer_up,
            PeerDown: self._peer_down,
            Tick: self._tick,
            TurnEnd: self._turn_end,
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

    def wait_s(self, wall_ms: int) -> float:
        """How long a driver should wait before ``start``, to let the wall clock catch up with an earlier life."""
        return self._local.clock.wait_ms(wall_ms) / 1000

    def start(self, now_s: float, wall_ms: int) -> None:
        """Read the node's own facts and stage those of this start: the driver commits them, synced, before anything else.

        After a clean stop the stint goes on; otherwise what was staged last may be lost, so a new one begins.
        """
        local, store = self._local, self._local.store
        local.now_s, local.wall_ms = now_s, wall_ms
        clean = store.get(Space.META, META_CLEAN) is not None
        stored = store.get(Space.META, META_STINT)
        if clean and stored is not None:
            local.stint = stored.decode()
            local.actor = make_actor(local.node, local.stint)
        store.stage(Space.META, META_STINT, local.stint.encode(), Durability.SYNC)
        store.stage(Space.META, META_CLEAN, None, Durability.SYNC)
        local.renew_mark()
        self._membership.start(self._first_history)
        self._coverage.start(clean=clean)

    def shutdown(self, wall_ms: int) -> None:
        """Stage the marks of a clean stop. The driver commits them, synced, handles nothing more, and closes the store."""
        local = self._local
        local.store.stage(Space.META, META_CLEAN, wall_ms.to_bytes(8), Durability.SYNC)
        local.store.stage(Space.META, META_MARK, local.clock.last.to_bytes(8), Durability.SYNC)
        self._coverage.save()

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
        for message in batch.messages:
            handlers[type(message)](src, message)
        self._replica.acknowledge(src)
        if batch.epoch != local.epoch and src != local.node:
            self._membership.handle_epoch(src, batch.epoch)

    def _peer_up(self, event: PeerUp) -> None:
        assert event.node != self._local.node, "a node reached itself"
        self._coordinator.puts.leave()  # what was gathered was meant for those reachable before
        self._local.reachable.add(event.node)
        self._local.unreachable.pop(event.node, None)
        self._membership.handle_peer_up(event.node)

    def _peer_down(self, event: PeerDown) -> None:
        self._coordinator.puts.leave()
        self._local.reachable.discard(event.node)
        self._local.unreachable[event.node] = event.reason
        self._coordinator.handle_peer_down(event.node, event.reason)
        self._coverage.handle_peer_down(event.node, event.reason)

    def _turn_end(self, event: TurnEnd) -> None:
        del event
        self._coordinator.puts.leave()

    def _tick(self, event: Tick) -> None:
        del event
        self._coordinator.handle_tick()
        self._coverage.handle_tick()
        self._local.renew_mark()

    # --- for people and tests ---

    def buckets_with_keys(self) -> list[str]:
        """The buckets that this node holds live keys of."""
        return self._coverage.buckets()

    def status(self) -> Status:
        """A snapshot for ``status`` and ``INFO``."""
        local = self._local
        ring = local.ring
        assert ring is not None
        owned: dict[NodeId, int] = {}
        for owner in ring.owners:
            owned[owner] = owned.get(owner, 0) + 1
        members = [
            MemberStatus(
                node=member.node,
                address=member.address,
                host=member.host,
                zone=member.zone,
                weight=member.weight,
                partitions=owned.get(member.node, 0),
                reachable=member.node == local.node or member.node in local.reachable,
                reason="" if member.node == local.node else local.unreachable.get(member.node, ""),
            )
            for member in ring.members.values()
        ]
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
        )

    def _notes(self) -> list[str]:
        local = self._local
        notes = []
        size = local.size
        if size < 3:
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
