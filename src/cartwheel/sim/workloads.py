"""Clients: processes that read and write a few hot keys, each value unique, every choice drawn from the seed.

A process sends one request at a time and remembers, for each key, the context it was given last. ``registers`` does everything
a client may do:

    get                        update: get, then put with its context     put with the context it has, fresh or stale
    crowd: some gets at nearly one moment      explain, scan, count, set a property of the bucket
    blind put (no context)     put beside everything (empty context)      delete with a context, blind delete
    values that expire         through owners and non-owners alike
    chain: puts one right after the other through any nodes, each with the context after the last: it knows more than they do

``sets`` only grows sets: read, add an element to the union of the siblings, put with the context; deletes and blind writes
would lose elements rightly.

Writes carry a request id, except some puts. When one fails or is not answered, it is sent again with the same id, through the
same or another node; sometimes it is sent twice at once, or again seconds later, as an impatient proxy would.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

from cartwheel.core import versions
from cartwheel.core.messages import (
    ClientBucketSet,
    ClientCount,
    ClientExplain,
    ClientGet,
    ClientHints,
    ClientPut,
    ClientRepair,
    ClientScan,
    Event,
    Failure,
    Found,
    Page,
    PutRequest,
    Result,
    Stored,
)
from cartwheel.core.types import Clock, Dot, NodeId
from cartwheel.sim.clocks import true_wall_ms
from cartwheel.sim.faults import fork
from cartwheel.sim.history import Read, Status, Try, Write, dot_text, parse_value, request_id_bytes, value_bytes
from cartwheel.sim.observer import BUCKET, covered_by
from cartwheel.sim.world import World

CLIENT_TIMEOUT_S = 4.0
"""Twice a node's own timeout, so that a node which lives answers in time."""
TRIES_MAX = 4
MEET_S = 1.0
"""Where nothing disturbs, clients begin when all nodes are connected: before, fallbacks stand in for owners (premise 3)."""


@dataclass(slots=True)
class Session:
    """What a process has seen of a key, and the context that says so."""

    clock: Clock = field(default_factory=dict)
    dots: tuple[Dot, ...] = ()
    read: tuple[Dot, ...] = ()
    """The versions that the context stands for."""
    coordinator: NodeId = ""
    elements: int = 0


REGISTERS = {
    "get": 38, "update": 28, "put": 10, "blind": 6, "beside": 3, "delete": 8, "blind delete": 2, "expiring": 5,
    "crowd": 3, "look": 2, "chain": 4,
}  # fmt: skip
SETS = {"get": 30, "add": 65, "crowd": 3, "look": 2}


class Workload:
    """All processes of a run."""

    def __init__(self, world: World) -> None:
        plan = world.plan
        self.world = world
        self.keys = [f"k{i}" for i in range(plan.keys)]
        self.mix = SETS if plan.workload == "sets" else REGISTERS
        self.stopped = False
        self.tries: list[Try] = []
        self.outcomes: Counter[str] = Counter()
        self._next_write = 1
        self.processes = [Process(self, i, fork(plan.seed, f"process {i}")) for i in range(plan.processes)]

    @property
    def steps(self) -> list[tuple[int, int]]:
        """All that were taken: (process, number)."""
        return [step for process in self.processes for step in process.taken]

    def new_id(self) -> int:
        """A write id that no other write has."""
        self._next_write += 1
        return self._next_write - 1

    def stop(self) -> None:
        """No process starts anything new."""
        self.stopped = True

    def read_all(self) -> None:
        """Every key is read once: stale replicas are repaired (section 5)."""
        nodes = self.world.members
        for i, key in enumerate(sorted(self.world.observer.histories)):
            self.processes[0].get(key, nodes[i % len(nodes)], lambda found: None)

    def scan_all(self, cursor: int = 0) -> None:
        """Walk through all keys, page by page, as a client at the first node would."""
        world = self.world

        def done(status: Status, result: Result | None) -> None:
            if isinstance(result, Page):
                world.scanned += [key.decode() for key in result.keys]
                if result.cursor:
                    self.scan_all(result.cursor)
                else:
                    world.scan_ended = True

        world.call(world.members[0], ClientScan(None, BUCKET, cursor, 7), done, timeout_s=CLIENT_TIMEOUT_S)


