"""An honest double of a node behind the door: one replica, the real versions over a real Store, answering within ``submit``."""

from __future__ import annotations

import time

from cartwheel import __version__
from cartwheel.core import versions
from cartwheel.core.config import BucketProps, Config, bucket_props
from cartwheel.core.errors import Code, ConfigError
from cartwheel.core.messages import (
    PROTOCOL_MAX,
    Administered,
    BucketChanged,
    ClientAbandon,
    ClientBucketSet,
    ClientCommit,
    ClientCount,
    ClientDigests,
    ClientExplain,
    ClientGet,
    ClientHints,
    ClientJoin,
    ClientPut,
    ClientRepair,
    ClientRepairStatus,
    ClientScan,
    ClientStage,
    Counted,
    Digest,
    Digests,
    Explained,
    Failure,
    Found,
    HintsKept,
    HintStatus,
    MemberStatus,
    Page,
    PlanTold,
    PutRequest,
    Repairing,
    Result,
    Status,
    Stored,
)
from cartwheel.core.ring import Change, ChangeKind, History, fold
from cartwheel.core.ring.plan import plan
from cartwheel.core.storage import MemoryEngine, Space, Store, record_key, split_record_key
from cartwheel.core.types import Crowd, Durability
from cartwheel.runtime.frames import Build
from cartwheel.runtime.resp.gateway import ClientEvent, DoorSettings

ACTOR = "n1/1"


