"""The world of one run: virtual time, the machines, the network between them, and the door for clients.

What goes wrong is in ``troubles``, what the judges are told in ``observer``.

One heap holds what is to happen, ordered by time; equal times are ordered by the seed's dice, so that no order of arrival is
taken for granted. Nothing else decides anything: no thread, no real clock, no set order. The **trace hash** covers every frame
delivered, boot, crash, fault, and client's request and answer, in order; two runs are the same run if it is equal.
"""

from __future__ import annotations

import hashlib
import heapq
import struct
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import msgspec

from cartwheel.core.clock import reading
from cartwheel.core.config import BucketProps, Config
from cartwheel.core.messages import PROTOCOL_MAX, PROTOCOL_MIN, Event, Failure, Result, Stored, decode_batch
from cartwheel.core.ring import Change, ChangeKind, Folded, History, Member, Ring, fold
from cartwheel.core.storage import Space
from cartwheel.core.types import NodeId
from cartwheel.sim.acts import Acts
from cartwheel.sim.clocks import EPOCH_MS, SimClock
from cartwheel.sim.faults import Kind, Plan, fork
from cartwheel.sim.history import Status, Violation, Write
from cartwheel.sim.host import Host
from cartwheel.sim.network import MESSAGE_LIFETIME_S, SimNetwork
from cartwheel.sim.observer import BUCKET, Observer
from cartwheel.sim.reach import Reach
from cartwheel.sim.troubles import Troubles

