"""Anti-entropy: whatever differs between owners ends equal, at a cost in proportion to the difference, and nothing else moves."""

from __future__ import annotations

import random
from collections import Counter
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.core.differing import (
    KINDS,
    OLD,
    catch,
    held,
    machine,
    moved,
    old,
    paused_at,
    plant,
    progress,
    sent_bytes,
    tick,
    told,
)
from tests.core.wire import WALL_MS, Wire

from cartwheel.core import versions
from cartwheel.core.antientropy import answers, session
from cartwheel.core.clock import reading
from cartwheel.core.messages import (
    ClientRepair,
    Fetch,
    Fetched,
    LeafDiff,
    LeafKeys,
    LeafRows,
    Message,
    PeerDown,
    Repairing,
    Tick,
    TreeLeaves,
    TreeRoots,
    encode_batch,
)
from cartwheel.core.storage import MemoryEngine, record_key, seal
from cartwheel.core.types import Durability
from cartwheel.core.versions import Record, Version

# --- ends equal -------------------------------------------------------------------------------------------------------

VALUES = {"x1": None, "y2": None, "z3": b"v" * 3000}
RECORDS = st.builds(
    lambda dots: Record(
        {f"{actor}/1": OLD + max(c for a, c in dots if a == actor) for actor, _ in dots},
        tuple([Version(f"{a}/1", OLD + c, VALUES.get(f"{a}{c}", b"v")) for a, c in sorted(dots)]),
    ),
    st.sets(st.tuples(st.sampled_from("xyz"), st.integers(1, 3)), min_size=1, max_size=3),
)
"""A dot names a write, so its value is the same everywhere."""
DISKS = st.dictionaries(st.tuples(st.sampled_from(["0", "two", "five"]), st.binary(max_size=1)), RECORDS, max_size=12)


def owned(wire: Wire, name: str, bucket: str, key: bytes) -> bool:
    """Whether this node owns this key."""
    local = wire.nodes[name].local
    return name in local.owners(record_key(bucket, key), local.props(bucket).n)


@settings(max_examples=50, deadline=None)
@given(st.data())
def test_random_differences_end_equal(data):
    """Records, siblings, tombstones in buckets of several n, on four nodes; messages lost, repeated; nodes restarted."""
    wire = Wire(list("abcd"), q=8)
    wire.set_bucket("a", "two", n=2, r=1, w=1)
    wire.set_bucket("a", "five", n=5, r=1, w=1)
    merged: dict[tuple[str, bytes], Record] = {}
    for name in "abcd":
        for (bucket, key), record in data.draw(DISKS).items():
            if owned(wire, name, bucket, key):
                at = bucket, key
                merged[at] = versions.merge(merged.get(at, versions.EMPTY), record)
                plant(wire, name, {key: record}, bucket)
    dice = random.Random(data.draw(st.integers(0, 999)))
    loss = data.draw(st.sampled_from([0.0, 0.3]))
    wire.repeat = data.draw(st.booleans())
    wire.lose = lambda src, dst, message: isinstance(message, KINDS) and dice.random() < loss
    for _ in range(data.draw(st.integers(0, 6))):
        tick(wire, 0.5, 0.25)
        if data.draw(st.booleans()):
            name = dice.choice("abcd")
            wire.crash(name) if dice.random() < 0.5 else wire.stop(name)
            wire.restart(name)
    wire.lose = lambda src, dst, message: False
    tick(wire, 10, 0.25)
    for name in "abcd":
        expected = {
            record_key(bucket, key): seal(record_key(bucket, key), versions.encode(record))
            for (bucket, key), record in merged.items()
            if owned(wire, name, bucket, key)
        }
        assert held(wire, name) == expected
        wire.nodes[name].check()


