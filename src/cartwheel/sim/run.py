"""One run from plan to verdict, batches of runs, and the shortening of a failing plan.

A run has three phases. **Safety**: clients work while faults strike. **Healing**: faults end, every node runs; after
``SETTLE_S`` every key is read once (read repair), and again for the client's last view. **Judgement**: the checkers go over the
histories.
"""

from __future__ import annotations

import math
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass, field

from cartwheel.core.types import NodeId
from cartwheel.sim import bugs, checkers, faults
from cartwheel.sim.faults import Fault, Plan
from cartwheel.sim.history import Status, Violation, describe
from cartwheel.sim.workloads import Workload
from cartwheel.sim.world import World

SETTLE_S = 12.0
"""From the end of the faults to the first reading of everything: the links are up, old requests are over, and the last late frame
(``CLOG_S + REPEAT_S_MAX``) has arrived by then."""
SCAN_S = 3.0
REPAIR_S = 5.0
"""A get waits ``straggler_timeout_s`` for the slowest answer, then repairs."""


@dataclass(slots=True)
class Report:
    """What came of one run. Small enough to pass between processes."""

    seed: int
    plan: Plan
    trace_hash: str
    violations: list[Violation]
    marks: Counter[str]
    outcomes: Counter[str]
    events: int
    virtual_s: float
    cpu_s: float
    bug: str = ""
    stories: dict[str, list[str]] = field(default_factory=dict)
    """Key -> its history for people, for the keys with violations."""
    trace: list[str] = field(default_factory=list)


def run(plan: Plan, *, bug: str = "", keep_trace: bool = False) -> Report:
    """Carry out a plan, with a planted bug or none."""
    began = time.process_time()
    with bugs.planted(bug) if bug else nullcontext():
        world = World(plan, keep_trace=keep_trace)
        workload = Workload(world)
        try:
            _drive(world, workload)
        except AssertionError as error:
            world.violations.append(_broken(error, world.now))
    if not world.violations:
        world.violations += judge(world, workload)
    for name, host in world.hosts.items():
        if host.life:
            world.marks.update({f"core.{k}": v for k, v in host.node.local.counters.items() if name})
    keys = sorted({v.key for v in world.violations if v.key})
    return Report(
        plan.seed,
        plan,
        world.trace_hash,
        world.violations,
        world.marks,
        workload.outcomes,
        world.events,
        world.now,
        time.process_time() - began,
        bug,
        {key: _story(world, key) for key in keys[:3]},
        world.trace_lines or [],
    )


def _story(world: World, key: str) -> list[str]:
    """What led to the first violation on this key; all of it, if that showed only in the end."""
    at = min((v.at for v in world.violations if v.key == key and v.at), default=math.inf)
    return describe(world.histories[key], until=at)


def _drive(world: World, workload: Workload) -> None:
    end = world.plan.seconds
    world.run_until(end)
    workload.stop()
    world.heal()
    world.run_until(end + SETTLE_S)
    for _ in range(2):
        workload.read_all()
        end_of_reading = world.now + REPAIR_S
        world.run_until(end_of_reading)
    workload.scan_all()
    world.run_until(world.now + SCAN_S)


def _broken(error: AssertionError, at: float) -> Violation:
    """An assertion of the core failed: where, and what it says."""
    frames = [f for f in traceback.extract_tb(error.__traceback__) if "cartwheel" in f.filename]
    where = (
        f"{frames[-1].filename.rpartition('cartwheel/')[2]}:{frames[-1].lineno} {frames[-1].name}" if frames else "?"
    )
    return Violation("invariant", "", f"{where}: {error}", at)


