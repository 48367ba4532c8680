"""``cartwheel get``, ``put``, ``del`` and ``explain``: single keys, with their contexts.

A read that finds siblings shows them all and the context that covers them: what a client needs to reconcile. Values go to
standard output, everything about them to standard error, so that ``cartwheel get k | ...`` gets the value alone.
"""

from __future__ import annotations

import sys
from datetime import UTC, datetime
from typing import Any

import click

from cartwheel.cli import common
from cartwheel.cli.common import Failed
from cartwheel.client.resp import Argument, Connection, Reply
from cartwheel.core.clock import LOGICAL_BITS, wall_ms_of
from cartwheel.core.types import node_of

MISSING = 1
STDIN = "-"


def read_siblings(
    connection: Connection, key: str, bucket: str = "0", r: int | None = None
) -> tuple[bytes, list[bytes]]:
    """``CW.GET``: the context and all concurrent values of a key (none: it is missing)."""
    command: list[Argument] = ["CW.GET", key, "BUCKET", bucket]
    if r is not None:
        command += ["R", r]
    reply = connection.call(*command)
    if isinstance(reply, list) and len(reply) == 2:
        context, values = reply
        if isinstance(values, list):
            return context if isinstance(context, bytes) else b"", [each for each in values if isinstance(each, bytes)]
    raise Failed(f"the node at {connection.address} answered CW.GET with {reply!r}, not with a context and values")


def write_value(connection: Connection, key: str, value: bytes | None, bucket: str = "0", **options: Any) -> bytes:
    """``CW.PUT``, or ``CW.DEL`` if the value is None. Options that are None are left out. Returns the new context."""
    command: list[Argument] = ["CW.DEL", key] if value is None else ["CW.PUT", key, value]
    for name, option in {"bucket": bucket, **options}.items():
        if option is not None:
            command += [name.upper(), option]
    return context_of(connection.call(*command))


def context_of(reply: Reply) -> bytes:
    """The context in the reply to a write."""
    return reply if isinstance(reply, bytes) else b""


@click.command()
@click.argument("key")
@common.bucket_option
@click.option("--r", "r", type=click.IntRange(min=1), metavar="N", help="How many replicas must answer.")
@click.option("--raw", is_flag=True, help="Print the value's bytes only, without a line end.")
@common.json_option
@common.node_option
@common.timeout_option
def get(key: str, bucket: str, r: int | None, raw: bool, as_json: bool, node: str, timeout_s: float) -> int:
    """Read KEY: print its value, or all siblings and their context. Exit code 1 if there is none."""
    with common.connect(node, timeout_s) as connection:
        context, values = read_siblings(connection, key, bucket, r)
    if as_json:
        siblings = [common.value_json(value) for value in values]
        common.print_json({"key": key, "bucket": bucket, "context": context.decode(), "siblings": siblings})
        return 0 if values else MISSING
    if not values:
        click.echo(f"{key} is not there", err=True)
        return MISSING
    if len(values) == 1:
        click.echo(values[0], nl=not raw)
        return 0
    if raw:
        raise Failed(f"{key} has {len(values)} siblings: --raw prints one value only; leave it out to see them all")
    for number, value in enumerate(values, start=1):
        click.echo(f"{number}) ", nl=False)
        click.echo(value)
    click.echo(f"context {context.decode()}")
    click.echo(
        f"{key} has {len(values)} siblings: concurrent writes, of which none had seen the other. Write what they amount to "
        f"with their context: {common.program()} put {key} VALUE --context CONTEXT",
        err=True,
    )
    return 0


@click.command()
@click.argument("key")
@click.argument("value")
@common.bucket_option
@click.option("--context", metavar="CONTEXT", help="What was read before: the write replaces that, and nothing else.")
@click.option("--w", "w", type=click.IntRange(min=1), metavar="N", help="How many replicas must have stored it.")
@click.option("--ex", type=click.IntRange(min=1), metavar="SECONDS", help="Let it expire after so many seconds.")
@common.json_option
@common.node_option
@common.timeout_option
def put(
    key: str,
    value: str,
    bucket: str,
    context: str | None,
    w: int | None,
    ex: int | None,
    as_json: bool,
    node: str,
    timeout_s: float,
) -> None:
    """Write VALUE ('-': standard input) to KEY, and print the new context.

    Without --context nothing is known to be replaced: the value then stands beside what is there, as a sibling.
    """
    content = sys.stdin.buffer.read() if value == STDIN else value.encode("utf-8", "surrogateescape")
    with common.connect(node, timeout_s) as connection:
        new = write_value(connection, key, content, bucket, context=context, w=w, ex=ex)
    _print_context(new, key, bucket, as_json)


