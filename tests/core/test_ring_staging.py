"""Staged changes, commits and what each kind of change does to a ring; snapshots of it."""

from __future__ import annotations

import contextlib
from collections import Counter

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.core.clusters import (
    HISTORIES,
    abandon,
    about,
    clusters,
    commit,
    join,
    member,
    model_members,
    moved_and_least,
    names,
    one_by_one,
    replace,
)

from cartwheel.core.errors import CorruptData
from cartwheel.core.ring import FOUNDING_END, Q_MAX, History, Member, Ring, fold, remember, snapshot
from cartwheel.core.ring import ring as rings

T = FOUNDING_END
"""The first time that is not of the founding."""

FOUNDERS = [join(0, "a"), join(1, "b"), join(2, "c")]


@pytest.fixture(autouse=True)
def _forget_rings():
    """No test profits from, or suffers by, a ring that another has made."""
    rings._rings.clear()
    yield
    rings._rings.clear()


def ids(folded):
    return [change.id for change in folded.staged]


# --- staging ----------------------------------------------------------------------------------------------------------


@settings(max_examples=300, deadline=None)
@given(HISTORIES)
def test_fold_is_the_model(history):
    """Members, their places and addresses, who is removed, what is staged, and q are what the slow reading of the rules gives."""
    folded = fold(16, history)
    members, removed, staged, q = model_members(16, history)
    assert folded.ring.members == members
    assert folded.removed == removed
    assert folded.staged == staged
    assert folded.ring.q == q
    assert {node: folded.addresses[node] for node in members} == {node: m.address for node, m in members.items()}


def test_a_staged_change_waits_for_its_commit():
    """Whatever its kind: until then the ring is as it was, and the change is on the list."""
    changes = [
        join(T, "d"),
        about(T + 1, "leave", "a"),
        about(T + 2, "remove", "a"),
        about(T + 3, "reweigh", "a", weight=2.0),
        about(T + 4, "relocate", "a", host="new"),
        replace(T + 5, "a", "e", barred=True),
        about(T + 6, "double"),
    ]
    before = fold(64, FOUNDERS)
    for change in changes:
        staged = fold(64, [*FOUNDERS, change])
        assert (staged.ring, staged.removed, staged.staged) == (before.ring, before.removed, (change,))
        done = fold(64, [*FOUNDERS, change, commit(T + 9, change)])
        assert done.ring != before.ring
        assert done.staged == ()


@pytest.mark.parametrize(
    ("records", "members", "staged"),
    [
        ("+d@1 +e@2 commit:+d,+e@3", "a b c d e", ""),
        ("+d@1 +e@2 commit:+d@3", "a b c d", "+e"),
        ("+d@5 commit:+d@3", "a b c d", ""),  # the commit's place counts, and the change need only be known
        ("commit:+d,+e@3 +e@1", "a b c e", ""),  # +d is unknown yet
        ("+d@1 abandon:+d@2", "a b c", ""),
        ("+d@1 abandon:+d@2 commit:+d@3", "a b c d", ""),  # a commit beats an abandon,
        ("+d@1 commit:+d@2 abandon:+d@3", "a b c d", ""),  # whatever their order
        ("+d@1 commit:+d@2 -d@3 commit:+d,-d@4", "a b c", ""),  # +d takes effect once: d does not come back
        ("+d@1 commit:+d@2 -d@3 commit:-d@4 commit:+d@5", "a b c", ""),
        ("+d@1 -d@2 commit:+d,+d,-d@3", "a b c", ""),
        ("+d@1 -d@2 commit:-d,+d@3", "a b c d", ""),  # in the order of the list: -d had nothing to do
        ("-d@1 abandon:x@2 commit:y@3", "a b c", "-d"),  # also what would have no effect is staged
        ("-a@1 -b@2 -c@3 commit:-a,-b,-c@4", "", ""),
        ("commit:c0@1", "a b c", ""),  # a founding join is no staged change
    ],
)
def test_commit_and_abandon(records, members, staged):
    """Each row reads: with these records (what, at), these are the members, and these changes are still staged."""
    changes = list(FOUNDERS)
    for record in records.split():
        what, _, at = record.partition("@")
        time, (verb, _, listed) = T + int(at), what.partition(":")
        match verb[0]:
            case "+":
                changes.append(msgspec.structs.replace(join(time, verb[1:]), id=verb))
            case "-":
                changes.append(msgspec.structs.replace(about(time, "leave", verb[1:]), id=verb))
            case _:
                changes.append((commit if verb == "commit" else abandon)(time, *listed.split(",")))
    folded = fold(64, changes)
    assert list(folded.ring.members) == members.split()
    assert ids(folded) == staged.split()


