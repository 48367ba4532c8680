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
    ClientExplain,
    ClientGet,
    ClientPut,
    Explained,
    Failure,
    PutRequest,
    Stored,
)
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
    token = _token(connection, options.bucket, args[1], context.Context(got.record.clock, got.coordinator))
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
        seen = context.Context(got.record.clock, got.coordinator)
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
    return _as_json(told) if options.json else reply.plain(told, connection.resp3)


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
