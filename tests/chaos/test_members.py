"""Nodes come and go under load: what is planned keeps the premises, what administrators do is done once, and a real run."""

from __future__ import annotations

import asyncio
import functools
import json
import subprocess
import sys
from types import SimpleNamespace

import pytest
from tests.cli.harness import environment

from cartwheel.chaos.draw import LEAST, MOST, NEW_MAX, draw, names_of
from cartwheel.chaos.history import Away, Trouble
from cartwheel.chaos.members import Members, is_done
from cartwheel.chaos.nemesis import MEMBERS, NETWORK, Act, ActKind, Nemesis
from cartwheel.chaos.processes import Processes
from cartwheel.chaos.report import report_on
from cartwheel.chaos.run import HISTORY_FILE

FOUNDERS = ("n1", "n2", "n3", "n4", "n5")
SEEDS = range(60)
DEADLINE_S = 200.0
"""The run itself takes some 20 s; each part of settling may take 120 s before that counts as a violation."""


# --- the plan ---


@functools.cache
def plans(seconds=600.0, kinds=tuple(Nemesis), founders=FOUNDERS):
    return [draw(seed, kinds, founders, seconds) for seed in SEEDS]


def acts_of(plan):
    return [act for step in plan[2] for act in step.acts]


def test_all_kinds_are_drawn():
    """Over a long run each of them, in every plan."""
    for plan in plans():
        assert {step.kind for step in plan[2]} == set(MEMBERS)
        assert not {step.kind for lane in plan[:2] for step in lane} & set(MEMBERS)


@pytest.mark.parametrize("founders", [FOUNDERS[:3], FOUNDERS, tuple(f"n{i}" for i in range(1, 9))], ids=len)
def test_the_cluster_keeps_its_size(founders):
    """Whatever is drawn, and if each act is done before the next: enough nodes for N=3 while one is away, and no crowd."""
    least, most = min(LEAST, len(founders)), max(MOST, len(founders) + 1)
    for plan in plans(founders=founders):
        there = set(founders)
        for act in acts_of(plan):
            match act.kind:
                case ActKind.JOIN:
                    assert act.node not in there
                    there.add(act.node)
                case ActKind.LEAVE:
                    there.remove(act.node)
                case ActKind.REPLACE:
                    there.remove(act.other)
                    there.add(act.node)
                case ActKind.WEIGHT:
                    assert act.node in there or any(other.node == act.node for other in acts_of(plan))
            assert least <= len(there) <= most
        assert len(names_of(plan, founders)) <= len(founders) + NEW_MAX


def test_only_the_victim_loses_its_disk():
    """Premise of P1: it is wiped or replaced; whoever replaces it is the victim from then on; and it does not leave."""
    for plan in plans():
        replaced = [act for act in acts_of(plan) if act.kind is ActKind.REPLACE]
        line = [replaced[0].other] + [act.node for act in replaced]
        assert [act.other for act in replaced] == line[:-1]
        assert {step.nodes[0] for step in plan[0] if step.kind is Nemesis.WIPE} <= set(line)
        assert not {act.node for act in acts_of(plan) if act.kind is ActKind.LEAVE} & set(line)


def test_only_who_was_removed_for_ever_returns():
    """And it has been, by then or in the step itself; nobody joins under its name again."""
    for plan in plans():
        removed = set()
        for step in plan[2]:
            removed |= {act.other for act in step.acts if act.kind is ActKind.REPLACE}
            assert not {act.node for act in step.acts} & removed
            if step.kind is Nemesis.RETURN:
                assert set(step.nodes) <= removed


def test_who_has_left_may_join_again():
    """Under its old name; in some plans."""
    again = 0
    for plan in plans():
        left = set()
        for act in acts_of(plan):
            again += act.kind is ActKind.JOIN and act.node in left
            left |= {act.node} if act.kind is ActKind.LEAVE else set()
    assert again


