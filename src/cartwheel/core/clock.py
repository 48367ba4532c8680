"""A hybrid logical clock (Kulkarni et al., 2014): readings that never go back and stay close to the wall clock.

A reading is one integer, ``milliseconds since 1970 << 16 | logical``: comparing integers compares times, and 65,536 readings
fit into a millisecond before the clock runs ahead of the wall (it may; it catches up as soon as the wall does).

Readings are the counters of dots (see ``versions``), so they must never repeat, not even across a crash. Therefore a
**high-water mark** is persisted: ``limit`` is the highest reading that the disk allows us to use. ``tick()`` may return a
reading above it, and whoever makes such a reading known must first make a higher mark durable (``needs_mark``).

Invariants:
1. ``tick()`` is greater than every earlier ``tick()`` of this node, in this life or an earlier one, and than every reading
   observed.
2. A reading over ``skew_ms_max`` ahead of the wall is never observed: one broken clock must not drag all others along.

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

    __slots__ = ("_last", "_lease_ms", "_skew_ms_max", "limit")

    def __init__(self, *, mark: int, skew_ms_max: int, lease_ms: int) -> None:
        """Start above ``mark``, the persisted high-water mark (0 on a fresh disk)."""
        self._last = mark
        self._skew_ms_max = skew_ms_max
        self._lease_ms = lease_ms
        self.limit = mark  # Invariant: the durable high-water mark.

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

    def wait_ms(self, wall_ms: int) -> int:
        """How long to wait before the first ``tick`` of a life, so that peers do not refuse its readings as too far ahead.

        After an unclean stop the mark is up to a lease ahead of what was really used. If it is further ahead than that, the
        wall clock went back: waiting would not help, and what follows is the operator's to see.
        """
        ahead_ms = (self._last >> LOGICAL_BITS) - wall_ms - self._skew_ms_max // 2
        return min(max(ahead_ms, 0), self._lease_ms)

    def needs_mark(self, wall_ms: int) -> int | None:
        """The mark to persist now, or None while the durable one reaches over half a lease ahead."""
        base = max(self._last, wall_ms << LOGICAL_BITS)
        if base + (self._lease_ms << LOGICAL_BITS >> 1) < self.limit:
            return None
        return base + (self._lease_ms << LOGICAL_BITS)

    def marked(self, mark: int) -> None:
        """``mark`` is durable now."""
        self.limit = max(self.limit, mark)
