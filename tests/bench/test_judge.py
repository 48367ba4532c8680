"""The judge of a load: what was planted is found, and nothing else is."""

import random

import pytest

from cartwheel.bench.judge import EXAMPLES_MAX, Finding, Judge, Outcome, sequence_of, value_of

KEY = 7


def judge_with(*outcomes):
    """A judge that has seen these writes of one key, in order."""
    judge = Judge(10)
    for outcome in outcomes:
        judge.begin_write(KEY)
        judge.end_write(KEY, outcome)
    return judge


def values(*numbers):
    return [value_of(KEY, number, b"x" * 40) for number in numbers]


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        ([2], None),
        ([3], None),  # refused or not, a later one that was tried is no harm
        ([1, 2], None),  # siblings: the newest counts
        ([2, 1], None),
        ([1], Finding.STALE),
        ([1, 1], Finding.STALE),
        ([], Finding.NOT_FOUND),
        ([4], Finding.FOREIGN),  # nobody has written that yet
        ([0], Finding.FOREIGN),
    ],
)
def test_what_a_read_may_find(found, expected):
    """Two writes were acknowledged, a third one has an unknown outcome. Each row: what the siblings are, and the finding."""
    judge = judge_with(Outcome.ACKED, Outcome.ACKED, Outcome.UNKNOWN)
    assert judge.end_read(KEY, judge.acked(KEY), values(*found), "here") is expected
    assert judge.findings.total() == (expected is not None)
    assert len(judge.examples) == (expected is not None)
    assert judge.is_there(KEY, values(*found)) is (expected is None)


@pytest.mark.parametrize(
    ("found", "expected"),
    [([2], None), ([1, 2], None), ([], Finding.LOST), ([1], Finding.LOST), ([3], Finding.FOREIGN)],
)
def test_what_there_must_be_in_the_end(found, expected):
    """Each row: what is read back, and the finding."""
    judge = judge_with(Outcome.ACKED, Outcome.ACKED)
    assert judge.read_back(KEY, values(*found), "here") is expected


def test_a_read_is_held_to_what_was_acknowledged_before_it_began():
    """Not to what was acknowledged while it was under way."""
    judge = judge_with(Outcome.ACKED)
    least = judge.acked(KEY)
    judge.begin_write(KEY)
    judge.end_write(KEY, Outcome.ACKED)
    assert judge.end_read(KEY, least, values(1), "here") is None
    assert judge.end_read(KEY, judge.acked(KEY), values(1), "here") is Finding.STALE


def test_a_refused_write_promises_nothing():
    """Its number is used up, and the key may be written again."""
    judge = judge_with(Outcome.REFUSED)
    assert judge.acked(KEY) == 0
    assert judge.end_read(KEY, 0, [], "here") is None
    assert judge.may_write(KEY)
    assert judge.begin_write(KEY) == 2


def test_after_an_unknown_outcome_a_key_is_written_no_more():
    """The lost write may come late, and supersede a later one with full right."""
    judge = judge_with(Outcome.ACKED, Outcome.UNKNOWN)
    assert not judge.may_write(KEY)
    assert judge.aside == 1
    judge = judge_with(Outcome.ACKED)
    judge.begin_write(KEY)
    judge.set_aside(KEY)  # the first try
    judge.end_write(KEY, Outcome.ACKED)  # the second
    assert (judge.acked(KEY), judge.may_write(KEY)) == (2, False)


def test_a_key_has_one_writer():
    """A second one is a bug of the load."""
    judge = Judge(10)
    judge.begin_write(KEY)
    assert not judge.may_write(KEY)
    with pytest.raises(AssertionError, match="two writers"):
        judge.begin_write(KEY)


@pytest.mark.parametrize("value", [b"", b"x", b"7", b"7:", b"7:1", b"7:x:", b"8:1:xx", b"07:1:", b":1:", b"7:-1:"])
def test_values_that_nobody_wrote(value):
    """Each row is no value of this key."""
    assert sequence_of(KEY, value) == -1


def test_values_are_as_long_as_wanted():
    """Whatever the numbers in them."""
    for number in (1, 10**6):
        value = value_of(123_456, number, bytes(32))
        assert (len(value), sequence_of(123_456, value)) == (32, number)


def test_only_the_first_examples_are_kept():
    """All are counted."""
    judge = judge_with(Outcome.ACKED)
    for _ in range(2 * EXAMPLES_MAX):
        judge.end_read(KEY, 1, [], "here")
    assert judge.findings == {Finding.NOT_FOUND: 2 * EXAMPLES_MAX}
    assert len(judge.examples) == EXAMPLES_MAX
    assert judge.examples[0] == "false not-found: key 7, found nothing, acknowledged was 1; here"


def test_a_store_that_forgets_is_found_out_and_an_honest_one_is_not():
    """A dictionary is written and read at random; one of the two forgets or goes back now and then."""
    for honest in (True, False):
        dice, judge, store = random.Random(1), Judge(20), {}
        for _ in range(2000):
            key = dice.randrange(20)
            if dice.random() < 0.5:
                old, number = store.get(key), judge.begin_write(key)
                store[key] = value_of(key, number, b"")
                judge.end_write(key, Outcome.ACKED)
                if not honest and dice.random() < 0.02:
                    store[key] = old
            found = store.get(key)
            judge.end_read(key, judge.acked(key), [] if found is None else [found], "here")
        assert bool(judge.findings) is not honest
