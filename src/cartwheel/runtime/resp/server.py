"""The Redis door: listens, keeps its connections and counts, and flushes their output once per loop turn."""

from __future__ import annotations

import asyncio

from cartwheel.runtime.resp import (  # noqa: F401  # importing a module of commands fills the table
    batch,
    cluster,
    connection,
    expiry,
    introspection,
    keyspace,
    own,
    refused,
    strings,
    writes,
)
from cartwheel.runtime.resp.gateway import Gateway
from cartwheel.runtime.resp.protocol import Connection
from cartwheel.runtime.resp.registry import find

SWEEP_S = 1.0
"""How often idle and stalled connections are looked for."""


class RespServer:
    """The door. ``start`` and ``stop`` it on a running loop."""

    def __init__(self, gateway: Gateway, host: str, port: int) -> None:
        self.gateway = gateway
        self.settings = gateway.settings
        self.host = host
        self.port = port
        """After ``start``: the one listened on, where 0 was asked for."""
        self.connections: dict[int, Connection] = {}
        self.tick = 0
        """Seconds since the start, roughly: cheap to note on every chunk."""
        self.siblings_hidden = 0
        """Plain reads that showed one of several concurrent values (``resp_siblings_hidden``)."""
        self.closes = False
        """It takes no more requests."""
        self.reset_counts()
        self._next_id = 0
        self._dirty: list[Connection] = []
        self._listening: asyncio.Server | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._sweeper: asyncio.TimerHandle | None = None

    async def start(self) -> None:
        """Listen.

        Raises:
            OSError: the port is taken, or the address is not ours.
        """
        self._loop = asyncio.get_running_loop()
        self._listening = await self._loop.create_server(lambda: Connection(self), self.host, self.port, backlog=511)
        self.port = self._listening.sockets[0].getsockname()[1]
        self._sweeper = self._loop.call_later(SWEEP_S, self._sweep)

    def close_door(self) -> None:
        """Take no more requests: no new connections, and nothing more from those that are open. What is under way is answered."""
        self.closes = True
        if self._listening is not None:
            self._listening.close()
        for each in self.connections.values():
            each.pause_reading()

    @property
    def unanswered(self) -> bool:
        """Whether a request that was read has no reply yet, or a reply is not on its way."""
        return any(each.pending or each.waiting or each.out or each.unsent for each in self.connections.values())

    async def stop(self) -> None:
        """Close the port and all connections. Requests under way are answered to nobody."""
        if self._listening is None:
            return
        self._listening.close()
        if self._sweeper is not None:
            self._sweeper.cancel()
        for each in list(self.connections.values()):
            each.kill()
        await self._listening.wait_closed()
        self._listening = None

    def reset_counts(self) -> None:
        """Begin counting anew."""
        self.commands = self.accepted = self.rejected = 0
        self.bytes_in = self.bytes_out = self.siblings_hidden = 0

    # --- the connections' side ---

    def opened(self, made: Connection) -> None:
        """Take a new connection in, or turn it away."""
        self._next_id += 1
        made.id = self._next_id
        made.seen_tick = self.tick
        if len(self.connections) >= self.settings.clients_max:
            self.rejected += 1
            made.closing = True
            made.transport.write(b"-ERR max number of clients reached\r\n")
            made.transport.close()
            return
        self.accepted += 1
        self.connections[made.id] = made

    def lost(self, gone: Connection) -> None:
        """A connection is closed."""
        self.connections.pop(gone.id, None)

    def flush_later(self, dirty: Connection) -> None:
        """Flush this connection at the end of the loop's turn, together with the others."""
        if not self._dirty:
            assert self._loop is not None
            self._loop.call_soon(self._flush)
        self._dirty.append(dirty)

    def _flush(self) -> None:
        dirty, self._dirty = self._dirty, []
        for each in dirty:
            each.flush()

    def limit(self, args: list[bytes], total: int, length: int) -> str | None:
        """Why the next argument, of ``length`` bytes, may not be buffered; None: it may.

        Which bucket a value is for is known for certain only when its command runs, so the largest limit of all buckets
        holds here; the node checks the bucket's own.
        """
        gateway = self.gateway
        props = [gateway.bucket_props(name) for name in {*gateway.buckets(), "0"}]
        command = find(args[0]) if args else None
        if command is not None and command.keys.first == len(args):
            most = max(each.key_bytes_max for each in props)
            if length > most:
                return f"TOOBIG key of {length} bytes exceeds the limit of {most} bytes (bucket property key_bytes_max)"
        most = max(each.value_bytes_max for each in props)
        if length > most:
            return f"TOOBIG value of {length} bytes exceeds the limit of {most} bytes (bucket property value_bytes_max)"
        most = self.settings.command_bytes_max
        if total > most:
            return f"TOOBIG command of {total} bytes or more exceeds the limit of {most} bytes (command_bytes_max)"
        return None

    def _sweep(self) -> None:
        assert self._loop is not None
        self.tick += 1
        self._sweeper = self._loop.call_later(SWEEP_S, self._sweep)
        idle = self.settings.idle_timeout_s
        for each in list(self.connections.values()):
            unsent = each.unsent
            if unsent > self.settings.output_bytes_max and unsent >= each.unsent_before > 0:
                each.kill()  # it takes nothing of what it asked for
            elif idle and not each.under_way and self.tick - each.seen_tick > idle:
                each.kill()
            each.unsent_before = unsent
