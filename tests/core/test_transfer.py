"""Hand-over: while nodes come and go every write that was acknowledged is read, and ends where it should (section 4.9)."""

from __future__ import annotations

import pytest
from tests.core.hinted import totals
from tests.core.moving import (
    KEYS,
    Load,
    check_copies,
    cluster,
    filled,
    gained,
    holders,
    pass_s,
    records_to,
    settle,
    slots,
    without_views,
)
from tests.core.wire import Wire

from cartwheel.core.messages import (
    BucketChanged,
    Disagree,
    HandedOver,
    HandOver,
    HintDeliver,
    HintOffer,
    ReplicaWrite,
    ReplicaWrote,
    Stored,
    TreeRoots,
)
from cartwheel.core.replica import Replica
from cartwheel.core.storage import record_key

# --- the whole way ----------------------------------------------------------------------------------------------------


def test_a_ring_grows_and_shrinks_under_load():
    """From one node to six and back to three: nothing is lost or hidden for a moment, and each key ends on its owners."""
    wire = filled("a")
    load = Load(wire)
    for names in ("b", "c", "d", "ef"):
        wire.join(*names, at="a")
        settle(wire, each=load.step)
        load.check_all()
        check_copies(wire)
    for names in ("a", "cf"):
        for name in names:
            wire.stage("b", "leave", name)
        wire.commit("b")
        settle(wire, each=load.step)
        load.check_all()
        check_copies(wire)
        for name in names:
            assert "may be stopped" in wire.nodes[name]._membership.why_no_member()


def test_a_cluster_shrinks_below_n():
    """The last nodes have all there is; those that leave are told when they may be stopped."""
    wire = filled("ab")
    load = Load(wire)
    wire.change("a", "leave", "b")
    settle(wire, each=load.step)
    load.check_all()
    check_copies(wire)
    assert "may be stopped" in wire.nodes["b"]._membership.why_no_member()


@pytest.mark.parametrize("n", [1, 2, 5])
def test_buckets_of_each_n_are_handed_over(n):
    """Their partitions have other owners, in the same ring."""
    wire = cluster("abcd")
    assert wire.set_bucket("a", "x", n=n, r=1, w=1) == BucketChanged()
    for key in KEYS:
        assert isinstance(wire.put("a", key, key, bucket="x"), Stored)
    wire.join("e", at="a")
    wire.stage("b", "leave", "a")
    wire.commit("b")
    settle(wire)
    check_copies(wire, n=n, bucket="x")
    for key in KEYS:
        assert [version.value for version in wire.get("c", key, bucket="x").record.versions] == [key]


def test_a_bucket_whose_n_is_new_is_handed_over_too():
    """Though all have told before what they hold, and not at this n."""
    wire = filled("abcd")
    wire.join("e", at="a")
    settle(wire)
    assert wire.set_bucket("a", "x", n=1, r=1, w=1) == BucketChanged()
    for key in KEYS:
        assert isinstance(wire.put("a", key, key, bucket="x"), Stored)
    wire.change("b", "leave", "a")
    for key in KEYS:
        assert [version.value for version in wire.get("c", key, bucket="x").record.versions] == [key]
    settle(wire)
    check_copies(wire, n=1, bucket="x")


def test_a_node_that_left_joins_again():
    """It comes with nothing, and gains its share like any other."""
    wire = filled("abcd")
    wire.change("a", "leave", "d")
    settle(wire)
    assert not any("d" in holders(wire, key) for key in KEYS)
    wire.crash("d")
    wire.restart("d", joins=True)
    load = Load(wire)
    wire.wait_staged("d", at="a")
    wire.commit("a")
    settle(wire, each=load.step)
    load.check_all()
    check_copies(wire)
    assert any("d" in holders(wire, key) for key in KEYS)


def test_a_ring_is_doubled_under_load():
    """Nothing moves; then halves are handed over like any other partition, also after restarts."""
    wire = filled("abcd")
    load = Load(wire)
    wire.sent.clear()
    wire.change("a", "double")
    settle(wire, each=load.step)
    assert wire.nodes["b"].local.ring.q == 32
    assert sum(records_to(wire, name) for name in wire.nodes) == 0
    for name, end in (("b", "crash"), ("c", "stop")):
        getattr(wire, end)(name)
        wire.restart(name)
    wire.join("e", at="a")
    settle(wire, each=load.step)
    load.check_all()
    check_copies(wire)


