"""Commands of our own: contexts and siblings, which plain Redis commands hide, and the cluster's state.

    CW.GET cart               ->  context, [value, value]     two siblings: nobody has seen both yet
    CW.PUT cart v CONTEXT c   ->  context                     supersedes what was read, and only that

A context is opaque, printable, and bound to its key: it can be pasted back in redis-cli. What people read comes as maps
(name and value lines in version 2), and as JSON on demand, for programs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from cartwheel.core import context, versions
from cartwheel.core.config import PROPERTY_NAMES, BucketProps
from cartwheel.core.errors import BadContext, Code
from cartwheel.core.messages import (
    ClientBucketSet,
    ClientDigests,
    ClientExplain,
    ClientGet,
    ClientHints,
    ClientPut,
    ClientRepair,
    ClientRepairStatus,
    Digest,
    Digests,
    Explained,
    Failure,
    Found,
    HintsKept,
    PutRequest,
    Repairing,
    Result,
    Stored,
)
from cartwheel.core.storage import POSITION_BYTES, split_record_key
from cartwheel.runtime.frames import Build
from cartwheel.runtime.resp import reply
from cartwheel.runtime.resp.access import INT64_MAX, found, integer, stored, text
from cartwheel.runtime.resp.registry import ONE_KEY, Args, command, container
from cartwheel.runtime.resp.reply import CommandError, failure_text
from cartwheel.runtime.resp.steps import Steps

if TYPE_CHECKING:
    from cartwheel.runtime.resp.protocol import Connection

REQUEST_ID_BYTES_MAX = 64
"""Ids travel and are stored with each version: room for a UUID as text."""


class _Options(msgspec.Struct):
    """The options after a key (and value)."""

    bucket: str
    context: context.Context | None = None
    r: int = 0
    w: int = 0
    expires_at_ms: int = 0
    request_id: bytes = b""
    json: bool = False


def _options(connection: Connection, args: Args, first: int, allowed: str) -> _Options:
    """Read ``NAME value`` pairs (and JSON, which stands alone) from ``first`` on. ``allowed`` lists the names."""
    options = _Options(connection.bucket)
    given: dict[str, bytes] = {}
    words = iter(range(first, len(args)))
    for at in words:
        name = text(args[at]).upper()
        if name not in allowed.split() or name in given:
            raise CommandError(
                f"ERR syntax error: unexpected '{text(args[at])}', {args[0].decode().upper()} knows {allowed}"
            )
        if name != "JSON" and at + 1 == len(args):
            raise CommandError(f"ERR syntax error: {name} needs a value")
        given[name] = b"" if name == "JSON" else args[next(words)]
    if "BUCKET" in given:
        options.bucket = connection.bucket_named(given["BUCKET"])
    if "CONTEXT" in given:
        options.context = _read_context(connection, options.bucket, args[1], given["CONTEXT"])
    props = connection.gateway.bucket_props(options.bucket)
    options.r = _level(given, "R", props.n)
    options.w = _level(given, "W", props.n)
    options.json = "JSON" in given
    options.request_id = given.get("ID", b"")
    if len(options.request_id) > REQUEST_ID_BYTES_MAX:
        raise CommandError(f"ERR ID of {len(options.request_id)} bytes is longer than {REQUEST_ID_BYTES_MAX}")
    if "EX" in given:
        seconds = integer(given["EX"])
        options.expires_at_ms = connection.gateway.wall_ms() + seconds * 1000
        if seconds <= 0 or options.expires_at_ms > INT64_MAX:
            raise CommandError(f"ERR invalid expire time in '{args[0].decode().lower()}' command")
    return options


def _level(given: dict[str, bytes], name: str, n: int) -> int:
    if name not in given:
        return 0
    level = integer(given[name])
    if not 1 <= level <= n:
        raise CommandError(f"ERR {name}={level} must lie between 1 and n={n}")
    return level


def _read_context(connection: Connection, bucket: str, key: bytes, token: bytes) -> context.Context:
    try:
        return context.decode_token(token, secret=connection.gateway.config.secret, bucket=bucket, key=key)
    except BadContext as bad:
        raise CommandError(f"{Code.BADCONTEXT} {bad}") from None


def _token(connection: Connection, bucket: str, key: bytes, seen: context.Context) -> bytes:
    secret = connection.gateway.config.secret
    return reply.bulk(context.encode_token(seen, secret=secret, bucket=bucket, key=key))


def _seen(got: Found) -> context.Context:
    return context.Context(got.record.clock, got.coordinator, got.record.cloud)


def _token_after(connection: Connection, bucket: str, key: bytes, result: Stored) -> bytes:
    return _token(connection, bucket, key, context.Context(result.clock, result.coordinator, result.dots))


@command(
    "CW.GET key [R replicas] [BUCKET bucket]",
    "The context and all concurrent values of a key.",
    group="cartwheel",
    keys=ONE_KEY,
)
def cw_get(connection: Connection, args: Args) -> Steps:
    options = _options(connection, args, 2, "R BUCKET")
    got = found((yield ClientGet(None, options.bucket, args[1], options.r)))
    token = _token(connection, options.bucket, args[1], _seen(got))
    live = versions.siblings(got.record, connection.gateway.wall_ms())
    return reply.array([token, reply.bulks([version.value or b"" for version in live])])


def _put(options: _Options, key: bytes, value: bytes | None, seen: context.Context) -> ClientPut:
    return ClientPut(
        None,
        PutRequest(
            options.bucket,
            key,
            value,
            context=seen.clock,
            w=options.w,
            expires_at_ms=options.expires_at_ms,
            request_id=options.request_id,
            coordinator=seen.coordinator,
            dots=seen.dots,
        ),
    )


@command(
    "CW.PUT key value [CONTEXT context] [W replicas] [EX seconds] [ID request-id] [BUCKET bucket]",
    "Writes a value that supersedes what the context covers; returns the new context.",
    group="cartwheel",
    keys=ONE_KEY,
    write=True,
)
def cw_put(connection: Connection, args: Args) -> Steps:
    options = _options(connection, args, 3, "CONTEXT W EX ID BUCKET")
    seen = options.context or context.Context({})
    done = stored((yield _put(options, args[1], args[2], seen)))
    return _token_after(connection, options.bucket, args[1], done)


@command(
    "CW.DEL key [CONTEXT context] [W replicas] [ID request-id] [BUCKET bucket]",
    "Deletes what the context covers (without: what is read first); returns the new context.",
    group="cartwheel",
    keys=ONE_KEY,
    write=True,
)
def cw_del(connection: Connection, args: Args) -> Steps:
    options = _options(connection, args, 2, "CONTEXT W ID BUCKET")
    seen = options.context
    if seen is None:
        got = found((yield ClientGet(None, options.bucket, args[1])))
        seen = _seen(got)
    done = stored((yield _put(options, args[1], None, seen)))
    return _token_after(connection, options.bucket, args[1], done)


def _as_json(value: Any) -> bytes:
    return reply.bulk(msgspec.json.encode(value))


def explained_as_dict(explained: Explained) -> dict[str, Any]:
    """Where a key lives and what each replica holds, as plain data."""
    return {
        "position": explained.position.hex(),
        "partition": explained.partition,
        "preference": explained.preference,
        "n": explained.n,
        "r": explained.r,
        "w": explained.w,
        "coordinator": explained.coordinator,
        "replicas": {
            node: {"error": held} if isinstance(held, str) else versions.as_dict(held)
            for node, held in explained.replicas.items()
        },
        "merged": versions.as_dict(explained.merged),
    }


@command(
    "CW.EXPLAIN key [BUCKET bucket] [JSON]",
    "Where a key lives, and what each replica holds of it.",
    group="cartwheel",
    keys=ONE_KEY,
)
def cw_explain(connection: Connection, args: Args) -> Steps:
    options = _options(connection, args, 2, "BUCKET JSON")
    result = yield ClientExplain(None, options.bucket, args[1])
    if isinstance(result, Failure):
        raise CommandError(failure_text(result))
    assert isinstance(result, Explained), result
    told = explained_as_dict(result)
    return _as_json(told) if options.json else reply.plain(told, connection.resp3)


container("CW.BUCKET", "Buckets and their properties.", group="cartwheel")


@command("CW.BUCKET|SET bucket (property value)...", "Changes a bucket's properties, on all nodes.", group="cartwheel")
def cw_bucket_set(connection: Connection, args: Args) -> Steps:
    if len(args) % 2 == 0:
        raise CommandError("ERR wrong number of arguments for 'cw.bucket|set' command")
    bucket = connection.bucket_named(args[2])
    props = {text(name).lower(): text(value) for name, value in zip(args[3::2], args[4::2], strict=True)}
    result = yield ClientBucketSet(None, bucket, props)
    if isinstance(result, Failure):
        raise CommandError(failure_text(result))
    return reply.OK


def _props_as_dict(props: BucketProps) -> dict[str, Any]:
    return {name: getattr(props, name) for name in PROPERTY_NAMES}


@command("CW.BUCKET|GET bucket [JSON]", "A bucket's properties.", group="cartwheel")
def cw_bucket_get(connection: Connection, args: Args) -> bytes:
    options = _options(connection, args, 3, "JSON")
    told = _props_as_dict(connection.gateway.bucket_props(connection.bucket_named(args[2])))
    return _as_json(told) if options.json else reply.plain(told, connection.resp3)


@command("CW.BUCKET|LIST", "The names of the buckets.", group="cartwheel")
def cw_bucket_list(connection: Connection, args: Args) -> bytes:
    return reply.bulks(sorted(connection.gateway.buckets()))


@command("CW.STATUS [JSON]", "This node's view of itself and the cluster.", group="cartwheel")
def cw_status(connection: Connection, args: Args) -> bytes:
    options = _options(connection, args, 1, "JSON")
    told = msgspec.to_builtins(connection.gateway.status())
    builds = connection.gateway.builds()
    for member in told["members"]:
        member |= msgspec.to_builtins(builds.get(member["node"], Build()))
    return _as_json(told) if options.json else reply.plain(told, connection.resp3)


@command("CW.HINTS [JSON]", "What each member keeps for others, until those are back.", group="cartwheel")
def cw_hints(connection: Connection, args: Args) -> Steps:
    options = _options(connection, args, 1, "JSON")
    result = yield ClientHints(None)
    assert isinstance(result, HintsKept), result
    told = {
        holder: {"error": kept} if isinstance(kept, str) else msgspec.to_builtins(kept)
        for holder, kept in result.holders.items()
    }
    return _as_json(told) if options.json else reply.plain(told, connection.resp3)


container("CW.REPAIR", "Comparing with the other nodes now, and mending what differs.", group="cartwheel")


@command(
    "CW.REPAIR|START [PARTITION partition] [WITH node] [JSON]",
    "Compares what this node holds with the other owners (or one of them) now, and mends what differs.",
    group="cartwheel",
)
def cw_repair_start(connection: Connection, args: Args) -> Steps:
    partition, peer, as_json = None, "", False
    words = iter(args[2:])
    for word in words:
        name = text(word).upper()
        if name == "JSON":
            as_json = True
            continue
        if name not in {"PARTITION", "WITH"}:
            raise CommandError(
                f"ERR syntax error: unexpected '{text(word)}', CW.REPAIR START knows PARTITION WITH JSON"
            )
        value = next(words, None)
        if value is None:
            raise CommandError(f"ERR syntax error: {name} needs a value")
        if name == "PARTITION":
            partition = integer(value)
        else:
            peer = text(value)
    return _repairing(connection, (yield ClientRepair(None, partition, peer)), as_json)


@command("CW.REPAIR|STATUS [JSON]", "How far the repair is that was asked for last.", group="cartwheel")
def cw_repair_status(connection: Connection, args: Args) -> Steps:
    options = _options(connection, args, 2, "JSON")
    return _repairing(connection, (yield ClientRepairStatus(None)), options.json)


def _repairing(connection: Connection, result: Result, as_json: bool) -> bytes:
    if isinstance(result, Failure):
        raise CommandError(failure_text(result))
    assert isinstance(result, Repairing), result
    told = msgspec.to_builtins(result)
    return _as_json(told) if as_json else reply.plain(told, connection.resp3)


@command("CW.RING [JSON]", "The members of the ring, with their partitions.", group="cartwheel")
def cw_ring(connection: Connection, args: Args) -> bytes:
    options = _options(connection, args, 1, "JSON")
    status = connection.gateway.status()
    told = {
        "epoch": status.epoch,
        "q": status.q,
        "members": {
            member.node: {
                "partitions": member.partitions,
                "weight": member.weight,
                "zone": member.zone,
                "host": member.host,
                "address": member.address,
                "reachable": "yes" if member.reachable else f"no: {member.reason}",
            }
            for member in status.members
        },
    }
    return _as_json(told) if options.json else reply.plain(told, connection.resp3)


CORRUPT = "corrupt"


def _digest(row: Digest) -> list[str | bytes]:
    bucket, key = split_record_key(row.record_key)
    checksum = CORRUPT if row.checksum is None else row.checksum.hex()
    return [row.record_key[:POSITION_BYTES].hex(), bucket, key, checksum, "live" if row.live else "deleted"]


@command(
    "CW.DIGESTS partition [CURSOR cursor]",
    "What this node itself holds of a partition, key by key, with checksums.",
    group="cartwheel",
)
def cw_digests(connection: Connection, args: Args) -> Steps:
    start = b""
    if len(args) > 2:
        if len(args) != 4 or args[2].upper() != b"CURSOR":
            raise CommandError(f"ERR syntax error: unexpected '{text(args[2])}', CW.DIGESTS knows CURSOR")
        try:
            start = bytes.fromhex(text(args[3]))
        except ValueError:
            raise CommandError("ERR no such cursor") from None
    result = yield ClientDigests(None, integer(args[1]), start)
    if isinstance(result, Failure):
        raise CommandError(failure_text(result))
    assert isinstance(result, Digests), result
    told = {
        "cursor": "" if result.reached is None else result.reached.hex(),
        "epoch": result.epoch.hex(),
        "preference": result.preference,
        "owners": result.owners,
        "unreadable": result.unreadable,
        "rows": [_digest(row) for row in result.rows],
    }
    return reply.plain(told, connection.resp3)