def test_two_administrators_ask_two_nodes():
    """Who do not know of one another."""
    for plan in plans():
        for step in plan[2]:
            if step.kind is Nemesis.ADMINISTRATORS:
                first, second = step.acts
                assert first.at != second.at or second.kind is ActKind.LEAVE


def test_a_cut_takes_in_those_who_come_later():
    """Everybody who will ever be there stands on some side of each cut, or between them; of an isolated node on the other one."""
    for plan in plans():
        everyone = set(names_of(plan, FOUNDERS))
        for step in plan[1]:
            touched = {node for link in step.links for node in link}
            assert len(everyone - touched) <= (step.kind is Nemesis.BRIDGE)
            if step.kind is Nemesis.ISOLATE:
                alone = step.label.partition(" ")[0]
                assert all(alone in link for link in step.links)


def test_other_faults_strike_those_who_are_there():
    """In the eyes of the plan: nobody before it was started, nobody after it was replaced."""
    for plan in plans():
        came: dict[str, float] = dict.fromkeys(FOUNDERS, 0.0)
        for step in plan[2]:
            for act in step.acts:
                came.setdefault(act.node, step.at)
        gone = {act.other: step.at for step in plan[2] for act in step.acts if act.other}
        for step in plan[0]:
            for node in step.nodes:
                assert came[node] <= step.at <= gone.get(node, step.at)


def test_without_changes_of_members_the_plan_has_no_other_names():
    """And the cuts none but the founders'."""
    for plan in plans(kinds=(Nemesis.KILL, *NETWORK)):
        assert names_of(plan, FOUNDERS) == list(FOUNDERS)
        assert {node for step in plan[1] for link in step.links for node in link} == set(FOUNDERS)


# --- administrators ---


def view(**weights):
    return [{"node": node, "weight": weight} for node, weight in weights.items()]


@pytest.mark.parametrize(
    ("act", "members", "expected"),
    [
        (Act(ActKind.JOIN, "n4", "n1"), view(n1=1, n2=1), False),
        (Act(ActKind.JOIN, "n4", "n1"), view(n1=1, n4=1), True),
        (Act(ActKind.LEAVE, "n2", "n1"), view(n1=1, n2=1), False),
        (Act(ActKind.LEAVE, "n2", "n1"), view(n1=1), True),
        (Act(ActKind.REPLACE, "n4", "n1", other="n2"), view(n1=1, n2=1), False),
        (Act(ActKind.REPLACE, "n4", "n1", other="n2"), view(n1=1, n2=1, n4=1), False),
        (Act(ActKind.REPLACE, "n4", "n1", other="n2"), view(n1=1, n4=1), True),
        (Act(ActKind.WEIGHT, "n2", "n1", weight=2.0), view(n1=1, n2=1), False),
        (Act(ActKind.WEIGHT, "n2", "n1", weight=2.0), view(n1=1, n2=2), True),
        (Act(ActKind.WEIGHT, "n2", "n1", weight=2.0), view(n1=1), True),  # it has left: it makes no difference any more
    ],
)
def test_whether_an_act_is_done(act, members, expected):
    """Each row: as a member tells who is in the ring."""
    assert is_done(act, members) is expected


class Desk:
    """Stands for the nodes: an administrator's commands, and what they answer."""

    def __init__(self, *answers):
        self.answers = list(answers)
        self.asked = []
        self.nodes = list(FOUNDERS)

    def ask(self, node, *words, timeout_s=0.0):
        del timeout_s
        self.asked.append((node, " ".join(words)))
        return self.answers.pop(0)


def status(**weights):
    return json.dumps({"members": view(**weights)})


def plan(*changes, silent=()):
    return json.dumps({"changes": changes, "silent": silent, "digest": "d1"})


WEIGHT = Act(ActKind.WEIGHT, "n2", "n1", weight=2.0)


