"""The storage engines when the process is killed or the disk fails, and what is peculiar to RocksDB and to LMDB.

A crash is a real child process really killed; an input or output error is a real one, reported by the kernel.
"""

from __future__ import annotations

import itertools
import os
import random
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from cartwheel.core.errors import CorruptData, StorageFailed
from cartwheel.core.storage import Space, Writes
from cartwheel.core.summary import META_SUMMARY
from cartwheel.runtime.engines import open_engine, rocksdb
from cartwheel.runtime.engines.lmdb import LmdbEngine
from cartwheel.runtime.engines.rocksdb import RocksEngine


def batch(records: Writes) -> tuple[Writes, ...]:
    return records, {}, {}


@pytest.fixture(params=["rocksdb", "lmdb"])
def durable(request):
    return request.param


# --- crashes and broken disks ----------------------------------------------------------------------------------------------


def python(script: str, *args: str) -> subprocess.Popen[str]:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", script, *args]
    return subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


KILLED = """
import sys
from pathlib import Path
from cartwheel.runtime.engines import open_engine
engine = open_engine(sys.argv[1], Path(sys.argv[2]))
for i in range(100_000):
    rows = {b"%08d" % i: b"%d" % i * 50, b"last": b"%d" % i}
    engine.apply((rows, {b"last": b"%d" % i}, dict(rows)), sync=sys.argv[3] == "sync")
    print(i, flush=True)
"""


@pytest.mark.parametrize("mode", ["os", "sync"])
def test_kill_loses_nothing_that_was_applied(durable, mode, tmp_path):
    """After SIGKILL every batch whose ``apply`` had returned is there, in all spaces, and none is there in part."""
    path = tmp_path / "engine"
    with python(KILLED, durable, str(path), mode) as child:
        assert child.stdout is not None
        acked = [int(line) for line in itertools.islice(child.stdout, 50)][-1]
        child.send_signal(signal.SIGKILL)
        acked = max([acked, *(int(line) for line in child.stdout if line.endswith("\n"))])
    engine = open_engine(durable, path)
    last = int(engine.get(Space.META, b"last") or -1)
    assert last >= acked
    expected = [*((b"%08d" % i, b"%d" % i * 50) for i in range(last + 1)), (b"last", b"%d" % last)]
    assert engine.scan(Space.RECORDS, limit=1_000_000) == expected
    assert engine.scan(Space.HINTS, limit=1_000_000) == expected
    engine.close()


BROKEN = """
import os, resource, sys
from pathlib import Path
from cartwheel.core.errors import StorageFailed
from cartwheel.core.storage import Space
from cartwheel.runtime.engines import open_engine
name, path, how = sys.argv[1], sys.argv[2], sys.argv[3]
engine = open_engine(name, Path(path))
engine.apply(({b"before": b"1"}, {}, {}), sync=True)
if how == "full":
    # No file may grow beyond 1 MiB from here on: write() fails with EFBIG, as with ENOSPC on a full disk.
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, resource.RLIM_INFINITY))
else:
    # Behind the engine's descriptor put a file on which write() succeeds and fdatasync() does not.
    null = os.open("/dev/null", os.O_RDWR)
    for fd in os.listdir("/proc/self/fd"):
        try:
            target = os.readlink("/proc/self/fd/" + fd)
        except FileNotFoundError:
            continue
        if target.startswith(path) and target.endswith((".log", "data.mdb")):
            os.dup2(null, int(fd))
def attempt(sync):
    try:
        engine.apply(({b"after": b"x" * (4 << 20)}, {}, {}), sync=sync)
    except StorageFailed as error:
        print("failed:", str(error).replace("\\n", " "))
    else:
        print("succeeded")
attempt(True)
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
attempt(True)
attempt(False)
if how == "full":
    print(engine.get(Space.RECORDS, b"before"))
    engine.close()
else:
    os._exit(0)
"""


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="needs Linux's /proc")
@pytest.mark.parametrize("how", ["full", "sync"])
def test_an_io_error_is_storage_failed_for_good(durable, how, tmp_path):
    """A full disk, or a sync that fails, raises ``StorageFailed``; so does every apply after it, though the disk is well again.

    What was applied before is still there: for reads, and after a restart.
    """
    path = tmp_path / "engine"
    with python(BROKEN, durable, str(path), how) as child:
        output = child.communicate()[0].splitlines()
    assert child.returncode == 0
    assert len(output) == (4 if how == "full" else 3)
    assert all(line.startswith(f"failed: {durable} in {path}: ") for line in output[:3]), output
    assert "a write failed" in output[0]
    assert "an earlier write failed" in output[1]
    assert "an earlier write failed" in output[2]
    assert output[3:] == (["b'1'"] if how == "full" else [])
    if how == "full":
        engine = open_engine(durable, path)
        assert engine.scan(Space.RECORDS, limit=9) == [(b"before", b"1")]
        engine.close()


