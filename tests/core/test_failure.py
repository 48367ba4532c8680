"""Failure detection: verdicts come soon, end soon, do not flap, and are never passed by a node that was itself away (4.8.3)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.core.wire import Wire

from cartwheel.core.config import Config
from cartwheel.core.failure import FORGIVE_S, HEALTH_S, PROBE_S, RELAPSE_S
from cartwheel.core.messages import (
    TICK_S,
    DiskSpace,
    Health,
    MemberStatus,
    PeerDown,
    PeerUp,
    Probe,
    Probed,
    ReplicaRead,
    ReplicaValue,
    ReplicaWrite,
    ReplicaWrote,
    Tick,
)
from cartwheel.core.types import NodeId

LATE_S = Config(node="a", cluster="c", secret=b"").late_s
KEY = b"cart:7"
BOTH_WAYS = {("a", "b"), ("b", "a")}


@pytest.fixture
def wire() -> Wire:
    """Three nodes: all own every key."""
    made = Wire(["a", "b", "c"])
    tick(made)
    return made


def tick(wire: Wire, times: int = 1) -> None:
    for _ in range(times):
        wire.advance(TICK_S)


def seen(wire: Wire, at: NodeId, node: NodeId) -> MemberStatus:
    """What ``at`` finds of ``node``."""
    return next(member for member in wire.nodes[at].status().members if member.node == node)


def fit(wire: Wire, at: NodeId, node: NodeId) -> str:
    """What ``at`` would send to ``node``: reads, writes, deletes, by their first letters."""
    local = wire.nodes[at].local
    return "".join("rwd"[i] for i, fits in enumerate((local.readable, local.writable, local.deletable)) if node in fits)


def ask(wire: Wire, kinds: str = "rw") -> None:
    """Node a asks b something, by hand: no answer will come of it."""
    local = wire.nodes["a"].local
    for kind in kinds:
        (local.asked_read if kind == "r" else local.asked_write)["b"] = local.new_id()


def answer(wire: Wire, kinds: str = "rw") -> None:
    """Node a has b's answer to all that it asked."""
    local = wire.nodes["a"].local
    for kind in kinds:
        asked, heard = (local.asked_read, local.heard_read) if kind == "r" else (local.asked_write, local.heard_write)
        heard["b"] = asked["b"]


def traffic(wire: Wire, at: NodeId = "a") -> None:
    """A put and a get through ``at``."""
    wire.put(at, KEY, b"x")
    wire.get(at, KEY)


def verdicts(wire: Wire, at: NodeId = "a") -> dict[str, int]:
    counters = wire.nodes[at].status().counters
    return {name.removeprefix("verdicts_"): n for name, n in counters.items() if name.startswith("verdicts_")}


def until(wire: Wire, condition: Callable[[], bool], most_s: float) -> float:
    """Tick until the condition holds; the time that took."""
    began_s = wire.now_s
    while not condition():
        assert wire.now_s - began_s <= most_s, "not in time"
        tick(wire)
    return wire.now_s - began_s


# --- silence ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("phase_s", [0.0, 0.001, 0.025, 0.049])
@pytest.mark.parametrize("kinds", ["r", "w", "rw"])
@pytest.mark.parametrize("busy", [False, True])
def test_a_silent_peer_is_out_within_late_s_and_a_tick(wire, kinds, phase_s, busy):
    """Whenever between two ticks it was asked, whatever it was asked, and whether or not more questions follow."""
    wire.cut = BOTH_WAYS
    wire.pass_time(phase_s)
    ask(wire, kinds)
    asked_s = wire.now_s
    wire.advance(TICK_S - phase_s)
    while fit(wire, "a", "b"):
        assert fit(wire, "a", "b") == "rwd", "it answers nothing, so it is out of all at once"
        tick(wire)
        if busy:
            ask(wire, kinds)
    assert LATE_S - 1e-3 <= wire.now_s - asked_s <= LATE_S + TICK_S + 1e-3
    assert seen(wire, "a", "b").state == "silent"
    assert seen(wire, "a", "b").reason == "no answer within 0.2 s"
    assert wire.nodes["a"].local.why_unreachable("b") == "no answer within 0.2 s", "as failures of requests say, too"
    assert seen(wire, "a", "b").reachable
    assert fit(wire, "a", "c") == "rwd"
    assert verdicts(wire) == {"silent": 1, "up": 2}


