"""What the tests of the Redis door stand on: a door on a thread of its own, one without sockets, and a bare client."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import hiredis
import pytest
from tests.resp.local import LocalGateway

from cartwheel.runtime.datadir import open_datadir
from cartwheel.runtime.resp.gateway import DoorSettings
from cartwheel.runtime.resp.protocol import Connection
from cartwheel.runtime.resp.server import RespServer
from cartwheel.runtime.server import Server, loop_factory
from cartwheel.runtime.settings import MemberSpec, ServerSettings, new_secret

DEADLINE_S = 20.0
"""Far above what anything here takes on a busy machine: it ends a test that would hang."""


def wait_until(condition: Callable[[], Any], what: str) -> Any:
    """Poll until the condition holds and return what it gave."""
    deadline = time.monotonic() + DEADLINE_S
    pause = threading.Event()
    while True:
        value = condition()
        if value:
            return value
        assert time.monotonic() < deadline, f"waited {DEADLINE_S} s for {what}"
        pause.wait(0.01)


class DoorThread:
    """A door with a gateway, on a loop in a thread."""

    def __init__(self, gateway: LocalGateway) -> None:
        self.gateway = gateway
        self.loop = asyncio.new_event_loop()
        self.server = RespServer(gateway, "127.0.0.1", 0)
        self._thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self._thread.start()
        asyncio.run_coroutine_threadsafe(self.server.start(), self.loop).result(DEADLINE_S)
        self.port = self.server.port

    def call(self, function: Callable[[], Any]) -> Any:
        """Run a function on the loop."""
        done: Future[Any] = Future()
        self.loop.call_soon_threadsafe(lambda: done.set_result(function()))
        return done.result(DEADLINE_S)

    def stop(self) -> None:
        asyncio.run_coroutine_threadsafe(self.server.stop(), self.loop).result(DEADLINE_S)
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(DEADLINE_S)
        self.loop.close()


class NodeThread:
    """A whole node with its door, on a loop in a thread."""

    def __init__(self, folder: Path) -> None:
        self.loop = (loop_factory() or asyncio.new_event_loop)()
        self._thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self._thread.start()
        self.node: Server = asyncio.run_coroutine_threadsafe(self._start(folder), self.loop).result(DEADLINE_S)
        self.server = self.node.resp
        self.gateway = self.node
        self.port = self.server.port

    async def _start(self, folder: Path) -> Server:
        settings = ServerSettings(
            data=folder,
            engine="memory",
            secret=new_secret(),
            resp_port=0,
            peer_port=0,
            q=16,
            initial_cluster=(MemberSpec("n1", "127.0.0.1:7702", host="h1"),),
        )
        datadir = open_datadir(
            folder, cluster=settings.cluster, node=settings.node, engine=settings.engine, q=settings.q
        )
        node = Server(settings, datadir)
        await node.start()
        return node

    def call(self, function: Callable[[], Any]) -> Any:
        """Run a function on the loop."""
        done: Future[Any] = Future()
        self.loop.call_soon_threadsafe(lambda: done.set_result(function()))
        return done.result(DEADLINE_S)

    def stop(self) -> None:
        halted = self.node.halted.done()
        asyncio.run_coroutine_threadsafe(self.node.stop(), self.loop).result(DEADLINE_S)
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(DEADLINE_S)
        self.loop.close()
        assert not halted, "the node halted: see the log"


@contextlib.contextmanager
def running_door(folder: Path | None = None, **settings: Any) -> Iterator[DoorThread | NodeThread]:
    """A door of its own for one test: with ``folder`` that of a whole node, else one over the double."""
    door: DoorThread | NodeThread
    if folder is None:
        door = DoorThread(LocalGateway(DoorSettings(**settings)))
    else:
        door = NodeThread(folder)
        for name, value in settings.items():
            setattr(door.gateway.settings, name, value)
    try:
        yield door
    finally:
        door.stop()


def encode(*args: bytes | str) -> bytes:
    """A command as clients send it."""
    raw = [arg.encode() if isinstance(arg, str) else arg for arg in args]
    return b"*%d\r\n" % len(raw) + b"".join(b"$%d\r\n%b\r\n" % (len(arg), arg) for arg in raw)


class Bare:
    """A client that sends bytes and reads replies."""

    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=DEADLINE_S)
        self.reader = hiredis.Reader(notEnoughData=...)

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def read(self) -> Any:
        """One reply; an error as its exception. EOFError: closed."""
        while True:
            found = self.reader.gets()
            if found is not ...:
                return found
            data = self.socket.recv(65536)
            if not data:
                raise EOFError
            self.reader.feed(data)

    def ask(self, *args: bytes | str) -> Any:
        self.send(encode(*args))
        return self.read()

    def error(self, *args: bytes | str) -> str:
        """The text of the error that the command must give."""
        found = self.ask(*args)
        assert isinstance(found, hiredis.ReplyError), found
        return str(found)

    def closed(self) -> bool:
        """Whether the other side closed, once all replies are read."""
        try:
            while self.read() is not None:
                pass
        except (EOFError, ConnectionError):
            return True
        return False

    def close(self) -> None:
        self.socket.close()

    def __enter__(self) -> Bare:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


class Wire(asyncio.Transport):
    """A transport without a socket: it keeps what is written."""

    def __init__(self) -> None:
        super().__init__()
        self.sent = bytearray()
        self.closed = False
        self.paused = False

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None: ...

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return ("127.0.0.1", 1)

    def get_write_buffer_size(self) -> int:
        return 0

    def write(self, data: bytes | bytearray | memoryview) -> None:
        assert not self.closed
        self.sent += data

    def is_closing(self) -> bool:
        return self.closed

    def close(self) -> None:
        self.closed = True

    def abort(self) -> None:
        self.closed = True

    def pause_reading(self) -> None:
        self.paused = True

    def resume_reading(self) -> None:
        self.paused = False


class InlineServer(RespServer):
    """A door without a loop: it flushes at once."""

    def flush_later(self, dirty: Connection) -> None:
        dirty.flush()


def wired(gateway: LocalGateway) -> tuple[Connection, Wire]:
    """A connection without sockets."""
    connection = Connection(InlineServer(gateway, "127.0.0.1", 0))
    wire = Wire()
    connection.connection_made(wire)
    return connection, wire


def replies_in(data: bytes | bytearray) -> list[Any]:
    """All replies in these bytes; errors as text."""
    reader = hiredis.Reader(notEnoughData=...)
    reader.feed(bytes(data))
    found = []
    while (one := reader.gets()) is not ...:
        found.append(str(one) if isinstance(one, hiredis.ReplyError) else one)
    return found


def tool(name: str) -> str:
    """The path of one of Redis's programs. Without it the test is skipped, but not in CI."""
    path = shutil.which(name)
    if path is None:
        assert not os.environ.get("CI"), f"CI must have {name}"
        pytest.skip(f"{name} is not installed")
    return path


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextlib.contextmanager
def running_redis(folder: Path) -> Iterator[int]:
    """A real Redis; its port."""
    port = free_port()
    args = [tool("redis-server"), "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", str(folder)]
    process = subprocess.Popen(args, stdout=subprocess.DEVNULL)

    def answers() -> bool:
        assert process.poll() is None, "redis-server ended"
        try:
            with Bare(port) as bare:
                return bool(bare.ask("PING") == b"PONG")
        except (ConnectionError, EOFError):
            return False

    try:
        wait_until(answers, "redis-server")
        yield port
    finally:
        process.terminate()
        process.wait(DEADLINE_S)
