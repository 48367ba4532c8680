"""Hinted handoff between real nodes: what is kept for another arrives there, whatever is lost or crashes on the way."""

from __future__ import annotations

import pytest
from tests.core.hinted import (
    READING,
    cluster,
    hint,
    keep_own,
    mint_here,
    on_disk,
    owned_by,
    pass_seconds,
    record_of,
    totals,
    travelled,
)

from cartwheel.core import hints, versions
from cartwheel.core.messages import (
    ClientHints,
    DiskSpace,
    HintDeliver,
    HintGrant,
    HintOffer,
    HintsAsk,
    HintsTold,
    HintTaken,
    Tick,
)
from cartwheel.core.storage import Space, record_key, seal
from cartwheel.core.types import Durability
from cartwheel.core.versions import EMPTY

STEPS = [HintOffer, HintGrant, HintDeliver, HintTaken]


@pytest.fixture
def wire():
    """Four nodes; d is away."""
    made = cluster(disk_used_max=0.9)
    made.crash("d")
    return made


# --- delivery ---


@pytest.mark.parametrize("repeat", [False, True])
def test_all_hints_go_to_their_node_when_it_is_back(wire, repeat):
    """They are there, in its own records, and neither here nor on this disk; repeated messages change nothing."""
    for i in range(600):
        assert hint(wire, b"%d" % i, record_of(b"v%d" % i))
    assert totals(wire) == {"d": 600}
    pass_seconds(wire, 5)
    assert not travelled(wire, HintOffer), "it is away"
    wire.repeat = repeat
    wire.restart("d")
    pass_seconds(wire, 3)
    assert totals(wire) == {}
    assert on_disk(wire) == (0, 0)
    for i in range(600):
        assert wire.values("d", b"%d" % i) == [b"v%d" % i]
    assert wire.nodes["a"].local.counters["hints_delivered"] == 600
    assert wire.nodes["a"].local.hints.bytes == 0
    assert len(wire.nodes["a"].status().hints) == 0
    assert all(len(message.rows) <= 256 for message in travelled(wire, HintDeliver))


def test_a_delivery_is_limited_in_bytes(wire):
    """A larger record travels alone; small ones together up to the limit."""
    sizes = [300_000, 100_000, 100_000, 100_000, 10, 10]
    for i, size in enumerate(sizes):
        hint(wire, b"%d" % i, record_of(b"v" * size))
    wire.sent.clear()
    wire.restart("d")
    pass_seconds(wire, 2)
    for message in travelled(wire, HintDeliver):
        assert len(message.rows) == 1 or sum(len(k) + len(v) for k, v in message.rows) <= hints.DELIVERY_BYTES_MAX
    assert totals(wire) == {}
    assert sum(len(wire.values("d", b"%d" % i)[0]) for i in range(6)) == sum(sizes)


@pytest.mark.parametrize(("durability", "staged"), [("memory", 1), ("os", 1), ("one", 2), ("sync", 2)])
def test_the_intended_node_stores_as_durably_as_the_bucket_asks(wire, durability, staged):
    """At least with the operating system; and all the way where the hint may have been the one durable copy."""
    wire.set_bucket("a", "b", durability=durability)
    hint(wire, b"k", record_of(b"v"), bucket="b")
    wire.restart("d")
    wire.held.add("d")
    pass_seconds(wire, 1)
    assert wire.stores["d"].pending(Space.RECORDS, record_key("b", b"k")) >= staged
    assert totals(wire) == {"d": 1}, "not told yet"
    wire.release("d")
    assert totals(wire) == {}


