"""Draw a plan from its seed: each seed has its own mix of faults.

Swarm testing (Groce et al., ISSTA 2012): runs from which some kinds of fault are absent find more than runs in which all strike
at once, for kinds mask one another (who is cut off all the time never meets a slow disk). So each seed draws which kinds are in,
how often each strikes, and the weather, clocks, disks and clients besides; ``Plan.lines`` prints all of it.

A **profile** filters what may be drawn: ``swarm`` allows everything, ``calm`` nothing (for what only shows undisturbed:
freshness, availability), the others a part of it, for hunting and for planted bugs that need one kind of trouble.

Every purpose has its own dice (``fork``), every kind of fault, too: a new one does not shift the others.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from cartwheel.core.config import DurabilityName
from cartwheel.core.messages import TICK_S
from cartwheel.core.types import NodeId
from cartwheel.sim.acts import Act, ActKind
from cartwheel.sim.faults import Fault, Kind, Plan, fork
from cartwheel.sim.network import Direction, Weather


@dataclass(frozen=True, slots=True)
class Profile:
    """What a run of this kind may have."""

    weight: int
    """How often it is drawn; 0: only when asked for."""
    kinds: tuple[Kind, ...]
    durabilities: tuple[DurabilityName, ...] = ("sync", "sync", "sync", "os")
    share: float = 0.85
    """With which probability each kind is in."""


PROFILES = {
    "swarm": Profile(8, tuple(Kind), ("sync", "sync", "sync", "sync", "os", "os", "memory"), share=0.5),
    "calm": Profile(1, (), ("sync", "os", "memory")),
    "network": Profile(0, (Kind.CUT, Kind.FLAP, Kind.CLOG, Kind.PAUSE)),
    "crashes": Profile(0, (Kind.KILL, Kind.STOP, Kind.PAUSE, Kind.SLOW_DISK)),
    "power": Profile(0, (Kind.POWER, Kind.KILL, Kind.STOP, Kind.SYNC_ERROR), ("sync",)),
    "sick disks": Profile(0, (Kind.SLOW_DISK, Kind.FULL, Kind.SYNC_ERROR, Kind.FLIP, Kind.STOP), ("sync",)),
    "wild clocks": Profile(0, (Kind.JUMP, Kind.POWER, Kind.CUT, Kind.STOP), ("sync",), share=1.0),
    "one disk lost": Profile(0, (Kind.FLIP, Kind.WIPE, Kind.KILL, Kind.CUT, Kind.STOP), ("sync",), share=1.0),
}

NEEDS_SYNC = frozenset({Kind.POWER, Kind.SYNC_ERROR, Kind.WIPE, Kind.FLIP})
VOLATILE = frozenset({"memory", "one"})
"""Durabilities whose acknowledgement waits for no disk: a killed process may take acknowledged writes along."""
LOSES_DISK = frozenset({Kind.WIPE, Kind.FLIP})
"""Premise 1."""


def draw(
    seed: int,
    *,
    seconds: float = 120.0,
    nodes: int = 0,
    profile: str = "",
    moves: bool = False,
    setting: Mapping[str, Any] | None = None,
) -> Plan:
    """Draw a plan. ``nodes`` 0: usually five; ``profile`` "": any; ``moves``: the ring changes in each run, and not only in some.
    ``setting`` overrides fields of the plan."""
    dice = fork(seed, "plan")
    names = list(PROFILES)
    drawn_profile = dice.choices(names, [PROFILES[name].weight for name in names])[0]
    profile = profile or drawn_profile
    calm = profile == "calm"
    members = tuple(f"n{i + 1}" for i in range(nodes or dice.choice((3, 4, 5, 5, 5, 5, 6, 7, 9))))
    n, r, w = dice.choice(((3, 2, 2),) * 6 + ((3, 1, 3), (3, 3, 1), (3, 3, 2), (3, 2, 3)))
    if profile == "one disk lost":
        n, r, w = 3, 2, 2
    plan = Plan(
        seed=seed,
        seconds=seconds,
        nodes=members,
        profile=profile,
        n=n,
        r=r,
        w=w,
        durability=dice.choice(PROFILES[profile].durabilities),
        reconcile="lww" if dice.random() < 0.15 else "siblings",
        workload="sets" if dice.random() < 0.25 else "registers",
        keys=dice.choice((1, 3, 10, 10, 25, 50)),
        processes=dice.choice((3, 6, 8, 12)),
        weather=_draw_weather(fork(seed, "weather"), calm=calm),
        sync_s=dice.choice((0.001, 0.004) if calm else (0.001, 0.004, 0.02)),
        stutter=0.0 if calm else 0.01,
        tick_s=dice.choice((TICK_S, TICK_S, 1.5 * TICK_S)),
        reap_grace_s=dice.choice((1.0, 5.0, 20.0)),
    )
    if plan.durability == "memory" and fork(seed, "one").random() < 0.6:
        plan = replace(plan, durability="one")
    plan = replace(plan, **_draw_members(fork(seed, "members"), members, seconds, moves=moves))
    plan = replace(plan, **_draw_builds(fork(seed, "builds"), plan.nodes))
    members = plan.founders
    scrub_s = 60.0 if fork(seed, "scrub").random() < 0.15 else 0.0
    plan = replace(plan, mix=_draw_mix(fork(seed, "mix"), plan), scrub_s=scrub_s)
    plan = _draw_clocks(fork(seed, "clocks"), plan)
    loses = LOSES_DISK | {Kind.KILL} if plan.durability in VOLATILE else LOSES_DISK
    if loses & {kind for kind, _ in plan.mix}:
        plan = replace(plan, victim=fork(seed, "victim").choice(members))
    plan = _maybe_remove(fork(seed, "remove"), plan)
    if "nodes" in (setting or {}):
        plan = replace(plan, joiners=(), passing=(), acts=())
    plan = replace(plan, **setting or {})
    return plan.with_faults(_draw_faults(plan))


def _draw_builds(dice: random.Random, nodes: tuple[NodeId, ...]) -> dict[str, Any]:
    """In some runs a cluster is being upgraded; in some a small view counts as a large one."""
    aged = tuple(sorted(dice.sample(nodes, dice.randint(1, len(nodes))))) if dice.random() < 0.25 else ()
    return {"aged": aged, "view_bytes_whole": dice.choice((0, 0, 1000, 4096))}


def _draw_members(dice: random.Random, members: tuple[NodeId, ...], seconds: float, *, moves: bool) -> dict[str, Any]:
    """In some runs the ring changes: who joins, who goes, and what administrators do. At least three members stay all the
    while."""
    if dice.random() < 0.6 and not moves:
        return {}
    joiners = tuple(f"n{len(members) + 1 + i}" for i in range(dice.choice((0, 1, 1, 2, 3))))
    passing = tuple(sorted(dice.sample(members, dice.randint(0, min(2, len(members) - 3)))))
    steady = [node for node in members if node not in passing]
    acts: list[Act] = []

    def act(kind: ActKind, node: NodeId, **fields: Any) -> None:
        asked = tuple(dice.sample(steady, min(2, len(steady))))
        acts.append(Act(round(dice.uniform(0.5, seconds * 0.8), 2), kind, node, asked, **fields))

    going = list(passing)
    for joiner in joiners:
        if going and dice.random() < 0.3:
            act(ActKind.REPLACE, joiner, other=going.pop())
        else:
            act(ActKind.JOIN, joiner)
    for node in going:
        act(ActKind.LEAVE, node)
    for _ in range(dice.choice((0, 0, 1, 2))):
        if dice.random() < 0.7:
            act(ActKind.REWEIGH, dice.choice(members), weight=dice.choice((0.5, 2.0, 3.0)))
        else:
            act(ActKind.RELOCATE, dice.choice(members))
    if dice.random() < 0.15:
        act(ActKind.DOUBLE, "")
    if moves and not acts:
        act(ActKind.REWEIGH, dice.choice(members), weight=2.0)
    acts.sort(key=lambda each: each.at)
    return {"nodes": (*members, *joiners), "joiners": joiners, "passing": passing, "acts": tuple(acts)}


def _maybe_remove(dice: random.Random, plan: Plan) -> Plan:
    """The node that may lose what it had acknowledged (premise 1) may as well be removed, with all it has: it stays, and is heard
    by nobody."""
    gone = plan.victim
    if not plan.acts or gone not in plan.steady or len(plan.steady) < 4 or plan.w != 2 or dice.random() < 0.5:
        return plan
    steady = [node for node in plan.steady if node != gone]
    acts = [replace(act, asked=tuple(node for node in act.asked if node != gone) or (steady[0],)) for act in plan.acts]
    asked = tuple(dice.sample(steady, 2))
    acts.append(Act(round(dice.uniform(1.0, plan.seconds * 0.8), 2), ActKind.REMOVE, gone, asked))
    acts.sort(key=lambda act: act.at)
    return replace(plan, acts=tuple(acts), passing=tuple(sorted((*plan.passing, gone))))


def _draw_weather(dice: random.Random, *, calm: bool) -> Weather:
    """Calm weather never makes a replica late, so that no fallback stands in for it."""
    return Weather(
        delay_s=dice.choice((0.0001, 0.0005, 0.005) if calm else (0.0001, 0.0005, 0.005, 0.03)),
        jitter_s=dice.choice((0.0002, 0.001, 0.005) if calm else (0.0002, 0.001, 0.01, 0.03)),
        loss=0.0 if calm else dice.choice((0.0, 0.0, 0.0, 0.005, 0.05, 0.15, 0.3)),
        duplication=dice.choice((0.0, 0.05, 0.3, 0.5)),
        ordered=dice.random() < 0.5,
    )


def _draw_mix(dice: random.Random, plan: Plan) -> tuple[tuple[Kind, float], ...]:
    """Which kinds are in, and how many a minute of each. The premises decide what may be."""
    profile = PROFILES[plan.profile]
    total = dice.choice((4.0, 12.0, 30.0))
    drawn = [(kind, dice.random() < profile.share, dice.choice((1.0, 1.0, 3.0))) for kind in profile.kinds]
    barred: frozenset[Kind] = frozenset()
    if plan.durability != "sync":
        barred |= NEEDS_SYNC
    if plan.durability in VOLATILE and plan.w < 2:
        barred |= {Kind.KILL}
    if plan.w < 2 or (plan.profile == "swarm" and dice.random() < 0.5):
        barred |= LOSES_DISK
    drawn = [row for row in drawn if row[0] not in barred]
    chosen = [(kind, weight) for kind, is_in, weight in drawn if is_in] or [(row[0], row[2]) for row in drawn[:1]]
    whole = sum(weight for _, weight in chosen)
    return tuple((kind, round(total * weight / whole, 2)) for kind, weight in chosen)


def _draw_clocks(dice: random.Random, plan: Plan) -> Plan:
    """Clocks that are about right; where they jump, half of the runs also have some that are far off from the start."""
    wild = plan.profile == "wild clocks" or (Kind.JUMP in dict(plan.mix) and dice.random() < 0.5)
    spread = dice.choice((400, 2_000, 3_600_000)) if wild else dice.choice((0, 20, 150))
    drifts = (0.0, 0.0, 1e-4, -1e-4, 1e-3) + ((0.01, -0.01) if wild else ())
    return replace(
        plan,
        clock_offset_ms=tuple(dice.randint(-spread, spread) for _ in plan.nodes),
        clock_drift=tuple(dice.choice(drifts) for _ in plan.nodes),
    )


def _draw_faults(plan: Plan) -> tuple[Fault, ...]:
    """Each kind comes as a stream of its own; of two faults that would strike a node at once the later is left out: a plan of
    overlapping ones would only be harder to read. Links may be cut at any time."""
    found: list[Fault] = []
    for kind, rate in plan.mix:
        dice = fork(plan.seed, f"faults {kind}")
        reach_ms = dice.choice((250, 600, 5_000, 3_600_000, 864_000_000))
        at = 1.0 + dice.expovariate(rate / 60.0)
        while at < plan.seconds - 1.0:
            found.append(_draw_fault(dice, plan, kind, round(at, 3), reach_ms))
            at += dice.expovariate(rate / 60.0)
    kept: list[Fault] = []
    busy_until = dict.fromkeys(plan.nodes, 0.0)
    for fault in sorted(found, key=lambda fault: (fault.at, fault.kind)):
        if all(busy_until[node] <= fault.at for node in fault.nodes):
            for node in fault.nodes:
                busy_until[node] = fault.at + fault.for_s + 1.0
            kept.append(fault)
    return tuple(kept)


def _draw_fault(dice: random.Random, plan: Plan, kind: Kind, at: float, reach_ms: int) -> Fault:
    node = dice.choice(plan.nodes)
    if kind is Kind.KILL and plan.durability in VOLATILE:
        node = plan.victim
    noticed = dice.random() < 0.7
    if kind is Kind.FLIP:
        return Fault(at, kind, (plan.victim,))
    if kind is Kind.WIPE:
        return Fault(at, kind, (plan.victim,), for_s=_seconds(dice, (0.5, 5.0)))
    if kind in {Kind.CUT, Kind.CLOG}:
        for_s = round(min(dice.expovariate(0.2) + 0.2, 30.0), 2)
        return Fault(at, kind, links=_draw_links(dice, plan.nodes), for_s=for_s, noticed=noticed)
    if kind is Kind.FLAP:
        links, period_s = _draw_links(dice, plan.nodes), dice.choice((0.3, 1.0, 4.0))
        return Fault(at, kind, links=links, for_s=_seconds(dice, (5.0, 15.0)), amount=period_s, noticed=noticed)
    if kind is Kind.JUMP:
        return Fault(at, kind, (node,), amount=dice.randint(-reach_ms, reach_ms))
    if kind is Kind.SLOW_DISK:
        return Fault(at, kind, (node,), for_s=_seconds(dice, (1.0, 5.0, 20.0)), amount=dice.choice((0.05, 0.5, 2.0)))
    if kind is Kind.FULL:
        return Fault(at, kind, (node,), for_s=_seconds(dice, (3.0, 15.0)), amount=0.95)
    if kind is Kind.PAUSE:
        return Fault(at, kind, (node,), for_s=_seconds(dice, (0.05, 0.5, 3.0, 8.0, 20.0, 60.0)))
    for_s = _seconds(dice, (0.05, 0.5, 3.0, 10.0))
    if kind is Kind.POWER and dice.random() < 0.2:  # the power of a room
        nodes = tuple(sorted(dice.sample(plan.nodes, dice.randint(2, len(plan.nodes)))))
        return Fault(at, kind, nodes, for_s=for_s, amount=dice.randint(0, 3), noticed=noticed)
    return Fault(at, kind, (node,), for_s=for_s, amount=dice.choice((0, 0, 1, 1, 2, 3)), noticed=noticed)


def _seconds(dice: random.Random, sizes: tuple[float, ...]) -> float:
    """How long: at most one of these, chosen by lot."""
    return round(dice.choice(sizes) * dice.uniform(0.5, 1.0), 2)


def _draw_links(dice: random.Random, nodes: tuple[NodeId, ...]) -> tuple[Direction, ...]:
    """Some shape of a split: one direction, a pair, one node alone, deaf or dumb, two halves (one way, too), a bridge."""
    shape = dice.choice(("direction", "pair", "isolate", "deaf", "dumb", "halves", "one way", "bridge"))
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
    if shape == "dumb":
        return tuple((first, other) for other in rest)
    pool = rest if shape == "bridge" else mixed
    half = len(pool) // 2
    left, right = pool[:half], pool[half:]
    if shape == "one way":
        return tuple((a, b) for a in left for b in right)
    return tuple(d for a in left for b in right for d in ((a, b), (b, a)))
