"""The settings of one node: where they come from, and what is refused before anything is started.

    file (TOML)  <  environment (CARTWHEEL_*)  <  flags            the right-most one that names a setting wins

A setting has one name in all three places: ``resp_port`` in the file, ``CARTWHEEL_RESP_PORT``, ``--resp-port``. (One
exception: ``node`` is ``CARTWHEEL_NODE_ID``, for ``CARTWHEEL_NODE`` is the address that the client commands talk to.) The
docstrings of ``ServerSettings`` are the reference manual: docs/reference/settings.md is made from them.

What can be known to be wrong without touching the network is refused here, in one sentence that names the setting, the
place it was read from, and what to do. The secret never travels by argument or environment, which other users of the
machine can list: only the name of its file does, and a file that others could read is refused.

Invariants of what ``load_settings`` returns:

1. ``initial_cluster`` names this node, each node once, each address once.
2. This node's entry says ``advertise_host:peer_port``.
3. ``secret`` has at least ``SECRET_BYTES_MIN`` bytes.
4. Without ``insecure``, ``host`` is a loopback address.
"""

from __future__ import annotations

import difflib
import ipaddress
import os
import secrets
import stat
import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, get_args

import msgspec

from cartwheel.core.errors import ConfigError
from cartwheel.core.ring import Member
from cartwheel.core.ring.history import NODE_CHARACTERS, WEIGHT_MAX, WEIGHT_MIN
from cartwheel.core.ring.ring import Q_MAX
from cartwheel.core.types import NodeId
from cartwheel.runtime.addresses import join_address, split_address

EngineName = Literal["rocksdb", "lmdb", "memory"]
LogLevel = Literal["debug", "info", "warning", "error"]

SECRET_BYTES_MIN = 16
"""128 bits, if they are random: nobody guesses a context's seal."""
SECRET_BYTES_MAX = 4096
"""A longer file is not a secret but a mistake."""
LOOPBACK_HOST = "127.0.0.1"


class Secret(bytes):
    """The cluster's key. Prints without showing it, so that a logged or dumped setting gives nothing away."""

    __slots__ = ()

    def __repr__(self) -> str:
        return f"Secret({len(self)} bytes, hidden)"

    __str__ = __repr__


class MemberSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One entry of ``initial_cluster``."""

    node: NodeId
    address: str
    """``host:port`` of its door for peers, as the other nodes can reach it."""
    zone: str = ""
    host: str = ""
    """The physical machine. "": the host of the address."""
    weight: float = 1.0


class ServerSettings(msgspec.Struct, frozen=True, kw_only=True):
    """What one node is told at its start. ``docs/reference/settings.md`` is made from these lines."""

    node: NodeId = "n1"
    """This node's name, unique in its cluster for ever: 1 to 64 of `A-Z a-z 0-9 . _ -`."""
    cluster: str = "cartwheel"
    """The cluster's name. Nodes of another cluster are refused."""
    data: Path = Path()
    """The node's data directory, made if missing. Default: `$XDG_DATA_HOME/cartwheel/NODE`, which is mostly
    `~/.local/share/cartwheel/NODE`."""
    engine: EngineName = "rocksdb"
    """The storage engine: `rocksdb`, `lmdb`, or `memory` (which forgets everything when the node stops)."""
    host: str = LOOPBACK_HOST
    """The address to listen on. Anything but loopback needs `insecure`."""
    insecure: bool = False
    """Allow listening beyond loopback. There is no TLS and no authentication yet: whoever reaches the ports can read, write
    and delete everything."""
    resp_port: int = 7700
    """The port for Redis clients."""
    peer_port: int = 7702
    """The port for the other nodes. Default: the port of this node's entry in `initial_cluster`."""
    advertise_host: str = LOOPBACK_HOST
    """The host by which the other nodes reach this one. Default: that of this node's entry in `initial_cluster`, or `host`."""
    initial_cluster: tuple[MemberSpec, ...] = ()
    """The first members, the same text on all nodes: `n1=10.0.0.1:7702,n2=10.0.0.2:7702`, each with `/zone=...`,
    `/host=...` (the physical machine) and `/weight=...` if wanted: `n1=10.0.0.1:7702/zone=a/weight=2`. In the file also
    tables: `[[initial_cluster]]` with `node`, `address`, `zone`, `host`, `weight`. Read once, when the data directory is
    new. Default: this node alone."""
    join: tuple[str, ...] = ()
    """Addresses (`host:port`) of nodes of the cluster to join, at their ports for peers; one that answers is enough. The join is
    staged there, and waits for `cartwheel cluster commit`. At later starts they help to find the others."""
    zone: str = ""
    """The data centre or availability zone that a node joins in, or that a cluster of one is in."""
    weight: float = 1.0
    """A joining node's capacity, relative to the others'."""
    dial: dict[NodeId, str] = {}
    """Where this node reaches its peers, in place of their member addresses, for address translation and for fault
    injection: `n2=192.0.2.7:9001,n3=...`. In the file also a table: `[dial]`. Nodes that are not named are reached at their
    addresses. Default: none."""
    secret: Secret = Secret()
    """The content of ``secret_file``."""
    secret_file: Path = Path()
    """The file with the cluster's secret, the same on all nodes: it seals the contexts that clients carry. At least 16
    bytes, readable by its owner only (`chmod 600`). Default, for a cluster of one: `DATA/secret`, made at the first start."""
    q: int = 1024
    """Partitions of the ring: a power of two, the same on all nodes, fixed when the cluster is created. The
    default is good for some 50 nodes of equal weight."""
    disk_bytes_max: int = 0
    """The quota of the data directory, in bytes; 0: none. At 90% of it, as of the whole disk, the node takes only deletes, until
    it is below 87% again."""
    allow_flush: bool = False
    """Allow `FLUSHDB` and `FLUSHALL`."""
    allow_best_effort_nx: bool = False
    """Allow `SET NX` and its kin, which are not atomic here: two clients can both succeed."""
    request_timeout_s: float = 2.0
    """How long a client's request may take, in seconds, unless it says so itself."""
    skew_ms_max: int = 500
    """How far ahead of ours, in milliseconds, another node's clock may be before its new writes are refused."""
    admission_p99_s: float = 0.05
    """Background work (hints, anti-entropy, transfers) makes way while the 99th percentile of the reads of the last 60 s is above
    this, in seconds; and a node lets in fewer requests while they wait longer than this."""
    background_records_per_s_max: int = 50_000
    """How many records a second background work may handle on a node that serves nobody; under load it gets less."""
    give_grace_s: float = 60.0
    """How long a node keeps what it has handed over, in seconds, after the new owners have all of it."""
    log_level: LogLevel = "info"
    """How much is logged to standard error: `debug`, `info`, `warning`, `error`."""

    def __post_init__(self) -> None:
        assert isinstance(self.secret, Secret), "only a Secret is safe to print"


NOT_SET_BY_NAME = ("secret",)
"""Fields that no file, variable or flag may give."""
SETTING_NAMES: tuple[str, ...] = tuple(n for n in ServerSettings.__struct_fields__ if n not in NOT_SET_BY_NAME)

_DEFAULTS = ServerSettings()
_CHOICES: dict[str, tuple[str, ...]] = {"engine": get_args(EngineName), "log_level": get_args(LogLevel)}
_RANGES: dict[str, tuple[float, float]] = {
    "resp_port": (1, 65535),
    "peer_port": (1, 65535),
    "q": (1, Q_MAX),
    "disk_bytes_max": (0, 1 << 60),
    "request_timeout_s": (0.001, 3600),
    "skew_ms_max": (1, 3_600_000),
    "admission_p99_s": (0.001, 60),
    "background_records_per_s_max": (20, 10_000_000),
    "give_grace_s": (0.1, 86_400),
    "weight": (WEIGHT_MIN, WEIGHT_MAX),
}
_TRUE, _FALSE = ("true", "yes", "on", "1"), ("false", "no", "off", "0")

Origins = dict[str, str]
"""For each setting where its value came from, in words: ``--q``, ``CARTWHEEL_Q``, ``q in node.toml``, ``default``."""


def variable_of(name: str) -> str:
    """The environment variable that gives a setting."""
    return "CARTWHEEL_NODE_ID" if name == "node" else f"CARTWHEEL_{name.upper()}"


def flag_of(name: str) -> str:
    """The flag of ``cartwheel start`` that gives a setting."""
    return "--" + name.replace("_", "-")


