"""What is drawn from a seed keeps the premises, and what cannot be done here is refused or left out."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys

import pytest

from cartwheel.chaos import nemesis, shim
from cartwheel.chaos.draw import draw, draw_cycles
from cartwheel.chaos.nemesis import MEMBERS, NETWORK, Nemesis, choose
from cartwheel.core.errors import ConfigError

NODES = ["n1", "n2", "n3", "n4", "n5"]
SEEDS = range(60)
STAYING = tuple(kind for kind in Nemesis if kind not in MEMBERS)
"""The kinds that leave the members as they are."""


def plans(seconds=300.0, kinds=STAYING):
    return [draw(seed, kinds, NODES, seconds) for seed in SEEDS]


def test_a_seed_is_a_plan():
    """The same twice, and another for another seed."""
    assert draw(7, list(Nemesis), NODES, 300.0) == draw(7, list(Nemesis), NODES, 300.0)
    assert len({repr(plan) for plan in plans()}) == len(SEEDS)


def test_only_one_node_ever_loses_its_disk():
    """Premise of P1; and it is not always the same one over the seeds."""
    victims = set()
    for plan in plans():
        wiped = {step.nodes for lane in plan for step in lane if step.kind is Nemesis.WIPE}
        assert len(wiped) == 1
        victims |= wiped
    assert len(victims) > 1


def test_all_kinds_are_drawn_and_each_lane_does_one_thing_at_a_time():
    """Every kind comes before any comes twice; processes in one lane, the network in another, nobody comes or goes."""
    for plan in plans(seconds=1200.0):
        assert not plan.pop()
        for lane, kinds in zip(plan, (set(STAYING) - set(NETWORK), set(NETWORK)), strict=True):
            assert {step.kind for step in lane[: len(kinds)]} == kinds
            assert {step.kind for step in lane} == kinds
            for before, after in itertools.pairwise(lane):
                assert before.at + before.for_s < after.at
            assert lane[0].at >= nemesis.CALM_S


def test_a_step_is_over_before_the_run_is():
    """Of what lasts as long as was drawn: the rest of the run shows how the cluster recovers."""
    for plan in plans(seconds=60.0, kinds=(Nemesis.PAUSE, *NETWORK)):
        for step in (step for lane in plan for step in lane):
            assert step.at + min(step.for_s, nemesis.LASTS_S[step.kind][0]) <= 60.0 + 4.0
            assert nemesis.LASTS_S[step.kind][0] <= step.for_s <= nemesis.LASTS_S[step.kind][1]


def test_the_shapes_of_partitions():
    """Each row of the table in the module's docstring, over all seeds."""
    for plan in plans():
        for step in plan[1]:
            links = set(step.links)
            assert links, step
            assert all(a != b for a, b in links)
            back = {(b, a) for a, b in links}
            assert (links == back) is (step.kind is not Nemesis.ONEWAY)
            if step.kind is Nemesis.ONEWAY:
                assert not links & back
            touched = {node: sum(1 for a, b in links | back if a == node) for node in NODES}
            if step.kind is Nemesis.ISOLATE:
                assert sorted(touched.values()) == [1, 1, 1, 1, 4]
            if step.kind is Nemesis.BRIDGE:
                assert 0 in touched.values()
            elif step.kind is not Nemesis.ISOLATE:
                assert 0 not in touched.values()


def test_cycles_are_kills_in_a_row():
    """As many as asked, over all nodes."""
    [lane] = draw_cycles(1, 200, NODES)
    assert len(lane) == 200
    assert {step.kind for step in lane} == {Nemesis.KILL}
    assert {step.nodes[0] for step in lane} == set(NODES)


def test_names():
    """One by one, or as a group; each counts once."""
    assert choose(["kill", "partition", "split"]) == ([Nemesis.KILL, *NETWORK], [])
    assert choose(["none"]) == ([], [])
    assert choose(["membership"]) == (list(MEMBERS), [])
    with pytest.raises(ConfigError, match="no nemesis 'hurricane'; known are kill"):
        choose(["hurricane"])


def test_a_short_run_leaves_the_members_alone():
    """Unless that is asked for."""
    kinds, notes = choose(["all"], 20.0)
    assert not set(kinds) & set(MEMBERS)
    assert notes[-1].startswith("without changes of the members")
    assert choose(["all", "join"], 20.0)[0][-1] is Nemesis.JOIN


def test_what_this_machine_cannot_do(monkeypatch):
    """Refused where it was named, left out with a note where it was among all."""
    monkeypatch.setattr(shim, "compiler", lambda: None)
    with pytest.raises(ConfigError, match=r"nemesis eio: .*C compiler"):
        choose(["eio"])
    kinds, notes = choose(["all"])
    assert set(MEMBERS) < set(kinds)
    assert Nemesis.EIO not in kinds
    assert any(note.startswith("without eio") for note in notes)
    monkeypatch.setattr(nemesis, "knows_quota", lambda: False)
    with pytest.raises(ConfigError, match=r"nemesis fill: .*quota"):
        choose(["fill"])


@pytest.mark.skipif(shim.unavailable() is not None, reason=str(shim.unavailable()))
def test_syncs_fail_while_the_trigger_is_there(tmp_path):
    """fsync and fdatasync answer EIO, and nothing else does; without the file they work."""
    library = shim.build(tmp_path)
    trigger = tmp_path / "trigger"
    program = (
        "import os, sys\n"
        "with open(sys.argv[1], 'wb') as file:\n"
        "    file.write(b'x'); file.flush()\n"
        "    for sync in (os.fsync, os.fdatasync):\n"
        "        try: sync(file.fileno()); print('ok')\n"
        "        except OSError as error: print(error.errno)\n"
    )
    environment = os.environ | {"LD_PRELOAD": str(library), shim.VARIABLE: str(trigger)}

    def run():
        command = [sys.executable, "-c", program, str(tmp_path / "file")]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True, timeout=60)
        return done.stdout.split()

    assert run() == ["ok", "ok"]
    trigger.touch()
    assert run() == ["5", "5"]
    trigger.unlink()
    assert run() == ["ok", "ok"]


def test_without_a_compiler_there_is_no_shim(monkeypatch, tmp_path):
    """One sentence that says why."""
    monkeypatch.setattr(shim, "compiler", lambda: None)
    with pytest.raises(shim.NoShim, match="C compiler"):
        shim.build(tmp_path)
