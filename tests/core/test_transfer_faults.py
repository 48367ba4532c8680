"""Hand-over among crashes, splits and removals; and what it leaves behind is removed only when it is nowhere needed."""

from __future__ import annotations

import random

import pytest
from tests.core.differing import OLD, old, plant
from tests.core.hinted import hint, record_of, totals
from tests.core.moving import (
    GRACE_S,
    KEYS,
    Load,
    check_copies,
    filled,
    gained,
    holders,
    pass_s,
    records_to,
    settle,
    slots,
)
from tests.core.wire import Wire

from cartwheel.core import versions
from cartwheel.core.messages import (
    ClientCount,
    ClientGet,
    ClientHints,
    ClientScan,
    Counts,
    Failure,
    Forward,
    Forwarded,
    Found,
    HintDeliver,
    HintsTold,
    JoinAsk,
    JoinTold,
    LeafDiff,
    LeafRows,
    Message,
    PutRequest,
    ReplicaRead,
    ReplicaValue,
    ReplicaWrite,
    ReplicaWrote,
    ScanPage,
    Stored,
    ViewPush,
)
from cartwheel.core.ring import Member
from cartwheel.core.storage import Space, record_key
from cartwheel.core.types import Durability

MANY = [b"%d" % i for i in range(600)]


def in_the_middle(wire: Wire, gainer: str, source: str, *, after: int = 2) -> int:
    """Let time pass until so many answers with records have come from one source, and one more is lost. Returns its records."""
    come = []

    def lose(src: str, dst: str, message: Message) -> bool:
        if isinstance(message, LeafDiff) and (src, dst) == (source, gainer) and message.rows:
            come.append(len(message.rows))
        return len(come) > after and isinstance(message, LeafDiff) and (src, dst) == (source, gainer)

    wire.lose = lose
    for _ in range(100):
        if len(come) > after:
            break
        wire.advance(0.05)
    assert len(come) > after
    wire.lose = lambda src, dst, message: False
    return sum(come[after:])


def still_gains(wire: Wire, gainer: str, giver: str, at: str) -> bool:
    """Whether there is a partition that has not changed hands yet."""
    placement = wire.nodes[at].local.placement
    assert placement is not None
    return any(placement.slots(partition, 3).gainers.get(giver) == gainer for partition in range(placement.ring.q))


# --- crashes ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("who", ["giver", "gainer"])
@pytest.mark.parametrize("how", ["crash", "stop"])
def test_a_hand_over_that_was_cut_short_goes_on_where_it_was(who, how):
    """Whoever was away, and however it ended: what has come already is not sent again, and nothing is missed meanwhile."""
    wire = filled("abc", MANY, q=64)
    wire.sent.clear()
    wire.join("d", at="a")
    lost = in_the_middle(wire, "d", "c", after=5)
    name = "c" if who == "giver" else "d"
    come = sum(wire.sealed("d", key) is not None for key in MANY)
    assert 0 < come < sum("d" in slots(wire, key).writers for key in MANY)
    assert still_gains(wire, "d", "c", at="a")
    getattr(wire, how)(name)
    load = Load(wire, MANY)
    for _ in range(8):
        wire.advance(0.25)
        load.step()
    assert still_gains(wire, "d", "c", at="a")
    missed = len(load.stored)
    wire.restart(name)
    settle(wire, each=load.step)
    load.check_all()
    check_copies(wire, MANY)
    assert come > 5 * lost
    assert records_to(wire, "d") <= sum("d" in holders(wire, key) for key in MANY) + lost + missed


def test_a_gainer_with_a_lost_disk_begins_anew():
    """Its holding is lost with its records; what the others know of it does not make it count for what it has not."""
    wire = filled("abc")
    wire.join("d", at="a")
    in_the_middle(wire, "d", "c", after=0)
    wire.crash("d")
    wire.add("d")
    load = Load(wire)
    settle(wire, each=load.step)
    load.check_all()
    check_copies(wire)


def test_a_giver_that_is_removed_for_ever_leaves_a_blank():
    """The gainer catches up from the other owners instead."""
    wire = filled("abc", MANY)
    wire.join("d", at="a")
    in_the_middle(wire, "d", "c")
    wire.crash("c")
    key = gained(wire, "d", giver="c")
    wire.change("a", "remove", "c", force=True)
    assert slots(wire, key).blanks == ("d",)
    assert set(slots(wire, key).owners) == {"a", "b"}
    load = Load(wire, MANY)
    settle(wire, each=load.step)
    load.check_all()
    check_copies(wire, MANY)
    assert set(slots(wire, key).owners) == {"a", "b", "d"}


