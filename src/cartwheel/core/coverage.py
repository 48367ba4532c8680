"""Coverage: what concerns all keys of a bucket, SCAN and DBSIZE, from any node and without state between calls.

A **cursor** is the top 64 bits of a ring position: the next page begins there, whichever node answers. A page asks R owners
of the stretch of the ring where it stands for their keys and merges what they say, so a key deleted at one of them does not
come back from another; a replica that lags behind may hide a key only if R do. A stretch is as many partitions as have the
same owners, so a small cluster needs few of them.

**Counts.** Each node keeps the number of live keys by bucket and partition (``summary``). DBSIZE takes for each partition the
highest count among its replicas: an estimate, as in Redis expired keys count until they are touched.

Cost: a page reads about ``limit`` keys at each of R nodes; counts are a few bytes per bucket and partition.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable

from cartwheel.core import versions
from cartwheel.core.errors import Code, CorruptData
from cartwheel.core.local import Local
from cartwheel.core.messages import (
    ClientCount,
    ClientScan,
    CountAsk,
    Counted,
    Counts,
    Failure,
    Page,
    Result,
    ScanAsk,
    ScanPage,
)  # fmt: skip
from cartwheel.core.quorum import Outcome, Tally, effective
from cartwheel.core.storage import POSITION_BYTES, Space, split_record_key
from cartwheel.core.summary import Summary
from cartwheel.core.types import NodeId
from cartwheel.core.versions import Record

CURSOR_BYTES = 8
SCAN_LIMIT_MAX = 1000
"""Keys of one page at most: a page of the largest keys (64 KiB) still fits a frame."""
SCAN_BUDGET = 2
"""A replica reads at most this many times ``limit`` rows for one page: buckets share the ring, so others' rows pass by."""


class Scanning:
    """A page under way: who was asked for which stretch, and what they said."""

    __slots__ = ("answers", "done", "stretch_end", "tally")

    def __init__(self, tally: Tally, done: Callable[[Result], None], stretch_end: bytes | None) -> None:
        self.tally = tally
        self.done = done
        self.stretch_end = stretch_end
        self.answers: dict[NodeId, ScanPage] = {}


class Counting:
    """A count under way: the highest count by partition so far, and who has not answered."""

    __slots__ = ("done", "keys", "waiting")

    def __init__(self, waiting: set[NodeId], done: Callable[[Result], None]) -> None:
        self.waiting = waiting
        self.done = done
        self.keys: dict[int, int] = {}

    def note(self, keys: dict[int, int]) -> None:
        """Take a node's counts."""
        for partition, count in keys.items():
            if count > self.keys.get(partition, 0):
                self.keys[partition] = count


