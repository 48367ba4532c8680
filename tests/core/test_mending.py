"""Corrupt records, damaged disks, the scrub, and the repairs that people ask for."""

from __future__ import annotations

import pytest
from tests.core.differing import (
    Damaged,
    held,
    machine,
    moved,
    old,
    plant,
    progress,
    tick,
    told,
)
from tests.core.wire import Wire

from cartwheel.core.antientropy import books, fetches, session
from cartwheel.core.errors import Code
from cartwheel.core.messages import (
    ClientRepair,
    ClientRepairStatus,
    Failure,
    Fetch,
    Fetched,
    PeerDown,
    Repairing,
    TreeLeaves,
    TreeRoots,
)
from cartwheel.core.storage import MemoryEngine, Space, Store, record_key

# --- corrupt records --------------------------------------------------------------------------------------------------


def asked_in_turn(wire, key):
    """Whom node a asks for its record, of the three owners: the last one first."""
    return [owner for owner in reversed(wire.nodes["a"].local.owners(record_key("0", key), 3)) if owner != "a"]


def test_a_corrupt_record_is_fetched():
    """From every other owner, for the first may be stale; it is never served, and the node has a new stint."""
    wire = Wire(["a", "b", "c"], q=8, ae_interval_s=0.0)
    first, second = asked_in_turn(wire, b"k")
    wire.put("a", b"k", b"1")
    wire.cut = {("a", first)}
    wire.put("a", b"k", b"2")
    wire.heal()
    stint = wire.nodes["a"].local.stint
    wire.damage("a", b"k")
    wire.nodes["a"].local.read_record(record_key("0", b"k"))
    assert wire.nodes["a"].local.stint != stint
    assert told(wire, "a").fetching == 1
    tick(wire, 0.2)
    assert wire.sealed("a", b"k") == wire.sealed(second, b"k")
    assert told(wire, "a").fetching == 0
    assert wire.nodes["a"].status().counters["corrupt_records_mended"] == 1
    assert [dst for _, dst, m in wire.sent if isinstance(m, Fetch)] == [first, second]


def test_a_lost_question_is_asked_again_of_the_next():
    """Every three seconds, while somebody is left; then the comparison of partitions finds it."""
    wire = Wire(["a", "b", "c"], q=8, ae_interval_s=0.0)
    first, second = asked_in_turn(wire, b"k")
    wire.put("a", b"k", b"1")
    wire.damage("a", b"k")
    wire.lose = lambda src, dst, message: isinstance(message, Fetch)
    wire.nodes["a"].local.read_record(record_key("0", b"k"))
    tick(wire, fetches.ANSWER_S + 0.2)
    assert [dst for _, dst, m in wire.sent if isinstance(m, Fetch)] == [first, second]
    for name in "bc":
        wire.handle("a", PeerDown(name, "reset"))
    tick(wire, fetches.ANSWER_S * fetches.TRIES_MAX)
    wire.connect("a")
    assert told(wire, "a").fetching == 0
    assert wire.nodes["a"].status().counters["fetches_given_up"] == 1
    machine(wire, "a").urge(record_key("0", b"k")[0] >> 5)
    tick(wire, 0.2)
    assert wire.values("a", b"k") == [b"1"]


def test_a_record_that_is_good_nowhere_is_given_up():
    """Everybody says so; nobody else does."""
    wire = Wire(["a", "b", "c"], q=8, ae_interval_s=0.0)
    wire.put("a", b"k", b"1")
    at = record_key("0", b"k")
    for name in "abc":
        wire.damage(name, b"k")
    wire.lose = lambda src, dst, message: isinstance(message, Fetched)
    wire.nodes["a"].local.read_record(at)
    wire.nodes["a"].local.takes_writes = False
    tick(wire, 0.1)
    assert not [m for _, _, m in wire.sent if isinstance(m, Fetch)]
    wire.nodes["a"].local.takes_writes = True
    tick(wire, 0.1)
    wire.inject("b", "a", Fetched(record_key("0", b"other"), None))
    wire.lose = lambda src, dst, message: False
    wire.inject("b", "a", Fetched(at, bytes(20)), Fetched(at, None))
    wire.inject("c", "a", Fetched(at, None))
    assert told(wire, "a").fetching == 0
    assert wire.nodes["a"].status().counters["fetches_given_up"] == 1


