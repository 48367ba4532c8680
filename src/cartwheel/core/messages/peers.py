"""What nodes say to each other.

Peer messages are msgpack arrays with a numeric tag; fields are only ever appended (with defaults), so that neighbours of
one version distance understand each other. Any message may be lost, repeated, or arrive late; what that does is said at each.
Request ids (``id``) are unique across a node's restarts: the high half is the boot nonce, so that a late answer to an
earlier life matches nothing.
"""

from __future__ import annotations

import enum

import msgspec

from cartwheel.core.errors import Code, PeerError
from cartwheel.core.placement import Holding
from cartwheel.core.ring import Member
from cartwheel.core.types import Clock, Dot, NodeId
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
    """The latest fresh dot: in a last-writer-wins bucket refused if it is further ahead of the replica's clock than the skew
    allowed."""
    intended: NodeId = ""
    """You stand in for this node: keep the record as a hint for it (section 4.6), besides your own copy if you are to have one.
    "": you are the owner."""
    tag: int = 0
    """Of the key's slots, as the coordinator sees them. 0: the sender is of a version that does not tell."""


class ReplicaWrote(_Message, tag=2):
    """Replica to coordinator: these writes are durable. A lost one costs the ack; a repeated one counts once."""

    ids: list[int]


class ReplicaRefused(_Message, tag=3):
    """Replica to coordinator: this read or write cannot be served, and why."""

    id: int
    reason: str
    hint: bytes = b""
    """The record key, if it is a hint that was refused."""


class Disagree(_Message, tag=43):
    """Replica to coordinator: I see the slots of these requests' keys otherwise than you, so do not count me, though I keep what
    was written. Our views are on their way to each other; ask again then. Loss and repetition cost time."""

    ids: list[int]


class ReplicaRead(_Message, tag=4):
    """Coordinator to replica or fallback: what do you hold of this key, hints included?"""

    id: int
    record_key: bytes
    tag: int = 0
    """As in ReplicaWrite."""


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


class ViewPush(_Message, tag=13):
    """Node to node, when placement epochs differ: changes that I know, and what nodes hold. The receiver unites them with its
    own. Repetition changes nothing; a lost one is sent again."""

    history: bytes
    """b"": only what nodes hold."""
    holdings: list[Holding] = []
    whole: bool = True
    """With a history: it is all that I know; where the receiver knows more, it answers. Else it is what it lacks."""
    base: bytes = b""
    """The epoch that this rests on: with another one the receiver drops it, and asks (ViewDigest). b"": with any."""


class ViewDigest(_Message, tag=49):
    """Node to node, when epochs differ and the view is a large one: what I know, in hashes. Answered by a ViewPush of what I
    lack, and by a ViewDigest where the receiver lacks something. Since protocol 3."""

    changes: bytes
    """8 bytes for each change of the history: the hash of its record."""
    versions: dict[NodeId, int]
    """Of the holdings."""


class Gossip(_Message, tag=44):
    """Node to node, every second to one of them: here is my epoch, that of the batch. A lost or repeated one is no matter."""


class JoinAsk(_Message, tag=45):
    """A node that is no member to one that may be: I want to join as this. Answered by JoinTold; asked again until it is a
    member. Repetition is harmless: its join is staged once."""

    member: Member


class JoinTold(_Message, tag=46):
    """The answer to JoinAsk: what it waits for, or why it never will join."""

    waits: str
    refused: bool = False


class HandOver(_Message, tag=47):
    """Gainer to an owner: I have caught up with you on these partitions, may I count? Answered by HandedOver. Repetition is
    another question; a lost one is asked again."""

    id: int
    parts: list[tuple[int, int, int]]
    """(n, partition, tag of its slots as I see them)."""


class HandedOver(_Message, tag=48):
    """Owner to gainer: for these you count in my view, if I was to give them; or may count, if you fill a slot that nobody
    gives. A lost one is told by the owner's holding."""

    id: int
    parts: list[tuple[int, int]]
    waits: str = ""
    """Why not for the others."""


# --- failure detection (section 4.8.3) ---------------------------------------------------------------------------------


class Probe(_Message, tag=14):
    """To a peer that seems not to answer: do you? ``durable``: answer once you have written and synced something. Its loss
    is an answer, too."""

    id: int
    durable: bool


class Probed(_Message, tag=15):
    """The answer to Probe."""

    id: int


class Health(_Message, tag=16):
    """To every peer, when it changes and now and then: what I can take. Loss is mended by the next one."""

    writes: bool
    """False: my disk is nearly full, give me deletes only."""
    door: str = ""
    """``host:port`` where tools find me: membership knows only the addresses for peers."""
    stopping: bool = False
    """I am about to stop: ask others."""


# --- hinted handoff (section 4.6) --------------------------------------------------------------------------------------


class HintOffer(_Message, tag=17):
    """Fallback to the intended node, once a second while it has nothing under way: I keep so many records for you. Answered by
    HintGrant, when the receiver likes; loss costs time."""

    hints: int
    bytes: int


class HintGrant(_Message, tag=18):
    """Intended node to fallback: send me up to so many of them, in one delivery. The pace is the receiver's (its admission
    control). A lost one lapses, and is given again upon the next offer; a repeated one finds the delivery under way."""

    records: int


