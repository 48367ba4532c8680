"""What commands share: the options that name a node, a connection, and output for people and for programs.

JSON is one document on standard output, keys sorted as written, values that are not UTF-8 as base64 (see ``value_json``).
Tables are drawn with rich, which leaves colours out when the output is no terminal or ``NO_COLOR`` is set.
"""

from __future__ import annotations

import base64
import json
import os
import shutil
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from cartwheel.client.resp import Connection, Reply, ReplyError, parse_address
from cartwheel.core.errors import CartwheelError

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

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
        "--bucket",
        "-b",
        metavar="NAME",
        default="0",
        show_default=True,
        help="The bucket: a name, or a Redis database.",
    )(command)


def connect(node: str, timeout_s: float) -> Connection:
    """Open a connection to a node given as ``host:port``."""
    host, port = parse_address(node)
    return Connection(host, port, timeout_s)


def port_in_use(host: str, port: int) -> bool:
    """Whether somebody listens there already."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as trial:
        trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            trial.bind((host, port))
        except OSError:
            return True
    return False


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


def size_text(size: float) -> str:
    """Bytes for people: 1.5 MB."""
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"


def value_json(value: bytes) -> dict[str, str]:
    """A value for JSON: ``{"value": text}``, or ``{"value_base64": ...}`` when it is not UTF-8."""
    try:
        return {"value": value.decode()}
    except UnicodeDecodeError:
        return {"value_base64": base64.b64encode(value).decode()}


def print_json(document: object) -> None:
    """Print one JSON document."""
    click.echo(json.dumps(document, indent=2, ensure_ascii=False))


def program() -> str:
    """How the user called us, for hints that can be pasted: ``cartwheel``, ``.venv/bin/cartwheel``, ``python -m cartwheel``."""
    called = Path(sys.argv[0])
    if called.name == "__main__.py":
        return f"{Path(sys.executable).name} -m cartwheel"
    if shutil.which("cartwheel") in (None, str(called)) and called.parent == Path():
        return called.name
    return "cartwheel" if shutil.which("cartwheel") == str(called.absolute()) else str(called)


def duration_text(seconds: float) -> str:
    """A duration for people: ``42 s``, ``3 min``, ``2 h 5 min``."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = int(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60} min"


def table(*titles: str) -> Table:
    """An empty table without lines."""
    from rich.table import Table

    made = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 3, 0, 0))
    for title in titles:
        made.add_column(title, no_wrap=True)
    return made


def console() -> Console:
    """Where tables go. Without a terminal: plain text, of a width that does not depend on where it runs."""
    from rich.console import Console

    made = Console(highlight=False, emoji=False)
    if not made.is_terminal and "COLUMNS" not in os.environ:
        made.width = WIDTH_WITHOUT_TERMINAL
    return made
