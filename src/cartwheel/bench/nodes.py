"""Nodes of our own, that join and leave: real processes on this machine, ports from the system, their data in one folder.

Administered as an operator would, with ``CW.CLUSTER`` at a member. Nodes that were started here end with us, whatever ends
us: their standard input is a pipe of ours.
"""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

import msgspec

from cartwheel.bench.buckets import CALL_TIMEOUT_S, POLL_S
from cartwheel.bench.run import BenchFailed
from cartwheel.bench.servers import HOST, START_TIMEOUT_S, Server, program
from cartwheel.client.resp import Connection, Reply, ReplyError
from cartwheel.core.errors import CartwheelError

SECRET = "of a benchmark: its nodes listen on loopback only"
ROWS = "rows"
"""The kind of anti-entropy's messages that carry records."""
STAND_INS = ("reads_rerouted", "writes_rerouted")
"""Counters of a node."""


class Node(Server):
    """One of them."""

    def __init__(self, name: str, ports: tuple[int, int], folder: Path, flags: Mapping[str, str]) -> None:
        self.resp_port, self.peer_port = ports
        self.data = folder / "data"
        given = {"node": name, "data": str(self.data), "resp_port": str(self.resp_port), **flags}
        words = [word for name, value in given.items() for word in ("--" + name.replace("_", "-"), value)]
        clean = {name: value for name, value in os.environ.items() if not name.startswith("CARTWHEEL_")}
        command = program("start", *words, "--until-eof")
        super().__init__(name, command, folder, detached=True, environment=clean)

    @property
    def address(self) -> str:
        """Its Redis door."""
        return f"{HOST}:{self.resp_port}"

    def ready(self) -> bool:
        """Whether it answers."""
        try:
            return self.call("PING") == b"PONG"
        except CartwheelError:
            return False

    def call(self, *words: str) -> Reply:
        """One command, on a connection of its own."""
        with Connection(HOST, self.resp_port, CALL_TIMEOUT_S) as connection:
            return connection.call(*words)

    def ask(self, *words: str) -> Any:
        """One whose answer is JSON."""
        answer = self.call(*words)
        assert isinstance(answer, bytes), answer
        return json.loads(answer)

    def status(self) -> tuple[Any, float]:
        """Its view, and the seconds of processor time that it has taken."""
        with Connection(HOST, self.resp_port, CALL_TIMEOUT_S) as connection:
            answers = connection.pipeline([("CW.STATUS", "JSON"), ("INFO", "cpu")])
        for answer in answers:
            if isinstance(answer, ReplyError):
                raise answer
        told, info = answers
        assert isinstance(told, bytes), told
        assert isinstance(info, bytes), info
        used = [line.partition(":")[2] for line in info.decode().splitlines() if line.startswith("used_cpu_")]
        return json.loads(told), sum(map(float, used))


class Look(msgspec.Struct, frozen=True):
    """How far the hand-over is, in the eyes of all that run."""

    agreed: bool
    """All answer, and see the same ring and the same holdings."""
    left: int
    """Partitions still to be taken over."""
    leftovers: int
    """Partitions with records that are to be removed."""
    leaving: tuple[str, ...]
    """Who leaves, and has not given or removed everything yet."""
    records: int
    """Records that came with partitions taken over, since the start of the nodes, of all that ever ran."""
    row_bytes: int
    """Bytes of records that were sent to be compared or handed over, likewise."""
    cpu_s: float
    """Seconds of processor time that they took, likewise."""
    stand_ins: int = 0
    """Requests for which a fallback was asked in place of an owner that did not answer in time, likewise."""
    waits: tuple[str, ...] = ()
    """For what gaining nodes wait."""

    @property
    def quiet(self) -> bool:
        """Whether nobody takes over anything, or has noticed yet that it is to."""
        return self.agreed and not self.left

    @property
    def tidy(self) -> bool:
        """Whether nothing is left over, and who left has gone."""
        return self.quiet and not self.leftovers and not self.leaving


class _Counts(NamedTuple):
    """What one node has counted since its start: see ``Look``."""

    records: int
    row_bytes: int
    cpu_s: float
    stand_ins: int


