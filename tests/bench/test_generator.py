"""The loop of one process, against a small real server."""

import socket
from itertools import islice

import pytest
from tests.bench.resp_server import HANG_UP, SILENCE, RespServer

from cartwheel.bench import generator
from cartwheel.bench.generator import Engine
from cartwheel.bench.options import BenchOptions
from cartwheel.bench.requests import GET, workload

MS = 1_000_000


def engine_for(*servers, flows=4, timeout_s=5.0):
    addresses = [(socket.AF_INET, ("127.0.0.1", server.port)) for server in servers]
    return Engine(addresses, range(flows), timeout_s)


def requests(count, **options):
    return islice(workload(BenchOptions(keys=100, **options), 0), count)


def failed(tally):
    return tally.errors.total()


@pytest.fixture
def server():
    with RespServer() as server:
        yield server


@pytest.mark.parametrize("depth", [1, 16])
def test_every_request_is_sent_and_answered_once(server, depth):
    """As many latencies as requests, and the server saw each of them."""
    engine = engine_for(server)
    assert engine.wait_connected() == 4
    tally = engine.run(requests(1000), depth=depth)
    engine.close()
    assert (tally.answered, failed(tally), len(server.commands)) == (1000, 0, 1000)
    assert sum(counts.total() for counts in tally.windows[0]) == 1000
    assert sorted(parts[1] for parts in server.commands) == sorted(
        payload.split(b"\r\n")[4] for payload, _ in requests(1000)
    )


def test_no_more_in_flight_than_the_depth():
    """A connection whose server is silent gets ``depth`` requests, and not one more."""
    with RespServer(lambda _server, _command: SILENCE) as server:
        engine = engine_for(server, flows=2, timeout_s=0.05)
        engine.wait_connected()
        engine.run(requests(6), depth=3)
        engine.close()
        assert len(server.commands) == 6


def test_reads_that_find_nothing_are_counted(server):
    """A miss is an answer."""
    engine = engine_for(server)
    engine.wait_connected()
    tally = engine.run(requests(50, workload="get"), depth=1)
    engine.close()
    assert (tally.answered, tally.misses) == (50, 50)


def test_error_replies_count_by_code_and_not_as_latencies():
    """Every fifth request is refused."""
    refusals = {5: b"-NOQUORUM need W=2\r\n", 10: b"-BUSY try later\r\n"}

    def answer(server, command):
        return refusals.get(len(server.commands) % 15) or server.honest(command)

    with RespServer(answer) as server:
        engine = engine_for(server)
        engine.wait_connected()
        tally = engine.run(requests(150), depth=4)
        engine.close()
    assert tally.errors == {"NOQUORUM": 10, "BUSY": 10}
    assert tally.answered == 130


def test_values_larger_than_the_sockets_buffers(server):
    """What a socket does not take at once is sent when it can take more."""
    engine = engine_for(server, flows=2)
    engine.wait_connected()
    size = 4 << 20
    tally = engine.run(requests(8, workload="put", value_bytes=size), depth=2)
    engine.close()
    assert (tally.answered, failed(tally)) == (8, 0)
    assert {len(parts[2]) for parts in server.commands} == {size}


def test_a_broken_connection_moves_on_to_the_next_node(server):
    """One node hangs up after ten requests: what was in flight is an error, the rest is served by the other."""

    def answer(failing, command):
        return HANG_UP if len(failing.commands) >= 10 else failing.honest(command)

    with RespServer(answer) as failing:
        engine = engine_for(failing, server, flows=1)
        engine.wait_connected()
        tally = engine.run(requests(100), depth=2)
        engine.close()
    assert tally.answered + failed(tally) == 100
    assert tally.errors.keys() == {"connection lost"}
    assert 1 <= failed(tally) <= 2
    assert len(server.commands) == 100 - 9 - failed(tally)


def test_open_loop_waits_for_a_broken_connection(server):
    """Nothing is sent on it while it is broken: what was due meanwhile is sent late by the next node, or counts as unsent."""

    def answer(failing, command):
        return HANG_UP if len(failing.commands) >= 10 else failing.honest(command)

    with RespServer(answer) as failing:
        engine = engine_for(failing, server, flows=1)
        engine.wait_connected()
        tally = engine.run(workload(BenchOptions(), 0), depth=4, interval_s=0.001, duration_s=0.4)
        engine.close()
    assert tally.errors.keys() == {"connection lost"}
    assert 1 <= failed(tally) <= 4
    assert tally.answered + failed(tally) + tally.unsent == 400


def test_a_silent_node_is_given_up():
    """After the timeout its requests are errors, and the loop ends."""
    with RespServer(lambda _server, _command: SILENCE) as server:
        engine = engine_for(server, flows=2, timeout_s=0.05)
        engine.wait_connected()
        tally = engine.run(requests(4), depth=2)
        engine.close()
    assert tally.errors == {"timeout": 4}
    assert tally.answered == 0


def test_when_all_nodes_are_gone_the_loop_ends(server):
    """Requests that cannot be sent for the length of the timeout end the phase, though the source has more."""
    engine = engine_for(server, flows=1, timeout_s=0.05)
    engine.wait_connected()
    engine.run(requests(1), depth=1)
    server.refuse_connections()
    server.answer = lambda _server, _command: HANG_UP
    tally = engine.run(workload(BenchOptions(), 0), depth=1)
    engine.close()
    assert tally.answered == 0
    assert tally.errors["connection lost"] == 1


