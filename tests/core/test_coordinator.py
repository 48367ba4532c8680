"""The coordinator and the replicas, on real nodes joined by a fake wire (sections 4.4, 4.5 and 5)."""

from __future__ import annotations

import math
import random
from typing import Any

import pytest
from tests.core.causal_model import NOTHING, Histories
from tests.core.wire import WALL_MS, Wire

from cartwheel.core import versions
from cartwheel.core.clock import reading
from cartwheel.core.errors import Code
from cartwheel.core.messages import (
    ClientExplain,
    ClientGet,
    ClientPut,
    Explained,
    Failure,
    Forward,
    Forwarded,
    Found,
    PeerDown,
    PeerUp,
    PutRequest,
    ReplicaRead,
    ReplicaRefused,
    ReplicaRepair,
    ReplicaValue,
    ReplicaWrite,
    ReplicaWrote,
    Send,
    Stored,
)
from cartwheel.core.storage import record_key, seal
from cartwheel.core.types import Durability
from cartwheel.core.versions import EMPTY, Record, Version

KEY = b"cart:7"


@pytest.fixture
def wire() -> Wire:
    """Three nodes: all own every key."""
    return Wire(["a", "b", "c"])


@pytest.fixture
def five() -> Wire:
    """Five nodes: three own a key, two do not."""
    return Wire(["a", "b", "c", "d", "e"])


def owners_of(wire: Wire, key: bytes = KEY) -> tuple[list[str], list[str]]:
    """The key's owners in the order of its preference list, and the others."""
    owners = list(next(iter(wire.nodes.values())).local.owners(record_key("0", key), 3))
    return owners, [name for name in sorted(wire.nodes) if name not in owners]


def after(result: Found | Stored) -> dict[str, Any]:
    """The fields of a put with the context of this result."""
    if isinstance(result, Found):
        return {"context": result.record.clock, "dots": result.record.cloud, "coordinator": result.coordinator}
    assert isinstance(result, Stored), result
    return {"context": result.clock, "dots": result.dots, "coordinator": result.coordinator}


def values_of(found: Found) -> list[bytes]:
    """What a get shows."""
    assert isinstance(found, Found), found
    return sorted(v.value or b"" for v in versions.siblings(found.record, WALL_MS))


def sent(wire: Wire, kind: type) -> list[tuple[str, str]]:
    """Who sent messages of this kind to whom."""
    return [(src, dst) for src, dst, message in wire.sent if isinstance(message, kind)]


# --- W durable acks from distinct nodes -------------------------------------------------------------------------------


def test_put_is_stored_by_all_and_answered_once(wire):
    """All N owners come to hold the same bytes; a get through any node finds the value."""
    assert isinstance(wire.put("a", KEY, b"milk"), Stored)
    assert wire.sealed("a", KEY) == wire.sealed("b", KEY) == wire.sealed("c", KEY) is not None
    for name in "abc":
        assert values_of(wire.get(name, KEY)) == [b"milk"]


@pytest.mark.parametrize(
    ("held", "released", "stored"),
    [
        ("", "", True),
        ("c", "", True),  # the slowest is not waited for
        ("bc", "", False),  # our own copy is one of two
        ("bc", "b", True),
        ("ac", "", False),  # neither does our own staged copy count before it is durable
        ("ac", "a", True),
        ("a", "", True),  # two others hold it durably
    ],
)
def test_a_put_is_answered_at_w_durable_copies(wire, held, released, stored):
    """Each row: while these nodes cannot commit, and after these can again, a put through a is stored or waits."""
    wire.held = set(held)
    assert (wire.put("a", KEY, b"x") is not None) == (not released and stored)
    for name in released:
        wire.release(name)
    assert isinstance(wire.replies.get(wire.client), Stored) == stored


def test_an_ack_delivered_twice_counts_once(wire):
    """Two answers of one node are not W of two."""
    wire.held, wire.repeat = {"a", "c"}, True
    assert wire.put("a", KEY, b"x") is None
    (write,) = {m.ids[0] for _, _, m in wire.sent if isinstance(m, ReplicaWrite)}
    wire.inject("b", "a", ReplicaWrote([write, write]))
    assert wire.replies.get(wire.client) is None


def test_an_ack_of_a_node_that_was_not_asked_does_not_count(five):
    """Nor does it stop the node: a peer's bad message is the peer's fault."""
    (first, second, third), (stranger, _) = owners_of(five)
    five.held = {second, third}
    assert five.put(first, KEY, b"x") is None
    (write,) = {m.ids[0] for _, _, m in five.sent if isinstance(m, ReplicaWrite)}
    five.inject(stranger, first, ReplicaWrote([write]), ReplicaRefused(write, "no"), ReplicaWrote([12345]))
    assert five.replies.get(five.client) is None
    five.release(third)
    assert isinstance(five.replies[five.client], Stored)


def test_the_acks_of_one_batch_travel_together(wire):
    """A replica promises all writes of a batch that asked for the same durability in one message, once they have it."""
    writes = []
    for i in range(3):
        at = record_key("0", b"k%d" % i)
        record = versions.put(EMPTY, {}, ("b/x", 1), b"v")
        writes.append(ReplicaWrite([i], at, seal(at, versions.encode(record)), 2 * (i % 2), 1))
    wire.held = {"a"}
    wire.inject("b", "a", *writes)
    assert [m.ids for _, _, m in wire.sent if isinstance(m, ReplicaWrote)] == [[0, 2]]
    wire.release("a")
    assert [m.ids for _, _, m in wire.sent if isinstance(m, ReplicaWrote)] == [[0, 2], [1]]


@pytest.mark.parametrize("durability", ["memory", "os"])
def test_a_write_that_need_not_be_synced_waits_for_less(wire, durability):
    """In a ``memory`` bucket a staged write counts at once; in an ``os`` bucket it waits for its group."""
    wire.set_bucket("a", "m", durability=durability)
    wire.held = {"a", "b", "c"}
    stored = wire.put("a", KEY, b"x", bucket="m")
    assert (stored is not None) == (durability == "memory")
    if durability == "os":
        wire.release("b")
        wire.release("c")
        assert isinstance(wire.replies[wire.client], Stored)


# --- failures ---------------------------------------------------------------------------------------------------------


def test_a_put_that_cannot_reach_w_is_rejected_and_leaves_nothing(wire):
    """Known beforehand, so certainly not applied anywhere; the text says who is missing and why."""
    wire.crash("b")
    wire.crash("c")
    failure = wire.put("a", KEY, b"x")
    assert failure == Failure(Code.NOQUORUM, "need W=2, got 1 (b: connection lost; c: connection lost)", False)
    assert wire.sealed("a", KEY) is None
    assert wire.get("a", KEY) == Failure(
        Code.NOQUORUM, "need R=2, got 1 (b: connection lost; c: connection lost)", False
    )


def test_a_put_with_one_owner_unreachable_is_stored(wire):
    """W of the N suffice, for reads as well."""
    wire.crash("b")
    assert isinstance(wire.put("a", KEY, b"x"), Stored)
    assert values_of(wire.get("c", KEY)) == [b"x"]


def test_peers_lost_under_way_make_the_outcome_unknown(wire):
    """Once staged, a put may appear later, whatever its client is told; so the client is told just that."""
    wire.split("a", "bc")
    assert wire.put("a", KEY, b"x") is None
    wire.handle("a", PeerDown("b", "reset"))
    assert wire.replies.get(wire.client) is None  # c may still answer
    wire.handle("a", PeerDown("c", "reset"))
    text = "need W=2, got 1 (b: reset; c: reset)"
    assert wire.replies[wire.client] == Failure(Code.NOQUORUM, text, True)
    assert wire.values("a", KEY) == [b"x"]


def test_owners_unreachable_from_the_start_count_as_failed(wire):
    """When the last of the others is lost the outcome is known; nobody waits for the deadline."""
    wire.crash("b")
    wire.cut = {("c", "a")}
    assert wire.put("a", KEY, b"x") is None
    wire.handle("a", PeerDown("c", "reset"))
    text = "need W=2, got 1 (b: connection lost; c: reset)"
    assert wire.replies[wire.client] == Failure(Code.NOQUORUM, text, True)


@pytest.mark.parametrize("timeout_s", [0.0, 0.5, 1e-9, math.inf, math.nan, -1.0])
@pytest.mark.parametrize("what", ["put", "get", "forward"])
def test_a_request_ends_at_its_deadline(what, timeout_s):
    """With its own timeout, bounded by a minute, or the configured one; a time that is none does no harm."""
    wire = Wire(["a", "b", "c", "d"])
    owners, (outsider,) = owners_of(wire)
    wire.split(*"abcd")
    at = outsider if what == "forward" else owners[0]
    started = wire.now_s
    if what == "get":
        assert wire.get(at, KEY, timeout_s=timeout_s) is None
    else:
        assert wire.put(at, KEY, b"x", timeout_s=timeout_s) is None
    expected = 60.0 if timeout_s == math.inf else timeout_s if timeout_s > 0 else 2.0
    while wire.replies.get(wire.client) is None:
        wire.advance(0.05)
        assert wire.now_s - started < 61
    assert wire.now_s - started == pytest.approx(expected, abs=0.11)
    failure = wire.replies[wire.client]
    assert (failure.code, failure.unknown) == (Code.NOQUORUM, what != "get")
    assert "no answer in time" in failure.text
    assert wire.nodes[at].status().requests == 0


