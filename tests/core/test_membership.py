"""Membership: histories unite, and bucket properties reach all, whoever was away (section 4.8.1)."""

from __future__ import annotations

import msgspec
import pytest
from tests.core.moving import filled, settle
from tests.core.wire import WALL_MS, Wire, history_of

from cartwheel.core.clock import reading
from cartwheel.core.config import BucketProps
from cartwheel.core.errors import Code
from cartwheel.core.membership import GOSSIP_S, PUSH_INTERVAL_S
from cartwheel.core.messages import (
    BucketChanged,
    CountAsk,
    Failure,
    Gossip,
    HandedOver,
    JoinAsk,
    JoinTold,
    ReplicaRead,
    ReplicaWrite,
    Stored,
    ViewPush,
)
from cartwheel.core.ring import Change, ChangeKind, History, Member
from cartwheel.core.storage import record_key


@pytest.fixture
def wire() -> Wire:
    return Wire(["a", "b", "c"])


def bucket_change(at: int, props: dict[str, str], *, bucket: str = "x", name: str = "later") -> Change:
    return Change(id=name, at=at, author="z", kind=ChangeKind.BUCKET, bucket=bucket, props=props)


def pushes(wire: Wire) -> list[tuple[str, str]]:
    return [(src, dst) for src, dst, message in wire.sent if isinstance(message, ViewPush)]


def test_a_bucket_change_reaches_all(wire):
    """All nodes come to the same properties and the same epoch; other buckets keep theirs."""
    assert wire.set_bucket("a", "x", w=1, reconcile="lww") == BucketChanged()
    for node in wire.nodes.values():
        assert node.local.props("x") == BucketProps(w=1, reconcile="lww")
        assert node.local.props("y") == BucketProps()
        assert node.epoch == wire.nodes["a"].epoch
    assert wire.set_bucket("b", "x", r=3) == BucketChanged()
    assert wire.nodes["c"].local.props("x") == BucketProps(r=3, w=1, reconcile="lww")


def test_plans_follow_the_properties(wire):
    """A request after a change runs by it."""
    wire.held = {"b", "c"}
    assert wire.put("a", b"k", b"x", bucket="x") is None
    wire.release("b")
    wire.release("c")
    wire.set_bucket("b", "x", w=1)
    wire.held = {"b", "c"}
    assert isinstance(wire.put("a", b"k", b"x", bucket="x"), Stored)


@pytest.mark.parametrize(
    ("bucket", "props", "text"),
    [
        ("x", {"w": "4"}, "bucket property w=4 must lie between 1 and 3"),
        ("x", {"size": "4"}, "unknown bucket property 'size'"),
        ("x" * 256, {"w": "1"}, "the bucket's name is longer than 255 bytes"),
    ],
)
def test_a_change_that_makes_no_sense_is_refused(wire, bucket, props, text):
    """Each row: the client is told why, and nothing changes."""
    epoch = wire.nodes["a"].epoch
    failure = wire.set_bucket("a", bucket, **props)
    assert isinstance(failure, Failure)
    assert (failure.code, failure.unknown) == (Code.INVALID, False)
    assert failure.text.startswith(text)
    assert {node.epoch for node in wire.nodes.values()} == {epoch}


def test_a_change_is_made_known_only_once_it_is_durable(wire):
    """Neither to the client nor to peers."""
    wire.held = {"a"}
    wire.sent.clear()
    assert wire.set_bucket("a", "x", w=1) is None
    assert not pushes(wire)
    wire.release("a")
    assert wire.replies[wire.client] == BucketChanged()
    assert pushes(wire)[:2] == [("a", "b"), ("a", "c")]


def test_a_node_that_was_away_learns_the_changes(wire):
    """When it is back its peers show it their history, and it shows them its own."""
    wire.crash("c")
    wire.set_bucket("a", "x", w=1)
    assert wire.nodes["a"].epoch == wire.nodes["b"].epoch
    wire.restart("c")
    assert wire.nodes["c"].local.props("x") == BucketProps(w=1)


