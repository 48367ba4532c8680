"""The network between the nodes: a TCP relay with a port for each ordered pair, whose directions can be cut.

    a ── dials ──> port (a, b) ── relays ──> b's own port for peers

Each node is told (setting ``dial``) to reach its peers here. A connection that a dialed carries two **pipes**: (a, b) forward and
(b, a) backward. ``cut`` of the direction (a, b) stops both pipes that carry bytes from a to b: the forward one of what a
dialed, the backward one of what b dialed. So a split is cut like a cable, whoever opened the connection.

A cut is silent, as in a network: bytes are held, not lost (we cease to read; the kernel's buffers fill and the sender waits), and
nobody is told that a connection was closed at the far end until the news can travel. A new connection is accepted, for a dialer
cannot tell a lost SYN from a slow one, but goes no further until both its directions are open. After ``heal`` what was held
arrives, as TCP would have sent it again.

Bounded: a pipe holds what one read gave, and what a connection sent before it was relayed (``EARLY_BYTES_MAX``).
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections import Counter
from collections.abc import Iterable, Mapping
from functools import partial
from typing import cast

from cartwheel.chaos.history import Direction
from cartwheel.core.types import NodeId

HOST = "127.0.0.1"
EARLY_BYTES_MAX = 64 * 1024


class _End(asyncio.Protocol):
    """One end of a relayed connection: what it reads goes to the other end's socket."""

    def __init__(self, relay: _Relay, direction: Direction) -> None:
        self.relay = relay
        self.direction = direction
        """Where the bytes go that this end reads."""
        self.transport: asyncio.Transport | None = None
        self.choked = False
        """The other end takes no more for now."""
        self.closed = False
        self.early = bytearray()
        """Read before there was another end."""
        self._reading = True

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        sock = self.transport.get_extra_info("socket")
        if sock is not None:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.relay.made(self)

    def data_received(self, data: bytes) -> None:
        self.relay.read(self, data)

    def pause_writing(self) -> None:
        self.relay.other(self).choked = True
        self.relay.other(self).adjust()

    def resume_writing(self) -> None:
        self.relay.other(self).choked = False
        self.relay.other(self).adjust()

    def connection_lost(self, exc: Exception | None) -> None:
        self.closed = True
        self.relay.lost(self)

    def adjust(self) -> None:
        """Read if, and only if, what is read can go on."""
        if self.transport is None or self.closed or self.transport.is_closing():
            return
        wanted = self.relay.may_read(self)
        if wanted and not self._reading:
            self.transport.resume_reading()
        elif self._reading and not wanted:
            self.transport.pause_reading()
        self._reading = wanted

    def write(self, data: bytes | bytearray) -> None:
        if self.transport is not None and not self.transport.is_closing():
            self.transport.write(data)

    def close(self) -> None:
        """Close after what was written has left."""
        if self.transport is not None:
            self.transport.close()


class _Relay:
    """A connection that ``dialer`` made to ``target``, through us."""

    def __init__(self, proxy: Proxy, dialer: NodeId, target: NodeId) -> None:
        self.proxy = proxy
        self.dialer = _End(self, (dialer, target))
        self.target = _End(self, (target, dialer))
        self._joining: asyncio.Task[None] | None = None

    def other(self, end: _End) -> _End:
        return self.target if end is self.dialer else self.dialer

    @property
    def open(self) -> bool:
        """Whether both directions are: a handshake needs both."""
        return not self.proxy.cuts & {self.dialer.direction, self.target.direction}

    def may_read(self, end: _End) -> bool:
        if end is self.dialer and self.target.transport is None:
            return len(end.early) < EARLY_BYTES_MAX  # read on, to notice when the dialer gives up
        return end.direction not in self.proxy.cuts and not end.choked

    def made(self, end: _End) -> None:
        if end is self.dialer:
            self.proxy.relays.add(self)
            self._join()
            return
        if self.dialer.early:
            self.proxy.carried[self.dialer.direction] += len(self.dialer.early)
            end.write(self.dialer.early)
            self.dialer.early.clear()
        if self.dialer.closed:
            end.close()
        self.adjust()

    def read(self, end: _End, data: bytes) -> None:
        other = self.other(end)
        if other.transport is None:
            end.early += data
            end.adjust()
            return
        self.proxy.carried[end.direction] += len(data)
        other.write(data)

    def lost(self, end: _End) -> None:
        """One side is gone. The other learns of it once the news can travel."""
        other = self.other(end)
        if end.direction not in self.proxy.cuts:
            other.close()
        if end.closed and (other.closed or other.transport is None):
            self.proxy.relays.discard(self)
            if self._joining is not None and other.transport is None:
                self._joining.cancel()

    def adjust(self) -> None:
        """The cuts have changed."""
        self._join()
        for end in (self.dialer, self.target):
            end.adjust()
            if end.closed and end.direction not in self.proxy.cuts:
                self.other(end).close()

    def _join(self) -> None:
        """Connect to the target, as soon as that could succeed."""
        if self.open and self._joining is None and not self.dialer.closed:
            self._joining = asyncio.get_running_loop().create_task(self._connect())

    async def _connect(self) -> None:
        port = self.proxy.targets[self.target.direction[0]]
        try:
            await asyncio.get_running_loop().create_connection(lambda: self.target, HOST, port)
        except OSError:
            self.dialer.close()

    def drop(self) -> None:
        """Reset both sides."""
        if self._joining is not None:
            self._joining.cancel()
        for end in (self.dialer, self.target):
            if end.transport is not None:
                end.transport.abort()


class Proxy:
    """All pairs. ``targets``: each node's own port for peers."""

    def __init__(self, targets: Mapping[NodeId, int]) -> None:
        self.targets = dict(targets)
        self.cuts: frozenset[Direction] = frozenset()
        self.relays: set[_Relay] = set()
        self.ports: dict[Direction, int] = {}
        """Where the first of a pair dials the second."""
        self.carried: Counter[Direction] = Counter()
        """Bytes taken on, by direction."""
        self._servers: list[asyncio.Server] = []

    async def start(self) -> None:
        """Listen for all pairs, on ports from the system."""
        loop = asyncio.get_running_loop()
        for a in sorted(self.targets):
            for b in sorted(self.targets):
                if a != b:
                    server = await loop.create_server(partial(self._accept, a, b), HOST, 0)
                    self.ports[a, b] = server.sockets[0].getsockname()[1]
                    self._servers.append(server)

    def _accept(self, dialer: NodeId, target: NodeId) -> asyncio.Protocol:
        return _Relay(self, dialer, target).dialer

    def dial(self, node: NodeId) -> str:
        """The setting ``dial`` of a node."""
        return ",".join(f"{b}={HOST}:{port}" for (a, b), port in sorted(self.ports.items()) if a == node)

    def seed(self, node: NodeId, other: NodeId) -> str:
        """Where ``node`` finds ``other``, for its setting ``join``."""
        return f"{HOST}:{self.ports[node, other]}"

    def cut(self, directions: Iterable[Direction]) -> None:
        """Cut exactly these directions; whatever else was cut is healed."""
        self.cuts = frozenset(directions)
        for relay in list(self.relays):
            relay.adjust()

    def heal(self) -> None:
        """All directions carry again, and what was held arrives."""
        self.cut(())

    async def stop(self) -> None:
        """Close everything."""
        for server in self._servers:
            server.close()
        for relay in list(self.relays):
            relay.drop()
        for server in self._servers:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(server.wait_closed(), 1.0)
