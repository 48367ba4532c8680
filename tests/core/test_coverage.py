"""SCAN and DBSIZE across nodes: each key exactly once, never a deleted one; counts that survive restarts."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.core.wire import WALL_MS, Wire

from cartwheel.core import coverage, summary, versions
from cartwheel.core.errors import Code, CorruptData
from cartwheel.core.messages import (
    ClientCount,
    ClientScan,
    CountAsk,
    Counted,
    Counts,
    Failure,
    Page,
    PeerDown,
    ReplicaWrite,
    ScanAsk,
    ScanPage,
    Stored,
)
from cartwheel.core.storage import MemoryEngine, record_key, seal

CURSORS = 1 << 64


def scan(wire: Wire, dice: random.Random, *, bucket: str = "0", limit: int = 10) -> list[bytes]:
    """All keys of a bucket, each page from any node."""
    keys: list[bytes] = []
    cursor = 0
    for _ in range(2000):
        page = wire.ask(dice.choice(sorted(wire.nodes)), ClientScan(0, bucket, cursor, limit))
        assert isinstance(page, Page), page
        assert page.cursor == 0 or page.cursor > cursor, "the scan stands still"
        assert len(page.keys) <= coverage.SCAN_BUDGET * max(limit, 1)
        keys += page.keys
        cursor = page.cursor
        if not cursor:
            return keys
    raise AssertionError("the scan does not end")


def fill(wire: Wire, count: int, bucket: str = "0") -> list[bytes]:
    """So many keys, in ring order."""
    keys = [b"key:%d" % i for i in range(count)]
    for key in keys:
        assert isinstance(wire.put(min(wire.nodes), key, b"x", bucket=bucket), Stored)
    return sorted(keys, key=lambda key: record_key(bucket, key))


@given(
    nodes=st.integers(1, 5),
    q=st.sampled_from([1, 8, 64]),
    fates=st.dictionaries(
        st.tuples(st.sampled_from(["0", "1", "cart"]), st.binary(max_size=3)),
        st.sampled_from(["live", "deleted", "expired", "expires later", "revived"]),
        max_size=40,
    ),
    limit=st.integers(0, 12),
    seed=st.integers(0, 1000),
)
@settings(max_examples=80)
def test_a_scan_sees_each_key_exactly_once(nodes, q, fates, limit, seed):
    """While nothing changes; in ring order; each page from any node; no deleted or expired key, and no other bucket's."""
    wire, dice = Wire(list("abcde"[:nodes]), q=q), random.Random(seed)
    wire.set_bucket("a", "1", n=1, r=1, w=1)
    wire.set_bucket("a", "cart", n=5, r=3, w=3)
    expected: dict[str, list[bytes]] = {"0": [], "1": [], "cart": [], "none": []}
    for (bucket, key), fate in fates.items():
        expires_at_ms = {"expired": WALL_MS - 1, "expires later": WALL_MS + 1_000_000}.get(fate, 0)
        wire.put(dice.choice(sorted(wire.nodes)), key, b"x", bucket=bucket, expires_at_ms=expires_at_ms)
        if fate in {"deleted", "revived"}:
            wire.put(dice.choice(sorted(wire.nodes)), key, None, bucket=bucket)
        if fate == "revived":
            wire.put(dice.choice(sorted(wire.nodes)), key, b"y", bucket=bucket)
        if fate in {"live", "revived", "expires later"}:
            expected[bucket].append(key)
    for bucket, keys in expected.items():
        assert scan(wire, dice, bucket=bucket, limit=limit) == sorted(keys, key=lambda key: record_key(bucket, key))
        counted = wire.ask(dice.choice(sorted(wire.nodes)), ClientCount(0, bucket))
        expired = sum(fate == "expired" and b == bucket for (b, _), fate in fates.items())
        assert counted == Counted(len(keys) + expired)  # an expired key counts until it is touched


def test_a_scan_hears_r_replicas():
    """A key or a delete that one replica missed is known from another."""
    wire = Wire(["a", "b", "c"])
    keys = fill(wire, 30)
    for i, key in enumerate(keys):
        stale = "abc"[i % 3]
        via = "bca"[i % 3]
        wire.cut = {(via, stale)}
        if i % 2:
            wire.put(via, key, None)
        else:
            wire.put(via, b"more" + key, b"x")
    wire.heal()
    expected = sorted(keys[::2] + [b"more" + key for key in keys[::2]])
    for limit in (1, 3, 100):
        assert sorted(scan(wire, random.Random(limit), limit=limit)) == expected