def test_answers_after_the_reply_are_ignored(wire):
    """Acks, refusals and values of requests that are over, or never were, change nothing."""
    wire.held = {"b", "c"}
    wire.put("a", KEY, b"x")
    wire.advance(2.1)
    assert wire.replies[wire.client].unknown
    wire.release("b")
    wire.release("c")
    wire.inject(
        "b",
        "a",
        ReplicaWrote([1]),
        ReplicaRefused(1, "no"),
        ReplicaValue(1, None),
        Forwarded(1, Failure(Code.BUSY, "")),
    )
    assert wire.nodes["a"].status().requests == 0
    assert values_of(wire.get("b", KEY)) == [b"x"]  # the unknown outcome was: stored


def test_an_answer_of_the_wrong_kind_is_ignored(wire):
    """A value does not answer a put, an ack not a get, and neither a forwarded put."""
    wire.split("a", "bc")
    wire.put("a", KEY, b"x")
    (write,) = {m.ids[0] for _, _, m in wire.sent if isinstance(m, ReplicaWrite)}
    wire.get("a", KEY)
    (read,) = {m.id for _, _, m in wire.sent if isinstance(m, ReplicaRead)}
    done = Stored({}, (), 1, "b")
    wire.inject(
        "b", "a", ReplicaValue(write, None), ReplicaWrote([read]), Forwarded(write, done), Forwarded(read, done)
    )
    assert wire.nodes["a"].status().requests == 2


def test_a_clock_too_far_ahead_is_refused_by_the_replicas(wire):
    """Where the last writer wins, writes of a node whose clock is off by more than the skew allowed are not taken: they would
    outdo every later one. The outcome is unknown, its copy stays."""
    wire.set_bucket("a", "0", reconcile="lww")
    wire.skew_ms["a"] = 500
    assert isinstance(wire.put("a", b"other", b"x"), Stored)
    wire.skew_ms["a"] = 501
    failure = wire.put("a", KEY, b"x")
    assert failure.unknown
    assert "501 ms ahead of ours, 500 ms are allowed" in failure.text
    assert wire.sealed("b", KEY) is None
    assert wire.nodes["b"].status().counters["writes_refused"] >= 1
    assert isinstance(wire.put("b", KEY, b"y"), Stored)


def test_elsewhere_a_wrong_clock_stops_no_write(wire):
    """Dots need order only for each actor: the write is taken, and the replica's own clock does not follow."""
    wire.skew_ms["a"] = 3_600_000
    stored = wire.put("a", KEY, b"x")
    assert isinstance(stored, Stored)
    assert wire.values("b", KEY) == [b"x"]
    assert wire.nodes["b"].local.clock.last < reading(wire.wall_ms + 500)
    assert isinstance(wire.put("b", KEY, b"y", context=stored.clock), Stored)
    assert wire.values("a", KEY) == [b"y"]


def test_one_replica_that_refuses_does_not_fail_the_put(wire):
    """W others are enough."""
    wire.set_bucket("a", "0", reconcile="lww")
    wire.skew_ms["c"] = -10_000
    assert isinstance(wire.put("a", KEY, b"x"), Stored)
    assert wire.sealed("c", KEY) is None


@pytest.mark.parametrize(
    ("fields", "code", "text"),
    [
        ({"w": 4}, Code.INVALID, "W=4 must lie between 1 and n=3"),
        ({"w": -1}, Code.INVALID, "W=-1 must lie between 1 and n=3"),
        (
            {"value": b"x" * 11},
            Code.TOOBIG,
            "value of 11 bytes exceeds the limit of 10 bytes (bucket property value_bytes_max)",
        ),
        ({"key": b"k" * 9}, Code.TOOBIG, "key of 9 bytes exceeds the limit of 8 bytes (bucket property key_bytes_max)"),
        ({"bucket": "ü" * 128}, Code.INVALID, "the name of a bucket has at most 255 bytes"),
    ],
)
def test_puts_that_make_no_sense_are_rejected(wire, fields, code, text):
    """Each row: refused with this code and text, and nothing is stored."""
    wire.set_bucket("a", "0", value_bytes_max=10, key_bytes_max=8)
    fields = {"key": KEY, "value": b"x", **fields}
    assert wire.put("a", **fields) == Failure(code, text, False)
    assert not wire.stores["a"].scan(0, limit=1)


def test_limits_are_inclusive(wire):
    """A value and a key of exactly the limit pass; a tombstone has no length."""
    wire.set_bucket("a", "0", value_bytes_max=10, key_bytes_max=6)
    assert isinstance(wire.put("a", KEY, b"x" * 10), Stored)
    assert isinstance(wire.put("a", KEY, None), Stored)


@pytest.mark.parametrize("expires_at_ms", [-1, 1 << 63, 1 << 64, 1 << 200])
def test_an_expiry_that_no_record_can_hold_is_rejected(wire, expires_at_ms):
    """It stops no node."""
    failure = wire.put("a", KEY, b"x", expires_at_ms=expires_at_ms)
    assert failure == Failure(Code.INVALID, "the time of expiry is out of range", False)


def test_a_request_id_has_a_limit(wire):
    """It is kept with its version, and remembered."""
    assert isinstance(wire.put("a", KEY, b"x", request_id=b"q" * 128), Stored)
    failure = wire.put("a", KEY, b"y", request_id=b"q" * 129)
    assert failure == Failure(Code.TOOBIG, "a request id has at most 128 bytes", False)


@pytest.mark.parametrize("kind", ["get", "explain"])
def test_gets_that_make_no_sense_are_rejected(wire, kind):
    """The same limits hold for reads."""

    def ask(key=KEY, bucket="0", **fields):
        if kind == "get":
            return wire.get("a", key, bucket=bucket, **fields)
        return wire.ask("a", ClientExplain(0, bucket, key))

    assert ask(key=b"k" * 65537).code is Code.TOOBIG
    assert ask(bucket="b" * 256).code is Code.INVALID
    if kind == "get":
        assert ask(r=4) == Failure(Code.INVALID, "R=4 must lie between 1 and n=3")
        assert ask(r=-1).code is Code.INVALID


def test_too_much_under_way_is_busy(wire):
    """Requests over the limit are rejected at once, clients' and forwarded ones; those under way are not harmed."""
    wire = Wire(["a", "b", "c", "d"], requests_max=3)
    (first, _, _), (outsider,) = owners_of(wire)
    wire.held = set("abcd")
    clients = []
    for i in range(3):
        assert wire.put(first, b"k%d" % i, b"x", bucket=bucket_owned_by(wire, first, b"k%d" % i)) is None
        clients.append(wire.client)
    assert wire.put(first, KEY, b"x") == Failure(Code.BUSY, "3 requests are under way here; try again later")
    assert wire.get(first, KEY).code is Code.BUSY
    assert wire.ask(first, ClientExplain(0, "0", KEY)).code is Code.BUSY
    wire.sent.clear()
    wire.inject(outsider, first, Forward(9, PutRequest("0", KEY, b"x")))
    assert [m.result.code for _, _, m in wire.sent if isinstance(m, Forwarded)] == [Code.BUSY]
    assert wire.nodes[first].status().counters["busy"] == 4
    assert wire.nodes[first].status().requests == 3
    for name in "abcd":
        wire.release(name)
    assert all(isinstance(wire.replies[client], Stored) for client in clients)
    assert isinstance(wire.put(first, KEY, b"x"), Stored)


def bucket_owned_by(wire: Wire, name: str, key: bytes) -> str:
    """A bucket in which this node owns the key."""
    local = wire.nodes[name].local
    return next(str(i) for i in range(100) if name in local.owners(record_key(str(i), key), 3))


def test_gets_that_only_wait_for_stragglers_are_no_burden():
    """One hung replica keeps every get until its deadline; clients have their answers, so nobody is told BUSY."""
    wire = Wire(["a", "b", "c"], requests_max=3)
    wire.put("a", KEY, b"x")
    wire.cut = {("c", "a")}
    for _ in range(10):
        assert values_of(wire.get("a", KEY)) == [b"x"]
    assert wire.nodes["a"].status().requests == 0
    wire.advance(2.1)
    wire.nodes["a"].check()


# --- forwarding -------------------------------------------------------------------------------------------------------