def load_settings(
    flags: Mapping[str, Any], environ: Mapping[str, str], file: Path | None = None
) -> tuple[ServerSettings, Origins]:
    """Gather the settings, check them, and read the secret. Writes nothing.

    A cluster of one without a secret gets a new one in memory: see ``keep_secret``.

    Args:
        flags: setting -> what the command line gave, as text or already as the right type; None counts as not given.
        environ: the environment; an empty variable counts as not given.
        file: a TOML file whose keys are settings.

    Raises:
        ConfigError: a setting is unknown, does not parse, is out of range, or does not fit the others.
    """
    given: dict[str, Any] = {}
    origins: Origins = dict.fromkeys(SETTING_NAMES, "default")

    def take(name: str, raw: object, origin: str) -> None:
        given[name] = _parse(name, raw, origin)
        origins[name] = origin

    for name, raw in ({} if file is None else _read_file(file)).items():
        take(name, raw, f"{name} in {file}")
    for name in SETTING_NAMES:
        if raw := environ.get(variable_of(name)):
            take(name, raw, variable_of(name))
    for name, raw in flags.items():
        assert name in SETTING_NAMES, f"no setting is called {name}"
        if raw is not None:
            take(name, raw, flag_of(name))

    settings = _place(msgspec.structs.replace(_DEFAULTS, **given), given, origins, environ)
    _check_bind(settings, origins)
    if settings.resp_port == settings.peer_port:
        raise ConfigError(
            f"resp_port (from {origins['resp_port']}) and peer_port (from {origins['peer_port']}) are both "
            f"{settings.peer_port}: each door needs its own port"
        )
    path = given.get("secret_file")
    if path is None and settings.join:
        raise ConfigError(
            "to join a cluster a node needs its secret: copy the secret_file of a member, and name it with --secret-file"
        )
    if path is None and len(settings.initial_cluster) > 1:
        raise ConfigError(
            f"a cluster of {len(settings.initial_cluster)} nodes needs one secret_file for all of them: make it with "
            "'(umask 077; head -c 32 /dev/urandom | base64 > cluster.secret)', copy it to each node, and give --secret-file"
        )
    if path is None:
        path = settings.data / "secret"
        if not path.exists():
            return msgspec.structs.replace(settings, secret=new_secret(), secret_file=path), origins
    secret = read_secret(path, origins["secret_file"])
    return msgspec.structs.replace(settings, secret=secret, secret_file=path), origins


# --- one setting ---


