"""Everything that goes into a node and comes out of it, on one page.

    clients -- request --> +------+ -- Reply --> clients
    peers   -- Received -> | node | -- Send  --> peers          (a batch of messages per peer and loop turn)
    clock   -- Tick -----> +------+ -- Halt  --> the process
                              |
                              stages writes on the Store; the driver commits them in groups

**Holding.** An effect that promises something carries ``hold``: it is performed only after every write staged before it has
come as far as that ``Durability``. A promise to oneself works the same way: a coordinator counts its own write by a message
that it sends to itself, held.

Peer messages are msgpack arrays with a numeric tag; fields are only ever appended (with defaults), so that neighbours of
one version distance understand each other. Any message may be lost, repeated, or arrive late; what that does is said at each.
Request ids (``id``) are unique across a node's restarts: the high half is the boot nonce, so that a late answer to an
earlier life matches nothing.
"""

from __future__ import annotations

from typing import Any

import msgspec

from cartwheel.core.errors import Code, PeerError
from cartwheel.core.types import Clock, Dot, Durability, NodeId
from cartwheel.core.versions import Record


class _Message(msgspec.Struct, array_like=True, gc=False):
    """A message between nodes."""


# --- replicas: the coordinator asks, the replica answers (sections 4.5 and 5) ---------------------------------------


class ReplicaWrite(_Message, tag=1):
    """Coordinator to replica: merge this record and answer once it is durable. Repetition is harmless: a merge.

    Writes of one key in one turn of the coordinator's loop share a message: its record accounts for all of them."""

    ids: list[int]
    record_key: bytes
    sealed: bytes
    durability: int
    reading: int
    """The latest fresh dot: refused if it is further ahead of the replica's clock than the skew allowed."""


class ReplicaWrote(_Message, tag=2):
    """Replica to coordinator: these writes are durable. A lost one costs the ack; a repeated one counts once."""

    ids: list[int]


class ReplicaRefused(_Message, tag=3):
    """Replica to coordinator: this read or write cannot be served, and why."""

    id: int
    reason: str


class ReplicaRead(_Message, tag=4):
    """Coordinator to replica: what do you hold of this key?"""

    id: int
    record_key: bytes


class ReplicaValue(_Message, tag=5):
    """Replica to coordinator: the sealed record, or None: never heard of it."""

    id: int
    sealed: bytes | None


class ReplicaRepair(_Message, tag=6):
    """Coordinator to replica: your answer was stale, merge this (read repair, section 5). Not answered; loss is harmless."""

    record_key: bytes
    sealed: bytes


# --- forwarding: a node outside the preference list hands a put to one inside, once (section 4.5) --------------------


class PutRequest(_Message):
    """A client's put or delete, as it comes to its coordinator."""

    bucket: str
    key: bytes
    value: bytes | None
    """None: delete."""
    context: Clock | None = None
    """What the client had read; {}: nothing, a write beside whatever is there; None: supersede what the coordinator holds
    (a plain Redis SET)."""
    w: int = 0
    """0: the bucket's."""
    expires_at_ms: int = 0
    request_id: bytes = b""
    """Makes a retry harmless. b"": none."""
    timeout_s: float = 0.0
    """0: the configured one."""
    coordinator: NodeId = ""
    """Who should coordinate if we cannot: from the client's context."""
    dots: tuple[Dot, ...] = ()
    """Writes seen besides those that ``context`` covers (see ``context``)."""


class Forward(_Message, tag=7):
    """Non-owner to owner: coordinate this put and answer me. Never forwarded again. A repeated one is a retry by request id,
    which the forwarder always sets."""

    id: int
    put: PutRequest


class Forwarded(_Message, tag=8):
    """Owner to non-owner: what came of it."""

    id: int
    result: Stored | Failure


# --- coverage: SCAN, DBSIZE ------------------------------------------------------------------------------------------


class ScanAsk(_Message, tag=9):
    """Coordinator to replica: which keys of ``bucket`` do you hold in [start, end), at most ``limit``?"""

    id: int
    bucket: str
    start: bytes
    end: bytes | None
    limit: int


class ScanPage(_Message, tag=10):
    """Replica to coordinator: record keys with their records stripped of values (tombstones stay tombstones), in order.
    ``reached`` is where the next ask goes on; None: the range is done."""

    id: int
    rows: list[tuple[bytes, Record]]
    reached: bytes | None


class CountAsk(_Message, tag=11):
    """Coordinator to any node: how many live keys of ``bucket`` do you hold, by partition?"""

    id: int
    bucket: str


class Counts(_Message, tag=12):
    """The answer to CountAsk: partition -> keys, those with any."""

    id: int
    keys: dict[int, int]


# --- membership: the history of changes (section 4.8.1) ---------------------------------------------------------------


class HistoryPush(_Message, tag=13):
    """Node to node, when placement epochs differ: all the changes I know. The receiver unites them with its own and, where
    it knows more, pushes back."""

    history: bytes


class Stored(_Message, tag="stored"):
    """A put was stored durably by W nodes."""

    clock: Clock
    dots: tuple[Dot, ...]
    """With ``clock``: the context for the client's next put. It covers this write and what it superseded, no unseen sibling."""
    siblings: int
    """How many versions the coordinator now holds."""
    coordinator: NodeId


class Failure(_Message, tag="failure"):
    """A request failed. ``unknown``: a write that may have been stored on some replica and may appear later; otherwise it
    certainly was not applied."""

    code: Code
    text: str
    unknown: bool = False