class LocalGateway:
    """A cluster of one node."""

    def __init__(self, settings: DoorSettings | None = None) -> None:
        self.config = Config(node="n1", cluster="test", secret=b"secret")
        self.settings = settings or DoorSettings()
        self.engine_name = "memory"
        self.started_at_ms = self.wall_ms()
        self.store = Store(MemoryEngine())
        self.counter = 0
        self.props: dict[str, BucketProps] = {}
        self.crowded = Crowd.NONE
        self.refused = 0
        self.seeds: list[str] = []

    def crowd(self) -> Crowd:
        return self.crowded

    def count_busy(self) -> None:
        self.refused += 1

    def wall_ms(self) -> int:
        return time.time_ns() // 1_000_000

    def data_bytes(self) -> int:
        return self.store.size_bytes()

    def bucket_props(self, bucket: str) -> BucketProps:
        return self.props.get(bucket) or BucketProps(n=1, r=1, w=1)

    def buckets(self) -> list[str]:
        rows = self.store.scan(Space.RECORDS, limit=1 << 30)
        return sorted({*self.props, *(split_record_key(key)[0] for key, _ in rows)})

    def plan(self) -> PlanTold:
        ring = fold(8, History()).ring
        return PlanTold("d0", [], plan(ring, ring), [], [], 0)

    def changes(self) -> list[tuple[Change, str]]:
        change = Change("c0", 1 << 40, "n1", ChangeKind.BUCKET, bucket="b", props={"w": "1"})
        return [(change, "bucket b: w=1")]

    def safe_to_stop(self, node: str) -> list[str]:
        return [] if node == "n1" else [f"{node} is not known here"]

    def add_seed(self, address: str) -> None:
        self.seeds.append(address)

    def status(self) -> Status:
        me = MemberStatus("n1", "127.0.0.1:7702", "h1", "z1", 1.0, 1024, True)
        return Status("n1", "test", "e0", "1", 1024, [me], 0, {}, [])

    def builds(self) -> dict[str, Build]:
        return {"n1": Build(__version__, PROTOCOL_MAX)}

    def submit(self, event: ClientEvent) -> None:
        event.client.resolve(self.result(event))

    def result(self, event: ClientEvent) -> Result:
        """What comes of an event."""
        match event:
            case ClientGet(_, bucket, key) if len(key) > self.bucket_props(bucket).key_bytes_max:
                return self.key_too_big(key, bucket)
            case ClientGet(_, bucket, key):
                if event.r > self.bucket_props(bucket).n:
                    return Failure(Code.INVALID, f"r={event.r} is above n={self.bucket_props(bucket).n}")
                return Found(self.read(bucket, key), "n1")
            case ClientPut(_, put):
                return self.write(put)
            case ClientExplain(_, bucket, key):
                record, props = self.read(bucket, key), self.bucket_props(bucket)
                where = record_key(bucket, key)[:16]
                partition = int.from_bytes(where) * 1024 >> 128
                return Explained(where, partition, ["n1"], props.n, props.r, props.w, {"n1": record}, record, "n1")
            case ClientScan(_, bucket, start, limit):
                return self.page(bucket, start, limit)
            case ClientCount(_, bucket):
                return Counted(len(self.page(bucket, 0, 1 << 30).keys))
            case ClientHints():
                return HintsKept(
                    {"n1": [HintStatus("n2", 3, 4000, 1.5, False, "unreachable")], "n2": "connection lost"}
                )
            case ClientRepair(_, only, peer):
                if peer not in ("", "n2"):
                    return Failure(Code.INVALID, f"n1 shares no partition with {peer}")
                return Repairing(7, 1024 if only is None else 1, 0, 0, 0, 0, False, {})
            case ClientRepairStatus():
                return Repairing(7, 1024, 1000, 24, 3, 4, True, {"n2": "connection lost"})
            case ClientDigests(_, partition, start):
                return self.digests(partition, start)
            case ClientStage(_, kind, node):
                return Administered(f"staged: {kind} {node}", ["c1"])
            case ClientCommit(_, digest) if digest not in ("", "d0"):
                return Failure(Code.INVALID, f"the plan has changed (it is d0 now, not {digest}): look at it again")
            case ClientCommit() | ClientAbandon() | ClientJoin():
                return Administered(type(event).__name__, [])
            case ClientBucketSet(_, bucket, props):
                try:
                    self.props[bucket] = bucket_props(props, self.bucket_props(bucket))
                except ConfigError as error:
                    return Failure(Code.INVALID, str(error))
                return BucketChanged()

    def digests(self, partition: int, start: bytes) -> Result:
        if not 0 <= partition < 1024:
            return Failure(Code.INVALID, "partitions are numbered from 0 to 1023")
        stored = self.store.scan(Space.RECORDS, start, limit=1 << 30)
        rows = [
            Digest(where, raw[:8], live=True) for where, raw in stored if int.from_bytes(where[:16]) >> 118 == partition
        ]
        return Digests(rows, None, ["n1"], {split_record_key(row.record_key)[0]: 1 for row in rows}, b"e0", "")

    def key_too_big(self, key: bytes, bucket: str) -> Failure:
        most = self.bucket_props(bucket).key_bytes_max
        text = f"key of {len(key)} bytes exceeds the limit of {most} bytes (bucket property key_bytes_max)"
        return Failure(Code.TOOBIG, text)

    def read(self, bucket: str, key: bytes) -> versions.Record:
        raw = self.store.get(Space.RECORDS, record_key(bucket, key))
        return versions.EMPTY if raw is None else versions.decode(raw)

    def write(self, put: PutRequest) -> Result:
        props = self.bucket_props(put.bucket)
        if len(put.key) > props.key_bytes_max:
            return self.key_too_big(put.key, put.bucket)
        if put.value is not None and len(put.value) > props.value_bytes_max:
            text = f"value of {len(put.value)} bytes exceeds the limit of {props.value_bytes_max} bytes"
            return Failure(Code.TOOBIG, f"{text} (bucket property value_bytes_max)")
        if put.w > props.n:
            return Failure(Code.INVALID, f"w={put.w} is above n={props.n}")
        record = self.read(put.bucket, put.key)
        if put.request_id and versions.by_request(record, put.request_id):
            return Stored(record.clock, record.cloud, len(record.versions), "n1")
        self.counter += 1
        context = record.clock if put.context is None else put.context
        dot = (ACTOR, self.counter)
        before = record
        record = versions.put(
            record,
            context,
            dot,
            put.value,
            seen=put.dots,
            expires_at_ms=put.expires_at_ms,
            request_id=put.request_id,
        )
        self.store.stage(Space.RECORDS, record_key(put.bucket, put.key), versions.encode(record), Durability.MEMORY)
        clock, dots = versions.context_after_put(before, record, context, dot, put.dots)
        return Stored(clock, dots, len(record.versions), "n1")

    def page(self, bucket: str, start: int, limit: int) -> Page:
        """As the node does: whole ring positions' top 64 bits per page, so that the cursor loses none."""
        keys: list[bytes] = []
        wall_ms = self.wall_ms()
        for where, raw in self.store.scan(Space.RECORDS, start.to_bytes(8), limit=1 << 30):
            name, key = split_record_key(where)
            if len(keys) >= limit:
                return Page(keys, int.from_bytes(where[:8]))
            if name == bucket and any(v.live(wall_ms) for v in versions.decode(raw).versions):
                keys.append(key)
        return Page(keys, 0)
