"""Admission control: the budget of background work, and the limit of requests under way (section 6.5)."""

from __future__ import annotations

import math
from itertools import count

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.core.wire import Wire

from cartwheel.core.admission import BOUNDS_S, CONTROL_EVERY_S, WINDOW_S, Admission, Limit, ReadWindow
from cartwheel.core.clock import HybridClock
from cartwheel.core.config import Config
from cartwheel.core.local import Local
from cartwheel.core.messages import TICK_S, Failure, Forward, Forwarded, Found, PutRequest, Stored, Tick
from cartwheel.core.storage import MemoryEngine, Store
from cartwheel.core.types import Crowd

TICKS_PER_S = round(1 / TICK_S)
FLOOR, CEILING = 200, 1000


class Clocked:
    """An admission control whose time a test moves on, tick by tick."""

    def __init__(self, *, ceiling=CEILING, **config):
        self.local = Local(
            Config(node="a", cluster="test", secret=b"s", background_records_per_s_max=ceiling, **config),
            Store(MemoryEngine()),
            HybridClock(last=0, skew_ms_max=500),
            stint="s1",
            boot=1,
        )
        self.admission = Admission(self.local)
        self.ticks = count()

    def tick(self, *, late_s=0.0, under_way=0):
        self.local.now_s = next(self.ticks) * TICK_S + late_s
        self.admission.handle_tick(under_way, late_s)

    def seconds(self, seconds, *, read_s=None, reads_per_tick=20, background=True, slow_s=None, late_s=0.0):
        """Let time pass: reads take ``read_s``, or ``slow_s`` in seconds in which background work was done. ``late_s`` makes
        every other tick late. Returns how much background work was done, in records."""
        done = 0
        for tick in range(round(seconds * TICKS_PER_S)):
            took = 0
            while background and self.local.budget(10):
                took += 10
            done += took
            if read_s is not None:
                for _ in range(reads_per_tick):
                    self.local.note_read(slow_s if slow_s and took else read_s)
            self.tick(late_s=late_s * (tick % 2))
        return done

    @property
    def per_s(self):
        return self.admission.status().background_per_s


def test_an_idle_node_gives_background_work_all_there_is():
    """At the start, and as long as nobody reads: the ceiling, second after second."""
    clocked = Clocked()
    assert clocked.per_s == CEILING
    assert clocked.seconds(10) / 10 == pytest.approx(CEILING, rel=0.05)
    assert clocked.per_s == CEILING


def test_the_ceiling_follows_what_the_node_serves():
    """All of it for nobody, half for 25 requests or messages a second, and not below 1,000 whatever the load; a node that was
    idle makes room within a second, and believes in a few seconds that it is idle again."""
    clocked = Clocked(ceiling=50_000)
    clocked.seconds(10)
    assert clocked.per_s == 50_000
    clocked.seconds(10, read_s=0.002, reads_per_tick=1)  # 20 a second
    assert clocked.per_s == pytest.approx(50_000 / (1 + 20 / 25), rel=0.02)
    for _ in range(10 * TICKS_PER_S):  # and what other nodes coordinate
        clocked.local.served += 4
        clocked.seconds(TICK_S, read_s=0.002, reads_per_tick=1)
    assert clocked.per_s == pytest.approx(50_000 / (1 + 100 / 25), rel=0.02)
    clocked.seconds(1, read_s=0.002, reads_per_tick=100)
    assert clocked.per_s == 1000
    clocked.seconds(20)
    assert clocked.per_s == pytest.approx(50_000, rel=0.01)


def test_slow_reads_halve_the_budget_down_to_the_floor_but_never_to_nothing():
    """60 ms at the 99th percentile against the threshold of 50: visibly less every second, and at the end the floor."""
    clocked = Clocked()
    rates = [clocked.per_s]
    for _ in range(12):
        clocked.seconds(1, read_s=0.06)
        rates.append(clocked.per_s)
    assert rates[1:5] == [1000, 500, 250, FLOOR]
    assert rates[-1] == FLOOR
    half_a_minute = clocked.seconds(30, read_s=0.06)
    assert half_a_minute == pytest.approx(FLOOR * 30, rel=0.15)  # two of the seconds are kept free


