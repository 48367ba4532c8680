"""``cartwheel dev``: a cluster of real nodes on this machine, and the levers to break it.

Without a sub-command it is the cluster: it stays in the foreground as the supervisor (see ``supervisor``) until Ctrl-C. The
sub-commands speak to it from another terminal; ``--data`` says to which, if there are several.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, get_args

import click

from cartwheel.cli import common
from cartwheel.cli.common import Failed
from cartwheel.core.errors import ConfigError
from cartwheel.runtime.settings import LOOPBACK_HOST, EngineName, default_data

if TYPE_CHECKING:
    from cartwheel.cli.supervisor import ClusterState, Plan

DEFAULT_NODES, DEFAULT_PORT = 3, 7700
NODES_MAX = 32
"""More processes than that on one machine measure the machine."""
FOLLOW_S = 0.2
"""How often ``logs --follow`` looks for more."""
PROBE_TIMEOUT_S = 0.5
STARTING_S = 10.0
"""A node that does not answer is said to be starting for so long."""

F = TypeVar("F", bound=Callable[..., Any])


def _data_option(command: F) -> F:
    return click.option(
        "--data",
        "directory",
        metavar="DIR",
        type=click.Path(path_type=Path, file_okay=False),
        envvar="CARTWHEEL_DEV_DATA",
        show_envvar=True,
        help="Where the cluster lives. [default: ~/.local/share/cartwheel/dev]",
    )(command)


def _directory(ctx: click.Context, given: Path | None) -> Path:
    """The cluster's directory: that of the sub-command, else of ``cartwheel dev`` itself, else the usual one."""
    given = given or (ctx.parent.params.get("directory") if ctx.parent else None)
    return given.expanduser().absolute() if given else default_data(os.environ) / "dev"


def _node_argument(command: F) -> F:
    """``2`` and ``n2`` both mean ``n2``."""

    def name(ctx: click.Context, param: click.Parameter, text: str) -> str:
        del ctx, param
        digits = text.removeprefix("n")
        if not (digits.isascii() and digits.isdigit()) or digits.startswith("0"):
            raise click.BadParameter(f"{text!r} is no node: write 2 or n2")
        return f"n{digits}"

    return click.argument("node", metavar="N", callback=name)(command)


@click.group(invoke_without_command=True)
@click.option("--nodes", type=click.IntRange(1, NODES_MAX), help=f"How many nodes. [default: {DEFAULT_NODES}]")
@click.option("--port", type=int, help=f"The first node's port; the next ones are 10 apart. [default: {DEFAULT_PORT}]")
@_data_option
@click.option("--engine", type=click.Choice(get_args(EngineName)), help="The storage engine. [default: rocksdb]")
@click.option("--fresh", is_flag=True, help="Throw away what the last run left, and begin anew.")
@click.pass_context
def dev(
    ctx: click.Context, nodes: int | None, port: int | None, directory: Path | None, engine: str | None, fresh: bool
) -> int:
    """Run a cluster on this machine, in the foreground, until Ctrl-C.

    Node n1 takes Redis clients on the port, n2 on the port + 10, and so on. Data stay for the next run (--fresh discards them).

    From another terminal: 'cartwheel dev kill 2', 'cartwheel dev status', ...
    """
    if ctx.invoked_subcommand is not None:
        if fresh or nodes is not None or port is not None or engine is not None:
            raise click.UsageError(
                f"--nodes, --port, --engine and --fresh are for starting a cluster, not for {ctx.invoked_subcommand!r}"
            )
        return 0
    return _run(_directory(ctx, directory), nodes, port, engine, fresh)


def _run(directory: Path, nodes: int | None, port: int | None, engine: str | None, fresh: bool) -> int:
    from cartwheel.cli import supervisor

    supervisor.check_ours(directory)
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    with supervisor.lock(directory):
        supervisor.stop_leftovers(directory, _say)
        if fresh:
            supervisor.wipe(directory)
        plan = _plan(supervisor.read_state(directory), directory, nodes, port, engine)
        _check_ports(plan)
        began = time.monotonic()
        _say(f"starting {plan.nodes} node{'s' if plan.nodes > 1 else ''} ({plan.engine}), data and logs in {directory}")

        def on_ready() -> None:
            _say(f"ready after {time.monotonic() - began:.1f} s")
            _welcome(plan)

        code = supervisor.Supervisor(directory, plan, _say).run(on_ready)
        _say("all nodes are stopped")
        return code


def _say(line: str) -> None:
    click.echo(line)
    sys.stdout.flush()


def _plan(
    former: ClusterState | None, directory: Path, nodes: int | None, port: int | None, engine: str | None
) -> Plan:
    """What to run: what is in the directory already, if anything is. Then it cannot be run as something else."""
    from cartwheel.cli.supervisor import Plan

    if former is None:
        return Plan(nodes or DEFAULT_NODES, DEFAULT_PORT if port is None else port, engine or "rocksdb").check()
    plan = former.plan
    for what, asked, have in (
        ("--nodes", nodes, plan.nodes),
        ("--port", port, plan.port),
        ("--engine", engine, plan.engine),
    ):
        if asked is not None and asked != have:
            raise ConfigError(
                f"{what} {asked}: the cluster in {directory} was made with {what} {have}, and keeps it. Discard it with "
                "--fresh, or name another directory with --data"
            )
    return plan


def _check_ports(plan: Plan) -> None:
    for name in plan.names():
        for port, door in ((plan.resp_port(name), "Redis clients"), (plan.peer_port(name), "peers")):
            if common.port_in_use(LOOPBACK_HOST, port):
                raise Failed(
                    f"port {port} is in use, and {name} needs it for {door}: stop who has it, or choose others with --port "
                    "(a cluster that exists already keeps its ports: then also --data or --fresh)"
                )


