"""Versions against the model of explicit causal histories, and the laws that replication rests on."""

from __future__ import annotations

import functools
import itertools
import random
from typing import NamedTuple

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, invariant, rule
from tests.core.causal_model import NOTHING, Events, Histories

from cartwheel.core import versions
from cartwheel.core.errors import CorruptData
from cartwheel.core.types import Clock, Dot
from cartwheel.core.versions import EMPTY, Record, Version

REPLICAS = 3


class Seen(NamedTuple):
    """A context in both worlds: the model's events, and the clock with dots beside it that stand for them."""

    events: Events
    clock: Clock
    dots: tuple[Dot, ...] = ()


class Key:
    """One key on several replicas, in the model and for real, side by side."""

    def __init__(self, *, causal_readings: bool = False) -> None:
        self.histories = Histories()
        self.causal_readings = (
            causal_readings  # whether a write reads later than all that it has seen, as hybrid clocks do
        )
        self.dots: list[Dot] = []  # event -> dot
        self.known: list[Events] = [NOTHING] * REPLICAS
        self.records: list[Record] = [EMPTY] * REPLICAS
        self.stints = [0] * REPLICAS
        self.counters = [100, 5, 5]  # clocks that disagree; two even give out equal readings

    def read(self, replica: int) -> Seen:
        return Seen(self.known[replica], self.records[replica].clock, self.records[replica].cloud)

    def merge(self, ours: int, theirs: int) -> None:
        self.known[ours] |= self.known[theirs]
        self.records[ours] = versions.merge(self.records[ours], self.records[theirs])

    def put(self, replica: int, seen: Seen | None, *, tombstone: bool = False) -> Seen:
        """Write with what ``seen`` stands for (None: blindly, over all that the replica holds); return the context after it."""
        record = self.records[replica]
        context = self.read(replica) if seen is None else seen
        if self.causal_readings:
            seen_readings = [*record.clock.values(), *context.clock.values(), *(counter for _, counter in context.dots)]
            self.counters[replica] = max([self.counters[replica], *seen_readings])
        self.counters[replica] += 1
        dot = (f"n{replica}/{self.stints[replica]}", self.counters[replica])
        event = self.histories.write(context.events)
        value = None if tombstone else b"%d" % event
        new = versions.put(record, context.clock, dot, value, seen=context.dots)
        self.dots.append(dot)
        self.records[replica] = new
        self.known[replica] |= context.events | {event}
        self.check_seen(after := Seen(context.events | {event}, *context_after(record, new, context, dot)))
        return after

    def forget(self, replica: int, remembered: Record, events: Events) -> None:
        """The disk is lost, or an older copy of it restored: the node goes on as a new stint."""
        self.stints[replica] += 1
        self.records[replica], self.known[replica] = remembered, events

    def converge(self) -> None:
        """Once all have heard from all, in any order, they hold equal bytes."""
        for ours, theirs in itertools.permutations(range(REPLICAS), 2):
            self.merge(ours, theirs)
        for ours, theirs in itertools.permutations(range(REPLICAS), 2):
            self.merge(theirs, ours)
        self.check()
        assert len({versions.encode(record) for record in self.records}) == 1

    def check_seen(self, seen: Seen) -> None:
        """A context covers exactly what its client has seen, and is canonical."""
        covered = Record(seen.clock, (), seen.dots)
        versions.check(covered)
        assert self.histories.closed(seen.events)
        assert {e for e, dot in enumerate(self.dots) if versions.accounts_for(covered, (dot,))} == seen.events

    def check(self) -> None:
        """Each replica is as the model says, and its bytes say the same."""
        for record, known in zip(self.records, self.known, strict=True):
            versions.check(record)
            assert versions.decode(memoryview(versions.encode(record))) == record
            live = self.histories.live(known)
            assert {v.dot for v in record.versions} == {self.dots[event] for event in live}
            assert self.histories.closed(known)
            for event, dot in enumerate(self.dots):
                assert versions.accounts_for(record, (dot,)) == (event in known)


def context_after(before: Record, after: Record, context: Seen, dot: Dot) -> tuple[Clock, tuple[Dot, ...]]:
    return versions.context_after_put(before, after, context.clock, dot, context.dots)


