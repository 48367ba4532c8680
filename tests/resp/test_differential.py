"""The same commands to a real Redis and to the door give the same replies."""

from __future__ import annotations

import re
import time
from typing import Any

import hiredis
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.resp.door import Bare

KEYS = st.sampled_from(["a", "b", "c", ""])
VALUES = st.sampled_from(["", "1", "-5", "hello", "x" * 50, "\x00\r\n", "007"])
NUMBERS = st.sampled_from(["0", "1", "-1", "2", "5", "-3", "100", "abc", "", "01", "+1", "9223372036854775807", "1.5"])
SECONDS = st.sampled_from(["100", "200", "9000", "0", "-1", "abc", "9223372036854775807", "9223372036854775"])
STAMPS = st.sampled_from([str(int(time.time()) + 5000), str(int(time.time()) + 9000), "1", "-1"])
STAMPS_MS = st.sampled_from([str(int(time.time()) * 1000 + 5_000_000), "1", "-1", "9223372036854775807"])


def cmd(*parts: Any) -> st.SearchStrategy[tuple[str, ...]]:
    return st.tuples(*(part if isinstance(part, st.SearchStrategy) else st.just(part) for part in parts))


def some(*choices: str) -> st.SearchStrategy[str]:
    return st.sampled_from(choices)


SET_OPTIONS = st.lists(
    some("NX", "XX", "GET", "KEEPTTL", "get", "FOO").map(lambda word: (word,))
    | cmd(some("EX", "PX", "ex"), SECONDS)
    | cmd("EXAT", STAMPS)
    | cmd("PXAT", STAMPS_MS)
    | some("EX", "PX").map(lambda word: (word,)),
    max_size=3,
).map(lambda found: tuple(word for words in found for word in words))

COMMANDS = st.one_of(
    st.tuples(cmd("SET", KEYS, VALUES), SET_OPTIONS).map(lambda pair: pair[0] + pair[1]),
    cmd(some("GET", "get", "STRLEN", "TYPE", "GETDEL", "TTL", "PTTL", "EXPIRETIME", "PEXPIRETIME", "PERSIST"), KEYS),
    cmd(some("GETEX"), KEYS),
    cmd("GETEX", KEYS, some("EX", "PX"), SECONDS),
    cmd("GETEX", KEYS, some("PERSIST", "FOO", "EX")),
    cmd(some("SETEX", "PSETEX"), KEYS, SECONDS, VALUES),
    cmd(some("SETNX", "GETSET"), KEYS, VALUES),
    cmd(some("EXPIRE", "PEXPIRE"), KEYS, SECONDS),
    cmd(some("EXPIRE", "PEXPIRE"), KEYS, SECONDS, some("NX", "XX", "GT", "LT", "gt", "FOO")),
    cmd("EXPIRE", KEYS, SECONDS, some("NX", "XX"), some("GT", "LT", "XX")),
    cmd("EXPIREAT", KEYS, STAMPS),
    cmd("PEXPIREAT", KEYS, STAMPS_MS),
    cmd(some("GETRANGE", "SUBSTR"), KEYS, NUMBERS, NUMBERS),
    cmd("SETRANGE", KEYS, NUMBERS.filter(lambda text: len(text) < 9), VALUES),
    cmd("APPEND", KEYS, VALUES),
    cmd(some("MGET", "EXISTS", "DEL", "UNLINK", "TOUCH"), KEYS, KEYS),
    cmd("MSET", KEYS, VALUES, KEYS, VALUES),
    cmd("MSETNX", KEYS, VALUES, KEYS, VALUES),
    cmd("MSET", KEYS, VALUES, KEYS),
    cmd(some("RENAME", "RENAMENX", "COPY"), KEYS, KEYS),
    cmd("COPY", KEYS, KEYS, "REPLACE"),
    cmd("COPY", KEYS, KEYS, "DB", some("1", "15", "16", "-1")),
    cmd("KEYS", some("*", "[ab]", "?", "a*", "[^a]", "")),
    cmd("SELECT", some("0", "1", "15", "16", "-1", "01", "+1")),
    cmd("OBJECT", "ENCODING", KEYS),
    cmd(some("DBSIZE", "PING", "MULTI", "EXEC", "DISCARD", "UNWATCH", "RESET", "FLUSHDB")),
    cmd(some("GET", "SET", "ECHO", "EXISTS", "DEL", "SETEX", "SELECT", "OBJECT", "CLIENT", "CONFIG", "EXPIRE")),
    cmd(some("PING", "ECHO", "NOSUCH", "FLUSHDB"), VALUES),
    cmd("NOSUCH", VALUES, VALUES, VALUES),
    cmd("CLIENT", some("GETNAME", "NOSUCH", "KILL", "ID x")),
    cmd("CLIENT", "SETNAME", some("me", "a b", "")),
    cmd("HELLO", some("2", "4", "x")),
    cmd("COMMAND", "GETKEYS", some("GET", "MSET", "PING"), KEYS, VALUES),
)  # fmt: skip