def judge(world: World, workload: Workload) -> list[Violation]:
    """All checkers over all keys."""
    plan = world.plan
    elements = world.collect_finals()
    found: list[Violation] = []
    for key, history in sorted(world.histories.items()):
        if plan.reconcile == "lww":
            found += checkers.check_last_writer_wins(history)
        else:
            found += checkers.check_supersession(history, shown_stays=not plan.victim)
            if plan.workload == "sets":
                violations, recovered = _judge_set(key, world, elements[key])
                found += violations
                world.marks["set.recovered"] += recovered
        found += checkers.check_convergence(history)
        found += checkers.check_rejected(history)
        found += checkers.check_expiry(history, slack_ms=1000)
        if plan.fresh and plan.reconcile == "siblings":
            found += checkers.check_fresh(history)
        violations, counts = checkers.check_sessions(history, strict=plan.fresh and plan.reconcile == "siblings")
        found += violations
        world.marks.update(counts)
    found += checkers.check_scan(world.histories.values(), world.scanned, ended=world.scan_ended)
    epochs = {host.node.epoch.hex()[:8]: name for name, host in world.hosts.items()}
    if len(epochs) > 1:
        found.append(Violation("C5", "", f"nodes differ over the membership after healing: {epochs}"))
    if plan.profile == "calm":
        found += checkers.check_available(workload.tries, [(0.0, 3.0)])
    return found


def _judge_set(key: str, world: World, finals: dict[NodeId, set[int]]) -> tuple[list[Violation], int]:
    writes = world.histories[key].writes.values()
    attempted = {w.id for w in writes}
    acked = {w.id for w in writes if w.status is Status.OK}
    return checkers.check_set(key, attempted, acked, finals)


# --- many runs ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Options:
    """What is the same for all runs of a batch."""

    seconds: float = 120.0
    nodes: int = 0
    profile: str = ""
    bug: str = ""
    keep_trace: bool = False

    def draw(self, seed: int) -> Plan:
        """The plan of a seed. A planted bug that needs a special setting to show brings it along."""
        setting = bugs.BUGS[self.bug].setting if self.bug else {}
        profile = self.profile or (bugs.BUGS[self.bug].profile if self.bug else "")
        return faults.draw(seed, seconds=self.seconds, nodes=self.nodes, profile=profile, setting=setting)


def run_seed(seed: int, options: Options) -> Report:
    """Draw a plan and carry it out."""
    plan = options.draw(seed)
    return run(plan, bug=options.bug, keep_trace=options.keep_trace)


def run_seeds(seeds: range, options: Options, *, jobs: int = 1) -> Iterator[Report]:
    """Run many seeds, in order, in ``jobs`` processes."""
    if jobs <= 1:
        for seed in seeds:
            yield run_seed(seed, options)
        return
    with ProcessPoolExecutor(jobs) as pool:
        yield from pool.map(run_seed, seeds, [options] * len(seeds))


def hunt(bug: str, seeds: range, options: Options) -> Report | None:
    """The first run in which a planted bug is caught; None if it never is."""
    for seed in seeds:
        report = run_seed(seed, Options(options.seconds, options.nodes, options.profile, bug))
        if report.violations:
            return report
    return None


# --- shortening --------------------------------------------------------------------------------------------------------


def shrink(plan: Plan, *, bug: str = "", note: Callable[[str], None] = lambda text: None) -> Plan:
    """A plan with few faults that still breaks the same rule (ddmin, Zeller and Hildebrandt 2002)."""
    first = run(plan, bug=bug)
    assert first.violations, "a run without violations has nothing to shrink"
    rule = first.violations[0].rule

    def fails(candidate: Plan) -> bool:
        return any(v.rule == rule for v in run(candidate, bug=bug).violations)

    def without(kept: tuple[Fault, ...]) -> Plan:
        return plan.with_faults(kept)

    kept, pieces = plan.faults, 2
    if fails(without(())):
        kept = ()
    while len(kept) >= 2:
        size = -(-len(kept) // pieces)
        for start in range(0, len(kept), size):
            rest = kept[:start] + kept[start + size :]
            if fails(without(rest)):
                kept, pieces = rest, max(pieces - 1, 2)
                note(f"{len(kept)} faults still break {rule}")
                break
        else:
            if pieces >= len(kept):
                break
            pieces = min(len(kept), pieces * 2)
    return without(kept)
