"""The commit thread: takes one group of staged writes at a time to the disk, while the event loop runs on.

    loop      submit(group, done) --.                     .--> done()  or  failed(error)
                                    | SimpleQueue         | call_soon_threadsafe, once per group
    thread                          '--> engine.apply() --'

While one group is under way, the next one gathers in the store: that is the group commit. The hand-over, there and back, is
part of every durable write. Measured on uvloop, median: ``SimpleQueue`` 14 us, a bare lock 14, ``Condition`` and ``Event`` 16,
``Queue`` 17. (A synced write between takes 240 us and more.)

Invariants:
1. At most one group is under way, from ``submit`` until its callback begins.
2. For each group exactly one of ``done`` and ``failed`` is called, on the loop.
3. After ``failed`` nothing is submitted any more: the node halts, and a sync is never tried again.

Where the loop is busy with Python code, the thread waits for the GIL up to ``sys.getswitchinterval()`` (5 ms unless set) when
its write returns, and a durable write's latency shows it.
"""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import Callable

from cartwheel.core.errors import StorageFailed
from cartwheel.core.storage import Engine, Group
from cartwheel.core.types import Durability


class Committer:
    """One commit thread over one engine, which stays the caller's. All methods but ``close`` are for the loop's thread."""

    def __init__(
        self, engine: Engine, loop: asyncio.AbstractEventLoop, failed: Callable[[StorageFailed], None]
    ) -> None:
        """Start the thread. ``failed`` is told, once, of the error after which nothing more is committed."""
        self._engine = engine
        self._loop = loop
        self._failed = failed
        self._done: Callable[[], None] | None = None  # of the group under way
        self._open = True  # neither closed nor failed
        self._groups: queue.SimpleQueue[Group | None] = queue.SimpleQueue()  # None: end
        # A daemon: a node that dies of an assertion must end, not wait for a thread that nobody will close.
        self._thread = threading.Thread(target=self._run, name="cartwheel-commit", daemon=True)
        self._thread.start()

    @property
    def busy(self) -> bool:
        """Whether a group is under way."""
        return self._done is not None

    def submit(self, group: Group, done: Callable[[], None]) -> None:
        """Commit ``group``, which nobody may change until ``done`` is called.

        Only while not ``busy``, and not after ``close`` or a failure: else it is the driver's bug, so an assertion.
        """
        assert self._done is None, "one group at a time"
        assert self._open, "submitted after close or a failure"
        self._done = done
        self._groups.put(group)

    def close(self) -> None:
        """Wait for the group under way, whose callback is then due on the loop, and end the thread. Blocks; idempotent."""
        self._open = False
        self._groups.put(None)
        self._thread.join()

    def _run(self) -> None:
        take, apply, call = self._groups.get, self._engine.apply, self._loop.call_soon_threadsafe
        while (group := take()) is not None:
            try:
                apply(group.spaces, sync=group.durability == Durability.SYNC)
            except StorageFailed as error:
                call(self._on_failed, error)
            except Exception as error:  # noqa: BLE001 - a bug in here must halt the node, not leave it waiting for ever
                call(self._on_failed, StorageFailed(f"the commit thread failed: {error!r}"))
            else:
                call(self._on_done)

    def _on_done(self) -> None:
        done, self._done = self._done, None
        assert done is not None
        done()

    def _on_failed(self, error: StorageFailed) -> None:
        self._done, self._open = None, False
        self._failed(error)
