"""What a benchmark measured: the structs behind ``cartwheel bench --json``, and how counts become them.

Percentiles do not add up, counts do: each process hands over how often each latency occurred, in whole microseconds, and the
figures are computed from the sums of these, exactly. The result also carries them as HDR histograms (Gil Tene; 1 microsecond to
1 hour, three significant digits), encoded, so that several runs can be merged and plotted later, by any HDR library.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import accumulate

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


def encoded_histogram(counts: Mapping[int, int]) -> str:
    """As an HDR histogram in base64. What is above an hour counts as an hour."""
    histogram = HdrHistogram(1, LATENCY_US_MAX, DIGITS)
    for latency_us, count in counts.items():
        histogram.record_value(min(latency_us, LATENCY_US_MAX), count)
    encoded: bytes = histogram.encode()
    return encoded.decode()


def latency(parts: Iterable[Mapping[int, int]], *, encode: bool = False) -> Latency:
    """The figures of counts of latencies in microseconds. All 0 if there are none."""
    counts: Counter[int] = Counter()
    for part in parts:
        counts.update(part)
    total = counts.total()
    ordered = sorted(counts)
    reached = list(accumulate(counts[latency_us] for latency_us in ordered))

    def at(percentile: float) -> float:
        """The smallest latency that so many percent of the requests did not exceed."""
        return ordered[bisect_left(reached, math.ceil(total * percentile / 100))] / 1000 if total else 0.0

    return Latency(
        count=total,
        mean_ms=sum(value * count for value, count in counts.items()) / total / 1000 if total else 0.0,
        p50_ms=at(50),
        p90_ms=at(90),
        p99_ms=at(99),
        p99_9_ms=at(99.9),
        max_ms=at(100),
        histogram=encoded_histogram(counts) if encode else None,
    )


def _operations(windows: Sequence[Sequence[Mapping[int, int]]], *, encode: bool = False) -> dict[str, Latency]:
    """The figures by kind and in all; a kind that did not occur is left out."""
    found = {}
    for number, kind in enumerate(KINDS):
        counts = [window[number] for window in windows]
        if any(counts):
            found[kind] = latency(counts, encode=encode)
    everything = [counts for window in windows for counts in window]
    return found | {"all": latency(everything, encode=encode)}


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
