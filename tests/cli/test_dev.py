"""``cartwheel dev`` and the client commands, end to end: real processes, real sockets, real disks."""

import base64
import json
import os
import signal
import subprocess
import sys

import pytest
from tests.cli.harness import Dev, alive, cartwheel, environment, free_base_port, wait_until

from cartwheel.client.resp import Connection, ReplyError


@pytest.fixture(scope="module")
def dev(tmp_path_factory):
    """A local cluster of three nodes that all tests of this module may use, and leave whole."""
    running = Dev(tmp_path_factory.mktemp("home") / "dev").wait_ready()
    yield running
    pids = running.pids()
    assert running.end() == 0
    assert not any(map(alive, pids))


@pytest.fixture
def start_dev():
    """Start local clusters that end with the test, whatever its outcome."""
    started = []

    def start(*arguments, **options):
        started.append(Dev(*arguments, **options))
        return started[-1]

    yield start
    for running in started:
        running.end()


# --- what it prints, and values ---


def test_ready_says_where_and_what_to_try(dev):
    """A line that begins with ``ready``, all addresses, three things to try, and where the data are."""
    text = dev.output.read_text()
    assert any(line.startswith("ready") for line in text.splitlines())
    for node in (1, 2, 3):
        assert dev.address(node) in text
    for words in ("Three things to try", "redis-cli", "demo cart", "dev kill 2", "Ctrl-C", str(dev.directory)):
        assert words in text


def test_put_through_one_node_get_through_another(dev):
    """And the same through plain Redis commands."""
    assert dev.at(1, "put", "greeting", "hello").returncode == 0
    assert dev.at(3, "get", "greeting").stdout == "hello\n"
    with Connection("127.0.0.1", dev.port + 10) as connection:
        assert connection.call("GET", "greeting") == b"hello"
        connection.call("SET", "plain", "1")
    assert dev.at(3, "get", "plain").stdout == "1\n"


def test_values_are_bytes(dev):
    """From standard input, to standard output, and as base64 in JSON."""
    value = bytes(range(256))
    assert dev.at(1, "put", "bytes", "-", stdin=value).returncode == 0
    assert dev.at(2, "get", "bytes", "--raw", stdin=b"unread").stdout == value
    siblings = json.loads(dev.at(2, "get", "bytes", "--json").stdout)["siblings"]
    assert [base64.b64decode(sibling["value_base64"]) for sibling in siblings] == [value]


def test_siblings_are_shown_with_a_way_out(dev):
    """Two puts without a context stand side by side; one with the context of both replaces them."""
    dev.at(1, "put", "twins", "a")
    dev.at(2, "put", "twins", "b")
    shown = dev.at(3, "get", "twins")
    assert shown.returncode == 0
    assert {line[3:] for line in shown.stdout.splitlines()[:2]} == {"a", "b"}
    assert shown.stdout.startswith("1) ")
    assert "2 siblings" in shown.stderr
    assert "--context" in shown.stderr
    assert dev.at(3, "get", "twins", "--raw").returncode == 1
    context = shown.stdout.splitlines()[2].removeprefix("context ")
    assert context == json.loads(dev.at(3, "get", "twins", "--json").stdout)["context"]
    assert dev.at(2, "put", "twins", "ab", "--context", context, "--w", "3").returncode == 0
    assert dev.at(1, "get", "twins").stdout == "ab\n"


def test_a_context_of_another_key_is_refused(dev):
    """One line, exit code 1."""
    context = json.loads(dev.at(1, "put", "mine", "x", "--json").stdout)["context"]
    refused = dev.at(1, "put", "yours", "y", "--context", context)
    assert refused.returncode == 1
    assert "BADCONTEXT" in refused.stderr
    assert refused.stderr.count("\n") == 1


def test_missing_and_deleted_keys_are_exit_code_1(dev):
    """``get`` and ``del`` both say so, and keep standard output clean."""
    dev.at(1, "put", "brief", "x")
    assert dev.at(2, "del", "brief").returncode == 0
    for command in ("get", "del"):
        done = dev.at(3, command, "brief")
        assert (done.returncode, done.stdout) == (1, "")
        assert "brief is not there" in done.stderr
    done = dev.at(3, "get", "brief", "--json")
    assert (done.returncode, json.loads(done.stdout)["siblings"]) == (1, [])