class VersionsMachine(RuleBasedStateMachine):
    """After any writes, merges and losses each replica's siblings are those of the model: none lost, none false."""

    contexts = Bundle("contexts")
    replicas = st.integers(0, REPLICAS - 1)
    pairs = st.permutations(range(REPLICAS)).map(lambda order: order[:2])

    @initialize(target=contexts)
    def begin(self) -> Seen:
        self.key = Key()
        self.backups: list[tuple[int, Record, Events]] = [(r, EMPTY, NOTHING) for r in range(REPLICAS)]
        return Seen(NOTHING, {})

    @rule(target=contexts, replica=replicas)
    def read(self, replica: int) -> Seen:
        self.backups.append((replica, self.key.records[replica], self.key.known[replica]))
        return self.key.read(replica)

    @rule(target=contexts, replica=replicas, seen=contexts | st.none(), tombstone=st.booleans())
    def put(self, replica: int, seen: Seen | None, tombstone: bool) -> Seen:
        return self.key.put(replica, seen, tombstone=tombstone)

    @rule(pair=pairs)
    def merge(self, pair: list[int]) -> None:
        self.key.merge(*pair)

    @rule(pair=pairs)
    def merge_both_ways(self, pair: list[int]) -> None:
        ours, theirs = pair
        self.key.merge(ours, theirs)
        self.key.merge(theirs, ours)

    @rule(data=st.data())
    def lose_disk(self, data: st.DataObject) -> None:
        self.key.forget(*data.draw(st.sampled_from(self.backups)))

    @invariant()
    def as_the_model_says(self) -> None:
        self.key.check()

    def teardown(self) -> None:
        self.key.converge()


VersionsMachine.TestCase.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)
TestVersionsMachine = VersionsMachine.TestCase


@pytest.mark.parametrize("seed", range(100))
def test_random_walks_are_as_the_model_says(seed):
    """The same on plain random walks: they meet more siblings than hypothesis, which prefers short stories."""
    dice = random.Random(seed)
    key = Key(causal_readings=bool(seed % 2))
    contexts: list[Seen | None] = [None, Seen(NOTHING, {})]
    backups = [(r, EMPTY, NOTHING) for r in range(REPLICAS)]
    for _ in range(60):
        chance, replica, other = dice.random(), dice.randrange(REPLICAS), dice.randrange(REPLICAS)
        if chance < 0.4:
            contexts.append(key.put(replica, dice.choice(contexts[-12:] + contexts[:2]), tombstone=dice.random() < 0.2))
        elif chance < 0.75:
            key.merge(replica, other)
        elif chance < 0.97:
            contexts.append(key.read(replica))
            backups.append((replica, key.records[replica], key.known[replica]))
        else:
            key.forget(*dice.choice(backups))
        key.check()
    key.converge()


# --- the laws of merge ------------------------------------------------------------------------------------------------


@st.composite
def replicas_of_a_key(draw: st.DrawFn, *, causal_readings: bool = False) -> list[Record]:
    """Records that replicas of one key can come to hold."""
    key = Key(causal_readings=causal_readings)
    contexts: list[Seen | None] = [None, Seen(NOTHING, {})]
    steps = st.tuples(st.integers(0, 5), st.integers(0, REPLICAS - 1), st.integers(0, REPLICAS - 1), st.integers(0, 30))
    for kind, ours, theirs, which in draw(st.lists(steps, max_size=20)):
        if kind == 0:
            key.merge(ours, theirs)
        elif kind == 1:
            contexts.append(key.read(ours))
        elif kind == 2:
            key.forget(ours, EMPTY, NOTHING)
        else:
            contexts.append(key.put(ours, contexts[which % len(contexts)], tombstone=kind == 3))
    return key.records


@given(replicas_of_a_key())
@settings(max_examples=100)
def test_merge_is_commutative_associative_and_idempotent(records):
    """In whatever order, grouping and repetition records meet, the result has the same bytes."""
    a, b, c = records
    merge, encode = versions.merge, versions.encode
    assert encode(merge(a, b)) == encode(merge(b, a))
    assert encode(merge(merge(a, b), c)) == encode(merge(a, merge(b, c)))
    assert encode(merge(a, a)) == encode(a)
    assert encode(merge(merge(a, b), b)) == encode(merge(a, b))


@given(replicas_of_a_key())
@settings(max_examples=100)
def test_merge_returns_its_argument_where_nothing_changes(records):
    """The result is ``ours`` itself if theirs adds nothing, else ``theirs`` itself if ours adds nothing, else a new record."""
    for ours, theirs in itertools.permutations(records, 2):
        merged = versions.merge(ours, theirs)
        if merged == ours:
            assert merged is ours
        elif merged == theirs:
            assert merged is theirs
        else:
            assert merged is not ours
            assert merged is not theirs


