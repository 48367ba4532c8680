"""One chaos run: start the nodes, load them, let the nemesis loose, heal, and wait until the owners of every key agree.

    start ── all reach all ──> load + nemesis ── time is up ──> heal ──> settle ──> judge

Everything runs in one event loop (clients, proxy, nemesis) except what blocks: that goes to threads.
"""

from __future__ import annotations

import asyncio
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from cartwheel import __version__
from cartwheel.chaos import shim
from cartwheel.chaos.cluster import ChaosFailed, Cluster
from cartwheel.chaos.history import Away, End, Fault, Run, Trouble, Writer
from cartwheel.chaos.load import Load
from cartwheel.chaos.nemesis import Hand, Nemesis, Step, draw, draw_cycles
from cartwheel.chaos.proxy import Proxy
from cartwheel.chaos.settle import settle
from cartwheel.runtime.server import loop_factory

START_TIMEOUT_S = 90.0
POLL_S = 0.1
PROGRESS_S = 1.0
HISTORY_FILE = "history.jsonl"


@dataclass(frozen=True, slots=True)
class Options:
    """What is asked for."""

    seconds: float
    kinds: tuple[Nemesis, ...]
    seed: int
    rate_per_s: float = 800.0
    clients: int = 24
    nodes: int = 5
    engine: str = "rocksdb"
    cycles: int = 0
    """Kills in a row, in place of the kinds; then the run lasts as long as they do."""

    def lanes(self) -> list[list[Step]]:
        """The plan, drawn from the seed."""
        names = [f"n{number}" for number in range(1, self.nodes + 1)]
        if self.cycles:
            return draw_cycles(self.seed, self.cycles, names)
        return draw(self.seed, self.kinds, names, self.seconds)


@dataclass(frozen=True, slots=True)
class Progress:
    """How it goes, once a second."""

    at: float
    ops_per_s: float
    acked: int
    failed: int
    active: tuple[str, ...]


def carry_out(options: Options, folder: Path, say: Callable[[str], None], tell: Callable[[Progress], None]) -> Path:
    """Carry out a run in an empty folder; the path of its history.

    Raises:
        ChaosFailed: the cluster did not start, or a node did not come back.
        KeyboardInterrupt: by SIGINT or SIGTERM. The nodes have been stopped.
    """
    try:
        with asyncio.Runner(loop_factory=loop_factory()) as runner:
            return runner.run(_Chaos(options, folder, say, tell).carry_out())
    except asyncio.CancelledError:
        raise KeyboardInterrupt from None


class _Chaos:
    def __init__(
        self, options: Options, folder: Path, say: Callable[[str], None], tell: Callable[[Progress], None]
    ) -> None:
        self.options = options
        self._say = say
        self._tell = tell
        self._began = time.monotonic()
        eio = shim.build(folder) if Nemesis.EIO in options.kinds and not options.cycles else None
        self._cluster = Cluster(folder, size=options.nodes, engine=options.engine, eio=eio)
        self._proxy = Proxy(self._cluster.peer_port)
        self._cluster.dial = self._proxy.dial
        self._writer = Writer(folder / HISTORY_FILE)
        lanes = options.lanes()
        disk_lost = any(step.kind is Nemesis.WIPE for lane in lanes for step in lane)
        self._lanes = lanes
        self._load_to = 0.0
        self._load = Load(
            self._cluster.resp_port, bytes(self._cluster.secret), options.rate_per_s, options.clients, options.seed,
            single_dots=not disk_lost, writer=self._writer, now=self._now,
        )  # fmt: skip
        steps = sorted((step for lane in lanes for step in lane), key=lambda step: step.at)
        self._writer.write(
            Run(
                version=__version__, seed=options.seed, nodes=self._cluster.nodes, engine=options.engine,
                rate_per_s=options.rate_per_s, clients=options.clients,
                seconds=0.0 if options.cycles else options.seconds,
                plan=[str(step) for step in steps], disk_lost=disk_lost,
            )
        )  # fmt: skip
        self._hand = Hand(self._cluster, self._proxy, options.seed, self._now, self._note)

    def _now(self) -> float:
        return time.monotonic() - self._began

    def _note(self, line: Fault | Away | Trouble) -> None:
        self._writer.write(line)
        if isinstance(line, Trouble):
            self._say(f"{line.at:.1f} s: {line.rule}: {line.text}")

    def _unsettled(self, text: str) -> None:
        self._note(Trouble("C5", text, self._now()))

    async def carry_out(self) -> Path:
        """The whole run."""
        task = asyncio.current_task()
        assert task is not None, "a coroutine runs in a task"
        for number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(number, task.cancel)
        ended = threading.Event()
        try:
            await self._proxy.start()
            for node in self._cluster.nodes:
                self._cluster.start(node)
            await self._wait_whole("did not start")
            self._began = time.monotonic()
            try:
                await self._work()
            except BaseExceptionGroup as group:
                raise _first(group) from None
            self._say("healing, and waiting until the owners of every key agree")
            await self._wait_whole("do not all reach one another again after healing")
            agreed_s = await asyncio.to_thread(
                settle, self._cluster, self._load.keys, self._writer.write, self._unsettled, ended
            )
            self._writer.write(End(0.0, self._load_to, agreed_s))
        finally:
            ended.set()
            self._writer.close()
            self._cluster.stop_all()
            await self._proxy.stop()
        return self._writer.path

    async def _work(self) -> None:
        """Load and faults, until the time is up or the cycles are done."""
        async with asyncio.TaskGroup() as group:
            load = group.create_task(self._load.run())
            hand = group.create_task(self._hand.run(self._lanes))
            shown = group.create_task(self._show_progress())
            if self.options.cycles:
                await asyncio.wait([hand, load], return_when=asyncio.FIRST_COMPLETED)
            else:
                await asyncio.wait([load], timeout=self.options.seconds)
            self._load.stopping = True
            self._load_to = self._now()
            self._hand.stop()
            await asyncio.wait([hand, load])
            shown.cancel()

    async def _show_progress(self) -> None:
        tally, before = self._load.tally, 0
        while True:
            await asyncio.sleep(PROGRESS_S)
            active = tuple(kind for kind, count in self._hand.active.items() if count)
            self._tell(Progress(self._now(), (tally.done - before) / PROGRESS_S, tally.acked, tally.failed, active))
            before = tally.done

    async def _wait_whole(self, what: str) -> None:
        deadline = time.monotonic() + START_TIMEOUT_S
        while not await asyncio.to_thread(self._cluster.whole):
            dead = [node for node in self._cluster.nodes if not self._cluster.running(node)]
            if dead or time.monotonic() > deadline:
                node = (dead or self._cluster.nodes)[0]
                raise ChaosFailed(f"the nodes {what}; the last words of {node}:\n{self._cluster.tail(node)}")
            await asyncio.sleep(POLL_S)


def _first(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """Why a run ended early: the failure that a person should read, or the group as it is, for it is a bug of ours."""
    failed = group.subgroup(ChaosFailed)
    while isinstance(failed, BaseExceptionGroup):
        inner = failed.exceptions[0]
        if not isinstance(inner, BaseExceptionGroup):
            return inner
        failed = inner
    return group
