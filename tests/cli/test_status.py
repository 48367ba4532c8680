"""``cartwheel status``: every node is asked for its own view, and what is not as it should be has a line."""

from __future__ import annotations

import contextlib
import json

import pytest

from cartwheel.cli import common
from cartwheel.cli.main import run
from cartwheel.client.resp import CannotReach

NAMES = ("n1", "n2", "n3")


class Nodes:
    """Nodes that answer CW.STATUS by their doors; those of ``away`` do not."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.found: dict[tuple[str, str], tuple[str, float, str]] = {}
        self.away: set[str] = set()
        self.doors = {name: f"{name}:7700" for name in NAMES}
        self.cluster = dict.fromkeys(NAMES, "shop")
        self.builds: dict[str, dict[str, object]] = {}
        monkeypatch.setattr(common, "connect", self.connect)
        monkeypatch.setattr(common, "ask_json", self.ask)

    @contextlib.contextmanager
    def connect(self, door: str, timeout_s: float):
        name = door.partition(":")[0]
        if name in self.away:
            raise CannotReach(f"cannot reach a node at {door}")
        yield name

    def ask(self, name: str, *command: str) -> dict[str, object]:
        assert command == ("CW.STATUS", "JSON")
        members = []
        for other in NAMES:
            state, since_s, reason = self.found.get((name, other), ("up", 7.0, ""))
            members.append(
                {
                    "node": other, "address": f"{other}:7702", "host": other, "zone": "", "weight": 1.0, "partitions": 341,
                    "reachable": state != "unreachable", "reason": reason, "state": state, "since_s": since_s,
                    "door": self.doors[other], **self.builds.get(other, {}),
                }
            )  # fmt: skip
        return {
            "node": name, "cluster": self.cluster[name], "epoch": "e" * 32, "stint": "s", "q": 1024, "members": members,
            "requests": 0, "counters": {}, "notes": [],
        }  # fmt: skip


@pytest.fixture
def nodes(monkeypatch):
    return Nodes(monkeypatch)


def matrix(text: str) -> list[list[str]]:
    """The rows of the printed matrix, cells as text."""
    lines = text.splitlines()
    first = next(i for i, line in enumerate(lines) if line.startswith("finds"))
    return [[cell.strip() for cell in line.split("   ") if cell.strip()] for line in lines[first + 1 : first + 4]]


def test_all_is_well(nodes, capsys):
    """Everyone finds everyone else up: exit code 0, no complaint."""
    assert run(["status", "--node", "n2:7700"]) == 0
    shown = capsys.readouterr()
    assert "seen by n2" in shown.out
    assert matrix(shown.out) == [["n1", "-", "up", "up"], ["n2", "up", "-", "up"], ["n3", "up", "up", "-"]]
    assert shown.err == ""


def test_views_differ(nodes, capsys):
    """A cut that only n2 and n3 notice, a full disk, a slow one."""
    nodes.found = {
        ("n2", "n3"): ("silent", 12.0, "no answer within 0.2 s"),
        ("n3", "n2"): ("unreachable", 300.0, "connection refused"),
        ("n1", "n2"): ("slow writes", 3.0, "writes are not answered within 0.2 s"),
        ("n3", "n3"): ("no writes", 60.0, "its disk is nearly full"),
    }
    assert run(["status", "--node", "n1:7700"]) == 1
    shown = capsys.readouterr()
    assert matrix(shown.out) == [
        ["n1", "-", "slow writes 3 s", "up"],
        ["n2", "up", "-", "silent 12 s"],
        ["n3", "up", "unreachable 5 min", "no writes 60 s"],
    ]
    assert shown.err.splitlines() == [
        "n1 finds n2 'slow writes' since 3 s: writes are not answered within 0.2 s",
        "n2 finds n3 'silent' since 12 s: no answer within 0.2 s",
        "n3 cannot reach n2 since 5 min: connection refused",
        "n3 finds itself 'no writes' since 60 s: its disk is nearly full",
    ]


def test_observers_that_do_not_answer_are_marked(nodes, capsys):
    """One is away, another's door is unknown to the node that was asked."""
    nodes.away = {"n3"}
    nodes.doors["n2"] = ""
    assert run(["status", "--node", "n1:7700"]) == 1
    shown = capsys.readouterr()
    assert matrix(shown.out) == [
        ["n1", "-", "up", "up"],
        ["n2: no answer", "?", "?", "?"],
        ["n3: no answer", "?", "?", "?"],
    ]
    assert shown.err.splitlines() == [
        "n2 was not heard: n1 does not know where its Redis door is",
        "n3 was not heard: cannot reach a node at n3:7700",
    ]


def test_a_stranger_at_a_members_door(nodes, capsys):
    """A node of another cluster has no say here."""
    nodes.cluster["n2"] = "other"
    assert run(["status", "--node", "n1:7700"]) == 1
    assert "n2 was not heard: at n2:7700 answers n2 of cluster other" in capsys.readouterr().err


def test_json_carries_all_views(nodes, capsys):
    """The answer of the node that was asked, and under "views" what each finds."""
    nodes.found = {("n2", "n3"): ("silent", 12.0, "no answer within 0.2 s")}
    nodes.away = {"n3"}
    assert run(["status", "--json", "--node", "n1:7700"]) == 1
    answer = json.loads(capsys.readouterr().out)
    assert answer["node"] == "n1"
    assert list(answer["views"]) == list(NAMES)
    assert answer["views"]["n1"]["n3"] == {"state": "up", "since_s": 7.0, "reason": ""}
    assert answer["views"]["n2"]["n3"]["state"] == "silent"
    assert answer["views"]["n3"] == {"error": {"reason": "cannot reach a node at n3:7700"}}


@pytest.mark.parametrize(
    ("builds", "said"),
    [
        ([("2.0", 3)] * 3, "versions: all 2.0 (protocol 3)"),
        ([("2.0", 3), ("", 2), ("2.0", 3)], "versions: n1 n3 2.0 (protocol 3); n2 an older one (protocol 2)"),
        ([("2.0", 3), ("1.9", 3), ("", 0)], "versions: n1 2.0 (protocol 3); n2 1.9 (protocol 3); n3 not known"),
        ([], None),  # the node that is asked is of a build that does not tell
    ],
)
def test_who_runs_which_version(nodes, capsys, builds, said):
    """In the middle of a roll an operator sees how far it is."""
    fields = ("version", "protocol")
    nodes.builds = {name: dict(zip(fields, build, strict=True)) for name, build in zip(NAMES, builds, strict=False)}
    assert run(["status", "--node", "n1:7700"]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("versions:")]
    assert lines == ([said] if said else [])
