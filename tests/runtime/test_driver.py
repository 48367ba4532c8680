"""The driver: promises wait for the disk, groups form while it is busy. A real node, a real commit thread, a gated engine."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Sequence

import pytest
import uvloop

from cartwheel.core.config import Config
from cartwheel.core.errors import Code, CorruptData, StorageFailed
from cartwheel.core.messages import (
    BucketChanged,
    ClientBucketSet,
    ClientGet,
    ClientPut,
    Failure,
    Found,
    PutRequest,
    Result,
    Stored,
    Tick,
)
from cartwheel.core.node import META_CLEAN, Node
from cartwheel.core.ring import Change, ChangeKind, History, Member
from cartwheel.core.storage import BUFFER_S, BUFFER_WRITES, Space, Store, Writes, split_record_key
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
        self.buffers: list[int] = []
        """As ``syncs``: the batches that were written without."""
        self.broken = False

    def apply(self, spaces: Sequence[Writes], *, sync: bool) -> None:
        if not sync:
            self.buffers.append(len(spaces[Space.RECORDS]))
        else:
            assert self.gate.wait(DEADLINE_S)
            if records := len(spaces[Space.RECORDS]):  # not the node's own facts
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

    def put(self, key: str, bucket: str = "0") -> asyncio.Future[Result]:
        client = Client()
        self.driver.submit(ClientPut(client, PutRequest(bucket, key.encode(), b"v")))
        return client.result

    def get(self, key: str, bucket: str = "0") -> asyncio.Future[Result]:
        client = Client()
        self.driver.submit(ClientGet(client, bucket, key.encode()))
        return client.result

    async def set_durability(self, bucket: str, durability: str) -> None:
        client = Client()
        self.driver.submit(ClientBucketSet(client, bucket, {"durability": durability}))
        assert isinstance(await client.result, BucketChanged)


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
        assert engine.get(Space.META, META_CLEAN) is None

    play(story)


def test_a_clean_stop_is_marked_and_keeps_what_was_staged(play):
    """Stopping commits what is staged, and the mark of a clean stop with it."""

    async def story() -> None:
        engine = GatedEngine()
        alone = Alone(engine)
        put = alone.put("k")
        await put
        await alone.driver.stop()
        assert engine.get(Space.META, META_CLEAN) is not None
        await alone.driver.stop()  # idempotent

    play(story)


def test_a_disk_that_cannot_be_read_halts_the_node(play, monkeypatch):
    """A read that fails is not a missing key: nobody is answered."""

    async def story() -> None:
        engine = GatedEngine()
        alone = Alone(engine)

        def get(space: Space, key: bytes) -> bytes | None:
            raise StorageFailed("a read failed: IO error")

        monkeypatch.setattr(engine, "get", get)
        found = alone.get("k")
        await until(lambda: alone.halted)
        assert alone.halted == ["storage failed: a read failed: IO error"]
        await alone.driver.stop()
        assert not found.done()

    play(story)


def test_a_damaged_record_is_no_broken_disk(play, monkeypatch):
    """The node says that its copy is lost, and goes on."""

    async def story() -> None:
        engine = GatedEngine()
        alone = Alone(engine)

        def get(space: Space, key: bytes) -> bytes | None:
            raise CorruptData("block checksum mismatch")

        with monkeypatch.context() as damaged:
            damaged.setattr(engine, "get", get)
            failure = await alone.get("k")
        assert isinstance(failure, Failure)
        assert failure.code is Code.NOQUORUM
        assert isinstance(await alone.put("other"), Stored)
        assert alone.halted == []
        await alone.driver.stop()

    play(story)


# --- the buffer (section 6.1) ------------------------------------------------------------------------------------------------


class Watch:
    """Stands in for the module ``time`` in the driver: it shows what it is set to."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def monotonic(self) -> float:
        return self.now_s

    def time_ns(self) -> int:
        return int(self.now_s * 1e9)


@pytest.fixture
def watch(monkeypatch):
    """Time that stands still unless the test moves it."""
    found = Watch()
    monkeypatch.setattr(driver_module, "time", found)
    return found


async def buffering(engine: GatedEngine) -> Alone:
    """A node with a bucket "m" of durability ``memory``."""
    alone = Alone(engine)
    await alone.set_durability("m", "memory")
    engine.syncs.clear()
    return alone


