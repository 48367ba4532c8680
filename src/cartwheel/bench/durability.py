"""What durability costs: ``cartwheel bench --durability sync,one,os`` (Dynamo, section 6.1 and Figure 5).

    a bucket for each, filled ──> peak of the first, closed loop ──> rounds, open loop, all at half of that peak:
                                                                      1: sync one os    2: one os sync    3: os sync one

A tail latency only means something at a rate that all of them carry with ease, and the same for all. They take turns because
machines drift, and the order of the turns changes because the first is not like the last. Ratios are taken of each round, and the
median of the rounds counts.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from statistics import median

import msgspec
from hdrh.histogram import HdrHistogram

from cartwheel.bench.buckets import set_durability
from cartwheel.bench.options import BenchOptions
from cartwheel.bench.requests import KINDS, SET
from cartwheel.bench.result import BenchResult, Latency, latency
from cartwheel.bench.run import BenchFailed, Progress, run_bench

WRITES = KINDS[SET]
PEAK_S = 5.0
LOAD = 0.5
"""Of the peak: Figure 5 is of a system that keeps up."""
WINDOWS = 10
"""Windows of the series in each turn, unless told otherwise."""


class Turn(msgspec.Struct, frozen=True):
    """One durability, measured for a while."""

    durability: str
    round: int
    result: BenchResult


class Compared(msgspec.Struct, frozen=True):
    """The writes of one durability, of all rounds."""

    writes: Latency
    mean_ratio: float
    """How many times as long the first durability takes; the median of the rounds."""
    p99_9_ratio: float
    series_p99_9_ms: list[float]
    """Window by window, one round after the other."""


class DurabilityResult(msgspec.Struct, frozen=True):
    """What was measured."""

    options: BenchOptions
    peak_per_s: float | None
    """None: the rate was given."""
    rate_per_s: float
    window_s: float
    compared: dict[str, Compared]
    """By durability, in the order asked for. Empty if not even one round was completed."""
    turns: list[Turn]
    errors: dict[str, int]
    unsent: int
    interrupted: bool = False
    format: int = 1

    @property
    def failed(self) -> int:
        """How many requests ended in an error."""
        return sum(self.errors.values())


def bucket_of(durability: str) -> str:
    """The bucket in which it is measured: it stays, with that property."""
    return f"bench-{durability}"


def run_durability(options: BenchOptions, progress: Progress | None = None) -> DurabilityResult:
    """Carry it out.

    Raises:
        ConfigError: an option is out of range.
        CannotReach: a node named in the options does not answer.
        BenchFailed: a bucket cannot be set up, or the nodes answer nothing.
    """
    options.check()
    return _Comparison(options, progress or (lambda *_: None)).run()


class _Comparison:
    def __init__(self, options: BenchOptions, progress: Progress) -> None:
        self._options = options
        self._progress = progress
        self._turns: list[Turn] = []
        self._interrupted = False

    def run(self) -> DurabilityResult:
        options = self._options
        names = options.durability
        for name in names:
            set_durability(options.nodes, bucket_of(name), name)
            if options.preload and options.reads:
                self._run(name, "filling", requests=1, warmup_s=0.0, workload="get", read_ratio=None)
        peak = None
        if options.rate_per_s is None and not self._interrupted:
            peak = self._run(
                names[0], "peak", preload=False, duration_s=min(PEAK_S, options.duration_s)
            ).throughput_per_s
            if not peak:
                raise BenchFailed("the nodes answered nothing")
        rate = options.rate_per_s or LOAD * (peak or 0.0)
        window_s = options.series_s or max(0.1, options.duration_s / WINDOWS)
        for number in range(options.rounds):
            for name in names[number % len(names) :] + names[: number % len(names)]:
                if not self._interrupted:
                    what = f"round {number + 1} of {options.rounds}"
                    result = self._run(name, what, preload=False, rate_per_s=rate, series_s=window_s)
                    self._turns.append(Turn(name, number, result))
        errors: Counter[str] = Counter()
        for turn in self._turns:
            errors.update(turn.result.errors)
        return DurabilityResult(
            options=options,
            peak_per_s=peak,
            rate_per_s=rate,
            window_s=window_s,
            compared=compared(names, self._turns),
            turns=self._turns,
            errors=dict(sorted(errors.items())),
            unsent=sum(turn.result.unsent for turn in self._turns),
            interrupted=self._interrupted,
        )

    def _run(self, name: str, what: str, **changes: object) -> BenchResult:
        """One run of the generator on the bucket of a durability."""

        def progress(phase: str, seconds: float, answered: int, errors: int) -> None:
            self._progress(f"{name}, {what}: {phase}", seconds, answered, errors)

        options = msgspec.structs.replace(self._options, durability=(), bucket=bucket_of(name), **changes)
        result = run_bench(options, progress)
        self._interrupted |= result.interrupted
        return result


def compared(names: Iterable[str], turns: Iterable[Turn]) -> dict[str, Compared]:
    """The figures by durability, of the rounds in which all had their turn."""
    rounds: dict[int, dict[str, BenchResult]] = {}
    for turn in turns:
        if WRITES in turn.result.operations:
            rounds.setdefault(turn.round, {})[turn.durability] = turn.result
    names = list(names)
    whole = [results for _, results in sorted(rounds.items()) if len(results) == len(names)]
    if not whole:
        return {}
    return {name: _compare(name, names[0], whole) for name in names}


def _compare(name: str, first: str, rounds: list[dict[str, BenchResult]]) -> Compared:
    pairs = [(results[first].operations[WRITES], results[name].operations[WRITES]) for results in rounds]
    windows = [window for results in rounds for window in results[name].series]
    return Compared(
        writes=latency([counts_of(ours.histogram or "") for _, ours in pairs]),
        mean_ratio=median(theirs.mean_ms / ours.mean_ms for theirs, ours in pairs),
        p99_9_ratio=median(theirs.p99_9_ms / ours.p99_9_ms for theirs, ours in pairs),
        series_p99_9_ms=[
            window.operations[WRITES].p99_9_ms if WRITES in window.operations else 0.0 for window in windows
        ],
    )


def counts_of(histogram: str) -> dict[int, int]:
    """How often each latency, in microseconds and to three digits, is in an encoded histogram."""
    items = HdrHistogram.decode(histogram).get_recorded_iterator()
    return {item.value_iterated_to: item.count_at_value_iterated_to for item in items}