def test_each_way_moves_a_record_once():
    """What is stale or missing here comes, what is stale or missing there goes; siblings go there and come back merged."""
    wire = Wire(["a", "b"], q=8)
    plant(
        wire,
        "a",
        {b"both": old(b"x"), b"ours": old(b"x"), b"newer": old(b"y", counter=2), b"sibling": old(b"1", "x/1", 2)},
    )
    plant(wire, "b", {b"both": old(b"x"), b"theirs": old(b"x"), b"newer": old(b"x"), b"sibling": old(b"2", "y/1", 1)})
    tick(wire, 1.0)
    assert moved(wire) == {"LeafDiff": 1, "LeafRows": 4}  # theirs; ours, newer, a's sibling and, back, the two
    assert all(wire.sealed("a", key) == wire.sealed("b", key) for key in (b"both", b"ours", b"theirs", b"newer"))
    assert wire.values("a", b"sibling") == wire.values("b", b"sibling")
    assert wire.values("a", b"sibling") == [b"1", b"2"]
    assert wire.values("b", b"newer") == [b"y"]
    tick(wire, 2.0)
    assert moved(wire) == {"LeafDiff": 1, "LeafRows": 4}


def test_a_merge_on_the_asking_side_goes_back_once():
    """Where the answer is the newer of two siblings."""
    wire = Wire(["a", "b"], q=8)
    plant(wire, "a", {b"sibling": old(b"1", "x/1", 1)})
    plant(wire, "b", {b"sibling": old(b"2", "y/1", 2)})
    tick(wire, 1.0)
    assert moved(wire) == {"LeafDiff": 1, "LeafRows": 1}
    assert held(wire, "a") == held(wire, "b")


def test_a_tombstone_covers_what_it_deleted():
    """It moves like any record."""
    wire = Wire(["a", "b", "c"], q=8)
    plant(wire, "a", {b"k": old(None, "y/1", 2, **{"x/1": OLD + 1})})
    for name in "bc":
        plant(wire, name, {b"k": old(b"v")})
    tick(wire, 3.0)
    assert [wire.values(name, b"k") for name in "abc"] == [[None]] * 3


def test_a_wiped_disk_is_refilled_by_it_alone():
    """From what the others hold, in pages, large records and small ones; nothing else is moved."""
    wire = Wire(["a", "b", "c"], q=8)
    records = {b"%d" % i: old(b"v" * (50_000 if i % 100 == 0 else 10)) for i in range(2000)}
    for name in "abc":
        plant(wire, name, records)
    wire.crash("c")
    wire.restart("c", disk=MemoryEngine())
    tick(wire, 4.0)
    assert held(wire, "c") == held(wire, "a")
    assert len(held(wire, "c")) == 2000
    assert sum(moved(wire).values()) == 2000
    largest = max(len(encode_batch(b"", [message])) for _, _, message in wire.sent if isinstance(message, KINDS))
    assert largest < answers.MOVED_BYTES_MAX + 60_000
    assert max(len(m.rows) for _, _, m in wire.sent if isinstance(m, LeafDiff | LeafRows)) <= answers.MOVED_MAX
    tick(wire, 3.0)  # all have compared with all
    assert max(told(wire, name).oldest_s for name in "abc") < 3.0


def test_a_wiped_disk_is_refilled_by_those_who_ask_it():
    """It need not ask itself: whoever compares first sends what is missing."""
    wire = Wire(["a", "b"], q=8)
    plant(wire, "a", {b"%d" % i: old(b"v" * 3000) for i in range(1000)})
    machine(wire, "b")._next_s = 1e9
    tick(wire, 3.0)
    assert held(wire, "b") == held(wire, "a")
    assert moved(wire) == {"LeafRows": 1000}


