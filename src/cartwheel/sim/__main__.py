"""``python -m cartwheel.sim``: run the simulator from the command line.

Without ``--seed`` it draws a first seed and prints it. Exit status: 0, or 1 if a promise was broken (with ``--bugs``: if a
planted bug was *not* caught), or 2 for a wrong option.
"""

from __future__ import annotations

import json
import secrets
import sys
import time
from collections import Counter
from typing import Any

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from cartwheel.sim import bugs, swarm
from cartwheel.sim.faults import literal
from cartwheel.sim.marks import CROSS, never_hit
from cartwheel.sim.run import Options, Report, hunt, run, run_seeds
from cartwheel.sim.shrink import shrink

HUNT_SEEDS = 300
"""A planted bug that this many seeds do not catch is not caught."""


class Tally:
    """The sums of a batch."""

    def __init__(self) -> None:
        self.runs = 0
        self.virtual_s = 0.0
        self.cpu_s = 0.0
        self.events = 0
        self.outcomes: Counter[str] = Counter()
        self.marks: Counter[str] = Counter()
        self.failed: list[Report] = []

    def add(self, report: Report) -> None:
        """Count a run."""
        self.runs += 1
        self.virtual_s += report.virtual_s
        self.cpu_s += report.cpu_s
        self.events += report.events
        self.outcomes.update(report.outcomes)
        self.marks.update(report.marks)
        if report.violations:
            self.failed.append(report)

    def as_dict(self) -> dict[str, object]:
        """For ``--json``."""
        return {
            "seeds": self.runs,
            "simulated_hours": self.virtual_s / 3600,
            "cpu_s": self.cpu_s,
            "simulated_hours_per_cpu_hour": self.virtual_s / self.cpu_s if self.cpu_s else 0.0,
            "events": self.events,
            "outcomes": dict(sorted(self.outcomes.items())),
            "marks": dict(sorted(self.marks.items())),
            "never_hit": never_hit(self.marks),
            "violations": [
                {"seed": report.seed, "rule": v.rule, "key": v.key, "at": v.at, "text": v.text}
                for report in self.failed
                for v in report.violations
            ],
        }

    def lines(self) -> list[str]:
        """For people."""
        ratio = self.virtual_s / self.cpu_s if self.cpu_s else 0.0
        marks = {name: count for name, count in sorted(self.marks.items()) if count and CROSS not in name}
        return [
            f"{self.runs} seeds, {self.virtual_s / 3600:.2f} simulated hours in {self.cpu_s:.1f} s of CPU: "
            f"{ratio:.0f} simulated hours per CPU hour, {self.events / max(self.cpu_s, 1e-9):,.0f} events/s",
            "requests: " + ", ".join(f"{name} {count:,}" for name, count in sorted(self.outcomes.items())),
            "happened: " + ", ".join(f"{name} {count:,}" for name, count in marks.items()),
            *never_hit(self.marks),
        ]


def replay_command(seed: int, options: Options) -> str:
    """The command that shows a run again."""
    default = Options()
    words = [f"python -m cartwheel.sim --seed {seed}"]
    if options.seconds != default.seconds:
        words.append(f"--seconds {options.seconds:g}")
    if options.nodes:
        words.append(f"--nodes {options.nodes}")
    if options.profile:
        words.append(f"--profile {options.profile!r}")
    if options.moves:
        words.append("--moves")
    if options.bug:
        words.append(f"--bug {options.bug}")
    return " ".join(words)


def show_run(report: Report, options: Options, *, plan_shown: bool) -> None:
    """One run in full."""
    if not plan_shown:
        click.echo("\n".join(report.plan.lines()))
    for line in report.trace:
        click.echo(line)
    click.echo(
        f"trace hash {report.trace_hash}, {report.events:,} events, {report.virtual_s:.0f} s in {report.cpu_s:.2f} s"
    )
    click.echo("requests: " + ", ".join(f"{name} {count}" for name, count in sorted(report.outcomes.items())))
    marks = {name: count for name, count in sorted(report.marks.items()) if count and CROSS not in name}
    click.echo("happened: " + ", ".join(f"{name} {count}" for name, count in marks.items()))
    for violation in report.violations:
        click.secho(str(violation), fg="red")
    for key, story in report.stories.items():
        click.echo(f"the story of {key}:")
        for line in story:
            click.echo(f"  {line}")
    if not report.violations:
        click.echo("no violation")
    elif plan_shown:
        click.echo(f"again: {replay_command(report.seed, options)}")


def run_batch(start: int, count: int, options: Options, *, jobs: int, progress: bool) -> Tally:
    """Many seeds, with a bar if there is a terminal to show it on."""
    tally = Tally()
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not (progress and console.is_terminal), transient=True) as bar:
        task = bar.add_task("seeds", total=count)
        for report in run_seeds(range(start, start + count), options, jobs=jobs):
            tally.add(report)
            ratio = tally.virtual_s / tally.cpu_s if tally.cpu_s else 0.0
            bar.update(task, advance=1, description=f"{len(tally.failed)} failed, {ratio:.0f} sim-h/CPU-h")
    return tally


def hunt_bugs(names: list[str], start: int, options: Options, *, as_json: bool, markdown: bool) -> bool:
    """Hunt each planted bug. True: all were caught, by a checker that should."""
    rows: list[dict[str, Any]] = []
    for name in names:
        began = time.process_time()
        report = hunt(name, range(start, start + HUNT_SEEDS), options)
        cpu_s = time.process_time() - began
        rule = report.violations[0].rule if report else ""
        expected = bugs.BUGS[name].rules
        rows.append(
            {"bug": name, "rule": rule, "expected": expected, "seed": report.seed if report else None, "cpu_s": cpu_s}
        )
        if not as_json and not markdown:
            seen = f"caught by {rule} at seed {report.seed}" if report else "NOT CAUGHT"
            mark = "ok " if rule in expected else "BAD"
            click.echo(f"{mark} {name:<24} {seen:<32} {cpu_s:6.1f} s  (expected: {', '.join(expected)})")
    if as_json:
        click.echo(json.dumps(rows))
    elif markdown:
        click.echo("\n".join(table(rows, start)))
    return all(row["rule"] in bugs.BUGS[str(row["bug"])].rules for row in rows)


