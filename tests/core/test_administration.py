"""Administration: what operators stage, look at, commit and abandon, at any member (section 4.8.1)."""

from __future__ import annotations

import pytest
from tests.core.moving import KEYS, check_copies, filled, settle
from tests.core.wire import Wire

from cartwheel.core.errors import Code
from cartwheel.core.membership import administration
from cartwheel.core.messages import Administered, ClientAbandon, ClientCommit, ClientJoin, Failure, Stored


@pytest.fixture
def wire() -> Wire:
    return filled("abcd", KEYS[:20])


def test_a_change_is_staged_at_one_member_and_committed_at_another(wire):
    """Nothing moves before; all know what is staged, in words and in what order."""
    told = wire.stage("a", "leave", "d")
    assert isinstance(told, Administered)
    assert told.text == "staged: d leaves"
    assert wire.stage("b", "reweigh", "c", weight=2.0).text == "staged: c has weight 2"
    assert {node.plan().digest for node in wire.nodes.values()} == {wire.nodes["a"].plan().digest}
    plan = wire.nodes["c"].plan()
    assert plan.changes == ["d leaves", "c has weight 2"]
    assert plan.plan.moves > 0
    assert "d" in wire.nodes["a"].local.ring.members
    committed = wire.commit("c")
    assert committed.text == "committed: d leaves; c has weight 2"
    assert committed.changes[0] == told.changes[0]
    for node in wire.nodes.values():
        assert "d" not in node.local.ring.members
        assert node.local.ring.members["c"].weight == 2.0
        assert node.plan().changes == []


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"kind": "explode"}, "there is no change 'explode'"),
        ({"kind": "leave", "node": "x"}, "'x' is no member; members are a, b, c, d"),
        ({"kind": "reweigh", "node": "x", "weight": 2.0}, "'x' is no member"),
        ({"kind": "reweigh", "node": "a", "weight": 0.0}, "a weight must be"),
        ({"kind": "remove", "node": "x"}, "'x' is no member, and never was"),
        ({"kind": "bucket", "node": "a"}, "a change of the kind 'bucket' is not staged by hand"),
        ({"kind": "commit"}, "a change of the kind 'commit' is not staged by hand"),
        ({"kind": "replace", "node": "a", "other": "e"}, "'e' has not asked to join"),
        ({"kind": "leave", "node": "b"}, "that is staged already: b leaves"),
    ],
)
def test_what_makes_no_sense_is_not_staged(wire, change, text):
    """Each row: the operator is told why, and the list stays as it was."""
    wire.stage("a", "leave", "b")
    before = wire.staged("a")
    failure = wire.stage("a", **change)
    assert isinstance(failure, Failure)
    assert (failure.code, failure.unknown) == (Code.INVALID, False)
    assert failure.text.startswith(text)
    assert wire.staged("a") == before


def test_a_stranger_and_a_leaver_stage_and_commit_nothing(wire):
    """They are sent to a member."""
    wire.add("e")
    assert wire.stage("e", "leave", "a").text == "e is no member of the cluster: ask one that is"
    wire.change("a", "leave", "d")
    wire.stage("a", "reweigh", "b", weight=2.0)
    assert wire.stage("d", "leave", "a").text == "d is no member of the cluster: ask one that is"
    assert wire.commit("d").text == "d is no member of the cluster: ask one that is"


def test_only_the_plan_that_was_looked_at_is_committed(wire):
    """Somebody else may have staged more meanwhile."""
    wire.stage("a", "leave", "d")
    seen = wire.nodes["a"].plan().digest
    wire.stage("b", "reweigh", "c", weight=2.0)
    failure = wire.ask("a", ClientCommit(0, seen))
    assert failure.text.startswith("the plan has changed")
    assert isinstance(wire.ask("a", ClientCommit(0, wire.nodes["b"].plan().digest)), Administered)


def test_a_ring_that_nobody_should_have_is_not_committed(wire):
    """Fewer nodes than n are left: also by force."""
    for node in "ab":
        wire.stage("c", "leave", node)
    for force in (False, True):
        assert wire.commit("c", force=force).text == "refused: only 2 nodes would be left for n=3"
    assert "a" in wire.nodes["c"].local.ring.members


def test_members_that_do_not_answer_are_not_passed_over_unasked(wire):
    """They would go on by the old ring: with force, they hear of the change when they are back."""
    wire.crash("d")
    wire.stage("a", "reweigh", "b", weight=2.0)
    assert wire.nodes["a"].plan().silent == ["d"]
    assert any(text.startswith("d does not answer") for text in wire.nodes["a"].plan().warnings)
    assert wire.commit("a").text.startswith("d does not answer: wait")
    assert isinstance(wire.commit("a", force=True), Administered)
    wire.restart("d")
    settle(wire)
    assert wire.nodes["d"].local.ring.members["b"].weight == 2.0
    check_copies(wire, KEYS[:20])


