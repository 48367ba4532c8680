"""What the paper says, section by section, on real nodes: each test quotes the sentence that it shows.

"Dynamo: Amazon's Highly Available Key-value Store", DeCandia et al., SOSP 2007.
"""

from __future__ import annotations

import hashlib
from typing import Any

import pytest
from tests.core.wire import Wire

from cartwheel.core import versions
from cartwheel.core.config import BucketProps
from cartwheel.core.context import Context, decode_token, encode_token
from cartwheel.core.errors import BadContext, Code
from cartwheel.core.messages import Failure, Forward, Found, ReplicaRead, ReplicaRepair, ReplicaWrite, Stored
from cartwheel.core.storage import record_key
from cartwheel.core.types import Clock, node_of
from cartwheel.core.versions import EMPTY, Record

CART = b"cart:7"


def after(result: Found | Stored) -> dict[str, Any]:
    """The fields of a put with the context of this result."""
    if isinstance(result, Found):
        return {"context": result.record.clock, "dots": result.record.cloud, "coordinator": result.coordinator}
    return {"context": result.clock, "dots": result.dots, "coordinator": result.coordinator}


class Counts:
    """Clock readings as the paper writes them: (Sx, 2) is Sx's second write."""

    def __init__(self) -> None:
        self.minted: list[tuple[str, int]] = []

    def name(self, clock: Clock) -> list[tuple[str, int]]:
        """A clock in the paper's words."""
        self.minted = sorted({*self.minted, *clock.items()}, key=lambda dot: dot[1])
        return [
            (actor, sum(other == actor and c <= counter for other, c in self.minted))
            for actor, counter in sorted(clock.items())
        ]


# --- 2.3 Design considerations ---------------------------------------------------------------------------------------


def test_2_3_always_writeable():
    """ "Dynamo targets the design space of an 'always writeable' data store": while a client reaches one node that reaches
    W - 1 others, writes succeed, on both sides of a split."""
    wire = Wire(["a", "b", "c", "d"], q=8)
    owners = wire.nodes["a"].local.owners(record_key("0", CART), 3)
    wire.split("".join(owners[:2]), owners[2])
    assert isinstance(wire.put(owners[0], CART, b"here"), Stored)
    assert isinstance(wire.put(owners[2], CART, b"there", w=1), Stored)
    wire.heal()
    assert sorted(v.value for v in wire.get(owners[1], CART, r=3).record.versions) == [b"here", b"there"]


# --- 4.1 System interface --------------------------------------------------------------------------------------------


def test_4_1_get_returns_all_versions_and_a_context():
    """ "The get(key) operation locates the object replicas associated with the key ... and returns a single object or a list of
    objects with conflicting versions along with a context." """
    wire = Wire(["a", "b", "c"])
    one = wire.put("a", CART, b"milk")
    assert [v.value for v in wire.get("b", CART).record.versions] == [b"milk"]
    wire.put("b", CART, b"eggs", **after(one))
    wire.put("c", CART, b"bread", **after(one))
    found = wire.get("a", CART)
    assert sorted(v.value for v in found.record.versions) == [b"bread", b"eggs"]
    assert versions.descends(found.record.clock, one.clock)


def test_4_1_the_context_is_verified():
    """ "The context information is stored along with the object so that the system can verify the validity of the context
    object supplied in the put request." """
    token = encode_token(Context({"a/1": 1}, "a"), secret=b"s", bucket="0", key=CART)
    assert decode_token(token, secret=b"s", bucket="0", key=CART) == Context({"a/1": 1}, "a")
    with pytest.raises(BadContext):
        decode_token(token, secret=b"s", bucket="0", key=b"cart:8")


def test_4_1_md5_places_a_key():
    """ "It applies a MD5 hash on the key to generate a 128-bit identifier, which is used to determine the storage nodes." """
    assert record_key("0", CART)[:16] == hashlib.md5(b"\x010cart:7").digest()


# --- 4.3 Replication -------------------------------------------------------------------------------------------------


