"""Administrators of a run: nodes join, leave, are replaced, removed, given other weights, while clients work and faults strike.

An **act** is staged at one node and committed a moment later, at the same one or another: so two acts at about the same time are
two administrators who do not know of each other. Commits are forced, as operators do in trouble, and tried again while the node
that was asked is down, or does not know of what was staged yet.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cartwheel.core.messages import Administered, ClientCommit, ClientStage, Event, Failure, Result
from cartwheel.core.types import NodeId

if TYPE_CHECKING:
    from cartwheel.sim.history import Status
    from cartwheel.sim.world import World

TRIES_MAX = 12
TRY_S = 1.0
ACT_TIMEOUT_S = 4.0


class ActKind(enum.StrEnum):
    """What an administrator does. The values are what ``ClientStage`` calls it."""

    JOIN = "join"
    """A new node is started, and asks to join."""
    LEAVE = "leave"
    REMOVE = "remove"
    """A node is removed for ever, with all it has (the victim only); it goes on, and is heard by nobody."""
    REPLACE = "replace"
    """A new node takes over what another one has, which leaves."""
    REWEIGH = "reweigh"
    RELOCATE = "relocate"
    DOUBLE = "double"
    """The ring gets twice as many partitions."""


@dataclass(frozen=True, slots=True)
class Act:
    """One thing that an administrator does at one time."""

    at: float
    kind: ActKind
    node: NodeId
    """Whom it is about; in a replace the new node."""
    asked: tuple[NodeId, ...]
    """Where it is staged, and committed: the first of them that runs."""
    other: NodeId = ""
    """In a replace: the old node."""
    weight: float = 1.0

    def __str__(self) -> str:
        what = f" for {self.other}" if self.other else f" {self.weight:g}" if self.kind is ActKind.REWEIGH else ""
        return f"{self.at:8.2f} s {self.kind:<10} {self.node}{what} via {','.join(self.asked)}"


class Acts:
    """All acts of a plan, carried out on a world."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.committed: set[str] = set()
        """The ids of the changes that administrators were told are committed."""
        for act in world.plan.acts:
            world.later(act.at, self._do, act)

    def _do(self, act: Act) -> None:
        world = self.world
        if world.healed:
            return
        world.marks[f"act.{act.kind}"] += 1
        world.trace("act", act.node, str(act).encode())
        if act.kind in {ActKind.JOIN, ActKind.REPLACE}:
            world.enter(act.node)
        if act.kind is ActKind.JOIN:
            self._commit(act, 0)
        else:
            self._stage(act, 0)

    def _ask(self, act: Act, event: Event, done: Callable[[Result | None], None]) -> None:
        """Ask the first node that runs. ``done`` is told the result; None: it failed."""
        world = self.world
        node = next((name for name in act.asked if world.hosts[name].running), act.asked[0])

        def told(status: Status, result: Result | None) -> None:
            done(None if isinstance(result, Failure) else result)

        world.call(node, event, told, timeout_s=ACT_TIMEOUT_S)

    def _stage(self, act: Act, tries: int) -> None:
        node, other = act.node, ""
        if act.kind is ActKind.REPLACE:
            node, other = act.other, act.node
        event = ClientStage(None, act.kind, node, other, act.weight, zone="z2" if act.kind is ActKind.RELOCATE else "")

        def done(result: Result | None) -> None:
            if result is not None:
                self.world.marks["act.staged"] += 1
                self.world.later(0.2, self._commit, act, 0)
            elif tries < TRIES_MAX and not self.world.healed:
                self.world.later(TRY_S, self._stage, act, tries + 1)

        self._ask(act, event, done)

    def _commit(self, act: Act, tries: int) -> None:
        def done(result: Result | None) -> None:
            if result is not None:
                assert isinstance(result, Administered)
                self.world.marks["act.committed"] += 1
                self.committed.update(result.changes)
            elif tries < TRIES_MAX and not self.world.healed:
                self.world.later(TRY_S, self._commit, act, tries + 1)

        self._ask(act, ClientCommit(None, "", force=True), done)
