"""Addresses as people write them: ``host:port``."""

from __future__ import annotations


def split_address(address: str) -> tuple[str, int]:
    """Split ``host:port`` or ``[::1]:port``.

    Raises:
        ValueError: it is neither.
    """
    host, _, port = address.rpartition(":")
    if not host or not (port.isascii() and port.isdigit()) or not 1 <= int(port) <= 65535:
        raise ValueError(address)
    if ":" in host and not (host.startswith("[") and host.endswith("]")):
        raise ValueError(address)
    return host.removeprefix("[").removesuffix("]"), int(port)


def join_address(host: str, port: int) -> str:
    """``host:port``, the host in brackets if it has colons itself."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
