"""One client's connection: commands in, replies out, in order.

    chunk -> Parser -> start() each command -> reply at once ----------------> out --- one write per loop turn --> socket
                          |    \\-> a slot in ``pending`` until the node answers -/
                          \\-> ``waiting``, if an earlier command must finish first

Commands of one connection run side by side as long as nobody could tell from their replies. Invariants:
1. Replies leave in the order of their commands. ``pending`` holds made replies and unfinished slots in that order; out of its
   front whatever is finished moves to ``out``.
2. A command starts only if no earlier unfinished one writes a key that it touches, or touches a key that it writes: a ``GET``
   after a ``SET`` in one pipeline sees it. Reads of the same key do not wait for each other.
3. Commands start in order: once one waits, all later ones wait behind it.
4. While the client does not take its replies (or too much waits), nothing more is read from it and nothing more is started.

**A full node** (``Gateway.crowd``) answers BUSY here, before anything is spent on the request. But a client that sends a pipeline
waits for its turn: on a crowded node each connection has one command under way, and the next one waits behind it, for a quarter
of a second at most; so a bulk load is slowed down, not refused. A command that has waited at the door for longer than a request
may take is refused on any node: its client has given up. Commands without keys are never refused: a lost SELECT would send writes
to another bucket.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections import deque
from typing import TYPE_CHECKING, cast

from cartwheel.core.types import Crowd
from cartwheel.runtime.resp import reply
from cartwheel.runtime.resp.parser import Command as Parsed
from cartwheel.runtime.resp.parser import Parser, Problem
from cartwheel.runtime.resp.registry import LATER, TABLE, WAIT, Args, Command, find
from cartwheel.runtime.resp.reply import CommandError
from cartwheel.runtime.resp.steps import Slot, Steps, StepsSlot

if TYPE_CHECKING:
    from cartwheel.runtime.resp.server import RespServer

WAITING_MAX = 1024
"""Commands waiting at the door from which on a connection is not read any further."""
OUTPUT_PAUSE_BYTES = 256 * 1024
"""Unsent output from which on no more of a connection's commands are started: a few socket buffers."""
CROWD_WAIT_S = 0.25
"""How long a command waits on a crowded node behind those of its own connection before it is refused. 50 connections with 16 in a
pipeline are served without a refusal by a node that does 3,200 a second."""
DATABASES = 16
"""Redis's default. Database ``n`` is the bucket named ``n``."""
NUMERIC = re.compile(rb"[+-]?[0-9]{1,20}").fullmatch
BUCKET_NAME = re.compile(rb"[A-Za-z0-9._-]{1,64}").fullmatch
SHOWN_ARGUMENTS_BYTES = 128
"""How much of an unknown command's arguments its error shows, as in Redis."""


