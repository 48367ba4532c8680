"""A hybrid logical clock (Kulkarni et al., 2014): readings that never go back and stay close to the wall clock.

A reading is one integer, ``milliseconds since 1970 << 16 | logical``: comparing integers compares times, and 65,536 readings
fit into a millisecond before the clock runs ahead of the wall (it may; it catches up as soon as the wall does).

Readings are the counters of dots (see ``versions``), so an actor must never use one twice. Within a life the clock only rises; a
clean stop keeps its last reading; and after any other stop the node is a new actor (a new *stint*), which has used none. So
nothing need be written to the disk while the clock runs.

Invariants:
1. ``tick()`` is greater than every earlier ``tick()`` of this actor, and than every reading observed.
2. A reading over ``skew_ms_max`` ahead of the wall is never observed: one broken clock must not drag all others along. So the
   clock is that far ahead of the wall only where the wall itself was set back (``strayed``): then the node begins a new stint,
   and its clock begins at the wall again.

*Departs from the paper:* its counters are small integers per key and node; a time in their place gives last-writer-wins
order and safety when a key is deleted, reaped and created again (design: versions).
"""

from __future__ import annotations

from cartwheel.core.errors import ClockSkew

LOGICAL_BITS = 16


def reading(wall_ms: int, logical: int = 0) -> int:
    """The clock reading for a wall time in milliseconds since 1970."""
    return wall_ms << LOGICAL_BITS | logical


def wall_ms_of(a_reading: int) -> int:
    """The wall time of a reading, in milliseconds since 1970."""
    return a_reading >> LOGICAL_BITS


class HybridClock:
    """One node's clock. Given the wall time by its caller; O(1) per call."""

    __slots__ = ("_last", "_skew_ms_max")

    def __init__(self, *, last: int, skew_ms_max: int) -> None:
        """Start above ``last``, the last reading before a clean stop (0: none)."""
        self._last = last
        self._skew_ms_max = skew_ms_max

    @property
    def last(self) -> int:
        """The highest reading given out or observed."""
        return self._last

    def tick(self, wall_ms: int) -> int:
        """Give out a new reading."""
        self._last = max(self._last + 1, wall_ms << LOGICAL_BITS)
        return self._last

    def observe(self, remote: int, wall_ms: int) -> None:
        """Take note of another node's reading, so that what we write next counts as later.

        Raises:
            ClockSkew: the reading is over ``skew_ms_max`` ahead of our wall clock. Our clock is unchanged.
        """
        if remote <= self._last:
            return
        ahead_ms = (remote >> LOGICAL_BITS) - wall_ms
        if ahead_ms > self._skew_ms_max:
            raise ClockSkew(f"clock {ahead_ms} ms ahead of ours, {self._skew_ms_max} ms are allowed")
        self._last = remote

    def strayed(self, wall_ms: int) -> bool:
        """Whether the wall clock was set back so far that peers would refuse our readings."""
        return (self._last >> LOGICAL_BITS) - wall_ms > self._skew_ms_max

    def restart(self) -> None:
        """Go on from the wall clock, as a new actor."""
        self._last = 0