def test_two_nodes_join_at_once():
    """By one commit; or by another while the first hand-over is under way."""
    for names in (["de"], ["d", "e"]):
        wire = filled("abc")
        load = Load(wire)
        for each in names:
            wire.join(*each, at="a")
            load.step()
        settle(wire, each=load.step)
        load.check_all()
        check_copies(wire)
        assert all(any(name in holders(wire, key) for key in KEYS) for name in "de")


def test_a_change_of_mind_in_the_middle():
    """A node that has gained half of its share leaves again: what it has taken over goes back."""
    wire = filled("abc", MANY)
    load = Load(wire, MANY)
    wire.join("d", at="a")
    in_the_middle(wire, "d", "c")
    wire.change("b", "leave", "d")
    settle(wire, each=load.step)
    load.check_all()
    check_copies(wire, MANY)
    assert "may be stopped" in wire.nodes["d"]._membership.why_no_member()


@pytest.mark.parametrize("seed", range(3))
def test_lost_messages_cost_time_only(seed):
    """A sixth of them is lost, of each kind but those of clients' requests; nothing else is done about it."""
    wire = filled("abc")
    lot = random.Random(seed)
    kept = ReplicaWrite | ReplicaWrote | ReplicaRead | ReplicaValue
    wire.join("d", at="a")
    wire.lose = lambda src, dst, message: lot.random() < 1 / 6 and not isinstance(message, kept)
    puts: dict[int, bytes] = {}

    def put() -> None:
        for name in "abcd":
            key = b"during %d" % len(puts)
            wire.put(name, key, key)
            puts[wire.client] = key

    for _ in range(40):
        wire.advance(0.25)
        put()
    settle(wire, 300)
    wire.lose = lambda src, dst, message: False
    pass_s(wire, 10)
    stored = [key for client, key in puts.items() if isinstance(wire.replies[client], Stored)]
    assert len(stored) > len(puts) / 2
    for key in KEYS + stored:
        for name in "abcd":
            assert key in [version.value for version in wire.get(name, key).record.versions]


# --- splits and removals ----------------------------------------------------------------------------------------------


def test_two_administrators_on_two_sides_of_a_split_end_in_one_ring():
    """Each side has carried out its own change; the union of both is one ring, and all is handed over to it."""
    wire = filled("abcd", MANY)
    wire.add("e")
    wire.wait_staged("e", at="a")
    wire.split("abe", "cd")
    wire.commit("a", force=True)
    wire.change("c", "reweigh", "d", weight=2.0, force=True)
    load = Load(wire, MANY)
    for _ in range(8):
        wire.advance(0.25)
    assert len({node.epoch for node in wire.nodes.values()}) > 1
    wire.heal()
    settle(wire, each=load.step)
    rings = [node.local.ring for node in wire.nodes.values()]
    assert all(ring == rings[0] for ring in rings)
    assert rings[0].members["d"].weight == 2.0
    assert "e" in rings[0].members
    load.check_all()
    check_copies(wire, MANY)


def test_a_removed_node_that_comes_back_is_not_heard():
    """It stores nothing at others, acknowledges nothing, and learns from the first of them that it is removed for ever."""
    wire = filled("abcd")
    wire.crash("d")
    wire.change("a", "remove", "d", force=True)
    settle(wire)
    wire.lose = lambda src, dst, message: isinstance(message, ViewPush)
    wire.restart("d")
    wire.sent.clear()
    assert not isinstance(wire.put("d", KEYS[0], b"of the removed", timeout_s=3.0), Stored)
    put = wire.client
    answers = [type(message) for src, dst, message in wire.sent if dst == "d"]
    assert set(answers) <= {ViewPush}
    pass_s(wire, 5)
    assert isinstance(wire.replies[put], Failure)
    assert not any(b"of the removed" in wire.values(name, KEYS[0]) for name in "abc")
    wire.lose = lambda src, dst, message: False
    pass_s(wire, 2)
    node = wire.nodes["d"]
    assert not node.local.serves
    assert "was removed from the cluster for ever" in node._membership.why_no_member()
    assert isinstance(wire.put("d", KEYS[0], b"new"), Failure)
    wire.sent.clear()
    wire.inject("d", "a", JoinAsk(Member("d", "d:1", "h")))
    assert [message.refused for _, dst, message in wire.sent if isinstance(message, JoinTold)] == [True]
    assert not wire.staged("a")


