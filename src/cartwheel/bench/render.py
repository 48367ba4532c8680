"""Results for people: a table and its footnotes, as rich renderables."""

from __future__ import annotations

from collections.abc import Iterator

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from cartwheel.bench.options import BenchOptions
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