def test_both_sides_of_a_split_unite(wire):
    """Changes made on both sides are all kept; the first batch after it, of whatever kind, brings them together."""
    wire.split("a", "bc")
    wire.set_bucket("a", "x", w=1)
    wire.set_bucket("b", "x", r=1)
    wire.set_bucket("c", "y", n=5)
    assert wire.nodes["a"].local.props("x") == BucketProps(w=1)
    wire.heal()
    wire.pass_time(PUSH_INTERVAL_S)
    wire.put("a", b"k", b"x")
    assert len({node.epoch for node in wire.nodes.values()}) == 1
    for node in wire.nodes.values():
        assert node.local.props("x") == BucketProps(r=1, w=1)
        assert node.local.props("y") == BucketProps(n=5)


def test_other_epochs_are_answered_with_a_push_a_second(wire):
    """Not one for each of the thousands of batches that travel until it has arrived."""
    wire.pass_time(10)
    wire.sent.clear()
    for _ in range(5):
        wire.inject("b", "a", CountAsk(1, "0"), epoch=b"another")
    assert pushes(wire) == [("a", "b")]
    wire.pass_time(PUSH_INTERVAL_S)
    wire.inject("b", "a", CountAsk(1, "0"), epoch=b"another")
    assert pushes(wire) == [("a", "b")] * 2
    wire.inject("c", "a", CountAsk(1, "0"))
    assert len(pushes(wire)) == 2


def test_a_push_is_answered_only_by_who_knows_more(wire):
    """Equal histories end the exchange; repetition changes nothing."""
    wire.set_bucket("a", "x", w=1)
    mine = wire.nodes["a"]._membership._history
    wire.pass_time(10)
    wire.sent.clear()
    wire.inject("b", "a", ViewPush(mine.encode()))
    assert not pushes(wire)
    wire.inject("b", "a", ViewPush(history_of(["a", "b", "c"]).encode()))
    assert pushes(wire) == [("a", "b")]
    wire.sent.clear()
    more = mine.union([bucket_change(reading(WALL_MS), {"r": "1"})])
    for _ in range(2):
        wire.inject("b", "a", ViewPush(more.encode()))
    assert wire.nodes["a"].epoch == more.digest()
    assert wire.nodes["a"].status().counters["histories_united"] == 1


@pytest.mark.parametrize("garbage", [b"\x00", b"\xc1", b"\x91\x01", b"\x91\x95" + b"\x91" * 100_000])
def test_a_damaged_history_is_refused(wire, garbage):
    """It changes nothing, and the node goes on."""
    epoch = wire.nodes["a"].epoch
    wire.inject("b", "a", ViewPush(garbage))
    assert wire.nodes["a"].epoch == epoch
    assert wire.nodes["a"].status().counters["histories_refused"] == 1


def test_the_history_survives_a_restart(wire):
    """Clean or not; the first membership that a node is started with counts on a new disk only."""
    wire.set_bucket("a", "x", w=1)
    epoch = wire.nodes["a"].epoch
    wire.stop("a")
    wire.restart("a")
    assert wire.nodes["a"].epoch == epoch
    wire.crash("a")
    wire._names = ["a", "q"]
    wire.restart("a")
    assert wire.nodes["a"].epoch == epoch
    assert sorted(wire.nodes["a"].local.ring.members) == ["a", "b", "c"]


def test_properties_of_a_newer_version_are_left_out(wire):
    """And counted; what this version understands holds, so that it agrees with the newer nodes about it."""
    props = {"n": "1", "r": "1", "w": "1", "colour": "red", "reconcile": "crdt"}
    newer = wire.nodes["a"]._membership._history.union([bucket_change(reading(WALL_MS), props)])
    wire.inject("b", "a", ViewPush(newer.encode()))
    assert wire.nodes["a"].local.props("x") == BucketProps(n=1, r=1, w=1)
    assert wire.nodes["a"].status().counters["bucket_props_ignored"] >= 1
    wire.put("a", b"k", b"x", bucket="x")