def test_a_node_outside_the_preference_list_forwards_once(five):
    """To the first owner, which coordinates; the answer is relayed with the owner's name (section 4.5)."""
    (first, _, _), (outsider, _) = owners_of(five)
    stored = five.put(outsider, KEY, b"x")
    assert stored.coordinator == first
    assert sent(five, Forward) == [(outsider, first)]
    assert versions.newest(five.record(first, KEY)).actor.startswith(first + "/")
    assert five.sealed(outsider, KEY) is None
    assert five.nodes[outsider].status().counters["puts_forwarded"] == 1


@pytest.mark.parametrize(
    ("hint", "away", "expected"),
    [(2, (), 2), (1, (), 1), (None, (0,), 1), (2, (2,), 0), (1, (0, 1), 2), ("outsider", (), 0)],
)
def test_whom_a_put_is_forwarded_to(five, hint, away, expected):
    """Each row: with this owner as the context's coordinator, and these unreachable to the forwarder, this owner gets it."""
    owners, (outsider, other) = owners_of(five)
    for i in away:
        five.handle(outsider, PeerDown(owners[i], "reset"))
    coordinator = "" if hint is None else other if hint == "outsider" else owners[hint]
    assert five.put(outsider, KEY, b"x", coordinator=coordinator).coordinator == owners[expected]


def test_a_forwarder_need_not_reach_w_owners_itself(five):
    """One owner that does is enough: a client that reaches a node that reaches a coordinator can write."""
    owners, (outsider, _) = owners_of(five)
    for owner in owners[1:]:
        five.handle(outsider, PeerDown(owner, "reset"))
    assert isinstance(five.put(outsider, KEY, b"x"), Stored)


def test_too_few_nodes_in_reach_is_a_rejection(five):
    """Nothing was sent, so it is certain."""
    owners, (outsider, other) = owners_of(five)
    for name in [*owners, other]:
        five.handle(outsider, PeerDown(name, "reset"))
    five.sent.clear()
    failure = five.put(outsider, KEY, b"x")
    reasons = "; ".join(f"{owner}: reset" for owner in sorted(owners))
    assert failure == Failure(Code.NOQUORUM, f"need W=2, got 1 ({reasons})", False)
    assert not five.sent
    assert not five.nodes[outsider].local.hints.totals


def test_a_forwarded_put_delivered_twice_is_stamped_once(five):
    """The second delivery is a retry of the first: one dot, one answer."""
    (first, _, _), (outsider, _) = owners_of(five)
    five.repeat = True
    assert isinstance(five.put(outsider, KEY, b"x", context={}), Stored)
    assert len(five.record(first, KEY).versions) == 1
    assert five.nodes[first].status().counters["puts_repeated"] == 1


def test_forwards_of_different_nodes_are_never_taken_for_one_another(five):
    """Even if two forwarders count their requests alike, as after starts with equal boot numbers: both writes stay."""
    owners, outsiders = owners_of(five)
    for name in outsiders:
        five.crash(name)
        five.restart(name, boot=77)
    for i, name in enumerate(outsiders):
        assert isinstance(five.put(name, KEY, b"value %d" % i, context={}), Stored)
    assert five.values(owners[0], KEY) == [b"value 0", b"value 1"]


def test_the_clients_own_request_id_is_forwarded(five):
    """So that a retry through yet another node is recognised."""
    (first, _, _), (outsider, other) = owners_of(five)
    one = five.put(outsider, KEY, b"x", context={}, request_id=b"q")
    assert five.put(other, KEY, b"x", context={}, request_id=b"q") == one
    assert [v.request_id for v in five.record(first, KEY).versions] == [b"q"]


def test_a_forwarded_put_whose_owner_is_lost_goes_to_the_next(five):
    """The first may have stamped it; by its request id the two are one."""
    (first, second, _), (outsider, _) = owners_of(five)
    five.cut = {(first, outsider)}
    assert five.put(outsider, KEY, b"x") is None
    five.handle(outsider, PeerDown(first, "reset"))
    assert five.replies[five.client].coordinator == second
    five.heal()
    assert values_of(five.get(second, KEY)) == [b"x"]


def test_a_forwarded_put_whose_owner_is_found_silent_is_tried_elsewhere(five):
    """The first that stores it answers; what the other says then is ignored. Being late is not enough: it will stamp it yet."""
    (first, second, _), (outsider, _) = owners_of(five)
    five.cut = {(outsider, first)}
    assert five.put(outsider, KEY, b"x") is None
    five.advance(0.05)
    five.advance(0.2)
    assert five.replies.get(five.client) is None
    five.get(outsider, KEY)  # a question that it does not answer either
    for _ in range(8):
        five.advance(0.05)
    client = max(five.replies)
    assert any(isinstance(r, Stored) and r.coordinator == second for r in five.replies.values()), client
    five.nodes[outsider].check()


def test_a_node_that_was_stopped_does_not_take_up_the_puts_that_waited_for_it(five):
    """Their clients were served elsewhere: stamped now they would be there twice."""
    (first, _, _), (outsider, _) = owners_of(five)
    five.advance(0.05)
    five.pass_time(3)
    five.inject(outsider, first, Forward(9, PutRequest("0", KEY, b"x")))
    (failure,) = [m.result for _, _, m in five.sent if isinstance(m, Forwarded)]
    assert (failure.code, failure.unknown) == (Code.NOQUORUM, False)
    assert five.sealed(first, KEY) is None
    five.advance(0.05)
    five.inject(outsider, first, Forward(10, PutRequest("0", KEY, b"x")))
    assert five.values(first, KEY) == [b"x"]


def test_a_forwarded_put_whose_owner_does_not_reach_the_others_is_tried_elsewhere(five):
    """The node asked reaches them: a write must not fail for the coordinator that it chose (seed 1003459: a bridge)."""
    (first, second, third), (outsider, other) = owners_of(five)
    five.set_bucket(first, "0", w=3)
    others = (second, third, other)
    five.cut = {pair for name in others for pair in ((first, name), (name, first))}
    assert five.put(outsider, KEY, b"x") is None
    for name in others:
        five.handle(first, PeerDown(name, "reset"))
    for _ in range(8):  # then a fallback stands in for the first
        five.advance(0.05)
    assert five.replies[five.client].coordinator == second
    five.heal()
    assert values_of(five.get(second, KEY)) == [b"x"]


def test_a_node_between_owners_that_do_not_reach_each_other_coordinates_itself(five):
    """When each of them has failed, it is the last that may reach enough (the planted bug's seed 6)."""
    owners, (outsider, other) = owners_of(five)
    five.set_bucket(outsider, "0", w=3)
    halves = [(a, b) for a in (*owners, other) for b in (*owners, other) if a != b]
    five.cut = set(halves)
    assert five.put(outsider, KEY, b"x") is None
    for a, b in halves:
        five.handle(a, PeerDown(b, "reset"))
    assert five.replies[five.client].coordinator == outsider
    five.heal()
    assert values_of(five.get(owners[0], KEY)) == [b"x"]


def test_a_forwarded_put_that_nobody_can_take_is_unknown(five):
    """All have been tried, and some may have stamped it."""
    owners, (outsider, other) = owners_of(five)
    five.cut = {(name, outsider) for name in [*owners, other]}
    assert five.put(outsider, KEY, b"x") is None
    for name in [*owners, other]:
        five.handle(outsider, PeerDown(name, "reset"))
    failure = five.replies[five.client]
    assert (failure.code, failure.unknown) == (Code.NOQUORUM, True)
    assert f"forwarded to {owners[0]}: reset" in failure.text


def test_only_the_owner_asked_answers_a_forwarded_put(five):
    """An answer under the same id from anyone else is ignored."""
    (first, second, _), (outsider, _) = owners_of(five)
    five.cut = {(first, outsider)}
    five.put(outsider, KEY, b"x")
    (forward,) = {m.id for _, _, m in five.sent if isinstance(m, Forward)}
    lie = Stored({}, (), 1, second)
    five.inject(second, outsider, Forwarded(forward, lie), ReplicaWrote([forward]), ReplicaValue(forward, None))
    assert five.replies.get(five.client) is None
    five.inject(first, outsider, Forwarded(forward, lie), Forwarded(forward, lie))
    assert five.replies[five.client] == lie


def test_a_forwarded_put_is_never_forwarded_again(five):
    """A node that is asked, but owns nothing of the key, coordinates as a fallback: its neighbour sees no owner, it may."""
    owners, (outsider, other) = owners_of(five)
    five.inject(other, outsider, Forward(9, PutRequest("0", KEY, b"x")))
    (forwarded,) = [m.result for _, _, m in five.sent if isinstance(m, Forwarded)]
    assert forwarded.coordinator == outsider
    assert not sent(five, Forward)
    for owner in owners:
        assert five.values(owner, KEY) == [b"x"]


def test_an_owners_refusal_of_a_forwarded_put_is_relayed_as_unknown(five):
    """The network may repeat a Forward, and the owner take the second: only a refusal of our own is certain."""
    (first, _, _), (outsider, _) = owners_of(five)
    five.set_bucket(first, "0", siblings_max=1)
    five.put(outsider, KEY, b"x")
    failure = five.put(outsider, KEY, b"y", context={})
    assert (failure.code, failure.unknown) == (Code.TOOMANYSIBLINGS, True)


