"""Whom to ask: the first N healthy nodes of the preference list (section 4.6).

    preference list    A   B   C | D   E          N = 3: A, B, C own the key; D, E are its fallbacks, in this order
    B is unhealthy     A   .   C   D              D stands in for B: what it is given it keeps as a hint for B

The i-th unhealthy owner is stood in for by the i-th healthy fallback, those first that cannot be reached at all. So coordinators
that see the same nodes fail choose the same fallbacks, and a get finds there what a put has left. Where healthy fallbacks run
out, nodes that seem unhealthy, but which the transport can reach, are asked all the same: late is better than never.

While a partition changes hands (``placement``), a put goes to its gainers besides (``also``): the second half of a pair has its
copy before the pair's slot counts. Where one half cannot be reached the other keeps its copy as a hint, too.

Invariants: ``asked`` names each node once; ``intended`` maps the fallbacks among them, and gainers that stand in, to distinct
owners, and a giver that stands in for its gainer to that.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import NamedTuple

from cartwheel.core.local import Local
from cartwheel.core.placement import NOBODY, Slots
from cartwheel.core.types import NodeId


class Targets(NamedTuple):
    """Whom a request asks."""

    owners: tuple[NodeId, ...]
    asked: Sequence[NodeId]
    intended: dict[NodeId, NodeId]
    """Fallback -> the owner it stands in for."""
    slots: Slots
    also: Sequence[NodeId] = ()
    """Gainers that are sent a put, and stand in for nobody."""


_usual: dict[tuple[NodeId, ...], Targets] = {}
"""The owners of settled slots -> all of them: the usual case, every owner is healthy."""
USUAL_MAX = 4096


def _all_of(slots: Slots) -> Targets:
    owners = slots.owners
    if slots.moving:
        return Targets(owners, owners, NOBODY, slots)
    found = _usual.get(owners)
    if found is None:
        if len(_usual) >= USUAL_MAX:
            _usual.clear()
        found = _usual[owners] = Targets(owners, owners, NOBODY, slots)
    return found


def choose(local: Local, record_key: bytes, n: int, fit: Collection[NodeId], *, me_fit: bool = True) -> Targets:
    """The first n healthy nodes: those of ``fit``, and this one if ``me_fit``."""
    slots = local.slots(record_key, n)
    owners = slots.owners
    if me_fit and len(fit) + 1 >= local.size:
        return _all_of(slots)
    me = local.node
    asked: list[NodeId] = []
    lost: list[NodeId] = []
    doubtful: list[NodeId] = []
    for owner in owners:
        if me_fit if owner == me else owner in fit:
            asked.append(owner)
        else:
            (doubtful if owner in local.reachable else lost).append(owner)
    missing = lost + doubtful  # the latter can do without a stand-in, if need be
    if not missing:
        return _all_of(slots)
    intended: dict[NodeId, NodeId] = {}
    fallbacks = local.fallbacks(record_key, n)
    for fallback in fallbacks:
        if me_fit if fallback == me else fallback in fit:
            intended[fallback] = missing[len(intended)]
            asked.append(fallback)
            if len(intended) == len(missing):
                break
    if len(asked) < len(owners):
        _ask_the_doubtful(local, fallbacks, asked, intended, missing[len(intended) :])
    return Targets(owners, asked, intended, slots)


def with_gainers(local: Local, targets: Targets, fit: Collection[NodeId], *, me_fit: bool) -> Targets:
    """The same for a put to a partition that changes hands: it goes to the gainers, too.

    A gainer that cannot be reached is stood in for by its giver, which keeps the hint beside its own copy. A gainer that stands
    in for an owner has its own copy by the same message. A blank owner that cannot be reached learns of the put when it catches
    up.
    """
    slots, me = targets.slots, local.node
    intended, also = dict(targets.intended), []
    for giver, gainer in slots.gainers.items():
        if gainer in intended:
            continue
        if me_fit if gainer == me else gainer in fit:
            also.append(gainer)
        elif giver in targets.asked:
            intended[giver] = gainer
    also += [blank for blank in slots.blanks if blank not in intended and (blank == me or blank in fit)]
    return Targets(targets.owners, targets.asked, intended, slots, also)


def _ask_the_doubtful(
    local: Local,
    fallbacks: Sequence[NodeId],
    asked: list[NodeId],
    intended: dict[NodeId, NodeId],
    missing: list[NodeId],
) -> None:
    """No healthy fallback is left for these owners: ask them all the same, if the transport can; for the others, fallbacks that
    seem unhealthy, too. Late is better than never."""
    asked += [owner for owner in missing if owner in local.reachable]
    lost = [owner for owner in missing if owner not in local.reachable]
    for fallback in fallbacks:
        if lost and fallback not in asked and fallback in local.reachable:
            intended[fallback] = lost.pop(0)
            asked.append(fallback)


def next_fallback(
    local: Local, record_key: bytes, n: int, asked: Collection[NodeId], fit: Collection[NodeId]
) -> NodeId | None:
    """One more fallback, for a node asked that does not answer: a healthy one, or else any in reach."""
    for candidates in (fit, local.reachable):
        for node in local.fallbacks(record_key, n):
            if node not in asked and node in candidates:
                return node
    return None
