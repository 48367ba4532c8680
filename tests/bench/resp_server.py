"""A small Redis-speaking server in a thread, as the other end for clients under test.

It keeps values in a dict and does what it is told to: ``answer`` may be replaced to inject errors, garbage, or a hang-up.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable

import hiredis

Command = list[bytes]
HANG_UP = b""
"""As an answer: close the connection instead."""
SILENCE = b"\0"
"""As an answer: none, ever."""


class RespServer:
    """Use with ``with``; then ``port`` is where it listens."""

    def __init__(self, answer: Callable[[RespServer, Command], bytes] | None = None) -> None:
        self.data: dict[bytes, bytes] = {}
        self.commands: list[Command] = []
        """All that came, in order."""
        self.open: set[asyncio.Transport] = set()
        self.port = 0
        self.answer = answer or RespServer.honest
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)

    def honest(self, command: Command) -> bytes:
        """Answer as Redis would."""
        match command:
            case [b"PING"]:
                return b"+PONG\r\n"
            case [b"SET", key, value]:
                self.data[key] = value
                return b"+OK\r\n"
            case [b"GET", key]:
                found = self.data.get(key)
                return b"$-1\r\n" if found is None else b"$%d\r\n%b\r\n" % (len(found), found)
        return b"-ERR unknown command\r\n"

    def __enter__(self) -> RespServer:
        self._thread.start()
        starting = self._loop.create_server(lambda: _Protocol(self), "127.0.0.1", 0)
        self._server = asyncio.run_coroutine_threadsafe(starting, self._loop).result()
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    def __exit__(self, *_: object) -> None:
        async def stop() -> None:
            await self._stop_listening()
            while self.open:
                for transport in list(self.open):
                    transport.abort()
                await asyncio.sleep(0)

        asyncio.run_coroutine_threadsafe(stop(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def refuse_connections(self) -> None:
        """Listen no more; open connections stay."""

        asyncio.run_coroutine_threadsafe(self._stop_listening(), self._loop).result()

    async def _stop_listening(self) -> None:
        # Each connection that is being accepted is a task, which would fail on a closed server and leak its socket.
        while accepting := asyncio.all_tasks() - {asyncio.current_task()}:
            await asyncio.wait(accepting)
        self._server.close()

    @property
    def address(self) -> str:
        """host:port."""
        return f"127.0.0.1:{self.port}"


class _Protocol(asyncio.Protocol):
    def __init__(self, server: RespServer) -> None:
        self._server = server
        self._reader = hiredis.Reader()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._server.open.add(transport)

    def connection_lost(self, exc: Exception | None) -> None:
        del exc
        self._server.open.discard(self._transport)

    def data_received(self, data: bytes) -> None:
        self._reader.feed(data)
        out: list[bytes] = []
        while (command := self._reader.gets()) is not False:
            self._server.commands.append(command)
            answer = self._server.answer(self._server, command)
            if answer == HANG_UP:
                self._transport.write(b"".join(out))
                self._transport.close()
                return
            if answer != SILENCE:
                out.append(answer)
        self._transport.write(b"".join(out))
