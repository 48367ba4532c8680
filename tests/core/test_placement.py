"""Placement: who counts for a partition follows from the ring and from what each node says that it holds (section 4.9)."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.core import moving
from tests.core.clusters import member

from cartwheel.core.errors import CorruptData
from cartwheel.core.local import Local
from cartwheel.core.placement import LEVELS_MAX, Holding, Placement, bitmap, check_holding, partitions_of
from cartwheel.core.ring import Ring

Q = 8


def ring_of(owners, *, extra="", q=Q):
    """A ring whose tokens these nodes own, again and again: the preference list of partition 0 begins as the text does."""
    doublings = (q // Q).bit_length() - 1 if q > Q else 0
    nodes = {node: member(node) for node in owners + extra}
    return Ring(q, nodes, tuple((owners * q)[:q]), doublings)


def holding(node, partitions, *, n=3, q=Q, version=1, gave=None, seen=None, left=False):
    """``gave``: gainer -> partitions, by this version. ``seen``: giver -> version."""
    given = {gainer: [(version, bitmap(set(parts), q))] for gainer, parts in (gave or {}).items()}
    return Holding(node, version, q, {n: bitmap(set(partitions), q)}, {n: given} if given else {}, left, seen or {})


def placed(founding, now, *holdings, removed="", extra="", q=Q):
    """A view: both rings have partition 0 owned as the texts begin."""
    holds = {each.node: each for each in holdings}
    return Placement(ring_of(now, extra=extra, q=q), ring_of(founding), frozenset(removed), holds)


def shown(slots):
    """``c+d a b / f``: pairs, owners, and the blanks."""
    pairs = " ".join(f"{owner}+{slots.gainers[owner]}" if owner in slots.gainers else owner for owner in slots.owners)
    return pairs + (" / " + " ".join(slots.blanks) if slots.blanks else "")


# --- slots ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("founding", "now", "removed", "expected"),
    [
        ("abcd", "abcd", "", "a b c"),  # settled
        ("abc", "dabc", "", "c+d a b"),  # c gives; it stands where d is to be
        ("abc", "adbc", "", "a c+d b"),
        ("abc", "dab", "", "c+d a b"),  # c leaves
        ("abc", "dab", "c", "a b / d"),  # c is removed for ever: nobody gives
        ("ab", "abc", "", "a b / c"),  # the cluster was smaller than n
        ("a", "abc", "", "a / b c"),
        ("abc", "defabc", "", "a+d b+e c+f"),  # the givers that are nearest in the preference list give first
        ("abc", "defcba", "", "c+d b+e a+f"),
        ("abc", "defca", "b", "c+d a+e / f"),
        ("abc", "defa", "", "a+d b+e c+f"),  # those that stay come before those that leave
        ("abc", "def", "abc", "d e f"),  # nobody has it: nobody has anything better
    ],
)
def test_slots_follow_from_what_the_rings_say(founding, now, removed, expected):
    """Each row reads: founded on this ring, with another one now and nobody having told what it holds, the slots are these."""
    assert shown(placed(founding, now, removed=removed).slots(0, 3)) == expected


@pytest.mark.parametrize(
    ("holdings", "expected"),
    [
        ([holding("d", [])], "c+d a b"),  # it has joined, and holds nothing yet
        ([holding("d", [0])], "d a b"),  # what it says of itself counts; c is an owner too many
        ([holding("d", [0]), holding("c", [])], "d a b"),
        ([holding("d", [1, 2, 3])], "c+d a b"),
        ([holding("c", [])], "a b / d"),  # who holds nothing gives nothing
        ([holding("a", [])], "c+d b / a"),  # an owner that has lost what it held gains it anew
        ([holding("d", [0], n=2)], "c+d a b"),  # of this n it has said nothing
    ],
)
def test_slots_follow_what_nodes_say_of_themselves(holdings, expected):
    """Each row reads: of a ring that d has joined, with these holdings, the slots are these."""
    assert shown(placed("abc", "dabc", *holdings).slots(0, 3)) == expected


@pytest.mark.parametrize(
    ("begun", "holdings", "expected"),
    [
        ("abc", [], "c+d a b"),
        ("dabc", [], "d a b"),  # though d was not there at the founding
        ("dabc", [holding("d", [], n=2)], "d a b"),  # it told before there was anything to tell of this n
        ("dabc", [holding("d", [])], "a b / d"),  # it says that it has it no more, and c never had it
        ("bdae", [holding("c", [0], n=2)], "d a b"),  # c was no owner then
    ],
)
def test_of_an_n_that_a_node_has_not_told_it_holds_what_it_owned_at_first(begun, holdings, expected):
    """Each row reads: the first bucket with this n came when the ring was this one; with these holdings the slots are these."""
    holds = {each.node: each for each in holdings}
    view = Placement(ring_of("dabc"), ring_of("abc"), frozenset(), holds, {3: ring_of(begun)})
    assert shown(view.slots(0, 3)) == expected


@pytest.mark.parametrize(
    ("gainer", "expected"),
    [
        (None, "d a b"),  # d has told nothing yet: what c says counts
        (holding("d", []), "d a b"),  # nor what came of this
        (holding("d", [], seen={"c": 4}), "d a b"),  # only of what c gave before
        (holding("d", [], version=9, seen={"a": 9}), "d a b"),
        (holding("d", [0], seen={"c": 5}), "d a b"),
        (holding("d", [], seen={"c": 5}), "a b / d"),  # it has given it away since
        (holding("d", [], seen={"c": 6}), "a b / d"),
    ],
)
def test_what_a_giver_says_counts_until_the_gainer_has_seen_it(gainer, expected):
    """Each row reads: c gave to d with version 5 of its holding; d's is this one (None: there is none)."""
    gives = holding("c", [], version=5, gave={"d": [0]})
    view = placed("abc", "dabc", gives, *([] if gainer is None else [gainer]))
    assert shown(view.slots(0, 3)) == expected
    assert view.says("d", 3, 0) == (gainer is not None and gainer.held[3] == b"\1")


