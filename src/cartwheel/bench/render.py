"""Results for people: a table and its footnotes, as rich renderables."""

from __future__ import annotations

from collections.abc import Iterator

from msgspec.structs import replace
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from cartwheel.bench.durability import DurabilityResult
from cartwheel.bench.options import BenchOptions
from cartwheel.bench.overload import OverloadResult
from cartwheel.bench.plot import blocks, svg
from cartwheel.bench.result import BenchResult, Latency

BUSY_WARN = 0.9
"""Above this share of a CPU the generator cannot be told apart from what it measures."""


def describe(options: BenchOptions) -> str:
    """One line that says what was run."""
    reads = round(100 * options.reads, 1)
    length = f"{options.requests:,} requests" if options.requests else f"{options.duration_s:g} s"
    pace = f", open loop at {options.rate_per_s:,g}/s" if options.rate_per_s else ""
    pipelined = f", {options.pipeline} in flight on each" if options.pipeline > 1 else ""
    return (
        f"{reads:g} % reads, {options.keys:,} keys ({options.distribution}), values of {options.value_bytes:,} bytes,"
        f" {options.connections} connections{pipelined}, {length}{pace}"
    )


def milliseconds(value: float) -> str:
    """Three significant digits are what there is."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}" if value >= 1 else f"{value:.3f}"


def _latency_row(name: str, latency: Latency, rate: float) -> tuple[str, ...]:
    figures = (latency.mean_ms, latency.p50_ms, latency.p99_ms, latency.p99_9_ms, latency.max_ms)
    return (name, f"{latency.count:,}", f"{rate:,.0f}", *map(milliseconds, figures))


def _notes(result: BenchResult) -> Iterator[Text]:
    if result.errors:
        kinds = ", ".join(f"{kind} {count:,}" for kind, count in result.errors.items())
        yield Text(f"errors: {result.failed:,} ({kinds})", style="bold red")
    if result.misses:
        yield Text(f"reads that found no value: {result.misses:,}", style="yellow")
    if result.unsent:
        yield Text(
            f"{result.unsent:,} requests were due but never sent: the cluster did not keep up with the rate, and the"
            " latencies above would be higher still",
            style="bold yellow",
        )
    if result.generator_busy > BUSY_WARN:
        yield Text(
            f"the load generator itself was busy {result.generator_busy:.0%} of the time: the cluster may carry more"
            " (try --processes)",
            style="yellow",
        )
    if result.interrupted:
        yield Text("interrupted: the figures are of the time until then", style="yellow")


def render(result: BenchResult) -> RenderableType:
    """The whole result: what was run, a table by kind of request, the series if there is one, and remarks."""
    table = Table("operation", box=None, pad_edge=False, header_style="bold")
    for heading in ("requests", "per second", "mean ms", "p50", "p99", "p99.9", "max"):
        table.add_column(heading, justify="right")
    for name, latency in result.operations.items():
        if name != "all" or len(result.operations) != 2:  # one kind is all there is
            rate = latency.count / result.elapsed_s if result.elapsed_s else 0.0
            table.add_row(*_latency_row(name, latency, rate))
    parts: list[RenderableType] = [Text(describe(result.options), style="dim"), table]
    if result.series:
        parts += [Text(), _series(result)]
    return Group(*parts, *_notes(result))


def _series(result: BenchResult) -> Table:
    """Mean and 99.9th percentile side by side over time, as in the paper's Figure 4."""
    kinds = [kind for kind in result.operations if kind != "all"]
    table = Table("from s", box=None, pad_edge=False, header_style="bold")
    for kind in kinds:
        for heading in ("requests", "mean ms", "p99.9"):
            table.add_column(f"{kind} {heading}", justify="right")
    for window in result.series:
        row = [f"{window.start_s:g}"]
        for kind in kinds:
            latency = window.operations.get(kind)
            if latency is None:
                row += ["0", "-", "-"]
            else:
                row += [f"{latency.count:,}", milliseconds(latency.mean_ms), milliseconds(latency.p99_9_ms)]
        table.add_row(*row)
    return table


