"""The contract of the storage engines (``core.storage.Engine``), the same tests for each.

Crashes, broken disks, and what only one engine has: ``test_engine_faults.py``.
"""

from __future__ import annotations

import os
import random
import sys
import tempfile
import threading
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule, run_state_machine_as_test

from cartwheel.core.errors import ConfigError
from cartwheel.core.storage import Engine, MemoryEngine, Space, Store, Writes, record_key
from cartwheel.core.types import Durability
from cartwheel.runtime.engines import ENGINES, open_engine

ALL = (*ENGINES, "core-memory")
DURABLE = ("rocksdb", "lmdb")


def make(name: str, path: Path) -> Engine:
    return MemoryEngine() if name == "core-memory" else open_engine(name, path)


def batch(records: Writes | None = None, meta: Writes | None = None, hints: Writes | None = None) -> tuple[Writes, ...]:
    return records or {}, meta or {}, hints or {}


@pytest.fixture(params=ALL)
def engine(request, tmp_path):
    engine = make(request.param, tmp_path / "engine")
    yield engine
    engine.close()


@pytest.fixture(params=DURABLE)
def durable(request):
    return request.param


# --- one key ---------------------------------------------------------------------------------------------------------------


def test_get_returns_what_was_applied_last(engine):
    """A key has no value, then its value, then its newer value, then none again."""
    assert engine.get(Space.RECORDS, b"k") is None
    engine.apply(batch({b"k": b"1"}), sync=False)
    assert engine.get(Space.RECORDS, b"k") == b"1"
    engine.apply(batch({b"k": b"2"}), sync=True)
    assert engine.get(Space.RECORDS, b"k") == b"2"
    engine.apply(batch({b"k": None}), sync=False)
    assert engine.get(Space.RECORDS, b"k") is None
    assert engine.scan(Space.RECORDS, limit=10) == []


def test_spaces_are_separate(engine):
    """The same key in three spaces is three keys."""
    engine.apply(batch({b"k": b"r"}, {b"k": b"m"}, {b"k": b"h"}), sync=False)
    engine.apply(batch(meta={b"k": None}), sync=False)
    assert [engine.get(space, b"k") for space in Space] == [b"r", None, b"h"]
    assert [len(engine.scan(space, limit=9)) for space in Space] == [1, 0, 1]


def test_deleting_what_is_not_there_is_no_error(engine):
    """A deletion may come twice, or for a key that never was; the batch around it holds."""
    engine.apply(batch({b"a": b"1", b"none": None}, hints={b"none": None}), sync=False)
    engine.apply(batch({b"none": None, b"b": b"2"}), sync=True)
    assert engine.scan(Space.RECORDS, limit=9) == [(b"a", b"1"), (b"b", b"2")]


def test_an_empty_batch_is_no_error(engine):
    """A group may hold nothing; with ``sync`` it still syncs what came before."""
    engine.apply(batch(), sync=False)
    engine.apply(batch(), sync=True)
    assert engine.scan(Space.RECORDS, limit=1) == []


@pytest.mark.parametrize(
    "value", [b"", b"\0", bytes(range(256)), b"\xff" * 1000, random.Random(1).randbytes(1 << 20)], ids=len
)
def test_values_come_back_unchanged(engine, value):
    """Empty, binary, and as long as a value may be."""
    engine.apply(batch({b"k": value}), sync=False)
    assert engine.get(Space.RECORDS, b"k") == value
    assert engine.scan(Space.RECORDS, limit=2) == [(b"k", value)]


@pytest.mark.parametrize("length", [1, 2, 16, 478, 479, 480, 509, 510, 511, 512, 513, 1000, 64 * 1024])
def test_keys_of_any_length(engine, length):
    """One byte to the longest record key, with neighbours on both sides; LMDB's own limit of 511 bytes is not ours."""
    key = record_key("b" * 64, random.Random(length).randbytes(64 * 1024)) if length == 64 * 1024 else b"\xfe" * length
    low, high = key[:-1] + bytes((key[-1] - 1,)) if key[-1] else key[:-1] or b"\0", key + b"\0"
    engine.apply(batch({low: b"low", key: b"", high: b"high"}), sync=False)
    assert [engine.get(Space.RECORDS, k) for k in (low, key, high, key + b"\1")] == [b"low", b"", b"high", None]
    assert engine.scan(Space.RECORDS, key, limit=9) == [(key, b""), (high, b"high")]
    assert engine.scan(Space.RECORDS, key, high, limit=9) == [(key, b"")]
    assert engine.scan(Space.RECORDS, low, key, limit=9) == [(low, b"low")]
    engine.apply(batch({key: None}), sync=False)
    assert [k for k, _ in engine.scan(Space.RECORDS, limit=9)] == [low, high]


