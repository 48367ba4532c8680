"""``cartwheel chaos``: real nodes under load while faults strike, and a verdict. What it needs is imported when it runs."""

from __future__ import annotations

import secrets
import shutil
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cartwheel.cli import common
from cartwheel.core.errors import ConfigError

if TYPE_CHECKING:
    from cartwheel.chaos.judge import Record
    from cartwheel.chaos.report import Report
    from cartwheel.chaos.run import Options, Progress

HELD, NOT_HELD = 0, 1
SEED_BITS = 31


# fmt: off
@click.command(context_settings={"show_default": True})
@click.option("--minutes", type=click.FloatRange(0.1), default=2.0, help="How long to load the cluster.")
@click.option("--nemesis", "names", multiple=True, default=("all",), metavar="KINDS",
              help="What goes wrong, by name: kill, pause, rolling, fill, wipe, eio; split, oneway, isolate, bridge, flap, or "
                   "'partition' for these five; join, leave, replace, weight, administrators, return, clone, or 'membership' "
                   "for these seven; 'all' (in less than a minute without 'membership'), or 'none'. With commas, or repeated.")
@click.option("--cycles", type=click.IntRange(1), help="Instead: kill -9 a random node and start it again, so many times.")
@click.option("--seed", type=click.IntRange(0), help="Repeats the plan of an earlier run.  [default: drawn]")
@click.option("--rate", "rate_per_s", type=click.FloatRange(350), default=800.0, metavar="PER_SECOND",
              help="Requests a second. A run that held under 300 is invalid.")
@click.option("--clients", type=click.IntRange(1, 1000), default=24, help="Connections.")
@click.option("--nodes", type=click.IntRange(3, 15), default=5, help="How many nodes.")
@click.option("--engine", type=click.Choice(["rocksdb", "lmdb"]), default="rocksdb", help="Their storage engine.")
@click.option("--keep", type=click.Path(path_type=Path, file_okay=False), metavar="DIR",
              help="Work in this new or empty directory and leave logs, data and history there. Without it: in a temporary "
                   "one, which stays only if the run did not hold.")
@click.option("--judge", "history", type=click.Path(path_type=Path, dir_okay=False), metavar="FILE",
              help="Judge the history of an earlier run (history.jsonl) again; run nothing.")
@click.option("--svg", type=click.Path(path_type=Path, dir_okay=False), metavar="FILE", help="Draw the timeline as SVG.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def chaos(*, history: Path | None, svg: Path | None, as_json: bool, keep: Path | None, **asked: Any) -> int:
    """Try a cluster of real processes: load, faults, and a verdict on every promise.

    Starts its own nodes on this machine. Nothing acknowledged may be lost, nothing deleted may come back, nothing may appear
    that nobody wrote, and all owners of each key must agree in the end.

    Exit status: 0 if all promises held; 1 if one was broken, or the run was too slow to tell or could not be carried out; 2 for
    a wrong option.

    \b
    Examples:
      cartwheel chaos --minutes 5
      cartwheel chaos --nemesis kill,partition --svg chaos.svg
      cartwheel chaos --cycles 200
      cartwheel chaos --judge DIR/history.jsonl
    """
    if history is not None:
        return _conclude(history, svg, as_json=as_json)
    options = _options(as_json=as_json, **asked)
    folder = _folder(keep)
    held = False
    try:
        path = _carry_out(options, folder, as_json=as_json)
        code = _conclude(path, svg, as_json=as_json)
        held = code == HELD
        return code
    finally:
        if held and keep is None:
            shutil.rmtree(folder)
        else:
            click.echo(f"logs, data and history: {folder}", err=True)


# fmt: on


def _options(
    *, minutes: float, names: tuple[str, ...], cycles: int | None, seed: int | None, as_json: bool, **others: Any
) -> Options:
    from cartwheel.chaos.nemesis import choose
    from cartwheel.chaos.run import Options

    kinds, notes = choose([name.strip() for text in names for name in text.split(",") if name.strip()], minutes * 60)
    options = Options(
        seconds=minutes * 60, kinds=tuple(kinds), cycles=cycles or 0,
        seed=secrets.randbits(SEED_BITS) if seed is None else seed, **others,
    )  # fmt: skip
    if not as_json:
        for note in [] if cycles else notes:
            click.echo(note)
        click.echo(
            f"seed {options.seed}: {options.nodes} nodes ({options.engine}), {options.rate_per_s:g} requests a second"
        )
        steps = sorted((step for lane in options.lanes() for step in lane), key=lambda step: step.at)
        for step in [] if cycles else steps:
            click.echo(str(step))
    return options


def _folder(keep: Path | None) -> Path:
    if keep is None:
        return Path(tempfile.mkdtemp(prefix="cartwheel-chaos-"))
    if keep.exists() and any(keep.iterdir()):
        raise ConfigError(f"{keep} is not empty: name a new directory with --keep")
    keep.mkdir(parents=True, exist_ok=True)
    return keep.absolute()


def _carry_out(options: Options, folder: Path, *, as_json: bool) -> Path:
    from cartwheel.chaos.run import carry_out

    live = sys.stderr.isatty() and not as_json

    def say(text: str) -> None:
        click.echo(("\r\033[K" if live else "") + text, err=True)

    def tell(progress: Progress) -> None:
        if live:
            now = ", ".join(progress.active) or "calm"
            text = f"{progress.at:5.0f} s  {progress.ops_per_s:6,.0f} operations/s  {progress.acked:,} acknowledged"
            click.echo(f"\r\033[K{text}  {progress.failed:,} failed  {now}", err=True, nl=False)

    return carry_out(options, folder, say, tell)


def _conclude(path: Path, svg: Path | None, *, as_json: bool) -> int:
    """Judge, and print."""
    import msgspec

    from cartwheel.chaos import picture
    from cartwheel.chaos.report import report_on

    report, record = report_on(path)
    if svg is not None:
        svg.write_text(picture.svg(record, report), "utf-8")
    if as_json:
        common.print_json(msgspec.to_builtins(report))
    else:
        _print(report, record)
    return HELD if report.verdict == "held" else NOT_HELD


def _print(report: Report, record: Record) -> None:
    from cartwheel.chaos import picture

    console = common.console()
    columns = max(20, min(picture.WIDTH_MAX, console.width - 26))
    for part in (picture.timeline(record, columns), picture.rates(report), picture.figures(report)):
        console.print()
        console.print(part)
    console.print()
    for text in report.violations:
        click.echo(text)
    for key, lines in report.stories.items():
        click.echo(f"\nThe story of key {key}:")
        for line in lines:
            click.echo(line)
    click.echo(f"verdict: {report.verdict}" + "".join(f"; {why}" for why in report.why))
