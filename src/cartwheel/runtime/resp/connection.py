"""Commands about the connection itself."""

from __future__ import annotations

import hmac
from typing import TYPE_CHECKING

from cartwheel import __version__
from cartwheel.runtime.resp import reply
from cartwheel.runtime.resp.access import integer, text
from cartwheel.runtime.resp.registry import Args, command, container
from cartwheel.runtime.resp.reply import CommandError

if TYPE_CHECKING:
    from cartwheel.runtime.resp.protocol import Connection

REDIS_VERSION = "7.4.0"
"""What clients may take for granted: GETEX, GETDEL, SET GET, but no vector sets or hash-field expiry."""

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
    "AUTH [username] password",
    "Authenticates the connection.",
    group="connection",
    flags="noscript fast no_auth",
    untrusted=True,
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


@command(
    "SELECT index",
    "Chooses a database (a bucket), by number or name.",
    group="connection",
    flags="fast",
    barrier=True,  # commands under way look at the connection's bucket at each of their steps
    note="a name selects the bucket of that name",
)
def select(connection: Connection, args: Args) -> bytes:
    connection.bucket = connection.bucket_named(args[1])
    return reply.OK


@command("QUIT", "Closes the connection.", group="connection", flags="fast no_auth", in_multi=True, untrusted=True)
def quit_(connection: Connection, args: Args) -> bytes:
    connection.closing = True
    return reply.OK


@command(
    "RESET",
    "Makes the connection as new.",
    group="connection",
    flags="fast no_auth",
    barrier=True,
    in_multi=True,
    untrusted=True,
)
def reset(connection: Connection, args: Args) -> bytes:
    connection.queue = None
    connection.name = b""
    connection.bucket = "0"
    connection.set_protocol(2)
    connection.trusted = connection.parser.trusted = not connection.gateway.settings.password
    return reply.simple("RESET")


@command("TIME", "The node's clock: seconds since 1970, and microseconds.", group="server", flags="fast")
def time_(connection: Connection, args: Args) -> bytes:
    seconds, milliseconds = divmod(connection.gateway.wall_ms(), 1000)
    return reply.bulks([str(seconds), str(milliseconds * 1000)])


container("CLIENT", "About connections.", group="connection")


@command("CLIENT|ID", "The connection's number.", group="connection")
def client_id(connection: Connection, args: Args) -> bytes:
    return reply.integer(connection.id)


@command("CLIENT|GETNAME", "The connection's name.", group="connection")
def client_getname(connection: Connection, args: Args) -> bytes:
    return reply.bulk(connection.name) if connection.name else connection.nil


@command("CLIENT|SETNAME connection-name", "Names the connection.", group="connection")
def client_setname(connection: Connection, args: Args) -> bytes:
    connection.name = check_name(args[2])
    return reply.OK


@command(
    "CLIENT|SETINFO <LIB-NAME libname | LIB-VER libver>", "Says which library the client uses.", group="connection"
)
def client_setinfo(connection: Connection, args: Args) -> bytes:
    which = args[2].upper()
    if which not in {b"LIB-NAME", b"LIB-VER"}:
        raise CommandError(f"ERR Unrecognized option '{text(args[2])}'")
    if any(not 33 <= char <= 126 for char in args[3]):
        name = which.decode().lower()
        raise CommandError(f"ERR {name} cannot contain spaces, newlines or special characters.")
    if which == b"LIB-NAME":
        connection.library = args[3]
    else:
        connection.library_version = args[3]
    return reply.OK


def _describe(each: Connection, now_tick: int) -> str:
    """A connection as CLIENT LIST shows it. What has no meaning here is 0, so that programs find the fields they know."""
    gateway = each.gateway
    unsent = each.unsent
    fields = {
        "id": each.id,
        "addr": each.address,
        "laddr": each.local_address,
        "fd": 0,
        "name": each.name.decode(),
        "age": (gateway.wall_ms() - each.made_at_ms) // 1000,
        "idle": now_tick - each.seen_tick,
        "flags": "x" if each.queue is not None else "N",
        "db": each.bucket,
        "sub": 0,
        "psub": 0,
        "ssub": 0,
        "multi": -1 if each.queue is None else len(each.queue),
        "watch": 0,
        "qbuf": each.parser.buffered,
        "qbuf-free": 0,
        "argv-mem": 0,
        "multi-mem": 0,
        "rbs": 0,
        "rbp": 0,
        "obl": 0,
        "oll": len(each.pending),
        "omem": unsent,
        "tot-mem": unsent + each.parser.buffered,
        "events": "r",
        "cmd": each.last_command.lower(),
        "user": "default",
        "redir": -1,
        "resp": 3 if each.resp3 else 2,
        "lib-name": each.library.decode(),
        "lib-ver": each.library_version.decode(),
    }
    return " ".join(f"{name}={value}" for name, value in fields.items())


