"""``cartwheel status`` and ``cartwheel hints``: the cluster, as its nodes see it.

There is no one view: every node has its own, and they differ while something is wrong (a split, a cut in one direction). So
``status`` asks the node that it is given, and then each member that this node knows a Redis door of, all at once, and shows what
each finds of each other. ``hints`` asks one node, which asks the others.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import click

from cartwheel.cli import common
from cartwheel.core.errors import CartwheelError

if TYPE_CHECKING:
    from rich.table import Table

OTHERS_TIMEOUT_S = 2.0
"""For the answers of the other nodes: one that is paused should not keep a person waiting."""
COLOURS = {"up": "green", "no writes": "yellow", "slow reads": "yellow", "slow writes": "yellow"}
"""The others are red."""

View = dict[str, dict[str, Any]]
"""What one node finds: member -> its state, since when, and why. Of one that did not answer: "error" -> why."""


@click.command()
@common.json_option
@common.node_option
@common.timeout_option
def status(as_json: bool, node: str, timeout_s: float) -> int:
    """The members, and what each node finds of each other. Exit code 1 unless all answer and find each other up."""
    with common.connect(node, timeout_s) as connection:
        answer = common.ask_json(connection, "CW.STATUS", "JSON")
    views = _ask_all(answer, min(timeout_s, OTHERS_TIMEOUT_S))
    troubles = _troubles(views)
    if as_json:
        common.print_json({**answer, "views": views})
    else:
        _print_status(answer, views)
    for trouble in troubles:
        click.echo(trouble, err=True)
    return 1 if troubles else 0


def _ask_all(answer: dict[str, Any], timeout_s: float) -> dict[str, View]:
    """The view of every member, in the order of the members."""

    def ask(member: dict[str, Any]) -> View:
        if member["node"] == answer["node"]:
            return _view(answer)
        if not member["door"]:
            return {"error": {"reason": f"{answer['node']} does not know where its Redis door is"}}
        try:
            with common.connect(member["door"], timeout_s) as connection:
                theirs = common.ask_json(connection, "CW.STATUS", "JSON")
        except (CartwheelError, OSError) as error:
            return {"error": {"reason": str(error)}}
        if (theirs["cluster"], theirs["node"]) != (answer["cluster"], member["node"]):
            return {"error": {"reason": f"at {member['door']} answers {theirs['node']} of cluster {theirs['cluster']}"}}
        return _view(theirs)

    members = answer["members"]
    with ThreadPoolExecutor(max_workers=min(32, len(members))) as threads:
        return dict(zip([member["node"] for member in members], threads.map(ask, members), strict=True))


def _view(answer: dict[str, Any]) -> View:
    return {
        member["node"]: {key: member[key] for key in ("state", "since_s", "reason")} for member in answer["members"]
    }


def _troubles(views: dict[str, View]) -> list[str]:
    """A line for each thing that is not as it should be."""
    lines = []
    for observer, view in views.items():
        if "error" in view:
            lines.append(f"{observer} was not heard: {view['error']['reason']}")
            continue
        for node, found in view.items():
            if found["state"] != "up":
                since = common.duration_text(found["since_s"])
                verdict = f"{observer} cannot reach {node}"
                if found["state"] != "unreachable":
                    whom = "itself" if node == observer else node
                    verdict = f"{observer} finds {whom} {found['state']!r}"
                lines.append(f"{verdict} since {since}: {found['reason']}")
    return lines


def _print_status(answer: dict[str, Any], views: dict[str, View]) -> None:
    table = common.table("node", "peers' address", "Redis door", "zone", "weight", "partitions")
    for member in answer["members"]:
        table.add_row(
            member["node"], member["address"], member["door"] or "-", member["zone"] or "-", f"{member['weight']:g}",
            str(member["partitions"]),
        )  # fmt: skip
    for node in answer.get("leaving", ()):
        table.add_row(node, "leaves: hands over what it holds", "-", "-", "-", "-")
    click.echo(
        f"cluster {answer['cluster']}, seen by {answer['node']} (stint {answer['stint']}, epoch {answer['epoch'][:12]})"
    )
    console = common.console()
    console.print(table)
    click.echo()
    console.print(_matrix(views))
    for note in answer["notes"]:
        click.echo(f"note: {note}")
    if any("protocol" in member for member in answer["members"]):  # the node that is asked may be of an older build
        click.echo(f"versions: {_versions(answer['members'])}")
    click.echo(f"requests under way: {answer['requests']}")
    mended = answer.get("antientropy", {})
    if mended.get("oldest_partition", -1) >= 0:
        click.echo(
            f"anti-entropy: every partition compared within the last {common.duration_text(mended['oldest_s'])}; "
            f"{mended['received']} records mended here, {mended['sent']} sent to others"
        )
    counters = [f"{name} {value}" for name, value in sorted(answer["counters"].items()) if value]
    if counters:
        click.echo("counted since the start: " + ", ".join(counters))


def _versions(members: list[dict[str, Any]]) -> str:
    """Who runs what, as far as the node that was asked knows: of each build those that run it."""
    runners: dict[str, list[str]] = {}
    for member in members:
        text = "not known"
        if member["protocol"]:
            text = f"{member['version'] or 'an older one'} (protocol {member['protocol']})"
        runners.setdefault(text, []).append(member["node"])
    if len(runners) == 1:
        return f"all {next(iter(runners))}"
    return "; ".join(f"{' '.join(nodes)} {text}" for text, nodes in runners.items())


def _matrix(views: dict[str, View]) -> Table:
    """A row for each observer, a column for each node that it observes."""
    table = common.table("finds", *views)
    for observer, view in views.items():
        if "error" in view:
            table.add_row(f"[red]{observer}: no answer[/]", *["?"] * len(views))
            continue
        cells = []
        for node in views:
            state = view[node]["state"] if node in view else "unknown"
            text = f"[{COLOURS.get(state, 'red')}]{state}[/]"
            if state not in {"up", "unknown"}:
                text += f" {common.duration_text(view[node]['since_s'])}"
            cells.append("-" if node == observer and state == "up" else text)
        table.add_row(observer, *cells)
    return table


@click.command()
@common.json_option
@common.node_option
@common.timeout_option
def hints(as_json: bool, node: str, timeout_s: float) -> int:
    """The hints: what each member keeps for others until those are back. Exit code 1 if a member did not answer."""
    with common.connect(node, timeout_s) as connection:
        answer = common.ask_json(connection, "CW.HINTS", "JSON")
    silent = {holder: kept["error"] for holder, kept in answer.items() if isinstance(kept, dict)}
    if as_json:
        common.print_json(answer)
    else:
        _print_hints({holder: kept for holder, kept in answer.items() if holder not in silent})
        for holder, reason in silent.items():
            click.echo(f"{holder} did not answer: {reason}", err=True)
    return 1 if silent else 0


def _print_hints(answer: dict[str, list[dict[str, Any]]]) -> None:
    from rich.markup import escape

    rows = [(holder, kept) for holder, each in answer.items() for kept in each]
    if not rows:
        click.echo("no hints are kept")
        return
    table = common.table("holder", "keeps for", "hints", "bytes", "since", "state")
    for holder, kept in rows:
        state = "delivering" if kept["delivering"] else escape(kept["waits"])
        table.add_row(
            holder, kept["intended"], f"{kept['hints']}", f"{kept['bytes']:,}", common.duration_text(kept["age_s"]), state
        )  # fmt: skip
    common.console().print(table)
