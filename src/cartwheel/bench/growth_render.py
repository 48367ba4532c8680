"""What growing and shrinking did, for people."""

from __future__ import annotations

from collections.abc import Iterator

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from cartwheel.bench.growth_result import MB, GrowthOptions, GrowthResult, IdleResult, Phase, Reach, totals
from cartwheel.bench.render import BUSY_WARN, milliseconds
from cartwheel.bench.result import Latency

VERDICT = {True: ("met", "green"), False: ("missed", "bold red"), None: ("not judged", "yellow")}


def render_growth(result: GrowthResult) -> RenderableType:
    """Phases, latencies, verdicts, and remarks."""
    return Group(
        Text(_describe(result.options), style="dim"),
        _phases(result.phases),
        Text(),
        _latencies(result.phases),
        Text(),
        _reaches(result.reaches),
        *_notes(result),
    )


def _describe(options: GrowthOptions) -> str:
    settings = "".join(f", {name}={value}" for name, value in options.settings.items())
    how = "a commit for each node" if options.one_by_one else "one commit for three nodes"
    strict = ", only owners count" if options.strict else ""
    return (
        f"{options.keys:,} keys ({options.distribution}), values of {options.value_bytes:,} bytes, open loop at"
        f" {options.rate_per_s:,g}/s, {100 * options.read_ratio:g} % reads, {options.connections} connections; {how},"
        f" the {options.leave} leave{strict}{settings}"
    )


def _phases(phases: list[Phase]) -> Table:
    table = Table("phase", box=None, pad_edge=False, header_style="bold")
    for heading in ("seconds", "operations", "success", "retried", "failed", "records/s", "MB/s", "CPUs"):
        table.add_column(heading, justify="right")
    for phase in phases:
        clients = phase.clients
        seconds = max(clients.seconds, 1e-9)
        table.add_row(
            clients.name, f"{clients.seconds:,.1f}", f"{clients.operations:,}", f"{100 * phase.success:.3f} %",
            _count(clients.retried), _count(clients.failed),
            f"{phase.records / seconds:,.0f}" if phase.records else "-",
            f"{phase.row_bytes / seconds / MB:.2f}" if phase.row_bytes else "-",
            f"{phase.cpu_s / seconds:.2f}",
        )  # fmt: skip
    return table


def _count(number: int) -> str:
    return f"{number:,}" if number else "-"


def _latencies(phases: list[Phase]) -> Table:
    table = Table("phase", "", box=None, pad_edge=False, header_style="bold")
    for heading in ("count", "p50 ms", "p99", "p99.9", "max", "p99 ratio"):
        table.add_column(heading, justify="right")
    for phase in phases:
        name = phase.clients.name
        for kind, latency, ratio in (
            ("reads", phase.clients.reads, phase.read_p99_ratio),
            ("writes", phase.clients.writes, phase.write_p99_ratio),
        ):
            table.add_row(name, kind, *_latency(latency), "-" if ratio is None else f"{ratio:.2f}")
            name = ""
    return table


def _latency(latency: Latency) -> tuple[str, ...]:
    figures = (latency.p50_ms, latency.p99_ms, latency.p99_9_ms, latency.max_ms)
    return (f"{latency.count:,}", *map(milliseconds, figures))


def _reaches(reaches: list[Reach]) -> Table:
    table = Table("", "measured", "wanted", "", box=None, pad_edge=False, header_style="bold")
    for reach in reaches:
        word, style = VERDICT[reach.met]
        table.add_row(reach.what, reach.measured, reach.wanted, Text(word, style=style))
    return table


def _notes(result: GrowthResult) -> Iterator[Text]:
    errors, retries = totals(result.phases)
    for what, counts, style in (("failed", errors, "bold red"), ("tried again", retries, "yellow")):
        if counts:
            kinds = ", ".join(f"{kind} {count:,}" for kind, count in sorted(counts.items()))
            yield Text(f"{what}: {counts.total():,} ({kinds})", style=style)
    back = result.read_back
    if back is not None and back.lost:
        more = f"; {back.elsewhere:,} are there once all replicas are asked" if back.elsewhere else ""
        yield Text(f"lost: {back.absent:,} absent, {back.older:,} older than acknowledged{more}", style="bold red")
    standing = [f"{phase.clients.name} {phase.stand_ins:,}" for phase in result.phases if phase.stand_ins]
    if standing:
        counted = (
            "which did not count" if result.options.strict else "and R+W>N promises no fresh reads then (see --strict)"
        )
        yield Text(f"a fallback was asked for an owner that was late, {counted}: {', '.join(standing)}", style="yellow")
    for text in result.texts:
        yield Text(f"  {text}", style="yellow")
    for example in result.examples:
        yield Text(f"  {example}", style="red")
    if result.aside:
        yield Text(
            f"{result.aside:,} keys were written no more, once the outcome of a write was not known", style="yellow"
        )
    if result.generator_busy > BUSY_WARN:
        yield Text(
            f"the load generator was busy {result.generator_busy:.0%} of the time: it measured itself", style="yellow"
        )
    if result.unfinished:
        yield Text(f"gave up: {result.unfinished}", style="bold red")
    if result.interrupted:
        yield Text("interrupted: the figures are of the time until then", style="yellow")


def render_idle(result: IdleResult) -> RenderableType:
    """A line for each run."""
    table = Table("values of", box=None, pad_edge=False, header_style="bold")
    for heading in ("keys", "seconds", "keys/s", "MB/s", "wanted keys/s", ""):
        table.add_column(heading, justify="right")
    for run in result.runs:
        word, style = VERDICT[run.met]
        table.add_row(
            f"{run.value_bytes:,} bytes", f"{run.keys:,}", f"{run.seconds:,.1f}", f"{run.keys_per_s:,.0f}",
            f"{run.mb_per_s:.2f}", f"{run.wanted_keys_per_s:,.0f}", Text(word, style=style),
        )  # fmt: skip
    short = [run for run in result.runs if run.records < run.keys]
    notes = [Text(f"only {run.records:,} of {run.keys:,} records came", style="bold red") for run in short]
    return Group(table, *notes)
