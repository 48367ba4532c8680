"""What growing and shrinking costs: ``python -m cartwheel.bench.grow``.

Starts nodes of its own on this machine, in a temporary folder: ``growth`` says what happens, ``steady`` what the clients do,
``judge`` what they were promised. With ``--idle-transfer`` it measures the hand-over alone (``idle``).

Exit status: 0; 1 if an acknowledged write was lost, or a read did not find it or found an older one, or the run could not be
carried out; 2 for a wrong option; 130 after Ctrl-C. What was merely too slow is for the table to say.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import click
import msgspec
from rich.console import Console, RenderableType

from cartwheel.bench.growth import Say, run_growth
from cartwheel.bench.growth_render import render_growth, render_idle
from cartwheel.bench.growth_result import GrowthOptions, judged
from cartwheel.bench.idle import run_idle
from cartwheel.bench.render import ProgressLine
from cartwheel.bench.run import Progress
from cartwheel.core.errors import CartwheelError, ConfigError

DONE, FAILED, INTERRUPTED = 0, 1, 130

Outcome: TypeAlias = tuple[msgspec.Struct, RenderableType, int]
"""The result, the same for people, and the exit status."""


# fmt: off
@click.command(context_settings={"show_default": True})
@click.option("--keys", type=click.IntRange(10), default=200_000, help="How many keys there are.")
@click.option("--rate", "rate_per_s", type=click.FloatRange(1), default=1000.0, metavar="PER_SECOND",
              help="Operations a second, on a fixed schedule, all the while.")
@click.option("--value-bytes", type=click.IntRange(32), default=100, help="Size of a value.")
@click.option("--read-ratio", type=click.FloatRange(0, 1), default=0.5, help="Share of reads.")
@click.option("--distribution", type=click.Choice(["uniform", "zipfian"]), default="uniform",
              help="Which keys: all alike, or few of them very often.")
@click.option("-c", "--connections", type=click.IntRange(1), default=50, help="Connections, in all.")
@click.option("-P", "--pipeline", type=click.IntRange(1), default=1, help="Requests in flight on each connection.")
@click.option("--baseline", "baseline_s", type=click.FloatRange(0.5), default=20.0, metavar="SECONDS",
              help="Length of the phases before and after.")
@click.option("--steady", "steady_s", type=click.FloatRange(0.5), default=20.0, metavar="SECONDS",
              help="Length of the phase with six nodes.")
@click.option("--warmup", "warmup_s", type=click.FloatRange(0), default=5.0, metavar="SECONDS", help="Before the baseline.")
@click.option("--one-by-one", is_flag=True, help="A commit for each node, instead of one for all three.")
@click.option("--leave", type=click.Choice(["first", "last"]), default="first",
              help="Who leaves: the first three nodes, to which clients are connected, or the last.")
@click.option("--spread", is_flag=True, help="Clients also connect to the new nodes, as soon as these are members.")
@click.option("--strict", is_flag=True,
              help="Only owners count (pr=2, pw=2). Otherwise fallbacks do, for owners that are late, and reads may be stale.")
@click.option("--idle-transfer", is_flag=True,
              help="Without load: a second node joins one with all the keys; then a tenth of them with values of 10 KB.")
@click.option("--setting", "settings", multiple=True, metavar="NAME=VALUE",
              help="A setting of the nodes, as in `cartwheel start`: give_grace_s=5. May be repeated.")
@click.option("--limit", "limit_s", type=click.FloatRange(1), default=3600.0, metavar="SECONDS",
              help="The longest that a hand-over may take.")
@click.option("--timeout", "timeout_s", type=click.FloatRange(0.1), default=5.0, metavar="SECONDS",
              help="Give up on a connection that does not answer for so long.")
@click.option("--seed", type=int, default=1, help="The same seed draws the same keys.")
@click.option("--folder", type=click.Path(path_type=Path, file_okay=False),
              help="Where data and logs of the nodes stay. Without it: a temporary folder, kept only if something is wrong.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON on standard output, and nothing else there.")
@click.option("--progress/--no-progress", default=True, help="Show how it goes, on standard error.")
def main(*, idle_transfer: bool, settings: tuple[str, ...], folder: Path | None, as_json: bool, progress: bool,
         **options: Any) -> None:
    """Grow a cluster from 3 nodes to 6 and back, under a steady load, and judge what clients were promised.

    \b
    Examples:
      python -m cartwheel.bench.grow
      python -m cartwheel.bench.grow --keys 20000 --rate 500 --setting give_grace_s=5
      python -m cartwheel.bench.grow --one-by-one --leave last --json > grow.json
      python -m cartwheel.bench.grow --idle-transfer
    """
    try:
        checked = GrowthOptions(settings=_settings(settings), **options).check()
    except ConfigError as error:
        raise click.UsageError(str(error)) from error
    console = Console(stderr=True)
    place = folder or Path(tempfile.mkdtemp(prefix="cartwheel-grow-"))
    kept = folder is not None

    def carry_out(line: Progress, say: Say) -> Outcome:
        return _idle(checked, place, line, say) if idle_transfer else _grow(checked, place, line, say)

    try:
        if progress:
            with ProgressLine(console) as line:
                result, shown, status = carry_out(line, partial(console.print, highlight=False, markup=False, soft_wrap=True))
        else:
            result, shown, status = carry_out(lambda *_: None, lambda _: None)
        kept |= status == FAILED
    except CartwheelError as error:
        kept = True
        raise click.ClickException(f"{error}\ndata and logs of the nodes: {place}") from error
    finally:
        if not kept:
            shutil.rmtree(place, ignore_errors=True)
    if as_json:
        click.echo(msgspec.json.format(msgspec.json.encode(result), indent=2))
    else:
        Console().print(shown, highlight=False)
    if kept:
        click.echo(f"data and logs of the nodes: {place}", err=True)
    sys.exit(status)
# fmt: on


def _settings(texts: tuple[str, ...]) -> dict[str, str]:
    found = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or not name.isidentifier() or not value:
            raise ConfigError(f"--setting {text!r} is not NAME=VALUE")
        found[name] = value
    return found


def _grow(options: GrowthOptions, place: Path, progress: Progress, say: Say) -> Outcome:
    result = judged(run_growth(options, place, progress, say))
    status = INTERRUPTED if result.interrupted else DONE
    return result, render_growth(result), status if result.passed else FAILED


def _idle(options: GrowthOptions, place: Path, progress: Progress, say: Say) -> Outcome:
    result = run_idle(options.keys, options.settings, options.limit_s, place, progress, say)
    return result, render_idle(result), DONE


if __name__ == "__main__":
    main()
