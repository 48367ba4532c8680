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
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.cli.harness import invoke

from cartwheel.client.resp import Connection
from cartwheel.core.errors import CartwheelError

DEADLINE_S = 60.0
"""Generous: it only bounds how long a broken test hangs."""


def environment(build: Path | None = None) -> dict[str, str]:
    """An environment without settings of the developer's own.

    Args:
        build: a folder with another build of the package, which is imported in place of the one that the tests use.
    """
    found = {k: v for k, v in os.environ.items() if not k.startswith("CARTWHEEL_")}
    if build is not None:
        found["PYTHONPATH"] = os.pathsep.join([str(build), *filter(None, [found.get("PYTHONPATH")])])
        found["PYTHONSAFEPATH"] = "1"  # the working directory would come first, and may hold a package of that name
    return found


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
    """``size`` founding nodes, numbered from 1, on ports from the system, with their data under ``folder``. Up to ``more`` others
    can be started to join them, numbered on from there."""

    def __init__(
        self,
        folder: Path,
        *,
        size: int = 3,
        more: int = 0,
        zones: Mapping[int, str] | None = None,
        engine: str = "rocksdb",
        program: Sequence[str] = ("-m", "cartwheel"),
        build: Path | None = None,
        **settings: str,
    ) -> None:
        self.folder = folder
        self._program = program  # what Python is to run
        self.numbers = list(range(1, size + 1))
        self.builds: dict[int, Path] = {} if build is None else dict.fromkeys(self.numbers, build)
        """Nodes that are started from another build than that of the tests: the folder that it is in."""
        everyone = range(1, size + more + 1)
        ports = free_ports(2 * len(everyone))
        self.resp_port = dict(zip(everyone, ports[: len(everyone)], strict=True))
        self.peer_port = dict(zip(everyone, ports[len(everyone) :], strict=True))
        self._zones = zones or {}
        self._engine = engine
        self._settings = settings
        self._joins: dict[int, str] = {}  # the seeds of those that do not found the cluster
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

    def start(self, number: int, **flags: str) -> None:
        """Start a node that does not run. ``flags`` override its own; one whose value is "" is a flag without a value."""
        command = self._command({**self.flags(number), **flags})
        with self.log(number).open("ab") as log:
            self._processes[number] = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=environment(self.builds.get(number)),
            )

    def _command(self, flags: Mapping[str, str]) -> list[str]:
        command = [sys.executable, *self._program, "start"]
        for name, value in flags.items():
            flag = "--" + name.replace("_", "-")
            command += [flag, value] if value else [flag]
        return command

    def try_start(self, flags: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
        """Start a process that is expected to refuse, and wait for its end."""
        return subprocess.run(
            self._command(flags),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            env=environment(),
            timeout=DEADLINE_S,
            check=False,
        )

    def flags(self, number: int) -> dict[str, str]:
        """What a node is started with."""
        flags = {
            "node": f"n{number}",
            "data": str(self.folder / f"n{number}"),
            "engine": self._engine,
            "resp_port": str(self.resp_port[number]),
            "secret_file": str(self.folder / "secret"),
            **self._settings,
        }
        if number in self._joins:
            return {**flags, "peer_port": str(self.peer_port[number]), "join": self._joins[number]}
        return {**flags, "initial_cluster": self.founders()}

    def founders(self) -> str:
        """The list of those that found the cluster."""
        return ",".join(
            f"n{k}=127.0.0.1:{self.peer_port[k]}" + (f"/zone={self._zones[k]}" if k in self._zones else "")
            for k in self.numbers
        )

    def seed(self, *numbers: int) -> str:
        """Their ports for peers, as ``--join`` wants them."""
        return ",".join(f"127.0.0.1:{self.peer_port[k]}" for k in numbers)

    def join(self, number: int, *knowing: int, seeds: str = "", **flags: str) -> None:
        """Start one of the further nodes, and wait until these know its wish. They are its seeds, unless others are given."""
        self._joins[number] = seeds or self.seed(*knowing)
        self.start(number, **flags)
        self.wait_staged(f"n{number} joins", *knowing)

    def wait_staged(self, words: str, *numbers: int) -> None:
        """Wait until these nodes know of such a staged change."""

        def known() -> bool:
            return all(any(words in change for change in self.plan(k)["changes"]) for k in numbers)

        wait_until(known, f"{words!r} is staged; logs in {self.folder}")

    def plan(self, number: int) -> dict[str, Any]:
        """What the staged changes would do, as a node tells."""
        found: dict[str, Any] = json.loads(self.call(number, "CW.CLUSTER", "PLAN", "JSON"))
        return found

    def commit(self, number: int, *words: str) -> str:
        """Carry out what is staged."""
        return str(self.call(number, "CW.CLUSTER", "COMMIT", *words), "utf-8")

    def wait_settled(self, members: Iterable[int], also: Iterable[int] = ()) -> None:
        """Wait until these are the members in everyone's eyes, and nothing is handed over any more, nor to be removed.

        Args:
            also: nodes that run, and are no members.
        """
        members, names = list(members), {f"n{k}" for k in members}

        def settled() -> bool:
            views = [self.status(k) for k in [*members, *also]]
            transfers = [view["transfer"] for view in views]
            return all(
                {m["node"] for m in view["members"]} == names and not view["leaving"] for view in views
            ) and not any(each["gains"] or each["leftovers"] for each in transfers)

        wait_until(settled, f"{sorted(names)} have everything; logs in {self.folder}")

    def log(self, number: int) -> Path:
        """A node's output, of all its lives."""
        return self.folder / f"n{number}.log"

    def logs(self) -> str:
        """All that the nodes printed, for the report of a failure."""
        return "\n".join(self.log(k).read_text() for k in self.resp_port if self.log(k).exists())

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

    def cli(self, number: int, *arguments: str | int) -> subprocess.CompletedProcess[str]:
        """A client command, sent to a node."""
        done: subprocess.CompletedProcess[str] = invoke(
            *arguments, "--node", f"127.0.0.1:{self.resp_port[number]}", home=self.folder
        )
        return done

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
