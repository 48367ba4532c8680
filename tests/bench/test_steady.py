"""The judged load, against small real servers."""

from collections import Counter

import pytest
from tests.bench.judged_server import NO_MEMBER, cluster, options, siblings
from tests.bench.resp_server import HANG_UP

from cartwheel.bench.judge import Judge
from cartwheel.bench.steady import SteadyLoad, kind_of
from cartwheel.client.resp import ReplyError


def run(servers, *, until=300, ready=lambda: True, on_tick=lambda _load: None, **changes):
    """Run a load until so many operations were done or have failed, and it is as wanted; return its report, and the judge."""
    chosen = options(servers, **changes)
    judge = Judge(chosen.keys)
    load = SteadyLoad(chosen, judge)

    def tick(_tally):
        on_tick(load)
        if sum(load.so_far()) >= until and ready():
            load.stop()
        return load.goes_on()

    load.on_tick = tick
    try:
        return load.load(), judge
    finally:
        load.close()


def total(report, name):
    return sum(getattr(phase, name) for phase in report.phases)


def by_kind(report, name):
    return sum((Counter(getattr(phase, name)) for phase in report.phases), start=Counter())


def opens(servers, *counts):
    """A condition: the servers have so many connections."""
    return lambda: [len(server.open) for server in servers] == list(counts)


def test_honest_nodes_have_no_findings():
    """Every operation is done, at the first try."""
    with cluster(None, None, None) as servers:
        report, judge = run(servers)
    assert total(report, "done") >= 300
    assert [total(report, name) for name in ("failed", "retried", "not_found", "stale", "foreign")] == [0] * 5
    assert (report.examples, report.aside, report.broke_off) == ([], 0, False)
    assert total(report, "done") == sum(phase.reads.count + phase.writes.count for phase in report.phases)
    assert max(judge.acked(key) for key in range(20)) > 1
    assert all(len(server.commands) > 50 for server in servers)  # all three took part


@pytest.mark.parametrize(
    ("plant", "finding"),
    [
        (lambda _server, command: siblings() if command[1].endswith(b"3") else None, "not_found"),
        (lambda _server, command: siblings(b"3:1:") if command[1].endswith(b"3") else None, "stale"),
        (lambda _server, command: siblings(b"4:1:") if command[1].endswith(b"3") else None, "foreign"),
    ],
)
def test_what_is_planted_is_found(plant, finding):
    """One node answers reads of one key so. Each row: which finding that is, and there is no other."""

    def answer(server, command):
        return plant(server, command) if command[0] == b"CW.GET" else None

    with cluster(None, answer) as servers:
        report, _ = run(servers, until=1000, keys=4)
    found = {name: total(report, name) for name in ("not_found", "stale", "foreign")}
    assert found.pop(finding) > 0
    assert set(found.values()) == {0}
    assert servers[1].address in report.examples[0]


def test_the_newest_sibling_counts():
    """A node that shows an old value beside the new one has done nothing wrong."""

    def answer(server, command):
        found = server.data.get(command[1])
        return siblings(b"%d:1:" % int(command[1][-12:]), found) if command[0] == b"CW.GET" and found else None

    with cluster(answer) as servers:
        report, _ = run(servers)
    assert (total(report, "stale"), total(report, "foreign")) == (0, 0)


def test_a_refusal_is_tried_once_more_at_another_node():
    """Every third request at one node is refused: nothing fails, and the latency of such operations counts once."""

    def answer(server, _command):
        return b"-NOQUORUM need W=2\r\n" if len(server.commands) % 3 == 0 else None

    with cluster(answer, None) as servers:
        report, _ = run(servers)
    assert total(report, "failed") == 0
    assert total(report, "retried") > 20
    assert by_kind(report, "retries") == {"NOQUORUM": total(report, "retried")}
    assert report.aside == 0  # it was certain that nothing was done
    assert any("need W=2" in text for text in report.texts)


def test_what_is_refused_twice_has_failed():
    """No node takes writes: they fail, by kind, and no read is held to them."""

    def answer(_server, command):
        return b"-NOQUORUM need W=2\r\n" if command[0] == b"SET" else None

    with cluster(answer, answer) as servers:
        report, judge = run(servers)
    errors = by_kind(report, "errors")
    assert set(errors) == {"NOQUORUM"}
    assert total(report, "failed") == errors["NOQUORUM"] > 100
    assert total(report, "not_found") == 0
    assert [judge.acked(key) for key in range(20)] == [0] * 20