# --- no more than that ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("lww", [False, True])
def test_writes_under_way_are_no_differences(lww):
    """Nodes whose groups commit late, writes all the time: while nothing is lost, nothing is repaired."""
    wire = Wire(["a", "b", "c"], q=8, request_timeout_s=20.0)
    if lww:
        wire.set_bucket("a", "0", reconcile="lww")
    dice = random.Random(1)
    late: list[Any] = []
    for i in range(400):
        name = dice.choice("abc")
        wire.put(name, b"%d" % dice.randrange(40), b"v%d" % i)
        if i % 7 == 0:  # what a sends b arrives later
            late.append(wire.sent[-1])
        if i % 5 == 0:
            wire.held = {dice.choice("abc")}
        else:
            for held_back in sorted(wire.held):
                wire.release(held_back)
        wire.advance(0.05)
    for name in sorted(wire.held):
        wire.release(name)
    tick(wire, 5.0)
    assert moved(wire) == {}
    assert sum(told(wire, name).rounds for name in "abc") > 30
    assert max(told(wire, name).oldest_s for name in "abc") < 3.0


def test_a_young_difference_waits_until_it_has_settled():
    """Then it is mended: the write was lost. One from a clock far ahead is not taken for young."""
    wire = Wire(["a", "b"], q=8, ae_settle_s=5.0)
    wire.cut = {("a", "b")}
    wire.put("a", b"k", b"v", w=1)
    wire.heal()
    plant(
        wire,
        "a",
        {b"far": Record({"x/1": reading(WALL_MS + 10**9)}, (Version("x/1", reading(WALL_MS + 10**9), b"v"),))},
    )
    machine(wire, "b")._next_s = 1e9
    tick(wire, 2.0)
    assert wire.record("b", b"k") == versions.EMPTY
    assert wire.values("b", b"far") == [b"v"]
    tick(wire, 5.0)
    assert wire.values("b", b"k") == [b"v"]


def test_the_traffic_is_in_proportion_to_the_difference():
    """100,000 keys: equal, a round costs 10 KB for each peer; 100 of them stale move 100, for some 300 bytes each."""
    wire = Wire(["a", "b"], q=1024)
    value = versions.encode(old(b"v" * 10))
    rows = {at: seal(at, value) for at in (record_key("0", b"%d" % i) for i in range(100_000))}
    for name in "ab":
        wire.crash(name)
        disk = MemoryEngine()
        disk.apply([rows, {}, {}], sync=True)
        wire.restart(name, disk=disk)
    for node in wire.nodes.values():
        node.local.budget = lambda cost: True
        machine(wire, node.local.node)._next_s = 1e9
        while node._summary.unready:
            node._summary.handle_tick()
    wire.sent.clear()

    def compare() -> tuple[int, Counter[str]]:
        wire.sent.clear()
        machine(wire, "a")._next_s = 0.0
        tick(wire, 0.1)
        return sent_bytes(wire), moved(wire)

    assert compare() == (pytest.approx(10_400, rel=0.02), {})
    dice = random.Random(1)
    changed = {b"%d" % i: old(b"w" * 10, counter=2) for i in dice.sample(range(100_000), 100)}
    plant(wire, "b", changed)
    size, count = compare()
    assert count == {"LeafDiff": 100}
    assert size < 110_000
    assert compare() == (pytest.approx(10_400, rel=0.02), {})
    assert held(wire, "a") == held(wire, "b")


def test_a_node_whose_disk_is_nearly_full_takes_nothing_but_gives():
    """As the one that asks, and as the one that is asked; its comparison does not count as one."""
    wire = Wire(["a", "b"], q=8)
    wire.nodes["a"].local.takes_writes = False
    plant(wire, "a", {b"ours": old(b"x")})
    plant(wire, "b", {b"theirs": old(b"x")})
    tick(wire, 2.5)
    assert wire.values("b", b"ours") == [b"x"]
    assert wire.record("a", b"theirs") == versions.EMPTY
    wire.inject("b", "a", LeafRows([(record_key("0", b"t"), seal(record_key("0", b"t"), versions.encode(old(b"x"))))]))
    assert wire.record("a", b"t") == versions.EMPTY
    wire.nodes["a"].local.takes_writes = True
    tick(wire, 2.5)
    assert wire.values("a", b"theirs") == [b"x"]


