"""A RocksDB with damaged blocks keeps what can be read, at its next start; nothing else changes, whenever the power fails."""

from __future__ import annotations

import random
import shutil
from pathlib import Path

import pytest

from cartwheel.core.errors import CorruptData, StorageFailed
from cartwheel.core.storage import Space, Writes
from cartwheel.runtime.engines import salvage
from cartwheel.runtime.engines.rocksdb import RocksEngine

FACTS: Writes = {b"\x00spare": b"x", b"history": b"h" * 500, b"stint": b"s"}


def filled(path: Path, rows: int = 3000) -> tuple[Writes, Writes]:
    """A database with records and hints in several blocks; closed."""
    dice = random.Random(7)
    records: Writes = {dice.randbytes(16) + b"\x01b%d" % i: dice.randbytes(100) for i in range(rows)}
    hints: Writes = {b"\x02n2" + key: value for key, value in list(records.items())[:500]}
    engine = RocksEngine(path)
    engine.apply([records, FACTS, hints], sync=True)
    engine.close()
    return records, hints


def table_of(path: Path, key: bytes) -> Path:
    """The file that holds this key: tables are named by nobody."""
    (found,) = [table for table in path.glob("*.sst") if key in table.read_bytes()]
    return found


def damage(table: Path, *parts: float) -> None:
    """Flip a bit at each of these parts of a file."""
    content = bytearray(table.read_bytes())
    for part in parts:
        content[int(len(content) * part)] ^= 0x10
    table.write_bytes(content)


def tables(path: Path) -> list[Path]:
    """Largest first: records, hints, facts."""
    return sorted(path.glob("*.sst"), key=lambda table: -table.stat().st_size)


def everything(engine: RocksEngine, space: Space) -> dict[bytes, bytes]:
    return dict(engine.scan(space, limit=1 << 30))


@pytest.mark.parametrize("parts", [(0.3,), (0.001,), (0.1, 0.11, 0.5, 0.7)])
def test_what_can_be_read_is_kept(tmp_path, parts):
    """All but the rows of the damaged blocks, of records and of hints, and all facts but the spare ones."""
    path = tmp_path / "engine"
    records, hints = filled(path)
    for table in tables(path)[:2]:
        damage(table, *parts)
    engine = RocksEngine(path)
    with pytest.raises(CorruptData):
        engine.scan(Space.RECORDS, limit=1 << 30)
    assert salvage.is_marked(path)
    engine.apply([{b"\xff" * 16 + b"\x01bnew": b"new"}, {}, {}], sync=True)
    engine.close()
    engine = RocksEngine(path)
    assert not salvage.is_marked(path)
    assert sorted(tmp_path.iterdir()) == [path, tmp_path / "engine.unreadable"]
    kept = everything(engine, Space.RECORDS)
    assert kept.pop(b"\xff" * 16 + b"\x01bnew") == b"new"
    assert kept.items() <= records.items()
    assert 0 < len(records) - len(kept) <= 100 * len(parts), "a block of 8 KiB each"
    assert len(hints) > len(everything(engine, Space.HINTS)) > 0
    assert everything(engine, Space.HINTS).items() <= hints.items()
    assert everything(engine, Space.META) == {key: value for key, value in FACTS.items() if key >= b"\x02"}
    engine.close()


def test_damage_at_the_end(tmp_path):
    """The last block cannot be read, and there is nothing behind it."""
    path = tmp_path / "engine"
    records, _ = filled(path)
    table, copy = tables(path)[0], tmp_path / "copy"
    size = table.stat().st_size
    for at in range(size - 4000, size - 30_000, -500):  # behind the last block: filter, index, properties
        shutil.copytree(path, copy)
        damage(copy / table.name, at / size)
        try:
            engine = RocksEngine(copy)
            engine.get(Space.RECORDS, max(records))
            engine.close()
        except StorageFailed:
            pass
        except CorruptData:
            engine.close()
            break
        shutil.rmtree(copy)
        (tmp_path / "copy.damaged").unlink(missing_ok=True)
    engine = RocksEngine(copy)
    kept = everything(engine, Space.RECORDS)
    assert 2800 < len(kept) < 3000
    assert kept.keys() == set(sorted(records)[: len(kept)])
    engine.close()