def _read_file(file: Path) -> dict[str, object]:
    try:
        table = tomllib.loads(file.read_text("utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot read the settings file {file}: {error.strerror or error}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"the settings file {file} is not TOML: {error}") from None
    for name in table:
        if name in NOT_SET_BY_NAME:
            raise ConfigError(f"{name} in {file}: a secret does not belong here; name its file with secret_file")
        if name not in SETTING_NAMES:
            near = difflib.get_close_matches(name.replace("-", "_"), SETTING_NAMES, n=1, cutoff=0.5)
            hint = f"did you mean {near[0]}?" if near else f"known are {', '.join(SETTING_NAMES)}"
            raise ConfigError(f"unknown setting {name!r} in {file}: {hint}")
    return table


def _parse(name: str, raw: object, origin: str) -> object:
    """Turn what was given into the setting's type, within its range."""

    def wrong(expected: str) -> ConfigError:
        shown = raw if isinstance(raw, str | int | float) else type(raw).__name__
        return ConfigError(f"{name}={shown!r} (from {origin}) must be {expected}")

    if name == "initial_cluster":
        try:
            return _parse_members(raw)
        except ValueError as error:
            raise ConfigError(f"{name} (from {origin}): {error}") from None
    if name == "join":
        try:
            return _parse_seeds(raw)
        except ValueError as error:
            raise ConfigError(f"{name} (from {origin}): {error}") from None
    if name == "dial":
        try:
            return _parse_dial(raw)
        except ValueError as error:
            raise ConfigError(f"{name} (from {origin}): {error}") from None
    kind = type(getattr(_DEFAULTS, name))
    if kind is bool:
        if isinstance(raw, str) and raw.lower() in _TRUE + _FALSE:
            return raw.lower() in _TRUE
        if not isinstance(raw, bool):
            raise wrong("true or false")
        return raw
    if kind in (int, float):
        return _parse_number(raw, name, kind, wrong)
    if not isinstance(raw, str | Path) or not str(raw):
        raise wrong("a text that is not empty")
    text = str(raw)
    if kind is str:
        if name in _CHOICES and text not in _CHOICES[name]:
            raise wrong(f"one of {', '.join(_CHOICES[name])}")
        if name == "node" and (len(text) > 64 or not NODE_CHARACTERS.issuperset(text)):
            raise wrong("1 to 64 of A-Z a-z 0-9 . _ -")
        if len(text.encode()) > 200:
            raise wrong("at most 200 bytes long")
        return text
    return Path(text).expanduser().absolute()


def _parse_number(raw: object, name: str, kind: type, wrong: Callable[[str], ConfigError]) -> float:
    low, high = _RANGES[name]
    expected = f"a {'whole ' if kind is int else ''}number between {low:g} and {high:g}"
    if isinstance(raw, bool) or not isinstance(raw, str | int | float) or (isinstance(raw, float) and kind is int):
        raise wrong(expected)
    try:
        value: float = kind(raw)
    except ValueError:
        raise wrong(expected) from None
    if not low <= value <= high:
        raise wrong(expected)
    if name == "q" and int(value) & (int(value) - 1):
        raise wrong("a power of two, such as 1024")
    return value


# --- the members ---


def _parse_seeds(raw: object) -> tuple[str, ...]:
    texts = [text.strip() for text in raw.split(",")] if isinstance(raw, str) else raw
    if not isinstance(texts, list | tuple) or not texts or not all(isinstance(text, str) and text for text in texts):
        raise ValueError("write HOST:PORT,HOST:PORT: ports for peers")
    for text in texts:
        try:
            split_address(text)
        except ValueError:
            raise ValueError(f"{text!r} is not HOST:PORT, such as 10.0.0.1:7702") from None
    return tuple(texts)


def _parse_members(raw: object) -> tuple[MemberSpec, ...]:
    if isinstance(raw, str):
        members = [_parse_member(text.strip()) for text in raw.split(",") if text.strip()]
    else:
        try:
            members = msgspec.convert(raw, list[MemberSpec])
        except msgspec.ValidationError as error:
            raise ValueError(f"{error}; write n1=HOST:PORT,n2=HOST:PORT or [[initial_cluster]] tables") from None
    if not members:
        raise ValueError("it names no node; write n1=HOST:PORT,n2=HOST:PORT")
    members = [_check_member(member) for member in members]
    for what in ("node", "address"):
        values = [getattr(member, what) for member in members]
        for value in values:
            if values.count(value) > 1:
                raise ValueError(f"the {what} {value} is there twice")
    return tuple(members)


def _parse_member(text: str) -> MemberSpec:
    """Read ``n1=10.0.0.1:7702/zone=a/host=h1/weight=2``."""
    first, *others = text.split("/")
    node, equals, address = first.partition("=")
    if not (equals and node and address):
        raise ValueError(f"{text!r} is not NODE=HOST:PORT, such as n1=127.0.0.1:7702")
    values: dict[str, Any] = {}
    for other in others:
        name, _, value = other.partition("=")
        if name not in ("zone", "host", "weight"):
            raise ValueError(f"{other!r} in {text!r} is none of zone=..., host=..., weight=...")
        values[name] = value
    try:
        if "weight" in values:
            values["weight"] = float(values["weight"])
    except ValueError:
        raise ValueError(f"the weight {values['weight']!r} in {text!r} is no number") from None
    return MemberSpec(node=node.strip(), address=address.strip(), **values)


def _check_member(spec: MemberSpec) -> MemberSpec:
    try:
        host, _ = split_address(spec.address)
    except ValueError:
        raise ValueError(f"the address {spec.address!r} of {spec.node} is not HOST:PORT") from None
    spec = msgspec.structs.replace(spec, host=spec.host or host)
    Member(spec.node, spec.address, spec.host, spec.zone, spec.weight)  # it checks the rest
    return spec


def _parse_dial(raw: object) -> dict[NodeId, str]:
    """Read ``n2=192.0.2.7:9001,n3=...``, or a table."""
    if isinstance(raw, str):
        pairs = [text.strip().partition("=")[::2] for text in raw.split(",") if text.strip()]
    elif isinstance(raw, dict):
        pairs = [(str(node), str(address)) for node, address in raw.items()]
    else:
        raise ValueError("write n2=HOST:PORT,n3=HOST:PORT or a [dial] table")
    for node, address in pairs:
        try:
            split_address(address)
        except ValueError:
            raise ValueError(f"{node}={address} is not NODE=HOST:PORT, such as n2=127.0.0.1:9001") from None
        if not node or len(node) > 64 or not NODE_CHARACTERS.issuperset(node):
            raise ValueError(f"{node!r} is no node's name")
    dial = dict(pairs)
    if len(dial) < len(pairs):
        raise ValueError("a node is there twice")
    return dial


def _place(
    settings: ServerSettings, given: Mapping[str, Any], origins: Origins, environ: Mapping[str, str]
) -> ServerSettings:
    """Fill in what follows from other settings: the data directory, and this node's own address."""
    changes: dict[str, Any] = {}
    if "data" not in given:
        changes["data"] = default_data(environ) / settings.node
    if "initial_cluster" not in given:
        host = given.get("advertise_host", settings.host)
        changes["advertise_host"] = host
        address = join_address(host, settings.peer_port)
        changes["initial_cluster"] = (
            MemberSpec(node=settings.node, address=address, host=host, zone=settings.zone, weight=settings.weight),
        )
        return msgspec.structs.replace(settings, **changes)
    origin = f"initial_cluster (from {origins['initial_cluster']})"
    for name in ("join", "zone", "weight"):
        if name in given and (name == "join" or given[name] != getattr(_DEFAULTS, name)):
            raise ConfigError(
                f"{name} (from {origins[name]}) and {origin} exclude each other: a node founds a cluster, where each "
                "member's zone and weight stand in the list, or joins one"
            )
    mine = next((member for member in settings.initial_cluster if member.node == settings.node), None)
    if mine is None:
        names = ", ".join(member.node for member in settings.initial_cluster)
        raise ConfigError(
            f"{origin} names {names}, but not this node, {settings.node} (from {origins['node']}): "
            "give --node one of these names, or add it there"
        )
    own = dict(zip(("advertise_host", "peer_port"), split_address(mine.address), strict=True))
    for name, value in own.items():
        if name in given and given[name] != value:
            raise ConfigError(
                f"{name}={given[name]} (from {origins[name]}) contradicts {origin}, where {settings.node} is at "
                f"{mine.address}: leave {name} out, or change one of them"
            )
        origins[name] = origin
    return msgspec.structs.replace(settings, **changes, **own)


def default_data(environ: Mapping[str, str]) -> Path:
    """The folder of all data directories that were given no place of their own."""
    base = environ.get("XDG_DATA_HOME") or str(Path(environ.get("HOME") or "~").expanduser() / ".local" / "share")
    return Path(base).absolute() / "cartwheel"


# --- who may reach it ---


def is_loopback(host: str) -> bool:
    """Whether an address reaches only this machine. A name other than localhost counts as reaching further."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _check_bind(settings: ServerSettings, origins: Origins) -> None:
    if is_loopback(settings.host):
        if not is_loopback(settings.advertise_host):
            raise ConfigError(
                f"the other nodes are to reach {settings.node} at {settings.advertise_host} (from "
                f"{origins['advertise_host']}), but it would listen on {settings.host} only (from {origins['host']}): "
                "give --host 0.0.0.0 or the machine's own address, and --insecure"
            )
    elif not settings.insecure:
        raise ConfigError(
            f"host={settings.host} (from {origins['host']}) is open to other machines, and there is no TLS and no "
            "authentication yet: keep to 127.0.0.1, or, on a network where you trust everyone, add --insecure"
        )


def new_secret() -> Secret:
    """A random one."""
    return Secret(secrets.token_hex(32).encode())


def keep_secret(path: Path, secret: Secret) -> None:
    """Write a secret to its file, readable by its owner only, unless the file is there already.

    A node calls this when its data directory has been opened: not before, lest a new secret lands in a folder that turns out
    not to be ours. A node that dies in between makes another one, and only contexts that it gave out meanwhile are refused.
    """
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        return
    with os.fdopen(descriptor, "wb") as file:
        file.write(bytes(secret) + b"\n")
        file.flush()
        os.fsync(file.fileno())


def read_secret(path: Path, origin: str) -> Secret:
    """Read a secret file. White space around the secret is not part of it.

    Raises:
        ConfigError: it is missing, not a file, open to others, or not of a sensible length.
    """
    where = f"secret_file {path}" + ("" if origin == "default" else f" (from {origin})")
    try:
        with path.open("rb") as file:
            status = os.fstat(file.fileno())  # of what is open, not of what may be there a moment later
            content = file.read(SECRET_BYTES_MAX + 1)
    except OSError as error:
        raise ConfigError(f"cannot read the {where}: {error.strerror or error}") from None
    if not stat.S_ISREG(status.st_mode):
        raise ConfigError(f"the {where} is not a file")
    if status.st_uid not in (os.geteuid(), 0):
        raise ConfigError(f"the {where} belongs to another user: chown it to the one that runs the node")
    if status.st_mode & 0o077:
        mode = stat.S_IMODE(status.st_mode)
        raise ConfigError(f"the {where} is open to other users (mode {mode:04o}): chmod 600 {path}")
    if len(content) > SECRET_BYTES_MAX:
        raise ConfigError(f"the {where} is longer than {SECRET_BYTES_MAX} bytes: that is no secret")
    secret = Secret(content.strip())
    if len(secret) < SECRET_BYTES_MIN:
        raise ConfigError(f"the {where} holds {len(secret)} bytes: a secret needs at least {SECRET_BYTES_MIN}")
    return secret