def test_a_hung_peer_is_found_by_requests(wire):
    """The same with real ones."""
    traffic(wire)
    wire.cut = BOTH_WAYS
    traffic(wire)
    assert until(wire, lambda: not fit(wire, "a", "b"), 1.0) <= LATE_S + TICK_S + 1e-3


def test_a_peer_that_falls_silent_between_two_answers(wire):
    """It has answered the read, and dies before its write is done: it is out of all at once, not of writes first."""
    wire.cut = BOTH_WAYS
    ask(wire)
    tick(wire)
    answer(wire, "r")
    tick(wire, 3)
    assert fit(wire, "a", "b") == "rwd"
    tick(wire)
    assert fit(wire, "a", "b") == ""


@pytest.mark.parametrize("out_ticks", range(10, 22))
def test_a_return_is_noticed_within_a_second(wire, out_ticks):
    """Wherever between two probes it comes."""
    wire.cut = BOTH_WAYS
    ask(wire)
    tick(wire, out_ticks)
    assert not fit(wire, "a", "b")
    wire.heal()
    assert until(wire, lambda: fit(wire, "a", "b") == "rwd", 1.0) <= PROBE_S + TICK_S
    assert seen(wire, "a", "b").state == "up"
    assert seen(wire, "a", "b").reason == ""
    tick(wire, 20)  # what was asked while it was out is not held against it
    assert seen(wire, "a", "b").since_s == pytest.approx(1.0, abs=0.01)
    assert verdicts(wire) == {"silent": 1, "up": 3}


def test_a_peer_that_was_asked_nothing_is_not_judged(wire):
    """Silence is no news where there is no question."""
    wire.cut = BOTH_WAYS
    tick(wire, 100)
    assert fit(wire, "a", "b") == "rwd"


@pytest.mark.parametrize("cut", [{("a", "b")}, {("b", "a")}, BOTH_WAYS], ids=["there", "back", "both"])
def test_a_cut_does_not_flap(wire, cut):
    """For a minute under traffic from both sides: each finds the other silent, once."""
    traffic(wire)
    wire.cut = cut
    for _ in range(1200):
        tick(wire)
        traffic(wire, "a")
        traffic(wire, "b")
    for at, other in (("a", "b"), ("b", "a")):
        assert verdicts(wire, at) == {"silent": 1, "up": 2}
        assert seen(wire, at, other).since_s > 59
        assert fit(wire, at, other) == ""
        assert fit(wire, at, "c") == "rwd"
        assert fit(wire, "c", at) == "rwd"
    wire.heal()
    until(wire, lambda: fit(wire, "a", "b") == fit(wire, "b", "a") == "rwd", 1.0)


@pytest.mark.parametrize("lost", [ReplicaRead, ReplicaValue, ReplicaWrite, ReplicaWrote])
@pytest.mark.parametrize("every", [2, 3, 7])
def test_single_losses_under_traffic_are_no_verdict(wire, lost, every):
    """A later answer shows that the peer is well."""
    counts: Counter[tuple[NodeId, NodeId]] = Counter()

    def lose(src, dst, message) -> bool:
        counts[src, dst] += isinstance(message, lost)
        return isinstance(message, lost) and counts[src, dst] % every == 0

    wire.lose = lose
    for _ in range(200):
        for _ in range(3):
            traffic(wire)
        tick(wire)
    assert verdicts(wire) == {"up": 2}


@pytest.mark.parametrize("kinds", ["r", "w", "rw"])
def test_the_loss_of_the_last_message_is_no_verdict(wire, kinds):
    """No later request clears it, so a probe must."""
    ask(wire, kinds)
    tick(wire, 100)
    assert verdicts(wire) == {"up": 2}
    probes = [message for _, dst, message in wire.sent if isinstance(message, Probe) and dst == "b"]
    assert sorted(probe.durable for probe in probes) == [False, True][: 1 + ("w" in kinds)]