Q = 64
"""Partitions: enough that every node has several, few enough that a fold is quick."""
DAY_S = 86_400.0
GIVE_GRACE_S = 2.0
QUARANTINE_S = 2 * MESSAGE_LIFETIME_S + 5.0
"""Longer than the longest request of a run and two lifetimes of a message, as ``Config.reap_quarantine_s`` demands."""
UPGRADED = 0.7
"""How often a node of the build before is upgraded when it is started again."""
VIOLATIONS_MAX = 20
"""A run stops at so many: the first few tell the story."""
RETAINED_MAX = 2000
REPLAYED_S = 8.0
"""Frames sent so shortly before the end of the safety phase, but at most ``RETAINED_MAX``, are delivered again."""
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
        self.trace_lines: list[str] | None = [] if keep_trace else None
        self.events = 0
        self.healed = False
        self.scanned: list[str] = []
        self.scan_ended = False
        self._queue: list[tuple[float, int, int, Any, tuple[Any, ...]]] = []
        self._issued = 0
        self._ties = fork(plan.seed, "ties")
        self._dice = fork(plan.seed, "world")
        self._dice_of_builds = fork(plan.seed, "upgrades")
        self._digest = hashlib.blake2b(digest_size=16)
        self._calls = 0
        self._past_counters: Counter[str] = Counter()  # of the core, from lives that have ended
        self._entered: set[NodeId] = set()  # of the joiners
        self._retained: deque[tuple[float, NodeId, NodeId, bytes]] = deque(maxlen=RETAINED_MAX)
        self.network = SimNetwork(plan.weather, fork(plan.seed, "network"), self.marks)
        self.history = _first_history(plan)
        self.hosts = {
            name: Host(
                name,
                self,
                SimClock(offset_ms=plan.clock_offset_ms[i], drift=plan.clock_drift[i]),
                fork(plan.seed, f"host {name}"),
                sync_s=plan.sync_s,
                stutter=plan.stutter,
            )
            for i, name in enumerate(plan.nodes)
        }
        for host in self.hosts.values():
            host.peers = plan.nodes
            host.protocol = PROTOCOL_MIN if host.name in plan.aged else PROTOCOL_MAX
        self.reach = Reach()
        self.observer = Observer(self)
        self.troubles = Troubles(self)
        self.acts = Acts(self)
        for name in plan.founders:
            self.later(self._dice.uniform(0.0, 0.2), self.boot, name)

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

    def config(self, name: NodeId) -> Config:
        """A node's settings."""
        plan = self.plan
        return Config(
            node=name, cluster="simulated", secret=b"not a secret", q=Q, reap_grace_s=plan.reap_grace_s,
            reap_quarantine_s=QUARANTINE_S, reap_pause_s=5.0, scrub_days=plan.scrub_s / DAY_S, give_grace_s=GIVE_GRACE_S,
            address=f"{name}:7702", host=f"host-{name}", joins=name in plan.joiners,
            view_bytes_whole=plan.view_bytes_whole,
        )  # fmt: skip

    # --- members ---

    @property
    def folded(self) -> Folded:
        """What all changes that anybody knows amount to."""
        history = self.history
        for host in self.hosts.values():
            if host.life:
                history = history.union(host.node.changes_known)
        return fold(Q, history)

    @property
    def ring(self) -> Ring:
        """The ring as it is to be."""
        return self.folded.ring

    @property
    def removed(self) -> frozenset[NodeId]:
        """Who may never come back."""
        return self.folded.removed

    @property
    def members(self) -> tuple[NodeId, ...]:
        """Of that ring."""
        return tuple(self.ring.members)

    def enter(self, name: NodeId) -> None:
        """A node that is no member is started for the first time."""
        self._entered.add(name)
        self.boot(name)

    def boot(self, name: NodeId) -> None:
        """Start a node, unless it runs, or never was."""
        host = self.hosts[name]
        joins = name in self.plan.joiners
        if not (host.running or host.starting) and (not joins or name in self._entered):
            if host.life and self._dice_of_builds.random() < UPGRADED:
                host.protocol = PROTOCOL_MAX
            host.boot(self.config(name), History() if joins else self.history)
            self.later(0.0, self._start, name)

    def _start(self, name: NodeId) -> None:
        host = self.hosts[name]
        host.start()
        self.later(self._dice.uniform(0.0, self.plan.tick_s), self._tick, name, host.life)
        for other in self.plan.nodes:
            if other != name:
                self.later(self._dice.uniform(0.001, 0.1), self.connect, name, other)

    def _tick(self, name: NodeId, life: int) -> None:
        host = self.hosts[name]
        if host.life != life or not self.awake(host, self._tick, name, life):
            return
        host.tick()
        self.later(self.plan.tick_s, self._tick, name, life)

    def awake(self, host: Host, handler: object, *args: object) -> bool:
        """Whether a host can take an event now; if it is paused, the event waits."""
        if host.running and host.paused_until > self.now:
            host.waiting.append((handler, args))
            return False
        return host.running

    def resume(self, host: Host) -> None:
        """A pause is over, or the process: what waited happens now, in the order in which it came."""
        if host.running and host.paused_until > self.now:
            return
        waiting, host.waiting = host.waiting, []
        for i, (handler, args) in enumerate(waiting):
            self.later(i * 1e-7, handler, *args)

    def crashed(self, host: Host, kind: Kind, why: str) -> None:
        """A process is gone: its clients see the connection break, its peers may notice."""
        self.marks[f"crash.{kind}"] += 1
        self.trace("gone", host.name, f"{kind}: {why}".encode())
        self._past_counters.update(host.node.local.counters)
        self.resume(host)
        calls, host.calls = host.calls, {}
        for call in calls.values():
            self.later(self._dice.uniform(0.0001, 0.01), self._end_call, call, Status.UNKNOWN, None)
        silent = kind in {Kind.POWER, Kind.WIPE}
        for other in self.plan.nodes:
            if other == host.name or not self.network.linked(host.name, other):
                continue
            self.unlink(host.name, other)
            delay_s = self._dice.uniform(1.0, 4.0) if silent else self._dice.uniform(0.0002, 0.02)
            if not silent or self._dice.random() < 0.7:
                self.later(delay_s, self.notice, other, host.name, "connection lost")

    def core_counters(self) -> Counter[str]:
        """The counters of all nodes in all their lives."""
        found = Counter(self._past_counters)
        for host in self.hosts.values():
            if host.running:
                found.update(host.node.local.counters)
        return found

    # --- links ---

    def connect(self, a: NodeId, b: NodeId) -> None:
        """Try to connect two nodes, again and again until it works."""
        first, second = self.hosts[a], self.hosts[b]
        if not (first.running and second.running) or self.network.linked(a, b):
            return
        paused = max(first.paused_until, second.paused_until) > self.now
        if paused or not self.network.link(a, b):
            self.later(self._dice.uniform(0.2, 0.8), self.connect, a, b)
            return
        for here, there in ((first, b), (second, a)):
            self.later(self._dice.uniform(0.0, 0.001), self._tell_up, here.name, here.life, there)

    def unlink(self, a: NodeId, b: NodeId) -> None:
        """Drop a connection; ``notice`` tells who finds out."""
        self.network.unlink(a, b)
        self.reach.dropped(a, b, self.now)

    def _tell_up(self, name: NodeId, life: int, peer: NodeId) -> None:
        host = self.hosts[name]
        if host.life != life or not self.awake(host, self._tell_up, name, life, peer):
            return
        if not self.network.linked(name, peer):
            return
        if peer in host.node.local.reachable:
            host.peer_down(peer, "connected anew")
        if host.running:
            host.peer_up(peer, min(host.protocol, self.hosts[peer].protocol))
        if host.running:
            self.reach.told(name, peer, self.now)

    def notice(self, name: NodeId, peer: NodeId, reason: str) -> None:
        """A transport finds that its peer is gone. It may have come back by now: then there is nothing to tell."""
        host = self.hosts[name]
        if self.awake(host, self.notice, name, peer, reason) and not self.network.linked(name, peer):
            if peer in host.node.local.reachable:
                self.marks["net.peer_down"] += 1
                host.peer_down(peer, reason)

    def transmit(self, src: NodeId, dst: NodeId, payload: bytes) -> None:
        """Put a frame on the network."""
        if not self.healed:
            self._retained.append((self.now, src, dst, payload))
        for at in self.network.arrivals(src, dst, self.now):
            self.later(at - self.now, self._deliver, src, dst, payload, self.now)

    def _deliver(self, src: NodeId, dst: NodeId, payload: bytes, sent_at: float) -> None:
        host = self.hosts[dst]
        if self.now - sent_at > MESSAGE_LIFETIME_S:
            self.marks["net.expired"] += 1
            return
        if self.network.is_cut((src, dst)):
            self.marks["net.cut"] += 1
            return
        if self.awake(host, self._deliver, src, dst, payload, sent_at):
            self.trace("frame", dst, payload)
            host.receive(src, decode_batch(payload))

    def replay(self) -> None:
        """Deliver the last frames of the safety phase once more, all of them, those that were lost, too (faults, premise 5)."""
        for sent_at, src, dst, payload in self._retained:
            if sent_at >= self.plan.seconds - REPLAYED_S:
                self.marks["replayed"] += 1
                self.later(self._dice.uniform(0.0, 2.0), self._deliver, src, dst, payload, sent_at)

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
            self.observer.acknowledged(call.write, result)
        status = Status.OK
        if isinstance(result, Failure):
            status = Status.UNKNOWN if result.unknown else Status.REJECTED
        self.trace("answer", host.name, f"{call.id} {status}".encode())
        self.later(self._dice.uniform(0.00005, 0.001), self._end_call, call, status, result)

    def staged(self, host: Host, space: Space, key: bytes, sealed: bytes | None) -> None:
        """A node stages a record, or a hint."""
        self.observer.staged(host, space, key, sealed)

    def _end_call(self, call: Call, status: Status, result: Result | None) -> None:
        if not call.ended:
            call.ended = True
            self.hosts[call.node].calls.pop(call.id, None) if call.sent and status is Status.OK else None
            call.done(status, result)


def _first_history(plan: Plan) -> History:
    """The membership that the cluster is created with, and the properties of its one bucket."""
    joins = [
        Change(
            id=f"join-{name}",
            at=i,
            author=name,
            kind=ChangeKind.JOIN,
            member=Member(name, f"{name}:7702", f"host-{name}"),
        )
        for i, name in enumerate(plan.founders)
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
