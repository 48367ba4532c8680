"""Admission control: what background work may take, and how many requests may be under way (section 6.5).

    every tick     reads answered (``note_read``), lateness of the tick ──> requests_limit, ten times a second
    every second   their 99th percentile over the last 60 s             ──> budget: half of it, or a little more
    background     budget(cost) ──> True: do it now     False: ask again at a later tick

**Background work** (hints, anti-entropy, transfer, counting anew) asks for each slice. The ceiling of its budget follows what
the node serves: all of ``background_records_per_s_max`` while nobody asks it anything, less in proportion to requests. The
paper's rule is kept: the 99th percentile of the foreground's reads over the last 60 s is held against a threshold (50 ms). Over
it the budget is halved each second, under it the budget grows by a twentieth of its ceiling. *Departs from the paper:*

- The window remembers a bad second for a minute. So the budget is halved only while the last seconds are bad, too, and otherwise
  grows, slowly until the window is clear. The lateness of our own ticks counts as well: it is the queue in front of this node.
- 50 ms may be ten times what clients are used to. So every 16th second is kept free of background work. If reads in the other
  seconds are more than twice as slow at the 99th percentile (and slower than a tenth of the threshold, below which nobody would
  notice), background work is the cause, and the budget is halved. Load that comes and goes by itself meets both kinds of seconds.
- The budget never falls below a floor: replicas must become identical in bounded time, whatever the load.

**Requests.** A node that takes in more than it can do makes everybody wait for answers that come too late, and goes on so after
the overload (a metastable failure). ``Limit`` bounds what is under way: if a request waits longer than the threshold, beyond what
it takes on a calm node (the network, the disk), fewer are let in; while the node is crowded, and waits are short, more are. By
Little's law the limit settles at the throughput times the threshold. What is over it is answered BUSY, and costs next to
nothing (see ``coordinator`` and the doors).

Invariants: ``least <= limit <= most``; the budget lies between its floor and its ceiling. O(1) per request; each second 160
counters.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections import deque
from collections.abc import Sequence
from statistics import fmean

from cartwheel.core.local import Local
from cartwheel.core.messages import TICK_S, AdmissionStatus

WINDOW_S = 60
"""The paper's."""
RECENT_S = 5
CONTROL_EVERY_S = 16
"""Every such second is kept free of background work: a sixteenth less of it, and three or four in each window."""
CONTROL_READS_MIN = 200
"""Reads on each side from which on their 99th percentiles are compared: two of them lie above it."""
SLOWER = 2.0
NOTICED = 0.1
"""Of the threshold: what is faster slows nobody down."""
IDLE_OPS_PER_S = 25.0
"""With so many requests and replica messages a second the ceiling is half of what an idle node has."""
BUSY_RECORDS_PER_S = 1000.0
"""No load takes the ceiling lower; that is for the budget to do. Measured, three nodes on two cores with 1,000 requests a second:
while a lost disk of 300,000 keys was refilled the 99th percentile stayed at 14 ms; with 4,000 it went to 120 ms."""
RISE_S, FALL_S = 0.25, 2.0
"""How long load must last to be believed: a node that was idle makes room soon, and takes its time to think it is idle again."""
GROWTH = 1 / 20
"""Of the ceiling, each second."""
GROWTH_IDLE = 1 / 4
"""Where there is nobody to be slowed down."""
GROWTH_WARY = 1 / 60
"""While the window still holds a bad second: it is full of good ones when the ceiling is reached."""
BURST_S = 0.25
"""A budget not used is kept for so long: a slice of many records need not wait for its last one."""

BOUNDS_S = tuple(0.0001 * 2 ** (step / 8) for step in range(160))
"""Upper ends of the buckets of latencies: 0.1 ms to 95 s, each a twelfth above the one before."""

ADJUST_TICKS = 2
CALM_SHARE = 1 / 8
"""With less than this share of the limit under way, a node is calm: what a request takes then is not queueing."""
CALM_WEIGHT = 0.1
SHRINK_MIN = 0.75
GROW = 1.05
STUCK_WINDOWS = 10
"""A full node that answers nothing for a second lets in fewer; a slow disk's sync may take most of that."""
LIMIT_START = 1000


class Second:
    """The reads answered in one second, counted by bucket."""

    __slots__ = ("control", "counts", "number")

    def __init__(self, number: int) -> None:
        self.number = number
        self.counts: dict[int, int] = {}
        self.control = True  # no background work was done in it

    def add(self, ordered: Sequence[float]) -> None:
        """Count latencies, given in ascending order."""
        counts, at = self.counts, 0
        while at < len(ordered):
            bucket = min(bisect_left(BOUNDS_S, ordered[at]), len(BOUNDS_S) - 1)
            last = bucket == len(BOUNDS_S) - 1
            end = len(ordered) if last else bisect_right(ordered, BOUNDS_S[bucket], at)
            counts[bucket] = counts.get(bucket, 0) + end - at
            at = end


