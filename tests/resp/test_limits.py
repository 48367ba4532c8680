"""Every limit of the door is met with a reply, and what is within it goes on."""

from __future__ import annotations

import socket
import struct

import hiredis
import pytest
from tests.resp.door import Bare, encode, running_door, wait_until


def test_a_value_too_large_is_refused_and_the_connection_lives(bare, key):
    """It is skipped as it streams in."""
    bare.send(encode("SET", key, b"x" * 2097152))
    text = str(bare.read())
    assert text == "TOOBIG value of 2097152 bytes exceeds the limit of 1048576 bytes (bucket property value_bytes_max)"
    assert bare.ask("GET", key) is None


def test_a_key_too_large_is_refused(bare):
    """Whether it fits into one chunk or not."""
    for size in (65_537, 300_000):
        assert bare.error("GET", "k" * size).startswith(f"TOOBIG key of {size} bytes exceeds the limit of 65536 bytes")
    assert bare.ask("PING") == b"PONG"


def test_a_value_that_grows_too_large_is_refused(bare, key):
    """APPEND and SETRANGE build no value that could not be stored."""
    assert bare.error("SETRANGE", key, "9223372036854775807", "x").startswith("TOOBIG")
    assert bare.error("SETRANGE", key, "1048576", "x").startswith("TOOBIG value of 1048577 bytes")
    bare.ask("SET", key, "x" * 1_000_000)
    assert bare.error("APPEND", key, "x" * 100_000).startswith("TOOBIG value of 1100000 bytes")


def test_an_absurd_length_closes_the_connection(bare):
    """Nobody sends half a gigabyte and a byte by mistake."""
    bare.send(b"*2\r\n$4\r\nECHO\r\n$536870913\r\n")
    assert str(bare.read()) == "ERR Protocol error: invalid bulk length"
    assert bare.closed()


def test_a_command_too_large_in_all_is_refused():
    """Many values within the limit make a command above it."""
    with running_door(command_bytes_max=1000) as door, Bare(door.port) as client:
        client.send(b"*41\r\n$4\r\nMSET\r\n")
        for number in range(20):
            client.send(b"$2\r\nk%d\r\n$98\r\n%b\r\n" % (number % 10, b"x" * 98))
        assert str(client.read()).startswith("TOOBIG command of 10")
        assert client.ask("PING") == b"PONG"


def test_one_client_too_many_is_turned_away():
    """With Redis's words; the others stay."""
    with running_door(clients_max=2) as door, Bare(door.port) as first, Bare(door.port) as second:
        assert first.ask("PING") == second.ask("PING") == b"PONG"
        with Bare(door.port) as third:
            assert str(third.read()) == "ERR max number of clients reached"
            assert third.closed()
        assert first.ask("PING") == b"PONG"


def test_a_client_that_takes_no_replies_is_closed():
    """It costs the node a bounded amount of memory for a bounded time."""
    with running_door(output_bytes_max=100_000) as door, Bare(door.port) as client:
        client.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.ask("SET", "big", "x" * 1_000_000)
        client.send(encode("GET", "big") * 200)
        wait_until(lambda: not door.call(lambda: len(door.server.connections)), "the door to close the connection")


def test_a_slow_reader_gets_everything():
    """Slowness is no offence, and what is not taken is not produced."""
    with running_door(output_bytes_max=100_000) as door, Bare(door.port) as client:
        client.ask("SET", "big", "x" * 1_000_000)
        client.send(encode("GET", "big") * 60)
        for _ in range(60):
            assert len(client.read()) == 1_000_000


def test_an_idle_client_is_closed():
    """Where a time is set."""
    with running_door(idle_timeout_s=0.5) as door, Bare(door.port) as client:
        assert client.ask("PING") == b"PONG"
        assert client.closed()