class Nodes:
    """All nodes of a run, by name: n1, n2, ... Use with ``with``: at the end they are stopped."""

    def __init__(self, folder: Path, count: int, settings: Mapping[str, str]) -> None:
        """
        Args:
            count: how many there will ever be, so many ports are chosen.
            settings: what they are started with, beside their names and places.
        """
        self._folder = folder
        self._settings = dict(settings)
        self._ports = dict(zip(names(range(1, count + 1)), _free_ports(count), strict=True))
        self._running: dict[str, Node] = {}
        self._stack = ExitStack()
        self._seen: dict[str, _Counts] = {}  # of each, as last seen
        folder.mkdir(parents=True, exist_ok=True)
        self._secret = folder / "secret"
        self._secret.touch(mode=0o600)
        self._secret.write_text(SECRET)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    # --- who runs ---

    @property
    def running(self) -> list[str]:
        """Their names."""
        return list(self._running)

    @property
    def addresses(self) -> tuple[str, ...]:
        """The Redis doors of all that there will ever be, in the order of their numbers."""
        return tuple(f"{HOST}:{resp}" for resp, _ in self._ports.values())

    def number(self, name: str) -> int:
        """Its place among ``addresses``."""
        return list(self._ports).index(name)

    def found(self, count: int) -> None:
        """Start the first members of a new cluster, and wait until they reach one another."""
        founders = names(range(1, count + 1))
        initial = ",".join(f"{name}={HOST}:{self._ports[name][1]}" for name in founders)
        for name in founders:
            self._start(name, initial_cluster=initial)
        for name in founders:
            self._running[name].wait_ready()
        self._wait(
            lambda: all(self._reaches(name, founders) for name in founders), "the nodes do not reach one another"
        )

    def join(self, joiners: Sequence[str], at: str, pause: Callable[[], None]) -> None:
        """Start these, and wait until that member knows that they ask to join. ``pause`` is called between two looks: a plan
        costs a node tens of milliseconds, which others wait for."""
        seeds = ",".join(f"{HOST}:{self._ports[name][1]}" for name in self._running)
        for name in joiners:
            self._start(name, join=seeds, peer_port=str(self._ports[name][1]))
        wanted = {f"{name} joins" for name in joiners}

        def staged() -> bool:
            changes = self._running[at].ask("CW.CLUSTER", "PLAN", "JSON")["changes"]
            return all(any(words in change for change in changes) for words in wanted)

        self._wait(lambda: all(self._running[name].ready() for name in joiners), "joining nodes do not start", pause)
        self._wait(staged, "joins are not staged", pause)

    def stage_leave(self, leavers: Iterable[str], at: str) -> None:
        """Stage that these leave."""
        for name in leavers:
            self._order(at, "LEAVE", name)

    def commit(self, at: str) -> None:
        """Carry out what is staged."""
        self._order(at, "COMMIT")

    def may_stop(self, name: str, at: str) -> bool:
        """Whether a node may be stopped, in the eyes of another one."""
        return not self._running[at].ask("CW.CLUSTER", "SAFETOSTOP", name, "JSON")

    def stop(self, name: str, pause: Callable[[], None]) -> None:
        """Stop one by SIGTERM, and wait until it has ended. ``pause`` is called meanwhile."""
        node = self._running.pop(name)
        node.process.terminate()
        self._wait(lambda: node.process.poll() is not None, f"{name} does not stop", pause)

    # --- how far they are ---

    def look(self) -> Look:
        """Ask all.

        Raises:
            BenchFailed: one has ended.
        """
        found: list[Any] = []
        for name, node in self._running.items():
            try:
                told, cpu_s = node.status()
            except CartwheelError:
                self._check_alive()
                continue  # it may be busy; the next look will tell
            found.append(told)
            self._seen[name] = _Counts(
                records=told["transfer"]["received"],
                row_bytes=told["antientropy"]["sent_bytes"].get(ROWS, 0),
                cpu_s=cpu_s,
                stand_ins=sum(told["counters"].get(counter, 0) for counter in STAND_INS),
            )
        gains = [row for told in found for row in told["transfer"]["gains"]]
        return Look(
            agreed=len(found) == len(self._running) and len({told["epoch"] for told in found}) == 1,
            left=sum(row["partitions"] for row in gains),
            leftovers=sum(told["transfer"]["leftovers"] for told in found),
            leaving=tuple(sorted({name for told in found for name in told["leaving"]})),
            records=sum(counts.records for counts in self._seen.values()),
            row_bytes=sum(counts.row_bytes for counts in self._seen.values()),
            cpu_s=sum(counts.cpu_s for counts in self._seen.values()),
            stand_ins=sum(counts.stand_ins for counts in self._seen.values()),
            waits=tuple(sorted({row["waits"] for row in gains if row["waits"] and row["source"]})),
        )

    def handed_over(self, look: Look, at: str) -> bool:
        """Whether every partition has its owners: nodes say so, and so does the plan. (That is asked last, since it costs a
        node tens of milliseconds.)"""
        try:
            return look.quiet and not self._running[at].ask("CW.CLUSTER", "PLAN", "JSON")["moving"]
        except CartwheelError:
            self._check_alive()
            return False

    def _check_alive(self) -> None:
        for name, node in self._running.items():
            code = node.process.poll()
            if code is not None:
                raise BenchFailed(f"{name} ended with status {code}; the end of its log:\n{node.tail()}")

    # --- how ---

    def _start(self, name: str, **flags: str) -> None:
        given = {"secret_file": str(self._secret), **self._settings, **flags}
        node = Node(name, self._ports[name], self._folder / name, given)
        self._stack.callback(node.stop)
        self._running[name] = node

    def _reaches(self, name: str, others: Iterable[str]) -> bool:
        members = self._running[name].ask("CW.STATUS", "JSON")["members"]
        return set(others) <= {member["node"] for member in members if member["reachable"]}

    def _order(self, at: str, *words: str) -> None:
        try:
            self._running[at].call("CW.CLUSTER", *words)
        except CartwheelError as error:
            self._check_alive()
            raise BenchFailed(f"CW.CLUSTER {' '.join(words)} at {at}: {error}") from error

    def _wait(self, condition: Callable[[], bool], complaint: str, pause: Callable[[], None] | None = None) -> None:
        deadline = time.monotonic() + START_TIMEOUT_S
        while True:
            try:
                if condition():
                    return
            except CartwheelError:
                pass  # it is asked again
            self._check_alive()
            if time.monotonic() > deadline:
                raise BenchFailed(f"{complaint}; see the logs in {self._folder}")
            (pause or _rest)()


def names(numbers: Iterable[int]) -> list[str]:
    """The names of the nodes of these numbers."""
    return [f"n{number}" for number in numbers]


def _rest() -> None:
    time.sleep(POLL_S)


def _free_ports(count: int) -> list[tuple[int, int]]:
    """Pairs of ports that the system says are free: all held at once, so they differ."""
    sockets = [socket.socket() for _ in range(2 * count)]
    try:
        for each in sockets:
            each.bind((HOST, 0))
        ports = [each.getsockname()[1] for each in sockets]
    finally:
        for each in sockets:
            each.close()
    return list(zip(ports[::2], ports[1::2], strict=True))