def test_a_scan_goes_on_with_a_node_down():
    """R of the owners of each stretch are enough; fewer are not, and the reasons are told."""
    wire = Wire(["a", "b", "c", "d", "e"])
    keys = fill(wire, 60)
    wire.crash("b")
    assert scan(wire, random.Random(1), limit=7) == keys
    wire.crash("d")
    failures = [wire.ask("a", ClientScan(0, "0", i << 58, 10)) for i in range(64)]
    failures = [failure for failure in failures if isinstance(failure, Failure)]
    assert failures
    assert failures[0].code is Code.NOQUORUM
    assert "b: connection lost; d: connection lost" in failures[0].text


@pytest.mark.parametrize("cursor", [-1, CURSORS])
def test_a_cursor_that_cannot_be_is_refused(cursor):
    """It stops no node."""
    assert Wire(["a"]).ask("a", ClientScan(0, "0", cursor)).code is Code.INVALID


def test_a_cursor_anywhere_goes_on_from_there():
    """Cursors need no page before them: RANDOMKEY draws one."""
    wire = Wire(["a", "b", "c"])
    keys = fill(wire, 20)
    cursor = int.from_bytes(record_key("0", keys[7])[:8])
    assert wire.ask("b", ClientScan(0, "0", cursor, 1000)).keys == keys[7:]
    assert wire.ask("b", ClientScan(0, "0", cursor + 1, 1000)).keys == keys[8:]
    assert wire.ask("b", ClientScan(0, "0", CURSORS - 1, 1000)) == Page([], 0)


@pytest.mark.parametrize(("limit", "rows"), [(-5, 2), (0, 2), (3, 6), (10**9, 40)])
def test_a_replica_bounds_its_page(limit, rows):
    """Whatever a peer asks for, it reads at most a fixed multiple of a page."""
    wire = Wire(["a", "b", "c"])
    fill(wire, 40)
    wire.sent.clear()
    wire.inject("b", "a", ScanAsk(1, "0", b"", None, limit))
    (page,) = [m for _, _, m in wire.sent if isinstance(m, ScanPage)]
    assert len(page.rows) == rows
    assert (page.reached is None) == (limit > 40)
    assert all(version.value == b"" for _, record in page.rows for version in record.versions)


def test_keys_are_at_most_a_thousand_a_page():
    """A client cannot make a page of millions."""
    assert coverage.SCAN_LIMIT_MAX == 1000
    wire = Wire(["a"])
    record = versions.encode(versions.put(versions.EMPTY, {}, ("a/x", 1), b"x"))
    at = [record_key("0", b"%d" % i) for i in range(2500)]
    wire.engines["a"].apply([{key: seal(key, record) for key in at}, {}, {}], sync=True)
    page = wire.ask("a", ClientScan(0, "0", 0, 10**9))
    assert len(page.keys) == 1999  # the last row read begins the next page
    assert page.cursor == int.from_bytes(sorted(at)[1999][:8])
    assert len(scan(wire, random.Random(1), limit=10**9)) == 2500


@pytest.mark.parametrize("damaged", ["a", "b"])
def test_damaged_data_at_one_replica_does_not_end_a_scan(monkeypatch, damaged):
    """Be it the node that is asked, or another owner: the two others answer. With two of them damaged the scan fails."""
    wire = Wire(["a", "b", "c"], q=16)
    keys = fill(wire, 20)
    broken = {wire.engines[damaged]}
    real = MemoryEngine.scan

    def scan_damaged(self, space, start=b"", end=None, *, limit):
        if self in broken:
            raise CorruptData("block checksum mismatch")
        return real(self, space, start, end, limit=limit)

    monkeypatch.setattr(MemoryEngine, "scan", scan_damaged)
    page = wire.ask("a", ClientScan(0, "0", 0, 1000))
    assert page == Page(keys, 0)
    broken.add(wire.engines["c"])
    assert wire.ask("a", ClientScan(0, "0", 0, 1000)) is None
    wire.advance(3.0)
    failure = wire.replies[wire.client]
    assert isinstance(failure, Failure)
    assert failure.code is Code.NOQUORUM


