"""A steady load that is judged, and follows its nodes: the open loop of ``generator``, by clients that have several addresses.

A client of a store whose nodes come and go does what any sane Redis client does: an operation that is refused, or whose
connection breaks, is tried once more, at another node; new connections go to nodes that are said to stay. So an operation
ends in one of three ways: done, done at the second try (*retried*), or *failed*. Latency counts from when it was due to its
end, the second try included.

Reads are CW.GET, which shows all siblings; writes are SET. Every one of them is put before the ``judge``.

The load does not pause between two phases: an operation belongs to the phase in which it was sent first.

Invariants
1. Each operation that was begun ends as done or failed; none is tried more than twice.
2. A second try goes to another node than the first, one of ``good``.
"""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from random import Random

import msgspec

from cartwheel.bench.generator import TICK_NS, Counts, Engine, Flow, clock
from cartwheel.bench.judge import Finding, Judge, Outcome, value_of
from cartwheel.bench.requests import GET, KINDS, SET, Request, uniform, zipfian
from cartwheel.bench.result import Latency, latency
from cartwheel.bench.run import BenchFailed, resolve
from cartwheel.client.resp import ReplyError, pack_command

DRAWS_MAX = 100
"""Draws of a key that may be written; after so many it is a read instead: a very hot key, or hardly any left."""
STOP_NS = 10_000_000_000
"""At the end what is due or under way is waited for so long."""
UNKNOWN, NO_MEMBER = "unknown", "is no member"
"""In the text of an error reply: the write may yet be applied; the node has left."""
TEXTS_MAX = 2
"""Errors of one kind in one phase that are kept in full."""
PADDINGS = 16
"""Different contents in turn, of random bytes: one for all would flatter an engine that compresses."""


class LoadOptions(msgspec.Struct, frozen=True, kw_only=True):
    """The load."""

    addresses: tuple[str, ...]
    """All that there ever will be; clients use those that they are told to."""
    first: tuple[int, ...]
    """Numbers of the addresses that clients begin with."""
    keys: int
    rate_per_s: float
    value_bytes: int = 100
    read_ratio: float = 0.5
    distribution: str = "uniform"
    connections: int = 50
    pipeline: int = 1
    seed: int = 1
    timeout_s: float = 5.0
    """Longer than a node's own deadline for a request, so that one that lives answers."""


class PhaseReport(msgspec.Struct, frozen=True):
    """What clients saw in one phase. Operations that are counted under ``done`` or ``errors``, and nowhere else."""

    name: str
    seconds: float
    done: int
    retried: int
    """Of those done: at the second try."""
    retries: dict[str, int]
    """Why first tries came to nothing (``kind_of``), or ``connection lost``, ``timeout``."""
    errors: dict[str, int]
    """Why second tries did: these operations failed."""
    unsent: int
    """Due, but all connections were full to the end."""
    not_found: int
    stale: int
    foreign: int
    reads: Latency
    writes: Latency

    @property
    def operations(self) -> int:
        """All that were due."""
        return self.done + self.failed

    @property
    def failed(self) -> int:
        """Those that were not done."""
        return sum(self.errors.values()) + self.unsent


class LoadReport(msgspec.Struct, frozen=True):
    """All phases, in their order."""

    phases: list[PhaseReport]
    examples: list[str]
    texts: list[str]
    """The first errors of each kind in each phase."""
    aside: int
    """Keys written no more, since the outcome of a write is not known."""
    generator_busy: float
    """Share of the time that the load generator was on a processor."""
    broke_off: bool
    """It ended by itself: no node could be reached any more."""


