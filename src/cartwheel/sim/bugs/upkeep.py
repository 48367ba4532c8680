"""Planted bugs of what goes on behind the requests: hinted handoff, anti-entropy, read repair, reaping, failure detection."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from cartwheel.core import local, node, replica, summary, versions
from cartwheel.core.antientropy import rows as ae_rows
from cartwheel.core.coordinator import gets, puts, requests, targets
from cartwheel.core.coordinator.writing import Writing
from cartwheel.core.failure import Detector
from cartwheel.core.hints import Delivery, Hints
from cartwheel.core.hintstore import HintStore
from cartwheel.core.local import META_STINT
from cartwheel.core.messages import HintDeliver, HintTaken, ReapReady, ReplicaRepair
from cartwheel.core.reaper import Candidate, Reaper
from cartwheel.core.storage import CHECKSUM_BYTES, Space, Store, unseal
from cartwheel.core.types import Clock, Dot, Durability, NodeId
from cartwheel.core.versions import Record
from cartwheel.sim.bugs.registry import Patch, bug
from cartwheel.sim.faults import Kind
from cartwheel.sim.network import Weather

_LOSSY = Weather(0.001, 0.01, loss=0.3, duplication=0.3, ordered=False)
_FINE = Weather(0.001, 0.001)
_LATE = Weather(0.001, 0.01, loss=0.05, duplication=0.5, ordered=False)
_FIVE: dict[str, Any] = {
    "profile": "network", "nodes": ("n1", "n2", "n3", "n4", "n5"), "clock_offset_ms": (0,) * 5, "clock_drift": (0.0,) * 5,
}  # fmt: skip
_HANDOFF: dict[str, Any] = {**_FIVE, "keys": 3, "ops_per_s": 60.0}
"""Fallbacks have much to do."""
_ONE_OWNER: dict[str, Any] = {
    "profile": "sick disks", "nodes": ("n1", "n2", "n3"), "n": 1, "r": 1, "w": 1, "mix": ((Kind.SLOW_DISK, 30.0),), "victim": "",
    "keys": 3, "ops_per_s": 60.0,
}  # fmt: skip
"""A fallback's hint is often the only copy, and its node, though slow, takes hints all the while."""
_TWO_OWNERS: dict[str, Any] = {
    "profile": "crashes", "nodes": ("n1", "n2", "n3"), "n": 2, "r": 1, "w": 2, "durability": "sync",
    "mix": ((Kind.CUT, 40.0), (Kind.SLOW_DISK, 60.0)), "keys": 10, "processes": 80, "ops_per_s": 200.0,
    "weather": Weather(0.001, 0.005),
}  # fmt: skip
"""A coordinator's own disk is slow, and it reaches the other owner so late that the fallback has delivered its hint."""
_REAPING: dict[str, Any] = {
    "keys": 60, "processes": 20, "ops_per_s": 60.0, "reap_grace_s": 1.0, "workload": "registers", "reconcile": "siblings",
}  # fmt: skip
_LONG_AWAY: dict[str, Any] = {
    **_REAPING, "profile": "network", "nodes": ("n1", "n2", "n3"), "n": 3, "r": 2, "w": 2, "mix": ((Kind.PAUSE, 40.0),),
    "keys": 150, "only": frozenset((p, step) for p in range(20) for step in range(40)),
    "seconds": 80.0, "weather": _FINE,
}  # fmt: skip
"""Now and then an owner is away for longer than the quarantine, and nobody can keep hints for it. Clients soon stop, so that
tombstones stay undisturbed for that long."""


# --- hinted handoff ------------------------------------------------------------------------------------------------


@bug("C9", trap=(38,), **_HANDOFF)
def hint_not_stored() -> list[Patch]:
    """A fallback acknowledges what it was to keep for another node, and keeps nothing."""

    def keep(self: local.Local, intended: NodeId, record_key: bytes, sealed: bytes, *more: Any, **named: Any) -> None:
        self.count("hints_kept")

    return [(local.Local, "keep_hint", keep)]


@bug("C5", "C6", "C9", trap=(38,), **_HANDOFF)
def hint_becomes_record() -> list[Patch]:
    """A fallback keeps what is meant for another as a record of its own: it is never handed on, and stays for ever."""

    def keep(
        self: local.Local, intended: NodeId, record_key: bytes, sealed: bytes, durability: Durability, **named: Any
    ) -> None:
        self.absorb(record_key, sealed, durability)

    return [(local.Local, "keep_hint", keep)]