def test_any_node_coordinates_a_get(five):
    """Also one that holds nothing of the key (section 6.4)."""
    (first, _, _), (outsider, _) = owners_of(five)
    five.put(first, KEY, b"x")
    found = five.get(outsider, KEY)
    assert values_of(found) == [b"x"]
    assert found.coordinator in owners_of(five)[0]


# --- retries ----------------------------------------------------------------------------------------------------------


def test_a_retry_at_the_same_coordinator_is_not_stamped_again(wire):
    """It gets the same answer, and leaves no sibling, also after the first try was superseded."""
    first = wire.put("a", KEY, b"x", context={}, request_id=b"q")
    assert wire.put("a", KEY, b"x", context={}, request_id=b"q") == first
    wire.put("a", KEY, b"y", **after(first))
    again = wire.put("a", KEY, b"x", context={}, request_id=b"q")
    assert isinstance(again, Stored)
    assert wire.values("b", KEY) == [b"y"]
    # And the context of that answer covers the retried write, but not the one that superseded it.
    wire.put("a", KEY, b"z", **after(again))
    assert wire.values("b", KEY) == [b"y", b"z"]


def test_a_retry_beside_a_sibling_gets_a_context_that_says_the_same(wire):
    """What its client had read, and the write itself; not the sibling."""
    old = after(wire.put("b", KEY, b"old"))
    wire.put("b", KEY, b"sibling", **old)
    first = wire.put("a", KEY, b"x", request_id=b"q", **old)
    again = wire.put("a", KEY, b"x", request_id=b"q", **old)
    ((actor, counter),) = again.dots
    assert again.clock == old["context"]
    assert (first.clock, first.dots) == ({**old["context"], actor: counter}, ())  # all that this actor wrote here
    assert (first.siblings, again.siblings) == (2, 2)


def test_a_retry_at_another_coordinator_is_recognised_by_its_version(wire):
    """Where the first try is known it is not stamped again, and stays so once superseded."""
    first = wire.put("a", KEY, b"x", context={}, request_id=b"q")
    assert wire.put("b", KEY, b"x", context={}, request_id=b"q").clock == first.clock
    wire.put("b", KEY, b"y", **after(first))
    assert isinstance(wire.put("b", KEY, b"x", context={}, request_id=b"q"), Stored)
    assert [wire.values(name, KEY) for name in "abc"] == [[b"y"]] * 3


def test_a_retry_where_the_first_try_is_unknown_shows_once(wire):
    """Both tries are stamped, a get shows one value, and its context ends both."""
    wire.split("a", "bc")
    wire.put("a", KEY, b"x", context={}, request_id=b"q")
    stored = wire.put("b", KEY, b"x", context={}, request_id=b"q")
    assert isinstance(stored, Stored)
    wire.heal()
    found = wire.get("c", KEY, r=3)
    assert len(found.record.versions) == 2
    assert values_of(found) == [b"x"]
    wire.put("c", KEY, b"y", **after(found))
    assert [wire.values(name, KEY) for name in "abc"] == [[b"y"]] * 3


def test_a_retry_that_brings_its_write_to_w(wire):
    """The first try reached too few; the retry replicates the same dot and is stored."""
    wire.split("a", "bc")
    wire.put("a", KEY, b"x", context={}, request_id=b"q")
    wire.advance(2.1)
    assert wire.replies[wire.client].unknown
    wire.heal()
    dot = wire.record("a", KEY).versions[0].dot
    assert isinstance(wire.put("a", KEY, b"x", context={}, request_id=b"q"), Stored)
    assert [[v.dot for v in wire.record(name, KEY).versions] for name in "abc"] == [[dot]] * 3


def test_a_retry_of_a_write_that_was_forgotten_is_stamped_anew(wire):
    """Its coordinator remembers the request, but lost the record: an ack for what is nowhere would be a lost write."""
    wire.split("a", "b", "c")
    wire.put("a", KEY, b"x", request_id=b"q", w=1)
    wire.heal()
    wire.damage("a", KEY)
    assert isinstance(wire.put("a", KEY, b"x", request_id=b"q"), Stored)
    assert [wire.values(name, KEY) for name in "abc"] == [[b"x"]] * 3


def test_a_request_id_with_another_value_is_refused(wire):
    """Taking it for a retry would acknowledge a write that is nowhere."""
    wire.put("a", KEY, b"x", context={}, request_id=b"q")
    failure = wire.put("b", KEY, b"y", context={}, request_id=b"q")
    assert failure == Failure(Code.INVALID, "this request id was used for another value of this key", False)
    assert isinstance(wire.put("b", b"other key", b"y", request_id=b"q"), Stored)


def test_the_memory_of_request_ids_is_bounded():
    """The oldest are forgotten first."""
    wire = Wire(["a"], request_ids_max=2)
    for i in range(3):
        wire.put("a", KEY, b"%d" % i, request_id=b"q%d" % i)
    wire.put("a", KEY, b"1", context={}, request_id=b"q1")
    assert wire.values("a", KEY) == [b"2"]
    wire.put("a", KEY, b"0", context={}, request_id=b"q0")  # forgotten, and superseded: a write like any other
    assert wire.values("a", KEY) == [b"0", b"2"]


# --- contexts and siblings --------------------------------------------------------------------------------------------


def test_two_puts_with_the_same_old_context_leave_two_siblings(wire):
    """Through different nodes, on all replicas; a put with the merged context leaves one (section 4.4)."""
    old = after(wire.put("a", KEY, b"milk"))
    wire.put("b", KEY, b"milk, eggs", **old)
    wire.put("c", KEY, b"milk, bread", **old)
    for name in "abc":
        assert wire.values(name, KEY) == [b"milk, bread", b"milk, eggs"]
    found = wire.get("a", KEY)
    assert values_of(found) == [b"milk, bread", b"milk, eggs"]
    wire.put("b", KEY, b"milk, eggs, bread", **after(found))
    for name in "abc":
        assert wire.values(name, KEY) == [b"milk, eggs, bread"]


@pytest.mark.parametrize("seed", range(3))
def test_a_hundred_writers_with_stale_contexts_through_one_node(wire, seed):
    """No write is lost, none returns, and there are never more siblings than writers: the trap of plain vector clocks."""
    dice = random.Random(seed)
    histories, known = Histories(), NOTHING
    contexts: list[tuple[frozenset[int], dict[str, Any]]] = [(NOTHING, {"context": {}})] * 100
    for _ in range(400):
        writer = dice.randrange(100)
        if dice.random() < 0.3:
            contexts[writer] = (known, after(wire.get("a", KEY)))
            continue
        seen, fields = contexts[writer]
        event = histories.write(seen)
        stored = wire.put("a", KEY, b"%d" % event, **fields)
        assert isinstance(stored, Stored), stored
        known |= {event}
        contexts[writer] = (seen | {event}, after(stored))
        live = histories.live(known)
        assert {int(v) for v in wire.values("a", KEY)} == live
        assert len(live) == stored.siblings <= 100
    assert wire.sealed("a", KEY) == wire.sealed("b", KEY) == wire.sealed("c", KEY)


def test_a_put_without_context_supersedes_what_its_coordinator_holds(wire):
    """A plain Redis SET; what it did not hold stays as a sibling."""
    wire.split("a", "b", "c")
    wire.put("a", KEY, b"old", w=1)
    wire.put("b", KEY, b"elsewhere", w=1)
    wire.put("a", KEY, b"new", w=1)
    wire.heal()
    wire.get("a", KEY, r=3)
    assert [wire.values(name, KEY) for name in "abc"] == [[b"elsewhere", b"new"]] * 3


def test_a_delete_removes_what_its_context_covers(wire):
    """And only that: a concurrent value stays."""
    old = after(wire.put("a", KEY, b"x"))
    wire.put("b", KEY, b"concurrent", context={})
    wire.put("c", KEY, None, **old)
    assert values_of(wire.get("a", KEY)) == [b"concurrent"]
    wire.put("a", KEY, None)
    assert values_of(wire.get("b", KEY)) == []


def test_the_context_after_a_put_needs_no_read(wire):
    """A client that writes again and again through any node with the context of its last put leaves one version, and touches
    no sibling that it has not seen."""
    wire.put("b", KEY, b"unseen", context={})
    fields: dict[str, Any] = {"context": {}}
    for i in range(6):
        stored = wire.put("abc"[i % 3], KEY, b"mine %d" % i, **fields)
        assert stored.siblings == 2
        fields = after(stored)
    assert wire.values("a", KEY) == [b"mine 5", b"unseen"]
    assert sent(wire, ReplicaRead) == []