def test_a_change_comes_after_all_that_its_author_knew(wire):
    """Even after one whose clock was far ahead: what the client is told is changed, is."""
    ahead = bucket_change(reading(WALL_MS + 3_600_000), {"w": "3"})
    wire.inject("b", "a", ViewPush(wire.nodes["a"]._membership._history.union([ahead]).encode()))
    assert wire.nodes["a"].local.props("x") == BucketProps(w=3)
    assert wire.set_bucket("a", "x", w=1) == BucketChanged()
    assert wire.nodes["a"].local.props("x") == BucketProps(w=1)
    assert isinstance(wire.put("a", b"k", b"x"), Stored)  # and our clock was not dragged along


def test_a_change_at_the_end_of_time_cannot_be_topped(wire):
    """It is refused, not fatal."""
    last = bucket_change((1 << 64) - 1, {"w": "3"})
    wire.inject("b", "a", ViewPush(wire.nodes["a"]._membership._history.union([last]).encode()))
    assert wire.set_bucket("a", "x", w=1).code is Code.INVALID


def test_placement_follows_the_history(wire):
    """A member that joined is sent its share of the writes at once, also of keys whose owners were looked up before; it counts
    for none of them yet."""
    keys = [b"%d" % i for i in range(50)]
    for key in keys:
        wire.put("a", key, b"x")
    member = Member(node="d", address="127.0.0.1:7003", host="h")
    join = Change(id="join:d", at=reading(WALL_MS), author="b", kind=ChangeKind.JOIN, member=member)
    commit = Change(id="commit", at=reading(WALL_MS) + 1, author="b", kind=ChangeKind.COMMIT, changes=("join:d",))
    local = wire.nodes["a"].local
    wire.inject("b", "a", ViewPush(wire.nodes["a"]._membership.history.union([join]).encode()))
    assert local.size == 3, "it is staged"
    wire.inject("b", "a", ViewPush(wire.nodes["a"]._membership.history.union([commit]).encode()))
    assert local.size == 4
    slots = [local.slots(record_key("0", key), 3) for key in keys]
    assert 25 <= sum("d" in each.writers for each in slots) <= 45  # three in four
    assert not any("d" in each.owners for each in slots)


def test_two_changes_of_one_node_are_two(wire):
    """Their ids differ, though they come in the same millisecond."""
    wire.set_bucket("a", "x", w=1)
    wire.set_bucket("a", "x", w=2)
    changes = [c for c in wire.nodes["b"]._membership._history if c.kind is ChangeKind.BUCKET]
    assert [c.props for c in changes] == [{"w": "1"}, {"w": "2"}]
    assert len({c.id for c in changes}) == 2
    assert changes[0].at < changes[1].at


def test_an_empty_history_has_no_last_change():
    """A node that is started with none waits to be told."""
    wire = Wire(["a"])
    membership = wire.nodes["a"]._membership
    membership._history = History()
    assert membership._latest() == 0


def test_plans_are_kept_for_a_bounded_number_of_buckets(wire, monkeypatch):
    """Clients make up bucket names; beyond the limit a plan is made anew each time, and is just as right."""
    monkeypatch.setattr("cartwheel.core.local.PLANS_MAX", 2)
    for i in range(4):
        assert isinstance(wire.put("a", b"k", b"x", bucket=f"made up {i}"), Stored)
    assert len(wire.nodes["a"].local._plans) == 2
    wire.set_bucket("a", "made up 3", w=3)
    assert wire.nodes["a"].local.plan("made up 3").w == 3