def test_joins_of_one_commit_move_less_than_in_a_row():
    """One claim for all: no token goes to a joiner and from there to another."""
    joins = [join(T + i, f"new{i}") for i in range(4)]
    before = fold(1024, FOUNDERS).ring
    together = fold(1024, [*FOUNDERS, *joins, commit(T + 9, *joins)]).ring
    moved, least = moved_and_least(before.owners, together.owners)
    assert moved == least == 584  # four of seven of 1024
    in_a_row, owners = 0, before.owners
    for count in range(1, 5):
        ring = fold(1024, [*FOUNDERS, *joins, *(commit(T + 9 + i, joins[i]) for i in range(count))]).ring
        in_a_row += moved_and_least(owners, ring.owners)[0]
        owners = ring.owners
    assert in_a_row > moved * 1.2


@settings(max_examples=60, deadline=None)
@given(HISTORIES, st.lists(st.tuples(st.booleans(), st.booleans(), st.integers(0, 15)), max_size=30))
def test_two_administrators_come_to_one_ring(history, script):
    """Two sides learn of the records in any order, from each other and from elsewhere, and fold as they go: in the end they have
    one ring, which is that of a third who has all records at once."""
    sides = [History(FOUNDERS), History(FOUNDERS)]
    for right, exchange, number in script:
        if exchange:
            sides[right] = sides[right].union(sides[not right])
        elif number < len(history):
            sides[right] = sides[right].union([history.changes[number]])
        fold(16, sides[right])
    left = fold(16, sides[0].union(sides[1]).union(history))
    assert fold(16, history.union(sides[1]).union(sides[0])) == left
    rings._rings.clear()
    assert fold(16, [*FOUNDERS, *history]) == left


def test_equal_ids_are_committed_together():
    """Two records with one id are a mistake, but every node makes the same of it."""
    twins = [msgspec.structs.replace(join(T, node), id="twin") for node in ("e", "d")]
    for changes in (twins, twins[::-1]):
        folded = fold(64, [*changes, *FOUNDERS, commit(T + 1, "twin")])
        assert list(folded.ring.members) == ["a", "b", "c", "d", "e"]
        assert folded.staged == ()


def test_founders_come_in_one_claim_and_first():
    """Together they own shares of equal size, mixed from the start; the last moment of the founding is one before its end."""
    ring = fold(64, [join(FOUNDING_END - 1, "a"), join(5, "b")]).ring
    assert Counter(ring.owners) == {"a": 32, "b": 32}
    assert fold(64, [join(FOUNDING_END, "a"), join(5, "b")]).ring.owners == ("b",) * 64
    early = [about(0, "remove", "b"), commit(1, "c0")]
    assert fold(64, [*early, join(5, "b")]).ring.members == {}  # carried out after the founding, whatever its time


# --- what each kind does ----------------------------------------------------------------------------------------------


@settings(max_examples=30, deadline=None)
@given(clusters(st.integers(1, 12)), st.sampled_from([4, 64]), st.integers(1, 3))
def test_doubling_moves_nothing(changes, q, times):
    """Each partition's preference list is its parent's, also with more nodes than tokens, and after more doublings."""
    before = fold(q, changes)
    doubles = [about(T * 2 + i, "double") for i in range(times)]
    after = fold(q, [*changes, *one_by_one(doubles)]).ring
    assert after.q == q << times
    assert after == fold(q, [*changes, *doubles, commit(T * 9, *doubles)]).ring
    for partition in range(after.q):
        assert after.preference(partition) == before.ring.preference(partition >> times)
        assert after.bounds(partition)[0] >= before.ring.bounds(partition >> times)[0]