# --- requests under way -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("giver", ["a", "b", "c"])
def test_a_write_under_way_while_the_slots_change_is_acknowledged(giver):
    """The coordinator counts anew, and sends it to those who gain the key: also if it gives the key away itself."""
    wire = filled("abc")
    wire.add("d")
    wire.wait_staged("d", at="a")
    wire.held = {"b", "c"}
    for key in KEYS:
        assert wire.put("a", key, b"new") is None
    first, last = wire.client - len(KEYS) + 1, wire.client
    wire.commit("a")
    key = gained(wire, "d", giver=giver)
    wire.release("b")
    wire.release("c")
    for client in range(first, last + 1):
        assert isinstance(wire.replies.get(client), Stored)
    settle(wire)
    check_copies(wire)
    assert [wire.values(name, key) for name in slots(wire, key).owners] == [[b"new"]] * 3


def test_a_write_under_way_outlives_the_hand_over():
    """Its pair has become an owner meanwhile; it waits for the third one, and is counted then."""
    wire = filled("abc", late_s=60.0)
    wire.join("d", at="a")
    key = gained(wire, "d", giver="c")
    wire.held = {"b"}
    assert wire.put("a", key, b"new", w=3, timeout_s=60.0) is None
    put = wire.client
    pass_s(wire, 2)
    assert set(slots(wire, key).owners) == {"a", "b", "d"}, "c has given it to d"
    assert put not in wire.replies
    wire.release("b")
    assert isinstance(wire.replies[put], Stored)
    settle(wire)
    check_copies(wire)
    assert wire.values("d", key) == [b"new"]


def test_a_read_under_way_while_the_slots_change_asks_anew():
    """Those who count now: it need not wait until it is late."""
    wire = filled("abc", late_s=60.0)
    wire.join("d", at="a")
    key = gained(wire, "d", giver="b")
    wire.cut = {("b", "a"), ("c", "a")}
    assert wire.get("a", key, timeout_s=60.0) is None
    get = wire.client
    pass_s(wire, 3)
    assert set(slots(wire, key).owners) == {"a", "c", "d"}
    assert [version.value for version in wire.replies[get].record.versions] == [key]


def old_view(wire: Wire) -> tuple[bytes, str, str, str]:
    """d has taken a key over from a giver, of which one coordinator has not heard; the third owner's commits are held.
    Returns the key, the coordinator, the giver and the third owner."""
    wire.add("d")
    wire.wait_staged("d", at="a")
    wire.lose = without_views("a")
    wire.commit("b")
    key = gained(wire, "d", giver="c", at="b")
    pass_s(wire, 2)
    assert set(slots(wire, key, at="b").owners) == {"a", "b", "d"}, "it has changed hands"
    assert set(slots(wire, key, at="a").owners) == {"a", "b", "c"}, "a has not heard of it"
    wire.held = {"b"}
    return key, "a", "c", "b"


def test_an_old_view_cannot_complete_a_write_through_the_giver():
    """The giver keeps what it is sent, and says that it sees the slots otherwise; once the views are one the write is counted."""
    wire = filled("abc")
    key, coordinator, giver, third = old_view(wire)
    wire.sent.clear()
    assert wire.put(coordinator, key, b"new", timeout_s=60.0) is None
    put = wire.client
    assert {(src, type(message)) for src, dst, message in wire.sent if dst == coordinator} >= {(giver, Disagree)}
    assert not any(src == giver and isinstance(message, ReplicaWrote) for src, _, message in wire.sent)
    assert wire.values("d", key) == [key]
    wire.lose = lambda src, dst, message: False
    pass_s(wire, 2)
    assert isinstance(wire.replies[put], Stored), "its own copy and the new owner's"
    assert wire.values("d", key) == [b"new"]
    wire.release(third)
    settle(wire)
    check_copies(wire)


def test_without_tags_the_giver_would_complete_it(monkeypatch):
    """What the defence is for: a write is acknowledged, and two of the new owners miss it: they are a quorum for reads."""
    monkeypatch.setattr(Replica, "_agrees", lambda self, record_key, tag: True)
    wire = filled("abc")
    key, coordinator, _, third = old_view(wire)
    assert isinstance(wire.put(coordinator, key, b"new"), Stored)
    wire.crash(third)  # with what it had not committed
    wire.crash(coordinator)
    wire.held = set()
    wire.restart(third)
    assert [wire.values(name, key) for name in (third, "d")] == [[key]] * 2
    assert [version.value for version in wire.get("d", key).record.versions] == [key]