def test_who_is_removed_need_not_answer(wire):
    """It never will."""
    wire.crash("d")
    wire.change("a", "remove", "d")
    assert "d" not in wire.nodes["a"].local.ring.members
    assert wire.stage("a", "remove", "d").text == "'d' is removed already"


def test_what_is_abandoned_is_not_committed(wire):
    """The list is empty everywhere."""
    wire.stage("a", "leave", "d")
    assert wire.ask("b", ClientAbandon(0)).text == "abandoned: d leaves"
    assert wire.ask("b", ClientAbandon(0)).text == "nothing is staged"
    assert wire.commit("a").text == "nothing is staged"
    assert [wire.staged(name) for name in wire.nodes] == [()] * 4


def test_what_is_staged_is_told_once_it_is_durable(wire):
    """Neither to the operator nor to others before."""
    wire.held = {"a"}
    assert wire.stage("a", "leave", "d") is None
    assert not wire.staged("b")
    wire.release("a")
    assert isinstance(wire.replies[wire.client], Administered)
    assert wire.staged("b")


def test_a_relocation_moves_no_token(wire):
    """Only preference lists change."""
    owners = wire.nodes["a"].local.ring.owners
    wire.change("a", "relocate", "d", zone="z")
    member = wire.nodes["b"].local.ring.members["d"]
    assert (member.host, member.zone) == ("h", "z")
    assert wire.nodes["b"].local.ring.owners == owners
    settle(wire)
    check_copies(wire, KEYS[:20])


@pytest.mark.parametrize("dead", [False, True])
def test_a_replacement_says_whether_the_old_node_is_dead(wire, dead):
    """One that answers hands over what it has; for one that will never return the others make the copies."""
    wire.add("e")
    wire.wait_staged("e", at="a")
    if dead:
        wire.crash("d")
    wrong = wire.stage("a", "replace", "d", other="e", barred=not dead)
    assert wrong.text.startswith("'d' does not answer" if dead else "'d' answers")
    tokens = wire.nodes["a"].local.ring.owners.count("d")
    wire.change("a", "replace", "d", other="e", barred=dead)
    ring = wire.nodes["a"].local.ring
    assert (ring.owners.count("d"), ring.owners.count("e")) == (0, tokens)
    settle(wire)
    check_copies(wire, KEYS[:20])
    assert wire.stage("a", "remove", "d").text.startswith("'d' is removed already" if dead else "'d' is no member")


def test_a_cluster_of_one_may_join_another_while_it_is_empty():
    """It forgets its own history; with data of its own, or among others, it stays."""
    wire = filled("abc", KEYS[:20])
    assert wire.ask("a", ClientJoin(0)).text == "a is in a cluster with b, c: it can only leave that"
    alone = Wire(["x"])
    assert isinstance(alone.ask("x", ClientJoin(0)), Administered)
    assert not alone.nodes["x"].local.ring.members
    full = Wire(["x"])
    assert isinstance(full.put("x", b"k", b"v"), Stored)
    assert full.ask("x", ClientJoin(0)).text.startswith("x holds data of its own")


def test_what_would_be_staged_by_nobody_is_planned_all_the_same(wire):
    """An empty plan: the ring as it is."""
    plan = wire.nodes["a"].plan()
    assert (plan.changes, plan.plan.moves, plan.silent) == ([], 0, [])


def test_the_plan_warns_of_who_comes_or_goes_and_does_not_answer(wire):
    """Nothing is lost by it, but the hand-over waits for them; a removal waits for nobody."""
    wire.add("e")
    wire.wait_staged("e", at="a")
    wire.stage("a", "leave", "d")
    assert not any("does not answer" in text for text in wire.nodes["a"].plan().warnings)
    wire.crash("d")
    wire.crash("e")
    warnings = [text for text in wire.nodes["a"].plan().warnings if "does not answer" in text]
    assert warnings == [
        "d does not answer (connection lost): it leaves only when it is back and has handed over; if it never will, "
        "remove it instead",
        "e does not answer (connection lost): nothing moves to it until it does",
    ]
    wire.ask("a", ClientAbandon(0))
    wire.stage("a", "remove", "d")
    assert not any("does not answer" in text for text in wire.nodes["a"].plan().warnings)


def test_a_plan_is_made_once(wire, monkeypatch):
    """Whoever waits for a hand-over asks for it twice a second: it is made again only when it is another one."""
    made = []
    honest = administration.plan
    monkeypatch.setattr(administration, "plan", lambda *args, **fields: made.append(args) or honest(*args, **fields))
    wire.stage("a", "leave", "d")
    first = wire.nodes["a"].plan()
    assert wire.nodes["a"].plan() == first
    assert len(made) == 1
    wire.crash("c")
    assert wire.nodes["a"].plan().silent == ["c"], "what may change at any time is looked at each time"
    wire.stage("a", "reweigh", "b", weight=2.0)
    assert wire.nodes["a"].plan().digest != first.digest
    assert len(made) == 2
