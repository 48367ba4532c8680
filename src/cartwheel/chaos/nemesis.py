"""What goes wrong in a chaos run, and when: drawn whole from the seed before the first step, then carried out.

    processes and disks   kill       kill -9, started again after a while
                          pause      SIGSTOP, then SIGCONT
                          rolling    each node in turn: SIGTERM, then started again
                          fill       the disk is full, then has space again
                          wipe       kill -9 and an empty disk: always the same node, fewer than W
                          eio        syncs fail: the node must halt; it is started again on a good disk
    the network           split      two halves do not hear each other
                          oneway     one half does not hear the other
                          isolate    one node hears nobody, and nobody hears it
                          bridge     two halves meet in one node only
                          flap       a split that comes and goes

Two **lanes** run beside each other, one for the processes and disks and one for the network, each with one thing at a time; so
up to two faults overlap. A step that takes longer than drawn (a slow start) delays what follows in its lane.

**Premises.** Only one node, the victim, ever loses its disk, however often: every acknowledged write has another copy
(promise P1 with W=2). Kills and pauses lose nothing that was synced.
"""

from __future__ import annotations

import asyncio
import enum
import os
import random
import signal
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from cartwheel.chaos import shim
from cartwheel.chaos.cluster import QUOTA_BYTES, ChaosFailed, Cluster, knows_quota
from cartwheel.chaos.history import Away, Direction, Fault, Trouble
from cartwheel.chaos.proxy import Proxy
from cartwheel.core.errors import ConfigError
from cartwheel.core.types import NodeId
from cartwheel.sim.faults import fork

CALM_S = 3.0
"""Nothing happens so long at first: what is normal should be in the picture, too."""
READY_TIMEOUT_S = 60.0
POLL_S = 0.02
HALT_TIMEOUT_S = 15.0
"""Within this time of a failing disk a node under load has tried to sync."""
FILLER = "filler"


class Nemesis(enum.StrEnum):
    """The kinds of what goes wrong."""

    KILL = "kill"
    PAUSE = "pause"
    ROLLING = "rolling"
    FILL = "fill"
    WIPE = "wipe"
    EIO = "eio"
    SPLIT = "split"
    ONEWAY = "oneway"
    ISOLATE = "isolate"
    BRIDGE = "bridge"
    FLAP = "flap"


NETWORK = (Nemesis.SPLIT, Nemesis.ONEWAY, Nemesis.ISOLATE, Nemesis.BRIDGE, Nemesis.FLAP)
ALIASES: dict[str, tuple[Nemesis, ...]] = {"all": tuple(Nemesis), "partition": NETWORK, "none": ()}
LASTS_S: dict[Nemesis, tuple[float, float]] = {
    Nemesis.KILL: (0.3, 8.0), Nemesis.PAUSE: (1.0, 60.0), Nemesis.ROLLING: (10.0, 10.0), Nemesis.FILL: (4.0, 15.0),
    Nemesis.WIPE: (0.5, 5.0), Nemesis.EIO: (1.0, 4.0), Nemesis.SPLIT: (2.0, 20.0), Nemesis.ONEWAY: (2.0, 20.0),
    Nemesis.ISOLATE: (2.0, 20.0), Nemesis.BRIDGE: (2.0, 20.0), Nemesis.FLAP: (4.0, 20.0),
}  # fmt: skip
"""How long each lasts, in seconds: from, to. Of a restart: how long the node is away."""
GAP_S = (1.0, 6.0)
FLAP_S = (0.2, 1.5)
CYCLE_GAP_S = (0.0, 3.0)


@dataclass(frozen=True, slots=True)
class Step:
    """One thing that goes wrong at one time."""

    at: float
    kind: Nemesis
    nodes: tuple[NodeId, ...] = ()
    links: tuple[Direction, ...] = ()
    for_s: float = 0.0
    label: str = ""
    wait_s: float = 0.0
    """So long after ``at``, or after the step before, whichever is later."""

    def __str__(self) -> str:
        return f"{self.at:7.1f} s  {self.kind:<8} {self.label or ' '.join(self.nodes)} for {self.for_s:.1f} s"


def choose(names: Iterable[str]) -> tuple[list[Nemesis], list[str]]:
    """The kinds that were named, and a note for each that was left out because this machine or version cannot do it.

    Raises:
        ConfigError: a name is unknown, or was named itself and cannot be done.
    """
    chosen: list[Nemesis] = []
    notes: list[str] = []
    for name in names:
        if name not in ALIASES and name not in list(Nemesis):
            known = ", ".join([*Nemesis, *ALIASES])
            raise ConfigError(f"there is no nemesis {name!r}; known are {known}")
        for kind in ALIASES.get(name) or ([Nemesis(name)] if name in list(Nemesis) else []):
            why = _impossible(kind)
            if why is not None and name in list(Nemesis):
                raise ConfigError(f"nemesis {kind}: {why}")
            if why is not None:
                notes.append(f"without {kind}: {why}")
            elif kind not in chosen:
                chosen.append(kind)
    return chosen, notes


