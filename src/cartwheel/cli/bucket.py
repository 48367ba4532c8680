"""``cartwheel bucket``: the properties of buckets (n, r, w, durability, ...), which hold for the whole cluster."""

from __future__ import annotations

from typing import Any

import click

from cartwheel.cli import common
from cartwheel.client.resp import Connection


@click.group()
def bucket() -> None:
    """Read and set the properties of buckets. A change reaches all nodes by itself, in a moment."""


@bucket.command("list")
@common.json_option
@common.node_option
@common.timeout_option
def list_(as_json: bool, node: str, timeout_s: float) -> None:
    """The buckets that have properties of their own or hold keys."""
    with common.connect(node, timeout_s) as connection:
        reply = connection.call("CW.BUCKET", "LIST")
    assert isinstance(reply, list), "CW.BUCKET LIST answers with a list"
    names = [common.text_of(each) for each in reply]
    if as_json:
        common.print_json(names)
    else:
        for name in names:
            click.echo(name)


@bucket.command("get")
@click.argument("name")
@common.json_option
@common.node_option
@common.timeout_option
def get(name: str, as_json: bool, node: str, timeout_s: float) -> None:
    """All properties of the bucket NAME."""
    with common.connect(node, timeout_s) as connection:
        _print(_read(connection, name), as_json)


@bucket.command("set")
@click.argument("name")
@click.argument("properties", nargs=-1, required=True, metavar="PROPERTY=VALUE...")
@common.json_option
@common.node_option
@common.timeout_option
def set_(name: str, properties: tuple[str, ...], as_json: bool, node: str, timeout_s: float) -> None:
    """Set properties of the bucket NAME, such as n=3 r=1 w=3 durability=os."""
    arguments: list[str] = []
    for text in properties:
        prop, equals, value = text.partition("=")
        if not (prop and equals and value):
            raise click.UsageError(f"{text!r} is not PROPERTY=VALUE, such as w=3", click.get_current_context())
        arguments += [prop, value]
    with common.connect(node, timeout_s) as connection:
        connection.call("CW.BUCKET", "SET", name, *arguments)
        _print(_read(connection, name), as_json)


def _read(connection: Connection, name: str) -> dict[str, Any]:
    properties: dict[str, Any] = common.ask_json(connection, "CW.BUCKET", "GET", name, "JSON")
    return properties


def _print(properties: dict[str, Any], as_json: bool) -> None:
    if as_json:
        common.print_json(properties)
    else:
        for prop, value in properties.items():
            click.echo(f"{prop}={value}")