@pytest.mark.parametrize("kind", STEPS)
@pytest.mark.parametrize("victim", ["a", "d"])
def test_a_crash_at_any_step_loses_nothing(wire, kind, victim):
    """Whoever crashes when such a message is under way: both sides begin anew."""
    for i in range(300):
        hint(wire, b"%d" % i, record_of(b"v"))
    wire.restart("d")
    gone = []
    wire.lose = lambda src, dst, message: isinstance(message, kind) and (gone.append(kind) or True)
    pass_seconds(wire, 2)
    assert gone
    wire.crash(victim)
    wire.lose = lambda src, dst, message: False
    wire.restart(victim)
    pass_seconds(wire, 10)
    assert totals(wire) == {}
    assert on_disk(wire) == (0, 0)
    assert all(wire.values("d", b"%d" % i) == [b"v"] for i in range(300))


@pytest.mark.parametrize("kind", STEPS)
def test_each_lost_message_costs_only_time(wire, kind):
    """The first of its kind is lost, and the handing over goes on by itself."""
    for i in range(300):
        hint(wire, b"%d" % i, record_of(b"v"))
    wire.restart("d")
    lost = []
    wire.lose = lambda src, dst, message: isinstance(message, kind) and not lost and (lost.append(1) or True)
    pass_seconds(wire, 8)
    assert lost
    assert totals(wire) == {}
    first, second, *more = travelled(wire, HintDeliver)
    if kind in (HintDeliver, HintTaken):
        assert first.rows == second.rows, "where it was interrupted it goes on"
    assert len(more) <= 1


def test_what_was_not_durable_at_its_node_is_not_removed_here(wire):
    """The intended node crashes between merging and its commit."""
    hint(wire, b"k", record_of(b"v"))
    wire.restart("d")
    wire.held.add("d")
    pass_seconds(wire, 1)
    assert wire.values("d", b"k") == [b"v"]
    assert totals(wire) == {"d": 1}
    wire.crash("d")
    wire.held.discard("d")
    wire.restart("d")
    assert wire.values("d", b"k") == []
    pass_seconds(wire, 2)
    assert wire.values("d", b"k") == [b"v"]
    assert totals(wire) == {}


def test_a_removal_that_a_crash_took_back_is_only_repeated(wire):
    """The holder crashes before the removal is on its disk."""
    hint(wire, b"k", record_of(b"v"))
    wire.restart("d")
    wire.held.add("a")
    pass_seconds(wire, 1)
    assert totals(wire) == {}
    wire.crash("a")
    wire.held.discard("a")
    wire.restart("a")
    assert totals(wire) == {"d": 1}
    pass_seconds(wire, 2)
    assert totals(wire) == {}


def test_a_hint_is_not_delivered_before_it_is_durable_here(wire):
    """Nobody outside sees what a crash could take back."""
    wire.restart("d")
    wire.held.add("a")
    hint(wire, b"k", record_of(b"v"))
    pass_seconds(wire, 2)
    assert not travelled(wire, HintDeliver)
    wire.release("a")
    pass_seconds(wire, 1)
    assert totals(wire) == {}


def test_a_hint_that_changed_under_way_is_kept(wire):
    """What came later is not at the intended node yet."""
    hint(wire, b"k", record_of(b"1"))
    wire.restart("d")
    wire.held.add("d")
    pass_seconds(wire, 1)
    hint(wire, b"k", record_of(b"2", actor="c/x"))
    wire.release("d")
    assert totals(wire) == {"d": 1}
    pass_seconds(wire, 12)
    assert totals(wire) == {}
    assert wire.values("d", b"k") == [b"1", b"2"]


def test_hints_kept_during_a_pass_are_found_by_the_next(wire):
    """Also those before the place where it is."""
    for i in range(300):
        hint(wire, b"%d" % i, record_of(b"v"))
    wire.restart("d")
    wire.held.add("d")
    pass_seconds(wire, 1)
    for i in range(300, 400):
        hint(wire, b"%d" % i, record_of(b"v"))
    wire.release("d")
    pass_seconds(wire, 4)
    assert totals(wire) == {}
    assert all(wire.values("d", b"%d" % i) == [b"v"] for i in range(400))


