"""``cartwheel cluster``: what it sends, what it prints, and how it ends; at last the whole walk on real nodes."""

from __future__ import annotations

import contextlib
import io
import json

import pytest
from rich.console import Console
from tests.cluster.cluster import Cluster, wait_until

from cartwheel.cli import common, membership
from cartwheel.cli.main import run
from cartwheel.client.resp import CannotReach, ReplyError

NEXT_PLAN = "next: 'cartwheel cluster plan' shows what it would do; stage more changes first, if they belong together"
NEXT_TRANSFERS = "next: 'cartwheel cluster transfers --wait' shows the hand-over; the cluster serves all the while"


class Nodes:
    """Nodes that answer by their doors. n1 is the one that is asked first."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.sent: list[tuple[str, ...]] = []
        self.text: bytes | ReplyError = b"staged: what was asked"
        self.transfers: dict[str, dict[str, object]] = {"n1": view(), "n2": view()}
        self.away: set[str] = set()
        self.doors = {"n1": "n1:7700", "n2": "n2:7700"}
        self.plan = plan()
        self.told: dict[str, object] = {}
        """Command -> its answer."""
        self.leaving: list[str] = []
        monkeypatch.setattr(common, "connect", self.connect)
        monkeypatch.setattr(common, "ask_json", self.ask)
        monkeypatch.setattr(membership, "WATCH_S", 0.0)
        monkeypatch.setattr(membership, "LINE_S", 0.0)
        monkeypatch.setenv("CARTWHEEL_NODE", "n1:7700")
        monkeypatch.setenv("COLUMNS", "120")

    @contextlib.contextmanager
    def connect(self, door, timeout_s):
        self.at = door.partition(":")[0]
        if self.at in self.away:
            raise CannotReach(f"cannot reach a node at {door}")
        yield Asked(self, self.at)

    def ask(self, asked, *command):
        if command == ("CW.STATUS", "JSON"):
            members = [{"node": name, "door": door} for name, door in self.doors.items()]
            return {
                "node": asked.name, "members": members, "leaving": self.leaving, "transfer": self.transfers[asked.name],
            }  # fmt: skip
        if command == ("CW.CLUSTER", "PLAN", "JSON"):
            return self.plan
        self.sent.append(command)
        return self.told[command[1]]


class Asked:
    """A connection to one of them."""

    def __init__(self, nodes: Nodes, name: str) -> None:
        self.nodes, self.name = nodes, name

    def call(self, *words):
        self.nodes.sent.append(words)
        if isinstance(self.nodes.text, ReplyError):
            raise self.nodes.text
        return self.nodes.text


def view(*gains, **counts):
    rows = [dict(zip(("source", "partitions", "comparing", "waits"), gain, strict=True)) for gain in gains]
    return {"gains": rows, "gained": 0, "received": 0, "given": 0, "leftovers": 0, "removed": 0, **counts}


def plan(*changes, moving=0, refusals=(), warnings=(), transfers=(), moves=0, ratio=1.0):
    shares = [
        {
            "node": node, "zone": zone, "weight": weight, "primaries_before": 32, "primaries_after": after,
            "replicas_before": 64, "replicas_after": 2 * after, "fair": fair, "deviation_percent": 1.5,
        }
        for node, zone, weight, after, fair in (("n1", "", 1.0, 20, 40), ("n2", "b", 2.5, 44, 0))
    ]  # fmt: skip
    made = {"shares": shares, "transfers": transfers, "moves": moves, "ratio": ratio, "refusals": refusals}
    return {
        "digest": "d1g", "changes": changes, "plan": made, "warnings": warnings, "silent": [], "partition_bytes": 2000,
        "moving": moving,
    }  # fmt: skip


@pytest.fixture
def nodes(monkeypatch):
    return Nodes(monkeypatch)


def squeezed(text: str) -> list[str]:
    """The lines, with one space between words: how wide a column is does not matter here."""
    return [" ".join(line.split()) for line in text.splitlines()]


@pytest.mark.parametrize(
    ("arguments", "sent", "then"),
    [
        ("leave n4", "LEAVE n4", NEXT_PLAN),
        ("remove n4", "REMOVE n4", NEXT_PLAN),
        ("replace n4 n5", "REPLACE n4 n5", NEXT_PLAN),
        ("replace --dead n4 n5", "REPLACE n4 n5 DEAD", NEXT_PLAN),
        ("weight n4 2.50", "WEIGHT n4 2.5", NEXT_PLAN),
        ("zone n4 b", "ZONE n4 b", NEXT_PLAN),
        ("zone n4 b --host h4", "ZONE n4 b h4", NEXT_PLAN),
        ("commit", "COMMIT", NEXT_TRANSFERS),
        ("commit --plan d1g", "COMMIT DIGEST d1g", NEXT_TRANSFERS),
        ("commit --plan d1g --force", "COMMIT DIGEST d1g FORCE", NEXT_TRANSFERS),
        ("abandon", "ABANDON", ""),
        ("join 10.0.0.1:7702", "JOIN 10.0.0.1:7702", ""),
    ],
)
def test_what_is_sent_and_what_comes_next(nodes, capsys, arguments, sent, then):
    """The node's answer is shown as it is, and what to do next; with --json only the answer; what it refuses, in one line."""
    assert run(["cluster", *arguments.split()]) == 0
    assert nodes.sent == [("CW.CLUSTER", *sent.split())]
    assert capsys.readouterr() == ("staged: what was asked\n" + (f"{then}\n" if then else ""), "")
    assert run(["cluster", *arguments.split(), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"result": "staged: what was asked"}
    nodes.text = ReplyError("ERR", "that cannot be")
    assert run(["cluster", *arguments.split()]) == 1
    assert capsys.readouterr() == ("", "cartwheel: ERR that cannot be\n")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("", "Usage: cartwheel cluster"),
        ("explode", "No such command 'explode'"),
        ("leave", "Missing argument 'MEMBER'"),
        ("leave n1 n2", "unexpected extra argument (n2)"),
        ("replace n1", "Missing argument 'NEW'"),
        ("weight n1", "Missing argument 'WEIGHT'"),
        ("weight n1 0", "0.0 is not in the range x>0"),
        ("weight n1 heavy", "'heavy' is not a valid float"),
        ("zone n1", "Missing argument 'ZONE'"),
        ("join", "Missing argument 'HOST:PORT'"),
        ("safe-to-stop", "Missing argument 'MEMBER'"),
        ("commit --plan", "Option '--plan' requires an argument"),
    ],
)
def test_wrong_usage(nodes, capsys, arguments, words):
    """Exit code 2, and nothing is asked of anybody."""
    assert run(["cluster", *arguments.split()]) == 2
    assert words in capsys.readouterr().err
    assert nodes.sent == []


