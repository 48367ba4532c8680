"""Real runs: five processes, sockets and disks, with a kill and a partition; and the command line around them."""

from __future__ import annotations

import json
import re
import subprocess
import sys

import pytest
from tests.cli.harness import environment, invoke

from cartwheel.chaos.draw import draw
from cartwheel.chaos.history import Fault, Final, Op, read_lines
from cartwheel.chaos.nemesis import Nemesis
from cartwheel.sim.history import Status

DEADLINE_S = 200.0
"""The run itself takes some 20 s; owners may take 120 s to agree before that counts as a violation."""
pytestmark = pytest.mark.timeout(DEADLINE_S + 20)
SECONDS, KINDS = 12.0, (Nemesis.KILL, Nemesis.SPLIT)
FOUNDERS = ["n1", "n2", "n3", "n4", "n5"]


def chaos(home, *arguments):
    """Run the command to its end."""
    return subprocess.run(
        [sys.executable, "-m", "cartwheel", "chaos", *map(str, arguments)],
        capture_output=True, text=True, env=environment(home), timeout=DEADLINE_S, check=False,
    )  # fmt: skip


def a_seed():
    """One whose plan has both kinds early enough to end within the run."""
    for seed in range(1000):
        steps = [step for lane in draw(seed, KINDS, ["n1", "n2", "n3", "n4", "n5"], SECONDS) for step in lane]
        if {step.kind for step in steps} == set(KINDS) and all(step.at + step.for_s < 8.0 for step in steps[:1]):
            return seed
    raise AssertionError("no such seed")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A short run that the tests of this module share."""
    home = tmp_path_factory.mktemp("chaos")
    seed = a_seed()
    done = chaos(
        home, "--minutes", SECONDS / 60, "--nemesis", "kill,split", "--seed", seed, "--rate", 500,
        "--keep", home / "run", "--svg", home / "run.svg", "--json",
    )  # fmt: skip
    return home, done


def test_all_promises_hold(run):
    """Under load, with a kill and a partition: nothing is lost, nothing comes back, all owners agree. (That the machine which
    runs the tests is fast enough for a valid run is not asked.)"""
    home, done = run
    assert done.stdout, done.stderr
    report = json.loads(done.stdout)
    assert report["violations"] == [], done.stdout
    assert (report["lost"], report["phantom"], report["resurrected"]) == (0, 0, 0)
    assert report["acknowledged"] > 300
    assert {fault["kind"] for fault in report["faults"]} == {"kill", "split"}
    assert report["kills"] >= 1
    assert done.returncode == (0 if report["verdict"] == "held" else 1)
    assert (home / "run.svg").read_text().startswith("<svg")
    assert all((home / "run" / f"n{number}" / "log").stat().st_size for number in range(1, 6))


def test_nodes_dial_the_proxy_and_nobody_else(run):
    """When a node was killed the others said where they had dialed it: never at its own address, or no partition would be one."""
    home, _ = run
    logs = [(home / "run" / f"n{number}" / "log").read_text() for number in range(1, 6)]
    own = {address for log in logs for address in re.findall(r"^ *peers +(\S+)", log, re.MULTILINE)}
    dialed = {address for log in logs for address in re.findall(r"no link to n\d at ([\d.:]+):", log)}
    assert len(own) == 5
    assert dialed
    assert not own & dialed


def test_the_history_holds_what_the_run_was(run):
    """Operations through all nodes, of all kinds; the faults; and a last look at every key."""
    home, _ = run
    lines = [line for _, line in read_lines(home / "run" / "history.jsonl")]
    ops = [line for line in lines if isinstance(line, Op)]
    assert {op.node for op in ops} == {f"n{number}" for number in range(1, 6)}
    assert {op.kind.value for op in ops} == {"get", "put", "delete", "add"}
    assert all(op.dot is not None for op in ops if op.status is Status.OK and op.kind != "get")
    finals = {line.key for line in lines if isinstance(line, Final)}
    assert {op.key for op in ops if op.kind != "get"} <= finals
    assert any(isinstance(line, Fault) for line in lines)


def test_a_history_is_judged_again(run, tmp_path):
    """The same verdict and figures from the file alone."""
    home, done = run
    again = invoke("chaos", "--judge", home / "run" / "history.jsonl", "--json", home=tmp_path)
    assert json.loads(again.stdout) == json.loads(done.stdout)
    assert again.returncode == done.returncode
    text = invoke("chaos", "--judge", home / "run" / "history.jsonl", home=tmp_path)
    for words in ("operations/s", "acknowledged writes", "verdict: ", "kill"):
        assert words in text.stdout


def tampered(run, tmp_path, change):
    """Judge the run's history with its last look at some key changed."""
    home, _ = run
    path = tmp_path / "history.jsonl"
    lines = (home / "run" / "history.jsonl").read_text().splitlines()
    finals = [number for number, line in enumerate(lines) if '"t":"final"' in line]
    for number in finals:
        final = json.loads(lines[number])
        if change(
            final, [json.loads(line) for line in lines if f'"key":"{final["key"]}"' in line and '"t":"op"' in line]
        ):
            lines[number] = json.dumps(final)
            break
    else:
        raise AssertionError("no key fits")
    path.write_text("\n".join(lines) + "\n")
    return invoke("chaos", "--judge", path, "--json", home=tmp_path)