def test_a_pass_that_is_at_its_end_begins_again_at_once(wire):
    """Credits are not wasted on finding nothing behind the last hint."""
    for i in range(256):
        hint(wire, b"%d" % i, record_of(b"v"))
    first = min(record_key("0", b"%d" % i) for i in range(256))
    wire.restart("d")
    wire.held.add("d")
    pass_seconds(wire, 1)
    newer = record_of(b"w", actor="c/x")
    wire.nodes["a"].local.keep_hint("d", first, seal(first, versions.encode(newer)), Durability.SYNC)
    wire.release("d")
    assert totals(wire) == {"d": 1}
    wire.sent.clear()
    pass_seconds(wire, 1)
    assert len(travelled(wire, HintOffer)) == len(travelled(wire, HintDeliver)) == 1
    assert totals(wire) == {}


def test_one_delivery_at_a_time_and_of_so_many_records(wire):
    """Whatever the grants say."""
    for i in range(300):
        hint(wire, b"%d" % i, record_of(b"v"))
    wire.restart("d")
    wire.lose = lambda src, dst, message: isinstance(message, HintGrant | HintDeliver)
    pass_seconds(wire, 1)
    wire.inject("d", "a", HintGrant(10**6))
    wire.inject("d", "a", HintGrant(10))
    assert [len(message.rows) for message in travelled(wire, HintDeliver)] == [256]


def test_late_and_foreign_answers_remove_nothing(wire):
    """Each names its delivery; a grant nobody waits for finds nothing to do."""
    hint(wire, b"k", record_of(b"v"))
    wire.restart("d")
    wire.lose = lambda src, dst, message: isinstance(message, HintTaken)
    pass_seconds(wire, 1)
    (delivered, *_) = travelled(wire, HintDeliver)
    pass_seconds(wire, 3.5)
    assert wire.nodes["a"].local.counters["hint_deliveries_lost"] == 1
    wire.inject("d", "a", HintTaken(delivered.id, 0))
    wire.inject("c", "a", HintTaken(delivered.id, 0))
    wire.inject("c", "a", HintGrant(5))
    wire.inject("d", "a", HintGrant(0))
    assert totals(wire) == {"d": 1}


def test_a_row_that_is_not_taken_is_kept_and_tried_again_later(wire):
    """And the others go."""
    for key in [b"1", b"2"]:
        hint(wire, key, record_of(b"v"))
    wire.lose = lambda src, dst, message: isinstance(message, HintDeliver | HintTaken)
    wire.restart("d")
    pass_seconds(wire, 1)
    (delivered,) = travelled(wire, HintDeliver)
    wire.inject("d", "a", HintTaken(delivered.id, 0, [1]))
    assert totals(wire) == {"d": 1}
    assert wire.nodes["a"].local.counters["hints_not_taken"] == 1
    wire.lose = lambda src, dst, message: False
    pass_seconds(wire, 4)
    assert totals(wire) == {}


def test_damaged_rows_are_refused_by_name(wire):
    """The receiver merges the others and says which ones it could not take."""
    wire.restart("d")
    at = record_key("0", b"k")
    good = seal(at, versions.encode(record_of(b"v")))
    wire.sent.clear()
    wire.inject("a", "d", HintDeliver(5, [(at, b"bad"), (at, good), (b"short", good)], 0))
    (taken,) = travelled(wire, HintTaken)
    assert taken == HintTaken(5, 0, [0, 2])
    assert wire.values("d", b"k") == [b"v"]


# --- pace ---

HOLDERS = [f"h{i:02}" for i in range(50)]


@pytest.fixture
def crowd():
    """The same in a cluster of many: d is away, and of the others only three run."""
    made = cluster(absent=[*"hijk", *HOLDERS], disk_used_max=0.9)
    made.crash("d")
    return made


def offers(wire, holders, count=1000):
    """Many holders offer at one moment; the credits that each got."""
    wire.sent.clear()
    for holder in holders:
        wire.inject(holder, "d", HintOffer(count, 1))
    return {dst: message.records for _, dst, message in wire.sent if isinstance(message, HintGrant)}