def test_fetches_are_limited(monkeypatch):
    """In number, by tick, by the budget; and only what another owner may have is asked for."""
    monkeypatch.setattr(fetches, "FETCHES_MAX", 5)
    monkeypatch.setattr(fetches, "AT_ONCE_MAX", 3)
    wire = Wire(["a", "b", "c", "d"], q=8, ae_interval_s=0.0)
    wire.set_bucket("a", "one", n=1, r=1, w=1)
    local = wire.nodes["a"].local
    keys = [record_key("0", b"%d" % i) for i in range(200)]
    ours = [at for at in keys if "a" in local.owners(at, 3)]
    note = machine(wire, "a").fetches.note
    note(record_key("one", b"k"))
    note(next(at for at in keys if at not in ours))
    assert told(wire, "a").fetching == 0
    for at in ours:
        note(at)
    assert told(wire, "a").fetching == 5
    budget, local.budget = local.budget, lambda cost: False
    wire.sent.clear()
    tick(wire, 0.05)
    assert not wire.sent
    local.budget = budget
    wire.lose = lambda src, dst, message: isinstance(message, Fetch)
    tick(wire, 0.05)
    assert len([m for _, _, m in wire.sent if isinstance(m, Fetch)]) == 3


# --- the scrub --------------------------------------------------------------------------------------------------------


def test_the_scrub_finds_what_nobody_reads(monkeypatch):
    """A flipped bit at rest is found within a pass, and the record fetched; a leaf that drifted is put right."""
    monkeypatch.setattr("cartwheel.core.antientropy.scrub.ROWS_MAX", 3)
    wire = Wire(["a", "b", "c"], q=8, ae_interval_s=0.0, scrub_days=10 / 86_400)
    plant_all = {b"%d" % i: old(b"v") for i in range(2000)}
    for name in "abc":
        plant(wire, name, plant_all)
    good = wire.sealed("a", b"7")
    wire.damage("a", b"7")
    tree = wire.nodes["b"]._summary.trees[3]
    right = tree.leaves[100]
    tree.leaves[100] ^= 1
    for i in range(2400):
        wire.advance(0.05)
        if i % 10 == 0:
            wire.put("a", b"%d" % (i % 2000), b"new")
    assert wire.sealed("a", b"7") == good
    assert wire.nodes["a"].status().counters["scrubs"] >= 1
    assert wire.nodes["b"].status().counters["tree_drift"] == 1
    assert tree.leaves[100] != right ^ 1
    assert "tree_drift" not in wire.nodes["a"].status().counters


def test_the_scrub_goes_on_after_a_clean_stop():
    """Evenly over its days; after an unclean stop everything was read anyway."""
    wire = Wire(["a"], q=8, ae_interval_s=0.0, scrub_days=100 / 86_400)
    tick(wire, 50)
    assert told(wire, "a").scrubbed == pytest.approx(0.5, abs=0.01)
    wire.stop("a")
    wire.restart("a")
    assert told(wire, "a").scrubbed == pytest.approx(0.5, abs=0.01)
    tick(wire, 10)
    assert told(wire, "a").scrubbed == pytest.approx(0.6, abs=0.01)
    wire.crash("a")
    wire.restart("a")
    assert told(wire, "a").scrubbed == 0


