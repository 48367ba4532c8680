"""Administration: an operator's changes are staged, shown as a plan, and committed together, or abandoned (section 4.8.1).

    ClientStage ──> checked here, staged in the history ──> every node knows it
    plan()      ──> the ring now, and as it would be: who gives what to whom, how even, what to mind
    ClientCommit (the plan's digest) ──> refused if the plan has changed since, would harm, or a member does not answer
    ClientAbandon

Staged changes are records in the history like any other: any node can plan and commit what was staged at another. Two operators
who commit at once, even on two sides of a split, end in one ring: the fold of the united history.
"""

from __future__ import annotations

import hashlib
from typing import Any

import msgspec

from cartwheel.core.errors import Code
from cartwheel.core.local import Local
from cartwheel.core.membership import Membership
from cartwheel.core.messages import (
    Administered,
    ClientAbandon,
    ClientCommit,
    ClientJoin,
    ClientStage,
    Failure,
    PlanTold,
)
from cartwheel.core.ring import Change, ChangeKind, Folded, History, Ring, fold
from cartwheel.core.ring.plan import Plan, plan
from cartwheel.core.storage import Space
from cartwheel.core.types import Durability, NodeId

PLAN_N = 3
"""The n that plans are made for: the default, and what the claim balances."""
OF_MEMBERS = (ChangeKind.LEAVE, ChangeKind.REWEIGH, ChangeKind.RELOCATE, ChangeKind.REPLACE)


class Invalid(Exception):
    """The change makes no sense now; the text says why."""


