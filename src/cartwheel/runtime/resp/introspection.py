"""What the node tells about itself in Redis's own terms: COMMAND, INFO, CONFIG and the like.

Figures are true ones. Fields that Redis has and that mean nothing here are left out, except where tools rely on them.
"""

from __future__ import annotations

import os
import platform
import resource
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from cartwheel import __version__
from cartwheel.core.config import MIB
from cartwheel.core.messages import ClientCount, Counted
from cartwheel.runtime.resp import reply
from cartwheel.runtime.resp.access import integer, text
from cartwheel.runtime.resp.connection import REDIS_VERSION
from cartwheel.runtime.resp.glob import matcher
from cartwheel.runtime.resp.parser import BULK_BYTES_MAX
from cartwheel.runtime.resp.protocol import DATABASES
from cartwheel.runtime.resp.registry import Args, Argument, Command, command, commands, container, find
from cartwheel.runtime.resp.reply import CommandError
from cartwheel.runtime.resp.steps import Steps

if TYPE_CHECKING:
    from cartwheel.runtime.resp.protocol import Connection

# --- COMMAND ---------------------------------------------------------------------------------------------------------


def _words(names: tuple[str, ...]) -> frozenset[reply.Word]:
    return frozenset(map(reply.Word, names))


def _info_of(each: Command, resp3: bool) -> bytes:
    """A command as COMMAND INFO describes it: ten fields, as in Redis 7."""
    keys = each.keys
    specs = []
    if keys.first:
        last = keys.last - keys.first if keys.last > 0 else keys.last
        specs.append(
            {
                "flags": _words(("OW", "update") if each.write else ("RO", "access")),
                "begin_search": {"type": "index", "spec": {"index": keys.first}},
                "find_keys": {"type": "range", "spec": {"lastkey": last, "keystep": keys.step, "limit": 0}},
            }
        )
    facts = (each.name.lower(), each.arity, _words(each.flags), *keys, _words((f"@{each.group}",)), (), specs)
    subcommands = [_info_of(sub, resp3) for sub in each.subcommands.values()]
    return reply.array([*(reply.plain(fact, resp3) for fact in facts), reply.array(subcommands)])


def _working() -> list[Command]:
    return [each for each in commands() if not each.reason]


@command("COMMAND", "All commands.", group="server")
def command_(connection: Connection, args: Args) -> bytes:
    return reply.array([_info_of(each, connection.resp3) for each in _working()])


@command("COMMAND|COUNT", "How many commands there are.", group="server")
def command_count(connection: Connection, args: Args) -> bytes:
    return reply.integer(len(_working()))


@command(
    "COMMAND|LIST [FILTERBY <MODULE module-name | ACLCAT category | PATTERN pattern>]",
    "The names of all commands.",
    group="server",
)
def command_list(connection: Connection, args: Args) -> bytes:
    chosen = _working()
    if len(args) == 5 and args[2].upper() == b"FILTERBY":
        wanted = args[4].decode("utf-8", "replace").lower()
        match args[3].upper():
            case b"MODULE":
                chosen = []
            case b"ACLCAT":
                chosen = [each for each in chosen if wanted == each.group]
            case b"PATTERN":
                matches = matcher(args[4].lower())
                chosen = [each for each in chosen if matches(each.name.lower().encode())]
            case _:
                raise CommandError(reply.SYNTAX_ERROR)
    elif len(args) > 2:
        raise CommandError(reply.SYNTAX_ERROR)
    return reply.bulks([each.name.lower() for each in chosen])


def _named(name: bytes) -> Command | None:
    """A working command by its name, or by ``name|subcommand``."""
    parent, _, sub = name.partition(b"|")
    each = find(parent)
    if each is not None and sub:
        each = each.subcommands.get(sub.decode("latin-1").upper())
    return None if each is None or each.reason else each


@command("COMMAND|INFO [command-name...]", "Facts about commands.", group="server")
def command_info(connection: Connection, args: Args) -> bytes:
    resp3 = connection.resp3
    chosen: list[Command | None] = list(map(_named, args[2:])) if len(args) > 2 else [*_working()]
    return reply.array([connection.nil if each is None else _info_of(each, resp3) for each in chosen])


def _argument_doc(argument: Argument, in_key_spec: bool) -> dict[str, Any]:
    doc: dict[str, Any] = {"name": argument.name, "type": argument.type}
    if not argument.parts:
        doc["display_text"] = argument.name
    if argument.type == "key" and in_key_spec:
        doc["key_spec_index"] = 0
    if argument.token:
        doc["token"] = argument.token
    flags = frozenset(reply.Word(name) for name in ("optional", "multiple") if getattr(argument, name))
    if flags:
        doc["flags"] = flags
    if argument.parts:
        doc["arguments"] = [_argument_doc(part, in_key_spec) for part in argument.parts]
    return doc