def test_an_ack_of_a_removed_node_does_not_count():
    """The trap: a coordinator asked it while it was a member."""
    wire = filled("abcd", late_s=60.0)
    key = next(key for key in KEYS if set(slots(wire, key).owners) == set("abd"))
    wire.held = {"b", "d"}
    assert wire.put("a", key, b"new", timeout_s=60.0) is None
    put = wire.client
    wire.lose = lambda src, dst, message: dst == "c"
    wire.change("a", "remove", "d")
    wire.sent.clear()
    wire.release("d")
    assert any(src == "d" and isinstance(message, ReplicaWrote) for src, _, message in wire.sent), (
        "it does not know yet"
    )
    assert put not in wire.replies
    wire.release("b")
    assert isinstance(wire.replies[put], Stored)


# --- leftovers --------------------------------------------------------------------------------------------------------


def test_leftovers_are_removed_after_the_grace_in_a_new_stint():
    """What a giver forgets are dots of its own, too."""
    wire = filled("abc", give_grace_s=20.0)
    wire.join("d", at="a")
    before = {name: wire.nodes[name].local.actor for name in "abc"}
    pass_s(wire, 5)
    assert not any(slots(wire, key).moving for key in KEYS)
    pass_s(wire, 14)
    assert [holders(wire, key) for key in KEYS].count(["a", "b", "c", "d"]) > 30, "nothing is removed yet"
    assert {name: wire.nodes[name].local.actor for name in "abc"} == before
    settle(wire)
    check_copies(wire)
    for name in "abc":
        removed = wire.nodes[name].status().transfer.removed
        assert removed == sum(name not in holders(wire, key) for key in KEYS) > 0
        assert wire.nodes[name].local.actor != before[name]


def leftover(wire: Wire) -> tuple[bytes, str]:
    """A key that a node has handed over, and still has: the owners hold the same."""
    wire.join("d", at="a")
    key = gained(wire, "d", giver="c")
    for _ in range(20):
        if not slots(wire, key).moving:
            break
        wire.advance(0.25)
    assert holders(wire, key) == ["a", "b", "c", "d"]
    return key, "c"


def test_what_is_only_left_over_is_pushed_before_it_is_removed():
    """A coordinator with an old view may have sent it here after the hand-over. It is at the owner for a grace before it goes."""
    wire = filled("abc", give_grace_s=10.0)
    key, giver = leftover(wire)
    plant(wire, giver, {key: old(b"only here", actor=f"{giver}/x")})
    pass_s(wire, 5)
    first = slots(wire, key).owners[0]
    assert b"only here" in wire.values(first, key)
    assert wire.sealed(giver, key) is not None
    settle(wire)
    assert wire.sealed(giver, key) is None
    assert b"only here" in [version.value for version in wire.get("a", key).record.versions]


def test_a_corrupt_record_that_is_left_over_goes_with_the_others():
    """It is in no hash tree (seed 5000080): so the tree of a partition with nothing else says that it is empty."""
    wire = filled("abc", give_grace_s=10.0)
    key, giver = leftover(wire)
    for other in KEYS:
        if other != key and slots(wire, other) == slots(wire, key):
            wire.stores[giver].stage(Space.RECORDS, record_key("0", other), None, Durability.OS)
    wire.damage(giver, key)
    wire.nodes[giver].local.read_record(record_key("0", key))
    settle(wire, 120.0)
    pass_s(wire, 20.0)
    assert wire.sealed(giver, key) is None
    assert wire.nodes[giver].status().transfer.leftovers == 0


def test_what_an_owner_lacks_is_not_removed():
    """Its answers say that it wants the record, and what is sent does not arrive."""
    wire = filled("abc")
    key, giver = leftover(wire)
    plant(wire, giver, {key: old(b"only here", actor=f"{giver}/x")})
    wire.lose = lambda src, dst, message: src == giver and isinstance(message, LeafRows)
    pass_s(wire, 20 * GRACE_S)
    assert b"only here" in wire.values(giver, key)
    wire.lose = lambda src, dst, message: False
    settle(wire)
    assert wire.sealed(giver, key) is None
    assert b"only here" in [version.value for version in wire.get("a", key).record.versions]