@bug("C2", "C9", "C7", trap=(14,), **{**_HANDOFF, "weather": _LOSSY})
def hint_removed_before_ack() -> list[Patch]:
    """A hint is removed as it is sent: the message is lost, and the hint with it."""
    real = Hints._deliver

    def deliver(self: Hints, intended: NodeId, delivery: Delivery, records: int) -> None:
        real(self, intended, delivery, records)
        for record_key, sealed in delivery.rows:
            self._store.remove(intended, record_key, sealed)
        delivery.rows = []

    return [(Hints, "_deliver", deliver)]


@bug("C2", "C9", "UP", trap=(5, 14), profile="power", keys=3, sync_s=0.3, ops_per_s=60.0, weather=_LATE)
def hint_taken_before_durable() -> list[Patch]:
    """The intended node says that it has its hints as soon as they are staged: the holder removes them, the power fails."""
    real = Hints.handle_deliver

    def deliver(self: Hints, src: NodeId, message: HintDeliver) -> None:
        real(self, src, message)
        self._local.out[-1].hold = Durability.MEMORY  # type: ignore[union-attr]

    return [(Hints, "handle_deliver", deliver)]


@bug("C2", "C1", "C6", "C9", "C7", trap=(12, 14), **{**_HANDOFF, "weather": _LATE})
def late_hint_stale() -> list[Patch]:
    """A hint takes the place of what its node holds by now: one that comes late, or twice, brings back an older state."""
    real = Hints.handle_deliver

    def deliver(self: Hints, src: NodeId, message: HintDeliver) -> None:
        place: Any = self._local

        def replace(record_key: bytes, sealed: bytes, durability: Durability) -> None:
            record = versions.decode(unseal(record_key, sealed))
            place.write_sealed(record_key, place.read_record(record_key), record, sealed, durability)

        place.absorb = replace
        real(self, src, message)
        del place.absorb

    return [(Hints, "handle_deliver", deliver)]


@bug("C2", "C1", "C6", trap=(14,), **_ONE_OWNER)
def changed_hint_removed() -> list[Patch]:
    """When a node has told that it has its hints, they are removed, though one was written again since it was sent: the newer
    write is gone, and it may have been the only copy."""
    real = Hints.handle_taken

    def taken(self: Hints, src: NodeId, message: HintTaken) -> None:
        delivery = self._deliveries.get(src)
        if delivery is not None:
            rows = [(key, self._store.get(src, key)) for key, _ in delivery.rows]
            delivery.rows = [(key, kept) for key, kept in rows if kept is not None]
        real(self, src, message)

    return [(Hints, "handle_taken", taken)]


@bug("C9", trap=(19,), **_TWO_OWNERS)
def slot_counted_twice() -> list[Patch]:
    """An owner and the fallback that stands in for it count as two: once the hint is delivered they are one copy."""
    return [(Writing, "_twin", lambda self, node: None)]


@bug("C7", trap=(3,), **_HANDOFF)
def fallback_forgets_its_dots() -> list[Patch]:
    """A fallback that coordinated hands the hint on, and with it all that accounts for its dot; it goes on as the same actor."""
    return [(Hints, "_is_ours", lambda self, record_key, sealed: False)]


@bug("C5", "C6", trap=(14,), **{**_HANDOFF, "weather": _LOSSY})
def delivery_waits_for_ever() -> list[Patch]:
    """A delivery whose answer is lost is never repeated."""
    real = Hints._offer

    def offer(self: Hints, intended: NodeId, delivery: Delivery) -> None:
        if not delivery.rows:
            real(self, intended, delivery)

    return [(Hints, "_offer", offer), (Hints, "handle_peer_down", lambda self, node, reason: None)]


@bug("C5", "C6", trap=(39,), **{**_HANDOFF, "weather": _LOSSY})
def credits_never_return() -> list[Patch]:
    """Credits whose delivery was lost stay granted: after a few of them nobody is granted any more."""
    real = Hints._serve

    def serve(self: Hints, answered: NodeId = "") -> int:
        for holder, (records, _) in self._granted.items():
            self._granted[holder] = records, float("inf")
        return real(self, answered)

    def offer(self: Hints, src: NodeId, message: Any) -> None:
        if src not in self._granted:
            self._waiting[src] = message.hints
            self._serve()

    return [(Hints, "_serve", serve), (Hints, "handle_offer", offer)]


