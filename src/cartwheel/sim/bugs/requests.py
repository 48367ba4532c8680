"""Planted bugs of the versions, and of the life of one put() or get()."""

from __future__ import annotations

from typing import Any

import msgspec

from cartwheel.core import local, node, quorum, storage, versions
from cartwheel.core.coordinator import forwards, gets, puts
from cartwheel.core.coordinator.writing import Writing
from cartwheel.core.messages import ClientGet, Failure, PutRequest, Result, Stored
from cartwheel.core.storage import Space
from cartwheel.core.types import Clock, Dot, Durability, NodeId
from cartwheel.core.versions import Record, Version
from cartwheel.sim.bugs.registry import Patch, bug
from cartwheel.sim.faults import Kind
from cartwheel.sim.network import Weather

_LOSSY = Weather(0.001, 0.01, loss=0.3, duplication=0.3, ordered=False)
_AWFUL = Weather(0.001, 0.01, loss=0.6)
_MIXED = Weather(0.001, 0.01, duplication=0.5, ordered=False)
_LATE = Weather(0.001, 0.01, loss=0.05, duplication=0.5, ordered=False)
_THREE: dict[str, Any] = {"nodes": ("n1", "n2", "n3"), "n": 3, "r": 2, "w": 2}
"""Every node has every key, and nobody can stand in for another."""
_CHAINS: dict[str, Any] = {
    "profile": "network", "nodes": ("n1", "n2", "n3"), "keys": 1, "r": 1, "w": 1, "processes": 40, "ops_per_s": 100.0,
    "weather": _LOSSY,
}  # fmt: skip
"""Clients often know more than the node they write through."""


_LATE_READS: dict[str, Any] = {
    "profile": "calm", "nodes": ("n1", "n2", "n3", "n4"), "clock_offset_ms": (0,) * 4, "clock_drift": (0.0,) * 4,
    "n": 3, "r": 3, "w": 1, "reconcile": "siblings", "workload": "registers", "keys": 5, "processes": 100,
    "ops_per_s": 1000.0, "seconds": 8.0, "weather": Weather(0.001, 0.04, ordered=False),
}  # fmt: skip
"""Now and then an owner is late enough for a fallback to be asked, but there is so much traffic that its other answers keep it
from being found silent; and a put is acknowledged by one owner. So no fallback counts, and gets are fresh."""


# --- causality ---------------------------------------------------------------------------------------------------------


@bug("C2", "C6", trap=(1,))
def server_clock() -> list[Patch]:
    """Plain vector clocks: two clients read the same, both write through A; the second write becomes (A,2), which is above
    (A,1), and erases the first (Riak before dotted version vectors)."""
    real = versions.put

    def put(record: Record, context: Clock, dot: Dot, value: bytes | None, **more: Any) -> Record:
        own = tuple(v.dot for v in record.versions if v.actor == dot[0])
        return real(record, context, dot, value, **{**more, "seen": (*more.get("seen", ()), *own)})

    return [(versions, "put", put)]


@bug("C2", "C6", "C1", trap=(9,))
def context_ignored() -> list[Patch]:
    """A put supersedes all that its coordinator holds, whatever its client had read: concurrent updates are lost."""
    real = versions.put

    def put(record: Record, context: Clock, dot: Dot, value: bytes | None, **more: Any) -> Record:
        return real(record, versions.merge_clocks(record.clock, context), dot, value, **more)

    return [(versions, "put", put)]


@bug("C2", "C6", trap=(37,))
def blind_beside() -> list[Patch]:
    """A put without a context supersedes nothing: each plain SET leaves one more sibling."""
    real = puts.Puts._stamp

    def stamp(self: puts.Puts, writing: Writing, targets: Any, record: Record) -> None:
        if writing.put.context is None:
            writing.put = msgspec.structs.replace(writing.put, context={})
        real(self, writing, targets, record)

    return [(puts.Puts, "_stamp", stamp)]


@bug("C7", trap=(3, 5), **_THREE, profile="power", mix=((Kind.STOP, 20.0), (Kind.POWER, 30.0)), keys=10, sync_s=0.2,
     processes=30, ops_per_s=60.0)  # fmt: skip
def clean_mark_stays() -> list[Patch]:
    """The mark of a clean stop is not taken off the disk at the start, so the next crash passes for a clean stop: the stint goes
    on though the node has forgotten dots that its replicas hold, and a fresh dot silently covers them (riak_kv#679)."""
    real = storage.Store.stage

    def stage(self: storage.Store, space: Space, key: bytes, value: bytes | None, durability: Durability) -> None:
        if not (space == Space.META and key == node.META_CLEAN and value is None):
            real(self, space, key, value, durability)

    # The simulator watches ``stage`` in a subclass, which calls this one.
    return [(storage.Store, "stage", stage)]


