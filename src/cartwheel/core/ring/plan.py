"""The plan of a change: what a commit would move and what the ring would be like, before anyone commits it.

Dynamo section 4.8.1 has an administrator "issue a membership change". What that costs follows from two rings, the one that is
and the one that would be (``fold`` of the history with the commit in it), so ``plan`` compares any two. For each partition it
compares the first n entries of the preference lists::

    before   A B C        B has lost the partition, D has gained it: one row (giver B, gainer D), and each such
    after    A D C        partition counts one *move*: one node has to be sent the records of one partition

The losers, in the order of the old list, are paired with the gainers, in the order of the new one; a gainer without a loser has
"" for its giver. The hand-over may let another holder do the sending: the number of moves stays. After a ``double`` a partition
is compared with the one it came from, and all numbers count partitions of the finer ring.

**The least.** No ring that follows the weights could be had with fewer moves than the greater of these two:

- each node has to gain what its fair share grows by, unless it holds that much already;
- each partition needs a new holder for each of its replicas that is on no member any more, or that the cluster was too small for.

A *warning* is what an administrator should know; a *refusal* is a ring that they should not have. Whoever runs the plan decides.

Pure. O(q * n) once the lists are made. For display only: nothing here decides a placement, so floats are harmless.
"""

from __future__ import annotations

from collections import Counter
from typing import Final

import msgspec

from cartwheel.core.ring.claim import REPLICAS, divide, replica_targets
from cartwheel.core.ring.ring import Ring, places_of
from cartwheel.core.types import NodeId

DEVIATION_PERCENT_MAX: Final = 5.0
"""A replica load further than this from the fair share is worth a warning."""


class Transfer(msgspec.Struct, frozen=True):
    """So many partitions that ``gainer`` gains while ``giver`` loses them; "" if nobody does."""

    giver: NodeId
    gainer: NodeId
    partitions: int


class Share(msgspec.Struct, frozen=True):
    """What a node of either ring has of each. Weight and place are those after the change, for a node that goes the last ones."""

    node: NodeId
    zone: str
    host: str
    weight: float
    primaries_before: int
    primaries_after: int
    replicas_before: int
    replicas_after: int
    fair: int  # how many partitions it should be a replica of, after the change; 0 if it goes
    deviation_percent: float  # of replicas_after from fair


class Plan(msgspec.Struct, frozen=True):
    """What a change of the ring means."""

    n: int
    q_before: int
    q: int
    members_before: int
    members: int
    transfers: tuple[Transfer, ...]
    moves: int  # the sum of all transfers
    least: int  # the least possible number of moves
    ratio: float | None  # moves / least; None if nothing had to move, but something does
    moves_by_giver: dict[NodeId, int]  # times what a partition weighs at the giver: the bytes to be sent
    shares: tuple[Share, ...]
    warnings: tuple[str, ...]
    refusals: tuple[str, ...]


