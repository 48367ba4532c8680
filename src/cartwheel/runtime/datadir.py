"""A node's data directory: whose it is, that only one process uses it, and the storage engine in it.

    DIR/CARTWHEEL    whose: format, cluster, node, engine, partitions of the ring, time of creation (JSON). Written once
    DIR/lock         held (flock) while a node runs; holds its process id
    DIR/engine/      the engine's own files

A node that starts on a foreign directory would hand out other people's records, mint dots under a name that is not its own, or
forget its promises: so everything is checked before the engine is opened, and each refusal says what is wrong, where, and what
to do. With the engine ``memory`` the directory holds the first two only: the node keeps its name, but its data are gone at a
restart.

The node's stint and the mark of a clean stop are in the engine (``Space.META``), beside the records that they speak of: a
directory that is restored from a copy then carries both from one moment.

Invariants:
1. A directory with a ``CARTWHEEL`` file is complete: that file is renamed into place when all of it is on the disk.
2. The lock is taken before anything is written, and held until ``close``. The kernel drops it with the process, however it ends.
"""

from __future__ import annotations

import datetime
import fcntl
import os
from pathlib import Path

import msgspec

from cartwheel.core.errors import ConfigError
from cartwheel.core.storage import Engine
from cartwheel.runtime.engines import ENGINES, open_engine

FORMAT = 2
"""Of the directory's layout. A program refuses any other: 1 is of a development build that cut the rings of new clusters
otherwise, so that the records would be looked for elsewhere."""

IDENTITY_FILE, LOCK_FILE, ENGINE_FOLDER = "CARTWHEEL", "lock", "engine"
_TEMPORARY = IDENTITY_FILE + ".tmp"
_EMPTY = {LOCK_FILE, _TEMPORARY, "secret", "log", "lost+found"}
"""What an unused directory may hold: what a start leaves that was cut short, and what mkfs puts into a new file system."""


class Identity(msgspec.Struct, frozen=True, kw_only=True):
    """What the ``CARTWHEEL`` file says. Fields that this version does not know are ignored: the format says what matters."""

    format: int
    cluster: str
    node: str
    engine: str
    q: int
    """Partitions of the ring."""
    created: str
    """UTC, ISO 8601. For people."""
    place: str = ""
    """The device and inode of the folder when it was opened last: a copy has others. "": an earlier build opened it."""


class _Format(msgspec.Struct):
    format: int


class DataDir:
    """An open data directory. Made by ``open_datadir``."""

    def __init__(self, path: Path, identity: Identity, engine: Engine, lock: int, *, copied: bool = False) -> None:
        self.path = path
        self.copied = copied
        """It is not the folder that was open last, but a copy of it (or its contents were moved): the other one may be in use."""
        self.identity = identity
        self.engine = engine
        self._lock: int | None = lock

    def close(self) -> None:
        """Close the engine, then unlock. Idempotent.

        Raises:
            StorageFailed: the engine could not be closed in order. The directory is unlocked all the same.
        """
        if self._lock is None:
            return
        lock, self._lock = self._lock, None
        try:
            self.engine.close()
        finally:
            os.close(lock)


def open_datadir(path: Path, *, cluster: str, node: str, engine: str, q: int) -> DataDir:
    """Open the data directory of ``node``; create it (mode 0700) if there is none or an empty one.

    Raises:
        ConfigError: the directory is not this node's, in use, damaged, of a newer format, or not to be written.
        StorageFailed: all that is well, but the engine does not open.
    """
    if engine not in ENGINES:
        raise ConfigError(f"unknown storage engine {engine!r}: choose one of {', '.join(ENGINES)}")
    try:
        _make_folder(path)
        if not (path / IDENTITY_FILE).exists():
            _check_unused(path)
        lock = _lock(path)
    except OSError as error:
        raise _unusable(path, error) from None
    try:
        try:
            identity = _read_identity(path)
            if identity is None:
                _check_unused(path)
                identity = Identity(format=FORMAT, cluster=cluster, node=node, engine=engine, q=q, created=_now())
            else:
                _check_identity(path, identity, cluster, node, engine, q)
            copied = identity.place not in ("", _place(path))
            if identity.place != _place(path):
                identity = msgspec.structs.replace(identity, place=_place(path))
                _write_identity(path, identity)
            if engine != "memory":
                _make_folder(path / ENGINE_FOLDER)
        except OSError as error:
            raise _unusable(path, error) from None
        return DataDir(path, identity, open_engine(engine, path / ENGINE_FOLDER), lock, copied=copied)
    except BaseException:
        os.close(lock)
        raise


