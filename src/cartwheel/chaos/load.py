"""The clients of a chaos run: they read and write a few keys, all the time, at a steady rate, and write down what they saw.

A client sends one request at a time to one node, on a connection of its own. When that fails it goes to another node; now and
then it moves without need, so that a node which has come back gets clients again. For each key it remembers the context it was
given last, by a get or by a put, and hands it back: so it is known which writes supersede which.

    registers   get; update: get, then put with its context; put or delete with the context it has, fresh or stale;
                blind put, beside everything
    sets        get; add: get, then put the union of the siblings and one element more

Most requests go to a few hot keys, where clients meet. Some go to cold ones, which take three writes and are then left alone: no
read will repair a replica that missed one, only the nodes themselves. Any key takes so many writes, then another takes its
place, which bounds what a judge must hold in memory. Every write is sent once: what a value shows is then one version of one
write.

The rate is shared: a request is due every ``1 / rate`` seconds, and the next client that is free takes it. So clients that wait
for a paused node do not slow down the others, nor hide that they wait: latency counts from the sending to the answer.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

import hiredis

from cartwheel.chaos.history import NO_CONTEXT, Kind, Op, Writer, parse_value, value_bytes
from cartwheel.client.resp import ReplyError, pack_command
from cartwheel.core import context
from cartwheel.core.errors import BadContext
from cartwheel.core.types import Dot, NodeId
from cartwheel.sim.faults import fork
from cartwheel.sim.history import Status

HOST = "127.0.0.1"
BUCKET = "0"
CLIENT_TIMEOUT_S = 3.0
"""More than a node's own 2 s, so that a node which lives answers in time."""
CONNECT_TIMEOUT_S = 1.0
RETRY_S = 0.05
BACKLOG_S = 0.25
"""What was not sent in time is made up for, but only so much of it: a stall is not followed by a burst."""
HOT, COLD, SETS = 64, 16, 8
WRITES_MAX = {"r": 300, "c": 3, "s": 200}
SHARES = {"r": 75, "c": 10, "s": 15}
"""Of a hundred requests so many go to each class of keys."""
VISIT_S = 0.1
"""Between two requests to a node that must serve nobody."""
MOVE_PROBABILITY = 0.005
READ_BYTES = 64 * 1024

_REGISTER_KINDS = {"get": 40, "update": 28, "put": 16, "blind": 5, "delete": 11}
_SET_KINDS = {"get": 30, "update": 70}


@dataclass(slots=True)
class Slot:
    """A place that one key after another takes."""

    name: str
    generation: int = 0
    writes: int = 0

    @property
    def is_set(self) -> bool:
        """Whether its keys hold sets."""
        return self.name[0] == "s"

    @property
    def key(self) -> str:
        """The key that stands here now."""
        return f"{self.name}.{self.generation}"

    def next_write(self) -> int:
        """Count a write: the number of it."""
        self.writes += 1
        return self.writes - 1

    def renew(self) -> bool:
        """Let the next key take its place, if this one has had its writes."""
        if self.writes < WRITES_MAX[self.name[0]]:
            return False
        self.generation += 1
        self.writes = 0
        return True


@dataclass(slots=True)
class Session:
    """What a client knows of a key."""

    key: str
    token: bytes
    seq: int
    """The operation that gave the context."""
    seen: context.Context
    """What the token says."""
    elements: int


@dataclass(slots=True)
class Tally:
    """What has been done so far, for the line that shows progress."""

    done: int = 0
    acked: int = 0
    failed: int = 0


