"""What the door does in front of a crowded node: some wait, some are refused, and the rest is not touched."""

from __future__ import annotations

import pytest
from tests.resp.door import encode, replies_in, wired
from tests.resp.local import LocalGateway

from cartwheel.core.messages import PutRequest
from cartwheel.core.types import Crowd
from cartwheel.runtime.resp import protocol, reply
from cartwheel.runtime.resp.gateway import ClientEvent, DoorSettings


class HeldGateway(LocalGateway):
    """Keeps events until told to serve them, oldest first."""

    def __init__(self, crowded: Crowd = Crowd.NONE, **settings) -> None:
        super().__init__(DoorSettings(**settings))
        self.crowded = crowded
        self.held: list[ClientEvent] = []
        for key in (b"a", b"b", b"c"):
            self.write(PutRequest("0", key, key))

    def submit(self, event: ClientEvent) -> None:
        self.held.append(event)

    def release(self) -> None:
        event = self.held.pop(0)
        event.client.resolve(self.result(event))


class Clock:
    """What the door takes for the time."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def monotonic(self) -> float:
        self.now_s += 1e-6
        return self.now_s


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(protocol, "time", clock)
    return clock


def get(*keys: str) -> bytes:
    return b"".join(encode("GET", key) for key in keys)


def is_busy(answer: object) -> bool:
    return str(answer).startswith("BUSY")


@pytest.mark.parametrize(
    "command",
    [
        ("GET", "a"),
        ("SET", "a", "1"),
        ("MGET", "a", "b"),
        ("APPEND", "a", "1"),
        ("DEL", "a"),
        ("CW.GET", "a"),
        ("SETEX", "a", "9", "1"),
    ],
)
def test_a_full_node_is_not_asked(command):
    """BUSY at once, counted, and no event was made."""
    gateway = HeldGateway(Crowd.FULL)
    connection, wire = wired(gateway)
    connection.data_received(encode(*command))
    assert bytes(wire.sent) == reply.BUSY
    assert (gateway.held, gateway.refused, connection.under_way) == ([], 1, 0)


@pytest.mark.parametrize(
    "command", [("PING",), ("SELECT", "1"), ("HELLO", "2"), ("CLIENT", "LIST"), ("CONFIG", "GET", "*")]
)
def test_commands_without_keys_are_never_refused(command):
    """A SELECT that is lost would send the writes after it to the wrong bucket; and an operator wants to look."""
    gateway = HeldGateway(Crowd.FULL)
    connection, wire = wired(gateway)
    connection.data_received(encode(*command))
    assert len(replies_in(wire.sent)) == 1
    assert not wire.sent.startswith(b"-")


def test_a_pipeline_waits_for_its_turn_on_a_crowded_node(clock):
    """One at a time, in order, none refused."""
    gateway = HeldGateway(Crowd.HIGH)
    connection, wire = wired(gateway)
    connection.data_received(get("a", "b", "c"))
    assert len(gateway.held) == 1
    for left in (1, 1, 0):
        gateway.release()
        assert len(gateway.held) == left
    connection.flush()
    assert replies_in(wire.sent) == [b"a", b"b", b"c"]
    assert gateway.refused == 0


def test_whoever_has_nothing_under_way_gets_the_room_that_pipelines_leave():
    """Of two connections on a crowded node, the one with a pipeline has one under way, and so has the other."""
    gateway = HeldGateway(Crowd.HIGH)
    greedy, _ = wired(gateway)
    modest, _ = wired(gateway)
    greedy.data_received(get("a", "b", "c"))
    modest.data_received(get("d"))
    assert [event.key for event in gateway.held] == [b"a", b"d"]


def test_a_wait_too_long_on_a_crowded_node_ends_in_busy(clock):
    """After a while the commands behind are refused; the one under way is answered; replies stay in order."""
    gateway = HeldGateway(Crowd.HIGH)
    connection, wire = wired(gateway)
    connection.data_received(get("a", "b", "c"))
    clock.now_s += protocol.CROWD_WAIT_S + 0.01
    gateway.crowded = Crowd.FULL
    gateway.release()
    connection.flush()
    first, *others = replies_in(wire.sent)
    assert first == b"a"
    assert all(map(is_busy, others))
    assert (len(others), gateway.refused, gateway.held) == (2, 2, [])


def test_the_pipeline_goes_on_once_the_crowd_is_gone(clock):
    """All that waited begins at once."""
    gateway = HeldGateway(Crowd.HIGH)
    connection, _ = wired(gateway)
    connection.data_received(get("a", "b", "c"))
    gateway.crowded = Crowd.NONE
    clock.now_s += protocol.CROWD_WAIT_S + 0.1
    gateway.release()
    assert [event.key for event in gateway.held] == [b"b", b"c"]


def test_a_command_that_waited_longer_than_a_request_may_take_is_dropped(clock):
    """Its client has given up: on any node, however idle. A SELECT behind it is carried out all the same."""
    gateway = HeldGateway(requests_max=1)
    connection, wire = wired(gateway)
    connection.data_received(get("a", "b") + encode("SET", "c", "1") + encode("SELECT", "3"))
    clock.now_s += gateway.config.request_timeout_s + 0.01
    gateway.release()
    connection.flush()
    first, *dropped, ok = replies_in(wire.sent)
    assert (first, ok, connection.bucket) == (b"a", b"OK", "3")
    assert all(map(is_busy, dropped))
    assert (len(dropped), gateway.held) == (2, [])


def test_a_batch_tells_which_of_its_commands_were_refused(clock):
    """EXEC on a full node: an array with an error for each command that has keys."""
    gateway = HeldGateway(Crowd.FULL)
    connection, wire = wired(gateway)
    connection.data_received(encode("MULTI") + get("a") + encode("PING") + encode("EXEC"))
    answers = replies_in(wire.sent)[-1]
    assert is_busy(answers[0])
    assert answers[1] == b"PONG"