def test_a_corrupt_record_is_passed_over():
    """The key is known from the other replicas; alone it is not shown."""
    wire = Wire(["a", "b", "c"])
    keys = fill(wire, 5)
    wire.damage("a", keys[2])
    assert scan(wire, random.Random(1)) == keys
    assert wire.nodes["a"].status().counters["corrupt_records"] >= 1
    wire.damage("b", keys[2])
    wire.damage("c", keys[2])
    assert scan(wire, random.Random(1)) == keys[:2] + keys[3:]


@pytest.mark.parametrize("end", ["deadline", "peer lost"])
def test_a_scan_that_hears_too_few_fails(end):
    """At its deadline, or when its peers are lost."""
    wire = Wire(["a", "b", "c"])
    wire.split("a", "b", "c")
    assert wire.ask("a", ClientScan(0, "0")) is None
    if end == "deadline":
        wire.advance(1.9)
        assert wire.replies.get(wire.client) is None
        wire.advance(0.2)
        reason = "no answer in time"
    else:
        wire.handle("a", PeerDown("b", "reset"))
        assert wire.replies.get(wire.client) is None
        wire.handle("a", PeerDown("c", "reset"))
        reason = "reset"
    text = f"too few replicas answered for a stretch of the ring (b: {reason}; c: {reason})"
    assert wire.replies[wire.client] == Failure(Code.NOQUORUM, text)
    wire.advance(3)


def test_a_scan_does_not_mind_the_loss_of_others():
    """A peer that was not asked is none of its business."""
    wire = Wire(["a", "b", "c", "d"])
    owners = wire.nodes["a"].local.owners(bytes(16), 3)
    (stranger,) = set("abcd") - set(owners)
    wire.split(*"abcd")
    wire.ask(owners[0], ClientScan(0, "0"))
    wire.handle(owners[0], PeerDown(stranger, "reset"))
    wire.handle(owners[0], PeerDown(owners[1], "reset"))
    assert wire.replies.get(wire.client) is None


def test_pages_that_were_not_asked_for_are_ignored():
    """From the wrong node, twice from one, or under an id that means something else."""
    wire = Wire(["a", "b", "c", "d"])
    owners = wire.nodes["a"].local.owners(bytes(16), 3)
    (stranger,) = set("abcd") - set(owners)
    first = owners[0]
    wire.set_bucket(first, "0", r=3)
    wire.split(*"abcd")
    wire.ask(first, ClientScan(0, "0"))
    asked = [m.id for _, _, m in wire.sent if isinstance(m, ScanAsk)][-1]
    empty = ScanPage(asked, [], None)
    wire.inject(stranger, first, empty, ScanPage(1, [], None), Counts(asked, {}))
    wire.inject(owners[1], first, empty, empty)
    assert wire.replies.get(wire.client) is None
    wire.inject(owners[2], first, empty)
    assert isinstance(wire.replies[wire.client], Page)


# --- counts -----------------------------------------------------------------------------------------------------------


def count(wire: Wire, at: str = "a", bucket: str = "0") -> int:
    result = wire.ask(at, ClientCount(0, bucket))
    assert isinstance(result, Counted), result
    return result.keys


def test_counts_follow_writes():
    """A new key adds one, an overwrite and a sibling none, a delete takes it away, and a write after it brings it back."""
    wire = Wire(["a", "b", "c", "d", "e"])
    fill(wire, 20)
    for value, expected in [(b"y", 20), (None, 19), (None, 19), (b"z", 20)]:
        wire.put("b", b"key:3", value)
        assert [count(wire, name) for name in "abcde"] == [expected] * 5
    wire.put("c", b"key:3", b"sibling", context={})
    assert count(wire) == 20
    assert count(wire, bucket="1") == 0


def test_counts_take_the_best_informed_replica():
    """Of each partition; so a node that missed writes does not lower them."""
    wire = Wire(["a", "b", "c"])
    wire.cut = {("a", "b")}
    fill(wire, 12)
    wire.heal()
    assert (count(wire, "a"), count(wire, "b")) == (12, 12)
    wire.crash("a")
    assert count(wire, "b") == 12
    wire.crash("c")
    assert count(wire, "b") == 0  # what b knows, alone


