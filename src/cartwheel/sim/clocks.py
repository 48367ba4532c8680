"""A node's clocks: a monotonic one that may run fast or slow, and a wall clock that may also be off, or jump.

True time is the world's virtual time; only checkers see it.
"""

from __future__ import annotations

EPOCH_MS = 1_750_000_000_000
"""True wall time at the start of every run (June 2025): the same for each seed, so that runs compare."""


def true_wall_ms(now: float) -> int:
    """The wall time that a perfect clock shows at virtual time ``now``."""
    return EPOCH_MS + int(now * 1000)


class SimClock:
    """One machine's clocks. It survives restarts of the process. Invariant: ``mono`` never goes back."""

    __slots__ = ("drift", "offset_ms")

    def __init__(self, *, offset_ms: int = 0, drift: float = 0.0) -> None:
        self.offset_ms = offset_ms  # how far the wall clock is ahead of the truth
        self.drift = drift  # 0.01: gains one second in a hundred

    def mono(self, now: float) -> float:
        """Monotonic seconds."""
        return now * (1.0 + self.drift)

    def wall(self, now: float) -> int:
        """Wall clock, milliseconds since 1970."""
        return EPOCH_MS + int(now * (1.0 + self.drift) * 1000) + self.offset_ms

    def jump(self, by_ms: int) -> None:
        """Somebody sets the wall clock."""
        self.offset_ms += by_ms

    def settle(self, now: float) -> None:
        """The time service has brought the wall clock back to the truth; the drift is gone from now on in ``wall`` only."""
        self.offset_ms = -int(now * self.drift * 1000)