def test_the_budget_comes_back_once_the_window_is_clear():
    """While the bad seconds are in the window but the last ones are good, it grows slowly; then it soon reaches the ceiling."""
    clocked = Clocked()
    clocked.seconds(5, read_s=0.06)
    low = clocked.per_s
    assert low < CEILING / 4
    clocked.seconds(7, read_s=0.002)
    settled = clocked.per_s
    clocked.seconds(20, read_s=0.002)
    assert clocked.per_s == pytest.approx(settled + 20 * CEILING / 60, abs=20), (
        "the bad seconds are still in the window"
    )
    clocked.seconds(WINDOW_S - 30 + 8 + 20, read_s=0.002)
    assert clocked.per_s == CEILING


def test_one_slow_read_in_a_hundred_is_not_the_99th_percentile():
    """1 % may be slow; 2 % may not."""
    clocked = Clocked()
    for _ in range(5 * TICKS_PER_S):
        clocked.seconds(TICK_S, read_s=0.002, reads_per_tick=99)
        clocked.local.note_read(0.2)
    assert clocked.per_s == CEILING
    for _ in range(5 * TICKS_PER_S):
        clocked.seconds(TICK_S, read_s=0.002, reads_per_tick=98)
        clocked.local.note_read(0.2)
        clocked.local.note_read(0.2)
    assert clocked.per_s < CEILING


def test_a_queue_in_front_of_the_node_halves_the_budget():
    """Ticks that come 0.2 s late say that everything else does, too, even if nobody reads."""
    clocked = Clocked()
    clocked.seconds(5, late_s=0.2)
    assert clocked.per_s < CEILING / 4


def test_background_work_that_makes_reads_slow_is_found_out():
    """12 ms are far below the threshold, but four times what reads take in the seconds that are kept free."""
    clocked = Clocked()
    clocked.seconds(2 * CONTROL_EVERY_S + 20, read_s=0.003, slow_s=0.012)
    assert clocked.per_s < CEILING / 4


def test_load_of_its_own_making_does_not_halve_the_budget():
    """Reads that take 12 ms with and without background work are not its fault."""
    clocked = Clocked()
    clocked.seconds(2 * CONTROL_EVERY_S + 20, read_s=0.012)
    assert clocked.per_s == CEILING


def test_a_doubling_that_nobody_notices_does_not_matter():
    """From 1 to 4 ms: below a tenth of the threshold."""
    clocked = Clocked()
    clocked.seconds(2 * CONTROL_EVERY_S + 20, read_s=0.001, slow_s=0.004)
    assert clocked.per_s == CEILING


def test_every_sixteenth_second_is_free_of_background_work_if_there_are_reads():
    """The others are not."""
    clocked = Clocked()
    clocked.seconds(1, read_s=0.002)
    done = [clocked.seconds(1, read_s=0.002) for _ in range(3 * CONTROL_EVERY_S)]
    assert sum(amount < CEILING / 10 for amount in done) == 3


def test_a_slice_larger_than_the_budget_is_granted_and_paid_for_later():
    """At 20 a second, a slice of 500 records is done at once, and the next one 25 s later."""
    clocked = Clocked(background_records_per_s_min=20, ceiling=20)
    assert clocked.local.budget(500)
    clocked.seconds(23, background=False)
    assert not clocked.local.budget(1)
    clocked.seconds(3, background=False)
    assert clocked.local.budget(1)


def test_what_is_not_used_is_not_saved_up():
    """After an hour of nothing to do, no more than a quarter of a second's worth is done at once."""
    clocked = Clocked()
    clocked.seconds(60, background=False)
    done = 0
    while clocked.local.budget(10):
        done += 10
    assert done <= CEILING / 4 + 10