def test_a_founder_that_has_told_nothing_is_given_what_it_did_not_have():
    """Besides what it holds from the founding."""
    view = placed("abcd", "dabc", holding("c", [], gave={"d": [0]}))
    assert shown(view.slots(0, 3)) == "d a b"
    assert view.holds("d", 3, 1)
    assert not view.says("d", 3, 0)


def test_several_gifts_count_each_until_it_is_seen():
    """The later one replaces nothing."""
    gifts = [(2, bitmap({0}, Q)), (4, bitmap({1}, Q))]
    gives = Holding("c", 4, Q, {3: bitmap(set(), Q)}, {3: {"d": gifts}})
    for seen, held in [(0, {0, 1}), (1, {0, 1}), (2, {1}), (3, {1}), (4, set())]:
        view = placed("abc", "dabc", gives, holding("d", [], seen={"c": seen}))
        assert {partition for partition in range(Q) if view.holds("d", 3, partition)} == held


def test_what_was_given_is_that_partition_at_that_n():
    """Nothing else: d is owed the rest."""
    view = placed("abc", "dabc", holding("c", [1, 2, 3, 4, 5, 6, 7], gave={"d": [0]}))
    assert view.holds("d", 3, 0)
    assert [view.holds("d", 3, partition) for partition in range(1, Q)] == [False] * 7
    assert not view.holds("d", 2, 0)
    assert not view.holds("e", 3, 0)


def test_a_node_says_what_it_holds_by_its_holding_or_its_founding():
    """Not by what others say."""
    view = placed("abc", "dabc", holding("d", [1]))
    assert [view.says("d", 3, partition) for partition in (0, 1)] == [False, True]
    assert view.says("a", 3, 0)
    assert not view.says("e", 3, 0)
    assert not view.says("d", 2, 0), "of another n it has said nothing"


def test_who_takes_part():
    """The members, and those that leave until they say that they are gone. Never who was removed."""
    assert placed("abc", "dab").leaving == ("c",)
    assert placed("abc", "dab").peers == {*"abcd"}
    assert placed("abc", "dab", holding("c", [], left=True)).peers == {*"abd"}
    assert placed("abc", "dab", removed="c").peers == {*"abd"}
    assert placed("abc", "dab", holding("e", [0])).leaving == ("c", "e")
    assert placed("abc", "dab", holding("c", [0]), removed="c").leaving == ()
    assert placed("abc", "abc", holding("c", [], left=True)).peers == {*"abc"}, "it has joined again"


def test_all_that_are_sent_writes():
    """Owners, gainers and blanks, each once."""
    assert placed("abc", "defca", removed="b").slots(0, 3).writers == ("c", "a", "d", "e", "f")
    assert placed("abc", "abc").slots(0, 3).writers == ("a", "b", "c")


NODES = "abcdef"
RINGS = st.text(NODES, min_size=1, max_size=Q)