@pytest.mark.parametrize("end", ["deadline", "peer lost"])
def test_a_count_ends_with_who_answered(end):
    """It is an estimate anyway."""
    wire = Wire(["a", "b", "c"])
    fill(wire, 7)
    wire.cut = {("b", "a"), ("c", "a")}
    assert wire.ask("a", ClientCount(0, "0")) is None
    if end == "deadline":
        wire.advance(2.1)
    else:
        wire.handle("a", PeerDown("c", "reset"))
        assert wire.replies.get(wire.client) is None
        wire.handle("a", PeerDown("b", "reset"))
    assert wire.replies[wire.client] == Counted(7)


def test_counts_that_were_not_asked_for_are_ignored():
    """Late ones, second ones, and pages under the same id."""
    wire = Wire(["a", "b", "c"])
    fill(wire, 7)
    wire.cut = {("b", "a"), ("c", "a")}
    wire.ask("a", ClientCount(0, "0"))
    asked = [m.id for _, _, m in wire.sent if isinstance(m, CountAsk)][-1]
    wire.inject("b", "a", Counts(asked, {}), Counts(asked, {0: 1000}), Counts(1, {0: 1000}), ScanPage(asked, [], None))
    wire.handle("a", PeerDown("b", "reset"))  # it has answered already
    assert wire.replies.get(wire.client) is None
    wire.inject("c", "a", Counts(asked, {0: 1}))
    assert wire.replies[wire.client].keys in {7, 8}  # 8 if a held none in partition 0


def test_counts_survive_a_clean_restart():
    """They are saved, so nothing is counted again."""
    wire = Wire(["a"])
    fill(wire, 9)
    wire.put("a", b"key:1", None)
    wire.stop("a")
    wire.restart("a")
    assert count(wire) == 8
    fill(wire, 11)
    assert count(wire) == 11


def test_after_an_unclean_stop_keys_are_counted_again(monkeypatch):
    """A slice a tick, staged writes and all; writes and deletes meanwhile count once, wherever the counting stands."""
    monkeypatch.setattr(summary, "BUILD_ROWS", 10)
    wire = Wire(["a"])
    keys = fill(wire, 100)
    wire.crash("a")
    wire.restart("a")
    assert count(wire) == 0
    expected = set(keys)
    dice = random.Random(3)
    for i in range(30):
        wire.advance(0.05)
        for _ in range(3):
            key = dice.choice(keys)
            if key in expected:
                wire.put("a", key, None)
                expected.discard(key)
            else:
                wire.put("a", key, b"again")
                expected.add(key)
        new = b"new:%d" % i
        wire.put("a", new, b"x")
        expected.add(new)
        if i == 3:
            assert 10 < count(wire) < 60  # under way
    assert count(wire) == len(expected)
    assert scan(wire, dice) == sorted(expected, key=lambda key: record_key("0", key))


def test_counts_cut_short_are_not_saved(monkeypatch):
    """A clean stop while keys are counted again: the next start begins anew."""
    monkeypatch.setattr(summary, "BUILD_ROWS", 10)
    wire = Wire(["a"])
    fill(wire, 100)
    wire.crash("a")
    wire.restart("a")
    wire.advance(0.05)
    wire.stop("a")
    wire.restart("a")
    for _ in range(12):
        wire.advance(0.05)
    assert count(wire) == 100


def test_a_corrupt_record_is_not_counted_again():
    """It shows nothing."""
    wire = Wire(["a"])
    fill(wire, 5)
    wire.damage("a", b"key:2")
    wire.crash("a")
    wire.restart("a")
    wire.advance(0.05)
    assert count(wire) == 4


def test_a_node_knows_its_buckets():
    """Those with live keys here, and only those."""
    wire = Wire(["a"])
    fill(wire, 2)
    fill(wire, 1, "cart")
    fill(wire, 1, "empty")
    wire.put("a", b"key:0", None, bucket="empty")
    assert wire.nodes["a"].buckets_with_keys() == ["0", "cart"]


def test_a_replica_counts_what_others_wrote():
    """Counts follow merges as they follow puts."""
    wire = Wire(["a", "b", "c"])
    fill(wire, 4)
    assert sum(isinstance(m, ReplicaWrite) for _, _, m in wire.sent) == 8
    wire.crash("a")
    assert count(wire, "b") == 4
