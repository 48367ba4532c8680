"""Durabilities measured side by side: what is made of the figures, and the whole against a small server."""

import json
from xml.etree import ElementTree

import pytest
from click.testing import CliRunner
from tests.bench.resp_server import RespServer

from cartwheel.bench.command import bench
from cartwheel.bench.durability import Turn, compared, counts_of
from cartwheel.bench.options import BenchOptions
from cartwheel.bench.plot import blocks, round_up, svg
from cartwheel.bench.result import Report, encoded_histogram, merge


def turn(durability, number, latencies_us):
    """A turn with these latencies of writes, all in one window."""
    counts = {latency: latencies_us.count(latency) for latency in latencies_us}
    report = Report(len(latencies_us), 0, {}, 0, 1.0, 0.1, [[{}, counts]])
    return Turn(durability, number, merge(BenchOptions(series_s=1.0), [report]))


def test_ratios_are_the_median_of_the_rounds():
    """Each round's own: sync is 2, 4 and 8 times as slow here. What is shown of the latencies is that of all rounds."""
    turns = [turn("one", number, [1000, 1000]) for number in range(3)]
    turns += [turn("sync", number, [us, us]) for number, us in enumerate((2000, 8000, 4000))]
    figures = compared(["sync", "one"], turns)
    assert list(figures) == ["sync", "one"]
    assert (figures["one"].mean_ratio, figures["one"].p99_9_ratio) == (4.0, 4.0)
    assert (figures["sync"].mean_ratio, figures["sync"].p99_9_ratio) == (1.0, 1.0)
    assert figures["sync"].writes.count == 6
    assert figures["sync"].writes.max_ms == pytest.approx(8.0, rel=0.01)
    assert figures["sync"].series_p99_9_ms == [2.0, 8.0, 4.0]


def test_a_round_that_not_all_have_run_is_left_out():
    """After an interrupt the last round is not whole; without a whole one there is nothing to compare."""
    turns = [turn("sync", 0, [1000]), turn("one", 0, [1000]), turn("sync", 1, [9000])]
    assert compared(["sync", "one"], turns)["sync"].writes.max_ms == pytest.approx(1.0, rel=0.01)
    assert compared(["sync", "one"], turns[2:]) == {}


def test_a_histogram_gives_its_counts_back():
    """To three digits."""
    counts = {7: 2, 950: 1, 123_456: 5}
    found = counts_of(encoded_histogram(counts))
    assert list(found.values()) == [2, 1, 5]
    assert list(found) == [pytest.approx(value, rel=0.001) for value in counts]


def test_blocks():
    """All on one scale; nothing at all is flat."""
    assert blocks([0, 1, 2, 4], 4) == "▁▃▅█"
    assert blocks([0, 0], 0) == "▁▁"


@pytest.mark.parametrize(("value", "rounded"), [(0, 1), (0.3, 0.5), (1, 1), (17, 20), (99, 100), (101, 200)])
def test_the_axis_ends_at_a_round_number(value, rounded):
    """Not below the highest value."""
    assert round_up(value) == pytest.approx(rounded)


def test_the_svg_is_well_formed():
    """A line for each series, also for an empty one."""
    root = ElementTree.fromstring(svg("a < b", {"sync": [1, 2, 3], "one": []}, step_s=0.5))
    lines = [each for each in root if each.tag.endswith("polyline")]
    assert [len(line.get("points").split()) for line in lines] == [3, 0]
    assert [each.text for each in root if each.text and "s" in each.text][-2] == "1 s"


class Cluster:
    """What the benchmark needs of a node: buckets with a durability, beside what the small server can do."""

    def __init__(self):
        self.durability = {}
        self.selected = []

    def answer(self, server, command):
        match command:
            case [b"SELECT", bucket]:
                self.selected.append(bucket.decode())
                return b"+OK\r\n"
            case [b"CW.BUCKET", b"SET", bucket, b"durability", durability]:
                self.durability[bucket] = durability.decode()
                return b"+OK\r\n"
            case [b"CW.BUCKET", b"GET", bucket, b"JSON"]:
                told = json.dumps({"durability": self.durability[bucket]}).encode()
                return b"$%d\r\n%b\r\n" % (len(told), told)
        return server.honest(command)