DURATIONS = {"TTL", "PTTL", "EXPIRETIME", "PEXPIRETIME"}


def told(client: Bare, args: tuple[str, ...]) -> Any:
    """The reply, with what may differ made equal: the time that passed between the two, the order of keys."""
    found = client.ask(*args)
    if isinstance(found, hiredis.ReplyError):
        return re.sub(r"\s+", " ", f"error {found}")
    name = args[0].upper()
    if name in DURATIONS and isinstance(found, int) and found > 0:
        return round(found / (1000 if name.startswith("P") else 1), -2)
    if name == "KEYS" and isinstance(found, list):
        return sorted(found)
    if name == "OBJECT" and isinstance(found, bytes):
        return "encoding"  # Redis remembers which strings were appended to
    if name == "DBSIZE" and isinstance(found, int):
        return "count"  # an estimate: expired keys count until they are reaped
    if name == "HELLO" and isinstance(found, list):
        return "hello"
    return found


def in_batch(args: tuple[str, ...], batch: list[tuple[str, ...]], found: Any) -> Any:
    """Replies of EXEC are normalised like those of its commands."""
    if args[0] != "EXEC" or not isinstance(found, list):
        return found
    shown: list[Any] = []
    for one, reply in zip(batch, found, strict=True):
        if isinstance(reply, hiredis.ReplyError):
            shown.append(f"error {reply}")
        elif one[0] in DURATIONS and reply > 0:
            shown.append("time")
        else:
            shown.append(
                sorted(reply) if one[0] == "KEYS" else "" if one[0] in {"HELLO", "OBJECT", "DBSIZE"} else reply
            )
    return shown


def compare(door_port: int, redis_port: int, commands: list[tuple[str, ...]]) -> None:
    with Bare(door_port) as ours, Bare(redis_port) as redis:
        for client in (ours, redis):
            assert client.ask("FLUSHALL") == b"OK"
        batch: list[tuple[str, ...]] = []
        for args in commands:
            mine, theirs = told(ours, args), told(redis, args)
            mine, theirs = in_batch(args, batch, mine), in_batch(args, batch, theirs)
            assert mine == theirs, args
            if mine == b"QUEUED":
                batch.append(args)
            elif args[0] in {"MULTI", "RESET"}:
                batch = []


@settings(max_examples=150, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture])
@given(st.lists(COMMANDS, min_size=5, max_size=30))
def test_same_replies_as_redis(lenient_door, redis_port, commands):
    """Whatever the sequence."""
    compare(lenient_door.port, redis_port, commands)


@pytest.mark.parametrize("version", ["2", "3"])
@pytest.mark.parametrize(
    "args",
    [
        ("PING",), ("GET", "none"), ("GET", "key"), ("MGET", "key", "none"), ("CONFIG", "GET", "save"), ("SCAN", "0"),
        ("CONFIG", "GET", "maxmemory"), ("COMMAND", "INFO", "nosuch"), ("COMMAND", "DOCS", "nosuch"), ("RANDOMKEY",),
        ("MODULE", "LIST"), ("SLOWLOG", "GET"), ("SLOWLOG", "LEN"), ("LATENCY", "LATEST"), ("CLIENT", "GETNAME"),
        ("ACL", "WHOAMI"), ("OBJECT", "ENCODING", "none"), ("MEMORY", "USAGE", "none"), ("GETEX", "none"),
        ("EXISTS", "key", "key"), ("KEYS", "*"), ("CLUSTER", "INFO"), ("CLIENT", "GETREDIR"), ("SET", "key", "1", "GET"),
        ("ECHO", "x"), ("TYPE", "key"), ("COMMAND", "GETKEYS", "MSET", "a", "1", "b", "2"), ("DBSIZE",),
    ],
)  # fmt: skip
def test_same_bytes_as_redis(lenient_door, redis_port, version, args):
    """In both versions of the protocol, byte by byte."""
    raw = []
    for port in (lenient_door.port, redis_port):
        with Bare(port) as client:
            client.ask("HELLO", version)
            client.ask("FLUSHALL")
            client.ask("SET", "key", "value")
            client.send(b"".join([b"*%d\r\n" % len(args), *(b"$%d\r\n%b\r\n" % (len(a), a.encode()) for a in args)]))
            client.send(b"*2\r\n$4\r\nECHO\r\n$3\r\nend\r\n")
            data = b""
            while not data.endswith(b"$3\r\nend\r\n"):
                data += client.socket.recv(65536)
            raw.append(data)
    assert raw[0] == raw[1]
