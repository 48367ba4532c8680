"""``cartwheel repair``: anti-entropy now, instead of at its turn, with a bar that shows how far it is.

Anti-entropy always runs: nobody has to call this. It is for the impatient, and for scripts that want to know that a node has been
compared, say before another one is taken away. The work is the node's; when this command is interrupted, it goes on.
"""

from __future__ import annotations

import time
from typing import Any

import click

from cartwheel.cli import common
from cartwheel.cli.common import Failed
from cartwheel.client.resp import Connection

POLL_S = 0.2


@click.command()
@click.option("--partition", "-p", type=click.IntRange(min=0), metavar="P", help="Only this partition.")
@click.option("--with", "peer", metavar="NAME", help="Compare with this node only.")
@common.json_option
@common.node_option
@common.timeout_option
def repair(partition: int | None, peer: str | None, as_json: bool, node: str, timeout_s: float) -> int:
    """Compare what a node holds with the others now, and mend what differs.

    Both ways: it gives what it has newer and takes what the others have newer. Exit code 1 if some of it could not be compared.
    """
    words = [] if partition is None else ["PARTITION", str(partition)]
    words += [] if peer is None else ["WITH", peer]
    with common.connect(node, timeout_s) as connection:
        begun = common.ask_json(connection, "CW.REPAIR", "START", *words, "JSON")
        done = _watch(connection, begun, quiet=as_json)
    if as_json:
        common.print_json(done)
    else:
        click.echo(
            f"compared {done['done']} of {done['total']} (each a partition with one node): "
            f"{done['received']} records received, {done['sent']} sent"
        )
        for name, reason in done["reasons"].items():
            click.echo(f"not all could be compared with {name}: {reason}", err=True)
    return 1 if done["failed"] else 0


def _watch(connection: Connection, begun: dict[str, Any], *, quiet: bool) -> dict[str, Any]:
    """Ask how far it is until it is done."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[moved]} records moved"),
        TimeElapsedColumn(),
    )
    told = begun
    console = common.console()
    quiet = quiet or not console.is_terminal
    with Progress(*columns, console=console, transient=True, disable=quiet) as progress:
        task = progress.add_task("", total=begun["total"], moved=0)
        while not told["finished"]:
            time.sleep(POLL_S)
            told = common.ask_json(connection, "CW.REPAIR", "STATUS", "JSON")
            if told["id"] != begun["id"]:
                raise Failed("the node was asked for another repair meanwhile, or was started again")
            moved = told["received"] + told["sent"]
            progress.update(task, completed=told["done"] + told["failed"], moved=moved)
    return told