def test_the_budget_sets_the_pace():
    """Whoever asks pays for what was moved before it goes on; whoever answers pays before it answers."""
    for refusing in "ab":
        wire = Wire(["a", "b"], q=8)
        plant(wire, "a", {b"%d" % i: old(b"v") for i in range(1000)})
        machine(wire, "b" if refusing == "b" else "a")._next_s = 1e9  # the other one asks, too
        wire.nodes[refusing].local.budget = lambda cost: False
        tick(wire, 2.0)
        assert sum(moved(wire).values()) <= answers.WANTED_MAX
        wire.nodes[refusing].local.budget = lambda cost: True
        tick(wire, 3.0)
        assert held(wire, "b") == held(wire, "a")


def test_who_has_no_budget_reads_nothing_and_is_asked_again_only_after_a_while():
    """To read and compare is dearer than to refuse, and so is asking: under load each would be done twenty times a second."""
    wire = Wire(["a", "b"], q=8)
    plant(wire, "a", {b"%d" % i: old(b"v") for i in range(1000)})
    machine(wire, "b")._next_s = 1e9
    rows = wire.nodes["b"]._antientropy.answers._rows
    read: list[int] = []
    honest = rows.read
    rows.read = lambda *args: read.append(1) or honest(*args)
    wire.nodes["b"].local.budget = lambda cost: False
    tick(wire, 3.0)
    asked = [m for src, _, m in wire.sent if src == "a" and isinstance(m, LeafKeys)]
    assert 1 < len(asked) <= 3.0 / session.BUSY_S + 1
    assert not read
    spent: list[int] = []
    wire.nodes["b"].local.budget = lambda cost: True
    wire.nodes["b"].local.spend = spent.append
    tick(wire, 3.0)
    assert held(wire, "b") == held(wire, "a")
    assert sum(spent) >= 1000, "what it was asked for and did is paid for"


# --- sessions ---------------------------------------------------------------------------------------------------------


def test_a_session_that_hears_nothing_ends_and_the_next_goes_on():
    """After three seconds; what is done stays done."""
    wire = Wire(["a", "b"], q=8)
    plant(wire, "a", {b"%d" % i: old(b"v") for i in range(1000)})
    machine(wire, "b")._next_s = 1e9
    seen: list[Message] = []
    wire.lose = lambda src, dst, message: isinstance(message, LeafDiff) and not seen.append(message) and len(seen) > 3
    tick(wire, 1.5)
    part = len(held(wire, "b"))
    assert 0 < part < 1000
    assert told(wire, "a").peer == "b"
    tick(wire, session.ANSWER_S)
    assert told(wire, "a").interrupted == 1
    wire.lose = lambda src, dst, message: False
    tick(wire, 5.0)
    assert held(wire, "b") == held(wire, "a")
    assert sum(moved(wire).values()) == 1000


def test_a_lost_peer_ends_its_session_only():
    """And the peer that is left is compared with."""
    wire = Wire(["a", "b", "c"], q=8)
    wire.lose = lambda src, dst, message: isinstance(message, TreeLeaves)
    tick(wire, 1.1)
    assert told(wire, "a").peer == "b"
    wire.handle("a", PeerDown("c", "reset"))
    assert told(wire, "a").peer == "b"
    wire.handle("a", PeerDown("b", "reset"))
    assert told(wire, "a").peer == ""
    assert told(wire, "a").interrupted == 1
    wire.lose = lambda src, dst, message: False
    tick(wire, 3)
    assert told(wire, "a").rounds == 0  # both are unreachable for a


