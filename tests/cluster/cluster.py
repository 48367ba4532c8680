"""A cluster of real node processes, for tests: started, killed, paused and started again."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from cartwheel.client.resp import Connection
from cartwheel.core.errors import CartwheelError

DEADLINE_S = 60.0
"""Generous: it only bounds how long a broken test hangs."""


def wait_until(condition: Callable[[], Any], what: str) -> Any:
    """Poll until the condition is truthy, and return that."""
    end = time.monotonic() + DEADLINE_S
    pause = threading.Event()
    while time.monotonic() < end:
        try:
            if found := condition():
                return found
        except (CartwheelError, OSError):
            pass
        pause.wait(0.02)
    raise AssertionError(f"not within {DEADLINE_S} s: {what}")


def free_ports(count: int) -> list[int]:
    """Ports that the system says are free; all held at once, so they differ."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
    finally:
        for each in sockets:
            each.close()


class Cluster:
    """``size`` nodes, numbered from 1, on ports from the system, with their data under ``folder``."""

    def __init__(
        self,
        folder: Path,
        *,
        size: int = 3,
        engine: str = "rocksdb",
        program: Sequence[str] = ("-m", "cartwheel"),
        **settings: str,
    ) -> None:
        self.folder = folder
        self._program = program  # what Python is to run
        self.numbers = list(range(1, size + 1))
        ports = free_ports(2 * size)
        self.resp_port = dict(zip(self.numbers, ports[:size], strict=True))
        self.peer_port = dict(zip(self.numbers, ports[size:], strict=True))
        self._engine = engine
        self._settings = settings
        self._processes: dict[int, subprocess.Popen[bytes]] = {}
        secret = folder / "secret"
        secret.touch(mode=0o600)
        secret.write_text("0123456789abcdef" * 4)

    def __enter__(self) -> Cluster:
        for number in self.numbers:
            self.start(number)
        self.wait_whole()
        return self

    def __exit__(self, *exc: object) -> None:
        for process in self._processes.values():
            process.kill()
        for process in self._processes.values():
            process.wait()

    def start(self, number: int) -> None:
        """Start a node that does not run."""
        members = ",".join(f"n{k}=127.0.0.1:{self.peer_port[k]}" for k in self.numbers)
        flags = {
            "node": f"n{number}",
            "data": str(self.folder / f"n{number}"),
            "engine": self._engine,
            "resp-port": str(self.resp_port[number]),
            "initial-cluster": members,
            "secret-file": str(self.folder / "secret"),
            **self._settings,
        }
        command = [sys.executable, *self._program, "start"]
        for name, value in flags.items():
            command += [f"--{name}", value] if value else [f"--{name}"]
        environ = {k: v for k, v in os.environ.items() if not k.startswith("CARTWHEEL_")}
        with self.log(number).open("ab") as log:
            self._processes[number] = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, env=environ
            )

    def log(self, number: int) -> Path:
        """A node's output, of all its lives."""
        return self.folder / f"n{number}.log"

    def kill(self, number: int) -> None:
        """kill -9."""
        self._processes[number].kill()
        self._processes[number].wait()

    def stop(self, number: int) -> int:
        """SIGTERM; return the exit code."""
        self._processes[number].terminate()
        return self._processes[number].wait(DEADLINE_S)

    def pid(self, number: int) -> int:
        """The process of a node."""
        return self._processes[number].pid

    def ended(self, number: int) -> int:
        """Wait until a node ends by itself; return its exit code."""
        return self._processes[number].wait(DEADLINE_S)

    def send_signal(self, number: int, which: signal.Signals) -> None:
        """SIGSTOP or SIGCONT, for example."""
        self._processes[number].send_signal(which)

    def connect(self, number: int, timeout_s: float = 30.0) -> Connection:
        """A connection to a node's Redis door."""
        return Connection("127.0.0.1", self.resp_port[number], timeout_s=timeout_s)

    def call(self, number: int, *args: str | bytes | int) -> Any:
        """One command on a connection of its own."""
        with self.connect(number) as connection:
            return connection.call(*args)

    def status(self, number: int) -> dict[str, Any]:
        """A node's view."""
        found: dict[str, Any] = json.loads(self.call(number, "CW.STATUS", "JSON"))
        return found

    def explain(self, number: int, key: str | bytes) -> dict[str, Any]:
        """Where a key lives, and what each replica holds."""
        found: dict[str, Any] = json.loads(self.call(number, "CW.EXPLAIN", key, "JSON"))
        return found

    def wait_whole(self, *numbers: int) -> None:
        """Wait until each of these nodes (default: all) reaches all of them."""
        wanted = {f"n{k}" for k in numbers or self.numbers}

        def whole() -> bool:
            return all(
                wanted <= {m["node"] for m in self.status(k)["members"] if m["reachable"]}
                for k in numbers or self.numbers
            )

        wait_until(whole, f"{sorted(wanted)} reach one another; logs in {self.folder}")