def test_doubling_ends_at_the_finest_ring():
    """Beyond Q_MAX a double is ignored; quotas follow the finer ring from the next claim on."""
    doubles = one_by_one([about(i, "double") for i in range(3)])
    ring = fold(Q_MAX // 2, [*FOUNDERS, *doubles]).ring
    assert ring.q == Q_MAX
    assert ring.doublings == 1
    coarse = fold(2, [join(0, "a", weight=2.0), join(1, "b")])
    assert Counter(coarse.ring.owners) == {"a": 1, "b": 1}
    again = one_by_one([about(7, "double"), about(8, "double"), about(9, "reweigh", "a", weight=3.0)])
    fine = fold(2, [join(0, "a", weight=2.0), join(1, "b"), *again]).ring
    assert Counter(fine.owners) == {"a": 6, "b": 2}


def test_replace_hands_over_exactly_the_tokens():
    """The new node stands where the old one stood, with its weight; everybody else keeps every token."""
    founders = [join(0, "a", weight=2.0), join(1, "b"), join(2, "c")]
    change = replace(T, "a", "z", weight=7.0, zone="y", host="h", barred=False)
    before = fold(64, founders).ring
    folded = fold(64, [*founders, change, commit(T + 1, change)])
    assert folded.ring.owners == tuple("z" if owner == "a" else owner for owner in before.owners)
    assert folded.ring.members["z"] == Member("z", "z:7702", "h", "y", 2.0)
    assert folded.removed == frozenset()


@pytest.mark.parametrize(
    ("records", "members", "removed"),
    [
        ("a>d", "b c d", ""),
        ("a>d!", "b c d", "a"),
        ("a>d a>e", "b c d", ""),  # a is no member any more
        ("a>d d>e", "b c e", ""),
        ("a>b", "a b c", ""),  # b is one already
        ("x>d!", "a b c", ""),
        ("-b a>b", "b c", ""),  # b has left and comes back in a's place
        ("!d a>d", "a b c", "d"),
        ("a>d! b>a", "b c d", "a"),
        ("a>d b>a", "a c d", ""),
    ],
)
def test_replacements(records, members, removed):
    """Each row reads: after these, in commits of their own or all in one, these are members and these are removed."""
    changes = []
    for at, record in enumerate(records.split()):
        old, arrow, new = record.partition(">")
        if arrow:
            changes.append(replace(T + at, old, new.rstrip("!"), barred=record.endswith("!")))
        else:
            changes.append(about(T + at, "leave" if record[0] == "-" else "remove", record[1:]))
    for commits in ([commit(T + 50 + at, change) for at, change in enumerate(changes)], [commit(T + 99, *changes)]):
        folded = fold(64, [*FOUNDERS, *changes, *commits])
        assert list(folded.ring.members) == members.split()
        assert folded.removed == frozenset(removed)
        assert sorted(set(folded.ring.owners)) == members.split()


def test_relocation_moves_no_token():
    """Only preference lists change: from now on they keep the two zones apart."""
    before = fold(64, FOUNDERS).ring
    change = about(T, "relocate", "a", host="there", zone="z2")
    after = fold(64, [*FOUNDERS, change, commit(T, change)]).ring
    assert after.owners == before.owners
    assert after.members["a"] == Member("a", "a:7702", "there", "z2", 1.0)
    assert all("a" in after.preference(partition)[:2] for partition in range(64))
    assert not all("a" in before.preference(partition)[:2] for partition in range(64))


@pytest.mark.parametrize("kinds", [["double"], ["relocate"], ["replace"], ["replace", "double", "relocate"]])
def test_what_moves_no_token_makes_no_claim(kinds, monkeypatch):
    """Even right after a doubling, when shares could be rounded better."""
    makers = {
        "double": about(T, "double"),
        "relocate": about(T + 1, "relocate", "b", host="there", zone="z"),
        "replace": replace(T + 2, "a", "new", zone="x"),
    }
    founders = fold(64, FOUNDERS).ring
    monkeypatch.setattr(rings, "claim", None)
    changes = [makers[kind] for kind in kinds]
    for commits in ([commit(T + 9, *changes)], [commit(T + 9 + at, change) for at, change in enumerate(changes)]):
        owners = [owner for owner in founders.owners for _ in range(1 + ("double" in kinds))]
        expected = tuple("new" if owner == "a" and "replace" in kinds else owner for owner in owners)
        assert fold(64, [*FOUNDERS, *changes, *commits]).ring.owners == expected


def test_address_of_a_member_is_the_latest():
    """Without a commit; the join's own counts by the time at which it was staged, not by that of its commit."""
    new = join(T + 5, "d")

    def address(*more):
        return fold(64, [*FOUNDERS, new, commit(T + 9, new), *more]).ring.members["d"].address

    assert address() == "d:7702"
    assert address(about(T + 4, "address", "d", address="old:1")) == "d:7702"
    assert address(about(T + 6, "address", "d", address="new:1")) == "new:1"
    assert address(about(T + 8, "address", "d", address="x:1"), about(T + 7, "address", "d", address="y:1")) == "x:1"
    back = join(T + 30, "d")
    rejoin = [
        about(T + 20, "leave", "d"),
        about(T + 21, "address", "d", address="away:1"),
        commit(T + 22, f"c{T + 20}"),
        back,
    ]
    assert address(*rejoin, commit(T + 31, back)) == "d:7702"


def test_addresses_are_known_of_who_is_no_member():
    """Of a node whose join is staged, and of one that left: peers talk to both."""
    gone, new = about(T, "leave", "c"), join(T + 2, "d")
    folded = fold(64, [*FOUNDERS, gone, commit(T + 1, gone), new, about(T + 3, "address", "c", address="c:9")])
    assert folded.addresses == {"a": "a:7702", "b": "b:7702", "c": "c:9", "d": "d:7702"}
    again = msgspec.structs.replace(join(T + 4, "a"), member=Member("a", "elsewhere:1", "h"))
    assert fold(64, [*FOUNDERS, again]).addresses["a"] == "a:7702"  # that join is not carried out


# --- the first entries ------------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(clusters(), st.sampled_from([4, 32, 128]), st.integers(0, 26))
def test_owners_are_the_first_of_the_list(changes, q, n):
    """owners_of begins preference, for every n, also with more nodes than tokens or fewer than n; and is made once."""
    ring = fold(q, changes).ring
    for partition in range(q):
        first = ring.owners_of(partition, n)
        assert first == ring.preference(partition)[:n]
        assert ring.owners_of(partition, n) is first


def test_nobody_owns_an_empty_ring():
    """Nor is anybody asked for."""
    assert fold(4, []).ring.owners_of(2, 3) == ()


# --- snapshots --------------------------------------------------------------------------------------------------------


@settings(max_examples=100, deadline=None)
@given(HISTORIES)
def test_a_ring_survives_its_bytes(history):
    """decode undoes encode, and equal rings are equal bytes."""
    ring = fold(16, history).ring
    again = Ring.decode(ring.encode())
    assert again == ring
    assert again.encode() == ring.encode()


@settings(max_examples=100, deadline=None)
@given(HISTORIES, st.data())
def test_damaged_bytes_are_no_ring(history, data):
    """Or they are another ring's, whole and canonical."""
    good = fold(16, history).ring.encode()
    bad = bytearray(good)
    bad[data.draw(st.integers(0, len(good) - 1))] ^= data.draw(st.integers(1, 255))
    for damaged in (bytes(bad), good[:-1], good + b"\0"):
        with contextlib.suppress(CorruptData):
            assert Ring.decode(damaged).encode() == damaged


@pytest.mark.parametrize(
    "fields",
    [
        (4, 0, [], [0]),
        (4, 0, [member("a")], [0, 0, 0]),
        (4, 0, [member("a")], [0, 0, 0, 1]),
        (4, 0, [member("a")], [0, 0, 0, -1]),
        (4, 0, [member("b"), member("a")], [0, 0, 1, 1]),
        (4, 0, [member("a"), member("a")], [0, 0, 1, 1]),
        (4, 3, [], []),
        (4, -1, [], []),
        (0, 0, [], []),
        (-4, 0, [], []),
        (3, 0, [], []),
        (1 << 60, 0, [], []),
    ],
)
def test_numbers_that_are_no_ring(fields):
    """Each row is refused."""
    with pytest.raises(CorruptData, match="not a ring"):
        Ring.decode(msgspec.msgpack.encode(fields))


@settings(max_examples=40, deadline=None)
@given(HISTORIES)
def test_a_snapshot_saves_all_claims(history):
    """After a restart, fold goes on from the ring of the snapshot and gives what folding anew gives."""
    folded = fold(16, history)
    kept = snapshot(folded)
    rings._rings.clear()
    useful = remember(kept)
    assert useful == bool(folded.made_by)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rings, "claim", None)
        assert fold(16, history) == folded
    more = History([*history, about(T * 2, "reweigh", "a", weight=3.0), commit(T * 3, f"c{T * 2}")])
    onward = fold(16, more)
    rings._rings.clear()
    assert fold(16, more) == onward