@command("CLIENT|INFO", "This connection's facts.", group="connection")
def client_info(connection: Connection, args: Args) -> bytes:
    return reply.verbatim(_describe(connection, connection.door.tick) + "\n", connection.resp3)


_KINDS = {b"NORMAL", b"MASTER", b"SLAVE", b"REPLICA", b"PUBSUB"}


def _kind(arg: bytes) -> bool:
    """Whether a TYPE filter lets our connections through: all are normal ones."""
    if arg.upper() not in _KINDS:
        raise CommandError(f"ERR Unknown client type '{text(arg)}'")
    return arg.upper() == b"NORMAL"


@command(
    "CLIENT|LIST [TYPE <NORMAL | MASTER | REPLICA | PUBSUB>] [ID client-id...]", "All connections.", group="connection"
)
def client_list(connection: Connection, args: Args) -> bytes:
    door = connection.door
    chosen = list(door.connections.values())
    if len(args) == 4 and args[2].upper() == b"TYPE":
        if not _kind(args[3]):
            chosen = []
    elif len(args) > 3 and args[2].upper() == b"ID":
        wanted = {integer(arg, "ERR Invalid client ID") for arg in args[3:]}
        chosen = [each for each in chosen if each.id in wanted]
    elif len(args) > 2:
        raise CommandError(reply.SYNTAX_ERROR)
    return reply.verbatim("".join(_describe(each, door.tick) + "\n" for each in chosen), connection.resp3)


def _kill_filters(connection: Connection, args: Args) -> list[Connection]:
    """The connections that ``CLIENT KILL name value ...`` means."""
    chosen = list(connection.door.connections.values())
    skip_me = True
    if len(args) % 2:
        raise CommandError(reply.SYNTAX_ERROR)
    for option, arg in zip(args[2::2], args[3::2], strict=True):
        match option.upper():
            case b"ID":
                number = integer(arg, "ERR client-id should be greater than 0")
                if number < 1:
                    raise CommandError("ERR client-id should be greater than 0")
                chosen = [each for each in chosen if each.id == number]
            case b"ADDR":
                chosen = [each for each in chosen if each.address == text(arg)]
            case b"LADDR":
                chosen = [each for each in chosen if each.local_address == text(arg)]
            case b"TYPE":
                chosen = chosen if _kind(arg) else []
            case b"USER":
                if arg != b"default":
                    raise CommandError(f"ERR No such user '{text(arg)}'")
            case b"SKIPME" if arg.upper() in {b"YES", b"NO"}:
                skip_me = arg.upper() == b"YES"
            case b"MAXAGE":
                limit_ms = integer(arg) * 1000
                chosen = [each for each in chosen if each.gateway.wall_ms() - each.made_at_ms >= limit_ms]
            case _:
                raise CommandError(reply.SYNTAX_ERROR)
    return [each for each in chosen if each is not connection or not skip_me]


@command(
    "CLIENT|KILL <address | ID client-id | TYPE type | USER username | ADDR address | LADDR address | SKIPME yes-no"
    " | MAXAGE seconds>...",
    "Closes connections.",
    group="connection",
)
def client_kill(connection: Connection, args: Args) -> bytes:
    old_form = len(args) == 3
    if old_form:
        chosen = [each for each in connection.door.connections.values() if each.address == text(args[2])]
        if not chosen:
            raise CommandError("ERR No such client")
    else:
        chosen = _kill_filters(connection, args)
    for each in chosen:
        if each is connection:
            connection.closing = True  # after this reply
        else:
            each.kill()
    return reply.OK if old_form else reply.integer(len(chosen))


def _on_off(args: Args) -> bytes:
    if args[2].upper() not in {b"ON", b"OFF"}:
        raise CommandError(reply.SYNTAX_ERROR)
    return reply.OK


@command("CLIENT|NO-EVICT <ON | OFF>", "Accepted: no connection is closed for memory here.", group="connection")
def client_no_evict(connection: Connection, args: Args) -> bytes:
    return _on_off(args)


@command("CLIENT|NO-TOUCH <ON | OFF>", "Accepted: reading alters nothing here.", group="connection")
def client_no_touch(connection: Connection, args: Args) -> bytes:
    return _on_off(args)


@command("CLIENT|GETREDIR", "-1: there is no tracking.", group="connection")
def client_getredir(connection: Connection, args: Args) -> bytes:
    return reply.integer(-1)


@command("CLIENT|REPLY <ON>", "Accepted.", group="connection", note="only ON")
def client_reply(connection: Connection, args: Args) -> bytes:
    if args[2].upper() in {b"OFF", b"SKIP"}:
        raise CommandError("ERR CLIENT REPLY OFF and SKIP are not supported: a write's outcome must be told")
    if args[2].upper() != b"ON":
        raise CommandError(reply.SYNTAX_ERROR)
    return reply.OK
