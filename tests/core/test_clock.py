"""The hybrid logical clock: readings never repeat, stay close to the wall, and follow what was observed; and the stints that
make it unnecessary to write any of that to the disk."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.core.wire import WALL_MS, Wire, history_of

from cartwheel.core import versions
from cartwheel.core.clock import HybridClock, reading, wall_ms_of
from cartwheel.core.errors import ClockSkew
from cartwheel.core.messages import Stored, Tick
from cartwheel.core.node import Node
from cartwheel.core.storage import Space, Store
from cartwheel.core.types import Dot

WALL = WALL_MS
SKEW = 500
HOUR_MS = 3_600_000
KEY = b"cart:7"


def make_clock(last: int = 0) -> HybridClock:
    return HybridClock(last=last, skew_ms_max=SKEW)


def test_a_reading_is_milliseconds_and_a_logical_count():
    """Comparing readings compares times first."""
    assert reading(WALL) == WALL << 16
    assert reading(WALL, 65535) < reading(WALL + 1)
    assert wall_ms_of(reading(WALL, 12345)) == WALL


@pytest.mark.parametrize(
    ("walls", "expected"),
    [
        ([5, 6], [reading(5), reading(6)]),  # the wall moves on: the logical part starts anew
        ([5, 5, 5], [reading(5), reading(5, 1), reading(5, 2)]),
        ([5, 4, 3], [reading(5), reading(5, 1), reading(5, 2)]),  # the wall goes back: the clock does not
        ([5, 4, 6], [reading(5), reading(5, 1), reading(6)]),
    ],
)
def test_ticks(walls, expected):
    """Each row: ticks at these wall times give out these readings."""
    clock = make_clock()
    assert [clock.tick(wall) for wall in walls] == expected
    assert clock.last == expected[-1]


@given(st.lists(st.tuples(st.booleans(), st.integers(WALL - 2000, WALL + 2000), st.integers(0, 70_000))))
def test_ticks_exceed_all_ticks_and_all_that_was_observed(steps):
    """Whatever the wall does and peers send, a tick is above every earlier tick and every reading observed."""
    clock, highest = make_clock(last=reading(WALL - 1000)), reading(WALL - 1000)
    for ticks, wall, logical in steps:
        if ticks:
            now = clock.tick(wall)
            assert now > highest
            highest = now
        else:
            remote = reading(wall, 0) + logical
            try:
                clock.observe(remote, WALL)
                highest = max(highest, remote)
            except ClockSkew:
                pass
        assert clock.last == highest


@pytest.mark.parametrize(
    ("ahead_ms", "taken"),
    [(-1000, True), (0, True), (SKEW, True), (SKEW + 1, False), (HOUR_MS, False)],
)
def test_observing(ahead_ms, taken):
    """Each row: a reading so far ahead of our wall is taken or refused; a refused one leaves our clock as it was."""
    clock = make_clock()
    clock.tick(WALL - 5000)
    before, remote = clock.last, reading(WALL + ahead_ms, 9)
    if taken:
        clock.observe(remote, WALL)
        assert clock.last == max(before, remote)
    else:
        with pytest.raises(ClockSkew, match=f"{ahead_ms} ms ahead of ours, {SKEW} ms are allowed"):
            clock.observe(remote, WALL)
        assert clock.last == before


def test_what_is_no_news_is_never_refused():
    """A reading below our own last one is taken, even if our own clock is beyond the skew (the wall was set back)."""
    clock = make_clock(last=reading(WALL + 10_000))
    clock.observe(reading(WALL + 10_000), WALL)
    assert clock.last == reading(WALL + 10_000)


def test_a_clock_goes_on_above_its_last_reading():
    """Even if the wall stood still or went back meanwhile."""
    clock = make_clock(last=reading(WALL, 7))
    assert clock.tick(WALL - SKEW) == reading(WALL, 8)


@given(st.integers(-2 * SKEW, 2 * SKEW), st.lists(st.integers(-SKEW, SKEW)))
def test_a_clock_strays_only_where_the_wall_was_set_back(back_ms, others):
    """What is observed from others never carries it so far, by invariant 2; and after a restart it has not strayed."""
    clock = make_clock()
    clock.tick(WALL)
    for ahead_ms in others:
        clock.observe(reading(WALL + ahead_ms), WALL)
    assert not clock.strayed(WALL)
    highest_ms = WALL + max([0, *others])
    assert clock.strayed(WALL - back_ms) == (highest_ms - (WALL - back_ms) > SKEW)
    clock.restart()
    assert not clock.strayed(WALL - back_ms)
    assert clock.tick(WALL - back_ms) == reading(WALL - back_ms)


# --- stints: what replaces a mark on the disk --------------------------------------------------------------------------


@pytest.fixture
def wire() -> Wire:
    """Three nodes: all own every key."""
    return Wire(["a", "b", "c"])


def put(wire: Wire) -> Dot:
    """Write through a, and return the dot."""
    assert isinstance(wire.put("a", KEY, b"x"), Stored)
    newest = versions.newest(wire.record("a", KEY))
    assert newest is not None
    return newest.dot


def test_after_an_unclean_stop_there_is_a_new_stint(wire):
    """It begins at the wall, wherever the old one was: no dot of the new actor was ever given out."""
    first = put(wire)
    wire.crash("a")
    wire.wall_ms -= 200
    wire.restart("a")
    second = put(wire)
    assert (first[0], second[0]) == ("a/s1", "a/s4")
    assert wall_ms_of(first[1]) == WALL
    assert first[1] < second[1], "it has observed what it superseded"
    assert wire.nodes["b"].status().counters.get("writes_refused", 0) == 0


def test_after_a_clean_stop_the_clock_goes_on(wire):
    """Above its last reading, with the same stint, though the wall went back a little."""
    first = put(wire)
    wire.stop("a")
    wire.wall_ms -= SKEW
    wire.restart("a")
    second = put(wire)
    assert first[0] == second[0] == "a/s1"
    assert second[1] == first[1] + 1


def test_a_copied_disk_never_goes_on_with_the_stint(wire):
    """Though it was closed cleanly: the other copy may go on with it (chaos, clone, seed 2)."""
    put(wire)
    config = wire.nodes["a"].local.config
    wire.stop("a")
    node = Node(config, Store(wire.engines["a"]), history=history_of([*"abc"]), stint="s9", boot=9, copied=True)
    node.start(wire.now_s, wire.wall_ms)
    assert node.local.actor == "a/s9"


@pytest.mark.parametrize("running", [True, False], ids=["while it runs", "during a clean stop"])
def test_a_wall_set_back_by_an_hour_begins_a_new_stint(wire, running):
    """Else every peer would refuse its writes for an hour. All nodes' walls are set back, as by a time server."""
    first = put(wire)
    if not running:
        wire.stop("a")
    wire.wall_ms -= HOUR_MS
    if running:
        for name in wire.nodes:
            wire.handle(name, Tick())
    else:
        wire.restart("a")  # there has been no tick when the first put comes
    assert isinstance(wire.put("a", b"another key", b"x"), Stored)
    newest = versions.newest(wire.record("a", b"another key"))
    assert newest is not None
    assert newest.actor == "a/s1+1"
    assert wall_ms_of(newest.counter) == WALL - HOUR_MS
    assert wire.nodes["a"].status().counters["stints_clock"] == 1
    second = put(wire)
    assert first != second
    assert wire.values("b", KEY) == wire.values("c", KEY) == [b"x"], "the write before it is superseded all the same"


def test_a_stint_begun_by_the_clock_outlives_a_clean_stop(wire):
    """And the number goes on."""
    wire.nodes["a"].local.clock.observe(reading(WALL), WALL)
    for number in (1, 2):
        put(wire)
        wire.wall_ms -= HOUR_MS
        wire.advance(0)
        assert put(wire)[0] == f"a/s1+{number}"
        wire.stop("a")
        wire.restart("a")
        assert put(wire)[0] == f"a/s1+{number}"


def test_a_running_clock_writes_nothing_to_the_disk(wire):
    """An idle node's disk stands still, and a busy one's holds what clients wrote."""
    for _ in range(100):
        wire.advance(0.05)
    before = wire.engines["a"].scan(Space.META, limit=100)
    put(wire)
    for _ in range(100):
        wire.advance(0.05)
    changed = {key for key, value in wire.engines["a"].scan(Space.META, limit=100) if (key, value) not in before}
    assert changed == set()
