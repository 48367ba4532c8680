"""The storage engines, by the names that the settings use (the contract is ``core/storage.py``; Dynamo section 5, "local
persistence engine").

    rocksdb   the default: cheap durable writes, larger than memory
    lmdb      for read-heavy use: a read costs half as much, and any write, durable or not, waits for the disk
    memory    for tests and caches: everything is gone with the process

A library is imported when its engine is opened, so a node needs only the one that it uses.
"""

from __future__ import annotations

from pathlib import Path

from cartwheel.core.errors import ConfigError
from cartwheel.core.storage import Engine

ENGINES = ("rocksdb", "lmdb", "memory")
"""What ``open_engine`` accepts, the default first."""


def open_engine(name: str, path: Path) -> Engine:
    """Open the engine ``name`` over the directory ``path``, which it creates if need be. The caller closes it.

    Raises:
        ConfigError: there is no such engine, or its library is not installed.
        StorageFailed: the files are locked, damaged, not writable, or of another engine.
    """
    if name not in ENGINES:
        raise ConfigError(f"unknown storage engine {name!r}: choose one of {', '.join(ENGINES)}")
    try:
        if name == "rocksdb":
            from cartwheel.runtime.engines.rocksdb import RocksEngine

            return RocksEngine(path)
        if name == "lmdb":
            from cartwheel.runtime.engines.lmdb import LmdbEngine

            return LmdbEngine(path)
    except ImportError as error:
        raise ConfigError(
            f"the storage engine {name!r} cannot be used: {error}; install its library or choose another engine"
        ) from None
    from cartwheel.runtime.engines.memory import SharedMemoryEngine

    return SharedMemoryEngine()
