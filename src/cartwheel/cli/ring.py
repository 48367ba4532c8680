"""``cartwheel ring``: the ring as one node sees it, and ``ring simulate``, how rings of several makes spread the load.

The first asks a node. The second asks nobody: it is section 6.2 of the paper, carried out in this process (``bench.strategies``).
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from cartwheel.cli import common

if TYPE_CHECKING:
    from rich.table import Table

    from cartwheel.bench.strategies.figure_6 import Figure6
    from cartwheel.bench.strategies.figure_8 import Efficiency, Figure8
    from cartwheel.bench.strategies.simulate import Report

BAR_CELLS = 24
FIGURES = ("8", "6", "all")


@click.group(invoke_without_command=True)
@common.json_option
@common.node_option
@common.timeout_option
@click.pass_context
def ring(ctx: click.Context, as_json: bool, node: str, timeout_s: float) -> None:
    """The members, and what share of the ring each owns."""
    if ctx.invoked_subcommand is None:
        _show(as_json, node, timeout_s)
        return
    for name in ("as_json", "node", "timeout_s"):
        if ctx.get_parameter_source(name) is ParameterSource.COMMANDLINE:
            raise click.UsageError(
                f"--json, --node and --timeout before {ctx.invoked_subcommand!r} would be for the ring of a node"
            )


def _show(as_json: bool, node: str, timeout_s: float) -> None:
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


# --- simulate ---


@ring.command(short_help="How evenly the Dynamo paper's strategies, and Cartwheel's, spread the load.")
@click.option(
    "--figure", type=click.Choice(FIGURES), default="all", show_default=True, help="Which of the paper's figures."
)
@click.option("--nodes", type=int, default=30, show_default=True, help="How many nodes (S).")
@click.option("--n", type=int, default=3, show_default=True, help="On how many nodes a key is kept (N).")
@click.option(
    "--seeds", type=int, default=10, show_default=True, metavar="K", help="How many random placements to average."
)
@click.option(
    "--seed", type=int, default=1, show_default=True, help="The first of them. The same seeds give the same figures."
)
@click.option(
    "--tokens-max",
    type=int,
    default=1024,
    show_default=True,
    metavar="T",
    help="Figure 8: the most tokens a node; a power of two.",
)
@click.option(
    "--q",
    type=int,
    default=1024,
    show_default=True,
    help="Partitions of strategy 2 (Figure 8) and of Cartwheel's ring (Figure 6); a power of two.",
)
@click.option(
    "--ring-q-max",
    type=int,
    default=2048,
    show_default=True,
    metavar="Q",
    help="Figure 8: the largest of Cartwheel's own rings. 32768 takes a minute.",
)
@click.option(
    "--tokens", type=int, default=44, show_default=True, metavar="T", help="Figure 6: tokens a node in strategy 1."
)
@click.option(
    "--popular-keys",
    type=int,
    default=12_000,
    show_default=True,
    metavar="COUNT",
    help="Figure 6: different keys that are accessed in half an hour, at the peak.",
)
@click.option(
    "--plot",
    "plot_file",
    type=click.Path(dir_okay=False, writable=True, path_type=Path),
    metavar="FILE.svg",
    help="Also draw the figures.",
)
@common.json_option
def simulate(plot_file: Path | None, as_json: bool, **options: Any) -> None:
    """Section 6.2 of the Dynamo paper: how evenly its three partitioning strategies, and Cartwheel's, spread the load.

    Figure 8 is load balancing efficiency (mean load of a node / highest) against the size of the membership metadata. Figure 6 is
    the share of nodes out of balance (15 % or more off the mean) over a day. No cluster is needed or touched.

    \b
    Examples:
      cartwheel ring simulate
      cartwheel ring simulate --figure 8 --seeds 40 --plot figure8.svg
      cartwheel ring simulate --figure 8 --nodes 5 --ring-q-max 4096
      cartwheel ring simulate --figure 6 --json | jq .figure_6.bands
    """
    import msgspec
    from rich.console import Console

    from cartwheel.bench.strategies.picture import picture
    from cartwheel.bench.strategies.simulate import Options
    from cartwheel.bench.strategies.simulate import simulate as carry_out
    from cartwheel.core.errors import ConfigError

    if plot_file is not None:
        _check_plot(plot_file)
    try:
        checked = Options(**options).check()
    except ConfigError as error:
        raise click.UsageError(str(error), click.get_current_context()) from None
    with Console(stderr=True).status("placing nodes on rings ..."):  # shows on a terminal only
        report = carry_out(checked)
    if plot_file is not None:
        plot_file.write_text(picture(report), "utf-8")
    if as_json:
        common.print_json(msgspec.to_builtins(report))
    else:
        _print_report(report)
        if plot_file is not None:
            click.echo(f"\ndrawn in {plot_file}")


def _check_plot(file: Path) -> None:
    """Complain before the work, not after it."""
    context = click.get_current_context()
    if file.suffix.lower() != ".svg":
        raise click.UsageError(f"--plot {file}: only SVG can be written; give it a name that ends in .svg", context)
    if not file.parent.is_dir():
        raise click.UsageError(f"--plot {file}: there is no folder {file.parent}", context)


def _print_report(report: Report) -> None:
    options = report.options
    seeds = "1 seed" if options.seeds == 1 else f"{options.seeds} seeds"
    click.echo(f"{options.nodes} nodes, N = {options.n}, {seeds} from {options.seed} on")
    console = common.console()
    if report.figure_8 is not None:
        compared = any(row.strategy_1.paper is not None for row in report.figure_8.rows)
        brackets = "; in brackets the paper's, and the difference" if compared else ""
        click.echo(f"\nFigure 8: load balancing efficiency{brackets}")
        console.print(_strategies(report.figure_8))
        click.echo(
            "entries: that each node keeps; T: tokens a node; claimed: strategy 3 as Cartwheel assigns the tokens"
        )
        if report.figure_8.rings:
            click.echo("\nThe rings that Cartwheel makes, whose q is a power of two")
            console.print(_rings(report.figure_8, options.nodes))
    if report.figure_6 is not None:
        click.echo("\nFigure 6: share of nodes out of balance (15 % or more off the mean), by load")
        console.print(_bands(report.figure_6))
        click.echo()
        console.print(_day(report.figure_6))


def _strategies(figure: Figure8) -> Table:
    table = common.table("entries", "T", "strategy 1", "strategy 2", "strategy 3", "claimed")
    for row in figure.rows:
        cells = [_cell(each) for each in (row.strategy_1, row.strategy_2, row.strategy_3)]
        table.add_row(f"{row.metadata:,}", str(row.tokens), *cells, f"{row.claimed:.3f}")
    return table


def _cell(found: Efficiency) -> str:
    if found.paper is None:
        return f"{found.mean:.3f}"
    difference = round(found.mean - found.paper, 3) + 0.0  # without it, "-0.000"
    return f"{found.mean:.3f} ({found.paper:.2f} {difference:+.3f})"


def _rings(figure: Figure8, nodes: int) -> Table:
    table = common.table("q", "partitions a node", "all from the start", "joined one by one")
    for row in figure.rings:
        fewest, rest = divmod(row.q, nodes)
        each = f"{fewest} or {fewest + 1}" if rest else str(fewest)
        table.add_row(f"{row.q:,}", each, f"{row.founded:.3f}", f"{row.grown:.3f}")
    return table


def _bands(figure: Figure6) -> Table:
    ours = f"Cartwheel's ring, q = {figure.q:,}"
    table = common.table("load, of the peak", "half hours", f"strategy 1, T = {figure.tokens}", ours)
    for band in figure.bands:
        load = f"{band.load_min:.2f} to {band.load_max:.2f}"
        table.add_row(load, str(band.windows), f"{band.strategy_1:.1%}", f"{band.claimed:.1%}")
    return table


def _day(figure: Figure6) -> Table:
    """The day as blocks, a column for each half hour, and what the highest is."""
    from cartwheel.bench.plot import blocks

    table = common.table("from 0 to 24 h", "", "highest")
    highest = max(max(window.strategy_1, window.claimed) for window in figure.windows)
    for name, field in (("load", "load"), ("strategy 1", "strategy_1"), ("Cartwheel's ring", "claimed")):
        values = [getattr(window, field) for window in figure.windows]
        top = max(values)
        table.add_row(name, blocks(values, 1.0 if field == "load" else highest), f"{top:.1%}")
    return table
