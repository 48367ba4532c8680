"""What a chaos run comes to: figures, verdict, and why. The same for people (``picture``) and for programs (``--json``)."""

from __future__ import annotations

from pathlib import Path

import msgspec

from cartwheel.chaos.history import Fault
from cartwheel.chaos.judge import Record, Verdict, judge, read_record, rules_broken
from cartwheel.chaos.measure import AROUND_S, Latency, Measured, Rate, by_kind, latency, quiet_spans
from cartwheel.chaos.premise import Premise

OPS_PER_S_MIN = 300.0
"""A run that held less proves little: the moments in which things go wrong are short."""
KILL_P99_MS = 250.0
"""The target for the p99 in the seconds around a kill -9."""
VIOLATIONS_MAX = 50
"""Violations that are told one by one."""


class AroundKill(msgspec.Struct, frozen=True):
    """The 10 s around a kill -9: from 5 s before to 5 s after it."""

    node: str
    at: float
    operations: int
    p99_ms: float
    ready_s: float
    """From its start to its first answer."""


class Report(msgspec.Struct, kw_only=True):
    """The figures of a run."""

    verdict: str
    """``held``, ``violated`` or ``invalid``."""
    why: list[str]
    """What is wrong, if anything."""
    version: str
    seed: int
    nodes: int
    engine: str
    seconds: float
    operations: int
    ops_per_s: float
    """Successful ones."""
    acknowledged: int
    writes_ok_percent: float
    writes_served: int
    """Those that were sent to a node which was up and reached W nodes, until they ended (see ``premise``)."""
    writes_served_ok: int
    writes_served_ok_percent: float
    unknown: int
    """Writes of unknown outcome."""
    rejected: int
    """Writes that were certainly not applied."""
    reads_failed: int
    latency_ms: Latency
    kills: int
    kill_p99_ms: float
    """The p99 over the 10 s around all kills together; 0 without a kill."""
    kill_p99_ms_worst: float
    kill_ready_s_worst: float
    around_kills: list[AroundKill]
    lost: int
    phantom: int
    resurrected: int
    recovered: int
    """Elements of sets whose adding was never acknowledged, but are there."""
    shown_again: int
    """Superseded values that showed again, of writes that were handed from one coordinator to another (see ``judge``)."""
    excused: int
    """Deletes of unknown outcome that explain what is gone."""
    session_reads: int
    stale_own_reads: int
    """Reads that miss a write of the same process: no promise under faults, but good to know."""
    agreed_s: float
    members: list[str]
    """Who was in the ring in the end."""
    changes: int
    """How many changes its history has, the founding of the cluster included."""
    keys: int
    keys_read_to_agree: int
    """Keys whose owners came to agree only after a read of the key."""
    writes_by_nemesis: dict[str, dict[str, float]]
    rules: dict[str, int]
    violations: list[str]
    stories: dict[str, list[str]]
    faults: list[Fault]


def report_on(path: Path) -> tuple[Report, Record]:
    """Judge a history and measure it."""
    record = read_record(path)
    return make_report(record, judge(path, record)), record


def load_span(record: Record) -> tuple[float, float]:
    """When the load ran."""
    if record.end is not None:
        return record.end.load_from, record.end.load_to
    rows = record.measured.rows()
    return (0.0, rows[-1][0]) if rows else (0.0, 0.0)


def make_report(record: Record, verdict: Verdict) -> Report:
    """All figures."""
    run, measured = record.run, record.measured
    start, end = load_span(record)
    seconds = max(end - start, 0.001)
    ops_per_s = measured.count(2) / seconds
    kills = [_around(fault, measured) for fault in record.faults if fault.kind == "kill"]
    near = [row[1] for fault in record.faults if fault.kind == "kill" for row in _near(fault, measured)]
    writes, counts = measured.writes, verdict.counts
    served = measured.served(Premise([*run.nodes, *run.more], run.w, record.faults, record.aways))
    unknown = measured.count(5)
    outcome, why = _outcome(verdict, ops_per_s)
    return Report(
        verdict=outcome, why=why, version=run.version, seed=run.seed, nodes=len(run.nodes), engine=run.engine,
        seconds=round(seconds, 1), operations=len(measured), ops_per_s=round(ops_per_s, 1),
        acknowledged=writes.ok, writes_ok_percent=round(writes.percent, 4), unknown=unknown,
        writes_served=served.writes, writes_served_ok=served.ok, writes_served_ok_percent=round(served.percent, 4),
        rejected=writes.writes - writes.ok - unknown,
        reads_failed=len(measured) - writes.writes - (measured.count(2) - writes.ok),
        latency_ms=latency([row[1] for row in measured.rows()]),
        kills=len(kills), kill_p99_ms=latency(near).p99,
        kill_p99_ms_worst=max((each.p99_ms for each in kills), default=0.0),
        kill_ready_s_worst=max((each.ready_s for each in kills), default=0.0), around_kills=kills,
        lost=counts["lost"], phantom=counts["phantom"], resurrected=counts["resurrected"],
        shown_again=counts["again"],
        recovered=counts["recovered"], excused=counts["excused"],
        session_reads=counts["session.reads"], stale_own_reads=counts["session.stale_own"],
        agreed_s=round(record.end.agreed_s, 2) if record.end is not None else 0.0,
        members=record.end.members if record.end is not None else [],
        changes=record.end.changes if record.end is not None else 0,
        keys=len(record.finals), keys_read_to_agree=sum(final.read for final in record.finals.values()),
        writes_by_nemesis=_by_nemesis(record, start, end), rules=rules_broken(verdict.violations),
        violations=[str(violation) for violation in verdict.violations[:VIOLATIONS_MAX]],
        stories=verdict.stories, faults=record.faults,
    )  # fmt: skip


def _outcome(verdict: Verdict, ops_per_s: float) -> tuple[str, list[str]]:
    why = [f"{rule}: {count} violations" for rule, count in rules_broken(verdict.violations).items()]
    if why:
        return "violated", why
    if ops_per_s < OPS_PER_S_MIN:
        slow = f"{ops_per_s:.0f} successful operations a second: a run under {OPS_PER_S_MIN:.0f} proves too little"
        return "invalid", [slow]
    return "held", []


def _near(fault: Fault, measured: Measured) -> list[tuple[float, float, int]]:
    return list(measured.between(fault.start - AROUND_S / 2, fault.start + AROUND_S / 2))


def _around(fault: Fault, measured: Measured) -> AroundKill:
    rows = _near(fault, measured)
    figures = latency([row[1] for row in rows])
    return AroundKill(fault.nodes[0], round(fault.start, 2), len(rows), figures.p99, round(fault.ready_s, 2))


def _by_nemesis(record: Record, start: float, end: float) -> dict[str, dict[str, float]]:
    spans = {"(quiet)": quiet_spans(record.faults, start, end)} | by_kind(record.faults)
    rates: dict[str, Rate] = {kind: record.measured.writes_within(each) for kind, each in spans.items()}
    return {
        kind: {
            "times": len(spans[kind]),
            "writes": rate.writes,
            "ok": rate.ok,
            "ok_percent": round(rate.percent, 4),
        }
        for kind, rate in rates.items()
    }