def test_damage_to_what_may_be_lost(tmp_path):
    """It is most of what lies among the facts."""
    path = tmp_path / "engine"
    engine = RocksEngine(path)
    engine.apply([{}, FACTS | {b"\x00summary": random.Random(5).randbytes(150_000)}, {}], sync=True)
    engine.close()
    damage(tables(path)[0], 0.5)
    salvage.mark(path)
    engine = RocksEngine(path)
    assert everything(engine, Space.META) == {key: value for key, value in FACTS.items() if key >= b"\x02"}
    engine.close()


def test_a_node_that_has_lost_a_fact_is_refused(tmp_path):
    """It says what to do; and again the next time."""
    path = tmp_path / "engine"
    filled(path)
    damage(table_of(path, b"history"), 0.05)
    salvage.mark(path)
    for _ in range(2):
        with pytest.raises(StorageFailed, match="start the node on an empty directory"):
            RocksEngine(path)
    assert salvage.is_marked(path)


def test_without_damage_all_is_kept(tmp_path):
    """Whoever marked it may have met a passing fault."""
    path = tmp_path / "engine"
    records, hints = filled(path)
    salvage.mark(path)
    engine = RocksEngine(path)
    assert everything(engine, Space.RECORDS) == records
    assert everything(engine, Space.HINTS) == hints
    assert sorted(tmp_path.iterdir()) == [path]
    engine.close()


@pytest.mark.parametrize("step", ["while copying", "before the swap", "between the renames", "before the end"])
def test_a_power_cut_on_the_way(tmp_path, step):
    """The next start salvages again, or finishes the swap."""
    path = tmp_path / "engine"
    records, _ = filled(path)
    damage(tables(path)[0], 0.3)
    salvage.mark(path)
    new, old, copy = tmp_path / "engine.salvaged", tmp_path / "engine.old", tmp_path / "copy"
    if step == "while copying":
        new.mkdir()
        (new / "CURRENT").write_bytes(b"half of it")
    else:
        shutil.copytree(path, copy)
        RocksEngine(path).close()  # salvaged
        path.rename(new)
        copy.rename(path if step == "before the swap" else old)
        salvage.mark(path)
        if step == "between the renames":
            path.mkdir()  # as whoever opens the directory does
        elif step == "before the end":
            new.rename(path)
    engine = RocksEngine(path)
    kept = everything(engine, Space.RECORDS)
    assert kept.items() < records.items()
    assert len(kept) > 2900
    assert sorted(tmp_path.iterdir()) == [path, tmp_path / "engine.unreadable"]
    engine.close()


def test_a_database_that_cannot_be_opened_says_what_to_do(tmp_path):
    """Its list of files is damaged."""
    path = tmp_path / "engine"
    filled(path)
    (manifest,) = path.glob("MANIFEST-*")
    damage(manifest, 0.5)
    with pytest.raises(StorageFailed, match="start the node on an empty directory"):
        RocksEngine(path)


def test_a_compaction_that_meets_damage_stops_writes_and_marks(tmp_path, monkeypatch):
    """The node halts, and its next start salvages."""
    path = tmp_path / "engine"
    filled(path)
    engine = RocksEngine(path)
    monkeypatch.setattr(engine, "_write", lambda spaces: (_ for _ in ()).throw(Exception("Corruption: block checksum")))
    with pytest.raises(StorageFailed):
        engine.apply([{b"k": b"v"}, {}, {}], sync=True)
    assert salvage.is_marked(path)


def test_the_end_of_damage_is_found_exactly():
    """Whatever its length."""
    for length in (1, 2, 3, 7, 64, 1000, 12345):
        assert salvage._first_good(lambda number, end=100 + length: number >= end, 100, 1 << 64) == 100 + length
    assert salvage._first_good(lambda number: False, 100, 1000) is None
