"""Commands over all keys of a bucket: they ask the whole ring, page by page (``ClientScan``), or sum up counts.

A page's cursor is a ring position, so a SCAN can go on at any node, after any time: no state is kept for it. As in Redis, a
key that is there throughout is returned, and one that comes or goes meanwhile may be.
"""

from __future__ import annotations

import random
from collections.abc import Generator
from typing import TYPE_CHECKING, Any

from cartwheel.core.messages import ClientCount, ClientScan, Counted, Failure, Page, Result
from cartwheel.runtime.resp import reply
from cartwheel.runtime.resp.access import Entry, integer, read, stored
from cartwheel.runtime.resp.glob import matcher
from cartwheel.runtime.resp.registry import Args, Keys, command, container
from cartwheel.runtime.resp.reply import SYNTAX_ERROR, CommandError, failure_text
from cartwheel.runtime.resp.steps import Steps

if TYPE_CHECKING:
    from cartwheel.runtime.resp.protocol import Connection

PAGE_KEYS = 1000
"""Keys asked for at once by commands that walk everything."""
SCAN_PAGES_MAX = 16
"""Empty pages that one SCAN skips before it returns an empty one itself: stretches of the ring may hold nothing of a bucket."""
KEYS_MAX = 1_000_000
"""More keys than one KEYS answers: use SCAN."""
SECOND = Keys(2, 2, 1)
EMBEDDED_BYTES_MAX = 44
"""Redis keeps shorter strings within the object ("embstr")."""
RECORD_BYTES = 100
"""What a record takes besides its key and values: clock, dot, checksum, index entry."""


def page(result: Result) -> Page:
    """The result of a scan.

    Raises:
        CommandError: too few replicas answered.
    """
    if isinstance(result, Failure):
        raise CommandError(failure_text(result))
    assert isinstance(result, Page), result
    return result


def counted(result: Result) -> int:
    """The result of a count.

    Raises:
        CommandError: it failed.
    """
    if isinstance(result, Failure):
        raise CommandError(failure_text(result))
    assert isinstance(result, Counted), result
    return result.keys


@command(
    "SCAN cursor [MATCH pattern] [COUNT count] [TYPE type]",
    "Iterates over the keys.",
    group="generic",
    barrier=True,
    flags="readonly",
    note="the cursor is a position on the ring, valid at every node",
)
def scan(connection: Connection, args: Args) -> Steps:
    cursor_text = args[1]
    if not cursor_text.isdigit() or int(cursor_text) >= 1 << 64:
        raise CommandError("ERR invalid cursor")
    cursor, count, matches, strings = int(cursor_text), 10, matcher(b"*"), True
    for at in range(2, len(args), 2):
        option = args[at].upper()
        if at + 1 == len(args) or option not in {b"MATCH", b"COUNT", b"TYPE"}:
            raise CommandError(SYNTAX_ERROR)
        if option == b"COUNT":
            count = integer(args[at + 1])
            if count < 1:
                raise CommandError(SYNTAX_ERROR)
        elif option == b"MATCH":
            matches = matcher(args[at + 1])
        else:
            strings = args[at + 1].lower() == b"string"
    keys: list[bytes] = []
    for _ in range(SCAN_PAGES_MAX):
        found = page((yield ClientScan(None, connection.bucket, cursor, min(count, PAGE_KEYS))))
        keys = found.keys
        cursor = found.cursor
        if keys or not cursor:
            break
    return reply.array([reply.bulk(b"%d" % cursor), reply.bulks([k for k in keys if strings and matches(k)])])


def _all_pages(bucket: str) -> Generator[Any, Any, list[bytes]]:
    keys: list[bytes] = []
    cursor = 0
    while True:
        found = page((yield ClientScan(None, bucket, cursor, PAGE_KEYS)))
        keys += found.keys
        cursor = found.cursor
        if not cursor:
            return keys
        if len(keys) > KEYS_MAX:
            raise CommandError(f"ERR more than {KEYS_MAX} keys: use SCAN")


@command(
    "KEYS pattern",
    "All keys that match.",
    group="generic",
    barrier=True,
    flags="readonly",
    note=f"walks the whole ring; an error above {KEYS_MAX:,} keys",
)
def keys(connection: Connection, args: Args) -> Steps:
    matches = matcher(args[1])
    found = yield from _all_pages(connection.bucket)
    return reply.bulks([key for key in found if matches(key)])


