"""Planted bugs: known traps of this kind of store, each of which the checkers must catch. They test the tests.

A bug replaces functions of the core while ``planted(name)`` is active, so the core itself has no switches. Most are mistakes that
real stores have made; some were our own, found by a seed. ``python -m cartwheel.sim --bug NAME`` runs with one,
``--bugs`` hunts each until it is caught.

To add one: a function here with ``@bug(*rules)``, the rules of the checkers that should see it first, a docstring that tells the
trap, and a list of ``(owner, attribute, replacement)``. ``tests/sim/test_bugs.py`` picks it up.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import msgspec

from cartwheel.core import clock, local, node, quorum, storage, versions
from cartwheel.core.coordinator import gets, puts
from cartwheel.core.messages import ClientGet, Failure, Forwarded, PutRequest, Result, Stored
from cartwheel.core.storage import Space
from cartwheel.core.types import Clock, Dot, Durability, NodeId
from cartwheel.core.versions import Record, Version
from cartwheel.sim.network import Weather

_LOSSY = Weather(0.001, 0.01, loss=0.3, duplication=0.3, ordered=False)
_AWFUL = Weather(0.001, 0.01, loss=0.6)
_LATE = Weather(0.001, 0.01, loss=0.05, duplication=0.5, ordered=False)

Patch = tuple[Any, str, object]


@dataclass(frozen=True, slots=True)
class Bug:
    """A planted bug."""

    name: str
    rules: tuple[str, ...]
    """Which checkers see it first."""
    story: str
    patches: Callable[[], list[Patch]]
    profile: str = ""
    """The kind of run in which it shows; "": any."""
    setting: Mapping[str, Any] = field(default_factory=dict)
    """Fields of the plan that make it show soon."""


BUGS: dict[str, Bug] = {}


def bug(
    *rules: str, profile: str = "", **setting: Any
) -> Callable[[Callable[[], list[Patch]]], Callable[[], list[Patch]]]:
    """Register a planted bug under its function's name, with the kind of run and the fields of the plan that it needs."""

    def register(patches: Callable[[], list[Patch]]) -> Callable[[], list[Patch]]:
        name = patches.__name__.replace("_", "-")
        BUGS[name] = Bug(name, rules, patches.__doc__ or "", patches, profile, setting)
        return patches

    return register


@contextmanager
def planted(name: str) -> Iterator[None]:
    """Run with this bug in the core.

    Raises:
        KeyError: there is no such bug.
    """
    saved: list[Patch] = []
    for owner, attribute, replacement in BUGS[name].patches():
        saved.append((owner, attribute, getattr(owner, attribute)))
        setattr(owner, attribute, replacement)
    try:
        yield
    finally:
        for owner, attribute, original in reversed(saved):
            setattr(owner, attribute, original)


# --- causality ---------------------------------------------------------------------------------------------------------


@bug("C2", "C6")
def server_clock() -> list[Patch]:
    """Plain vector clocks: two clients read the same, both write through A; the second write becomes (A,2), which is above
    (A,1), and erases the first (Riak before dotted version vectors)."""
    real = versions.put

    def put(record: Record, context: Clock, dot: Dot, value: bytes | None, **more: Any) -> Record:
        own = tuple(v.dot for v in record.versions if v.actor == dot[0])
        return real(record, context, dot, value, **{**more, "seen": (*more.get("seen", ()), *own)})

    return [(versions, "put", put)]


@bug("C2", "C6", "C1")
def context_ignored() -> list[Patch]:
    """A put supersedes all that its coordinator holds, whatever its client had read: concurrent updates are lost."""
    real = versions.put

    def put(record: Record, context: Clock, dot: Dot, value: bytes | None, **more: Any) -> Record:
        return real(record, versions.merge_clocks(record.clock, context), dot, value, **more)

    return [(versions, "put", put)]


@bug("C2", "C6")
def blind_beside() -> list[Patch]:
    """A put without a context supersedes nothing: each plain SET leaves one more sibling."""
    real = puts.Puts._stamp

    def stamp(self: puts.Puts, writing: puts.Writing, record: Record) -> None:
        if writing.put.context is None:
            writing.put = msgspec.structs.replace(writing.put, context={})
        real(self, writing, record)

    return [(puts.Puts, "_stamp", stamp)]


@bug("C7", profile="power", keys=2, sync_s=0.2, processes=30)
def clean_mark_stays() -> list[Patch]:
    """The mark of a clean stop is not taken off the disk at the start, so the next crash passes for a clean stop: the stint goes
    on though the node has forgotten dots that its replicas hold, and a fresh dot silently covers them (riak_kv#679)."""
    real = storage.Store.stage

    def stage(self: storage.Store, space: Space, key: bytes, value: bytes | None, durability: Durability) -> None:
        if not (space == Space.META and key == node.META_CLEAN and value is None):
            real(self, space, key, value, durability)

    # The simulator watches ``stage`` in a subclass, which calls this one.
    return [(storage.Store, "stage", stage)]


