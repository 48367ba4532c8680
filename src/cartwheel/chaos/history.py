"""The file of a chaos run: one JSON line for each thing that happened, written as it happens.

    run       what was asked for: the first line
    op        a client's request, when it ended
    fault     something that the nemesis did, when it was over
    away      when a node's process could not answer (dead, stopped, or starting), or it was no member
    ring      who is to own each partition, at the start, after each change of the members, and at the end
    trouble   something that must not happen and that no judge could see from the operations: a node that halted by itself
    final     what the owners of a key hold after healing
    end       when the load began and stopped, and how long the replicas took to agree: the last line

Times are seconds since the start of the run. A **value** names the write that made it (``value_bytes``), and for the sets the
elements that it holds. A context is not written down but named by the operation that returned it (``ctx``), for it stands for
what that operation showed.
"""

from __future__ import annotations

import enum
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import msgspec

from cartwheel.core.errors import ConfigError
from cartwheel.core.types import Clock, Dot, NodeId
from cartwheel.sim.history import Status

FORMAT = 1
NO_CONTEXT = -1
Direction = tuple[NodeId, NodeId]
STRANGE = -1
"""The id of a value that no client of ours can have written."""


class Kind(enum.StrEnum):
    """What a client asked."""

    GET = "get"
    PUT = "put"
    DELETE = "delete"
    ADD = "add"
    """A put of a set with one element more."""


class Run(msgspec.Struct, tag="run", tag_field="t", kw_only=True):
    """What was asked for."""

    format: int = FORMAT
    version: str
    seed: int
    nodes: list[NodeId]
    """Who founded the cluster,"""
    more: list[NodeId] = []
    """and who may have joined later."""
    engine: str
    w: int = 2
    """Copies that make a write succeed."""
    rate_per_s: float
    clients: int
    seconds: float
    """0: as long as the cycles take."""
    plan: list[str]
    """The steps of the nemesis, as drawn."""
    disk_lost: bool
    """Whether some node loses its disk: what was shown but never acknowledged may vanish then."""


class Op(msgspec.Struct, tag="op", tag_field="t", omit_defaults=True, kw_only=True):
    """A client's request."""

    seq: int
    process: int
    kind: Kind
    key: str
    node: NodeId
    at: float
    end: float = 0.0
    status: Status = Status.UNKNOWN
    id: int = 0
    """A write's, unique."""
    ctx: int = NO_CONTEXT
    """``seq`` of the operation whose context was sent."""
    element: int = -1
    """What an ADD adds."""
    ids: list[int] = []
    """The writes whose values a get returned."""
    clock: Clock = {}
    """A get's context,"""
    cloud: list[Dot] = []
    """and the dots beside it."""
    dot: Dot | None = None
    """An acknowledged write's own version, from its context."""
    text: str = ""
    """Why it failed."""
    stranger: bool = False
    """Whether it was sent to a process that must serve nobody: its failure is no failure."""


class Fault(msgspec.Struct, tag="fault", tag_field="t", omit_defaults=True):
    """Something that the nemesis did."""

    kind: str
    label: str
    start: float
    end: float
    nodes: list[NodeId] = []
    ready_s: float = 0.0
    """From the start of a node's process to its first answer, where one was started."""
    links: list[Direction] = []
    """The directions that were cut."""


class Away(msgspec.Struct, tag="away", tag_field="t"):
    """When a node's process could not answer, by our doing, or it was no member."""

    node: NodeId
    start: float
    end: float


class Owners(msgspec.Struct, tag="ring", tag_field="t"):
    """Who is to own each partition, as a node tells."""

    at: float
    owners: list[list[NodeId]]
    """By partition: the first N of its preference list."""


class Trouble(msgspec.Struct, tag="trouble", tag_field="t"):
    """Something that must not happen."""

    rule: str
    text: str
    at: float


class Final(msgspec.Struct, tag="final", tag_field="t", omit_defaults=True):
    """What was left of a key."""

    key: str
    replicas: dict[NodeId, Any]
    """What each owner holds, as ``CW.EXPLAIN`` says: its clock and its versions' dots, or an error."""
    clock: Clock = {}
    cloud: list[Dot] = []
    ids: list[int] = []
    """The writes whose values a get of all owners returned."""
    sets: list[str] = []
    """The elements of each of these values, as a bitset in hexadecimal."""
    read: bool = False
    """Whether the owners agreed only after the key had been read (read repair)."""


class End(msgspec.Struct, tag="end", tag_field="t", omit_defaults=True):
    """The last line of a run that was carried out to its end."""

    load_from: float
    load_to: float
    agreed_s: float
    """From healing until all owners of all keys agreed, or until the wait was given up."""
    members: list[NodeId] = []
    """Who is in the ring,"""
    epoch: str = ""
    """the digest of it, and of who holds what,"""
    changes: int = 0
    """and how many changes led there."""


Line = Run | Op | Fault | Away | Owners | Trouble | Final | End

_encoder = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder(Line)


class Writer:
    """Appends lines to the file. Buffered: a crash of ours loses the last ones."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: BinaryIO = path.open("xb", buffering=1 << 20)

    def write(self, line: Line) -> None:
        """Add a line."""
        self._file.write(_encoder.encode(line) + b"\n")

    def close(self) -> None:
        """Flush and close."""
        self._file.close()


def read_lines(path: Path) -> Iterator[tuple[int, Line]]:
    """All lines, each with its place in the file.

    Raises:
        ConfigError: the file is missing, or a line is none of ours.
    """
    try:
        with path.open("rb") as file:
            place = 0
            for number, text in enumerate(file, 1):
                try:
                    line = _decoder.decode(text)
                except msgspec.DecodeError as error:
                    raise ConfigError(f"{path}, line {number}: not a line of a chaos history ({error})") from None
                if number == 1 and not (isinstance(line, Run) and line.format == FORMAT):
                    raise ConfigError(f"{path} is no chaos history of format {FORMAT}")
                yield place, line
                place += len(text)
    except OSError as error:
        raise ConfigError(f"cannot read the history {path}: {error.strerror or error}") from None


def read_ops(file: BinaryIO, places: list[int]) -> list[Op]:
    """The operations at these places of the file."""
    found = []
    for place in places:
        file.seek(place)
        line = _decoder.decode(file.readline())
        assert isinstance(line, Op), "the index names operations only"
        found.append(line)
    return found


def value_bytes(write_id: int, elements: int, padding: int) -> bytes:
    """The value of a write: its id, the elements of a set as a bitset, and so many bytes more."""
    return b"%d:%x:%b" % (write_id, elements, b"." * padding)


def parse_value(value: bytes) -> tuple[int, int]:
    """The (write id, elements) of a value; (STRANGE, 0) if it is none of ours."""
    head, _, rest = value.partition(b":")
    middle, colon, padding = rest.partition(b":")
    try:
        write_id, elements = int(head), int(middle, 16)
    except ValueError:
        return STRANGE, 0
    return (write_id, elements) if colon and not padding.strip(b".") and write_id > 0 else (STRANGE, 0)