def test_an_unknown_outcome_sets_its_key_aside():
    """The second try succeeds; the key is written no more, and what was acknowledged still counts."""

    def answer(server, command):
        unlucky = command[0] == b"SET" and command[1].endswith(b"5") and server.data.get(command[1])
        return b"-NOQUORUM need W=2 (outcome unknown: ...)\r\n" if unlucky else None

    with cluster(answer, None) as servers:
        report, judge = run(servers, until=1500)
    assert total(report, "failed") == 0
    assert 1 <= report.aside <= 2  # keys 5 and 15
    assert set(by_kind(report, "retries")) == {"NOQUORUM (outcome unknown)"}
    assert [key for key in range(20) if not judge.may_write(key)] in ([5], [15], [5, 15])


def test_lost_connections_are_opened_again_elsewhere():
    """One node hangs up on every fifth request: nothing fails."""

    def answer(server, _command):
        return HANG_UP if len(server.commands) % 5 == 0 else None

    with cluster(answer, None) as servers:
        report, _ = run(servers, until=1000, keys=500, pipeline=4)
    assert total(report, "failed") == 0
    assert by_kind(report, "retries")["connection lost"] >= 1
    assert total(report, "retried") == by_kind(report, "retries").total()


def test_connections_stay_until_refused_and_then_go_to_who_stays():
    """Clients are told that the first node leaves: it serves them on, until it says that it is no member any more."""
    state = {"left": False, "then": 0}

    def leaver(server, _command):
        if state["left"]:
            return NO_MEMBER
        state["then"] = len(server.commands)
        return None

    def on_tick(load):
        if load.so_far()[0] > 100 and load.good == [0]:
            load.use([1, 2])
            state["told"] = len(servers[0].commands)
        elif load.good != [0] and len(servers[0].commands) > state["told"]:
            state["left"] = True

    with cluster(leaver, None, None) as servers:
        ready = opens(servers, 0, 2, 2)
        report, _ = run(servers, until=1000, ready=ready, first=(0,), on_tick=on_tick)
        refused = len(servers[0].commands) - state["then"]
    assert state["then"] > state["told"]
    assert total(report, "failed") == 0
    assert by_kind(report, "retries") == {"NOQUORUM (no member)": refused}
    assert refused == 4  # one for each connection
    assert total(report, "retried") == 4


def test_connections_spread_over_new_nodes():
    """Without a refusal, and nothing is tried again."""

    def on_tick(load):
        if load.good == [0]:
            load.use([0, 1], spread=True)

    with cluster(None, None) as servers:
        report, _ = run(servers, until=1000, ready=opens(servers, 2, 2), first=(0,), on_tick=on_tick)
        assert len(servers[1].commands) > 100
    assert (total(report, "failed"), total(report, "retried")) == (0, 0)


def test_phases_follow_one_another_without_a_pause():
    """Each operation belongs to one phase; the seconds of all phases are those of the run."""

    def on_tick(load):
        names = ["warming up", "one", "two"]
        if len(load.phases) < 3 and load.so_far()[0] > 100 * len(load.phases):
            load.begin_phase(names[len(load.phases)])

    with cluster(None) as servers:
        report, _ = run(servers, until=1000, on_tick=on_tick)
        sent = len(servers[0].commands)
    assert [phase.name for phase in report.phases] == ["warming up", "one", "two"]
    assert all(phase.done > 0 for phase in report.phases)
    assert total(report, "operations") == total(report, "done") == sent


def test_a_load_that_reaches_nobody_says_so():
    """All nodes go away: what was under way has failed."""
    gone = []

    def answer(server, _command):
        return HANG_UP if gone else None

    def on_tick(load):
        if load.so_far()[0] > 100 and not gone:
            gone.append(True)
            servers[0].refuse_connections()

    with cluster(answer) as servers:
        report, _ = run(servers, until=10**9, on_tick=on_tick, timeout_s=0.3)
    assert report.broke_off
    assert by_kind(report, "errors")


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("NOQUORUM need W=2, got 1", "NOQUORUM"),
        ("NOQUORUM need W=2 (outcome unknown: it may appear later)", "NOQUORUM (outcome unknown)"),
        ("NOQUORUM n1 is no member of the cluster; ask one that is", "NOQUORUM (no member)"),
        ("BUSY later", "BUSY"),
    ],
)
def test_kinds_of_errors(line, expected):
    """Each row: an error reply, and what it is counted as."""
    assert kind_of(ReplyError.parse(line)) == expected
