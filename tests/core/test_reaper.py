"""Reaping: what is deleted or expired goes for good, once nobody can bring it back."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.core.wire import Wire

from cartwheel.core.messages import PeerDown, PeerUp, Reap, ReapAsk, ReapReady, ReplicaWrite, Stored
from cartwheel.core.storage import Space, record_key
from cartwheel.core.types import Durability, NodeId

KEY = b"cart:7"
AT = record_key("0", KEY)
GRACE_S, QUARANTINE_S = 10.0, 5.0


def cluster(names: str = "abcde") -> Wire:
    return Wire(list(names), q=8, reap_grace_s=GRACE_S, reap_quarantine_s=QUARANTINE_S, reap_pause_s=1.0, late_s=0.2)


@pytest.fixture
def five() -> Wire:
    return cluster()


def preference(wire: Wire, at: bytes = AT) -> list[NodeId]:
    """The owners of the key, then its fallbacks."""
    ring = next(iter(wire.nodes.values())).local.ring
    assert ring is not None
    return list(ring.preference(ring.partition_of(at)))


def pass_s(wire: Wire, seconds: float) -> None:
    """Let time pass, tick by tick."""
    for _ in range(round(seconds / 0.25)):
        wire.advance(0.25)


def holders(wire: Wire, key: bytes = KEY) -> list[NodeId]:
    """Who holds anything of the key."""
    return [name for name in sorted(wire.nodes) if wire.sealed(name, key) is not None]


def test_a_tombstone_goes_when_all_members_have_agreed_twice(five):
    owners = preference(five)[:3]
    five.put(owners[0], KEY, b"x")
    five.put(owners[0], KEY, None)
    pass_s(five, GRACE_S - 1)
    assert holders(five) == sorted(owners)
    five.sent.clear()
    pass_s(five, QUARANTINE_S + 5)
    assert holders(five) == []
    asks = [m for _, _, m in five.sent if isinstance(m, ReapAsk)]
    assert len(asks) == 8  # two rounds, four others


def test_what_has_expired_goes_in_the_same_way(five):
    owners = preference(five)[:3]
    five.put(owners[0], KEY, b"x", expires_at_ms=five.wall_ms + 2000)
    pass_s(five, GRACE_S + 1)
    assert holders(five) == sorted(owners)
    pass_s(five, QUARANTINE_S + 5)
    assert holders(five) == []


def test_what_shows_a_value_stays(five):
    """Also beside a tombstone, and if it expires later."""
    owner = preference(five)[0]
    five.put(owner, KEY, b"x", context={})
    five.put(owner, KEY, None, context={})
    five.put(owner, b"other", b"y", expires_at_ms=five.wall_ms + 3_600_000)
    pass_s(five, GRACE_S + QUARANTINE_S + 10)
    assert len(holders(five)) == 3
    assert len(holders(five, b"other")) == 3


@pytest.mark.parametrize("number", range(5))
def test_while_a_member_is_away_nothing_goes(five, number):
    """Owner or not: it may hold an older copy, or a hint with one. Once it is back, and agrees, the wait is over."""
    walk = preference(five)
    five.put(walk[0], KEY, b"x")
    away = walk[number]
    if number:
        five.put(walk[0], KEY, None)
    for name in walk:
        if name != away:
            five.handle(name, PeerDown(away, "cut off"))
            five.handle(away, PeerDown(name, "cut off"))
    if not number:
        five.put(walk[1], KEY, None)
    pass_s(five, GRACE_S + QUARANTINE_S + 10)
    assert len([n for n in holders(five) if n != away]) >= 2
    for name in walk:
        if name != away:
            five.handle(name, PeerUp(away))
            five.handle(away, PeerUp(name))
    pass_s(five, GRACE_S + QUARANTINE_S + 30)
    assert holders(five) == []


def test_a_member_that_keeps_a_hint_of_the_key_forbids_it(five):
    """The hint may be older than the delete."""
    walk = preference(five)
    five.put(walk[0], KEY, b"x")
    old = five.sealed(walk[0], KEY)
    five.put(walk[0], KEY, None)
    five.handle(walk[4], PeerDown(walk[1], "cut off"))  # so that it is not delivered
    five.nodes[walk[4]].local.hints.put(walk[1], AT, old, Durability.SYNC)
    pass_s(five, GRACE_S + QUARANTINE_S + 10)
    assert len(holders(five)) == 3
    five.handle(walk[4], PeerUp(walk[1]))
    pass_s(five, QUARANTINE_S + 20)
    assert holders(five) == []


def test_a_hint_that_came_between_the_rounds_forbids_it(five):
    """A message from before the first round left it: that is what the second one is for."""
    walk = preference(five)
    five.put(walk[0], KEY, b"x")
    old = five.sealed(walk[0], KEY)
    five.put(walk[0], KEY, None)
    rounds = []
    five.lose = lambda src, dst, message: isinstance(message, ReapReady) and rounds.append(message.id) is not None
    while not rounds:
        five.advance(0.25)
    five.nodes[walk[4]].local.hints.put("z", AT, old, Durability.SYNC)
    pass_s(five, QUARANTINE_S + 5)
    assert len(set(rounds)) >= 1
    assert len(holders(five)) == 3


def test_an_owner_that_missed_the_delete_forbids_it(five):
    """Until it has it."""
    walk = preference(five)
    five.put(walk[0], KEY, b"x")
    five.lose = lambda src, dst, message: dst == walk[2] and not isinstance(message, ReapAsk)
    five.put(walk[0], KEY, None)
    assert five.values(walk[2], KEY) == [b"x"]
    pass_s(five, GRACE_S + QUARANTINE_S + 10)
    assert five.values(walk[2], KEY) == [b"x"]
    assert len(holders(five)) == 3


def test_an_owner_that_finds_it_alive_by_its_own_clock_forbids_it(five):
    """The first owner's clock is days ahead."""
    walk = preference(five)
    five.put(walk[0], KEY, b"x", expires_at_ms=five.wall_ms + 3_600_000)
    five.skew_ms[walk[0]] = 10 * 86_400_000
    pass_s(five, GRACE_S + QUARANTINE_S + 10)
    assert len(holders(five)) == 3