def _welcome(plan: Plan) -> None:
    table = common.table("node", "Redis clients", "peers")
    for name in plan.names():
        table.add_row(name, f"127.0.0.1:{plan.resp_port(name)}", f"127.0.0.1:{plan.peer_port(name)}")
    out, program = common.console(), common.program()
    out.print(table)
    first, last = plan.port, plan.resp_port(plan.names()[-1])
    at = "" if first == DEFAULT_PORT else "".join(f" --node 127.0.0.1:{plan.resp_port(n)}" for n in plan.names()[:2])
    _say("\nThree things to try, in another terminal:")
    _say(f"  redis-cli -p {first} set cart milk && redis-cli -p {last} get cart")
    _say(f"  {program} demo cart{at}")
    if plan.nodes > 1:
        _say(f"  {program} dev kill {min(2, plan.nodes)} && redis-cli -p {first} set cart 'milk, bread'")
    else:
        _say(f"  {program} explain cart{at}")
    _say("\nCtrl-C stops all nodes. Their data stay for the next run; --fresh discards them.")


# --- the levers ---


@dev.command()
@_data_option
@common.json_option
@click.pass_context
def status(ctx: click.Context, directory: Path | None, as_json: bool) -> int:
    """What the nodes are doing. Exit code 1 if not all of them serve."""
    from cartwheel.cli import supervisor

    directory = _directory(ctx, directory)
    answer = supervisor.order(directory, "status")
    rows = []
    for node in answer["nodes"]:
        state, pid = node["state"], node["pid"]
        unreachable: list[str] | None = None
        if state == "running":
            answers, unreachable = supervisor.probe(node["resp_port"], PROBE_TIMEOUT_S)
            young = time.time() - node["started_at"] < STARTING_S
            state = "serving" if answers else "starting" if young else "not answering"
        rows.append(
            {
                "node": node["node"],
                "state": state,
                "pid": pid,
                "redis": f"127.0.0.1:{node['resp_port']}",
                "peers": f"127.0.0.1:{node['peer_port']}",
                "rss_bytes": supervisor.rss_bytes(pid) if pid else None,
                "uptime_s": round(time.time() - node["started_at"], 1) if pid else None,
                "exit_code": node["exit_code"],
                "unreachable": unreachable,
            }
        )
    if as_json:
        common.print_json({"directory": str(directory), "supervisor": answer["supervisor"], "nodes": rows})
    else:
        _print_status(directory, rows)
    return 0 if all(row["state"] == "serving" for row in rows) else 1


def _print_status(directory: Path, rows: list[dict[str, Any]]) -> None:
    table = common.table("node", "state", "pid", "Redis clients", "peers", "memory", "up")
    colours = {"serving": "green", "paused": "yellow"}
    for row in rows:
        state = row["state"] + (f" ({row['exit_code']})" if row["state"] == "died" else "")
        memory = f"{row['rss_bytes'] / 2**20:.0f} MiB" if row["rss_bytes"] else ""
        uptime = common.duration_text(row["uptime_s"]) if row["uptime_s"] is not None else ""
        colour = colours.get(row["state"], "red")
        table.add_row(
            row["node"], f"[{colour}]{state}[/]", str(row["pid"] or ""), row["redis"], row["peers"], memory, uptime
        )
    out = common.console()
    out.print(table)
    for row in rows:
        if row["unreachable"]:
            click.echo(f"{row['node']} cannot reach {', '.join(row['unreachable'])}")
    click.echo(f"in {directory}")


def _lever(verb: str, done: str, text: str) -> None:
    """Add the sub-command that has the supervisor do ``verb`` to one node."""

    @dev.command(verb, help=text)
    @_node_argument
    @_data_option
    @common.json_option
    @click.pass_context
    def lever(ctx: click.Context, node: str, directory: Path | None, as_json: bool) -> None:
        from cartwheel.cli import supervisor

        answer = supervisor.order(_directory(ctx, directory), verb, node)
        if as_json:
            common.print_json(answer["node"])
        else:
            click.echo(f"{node} {done}")


_lever("kill", "killed (SIGKILL): no good-bye, no last sync", "Kill a node (SIGKILL): no good-bye, no last sync.")
_lever("stop", "stopped", "Stop a node cleanly (SIGTERM), and wait for it.")
_lever(
    "start", "started; 'cartwheel dev status' tells when it serves", "Start a node that was killed or stopped, or died."
)
_lever(
    "pause",
    "paused (SIGSTOP): it is frozen, its connections stay open",
    "Freeze a node (SIGSTOP): a slow peer, not a gone one.",
)
_lever("resume", "resumed", "Let a paused node go on.")


@dev.command()
@_node_argument
@click.option("--follow", "-f", is_flag=True, help="Go on as the log grows, until Ctrl-C.")
@_data_option
@click.pass_context
def logs(ctx: click.Context, node: str, follow: bool, directory: Path | None) -> None:
    """Print what a node has logged, from the first start on."""
    file = _directory(ctx, directory) / node / "log"
    try:
        opened = file.open("rb")
    except FileNotFoundError:
        raise Failed(f"there is no log {file}: is {node} a node of this cluster? see 'cartwheel dev status'") from None
    with opened:
        while True:
            while chunk := opened.read(1 << 16):
                click.echo(chunk, nl=False)
            if not follow:
                return
            time.sleep(FOLLOW_S)
