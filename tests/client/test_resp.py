"""The synchronous connection against a small real server."""

import socket

import pytest
from tests.bench.resp_server import HANG_UP, SILENCE, RespServer

from cartwheel.client import resp
from cartwheel.client.resp import CannotReach, Connection, ConnectionLost, ReplyError, pack_command, parse_address
from cartwheel.core.errors import ConfigError


@pytest.fixture
def server():
    with RespServer() as server:
        yield server


def test_call_returns_the_reply(server):
    """Values come as bytes, a missing one as None, numbers as int, arrays as lists."""
    with Connection("127.0.0.1", server.port) as connection:
        assert connection.call("PING") == b"PONG"
        assert connection.call("SET", "k", b"\x00\r\n") == b"OK"
        assert connection.call("GET", b"k") == b"\x00\r\n"
        assert connection.call("GET", "absent") is None
        server.answer = lambda _server, _command: b"*2\r\n:7\r\n*1\r\n$1\r\na\r\n"
        assert connection.call("ANY") == [7, [b"a"]]


def test_an_error_reply_is_raised_with_its_code(server):
    """The first word is the code; the connection stays usable."""
    server.answer = lambda _server, command: b"-NOQUORUM need W=2, got 1\r\n" if command[0] == b"SET" else b"+PONG\r\n"
    with Connection("127.0.0.1", server.port) as connection:
        with pytest.raises(ReplyError, match=r"^NOQUORUM need W=2, got 1$") as caught:
            connection.call("SET", "k", "v")
        assert (caught.value.code, caught.value.text) == ("NOQUORUM", "need W=2, got 1")
        assert connection.call("PING") == b"PONG"


def test_call_tries_again_when_the_node_is_busy(server, monkeypatch):
    """Nothing was done, so it may: after pauses that grow, and not for ever."""
    pauses = []
    monkeypatch.setattr(resp.time, "sleep", pauses.append)
    busy = [2]

    def answer(server, command):
        busy[0] -= 1
        return b"-BUSY try again later\r\n" if busy[0] >= 0 else server.honest(command)

    server.answer = answer
    with Connection("127.0.0.1", server.port) as connection:
        assert connection.call("SET", "k", "v") == b"OK"
        assert [0.025 <= pauses[0] <= 0.075, 0.05 <= pauses[1] <= 0.15] == [True, True]
        busy[0] = 99
        with pytest.raises(ReplyError, match="BUSY"):
            connection.call("SET", "k", "v")
        assert (len(pauses), busy[0]) == (2 + resp.BUSY_TRIES - 1, 99 - resp.BUSY_TRIES)


def test_a_busy_whose_outcome_is_unknown_is_not_tried_again(server):
    """A put that another node was to carry out may have been."""
    server.answer = lambda _server, _command: b"-BUSY at the owner (outcome unknown: it may be stored)\r\n"
    with Connection("127.0.0.1", server.port) as connection, pytest.raises(ReplyError, match="unknown"):
        connection.call("SET", "k", "v")
    assert len(server.commands) == 1


def test_pipeline_keeps_order_and_returns_errors_in_place(server):
    """One reply per command, an error among them; an empty pipeline sends nothing."""
    with Connection("127.0.0.1", server.port) as connection:
        replies = connection.pipeline([("SET", "k", 1), ("NOPE",), ("GET", "k")])
        assert replies[0] == b"OK"
        assert isinstance(replies[1], ReplyError)
        assert replies[2] == b"1"
        assert connection.pipeline([]) == []


def test_a_pipeline_longer_than_one_read(server):
    """Replies that come in many pieces are put together."""
    value = b"v" * 300_000
    with Connection("127.0.0.1", server.port) as connection:
        connection.call("SET", "k", value)
        assert connection.pipeline([("GET", "k")] * 3) == [value] * 3


def test_nobody_listens():
    """The message names the address and a way out."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))  # taken, but not listening
        port = sock.getsockname()[1]
        with pytest.raises(CannotReach) as caught:
            Connection("127.0.0.1", port)
    expected = f"cannot reach a node at 127.0.0.1:{port}: connection refused; is it running? try 'cartwheel dev'"
    assert str(caught.value) == expected


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (HANG_UP, "closed the connection before it had answered"),
        (b"$5\r\nab" + HANG_UP, "did not answer within 0.05 s"),
        (SILENCE, "did not answer within 0.05 s"),
        (b"HTTP/1.1 400 Bad Request\r\n", "does not speak the Redis protocol"),
    ],
)
def test_a_missing_reply_closes_the_connection(answer, message):
    """Each row's answer leaves a reply out: the caller hears so, and a later reply cannot be taken for another's."""
    with (
        RespServer(lambda _server, _command: answer) as server,
        Connection("127.0.0.1", server.port, timeout_s=0.05) as connection,
    ):
        with pytest.raises(ConnectionLost, match=message):
            connection.call("GET", "k")
        with pytest.raises(ConnectionLost):
            connection.call("PING")


def test_pack_command():
    """Arguments of any kind become bulk strings."""
    assert pack_command("SET", b"k", 12) == b"*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$2\r\n12\r\n"
    assert pack_command("é") == b"*1\r\n$2\r\n\xc3\xa9\r\n"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("127.0.0.1:7700", ("127.0.0.1", 7700)),
        ("node-1", ("node-1", 7700)),
        (":7710", ("127.0.0.1", 7710)),
        ("[::1]:7710", ("::1", 7710)),
        ("[::1]", ("::1", 7700)),
        ("::1", ("::1", 7700)),
    ],
)
def test_parse_address(text, expected):
    """Each row is a way to write an address."""
    assert parse_address(text) == expected


@pytest.mark.parametrize("text", ["a:b", "a:0", "a:65536", "a:", "a:-1", "a:²"])
def test_parse_address_refuses(text):
    """None of these names a port."""
    with pytest.raises(ConfigError, match="is not a node's address"):
        parse_address(text)
