"""The coordinator: one small state machine per get() and put() (sections 4.5 and 5).

    put:  asked to coordinate ── not an owner ──> forward, once ──> relay the answer
              │ owner
              ├─ the context names a write we have not heard of ──> read at quorum first
              v
          mint a dot, stage, send to the other owners ──> W durable acks ──> Stored
                                                     └──> too few left, or deadline ──> NOQUORUM, outcome unknown
    get:  ask all N owners ──> R answers ──> Found (all concurrent versions) ──> await stragglers ──> read repair
                          └──> too few left, or deadline ──> NOQUORUM

Invariants:
1. A client is answered exactly once.
2. Stored is sent only after W distinct owners, counted by name, hold the write as durably as the bucket demands. Our own
   write counts like any other: by a message to ourselves that is held until it is durable.
3. A put is stamped with one dot, by one coordinator: a forwarded put is never forwarded again, a retry that this
   coordinator remembers is not stamped again.
4. Minting happens in one synchronous step from reading the record to staging it (versions, invariant A).
5. A failed put is "rejected" only if nothing of it was staged or sent; otherwise its outcome is "unknown".

O(N) messages and memory per request; requests end at their deadline at the latest.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence

import msgspec

from cartwheel.core import versions
from cartwheel.core.config import BucketProps
from cartwheel.core.errors import Code, CorruptData
from cartwheel.core.local import Local
from cartwheel.core.messages import (
    ClientExplain,
    ClientGet,
    Explained,
    Failure,
    Forward,
    Forwarded,
    Found,
    PutRequest,
    ReplicaRead,
    ReplicaRefused,
    ReplicaRepair,
    ReplicaValue,
    ReplicaWrite,
    ReplicaWrote,
    Result,
    Stored,
)  # fmt: skip
from cartwheel.core.quorum import Outcome, Tally, effective
from cartwheel.core.storage import CHECKSUM_BYTES, POSITION_BYTES, Space, record_key, seal, unseal
from cartwheel.core.types import Dot, Durability, NodeId
from cartwheel.core.versions import Record

Done = Callable[[Result, Durability], None]
"""How a request is answered: the result, and what its telling must wait for."""


class Reading:
    """A get under way. ``answers`` holds sealed records by node: equal bytes are equal records, so the usual case (all
    replicas agree) needs one decode and no merge."""

    __slots__ = ("answers", "bucket", "done", "everyone", "fastest", "hold", "key", "replied", "tally")

    def __init__(self, key: bytes, bucket: str, tally: Tally, done: Done, *, everyone: bool) -> None:
        self.key = key
        self.bucket = bucket
        self.tally = tally
        self.done = done
        self.everyone = everyone  # wait for every replica (explain), not for R
        self.answers: dict[NodeId, bytes | None] = {}
        self.fastest: NodeId = ""
        self.hold = Durability.MEMORY
        self.replied = False


class Writing:
    """A put under way, already stamped."""

    __slots__ = ("done", "stored", "tally")

    def __init__(self, tally: Tally, stored: Stored, done: Done) -> None:
        self.tally = tally
        self.stored = stored
        self.done = done


class Forwarding:
    """A put handed to an owner."""

    __slots__ = ("done", "target")

    def __init__(self, target: NodeId, done: Done) -> None:
        self.target = target
        self.done = done


class Refused(Exception):
    """Turned into a Failure by the caller: the request was not applied anywhere."""

    def __init__(self, code: Code, text: str) -> None:
        super().__init__(text)
        self.failure = Failure(code, text)


class Coordinator:
    """This node as a coordinator of requests."""

    def __init__(self, local: Local) -> None:
        self._local = local
        self._requests: dict[int, Reading | Writing | Forwarding] = {}
        self._deadlines: list[tuple[float, int]] = []
        self._minted: dict[tuple[bytes, bytes], Dot] = {}  # (record key, request id) -> dot, oldest first

    @property
    def under_way(self) -> int:
        """Requests not finished yet."""
        return len(self._requests)

    # --- get ---

    def get(self, event: ClientGet) -> None:
        """Read from all N owners, answer at R (section 4.5)."""
        client, local = event.client, self._local

        def done(result: Result, hold: Durability) -> None:
            local.reply(client, result, hold)

        try:
            props = local.props(event.bucket)
            self._admit(event.bucket, event.key, props)
            self._start_reading(event.bucket, event.key, props, event.r, event.timeout_s, done)
        except Refused as refused:
            local.reply(client, refused.failure)

    def explain(self, event: ClientExplain) -> None:
        """Read from all N owners and tell what each one holds."""
        client, local = event.client, self._local
        props = local.props(event.bucket)

        def done(result: Result, hold: Durability) -> None:
            local.reply(client, result, hold)

        try:
            self._admit(event.bucket, event.key, props)
            self._start_reading(event.bucket, event.key, props, 0, 0.0, done, everyone=True)
        except Refused as refused:
            local.reply(client, refused.failure)

    def _start_reading(
        self,
        bucket: str,
        key: bytes,
        props: BucketProps,
        r: int,
        timeout_s: float,
        done: Done,
        *,
        everyone: bool = False,
    ) -> None:
        local = self._local
        at = record_key(bucket, key)
        owners = local.owners(at, props.n)
        needed = self._needed("R", r or props.r, props.n, props.pr)
        tally = Tally(owners, needed, primaries=owners, primaries_needed=effective(props.pr, props.n, local.members()))
        reading = Reading(at, bucket, tally, done, everyone=everyone)
        request_id = local.new_id()
        ask: ReplicaRead | None = None
        for owner in owners:
            if owner == local.node:
                continue
            if owner in local.reachable:
                if ask is None:
                    ask = ReplicaRead(request_id, at)
                local.send(owner, ask)
            else:
                tally.fail(owner, local.why_unreachable(owner))
        if local.node in owners:
            self._read_own(reading)
        if not tally.answered:
            self._requests[request_id] = reading
            self._set_deadline(request_id, timeout_s)
        self._advance_reading(request_id, reading)

    def _read_own(self, reading: Reading) -> None:
        local = self._local
        try:
            sealed = local.read_sealed(reading.key)
        except CorruptData:
            reading.tally.fail(local.node, "its copy fails the checksum")
            return
        reading.hold = local.store.pending(Space.RECORDS, reading.key)
        self._note_answer(reading, local.node, sealed)

    def handle_value(self, src: NodeId, message: ReplicaValue) -> None:
        """A replica's answer to a read."""
        reading = self._requests.get(message.id)
        if not isinstance(reading, Reading):
            return  # late: the request is over
        sealed = message.sealed
        if sealed is not None and sealed not in reading.answers.values():
            try:
                versions.decode(unseal(reading.key, sealed))
            except CorruptData:
                self._local.count("corrupt_answers")
                reading.tally.fail(src, "its answer fails the checksum")
                self._advance_reading(message.id, reading)
                return
        self._note_answer(reading, src, sealed)
        self._advance_reading(message.id, reading)

    def _note_answer(self, reading: Reading, node: NodeId, sealed: bytes | None) -> None:
        if node in reading.answers or node in reading.tally.failed:
            return
        reading.answers[node] = sealed
        if not reading.fastest:
            reading.fastest = node
        reading.tally.ack(node)

    def _advance_reading(self, request_id: int, reading: Reading) -> None:
        """Reply as soon as the outcome is known; finish once every replica asked has answered."""
        tally = reading.tally
        if not reading.replied and (tally.answered if reading.everyone else tally.outcome is not Outcome.PENDING):
            self._reply_reading(reading)
        if tally.answered:
            self._requests.pop(request_id, None)
            self._repair(reading)

    def _reply_reading(self, reading: Reading) -> None:
        reading.replied = True
        if reading.everyone:
            reading.done(self._explained(reading), reading.hold)
        elif reading.tally.outcome is Outcome.MET:
            reading.done(Found(self._merged(reading), reading.fastest), reading.hold)
        else:
            reading.done(Failure(Code.NOQUORUM, shortfall("R", reading.tally)), Durability.MEMORY)

    def _merged(self, reading: Reading) -> Record:
        merged = versions.EMPTY
        for sealed in dict.fromkeys(reading.answers.values()):
            if sealed is not None:
                merged = versions.merge(merged, versions.decode(memoryview(sealed)[CHECKSUM_BYTES:]))
        return self._local.settle(reading.key, merged)

    def _repair(self, reading: Reading) -> None:
        """Push the merged record to the replicas that answered with less (read repair, section 5)."""
        if len(set(reading.answers.values())) < 2:
            return
        local = self._local
        merged = self._merged(reading)
        sealed = seal(reading.key, versions.encode(merged))
        for node, held in sorted(reading.answers.items()):
            if held == sealed:
                continue
            local.count("read_repairs")
            if node == local.node:
                local.absorb(reading.key, sealed, Durability.OS)
            else:
                local.send(node, ReplicaRepair(reading.key, sealed))

    def _explained(self, reading: Reading) -> Explained:
        local = self._local
        assert local.ring is not None
        props = local.props(reading.bucket)
        members = local.members()
        replicas: dict[NodeId, Record | str] = dict(reading.tally.failed)
        for node, sealed in reading.answers.items():
            replicas[node] = versions.EMPTY if sealed is None else versions.decode(memoryview(sealed)[CHECKSUM_BYTES:])
        partition = local.ring.partition_of(reading.key)
        return Explained(
            position=reading.key[:POSITION_BYTES],
            partition=partition,
            preference=list(local.ring.preference(partition)),
            n=len(reading.tally.asked),
            r=effective(props.r, props.n, members),
            w=effective(props.w, props.n, members),
            replicas={owner: replicas[owner] for owner in reading.tally.asked if owner in replicas},
            merged=self._merged(reading),
            coordinator=local.node,
        )

    # --- put ---

    def put(self, put: PutRequest, done: Done, *, forwarded: bool = False) -> None:
        """Coordinate a put, or hand it to a node that can (sections 4.4 and 4.5)."""
        local = self._local
        try:
            props = local.props(put.bucket)
            self._admit(put.bucket, put.key, props)
            if put.value is not None and len(put.value) > props.value_bytes_max:
                text = f"value of {len(put.value)} bytes exceeds the limit of {props.value_bytes_max} bytes"
                raise Refused(Code.TOOBIG, f"{text} (bucket property value_bytes_max)")
            at = record_key(put.bucket, put.key)
            owners = local.owners(at, props.n)
            self._check_enough(owners, self._needed("W", put.w or props.w, props.n, props.pw), props)
            if local.node in owners:
                self._coordinate(at, put, props, done)
            elif forwarded:
                raise Refused(Code.NOQUORUM, f"{local.node} is not in the preference list: rings differ, try again")
            else:
                self._forward(put, owners, done)
        except Refused as refused:
            done(refused.failure, Durability.MEMORY)

    def _check_enough(self, owners: Sequence[NodeId], needed: int, props: BucketProps) -> None:
        """Refuse a put that cannot reach W owners, before anything of it is staged or sent."""
        local = self._local
        tally = Tally(owners, needed, primaries=owners, primaries_needed=effective(props.pw, props.n, local.members()))
        for owner in owners:
            if owner != local.node and owner not in local.reachable:
                tally.fail(owner, local.why_unreachable(owner))
        if tally.outcome is Outcome.UNREACHABLE:
            reachable = [owner for owner in owners if owner not in tally.failed]
            tally.acked.extend(reachable)
            raise Refused(Code.NOQUORUM, shortfall("W", tally))

    def _coordinate(self, at: bytes, put: PutRequest, props: BucketProps, done: Done) -> None:
        """Stamp now, or after a quorum read if the context names a write that our record does not account for."""
        local = self._local
        record = local.read_record(at)
        if not put.dots or versions.accounts_for(record, put.dots):
            self._stamp(at, put, props, record, done)
            return

        def stamp_after_read(result: Result, hold: Durability) -> None:
            del hold  # what we read is merged and staged here, so it is durable before the put is
            if isinstance(result, Found) and result.record.versions:
                local.absorb(at, seal(at, versions.encode(result.record)), props_durability(props))
            try:
                self._stamp(at, put, props, local.read_record(at), done)
            except Refused as refused:
                done(refused.failure, Durability.MEMORY)

        local.count("puts_after_read")
        self._start_reading(put.bucket, put.key, props, 0, put.timeout_s, stamp_after_read)

    def _stamp(self, at: bytes, put: PutRequest, props: BucketProps, record: Record, done: Done) -> None:
        """Mint the dot, stage the record, send it to the other owners: one synchronous step (invariant 4)."""
        local = self._local
        context = record.clock if put.context is None else put.context
        durability = props_durability(props)
        again = self._earlier_dot(at, put.request_id, record)
        if again is not None:
            local.count("puts_repeated")
            self._replicate(at, put, props, record, seal(at, versions.encode(record)), again, done)
            return
        local.notice_amnesia(record, context)
        lww = props.reconcile == "lww"
        floor = max(record.clock.values(), default=0) if lww else 0
        counter, leave_after = local.mint(floor)
        dot = (local.actor, counter)
        new = versions.put(
            record, record.clock if lww else context, dot, put.value,
            seen=put.dots, expires_at_ms=put.expires_at_ms, request_id=put.request_id,
        )  # fmt: skip
        if len(new.versions) > max(props.siblings_max, len(record.versions)):
            text = f"the key has {len(record.versions)} siblings, the limit (bucket property siblings_max)"
            raise Refused(Code.TOOMANYSIBLINGS, f"{text}: read them and write with the context")
        if len(new.versions) > props.siblings_warn:
            local.count("siblings_over_warning")
        sealed = local.write_record(at, record, new, durability)
        if put.request_id:
            self._remember(at, put.request_id, dot)
        local.count("puts")
        stored_context = versions.context_after_put(new, context, dot)
        self._replicate(at, put, props, new, sealed, dot, done, context=stored_context, leave_after=leave_after)

    def _replicate(
        self,
        at: bytes,
        put: PutRequest,
        props: BucketProps,
        record: Record,
        sealed: bytes,
        dot: Dot,
        done: Done,
        *,
        context: tuple[dict[str, int], tuple[Dot, ...]] | None = None,
        leave_after: Durability = Durability.MEMORY,
    ) -> None:
        """Send the staged record to the other owners and count durable acks, ours among them."""
        local = self._local
        owners = local.owners(at, props.n)
        durability = props_durability(props)
        if context is None:
            context = versions.context_after_put(record, put.context or {}, dot)
            local.store.stage(Space.RECORDS, at, sealed, durability)
        needed = self._needed("W", put.w or props.w, props.n, props.pw)
        tally = Tally(owners, needed, primaries=owners, primaries_needed=effective(props.pw, props.n, local.members()))
        request_id = local.new_id()
        clock, dots = context
        stored = Stored(clock, dots, len(record.versions), local.node)
        self._requests[request_id] = Writing(tally, stored, done)
        self._set_deadline(request_id, put.timeout_s)
        message = ReplicaWrite(request_id, at, sealed, durability, dot[1])
        for owner in owners:
            if owner == local.node:
                local.send(owner, ReplicaWrote([request_id]), max(durability, leave_after))
            elif owner in local.reachable:
                local.send(owner, message, leave_after)
            else:
                tally.fail(owner, local.why_unreachable(owner))
        self._advance_writing(request_id)

    def handle_wrote(self, src: NodeId, message: ReplicaWrote) -> None:
        """A replica has these writes durably."""
        requests = self._requests
        for request_id in message.ids:
            writing = requests.get(request_id)
            if isinstance(writing, Writing) and writing.tally.ack(src) is Outcome.MET:
                del requests[request_id]
                writing.done(writing.stored, Durability.MEMORY)

    def _advance_writing(self, request_id: int) -> None:
        writing = self._requests[request_id]
        assert isinstance(writing, Writing)
        if writing.tally.outcome is Outcome.UNREACHABLE:
            del self._requests[request_id]
            writing.done(Failure(Code.NOQUORUM, shortfall("W", writing.tally), unknown=True), Durability.MEMORY)

    def handle_refused(self, src: NodeId, message: ReplicaRefused) -> None:
        """A replica cannot serve a read or write."""
        request = self._requests.get(message.id)
        if isinstance(request, Reading | Writing):
            request.tally.fail(src, message.reason)
            self._advance(message.id, request)

    # --- retries ---

    def _earlier_dot(self, at: bytes, request_id: bytes, record: Record) -> Dot | None:
        """The dot that an earlier try of this request got: here (remembered), or elsewhere (still a version)."""
        if not request_id:
            return None
        version = versions.by_request(record, request_id)
        if version is not None:
            return version.dot
        return self._minted.get((at, request_id))

    def _remember(self, at: bytes, request_id: bytes, dot: Dot) -> None:
        self._minted[at, request_id] = dot
        if len(self._minted) > self._local.config.request_ids_max:
            del self._minted[next(iter(self._minted))]

    # --- forwarding ---

    def _forward(self, put: PutRequest, owners: Sequence[NodeId], done: Done) -> None:
        """Hand the put to the owner that the context prefers, or to the first reachable one (section 4.5)."""
        local = self._local
        candidates = [owner for owner in owners if owner in local.reachable]
        target = put.coordinator if put.coordinator in candidates else candidates[0]
        request_id = local.new_id()
        if not put.request_id:
            put = msgspec.structs.replace(put, request_id=b"fwd" + request_id.to_bytes(8))
        self._requests[request_id] = Forwarding(target, done)
        self._set_deadline(request_id, put.timeout_s)
        local.count("puts_forwarded")
        local.send(target, Forward(request_id, put))

    def handle_forward(self, src: NodeId, message: Forward) -> None:
        """Coordinate for a node outside the preference list."""
        local, request_id = self._local, message.id

        def done(result: Result, hold: Durability) -> None:
            assert isinstance(result, Stored | Failure)
            local.send(src, Forwarded(request_id, result), hold)

        self.put(message.put, done, forwarded=True)

    def handle_forwarded(self, src: NodeId, message: Forwarded) -> None:
        """The owner's answer: relay it."""
        request = self._requests.get(message.id)
        if isinstance(request, Forwarding) and request.target == src:
            del self._requests[message.id]
            request.done(message.result, Durability.MEMORY)

    # --- time and peers ---

    def handle_tick(self) -> None:
        """End the requests whose deadline has passed."""
        now_s = self._local.now_s
        while self._deadlines and self._deadlines[0][0] <= now_s:
            deadline_s, request_id = heapq.heappop(self._deadlines)
            request = self._requests.get(request_id)
            if request is not None:
                self._time_out(request_id, request, deadline_s)

    def _time_out(self, request_id: int, request: Reading | Writing | Forwarding, deadline_s: float) -> None:
        reason = "no answer in time"
        if isinstance(request, Forwarding):
            self._fail_forwarding(request_id, request, reason)
            return
        for node in request.tally.waiting():
            request.tally.fail(node, reason)
        self._advance(request_id, request)

    def handle_peer_down(self, node: NodeId, reason: str) -> None:
        """What was asked of this peer will not be answered."""
        for request_id, request in list(self._requests.items()):
            if isinstance(request, Forwarding):
                if request.target == node:
                    self._fail_forwarding(request_id, request, reason)
            elif node in request.tally.asked:
                request.tally.fail(node, reason)
                self._advance(request_id, request)

    def _advance(self, request_id: int, request: Reading | Writing) -> None:
        if isinstance(request, Reading):
            self._advance_reading(request_id, request)
        else:
            self._advance_writing(request_id)

    def _fail_forwarding(self, request_id: int, request: Forwarding, reason: str) -> None:
        del self._requests[request_id]
        text = f"forwarded to {request.target}: {reason}"
        request.done(Failure(Code.NOQUORUM, text, unknown=True), Durability.MEMORY)

    def check(self) -> None:
        """Assert that every request under way has a deadline: none can leak."""
        assert self._requests.keys() <= {request_id for _, request_id in self._deadlines}

    # --- admission ---

    def _admit(self, bucket: str, key: bytes, props: BucketProps) -> None:
        if len(self._requests) >= self._local.config.requests_max:
            self._local.count("busy")
            raise Refused(Code.BUSY, f"{len(self._requests)} requests are under way here; try again later")
        if len(key) > props.key_bytes_max:
            text = f"key of {len(key)} bytes exceeds the limit of {props.key_bytes_max} bytes"
            raise Refused(Code.TOOBIG, f"{text} (bucket property key_bytes_max)")

    def _needed(self, name: str, wanted: int, n: int, primaries: int) -> int:
        if not 1 <= wanted <= n:
            raise Refused(Code.INVALID, f"{name}={wanted} must lie between 1 and n={n}")
        members = self._local.members()
        return max(effective(wanted, n, members), effective(primaries, n, members))

    def _set_deadline(self, request_id: int, timeout_s: float) -> None:
        deadline_s = self._local.now_s + (timeout_s or self._local.config.request_timeout_s)
        heapq.heappush(self._deadlines, (deadline_s, request_id))


def props_durability(props: BucketProps) -> Durability:
    """The bucket's durability as a level."""
    return Durability[props.durability.upper()]


def shortfall(name: str, tally: Tally) -> str:
    """``need W=2, got 1 (n3: no answer in time)``."""
    reasons = "; ".join(f"{node}: {reason}" for node, reason in sorted(tally.failed.items()))
    return f"need {name}={tally.needed}, got {len(tally.acked)}" + (f" ({reasons})" if reasons else "")
