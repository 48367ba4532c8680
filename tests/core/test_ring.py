"""The ring: positions, histories, who is a member, and the preference lists that follow.

The models in ``clusters`` are dumb on purpose; the fast code is compared with them.
"""

from __future__ import annotations

import hashlib
import math
import os
import subprocess
import sys
from collections import Counter

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.core.clusters import (
    HISTORIES,
    about,
    clusters,
    commit,
    join,
    member,
    model_preference,
    names,
    one_by_one,
    replace,
)

from cartwheel.core.errors import CorruptData
from cartwheel.core.ring import Change, ChangeKind, History, Member, Ring, fold, position
from cartwheel.core.ring import history as histories
from cartwheel.core.ring import ring as rings


@pytest.fixture(autouse=True)
def _forget_rings():
    """No test profits from, or suffers by, a ring that another has made."""
    rings._rings.clear()
    yield
    rings._rings.clear()


# --- position and partitions ------------------------------------------------------------------------------------------

VECTORS = [
    ("", b"", "93b885adfe0da089cdf634904fd59f71", 590),
    ("default", b"", "734006fa27fbe0f8e55ef70e972e9712", 461),
    ("default", b"cart:42", "1937dbbda9ea6f3d0b4dc2e4b8bcb673", 100),
    ("carts", b"\x00\xff", "e795e7cfc4af9705ab55bc32db1d353f", 926),
    ("\xe9t\xe9", b"key", "11ea7d58c853c7fd6239f58bf87edb28", 71),
]


@pytest.mark.parametrize(("bucket", "key", "expected", "partition"), VECTORS)
def test_published_positions(bucket, key, expected, partition):
    """Positions and partitions (q = 1024) are these for ever: data on disk and every client depend on them."""
    assert position(bucket, key).hex() == expected
    assert fold(1024, []).ring.partition_of(bytes.fromhex(expected)) == partition


@given(st.text(max_size=60), st.binary(max_size=60))
def test_position_is_the_md5_of_length_bucket_and_key(bucket, key):
    """The bucket's length comes first, so no bucket and key can pass for another pair."""
    name = bucket.encode()
    assert position(bucket, key) == hashlib.md5(bytes([len(name)]) + name + key).digest()


def test_longest_bucket_name():
    """255 bytes of UTF-8 is the limit, for its length must fit one byte."""
    assert len(position("a" * 255, b"k")) == 16
    with pytest.raises(ValueError, match="256 bytes long"):
        position("\u00e9" * 128, b"k")


@given(st.sampled_from([1, 2, 64, 1024, 65536]), st.binary(min_size=16, max_size=16))
def test_partition_is_the_range_that_holds_the_position(q, where):
    """partition_of and bounds agree, and the ranges cover the ring without gap or overlap."""
    ring = fold(q, []).ring
    partition = ring.partition_of(where)
    assert partition == int.from_bytes(where, "big") * q >> 128
    first, end = ring.bounds(partition)
    assert first <= where
    assert end is None or where < end
    assert (end is None) == (partition == q - 1)
    if end is not None:
        assert ring.bounds(partition + 1)[0] == end
    assert ring.bounds(0)[0] == bytes(16)


@pytest.mark.parametrize("q", [0, 3, 100, -8, 131072])
def test_q_is_a_power_of_two(q):
    """Any other number of partitions is refused, also one beyond what partition_of can tell apart."""
    with pytest.raises(ValueError, match="power of two"):
        fold(q, [])