@bug("C8", trap=(29,), weather=_FINE, **_FIVE)
def strict_quorum() -> list[Patch]:
    """Only the owners of a key are asked. Where two of three are cut off, nothing can be written."""

    def choose(local: local.Local, record_key: bytes, n: int, fit: Collection[NodeId], *, me_fit: bool = True) -> Any:
        owners = local.owners(record_key, n)
        slots = local.slots(record_key, n)
        asked = [o for o in owners if (me_fit if o == local.node else o in fit)]
        return targets.Targets(owners, asked, {}, slots)

    return [
        *((module, "choose", choose) for module in (gets, puts)),
        *((module, "next_fallback", lambda *arguments: None) for module in (gets, puts)),
    ]


@bug("C8", trap=(35,), weather=_FINE, **_FIVE)
def nobody_is_late() -> list[Patch]:
    """A request waits for whom it has asked until its deadline: a peer whose connection only looks alive fails it."""
    return [(requests.Requests, "mark_late", lambda self, now_s, last_id, late_s: None)]


# --- repair --------------------------------------------------------------------------------------------------------


@bug("C2", "C1", "C6", "C9", trap=(15,), profile="network", keys=25, ops_per_s=60.0)
def exchange_overwrites() -> list[Patch]:
    """Anti-entropy puts the other node's record in place of ours, instead of merging them."""

    def take(self: ae_rows.Rows, record_key: bytes, sealed: bytes) -> tuple[bytes | None, bool]:
        before = self.sealed(record_key)
        record = versions.decode(unseal(record_key, sealed))
        self._local.write_sealed(record_key, self._local.read_record(record_key), record, sealed, Durability.OS)
        return sealed, before != sealed

    return [(ae_rows.Rows, "take", take)]


@bug("C2", "C1", "C6", "C9", trap=(13, 15), profile="network", keys=1, ops_per_s=100.0, weather=_LATE)
def read_repair_overwrites() -> list[Patch]:
    """Read repair puts what the get found in place of what came to the replica since."""

    def repair(self: replica.Replica, src: NodeId, message: ReplicaRepair) -> None:
        at, sealed = message.record_key, message.sealed
        record = versions.decode(unseal(at, sealed))
        self._local.write_sealed(at, self._local.read_record(at), record, sealed, Durability.OS)

    return [(replica.Replica, "handle_repair", repair)]


@bug("C5", "C2", "C6", trap=(13,), profile="network", keys=25, weather=_LOSSY, reap_grace_s=20.0)
def exchange_skips_tombstones() -> list[Patch]:
    """Anti-entropy compares live records only: a delete that an owner missed never comes to it."""
    real = ae_rows.Rows.read

    def read(self: ae_rows.Rows, *arguments: Any) -> tuple[dict[bytes, ae_rows.Row], bytes]:
        found, reached = real(self, *arguments)
        live = {at: row for at, row in found.items() if summary.shows(versions.decode(row.sealed[CHECKSUM_BYTES:]))}
        return live, reached

    return [(ae_rows.Rows, "read", read)]


@bug("C5", "C2", trap=(15,), profile="network", keys=25, weather=_LOSSY)
def tree_misses_overwrites() -> list[Patch]:
    """The hash tree is updated with new keys only: records that were written again differ, and nobody finds out."""
    real = summary.Summary.note_write

    def note(
        self: summary.Summary, record_key: bytes, old: Record, new: Record, was: bytes | None, sealed: bytes | None
    ) -> None:
        if was is None or sealed is None:
            real(self, record_key, old, new, was, sealed)
        else:
            real(self, record_key, old, new, sealed, sealed)

    return [(summary.Summary, "note_write", note)]


@bug("C5", "C2", trap=(12, 15), profile="network", keys=25, weather=_LOSSY)
def roots_always_equal() -> list[Patch]:
    """The comparison of hash trees finds no difference: what neither hints nor reads mend differs for ever."""
    return [(ae_rows.Rows, "compared", lambda self, partition, leaves: 0)]


@bug("invariant", "C2", "C7", "C5", trap=(32,), profile="one disk lost", keys=25)
def checksum_ignored() -> list[Patch]:
    """Records are used without a look at their checksum: bit rot is served, and handed on."""

    def unchecked(key: bytes, sealed: bytes) -> memoryview:
        return memoryview(sealed)[CHECKSUM_BYTES:]

    return [(module, "unseal", unchecked) for module in (local, gets)]


