"""One comparison under way, at the node that began it: from roots to leaves to keys, with one other owner.

    ROOTS ── equal ────────────────────────────────────────────────> compared
      └──── differ ──> LEAVES ── which ──> KEYS of those ──> rows both ways ──> compared
                                            └── page by page; before each: the budget is asked for what the last one moved

A step is one question; its answer has the step's id, so a late or repeated one matches nothing. A session that hears nothing for
``ANSWER_S`` ends; whatever it had not reached differs still and is found by the next one.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

from cartwheel.core.antientropy.answers import MOVED_BYTES_MAX, MOVED_MAX, numbers, packed
from cartwheel.core.antientropy.books import Ages, Traffic
from cartwheel.core.antientropy.rows import Rows, tell
from cartwheel.core.local import Local
from cartwheel.core.merkle import HASH_BYTES, LEAVES
from cartwheel.core.messages import LeafDiff, LeafKeys, LeafRows, Purpose, TreeLeaves, TreeRoots
from cartwheel.core.summary import Summary
from cartwheel.core.types import Durability, NodeId

ANSWER_S = 3.0
"""Longer than a busy peer takes, short enough that a lost message costs little."""
BUSY_S = 0.2
"""Who has no budget for an answer is asked again after so long: each question costs both sides."""
ROOTS_MAX = 4096
"""Partitions in one question: 40 KB, and 3 ms to answer."""
TOLD_MAX = 256
"""Keys told in one question: 8 KB."""
SENT_MAX = 2
"""Messages of records sent in one step."""

CROSSED = "the other one is comparing with us"

Part = tuple[int, int]
"""An n, and a partition."""


class Session:
    """A comparison with one peer. Invariants: ``left`` are the parts not compared yet; it is over once ``ended`` says why."""

    def __init__(
        self, local: Local, summary: Summary, rows: Rows, traffic: Traffic, ages: Ages,
        peer: NodeId, parts: Iterable[Part], end_s: float, settle_s: float, purpose: Purpose = Purpose.SHARED,
    ) -> None:  # fmt: skip
        self._local = local
        self._summary = summary
        self._rows = rows
        self._traffic = traffic
        self._ages = ages
        self.peer = peer
        self.end_s = end_s  # a session with much to do makes room for others then
        self._settle_ms = round(settle_s * 1000)
        self.purpose = purpose
        self.left: dict[Part, None] = dict.fromkeys(parts)
        self.lacked: set[Part] = set()
        """Those of which the other one lacked something."""
        self.ended = ""
        self.received = self.sent = 0
        self._to_ask = deque(self.left)  # parts whose roots are to be compared
        self._asked: list[int] = []  # the partitions of the question under way
        self._n = 0
        self._work: deque[tuple[int, int]] = deque()  # partitions with a bitmap of leaves that differ
        self._start = b""  # where the next page of the first of these begins
        self._told: dict[bytes, bytes] = {}  # position -> record key, of that page
        self._outgoing: deque[bytes] = deque()  # keys of records to be sent
        self._debt = 1  # records to be paid for before the next question
        self._paused = False
        self._rest_until_s = 0.0
        self._id = 0
        self._deadline_s = 0.0

    # --- time ---

    def handle_tick(self) -> None:
        """Go on if the session paused; end if it hears nothing."""
        if self._paused and self._local.now_s >= self._rest_until_s:
            self._paused = False
            self.advance()
        elif self._paused:
            return
        elif self._local.now_s > self._deadline_s:
            self.ended = "no answer in time"

    def advance(self) -> None:
        """Ask the next question, if the budget allows; else pause until the next tick."""
        local = self._local
        if local.now_s > self.end_s:
            self.ended = "it took its time"
            return
        if self._debt and not local.budget(self._debt):
            self._paused = True
            return
        self._debt = 0
        for _ in range(SENT_MAX):
            self._send_rows()
        if self._outgoing:
            self._paused = True
        elif self._work:
            self._ask_keys()
        elif self._to_ask:
            self._ask_roots()
        else:
            self.ended = "done"

    def _expect(self) -> int:
        self._id = self._local.new_id()
        self._deadline_s = self._local.now_s + ANSWER_S
        return self._id

    # --- roots and leaves ---

    def _ask_roots(self) -> None:
        summary = self._summary
        self._n = self._to_ask[0][0]
        partitions: list[int] = []
        while self._to_ask and self._to_ask[0][0] == self._n and len(partitions) < ROOTS_MAX:
            partition = self._to_ask.popleft()[1]
            if summary.ready(partition):
                partitions.append(partition)
        tree = summary.trees.get(self._n)
        self._asked = partitions
        if tree is None or not partitions:
            self._paused = True  # on with the others at the next tick
            return
        roots = tree.roots(partitions)
        epoch = self._local.epoch if self.purpose is Purpose.SHARED else b""
        ask = TreeRoots(self._expect(), epoch, self._n, packed(partitions), roots, self.purpose)
        self._traffic.send(self.peer, ask)

    def handle_leaves(self, message: TreeLeaves) -> None:
        """Where the trees differ."""
        if message.id != self._id:
            return
        self._id = 0
        if message.crossed:
            self.ended = CROSSED
            return
        summary = self._summary
        tree = summary.trees.get(self._n)
        differing = numbers(message.differing)
        shown = differing[: len(message.leaves) // (LEAVES * HASH_BYTES)]
        unsettled = {*differing, *numbers(message.unready)}
        for partition in self._asked:
            if partition not in unsettled:
                self._compared(partition)
        asked = set(self._asked)
        for i, partition in enumerate(shown):
            if tree is None or partition not in asked or not summary.ready(partition):
                continue
            theirs = message.leaves[i * LEAVES * HASH_BYTES : (i + 1) * LEAVES * HASH_BYTES]
            leaves = self._rows.compared(partition, tree.differing(partition, theirs))
            if leaves:
                self._work.append((partition, leaves))
            else:
                self._compared(partition)  # what differed a moment ago was on its way
        if shown:
            self._to_ask.extendleft((self._n, partition) for partition in reversed(differing[len(shown) :]))
        self.advance()

    def _compared(self, partition: int) -> None:
        self.left.pop((self._n, partition), None)
        self._ages.note(self._n, self.peer, partition)

    # --- keys and records ---

    def _ask_keys(self) -> None:
        partition, leaves = self._work[0]
        tree = self._summary.trees.get(self._n)
        if tree is None:
            self._work.clear()  # the bucket's n has changed
            self._paused = True
            return
        page, end = self._rows.read(tree, self._n, partition * LEAVES, leaves, self._start, b"", TOLD_MAX)
        self._told = {position: row.record_key for position, row in page.items()}
        self._debt += 1 + len(page) // 16  # to read and tell a record costs little beside moving it
        pull = self._local.takes_writes
        ask = LeafKeys(
            self._expect(), self._n, partition, leaves, self._start, end, tell(page), self._settle_ms, pull
        )  # fmt: skip
        self._traffic.send(self.peer, ask)

    def handle_diff(self, message: LeafDiff) -> None:
        """Take what is newer there; send what is newer here."""
        if message.id != self._id:
            return
        self._id = 0
        if message.busy:
            self._paused, self._rest_until_s = True, self._local.now_s + BUSY_S
            return
        if self._local.takes_writes:
            self._take(message.rows)
        for at in range(0, len(message.want), 16):
            record_key = self._told.get(message.want[at : at + 16], b"")
            if record_key:
                self._owe(record_key)
        self._debt += len(message.rows) + len(message.want) // 16
        if message.reached <= self._start:
            self._finish_leaves()
        else:
            self._start = message.reached
        self.advance()

    def _take(self, rows: list[tuple[bytes, bytes]]) -> None:
        given = self.purpose is Purpose.GIVEN
        for record_key, sealed in rows:
            if given and self._rows.sealed(record_key) is None:
                continue  # it is there: that is all we want to know
            held, changed = self._rows.take(record_key, sealed)
            self.received += changed
            self._traffic.received += changed
            if held is not None and held != sealed:
                self._owe(record_key)

    def _owe(self, record_key: bytes) -> None:
        """The other one lacks this."""
        self._outgoing.append(record_key)
        self.lacked.add((self._n, self._work[0][0]))

    def _finish_leaves(self) -> None:
        partition, _ = self._work.popleft()
        self._start = b""
        if self._local.takes_writes:
            self._compared(partition)

    def _send_rows(self) -> None:
        """Some of the records that the other should have, each as it is now: it may have been written again since."""
        rows: list[tuple[bytes, bytes]] = []
        size, hold = 0, Durability.MEMORY
        while self._outgoing and len(rows) < MOVED_MAX and size < MOVED_BYTES_MAX:
            record_key = self._outgoing.popleft()
            sealed = self._rows.sealed(record_key)
            if sealed is not None:
                rows.append((record_key, sealed))
                size += len(record_key) + len(sealed)
                hold = max(hold, self._local.pending(record_key))
        self.sent += len(rows)
        self._traffic.sent += len(rows)
        if rows:
            self._traffic.send(self.peer, LeafRows(rows), hold)

    # --- for people ---

    def check(self) -> None:
        """Assert what must hold between events."""
        assert self.ended or self._paused or self._id, "the session waits for nothing"
