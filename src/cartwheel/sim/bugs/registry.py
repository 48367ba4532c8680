"""The list of planted bugs, and how one is planted."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

Patch = tuple[Any, str, object]


@dataclass(frozen=True, slots=True)
class Bug:
    """A planted bug."""

    name: str
    rules: tuple[str, ...]
    """Which checkers see it first."""
    trap: tuple[int, ...]
    """The known traps that it falls into, by their numbers in ``TRAPS``."""
    story: str
    patches: Callable[[], list[Patch]]
    profile: str = ""
    """The kind of run in which it shows; "": any."""
    setting: Mapping[str, Any] = field(default_factory=dict)
    """Fields of the plan that make it show soon."""


BUGS: dict[str, Bug] = {}

TRAPS = {
    1: "two clients write through one coordinator",
    3: "a disk is lost, and its counter restarts",
    5: "told or shown before it is durable",
    6: "causal history is pruned",
    7: "a context that claims what nobody read",
    8: "the last writer wins, under skewed clocks",
    9: "a delete races with a put",
    10: "a tombstone is reaped too early",
    11: "a hint is replayed after the reaping",
    12: "what is sent was read too early",
    13: "a repair undoes a delete",
    14: "a hint is delivered twice, or not at all",
    15: "anti-entropy beside live writes",
    16: "bytes that are not canonical",
    17: "quorums of which no member is common",
    18: "a partial write, and its retry",
    19: "acks counted twice",
    20: "a late answer meets a new request",
    21: "two administrators, two rings",
    22: "a join: a write counts at the wrong owner",
    23: "a transfer deletes its source too soon",
    24: "an old view comes back",
    25: "a node that is gone goes on, or goes too soon",
    28: "clocks that jump",
    29: "a cut that not all see alike",
    32: "bit rot",
    33: "a full disk",
    34: "a slow disk: the gray failure",
    35: "a connection that only looks alive",
    37: "too many siblings",
    38: "hints that are not kept",
    39: "everyone delivers at once",
}
"""Numbered as in our list of traps; the missing ones lie outside of what is simulated."""


def bug(
    *rules: str, trap: tuple[int, ...], profile: str = "", **setting: Any
) -> Callable[[Callable[[], list[Patch]]], Callable[[], list[Patch]]]:
    """Register a planted bug under its function's name, with the kind of run and the fields of the plan that it needs."""

    def register(patches: Callable[[], list[Patch]]) -> Callable[[], list[Patch]]:
        name = patches.__name__.replace("_", "-")
        BUGS[name] = Bug(name, rules, trap, patches.__doc__ or "", patches, profile, setting)
        return patches

    return register


@contextmanager
def planted(name: str) -> Iterator[None]:
    """Run with this bug in the core.

    Raises:
        KeyError: there is no such bug.
    """
    saved: list[Patch] = []
    for owner, attribute, replacement in BUGS[name].patches():
        saved.append((owner, attribute, getattr(owner, attribute)))
        setattr(owner, attribute, replacement)
    try:
        yield
    finally:
        for owner, attribute, original in reversed(saved):
            setattr(owner, attribute, original)