@bug("C7", "invariant", profile="power", keys=2, sync_s=0.05)
def counter_restarts() -> list[Patch]:
    """After a crash the stint goes on, and the clock begins at the wall time without its mark: dots are forgotten, or used
    twice."""
    real_start, real_clock = node.Node.start, clock.HybridClock.__init__

    def start(self: node.Node, now_s: float, wall_ms: int) -> None:
        self.local.store.stage(Space.META, node.META_CLEAN, b"", Durability.SYNC)
        real_start(self, now_s, wall_ms)

    def init(self: clock.HybridClock, *, mark: int, skew_ms_max: int, lease_ms: int) -> None:
        del mark
        real_clock(self, mark=0, skew_ms_max=skew_ms_max, lease_ms=lease_ms)

    return [(node.Node, "start", start), (clock.HybridClock, "__init__", init)]


@bug("C2", "C6", "C1")
def merge_drops_sibling() -> list[Patch]:
    """A merge takes an actor it has an entry of for seen, whatever the counter: a sibling that only the other side has is
    dropped, and the merged clock covers it for ever."""
    real = versions.merge

    def merge(ours: Record, theirs: Record) -> Record:
        kept = tuple(v for v in theirs.versions if v in ours.versions or v.actor not in ours.clock)
        if kept == theirs.versions or versions.descends(theirs.clock, ours.clock):
            return real(ours, theirs)
        return real(ours, Record(theirs.clock, kept))

    return [(versions, "merge", merge)]


@bug("FRESH", "C2", "C6")
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


@bug("C5")
def bytes_not_canonical() -> list[Patch]:
    """Clocks are encoded in the order in which they were built: equal records differ in their bytes for ever, and every
    comparison of hashes finds a difference that no repair can mend."""
    return [(versions, "_encoder", msgspec.msgpack.Encoder())]


@bug("C2", "C6", profile="network", keys=2, r=1, w=1, processes=40, weather=_LOSSY)
def stamp_without_read() -> list[Patch]:
    """Ours: the context names a write that the coordinator has not heard of, the quorum read for it fails, and the put is
    stamped all the same. What its client had seen stays beside the new write, a false sibling (seed 83)."""

    def coordinate(self: puts.Puts, writing: puts.Writing) -> None:
        self._stamp(writing, self._local.read_record(writing.at))

    return [(puts.Puts, "_coordinate", coordinate)]


@bug("LWW", profile="wild clocks", reconcile="lww", keys=2, r=1, w=1, clock_offset_ms=(4000, -4000, 0) * 5)
def clock_does_not_follow() -> list[Patch]:
    """Last writer wins without observing what a write supersedes: through a node whose clock is behind, the later write has
    the earlier reading, and loses (10 to 20 % of updates in one report on a wide-column store)."""
    return [(puts.Puts, "_observe", lambda self, put, supersedes, plan: None)]


# --- quorum and durability ---------------------------------------------------------------------------------------------


@bug("C9")
def ack_before_durable() -> list[Patch]:
    """Effects are not held for the group commit: acks are sent while the write is only staged."""
    real = local.Local.send

    def send(self: local.Local, dst: NodeId, message: Any, hold: Durability = Durability.MEMORY) -> None:
        real(self, dst, message, Durability.MEMORY)

    return [(local.Local, "send", send)]


@bug("C9")
def reply_before_w() -> list[Patch]:
    """The client is told at W-1 acks."""
    real = puts.Writing.__init__

    def init(self: puts.Writing, *arguments: Any) -> None:
        real(self, *arguments)
        self.tally.needed = max(1, self.tally.needed - 1)

    return [(puts.Writing, "__init__", init)]


@bug("C9")
def acks_counted_twice() -> list[Patch]:
    """Acks are counted, not the nodes behind them: a repeated one makes two of two (Riak's preference list of 2009)."""
    real = quorum.Tally.ack

    def ack(self: quorum.Tally, node: NodeId) -> quorum.Outcome:
        if node in self.acked and len(self.acked) + 1 >= self.needed:
            self.outcome = quorum.Outcome.MET
            return self.outcome
        return real(self, node)

    return [(quorum.Tally, "ack", ack)]


@bug("C9", "invariant", profile="crashes", keys=2, sync_s=0.1, ops_per_s=100.0, weather=_LATE)
def late_answer_matches() -> list[Patch]:
    """Request ids begin anew at each start: an ack that was asked for by the node's earlier life is taken for one of now."""
    real = local.Local.__init__

    def init(self: local.Local, *arguments: Any, **named: Any) -> None:
        real(self, *arguments, **named)
        self._next_id = 0

    return [(local.Local, "__init__", init)]


@bug("C9")
def retry_from_memory() -> list[Patch]:
    """A retry whose first try is remembered is answered at once, though the first try may never have reached W nodes."""
    real = puts.Puts._stamp

    def stamp(self: puts.Puts, writing: puts.Writing, record: Record) -> None:
        put = writing.put
        again = self._earlier_dot(writing.at, put, record) if put.request_id else None
        if again is None:
            real(self, writing, record)
        else:
            context = versions.context_after_put(record, put.context or {}, again, put.dots)
            writing.done(Stored(*context, len(record.versions), self._local.node), Durability.MEMORY)

    return [(puts.Puts, "_stamp", stamp)]


