"""The commit thread, with a real event loop and real engines; the failing ones fail on purpose, the slow one waits for leave."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence

import pytest

from cartwheel.core.errors import StorageFailed
from cartwheel.core.storage import Group, MemoryEngine, Space, Store, Writes
from cartwheel.core.types import Durability
from cartwheel.runtime.committer import Committer
from cartwheel.runtime.engines import ENGINES, open_engine


class Recorder(MemoryEngine):
    """Remembers how it was called; may be told to fail, or to wait."""

    def __init__(self, error: Exception | None = None, gate: threading.Event | None = None) -> None:
        super().__init__()
        self.error, self.gate = error, gate
        self.calls: list[tuple[int, bool]] = []
        self.entered = threading.Event()

    def apply(self, spaces: Sequence[Writes], *, sync: bool) -> None:
        self.calls.append((threading.get_ident(), sync))
        self.entered.set()
        if self.gate is not None:
            assert self.gate.wait(30)
        if self.error is not None:
            raise self.error
        super().apply(spaces, sync=sync)


def group(key: bytes = b"k", durability: Durability = Durability.SYNC) -> Group:
    return Group(({key: b"v"}, {}, {}), durability)


def unexpected(error: StorageFailed) -> None:
    raise AssertionError(error)


class Session:
    """A committer on the running loop, and the awaitable form of its callbacks."""

    def __init__(self, engine: Recorder) -> None:
        self.loop = asyncio.get_running_loop()
        self.failures: list[StorageFailed] = []
        self.outcome: asyncio.Future[str] = self.loop.create_future()
        self.committer = Committer(engine, self.loop, self.failed)

    def failed(self, error: StorageFailed) -> None:
        assert threading.current_thread() is threading.main_thread()
        self.failures.append(error)
        self.outcome.set_result("failed")

    def done(self) -> None:
        assert threading.current_thread() is threading.main_thread()
        self.outcome.set_result("done")

    async def commit(self, group: Group) -> str:
        self.outcome = self.loop.create_future()
        self.committer.submit(group, self.done)
        return await self.outcome


@pytest.mark.parametrize("name", ENGINES)
def test_groups_reach_the_engine_in_order(name, tmp_path):
    """A store's groups, one after the other while more is staged, are all in the engine at the end."""
    engine = open_engine(name, tmp_path / "engine")
    store = Store(engine)

    async def run():
        loop = asyncio.get_running_loop()
        ended = loop.create_future()
        committer = Committer(engine, loop, unexpected)
        staged = committed = 0

        def step():
            nonlocal staged
            while staged < 300 and (staged < 3 * committed + 1 or not committer.busy):
                staged += 1
                level = Durability.SYNC if staged % 100 == 0 else Durability.OS
                store.stage(Space.RECORDS, b"%04d" % (staged % 250), b"%d" % staged, level)
            if not committer.busy and store.staged:
                committer.submit(store.take(), done)

        def done():
            nonlocal committed
            store.committed()
            committed += 1
            assert not committer.busy
            step()
            if not committer.busy:
                ended.set_result(None)

        step()
        assert committer.busy
        await ended
        committer.close()

    asyncio.run(run())
    expected = {b"%04d" % (i % 250): b"%d" % i for i in range(1, 301)}
    assert dict(engine.scan(Space.RECORDS, limit=1000)) == expected
    engine.close()


@pytest.mark.parametrize(
    ("durability", "sync"), [(Durability.MEMORY, False), (Durability.OS, False), (Durability.SYNC, True)]
)
def test_only_sync_groups_are_synced(durability, sync):
    """A group is synced if the most careful of its writes asks for it; on one thread, which is not the loop's."""

    async def run():
        engine = Recorder()
        session = Session(engine)
        assert await session.commit(group(b"1", durability)) == "done"
        assert await session.commit(group(b"2", durability)) == "done"
        session.committer.close()
        (first, first_sync), (second, second_sync) = engine.calls
        assert first == second != threading.get_ident()
        assert first_sync == second_sync == sync

    asyncio.run(run())


def test_one_group_at_a_time():
    """A second submit before the first one's callback is the driver's bug, also when the thread is already through."""

    async def run():
        gate = threading.Event()
        engine = Recorder(gate=gate)
        session = Session(engine)
        session.committer.submit(group(), session.done)
        assert engine.entered.wait(30)
        for _ in range(2):
            with pytest.raises(AssertionError, match="one group at a time"):
                session.committer.submit(group(), session.done)
            assert session.committer.busy
            gate.set()
        assert await session.outcome == "done"
        assert not session.committer.busy
        session.committer.close()
        assert len(engine.calls) == 1

    asyncio.run(run())


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (StorageFailed("disk on fire"), "disk on fire"),
        (RuntimeError("a bug"), "the commit thread failed: RuntimeError('a bug')"),
        (AssertionError("another"), "the commit thread failed: AssertionError('another')"),
    ],
)
def test_a_failure_is_told_once_and_is_the_end(error, message):
    """``failed`` instead of ``done``, on the loop; nothing can be submitted after it; closing still ends the thread."""

    async def run():
        engine = Recorder(error)
        session = Session(engine)
        assert await session.commit(group()) == "failed"
        assert [str(failure) for failure in session.failures] == [message]
        assert not session.committer.busy
        with pytest.raises(AssertionError, match="after close or a failure"):
            session.committer.submit(group(), session.done)
        session.committer.close()
        await asyncio.sleep(0)
        assert len(session.failures) == len(engine.calls) == 1

    asyncio.run(run())


def test_the_loop_runs_while_a_group_is_under_way():
    """The engine may take its time: callbacks go on meanwhile."""

    async def run():
        gate = threading.Event()
        session = Session(Recorder(gate=gate))
        session.committer.submit(group(), session.done)
        for _ in range(10):
            await asyncio.sleep(0)
        assert not session.outcome.done()
        gate.set()
        assert await session.outcome == "done"
        session.committer.close()

    asyncio.run(run())


def test_close_waits_for_the_group_under_way():
    """When close returns, the engine has the group and the thread has ended; the callback comes on the loop's next turn."""

    async def run():
        gate = threading.Event()
        engine = Recorder(gate=gate)
        session = Session(engine)
        session.committer.submit(group(), session.done)
        assert engine.entered.wait(30)
        opener = threading.Timer(0.0, gate.set)
        opener.start()
        session.committer.close()
        assert engine.get(Space.RECORDS, b"k") == b"v"
        assert not session.committer._thread.is_alive()
        assert session.committer.busy
        assert await session.outcome == "done"
        session.committer.close()  # idempotent
        with pytest.raises(AssertionError, match="after close"):
            session.committer.submit(group(), session.done)
        opener.join()

    asyncio.run(run())


def test_close_without_work():
    """A committer that was never used ends at once."""

    async def run():
        Session(Recorder()).committer.close()

    asyncio.run(run())
