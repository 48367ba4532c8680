"""One process's share of the load: a loop over non-blocking sockets, as fast as Python gets.

Closed loop (the default): a connection with ``depth`` requests in flight sends the next one when a reply comes (after BUSY, a
little later). It measures how much a cluster can carry. Its latencies flatter a stall: the requests that *would* have been sent
meanwhile are not missed by anybody ("coordinated omission", Gil Tene).

Open loop (a rate): request ``i`` is due at ``start + i * interval``, whatever became of the others, and its latency counts from
then, not from when a connection was free to carry it.

How it goes fast. Nearly all of the time is the kernel's (about 10 of 11 microseconds a request on the machine this was written
on, without pipelining), so: one read and one write per connection and turn; the time is read once for all replies of
one read and serves as the start of the requests that they release; latencies go to plain lists and are counted in bulk
ten times a second. A raw loop costs no more here than uvloop, and can wait for less than a millisecond, which a fixed
schedule needs.

Invariants
1. Replies of a connection come in the order of ``pending``.
2. Every request taken from the source ends as exactly one of: answered, or an error of some kind.
3. Open loop: ``_slots`` holds each connected flow once for each request it may still take on.

Memory: about 100 bytes for each distinct latency in microseconds: 100 MB if all up to a second occur.
"""

from __future__ import annotations

import errno
import gc
import select
import selectors
import socket
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import TypeAlias

import hiredis

from cartwheel.bench.requests import KINDS, Request
from cartwheel.client.resp import ReplyError

Counts: TypeAlias = Counter[int]
"""How often each latency, in microseconds, occurred."""
Address: TypeAlias = tuple[socket.AddressFamily, tuple[object, ...]]

READ_BYTES = 256 * 1024
TICK_NS = 100_000_000
RETRY_NS = 200_000_000
"""How long a broken connection rests before it goes on to the next node."""

BUSY = "BUSY"
BUSY_PAUSE_NS = 50_000_000
"""A client that is told to come back later does so after a while, about as long as a full node lets requests wait."""

clock = time.perf_counter_ns


class Tally:
    """What one phase measured."""

    def __init__(self) -> None:
        self.answered = 0
        self.misses = 0
        """Reads that found nothing."""
        self.errors: Counter[str] = Counter()
        self.unsent = 0
        """Open loop: requests that were due, but no connection was free to take them on before the end."""
        self.elapsed_s = 0.0
        self.windows: list[tuple[Counts, ...]] = []
        """Per window of the series (all in one if there is none) the latencies of each kind, of what was answered in it."""