def test_del_with_a_context_leaves_what_it_does_not_cover(dev):
    """The concurrent write stays."""
    context = json.loads(dev.at(1, "put", "half", "old", "--json").stdout)["context"]
    dev.at(2, "put", "half", "new")
    assert dev.at(3, "del", "half", "--context", context).returncode == 0
    assert dev.at(1, "get", "half").stdout == "new\n"


def test_keys_expire_and_buckets_are_apart(dev):
    """``--ex`` and ``--bucket`` reach the node."""
    dev.at(1, "put", "lasting", "in 5", "--ex", "1000", "--bucket", "5")
    assert dev.at(2, "get", "lasting", "--bucket", "5").stdout == "in 5\n"
    assert dev.at(2, "get", "lasting").returncode == 1
    with Connection("127.0.0.1", dev.port) as connection:
        connection.call("SELECT", "5")
        ttl = connection.call("TTL", "lasting")
        assert isinstance(ttl, int)
        assert 900 < ttl <= 1000


# --- the cluster ---


def test_explain_ring_and_status_for_people(dev):
    """They name the nodes, and status is content."""
    dev.at(1, "put", "shown", "x")
    explained = dev.at(2, "explain", "shown").stdout
    assert "position" in explained
    assert "all replicas hold the same" in explained
    ring = dev.at(2, "ring")
    assert "1024 partitions" in ring.stdout
    assert "33." in ring.stdout
    status = dev.at(3, "status")
    assert status.returncode == 0, status.stderr
    assert "seen by n3" in status.stdout
    assert [line.split() for line in status.stdout.splitlines() if line.count("up") == 2] == [
        ["n1", "-", "up", "up"],
        ["n2", "up", "-", "up"],
        ["n3", "up", "up", "-"],
    ]
    for text in (explained, ring.stdout, status.stdout):
        assert all(node in text for node in ("n1", "n2", "n3"))
        assert "\x1b" not in text


def test_bucket_properties(dev):
    """Set on one node, in force on the others soon, refused when they make no sense."""
    assert "w=1" in dev.at(1, "bucket", "set", "quick", "w=1", "durability=os").stdout.splitlines()
    wait_until(
        lambda: json.loads(dev.at(3, "bucket", "get", "quick", "--json").stdout)["w"] == 1, "the change reaches n3"
    )
    refused = dev.at(1, "bucket", "set", "quick", "w=9")
    assert refused.returncode == 1
    assert "between 1 and 3" in refused.stderr
    assert "quick" in dev.at(1, "bucket", "list").stdout.splitlines()


def test_all_json_parses(dev):
    """Whatever prints data has ``--json``, and it is one document."""
    dev.at(1, "put", "j", "x", "--bucket", "json")
    shown = {
        command: json.loads(dev.at(1, *command.split(), "--json").stdout)
        for command in (
            "get j --bucket json", "put k y --bucket json", "del k --bucket json", "explain j --bucket json", "status",
            "ring", "bucket list", "bucket get json", "bucket set json n=2 r=1 w=2", "demo cart",
        )
    }  # fmt: skip
    shown["dev status"] = json.loads(dev.lever("status", "--json").stdout)
    assert shown["get j --bucket json"]["siblings"] == [{"value": "x"}]
    assert shown["bucket set json n=2 r=1 w=2"]["n"] == 2
    assert len(shown["status"]["members"]) == len(shown["ring"]["members"]) == 3
    assert set(shown["explain j --bucket json"]["replicas"]) == {"n1", "n2", "n3"}
    assert shown["demo cart"]["kept_both"] is True
    assert [node["state"] for node in shown["dev status"]["nodes"]] == ["serving"] * 3


def test_the_demo_keeps_both_items_and_cleans_up(dev):
    """The paper's section 4.4, with siblings, and the honest end: a removed item comes back."""
    done = dev.run("demo", "cart", "--node", dev.address(1), "--node", dev.address(2))
    assert done.returncode == 0, done.stderr
    assert '["bread", "milk"]  |  ["eggs", "milk"]' in done.stdout
    assert '["bread", "eggs", "milk", "tea"]' in done.stdout
    assert "resurface" in done.stdout
    key = next(word for word in done.stdout.split() if word.startswith("demo:cart:")).rstrip(".")
    assert dev.at(3, "get", key).returncode == 1


# --- the levers ---


