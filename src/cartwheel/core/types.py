"""The words that every module shares: names for ids, and the levels of durability."""

from __future__ import annotations

import enum

NodeId = str
"""The name of a node, unique in its cluster for ever: 1 to 64 of ``A-Z a-z 0-9 . _ -``."""

Actor = str
"""Who mints dots: ``node/stint``. A node that may have forgotten what it minted goes on as a new stint (see ``versions``)."""

Clock = dict[Actor, int]
"""A version vector: for each actor the highest counter accounted for. The paper's list of (node, counter) pairs (section 4.4)."""

Dot = tuple[Actor, int]
"""The name of one write: the actor that minted it and its hybrid logical clock reading, used once."""


class Crowd(enum.IntEnum):
    """How many requests a coordinator has under way, against its limit."""

    NONE = 0
    HIGH = 1
    """Three quarters: a client that has one under way should wait with the next, so that others find room."""
    FULL = 2
    """The limit: nothing new should begin."""


class Durability(enum.IntEnum):
    """How far a write must have come before it is acknowledged. Ordered: a higher level implies the lower ones."""

    MEMORY = 0
    """Staged in memory; written with the next batch. Lost when the process dies."""
    OS = 1
    """Written to the operating system. Survives a kill of the process, not a loss of power."""
    SYNC = 2
    """Written and synced to the disk. Survives a loss of power."""


def make_actor(node: NodeId, stint: str) -> Actor:
    """Name the actor that ``node`` is during ``stint``."""
    return f"{node}/{stint}"


def node_of(actor: Actor) -> NodeId:
    """The node behind an actor."""
    return actor.partition("/")[0]
