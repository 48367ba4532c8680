"""What happened to the keys in a run: the clients' reads and writes, the dots that nodes minted, and what was left in the end.

The judges in ``checkers`` are pure functions over these records. A client's **write** may be sent several times (tries with one
request id) and so be minted more than once; each **mint** is a version of its own, named by its dot. The checkers reason
about dots, because causality does: a retry through a second coordinator is a second version, beside or after the first.

Every value is unique (``value_bytes``), which makes the checks polynomial: whoever sees a value knows which write it was.
Times are virtual seconds since the start of the run.
"""

from __future__ import annotations

import enum
import math
from dataclasses import dataclass, field

from cartwheel.core.errors import Code
from cartwheel.core.types import Clock, Dot, NodeId


class Status(enum.StrEnum):
    """How a request ended for its client."""

    OK = "ok"
    REJECTED = "rejected"
    """Certainly not applied."""
    UNKNOWN = "unknown"
    """May have been applied, or may be later: a failure that says so, or no answer at all."""


@dataclass(slots=True)
class Try:
    """One sending of a request to one node."""

    node: NodeId
    invoked_at: float
    completed_at: float = math.inf
    status: Status = Status.UNKNOWN
    code: Code | None = None
    """None: no answer came (the node crashed, or the client gave up waiting)."""
    text: str = ""
    write: bool = False
    """Whether it was a put or a delete."""


@dataclass(slots=True)
class Write:
    """A client's put or delete. Ok if one of its tries was."""

    id: int
    process: int
    key: str
    value: bytes | None
    """None: a delete."""
    request_id: bytes = b""
    context: Clock | None = None
    read: tuple[Dot, ...] | None = ()
    """The versions that the read returned whose context was sent; None: a blind write, which supersedes what its coordinator
    holds."""
    expires_at_ms: int = 0
    invoked_at: float = 0.0
    completed_at: float = math.inf
    """When the first ok arrived, or the last try ended."""
    status: Status = Status.UNKNOWN
    tries: list[Try] = field(default_factory=list)
    dots: list[Dot] = field(default_factory=list)
    """Its mints."""
    acked: dict[Dot, float] = field(default_factory=dict)
    """The mints that acknowledged contexts cover, and since when: these must never be lost."""


@dataclass(slots=True)
class Read:
    """A client's get."""

    process: int
    key: str
    node: NodeId
    invoked_at: float
    completed_at: float = math.inf
    status: Status = Status.UNKNOWN
    code: Code | None = None
    dots: tuple[Dot, ...] = ()
    """All versions returned: tombstones and expired ones, too."""
    shown: tuple[int, ...] = ()
    """The ids of the writes whose values a client is shown."""
    wall_ms: int = 0
    """True time at the completion, in ms since 1970."""


@dataclass(slots=True)
class Mint:
    """A version came into being at a coordinator."""

    dot: Dot
    write: int
    node: NodeId
    at: float
    replaced: tuple[Dot, ...]
    """What it supersedes by contract: what the client had read; for a blind write, what the coordinator held."""
    tombstone: bool = False


@dataclass(slots=True)
class Final:
    """What one owner holds of a key after the run."""

    sealed: bytes | None
    dots: tuple[Dot, ...] = ()
    canonical: bool = True
    """Whether the bytes are those that the one encoder makes of the record."""
    live: bool = False
    """Whether it shows any value."""
    live_dots: tuple[Dot, ...] = ()
    """Its versions with a value."""
    elements: int = 0
    """The set workload: the union of the elements of its versions, as a bitset."""


@dataclass(frozen=True, slots=True)
class Leftover:
    """What lies after a run where nothing should lie: a record on a node that does not own its key, or a hint."""

    node: NodeId
    intended: NodeId
    """For whom it is kept; "": it lies among the node's own records."""
    key: str
    live: tuple[Dot, ...] = ()
    """Its versions with a value."""