def test_a_password():
    """Before it only AUTH, HELLO, QUIT and RESET, with small limits."""
    with running_door(password="secret") as door:
        with Bare(door.port) as client:
            assert client.error("GET", "a") == "NOAUTH Authentication required."
            assert client.error("NOSUCH") != ""
            assert client.error("HELLO", "3").startswith("NOAUTH HELLO must be called with the client already auth")
            wrong = "WRONGPASS invalid username-password pair or user is disabled."
            assert client.error("AUTH", "wrong") == wrong
            assert client.error("AUTH", "other", "secret") == wrong
            assert client.ask("AUTH", "secret") == b"OK"
            assert client.ask("SET", "a", "x" * 100_000) == b"OK"
            assert client.ask("RESET") == b"RESET"
            assert client.error("GET", "a") == "NOAUTH Authentication required."
            assert client.ask("HELLO", "3", "AUTH", "default", "secret")[b"proto"] == 3
            assert len(client.ask("GET", "a")) == 100_000
        with Bare(door.port) as client:
            client.send(b"*11\r\n")
            assert str(client.read()) == "ERR Protocol error: unauthenticated multibulk length"
            assert client.closed()


def test_settings_change_while_it_runs():
    """CONFIG SET takes effect at once, and says no where it must."""
    with running_door() as door, Bare(door.port) as client:
        assert client.error("SET", "a", "1", "NX") != ""
        assert client.ask("CONFIG", "SET", "resp.allow-best-effort-nx", "yes") == b"OK"
        assert client.ask("SET", "a", "1", "NX") == b"OK"
        assert client.ask("SET", "a", "1", "NX") is None
        assert client.ask("CONFIG", "SET", "resp.multi", "refuse") == b"OK"
        assert "cannot isolate a transaction" in client.error("MULTI")
        assert client.ask("CONFIG", "GET", "resp.multi") == [b"resp.multi", b"refuse"]
        assert client.ask("CONFIG", "SET", "maxclients", "7", "timeout", "9") == b"OK"
        assert door.gateway.settings.clients_max == 7
        for name, value in [
            ("port", "1"), ("nosuch", "1"), ("resp.multi", "x"), ("resp.allow-flush", "1"), ("maxclients", "0"),
        ]:  # fmt: skip
            assert client.error("CONFIG", "SET", name, value).startswith("ERR")


def test_killing_clients(bare, door):
    """By number or address; oneself after the reply."""
    with Bare(door.port) as other:
        number = other.ask("CLIENT", "ID")
        assert bare.ask("CLIENT", "KILL", "ID", str(number)) == 1
        assert other.closed()
    with Bare(door.port) as other:
        host, port = other.socket.getsockname()
        assert other.ask("CLIENT", "KILL", f"{host}:{port}") == b"OK"
        assert other.closed()
    assert bare.ask("PING") == b"PONG"


@pytest.mark.parametrize("data", [b"PING\r\n", b"ping\n", b"*1\r\n$4\r\nPING\r\n", b"\r\n\r\n*0\r\nPING\r\n"])
def test_forms_of_a_command(bare, data):
    """Inline or not."""
    bare.send(data)
    assert bare.read() == b"PONG"


def test_quit_answers_and_closes(bare):
    """What follows it is not run."""
    bare.send(encode("SET", "q", "1") + encode("QUIT") + encode("PING"))
    assert [bare.read(), bare.read()] == [b"OK", b"OK"]
    assert bare.closed()


def test_a_protocol_error_answers_and_closes(bare):
    """After the replies of the commands before it."""
    bare.send(encode("PING") + b"*1\r\n!\r\n")
    assert bare.read() == b"PONG"
    assert isinstance(bare.read(), hiredis.ReplyError)
    assert bare.closed()


def test_clients_that_vanish_break_nothing(door, bare, key):
    """Reset connections in the middle of pipelines, of values, and of replies."""
    data = (
        encode("SET", key, "x" * 50_000) + encode("GET", key) * 200 + encode("KEYS", "*") + encode("SET", key, "y" * 9)
    )
    for size in range(1, len(data), len(data) // 40):
        vanishing = Bare(door.port)
        vanishing.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        vanishing.send(data[:size])
        vanishing.close()
    assert bare.ask("PING") == b"PONG"
    wait_until(lambda: not door.call(lambda: sum(each.under_way for each in door.server.connections.values())), "rest")
    assert bare.ask("SET", key, "1") == b"OK"