@click.command("del")
@click.argument("key")
@common.bucket_option
@click.option("--context", metavar="CONTEXT", help="What was read before: that is deleted, and nothing else.")
@click.option("--w", "w", type=click.IntRange(min=1), metavar="N", help="How many replicas must have stored it.")
@common.json_option
@common.node_option
@common.timeout_option
def delete(
    key: str, bucket: str, context: str | None, w: int | None, as_json: bool, node: str, timeout_s: float
) -> int:
    """Delete what KEY holds now, or what --context covers. Exit code 1 if there is nothing to delete."""
    with common.connect(node, timeout_s) as connection:
        if context is None:
            found, values = read_siblings(connection, key, bucket)
            if not values:
                click.echo(f"{key} is not there", err=True)
                return MISSING
            context = found.decode()
        new = write_value(connection, key, None, bucket, context=context, w=w)
    _print_context(new, key, bucket, as_json)
    return 0


def _print_context(context: bytes, key: str, bucket: str, as_json: bool) -> None:
    if as_json:
        common.print_json({"key": key, "bucket": bucket, "context": context.decode()})
    else:
        click.echo(f"context {context.decode()}")


# --- explain ---


@click.command()
@click.argument("key")
@common.bucket_option
@common.json_option
@common.node_option
@common.timeout_option
def explain(key: str, bucket: str, as_json: bool, node: str, timeout_s: float) -> int:
    """Where KEY lives, and what each of its replicas holds. Exit code 1 if a replica gave no answer."""
    with common.connect(node, timeout_s) as connection:
        answer = common.ask_json(connection, "CW.EXPLAIN", key, "BUCKET", bucket, "JSON")
    silent = [name for name, held in answer["replicas"].items() if "error" in held]
    if as_json:
        common.print_json(answer)
    else:
        _print_explained(key, answer)
    return 1 if silent else 0


def _print_explained(key: str, answer: dict[str, Any]) -> None:
    from rich.markup import escape

    n, preference = answer["n"], answer["preference"]
    fallbacks = ", ".join(preference[n:])
    click.echo(
        f"{key}: position {answer['position'][:8]}..., partition {answer['partition']}; n={n} r={answer['r']} w={answer['w']}"
    )
    click.echo(f"replicas {', '.join(preference[:n])}" + (f"; fallbacks {fallbacks}" if fallbacks else ""))
    table = common.table("node", "holds", "written by", "at", "dot")
    merged = answer["merged"]
    for name, held in [*answer["replicas"].items(), ("merged", merged)]:
        if "error" in held:
            table.add_row(name, f"[red]no answer: {escape(held['error'])}[/]")
        elif not held["versions"]:
            table.add_row(name, "nothing")
        for number, version in enumerate(held.get("versions", ())):
            what = "a tombstone" if version["tombstone"] else f"{version['bytes']} byte{'s' * (version['bytes'] != 1)}"
            if version["expires_at_ms"]:
                what += f", until {datetime.fromtimestamp(version['expires_at_ms'] / 1000, UTC):%Y-%m-%d %H:%M:%SZ}"
            actor, counter = version["dot"]
            written = f"{_time_of(counter):%Y-%m-%d %H:%M:%S}Z"
            table.add_row("" if number else name, what, node_of(actor), written, dot_name(actor, counter))
    common.console().print(table)
    answered = [held for held in answer["replicas"].values() if "error" not in held]
    who = "all replicas" if len(answered) == len(answer["replicas"]) else f"the {len(answered)} that answered"
    agree = all(held == merged for held in answered)
    click.echo(f"{who} hold the same" if agree else "the replicas differ: a read mends the stale ones it meets")
    noted = " ".join(dot_name(actor, counter) for actor, counter in merged["cloud"])
    click.echo(f"clock {clock_text(merged['clock'])}" + (f"; seen, but not here yet: {noted}" if noted else ""))


def _time_of(counter: int) -> datetime:
    return datetime.fromtimestamp(wall_ms_of(counter) / 1000, UTC)


def dot_name(actor: str, counter: int) -> str:
    """A dot in short: ``n1@44:03.123``, the node and its clock's minute (``+2`` behind it: the third reading in that ms)."""
    at, logical = _time_of(counter), counter & ((1 << LOGICAL_BITS) - 1)
    return f"{node_of(actor)}@{at:%M:%S}.{at.microsecond // 1000:03}" + (f"+{logical}" if logical else "")


def clock_text(clock: dict[str, int]) -> str:
    """A clock in short: ``{n1@44:03.123 n2@44:03.130}``."""
    return "{" + " ".join(dot_name(actor, counter) for actor, counter in sorted(clock.items())) + "}"
