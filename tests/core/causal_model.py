"""The dumb model of one key's versions: explicit causal histories, no clocks at all.

A write is an **event**, a number; ``past[event]`` is the set of all events that its writer had seen. What a replica knows, and
what a context covers, is a set of events. A version is live where no event known there has it in its past. That is all of
section 4.4 ("if the counters on the first object's clock are less-than-or-equal ..., then the first is an ancestor"), said in
sets: slow, large and obviously right. A set that stands for what somebody knows is **closed**: with an event it has its past.
"""

from __future__ import annotations

from collections.abc import Iterable

Events = frozenset[int]
NOTHING: Events = frozenset()


class Histories:
    """All events that ever were, each with its past."""

    def __init__(self) -> None:
        self.past: list[Events] = []

    def write(self, context: Events) -> int:
        """A new event, written by someone who has seen ``context``."""
        self.past.append(context)
        return len(self.past) - 1

    def live(self, known: Iterable[int]) -> set[int]:
        """The siblings of a replica that knows these events: those in no other known event's past."""
        known = set(known)
        return known - {old for event in known for old in self.past[event]}

    def closed(self, events: Events) -> bool:
        """Whether the set holds the past of all its events."""
        return all(self.past[event] <= events for event in events)