def lose(final, ops):
    """The newest acknowledged value of a hot key is gone."""
    acked = {op["id"] for op in ops if op.get("dot") and op["kind"] == "put"}
    if not acked.intersection(final.get("ids", [])) or final["key"][0] != "r":
        return False
    final["ids"] = []
    return True


def resurrect(final, ops):
    """A value comes back that its own node had acknowledged promptly, and that a later one superseded."""
    by_seq = {op["seq"]: op for op in ops}
    for op in ops:
        context = by_seq.get(op.get("ctx"), {})
        if op.get("id") in final.get("ids", []) and context.get("kind") == "get":
            for other in ops:
                own = other.get("dot") and other["dot"][0].startswith(other["node"] + "/")
                if own and other["id"] in context.get("ids", []) and other["end"] - other["at"] < 0.1:
                    final["ids"].append(other["id"])
                    return True
    return False


def imagine(final, ops):
    """A value that nobody wrote."""
    final.setdefault("ids", []).append(10**9)
    return True


def disagree(final, ops):
    """One owner holds nothing."""
    node = min(final["replicas"])
    final["replicas"][node] = {"clock": {}, "versions": []}
    return bool(final.get("ids"))


@pytest.mark.parametrize(
    ("change", "figure", "rules"),
    [
        (lose, "lost", {"C2"}),
        (resurrect, "resurrected", {"C2", "C6"}),
        (imagine, "phantom", {"C2"}),
        (disagree, None, {"C5"}),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_what_is_planted_in_a_real_history_is_found(run, tmp_path, change, figure, rules):
    """Each row: this lie about the end of the run breaks one of these rules, is counted, and ends with exit status 1."""
    done = tampered(run, tmp_path, change)
    report = json.loads(done.stdout)
    assert (done.returncode, report["verdict"]) == (1, "violated"), done.stdout
    assert rules & set(report["rules"])
    if figure is not None:
        assert report[figure] >= 1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--nemesis", "hurricane"], ["no nemesis 'hurricane'", "kill"]),
        (["--minutes", "0"], ["--minutes"]),
        (["--rate", "100"], ["--rate"]),
        (["--cycles", "0"], ["--cycles"]),
        (["--nodes", "2"], ["--nodes"]),
        (["--judge", "/no/such/history"], ["cannot read", "/no/such/history"]),
    ],
)
def test_wrong_options(tmp_path, arguments, words):
    """Each row: exit status 2 and one line that says what is wrong."""
    done = invoke("chaos", *arguments, home=tmp_path)
    assert done.returncode == 2
    assert done.stdout == ""
    for word in words:
        assert word in done.stderr


def test_a_full_directory_is_not_worked_in(tmp_path):
    """What is there is not touched."""
    (tmp_path / "mine").write_text("x")
    done = invoke("chaos", "--keep", tmp_path, "--seed", "1", home=tmp_path)
    assert (done.returncode, "is not empty" in done.stderr) == (2, True)
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]