@st.composite
def views(draw):
    """Two rings, any holdings and gifts, some nodes removed."""
    founding, now = draw(RINGS), draw(RINGS)
    parts = st.sets(st.integers(0, Q - 1))
    gifts = st.dictionaries(st.sampled_from(NODES), parts, max_size=1)
    seen = st.dictionaries(st.sampled_from(NODES), st.integers(0, 3), max_size=1)
    holdings = [
        holding(node, draw(parts), version=draw(st.integers(0, 3)), gave=draw(gifts), seen=draw(seen))
        for node in draw(st.sets(st.sampled_from(NODES)))
    ]
    removed = draw(st.sets(st.sampled_from(NODES))) - set(now)
    return placed(founding, now, *holdings, removed=removed)


@given(views(), st.integers(0, Q - 1), st.integers(1, 4))
def test_slots_are_sound(view, partition, n):
    """One for each owner to be; no node twice; whoever counts holds the partition, unless nobody does."""
    slots, due = view.slots(partition, n), view.ring.owners_of(partition, n)
    assert len(slots.owners) + len(slots.blanks) == len(due)
    assert len(set(slots.writers)) == len(slots.writers)
    assert set(slots.writers) <= view.peers
    assert {*slots.gainers.values(), *slots.blanks} <= set(due)
    assert set(due) - set(slots.owners) == {*slots.gainers.values(), *slots.blanks}
    holders = {node for node in view.peers if view.holds(node, n, partition)}
    if holders:
        assert set(slots.owners) <= holders
    else:
        assert slots.owners == due
    if slots.blanks:
        assert holders <= set(slots.owners), "somebody could give"


# --- tags -------------------------------------------------------------------------------------------------------------


def told_apart(slots):
    """What a tag stands for."""
    return {(owner, slots.gainers.get(owner)) for owner in slots.owners}, set(slots.blanks)


@given(views(), views(), st.integers(0, Q - 1), st.integers(1, 4))
def test_tags_are_equal_if_the_slots_are(one, other, partition, n):
    """And only then, whatever else differs between two views."""
    ours, theirs = one.slots(partition, n), other.slots(partition, n)
    assert 0 not in (ours.tag, theirs.tag)
    assert (ours.tag == theirs.tag) == (told_apart(ours) == told_apart(theirs))


def test_the_order_of_owners_is_no_matter_to_a_tag():
    """Who counts is the same, whoever is asked first; who gains from whom is not."""
    assert placed("abc", "abc").slots(0, 3).tag == placed("abc", "cab").slots(0, 3).tag
    pairs = [placed("abc", now).slots(0, 3) for now in ("dabc", "adbc", "bdac")]
    assert {shown(slots) for slots in pairs} == {"c+d a b", "a c+d b", "b c+d a"}
    assert len({slots.tag for slots in pairs}) == 1
    assert len({placed("abc", now).slots(0, 3).tag for now in ("abc", "dabc", "dacb", "dab", "abd", "edabc")}) == 4


# --- fallbacks --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("founding", "now", "expected"),
    [
        ("abcde", "abcde", "d e"),
        (
            "abcef",
            "dabcef",
            "e f d",
        ),  # d gains: it has its own copy of each write, and stands in only if nobody else can
        ("ab", "abcd", "d c"),  # so does a blank
    ],
)
def test_fallbacks_that_gain_the_partition_come_last(founding, now, expected):
    """Each row reads: founded on this ring, with this one now, the fallbacks are these."""
    assert " ".join(placed(founding, now).fallbacks(0, 3)) == expected


@given(views(), st.integers(0, Q - 1), st.integers(1, 4))
def test_every_member_can_stand_in_once(view, partition, n):
    """Unless it counts itself; first those that have no part in the partition, in the order of the preference list."""
    slots, fallbacks = view.slots(partition, n), view.fallbacks(partition, n)
    assert len(set(fallbacks)) == len(fallbacks)
    assert set(fallbacks) == view.ring.members.keys() - set(slots.owners)
    gain = [*slots.gainers.values(), *slots.blanks]
    assert list(fallbacks[len(fallbacks) - len(gain) :]) == gain
    pure = fallbacks[: len(fallbacks) - len(gain)]
    assert list(pure) == [node for node in view.ring.preference(partition) if node in pure]


# --- bitmaps ----------------------------------------------------------------------------------------------------------

POWERS = st.sampled_from([1, 2, 4, 8, 16, 64, 1024])


@given(st.data())
def test_a_bitmap_survives(data):
    """The partitions come back, in as many bytes as the ring needs."""
    q = data.draw(POWERS)
    partitions = data.draw(st.sets(st.integers(0, q - 1)))
    packed = bitmap(partitions, q)
    assert partitions_of(packed) == partitions
    assert len(packed) == (q + 7) // 8