def test_a_long_session_makes_room(monkeypatch):
    """For the next peer; and then goes on."""
    monkeypatch.setattr("cartwheel.core.antientropy.SESSION_S_MAX", 0.2)
    wire = Wire(["a", "b", "c"], q=8)
    for name in "bc":
        plant(wire, name, {b"%d" % i: old(b"v") for i in range(1000)})
    tokens = [0]

    def budget(cost: int) -> bool:
        tokens[0] -= cost
        return bool(tokens[0] > 0)

    wire.nodes["a"].local.budget = budget
    for name in "bc":
        machine(wire, name)._next_s = 1e9
    for _ in range(400):
        tokens[0] = min(tokens[0] + 50, 100)
        wire.advance(0.05)
    assert told(wire, "a").interrupted > 1
    assert {dst for src, dst, m in wire.sent if isinstance(m, TreeRoots)} == {"b", "c"}
    assert held(wire, "a") == held(wire, "b")


def test_answers_that_were_not_asked_for_are_ignored():
    """Late, repeated, from elsewhere, or when nothing was asked at all."""
    wire = Wire(["a", "b", "c"], q=8)
    wire.lose = lambda src, dst, message: isinstance(message, TreeLeaves | LeafDiff)
    leaves, diff = TreeLeaves(1, b"\0\0", bytes(512)), LeafDiff(1, [], b"", b"")
    wire.inject("b", "a", leaves, diff)
    tick(wire, 1.1)
    asked = next(m.id for src, _, m in wire.sent if isinstance(m, TreeRoots) and src == "a")
    wire.inject("b", "a", leaves, diff)
    wire.inject("c", "a", TreeLeaves(asked, b"", b""))
    assert told(wire, "a").peer == "b"
    wire.lose = lambda src, dst, message: False
    wire.inject("b", "a", TreeLeaves(asked, b"", b""), TreeLeaves(asked, b"", b""))
    assert told(wire, "a").rounds == 1


def test_two_that_compare_with_each_other_move_everything_once():
    """They begin at the same moment: one of both sessions gives way, and so does a repair, which then goes on."""
    wire = Wire(["a", "b"], q=8)
    plant(wire, "a", {b"%d" % i: old(b"v") for i in range(500)})
    plant(wire, "b", {b"b%d" % i: old(b"v") for i in range(500)})
    wire.pass_time(1.0)
    for name in "ab":
        wire.handle_at_once(name, Tick())
    wire.run()
    tick(wire, 0.5)
    assert sum(moved(wire).values()) == 1000
    assert [told(wire, name).rounds for name in "ab"] == [1, 0]
    tick(wire, 1.0)
    assert max(told(wire, name).oldest_s for name in "ab") < 1.1  # whoever is asked sees that roots are equal, too
    plant(wire, "a", {b"%d" % i: old(b"w", counter=2) for i in range(500)})
    wire.ask("b", ClientRepair(0))
    machine(wire, "a")._next_s = 0.0
    for name in "ba":
        wire.handle_at_once(name, Tick())
    wire.run()
    assert not progress(wire, "b").finished
    tick(wire, 1.0)
    assert progress(wire, "b") == Repairing(progress(wire, "b").id, 8, 8, 0, 0, 0, True, {})
    assert sum(moved(wire).values()) == 1500
    assert told(wire, "b").interrupted == 0


def test_an_answer_that_says_too_much():
    """Of a partition that was not asked for, or a key that was not told: passed over."""
    wire = Wire(["a", "b"], q=8)
    plant(wire, "a", {b"k": old(b"v")})
    leaves = paused_at(wire, TreeLeaves)
    wire.inject("b", "a", TreeLeaves(leaves.id, b"\0\x09" + leaves.differing, bytes(512) + leaves.leaves))
    assert wire.values("b", b"k") == [b"v"]
    plant(wire, "a", {b"k": old(b"w", counter=2)})
    diff = paused_at(wire, LeafDiff)
    wire.inject("b", "a", LeafDiff(diff.id, [], bytes(16) + diff.want, b""))
    assert wire.values("b", b"k") == [b"w"]


def test_a_record_that_rots_before_it_is_sent():
    """It is read again when it is sent: then it is not."""
    wire = Wire(["a", "b"], q=8)
    plant(wire, "a", {b"k": old(b"v")})
    diff = paused_at(wire, LeafDiff)
    wire.damage("a", b"k")
    wire.inject("b", "a", diff)
    assert held(wire, "b") == {}
    assert wire.nodes["a"].status().counters["corrupt_records"] == 1


