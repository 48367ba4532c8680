"""``python -m cartwheel.bench.grow``: a small run with real nodes, and the judgement of what was measured."""

import json
import shutil

import msgspec
import pytest
from click.testing import CliRunner

from cartwheel.bench import grow, idle, nodes
from cartwheel.bench.growth import run_growth
from cartwheel.bench.growth_result import (
    P99_COUNT_MIN,
    GrowthOptions,
    GrowthResult,
    IdleResult,
    IdleRun,
    idle_run,
    judged,
    phases_of,
)
from cartwheel.bench.idle import run_idle
from cartwheel.bench.keyspace import ReadBack
from cartwheel.bench.nodes import Look
from cartwheel.bench.result import latency
from cartwheel.bench.run import BenchFailed
from cartwheel.bench.steady import PhaseReport
from cartwheel.core.errors import ConfigError

SETTINGS = {"q": "16", "give_grace_s": "0.3", "background_records_per_s_max": "10000"}
SMALL = GrowthOptions(
    keys=300,
    rate_per_s=100,
    connections=6,
    warmup_s=0.2,
    baseline_s=0.5,
    steady_s=0.5,
    look_s=0.1,
    strict=True,  # a busy machine is late now and then: that a fallback stood in must not look like a bug
    settings=SETTINGS,
    limit_s=60,
)


def run(*args):
    return CliRunner().invoke(grow.main, args)


# --- real nodes ---


@pytest.mark.parametrize(
    "changes",
    [{}, {"leave": "last", "one_by_one": True, "spread": True, "distribution": "zipfian"}],
    ids=["first", "last, one by one"],
)
def test_real_nodes_join_and_leave_under_a_load(tmp_path, changes):
    """Nothing is lost, nothing fails; who is to leave has left, and the others are there."""
    said = []
    options = msgspec.structs.replace(SMALL, **changes)
    result = judged(run_growth(options, tmp_path, say=said.append))
    assert (result.passed, result.unfinished, result.interrupted) == (True, "", False), result
    assert [reach.met for reach in result.reaches[:2]] == [True, True]
    assert result.read_back is not None
    assert result.read_back.keys == 300
    phases = {phase.clients.name: phase for phase in result.phases}
    grown = [phase for name, phase in phases.items() if name.startswith("grow")]
    shrunk = [phase for name, phase in phases.items() if name.startswith("shrink")]
    assert len(grown) == len(shrunk) == (3 if options.one_by_one else 1)
    assert sum(phase.records for phase in grown) > 0
    assert sum(phase.row_bytes for phase in shrunk) > 0
    assert all(phase.clients.done > 0 for phase in grown + shrunk)
    logs = {name: (tmp_path / name / "log").read_text() for name in nodes.names(range(1, 7))}
    assert all("is serving" in log for log in logs.values())
    assert any(line.startswith("read back") for line in said)


def test_a_hand_over_that_does_not_end_is_given_up(tmp_path, monkeypatch):
    """The rest of the story is left out; what was acknowledged is read back all the same."""
    monkeypatch.setattr(nodes.Nodes, "handed_over", lambda *_: False)
    result = judged(run_growth(msgspec.structs.replace(SMALL, limit_s=1), tmp_path))
    assert result.unfinished.startswith("'grow' is not done after 1 s")
    assert not result.passed
    assert result.read_back is not None
    assert result.read_back.lost == 0
    assert [reach.met for reach in result.reaches[:2]] == [None, None]  # as far as it went


def test_a_node_that_ends_by_itself_ends_the_run(tmp_path):
    """With the end of its log."""
    with pytest.raises(BenchFailed, match=r"n1 ended with status 2; the end of its log:\n.*no-such-setting"):
        run_growth(msgspec.structs.replace(SMALL, settings={"no_such_setting": "1"}), tmp_path)


def test_idle_transfer_with_real_nodes(tmp_path, monkeypatch):
    """All keys cross the wire, twice: small values, and a tenth of them large ones."""
    monkeypatch.setattr(idle, "IDLE_S", 0.0)
    said = []
    result = run_idle(400, SETTINGS, 60, tmp_path, lambda *_: None, said.append)
    assert [(one.keys, one.value_bytes, one.records) for one in result.runs] == [(400, 100, 400), (40, 10_000, 40)]
    assert all(one.keys_per_s > 0 for one in result.runs)
    assert len(said) == 2


# --- the judgement ---

CALM = {1000: 1000}
"""So many took so many microseconds."""


def phase(name, **changes):
    given = {
        "name": name, "seconds": 1.0, "done": 2000, "retried": 0, "retries": {}, "errors": {}, "unsent": 0,
        "not_found": 0, "stale": 0, "foreign": 0, "reads": latency([CALM]), "writes": latency([CALM]),
    }  # fmt: skip
    return PhaseReport(**(given | changes))


def result(*, grow=None, lost=None, **changes):
    """A run in which all was well, but for what is given: of the phase ``grow``, of what was read back, of the whole."""
    reports = [phase("warming up"), phase("baseline"), phase("grow", **(grow or {})), phase("after")]
    counts = {"absent": 0, "older": 0, "foreign": 0, "elsewhere": 0, "unread": 0} | (lost or {})
    given = {
        "options": GrowthOptions(),
        "phases": phases_of(reports, [Look(True, 0, 0, (), 0, 0, 0.0)] * 5),
        "read_back": ReadBack(keys=100, seconds=1.0, examples=[], **counts),
        "examples": [],
        "texts": [],
        "aside": 0,
        "generator_busy": 0.1,
    }
    return judged(GrowthResult(**(given | changes)))


LOST, NOT_FOUND, SUCCESS, P99 = range(4)


