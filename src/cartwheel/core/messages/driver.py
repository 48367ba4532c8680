"""What drivers hand to a node, what clients are told, and what a node wants done: events, results, effects."""

from __future__ import annotations

from typing import Any

import msgspec

from cartwheel.core.messages.peers import Batch, Failure, HintStatus, Message, PutRequest, Stored
from cartwheel.core.ring.plan import Plan
from cartwheel.core.types import Durability, NodeId
from cartwheel.core.versions import Record

PROTOCOL_MIN = 2
"""2: membership changes while the cluster serves; the ring of a new cluster is cut otherwise than in 1."""
PROTOCOL_MAX = 3
"""A peer is sent no message that came with a later protocol than its own: a frame with one ends the connection."""
PROTOCOL_DIGESTS = 3
"""3: ViewDigest."""

# --- events: what drivers hand to Node.handle -------------------------------------------------------------------------


class _Event(msgspec.Struct, gc=False):
    """Something that happened. ``client`` is the driver's own handle, returned untouched in the Reply."""


class Received(_Event):
    """A peer's batch arrived."""

    src: NodeId
    batch: Batch


class PeerUp(_Event):
    """The transport can send to this peer. It may come again without a PeerDown before: the link is another one."""

    node: NodeId
    protocol: int = PROTOCOL_MAX
    """The highest that both speak, until the next PeerUp of this node: send it nothing that came with a later one."""


class PeerDown(_Event):
    """The transport lost this peer: what was asked of it will not be answered."""

    node: NodeId
    reason: str


class Tick(_Event):
    """Time has passed: every ``TICK_S`` seconds."""

    late_s: float = 0.0
    """How much later it comes than it was due: so long do events wait for their turn."""


class TurnEnd(_Event):
    """The driver is about to commit and to send: whatever was gathered since the last one leaves now."""


class Drain(_Event):
    """This node is about to stop: let the peers know, so that they ask others at once."""


class DiskSpace(_Event):
    """How full the disk is, once a second."""

    used: float
    """0 to 1."""


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


class ClientHints(_Event):
    """What does each member keep for others? Answered by HintsKept."""

    client: Any


class ClientDigests(_Event):
    """What does this node itself hold of a partition, from the record key ``start`` on? Answered by Digests or Failure."""

    client: Any
    partition: int
    start: bytes = b""


class ClientBucketSet(_Event):
    """Change a bucket's properties, cluster-wide, by a change in the history. Answered by BucketChanged or Failure."""

    client: Any
    bucket: str
    props: dict[str, str]


class ClientRepair(_Event):
    """Compare with the other owners now, and mend what differs (anti-entropy). Answered at once by Repairing or Failure."""

    client: Any
    partition: int | None = None
    """None: all that this node holds."""
    peer: NodeId = ""
    """Compare with this node alone; "": with all that share a partition."""


class ClientRepairStatus(_Event):
    """How far is the repair that was asked for last? Answered by Repairing, or by Failure if there was none."""

    client: Any


class ClientStage(_Event):
    """An operator stages a change of membership. Answered Administered or Failure."""

    client: Any
    kind: str
    """leave, remove, reweigh, relocate, replace or double."""
    node: NodeId = ""
    other: NodeId = ""
    """In a replace: the new node."""
    weight: float = 1.0
    host: str = ""
    """In a relocate; "": as it was."""
    zone: str = ""
    barred: bool = False
    """In a replace: the old node is dead."""


class ClientCommit(_Event):
    """An operator commits what is staged. Answered Administered or Failure."""

    client: Any
    digest: str = ""
    """Of the plan that was looked at; "": whatever is staged."""
    force: bool = False
    """Though members do not answer."""


class ClientAbandon(_Event):
    """An operator drops what is staged. Answered Administered or Failure."""

    client: Any


class ClientJoin(_Event):
    """An operator wants this node, which is alone and empty, to join another cluster: it forgets its own. Answered Administered
    or Failure."""

    client: Any


Event = (
    Received | PeerUp | PeerDown | Tick | TurnEnd | DiskSpace | Drain
    | ClientGet | ClientPut | ClientExplain | ClientScan | ClientCount | ClientHints | ClientDigests | ClientBucketSet
    | ClientRepair | ClientRepairStatus | ClientStage | ClientCommit | ClientAbandon
    | ClientJoin
)  # fmt: skip


# --- results: what clients are told (with Stored and Failure above) ---------------------------------------------------


class Found(msgspec.Struct, gc=False):
    """What R replicas know of a key, merged. A missing key is the empty record."""

    record: Record
    coordinator: NodeId
    """The node that answered fastest: the best one for the put that follows (section 5)."""


class Explained(msgspec.Struct):
    """Where a key lives. ``replicas`` maps each owner to its record, or to the reason why it gave none; then fallbacks that keep
    hints of the key to those."""

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


class HintsKept(msgspec.Struct):
    """What each member keeps for others, or why that is not known."""

    holders: dict[NodeId, list[HintStatus] | str]


