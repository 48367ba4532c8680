"""Read commands from a stream of bytes: fast where it is plain, strict where it is not, and never buffering too much.

    chunk --> hiredis, when a chunk starts a command:    all of its commands at once, a fraction of a microsecond each
        \\--> the strict parser, for all else:            the unfinished command at the end of a chunk, inline commands, errors

hiredis buffers whatever it is fed and says nothing of lengths, so it gets only whole chunks (at most a socket read each), and
what it could not finish is parsed again, header by header, by the strict parser. That one sees each declared length before
the payload comes, so a value over the limit is never buffered: it is skipped as it streams in, and the connection stays usable.

Both must cut the stream at the same places. hiredis accepts lengths only in their one canonical form, so the bytes that a
command took follow from its arguments (``_TAKEN``); if the sum is not what was fed, the chunk goes through the strict parser.
(A client could make up for a reply type of one length, which hiredis understands and Redis would refuse, with one of
another: it is then served better than it deserves, and harms no one.)

Invariants:
1. Any cutting of a stream into chunks gives the same commands and problems.
2. Garbage gives a fatal ``Problem``, never an exception; after it the parser takes nothing more.
3. Buffered at any time: less than ``bulk_max`` per argument, ``command_bytes_max`` per command, and one chunk.
Cost: linear in the bytes fed; the strict parser keeps unfinished payloads in one growing buffer.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Final

import hiredis

Limit = Callable[[list[bytes], int, int], str | None]
"""(arguments so far, bytes of all with the next, length declared for the next) -> why that is too long, or None."""

LINE_BYTES_MAX = 64 * 1024
"""Redis's PROTO_INLINE_MAX_SIZE: an inline command, or a header line."""
ARGUMENTS_MAX = 1024 * 1024
BULK_BYTES_MAX = 512 * 1024 * 1024
"""Redis's proto-max-bulk-len. A length above it is no honest mistake: the connection is closed."""
UNTRUSTED_ARGUMENTS_MAX = 10
UNTRUSTED_BULK_BYTES_MAX = 16 * 1024
"""Redis's limits for a connection that has not authenticated."""

_MISSING: Final = object()
_HEAD = [4 + len(str(n)) - 1 for n in range(256)]
"""Bytes of ``*n CR LF``."""
_TAKEN = [n + len(str(n)) + 5 for n in range(4096)]
"""Bytes of ``$n CR LF payload CR LF``."""
_HUGE_ARRAY = re.compile(rb"\*[0-9]{6}").search
"""hiredis makes room for as many elements as a header declares, at once: it must not see a large one."""
_NUMBER = re.compile(rb"0|-?[1-9][0-9]{0,17}").fullmatch

_ESCAPES = {b"n": b"\n", b"r": b"\r", b"t": b"\t", b"b": b"\b", b"a": b"\a"}
_SPACE = b" \n\r\t\v\f\0"


class Problem:
    """In a command's place: what is wrong with it."""

    __slots__ = ("fatal", "text")

    def __init__(self, text: str, *, fatal: bool) -> None:
        self.text = text
        self.fatal = fatal
        """The stream is not understood from here on: answer, then close."""

    def __repr__(self) -> str:
        return f"Problem({self.text!r}, fatal={self.fatal})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Problem) and (self.text, self.fatal) == (other.text, other.fatal)

    def __hash__(self) -> int:
        return hash((self.text, self.fatal))


class _Malformed(Exception):
    """The stream breaks the protocol."""


Command = list[bytes] | Problem


def _no_limit(args: list[bytes], count: int, length: int) -> str | None:
    return None


