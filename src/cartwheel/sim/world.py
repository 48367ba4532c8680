"""The world of one run: virtual time, the machines, the network between them, and everything the judges are told.

One heap holds what is to happen, ordered by time; equal times are ordered by the seed's dice, so that no order of arrival is
taken for granted. Nothing else decides anything: no thread, no real clock, no set order. The **trace hash** covers every frame
delivered, boot, crash, fault, and client's request and answer, in order; two runs are the same run if it is equal.
"""

from __future__ import annotations

import hashlib
import heapq
import struct
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import msgspec

from cartwheel.core import versions
from cartwheel.core.clock import reading
from cartwheel.core.config import DURABILITY, BucketProps, Config
from cartwheel.core.errors import CorruptData
from cartwheel.core.messages import Event, Failure, Result, Stored, decode_batch
from cartwheel.core.ring import Change, ChangeKind, History, Member, fold
from cartwheel.core.storage import CHECKSUM_BYTES, Space, record_key, split_record_key, unseal
from cartwheel.core.types import Dot, NodeId
from cartwheel.core.versions import EMPTY, Record
from cartwheel.sim.clocks import EPOCH_MS, SimClock, true_wall_ms
from cartwheel.sim.faults import Fault, Kind, Plan, fork
from cartwheel.sim.history import Final, KeyHistory, Mint, Status, Violation, Write, parse_value, write_of
from cartwheel.sim.host import Host
from cartwheel.sim.ledgers import DotLedger, check_durable
from cartwheel.sim.network import Direction, SimNetwork

BUCKET = "b"
Q = 64
"""Partitions: enough that every node has several, few enough that a fold is quick."""
VIOLATIONS_MAX = 20
"""A run stops at so many: the first few tell the story."""
_head = struct.Struct("<dB")


@dataclass(slots=True)
class Call:
    """A client's request at one node, until it is answered or given up."""

    id: int
    node: NodeId
    done: Callable[[Status, Result | None], None]
    write: Write | None = None
    sent: bool = False
    ended: bool = False


