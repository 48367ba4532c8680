"""Run a benchmark: start the processes, keep them in step, merge what they measured.

Each process is a ``spawn``ed one (forking a process that has threads is asking for trouble). They talk over a pipe:

    process -> us    ("preloaded",)  ("progress", answered, errors)...  ("report", Report)   or  ("failed", text)
    us -> process    ("go",) once all are preloaded;  ("stop",) to end early. A closed pipe ends the process, too.
"""

from __future__ import annotations

import multiprocessing
import signal
import socket
import time
from collections import Counter
from collections.abc import Callable
from itertools import islice
from multiprocessing.connection import Connection as Pipe
from multiprocessing.connection import wait
from multiprocessing.context import SpawnProcess

from cartwheel.bench.generator import Address, Engine, Tally
from cartwheel.bench.options import BenchOptions
from cartwheel.bench.requests import preload, workload
from cartwheel.bench.result import BenchResult, Report, merge
from cartwheel.client.resp import Connection, ConnectionLost, ReplyError, pack_command, parse_address
from cartwheel.core.errors import CartwheelError

PRELOAD_DEPTH = 16
"""Requests in flight on each connection while preloading: enough to keep a group commit filled."""

PHASES = ("connecting", "preloading", "warming up", "measuring")

Progress = Callable[[str, float, int, int], None]
"""Called with (phase, seconds since its start, answered, errors) about ten times a second."""


class BenchFailed(CartwheelError):
    """The benchmark could not be carried out."""


def run_bench(options: BenchOptions, progress: Progress | None = None) -> BenchResult:
    """Carry out a benchmark. An interrupt (Ctrl-C) ends it early; the result then says ``interrupted``.

    Raises:
        ConfigError: an option is out of range.
        CannotReach: a node named in the options does not answer.
        BenchFailed: a process could not do its part.
    """
    options.check()
    for node in options.nodes:
        greet(*parse_address(node), options.timeout_s)
    context = multiprocessing.get_context("spawn")
    processes: list[SpawnProcess] = []
    pipes: list[Pipe] = []
    try:
        for number in range(options.processes):
            ours, theirs = context.Pipe()
            process = context.Process(target=_process, args=(options, number, theirs), daemon=True)
            process.start()
            theirs.close()
            processes.append(process)
            pipes.append(ours)
        return _Supervisor(options, pipes, progress or (lambda *_: None)).run()
    finally:
        for pipe in pipes:
            pipe.close()
        for process in processes:
            process.join(1.0)
            if process.is_alive():
                process.kill()
                process.join()


def greet(host: str, port: int, timeout_s: float) -> None:
    """Find out before all else whether there is a node, for the sake of a clear message."""
    with Connection(host, port, timeout_s) as connection:
        try:
            connection.call("PING")
        except (ReplyError, ConnectionLost) as error:
            raise BenchFailed(f"the node at {connection.address} cannot be benchmarked: {error}") from error


class _Supervisor:
    """Our end of the pipes."""

    def __init__(self, options: BenchOptions, pipes: list[Pipe], progress: Progress) -> None:
        self._options = options
        self._pipes = pipes
        self._progress = progress
        self._ready = 0
        self._counts = dict.fromkeys(pipes, (0, 0))
        self._reports: dict[Pipe, Report] = {}
        self._phase = PHASES[0]
        self._phase_began = time.monotonic()
        self._interrupted = False

    def run(self) -> BenchResult:
        while len(self._reports) < len(self._pipes):
            try:
                self._listen()
            except KeyboardInterrupt:
                if self._interrupted:
                    raise  # asked twice: leave at once
                self._interrupted = True
                self._tell("stop")
        reports = [self._reports[pipe] for pipe in self._pipes]
        return merge(self._options, reports, interrupted=self._interrupted)

    def _listen(self) -> None:
        for pipe in wait([pipe for pipe in self._pipes if pipe not in self._reports], timeout=0.5):
            assert isinstance(pipe, Pipe)
            try:
                message = pipe.recv()
            except (EOFError, OSError):
                raise BenchFailed("a process of the load generator ended unexpectedly") from None
            match message:
                case ("preloaded",):
                    self._ready += 1
                    if self._ready == len(self._pipes):
                        self._tell("go")
                case ("progress", phase, answered, errors):
                    if PHASES.index(phase) < PHASES.index(self._phase):
                        continue  # a straggler
                    if phase != self._phase:
                        self._begin(phase)
                    self._counts[pipe] = (answered, errors)
                    self._progress(
                        phase,
                        time.monotonic() - self._phase_began,
                        sum(answered for answered, _ in self._counts.values()),
                        sum(errors for _, errors in self._counts.values()),
                    )
                case ("report", Report() as report):
                    self._reports[pipe] = report
                case ("failed", text):
                    raise BenchFailed(text)
                case _:
                    raise AssertionError(f"unknown message {message!r}")

    def _begin(self, phase: str) -> None:
        self._phase, self._phase_began = phase, time.monotonic()
        self._counts = dict.fromkeys(self._pipes, (0, 0))

    def _tell(self, word: str) -> None:
        for pipe in self._pipes:
            if pipe not in self._reports:
                try:
                    pipe.send((word,))
                except OSError:
                    pass  # it has ended; what it had to say is on its way