@pytest.mark.parametrize(
    ("changes", "missed", "passed"),
    [
        ({}, [], True),
        ({"lost": {"absent": 1}}, [LOST], False),
        ({"lost": {"older": 1}}, [LOST], False),
        (
            {"lost": {"absent": 1, "elsewhere": 1}},
            [LOST],
            False,
        ),  # a quorum does not find it: that is what was promised
        ({"lost": {"unread": 1}}, [LOST], False),
        ({"lost": {"foreign": 1}}, [NOT_FOUND], False),
        ({"grow": {"not_found": 1}}, [NOT_FOUND], False),
        ({"grow": {"stale": 1}}, [NOT_FOUND], False),
        ({"grow": {"foreign": 1}}, [NOT_FOUND], False),
        ({"grow": {"retried": 1000, "retries": {"BUSY": 1000}}}, [], True),
        ({"grow": {"errors": {"NOQUORUM": 1}}}, [SUCCESS], True),  # one of 8,001 is more than one of 10,000
        ({"grow": {"unsent": 1}}, [SUCCESS], True),
        ({"grow": {"writes": latency([{2000: 1000}])}}, [], True),
        ({"grow": {"writes": latency([{2001: 1000}])}}, [P99], True),
        ({"grow": {"reads": latency([{2001: 1000}])}}, [P99], True),
        ({"grow": {"reads": latency([{2001: P99_COUNT_MIN - 1}])}}, [], True),  # too few to tell
    ],
)
def test_what_is_missed_and_what_fails_the_run(changes, missed, passed):
    """Each row: what went wrong, which of the four reaches that misses, and whether promises were kept."""
    found = result(**changes)
    assert [number for number, reach in enumerate(found.reaches) if reach.met is False] == missed
    assert found.passed is passed
    assert len(found.reaches) == 4


def test_half_a_run_proves_nothing():
    """What was not judged to the end is neither met nor missed; what went wrong is wrong all the same."""
    found = result(interrupted=True, read_back=None)
    assert [reach.met for reach in found.reaches] == [None] * 4
    found = result(interrupted=True, read_back=None, grow={"not_found": 1})
    assert found.reaches[NOT_FOUND].met is False
    assert not result(unfinished="grow").passed


def test_the_p99_is_that_of_the_worst_phase_after_the_baseline():
    """With the phase and the kind."""
    found = result(grow={"writes": latency([{3000: 1000}])})
    assert found.reaches[P99].measured == "3.00 times (writes in 'grow')"


@pytest.mark.parametrize(
    ("keys", "value_bytes", "seconds", "wanted", "met"),
    [
        (200_000, 100, 4.0, 50_000, True),
        (200_000, 100, 4.1, 50_000, False),
        (20_000, 9_982, 10.0, 2_000, True),  # 18 bytes of key: 20 MB/s
        (20_000, 9_982, 10.1, 2_000, False),
    ],
)
def test_an_idle_transfer_is_held_against_bytes_or_keys(keys, value_bytes, seconds, wanted, met):
    """Whichever asks for less keys a second."""
    one = idle_run(keys, value_bytes, 18, seconds, keys, 0)
    assert (one.wanted_keys_per_s, one.met) == (wanted, met)
    assert not msgspec.structs.replace(one, records=keys - 1).met


# --- the command ---


@pytest.fixture
def planted(monkeypatch):
    """Makes the command see a result instead of measuring."""

    def plant(found):
        monkeypatch.setattr(grow, "run_growth", lambda *_: found)

    return plant


@pytest.mark.parametrize(
    ("changes", "status"),
    [
        ({}, 0),
        ({"grow": {"writes": latency([{9000: 1000}]), "errors": {"NOQUORUM": 9}}}, 0),
        ({"lost": {"absent": 1}}, 1),
        ({"grow": {"not_found": 1}}, 1),
        ({"grow": {"stale": 1}}, 1),
        ({"interrupted": True, "read_back": None}, 130),
        ({"interrupted": True, "read_back": None, "grow": {"not_found": 1}}, 1),
    ],
)
def test_exit_status(planted, changes, status):
    """Only broken promises make it 1; then data and logs are kept, and it says where."""
    planted(result(**changes))
    done = run("--no-progress")
    assert done.exit_code == status, done.output
    assert ("data and logs of the nodes" in done.stderr) is (status == 1)
    if status == 1:
        shutil.rmtree(done.stderr.split(": ")[-1].strip())
    assert "writes lost" in done.stdout


def test_json_is_all_there_is_on_standard_output(planted):
    """With the verdicts."""
    planted(result())
    done = run("--json")
    figures = json.loads(done.stdout)
    assert [reach["met"] for reach in figures["reaches"]] == [True] * 4
    assert done.stderr == ""


@pytest.mark.parametrize(
    "args",
    [
        ["--keys", "5"],
        ["--rate", "0"],
        ["--leave", "middle"],
        ["--setting", "q"],
        ["--setting", "=1"],
        ["--setting", "give grace=1"],
        ["--value-bytes", "8"],
        ["--value-bytes", "10000000"],
    ],
)
def test_wrong_options(args):
    """Each row is refused with exit status 2."""
    assert run(*args).exit_code == 2


def test_options_are_checked_for_library_users_too():
    """Out of range is out of range."""
    with pytest.raises(ConfigError):
        GrowthOptions(rate_per_s=0).check()


def test_idle_results_are_shown(monkeypatch):
    """A line for each run, and what did not come."""
    runs = [IdleRun(100, 100, 1.0, 90, 0, 100.0, 0.01, 50_000.0)]
    monkeypatch.setattr(grow, "run_idle", lambda *_: IdleResult(settings={}, runs=runs))
    done = run("--idle-transfer", "--no-progress")
    assert done.exit_code == 0
    assert "missed" in done.stdout
    assert "only 90 of 100 records came" in done.stdout