def test_status_shows_the_members(wire):
    """With their addresses, tokens and whether they are reachable from here, and why not."""
    wire.crash("c")
    status = wire.nodes["a"].status()
    assert (status.node, status.cluster, status.stint, status.q) == ("a", "test", "s1", 64)
    assert status.epoch == wire.nodes["a"].epoch.hex()
    assert [(m.node, m.address, m.reachable, m.reason) for m in status.members] == [
        ("a", "127.0.0.1:7000", True, ""),
        ("b", "127.0.0.1:7001", True, ""),
        ("c", "127.0.0.1:7002", False, "connection lost"),
    ]
    assert sum(m.partitions for m in status.members) == 64
    assert {(m.host, m.zone, m.weight) for m in status.members} == {("h", "", 1.0)}
    assert msgspec.json.encode(status)


# --- holdings ---


def grown(*names: str) -> Wire:
    """Three nodes, and these that have joined; all is handed over."""
    wire = filled("abc")
    wire.join(*names, at="a")
    settle(wire)
    return wire


def told(wire: Wire, name: str) -> dict[str, bytes]:
    """What a node knows of what each holds, as bytes."""
    holdings = wire.nodes[name]._membership._holdings
    return {node: msgspec.msgpack.encode(holding) for node, holding in sorted(holdings.items())}


@pytest.mark.parametrize("end", ["stop", "crash"])
def test_what_nodes_hold_survives_a_restart(end):
    """Of oneself and of the others: the same view, under the same epoch, before anybody has been heard."""
    wire = grown("d")
    before = told(wire, "a")
    assert before.keys() == {*"abcd"}
    epoch = wire.nodes["a"].epoch
    for name in "ad":
        getattr(wire, end)(name)
    wire.lose = lambda src, dst, message: isinstance(message, ViewPush)
    for name in "ad":
        wire.restart(name)
        assert told(wire, name) == before
        assert wire.nodes[name].epoch == epoch
    assert not wire.nodes["d"].status().transfer.gains


def test_a_holding_is_made_known_only_once_it_is_durable():
    """What a node says that it has given it must not have again after a crash."""
    wire = filled("abc")
    wire.join("d", at="a")
    wire.sent.clear()
    wire.held = {"c"}
    for _ in range(8):
        wire.advance(0.25)
    own = wire.nodes["c"]._membership._holdings["c"]
    assert own.given
    assert not [message for src, _, message in wire.sent if src == "c" and isinstance(message, HandedOver)]
    for src, _, message in wire.sent:
        if src == "c" and isinstance(message, ViewPush):
            assert "c" not in {holding.node for holding in message.holdings}
    wire.release("c")
    assert any(isinstance(message, HandedOver) for src, _, message in wire.sent if src == "c")


def test_an_older_holding_does_not_replace_a_newer_one():
    """It may come late, and by any way; what cannot be is refused whole."""
    wire = grown("d")
    before, epoch = told(wire, "a"), wire.nodes["a"].epoch
    older = msgspec.structs.replace(wire.nodes["a"]._membership._holdings["d"], version=1, held={})
    wire.inject("b", "a", ViewPush(b"", [older]))
    wire.inject("b", "a", ViewPush(b"", [msgspec.structs.replace(older, version=1 << 40, q=7)]))
    assert (told(wire, "a"), wire.nodes["a"].epoch) == (before, epoch)
    assert wire.nodes["a"].local.counters["histories_refused"] == 1


# --- gossip ---


def test_nodes_that_missed_every_push_agree_by_gossip():
    """Nobody asks them anything: only time passes."""
    wire = grown("d")
    wire.lose = lambda src, dst, message: isinstance(message, ViewPush)
    wire.set_bucket("a", "x", w=1)
    wire.join("e", at="b")
    assert len({node.epoch for node in wire.nodes.values()}) > 2
    wire.lose = lambda src, dst, message: False
    settle(wire)
    assert {told(wire, name)["e"] for name in "abcde"} == {told(wire, "a")["e"]}
    for node in wire.nodes.values():
        assert "e" in node.local.ring.members
        assert node.local.props("x") == BucketProps(w=1)