@bug(
    "C7",
    "invariant",
    trap=(
        3,
        5,
    ),
    profile="power",
    keys=2,
    sync_s=0.05,
)
def counter_restarts() -> list[Patch]:
    """After a crash the stint goes on, with a clock that begins at the wall time: dots are forgotten, or used twice."""
    real = node.Node.__init__

    def init(self: node.Node, *arguments: Any, **named: Any) -> None:
        real(self, *arguments, **named)
        self._clean = True

    return [(node.Node, "__init__", init)]


@bug("C2", "C6", "C1", trap=(14,))
def merge_drops_sibling() -> list[Patch]:
    """A merge takes an actor it has an entry of for seen, whatever the counter: a sibling that only the other side has is
    dropped, and the merged clock covers it for ever."""
    real = versions.merge

    def merge(ours: Record, theirs: Record) -> Record:
        kept = tuple(v for v in theirs.versions if v in ours.versions or v.actor not in ours.clock)
        if kept == theirs.versions or versions.descends(theirs.clock, ours.clock):
            return real(ours, theirs)
        return real(ours, Record(theirs.clock, kept, theirs.cloud))

    return [(versions, "merge", merge)]


@bug("FRESH", "C3", "C4", trap=(13,), profile="calm", keys=2, r=2, w=2, processes=20, ops_per_s=100.0, weather=_MIXED,
     workload="registers", reconcile="siblings")  # fmt: skip
def repair_undoes_delete() -> list[Patch]:
    """A replica that holds only tombstones counts as one that never heard of the key: a get shows the old value of a replica
    that missed the delete, and hands it on to read repair."""
    real = gets.Gets._merged

    def merged(self: gets.Gets, reading: gets.Reading) -> Record:
        shown = [
            r
            for r in map(gets.opened, dict.fromkeys(reading.answers.values()))
            if any(v.value is not None for v in r.versions)
        ]
        if not shown:
            return real(self, reading)
        found = versions.EMPTY
        for record in shown:
            found = versions.merge(found, record)
        return found

    return [(gets.Gets, "_merged", merged)]


@bug("C5", trap=(16,))
def bytes_not_canonical() -> list[Patch]:
    """Clocks are encoded in the order in which they were built: equal records differ in their bytes for ever, and every
    comparison of hashes finds a difference that no repair can mend."""
    return [(versions, "_encoder", msgspec.msgpack.Encoder())]


@bug("C2", "C3", "C6", trap=(6,), **_CHAINS)
def unknown_dot_forgotten() -> list[Patch]:
    """Ours: the context names a write that the coordinator has not heard of, and the put does not note it. What its client had
    seen comes later, and stays beside the new write: a false sibling (seed 83)."""
    real = versions.put

    def put(record: Record, context: Clock, dot: Dot, value: bytes | None, **more: Any) -> Record:
        known = [other for other in more.get("seen", ()) if versions.accounts_for(record, (other,))]
        return real(record, context, dot, value, **{**more, "seen": known})

    return [(versions, "put", put)]


@bug("C2", "C6", "C9", trap=(7,), **_CHAINS)
def cloud_widens() -> list[Patch]:
    """A dot that the coordinator has not heard of becomes an entry of its clock, which claims every earlier write of that actor,
    too: those that are still under way are lost as they arrive."""
    real = versions.put

    def put(record: Record, context: Clock, dot: Dot, value: bytes | None, **more: Any) -> Record:
        new = real(record, context, dot, value, **more)
        claimed = new.clock
        for actor, counter in new.cloud:
            claimed = versions.merge_clocks(claimed, {actor: counter})
        return Record(claimed, new.versions)

    return [(versions, "put", put)]


@bug("C2", "C6", trap=(6,), **_CHAINS)
def merge_leaves_cloud() -> list[Patch]:
    """Replicas keep their own cloud when they merge, and drop the other's: what was noted is forgotten on the way, and its
    version returns."""
    real = versions.merge

    def merge(ours: Record, theirs: Record) -> Record:
        merged = real(ours, theirs)
        if merged is ours or merged.cloud == ours.cloud:
            return merged
        return msgspec.structs.replace(merged, cloud=versions._without(merged.clock, ours.cloud))

    return [(versions, "merge", merge)]