class Digest(msgspec.Struct, gc=False):
    """What a node holds of a key."""

    record_key: bytes
    checksum: bytes | None
    """Equal for equal records. None: the record fails its checksum."""
    live: bool
    """Whether there is a value, and not only what is left of a deleted or expired one."""


class Digests(msgspec.Struct):
    """One page of what a node holds of a partition."""

    rows: list[Digest]
    reached: bytes | None
    """Where the next page begins; None: there is none."""
    preference: list[NodeId]
    """Who holds the partition: the first n of them."""
    owners: dict[str, int]
    """For each bucket of the page that n, as far as there are members."""
    epoch: bytes
    unreadable: str
    """Why no more of the partition can be read, if so: the engine's data is damaged."""


class Administered(msgspec.Struct):
    """An operator's change is in the history, durably, and on its way to the others."""

    text: str
    changes: list[str]
    """Ids."""


class PlanTold(msgspec.Struct):
    """What the staged changes would do (``Node.plan()``)."""

    digest: str
    """For ClientCommit."""
    changes: list[str]
    """In words."""
    plan: Plan
    warnings: list[str]
    silent: list[NodeId]
    """Members that stay, and do not answer now."""
    partition_bytes: int
    """About what a partition weighs, at this node."""
    moving: int = 0
    """Partitions that are still being handed over, by this node's view."""


class BucketChanged(msgspec.Struct):
    """The bucket's properties are changed here, and on their way to the others."""


class Repairing(msgspec.Struct):
    """A repair asked for by ``ClientRepair``: how far it is. A comparison is one of a partition with one node."""

    id: int
    total: int
    """Comparisons to be made."""
    done: int
    failed: int
    """Comparisons that could not be made: see ``reasons``."""
    received: int
    """Records that came from the other nodes."""
    sent: int
    """Records that went to them."""
    finished: bool
    reasons: dict[NodeId, str]


class AntiEntropyStatus(msgspec.Struct):
    """What anti-entropy does and did, since the node's start."""

    oldest_s: float = 0.0
    """The age of the oldest of the last full comparisons, over all partitions that this node holds."""
    oldest_partition: int = -1
    """Whose that is; -1: this node shares no partition."""
    ages_s: dict[int, float] = {}
    """For each partition that this node shares: how long ago it was last compared in full with all its other owners."""
    peer: NodeId = ""
    """With whom a comparison is under way."""
    rounds: int = 0
    """Comparisons of all that is shared with one node."""
    interrupted: int = 0
    """Those that ended before their end."""
    received: int = 0
    sent: int = 0
    """Records mended here, and sent to be mended elsewhere."""
    unready: int = 0
    """Partitions whose hash trees are being built."""
    fetching: int = 0
    """Corrupt records that are asked for elsewhere."""
    scrubbed: float = 0.0
    """The part of the ring that the scrub has come through on its present pass."""
    sent_bytes: dict[str, int] = {}
    """By kind of message."""


class MemberTransfer(msgspec.Struct):
    """What this node gains from another one."""

    source: NodeId
    """"": from nobody yet."""
    partitions: int
    """Still to be taken over."""
    comparing: bool
    waits: str
    """For what, unless it goes on."""


class TransferStatus(msgspec.Struct):
    """The hand-over of partitions, as far as this node takes part."""

    gains: list[MemberTransfer] = []
    gained: int = 0
    """Partitions taken over since the node's start,"""
    received: int = 0
    """the records that came with them,"""
    given: int = 0
    """and partitions given."""
    leftovers: int = 0
    """Partitions with records here that this node has no part in: compared, and then removed."""
    removed: int = 0
    """Records so removed."""


class MemberStatus(msgspec.Struct):
    """One member of the ring, as this node sees it."""

    node: NodeId
    address: str
    host: str
    zone: str
    weight: float
    partitions: int
    reachable: bool
    """Whether there is a connection to it."""
    reason: str = ""
    """Why it is not up."""
    state: str = "up"
    """One of ``failure.STATES``: "up", "no writes", "slow reads", "slow writes", "silent", "unreachable"."""
    since_s: float = 0.0
    """For how many seconds it has been so."""
    door: str = ""
    """``host:port`` of its Redis door, as it has told. "": it has not."""


class AdmissionStatus(msgspec.Struct):
    """How a node shares itself out (section 6.5)."""

    background_per_s: int = 0
    """Records that background work may handle a second."""
    read_p99_ms: float = 0.0
    """Of the gets that this node coordinated in the last 60 s. 0: none."""
    requests_limit: int = 0
    """Requests under way here from which on clients are answered BUSY."""


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
    admission: AdmissionStatus = msgspec.field(default_factory=AdmissionStatus)
    hints: list[HintStatus] = []
    """What is kept here for other nodes (section 4.6)."""
    antientropy: AntiEntropyStatus = msgspec.field(default_factory=AntiEntropyStatus)
    transfer: TransferStatus = msgspec.field(default_factory=TransferStatus)
    leaving: list[NodeId] = []
    """No members any more, but they have not handed over everything yet."""


Result = (
    Stored | Failure | Found | Explained | Page | Counted | HintsKept | Digests | BucketChanged | Repairing | Administered
)  # fmt: skip


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