def test_an_old_view_reads_nothing_from_a_giver():
    """What the giver holds may be out of date from the moment it gave: it is not counted, and the new owner is asked."""
    wire = filled("abc")
    key, coordinator, giver, third = old_view(wire)
    wire.held = set()
    wire.put("d", key, b"new")
    wire.cut = {(coordinator, third), (third, coordinator)}
    wire.sent.clear()
    result = wire.get(coordinator, key, timeout_s=60.0)
    get = wire.client
    assert result is None
    assert any(src == giver and isinstance(message, Disagree) for src, _, message in wire.sent)
    wire.lose = lambda src, dst, message: False
    pass_s(wire, 2)
    assert b"new" in [version.value for version in wire.replies[get].record.versions]


# --- pairs ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("held", ["c", "d"])
def test_the_slot_of_a_pair_needs_both(held):
    """Giver or gainer alone is no copy that counts."""
    wire = filled("abc")
    wire.join("d", at="a")
    key = gained(wire, "d", giver="c")
    wire.held = {"b", held}
    assert wire.put("a", key, b"new") is None
    put = wire.client
    wire.release(held)
    assert isinstance(wire.replies[put], Stored)
    assert wire.values("d", key) == [b"new"]


def test_a_read_does_not_ask_a_gainer():
    """It does not know yet what it does not know."""
    wire = filled("abc")
    wire.join("d", at="a")
    key = gained(wire, "d", giver="c")
    wire.sent.clear()
    assert [version.value for version in wire.get("d", key).record.versions] == [key]
    assert not any(dst == "d" and type(message).__name__ == "ReplicaRead" for _, dst, message in wire.sent)
    for name in "abc":
        assert [version.value for version in wire.get(name, key, r=3).record.versions] == [key]


def test_a_giver_stands_in_for_its_gainer():
    """While the gainer is away writes succeed, and it does not count before it has the hint."""
    wire = filled("abc")
    wire.join("d", at="a")
    key = gained(wire, "d", giver="c")
    wire.crash("d")
    assert isinstance(wire.put("a", key, b"new", w=3), Stored)
    assert totals(wire, "c") == {"d": 1}
    assert wire.values("c", key) == [b"new"]
    wire.lose = lambda src, dst, message: isinstance(message, HintDeliver | HintOffer)
    wire.restart("d")
    wire.sent.clear()
    shown = set()
    for _ in range(20):
        pass_s(wire, 0.25)
        shown |= {each.waits for each in wire.nodes["d"].status().transfer.gains}
    assert "c keeps hints for d there" in shown
    assert slots(wire, key).gainers == {"c": "d"}
    wire.lose = lambda src, dst, message: False
    settle(wire)
    check_copies(wire)
    assert wire.values("d", key) == [b"new"]


def test_a_gainer_that_falls_silent_is_stood_in_for():
    """A write under way gives the giver a hint for it, too, and is counted once that is durable."""
    wire = filled("abc", late_s=0.2)
    wire.join("d", at="a")
    key = gained(wire, "d", giver="c")
    wire.cut = {(name, "d") for name in "abc"}
    assert wire.put("a", key, b"new", w=3) is None
    put = wire.client
    pass_s(wire, 1)
    assert isinstance(wire.replies[put], Stored)
    assert totals(wire, "c") == {"d": 1}
    wire.heal()
    settle(wire)
    check_copies(wire)
    assert wire.values("d", key) == [b"new"]


def test_a_pair_of_which_both_halves_are_away_is_stood_in_for():
    """Whoever stands in for the giver keeps a hint for the gainer as well, and counts for the slot once it has both (seed
    8000282)."""
    wire = filled("abcde", late_s=0.2)
    wire.join("f", at="a")
    key = gained(wire, "f")
    here = slots(wire, key)
    (giver,) = here.gainers
    first, second = [name for name in "abcde" if name not in here.writers]
    owner, other = [name for name in here.owners if name != giver]
    for name in (other, giver, "f"):
        wire.crash(name)
    put = wire.put(owner, key, b"new", w=3)
    client = wire.client
    pass_s(wire, 1)
    assert isinstance(put or wire.replies[client], Stored)
    kept = [*totals(wire, first), *totals(wire, second)]
    assert sorted(kept) == sorted([other, giver, "f"])
    for name in (other, giver, "f"):
        wire.restart(name)
    settle(wire, 120.0)
    check_copies(wire)
    assert wire.values("f", key) == [b"new"]