@bug("LWW", trap=(8,), profile="wild clocks", reconcile="lww", keys=2, r=1, w=1, clock_offset_ms=(4000, -4000, 0) * 5)
def clock_does_not_follow() -> list[Patch]:
    """Last writer wins without observing what a write supersedes: through a node whose clock is behind, the later write has
    the earlier reading, and loses (10 to 20 % of updates in one report on a wide-column store)."""
    return [(puts.Puts, "_observe", lambda self, put, supersedes, plan: None)]


# --- quorum and durability ---------------------------------------------------------------------------------------------


@bug("C9", trap=(5,))
def ack_before_durable() -> list[Patch]:
    """Effects are not held for the group commit: acks are sent while the write is only staged."""
    real = local.Local.send

    def send(self: local.Local, dst: NodeId, message: Any, hold: Durability = Durability.MEMORY) -> None:
        real(self, dst, message, Durability.MEMORY)

    return [(local.Local, "send", send)]


@bug("C9", trap=(18,))
def reply_before_w() -> list[Patch]:
    """The client is told at W-1 acks."""
    real = Writing.__init__

    def init(self: Writing, *arguments: Any) -> None:
        real(self, *arguments)
        self.tally.needed = max(1, self.tally.needed - 1)

    return [(Writing, "__init__", init)]


@bug("C9", trap=(19,))
def acks_counted_twice() -> list[Patch]:
    """Acks are counted, not the nodes behind them: a repeated one makes two of two (Riak's preference list of 2009)."""
    real = quorum.Tally.ack

    def ack(self: quorum.Tally, node: NodeId) -> quorum.Outcome:
        if node in self.acked and len(self.acked) + 1 >= self.needed:
            self.outcome = quorum.Outcome.MET
            return self.outcome
        return real(self, node)

    return [(quorum.Tally, "ack", ack)]


@bug("C9", "invariant", trap=(20,), **_THREE, profile="crashes", mix=((Kind.KILL, 60.0),), keys=3, durability="sync",
     sync_s=0.1, processes=40, ops_per_s=300.0, weather=_LATE)  # fmt: skip
def late_answer_matches() -> list[Patch]:
    """Request ids begin anew at each start: an ack that was asked for by the node's earlier life is taken for one of now."""
    real = local.Local.__init__

    def init(self: local.Local, *arguments: Any, **named: Any) -> None:
        real(self, *arguments, **named)
        self._next_id = 0

    return [(local.Local, "__init__", init)]


@bug("C9", trap=(18,))
def retry_from_memory() -> list[Patch]:
    """A retry whose first try is remembered is answered at once, though the first try may never have reached W nodes."""
    real = puts.Puts._stamp

    def stamp(self: puts.Puts, writing: Writing, targets: Any, record: Record) -> None:
        put = writing.put
        again = self._earlier_try(writing.at, put, record) if put.request_id else None
        if again is None:
            real(self, writing, targets, record)
        else:
            context = versions.context_after_put(record, record, again[1], again[0], put.dots)
            writing.done(Stored(*context, len(record.versions), self._local.node), Durability.MEMORY)

    return [(puts.Puts, "_stamp", stamp)]


@bug("C9", trap=(12,), profile="network", keys=1, processes=40, ops_per_s=200.0)
def shared_message_keeps_first() -> list[Patch]:
    """Writes of one key in one turn share a message, but it carries the first one's record: the later ones are acknowledged by
    replicas that never got them."""
    real = puts.Puts._replicate

    def replicate(self: puts.Puts, writing: Writing, targets: Any, sealed: bytes, dot: Dot) -> None:
        first = self._outgoing.get(writing.at)
        real(self, writing, targets, sealed if first is None else first.sealed, dot)

    return [(puts.Puts, "_replicate", replicate)]


@bug("FRESH", "C3", trap=(17,), profile="calm", keys=3, r=2, w=2, processes=20, ops_per_s=60.0, weather=_MIXED)
def answer_before_r() -> list[Patch]:
    """A get is answered at the first answer, whatever R is."""
    real = gets.Gets.start

    def start(self: gets.Gets, bucket: str, key: bytes, plan: local.Plan, r: int, *more: Any, **named: Any) -> None:
        real(self, bucket, key, plan._replace(r=1), min(r, 1), *more, **named)

    return [(gets.Gets, "start", start)]