def test_an_answer_that_comes_after_a_later_one_changes_nothing(wire):
    """The coordinator may note an earlier id over a later one."""
    ask(wire)
    local = wire.nodes["a"].local
    first = dict(local.asked_read)
    ask(wire)
    answer(wire)
    tick(wire)
    local.heard_read |= first
    tick(wire, 20)
    assert verdicts(wire) == {"up": 2}


@given(st.lists(st.sampled_from(["", "ask", "ask", "answer", "answer first", "ask answer"]), max_size=60))
def test_lateness_is_as_the_model_says(steps):
    """The dumb model keeps everything: late is who has answered nothing that was asked four or more ticks ago."""
    wire = Wire(["a", "b"], q=8)
    wire.lose = lambda src, dst, message: isinstance(message, Probe)
    local = wire.nodes["a"].local
    asked_by_tick: list[int] = []
    asked, heard = [0], 0
    for step in steps:
        if "ask" in step:
            ask(wire, "r")
            asked.append(local.asked_read["b"])
        if "answer" in step:
            heard = max(heard, asked[1 if "first" in step and len(asked) > 1 else -1])
            local.heard_read["b"] = heard
        tick(wire)
        asked_by_tick.append(asked[-1])
        late = len(asked_by_tick) > 4 and asked_by_tick[-5] > heard
        assert ("r" in fit(wire, "a", "b")) == (not late)
        if late:
            return


# --- slow writes ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("read", [None, b"another key", KEY])
def test_a_peer_whose_commits_take_two_seconds_takes_no_writes(wire, read):
    """It answers reads (but of what is not yet on its disk), and every heartbeat. For a minute there is one verdict, and its end
    soon after the disk is well."""
    traffic(wire)
    wire.held = {"b"}
    asked_s = wire.now_s
    states = set()
    for i in range(1200):
        wire.put("a", KEY, b"x")
        if read is not None:
            wire.get("a", read)
        if i % 40 == 39:
            wire.release("b")
            wire.held = {"b"}
        tick(wire)
        states.add(seen(wire, "a", "b").state)
        if "slow writes" not in states:
            assert wire.now_s - asked_s <= LATE_S + TICK_S + 1e-3
    assert states == {"up", "slow writes"}
    assert fit(wire, "a", "b") == "r"
    assert seen(wire, "a", "b").reason == "writes are not answered within 0.2 s"
    assert verdicts(wire) == {"slow_writes": 1, "up": 2}
    wire.release("b")
    assert until(wire, lambda: fit(wire, "a", "b") == "rwd", 1.5) <= PROBE_S + TICK_S


@pytest.mark.parametrize("busy", [False, True])
def test_probes_are_few(wire, busy):
    """Before a verdict one that reads take along, and one for writes if no other write asks the same. Then two a second each."""

    def probes() -> list[bool]:
        sent = [message.durable for _, dst, message in wire.sent if isinstance(message, Probe) and dst == "b"]
        wire.sent.clear()
        return sorted(sent)

    wire.cut = BOTH_WAYS
    ask(wire)
    for _ in range(4):
        tick(wire)
        if busy:
            ask(wire)
    assert fit(wire, "a", "b") == "rwd"
    assert probes() == ([False] if busy else [False, True])
    tick(wire)
    assert fit(wire, "a", "b") == ""
    assert probes() == [False, True]
    for _ in range(200):
        tick(wire)
        if busy:
            ask(wire)
    assert len(probes()) == 40


def test_a_probe_for_writes_is_answered_once_the_disk_has_it(wire):
    """Held as any promise; the other probe is not."""
    wire.held = {"b"}
    wire.inject("a", "b", Probe(1, False), Probe(2, True))
    answers = [message.id for src, _, message in wire.sent if isinstance(message, Probed) and src == "b"]
    assert answers == [1]
    wire.release("b")
    answers = [message.id for src, _, message in wire.sent if isinstance(message, Probed) and src == "b"]
    assert answers == [1, 2]