@bug("C9", profile="one disk lost", keys=1, processes=20, weather=_AWFUL)
def memory_outlives_record() -> list[Patch]:
    """Ours: a coordinator that stamped a put, but found too few replicas, then loses its record to bit rot. The retry is
    recognised by its id, and the *empty* record is replicated and acknowledged: the write is on no disk at all."""

    def earlier_dot(self: puts.Puts, at: bytes, put: PutRequest, record: Record) -> Dot | None:
        version = versions.by_request(record, put.request_id)
        return self._minted.get((at, put.request_id)) if version is None else version.dot

    return [(puts.Puts, "_earlier_dot", earlier_dot)]


@bug("C9", profile="network", keys=1, processes=40, ops_per_s=200.0)
def shared_message_keeps_first() -> list[Patch]:
    """Writes of one key in one turn share a message, but it carries the first one's record: the later ones are acknowledged by
    replicas that never got them."""
    real = puts.Puts._replicate

    def replicate(self: puts.Puts, writing: puts.Writing, sealed: bytes, *more: Any) -> None:
        first = self._outgoing.get(writing.at)
        real(self, writing, sealed if first is None else first.sealed, *more)

    return [(puts.Puts, "_replicate", replicate)]


@bug("FRESH", "C3")
def answer_before_r() -> list[Patch]:
    """A get is answered at the first answer, whatever R is."""
    real = gets.Gets.start

    def start(self: gets.Gets, bucket: str, key: bytes, plan: local.Plan, r: int, *more: Any, **named: Any) -> None:
        real(self, bucket, key, plan._replace(r=1), min(r, 1), *more, **named)

    return [(gets.Gets, "start", start)]


@bug("FRESH", "C3", profile="network", keys=1, r=2, w=2, processes=20, ops_per_s=100.0, weather=_LATE)
def gets_share_too_long() -> list[Patch]:
    """A get joins any reading of its key that is under way: the replicas were asked before it began, so it may miss a put that
    was acknowledged meanwhile."""
    real = gets.Gets.get

    def get(self: gets.Gets, event: ClientGet) -> None:
        self._moment = (self.local.now_s, self.local.writes)
        real(self, event)

    return [(gets.Gets, "get", get)]


@bug("C2", profile="power", keys=1, sync_s=0.3, processes=40, weather=_LOSSY)
def staged_is_shown() -> list[Patch]:
    """A get shows what is only staged, without waiting for its group: the value was seen, and the power cut takes it back."""
    return [(storage.Store, "pending", lambda self, space, key: Durability.MEMORY)]


# --- requests ----------------------------------------------------------------------------------------------------------


@bug("C7")
def request_id_ignored() -> list[Patch]:
    """A retry is stamped like a new put: the client's one write becomes two versions."""
    return [(puts.Puts, "_earlier_dot", lambda self, at, put, record: None)]


@bug("C7")
def forward_without_id() -> list[Patch]:
    """A put without a request id is forwarded without one: a Forward that the network repeats is stamped twice."""
    real = puts.Puts._forward

    def forward(self: puts.Puts, put: PutRequest, owners: Any, done: Any) -> None:
        real(self, put, owners, done)
        if not put.request_id:
            self._local.out[-1].message.put = put  # type: ignore[union-attr]

    return [(puts.Puts, "_forward", forward)]


@bug("P7")
def failed_means_rejected() -> list[Patch]:
    """A put that reached too few nodes is reported as rejected: the client takes it for not done, and then it appears."""
    real = puts.Writing.fail

    def fail(self: puts.Writing, node: NodeId, reason: str) -> None:
        told = self.done

        def done(result: Result, hold: Durability) -> None:
            if isinstance(result, Failure):
                result = msgspec.structs.replace(result, unknown=False)
            told(result, hold)

        self.done = done
        real(self, node, reason)
        self.done = told

    return [(puts.Writing, "fail", fail)]


@bug("P7", profile="network", r=1, w=3, processes=20, weather=_LATE)
def refusal_relayed() -> list[Patch]:
    """Ours: an owner's refusal of a forwarded put is relayed as "rejected". The network repeats the Forward, and by then the
    owner can take it (seed 23)."""

    def handle(self: puts.Puts, src: NodeId, message: Forwarded) -> None:
        request = self._requests.by_id.get(message.id)
        if isinstance(request, puts.Forwarding) and request.target == src:
            self._requests.end(message.id)
            request.done(message.result, Durability.MEMORY)

    return [(puts.Puts, "handle_forwarded", handle)]


@bug("TTL")
def expired_is_shown() -> list[Patch]:
    """Nobody looks at the time when a value expires."""
    return [(Version, "live", lambda self, wall_ms: self.value is not None)]
