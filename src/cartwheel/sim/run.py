"""One run from plan to verdict, and batches of runs.

A run has three phases. **Safety**: clients work while faults strike. **Healing**: faults end, every node runs, the last frames
of the safety phase come once more, and then nobody does anything for as long as the cluster may take to converge
(``converge_s``). **Judgement**: what owners hold is noted, every key is read once, a scan walks through all of them, and
the checkers go over it all.
"""

from __future__ import annotations

import math
import time
import traceback
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

from cartwheel.core.failure import HEALTH_S
from cartwheel.sim import bugs, causal, checkers, swarm
from cartwheel.sim.acts import ActKind
from cartwheel.sim.faults import Plan
from cartwheel.sim.history import KeyHistory, Leftover, Status, Violation, describe
from cartwheel.sim.workloads import Workload
from cartwheel.sim.world import World

SETTLE_S = 12.0
"""From the end of the faults to the moment from which convergence is timed: the links are up, old requests are over, and the last
late frame (``CLOG_S + REPEAT_S_MAX``) has arrived by then."""
REPLAY_S = 4.0
"""When, within that, the last frames of the safety phase come once more (which takes two seconds)."""
MOVES_S = 30.0
"""For the hand-over of what the last acts move: comparing, changing hands, a grace, comparing and removing."""
SCAN_S = 3.0
READ_S = 5.0
"""A get waits for the slowest answer as long as requests last, then repairs."""
SYNC_S_SERVED = 0.05
"""Where a commit takes longer in the mean, one in a hundred (ten times as long) outlasts a request: then W may be missed though
its nodes are reached."""


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
    steps: list[tuple[int, int]] = field(default_factory=list)
    """What the clients did, as (process, step): what ``Plan.only`` may leave out."""


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
    world.marks.update({f"core.{name}": count for name, count in world.core_counters().items()})
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
        workload.steps,
    )


def _story(world: World, key: str) -> list[str]:
    """What led to the first violation on this key; all of it, if that showed only in the end."""
    at = min((v.at for v in world.violations if v.key == key and v.at), default=math.inf)
    return describe(world.observer.histories[key], until=at)


def _drive(world: World, workload: Workload) -> None:
    end = world.plan.seconds
    world.run_until(end)
    workload.stop()
    world.troubles.heal()
    world.run_until(end + REPLAY_S)
    world.replay()
    world.run_until(end + SETTLE_S)
    world.run_until(world.now + converge_s(world))
    world.observer.collect_finals()
    workload.read_all()
    world.run_until(world.now + READ_S)
    world.observer.collect_mended()
    workload.scan_all()
    world.run_until(world.now + SCAN_S)


def converge_s(world: World) -> float:
    """How long healed nodes may take until all owners hold the same: two rounds of gossip, the delivery of all hints, two cycles
    of anti-entropy (C5)."""
    config = world.config(world.plan.nodes[0])
    hints = max(host.hints_kept for host in world.hosts.values())
    cycle_s = config.ae_settle_s + config.ae_interval_s * (len(world.plan.nodes) - 1)
    moves_s = MOVES_S if world.plan.acts else 0.0
    return 2 * HEALTH_S + hints / config.background_records_per_s_min + 2 * cycle_s + moves_s


def _broken(error: AssertionError, at: float) -> Violation:
    """An assertion of the core failed: where, and what it says."""
    frames = [f for f in traceback.extract_tb(error.__traceback__) if "cartwheel" in f.filename]
    where = (
        f"{frames[-1].filename.rpartition('cartwheel/')[2]}:{frames[-1].lineno} {frames[-1].name}" if frames else "?"
    )
    return Violation("invariant", "", f"{where}: {error}", at)


