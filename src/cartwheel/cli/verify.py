"""``cartwheel verify``: compare what all members hold of all keys, record by record.

    members' doors ──CW.DIGESTS p──> pages of (bucket, key, checksum) ──> per partition: each key over its owners ──> Tally
                                                                              │ not all alike
                                                                              v
                                                       after a second, the same keys once more: writes may have been under way

Independent of anti-entropy: every node reads each of its records and verifies its checksum. Costs the nodes about what it costs
to read everything once; memory here: one partition's keys, and the keys that seem to differ.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import click
import msgspec

from cartwheel.cli import common
from cartwheel.cli.common import Failed
from cartwheel.client.resp import Connection, Reply, ReplyError
from cartwheel.core.errors import CartwheelError

ALIKE, DIFFERENT = 0, 1
AGAIN_S = 1.0
"""A write under way has come to all owners by then, or they differ."""
CHUNK = 16
"""Partitions asked for in one pipeline."""
SHOWN_MAX = 20
MISSING, CORRUPT, DELETED = "missing", "corrupt", "deleted"

Key = tuple[str, bytes]
"""Bucket and key."""


class Held(msgspec.Struct, frozen=True):
    """What a node holds of a key."""

    checksum: str
    """``corrupt``: it fails its own."""
    live: bool


class Part(msgspec.Struct):
    """What one node holds of one partition."""

    epoch: str = ""
    preference: list[str] = []
    owners: dict[str, int] = {}
    rows: dict[Key, Held] = {}
    unreadable: str = ""


class Difference(msgspec.Struct):
    """A key that its owners do not hold alike."""

    kind: str
    """``differing``, ``missing`` or ``corrupt``."""
    partition: int
    bucket: str
    key: bytes
    held: dict[str, str]
    """Owner -> its record's checksum (with ``deleted``, if no value is left), or ``missing``, or ``corrupt``."""


class Tally(msgspec.Struct):
    """The outcome."""

    partitions: int = 0
    keys: int = 0
    replicas: int = 0
    """How many owners' copies were asked for."""
    identical: int = 0
    """Keys that all owners hold alike. With ``differing``, ``missing``, ``corrupt`` and ``forgotten`` they are all ``keys``."""
    differing: int = 0
    missing: int = 0
    """Keys of which some owner holds nothing, the others the same."""
    corrupt: int = 0
    """Keys of which some owner's record fails its checksum."""
    forgotten: int = 0
    """Deleted or expired keys of which some owner has nothing left: it removed them first, as all will."""
    mended: int = 0
    """Corrupt records that were good a second later; their keys are among the other counts."""
    settled: int = 0
    """Keys, among the identical, that were not alike at first: writes were under way, or repairs."""
    elsewhere: int = 0
    """Copies at nodes that do not own the key."""
    hints_pending: int = 0
    """Records kept for another node."""
    not_asked: dict[str, str] = {}
    """Members that could not be asked, and why."""
    unreadable: dict[str, str] = {}
    """Node and partition -> why the rest of it could not be read."""
    differences: list[Difference] = []
    """The first of them."""

    @property
    def alike(self) -> bool:
        """Whether all was compared and found identical."""
        return not (self.differing or self.missing or self.corrupt or self.not_asked or self.unreadable)

    def count(self, difference: Difference | None) -> None:
        """Count one key, which is not alike, or (None) identical."""
        kind = "identical" if difference is None else difference.kind
        setattr(self, kind, getattr(self, kind) + 1)
        if difference is not None and kind != "forgotten" and len(self.differences) < SHOWN_MAX:
            self.differences.append(difference)


def judge(partition: int, key: Key, owners: Sequence[str], parts: dict[str, Part]) -> Difference | None:
    """Compare a key over those of its owners that were asked. None: all hold the same."""
    found = {owner: parts[owner].rows.get(key) for owner in owners if owner in parts}
    held = [each for each in found.values() if each is not None]
    checksums = {each.checksum for each in held}
    if CORRUPT in checksums:
        kind = "corrupt"
    elif len(checksums) > 1:
        kind = "differing"
    elif len(held) == len(found):
        return None
    else:
        kind = "missing" if any(each.live for each in held) else "forgotten"
    texts = {owner: _text(each) for owner, each in found.items()}
    return Difference(kind, partition, key[0], key[1], texts)


def _text(held: Held | None) -> str:
    if held is None:
        return MISSING
    return held.checksum if held.live or held.checksum == CORRUPT else f"{held.checksum} ({DELETED})"