def known_q(path: Path) -> int | None:
    """How many partitions the ring of this data directory has; None: it is a new one.

    Raises:
        ConfigError: it cannot be read.
    """
    try:
        identity = _read_identity(path)
    except OSError as error:
        raise _unusable(path, error) from None
    return None if identity is None else identity.q


def _unusable(path: Path, error: OSError) -> ConfigError:
    what = error.strerror or str(error)
    where = f" ({error.filename})" if error.filename and str(error.filename) != str(path) else ""
    return ConfigError(
        f"data directory {path} cannot be used: {what}{where}; the user that the node runs as must be able to read and write it"
    )


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def _sync_folder(path: Path) -> None:
    """Make new names in a directory survive a loss of power."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _make_folder(path: Path) -> None:
    if not path.is_dir():
        path.mkdir(mode=0o700, parents=True)
        _sync_folder(path.parent)


def _check_unused(path: Path) -> None:
    strangers = sorted({entry.name for entry in path.iterdir()} - _EMPTY)
    if strangers:
        raise ConfigError(
            f"directory {path} is not empty and has no {IDENTITY_FILE} file, so it is no data directory of ours: it holds "
            f"{', '.join(strangers[:3])}{', ...' if len(strangers) > 3 else ''}; name an empty or a new directory"
        )


def _lock(path: Path) -> int:
    """Take the directory's lock. The descriptor holds it (and is not inherited by child processes)."""
    fd = os.open(path / LOCK_FILE, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.ftruncate(fd, 0)
        os.pwrite(fd, b"%d\n" % os.getpid(), 0)
    except BlockingIOError:
        holder = os.pread(fd, 32, 0).strip().decode("ascii", "replace") or "unknown"
        os.close(fd)
        raise ConfigError(
            f"data directory {path} is in use by the process {holder}; stop that node, or give this one its own directory"
        ) from None
    except BaseException:
        os.close(fd)
        raise
    return fd


def _read_identity(path: Path) -> Identity | None:
    """What the directory says it is; None if it says nothing."""
    file = path / IDENTITY_FILE
    try:
        text = file.read_bytes()
    except FileNotFoundError:
        return None
    try:
        format_ = msgspec.json.decode(text, type=_Format).format  # first: a newer one may have other fields
        if format_ > FORMAT:
            raise ConfigError(
                f"data directory {path} has format {format_}, and this program knows formats up to {FORMAT}: a newer version "
                f"made it; run that version, or start with an empty directory"
            )
        if format_ < FORMAT:
            raise ConfigError(
                f"data directory {path} has format {format_}, of a development build whose rings were cut otherwise: copy what "
                "you need with that build, and start with an empty directory"
            )
        return msgspec.json.decode(text, type=Identity)
    except msgspec.DecodeError as error:
        raise ConfigError(
            f"{file} is damaged ({error}), so it is not known whose data these are; restore the file from a copy, or start "
            f"with an empty directory"
        ) from None


def _place(path: Path) -> str:
    found = path.stat()
    return f"{found.st_dev}:{found.st_ino}"


def _write_identity(path: Path, identity: Identity) -> None:
    temporary = path / _TEMPORARY
    with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
        file.write(msgspec.json.format(msgspec.json.encode(identity)) + b"\n")
        file.flush()
        os.fsync(file.fileno())
    temporary.rename(path / IDENTITY_FILE)
    _sync_folder(path)


def _check_identity(path: Path, identity: Identity, cluster: str, node: str, engine: str, q: int) -> None:
    if identity.cluster != cluster:
        raise ConfigError(
            f"data directory {path} belongs to cluster {identity.cluster!r}, not {cluster!r}; name another directory, or "
            f"correct the cluster id"
        )
    if identity.node != node:
        raise ConfigError(
            f"data directory {path} belongs to node {identity.node!r}, not {node!r}; name another directory, or start the "
            f"node under its name (a node cannot be renamed)"
        )
    if identity.engine != engine:
        raise ConfigError(
            f"data directory {path} was made with the storage engine {identity.engine!r}, not {engine!r}; set the engine to "
            f"{identity.engine!r}, or start with an empty directory and let the other replicas fill it"
        )
    if identity.q != q:
        raise ConfigError(
            f"data directory {path} is of a ring of {identity.q} partitions, not {q}: set q to {identity.q}; it is fixed when "
            "a cluster is created"
        )
