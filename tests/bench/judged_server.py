"""Small servers that answer SET and CW.GET, as the nodes of a judged load; what a test plants, they do wrong."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack, contextmanager

from tests.bench.resp_server import Command, RespServer

from cartwheel.bench.steady import LoadOptions

NO_MEMBER = b"-NOQUORUM n1 is no member of the cluster; ask one that is\r\n"
Answer = Callable[[RespServer, Command], bytes | None]
"""Returns None for: as an honest one would."""


def siblings(*values: bytes) -> bytes:
    """The reply of CW.GET."""
    bulks = b"".join(b"$%d\r\n%b\r\n" % (len(value), value) for value in values)
    return b"*2\r\n$7\r\ncontext\r\n*%d\r\n%b" % (len(values), bulks)


def honest(server: RespServer, command: Command) -> bytes:
    """As a node would."""
    if command[0] == b"CW.GET":
        return siblings(*([server.data[command[1]]] if command[1] in server.data else []))
    return server.honest(command)


@contextmanager
def cluster(*answers: Answer | None):
    """A server for each of these, all with the same data."""
    with ExitStack() as stack:
        servers = []
        for answer in answers:

            def reply(server: RespServer, command: Command, answer: Answer | None = answer) -> bytes:
                told = answer(server, command) if answer is not None else None
                return honest(server, command) if told is None else told

            servers.append(stack.enter_context(RespServer(reply)))
            servers[-1].data = servers[0].data
        yield servers


def options(servers: list[RespServer], **changes: object) -> LoadOptions:
    """A small load on all of these."""
    given: dict[str, object] = {
        "addresses": tuple(server.address for server in servers),
        "first": tuple(range(len(servers))),
        "keys": 20,
        "rate_per_s": 2000.0,
        "value_bytes": 32,
        "connections": 4,
        **changes,
    }
    return LoadOptions(**given)  # type: ignore[arg-type]