def _impossible(kind: Nemesis) -> str | None:
    if kind is Nemesis.EIO:
        return shim.unavailable()
    if kind is Nemesis.FILL and not knows_quota():
        return "nodes of this version have no quota for their data directory"
    return None


# --- drawing ---


def draw(seed: int, kinds: Sequence[Nemesis], nodes: Sequence[NodeId], seconds: float) -> list[list[Step]]:
    """The lanes of a run."""
    dice = fork(seed, "nemesis")
    victim = dice.choice(nodes)
    lanes = []
    for lane in ([k for k in kinds if k not in NETWORK], [k for k in kinds if k in NETWORK]):
        steps: list[Step] = []
        bag: list[Nemesis] = []
        at = CALM_S + dice.uniform(0.0, 2.0)
        while lane and at < seconds - 2.0:
            if not bag:
                bag = list(lane)
                dice.shuffle(bag)
            step = _step(dice, bag.pop(), nodes, victim, at, seconds)
            steps.append(step)
            at += step.for_s + dice.uniform(*GAP_S)
        lanes.append(steps)
    return lanes


def _step(
    dice: random.Random, kind: Nemesis, nodes: Sequence[NodeId], victim: NodeId, at: float, seconds: float
) -> Step:
    shortest, longest = LASTS_S[kind]
    left = seconds - at
    longest = max(shortest, min(longest, left / 2 if kind is Nemesis.PAUSE else left - 1.0))
    # Short ones are more frequent: they hit the moments in between, where the mistakes are.
    for_s = shortest * (longest / shortest) ** dice.random()
    if kind in NETWORK:
        links, label = _links(dice, kind, nodes)
        return Step(at, kind, links=links, for_s=for_s, label=label)
    if kind is Nemesis.ROLLING:
        return Step(at, kind, tuple(dice.sample(nodes, len(nodes))), for_s=for_s)
    return Step(at, kind, (victim if kind is Nemesis.WIPE else dice.choice(nodes),), for_s=for_s)


