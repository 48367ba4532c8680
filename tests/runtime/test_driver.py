"""The driver: promises wait for the disk, groups form while it is busy. A real node, a real commit thread, a gated engine."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence

import pytest
import uvloop

from cartwheel.core.config import Config
from cartwheel.core.errors import StorageFailed
from cartwheel.core.messages import ClientGet, ClientPut, Found, PutRequest, Result, Stored
from cartwheel.core.node import Node
from cartwheel.core.ring import Change, ChangeKind, History, Member
from cartwheel.core.storage import Space, Store, Writes
from cartwheel.runtime import driver as driver_module
from cartwheel.runtime.driver import Driver
from cartwheel.runtime.engines.memory import SharedMemoryEngine

DEADLINE_S = 20.0


class GatedEngine(SharedMemoryEngine):
    """Notes how many records each synced batch writes; while closed, a sync waits at the gate, or fails."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = threading.Event()
        self.gate.set()
        self.syncs: list[int] = []
        self.broken = False

    def apply(self, spaces: Sequence[Writes], *, sync: bool) -> None:
        if sync:
            assert self.gate.wait(DEADLINE_S)
            if records := len(spaces[Space.RECORDS]):  # not the clock's mark
                self.syncs.append(records)
            if self.broken:
                raise StorageFailed("the disk is gone")
        super().apply(spaces, sync=sync)


class Nowhere:
    """No peers."""

    def post(self, dst: str, message: object) -> None:
        raise AssertionError("a node alone sends nothing")

    def flush(self) -> None:
        """Nothing to send."""


class Client:
    """One request's client: a future, and what to do at the reply."""

    def __init__(self) -> None:
        self.result: asyncio.Future[Result] = asyncio.get_running_loop().create_future()

    def resolve(self, result: Result) -> None:
        self.result.set_result(result)


class Alone:
    """A cluster of one, driven."""

    def __init__(self, engine: GatedEngine) -> None:
        history = History([Change("first", 1, "a", ChangeKind.JOIN, member=Member("a", "127.0.0.1:1", "h"))])
        store = Store(engine)
        config = Config(node="a", cluster="c", secret=b"s" * 16, q=8)
        node = Node(config, store, history=history, stint="s", boot=1)
        self.halted: list[str] = []
        self.driver = Driver(node, store, engine, on_halt=self.halted.append)
        self.driver.start(Nowhere())
        engine.syncs.clear()

    def put(self, key: str) -> asyncio.Future[Result]:
        client = Client()
        self.driver.submit(ClientPut(client, PutRequest("0", key.encode(), b"v")))
        return client.result

    def get(self, key: str) -> asyncio.Future[Result]:
        client = Client()
        self.driver.submit(ClientGet(client, "0", key.encode()))
        return client.result


@pytest.fixture(params=[None, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def play(request):
    """Run a story on each loop."""

    def run(story) -> None:
        async def bounded() -> None:
            async with asyncio.timeout(DEADLINE_S):
                await story()

        with asyncio.Runner(loop_factory=request.param) as runner:
            runner.run(bounded())

    return run


def test_a_put_is_answered_only_once_it_is_synced(play):
    """While the sync waits there is no reply, nor to a get that would show the staged value; then both come."""

    async def story() -> None:
        engine = GatedEngine()
        alone = Alone(engine)
        engine.gate.clear()
        put = alone.put("k")
        for _ in range(5):
            await asyncio.sleep(0)
        get = alone.get("k")
        for _ in range(5):
            await asyncio.sleep(0)
        assert not put.done()
        assert not get.done()
        engine.gate.set()
        assert isinstance(await put, Stored)
        found = await get
        assert isinstance(found, Found)
        assert [version.value for version in found.record.versions] == [b"v"]
        await alone.driver.stop()

    play(story)


def test_what_is_staged_during_a_sync_is_the_next_group(play):
    """Group commit: however many writes come while the disk is busy, one more sync takes them all."""

    async def story() -> None:
        engine = GatedEngine()
        alone = Alone(engine)
        engine.gate.clear()
        first = alone.put("first")
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        others = [alone.put(f"k{i}") for i in range(20)]
        engine.gate.set()
        await asyncio.gather(first, *others)
        assert engine.syncs == [1, 20]
        await alone.driver.stop()

    play(story)


def test_after_a_large_group_the_next_one_gathers(play, monkeypatch):
    """Writers that were answered together write again together: their second writes share a sync with whoever waited."""
    monkeypatch.setattr(driver_module, "GATHER_S_MAX", 1.0)
    monkeypatch.setattr(Driver, "_maybe_gather", gather_for_long(Driver._maybe_gather))

    async def story() -> None:
        engine = GatedEngine()
        alone = Alone(engine)
        first = [alone.put(f"a{i}") for i in range(driver_module.GATHER_WRITES_MIN)]
        await asyncio.gather(*first)
        second = []
        for i in range(5):  # not in one turn: each would be a group of its own
            second.append(alone.put(f"b{i}"))
            await asyncio.sleep(0)
        await asyncio.gather(*second)
        assert engine.syncs == [8, 5]
        await alone.driver.stop()

    play(story)


def gather_for_long(real):
    """The same decision, with half a second in place of two syncs, so that a slow machine does not matter."""
    return lambda self, wait_s: real(self, wait_s and 0.5)


def test_after_a_small_group_nobody_waits(play, monkeypatch):
    """A few writers are never kept waiting."""
    monkeypatch.setattr(Driver, "_maybe_gather", lambda self, wait_s: pytest.fail("gathered after a small group"))

    async def story() -> None:
        alone = Alone(GatedEngine())
        for i in range(5):
            await alone.put(f"k{i}")
        await alone.driver.stop()

    play(story)


def test_a_failed_sync_halts_the_node_and_acknowledges_nothing(play):
    """The put is never answered, the reason is told once, and a stop marks nothing: the next start does not trust the disk."""

    async def story() -> None:
        engine = GatedEngine()
        alone = Alone(engine)
        engine.broken = True
        put = alone.put("k")
        while not alone.halted:  # noqa: ASYNC110 - the halt is a callback
            await asyncio.sleep(0)
        assert alone.halted == ["storage failed: the disk is gone"]
        alone.driver.submit(ClientGet(Client(), "0", b"k"))
        await alone.driver.stop()
        assert not put.done()
        assert engine.get(Space.META, b"clean-stop") is None

    play(story)


def test_a_clean_stop_is_marked_and_keeps_what_was_staged(play):
    """Stopping commits what is staged, and the mark of a clean stop with it."""

    async def story() -> None:
        engine = GatedEngine()
        alone = Alone(engine)
        put = alone.put("k")
        await put
        await alone.driver.stop()
        assert engine.get(Space.META, b"clean-stop") is not None
        await alone.driver.stop()  # idempotent

    play(story)
