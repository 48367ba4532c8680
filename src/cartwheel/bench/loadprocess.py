"""The judged load in a process of its own, beside the one that administers the cluster: neither waits for the other's work.

    us -> load    ("fill",)  ("load",)  ("phase", name)  ("use", numbers, spread)  ("stop",)  ("read back", addresses)
    load -> us    ("progress", done, failed)...  ("filled", seconds)  ("report", LoadReport)  ("read back", ReadBack)
                  or ("failed", text), and then it ends

A closed pipe ends the process.
"""

from __future__ import annotations

import multiprocessing
import signal
import time
from multiprocessing.connection import Connection as Pipe
from types import TracebackType
from typing import Any, Self

from cartwheel.bench.generator import Tally
from cartwheel.bench.judge import Judge
from cartwheel.bench.keyspace import ReadBack, fill, read_back
from cartwheel.bench.run import BenchFailed, Progress
from cartwheel.bench.steady import LoadOptions, LoadReport, SteadyLoad
from cartwheel.core.errors import CartwheelError

JOIN_S = 2.0


class LoadProcess:
    """Our end. Use with ``with``: at the end the process is gone."""

    def __init__(self, options: LoadOptions, progress: Progress) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_run, args=(options, theirs), daemon=True)
        self._process.start()
        theirs.close()
        self._progress = progress
        self.phase = ""
        """What is shown to go on."""
        self.began_s = time.monotonic()
        self.done = self.failed = 0
        """Of this phase."""
        self._before = (0, 0)
        self._total = (0, 0)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pipe.close()
        self._process.join(JOIN_S)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()

    def fill(self) -> float:
        """Write all keys; return the seconds it took."""
        self._show("filling")
        self._send("fill")
        seconds: float = self._wait("filled")
        return seconds

    def start(self) -> None:
        """Begin with the load."""
        self._total = (0, 0)
        self._show("warming up")
        self._send("load")

    def begin_phase(self, name: str) -> None:
        """What is sent from now on belongs to this phase."""
        self._show(name)
        self._send("phase", name)

    def use(self, numbers: list[int], *, spread: bool = False) -> None:
        """Clients go to these from now on (``SteadyLoad.use``)."""
        self._send("use", numbers, spread)

    def stop(self) -> LoadReport:
        """End the load."""
        self._send("stop")
        report: LoadReport = self._wait("report")
        return report

    def read_back(self, addresses: list[str]) -> ReadBack:
        """Read all keys through these."""
        self._total = (0, 0)
        self._show("reading back")
        self._send("read back", addresses)
        found: ReadBack = self._wait("read back")
        return found

    def pump(self, seconds: float) -> None:
        """Show how it goes for so long.

        Raises:
            BenchFailed: the load has ended.
        """
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            if self._pipe.poll(left):
                kind, *_ = self._receive()
                if kind != "progress":
                    raise BenchFailed("the load has ended by itself: no node could be reached any more")

    def _show(self, phase: str) -> None:
        self.phase, self.began_s = phase, time.monotonic()
        self._before, self.done, self.failed = self._total, 0, 0

    def _send(self, *message: Any) -> None:
        try:
            self._pipe.send(message)
        except OSError:
            self._receive()  # what it said last
            raise BenchFailed("the load generator has ended") from None

    def _wait(self, kind: str) -> Any:
        while True:
            found, *rest = self._receive()
            if found == kind:
                return rest[0]

    def _receive(self) -> tuple[Any, ...]:
        try:
            message: tuple[Any, ...] = self._pipe.recv()
        except (EOFError, OSError):
            raise BenchFailed("the load generator ended unexpectedly") from None
        if message[0] == "failed":
            raise BenchFailed(message[1])
        if message[0] == "progress":
            self._total = message[1], message[2]
            self.done, self.failed = self._total[0] - self._before[0], self._total[1] - self._before[1]
            self._progress(self.phase, time.monotonic() - self.began_s, self.done, self.failed)
        return message


def _run(options: LoadOptions, pipe: Pipe) -> None:
    """The main function of the process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to the whole terminal; our parent will tell us
    try:
        _Worker(options, pipe).run()
    except CartwheelError as error:
        pipe.send(("failed", str(error)))
    except (EOFError, BrokenPipeError):
        pass  # the parent has gone


class _Worker:
    """The other end."""

    def __init__(self, options: LoadOptions, pipe: Pipe) -> None:
        self._options = options
        self._pipe = pipe
        self._judge = Judge(options.keys)
        self._load: SteadyLoad | None = None

    def run(self) -> None:
        """Do what we are told until the pipe closes."""
        options, judge = self._options, self._judge
        first = [options.addresses[number] for number in options.first]
        while True:
            match self._pipe.recv():
                case ("fill",):
                    self._pipe.send(("filled", fill(first, judge, options.value_bytes, self._show)))
                case ("load",):
                    self._pipe.send(("report", self._run_load()))
                case ("read back", addresses):
                    self._pipe.send(("read back", read_back(addresses, judge, options.value_bytes, self._show)))
                case ("phase", _) | ("use", _, _) | ("stop",):
                    pass  # the load has ended by itself, as the parent will read in the report
                case message:
                    raise AssertionError(f"unknown message {message!r}")

    def _show(self, done: int) -> None:
        self._pipe.send(("progress", done, 0))

    def _run_load(self) -> LoadReport:
        load = self._load = SteadyLoad(self._options, self._judge)
        load.on_tick = self._on_tick
        try:
            return load.load()
        finally:
            load.close()

    def _on_tick(self, _tally: Tally) -> bool:
        load = self._load
        assert load is not None
        while self._pipe.poll():
            match self._pipe.recv():
                case ("phase", name):
                    load.begin_phase(name)
                case ("use", numbers, spread):
                    load.use(numbers, spread=spread)
                case ("stop",):
                    load.stop()
                case message:
                    raise AssertionError(f"unknown message {message!r}")
        self._pipe.send(("progress", *load.so_far()))
        return load.goes_on()