def unknown_at_c(wire: Wire) -> Stored:
    """Two writes through a, of which c hears nothing; the second client has not seen the first's."""
    wire.cut = {("a", "c"), ("b", "c")}
    wire.put("a", KEY, b"unseen", context={})
    stored = wire.put("a", KEY, b"one", context={})
    wire.heal()
    assert isinstance(stored, Stored)
    assert stored.dots
    return stored


def test_a_put_notes_a_write_that_its_coordinator_has_not_heard_of(wire):
    """Without asking anyone. When that write comes it is superseded already, and the one beside it stays."""
    stored = unknown_at_c(wire)
    wire.split("ab", "c")
    second = wire.put("c", KEY, b"two", w=1, **after(stored))
    assert isinstance(second, Stored)
    assert sent(wire, ReplicaRead) == []
    assert wire.record("c", KEY).cloud == second.dots == stored.dots
    wire.heal()
    assert values_of(wire.get("b", KEY, r=3)) == [b"two", b"unseen"]
    for name in "abc":
        assert wire.values(name, KEY) == [b"two", b"unseen"]
        assert wire.record(name, KEY).cloud == ()  # the clocks of the others cover it


def test_the_context_of_a_get_covers_what_was_noted(wire):
    """Its client has seen a write that superseded it, so its next put supersedes it, too, wherever it is done."""
    stored = unknown_at_c(wire)
    wire.split("a", "b", "c")
    wire.put("c", KEY, b"two", w=1, **after(stored))
    found = wire.get("c", KEY, r=1)
    wire.put("b", KEY, b"three", w=1, **after(found))
    assert wire.values("b", KEY) == [b"three", b"unseen"]


def test_a_write_noted_after_its_disk_is_gone_never_returns(wire):
    """It may turn up from an old copy: by then everybody knows that it was superseded."""
    wire.cut = {("a", "b"), ("a", "c")}
    wire.put("b", KEY, b"unseen", context={})
    first = wire.put("a", KEY, b"first", context={}, w=1)
    wire.heal()
    wire.stop("a")
    second = wire.put("b", KEY, b"second", context={}, dots=(versions.newest(wire.record("a", KEY)).dot,))
    assert isinstance(second, Stored)
    wire.restart("a")
    assert values_of(wire.get("a", KEY, r=3)) == [b"second", b"unseen"]
    wire.put("a", KEY, b"third", **after(second))
    assert [wire.values(name, KEY) for name in "abc"] == [[b"third", b"unseen"]] * 3
    assert isinstance(first, Stored)


@pytest.mark.parametrize("how", ["put", "repair"])
def test_a_note_reminds_a_node_of_what_it_forgot(wire, how):
    """A dot of its own in another record's cloud, which its record lacks: it may have forgotten more, so a new stint begins."""
    wire.stop("a")
    backup = wire.copy_disk("a")
    wire.restart("a")
    wire.split("a", "bc")
    wire.put("a", KEY, b"unseen", context={}, w=1)
    stored = wire.put("a", KEY, b"forgotten", context={}, w=1)
    wire.stop("a")
    wire.restart("a", disk=backup)
    wire.put("b", KEY, b"noted", **after(stored))
    assert wire.record("b", KEY).cloud == stored.dots
    wire.heal()
    if how == "put":
        wire.put("b", KEY, b"more")
    else:
        wire.get("b", KEY, r=3)
    assert wire.nodes["a"].local.actor == "a/s1+1"
    assert wire.record("a", KEY) == wire.record("b", KEY)
    assert isinstance(wire.put("a", KEY, b"new"), Stored)
    assert wire.record("a", KEY).cloud == stored.dots


def test_too_many_siblings_are_refused_and_merged_all_the_same(wire):
    """The limit holds for a client's write that would leave more; not for a merge, nor for a write that ends some."""
    wire.set_bucket("a", "0", siblings_max=3, siblings_warn=2)
    wire.split("a", "bc")
    for i in range(3):
        assert isinstance(wire.put("a", KEY, b"a%d" % i, context={}, w=1), Stored)
        assert isinstance(wire.put("b", KEY, b"b%d" % i, context={}, w=1), Stored)
    failure = wire.put("a", KEY, b"a3", context={}, w=1)
    text = "the key has 3 siblings, the limit (bucket property siblings_max): read them and write with the context"
    assert failure == Failure(Code.TOOMANYSIBLINGS, text, False)
    assert wire.values("a", KEY) == [b"a0", b"a1", b"a2"]
    assert wire.nodes["a"].status().counters["siblings_over_warning"] == 1
    wire.heal()
    found = wire.get("c", KEY, r=3)
    assert len(values_of(found)) == 6
    assert len(wire.values("a", KEY)) == 6
    one = {"context": {}, "dots": (found.record.versions[0].dot,)}
    assert wire.put("a", KEY, b"no fewer", **one).siblings == 6
    assert wire.put("a", KEY, b"one", **after(found)).siblings == 2


# --- read repair ------------------------------------------------------------------------------------------------------


def missed_by(wire: Wire, stale: str, **fields: Any) -> Stored:
    """A put that this node does not get."""
    via = next(name for name in "abc" if name not in stale)
    wire.cut = {(via, name) for name in stale}
    stored = wire.put(via, KEY, w=1, **fields)
    wire.heal()
    assert isinstance(stored, Stored)
    return stored


@pytest.mark.parametrize("stale", ["a", "b", "bc", "c", "ab"])
@pytest.mark.parametrize("via", "abc")
def test_a_get_repairs_stale_replicas(wire, stale, via):
    """Whoever answered with less gets the merged record, also the coordinator itself (section 5)."""
    wire.put("a", KEY, b"old")
    missed_by(wire, stale, value=b"new")
    wire.get(via, KEY, r=3)
    assert [wire.values(name, KEY) for name in "abc"] == [[b"new"]] * 3
    assert wire.nodes[via].status().counters["read_repairs"] == len(stale)
    wire.sent.clear()
    assert values_of(wire.get(via, KEY, r=3)) == [b"new"]
    assert not sent(wire, ReplicaRepair)


def test_a_repair_joins_siblings(wire):
    """Replicas that each lack what the other has all come to hold both."""
    wire.split("a", "b", "c")
    wire.put("a", KEY, b"1", context={}, w=1)
    wire.put("b", KEY, b"2", context={}, w=1)
    wire.heal()
    assert values_of(wire.get("c", KEY, r=3)) == [b"1", b"2"]
    assert wire.sealed("a", KEY) == wire.sealed("b", KEY) == wire.sealed("c", KEY)


@pytest.mark.parametrize("via", "abc")
def test_a_repair_never_undoes_a_delete(wire, via):
    """The stale replica's old value does not come back; it gets the tombstone."""
    wire.put("a", KEY, b"x")
    missed_by(wire, "b", value=None)
    assert values_of(wire.get(via, KEY, r=3)) == []
    assert [wire.values(name, KEY) for name in "abc"] == [[None]] * 3


def test_the_reply_does_not_wait_for_stragglers_but_the_repair_does(wire):
    """The get is answered at R; the last replica is repaired when its answer comes."""
    wire.put("a", KEY, b"old")
    missed_by(wire, "c", value=b"new")
    wire.held = {"c"}
    wire.inject("a", "c", ReplicaRepair(record_key("0", b"x"), seal(record_key("0", b"x"), versions.encode(EMPTY))))
    key = record_key("0", KEY)
    wire.stores["c"].stage(0, key, wire.sealed("c", KEY), Durability.OS)  # so that its answer waits for its group
    assert values_of(wire.get("a", KEY)) == [b"new"]
    assert wire.values("c", KEY) == [b"old"]
    wire.release("c")
    assert wire.values("c", KEY) == [b"new"]


def test_at_the_deadline_those_who_answered_are_repaired(wire):
    """A replica that never answers does not keep the others stale."""
    wire.put("a", KEY, b"old")
    missed_by(wire, "b", value=b"new")
    wire.cut = {("c", "a")}
    assert values_of(wire.get("a", KEY)) == [b"new"]
    assert wire.values("b", KEY) == [b"old"]
    wire.advance(2.1)
    assert wire.values("b", KEY) == [b"new"]


def test_a_replica_lost_after_the_reply_ends_the_wait(wire):
    """And the others are repaired then."""
    wire.put("a", KEY, b"old")
    missed_by(wire, "b", value=b"new")
    wire.cut = {("c", "a")}
    wire.get("a", KEY)
    wire.handle("a", PeerDown("c", "reset"))
    assert wire.values("b", KEY) == [b"new"]


def test_a_repair_that_is_damaged_is_refused(wire):
    """A flipped bit on the way is found, and nothing changes."""
    wire.put("a", KEY, b"x")
    sealed = wire.sealed("a", KEY)
    wire.inject("b", "a", ReplicaRepair(record_key("0", KEY), sealed[:-1] + b"?"))
    assert wire.sealed("a", KEY) == sealed
    assert wire.nodes["a"].status().counters["repairs_refused"] == 1


