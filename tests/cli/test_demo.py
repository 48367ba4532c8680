"""The demonstrations that split a cluster of their own: real processes, a cut network, and what clients are left with."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from tests.cli.harness import environment, invoke

from cartwheel.chaos import scratch
from cartwheel.chaos.cluster import ChaosFailed
from cartwheel.chaos.scratch import Scratch
from cartwheel.cli import demo_lww
from cartwheel.cli.demo_lww import Count

DEADLINE_S = 250.0
"""A calm machine needs 8 s. Each of the four waits of a demo gives up after 60 s."""
pytestmark = pytest.mark.timeout(DEADLINE_S + 20)


def demo(home, *arguments):
    """Run one to its end, and see that it has left nothing behind."""
    (home / "tmp").mkdir()
    done = subprocess.run(
        [sys.executable, "-m", "cartwheel", "demo", *arguments],
        capture_output=True, text=True, env=environment(home) | {"TMPDIR": str(home / "tmp")}, timeout=DEADLINE_S,
        check=False,
    )  # fmt: skip
    assert list((home / "tmp").iterdir()) == []
    return done


def test_the_cart_under_a_split(tmp_path):
    """Both halves take writes and both additions are in the merged cart. The removed item returns beside the other side's write,
    and only there: not where nobody wrote beside the removal, nor once somebody who had seen all removed it."""
    done = demo(tmp_path, "cart", "--split", "--json")
    assert (done.returncode, done.stderr) == (0, "")
    told = json.loads(done.stdout)
    assert told["sides"] == [["n1", "n2"], ["n3", "n4", "n5"]]
    assert (told["kept_both"], told["resurfaced"], told["stayed_removed"]) == (True, ["bread"], True)
    steps = told["steps"]
    siblings = [step["carts"] for step in steps if len(step["carts"]) > 1]
    assert [sorted(each) for each in siblings] == [[["bread", "eggs", "milk"], ["milk", "tea"]]]
    assert [step["carts"] for step in steps if step["key"].startswith("demo:wishes")][-1] == [["book"]]
    assert steps[-1]["carts"] == [["eggs", "milk", "tea"]]


def test_what_an_lww_and_a_siblings_bucket_lose_under_a_split(tmp_path):
    """All of what one side had acknowledged is gone where the last writer wins, but nothing where siblings are kept. And it is
    told in words and a table."""
    done = demo(tmp_path, "lww", "--adds", "3")
    assert (done.returncode, done.stderr) == (0, "")
    words = [line.split() for line in done.stdout.splitlines()]
    rows = {row[0]: row[1:] for row in words if row and row[0] in demo_lww.BUCKETS and row[-1].isdigit()}
    acked, failed, siblings, present, lost = map(int, rows["siblings"])
    assert (acked + failed, lost) == (12, 0)
    assert siblings >= 2
    assert present >= acked
    acked, failed, siblings, present, lost = map(int, rows["lww"])
    assert siblings == 1
    assert lost >= acked - 6, "more than the six elements of one side have stayed"
    assert lost >= acked - present
    assert "The network splits: n1 n2 | n3 n4 n5" in done.stdout


@pytest.mark.parametrize(
    ("lost", "code"),
    [({"siblings": 0, "lww": 2}, 0), ({"siblings": 1, "lww": 0}, 1)],
)
def test_only_a_loss_of_the_siblings_bucket_is_a_failure(tmp_path, monkeypatch, lost, code):
    """Each row: so many acknowledged elements of each bucket are gone; the exit code, and what JSON says."""

    class Nothing:
        nodes = ("n1",)

        def __enter__(self):
            return self

        def __exit__(self, *error):
            pass

    counts = {bucket: Count({"a", "b"}, set(), 1, set("ab"[: 2 - lost[bucket]])) for bucket in demo_lww.BUCKETS}
    monkeypatch.setattr(scratch, "Scratch", Nothing)
    monkeypatch.setattr(demo_lww, "run", lambda cluster, adds, say: (counts, 0.5))
    done = invoke("demo", "lww", "--json", home=tmp_path)
    assert done.returncode == code
    told = json.loads(done.stdout)["buckets"]
    assert {bucket: len(told[bucket]["lost"]) for bucket in told} == lost


@pytest.mark.parametrize(
    ("arguments", "words"),
    [(["cart", "--split", "--node", "127.0.0.1:1"], ["--split", "--node"]), (["lww", "--adds", "0"], ["--adds"])],
)
def test_wrong_options(tmp_path, arguments, words):
    """Each row: exit code 2 and one line that says what is wrong; no cluster is started."""
    done = invoke("demo", *arguments, home=tmp_path)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    for word in words:
        assert word in done.stderr


def test_a_demo_that_is_ended_leaves_nothing(tmp_path):
    """SIGTERM in its midst: no files, no processes, and the exit code of Ctrl-C."""
    process = subprocess.Popen(
        [sys.executable, "-u", "-m", "cartwheel", "demo", "lww"],
        stdout=subprocess.PIPE, env=environment(tmp_path) | {"TMPDIR": str(tmp_path)},
    )  # fmt: skip
    with process:
        assert process.stdout is not None
        while b"nodes are ready" not in process.stdout.readline():
            assert process.poll() is None
        process.send_signal(signal.SIGTERM)
        process.stdout.read()
    assert process.returncode == 130
    assert list(tmp_path.glob("cartwheel-demo-*")) == []


def test_a_cluster_that_does_not_start_leaves_nothing(tmp_path, monkeypatch):
    """Neither processes nor files; and it says why."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    cluster = Scratch(size=1, timeout_s=0.0)
    with pytest.raises(ChaosFailed, match="all nodes serve"), cluster:
        pass
    assert not cluster.cluster.running("n1")
    assert list(Path(tmp_path).iterdir()) == []
