"""What the standard benchmark measures: a fresh local cluster, and Redis in two tempers. Each runs while its ``with`` lasts."""

from __future__ import annotations

import csv
import json
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Self

from cartwheel.bench.buckets import CALL_TIMEOUT_S, POLL_S, set_durability
from cartwheel.bench.run import BenchFailed
from cartwheel.client.resp import CannotReach, Connection, ConnectionLost, ReplyError

START_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 20.0
TOOL_TIMEOUT_S = 300.0
DOORS_APART = 10
"""``cartwheel dev`` opens the Redis door of node i at its port + 10 * i."""
LOG_TAIL_BYTES = 2000
HOST = "127.0.0.1"


def program(*args: str) -> list[str]:
    """The command line of ``cartwheel``, in this Python."""
    return [sys.executable, "-m", "cartwheel", *args]


class Server:
    """A subprocess that writes to a log file."""

    def __init__(
        self,
        name: str,
        command: list[str],
        folder: Path,
        *,
        detached: bool = False,
        environment: dict[str, str] | None = None,
    ) -> None:
        """
        Args:
            detached: it hears no Ctrl-C. Its standard input is a pipe of ours instead, whose end tells it that we are gone.
        """
        folder.mkdir(parents=True, exist_ok=True)
        self.name = name
        self.log = folder / "log"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE if detached else subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=environment,
                start_new_session=detached,
            )

    def __enter__(self) -> Self:
        try:
            self.wait_ready()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def ready(self) -> bool:
        """Whether it serves."""
        raise NotImplementedError

    def wait_ready(self) -> None:
        """Wait until it serves.

        Raises:
            BenchFailed: it ended, or takes too long. With the end of its log.
        """
        deadline = time.monotonic() + START_TIMEOUT_S
        while not self.ready():
            code = self.process.poll()
            if code is not None or time.monotonic() > deadline:
                what = "is not ready yet" if code is None else f"ended with status {code}"
                raise BenchFailed(f"{self.name} {what}; the end of its log:\n{self.tail()}")
            time.sleep(POLL_S)

    def tail(self) -> str:
        """The end of its log."""
        return self.log.read_bytes()[-LOG_TAIL_BYTES:].decode(errors="replace").strip() or "(empty)"

    def stop(self) -> None:
        """Ask it to stop, and wait until it has. By SIGTERM: a job in the background, and its children, ignore SIGINT."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        if self.process.stdin is not None:
            self.process.stdin.close()


class Cluster(Server):
    """A fresh local cluster, by ``cartwheel dev``."""

    def __init__(self, nodes: int, port: int, folder: Path) -> None:
        self.data = folder / "data"
        self.ports = [port + DOORS_APART * number for number in range(nodes)]
        self._started = time.monotonic()
        self.ready_s = 0.0
        """From the start of the command to its line ``ready``, to the next 20 ms."""
        super().__init__(
            "cartwheel dev",
            program("dev", "--nodes", str(nodes), "--port", str(port), "--data", str(self.data), "--fresh"),
            folder,
        )

    @property
    def addresses(self) -> tuple[str, ...]:
        """The Redis doors."""
        return tuple(f"{HOST}:{port}" for port in self.ports)

    def ready(self) -> bool:
        """Whether the line that says so has come."""
        ready = any(line.startswith("ready") for line in self.log.read_text(errors="replace").splitlines())
        if ready and not self.ready_s:
            self.ready_s = time.monotonic() - self._started
        return ready

    def set_durability(self, durability: str) -> None:
        """Set the property of bucket 0, and wait until every node knows.

        Raises:
            BenchFailed: the cluster refuses, or it takes too long.
        """
        set_durability(self.addresses, "0", durability)

    def resident_bytes(self) -> list[int]:
        """The resident memory of each node.

        Raises:
            BenchFailed: ``cartwheel dev status`` does not tell.
        """
        command = program("dev", "status", "--data", str(self.data), "--json")
        done = subprocess.run(command, capture_output=True, timeout=TOOL_TIMEOUT_S, check=False)
        try:
            return [int(node["rss_bytes"]) for node in json.loads(done.stdout)["nodes"]]
        except (ValueError, TypeError, LookupError):
            shown = (done.stderr or done.stdout).decode(errors="replace")
            raise BenchFailed(f"cannot read `cartwheel dev status`: {shown}") from None


class Redis(Server):
    """A lone Redis."""

    def __init__(self, name: str, folder: Path, *options: str) -> None:
        self.port = _free_port()
        command = ["redis-server", "--bind", HOST, "--port", str(self.port), "--dir", str(folder), "--save", ""]
        super().__init__(name, [*command, *options], folder)

    def ready(self) -> bool:
        """Whether it answers."""
        try:
            with Connection(HOST, self.port, CALL_TIMEOUT_S) as connection:
                return connection.call("PING") == b"PONG"
        except (CannotReach, ConnectionLost, ReplyError):
            return False


def redis_version() -> str | None:
    """The version of the redis-server found here, or None if it or redis-benchmark is missing."""
    if shutil.which("redis-server") is None or shutil.which("redis-benchmark") is None:
        return None
    done = subprocess.run(["redis-server", "--version"], capture_output=True, text=True, check=True, timeout=10)
    return next((word[2:] for word in done.stdout.split() if word.startswith("v=")), "unknown")


def _free_port() -> int:
    with socket.socket() as sock:
        sock.bind((HOST, 0))
        return int(sock.getsockname()[1])


def redis_benchmark(port: int, test: str, *, pipeline: int, requests: int, keys: int, value_bytes: int) -> float:
    """Run redis-benchmark with 50 connections, on one key or on ``keys`` random ones; return the requests per second.

    Raises:
        BenchFailed: it failed, or the server answered with errors.
    """
    command = [
        *("redis-benchmark", "-h", HOST, "-p", str(port), "-c", "50", "-d", str(value_bytes)),
        *("-n", str(requests), *(("-r", str(keys)) if keys > 1 else ()), "-P", str(pipeline), "-t", test, "--csv"),
    ]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=TOOL_TIMEOUT_S, check=False)
    except subprocess.TimeoutExpired:
        raise BenchFailed(f"not done after {TOOL_TIMEOUT_S:g} s: {' '.join(command)}") from None
    rows = [row for row in csv.reader(done.stdout.splitlines()) if row and row[0] == test.upper()]
    if done.returncode or len(rows) != 1:
        raise BenchFailed(f"failed: {' '.join(command)}\n{done.stdout}{done.stderr}".strip())
    return float(rows[0][1])