def test_a_key_that_nobody_knows_is_the_empty_record(wire):
    """Not an error; nothing is repaired."""
    assert wire.get("a", KEY, r=3) == Found(EMPTY, "a")
    assert not sent(wire, ReplicaRepair)


def test_a_second_answer_of_a_replica_does_not_count(wire):
    """Neither to R, nor into the result."""
    wire.put("a", KEY, b"x")
    wire.cut = {("c", "a"), ("a", "c")}
    wire.repeat = True
    assert wire.get("a", KEY, r=3) is None
    (read,) = {m.id for _, _, m in wire.sent if isinstance(m, ReplicaRead)}
    at = record_key("0", KEY)
    other = seal(at, versions.encode(versions.put(EMPTY, {}, ("b/x", 1), b"other")))
    wire.inject("b", "a", ReplicaValue(read, other))
    assert wire.replies.get(wire.client) is None
    third = seal(at, versions.encode(versions.put(EMPTY, {}, ("c/x", 1), b"third")))
    wire.inject("c", "a", ReplicaValue(read, third))
    assert values_of(wire.replies[wire.client]) == [b"third", b"x"]


def test_an_answer_after_its_nodes_failure_does_not_count(wire):
    """A node counts once, as it was counted first; the others are waited for."""
    wire.put("a", KEY, b"x")
    wire.cut = {("b", "a"), ("c", "a")}
    wire.get("a", KEY)
    (read,) = {m.id for _, _, m in wire.sent if isinstance(m, ReplicaRead)}
    wire.handle("a", PeerDown("b", "reset"))
    wire.inject("b", "a", ReplicaValue(read, wire.sealed("b", KEY)))
    assert wire.replies.get(wire.client) is None
    wire.inject("c", "a", ReplicaValue(read, wire.sealed("c", KEY)))
    assert values_of(wire.replies[wire.client]) == [b"x"]


def test_a_value_of_a_node_that_was_not_asked_does_not_count(five):
    """Nor does it stop the node."""
    (first, second, third), (stranger, _) = owners_of(five)
    five.split(first, second + third)
    assert five.get(first, KEY) is None
    (read,) = {m.id for _, _, m in five.sent if isinstance(m, ReplicaRead)}
    five.inject(stranger, first, ReplicaValue(read, None), ReplicaRefused(read, "no"))
    assert five.replies.get(five.client) is None


# --- staged values ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("reader", ["a", "b"])
def test_a_staged_value_is_shown_only_once_it_is_durable(wire, reader):
    """A crash could take it back: neither the coordinator's own copy nor a replica's answer goes out before its commit."""
    wire.set_bucket("a", "0", r=1)
    wire.held = {"a"}
    wire.put("a", KEY, b"x", w=1)
    wire.cut = {("b", "c"), ("c", "b")}
    if reader == "a":
        wire.cut = {("a", "b"), ("a", "c")}
        assert wire.get("a", KEY) is None
    else:
        assert wire.get("b", KEY, r=3) is None
    get = wire.client
    wire.heal()
    wire.release("a")
    if reader == "b":
        wire.advance(2.1)
        assert wire.replies[get].text == "need R=3, got 2 (c: no answer in time)"
    else:
        assert values_of(wire.replies[get]) == [b"x"]


def test_a_failure_shows_nothing_and_so_waits_for_nothing(wire):
    """A failed get is answered at once, though its own answer was of a staged value."""
    wire.held = {"a"}
    wire.put("a", KEY, b"x")
    wire.crash("b")
    wire.crash("c")
    assert wire.get("a", KEY).code is Code.NOQUORUM


def test_a_repair_with_a_staged_value_waits_for_its_commit(wire):
    """What is sent on is as durable here as any answer."""
    wire.held = {"a"}
    wire.lose = lambda src, dst, message: isinstance(message, ReplicaWrite)
    wire.put("a", KEY, b"x", w=1)
    wire.sent.clear()
    wire.get("a", KEY)
    assert not sent(wire, ReplicaRepair)
    wire.release("a")
    assert sent(wire, ReplicaRepair) == [("a", "b"), ("a", "c")]


# --- last writer wins -------------------------------------------------------------------------------------------------


def test_in_an_lww_bucket_the_newest_write_stays_alone(wire):
    """Whatever the contexts, and on all replicas after a split."""
    wire.set_bucket("a", "l", reconcile="lww")
    wire.put("a", KEY, b"1", context={}, bucket="l")
    wire.put("b", KEY, b"2", context={}, bucket="l")
    assert [wire.values(name, KEY, "l") for name in "abc"] == [[b"2"]] * 3
    wire.split("a", "b", "c")
    wire.put("a", KEY, b"3", bucket="l", w=1)
    wire.wall_ms += 1
    wire.put("b", KEY, b"4", bucket="l", w=1)
    wire.heal()
    assert values_of(wire.get("c", KEY, bucket="l", r=3)) == [b"4"]
    assert [wire.values(name, KEY, "l") for name in "abc"] == [[b"4"]] * 3


@pytest.mark.parametrize("knows", [True, False])
def test_a_later_write_wins_though_its_nodes_clock_is_behind(wire, knows):
    """What a client has read, or its coordinator holds, is older than the client's next write, whatever the clocks show."""
    wire.set_bucket("a", "l", reconcile="lww", r=3)
    wire.skew_ms["b"] = 400
    if not knows:
        wire.cut = {("b", "a")}
    wire.put("b", KEY, b"1", bucket="l", w=1)
    wire.heal()
    context = {} if knows else {"context": wire.record("b", KEY, "l").clock}
    wire.put("a", KEY, b"2", bucket="l", **context)
    wire.get("c", KEY, bucket="l")
    assert [wire.values(name, KEY, "l") for name in "abc"] == [[b"2"]] * 3


@pytest.mark.parametrize("kind", ["context", "dots"])
def test_a_write_reads_later_than_what_its_client_had_seen(wire, kind):
    """Whatever the clocks show: hybrid clocks respect causality, in every bucket."""
    wire.skew_ms["b"] = 400
    wire.cut = {("b", "a")}
    wire.put("b", KEY, b"1", w=1)
    wire.heal()
    ((actor, counter),) = wire.record("b", KEY).clock.items()
    seen = (
        {"context": {actor: counter}} if kind == "context" else {"context": {}, "dots": (("x/1", 1), (actor, counter))}
    )
    wire.put("a", KEY, b"2", **seen)
    assert max(c for a, c in wire.record("a", KEY).clock.items() if a != actor) > counter


def test_a_write_from_a_broken_clock_does_not_drag_others_along(wire):
    """In an lww bucket its key cannot be overwritten before its time, which is said; all other keys can."""
    wire.set_bucket("a", "l", reconcile="lww", r=3)
    wire.skew_ms["b"] = 3_600_000
    wire.put("b", KEY, b"1", bucket="l", w=1)  # refused by the others, but they learn of it when it is read
    assert values_of(wire.get("a", KEY, bucket="l")) == [b"1"]
    failure = wire.put("a", KEY, b"2", bucket="l")
    assert (failure.code, failure.unknown) == (Code.NOQUORUM, False)
    assert "stamped by a clock 3600000 ms ahead of ours" in failure.text
    assert isinstance(wire.put("a", b"other", b"x", bucket="l"), Stored)
    assert wire.values("c", b"other", "l") == [b"x"]
    wire.wall_ms += 3_600_000
    wire.skew_ms["b"] = 0
    assert isinstance(wire.put("a", KEY, b"2", bucket="l"), Stored)
    assert [wire.values(name, KEY, "l") for name in "abc"] == [[b"2"]] * 3


def test_a_write_from_a_broken_clock_is_superseded_where_siblings_are_kept(wire):
    """There readings decide nothing, so nothing is refused."""
    wire.skew_ms["b"] = 3_600_000
    wire.put("b", KEY, b"1", w=1)
    wire.put("a", KEY, b"2", **after(wire.get("a", KEY, r=3)))
    assert [wire.values(name, KEY) for name in "abc"] == [[b"2"]] * 3
    assert wire.nodes["a"].status().counters["contexts_ahead"] == 1


# --- n, r, w and members ----------------------------------------------------------------------------------------------


def test_primaries_wanted(wire):
    """``pr`` and ``pw`` demand so many of the first n, and raise r and w to it."""
    wire.set_bucket("a", "p", pr=3, pw=3)
    wire.held = {"c"}
    assert wire.put("a", KEY, b"x", bucket="p") is None
    wire.release("c")
    assert isinstance(wire.replies[wire.client], Stored)
    assert values_of(wire.get("a", KEY, bucket="p")) == [b"x"]
    wire.crash("c")
    assert wire.put("a", KEY, b"y", bucket="p").text == "need W=3, got 2 (c: connection lost)"
    assert "(c: connection lost)" in wire.get("a", KEY, bucket="p").text