# --- records that cannot be -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "complaint"),
    [
        ({"id": ""}, "needs an id"),
        ({"id": "x" * 256}, "longer than"),
        ({"at": -1}, "clock reading"),
        ({"at": 1 << 64}, "clock reading"),
        ({"kind": "explode"}, "explode"),
        ({"kind": "join"}, "needs a member"),
        ({"kind": "replace"}, "needs a member"),
        ({"kind": "replace", "node": "", "member": member("b")}, "1 to 64"),
        ({"kind": "replace", "member": member("a")}, "replace itself"),
        ({"barred": True}, "only a replace"),
        ({"kind": "address"}, "needs an address"),
        ({"kind": "address", "node": "", "address": "a:1"}, "1 to 64"),
        ({"kind": "address", "address": "x" * 256}, "address is longer"),
        ({"address": "a:1"}, "nothing else, needs an address"),
        ({"kind": "relocate"}, "needs a host"),
        ({"kind": "relocate", "zone": "z"}, "needs a host"),
        ({"kind": "relocate", "host": "x" * 256}, "host is longer"),
        ({"kind": "relocate", "host": "h", "zone": "x" * 256}, "zone is longer"),
        ({"host": "h"}, "nothing else, needs a host"),
        ({"zone": "z"}, "nothing else, needs a host"),
        ({"kind": "commit"}, "needs ids"),
        ({"kind": "abandon"}, "needs ids"),
        ({"changes": ("c",)}, "nothing else, needs ids"),
        ({"kind": "commit", "changes": ("",)}, "never empty"),
        ({"kind": "commit", "changes": ("x" * 256,)}, "id of a change is longer"),
        ({"kind": "commit", "changes": ("c",) * 4097}, "at most 4096"),
        ({"kind": "leave", "member": member("a")}, "needs a member"),
        ({"kind": "join", "node": "b", "member": member("a")}, "cannot be about"),
        ({"kind": "leave", "node": ""}, "1 to 64"),
        ({"kind": "leave", "node": "a/1"}, "1 to 64"),
        ({"kind": "leave", "node": "x" * 65}, "1 to 64"),
        ({"kind": "reweigh", "weight": 0.0}, "weight"),
        ({"kind": "reweigh", "weight": math.nan}, "weight"),
        ({"kind": "reweigh", "weight": math.inf}, "weight"),
        ({"kind": "bucket", "bucket": "x" * 256}, "bucket's name"),
    ],
)
def test_a_senseless_change_cannot_be_made(fields, complaint):
    """Not by the constructor, and not by decoding bytes either."""
    good = {"id": "c", "at": 1, "author": "admin", "kind": "leave", "node": "a"}
    Change(**good)
    with pytest.raises(ValueError, match=complaint):
        Change(**(good | fields))


@pytest.mark.parametrize(
    ("field", "value"),
    [("node", "no spaces"), ("address", "x" * 256), ("host", "x" * 256), ("zone", "x" * 256), ("weight", -1.0)],
)
def test_a_senseless_member_cannot_be_made(field, value):
    """Each bound of Member is checked."""
    good = {"node": "a", "address": "a:1", "host": "h"}
    Member(**good)
    with pytest.raises(ValueError, match=r"must be|longer"):
        Member(**(good | {field: value}))


def test_whole_weights_are_floats():
    """Weight 2 and weight 2.0 are the same bytes, or the epoch would change when a change has been to a peer and back."""
    assert History([join(1, "a", weight=2)]) == History([join(1, "a", weight=2.0)])


# --- the history is a set ---------------------------------------------------------------------------------------------


@settings(deadline=None)
@given(HISTORIES, HISTORIES, HISTORIES)
def test_union_is_that_of_sets(a, b, c):
    """Commutative, associative, idempotent; equal histories have equal bytes, epochs and hashes."""
    assert a.union(b) == b.union(a)
    assert a.union(b).encode() == b.union(a).encode()
    assert a.union(b).union(c) == a.union(b.union(c))
    assert a.union(a) is a
    assert a.union(b).union(b.changes) == a.union(b)
    assert (a == b) == (a.digest() == b.digest()) == (hash(a) == hash(b)) == (a.encode() == b.encode())
    assert len(a.digest()) == histories.EPOCH_BYTES
    assert [(change.at, change.id) for change in a] == sorted((change.at, change.id) for change in a)


@settings(deadline=None)
@given(HISTORIES, st.randoms(use_true_random=False))
def test_fold_knows_no_order(history, dice):
    """The same changes, shuffled and repeated, give the same ring, the same removed ids and the same buckets."""
    shuffled = [*history.changes, *history.changes]
    dice.shuffle(shuffled)
    rings._rings.clear()
    first = fold(16, shuffled)
    rings._rings.clear()
    assert fold(16, history) == first
    assert History(shuffled) == history


@given(HISTORIES)
def test_encode_round_trip(history):
    """decode undoes encode."""
    assert History.decode(history.encode()) == history
    assert len(History.decode(history.encode())) == len(history)


