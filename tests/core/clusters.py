"""Rings for tests: builders of changes, clusters for hypothesis, and dumb models to compare the ring with.

The models say what is meant in the slowest way.
"""

from __future__ import annotations

import math
from collections import Counter

import msgspec
from hypothesis import strategies as st

from cartwheel.core.ring import FOUNDING_END, Change, ChangeKind, History, Member
from cartwheel.core.ring import claim as claiming

# --- builders -------------------------------------------------------------------------------------------------------


def member(node, zone="", host="", weight=1.0):
    return Member(node=node, address=f"{node}:7702", host=host or f"host-of-{node}", zone=zone, weight=weight)


def join(at, node, **place):
    """A founding join, unless ``at`` is late."""
    return Change(id=f"c{at}", at=at, author="admin", kind=ChangeKind.JOIN, member=member(node, **place))


def about(at, kind, node="", **fields):
    return Change(id=f"c{at}", at=at, author="admin", kind=ChangeKind(kind), node=node, **fields)


def replace(at, node, new, *, barred=False, **place):
    return Change(f"c{at}", at, "admin", ChangeKind.REPLACE, node, member=member(new, **place), barred=barred)


def commit(at, *changes):
    """A commit of these changes, or of these ids."""
    ids = tuple(change if isinstance(change, str) else change.id for change in changes)
    return Change(id=f"k{at}", at=at, author="admin", kind=ChangeKind.COMMIT, changes=ids)


def abandon(at, *ids):
    return Change(id=f"k{at}", at=at, author="admin", kind=ChangeKind.ABANDON, changes=ids)


def one_by_one(changes):
    """The same changes after the founding, each committed by itself: one claim for each."""
    done = []
    for change in changes:
        at = change.at + FOUNDING_END
        change = Change(**{name: getattr(change, name) for name in change.__struct_fields__} | {"at": at})
        done += [change, Change(f"k{change.id}", at, "admin", ChangeKind.COMMIT, changes=(change.id,))]
    return done


def names(count):
    return [f"n{i:03}" for i in range(count)]


UP_TO_24 = st.integers(1, 24)
WEIGHTS = st.integers(1, 16).map(lambda quarters: quarters / 4)


@st.composite
def clusters(draw, nodes=UP_TO_24):
    """Joins of up to 24 nodes: weights from 0.25 to 4, up to 5 zones, up to 3 nodes on a host; all founding, or one by one."""
    zones, per_host = draw(st.integers(1, 5)), draw(st.integers(1, 3))
    joins = [
        join(at, node, zone=f"z{draw(st.integers(1, zones))}", host=f"h{at // per_host}", weight=draw(WEIGHTS))
        for at, node in enumerate(names(draw(nodes)))
    ]
    return joins if draw(st.booleans()) else one_by_one(joins)


@st.composite
def steps(draw):
    """A cluster and one more change to it, with its commit: a join, a leave, a removal or a reweigh."""
    joins = draw(clusters(st.integers(2, 24)))
    node = draw(st.sampled_from([change.subject for change in joins if change.member]))
    at = 1000
    last = draw(
        st.one_of(
            st.builds(join, st.just(at), st.just("new"), zone=st.sampled_from(["z1", "z2", "z9"]), weight=WEIGHTS),
            st.builds(about, st.just(at), st.sampled_from(["leave", "remove"]), st.just(node)),
            st.builds(about, st.just(at), st.just("reweigh"), st.just(node), weight=WEIGHTS),
        )
    )
    return joins, one_by_one([last])


RINGS = st.sampled_from([64, 128, 256])

NODES = st.sampled_from(["a", "b", "c", "d"])


def some_changes():
    """Any changes to four nodes, with equal times, equal ids and senseless orders among them; some joins are founding."""
    times = st.integers(0, 1) | st.integers(FOUNDING_END, FOUNDING_END + 3)
    common = {"id": st.sampled_from(["x", "y", "z", "w"]), "at": times, "author": NODES}
    zones = st.sampled_from(["", "z"])
    members = st.builds(member, NODES, zones, weight=WEIGHTS)
    ids = st.lists(st.sampled_from(["x", "y", "z", "w", "none"]), min_size=1, max_size=4)

    def of(kind, **fields):
        return st.builds(Change, **common, kind=st.just(kind), **fields)

    return st.one_of(
        of(ChangeKind.JOIN, member=members),
        of(ChangeKind.LEAVE, node=NODES) | of(ChangeKind.REMOVE, node=NODES),
        of(ChangeKind.REWEIGH, node=NODES, weight=WEIGHTS),
        of(ChangeKind.RELOCATE, node=NODES, host=st.sampled_from(["g", "h"]), zone=zones),
        of(ChangeKind.REPLACE, node=st.just("e"), member=members)
        | of(
            ChangeKind.REPLACE,
            node=st.just("a"),
            member=st.builds(member, st.sampled_from("bcd")),
            barred=st.booleans(),
        ),
        of(ChangeKind.DOUBLE),
        of(ChangeKind.ADDRESS, node=NODES, address=st.sampled_from(["there:1", "there:2"])),
        of(ChangeKind.COMMIT, changes=ids) | of(ChangeKind.COMMIT, changes=ids),
        of(ChangeKind.ABANDON, changes=ids),
        of(
            ChangeKind.BUCKET,
            bucket=st.sampled_from(["p", "q"]),
            props=st.dictionaries(st.sampled_from(["n", "r", "w"]), st.sampled_from(["1", "2"])),
        ),
    )


