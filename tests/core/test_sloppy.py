"""Sloppy quorum (section 4.6): reads and writes use the first N healthy nodes of the preference list."""

from __future__ import annotations

from typing import Any

import pytest
from tests.core.wire import Wire

from cartwheel.core import versions
from cartwheel.core.coordinator.targets import choose
from cartwheel.core.errors import Code
from cartwheel.core.messages import Failure, Found, PeerDown, ReplicaRead, ReplicaWrite, ReplicaWrote, Stored
from cartwheel.core.storage import record_key, unseal
from cartwheel.core.types import NodeId

KEY = b"cart:7"
AT = record_key("0", KEY)


@pytest.fixture
def five() -> Wire:
    return Wire(["a", "b", "c", "d", "e"])


def preference(wire: Wire) -> tuple[list[NodeId], list[NodeId]]:
    """The owners of the key, and its fallbacks."""
    ring = next(iter(wire.nodes.values())).local.ring
    assert ring is not None
    walk = list(ring.preference(ring.partition_of(AT)))
    return walk[:3], walk[3:]


def lose(wire: Wire, *names: NodeId) -> None:
    """These nodes can no longer be reached by anybody."""
    for name in names:
        wire.crash(name)


def hints(wire: Wire, at: NodeId) -> dict[NodeId, list[Any]]:
    """What a node keeps of the key, by intended node."""
    local = wire.nodes[at].local
    found = {}
    for intended in local.hints.totals:
        sealed = local.hints.get(intended, AT)
        if sealed is not None:
            found[intended] = [v.value for v in versions.decode(unseal(AT, sealed)).versions]
    return found


def values_of(found: Any) -> list[Any]:
    assert isinstance(found, Found), found
    return [v.value for v in found.record.versions]


def test_a_fallback_keeps_the_record_for_the_owner_it_stands_in_for(five):
    owners, (first, second) = preference(five)
    lose(five, owners[1])
    five.set_bucket(owners[0], "0", w=3)
    assert isinstance(five.put(owners[0], KEY, b"x"), Stored)
    assert hints(five, first) == {owners[1]: [b"x"]}
    assert hints(five, second) == {}
    assert five.values(first, KEY) == []  # a hint is no record of its own


def test_two_lost_owners_have_two_fallbacks_in_order(five):
    owners, (first, second) = preference(five)
    lose(five, owners[0], owners[2])
    five.set_bucket(owners[1], "0", w=3)
    assert isinstance(five.put(owners[1], KEY, b"x"), Stored)
    assert hints(five, first) == {owners[0]: [b"x"]}
    assert hints(five, second) == {owners[2]: [b"x"]}


def test_with_no_owner_left_the_fallbacks_coordinate_and_answer(five):
    """P3: a client that reaches one node which reaches W-1 others can write, whoever they are; and reads what it wrote."""
    owners, (first, second) = preference(five)
    lose(five, *owners)
    stored = five.put(second, KEY, b"x")
    assert isinstance(stored, Stored)
    assert stored.coordinator == first  # the first that stands in for an owner
    assert hints(five, first) == {owners[0]: [b"x"]}
    assert hints(five, second) == {owners[1]: [b"x"]}
    assert values_of(five.get(first, KEY)) == [b"x"]
    assert isinstance(five.put(first, KEY, b"y", context=stored.clock), Stored)
    assert values_of(five.get(second, KEY)) == [b"y"]


def test_fallbacks_that_never_heard_of_a_key_are_no_proof_that_it_does_not_exist(five):
    """All its owners may have it."""
    owners, (first, _) = preference(five)
    five.put(owners[0], KEY, b"x")
    lose(five, *owners)
    failure = five.get(first, KEY)
    assert isinstance(failure, Failure)
    assert failure.code is Code.NOQUORUM


def test_empty_fallbacks_that_answer_first_decide_nothing_while_an_owner_may_answer(five):
    """Two of three owners are away, and both stand-ins are faster than the one that has the value."""
    owners, (first, _) = preference(five)
    five.put(owners[0], KEY, b"x")
    lose(five, owners[1], owners[2])
    five.held = {owners[0]}
    five.cut = {(first, owners[0])}
    assert five.get(first, KEY) is None
    five.heal()
    five.held = set()
    five.advance(0.05)
    five.advance(0.2)  # asked once more
    assert values_of(five.replies[five.client]) == [b"x"]


def test_one_owner_and_an_empty_fallback_are_an_answer(five):
    owners, (first, _) = preference(five)
    five.put(owners[0], KEY, b"x")
    lose(five, owners[0], owners[1])
    assert values_of(five.get(first, KEY)) == [b"x"]


