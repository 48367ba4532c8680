"""The hand that carries out a plan: what it does to processes, disks and the network, it undoes.

Who was drawn may not be there when the time has come, or be in other hands: then another node is struck, the next by name. Only
the victim's disk is lost, and only when that breaks no promise (see ``nemesis``).
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable, Sequence
from dataclasses import replace

from cartwheel.chaos.cluster import QUOTA_BYTES
from cartwheel.chaos.history import Fault
from cartwheel.chaos.members import Members
from cartwheel.chaos.nemesis import MEMBERS, NETWORK, Nemesis, Step
from cartwheel.chaos.processes import POLL_S, Processes
from cartwheel.chaos.proxy import Proxy
from cartwheel.core.types import NodeId
from cartwheel.sim.faults import fork

HALT_TIMEOUT_S = 15.0
"""Within this time of a failing disk a node under load has tried to sync."""
FILLER = "filler"
FLAP_S = (0.2, 1.5)
Say = Callable[[str], None]
"""Tells people."""


class Hand:
    """Carries out a plan. ``stop`` ends it early."""

    def __init__(self, processes: Processes, proxy: Proxy, members: Members, seed: int, say: Say) -> None:
        self.cluster = processes.cluster
        self.proxy = proxy
        self.active: dict[str, int] = {}
        """What is going wrong now, for the line that shows progress."""
        self._processes = processes
        self._members = members
        self._say = say
        self._dice = fork(seed, "hand")

    def stop(self) -> None:
        """Begin nothing new, and end what lasts."""
        self._processes.stop()

    async def run(self, lanes: Sequence[Sequence[Step]]) -> None:
        """All lanes, to their end."""
        async with asyncio.TaskGroup() as group:
            watch = group.create_task(self._processes.watch())
            under_way: list[asyncio.Task[None]] = []
            await asyncio.gather(*(self._lane(steps, group, under_way) for steps in lanes))
            await asyncio.gather(*under_way)
            watch.cancel()
        self._processes.close()

    async def _lane(self, steps: Sequence[Step], group: asyncio.TaskGroup, under_way: list[asyncio.Task[None]]) -> None:
        processes = self._processes
        for step in steps:
            await processes.pause(step.at - processes.now())
            await processes.pause(step.wait_s)
            if processes.stopping:
                return
            if step.kind not in MEMBERS:
                await self._carry_out(step, asyncio.Event())
                continue
            committed = asyncio.Event()
            task = group.create_task(self._carry_out(step, committed))
            under_way.append(task)
            await committed.wait()
            await asyncio.wait([task], timeout=step.for_s)

    async def _carry_out(self, step: Step, committed: asyncio.Event) -> None:
        """One step, and a line about it when it is over. ``committed`` is set once the next one of its lane may begin."""
        now, ready_s = self._processes.now, 0.0
        start = now()
        self.active[step.kind] = self.active.get(step.kind, 0) + 1
        struck: Step | None = step
        try:
            if step.kind in NETWORK:
                await self._cut(step)
            elif step.kind in MEMBERS:
                struck = await self._members.carry_out(step, committed)
            elif step.kind is Nemesis.ROLLING:
                ready_s = max([await self._restart(each) for each in step.nodes])
            else:
                struck, ready_s = await self._strike(step)
        finally:
            self.active[step.kind] -= 1
            committed.set()
        if struck is None:
            self._say(f"{now():.1f} s: {step.kind} {step.label or ' '.join(step.nodes)} is left out: it cannot be now")
        else:
            links, nodes = list(struck.links), list(struck.nodes)
            self._processes.note(Fault(step.kind.value, struck.label, start, now(), nodes, ready_s, links))

    # --- processes and disks ---

    async def _strike(self, step: Step) -> tuple[Step | None, float]:
        """Strike a node: the step as it was, None if there was nobody to strike; and how long a start took."""
        wiped = step.kind is Nemesis.WIPE
        if wiped and not await self._members.may_lose_disk():
            return None, 0.0
        node = self._members.victim if wiped else self._processes.other_than(step.nodes[0])
        if node is None or node not in self.cluster.nodes:
            return None, 0.0
        async with self._processes.hold(node):
            if node not in self.cluster.nodes:  # it has left while we waited for it
                return None, 0.0
            return replace(step, nodes=(node,)), await self._strike_at(node, step)

    async def _strike_at(self, node: NodeId, step: Step) -> float:
        cluster, processes = self.cluster, self._processes
        match step.kind:
            case Nemesis.KILL | Nemesis.WIPE:
                with processes.away(node):
                    cluster.kill(node)
                    if step.kind is Nemesis.WIPE:
                        await asyncio.to_thread(cluster.wipe, node)
                    await processes.pause(step.for_s)
                    return await processes.start(node)
            case Nemesis.PAUSE:
                with processes.away(node):
                    cluster.send_signal(node, signal.SIGSTOP)
                    await processes.pause(step.for_s)
                    cluster.send_signal(node, signal.SIGCONT)
            case Nemesis.FILL:
                await self._fill(node, step.for_s)
            case Nemesis.EIO:
                with processes.away(node):
                    return await self._break_disk(node, step.for_s)
            case _:
                raise AssertionError(f"{step.kind} strikes no single node")
        return 0.0

    async def _restart(self, node: NodeId) -> float:
        async with self._processes.hold(node):
            if self._processes.stopping or node not in self.cluster.nodes:
                return 0.0
            with self._processes.away(node):
                await self._processes.terminate(node)
                return await self._processes.start(node)

    async def _fill(self, node: NodeId, for_s: float) -> None:
        filler = self.cluster.data(node) / FILLER
        try:
            await asyncio.to_thread(_allocate, filler)
            await self._processes.pause(for_s)
        finally:
            filler.unlink(missing_ok=True)

    async def _break_disk(self, node: NodeId, for_s: float) -> float:
        """Its next sync fails, and it must halt. Afterwards the disk is good again."""
        processes = self._processes
        trigger, began = self.cluster.trigger(node), processes.now()
        trigger.touch()
        try:
            while self.cluster.running(node):
                if processes.now() - began > HALT_TIMEOUT_S or processes.stopping:
                    if not processes.stopping:
                        processes.trouble("HALT", f"{node} did not halt within {HALT_TIMEOUT_S:g} s of failing syncs")
                    self.cluster.kill(node)
                    break
                await asyncio.sleep(POLL_S)
            else:
                code = self.cluster.exit_code(node)
                if code != 1:
                    processes.trouble("HALT", f"{node} halted with exit code {code}, not 1")
            await processes.pause(for_s)
        finally:
            trigger.unlink(missing_ok=True)
        return await processes.start(node)

    # --- the network ---

    async def _cut(self, step: Step) -> None:
        processes = self._processes
        try:
            if step.kind is not Nemesis.FLAP:
                self.proxy.cut(step.links)
                await processes.pause(step.for_s)
                return
            end = processes.now() + step.for_s
            while processes.now() < end and not processes.stopping:
                self.proxy.cut(() if self.proxy.cuts else step.links)
                await processes.pause(self._dice.uniform(*FLAP_S))
        finally:
            self.proxy.heal()


def _allocate(filler: object) -> None:
    descriptor = os.open(str(filler), os.O_CREAT | os.O_WRONLY, 0o600)
    try:
        os.posix_fallocate(descriptor, 0, QUOTA_BYTES)
    finally:
        os.close(descriptor)
