"""CW.CLUSTER: who is in the ring, as the door takes it."""

from __future__ import annotations

import json

import pytest
from tests.resp.door import Bare, running_door


@pytest.fixture
def node(tmp_path):
    """A connection to a whole node, alone in its cluster."""
    with running_door(tmp_path / "node") as door, Bare(door.port) as client:
        yield client


@pytest.fixture
def double():
    """A connection to a door over the double, and its gateway."""
    with running_door() as door, Bare(door.port) as client:
        client.gateway = door.gateway
        yield client


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["LEAVE", "n1"], "staged: n1 leaves"),
        (["REMOVE", "n1"], "staged: n1 is removed for ever"),
        (["WEIGHT", "n1", "2.5"], "staged: n1 has weight 2.5"),
        (["ZONE", "n1", "b"], "staged: n1 moves to zone b, host h1"),
        (["ZONE", "n1", "b", "h2"], "staged: n1 moves to zone b, host h2"),
        (["ZONE", "n1", ""], "staged: n1 moves to zone -, host h1"),
        (["DOUBLE"], "staged: the ring has twice as many partitions"),
    ],
)
def test_staged_shown_and_abandoned(node, words, text):
    """Each change is staged in words, once; it stands in the plan; and can be dropped."""
    assert node.ask("CW.CLUSTER", *words) == text.encode()
    assert node.error("CW.CLUSTER", *words).startswith("ERR that is staged already: ")
    assert json.loads(node.ask("CW.CLUSTER", "PLAN", "JSON"))["changes"] == [text.removeprefix("staged: ")]
    assert node.ask("CW.CLUSTER", "ABANDON") == text.replace("staged", "abandoned").encode()
    assert node.error("CW.CLUSTER", "ABANDON") == "ERR nothing is staged"
    assert node.error("CW.CLUSTER", "COMMIT") == "ERR nothing is staged"


def test_a_commit_carries_out_the_plan_that_was_seen(node):
    """With another digest, or a plan that would be refused, nothing happens."""
    node.ask("CW.CLUSTER", "WEIGHT", "n1", "2")
    seen = json.loads(node.ask("CW.CLUSTER", "PLAN", "JSON"))
    assert seen["plan"]["shares"][0]["weight"] == 2.0
    node.ask("CW.CLUSTER", "ZONE", "n1", "b")
    refused = node.error("CW.CLUSTER", "COMMIT", "DIGEST", seen["digest"])
    assert refused.startswith("ERR the plan has changed (it is ")
    assert refused.endswith(f", not {seen['digest']}): look at it again")
    now = json.loads(node.ask("CW.CLUSTER", "PLAN", "JSON"))["digest"]
    text = b"committed: n1 has weight 2; n1 moves to zone b, host h1"
    assert node.ask("CW.CLUSTER", "COMMIT", "FORCE", "DIGEST", now) == text
    history = json.loads(node.ask("CW.CLUSTER", "HISTORY", "JSON"))
    assert [row["change"] for row in history][-3:] == [
        "n1 has weight 2",
        "n1 moves to zone b, host h1",
        "committed 2 changes",
    ]
    assert (history[0]["at_ms"], history[-1]["at_ms"] > 0) == (0, True)
    assert {row["author"] for row in history} == {"n1"}
    node.ask("CW.CLUSTER", "LEAVE", "n1")
    assert node.error("CW.CLUSTER", "COMMIT") == "ERR refused: no member is left"


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["LEAVE", "n9"], "'n9' is no member; members are n1"),
        (["WEIGHT", "n9", "1"], "'n9' is no member; members are n1"),
        (["ZONE", "n9", "a"], "'n9' is no member; members are n1"),
        (["REMOVE", "n9"], "'n9' is no member, and never was"),
        (["REPLACE", "n9", "n1"], "'n9' is no member; members are n1"),
        (["REPLACE", "n1", "n9"], "'n9' has not asked to join: start it with --join first"),
        (["REPLACE", "n1", "n9", "ALIVE"], "syntax error: unexpected 'ALIVE', CW.CLUSTER REPLACE knows DEAD"),
        (["WEIGHT", "n1", "heavy"], "the weight must be a number, not 'heavy'"),
        (["WEIGHT", "n1", "0"], "a weight must be between 0.01 and 10000, not 0.0"),
        (["WEIGHT", "n1", "nan"], "a weight must be between 0.01 and 10000, not nan"),
        (["ZONE", "n1", "z" * 300], f"the zone is longer than 255 bytes: '{'z' * 40}'..."),
        (["COMMIT", "DIGEST"], "syntax error: DIGEST needs a value"),
        (["COMMIT", "NOW"], "syntax error: unexpected 'NOW', CW.CLUSTER COMMIT knows DIGEST FORCE"),
        (["PLAN", "TEXT"], "syntax error: unexpected 'TEXT', CW.CLUSTER PLAN knows JSON"),
        (["HISTORY", "JSON", "JSON"], "syntax error: unexpected 'JSON', CW.CLUSTER HISTORY knows JSON"),
        (["LEAVE"], "wrong number of arguments for 'cw.cluster|leave' command"),
        (["EXPLODE"], "unknown subcommand 'EXPLODE'. Try CW.CLUSTER HELP."),
        (["JOIN", "nowhere"], "'nowhere' is not HOST:PORT, such as 10.0.0.1:7702"),
        (["JOIN", "h:70000"], "'h:70000' is not HOST:PORT, such as 10.0.0.1:7702"),
    ],
)
def test_what_makes_no_sense_is_refused(node, words, text):
    """Each row: these words, this error; and nothing is staged."""
    assert node.error("CW.CLUSTER", *words) == f"ERR {text}"
    assert json.loads(node.ask("CW.CLUSTER", "PLAN", "JSON"))["changes"] == []


