"""What becomes of a cluster that is asked for more than it can do: ``cartwheel bench --overload 3``.

    peak (closed loop) ──> overload (open loop, 3 times the peak) ──> after (open loop, 0.7 times the peak)

A cluster that queues what it cannot do answers everything too late, and goes on so after the overload has ended. One that holds
answers about as many requests as at its peak, refuses the others with BUSY, and is back at once. So the figures are: goodput
(requests answered within a second, with what they asked for) as a share of the peak, the share refused, the wait of those
answered, how long the cluster took to come back, and its memory.

The three phases run over the same connections without a pause between them: a pause would let the cluster recover unseen. One
process generates the load; requests are not tried again, each stands for a user of its own, who waits a second and no longer: an
answer after that is no goodput, and what found every connection full for so long is not sent at all.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence

import msgspec

from cartwheel.bench.generator import BUSY, Counts, Engine, Tally
from cartwheel.bench.options import BenchOptions
from cartwheel.bench.requests import preload, workload
from cartwheel.bench.result import Latency, latency
from cartwheel.bench.run import PRELOAD_DEPTH, BenchFailed, Progress, greet, hello, resolve
from cartwheel.client.resp import Connection, parse_address
from cartwheel.core.errors import CartwheelError

AFTER = 0.7
"""The load after the overload, as a share of the peak: one that the cluster carries with ease."""
AFTER_S = 15.0
PEAK_S = 5.0
PEAK_DEPTH = 4
"""The peak is the better of one and so many requests in flight on each connection: with more, less is spent on system calls."""
WINDOW_S = 1.0
PATIENCE_S = 1.0
RECOVERED = 0.95
STEADY_WINDOWS = 3
"""So many windows in a row must be good: one alone may be the burst of a queue that drains."""
WATCH_S = 0.5


class OverloadResult(msgspec.Struct, frozen=True):
    """What was measured."""

    options: BenchOptions
    peak_per_s: float
    offered_per_s: float
    offered_s: float
    goodput_per_s: float
    """During the overload: answered without error within ``PATIENCE_S``."""
    goodput_share: float
    """Of the peak."""
    busy_share: float
    """Of what was sent during the overload: refused with BUSY."""
    unsent: int
    """Due during the overload but not sent in time, since all connections were full: more connections or a longer pipeline would
    offer more."""
    late: int
    """Answered without error during the overload, but too late."""
    errors: dict[str, int]
    """Of all phases, other than BUSY."""
    answered: Latency
    """During the overload: of what was answered without error, from when it was due."""
    after_per_s: float
    """The load offered after the overload."""
    after_windows: list[float]
    """What was answered of it, as a share, second by second."""
    recovered_s: float | None
    """After so long the cluster answered 95 % of it again. None: not within the time."""
    resident_before: dict[str, int]
    """Bytes of each node, after the peak."""
    resident_most: dict[str, int]
    """The highest seen since."""
    format: int = 1

    @property
    def failed(self) -> int:
        """Requests that ended in an error other than BUSY."""
        return sum(self.errors.values())


def recovered_after(shares: Sequence[float]) -> float | None:
    """Seconds until the first of ``STEADY_WINDOWS`` windows in a row (or of all that are left) with enough answers."""
    for start in range(len(shares)):
        ahead = shares[start : start + STEADY_WINDOWS]
        if len(ahead) == STEADY_WINDOWS and min(ahead) >= RECOVERED:
            return start * WINDOW_S
    return None


def run_overload(options: BenchOptions, progress: Progress | None = None) -> OverloadResult:
    """Carry it out. ``options.overload`` says how many times the peak is offered, for ``duration_s``; ``pipeline`` is how many
    requests a connection has in flight then.

    Raises:
        ConfigError: an option is out of range.
        CannotReach: a node named in the options does not answer.
        BenchFailed: the nodes take none of our connections, or answer nothing.
    """
    options.check()
    assert options.overload is not None
    for node in options.nodes:
        greet(*parse_address(node), options.timeout_s)
    return Overload(options, progress or (lambda *_: None)).run()


class Overload:
    """One run."""

    def __init__(self, options: BenchOptions, progress: Progress) -> None:
        self._options = options
        self._progress = progress
        self._phase = "connecting"
        self._elapsed_s = 0.0
        self._engine = Engine(
            [resolve(node) for node in options.nodes], range(options.connections), options.timeout_s, hello(options)
        )
        self._engine.on_tick = self._on_tick
        self._source = workload(options, 0)

    def run(self) -> OverloadResult:
        """All phases."""
        options, engine = self._options, self._engine
        watch = _MemoryWatch(options.nodes, options.timeout_s)
        try:
            if engine.wait_connected() < options.connections:
                raise BenchFailed(
                    "not all connections could be opened; check the nodes' limit on clients, and `ulimit -n`"
                )
            if options.preload and options.reads:
                self._begin("preloading")
                engine.run(preload(options, 0), depth=PRELOAD_DEPTH)
            self._begin("warming up")
            if options.warmup_s:
                engine.run(self._source, depth=1, duration_s=options.warmup_s)
            self._begin("measuring the peak")
            peaks = [self._closed_loop(depth) for depth in sorted({1, min(PEAK_DEPTH, options.pipeline)})]
            peak = max(peaks, key=lambda tally: tally.answered / tally.elapsed_s)
            if not peak.answered:
                raise BenchFailed("the nodes answered nothing")
            watch.look()
            before = dict(watch.most)
            watch.start()
            peak_per_s = peak.answered / peak.elapsed_s
            assert options.overload is not None
            offered, after = options.overload * peak_per_s, AFTER * peak_per_s
            self._begin("overloading")
            over = self._open_loop(offered, options.duration_s)
            self._begin("recovering")
            back = self._open_loop(after, min(AFTER_S, 2 * options.duration_s))
        finally:
            engine.close()
            watch.stop()
        return self._result(peak_per_s, (peak, over, back), offered, after, before, watch.most)

    def _closed_loop(self, depth: int) -> Tally:
        return self._engine.run(self._source, depth=depth, duration_s=min(PEAK_S, self._options.duration_s))

    def _open_loop(self, rate_per_s: float, duration_s: float) -> Tally:
        return self._engine.run(
            self._source,
            depth=self._options.pipeline,
            duration_s=duration_s,
            interval_s=1 / rate_per_s,
            window_s=WINDOW_S,
            patience_s=PATIENCE_S,
        )

    def _result(
        self,
        peak_per_s: float,
        tallies: tuple[Tally, Tally, Tally],
        offered_per_s: float,
        after_per_s: float,
        before: dict[str, int],
        most: dict[str, int],
    ) -> OverloadResult:
        options = self._options
        _, over, back = tallies
        errors = sum((tally.errors for tally in tallies), start=type(over.errors)())
        del errors[BUSY]
        busy = over.errors[BUSY]
        counts = [sum(map(_in_time, window)) for window in back.windows]
        whole = int(min(AFTER_S, 2 * options.duration_s) / WINDOW_S)  # what came after the end is in no whole window
        shares = [count / (after_per_s * WINDOW_S) for count in counts[:whole]]
        good = sum(_in_time(kind) for window in over.windows for kind in window)
        goodput_per_s = good / over.elapsed_s
        sent = over.answered + over.errors.total()
        return OverloadResult(
            options=options,
            peak_per_s=peak_per_s,
            offered_per_s=offered_per_s,
            offered_s=options.duration_s,
            goodput_per_s=goodput_per_s,
            goodput_share=goodput_per_s / peak_per_s,
            busy_share=busy / sent if sent else 0.0,
            unsent=over.unsent,
            late=over.answered - good,
            errors=dict(sorted(errors.items())),
            answered=latency(kind for window in over.windows for kind in window),
            after_per_s=after_per_s,
            after_windows=shares,
            recovered_s=recovered_after(shares),
            resident_before=before,
            resident_most=most,
        )

    def _begin(self, phase: str) -> None:
        self._phase, self._elapsed_s = phase, 0.0

    def _on_tick(self, tally: Tally) -> bool:
        self._elapsed_s += 0.1
        self._progress(self._phase, self._elapsed_s, tally.answered, tally.errors.total() - tally.errors[BUSY])
        return True


def _in_time(latencies: Counts) -> int:
    """How many of these were answered while somebody waited."""
    most = PATIENCE_S * 1e6
    return sum(count for latency_us, count in latencies.items() if latency_us <= most)


class _MemoryWatch:
    """Asks each node now and then how much memory it takes, on a thread of its own."""

    def __init__(self, nodes: Sequence[str], timeout_s: float) -> None:
        self._nodes = nodes
        self._timeout_s = timeout_s
        self.most: dict[str, int] = {}
        """The highest seen, by node."""
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def start(self) -> None:
        """Begin to watch."""
        self._thread.start()

    def stop(self) -> None:
        """End it."""
        self._stopped.set()
        if self._thread.is_alive():
            self._thread.join(self._timeout_s)

    def look(self) -> None:
        """Ask each node once. One that does not say is left out."""
        for node in self._nodes:
            try:
                with Connection(*parse_address(node), self._timeout_s) as connection:
                    text = connection.call("INFO", "memory")
            except CartwheelError:
                continue
            resident = _resident(text if isinstance(text, bytes) else b"")
            if resident:
                self.most[node] = max(resident, self.most.get(node, 0))

    def _run(self) -> None:
        while not self._stopped.wait(WATCH_S):
            self.look()


def _resident(info: bytes) -> int:
    for line in info.splitlines():
        name, _, value = line.partition(b":")
        if name == b"used_memory_rss" and value.isdigit():
            return int(value)
    return 0
