"""``cartwheel start``: one node in the foreground.

The flags are made from the settings themselves (``runtime.settings``), so that none is forgotten; they are passed on as text
and parsed in one place, whichever way a setting comes.
"""

from __future__ import annotations

import errno
import os
import signal
import sys
import threading
from pathlib import Path
from typing import Any

import click

from cartwheel import __version__
from cartwheel.cli.common import Failed, port_in_use
from cartwheel.runtime.addresses import join_address
from cartwheel.runtime.settings import (
    SETTING_NAMES,
    ServerSettings,
    flag_of,
    keep_secret,
    load_settings,
)

FLAG_HELP = {
    "node": "This node's name.",
    "cluster": "The cluster's name.",
    "data": "The data directory.",
    "engine": "rocksdb, lmdb or memory.",
    "host": "The address to listen on.",
    "insecure": "Allow listening beyond loopback, without TLS and authentication.",
    "resp_port": "The port for Redis clients.",
    "peer_port": "The port for the other nodes.",
    "advertise_host": "The host by which the other nodes reach this one.",
    "initial_cluster": "The first members: n1=HOST:PORT,n2=HOST:PORT[/zone=Z][/weight=W]...",
    "join": "Join the cluster of these nodes: HOST:PORT,HOST:PORT (ports for peers).",
    "zone": "The data centre or availability zone to join in.",
    "weight": "This node's capacity, relative to the others'.",
    "dial": "Where to reach peers instead of at their addresses: n2=HOST:PORT,n3=HOST:PORT...",
    "secret_file": "The file with the cluster's secret.",
    "q": "Partitions of the ring, a power of two.",
    "disk_bytes_max": "Quota of the data directory, in bytes; 0: none.",
    "allow_flush": "Allow FLUSHDB and FLUSHALL.",
    "allow_best_effort_nx": "Allow SET NX, which is not atomic.",
    "request_timeout_s": "A request's deadline, in seconds.",
    "skew_ms_max": "How far ahead another node's clock may be.",
    "admission_p99_s": "Reads slower than this, at the 99th percentile, make background work give way.",
    "background_records_per_s_max": "Records a second for background work on an idle node.",
    "give_grace_s": "How long handed-over data are kept, in seconds.",
    "log_level": "debug, info, warning or error.",
}


def _setting_options(command: Any) -> Any:
    """One option per setting."""
    for name in reversed(SETTING_NAMES):
        if isinstance(ServerSettings.__struct_defaults__[ServerSettings.__struct_fields__.index(name)], bool):
            flag = f"{flag_of(name)}/--no-{name.replace('_', '-')}"
            command = click.option(flag, name, default=None, help=FLAG_HELP[name])(command)
        else:
            metavar = {
                "join": "SEEDS",
                "data": "DIR",
                "secret_file": "FILE",
                "initial_cluster": "MEMBERS",
                "dial": "PEERS",
            }.get(name, "VALUE")
            command = click.option(flag_of(name), name, metavar=metavar, help=FLAG_HELP[name])(command)
    return command


@click.command()
@click.option(
    "--config", "file", type=click.Path(path_type=Path), envvar="CARTWHEEL_CONFIG", help="A TOML file of settings."
)
@_setting_options
@click.option("--show-settings", is_flag=True, help="Print the settings and where each comes from; start nothing.")
@click.option(
    "--until-eof", is_flag=True, hidden=True, help="Stop when standard input ends: whoever started us is gone."
)
def start(file: Path | None, show_settings: bool, until_eof: bool, **flags: str | bool | None) -> int:
    """Run one node in the foreground, until Ctrl-C or SIGTERM.

    Settings come from the TOML file, then the environment (CARTWHEEL_*), then the flags; the later one wins. Without any,
    the node is a cluster of its own on port 7700.
    """
    settings, origins = load_settings(flags, os.environ, file)
    if show_settings:
        for name in SETTING_NAMES:
            shown = _shown(name, getattr(settings, name))
            click.echo(f"{name} = {shown}    ({origins[name]})")
        return 0
    import logging

    from cartwheel.runtime import server

    logging.basicConfig(
        level=settings.log_level.upper(), format="%(asctime)s %(levelname)s %(name)s: %(message)s", stream=sys.stderr
    )
    if until_eof:
        threading.Thread(target=_stop_at_eof, name="until-eof", daemon=True).start()

    def on_ready(started: object) -> None:
        del started
        keep_secret(settings.secret_file, settings.secret)
        click.echo(_welcome(settings))
        sys.stdout.flush()

    try:
        return server.run(settings, on_ready)
    except OSError as error:
        if error.errno != errno.EADDRINUSE:
            raise
        # The system does not say which of the two it was.
        taken = [name for name in ("resp_port", "peer_port") if port_in_use(settings.host, getattr(settings, name))]
        ports = " and ".join(f"{getattr(settings, name)} ({name}, from {origins[name]})" for name in taken) or "needed"
        raise Failed(
            f"the port {ports} is in use on {settings.host}: stop who has it, or choose another with --resp-port, --peer-port"
        ) from None


def _shown(name: str, value: Any) -> Any:
    if name == "join":
        return ",".join(value)
    if name == "initial_cluster":
        return ",".join(f"{member.node}={member.address}" for member in value)
    return ",".join(f"{node}={address}" for node, address in value.items()) if name == "dial" else value


def _stop_at_eof() -> None:
    while os.read(0, 1024):
        pass
    os.kill(os.getpid(), signal.SIGTERM)


def _welcome(settings: ServerSettings) -> str:
    lines = [f"cartwheel {__version__}: node {settings.node} of cluster {settings.cluster} is serving"]
    redis = join_address(settings.host, settings.resp_port)
    lines.append(f"  Redis clients  {redis:<22} redis-cli -p {settings.resp_port}")
    others = ", ".join(member.node for member in settings.initial_cluster if member.node != settings.node)
    lines.append(
        f"  peers          {join_address(settings.host, settings.peer_port):<22} {others and 'with ' + others}".rstrip()
    )
    lines.append(f"  data           {settings.data} ({settings.engine})")
    if settings.join:
        lines.append(
            f"  asks to join   the cluster at {', '.join(settings.join)}, unless it is a member already; at any member:"
        )
        lines.append("                 'cartwheel cluster plan', then 'cartwheel cluster commit'")
    if settings.insecure:
        lines.append("  insecure: no TLS, no authentication; whoever reaches these ports can do everything")
    return "\n".join(lines)