async def turns(alone: Alone, count: int = 5) -> None:
    """Let so many ticks pass, each in a turn of its own."""
    for _ in range(count):
        alone.driver.submit(Tick())
        await asyncio.sleep(0)
        await asyncio.sleep(0)


async def until(condition: Callable[[], object]) -> None:
    """What another thread is about to bring about. (The test as a whole has its deadline.)"""
    while not condition():  # noqa: ASYNC110 - a thread sets it
        await asyncio.sleep(0)


def test_the_buffer_is_written_once_it_holds_a_thousand_objects(play, watch):
    """A write in memory is acknowledged and read at once; the engine gets none until there are so many, and then all."""

    async def story() -> None:
        engine = GatedEngine()
        alone = await buffering(engine)
        for i in range(BUFFER_WRITES - 1):
            assert isinstance(await alone.put(f"k{i}", "m"), Stored)
        assert isinstance(await alone.put("k0", "m"), Stored)  # again: no object more
        found = await alone.get("k0", "m")
        assert isinstance(found, Found)
        assert len(found.record.versions) == 1
        await turns(alone)
        assert engine.buffers == []
        assert isinstance(await alone.put("last", "m"), Stored)
        await until(lambda: engine.buffers)
        assert engine.buffers == [BUFFER_WRITES]
        await alone.driver.stop()
        assert engine.syncs == []

    play(story)


def test_the_buffer_is_written_after_a_while(play, watch):
    """Within two ticks of its first write, however few there are; the next buffer has its own time."""

    async def story() -> None:
        engine = GatedEngine()
        alone = await buffering(engine)
        await alone.put("a", "m")
        watch.now_s += BUFFER_S - 0.001
        await alone.put("b", "m")
        await turns(alone)
        assert engine.buffers == []
        watch.now_s += 0.002
        await turns(alone)
        await until(lambda: engine.buffers == [2])
        await alone.put("c", "m")
        watch.now_s += BUFFER_S - 0.001
        await turns(alone)
        assert engine.buffers == [2]
        watch.now_s += 0.002
        await turns(alone)
        await until(lambda: engine.buffers == [2, 1])
        await alone.driver.stop()

    play(story)


@pytest.mark.parametrize(("durability", "syncs", "buffers"), [("sync", [4], []), ("os", [], [4])])
def test_a_write_that_somebody_waits_for_takes_the_buffer_along(play, watch, durability, syncs, buffers):
    """One batch, in the order written, so that the engine never holds a later write without an earlier one."""

    async def story() -> None:
        engine = GatedEngine()
        alone = await buffering(engine)
        await alone.set_durability("0", durability)
        engine.syncs.clear()
        for i in range(3):
            await alone.put(f"k{i}", "m")
        assert isinstance(await alone.put("k"), Stored)
        assert (engine.syncs, engine.buffers) == (syncs, buffers)
        await alone.driver.stop()
        assert (engine.syncs, engine.buffers) == (syncs, buffers)

    play(story)


@pytest.mark.parametrize("clean", [True, False])
def test_a_crash_loses_the_buffer_and_nothing_else_a_stop_loses_nothing(play, watch, clean):
    """After a crash the engine holds what was synced, and what was buffered before that."""

    async def story() -> None:
        engine = GatedEngine()
        alone = await buffering(engine)
        await alone.put("early", "m")
        await alone.put("synced")
        await alone.put("late", "m")
        if not clean:
            alone.driver.halt("crash")
        await alone.driver.stop()
        kept = {split_record_key(at)[1] for at, _ in engine.scan(Space.RECORDS, limit=99)}
        assert kept == {b"early", b"synced"} | ({b"late"} if clean else set())

    play(story)


def test_a_buffer_that_cannot_be_written_halts_the_node(play, watch):
    """Though nobody waits for it: the disk is broken."""

    async def story() -> None:
        engine = GatedEngine()
        alone = await buffering(engine)
        await alone.put("k", "m")
        engine.broken = True
        watch.now_s += 1.0
        await turns(alone)
        await until(lambda: alone.halted)
        assert alone.halted == ["storage failed: the disk is gone"]
        await alone.driver.stop()

    play(story)
