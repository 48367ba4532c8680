"""The get() state machine (section 4.5) and read repair (section 5).

    ask the first N healthy ──> R answers ──> Found: all concurrent versions ──> await the stragglers ──> repair the stale
          │       ^        └──> too few left, or deadline ──> NOQUORUM
          └ late ─┘ ask a fallback, too

A fallback answers from its hints (section 4.6). Where only fallbacks have answered, and none has heard of the key, the key may be
safe and sound at owners that cannot be reached: that is NOQUORUM, not "no such key".

Answers are kept as sealed bytes. Equal bytes are equal records, so in the usual case, all replicas agree, one of them is
decoded and nothing is merged.

**Hot keys.** Gets of one key that begin at the same moment (equal ``now_s``, and no write here in between) share one reading:
a thousand clients that ask for one key cost its replicas one question for each turn of the loop. Each of them sees what it
would have seen alone, for the question leaves only after the last of them has begun.
"""

from __future__ import annotations

from functools import partial

from cartwheel.core import versions
from cartwheel.core.coordinator.requests import Done, Refused, Requests, tally_shortfall
from cartwheel.core.coordinator.targets import Targets, choose, next_fallback
from cartwheel.core.errors import Code, CorruptData
from cartwheel.core.local import Local, Plan
from cartwheel.core.messages import (
    ClientExplain,
    ClientGet,
    Explained,
    Failure,
    Found,
    ReplicaRead,
    ReplicaRepair,
    ReplicaValue,
    Send,
)
from cartwheel.core.quorum import Outcome, Tally, effective
from cartwheel.core.storage import CHECKSUM_BYTES, POSITION_BYTES, record_key, seal, unseal
from cartwheel.core.types import Durability, NodeId
from cartwheel.core.versions import Record


class Reading:
    """A get under way.

    Invariants: ``answers`` are verified records of nodes in ``tally.acked``; ``agreed`` iff they are all equal to ``first``.
    """

    __slots__ = (
        "agreed", "answers", "at", "began_s", "bucket", "corrupt", "deadline_s", "dones", "doubtful", "everyone", "fastest",
        "first", "gets", "id", "own", "owners", "reminded", "replied", "spares", "tag", "tally", "wanted_r",
    )  # fmt: skip

    def __init__(
        self,
        gets: Gets,
        bucket: str,
        at: bytes,
        wanted_r: int,
        deadline_s: float,
        done: Done,
        *,
        everyone: bool,
    ) -> None:
        self.gets = gets
        self.began_s = gets.local.now_s
        self.deadline_s = deadline_s
        self.bucket = bucket
        self.at = at  # the record key
        self.wanted_r = wanted_r  # 0: the bucket's
        self.dones = [done]  # whom to answer
        self.everyone = everyone  # reply once every replica has answered (explain), not at R
        self.replied = False

    def aim(self, targets: Targets, tally: Tally) -> None:
        """Ask these, none of which has answered yet."""
        self.id = self.gets.local.new_id()
        self.owners = targets.owners
        self.tag = targets.slots.tag
        self.tally = tally
        self.answers: dict[NodeId, bytes | None] = {}
        self.first: bytes | None = None
        self.own: Record | None = None  # our own answer, decoded
        self.fastest: NodeId = ""
        self.agreed = True
        self.corrupt: list[NodeId] = []  # these hold a copy that fails its checksum
        self.doubtful: list[NodeId] = []  # fallbacks asked only because an owner is late,
        self.reminded = False
        self.spares: list[NodeId] = []  # and those of them that hold nothing: they count once the owner is given up

    def note(self, node: NodeId, sealed: bytes | None) -> None:
        """Take a replica's verified answer. Only its first counts."""
        answers = self.answers
        if sealed is None and node in self.doubtful:
            if node not in self.spares:
                self.spares.append(node)
            return
        if not answers:
            self.first, self.fastest = sealed, node
        elif node in answers:
            return
        elif sealed != self.first:
            self.agreed = False
        if node not in self.tally.failed:
            answers[node] = sealed
            self.tally.ack(node)

    def waiting(self) -> list[NodeId]:
        """See ``Request``."""
        return self.tally.waiting()

    def fail(self, node: NodeId, reason: str) -> None:
        """See ``Request``."""
        if not self.replied and node not in self.corrupt:
            if self.spares:
                spare = self.spares.pop(0)
                self.doubtful.remove(spare)
                self.note(spare, None)
            else:
                self.gets.ask_another(self)
        self.tally.fail(node, reason)
        self.gets.advance(self)

    def late(self) -> None:
        """See ``Request``."""
        waiting = self.waiting()
        self.gets.remind(self, waiting)
        for _ in waiting if not self.reminded else ():
            node = self.gets.ask_another(self)
            if node is not None:
                self.doubtful.append(node)
        self.reminded = True

    def doubt(self, node: NodeId) -> None:
        """This node was found silent: it may answer yet, but what a fallback said in its place counts now."""
        if self.spares and not self.replied and node in self.waiting():
            spare = self.spares.pop(0)
            self.doubtful.remove(spare)
            self.note(spare, None)
            self.gets.advance(self)

    def again(self, node: NodeId) -> None:
        """See ``Request``."""
        if node in self.waiting():
            self.gets.remind(self, [node])

    def replan(self) -> None:
        """See ``Request``."""
        self.gets.maybe_restart(self)

    def expire(self) -> None:
        """See ``Request``."""
        for node in self.waiting():
            self.tally.fail(node, "no answer in time")
        self.gets.advance(self)