class World:
    """A simulated cluster under a plan. ``run_until`` moves time; ``call`` is the door for clients."""

    def __init__(self, plan: Plan, *, keep_trace: bool = False) -> None:
        self.plan = plan
        self.now = 0.0
        self.violations: list[Violation] = []
        self.marks: Counter[str] = Counter()
        self.histories: dict[str, KeyHistory] = {}
        self.disturbed: list[tuple[float, float]] = []
        self.trace_lines: list[str] | None = [] if keep_trace else None
        self.events = 0
        self.healed = False
        self.scanned: list[str] = []
        self.scan_ended = False
        self._queue: list[tuple[float, int, int, Any, tuple[Any, ...]]] = []
        self._issued = 0
        self._ties = fork(plan.seed, "ties")
        self._dice = fork(plan.seed, "world")
        self._digest = hashlib.blake2b(digest_size=16)
        self._ledger = DotLedger()
        self._calls = 0
        self._durability = DURABILITY[plan.durability]
        self.network = SimNetwork(plan.weather, fork(plan.seed, "network"), self.marks)
        self.history = _first_history(plan)
        self.ring = fold(Q, self.history.changes).ring
        self.hosts = {
            name: Host(
                name,
                self,
                SimClock(offset_ms=plan.clock_offset_ms[i], drift=plan.clock_drift[i]),
                fork(plan.seed, f"host {name}"),
                plan.sync_s,
            )
            for i, name in enumerate(plan.nodes)
        }
        for name in plan.nodes:
            self.later(self._dice.uniform(0.0, 0.2), self._boot, name)
        for fault in plan.faults:
            self.later(fault.at, self._inject, fault)

    # --- time ---

    def later(self, delay_s: float, handler: object, *args: object) -> None:
        """Call ``handler(*args)`` after ``delay_s``, between other events of that time in an order drawn from the seed."""
        self._issued += 1
        heapq.heappush(self._queue, (self.now + delay_s, self._ties.getrandbits(30), self._issued, handler, args))

    def run_until(self, end: float) -> None:
        """Let everything happen that is due before ``end``."""
        queue, pop = self._queue, heapq.heappop
        while queue and queue[0][0] <= end and len(self.violations) < VIOLATIONS_MAX:
            self.now, _, _, handler, args = pop(queue)
            self.events += 1
            handler(*args)
        self.now = max(self.now, end)

    @property
    def trace_hash(self) -> str:
        """Equal for equal runs."""
        return self._digest.hexdigest()

    def trace(self, label: str, node: NodeId, payload: bytes = b"") -> None:
        """Note that something happened."""
        self._digest.update(_head.pack(self.now, len(payload) & 255) + label.encode() + node.encode() + payload)
        if self.trace_lines is not None:
            self.trace_lines.append(f"{self.now:12.6f} {label:<8} {node:<4} {payload[:160]!r}")

    def violate(self, rule: str, key: str, text: str) -> None:
        """A judge that sits in has found something."""
        self.violations.append(Violation(rule, key, text, self.now))

    # --- machines ---

    def _boot(self, name: NodeId) -> None:
        host = self.hosts[name]
        if not (host.running or host.starting):
            self.later(host.boot(_config(name), self.history), self._start, name)

    def _start(self, name: NodeId) -> None:
        host = self.hosts[name]
        host.start()
        self.later(self._dice.uniform(0.0, self.plan.tick_s), self._tick, name, host.life)
        for other in self.plan.nodes:
            if other != name:
                self.later(self._dice.uniform(0.001, 0.1), self._connect, name, other)

    def _tick(self, name: NodeId, life: int) -> None:
        host = self.hosts[name]
        if host.life != life or not host.running:
            return
        if host.paused_until > self.now:
            self.later(host.paused_until - self.now, self._tick, name, life)
            return
        host.tick()
        self.later(self.plan.tick_s, self._tick, name, life)

    def awake(self, host: Host, handler: object, *args: object) -> bool:
        """Whether a host can take an event now; if it is paused, the event waits."""
        if host.running and host.paused_until > self.now:
            self.later(host.paused_until - self.now + 1e-6, handler, *args)
            return False
        return host.running

    def crashed(self, host: Host, kind: Kind, why: str) -> None:
        """A process is gone: its clients see the connection break, its peers may notice."""
        self.marks[f"crash.{kind}"] += 1
        self.trace("gone", host.name, f"{kind}: {why}".encode())
        calls, host.calls = host.calls, {}
        for call in calls.values():
            self.later(self._dice.uniform(0.0001, 0.01), self._end_call, call, Status.UNKNOWN, None)
        silent = kind in {Kind.POWER, Kind.WIPE}
        for other in self.plan.nodes:
            if other == host.name or not self.network.linked(host.name, other):
                continue
            self.network.unlink(host.name, other)
            delay_s = self._dice.uniform(1.0, 4.0) if silent else self._dice.uniform(0.0002, 0.02)
            if not silent or self._dice.random() < 0.7:
                self.later(delay_s, self._notice, other, host.name, "connection lost")

    # --- links ---

    def _connect(self, a: NodeId, b: NodeId) -> None:
        """Try to connect two nodes, again and again until it works."""
        first, second = self.hosts[a], self.hosts[b]
        if not (first.running and second.running) or self.network.linked(a, b):
            return
        paused = max(first.paused_until, second.paused_until) > self.now
        if paused or not self.network.link(a, b):
            self.later(self._dice.uniform(0.2, 0.8), self._connect, a, b)
            return
        for here, there in ((first, b), (second, a)):
            self.later(self._dice.uniform(0.0, 0.001), self._tell_up, here.name, here.life, there)

    def _tell_up(self, name: NodeId, life: int, peer: NodeId) -> None:
        host = self.hosts[name]
        if host.life != life or not self.awake(host, self._tell_up, name, life, peer):
            return
        if not self.network.linked(name, peer):
            return
        if peer in host.node.local.reachable:
            host.peer_down(peer, "connected anew")
        if host.running:
            host.peer_up(peer)

    def _notice(self, name: NodeId, peer: NodeId, reason: str) -> None:
        """A transport finds that its peer is gone. It may have come back by now: then there is nothing to tell."""
        host = self.hosts[name]
        if self.awake(host, self._notice, name, peer, reason) and not self.network.linked(name, peer):
            if peer in host.node.local.reachable:
                self.marks["net.peer_down"] += 1
                host.peer_down(peer, reason)

    def transmit(self, src: NodeId, dst: NodeId, payload: bytes) -> None:
        """Put a frame on the network."""
        for at in self.network.arrivals(src, dst, self.now):
            self.later(at - self.now, self._deliver, src, dst, payload)

    def _deliver(self, src: NodeId, dst: NodeId, payload: bytes) -> None:
        host = self.hosts[dst]
        if self.network.is_cut((src, dst)):
            self.marks["net.cut"] += 1
            return
        if self.awake(host, self._deliver, src, dst, payload):
            self.trace("frame", dst, payload)
            host.receive(src, decode_batch(payload))

    # --- faults ---

    def _inject(self, fault: Fault) -> None:
        if self.healed:
            return
        self.marks[f"fault.{fault.kind}"] += 1
        self.trace("fault", "", str(fault).encode())
        self.disturbed.append((self.now, self.now + fault.for_s + 8.0))
        if fault.kind is Kind.CUT:
            self._cut(fault)
        elif fault.kind is Kind.CLOG:
            self.network.clog(fault.links, 1)
            self.later(fault.for_s, self._unclog, fault)
        else:
            for node in fault.nodes:
                self._afflict(self.hosts[node], fault)

    def _afflict(self, host: Host, fault: Fault) -> None:
        if fault.kind is Kind.JUMP:
            host.clock.jump(int(fault.amount))
        elif fault.kind is Kind.SLOW_DISK:
            host.disk.slow = fault.amount
            self.later(fault.for_s, self._quicken, host)
        elif fault.kind is Kind.FLIP:
            if host.disk.flip(self._dice) is not None:
                self.marks["disk.flipped"] += 1
                if host.running:
                    host.node.local.hot.clear()  # so that somebody meets it before the restart
        elif not host.running:
            return
        elif fault.kind is Kind.PAUSE:
            host.paused_until = self.now + fault.for_s
        elif fault.kind is Kind.STOP:
            host.stop()
            self.later(fault.for_s, self._boot, host.name)
        elif fault.kind is Kind.SYNC_ERROR:
            host.disk.fail_next_sync = True
            self.later(0.5, self._crash_now, host, host.life, fault)
        elif fault.kind is Kind.WIPE:
            host.crash(fault.kind, "the disk is replaced")
            self.later(fault.for_s, self._boot, host.name)
        else:
            host.crash_after = int(fault.amount), fault.kind
            self.later(0.5, self._crash_now, host, host.life, fault)

    def _crash_now(self, host: Host, life: int, fault: Fault) -> None:
        """The chance that the fault waited for did not come, or it came."""
        if host.running and host.life == life and not self.healed:
            if fault.kind is Kind.SYNC_ERROR and host.disk.fail_next_sync:
                host.disk.fail_next_sync = False
                return
            host.crash(fault.kind, "on time")
        if not host.running:
            self.later(fault.for_s, self._boot, host.name)

    def _quicken(self, host: Host) -> None:
        host.disk.slow = 1.0

    def _cut(self, fault: Fault) -> None:
        self.network.cut(fault.links, 1)
        pairs = sorted({(min(a, b), max(a, b)) for a, b in fault.links})
        if fault.noticed:
            for a, b in pairs:
                self.later(self._dice.uniform(1.0, 4.0), self._lose_link, a, b)
        self.later(fault.for_s, self._uncut, fault, pairs)

    def _lose_link(self, a: NodeId, b: NodeId) -> None:
        """Keep-alives have failed, if the way is still cut."""
        if (self.network.is_cut((a, b)) or self.network.is_cut((b, a))) and self.network.linked(a, b):
            self.network.unlink(a, b)
            self._notice(a, b, "timed out")
            self.later(self._dice.uniform(0.0, 2.0), self._notice, b, a, "timed out")

    def _uncut(self, fault: Fault, pairs: list[Direction]) -> None:
        if not self.healed:
            self.network.cut(fault.links, -1)
        for a, b in pairs:
            self.later(self._dice.uniform(0.05, 1.0), self._connect, a, b)

    def _unclog(self, fault: Fault) -> None:
        if not self.healed:
            self.network.clog(fault.links, -1)

    def heal(self) -> None:
        """End all faults and start every node; time then does the rest."""
        self.healed = True
        self.network.heal()
        for name, host in self.hosts.items():
            host.paused_until = 0.0
            host.crash_after = None
            host.disk.fail_next_sync = False
            host.disk.slow = 1.0
            host.clock.settle(self.now)
            self._boot(name)
        for i, a in enumerate(self.plan.nodes):
            for b in self.plan.nodes[i + 1 :]:
                self.later(self._dice.uniform(0.0, 0.2), self._connect, a, b)

    # --- clients ---

    def call(
        self,
        node: NodeId,
        event: Event,
        done: Callable[[Status, Result | None], None],
        *,
        timeout_s: float,
        write: Write | None = None,
    ) -> None:
        """Send a client's request to a node. ``done`` is told exactly once how it ended."""
        self._calls += 1
        call = Call(self._calls, node, done, write)
        event.client = call  # type: ignore[union-attr]
        self.later(self._dice.uniform(0.00005, 0.001), self._arrive, call, event)
        self.later(timeout_s, self._end_call, call, Status.UNKNOWN, None)

    def _arrive(self, call: Call, event: Event) -> None:
        host = self.hosts[call.node]
        if call.ended:  # its client hung up while the node was paused; the node reads the request all the same
            self.marks["client.hung_up"] += 1
        if not host.running:
            self.later(0.0005, self._end_call, call, Status.REJECTED, None)
            return
        if self.awake(host, self._arrive, call, event):
            call.sent = True
            host.calls[call.id] = call
            self.trace("client", call.node, str(call.id).encode())
            host.handle(event)

    def replied(self, host: Host, call: Call, result: Result) -> None:
        """A node answers. What it acknowledges must be safe at this very moment."""
        if isinstance(result, Stored) and call.write is not None:
            self._judge_ack(call.write, result)
        status = Status.OK
        if isinstance(result, Failure):
            status = Status.UNKNOWN if result.unknown else Status.REJECTED
        self.trace("answer", host.name, f"{call.id} {status}".encode())
        self.later(self._dice.uniform(0.00005, 0.001), self._end_call, call, status, result)

    def _end_call(self, call: Call, status: Status, result: Result | None) -> None:
        if not call.ended:
            call.ended = True
            self.hosts[call.node].calls.pop(call.id, None) if call.sent and status is Status.OK else None
            call.done(status, result)

    # --- judges that sit in ---

    def key_history(self, key: str) -> KeyHistory:
        """The story of a key so far."""
        found = self.histories.get(key)
        if found is None:
            found = self.histories[key] = KeyHistory(key)
        return found

    def staged(self, host: Host, at: bytes, sealed: bytes) -> None:
        """A node stages a record: C7."""
        record = versions.decode(memoryview(sealed)[CHECKSUM_BYTES:])
        before: list[Record] = []

        def held() -> Record:
            if not before:
                before.append(_opened(at, host.store.get(Space.RECORDS, at)))
            return before[0]

        actor = host.node.local.actor
        minted, wrong = self._ledger.staged(host.name, actor, host.boot_nonce, at, held, record)
        if not minted and not wrong:
            return
        key = split_record_key(at)[1].decode()
        for rule, text in wrong:
            self.violate(rule, key, text)
        for version in minted:
            self._note_mint(host, key, version, held())

    def _note_mint(self, host: Host, key: str, version: versions.Version, held: Record) -> None:
        history = self.key_history(key)
        write = history.writes.get(write_of(version.value, version.request_id) or 0)
        if write is None:
            self.violate("C7", key, f"{host.name} mints a version that no client asked for: {version!r}")
            return
        if (version.value, version.expires_at_ms) != (write.value, write.expires_at_ms):
            self.violate(
                "C7", key, f"{host.name} mints {version!r} for write #{write.id}, which asked for {write.value!r}"
            )
        replaced = write.read or ()
        if write.read is None or self.plan.reconcile == "lww":
            replaced += tuple(v.dot for v in held.versions)
        mint = Mint(version.dot, write.id, host.name, self.now, replaced, tombstone=version.value is None)
        history.mints[version.dot] = mint
        if write.dots and not version.request_id:
            self.violate(
                "C7", key, f"write #{write.id} was sent once without a request id, but is minted again: {version!r}"
            )
        write.dots.append(version.dot)
        self.marks["mints"] += 1

    def _judge_ack(self, write: Write, stored: Stored) -> None:
        """A put is acknowledged: C9, and the dots that must never be lost from now on."""
        acked = [dot for dot in write.dots if covered_by(stored, dot)]
        for dot in acked:
            write.acked.setdefault(dot, self.now)
        at = record_key(BUCKET, write.key.encode())
        holders = {name: host.record(at, self._durability) for name, host in self.hosts.items()}
        self.violations += check_durable(write.key, acked, self.plan.safe_copies, holders, self.now)

    # --- the end ---

    def owners(self, key: str) -> tuple[NodeId, ...]:
        """Who holds the key."""
        at = record_key(BUCKET, key.encode())
        return self.ring.preference(self.ring.partition_of(at))[: self.plan.n]

    def collect_finals(self) -> dict[str, dict[NodeId, set[int]]]:
        """Write into each history what the owners hold now. Returns the elements of the sets, by key and owner."""
        elements: dict[str, dict[NodeId, set[int]]] = {}
        wall_ms = true_wall_ms(self.now)
        for key, history in sorted(self.histories.items()):
            at = record_key(BUCKET, key.encode())
            elements[key] = {}
            for node in self.owners(key):
                sealed = self.hosts[node].store.get(Space.RECORDS, at)
                record = _opened(at, sealed)
                canonical = sealed is None or versions.encode(record) == sealed[CHECKSUM_BYTES:]
                history.finals[node] = Final(sealed, tuple(v.dot for v in record.versions), canonical)
                history.finals[node].live = bool(versions.siblings(record, wall_ms))
                bits = 0
                for version in record.versions:
                    if version.value is not None:
                        bits |= parse_value(version.value)[1]
                elements[key][node] = set_of(bits)
        return elements


