"""The hash tree: writes in any order lead to what is built from scratch; what differs is found, and only that."""

from __future__ import annotations

import itertools
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cartwheel.core import merkle
from cartwheel.core.errors import CorruptData
from cartwheel.core.merkle import LEAVES, HashTree
from cartwheel.core.ring import Ring
from cartwheel.core.storage import record_key, seal

QS = st.sampled_from([1, 2, 64, 1024])
KEYS = st.binary(max_size=4)


def hash_of(key: bytes, value: bytes) -> int:
    """The hash of a record."""
    return int(merkle.record_hash(seal(record_key("0", key), value))[0])


def built(q: int, records: dict[bytes, bytes]) -> HashTree:
    """A tree from scratch."""
    tree = HashTree(q)
    for key, value in records.items():
        tree.note(record_key("0", key), hash_of(key, value))
    return tree


@given(q=QS, writes=st.lists(st.tuples(KEYS, st.one_of(st.none(), st.binary(max_size=2))), max_size=60))
def test_a_tree_kept_by_writes_is_the_tree_built_from_scratch(q, writes):
    """New, changed and removed records, in whatever order."""
    tree, records = HashTree(q), {}
    for key, value in writes:
        old = hash_of(key, records.pop(key)) if key in records else 0
        if value is not None:
            records[key] = value
        tree.note(record_key("0", key), old ^ (0 if value is None else hash_of(key, value)))
    assert tree.leaves == built(q, records).leaves
    assert HashTree.decode(q, tree.encode()).leaves == tree.leaves


@given(
    q=QS,
    same=st.dictionaries(KEYS, KEYS, max_size=30),
    ours=st.dictionaries(KEYS, KEYS),
    theirs=st.dictionaries(KEYS, KEYS),
)
def test_what_differs_is_found(q, same, ours, theirs):
    """Roots differ exactly where records do, and so do leaves."""
    one, two = {**same, **ours}, {**same, **theirs}
    a, b = built(q, one), built(q, two)
    differing = {a.leaf_of(record_key("0", key)) for key in one.keys() | two.keys() if one.get(key) != two.get(key)}
    touched = sorted({leaf // LEAVES for leaf in differing} | {0, q - 1})
    roots_a, roots_b = a.roots(touched), b.roots(touched)
    for i, partition in enumerate(touched):
        leaves = {leaf % LEAVES for leaf in differing if leaf // LEAVES == partition}
        assert (roots_a[8 * i : 8 * i + 8] != roots_b[8 * i : 8 * i + 8]) == bool(leaves)
        assert a.differing(partition, b.packed(partition)) == sum(1 << leaf for leaf in leaves)


@given(q=st.sampled_from([1, 64, 65536]), position=st.binary(min_size=16, max_size=16))
def test_a_leaf_is_a_range_of_its_partition(q, position):
    """Each position lies in the bounds of its leaf, and that in its partition."""
    tree = HashTree(q)
    leaf = tree.leaf_of(position)
    low, high = tree.bounds(leaf, leaf + 1)
    assert low <= position
    assert high is None or position < high
    assert Ring(q, {}, ("",) * q).partition_of(position) == leaf // LEAVES


def test_the_leaves_cover_the_ring():
    """Where one ends the next begins; the last one has no end."""
    tree = HashTree(4)
    ends = [tree.bounds(leaf, leaf + 1) for leaf in range(4 * LEAVES)]
    assert ends[0][0] == bytes(16)
    assert ends[-1][1] is None
    assert [high for _, high in ends[:-1]] == [low for low, _ in ends[1:]]
    assert tree.bounds(3, 200) == (ends[3][0], ends[199][1])


def test_the_same_value_under_two_keys_does_not_cancel_out():
    """XOR would else hide both from the comparison: the hash is seeded by the position."""
    assert built(1, {b"1": b"x", b"2": b"x"}).leaves != HashTree(1).leaves
    assert hash_of(b"1", b"x") != hash_of(b"2", b"x")


def test_clearing_forgets_one_partition():
    """And no other."""
    tree = built(2, {b"%d" % i: b"x" for i in range(50)})
    other = tree.packed(1)
    tree.clear(0)
    assert tree.packed(0) == bytes(8 * LEAVES)
    assert tree.packed(1) == other


@given(st.integers(0, merkle.ALL_LEAVES))
def test_runs_are_the_bitmap(leaves):
    """Ascending, apart from each other, and all of it."""
    found = merkle.runs(leaves)
    assert sum(1 << i for first, end in found for i in range(first, end)) == leaves
    assert all(first < end for first, end in found)
    assert all(end < first for (_, end), (first, _) in itertools.pairwise(found))


def test_a_tree_of_another_ring_is_refused():
    """It says nothing about this one."""
    with pytest.raises(CorruptData):
        HashTree.decode(8, HashTree(4).encode())


def test_the_bytes_do_not_depend_on_the_machine(monkeypatch):
    """Little-endian everywhere: a root is a hash of these bytes."""
    tree = built(1, {b"k": b"v"})
    leaf = tree.leaf_of(record_key("0", b"k"))
    assert int.from_bytes(tree.packed(0)[8 * leaf : 8 * leaf + 8], "little") == hash_of(b"k", b"v")
    here = tree.packed(0)
    monkeypatch.setattr(sys, "byteorder", "big" if sys.byteorder == "little" else "little")
    assert tree.packed(0) != here