def test_a_key_that_is_written_again_meanwhile_stays(five):
    walk = preference(five)
    five.put(walk[0], KEY, None)
    pass_s(five, GRACE_S + 2)
    assert isinstance(five.put(walk[1], KEY, b"again"), Stored)
    pass_s(five, QUARANTINE_S + 10)
    assert five.values(walk[2], KEY) == [b"again"]


def test_an_old_write_that_arrives_before_the_end_is_covered(five):
    """At any time up to the removal: by then everything of before has arrived."""
    walk = preference(five)
    five.put(walk[0], KEY, b"x")
    old = five.sealed(walk[0], KEY)
    five.put(walk[0], KEY, None)
    for _ in range(60):
        if not holders(five):
            break
        five.inject(walk[3], walk[1], ReplicaWrite([1], AT, old, 2, 1))
        five.advance(0.25)
    assert all(value is None for name in holders(five) for value in five.values(name, KEY))


def test_after_it_is_gone_the_key_can_be_written_anew(five):
    """By the same coordinator, whose dots on it are forgotten with it."""
    walk = preference(five)
    first = five.put(walk[0], KEY, b"x")
    five.put(walk[0], KEY, None)
    pass_s(five, GRACE_S + QUARANTINE_S + 5)
    assert holders(five) == []
    again = five.put(walk[0], KEY, b"y", context=first.clock)
    assert isinstance(again, Stored)
    for owner in walk[:3]:
        assert five.values(owner, KEY) == [b"y"]


def test_many_are_reaped_together(five):
    """Across partitions: one batch, two rounds."""
    for i in range(100):
        five.put("a", b"%d" % i, None)
    five.sent.clear()
    pass_s(five, GRACE_S + QUARANTINE_S + 8)
    assert not any(holders(five, b"%d" % i) for i in range(100))
    asks = [m for src, _, m in five.sent if isinstance(m, ReapAsk)]
    assert len(asks) <= 8 * 5  # each of five first owners


def test_a_lost_order_is_made_up_for_by_a_later_round(five):
    """The tombstone that stays behind spreads again, and goes with the next round."""
    walk = preference(five)
    five.put(walk[0], KEY, None)
    lost = []
    five.lose = lambda src, dst, message: isinstance(message, Reap) and not lost and lost.append(dst) is None
    pass_s(five, GRACE_S + QUARANTINE_S + 4)
    assert lost[0] in holders(five)
    pass_s(five, 60)
    assert holders(five) == []


@settings(max_examples=40, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(0, 4), st.sampled_from(["put", "delete", "beside", "wait", "cut", "heal"])), max_size=25
    )
)
def test_a_deleted_value_never_returns(steps):
    """Whatever is written, deleted, cut off and reaped: a key whose last write is a delete that saw everything stays deleted."""
    wire = cluster("abcd")
    for number, (node, step) in enumerate(steps):
        name = "abcd"[node % 4]
        if step == "wait":
            pass_s(wire, 4)
        elif step == "cut":
            wire.cut |= {(name, "abcd"[number % 4])}
        elif step == "heal":
            wire.heal()
        else:
            value = None if step == "delete" else b"%d" % number
            wire.put(name, KEY, value, w=1, **({"context": {}} if step == "beside" else {}))
    wire.heal()
    pass_s(wire, 12)
    found = wire.get("a", KEY)
    wire.put("b", KEY, None, context=found.record.clock, dots=found.record.cloud)
    for _ in range(20):
        pass_s(wire, 5)
        shown = wire.get("c", KEY)
        assert not any(v.value for v in shown.record.versions), shown
    assert not any(wire.stores[n].scan(Space.RECORDS, limit=1) for n in wire.nodes)
