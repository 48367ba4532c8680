"""What commands share: the options that name a node, a connection, and output for people and for programs.

JSON is one document on standard output, keys sorted as written, values that are not UTF-8 as base64 (see ``value_json``).
Tables are drawn with rich, which leaves colours out when the output is no terminal or ``NO_COLOR`` is set.
"""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click

from cartwheel.client.resp import Connection, Reply, ReplyError, parse_address
from cartwheel.core.errors import CartwheelError

if TYPE_CHECKING:
    from rich.console import Console

F = TypeVar("F", bound=Callable[..., Any])

DEFAULT_NODE = "127.0.0.1:7700"
WIDTH_WITHOUT_TERMINAL = 100


class Failed(CartwheelError):
    """A command could not do what it was asked; the message says why and what to do."""


def node_option(command: F) -> F:
    """``--node host:port``."""
    return click.option(
        "--node",
        metavar="HOST:PORT",
        envvar="CARTWHEEL_NODE",
        default=DEFAULT_NODE,
        show_default=True,
        show_envvar=True,
        help="The node to talk to (its port for Redis clients).",
    )(command)


def timeout_option(command: F) -> F:
    """``--timeout seconds``."""
    return click.option(
        "--timeout",
        "timeout_s",
        type=click.FloatRange(min=0.05),
        default=5.0,
        show_default=True,
        metavar="SECONDS",
        help="How long to wait for the node.",
    )(command)


def json_option(command: F) -> F:
    """``--json``."""
    return click.option("--json", "as_json", is_flag=True, help="Print JSON.")(command)


def bucket_option(command: F) -> F:
    """``--bucket name``."""
    return click.option(
        "--bucket", "-b", metavar="NAME", default="0", show_default=True, help="The bucket: a name, or a Redis database."
    )(command)


def connect(node: str, timeout_s: float) -> Connection:
    """Open a connection to a node given as ``host:port``."""
    host, port = parse_address(node)
    return Connection(host, port, timeout_s)


def ask_json(connection: Connection, *command: str | bytes) -> Any:
    """Send a command whose reply is a JSON document, and parse it."""
    reply = connection.call(*command)
    if not isinstance(reply, bytes):
        raise Failed(f"the node at {connection.address} answered {command[0]!r} with {reply!r}, not with JSON")
    try:
        return json.loads(reply)
    except ValueError as error:
        raise Failed(f"the node at {connection.address} answered {command[0]!r} with broken JSON: {error}") from None


def text_of(reply: Reply) -> str:
    """A reply as text for people."""
    if isinstance(reply, bytes):
        return reply.decode("utf-8", "backslashreplace")
    assert not isinstance(reply, ReplyError | list), "a text or number"
    return "" if reply is None else str(reply)


def value_json(value: bytes) -> dict[str, str]:
    """A value for JSON: ``{"value": text}``, or ``{"value_base64": ...}`` when it is not UTF-8."""
    try:
        return {"value": value.decode()}
    except UnicodeDecodeError:
        return {"value_base64": base64.b64encode(value).decode()}


def print_json(document: object) -> None:
    """Print one JSON document."""
    click.echo(json.dumps(document, indent=2, ensure_ascii=False))


def console() -> Console:
    """Where tables go. Without a terminal: plain text, of a width that does not depend on where it runs."""
    from rich.console import Console

    made = Console(highlight=False, emoji=False)
    if not made.is_terminal and "COLUMNS" not in os.environ:
        made.width = WIDTH_WITHOUT_TERMINAL
    return made