class Process:
    """One client. Each of its steps has its own dice, so that leaving some out (``Plan.only``) changes nothing in the others."""

    def __init__(self, workload: Workload, number: int, dice: random.Random) -> None:
        self.workload = workload
        self.world = workload.world
        self.number = number
        self.dice = dice  # of the step under way
        self.taken: list[tuple[int, int]] = []
        self._pace = dice
        self._steps = 0
        self._seed = dice.getrandbits(64)
        self.home = dice.choice(self.world.plan.nodes)
        self.sessions: dict[str, Session] = {}
        self._kinds, self._weights = list(workload.mix), list(workload.mix.values())
        self._think_s = workload.world.plan.processes / workload.world.plan.ops_per_s
        self._pause(MEET_S if self.world.plan.calm else 0.0)

    def _pause(self, more_s: float = 0.0) -> None:
        if not self.workload.stopped:
            self.world.later(more_s + self._pace.expovariate(1.0 / self._think_s), self._step)

    def _node(self) -> NodeId:
        """Where to send: mostly home, so that a client sees its own writes' coordinator; now and then it moves."""
        if self.dice.random() < 0.2:
            return self.dice.choice(self.world.plan.nodes)
        if self.dice.random() < 0.02:
            self.home = self.dice.choice(self.world.plan.nodes)
        return self.home

    def _step(self) -> None:
        if self.workload.stopped:
            return
        step = self.number, self._steps
        self._steps += 1
        only = self.world.plan.only
        if only is not None and step not in only:
            self._pause()
            return
        self.taken.append(step)
        self.dice = random.Random(self._seed + step[1])
        key = self.dice.choice(self.workload.keys)
        kind = self.dice.choices(self._kinds, self._weights)[0]
        if kind == "get":
            self.get(key, self._node(), lambda found: self._pause())
        elif kind == "crowd":
            self._crowd(key)
        elif kind == "look":
            self._look(key)
        elif kind in {"update", "add"} or (kind in {"put", "delete"} and key not in self.sessions):
            self.get(key, self._node(), lambda found: self._write_after_get(key, found))
        else:
            self._write(key, kind)

    def _write_after_get(self, key: str, found: bool) -> None:
        if found:
            self.world.later(self.dice.expovariate(20.0), self._write, key, "put")
        else:
            self._pause()

    def _crowd(self, key: str) -> None:
        """Several gets of one key at one node at nearly one moment: they may share a reading."""
        node = self._node()
        for number in range(self.dice.randint(2, 4)):
            after: Callable[[bool], None] = (lambda found: None) if number else (lambda found: self._pause())
            self.world.later(self.dice.uniform(0.0, 0.002), self.get, key, node, after)

    # --- everything else a client may ask ---

    def _look(self, key: str) -> None:
        """Ask what spans keys or changes none: these must be answered, and disturb nothing."""
        dice, name = self.dice, key.encode()
        looks: list[Event] = [
            ClientExplain(None, BUCKET, name),
            ClientScan(None, BUCKET, dice.randrange(1 << 64), 5),
            ClientCount(None, BUCKET),
            # A harmless property: what matters is that the history of changes travels.
            ClientBucketSet(None, BUCKET, {"siblings_warn": str(dice.randint(20, 30))}),
            ClientHints(None),
            ClientRepair(None),
        ]
        event = dice.choice(looks)

        def done(status: Status, result: Result | None) -> None:
            self.workload.outcomes[f"{type(event).__name__.removeprefix('Client').lower()} {status}"] += 1
            self._pause()

        self.world.call(self._node(), event, done, timeout_s=CLIENT_TIMEOUT_S)

    # --- gets ---

    def get(self, key: str, node: NodeId, then: Callable[[bool], None]) -> None:
        """Read, note what came, remember the context."""
        world = self.world
        read = Read(self.number, key, node, world.now)
        attempt = Try(node, world.now)
        self.workload.tries.append(attempt)

        def done(status: Status, result: Result | None) -> None:
            read.completed_at = attempt.completed_at = world.now
            # A get changes nothing, so to its client any failure is just that.
            read.status = attempt.status = Status.OK if isinstance(result, Found) else status
            if isinstance(result, Failure):
                read.code, attempt.code, attempt.text = result.code, result.code, result.text
            if isinstance(result, Found):
                self._note_found(read, result)
            world.observer.key_history(key).reads.append(read)
            self.workload.outcomes[f"get {read.status}"] += 1
            then(read.status is Status.OK)

        world.call(node, ClientGet(None, BUCKET, key.encode()), done, timeout_s=CLIENT_TIMEOUT_S)

    def _note_found(self, read: Read, found: Found) -> None:
        record = found.record
        read.wall_ms = true_wall_ms(self.world.now)
        shown = [parse_value(v.value) for v in versions.siblings(record, read.wall_ms) if v.value is not None]
        read.dots = tuple(v.dot for v in record.versions)
        read.shown = tuple(write for write, _ in shown)
        elements = 0
        for _, bits in shown:
            elements |= bits
        if len(shown) > 1:
            self.world.marks["siblings"] += 1
        self.sessions[read.key] = Session(record.clock, record.cloud, read.dots, found.coordinator, elements)

    # --- writes ---

    def _write(self, key: str, kind: str, *, links: int = 0) -> None:
        dice, world = self.dice, self.world
        session = self.sessions.get(key, Session())
        number = self.workload.new_id()
        elements = session.elements | 1 << number if self.workload.mix is SETS else 0
        delete = kind in {"delete", "blind delete"}
        blind = kind in {"blind", "blind delete"}
        beside = kind in {"beside", "expiring", "chain"} and dice.random() < 0.5
        if kind == "chain":
            links = dice.randint(1, 3)
        write = Write(
            number,
            self.number,
            key,
            None if delete else value_bytes(number, elements),
            request_id_bytes(number) if delete or dice.random() < 0.9 else b"",
            expires_at_ms=true_wall_ms(world.now) + dice.randint(500, 20_000) if kind == "expiring" else 0,
            invoked_at=world.now,
        )
        dots: tuple[Dot, ...] = ()
        if blind:
            write.read = None
        elif beside:
            write.context = {}
        else:
            write.context, dots, write.read = session.clock, session.dots, session.read
        world.observer.key_history(key).writes[number] = write
        put = PutRequest(
            BUCKET, key.encode(), write.value, write.context, dots=dots,
            expires_at_ms=write.expires_at_ms, request_id=write.request_id,
            coordinator="" if kind == "link" else session.coordinator,
        )  # fmt: skip
        Writing(self, write, put, links).start(dice.choice(world.plan.nodes) if kind == "link" else self._node())

    def wrote(self, write: Write, stored: Stored | None, elements: int, links: int) -> None:
        """A write has ended for its client, which makes more at once if it is in a chain of them."""
        if stored is not None:
            # The context after a put: this write and what it had read, no sibling that the client never saw, nor what another
            # try of this write has left elsewhere.
            read = (write.read or ()) + tuple(dot for dot in write.dots if covered_by(stored, dot))
            known = self.sessions.get(write.key)
            if known is None or links or self.dice.random() < 0.8:
                session = Session(stored.clock, stored.dots, read, stored.coordinator, elements)
                self.sessions[write.key] = session
        if links and stored is not None and not self.workload.stopped:
            self._write(write.key, "link", links=links - 1)
        else:
            self._pause()


