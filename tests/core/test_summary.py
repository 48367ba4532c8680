"""Counts and hash trees: kept by writes they are what a look at all records says, through restarts, damage and changes of n."""

from __future__ import annotations

import random
from collections import Counter
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.core.wire import Wire

from cartwheel.core import summary as module
from cartwheel.core import versions
from cartwheel.core.errors import CorruptData
from cartwheel.core.merkle import HashTree, record_hash
from cartwheel.core.storage import MemoryEngine, Space, record_key, split_record_key
from cartwheel.core.summary import META_SUMMARY, Summary, shows

TICK_S = 0.05


def summary(wire: Wire, name: str = "a") -> Summary:
    """A node's summary."""
    return wire.nodes[name]._summary


def quiet(names: str = "a", **config: Any) -> Wire:
    """Nodes that do not compare what they hold."""
    return Wire(list(names), q=8, ae_interval_s=0.0, scrub_days=0.0, **config)


def build(wire: Wire) -> None:
    """Let all trees be built."""
    while any(node._summary.unready for node in wire.nodes.values()):
        wire.advance(TICK_S)


def check(wire: Wire, name: str = "a") -> None:
    """Compare a node's summary with all that it holds."""
    local, kept = wire.nodes[name].local, summary(wire, name)
    trees = {n: HashTree(8) for n in kept.trees}
    counts: dict[str, Counter[int]] = {}
    for at, sealed in wire.stores[name].scan(Space.RECORDS, limit=1 << 30):
        bucket = split_record_key(at)[0]
        trees[local.props(bucket).n].note(at, record_hash(sealed)[0])
        if shows(versions.decode(sealed[8:])):
            counts.setdefault(bucket, Counter())[at[0] >> 5] += 1
    assert kept.unready == 0
    assert {n: tree.leaves for n, tree in kept.trees.items()} == {n: tree.leaves for n, tree in trees.items()}
    assert {bucket: kept.keys(bucket) for bucket in kept.buckets()} == counts


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.one_of(
            st.tuples(
                st.sampled_from(["0", "cart", "five"]),
                st.binary(max_size=1),
                st.one_of(st.none(), st.sampled_from([b"x", b"y" * 9000])),
                st.sampled_from([None, {}]),
            ),
            st.sampled_from(["crash", "stop", "n=2", "n=5", "tick"]),
        ),
        max_size=40,
    )
)
def test_kept_by_writes_is_built_from_scratch(steps):
    """Puts, siblings and deletes in buckets of several n; clean and unclean restarts; changes of n, with and without records."""
    wire = quiet("abc")
    build(wire)
    for step in steps:
        match step:
            case "crash" | "stop":
                getattr(wire, step)("b")
                wire.restart("b")
            case "tick":
                wire.advance(TICK_S)
            case "n=2" | "n=5":
                wire.set_bucket("a", "five", n=step[2:], r=1, w=1)
            case bucket, key, value, context:
                wire.put("b", key, value, bucket=bucket, context=context)
    build(wire)
    for name in "abc":
        check(wire, name)


def test_writes_while_it_is_built(monkeypatch):
    """Below the cursor they are noted, above it they are read later, staged or not."""
    monkeypatch.setattr(module, "BUILD_ROWS", 7)
    wire = quiet("a")
    for i in range(100):
        wire.put("a", b"%d" % i, b"x")
    wire.crash("a")
    wire.restart("a")
    dice = random.Random(1)
    for i in range(40):
        assert i >= 14 or summary(wire).unready
        for _ in range(3):
            wire.put("a", b"%d" % dice.randrange(130), dice.choice([None, b"y", b"z"]))
        wire.advance(TICK_S)
    check(wire)


def test_what_is_in_doubt_while_it_is_built_is_begun_again(monkeypatch):
    """From its first row."""
    monkeypatch.setattr(module, "BUILD_ROWS", 7)
    wire = quiet("a")
    for i in range(100):
        wire.put("a", b"%d" % i, b"x")
    wire.crash("a")
    wire.restart("a")
    for _ in range(5):
        wire.advance(TICK_S)
        summary(wire).rebuild(summary(wire)._current)
    build(wire)
    check(wire)


def test_building_waits_for_its_budget():
    """It is background work."""
    wire = quiet("a")
    wire.put("a", b"k", b"v")
    wire.crash("a")
    wire.restart("a")
    wire.nodes["a"].local.budget = lambda cost: False
    wire.advance(TICK_S)
    assert summary(wire).unready == 8
    wire.nodes["a"].local.budget = lambda cost: True
    wire.advance(TICK_S)
    check(wire)


def test_a_clean_stop_saves_it_and_the_start_takes_it_away():
    """So an unclean stop finds nothing old; and a clean one saves nothing incomplete."""
    wire = quiet("a")
    build(wire)
    wire.put("a", b"k", b"v")
    wire.stop("a")
    assert wire.engines["a"].get(Space.META, META_SUMMARY) is not None
    wire.restart("a")
    check(wire)
    assert wire.engines["a"].get(Space.META, META_SUMMARY) is None
    wire.crash("a")
    wire.restart("a")
    assert summary(wire).unready == 8
    wire.stop("a")
    assert wire.engines["a"].get(Space.META, META_SUMMARY) is None