def test_a_killed_node_is_missed_and_comes_back(dev):
    """Reads and writes go on meanwhile; both status commands tell, by text and exit code."""
    assert dev.lever("kill", "2").returncode == 0
    row = dev.status()["n2"]
    assert (row["state"], row["pid"], row["exit_code"]) == ("killed", None, -9)
    for number in range(3):
        assert dev.at(1, "put", f"without-{number}", "x").returncode == 0
        assert dev.at(3, "get", f"without-{number}").stdout == "x\n"
    wait_until(lambda: dev.at(1, "status").returncode == 1, "n1 misses n2")
    assert "n1 cannot reach n2" in dev.at(1, "status").stderr
    assert dev.lever("status").returncode == 1
    assert "killed" in dev.lever("status").stdout
    assert dev.lever("start", "n2").returncode == 0
    dev.wait_whole()
    wait_until(lambda: dev.at(1, "status").returncode == 0, "all find each other up")
    assert dev.lever("status").returncode == 0
    assert dev.said("n2 killed")


def test_a_paused_node_freezes_and_goes_on(dev):
    """Its process stays; what was written meanwhile is readable through it afterwards."""
    pid = dev.status()["n3"]["pid"]
    assert dev.lever("pause", "3", "--json").returncode == 0
    assert dev.status()["n3"]["state"] == "paused"
    wait_until(lambda: dev.at(1, "put", "meanwhile", "x").returncode == 0, "a put without n3")

    def views():
        return json.loads(dev.at(1, "status", "--json").stdout)["views"]

    wait_until(lambda: views()["n1"]["n3"]["state"] in {"silent", "unreachable"}, "n1 misses n3")
    assert views()["n1"]["n2"]["state"] == views()["n2"]["n1"]["state"] == "up"
    assert "error" in views()["n3"]
    assert "n3 is paused, not running" in dev.lever("pause", "3").stderr
    assert dev.lever("resume", "3").returncode == 0
    dev.wait_whole()
    assert dev.status()["n3"]["pid"] == pid
    assert dev.at(3, "get", "meanwhile").returncode == 0


def test_a_stopped_node_ends_cleanly(dev):
    """Also a paused one: exit code 0, and its data are there when it starts again."""
    dev.at(1, "put", "kept", "x")
    assert dev.lever("pause", "1").returncode == 0
    assert dev.lever("stop", "1").returncode == 0
    assert (dev.status()["n1"]["state"], dev.status()["n1"]["exit_code"]) == ("stopped", 0)
    assert dev.lever("start", "1").returncode == 0
    dev.wait_whole()
    assert dev.at(1, "get", "kept").stdout == "x\n"


def test_a_node_that_dies_by_itself_is_reported(dev):
    """With the way to bring it back."""
    os.kill(dev.status()["n2"]["pid"], signal.SIGKILL)
    wait_until(lambda: dev.said("n2 was ended by signal 9"), "the supervisor notices")
    assert "cartwheel dev start n2" in dev.said("n2 was ended by signal 9")
    assert dev.status()["n2"]["state"] == "died"
    assert dev.lever("start", "2").returncode == 0
    dev.wait_whole()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["kill", "9"], "there is no node n9 here, only n1, n2, n3"),
        (["start", "1"], "n1 is running already"),
        (["resume", "1"], "n1 is running, not paused"),
        (["logs", "9"], "there is no log"),
    ],
)
def test_levers_that_make_no_sense(dev, arguments, words):
    """One line, exit code 1, nothing changed."""
    done = dev.lever(*arguments)
    assert (done.returncode, done.stdout) == (1, "")
    assert words in done.stderr
    assert done.stderr.count("\n") == 1


def test_logs_print_and_follow(dev):
    """What a node printed, and what it prints next, until Ctrl-C."""
    assert "node n1 of cluster dev is serving" in dev.lever("logs", "1").stdout
    seen = dev.home / "followed"
    with seen.open("wb") as output:
        following = subprocess.Popen(
            [sys.executable, "-m", "cartwheel", "dev", "logs", "n1", "-f", "--data", str(dev.directory)],
            stdout=output,
            stderr=subprocess.DEVNULL,
            env=environment(dev.home),
            # Who runs the tests in the background of a script has SIGINT ignored, and children inherit that.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509 - we have no threads
        )
    wait_until(lambda: b"is serving" in seen.read_bytes(), "the log so far")
    with (dev.directory / "n1" / "log").open("ab") as log:
        log.write(b"one more line\n")
    wait_until(lambda: b"one more line" in seen.read_bytes(), "what came later")
    following.send_signal(signal.SIGINT)
    assert following.wait(20) == 130


# --- starting and ending ---


