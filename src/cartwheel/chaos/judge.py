"""The verdict: the history of a chaos run, put before the judges of the simulator.

The simulator sees every version that a node mints; here only what clients saw is known. So a write is named by its id, as the
dot ``("w", id)``, and *supersedes what the operation had shown whose context it sent*. Two things are not seen directly:

1. **Deletes.** A get does not show tombstones. But its context, which this program can read for it made the cluster's secret,
   covers the dot of a delete (known from the delete's own acknowledgement) if the record accounts for it. Such a delete
   counts as shown by the get, unless something else that is shown has superseded it.
2. **Deletes of unknown outcome** have no dot that we know. If in the end something is gone that such a delete would have removed,
   and nothing that it would have removed is still there, then the delete is taken to have been applied. So it excuses a
   loss only where a client did ask for it; how often is told (``excused``).

3. **Writes that were handed on.** A node that does not own a key lets an owner coordinate the write, and another one or itself
   if that one does not answer. Both may have made a version of it, with one value, and whoever superseded the first has not
   superseded the second: the value may show again. So a write is not said to be resurrected when it shows again, unless an
   owner was asked, which made the version itself, and promptly; how often is told (``again``). While members come and go owners
   change, and nodes learn of it at different times: an owner is then who owns the key in every ring of the run.

Keys are judged one after the other, read from the file by their places, so memory is bounded by the longest story of a single
key, and a few words per operation.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from cartwheel.chaos.history import (
    NO_CONTEXT,
    Away,
    End,
    Fault,
    Final,
    Kind,
    Op,
    Owners,
    Run,
    Trouble,
    read_lines,
    read_ops,
)
from cartwheel.chaos.load import BUCKET
from cartwheel.chaos.measure import Measured
from cartwheel.core.errors import ConfigError
from cartwheel.core.ring.ring import position
from cartwheel.core.types import Clock, Dot, NodeId, node_of
from cartwheel.sim import checkers, history
from cartwheel.sim.checkers import Pasts
from cartwheel.sim.history import KeyHistory, Mint, Read, Status, Try, Violation, Write, describe

POSITION_BITS = 128
PROMPT_S = 0.15
"""An owner that coordinates a write itself, and answers within this time, has handed it to nobody (a node waits longer before it
asks another one, see ``Config``)."""
STORIES_MAX = 3
"""Keys whose story is told."""


@dataclass(slots=True)
class Verdict:
    """What the judges found."""

    violations: list[Violation] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    """``lost``, ``phantom`` and ``resurrected`` writes; ``excused``, ``again`` and ``recovered``; reads of sessions."""
    stories: dict[str, list[str]] = field(default_factory=dict)
    """Key -> what led to its first violation; all of it, if that showed only in the end."""


@dataclass(slots=True)
class Record:
    """The content of a history's file, but for the operations: those are read when their key is judged."""

    run: Run
    end: End | None = None
    faults: list[Fault] = field(default_factory=list)
    aways: list[Away] = field(default_factory=list)
    rings: list[Owners] = field(default_factory=list)
    troubles: list[Trouble] = field(default_factory=list)
    finals: dict[str, Final] = field(default_factory=dict)
    places: defaultdict[str, list[int]] = field(default_factory=lambda: defaultdict(list))
    measured: Measured = field(default_factory=Measured)


def read_record(path: Path) -> Record:
    """Read a history, and measure its operations on the way.

    Raises:
        ConfigError: it is no history, or a damaged one.
    """
    record: Record | None = None
    for place, line in read_lines(path):
        if isinstance(line, Run):
            record = Record(line)
            continue
        assert record is not None, "read_lines begins with a Run"
        if isinstance(line, Op):
            record.places[line.key].append(place)
            if not line.stranger:
                record.measured.add(line)
        elif isinstance(line, Fault):
            record.faults.append(line)
        elif isinstance(line, Away):
            record.aways.append(line)
        elif isinstance(line, Owners):
            record.rings.append(line)
        elif isinstance(line, Trouble):
            record.troubles.append(line)
        elif isinstance(line, Final):
            record.finals[line.key] = line
        else:
            record.end = line
    if record is None:
        raise ConfigError(f"{path} is empty: no chaos history")
    return record


