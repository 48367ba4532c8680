"""The put() state machine (sections 4.4 and 4.5).

    asked to coordinate ── no owner, and one is healthy ──> forward to it (``forwards``)
        │ an owner, or the first that can stand in for one
        v
    mint a dot, stage, send to the others of the first N healthy ──> W durable acks ──> Stored
        │        ^                                              └──> too few left, or deadline ──> NOQUORUM, outcome unknown
        └─ late ─┘ a fallback, too: it keeps the record as a hint

**Sloppy quorum** (section 4.6). An owner that does not answer, or whose disk is full, is stood in for by a fallback, whose ack
counts (``targets``). With no owner left to ask, a fallback coordinates: it keeps its own copy as a hint, too. So a put succeeds
wherever W nodes can hear each other.

**A partition that changes hands** (``placement``). A put goes to the gainers, too; the slot of a pair counts when both halves
have it. A node that sees the key's slots otherwise answers Disagree; once the views are the same, it is asked again, and a put
whose slots have changed under way counts anew (``restart``).

**Hot keys.** What a turn of the loop wrote to one key leaves as one message to each replica (``Outgoing``): the last record
accounts for the earlier ones, so their acks come with its own.

A coordinator sends to its replicas while its own commit is still under way: one sync of latency, not two in a row. What it
might forget in a crash, the new stint after it covers. The ack to the client waits for W durable copies, ours counted like
any other: by a message to ourselves that is held until our group is synced.
"""

from __future__ import annotations

from collections.abc import Collection
from functools import partial

from cartwheel.core import versions
from cartwheel.core.coordinator.forwards import Forwards
from cartwheel.core.coordinator.gets import check_key
from cartwheel.core.coordinator.requests import Done, Refused, Requests, shortfall
from cartwheel.core.coordinator.targets import Targets, choose, next_fallback, with_gainers
from cartwheel.core.coordinator.writing import Writing
from cartwheel.core.errors import ClockSkew, Code, CorruptData, HintsFull
from cartwheel.core.local import Local, Plan
from cartwheel.core.messages import (
    Failure,
    Forward,
    Forwarded,
    PutRequest,
    ReplicaWrite,
    ReplicaWrote,
    Result,
    Send,
    Stored,
)
from cartwheel.core.placement import Slots
from cartwheel.core.quorum import effective
from cartwheel.core.storage import record_key, seal
from cartwheel.core.types import Clock, Dot, Durability, NodeId
from cartwheel.core.versions import Record

REQUEST_ID_BYTES_MAX = 128
"""A request id is kept with its version. The longest of our own: a forwarder's name and count."""
EXPIRES_AT_MS_END = 1 << 63
"""What a record's bytes can hold."""


class Outgoing:
    """The writes of one key in this turn, on their way to the other nodes."""

    __slots__ = ("ids", "plan", "reading", "sealed", "targets")

    def __init__(self, targets: Targets, plan: Plan) -> None:
        self.targets = targets
        self.plan = plan
        self.ids: list[int] = []
        self.reading = 0
        self.sealed = b""