def test_a_lone_node_answers_for_itself():
    """In a cluster of one, n, r and w mean one; its status says so."""
    wire = Wire(["a"])
    assert isinstance(wire.put("a", KEY, b"x"), Stored)
    assert isinstance(wire.put("a", KEY, b"x", w=3), Stored)
    assert values_of(wire.get("a", KEY)) == [b"x"]
    assert values_of(wire.get("a", KEY, r=3)) == [b"x"]
    (note,) = wire.nodes["a"].status().notes
    assert note == "the cluster has 1 node: a bucket's n above that means 1, its r and w at most 1"


def test_two_nodes_have_a_majority_of_two():
    """With one of them lost only W = 1 can be met."""
    wire = Wire(["a", "b"])
    assert isinstance(wire.put("a", KEY, b"x"), Stored)
    wire.crash("b")
    assert wire.put("a", KEY, b"y").text == "need W=2, got 1 (b: connection lost)"
    assert isinstance(wire.put("a", KEY, b"y", w=1), Stored)
    assert values_of(wire.get("a", KEY, r=1)) == [b"y"]
    (note,) = wire.nodes["a"].status().notes
    assert note.startswith("the cluster has 2 nodes")


def test_three_nodes_have_nothing_to_note(wire):
    """The defaults mean what they say."""
    assert wire.nodes["a"].status().notes == []


def test_a_node_not_connected_yet_is_named(wire):
    """Just started, a node reaches nobody."""
    wire.crash("a")
    wire.boot("a", 9)
    assert wire.put("a", KEY, b"x").text == "need W=2, got 1 (b: not connected yet; c: not connected yet)"


# --- explain ----------------------------------------------------------------------------------------------------------


def test_explain_tells_what_each_owner_holds(five):
    """Placement, quorum, and the record of every owner, or why it gave none; it waits for all of them."""
    owners, (outsider, _) = owners_of(five)
    five.put(owners[0], KEY, b"x")
    five.damage(owners[2], KEY)
    five.crash(owners[1])
    explained = five.ask(outsider, ClientExplain(0, "0", KEY))
    assert isinstance(explained, Explained)
    assert explained.position == record_key("0", KEY)[:16]
    ring = five.nodes[outsider].local.ring
    assert explained.partition == ring.partition_of(explained.position)
    assert explained.preference == list(ring.preference(explained.partition))
    assert explained.preference[:3] == owners
    assert (explained.n, explained.r, explained.w) == (3, 2, 2)
    assert list(explained.replicas) == owners
    assert explained.replicas[owners[0]] == five.record(owners[0], KEY) == explained.merged
    assert explained.replicas[owners[1]] == "connection lost"
    assert explained.replicas[owners[2]] == "its copy fails the checksum"
    assert explained.coordinator == outsider


def test_explain_waits_for_the_last_owner(wire):
    """Not for R of them; at the deadline the reason is told."""
    wire.put("a", KEY, b"x")
    wire.cut = {("c", "a")}
    assert wire.ask("a", ClientExplain(0, "0", KEY)) is None
    wire.advance(2.1)
    explained = wire.replies[wire.client]
    assert explained.replicas["c"] == "no answer in time"
    assert explained.replicas["a"] == explained.replicas["b"] == wire.record("a", KEY)


def test_explain_of_a_key_that_nobody_knows(wire):
    """Every owner holds the empty record."""
    assert wire.ask("a", ClientExplain(0, "0", KEY)).replicas == {"a": EMPTY, "b": EMPTY, "c": EMPTY} | {}


# --- forgetting -------------------------------------------------------------------------------------------------------


def test_a_corrupt_record_is_never_served_and_is_repaired(wire):
    """A replica with a damaged copy refuses the read, goes on as a new stint, and gets the record back from the others."""
    wire.put("a", KEY, b"x")
    wire.damage("b", KEY)
    stint = wire.nodes["b"].local.stint
    assert values_of(wire.get("a", KEY)) == [b"x"]
    assert wire.nodes["b"].local.stint == stint + "+1"
    assert wire.nodes["b"].status().counters["corrupt_records"] == 1
    assert wire.sealed("b", KEY) == wire.sealed("a", KEY)
    wire.damage("a", KEY)  # the coordinator's own
    assert values_of(wire.get("a", KEY)) == [b"x"]
    assert wire.sealed("a", KEY) == wire.sealed("c", KEY)


def test_a_record_corrupt_everywhere_is_not_served(wire):
    """The reason is told, and the copies are left for whoever can mend them."""
    wire.put("a", KEY, b"x")
    for name in "abc":
        wire.damage(name, KEY)
    damaged = wire.sealed("b", KEY)
    for _ in range(3):
        failure = wire.get("a", KEY)
        assert failure.code is Code.NOQUORUM
        assert failure.text.count("its copy fails the checksum") >= 2
    assert wire.sealed("b", KEY) == damaged
    assert wire.nodes["b"].status().counters["stints_corrupt"] == 1  # one new stint, not one for each read


def test_a_record_damaged_on_the_way_is_not_served(wire):
    """An answer that fails its checksum counts as a failure of its node; it has verified its copy, so that needs no repair."""
    wire.put("a", KEY, b"x")
    wire.cut = {("b", "a"), ("c", "a")}
    wire.get("a", KEY)
    (read,) = {m.id for _, _, m in wire.sent if isinstance(m, ReplicaRead)}
    sealed = wire.sealed("b", KEY)
    wire.inject("b", "a", ReplicaValue(read, sealed[:-1] + b"?"))
    assert wire.replies.get(wire.client) is None
    wire.inject("c", "a", ReplicaValue(read, sealed))
    assert values_of(wire.replies[wire.client]) == [b"x"]
    assert wire.nodes["a"].status().counters["corrupt_answers"] == 1
    assert not wire.nodes["a"]._coordinator._requests.by_id
    wire.get("a", KEY)
    read = max(m.id for _, _, m in wire.sent if isinstance(m, ReplicaRead))
    wire.inject("b", "a", ReplicaValue(read, sealed[:-1] + b"?"))
    wire.inject("c", "a", ReplicaValue(read, sealed[:-1] + b"?"))
    text = "need R=2, got 1 (b: its answer fails the checksum; c: its answer fails the checksum)"
    assert wire.replies[wire.client] == Failure(Code.NOQUORUM, text)


def test_a_put_over_a_corrupt_record_uses_a_new_stint(wire):
    """The coordinator may have forgotten dots of its own: the new one must not seem to cover them."""
    forgotten = wire.put("a", KEY, b"old")
    wire.damage("a", KEY)
    wire.put("a", KEY, b"new", context={})
    assert versions.newest(wire.record("a", KEY)).actor == "a/s1+1"
    wire.get("a", KEY, r=3)
    assert [wire.values(name, KEY) for name in "abc"] == [[b"new", b"old"]] * 3
    wire.put("a", KEY, b"newer", **after(forgotten))
    assert [wire.values(name, KEY) for name in "abc"] == [[b"new", b"newer"]] * 3


def test_a_corrupt_record_that_was_rewritten_and_damaged_again_is_another_loss(wire):
    """Each time it may have held dots of the stint then current."""
    for i in range(3):
        wire.put("a", KEY, b"%d" % i)
        wire.damage("a", KEY)
    wire.get("a", KEY)
    assert wire.nodes["a"].local.stint == "s1+3"


def test_corrupt_records_are_kept_in_mind_up_to_a_limit(wire, monkeypatch):
    """Beyond it each costs another stint, not memory."""
    monkeypatch.setattr("cartwheel.core.local.CORRUPT_MAX", 2)
    for i in range(3):
        wire.put("a", b"%d" % i, b"x")
        for name in "abc":
            wire.damage(name, b"%d" % i)
    for i in (0, 1, 2, 0):
        wire.get("a", b"%d" % i)
    assert wire.nodes["a"].status().counters["stints_corrupt"] == 4


def test_no_stint_ever_comes_twice(wire):
    """Not even if a node loses something, stops cleanly, starts again and loses something more."""
    seen = []
    for _ in range(3):
        wire.put("a", KEY, b"x")
        wire.damage("a", KEY)
        wire.get("a", KEY)
        seen.append(wire.nodes["a"].local.actor)
        wire.stop("a")
        wire.restart("a")
        assert wire.nodes["a"].local.actor == seen[-1]
    assert seen == ["a/s1+1", "a/s1+2", "a/s1+3"]


def test_a_node_restored_from_a_backup_goes_on_as_a_new_stint(wire):
    """It finds that others know more of its own dots than it does: nothing that it forgot is lost."""
    wire.stop("a")
    backup = wire.copy_disk("a")
    wire.restart("a")
    wire.put("a", KEY, b"forgotten", context={})
    wire.stop("a")
    wire.restart("a", disk=backup)
    assert wire.record("a", KEY) == EMPTY
    assert wire.nodes["a"].local.actor == "a/s1"
    wire.get("b", KEY, r=3)  # read repair brings a its own write back
    assert wire.nodes["a"].local.actor == "a/s1+1"
    wire.put("a", KEY, b"new", context={})
    assert [wire.values(name, KEY) for name in "abc"] == [[b"forgotten", b"new"]] * 3