HISTORIES = st.lists(some_changes(), max_size=16).map(History)


# --- models and measures --------------------------------------------------------------------------------------------


def model_preference(ring, partition):
    """Choose entry by entry: the host used least, of those the zone used least in this round, of those the first met."""
    met = []
    for step in range(ring.q):
        owner = ring.owners[(partition + step) % ring.q]
        if owner not in met:
            met.append(owner)
    tokenless = [node for node in sorted(ring.members) if node not in met]
    for _ in range(partition % max(1, len(tokenless))):
        tokenless.append(tokenless.pop(0))
    met += tokenless
    chosen: list[str] = []
    place = {node: (ring.members[node].zone, ring.members[node].host) for node in met}
    while len(chosen) < len(met):

        def uses_of_host(node):
            return sum(place[other] == place[node] for other in chosen)

        def uses_of_zone(node):
            zone, turn = place[node][0], uses_of_host(node)
            rounds = [sum(place[b] == place[a] for b in chosen[:i]) for i, a in enumerate(chosen)]
            return sum(place[other][0] == zone and rounds[i] == turn for i, other in enumerate(chosen))

        rest = [node for node in met if node not in chosen]
        chosen.append(min(rest, key=lambda node: (uses_of_host(node), uses_of_zone(node), met.index(node))))
    return tuple(chosen)


def quota_bounds(ring):
    """For each node the fewest and the most tokens that its weight allows."""
    whole = math.fsum(m.weight for m in ring.members.values())
    shares = {node: ring.q * m.weight / whole for node, m in ring.members.items()}
    low = {node: math.floor(share + 1e-9) for node, share in shares.items()}
    if sum(max(1, tokens) for tokens in low.values()) <= ring.q:
        low = {node: max(1, tokens) for node, tokens in low.items()}
    return {node: (low[node], max(low[node], math.ceil(share - 1e-9))) for node, share in shares.items()}


def moved_and_least(before, after):
    """Tokens that changed hands, and how many had to, given how many each node has now."""
    had, has = Counter(before), Counter(after)
    moved = sum(a != b for a, b in zip(before, after, strict=True))
    return moved, sum(max(0, has[node] - had[node]) for node in has)


def places_of(ring):
    zones = sorted({m.zone for m in ring.members.values()})
    hosts = sorted({(m.zone, m.host) for m in ring.members.values()})
    return [(zones.index(m.zone), hosts.index((m.zone, m.host))) for m in ring.members.values()]


def replica_loads(ring, n=3):
    """Node -> (in how many lists it is among the first n, in how many it should be)."""
    loads = Counter(node for partition in range(ring.q) for node in ring.preference(partition)[:n])
    weights = [round(m.weight * 1000) for m in ring.members.values()]
    targets = claiming.replica_targets(ring.q, weights, places_of(ring))
    return {node: (loads[node], target) for node, target in zip(ring.members, targets, strict=True)}


def excess(ring):
    """How far the worst replica load is off, as a fraction, beyond the one token's worth (3) that is always allowed."""
    return max((abs(load - target) - 3) / max(1, target) for load, target in replica_loads(ring).values())


def model_members(q, history):
    """(Members, removed ids, staged changes, q), by the rules of ``history`` read one at a time."""
    order = list(history)
    at_once = {ChangeKind.BUCKET, ChangeKind.ADDRESS, ChangeKind.COMMIT, ChangeKind.ABANDON}
    founding = [c for c in order if c.kind is ChangeKind.JOIN and c.at < FOUNDING_END]
    waiting = [c for c in order if c.kind not in at_once and c not in founding]
    script = list(founding)
    for record in order:
        if record.kind is ChangeKind.COMMIT:
            for name in record.changes:
                found = [c for c in waiting if c.id == name]
                script += found
                waiting = [c for c in waiting if c not in found]
    abandoned = {name for c in order if c.kind is ChangeKind.ABANDON for name in c.changes}
    members, came, removed = {}, {}, set()
    for c in script:
        here = members.get(c.node)
        match c.kind:
            case ChangeKind.JOIN if c.member.node not in members and c.member.node not in removed:
                members[c.member.node], came[c.member.node] = c.member, c
            case ChangeKind.REPLACE if here and c.member.node not in members and c.member.node not in removed:
                del members[c.node]
                members[c.member.node] = msgspec.structs.replace(c.member, weight=here.weight)
                came[c.member.node] = c
                removed |= {c.node} if c.barred else set()
            case ChangeKind.REWEIGH if here:
                members[c.node] = msgspec.structs.replace(here, weight=c.weight)
            case ChangeKind.RELOCATE if here:
                members[c.node] = msgspec.structs.replace(here, host=c.host, zone=c.zone)
            case ChangeKind.LEAVE | ChangeKind.REMOVE:
                members.pop(c.node, None)
                removed |= {c.node} if c.kind is ChangeKind.REMOVE else set()
            case ChangeKind.DOUBLE:
                q *= 2 if q < 65536 else 1
    for node, m in members.items():
        since = order[order.index(came[node]) :]
        doors = [c.address for c in since if c.kind is ChangeKind.ADDRESS and c.node == node]
        members[node] = msgspec.structs.replace(m, address=[m.address, *doors][-1])
    staged = tuple(c for c in order if c in waiting and c.id not in abandoned)
    return dict(sorted(members.items())), removed, staged, q
