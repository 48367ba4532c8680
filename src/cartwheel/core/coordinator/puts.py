"""The put() state machine (sections 4.4 and 4.5).

    asked to coordinate ── not an owner ──> forward, once ──> relay the answer
        │ owner
        ├─ the context names a write we have not heard of ──> read at quorum first
        v
    mint a dot, stage, send to the other owners ──> W durable acks ──> Stored
                                               └──> too few left, or deadline ──> NOQUORUM, outcome unknown

**Hot keys.** What a turn of the loop wrote to one key leaves as one message to each replica (``Outgoing``): the last record
accounts for the earlier ones, so their acks come with its own.

A coordinator sends to its replicas while its own commit is still under way: one sync of latency, not two in a row. What it
might forget in a crash, the new stint after it covers. The ack to the client waits for W durable copies, ours counted like
any other: by a message to ourselves that is held until our group is synced.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from cartwheel.core import versions
from cartwheel.core.coordinator.gets import Gets, check_key
from cartwheel.core.coordinator.requests import Done, Refused, Requests, shortfall, tally_shortfall
from cartwheel.core.errors import ClockSkew, Code
from cartwheel.core.local import Local, Plan
from cartwheel.core.messages import (
    Failure,
    Forward,
    Forwarded,
    Found,
    PutRequest,
    ReplicaWrite,
    ReplicaWrote,
    Result,
    Send,
    Stored,
)
from cartwheel.core.quorum import Outcome, Tally, effective
from cartwheel.core.storage import record_key, seal
from cartwheel.core.types import Clock, Dot, Durability, NodeId
from cartwheel.core.versions import Record

REQUEST_ID_BYTES_MAX = 128
"""A request id is kept with its version. The longest of our own: a forwarder's name and count."""
EXPIRES_AT_MS_END = 1 << 63
"""What a record's bytes can hold."""


class Writing:
    """A put that this node coordinates. Among the requests, with an id and an answer, once it is stamped."""

    __slots__ = ("at", "done", "id", "plan", "put", "requests", "stored", "tally")

    def __init__(
        self,
        requests: Requests,
        put: PutRequest,
        plan: Plan,
        at: bytes,
        owners: Sequence[NodeId],
        needed: int,
        done: Done,
    ) -> None:
        self.requests = requests
        self.put = put
        self.plan = plan
        self.at = at  # the record key
        self.tally = Tally(owners, needed, primaries=owners, primaries_needed=plan.pw)
        self.done = done
        self.id = 0
        self.stored: Stored | None = None

    def ack(self, node: NodeId) -> None:
        """This node has the write durably."""
        if self.tally.ack(node) is Outcome.MET:
            del self.requests.by_id[self.id]
            assert self.stored is not None, "acknowledged before it was stamped"
            self.done(self.stored, Durability.MEMORY)

    def waiting(self) -> list[NodeId]:
        """See ``Request``."""
        return self.tally.waiting()

    def fail(self, node: NodeId, reason: str) -> None:
        """See ``Request``."""
        if self.id in self.requests.by_id and self.tally.fail(node, reason) is Outcome.UNREACHABLE:
            self.requests.end(self.id)
            self.done(Failure(Code.NOQUORUM, tally_shortfall("W", self.tally), unknown=True), Durability.MEMORY)


class Forwarding:
    """A put handed to an owner."""

    __slots__ = ("done", "id", "requests", "target")

    def __init__(self, requests: Requests, request_id: int, target: NodeId, done: Done) -> None:
        self.requests = requests
        self.id = request_id
        self.target = target
        self.done = done

    def waiting(self) -> list[NodeId]:
        """See ``Request``."""
        return [self.target]

    def fail(self, node: NodeId, reason: str) -> None:
        """See ``Request``. Not tried at another owner: the first one may have stamped it."""
        self.requests.end(self.id)
        text = f"forwarded to {node}: {reason}"
        self.done(Failure(Code.NOQUORUM, text, unknown=True), Durability.MEMORY)


class Outgoing:
    """The writes of one key in this turn, on their way to the other owners."""

    __slots__ = ("durability", "ids", "leave_after", "others", "reading", "sealed")

    def __init__(self, others: Sequence[NodeId], durability: Durability) -> None:
        self.others = others
        self.ids: list[int] = []
        self.sealed = b""
        self.durability = durability
        self.reading = 0
        self.leave_after = Durability.MEMORY