def table(rows: list[dict[str, Any]], start: int) -> list[str]:
    """The hunt as a table for docs/reference/planted-bugs.md."""
    lines = ["| bug | trap | what it breaks | caught by | seeds |", "|---|---|---|---|---|"]
    for row in rows:
        planted = bugs.BUGS[row["bug"]]
        traps = "; ".join(bugs.TRAPS[number] for number in planted.trap)
        story = " ".join(planted.story.split()).replace("|", "\\|")
        seeds = "not caught" if row["seed"] is None else row["seed"] - start + 1
        lines.append(f"| `{row['bug']}` | {traps} | {story} | {row['rule']} | {seeds} |")
    return lines


# fmt: off
@click.command(context_settings={"show_default": True})
@click.option("--seed", type=int, help="Repeat exactly this run, and show it in full.")
@click.option("--seeds", "count", type=click.IntRange(1), default=1, help="How many runs.")
@click.option("--start", type=int, help="The first seed of many. Drawn if not given.")
@click.option("--seconds", type=click.FloatRange(1), default=120.0, help="Simulated seconds under faults, for each run.")
@click.option("--nodes", type=click.IntRange(0, 15), default=0, help="How many nodes; 0: drawn, usually five.")
@click.option("--profile", type=click.Choice(list(swarm.PROFILES)), help="The kind of run. Drawn if not given.")
@click.option("--moves", is_flag=True, help="The ring changes in each run, and not only in some.")
@click.option("--bug", type=click.Choice(sorted(bugs.BUGS)), help="Run with this planted bug.")
@click.option("--bugs", "all_bugs", is_flag=True, help="Hunt every planted bug: each must be caught.")
@click.option("--markdown", is_flag=True, help="With --bugs: print a table.")
@click.option("--shrink", "shorten", is_flag=True, help="With --seed: find a shorter run that still fails.")
@click.option("-j", "--jobs", type=click.IntRange(1), default=1, help="Processes.")
@click.option("--trace", is_flag=True, help="With --seed: print every event.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON on standard output, and nothing else there.")
@click.option("--progress/--no-progress", default=True, help="Show how it goes (only on a terminal).")
def main(*, seed: int | None, count: int, start: int | None, seconds: float, nodes: int, profile: str | None,
         moves: bool, bug: str | None, all_bugs: bool, markdown: bool, shorten: bool, jobs: int, trace: bool, as_json: bool,
         progress: bool) -> None:
    # fmt: on
    """Run whole clusters under faults in virtual time, and check every promise.

    \b
    Examples:
      python -m cartwheel.sim                       one run, of a seed drawn now
      python -m cartwheel.sim --seeds 300 -j 2      many
      python -m cartwheel.sim --seed 83             that one again, with its plan and what went wrong
      python -m cartwheel.sim --bugs                the test of the tests
    """
    options = Options(seconds, nodes, profile or "", bug or "", keep_trace=trace, moves=moves)
    if all_bugs:
        begin = start if start is not None else 0
        if seconds == Options().seconds:
            options = Options(30.0, nodes, profile or "")
        sys.exit(0 if hunt_bugs(sorted(bugs.BUGS), begin, options, as_json=as_json, markdown=markdown) else 1)
    if seed is None and count == 1 and start is None:
        seed = secrets.randbelow(1 << 31)
    if seed is not None and count == 1:
        sys.exit(run_one(seed, options, shorten=shorten, as_json=as_json))
    begin = next((s for s in (seed, start) if s is not None), secrets.randbelow(1 << 31))
    if not as_json:
        click.echo(f"seeds {begin} to {begin + count - 1}, {seconds:g} s each")
    tally = run_batch(begin, count, options, jobs=jobs, progress=progress and not as_json)
    if as_json:
        click.echo(json.dumps(tally.as_dict()))
    else:
        click.echo("\n".join(tally.lines()))
        for report in tally.failed:
            click.secho(f"seed {report.seed}: {report.violations[0]}", fg="red")
            click.echo(f"  again: {replay_command(report.seed, options)}")
        click.echo("no violation" if not tally.failed else f"{len(tally.failed)} of {tally.runs} seeds broke a promise")
    sys.exit(1 if tally.failed else 0)


def run_one(seed: int, options: Options, *, shorten: bool, as_json: bool) -> int:
    """Run a seed, print the plan before its first step and everything after its last."""
    plan = options.draw(seed)
    if not as_json:
        click.echo("\n".join(plan.lines()))
    report = run(plan, bug=options.bug, keep_trace=options.keep_trace)
    if as_json:
        tally = Tally()
        tally.add(report)
        click.echo(json.dumps({"seed": seed, "trace_hash": report.trace_hash, "plan": plan.lines(), **tally.as_dict()}))
    else:
        show_run(report, options, plan_shown=True)
    if shorten and report.violations:
        smaller = shrink(plan, bug=options.bug, note=lambda text: click.echo(text, err=True)).plan
        click.echo("shortened to:")
        show_run(run(smaller, bug=options.bug, keep_trace=options.keep_trace), options, plan_shown=False)
        click.echo("for tests/sim/regressions.py:")
        click.echo(f"    {literal(smaller)}")
    return 1 if report.violations else 0


if __name__ == "__main__":
    main(prog_name="python -m cartwheel.sim")