class Connection(asyncio.Protocol):
    """A client."""

    __slots__ = (
        "address", "bucket", "closed", "closing", "dirty", "door", "draining", "exclusive", "gateway", "id", "last_command",
        "library", "library_version", "local_address", "made_at_ms", "multi_failed", "name", "nil", "out", "out_paused",
        "parser", "pending", "queue", "read_paused", "reads", "resp3", "seen_tick", "transport", "trusted", "under_way",
        "unsent_before", "waited_s", "waiting", "writes",
    )  # fmt: skip

    def __init__(self, door: RespServer) -> None:
        self.door = door
        self.gateway = door.gateway
        self.id = 0
        self.transport: asyncio.Transport = cast("asyncio.Transport", None)
        self.parser = Parser(door.limit)
        self.address = self.local_address = ""
        self.made_at_ms = 0
        self.name = self.library = self.library_version = b""
        self.last_command = "NULL"
        self.trusted = not self.gateway.settings.password
        self.parser.trusted = self.trusted
        self.bucket = "0"
        self.resp3 = False
        self.nil = reply.NIL2
        self.queue: list[Args] | None = None
        """The commands since MULTI."""
        self.multi_failed = False
        self.out: list[bytes] = []
        self.pending: deque[bytes | Slot] = deque()
        self.waiting: deque[tuple[float, Parsed]] = deque()
        """Commands, with the time at which they came."""
        self.waited_s = 0.0
        """How long the command that is being started has waited."""
        self.reads: dict[bytes, int] = {}
        """Keys that unfinished commands read, with how many."""
        self.writes: set[bytes] = set()
        """Keys that an unfinished command writes (never two: the second waits)."""
        self.under_way = 0
        self.exclusive = False
        """A barrier is under way."""
        self.dirty = False
        """Its output will be flushed at the end of this turn."""
        self.draining = False
        self.closing = False
        """To be closed when the replies so far are sent."""
        self.closed = False
        self.read_paused = self.out_paused = False
        self.seen_tick = 0
        self.unsent_before = 0

    # --- the transport's side ---

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)
        self.transport.set_write_buffer_limits(high=OUTPUT_PAUSE_BYTES)
        self.address = _address(transport.get_extra_info("peername"))
        self.local_address = _address(transport.get_extra_info("sockname"))
        self.made_at_ms = self.gateway.wall_ms()
        self.door.opened(self)

    def data_received(self, data: bytes) -> None:
        if self.closing:
            return
        door = self.door
        self.seen_tick = door.tick
        door.bytes_in += len(data)
        commands = self.parser.feed(data)
        waiting = self.waiting
        self.dirty = True
        if waiting:
            self._put_last(commands)
        else:
            most = door.settings.requests_max
            for index, parsed in enumerate(commands):
                if waiting or self.under_way >= most or self.out_paused or not self.start(parsed):
                    self._put_last(commands[index:])
                    break
        if waiting:
            self.drain()
            if len(waiting) > WAITING_MAX:
                self.pause_reading()
        self.dirty = False
        if self.out:
            self.flush()

    def eof_received(self) -> bool:
        """The client sends no more, but may still read: ``printf ... | nc`` gets its replies."""
        self.closing = True
        if self.pending or self.waiting:
            return True
        self.flush()
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self.closed = self.closing = True
        self.waiting.clear()
        self.pending.clear()
        self.out.clear()
        self.door.lost(self)

    def pause_writing(self) -> None:
        self.out_paused = True
        self.pause_reading()

    def resume_writing(self) -> None:
        self.out_paused = False
        self.drain()
        self._maybe_resume_reading()

    def pause_reading(self) -> None:
        """Take no more commands for now."""
        if not self.read_paused and not self.closing and not self.transport.is_closing():
            self.read_paused = True
            self.transport.pause_reading()

    def _maybe_resume_reading(self) -> None:
        if self.closing or self.door.closes or self.transport.is_closing():
            return
        if self.read_paused and not self.out_paused and len(self.waiting) <= WAITING_MAX // 2:
            self.read_paused = False
            if not self.transport.is_closing():
                self.transport.resume_reading()

    # --- starting commands ---

    def _put_last(self, commands: list[Parsed]) -> None:
        now_s = time.monotonic()
        self.waiting.extend([(now_s, parsed) for parsed in commands])

    def put_first(self, commands: list[Args]) -> None:
        """These come next, before all that waits."""
        now_s = time.monotonic()
        self.waiting.extendleft([(now_s, args) for args in reversed(commands)])

    def start(self, parsed: Parsed) -> bool:
        """Start a command. False: an earlier one must finish first, nothing was done."""
        if parsed.__class__ is not list:
            return self._answer_problem(cast("Problem", parsed))
        args = parsed
        command = TABLE.get(args[0]) or find(args[0])
        if command is None or not self.trusted or self.queue is not None or self.exclusive or not (
            command.low <= len(args) <= command.high
        ):  # fmt: skip
            if self.exclusive:
                return False
            return self._start_checked(args, command)
        return self._run(command, args)

    def _run(self, command: Command, args: Args) -> bool:
        if command.subcommands or command.reason:
            try:
                command = self.choose(command, args)
            except CommandError as refused:
                self.answer(reply.error(str(refused)))
                return True
        if command.barrier and self.under_way:
            return False
        if command.keyed and (self.waited_s or self.gateway.crowd()):
            verdict = self._admit()
            if verdict is not None:
                return verdict
        self.last_command = command.name
        self.door.commands += 1
        if command.steps:
            return self.start_steps(
                command.run(self, args), command.keys.of(args), write=command.write, barrier=command.barrier
            )
        try:
            made = command.run(self, args)
        except CommandError as refused:
            made = reply.error(str(refused))
        if made is LATER:
            return True
        if made is WAIT:
            self.door.commands -= 1
            return False
        self.answer(made)
        return True

    def _admit(self) -> bool | None:
        """Whether the command must wait (False) or was refused (True); None: it may begin."""
        gateway = self.gateway
        crowd = gateway.crowd()
        if crowd and self.under_way:
            if self.waited_s < CROWD_WAIT_S:
                return False
        elif crowd is not Crowd.FULL and self.waited_s <= gateway.config.request_timeout_s:
            return None
        gateway.count_busy()
        self.answer(reply.BUSY)
        return True

    def start_steps(self, steps: Steps, keys: Args, *, write: bool, barrier: bool = False) -> bool:
        """Start a command that a generator serves. False: a key is taken, nothing was done."""
        reads, writes = self.reads, self.writes
        if write:
            for key in keys:
                if key in writes or key in reads:
                    return False
            writes.update(keys)
        else:
            if writes and not writes.isdisjoint(keys):
                return False
            for key in keys:
                reads[key] = reads.get(key, 0) + 1
        self.exclusive = barrier
        slot = StepsSlot(self, steps, keys, write=write, barrier=barrier)
        self.under_way += 1
        self.pending.append(slot)
        slot.resolve(None)
        return True

    def _start_checked(self, args: Args, command: Command | None) -> bool:
        """Start a command that may not be allowed as it stands: unknown, miswritten, before AUTH, or after MULTI."""
        try:
            if command is None:
                raise CommandError(unknown_command(args))
            command = self.choose(command, args)
            if not self.trusted and not command.untrusted:
                raise CommandError("NOAUTH Authentication required.")
        except CommandError as refused:
            self.multi_failed = True
            self.answer(reply.error(str(refused)))
            return True
        if self.queue is not None and not command.in_multi:
            self.queue.append(args)
            self.answer(reply.QUEUED)
            return True
        return self._run(command, args)

    def choose(self, command: Command, args: Args) -> Command:
        """The subcommand, if there are any; checks the arity.

        Raises:
            CommandError: it is unknown, refused, or has too few or too many arguments.
        """
        if command.reason:
            raise CommandError(f"ERR {command.reason}")
        if command.subcommands and len(args) > 1:
            chosen = command.subcommands.get(args[1].decode("latin-1").upper())
            if chosen is None:
                shown = args[1][:SHOWN_ARGUMENTS_BYTES].decode("utf-8", "replace")
                raise CommandError(f"ERR unknown subcommand '{shown}'. Try {command.name} HELP.")
            command = chosen
            if command.reason:
                raise CommandError(f"ERR {command.reason}")
        if not command.low <= len(args) <= command.high:
            raise CommandError(f"ERR wrong number of arguments for '{command.name.lower()}' command")
        return command

    def _answer_problem(self, problem: Problem) -> bool:
        if self.queue is not None:
            self.multi_failed = True
        if problem.fatal:
            self.closing = True
        self.answer(reply.error(problem.text))
        return True

    # --- finishing them ---

    def answer(self, made: bytes) -> None:
        """A command is answered at once."""
        if self.pending:
            self.pending.append(made)
        else:
            self.out.append(made)

    def release(self, slot: StepsSlot) -> None:
        """The keys of a finished slot are free again."""
        if slot.barrier:
            self.exclusive = False
        if slot.write:
            self.writes.difference_update(slot.keys)
            return
        reads = self.reads
        for key in slot.keys:
            count = reads[key]
            if count == 1:
                del reads[key]
            else:
                reads[key] = count - 1

    def finished(self) -> None:
        """A slot has its reply: send what is in order, start what waited."""
        self.under_way -= 1
        if self.closed:
            return
        pending, out = self.pending, self.out
        while pending:
            head = pending[0]
            if head.__class__ is bytes:
                out.append(head)
            elif head.reply is not None:  # type: ignore[union-attr]
                out.append(head.reply)  # type: ignore[union-attr]
            else:
                break
            pending.popleft()
        if out and not self.dirty:
            self.dirty = True
            self.door.flush_later(self)
        if self.waiting and not self.draining:
            self.drain()
            if self.read_paused:
                self._maybe_resume_reading()

    def drain(self) -> None:
        """Start what waited, as far as it goes."""
        if self.draining or self.closed:
            return
        self.draining = True
        waiting, most = self.waiting, self.door.settings.requests_max
        now_s = time.monotonic() if waiting else 0.0
        while waiting and self.under_way < most and not self.out_paused:
            since_s, parsed = waiting.popleft()
            self.waited_s = now_s - since_s
            if not self.start(parsed):
                waiting.appendleft((since_s, parsed))
                break
        self.waited_s = 0.0
        self.draining = False
        if self.out and not self.dirty:
            self.dirty = True
            self.door.flush_later(self)

    def flush(self) -> None:
        """Write all that is due, at once."""
        self.dirty = False
        out = self.out
        if self.closed or self.transport.is_closing():  # uvloop raises on a transport that is closed already
            out.clear()
            return
        if out:
            data = out[0] if len(out) == 1 else b"".join(out)
            out.clear()
            self.door.bytes_out += len(data)
            self.transport.write(data)
        if self.closing and not self.pending and not self.waiting:
            self.transport.close()

    @property
    def unsent(self) -> int:
        """Bytes of replies that the client has not taken yet."""
        return 0 if self.transport.is_closing() else self.transport.get_write_buffer_size()

    def kill(self) -> None:
        """Close at once: unsent replies are lost."""
        self.closing = self.closed = True
        self.waiting.clear()
        self.transport.abort()

    def set_protocol(self, version: int) -> None:
        """Speak RESP 2 or 3 from here on."""
        self.resp3 = version == 3
        self.nil = reply.nil(self.resp3)

    def bucket_named(self, name: bytes) -> str:
        """The bucket that SELECT and the like mean: a database number, or a name.

        Raises:
            CommandError: a number out of range, or no name for a bucket.
        """
        if NUMERIC(name):
            if name.decode() != str(int(name)):
                raise CommandError(reply.NOT_AN_INTEGER)
            if not 0 <= int(name) < DATABASES:
                raise CommandError("ERR DB index is out of range")
            return name.decode()
        if not BUCKET_NAME(name):
            raise CommandError(
                "ERR invalid DB index: neither a number nor a bucket's name (1 to 64 of A-Z a-z 0-9 . _ -)"
            )
        return name.decode()


def _address(name: object) -> str:
    """A socket's address as Redis shows it."""
    if isinstance(name, tuple) and len(name) >= 2:
        host, port = name[0], name[1]
        return f"[{host}]:{port}" if ":" in str(host) else f"{host}:{port}"
    return f"{name or ''}:0"


def unknown_command(args: Args) -> str:
    """Redis's own words for a command that it does not have either. It shows strings as C does, up to a NUL."""
    shown = ""
    for arg in args[1:]:
        room = SHOWN_ARGUMENTS_BYTES - len(shown)
        if room <= 0:
            break
        shown += f"'{_c_string(arg[:room])}' "
    return f"ERR unknown command '{_c_string(args[0][:SHOWN_ARGUMENTS_BYTES])}', with args beginning with: {shown}"


def _c_string(raw: bytes) -> str:
    return raw.partition(b"\0")[0].decode("utf-8", "replace")