def _doc_of(each: Command) -> dict[str, Any]:
    """A command as COMMAND DOCS describes it: redis-cli makes its hints and help from this."""
    doc: dict[str, Any] = {
        "summary": each.summary,
        "since": "0.1.0",
        "group": "module" if each.name.startswith("CW.") else each.group,
    }
    if each.arguments:
        doc["arguments"] = [_argument_doc(argument, bool(each.keys.first)) for argument in each.arguments]
    if each.subcommands:
        doc["subcommands"] = {sub.name.lower(): _doc_of(sub) for sub in each.subcommands.values()}
    return doc


@command("COMMAND|DOCS [command-name...]", "How commands are written.", group="server")
def command_docs(connection: Connection, args: Args) -> bytes:
    chosen = [each for each in map(_named, args[2:]) if each] if len(args) > 2 else _working()
    return reply.plain({each.name.lower(): _doc_of(each) for each in chosen}, connection.resp3)


@command("COMMAND|GETKEYS command [arg...]", "The keys in a command.", group="server")
def command_getkeys(connection: Connection, args: Args) -> bytes:
    each = find(args[2])
    if each is not None and each.subcommands and len(args) > 3:
        each = each.subcommands.get(args[3].decode("latin-1").upper())
    if each is None:
        raise CommandError("ERR Invalid command specified")
    if not each.low <= len(args) - 2 <= each.high:
        raise CommandError("ERR Invalid number of arguments specified for command")
    if not each.keys.first:
        raise CommandError("ERR The command has no key arguments")
    return reply.bulks(each.keys.of(args[2:]))


# --- INFO ------------------------------------------------------------------------------------------------------------


def _human(size: float) -> str:
    for unit in ("B", "K", "M", "G"):
        if size < 1024:
            return f"{size:.2f}{unit}" if unit != "B" else f"{size:.0f}B"
        size /= 1024
    return f"{size:.2f}T"


