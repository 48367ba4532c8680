"""Whole runs: they repeat exactly, healthy ones keep every promise, and every planted bug is caught."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace

import pytest
from click.testing import CliRunner
from tests.sim.regressions import REGRESSIONS

from cartwheel.sim import faults
from cartwheel.sim.__main__ import main
from cartwheel.sim.bugs import BUGS
from cartwheel.sim.faults import Fault, Kind
from cartwheel.sim.run import Options, hunt, run, run_seed, run_seeds, shrink

CAUGHT_AT = {
    "ack-before-durable": 0,
    "acks-counted-twice": 1,
    "answer-before-r": 0,
    "blind-beside": 0,
    "bytes-not-canonical": 0,
    "clean-mark-stays": 11,
    "clock-does-not-follow": 2,
    "context-ignored": 0,
    "counter-restarts": 5,
    "expired-is-shown": 0,
    "failed-means-rejected": 1,
    "forward-without-id": 1,
    "late-answer-matches": 13,
    "gets-share-too-long": 0,
    "memory-outlives-record": 4,
    "merge-drops-sibling": 0,
    "refusal-relayed": 7,
    "repair-undoes-delete": 7,
    "reply-before-w": 0,
    "request-id-ignored": 0,
    "retry-from-memory": 1,
    "server-clock": 0,
    "staged-is-shown": 28,
    "stamp-without-read": 10,
}
"""Bug -> the first seed that catches it, so that the test need not search. When the drawing of plans or the core changes, it
searches on (``SEARCH`` seeds from here, then from 0); ``python -m cartwheel.sim --bugs --seconds 30`` prints new ones."""
SEARCH = 150


def trace_hash(seed: int, hash_seed: str) -> str:
    """The trace hash of a run in a process of its own."""
    command = [sys.executable, "-m", "cartwheel.sim", "--seed", str(seed), "--seconds", "15", "--json"]
    environment = {**os.environ, "PYTHONHASHSEED": hash_seed}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=True)
    found = json.loads(done.stdout)["trace_hash"]
    assert isinstance(found, str)
    return found


@pytest.mark.parametrize("seed", [15, 18])
def test_a_seed_is_one_run(seed):
    """The same seed gives the same trace in two processes with different hash seeds, and in this one; another seed does not."""
    here = run_seed(seed, Options(15.0)).trace_hash
    assert trace_hash(seed, "1") == trace_hash(seed, "2") == here
    assert run_seed(seed + 1, Options(15.0)).trace_hash != here


def test_healthy_runs_keep_every_promise():
    """Twenty seeds of all kinds without a violation, in which much went wrong and much went through."""
    reports = list(run_seeds(range(20), Options(40.0)))
    assert {r.seed: [str(v) for v in r.violations] for r in reports if r.violations} == {}
    marks, outcomes = (
        sum((getattr(r, name) for r in reports), type(reports[0].marks)()) for name in ("marks", "outcomes")
    )
    for mark in (
        *(
            "crash.kill",
            "crash.power",
            "crash.stop",
            "fault.cut",
            "fault.pause",
            "net.lost",
            "net.repeated",
            "net.peer_down",
        ),
        *("client.retried", "client.sent_again", "siblings", "core.puts_forwarded", "core.puts_repeated"),
        *("core.read_repairs_received", "mints"),
    ):
        assert marks[mark] > 0, mark
    assert outcomes["put ok"] + outcomes["delete ok"] > 3 * (outcomes["put unknown"] + outcomes["put rejected"])


@pytest.mark.parametrize("profile", list(faults.PROFILES))
def test_each_kind_of_run_is_healthy(profile):
    """Two seeds of each profile."""
    for report in run_seeds(range(100, 102), Options(30.0, profile=profile)):
        assert [str(v) for v in report.violations] == []


@pytest.mark.parametrize("name", sorted(BUGS))
def test_a_planted_bug_is_caught(name):
    """By a checker that should see it, within a bounded number of seeds."""
    first = CAUGHT_AT.get(name, 0)
    options = Options(30.0)
    report = hunt(name, range(first, first + SEARCH), options) or hunt(name, range(first), options)
    assert report is not None, "not caught"
    assert report.violations[0].rule in BUGS[name].rules, str(report.violations[0])
    assert BUGS[name].story.strip()


def test_planting_is_undone():
    """After a run with a bug, the core is what it was."""
    before = run_seed(3, Options(10.0)).trace_hash
    for name in BUGS:
        run_seed(3, Options(3.0, bug=name))
    assert run_seed(3, Options(10.0)).trace_hash == before


@pytest.mark.parametrize("regression", REGRESSIONS, ids=lambda r: r.bug)
def test_old_bugs_stay_away(regression):
    """A seed that once failed passes now, and fails with its bug put back."""
    plan = Options(regression.seconds, bug=regression.bug).draw(regression.seed)
    assert [str(v) for v in run(plan).violations] == []
    assert run(plan, bug=regression.bug).violations


def test_a_failing_plan_is_shortened():
    """Faults that do not matter are taken out: the rule stays broken with the one that does."""
    plan = Options(20.0, bug="clean-mark-stays").draw(22)
    noise = tuple(Fault(3.0 + i, Kind.PAUSE, (plan.nodes[0],), for_s=0.05) for i in range(4))
    plan = replace(plan, profile="power", faults=(*plan.faults, *noise))
    report = run(plan, bug="reply-before-w")
    assert report.violations
    assert shrink(plan, bug="reply-before-w").faults == ()


def test_the_command_line_replays_reports_and_hunts():
    """A batch exits 0; a planted bug makes it exit 1 with the command that repeats it, and that command shows the story."""
    runner = CliRunner()
    batch = runner.invoke(main, ["--seeds", "2", "--start", "1", "--seconds", "5"])
    assert batch.exit_code == 0, batch.output
    assert "no violation" in batch.output
    broken = runner.invoke(main, ["--seeds", "2", "--start", "0", "--seconds", "5", "--bug", "reply-before-w"])
    assert broken.exit_code == 1
    assert "again: python -m cartwheel.sim --seed 0 --seconds 5 --bug reply-before-w" in broken.output
    again = runner.invoke(main, ["--seed", "0", "--seconds", "5", "--bug", "reply-before-w", "--trace"])
    assert again.exit_code == 1
    for part in ("seed 0: ", "trace hash", "C9 at", "the story of"):
        assert part in again.output
    as_json = runner.invoke(main, ["--seed", "0", "--seconds", "5", "--bug", "reply-before-w", "--json"])
    assert json.loads(as_json.output)["violations"][0]["rule"] == "C9"
