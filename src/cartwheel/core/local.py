"""What the machines of one node share: its settings, store and clock, its view of the ring, and the list of effects.

The machines (``coordinator``, ``replica``, ``coverage``, ``membership``) do not know one another; they meet in ``node``, and
here. All writes of records go through ``write_record``, all reads through ``read_record``: there a checksum is verified, and
there a node that finds that it has forgotten something becomes a new stint.

Invariant: ``actor`` changes before the next dot is minted whenever this node may have forgotten a dot of its own (versions,
invariant A): its record fails its checksum, or another node's record accounts for a dot of ours that ours does not.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from typing import NamedTuple

from cartwheel.core import versions
from cartwheel.core.clock import HybridClock
from cartwheel.core.config import DURABILITY, BucketProps, Config
from cartwheel.core.errors import CorruptData
from cartwheel.core.hot import Entry, HotRecords
from cartwheel.core.messages import Effect, Message, Reply, Result, Send
from cartwheel.core.quorum import effective
from cartwheel.core.ring import Ring
from cartwheel.core.storage import BUCKET_BYTES_MAX, Space, Store, seal, split_record_key, unseal
from cartwheel.core.types import Actor, Clock, Durability, NodeId, make_actor
from cartwheel.core.versions import Record

META_STINT = b"stint"
META_MARK = b"clock-mark"
DEFAULT_PROPS = BucketProps()
CORRUPT_MAX = 10_000
"""Corrupt records that a node keeps in mind; forgetting them costs another stint each."""
PLANS_MAX = 1000
"""Bucket names come from clients: a client that makes them up must not fill our memory."""


class Plan(NamedTuple):
    """How requests on one bucket run in this cluster: its properties, capped by the number of members (``effective``)."""

    props: BucketProps
    r: int
    w: int
    pr: int
    pw: int
    w_needed: int
    """Acks of a put that names no W of its own."""
    durability: Durability
    lww: bool
    refusal: str
    """Why the bucket cannot exist, if so: the name is too long for a record key."""


class Local:
    """The shared state of one node's machines. ``now_s``, ``wall_ms`` and ``out`` are set anew for each event."""

    def __init__(self, config: Config, store: Store, clock: HybridClock, *, stint: str, boot: int) -> None:
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
        self.writes = 0  # of records, in this life
        self._corrupt: set[bytes] = set()  # records found corrupt and not rewritten since
        self._mark_staged = 0
        self._last_at_mark = -1
        self._next_id = boot << 32
        self.ring: Ring | None = None
        self.size = 0  # how many nodes the ring has
        self.epoch = b""
        self.buckets: dict[str, BucketProps] = {}
        self._owners: dict[tuple[int, int], tuple[NodeId, ...]] = {}
        self._plans: dict[str, Plan] = {}
        self.reachable: set[NodeId] = set()
        self.unreachable: dict[NodeId, str] = {}
        self.on_write: Callable[[bytes, Record, Record], None] = _ignore

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

    def new_id(self) -> int:
        """A request id that no life of this node used before."""
        self._next_id += 1
        return self._next_id

    # --- placement ---

    def place(self, ring: Ring, epoch: bytes, buckets: dict[str, BucketProps]) -> None:
        """Take a new view of the ring."""
        self.ring, self.epoch, self.buckets = ring, epoch, buckets
        self.size = len(ring.members)
        self._owners = {}
        self._plans = {}

    def plan(self, bucket: str) -> Plan:
        """The bucket's plan, made once for each view of the ring."""
        plan = self._plans.get(bucket)
        if plan is None:
            props, members = self.props(bucket), self.size
            plan = Plan(
                props,
                effective(props.r, props.n, members),
                effective(props.w, props.n, members),
                effective(props.pr, props.n, members),
                effective(props.pw, props.n, members),
                max(effective(props.w, props.n, members), effective(props.pw, props.n, members)),
                DURABILITY[props.durability],
                props.reconcile == "lww",
                _refusal(bucket),
            )
            if len(self._plans) < PLANS_MAX:
                self._plans[bucket] = plan
        return plan

    def owners(self, record_key: bytes, n: int) -> tuple[NodeId, ...]:
        """The first n nodes of the key's preference list."""
        assert self.ring is not None
        partition = self.ring.partition_of(record_key)
        owners = self._owners.get((partition, n))
        if owners is None:
            owners = self._owners[partition, n] = self.ring.preference(partition)[:n]
        return owners

    def props(self, bucket: str) -> BucketProps:
        """The properties of a bucket; one never set has the defaults."""
        return self.buckets.get(bucket, DEFAULT_PROPS)

    def why_unreachable(self, node: NodeId) -> str:
        """For the text of a failure."""
        return self.unreachable.get(node, "not connected yet")

    # --- the clock and the stint ---

    def mint(self) -> tuple[int, Durability]:
        """A fresh reading for a dot, and what must be durable before the dot leaves this node (clock, invariant 1)."""
        counter = self.clock.tick(self.wall_ms)
        if counter <= self.clock.limit:
            return counter, Durability.MEMORY
        self.renew_mark()
        return counter, Durability.SYNC

    def renew_mark(self) -> None:
        """Stage a higher clock mark when half of the lease is used up; it counts once its group is durable.

        Called on each tick, so that under load dots are always below a durable mark and need not wait for it. An idle
        node's clock stands still, and so does its disk.
        """
        if not self.store.pending(Space.META, META_MARK):
            self.clock.marked(self._mark_staged)
        if self.clock.last == self._last_at_mark:
            return
        mark = self.clock.needs_mark(self.wall_ms)
        if mark is not None and mark > self._mark_staged:
            self._mark_staged = mark
            self._last_at_mark = self.clock.last
            self.store.stage(Space.META, META_MARK, mark.to_bytes(8), Durability.SYNC)

    def start_stint(self, reason: str) -> None:
        """Go on as a new actor: this node may have forgotten some of its dots."""
        self.count(f"stints_{reason}")
        base, _, number = self.stint.partition("+")  # the number goes on after a clean stop, too: no stint comes twice
        self.stint = f"{base}+{int(number or 0) + 1}"
        self.actor = make_actor(self.node, self.stint)
        self.store.stage(Space.META, META_STINT, self.stint.encode(), Durability.SYNC)

    def notice_amnesia(self, ours: Record, theirs: Clock) -> None:
        """Start a new stint if ``theirs`` accounts for a dot of our actor that our record does not."""
        if theirs.get(self.actor, -1) > ours.clock.get(self.actor, -1):
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

    def read_record(self, record_key: bytes) -> Record:
        """The record, or the empty one. A corrupt one counts as forgotten: empty, after a new stint."""
        try:
            entry = self.read_entry(record_key)
        except CorruptData:
            return versions.EMPTY
        return versions.EMPTY if entry is None else entry[1]

    def write_record(self, record_key: bytes, old: Record, new: Record, durability: Durability) -> bytes:
        """Stage ``new`` over ``old`` and return it sealed."""
        sealed = seal(record_key, versions.encode(new))
        self.write_sealed(record_key, old, new, sealed, durability)
        return sealed

    def write_sealed(self, record_key: bytes, old: Record, new: Record, sealed: bytes, durability: Durability) -> None:
        """Stage ``new``, already sealed, over ``old``."""
        self.store.stage(Space.RECORDS, record_key, sealed, durability)
        self.hot.put(record_key, sealed, new)
        self.writes += 1
        if self._corrupt:
            self._corrupt.discard(record_key)
        self.on_write(record_key, old, new)

    def absorb(self, record_key: bytes, sealed: bytes, durability: Durability) -> None:
        """Merge a record from another node into ours and stage the result, even if it is what we had: whoever asks for
        an ack at ``durability`` may ask for more than the earlier write did.

        Raises:
            CorruptData: what came fails its checksum or does not parse. Nothing is changed.
        """
        split_record_key(record_key)
        theirs = versions.decode(unseal(record_key, sealed))
        ours = self.read_record(record_key)
        self.notice_amnesia(ours, theirs.clock)
        merged = self.settle(record_key, versions.merge(ours, theirs))
        if merged is theirs:
            self.write_sealed(record_key, ours, merged, sealed, durability)
        else:
            self.write_record(record_key, ours, merged, durability)

    def settle(self, record_key: bytes, record: Record) -> Record:
        """Apply the bucket's reconciliation to a merged record: in an ``lww`` bucket only the newest version stays."""
        if len(record.versions) > 1 and self.plan(split_record_key(record_key)[0]).lww:
            return versions.only_newest(record)
        return record


def _refusal(bucket: str) -> str:
    return (
        f"the name of a bucket has at most {BUCKET_BYTES_MAX} bytes" if len(bucket.encode()) > BUCKET_BYTES_MAX else ""
    )


def _ignore(record_key: bytes, old: Record, new: Record) -> None:
    """Nobody counts keys yet."""
