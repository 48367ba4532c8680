"""What a run is like: everything that is drawn from the seed before its first step, and the faults that come on time.

A ``Plan`` is drawn whole, printed whole, and then carried out; nothing about it depends on what the nodes do. So a failing
plan can be shortened (``shrink``): the run with fewer faults is the same run up to the first fault that is missing.

**Premises.** A promise has a premise, and a plan either keeps it or says that it does not, so that checkers know what to demand:
1. Disks lose nothing that was synced, except those of *one* node a run (``victim``), fewer than W: then W-1 safe copies are
   what remains of an acknowledgement (C9), and what was shown but never acknowledged may vanish.
2. Power is cut only if buckets sync; nodes crash at all only if buckets write to the operating system at least.
3. A context with single dots in it (after a put that left siblings) is honoured by a quorum read, which a lost copy defeats: the
   put then leaves a false sibling. Runs with a victim do not send such contexts.
4. R+W>N gives fresh reads (FRESH, C3) only while no copy is lost and no fallback stands in for an owner.
"""

from __future__ import annotations

import enum
import random
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from cartwheel.core.config import DurabilityName, Reconcile
from cartwheel.core.types import NodeId
from cartwheel.sim.network import CALM, Direction, Weather


def fork(seed: int, label: str) -> random.Random:
    """Dice for one purpose: a new draw in one place does not shift the others."""
    return random.Random(f"{seed}/{label}")


