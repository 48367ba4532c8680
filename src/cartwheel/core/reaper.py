"""Reaping: tombstones and expired versions are removed for good, and what they deleted never returns.

A record is **dead** if none of its versions shows a value any more: all are tombstones or have expired, for longer than the
grace. While a dead record stays, it covers whatever it deleted. Once it is gone an older copy would count as news; so it may go
only when no older copy is left *anywhere*: not at an owner, not in a hint, not in a message or request under way.

    first owner of the partition                                   every member of the ring, and those that leave it
      finds dead records, round 1:  ReapAsk(keys, checksums) ────>   an owner: "I hold exactly this, synced, and find it dead"
                                    <──────────────── ReapReady      everyone: "I keep no hint of these keys"
      waits for the quarantine, which outlives all messages and requests of before
      round 2: the same again       ────────────────────────────>   a message of before may have left a hint: not any more
      Reap ─────────────────────────────────────────────────────>   the owners remove what they still hold exactly so

Why that is safe. After round 1 no node has an older copy on its disk or in its hints. What was under way then, or grew out of it,
has arrived by round 2: at an owner it merged into the dead record and changed nothing; at a fallback it became a hint, and round
2 finds it. A member that does not answer, because it is stopped or cut off, may have hints: then nothing is reaped. An
administrator who removes it ends the wait. A clock that is wrong only shortens the grace, and each owner goes by its own clock.

Removing a tombstone of our own forgets a dot that we minted (versions, invariant A). Here that is no loss: our next dot on the
key is a higher one, and what its clock entry covers besides is dead at every node.

*Departs from the paper*, which has no delete. Riak's three seconds and Cassandra's grace alone let deleted values return.

Invariants:
1. A record is removed only after two rounds, a quarantine apart, in which every member agreed to exactly this record.
2. What an owner holds now is compared once more when it removes.

Memory: the candidates, at most ``QUARANTINED_MAX`` batches. Messages: two asks to each member for a batch. It is background work,
paid from the budget (section 6.5).
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence

from cartwheel.core import versions
from cartwheel.core.clock import wall_ms_of
from cartwheel.core.errors import CorruptData
from cartwheel.core.local import Local
from cartwheel.core.messages import Reap, ReapAsk, ReapReady
from cartwheel.core.storage import CHECKSUM_BYTES, Space, split_record_key
from cartwheel.core.types import Durability, NodeId
from cartwheel.core.versions import Record

META_REAP = b"reap"
"""Written so that an answer waits for a sync of everything before it."""
BATCH = 1000
BATCH_BYTES = 1 << 20
"""Candidates of one round, and their keys' bytes."""
QUARANTINED_MAX = 200
"""Batches that wait for their second round: with a quarantine of two minutes some 1,600 records a second can be reaped."""
GATHER_S = 5.0
"""Candidates are gathered for so long, if there are always more."""
SCAN_ROWS = 500
"""Rows read in one step: a millisecond or two."""
ROWS_FOR_ONE = 8
"""Reading so many rows costs about as much as moving one."""
ANSWER_S = 5.0
"""A round that has not heard from every member by then is given up, and tried again later."""

Candidate = tuple[bytes, bytes]
"""A record key, and the checksum of the dead record."""


class Round:
    """A question to all members."""

    __slots__ = ("asked_s", "elsewhere", "id", "left", "number", "waiting")

    def __init__(self, number: int, request_id: int, candidates: list[Candidate], asked_s: float) -> None:
        self.number = number
        self.id = request_id
        self.left: list[Candidate | None] = list(candidates)  # None: somebody refuses
        self.asked_s = asked_s
        self.waiting: set[NodeId] = set()
        self.elsewhere: list[tuple[NodeId, Candidate]] = []  # left over with nodes that have no part in them