@pytest.mark.parametrize("names", ["a", "ab"])
def test_a_blank_owner_counts_for_nothing_and_is_sent_everything(names):
    """Until it has caught up the cluster is as small as before: its commit is not waited for."""
    wire = filled(names)
    wire.join("d", at="a")
    assert slots(wire, KEYS[0]).blanks == ("d",)
    wire.held = {"d"}
    wire.sent.clear()
    assert isinstance(wire.put("a", KEYS[0], b"new"), Stored)
    assert any(dst == "d" and isinstance(message, ReplicaWrite) for _, dst, message in wire.sent)
    assert [version.value for version in wire.get("d", KEYS[0]).record.versions] == [b"new"]
    wire.release("d")
    wire.held = {names[-1]}
    assert wire.put("a", KEYS[1], b"new") is None, "all that count must have it"
    wire.release(names[-1])
    settle(wire)
    check_copies(wire)


def test_only_the_next_blank_owner_catches_up():
    """One at a time: two views that differ by one owner still have quorums that meet."""
    wire = filled("a")
    wire.join("b", "c", at="a")
    first = {key: slots(wire, key).blanks[0] for key in KEYS}
    assert set(first.values()) == {"b", "c"}
    wire.lose = lambda src, dst, message: isinstance(message, HandedOver) and dst == "b"
    pass_s(wire, 5)
    for key in KEYS:
        owners, _, blanks, _ = slots(wire, key)
        assert (set(owners), set(blanks)) == (({"a"}, {"b", "c"}) if first[key] == "b" else ({"a", "c"}, {"b"}))
    assert [(each.source, each.waits) for each in wire.nodes["c"].status().transfer.gains] == [("", "b comes first")]
    wire.lose = lambda src, dst, message: False
    settle(wire)
    check_copies(wire)


def test_a_blank_owner_counts_once_all_owners_have_let_it():
    """Each of them might complete a write without it otherwise."""
    wire = filled("ab")
    wire.join("c", at="a")
    wire.lose = lambda src, dst, message: isinstance(message, HandedOver) and src == "b"
    pass_s(wire, 8)
    assert all(slots(wire, key).blanks == ("c",) for key in KEYS)
    wire.lose = lambda src, dst, message: False
    settle(wire)
    check_copies(wire)


def test_a_gainer_catches_up_only_with_who_knows_that_it_gains():
    """Otherwise a write that is meant for the giver alone might come to the giver afterwards."""
    wire = filled("abcd")
    wire.lose = without_views("d")
    wire.change("a", "leave", "d")
    wire.sent.clear()
    pass_s(wire, 5)
    key = next(key for key in KEYS if "d" in slots(wire, key).gainers)
    gainer = slots(wire, key).gainers["d"]
    assert any(src == gainer and dst == "d" and isinstance(message, TreeRoots) for src, dst, message in wire.sent)
    assert wire.nodes[gainer].status().transfer.received == 0
    assert wire.sealed(gainer, key) is None
    wire.lose = lambda src, dst, message: False
    settle(wire)
    check_copies(wire)


def test_hand_over_is_refused_unless_the_slots_are_seen_alike():
    """Neither with another tag, nor by a stranger to the partition, nor of a partition that does not exist."""
    wire = filled("abc")
    wire.join("d", at="a")
    key = gained(wire, "d", giver="c")
    ring = wire.nodes["c"].local.ring
    partition, tag = ring.partition_of(record_key("0", key)), slots(wire, key).tag
    for src, part in [
        ("d", (3, partition, tag + 1)),
        ("b", (3, partition, tag)),
        ("d", (3, 99, tag)),
        ("d", (0, partition, tag)),
        ("d", (300, partition, tag)),
    ]:
        wire.sent.clear()
        wire.inject(src, "c", HandOver(1, [part]))
        (answer,) = [message for _, _, message in wire.sent if isinstance(message, HandedOver)]
        assert answer.parts == []
    assert slots(wire, key, at="c").gainers == {"c": "d"}


def test_nothing_is_transferred_twice():
    """What a gainer holds already, and what comes by writes meanwhile, is not sent again."""
    wire = filled("abc")
    wire.sent.clear()
    wire.join("d", at="a")
    settle(wire)
    assert records_to(wire, "d") == sum("d" in holders(wire, key) for key in KEYS)
    assert wire.nodes["d"].status().transfer.received == records_to(wire, "d")
    wire.sent.clear()
    pass_s(wire, 20)
    assert sum(records_to(wire, name) for name in wire.nodes) == 0