class HintDeliver(_Message, tag=19):
    """Fallback to the intended node: some of its hints. Answered by HintTaken; without that they are kept and sent again.
    Repetition is harmless: a merge."""

    id: int
    rows: list[tuple[bytes, bytes]]
    """(record key, sealed record), in ring order."""
    left: int
    """How many there are besides."""


class HintTaken(_Message, tag=20):
    """Intended node to fallback: the rows of this delivery are durable here, and you may send me so many more. A lost one costs
    a repeated delivery; a repeated or late one names a delivery that is over."""

    id: int
    records: int
    """0: wait for HintGrant."""
    refused: list[int] = []
    """Rows that could not be taken (their place in the delivery): keep them."""


class HintsAsk(_Message, tag=28):
    """To every member: what do you keep, for whom? For a person who waits: loss leaves a gap in the answer."""

    id: int


class HintStatus(msgspec.Struct):
    """What a node keeps for another."""

    intended: NodeId
    hints: int
    bytes: int
    age_s: float
    """Since when there are any: none is older."""
    delivering: bool
    waits: str
    """For what, unless it delivers."""


class HintsTold(_Message, tag=29):
    """The answer to HintsAsk."""

    id: int
    kept: list[HintStatus]


# --- anti-entropy (section 4.7): two owners compare a partition; the one that began goes from roots to leaves to keys ------


class Purpose(enum.IntEnum):
    """What two nodes compare a partition for."""

    SHARED = 0
    """Both own it."""
    GAINED = 1
    """The asker is to own it, and catches up."""
    GIVEN = 2
    """The asker owns it no more, and makes sure that nothing of it is here alone."""


class TreeRoots(_Message, tag=21):
    """Owner to owner: the roots of my hash trees, for buckets of this n. Answered by TreeLeaves; loss ends the comparison."""

    id: int
    epoch: bytes
    n: int
    partitions: bytes
    """2 bytes each."""
    roots: bytes
    """8 bytes each."""
    purpose: Purpose = Purpose.SHARED


class TreeLeaves(_Message, tag=22):
    """The answer to TreeRoots: where mine differ."""

    id: int
    differing: bytes
    """Partitions, 2 bytes each, in the order of the question."""
    leaves: bytes
    """Of the first few of these, all leaves, 8 bytes each."""
    unready: bytes = b""
    """Partitions that I cannot compare now."""
    crossed: bool = False
    """None, for I am just comparing with you."""


class LeafKeys(_Message, tag=23):
    """Owner to owner: what I hold in these leaves, from ``start`` up to ``end``. Answered by LeafDiff; nothing changes here."""

    id: int
    n: int
    partition: int
    leaves: int
    """A bitmap: bit i is leaf i."""
    start: bytes
    end: bytes
    """Ring positions; b"": to the end of the leaves."""
    keys: bytes
    """In ring order: position (16 bytes), hash (8), newest reading (8)."""
    settle_ms: int
    """Leave writes younger than this alone: they may be under way."""
    pull: bool = True
    """False: my disk is nearly full, send me nothing."""


class LeafDiff(_Message, tag=24):
    """The answer to LeafKeys, up to ``reached``: what you should have and what I want. Lost or repeated: it is found again."""

    id: int
    rows: list[tuple[bytes, bytes]]
    """(Record key, sealed record): those that I hold newer, or you not at all."""
    want: bytes
    """Positions of those that you hold newer, or I not at all."""
    reached: bytes
    """Where the next LeafKeys should start; b"": all is done."""
    busy: bool = False
    """I can do nothing for you now: ask again later."""


class LeafRows(_Message, tag=25):
    """Owner to owner: records that you asked for, or that I merged. A merge: repetition is harmless, loss is found again."""

    rows: list[tuple[bytes, bytes]]
    last: bool = False
    """Do not send back what you merge of them."""


class Fetch(_Message, tag=26):
    """Owner to owner: my copy of this record is corrupt, give me yours. Answered by Fetched; asked again if that is lost."""

    record_key: bytes


class Fetched(_Message, tag=27):
    """The answer to Fetch: the sealed record; None: I have none that is good."""

    record_key: bytes
    sealed: bytes | None


# --- reaping: tombstones and what has expired go for good ---------------------------------------------------------------


class ReapAsk(_Message, tag=40):
    """First owner of a partition to every member: may these dead records go? Repetition is another question."""

    id: int
    record_keys: list[bytes]
    checksums: bytes
    """Eight bytes of each record, as the first owner holds it."""


class ReapReady(_Message, tag=41):
    """The answer to ReapAsk, once everything that it speaks of is synced: all of them, but for ``refused`` (their places)."""

    id: int
    refused: list[int]
    left: list[int] = []
    """Those that I hold, though I have no part in their partition any more: I must remove them, too."""


class Reap(_Message, tag=42):
    """First owner to the other owners: every member agrees, remove these records if you still hold exactly them. A lost one
    leaves a tombstone that a later round removes."""

    record_keys: list[bytes]
    checksums: bytes


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
    | ScanAsk | ScanPage | CountAsk | Counts | ViewPush | ViewDigest | Gossip | JoinAsk | JoinTold | HandOver | HandedOver
    | Probe | Probed | Health | HintOffer | HintGrant | HintDeliver | HintTaken | HintsAsk | HintsTold
    | TreeRoots | TreeLeaves | LeafKeys | LeafDiff | LeafRows | Fetch | Fetched
    | ReapAsk | ReapReady | Reap | Disagree
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
