"""The standard benchmark's figures, held against what we want of them, as Markdown.

Machines differ and drift, so most targets are ratios to a lone Redis measured in turn with us: a ratio is taken of each round,
and the median of the rounds counts. Redis answers from one process's memory; Cartwheel asks a quorum of three processes for
every read and writes to all three, so a third of Redis on the same cores is about what there is to get.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from statistics import median

import msgspec

MB = 1_000_000


class Comparison(msgspec.Struct):
    """One redis-benchmark command against both, round by round, in requests per second."""

    name: str
    test: str
    """As redis-benchmark calls it."""
    pipeline: int
    against: str
    """Which Redis."""
    ratio_min: float | None = None
    """At least this share of Redis."""
    per_second_min: float | None = None
    keys: int = 1
    """How many keys the requests are spread over."""
    ours: list[float] = msgspec.field(default_factory=list)
    redis: list[float] = msgspec.field(default_factory=list)
    """Empty where there is no Redis; otherwise as long as ``ours``."""

    @property
    def ratio(self) -> float | None:
        """The median of the rounds' ratios."""
        if not self.redis:
            return None
        return median(ours / redis for ours, redis in zip(self.ours, self.redis, strict=True))


class Figures(msgspec.Struct):
    """All that a run of the standard benchmark measured."""

    at: str
    machine: dict[str, str]
    nodes: int
    rounds: int
    keys: int
    value_bytes: int
    ready_s: float
    comparisons: list[Comparison]
    resident_bytes: list[int]
    """Of each idle node, after the keys were written."""
    mix_peak_per_s: float
    mix_p99_9_ms: list[float]
    """Each round's, at half the peak."""
    errors: dict[str, int]
    """Of the mix, by kind; ``not sent in time`` means that the cluster did not keep up with the rate."""
    skipped: list[str]
    """What could not be measured, and why."""


class Row(msgspec.Struct):
    """A line of the table of targets."""

    what: str
    measured: str
    target: str
    met: bool


def rows(figures: Figures) -> Iterator[Row]:
    """Hold the figures against the targets; what was not measured is left out."""
    for case in figures.comparisons:
        if case.ratio_min is not None and case.ours and case.ratio is not None:
            ratio = case.ratio
            what = f"{case.name}, against Redis ({case.against})"
            yield Row(what, _ratio(ratio), f"at least {case.ratio_min:.2f}", ratio >= case.ratio_min)
        if case.per_second_min is not None and case.ours:
            rate = median(case.ours)
            yield Row(
                case.name, f"{rate:,.0f}/s", f"at least {case.per_second_min:,.0f}/s", rate >= case.per_second_min
            )
    if figures.mix_p99_9_ms:
        worst = median(figures.mix_p99_9_ms)
        half = figures.mix_peak_per_s / 2
        yield Row(
            f"p99.9 of a 95/5 mix at half of the peak ({half:,.0f}/s)", f"{worst:.1f} ms", "below 25 ms", worst < 25
        )
    if figures.resident_bytes:
        most = max(figures.resident_bytes) / MB
        what = f"memory of an idle node, {figures.keys:,} keys of {figures.value_bytes} bytes"
        yield Row(what, f"{most:,.0f} MB", "below 200 MB", most < 200)
    yield Row("`cartwheel dev` to `ready`", f"{figures.ready_s:.1f} s", "below 5 s", figures.ready_s < 5)


def _ratio(ratio: float) -> str:
    """Rounded down: 0.299 must not read as if it met 0.30."""
    return f"{math.floor(ratio * 100) / 100:.2f}"


def _rate(rates: list[float]) -> str:
    if not rates:
        return "-"
    if len(rates) == 1:
        return f"{rates[0]:,.0f}"
    return f"{median(rates):,.0f} ({min(rates):,.0f} to {max(rates):,.0f})"


def markdown(figures: Figures) -> str:
    """The report."""
    lines = [
        "# Standard benchmark",
        "",
        f"{figures.at}. {figures.nodes} nodes, {figures.rounds} round(s), {figures.keys:,} keys, values of"
        f" {figures.value_bytes} bytes, 50 connections; nodes, Redis and load generator share this machine:",
        "",
        *(f"- {name}: {value}" for name, value in figures.machine.items()),
        "",
        "| what | measured | target | |",
        "|---|---:|---:|---|",
        *(
            f"| {row.what} | {row.measured} | {row.target} | {'met' if row.met else '**missed**'} |"
            for row in rows(figures)
        ),
        "",
        "Requests per second by redis-benchmark, median (lowest to highest) of the rounds. The ratio is the median of the"
        " rounds' ratios.",
        "",
        "| command | Cartwheel | Redis | | ratio |",
        "|---|---:|---:|---|---:|",
    ]
    for case in figures.comparisons:
        ratio = "-" if case.ratio is None else _ratio(case.ratio)
        lines.append(f"| {case.name} | {_rate(case.ours)} | {_rate(case.redis)} | {case.against} | {ratio} |")
    if figures.errors:
        errors = ", ".join(f"{kind} {count:,}" for kind, count in figures.errors.items())
        lines += ["", f"**Failed in the mix:** {errors}."]
    if figures.skipped:
        lines += ["", "Not measured:", "", *(f"- {reason}" for reason in figures.skipped)]
    return "\n".join(lines) + "\n"