def test_a_probe_answered_late_is_no_return(wire):
    """Commits of 0.3 s are too slow, however many there are."""
    wire.held = {"b"}
    ask(wire, "w")
    tick(wire, 4)
    for i in range(200):
        tick(wire)
        assert fit(wire, "a", "b") == "r"
        if i % 10 == 8:  # 0.4 s after each probe
            wire.release("b")
            wire.held = {"b"}


def test_slow_reads(wire):
    """Writes are answered, reads are not."""
    wire.lose = lambda src, dst, message: isinstance(message, Probe) and not message.durable
    for _ in range(6):
        ask(wire)
        answer(wire, "w")
        tick(wire)
    assert fit(wire, "a", "b") == "wd"
    assert seen(wire, "a", "b").state == "slow reads"
    assert verdicts(wire) == {"slow_reads": 1, "up": 2}


def test_a_slow_peer_that_falls_silent(wire):
    """The verdict grows, and shrinks again when it answers."""
    wire.held = {"b"}
    ask(wire, "w")
    tick(wire, 5)
    assert seen(wire, "a", "b").state == "slow writes"
    wire.cut = BOTH_WAYS
    ask(wire, "r")
    tick(wire, 5)
    assert seen(wire, "a", "b").state == "silent"
    wire.heal()
    assert until(wire, lambda: fit(wire, "a", "b") == "r", 1.0) <= PROBE_S + TICK_S
    assert verdicts(wire) == {"slow_writes": 1, "silent": 1, "up": 2}


# --- relapses ---------------------------------------------------------------------------------------------------------


def fall_silent(wire: Wire) -> float:
    """Let b fall silent for a second; how long its return takes after that."""
    wire.cut = BOTH_WAYS
    ask(wire, "r")
    tick(wire, 20)
    assert not fit(wire, "a", "b")
    wire.heal()
    return until(wire, lambda: fit(wire, "a", "b") == "rwd", 10.0)


def test_who_relapses_must_answer_more_probes(wire):
    """1, 2, 4, 8, 8: at twice a second. After a quiet minute all is forgotten."""
    took = [fall_silent(wire) for _ in range(5)]
    for seconds, probes in zip(took, [1, 2, 4, 8, 8], strict=True):
        assert (probes - 1) * PROBE_S <= seconds <= probes * PROBE_S + TICK_S
    wire.advance(1.0)
    tick(wire, round((RELAPSE_S + 1) / TICK_S))
    assert fall_silent(wire) > 7 * PROBE_S, "no relapse, but not forgotten"
    tick(wire, round((FORGIVE_S + 1) / TICK_S))
    assert fall_silent(wire) <= PROBE_S + TICK_S


def test_a_relapse_counts_from_its_own_probes(wire):
    """Those that were answered before the last return are used up, and an answer that comes twice is one."""
    wire.repeat = True
    took = []
    for _ in range(4):
        wire.cut = BOTH_WAYS
        ask(wire, "r")
        tick(wire, 4)
        wire.heal()  # just before the verdict: its first probe is answered already
        tick(wire)
        took.append(until(wire, lambda: fit(wire, "a", "b") == "rwd", 10.0))
    assert verdicts(wire)["silent"] == 4  # the first lasts no time at all
    assert took == pytest.approx([0, PROBE_S, 3 * PROBE_S, 7 * PROBE_S], abs=0.01)


def test_a_relapse_of_a_disk(wire):
    """The same for writes: it answers every probe at once, but not the requests."""
    took = []
    for _ in range(4):
        for _ in range(5):
            ask(wire, "w")
            tick(wire)
        took.append(until(wire, lambda: fit(wire, "a", "b") == "rwd", 10.0))
    assert verdicts(wire)["slow_writes"] == 4
    assert took == pytest.approx([0, PROBE_S, 3 * PROBE_S, 7 * PROBE_S], abs=0.01)


