"""Commands of one connection: replies in order, overlap only where nobody can tell."""

from __future__ import annotations

from hypothesis import example, given, settings
from hypothesis import strategies as st
from tests.resp.door import encode, replies_in, wired
from tests.resp.local import LocalGateway

from cartwheel.runtime.resp.gateway import ClientEvent, DoorSettings


class HeldGateway(LocalGateway):
    """Keeps events, and serves them only when told to, in any order: as late and as reordered as a cluster may."""

    def __init__(self) -> None:
        super().__init__(DoorSettings(allow_best_effort_nx=True, allow_flush=True, requests_max=8))
        self.held: list[ClientEvent] = []

    def submit(self, event: ClientEvent) -> None:
        self.held.append(event)

    def release(self, index: int) -> None:
        event = self.held.pop(index % len(self.held))
        event.client.resolve(self.result(event))


KEYS = st.sampled_from(["a", "b", "c"])
COMMANDS = st.one_of(
    st.tuples(st.just("GET"), KEYS),
    st.tuples(st.just("SET"), KEYS, st.sampled_from("123")),
    st.tuples(st.just("SET"), KEYS, st.sampled_from("123"), st.sampled_from(["GET", "XX", "NX", "KEEPTTL"])),
    st.tuples(st.just("APPEND"), KEYS, st.sampled_from("xy")),
    st.tuples(st.just("DEL"), KEYS, KEYS),
    st.tuples(st.just("MSET"), KEYS, st.just("m"), KEYS, st.just("n")),
    st.tuples(st.just("MGET"), KEYS, KEYS),
    st.tuples(st.just("RENAME"), KEYS, KEYS),
    st.tuples(st.just("EXISTS"), KEYS),
    st.tuples(st.just("PING")),
    st.tuples(st.just("SELECT"), st.sampled_from("01")),
    st.tuples(st.just("DBSIZE")),
    st.tuples(st.just("FLUSHDB")),
    st.tuples(st.just("MULTI")),
    st.tuples(st.just("EXEC")),
    st.tuples(st.just("NOSUCH")),
)


def one_by_one(commands: list[tuple[str, ...]]) -> bytearray:
    """The reference: each command is answered before the next is sent."""
    connection, wire = wired(LocalGateway(DoorSettings(allow_best_effort_nx=True, allow_flush=True)))
    for args in commands:
        connection.data_received(encode(*args))
    return wire.sent


@settings(max_examples=300)
@example([("APPEND", "b", "x"), ("SELECT", "1"), ("GET", "b")], [])
@given(st.lists(COMMANDS, max_size=25), st.lists(st.integers(0, 100), max_size=40))
def test_a_pipeline_answers_as_if_each_command_had_waited_for_the_one_before(commands, order):
    """However late and reordered the node's answers come."""
    gateway = HeldGateway()
    connection, wire = wired(gateway)
    connection.data_received(b"".join(encode(*args) for args in commands))
    choices = iter(order)
    while gateway.held:
        gateway.release(next(choices, 0))
    assert wire.sent == one_by_one(commands)
    assert not connection.under_way
    assert not connection.reads
    assert not connection.writes


def pipelined(*commands: tuple[str, ...]) -> HeldGateway:
    gateway = HeldGateway()
    connection, _ = wired(gateway)
    connection.data_received(b"".join(encode(*args) for args in commands))
    return gateway


def test_reads_of_one_key_run_side_by_side():
    """A pipeline of GETs of the same key does not wait."""
    assert len(pipelined(*[("GET", "a")] * 5).held) == 5


def test_writes_of_different_keys_run_side_by_side():
    """A pipeline of SETs of different keys does not wait."""
    assert len(pipelined(("SET", "a", "1"), ("SET", "b", "1"), ("DEL", "c")).held) == 3


def test_a_read_after_a_write_of_the_same_key_waits():
    """And what follows waits behind it, whatever its key."""
    assert len(pipelined(("SET", "a", "1"), ("GET", "a"), ("GET", "b")).held) == 1


def test_a_write_after_a_read_of_the_same_key_waits():
    """The GET must not see the later SET."""
    assert len(pipelined(("GET", "a"), ("SET", "a", "1")).held) == 1


def test_no_more_than_the_limit_is_under_way():
    """A long pipeline waits at the door."""
    assert len(pipelined(*[("GET", str(n)) for n in range(100)]).held) == 8


def test_a_connection_that_closes_forgets_what_is_under_way():
    """The node's late answers reach nobody and break nothing."""
    gateway = HeldGateway()
    connection, wire = wired(gateway)
    connection.data_received(encode("GET", "a") + encode("MGET", "a", "b") + encode("SET", "a", "1"))
    connection.connection_lost(None)
    while gateway.held:
        gateway.release(0)
    assert wire.sent == b""


def test_reading_pauses_while_much_waits():
    """The rest of a long pipeline stays in the client."""
    gateway = HeldGateway()
    connection, wire = wired(gateway)
    connection.data_received(encode("GET", "a") * 3000)
    assert wire.paused
    while gateway.held:
        gateway.release(0)
    assert not wire.paused
    assert len(replies_in(wire.sent)) == 3000


def test_nothing_is_started_while_the_client_takes_no_replies():
    """Output waits for the client, and so do its commands."""
    gateway = HeldGateway()
    connection, wire = wired(gateway)
    connection.pause_writing()
    assert wire.paused
    connection.data_received(encode("GET", "a"))
    assert not gateway.held
    connection.resume_writing()
    assert not wire.paused
    assert len(gateway.held) == 1


def test_replies_are_sent_before_the_end_of_a_half_closed_connection():
    """``printf ... | nc`` gets its answers."""
    gateway = HeldGateway()
    connection, wire = wired(gateway)
    connection.data_received(encode("GET", "a") + encode("GET", "a"))
    assert connection.eof_received() is True
    gateway.release(0)
    assert not wire.closed
    gateway.release(0)
    assert replies_in(wire.sent) == [None, None]
    assert wire.closed
