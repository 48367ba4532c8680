"""Figures and pictures from operations, and what the file of a history refuses."""

from __future__ import annotations

import xml.etree.ElementTree as ET

import pytest

from cartwheel.chaos import picture
from cartwheel.chaos.history import (
    STRANGE,
    End,
    Fault,
    Final,
    Kind,
    Op,
    Run,
    Trouble,
    Writer,
    parse_value,
    read_lines,
    value_bytes,
)
from cartwheel.chaos.measure import Measured, latency, merge_spans, quiet_spans
from cartwheel.chaos.report import report_on
from cartwheel.core.errors import ConfigError
from cartwheel.sim.history import Status

RUN = Run(
    version="1", seed=7, nodes=["n1", "n2", "n3"], engine="rocksdb", rate_per_s=800.0, clients=4, seconds=10.0, plan=[],
    disk_lost=False,
)  # fmt: skip


def op(seq, at, took=0.002, *, kind=Kind.GET, key="k", status=Status.OK, **fields):
    return Op(seq=seq, process=0, kind=kind, key=key, node="n1", at=at, end=at + took, status=status, **fields)


def history(tmp_path, *lines, end=True):
    """A file of these lines, with a first and a last one."""
    path = tmp_path / "history.jsonl"
    writer = Writer(path)
    for line in [RUN, *lines, *([End(0.0, 10.0, 1.5)] if end else [])]:
        writer.write(line)
    writer.close()
    return path


def busy(*, per_s=400, seconds=10, kill=None):
    """Gets, so many a second; one in ten fails in the second of the kill."""
    lines = []
    for number in range(per_s * seconds):
        at = number / per_s
        hit = kill is not None and int(at) == kill
        status = Status.REJECTED if hit and number % 10 == 0 else Status.OK
        lines.append(op(number + 1, at, took=0.1 if hit else 0.002, key="busy", status=status))
    return lines


# --- the file ---


@pytest.mark.parametrize(("write_id", "elements", "padding"), [(1, 0, 0), (12345, 0b1011, 7)])
def test_values_name_their_write(write_id, elements, padding):
    """What is written is read back, whatever the padding."""
    assert parse_value(value_bytes(write_id, elements, padding)) == (write_id, elements)


@pytest.mark.parametrize("value", [b"", b"1", b"1:2", b"x:2:", b"1:x:", b"1:2:.x", b"0:2:", b"-5:2:", b"\xff\x00"])
def test_any_other_value_is_nobodys(value):
    """Half a value, or another program's."""
    assert parse_value(value) == (STRANGE, 0)


def test_lines_come_back_with_their_places(tmp_path):
    """Each kind of line; and a place leads to its line."""
    lines = [
        op(1, 0.5, kind=Kind.PUT, id=3, ctx=9, dot=("n1/s", 5), text="why"),
        Fault("kill", "x", 1.0, 2.0, ["n1"], 0.5),
        Trouble("HALT", "n1 halted", 3.0),
        Final("k", {"n1": {"clock": {}}}, clock={"n1/s": 5}, cloud=[("n2/s", 7)], ids=[3], sets=["7"], read=True),
    ]
    path = history(tmp_path, *lines)
    found = list(read_lines(path))
    assert [line for _, line in found] == [RUN, *lines, End(0.0, 10.0, 1.5)]
    content = path.read_bytes()
    assert all(content[place : place + 6] == b'{"t":"' for place, _ in found)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "empty"),
        (b"hello\n", "line 1: not a line"),
        (b'{"t":"end","load_from":0,"load_to":1,"agreed_s":0}\n', "no chaos history of format"),
    ],
)
def test_another_file_is_refused(tmp_path, content, words):
    """In one sentence."""
    path = tmp_path / "file"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=words):
        report_on(path)
    with pytest.raises(ConfigError, match="cannot read"):
        report_on(tmp_path / "missing")


# --- figures ---


def test_latency_is_by_rank():
    """Of a hundred: the 51st, the hundredth; in milliseconds."""
    figures = latency([number / 1000 for number in range(100, 0, -1)])
    assert (figures.p50, figures.p99, figures.p999, figures.longest) == (51.0, 100.0, 100.0, 100.0)
    assert latency([]).p99 == 0.0


def test_quiet_is_what_is_far_from_faults():
    """10 s after the end of one; faults that overlap are one."""
    faults = [Fault("kill", "", 20.0, 25.0), Fault("split", "", 22.0, 30.0), Fault("kill", "", 95.0, 96.0)]
    assert quiet_spans(faults, 0.0, 100.0) == [(0.0, 20.0), (40.0, 95.0)]
    assert quiet_spans([], 0.0, 5.0) == [(0.0, 5.0)]
    assert merge_spans([(3, 4), (0, 2), (1, 3)]) == [(0, 4)]


