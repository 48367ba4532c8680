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
from cartwheel.chaos.draw import draw, draw_cycles, first_victim, names_of
from cartwheel.chaos.hand import Hand
from cartwheel.chaos.history import Away, End, Fault, Owners, Run, Trouble, Writer
from cartwheel.chaos.load import Load
from cartwheel.chaos.members import Members
from cartwheel.chaos.nemesis import LOSE_DISKS, Nemesis, Step
from cartwheel.chaos.processes import Processes
from cartwheel.chaos.proxy import Proxy
from cartwheel.chaos.settle import settle
from cartwheel.core.types import NodeId
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
    """Kills in a row, in place of the kinds."""
    to_the_end: bool = False
    """Whether the run lasts as long as its plan takes, though that be longer than ``seconds``. So it is with cycles."""

    @property
    def founders(self) -> list[NodeId]:
        """Those that are there from the start."""
        return [f"n{number}" for number in range(1, self.nodes + 1)]

    def lanes(self) -> list[list[Step]]:
        """The plan, drawn from the seed."""
        if self.cycles:
            return draw_cycles(self.seed, self.cycles, self.founders)
        return draw(self.seed, self.kinds, self.founders, self.seconds)


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
        self._lanes = lanes = options.lanes()
        founders = options.founders
        more = names_of(lanes, founders)[len(founders) :]
        self._cluster = cluster = Cluster(folder, size=options.nodes, more=more, engine=options.engine, eio=eio)
        self._proxy = Proxy({node: cluster.peer_port[node] for node in [*founders, *more]})
        cluster.dial, cluster.seed = self._proxy.dial, self._proxy.seed
        self._writer = Writer(folder / HISTORY_FILE)
        disk_lost = any(step.kind in LOSE_DISKS for lane in lanes for step in lane)
        self._load_to = 0.0
        ports = {node: cluster.resp_port[node] for node in founders}
        self._load = Load(
            ports, bytes(cluster.secret), options.rate_per_s, options.clients, options.seed,
            single_dots=not disk_lost, writer=self._writer, now=self._now,
        )  # fmt: skip
        steps = sorted((step for lane in lanes for step in lane), key=lambda step: step.at)
        self._writer.write(
            Run(
                version=__version__, seed=options.seed, nodes=founders, more=more, engine=options.engine,
                rate_per_s=options.rate_per_s, clients=options.clients,
                seconds=0.0 if options.cycles else options.seconds,
                plan=[str(step) for step in steps], disk_lost=disk_lost,
            )
        )  # fmt: skip
        processes = Processes(cluster, self._now, self._note, absent=more)
        victim = first_victim(options.seed, founders) if disk_lost else ""
        members = Members(processes, self._proxy, self._load, victim)
        self._hand = Hand(processes, self._proxy, members, options.seed, say)

    def _now(self) -> float:
        return time.monotonic() - self._began

    def _note(self, line: Fault | Away | Owners | Trouble) -> None:
        self._writer.write(line)
        if isinstance(line, Trouble):
            self._say(f"{line.at:.1f} s: {line.rule}: {line.text}")

    def _unsettled(self, rule: str, text: str) -> None:
        self._note(Trouble(rule, text, self._now()))

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
            await self._note_owners()
            try:
                await self._work()
            except BaseExceptionGroup as group:
                raise _first(group) from None
            self._say("healing, and waiting until the owners of every key agree")
            await self._wait_whole("do not all reach one another again after healing")
            found = await asyncio.to_thread(
                settle, self._cluster, self._load.keys, self._writer.write, self._unsettled, ended
            )
            ring = found.ring
            await self._note_owners()
            self._writer.write(End(0.0, self._load_to, found.agreed_s, ring.members, ring.epoch, ring.changes))
        finally:
            ended.set()
            self._writer.close()
            self._cluster.stop_all()
            await self._proxy.stop()
        return self._writer.path

    async def _note_owners(self) -> None:
        owners = await asyncio.to_thread(self._cluster.owners, self._cluster.nodes[0])
        self._note(Owners(self._now(), owners))

    async def _work(self) -> None:
        """Load and faults, until the time is up or the cycles are done."""
        async with asyncio.TaskGroup() as group:
            load = group.create_task(self._load.run())
            hand = group.create_task(self._hand.run(self._lanes))
            shown = group.create_task(self._show_progress())
            if self.options.cycles or self.options.to_the_end:
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