def test_large_records_go_a_few_at_a_time():
    """Some messages a tick: the loop has other things to do."""
    wire = Wire(["a", "b"], q=1)
    machine(wire, "b")._next_s = 1e9
    plant(wire, "a", {b"%d" % i: old(b"v" * 300_000) for i in range(7)})
    tick(wire, 1.0)
    assert 0 < len(held(wire, "b")) <= session.SENT_MAX
    tick(wire, 0.5)
    assert held(wire, "b") == held(wire, "a")


def test_pages_meet_wherever_each_side_ends():
    """More keys in a leaf than a page holds, on either side, young ones among them: all that is old is mended."""
    for ours, theirs, young in [(1000, 1000, 0), (100, 1000, 1000), (1000, 100, 1000)]:
        wire = Wire(["a", "b"], q=1)
        machine(wire, "b")._next_s = 1e9
        new = reading(wire.wall_ms + 1000)
        fresh = Record({"x/1": new}, (Version("x/1", new, b"v"),))
        plant(wire, "a", {b"a%d" % i: old(b"v") for i in range(ours)})
        plant(wire, "b", {b"b%d" % i: old(b"v") for i in range(theirs)} | {b"y%d" % i: fresh for i in range(young)})
        tick(wire, 1.5)
        assert len(held(wire, "a")) == ours + theirs
        assert len(held(wire, "b")) == ours + theirs + young


def test_a_dot_in_the_cloud_counts_as_known():
    """A record that knows of a later write, though it shows none, is the newer one."""
    wire = Wire(["a", "b"], q=8)
    machine(wire, "b")._next_s = 1e9
    plant(wire, "a", {b"k": msgspec.structs.replace(old(b"v"), cloud=(("y/1", OLD + 9),))})
    plant(wire, "b", {b"k": old(b"v", "y/1", 9)})
    tick(wire, 1.0)
    assert held(wire, "a") == held(wire, "b")


