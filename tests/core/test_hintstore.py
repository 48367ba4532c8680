"""Keeping hints: what a fallback keeps for another node, within which limits, and what is left after a restart or damage."""

from __future__ import annotations

import pytest
from tests.core.hinted import READING, cluster, hint, on_disk, owned_by, pass_seconds, record_of, totals, travelled

from cartwheel.core import versions
from cartwheel.core.errors import CorruptData, HintsFull
from cartwheel.core.hintstore import META_TOTAL, HintStore, HintTotal, hint_key
from cartwheel.core.messages import (
    DiskSpace,
    HintDeliver,
    ReplicaRead,
    ReplicaRefused,
    ReplicaValue,
    ReplicaWrite,
    ReplicaWrote,
)
from cartwheel.core.storage import MemoryEngine, Space, Store, record_key
from cartwheel.core.types import Durability
from cartwheel.core.versions import EMPTY


@pytest.fixture
def wire():
    """Four nodes; d is away."""
    made = cluster(disk_used_max=0.9)
    made.crash("d")
    return made


# --- keeping ---


def test_a_hint_is_kept_apart_and_answers_reads(wire):
    """It is no record of the fallback's own, but a read of the key finds it, in the bytes that came."""
    key = owned_by(wire, owner="a", owned=False)
    assert hint(wire, key, record_of(b"v"))
    assert wire.sealed("a", key) is None
    wire.sent.clear()
    wire.inject("b", "a", ReplicaRead(9, record_key("0", key)))
    (answer,) = travelled(wire, ReplicaValue)
    assert versions.decode(answer.sealed[8:]) == record_of(b"v")
    assert wire.nodes["a"].local.known(record_key("0", key)) == record_of(b"v")


def test_an_owner_that_stands_in_for_another_keeps_its_own_copy_too(wire):
    """A giver that keeps a hint for its gainer still fills its own slot."""
    key = owned_by(wire, owner="a", owned=True)
    assert hint(wire, key, record_of(b"v"))
    assert totals(wire) == {"d": 1}
    assert wire.values("a", key) == [b"v"]


def test_a_read_merges_the_own_record_and_all_hints(wire):
    """Nothing that a node knows stays untold."""
    key = owned_by(wire, owner="a", owned=False)
    hint(wire, key, record_of(b"1", actor="x/1"))
    hint(wire, key, record_of(b"2", actor="x/2"), intended="c")
    hint(wire, key, record_of(b"3", actor="x/3"), intended="a")  # for itself: its own record
    assert wire.values("a", key) == [b"3"]
    wire.sent.clear()
    wire.inject("b", "a", ReplicaRead(9, record_key("0", key)))
    (answer,) = travelled(wire, ReplicaValue)
    assert [v.value for v in versions.decode(answer.sealed[8:]).versions] == [b"1", b"2", b"3"]


def test_a_read_of_a_hint_waits_until_it_is_durable(wire):
    """What a crash could take back is not shown."""
    wire.held.add("a")
    assert hint(wire, b"k", record_of(b"v")) is None
    wire.inject("b", "a", ReplicaRead(9, record_key("0", b"k")))
    assert not travelled(wire, ReplicaValue)
    wire.release("a")
    assert travelled(wire, ReplicaValue)
    assert travelled(wire, ReplicaWrote)


def test_hints_for_one_key_are_one(wire):
    """They merge; the newer record replaces what it supersedes."""
    first = record_of(b"1")
    hint(wire, b"k", first)
    hint(wire, b"k", versions.put(first, first.clock, ("b/x", READING + 2), b"2"))
    hint(wire, b"k", first)
    assert totals(wire) == {"d": 1}
    assert [v.value for v in wire.nodes["a"].local.known(record_key("0", b"k")).versions] == [b"2"]


@pytest.mark.parametrize("intended", ["x" * 65, "\u00e4" * 33])
def test_a_name_that_no_node_has_is_refused(wire, intended):
    """A peer's bad message does not crash a node."""
    assert hint(wire, b"k", record_of(b"v"), intended=intended) is False
    assert totals(wire) == {}


def test_damage_on_the_way_is_refused(wire):
    """Neither a record whose checksum fails, nor one under a key that is none."""
    at = record_key("0", b"k")
    for key, sealed in [(at, b"12345678" + versions.encode(record_of(b"v"))), (b"short", b"")]:
        wire.sent.clear()
        wire.inject("b", "a", ReplicaWrite([7], key, sealed, Durability.SYNC, READING, "d"))
        assert travelled(wire, ReplicaRefused)
    assert totals(wire) == {}


# --- limits ---