FAST = ("--connections", "2", "--keys", "20", "--duration", "0.2", "--warmup", "0", "--no-progress")


def run(*args):
    return CliRunner().invoke(bench, args)


def test_each_durability_has_its_turns_in_a_bucket_of_its_own():
    """Filled once, the peak measured on the first; then in turns, beginning with another one each round, at half of it."""
    cluster = Cluster()
    with RespServer(cluster.answer) as server:
        done = run("--node", server.address, "--durability", "sync,one", "--rounds", "2", "--json", *FAST)
    assert done.exit_code == 0, done.stderr
    figures = json.loads(done.stdout)
    assert cluster.durability == {b"bench-sync": "sync", b"bench-one": "one"}
    order = [bucket.removeprefix("bench-") for bucket in cluster.selected[::2]]  # each of two connections selects
    assert order == ["sync", "one", "sync", "sync", "one", "one", "sync"]
    assert [(each["durability"], each["round"]) for each in figures["turns"]] == [
        ("sync", 0), ("one", 0), ("one", 1), ("sync", 1),
    ]  # fmt: skip
    assert figures["rate_per_s"] == figures["peak_per_s"] / 2
    assert list(figures["compared"]) == ["sync", "one"]
    assert figures["compared"]["one"]["writes"]["count"] > 0
    assert figures["errors"] == {}


def test_the_table_and_the_plot(tmp_path):
    """For people: a row and a line for each durability, and the plot as a file."""
    file = tmp_path / "figure5.svg"
    with RespServer(Cluster().answer) as server:
        arguments = ("--durability", "--rounds", "1", "--rate", "500", "--svg", str(file), "--node", server.address)
        done = run(*arguments, *FAST)
    assert done.exit_code == 0, done.stderr
    lines = done.stdout.splitlines()
    assert [line.split()[0] for line in lines if line.startswith(("sync", "one", "os"))] == ["sync", "one", "os"] * 2
    assert ElementTree.parse(file).getroot().tag.endswith("svg")


def test_a_server_without_buckets_cannot_be_compared():
    """The error says what was refused."""
    with RespServer() as server:
        done = run("--node", server.address, "--durability", "sync,os", *FAST)
    assert done.exit_code == 1
    assert "cannot set durability=sync: ERR unknown command" in done.stderr


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--durability", "sync,fast"], "durability 'fast' is none of sync, one, os, memory"),
        (["--durability", "sync,sync"], "each durability is named once"),
        (["--durability", "sync", "--workload", "get"], "durability is measured on writes"),
        (["--durability", "sync", "--requests", "9"], "durability is measured on writes, for a time"),
        (["--durability", "sync", "--bucket", "b"], "in buckets of its own"),
        (["--durability", "sync", "--rounds", "0"], "not in the range"),
        (["--svg", "x.svg"], "--svg goes with --durability"),
    ],
)
def test_wrong_options(args, message):
    """Each row is told what is wrong with it, with exit status 2."""
    done = run(*args)
    assert done.exit_code == 2
    assert message in done.stderr


def test_a_bucket_is_selected_on_each_connection():
    """Also on one that was opened anew."""
    cluster = Cluster()
    with RespServer(cluster.answer) as server:
        done = run("--node", server.address, "--bucket", "carts", "--requests", "100", *FAST)
    assert done.exit_code == 0, done.stderr
    assert cluster.selected == ["carts", "carts"]


def test_a_bucket_that_is_refused():
    """No connection can be opened: the benchmark ends, and says so."""
    with RespServer() as server:
        done = run("--node", server.address, "--bucket", "a b", "--requests", "9", "--timeout", "0.5", *FAST)
    assert done.exit_code == 1
    assert "only 0 of 2 connections could be opened" in done.stderr