@pytest.mark.parametrize("answer", [b"HTTP/1.1 200 OK\r\n\r\n", b"+OK\r\n+OK\r\n"])
def test_a_peer_that_does_not_keep_to_the_protocol(answer):
    """Garbage, or two replies for one request: the connection is of no use."""
    with RespServer(lambda _server, _command: answer) as server:
        engine = engine_for(server, flows=1)
        engine.wait_connected()
        tally = engine.run(requests(1), depth=1)
        engine.close()
    assert "not the Redis protocol" in tally.errors


def test_a_phase_can_be_ended_early(server):
    """``on_tick`` returns False: no new requests, but the replies under way are counted."""
    engine = engine_for(server)
    engine.wait_connected()
    engine.on_tick = lambda _tally: False
    tally = engine.run(workload(BenchOptions(), 0), depth=2)
    engine.close()
    assert tally.answered == len(server.commands) > 0


def test_phases_do_not_mix(server):
    """Each phase has its own tally."""
    engine = engine_for(server)
    engine.wait_connected()
    assert engine.run(requests(30), depth=1).answered == 30
    assert engine.run(requests(20), depth=1).answered == 20
    engine.close()


class StepClock:
    """Virtual time: every look at it takes a millisecond."""

    def __init__(self):
        self.now = 0

    def __call__(self):
        self.now += MS
        return self.now


def test_open_loop_measures_from_the_intended_start(server, monkeypatch):
    """No coordinated omission: one connection, a request due each millisecond, and none can be done in less than two (the
    loop and the reply each look at the clock). So the i-th waits i milliseconds for its turn, and its latency says so. In
    a closed loop the same server looks as quick at the end as at the beginning."""
    monkeypatch.setattr(generator, "clock", StepClock())
    engine = engine_for(server, flows=1, timeout_s=1e6)
    engine.wait_connected()
    tally = engine.run(requests(100, workload="get"), depth=1, interval_s=0.001)
    engine.close()
    latencies_us = sorted(tally.windows[0][GET].elements())
    assert tally.answered == len(latencies_us) == 100
    assert latencies_us[-1] >= 99_000
    assert latencies_us[50] >= 50_000


def test_open_loop_says_what_it_could_not_send(server, monkeypatch):
    """In a hundred milliseconds a hundred requests are due: those for which no connection was free count as unsent."""
    monkeypatch.setattr(generator, "clock", StepClock())
    engine = engine_for(server, flows=1, timeout_s=1e6)
    engine.wait_connected()
    tally = engine.run(workload(BenchOptions(), 0), depth=1, interval_s=0.001, duration_s=0.1)
    engine.close()
    assert tally.answered == len(server.commands)
    assert tally.unsent >= 40
    assert tally.answered + tally.unsent == 100


def test_open_loop_keeps_its_rate(server):
    """So many requests as are due before the end, neither more nor fewer."""
    engine = engine_for(server, flows=8)
    engine.wait_connected()
    tally = engine.run(workload(BenchOptions(), 0), depth=4, interval_s=0.001, offset_s=0.0005, duration_s=0.2)
    engine.close()
    assert tally.answered + tally.unsent == 200


def test_series_has_a_window_per_interval(server, monkeypatch):
    """Ten windows of ten milliseconds in a hundred; what is answered after the end belongs to the last one."""
    monkeypatch.setattr(generator, "clock", StepClock())
    engine = engine_for(server, flows=1, timeout_s=1e6)
    engine.wait_connected()
    tally = engine.run(workload(BenchOptions(), 0), depth=1, duration_s=0.1, window_s=0.01)
    engine.close()
    assert 8 <= len(tally.windows) <= 10
    assert sum(counts.total() for window in tally.windows for counts in window) == tally.answered


def test_a_closed_loop_pauses_after_busy(monkeypatch):
    """A flow that is told to come back later does not come back at once, and then goes on."""
    monkeypatch.setattr(generator, "BUSY_PAUSE_NS", 20 * MS)
    refusals = 3

    def answer(server, command):
        return b"-BUSY later\r\n" if len(server.commands) <= refusals else server.honest(command)

    with RespServer(answer) as server:
        engine = engine_for(server, flows=1)
        engine.wait_connected()
        tally = engine.run(requests(20), depth=1)
        engine.close()
    assert (tally.answered, tally.errors["BUSY"]) == (17, 3)
    assert tally.elapsed_s >= refusals * 0.020


def test_an_open_loop_gives_up_what_could_not_be_sent_in_time():
    """One connection, a server that answers nothing at first: what waited longer than the patience is never sent, and counted."""
    with RespServer(lambda _server, _command: SILENCE) as server:
        engine = engine_for(server, flows=1, timeout_s=0.4)
        engine.wait_connected()
        tally = engine.run(requests(10_000), depth=1, duration_s=0.6, interval_s=0.001, patience_s=0.05)
        engine.close()
    assert tally.unsent > 400
    assert tally.unsent + tally.errors.total() <= 600