Message = (
    ReplicaWrite | ReplicaWrote | ReplicaRefused | ReplicaRead | ReplicaValue | ReplicaRepair | Forward | Forwarded
    | ScanAsk | ScanPage | CountAsk | Counts | HistoryPush
)  # fmt: skip


class Batch(msgspec.Struct, array_like=True):
    """What travels in one frame: the sender's placement epoch (design: every request carries it) and its messages."""

    epoch: bytes
    messages: list[Message]


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Batch)


def encode_batch(epoch: bytes, messages: list[Message]) -> bytes:
    """One frame's payload."""
    return _encoder.encode(Batch(epoch, messages))


def decode_batch(payload: bytes | bytearray | memoryview) -> Batch:
    """Read a frame's payload.

    Raises:
        PeerError: it is not a batch of messages that this version knows.
    """
    try:
        return _decoder.decode(payload)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise PeerError(f"a frame does not parse: {error}") from None


# --- events: what drivers hand to Node.handle -------------------------------------------------------------------------


class _Event(msgspec.Struct, gc=False):
    """Something that happened. ``client`` is the driver's own handle, returned untouched in the Reply."""


class Received(_Event):
    """A peer's batch arrived."""

    src: NodeId
    batch: Batch


class PeerUp(_Event):
    """The transport can send to this peer."""

    node: NodeId


class PeerDown(_Event):
    """The transport lost this peer: what was asked of it will not be answered."""

    node: NodeId
    reason: str


class Tick(_Event):
    """Time has passed: every ``TICK_S`` seconds."""


class TurnEnd(_Event):
    """The driver is about to commit and to send: whatever was gathered since the last one leaves now."""


TICK_S = 0.05
"""The grain of deadlines: fine against a timeout of seconds, coarse enough to cost nothing."""


class ClientGet(_Event):
    """get(key) (section 4.1). Answered by Found or Failure."""

    client: Any
    bucket: str
    key: bytes
    r: int = 0
    timeout_s: float = 0.0


class ClientPut(_Event):
    """put(key, context, object). Answered by Stored or Failure."""

    client: Any
    put: PutRequest


class ClientExplain(_Event):
    """Where does this key live, and what does each replica hold? Waits for all of them. Answered by Explained."""

    client: Any
    bucket: str
    key: bytes


class ClientScan(_Event):
    """One page of a bucket's keys from ring position ``start`` on. Answered by Page or Failure."""

    client: Any
    bucket: str
    start: int = 0
    """A cursor: the top 64 bits of a ring position; 0 is the beginning."""
    limit: int = 10


class ClientCount(_Event):
    """About how many live keys has this bucket? Answered by Counted."""

    client: Any
    bucket: str


class ClientBucketSet(_Event):
    """Change a bucket's properties, cluster-wide, by a change in the history. Answered by BucketChanged or Failure."""

    client: Any
    bucket: str
    props: dict[str, str]


Event = (
    Received | PeerUp | PeerDown | Tick | TurnEnd
    | ClientGet | ClientPut | ClientExplain | ClientScan | ClientCount | ClientBucketSet
)  # fmt: skip


# --- results: what clients are told (with Stored and Failure above) ---------------------------------------------------


class Found(msgspec.Struct, gc=False):
    """What R replicas know of a key, merged. A missing key is the empty record."""

    record: Record
    coordinator: NodeId
    """The node that answered fastest: the best one for the put that follows (section 5)."""


class Explained(msgspec.Struct):
    """Where a key lives. ``replicas`` maps each owner to its record, or to the reason why it gave none."""

    position: bytes
    partition: int
    preference: list[NodeId]
    """The whole walk; the first ``n`` are the owners."""
    n: int
    r: int
    w: int
    replicas: dict[NodeId, Record | str]
    merged: Record
    coordinator: NodeId


class Page(msgspec.Struct):
    """Live keys, in ring order, and the cursor that goes on (0: done). A page may be empty before the end."""

    keys: list[bytes]
    cursor: int


class Counted(msgspec.Struct):
    """About how many live keys a bucket has."""

    keys: int


class BucketChanged(msgspec.Struct):
    """The bucket's properties are changed here, and on their way to the others."""


class MemberStatus(msgspec.Struct):
    """One member of the ring, as this node sees it."""

    node: NodeId
    address: str
    host: str
    zone: str
    weight: float
    partitions: int
    reachable: bool
    reason: str = ""
    """Why it is not reachable."""


class Status(msgspec.Struct):
    """A node's view of itself and the cluster: an immutable snapshot (``Node.status()``)."""

    node: NodeId
    cluster: str
    epoch: str
    stint: str
    q: int
    members: list[MemberStatus]
    requests: int
    """Under way at this coordinator."""
    counters: dict[str, int]
    notes: list[str]
    """What an operator should know, e.g. that n is capped by the number of members. Empty: all is well."""


Result = Stored | Failure | Found | Explained | Page | Counted | BucketChanged


# --- effects: what a node wants done ----------------------------------------------------------------------------------


class Send(msgspec.Struct, gc=False):
    """Send a message; it may be lost. A message to the node itself comes back to it as Received, once released."""

    dst: NodeId
    message: Message
    hold: Durability = Durability.MEMORY


class Reply(msgspec.Struct, gc=False):
    """Answer a client."""

    client: Any
    result: Result
    hold: Durability = Durability.MEMORY


class Halt(msgspec.Struct):
    """Stop this node at once, and say why: going on could break a promise."""

    reason: str


Effect = Send | Reply | Halt