@pytest.mark.parametrize("asker", ["a", "b"])
def test_a_leaf_that_cannot_be_read_is_filled_once(asker):
    """And does not keep the other leaves from being compared. For an hour it is left alone, then tried again."""
    wire = Wire(["a", "b"], q=8, scrub_days=0.0)
    plant(wire, "b", {b"%d" % i: old(b"v") for i in range(500)})
    disk = Damaged()
    disk.apply([held(wire, "b"), {}, {}], sync=True)
    at = record_key("0", b"7")
    disk.spots.add(at)
    wire.crash("a")
    wire.restart("a", disk=disk)
    plant(wire, "b", {b"new": old(b"v")})
    machine(wire, {"a": "b", "b": "a"}[asker])._next_s = 1e9
    tick(wire, 3.0)
    assert wire.values("a", b"new") == [b"v"]
    assert at in disk.rewritten
    assert wire.values("a", b"7") == [b"v"]
    tick(wire, books.DAMAGED_FILL_S)
    wire.sent.clear()
    tick(wire, 10.0)
    assert moved(wire) == {}
    wire.pass_time(books.DAMAGED_REST_S)
    wire.sent.clear()
    tick(wire, 2.0)
    assert moved(wire) != {}


def test_leaves_that_cannot_be_read_there_are_passed_over():
    """Where all of a partition is asked for, the others are told."""
    wire = Wire(["a", "b"], q=8, scrub_days=0.0)
    wire.stop("b")
    disk = Damaged()
    wire.restart("b", disk=disk)
    plant(wire, "b", {b"%d" % i: old(b"v") for i in range(3000)})
    at = record_key("0", b"7")
    machine(wire, "b")._next_s = 1e9
    tick(wire, 0.5)  # its trees are built before the damage
    disk.spots.add(at)
    tick(wire, 2.0)
    leaf = wire.nodes["b"]._summary.trees[3].leaf_of
    assert held(wire, "a").keys() == {key for key in disk._maps[0] if leaf(key) != leaf(at)}


def test_the_scrub_passes_damaged_leaves():
    """It goes on behind them."""
    wire = Wire(["a"], q=8, ae_interval_s=0.0, scrub_days=10 / 86_400)
    disk = Damaged()
    wire.stop("a")
    wire.restart("a", disk=disk)
    wire.put("a", b"7", b"v")
    disk.spots.add(record_key("0", b"7"))
    tick(wire, 20)
    assert wire.nodes["a"].status().counters["scrubs"] >= 1
    assert wire.nodes["a"].status().counters["scans_damaged"] >= 1


# --- repairs that people ask for --------------------------------------------------------------------------------------


def test_a_repair_compares_all_and_tells_how_far_it_is():
    """With each other owner, now."""
    wire = Wire(["a", "b", "c"], q=8, ae_interval_s=0.0)
    plant(wire, "a", {b"%d" % i: old(b"v") for i in range(300)})
    plant(wire, "b", {b"theirs": old(b"v")})
    tokens = [0]
    wire.nodes["a"].local.budget = lambda cost: tokens[0] > 0
    begun = wire.ask("a", ClientRepair(0))
    assert begun == Repairing(begun.id, 16, 0, 0, 0, 0, False, {})
    assert wire.ask("a", ClientRepair(0)) == Failure(Code.BUSY, "a repair is under way here")
    tick(wire, 0.2)
    assert progress(wire) == begun
    tokens[0] = 1
    tick(wire, 1.0)
    assert progress(wire) == Repairing(begun.id, 16, 16, 0, 1, 601, True, {})
    assert held(wire, "a") == held(wire, "b") == held(wire, "c")
    assert wire.ask("a", ClientRepair(0)).total == 16


def test_a_repair_does_not_wait_for_writes_to_settle():
    """Whoever asked wants what is missing now."""
    wire = Wire(["a", "b"], q=8, ae_interval_s=0.0)
    wire.cut = {("a", "b")}
    wire.put("a", b"k", b"v", w=1)
    wire.heal()
    tick(wire, 1.0)
    wire.ask("b", ClientRepair(0))
    tick(wire, 0.5)
    assert progress(wire, "b").received == 1