def memory_bytes() -> tuple[int, int]:
    """This process's resident memory now, and at its highest."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    try:
        with open("/proc/self/statm", "rb") as facts:
            return int(facts.read().split()[1]) * resource.getpagesize(), peak
    except OSError:
        return peak, peak


Facts = dict[str, object]


def _server(connection: Connection) -> Facts:
    gateway, door = connection.gateway, connection.door
    up_s = max(gateway.wall_ms() - gateway.started_at_ms, 0) // 1000
    return {
        "redis_version": REDIS_VERSION,
        "server_name": "cartwheel",
        "cartwheel_version": __version__,
        "redis_mode": "standalone",
        "os": f"{platform.system()} {platform.release()} {platform.machine()}",
        "arch_bits": 64 if sys.maxsize > 1 << 32 else 32,
        "process_id": os.getpid(),
        "run_id": gateway.status().stint,
        "tcp_port": door.port,
        "server_time_usec": gateway.wall_ms() * 1000,
        "uptime_in_seconds": up_s,
        "uptime_in_days": up_s // 86_400,
        "python_version": platform.python_version(),
    }


def _clients(connection: Connection) -> Facts:
    door = connection.door
    return {
        "connected_clients": len(door.connections),
        "maxclients": door.settings.clients_max,
        "blocked_clients": 0,
        "clients_waiting": sum(bool(each.waiting) for each in door.connections.values()),
    }


def _memory(connection: Connection) -> Facts:
    now, peak = memory_bytes()
    return {
        "used_memory": now,
        "used_memory_human": _human(now),
        "used_memory_rss": now,
        "used_memory_rss_human": _human(now),
        "used_memory_peak": peak,
        "used_memory_peak_human": _human(peak),
        "used_memory_dataset": connection.gateway.data_bytes(),
        "maxmemory": 0,
        "maxmemory_human": "0B",
        "maxmemory_policy": "noeviction",
    }


def _persistence(connection: Connection) -> Facts:
    return {"loading": 0, "engine": connection.gateway.engine_name, "data_bytes": connection.gateway.data_bytes()}


def _stats(connection: Connection) -> Facts:
    door = connection.door
    return {
        "total_connections_received": door.accepted,
        "total_commands_processed": door.commands,
        "total_net_input_bytes": door.bytes_in,
        "total_net_output_bytes": door.bytes_out,
        "rejected_connections": door.rejected,
        "requests_under_way": sum(each.under_way for each in door.connections.values()),
        "resp_siblings_hidden": door.siblings_hidden,
        "evicted_keys": 0,
    }


def _replication(connection: Connection) -> Facts:
    return {"role": "master", "connected_slaves": 0}


def _cpu(connection: Connection) -> Facts:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return {"used_cpu_sys": f"{used.ru_stime:.6f}", "used_cpu_user": f"{used.ru_utime:.6f}"}


def _modules(connection: Connection) -> Facts:
    return {}


def _cluster(connection: Connection) -> Facts:
    return {"cluster_enabled": 0}


def _cartwheel(connection: Connection) -> Facts:
    status = connection.gateway.status()
    return {
        "node": status.node,
        "cluster": status.cluster,
        "stint": status.stint,
        "partitions": status.q,
        "members": len(status.members),
        "members_reachable": sum(member.reachable for member in status.members),
        "coordinator_requests": status.requests,
        **{f"counter_{name}": count for name, count in sorted(status.counters.items())},
        **{f"note{index}": note for index, note in enumerate(status.notes)},
    }


SECTIONS: dict[str, Callable[[Connection], Facts]] = {
    "Server": _server,
    "Clients": _clients,
    "Memory": _memory,
    "Persistence": _persistence,
    "Stats": _stats,
    "Replication": _replication,
    "CPU": _cpu,
    "Modules": _modules,
    "Cluster": _cluster,
    "Cartwheel": _cartwheel,
}
KEYSPACE = "Keyspace"
"""Needs counts from other nodes, so it is no plain function."""


def _wanted_sections(args: Args) -> list[str]:
    names = [*SECTIONS, KEYSPACE]
    asked = {arg.decode("latin-1").lower() for arg in args[1:]}
    if not asked or asked & {"all", "default", "everything"}:
        return names
    return [name for name in names if name.lower() in asked]


@command(
    "INFO [section...]",
    "Facts about this node, by section.",
    group="server",
    note="section Cartwheel is added; meaningless fields are left out",
)
def info(connection: Connection, args: Args) -> Steps:
    parts: list[str] = []
    for name in _wanted_sections(args):
        if name == KEYSPACE:
            facts = yield from _keyspace(connection)
        else:
            facts = SECTIONS[name](connection)
        lines = [f"# {name}", *(f"{field}:{value}" for field, value in facts.items())]
        parts.append("".join(f"{line}\r\n" for line in lines))
    return reply.verbatim("\r\n".join(parts), connection.resp3)


def _keyspace(connection: Connection) -> Any:
    """Keys by database: those that are there, and those that a client may expect."""
    names = sorted(set(connection.gateway.buckets()) | {"0"})
    results = yield [ClientCount(None, name) for name in names]
    return {
        f"db{name}": f"keys={result.keys},expires=0,avg_ttl=0"
        for name, result in zip(names, results, strict=True)
        if isinstance(result, Counted) and result.keys and name.isdigit()
    }


# --- CONFIG ----------------------------------------------------------------------------------------------------------

container("CONFIG", "Settings of the Redis door.", group="server")


def _yes_no(value: bool) -> str:
    return "yes" if value else "no"


_LIVE_FIELDS = (
    *("allow_best_effort_nx", "allow_flush", "multi", "output_bytes_max"),
    *("clients_max", "idle_timeout_s", "requests_max", "command_bytes_max"),
)
LIVE = {f"resp.{field.replace('_', '-')}": field for field in _LIVE_FIELDS}
"""Settings that CONFIG SET changes in this node until its next start. Each holds for the next command or connection."""
ALIASES = {"maxclients": "clients_max", "timeout": "idle_timeout_s"}
"""Redis's names for the same."""


def settings_of(connection: Connection) -> dict[str, str]:
    """What CONFIG GET tells."""
    settings, door = connection.gateway.settings, connection.door
    found = {
        "appendfsync": "always",
        "appendonly": "no",
        "bind": door.host,
        "cluster-enabled": "no",
        "databases": str(DATABASES),
        "maxclients": str(settings.clients_max),
        "maxmemory": "0",
        "maxmemory-policy": "noeviction",
        "notify-keyspace-events": "",
        "port": str(door.port),
        "proto-max-bulk-len": str(min(BULK_BYTES_MAX, 64 * MIB)),
        "requirepass": "",
        "save": "",
        "timeout": str(int(settings.idle_timeout_s)),
    }
    for name, field in LIVE.items():
        value = getattr(settings, field)
        found[name] = _yes_no(value) if isinstance(value, bool) else str(value)
    return dict(sorted(found.items()))


@command(
    "CONFIG|GET parameter...",
    "Settings by pattern.",
    group="server",
    note="Redis's names with the values that hold here, and `resp.*`",
)
def config_get(connection: Connection, args: Args) -> bytes:
    patterns = [matcher(arg.lower()) for arg in args[2:]]
    chosen = [
        (reply.bulk(name), reply.bulk(value))
        for name, value in settings_of(connection).items()
        if any(matches(name.encode()) for matches in patterns)
    ]
    return reply.mapping(chosen, connection.resp3)