class Reaper:
    """This node's part: as first owner of some partitions, and as a member who is asked."""

    def __init__(self, local: Local) -> None:
        self._local = local
        self._suspects: dict[int, float] = {}  # partition that may hold dead records -> when to look at it
        self._scan: tuple[int, bytes] | None = None  # the partition that is being read, and from where
        self._found: list[Candidate] = []
        self._found_bytes = 0
        self._found_s = 0.0  # when there was nothing found, last
        self._known: set[bytes] = set()  # Invariant: the keys found, asked for, or quarantined
        self._round: Round | None = None
        self._quarantined: deque[tuple[float, list[Candidate]]] = deque()  # agreed in round 1, and when

    # --- what may be dead ---

    def start(self) -> None:
        """Look at every partition once: what an earlier life knew is forgotten."""
        assert self._local.ring is not None
        self._suspects = dict.fromkeys(range(self._local.ring.q), self._local.now_s + self._local.config.reap_pause_s)

    def handle_place(self) -> None:
        """There is a new view: other nodes may be first owners, and there may be more partitions."""
        ring = self._local.ring
        assert ring is not None
        at_s = self._local.now_s + self._local.config.reap_pause_s
        for partition in range(ring.q) if self._suspects else ():
            if self._suspects.get(partition, 0.0) == math.inf:
                self._suspects[partition] = at_s

    def note_write(self, record_key: bytes, new: Record) -> None:
        """A record that is written may die one day."""
        for version in new.versions:
            if version.value is None or version.expires_at_ms:
                assert self._local.ring is not None
                partition = self._local.ring.partition_of(record_key)
                if partition not in self._suspects:
                    self._suspects[partition] = self._local.now_s + self._local.config.reap_grace_s
                return

    def _dead(self, record: Record) -> bool:
        """Whether nothing of the record shows, for longer than the grace, by our clock."""
        latest_ms = self._local.wall_ms - int(self._local.config.reap_grace_s * 1000)
        for version in record.versions:
            since_ms = wall_ms_of(version.counter) if version.value is None else version.expires_at_ms
            if not 0 < since_ms <= latest_ms:
                return False
        return True

    # --- the first owner ---

    def handle_tick(self) -> None:
        """Go one step on: read, ask, wait, ask again."""
        local = self._local
        if self._round is not None:
            if local.now_s - self._round.asked_s > ANSWER_S:
                local.count("reap_rounds_unanswered")
                self._forget([candidate for candidate in self._round.left if candidate is not None])
                self._round = None
        elif self._quarantined and local.now_s - self._quarantined[0][0] >= local.config.reap_quarantine_s:
            self._ask(2, self._quarantined.popleft()[1])
        elif len(self._quarantined) < QUARANTINED_MAX and (not self._gather() or self._waited()) and self._found:
            found, self._found, self._found_bytes = self._found, [], 0
            self._ask(1, found)

    def _waited(self) -> bool:
        """Whether what was found has waited for long: where many partitions hold tombstones there is always more to read."""
        if not self._found:
            self._found_s = self._local.now_s
        return self._local.now_s - self._found_s >= GATHER_S

    def _gather(self) -> bool:
        """Read on in the partition that is due. False: there is none, or enough is found."""
        local, ring = self._local, self._local.ring
        assert ring is not None
        if len(self._found) >= BATCH or self._found_bytes >= BATCH_BYTES:
            return False
        if self._scan is None:
            partition = self._next_due()
            if partition is None:
                return False
            self._scan = partition, ring.bounds(partition)[0]
            del self._suspects[partition]
        if local.budget(1):
            self._read_slice(*self._scan)
        return True

    def _read_slice(self, partition: int, start: bytes) -> None:
        """Gather the dead records among the next rows."""
        local, ring = self._local, self._local.ring
        assert ring is not None
        try:
            rows = local.store.scan(Space.RECORDS, start, ring.bounds(partition)[1], limit=SCAN_ROWS)
        except CorruptData:
            rows = []  # the scrub sees to it
        local.budget(len(rows) // ROWS_FOR_ONE)
        for record_key, sealed in rows:
            if self._consider(record_key, sealed):
                self._suspects[partition] = local.now_s + local.config.reap_pause_s
        self._scan = (partition, rows[-1][0] + b"\x00") if len(rows) == SCAN_ROWS else None

    def _next_due(self) -> int | None:
        """The partition that waits for longest, if its time has come and this node is its first owner."""
        now_s = self._local.now_s
        due = [(at, partition) for partition, at in self._suspects.items() if at <= now_s]
        for _, partition in sorted(due):
            if self._leads(partition):
                return partition
            self._suspects[partition] = (
                math.inf
            )  # not ours, unless the ring changes: then every partition is looked at anew
        return None

    def _leads(self, partition: int) -> bool:
        """Whether this node is the first owner, for buckets of any n."""
        local, placement = self._local, self._local.placement
        assert placement is not None
        return any(placement.slots(partition, n).owners[:1] == (local.node,) for n in local.levels)

    def _consider(self, record_key: bytes, sealed: bytes) -> bool:
        """Gather a dead record. Returns whether it is dead or may become so."""
        local = self._local
        try:
            if local.owners(record_key, local.props(split_record_key(record_key)[0]).n)[:1] != (local.node,):
                return False
            record = versions.decode(memoryview(sealed)[CHECKSUM_BYTES:])
        except CorruptData:
            return False
        if record_key not in self._known and self._dead(record):
            self._known.add(record_key)
            self._found.append((record_key, sealed[:CHECKSUM_BYTES]))
            self._found_bytes += len(record_key)
        return any(version.value is None or version.expires_at_ms for version in record.versions)

    def _ask(self, number: int, candidates: list[Candidate]) -> None:
        """Ask every member, ourselves first."""
        local = self._local
        assert local.placement is not None
        refused = set(self._refused(*_columns(candidates)))
        self._forget([candidate for i, candidate in enumerate(candidates) if i in refused])
        candidates = [candidate for i, candidate in enumerate(candidates) if i not in refused]
        others = sorted(local.placement.peers - {local.node})
        if not candidates:
            return
        if any(node not in local.reachable for node in others):
            local.count("reap_rounds_waiting")
            self._forget(candidates)
            return
        asked = self._round = Round(number, local.new_id(), candidates, local.now_s)
        asked.waiting = {local.node, *others}
        message = ReapAsk(asked.id, *_columns(candidates))
        for node in others:
            local.send(node, message)
        self._promise(local.node, asked.id, [])

    def handle_ready(self, src: NodeId, message: ReapReady) -> None:
        """A member's answer."""
        asked = self._round
        if asked is None or message.id != asked.id or src not in asked.waiting:
            return
        for i in message.refused:
            refused = asked.left[i] if 0 <= i < len(asked.left) else None
            if refused is not None:
                self._forget([refused])
                asked.left[i] = None
        asked.elsewhere += [
            (src, candidate)
            for i in message.left
            if 0 <= i < len(asked.left) and (candidate := asked.left[i]) is not None
        ]
        asked.waiting.discard(src)
        if asked.waiting:
            return
        self._round = None
        left = [candidate for candidate in asked.left if candidate is not None]
        if asked.number == 1 and left:
            self._quarantined.append((self._local.now_s, left))
        elif left:
            self._reap(left, asked.elsewhere)

    def _forget(self, candidates: list[Candidate]) -> None:
        """These are no longer looked after: a later look at their partition finds them anew."""
        self._known.difference_update([record_key for record_key, _ in candidates])

    def _reap(self, candidates: list[Candidate], elsewhere: list[tuple[NodeId, Candidate]]) -> None:
        local = self._local
        self._forget(candidates)
        shares: dict[NodeId, list[Candidate]] = {}
        for candidate in candidates:
            bucket = split_record_key(candidate[0])[0]
            for owner in local.slots(candidate[0], local.props(bucket).n).writers:
                shares.setdefault(owner, []).append(candidate)
        agreed = set(candidates)
        for node, candidate in elsewhere:
            if candidate in agreed:
                shares.setdefault(node, []).append(candidate)
        for owner, share in shares.items():
            if owner == local.node:
                self._remove(*_columns(share))
            else:
                local.send(owner, Reap(*_columns(share)))

    # --- a member that is asked ---

    def handle_ask(self, src: NodeId, message: ReapAsk) -> None:
        """Agree to what we hold exactly so, or do not own; refuse what we keep a hint of."""
        if len(message.checksums) == CHECKSUM_BYTES * len(message.record_keys):
            refused = self._refused(message.record_keys, message.checksums)
            self._promise(src, message.id, refused, self._left_over(message.record_keys, refused))

    def _left_over(self, record_keys: list[bytes], refused: list[int]) -> list[int]:
        """Those that lie here, though we have no part in them."""
        local = self._local
        return [
            i
            for i, key in enumerate(record_keys)
            if i not in refused
            and not local.is_writer(local.node, key)
            and local.store.get(Space.RECORDS, key) is not None
        ]

    def _promise(self, dst: NodeId, request_id: int, refused: list[int], left: Sequence[int] = ()) -> None:
        """Answer once all that was written here before is synced, however little its writers asked for."""
        local = self._local
        local.store.stage(Space.META, META_REAP, b"\x01", Durability.SYNC)
        local.send(dst, ReapReady(request_id, refused, list(left)), Durability.SYNC)

    def _refused(self, record_keys: list[bytes], checksums: bytes) -> list[int]:
        hinted = self._local.hints.holds_any(record_keys)
        return [i for i, key in enumerate(record_keys) if hinted[i] or not self._agrees(key, _nth(checksums, i))]

    def _agrees(self, record_key: bytes, checksum: bytes) -> bool:
        """Whether we hold exactly this record and find it dead; or hold nothing, and are no owner."""
        local = self._local
        try:
            bucket = split_record_key(record_key)[0]
            entry = local.read_entry(record_key)
        except CorruptData:
            return False
        if entry is None:
            return local.node not in local.owners(record_key, local.props(bucket).n)
        return entry[0][:CHECKSUM_BYTES] == checksum and self._dead(entry[1])

    def handle_reap(self, src: NodeId, message: Reap) -> None:
        """Every member has agreed twice."""
        del src
        if len(message.checksums) == CHECKSUM_BYTES * len(message.record_keys):
            self._remove(message.record_keys, message.checksums)

    def _remove(self, record_keys: list[bytes], checksums: bytes) -> None:
        local = self._local
        for i, record_key in enumerate(record_keys):
            try:
                entry = local.read_entry(record_key)
            except CorruptData:
                continue
            if entry is not None and entry[0][:CHECKSUM_BYTES] == _nth(checksums, i) and self._dead(entry[1]):
                local.remove_record(record_key, entry[1], entry[0])
                local.count("records_reaped")


def _columns(candidates: list[Candidate]) -> tuple[list[bytes], bytes]:
    return [key for key, _ in candidates], b"".join([checksum for _, checksum in candidates])


def _nth(checksums: bytes, i: int) -> bytes:
    return checksums[i * CHECKSUM_BYTES : (i + 1) * CHECKSUM_BYTES]