@pytest.mark.parametrize("damage", [b"", b"\xc1", b"short tree", b"other n"])
def test_what_was_saved_otherwise_is_built_again(damage):
    """By another version, for another ring, or damaged."""
    wire = quiet("a")
    build(wire)
    wire.put("a", b"k", b"v")
    wire.stop("a")
    good = module.msgspec.msgpack.decode(wire.engines["a"].get(Space.META, META_SUMMARY) or b"", type=module.Saved)
    if damage == b"short tree":
        damage = module.msgspec.msgpack.encode(module.Saved(good.n, good.counts, {3: b"12345678"}, 0))
    elif damage == b"other n":
        damage = module.msgspec.msgpack.encode(module.Saved({"0": 5}, good.counts, good.trees, 0))
    wire.engines["a"].apply([{}, {META_SUMMARY: damage}, {}], sync=True)
    wire.restart("a")
    assert summary(wire).unready == 8
    build(wire)
    check(wire)


class Unreadable(MemoryEngine):
    """A disk that cannot read what was saved of the summary."""

    def get(self, space, key):
        if space is Space.META and key == META_SUMMARY and super().get(space, key) is not None:
            raise CorruptData("damaged block")
        return super().get(space, key)


def test_what_was_saved_and_cannot_be_read_is_built_again():
    """It used to keep the node from starting."""
    wire = quiet("a")
    wire.crash("a")
    wire.restart("a", disk=Unreadable())
    build(wire)
    wire.put("a", b"k", b"v")
    wire.stop("a")
    wire.restart("a")
    assert wire.nodes["a"].local.counters["summaries_unreadable"] == 1
    assert summary(wire).unready == 8
    build(wire)
    check(wire)


def test_a_new_bucket_rebuilds_nothing():
    """It has no records; once it has, a change of its n moves them to another tree."""
    wire = quiet("abc")
    build(wire)
    wire.put("a", b"k", b"v")
    wire.set_bucket("a", "new", n=5)
    assert summary(wire).unready == 0
    wire.put("a", b"k", None, bucket="new")
    check(wire)
    wire.set_bucket("a", "new", n=4)
    assert summary(wire).unready == 8
    build(wire)
    assert sorted(summary(wire).trees) == [3, 4]
    check(wire)


def test_the_partition_of_a_corrupt_record_is_built_again():
    """The record has no part in it, until it is written again."""
    wire = quiet("a")
    build(wire)
    for i in range(50):
        wire.put("a", b"%d" % i, b"x")
    before = summary(wire).trees[3].leaves[:]
    wire.damage("a", b"7")
    at = record_key("0", b"7")
    wire.nodes["a"].local.read_record(at)
    assert not summary(wire).ready(at[0] >> 5)
    assert summary(wire).unready == 1
    build(wire)
    leaf = summary(wire).trees[3].leaf_of(at)
    assert [i for i, (a, b) in enumerate(zip(before, summary(wire).trees[3].leaves, strict=True)) if a != b] == [leaf]
    assert sum(summary(wire).keys("0").values()) == 49
    wire.put("a", b"7", b"again")
    check(wire)


def test_a_corrupt_record_with_a_good_copy_in_memory_is_written_again():
    """Whoever scans over it finds the copy."""
    wire = quiet("a")
    build(wire)
    wire.put("a", b"k", b"v")
    good = wire.sealed("a", b"k")
    hot = wire.nodes["a"].local.hot
    entry = hot.get(record_key("0", b"k"))
    wire.damage("a", b"k")
    assert entry is not None
    hot.put(record_key("0", b"k"), *entry)
    summary(wire).rebuild(record_key("0", b"k")[0] >> 5)
    build(wire)
    assert wire.sealed("a", b"k") == good
    assert wire.nodes["a"].status().counters["corrupt_records_rewritten"] == 1
    check(wire)


class Damaged(MemoryEngine):
    """A disk with an unreadable spot: scans over it fail."""

    spot = b""

    def scan(self, space, start=b"", end=None, *, limit):
        rows = super().scan(space, start, end, limit=limit)
        if space is Space.RECORDS and any(key == self.spot for key, _ in rows):
            raise CorruptData("block")
        return rows


def test_a_leaf_that_cannot_be_read_stays_incomplete():
    """Everything else is built."""
    wire = quiet("a")
    disk = Damaged()
    wire.stop("a")
    wire.restart("a", disk=disk)
    build(wire)
    for i in range(200):
        wire.put("a", b"%d" % i, b"x")
    good = summary(wire).trees[3].leaves[:]
    disk.spot = record_key("0", b"7")
    wire.crash("a")
    wire.restart("a", disk=disk)
    build(wire)
    leaf = summary(wire).trees[3].leaf_of(disk.spot)
    assert [i for i, (a, b) in enumerate(zip(good, summary(wire).trees[3].leaves, strict=True)) if a != b] == [leaf]
