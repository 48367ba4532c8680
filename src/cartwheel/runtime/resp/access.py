"""How commands read and write keys, and how they read their own arguments.

Read-modify-write commands read at quorum and write with what they read as the context: if two of them race, both values are
kept as siblings, and none is lost without a trace.
"""

from __future__ import annotations

import re
from types import EllipsisType
from typing import TYPE_CHECKING

from cartwheel.core.messages import ClientGet, ClientPut, Failure, Found, PutRequest, Result, Stored
from cartwheel.core.types import NodeId
from cartwheel.core.versions import Record, Version
from cartwheel.runtime.resp.reply import NOT_AN_INTEGER, CommandError, failure_text
from cartwheel.runtime.resp.steps import shown

if TYPE_CHECKING:
    from cartwheel.runtime.resp.protocol import Connection

INT64_MAX = (1 << 63) - 1
_INTEGER = re.compile(rb"0|-?[1-9][0-9]{0,18}").fullmatch


def read(connection: Connection, key: bytes, bucket: str | None = None) -> ClientGet:
    """The event that reads a key."""
    return ClientGet(None, connection.bucket if bucket is None else bucket, key)


def found(result: Result) -> Found:
    """The result of ``read``.

    Raises:
        CommandError: it failed.
    """
    if isinstance(result, Failure):
        raise CommandError(failure_text(result))
    assert isinstance(result, Found), result
    return result


def stored(result: Result) -> Stored:
    """The result of a put.

    Raises:
        CommandError: it failed.
    """
    if isinstance(result, Failure):
        raise CommandError(failure_text(result))
    assert isinstance(result, Stored), result
    return result


class Entry:
    """A key as a Redis client sees it, and what is needed to write it back."""

    __slots__ = ("_version", "bucket", "connection", "coordinator", "key", "record")

    def __init__(self, connection: Connection, key: bytes, result: Result, bucket: str | None = None) -> None:
        answer = found(result)
        self.connection = connection
        self.bucket = connection.bucket if bucket is None else bucket
        self.key = key
        self.record: Record = answer.record
        self.coordinator: NodeId = answer.coordinator
        self._version: Version | EllipsisType | None = ...

    @property
    def exists(self) -> bool:
        """Whether there is any value. Unlike ``value`` never an error because there are several."""
        wall_ms = self.connection.gateway.wall_ms()
        return any(version.live(wall_ms) for version in self.record.versions)

    @property
    def version(self) -> Version | None:
        """The one that a Redis client sees.

        Raises:
            CommandError: there are several, and the bucket wants its clients to know.
        """
        if self._version is ...:
            self._version = shown(self.connection, self.record)
        return self._version

    @property
    def value(self) -> bytes | None:
        """None: there is no such key."""
        return None if self.version is None else self.version.value

    @property
    def expires_at_ms(self) -> int:
        """0: never."""
        return 0 if self.version is None else self.version.expires_at_ms

    def write(self, value: bytes | None, *, expires_at_ms: int = 0) -> ClientPut:
        """The event that supersedes what was read. None: delete."""
        return ClientPut(
            None,
            PutRequest(
                self.bucket,
                self.key,
                value,
                context=self.record.clock,
                dots=self.record.cloud,
                expires_at_ms=expires_at_ms,
                coordinator=self.coordinator,
            ),
        )


def integer(arg: bytes, complaint: str = NOT_AN_INTEGER) -> int:
    """A whole number of 64 bits in its one canonical form, as Redis wants it.

    Raises:
        CommandError: it is none; with ``complaint``.
    """
    if _INTEGER(arg):
        number = int(arg)
        if -INT64_MAX - 1 <= number <= INT64_MAX:
            return number
    raise CommandError(complaint)


def text(arg: bytes) -> str:
    """An argument for showing it in an error."""
    return arg.decode("utf-8", "replace")


EXPIRY_OPTIONS = {
    b"EX": (1000, True),
    b"PX": (1, True),
    b"EXAT": (1000, False),
    b"PXAT": (1, False),
}
"""Option -> (milliseconds in its unit, whether it counts from now)."""


def expiry(connection: Connection, option: bytes, arg: bytes, command: str) -> int:
    """The absolute time in ms that an expiry option of SET or GETEX means.

    Raises:
        CommandError: not a number, not positive, or beyond 64 bits.
    """
    unit, relative = EXPIRY_OPTIONS[option]
    number = integer(arg)
    at_ms = number * unit + (connection.gateway.wall_ms() if relative else 0)
    if number <= 0 or at_ms > INT64_MAX:
        raise CommandError(f"ERR invalid expire time in '{command}' command")
    return at_ms


def refuse_unless_best_effort(connection: Connection, what: str) -> None:
    """Commands that need "only if it does not exist" are refused unless the operator accepts what they are here.

    Raises:
        CommandError: with the reason and the way out.
    """
    if not connection.gateway.settings.allow_best_effort_nx:
        raise CommandError(
            f"ERR {what} is not atomic in a leaderless store: two clients can both succeed. To accept that:"
            " CONFIG SET resp.allow-best-effort-nx yes"
        )
