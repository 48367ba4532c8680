"""Planted bugs of a ring that changes: views, hand-over, and what is left over."""

from __future__ import annotations

import math
from typing import Any

from cartwheel.core import local, replica
from cartwheel.core.coordinator import puts
from cartwheel.core.coordinator.writing import Writing
from cartwheel.core.membership import Membership
from cartwheel.core.messages import PutRequest, ViewPush
from cartwheel.core.placement import Holding, Placement
from cartwheel.core.ring import History
from cartwheel.core.transfer import gains, leftovers
from cartwheel.core.types import NodeId
from cartwheel.sim.acts import Act, ActKind
from cartwheel.sim.bugs.registry import Patch, bug
from cartwheel.sim.faults import Kind
from cartwheel.sim.network import Weather

_ADMINS = ("n2", "n3")
_MOVING: dict[str, Any] = {
    "nodes": ("n1", "n2", "n3", "n4", "n5", "n6"), "joiners": ("n5", "n6"), "passing": ("n1",), "n": 3, "r": 2, "w": 2,
    "clock_offset_ms": (0,) * 6, "clock_drift": (0.0,) * 6, "keys": 60, "ops_per_s": 80.0, "processes": 16, "victim": "",
    "workload": "registers", "reconcile": "siblings", "durability": "sync",
    "acts": (
        Act(4.0, ActKind.JOIN, "n5", _ADMINS), Act(8.0, ActKind.JOIN, "n6", _ADMINS[::-1]),
        Act(12.0, ActKind.LEAVE, "n1", _ADMINS), Act(16.0, ActKind.REWEIGH, "n4", _ADMINS, weight=3.0),
    ),
}  # fmt: skip
_CALM: dict[str, Any] = {
    **_MOVING, "profile": "calm", "stutter": 0.0, "mix": (), "weather": Weather(0.005, 0.005), "sync_s": 0.004,
}  # fmt: skip
"""Nothing disturbs but the moves: every get must see what was acknowledged before."""
_HOT: dict[str, Any] = {
    **_CALM, "keys": 3, "ops_per_s": 300.0, "processes": 40, "weather": Weather(0.002, 0.015, ordered=False),
}  # fmt: skip
"""Some keys are always being written while their slots change."""
_TWO_ADMINS: dict[str, Any] = {
    **_CALM, "passing": (), "weather": Weather(0.01, 0.01),
    "acts": (
        Act(4.0, ActKind.REWEIGH, "n1", ("n2",), weight=2.0), Act(4.0, ActKind.REWEIGH, "n4", ("n3",), weight=3.0),
        Act(8.0, ActKind.JOIN, "n5", ("n2",)), Act(8.0, ActKind.REWEIGH, "n1", ("n3",)),
    ),
}  # fmt: skip
_ROUGH: dict[str, Any] = {
    **_MOVING, "profile": "network", "mix": ((Kind.CUT, 30.0), (Kind.PAUSE, 10.0)), "weather": Weather(0.001, 0.01, loss=0.1),
}  # fmt: skip


@bug("FRESH", "C5", "C2", "C3", "C4", trap=(22,), **_CALM)
def joiner_counts_at_once() -> list[Patch]:
    """Whoever the ring names counts at once: a joiner answers that it never heard of keys that are long stored."""
    return [(Placement, "holds", lambda self, node, n, partition: node not in self.removed)]


@bug("FRESH", "C2", "C3", "C4", "C5", trap=(22,), **_CALM)
def gainer_does_not_catch_up() -> list[Patch]:
    """A gainer asks to be counted before it has compared anything; what it lacks comes some time later."""
    return [(gains.Gains, "_is_compared", lambda self, gaining, source: True)]


@bug("C7", "C2", "C5", "C9", "FRESH", "C3", "C4", trap=(23,), **_CALM)
def giver_forgets_at_once() -> list[Patch]:
    """The giver removes its records as soon as it has given the partition, whatever the new owner has of it."""

    def compare(self: leftovers.Leftovers, placement: Placement) -> None:
        for part in self._parts:
            if part not in self._removing:
                self._safe_s.setdefault(part, 0.0)
                self._removing[part] = placement.ring.bounds(part[1])[0]

    return [
        (gains.Gains, "_is_compared", lambda self, gaining, source: True),
        (leftovers.Leftovers, "_maybe_compare", compare),
    ]


@bug("FRESH", "C3", "C4", trap=(21,), **_HOT)
def views_are_not_compared() -> list[Patch]:
    """A replica answers whoever asks, though the coordinator sees other owners: a giver completes quorums for those that do not
    know yet that it is none any more. (Views are told every few seconds only, as in a large cluster: else they soon agree.)"""

    def tell(self: Membership, holding: Holding) -> None:
        self._adopt(self._history, [holding], keep=False)

    def epoch(self: Membership, src: NodeId, epoch: bytes) -> None:
        if self._local.now_s - self._pushed.get(src, (b"", b"", -math.inf))[2] >= 3.0:
            honest(self, src, epoch)

    honest = Membership.handle_epoch
    return [
        (replica.Replica, "_agrees", lambda self, record_key, tag: True),
        (Membership, "_tell_holding", tell),
        (Membership, "handle_epoch", epoch),
    ]


@bug("MOVE", "C5", "UP", trap=(21,), **_TWO_ADMINS)
def longer_history_wins() -> list[Patch]:
    """Where two histories meet, the longer one is kept, and not the union: what the other administrator did is lost."""

    def push(self: Membership, src: NodeId, message: ViewPush) -> None:
        theirs = History.decode(message.history) if message.history else self._history
        if len(theirs) > len(self._history):
            self._history = History(list(theirs)[:1])  # so that what is united with it is theirs alone
        elif message.history:
            message = ViewPush(b"", message.holdings)
        honest(self, src, message)

    honest = Membership.handle_push
    return [(Membership, "handle_push", push)]


@bug("C8", "C5", "MOVE", "FRESH", "C3", "C4", "UP", trap=(24,), **_CALM)
def any_holding_is_news() -> list[Patch]:
    """What a node holds is taken from any message, however old: a partition that was given comes back to the giver."""
    return [(Membership, "_is_news", lambda self, holding: self._holdings.get(holding.node) != holding)]


@bug("C7", trap=(18,), **_CALM)
def moved_put_is_stamped_anew() -> list[Patch]:
    """A put whose slots change under way is coordinated once more from the beginning: two dots of one write, false siblings."""
    start = puts.Puts.put

    def restart(self: puts.Puts, writing: Writing) -> None:
        put: PutRequest = writing.put
        start(self, type(put)(put.bucket, put.key, put.value, put.context, put.w, put.expires_at_ms, b""), writing.done)

    return [(puts.Puts, "restart", restart)]


@bug("C7", trap=(3,), **_ROUGH)
def given_away_without_stint() -> list[Patch]:
    """A node that has given records away goes on as the same actor, though it has forgotten its dots on them."""
    new = local.Local.start_stint

    def start(self: local.Local, reason: str) -> None:
        if reason != "given_away":
            new(self, reason)

    return [(local.Local, "start_stint", start)]


@bug("C5", "C6", "MOVE", trap=(25,), **_ROUGH)
def leaver_goes_before_it_is_done() -> list[Patch]:
    """A node that leaves says that it is gone as soon as it has left the ring: nobody listens to it any more, and what it has not
    handed over stays with it."""

    def look(self: leftovers.Leftovers, placement: Placement) -> None:
        honest(self, placement)
        if self._local.node in placement.leaving:
            self._leave()

    honest = leftovers.Leftovers._look
    return [(leftovers.Leftovers, "_look", look)]