def test_a_get_finds_what_a_put_left_with_a_fallback(five):
    """Both choose the same stand-in."""
    owners, _ = preference(five)
    lose(five, owners[0], owners[1])
    five.put(owners[2], KEY, b"x")
    five.sent.clear()
    assert values_of(five.get(owners[2], KEY)) == [b"x"]
    asked = [dst for _, dst, m in five.sent if isinstance(m, ReplicaRead)]
    assert sorted(asked) == sorted(preference(five)[1])


def test_read_repair_hands_a_fallbacks_news_to_a_stale_owner(five):
    """A put that only fallbacks and one owner saw reaches the owner that missed it, with the first get."""
    owners, (first, _) = preference(five)
    five.put(owners[0], KEY, b"old")
    five.cut = {(owners[0], owners[2])}
    five.handle(owners[0], PeerDown(owners[1], "reset"))
    five.put(owners[0], KEY, b"new")
    assert five.values(owners[2], KEY) == [b"old"]
    five.heal()
    assert five.values(first, KEY) == []
    five.get(owners[0], KEY)
    assert five.values(owners[2], KEY) == [b"new"]


def test_a_late_owner_is_stood_in_for_while_the_put_is_under_way(five):
    """It has not been found silent yet; the record goes to a fallback as a hint for it, and the put meets W=3."""
    owners, (first, _) = preference(five)
    five.set_bucket(owners[0], "0", w=3)
    five.cut = {(owners[0], owners[1])}
    assert five.put(owners[0], KEY, b"x") is None
    five.advance(0.05)
    assert five.replies.get(five.client) is None
    five.advance(0.2)
    assert isinstance(five.replies[five.client], Stored)
    assert hints(five, first) == {owners[1]: [b"x"]}


def test_what_goes_to_a_fallback_late_is_the_record_as_it_is_by_then(five):
    """Not what was sent first: that may be superseded everywhere, and its delete reaped."""
    owners, (first, _) = preference(five)
    five.set_bucket(owners[0], "0", w=3)
    five.cut = {(owners[0], owners[1])}
    five.put(owners[0], KEY, b"x")
    five.put(owners[0], KEY, b"y", w=1)
    five.advance(0.05)
    five.advance(0.2)
    assert hints(five, first) == {owners[1]: [b"y"]}


def test_an_owner_and_its_stand_in_are_one_copy(five):
    """Once the hint is delivered there is only the owner's: so their two acks are no W of two."""
    owners, (first, _) = preference(five)
    five.set_bucket(owners[0], "0", w=3)
    five.cut = {(owners[1], owners[0]), (owners[0], owners[2])}  # the one cannot answer, the other is not asked
    five.put(owners[0], KEY, b"x")
    five.advance(0.05)
    five.lose = lambda src, dst, message: dst not in {owners[0], first} and isinstance(message, ReplicaWrite)
    five.advance(0.2)
    assert hints(five, first) == {owners[1]: [b"x"]}
    assert five.replies.get(five.client) is None
    (request_id,) = {i for _, _, m in five.sent if isinstance(m, ReplicaWrite) for i in m.ids}
    five.inject(
        owners[1], owners[0], ReplicaWrote([request_id])
    )  # the owner's own copy: the stand-in's is none besides
    assert hints(five, first) == {owners[1]: [b"x"], owners[2]: [b"x"]}  # so it stands in for the other one now
    assert isinstance(five.replies[five.client], Stored)
    five.nodes[owners[0]].check()


def test_an_ack_of_before_does_not_count_for_the_new_place(five):
    """A fallback that stands in for another owner now is asked under a new id; a repeated ack of the old one is void."""
    owners, (first, _) = preference(five)
    five.set_bucket(owners[0], "0", w=3)
    five.cut = {(owners[1], owners[0]), (owners[0], owners[2])}
    five.put(owners[0], KEY, b"x")
    five.advance(0.05)
    five.lose = lambda src, dst, message: dst not in {owners[0], first} and isinstance(message, ReplicaWrite)
    five.advance(0.2)
    (request_id,) = {i for _, _, m in five.sent if isinstance(m, ReplicaWrite) for i in m.ids}
    five.lose = lambda src, dst, message: isinstance(message, ReplicaWrite)
    five.inject(owners[1], owners[0], ReplicaWrote([request_id]))
    five.inject(first, owners[0], ReplicaWrote([request_id]))
    assert five.replies.get(five.client) is None
    five.advance(3)
    assert isinstance(five.replies[five.client], Failure)
    five.nodes[owners[0]].check()


def test_an_owner_lost_while_a_put_is_under_way_is_stood_in_for(five):
    owners, (first, _) = preference(five)
    five.set_bucket(owners[0], "0", w=3)
    five.cut = {(owners[0], owners[1])}
    assert five.put(owners[0], KEY, b"x") is None
    five.handle(owners[0], PeerDown(owners[1], "reset"))
    assert isinstance(five.replies[five.client], Stored)
    assert hints(five, first) == {owners[1]: [b"x"]}