@given(HISTORIES.filter(len), st.data())
def test_damaged_bytes_are_refused_or_another_history(history, data):
    """Cut or flipped bytes raise CorruptData, or are themselves canonical: never a crash, never a silent second encoding."""
    good = history.encode()
    spot = data.draw(st.integers(0, len(good) - 1))
    flipped = bytearray(good)
    flipped[spot] ^= data.draw(st.integers(1, 255))
    for bad in (good[:spot], bytes(flipped), good + b"\x00"):
        refused = False
        try:
            assert History.decode(bad).encode() == bad
        except CorruptData:
            refused = True
        assert refused or bad == bytes(flipped)


def test_only_canonical_bytes_are_a_history():
    """Records out of order or repeated, or with fields that could be left out, are refused: one history, one epoch."""
    first, second = join(1, "a"), join(2, "b")
    records = [list(msgspec.structs.astuple(change))[:9] for change in (first, second)]
    encode = msgspec.msgpack.encode
    assert History.decode(encode(records)) == History([second, first])
    for bad in (records[::-1], [records[0]] * 2, [[*records[0], ""]], [first]):
        with pytest.raises(CorruptData, match="out of order"):
            History.decode(encode(bad))


def test_a_history_is_read_by_who_knows_fewer_fields():
    """Of the fields that were appended to a record, those at its end that have their default take no bytes."""
    sizes = [
        (join(1, "a"), 9),
        (about(1, "address", "a", address="a:1"), 10),
        (about(1, "relocate", "a", host="h"), 11),
        (about(1, "relocate", "a", host="h", zone="z"), 12),
        (commit(1, "x"), 13),
        (replace(1, "a", "b"), 9),
        (replace(1, "a", "b", barred=True), 14),
    ]
    for change, fields in sizes:
        assert len(msgspec.msgpack.decode(History([change]).encode())[0]) == fields
        assert History.decode(History([change]).encode()).changes == (change,)


def test_a_history_is_not_its_changes():
    """Equality is between histories only; repr names the epoch."""
    history = History([join(1, "a")])
    assert history != [join(1, "a")]
    assert repr(history) == f"History(1 changes, epoch {history.digest().hex()[:8]})"


# --- fold: who is a member --------------------------------------------------------------------------------------------


def test_an_empty_ring_has_no_owners():
    """Before the first join and after the last leave, nobody owns anything and every list is empty."""
    for changes in (
        [],
        one_by_one([join(1, "a"), about(2, "leave", "a")]),
        [join(1, "a"), *one_by_one([about(2, "leave", "a")])],
    ):
        ring = fold(8, changes).ring
        assert ring.owners == ("",) * 8
        assert ring.preference(3) == ()
        assert ring.members == {}


@pytest.mark.parametrize(
    ("script", "members", "removed"),
    [
        ("join:a join:b", "a b", ""),
        ("join:b join:a leave:b", "a", ""),
        ("join:a leave:a join:a", "a", ""),  # who left may come back
        ("join:a join:b remove:b join:b", "a", "b"),  # who was removed may not
        ("remove:b join:a join:b", "a", "b"),  # not even for the first time
        ("leave:a join:a", "a", ""),
        ("reweigh:a join:a", "a", ""),
        ("join:a remove:a leave:a remove:a", "", "a"),
    ],
)
def test_who_is_a_member(script, members, removed):
    """Each row reads: after these changes, these are members and these ids are barred."""
    changes = []
    for at, word in enumerate(script.split()):
        kind, node = word.split(":")
        changes.append(join(at, node) if kind == "join" else about(at, kind, node))
    folded = fold(8, one_by_one(changes))
    assert list(folded.ring.members) == members.split()
    assert folded.removed == frozenset(removed.split())


def test_a_present_member_cannot_join():
    """Its machine and its weight stay what they are, whether both joins are founding, or one, or none."""
    joins = [join(1, "a"), join(2, "b", weight=2.0)]
    again = Change(id="m", at=3, author="a", kind=ChangeKind.JOIN, member=Member("b", "new:1", "new", "z9", 4.0))
    ring = fold(64, joins).ring
    assert ring.members["b"] == member("b", weight=2.0)
    assert fold(64, [*joins, again]).ring == fold(64, [*joins, *one_by_one([again])]).ring == ring
    assert fold(64, one_by_one([*joins, again])).ring.members == ring.members


def test_reweigh_sets_the_weight():
    """And the tokens follow it."""
    ring = fold(64, [join(1, "a"), join(2, "b"), *one_by_one([about(3, "reweigh", "b", weight=3.0)])]).ring
    assert ring.members["b"].weight == 3.0
    assert Counter(ring.owners) == {"a": 16, "b": 48}


