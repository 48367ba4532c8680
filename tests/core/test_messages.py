"""The wire: every message survives it, its bytes do not change by accident, and no bytes can do more than be refused."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cartwheel.core import messages
from cartwheel.core.errors import Code, PeerError
from cartwheel.core.messages import (
    Batch,
    CountAsk,
    Counts,
    Disagree,
    Failure,
    Fetch,
    Fetched,
    Forward,
    Forwarded,
    Gossip,
    HandedOver,
    HandOver,
    Health,
    HintDeliver,
    HintGrant,
    HintOffer,
    HintsAsk,
    HintStatus,
    HintsTold,
    HintTaken,
    JoinAsk,
    JoinTold,
    LeafDiff,
    LeafKeys,
    LeafRows,
    Message,
    Probe,
    Probed,
    Purpose,
    PutRequest,
    Reap,
    ReapAsk,
    ReapReady,
    ReplicaRead,
    ReplicaRefused,
    ReplicaRepair,
    ReplicaValue,
    ReplicaWrite,
    ReplicaWrote,
    ScanAsk,
    ScanPage,
    Stored,
    TreeLeaves,
    TreeRoots,
    ViewDigest,
    ViewPush,
    decode_batch,
    encode_batch,
)
from cartwheel.core.placement import Holding
from cartwheel.core.ring import Member
from cartwheel.core.versions import Record, Version

ids = st.integers(0, 2**64 - 1)
small = st.integers(0, 2**31)
readings = st.integers(0, 2**63)
blobs = st.binary(max_size=30)
texts = st.text(max_size=12)
clocks = st.dictionaries(texts, readings, max_size=3)
dots = st.lists(st.tuples(texts, readings), max_size=3).map(tuple)
found_versions = st.builds(Version, texts, readings, st.none() | blobs, readings, blobs)
records = st.builds(Record, clocks, st.lists(found_versions, max_size=3).map(tuple), dots)
puts = st.builds(
    PutRequest,
    texts,
    blobs,
    st.none() | blobs,
    st.none() | clocks,
    small,
    readings,
    blobs,
    st.floats(0, 1e6),
    texts,
    dots,
)
results = st.builds(Stored, clocks, dots, small, texts) | st.builds(
    Failure, st.sampled_from(Code), texts, st.booleans()
)
kept_hints = st.builds(HintStatus, texts, small, small, st.floats(0, 1e6), st.booleans(), texts)
levels = st.integers(1, 255)
gifts = st.dictionaries(texts, st.lists(st.tuples(readings, blobs), max_size=2), max_size=2)
told_holdings = st.builds(
    Holding,
    texts,
    readings,
    small,
    st.dictionaries(levels, blobs, max_size=2),
    st.dictionaries(levels, gifts, max_size=2),
    st.booleans(),
    st.dictionaries(texts, readings, max_size=2),
)
nodes = st.text("abc", min_size=1, max_size=5)
members = st.builds(Member, nodes, texts, texts, texts, st.floats(0.01, 10_000))

STRATEGIES: dict[type, st.SearchStrategy[Message]] = {
    ReplicaWrite: st.builds(ReplicaWrite, st.lists(ids), blobs, blobs, st.integers(0, 2), readings, texts, small),
    ReapAsk: st.builds(ReapAsk, ids, st.lists(blobs, max_size=3), blobs),
    ReapReady: st.builds(ReapReady, ids, st.lists(small, max_size=3), st.lists(small, max_size=3)),
    Reap: st.builds(Reap, st.lists(blobs, max_size=3), blobs),
    ReplicaWrote: st.builds(ReplicaWrote, st.lists(ids, max_size=4)),
    ReplicaRefused: st.builds(ReplicaRefused, ids, texts, blobs),
    ReplicaRead: st.builds(ReplicaRead, ids, blobs, small),
    Disagree: st.builds(Disagree, st.lists(ids, max_size=4)),
    ReplicaValue: st.builds(ReplicaValue, ids, st.none() | blobs),
    ReplicaRepair: st.builds(ReplicaRepair, blobs, blobs),
    Forward: st.builds(Forward, ids, puts),
    Forwarded: st.builds(Forwarded, ids, results),
    ScanAsk: st.builds(ScanAsk, ids, texts, blobs, st.none() | blobs, small),
    ScanPage: st.builds(ScanPage, ids, st.lists(st.tuples(blobs, records), max_size=3), st.none() | blobs),
    CountAsk: st.builds(CountAsk, ids, texts),
    Counts: st.builds(Counts, ids, st.dictionaries(small, small, max_size=3)),
    ViewPush: st.builds(ViewPush, blobs, st.lists(told_holdings, max_size=2), st.booleans(), blobs),
    ViewDigest: st.builds(ViewDigest, blobs, st.dictionaries(st.text(), ids, max_size=3)),
    Gossip: st.builds(Gossip),
    JoinAsk: st.builds(JoinAsk, members),
    JoinTold: st.builds(JoinTold, texts, st.booleans()),
    HandOver: st.builds(HandOver, ids, st.lists(st.tuples(levels, small, small), max_size=3)),
    HandedOver: st.builds(HandedOver, ids, st.lists(st.tuples(levels, small), max_size=3), texts),
    Probe: st.builds(Probe, ids, st.booleans()),
    Probed: st.builds(Probed, ids),
    Health: st.builds(Health, st.booleans(), texts, st.booleans()),
    HintOffer: st.builds(HintOffer, small, small),
    HintGrant: st.builds(HintGrant, small),
    HintDeliver: st.builds(HintDeliver, ids, st.lists(st.tuples(blobs, blobs), max_size=3), small),
    HintTaken: st.builds(HintTaken, ids, small, st.lists(small, max_size=3)),
    HintsAsk: st.builds(HintsAsk, ids),
    HintsTold: st.builds(HintsTold, ids, st.lists(kept_hints, max_size=3)),
    TreeRoots: st.builds(TreeRoots, ids, blobs, small, blobs, blobs, st.sampled_from(Purpose)),
    TreeLeaves: st.builds(TreeLeaves, ids, blobs, blobs, blobs),
    LeafKeys: st.builds(
        LeafKeys, ids, small, small, st.integers(0, 2**64 - 1), blobs, blobs, blobs, small, st.booleans()
    ),
    LeafDiff: st.builds(LeafDiff, ids, st.lists(st.tuples(blobs, blobs), max_size=3), blobs, blobs, st.booleans()),
    LeafRows: st.builds(LeafRows, st.lists(st.tuples(blobs, blobs), max_size=3), st.booleans()),
    Fetch: st.builds(Fetch, blobs),
    Fetched: st.builds(Fetched, blobs, st.none() | blobs),
}
batches = st.lists(st.one_of(*STRATEGIES.values()), max_size=4)

RECORD = Record({"b/1": 5}, (Version("b/1", 5, b"", 9, b"q"),))
PUT = PutRequest("0", b"k", b"v", {"b/1": 5, "a/1": 4}, 2, 9, b"q", 0.5, "b", (("c/1", 7),))
HOLDING = Holding("a", 4, 8, {3: b"\x05"}, {3: {"d": [(4, b"\x02")]}}, True, {"c": 9})
GOLDEN: list[tuple[Message, str]] = [
    (ReplicaWrite([1, 2], b"at", b"sealed", 2, 300, "", 7), "9801920102c4026174c4067365616c656402cd012ca007"),
    (ReapAsk(1, [b"at"], b"8 bytes."), "94280191c4026174c408382062797465732e"),
    (ReapReady(1, [0]), "942901910090"),
    (Reap([b"at"], b"8 bytes."), "932a91c4026174c408382062797465732e"),
    (ReplicaWrote([1, 1 << 40]), "92029201cf0000010000000000"),
    (ReplicaRefused(1, "why"), "940301a3776879c400"),
    (ReplicaRead(1, b"at", 7), "940401c402617407"),
    (Disagree([1, 2]), "922b920102"),
    (ReplicaValue(1, b"sealed"), "930501c4067365616c6564"),
    (ReplicaValue(1, None), "930501c0"),
    (ReplicaRepair(b"at", b"sealed"), "9306c4026174c4067365616c6564"),
    (Forward(1, PUT), "9307019aa130c4016bc4017682a3622f3105a3612f31040209c40171cb3fe0000000000000a1629192a3632f3107"),
    (Forward(1, PutRequest("0", b"k", None)), "9307019aa130c4016bc0c00000c400cb0000000000000000a090"),
    (Forwarded(1, Stored({"b/1": 5}, (("c/1", 7),), 2, "b")), "93080195a673746f72656481a3622f31059192a3632f310702a162"),
    (Forwarded(1, Failure(Code.NOQUORUM, "why", True)), "93080194a76661696c757265a84e4f51554f52554da3776879c3"),
    (ScanAsk(1, "0", b"from", None, 10), "960901a130c40466726f6dc00a"),
    (
        ScanPage(1, [(b"at", RECORD)], b"here"),
        "940a019192c40261749381a3622f31059195a3622f3105c40009c4017190c40468657265",
    ),
    (CountAsk(1, "0"), "930b01a130"),
    (Counts(1, {3: 7}), "930c01810307"),
    (
        ViewPush(b"history", [HOLDING]),
        "950dc407686973746f72799197a16104088103c40105810381a164919204c40102c381a16309c3c400",
    ),
    (ViewPush(b"h", [], whole=False, base=b"e"), "950dc4016890c2c40165"),
    (ViewDigest(b"12345678", {"a": 4}), "9331c408313233343536373881a16104"),
    (Gossip(), "912c"),
    (JoinAsk(Member("d", "h:1", "m", "z", 2.0)), "922d95a164a3683a31a16da17acb4000000000000000"),
    (JoinTold("why", True), "932ea3776879c3"),
    (HandOver(1, [(3, 5, 7)]), "932f019193030507"),
    (HandedOver(1, [(3, 5)], "why"), "94300191920305a3776879"),
    (Probe(1, True), "930e01c3"),
    (Probed(1), "920f01"),
    (Health(False, "h:1", True), "9410c2a3683a31c3"),
    (HintOffer(3, 400), "931103cd0190"),
    (HintGrant(256), "9212cd0100"),
    (HintDeliver(1, [(b"at", b"sealed")], 2), "9413019192c4026174c4067365616c656402"),
    (HintTaken(1, 16, [0]), "941401109100"),
    (HintsAsk(1), "921c01"),
    (
        HintsTold(1, [HintStatus("d", 3, 400, 1.5, False, "why")]),
        "931d019186a8696e74656e646564a164a568696e747303a56279746573cd0190a56167655f73cb3ff8000000000000"
        "aa64656c69766572696e67c2a57761697473a3776879",
    ),
    (
        TreeRoots(1, b"epoch", 3, b"\0\1", b"8 bytes.", Purpose.GIVEN),
        "971501c40565706f636803c4020001c408382062797465732e02",
    ),
    (TreeLeaves(1, b"\0\1", b"leaves"), "961601c4020001c4066c6561766573c400c2"),
    (TreeLeaves(1, b"", b"", b"\0\1"), "961601c400c400c4020001c2"),
    (
        LeafKeys(1, 3, 7, 1 << 63, b"from", b"", b"keys", 5000),
        "9a17010307cf8000000000000000c40466726f6dc400c4046b657973cd1388c3",
    ),
    (
        LeafDiff(1, [(b"at", b"sealed")], b"want", b"here"),
        "9618019192c4026174c4067365616c6564c40477616e74c40468657265c2",
    ),
    (LeafRows([(b"at", b"sealed")], True), "93199192c4026174c4067365616c6564c3"),
    (Fetch(b"at"), "921ac4026174"),
    (Fetched(b"at", None), "931bc4026174c0"),
]


def test_every_message_is_tried_here():
    """A new kind of message has a strategy and a golden form."""
    kinds = set(Message.__args__)
    assert set(STRATEGIES) == kinds
    assert {type(message) for message, _ in GOLDEN} == kinds


@given(st.binary(max_size=16), batches)
def test_round_trip(epoch, sent):
    """A batch arrives as it left: the same messages, of the same types, in the same order."""
    received = decode_batch(memoryview(encode_batch(epoch, sent)))
    assert received == Batch(epoch, sent)
    assert [type(m) for m in received.messages] == [type(m) for m in sent]


@pytest.mark.parametrize(("message", "golden"), GOLDEN, ids=lambda value: type(value).__name__)
def test_the_bytes_of_a_message(message, golden):
    """Neighbours of one version distance must understand each other, so a form once released stays readable for ever."""
    assert encode_batch(b"", [message]).hex() == "92c40091" + golden
    assert decode_batch(bytes.fromhex("92c40091" + golden)) == Batch(b"", [message])


@pytest.mark.parametrize("message", [message for message, _ in GOLDEN], ids=lambda value: type(value).__name__)
def test_fields_appended_by_a_newer_version_are_skipped(message):
    """At the message, and at what it carries: the versions to come may append fields."""
    newer = msgspec.msgpack.decode(encode_batch(b"e", [message]))
    newer[1][0] += ["new", {"a": [1, None]}]
    for part in newer[1][0]:
        if isinstance(part, list) and len(part) in {4, 5, 10} and isinstance(message, Forward | Forwarded):
            part += [b"new"]
    newer.append("new, too")
    assert decode_batch(msgspec.msgpack.encode(newer)) == Batch(b"e", [message])


def test_a_put_of_an_older_version_gets_the_defaults():
    """Fields with defaults may be missing at the end."""
    older = msgspec.msgpack.encode([b"", [[7, 1, ["0", b"k", b"v"]]]])
    assert decode_batch(older).messages == [Forward(1, PutRequest("0", b"k", b"v"))]


@pytest.mark.parametrize(
    ("older", "message"),
    [
        ("9701920102c4026174c4067365616c656402cd012ca0", ReplicaWrite([1, 2], b"at", b"sealed", 2, 300, "", 0)),
        ("930401c4026174", ReplicaRead(1, b"at", 0)),
        ("920dc407686973746f7279", ViewPush(b"history", [])),
        ("930dc407686973746f727990", ViewPush(b"history", [], whole=True, base=b"")),
        ("9310c2a3683a31", Health(False, "h:1", False)),
        (
            "961501c40565706f636803c4020001c408382062797465732e",
            TreeRoots(1, b"epoch", 3, b"\0\1", b"8 bytes.", Purpose.SHARED),
        ),
    ],
)
def test_messages_of_an_older_version_get_the_defaults(older, message):
    """As they were sent before the field was appended."""
    assert decode_batch(bytes.fromhex("92c40091" + older)) == Batch(b"", [message])


@given(st.binary(max_size=60))
def test_arbitrary_bytes_are_a_peers_error(data):
    """Decoding raises nothing but PeerError."""
    try:
        decode_batch(data)
    except PeerError:
        pass


@given(batches, st.data())
@settings(max_examples=200)
def test_damaged_frames_are_a_peers_error(sent, data):
    """Neither does a frame with some bytes changed, cut off or put in."""
    whole = encode_batch(b"epoch", sent)
    at = data.draw(st.integers(0, len(whole)))
    damaged = whole[:at] + data.draw(st.binary(max_size=4)) + whole[at + data.draw(st.integers(0, 4)) :]
    try:
        decode_batch(damaged)
    except PeerError:
        pass


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"\x92\xc4\x00\x91\x93\x63\x01\x01",  # a kind of message that does not exist
        b"\x92\xc4\x00\x91\x92\x02\xdd\xff\xff\xff\xff",  # four billion ids, none of which follow
        b"\x92\xc4\x00\x91\x93\x0c\x01\xdf\xff\xff\xff\xff",
        b"\x92\xc4\x00\xdd\xff\xff\xff\xff",
        b"\x92\xc4\x00\x91\x93\x03\x01\xa1\xff",  # a text that is no UTF-8
        b"\x92\xc4\x00\x91\x92\x02\x91\xcb\x7f\xf8\x00\x00\x00\x00\x00\x00",  # an id that is no number
        b"\x92\xc4\x00\x91\x93\x02\x90" + b"\x91" * 200_000,  # an appended field without bottom
        b"\x92\xc4\x00\x91\x93\x08\x01\x92\xa5found\x80",  # a result that a peer does not send
        b"\x92\xc4\x00\x91\x92\x2d\x95\xa1d\xa1h\xa1m\xa0\x00",  # a member of no weight
        b"\x92\xc4\x00\x91\x97\x15\x01\xc4\x00\x03\xc4\x00\xc4\x00\x09",  # a comparison for a purpose that does not exist
    ],
    ids=range(11),
)
def test_hostile_frames_are_a_peers_error(payload):
    """Each of these would crash, or fill the memory of, a naive parser."""
    with pytest.raises(PeerError, match="does not parse"):
        decode_batch(payload)


def test_results_of_clients_are_not_messages():
    """What only clients are told has no form on the wire."""
    with pytest.raises(PeerError):
        decode_batch(messages.peers._encoder.encode([b"", [["stored", {}, [], 1, "a"]]]))