class Coverage:
    """This node's part in requests that span keys."""

    def __init__(self, local: Local, summary: Summary) -> None:
        self._local = local
        self._summary = summary
        self._requests: dict[int, Scanning | Counting] = {}
        self._deadlines: list[tuple[float, int]] = []
        self._ends: dict[int, list[bytes | None]] = {}  # n -> partition -> end of its stretch
        self._ends_epoch = b""

    @property
    def under_way(self) -> int:
        """Requests not answered yet."""
        return len(self._requests)

    def _refuses(self, client: object) -> bool:
        """Whether this node takes no requests: its peers would not answer, and the client would wait for nothing."""
        local = self._local
        if not local.coordinates:
            local.reply(client, Failure(Code.NOQUORUM, f"{local.node} is no member of the cluster; ask one that is"))
        return not local.coordinates

    # --- counts ---

    def count(self, event: ClientCount) -> None:
        """Ask every node for its counts."""
        local = self._local
        if self._refuses(event.client):
            return

        def done(result: Result) -> None:
            local.reply(event.client, result)

        assert local.placement is not None
        counting = Counting(local.reachable.intersection(local.placement.peers), done)
        counting.note(self._summary.keys(event.bucket))
        if not counting.waiting:
            done(Counted(sum(counting.keys.values())))
            return
        request_id = self._register(counting)
        for node in sorted(counting.waiting):
            local.send(node, CountAsk(request_id, event.bucket))

    def handle_count_ask(self, src: NodeId, message: CountAsk) -> None:
        """Tell our counts."""
        self._local.send(src, Counts(message.id, self._summary.keys(message.bucket)))

    def handle_counts(self, src: NodeId, message: Counts) -> None:
        """A node's counts."""
        counting = self._requests.get(message.id)
        if isinstance(counting, Counting) and src in counting.waiting:
            counting.note(message.keys)
            self._stop_waiting(message.id, counting, src)

    def _stop_waiting(self, request_id: int, counting: Counting, node: NodeId) -> None:
        counting.waiting.discard(node)
        if not counting.waiting:
            del self._requests[request_id]
            counting.done(Counted(sum(counting.keys.values())))

    # --- scan ---

    def scan(self, event: ClientScan) -> None:
        """One page of keys, from R owners of the stretch that begins at the cursor."""
        local = self._local
        if self._refuses(event.client):
            return
        assert local.ring is not None
        if not 0 <= event.start < 1 << 8 * CURSOR_BYTES:
            local.reply(event.client, Failure(Code.INVALID, "no such cursor"))
            return
        props = local.props(event.bucket)
        start = event.start.to_bytes(CURSOR_BYTES)
        limit = max(1, min(event.limit, SCAN_LIMIT_MAX))

        def done(result: Result) -> None:
            local.reply(event.client, result)

        owners, stretch_end = self._stretch(start, props.n)
        tally = Tally(owners, effective(props.r, props.n, len(owners)))
        scanning = Scanning(tally, done, stretch_end)
        request_id = self._register(scanning)
        ask = ScanAsk(request_id, event.bucket, start, stretch_end, limit)
        for owner in owners:
            if owner == local.node:
                page = self._read_page(ask)
                if page is None:
                    tally.fail(owner, "its data is damaged there")
                else:
                    self._note_page(request_id, scanning, owner, page)
            elif owner in local.reachable:
                local.send(owner, ask)
            else:
                tally.fail(owner, local.why_unreachable(owner))
        self._advance(request_id)

    def _stretch(self, start: bytes, n: int) -> tuple[tuple[NodeId, ...], bytes | None]:
        """The owners at ``start``, and how far the partitions with the same owners (in any order) reach."""
        local = self._local
        assert local.ring is not None
        padded = start.ljust(POSITION_BYTES, b"\x00")
        return local.owners(padded, n), self._stretch_ends(n)[local.ring.partition_of(padded)]

    def _stretch_ends(self, n: int) -> list[bytes | None]:
        """For each partition, where its stretch ends. Made once for each n and view of the ring: a page must not walk it."""
        local, placement = self._local, self._local.placement
        assert placement is not None
        ring = placement.ring
        if self._ends_epoch != local.epoch:
            self._ends, self._ends_epoch = {}, local.epoch
        ends = self._ends.get(n)
        if ends is None:
            owners = [sorted(placement.slots(partition, n).owners) for partition in range(ring.q)]
            ends = self._ends[n] = [None] * ring.q
            for p in reversed(range(ring.q - 1)):
                ends[p] = ends[p + 1] if owners[p] == owners[p + 1] else ring.bounds(p)[1]
        return ends

    def handle_scan_ask(self, src: NodeId, message: ScanAsk) -> None:
        """Read a page of our own keys. Not answered if we cannot, or do not own them any more: the others may do."""
        start = message.start.ljust(POSITION_BYTES, b"\x00")
        if self._local.node not in self._local.owners(start, self._local.props(message.bucket).n):
            return
        page = self._read_page(message)
        if page is not None:
            self._local.send(src, page)

    def _read_page(self, ask: ScanAsk) -> ScanPage | None:
        limit = max(1, min(ask.limit, SCAN_LIMIT_MAX))
        budget = limit * SCAN_BUDGET
        try:
            rows = self._local.store.scan(Space.RECORDS, ask.start, ask.end, limit=budget)
        except CorruptData:  # a damaged block
            self._local.count("scans_damaged")
            return None
        found: list[tuple[bytes, Record]] = []
        for record_key, sealed in rows:
            if split_record_key(record_key)[0] == ask.bucket:
                entry = self._local.opened(record_key, sealed)
                found.append((record_key, versions.EMPTY if entry is None else versions.strip(entry[1])))
        reached = rows[-1][0] + b"\x00" if len(rows) == budget else None
        return ScanPage(ask.id, found, reached)

    def handle_scan_page(self, src: NodeId, message: ScanPage) -> None:
        """A replica's page."""
        scanning = self._requests.get(message.id)
        if isinstance(scanning, Scanning) and src in scanning.tally.asked:
            self._note_page(message.id, scanning, src, message)
            self._advance(message.id)

    def _note_page(self, request_id: int, scanning: Scanning, src: NodeId, page: ScanPage) -> None:
        if src not in scanning.answers:
            scanning.answers[src] = page
            scanning.tally.ack(src)

    def _advance(self, request_id: int) -> None:
        scanning = self._requests.get(request_id)
        if not isinstance(scanning, Scanning) or scanning.tally.outcome is Outcome.PENDING:
            return
        del self._requests[request_id]
        if scanning.tally.outcome is Outcome.MET:
            scanning.done(self._page(scanning))
        else:
            reasons = "; ".join(f"{node}: {reason}" for node, reason in sorted(scanning.tally.failed.items()))
            text = f"too few replicas answered for a stretch of the ring ({reasons})"
            scanning.done(Failure(Code.NOQUORUM, text))

    def _page(self, scanning: Scanning) -> Page:
        """Merge the pages as far as all of them reach. Rows are cut at whole cursor steps, so that no key is skipped."""
        reached = min((p.reached for p in scanning.answers.values() if p.reached is not None), default=None)
        merged: dict[bytes, Record] = {}
        for page in scanning.answers.values():
            for record_key, record in page.rows:
                if reached is None or record_key < reached:
                    held = merged.get(record_key)
                    merged[record_key] = record if held is None else versions.merge(held, record)
        return _cut_page(sorted(merged.items()), reached, scanning.stretch_end, self._local.wall_ms)

    # --- time and peers ---

    def handle_tick(self) -> None:
        """End what took too long."""
        now_s = self._local.now_s
        while self._deadlines and self._deadlines[0][0] <= now_s:
            _, request_id = heapq.heappop(self._deadlines)
            request = self._requests.get(request_id)
            if isinstance(request, Counting):
                for node in sorted(request.waiting):
                    self._stop_waiting(request_id, request, node)
            elif request is not None:
                for node in request.tally.waiting():
                    request.tally.fail(node, "no answer in time")
                self._advance(request_id)

    def handle_peer_down(self, node: NodeId, reason: str) -> None:
        """What was asked of this peer will not be answered."""
        for request_id, request in list(self._requests.items()):
            if isinstance(request, Counting):
                if node in request.waiting:
                    self._stop_waiting(request_id, request, node)
            elif node in request.tally.asked:
                request.tally.fail(node, reason)
                self._advance(request_id)

    def _register(self, request: Scanning | Counting) -> int:
        local = self._local
        request_id = local.new_id()
        self._requests[request_id] = request
        heapq.heappush(self._deadlines, (local.now_s + local.config.request_timeout_s, request_id))
        return request_id


def _cut_page(rows: list[tuple[bytes, Record]], reached: bytes | None, end: bytes | None, wall_ms: int) -> Page:
    """The keys of a page and its cursor.

    A cursor is 8 bytes, a record key more: where the page stops inside the ring, the rows that share the cursor's 8 bytes
    are left for the next page, which begins with them.
    """
    stop = reached if reached is not None else end
    cursor = 0 if stop is None else int.from_bytes(stop[:CURSOR_BYTES])
    keys: list[bytes] = []
    for record_key, record in rows:
        if reached is not None and record_key[:CURSOR_BYTES] >= reached[:CURSOR_BYTES]:
            break
        if versions.siblings(record, wall_ms):
            keys.append(split_record_key(record_key)[1])
    return Page(keys, cursor)
