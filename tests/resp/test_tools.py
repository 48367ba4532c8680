"""redis-cli and redis-benchmark, in all the ways that people run them."""

from __future__ import annotations

import fcntl
import os
import pty
import select
import struct
import subprocess
import termios
import time
from typing import Any

import pytest
from tests.resp.door import DEADLINE_S, encode, tool


def cli(door: Any, *args: str, given: bytes = b"") -> str:
    """What redis-cli prints; it must end well and complain of nothing."""
    command = [tool("redis-cli"), "-p", str(door.port), *args]
    ended = subprocess.run(command, input=given, capture_output=True, timeout=DEADLINE_S * 3, check=False)
    assert ended.returncode == 0, ended
    assert ended.stderr == b""
    return ended.stdout.decode()


class Terminal:
    """A program in a terminal of its own."""

    def __init__(self, *command: str) -> None:
        self.fd, inner = pty.openpty()
        fcntl.ioctl(inner, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 200, 0, 0))
        environment = os.environ | {"TERM": "xterm", "HOME": "/nonexistent"}
        self.process = subprocess.Popen(command, stdin=inner, stdout=inner, stderr=inner, env=environment)
        os.close(inner)
        self.unread = ""

    def read_until(self, text: str) -> str:
        """All that is shown until ``text`` is; what comes after it is left for the next call."""
        deadline = time.monotonic() + DEADLINE_S
        while text not in self.unread:
            assert time.monotonic() < deadline, f"{text!r} is not in {self.unread!r}"
            if select.select([self.fd], [], [], 0.5)[0]:
                self.unread += os.read(self.fd, 65536).decode("utf-8", "replace")
        before, _, self.unread = self.unread.partition(text)
        return before + text

    def type(self, text: str) -> None:
        os.write(self.fd, text.encode())

    def __enter__(self) -> Terminal:
        return self

    def __exit__(self, *exc: object) -> None:
        self.process.kill()
        self.process.wait(DEADLINE_S)
        os.close(self.fd)


@pytest.mark.parametrize("options", [(), ("-3",), ("-n", "3"), ("-c",)])
def test_one_command(door, key, options):
    """A value written is read, in both versions, in a database, and by a client that would follow a cluster."""
    assert cli(door, *options, "ping") == "PONG\n"
    assert cli(door, *options, "set", key, "a value") == "OK\n"
    assert cli(door, *options, "get", key) == "a value\n"
    assert cli(door, *options, "mget", key, "none") == "a value\n\n"


def test_a_password_where_none_is_needed_only_warns(door):
    """As with Redis."""
    command = [tool("redis-cli"), "-p", str(door.port), "-a", "x", "ping"]
    ended = subprocess.run(command, capture_output=True, timeout=DEADLINE_S, check=False)
    assert ended.stdout == b"PONG\n"
    assert b"without any password configured" in ended.stderr


def test_scan(door, key):
    """--scan walks all keys."""
    names = {f"{key}/{number}" for number in range(5)}
    for name in names:
        cli(door, "set", name, "v")
    found = cli(door, "--scan").splitlines()
    assert sorted(name for name in found if name in names) == sorted(names)


@pytest.mark.parametrize("mode", ["--bigkeys", "--memkeys"])
def test_big_keys(door, key, mode):
    """They sample every key."""
    cli(door, "set", key, "v" * 5000)
    shown = cli(door, mode)
    assert "strings with" in shown
    assert "Sampled" in shown


def test_mass_insertion(door, key):
    """--pipe counts a reply for each command."""
    data = b"".join(encode("SET", f"{key}/{number}", "v" * number) for number in range(3000))
    shown = cli(door, "--pipe", given=data)
    assert "errors: 0, replies: 3000" in shown
    assert cli(door, "strlen", f"{key}/2999") == "2999\n"


def test_a_script_of_commands(door, key):
    """Lines on standard input, with quotes."""
    given = f'set "{key}" "a\\x00b"\nstrlen "{key}"\ncw.get "{key}/none"\n'.encode()
    assert cli(door, given=given).splitlines()[:2] == ["OK", "3"]


def test_stat(door):
    """--stat reads INFO once a second."""
    with Terminal(tool("redis-cli"), "-p", str(door.port), "--stat", "-i", "0.1") as terminal:
        terminal.read_until("------- data ------")
        terminal.read_until("(+1)")


def test_latency(door):
    """--latency measures."""
    with Terminal(tool("redis-cli"), "-p", str(door.port), "--latency") as terminal:
        terminal.read_until("samples)")


def test_interactive_hints_and_help(door, key):
    """It starts without an error, hints at our own commands, and answers."""
    with Terminal(tool("redis-cli"), "-p", str(door.port)) as terminal:
        prompt = f"{door.port}> "
        assert "rror" not in terminal.read_until(prompt)
        terminal.type("CW.GET ")
        terminal.read_until("key [R replicas] [BUCKET bucket]")
        terminal.type(f"{key}\r")
        terminal.read_until("(empty array)\r\n127.0.0.1:" + prompt)  # what is typed before the prompt is thrown away
        terminal.type("help CW.PUT\r")
        terminal.read_until("supersedes what the context covers")
        terminal.read_until(prompt)
        terminal.type("SET ")
        terminal.read_until("[EX seconds|PX milliseconds|EXAT unix-time-seconds|PXAT unix-time-milliseconds|KEEPTTL]")


@pytest.mark.parametrize("options", [(), ("-P", "16"), ("-3",), ("-r", "50")])
def test_benchmark(door, options):
    """It ends well, measures all, and warns of nothing."""
    command = [tool("redis-benchmark"), "-p", str(door.port), "-q", "-t", "ping,set,get,mset", "-n", "500", *options]
    ended = subprocess.run(command, capture_output=True, timeout=DEADLINE_S * 3, check=False)
    assert ended.returncode == 0
    assert ended.stderr == b""
    shown = ended.stdout.decode()
    assert shown.count("requests per second") == 5
    assert "WARNING" not in shown
    assert "rror" not in shown