@bug("C7", "C2", trap=(3, 32), profile="one disk lost", keys=1, ops_per_s=100.0)
def corrupt_keeps_stint() -> list[Patch]:
    """A record that fails its checksum counts as absent, and the node goes on as the same actor: its next dot claims the
    earlier ones, which it has forgotten."""

    def forget(self: local.Local, record_key: bytes) -> None:
        self.count("corrupt_records")
        self.on_corrupt(record_key)

    return [(local.Local, "_forget", forget)]


@bug("C7", "C2", trap=(3,), profile="one disk lost", keys=2, ops_per_s=60.0)
def wiped_keeps_stint() -> list[Patch]:
    """A node's actor is its name, however often its disk is lost: with an empty disk it begins to mint over what its replicas
    still hold."""
    real = node.Node.__init__

    def init(self: node.Node, config: Any, store: Store, *, stint: str, **named: Any) -> None:
        if store.get(Space.META, META_STINT) is None:
            stint = "first"
        real(self, config, store, stint=stint, **named)

    return [(node.Node, "__init__", init)]


@bug("C2", "C1", "C6", trap=(9,), keys=2, ops_per_s=60.0, workload="registers", reconcile="siblings")
def delete_takes_all() -> list[Patch]:
    """A delete removes all that its coordinator holds, whatever its client had read: a concurrent put is gone unseen."""
    real = versions.put

    def put(record: Record, context: Clock, dot: Dot, value: bytes | None, **more: Any) -> Record:
        if value is None:
            context = versions.merge_clocks(record.clock, context)
        return real(record, context, dot, value, **more)

    return [(versions, "put", put)]


# --- reaping -------------------------------------------------------------------------------------------------------


def _one_round() -> Patch:
    """One round is enough: a run is too short for the quarantine while faults strike."""
    real = Reaper._ask

    def ask(self: Reaper, number: int, candidates: list[Candidate]) -> None:
        real(self, number, candidates)
        if self._round is not None:
            self._round.number = 2

    return Reaper, "_ask", ask


@bug("C6", "C2", "C5", "C7", trap=(10,), profile="network", weather=_LATE, **_REAPING)
def reaped_without_quarantine() -> list[Patch]:
    """One round is enough: an old write that was still on its way arrives after it, and is stamped or stored again."""
    return [_one_round()]


@bug("C6", "C2", "C5", "C7", trap=(11,), **{**_HANDOFF, **_REAPING})
def reap_ignores_hints() -> list[Patch]:
    """Nobody asks for hints: one is delivered after the tombstone is gone, and the old value is back. (Without the quarantine,
    too: in a run no holder that answers is kept from its hints' node for longer than that.)"""
    return [
        (HintStore, "holds_any", lambda self, record_keys: [False for _ in record_keys]),
        _one_round(),
    ]


@bug("C6", "C2", "C5", trap=(10, 11), **_LONG_AWAY)
def reap_ignores_absent() -> list[Patch]:
    """Whoever does not answer is not waited for: it comes back with the value that the tombstone had covered."""
    real = Reaper.handle_tick

    def tick(self: Reaper) -> None:
        asked = self._round
        if asked is not None and self._local.now_s - asked.asked_s > 1.0:
            for node in sorted(asked.waiting):
                self.handle_ready(node, ReapReady(asked.id, []))
        real(self)

    return [(Reaper, "handle_tick", tick)]


@bug("C6", "C2", "C5", trap=(10,), **_LONG_AWAY)
def one_owner_reaps() -> list[Patch]:
    """What its first owner finds dead is reaped: nobody else is asked."""
    real = Reaper._ask

    def ask(self: Reaper, number: int, candidates: list[Candidate]) -> None:
        real(self, number, candidates)
        if self._round is not None:
            self._round.waiting = {self._local.node}

    return [(Reaper, "_ask", ask)]


# --- failure detection -------------------------------------------------------------------------------------------------


@bug("FULL", trap=(33,), profile="sick disks")
def full_disk_ignored() -> list[Patch]:
    """A node goes on taking values on a disk that is nearly full: soon it can take nothing, not even deletes."""
    return [(Detector, "handle_disk", lambda self, event: None)]


@bug("UP", trap=(29, 35), profile="network")
def silent_for_ever() -> list[Patch]:
    """A node that was once found silent is not probed: nobody finds out that it is back."""
    real = Detector._probe

    def probe(self: Detector, node: NodeId, answers: Any) -> None:
        if answers.ok:
            real(self, node, answers)
        else:
            answers.probed_s = self._local.now_s

    return [(Detector, "_probe", probe)]