def judge(world: World, workload: Workload) -> list[Violation]:
    """All checkers over all keys."""
    plan, observer = world.plan, world.observer
    found: list[Violation] = []
    for key, history in sorted(observer.histories.items()):
        found += _judge_key(world, history, [left for left in observer.leftovers if left.key == key])
    found += checkers.check_leftovers(observer.leftovers)
    found += checkers.check_scan(observer.histories.values(), world.scanned, ended=world.scan_ended)
    members = world.members
    views = {name: host.node for name, host in world.hosts.items() if name in members}
    epochs = {node.epoch.hex()[:8]: name for name, node in views.items()}
    if len(epochs) > 1:
        found.append(Violation("C5", "", f"nodes differ over the membership after healing: {epochs}"))
    found += checkers.check_views({name: node.status() for name, node in views.items()})
    if plan.acts:
        found += checkers.check_settled({name: node.status() for name, node in views.items()})
        known = {change.id for node in views.values() for change, _ in node.changes()}
        found += [
            Violation("MOVE", "", f"the change {lost} was committed, and is nowhere")
            for lost in sorted(world.acts.committed - known)
        ]
    if plan.calm:
        steady = [attempt for attempt in workload.tries if attempt.node in plan.steady]
        found += checkers.check_available(steady, [(0.0, 3.0)])
    if not plan.weather.loss and plan.sync_s <= SYNC_S_SERVED:
        removed = {act.node for act in plan.acts if act.kind is ActKind.REMOVE}
        found += checkers.check_served(workload.tries, world.reach, plan.steady, plan.w, removed)
    return found


def _judge_key(world: World, history: KeyHistory, leftovers: list[Leftover]) -> list[Violation]:
    plan, shown_stays = world.plan, not world.plan.victim
    strict = plan.fresh and plan.reconcile == "siblings"
    found: list[Violation] = []
    if plan.reconcile == "lww":
        found += checkers.check_last_writer_wins(history)
    else:
        found += checkers.check_supersession(history, shown_stays=shown_stays)
        found += checkers.check_resurrection(history, leftovers, shown_stays=shown_stays)
        violations, behind = causal.check_causal(history, strict=strict)
        found += violations
        world.marks["session.behind"] += behind
        if plan.workload == "sets":
            found += _judge_set(world, history)
        if strict:
            found += checkers.check_fresh(history)
    found += checkers.check_convergence(history)
    found += checkers.check_rejected(history)
    found += checkers.check_expiry(history, slack_ms=1000)
    violations, counts = checkers.check_sessions(history, strict=strict)
    found += violations
    world.marks.update(counts)
    return found


def _judge_set(world: World, history: KeyHistory) -> list[Violation]:
    writes = history.writes.values()
    attempted = {w.id for w in writes}
    acked = {w.id for w in writes if w.status is Status.OK}
    finals = {node: set_of(final.elements) for node, final in history.finals.items()}
    found, recovered = checkers.check_set(history.key, attempted, acked, finals)
    world.marks["set.recovered"] += recovered
    return found


def set_of(bits: int) -> set[int]:
    """The elements of a bitset."""
    return {i for i in range(bits.bit_length()) if bits >> i & 1}


# --- many runs ---------------------------------------------------------------------------------------------------------


ONE_BUILD: dict[str, Any] = {"aged": (), "view_bytes_whole": 4096}


@dataclass(frozen=True, slots=True)
class Options:
    """What is the same for all runs of a batch."""

    seconds: float = 120.0
    nodes: int = 0
    profile: str = ""
    bug: str = ""
    keep_trace: bool = False
    moves: bool = False

    def draw(self, seed: int) -> Plan:
        """The plan of a seed. A planted bug is hunted in a cluster of one build; if it needs a special setting to show, it brings
        that along."""
        setting = {**ONE_BUILD, **bugs.BUGS[self.bug].setting} if self.bug else {}
        profile = self.profile or (bugs.BUGS[self.bug].profile if self.bug else "")
        return swarm.draw(
            seed, seconds=self.seconds, nodes=self.nodes, profile=profile, moves=self.moves, setting=setting
        )


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