@given(st.data())
def test_a_bitmap_of_a_coarser_or_finer_ring_is_understood(data):
    """Both halves of a partition that was doubled are held; one that we know undoubled is held if all of it is."""
    ours, theirs = data.draw(st.sampled_from([4, 8, 16, 32])), data.draw(st.sampled_from([4, 8, 16, 32]))
    partitions = data.draw(st.sets(st.integers(0, theirs - 1)))
    gains = data.draw(st.sets(st.integers(0, theirs - 1)))
    gives = holding("a", partitions, q=theirs, gave={"z": gains})
    view = Placement(ring_of("ab", q=ours), ring_of("ab"), frozenset(), {"a": gives})
    for partition in range(ours):
        finest = range(partition * 32 // ours, (partition + 1) * 32 // ours)
        assert view.holds("a", 3, partition) == all(fine * theirs // 32 in partitions for fine in finest)
        assert view.holds("z", 3, partition) == all(fine * theirs // 32 in gains for fine in finest)


def test_founders_hold_both_halves_of_what_was_doubled():
    """The ring that they were founded on was coarser."""
    view = placed("abcd", "abcd", q=2 * Q)
    for partition in range(2 * Q):
        held = {node for node in "abcd" if view.holds(node, 3, partition)}
        assert held == set(ring_of("abcd").owners_of(partition // 2, 3))


# --- nonsense ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "nonsense",
    [
        Holding("a", 1, 0, {}),
        Holding("a", 1, -8, {}),
        Holding("a", 1, 6, {}),
        Holding("a", 1, 131072, {}),
        Holding("a", -1, 8, {}),
        Holding("a", 1, 8, dict.fromkeys(range(1, LEVELS_MAX + 2), b"")),
        Holding("a", 1, 8, {3: b"\1\1"}),
        Holding("a", 1, 1, {3: b"\1\1"}),
        Holding("a", 1, 8, {0: b"\1"}),
        Holding("a", 1, 8, {256: b"\1"}),
        Holding("a", 1, 8, {}, {3: {"b": [(1, b"\1"), (1, b"\1\1")]}}),
        Holding("a", 1, 8, {}, {0: {"b": [(1, b"\1")]}}),
    ],
    ids=repr,
)
def test_what_no_node_can_hold_is_refused(nonsense):
    """It comes from no node of ours, or its bytes are damaged."""
    with pytest.raises(CorruptData, match="'a' holds"):
        check_holding(nonsense)


@pytest.mark.parametrize(
    "sound",
    [
        Holding("a", 0, 1, {1: b"\1", 255: b""}),
        Holding("a", 9, 65536, {3: bitmap({65535}, 65536)}, left=True),
        holding("a", [0, 7], gave={"b": [1], "c": [2]}, seen={"b": 9}),
    ],
    ids=repr,
)
def test_what_nodes_hold_is_not_refused(sound):
    """The smallest ring, the largest one, and the usual."""
    assert check_holding(sound) is sound


@pytest.mark.parametrize("whole", [0, 4096])
def test_a_view_that_follows_another_says_what_one_made_anew_would(monkeypatch, whole):
    """Slots are taken over from view to view while nodes join, leave, gain, give and are removed, and a ring is doubled. Each
    time they are what a placement without a past finds, and all that are others are said to have changed."""
    views = [0, 0]
    honest = Local.place

    def place(local, placement, epoch, buckets):
        before, levels = local.placement, local.levels
        old = {} if before is None else {(p, n): before.slots(p, n) for n in levels for p in range(before.ring.q)}
        anew = Placement(placement.ring, placement._founding, placement.removed, placement._holdings, placement._begun)
        honest(local, placement, epoch, buckets)
        views[placement.changed is not None] += 1
        for n in local.levels:
            for node in sorted(placement.peers):
                assert placement.held(node, n) == anew.held(node, n)
            for p in range(placement.ring.q):
                assert placement.slots(p, n) == anew.slots(p, n)
                assert placement.says(local.node, n, p) == anew.says(local.node, n, p)
                if placement.changed is not None and (p, n) in old and old[p, n] != placement.slots(p, n):
                    assert (n, p) in placement.changed

    monkeypatch.setattr(Local, "place", place)
    wire = moving.filled("abc", view_bytes_whole=whole)
    wire.set_bucket("a", "five", n=5)
    wire.join("d", "e", at="a")
    moving.settle(wire)
    wire.change("b", "reweigh", "d", weight=3.0)
    wire.change("a", "double")
    moving.settle(wire)
    wire.change("c", "leave", "a")
    moving.pass_s(wire, 1.0)
    wire.crash("b")
    wire.change("c", "remove", "b", force=True)
    moving.settle(wire)
    assert views[1] > views[0] > 20, "most views take something over"