class Verifier:
    """One run, over connections to the members."""

    def __init__(
        self, members: dict[str, Connection], *, again: Callable[[], None] = lambda: time.sleep(AGAIN_S)
    ) -> None:
        self.tally = Tally()
        self._members = members
        self._again = again

    def run(self, partitions: Sequence[int], advance: Callable[[int], None]) -> Tally:
        """Compare these partitions; ``advance`` is told how many more are done."""
        tally = self.tally
        suspects: dict[int, dict[Key, str]] = {}
        for start in range(0, len(partitions), CHUNK):
            chunk = partitions[start : start + CHUNK]
            for partition, parts in self._read(chunk):
                suspects |= self._compare(partition, parts)
            advance(len(chunk))
        tally.partitions = len(partitions)
        if suspects:
            self._again()
            for partition, keys in suspects.items():
                ((_, parts),) = self._read([partition])
                for key, kind in keys.items():
                    difference = judge(partition, key, self._owners(key, parts), parts)
                    tally.settled += difference is None
                    tally.mended += kind == "corrupt" and (difference is None or difference.kind != kind)
                    tally.count(difference)
        return tally

    def _compare(self, partition: int, parts: dict[str, Part]) -> dict[int, dict[Key, str]]:
        """Count what all hold alike; return the keys that have to be looked at again, and what they seem to be."""
        tally = self.tally
        suspects: dict[Key, str] = {}
        for key in sorted({key for part in parts.values() for key in part.rows}):
            owners = self._owners(key, parts)
            tally.elsewhere += sum(key in part.rows for node, part in parts.items() if node not in owners)
            if not any(key in parts[owner].rows for owner in owners if owner in parts):
                continue  # only nodes that do not own it have it
            tally.keys += 1
            tally.replicas += sum(owner in parts for owner in owners)
            difference = judge(partition, key, owners, parts)
            if difference is None:
                tally.count(None)
            else:
                suspects[key] = difference.kind
        for node, part in parts.items():
            if part.unreadable:
                tally.unreadable[f"{node}, partition {partition}"] = part.unreadable
        return {partition: suspects} if suspects else {}

    @staticmethod
    def _owners(key: Key, parts: dict[str, Part]) -> list[str]:
        """Who owns the key. Nodes with different views of the ring are not compared (see ``_read``)."""
        n = max((part.owners[key[0]] for part in parts.values() if key[0] in part.owners), default=1)
        return next(iter(parts.values())).preference[:n]

    def _read(self, partitions: Sequence[int]) -> Iterator[tuple[int, dict[str, Part]]]:
        """What each node holds of each of these partitions.

        Raises:
            Failed: the nodes do not agree on the ring.
        """
        asked = [["CW.DIGESTS", str(partition)] for partition in partitions]
        found: dict[str, list[Part]] = {}
        for node, connection in self._members.items():
            found[node] = []
            for partition, reply in zip(partitions, connection.pipeline(asked), strict=True):
                part = Part(rows={})
                while cursor := _add_page(part, reply, connection):
                    reply = connection.call("CW.DIGESTS", partition, "CURSOR", cursor)
                found[node].append(part)
        for number, partition in enumerate(partitions):
            parts = {node: found[node][number] for node in found}
            if len({part.epoch for part in parts.values()}) > 1:
                raise Failed("the nodes do not agree on the members and buckets yet: try again in a moment")
            yield partition, parts


def _add_page(part: Part, reply: Reply, connection: Connection) -> str:
    """Take a page into ``part`` and return the cursor of the next one; "": there is none."""
    if isinstance(reply, ReplyError):
        raise reply
    if not isinstance(reply, list) or len(reply) % 2:
        raise Failed(f"the node at {connection.address} answered CW.DIGESTS with {reply!r}")
    told: dict[str, Any] = {common.text_of(name): value for name, value in zip(reply[::2], reply[1::2], strict=True)}
    part.epoch = common.text_of(told["epoch"])
    part.preference = [common.text_of(node) for node in told["preference"]]
    owners = told["owners"]
    part.owners = part.owners | {common.text_of(owners[at]): owners[at + 1] for at in range(0, len(owners), 2)}
    part.unreadable = common.text_of(told["unreadable"])
    for _, bucket, key, checksum, state in told["rows"]:
        part.rows[common.text_of(bucket), key] = Held(common.text_of(checksum), live=state == b"live")
    return common.text_of(told["cursor"])