@pytest.mark.parametrize(
    ("act", "alone", "answers", "asked", "done"),
    [
        (WEIGHT, True, [status(n1=1, n2=2)], ["CW.STATUS JSON"], True),
        (
            WEIGHT, True,
            [status(n1=1, n2=1), plan(), "staged", plan("n2 has weight 2"), "committed: n2 has weight 2"],
            ["CW.STATUS JSON", "CW.CLUSTER PLAN JSON", "CW.CLUSTER WEIGHT n2 2", "CW.CLUSTER PLAN JSON",
             "CW.CLUSTER COMMIT DIGEST d1"],
            True,
        ),
        (
            WEIGHT, False,  # it was staged by a try whose answer was lost; and somebody does not answer
            [status(n1=1, n2=1), plan("n2 has weight 2", silent=["n3"]), "committed: n4 leaves; n2 has weight 2"],
            ["CW.STATUS JSON", "CW.CLUSTER PLAN JSON", "CW.CLUSTER COMMIT FORCE"],
            True,
        ),
        (Act(ActKind.JOIN, "n6", "n1"), True, [status(n1=1), plan()], ["CW.STATUS JSON", "CW.CLUSTER PLAN JSON"], False),
        (
            Act(ActKind.JOIN, "n6", "n1"), True,
            [status(n1=1), plan("n6 joins (127.0.0.1:1, weight 1)"), "committed: n6 joins (127.0.0.1:1, weight 1)"],
            ["CW.STATUS JSON", "CW.CLUSTER PLAN JSON", "CW.CLUSTER COMMIT DIGEST d1"],
            True,
        ),
        (
            Act(ActKind.REPLACE, "n6", "n1", other="n2"), True,
            [status(n1=1, n2=1), plan("n6 joins (127.0.0.1:1, weight 1)"), "staged",
             plan("n6 replaces n2, which is removed for ever"), "committed: n6 replaces n2, which is removed for ever"],
            ["CW.STATUS JSON", "CW.CLUSTER PLAN JSON", "CW.CLUSTER REPLACE n2 n6 DEAD", "CW.CLUSTER PLAN JSON",
             "CW.CLUSTER COMMIT DIGEST d1"],
            True,
        ),
    ],
)  # fmt: skip
def test_an_administrator_looks_before_he_acts(act, alone, answers, asked, done):
    """Each row: what nodes answer, what he asks for it, and whether he is content."""
    desk = Desk(*answers)
    members = Members(SimpleNamespace(cluster=desk), None, None, "n5")
    assert members._try("n1", act, alone) is done
    assert desk.asked == [("n1", words) for words in asked]
    assert not desk.answers


def test_who_is_asked():
    """The one that was drawn, twice, then the others in turn; never the new node itself, nor one that is not there."""
    desk = Desk()
    members = Members(SimpleNamespace(cluster=desk), None, None, "n5")
    assert [members._asked(WEIGHT, tries) for tries in range(12)] == [n for n in [*FOUNDERS, "n1"] for _ in (1, 2)]
    desk.nodes += ["n6"]
    desk.nodes.remove("n1")
    turn = {members._asked(Act(ActKind.JOIN, "n6", "n1"), tries) for tries in range(20)}
    assert turn == {"n2", "n3", "n4", "n5"}


def test_two_administrators_stand_on_both_sides_of_a_cut():
    """If there is one, and it parts two nodes that are there."""
    acts = (Act(ActKind.WEIGHT, "n2", "n1", weight=2.0), Act(ActKind.LEAVE, "n4", "n2"))
    proxy = SimpleNamespace(cuts=frozenset())
    members = Members(SimpleNamespace(cluster=Desk()), proxy, None, "n5")
    assert members._on_both_sides(acts) == acts
    proxy.cuts = frozenset({("n9", "n1"), ("n1", "n9")})
    assert members._on_both_sides(acts) == acts
    proxy.cuts = frozenset({("n3", "n5"), ("n5", "n3")})
    first, second = members._on_both_sides(acts)
    assert {first.at, second.at} == {"n3", "n5"}
    assert (first.node, second.node) == ("n2", "n4")


