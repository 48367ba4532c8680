"""A simulated disk: the engine contract, with what a loss of power takes away.

    apply(sync=False)   in the page cache: survives a kill of the process, not a loss of power
    apply(sync=True)    on the platter, and all applied before it

Batches are atomic and ordered, as the engines promise (``core.storage.Engine``): a power cut keeps some prefix of the batches
that were not synced yet. The disk keeps, for each such batch, what its keys held before, and undoes the batches that are lost.
Beyond the contract: a sync that fails, bits that flip, commits that take seconds, space that runs out.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from cartwheel.core.errors import StorageFailed
from cartwheel.core.storage import MemoryEngine, Space, Writes


class SimDisk(MemoryEngine):
    """One machine's disk. It outlives the processes that use it."""

    name = "sim"

    def __init__(self) -> None:
        super().__init__()
        self._unsynced: list[dict[tuple[Space, bytes], bytes | None]] = []  # batch -> what it overwrote, oldest first
        self.fail_next_sync = False
        self.slow_s = 0.0  # what a commit takes besides its usual time
        self.used = 0.5  # how full it says it is

    def apply(self, spaces: Sequence[Writes], *, sync: bool) -> None:
        if sync and self.fail_next_sync:
            self.fail_next_sync = False
            raise StorageFailed("simulated: fsync returned EIO")
        if sync:
            self._unsynced.clear()
        else:
            get = self.get
            overwritten = {
                (space, key): get(space, key) for space, writes in zip(Space, spaces, strict=True) for key in writes
            }
            self._unsynced.append(overwritten)
        super().apply(spaces, sync=sync)

    @property
    def dirty(self) -> bool:
        """Whether anything would be lost if the power failed now."""
        return bool(self._unsynced)

    def synced(self, space: Space, key: bytes) -> bytes | None:
        """What would be left of the key if all batches not synced were lost."""
        at = (space, key)
        for overwritten in self._unsynced:
            if at in overwritten:
                return overwritten[at]
        return self.get(space, key)

    def power_cut(self, dice: random.Random) -> int:
        """Lose a suffix of the batches that were not synced. Returns how many were lost."""
        kept = dice.randint(0, len(self._unsynced))
        lost = self._unsynced[kept:]
        self._unsynced = []
        for overwritten in reversed(lost):
            undo: list[Writes] = [{} for _ in Space]
            for (space, key), value in overwritten.items():
                undo[space][key] = value
            super().apply(undo, sync=True)
        return len(lost)

    def flip(self, dice: random.Random) -> Space | None:
        """Flip one bit of one record, or hint, at rest. Returns where; None if there is none."""
        rows = [(space, *row) for space in (Space.RECORDS, Space.HINTS) for row in self.scan(space, limit=1 << 30)]
        if not rows:
            return None
        space, key, value = dice.choice(rows)
        damaged = bytearray(value)
        damaged[dice.randrange(len(damaged))] ^= 1 << dice.randrange(8)
        spaces: list[Writes] = [{} for _ in Space]
        spaces[space][key] = bytes(damaged)
        super().apply(spaces, sync=True)
        return space

    def close(self) -> None:
        """The process lets go of the disk; the data stays."""
