"""Cartwheel: Amazon's Dynamo (SOSP 2007) as software that people run. A leaderless, always-writeable key-value store.

The public names below are loaded when first used, so that ``import cartwheel`` (and the command line) costs nothing:

=====================  =================================================================================================
``Connection``         a small synchronous client that speaks the Redis protocol; ``ReplyError`` is an error reply
``Server``, ``run``    a node in this process; ``ServerSettings`` and ``load_settings`` are its settings
``Node``, ``Config``   the pure state machine itself, for those who drive or simulate it
``Record``, ``merge``  versions with dots: what replicas hold, and how two are joined
``BucketProps``        what holds for the keys of a bucket
``CartwheelError``     the base of all errors, with ``ClientError``, ``ConfigError``, ``PeerError``, ``CorruptData``
=====================  =================================================================================================
"""

import importlib
from typing import Any

__version__ = "0.1.0"

_HOME = {
    "BucketProps": "core.config",
    "CartwheelError": "core.errors",
    "ClientError": "core.errors",
    "Config": "core.config",
    "ConfigError": "core.errors",
    "Connection": "client.resp",
    "CorruptData": "core.errors",
    "Durability": "core.types",
    "Node": "core.node",
    "PeerError": "core.errors",
    "Record": "core.versions",
    "ReplyError": "client.resp",
    "Server": "runtime.server",
    "ServerSettings": "runtime.settings",
    "Version": "core.versions",
    "load_settings": "runtime.settings",
    "merge": "core.versions",
    "run": "runtime.server",
}

__all__ = ["__version__", *_HOME]  # noqa: PLE0604 - the keys are strings


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'cartwheel' has no attribute {name!r}")
    return getattr(importlib.import_module(f"cartwheel.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