def test_nobody_is_there(nodes, capsys):
    """Every command says whom it cannot reach."""
    nodes.away = {"n1"}
    for arguments in ("leave n1", "plan", "commit", "abandon", "history", "transfers", "safe-to-stop n1", "join h:1"):
        assert run(["cluster", *arguments.split()]) == 1
        assert capsys.readouterr() == ("", "cartwheel: cannot reach a node at n1:7700\n")


# --- plan -------------------------------------------------------------------------------------------------------------


def test_a_plan(nodes, capsys):
    """What changes, who carries what, who gives what to whom, what it costs, what to mind, and the commit that fits."""
    transfers = [
        {"giver": "n1", "gainer": "n2", "partitions": 24},
        {"giver": "", "gainer": "n2", "partitions": 3},
    ]
    nodes.plan = plan("n2 has weight 2.5", "n3 leaves", transfers=transfers, moves=27, ratio=1.25, warnings=["mind it"])
    assert run(["cluster", "plan"]) == 0
    assert squeezed(capsys.readouterr().out) == [
        "staged:",
        "n2 has weight 2.5",
        "n3 leaves",
        "node zone weight first choice replicas fair off by",
        "n1 - 1 32 > 20 64 > 40 40 +1.5%",
        "n2 b 2.5 32 > 44 64 > 88 0 -",
        "from to partitions about",
        "n1 n2 24 48.0 kB",
        "(all owners) n2 3 6.0 kB",
        "27 copies of partitions move, about 54.0 kB, 1.25 times the least possible",
        "warning: mind it",
        "next: 'cartwheel cluster commit --plan d1g', or 'cartwheel cluster abandon'",
    ]
    assert run(["cluster", "plan", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["changes"] == ["n2 has weight 2.5", "n3 leaves"]


def test_a_plan_that_would_be_refused(nodes, capsys):
    """It says why, and ends with exit code 1, as text and as JSON."""
    nodes.plan = plan("n1 leaves", refusals=["no member is left"], ratio=None)
    assert run(["cluster", "plan"]) == 1
    out, err = capsys.readouterr()
    assert err == "refused: no member is left\n"
    assert "0 copies of partitions move, about 0 B\n" in out
    assert out.endswith("next: 'cartwheel cluster abandon' drops it; or stage what is missing\n")
    assert run(["cluster", "plan", "--json"]) == 1


def test_nothing_is_staged(nodes, capsys):
    """An empty plan is no error."""
    assert run(["cluster", "plan"]) == 0
    assert capsys.readouterr().out == "nothing is staged; 'cartwheel cluster --help' lists what can be\n"


# --- history, safe-to-stop --------------------------------------------------------------------------------------------


def test_history(nodes, capsys):
    """Each change, where it was issued and when; founding members have no time."""
    nodes.told["HISTORY"] = [
        {"at_ms": 0, "author": "n1", "kind": "join", "change": "n1 joins (h:7702, weight 1)", "id": "a"},
        {"at_ms": 1_700_000_000_000, "author": "n2", "kind": "leave", "change": "n1 leaves", "id": "b"},
    ]
    assert run(["cluster", "history"]) == 0
    assert squeezed(capsys.readouterr().out)[1:] == [
        "founding n1 n1 joins (h:7702, weight 1)",
        "2023-11-14 22:13:20 n2 n1 leaves",
    ]
    assert run(["cluster", "history", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == nodes.told["HISTORY"]


def test_safe_to_stop(nodes, capsys):
    """Exit code 0, or 1 and each reason in a line of its own."""
    nodes.told["SAFETOSTOP"] = []
    assert run(["cluster", "safe-to-stop", "n2"]) == 0
    assert capsys.readouterr() == ("n2 may be stopped: every key keeps W owners that answer\n", "")
    assert nodes.sent == [("CW.CLUSTER", "SAFETOSTOP", "n2", "JSON")]
    nodes.told["SAFETOSTOP"] = ["n2 leaves", "3 hints for it"]
    assert run(["cluster", "safe-to-stop", "n2"]) == 1
    assert capsys.readouterr() == ("", "n2 leaves\nn2: 3 hints for it\n")
    assert run(["cluster", "safe-to-stop", "n2", "--json"]) == 1
    told = {"node": "n2", "safe": False, "reasons": ["n2 leaves", "3 hints for it"]}
    assert json.loads(capsys.readouterr().out) == told


# --- transfers --------------------------------------------------------------------------------------------------------

DONE = "everything is handed over\n"


def test_no_transfers(nodes, capsys):
    """Exit code 0."""
    assert run(["cluster", "transfers"]) == 0
    assert capsys.readouterr() == (DONE, "")
    assert run(["cluster", "transfers", "--wait", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["done"] is True
    assert told["nodes"] == nodes.transfers


def test_transfers_under_way(nodes, capsys):
    """A row for each source, with a reason for each wait, and one bar for each node: exit code 1."""
    nodes.transfers["n2"] = view(
        ("n1", 16, True, ""),
        ("n4", 8, False, ""),
        ("n3", 4, False, "n3 keeps hints for n2 there"),
        ("", 4, False, "n5 comes first"),
    )
    nodes.transfers["n1"] = view(leftovers=7)
    nodes.plan, nodes.leaving = plan(moving=32), ["n3"]
    assert run(["cluster", "transfers"]) == 1
    out, err = capsys.readouterr()
    assert err == ""
    assert squeezed(out)[1:] == [
        "n1 - 0 tidies up 7 partitions",
        "n2 n1 16 ████████░░░░░░░░ 32 of 64 comparing, and copying what differs",
        "n2 n4 8 its turn comes",
        "n2 n3 4 waits: n3 keeps hints for n2 there",
        "n2 - 4 later: n5 comes first",
        "n3 leaves, and has not handed over everything yet: let it run",
    ]
    assert run(["cluster", "transfers", "--json"]) == 1
    told = json.loads(capsys.readouterr().out)
    assert (told["done"], told["moving"], told["leaving"], told["due"]) == (False, 32, ["n3"], {"n1": 64, "n2": 64})


def test_tidying_up_is_shown_but_not_waited_for(nodes, capsys):
    """A member that still has what it gave holds up nobody."""
    nodes.transfers["n1"] = view(leftovers=7)
    assert run(["cluster", "transfers", "--wait"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "everything is handed over, and nobody waits for the tidying up"


def test_who_gains_does_not_answer(nodes, capsys):
    """What is to be handed over is known all the same; so is that nothing is."""
    nodes.away, nodes.plan = {"n2"}, plan(moving=5)
    assert run(["cluster", "transfers"]) == 1
    out, err = capsys.readouterr()
    assert "5 partitions are to be handed over, and wait for nodes that do not answer" in out
    assert err == "n2 was not heard: cannot reach a node at n2:7700\n"
    nodes.plan = plan()
    assert run(["cluster", "transfers"]) == 0
    nodes.doors["n2"] = ""
    assert run(["cluster", "transfers"]) == 0
    assert capsys.readouterr().err.splitlines()[-1] == "n2 was not heard: n1 does not know where its Redis door is"


def hand_over(nodes):
    """From now on each look finds the hand-over further on."""
    steps = [
        (view(("n1", 16, False, "unreachable: Connection refused")), 16),
        (view(("n1", 8, True, ""), received=1200), 8),
        (view(received=2000), 0),
    ]

    def ask(asked, *command):
        if command == ("CW.STATUS", "JSON") and asked.name == "n1" and len(steps) > 1:
            steps.pop(0)
        nodes.transfers["n2"], moving = steps[0]
        nodes.plan = plan(moving=moving)
        return Nodes.ask(nodes, asked, *command)

    steps.insert(0, steps[0])
    return ask


def test_waiting_for_a_hand_over(nodes, capsys, monkeypatch):
    """Without a terminal there is a line for each change; then exit code 0."""
    monkeypatch.setattr(common, "ask_json", hand_over(nodes))
    assert run(["cluster", "transfers", "--wait"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "16 partitions to take over, 0 records received; waits: unreachable: Connection refused",
        "8 partitions to take over, 1,200 records received",
        DONE.strip(),
    ]


def test_waiting_at_a_terminal(nodes, capsys, monkeypatch):
    """There the table is drawn anew each time, and is gone at the end."""
    drawn = io.StringIO()
    console = Console(file=drawn, force_terminal=True, width=120, height=30)
    monkeypatch.setattr(common, "console", lambda: console)
    monkeypatch.setattr(common, "ask_json", hand_over(nodes))
    assert run(["cluster", "transfers", "--wait"]) == 0
    assert "████████████░░░░ 48 of 64" in drawn.getvalue()
    assert "waits: unreachable: Connection refused" in drawn.getvalue()
    assert capsys.readouterr().out == DONE


# --- on real nodes ----------------------------------------------------------------------------------------------------


def test_a_walk_on_real_nodes(tmp_path):
    """Two operators, staged changes that clash with what is there, a member that does not answer: each command as it is typed."""
    with Cluster(tmp_path, size=2, q="16") as cluster:

        def cli(number, *arguments):
            done = cluster.cli(number, "cluster", *arguments)
            assert "Traceback" not in done.stderr
            return done.returncode, done.stdout.strip(), done.stderr.strip()

        assert cli(1, "leave", "n7") == (1, "", "cartwheel: ERR 'n7' is no member; members are n1, n2")
        assert cli(1, "commit") == (1, "", "cartwheel: ERR nothing is staged")
        assert cli(1, "abandon") == (1, "", "cartwheel: ERR nothing is staged")
        assert cli(1, "weight", "n2", "2") == (0, f"staged: n2 has weight 2\n{NEXT_PLAN}", "")
        assert cli(1, "weight", "n2", "2") == (1, "", "cartwheel: ERR that is staged already: n2 has weight 2")
        seen = json.loads(cli(1, "plan", "--json")[1])["digest"]
        cluster.wait_staged("n2 has weight 2", 2)
        assert cli(2, "zone", "n1", "b")[0] == 0
        cluster.wait_staged("n1 moves to zone b", 1)
        code, _, error = cli(1, "commit", "--plan", seen)
        assert (code, error.partition("(")[0]) == (1, "cartwheel: ERR the plan has changed ")
        cluster.kill(2)
        wait_until(lambda: json.loads(cli(1, "plan", "--json")[1])["silent"] == ["n2"], "n1 knows")
        silent = "n2 does not answer: wait, remove what will never return, or commit with --force"
        assert cli(1, "commit")[2].startswith(f"cartwheel: ERR {silent}")
        text = "committed: n2 has weight 2; n1 moves to zone b, host 127.0.0.1"
        assert cli(1, "commit", "--force") == (0, f"{text}\n{NEXT_TRANSFERS}", "")
        assert cli(1, "replace", "n2", "n3")[2].endswith("'n3' has not asked to join: start it with --join first")
        assert cli(1, "safe-to-stop", "n1")[0] == 1
        cluster.start(2)
        cluster.wait_whole()
        cluster.wait_settled([1, 2])
        assert cli(2, "transfers", "--wait") == (0, DONE.strip(), "")
        assert [line.split()[-4:] for line in cli(2, "history")[1].splitlines()[-1:]] == [
            ["n1", "committed", "2", "changes"]
        ]
        cli(1, "remove", "n1")
        cli(1, "remove", "n2")
        cluster.wait_staged("n2 is removed", 2)
        code, _, error = cli(2, "plan")
        assert (code, error) == (1, "refused: no member is left")
