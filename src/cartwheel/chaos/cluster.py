"""The nodes of a chaos run: real ``cartwheel start`` processes with their own directory, ports from the system, and logs.

    FOLDER/secret     the cluster's secret
    FOLDER/n1/data    a node's data directory
    FOLDER/n1/log     what it printed, in all its lives
    FOLDER/n1/eio     while this exists, its syncs fail (see ``shim``)
    FOLDER/copy/      the same of a copy of some node's data directory

Some nodes found the cluster; others may ``enter`` it, and any may ``quit`` it. Each reads its standard input to the end, a pipe
that only we hold: however we end, the nodes stop. They are in process groups of their own, so Ctrl-C reaches only us, and a
paused one whose parent is gone is woken by the kernel.

Not thread-safe; nothing here waits longer than a signal takes, except ``terminate``, ``wait_exit`` and ``wipe``.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from cartwheel.chaos import shim
from cartwheel.client.resp import CannotReach, Connection, ConnectionLost, ReplyError
from cartwheel.core.errors import CartwheelError
from cartwheel.core.types import NodeId
from cartwheel.runtime.settings import SETTING_NAMES, flag_of, keep_secret, new_secret, read_secret

HOST = "127.0.0.1"
PORTS = (12_000, 32_000)
CLUSTER = "chaos"
STOP_TIMEOUT_S = 20.0
PROBE_TIMEOUT_S = 1.0
LOG_TAIL_BYTES = 2000
ADMIN_TIMEOUT_S = 4.0
COPY: NodeId = "copy"
"""What we call the second process of a node, whose data directory was copied. It calls itself by the name of the first."""
N = 3
"""Owners of a key: a new bucket's."""
Q = 256
"""Partitions of the ring. With fewer than the default a hand-over is done in fewer steps: more of them, and more of what comes
after them, have their place in a run."""
GIVE_GRACE_SETTING, GIVE_GRACE_S = "give_grace_s", 1.0
"""A node that hands partitions over keeps them no longer than this: else nobody would leave within a run."""
QUOTA_SETTING, QUOTA_BYTES = "disk_bytes_max", 512 << 20
"""Every node gets a quota, so that a filler of this size makes its disk "full". Space is taken while the filler is there."""


class ChaosFailed(CartwheelError):
    """The run could not be carried out; the message says why."""


def free_ports(count: int) -> list[int]:
    """Ports that are free now; all held at once, so they differ. Below those that systems give away by themselves (from 32768 on,
    or 49152): else a connection or a proxy that opens before the node starts, or while it is away, may be given one of them."""
    dice = random.SystemRandom()
    with contextlib.ExitStack() as stack:
        ports: list[int] = []
        while len(ports) < count:
            port = dice.randrange(*PORTS)
            with contextlib.suppress(OSError):
                stack.enter_context(socket.socket()).bind((HOST, port))
                ports.append(port)
        return ports