# --- ranges ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("start", "end", "limit", "expected"),
    [
        (b"", None, 9, "a ab b c"),
        (b"", None, 2, "a ab"),
        (b"", None, 0, ""),
        (b"", b"", 9, ""),
        (b"a", b"b", 9, "a ab"),  # the start is in, the end is not
        (b"a\0", b"b\0", 9, "ab b"),
        (b"ab", None, 1, "ab"),
        (b"b", b"b", 9, ""),
        (b"c", b"a", 9, ""),
        (b"c", b"\xff" * 600, 9, "c"),
        (b"cc", None, 9, ""),
        (b"", b"a", 9, ""),
        (b"", b"zz", 4, "a ab b c"),
    ],
)
def test_scan_bounds(engine, start, end, limit, expected):
    """Of a, ab, b, c: what lies in start <= key < end, at most ``limit``."""
    engine.apply(batch({k: b"v" + k for k in (b"c", b"a", b"b", b"ab")}), sync=False)
    rows = engine.scan(Space.RECORDS, start, end, limit=limit)
    assert rows == [(k.encode(), b"v" + k.encode()) for k in expected.split()]


def test_scan_in_pages_meets_every_key_once(engine):
    """Go on from the last key and a zero byte: in order, nothing twice, nothing left out, deletions and long keys among them."""
    dice = random.Random(7)
    keys = {dice.randbytes(dice.choice((1, 16, 40))) for _ in range(400)}
    keys |= {b"same head" * 60 + dice.randbytes(dice.randrange(300)) for _ in range(50)}
    engine.apply(batch(dict.fromkeys(keys, b"v")), sync=False)
    gone = set(sorted(keys)[::3])
    engine.apply(batch(dict.fromkeys(gone)), sync=False)
    seen: list[bytes] = []
    while rows := engine.scan(Space.RECORDS, seen[-1] + b"\0" if seen else b"", limit=7):
        seen += [k for k, _ in rows]
    assert seen == sorted(keys - gone)


def test_size_grows_with_the_data(engine):
    """``size_bytes`` follows what is stored, roughly: overwriting the same value again and again is not growth."""
    before = engine.size_bytes()
    dice = random.Random(3)
    for i in range(40):
        engine.apply(batch({b"%d" % i: dice.randbytes(100_000)}), sync=False)
    grown = engine.size_bytes()
    assert before + 3_900_000 < grown < before + 12_000_000


def test_memory_size_is_exact():
    """The memory engine's count of bytes survives overwriting and deleting."""
    engine = MemoryEngine()
    engine.apply(batch({b"a": b"123", b"b": b""}, {b"a": b"1"}), sync=False)
    engine.apply(batch({b"a": b"1", b"c": None}, {b"a": None}), sync=False)
    assert engine.size_bytes() == len(b"a1") + len(b"b")


# --- against the model -----------------------------------------------------------------------------------------------------

