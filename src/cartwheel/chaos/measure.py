"""Figures from the operations of a run: rates, latencies, and how both fared while something was wrong.

Latency counts every request that was answered, with a success or with an error, and those that the client gave up: a client
waits for each. Memory: 18 bytes per operation, until they are sorted.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterable, Sequence

import msgspec

from cartwheel.chaos.history import Fault, Kind, Op
from cartwheel.chaos.premise import Premise
from cartwheel.core.types import NodeId
from cartwheel.sim.history import Status

AROUND_S = 10.0
"""The stretch around a kill -9 whose latency is told: half of it before the kill, half after."""
RECOVERY_S = 10.0
"""A fault is felt so long after its end: quiet is what lies further away."""


class Latency(msgspec.Struct, frozen=True):
    """Milliseconds."""

    p50: float
    p99: float
    p999: float
    longest: float


class Rate(msgspec.Struct, frozen=True):
    """How the writes fared."""

    writes: int
    ok: int

    @property
    def percent(self) -> float:
        """100 for no write at all: nothing failed."""
        return 100.0 * self.ok / self.writes if self.writes else 100.0


class Bucket(msgspec.Struct):
    """A stretch of the timeline."""

    start: float
    done_per_s: float = 0.0
    failed_per_s: float = 0.0
    p50_ms: float = 0.0
    p99_ms: float = 0.0


class Measured:
    """When each operation ended, how long it took, whether it was a write, and how it went."""

    def __init__(self) -> None:
        self._end = array("d")
        self._took = array("d")
        self._flags = bytearray()  # 1: a write; 2: ok; 4: unknown
        self._asked = bytearray()  # which node, as an index into:
        self._nodes: dict[NodeId, int] = {}
        self._sorted: list[tuple[float, float, int]] | None = None

    def add(self, op: Op) -> None:
        """Count an operation."""
        self._end.append(op.end)
        self._took.append(op.end - op.at)
        self._asked.append(self._nodes.setdefault(op.node, len(self._nodes)))
        self._flags.append(
            (op.kind is not Kind.GET) | (op.status is Status.OK) << 1 | (op.status is Status.UNKNOWN) << 2
        )
        self._sorted = None

    def __len__(self) -> int:
        return len(self._flags)

    def count(self, flags: int) -> int:
        """How many have all of these flags."""
        return sum(1 for each in self._flags if each & flags == flags)

    @property
    def writes(self) -> Rate:
        """All writes."""
        return Rate(self.count(1), self.count(3))

    def served(self, premise: Premise) -> Rate:
        """The writes of which promise P3 speaks."""
        nodes = list(self._nodes)
        total = ok = 0
        for end, took, flags, asked in zip(self._end, self._took, self._flags, self._asked, strict=True):
            if flags & 1 and premise.serves(nodes[asked], end - took, end):
                total += 1
                ok += flags >> 1 & 1
        return Rate(total, ok)

    def rows(self) -> list[tuple[float, float, int]]:
        """(end, seconds it took, flags), in the order of their ends."""
        if self._sorted is None:
            self._sorted = sorted(zip(self._end, self._took, self._flags, strict=True))
        return self._sorted

    def between(self, start: float, end: float) -> Sequence[tuple[float, float, int]]:
        """The rows that ended in [start, end)."""
        rows = self.rows()
        return rows[bisect_left(rows, (start,)) : bisect_left(rows, (end,))]

    def buckets(self, start: float, end: float, width_s: float) -> list[Bucket]:
        """The timeline, in stretches of ``width_s``."""
        count = max(1, round((end - start) / width_s))
        found = []
        for number in range(count):
            at = start + number * width_s
            rows = self.between(at, at + width_s)
            figures = latency([row[1] for row in rows])
            failed = sum(1 for row in rows if not row[2] & 2)
            found.append(Bucket(at, len(rows) / width_s, failed / width_s, figures.p50, figures.p99))
        return found

    def writes_within(self, spans: Iterable[tuple[float, float]]) -> Rate:
        """The writes that were under way in any of these spans of time."""
        merged = merge_spans(spans)
        total = ok = 0
        for end, took, flags in self.rows():
            if flags & 1 and _meets(merged, end - took, end):
                total += 1
                ok += flags >> 1 & 1
        return Rate(total, ok)


def latency(seconds: Sequence[float]) -> Latency:
    """The figures of some latencies, in milliseconds; zeros for none."""
    if not seconds:
        return Latency(0.0, 0.0, 0.0, 0.0)
    ordered = sorted(seconds)

    def at(share: float) -> float:
        return round(ordered[min(len(ordered) - 1, int(share * len(ordered)))] * 1000, 3)

    return Latency(at(0.5), at(0.99), at(0.999), round(ordered[-1] * 1000, 3))


def merge_spans(spans: Iterable[tuple[float, float]]) -> list[tuple[float, float]]:
    """The same stretches of time, in order, without overlaps."""
    merged: list[tuple[float, float]] = []
    for start, end in sorted(spans):
        if merged and start <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(merged[-1][1], end))
        else:
            merged.append((start, end))
    return merged


def _meets(merged: Sequence[tuple[float, float]], start: float, end: float) -> bool:
    """Whether [start, end] meets one of them."""
    at = bisect_left(merged, (end, float("inf")))
    return at > 0 and merged[at - 1][1] >= start


def quiet_spans(faults: Iterable[Fault], start: float, end: float) -> list[tuple[float, float]]:
    """When nothing was wrong, nor had been for a while."""
    found, at = [], start
    for fault_start, fault_end in merge_spans((fault.start, fault.end + RECOVERY_S) for fault in faults):
        if fault_start > at:
            found.append((at, min(fault_start, end)))
        at = max(at, fault_end)
    if at < end:
        found.append((at, end))
    return found


def by_kind(faults: Iterable[Fault]) -> dict[str, list[tuple[float, float]]]:
    """When each kind of fault was at work."""
    found: defaultdict[str, list[tuple[float, float]]] = defaultdict(list)
    for fault in faults:
        found[fault.kind].append((fault.start, fault.end))
    return dict(sorted(found.items()))