class Puts:
    """This node's puts."""

    def __init__(self, local: Local, requests: Requests) -> None:
        self._local = local
        self.requests = requests
        self.forwards = Forwards(local, requests, self._route, partial(self.put, forwarded=True))
        self._minted: dict[tuple[bytes, bytes], tuple[Dot, Clock]] = {}
        """(Record key, request id) -> its dot, and what that superseded; oldest first."""
        self._outgoing: dict[bytes, Outgoing] = {}  # by record key
        self._own: list[int] = []  # our own copies of these writes are staged
        self._own_hold = Durability.MEMORY

    @property
    def now_s(self) -> float:
        """The time of this event."""
        return self._local.now_s

    def note_stored(self, began_s: float) -> None:
        """A put that began then is stored."""
        self._local.note_write(self._local.now_s - began_s)

    def put(self, put: PutRequest, done: Done, *, forwarded: bool = False) -> None:
        """Coordinate a put, or hand it to a node that can."""
        try:
            self._start(put, done, forwarded=forwarded)
        except Refused as refused:
            done(refused.failure, Durability.MEMORY)

    def _start(self, put: PutRequest, done: Done, *, forwarded: bool) -> None:
        local = self._local
        if not local.serves:  # it has left while the put was forwarded. One that retires ends what it began
            raise Refused(Code.NOQUORUM, f"{local.node} is no member of the cluster")
        plan = local.plan(put.bucket)
        self._check_sizes(put, plan)
        at = record_key(put.bucket, put.key)
        targets = self._targets(put, at, plan)
        if targets.slots.blanks:
            plan = local.plan_for(plan, put.bucket, targets.slots)
        needed = self._needed(put.w, plan) if put.w else plan.w_needed
        me = local.node
        if me not in targets.owners or me not in targets.asked:
            if not forwarded:
                target = self._route(put, ())
                if target is None:
                    reasons = "; ".join(f"{n}: {local.why_unreachable(n)}" for n in sorted(targets.owners) if n != me)
                    raise Refused(Code.NOQUORUM, f"no owner of the key is reachable ({reasons})")
                if target != me:
                    self.forwards.forward(put, target, done)
                    return
            targets = self._standing_in(put, targets)
        if len(targets.asked) < len(targets.owners) or plan.pw:
            self._check_enough(targets, needed, plan)
        self._stamp(Writing(self, put, plan, at, targets, needed, done), targets, local.known(at))

    def _targets(self, put: PutRequest, at: bytes, plan: Plan) -> Targets:
        """The first N healthy nodes for this put. A node whose disk is nearly full takes only deletes."""
        local = self._local
        me_fit = local.takes_writes or put.value is None
        fit = self._fit(put)
        targets = choose(local, at, plan.props.n, fit, me_fit=me_fit)
        return with_gainers(local, targets, fit, me_fit=me_fit) if targets.slots.moving else targets

    def _fit(self, put: PutRequest) -> Collection[NodeId]:
        """The peers that take this put."""
        return self._local.deletable if put.value is None else self._local.writable

    def _route(self, put: PutRequest, tried: Collection[NodeId]) -> NodeId | None:
        """Who should coordinate a put that this node has no copy of: a healthy owner, the context's coordinator first; else the
        first node that stands in for one. None: there is nobody left."""
        plan = self._local.plan(put.bucket)
        targets = self._targets(put, record_key(put.bucket, put.key), plan)
        left = [node for node in targets.asked if node not in tried]
        fit = self._fit(put)
        owners = [node for node in left if node in targets.owners and node in fit]
        if put.coordinator in owners:
            return put.coordinator
        return next(iter(owners or left), None)

    def _standing_in(self, put: PutRequest, targets: Targets) -> Targets:
        """We coordinate though the key is not ours: our own copy is a hint."""
        local = self._local
        if not local.takes_writes and put.value is not None:
            raise Refused(
                Code.NOQUORUM, f"the disk of {local.node} is nearly full, and no other node can take the write"
            )
        if local.node in targets.asked:
            return targets
        asked, intended = targets.asked, targets.intended
        missing = [owner for owner in targets.owners if owner not in asked and owner not in intended.values()]
        intended = {**intended, local.node: (missing or targets.owners)[0]}
        also = [node for node in targets.also if node != local.node]
        return Targets(targets.owners, [local.node, *asked], intended, targets.slots, also)

    def _check_sizes(self, put: PutRequest, plan: Plan) -> None:
        """Refuse what is over the bucket's limits, or what a record cannot hold."""
        check_key(put.key, plan)
        if put.value is not None and len(put.value) > plan.props.value_bytes_max:
            text = f"value of {len(put.value)} bytes exceeds the limit of {plan.props.value_bytes_max} bytes"
            raise Refused(Code.TOOBIG, f"{text} (bucket property value_bytes_max)")
        if put.request_id and len(put.request_id) > REQUEST_ID_BYTES_MAX:
            raise Refused(Code.TOOBIG, f"a request id has at most {REQUEST_ID_BYTES_MAX} bytes")
        if put.expires_at_ms and not 0 <= put.expires_at_ms < EXPIRES_AT_MS_END:
            raise Refused(Code.INVALID, "the time of expiry is out of range")

    def _needed(self, w: int, plan: Plan) -> int:
        """How many acks a put with a W of its own needs."""
        n = plan.props.n
        if not 1 <= w <= n:
            raise Refused(Code.INVALID, f"W={w} must lie between 1 and n={n}")
        return max(effective(w, n, plan.members), plan.pw)

    def _check_enough(self, targets: Targets, needed: int, plan: Plan) -> None:
        """Refuse a put that cannot reach W nodes, before anything of it is staged or sent."""
        local, asked = self._local, targets.asked
        away = {n: local.why_unreachable(n) for n in targets.owners if n not in asked}
        if len(asked) < needed:
            raise Refused(Code.NOQUORUM, shortfall("W", needed, len(asked), away))
        primaries = [node for node in asked if node in targets.owners]
        if len(primaries) < plan.pw:
            raise Refused(Code.NOQUORUM, shortfall("PW", plan.pw, len(primaries), away))

    # --- coordinating ---

    def _stamp(self, writing: Writing, targets: Targets, record: Record) -> None:
        """Mint the dot, stage the record, have it sent to the others: one synchronous step (versions, invariant A)."""
        local, put, plan, at = self._local, writing.put, writing.plan, writing.at
        again = self._earlier_try(at, put, record) if put.request_id else None
        if again is not None:
            local.count("puts_repeated")
            sealed = self._keep(writing, record, record)
            dot, context = again
            told = versions.context_after_put(record, record, context, dot, put.dots)
            writing.stored = Stored(*told, len(record.versions), local.node)
            self._replicate(writing, targets, sealed, dot)
            return
        context_clock = record.clock if put.context is None or plan.lww else put.context
        if put.dots or context_clock is not record.clock:
            local.notice_amnesia(record, context_clock, put.dots)
        self._observe(put, context_clock, plan)
        dot = (local.actor, local.mint())
        new = versions.put(
            record, context_clock, dot, put.value,
            seen=put.dots, expires_at_ms=put.expires_at_ms, request_id=put.request_id,
        )  # fmt: skip
        siblings = len(new.versions)
        if siblings > 1:
            self._check_siblings(siblings, len(record.versions), plan)
        sealed = self._keep(writing, record, new)
        if put.request_id:
            self._remember(at, put.request_id, dot, context_clock)
        local.count("puts")
        clock, dots = versions.context_after_put(record, new, context_clock, dot, put.dots)
        writing.stored = Stored(clock, dots, siblings, local.node)
        self._replicate(writing, targets, sealed, dot)

    def _keep(self, writing: Writing, old: Record, new: Record) -> bytes:
        """Stage our own copy: the record itself, or a hint for the owner that we stand in for. Returns it sealed."""
        local, at, plan = self._local, writing.at, writing.plan
        durability = plan.durability
        if plan.one and len(writing.tally.asked) == 1:
            durability = Durability.SYNC  # nobody else can be the one
        intended = writing.intended.get(local.node)
        if intended is None:
            return local.write_record(at, old, new, durability)
        sealed = seal(at, versions.encode(new))
        if writing.slots.moving and local.node in writing.slots.writers:
            sealed = local.write_record(at, local.read_record(at), new, durability)
        try:
            local.hints.put(intended, at, sealed, durability)
        except HintsFull as error:
            raise Refused(Code.NOQUORUM, str(error)) from None
        return sealed

    def _observe(self, put: PutRequest, supersedes: Clock, plan: Plan) -> None:
        """Let our clock follow what this write supersedes, so that its reading is the later one.

        Last writer wins relies on it: a later write with an earlier reading would lose, and replicas could disagree.
        """
        local = self._local
        latest = 0
        for counter in supersedes.values():
            if counter > latest:
                latest = counter
        if latest <= local.clock.last and not put.context and not put.dots:
            return
        if put.context and put.context is not supersedes:
            latest = max(latest, *put.context.values())
        for _, counter in put.dots:
            latest = max(latest, counter)
        try:
            local.clock.observe(latest, local.wall_ms)
        except ClockSkew as error:
            local.count("contexts_ahead")
            if plan.lww:
                raise Refused(Code.NOQUORUM, f"the key's newest write was stamped by a {error}") from None

    def _check_siblings(self, siblings: int, before: int, plan: Plan) -> None:
        """Refuse a client's write that leaves too many siblings. A merge is never refused."""
        if siblings > max(plan.props.siblings_max, before):
            text = f"the key has {before} siblings, the limit (bucket property siblings_max)"
            raise Refused(Code.TOOMANYSIBLINGS, f"{text}: read them and write with the context")
        if siblings > plan.props.siblings_warn:
            self._local.count("siblings_over_warning")

    def _replicate(self, writing: Writing, targets: Targets, sealed: bytes, dot: Dot) -> None:
        """Have the staged record sent to the other nodes at the turn's end, and count durable acks, ours among them."""
        local, plan, at = self._local, writing.plan, writing.at
        request_id = writing.id = local.new_id()
        writing.dot, writing.sealed = dot, sealed
        writing.deadline_s = local.deadline_s(writing.put.timeout_s)
        self.requests.add(request_id, writing, writing.deadline_s)
        self._own.append(request_id)
        if plan.durability > self._own_hold:
            self._own_hold = plan.durability
        outgoing = self._outgoing.get(at)
        if outgoing is None:
            outgoing = self._outgoing[at] = Outgoing(targets, plan)
        elif outgoing.targets != targets:  # a delete may go elsewhere than a put
            self._send(at, outgoing)
            outgoing = self._outgoing[at] = Outgoing(targets, plan)
        outgoing.ids.append(request_id)
        outgoing.sealed = sealed
        if dot[1] > outgoing.reading:
            outgoing.reading = dot[1]
        if len(targets.asked) < len(targets.owners):
            for owner in targets.owners:
                if owner not in targets.asked and owner not in targets.intended.values():
                    writing.tally.add(owner)
                    writing.tally.fail(owner, local.why_unreachable(owner))

    def leave(self) -> None:
        """The turn ends: send what was gathered, and promise ourselves our own copies once they are durable."""
        local = self._local
        if not self._own:
            return
        for at, outgoing in self._outgoing.items():
            self._send(at, outgoing)
        local.out.append(Send(local.node, ReplicaWrote(self._own), self._own_hold))
        self._outgoing = {}
        self._own, self._own_hold = [], Durability.MEMORY

    def _send(self, at: bytes, outgoing: Outgoing) -> None:
        local, plan, intended, ids = self._local, outgoing.plan, outgoing.targets.intended, outgoing.ids
        me, out, asked_write, last = local.node, local.out, local.asked_write, ids[-1]
        durability, tag = int(plan.durability), outgoing.targets.slots.tag
        others = [node for node in outgoing.targets.asked if node != me]
        one = others[last % len(others)] if plan.one and others else ""
        common = ReplicaWrite(ids, at, outgoing.sealed, durability, outgoing.reading, "", tag)
        if outgoing.targets.also:
            others += [node for node in outgoing.targets.also if node != me]
        for node in others:
            message = common
            if node in intended or node == one:
                needs = int(Durability.SYNC) if node == one else durability
                message = ReplicaWrite(ids, at, outgoing.sealed, needs, outgoing.reading, intended.get(node, ""), tag)
            asked_write[node] = last
            out.append(Send(node, message))

    def remind(self, writing: Writing, silent: NodeId) -> None:
        """A node does not answer: ask it once more, for a message may be lost; and another one in its place."""
        if silent != self._local.node:
            self._write_again(writing, silent, writing.intended.get(silent, ""))
        if silent in writing.tally.asked:
            self.ask_another(writing, silent)
        else:
            self.ask_giver(writing, silent)

    def write_to(self, writing: Writing, node: NodeId) -> None:
        """Send the record to a node once more."""
        self._write_again(writing, node, writing.intended.get(node, ""))

    def ask_giver(self, writing: Writing, gainer: NodeId) -> None:
        """The second half of a pair does not answer: let the first, or who stands in for that, keep a hint for it. Once. (Who
        stands in for the first keeps two hints then, one for each: the pair is one slot, and this its one copy.)"""
        for giver, other in writing.slots.gainers.items():
            filler = writing.by.get(giver, giver)
            busy = writing.intended.get(filler, giver) != giver or filler in writing.tally.failed
            if other == gainer and gainer not in writing.by and not busy and filler in writing.tally.asked:
                self._stand_in(writing, filler, gainer)

    def _stand_in(self, writing: Writing, node: NodeId, intended: NodeId) -> bool:
        """Ask a node that was asked before to stand in for another one, too: what it answered before does not tell that."""
        request_id = self._local.new_id()
        if not self._write_again(writing, node, intended, request_id):
            return False
        self.requests.end(writing.anew.get(node, 0))
        self.requests.add(request_id, writing, writing.deadline_s)
        writing.intended = {**writing.intended, node: intended}
        writing.anew = {**writing.anew, node: request_id}
        return True

    def slots(self, writing: Writing) -> Slots:
        """Of a put's key, as they are now."""
        return self._local.slots(writing.at, writing.plan.props.n)

    def restart(self, writing: Writing) -> None:
        """The slots of the key are others than when this put began: count anew, with those who count now. The record stays what
        it is."""
        local, put, at = self._local, writing.put, writing.at
        local.count("puts_replanned")
        plan = local.plan(put.bucket)
        targets = self._targets(put, at, plan)
        plan = local.plan_for(plan, put.bucket, targets.slots)
        needed = self._needed(put.w, plan) if put.w else plan.w_needed
        writing.aim(plan, targets, needed)
        writing.id = local.new_id()
        self.requests.add(writing.id, writing, writing.deadline_s)
        for owner in targets.owners:
            if owner not in targets.asked and owner not in targets.intended.values():
                writing.tally.add(owner)
                writing.tally.fail(owner, local.why_unreachable(owner))
        for node in (*targets.asked, *targets.also):
            self._write_again(writing, node, targets.intended.get(node, ""))

    def ask_another(self, writing: Writing, silent: NodeId) -> None:
        """A node does not answer, or cannot: give the record to the next healthy one, as a hint for its intended node. Once."""
        local, put = self._local, writing.put
        if silent in writing.replaced:
            return
        intended = writing.intended.get(silent, silent)
        if intended not in writing.revived and self._has_returned(writing, intended):
            self._ask_owner(writing, intended)
            return
        fit = self._fit(put)
        node = next_fallback(local, writing.at, writing.plan.props.n, writing.tally.asked, fit)
        if node is not None and self._ask_fallback(writing, node, intended):
            local.count("writes_rerouted")
            writing.replaced = [*writing.replaced, silent]
            writing.tally.add(node)
        elif node is None:
            for owner in writing.tally.primaries:
                if owner not in writing.revived and self._has_returned(writing, owner):
                    self._ask_owner(writing, owner)

    def _ask_fallback(self, writing: Writing, node: NodeId, intended: NodeId) -> bool:
        if node in writing.also:  # a gainer, whose own copy was asked for before
            return self._stand_in(writing, node, intended)
        if not self._write_again(writing, node, intended):
            return False
        writing.intended = {**writing.intended, node: intended}
        return True

    def reassign(self, writing: Writing, fallback: NodeId) -> bool:
        """The owner that this fallback stood in for has answered: let it stand in for another one. False: there is none."""
        owner = writing.open_slot()
        return owner is not None and self._stand_in(writing, fallback, owner)

    def ask_returned(self, writing: Writing) -> None:
        """Owners that could not be reached when this put began, and can be now."""
        for owner in writing.tally.primaries:
            if self._has_returned(writing, owner):
                self._ask_owner(writing, owner)

    def _has_returned(self, writing: Writing, owner: NodeId) -> bool:
        """Whether this owner can be reached, though it is not waited for and has not answered."""
        tally = writing.tally
        if owner in writing.refused or owner not in self._local.reachable:
            return False
        return owner not in tally.asked or owner in tally.failed

    def _ask_owner(self, writing: Writing, owner: NodeId) -> None:
        writing.revived = [*writing.revived, owner]
        if self._write_again(writing, owner, ""):
            writing.tally.add(owner)

    def _write_again(self, writing: Writing, node: NodeId, intended: NodeId, request_id: int = 0) -> bool:
        """Send the record as it is now: what was sent first may be superseded everywhere by this time. Where it is here no more
        (a hint that has been delivered meanwhile), what was sent first must do."""
        local, at, sealed = self._local, writing.at, writing.sealed
        request_id = request_id or writing.anew.get(node, writing.id)
        try:
            entry, _ = local.answer(at)
        except CorruptData:
            entry = None
        if entry is not None and versions.accounts_for(entry[1], (writing.dot,)):
            sealed = entry[0]
        durability = writing.plan.durability
        if node == local.node:  # our own copy; or that, as a hint for another owner
            if not local.serves:
                return False
            try:
                if intended:
                    local.keep_hint(intended, at, sealed, durability)
                elif not versions.accounts_for(local.read_record(at), (writing.dot,)):
                    local.absorb(at, sealed, durability)
            except HintsFull:
                return False
            local.send(node, ReplicaWrote([request_id]), durability)
            return True
        local.asked_write[node] = max(request_id, local.asked_write.get(node, 0))
        tag = writing.slots.tag
        local.send(node, ReplicaWrite([request_id], at, sealed, int(durability), writing.dot[1], intended, tag))
        return True

    def handle_wrote(self, src: NodeId, message: ReplicaWrote) -> None:
        """A replica has these writes durably."""
        heard, last = self._local.heard_write, message.ids[-1]
        if last > heard.get(src, 0):
            heard[src] = last
        by_id = self.requests.by_id
        for request_id in message.ids:
            writing = by_id.get(request_id)
            if writing.__class__ is Writing and (src in writing.tally.asked or src in writing.also):
                writing.ack(src, request_id)  # else late: the request is over

    # --- retries ---

    def _earlier_try(self, at: bytes, put: PutRequest, record: Record) -> tuple[Dot, Clock] | None:
        """The dot that an earlier try of this request got, still a version or remembered here; and what it superseded, as far as
        that is known: only the coordinator that stamped it knows what a blind put did."""
        version = versions.by_request(record, put.request_id)
        earlier = self._minted.get((at, put.request_id))
        if version is None:
            # A record found corrupt has forgotten the dot that we remember: then the write is nowhere, and is stamped anew.
            return earlier if earlier is not None and versions.accounts_for(record, (earlier[0],)) else None
        if version.value != put.value:
            raise Refused(Code.INVALID, "this request id was used for another value of this key")
        if earlier is None or earlier[0] != version.dot:
            earlier = version.dot, put.context or {}
            self._remember(at, put.request_id, *earlier)
        return earlier

    def _remember(self, at: bytes, request_id: bytes, dot: Dot, context: Clock) -> None:
        self._minted[at, request_id] = dot, context
        if len(self._minted) > self._local.config.request_ids_max:
            del self._minted[next(iter(self._minted))]

    # --- forwarding ---

    def handle_forward(self, src: NodeId, message: Forward) -> None:
        """Coordinate for a node outside the preference list."""

        def done(result: Result, hold: Durability) -> None:
            assert isinstance(result, Stored | Failure)
            self._local.send(src, Forwarded(message.id, result), hold)

        self.put(message.put, done, forwarded=True)
