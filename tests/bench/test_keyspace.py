"""Filling and reading back, against small real servers."""

import pytest
from tests.bench.judged_server import cluster, siblings

from cartwheel.bench import keyspace
from cartwheel.bench.judge import Judge, Outcome, value_of
from cartwheel.bench.keyspace import fill, read_back
from cartwheel.bench.run import BenchFailed
from cartwheel.bench.steady import key_name

KEYS = 1000


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch):
    monkeypatch.setattr(keyspace, "PAUSE_S", 0.001)


def filled(servers, keys=KEYS):
    judge = Judge(keys)
    fill([server.address for server in servers], judge, 40, lambda _done: None)
    return judge


def back(servers, judge):
    return read_back([server.address for server in servers], judge, 40, lambda _done: None)


def test_all_keys_are_written_and_read_back():
    """Once each, and nothing is missed."""
    with cluster(None, None) as servers:
        judge = filled(servers)
        assert len(servers[0].data) == KEYS
        assert [judge.acked(key) for key in range(KEYS)] == [1] * KEYS
        found = back(servers, judge)
    assert (found.keys, found.lost, found.foreign, found.unread, found.elsewhere) == (KEYS, 0, 0, 0, 0)
    assert found.examples == []


def test_what_is_refused_is_tried_again():
    """Every fourth request is refused at first."""

    def answer(server, _command):
        return b"-BUSY later\r\n" if len(server.commands) % 4 == 0 else None

    with cluster(answer) as servers:
        judge = filled(servers)
        assert back(servers, judge).lost == 0
    assert len(servers[0].data) == KEYS


def test_a_cluster_that_takes_no_writes_cannot_be_measured():
    """It says why."""
    refusing = cluster(lambda _server, _command: b"-NOQUORUM need W=2\r\n")
    with refusing as servers, pytest.raises(BenchFailed, match="need W=2"):
        filled(servers, 10)


def test_planted_losses_are_found():
    """Key 3 is gone, key 4 has an old value, key 5 somebody else's."""
    with cluster(None) as servers:
        judge = filled(servers)
        judge.begin_write(4)
        judge.end_write(4, Outcome.ACKED)
        data = servers[0].data
        del data[key_name(3).encode()]
        data[key_name(5).encode()] = value_of(6, 1, b"")
        found = back(servers, judge)
    assert (found.absent, found.older, found.foreign, found.lost, found.elsewhere) == (1, 1, 1, 2, 0)
    assert [example.split(";")[0] for example in found.examples] == [
        "lost: key 3, found nothing, acknowledged was 1",
        "lost: key 4, found [1], acknowledged was 2",
        "never written: key 5, found [-1], acknowledged was 1",
    ]


def test_what_a_quorum_misses_but_a_replica_has_is_told_apart():
    """Key 3 is only found by those who ask all replicas."""

    def answer(_server, command):
        asks_two = command[0] == b"CW.GET" and command[1].endswith(b"03") and b"R" not in command
        return siblings() if asks_two else None

    with cluster(answer) as servers:
        judge = filled(servers, 10)
        found = back(servers, judge)
    assert (found.absent, found.elsewhere) == (1, 1)


def test_keys_that_cannot_be_read_are_not_taken_for_good():
    """An error is no value."""

    def answer(_server, command):
        return b"-NOQUORUM need R=2\r\n" if command[0] == b"CW.GET" and command[1].endswith(b"03") else None

    with cluster(answer) as servers:
        judge = filled(servers, 10)
        found = back(servers, judge)
    assert (found.unread, found.lost) == (1, 0)
    assert "need R=2" in found.examples[0]


def test_nobody_there():
    """One line."""
    with cluster(None) as servers:
        judge = filled(servers, 10)
        servers[0].refuse_connections()
        with pytest.raises(BenchFailed, match="cannot reach"):
            back(servers, judge)