def judge(path: Path, record: Record) -> Verdict:
    """All checkers over all keys."""
    verdict = Verdict()
    verdict.violations += [Violation(each.rule, "", each.text, each.at) for each in record.troubles]
    if record.end is None:
        verdict.violations.append(Violation("END", "", "the history breaks off: nobody looked what was left"))
    with path.open("rb") as file:
        for key, places in sorted(record.places.items()):
            ops = read_ops(file, places)
            final = record.finals.get(key)
            owners = (
                lasting_owners(record.rings, key) if record.rings else set(final.replicas if final is not None else ())
            )
            found = judge_key(key, ops, final, verdict.counts, owners=owners, disk_lost=record.run.disk_lost)
            verdict.violations += found.violations
            if found.violations and len(verdict.stories) < STORIES_MAX:
                at = min((each.at for each in found.violations if each.at), default=math.inf)
                verdict.stories[key] = describe(found.history, until=at)
    strangers = record.finals.keys() - record.places.keys()
    for key in sorted(strangers):
        if record.finals[key].ids:
            verdict.violations.append(Violation("C2", key, f"nobody wrote it, but it holds {record.finals[key].ids}"))
    return verdict


def lasting_owners(rings: Iterable[Owners], key: str) -> set[NodeId]:
    """Who owns this key in all of these rings."""
    found: set[NodeId] | None = None
    for ring in rings:
        place = int.from_bytes(position(BUCKET, key.encode()), "big")
        owners = set(ring.owners[place * len(ring.owners) >> POSITION_BITS])
        found = owners if found is None else found & owners
    return found or set()


@dataclass(slots=True)
class KeyVerdict:
    """One key's."""

    history: KeyHistory
    violations: list[Violation] = field(default_factory=list)


def judge_key(
    key: str,
    ops: list[Op],
    final: Final | None,
    counts: Counter[str],
    *,
    owners: Collection[NodeId],
    disk_lost: bool = False,
) -> KeyVerdict:
    """All checkers over one key; ``counts`` is added to. ``owners``: who owned it all the time."""
    story = Story(key, ops, owners=owners)
    if final is not None:
        counts["excused"] += story.end(final, disk_lost=disk_lost)
    counts["again"] += len(story.again)
    found = KeyVerdict(story.history)
    rules = found.violations
    rules += checkers.check_supersession(story.history, shown_stays=not disk_lost)
    rules += checkers.check_convergence(story.history)
    rules += checkers.check_rejected(story.history)
    _, sessions = checkers.check_sessions(story.history, strict=False)
    counts.update(sessions)
    if any(op.kind is Kind.ADD for op in ops):
        violations, recovered = _judge_set(key, ops, final)
        rules += violations
        counts["recovered"] += recovered
    counts.update(_count(story.history))
    return found


def _judge_set(key: str, ops: list[Op], final: Final | None) -> tuple[list[Violation], int]:
    """C1."""
    adds = [op for op in ops if op.kind is Kind.ADD]
    attempted = {op.element for op in adds if op.status is not Status.REJECTED}
    acked = {op.element for op in adds if op.status is Status.OK}
    if final is None:
        return [], 0
    held = 0
    for elements in final.sets:
        held |= int(elements, 16)
    left = {number for number in range(held.bit_length()) if held >> number & 1}
    return checkers.check_set(key, attempted, acked, {"all owners": left})


def _count(story: KeyHistory) -> Counter[str]:
    """How many writes were lost, came from nowhere, or came back, at any time and to anyone: the same findings, in figures."""
    pasts = Pasts(story.mints)
    counts: Counter[str] = Counter()
    acked = pasts.bits(dot for write in story.writes.values() for dot in write.acked)
    seen = [read.dots for read in story.reads if read.status is Status.OK]
    left = [final.dots for final in story.finals.values()]
    lost = risen = 0
    for dots in left:
        lost |= acked & ~pasts.covered(dots)
    for dots in seen + left:
        risen |= pasts.bits(dots) & pasts.superseded(dots)
    counts["lost"] = lost.bit_count()
    counts["resurrected"] = risen.bit_count()
    unwritten = {dot for dots in seen + left for dot in dots if dot not in pasts.index}
    rejected = {dot for dot, mint in story.mints.items() if story.writes[mint.write].status is Status.REJECTED}
    counts["phantom"] = len(unwritten | rejected)
    return counts


# --- from operations to versions ---------------------------------------------------------------------------------------


def dot_of(write_id: int) -> Dot:
    """A write as a dot of the checkers."""
    return "w", write_id


def _covers(clock: Clock, cloud: list[Dot], dot: Dot | None) -> bool:
    """Whether a context accounts for a dot; never for one that is not known."""
    return dot is not None and (clock.get(dot[0], -1) >= dot[1] or dot in cloud)


