"""What a run is like: the faults that come on time, and everything else that is settled before the first step.

A ``Plan`` is drawn whole (``swarm``), printed whole, and then carried out (``troubles``); nothing about it depends on what the
nodes do. So a failing plan can be shortened (``shrink``): the run with fewer faults is the same run up to the first fault that
is missing.

**Premises.** A promise has a premise, and a plan either keeps it or says that it does not, so that checkers know what to demand:
1. Nodes lose nothing that they had acknowledged, except *one* node a run (``victim``), fewer than W: then W-1 safe copies are
   what remains of an acknowledgement (C9), and what was shown but never acknowledged may vanish. It loses its disk; or, where
   acknowledgements wait for no disk (durability ``memory`` and ``one``), it is killed.
2. Power is cut only if buckets sync; where they wait for no disk, other nodes than the victim are stopped cleanly or not at all.
3. R+W>N gives fresh reads (FRESH, C3, C4) only while no copy is lost and no fallback stands in for an owner.
4. A request must be answered (C8, P3) if its coordinator reached W-1 other nodes all the while, their disks took writes in time,
   and no frame was lost by chance: ``reach`` keeps the books of who could reach whom.
5. No message is handled later than ``network.MESSAGE_LIFETIME_S`` after it was sent, as the transport promises; the reaper
   relies on it.
"""

from __future__ import annotations

import enum
import random
from dataclasses import dataclass, fields, is_dataclass, replace

from cartwheel.core.config import DurabilityName, Reconcile
from cartwheel.core.messages import TICK_S
from cartwheel.core.types import NodeId
from cartwheel.sim.acts import Act, ActKind
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
    FLAP = "flap"
    """Directed links are cut and let pass again, every ``amount`` seconds or so, for ``for_s``."""
    CLOG = "clog"
    """Directed links hold frames up for seconds."""
    JUMP = "jump"
    """The wall clock is set by ``amount`` milliseconds."""
    SYNC_ERROR = "sync-error"
    """The next sync fails: the node must halt. Starts again after ``for_s``."""
    SLOW_DISK = "slow-disk"
    """Commits take about ``amount`` seconds more: the gray failure."""
    FULL = "full"
    """The disk reports that it is ``amount`` full (1: nothing fits)."""
    FLIP = "flip"
    """A bit of a record or hint at rest flips (the victim only)."""
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
    """JUMP: ms; SLOW_DISK, FLAP: s; FULL: 0 to 1; KILL, POWER: after how many effects of the next event that has so many."""
    noticed: bool = True
    """CUT, FLAP: whether the transports find out (after a while) that the peer is gone."""

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
    mix: tuple[tuple[Kind, float], ...] = ()
    """The kinds of faults of this run, and how many of each come in a minute on average."""
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
    """Mean latency of a synced commit."""
    stutter: float = 0.01
    """The share of commits that take ten times as long."""
    tick_s: float = TICK_S
    """Ticks come so often: a loop with much to do is late."""
    victim: NodeId = ""
    """The one node that may lose what it had acknowledged (premise 1)."""
    reap_grace_s: float = 2.0
    """How long tombstones stay at least: short, so that a run sees them go."""
    scrub_s: float = 0.0
    """How long a pass of the scrub takes; 0: nothing is scrubbed."""
    aged: tuple[NodeId, ...] = ()
    """Nodes that run the build before, which speaks an earlier protocol, until they are upgraded: at some restart, or never."""
    view_bytes_whole: int = 4096
    """Larger views of the ring are told by digest."""
    joiners: tuple[NodeId, ...] = ()
    """Those of the nodes that are no founding members: they join in the course of the run, or never."""
    passing: tuple[NodeId, ...] = ()
    """Members that leave, or are removed."""
    acts: tuple[Act, ...] = ()
    faults: tuple[Fault, ...] = ()
    only: frozenset[tuple[int, int]] | None = None
    """A shortened run: of the clients' steps only these (process, step) are taken, the others are spent thinking."""

    @property
    def founders(self) -> tuple[NodeId, ...]:
        """The first members."""
        return tuple(node for node in self.nodes if node not in self.joiners)

    @property
    def steady(self) -> tuple[NodeId, ...]:
        """Members all the while."""
        return tuple(node for node in self.founders if node not in self.passing)

    @property
    def calm(self) -> bool:
        """Whether nothing disturbs the run."""
        return not (self.faults or self.weather.loss)

    @property
    def fresh(self) -> bool:
        """Whether a get must see every put acknowledged before it (premise 3)."""
        # A commit that stutters is late enough for a fallback to stand in.
        return self.r + self.w > self.n and not self.victim and self.calm and not self.stutter

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
            f"sync {self.sync_s * 1e3:.2f} ms, tick {self.tick_s:g} s, reaped after {self.reap_grace_s:g} s, "
            f"scrubbed in {self.scrub_s:g} s, victim {self.victim or 'none'}, "
            f"aged {' '.join(self.aged) or 'none'}, views whole to {self.view_bytes_whole} B",
            "mix: " + (", ".join(f"{kind} {rate:.1f}/min" for kind, rate in self.mix) or "nothing goes wrong"),
            f"{len(self.faults)} faults" + (f", {len(self.only)} steps of clients" if self.only is not None else ""),
            *map(str, self.acts),
            *map(str, self.faults),
        ]

    def with_faults(self, faults: tuple[Fault, ...]) -> Plan:
        """The same run with other faults."""
        return replace(self, faults=faults)


def literal(value: object) -> str:
    """Python source that makes this plan (or a part of one) again, fields with their defaults left out."""
    if isinstance(value, Kind | ActKind):
        return f"{type(value).__name__}.{value.name}"
    if is_dataclass(value) and not isinstance(value, type):
        given = ((f, getattr(value, f.name)) for f in fields(value))
        shown = [f"{f.name}={literal(v)}" for f, v in given if v != f.default]
        return f"{type(value).__name__}({', '.join(shown)})"
    if isinstance(value, frozenset):
        return f"frozenset({{{', '.join(map(literal, sorted(value)))}}})" if value else "frozenset()"
    if isinstance(value, tuple):
        return f"({', '.join(map(literal, value))}{',' * (len(value) == 1)})"
    return repr(value)