# --- processes ---


def test_a_node_is_in_one_hand_at_a_time():
    """Who wants it waits; who wants any takes the next one by name; if it is not there, too."""

    async def story():
        processes = Processes(SimpleNamespace(nodes=["n1", "n2", "n3"]), lambda: 0.0, lambda line: None)
        order = []

        async def second():
            async with processes.hold("n2"):
                order.append("second")

        async with processes.hold("n2"):
            waiting = asyncio.create_task(second())
            assert processes.free() == ["n1", "n3"]
            assert [processes.other_than(node) for node in ("n1", "n2", "n7")] == ["n1", "n3", "n1"]
            order.append("first")
        await waiting
        assert order == ["first", "second"]
        assert processes.free() == ["n1", "n2", "n3"]

    asyncio.run(story())


def test_who_is_not_there_is_written_down():
    """From when to when a node is not counted on: before it came, after it left, and at the end."""
    clock, lines = [0.0], []
    processes = Processes(SimpleNamespace(nodes=[]), lambda: clock[0], lines.append, absent=["n6", "n7"])
    clock[0] = 4.0
    processes.came("n6")
    processes.came("n6")
    clock[0] = 9.0
    processes.gone("n2")
    clock[0] = 10.0
    processes.gone("n2")
    processes.trouble("ACT", "n2 does not leave")
    processes.close()
    assert lines == [
        Away("n6", 0.0, 4.0), Trouble("ACT", "n2 does not leave", 10.0), Away("n7", 0.0, 10.0), Away("n2", 9.0, 10.0),
    ]  # fmt: skip


# --- a real run ---

KINDS, SECONDS, RATE = (Nemesis.JOIN, Nemesis.LEAVE, Nemesis.KILL), 9.0, 350


def a_seed():
    """One in whose plan a node joins and one leaves, soon, and somebody is killed meanwhile."""
    for seed in range(5000):
        killed, _, members = draw(seed, KINDS, FOUNDERS, SECONDS)
        if (
            [step.kind for step in members if step.at < SECONDS - 3.5]
            == [step.kind for step in members]
            == ["join", "leave"]
        ):
            if killed[0].at > members[0].at:
                return seed
    raise AssertionError("no such seed")


RUN = f"""
import sys
from pathlib import Path
from cartwheel.chaos.nemesis import Nemesis
from cartwheel.chaos.run import Options, carry_out
kinds = tuple(map(Nemesis, sys.argv[3].split(",")))
options = Options(seconds={SECONDS}, kinds=kinds, seed=int(sys.argv[2]), rate_per_s={RATE}, clients=8, to_the_end=True)
carry_out(options, Path(sys.argv[1]), print, lambda progress: None)
"""


@pytest.mark.timeout(DEADLINE_S + 20)
def test_nodes_join_leave_and_are_killed_under_load(tmp_path):
    """Nothing is lost, nothing comes back; in the end all tell the same ring and history, and hold the same. (That the machine
    which runs the tests is fast enough for a valid run is not asked.)"""
    done = subprocess.run(
        [sys.executable, "-c", RUN, str(tmp_path), str(a_seed()), ",".join(KINDS)],
        capture_output=True, text=True, env=environment(tmp_path), timeout=DEADLINE_S, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done
    report, _ = report_on(tmp_path / HISTORY_FILE)
    assert report.violations == [], done.stdout
    assert (report.lost, report.phantom, report.resurrected) == (0, 0, 0)
    assert report.acknowledged > 100
    assert {fault.kind for fault in report.faults} == {"kill", "join", "leave"}
    [left] = [fault.nodes[0] for fault in report.faults if fault.kind == "leave"]
    assert set(report.members) == {*FOUNDERS, "n6"} - {left}
    assert report.changes >= len(FOUNDERS) + 4, "a join and a leave, each staged and committed"
