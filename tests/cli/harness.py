"""What the tests of the command line share: running it, and keeping a local cluster."""

from __future__ import annotations

import io
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from unittest.mock import patch

from cartwheel.cli.main import run
from cartwheel.cli.supervisor import command_line

DEADLINE_S = 40.0
"""For anything that must happen sooner or later. A busy machine takes its time; a passing test never waits so long."""
NODES = 3


def wait_until(condition, what, deadline_s=DEADLINE_S):
    """Wait for a true value and return it. Fails, saying ``what`` did not come true."""
    deadline = time.monotonic() + deadline_s
    while not (value := condition()):
        assert time.monotonic() < deadline, f"not within {deadline_s:g} s: {what}"
        time.sleep(0.02)
    return value


def is_free(port):
    with socket.socket() as trial:
        trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            trial.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def free_base_port(nodes=NODES):
    """A port such that a local cluster's are all free."""
    while True:
        with socket.socket() as trial:
            trial.bind(("127.0.0.1", 0))
            base = trial.getsockname()[1]
        ports = [base + 10 * node + door for node in range(nodes) for door in (0, 2)]
        if ports[-1] <= 65535 and all(map(is_free, ports)):
            return base


def environment(home):
    """An environment without settings of the developer's own."""
    return {key: value for key, value in os.environ.items() if not key.startswith(("CARTWHEEL_", "XDG_"))} | {
        "HOME": str(home),
        "NO_COLOR": "1",
        "COLUMNS": "140",
    }


def cartwheel(*arguments, home, stdin=None, environ=None):
    """Run the command to its end."""
    return subprocess.run(
        [sys.executable, "-m", "cartwheel", *map(str, arguments)],
        capture_output=True,
        text=not isinstance(stdin, bytes),
        input=stdin,
        env=environment(home) | (environ or {}),
        timeout=DEADLINE_S,
        check=False,
    )


def invoke(*arguments, home, stdin=b""):
    """Run a command in this process: the same, but it saves starting a Python."""
    streams = [io.TextIOWrapper(io.BytesIO(data), "utf-8", write_through=True) for data in (stdin, b"", b"")]
    with (
        patch.dict(os.environ, environment(home), clear=True),
        patch.object(sys, "stdin", streams[0]),
        patch.object(sys, "stdout", streams[1]),
        patch.object(sys, "stderr", streams[2]),
    ):
        code = run([*map(str, arguments)])
    out, err = (stream.buffer.getvalue() for stream in streams[1:])
    if not stdin:
        out = out.decode("utf-8", "backslashreplace")
    return subprocess.CompletedProcess(arguments, code, out, err.decode())


def alive(pid):
    """Whether a process exists and is no zombie."""
    return command_line(pid) != ""


class Dev:
    """A running ``cartwheel dev``."""

    def __init__(self, directory: Path, *options, port=None, nodes=NODES):
        self.directory = directory
        self.home = directory.parent
        self.port = port or free_base_port(nodes)
        self.output = directory.parent / f"{directory.name}.out"
        command = [sys.executable, "-m", "cartwheel", "dev", "--data", directory, "--port", self.port, "--nodes", nodes]
        with self.output.open("wb") as output:
            self.process = subprocess.Popen(
                [*map(str, command), *options], stdout=output, stderr=output, env=environment(self.home)
            )

    def said(self, words):
        """Whether a line with these words was printed."""
        return next((line for line in self.output.read_text().splitlines() if words in line), None)

    def wait_ready(self):
        """Until it says so."""
        wait_until(lambda: self.said("Ctrl-C stops") or self.process.poll() is not None, "ready")
        assert self.process.poll() is None, self.output.read_text()
        return self

    def address(self, node):
        """Where node 1, 2, ... takes Redis clients."""
        return f"127.0.0.1:{self.port + 10 * (node - 1)}"

    def run(self, *arguments, **options):
        """A command as somebody else would give it."""
        return cartwheel(*arguments, home=self.home, **options)

    def at(self, node, *arguments, **options):
        """A client command, sent to node 1, 2, ..."""
        return invoke(*arguments, "--node", self.address(node), home=self.home, **options)

    def lever(self, *arguments, **options):
        """A sub-command of ``cartwheel dev``."""
        return invoke("dev", *arguments, "--data", self.directory, home=self.home, **options)

    def status(self):
        """What ``cartwheel dev status --json`` says of each node."""
        answer = json.loads(self.lever("status", "--json").stdout)
        return {row["node"]: row for row in answer["nodes"]}

    def pids(self):
        """The nodes' processes."""
        return [row["pid"] for row in self.status().values() if row["pid"]]

    def wait_whole(self):
        """Until every node serves and reaches every other."""
        wait_until(
            lambda: all(row["state"] == "serving" and row["unreachable"] == [] for row in self.status().values()),
            "all nodes serve and reach each other",
        )

    def end(self, number=signal.SIGINT):
        """Send a signal to the supervisor and wait for its end; its exit code."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        return self.process.wait(DEADLINE_S)