@dataclass(slots=True)
class _Phase:
    """The counts behind a ``PhaseReport``."""

    name: str
    began_s: float
    seconds: float = 0.0
    done: int = 0
    retried: int = 0
    unsent: int = 0
    retries: Counter[str] = field(default_factory=Counter)
    errors: Counter[str] = field(default_factory=Counter)
    findings: Counter[Finding] = field(default_factory=Counter)
    latencies: tuple[Counts, ...] = field(default_factory=lambda: tuple(Counter() for _ in KINDS))

    def report(self) -> PhaseReport:
        return PhaseReport(
            name=self.name,
            seconds=self.seconds,
            done=self.done,
            retried=self.retried,
            retries=dict(sorted(self.retries.items())),
            errors=dict(sorted(self.errors.items())),
            unsent=self.unsent,
            not_found=self.findings[Finding.NOT_FOUND],
            stale=self.findings[Finding.STALE],
            foreign=self.findings[Finding.FOREIGN],
            reads=latency([self.latencies[GET]], encode=True),
            writes=latency([self.latencies[SET]], encode=True),
        )


@dataclass(slots=True)
class _Operation:
    """One of them, until it ends."""

    kind: int
    key: int
    payload: bytes
    phase: _Phase
    least: int = 0
    """Of a read: what it has to find."""
    unknown: bool = False
    """Of a write: its first try may yet be applied."""
    start: int = 0
    """When it was due, once its first try has failed."""
    tried_at: int = -1
    """The number of the node that failed; -1: this is the first try."""


class SteadyFlow(Flow):
    """A connection that hands each reply to the load, and goes only to nodes that stay. What stands in ``pending`` as the
    kind is the number of an operation."""

    __slots__ = ("_load", "leaves")

    def __init__(self, engine: Engine, node: int) -> None:
        super().__init__(engine, node)
        assert isinstance(engine, SteadyLoad)
        self._load = engine
        self.leaves = False
        """Nothing more is asked on it: its node has refused it, and does not stay, or others are to have their share."""

    @property
    def node(self) -> int:
        """The number of its address."""
        return self._node

    def _take_replies(self, now: int) -> tuple[int, int]:
        load, pending, gets = self._load, self.pending, self._gets
        answered = 0
        reply = gets()
        while reply is not False:
            start, number = pending.popleft()
            answered += 1
            if reply.__class__ is ReplyError:
                load.fail(number, start, self._node, kind_of(reply), unknown=UNKNOWN in reply.text, text=str(reply))
                self.leaves |= self._node not in load.good
            else:
                load.succeed(number, start, self._node, reply, now)
            reply = gets()
        if not self.leaves:
            return answered, 0
        load.lost(self)  # takes its free slots away
        if not pending:
            self.move(load.other_node(self._node))
        return 0, 0

    def move(self, node: int) -> None:
        """Go to another node. Only with nothing in flight."""
        assert not self.pending
        self.close()
        self._node = node
        self._load.lost(self)
        self._load.homeless.append(self)

    def reopen(self, now: int) -> None:
        """Connect, unless that has been done meanwhile."""
        if self._sock is None:
            self.connect(now)

    def connect(self, now: int) -> None:
        self.leaves = False
        super().connect(now)

    def lose(self, reason: str) -> None:
        """What was in flight has failed for this reason. From a node that was reached it goes on at once, else after a rest."""
        lost, connected = list(self.pending), self.connected
        super().lose(reason)
        for start, number in lost:
            self._load.fail(number, start, self._lost_node(), reason, unknown=True)
        self._node = self._load.other_node(self._lost_node())
        if connected:
            self._load.homeless.append(self)

    def _lost_node(self) -> int:
        return self._node - 1  # ``Flow.lose`` has moved on by one


