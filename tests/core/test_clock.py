"""The hybrid logical clock: readings never repeat, stay close to the wall, and follow what was observed."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cartwheel.core.clock import HybridClock, reading, wall_ms_of
from cartwheel.core.errors import ClockSkew

WALL = 1_800_000_000_000
SKEW = 500
LEASE = 4000


def make_clock(mark: int = 0) -> HybridClock:
    return HybridClock(mark=mark, skew_ms_max=SKEW, lease_ms=LEASE)


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
    clock, highest = make_clock(mark=reading(WALL - 1000)), reading(WALL - 1000)
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
    [(-1000, True), (0, True), (SKEW, True), (SKEW + 1, False), (3_600_000, False)],
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
    clock = make_clock(mark=reading(WALL + 10_000))
    clock.observe(reading(WALL + 10_000), WALL)
    assert clock.last == reading(WALL + 10_000)


def test_a_restarted_clock_goes_on_above_its_mark():
    """Even if the wall stands still or went back meanwhile."""
    clock = make_clock(mark=reading(WALL, 7))
    assert clock.limit == reading(WALL, 7)
    assert clock.tick(WALL - 60_000) == reading(WALL, 8)


@pytest.mark.parametrize(
    ("limit_ahead_ms", "needed"),
    [(0, True), (LEASE // 2, True), (LEASE // 2 + 1, False), (LEASE, False)],
)
def test_needs_mark(limit_ahead_ms, needed):
    """Each row: with the durable mark so far ahead of the clock, a higher one is needed or not; it is a lease ahead."""
    clock = make_clock()
    clock.marked(reading(WALL + limit_ahead_ms))
    assert clock.needs_mark(WALL) == (reading(WALL + LEASE) if needed else None)


def test_needs_mark_counts_from_the_clock_where_it_is_ahead_of_the_wall():
    """A clock that ran ahead needs its lease ahead of itself."""
    clock = make_clock(mark=reading(WALL + 300))
    assert clock.needs_mark(WALL) == reading(WALL + 300 + LEASE)


@pytest.mark.parametrize(
    ("mark_ahead_ms", "wait"),
    [
        (-1000, 0),
        (0, 0),
        (SKEW // 2, 0),  # peers take that
        (SKEW // 2 + 1, 1),
        (SKEW // 2 + LEASE, LEASE),
        (SKEW // 2 + LEASE + 1, LEASE),  # the wall clock went back: waiting longer would not help
        (864_000_000, LEASE),
    ],
)
def test_how_long_to_wait_before_the_first_tick(mark_ahead_ms, wait):
    """Each row: with the mark of an earlier life so far ahead of the wall, so long, lest peers refuse our readings."""
    assert make_clock(mark=reading(WALL + mark_ahead_ms)).wait_ms(WALL) == wait


def test_the_mark_never_goes_back():
    """An older mark becoming durable late changes nothing."""
    clock = make_clock()
    clock.marked(50)
    clock.marked(40)
    assert clock.limit == 50
