"""Requests under way: each holds its reply's place in its connection's order until the node has answered.

A **slot** is what the node gets as an event's ``client``. ``GetSlot`` and ``PutSlot`` serve plain GET and SET in one step.
Everything else is a generator that yields an event (or a list of them, to run side by side) and receives the result (or the
list of results); ``StepsSlot`` drives it. No tasks, no futures: a step costs one generator resume.

``resolve`` may come inside ``submit`` (a node may know the answer at once), so drivers loop instead of recursing.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import TYPE_CHECKING, Any, Final

from cartwheel.core.messages import Found, Result, Stored
from cartwheel.core.versions import Version, newest, siblings
from cartwheel.runtime.resp import reply
from cartwheel.runtime.resp.gateway import ClientEvent
from cartwheel.runtime.resp.reply import CommandError

if TYPE_CHECKING:
    from cartwheel.core.versions import Record
    from cartwheel.runtime.resp.protocol import Connection

Steps = Generator[Any, Any, bytes]
"""Yields ``ClientEvent | list[ClientEvent]``, is sent ``Result | list[Result]``, returns the reply."""

FAN_OUT_MAX = 64
"""Events of one command under way at once: keeps an MGET of 10 000 keys from filling the node's queue of requests."""

_NOTHING: Final = object()


def shown(connection: Connection, record: Record) -> Version | None:
    """The version that a Redis client sees of a key: the newest live one, or None.

    Raises:
        CommandError: there are several, and the bucket wants its clients to know.
    """
    versions = record.versions
    wall_ms = connection.gateway.wall_ms()
    if len(versions) == 1:
        version = versions[0]
        return version if version.live(wall_ms) else None
    live = siblings(record, wall_ms)
    if not live:
        return None
    if len(live) > 1:
        if connection.gateway.bucket_props(connection.bucket).resp_siblings == "error":
            raise CommandError(f"SIBLINGS key has {len(live)} concurrent values, read them with CW.GET")
        connection.door.siblings_hidden += 1
    return max(live, key=lambda version: (version.counter, version.actor))


class GetSlot:
    """A plain GET under way."""

    __slots__ = ("connection", "key", "reply")

    def __init__(self, connection: Connection, key: bytes) -> None:
        self.connection = connection
        self.key = key
        self.reply: bytes | None = None

    def resolve(self, result: Result) -> None:
        """Make the reply."""
        connection = self.connection
        if result.__class__ is Found:
            try:
                version = shown(connection, result.record)
            except CommandError as siblings_hidden:
                self.reply = reply.error(str(siblings_hidden))
            else:
                if version is None:
                    self.reply = connection.nil
                else:
                    value = version.value
                    self.reply = b"$%d\r\n%b\r\n" % (len(value), value)  # type: ignore[str-format,arg-type]  # live
        else:
            self.reply = reply.failure(result)  # type: ignore[arg-type]  # a get ends in Found or Failure
        reads, key = connection.reads, self.key
        count = reads[key]
        if count == 1:
            del reads[key]
        else:
            reads[key] = count - 1
        connection.finished()


class PutSlot:
    """A plain SET under way."""

    __slots__ = ("connection", "key", "reply")

    def __init__(self, connection: Connection, key: bytes) -> None:
        self.connection = connection
        self.key = key
        self.reply: bytes | None = None

    def resolve(self, result: Result) -> None:
        """Make the reply."""
        self.reply = reply.OK if result.__class__ is Stored else reply.failure(result)  # type: ignore[arg-type]
        connection = self.connection
        connection.writes.discard(self.key)
        connection.finished()


class _Part:
    """One of the events that run side by side."""

    __slots__ = ("index", "slot")

    def __init__(self, slot: StepsSlot, index: int) -> None:
        self.slot = slot
        self.index = index

    def resolve(self, result: Result) -> None:
        """Hand the result over, with its place."""
        self.slot.part(self.index, result)


class StepsSlot:
    """A command under way that a generator serves."""

    __slots__ = (
        "_advancing", "_answer", "_events", "_flying", "_generator", "_missing", "_next", "_pumping", "_results",
        "barrier", "connection", "keys", "reply", "write",
    )  # fmt: skip

    def __init__(
        self, connection: Connection, generator: Steps, keys: list[bytes], *, write: bool, barrier: bool
    ) -> None:
        self.connection = connection
        self.keys = keys
        self.write = write
        self.barrier = barrier
        self.reply: bytes | None = None
        self._generator = generator
        self._advancing = False
        self._answer: object = _NOTHING
        self._events: list[ClientEvent] = []
        self._results: list[Result | None] = []
        self._next = self._flying = self._missing = 0
        self._pumping = False

    def resolve(self, result: object) -> None:
        """Take one step after another as long as answers come at once."""
        if self._advancing:
            self._answer = result
            return
        self._advancing = True
        answer = result
        while True:
            self._answer = _NOTHING
            try:
                asked = self._generator.send(answer)
            except StopIteration as stop:
                return self._finish(stop.value)
            except CommandError as refused:
                return self._finish(reply.error(str(refused)))
            if asked.__class__ is list:
                self._fan_out(asked)
            else:
                asked.client = self
                self.connection.gateway.submit(asked)
            if self._answer is _NOTHING:
                self._advancing = False
                return None
            answer = self._answer

    def _finish(self, made: bytes) -> None:
        self.reply = made
        self.connection.release(self)
        self.connection.finished()

    def _fan_out(self, events: list[ClientEvent]) -> None:
        self._events = events
        self._results = [None] * len(events)
        self._next = self._flying = 0
        self._missing = len(events)
        if events:
            self._pump()
        else:
            self._answer = []

    def _pump(self) -> None:
        if self._pumping:
            return
        self._pumping = True
        events, submit = self._events, self.connection.gateway.submit
        while self._next < len(events) and self._flying < FAN_OUT_MAX:
            event = events[self._next]
            event.client = _Part(self, self._next)
            self._next += 1
            self._flying += 1
            submit(event)
        self._pumping = False

    def part(self, index: int, result: Result) -> None:
        """One of the events is answered."""
        self._results[index] = result
        self._flying -= 1
        self._missing -= 1
        if self._missing:
            self._pump()
        else:
            self.resolve(self._results)


Slot = GetSlot | PutSlot | StepsSlot

__all__ = ["FAN_OUT_MAX", "GetSlot", "PutSlot", "Slot", "Steps", "StepsSlot", "newest", "shown"]