def test_writes_within_spans():
    """A write counts if it was under way in any of them, once."""
    measured = Measured()
    for seq, (at, status) in enumerate([(0.0, Status.OK), (0.9, Status.OK), (1.5, Status.REJECTED), (5.0, Status.OK)]):
        measured.add(op(seq, at, took=0.2, kind=Kind.PUT, status=status))
    measured.add(op(9, 1.5))
    rate = measured.writes_within([(1.0, 2.0), (1.2, 3.0)])
    assert (rate.writes, rate.ok, rate.percent) == (2, 1, 50.0)
    assert measured.writes_within([]).percent == 100.0


def test_a_report_has_the_figures(tmp_path):
    """Rates, the latency around the kill, and a verdict."""
    path = history(tmp_path, *busy(kill=5), Fault("kill", "", 5.0, 6.0, ["n2"], 0.7))
    report, _ = report_on(path)
    assert (report.verdict, report.why) == ("held", [])
    assert (report.operations, report.ops_per_s) == (4000, 396.0)
    assert report.reads_failed == 40
    assert (report.kills, report.kill_p99_ms, report.kill_ready_s_worst) == (1, 100.0, 0.7)
    assert report.around_kills[0].operations == 4000
    assert report.writes_by_nemesis["kill"]["times"] == 1


def test_a_slow_run_is_invalid(tmp_path):
    """Under 300 successful operations a second, it proves too little."""
    report, _ = report_on(history(tmp_path, *busy(per_s=290)))
    assert report.verdict == "invalid"
    assert "290 successful operations a second" in report.why[0]


def test_trouble_and_a_broken_off_history_are_violations(tmp_path):
    """Whatever the operations say; and a violation counts more than slowness."""
    report, _ = report_on(history(tmp_path, *busy(per_s=290), Trouble("HALT", "n1 ended by itself", 3.0)))
    assert (report.verdict, report.rules) == ("violated", {"HALT": 1})
    (tmp_path / "history.jsonl").unlink()
    report, _ = report_on(history(tmp_path, *busy(), end=False))
    assert report.rules == {"END": 1}


def test_a_lost_write_is_told_with_its_story(tmp_path):
    """The violation, the figures, and what happened to the key."""
    write = op(100_000, 2.0, kind=Kind.PUT, id=1, dot=("n1/s", 5))
    report, _ = report_on(history(tmp_path, *busy(), write, Final("k", {"n1": {}, "n2": {}})))
    assert (report.verdict, report.lost, report.rules) == ("violated", 1, {"C2": 1})
    assert "acknowledged and lost" in report.violations[0]
    assert any("put #1 via n1" in line for line in report.stories["k"])


def test_a_key_out_of_nowhere(tmp_path):
    """Left at the end, though no operation touched it."""
    report, _ = report_on(history(tmp_path, *busy(), Final("other", {"n1": {}}, ids=[5])))
    assert report.rules == {"C2": 1}


# --- pictures ---


def test_sparklines_and_bars():
    """The highest value fills its cell, nothing is the lowest block; a moment still shows."""
    assert picture.sparkline([0, 1, 4, 8]) == "▁▂▅█"
    assert picture.sparkline([0, 0]) == "▁▁"
    assert picture.bar([(2.0, 2.01), (5.0, 7.0)], 0.0, 1.0, 9) == "  █  ███ "
    assert picture.bar([(8.0, 99.0)], 0.0, 1.0, 9) == "        █"


def test_the_svg_is_a_picture_of_the_run(tmp_path):
    """Well-formed; a box for each fault, with its words as a tooltip; nothing lies outside."""
    faults = [Fault("kill", "", 5.0, 6.0, ["n2"], 0.7), Fault("split", "n1 | n2,n3 <&>", 7.0, 9.0)]
    report, record = report_on(history(tmp_path, *busy(kill=5), *faults))
    root = ET.fromstring(picture.svg(record, report))
    name = "{http://www.w3.org/2000/svg}"
    tips = [each.text for each in root.iter(f"{name}title")]
    assert tips == ["kill n2, 5.0 to 6.0 s", "split n1 | n2,n3 <&>, 7.0 to 9.0 s"]
    width, height = float(root.attrib["width"]), float(root.attrib["height"])
    for line in root.iter(f"{name}polyline"):
        points = [tuple(map(float, point.split(","))) for point in line.attrib["points"].split()]
        assert len(points) > 10
        assert all(0 <= x <= width and 0 <= y <= height for x, y in points)
