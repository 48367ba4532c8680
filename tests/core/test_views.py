"""How large views are exchanged: by digest, by what is lacking, and by single changes on a common base."""

from __future__ import annotations

import pytest
from tests.core.moving import GRACE_S, Load, check_copies, filled, settle
from tests.core.wire import WALL_MS, Wire, history_of

from cartwheel.core.clock import reading
from cartwheel.core.config import BucketProps
from cartwheel.core.membership import META_RING, PUSH_INTERVAL_S
from cartwheel.core.membership.views import digest_of, has_more, lacking
from cartwheel.core.messages import (
    PROTOCOL_DIGESTS,
    BucketChanged,
    CountAsk,
    Gossip,
    PeerUp,
    ViewDigest,
    ViewPush,
    encode_batch,
)
from cartwheel.core.placement import Holding
from cartwheel.core.ring import Change, ChangeKind, History
from cartwheel.core.ring import ring as ring_module


def bucket_change(name: str, **props: str) -> Change:
    return Change(id=name, at=reading(WALL_MS), author="z", kind=ChangeKind.BUCKET, bucket="x", props=props)


@pytest.fixture
def wire() -> Wire:
    """All views count as large ones."""
    return Wire(["a", "b", "c"], view_bytes_whole=0)


def kinds(wire: Wire, src: str, dst: str) -> list[str]:
    """What was told of views, from one to another."""
    return [
        f"push of {len(History.decode(message.history)) if message.history else 0}"
        if isinstance(message, ViewPush)
        else "digest"
        for from_, to, message in wire.sent
        if (from_, to) == (src, dst) and isinstance(message, ViewPush | ViewDigest)
    ]


def test_a_change_is_told_alone_to_who_has_the_view_before(wire):
    """And to nobody else is told anything."""
    wire.sent.clear()
    assert wire.set_bucket("a", "x", w=1) == BucketChanged()
    assert kinds(wire, "a", "b") == kinds(wire, "a", "c") == ["push of 1"]
    assert not kinds(wire, "b", "a") + kinds(wire, "c", "b")
    assert len({node.epoch for node in wire.nodes.values()}) == 1


def test_a_change_on_another_base_waits_for_the_digest(wire):
    """A node that missed the change before does not take this one alone: it asks, and has both a moment later."""
    wire.lose = lambda src, dst, message: dst == "c"
    wire.set_bucket("a", "x", w=1)
    assert wire.nodes["c"].local.props("x") == BucketProps()
    wire.lose = lambda src, dst, message: dst == "a" and isinstance(message, ViewDigest)
    wire.set_bucket("a", "x", r=1)
    assert wire.nodes["c"].local.props("x") == BucketProps(), "not the later one alone"
    wire.lose = lambda src, dst, message: False
    wire.sent.clear()
    for _ in range(3):
        wire.advance(PUSH_INTERVAL_S)
    assert wire.nodes["c"].local.props("x") == BucketProps(r=1, w=1)
    told = [line for src in "ab" for line in kinds(wire, src, "c") if line.startswith("push")]
    assert set(told) == {"push of 2"}, "only what it lacks"


def test_both_sides_of_a_split_unite_by_digests(wire):
    """Each is told what it lacks."""
    wire.split("a", "bc")
    wire.set_bucket("a", "x", w=1)
    wire.set_bucket("b", "x", r=1)
    wire.set_bucket("c", "y", n=5)
    wire.heal()
    wire.pass_time(PUSH_INTERVAL_S)
    wire.sent.clear()
    wire.inject("a", "b", CountAsk(1, "0"), epoch=wire.nodes["a"].epoch)
    assert set(kinds(wire, "b", "a")) == {"digest", "push of 2"}
    assert set(kinds(wire, "a", "b")) == {"digest", "push of 1"}
    for _ in range(5):
        wire.advance(1)
    assert len({node.epoch for node in wire.nodes.values()}) == 1
    for node in wire.nodes.values():
        assert node.local.props("x") == BucketProps(r=1, w=1)
        assert node.local.props("y") == BucketProps(n=5)


def test_who_lacks_something_says_so_at_once(wire):
    """The one that shows its digest first may be the one that knows less."""
    wire.lose = lambda src, dst, message: dst == "c"
    wire.set_bucket("a", "x", w=1)
    wire.lose = lambda src, dst, message: False
    wire.pass_time(PUSH_INTERVAL_S)
    wire.sent.clear()
    wire.inject("c", "b", CountAsk(1, "0"), epoch=wire.nodes["c"].epoch)
    assert set(kinds(wire, "b", "c")) == {"digest", "push of 1"}
    assert set(kinds(wire, "c", "b")) == {"digest"}
    assert wire.nodes["c"].epoch == wire.nodes["b"].epoch