def _read_setting(connection: Connection, name: str, arg: bytes) -> tuple[str, Any]:
    """The field and its new value.

    Raises:
        CommandError: the setting is unknown, fixed, or the value makes no sense.
    """
    field = LIVE.get(name) or ALIASES.get(name)
    if field is None:
        if name in settings_of(connection):
            raise CommandError(
                f"ERR CONFIG SET failed (possibly related to argument '{name}') - can't set immutable config"
            )
        raise CommandError(f"ERR Unknown option or number of arguments for CONFIG SET - '{name}'")
    old = getattr(connection.gateway.settings, field)
    failed = f"ERR CONFIG SET failed (possibly related to argument '{name}') -"
    if isinstance(old, bool):
        if arg.lower() not in {b"yes", b"no"}:
            raise CommandError(f"{failed} argument must be 'yes' or 'no'")
        return field, arg.lower() == b"yes"
    if isinstance(old, str):
        if arg.lower() not in {b"batch", b"refuse"}:
            raise CommandError(f"{failed} argument must be 'batch' or 'refuse'")
        return field, arg.lower().decode()
    number = integer(arg, f"{failed} argument must be a whole number")
    if number < (0 if field == "idle_timeout_s" else 1):
        raise CommandError(f"{failed} argument is too small")
    return field, type(old)(number)


@command(
    "CONFIG|SET (parameter value)...",
    "Changes settings of this node, until its next start.",
    group="server",
    note="the `resp.*` settings, `maxclients` and `timeout`",
)
def config_set(connection: Connection, args: Args) -> bytes:
    if len(args) % 2:
        raise CommandError("ERR wrong number of arguments for 'config|set' command")
    changes = [
        _read_setting(connection, text(name).lower(), value) for name, value in zip(args[2::2], args[3::2], strict=True)
    ]
    for field, value in changes:
        setattr(connection.gateway.settings, field, value)
    return reply.OK


@command("CONFIG|RESETSTAT", "Sets the door's counts to zero.", group="server")
def config_resetstat(connection: Connection, args: Args) -> bytes:
    connection.door.reset_counts()
    return reply.OK


@command(
    "CONFIG|REWRITE",
    "Refused: settings are in the node's configuration file.",
    group="server",
    note="refused: change the configuration file",
)
def config_rewrite(connection: Connection, args: Args) -> bytes:
    raise CommandError("ERR CONFIG REWRITE is not supported: change the node's configuration file by hand")


# --- what else tools ask for -----------------------------------------------------------------------------------------

container("MODULE", "Modules: there are none.", group="server")
container("SLOWLOG", "Slow commands: none are kept.", group="server")
container("LATENCY", "Latency events: none are kept.", group="server")
container("ACL", "Users: there is one, default.", group="server")


@command("MODULE|LIST", "Empty: there are no modules.", group="server")
def module_list(connection: Connection, args: Args) -> bytes:
    return reply.EMPTY_ARRAY


@command("SLOWLOG|GET [count]", "Empty: latencies are in the node's metrics.", group="server", note="always empty")
def slowlog_get(connection: Connection, args: Args) -> bytes:
    return reply.EMPTY_ARRAY


@command("SLOWLOG|LEN", "0.", group="server", note="always 0")
def slowlog_len(connection: Connection, args: Args) -> bytes:
    return reply.ZERO


@command("SLOWLOG|RESET", "Accepted.", group="server")
def slowlog_reset(connection: Connection, args: Args) -> bytes:
    return reply.OK


@command("LATENCY|LATEST", "Empty: latencies are in the node's metrics.", group="server", note="always empty")
def latency_latest(connection: Connection, args: Args) -> bytes:
    return reply.EMPTY_ARRAY


@command("LATENCY|HISTORY event", "Empty.", group="server", note="always empty")
def latency_history(connection: Connection, args: Args) -> bytes:
    return reply.EMPTY_ARRAY


@command("LATENCY|RESET [event...]", "0: there was nothing to forget.", group="server", note="always 0")
def latency_reset(connection: Connection, args: Args) -> bytes:
    return reply.ZERO


@command("ACL|WHOAMI", "The connection's user: default.", group="server")
def acl_whoami(connection: Connection, args: Args) -> bytes:
    return reply.bulk("default")


@command("ACL|LIST", "The one user, who may do everything.", group="server")
def acl_list(connection: Connection, args: Args) -> bytes:
    password = "" if connection.gateway.settings.password else "nopass "
    return reply.bulks([f"user default on {password}~* &* +@all"])


@command("ACL|USERS", "The one user.", group="server")
def acl_users(connection: Connection, args: Args) -> bytes:
    return reply.bulks(["default"])