def _process(options: BenchOptions, number: int, pipe: Pipe) -> None:
    """The main function of a process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to the whole terminal; our parent will tell us
    try:
        pipe.send(("report", Worker(options, number, pipe).run()))
    except CartwheelError as error:
        pipe.send(("failed", str(error)))
    except (EOFError, BrokenPipeError):
        pass  # the parent has gone


class Worker:
    """One process's part, driven by its end of the pipe."""

    def __init__(self, options: BenchOptions, number: int, pipe: Pipe) -> None:
        self._options = options
        self._number = number
        self._pipe = pipe
        self._phase = PHASES[0]
        self._stopped = False
        # One stream for warm-up and measurement: to begin again would ask for keys that have just been read.
        self._source = workload(options, number)
        mine = range(number, options.connections, options.processes)
        self._engine = Engine([resolve(node) for node in options.nodes], mine, options.timeout_s, hello(options))
        self._engine.on_tick = self._on_tick

    def run(self) -> Report:
        """Do all phases.

        Raises:
            BenchFailed: the nodes take none of our connections.
        """
        options, engine = self._options, self._engine
        try:
            errors = self._prepare()
            if options.warmup_s and not self._stopped:
                self._phase = "warming up"
                self._measure(duration_s=options.warmup_s, requests=None)
            self._phase = "measuring"
            cpu_s = time.process_time()
            duration_s = options.duration_s if options.requests is None else None
            tally = self._measure(duration_s=duration_s, requests=options.requests, window_s=options.series_s)
            cpu_s = time.process_time() - cpu_s
        finally:
            engine.close()
        return Report(
            answered=tally.answered,
            misses=tally.misses,
            errors=dict(tally.errors + errors),
            unsent=tally.unsent,
            elapsed_s=tally.elapsed_s,
            cpu_s=cpu_s,
            windows=[[dict(counts) for counts in window] for window in tally.windows],
        )

    def _prepare(self) -> Counter[str]:
        """Connect, write our share of the keys, and wait until all others have. Returns the errors."""
        options, engine = self._options, self._engine
        connected = engine.wait_connected()
        if connected < len(engine.flows):
            raise BenchFailed(
                f"only {connected} of {len(engine.flows)} connections could be opened; check the nodes' limit"
                " on clients, and `ulimit -n`"
            )
        errors: Counter[str] = Counter()
        if options.preload and options.reads:
            self._phase = "preloading"
            depth = max(PRELOAD_DEPTH, options.pipeline)
            tally = engine.run(preload(options, self._number), depth=depth)
            errors.update({f"preload: {kind}": count for kind, count in tally.errors.items()})
        self._pipe.send(("preloaded",))
        while not self._stopped and self._pipe.recv() != ("go",):
            self._stopped = True
        return errors

    def _measure(self, *, duration_s: float | None, requests: int | None, window_s: float | None = None) -> Tally:
        options, number, of = self._options, self._number, self._options.processes
        source = self._source
        if requests is not None:
            source = islice(source, len(range(number, requests, of)))
        if self._stopped:
            source = islice(source, 0)
        interval_s = offset_s = None
        if options.rate_per_s is not None:
            # The processes take turns: together they keep the schedule of one.
            interval_s, offset_s = of / options.rate_per_s, number / options.rate_per_s
        return self._engine.run(
            source,
            depth=options.pipeline,
            duration_s=duration_s,
            interval_s=interval_s,
            offset_s=offset_s or 0.0,
            window_s=window_s,
        )

    def _on_tick(self, tally: Tally) -> bool:
        self._pipe.send(("progress", self._phase, tally.answered, tally.errors.total()))
        while self._pipe.poll():
            self._stopped |= self._pipe.recv() == ("stop",)
        return not self._stopped


def hello(options: BenchOptions) -> bytes:
    """What each connection begins with: it selects the bucket, unless that is the one that it has anyway."""
    return b"" if options.bucket == "0" else pack_command("SELECT", options.bucket)


def resolve(node: str) -> Address:
    host, port = parse_address(node)
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except socket.gaierror as error:
        raise BenchFailed(f"cannot find the host {host!r}: {error.strerror}") from error
    return family, address