@pytest.mark.parametrize("clue", ["context", "dots"])
def test_a_clients_context_reminds_a_node_of_what_it_forgot(wire, clue):
    """The client knows a dot of this node that its record lacks, so there may be more of them: a new stint."""
    wire.stop("a")
    backup = wire.copy_disk("a")
    wire.restart("a")
    wire.split("a", "bc")
    ((actor, counter),) = wire.put("a", KEY, b"seen", context={}, w=1).clock.items()
    wire.put("a", KEY, b"unseen", context={}, w=1)
    wire.split("ab", "c")
    wire.put("a", KEY, b"unseen, too", context={}, w=2)
    wire.heal()
    wire.stop("a")
    wire.restart("a", disk=backup)
    fields = {"context": {actor: counter}} if clue == "context" else {"context": {}, "dots": ((actor, counter),)}
    assert isinstance(wire.put("a", KEY, b"new", w=1, **fields), Stored)
    assert wire.nodes["a"].local.actor == "a/s1+1"
    wire.get("a", KEY, r=3)
    assert {b"unseen, too", b"new"} <= set(wire.values("c", KEY))


def test_stints_and_counters_across_restarts(wire):
    """A clean stop keeps the stint, an unclean one begins another; counters only ever rise, though the clock went back."""
    dots = []

    def put() -> None:
        stored = wire.put("a", KEY, b"x")
        assert isinstance(stored, Stored)
        newest = versions.newest(wire.record("a", KEY))
        assert newest is not None
        dots.append(newest.dot)

    put()
    wire.stop("a")
    wire.wall_ms -= 100
    wire.restart("a")
    put()
    wire.crash("a")
    wire.wall_ms -= 100
    wire.restart("a")
    put()
    assert [actor for actor, _ in dots] == ["a/s1", "a/s1", "a/s5"]
    counters = [counter for _, counter in dots]
    assert counters == sorted(set(counters))


# --- replicas and bad messages ----------------------------------------------------------------------------------------


def write_of(record: Record, at: bytes = b"", **changed: Any) -> ReplicaWrite:
    at = at or record_key("0", KEY)
    fields = {"ids": [5], "record_key": at, "sealed": seal(at, versions.encode(record)), "durability": 2, "reading": 1}
    return ReplicaWrite(**{**fields, **changed})


ONE = Record({"b/x": 1}, (Version("b/x", 1, b"v"),))


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        (write_of(ONE, durability=3), "3 is not a valid Durability"),
        (write_of(ONE, reading=reading(WALL_MS + 501)), "501 ms ahead"),
        (write_of(ONE, sealed=b""), "checksum"),
        (write_of(ONE, sealed=seal(record_key("0", b"another"), versions.encode(ONE))), "checksum"),
        (write_of(ONE, sealed=seal(record_key("0", KEY), b"no record")), "not a record"),
        (write_of(ONE, b"short"), "shorter than its position"),
        (write_of(ONE, b"x" * 16 + b"\x01\xff"), "not UTF-8"),
    ],
)
def test_a_write_that_cannot_be_is_refused(wire, message, reason):
    """Each row: refused with this reason, nothing stored, and the node goes on."""
    wire.set_bucket("a", "0", reconcile="lww")
    wire.sent.clear()
    wire.inject("b", "a", message)
    assert [(m.id, reason in m.reason) for _, _, m in wire.sent if isinstance(m, ReplicaRefused)] == [(5, True)]
    assert not wire.stores["a"].scan(0, limit=1)
    assert wire.nodes["a"].status().counters["writes_refused"] == 1


def test_a_write_is_idempotent(wire):
    """Delivered twice, it is acknowledged twice and stored once."""
    wire.inject("b", "a", write_of(ONE), write_of(ONE))
    wire.inject("b", "a", write_of(ONE))
    assert [m.ids for _, _, m in wire.sent if isinstance(m, ReplicaWrote)] == [[5, 5], [5]]
    assert wire.record("a", KEY) == ONE


def test_a_write_teaches_the_replica_the_time(wire):
    """What it writes next counts as later."""
    wire.skew_ms["a"] = 300
    wire.put("a", KEY, b"x")
    wire.put("b", KEY, b"y", context={})
    first, second = wire.record("b", KEY).versions
    assert second.counter > first.counter
    assert (first.actor, second.actor) == ("a/s1", "b/s2")


def test_a_node_never_reaches_itself(wire):
    """A transport that says so has connected the wrong ends."""
    with pytest.raises(AssertionError, match="reached itself"):
        wire.handle("a", PeerUp("a"))


# --- hot keys -------------------------------------------------------------------------------------------------------


def simultaneous(node, *events, now_s=100.0):
    """Give a node events at one moment, and return all effects."""
    return [effect for event in events for effect in node.handle(now_s, WALL_MS, event)]


def reads_asked(effects):
    """The questions to replicas among these effects."""
    return [effect for effect in effects if isinstance(effect, Send) and isinstance(effect.message, ReplicaRead)]


def test_gets_of_one_key_at_one_moment_share_one_reading(wire):
    """Ten clients that ask for one key at once cost each replica one question, and all ten are answered."""
    wire.put("a", b"k", b"v")
    node = wire.nodes["a"]
    effects = simultaneous(node, *[ClientGet(f"c{i}", "0", b"k") for i in range(10)])
    assert sorted(effect.dst for effect in reads_asked(effects)) == ["b", "c"]
    wire._perform("a", effects)
    wire.run()
    assert [wire.replies[f"c{i}"].record.versions[0].value for i in range(10)] == [b"v"] * 10


@pytest.mark.parametrize(
    "between",
    [ClientPut("w", PutRequest("0", b"other", b"1")), ClientPut("w", PutRequest("0", b"k", b"new"))],
    ids=["another key", "the same key"],
)
def test_a_get_after_a_write_at_the_same_moment_reads_for_itself(wire, between):
    """A reading that began before a write is not joined after it: it could miss the write."""
    wire.put("a", b"k", b"v")
    effects = simultaneous(wire.nodes["a"], ClientGet("a", "0", b"k"), between, ClientGet("b", "0", b"k"))
    assert len(reads_asked(effects)) == 4


def test_a_get_at_a_later_moment_or_of_another_key_or_bucket_reads_for_itself(wire):
    """Only the same key at the same moment is shared, and only without an R or timeout of its own."""
    node = wire.nodes["a"]
    gets = [
        ClientGet("a", "0", b"k"),
        ClientGet("b", "0", b"l"),
        ClientGet("c", "1", b"k"),
        ClientGet("d", "0", b"k", r=1),
    ]
    assert len(reads_asked(simultaneous(node, *gets))) == 8
    assert len(reads_asked(simultaneous(node, ClientGet("e", "0", b"k"), now_s=100.1))) == 2


def test_a_get_never_joins_a_reading_that_is_over(wire):
    """Where R is one the first client is answered at once, and the second is not forgotten."""
    wire.set_bucket("a", "0", r=1)
    wire.handle_at_once("a", ClientGet("one", "0", KEY), ClientGet("two", "0", KEY))
    assert set(wire.replies) >= {"one", "two"}


def test_a_get_with_its_own_timeout_has_its_own_reading(wire):
    """It fails at its deadline, the other goes on until the configured one."""
    wire.split("a", "b", "c")
    wire.handle_at_once("a", ClientGet("plain", "0", KEY), ClientGet("quick", "0", KEY, timeout_s=0.5))
    wire.run()
    wire.replies.clear()
    wire.advance(0.6)
    assert set(wire.replies) == {"quick"}
    wire.advance(2)
    assert set(wire.replies) == {"plain", "quick"}


def test_all_who_share_a_reading_are_told_of_its_failure(wire):
    """Each once."""
    wire.split("a", "b", "c")
    wire.handle_at_once("a", *[ClientGet(f"c{i}", "0", KEY) for i in range(3)])
    wire.run()
    wire.advance(2.1)
    assert [wire.replies[f"c{i}"].code for i in range(3)] == [Code.NOQUORUM] * 3


def test_a_put_whose_own_copy_was_handed_over_meanwhile_is_still_sent(five):
    """A coordinator that stands in keeps a hint. Once that is delivered nothing of the write is left here, and those that have
    not answered are asked all the same (seed 7000029)."""
    owners, (outsider, other) = owners_of(five)
    for name in owners:
        five.handle(outsider, PeerDown(name, "reset"))
    five.lose = lambda src, dst, message: dst == other and isinstance(message, ReplicaWrite)
    at = record_key("0", KEY)
    assert five.put(outsider, KEY, b"x", w=2) is None
    local = five.nodes[outsider].local
    (held,) = local.hints.held(at)
    local.hints.remove(held.intended, at, held.sealed)
    assert local.answer(at)[0] is None
    five.lose = lambda src, dst, message: False
    for _ in range(8):
        five.advance(0.05)
    assert isinstance(five.replies[five.client], Stored)
