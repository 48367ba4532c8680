"""The parser: one stream, one meaning, however it is cut."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.resp.door import encode

from cartwheel.runtime.resp.parser import BULK_BYTES_MAX, Command, Parser, Problem, split_inline

ARGS = st.lists(st.binary(max_size=40), min_size=1, max_size=5)
INLINE = st.lists(st.text("abc019.:", min_size=1, max_size=9), min_size=1, max_size=4)


def parse(chunks: list[bytes], parser: Parser | None = None) -> list[Command]:
    parser = parser or Parser()
    return [command for chunk in chunks for command in parser.feed(chunk)]


def strictly(data: bytes) -> list[Command]:
    """The reference: byte by byte, so that only the strict parser sees it."""
    return parse([data[at : at + 1] for at in range(len(data))])


def cut(data: bytes, at: list[int]) -> list[bytes]:
    edges = [0, *sorted(place % (len(data) + 1) for place in at), len(data)]
    return [data[low:high] for low, high in itertools.pairwise(edges)]


@given(st.lists(ARGS, max_size=8), st.lists(st.integers(0, 1000), max_size=6))
def test_any_cutting_gives_the_same_commands(commands, at):
    """What was encoded comes out, whatever the chunks."""
    data = b"".join(encode(*args) for args in commands)
    assert parse(cut(data, at)) == commands


@given(st.lists(ARGS | INLINE, max_size=8), st.lists(st.integers(0, 1000), max_size=6))
def test_inline_commands_may_stand_between_others(commands, at):
    """An inline command is one like any other."""
    parts = [encode(*args) if isinstance(args[0], bytes) else " ".join(args).encode() + b"\r\n" for args in commands]
    wanted = [[a if isinstance(a, bytes) else a.encode() for a in args] for args in commands]
    assert parse(cut(b"".join(parts), at)) == wanted


TOKENS = st.sampled_from(
    [b"*1\r\n", b"*2\r\n", b"*0\r\n", b"*-1\r\n", b"*", b"$", b"$1\r\na\r\n", b"$0\r\n\r\n", b"$-1\r\n", b"\r\n", b"\n"]
    + [b"+OK\r\n", b":1\r\n", b"_\r\n", b"%1\r\n", b"#t\r\n", b",1.5\r\n", b"PING\r\n", b'"', b"'", b"\\x", b" ", b"\0"]
    + [b"*2000000\r\n", b"$999999999999\r\n", b"*1x\r\n", b"$01\r\n", b"*+1\r\n", b"=5\r\ntxt:a\r\n"]
)


@given(st.lists(TOKENS | st.binary(max_size=6), max_size=12).map(b"".join), st.lists(st.integers(0, 200), max_size=6))
def test_garbage_gives_the_same_in_any_cutting_and_never_raises(data, at):
    """Pieces of the protocol in any order: chunks make no difference, and an error ends the stream."""
    found = parse(cut(data, at))
    assert found == strictly(data)
    assert not any(isinstance(one, Problem) for one in found[:-1])


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (b"*1\r\n:1\r\n", "expected '$', got ':'"),
        (b"*1\r\n*1\r\n$1\r\na\r\n", "expected '$', got '*'"),
        (b"*1\r\n+PING\r\n", "expected '$', got '+'"),
        (b"*x\r\n", "invalid multibulk length"),
        (b"*2000000\r\n", "invalid multibulk length"),
        (b"*1\r\n$-1\r\n", "invalid bulk length"),
        (b"*1\r\n$%d\r\n" % (BULK_BYTES_MAX + 1), "invalid bulk length"),
        (b"*1\r\n$a\r\n", "invalid bulk length"),
        (b'SET "a\r\n', "unbalanced quotes in request"),
        (b'SET "a"b\r\n', "unbalanced quotes in request"),
        (b"a" * 70_000, "too big inline request"),
        (b"*" + b"1" * 70_000, "too big mbulk count string"),
        (b"*1\r\n$" + b"1" * 70_000, "too big bulk count string"),
    ],
)
def test_protocol_errors(data, problem):
    """Redis's own words, and nothing is taken afterwards."""
    parser = Parser()
    assert parser.feed(data) == [Problem(f"ERR Protocol error: {problem}", fatal=True)]
    assert parser.feed(encode("PING")) == []