def _links(dice: random.Random, kind: Nemesis, nodes: Sequence[NodeId]) -> tuple[tuple[Direction, ...], str]:
    """The directions that are cut, and how people call it."""
    shuffled = dice.sample(nodes, len(nodes))
    size = 1 if kind is Nemesis.ISOLATE else dice.randint(1, max(1, len(nodes) // 2))
    left, right, label = shuffled[:size], shuffled[size:], ""
    if kind is Nemesis.BRIDGE and len(right) > 1:
        label = f" over {right.pop()}"
    sides = f"{','.join(sorted(left))} {'->' if kind is Nemesis.ONEWAY else '|'} {','.join(sorted(right))}"
    links = [(a, b) for a in left for b in right]
    if kind is not Nemesis.ONEWAY:
        links += [(b, a) for a, b in links]
    return tuple(sorted(links)), sides + label


def draw_cycles(seed: int, count: int, nodes: Sequence[NodeId]) -> list[list[Step]]:
    """Kills in a row: each at some moment soon after the node killed before serves again, often before all its links are up."""
    dice = fork(seed, "cycles")
    steps = []
    for number in range(count):
        node, for_s = dice.choice(nodes), dice.uniform(0.05, 0.5)
        wait_s = dice.uniform(*CYCLE_GAP_S) if number else CALM_S
        steps.append(Step(0.0, Nemesis.KILL, (node,), for_s=for_s, wait_s=wait_s))
    return [steps]


# --- carrying out ---


class Hand:
    """Carries out a plan. ``note`` takes what was done when it is over; ``stop`` ends it early."""

    def __init__(
        self,
        cluster: Cluster,
        proxy: Proxy,
        seed: int,
        now: Callable[[], float],
        note: Callable[[Fault | Away | Trouble], None],
    ) -> None:
        self.cluster = cluster
        self.proxy = proxy
        self.active: dict[str, int] = {}
        """What is going wrong now, for the line that shows progress."""
        self._dice = fork(seed, "hand")
        self._now = now
        self._note = note
        self._stop = asyncio.Event()
        self._busy: set[NodeId] = set()  # their processes are ours to end and to start

    def stop(self) -> None:
        """Begin nothing new, and end what lasts."""
        self._stop.set()

    async def run(self, lanes: Sequence[Sequence[Step]]) -> None:
        """All lanes, to their end."""
        async with asyncio.TaskGroup() as group:
            watch = group.create_task(self._watch())
            await asyncio.gather(*(self._lane(steps) for steps in lanes))
            watch.cancel()

    async def _lane(self, steps: Sequence[Step]) -> None:
        for step in steps:
            await self._pause(step.at - self._now())
            await self._pause(step.wait_s)
            if self._stop.is_set():
                return
            start = self._now()
            self.active[step.kind] = self.active.get(step.kind, 0) + 1
            ready_s = await self._do(step)
            self.active[step.kind] -= 1
            self._note(
                Fault(step.kind.value, step.label, start, self._now(), list(step.nodes), ready_s, list(step.links))
            )

    async def _pause(self, seconds: float) -> None:
        """Wait so long, or until the run stops."""
        if seconds > 0:
            try:
                await asyncio.wait_for(self._stop.wait(), seconds)
            except TimeoutError:
                return

    async def _do(self, step: Step) -> float:
        """Do it, and undo it. Returns how long a started node took to serve."""
        if step.kind in NETWORK:
            await self._cut(step)
            return 0.0
        self._busy.update(step.nodes)
        try:
            return await self._strike(step)
        finally:
            self._busy.difference_update(step.nodes)

    async def _strike(self, step: Step) -> float:
        cluster, node = self.cluster, step.nodes[0]
        match step.kind:
            case Nemesis.KILL | Nemesis.WIPE:
                with self._away(node):
                    cluster.kill(node)
                    if step.kind is Nemesis.WIPE:
                        await asyncio.to_thread(cluster.wipe, node)
                    await self._pause(step.for_s)
                    return await self._start(node)
            case Nemesis.PAUSE:
                with self._away(node):
                    cluster.send_signal(node, signal.SIGSTOP)
                    await self._pause(step.for_s)
                    cluster.send_signal(node, signal.SIGCONT)
            case Nemesis.ROLLING:
                return max([await self._restart(each) for each in step.nodes])
            case Nemesis.FILL:
                await self._fill(node, step.for_s)
            case Nemesis.EIO:
                with self._away(node):
                    return await self._break_disk(node, step.for_s)
            case _:
                raise AssertionError(f"{step.kind} is of the network")
        return 0.0

    @contextmanager
    def _away(self, node: NodeId) -> Iterator[None]:
        """The node answers nobody meanwhile."""
        start = self._now()
        try:
            yield
        finally:
            self._note(Away(node, start, self._now()))

    async def _start(self, node: NodeId) -> float:
        """Start it and wait until it serves."""
        began = self._now()
        self.cluster.start(node)
        while await asyncio.to_thread(self.cluster.status, node) is None:
            if not self.cluster.running(node) or self._now() - began > READY_TIMEOUT_S:
                raise ChaosFailed(f"{node} did not come back; its last words:\n{self.cluster.tail(node)}")
            await asyncio.sleep(POLL_S)
        return self._now() - began

    async def _restart(self, node: NodeId) -> float:
        if self._stop.is_set():
            return 0.0
        with self._away(node):
            code = await asyncio.to_thread(self.cluster.terminate, node)
            if code != 0:
                text = f"{node} ended with {code} on SIGTERM: {self.cluster.tail(node, 1)}"
                self._note(Trouble("STOP", text, self._now()))
            return await self._start(node)

    async def _fill(self, node: NodeId, for_s: float) -> None:
        filler = self.cluster.data(node) / FILLER
        try:
            await asyncio.to_thread(_allocate, filler)
            await self._pause(for_s)
        finally:
            filler.unlink(missing_ok=True)

    async def _break_disk(self, node: NodeId, for_s: float) -> float:
        """Its next sync fails, and it must halt. Afterwards the disk is good again."""
        trigger, began = self.cluster.trigger(node), self._now()
        trigger.touch()
        try:
            while self.cluster.running(node):
                if self._now() - began > HALT_TIMEOUT_S or self._stop.is_set():
                    if not self._stop.is_set():
                        text = f"{node} did not halt within {HALT_TIMEOUT_S:g} s of failing syncs"
                        self._note(Trouble("HALT", text, self._now()))
                    self.cluster.kill(node)
                    break
                await asyncio.sleep(POLL_S)
            else:
                code = self.cluster.exit_code(node)
                if code != 1:
                    self._note(Trouble("HALT", f"{node} halted with exit code {code}, not 1", self._now()))
            await self._pause(for_s)
        finally:
            trigger.unlink(missing_ok=True)
        return await self._start(node)

    async def _cut(self, step: Step) -> None:
        try:
            if step.kind is not Nemesis.FLAP:
                self.proxy.cut(step.links)
                await self._pause(step.for_s)
                return
            end = self._now() + step.for_s
            while self._now() < end and not self._stop.is_set():
                self.proxy.cut(() if self.proxy.cuts else step.links)
                await self._pause(self._dice.uniform(*FLAP_S))
        finally:
            self.proxy.heal()

    async def _watch(self) -> None:
        """A node that ends though nobody ended it is a finding. It is started again, so that the run goes on."""
        while True:
            for node in self.cluster.nodes:
                if node not in self._busy and not self.cluster.running(node):
                    text = f"{node} ended by itself with {self.cluster.exit_code(node)}: {self.cluster.tail(node, 3)}"
                    self._note(Trouble("HALT", text, self._now()))
                    self.cluster.start(node)
            await asyncio.sleep(0.1)


def _allocate(filler: object) -> None:
    descriptor = os.open(str(filler), os.O_CREAT | os.O_WRONLY, 0o600)
    try:
        os.posix_fallocate(descriptor, 0, QUOTA_BYTES)
    finally:
        os.close(descriptor)
