"""Commands about the connection itself."""

from __future__ import annotations

import hmac
from typing import TYPE_CHECKING

from cartwheel import __version__
from cartwheel.runtime.resp import reply
from cartwheel.runtime.resp.registry import Args, command
from cartwheel.runtime.resp.reply import CommandError

if TYPE_CHECKING:
    from cartwheel.runtime.resp.protocol import Connection

REDIS_VERSION = "7.4.0"
"""What clients may take for granted: GETEX, GETDEL, SET GET, but no vector sets or hash-field expiry."""
DATABASES = 16

_NO_PASSWORD = (
    "ERR AUTH <password> called without any password configured for the default user. Are you sure your configuration"
    " is correct?"
)


@command("PING [message]", "Answers PONG, or the message.", group="connection", flags="fast")
def ping(connection: Connection, args: Args) -> bytes:
    if len(args) == 1:
        return reply.PONG
    if len(args) > 2:
        raise CommandError("ERR wrong number of arguments for 'ping' command")
    return reply.bulk(args[1])


@command("ECHO message", "Answers the message.", group="connection", flags="fast")
def echo(connection: Connection, args: Args) -> bytes:
    return reply.bulk(args[1])


def _authenticate(connection: Connection, user: bytes, password: bytes) -> None:
    wanted = connection.gateway.settings.password.encode()
    if not wanted and user != b"default":
        raise CommandError("WRONGPASS invalid username-password pair or user is disabled.")
    if wanted and (user != b"default" or not hmac.compare_digest(password, wanted)):
        raise CommandError("WRONGPASS invalid username-password pair or user is disabled.")
    connection.trusted = connection.parser.trusted = True


@command(
    "AUTH [username] password", "Authenticates the connection.", group="connection", flags="noscript fast no_auth", untrusted=True
)
def auth(connection: Connection, args: Args) -> bytes:
    if len(args) > 3:
        raise CommandError(reply.SYNTAX_ERROR)
    if len(args) == 2 and not connection.gateway.settings.password:
        raise CommandError(_NO_PASSWORD)
    _authenticate(connection, b"default" if len(args) == 2 else args[1], args[-1])
    return reply.OK


@command(
    "HELLO [protover [AUTH username password] [SETNAME clientname]]",
    "Chooses the version of the protocol.",
    group="connection",
    flags="noscript fast no_auth",
    barrier=True,
    untrusted=True,
)
def hello(connection: Connection, args: Args) -> bytes:
    version = 3 if connection.resp3 else 2
    if len(args) > 1:
        try:
            version = int(args[1])
        except ValueError:
            raise CommandError("ERR Protocol version is not an integer or out of range") from None
        if version not in {2, 3}:
            raise CommandError("NOPROTO unsupported protocol version")
    name: bytes | None = None
    at = 2
    while at < len(args):
        option = args[at].upper()
        if option == b"AUTH" and at + 2 < len(args):
            _authenticate(connection, args[at + 1], args[at + 2])
            at += 3
        elif option == b"SETNAME" and at + 1 < len(args):
            name = check_name(args[at + 1])
            at += 2
        else:
            raise CommandError(f"ERR Syntax error in HELLO option '{args[at].decode('utf-8', 'replace')}'")
    if not connection.trusted:
        raise CommandError(
            "NOAUTH HELLO must be called with the client already authenticated, otherwise the HELLO <proto> AUTH <user>"
            " <pass> option can be used to authenticate the client and select the RESP protocol version at the same time"
        )
    if name is not None:
        connection.name = name
    connection.set_protocol(version)
    return reply.plain(
        {
            "server": "redis",
            "version": REDIS_VERSION,
            "proto": version,
            "id": connection.id,
            "mode": "standalone",
            "role": "master",
            "modules": [],
            "server_name": "cartwheel",
            "cartwheel_version": __version__,
        },
        connection.resp3,
    )


def check_name(name: bytes) -> bytes:
    """A client's name, which CLIENT LIST shows between spaces.

    Raises:
        CommandError: it would break the list.
    """
    if any(not 33 <= char <= 126 for char in name):
        raise CommandError("ERR Client names cannot contain spaces, newlines or special characters.")
    return name