@given(replicas_of_a_key(), st.randoms(use_true_random=False))
def test_equal_records_are_equal_bytes(records, random):
    """The bytes do not depend on the order in which a record's clock and cloud were filled."""
    merged = functools.reduce(versions.merge, records)
    items = list(merged.clock.items())
    random.shuffle(items)
    assert versions.encode(Record(dict(items), merged.versions, merged.cloud)) == versions.encode(merged)
    assert versions.decode(versions.encode(merged)) == merged


@given(replicas_of_a_key())
def test_a_stripped_record_merges_like_the_whole_one(records):
    """Stripping the values before a merge or after it is the same; tombstones stay tombstones, values stay values."""
    a, b, _ = records
    assert versions.merge(versions.strip(a), versions.strip(b)) == versions.strip(versions.merge(a, b))
    assert (versions.strip(a).clock, versions.strip(a).cloud) == (a.clock, a.cloud)
    for version, bare in zip(a.versions, versions.strip(a).versions, strict=True):
        assert bare.value == (None if version.value is None else b"")
        assert bare.live(0) == version.live(0)


@given(replicas_of_a_key(causal_readings=True), st.permutations(range(REPLICAS)))
def test_last_writer_wins_converges(records, order):
    """If replicas keep only the newest after each merge, all come to hold the same bytes, whatever the order of merges:
    the newest of all."""
    lww = versions.only_newest

    def gathered(sequence):
        known = EMPTY
        for i in sequence:
            known = lww(versions.merge(known, lww(records[i])))
        return versions.encode(known)

    everything = functools.reduce(versions.merge, records)
    assert gathered(order) == gathered(range(REPLICAS)) == versions.encode(lww(everything))


@given(replicas_of_a_key())
def test_merge_clocks_is_the_least_upper_bound(records):
    """The merged clock descends from both and claims nothing that neither knew; ``descends`` is the order of it."""
    for a, b in itertools.permutations([r.clock for r in records], 2):
        merged = versions.merge_clocks(a, b)
        assert versions.descends(merged, a)
        assert versions.descends(merged, b)
        assert all(counter in (a.get(actor), b.get(actor)) for actor, counter in merged.items())
        assert versions.descends(a, b) == (merged == a)


def test_merge_after_last_writer_wins():
    """There a replica may account for writes that no version superseded: the clocks still join, and what one dropped stays so."""
    a1, b1 = Version("a/1", 1, b"x"), Version("b/1", 1, b"y")
    both, one = Record({"a/1": 1, "b/1": 1}, (a1, b1)), Record({"a/1": 1, "b/1": 1}, (a1,))
    assert versions.merge(both, one) is one
    assert versions.merge(one, both) is one
    assert versions.merge(Record({"a/1": 1}, (a1,)), one) is one
    assert versions.merge(one, Record({"a/1": 1}, (a1,))) is one


# --- single facts -----------------------------------------------------------------------------------------------------

A1, A2, A3, B1, B2 = ("a/1", 1), ("a/1", 2), ("a/1", 3), ("b/1", 1), ("b/1", 2)


def record_of(*found: Version) -> Record:
    clock: Clock = {}
    for version in found:
        clock[version.actor] = max(version.counter, clock.get(version.actor, 0))
    return Record(clock, tuple(sorted(found, key=lambda v: v.dot)))


def test_two_writers_with_one_context_through_one_node_are_siblings():
    """The trap of plain vector clocks: neither write erases the other, and a write with both in its context ends both."""
    first = versions.put(EMPTY, {}, A1, b"milk")
    second = versions.put(first, {}, A2, b"eggs")
    assert [v.value for v in second.versions] == [b"milk", b"eggs"]
    merged = versions.put(second, second.clock, ("a/1", 3), b"milk, eggs")
    assert [v.value for v in merged.versions] == [b"milk, eggs"]


@pytest.mark.parametrize(
    ("record", "context", "dot"),
    [
        (versions.put(EMPTY, {}, A2, b""), {}, A1),  # older than what the record accounts for
        (versions.put(EMPTY, {}, A2, b""), {}, A2),  # the very same
        (EMPTY, {"a/1": 2}, A2),  # the client has seen it already
        (EMPTY, {"a/1": 2}, A1),
    ],
)
def test_a_dot_is_never_minted_twice(record, context, dot):
    """A dot that the record or the context covers is our bug, and stops us."""
    with pytest.raises(AssertionError):
        versions.put(record, context, dot, b"")


