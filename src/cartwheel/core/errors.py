"""Errors, sorted by whose fault they are.

What a client is told is a ``Failure`` value (see ``messages``), not an exception; exceptions are for a caller in this process.
``assert`` is for our own bugs and stays on in production.
"""

from __future__ import annotations

import enum


class CartwheelError(Exception):
    """Base of all errors that Cartwheel raises on purpose."""


class ClientError(CartwheelError):
    """The request cannot be served as it stands: the caller must change it."""


class PeerError(CartwheelError):
    """Another node sent something that this version cannot accept."""


class CorruptData(CartwheelError):
    """Stored or received bytes fail their checksum or do not parse."""


class ConfigError(CartwheelError):
    """A setting, flag or data directory is wrong; the message says which one and what to do."""


class ClockSkew(CartwheelError):
    """A remote clock reading is further ahead than the configured skew allows."""


class BadContext(ClientError):
    """A context token is damaged, forged, or belongs to another key."""


class HintsFull(CartwheelError):
    """No room for another hint: the limit for this intended node, or for all, is reached."""


class StorageFailed(CartwheelError):
    """The storage engine could not complete a write or sync. The node halts; a sync is never tried again."""


class Code(enum.StrEnum):
    """The kinds of failure a client can be told; the first word of a Redis error reply."""

    NOQUORUM = "NOQUORUM"
    """Too few replicas answered."""
    BADCONTEXT = "BADCONTEXT"
    TOOBIG = "TOOBIG"
    """A key or value over the bucket's limit."""
    TOOMANYSIBLINGS = "TOOMANYSIBLINGS"
    BUSY = "BUSY"
    """A queue is full; try again later."""
    INVALID = "ERR"
    """The request's arguments make no sense, e.g. ``W`` above ``n``."""