class Administration:
    """What operators do."""

    def __init__(self, local: Local, membership: Membership) -> None:
        self._local = local
        self._membership = membership
        self._planned: tuple[Folded, Ring, Plan] | None = None  # the last one: of what, the ring after it, the plan

    # --- staging ---

    def stage(self, event: ClientStage) -> None:
        """Add a staged change to the history."""
        local = self._local
        try:
            change = self._stage(event)
        except (Invalid, ValueError) as error:
            local.reply(event.client, Failure(Code.INVALID, str(error)))
            return
        text = f"staged: {describe(change)}"
        local.reply(event.client, Administered(text, [change.id]), Durability.SYNC)

    def _stage(self, event: ClientStage) -> Change:
        folded = self._membership.folded
        members, node = folded.ring.members, event.node
        try:
            kind = ChangeKind(event.kind)
        except ValueError:
            raise Invalid(f"there is no change {event.kind!r}") from None
        if not self._local.is_member:
            raise Invalid(f"{self._local.node} is no member of the cluster: ask one that is")
        if kind in OF_MEMBERS and node not in members:
            raise Invalid(f"{node!r} is no member; members are {', '.join(members)}")
        if kind is ChangeKind.RELOCATE and not event.host:
            event = msgspec.structs.replace(event, host=members[node].host)
        if any(describe(change) == describe_event(kind, event) for change in folded.staged):
            raise Invalid(f"that is staged already: {describe_event(kind, event)}")
        fields: dict[str, Any] = {"node": node}
        if kind is ChangeKind.REWEIGH:
            fields["weight"] = event.weight
        elif kind is ChangeKind.RELOCATE:
            fields |= {"host": event.host, "zone": event.zone}
        elif kind is ChangeKind.REPLACE:
            return self._replace(event, folded.staged)
        elif kind is ChangeKind.REMOVE:
            if node in folded.removed:
                raise Invalid(f"{node!r} is removed already")
            if node not in members and not self._local.is_peer(node):
                raise Invalid(f"{node!r} is no member, and never was")
        elif kind is ChangeKind.DOUBLE:
            fields = {}
        elif kind is not ChangeKind.LEAVE:
            raise Invalid(f"a change of the kind {event.kind!r} is not staged by hand")
        return self._membership.add(kind, **fields)

    def _replace(self, event: ClientStage, staged: tuple[Change, ...]) -> Change:
        """The new node has asked to join: instead, it takes over what the old one has."""
        join = next((c for c in staged if c.kind is ChangeKind.JOIN and c.subject == event.other), None)
        if join is None or join.member is None:
            raise Invalid(f"{event.other!r} has not asked to join: start it with --join first")
        answers = event.node == self._local.node or event.node in self._local.reachable
        if not answers and not event.barred:
            raise Invalid(
                f"{event.node!r} does not answer. If it will never return, say --dead: it is removed for ever, and its "
                "copies are made from the others"
            )
        if answers and event.barred:
            raise Invalid(f"{event.node!r} answers: without --dead it hands over what it has")
        self._membership.add(ChangeKind.ABANDON, changes=(join.id,))
        return self._membership.add(ChangeKind.REPLACE, node=event.node, member=join.member, barred=event.barred)

    def join(self, event: ClientJoin) -> None:
        """Become a stranger who asks to join."""
        local = self._local
        others = [node for node in self._membership.folded.ring.members if node != local.node]
        why = ""
        if others and local.is_peer(local.node):
            why = f"{local.node} is in a cluster with {', '.join(others)}: it can only leave that"
        elif local.store.scan(Space.RECORDS, limit=1):
            why = f"{local.node} holds data of its own: start it on an empty directory with --join"
        if why:
            local.reply(event.client, Failure(Code.INVALID, why))
            return
        self._membership.forget()
        text = f"{local.node} asks to join; look at 'cartwheel cluster plan' at a member"
        local.reply(event.client, Administered(text, []), Durability.SYNC)

    # --- the plan ---

    def plan(self) -> PlanTold:
        """What the staged changes would do."""
        folded, local = self._membership.folded, self._local
        if self._planned is None or self._planned[0] is not folded:
            after = self._after()
            self._planned = folded, after, plan(folded.ring, after, n=PLAN_N)
        _, after, found = self._planned
        warnings = list(found.warnings)
        moving = sum(slots.moving for slots in self._slots(folded.ring))
        if moving:
            warnings.append(f"{moving} partitions are still being handed over from an earlier change")
        silent = self._silent(after)
        warnings += [
            f"{node} does not answer ({local.why_unreachable(node)}): it hears of this when it is back"
            for node in silent
        ]
        warnings += self._absent(after)
        held = sum(local.node in slots.owners for slots in self._slots(folded.ring))
        return PlanTold(
            digest=self._digest(),
            changes=[describe(change) for change in folded.staged],
            plan=found,
            warnings=warnings,
            silent=silent,
            partition_bytes=local.store.size_bytes() // max(held, 1),
            moving=moving,
        )

    def _slots(self, ring: Ring) -> list[Any]:
        placement = self._local.placement
        assert placement is not None
        return [placement.slots(partition, PLAN_N) for partition in range(ring.q)]

    def _after(self) -> Ring:
        """The ring as it would be."""
        membership = self._membership
        staged = membership.folded.staged
        if not staged:
            return membership.folded.ring
        at = max(change.at for change in membership.history) + 1
        commit = Change(
            id="plan", at=at, author=self._local.node, kind=ChangeKind.COMMIT, changes=tuple(c.id for c in staged)
        )
        return fold(self._local.config.q, membership.history.union(History([commit]))).ring

    def _silent(self, after: Ring) -> list[NodeId]:
        """Members that stay, and cannot be reached."""
        before = self._membership.folded.ring
        me, reachable = self._local.node, self._local.reachable
        return [node for node in before.members if node in after.members and node != me and node not in reachable]

    def _absent(self, after: Ring) -> list[str]:
        """Who is to come or to go, and does not answer: what is handed over waits for both sides."""
        before, local = self._membership.folded.ring.members, self._local
        leavers = {change.node for change in self._membership.folded.staged if change.kind is ChangeKind.LEAVE}
        found = []
        for node in sorted((after.members.keys() - before.keys()) | leavers):
            if node == local.node or node in local.reachable:
                continue
            why = local.why_unreachable(node)
            if node in leavers:
                text = "it leaves only when it is back and has handed over; if it never will, remove it instead"
            else:
                text = "nothing moves to it until it does"
            found.append(f"{node} does not answer ({why}): {text}")
        return found

    def _digest(self) -> str:
        """Names what a commit would carry out, and on what."""
        folded = self._membership.folded
        text = "|".join([folded.made_by.hex(), *(change.id for change in folded.staged)])
        return hashlib.blake2b(text.encode(), digest_size=6).hexdigest()

    # --- the end of it ---

    def commit(self, event: ClientCommit) -> None:
        """Carry out what is staged."""
        local = self._local
        why = self._why_not(event)
        if why:
            local.reply(event.client, Failure(Code.INVALID, why))
            return
        self._end(event.client, ChangeKind.COMMIT, "committed")

    def _why_not(self, event: ClientCommit) -> str:
        if not self._membership.folded.staged:
            return "nothing is staged"
        if not self._local.is_member:
            return f"{self._local.node} is no member of the cluster: ask one that is"
        told = self.plan()
        if event.digest and event.digest != told.digest:
            return f"the plan has changed (it is {told.digest} now, not {event.digest}): look at it again"
        if told.plan.refusals:
            return "refused: " + "; ".join(told.plan.refusals)
        if told.silent and not event.force:
            return (
                f"{', '.join(told.silent)} {'does' if len(told.silent) == 1 else 'do'} not answer: wait, remove what will never "
                "return, or commit with --force: they hear of the change when they are back"
            )
        return ""

    def abandon(self, event: ClientAbandon) -> None:
        """Drop what is staged."""
        local = self._local
        if not self._membership.folded.staged:
            local.reply(event.client, Failure(Code.INVALID, "nothing is staged"))
            return
        self._end(event.client, ChangeKind.ABANDON, "abandoned")

    def _end(self, client: object, kind: ChangeKind, verb: str) -> None:
        """Add the record that ends all that is staged, and tell."""
        staged = self._membership.folded.staged
        ids = [change.id for change in staged]
        self._membership.add(kind, changes=tuple(ids))
        texts = "; ".join(describe(change) for change in staged)
        self._local.reply(client, Administered(f"{verb}: {texts}", ids), Durability.SYNC)