def test_context_after_put_without_sibling_is_the_whole_clock():
    """A lone version has all that its record accounts for in its past."""
    record = versions.put(versions.put(EMPTY, {}, B1, b"x"), {"b/1": 1}, A1, b"y")
    assert versions.context_after_put(EMPTY, record, {"b/1": 1}, A1, ()) == ({"a/1": 1, "b/1": 1}, ())
    noted = versions.put(EMPTY, {}, A1, b"y", seen=(B1,))
    assert versions.context_after_put(EMPTY, noted, {}, A1, (B1,)) == ({"a/1": 1}, (B1,))


def test_context_after_put_beside_a_sibling_does_not_cover_it():
    """The writer of y has not seen x, so its next write must leave x alone, and end y."""
    before = versions.put(EMPTY, {}, A1, b"x")
    record = versions.put(before, {}, A2, b"y")
    clock, dots = versions.context_after_put(before, record, {}, A2, ())
    assert (clock, dots) == ({}, (A2,))
    after = versions.put(record, clock, A3, b"z", seen=dots)
    assert {v.value for v in after.versions} == {b"x", b"z"}


def test_context_after_put_is_a_clock_where_an_entry_claims_nothing_unseen():
    """The client had seen all of this actor's earlier writes (here: none), and B1, which it also keeps: as a dot."""
    before = versions.put(EMPTY, {}, B2, b"x")
    record = versions.put(before, {}, A1, b"y", seen=(B1,))
    assert versions.context_after_put(before, record, {}, A1, (B1,)) == ({"a/1": 1}, (B1,))
    assert versions.context_after_put(record, record, {}, A1, (B1,)) == ({}, (A1, B1))  # a retry: nobody knows any more


def test_context_after_put_has_a_limit():
    """Of ever more single dots the oldest are left out, whatever their actor."""
    seen = tuple(("a/1" if i % 2 else "z/1", i) for i in range(2, versions.CONTEXT_DOTS_MAX + 2))
    before = versions.put(versions.put(EMPTY, {}, ("m/1", 200), b"x"), {}, ("m/1", 300), b"y")
    record = versions.put(before, {}, ("m/1", 301), b"z", seen=seen)
    clock, dots = versions.context_after_put(before, record, {}, ("m/1", 301), seen)
    assert (clock, dots) == ({}, tuple(sorted((*seen[1:], ("m/1", 301)))))


def test_a_put_notes_what_it_has_not_heard_of():
    """Its version is gone as soon as it comes, and so is the note; an earlier write of that actor stays: it was never seen."""
    one = versions.put(EMPTY, {}, B1, b"one")
    two = versions.put(one, {}, B2, b"two")
    here = versions.put(EMPTY, {}, A1, b"three", seen=(B2, B2))
    assert here == Record({"a/1": 1}, (Version("a/1", 1, b"three"),), (B2,))
    assert [v.value for v in versions.merge(here, one).versions] == [b"three", b"one"]
    assert versions.merge(here, one).cloud == (B2,)  # one's clock does not reach it
    for merged in (versions.merge(here, two), versions.merge(two, here)):
        assert [v.value for v in merged.versions] == [b"three", b"one"]
        assert (merged.clock, merged.cloud) == ({"a/1": 1, "b/1": 2}, ())


def test_a_put_over_all_that_is_here_keeps_the_cloud():
    """A blind put, and one with the context of a read, note nothing new and forget nothing."""
    here = versions.put(EMPTY, {}, A1, b"x", seen=(B1,))
    for context, seen in [(here.clock, ()), (here.clock, here.cloud), (dict(here.clock), here.cloud)]:
        after = versions.put(here, context, A2, b"y", seen=seen)
        assert after == Record({"a/1": 2}, (Version("a/1", 2, b"y"),), (B1,))


def test_an_actor_with_a_dot_of_its_own_in_the_cloud_mints_nothing():
    """It has forgotten that write, so perhaps others, and its next entry would claim them: invariant A."""
    noted = versions.put(EMPTY, {}, B1, b"x", seen=(A1,))
    with pytest.raises(AssertionError, match="lacks one of"):
        versions.put(noted, noted.clock, A2, b"y")
    with pytest.raises(AssertionError, match="lacks one of"):
        versions.put(EMPTY, {}, A2, b"y", seen=(A1,))
    assert versions.put(noted, {}, ("a/2", 2), b"y").cloud == (A1,)