def test_4_3_each_key_is_replicated_at_n_distinct_nodes():
    """ "Each data item is replicated at N hosts": the coordinator stores it and its N - 1 successors, no other node does."""
    wire = Wire(["a", "b", "c", "d", "e"], q=16)
    for i in range(40):
        key = b"k%d" % i
        owners = wire.nodes["a"].local.owners(record_key("0", key), 3)
        assert len(set(owners)) == 3
        wire.put(owners[0], key, b"x")
        assert [name for name in "abcde" if wire.sealed(name, key) is not None] == sorted(owners)


def test_4_3_n_is_configured_per_instance():
    """ "... where N is a parameter configured 'per-instance'": here per bucket."""
    wire = Wire(["a", "b", "c", "d", "e"], q=16)
    wire.set_bucket("a", "five", n=5, r=3, w=3)
    wire.set_bucket("a", "one", n=1, r=1, w=1)
    for bucket, n in [("five", 5), ("one", 1)]:
        wire.put("a", CART, b"x", bucket=bucket)
        assert sum(wire.sealed(name, CART, bucket) is not None for name in "abcde") == n


# --- 4.4 Data versioning ---------------------------------------------------------------------------------------------


def test_4_4_figure_3():
    """Figure 3, "Version evolution of an object over time": D1 [Sx,1]; D2 [Sx,2]; D3 [Sx,2][Sy,1]; D4 [Sx,2][Sz,1]; and
    D5 [Sx,3][Sy,1][Sz,1], reconciled and written by Sx."""
    counts = Counts()
    d1 = versions.put(EMPTY, {}, ("Sx", 10), b"D1")
    assert counts.name(d1.clock) == [("Sx", 1)]
    d2 = versions.put(d1, d1.clock, ("Sx", 20), b"D2")
    assert counts.name(d2.clock) == [("Sx", 2)]
    d3 = versions.put(d2, d2.clock, ("Sy", 30), b"D3")
    assert counts.name(d3.clock) == [("Sx", 2), ("Sy", 1)]
    d4 = versions.put(d2, d2.clock, ("Sz", 40), b"D4")
    assert counts.name(d4.clock) == [("Sx", 2), ("Sz", 1)]
    both = versions.merge(d3, d4)
    assert [v.value for v in both.versions] == [b"D3", b"D4"]
    assert counts.name(both.clock) == [("Sx", 2), ("Sy", 1), ("Sz", 1)]  # "a summary of the clocks of D3 and D4"
    d5 = versions.put(both, both.clock, ("Sx", 50), b"D5")
    assert [v.value for v in d5.versions] == [b"D5"]
    assert counts.name(d5.clock) == [("Sx", 3), ("Sy", 1), ("Sz", 1)]
    for older in (EMPTY, d1, d2, d3, d4, both):
        assert versions.merge(older, d5) == d5


def test_4_4_figure_3_on_nodes():
    """The same story, told by three nodes that cannot reach each other while D3 and D4 are written."""
    wire = Wire(["x", "y", "z"])
    counts = Counts()

    def clock(name: str) -> list[tuple[str, int]]:
        named = counts.name(wire.record(name, CART).clock)
        return [("S" + node_of(actor), count) for actor, count in named]

    d1 = wire.put("x", CART, b"D1")
    assert clock("z") == [("Sx", 1)]
    wire.wall_ms += 1
    d2 = wire.put("x", CART, b"D2", **after(d1))
    assert clock("z") == [("Sx", 2)]
    wire.split("x", "y", "z")
    wire.put("y", CART, b"D3", w=1, **after(d2))
    assert clock("y") == [("Sx", 2), ("Sy", 1)]
    wire.put("z", CART, b"D4", w=1, **after(d2))
    assert clock("z") == [("Sx", 2), ("Sz", 1)]
    wire.heal()
    found = wire.get("x", CART, r=3)
    assert [v.value for v in found.record.versions] == [b"D3", b"D4"]
    assert clock("x") == [("Sx", 2), ("Sy", 1), ("Sz", 1)]
    wire.wall_ms += 1
    wire.put("x", CART, b"D5", **after(found))
    for name in "xyz":
        assert clock(name) == [("Sx", 3), ("Sy", 1), ("Sz", 1)]
        assert wire.values(name, CART) == [b"D5"]


