"""Administrators of a chaos run: nodes join, leave, are replaced and given other weights; strangers must be shut out.

    an act      ── staged at a member ── planned ── committed ──> handed over; who has left is stopped
                       ^ tried again, at another member, while nobody answers, or the answer is lost
    a stranger  a node that was removed for ever, or a second process on a copied directory: clients ask it all the time, and it
                must acknowledge nothing

An act is *done* when a member's view shows it: an administrator whose connection broke looks before he tries again. A commit is
forced where members do not answer, as operators do in trouble. Acts that began are brought to their end, also after the load.
"""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

from cartwheel.chaos.cluster import COPY, Cluster
from cartwheel.chaos.draw import least, most
from cartwheel.chaos.history import Owners
from cartwheel.chaos.load import Load
from cartwheel.chaos.nemesis import Act, ActKind, Nemesis, Step
from cartwheel.chaos.processes import Processes
from cartwheel.chaos.proxy import Proxy
from cartwheel.client.resp import CannotReach, ConnectionLost, ReplyError
from cartwheel.core.types import NodeId

TRY_S = 0.3
"""Between two tries of an administrator, and two looks at what was done."""
END_TIMEOUT_S = 120.0
"""So long after the end of the load, with all faults healed, an act may take."""
REST_TIMEOUT_S = 20.0
"""So long a loss of the disk waits for that; then it is left out."""
NOTICE_TIMEOUT_S = 30.0
"""Within this time of hearing it, others notice a stranger; and a true node is let in again when its copy is gone."""
COPY_AFTER_S = 1.0
"""So long the true process has served again when its copy starts: by then the copy's records are old."""
VISITORS = 24
"""Clients of a stranger: some have a write under way at any time."""
SHUT_OUT = "clones_shut_out"
"""The counter of a node that has noticed a copy."""