def test_hints_for_one_node_are_limited_in_bytes():
    """One more is refused, with a reason, and counted; one that replaces a present one never is; others' go on."""
    wire = cluster(hint_bytes_max_per_node=300)
    assert hint(wire, b"1", record_of(b"v" * 150))
    assert hint(wire, b"2", record_of(b"v" * 150)) is False
    (refused,) = travelled(wire, ReplicaRefused)
    assert refused.reason == "as many hints as it may keep for d"
    assert wire.nodes["a"].local.counters["hints_refused"] == 1
    assert hint(wire, b"1", record_of(b"v" * 500, counter=2))
    assert hint(wire, b"2", record_of(b"v" * 150), intended="c")
    assert totals(wire) == {"c": 1, "d": 1}


def test_hints_for_all_nodes_are_limited_in_bytes():
    """The sum is what the disk holds."""
    wire = cluster(hint_bytes_max=500)
    assert hint(wire, b"1", record_of(b"v" * 150), intended="c")
    assert hint(wire, b"2", record_of(b"v" * 150), intended="d")
    assert hint(wire, b"3", record_of(b"v" * 150), intended="d") is False


def test_a_node_whose_disk_is_nearly_full_keeps_only_deletes(wire):
    """A tombstone may free more than it takes."""
    wire.handle("a", DiskSpace(0.99))
    assert hint(wire, b"k", record_of(b"v")) is False
    (refused,) = travelled(wire, ReplicaRefused)
    assert refused.reason == "its disk is nearly full"
    assert hint(wire, b"k", record_of(None))


def test_hints_are_kept_for_so_many_nodes_at_most():
    """Each costs every read an engine read."""
    store = HintStore(Store(MemoryEngine()), lambda: 0)
    for i in range(1024):
        store.put(f"n{i}", b"k" * 20, b"v", Durability.SYNC)
    with pytest.raises(HintsFull):
        store.put("n1024", b"k" * 20, b"v", Durability.SYNC)
    store.put("n1024", b"k" * 20, b"v", Durability.SYNC, limited=False)


# --- restart ---


@pytest.mark.parametrize("clean", [False, True])
def test_a_restarted_holder_knows_its_hints_at_once(wire, clean):
    """How many, how large, how old; it answers reads from them, and delivers."""
    for i in range(40):
        hint(wire, b"%d" % i, record_of(b"v"))
    hint(wire, b"x", record_of(b"v"), intended="c")
    before = dict(wire.nodes["a"].local.hints.totals)
    (wire.stop if clean else wire.crash)("a")
    wire.pass_time(60)
    wire.restart("a")
    assert wire.nodes["a"].local.hints.totals == before
    assert wire.nodes["a"].local.known(record_key("0", b"7")) == record_of(b"v")
    assert 60 <= wire.nodes["a"].status().hints[1].age_s < 61
    wire.restart("d")
    pass_seconds(wire, 3)
    assert totals(wire) == {}
    assert wire.values("d", b"7") == [b"v"]
    assert wire.values("c", b"x") == [b"v"]


def test_hints_lost_with_a_crash_are_not_in_the_totals(wire):
    """Both are of one group."""
    hint(wire, b"1", record_of(b"v"))
    wire.held.add("a")
    hint(wire, b"2", record_of(b"v"))
    assert totals(wire) == {"d": 2}
    wire.crash("a")
    wire.held.discard("a")
    wire.restart("a")
    assert totals(wire) == {"d": 1}


# --- damage ---


def damage_hint(wire, key, holder="a", intended="d"):
    """Flip a bit of a hint on the disk."""
    at = hint_key(intended, record_key("0", key))
    sealed = bytearray(wire.engines[holder].get(Space.HINTS, at))
    sealed[-1] ^= 1
    wire.engines[holder].apply([{}, {}, {at: bytes(sealed)}], sync=True)


@pytest.mark.parametrize("contact", ["read", "known", "write", "delivery"])
def test_a_damaged_hint_is_dropped_wherever_it_is_met(wire, contact):
    """It is neither served nor delivered nor merged; and this node may have forgotten dots."""
    key = owned_by(wire, owner="a", owned=False)
    hint(wire, key, record_of(b"v"))
    damage_hint(wire, key)
    local, actor = wire.nodes["a"].local, wire.nodes["a"].local.actor
    at = record_key("0", key)
    if contact == "read":
        wire.sent.clear()
        wire.inject("b", "a", ReplicaRead(9, at))
        assert travelled(wire, ReplicaRefused)
        wire.inject("b", "a", ReplicaRead(9, at))
        assert travelled(wire, ReplicaValue) == [ReplicaValue(9, None)]
    elif contact == "known":
        assert local.known(at) == EMPTY
    elif contact == "write":
        assert hint(wire, key, record_of(b"w", actor="c/x"))
        assert [v.value for v in local.known(at).versions] == [b"w"]
    else:
        wire.restart("d")
        pass_seconds(wire, 2)
        assert not travelled(wire, HintDeliver)
        assert wire.values("d", key) == []
    assert totals(wire) == ({"d": 1} if contact == "write" else {})
    assert local.counters["corrupt_hints"] == 1
    assert local.actor != actor