@given(
    st.lists(st.tuples(st.floats(0, 15), st.lists(st.floats(0, 200), min_size=1, max_size=5)), min_size=1, max_size=40)
)
def test_the_window_says_what_a_sorted_list_of_the_last_60_seconds_says(steps):
    """Against a dumb model: keep all, sort, take the rank. The window is right to its bucket, and forgets the same seconds."""
    window, kept, now_s = ReadWindow(), [], 0.0
    for passed_s, latencies in steps:
        now_s += passed_s
        window.at(now_s).add(sorted(latencies))
        kept += [(math.floor(now_s), latency) for latency in latencies]
        ordered = sorted(latency for second, latency in kept if second > math.floor(now_s) - WINDOW_S)
        exact = ordered[math.ceil(len(ordered) * 0.99) - 1]
        bucket = next((bound for bound in BOUNDS_S if exact <= bound), BOUNDS_S[-1])
        assert window.p99_s() == (bucket, len(ordered))


def test_a_window_without_reads_has_no_percentile():
    """(0, 0)."""
    assert ReadWindow().p99_s() == (0.0, 0)


# --- the limit ---


def settle(limit, capacity_per_s, *, floor_s=0.001, offered=1e9, seconds=20.0, writes=False):
    """A node that answers ``capacity_per_s`` and takes ``floor_s`` for each, under all the load that the limit lets in. Returns
    the latency at the end."""
    latency_s = floor_s
    for _ in range(round(seconds * 10)):
        under_way = min(limit.value, offered)
        latency_s = max(floor_s, under_way / capacity_per_s)
        sample = [latency_s] * 5
        limit.adjust(
            [] if writes else sample, sample if writes else [], 0.0, under_way, crowded=under_way >= limit.value * 0.75
        )
    return latency_s


@pytest.mark.parametrize("writes", [False, True])
@pytest.mark.parametrize("capacity_per_s", [4_000, 20_000, 100_000])
def test_the_limit_settles_at_what_a_node_answers_in_the_threshold(capacity_per_s, writes):
    """Little's law: throughput times 50 ms, from above and from below."""
    limit = Limit(10, 100_000, 0.05)
    latency_s = settle(limit, capacity_per_s, writes=writes)
    assert latency_s == pytest.approx(0.05, rel=0.3)
    assert limit.value == pytest.approx(capacity_per_s * 0.05, rel=0.3)


def test_the_limit_stays_within_its_bounds():
    """However slow or fast the node."""
    limit = Limit(100, 2000, 0.05)
    settle(limit, 10)
    assert limit.value == 100
    settle(limit, 1e9)
    assert limit.value == 2000
    assert Limit(100, 3, 0.05).value == 3


def test_a_distant_replica_is_not_a_queue():
    """Replicas 120 ms away: learned while the node was calm, so that under load the wait counts from there."""
    limit = Limit(10, 100_000, 0.05)
    settle(limit, 20_000, floor_s=0.12, offered=20)
    settle(limit, 20_000, floor_s=0.12)
    assert limit.value == pytest.approx(20_000 * (0.12 + 0.05), rel=0.3)


def test_a_long_overload_does_not_teach_that_slow_is_normal():
    """After an hour at the limit, requests still wait no longer than the threshold."""
    limit = Limit(10, 100_000, 0.05)
    settle(limit, 20_000, offered=20)
    assert settle(limit, 20_000, seconds=3600) == pytest.approx(0.05, rel=0.3)


def test_a_limit_that_nobody_reaches_stays():
    """Slow answers with little under way are not the limit's fault; fast ones are no reason for more."""
    limit = Limit(10, 100_000, 0.05)
    before = limit.value
    for latency_s in (5.0, 0.001):
        for _ in range(50):
            limit.adjust([latency_s], [], 0.0, 200, crowded=False)
    assert limit.value == before


def test_a_full_node_that_answers_nothing_lets_in_fewer():
    """But not before a second is over: a slow disk's sync takes most of that."""
    limit = Limit(10, 100_000, 0.05)
    before = limit.value
    for _ in range(9):
        limit.adjust([], [], 0.0, 1000, crowded=True)
    assert limit.value > before
    for _ in range(30):
        limit.adjust([], [], 0.0, 1000, crowded=True)
    assert limit.value < before / 4


