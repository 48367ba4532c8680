"""The plan: what a change would move, to whom, and what there is to be warned of."""

from __future__ import annotations

import re
from collections import Counter

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.core.clusters import RINGS, about, commit, join, member, names, one_by_one, replace, steps

from cartwheel.core.ring import FOUNDING_END, Ring, Transfer, fold, plan

T = FOUNDING_END


def ring_of(owners, **members):
    """A ring with these owners (one letter each) on hosts of their own, or as given: letter=(zone, host, weight)."""
    places = {node: member(node, *members.get(node, ())) for node in sorted({*owners, *members})}
    return Ring(len(owners), places, tuple(owners))


def cluster(zones, *changes, q=256):
    """Nodes n000, n001, ... in these zones (a letter each; "-" for none), and the changes after the founding."""
    joins = [
        join(at, node, zone=zone.strip("-"))
        for at, (node, zone) in enumerate(zip(names(len(zones)), zones, strict=True))
    ]
    return fold(q, [*joins, *one_by_one(changes)]).ring


# --- the numbers ------------------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(steps(), RINGS, st.integers(1, 5), st.booleans())
def test_plan_counts_what_differs(step, q, n, doubled):
    """Moves, rows and loads are what one counts partition by partition; the moves are never fewer than the least."""
    joins, last = step
    double = one_by_one([about(T * 2, "double")]) if doubled else []
    before, after = fold(q, joins).ring, fold(q, [*joins, *last, *double]).ring
    found = plan(before, after, n=n)
    assert (found.q_before, found.q) == (q, q * (1 + doubled))
    gained, lost, held, has = Counter(), Counter(), Counter(), Counter()
    for partition in range(found.q):
        was = before.preference(partition * q // found.q)[:n]
        will = after.preference(partition)[:n]
        gained.update(set(will) - set(was))
        lost.update(set(was) - set(will))
        held.update(was)
        has.update(will)
    rows = Counter()
    for transfer in found.transfers:
        rows[transfer.gainer] += transfer.partitions
        assert transfer.partitions > 0
        assert transfer.giver != transfer.gainer
    assert rows == gained
    assert found.moves == gained.total()
    assert sum(found.moves_by_giver.values()) == found.moves
    assert all(moves <= lost[giver] for giver, moves in found.moves_by_giver.items() if giver)
    assert {share.node: (share.replicas_before, share.replicas_after) for share in found.shares} == {
        node: (held[node], has[node]) for node in {*before.members, *after.members}
    }
    assert {share.node: share.primaries_after for share in found.shares} == {
        node: after.owners.count(node) for node in {*before.members, *after.members}
    }
    assert found.least >= 0
    assert not found.refusals or len(after.members) < n


@settings(max_examples=60, deadline=None)
@given(steps(), RINGS)
def test_nothing_changes_in_a_plan_of_nothing(step, q):
    """A ring compared with itself, or with its double, has no transfers."""
    joins, last = step
    ring = fold(q, [*joins, *last]).ring
    twice = fold(q, [*joins, *last, *one_by_one([about(T * 2, "double")])]).ring
    for after in (ring, twice):
        found = plan(ring, after)
        assert (found.transfers, found.moves, found.least, found.ratio, found.moves_by_giver) == ((), 0, 0, 1.0, {})
        assert all(share.replicas_before == share.replicas_after for share in found.shares)


def test_transfers_of_a_small_ring():
    """Losers and gainers are paired in the order of the lists; who gains where nobody loses has no giver."""
    found = plan(ring_of("abab"), ring_of("cbab"), n=2)
    # Lists before: ab ba ab ba; after: cb ba ab bc. So c gains partition 0 and 3, where a loses.
    assert found.transfers == (Transfer("a", "c", 2),)
    assert found.moves_by_giver == {"a": 2}
    grown = plan(ring_of("abab"), ring_of("cbab"), n=3)
    assert grown.transfers == (Transfer("", "c", 4),)
    assert (grown.moves, grown.least, grown.ratio) == (4, 4, 1.0)
    gone = plan(ring_of("aaab"), ring_of("cccb"), n=1)
    assert (gone.moves, gone.least) == (3, 3)  # more than c's fair share, but all of a's need a new holder
    both = plan(ring_of("abcdabcd"), ring_of("xycdabcd"), n=2)
    # 0: ab -> xy, so a gives to x and b to y; 1: bc -> yc; 7: da -> dx.
    assert both.transfers == (Transfer("a", "x", 2), Transfer("b", "y", 2))


def test_a_share_tells_all_about_a_node():
    """Weight and place are those after the change, or the last ones of who goes; fair is its part of all replicas."""
    before = cluster("aabbcc")
    after = cluster("aabbcc", about(T, "leave", "n000"), about(T + 1, "relocate", "n005", host="new", zone="b"))
    shares = {share.node: share for share in plan(before, after).shares}
    gone, moved = shares["n000"], shares["n005"]
    assert (gone.zone, gone.host, gone.weight) == ("a", "host-of-n000", 1.0)
    assert (gone.primaries_after, gone.replicas_after, gone.fair, gone.deviation_percent) == (0, 0, 0, 0.0)
    assert (moved.zone, moved.host) == ("b", "new")
    assert gone.replicas_before == pytest.approx(128, abs=6)
    assert [shares[f"n00{i}"].fair for i in (1, 2, 3, 4, 5)] == [256, 85, 85, 256, 85]
    assert moved.deviation_percent == round(100 * (moved.replicas_after - 85) / 85, 1)


def test_fair_shares_of_other_n():
    """By weight, and nobody more than once in a list; with too few nodes everybody has everything."""
    ring = fold(64, [join(0, "a", weight=3.0), join(1, "b"), join(2, "c"), join(3, "d")]).ring
    assert [share.fair for share in plan(ring, ring, n=1).shares] == [32, 10, 10, 10]
    assert [share.fair for share in plan(ring, ring, n=2).shares] == [64, 21, 21, 21]
    assert [share.fair for share in plan(ring, ring, n=9).shares] == [64, 64, 64, 64]


@pytest.mark.parametrize(
    ("zones", "change", "least"),
    [
        ("----", join(T, "new"), 153),  # its share: 768 / 5
        ("----", about(T, "leave", "n001"), 192),  # all it had: three of four of 256
        ("----", about(T, "reweigh", "n001", weight=1.0), 0),
        ("-----", replace(T, "n001", "new"), None),  # as many as n001 had, neither more nor less
        ("--", join(T, "new"), 256),  # a third replica for everything
        ("---", about(T, "leave", "n001"), 0),  # two are left, and have everything
    ],
)
def test_the_least_that_must_move(zones, change, least):
    """Each row reads: this change of a cluster of equal nodes needs about this many moves; the claim makes at most 1.2 times as
    many."""
    before, after = cluster(zones), cluster(zones, change)
    found = plan(before, after)
    if least is None:
        least = next(share.replicas_before for share in found.shares if share.node == "n001")
        assert found.moves == least
    assert found.least == pytest.approx(least, abs=8)
    assert found.least <= found.moves <= found.least * 1.2
    assert found.ratio == (round(found.moves / found.least, 3) if found.least else 1.0)


def test_ratio_of_moves_that_weight_does_not_ask_for():
    """A relocation changes no fair share here, but lists that must be spread anew: there is no ratio."""
    found = plan(ring_of("abcb"), ring_of("abcb", a=("", "h"), b=("", "h")), n=2)
    assert found.moves == 2
    assert found.least == 0
    assert found.ratio is None


def test_a_plan_is_json():
    """As it is: for ``--json``."""
    found = plan(cluster("abc"), cluster("abc", join(T, "new", zone="b")))
    assert msgspec.json.decode(msgspec.json.encode(found), type=type(found)) == found


def test_a_commit_can_be_planned():
    """Fold the history with the commit that would be: the ring is the one to come, and nothing has happened."""
    founders = [join(at, node) for at, node in enumerate(names(4))]
    staged = [join(T, "x"), join(T + 1, "y")]
    now, then = fold(256, [*founders, *staged]), fold(256, [*founders, *staged, commit(T + 2, *staged)])
    found = plan(now.ring, then.ring)
    assert (found.members_before, found.members) == (4, 6)
    assert {transfer.gainer for transfer in found.transfers} >= {"x", "y"}


# --- warnings and refusals --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("zones", "changes", "n", "warnings"),
    [
        ("abcabc", [], 3, []),
        ("------", [], 3, []),
        ("ab", [], 3, ["only 2 nodes for n=3"]),
        ("-", [], 3, ["only 1 node for n=3"]),
        ("aabb", [], 2, []),
        (
            "aabb",
            [],
            3,
            [
                "2 zones for 3 replicas: losing zone a loses 2 of 3 copies of half the partitions",
                "2 zones for 3 replicas: losing zone b loses 2 of 3 copies of half the partitions",
            ],
        ),
        ("aaa", [], 3, ["all nodes are in zone a: losing it loses every copy"]),
        ("a", [], 1, []),
        ("abc-", [], 3, ["n003 has no zone while others have"]),
        (
            "aab-",
            [],
            4,
            [
                "n003 has no zone while others have",
                "3 zones for 4 replicas: losing zone a loses 2 of 4 copies of 256 partitions",
            ],
        ),
        (
            "a-",
            [about(T, "relocate", "n000", host="h"), about(T + 1, "relocate", "n001", host="h")],
            2,
            ["host h holds more than one replica of 256 partitions"],
        ),
        (
            "aabc",
            [about(T, "relocate", "n000", host="h", zone="a"), about(T + 1, "relocate", "n001", host="h", zone="a")],
            4,
            [
                "3 zones for 4 replicas: losing zone a loses 2 of 4 copies of 256 partitions",
                "host h in zone a holds more than one replica of 256 partitions",
            ],
        ),
    ],
)
def test_warnings(zones, changes, n, warnings):
    """Each row reads: a cluster with nodes in these zones, changed so, has these warnings for buckets of n replicas."""
    ring = cluster(zones, *changes)
    found = plan(ring, ring, n=n)
    assert [re.sub(r"of 1[23]\d partitions", "of half the partitions", text) for text in found.warnings] == warnings
    assert found.refusals == ()


