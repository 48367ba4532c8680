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
    Failure,
    Forward,
    Forwarded,
    HistoryPush,
    Message,
    PutRequest,
    ReplicaRead,
    ReplicaRefused,
    ReplicaRepair,
    ReplicaValue,
    ReplicaWrite,
    ReplicaWrote,
    ScanAsk,
    ScanPage,
    Stored,
    decode_batch,
    encode_batch,
)
from cartwheel.core.versions import Record, Version

ids = st.integers(0, 2**64 - 1)
small = st.integers(0, 2**31)
readings = st.integers(0, 2**63)
blobs = st.binary(max_size=30)
texts = st.text(max_size=12)
clocks = st.dictionaries(texts, readings, max_size=3)
dots = st.lists(st.tuples(texts, readings), max_size=3).map(tuple)
found_versions = st.builds(Version, texts, readings, st.none() | blobs, readings, blobs)
records = st.builds(Record, clocks, st.lists(found_versions, max_size=3).map(tuple))
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

STRATEGIES: dict[type, st.SearchStrategy[Message]] = {
    ReplicaWrite: st.builds(ReplicaWrite, st.lists(ids), blobs, blobs, st.integers(0, 2), readings),
    ReplicaWrote: st.builds(ReplicaWrote, st.lists(ids, max_size=4)),
    ReplicaRefused: st.builds(ReplicaRefused, ids, texts),
    ReplicaRead: st.builds(ReplicaRead, ids, blobs),
    ReplicaValue: st.builds(ReplicaValue, ids, st.none() | blobs),
    ReplicaRepair: st.builds(ReplicaRepair, blobs, blobs),
    Forward: st.builds(Forward, ids, puts),
    Forwarded: st.builds(Forwarded, ids, results),
    ScanAsk: st.builds(ScanAsk, ids, texts, blobs, st.none() | blobs, small),
    ScanPage: st.builds(ScanPage, ids, st.lists(st.tuples(blobs, records), max_size=3), st.none() | blobs),
    CountAsk: st.builds(CountAsk, ids, texts),
    Counts: st.builds(Counts, ids, st.dictionaries(small, small, max_size=3)),
    HistoryPush: st.builds(HistoryPush, blobs),
}
batches = st.lists(st.one_of(*STRATEGIES.values()), max_size=4)

RECORD = Record({"b/1": 5}, (Version("b/1", 5, b"", 9, b"q"),))
PUT = PutRequest("0", b"k", b"v", {"b/1": 5, "a/1": 4}, 2, 9, b"q", 0.5, "b", (("c/1", 7),))
GOLDEN: list[tuple[Message, str]] = [
    (ReplicaWrite([1, 2], b"at", b"sealed", 2, 300), "9601920102c4026174c4067365616c656402cd012c"),
    (ReplicaWrote([1, 1 << 40]), "92029201cf0000010000000000"),
    (ReplicaRefused(1, "why"), "930301a3776879"),
    (ReplicaRead(1, b"at"), "930401c4026174"),
    (ReplicaValue(1, b"sealed"), "930501c4067365616c6564"),
    (ReplicaValue(1, None), "930501c0"),
    (ReplicaRepair(b"at", b"sealed"), "9306c4026174c4067365616c6564"),
    (Forward(1, PUT), "9307019aa130c4016bc4017682a3622f3105a3612f31040209c40171cb3fe0000000000000a1629192a3632f3107"),
    (Forward(1, PutRequest("0", b"k", None)), "9307019aa130c4016bc0c00000c400cb0000000000000000a090"),
    (Forwarded(1, Stored({"b/1": 5}, (("c/1", 7),), 2, "b")), "93080195a673746f72656481a3622f31059192a3632f310702a162"),
    (Forwarded(1, Failure(Code.NOQUORUM, "why", True)), "93080194a76661696c757265a84e4f51554f52554da3776879c3"),
    (ScanAsk(1, "0", b"from", None, 10), "960901a130c40466726f6dc00a"),
    (ScanPage(1, [(b"at", RECORD)], b"here"), "940a019192c40261749281a3622f31059195a3622f3105c40009c40171c40468657265"),
    (CountAsk(1, "0"), "930b01a130"),
    (Counts(1, {3: 7}), "930c01810307"),
    (HistoryPush(b"history"), "920dc407686973746f7279"),
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
    ],
    ids=range(9),
)
def test_hostile_frames_are_a_peers_error(payload):
    """Each of these would crash, or fill the memory of, a naive parser."""
    with pytest.raises(PeerError, match="does not parse"):
        decode_batch(payload)


def test_results_of_clients_are_not_messages():
    """What only clients are told has no form on the wire."""
    with pytest.raises(PeerError):
        decode_batch(messages._encoder.encode([b"", [["stored", {}, [], 1, "a"]]]))
