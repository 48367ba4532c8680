"""Replies in the Redis protocol, versions 2 and 3.

A reply is bytes, made once. The two versions differ only in what has a function with a ``resp3`` argument here: nulls, maps,
sets and doubles. All errors are one line: a client that meets a line break inside an error loses its place in the stream.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from cartwheel.core.messages import Failure

OK = b"+OK\r\n"
PONG = b"+PONG\r\n"
QUEUED = b"+QUEUED\r\n"
NIL2 = b"$-1\r\n"
NIL3 = b"_\r\n"
EMPTY_ARRAY = b"*0\r\n"
BUSY = b"-BUSY the node has as many requests under way as it can answer in time; try again a little later\r\n"
"""Certainly not applied. Made once: a node that refuses much must do it cheaply."""
ZERO = b":0\r\n"
ONE = b":1\r\n"

_ONE_LINE = {ord("\r"): " ", ord("\n"): " "}


class CommandError(Exception):
    """A command's error reply: its text begins with the code (``ERR ...``). Not a ``ClientError``: it never leaves the door."""


SYNTAX_ERROR = "ERR syntax error"
NOT_AN_INTEGER = "ERR value is not an integer or out of range"


def error(text: str) -> bytes:
    """An error reply: its text begins with the code."""
    return b"-" + text.translate(_ONE_LINE).encode("utf-8", "replace") + b"\r\n"


def failure_text(failure: Failure) -> str:
    """What a client is told of a failed request. A write whose outcome is unknown must say so: a retry may apply it twice."""
    text = failure.text
    if failure.unknown and "unknown" not in text:
        text += " (outcome unknown: the write may be stored on some replicas and appear later)"
    return f"{failure.code.value} {text}"


def failure(result: Failure) -> bytes:
    """An error reply for a failed request."""
    return error(failure_text(result))


def simple(text: str) -> bytes:
    """A status, such as the type of a key."""
    return b"+%b\r\n" % text.encode()


def bulk(value: bytes | str) -> bytes:
    """A binary-safe string."""
    if isinstance(value, str):
        value = value.encode("utf-8", "surrogateescape")
    return b"$%d\r\n%b\r\n" % (len(value), value)


def integer(number: int) -> bytes:
    """A whole number."""
    return b":%d\r\n" % number


def array(items: Sequence[bytes]) -> bytes:
    """An array of replies, each already encoded."""
    return b"*%d\r\n%b" % (len(items), b"".join(items))


def bulks(values: Iterable[bytes | str]) -> bytes:
    """An array of strings."""
    return array([bulk(value) for value in values])


def nil(resp3: bool) -> bytes:
    """Nothing, where a string would stand."""
    return NIL3 if resp3 else NIL2


def mapping(pairs: Sequence[tuple[bytes, bytes]], resp3: bool) -> bytes:
    """A map; in version 2 a flat array of names and values."""
    body = b"".join(name + value for name, value in pairs)
    return b"%%%d\r\n%b" % (len(pairs), body) if resp3 else b"*%d\r\n%b" % (2 * len(pairs), body)


def as_set(items: Sequence[bytes], resp3: bool) -> bytes:
    """A set; in version 2 an array."""
    return b"~%d\r\n%b" % (len(items), b"".join(items)) if resp3 else array(items)


def verbatim(text: str, resp3: bool) -> bytes:
    """Text for people, which redis-cli prints as it stands; in version 2 a string."""
    raw = text.encode()
    return b"=%d\r\ntxt:%b\r\n" % (len(raw) + 4, raw) if resp3 else bulk(raw)


class Word(str):
    """A word of the protocol's own, such as a flag: a status reply, not a string. Clients tell them apart."""

    __slots__ = ()


def plain(value: object, resp3: bool) -> bytes:
    """Encode a tree of Python values: maps and sets become such, floats strings in version 2, None the null."""
    if value is None:
        return nil(resp3)
    if isinstance(value, bool):
        return integer(int(value))
    if isinstance(value, int):
        return integer(value)
    if isinstance(value, float):
        return b",%b\r\n" % repr(value).encode() if resp3 else bulk(repr(value))
    if isinstance(value, Word):
        return simple(value)
    if isinstance(value, bytes | str):
        return bulk(value)
    if isinstance(value, frozenset):
        return as_set([plain(each, resp3) for each in sorted(value)], resp3)
    if isinstance(value, dict):
        return mapping([(bulk(str(name)), plain(each, resp3)) for name, each in value.items()], resp3)
    assert isinstance(value, list | tuple), f"no reply is made of {type(value).__name__}"
    return array([plain(each, resp3) for each in value])