class Members:
    """Who is there, and who is made to come and go."""

    def __init__(self, processes: Processes, proxy: Proxy, load: Load, victim: NodeId) -> None:
        self.victim = victim
        """The one node whose disk may be lost; "": none is."""
        self._processes = processes
        self._cluster: Cluster = processes.cluster
        self._proxy = proxy
        self._load = load
        self._moved = False  # the owners of something may have changed
        self._committed: set[str] = set()  # what administrators were told is
        self._departing: set[NodeId] = set()
        self._removed: set[NodeId] = set()  # for ever

    async def carry_out(self, step: Step, committed: asyncio.Event) -> Step | None:
        """One step of the lane of the members, to its end: as it was, or None if it could not be. ``committed`` is set when it
        cannot be stopped any more."""
        acts = tuple(act for act in map(self._as_things_are, step.acts) if act is not None)
        if any(act.kind is ActKind.REPLACE for act in acts) and not await self.may_lose_disk():
            return None
        if step.acts:
            if not acts:
                return None
            acts = self._on_both_sides(acts)
            step = replace(
                step,
                acts=acts,
                nodes=tuple(act.node for act in acts),
                label=", ".join(f"{act} (at {act.at})" for act in acts),
            )
            await self._act(acts, committed)
        if step.kind is Nemesis.RETURN:
            step = replace(step, nodes=(acts[0].other,)) if acts else step
            if step.nodes[0] not in self._removed:
                return None
            await self._return(step)
        elif step.kind is Nemesis.CLONE:
            step = await self._clone(step)
        return step

    def _as_things_are(self, act: Act) -> Act | None:
        """Where a loss of the disk was left out earlier, others are there than the plan thought; None: then this cannot be."""
        there = [node for node in self._cluster.nodes if node not in self._departing]
        match act.kind:
            case ActKind.REPLACE:
                return replace(act, other=self.victim)
            case ActKind.JOIN:
                return act if len(there) < most(self._cluster.founders) else None
            case ActKind.LEAVE if len(there) <= least(self._cluster.founders) or act.node == self.victim:
                return None
        return act if act.node in there else None

    async def may_lose_disk(self) -> bool:
        """Wait until the victim has nothing that somebody else should have; whether it came to that in time.

        Of two copies of an acknowledged write the victim may keep one, and that as a hint. Where owners never change the other
        copy stays with its owner. But if that owner hands it over to the victim, both are on one disk until the hint has left."""
        began = self._processes.now()
        while self._moved and not await asyncio.to_thread(self._may_be_lost, self.victim):
            if self._processes.stopping or self._processes.now() - began > REST_TIMEOUT_S:
                return False
            await self._processes.pause(TRY_S)
        return not self._processes.stopping

    def _may_be_lost(self, node: NodeId) -> bool:
        view = self._cluster.status(node)
        if view is None:
            return False
        return not (view["hints"] or view["transfer"]["gains"] or view["transfer"]["leftovers"])

    def _on_both_sides(self, acts: tuple[Act, ...]) -> tuple[Act, ...]:
        """Two acts, asked for on both sides of a cut if there is one."""
        if len(acts) < 2:
            return acts
        there = self._cluster.nodes
        first, second = acts
        sides = sorted((a, b) for a, b in self._proxy.cuts if a in there and b in there and second.node != b)
        if sides and (first.at, second.at) not in sides:
            a, b = sides[len(sides) // 2]
            return replace(first, at=a), replace(second, at=b)
        return acts

    # --- acts ---

    async def _act(self, acts: tuple[Act, ...], committed: asyncio.Event) -> None:
        """All of them at once."""
        self._moved = True
        done = await asyncio.gather(*(self._commit(act, alone=len(acts) == 1) for act in acts))
        committed.set()
        await asyncio.gather(*(self._follow(act) for act, known in zip(acts, done, strict=True) if known))

    async def _commit(self, act: Act, *, alone: bool) -> bool:
        """From the wish to a member's view that shows it; whether it came to that."""
        processes = self._processes
        if act.kind is ActKind.REPLACE:
            await self._lose(act.other)
            self.victim = act.node
        if act.kind in (ActKind.JOIN, ActKind.REPLACE):
            await self._enter(act.node)
        elif act.kind is ActKind.LEAVE:
            self._cluster.joins_no_more(act.node)
        why, tries, end = "", 0, 0.0
        while True:
            node = self._asked(act, tries)
            try:
                if await asyncio.to_thread(self._try, node, act, alone):
                    owners = await asyncio.to_thread(self._cluster.owners, node)
                    processes.note(Owners(processes.now(), owners))
                    return True
            except (CannotReach, ConnectionLost, ReplyError) as error:
                why = f"{node}: {error}"
            tries += 1
            if processes.stopping:
                end = end or processes.now() + END_TIMEOUT_S
                if processes.now() > end:
                    processes.trouble("ACT", f"{END_TIMEOUT_S:g} s after healing, not done: {act}; {why}")
                    return False
            await asyncio.sleep(TRY_S)

    def _asked(self, act: Act, tries: int) -> NodeId:
        """Which member: the one that was drawn, then the others in turn. (A new node is no member yet.)"""
        others = [node for node in sorted(self._cluster.nodes) if node != act.at]
        if act.kind in (ActKind.JOIN, ActKind.REPLACE):
            others.remove(act.node)
        turn = [act.at, *others] if act.at in self._cluster.nodes else others
        return turn[tries // 2 % len(turn)]

    def _try(self, node: NodeId, act: Act, alone: bool) -> bool:
        """Look, stage, commit, whatever comes next; whether it is done. In a thread.

        Raises:
            ReplyError, CannotReach, ConnectionLost: not now.
        """
        ask = self._cluster.ask
        status = json.loads(ask(node, "CW.STATUS", "JSON"))
        if is_done(act, status["members"]) or str(act) in self._committed:
            return True
        plan = json.loads(ask(node, "CW.CLUSTER", "PLAN", "JSON"))
        if not any(change.startswith(str(act)) for change in plan["changes"]):
            if not act.words:
                return False  # it will ask by itself
            ask(node, "CW.CLUSTER", *act.words)
            plan = json.loads(ask(node, "CW.CLUSTER", "PLAN", "JSON"))
        words = ["DIGEST", plan["digest"]] if alone else []
        if plan["silent"]:
            words.append("FORCE")
        told = ask(node, "CW.CLUSTER", "COMMIT", *words)
        for text in told.removeprefix("committed: ").split("; "):
            self._committed.add(text.split(" (")[0].split(",")[0])
        return str(act) in self._committed

    async def _follow(self, act: Act) -> None:
        """After its commit: what becomes of the nodes."""
        self._committed.discard(str(act))  # the same may be wanted again
        match act.kind:
            case ActKind.JOIN | ActKind.REPLACE:
                self._processes.came(act.node)
                self._load.ports[act.node] = self._cluster.resp_port[act.node]
                await self._until(lambda: self._has_all([act.node]))
            case ActKind.LEAVE:
                await self._depart(act.node)
            case ActKind.WEIGHT:
                await self._until(lambda: self._has_all(list(self._cluster.nodes)))

    async def _lose(self, node: NodeId) -> None:
        """kill -9, and it does not come back."""
        async with self._processes.hold(node):
            self._processes.gone(node)
            self._cluster.kill(node)
            self._cluster.quit(node)
            self._removed.add(node)
            self._load.ports.pop(node, None)

    async def _enter(self, node: NodeId) -> None:
        """A new node is started, and asks to join. Only one that was not a member before, or has left, has an empty disk."""
        while node in self._departing:
            await self._processes.moment()
        async with self._processes.hold(node):
            self._processes.gone(node)
            await asyncio.to_thread(shutil.rmtree, self._cluster.data(node), ignore_errors=True)
            self._cluster.enter(node)
            await self._processes.start(node)

    async def _depart(self, node: NodeId) -> None:
        """It hands over; when it says that it has left it is stopped."""
        processes = self._processes
        self._departing.add(node)
        processes.gone(node)
        try:
            if not await self._until(lambda: self._has_left(node), cut_short=False):
                processes.trouble(
                    "ACT", f"{END_TIMEOUT_S:g} s after healing, {node} has not left: {self._note_of(node)}"
                )
            self._load.ports.pop(node, None)
            async with processes.hold(node):
                self._cluster.quit(node)
                await processes.terminate(node)
        finally:
            self._departing.discard(node)

    async def _until(self, condition: Callable[[], bool], *, cut_short: bool = True) -> bool:
        """Look until it is so. When the load has ended: only so long, or (``cut_short``) not at all, for ``settle`` looks on."""
        end = 0.0
        while not await asyncio.to_thread(condition):
            if self._processes.stopping:
                end = end or self._processes.now() + END_TIMEOUT_S
                if cut_short or self._processes.now() > end:
                    return False
            await asyncio.sleep(TRY_S)
        return True

    def _has_all(self, nodes: list[NodeId]) -> bool:
        views = [self._cluster.status(node) for node in nodes]
        return all(
            view is not None and not view["transfer"]["gains"] and node in [each["node"] for each in view["members"]]
            for node, view in zip(nodes, views, strict=True)
            if node in self._cluster.nodes and node not in self._departing
        )

    def _has_left(self, node: NodeId) -> bool:
        return "it may be stopped" in self._note_of(node)

    def _note_of(self, node: NodeId) -> str:
        view = self._cluster.status(node)
        return "no answer" if view is None else " ".join(view["notes"])

    # --- strangers ---

    async def _return(self, step: Step) -> None:
        """The dead walk."""
        node, processes = step.nodes[0], self._processes
        async with processes.hold(node):
            await processes.start(node)
            async with self._visited(node, node, f"{node}, which was removed for ever and started again,"):
                await processes.pause(step.for_s)
                told = await self._noticed([node], lambda: self._wait_for(lambda: "removed" in self._note_of(node)))
            self._cluster.kill(node)
        if not told:
            processes.trouble("SHUT", f"{node} was removed for ever, started again, and not told so")

    async def _clone(self, step: Step) -> Step:
        """Two of a kind."""
        node, processes, cluster = self._processes.other_than(step.nodes[0]), self._processes, self._cluster
        assert node is not None, "somebody is there"
        async with processes.hold(node):
            with processes.away(node):
                if step.clean:
                    await processes.terminate(node)
                else:
                    cluster.kill(node)
                await asyncio.to_thread(cluster.copy, node)
                before = await asyncio.to_thread(self._seen, node)
                await processes.start(node)
                await processes.pause(COPY_AFTER_S)
                await processes.start(COPY)
                who = f"a second process of {node}, on a copy of its data directory,"
                async with self._visited(f"{node}'s copy", COPY, who):
                    await processes.pause(step.for_s)
                    noticed = await self._noticed([node], lambda: self._wait_for(lambda: self._shut_out(node, before)))
                cluster.kill(COPY)
                await self._noticed([node], lambda: self._wait_for(lambda: self._reached(node)))
        if not noticed:
            processes.trouble("SHUT", f"nobody noticed that two processes ran as {node}")
        return replace(step, nodes=(node,), label=f"of {node}, {'stopped' if step.clean else 'killed'}")

    @asynccontextmanager
    async def _visited(self, label: str, process: NodeId, who: str) -> AsyncIterator[None]:
        """Clients ask this process meanwhile, and must be served nothing."""
        port = self._cluster.resp_port[process]
        visitors = [self._load.visit(label, port) for _ in range(VISITORS)]
        async with asyncio.TaskGroup() as group:
            for visitor in visitors:
                group.create_task(visitor.run())
            yield
            for visitor in visitors:
                visitor.leave()
        served = [each for visitor in visitors for each in visitor.served]
        if served:
            self._processes.trouble("SHUT", f"{who} served {len(served)} requests: {'; '.join(served[:3])}")

    async def _noticed(self, nodes: list[NodeId], look: Callable[[], Awaitable[bool]]) -> bool:
        """Whether it comes to that in time. Time in which some of these nodes are cut off from anyone does not count."""
        spent = 0.0
        while spent < NOTICE_TIMEOUT_S:
            began, cut = self._processes.now(), self._is_cut(nodes)
            if await look():
                return True
            if not (cut or self._is_cut(nodes)):
                spent += self._processes.now() - began
        return False

    def _is_cut(self, nodes: list[NodeId]) -> bool:
        return any(a in nodes or b in nodes for a, b in self._proxy.cuts)

    async def _wait_for(self, condition: Callable[[], bool]) -> bool:
        """A look, and a moment."""
        if await asyncio.to_thread(condition):
            return True
        await asyncio.sleep(TRY_S)
        return False

    def _seen(self, node: NodeId) -> dict[NodeId, int]:
        """How often each of the others has noticed a copy, in this life of its own."""
        views = {each: self._cluster.status(each) for each in self._cluster.nodes if each != node}
        return {each: view["counters"].get(SHUT_OUT, 0) for each, view in views.items() if view is not None}

    def _shut_out(self, node: NodeId, before: dict[NodeId, int]) -> bool:
        """Whether somebody has noticed one since."""
        return any(count and count != before.get(each) for each, count in self._seen(node).items())

    def _reached(self, node: NodeId) -> bool:
        """Whether it is let in again."""
        view = self._cluster.status(node)
        return view is not None and all(each["reachable"] for each in view["members"])


def is_done(act: Act, members: list[dict[str, Any]]) -> bool:
    """Whether a view of the members shows that this was committed."""
    weights: dict[NodeId, float] = {each["node"]: each["weight"] for each in members}
    match act.kind:
        case ActKind.JOIN:
            return act.node in weights
        case ActKind.REPLACE:
            return act.node in weights and act.other not in weights
        case ActKind.LEAVE:
            return act.node not in weights
    return weights.get(act.node, act.weight) == act.weight
