"""What can go wrong in a chaos run, by name, and the steps of which a plan is made (``draw``).

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
    the members           join       a new node joins
                          leave      a node leaves, and is stopped when it says that it has left
                          replace    kill -9 for ever: a new node takes its place
                          weight     a node gets another weight
                          administrators   two changes at once, at two nodes, on both sides of a cut if there is one
                          return     a node that was removed for ever is started again: it must be shut out
                          clone      a copied data directory is started beside the true one: it must be shut out

Three **lanes** run beside each other, one for the processes and disks, one for the network and one for the members, each with one
thing at a time; so up to three faults overlap. A step that takes longer than drawn (a slow start) delays what follows in its
lane. Changes of the members are the exception: their lane goes on while partitions are still handed over.

**Premises.** Only one node, the victim, ever loses its disk, however often: every acknowledged write has another copy
(promise P1 with W=2). Kills and pauses lose nothing that was synced. A replaced node loses its disk for ever, so it is the victim
that is replaced, and whoever replaces it is the victim from then on. A hand-over may bring the victim the other copy of what it
keeps as a hint: so it loses no disk while it keeps hints, or takes over anything.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable
from dataclasses import dataclass

from cartwheel.chaos import shim
from cartwheel.chaos.cluster import knows_quota
from cartwheel.chaos.history import Direction
from cartwheel.core.errors import ConfigError
from cartwheel.core.types import NodeId

CALM_S = 3.0
"""Nothing happens so long at first: what is normal should be in the picture, too."""
MEMBERS_SECONDS_MIN = 60.0
"""``all`` changes the members only in runs of this length: a hand-over takes its time, and so does what follows it."""


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
    JOIN = "join"
    LEAVE = "leave"
    REPLACE = "replace"
    WEIGHT = "weight"
    ADMINISTRATORS = "administrators"
    RETURN = "return"
    CLONE = "clone"


NETWORK = (Nemesis.SPLIT, Nemesis.ONEWAY, Nemesis.ISOLATE, Nemesis.BRIDGE, Nemesis.FLAP)
MEMBERS = (
    Nemesis.JOIN, Nemesis.LEAVE, Nemesis.REPLACE, Nemesis.WEIGHT, Nemesis.ADMINISTRATORS, Nemesis.RETURN, Nemesis.CLONE,
)  # fmt: skip
LOSE_DISKS = (Nemesis.WIPE, Nemesis.REPLACE, Nemesis.RETURN)
"""Those that cost the victim its disk."""
ALIASES: dict[str, tuple[Nemesis, ...]] = {
    "all": tuple(Nemesis), "partition": NETWORK, "membership": MEMBERS, "none": (),
}  # fmt: skip
LASTS_S: dict[Nemesis, tuple[float, float]] = {
    Nemesis.KILL: (0.3, 8.0), Nemesis.PAUSE: (1.0, 60.0), Nemesis.ROLLING: (10.0, 10.0), Nemesis.FILL: (4.0, 15.0),
    Nemesis.WIPE: (0.5, 5.0), Nemesis.EIO: (1.0, 4.0), Nemesis.SPLIT: (2.0, 20.0), Nemesis.ONEWAY: (2.0, 20.0),
    Nemesis.ISOLATE: (2.0, 20.0), Nemesis.BRIDGE: (2.0, 20.0), Nemesis.FLAP: (4.0, 20.0),
    Nemesis.JOIN: (0.5, 15.0), Nemesis.LEAVE: (0.5, 20.0), Nemesis.REPLACE: (0.5, 15.0), Nemesis.WEIGHT: (0.5, 10.0),
    Nemesis.ADMINISTRATORS: (0.5, 10.0), Nemesis.RETURN: (3.0, 10.0), Nemesis.CLONE: (3.0, 10.0),
}  # fmt: skip
"""How long each lasts, in seconds: from, to. Of a restart: how long the node is away. Of a change of the members: how long after
its commit the next one begins at the latest, finished or not. Of a return and of a clone: how long it runs at least."""


class ActKind(enum.StrEnum):
    """What an administrator does."""

    JOIN = "join"
    LEAVE = "leave"
    REPLACE = "replace"
    WEIGHT = "weight"


@dataclass(frozen=True, slots=True)
class Act:
    """One change, staged and committed by an administrator."""

    kind: ActKind
    node: NodeId
    """Whom it is about; in a replace the new node."""
    at: NodeId
    """The node that is asked, if it is there."""
    other: NodeId = ""
    """In a replace: the old node, which is killed."""
    weight: float = 1.0

    def __str__(self) -> str:
        match self.kind:
            case ActKind.REPLACE:
                return f"{self.node} replaces {self.other}"
            case ActKind.WEIGHT:
                return f"{self.node} has weight {self.weight:g}"
        return f"{self.node} {self.kind}s"

    @property
    def words(self) -> tuple[str, ...]:
        """What stages it, after ``CW.CLUSTER``; nothing for a join, for which the node itself asks."""
        match self.kind:
            case ActKind.LEAVE:
                return ("LEAVE", self.node)
            case ActKind.REPLACE:
                return ("REPLACE", self.other, self.node, "DEAD")
            case ActKind.WEIGHT:
                return ("WEIGHT", self.node, f"{self.weight:g}")
        return ()


@dataclass(frozen=True, slots=True)
class Step:
    """One thing that goes wrong at one time."""

    at: float
    kind: Nemesis
    nodes: tuple[NodeId, ...] = ()
    """Whom it strikes. Who is not there when its time has come is spared, and another one struck (``hand``)."""
    links: tuple[Direction, ...] = ()
    for_s: float = 0.0
    label: str = ""
    wait_s: float = 0.0
    """So long after ``at``, or after the step before, whichever is later."""
    acts: tuple[Act, ...] = ()
    """What changes the members."""
    clean: bool = False
    """A clone: of a node that was stopped in order, so that both go on under one actor."""

    def __str__(self) -> str:
        return f"{self.at:7.1f} s  {self.kind:<8} {self.label or ' '.join(self.nodes)} for {self.for_s:.1f} s"


def choose(names: Iterable[str], seconds: float = MEMBERS_SECONDS_MIN) -> tuple[list[Nemesis], list[str]]:
    """The kinds that were named, and a note for each that was left out because this machine or version cannot do it, or in so
    short a run not well.

    Raises:
        ConfigError: a name is unknown, or was named itself and cannot be done.
    """
    chosen: list[Nemesis] = []
    notes: list[str] = []
    for name in names:
        if name not in ALIASES and name not in list(Nemesis):
            known = ", ".join([*Nemesis, *ALIASES])
            raise ConfigError(f"there is no nemesis {name!r}; known are {known}")
        kinds = ALIASES.get(name) or ([Nemesis(name)] if name in list(Nemesis) else [])
        if name == "all" and seconds < MEMBERS_SECONDS_MIN:
            notes.append(f"without changes of the members: they want {MEMBERS_SECONDS_MIN / 60:g} minutes or more")
            kinds = [kind for kind in kinds if kind not in MEMBERS]
        for kind in kinds:
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