def test_a_repair_of_one_partition_with_one_node():
    """And nothing else."""
    wire = Wire(["a", "b", "c"], q=8, ae_interval_s=0.0)
    for partition, peer, total in [(3, "b", 1), (3, "", 2), (None, "c", 8)]:
        wire.sent.clear()
        assert wire.ask("a", ClientRepair(0, partition, peer)).total == total
        tick(wire, 0.3)
        assert progress(wire).done == total
        asked = {(dst, m.partitions) for _, dst, m in wire.sent if isinstance(m, TreeRoots)}
        partitions = b"".join(p.to_bytes(2) for p in (range(8) if partition is None else [partition]))
        assert asked == {(dst, partitions) for dst in ([peer] if peer else "bc")}


def test_a_repair_makes_the_session_under_way_give_room():
    """A person waits for it."""
    wire = Wire(["a", "b"], q=8)
    wire.lose = lambda src, dst, message: isinstance(message, TreeLeaves)
    tick(wire, 1.1)
    assert told(wire, "a").peer == "b"
    wire.ask("a", ClientRepair(0))
    wire.lose = lambda src, dst, message: False
    tick(wire, session.ANSWER_S + 1)
    assert progress(wire).done == 8


def test_a_repair_says_what_it_could_not_compare():
    """Peers that are away, that fall silent, or that build their trees."""
    wire = Wire(["a", "b", "c", "d"], q=8, ae_interval_s=0.0)
    wire.set_bucket("a", "all", n=4)
    wire.crash("b")
    wire.cut = {("c", "a")}
    for partition in range(8):
        wire.nodes["d"]._summary.rebuild(partition)
    wire.nodes["d"].local.budget = lambda cost: False
    wire.ask("a", ClientRepair(0))
    tick(wire, session.ANSWER_S + 1)
    result = progress(wire)
    assert result.finished
    assert result.failed == result.total > 24
    assert result.reasons == {
        "b": "connection lost",
        "c": "no answer in time",
        "d": "its hash trees are being built",
    }


def test_a_repair_waits_for_our_own_trees():
    """What they say is not known yet."""
    wire = Wire(["a", "b"], q=8, ae_interval_s=0.0)
    wire.nodes["a"].local.budget = lambda cost: False
    wire.nodes["a"]._summary.rebuild(1)
    wire.ask("a", ClientRepair(0))
    tick(wire, 0.5)
    assert progress(wire).done == 0
    wire.nodes["a"].local.budget = lambda cost: True
    tick(wire, 0.5)
    assert progress(wire).done == 8


@pytest.mark.parametrize(
    ("event", "text"),
    [
        (ClientRepair(0, 8), "there is no partition 8: they are numbered from 0 to 7"),
        (ClientRepair(0, -1), "there is no partition -1: they are numbered from 0 to 7"),
        (ClientRepair(0, None, "zz"), "a shares no partition with zz"),
        (ClientRepair(0, 1, "a"), "a shares not partition 1 with a"),
        (ClientRepairStatus(0), "no repair was asked for since this node started"),
    ],
)
def test_a_repair_that_cannot_be(event, text):
    """It is said why."""
    assert Wire(["a", "b"], q=8).ask("a", event) == Failure(Code.INVALID, text)


def test_a_partition_that_is_not_ours():
    """Its owners can repair it."""
    wire = Wire(["a"], q=8)
    assert wire.ask("a", ClientRepair(0, 1)) == Failure(Code.INVALID, "a shares not partition 1 with any other node")
    assert wire.ask("a", ClientRepair(0)) == Failure(Code.INVALID, "a shares no partition with any other node")


def test_a_store_that_is_scanned_by_position():
    """The position behind the last one ends the ring."""
    from cartwheel.core.antientropy.rows import after

    assert after(bytes(16)) == bytes(15) + b"\1"
    assert after(b"\xff" * 16) == b""
    assert Store(MemoryEngine()).scan(Space.RECORDS, after(bytes(16)), limit=1) == []