def test_a_late_owner_is_not_replaced_by_an_empty_fallbacks_answer(five):
    """R counts a fallback that holds nothing only once the owner is given up: else a slow owner would cost freshness."""
    owners, _ = preference(five)
    five.put(owners[0], KEY, b"x")
    five.cut = {(owners[0], owners[1]), (owners[0], owners[2])}
    assert five.get(owners[0], KEY) is None
    five.advance(0.05)
    five.advance(0.2)
    assert five.replies.get(five.client) is None
    five.handle(owners[0], PeerDown(owners[1], "reset"))
    assert values_of(five.replies[five.client]) == [b"x"]


def test_primaries_are_counted_as_such(five):
    """PW demands owners: a fallback's ack does not do."""
    owners, _ = preference(five)
    five.set_bucket(owners[0], "0", pw=3)
    lose(five, owners[2])
    failure = five.put(owners[0], KEY, b"x")
    assert (failure.code, failure.unknown) == (Code.NOQUORUM, False)
    assert failure.text.startswith("need PW=3, got 2")


def test_a_fallback_mints_on_all_that_it_knows(five):
    """What it keeps for whomever: a blind put supersedes it."""
    owners, (first, second) = preference(five)
    lose(five, *owners)
    five.put(first, KEY, b"x", context={})
    five.put(first, KEY, b"y", context={})
    assert sorted(values_of(five.get(second, KEY))) == [b"x", b"y"]
    five.put(first, KEY, b"z")
    assert values_of(five.get(second, KEY)) == [b"z"]


def test_a_node_with_a_full_disk_hands_puts_on_and_takes_deletes(five):
    owners, (first, _) = preference(five)
    five.put(owners[0], KEY, b"x")
    for name in five.nodes:
        five.nodes[name].local.writable.discard(owners[0])
    five.nodes[owners[0]].local.takes_writes = False
    assert five.put(owners[0], KEY, b"y").coordinator == owners[1]
    assert hints(five, first) == {owners[0]: [b"y"]}
    assert five.put(owners[0], KEY, None).coordinator == owners[0]


@pytest.mark.parametrize(
    ("away", "asked", "intended"),
    [
        ("", "012", {}),
        ("1", "023", {"3": "1"}),
        ("13", "024", {"4": "1"}),
        ("012", "34", {"3": "0", "4": "1"}),
        ("1234", "0", {}),
    ],
)
def test_choose(five, away, asked, intended):
    """Each row: with these of the preference list away, these are asked, and stand in for those."""
    owners, fallbacks = preference(five)
    walk = owners + fallbacks
    here = walk[0] if "0" not in away else walk[3]
    for number in away:
        five.handle(here, PeerDown(walk[int(number)], "reset"))
    local = five.nodes[here].local
    targets = choose(local, AT, 3, local.writable)
    assert list(targets.asked) == [walk[int(i)] for i in asked]
    assert targets.intended == {walk[int(k)]: walk[int(v)] for k, v in intended.items()}


def test_an_owner_without_a_stand_in_is_asked_though_it_seems_silent(five):
    """Late is better than never."""
    owners, fallbacks = preference(five)
    local = five.nodes[owners[0]].local
    for name in [owners[1], *fallbacks]:
        local.writable.discard(name)
    targets = choose(local, AT, 3, local.writable)
    assert list(targets.asked) == [owners[0], owners[2], owners[1]]
    assert targets.intended == {}


def test_one_of_the_n_writes_durably_where_durability_is_one(five):
    """Section 6.1: W is met by acks from memory; one replica, not the coordinator, is asked to sync."""
    owners, _ = preference(five)
    five.set_bucket(owners[0], "0", durability="one")
    asked = []
    for i in range(6):
        five.sent.clear()
        five.put(owners[0], KEY, b"%d" % i)
        asked.append({dst: m.durability for _, dst, m in five.sent if isinstance(m, ReplicaWrite)})
    assert all(sorted(d.values()) == [0, 2] for d in asked)
    assert len({dst for d in asked for dst, durability in d.items() if durability}) == 2


def test_a_hint_without_room_marks_its_range_and_fails_no_write():
    """Another fallback takes it, or W owners are enough; anti-entropy compares the partition soon."""
    wire = Wire(["a", "b", "c", "d", "e"], hint_bytes_max_per_node=1)
    owners, _ = preference(wire)
    lose(wire, owners[1])
    wire.advance(0.05)
    marked: list[bytes] = []
    wire.nodes[owners[0]].local.mark_missing = marked.append
    assert isinstance(wire.put(owners[0], KEY, b"x"), Stored)
    assert marked == [AT]