@pytest.mark.parametrize(
    ("first", "second", "ancestor"),
    [
        ({"Sx": 1}, {"Sx": 2}, True),
        ({"Sx": 2}, {"Sx": 2, "Sy": 1}, True),
        ({}, {"Sx": 1}, True),
        ({"Sx": 2, "Sy": 1}, {"Sx": 2, "Sz": 1}, False),
        ({"Sx": 3}, {"Sx": 2, "Sy": 9}, False),
    ],
)
def test_4_4_ancestors(first, second, ancestor):
    """ "If the counters on the first object's clock are less-than-or-equal to all of the nodes in the second clock, then the
    first is an ancestor of the second and can be forgotten." """
    assert versions.descends(second, first) is ancestor


def test_4_4_concurrent_writes_through_one_node():
    """ "In Dynamo, when a client wishes to update an object, it must specify which version it is updating": two updates of one
    version through one node are siblings, which the clock alone, [Sx,3] after [Sx,2], could not tell."""
    wire = Wire(["a", "b", "c"])
    old = after(wire.put("a", CART, b"old"))
    wire.put("a", CART, b"one", **old)
    wire.put("a", CART, b"two", **old)
    assert wire.values("c", CART) == [b"one", b"two"]


def test_4_4_add_to_cart_is_never_lost():
    """ "... an 'add to cart' operation is never lost. However, deleted items can resurface": the merge of carts by union, which
    is the application's, brings them back."""
    wire = Wire(["a", "b", "c"])
    cart = wire.put("a", CART, b"eggs milk")
    wire.split("a", "b", "c")
    wire.put("a", CART, b"eggs milk bread", w=1, **after(cart))  # adds bread
    wire.put("b", CART, b"eggs", w=1, **after(cart))  # removes milk
    wire.heal()
    found = wire.get("c", CART, r=3)
    union = sorted({item for v in found.record.versions for item in v.value.split()})
    assert union == [b"bread", b"eggs", b"milk"]
    wire.put("c", CART, b" ".join(union), **after(found))
    assert [wire.values(name, CART) for name in "abc"] == [[b"bread eggs milk"]] * 3


# --- 4.5 Execution of get() and put() --------------------------------------------------------------------------------


def test_4_5_any_node_takes_any_request():
    """ "Any storage node in Dynamo is eligible to receive client get and put operations for any key." """
    wire = Wire(["a", "b", "c", "d", "e"], q=16)
    for i, name in enumerate("abcde"):
        assert isinstance(wire.put(name, CART, b"%d" % i), Stored)
        assert [v.value for v in wire.get(name, CART).record.versions] == [b"%d" % i]


def test_4_5_a_node_outside_the_top_n_forwards():
    """ "... the node that receives the request will not coordinate it if the node is not in the top N of the requested key's
    preference list. Instead, that node will forward the request to the first among the top N nodes in the preference list." """
    wire = Wire(["a", "b", "c", "d", "e"], q=16)
    preference = wire.nodes["a"].local.ring.preference(wire.nodes["a"].local.ring.partition_of(record_key("0", CART)))
    for outsider in preference[3:]:
        wire.sent.clear()
        assert wire.put(outsider, CART, b"x").coordinator == preference[0]
        assert [(src, dst) for src, dst, m in wire.sent if isinstance(m, Forward)] == [(outsider, preference[0])]


def test_4_5_the_coordinator_writes_locally_and_to_n_highest_ranked():
    """ "The coordinator generates the vector clock for the new version and writes the new version locally. The coordinator then
    sends the new version (along with the new vector clock) to the N highest-ranked reachable nodes." """
    wire = Wire(["a", "b", "c"])
    wire.held = {"b", "c"}
    wire.put("a", CART, b"x")
    (version,) = wire.record("a", CART).versions
    assert node_of(version.actor) == "a"
    writes = [(dst, m) for src, dst, m in wire.sent if isinstance(m, ReplicaWrite)]
    ranked = wire.nodes["a"].local.owners(record_key("0", CART), 3)
    assert [dst for dst, _ in writes] == [name for name in ranked if name != "a"]
    assert {m.sealed for _, m in writes} == {wire.sealed("a", CART)}


