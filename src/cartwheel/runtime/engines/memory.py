"""The core's ``MemoryEngine`` behind a lock, because here a commit thread applies while the event loop reads.

Without the lock a read could see half a batch, and a scan could lose its place. The core's own class has none: the simulator
runs in one thread, and core/ knows no threads. About 0.1 us per call.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence

from cartwheel.core.storage import MemoryEngine, Space, Writes


class SharedMemoryEngine(MemoryEngine):
    """A ``MemoryEngine`` whose batches are atomic for other threads, too."""

    def __init__(self) -> None:
        super().__init__()
        self._lock = threading.Lock()

    def get(self, space: Space, key: bytes) -> bytes | None:
        with self._lock:
            return super().get(space, key)

    def scan(
        self, space: Space, start: bytes = b"", end: bytes | None = None, *, limit: int
    ) -> list[tuple[bytes, bytes]]:
        with self._lock:
            return super().scan(space, start, end, limit=limit)

    def apply(self, spaces: Sequence[Writes], *, sync: bool) -> None:
        with self._lock:
            super().apply(spaces, sync=sync)