def covered_by(stored: Stored, dot: Dot) -> bool:
    """Whether an acknowledged context covers a write."""
    return dot[1] <= stored.clock.get(dot[0], -1) or dot in stored.dots


def set_of(bits: int) -> set[int]:
    """The elements of a bitset."""
    return {i for i in range(bits.bit_length()) if bits >> i & 1}


def _opened(at: bytes, sealed: bytes | None) -> Record:
    """A stored record; the empty one if there is none, or bits of it flipped."""
    if sealed is None:
        return EMPTY
    try:
        return versions.decode(unseal(at, sealed))
    except CorruptData:
        return EMPTY


def _config(name: NodeId) -> Config:
    return Config(node=name, cluster="simulated", secret=b"not a secret", q=Q)


def _first_history(plan: Plan) -> History:
    """The membership that the cluster is created with, and the properties of its one bucket."""
    joins = [
        Change(
            id=f"join-{name}",
            at=reading(EPOCH_MS - 1000, i),
            author=name,
            kind=ChangeKind.JOIN,
            member=Member(name, f"{name}:7702", f"host-{name}"),
        )
        for i, name in enumerate(plan.nodes)
    ]
    props = {
        "n": str(plan.n), "r": str(plan.r), "w": str(plan.w),
        "durability": plan.durability, "reconcile": plan.reconcile,
    }  # fmt: skip
    defaults = msgspec.structs.asdict(BucketProps())
    changed = {name: text for name, text in props.items() if str(defaults[name]) != text}
    bucket = Change(
        id="bucket",
        at=reading(EPOCH_MS - 500),
        author=plan.nodes[0],
        kind=ChangeKind.BUCKET,
        bucket=BUCKET,
        props=changed,
    )
    return History([*joins, bucket] if changed else joins)