class Parser:
    """One connection's stream of commands."""

    __slots__ = (
        "_args",
        "_buffer",
        "_bulk",
        "_bytes",
        "_left",
        "_limit",
        "_problem",
        "_reader",
        "_skip",
        "dead",
        "trusted",
    )

    def __init__(self, limit: Limit = _no_limit) -> None:
        self.trusted = True
        """False until authentication, where that is needed: then smaller limits hold."""
        self.dead = False
        """After a fatal problem: nothing more is taken."""
        self._limit = limit
        self._reader = hiredis.Reader(notEnoughData=_MISSING)
        self._buffer = bytearray()
        self._args: list[bytes] = []
        self._bytes = 0
        self._left = 0
        """Arguments still to come of the command under way; 0: between commands."""
        self._bulk = -1
        """Length of the payload under way; -1: a header comes next."""
        self._skip = 0
        """Bytes of a refused payload still to be thrown away."""
        self._problem: Problem | None = None
        """Why the command under way is refused."""

    def feed(self, data: bytes) -> list[Command]:
        """Take a chunk and return the commands that it completes, in order."""
        commands: list[Command] = []
        if self.dead or not data:
            return commands
        if self._left or self._buffer:
            data = self._strict(data, commands, one=True)
            if not data or self.dead:
                return commands
        taken = self._quick(data, commands) if data[0] == 42 and self.trusted else 0
        if taken < len(data):
            self._strict(data[taken:] if taken else data, commands, one=False)
        return commands

    @property
    def buffered(self) -> int:
        """Bytes kept of an unfinished command."""
        return len(self._buffer) + sum(map(len, self._args))

    def _quick(self, data: bytes, commands: list[Command]) -> int:
        """Let hiredis parse a chunk; the bytes that whole commands took. 0: nothing is done, the strict parser must see it."""
        if _HUGE_ARRAY(data):
            return 0
        total = 0
        quick: list[Command] = []
        try:
            self._reader.feed(data)
            gets = self._reader.gets
            args = gets()
            while args is not _MISSING:
                if args.__class__ is not list:
                    raise TypeError
                total += _HEAD[len(args)]
                for arg in args:
                    if arg.__class__ is not bytes:
                        raise TypeError
                    size = len(arg)
                    total += _TAKEN[size] if size < 4096 else size + len(str(size)) + 5
                if args:
                    quick.append(args)
                args = gets()
        except (hiredis.HiredisError, TypeError, IndexError):
            total = -1
        whole = len(data)
        if total != whole:
            self._reader = hiredis.Reader(notEnoughData=_MISSING)
            if not 0 <= total < whole or data[total] != 42:
                return 0
        commands += quick
        return total

    def _strict(self, data: bytes, commands: list[Command], *, one: bool) -> bytes:
        """Parse strictly. With ``one``, stop after the command under way and return what follows it."""
        buffer = self._buffer
        buffer += data
        at = 0
        try:
            while True:
                before = at
                at = self._step(at, commands)
                if at < 0:
                    at = before
                    break
                if one and not self._left and commands:
                    rest = bytes(buffer[at:])
                    buffer.clear()
                    return rest
        except _Malformed as malformed:
            commands.append(Problem(f"ERR Protocol error: {malformed}", fatal=True))
            self.dead = True
            buffer.clear()
            self._args = []
            return b""
        del buffer[:at]
        return b""

    def _step(self, at: int, commands: list[Command]) -> int:
        """Take one header, payload or inline command at ``at``; where the next begins, or -1: more bytes are needed."""
        if self._skip:
            found = min(self._skip, len(self._buffer) - at)
            if not found:
                return -1
            self._skip -= found
            if not self._skip:
                self._next_argument(None, commands)
            return at + found
        if self._bulk >= 0:
            end = at + self._bulk
            if len(self._buffer) < end + 2:
                return -1
            with memoryview(self._buffer) as view:
                value = bytes(view[at:end])
            self._bulk = -1
            self._next_argument(value, commands)
            return end + 2
        if self._left:
            return self._bulk_header(at, commands)
        if at == len(self._buffer):
            return -1
        if self._buffer[at] == 42:
            return self._array_header(at)
        return self._inline(at, commands)

    def _next_argument(self, value: bytes | None, commands: list[Command]) -> None:
        """An argument is complete (None: skipped); if it was the last, so is the command."""
        if value is not None:
            self._args.append(value)
        self._left -= 1
        if not self._left:
            commands.append(self._problem or self._args)
            self._args = []
            self._problem = None

    def _line(self, at: int, what: str) -> tuple[bytes, int]:
        """The header line after its first byte at ``at``, and where the next begins; (b"", -1): unfinished."""
        end = self._buffer.find(b"\r\n", at, at + LINE_BYTES_MAX + 2)
        if end < 0:
            if len(self._buffer) - at > LINE_BYTES_MAX:
                raise _Malformed(f"too big {what}")
            return b"", -1
        return bytes(self._buffer[at + 1 : end]), end + 2

    def _array_header(self, at: int) -> int:
        line, after = self._line(at, "mbulk count string")
        if after < 0:
            return -1
        count = int(line) if _NUMBER(line) else ARGUMENTS_MAX + 1
        if count > ARGUMENTS_MAX:
            raise _Malformed("invalid multibulk length")
        if not self.trusted and count > UNTRUSTED_ARGUMENTS_MAX:
            raise _Malformed("unauthenticated multibulk length")
        if count > 0:
            self._left = count
            self._bytes = 0
        return after

    def _bulk_header(self, at: int, commands: list[Command]) -> int:
        if at == len(self._buffer):
            return -1
        if self._buffer[at] != 36:
            shown = chr(self._buffer[at]) if 32 <= self._buffer[at] < 127 else " "
            raise _Malformed(f"expected '$', got '{shown}'")
        line, after = self._line(at, "bulk count string")
        if after < 0:
            return -1
        length = int(line) if _NUMBER(line) else -1
        if not 0 <= length <= BULK_BYTES_MAX:
            raise _Malformed("invalid bulk length")
        if not self.trusted and length > UNTRUSTED_BULK_BYTES_MAX:
            raise _Malformed("unauthenticated bulk length")
        self._bytes += length
        if self._problem is None:
            reason = self._limit(self._args, self._bytes, length)
            if reason is not None:
                self._problem = Problem(reason, fatal=False)
                self._args = []
        if self._problem is not None:
            self._skip = length + 2
        else:
            self._bulk = length
        return after

    def _inline(self, at: int, commands: list[Command]) -> int:
        end = self._buffer.find(b"\n", at, at + LINE_BYTES_MAX + 1)
        if end < 0:
            if len(self._buffer) - at > LINE_BYTES_MAX:
                raise _Malformed("too big inline request")
            return -1
        line = bytes(self._buffer[at:end]).removesuffix(b"\r")
        args = split_inline(line)
        if args is None:
            raise _Malformed("unbalanced quotes in request")
        if args:
            commands.append(args)
        return end + 1