@bug("FRESH", "C3", "C4", trap=(17, 34), **_LATE_READS)
def empty_fallback_counts() -> list[Patch]:
    """A fallback that was asked since an owner is late has never heard of the key, and that counts for R at once: the get shows
    nothing, or too little, though the owner that has it lives and answers a moment later."""
    real = gets.Reading.note

    def note(self: gets.Reading, node: NodeId, sealed: bytes | None) -> None:
        self.doubtful = []
        real(self, node, sealed)

    return [(gets.Reading, "note", note), (gets.Gets, "_nobody_can_know", lambda self, reading: False)]


@bug("FRESH", "C3", trap=(17,), profile="calm", keys=1, r=2, w=2, processes=20, ops_per_s=100.0, weather=_MIXED)
def gets_share_too_long() -> list[Patch]:
    """A get joins any reading of its key that is under way: the replicas were asked before it began, so it may miss a put that
    was acknowledged meanwhile."""
    real = gets.Gets.get

    def get(self: gets.Gets, event: ClientGet) -> None:
        self._moment = (self.local.now_s, self.local.writes)
        real(self, event)

    return [(gets.Gets, "get", get)]


@bug("C2", trap=(5,), **{**_THREE, "r": 1}, profile="power", mix=((Kind.POWER, 30.0),), keys=10, sync_s=0.3, processes=40,
     ops_per_s=100.0, weather=_LOSSY)  # fmt: skip
def staged_is_shown() -> list[Patch]:
    """A get shows what is only staged, without waiting for its group: the value was seen, and the power cut takes it back."""
    return [(storage.Store, "pending", lambda self, space, key: Durability.MEMORY)]


# --- requests ----------------------------------------------------------------------------------------------------------


@bug("C7", trap=(18,))
def request_id_ignored() -> list[Patch]:
    """A retry is stamped like a new put: the client's one write becomes two versions."""
    return [(puts.Puts, "_earlier_try", lambda self, at, put, record: None)]


@bug("C7", trap=(18,))
def forward_without_id() -> list[Patch]:
    """A put without a request id is forwarded without one: a Forward that the network repeats is stamped twice."""
    real = forwards.Forwards.forward

    def forward(self: forwards.Forwards, put: PutRequest, target: NodeId, done: Any) -> None:
        real(self, put, target, done)
        if not put.request_id:
            self._local.out[-1].message.put = put  # type: ignore[union-attr]

    return [(forwards.Forwards, "forward", forward)]


@bug("P7", trap=(18,))
def failed_means_rejected() -> list[Patch]:
    """A put that reached too few nodes is reported as rejected: the client takes it for not done, and then it appears."""
    real = Writing._fail

    def fail(self: Writing, node: NodeId, reason: str) -> None:
        told = self.done

        def done(result: Result, hold: Durability) -> None:
            if isinstance(result, Failure):
                result = msgspec.structs.replace(result, unknown=False)
            told(result, hold)

        self.done = done
        real(self, node, reason)
        self.done = told

    return [(Writing, "_fail", fail)]


@bug("P7", trap=(18,), profile="network", r=1, w=3, processes=20, weather=_LATE)
def refusal_relayed() -> list[Patch]:
    """Ours: an owner's refusal of a forwarded put is relayed as "rejected". The network repeats the Forward, and by then the
    owner can take it (seed 23)."""

    def answer(self: forwards.Forwarding, node: NodeId, result: Result) -> None:
        self.end(result)

    return [(forwards.Forwarding, "answer", answer)]


@bug("C8", trap=(29,), profile="network", nodes=("n1", "n2", "n3", "n4", "n5"), n=3, r=1, w=3, mix=((Kind.FLAP, 60.0),),
     processes=40, ops_per_s=100.0, weather=Weather(0.001, 0.005), clock_offset_ms=(0,) * 5, clock_drift=(0.0,) * 5)  # fmt: skip
def shortfall_relayed() -> list[Patch]:
    """Ours: the owner that was asked to coordinate does not reach W nodes, and its failure is relayed, though the node that asked
    it stands between two halves and reaches them itself (seed 1003459)."""
    real = forwards.Forwarding.answer

    def answer(self: forwards.Forwarding, node: NodeId, result: Result) -> None:
        if isinstance(result, Failure) and result.unknown:
            self.end(result)
        else:
            real(self, node, result)

    return [(forwards.Forwarding, "answer", answer)]


@bug("TTL", trap=(28,))
def expired_is_shown() -> list[Patch]:
    """Nobody looks at the time when a value expires."""
    return [(Version, "live", lambda self, wall_ms: self.value is not None)]