def test_4_5_w_minus_1_responses():
    """ "If at least W-1 nodes respond then the write is considered successful." """
    wire = Wire(["a", "b", "c"])
    wire.cut = {("b", "a")}
    wire.held = {"c"}
    assert wire.put("a", CART, b"x") is None
    wire.release("c")
    assert isinstance(wire.replies[wire.client], Stored)


def test_4_5_get_waits_for_r_responses():
    """ "... the coordinator requests all existing versions of data for that key from the N highest-ranked reachable nodes in the
    preference list for that key, and then waits for R responses before returning the result to the client." """
    wire = Wire(["a", "b", "c"])
    wire.put("a", CART, b"x")
    wire.sent.clear()
    wire.cut = {("b", "a"), ("c", "a")}
    assert wire.get("a", CART) is None
    ranked = wire.nodes["a"].local.owners(record_key("0", CART), 3)
    asked = [(src, dst) for src, dst, m in wire.sent if isinstance(m, ReplicaRead)]
    assert asked == [("a", name) for name in ranked if name != "a"]
    assert isinstance(wire.get("a", CART, r=1), Found)


def test_4_5_get_returns_all_causally_unrelated_versions():
    """ "If the coordinator ends up gathering multiple versions of the data, it returns all the versions it deems to be causally
    unrelated. The divergent versions are then reconciled and the reconciled version superseding the current versions is
    written back." """
    wire = Wire(["a", "b", "c"])
    old = wire.put("a", CART, b"old")
    wire.cut = {("a", "c"), ("b", "c")}
    wire.put("a", CART, b"one", context=old.clock)
    wire.put("b", CART, b"two", context=old.clock)
    wire.heal()
    assert wire.values("c", CART) == [b"old"]
    found = wire.get("c", CART, r=3)
    assert sorted(v.value for v in found.record.versions) == [b"one", b"two"]  # and not the ancestor
    wire.put("c", CART, b"one, two", **after(found))
    assert [wire.values(name, CART) for name in "abc"] == [[b"one, two"]] * 3


@pytest.mark.parametrize(("r", "w"), [(2, 2), (1, 3), (3, 1)])
def test_4_5_r_plus_w_above_n(r, w):
    """ "Setting R and W such that R + W > N yields a quorum-like system": with the same N nodes asked, a get meets the last put,
    whichever node is slow."""
    for slow in "abc":
        wire = Wire(["a", "b", "c"])
        wire.set_bucket("a", "0", r=r, w=w)
        if w < 3:
            wire.cut = {(name, slow) for name in "abc"}
        writer = "b" if slow == "a" else "a"
        assert isinstance(wire.put(writer, CART, b"x"), Stored)
        wire.heal()
        for reader in "abc":
            assert [v.value for v in wire.get(reader, CART).record.versions] == [b"x"]


# --- 4.8 Membership --------------------------------------------------------------------------------------------------


def test_4_8_1_changes_form_a_history():
    """ "The node that serves the request writes the membership change and its time of issue to persistent store. The membership
    changes form a history": here the properties of buckets are among them, and every node comes to hold all of it."""
    wire = Wire(["a", "b", "c"])
    wire.set_bucket("a", "x", w=1)
    wire.set_bucket("b", "x", w=3)
    wire.crash("c")
    wire.restart("c")
    for node in wire.nodes.values():
        history = node._membership._history
        assert [(change.author, change.props) for change in history][-2:] == [("a", {"w": "1"}), ("b", {"w": "3"})]


# --- 5 Implementation ------------------------------------------------------------------------------------------------


def test_5_a_request_is_a_state_machine_that_ends():
    """ "... if too few replies were received within a given time bound, fail the request"."""
    wire = Wire(["a", "b", "c"])
    wire.split("a", "b", "c")
    wire.get("a", CART)
    wire.put("a", CART, b"x")
    assert wire.nodes["a"].status().requests == 2
    wire.advance(2.1)
    assert [wire.replies[client].code for client in (1, 2)] == [Code.NOQUORUM] * 2
    assert wire.nodes["a"].status().requests == 0