@command(
    "DBSIZE",
    "About how many keys there are.",
    group="server",
    barrier=True,
    flags="readonly fast",
    note="an estimate: expired keys count until they are reaped",
)
def dbsize(connection: Connection, args: Args) -> Steps:
    return reply.integer(counted((yield ClientCount(None, connection.bucket))))


@command(
    "RANDOMKEY",
    "Some key.",
    group="generic",
    barrier=True,
    flags="readonly",
    note="the first after a random place on the ring",
)
def randomkey(connection: Connection, args: Args) -> Steps:
    cursor = random.getrandbits(64)
    wrapped = False
    while True:
        found = page((yield ClientScan(None, connection.bucket, cursor, 1)))
        if found.keys:
            return reply.bulk(found.keys[0])
        cursor = found.cursor
        if not cursor:
            if wrapped:
                return connection.nil
            wrapped = True


def _flush(connection: Connection, args: Args, buckets: list[str]) -> Steps:
    if len(args) > 2 or (len(args) == 2 and args[1].upper() not in {b"ASYNC", b"SYNC"}):
        raise CommandError(SYNTAX_ERROR)
    if not connection.gateway.settings.allow_flush:
        name = args[0].decode("latin-1").upper()
        raise CommandError(
            f"ERR {name} deletes every key and is off by default. To allow it: CONFIG SET resp.allow-flush yes"
        )
    for bucket in buckets:
        cursor = 0
        while True:
            found = page((yield ClientScan(None, bucket, cursor, PAGE_KEYS)))
            results = yield [read(connection, key, bucket) for key in found.keys]
            entries = [Entry(connection, key, one, bucket) for key, one in zip(found.keys, results, strict=True)]
            for result in (yield [entry.write(None) for entry in entries if entry.exists]):
                stored(result)
            cursor = found.cursor
            if not cursor:
                break
    return reply.OK


FLUSH_NOTE = "off unless `resp.allow-flush` is on; deletes key by key, so what is written meanwhile may stay"


@command("FLUSHDB [ASYNC | SYNC]", "Deletes all keys.", group="server", barrier=True, flags="write", note=FLUSH_NOTE)
def flushdb(connection: Connection, args: Args) -> Steps:
    return (yield from _flush(connection, args, [connection.bucket]))


@command(
    "FLUSHALL [ASYNC | SYNC]",
    "Deletes all keys of all buckets.",
    group="server",
    barrier=True,
    flags="write",
    note=FLUSH_NOTE,
)
def flushall(connection: Connection, args: Args) -> Steps:
    return (yield from _flush(connection, args, sorted({*connection.gateway.buckets(), connection.bucket})))


container("OBJECT", "About a value's representation.", group="generic")


@command("OBJECT|ENCODING key", "How Redis would keep the value: int, embstr or raw.", group="generic", keys=SECOND)
def object_encoding(connection: Connection, args: Args) -> Steps:
    entry = Entry(connection, args[2], (yield read(connection, args[2])))
    value = entry.value
    if value is None:
        return connection.nil
    try:
        if len(value) <= 20:
            integer(value)
            return reply.bulk(b"int")
    except CommandError:
        pass
    return reply.bulk(b"embstr" if len(value) <= EMBEDDED_BYTES_MAX else b"raw")


@command("OBJECT|REFCOUNT key", "1, if there is such a key.", group="generic", keys=SECOND)
def object_refcount(connection: Connection, args: Args) -> Steps:
    entry = Entry(connection, args[2], (yield read(connection, args[2])))
    return connection.nil if entry.value is None else reply.ONE


container("MEMORY", "About the memory that keys take.", group="server")


@command(
    "MEMORY|USAGE key [SAMPLES count]",
    "About how many bytes a key takes on each replica.",
    group="server",
    keys=SECOND,
    note="key, values and an estimate of what is kept with them",
)
def memory_usage(connection: Connection, args: Args) -> Steps:
    if len(args) not in {3, 5} or (len(args) == 5 and args[3].upper() != b"SAMPLES"):
        raise CommandError(SYNTAX_ERROR)
    if len(args) == 5:
        integer(args[4])
    entry = Entry(connection, args[2], (yield read(connection, args[2])))
    if entry.value is None:
        return connection.nil
    size = sum(len(version.value or b"") for version in entry.record.versions)
    return reply.integer(RECORD_BYTES + len(args[2]) + size)
