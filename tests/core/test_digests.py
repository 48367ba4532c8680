"""What a node tells of its own records, for whoever compares all replicas."""

import pytest
from tests.core.wire import Wire

from cartwheel.core import digests
from cartwheel.core.errors import Code, CorruptData
from cartwheel.core.messages import ClientDigests, Digests, Failure
from cartwheel.core.storage import MemoryEngine, record_key, split_record_key

Q = 4


@pytest.fixture
def wire():
    return Wire(["a", "b", "c"], q=Q)


def page(wire, node, partition, start=b""):
    return wire.ask(node, ClientDigests(0, partition, start))


def pages(wire, node):
    """All that a node tells of all partitions."""
    rows = []
    for partition in range(Q):
        start = b""
        while start is not None:
            told = page(wire, node, partition, start)
            assert all(row.record_key >= start for row in told.rows)
            rows += told.rows
            start = told.reached
    return rows


def test_every_record_is_told_once_and_equal_records_alike(wire, monkeypatch):
    """In pages of any size, in ring order, the same from each owner."""
    keys = {b"%d" % i for i in range(300)}
    for key in keys:
        wire.put("a", key, b"v")
    told = pages(wire, "a")
    assert [row.record_key for row in told] == sorted(record_key("0", key) for key in keys)
    assert all(row.live and len(row.checksum) == 8 for row in told)
    assert pages(wire, "b") == told
    monkeypatch.setattr(digests, "STEP_ROWS", 3)
    monkeypatch.setattr(digests, "ROWS_MAX", 10)
    assert pages(wire, "b") == told
    monkeypatch.setattr(digests, "BYTES_MAX", 1)
    assert pages(wire, "c") == told


def test_a_different_value_has_another_checksum_and_a_deleted_key_shows_as_such(wire):
    """So a comparison sees both."""
    wire.put("a", b"k", b"1")
    (before,) = pages(wire, "a")
    wire.put("a", b"k", b"2")
    (after,) = pages(wire, "a")
    assert after.checksum != before.checksum
    wire.put("a", b"k", None)
    (deleted,) = pages(wire, "a")
    assert (after.live, deleted.live) == (True, False)


def test_a_page_names_the_owners(wire):
    """The preference list, and for each bucket on the page how many of it own a key."""
    wire.put("a", b"k", b"v", bucket="many")
    wire.set_bucket("a", "few", n=1, r=1, w=1)
    wire.put("a", b"k", b"v", bucket="few")
    ring = wire.nodes["b"].local.ring
    for bucket, n in (("many", 3), ("few", 1)):
        partition = ring.partition_of(record_key(bucket, b"k"))
        told = page(wire, ring.preference(partition)[0], partition)
        assert told.preference == list(ring.preference(partition))
        assert told.owners[bucket] == n
        assert told.epoch == wire.nodes["b"].epoch


@pytest.mark.parametrize("remembered", [True, False])
def test_a_corrupt_record_is_told_as_corrupt(wire, remembered):
    """Also when a good copy is still in memory, from which it is mended."""
    wire.put("a", b"k", b"v")
    at = record_key("0", b"k")
    sealed = wire.sealed("a", b"k")
    wire.engines["a"].apply(({at: sealed[:-1] + bytes([sealed[-1] ^ 1])}, {}, {}), sync=True)
    if not remembered:
        wire.nodes["a"].local.hot.clear()
    told = page(wire, "a", wire.nodes["a"].local.ring.partition_of(at))
    assert [(split_record_key(row.record_key)[1], row.checksum) for row in told.rows] == [(b"k", None)]


def test_a_damaged_engine_is_told_as_unreadable(wire, monkeypatch):
    """The page ends, and says why."""
    wire.put("a", b"k", b"v")
    at = wire.nodes["a"].local.ring.partition_of(record_key("0", b"k"))

    def scan(self, space, start=b"", end=None, *, limit):
        raise CorruptData("block checksum mismatch")

    monkeypatch.setattr(MemoryEngine, "scan", scan)
    told = page(wire, "a", at)
    assert isinstance(told, Digests)
    assert (told.rows, told.reached, told.unreadable) == ([], None, "block checksum mismatch")


@pytest.mark.parametrize("partition", [-1, Q, 1 << 70])
def test_there_is_no_such_partition(wire, partition):
    """It is refused."""
    told = page(wire, "a", partition)
    assert isinstance(told, Failure)
    assert told.code is Code.INVALID


def test_a_cursor_of_another_partition_begins_at_this_one(wire):
    """A page never leaves its partition."""
    for i in range(50):
        wire.put("a", b"%d" % i, b"v")
    assert page(wire, "a", 2, b"\x00" * 16) == page(wire, "a", 2)
    assert page(wire, "a", 0, b"\xff" * 16).rows == []