class Cluster:
    """The nodes n1 to n``size`` found the cluster; ``more`` may join it later. ``dial`` tells a node where to reach its peers,
    and ``seed`` where one node (the first) that wants to join reaches another."""

    def __init__(
        self, folder: Path, *, size: int, more: Sequence[NodeId] = (), engine: str = "rocksdb", eio: Path | None = None,
        q: int = Q,
    ) -> None:  # fmt: skip
        self.folder = folder
        self.founders: list[NodeId] = [f"n{number}" for number in range(1, size + 1)]
        self.nodes: list[NodeId] = list(self.founders)
        """Those that are there: to be running, and members or about to be."""
        everyone = [*self.founders, *more, COPY]
        ports = free_ports(2 * len(everyone))
        self.resp_port = dict(zip(everyone, ports[: len(everyone)], strict=True))
        self.peer_port = dict(zip(everyone, ports[len(everyone) :], strict=True))
        self.dial: Callable[[NodeId], str] = lambda node: ""
        self.seed: Callable[[NodeId, NodeId], str] = lambda node, other: f"{HOST}:{self.peer_port[other]}"
        self._joins: set[NodeId] = set()  # they are started to join
        self._copied: NodeId = ""
        self._engine = engine
        self._eio = eio
        self.q = q
        self._processes: dict[NodeId, subprocess.Popen[bytes]] = {}
        keep_secret(folder / "secret", new_secret())
        self.secret = read_secret(folder / "secret", "default")
        for node in everyone:
            (folder / node).mkdir()

    # --- who is there ---

    def enter(self, node: NodeId) -> None:
        """From now on it is one of those that are there, and asks to join when it is started."""
        self.nodes.append(node)
        self._joins.add(node)

    def joins_no_more(self, node: NodeId) -> None:
        """It is to leave: when it is started again it must not ask to join anew."""
        self._joins.discard(node)

    def quit(self, node: NodeId) -> None:
        """It is not one of those that are there any more."""
        self.nodes.remove(node)

    # --- files ---

    def data(self, node: NodeId) -> Path:
        """A node's data directory."""
        return self.folder / node / "data"

    def log(self, node: NodeId) -> Path:
        """A node's output."""
        return self.folder / node / "log"

    def tail(self, node: NodeId, lines: int = 5) -> str:
        """The last lines of a node's output."""
        try:
            text = self.log(node).read_bytes()[-LOG_TAIL_BYTES:].decode("utf-8", "replace")
        except OSError:
            return ""
        return "\n".join(text.splitlines()[-lines:])

    def trigger(self, node: NodeId) -> Path:
        """The file whose existence breaks the node's disk."""
        return self.folder / node / "eio"

    # --- life ---

    def start(self, node: NodeId) -> None:
        """Start a node that does not run."""
        assert not self.running(node), f"{node} runs already"
        me = self._copied if node == COPY else node
        flags = {
            "node": me, "cluster": CLUSTER, "data": str(self.data(node)), "engine": self._engine, "host": HOST,
            "resp_port": str(self.resp_port[node]), "secret_file": str(self.folder / "secret"),
            GIVE_GRACE_SETTING: f"{GIVE_GRACE_S:g}", "q": str(self.q),
        }  # fmt: skip
        if node in self.founders and node not in self._joins:
            flags["initial_cluster"] = ",".join(f"{each}={HOST}:{self.peer_port[each]}" for each in self.founders)
        else:
            flags["peer_port"] = str(self.peer_port[node])
        if node in self._joins:
            flags["join"] = ",".join(self.seed(node, each) for each in self.nodes if each != node)
        if dial := self.dial(me):
            flags["dial"] = dial
        if knows_quota():
            flags[QUOTA_SETTING] = str(QUOTA_BYTES)
        command = [sys.executable, "-m", "cartwheel", "start", "--until-eof"]
        command += [part for name, value in flags.items() for part in (flag_of(name), value)]
        with self.log(node).open("ab") as log:
            self._processes[node] = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=log, stderr=log, env=self._environment(node), process_group=0
            )

    def _environment(self, node: NodeId) -> Mapping[str, str]:
        environment = {name: value for name, value in os.environ.items() if not name.startswith("CARTWHEEL_")}
        if self._eio is not None:
            environment |= {"LD_PRELOAD": str(self._eio), shim.VARIABLE: str(self.trigger(node))}
        return environment

    def found_none(self, node: NodeId) -> bool:
        """Whether it ended because it was to join, and reached nobody."""
        return node in self._joins and "no cluster to join was found" in self.tail(node, 1)

    def running(self, node: NodeId) -> bool:
        """Whether its process exists (paused or not)."""
        process = self._processes.get(node)
        return process is not None and process.poll() is None

    def exit_code(self, node: NodeId) -> int | None:
        """How it ended; None while it runs."""
        return self._processes[node].poll()

    def kill(self, node: NodeId) -> None:
        """kill -9."""
        process = self._processes[node]
        process.kill()
        self._ended(process)

    def terminate(self, node: NodeId) -> int:
        """SIGTERM, and wait for the clean end: its exit code."""
        process = self._processes[node]
        process.send_signal(signal.SIGTERM)
        process.send_signal(signal.SIGCONT)
        return self.wait_exit(node, STOP_TIMEOUT_S)

    def wait_exit(self, node: NodeId, timeout_s: float) -> int:
        """Wait for its end.

        Raises:
            ChaosFailed: it goes on.
        """
        process = self._processes[node]
        try:
            process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            raise ChaosFailed(f"{node} did not end within {timeout_s:g} s; its log: {self.log(node)}") from None
        return self._ended(process)

    @staticmethod
    def _ended(process: subprocess.Popen[bytes]) -> int:
        if process.stdin is not None:
            process.stdin.close()
        return process.wait()

    def send_signal(self, node: NodeId, which: signal.Signals) -> None:
        """SIGSTOP or SIGCONT."""
        self._processes[node].send_signal(which)

    def wipe(self, node: NodeId) -> None:
        """Lose the disk of a node that does not run."""
        assert not self.running(node), f"{node} runs: its files are in use"
        shutil.rmtree(self.data(node))

    def copy(self, node: NodeId) -> None:
        """Copy the data directory of a node that does not run. ``COPY`` can be started then."""
        assert not self.running(node), f"{node} runs: its files change"
        self._copied = node
        shutil.rmtree(self.data(COPY), ignore_errors=True)
        shutil.copytree(self.data(node), self.data(COPY))

    def stop_all(self) -> None:
        """Kill whatever runs."""
        for process in self._processes.values():
            process.kill()
        for process in self._processes.values():
            self._ended(process)

    # --- looking at a node ---

    def ask(self, node: NodeId, *words: str, timeout_s: float = ADMIN_TIMEOUT_S) -> str:
        """A command of an administrator.

        Raises:
            ReplyError: it was refused.
            CannotReach, ConnectionLost: nobody knows.
        """
        with Connection(HOST, self.resp_port[node], timeout_s) as connection:
            answer = connection.call(*words)
        assert isinstance(answer, bytes), answer
        return answer.decode()

    def status(self, node: NodeId) -> dict[str, Any] | None:
        """A node's view; None if it does not answer."""
        try:
            answer = self.ask(node, "CW.STATUS", "JSON", timeout_s=PROBE_TIMEOUT_S)
        except (CannotReach, ConnectionLost, ReplyError):
            return None
        found: dict[str, Any] = json.loads(answer)
        return found

    def owners(self, node: NodeId) -> list[list[NodeId]]:
        """Who is to own each partition, as this node tells.

        Raises:
            CannotReach, ConnectionLost: it does not.
        """
        with Connection(HOST, self.resp_port[node], ADMIN_TIMEOUT_S) as connection:
            # From behind the last record on: only the preference list is wanted.
            told = connection.pipeline([("CW.DIGESTS", p, "CURSOR", "ff" * 20) for p in range(self.q)])
        found: list[list[NodeId]] = []
        for each in told:
            if not isinstance(each, list):
                raise ConnectionLost(f"{node} does not tell its preference lists: {each!r}")
            names: Any = each[each.index(b"preference") + 1]
            found.append([name.decode() for name in names[:N]])
        return found

    def whole(self) -> bool:
        """Whether every node serves and reaches every other."""
        for node in self.nodes:
            status = self.status(node)
            if status is None or not all(member["reachable"] for member in status["members"]):
                return False
        return True


def knows_quota() -> bool:
    """Whether nodes of this version take a quota for their data directory."""
    return QUOTA_SETTING in SETTING_NAMES
