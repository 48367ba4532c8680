"""What the machines of one node share: its settings, store and clock, its view of the ring, and the list of effects.

The machines (``coordinator``, ``replica``, ``coverage``, ``membership``) do not know one another; they meet in ``node``, and
here. All writes of records go through ``write_record``, all reads through ``read_record``: there a checksum is verified, and
there a node that finds that it has forgotten something becomes a new stint.

Invariant: ``actor`` changes before the next dot is minted whenever this node may have forgotten a dot of its own (versions,
invariant A): its record fails its checksum, or another node's record accounts for a dot of ours that ours does not.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection
from typing import NamedTuple

from cartwheel.core import versions
from cartwheel.core.clock import HybridClock
from cartwheel.core.config import DURABILITY, BucketProps, Config
from cartwheel.core.errors import CorruptData, HintsFull
from cartwheel.core.hintstore import HintStore
from cartwheel.core.hot import Entry, HotRecords
from cartwheel.core.messages import Effect, Message, Reply, Result, Send
from cartwheel.core.placement import Placement, Slots
from cartwheel.core.quorum import effective
from cartwheel.core.ring import Ring
from cartwheel.core.storage import BUCKET_BYTES_MAX, Space, Store, seal, split_record_key, unseal
from cartwheel.core.types import Actor, Clock, Dot, Durability, NodeId, make_actor
from cartwheel.core.versions import Record

META_STINT = b"stint"
DEFAULT_PROPS = BucketProps()
CORRUPT_MAX = 10_000
"""Corrupt records that a node keeps in mind; forgetting them costs another stint each."""
PLANS_MAX = 1000
"""Bucket names come from clients: a client that makes them up must not fill our memory."""


class Plan(NamedTuple):
    """How requests on one bucket run in this cluster: its properties, capped by the number of members (``effective``)."""

    props: BucketProps
    members: int
    r: int
    w: int
    pr: int
    pw: int
    w_needed: int
    """Acks of a put that names no W of its own."""
    durability: Durability
    """What an ack waits for."""
    one: bool
    """Whether one of the N is asked for a durable write that W does not wait for (section 6.1)."""
    lww: bool
    refusal: str
    """Why the bucket cannot exist, if so: the name is too long for a record key."""


class Local:
    """The shared state of one node's machines. ``now_s``, ``wall_ms`` and ``out`` are set anew for each event."""

    def __init__(  # noqa: PLR0915  # each line is a fact of the node
        self, config: Config, store: Store, clock: HybridClock, *, stint: str, boot: int
    ) -> None:
        self.config = config
        self.node: NodeId = config.node
        self.store = store
        self.clock = clock
        self.now_s = 0.0
        self.wall_ms = 0
        self.out: list[Effect] = []
        self.counters: defaultdict[str, int] = defaultdict(int)
        self.stint = stint
        self.actor: Actor = make_actor(self.node, stint)
        self.hot = HotRecords()
        self.hints = HintStore(
            store,
            lambda: self.wall_ms,
            node_bytes_max=config.hint_bytes_max_per_node,
            bytes_max=config.hint_bytes_max,
        )
        self.writes = 0  # of records, in this life
        self.served = 0  # messages of coordinators' reads and writes, in this life
        self._corrupt: set[bytes] = set()  # records found corrupt and not rewritten since
        self._next_id = boot << 32
        self.ring: Ring | None = None
        self.placement: Placement | None = None
        self.members = 0  # how many nodes the ring has
        self.size = 0  # the same, and those that leave
        self.peers: frozenset[NodeId] = frozenset()  # all of these
        self.epoch = b""
        self.serves = False  # we are a member, or leave and still take part
        self.retired = False  # we leave, and have handed over everything: what clients have under way is the last of it
        self.levels: tuple[int, ...] = ()
        """Each n in use, ascending."""
        self.buckets: dict[str, BucketProps] = {}
        self._plans: dict[str, Plan] = {}
        self.reachable: set[NodeId] = set()
        """Peers that the transport can send to."""
        self.unreachable: dict[NodeId, str] = {}
        """The others, and why."""
        self.verdicts: dict[NodeId, str] = {}
        """What the failure detector finds of those that are reachable, but not well; of us, that our disk is nearly full."""
        self.readable: set[NodeId] = set()
        self.writable: set[NodeId] = set()
        """The reachable ones that answer reads, and those that answer writes, in time: ``failure`` decides."""
        self.deletable: set[NodeId] = set()
        """The writable ones, and those whose disk is too full for more than a delete."""
        self.asked_read: dict[NodeId, int] = {}
        self.asked_write: dict[NodeId, int] = {}
        """The id of the last request that each was sent, and"""
        self.heard_read: dict[NodeId, int] = {}
        self.heard_write: dict[NodeId, int] = {}
        """of the last that it answered (or an earlier one that came late)."""
        self.note_read: Callable[[float], None] = _unnoticed
        """Told the latency of each get, in seconds."""
        self.note_write: Callable[[float], None] = _unnoticed
        """Told the latency of each put that was stored, in seconds."""
        self.requests_limit = config.requests_max
        """With so many requests under way this coordinator is full: ``admission`` decides."""
        self.crowded = False
        """A request found three quarters of that under way since ``admission`` last looked."""
        self.takes_writes = True
        """False while our own disk is nearly full: only deletes are written here."""
        self.budget: Callable[[int], bool] = _granted
        """Whether background work of so many records may be done now: ``admission`` decides."""
        self.spend: Callable[[int], None] = _spent
        """Told of background work that is done, as it turned out to be more than was asked for."""
        self.on_write: Callable[[bytes, Record, Record, bytes | None, bytes | None], None] = _ignore
        self.on_mortal: Callable[[bytes, Record], None] = _ignore_mortal
        """Told of records that may be dead one day: with a tombstone or an expiry."""
        """Told each write of a record: its key, old and new, and the same sealed (None: there is none)."""
        self.mark_missing: Callable[[bytes], None] = _ignore_key
        """Told of keys whose record is known to be missing somewhere: anti-entropy compares their partition soon."""
        self.on_corrupt: Callable[[bytes], None] = _ignore_key
        """Told the key of a record that was found corrupt."""
        self.before_place: Callable[[], None] = _ignore_place
        self.on_place: Callable[[], None] = _ignore_place
        """Told that ring, members, holdings or buckets are about to change, and that they may have."""

    # --- effects ---

    def send(self, dst: NodeId, message: Message, hold: Durability = Durability.MEMORY) -> None:
        """Send to a peer, or to ourselves once ``hold`` allows."""
        self.out.append(Send(dst, message, hold))

    def reply(self, client: object, result: Result, hold: Durability = Durability.MEMORY) -> None:
        """Answer a client."""
        self.out.append(Reply(client, result, hold))

    def count(self, name: str, by: int = 1) -> None:
        """Add to a counter that ``status`` shows."""
        self.counters[name] += by

    @property
    def last_id(self) -> int:
        """The latest request id given out: ids rise by one."""
        return self._next_id

    def new_id(self) -> int:
        """A request id that no life of this node used before."""
        self._next_id += 1
        return self._next_id

    # --- placement ---

    def place(self, placement: Placement, epoch: bytes, buckets: dict[str, BucketProps]) -> None:
        """Take a new view of the ring."""
        self.before_place()
        self.placement, self.ring, self.epoch, self.buckets = placement, placement.ring, epoch, buckets
        self.members, self.size = len(placement.ring.members), len(placement.peers)
        self._plans = {}
        self.peers = placement.peers
        self.serves = self.node in placement.peers
        self.retired = self.retired and not self.is_member
        self.levels = tuple(sorted({DEFAULT_PROPS.n, *(props.n for props in buckets.values())}))
        self.on_place()

    def is_peer(self, node: NodeId) -> bool:
        """Whether a node (or this one) takes part: it is a member, or leaves but has not handed over everything yet."""
        return node in self.peers

    @property
    def coordinates(self) -> bool:
        """Whether clients may ask us."""
        return self.serves and not self.retired

    @property
    def is_member(self) -> bool:
        """Whether the ring has this node. It may not have joined yet, or have left."""
        return self.ring is not None and self.node in self.ring.members

    def plan(self, bucket: str) -> Plan:
        """The bucket's plan, made once for each view of the ring."""
        plan = self._plans.get(bucket)
        if plan is None:
            plan = self._make_plan(bucket, self.members)
            if len(self._plans) < PLANS_MAX:
                self._plans[bucket] = plan
        return plan

    def _make_plan(self, bucket: str, members: int) -> Plan:
        props = self.props(bucket)
        w, pw = effective(props.w, props.n, members), effective(props.pw, props.n, members)
        return Plan(
            props,
            members,
            effective(props.r, props.n, members),
            w,
            effective(props.pr, props.n, members),
            pw,
            max(w, pw),
            DURABILITY[props.durability],
            props.durability == "one",
            props.reconcile == "lww",
            _refusal(bucket),
        )

    def plan_for(self, plan: Plan, bucket: str, slots: Slots) -> Plan:
        """The plan for a partition with these slots: while it gains owners it counts only those that it had."""
        counted = len(slots.owners)
        if counted >= plan.members or counted >= plan.props.n:
            return plan
        return self._make_plan(bucket, counted)

    def slots(self, record_key: bytes, n: int) -> Slots:
        """Who takes part in the requests for a key."""
        placement = self.placement
        assert placement is not None
        return placement.slots(placement.ring.partition_of(record_key), n)

    def owners(self, record_key: bytes, n: int) -> tuple[NodeId, ...]:
        """The nodes that count for a key: the first n of its preference list, unless they are still to be."""
        return self.slots(record_key, n).owners

    def fallbacks(self, record_key: bytes, n: int) -> tuple[NodeId, ...]:
        """Who stands in for owners that cannot be asked, in this order."""
        placement = self.placement
        assert placement is not None
        return placement.fallbacks(placement.ring.partition_of(record_key), n)

    def is_writer(self, node: NodeId, record_key: bytes) -> bool:
        """Whether this node is sent the writes of a key: it owns it, or is to own it."""
        slots = self.slots(record_key, self.props(split_record_key(record_key)[0]).n)
        return node in slots.owners or (slots.moving and node in slots.writers)

    def props(self, bucket: str) -> BucketProps:
        """The properties of a bucket; one never set has the defaults."""
        return self.buckets.get(bucket, DEFAULT_PROPS)

    def why_unreachable(self, node: NodeId) -> str:
        """For the text of a failure."""
        if node in self.verdicts or node in self.reachable:
            return self.verdicts.get(node, "no answer in time")
        return self.unreachable.get(node, "not connected yet")

    # --- the clock and the stint ---

    def mint(self) -> int:
        """A fresh reading for a dot."""
        return self.clock.tick(self.wall_ms)

    def mind_clock(self) -> None:
        """If the wall clock was set back, begin anew from there (clock, invariant 2)."""
        if self.clock.strayed(self.wall_ms):
            self.start_stint("clock")
            self.clock.restart()

    def start_stint(self, reason: str) -> None:
        """Go on as a new actor: this node may have forgotten some of its dots."""
        self.count(f"stints_{reason}")
        base, _, number = self.stint.partition("+")  # the number goes on after a clean stop, too: no stint comes twice
        self.stint = f"{base}+{int(number or 0) + 1}"
        self.actor = make_actor(self.node, self.stint)
        self.store.stage(Space.META, META_STINT, self.stint.encode(), Durability.SYNC)

    def notice_amnesia(self, ours: Record, clock: Clock, dots: Collection[Dot] = ()) -> None:
        """Start a new stint if ``clock`` or ``dots`` know a dot of our actor that our record's clock does not cover."""
        actor = self.actor
        ended = ours.clock.get(actor, -1)
        if clock.get(actor, -1) > ended or (dots and any(a == actor and counter > ended for a, counter in dots)):
            self.start_stint("amnesia")

    def deadline_s(self, timeout_s: float) -> float:
        """When a request that names this timeout ends; 0 (or anything that is no time) is the configured one."""
        config = self.config
        wait_s = min(timeout_s, config.request_timeout_s_max) if timeout_s > 0 else config.request_timeout_s
        return self.now_s + wait_s

    # --- records ---

    def read_entry(self, record_key: bytes) -> Entry | None:
        """The record, sealed and decoded, its checksum verified; None if there is none.

        Raises:
            CorruptData: the checksum fails. The node has become a new stint.
        """
        entry = self.hot.get(record_key)
        if entry is not None:
            return entry
        try:
            sealed = self.store.get(Space.RECORDS, record_key)
            if sealed is None:
                return None
            record = versions.decode(unseal(record_key, sealed))
        except CorruptData:
            self._forget(record_key)
            raise
        self.hot.put(record_key, sealed, record)
        return sealed, record

    def _forget(self, record_key: bytes) -> None:
        """This record is corrupt. One new stint is enough until it is rewritten: none of ours minted a dot on it since."""
        if record_key in self._corrupt:
            return
        if len(self._corrupt) >= CORRUPT_MAX:
            self._corrupt.clear()
        self._corrupt.add(record_key)
        self.count("corrupt_records")
        self.start_stint("corrupt")
        self.on_corrupt(record_key)

    def opened(self, record_key: bytes, sealed: bytes) -> Entry | None:
        """A row of a scan, verified. None if it is corrupt, and so forgotten (unless a good copy was still in memory: then that
        one is given, and written again)."""
        try:
            return sealed, versions.decode(unseal(record_key, sealed))
        except CorruptData:
            entry = self.hot.get(record_key)
            if entry is None:
                self._forget(record_key)
                return None
            self.count("corrupt_records_rewritten")
            self.write_sealed(record_key, entry[1], entry[1], entry[0], Durability.SYNC)
            return entry

    def read_record(self, record_key: bytes) -> Record:
        """The record, or the empty one. A corrupt one counts as forgotten: empty, after a new stint."""
        try:
            entry = self.read_entry(record_key)
        except CorruptData:
            return versions.EMPTY
        return versions.EMPTY if entry is None else entry[1]

    def pending(self, record_key: bytes) -> Durability:
        """What a reply that shows this record must wait for. Its group may need more than an ack in this bucket waits for: other
        writes are in it, and those of the one (section 6.1)."""
        pending = self.store.pending(Space.RECORDS, record_key)
        if pending:
            return min(pending, self.plan(split_record_key(record_key)[0]).durability)
        return pending

    def write_record(self, record_key: bytes, old: Record, new: Record, durability: Durability) -> bytes:
        """Stage ``new`` over ``old`` and return it sealed."""
        sealed = seal(record_key, versions.encode(new))
        self.write_sealed(record_key, old, new, sealed, durability)
        return sealed

    def write_sealed(self, record_key: bytes, old: Record, new: Record, sealed: bytes, durability: Durability) -> None:
        """Stage ``new``, already sealed, over ``old``."""
        entry = self.hot.get(record_key)
        was = self._stored(record_key, old) if entry is None else entry[0]
        self.store.stage(Space.RECORDS, record_key, sealed, durability)
        self.hot.put(record_key, sealed, new)
        self.writes += 1
        if self._corrupt:
            self._corrupt.discard(record_key)
        self.on_write(record_key, old, new, was, sealed)
        found = new.versions
        if len(found) != 1 or found[0].value is None or found[0].expires_at_ms:
            self.on_mortal(record_key, new)

    def remove_record(self, record_key: bytes, old: Record, was: bytes | None) -> None:
        """Stage the removal of a record (``was``, sealed; None: it is corrupt): nothing is left of it here."""
        self.store.stage(Space.RECORDS, record_key, None, Durability.OS)
        self.hot.drop(record_key)
        self.writes += 1
        self.on_write(record_key, old, versions.EMPTY, was, None)

    def _stored(self, record_key: bytes, old: Record) -> bytes | None:
        """What is stored as ``old``; None if that is nothing, or could not be read."""
        try:
            return None if old is versions.EMPTY else self.store.get(Space.RECORDS, record_key)
        except CorruptData:
            self.on_corrupt(record_key)
            return None

    def absorb(self, record_key: bytes, sealed: bytes, durability: Durability, ours: Record | None = None) -> None:
        """Merge a record from another node into ours and stage the result, even if it is what we had: whoever asks for
        an ack at ``durability`` may ask for more than the earlier write did.

        Args:
            ours: what ``read_record`` has just given, if that was asked.

        Raises:
            CorruptData: what came fails its checksum or does not parse. Nothing is changed.
        """
        split_record_key(record_key)
        theirs = versions.decode(unseal(record_key, sealed))
        if ours is None:
            ours = self.read_record(record_key)
        self.notice_amnesia(ours, theirs.clock, theirs.cloud)
        merged = self.settle(record_key, versions.merge(ours, theirs))
        if merged is theirs:
            self.write_sealed(record_key, ours, merged, sealed, durability)
        else:
            self.write_record(record_key, ours, merged, durability)

    # --- hints ---

    def take(self, intended: NodeId, record_key: bytes, sealed: bytes, durability: Durability) -> None:
        """Keep what a coordinator sends: as our own record if we are an owner (or are to be one), as a hint for whom we are asked
        to stand in for.

        Raises:
            CorruptData, HintsFull, ValueError: as ``keep_hint``.
        """
        if not intended or intended == self.node:
            self.absorb(record_key, sealed, durability)
            return
        self.keep_hint(intended, record_key, sealed, durability)
        if self.is_writer(self.node, record_key):
            self.absorb(record_key, sealed, durability)

    def keep_hint(
        self, intended: NodeId, record_key: bytes, sealed: bytes, durability: Durability, *, limited: bool = True
    ) -> None:
        """Merge a record into what we keep for another node. What is ``limited`` must find room, if it is a new hint, and is
        refused while our disk is nearly full, unless it only deletes.

        Raises:
            CorruptData: as ``absorb``.
            HintsFull: it is refused.
            ValueError: ``intended`` is not the name of a node.
        """
        split_record_key(record_key)
        record = versions.decode(unseal(record_key, sealed))
        kept = self.hints.get(intended, record_key)
        held = None if kept is None else self.read_hint(intended, record_key, kept)
        if limited and not self.takes_writes and any(version.value is not None for version in record.versions):
            self.count("hints_refused")
            raise HintsFull("its disk is nearly full")
        if self.actor in record.clock or record.cloud:
            self.notice_amnesia(self.known(record_key), record.clock, record.cloud)
        if held is not None:
            merged = self.settle(record_key, versions.merge(held, record))
            if merged is held and kept is not None:
                sealed = kept
            elif merged is not record:
                sealed = seal(record_key, versions.encode(merged))
        try:
            self.hints.put(intended, record_key, sealed, durability, limited=limited)
        except HintsFull:
            self.count("hints_refused")
            raise
        self.count("hints_kept")

    def answer(self, record_key: bytes) -> tuple[Entry | None, Durability]:
        """All that this node knows of a key, its own record and what it keeps for others, and what telling it must wait for.

        Raises:
            CorruptData: as ``read_entry``, also of a hint.
        """
        entry = self.read_entry(record_key)
        hold = self.pending(record_key)
        if not self.hints.totals:
            return entry, hold
        for held in self.hints.held(record_key):
            hint = self.read_hint(held.intended, record_key, held.sealed)
            if hint is None:
                raise CorruptData("a hint's checksum does not match")
            merged = hint if entry is None else self.settle(record_key, versions.merge(entry[1], hint))
            if entry is None or merged is not entry[1]:
                entry = (held.sealed if merged is hint else seal(record_key, versions.encode(merged))), merged
            if held.pending > hold:
                hold = max(hold, min(held.pending, self.plan(split_record_key(record_key)[0]).durability))
        return entry, hold

    def known(self, record_key: bytes) -> Record:
        """The same as a record; what is corrupt of it counts as forgotten."""
        record = self.read_record(record_key)
        for held in self.hints.held(record_key):
            hint = self.read_hint(held.intended, record_key, held.sealed)
            if hint is not None:
                record = versions.merge(record, hint)
        return self.settle(record_key, record)

    def read_hint(self, intended: NodeId, record_key: bytes, sealed: bytes) -> Record | None:
        """A hint's record. None if it is corrupt: then it is dropped, and as it may have been all that accounted for a dot of
        ours, a new stint begins."""
        try:
            split_record_key(record_key)
            return versions.decode(unseal(record_key, sealed))
        except CorruptData:
            self.hints.remove(intended, record_key, sealed)
            self.count("corrupt_hints")
            self.start_stint("corrupt")
            return None

    def settle(self, record_key: bytes, record: Record) -> Record:
        """Apply the bucket's reconciliation to a merged record: in an ``lww`` bucket only the newest version stays."""
        if len(record.versions) > 1 and self.plan(split_record_key(record_key)[0]).lww:
            return versions.only_newest(record)
        return record


def _refusal(bucket: str) -> str:
    return (
        f"the name of a bucket has at most {BUCKET_BYTES_MAX} bytes" if len(bucket.encode()) > BUCKET_BYTES_MAX else ""
    )


def _unnoticed(latency_s: float) -> None:
    """Nobody measures yet."""


def _granted(records: int) -> bool:
    """Nobody limits background work yet."""
    del records
    return True


def _spent(records: int) -> None:
    """Nobody counts it."""


def _ignore(record_key: bytes, old: Record, new: Record, was: bytes | None, sealed: bytes | None) -> None:
    """Nobody counts keys yet."""


def _ignore_mortal(record_key: bytes, new: Record) -> None:
    """Nobody reaps."""


def _ignore_key(record_key: bytes) -> None:
    """Nobody mends records yet."""


def _ignore_place() -> None:
    """Nobody minds yet."""