def test_nothing_is_removed_while_no_owner_can_be_asked():
    """However long that takes."""
    wire = filled("abc")
    key, giver = leftover(wire)
    wire.cut = {(name, giver) for name in "abd"} | {(giver, name) for name in "abd"}
    pass_s(wire, 20 * GRACE_S)
    assert wire.sealed(giver, key) is not None
    wire.heal()
    settle(wire)
    check_copies(wire)


def test_what_is_owned_again_is_not_removed():
    """The partition comes back before the grace is over."""
    wire = filled("abc", give_grace_s=10.0)
    key, giver = leftover(wire)
    pass_s(wire, 5)
    load = Load(wire)
    wire.change("a", "leave", "d")
    settle(wire, each=load.step)
    load.check_all()
    check_copies(wire)
    assert giver in holders(wire, key)


def test_a_leaver_delivers_its_hints_before_it_is_gone():
    """What it keeps for another node may have been counted, and be nowhere else."""
    wire = filled("abcde")
    key = next(key for key in KEYS if "a" not in slots(wire, key).owners)
    owner = slots(wire, key).owners[0]
    assert hint(wire, key, record_of(b"counted"), holder="a", intended=owner)
    wire.lose = lambda src, dst, message: isinstance(message, HintDeliver)
    wire.change("b", "leave", "a")
    pass_s(wire, 30)
    assert "do not stop it yet" in wire.nodes["a"]._membership.why_no_member()
    wire.lose = lambda src, dst, message: False
    settle(wire)
    assert totals(wire, "a") == {}
    assert b"counted" in wire.values(owner, key)
    assert "may be stopped" in wire.nodes["a"]._membership.why_no_member()


# --- deletes ----------------------------------------------------------------------------------------------------------

REAPS = {"reap_grace_s": 5.0, "reap_quarantine_s": 2.0, "reap_pause_s": 5.0}


@pytest.mark.parametrize("change", ["join", "leave"])
def test_a_tombstone_stays_while_someone_who_moves_holds_an_older_value(change):
    """A gainer, or a node that leaves, that has missed the delete: it would bring the value back."""
    wire = filled("abcd" if change == "leave" else "abc", **REAPS)
    if change == "join":
        wire.join("d", at="a")
        key = gained(wire, "d", giver="c")
        wire.put("a", key, b"old")
    else:
        key = next(key for key in KEYS if "d" in slots(wire, key).owners)
        wire.put("a", key, b"old")
        wire.change("a", "leave", "d")
    assert wire.values("d", key) == [b"old"]
    wire.crash("d")
    assert isinstance(wire.put("a", key, None), Stored)
    pass_s(wire, 40)
    assert any(None in wire.values(name, key) for name in "abc"), "the tombstone is there"
    wire.lose = lambda src, dst, message: "Hint" in type(message).__name__
    wire.restart("d")
    wire.lose = lambda src, dst, message: False
    settle(wire)
    pass_s(wire, 40)
    assert holders(wire, key) == []


def test_a_tombstone_waits_for_a_leaver_that_nobody_keeps_a_hint_for():
    """It is no member any more, and still asked."""
    wire = filled("abcd", **REAPS)
    key = next(key for key in KEYS if "d" in slots(wire, key).owners[1:])
    wire.put("a", key, b"old")
    value = wire.record("d", key)
    wire.change("a", "leave", "d")
    wire.crash("d")
    deleted = versions.put(value, value.clock, ("x/1", OLD + 1), None)
    for name in slots(wire, key).writers:
        if name != "d":
            plant(wire, name, {key: deleted})
    pass_s(wire, 40)
    assert holders(wire, key) == ["a", "b", "c"]
    wire.restart("d")
    settle(wire)
    pass_s(wire, 40)
    assert holders(wire, key) == []