@dataclass(slots=True)
class Load:
    """All clients. ``single_dots``: whether contexts with single dots in them may be sent: a lost disk defeats those (see
    ``cartwheel.sim.faults``, premise 3)."""

    ports: dict[NodeId, int]
    secret: bytes
    rate_per_s: float
    clients: int
    seed: int
    single_dots: bool
    writer: Writer
    now: Callable[[], float]
    tally: Tally = field(default_factory=Tally)
    slots: dict[str, list[Slot]] = field(default_factory=dict)
    """By class: hot registers, cold ones, sets."""
    keys: list[str] = field(default_factory=list)
    """All that were ever used."""
    stopping: bool = False
    _visitors: int = 0
    _seq: int = 0
    _write_id: int = 0
    _due: float = 0.0

    def __post_init__(self) -> None:
        sizes = {"r": HOT, "c": COLD, "s": SETS}
        self.slots = {name: [Slot(f"{name}{i}") for i in range(size)] for name, size in sizes.items()}
        self.keys = [slot.key for slots in self.slots.values() for slot in slots]

    async def run(self) -> None:
        """Load the cluster until ``stopping``."""
        self._due = self.now()
        async with asyncio.TaskGroup() as group:
            for number in range(self.clients):
                group.create_task(Client(self, number).run())

    def visit(self, label: str, port: int) -> Visitor:
        """One client more, at a node that must serve nobody."""
        self._visitors += 1
        return Visitor(self, self.clients + self._visitors, label, port)

    async def turn(self) -> None:
        """Wait until a request is due."""
        now = self.now()
        due = max(self._due, now - BACKLOG_S)
        self._due = due + 1.0 / self.rate_per_s
        await asyncio.sleep(max(0.0, due - now))

    def next_seq(self) -> int:
        """A number for an operation."""
        self._seq += 1
        return self._seq

    def next_write_id(self) -> int:
        """A number for a write."""
        self._write_id += 1
        return self._write_id

    def used(self, slot: Slot) -> None:
        """A write of this slot's key has begun."""
        if slot.renew():
            self.keys.append(slot.key)

    def ended(self, op: Op) -> None:
        """An operation is over."""
        if op.stranger:
            self.writer.write(op)
            return
        self.tally.done += 1
        self.tally.failed += op.status is not Status.OK
        self.tally.acked += op.status is Status.OK and op.kind is not Kind.GET
        self.writer.write(op)


class NoAnswer(Exception):
    """The connection broke, or the client has waited long enough."""