class Writing:
    """A write with its tries."""

    def __init__(self, process: Process, write: Write, put: PutRequest, links: int) -> None:
        self.process = process
        self.dice = process.dice
        self.write = write
        self.put = put
        self.links = links
        self.open = 0
        self.ended = False

    def start(self, node: NodeId) -> None:
        """Send it; perhaps twice at once, perhaps again much later."""
        process, dice = self.process, self.dice
        self._try(node)
        if self.write.request_id:
            if dice.random() < 0.03:
                process.world.later(dice.uniform(0.0, 0.05), self._again)
            if dice.random() < 0.02:
                process.world.later(dice.uniform(1.0, 8.0), self._again)

    def _again(self) -> None:
        if not self.process.workload.stopped:
            self.process.world.marks["client.sent_again"] += 1
            self._try(self.dice.choice(self.process.world.plan.nodes))

    def _try(self, node: NodeId) -> None:
        world = self.process.world
        attempt = Try(node, world.now, write=True)
        self.write.tries.append(attempt)
        self.process.workload.tries.append(attempt)
        self.open += 1

        def done(status: Status, result: Result | None) -> None:
            self._tried(attempt, status, result)

        world.call(node, ClientPut(None, self.put), done, timeout_s=CLIENT_TIMEOUT_S, write=self.write)

    def _tried(self, attempt: Try, status: Status, result: Result | None) -> None:
        process, write = self.process, self.write
        self.open -= 1
        attempt.completed_at, attempt.status = process.world.now, status
        if isinstance(result, Failure):
            attempt.code, attempt.text = result.code, result.text
        process.workload.outcomes[f"{'delete' if write.value is None else 'put'} {status}"] += 1
        if isinstance(result, Stored):
            if write.status is not Status.OK:
                write.status, write.completed_at = Status.OK, process.world.now
            self._check_context(result)
            self._end(result)
        else:
            if write.status is not Status.OK and not self.open:
                write.completed_at = process.world.now
            retry = write.request_id and not self.ended and len(write.tries) < TRIES_MAX
            if retry and not self.open and self.dice.random() < 0.8:
                process.world.marks["client.retried"] += 1
                node = attempt.node if self.dice.random() < 0.4 else self.dice.choice(process.world.plan.nodes)
                process.world.later(self.dice.uniform(0.01, 1.0), self._try, node)
            elif not self.open:
                self._end(None)
        if write.status is not Status.OK:
            rejected = all(t.status is Status.REJECTED for t in write.tries)
            write.status = Status.REJECTED if rejected else Status.UNKNOWN

    def _check_context(self, stored: Stored) -> None:
        """Monotonic writes, and writes follow reads: whoever passes the context on supersedes this write and all that it read.
        A dot beside the clock stands for its past, too: who honours it has the write, and so what that superseded."""
        write, world = self.write, self.process.world
        if not any(covered_by(stored, dot) for dot in write.dots):
            world.violate("C3", write.key, f"the context after put #{write.id} does not cover it")
        missing = [dot_text(dot) for dot in write.read or () if not covered_by(stored, dot)]
        beside = any(dot in stored.dots for dot in write.dots)
        if missing and not beside and world.plan.reconcile == "siblings":  # else readings decide, not contexts
            text = f"the context after put #{write.id} does not cover what it had read: {' '.join(missing)}"
            world.violate("C3", write.key, text)

    def _end(self, stored: Stored | None) -> None:
        if not self.ended:
            self.ended = True
            elements = parse_value(self.write.value)[1] if self.write.value is not None else 0
            self.process.wrote(self.write, stored, elements, self.links)