LONG = b"k" * 479
"""As much of a long key as LMDB stores in the open: keys that agree in it are the hard case for order."""
heads = st.sampled_from([b"", b"a", b"b" * 16, LONG[:-1], LONG, LONG + b"k", LONG * 3])
keys = st.builds(bytes.__add__, heads, st.binary(max_size=3)).filter(bool)
values = st.one_of(st.none(), st.binary(max_size=5), st.just(b"v" * 5000))
writes = st.dictionaries(keys, values, max_size=6)
spaces = st.sampled_from(Space)
bounds = st.one_of(st.just(b""), keys)
limits = st.integers(0, 8)
MACHINE = settings(max_examples=25, stateful_step_count=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def model_scan(model: dict[bytes, bytes], start: bytes, end: bytes | None, limit: int) -> list[tuple[bytes, bytes]]:
    return [(k, model[k]) for k in sorted(model) if k >= start and (end is None or k < end)][:limit]


class EngineMachine(RuleBasedStateMachine):
    """An engine beside a dict, under random batches, reads, and reopening."""

    name = ""

    @initialize()
    def start(self):
        self.folder = tempfile.TemporaryDirectory()
        self.engine = make(self.name, Path(self.folder.name))
        self.models: list[dict[bytes, bytes]] = [{} for _ in Space]

    @rule(records=writes, meta=writes, hints=writes, sync=st.booleans())
    def apply(self, records, meta, hints, sync):
        self.engine.apply((records, meta, hints), sync=sync)
        for model, changes in zip(self.models, (records, meta, hints), strict=True):
            model.update(changes)
            for key in [k for k, v in model.items() if v is None]:
                del model[key]

    @rule(space=spaces, key=keys)
    def get(self, space, key):
        assert self.engine.get(space, key) == self.models[space].get(key)

    @rule(space=spaces, start=bounds, end=st.none() | bounds, limit=limits)
    def scan(self, space, start, end, limit):
        rows = self.engine.scan(space, start, end, limit=limit)
        assert rows == model_scan(self.models[space], start, end, limit)

    @precondition(lambda self: self.name in DURABLE)
    @rule()
    def reopen(self):
        self.engine.close()
        self.engine = make(self.name, Path(self.folder.name))

    def teardown(self):
        if hasattr(self, "engine"):
            for space, model in zip(Space, self.models, strict=True):
                assert self.engine.scan(space, limit=10_000) == model_scan(model, b"", None, 10_000)
            self.engine.close()
            self.folder.cleanup()


class StoreMachine(RuleBasedStateMachine):
    """A ``Store`` beside a dict of what a reader must see, whether staged, in flight or in the engine."""

    name = ""

    @initialize()
    def start(self):
        self.folder = tempfile.TemporaryDirectory()
        self.engine = make(self.name, Path(self.folder.name))
        self.store = Store(self.engine)
        self.models: list[dict[bytes, bytes]] = [{} for _ in Space]
        self.flying = None
        self.open = Durability.MEMORY

    @rule(space=spaces, key=keys, value=values, durability=st.sampled_from(Durability))
    def stage(self, space, key, value, durability):
        self.store.stage(space, key, value, durability)
        self.open = max(self.open, durability)
        self.models[space].pop(key, None)
        if value is not None:
            self.models[space][key] = value
        assert self.store.staged
        assert self.store.durability == self.open
        in_flight = self.flying is not None and key in self.flying.spaces[space]
        assert self.store.pending(space, key) == max(self.open, self.flying.durability if in_flight else self.open)

    @precondition(lambda self: self.flying is None)
    @rule()
    def take(self):
        staged = self.store.staged
        self.flying = self.store.take()
        assert any(self.flying.spaces) == staged
        assert self.flying.durability == self.open
        assert not self.store.staged
        self.open = Durability.MEMORY
        for space, changes in zip(Space, self.flying.spaces, strict=True):
            assert all(self.store.pending(space, key) == self.flying.durability for key in changes)

    @precondition(lambda self: self.flying is not None)
    @rule()
    def commit(self):
        self.engine.apply(self.flying.spaces, sync=self.flying.durability == Durability.SYNC)
        self.store.committed()
        self.flying = None

    @rule(space=spaces, key=keys)
    def get(self, space, key):
        assert self.store.get(space, key) == self.models[space].get(key)

    @rule(space=spaces, start=bounds, end=st.none() | bounds, limit=limits)
    def scan(self, space, start, end, limit):
        rows = self.store.scan(space, start, end, limit=limit)
        assert rows == model_scan(self.models[space], start, end, limit)

    def teardown(self):
        if hasattr(self, "engine"):
            self.engine.close()
            self.folder.cleanup()


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("machine", [EngineMachine, StoreMachine])
def test_like_the_model(machine, name):
    """No order of batches, reads and restarts tells an engine, or the store above it, from a dict."""
    run_state_machine_as_test(type(machine.__name__, (machine,), {"name": name}), settings=MACHINE)


def test_what_is_no_longer_staged_is_not_pending(engine):
    """Once a group is committed, its keys wait for nothing, and its values are in the engine."""
    store = Store(engine)
    store.stage(Space.META, b"k", b"v", Durability.SYNC)
    group = store.take()
    engine.apply(group.spaces, sync=True)
    store.committed()
    assert store.pending(Space.META, b"k") == Durability.MEMORY
    assert store.get(Space.META, b"k") == engine.get(Space.META, b"k") == b"v"


# --- two threads -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def switch_interval():
    """Set how long a thread may keep the GIL; restored at the end."""
    before = sys.getswitchinterval()
    yield sys.setswitchinterval
    sys.setswitchinterval(before)


@pytest.mark.parametrize("name", ENGINES)
def test_reads_beside_a_writer_see_whole_batches(name, tmp_path, switch_interval):
    """While a thread applies, each scan sees one moment: all keys of a batch or none, never an older one than before."""
    engine = open_engine(name, tmp_path / "engine")
    rounds, width = (60 if name == "lmdb" else 600), 30
    switch_interval(1e-6)  # as often as can be, so that a gap in the locking shows
    ended = threading.Event()
    applied = 0

    def write():
        nonlocal applied
        for i in range(1, rounds + 1):
            number = b"%06d" % i
            rows: Writes = {b"key%02d" % j: number for j in range(width)}
            rows |= {b"new" + number: number, b"new%06d" % (i - 1): None}
            engine.apply(batch(rows, {b"at": number}), sync=i % 10 == 0)
            applied = i
        ended.set()

    writer = threading.Thread(target=write)
    writer.start()
    last = b""
    while not ended.is_set():
        floor = b"%06d" % applied
        rows = engine.scan(Space.RECORDS, limit=1000)
        numbers = {value for _, value in rows}
        assert len(numbers) <= 1
        if rows:
            number = numbers.pop()
            assert number >= max(floor, last)
            assert [k for k, _ in rows] == [*(b"key%02d" % j for j in range(width)), b"new" + number]
            last = number
            assert (engine.get(Space.META, b"at") or b"") >= number
    writer.join()
    assert engine.get(Space.META, b"at") == b"%06d" % rounds
    engine.close()


def test_other_threads_run_during_a_sync(durable, tmp_path, switch_interval):
    """``apply(sync=True)`` gives up the GIL: else every fdatasync would stop the event loop (as rocksdict's own does)."""
    engine = open_engine(durable, tmp_path / "engine")
    switch_interval(1000)  # the other thread runs only if this one gives the GIL up itself
    steps, ended = 0, threading.Event()
    begun = threading.Lock()
    begun.acquire()

    def other():
        nonlocal steps
        begun.release()
        while not ended.is_set():
            steps += 1
            os.sched_yield()  # gives the GIL up

    thread = threading.Thread(target=other)
    try:
        thread.start()
        begun.acquire()
        value, before = os.urandom(1 << 20), steps
        for i in range(200):
            engine.apply(batch({b"%d" % i: value}), sync=True)
            if steps > before:
                break
        assert steps > before
    finally:
        ended.set()
        thread.join()
    engine.close()


# --- opening again ---------------------------------------------------------------------------------------------------------


def test_data_are_there_after_close_and_open(durable, tmp_path):
    """An orderly restart keeps everything, long keys too."""
    rows = {b"a": b"1", b"long" * 300: b"2", b"z": b""}
    engine = open_engine(durable, tmp_path / "engine")
    engine.apply(batch(dict(rows), {b"m": b"3"}), sync=False)
    engine.close()
    engine = open_engine(durable, tmp_path / "engine")
    assert dict(engine.scan(Space.RECORDS, limit=9)) == rows
    assert engine.get(Space.META, b"m") == b"3"
    engine.close()


def test_unknown_engine(tmp_path):
    """The message lists the choices."""
    with pytest.raises(ConfigError, match=r"'sqlite'.*rocksdb, lmdb, memory"):
        open_engine("sqlite", tmp_path)