def describe(change: Change) -> str:
    """A change in words."""
    member = change.member
    match change.kind:
        case ChangeKind.JOIN:
            assert member is not None
            place = f" in zone {member.zone}" if member.zone else ""
            return f"{member.node} joins ({member.address}{place}, weight {member.weight:g})"
        case ChangeKind.REPLACE:
            assert member is not None
            return f"{member.node} replaces {change.node}" + (", which is removed for ever" if change.barred else "")
        case ChangeKind.BUCKET:
            props = " ".join(f"{name}={text}" for name, text in change.props.items())
            return f"bucket {change.bucket}: {props}"
        case ChangeKind.COMMIT | ChangeKind.ABANDON:
            verb = "committed" if change.kind is ChangeKind.COMMIT else "abandoned"
            return f"{verb} {len(change.changes)} change{'s' * (len(change.changes) > 1)}"
        case ChangeKind.ADDRESS:
            return f"{change.node} is at {change.address}"
    return _describe(change.kind, change.node, change.weight, change.host, change.zone)


def describe_event(kind: ChangeKind, event: ClientStage) -> str:
    """The same of what is to be staged."""
    return _describe(kind, event.node, event.weight, event.host, event.zone)


def _describe(kind: ChangeKind, node: NodeId, weight: float, host: str, zone: str) -> str:
    match kind:
        case ChangeKind.LEAVE:
            return f"{node} leaves"
        case ChangeKind.REMOVE:
            return f"{node} is removed for ever"
        case ChangeKind.REWEIGH:
            return f"{node} has weight {weight:g}"
        case ChangeKind.RELOCATE:
            return f"{node} moves to zone {zone or '-'}, host {host}"
        case ChangeKind.DOUBLE:
            return "the ring has twice as many partitions"
    return f"{kind} {node}"
