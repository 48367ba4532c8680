"""The replica's own decisions: whose clocks it follows, and which it refuses."""

from __future__ import annotations

import pytest
from tests.core.hinted import READING, record_of
from tests.core.wire import Wire

from cartwheel.core import versions
from cartwheel.core.messages import ReplicaRefused, ReplicaWrite, ReplicaWrote
from cartwheel.core.storage import record_key, seal
from cartwheel.core.types import Durability


@pytest.mark.parametrize(
    ("reconcile", "ahead_ms", "taken", "followed"),
    [
        ("siblings", 499, True, True),
        ("siblings", 60_000, True, False),
        ("lww", 499, True, True),
        ("lww", 60_000, False, False),
    ],
)
def test_a_clock_too_far_ahead_is_not_followed(reconcile, ahead_ms, taken, followed):
    """And refused only where the last writer wins: there its write would outdo all that come later."""
    wire = Wire(["a", "b"])
    wire.set_bucket("a", "k", reconcile=reconcile)
    reading = READING + (ahead_ms << 16)
    at = record_key("k", b"k")
    sealed = seal(at, versions.encode(record_of(b"v", ahead_ms << 16)))
    wire.sent.clear()
    wire.inject("b", "a", ReplicaWrite([7], at, sealed, Durability.SYNC, reading))
    answers = [message for src, _, message in wire.sent if src == "a"]
    assert any(isinstance(message, ReplicaWrote) for message in answers) is taken
    assert any(isinstance(message, ReplicaRefused) for message in answers) is not taken
    assert bool(wire.values("a", b"k", "k")) is taken
    local = wire.nodes["a"].local
    assert (local.clock.last >= reading) is followed
    assert local.counters["clock_skew"] == (not followed)
