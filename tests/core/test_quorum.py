"""Tallies: when the outcome of a get() or put() is known."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cartwheel.core.quorum import Outcome, Tally, effective

PENDING, MET, UNREACHABLE = Outcome.PENDING, Outcome.MET, Outcome.UNREACHABLE


def play(tally: Tally, answers: str) -> Tally:
    """``a+ b-``: a succeeded, then b failed."""
    for answer in answers.split():
        node, sign = answer[0], answer[1]
        result = tally.ack(node) if sign == "+" else tally.fail(node, "why")
        assert result is tally.outcome
    return tally


@pytest.mark.parametrize(
    ("needed", "answers", "expected"),
    [
        (1, "", PENDING),
        (1, "a+", MET),
        (1, "a- b- c-", UNREACHABLE),
        (1, "a- b-", PENDING),
        (2, "a+", PENDING),
        (2, "a+ b+", MET),
        (2, "a+ a+", PENDING),  # the network may deliver twice
        (2, "a- a+ b+", PENDING),  # a second answer may not overturn the first
        (2, "a+ a- b+", MET),
        (2, "a- b-", UNREACHABLE),
        (2, "a- a-", PENDING),
        (2, "a- b- c+", UNREACHABLE),  # known is known
        (2, "a+ b+ c-", MET),
        (3, "a-", UNREACHABLE),
        (3, "a+ b+ c+", MET),
    ],
)
def test_outcome_after_answers(needed, answers, expected):
    """Each row reads: of a, b, c asked, after these answers, the outcome is this."""
    assert play(Tally("abc", needed), answers).outcome is expected


@pytest.mark.parametrize(
    ("primaries", "answers", "expected"),
    [
        ("ab", "c+ d+", PENDING),  # enough, but none of them a primary
        ("ab", "c+ d+ a+", MET),
        ("ab", "a+ c+", MET),
        ("ab", "c+ d+ a- b-", UNREACHABLE),
        ("ab", "a- b-", UNREACHABLE),  # c and d would be two, but not primaries
        ("ab", "a- c- d-", UNREACHABLE),  # b alone is not enough
        ("ab", "a-", PENDING),
    ],
)
def test_outcome_with_primaries(primaries, answers, expected):
    """Each row reads: of a, b, c, d asked, two needed and one of them a primary, the outcome is this."""
    tally = Tally("abcd", 2, primaries=primaries, primaries_needed=1)
    assert play(tally, answers).outcome is expected


@pytest.mark.parametrize(
    ("answers", "waiting"), [("", "abc"), ("b+", "ac"), ("b+ b+", "ac"), ("b- a+", "c"), ("a+ b- c+ c-", "")]
)
def test_waiting(answers, waiting):
    """Each row: after these answers, these nodes have yet to answer, in the order asked."""
    tally = play(Tally("abc", 2), answers)
    assert tally.waiting() == list(waiting)
    assert tally.answered == (not waiting)


def test_reasons_are_kept():
    """The first reason of each node is told."""
    tally = Tally("abc", 2)
    tally.fail("a", "corrupt")
    tally.fail("a", "late")
    assert tally.failed == {"a": "corrupt"}


@pytest.mark.parametrize("answer", [lambda t: t.ack("x"), lambda t: t.fail("x", "")])
def test_an_answer_of_a_node_never_asked_is_our_bug(answer):
    """It stops us."""
    with pytest.raises(AssertionError, match="never asked"):
        answer(Tally("abc", 2))


def test_nothing_needed_is_our_bug():
    """A quorum has at least one node."""
    with pytest.raises(AssertionError):
        Tally("abc", 0)


@given(
    st.integers(1, 5),
    st.integers(1, 5),
    st.integers(0, 3),
    st.lists(st.tuples(st.sampled_from("abcde"), st.booleans())),
)
def test_against_counting(asked, needed, primaries_needed, answers):
    """After any answers the outcome is what counting each node's first answer gives, and once known it stays."""
    nodes, primaries = "abcde"[:asked], "abc"[:asked]
    tally = Tally(nodes, needed, primaries=primaries, primaries_needed=primaries_needed)
    first: dict[str, bool] = {}
    known = PENDING
    for node, ok in answers:
        if node not in nodes:
            continue
        if ok:
            tally.ack(node)
        else:
            tally.fail(node, "")
        first.setdefault(node, ok)
        acked = {n for n in first if first[n]}
        hopeful = {n for n in nodes if first.get(n, True)}
        if known is PENDING and len(acked) >= needed and len(acked & set(primaries)) >= primaries_needed:
            known = MET
        elif known is PENDING and not first[node]:
            if len(hopeful) < needed or len(hopeful & set(primaries)) < primaries_needed:
                known = UNREACHABLE
        assert tally.outcome is known
        assert (set(tally.acked), set(tally.failed)) == (acked, set(first) - acked)


@pytest.mark.parametrize(
    ("wanted", "n", "members", "expected"),
    [
        (2, 3, 3, 2),
        (3, 3, 5, 3),
        (3, 3, 3, 3),  # as many members as n: nothing is capped
        (2, 3, 1, 1),  # a lone node answers for itself
        (2, 3, 2, 2),
        (1, 3, 2, 1),  # capped, never raised
        (3, 3, 2, 2),
        (3, 5, 4, 3),
        (5, 5, 3, 2),
        (0, 3, 1, 0),  # no primaries wanted: none needed
    ],
)
def test_effective(wanted, n, members, expected):
    """Each row: with so many wanted of n, in a cluster of so many members, this many are needed."""
    assert effective(wanted, n, members) == expected