@click.command()
@click.option("--partition", type=click.IntRange(min=0), metavar="P", help="Only this partition.")
@common.json_option
@common.node_option
@common.timeout_option
def verify(partition: int | None, as_json: bool, node: str, timeout_s: float) -> int:
    """Compare all replicas of all keys, and say what is not alike. Exit code 1 if anything is, or could not be compared.

    Every member reads all that it holds and checks it against its checksums; it is asked through its own port for Redis
    clients. Keys that differ are looked at once more after a second, because writes may have been under way.
    """
    with common.connect(node, timeout_s) as connection:
        status = common.ask_json(connection, "CW.STATUS", "JSON")
    if partition is not None and partition >= status["q"]:
        raise click.UsageError(f"partitions are numbered from 0 to {status['q'] - 1}", click.get_current_context())
    members, not_asked, hints = _connect(status, node, timeout_s)
    try:
        if not members:
            raise Failed("no member could be asked")
        verifier = Verifier(members)
        verifier.tally.not_asked, verifier.tally.hints_pending = not_asked, hints
        partitions = range(status["q"]) if partition is None else [partition]
        with _Bar(len(partitions), shown=not as_json) as bar:
            tally = verifier.run(partitions, bar.advance)
    finally:
        for connection in members.values():
            connection.close()
    if as_json:
        common.print_json(_as_json(tally))
    else:
        _print(tally)
    return ALIKE if tally.alike else DIFFERENT


def _connect(status: dict[str, Any], node: str, timeout_s: float) -> tuple[dict[str, Connection], dict[str, str], int]:
    """Connections to the members by their names; those that could not be reached, and why; and how many hints they keep."""
    members: dict[str, Connection] = {}
    not_asked: dict[str, str] = {}
    hints = 0
    for member in status["members"]:
        name = member["node"]
        door = node if name == status["node"] else member["door"]
        try:
            if not door:
                raise Failed(
                    f"{status['node']} does not know its port for Redis clients: {member['reason'] or 'not told yet'}"
                )
            members[name] = common.connect(door, timeout_s)
            answer = common.ask_json(members[name], "CW.STATUS", "JSON")
            if answer["node"] != name:
                raise Failed(f"at {door} is {answer['node']}")
            hints += sum(kept["hints"] for kept in answer["hints"])
        except CartwheelError as error:
            if name in members:
                members.pop(name).close()
            not_asked[name] = str(error)
    return members, not_asked, hints


def _as_json(tally: Tally) -> dict[str, Any]:
    differences = []
    for each in tally.differences:
        key = {name.replace("value", "key"): text for name, text in common.value_json(each.key).items()}
        told = {"kind": each.kind, "partition": each.partition, "bucket": each.bucket, **key, "held": each.held}
        differences.append(told)
    return {"alike": tally.alike, **msgspec.to_builtins(tally), "differences": differences}


def _print(tally: Tally) -> None:
    table = common.table("", "")
    table.show_header = False
    for name, number in _facts(tally):
        table.add_row(name, f"{number:,}")
    common.console().print(table)
    for each in tally.differences:
        held = ", ".join(f"{owner}: {text}" for owner, text in each.held.items())
        key = each.key.decode("utf-8", "backslashreplace")
        click.echo(f"{each.kind}: {key} in bucket {each.bucket}, partition {each.partition}: {held}")
    more = tally.differing + tally.missing + tally.corrupt - len(tally.differences)
    if more:
        click.echo(f"and {more:,} more")
    for name, reason in (*tally.not_asked.items(), *tally.unreadable.items()):
        click.echo(f"not compared: {name}: {reason}", err=True)
    click.echo("all replicas are identical" if tally.alike else "not all replicas are known to be identical")


def _facts(tally: Tally) -> Iterable[tuple[str, int]]:
    yield "partitions", tally.partitions
    yield "keys", tally.keys
    yield "replicas compared", tally.replicas
    yield "identical", tally.identical
    yield "differing", tally.differing
    yield "missing at an owner", tally.missing
    yield "corrupt", tally.corrupt
    yield "corrupt, and mended a second later", tally.mended
    yield "deleted, and gone at some owners", tally.forgotten
    yield "not alike at first, but a second later", tally.settled
    yield "copies at nodes that are no owners", tally.elsewhere
    yield "hints pending", tally.hints_pending


class _Bar:
    """A progress bar on standard error, if that is a terminal. Use with ``with``."""

    def __init__(self, total: int, *, shown: bool) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        console = Console(stderr=True)
        columns = (TextColumn("partitions"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        self._progress = Progress(
            *columns, console=console, transient=True, disable=not (shown and console.is_terminal)
        )
        self._task = self._progress.add_task("", total=total)

    def __enter__(self) -> _Bar:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def advance(self, partitions: int) -> None:
        """So many more are done."""
        self._progress.advance(self._task, partitions)
