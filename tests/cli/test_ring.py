"""``cartwheel ring``, and ``ring simulate``: what is printed, what is refused, and what reaches a file."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from typing import get_args
from xml.etree import ElementTree

import pytest

from cartwheel.bench.strategies.simulate import Options, Which
from cartwheel.cli import common
from cartwheel.cli.main import run
from cartwheel.cli.ring import FIGURES
from cartwheel.cli.ring import simulate as command

SMALL = ["ring", "simulate", "--nodes", "5", "--n", "2", "--seeds", "2", "--tokens-max", "8", "--q", "16"]
SMALL += ["--ring-q-max", "32", "--tokens", "4", "--popular-keys", "60"]


@pytest.fixture
def node(monkeypatch):
    """A node that answers CW.RING; its list of who asked it."""
    asked = []
    member = {"zone": "", "host": "h", "weight": 1.0, "partitions": 3, "reachable": "yes"}
    answer = {"q": 4, "epoch": "e" * 32, "members": {"n1": member, "n2": member | {"partitions": 1}}}

    @contextlib.contextmanager
    def connect(address, timeout_s):
        asked.append((address, timeout_s))
        yield "connection"

    monkeypatch.setattr(common, "connect", connect)
    monkeypatch.setattr(common, "ask_json", lambda connection, *command: answer)
    return asked


def test_ring_alone_shows_the_ring_of_a_node(node, capsys):
    """As it did before it had sub-commands, with the same options."""
    assert run(["ring", "--node", "there:1", "--timeout", "3"]) == 0
    assert node == [("there:1", 3.0)]
    out = capsys.readouterr().out
    assert "4 partitions, epoch eeeeeeeeeeee" in out
    assert "75.0%" in out
    assert run(["ring", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["members"]["n2"]["partitions"] == 1


def test_simulate_asks_no_node(node, capsys, monkeypatch):
    """Not even if the environment names one."""
    monkeypatch.setenv("CARTWHEEL_NODE", "there:1")
    assert run(SMALL) == 0
    assert node == []
    assert "5 nodes, N = 2, 2 seeds from 1 on" in capsys.readouterr().out


def test_tables(capsys):
    """A row for each size and ring, none cut short, and the day."""
    assert run(SMALL) == 0
    out = capsys.readouterr().out
    assert "…" not in out
    rows = [line.split() for line in out.splitlines()]
    firsts = [row[0] for row in rows if row]
    for first in ("10", "20", "40", "16", "32"):
        assert first in firsts
    assert ["16", "3", "or", "4"] in [row[:4] for row in rows]
    assert any("0.70 to 1.00" in line for line in out.splitlines())
    assert run([*SMALL, "--nodes", "4"]) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert [row[1] for row in rows if len(row) == 4 and row[0] in {"16", "32"}] == ["4", "8"]
    assert "Cartwheel's ring" in out
    assert "brackets" not in out


def test_the_papers_values_stand_beside_ours(capsys, monkeypatch):
    """For the paper's cluster, with the difference; the table is not too wide for 100 columns."""
    monkeypatch.delenv("COLUMNS", raising=False)
    assert run(["ring", "simulate", "--figure", "8", "--seeds", "1", "--tokens-max", "4", "--ring-q-max", "1"]) == 0
    out = capsys.readouterr().out
    assert "(0.52 " in out
    assert "(0.87 " in out
    assert "in brackets the paper's" in out
    assert "…" not in out
    assert "Figure 6" not in out


def test_json(capsys):
    """One document with the options and both figures."""
    assert run([*SMALL, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["options"]["nodes"] == 5
    assert [row["metadata"] for row in report["figure_8"]["rows"]] == [10, 20, 40]
    assert set(report["figure_8"]["rows"][0]["strategy_2"]) == {"mean", "deviation", "paper"}
    assert len(report["figure_6"]["windows"]) == 48
    assert run([*SMALL, "--json", "--figure", "6"]) == 0
    assert "figure_8" not in json.loads(capsys.readouterr().out)


def test_the_same_in_every_process():
    """Whatever Python makes of hashes there."""
    outputs = [
        subprocess.run(
            [sys.executable, "-m", "cartwheel", *SMALL, "--json"],
            env=os.environ | {"PYTHONHASHSEED": seed},
            capture_output=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    ]
    assert outputs[0] == outputs[1]
    assert json.loads(outputs[0])["figure_6"]["popular_keys"] == 60


def test_plot(capsys, tmp_path):
    """An SVG, and a line that says so; with --json only the document is on standard output."""
    file = tmp_path / "figure.svg"
    assert run([*SMALL, "--plot", str(file)]) == 0
    assert f"drawn in {file}" in capsys.readouterr().out
    first = file.read_text("utf-8")
    assert ElementTree.fromstring(first).tag == "{http://www.w3.org/2000/svg}svg"
    assert run([*SMALL, "--json", "--figure", "8", "--plot", str(file)]) == 0
    json.loads(capsys.readouterr().out)
    assert len(file.read_text("utf-8")) < len(first)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--plot", "f.png"], ["f.png", "only SVG", ".svg"]),
        (["--plot", "f"], ["only SVG"]),
        (["--plot", "no-such-folder/f.svg"], ["no folder no-such-folder"]),
        (["--nodes", "2"], ["--n 3", "--nodes 2"]),
        (["--nodes", "many"], ["--nodes", "many"]),
        (["--figure", "7"], ["--figure", "'7'"]),
        (["--q", "1000"], ["--q 1000", "power of two"]),
        (["--node", "127.0.0.1:7700"], ["--node"]),
    ],
)
def test_refused(capsys, monkeypatch, tmp_path, arguments, words):
    """Each row: one line on standard error with these words, exit code 2, and nothing is written."""
    monkeypatch.chdir(tmp_path)
    assert run(["ring", "simulate", *arguments]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    for word in [*words, "cartwheel ring simulate --help"]:
        assert word in captured.err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("option", [["--json"], ["--node", "there:1"], ["--timeout", "3"]])
def test_options_of_ring_are_not_passed_over(capsys, option):
    """Before 'simulate' they would do nothing, so they are refused."""
    assert run(["ring", *option, "simulate"]) == 2
    captured = capsys.readouterr()
    assert option[0] in captured.err
    assert "'simulate'" in captured.err


def test_defaults_are_those_of_the_simulation():
    """The command line repeats them, to start without its imports."""
    defaults = {parameter.name: parameter.default for parameter in command.params}
    for name in Options.__struct_fields__:
        assert defaults[name] == getattr(Options(), name)
    assert set(get_args(Which)) == set(FIGURES)