class ReadWindow:
    """The last 60 seconds, the present one among them, oldest first."""

    def __init__(self) -> None:
        self._seconds: deque[Second] = deque()

    def at(self, now_s: float) -> Second:
        """The present second."""
        number = math.floor(now_s)
        seconds = self._seconds
        while seconds and seconds[0].number <= number - WINDOW_S:
            seconds.popleft()
        if not seconds or seconds[-1].number != number:
            seconds.append(Second(number))
        return seconds[-1]

    def p99_s(self, *, since: int | None = None, control: bool | None = None) -> tuple[float, int]:
        """The 99th percentile (to the next bound) and how many reads there were, from second ``since`` on, in seconds with
        (False) or without (True) background work. No reads: (0, 0)."""
        counts: dict[int, int] = {}
        for second in self._seconds:
            if (since is None or second.number >= since) and (control is None or second.control is control):
                for bucket, count in second.counts.items():
                    counts[bucket] = counts.get(bucket, 0) + count
        total = sum(counts.values())
        rank, reached = math.ceil(total * 0.99), 0
        for bucket in sorted(counts):
            reached += counts[bucket]
            if reached >= rank:
                return BOUNDS_S[bucket], total
        return 0.0, 0


class Calm:
    """What one kind of request takes on a calm node, learned while it is one."""

    __slots__ = ("latency_s",)

    def __init__(self) -> None:
        self.latency_s = 0.0

    def wait_s(self, latencies: Sequence[float], *, calm: bool) -> float:
        """How much longer than that these (in ascending order) took, in the middle."""
        if not latencies:
            return 0.0
        median_s = latencies[len(latencies) // 2]
        if calm:
            self.latency_s += (median_s - self.latency_s) * (CALM_WEIGHT if self.latency_s else 1.0)
        return median_s - self.latency_s


class Limit:
    """How many requests may be under way: shrinks in proportion to the wait, grows by a twentieth, ten times a second."""

    def __init__(self, least: int, most: int, wait_s_max: float) -> None:
        self._least, self._most = min(least, most), most
        self._wait_s_max = wait_s_max
        self._limit = float(min(most, max(least, LIMIT_START)))
        self._reads, self._writes = Calm(), Calm()
        self._silent = 0  # windows since something was answered

    @property
    def value(self) -> int:
        """The limit now."""
        return int(self._limit)

    def adjust(
        self, reads: Sequence[float], writes: Sequence[float], late_s: float, under_way: int, *, crowded: bool
    ) -> None:
        """Follow the last tenth of a second.

        Args:
            reads, writes: latencies of what was answered, in ascending order.
            late_s: how late our ticks were.
            under_way: requests under way now.
            crowded: somebody found three quarters of the limit under way.
        """
        calm = not crowded and under_way < self._limit * CALM_SHARE
        wait_s = max(self._reads.wait_s(reads, calm=calm), self._writes.wait_s(writes, calm=calm), late_s)
        self._silent = 0 if reads or writes else self._silent + 1
        if crowded and self._silent >= STUCK_WINDOWS:
            self._limit = max(self._least, self._limit * SHRINK_MIN)
        elif wait_s > self._wait_s_max:
            if crowded:  # else the limit is not to blame
                self._limit = max(self._least, self._limit * max(SHRINK_MIN, self._wait_s_max / wait_s))
        elif crowded:
            self._limit = min(self._most, self._limit * GROW)


class Admission:
    """This node's admission control. Sets ``budget``, ``note_read``, ``note_write`` and ``requests_limit`` of ``local``."""

    def __init__(self, local: Local) -> None:
        self._local = local
        config = local.config
        self._floor = float(min(config.background_records_per_s_min, config.background_records_per_s_max))
        self._ceiling_idle = self._ceiling = float(config.background_records_per_s_max)
        self._ops_per_s = 0.0  # served, smoothed
        self._served = 0  # ``local.served`` at the last look
        self._threshold_s = config.admission_p99_s
        self._per_s = self._ceiling
        self._tokens = self._ceiling * BURST_S  # below 0: a slice was larger than what was left
        self._window = ReadWindow()
        self._second = self._window.at(0.0)
        self._controlled = False  # the present second is kept free
        self._limit = Limit(config.requests_min, config.requests_max, config.admission_p99_s)
        self._reads: list[float] = []
        self._writes: list[float] = []
        self._tick_s = -1.0  # when the last one was
        self._late: list[float] = []  # how late ticks were in this second
        self._ticks = 0
        self._recent_reads: list[float] = []  # since the limit was adjusted
        self._recent_writes: list[float] = []
        self._recent_late_s = 0.0
        local.budget = self.take
        local.spend = self.spend
        local.note_read = self._reads.append
        local.note_write = self._writes.append
        local.requests_limit = self._limit.value

    # --- the budget ---

    def take(self, cost: int) -> bool:
        """Whether background work on ``cost`` records may be done now; if so, it is taken off the budget."""
        if self._tokens <= 0 or self._controlled:
            return False
        self._tokens -= cost
        self._second.control = False
        return True

    def spend(self, cost: int) -> None:
        """Take this off the budget, too, though there may be none left."""
        self._tokens -= cost

    def handle_tick(self, under_way: int, late_s: float) -> None:
        """Look at what was answered since the last tick. To be called before background work.

        Args:
            under_way: requests under way at this coordinator.
            late_s: how late the tick came.
        """
        local, now_s = self._local, self._local.now_s
        passed_s = now_s - self._tick_s if self._tick_s >= 0 else TICK_S
        self._tick_s = now_s
        self._late.append(late_s)
        reads = sorted(self._reads)
        self._reads.clear()
        self._follow_load(len(reads) + len(self._writes), passed_s)
        self._follow(reads, late_s, under_way)
        self._second.add(reads)
        second = self._window.at(now_s)
        if second is not self._second:
            self._judge(second.number)
            self._second, self._late = second, []
            self._controlled = second.number % CONTROL_EVERY_S == CONTROL_EVERY_S - 1 and bool(reads)
        self._tokens = min(self._tokens + self._per_s * min(passed_s, 1.0), self._per_s * BURST_S)
        local.requests_limit = self._limit.value

    def _follow_load(self, answered: int, passed_s: float) -> None:
        """The ceiling for what this node serves now: clients, and other coordinators."""
        local = self._local
        if passed_s > 0:
            ops_per_s, self._served = (local.served - self._served + answered) / passed_s, local.served
            weight = min(1.0, passed_s / (RISE_S if ops_per_s > self._ops_per_s else FALL_S))
            self._ops_per_s += (ops_per_s - self._ops_per_s) * weight
        share = self._ceiling_idle / (1 + self._ops_per_s / IDLE_OPS_PER_S)
        self._ceiling = min(self._ceiling_idle, max(BUSY_RECORDS_PER_S, share))
        self._per_s = max(self._floor, min(self._per_s, self._ceiling))

    def _judge(self, number: int) -> None:
        """A second is over: is the budget too large? ``number`` is that of the next one."""
        window, threshold_s = self._window, self._threshold_s
        p99_s, _ = window.p99_s()
        recent_s, _ = window.p99_s(since=number - RECENT_S)
        queue_s = fmean(self._late) if self._late else 0.0
        if (p99_s > threshold_s and recent_s > threshold_s) or queue_s > threshold_s or self._is_to_blame(recent_s):
            self._per_s = max(self._floor, self._per_s / 2)
            self._local.count("admission_halved")
        elif recent_s <= threshold_s:
            growth = GROWTH if p99_s <= threshold_s else GROWTH_WARY
            if self._ops_per_s < IDLE_OPS_PER_S:
                growth = GROWTH_IDLE
            self._per_s = min(self._ceiling, self._per_s + self._ceiling * growth)

    def _is_to_blame(self, recent_s: float) -> bool:
        """Whether reads are slow in the seconds with background work, the last ones among them, and only there."""
        if self._second.control:
            return False
        with_s, reads = self._window.p99_s(control=False)
        without_s, controls = self._window.p99_s(control=True)
        if min(reads, controls) < CONTROL_READS_MIN or with_s < NOTICED * self._threshold_s:
            return False
        return min(with_s, recent_s) > SLOWER * without_s

    # --- the limit ---

    def _follow(self, reads: list[float], late_s: float, under_way: int) -> None:
        """Adjust the limit every other tick."""
        self._recent_reads += reads
        self._recent_writes += self._writes
        self._writes.clear()
        self._recent_late_s = max(self._recent_late_s, late_s)
        self._ticks += 1
        if self._ticks % ADJUST_TICKS:
            return
        local, late_s = self._local, self._recent_late_s
        reads, writes = sorted(self._recent_reads), sorted(self._recent_writes)
        self._limit.adjust(reads, writes, late_s, under_way, crowded=local.crowded)
        self._recent_reads, self._recent_writes, self._recent_late_s, local.crowded = [], [], 0.0, False

    def status(self) -> AdmissionStatus:
        """For ``Node.status``."""
        p99_s, _ = self._window.p99_s()
        return AdmissionStatus(
            background_per_s=int(self._per_s), read_p99_ms=p99_s * 1000, requests_limit=self._limit.value
        )