def test_a_peer_of_the_protocol_before_is_told_the_whole_view(wire):
    """It knows no digests; what it does not know at the end of a push it passes over."""
    wire.handle("a", PeerUp("b", PROTOCOL_DIGESTS - 1))
    wire.sent.clear()
    wire.set_bucket("a", "x", w=1)
    assert kinds(wire, "a", "b") == ["push of 4"]
    assert kinds(wire, "a", "c") == ["push of 1"]
    wire.pass_time(PUSH_INTERVAL_S)
    wire.sent.clear()
    wire.inject("b", "a", Gossip(), epoch=b"another")
    assert kinds(wire, "a", "b") == ["push of 4"]


def test_nothing_is_told_when_a_peer_with_the_same_view_is_back(wire):
    """But for the epoch."""
    wire.crash("c")
    wire.sent.clear()
    wire.restart("c")
    assert not [m for _, _, m in wire.sent if isinstance(m, ViewPush | ViewDigest)]


def test_a_ring_grows_and_shrinks_by_digests():
    """With holdings, too, while everybody writes and reads."""
    wire = filled("abc", view_bytes_whole=0)
    load = Load(wire)
    wire.join("d", "e", at="a")
    settle(wire, each=load.step)
    wire.change("d", "leave", "a")
    settle(wire, each=load.step)
    wire.advance(GRACE_S)
    load.check_all()
    check_copies(wire)


def test_what_is_lacking():
    """Changes and holdings, newer or not known at all."""
    ours = history_of(["a", "b"])
    more = ours.union([bucket_change("later", w="1")])
    old, new = Holding("a", 1, 8, {3: b"\x01"}), Holding("a", 2, 8, {3: b"\x03"})
    assert lacking(ours, {"a": old}, digest_of(more, {"a": new})) is None
    assert not has_more(digest_of(ours, {"a": old}), more, {"a": new})
    push = lacking(more, {"a": new}, digest_of(ours, {"a": old}))
    assert push is not None
    assert [change.id for change in History.decode(push.history)] == ["later"]
    assert push.holdings == [new]
    assert not push.whole
    assert has_more(digest_of(more, {}), ours, {"a": new})
    assert has_more(digest_of(ours, {"a": new}), more, {"a": old})
    assert has_more(digest_of(ours, {"a": new}), more, {})
    assert lacking(ours, {"a": new}, digest_of(ours, {})) == ViewPush(b"", [new], whole=False)


def test_a_digest_of_a_large_cluster_is_small():
    """1,000 members: 8 bytes for each change, and the names of those who have told what they hold."""
    history = history_of([f"n{i:03d}" for i in range(1000)])
    holdings = {f"n{i:03d}": Holding(f"n{i:03d}", 1, 1024, {3: bytes(128)}) for i in range(100)}
    assert len(encode_batch(b"", [digest_of(history, holdings)])) < 9000


@pytest.mark.parametrize("changes", [b"", b"short", b"x" * 4000])
def test_any_bytes_are_a_digest(wire, changes):
    """At worst of a view that has nothing in common with ours: all of it is lacking there, and something here."""
    wire.sent.clear()
    wire.inject("b", "a", ViewDigest(changes, {"q": 3}))
    assert kinds(wire, "a", "b")[0] == "push of 3"
    assert {node.local.members for node in wire.nodes.values()} == {3}


# --- after a restart --------------------------------------------------------------------------------------------------


def test_the_ring_is_not_folded_anew_at_a_start(monkeypatch):
    """A snapshot on the disk saves the claims of a long history; one that is damaged does no harm."""
    wire = filled("abc")
    wire.join("d", at="a")
    settle(wire)
    ring = wire.nodes["a"].local.ring
    claims = []
    honest = ring_module.claim
    monkeypatch.setattr(ring_module, "claim", lambda *args: claims.append(args) or honest(*args))
    for damage in (False, True):
        wire.stop("a")
        if damage:
            wire.engines["a"].apply([{}, {META_RING: b"damaged"}, {}], sync=True)
        ring_module._rings.clear()
        claims.clear()
        wire.restart("a")
        assert wire.nodes["a"].local.ring == ring
        assert (len(claims) > 1) is damage, "the founding ring is made in any case"
