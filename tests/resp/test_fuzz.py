"""Whatever a client sends, each command gets one reply, and nothing is raised: an exception would halt the node."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st
from tests.resp.door import encode, replies_in, wired
from tests.resp.local import LocalGateway

from cartwheel.runtime.resp.gateway import DoorSettings
from cartwheel.runtime.resp.registry import commands

NAMES = [
    name
    for each in commands()
    for name in ([each.name] + [sub.name.replace("|", " ") for sub in each.subcommands.values()])
    if each.name not in {"QUIT", "MULTI"} and not name.endswith("KILL")
]
WORDS = [
    *("a", "b", "", "0", "1", "-1", "16", "99999999999999999999", "abc", "1.5", "NX", "XX", "GET", "EX", "PX", "EXAT"),
    *(
        "KEEPTTL",
        "PERSIST",
        "MATCH",
        "COUNT",
        "TYPE",
        "string",
        "*",
        "[",
        "REPLACE",
        "DB",
        "R",
        "W",
        "BUCKET",
        "CONTEXT",
    ),
    *("JSON", "ID", "AUTH", "SETNAME", "default", "LIST", "SET", "DOCS", "GETKEYS", "LIB-NAME", "ON", "OFF", "n", "AQ"),
    *("resp.multi", "batch", "\udcff\udcfe".encode("utf-8", "surrogateescape"), b"\r\n", "FILTERBY", "PATTERN", "USER"),
]
ARGS = st.lists(st.sampled_from(WORDS) | st.binary(max_size=5), max_size=6)


@settings(max_examples=400)
@given(st.lists(st.tuples(st.sampled_from(NAMES), ARGS), max_size=8), st.sampled_from(["2", "3"]))
def test_one_reply_for_each_command(chosen, version):
    """Every command, with any arguments."""
    connection, wire = wired(LocalGateway(DoorSettings(allow_best_effort_nx=True, allow_flush=True)))
    connection.data_received(encode("HELLO", version) + encode("SET", "a", "1"))
    for name, args in chosen:
        before = len(replies_in(wire.sent))
        connection.data_received(encode(*name.split(), *args))
        assert len(replies_in(wire.sent)) == before + 1, (name, args)
    assert not connection.under_way


@given(st.lists(st.binary(max_size=30), max_size=10))
def test_garbage_raises_nothing(chunks):
    """Bytes of no meaning at all."""
    connection, wire = wired(LocalGateway())
    for chunk in chunks:
        connection.data_received(chunk)
    replies_in(wire.sent)