class Gets:
    """This node's gets."""

    def __init__(self, local: Local, requests: Requests) -> None:
        self.local = local
        self._requests = requests
        self._moment = (0.0, 0)  # when the readings below began: the time, and how many writes there had been
        self._joinable: dict[tuple[str, bytes], Reading] = {}

    def get(self, event: ClientGet) -> None:
        """Read from the first N healthy nodes, answer at R; or join a reading that begins at this moment."""
        local = self.local
        done = partial(local.reply, event.client)
        plan = local.plan(event.bucket)
        r = event.r
        if r or event.timeout_s:
            if not 0 <= r <= plan.props.n:
                text = f"R={r} must lie between 1 and n={plan.props.n}"
                done(Failure(Code.INVALID, text))
                return
            self.start(event.bucket, event.key, plan, r, event.timeout_s, done)
            return
        moment, name = (local.now_s, local.writes), (event.bucket, event.key)
        if moment != self._moment:
            self._moment = moment
            self._joinable.clear()
        reading = self._joinable.get(name)
        if reading is not None and not reading.replied:
            reading.dones.append(done)
            return
        self._joinable[name] = self.start(event.bucket, event.key, plan, 0, 0.0, done)

    def explain(self, event: ClientExplain) -> None:
        """Read from all N owners and tell what each one holds."""
        done = partial(self.local.reply, event.client)
        self.start(event.bucket, event.key, self.local.plan(event.bucket), 0, 0.0, done, everyone=True)

    def start(
        self, bucket: str, key: bytes, plan: Plan, r: int, timeout_s: float, done: Done, *, everyone: bool = False
    ) -> Reading:
        """Begin a get; ``done`` gets Found (Explained, if for ``everyone``) or Failure. ``r`` of 0 is the bucket's."""
        at = record_key(bucket, key)
        reading = Reading(self, bucket, at, r, self.local.deadline_s(timeout_s), done, everyone=everyone)
        self._ask(reading, plan)
        return reading

    def maybe_restart(self, reading: Reading) -> None:
        """If the slots of the key are others than when it was asked for, ask anew, those who count now."""
        local, plan = self.local, self.local.plan(reading.bucket)
        if local.slots(reading.at, plan.props.n).tag == reading.tag:
            return
        self._requests.end(reading.id)
        if not reading.replied:
            local.count("gets_replanned")
            self._ask(reading, plan)

    def _ask(self, reading: Reading, plan: Plan) -> None:
        local, at, r = self.local, reading.at, reading.wanted_r
        targets = choose(local, at, plan.props.n, local.readable)
        owners = targets.owners
        if targets.slots.blanks:
            plan = local.plan_for(plan, reading.bucket, targets.slots)
        needed = max(effective(r, plan.props.n, plan.members) if r else plan.r, plan.pr)
        tally = Tally(targets.asked, needed, primaries=owners, primaries_needed=plan.pr)
        reading.aim(targets, tally)
        reading_id = reading.id
        message = ReplicaRead(reading_id, at, reading.tag)
        me, out, asked_read = local.node, local.out, local.asked_read
        for node in tally.asked:
            if node != me:
                out.append(Send(node, message))
                asked_read[node] = reading_id
            else:
                self._read_own(reading)
        if tally.asked is not owners:
            self._note_missing(tally, targets)
        if not tally.answered:
            self._requests.add(reading_id, reading, reading.deadline_s)
        if tally.outcome is not Outcome.PENDING:
            self.advance(reading)

    def _note_missing(self, tally: Tally, targets: Targets) -> None:
        """Owners that cannot be asked: they count as failed, so that the outcome is known and the client told why."""
        for owner in targets.owners:
            if owner not in tally.asked:
                tally.add(owner)
                tally.fail(owner, self.local.why_unreachable(owner))

    def remind(self, reading: Reading, silent: list[NodeId]) -> None:
        """Ask these once more: a message may be lost."""
        message = ReplicaRead(reading.id, reading.at, reading.tag)
        for node in silent:
            if node != self.local.node:
                self.local.send(node, message)

    def ask_another(self, reading: Reading) -> NodeId | None:
        """A node does not answer, or cannot: ask the next healthy one, if there is any. Returns it."""
        local = self.local
        node = next_fallback(local, reading.at, len(reading.owners), reading.tally.asked, local.readable)
        if node is None or reading.everyone:
            return None
        local.count("reads_rerouted")
        reading.tally.add(node)
        local.asked_read[node] = max(reading.id, local.asked_read.get(node, 0))
        local.send(node, ReplicaRead(reading.id, reading.at, reading.tag))
        return node

    def _read_own(self, reading: Reading) -> None:
        """Our own answer. One that is not durable yet comes by a message to ourselves that waits: others may be faster."""
        local, at = self.local, reading.at
        try:
            entry, hold = local.answer(at)
        except CorruptData:
            reading.tally.fail(local.node, "its copy fails the checksum")
            reading.corrupt.append(local.node)
            return
        sealed = None if entry is None else entry[0]
        if hold:
            local.send(local.node, ReplicaValue(reading.id, sealed), hold)
            return
        reading.note(local.node, sealed)
        if entry is not None:
            reading.own = entry[1]

    def handle_value(self, src: NodeId, message: ReplicaValue) -> None:
        """A replica's answer."""
        heard = self.local.heard_read
        if message.id > heard.get(src, 0):
            heard[src] = message.id
        reading = self._requests.by_id.get(message.id)
        if reading.__class__ is not Reading:
            return  # late: the request is over
        assert isinstance(reading, Reading)
        if src not in reading.tally.asked:
            return
        sealed = message.sealed
        if sealed is not None and sealed != reading.first:
            try:
                versions.decode(unseal(reading.at, sealed))
            except CorruptData:
                self.local.count("corrupt_answers")
                reading.fail(src, "its answer fails the checksum")
                return
        reading.note(src, sealed)
        self.advance(reading)

    def advance(self, reading: Reading) -> None:
        """Reply as soon as the outcome is known; finish once every replica asked has answered or failed."""
        tally = reading.tally
        answered = tally.answered
        if not reading.replied and (answered or (not reading.everyone and self._is_decided(reading))):
            self._reply(reading)
        if answered:
            self._requests.end(reading.id)
            if reading.corrupt or not reading.agreed:
                self._repair(reading)
        elif reading.replied:
            self._requests.answered(reading.id)

    def _is_decided(self, reading: Reading) -> bool:
        """Whether the outcome is known. R fallbacks that have not heard of the key decide nothing while an owner may answer."""
        if reading.tally.outcome is not Outcome.MET:
            return reading.tally.outcome is not Outcome.PENDING
        if not self._nobody_can_know(reading):
            return True
        waiting = reading.waiting()
        return not any(owner in waiting for owner in reading.owners)

    def _reply(self, reading: Reading) -> None:
        reading.replied = True
        result: Explained | Found | Failure
        if reading.everyone:
            result = self._explained(reading)
        elif reading.tally.outcome is not Outcome.MET:
            result = Failure(Code.NOQUORUM, tally_shortfall("R", reading.tally))
        elif self._nobody_can_know(reading):
            text = "no owner of the key has answered, and the fallbacks have not heard of it"
            result = Failure(Code.NOQUORUM, text)
        else:
            result = Found(self._merged(reading), reading.fastest)
            self.local.note_read(self.local.now_s - reading.began_s)
        for done in reading.dones:
            done(result, Durability.MEMORY)

    def _nobody_can_know(self, reading: Reading) -> bool:
        """Whether all answers are "never heard of it", and all from fallbacks."""
        if reading.first is not None or not reading.agreed:
            return False
        return not any(owner in reading.answers for owner in reading.owners)

    def _merged(self, reading: Reading) -> Record:
        """What the answers amount to."""
        if reading.agreed:
            return self.local.settle(reading.at, reading.own or opened(reading.first))
        merged = versions.EMPTY
        for sealed in dict.fromkeys(reading.answers.values()):
            merged = versions.merge(merged, opened(sealed))
        return self.local.settle(reading.at, merged)

    def _repair(self, reading: Reading) -> None:
        """Push the merged record to the replicas that answered with less, or whose copy is corrupt."""
        local = self.local
        merged = self._merged(reading)
        if not merged.clock:
            return  # nobody knows anything: a corrupt copy is all there is
        sealed = seal(reading.at, versions.encode(merged))
        stale = [node for node, held in reading.answers.items() if held != sealed]
        for node in sorted(stale + reading.corrupt):
            if node not in reading.owners:
                continue  # a fallback keeps only what was meant for others
            if node != local.node and node not in local.writable:
                continue  # its disk is slow or full: anti-entropy sees to it
            local.count("read_repairs")
            if node == local.node:
                local.absorb(reading.at, sealed, Durability.OS)
            else:
                local.send(node, ReplicaRepair(reading.at, sealed))

    def _explained(self, reading: Reading) -> Explained:
        local, plan = self.local, self.local.plan(reading.bucket)
        assert local.ring is not None
        replicas: dict[NodeId, Record | str] = {}
        for owner in reading.owners:
            replicas[owner] = reading.tally.failed.get(owner) or opened(reading.answers[owner])
        for node, sealed in reading.answers.items():
            if node not in replicas and sealed is not None:
                replicas[node] = opened(sealed)  # a fallback's hints
        partition = local.ring.partition_of(reading.at)
        return Explained(
            position=reading.at[:POSITION_BYTES],
            partition=partition,
            preference=[*local.owners(reading.at, plan.props.n), *local.fallbacks(reading.at, plan.props.n)],
            n=len(reading.owners),
            r=plan.r,
            w=plan.w,
            replicas=replicas,
            merged=self._merged(reading),
            coordinator=local.node,
        )


def opened(sealed: bytes | None) -> Record:
    """The record in sealed bytes that were verified before; None is the empty one."""
    return versions.EMPTY if sealed is None else versions.decode(memoryview(sealed)[CHECKSUM_BYTES:])


def check_key(key: bytes, plan: Plan) -> None:
    """Refuse a key over the bucket's limit, or a bucket whose name is too long for any."""
    if plan.refusal:
        raise Refused(Code.INVALID, plan.refusal)
    most = plan.props.key_bytes_max
    if len(key) > most:
        text = f"key of {len(key)} bytes exceeds the limit of {most} bytes (bucket property key_bytes_max)"
        raise Refused(Code.TOOBIG, text)