def test_good_probes_count_in_a_row(wire):
    """One without an answer in time, and they are counted anew."""
    fall_silent(wire)
    fall_silent(wire)
    wire.cut = BOTH_WAYS
    ask(wire, "r")
    tick(wire, 20)
    for _ in range(5):  # three of the four that it needs, then none
        wire.heal()
        tick(wire, 30)
        wire.cut = BOTH_WAYS
        tick(wire, 10)
    assert not fit(wire, "a", "b")
    wire.heal()
    until(wire, lambda: fit(wire, "a", "b") == "rwd", 3.0)


# --- connections ------------------------------------------------------------------------------------------------------


def test_a_new_connection_is_a_return(wire):
    """At once, and nothing asked before counts."""
    wire.cut = BOTH_WAYS
    ask(wire)
    tick(wire, 20)
    wire.handle("a", PeerDown("b", "connection lost"))
    down = seen(wire, "a", "b")
    assert (down.state, down.reason, down.reachable) == ("unreachable", "connection lost", False)
    tick(wire, 20)
    assert seen(wire, "a", "b").since_s == pytest.approx(1.0, abs=0.01)
    ask(wire)
    wire.heal()
    wire.lose = lambda src, dst, message: isinstance(message, Probe)  # so that none clears it
    wire.handle("a", PeerUp("b"))
    assert fit(wire, "a", "b") == "rwd"
    tick(wire, 10)
    assert verdicts(wire) == {"silent": 1, "unreachable": 1, "up": 3}


@pytest.mark.parametrize(("away_s", "at_once"), [(1.0, False), (FORGIVE_S + 1, True)])
def test_a_new_connection_to_a_peer_that_relapsed_must_be_earned(wire, away_s, at_once):
    """Unless that was a minute ago."""
    fall_silent(wire)
    wire.cut = BOTH_WAYS
    ask(wire)
    tick(wire, 6)
    wire.handle("a", PeerDown("b", "connection lost"))
    tick(wire, round(away_s / TICK_S))
    wire.heal()
    wire.handle("a", PeerUp("b"))
    assert fit(wire, "a", "b") == ("rwd" if at_once else "")
    until(wire, lambda: fit(wire, "a", "b") == "rwd", 1.0)


def test_a_connection_that_comes_and_goes_is_no_relapse(wire):
    """Its loss is known at once, and so is its return: nobody waits for it in vain."""
    for _ in range(10):
        wire.handle("a", PeerDown("b", "connection lost"))
        tick(wire)
        wire.handle("a", PeerUp("b"))
        assert fit(wire, "a", "b") == "rwd"


def test_a_peer_never_reached(wire):
    """It is unreachable since the start."""
    wire.boot("a", 9)
    wire.advance(2.0)
    found = seen(wire, "a", "b")
    assert (found.state, found.reason, found.since_s) == (
        "unreachable",
        "not connected yet",
        pytest.approx(2.0, abs=0.01),
    )
    assert (seen(wire, "a", "a").state, seen(wire, "a", "a").since_s) == ("up", pytest.approx(2.0, abs=0.01))


def test_answers_from_nowhere(wire):
    """A probe's answer that nobody waits for, or from a peer that is gone, changes nothing."""
    wire.inject("b", "a", Probed(77))
    wire.handle("a", PeerDown("b", "connection lost"))
    wire.inject("b", "a", Probed(78))
    wire.inject("stranger", "a", Probed(79), Probe(2**64 - 1, True))
    assert fit(wire, "a", "b") == ""
    assert fit(wire, "a", "stranger") == ""


# --- our own stalls ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("away_s", [1.1, 5.0, 30.0])
def test_a_loop_that_stalled_judges_nobody(wire, away_s):
    """What was asked before may have been answered to a node that was not there. Afterwards it judges again."""
    ask(wire)
    tick(wire)
    wire.cut = BOTH_WAYS  # so that no probe clears it
    wire.pass_time(away_s)
    for _ in range(10):
        wire.handle("a", Tick())
        wire.pass_time(TICK_S)
        assert fit(wire, "a", "b") == fit(wire, "a", "c") == "rwd"
    assert verdicts(wire) == {"suspended": 1, "up": 2}
    ask(wire)
    assert until(wire, lambda: not fit(wire, "a", "b"), 1.0) <= LATE_S + 2 * TICK_S + 1e-3