def test_a_node_off_its_fair_share_is_warned_of():
    """Beyond 5 % in either direction, and only then."""
    ring = ring_of("aaaaaaaabbbbbbbb")
    assert plan(ring, ring, n=1).warnings == ()
    uneven = ring_of("aaaaaaaaabbbbbbb")
    assert plan(uneven, uneven, n=1).warnings == (
        "a would hold 9 replicas, +12.5 % off its fair 8",
        "b would hold 7 replicas, -12.5 % off its fair 8",
    )


def test_nodes_without_a_partition_are_warned_of():
    """More nodes than partitions: some are only fallbacks."""
    ring = ring_of("ab", c=())
    assert "c owns no partition: there are too few for it" in plan(ring, ring, n=2).warnings


def test_partitions_that_keep_no_replica_are_warned_of():
    """If those who had them are removed, nobody can hand over."""
    text = "would keep none of the present replicas: no node that is removed can hand over"
    found = plan(ring_of("abab"), ring_of("cdab"), n=1)
    assert f"2 partitions {text}" in found.warnings
    found = plan(ring_of("abab"), ring_of("cbab"), n=1)
    assert f"1 partition {text}" in found.warnings
    assert not any(text in warning for warning in plan(ring_of("abab"), ring_of("cbab"), n=2).warnings)
    assert not any(text in warning for warning in plan(Ring(4, {}, ("",) * 4), ring_of("cbab"), n=2).warnings)


def test_refusals():
    """A cluster may not end, shrink below n, or hold replicas in one zone while another has none."""
    nobody = Ring(4, {}, ("",) * 4)
    assert plan(ring_of("abab"), nobody).refusals == ("no member is left",)
    assert plan(ring_of("abcd"), ring_of("abab"), n=3).refusals == ("only 2 nodes would be left for n=3",)
    assert plan(ring_of("abcd"), ring_of("abab"), n=2).refusals == ()
    assert plan(ring_of("abab"), ring_of("aaaa"), n=3).refusals == ()  # it was too small before


def test_a_ring_that_puts_two_replicas_in_one_zone_is_refused(monkeypatch):
    """No ring of ours does; one whose lists ignore zones is found out."""
    zoned = ring_of("abcabcac", a=("x",), b=("x",), c=("y",))
    assert plan(zoned, zoned, n=2).refusals == ()
    monkeypatch.setattr(Ring, "owners_of", lambda ring, partition, n: (ring.owners * 2)[partition : partition + n])
    expected = "2 partitions would have two replicas in one zone while another zone has none"
    assert plan(zoned, zoned, n=2).refusals == (expected,)