def test_a_node_alone_and_empty_asks_to_join(node):
    """It serves nobody until it is let in. One that holds data must not lose them so."""
    node.ask("SET", "k", "v")
    holds = "ERR n1 holds data of its own: start it on an empty directory with --join"
    assert node.error("CW.CLUSTER", "JOIN", "127.0.0.1:1") == holds


def test_nobody_is_there_to_be_joined(node):
    """A seed that does not answer, or cannot, takes no node down."""
    for address in ("127.0.0.1:1", "no-such-host.invalid:7702", f"{'long' * 40}:7702"):
        told = node.ask("CW.CLUSTER", "JOIN", address)
        assert told == b"n1 asks to join; look at 'cartwheel cluster plan' at a member"
    assert node.error("SET", "k", "v") == "NOQUORUM n1 is no member of the cluster; ask one that is"
    assert node.error("CW.CLUSTER", "LEAVE", "n1") == "ERR n1 is no member of the cluster: ask one that is"
    assert node.error("CW.BUCKET", "SET", "b", "w", "1").startswith("ERR n1 is no member of the cluster")
    assert json.loads(node.ask("CW.STATUS", "JSON"))["notes"] == ["n1 is no member of a cluster yet"]


def test_safe_to_stop(node):
    """The only node may not be stopped, and an unknown one is not known."""
    reasons = ["1024 partitions (n=3) would have fewer than W=1 owners that answer"]
    told = json.loads(node.ask("CW.CLUSTER", "SAFETOSTOP", "n1", "JSON"))
    assert told == [reasons[0].replace("1024", "16")]
    assert node.ask("CW.CLUSTER", "SAFETOSTOP", "n9") == [b"n9 is not known here"]


def test_seeds_reach_the_node(double):
    """CW.CLUSTER JOIN hands the address on."""
    assert double.ask("CW.CLUSTER", "JOIN", "10.0.0.1:7702") == b"ClientJoin"
    assert double.gateway.seeds == ["10.0.0.1:7702"]


def test_plain_replies(node):
    """Without JSON, plan and history are nested arrays."""
    plan = node.ask("CW.CLUSTER", "PLAN")
    assert plan[plan.index(b"changes") + 1] == []
    assert b"n1 joins (127.0.0.1:7702, weight 1)" in node.ask("CW.CLUSTER", "HISTORY")[0]
