"""One synchronous connection that speaks RESP2, for our own tools: the command line, the demo, the bench.

Not a client library: it neither pools nor reconnects (an application takes any Redis client, or ours). What it adds to a socket
is errors that tell a person what to do, and patience with a node that has too much to do: ``call`` tries a few times more when it
is answered BUSY, which means that nothing was done, each time after a longer pause. Not safe for use by several threads at once.

Invariant: replies come in the order of their requests, so a connection on which one is missing (after a timeout, say) is of
no further use, and is closed.
"""

from __future__ import annotations

import random
import socket
import time
from collections.abc import Iterable, Sequence
from itertools import count
from types import TracebackType
from typing import Self, TypeAlias

import hiredis

from cartwheel.core.errors import CartwheelError, ConfigError

Argument: TypeAlias = bytes | str | int | float
Reply: TypeAlias = "bytes | int | list[Reply] | ReplyError | None"
"""A ``ReplyError`` only within a list or a pipeline; ``Connection.call`` raises it."""

READ_BYTES = 64 * 1024
PORT_MAX = 65535
BUSY_TRIES = 4
BUSY_PAUSE_S = 0.05
"""The first pause after BUSY, on average; each one is twice as long as the one before, and drawn anew, lest all clients come back
at once."""


class ReplyError(CartwheelError):
    """The node answered with an error: ``code`` is its first word (``NOQUORUM``), ``text`` the rest."""

    def __init__(self, code: str, text: str) -> None:
        super().__init__(f"{code} {text}".strip())
        self.code = code
        self.text = text

    @property
    def is_busy(self) -> bool:
        """The node had too much to do and did nothing: trying again a little later is safe."""
        return self.code == "BUSY" and "outcome unknown" not in self.text

    @classmethod
    def parse(cls, line: str) -> ReplyError:
        """Make one from the line of an error reply, without its ``-``."""
        code, _, text = line.partition(" ")
        return cls(code, text)


class CannotReach(CartwheelError):
    """No connection could be made: nothing was sent."""


class ConnectionLost(CartwheelError):
    """The connection broke, or no reply came in time. Requests without a reply may have been carried out, or may yet be."""


def pack_command(*args: Argument) -> bytes:
    """Encode a request: its name and arguments, each a bulk string. Text is encoded as UTF-8."""
    packed: bytes = hiredis.pack_command(args)  # type: ignore[arg-type] # its stub says: a tuple of one
    return packed


def parse_address(text: str, default_port: int = 7700) -> tuple[str, int]:
    """Split ``host:port``, ``[::1]:port``, ``:port`` or ``host``.

    Raises:
        ConfigError: the port is no number between 1 and 65535.
    """
    host, colon, port = text.rpartition(":")
    if not colon or port.endswith("]") or (":" in host and not host.endswith("]")):
        host, port = text, str(default_port)  # no port, or a bare IPv6 address
    if not (port.isascii() and port.isdigit() and 1 <= int(port) <= PORT_MAX):
        raise ConfigError(f"{text!r} is not a node's address: write host:port, like 127.0.0.1:{default_port}")
    return host.removeprefix("[").removesuffix("]") or "127.0.0.1", int(port)


class Connection:
    """A connection to one node. Opened at once; close it with ``close`` or by leaving the ``with`` block.

    Raises:
        CannotReach: nobody listens there, the name is unknown, or the connection took longer than ``timeout_s``.
    """

    def __init__(self, host: str = "127.0.0.1", port: int = 7700, timeout_s: float = 5.0) -> None:
        self.address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        self.timeout_s = timeout_s
        """How long to wait for the connection, and then for each read of replies and write of requests."""
        self._reader = hiredis.Reader(replyError=ReplyError.parse, protocolError=ConnectionLost)
        try:
            self._socket = socket.create_connection((host, port), timeout_s)
        except ConnectionRefusedError:
            reason = "connection refused; is it running? try 'cartwheel dev'"
        except TimeoutError:
            reason = f"no answer within {timeout_s:g} s; is the address right, or a firewall in the way?"
        except socket.gaierror:
            reason = f"there is no host of the name {host!r}"
        except OSError as error:
            reason = error.strerror or str(error)
        else:
            self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            return
        raise CannotReach(f"cannot reach a node at {self.address}: {reason}")

    def call(self, *args: Argument) -> Reply:
        """Send one request and wait for its reply. On BUSY it pauses and tries again, ``BUSY_TRIES`` times in all.

        Raises:
            ReplyError: the node refused or failed.
            ConnectionLost: the outcome is unknown; the connection is closed.
        """
        for attempt in count():
            (reply,) = self.pipeline([args])
            if not isinstance(reply, ReplyError):
                return reply
            if not reply.is_busy or attempt == BUSY_TRIES - 1:
                raise reply
            time.sleep(BUSY_PAUSE_S * 2**attempt * random.uniform(0.5, 1.5))
        raise AssertionError("count() never ends")

    def pipeline(self, commands: Iterable[Sequence[Argument]]) -> list[Reply]:
        """Send many requests at once and wait for all replies, in order. Error replies are in the list, not raised.

        All requests are written before the first reply is read: a pipeline whose requests and replies both exceed the
        sockets' buffers (some hundred KiB) can wait for itself until the timeout. Send such in pieces.

        Raises:
            ConnectionLost: the outcome of every request is unknown; the connection is closed.
        """
        packed = [pack_command(*command) for command in commands]
        try:
            if packed:
                self._socket.sendall(b"".join(packed))
            return [self._read_reply() for _ in packed]
        except TimeoutError:
            reason = f"the node at {self.address} did not answer within {self.timeout_s:g} s"
        except ConnectionLost as error:
            reason = f"the peer at {self.address} does not speak the Redis protocol: {error}" if str(error) else ""
        except OSError:
            reason = ""
        self.close()
        raise ConnectionLost(reason or f"the node at {self.address} closed the connection before it had answered")

    def _read_reply(self) -> Reply:
        while True:
            reply: Reply | bool = self._reader.gets()
            if not isinstance(reply, bool):  # False: not complete yet. RESP2 has no booleans of its own.
                return reply
            data = self._socket.recv(READ_BYTES)
            if not data:
                raise ConnectionLost
            self._reader.feed(data)

    def close(self) -> None:
        """Close the connection; once more does nothing."""
        self._socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
