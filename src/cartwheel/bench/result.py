"""What a benchmark measured: the structs behind ``cartwheel bench --json``, and how histograms become them.

Latencies are kept in HDR histograms (Gil Tene): 1 microsecond to 1 hour, three significant digits, so that a percentile is right
to 0.1 % at any height. Histograms add up, percentiles do not: processes hand over histograms, and the result carries
them, encoded, so that several runs can be merged later.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

import msgspec
from hdrh.histogram import HdrHistogram

from cartwheel.bench.options import BenchOptions
from cartwheel.bench.requests import KINDS

LATENCY_US_MAX = 3_600_000_000
DIGITS = 3
FORMAT = 1
"""Of the JSON result. Raised when a field changes its meaning or goes away, not when one is added."""


class Report(msgspec.Struct, frozen=True):
    """What one process measured, as it hands it over."""

    answered: int
    misses: int
    errors: dict[str, int]
    unsent: int
    elapsed_s: float
    cpu_s: float
    windows: list[list[dict[int, int]]]
    """Per window and kind: how often each latency, in microseconds, occurred."""


class Latency(msgspec.Struct, frozen=True):
    """The latencies of one kind of request. ``count`` are answered ones; errors are not in here."""

    count: int
    mean_ms: float
    p50_ms: float
    p90_ms: float
    p99_ms: float
    p99_9_ms: float
    max_ms: float
    histogram: str | None = None
    """The HDR histogram, in microseconds, in the base64 form (V2, compressed) that HDR libraries read."""


class Window(msgspec.Struct, frozen=True):
    """One window of the series: what was answered in it."""

    start_s: float
    operations: dict[str, Latency]


class BenchResult(msgspec.Struct, frozen=True):
    """The result of one run."""

    options: BenchOptions
    requests: int
    """How many were answered without error."""
    elapsed_s: float
    """From the first request to the last reply."""
    throughput_per_s: float
    misses: int
    """Reads that found nothing; they are among ``requests``."""
    errors: dict[str, int]
    """By the first word of the error reply, or ``timeout``, ``connection lost``, ``cannot connect`` ..."""
    unsent: int
    """Open loop: requests that were due but found every connection full until the end. Not 0: the rate was too high."""
    operations: dict[str, Latency]
    """By kind (``get``, ``set``), and ``all``."""
    series: list[Window]
    generator_busy: float
    """Share of the time that the busiest process of the generator was on a CPU. Near 1, it measured itself."""
    interrupted: bool = False
    format: int = FORMAT

    @property
    def failed(self) -> int:
        """How many requests ended in an error."""
        return sum(self.errors.values())


def histogram(counts: Iterable[Mapping[int, int]]) -> HdrHistogram:
    """Add up latencies in microseconds. What is above an hour counts as an hour."""
    total: Counter[int] = Counter()
    for part in counts:
        total.update(part)
    result = HdrHistogram(1, LATENCY_US_MAX, DIGITS)
    for latency_us, count in total.items():
        result.record_value(min(latency_us, LATENCY_US_MAX), count)
    return result


def latency(hdr: HdrHistogram, *, encode: bool = False) -> Latency:
    """Read the figures off a histogram."""
    at = hdr.get_percentile_to_value_dict([50, 90, 99, 99.9]) if hdr.total_count else {}
    return Latency(
        count=hdr.total_count,
        mean_ms=hdr.get_mean_value() / 1000,
        p50_ms=at.get(50, 0) / 1000,
        p90_ms=at.get(90, 0) / 1000,
        p99_ms=at.get(99, 0) / 1000,
        p99_9_ms=at.get(99.9, 0) / 1000,
        max_ms=hdr.get_max_value() / 1000,
        histogram=hdr.encode().decode() if encode else None,
    )


def _operations(windows: Sequence[Sequence[Mapping[int, int]]], *, encode: bool = False) -> dict[str, Latency]:
    """The figures by kind and in all; a kind that did not occur is left out."""
    found = {}
    for number, kind in enumerate(KINDS):
        counts = [window[number] for window in windows]
        if any(counts):
            found[kind] = latency(histogram(counts), encode=encode)
    everything = [counts for window in windows for counts in window]
    return found | {"all": latency(histogram(everything), encode=encode)}


def merge(options: BenchOptions, reports: Sequence[Report], *, interrupted: bool = False) -> BenchResult:
    """Make one result of what the processes measured at the same time."""
    errors: Counter[str] = Counter()
    for report in reports:
        errors.update(report.errors)
    answered = sum(report.answered for report in reports)
    elapsed_s = max((report.elapsed_s for report in reports), default=0.0)
    series = []
    if options.series_s:
        for number in range(max((len(report.windows) for report in reports), default=0)):
            windows = [report.windows[number] for report in reports if number < len(report.windows)]
            series.append(Window(start_s=number * options.series_s, operations=_operations(windows)))
    return BenchResult(
        options=options,
        requests=answered,
        elapsed_s=elapsed_s,
        throughput_per_s=answered / elapsed_s if elapsed_s else 0.0,
        misses=sum(report.misses for report in reports),
        errors=dict(sorted(errors.items())),
        unsent=sum(report.unsent for report in reports),
        operations=_operations([window for report in reports for window in report.windows], encode=True),
        series=series,
        generator_busy=max((report.cpu_s / report.elapsed_s for report in reports if report.elapsed_s), default=0.0),
        interrupted=interrupted,
    )