def test_a_tombstone_that_moves_deletes():
    """It is handed over like a value; leftovers of the value do not come back over it."""
    wire = filled("abc", **REAPS)
    for key in KEYS[::2]:
        assert isinstance(wire.put("a", key, None), Stored)
    wire.join("d", at="a")
    settle(wire)
    pass_s(wire, 40)
    assert [bool(holders(wire, key)) for key in KEYS] == [False, True] * (len(KEYS) // 2)
    assert not wire.stores["d"].scan(Space.HINTS, limit=1)
    assert wire.sealed("d", record_key("0", KEYS[0])) is None


def test_a_leaver_answers_what_is_under_way_before_it_is_gone():
    """It takes no more requests once it has handed over everything; its peers hear it until those it has are answered."""
    wire = filled("abcd")
    wire.change("a", "leave", "d")
    key = next(key for key in KEYS if "d" not in slots(wire, key).owners)
    wire.lose = lambda src, dst, message: src == "d" and isinstance(message, ReplicaRead)
    asked = None
    for _ in range(200):
        if wire.nodes["d"].requests_under_way == 0 and not wire.nodes["d"].local.retired:
            asked = wire.ask("d", ClientGet(0, "0", key, timeout_s=30.0))
            client = wire.client
            assert asked is None, "it is under way"
        wire.advance(0.25)
        if wire.nodes["d"].local.retired:
            break
    assert wire.nodes["d"].local.serves, "it is not gone yet"
    refused = wire.ask("d", ClientGet(0, "0", key))
    assert isinstance(refused, Failure)
    assert "no member" in refused.text
    wire.lose = lambda src, dst, message: False
    settle(wire)
    assert isinstance(wire.replies[client], Found)
    assert not wire.nodes["d"].local.serves
    check_copies(wire)


@pytest.mark.parametrize("kind", [ClientScan, ClientCount, ClientHints])
def test_a_leaver_answers_questions_to_many_before_it_is_gone(kind):
    """They hear from the others as long as they are under way. New ones end at once, as at a node that has left."""
    wire = filled("abcd")
    wire.change("a", "leave", "d")
    wire.lose = lambda src, dst, message: isinstance(message, ScanPage | Counts | HintsTold)
    node, fields = wire.nodes["d"], () if kind is ClientHints else ("0",)
    for _ in range(200):
        if not node.requests_under_way and not node.local.retired:
            assert wire.ask("d", kind(0, *fields)) is None
            asked = wire.client
        wire.advance(0.25)
        if node.local.retired:
            break
    for event in (ClientScan(0, "0"), ClientCount(0, "0")):
        refused = wire.ask("d", event)
        assert isinstance(refused, Failure)
        assert refused.text == "d is no member of the cluster; ask one that is"
    while asked not in wire.replies:
        assert node.local.serves
        wire.advance(0.25)
    settle(wire)
    assert not node.local.serves
    assert isinstance(wire.ask("d", ClientScan(0, "0")), Failure), "it need not wait for those who do not hear it"


def retiring(wire: Wire) -> bytes:
    """Let d leave, and have all that it still has to do is a get of this key, which others own."""
    wire.change("a", "leave", "d")
    key = next(key for key in KEYS if "d" not in slots(wire, key).owners)
    wire.lose = lambda src, dst, message: src == "d" and isinstance(message, ReplicaRead)
    node = wire.nodes["d"]
    for _ in range(200):
        if not node.requests_under_way:
            assert wire.ask("d", ClientGet(0, "0", key, timeout_s=30.0)) is None
        wire.advance(0.25)
        if node.local.retired:
            return key
    raise AssertionError(node._transfer.status())


def test_a_leaver_that_is_given_a_hint_serves_until_it_is_delivered():
    """Its intended node may be away for long."""
    wire = filled("abcd")
    key = retiring(wire)
    local = wire.nodes["d"].local
    wire.crash("b")
    local.keep_hint("b", record_key("0", key), wire.sealed("a", key), Durability.MEMORY)
    wire.advance(0.25)
    assert local.coordinates
    pass_s(wire, 5)
    assert isinstance(wire.put("d", key, b"new"), Stored)
    wire.lose = lambda src, dst, message: False
    wire.restart("b")
    settle(wire)
    assert not local.serves
    assert not wire.stores["d"].scan(Space.HINTS, limit=1)


def test_a_leaver_about_to_go_takes_no_forwarded_puts_but_finishes_its_own():
    """The forwarder goes elsewhere at once. What it forwarded itself before, and nobody else can do, it does here."""
    wire = filled("abcd")
    key = retiring(wire)
    local = wire.nodes["d"].local
    wire.sent.clear()
    wire.inject("a", "d", Forward(77, PutRequest("0", key, b"forwarded", request_id=b"r")))
    (told,) = [message.result for src, _, message in wire.sent if src == "d" and isinstance(message, Forwarded)]
    assert isinstance(told, Failure)
    assert not told.unknown
    done = []
    wire.nodes["d"]._coordinator.puts.put(
        PutRequest("0", key, b"own", request_id=b"o"), lambda result, hold: done.append(result), forwarded=True
    )
    wire.advance(0)
    assert local.serves
    assert isinstance(done[0], Stored)
    wire.lose = lambda src, dst, message: False
    settle(wire)
    assert not local.serves
    assert b"own" in wire.values("a", key)