def test_a_second_supervisor_is_refused(dev):
    """Of one directory there is one cluster at a time."""
    done = dev.run("dev", "--data", dev.directory)
    assert done.returncode == 1
    assert "is running in" in done.stderr
    done = dev.run("dev", "--data", dev.directory, "--fresh")
    assert done.returncode == 1
    assert dev.at(1, "status").returncode == 0


def test_a_busy_port_is_named(dev, tmp_path):
    """Which one, for whom, and what to do; nothing is left behind but an empty directory of ours."""
    done = cartwheel("dev", "--data", tmp_path / "other", "--port", dev.port, home=tmp_path)
    assert done.returncode == 1
    assert f"port {dev.port} is in use, and n1 needs it for Redis clients" in done.stderr
    assert "--port" in done.stderr
    done = cartwheel("start", "--data", tmp_path / "one", "--resp-port", dev.port, "--peer-port", free_base_port(1),
                     home=tmp_path)  # fmt: skip
    assert done.returncode == 1
    assert f"{dev.port} (resp_port, from --resp-port) is in use" in done.stderr
    assert "Traceback" not in done.stderr


def test_data_outlive_a_run_until_fresh(tmp_path, start_dev):
    """SIGTERM ends it, too. A cluster that exists cannot be run as another one."""
    first = start_dev(tmp_path / "dev", nodes=2).wait_ready()
    pids = first.pids()
    assert first.at(1, "put", "k", "v").returncode == 0
    assert first.end(signal.SIGTERM) == 0
    assert not any(map(alive, pids))
    assert not (first.directory / "dev.sock").exists()
    for option, value in (("--nodes", "3"), ("--port", "9000"), ("--engine", "lmdb")):
        done = first.run("dev", "--data", first.directory, option, value)
        assert done.returncode == 2
        assert option in done.stderr
        assert "--fresh" in done.stderr
    second = start_dev(first.directory, port=first.port, nodes=2).wait_ready()
    assert second.at(2, "get", "k").stdout == "v\n"
    assert second.end() == 0
    third = start_dev(first.directory, "--fresh", "--engine", "memory", nodes=1).wait_ready()
    assert third.at(1, "get", "k").returncode == 1
    assert third.at(1, "put", "k", "w").returncode == 0
    assert third.end(signal.SIGHUP) == 0


def test_ctrl_c_while_the_nodes_start(tmp_path, start_dev):
    """It ends like any other time."""
    running = start_dev(tmp_path / "dev")

    def started():
        file = running.directory / "dev.json"
        return [node["pid"] for node in json.loads(file.read_text())["nodes"] if node["pid"]] if file.exists() else []

    pids = wait_until(started, "the first node is there")
    assert running.end() == 0
    assert not running.said("ready")
    assert not any(map(alive, pids))


@pytest.mark.parametrize("options", [[], ["--fresh"]])
@pytest.mark.parametrize("content", ["holiday.jpg", "n1/holiday.jpg", "dev.json"])
def test_a_foreign_directory_is_not_touched(tmp_path, options, content):
    """Neither wiped nor written to."""
    precious = tmp_path / "pictures" / content
    precious.parent.mkdir(parents=True)
    precious.write_bytes(b"{}")
    done = cartwheel("dev", "--data", tmp_path / "pictures", *options, home=tmp_path)
    assert done.returncode == 2
    assert "--data" in done.stderr
    files = [path for path in (tmp_path / "pictures").rglob("*") if path.is_file()]
    assert files == [precious]
    assert precious.read_bytes() == b"{}"


def test_no_node_outlives_a_killed_supervisor(tmp_path, start_dev):
    """Not even a paused one. The next run finds all data."""
    first = start_dev(tmp_path / "dev").wait_ready()
    pids = first.pids()
    assert first.at(1, "put", "k", "v").returncode == 0
    assert first.lever("pause", "3").returncode == 0
    first.end(signal.SIGKILL)
    wait_until(lambda: not any(map(alive, pids)), "the nodes end by themselves")
    assert "no cluster is running" in first.lever("status").stderr
    second = start_dev(first.directory, port=first.port).wait_ready()
    assert second.at(1, "get", "k").stdout == "v\n"