def plan(before: Ring, after: Ring, *, n: int = 3) -> Plan:
    """Compare two rings of one cluster, of which ``after`` may be the finer one, for buckets with ``n`` replicas."""
    assert n >= 1, "a bucket has a replica at least"
    assert after.q % before.q == 0, "rings are only ever doubled"
    old = [before.owners_of(partition * before.q // after.q, n) for partition in range(after.q)]
    new = [after.owners_of(partition, n) for partition in range(after.q)]
    transfers = _transfers(old, new)
    shares = _shares(before, after, old, new, n)
    moves, least = sum(transfer.partitions for transfer in transfers), _least(before, after, old, n)
    by_giver: Counter[NodeId] = Counter()
    for transfer in transfers:
        by_giver[transfer.giver] += transfer.partitions
    return Plan(
        n=n,
        q_before=before.q,
        q=after.q,
        members_before=len(before.members),
        members=len(after.members),
        transfers=transfers,
        moves=moves,
        least=least,
        ratio=round(moves / least, 3) if least else None if moves else 1.0,
        moves_by_giver=dict(sorted(by_giver.items())),
        shares=shares,
        warnings=(*_of_numbers(after, old, new, n), *_of_places(after, new, n), *_of_shares(shares)),
        refusals=_refusals(before, after, new, n),
    )


_Lists = list[tuple[NodeId, ...]]


def _transfers(old: _Lists, new: _Lists) -> tuple[Transfer, ...]:
    rows: Counter[tuple[NodeId, NodeId]] = Counter()
    for was, will in zip(old, new, strict=True):
        if was == will:
            continue
        losers = iter([node for node in was if node not in will])
        for gainer in will:
            if gainer not in was:
                rows[next(losers, ""), gainer] += 1
    return tuple(Transfer(giver, gainer, rows[giver, gainer]) for giver, gainer in sorted(rows))


def fair_shares(ring: Ring, q: int, n: int) -> dict[NodeId, int]:
    """How many of ``q`` partitions each member should be among the first n of: by weight, as far as the lists allow.

    For the n that the claim plans for, zones and hosts are taken into account; for others, only that no node is twice in a list.
    """
    weights = [round(member.weight * 1000) for member in ring.members.values()]
    if n == REPLICAS and len(weights) >= REPLICAS:
        return dict(zip(ring.members, replica_targets(q, weights, places_of(ring.members)), strict=True))
    return dict(zip(ring.members, divide(min(n, len(weights)) * q, weights, q), strict=True))


def _least(before: Ring, after: Ring, old: _Lists, n: int) -> int:
    held = Counter(node for was in old for node in was)
    fair_before, fair = fair_shares(before, after.q, n), fair_shares(after, after.q, n)
    grown = sum(max(0, fair[node] - max(held[node], fair_before.get(node, 0))) for node in fair)
    length = min(n, len(after.members))
    bereft = sum(max(0, length - sum(node in after.members for node in was)) for was in old)
    return max(grown, bereft)


def _shares(before: Ring, after: Ring, old: _Lists, new: _Lists, n: int) -> tuple[Share, ...]:
    fair = fair_shares(after, after.q, n)
    primaries = [Counter(was[0] for was in old if was), Counter(will[0] for will in new if will)]
    replicas = [Counter(node for was in lists for node in was) for lists in (old, new)]
    members = {**before.members, **after.members}
    shares = []
    for node in sorted(members):
        member, due, has = members[node], fair.get(node, 0), replicas[1][node]
        shares.append(
            Share(
                node=node,
                zone=member.zone,
                host=member.host,
                weight=member.weight,
                primaries_before=primaries[0][node],
                primaries_after=primaries[1][node],
                replicas_before=replicas[0][node],
                replicas_after=has,
                fair=due,
                deviation_percent=round(100 * (has - due) / due, 1) if due else 0.0,
            )
        )
    return tuple(shares)


def _refusals(before: Ring, after: Ring, new: _Lists, n: int) -> tuple[str, ...]:
    members = len(after.members)
    found = []
    if not members:
        found.append("no member is left")
    elif members < n <= len(before.members):
        found.append(f"only {_count(members, 'node')} would be left for n={n}")
    zone_of = {node: member.zone for node, member in after.members.items()}
    most = min(n, len(set(zone_of.values())))
    bad = sum(len({zone_of[node] for node in will}) < most for will in new)
    if bad:
        found.append(f"{_count(bad, 'partition')} would have two replicas in one zone while another zone has none")
    return tuple(found)


def _of_numbers(after: Ring, old: _Lists, new: _Lists, n: int) -> list[str]:
    """Warnings that follow from how many nodes and partitions there are."""
    found = []
    if 0 < len(after.members) < n:
        found.append(f"only {_count(len(after.members), 'node')} for n={n}")
    lost = sum(bool(was) and not set(was) & set(will) for was, will in zip(old, new, strict=True))
    if lost:
        found.append(
            f"{_count(lost, 'partition')} would keep none of the present replicas: no node that is removed can hand over"
        )
    owning = set(after.owners)
    found += [f"{node} owns no partition: there are too few for it" for node in after.members if node not in owning]
    return found


def _of_places(after: Ring, new: _Lists, n: int) -> list[str]:
    """Warnings that follow from where the nodes stand."""
    members = after.members
    zones = sorted({member.zone for member in members.values()})
    found = []
    if len(zones) > 1 and "" in zones:
        found += [f"{node} has no zone while others have" for node, member in members.items() if not member.zone]
    in_zone: Counter[tuple[str, int]] = Counter()
    on_host: Counter[tuple[str, str]] = Counter()
    for will in new:
        in_zone.update(Counter(members[node].zone for node in will).items())
        hosts = Counter((members[node].zone, members[node].host) for node in will)
        on_host.update(host for host, copies in hosts.items() if copies > 1)
    if 1 < len(zones) < min(n, len(members)):
        for (zone, copies), partitions in sorted(in_zone.items()):
            if copies > 1:
                found.append(
                    f"{len(zones)} zones for {n} replicas: losing zone {zone or repr(zone)} loses {copies} of {n} copies "
                    f"of {_count(partitions, 'partition')}"
                )
    elif zones not in ([], [""]) and len(zones) == 1 < len(members):
        found.append(f"all nodes are in zone {zones[0]}: losing it loses every copy")
    for (zone, host), partitions in sorted(on_host.items()):
        where = f"host {host or repr(host)}" + (f" in zone {zone}" if zone else "")
        found.append(f"{where} holds more than one replica of {_count(partitions, 'partition')}")
    return found


def _of_shares(shares: tuple[Share, ...]) -> list[str]:
    return [
        f"{share.node} would hold {share.replicas_after} replicas, {share.deviation_percent:+.1f} % off its fair {share.fair}"
        for share in shares
        if abs(share.deviation_percent) > DEVIATION_PERCENT_MAX
    ]


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"