def split_inline(line: bytes) -> list[bytes] | None:
    """Split a line into arguments: "quoted with \\n and \\x00" or 'quoted as it stands'. None: the quotes do not match.

    >>> split_inline(b'set "a b" \\'c\\'')
    [b'set', b'a b', b'c']
    """
    args: list[bytes] = []
    at, size = 0, len(line)
    while True:
        while at < size and line[at] in _SPACE:
            at += 1
        if at >= size:
            return args
        parsed = _one_argument(line, at)
        if parsed is None:
            return None
        arg, at = parsed
        args.append(arg)


def _one_argument(line: bytes, at: int) -> tuple[bytes, int] | None:
    """One argument from ``at`` on, and where it ends. A quote must be followed by a space or the end."""
    parts: list[bytes] = []
    quote = b""
    size = len(line)
    while at < size:
        char = line[at : at + 1]
        if not quote:
            if char[0] in _SPACE:
                break
            if char in b"\"'":
                quote = char
            else:
                parts.append(char)
        elif char == quote:
            if at + 1 < size and line[at + 1] not in _SPACE:
                return None
            return b"".join(parts), at + 1
        elif char == b"\\" and quote == b'"' and at + 1 < size:
            code = line[at + 2 : at + 4]
            if line[at + 1 : at + 2] == b"x" and len(code) == 2 and all(c in b"0123456789abcdefABCDEF" for c in code):
                parts.append(bytes((int(code, 16),)))
                at += 3
            else:
                following = line[at + 1 : at + 2]
                parts.append(_ESCAPES.get(following, following))
                at += 1
        elif char == b"\\" and line[at + 1 : at + 2] == b"'":
            parts.append(b"'")
            at += 1
        else:
            parts.append(char)
        at += 1
    return None if quote else (b"".join(parts), at)