class Puts:
    """This node's puts."""

    def __init__(self, local: Local, requests: Requests, gets: Gets) -> None:
        self._local = local
        self._requests = requests
        self._gets = gets
        self._minted: dict[tuple[bytes, bytes], Dot] = {}  # (record key, request id) -> dot, oldest first
        self._outgoing: dict[bytes, Outgoing] = {}  # by record key
        self._own: list[int] = []  # our own copies of these writes are staged
        self._own_hold = Durability.MEMORY

    def put(self, put: PutRequest, done: Done, *, forwarded: bool = False) -> None:
        """Coordinate a put, or hand it to a node that can."""
        try:
            self._start(put, done, forwarded=forwarded)
        except Refused as refused:
            done(refused.failure, Durability.MEMORY)

    def _start(self, put: PutRequest, done: Done, *, forwarded: bool) -> None:
        local = self._local
        plan = local.plan(put.bucket)
        self._check_sizes(put, plan)
        at = record_key(put.bucket, put.key)
        owners = local.owners(at, plan.props.n)
        needed = self._needed(put.w, plan) if put.w else plan.w_needed
        if local.node in owners:
            if len(local.reachable) + 1 < local.size:
                self._check_enough(owners, needed)
            writing = Writing(self._requests, put, plan, at, owners, needed, done)
            if put.dots:
                self._coordinate(writing)
            else:
                self._stamp(writing, local.read_record(at))
        elif forwarded:
            raise Refused(Code.NOQUORUM, f"{local.node} is not in the preference list: rings differ, try again")
        else:
            self._forward(put, owners, done)

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
        return max(effective(w, n, self._local.size), plan.pw)

    def _check_enough(self, owners: Sequence[NodeId], needed: int) -> None:
        """Refuse a put that cannot reach W owners, before anything of it is staged or sent."""
        local = self._local
        away = [owner for owner in owners if owner not in local.reachable and owner != local.node]
        if len(owners) - len(away) < needed:
            reasons = {owner: local.why_unreachable(owner) for owner in away}
            raise Refused(Code.NOQUORUM, shortfall("W", needed, len(owners) - len(away), reasons))

    # --- coordinating ---

    def _coordinate(self, writing: Writing) -> None:
        """The context names single writes: stamp now, or after a quorum read if our record does not account for them."""
        local, put, plan, at = self._local, writing.put, writing.plan, writing.at
        record = local.read_record(at)
        if versions.accounts_for(record, put.dots):
            self._stamp(writing, record)
            return

        def stamp_after_read(result: Result, hold: Durability) -> None:
            del hold  # what was read is merged and staged here, so it is durable before the put is
            if isinstance(result, Failure):
                # Stamping all the same would leave what the client had seen beside its new write: a false sibling.
                text = f"the context names a write that is not known here, and could not be read: {result.text}"
                writing.done(Failure(Code.NOQUORUM, text), Durability.MEMORY)
                return
            if isinstance(result, Found) and result.record.versions:
                local.absorb(at, seal(at, versions.encode(result.record)), plan.durability)
            try:
                self._stamp(writing, local.read_record(at))
            except Refused as refused:
                writing.done(refused.failure, Durability.MEMORY)

        local.count("puts_after_read")
        r = max(plan.r, len(writing.tally.asked) - plan.w + 1)  # meets the W that stored what was seen
        self._gets.start(put.bucket, put.key, plan, r, put.timeout_s, stamp_after_read)

    def _stamp(self, writing: Writing, record: Record) -> None:
        """Mint the dot, stage the record, send it to the other owners: one synchronous step (versions, invariant A)."""
        local, put, plan, at = self._local, writing.put, writing.plan, writing.at
        again = self._earlier_dot(at, put, record) if put.request_id else None
        if again is not None:
            local.count("puts_repeated")
            sealed = local.write_record(at, record, record, plan.durability)
            context = versions.context_after_put(record, put.context or {}, again, put.dots)
            writing.stored = Stored(*context, len(record.versions), local.node)
            self._replicate(writing, sealed, again)
            return
        context_clock = record.clock if put.context is None or plan.lww else put.context
        if context_clock is not record.clock:
            local.notice_amnesia(record, context_clock)
        for seen in put.dots:
            local.notice_amnesia(record, dict((seen,)))
        self._observe(put, context_clock, plan)
        counter, leave_after = local.mint()
        dot = (local.actor, counter)
        new = versions.put(
            record, context_clock, dot, put.value,
            seen=put.dots, expires_at_ms=put.expires_at_ms, request_id=put.request_id,
        )  # fmt: skip
        siblings = len(new.versions)
        if siblings > 1:
            self._check_siblings(siblings, len(record.versions), plan)
        sealed = local.write_record(at, record, new, plan.durability)
        if put.request_id:
            self._remember(at, put.request_id, dot)
        local.count("puts")
        clock, dots = versions.context_after_put(new, context_clock, dot, put.dots)
        writing.stored = Stored(clock, dots, siblings, local.node)
        self._replicate(writing, sealed, dot, leave_after)

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

    def _replicate(
        self, writing: Writing, sealed: bytes, dot: Dot, leave_after: Durability = Durability.MEMORY
    ) -> None:
        """Have the staged record sent to the other owners at the turn's end, and count durable acks, ours among them."""
        local, plan, at, owners = self._local, writing.plan, writing.at, writing.tally.asked
        request_id = writing.id = local.new_id()
        self._requests.add(request_id, writing, local.deadline_s(writing.put.timeout_s))
        self._own.append(request_id)
        self._own_hold = max(self._own_hold, plan.durability, leave_after)
        outgoing = self._outgoing.get(at)
        if outgoing is None:
            others = [owner for owner in owners if owner in local.reachable]
            outgoing = self._outgoing[at] = Outgoing(others, plan.durability)
        outgoing.ids.append(request_id)
        outgoing.sealed = sealed
        if plan.durability > outgoing.durability:
            outgoing.durability = plan.durability
        if dot[1] > outgoing.reading:
            outgoing.reading = dot[1]
        if leave_after:
            outgoing.leave_after = leave_after
        if len(outgoing.others) + 1 < len(owners):
            for owner in owners:
                if owner not in outgoing.others and owner != local.node:
                    writing.fail(owner, local.why_unreachable(owner))

    def leave(self) -> None:
        """The turn ends: send what was gathered, and promise ourselves our own copies once they are durable."""
        local = self._local
        if not self._own:
            return
        for at, outgoing in self._outgoing.items():
            message = ReplicaWrite(outgoing.ids, at, outgoing.sealed, outgoing.durability, outgoing.reading)
            for owner in outgoing.others:
                local.out.append(Send(owner, message, outgoing.leave_after))
        local.out.append(Send(local.node, ReplicaWrote(self._own), self._own_hold))
        self._outgoing = {}
        self._own, self._own_hold = [], Durability.MEMORY

    def handle_wrote(self, src: NodeId, message: ReplicaWrote) -> None:
        """A replica has these writes durably."""
        by_id = self._requests.by_id
        for request_id in message.ids:
            writing = by_id.get(request_id)
            if writing.__class__ is Writing and src in writing.tally.asked:  # else late: the request is over
                writing.ack(src)

    # --- retries ---

    def _earlier_dot(self, at: bytes, put: PutRequest, record: Record) -> Dot | None:
        """The dot that an earlier try of this request got: still a version, or remembered here."""
        version = versions.by_request(record, put.request_id)
        if version is None:
            dot = self._minted.get((at, put.request_id))
            # A record found corrupt has forgotten the dot that we remember: then the write is nowhere, and is stamped anew.
            return dot if dot is not None and versions.accounts_for(record, (dot,)) else None
        if version.value != put.value:
            raise Refused(Code.INVALID, "this request id was used for another value of this key")
        self._remember(at, put.request_id, version.dot)
        return version.dot

    def _remember(self, at: bytes, request_id: bytes, dot: Dot) -> None:
        self._minted[at, request_id] = dot
        if len(self._minted) > self._local.config.request_ids_max:
            del self._minted[next(iter(self._minted))]

    # --- forwarding ---

    def _forward(self, put: PutRequest, owners: Sequence[NodeId], done: Done) -> None:
        """Hand the put to the owner that the context prefers, or to the first reachable one (section 4.5)."""
        local = self._local
        candidates = [owner for owner in owners if owner in local.reachable]
        if not candidates:
            reasons = "; ".join(f"{owner}: {local.why_unreachable(owner)}" for owner in sorted(owners))
            raise Refused(Code.NOQUORUM, f"no owner of the key is reachable ({reasons})")
        target = put.coordinator if put.coordinator in candidates else candidates[0]
        request_id = local.new_id()
        if not put.request_id:
            # Ids are unique within a node only, and two puts with one id would be taken for one.
            put = msgspec.structs.replace(put, request_id=b"fwd:%s/%d" % (local.node.encode(), request_id))
        forwarding = Forwarding(self._requests, request_id, target, done)
        self._requests.add(request_id, forwarding, local.deadline_s(put.timeout_s))
        local.count("puts_forwarded")
        local.send(target, Forward(request_id, put))

    def handle_forward(self, src: NodeId, message: Forward) -> None:
        """Coordinate for a node outside the preference list."""

        def done(result: Result, hold: Durability) -> None:
            assert isinstance(result, Stored | Failure)
            self._local.send(src, Forwarded(message.id, result), hold)

        self.put(message.put, done, forwarded=True)

    def handle_forwarded(self, src: NodeId, message: Forwarded) -> None:
        """The owner's answer: relay it."""
        request = self._requests.by_id.get(message.id)
        if isinstance(request, Forwarding) and request.target == src:
            self._requests.end(message.id)
            result = message.result
            if isinstance(result, Failure):
                # The network may repeat our Forward, and the owner take it then: only a refusal of our own is certain.
                result = Failure(result.code, result.text, unknown=True)
            request.done(result, Durability.MEMORY)