class Kind(enum.StrEnum):
    """What can go wrong."""

    KILL = "kill"
    """The process ends between two effects; what it applied stays. It starts again after ``for_s``."""
    POWER = "power"
    """The machine loses power: what was not synced is lost, from some batch on."""
    STOP = "stop"
    """A clean stop and a start."""
    PAUSE = "pause"
    """SIGSTOP for ``for_s``: events wait, clocks go on."""
    CUT = "cut"
    """Directed links carry nothing for ``for_s``."""
    CLOG = "clog"
    """Directed links hold frames up for seconds."""
    JUMP = "jump"
    """The wall clock is set by ``amount`` milliseconds."""
    SYNC_ERROR = "sync-error"
    """The next sync fails: the node must halt. Starts again after ``for_s``."""
    SLOW_DISK = "slow-disk"
    """Commits take ``amount`` times as long."""
    FLIP = "flip"
    """A bit of a record at rest flips (the victim only)."""
    WIPE = "wipe"
    """The machine comes back with an empty disk (the victim only)."""


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing that goes wrong at one time."""

    at: float
    kind: Kind
    nodes: tuple[NodeId, ...] = ()
    links: tuple[Direction, ...] = ()
    for_s: float = 0.0
    amount: float = 0.0
    """JUMP: ms; SLOW_DISK: factor; KILL, POWER: after how many effects of the next event that has so many."""
    noticed: bool = True
    """CUT, crashes: whether the transports find out (after a while) that the peer is gone."""

    def __str__(self) -> str:
        where = ",".join(self.nodes) or " ".join(f"{a}>{b}" for a, b in self.links)
        amount = f" amount={self.amount:g}" if self.amount else ""
        return f"{self.at:8.2f} s {self.kind:<10} {where} for {self.for_s:.2f} s{amount}{'' if self.noticed else ' unnoticed'}"


@dataclass(frozen=True, slots=True)
class Plan:
    """A whole run, drawn from its seed."""

    seed: int
    seconds: float
    nodes: tuple[NodeId, ...]
    profile: str
    n: int = 3
    r: int = 2
    w: int = 2
    durability: DurabilityName = "sync"
    reconcile: Reconcile = "siblings"
    workload: str = "registers"
    """``registers``: all kinds of writes. ``sets``: read, union, put (C1)."""
    keys: int = 10
    processes: int = 8
    ops_per_s: float = 20.0
    weather: Weather = CALM
    clock_offset_ms: tuple[int, ...] = ()
    clock_drift: tuple[float, ...] = ()
    sync_s: float = 0.004
    """Mean latency of a synced commit; one in a hundred takes ten times as long."""
    tick_s: float = 0.1
    victim: NodeId = ""
    """The one node whose disk may lose what was synced."""
    faults: tuple[Fault, ...] = ()

    @property
    def fresh(self) -> bool:
        """Whether a get must see every put acknowledged before it (premise 4)."""
        return self.r + self.w > self.n and not self.victim

    @property
    def safe_copies(self) -> int:
        """How many safe copies an acknowledgement means (premise 1)."""
        return self.w - bool(self.victim)

    def lines(self) -> list[str]:
        """The plan for people, every drawn parameter."""
        weather = self.weather
        return [
            f"seed {self.seed}: {self.profile}, {self.seconds:g} s, {len(self.nodes)} nodes, N={self.n} R={self.r} W={self.w}, "
            f"durability {self.durability}, {self.reconcile}",
            f"clients: {self.processes} processes, {self.ops_per_s:g} ops/s on {self.keys} keys, {self.workload}",
            f"network: delay {weather.delay_s * 1e3:.2f} ms + {weather.jitter_s * 1e3:.2f} ms, loss {weather.loss:.3f}, "
            f"repeats {weather.duplication:.3f}, {'ordered' if weather.ordered else 'reordered'}",
            f"clocks: offsets {list(self.clock_offset_ms)} ms, drift {[round(d, 5) for d in self.clock_drift]}; "
            f"sync {self.sync_s * 1e3:.2f} ms, tick {self.tick_s:g} s, victim {self.victim or 'none'}",
            f"{len(self.faults)} faults",
            *map(str, self.faults),
        ]

    def with_faults(self, faults: tuple[Fault, ...]) -> Plan:
        """The same run with other faults."""
        return replace(self, faults=faults)


PROFILES = {
    "calm": 3,
    "network": 5,
    "crashes": 5,
    "power": 5,
    "everything": 5,
    "wild clocks": 2,
    "one disk lost": 3,
}
"""Kinds of runs and their weights. Calm ones are for what only shows undisturbed: freshness, availability."""

_KINDS: dict[str, tuple[Kind, ...]] = {
    "calm": (),
    "network": (Kind.CUT, Kind.CUT, Kind.CLOG, Kind.PAUSE),
    "crashes": (Kind.KILL, Kind.KILL, Kind.STOP, Kind.PAUSE, Kind.SLOW_DISK),
    "power": (Kind.POWER, Kind.POWER, Kind.KILL, Kind.STOP, Kind.SYNC_ERROR),
    "everything": (
        *(Kind.CUT, Kind.CUT, Kind.CLOG, Kind.KILL, Kind.POWER, Kind.STOP, Kind.PAUSE, Kind.JUMP),
        *(Kind.SLOW_DISK, Kind.SYNC_ERROR),
    ),
    "wild clocks": (Kind.JUMP, Kind.JUMP, Kind.POWER, Kind.CUT, Kind.STOP),
    "one disk lost": (Kind.FLIP, Kind.FLIP, Kind.WIPE, Kind.KILL, Kind.CUT, Kind.STOP),
}


def draw(
    seed: int, *, seconds: float = 120.0, nodes: int = 0, profile: str = "", setting: Mapping[str, Any] | None = None
) -> Plan:
    """Draw a plan. ``nodes`` 0: usually five; ``profile`` "": any. ``setting`` overrides fields of the plan."""
    dice = fork(seed, "plan")
    names = list(PROFILES)
    drawn_profile = dice.choices(names, [PROFILES[name] for name in names])[0]
    profile = profile or drawn_profile
    drawn_count = dice.choice((3, 4, 5, 5, 5, 5, 6, 7, 9))
    members = tuple(f"n{i + 1}" for i in range(nodes or drawn_count))
    durability: DurabilityName = dice.choice(("sync", "sync", "sync", "os"))
    if profile == "calm":
        durability = dice.choice(("sync", "os", "memory"))
    elif profile in {"power", "everything", "wild clocks", "one disk lost"}:
        durability = "sync"
    n, r, w = dice.choice(((3, 2, 2),) * 6 + ((3, 1, 3), (3, 3, 1), (3, 3, 2), (3, 2, 3)))
    if profile == "one disk lost":
        n, r, w = 3, 2, 2
    wild = profile == "wild clocks"
    spread = dice.choice((0, 20, 150)) if not wild else dice.choice((400, 2_000, 3_600_000))
    calm = profile == "calm"
    plan = Plan(
        seed=seed,
        seconds=seconds,
        nodes=members,
        profile=profile,
        n=n,
        r=r,
        w=w,
        durability=durability,
        reconcile="lww" if dice.random() < 0.15 else "siblings",
        workload="sets" if dice.random() < 0.25 else "registers",
        keys=dice.choice((1, 3, 10, 10, 25, 50)),
        processes=dice.choice((3, 6, 8, 12)),
        weather=Weather(
            delay_s=dice.choice((0.0001, 0.0005, 0.005, 0.03)),
            jitter_s=dice.choice((0.0002, 0.001, 0.01, 0.03)),
            loss=0.0 if calm else dice.choice((0.0, 0.0, 0.005, 0.05, 0.2)),
            duplication=dice.choice((0.0, 0.05, 0.3)),
            ordered=dice.random() < 0.5,
        ),
        clock_offset_ms=tuple(dice.randint(-spread, spread) for _ in members),
        clock_drift=tuple(dice.choice((0.0, 0.0, 1e-4, -1e-4, 1e-3)) for _ in members),
        sync_s=dice.choice((0.001, 0.004, 0.02)),
        tick_s=dice.choice((0.1, 0.2)),
        victim=dice.choice(members) if profile == "one disk lost" else "",
    )
    plan = replace(plan, **setting or {})
    return plan.with_faults(_draw_faults(fork(seed, "faults"), plan))


def _draw_faults(dice: random.Random, plan: Plan) -> tuple[Fault, ...]:
    kinds = _KINDS[plan.profile]
    if not kinds:
        return ()
    mean_s = dice.choice((2.0, 5.0, 12.0))
    faults: list[Fault] = []
    at = dice.uniform(1.0, 4.0)
    busy_until = dict.fromkeys(plan.nodes, 0.0)
    while at < plan.seconds - 1.0:
        fault = _draw_fault(dice, plan, dice.choice(kinds), at)
        # One process fault at a time on each node: a plan of overlapping ones would only be harder to read.
        if all(busy_until[node] <= at for node in fault.nodes):
            for node in fault.nodes:
                busy_until[node] = at + fault.for_s + 1.0
            faults.append(fault)
        at += dice.expovariate(1.0 / mean_s)
    return tuple(faults)


def _draw_fault(dice: random.Random, plan: Plan, kind: Kind, at: float) -> Fault:
    at = round(at, 3)
    node = dice.choice(plan.nodes)
    noticed = dice.random() < 0.7
    if kind in {Kind.FLIP, Kind.WIPE}:
        return Fault(at, kind, (plan.victim,), for_s=round(dice.uniform(0.1, 5.0), 2) if kind is Kind.WIPE else 0.0)
    if kind in {Kind.CUT, Kind.CLOG}:
        for_s = round(min(dice.expovariate(0.2) + 0.2, 30.0), 2)
        return Fault(at, kind, links=_draw_links(dice, plan.nodes), for_s=for_s, noticed=noticed)
    if kind is Kind.JUMP:
        reach = 250 if plan.profile != "wild clocks" else dice.choice((600, 5_000, 3_600_000))
        return Fault(at, kind, (node,), amount=dice.randint(-reach, reach))
    if kind is Kind.SLOW_DISK:
        return Fault(at, kind, (node,), for_s=round(dice.uniform(0.5, 5.0), 2), amount=dice.choice((10, 50, 200)))
    if kind is Kind.PAUSE:
        return Fault(at, kind, (node,), for_s=round(dice.choice((0.05, 0.5, 3.0, 8.0)) * dice.uniform(0.5, 1.5), 2))
    for_s = round(dice.choice((0.05, 0.5, 3.0, 10.0)) * dice.uniform(0.5, 1.5), 2)
    if kind is Kind.POWER and dice.random() < 0.2:  # the power of a room
        nodes = tuple(sorted(dice.sample(plan.nodes, dice.randint(2, len(plan.nodes)))))
        return Fault(at, kind, nodes, for_s=for_s, amount=dice.randint(0, 3), noticed=noticed)
    return Fault(at, kind, (node,), for_s=for_s, amount=dice.choice((0, 0, 1, 1, 2, 3)), noticed=noticed)


def _draw_links(dice: random.Random, nodes: tuple[NodeId, ...]) -> tuple[Direction, ...]:
    """Some shape of a split: one direction, a pair, one node alone, two halves, a bridge."""
    shape = dice.choice(("direction", "pair", "isolate", "deaf", "halves", "bridge"))
    mixed = dice.sample(nodes, len(nodes))
    first, second, rest = mixed[0], mixed[1], mixed[1:]
    if shape == "direction":
        return ((first, second),)
    if shape == "pair":
        return ((first, second), (second, first))
    if shape == "isolate":
        return tuple(d for other in rest for d in ((first, other), (other, first)))
    if shape == "deaf":
        return tuple((other, first) for other in rest)
    half = len(rest) // 2 if shape == "bridge" else len(mixed) // 2
    pool = rest if shape == "bridge" else mixed
    left, right = pool[:half], pool[half:]
    return tuple(d for a in left for b in right for d in ((a, b), (b, a)))
