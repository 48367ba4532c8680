"""``cartwheel cluster``: who is in the ring. Stage changes, look at the plan, commit; watch the hand-over.

    cartwheel cluster leave n4        staged; every member knows it
    cartwheel cluster plan            who gives what to whom, how even the ring becomes, what to mind
    cartwheel cluster commit          carries out the plan that was shown, or says that it has changed
    cartwheel cluster transfers       how far the hand-over is, and what it waits for

Every command says what comes next. Any member can be asked.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import click

from cartwheel.cli import common
from cartwheel.core.errors import CartwheelError

if TYPE_CHECKING:
    from rich.table import Table

BAR_CELLS = 16
WATCH_S = 0.5
LINE_S = 2.0
"""Between two lines, where there is no terminal to draw on."""
OTHERS_TIMEOUT_S = 2.0


@click.group()
def cluster() -> None:
    """Who is in the ring: stage changes, plan, commit, and watch the hand-over."""


def _call(node: str, timeout_s: float, *words: str) -> str:
    with common.connect(node, timeout_s) as connection:
        reply = connection.call("CW.CLUSTER", *words)
    return common.text_of(reply)


def _show(text: str, as_json: bool) -> None:
    if as_json:
        common.print_json({"result": text})
    else:
        click.echo(text)


def _stage(node: str, timeout_s: float, as_json: bool, *words: str) -> None:
    text = _call(node, timeout_s, *words)
    if as_json:
        common.print_json({"result": text})
        return
    click.echo(text)
    click.echo(
        "next: 'cartwheel cluster plan' shows what it would do; stage more changes first, if they belong together"
    )


def _common(command: Any) -> Any:
    return common.json_option(common.node_option(common.timeout_option(command)))


@cluster.command()
@_common
@click.argument("seed", metavar="HOST:PORT")
def join(seed: str, as_json: bool, node: str, timeout_s: float) -> None:
    """Let the node that is asked, alone and empty, join the cluster at HOST:PORT (a member's port for peers).

    A new node does the same with 'cartwheel start --join HOST:PORT'. Both need the cluster's secret.
    """
    text = _call(node, timeout_s, "JOIN", seed)
    _show(text, as_json)


@cluster.command()
@_common
@click.argument("member")
def leave(member: str, as_json: bool, node: str, timeout_s: float) -> None:
    """Stage that MEMBER hands over all it holds, and leaves."""
    _stage(node, timeout_s, as_json, "LEAVE", member)


@cluster.command()
@_common
@click.argument("member")
def remove(member: str, as_json: bool, node: str, timeout_s: float) -> None:
    """Stage that MEMBER, which is dead, is removed for ever: its copies are made from the others."""
    _stage(node, timeout_s, as_json, "REMOVE", member)


@cluster.command()
@_common
@click.option("--dead", is_flag=True, help="OLD will never return: it is removed for ever.")
@click.argument("old")
@click.argument("new")
def replace(old: str, new: str, dead: bool, as_json: bool, node: str, timeout_s: float) -> None:
    """Stage that NEW, which has asked to join, takes over what OLD owns, and nothing else moves."""
    _stage(node, timeout_s, as_json, "REPLACE", old, new, *(["DEAD"] if dead else []))


@cluster.command()
@_common
@click.argument("member")
@click.argument("weight", type=click.FloatRange(min=0, min_open=True))
def weight(member: str, weight: float, as_json: bool, node: str, timeout_s: float) -> None:
    """Stage another WEIGHT for MEMBER: of weight 2 it carries twice as much as of weight 1."""
    _stage(node, timeout_s, as_json, "WEIGHT", member, f"{weight:g}")


@cluster.command()
@_common
@click.option("--host", default="", metavar="HOST", help="The physical machine, if it is another one.")
@click.argument("member")
@click.argument("zone")
def zone(member: str, zone: str, host: str, as_json: bool, node: str, timeout_s: float) -> None:
    """Stage that MEMBER stands in ZONE."""
    _stage(node, timeout_s, as_json, "ZONE", member, zone, *([host] if host else []))


@cluster.command()
@_common
def double(as_json: bool, node: str, timeout_s: float) -> None:
    """Stage that the ring has twice as many partitions, each with its parent's owners: no data moves."""
    _stage(node, timeout_s, as_json, "DOUBLE")


@cluster.command()
@_common
def abandon(as_json: bool, node: str, timeout_s: float) -> None:
    """Drop what is staged."""
    text = _call(node, timeout_s, "ABANDON")
    _show(text, as_json)


@cluster.command()
@_common
def plan(as_json: bool, node: str, timeout_s: float) -> int:
    """What the staged changes would do. Exit code 1 if they would be refused."""
    with common.connect(node, timeout_s) as connection:
        told = common.ask_json(connection, "CW.CLUSTER", "PLAN", "JSON")
    if as_json:
        common.print_json(told)
    else:
        _print_plan(told)
    return 1 if told["plan"]["refusals"] else 0


def _print_plan(told: dict[str, Any]) -> None:
    if not told["changes"]:
        click.echo("nothing is staged; 'cartwheel cluster --help' lists what can be")
        return
    made = told["plan"]
    click.echo("staged:")
    for change in told["changes"]:
        click.echo(f"  {change}")
    table = common.table("node", "zone", "weight", "first choice", "replicas", "fair", "off by")
    for share in made["shares"]:
        table.add_row(
            share["node"], share["zone"] or "-", f"{share['weight']:g}",
            f"{share['primaries_before']} > {share['primaries_after']}",
            f"{share['replicas_before']} > {share['replicas_after']}", str(share["fair"]),
            f"{share['deviation_percent']:+.1f}%" if share["fair"] else "-",
        )  # fmt: skip
    console = common.console()
    console.print(table)
    if made["transfers"]:
        table = common.table("from", "to", "partitions", "about")
        for row in made["transfers"]:
            size = row["partitions"] * told["partition_bytes"]
            table.add_row(row["giver"] or "(all owners)", row["gainer"], str(row["partitions"]), common.size_text(size))
        console.print(table)
    total = common.size_text(made["moves"] * told["partition_bytes"])
    ratio = f", {made['ratio']:.2f} times the least possible" if made["ratio"] else ""
    click.echo(f"{made['moves']} copies of partitions move, about {total}{ratio}")
    for warning in told["warnings"]:
        click.echo(f"warning: {warning}")
    for refusal in made["refusals"]:
        click.echo(f"refused: {refusal}", err=True)
    if made["refusals"]:
        click.echo("next: 'cartwheel cluster abandon' drops it; or stage what is missing")
    else:
        click.echo(f"next: 'cartwheel cluster commit --plan {told['digest']}', or 'cartwheel cluster abandon'")


@cluster.command()
@_common
@click.option(
    "--plan", "digest", default="", metavar="DIGEST", help="Only if the plan is still the one that was shown."
)
@click.option("--force", is_flag=True, help="Though members do not answer: they hear of it when they are back.")
def commit(digest: str, force: bool, as_json: bool, node: str, timeout_s: float) -> None:
    """Carry out what is staged."""
    words = [*(["DIGEST", digest] if digest else []), *(["FORCE"] if force else [])]
    text = _call(node, timeout_s, "COMMIT", *words)
    if as_json:
        common.print_json({"result": text})
        return
    click.echo(text)
    click.echo("next: 'cartwheel cluster transfers --wait' shows the hand-over; the cluster serves all the while")


@cluster.command()
@_common
def history(as_json: bool, node: str, timeout_s: float) -> None:
    """Every change of membership and of buckets, with its author and time."""
    with common.connect(node, timeout_s) as connection:
        told = common.ask_json(connection, "CW.CLUSTER", "HISTORY", "JSON")
    if as_json:
        common.print_json(told)
        return
    table = common.table("time (UTC)", "at node", "change")
    for row in told:
        at = (
            datetime.fromtimestamp(row["at_ms"] / 1000, UTC).isoformat(" ", "seconds")[:19]
            if row["at_ms"]
            else "founding"
        )
        table.add_row(at, row["author"], row["change"])
    common.console().print(table)


@cluster.command("safe-to-stop")
@_common
@click.argument("member")
def safe_to_stop(member: str, as_json: bool, node: str, timeout_s: float) -> int:
    """Whether MEMBER can be stopped now, and every key still be written and have its copies. Exit code 1 if not."""
    with common.connect(node, timeout_s) as connection:
        told = common.ask_json(connection, "CW.CLUSTER", "SAFETOSTOP", member, "JSON")
    if as_json:
        common.print_json({"node": member, "safe": not told, "reasons": told})
    elif told:
        for reason in told:
            click.echo(reason if reason.startswith(f"{member} ") else f"{member}: {reason}", err=True)
    else:
        click.echo(f"{member} may be stopped: every key keeps W owners that answer")
    return 1 if told else 0


@cluster.command()
@_common
@click.option("--wait", is_flag=True, help="Watch until everything is handed over.")
def transfers(wait: bool, as_json: bool, node: str, timeout_s: float) -> int:
    """The hand-over of partitions: how far it is, and what it waits for. Exit code 1 while it goes on."""
    seen = _look(node, timeout_s)
    if wait and _under_way(seen):
        seen = _watch(seen, lambda: _look(node, timeout_s), shown=not as_json)
    if as_json:
        common.print_json({"done": not _under_way(seen), **seen})
    else:
        _print_transfers(seen)
    return 1 if _under_way(seen) else 0


def _look(node: str, timeout_s: float) -> dict[str, Any]:
    """The hand-over as all see it.

    ``nodes``: what each says of its part; {"error": ...} of one that does not answer. By the view of the node that is asked
    ``moving``: partitions under way; ``leaving``: who has not given everything yet; ``due``: how many each node is to have.
    """
    with common.connect(node, timeout_s) as connection:
        status = common.ask_json(connection, "CW.STATUS", "JSON")
        planned = common.ask_json(connection, "CW.CLUSTER", "PLAN", "JSON")
    doors = {member["node"]: member["door"] for member in status["members"] if member["node"] != status["node"]}

    def ask(door: str) -> dict[str, Any]:
        if not door:
            return {"error": f"{status['node']} does not know where its Redis door is"}
        try:
            with common.connect(door, min(timeout_s, OTHERS_TIMEOUT_S)) as connection:
                return dict(common.ask_json(connection, "CW.STATUS", "JSON")["transfer"])
        except (CartwheelError, OSError) as error:
            return {"error": str(error)}

    found = {status["node"]: status["transfer"]}
    if doors:
        with ThreadPoolExecutor(max_workers=min(32, len(doors))) as threads:
            found |= dict(zip(doors, threads.map(ask, doors.values()), strict=True))
    due = {share["node"]: share["replicas_before"] for share in planned["plan"]["shares"]}
    return {
        "nodes": dict(sorted(found.items())), "moving": planned["moving"], "leaving": status["leaving"], "due": due,
    }  # fmt: skip


def _answered(seen: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {name: view for name, view in seen["nodes"].items() if "error" not in view}


def _left(view: dict[str, Any]) -> int:
    """Partitions that a node has still to take over; of several sources each counts."""
    return sum(row["partitions"] for row in view["gains"])


def _under_way(seen: dict[str, Any]) -> bool:
    """Whether partitions are still to be handed over: that is known even of nodes that do not answer. Nothing waits for the
    tidying up of those that stay."""
    return bool(seen["moving"] or seen["leaving"] or any(_left(view) for view in _answered(seen).values()))


def _watch(seen: dict[str, Any], look: Callable[[], dict[str, Any]], *, shown: bool) -> dict[str, Any]:
    """Look again and again until all is handed over. On a terminal the table is drawn anew; elsewhere there is a line for each
    change."""
    from rich.live import Live

    console = common.console()
    told, due_s = "", 0.0
    drawn = Live(console=console, transient=True, auto_refresh=False) if shown and console.is_terminal else None
    with drawn or nullcontext():
        while _under_way(seen):
            if drawn is not None:
                drawn.update(_table(seen), refresh=True)
            elif shown and (line := _progress(seen)) != told and time.monotonic() >= due_s:
                click.echo(line)
                told, due_s = line, time.monotonic() + LINE_S
            time.sleep(WATCH_S)
            seen = look()
    return seen


def _progress(seen: dict[str, Any]) -> str:
    views = _answered(seen)
    left, received = sum(map(_left, views.values())), sum(view["received"] for view in views.values())
    line = f"{left} partitions to take over, {received:,} records received"
    waits = sorted({_why(row) for view in views.values() for row in view["gains"] if row["source"] and row["waits"]})
    silent = [f"no answer from {name}" for name in seen["nodes"] if name not in views]
    return "; ".join([line, *(f"{node} leaves" for node in seen["leaving"]), *waits, *silent])


def _why(row: dict[str, Any]) -> str:
    """What becomes of the partitions from one source; of those with none, another node catches up with them first."""
    if not row["source"]:
        return f"later: {row['waits']}"
    if row["comparing"]:
        return "comparing, and copying what differs"
    return f"waits: {row['waits']}" if row["waits"] else "its turn comes"


def _table(seen: dict[str, Any]) -> Table:
    """A row for each pair of nodes that hand over. The bar is of all that the gaining node is to have."""
    from rich.markup import escape

    table = common.table("node", "takes over from", "left", "has of what it is to have", "state")
    table.columns[-1].no_wrap = False  # a long reason must not squeeze the rest
    for name, view in seen["nodes"].items():
        if "error" in view:
            table.add_row(name, "?", "?", "", "[red]no answer[/]")
            continue
        due = seen["due"].get(name, 0)
        bar = _bar(max(0, due - _left(view)), due)
        for row in view["gains"]:
            table.add_row(name, row["source"] or "-", str(row["partitions"]), bar, escape(_why(row)))
            bar = ""
        if view["leftovers"]:
            table.add_row(name, "-", "0", "", f"tidies up {view['leftovers']} partitions")
    return table


def _bar(has: int, due: int) -> str:
    if not due:
        return ""
    cells = BAR_CELLS * has // due
    return "█" * cells + "░" * (BAR_CELLS - cells) + f" {has} of {due}"


def _print_transfers(seen: dict[str, Any]) -> None:
    table = _table(seen)
    if table.row_count:
        common.console().print(table)
    for name, view in seen["nodes"].items():
        if "error" in view:
            click.echo(f"{name} was not heard: {view['error']}", err=True)
    for name in seen["leaving"]:
        click.echo(f"{name} leaves, and has not handed over everything yet: let it run")
    views = _answered(seen).values()
    if not _under_way(seen):
        tidying = ", and nobody waits for the tidying up" if any(view["leftovers"] for view in views) else ""
        click.echo(f"everything is handed over{tidying}")
    elif seen["moving"] and not any(map(_left, views)):
        click.echo(f"{seen['moving']} partitions are to be handed over, and wait for nodes that do not answer")