@pytest.mark.parametrize("gap_s", [0.25, 0.5, 0.95])
def test_after_a_short_stall_the_waiting_begins_anew(wire, gap_s):
    """The answers may lie unread; they are read before four more ticks have passed."""
    wire.cut = BOTH_WAYS  # so that no probe clears it
    ask(wire)
    tick(wire, 4)
    wire.advance(gap_s)
    assert fit(wire, "a", "b") == "rwd"
    answer(wire)
    tick(wire, 10)
    assert verdicts(wire) == {"up": 2}


def test_a_stall_while_a_peer_is_out(wire):
    """A probe from before is void, the next one counts."""
    wire.cut = BOTH_WAYS
    ask(wire)
    tick(wire, 10)
    wire.heal()
    wire.pass_time(5.0)
    tick(wire)
    assert fit(wire, "a", "b") == "rwd"


# --- full disks -------------------------------------------------------------------------------------------------------


def test_health_has_hysteresis(wire):
    """Writes end at 0.90 and begin again below 0.87; each change is told to everyone, once."""
    told = []
    for used in (0.5, 0.899, 0.90, 0.95, 0.89, 0.87, 0.869, 0.89, 0.90):
        wire.sent.clear()
        wire.handle("a", DiskSpace(used))
        healths = [(dst, message.writes) for _, dst, message in wire.sent if isinstance(message, Health)]
        writes = wire.nodes["a"].local.takes_writes
        assert healths in ([], [("b", writes), ("c", writes)])
        assert fit(wire, "b", "a") == ("rwd" if writes else "rd")
        assert seen(wire, "b", "a").state == seen(wire, "a", "a").state == ("up" if writes else "no writes")
        told.append((writes, bool(healths)))
    assert told == [
        (True, False), (True, False), (False, True), (False, False), (False, False), (False, False),
        (True, True), (True, False), (False, True),
    ]  # fmt: skip
    assert seen(wire, "b", "a").reason == "its disk is nearly full"
    assert {wire.nodes[node].local.why_unreachable("a") for node in "ab"} == {"its disk is nearly full"}
    assert verdicts(wire, "b") == {"no_writes": 2, "up": 3}
    status = wire.nodes["a"].status()
    assert status.counters["disk_nearly_full"] == 2 * status.counters["disk_has_room"] == 2
    assert status.notes == ["the disk is 90% full or more: only deletes are written here"]


def test_health_is_told_again_and_again(wire):
    """To who missed it, and to who connects anew."""
    wire.cut = {("a", "b")}
    wire.handle("a", DiskSpace(0.99))
    assert fit(wire, "b", "a") == "rwd"
    wire.heal()
    tick(wire, round(HEALTH_S / TICK_S) + 1)
    assert fit(wire, "b", "a") == "rd"
    wire.boot("b", 9)
    wire.connect("b")
    assert fit(wire, "b", "a") == "rwd"
    wire.handle("a", PeerDown("b", "connection lost"))
    wire.handle("a", PeerUp("b"))
    assert fit(wire, "b", "a") == "rd"


def test_a_full_peer_that_falls_silent_takes_no_deletes(wire):
    """Both verdicts are kept apart; fullness outlives the connection."""
    wire.handle("b", DiskSpace(0.99))
    assert fit(wire, "a", "b") == "rd"
    wire.cut = BOTH_WAYS
    ask(wire)
    tick(wire, 6)
    assert (fit(wire, "a", "b"), seen(wire, "a", "b").state) == ("", "silent")
    wire.heal()
    until(wire, lambda: fit(wire, "a", "b") == "rd", 1.0)
    wire.handle("a", PeerDown("b", "connection lost"))
    wire.handle("a", PeerUp("b"))
    assert fit(wire, "a", "b") == "rd"


def test_health_carries_the_door():
    """Where a node's Redis door is, every peer knows, so that a tool can ask them all."""
    wire = Wire(["a", "b"], door="10.0.0.1:7700")
    assert seen(wire, "a", "b").door == seen(wire, "b", "b").door == "10.0.0.1:7700"
    wire.boot("a", 9)
    assert seen(wire, "a", "b").door == ""