def test_credits_of_all_holders_together_are_bounded(crowd):
    """Fifty holders do not bury a node that is back: who comes first is served first, and the others in their turn."""
    crowd.restart("d")
    granted = offers(crowd, HOLDERS)
    assert sum(granted.values()) <= hints.CREDITS
    assert list(granted) == HOLDERS[: len(granted)]
    assert len(granted) < 50
    served, busy = list(granted), list(granted)
    for _ in range(60):
        crowd.sent.clear()
        crowd.inject(busy.pop(0), "d", HintDeliver(1, [], 900))
        (taken,) = travelled(crowd, HintTaken)
        assert taken.records == 0, "others wait longer"
        new = [dst for _, dst, message in crowd.sent if isinstance(message, HintGrant)]
        assert new
        served += new
        busy += new
    assert served[:50] == HOLDERS, "everybody once, then again from the first"
    assert served[50 : len(served)] == HOLDERS[: len(served) - 50]


def test_those_who_wait_together_share(crowd):
    """None gets all that there is."""
    crowd.restart("d")
    crowd.handle("d", DiskSpace(0.99))
    assert offers(crowd, ["h", "i", "j", "k"]) == {}
    crowd.handle("d", DiskSpace(0.1))
    crowd.handle("d", Tick())
    assert travelled(crowd, HintGrant) == [HintGrant(hints.CREDITS // 4)] * 4


def test_one_holder_alone_gets_all_credits(crowd):
    """With its answer it learns of the next ones."""
    crowd.restart("d")
    assert offers(crowd, ["h"]) == {"h": hints.CREDITS}
    crowd.sent.clear()
    crowd.inject("h", "d", HintDeliver(1, [], 30))
    assert travelled(crowd, HintTaken) == [HintTaken(1, 30)]


def test_credits_that_nobody_uses_lapse(crowd):
    """Their holder may be gone."""
    crowd.restart("d")
    offers(crowd, ["h"])
    assert offers(crowd, ["i"]) == {}
    pass_seconds(crowd, 3.5)
    assert [dst for _, dst, message in crowd.sent if isinstance(message, HintGrant)] == ["i"]


def test_a_holder_that_is_lost_gives_its_credits_back(crowd):
    """At once."""
    crowd.restart("d")
    offers(crowd, ["c"])
    assert offers(crowd, ["h"]) == {}
    crowd.crash("c")
    crowd.handle("d", Tick())
    assert [dst for _, dst, message in crowd.sent if isinstance(message, HintGrant)] == ["h"]


def test_no_credits_while_the_disk_is_nearly_full(crowd):
    """The offers wait."""
    crowd.restart("d")
    crowd.handle("d", DiskSpace(0.99))
    assert offers(crowd, ["h"]) == {}
    crowd.handle("d", DiskSpace(0.1))
    crowd.handle("d", Tick())
    assert travelled(crowd, HintGrant)


def test_credits_come_from_the_admission_control(crowd):
    """As many as it allows, and none when it allows none."""
    crowd.restart("d")
    crowd.nodes["d"].local.budget = lambda records: False
    assert offers(crowd, ["h"]) == {}
    allowed = [True, True]
    crowd.nodes["d"].local.budget = lambda records: records == hints.BUDGET_STEP and bool(allowed) and allowed.pop()
    crowd.sent.clear()
    crowd.handle("d", Tick())
    assert travelled(crowd, HintGrant) == [HintGrant(2 * hints.BUDGET_STEP)]


def test_holders_begin_at_different_times():
    """Each at a time of its own within a second, the same in every run."""
    names = [f"h{i}" for i in range(50)]
    delays = [hints._jitter_s(name, "d") for name in names]
    assert len(set(delays)) > 40
    assert 0 <= min(delays) < 0.1
    assert 0.9 < max(delays) < 1
    assert delays == [hints._jitter_s(name, "d") for name in names]


# --- dots ---


def test_whoever_hands_its_own_writes_over_starts_a_new_stint(wire):
    """With the hint this node forgets the dot: as another actor it has none to remember. Once for a delivery."""
    keep_own(wire, b"1", 5)
    keep_own(wire, b"2", 6)
    actor = wire.nodes["a"].local.actor
    wire.restart("d")
    pass_seconds(wire, 2)
    assert totals(wire) == {}
    assert wire.nodes["a"].local.counters["stints_handed_off"] == 1
    assert wire.nodes["a"].local.actor != actor


def test_a_single_dot_of_ours_counts_too(wire):
    """One that the clock does not cover, in the cloud."""
    local, at = wire.nodes["a"].local, record_key("0", b"k")
    record = versions.put(EMPTY, {}, ("b/x", READING), b"v", seen=[(local.actor, READING)])
    assert local.actor not in record.clock
    local.hints.put("d", at, seal(at, versions.encode(record)), Durability.SYNC)
    wire.restart("d")
    pass_seconds(wire, 2)
    assert totals(wire) == {}
    assert local.counters["stints_handed_off"] == 1


def test_handing_over_the_writes_of_others_changes_nothing(wire):
    """Not even where our name is in the value."""
    actor = wire.nodes["a"].local.actor
    hint(wire, b"k", record_of(actor.encode()))
    wire.restart("d")
    pass_seconds(wire, 2)
    assert totals(wire) == {}
    assert wire.nodes["a"].local.actor == actor


def test_a_hint_that_knows_of_a_dot_of_ours_that_we_do_not_is_noticed(wire):
    """This node has forgotten something."""
    actor = wire.nodes["a"].local.actor
    hint(wire, b"k", mint_here(wire))
    assert wire.nodes["a"].local.actor != actor
    assert wire.nodes["a"].local.counters["stints_amnesia"] == 1


def test_a_hint_that_knows_only_what_we_know_is_no_sign_of_anything(wire):
    """A hint accounts for a dot as a record does."""
    key = owned_by(wire, owner="a", owned=False)
    keep_own(wire, key)
    actor = wire.nodes["a"].local.actor
    assert hint(wire, key, mint_here(wire), intended="c")
    assert wire.nodes["a"].local.actor == actor


# --- nodes that are no members ---


def test_hints_for_a_removed_node_go_to_the_owners(wire):
    """Or become records of the holder's own, where it is one."""
    own, others = owned_by(wire, owner="a", owned=True), owned_by(wire, owner="a", owned=False)
    actor = wire.nodes["a"].local.actor
    for key in [own, others]:
        keep_own(wire, key, intended="gone")
    pass_seconds(wire, 9)
    assert totals(wire) == {"gone": 2}, "its ring may be on the way"
    (status,) = wire.nodes["a"].status().hints
    assert status.waits == "not a member: goes to the owners"
    pass_seconds(wire, 4)
    assert totals(wire) == {}
    assert wire.values("a", own) == [b"v"]
    assert any(wire.values(node, others) == [b"v"] for node in "bc")
    assert wire.nodes["a"].local.counters["hints_readdressed"] == 2
    assert actor != wire.nodes["a"].local.actor, "one of its dots is now on other nodes only"


def test_readdressed_hints_wait_for_an_owner_that_is_away(wire):
    """The first one, if none can be reached, however full the place."""
    key = owned_by(wire, owner="a", owned=False)
    hint(wire, key, record_of(b"v"), intended="gone")
    for node in "bc":
        wire.crash(node)
    wire.handle("a", DiskSpace(0.99))
    pass_seconds(wire, 12)
    first = wire.nodes["a"].local.owners(record_key("0", key), 3)[0]
    assert totals(wire) == {first: 1}
    wire.restart(first)
    pass_seconds(wire, 2)
    assert wire.values(first, key) == [b"v"]
    assert totals(wire) == {}


def test_readdressed_hints_go_to_an_owner_that_can_take_them(wire):
    """It tells the others."""
    key = owned_by(wire, owner="a", owned=False)
    owners = [owner for owner in wire.nodes["a"].local.owners(record_key("0", key), 3) if owner != "d"]
    hint(wire, key, record_of(b"v"), intended="gone")
    wire.crash(owners[0])
    pass_seconds(wire, 14)
    assert totals(wire) == {}
    assert wire.values(owners[1], key) == [b"v"]


def test_hints_for_a_node_that_joins_late_are_left_alone(wire):
    """The ring that knows it arrives after the hint."""
    wire.restart("d")
    hint(wire, b"k", record_of(b"v"), intended="gone")
    pass_seconds(wire, 5)
    wire.join("gone", at="b")
    wire.crash("gone")
    pass_seconds(wire, 10)
    assert totals(wire) == {"gone": 1}
    wire.change("b", "remove", "gone")
    pass_seconds(wire, 9)
    assert totals(wire) == {"gone": 1}, "it has just been removed"
    pass_seconds(wire, 5)
    assert totals(wire) == {}


def test_hints_on_a_node_without_members_stay():
    """There is nobody to give them to."""
    wire = cluster("ab")
    hint(wire, b"k", record_of(b"v"), intended="gone")
    wire.nodes["a"].local.owners = lambda at, n: ()
    pass_seconds(wire, 12)
    assert totals(wire) == {"gone": 1}


# --- for others ---


def test_holds_any_tells_for_each_key(wire):
    """For the reaper: a tombstone stays while somebody may still get an older write."""
    kept = wire.nodes["a"].local.hints
    keys = [record_key("0", key) for key in [b"1", b"2", b"3"]]
    assert kept.holds_any(keys) == [False, False, False]
    hint(wire, b"1", record_of(b"v"))
    hint(wire, b"3", record_of(b"v"), intended="c")
    assert kept.holds_any(keys) == [True, False, True]


def test_status_says_what_each_hint_waits_for(wire):
    """Until it is delivered."""

    def waits():
        return [(each.delivering, each.waits) for each in wire.nodes["a"].status().hints]

    hint(wire, b"k", record_of(b"v"))
    assert waits() == [(False, "unreachable: connection lost")]
    wire.restart("d")
    wire.nodes["d"].local.budget = lambda records: False
    pass_seconds(wire, 1)
    assert waits() == [(False, "waits for credits")]
    wire.handle("d", DiskSpace(0.99))
    assert waits() == [(False, "its disk is nearly full")]
    wire.handle("d", DiskSpace(0.1))
    wire.nodes["d"].local.budget = lambda records: True
    wire.held.add("d")
    pass_seconds(wire, 1)
    assert waits() == [(True, "")]


def test_every_member_is_asked_what_it_keeps(wire):
    """Those that cannot be reached are named with the reason."""
    hint(wire, b"k", record_of(b"v"))
    wire.pass_time(3)
    told = wire.ask("b", ClientHints(0)).holders
    assert list(told) == ["a", "b", "c", "d"]
    (kept,) = told["a"]
    assert (kept.intended, kept.hints, kept.delivering) == ("d", 1, False)
    assert 3 <= kept.age_s < 3.1
    assert told["b"] == told["c"] == []
    assert told["d"] == "connection lost"


def test_a_member_that_does_not_answer_is_waited_for_in_vain(wire):
    """Until the time is over, or its connection lost; what comes later is not used."""
    wire.lose = lambda src, dst, message: isinstance(message, HintsTold)
    assert wire.ask("b", ClientHints(0)) is None
    first = wire.client
    (ask, *_) = travelled(wire, HintsAsk)
    for _ in range(2):
        wire.inject("a", "b", HintsTold(ask.id, []))
    pass_seconds(wire, 1)
    assert first not in wire.replies
    pass_seconds(wire, 1.5)
    assert wire.replies[first].holders["c"] == "no answer in time"
    assert wire.ask("b", ClientHints(0)) is None
    second = wire.client
    wire.crash("c")
    wire.crash("a")
    assert wire.replies[second].holders["c"] == "connection lost"
    wire.inject("d", "b", HintsTold(5, []))
