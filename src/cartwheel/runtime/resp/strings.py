"""Reading values."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cartwheel.core.messages import ClientGet
from cartwheel.runtime.resp import reply
from cartwheel.runtime.resp.access import Entry, integer, read
from cartwheel.runtime.resp.registry import ALL_KEYS, LATER, ONE_KEY, WAIT, Args, Waits, command
from cartwheel.runtime.resp.steps import GetSlot, Steps

if TYPE_CHECKING:
    from cartwheel.runtime.resp.protocol import Connection


@command(
    "GET key",
    "The value of a key.",
    group="string",
    keys=ONE_KEY,
    flags="fast",
    by_hand=True,
    note="of concurrent values the newest, or an error if the bucket property `resp_siblings` says so",
)
def get(connection: Connection, args: Args) -> Waits:
    key = args[1]
    if key in connection.writes:
        return WAIT
    reads = connection.reads
    reads[key] = reads.get(key, 0) + 1
    slot = GetSlot(connection, key)
    connection.pending.append(slot)
    connection.under_way += 1
    connection.gateway.submit(ClientGet(slot, connection.bucket, key))
    return LATER


def _bulk_or_nil(connection: Connection, value: bytes | None) -> bytes:
    return connection.nil if value is None else reply.bulk(value)


@command(
    "MGET key...",
    "The values of several keys.",
    group="string",
    keys=ALL_KEYS,
    flags="fast",
    note="each key is read by itself",
)
def mget(connection: Connection, args: Args) -> Steps:
    keys = args[1:]
    results = yield [read(connection, key) for key in keys]
    entries = [Entry(connection, key, result) for key, result in zip(keys, results, strict=True)]
    return reply.array([_bulk_or_nil(connection, entry.value) for entry in entries])


@command("STRLEN key", "The length of a value.", group="string", keys=ONE_KEY, flags="fast")
def strlen(connection: Connection, args: Args) -> Steps:
    entry = Entry(connection, args[1], (yield read(connection, args[1])))
    return reply.integer(len(entry.value or b""))


def _range(connection: Connection, args: Args) -> Steps:
    start, end = integer(args[2]), integer(args[3])
    entry = Entry(connection, args[1], (yield read(connection, args[1])))
    value = entry.value or b""
    size = len(value)
    if start < 0 and end < 0 and start > end:
        return reply.bulk(b"")
    start = max(start + size, 0) if start < 0 else start
    end = max(end + size, 0) if end < 0 else end
    return reply.bulk(value[start : end + 1])


@command("GETRANGE key start end", "A part of a value.", group="string", keys=ONE_KEY)
def getrange(connection: Connection, args: Args) -> Steps:
    return (yield from _range(connection, args))


@command("SUBSTR key start end", "A part of a value (old name of GETRANGE).", group="string", keys=ONE_KEY)
def substr(connection: Connection, args: Args) -> Steps:
    return (yield from _range(connection, args))


def _count_existing(connection: Connection, args: Args) -> Steps:
    keys = list(dict.fromkeys(args[1:]))
    results = yield [read(connection, key) for key in keys]
    live = {key for key, result in zip(keys, results, strict=True) if Entry(connection, key, result).exists}
    return reply.integer(sum(key in live for key in args[1:]))


@command("EXISTS key...", "How many of these keys exist.", group="generic", keys=ALL_KEYS, flags="fast")
def exists(connection: Connection, args: Args) -> Steps:
    return (yield from _count_existing(connection, args))


@command(
    "TOUCH key...",
    "How many of these keys exist.",
    group="generic",
    keys=ALL_KEYS,
    flags="fast",
    note="there is no access time to alter",
)
def touch(connection: Connection, args: Args) -> Steps:
    return (yield from _count_existing(connection, args))


@command("TYPE key", "The type of a value: string, or none.", group="generic", keys=ONE_KEY, flags="fast")
def type_(connection: Connection, args: Args) -> Steps:
    entry = Entry(connection, args[1], (yield read(connection, args[1])))
    return reply.simple("string" if entry.exists else "none")