@pytest.mark.parametrize(
    "message",
    [
        TreeRoots(1, b"other epoch", 3, b"\0\0", bytes(8)),
        TreeRoots(1, b"", 9, b"\0\0", bytes(8)),
        TreeRoots(1, b"", 3, b"\xff\xff", bytes(8)),
        TreeRoots(1, b"", 3, b"\xff", b""),
        LeafKeys(1, 3, 0, 1, b"", b"", b"short", 0),
        LeafKeys(1, 9, 0, 1, b"", b"", b"", 0),
        LeafKeys(1, 3, 70_000, 1, b"", b"", b"", 0),
        LeafRows([(b"", b"")]),
        LeafRows([(record_key("0", b"k"), b"")]),
        LeafRows([(record_key("0", b"k"), bytes(8))]),
        Fetch(b"x"),
        Fetched(b"x", b"y"),
    ],
)
def test_a_message_that_makes_no_sense_changes_nothing(message):
    """A peer's mistake stops no node."""
    wire = Wire(["a", "b"], q=8)
    if isinstance(message, TreeRoots) and not message.epoch:
        message = msgspec.structs.replace(message, epoch=wire.nodes["a"].epoch)
    before = held(wire, "a")
    wire.inject("b", "a", message)
    assert held(wire, "a") == before
    if isinstance(message, TreeRoots):
        (answer,) = [m for _, _, m in wire.sent if isinstance(m, TreeLeaves)]
        assert answer.differing == b""
        assert answer.unready == message.partitions[: len(message.partitions) // 2 * 2]


def test_a_record_of_somebody_else_is_refused():
    """A row for a key that we do not own."""
    wire = Wire(["a", "b", "c", "d"], q=8)
    owners = wire.nodes["a"].local.owners(record_key("0", b"k"), 3)
    (stranger,) = set("abcd") - set(owners)
    at = record_key("0", b"k")
    wire.inject(owners[0], stranger, LeafRows([(at, seal(at, versions.encode(old(b"v"))))]))
    assert held(wire, stranger) == {}
    assert wire.nodes[stranger].status().counters["repairs_refused"] == 1


def test_a_tree_that_is_being_built_is_not_compared():
    """On either side; the rest is."""
    wire = Wire(["a", "b"], q=8)
    plant(wire, "a", {b"%d" % i: old(b"v") for i in range(100)})
    budget = wire.nodes["b"].local.budget
    wire.nodes["b"].local.budget = lambda cost: False
    for partition in range(8):
        wire.nodes["b"]._summary.rebuild(partition)
        if partition % 2:
            wire.nodes["a"]._summary.rebuild(partition)
    wire.nodes["a"].local.budget = lambda cost: cost < 60
    tick(wire, 1.2)
    assert told(wire, "b").unready == 8
    assert told(wire, "a").unready == 4
    assert [m.partitions for _, _, m in wire.sent if isinstance(m, TreeRoots)] == [b"\0\0\0\2\0\4\0\6"]
    assert held(wire, "b") == {}
    wire.nodes["b"].local.budget = wire.nodes["a"].local.budget = budget
    tick(wire, 3.0)
    assert held(wire, "b") == held(wire, "a")


def test_a_bucket_whose_n_changes_meanwhile():
    """The session that compares the old trees ends without harm."""
    wire = Wire(["a", "b"], q=8)
    wire.set_bucket("a", "five", n=5)
    plant(wire, "a", {b"%d" % i: old(b"v") for i in range(300)}, "five")
    for kind, n in ((TreeLeaves, 4), (LeafDiff, 3)):
        asked = catch(wire, kind)
        while not asked:
            tick(wire, 0.05)
        wire.lose = lambda src, dst, message: False
        wire.set_bucket("a", "five", n=n)
        src = "b" if machine(wire, "a")._session else "a"
        wire.inject(src, "a" if src == "b" else "b", *asked)
        tick(wire, 0.1)
    tick(wire, 6)
    assert held(wire, "a") == held(wire, "b")
    assert len(held(wire, "a")) == 300


def test_what_is_staged_is_told_once_it_is_committed():
    """A record that a crash could take back is not shown."""
    wire = Wire(["a", "b"], q=8)
    machine(wire, "a")._next_s = 1e9
    wire.held = {"a"}
    local = wire.nodes["a"].local
    at = record_key("0", b"k")
    local.write_record(at, versions.EMPTY, old(b"v"), Durability.SYNC)
    tick(wire, 1.5)
    assert wire.record("b", b"k") == versions.EMPTY
    wire.release("a")
    assert wire.values("b", b"k") == [b"v"]


def test_an_urged_partition_is_compared_at_once():
    """With all that share it and are reachable, and it alone."""
    wire = Wire(["a", "b", "c", "d"], q=8, ae_interval_s=0.0)
    wire.crash("b")
    shared = machine(wire, "a")._shares.at(3)
    partition = next(p for p in shared["b"] if p in shared["c"])
    machine(wire, "a").urge(partition)
    wire.sent.clear()
    tick(wire, 0.3)
    roots = [(dst, m.partitions) for _, dst, m in wire.sent if isinstance(m, TreeRoots)]
    assert roots == [("c", partition.to_bytes(2))]
    ages = told(wire, "a").ages_s
    assert ages[partition] > 0.2  # not with b
    wire.restart("b")
    tick(wire, 0.1)
    machine(wire, "a").urge(partition)
    tick(wire, 0.2)
    assert told(wire, "a").ages_s[partition] < 0.3
    assert told(wire, "a").oldest_s > 0.3


def test_a_node_alone_shares_nothing():
    """And is content."""
    wire = Wire(["a"], q=8)
    tick(wire, 2)
    assert told(wire, "a").oldest_partition == -1
    assert told(wire, "a").sent_bytes == {}