def test_bucket_properties_override_one_by_one():
    """Later values win property by property, in time order and not in the order of arrival; the ring does not care."""
    changes = [
        about(3, "bucket", "", bucket="carts", props={"n": "5"}),
        about(1, "bucket", "", bucket="carts", props={"n": "3", "r": "2"}),
        about(2, "bucket", "", bucket="a", props={}),
    ]
    folded = fold(8, [*changes, join(0, "a")])
    assert folded.buckets == {"a": {}, "carts": {"n": "5", "r": "2"}}
    assert folded.ring == fold(8, [join(0, "a")]).ring


def test_a_ring_equals_only_rings():
    """Two rings are equal if their owners and members are."""
    ring = fold(8, [join(1, "a")]).ring
    assert ring == Ring(8, {"a": member("a")}, ("a",) * 8)
    assert ring != "ring"
    assert repr(ring) == "Ring(q=8, 1 members)"


@settings(max_examples=60, deadline=None)
@given(HISTORIES, HISTORIES)
def test_remembered_rings_change_nothing(some, more):
    """Going on from a ring that fold remembers gives what folding from nothing gives."""
    rings._rings.clear()
    fold(16, some)
    onward = fold(16, some.union(more))
    rings._rings.clear()
    assert fold(16, some.union(more)) == onward
    assert len(rings._rings) <= rings.RINGS_MAX


def test_a_bucket_change_keeps_the_ring():
    """Setting a property costs no claim: the ring is the same object, lists and all; a new address costs none either, and the
    lists stay. Of many rings the oldest is forgotten."""
    changes = one_by_one([join(at, node) for at, node in enumerate(names(12))])
    ring = fold(64, changes).ring
    bucket, address = (
        about(50, "bucket", bucket="b", props={"n": "2"}),
        about(90000, "address", "n001", address="new:1"),
    )
    assert fold(64, [*changes, bucket]).ring is ring
    walk = ring.preference(3)
    moved = fold(64, [*changes, address]).ring
    assert moved.members["n001"].address == "new:1"
    assert moved.preference(3) is walk
    assert fold(64, [*changes, bucket, address]).ring is moved
    assert fold(64, changes).ring == ring
    for end in range(2, 23, 2):
        fold(64, changes[:end])
    assert len(rings._rings) == rings.RINGS_MAX
    again = fold(64, changes).ring
    assert again is not ring
    assert again == ring