class SteadyLoad(Engine):
    """The load of one process, over all phases. ``load`` runs it until ``stop`` was called, from ``on_tick``."""

    flow_class = SteadyFlow

    def __init__(self, options: LoadOptions, judge: Judge) -> None:
        self.good = sorted(options.first)
        """Numbers of the addresses for new connections and second tries."""
        flow_nodes = [self.good[number % len(self.good)] for number in range(options.connections)]
        super().__init__([resolve(address) for address in options.addresses], flow_nodes, options.timeout_s)
        self.homeless: list[SteadyFlow] = []
        """Connections to be opened at once."""
        self._options = options
        self._judge = judge
        self._operations: dict[int, _Operation] = {}
        self._number = 0
        self._again: deque[_Operation] = deque()  # to be tried a second time
        self._turn = 0
        self._stop_at: int | None = None  # nanoseconds
        self._texts: dict[tuple[str, str], list[str]] = {}  # by phase and kind of error
        self.phases = [_Phase("warming up", time.perf_counter())]
        self.phase = self.phases[0]
        self._random = random = Random(f"{options.seed}/steady")
        if options.distribution == "zipfian":
            self._draw_key = zipfian(options.keys, 0.99, random)
        else:
            self._draw_key = uniform(options.keys, random)
        self._paddings = [random.randbytes(options.value_bytes) for _ in range(PADDINGS)]

    # --- what it is told ---

    def begin_phase(self, name: str) -> None:
        """Operations sent from now on belong to this phase."""
        now_s = time.perf_counter()
        self.phase.seconds = now_s - self.phase.began_s
        self.phase = _Phase(name, now_s)
        self.phases.append(self.phase)

    def use(self, nodes: list[int], *, spread: bool = False) -> None:
        """From now on go to these. Connections to others stay until they are refused; with ``spread`` all are dealt out
        anew."""
        self.good = sorted(nodes)
        if spread:
            for number, flow in enumerate(self.flows):
                assert isinstance(flow, SteadyFlow)
                node = self.good[number % len(self.good)]
                if flow.connected and flow.node != node:
                    if flow.pending:
                        flow.leaves = True  # once it has its reply
                    else:
                        flow.move(node)

    def so_far(self) -> tuple[int, int]:
        """Operations done, and failed or answered wrongly, in all phases."""
        troubles = sum(phase.errors.total() + phase.findings.total() for phase in self.phases)
        return sum(phase.done for phase in self.phases), troubles

    def stop(self) -> None:
        """Begin nothing that is due later than now, and end what was begun."""
        if self._stop_at is None:
            self._stop_at = clock()

    def goes_on(self) -> bool:
        """Whether there is anything to wait for. The answer of ``on_tick``."""
        if self._stop_at is None:
            return True
        left = self._operations or self._again or self._due_at <= self._stop_at
        return bool(left) and clock() < self._stop_at + STOP_NS

    # --- the run ---

    def load(self) -> LoadReport:
        """Run until stopped.

        Raises:
            BenchFailed: the nodes do not take all connections.
        """
        options = self._options
        if self.wait_connected() < len(self.flows):
            raise BenchFailed("not all connections could be opened; see `ulimit -n`")
        cpu_s, self.phase.began_s = time.process_time(), time.perf_counter()
        began_s = self.phase.began_s
        self.run(self._requests(), depth=options.pipeline, interval_s=1 / options.rate_per_s)
        now_s = time.perf_counter()
        self.phase.seconds = now_s - self.phase.began_s
        busy = (time.process_time() - cpu_s) / max(now_s - began_s, 1e-9)
        if self._stop_at is not None and self._due_at <= self._stop_at and self._interval_ns:
            self.phase.unsent += 1 + int((self._stop_at - self._due_at) / self._interval_ns)
        while self._again:
            self._give_up(self._again.popleft(), "stopped")
        return LoadReport(
            phases=[phase.report() for phase in self.phases],
            examples=self._judge.examples,
            texts=[text for texts in self._texts.values() for text in texts],
            aside=self._judge.aside,
            generator_busy=busy,
            broke_off=self._stop_at is None,
        )

    def _requests(self) -> Iterator[Request]:
        """The endless stream. An operation begins when it is drawn, for it is sent at once."""
        fraction, read_ratio = self._random.random, self._options.read_ratio
        while True:
            key = self._key_to_write() if fraction() >= read_ratio else None
            yield self._begin_write(key) if key is not None else self._begin_read(self._draw_key())

    def _key_to_write(self) -> int | None:
        for _ in range(DRAWS_MAX):
            key = self._draw_key()
            if self._judge.may_write(key):
                return key
        return None

    def _begin_read(self, key: int) -> Request:
        payload = pack_command("CW.GET", key_name(key))
        return self._begin(_Operation(GET, key, payload, self.phase, self._judge.acked(key)))

    def _begin_write(self, key: int) -> Request:
        number = self._judge.begin_write(key)
        value = value_of(key, number, self._paddings[self._number % PADDINGS])
        return self._begin(_Operation(SET, key, pack_command("SET", key_name(key), value), self.phase))

    def _begin(self, operation: _Operation) -> Request:
        self._number += 1
        self._operations[self._number] = operation
        return operation.payload, self._number

    def _dispatch(self, now: int) -> None:
        while self.homeless:
            self.homeless.pop().reopen(now)
        for _ in range(len(self._again)):
            operation = self._again.popleft()
            flow = self._free_flow(operation.tried_at)
            if flow is None:
                self._again.append(operation)
                continue
            if operation.kind == GET:
                operation.least = self._judge.acked(operation.key)
            flow.enqueue(self._begin(operation), operation.start, now)
            flow.flush()
        super()._dispatch(now if self._stop_at is None else min(now, self._stop_at))
        if self._stop_at is not None and self._due_at > self._stop_at:
            self._due_at = now + TICK_NS  # the loop need not hurry: nothing is due any more

    def _free_flow(self, not_at: int) -> Flow | None:
        """A connection with room at a node that stays, another one than this; takes the room."""
        for at, flow in enumerate(self._slots):
            assert isinstance(flow, SteadyFlow)
            if flow.node != not_at and flow.node in self.good:
                del self._slots[at]
                return flow
        return None

    def other_node(self, node: int) -> int:
        """Where to go from there: the nodes that stay in turn, but not back."""
        self._turn += 1
        others = [each for each in self.good if each != node] or self.good
        return others[self._turn % len(others)]

    # --- how operations end ---

    def succeed(self, number: int, start: int, node: int, reply: object, now: int) -> None:
        """A reply has come, from this node."""
        operation = self._operations.pop(number)
        phase, key = operation.phase, operation.key
        phase.done += 1
        phase.retried += operation.tried_at >= 0
        phase.latencies[operation.kind][(now - start) // 1000] += 1
        if operation.kind == SET:
            self._judge.end_write(key, Outcome.ACKED)
            return
        assert isinstance(reply, list), reply
        after_s = time.perf_counter() - self.phase.began_s
        where = f"at {self._options.addresses[node]}, {after_s:.1f} s into {self.phase.name!r}"
        finding = self._judge.end_read(key, operation.least, reply[1], where)
        if finding is not None:
            phase.findings[finding] += 1

    def fail(self, number: int, start: int, node: int, reason: str, *, unknown: bool, text: str = "") -> None:
        """A try has come to nothing."""
        operation = self._operations.pop(number)
        self._keep_text(operation, node, reason, text)
        if operation.kind == SET and unknown:
            operation.unknown = True
            self._judge.set_aside(operation.key)
        if operation.tried_at >= 0:
            self._give_up(operation, reason)
            return
        operation.phase.retries[reason] += 1
        operation.start, operation.tried_at = start, node
        self._again.append(operation)

    def _keep_text(self, operation: _Operation, node: int, reason: str, text: str) -> None:
        texts = self._texts.setdefault((operation.phase.name, reason), [])
        if len(texts) < TEXTS_MAX:
            after_s = time.perf_counter() - self.phase.began_s
            what = f"{KINDS[operation.kind]} of key {operation.key} at {self._options.addresses[node]}"
            texts.append(f"{after_s:.1f} s into {self.phase.name!r}, {what}: {text or reason}")

    def _give_up(self, operation: _Operation, reason: str) -> None:
        operation.phase.errors[reason] += 1
        if operation.kind == SET:
            self._judge.end_write(operation.key, Outcome.UNKNOWN if operation.unknown else Outcome.REFUSED)


def kind_of(error: ReplyError) -> str:
    """What it is counted as: its first word, and what else matters to a client."""
    if UNKNOWN in error.text:
        return f"{error.code} (outcome unknown)"
    return f"{error.code} (no member)" if NO_MEMBER in error.text else error.code


def key_name(key: int) -> str:
    """The name of a key by its number."""
    return f"bench:{key:012d}"