def test_merge_with_clouds_returns_its_argument_where_nothing_changes():
    """Each side may know more: a version, a note."""
    plain = versions.put(EMPTY, {}, A1, b"x")
    noted = versions.put(EMPTY, {}, A1, b"x", seen=(B1,))
    assert versions.merge(noted, plain) is noted
    assert versions.merge(plain, noted) is noted
    newer = versions.put(plain, plain.clock, A2, b"y")
    assert versions.merge(noted, newer) == versions.merge(newer, noted) == Record(newer.clock, newer.versions, (B1,))
    assert versions.merge(noted, versions.put(noted, noted.clock, A2, b"y")).cloud == (B1,)


def test_accounts_for_asks_for_each_dot():
    """A write is accounted for if it is live or superseded, or noted; one unknown dot suffices for no."""
    record = versions.put(versions.put(EMPTY, {}, A1, b""), {"a/1": 1}, A2, b"")
    assert versions.accounts_for(record, [A1, A2])
    assert not versions.accounts_for(record, [A1, B1])
    assert not versions.accounts_for(record, [("a/1", 3)])
    assert versions.accounts_for(record, [])
    noted = versions.put(record, {}, ("a/1", 3), b"", seen=(B2,))
    assert versions.accounts_for(noted, [A1, B2])
    assert not versions.accounts_for(noted, [B1])


def test_siblings_show_a_retried_write_once():
    """One request stamped by two coordinators is one write; writes without an id are never taken for one another."""
    record = record_of(
        Version("a/1", 1, b"v", 0, b"q"), Version("b/1", 1, b"v", 0, b"q"), Version("c/1", 1, b"v", 0, b"r"),
        Version("d/1", 1, b"v"), Version("e/1", 1, b"v"),
    )  # fmt: skip
    assert [v.actor for v in versions.siblings(record, 0)] == ["a/1", "c/1", "d/1", "e/1"]


def test_siblings_never_hide_a_value():
    """Two values under one request id are a client's mistake; both are shown, or a put after the read would drop one unseen."""
    record = record_of(
        Version("a/1", 1, b"v", 0, b"q"), Version("b/1", 1, b"w", 0, b"q"), Version("c/1", 1, b"v", 0, b"q")
    )
    assert [v.value for v in versions.siblings(record, 0)] == [b"v", b"w"]


def test_siblings_show_what_lives():
    """Neither tombstones nor expired versions; a retry that lives longer than the first try still shows."""
    record = record_of(
        Version("a/1", 1, None), Version("b/1", 1, b"old", 10, b"q"), Version("c/1", 1, b"old", 20, b"q"),
        Version("d/1", 1, b"new"),
    )  # fmt: skip
    assert [v.actor for v in versions.siblings(record, 9)] == ["b/1", "d/1"]
    assert [v.actor for v in versions.siblings(record, 10)] == ["c/1", "d/1"]
    assert [v.actor for v in versions.siblings(record, 20)] == ["d/1"]


@pytest.mark.parametrize(
    ("value", "expires_at_ms", "wall_ms", "live"),
    [
        (b"", 0, 1 << 60, True),  # 0: never
        (b"x", 100, 99, True),
        (b"x", 100, 100, False),  # from that instant on
        (None, 0, 0, False),
        (None, 100, 50, False),
    ],
)
def test_expiry(value, expires_at_ms, wall_ms, live):
    """Each row: a version of this value and expiry, at this wall time, shows a value or not."""
    assert Version("a/1", 1, value, expires_at_ms).live(wall_ms) is live


def test_put_notes_expiry_and_request():
    """What came with the write is kept with its version."""
    record = versions.put(EMPTY, {}, A1, b"x", expires_at_ms=77, request_id=b"q")
    assert record.versions == (Version("a/1", 1, b"x", 77, b"q"),)
    assert versions.by_request(record, b"q") is record.versions[0]
    assert versions.by_request(record, b"r") is None


@pytest.mark.parametrize(
    ("record", "expected"),
    [
        (EMPTY, None),
        (record_of(Version("a/1", 7, b"")), ("a/1", 7)),
        (record_of(Version("a/1", 7, b""), Version("b/1", 6, b"")), ("a/1", 7)),
        (record_of(Version("a/1", 7, b""), Version("b/1", 7, b"")), ("b/1", 7)),  # a tie: by actor
        (record_of(Version("a/1", 8, None), Version("b/1", 7, b"")), ("a/1", 8)),  # a tombstone counts
    ],
)
def test_newest(record, expected):
    """Each row: the newest of these siblings; last writer wins keeps just it, and the clock."""
    found = versions.newest(record)
    assert (found and found.dot) == expected
    assert versions.only_newest(record) == Record(record.clock, () if found is None else (found,))
    noted = Record(record.clock, record.versions, (("c/1", 9),))
    assert versions.only_newest(noted).cloud == noted.cloud