def test_gossip_goes_to_one_peer_a_second_by_lot(wire):
    """To each of them in the long run, in another order from each node, the same in every run."""
    wire.sent.clear()
    for _ in range(240):
        wire.advance(GOSSIP_S / 4)
    gossip = [(src, dst) for src, dst, message in wire.sent if isinstance(message, Gossip)]
    assert all(55 <= sum(src == name for src, _ in gossip) <= 60 for name in "abc")
    for src, dst in [("a", "b"), ("a", "c"), ("b", "a"), ("b", "c"), ("c", "a"), ("c", "b")]:
        assert 15 <= gossip.count((src, dst)) <= 45


def test_a_node_alone_gossips_with_nobody():
    """And asks nobody to let it join."""
    wire = Wire(["a"])
    wire.add("b")
    wire.crash("a")
    wire.sent.clear()
    wire.advance(5)
    assert wire.sent == []


# --- nodes that want to join ---


def test_the_join_of_a_stranger_is_staged_once(wire):
    """However often it asks, and whom; it is told what its join waits for."""
    wire.add("d", zone="z", weight=2.0)
    for _ in range(12):
        wire.advance(1)
    (change,) = wire.staged("a")
    assert change.member == Member("d", "d:7702", "h", "z", 2.0)
    assert [wire.staged(name) for name in "bc"] == [(change,)] * 2
    assert len({src for src, dst, message in wire.sent if dst == "d" and isinstance(message, JoinTold)}) == 3
    assert "its join is staged" in wire.nodes["d"].status().notes[0]
    assert "d" not in wire.nodes["a"].local.ring.members


def told_to(wire: Wire, name: str) -> list[str]:
    return [message.waits for _, dst, message in wire.sent if dst == name and isinstance(message, JoinTold)]


def test_who_may_not_join_is_told_why(wire):
    """Nothing is staged for a member, by a stranger, or in another node's name."""
    wire.add("d", joins=False)
    wire.sent.clear()
    wire.inject("e", "d", JoinAsk(Member("e", "e:1", "h")))
    assert told_to(wire, "e") == ["d is no member itself"]
    wire.inject("c", "a", JoinAsk(Member("c", "c:1", "h")))
    assert told_to(wire, "c") == ["it is a member"]
    wire.inject("e", "a", JoinAsk(Member("f", "f:1", "h")))
    assert wire.nodes["a"].local.counters["messages_refused"] == 1
    assert not wire.staged("a")


def test_a_stranger_serves_nobody(wire):
    """Neither clients, who are told to ask a member, nor nodes; and it has no part in what members do."""
    wire.add("d")
    wire.put("a", b"k", b"x")
    for result in (wire.put("d", b"k", b"y"), wire.get("d", b"k")):
        assert isinstance(result, Failure)
        assert (result.code, result.unknown) == (Code.NOQUORUM, False)
        assert result.text == "d is no member of the cluster; ask one that is"
    wire.sent.clear()
    at = record_key("0", b"k")
    wire.inject("d", "a", ReplicaRead(1, at), ReplicaWrite([2], at, wire.sealed("a", b"k"), 0, 0), CountAsk(3, "0"))
    assert not [message for src, _, message in wire.sent if src == "a"]
    wire.sent.clear()
    wire.put("a", b"k", b"z")
    assert not [message for _, dst, message in wire.sent if dst == "d"]


def test_a_member_at_a_new_address_tells(wire):
    """Once: others find it there from then on."""
    wire.add("d")
    for _ in range(3):
        wire.advance(1)
    wire.commit("a")
    wire.stop("d")
    for _ in range(2):
        wire.restart("d", address="elsewhere:1")
        wire.stop("d")
    assert wire.nodes["a"]._membership.addresses()["d"] == "elsewhere:1"
    assert wire.nodes["a"].local.ring.members["d"].address == "elsewhere:1"
    changes = [change for change in wire.nodes["a"]._membership.history if change.kind is ChangeKind.ADDRESS]
    assert len(changes) == 1