UNREADABLE = """
import os, sys
from pathlib import Path
from cartwheel.core.errors import CorruptData, StorageFailed
from cartwheel.core.storage import Space
from cartwheel.runtime.engines import open_engine
name, path = sys.argv[1], sys.argv[2]
rows = {b"%06d" % i: os.urandom(100) for i in range(20_000)}
engine = open_engine(name, Path(path))
engine.apply((rows, {}, {}), sync=True)
engine.close()
engine = open_engine(name, Path(path))
assert engine.get(Space.RECORDS, b"000000") == rows[b"000000"]
if name == "rocksdb":
    # Behind the tables' descriptors put one that cannot be read: pread() fails, as on a broken disk.
    null = os.open("/dev/null", os.O_WRONLY)
    for fd in os.listdir("/proc/self/fd"):
        try:
            target = os.readlink("/proc/self/fd/" + fd)
        except FileNotFoundError:
            continue
        if target.startswith(path) and target.endswith(".sst"):
            os.dup2(null, int(fd))
else:
    os.truncate(path + "/data.mdb", 4 * 4096)  # a page that cannot be read is a signal here, as on a broken disk
print("broken", flush=True)
for read in (lambda: engine.get(Space.RECORDS, b"015000"), lambda: engine.scan(Space.RECORDS, b"010000", limit=5000)):
    try:
        print("read", read() is not None)
    except (CorruptData, StorageFailed) as error:
        print(type(error).__name__, str(error).replace("\\n", " "))
os._exit(0)
"""


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="needs Linux's /proc")
def test_a_read_error_is_never_an_answer(durable, tmp_path):
    """What the disk cannot read is not taken for a missing key, nor for the end of the data. RocksDB says that the storage has
    failed, on which the node halts. LMDB reads by memory map: there the kernel ends the process."""
    path = tmp_path / "engine"
    with python(UNREADABLE, durable, str(path)) as child:
        output = child.communicate()[0].splitlines()
    if durable == "lmdb":
        assert child.returncode == -signal.SIGBUS
        assert output == ["broken"]
    else:
        assert child.returncode == 0
        assert len(output) == 3
        assert all(
            line.startswith(f"StorageFailed rocksdb in {path}: a read failed: IO error") for line in output[1:]
        ), output


def test_opening_where_no_directory_can_be(durable, tmp_path):
    """A path that runs through a file is refused with the path in the message."""
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageFailed, match=f"{durable} in .*file/engine: cannot be opened"):
        open_engine(durable, tmp_path / "file" / "engine")


# --- rocksdb ---------------------------------------------------------------------------------------------------------------