class Flow:
    """One connection: connects without blocking, keeps ``pending`` requests in flight, and reconnects when it breaks."""

    __slots__ = ("_engine", "_feed", "_gets", "_node", "_outbox", "_recv_into", "_sock", "connected", "pending", "progress_at",
                 "queue", "retry_at")  # fmt: skip

    def __init__(self, engine: Engine, node: int) -> None:
        self._engine = engine
        self._node = node
        self._sock: socket.socket | None = None
        self._outbox = b""
        self.connected = False
        self.pending: deque[tuple[int, int]] = deque()
        """(start in nanoseconds, kind) of each request in flight, oldest first."""
        self.queue: list[bytes] = []
        """Requests (already pending) that ``flush`` will write."""
        self.progress_at = 0
        """When the last reply came or the wait for one began."""
        self.retry_at = 0

    def connect(self, now: int) -> None:
        """Begin to connect; the engine hears of the outcome."""
        addresses = self._engine.addresses
        family, address = addresses[self._node % len(addresses)]
        sock = socket.socket(family, socket.SOCK_STREAM)
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._sock, self._recv_into = sock, sock.recv_into
        self.progress_at = now
        self._engine.selector.register(sock, selectors.EVENT_WRITE, self._on_connected)
        code = sock.connect_ex(address)
        if code not in {0, errno.EINPROGRESS, errno.EWOULDBLOCK}:
            self.lose("cannot connect")

    def _on_connected(self, _mask: int) -> None:
        assert self._sock is not None
        if self._sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
            self.lose("cannot connect")
            return
        reader = hiredis.Reader(replyError=ReplyError.parse)
        self._feed, self._gets = reader.feed, reader.gets
        if not self._engine.hello:
            self._begin()
            return
        self._engine.selector.modify(self._sock, selectors.EVENT_READ, self._on_greeted)
        try:
            self._sock.send(self._engine.hello)  # a few bytes on a new connection: never in part
        except OSError:
            self.lose("cannot connect")

    def _on_greeted(self, _mask: int) -> None:
        assert self._sock is not None
        try:
            self._feed(self._sock.recv(READ_BYTES))
            reply = self._gets()
        except (OSError, hiredis.ProtocolError):
            reply = None
        if reply is False:
            return  # not all of it
        if reply is None or reply.__class__ is ReplyError:
            self.lose("cannot connect" if reply is None else reply.code)
        else:
            self._begin()

    def _begin(self) -> None:
        assert self._sock is not None
        self._engine.selector.modify(self._sock, selectors.EVENT_READ, self._on_readable)
        self.connected = True
        self._engine.gained(self)

    def _on_readable(self, _mask: int) -> None:
        engine = self._engine
        try:
            size = self._recv_into(engine.buffer)
        except BlockingIOError:
            return
        except OSError:
            size = 0
        if not size:
            self.lose("connection lost")
            return
        now = self.progress_at = clock()
        try:
            self._feed(engine.buffer, 0, size)  # type: ignore[arg-type] # its stub knows only bytes
            answered, busy = self._take_replies(now)
        except (hiredis.ProtocolError, IndexError):  # IndexError: a reply that nobody asked for
            self.lose("not the Redis protocol")
            return
        if busy:
            engine.refill_later(self, busy, now)
        if answered > busy:
            engine.refill(self, answered - busy, now)

    def _take_replies(self, now: int) -> tuple[int, int]:
        """Count the replies that have come. Returns how many, and how many of them were BUSY: there is room for so many more."""
        engine, pending, gets = self._engine, self.pending, self._gets
        latencies = engine.latencies
        answered = busy = 0
        reply = gets()
        while reply is not False:
            start, kind = pending.popleft()
            answered += 1
            if reply.__class__ is ReplyError:
                engine.tally.errors[reply.code] += 1
                busy += reply.code == BUSY
            else:
                latencies[kind].append((now - start) // 1000)
                if reply is None:
                    engine.tally.misses += 1
            reply = gets()
        return answered, busy

    def ask(self, requests: Sequence[Request], start: int) -> None:
        """Send these now."""
        pending = self.pending
        if not pending:
            self.progress_at = start
        for _, kind in requests:
            pending.append((start, kind))
        self._write(b"".join([payload for payload, _ in requests]))

    def enqueue(self, request: Request, start: int, now: int) -> None:
        """Take on one request; ``flush`` sends it. ``start``: since when its latency counts."""
        if not self.pending:
            self.progress_at = now
        self.pending.append((start, request[1]))
        self.queue.append(request[0])

    def flush(self) -> None:
        """Send what is queued, in one write."""
        data = b"".join(self.queue)
        self.queue.clear()
        self._write(data)

    def _write(self, data: bytes) -> None:
        assert self._sock is not None
        if self._outbox:
            self._outbox += data
            return
        try:
            sent = self._sock.send(data)
        except BlockingIOError:
            sent = 0
        except OSError:
            self.lose("connection lost")
            return
        if sent < len(data):
            self._outbox = data[sent:]
            both = selectors.EVENT_READ | selectors.EVENT_WRITE
            self._engine.selector.modify(self._sock, both, self._on_ready)

    def _on_ready(self, mask: int) -> None:
        if mask & selectors.EVENT_WRITE:
            data, self._outbox = self._outbox, b""
            self._write(data)
            if self._sock is not None and not self._outbox:
                self._engine.selector.modify(self._sock, selectors.EVENT_READ, self._on_readable)
        if self.connected and mask & selectors.EVENT_READ:
            self._on_readable(mask)

    def check(self, now: int) -> None:
        """Called now and then: give up on a silent node, or try the next one."""
        if self._sock is None:
            if now >= self.retry_at:
                self.connect(now)
        elif (self.pending or not self.connected) and now - self.progress_at > self._engine.timeout_ns:
            self.lose("timeout" if self.connected else "cannot connect")

    def lose(self, reason: str) -> None:
        """Close the connection. What was in flight has failed for this reason; the next try is another node's."""
        assert self._sock is not None
        self._engine.tally.errors[reason] += len(self.pending) if self.connected else 1
        self.close()
        self._node += 1
        self.retry_at = clock() + RETRY_NS
        self._engine.lost(self)

    def close(self) -> None:
        """Close the connection, if there is one, and forget what was in flight."""
        if self._sock is not None:
            self._engine.selector.unregister(self._sock)
            self._sock.close()
        self._sock, self._outbox, self.connected = None, b"", False
        self.pending.clear()
        self.queue.clear()


class Engine:
    """The loop. ``run`` carries out one phase after another (preload, warm-up, measurement) over the same connections."""

    flow_class: type[Flow] = Flow
    """What its connections are."""

    def __init__(
        self, addresses: Sequence[Address], flow_nodes: Sequence[int], timeout_s: float, hello: bytes = b""
    ) -> None:
        """
        Args:
            flow_nodes: for each connection the address that it tries first.
            hello: a request that each connection begins with.
        """
        self.addresses = addresses
        self.hello = hello
        self.timeout_ns = int(timeout_s * 1e9)
        # Opened before any connection, so that its descriptor is a small one: select() takes only those below 1024.
        self.selector = selectors.DefaultSelector()
        self.flows = [self.flow_class(self, node) for node in flow_nodes]
        self.buffer = bytearray(READ_BYTES)
        """For every read, in turn. A new one each time costs a system call or two: malloc() maps and unmaps large ones, and a
        read took four times as long."""
        self.tally = Tally()
        self.latencies: tuple[list[int], ...] = tuple([] for _ in KINDS)
        self.on_tick: Callable[[Tally], bool] = lambda _tally: True
        """Called ten times a second; False ends the phase early."""
        self._source: Iterator[Request] = iter(())
        self._issuing = False
        self._depth = 1
        self._slots: deque[Flow] = deque()
        self._pausing: deque[tuple[int, Flow, int]] = deque()
        """Closed loop: until when, which flow, and for how many requests, after BUSY."""
        self._interval_ns: float | None = None
        self._offset_ns = 0.0
        self._patience_ns = 0
        self._sent = 0
        self._start = self._due_at = self._tick_at = self._window_ns = self._connected_at = 0
        self._ends_at: int | None = None

    def run(
        self,
        source: Iterator[Request],
        *,
        depth: int,
        duration_s: float | None = None,
        interval_s: float | None = None,
        offset_s: float = 0.0,
        window_s: float | None = None,
        patience_s: float | None = None,
    ) -> Tally:
        """Send requests until the source or the time runs out, wait for the last replies, and say what was measured.

        ``interval_s`` makes it an open loop whose first request is due after ``offset_s``. What could not be sent ``patience_s``
        after it was due is never sent: a user who has given up.
        """
        tally = self.tally = Tally()
        self._source, self._depth, self._issuing = source, depth, True
        self._interval_ns = None if interval_s is None else interval_s * 1e9
        self._offset_ns, self._sent = offset_s * 1e9, 0
        self._patience_ns = int((patience_s or 0) * 1e9)
        self._window_ns = int((window_s or 0) * 1e9)
        self._open_window()
        collected = gc.isenabled()
        gc.disable()  # the loop makes no cycles, and a collection would count as latency
        self._start = self._connected_at = now = clock()
        self._due_at = now + int(self._offset_ns)
        self._ends_at = None if duration_s is None else now + int(duration_s * 1e9)
        self._schedule_tick(now)
        self._slots.clear()
        self._pausing.clear()
        for flow in self.flows:
            if flow.connected:
                self.refill(flow, depth, now)
        try:
            self._loop()
        finally:
            if collected:
                gc.enable()
        self._count()
        last = max(flow.progress_at for flow in self.flows)
        if self._ends_at is not None:
            last = max(last, min(clock(), self._ends_at))  # a silent end is part of the time
        tally.elapsed_s = max(last - self._start, 1000) / 1e9
        return tally

    def wait_connected(self) -> int:
        """Open the connections; return how many are open when all are, or the timeout is over."""
        deadline = clock() + self.timeout_ns
        while (now := clock()) < deadline and not all(flow.connected for flow in self.flows):
            for flow in self.flows:
                flow.check(now)
            for key, mask in self.selector.select(TICK_NS / 1e9):
                key.data(mask)
        return sum(flow.connected for flow in self.flows)

    def close(self) -> None:
        """Close all connections."""
        for flow in self.flows:
            flow.close()
        self.selector.close()

    def _loop(self) -> None:
        select_ready, open_loop = self.selector.select, self._interval_ns is not None
        while True:
            now = clock()
            if open_loop and self._issuing:
                self._dispatch(now)
            if self._pausing:
                self._resume(now)
            if now >= self._tick_at:
                self._tick(now)
            wake_at = min(self._tick_at, self._pausing[0][0]) if self._pausing else self._tick_at
            if not self._issuing:
                if not any(flow.pending for flow in self.flows):
                    return
            elif open_loop and self._slots and self._due_at < wake_at:
                wake_at = self._due_at
            wait_s = (wake_at - now) / 1e9
            if open_loop and self._issuing and wait_s > 0:
                # epoll rounds its timeout up to a millisecond, select() does not.
                select.select([self.selector], (), (), wait_s)
                wait_s = 0
            for key, mask in select_ready(max(0, wait_s)):
                key.data(mask)

    def refill(self, flow: Flow, count: int, now: int) -> None:
        """A flow can take on ``count`` more requests."""
        if not self._issuing:
            return
        if self._interval_ns is not None:
            self._slots.extend([flow] * count)
            return
        if self._ends_at is not None and now >= self._ends_at:
            self._issuing = False
            return
        requests = list(islice(self._source, count))
        if len(requests) < count:
            self._issuing = False
        if requests:
            flow.ask(requests, now)

    def refill_later(self, flow: Flow, count: int, now: int) -> None:
        """A flow was answered BUSY so many times: in the closed loop, whose clients would be back at once, it pauses."""
        if self._interval_ns is not None:
            self.refill(flow, count, now)
        else:
            self._pausing.append((now + BUSY_PAUSE_NS, flow, count))

    def _resume(self, now: int) -> None:
        while self._pausing and self._pausing[0][0] <= now:
            _, flow, count = self._pausing.popleft()
            self.refill(flow, count, now)

    def _dispatch(self, now: int) -> None:
        """Open loop: hand what is due to connections that have room, in turn."""
        slots, interval_ns = self._slots, self._interval_ns
        assert interval_ns is not None
        if self._patience_ns and now - self._due_at > self._patience_ns:
            given_up = int((now - self._due_at - self._patience_ns) / interval_ns) + 1
            self.tally.unsent += given_up
            self._sent += given_up
            self._due_at = self._start + int(self._offset_ns + self._sent * interval_ns)
        dirty = []
        while self._due_at <= now and slots:
            if self._ends_at is not None and self._due_at >= self._ends_at:
                self._issuing = False
                break
            request = next(self._source, None)
            if request is None:
                self._issuing = False
                break
            flow = slots.popleft()
            if not flow.queue:
                dirty.append(flow)
            flow.enqueue(request, self._due_at, now)
            self._sent += 1
            # Not "+= interval": the fractions of a nanosecond would add up.
            self._due_at = self._start + int(self._offset_ns + self._sent * interval_ns)
        for flow in dirty:
            flow.flush()

    def gained(self, flow: Flow) -> None:
        """A flow is connected."""
        self.refill(flow, self._depth, clock())

    def lost(self, flow: Flow) -> None:
        """A flow is no longer connected, and has no room."""
        if self._slots:
            self._slots = deque(other for other in self._slots if other is not flow)
        if self._pausing:
            self._pausing = deque(entry for entry in self._pausing if entry[1] is not flow)

    def _tick(self, now: int) -> None:
        self._count()
        if self._window_ns and self._issuing and now >= self._start + len(self.tally.windows) * self._window_ns:
            if self._ends_at is None or now < self._ends_at:  # what comes late belongs to the last one
                self._open_window()
        for flow in self.flows:
            flow.check(now)
        if any(flow.connected for flow in self.flows):
            self._connected_at = now
        elif now - self._connected_at > self.timeout_ns:
            self._issuing = False
        if self._issuing and self._ends_at is not None and now >= self._ends_at:
            self._issuing = False
            if self._interval_ns is not None and self._due_at < self._ends_at:
                self.tally.unsent += 1 + int((self._ends_at - 1 - self._due_at) / self._interval_ns)
        if not self.on_tick(self.tally):
            self._issuing = False
        self._schedule_tick(now)

    def _schedule_tick(self, now: int) -> None:
        self._tick_at = now + TICK_NS
        if self._ends_at is not None and now < self._ends_at:
            self._tick_at = min(self._tick_at, self._ends_at)
        if self._window_ns and self._issuing:
            self._tick_at = min(self._tick_at, self._start + len(self.tally.windows) * self._window_ns)

    def _open_window(self) -> None:
        self.tally.windows.append(tuple(Counter() for _ in KINDS))

    def _count(self) -> None:
        """Move the latencies from the lists to the window's counts: in C, about 50 ns each."""
        for latencies, counts in zip(self.latencies, self.tally.windows[-1], strict=True):
            self.tally.answered += len(latencies)
            counts.update(latencies)
            latencies.clear()