@pytest.mark.parametrize("data", [b"*0\r\n", b"*-1\r\n", b"*-5\r\n", b"\r\n", b"\n", b"  \r\n", b""])
def test_nothing_is_no_command(data):
    """Empty arrays and lines are passed over."""
    assert parse([data, encode("PING")]) == [[b"PING"]]


@pytest.mark.parametrize(
    ("line", "args"),
    [
        (b"get a", [b"get", b"a"]),
        (b"  get\t a  ", [b"get", b"a"]),
        (b'set "a b" c', [b"set", b"a b", b"c"]),
        (rb'set "\x00\xff\n\r\t\a\b\"\q" c', [b"set", b'\x00\xff\n\r\t\a\b"q', b"c"]),
        (rb"set 'a\'b\n' c", [b"set", rb"a'b\n", b"c"]),
        (b"set \"\" ''", [b"set", b"", b""]),
        (rb'"\xg"', [b"xg"]),
        (b'a"b"', [b"ab"]),
        (b'"a" "', None),
        (b"'a", None),
        (b'"a"b', None),
        (b"", []),
    ],
)
def test_inline_quoting(line, args):
    """Quotes as in Redis's sdssplitargs."""
    assert split_inline(line) == args


def limit(args: list[bytes], total: int, length: int) -> str | None:
    return f"TOOBIG {length}" if length > 100 else "TOOBIG in all" if total > 300 else None


@given(st.lists(st.integers(0, 600), max_size=8))
def test_a_refused_value_is_skipped_and_the_stream_goes_on(at):
    """The command after an oversized one is understood, and the oversized one answers in its place."""
    parser = Parser(limit)
    data = encode("A", "1") + encode("SET", "k", b"*1\r\n" * 120, "tail") + encode("GET", "k")
    chunks = cut(data, at)
    if len(chunks) == 1 or b"" in chunks[:-1]:
        return
    found = parse(chunks, parser)
    assert found[0] == [b"A", b"1"]
    assert found[-1] == [b"GET", b"k"]
    assert found[1] in (Problem("TOOBIG 480", fatal=False), [b"SET", b"k", b"*1\r\n" * 120, b"tail"])


def test_a_refused_value_is_not_buffered():
    """However much of it streams in, nothing of it is kept."""
    parser = Parser(limit)
    assert parser.feed(b"*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$50000000\r\n") == []
    for _ in range(50):
        assert parser.feed(b"x" * 1_000_000) == []
        assert parser.buffered < 100
    assert parser.feed(b"\r\n" + encode("PING")) == [Problem("TOOBIG 50000000", fatal=False), [b"PING"]]


def test_the_arguments_of_one_command_together_are_limited():
    """Many small arguments make a large command."""
    parser = Parser(limit)
    assert parser.feed(b"*6\r\n") == []
    found = parse([b"$4\r\nMSET\r\n"] + [b"$90\r\n" + b"x" * 90 + b"\r\n"] * 5, parser)
    assert found == [Problem("TOOBIG in all", fatal=False)]


def test_limits_are_smaller_before_authentication():
    """As in Redis: ten arguments of 16 KiB."""
    for data, problem in [
        (b"*11\r\n", "unauthenticated multibulk length"),
        (b"*1\r\n$16385\r\n", "unauthenticated bulk length"),
    ]:
        parser = Parser()
        parser.trusted = False
        assert parser.feed(data) == [Problem(f"ERR Protocol error: {problem}", fatal=True)]


def test_a_megabyte_in_small_chunks_is_parsed_in_linear_time():
    """Ten times the value takes about ten times as long: no chunk makes the parser look at the earlier ones again."""
    data = encode("SET", "k", b"v" * 10_000_000)
    found = parse([data[at : at + 16_384] for at in range(0, len(data), 16_384)])
    assert found == [[b"SET", b"k", b"v" * 10_000_000]]


def test_a_huge_array_header_never_reaches_the_fast_parser():
    """It would make room for a million elements at once."""
    parser = Parser()
    assert parser.feed(encode("PING") + b"*1000000\r\n") == [[b"PING"]]
    assert parser.buffered < 100
