"""Expiry: an absolute wall time inside the version, so that all replicas agree and a later write supersedes it like a value.

Changing it therefore writes a new version (read-modify-write), and an expired version is as good as a tombstone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from cartwheel.runtime.resp import reply
from cartwheel.runtime.resp.access import INT64_MAX, Entry, integer, read, stored, text
from cartwheel.runtime.resp.registry import ONE_KEY, Args, command
from cartwheel.runtime.resp.reply import CommandError
from cartwheel.runtime.resp.steps import Steps
from cartwheel.runtime.resp.writes import RACY

if TYPE_CHECKING:
    from cartwheel.runtime.resp.protocol import Connection

_CONDITIONS = {b"NX", b"XX", b"GT", b"LT"}


def _conditions(args: Args) -> set[bytes]:
    given = {arg.upper() for arg in args}
    for arg in args:
        if arg.upper() not in _CONDITIONS:
            raise CommandError(f"ERR Unsupported option {text(arg)}")
    if b"NX" in given and len(given) > 1:
        raise CommandError("ERR NX and XX, GT or LT options at the same time are not compatible")
    if given >= {b"GT", b"LT"}:
        raise CommandError("ERR GT and LT options at the same time are not compatible")
    return given


def _allowed(conditions: set[bytes], old_ms: int, new_ms: int) -> bool:
    """Whether the conditions let an expiry be changed; 0: none, which counts as infinitely late."""
    if b"NX" in conditions and old_ms:
        return False
    if b"XX" in conditions and not old_ms:
        return False
    if b"GT" in conditions and (not old_ms or new_ms <= old_ms):
        return False
    return not (b"LT" in conditions and old_ms and new_ms >= old_ms)


def _expire(connection: Connection, args: Args, unit: int, *, relative: bool) -> Steps:
    conditions = _conditions(args[3:])
    number = integer(args[2])
    base_ms = connection.gateway.wall_ms() if relative else 0
    at_ms = number * unit + base_ms
    if not number * unit >= -INT64_MAX - 1 or at_ms > INT64_MAX:
        raise CommandError(f"ERR invalid expire time in '{args[0].decode('latin-1').lower()}' command")
    entry = Entry(connection, args[1], (yield read(connection, args[1])))
    if not entry.exists or not _allowed(conditions, entry.expires_at_ms, at_ms):
        return reply.ZERO
    if at_ms <= connection.gateway.wall_ms():
        stored((yield entry.write(None)))
    elif at_ms != entry.expires_at_ms:
        stored((yield entry.write(entry.value, expires_at_ms=at_ms)))
    return reply.ONE


@command(
    "EXPIRE key seconds [NX | XX | GT | LT]",
    "Lets a key expire.",
    group="generic",
    keys=ONE_KEY,
    write=True,
    flags="fast",
    note=RACY,
)
def expire(connection: Connection, args: Args) -> Steps:
    return (yield from _expire(connection, args, 1000, relative=True))


@command(
    "PEXPIRE key milliseconds [NX | XX | GT | LT]",
    "Lets a key expire.",
    group="generic",
    keys=ONE_KEY,
    write=True,
    flags="fast",
    note=RACY,
)
def pexpire(connection: Connection, args: Args) -> Steps:
    return (yield from _expire(connection, args, 1, relative=True))


@command(
    "EXPIREAT key unix-time-seconds [NX | XX | GT | LT]",
    "Lets a key expire at a time.",
    group="generic",
    keys=ONE_KEY,
    write=True,
    flags="fast",
    note=RACY,
)
def expireat(connection: Connection, args: Args) -> Steps:
    return (yield from _expire(connection, args, 1000, relative=False))


@command(
    "PEXPIREAT key unix-time-milliseconds [NX | XX | GT | LT]",
    "Lets a key expire at a time.",
    group="generic",
    keys=ONE_KEY,
    write=True,
    flags="fast",
    note=RACY,
)
def pexpireat(connection: Connection, args: Args) -> Steps:
    return (yield from _expire(connection, args, 1, relative=False))


@command(
    "PERSIST key", "Lets a key expire no more.", group="generic", keys=ONE_KEY, write=True, flags="fast", note=RACY
)
def persist(connection: Connection, args: Args) -> Steps:
    entry = Entry(connection, args[1], (yield read(connection, args[1])))
    if not entry.expires_at_ms:
        return reply.ZERO
    stored((yield entry.write(entry.value)))
    return reply.ONE


def _remaining(connection: Connection, args: Args, unit: int, *, absolute: bool = False) -> Steps:
    """-2: no such key; -1: it does not expire."""
    entry = Entry(connection, args[1], (yield read(connection, args[1])))
    if not entry.exists:
        return reply.integer(-2)
    if not entry.expires_at_ms:
        return reply.integer(-1)
    left_ms = entry.expires_at_ms if absolute else max(entry.expires_at_ms - connection.gateway.wall_ms(), 0)
    return reply.integer((left_ms + unit // 2) // unit)  # Redis rounds to the nearest second


@command("TTL key", "Seconds until a key expires.", group="generic", keys=ONE_KEY, flags="fast")
def ttl(connection: Connection, args: Args) -> Steps:
    return (yield from _remaining(connection, args, 1000))


@command("PTTL key", "Milliseconds until a key expires.", group="generic", keys=ONE_KEY, flags="fast")
def pttl(connection: Connection, args: Args) -> Steps:
    return (yield from _remaining(connection, args, 1))


@command("EXPIRETIME key", "When a key expires, in seconds since 1970.", group="generic", keys=ONE_KEY, flags="fast")
def expiretime(connection: Connection, args: Args) -> Steps:
    return (yield from _remaining(connection, args, 1000, absolute=True))


@command(
    "PEXPIRETIME key", "When a key expires, in milliseconds since 1970.", group="generic", keys=ONE_KEY, flags="fast"
)
def pexpiretime(connection: Connection, args: Args) -> Steps:
    return (yield from _remaining(connection, args, 1, absolute=True))
