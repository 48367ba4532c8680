"""Was a write lost, or did a read not find it? What clients were promised, held against what they were told.

    write k  1 ok        2 ok               3 ?                      each key has one writer, which counts up
    read k        1 or more  2 or more           2 or more           least: the last one acknowledged before the read began

A read that finds nothing though a write was acknowledged before the read began is a *false not-found*; one whose newest
sibling is older than that is *stale*. Both are promises only where R + W > N. A write that is acknowledged and not to be
found at the end is *lost*.

A write whose outcome nobody knows (its connection broke, say) may still be applied: even after a later write of the same key,
which it would then supersede with full right, for a SET supersedes whatever its coordinator holds. So its key is set aside:
read on, and never written again.

Invariants: ``acked <= tried`` for each key; at most one write of a key is under way. O(1) per operation, 16 bytes a key.
"""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Iterable
from enum import StrEnum

EXAMPLES_MAX = 20


class Outcome(StrEnum):
    """What became of a write."""

    ACKED = "acknowledged"
    REFUSED = "refused"
    """Certainly not applied."""
    UNKNOWN = "unknown"
    """Perhaps applied, perhaps yet to be."""


class Finding(StrEnum):
    """What must not be."""

    NOT_FOUND = "false not-found"
    STALE = "stale"
    LOST = "lost"
    FOREIGN = "never written"
    """The key shows a value that nobody wrote to it."""


class Judge:
    """What was promised of keys number 0 to ``keys`` - 1. Keeps the first findings for people to look at."""

    def __init__(self, keys: int) -> None:
        self.keys = keys
        self._tried = array("q", bytes(8 * keys))
        self._acked = array("q", bytes(8 * keys))
        self._writing: set[int] = set()
        self._aside: set[int] = set()
        self.findings: Counter[Finding] = Counter()
        self.examples: list[str] = []
        """The first ``EXAMPLES_MAX`` findings, in words."""

    @property
    def aside(self) -> int:
        """Keys that are written no more."""
        return len(self._aside)

    def may_write(self, key: int) -> bool:
        """Whether no write of this key is under way, and the outcomes of all others are known."""
        return key not in self._writing and key not in self._aside

    def begin_write(self, key: int) -> int:
        """The number of the next write of this key, from 1. Ends with ``end_write``."""
        assert self.may_write(key), f"two writers of key {key}"
        self._writing.add(key)
        self._tried[key] += 1
        return self._tried[key]

    def end_write(self, key: int, outcome: Outcome) -> None:
        """The write under way has ended so."""
        self._writing.remove(key)
        if outcome is Outcome.ACKED:
            self._acked[key] = self._tried[key]
        elif outcome is Outcome.UNKNOWN:
            self._aside.add(key)

    def set_aside(self, key: int) -> None:
        """A first try of the write under way may yet be applied, whatever becomes of the second."""
        self._aside.add(key)

    def acked(self, key: int) -> int:
        """The last write that was acknowledged: what a read that begins now has to find, or a later one. 0: none."""
        return self._acked[key]

    def end_read(self, key: int, least: int, values: Iterable[bytes], where: str) -> Finding | None:
        """Judge what a read found.

        Args:
            least: ``acked`` when the read began.
            values: all siblings.
            where: in words, for the examples.
        """
        finding, found = self._look(key, least, values, Finding.NOT_FOUND, Finding.STALE)
        return self._note(finding, key, least, found, where)

    def read_back(self, key: int, values: Iterable[bytes], where: str) -> Finding | None:
        """Judge what is there at the end, when nothing is written any more."""
        least = self._acked[key]
        finding, found = self._look(key, least, values, Finding.LOST, Finding.LOST)
        return self._note(finding, key, least, found, where)

    def is_there(self, key: int, values: Iterable[bytes]) -> bool:
        """Whether what was acknowledged is among these. Counts nothing."""
        return self._look(key, self._acked[key], values, Finding.LOST, Finding.LOST)[0] is None

    def _look(
        self, key: int, least: int, values: Iterable[bytes], absent: Finding, older: Finding
    ) -> tuple[Finding | None, list[int]]:
        found = [sequence_of(key, value) for value in values]
        if any(not 0 < number <= self._tried[key] for number in found):
            return Finding.FOREIGN, found
        if max(found, default=0) >= least:
            return None, found
        return older if found else absent, found

    def _note(self, finding: Finding | None, key: int, least: int, found: list[int], where: str) -> Finding | None:
        if finding is not None:
            self.findings[finding] += 1
            if len(self.examples) < EXAMPLES_MAX:
                shown = f"found {found}" if found else "found nothing"
                self.examples.append(f"{finding}: key {key}, {shown}, acknowledged was {least}; {where}")
        return finding


def value_of(key: int, number: int, padding: bytes) -> bytes:
    """What a write writes: ``padding`` with the names of the key and of the write in front, as long as that."""
    head = b"%d:%d:" % (key, number)
    return head + padding[len(head) :]


def sequence_of(key: int, value: bytes) -> int:
    """The number of the write that wrote this value; -1 if it is none of this key's."""
    name, _, rest = value.partition(b":")
    number, colon, _ = rest.partition(b":")
    if name != b"%d" % key or not colon or not number.isdigit():
        return -1
    return int(number)