def test_what_an_earlier_run_left_is_stopped_first(tmp_path, start_dev):
    """A process of ours, that is; not another one that has its number by now."""
    first = start_dev(tmp_path / "dev", nodes=2).wait_ready()
    assert first.end() == 0
    wait = [sys.executable, "-c", "import time; time.sleep(600)"]
    with subprocess.Popen([*wait, str(first.directory / "n1" / "data")]) as ours, subprocess.Popen(wait) as foreign:
        try:
            state = json.loads((first.directory / "dev.json").read_text())
            state["nodes"][0]["pid"], state["nodes"][1]["pid"] = ours.pid, foreign.pid
            (first.directory / "dev.json").write_text(json.dumps(state))
            second = start_dev(first.directory, port=first.port, nodes=2).wait_ready()
            assert second.said(f"stopping n1 (process {ours.pid})")
            assert ours.wait(20) == -signal.SIGTERM
            assert foreign.poll() is None
        finally:
            ours.kill()
            foreign.kill()


def test_a_node_that_cannot_start_ends_the_cluster(tmp_path, start_dev):
    """With its last words on the screen."""
    first = start_dev(tmp_path / "dev", nodes=2).wait_ready()
    assert first.end() == 0
    (first.directory / "n2" / "data" / "CARTWHEEL").write_text("nonsense")
    again = start_dev(first.directory, port=first.port, nodes=2)
    wait_until(lambda: again.process.poll() is not None, "it gives up")
    assert again.end() == 1
    assert again.said("n2 did not start")
    assert again.said("is damaged")
    assert not any(alive(node["pid"]) for node in json.loads((first.directory / "dev.json").read_text())["nodes"]
                   if node["pid"])  # fmt: skip


# --- cartwheel start ---


def test_one_node_by_itself(tmp_path, request):
    """It says where it serves, ends cleanly on SIGTERM, and keeps its secret: a context is good after a restart."""
    port = free_base_port(1)
    flags = ["--resp-port", str(port), "--peer-port", str(port + 2), "--data", str(tmp_path / "data")]
    context = ""
    for life in range(2):
        output = tmp_path / f"out{life}"
        with output.open("wb") as file:
            process = subprocess.Popen(
                [sys.executable, "-m", "cartwheel", "start", *flags],
                stdout=file,
                stderr=file,
                env=environment(tmp_path),
            )
        request.addfinalizer(process.kill)
        wait_until(lambda: b"is serving" in output.read_bytes() or process.poll() is not None, "ready")  # noqa: B023
        text = output.read_text()
        assert f"127.0.0.1:{port}" in text
        assert str(tmp_path / "data") in text
        assert (tmp_path / "data" / "secret").stat().st_mode & 0o777 == 0o600
        with Connection("127.0.0.1", port) as connection:
            option = ["CONTEXT", context] if context else []
            reply = connection.call("CW.PUT", "k", f"life {life}", *option)
            assert isinstance(reply, bytes)
            context = reply.decode()
            with pytest.raises(ReplyError, match=r"allow-flush"):
                connection.call("FLUSHALL")
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0
    shown = cartwheel("start", *flags, "--show-settings", home=tmp_path, environ={"CARTWHEEL_Q": "64"})
    assert "q = 64    (CARTWHEEL_Q)" in shown.stdout.splitlines()
    assert f"resp_port = {port}    (--resp-port)" in shown.stdout.splitlines()
    assert "secret = " not in shown.stdout


# --- cartwheel hints ---


def test_hints_are_listed_until_they_are_delivered(tmp_path, start_dev):
    """A node is away and others keep what is written meanwhile; when it is back it gets that, and the list is empty."""
    running = start_dev(tmp_path / "dev", nodes=4).wait_ready()
    running.wait_whole()
    calm = running.at(1, "hints")
    assert (calm.returncode, calm.stdout, calm.stderr) == (0, "no hints are kept\n", "")
    assert running.lever("kill", "4").returncode == 0
    for number in range(20):
        assert running.at(1, "put", f"key{number}", "v").returncode == 0
    told = running.at(2, "hints", "--json")
    assert told.returncode == 1, "one member does not answer"
    holders = json.loads(told.stdout)
    assert list(holders) == ["n1", "n2", "n3", "n4"]
    assert "error" in holders.pop("n4")
    kept = [each for rows in holders.values() for each in rows]
    assert {each["intended"] for each in kept} == {"n4"}
    assert sum(each["hints"] for each in kept) > 0
    shown = running.at(2, "hints")
    assert shown.returncode == 1
    assert "n4 did not answer" in shown.stderr
    assert "unreachable" in shown.stdout
    assert running.lever("start", "4").returncode == 0
    wait_until(lambda: running.at(2, "hints").stdout == "no hints are kept\n", "all hints are delivered")
    wait_until(lambda: running.at(2, "hints").returncode == 0, "all members answer")