@dataclass(slots=True)
class KeyHistory:
    """All that happened to one key. ``mints`` is in the order of minting, ``reads`` in the order of completion."""

    key: str
    writes: dict[int, Write] = field(default_factory=dict)
    reads: list[Read] = field(default_factory=list)
    mints: dict[Dot, Mint] = field(default_factory=dict)
    finals: dict[NodeId, Final] = field(default_factory=dict)
    reaped: dict[Dot, float] = field(default_factory=dict)
    """Tombstones (and expired versions) that some node has dropped for good, and when: they and all that they superseded are
    dead, and need not be shown by anybody."""


@dataclass(frozen=True, slots=True)
class Violation:
    """A promise was broken."""

    rule: str
    """The checker that found it: C1, C2, ..., or ``invariant`` for an assertion of the core."""
    key: str
    """The key concerned, or ""."""
    text: str
    at: float = 0.0

    def __str__(self) -> str:
        return f"{self.rule} at {self.at:.3f} s{f', key {self.key}' if self.key else ''}: {self.text}"


def value_bytes(write_id: int, elements: int = 0) -> bytes:
    """The value of a write: its id, and for the set workload the elements that it holds, as a bitset."""
    return b"%d:%x" % (write_id, elements)


def parse_value(value: bytes) -> tuple[int, int]:
    """The (write id, elements) of a value; zeros of one that no client wrote (bit rot that a planted bug lets pass)."""
    head, _, tail = value.partition(b":")
    try:
        return int(head), int(tail, 16)
    except ValueError:
        return 0, 0


def request_id_bytes(write_id: int) -> bytes:
    """The request id of a write: a delete is recognised by it."""
    return b"w%d" % write_id


def write_of(value: bytes | None, request_id: bytes) -> int | None:
    """Which write made a version with this value and request id; None: no client's."""
    try:
        if value is not None:
            return parse_value(value)[0] or None
        return int(request_id[1:]) if request_id[:1] == b"w" else None
    except ValueError:
        return None


def dot_text(dot: Dot) -> str:
    """A dot for people: who, and the clock reading shortened to its last part."""
    return f"{dot[0]}:{dot[1] >> 16 & 0xFFFFFFF}.{dot[1] & 0xFFFF}"


def describe(history: KeyHistory, *, until: float = math.inf, limit: int = 60) -> list[str]:
    """The story of one key, a line for each client's operation and each mint, in order of time: the last ``limit`` that began
    ``until`` then, and what is left at the end."""
    lines: list[tuple[float, str]] = []
    for write in history.writes.values():
        kind = "delete" if write.value is None else "put"
        seen = "blind" if write.read is None else "over [" + " ".join(map(dot_text, write.read)) + "]"
        for number, attempt in enumerate(write.tries):
            ends = f"{attempt.completed_at:.3f}" if math.isfinite(attempt.completed_at) else "never"
            why = f" {attempt.code} {attempt.text}" if attempt.code else ""
            retry = f" try {number + 1}" if number else ""
            acked = " acks " + " ".join(map(dot_text, write.acked)) if attempt.status is Status.OK else ""
            text = (
                f"p{write.process} {kind} #{write.id}{retry} via {attempt.node} {seen} -> {attempt.status}{why}{acked}"
            )
            lines.append((attempt.invoked_at, f"{attempt.invoked_at:9.3f} .. {ends:>9} {text}"))
    for read in history.reads:
        found = " ".join(f"{dot_text(d)}#{history.mints[d].write if d in history.mints else '?'}" for d in read.dots)
        text = f"p{read.process} get via {read.node} -> {read.status} [{found}]"
        lines.append((read.invoked_at, f"{read.invoked_at:9.3f} .. {read.completed_at:9.3f} {text}"))
    for mint in history.mints.values():
        what = "tombstone" if mint.tombstone else "version"
        lines.append(
            (mint.at, f"{mint.at:9.3f}              {mint.node} mints {what} {dot_text(mint.dot)} of #{mint.write}")
        )
    lines = sorted(line for line in lines if line[0] <= until)
    shown = [text for _, text in lines[-limit:]]
    for node, final in sorted(history.finals.items()):
        found = " ".join(f"{dot_text(d)}#{history.mints[d].write if d in history.mints else '?'}" for d in final.dots)
        shown.append(f"    final {node} [{found}]")
    return ([f"    ... {len(lines) - limit} earlier lines"] if len(lines) > limit else []) + shown
