"""``cartwheel status`` and ``cartwheel ring``: the cluster, as the node that is asked sees it.

There is no other view: every node has its own, and they differ while something is wrong. That is why the tables say whose
view they show.
"""

from __future__ import annotations

from typing import Any

import click

from cartwheel.cli import common

BAR_CELLS = 24


@click.command()
@common.json_option
@common.node_option
@common.timeout_option
def status(as_json: bool, node: str, timeout_s: float) -> int:
    """The members, and which of them this node reaches. Exit code 1 if some it does not."""
    with common.connect(node, timeout_s) as connection:
        answer = common.ask_json(connection, "CW.STATUS", "JSON")
    unreachable = [member for member in answer["members"] if not member["reachable"]]
    if as_json:
        common.print_json(answer)
    else:
        _print_status(answer, unreachable)
    return 1 if unreachable else 0


def _print_status(answer: dict[str, Any], unreachable: list[dict[str, Any]]) -> None:
    from rich.markup import escape

    table = common.table("node", "peers' address", "zone", "weight", "partitions", "reachable")
    for member in answer["members"]:
        reachable = "[green]yes[/]" if member["reachable"] else f"[red]no[/] {escape(member['reason'])}".rstrip()
        if member["node"] == answer["node"]:
            reachable = "(itself)"
        table.add_row(
            member["node"], member["address"], member["zone"] or "-", f"{member['weight']:g}", str(member["partitions"]),
            reachable,
        )  # fmt: skip
    click.echo(
        f"cluster {answer['cluster']}, seen by {answer['node']} (stint {answer['stint']}, epoch {answer['epoch'][:12]})"
    )
    common.console().print(table)
    for note in answer["notes"]:
        click.echo(f"note: {note}")
    click.echo(f"requests under way: {answer['requests']}")
    counters = [f"{name} {value}" for name, value in sorted(answer["counters"].items()) if value]
    if counters:
        click.echo("counted since the start: " + ", ".join(counters))
    if unreachable:
        names = ", ".join(member["node"] for member in unreachable)
        click.echo(f"{answer['node']} cannot reach {names}", err=True)


@click.command()
@common.json_option
@common.node_option
@common.timeout_option
def ring(as_json: bool, node: str, timeout_s: float) -> None:
    """The members, and what share of the ring each owns."""
    with common.connect(node, timeout_s) as connection:
        answer = common.ask_json(connection, "CW.RING", "JSON")
    if as_json:
        common.print_json(answer)
        return
    from rich.markup import escape

    members = answer["members"]
    weights = sum(member["weight"] for member in members.values()) or 1.0
    table = common.table("node", "zone", "host", "weight", "partitions", "share", "due", "reachable")
    for name, member in members.items():
        share, due = member["partitions"] / answer["q"], member["weight"] / weights
        bar = "█" * max(1, round(share * BAR_CELLS)) if member["partitions"] else ""
        table.add_row(
            name, member["zone"] or "-", member["host"], f"{member['weight']:g}", str(member["partitions"]),
            f"{share:6.1%} {bar}", f"{due:.1%}", escape(member["reachable"]),
        )  # fmt: skip
    click.echo(f"{answer['q']} partitions, epoch {answer['epoch'][:12]}")
    common.console().print(table)
    click.echo("share: of the partitions, as first choice; due: its part of all weights")