def test_5_read_repair():
    """ "If stale versions were returned in any of the responses, the coordinator updates those nodes with the latest version.
    This process is called read repair." """
    wire = Wire(["a", "b", "c"])
    wire.put("a", CART, b"old")
    wire.cut = {("a", "c")}
    wire.put("a", CART, b"new")
    wire.heal()
    wire.sent.clear()
    assert [v.value for v in wire.get("b", CART).record.versions] == [b"new"]
    assert [(src, dst) for src, dst, m in wire.sent if isinstance(m, ReplicaRepair)] == [("b", "c")]
    assert wire.values("c", CART) == [b"new"]


def test_5_the_state_machine_waits_for_stragglers():
    """ "After the read response has been returned to the caller the state machine waits for a small period of time to receive any
    outstanding responses." """
    wire = Wire(["a", "b", "c"])
    wire.put("a", CART, b"old")
    wire.cut = {("a", "c")}
    wire.put("a", CART, b"new")
    wire.heal()
    wire.cut = {("c", "a")}
    assert isinstance(wire.get("a", CART), Found)
    assert len(wire.nodes["a"]._coordinator._requests.by_id) == 1
    wire.advance(2.1)
    assert not wire.nodes["a"]._coordinator._requests.by_id


def test_5_the_coordinator_of_a_write_is_the_fastest_of_the_read_before():
    """ "... the coordinator for a write is chosen to be the node that replied fastest to the previous read operation which is
    stored in the context information of the request." """
    wire = Wire(["a", "b", "c", "d"], q=8)
    owners = wire.nodes["a"].local.owners(record_key("0", CART), 3)
    (outsider,) = set("abcd") - set(owners)
    wire.put(owners[0], CART, b"x")
    for slow in owners[:2]:
        wire.cut |= {(slow, outsider)}
    found = wire.get(outsider, CART, r=1)
    assert found.coordinator == owners[2]
    wire.heal()
    assert wire.put(outsider, CART, b"y", **after(found)).coordinator == owners[2]


def test_5_any_of_the_top_n_coordinates():
    """ "To counter this [uneven load], any of the top N nodes in the preference list is allowed to coordinate the writes." """
    wire = Wire(["a", "b", "c"])
    for name in "abc":
        assert wire.put(name, CART, b"x").coordinator == name


# --- 6 Experiences ---------------------------------------------------------------------------------------------------


def test_6_the_common_configuration():
    """ "The common (N,R,W) configuration used by several instances of Dynamo is (3,2,2)." """
    props = BucketProps()
    assert (props.n, props.r, props.w) == (3, 2, 2)


def test_6_a_read_engine():
    """ "... typically R is set to be 1 and W to be N": one answer is enough for a get, and a put needs all."""
    wire = Wire(["a", "b", "c"])
    wire.set_bucket("a", "catalogue", r=1, w=3)
    assert isinstance(wire.put("a", CART, b"x", bucket="catalogue"), Stored)
    wire.cut = {(name, other) for name in "abc" for other in "abc" if name != other}
    assert isinstance(wire.get("c", CART, bucket="catalogue"), Found)
    wire.heal()
    wire.crash("b")
    assert wire.put("a", CART, b"y", bucket="catalogue") == Failure(
        Code.NOQUORUM, "need W=3, got 2 (b: connection lost)"
    )


def test_6_w_of_1_never_rejects_a_write():
    """ "... if W is set to 1, then the system will never reject a write request as long as there is at least one node in the
    system that can successfully process a write request." """
    wire = Wire(["a", "b", "c"])
    wire.set_bucket("a", "0", w=1)
    wire.crash("b")
    wire.crash("c")
    assert isinstance(wire.put("a", CART, b"x"), Stored)


def test_6_timestamp_based_reconciliation():
    """ "... the object with the largest physical timestamp value is chosen as the correct version": per bucket."""
    wire = Wire(["a", "b", "c"])
    wire.set_bucket("a", "sessions", reconcile="lww")
    wire.split("a", "b", "c")
    for name in "abc":
        wire.wall_ms += 1
        wire.put(name, CART, name.encode(), bucket="sessions", w=1)
    wire.heal()
    assert wire.get("a", CART, bucket="sessions", r=3).record == Record(
        wire.record("b", CART, "sessions").clock, wire.record("b", CART, "sessions").versions
    )
    assert [wire.values(name, CART, "sessions") for name in "abc"] == [[b"c"]] * 3