# --- preference lists -------------------------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(clusters(st.integers(1, 12)), st.sampled_from([4, 16, 64]))
def test_preference_is_the_model(changes, q):
    """Every list is what choosing entry by entry gives, also round the end of the ring and with more nodes than tokens."""
    ring = fold(q, changes).ring
    for partition in {0, 1, q // 2, q - 2, q - 1}:
        assert ring.preference(partition) == model_preference(ring, partition)


@settings(max_examples=40, deadline=None)
@given(clusters(), st.sampled_from([32, 64, 128]))
def test_every_prefix_is_spread(changes, q):
    """In all lists, wrap-around included: each member once, the owner first, and every prefix has all the zones that fit,
    then all the hosts that fit, evenly over the zones until one has no fresh host left."""
    ring = fold(q, changes).ring
    zone_of = {node: m.zone for node, m in ring.members.items()}
    host_of = {node: (m.zone, m.host) for node, m in ring.members.items()}
    hosts_in = Counter(zone for zone, _ in set(host_of.values()))
    for partition in range(q):
        walk = ring.preference(partition)
        assert walk[0] == ring.owners[partition]
        assert sorted(walk) == list(ring.members)
        for length in range(1, 8):
            prefix = walk[:length]
            used = Counter(zone_of[node] for node in prefix)
            assert len(used) == min(len(prefix), len(hosts_in))
            assert len({host_of[node] for node in prefix}) == min(len(prefix), hosts_in.total())
            if length <= hosts_in.total():
                for zone, hosts in hosts_in.items():
                    assert used[zone] == hosts or used[zone] >= max(used.values()) - 1


def test_a_preference_list_is_made_once():
    """The hot path is a look-up: asking again returns the very same tuple."""
    ring = fold(64, [join(at, node) for at, node in enumerate(names(5))]).ring
    assert ring.preference(7) is ring.preference(7)


def test_equal_host_names_in_two_zones_are_two_hosts():
    """A host belongs to its zone: "node1" here and "node1" there are not one machine."""
    ring = fold(
        16, [join(1, "a", zone="x", host="node1"), join(2, "b", zone="y", host="node1"), join(3, "c", zone="x")]
    )
    assert all(set(walk[:2]) & {"a", "c"} and walk[0] != walk[1] for walk in map(ring.ring.preference, range(16)))
    assert all("b" in walk[:2] for walk in map(ring.ring.preference, range(16)))


# --- the same everywhere ----------------------------------------------------------------------------------------------

GOLDEN_STORY = "f44aca0b95b5346da2a72ddfe087d0d7 8e85d001e6b0424a1ef0697d2e8f5dadf93625a04e15daf7d669ad09e9487350\n"
STORY = """
import hashlib
from cartwheel.core.ring import Change, ChangeKind, History, Member, fold
changes = []
for i in range(30):
    place = Member(f"n{i % 25}", f"n{i}:1", f"h{i // 2}", f"z{i % 3}", 0.25 + i % 7)
    changes.append(Change(f"j{i}", i if i < 9 else 70000 + i, "n0", ChangeKind.JOIN, member=place))
changes += [Change(f"l{i}", 70020 + i, "n0", ChangeKind.LEAVE, f"n{i}") for i in range(4)]
changes.append(Change("r", 70030, "n0", ChangeKind.REPLACE, "n5", member=Member("new", "new:1", "h9", "z1")))
changes += [Change(f"k{i}", 70000 + i, "n0", ChangeKind.COMMIT, changes=(f"j{i}",)) for i in range(9, 25)]
changes.append(Change("last", 70099, "n0", ChangeKind.COMMIT, changes=("l3", "l2", "j25", "d", "r", "l1", "l0", "j26")))
changes.append(Change("d", 70098, "n0", ChangeKind.DOUBLE))
changes.append(Change("b", 5, "n0", ChangeKind.BUCKET, bucket="b", props={k: k for k in "zyxabc"}))
history = History(set(range(0)) or changes)
folded = fold(256, history)
assert folded.ring.q == 512
lists = [folded.ring.preference(p) for p in range(512)]
print(history.digest().hex(), hashlib.sha256(repr((folded.ring.owners, lists, folded.buckets)).encode()).hexdigest())
"""


def test_every_process_makes_the_same_ring():
    """With different seeds for the built-in hash, processes agree on the epoch, the owners and all the lists; and these are the
    same for ever: see ``test_published_ring``."""
    seen = set()
    for seed in ("0", "1", "77"):
        environment = os.environ | {"PYTHONHASHSEED": seed}
        done = subprocess.run(
            [sys.executable, "-c", STORY], env=environment, capture_output=True, check=True, text=True
        )
        seen.add(done.stdout)
    assert seen == {GOLDEN_STORY}


def golden_history():
    return [join(1, "a", zone="x"), join(2, "b", zone="y"), join(3, "c", zone="x", weight=2.0)]


GOLDEN_OWNERS = "cabccbaccbaccbacbcaccbacbccacbca"
GOLDEN_EPOCH = "a36dd80bd0fd0373dd788fb9c825343d"
GOLDEN_LISTS = {
    ("default", b"cart:42"): ("1937dbbda9ea6f3d0b4dc2e4b8bcb673", 3, "cba"),
    ("default", b"cart:43"): ("36f7403de0fca2cbdff7ba42c42989d2", 6, "abc"),
    ("carts", b"\x00\xff"): ("e795e7cfc4af9705ab55bc32db1d353f", 28, "cba"),
    ("\xe9t\xe9", b"key"): ("11ea7d58c853c7fd6239f58bf87edb28", 2, "bca"),
}


def test_published_ring():
    """The epoch, the owners and the lists of this history of three nodes, key by key, are these for ever.

    A change here means that clusters which upgrade node by node would disagree on who owns what.
    """
    history = History(golden_history())
    ring = fold(32, history).ring
    assert history.digest().hex() == GOLDEN_EPOCH
    assert "".join(ring.owners) == GOLDEN_OWNERS
    for (bucket, key), (where, partition, walk) in GOLDEN_LISTS.items():
        assert position(bucket, key).hex() == where
        assert ring.partition_of(bytes.fromhex(where)) == partition
        assert "".join(ring.preference(partition)) == walk