def test_a_snapshot_that_does_not_fit_is_ignored(monkeypatch):
    """One of another history, another q or another way to fold, and a damaged one, change nothing."""
    kept = snapshot(fold(64, FOUNDERS))
    other = [*FOUNDERS[:2], join(2, "x")]
    expected = fold(64, other), fold(32, FOUNDERS)
    rings._rings.clear()
    assert remember(kept)
    assert (fold(64, other), fold(32, FOUNDERS)) == expected
    rings._rings.clear()
    for at in range(len(kept)):
        assert not remember(kept[:at] + bytes([kept[at] ^ 1]) + kept[at + 1 :])
    assert not remember(b"")
    assert not remember(kept + b"\0")
    monkeypatch.setattr(rings, "FOLD_VERSION", b"another")
    assert not remember(kept)
    assert rings._rings == {}
    assert fold(64, FOUNDERS).made_by != b""


def test_a_snapshot_holds_a_ring():
    """Bytes with a good checksum but without a ring in them are ignored, too."""
    for body in (b"x", msgspec.msgpack.encode((rings.FOLD_VERSION, b"key", b"no ring"))):
        assert not remember(rings._check(body) + body)


def test_remembered_rings_follow_every_kind_of_change():
    """From each prefix of a long story, with its ring remembered, one comes to the same end as from nothing."""
    story = one_by_one(
        [
            join(0, "d", zone="x"),
            about(1, "double"),
            about(2, "relocate", "a", host="h", zone="y"),
            replace(3, "b", "e", zone="y"),
            about(4, "reweigh", "c", weight=2.5),
            about(5, "leave", "a"),
            about(6, "double"),
            about(7, "remove", "d"),
            join(8, "a", zone="z"),
        ]
    )
    ends = []
    for prefix in range(0, len(story) + 1, 2):
        rings._rings.clear()
        fold(32, [*FOUNDERS, *story[:prefix]])
        ends.append(fold(32, [*FOUNDERS, *story, about(T * 2, "address", "c", address="new:1")]))
    assert all(end == ends[0] for end in ends)
    assert ends[0].ring.q == 128
    assert ends[0].ring.members["c"] == Member("c", "new:1", "host-of-c", "", 2.5)


def test_a_great_cluster():
    """A thousand founders in three zones on a ring of 16384: tokens are rounded shares, no list has a zone twice, and replica
    load is within 15 % of fair, at 49 replicas a node."""
    nodes = names(1000)
    ring = fold(16384, [join(at, node, zone=f"z{at % 3}") for at, node in enumerate(nodes)]).ring
    assert set(Counter(ring.owners).values()) == {16, 17}
    loads: Counter[str] = Counter()
    for partition in range(ring.q):
        owners = ring.owners_of(partition, 3)
        loads.update(owners)
        assert {ring.members[node].zone for node in owners} == {"z0", "z1", "z2"}
    assert all(abs(loads[node] / 49.152 - 1) <= 0.15 for node in nodes)