def test_rocksdb_damaged_block_is_corrupt_data(tmp_path):
    """Bit rot in a table is reported by get and by scan; a scan must not take it for the end of the data."""
    engine = RocksEngine(tmp_path)
    dice = random.Random(5)
    rows: Writes = {b"%04d" % i: dice.randbytes(100) for i in range(1000)}
    engine.apply(batch(rows), sync=True)
    engine.close()
    (table,) = tmp_path.glob("*.sst")
    content = bytearray(table.read_bytes())
    content[len(content) // 2] ^= 0x40
    table.write_bytes(content)
    engine = RocksEngine(tmp_path)
    with pytest.raises(CorruptData, match="block checksum mismatch"):
        engine.scan(Space.RECORDS, limit=2000)
    damaged = 0
    for key, value in rows.items():
        try:
            assert engine.get(Space.RECORDS, key) == value
        except CorruptData:
            damaged += 1
    assert 0 < damaged < 200  # one block of 8 KiB
    engine.close()


def test_rocksdb_damage_to_the_summary_spares_the_other_facts(tmp_path):
    """The saved summary is most of what a node knows of itself, and can be made again; the rest cannot."""
    facts: Writes = {b"hints/n2": b"2", b"history": b"h" * 900, b"stint": b"3"}
    engine = RocksEngine(tmp_path)
    engine.apply([{}, facts | {META_SUMMARY: random.Random(5).randbytes(150_000)}, {}], sync=True)
    engine.close()
    (table,) = tmp_path.glob("*.sst")
    content = bytearray(table.read_bytes())
    content[75_000] ^= 0x40
    table.write_bytes(content)
    engine = RocksEngine(tmp_path)
    with pytest.raises(CorruptData):
        engine.get(Space.META, META_SUMMARY)
    assert {key: engine.get(Space.META, key) for key in facts} == facts
    engine.close()


def test_rocksdb_waits_out_a_stall(tmp_path, monkeypatch):
    """While compaction holds writers back, ``apply`` waits outside the library, where other threads can run; then it writes."""
    engine = RocksEngine(tmp_path)
    records = engine._families[Space.RECORDS]
    records.set_options({"level0_file_num_compaction_trigger": "99", "level0_stop_writes_trigger": "2"})
    waits = []

    def sleep(_seconds):
        waits.append(engine.get(Space.RECORDS, b"k"))
        records.set_options({"level0_stop_writes_trigger": "36"})

    monkeypatch.setattr(rocksdb.time, "sleep", sleep)
    for i in range(3):
        engine.apply(batch({b"k": b"%d" % i}), sync=False)
        records.flush()
    assert waits == [b"1"]
    assert engine.get(Space.RECORDS, b"k") == b"2"
    engine.close()


def test_rocksdb_gives_up_a_stall_without_end(tmp_path, monkeypatch):
    """If no room is made within a minute, the disk counts as broken."""
    engine = RocksEngine(tmp_path)
    records = engine._families[Space.RECORDS]
    records.set_options({"level0_file_num_compaction_trigger": "99", "level0_stop_writes_trigger": "1"})
    engine.apply(batch({b"k": b"0"}), sync=False)
    records.flush()
    seconds = itertools.count()
    monkeypatch.setattr(rocksdb.time, "monotonic", lambda: next(seconds))
    monkeypatch.setattr(rocksdb.time, "sleep", lambda _: None)
    with pytest.raises(StorageFailed, match="stall"):
        engine.apply(batch({b"k": b"1"}), sync=False)
    assert engine.get(Space.RECORDS, b"k") == b"0"
    engine.close()


IDLE = """
import os, sys
from pathlib import Path
from cartwheel.runtime.engines import open_engine
engine = open_engine("rocksdb", Path(sys.argv[1]))
for i in range(0, 100_000, 1000):
    engine.apply(({os.urandom(16) + b"%d" % k: os.urandom(100) for k in range(i, i + 1000)}, {}, {}), sync=False)
print(Path("/proc/self/status").read_text().partition("VmRSS:")[2].split()[0])
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's /proc")
def test_rocksdb_is_modest_in_memory(tmp_path):
    """With 100,000 keys of 100 bytes the process takes less than 100 MB."""
    with python(IDLE, str(tmp_path)) as child:
        resident_kb = int(child.communicate()[0])
    assert resident_kb < 100_000


# --- lmdb ------------------------------------------------------------------------------------------------------------------


def test_lmdb_map_grows_under_readers(tmp_path):
    """A full map is enlarged and the batch tried again, while a thread reads; and it opens again with all of it."""
    engine = LmdbEngine(tmp_path, map_bytes=1 << 20)
    ended = threading.Event()

    def write():
        for i in range(20):
            engine.apply(batch({b"%02d" % i: b"v" * 1_000_000}), sync=False)
        ended.set()

    writer = threading.Thread(target=write)
    writer.start()
    while not ended.is_set():
        engine.get(Space.RECORDS, b"00")
        rows = engine.scan(Space.RECORDS, limit=3)
        assert [k for k, _ in rows] == [b"00", b"01", b"02"][: len(rows)]
    writer.join()
    engine.close()
    engine = LmdbEngine(tmp_path, map_bytes=1 << 20)
    assert [len(v) for _, v in engine.scan(Space.RECORDS, limit=99)] == [1_000_000] * 20
    engine.close()


def test_lmdb_reads_pin_no_pages(tmp_path):
    """The read transaction that a get leaves open does not make the file grow under overwrites of one key."""
    engine = LmdbEngine(tmp_path)
    engine.apply(batch({b"k": b"v" * 500}), sync=False)
    for i in range(200):
        engine.get(Space.RECORDS, b"k")
        engine.apply(batch({b"k": b"%d" % i * 100}), sync=False)
    assert engine.size_bytes() < 30 * 4096
    engine.close()


def test_lmdb_refuses_an_empty_key(tmp_path):
    """LMDB cannot store it, and no key of ours is empty: this is a bug upstream, told as such."""
    engine = LmdbEngine(tmp_path)
    with pytest.raises(StorageFailed, match="BAD_VALSIZE"):
        engine.apply(batch({b"": b"v"}), sync=False)
    engine.close()


def test_lmdb_syncs_pages_before_the_meta_page(tmp_path):
    """Never opened in the mode in which a loss of power can leave a corrupt tree."""
    engine = LmdbEngine(tmp_path)
    flags = engine._env.flags()
    assert flags["sync"]
    assert not flags["writemap"]
    engine.close()
