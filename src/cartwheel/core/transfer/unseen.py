"""The parts of a view that are still to be looked at: those that may have other slots than before, a slice at a time."""

from __future__ import annotations

from cartwheel.core.placement import Changed
from cartwheel.core.summary import Summary

SLICE_MAX = 256
"""Parts looked at in one tick: some milliseconds, where after a change of the ring none is known yet."""

Part = tuple[int, int]
"""An n, and a partition."""


class Unseen:
    """At first all are. Kept by whoever looks."""

    def __init__(self, summary: Summary) -> None:
        self._summary = summary
        self._levels: tuple[int, ...] = ()  # each n that is looked at
        self._parts: set[Part] | None = None  # None: all

    def handle_place(self, changed: Changed) -> None:
        """There is a new view, in which these parts may have other slots."""
        if changed is None or tuple(self._summary.trees) != self._levels:
            self._parts, self._levels = None, tuple(self._summary.trees)
        elif self._parts is not None:
            self._parts |= changed

    def add_all(self) -> None:
        """Look at everything again."""
        self._parts = None

    @property
    def all(self) -> bool:
        """Whether nothing of the view has been looked at."""
        return self._parts is None

    def __bool__(self) -> bool:
        return self._parts is None or bool(self._parts)

    def take(self, q: int) -> list[Part]:
        """The next slice, in order; it counts as seen. ``q``: partitions of the ring."""
        if self._parts is None:
            self._parts = {(n, partition) for n in self._summary.trees for partition in range(q)}
        found = sorted(self._parts)[:SLICE_MAX]
        self._parts.difference_update(found)
        return found