class Wire:
    """A connection to a node, for one request at a time."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._replies = hiredis.Reader(replyError=ReplyError.parse, protocolError=NoAnswer)

    @classmethod
    async def open(cls, port: int) -> Wire:
        """Connect. Raises OSError (TimeoutError is one)."""
        async with asyncio.timeout(CONNECT_TIMEOUT_S):
            return cls(*await asyncio.open_connection(HOST, port))

    @property
    def lost(self) -> bool:
        """Whether it has been closed at the other end: nothing can be sent."""
        return self._writer.transport.is_closing() or self._reader.at_eof()

    async def call(self, *args: bytes | str) -> object:
        """One request and its reply.

        Raises:
            ReplyError: the node says that it failed.
            NoAnswer: nobody knows.
        """
        try:
            async with asyncio.timeout(CLIENT_TIMEOUT_S):
                self._writer.write(pack_command(*args))
                while (reply := self._replies.gets()) is False:
                    data = await self._reader.read(READ_BYTES)
                    if not data:
                        raise NoAnswer("the node closed the connection")
                    self._replies.feed(data)
        except TimeoutError:
            raise NoAnswer(f"no answer within {CLIENT_TIMEOUT_S:g} s") from None
        except OSError as error:
            raise NoAnswer(str(error)) from None
        if isinstance(reply, ReplyError):
            raise reply
        return reply

    def close(self) -> None:
        """Reset it: what was asked of a paused node should not be kept open."""
        self._writer.transport.abort()


class Client:
    """One of them."""

    def __init__(self, load: Load, number: int) -> None:
        self.load = load
        self.number = number
        self.dice: random.Random = fork(load.seed, f"client {number}")
        self.sessions: dict[str, Session] = {}
        self.node: NodeId = self.dice.choice(sorted(load.ports))
        self._wire: Wire | None = None

    async def run(self) -> None:
        """One thing after another, until the load stops."""
        try:
            while not self.load.stopping:
                if self.dice.random() < MOVE_PROBABILITY or self.node not in self.load.ports:
                    self._leave()
                await self._next()
        finally:
            self._leave()

    def _leave(self) -> None:
        """Go to another node."""
        if self._wire is not None:
            self._wire.close()
        self._wire = None
        self.node = self.dice.choice([node for node in sorted(self.load.ports) if node != self.node])

    async def _connected(self) -> Wire | None:
        """A connection to some node; None if the load stops before there is one."""
        while not self.load.stopping:
            if self._wire is not None and not self._wire.lost:
                return self._wire
            if self._wire is not None:
                self._leave()
            try:
                self._wire = await Wire.open(self.load.ports[self.node])
            except (OSError, KeyError):  # KeyError: it is there no more
                self._leave()
                await asyncio.sleep(RETRY_S)
        return None

    async def _next(self) -> None:
        slot = self.dice.choice(self.load.slots[self.dice.choices(list(SHARES), list(SHARES.values()))[0]])
        kinds = _SET_KINDS if slot.is_set else _REGISTER_KINDS
        kind = self.dice.choices(list(kinds), list(kinds.values()))[0]
        session = self._session(slot)
        if kind == "blind":
            await self._put(slot, None)
        elif kind in {"get", "update"} or session is None:
            found = await self._get(slot)
            if found is not None and kind != "get":
                await self._write(slot, found, kind)
        else:
            await self._write(slot, session, kind)

    def _session(self, slot: Slot) -> Session | None:
        session = self.sessions.get(slot.name)
        return session if session is not None and session.key == slot.key else None

    async def _write(self, slot: Slot, session: Session, kind: str) -> None:
        if session.key != slot.key:  # the key has had its writes meanwhile
            return
        if kind == "delete":
            await self._delete(slot, session)
        else:
            await self._put(slot, session)

    async def _turn(self) -> None:
        await self.load.turn()

    # --- requests ---

    async def _get(self, slot: Slot) -> Session | None:
        key = slot.key
        op = self._op(Kind.GET, key)
        reply = await self._ask(op, lambda wire: wire.call("CW.GET", key))
        if not isinstance(reply, list):
            return None
        token, values = reply
        read = self._read_token(token, key)
        parsed = [parse_value(value) for value in values]
        op.ids = [write_id for write_id, _ in parsed]
        op.clock, op.cloud = read.clock, list(read.dots)
        elements = 0
        for _, bits in parsed:
            elements |= bits
        self.load.ended(op)
        session = self.sessions[slot.name] = Session(key, token, op.seq, read, elements)
        return session

    async def _put(self, slot: Slot, session: Session | None) -> None:
        key, number, write_id = slot.key, slot.next_write(), self.load.next_write_id()
        self.load.used(slot)
        elements = 0
        if slot.is_set:
            assert session is not None, "sets only grow from what was read"
            elements = session.elements | 1 << number
        op = self._op(Kind.ADD if slot.is_set else Kind.PUT, key, session)
        op.id = write_id
        op.element = number if slot.is_set else -1
        value = value_bytes(write_id, elements, self._padding())
        options = ("CONTEXT", session.token) if session is not None else ()
        reply = await self._ask(op, lambda wire: wire.call("CW.PUT", key, value, *options))
        self._wrote(slot, op, reply, session, elements)

    async def _delete(self, slot: Slot, session: Session) -> None:
        key = slot.key
        slot.next_write()
        self.load.used(slot)
        op = self._op(Kind.DELETE, key, session)
        op.id = self.load.next_write_id()
        reply = await self._ask(op, lambda wire: wire.call("CW.DEL", key, "CONTEXT", session.token))
        self._wrote(slot, op, reply, session, 0)

    def _padding(self) -> int:
        return self.dice.randrange(200) if self.dice.random() < 0.98 else 16 * 1024

    def _op(self, kind: Kind, key: str, session: Session | None = None) -> Op:
        return Op(
            seq=self.load.next_seq(), process=self.number, kind=kind, key=key, node="", at=0.0,
            ctx=NO_CONTEXT if session is None else session.seq,
        )  # fmt: skip

    async def _ask(self, op: Op, call: Callable[[Wire], Awaitable[object]]) -> object:
        """Send it when it is due, and note how it ends; None if it failed, and then it has been written down."""
        await self._turn()
        wire = await self._connected()
        if wire is None:
            return None
        op.node, op.at = self.node, self.load.now()
        try:
            reply = await call(wire)
            op.end, op.status = self.load.now(), Status.OK
            return reply
        except ReplyError as error:
            op.text = str(error)
            # A failure says so if the write may have been applied; every other is certain.
            op.status = Status.UNKNOWN if "unknown" in error.text else Status.REJECTED
        except NoAnswer as error:
            op.text = str(error)
        op.end = self.load.now()
        self.load.ended(op)
        self._leave()
        return None

    def _wrote(self, slot: Slot, op: Op, reply: object, session: Session | None, elements: int) -> None:
        """Note an acknowledged write, and its context for the next one."""
        if op.status is not Status.OK:
            return
        assert isinstance(reply, bytes), reply
        after = self._read_token(reply, op.key)
        op.dot = _own_dot(after, session.seen if session is not None else context.Context({}))
        self.load.ended(op)
        if self.load.single_dots or not after.dots:
            if slot.key == op.key and self.dice.random() < 0.8:
                self.sessions[slot.name] = Session(op.key, reply, op.seq, after, elements)

    def _read_token(self, token: bytes, key: str) -> context.Context:
        """What a context says: we hold the cluster's secret."""
        try:
            return context.decode_token(token, secret=self.load.secret, bucket=BUCKET, key=key.encode())
        except BadContext as error:
            raise AssertionError(f"a node gave a context that does not read: {error}") from error