def test_late_ticks_count_as_a_wait():
    """A node whose loop is behind by 0.2 s lets in fewer, whatever the latencies of those that got through."""
    limit = Limit(10, 100_000, 0.05)
    before = limit.value
    for _ in range(10):
        limit.adjust([0.001], [], 0.2, 1000, crowded=True)
    assert limit.value < before / 4


# --- in a node ---


def test_the_coordinator_follows_the_limit():
    """Three quarters are a crowd, the limit is full, and a quarter more is the end: BUSY, and nothing of the put is anywhere."""
    wire = Wire(["a", "b", "c"], requests_min=8, requests_max=8)
    node = wire.nodes["a"]
    wire.cut = {("b", "a"), ("c", "a")}
    seen = []
    for number in range(10):
        seen.append(node.crowd())
        assert wire.get("a", b"k%d" % number) is None
    assert seen == [Crowd.NONE] * 6 + [Crowd.HIGH] * 2 + [Crowd.FULL] * 2
    busy = wire.put("a", b"x", b"v")
    assert isinstance(busy, Failure)
    assert busy.code == "BUSY"
    assert not busy.unknown
    assert wire.values("a", b"x") == wire.values("b", b"x") == []
    assert node.status().counters["busy"] == 1


def test_the_traffic_of_peers_is_never_refused():
    """A full coordinator still serves as a replica: others' requests are at stake."""
    wire = Wire(["a", "b", "c"], requests_min=4, requests_max=4)
    wire.cut = {("b", "a"), ("c", "a")}
    for number in range(10):
        wire.get("a", b"k%d" % number)
    assert wire.nodes["a"].crowd() is Crowd.FULL
    wire.heal()
    wire.cut = {("b", "c"), ("c", "b")}  # b needs a for its quorum
    assert isinstance(wire.put("b", b"x", b"v"), Stored)
    assert isinstance(wire.get("b", b"x"), Found)


def test_a_node_measures_its_gets_and_shows_them():
    """Each answered get counts, with the time from its beginning; status says what follows."""
    wire = Wire(["a", "b", "c"], background_records_per_s_max=CEILING)
    assert isinstance(wire.put("a", b"k", b"v"), Stored)
    for _ in range(3):
        assert isinstance(wire.get("a", b"k"), Found)
    wire.advance(TICK_S)
    status = wire.nodes["a"].status().admission
    assert 0 < status.read_p99_ms < 1
    assert (status.background_per_s, status.requests_limit) == (CEILING, 1000)


def test_a_forward_to_a_full_node_is_refused_with_busy():
    """The forwarder relays it."""
    wire = Wire(["a", "b", "c", "d"], requests_min=4, requests_max=4)
    wire.cut = {(other, "a") for other in "bcd"}
    for number in range(20):
        wire.get("a", b"k%d" % number)
    assert wire.nodes["a"].crowd() is Crowd.FULL
    wire.heal()
    wire.inject("d", "a", Forward(1, PutRequest("0", b"x", b"v", request_id=b"r")))
    results = [message.result for src, dst, message in wire.sent if dst == "d" and isinstance(message, Forwarded)]
    assert [getattr(result, "code", "stored") for result in results] == ["BUSY"]


def test_the_limit_recovers_with_the_node():
    """Ten seconds of requests that hang, then answers: within two seconds of load the limit grows again."""
    clocked = Clocked()
    for _ in range(10 * TICKS_PER_S):
        clocked.local.crowded = True
        clocked.tick(under_way=1000)
    low = clocked.local.requests_limit
    assert low == 128
    for _ in range(2 * TICKS_PER_S):
        clocked.local.crowded = True
        clocked.local.note_read(0.004)
        clocked.local.note_write(0.008)
        clocked.tick(under_way=low)
    assert clocked.local.requests_limit > 2 * low


def test_ticks_do_no_harm_to_an_idle_node():
    """Nothing is asked, nothing changes."""
    wire = Wire(["a", "b", "c"])
    before = wire.nodes["a"].status().admission
    for _ in range(100):
        wire.handle("a", Tick())
        wire.pass_time(TICK_S)
    assert wire.nodes["a"].status().admission == before