def test_explanation_of_a_record():
    """``as_dict`` tells dots, sizes and fates, not values."""
    record = record_of(Version("b/1", 2, b"four"), Version("a/1", 1, None, 9))
    record = Record(record.clock, record.versions, (("c/1", 3),))
    assert versions.as_dict(record) == {
        "clock": {"a/1": 1, "b/1": 2},
        "versions": [
            {"dot": ["a/1", 1], "bytes": None, "tombstone": True, "expires_at_ms": 9},
            {"dot": ["b/1", 2], "bytes": 4, "tombstone": False, "expires_at_ms": 0},
        ],
        "cloud": [["c/1", 3]],
    }
    assert list(versions.as_dict(record)["clock"]) == ["a/1", "b/1"]


@pytest.mark.parametrize(
    "bad",
    [
        Record({}, (Version("a/1", 1, b""),)),  # the clock does not cover a version
        Record({"a/1": 1}, (Version("a/1", 2, b""),)),
        Record({"a/1": 2}, (Version("a/1", 2, b""), Version("a/1", 1, b""))),  # not in dot order
        Record({"a/1": 1}, (Version("a/1", 1, b""), Version("a/1", 1, b""))),  # one dot twice
        Record({"a/1": 1}, (), (A1,)),  # the clock covers a dot of the cloud
        Record({}, (), (B1, A1)),  # not in order
        Record({}, (), (A1, A1)),  # twice
    ],
)
def test_check_refuses(bad):
    """Each of these records breaks invariant 1."""
    with pytest.raises(AssertionError):
        versions.check(bad)


# --- bytes ------------------------------------------------------------------------------------------------------------


def test_the_bytes_of_a_record():
    """What lies on disks must not change by accident: a record written by this version is read by all later ones."""
    record = Record({"b/2": 300, "a/1": 5}, (Version("a/1", 5, b"milk", 7, b"q"), Version("b/2", 300, None)))
    golden = bytes.fromhex("9382a3612f3105a3622f32cd012c9295a3612f3105c4046d696c6b07c4017195a3622f32cd012cc000c40090")
    assert versions.encode(record) == golden
    assert versions.decode(golden) == record
    noted = Record(record.clock, record.versions, (("b/2", 301), ("c/3", 7)))
    golden = golden[:-1] + bytes.fromhex("9292a3622f32cd012d92a3632f3307")
    assert versions.encode(noted) == golden
    assert versions.decode(golden) == noted


def test_records_of_before_there_were_clouds_are_read():
    """They have two fields; written again, they have three."""
    record = Record({"b/2": 300, "a/1": 5}, (Version("a/1", 5, b"milk", 7, b"q"), Version("b/2", 300, None)))
    old = bytes.fromhex("9282a3612f3105a3622f32cd012c9295a3612f3105c4046d696c6b07c4017195a3622f32cd012cc000c400")
    assert versions.decode(old) == record
    assert versions.encode(versions.decode(old)) == versions.encode(record)


@given(st.binary(max_size=60))
def test_arbitrary_bytes_are_corrupt_data(data):
    """Decoding raises nothing but CorruptData."""
    try:
        versions.decode(data)
    except CorruptData:
        pass


@given(replicas_of_a_key(), st.data())
@settings(max_examples=100, suppress_health_check=[HealthCheck.too_slow])
def test_damaged_bytes_are_corrupt_data(records, data):
    """Neither do the bytes of a record with some of them changed, cut off or put in."""
    whole = versions.encode(records[0])
    at = data.draw(st.integers(0, len(whole)))
    damaged = whole[:at] + data.draw(st.binary(max_size=4)) + whole[at + data.draw(st.integers(0, 4)) :]
    try:
        versions.decode(damaged)
    except CorruptData:
        pass


def test_bottomless_bytes_are_corrupt_data():
    """Arrays nested beyond what the parser follows do not take the process down."""
    with pytest.raises(CorruptData):
        versions.decode(b"\x94\x80\x90\x90" + b"\x91" * 200_000)