class Visitor(Client):
    """A client of a process that must serve nobody: it stays there whatever happens, and does not count among the others."""

    def __init__(self, load: Load, number: int, label: str, port: int) -> None:
        super().__init__(load, number)
        self.node = label
        self.served: list[str] = []
        """Requests that were acknowledged."""
        self._port = port
        self._left = False

    async def run(self) -> None:
        """Blind puts and gets of hot keys, until it is told to leave."""
        while not (self._left or self.load.stopping):
            slot = self.dice.choice(self.load.slots["r"])
            if self.dice.random() < 0.7:
                await self._put(slot, None)
            else:
                await self._get(slot)
        self._leave()

    def leave(self) -> None:
        """Go, after the request that is under way."""
        self._left = True

    def _leave(self) -> None:
        if self._wire is not None:
            self._wire.close()
        self._wire = None

    async def _turn(self) -> None:
        await asyncio.sleep(VISIT_S)

    async def _connected(self) -> Wire | None:
        while not (self._left or self.load.stopping):
            if self._wire is not None and not self._wire.lost:
                return self._wire
            self._leave()
            try:
                self._wire = await Wire.open(self._port)
            except OSError:
                await asyncio.sleep(RETRY_S)
        return None

    def _op(self, kind: Kind, key: str, session: Session | None = None) -> Op:
        op = super()._op(kind, key, session)
        op.stranger = True
        return op

    async def _ask(self, op: Op, call: Callable[[Wire], Awaitable[object]]) -> object:
        reply = await super()._ask(op, call)
        if reply is not None:
            self.served.append(f"{op.kind} {op.key} at {op.at:.1f} s")
        return reply


def _own_dot(after: context.Context, sent: context.Context) -> Dot | None:
    """The version that a put made: what its context accounts for and the context sent did not. Of several the one with the
    latest reading, for a clock ticks above all that it has seen."""
    found = [dot for dot in (*after.clock.items(), *after.dots) if sent.clock.get(dot[0], -1) < dot[1]]
    return max((dot for dot in found if dot not in sent.dots), key=lambda dot: (dot[1], dot[0]), default=None)
