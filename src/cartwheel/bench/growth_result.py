"""What growing and shrinking did to clients, and how that compares with what we want: the structs behind ``--json``."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Literal

import msgspec

from cartwheel.bench.keyspace import ReadBack
from cartwheel.bench.nodes import Look
from cartwheel.bench.result import Latency
from cartwheel.bench.steady import PhaseReport
from cartwheel.core.errors import ConfigError

BASELINE = "baseline"
SUCCESS_MIN = 0.9999
P99_RATIO_MAX = 2.0
P99_COUNT_MIN = 500
"""With fewer, the 99th percentile is one of the five slowest: too few to compare."""
IDLE_KEYS_PER_S_MIN = 50_000.0
IDLE_BYTES_PER_S_MIN = 20e6
MB = 1e6


class GrowthOptions(msgspec.Struct, frozen=True, kw_only=True):
    """What to do."""

    keys: int = 200_000
    rate_per_s: float = 1000.0
    value_bytes: int = 100
    read_ratio: float = 0.5
    distribution: Literal["uniform", "zipfian"] = "uniform"
    connections: int = 50
    pipeline: int = 1
    """Requests in flight on each connection."""
    warmup_s: float = 5.0
    baseline_s: float = 20.0
    """Of the phases before and after."""
    steady_s: float = 20.0
    """Of the phase with six nodes."""
    one_by_one: bool = False
    """A commit for each node that joins or leaves, instead of one for all three."""
    leave: Literal["first", "last"] = "first"
    """Who leaves: the founders, to which all clients are connected, or those that have joined."""
    spread: bool = False
    """Clients also connect to the new nodes, as soon as these are members."""
    strict: bool = False
    """Only owners count (``pr`` and ``pw``). Without it a fallback counts in place of an owner that is late, and then R + W > N
    does not promise that a read sees the last write."""
    settings: dict[str, str] = {}
    """Settings of the nodes (``cartwheel start``)."""
    limit_s: float = 3600.0
    """The longest that a hand-over may take."""
    look_s: float = 2.0
    """Between two looks at the nodes: each takes some milliseconds of every node."""
    timeout_s: float = 5.0
    seed: int = 1

    def check(self) -> GrowthOptions:
        """Return self, or raise ``ConfigError`` naming the option that is out of range."""
        ranges: dict[str, tuple[float, float]] = {
            "keys": (10, 10**7), "rate_per_s": (1, 10**6), "value_bytes": (32, 1 << 20), "read_ratio": (0, 1),
            "connections": (1, 10_000), "pipeline": (1, 1000), "warmup_s": (0, 3600), "baseline_s": (0.5, 3600),
            "steady_s": (0.5, 3600), "limit_s": (1, 86400), "timeout_s": (0.1, 3600), "look_s": (0.05, 60),
        }  # fmt: skip
        for name, (low, high) in ranges.items():
            if not low <= getattr(self, name) <= high:
                raise ConfigError(
                    f"{name.replace('_', ' ')} {getattr(self, name)} must lie between {low:,} and {high:,}"
                )
        return self


class Phase(msgspec.Struct, frozen=True):
    """One phase: what clients saw, and what was handed over meanwhile."""

    clients: PhaseReport
    records: int
    """Records received with partitions taken over."""
    row_bytes: int
    """Bytes of records sent between nodes: the handed over ones, and those compared again before they are removed."""
    cpu_s: float
    """Processor time of all nodes, in seconds."""
    stand_ins: int
    """Requests for which a fallback was asked, since an owner was late."""
    read_p99_ratio: float | None
    """To the baseline. None: too few to tell."""
    write_p99_ratio: float | None

    @property
    def success(self) -> float:
        """The share of operations that were done, 0 to 1."""
        return self.clients.done / self.clients.operations if self.clients.operations else 1.0


class Reach(msgspec.Struct, frozen=True):
    """One thing that we want."""

    what: str
    measured: str
    wanted: str
    met: bool | None
    """None: it could not be judged."""


class GrowthResult(msgspec.Struct, frozen=True):
    """What was measured."""

    options: GrowthOptions
    phases: list[Phase]
    read_back: ReadBack | None
    """None: interrupted before."""
    examples: list[str]
    """Some of what was found, in words."""
    texts: list[str]
    """Some of the errors."""
    aside: int
    """Keys whose writing ended, since nobody knows what became of a write."""
    generator_busy: float
    unfinished: str = ""
    """What did not end in time."""
    interrupted: bool = False
    reaches: list[Reach] = []
    """Filled in by ``judged``."""
    format: int = 1

    @property
    def lost(self) -> int:
        """Acknowledged writes that are not there in the end."""
        return self.read_back.lost if self.read_back is not None else 0

    @property
    def not_found(self) -> int:
        """Reads that did not find what had been acknowledged before they began."""
        return sum(phase.clients.not_found for phase in self.phases)

    @property
    def stale(self) -> int:
        """Reads that found something older."""
        return sum(phase.clients.stale for phase in self.phases)

    @property
    def foreign(self) -> int:
        """Reads that found what nobody wrote."""
        found = sum(phase.clients.foreign for phase in self.phases)
        return found + (self.read_back.foreign if self.read_back is not None else 0)

    @property
    def passed(self) -> bool:
        """Whether all promises were kept, as far as it went. (That is not to say that it was fast.)"""
        unread = self.read_back.unread if self.read_back is not None else 0
        return not (self.lost or self.not_found or self.stale or self.foreign or unread or self.unfinished)


def phases_of(reports: Sequence[PhaseReport], looks: Sequence[Look]) -> list[Phase]:
    """Phases with what was handed over in each: ``looks`` are those at their beginnings, and one at the end."""
    assert len(looks) == len(reports) + 1, (len(looks), len(reports))
    base = next((report for report in reports if report.name == BASELINE), None)
    return [
        Phase(
            clients=report,
            records=after.records - before.records,
            row_bytes=after.row_bytes - before.row_bytes,
            cpu_s=after.cpu_s - before.cpu_s,
            stand_ins=after.stand_ins - before.stand_ins,
            read_p99_ratio=_ratio(report.reads, base.reads if base is not None else None),
            write_p99_ratio=_ratio(report.writes, base.writes if base is not None else None),
        )
        for report, (before, after) in zip(reports, itertools.pairwise(looks), strict=True)
    ]


def _ratio(one: Latency, base: Latency | None) -> float | None:
    enough = base is not None and base.p99_ms and min(one.count, base.count) >= P99_COUNT_MIN
    return one.p99_ms / base.p99_ms if enough and base is not None else None


def judged(result: GrowthResult) -> GrowthResult:
    """With its reaches."""
    return msgspec.structs.replace(result, reaches=list(_reaches(result)))


def _reaches(result: GrowthResult) -> Iterable[Reach]:
    back = result.read_back
    whole = not result.interrupted and not result.unfinished
    lost_known = back is not None and whole
    yield Reach(
        "writes lost",
        f"{result.lost:,} of {back.keys:,} keys" + (f", {back.unread:,} unreadable" if back.unread else "")
        if back is not None
        else "not read back",
        "0",
        False if back is not None and (back.lost or back.unread) else True if lost_known else None,
    )
    clients = [phase.clients for phase in result.phases]
    reads = sum(each.reads.count for each in clients)
    wrong = result.not_found + result.stale + result.foreign
    more = "".join(
        f", {count:,} {what}" for count, what in ((result.stale, "stale"), (result.foreign, "never written")) if count
    )
    yield Reach(
        "false not-founds",
        f"{result.not_found:,} of {reads:,} reads{more}",
        "0, and none stale",
        False if wrong else True if whole else None,
    )
    done, total = sum(each.done for each in clients), sum(each.operations for each in clients)
    success = done / total if total else 0.0
    yield Reach(
        "success",
        f"{100 * success:.4f} % of {total:,}",
        f"{100 * SUCCESS_MIN:g} %",
        False if success < SUCCESS_MIN else True if whole else None,
    )
    yield _p99_reach(result, whole=whole)


def _p99_reach(result: GrowthResult, *, whole: bool) -> Reach:
    """The worst of the phases after the baseline."""
    ratios = [
        (ratio, f"{kind} in {phase.clients.name!r}")
        for phase in _after_baseline(result.phases)
        for kind, ratio in (("reads", phase.read_p99_ratio), ("writes", phase.write_p99_ratio))
        if ratio is not None
    ]
    wanted = f"{P99_RATIO_MAX:g} times the baseline's"
    if not ratios:
        return Reach("p99", f"fewer than {P99_COUNT_MIN} operations of a kind in a phase", wanted, None)
    worst, where = max(ratios)
    met = worst <= P99_RATIO_MAX
    return Reach("p99", f"{worst:.2f} times ({where})", wanted, met if whole or not met else None)


def _after_baseline(phases: Sequence[Phase]) -> list[Phase]:
    at = next((number for number, phase in enumerate(phases) if phase.clients.name == BASELINE), len(phases))
    return list(phases[at + 1 :])


def totals(phases: Iterable[Phase]) -> tuple[Counter[str], Counter[str]]:
    """Why second tries came to nothing, and why first ones did, in all phases. What was never sent counts as ``unsent``."""
    errors: Counter[str] = Counter()
    retries: Counter[str] = Counter()
    for phase in phases:
        errors.update(phase.clients.errors)
        retries.update(phase.clients.retries)
        if phase.clients.unsent:
            errors["unsent"] += phase.clients.unsent
    return errors, retries


class IdleRun(msgspec.Struct, frozen=True):
    """A second node took over everything from the first, and nobody wanted anything else."""

    keys: int
    value_bytes: int
    seconds: float
    """From the commit until it had caught up and counted."""
    records: int
    """That it received: fewer than the keys would mean that it has not caught up."""
    row_bytes: int
    keys_per_s: float
    mb_per_s: float
    """Of keys and values, in millions of bytes."""
    wanted_keys_per_s: float
    """50,000, or as many as make 20 MB, whichever is less."""

    @property
    def met(self) -> bool:
        """Whether that was fast enough."""
        return self.records >= self.keys and self.keys_per_s >= self.wanted_keys_per_s


class IdleResult(msgspec.Struct, frozen=True):
    """All runs."""

    settings: dict[str, str]
    runs: list[IdleRun]
    format: int = 1


def idle_run(keys: int, value_bytes: int, key_bytes: int, seconds: float, records: int, row_bytes: int) -> IdleRun:
    """Make the figures."""
    size = key_bytes + value_bytes
    return IdleRun(
        keys=keys,
        value_bytes=value_bytes,
        seconds=seconds,
        records=records,
        row_bytes=row_bytes,
        keys_per_s=keys / seconds,
        mb_per_s=keys * size / seconds / MB,
        wanted_keys_per_s=min(IDLE_KEYS_PER_S_MIN, IDLE_BYTES_PER_S_MIN / size),
    )
