"""Writing values, and read-modify-write."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from cartwheel.core.messages import ClientPut, PutRequest
from cartwheel.runtime.resp import reply
from cartwheel.runtime.resp.access import (
    EXPIRY_OPTIONS,
    Entry,
    expiry,
    integer,
    read,
    refuse_unless_best_effort,
    stored,
)
from cartwheel.runtime.resp.registry import ALL_KEYS, KEY_VALUES, LATER, ONE_KEY, WAIT, Args, Keys, Waits, command
from cartwheel.runtime.resp.reply import SYNTAX_ERROR, CommandError
from cartwheel.runtime.resp.steps import PutSlot, Steps

if TYPE_CHECKING:
    from cartwheel.runtime.resp.protocol import Connection

RACY = "reads at quorum, then writes: of two that race, both values are kept as siblings"
NX_NOTE = "refused unless `resp.allow-best-effort-nx` is on: without a leader two clients can both succeed"
TWO_KEYS = Keys(1, 2, 1)


class _SetOptions(msgspec.Struct):
    expires_at_ms: int = 0
    nx: bool = False
    xx: bool = False
    get: bool = False
    keep_ttl: bool = False

    @property
    def reads(self) -> bool:
        """Whether the old value matters."""
        return self.nx or self.xx or self.get or self.keep_ttl


def _set_options(connection: Connection, args: Args) -> _SetOptions:
    options = _SetOptions()
    timed = number = b""
    words = iter(range(3, len(args)))
    for at in words:
        word = args[at].upper()
        if word == b"NX" and not options.xx:
            options.nx = True
        elif word == b"XX" and not options.nx:
            options.xx = True
        elif word == b"GET":
            options.get = True
        elif word == b"KEEPTTL" and not timed:
            options.keep_ttl = True
        elif word in EXPIRY_OPTIONS and timed in {b"", word} and not options.keep_ttl and at + 1 < len(args):
            timed, number = word, args[next(words)]
        else:
            raise CommandError(SYNTAX_ERROR)
    if timed:
        options.expires_at_ms = expiry(connection, timed, number, "set")
    if options.nx:
        refuse_unless_best_effort(connection, "SET NX")
    return options


def _put(connection: Connection, key: bytes, value: bytes, expires_at_ms: int = 0) -> Waits:
    """A plain SET: one put, superseding what the coordinator holds."""
    if key in connection.writes or key in connection.reads:
        return WAIT
    connection.writes.add(key)
    slot = PutSlot(connection, key)
    connection.pending.append(slot)
    connection.under_way += 1
    connection.gateway.submit(ClientPut(slot, PutRequest(connection.bucket, key, value, expires_at_ms=expires_at_ms)))
    return LATER


@command(
    "SET key value [NX | XX] [GET] [EX seconds | PX milliseconds | EXAT unix-time-seconds | PXAT unix-time-milliseconds"
    " | KEEPTTL]",
    "Sets a key's value, whatever it was.",
    group="string",
    keys=ONE_KEY,
    write=True,
    by_hand=True,
    note=f"supersedes what the coordinator holds; a concurrent SET through another leaves a sibling. NX: {NX_NOTE}."
    f" XX, GET, KEEPTTL: {RACY}",
)
def set_(connection: Connection, args: Args) -> Waits:
    if len(args) == 3:
        return _put(connection, args[1], args[2])
    options = _set_options(connection, args)
    if not options.reads:
        return _put(connection, args[1], args[2], options.expires_at_ms)
    steps = _set_after_read(connection, args, options)
    return LATER if connection.start_steps(steps, [args[1]], write=True) else WAIT


def _set_after_read(connection: Connection, args: Args, options: _SetOptions) -> Steps:
    key = args[1]
    entry = Entry(connection, key, (yield read(connection, key)))
    old = entry.value
    said = connection.nil if old is None else reply.bulk(old)
    if (options.nx and old is not None) or (options.xx and old is None):
        return said if options.get else connection.nil
    expires_at_ms = entry.expires_at_ms if options.keep_ttl else options.expires_at_ms
    stored((yield entry.write(args[2], expires_at_ms=expires_at_ms)))
    return said if options.get else reply.OK


@command(
    "SETEX key seconds value", "Sets a value that expires.", group="string", keys=ONE_KEY, write=True, by_hand=True
)
def setex(connection: Connection, args: Args) -> Waits:
    return _put(connection, args[1], args[3], expiry(connection, b"EX", args[2], "setex"))


@command(
    "PSETEX key milliseconds value",
    "Sets a value that expires.",
    group="string",
    keys=ONE_KEY,
    write=True,
    by_hand=True,
)
def psetex(connection: Connection, args: Args) -> Waits:
    return _put(connection, args[1], args[3], expiry(connection, b"PX", args[2], "psetex"))


@command(
    "SETNX key value",
    "Sets a value if there is none.",
    group="string",
    keys=ONE_KEY,
    write=True,
    flags="fast",
    note=NX_NOTE,
)
def setnx(connection: Connection, args: Args) -> Steps:
    refuse_unless_best_effort(connection, "SETNX")
    entry = Entry(connection, args[1], (yield read(connection, args[1])))
    if entry.value is not None:
        return reply.ZERO
    stored((yield entry.write(args[2])))
    return reply.ONE


def _pairs(args: Args, name: str) -> dict[bytes, bytes]:
    if len(args) % 2 == 0:
        raise CommandError(f"ERR wrong number of arguments for '{name}' command")
    return dict(zip(args[1::2], args[2::2], strict=True))


@command(
    "MSET (key value)...",
    "Sets several values.",
    group="string",
    keys=KEY_VALUES,
    write=True,
    note="each key by itself: not atomic, and after an error some may be set",
)
def mset(connection: Connection, args: Args) -> Steps:
    pairs = _pairs(args, "mset")
    results = yield [ClientPut(None, PutRequest(connection.bucket, key, value)) for key, value in pairs.items()]
    for result in results:
        stored(result)
    return reply.OK


@command(
    "MSETNX (key value)...",
    "Sets several values if none exists.",
    group="string",
    keys=KEY_VALUES,
    write=True,
    note=NX_NOTE,
)
def msetnx(connection: Connection, args: Args) -> Steps:
    pairs = _pairs(args, "msetnx")
    refuse_unless_best_effort(connection, "MSETNX")
    results = yield [read(connection, key) for key in pairs]
    entries = [Entry(connection, key, result) for key, result in zip(pairs, results, strict=True)]
    if any(entry.value is not None for entry in entries):
        return reply.ZERO
    for result in (yield [entry.write(pairs[entry.key]) for entry in entries]):
        stored(result)
    return reply.ONE


@command(
    "GETSET key value",
    "Sets a value and returns the old one.",
    group="string",
    keys=ONE_KEY,
    write=True,
    flags="fast",
    note=RACY,
)
def getset(connection: Connection, args: Args) -> Steps:
    entry = Entry(connection, args[1], (yield read(connection, args[1])))
    stored((yield entry.write(args[2])))
    return connection.nil if entry.value is None else reply.bulk(entry.value)


@command(
    "GETDEL key",
    "Deletes a key and returns its value.",
    group="string",
    keys=ONE_KEY,
    write=True,
    flags="fast",
    note=RACY,
)
def getdel(connection: Connection, args: Args) -> Steps:
    entry = Entry(connection, args[1], (yield read(connection, args[1])))
    if entry.value is None:
        return connection.nil
    stored((yield entry.write(None)))
    return reply.bulk(entry.value)


@command(
    "GETEX key [EX seconds | PX milliseconds | EXAT unix-time-seconds | PXAT unix-time-milliseconds | PERSIST]",
    "The value of a key, whose expiry is changed.",
    group="string",
    keys=ONE_KEY,
    write=True,
    flags="fast",
    note=RACY,
)
def getex(connection: Connection, args: Args) -> Steps:
    option = args[2].upper() if len(args) > 2 else b""
    persists = len(args) == 3 and option == b"PERSIST"
    expires = len(args) == 4 and option in EXPIRY_OPTIONS
    if len(args) > 2 and not persists and not expires:
        raise CommandError(SYNTAX_ERROR)
    entry = Entry(connection, args[1], (yield read(connection, args[1])))
    if entry.value is None:
        return connection.nil
    expires_at_ms = entry.expires_at_ms
    if persists:
        expires_at_ms = 0
    elif expires:
        expires_at_ms = expiry(connection, option, args[3], "getex")
    if expires_at_ms != entry.expires_at_ms:
        gone = 0 < expires_at_ms <= connection.gateway.wall_ms()
        stored((yield entry.write(None if gone else entry.value, expires_at_ms=0 if gone else expires_at_ms)))
    return reply.bulk(entry.value)


def _check_length(connection: Connection, size: int) -> None:
    """Before a value is built that the node would refuse anyway: an offset may be huge."""
    most = connection.gateway.bucket_props(connection.bucket).value_bytes_max
    if size > most:
        raise CommandError(
            f"TOOBIG value of {size} bytes exceeds the limit of {most} bytes (bucket property value_bytes_max)"
        )


@command("APPEND key value", "Appends to a value.", group="string", keys=ONE_KEY, write=True, flags="fast", note=RACY)
def append(connection: Connection, args: Args) -> Steps:
    entry = Entry(connection, args[1], (yield read(connection, args[1])))
    old = entry.value or b""
    _check_length(connection, len(old) + len(args[2]))
    stored((yield entry.write(old + args[2], expires_at_ms=entry.expires_at_ms)))
    return reply.integer(len(old) + len(args[2]))


@command(
    "SETRANGE key offset value", "Overwrites a part of a value.", group="string", keys=ONE_KEY, write=True, note=RACY
)
def setrange(connection: Connection, args: Args) -> Steps:
    offset, patch = integer(args[2]), args[3]
    if offset < 0:
        raise CommandError("ERR offset is out of range")
    entry = Entry(connection, args[1], (yield read(connection, args[1])))
    old = entry.value or b""
    if not patch:
        return reply.integer(len(old))
    _check_length(connection, offset + len(patch))
    new = old[:offset].ljust(offset, b"\0") + patch + old[offset + len(patch) :]
    stored((yield entry.write(new, expires_at_ms=entry.expires_at_ms)))
    return reply.integer(len(new))


def _delete(connection: Connection, args: Args) -> Steps:
    keys = list(dict.fromkeys(args[1:]))
    results = yield [read(connection, key) for key in keys]
    entries = [Entry(connection, key, result) for key, result in zip(keys, results, strict=True)]
    results = yield [entry.write(None) for entry in entries if entry.exists]
    for result in results:
        stored(result)
    return reply.integer(len(results))


@command(
    "DEL key...",
    "Deletes keys.",
    group="generic",
    keys=ALL_KEYS,
    write=True,
    note="deletes what it read: a concurrent write survives",
)
def delete(connection: Connection, args: Args) -> Steps:
    return (yield from _delete(connection, args))


@command(
    "UNLINK key...",
    "Deletes keys (as DEL).",
    group="generic",
    keys=ALL_KEYS,
    write=True,
    flags="fast",
    note="the same as DEL",
)
def unlink(connection: Connection, args: Args) -> Steps:
    return (yield from _delete(connection, args))


def _rename(connection: Connection, args: Args, *, only_new: bool) -> Steps:
    source, target = args[1], args[2]
    results = yield [read(connection, source), read(connection, target)]
    old = Entry(connection, source, results[0])
    new = Entry(connection, target, results[1])
    if old.value is None:
        raise CommandError("ERR no such key")
    if only_new and new.value is not None:
        return reply.ZERO
    if source != target:
        stored((yield new.write(old.value, expires_at_ms=old.expires_at_ms)))
        stored((yield old.write(None)))
    return reply.ONE if only_new else reply.OK


@command(
    "RENAME key newkey",
    "Renames a key.",
    group="generic",
    keys=TWO_KEYS,
    write=True,
    note="writes the new key, then deletes the old: in between both are there",
)
def rename(connection: Connection, args: Args) -> Steps:
    return (yield from _rename(connection, args, only_new=False))


@command(
    "RENAMENX key newkey",
    "Renames a key if the new name is free.",
    group="generic",
    keys=TWO_KEYS,
    write=True,
    note=NX_NOTE,
)
def renamenx(connection: Connection, args: Args) -> Steps:
    refuse_unless_best_effort(connection, "RENAMENX")
    return (yield from _rename(connection, args, only_new=True))


@command(
    "COPY source destination [DB destination-db] [REPLACE]",
    "Copies a value to another key.",
    group="generic",
    keys=TWO_KEYS,
    write=True,
    note="without REPLACE the destination is looked for first, at quorum: not atomic, of two copies both can succeed",
)
def copy(connection: Connection, args: Args) -> Steps:
    source, target, bucket, replace = args[1], args[2], connection.bucket, False
    words = iter(range(3, len(args)))
    for at in words:
        word = args[at].upper()
        if word == b"REPLACE":
            replace = True
        elif word == b"DB" and at + 1 < len(args):
            bucket = connection.bucket_named(args[next(words)])
        else:
            raise CommandError(SYNTAX_ERROR)
    if source == target and bucket == connection.bucket:
        raise CommandError("ERR source and destination objects are the same")
    results = yield [read(connection, source), read(connection, target, bucket)]
    old = Entry(connection, source, results[0])
    new = Entry(connection, target, results[1], bucket)
    if old.value is None or (new.value is not None and not replace):
        return reply.ZERO
    stored((yield new.write(old.value, expires_at_ms=old.expires_at_ms)))
    return reply.ONE