class Unreadable(MemoryEngine):
    """A disk with damaged places among the hints."""

    def __init__(self):
        super().__init__()
        self.bad = set()

    def get(self, space, key):
        if space is Space.HINTS and key in self.bad:
            raise CorruptData("damaged block")
        return super().get(space, key)

    def scan(self, space, start=b"", end=None, *, limit):
        rows = super().scan(space, start, end, limit=limit)
        if space is Space.HINTS and any(key in self.bad for key, _ in rows):
            raise CorruptData("damaged block")
        return rows


def test_what_the_engine_cannot_read_is_passed_over():
    """The other partitions' hints are delivered; a place that is asked for is dropped."""
    wire = cluster()
    wire.crash("a")
    wire.restart("a", disk=Unreadable())
    wire.crash("d")
    keys = [b"%d" % i for i in range(100)]
    for key in keys:
        hint(wire, key, record_of(b"v"))
    ordered = sorted(record_key("0", key) for key in keys)
    bad = next(at for at in ordered[50:] if "a" not in wire.nodes["a"].local.owners(at, 3))
    wire.engines["a"].bad = {hint_key("d", bad)}
    wire.restart("d")
    pass_seconds(wire, 40)
    held = wire.nodes["a"].local.hints.totals["d"].hints
    assert 1 <= held <= 8, "those of one partition of 64"
    assert wire.nodes["a"].local.counters["hints_unreadable"]
    assert wire.nodes["a"].local.known(bad) == EMPTY
    assert totals(wire).get("d", 0) == held - 1
    pass_seconds(wire, 40)
    wire.engines["a"].bad = set()
    pass_seconds(wire, 40)
    assert totals(wire) == {}


def test_a_node_starts_though_its_first_hint_cannot_be_read():
    """It used to raise. What it knows of its hints are the totals, and the other hints are delivered."""
    wire = cluster()
    wire.crash("a")
    wire.restart("a", disk=Unreadable())
    wire.crash("d")
    keys = [b"%d" % i for i in range(100)]
    for key in keys:
        hint(wire, key, record_of(b"v"))
    wire.engines["a"].bad = {hint_key("d", min(record_key("0", key) for key in keys))}
    wire.crash("a")
    wire.restart("a")
    assert totals(wire) == {"d": 100}
    wire.restart("d")
    pass_seconds(wire, 40)
    assert 1 <= totals(wire)["d"] <= 8, "those of one partition of 64"


def test_a_damaged_total_does_not_hide_hints(wire):
    """Nor do totals without hints, or keys that are none, stay."""
    for i in range(3):
        hint(wire, b"%d" % i, record_of(b"v"))
    engine = wire.engines["a"]
    engine.apply(
        [
            {},
            {META_TOTAL + b"d": b"\xc1", META_TOTAL + b"gone": HintStoreBytes},
            {b"\x05abc": b"", b"\xff" * 80: b"", b"\x01\xff" + b"k" * 20: b"", b"\x00" * 20: b""},
        ],
        sync=True,
    )
    wire.crash("a")
    wire.restart("a")
    assert totals(wire) == {"d": 0}
    assert wire.nodes["a"].local.known(record_key("0", b"1")) == record_of(b"v")
    wire.restart("d")
    pass_seconds(wire, 10)
    assert totals(wire) == {}
    assert on_disk(wire) == (0, 0)
    assert [wire.values("d", b"%d" % i) for i in range(3)] == [[b"v"]] * 3


HintStoreBytes = b"\x94\x01\x01\x01\xc3"
"""A total as it is stored: since 1 ms, one hint, one byte, exact."""


def test_a_total_without_hints_is_forgotten_at_the_end_of_a_pass(wire):
    """The engine has lost them."""
    hint(wire, b"1", record_of(b"v"))
    wire.engines["a"].apply([{}, {}, {hint_key("d", record_key("0", b"1")): None}], sync=True)
    wire.restart("d")
    pass_seconds(wire, 2)
    assert totals(wire) == {}
    assert on_disk(wire) == (0, 0)


def test_a_damaged_total_over_an_unreadable_hint_stays():
    """Whether there are more cannot be known."""
    engine = Unreadable()
    store = Store(engine)
    kept = HintStore(store, lambda: 0)
    for key in [b"k" * 20, b"l" * 20]:
        kept.put("d", key, b"v", Durability.SYNC)
    kept.totals["d"] = HintTotal(0, 1, 30, exact=False)
    group = store.take()
    engine.apply(group.spaces, sync=True)
    store.committed()
    engine.bad = {hint_key("d", b"l" * 20)}
    kept.remove("d", b"k" * 20, b"v")
    assert "d" in kept.totals