class Story:
    """The operations on one key, as the checkers want them: made in the order of time, so that what an operation refers to is
    there before it (a context comes from an operation that had ended before its write began)."""

    def __init__(self, key: str, ops: list[Op], *, owners: Collection[NodeId]) -> None:
        self.history = KeyHistory(key)
        self._owners = owners
        self._pasts = Pasts({})
        self._deletes = [op for op in ops if op.kind is Kind.DELETE and op.dot is not None]
        self.again: set[Dot] = set()
        """Writes that were handed on, and showed again after they had been superseded."""
        self._handed_on: set[Dot] = set()
        self._shown: dict[int, tuple[Dot, ...]] = {}  # by seq: what a context stands for
        self._seen = {write_id for op in ops for write_id in op.ids}
        for op in sorted(ops, key=lambda op: (op.end if op.kind is Kind.GET else op.at, op.seq)):
            if op.kind is Kind.GET:
                self._read(op)
            else:
                self._write(op)

    def _read(self, op: Op) -> None:
        dots = self._with_deletes([dot_of(write_id) for write_id in op.ids], op.clock, op.cloud)
        self._shown[op.seq] = dots
        self.history.reads.append(
            Read(op.process, op.key, op.node, op.at, op.end, op.status, dots=dots, shown=tuple(op.ids))
        )

    def _write(self, op: Op) -> None:
        read = self._shown.get(op.ctx, ()) if op.ctx != NO_CONTEXT else ()
        dot, ok = dot_of(op.id), op.status is Status.OK
        attempt = Try(op.node, op.at, op.end, op.status, text=op.text)
        write = Write(
            op.id, op.process, op.key, None if op.kind is Kind.DELETE else b"", read=read,
            invoked_at=op.at, completed_at=op.end, status=op.status, tries=[attempt], dots=[dot],
            acked={dot: op.end} if ok else {},
        )  # fmt: skip
        self.history.writes[op.id] = write
        self._shown[op.seq] = (dot,)  # the context after a put: it, and what it superseded
        if op.status is Status.REJECTED and op.id not in self._seen:
            return
        by = "" if op.dot is None else node_of(op.dot[0])
        if by != op.node or by not in self._owners or op.end - op.at > PROMPT_S:
            self._handed_on.add(dot)
        self._mint(Mint(dot, op.id, op.node, op.at, read, tombstone=op.kind is Kind.DELETE))

    def _mint(self, mint: Mint) -> None:
        self.history.mints[mint.dot] = mint
        self._pasts.add(mint.dot, mint.replaced)

    def _with_deletes(self, live: list[Dot], clock: Clock, cloud: list[Dot]) -> tuple[Dot, ...]:
        """What a record shows whose live versions and clock are these: the deletes, too, that nothing else has superseded."""
        covered = [
            dot_of(op.id) for op in self._deletes
            if _covers(clock, cloud, op.dot) and dot_of(op.id) in self._pasts.index
        ]  # fmt: skip
        over = self._pasts.superseded(live + covered)
        superseded = {dot for dot in live + covered if self._pasts.bits([dot]) & over}
        again = superseded.intersection(live) & self._handed_on
        self.again |= again
        return tuple([dot for dot in live if dot not in again] + [dot for dot in covered if dot not in superseded])

    def end(self, final: Final, *, disk_lost: bool) -> int:
        """What was left. Returns how many deletes of unknown outcome were taken to have been applied."""
        live = [dot_of(write_id) for write_id in final.ids]
        for dot in live:
            write = self.history.writes.get(dot[1])
            if dot not in self.history.mints and write is not None:
                self._mint(Mint(dot, write.id, write.tries[0].node, write.invoked_at, write.read or ()))
        dots = self._with_deletes(live, final.clock, final.cloud)
        dots, excused = self._excuse(dots, live, disk_lost=disk_lost)
        for node, held in sorted(final.replicas.items()):
            sealed = msgspec.json.encode(held, order="sorted")
            self.history.finals[node] = history.Final(sealed, dots, live=bool(live))
        return excused

    def _excuse(self, dots: tuple[Dot, ...], live: list[Dot], *, disk_lost: bool) -> tuple[tuple[Dot, ...], int]:
        """Add the deletes of unknown outcome that explain what is missing."""
        pasts = self._pasts
        wanted = pasts.bits(dot for write in self.history.writes.values() for dot in write.acked)
        if not disk_lost:
            wanted |= pasts.bits(dot for read in self.history.reads for dot in read.dots)
        missing, excused = wanted & ~pasts.covered(dots), 0
        unknown = [
            write for write in self.history.writes.values() if write.value is None and write.status is Status.UNKNOWN
        ]
        for write in sorted(unknown, key=lambda write: -write.invoked_at):
            past = pasts.superseded(write.dots)
            if missing & past and not past & pasts.bits(live) and not pasts.bits(write.dots) & pasts.covered(dots):
                dots, excused = (*dots, *write.dots), excused + 1
                missing &= ~past
        return dots, excused


def rules_broken(violations: Iterable[Violation]) -> dict[str, int]:
    """How often each rule was broken."""
    return dict(sorted(Counter(violation.rule for violation in violations).items()))
