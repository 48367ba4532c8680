"""Requests under way and their deadlines, against a plain list of deadlines."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cartwheel.core.coordinator.requests import Requests
from cartwheel.core.messages import TICK_S


class Waiting:
    """A request that waits for some nodes, and notes who failed it, when and why."""

    def __init__(self, requests: Requests, request_id: int, nodes: str) -> None:
        self.requests, self.id = requests, request_id
        self.nodes = list(nodes)
        self.failed: list[tuple[str, str]] = []
        self.times_late = 0

    def waiting(self) -> list[str]:
        return list(self.nodes)

    def fail(self, node: str, reason: str) -> None:
        self.nodes.remove(node)
        self.failed.append((node, reason))
        if not self.nodes:
            self.requests.end(self.id)

    def expire(self) -> None:
        for node in self.waiting():
            self.fail(node, "no answer in time")

    def late(self) -> None:
        self.times_late += 1


steps = st.lists(
    st.one_of(
        st.tuples(st.just("add"), st.floats(1e-9, 3)),
        st.tuples(st.just("end"), st.integers(0, 20)),
        st.tuples(st.just("pass"), st.sampled_from([0.0, 0.01, TICK_S, TICK_S, 0.12, 1.0, 500.0])),
    ),
    max_size=40,
)


@given(st.sampled_from([0.0, 0.05, 12345.678, 1e7]), steps)
def test_each_request_is_given_up_once_at_its_deadline(start_s, steps):
    """Never before its deadline; at the first tick that comes a tick after it, at the latest; and never if it ended."""
    requests, now_s = Requests(-1), start_s
    open_requests: dict[int, float] = {}
    everything: dict[int, Waiting] = {}
    for i, (kind, amount) in enumerate(steps):
        if kind == "add":
            everything[i] = Waiting(requests, i, "ab")
            open_requests[i] = now_s + amount
            requests.add(i, everything[i], now_s + amount)
        elif kind == "end":
            requests.end(amount)
            open_requests.pop(amount, None)
        else:
            now_s += amount
            requests.tick(now_s)
            for request_id, deadline_s in list(open_requests.items()):
                given_up = not everything[request_id].nodes
                assert given_up or now_s < deadline_s + TICK_S + 1e-6
                assert not given_up or now_s >= deadline_s - 1e-6
                if given_up:
                    assert everything[request_id].failed == [("a", "no answer in time"), ("b", "no answer in time")]
                    del open_requests[request_id]
        assert requests.by_id.keys() == open_requests.keys()
        assert requests.under_way == len(open_requests)
        requests.check()
    assert sum(len(ids) for ids in requests._due.values()) <= len(everything)
    requests.tick(now_s + 10)
    assert not requests.by_id
    assert not requests._due


def test_a_deadline_in_the_past_is_noticed_at_the_next_tick():
    """Even where its bucket was opened already."""
    requests = Requests(-1)
    requests.tick(100.0)
    late = Waiting(requests, 1, "a")
    requests.add(1, late, 50.0)
    requests.tick(100.0 + 2 * TICK_S)
    assert late.failed == [("a", "no answer in time")]


def test_time_that_goes_back_opens_nothing_twice():
    """The driver's clock does not, and if it did no deadline would be lost."""
    requests = Requests(-1)
    requests.tick(100.0)
    requests.tick(50.0)
    late = Waiting(requests, 1, "a")
    requests.add(1, late, 60.0)
    requests.tick(60.0)
    assert not late.failed
    requests.tick(100.0 + 2 * TICK_S)
    assert late.failed


def test_a_lost_peer_fails_those_who_wait_for_it():
    """With its reason, and only them."""
    requests = Requests(-1)
    both, other = Waiting(requests, 1, "ab"), Waiting(requests, 2, "b")
    requests.add(1, both, 1.0)
    requests.add(2, other, 1.0)
    requests.peer_down("a", "reset")
    assert (both.failed, other.failed) == ([("a", "reset")], [])
    requests.peer_down("b", "gone")
    assert (both.failed[1:], other.failed) == ([("b", "gone")], [("b", "gone")])
    assert not requests.by_id


def test_answered_requests_are_not_under_way():
    """They still have their deadline, and ending them leaves nothing behind."""
    requests = Requests(-1)
    for i in (1, 2):
        requests.add(i, Waiting(requests, i, "a"), 1.0)
    requests.answered(1)
    requests.answered(1)
    assert requests.under_way == 1
    requests.end(1)
    requests.end(1)
    assert requests.under_way == 1
    requests.tick(1.0 + TICK_S)
    assert requests.under_way == 0


def test_check_finds_a_request_without_a_deadline():
    """It would leak."""
    requests = Requests(-1)
    requests.by_id[7] = Waiting(requests, 7, "a")
    with pytest.raises(AssertionError, match="without a deadline"):
        requests.check()


def test_check_finds_an_ended_request_among_the_answered():
    """It would make room for one more than the limit."""
    requests = Requests(-1)
    requests.answered(7)
    with pytest.raises(AssertionError, match="counts as answered"):
        requests.check()


@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("add"), st.just(0.0)),
            st.tuples(st.just("end"), st.integers(0, 20)),
            st.tuples(st.just("answer"), st.integers(0, 20)),
            st.tuples(st.just("pass"), st.sampled_from([0.01, TICK_S, TICK_S, 0.12, 1.0])),
        ),
        max_size=60,
    )
)
def test_a_request_is_late_from_late_s_on(steps):
    """At the first tick from ``late_s`` on after the tick that followed its beginning, unless it ended or was answered; then
    again each ``late_s``."""
    late_s = 0.2
    requests, now_s, last_id = Requests(0), 0.0, 0
    noted_s: dict[int, float] = {}  # open ones, with the first tick after they began
    fresh: list[int] = []
    everything: dict[int, Waiting] = {}
    for kind, amount in steps:
        if kind == "add":
            last_id += 1
            everything[last_id] = Waiting(requests, last_id, "a")
            requests.add(last_id, everything[last_id], 1e9)
            fresh.append(last_id)
        elif kind == "pass":
            now_s += amount
            noted_s |= dict.fromkeys(fresh, now_s)
            fresh.clear()
            requests.mark_late(now_s, last_id, late_s)
            for request_id, since_s in noted_s.items():
                assert bool(everything[request_id].times_late) == (since_s <= now_s - late_s)
        elif amount in requests.by_id:
            if kind == "end":
                requests.end(amount)
            else:
                requests.answered(amount)
            if everything[amount].times_late == 0:
                noted_s.pop(amount, None)
                fresh[:] = [request_id for request_id in fresh if request_id != amount]
    assert all(waiting.times_late <= now_s / late_s for waiting in everything.values())