def render_overload(result: OverloadResult) -> RenderableType:
    """What became of the cluster, as a table of facts."""
    table = Table("", "", box=None, pad_edge=False, show_header=False)
    waits = result.answered
    back = f"at {milliseconds(result.recovered_s)} s" if result.recovered_s is not None else "not while it was watched"
    table.add_row("peak", f"{result.peak_per_s:,.0f}/s")
    table.add_row("offered", f"{result.offered_per_s:,.0f}/s for {result.offered_s:g} s")
    table.add_row("goodput", f"{result.goodput_per_s:,.0f}/s, {result.goodput_share:.0%} of the peak")
    table.add_row("refused (BUSY)", f"{result.busy_share:.0%} of what was sent")
    table.add_row("wait of those answered", f"p50 {milliseconds(waits.p50_ms)}, p99 {milliseconds(waits.p99_ms)} ms")
    if result.late:
        table.add_row("answered after a second or more", f"{result.late:,}")
    table.add_row("back at 95 % of 0.7 times the peak", back)
    for node, most in sorted(result.resident_most.items()):
        before = result.resident_before.get(node, most)
        table.add_row(
            f"memory of {node}", f"{before / 1e6:,.0f} MB before, at most {most / 1e6:,.0f} ({most / before:.2f})"
        )
    notes = []
    if result.unsent:
        notes.append(
            Text(f"{result.unsent:,} requests were not sent, all connections were full for a second: less was offered than asked"
                 " (try more --connections or a longer --pipeline)", style="yellow")
        )  # fmt: skip
    if result.errors:
        kinds = ", ".join(f"{kind} {count:,}" for kind, count in result.errors.items())
        notes.append(Text(f"errors: {result.failed:,} ({kinds})", style="bold red"))
    return Group(Text(describe(result.options), style="dim"), table, *notes)


def render_durability(result: DurabilityResult) -> RenderableType:
    """The writes of each durability side by side, and their p99.9 over time, on one scale."""
    names = list(result.compared)
    table = Table("durability", box=None, pad_edge=False, header_style="bold")
    first = names[0] if names else ""
    for heading in ("writes", "mean ms", "p50", "p99", "p99.9", "max", f"{first} / mean", f"{first} / p99.9"):
        table.add_column(heading, justify="right")
    for name, one in result.compared.items():
        writes = one.writes
        figures = (writes.mean_ms, writes.p50_ms, writes.p99_ms, writes.p99_9_ms, writes.max_ms)
        ratios = (f"{one.mean_ratio:.2f}", f"{one.p99_9_ratio:.2f}")
        table.add_row(name, f"{writes.count:,}", *map(milliseconds, figures), *ratios)
    highest = max((max(one.series_p99_9_ms, default=0.0) for one in result.compared.values()), default=0.0)
    lines = [
        Text(f"{name:<{max(map(len, names))}}  {blocks(one.series_p99_9_ms, highest)}", no_wrap=True)
        for name, one in result.compared.items()
    ]
    of_peak = f", half of {result.peak_per_s:,.0f}/s" if result.peak_per_s else ""
    what = describe(replace(result.options, rate_per_s=None))
    told = f"{what}, open loop at {result.rate_per_s:,.0f}/s{of_peak}, {result.options.rounds} rounds"
    over_time = f"p99.9 of writes in windows of {result.window_s:g} s, from 0 to {milliseconds(highest)} ms:"
    return Group(Text(told, style="dim"), table, Text(), Text(over_time), *lines, *_notes_of(result))


def _notes_of(result: DurabilityResult) -> Iterator[Text]:
    if result.errors:
        kinds = ", ".join(f"{kind} {count:,}" for kind, count in result.errors.items())
        yield Text(f"errors: {result.failed:,} ({kinds})", style="bold red")
    if result.unsent:
        yield Text(f"{result.unsent:,} requests were due but never sent: try a lower --rate", style="bold yellow")
    if result.interrupted:
        yield Text("interrupted: only whole rounds are compared", style="yellow")


def figure_5(result: DurabilityResult) -> str:
    """The p99.9 of writes over time as an SVG."""
    series = {f"durability {name}": one.series_p99_9_ms for name, one in result.compared.items()}
    return svg(f"99.9th percentile of writes at {result.rate_per_s:,.0f} requests/s", series, step_s=result.window_s)


def render_any(result: BenchResult | OverloadResult | DurabilityResult) -> RenderableType:
    """Whatever was measured."""
    if isinstance(result, DurabilityResult):
        return render_durability(result)
    return render_overload(result) if isinstance(result, OverloadResult) else render(result)


class ProgressLine:
    """A line on standard error that says how it goes. Silent when that is no terminal. Use with ``with``."""

    def __init__(self, console: Console) -> None:
        self._status = console.status("connecting") if console.is_terminal else None
        self._last = (0.0, 0)

    def __enter__(self) -> ProgressLine:
        if self._status:
            self._status.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._status:
            self._status.stop()

    def __call__(self, phase: str, seconds: float, answered: int, errors: int) -> None:
        """Show it. The rate is that of the last second or so, lest a stall hide in an average."""
        if self._status is None:
            return
        then, before = self._last
        if seconds < then or answered < before:
            self._last = then, before = 0.0, 0
        if seconds - then < 0.5:
            return
        rate = (answered - before) / (seconds - then)
        self._last = (seconds, answered)
        failed = f"  [bold red]{errors:,} errors[/]" if errors else ""
        self._status.update(f"{phase}  {seconds:.0f} s  {rate:,.0f} requests/s{failed}")
