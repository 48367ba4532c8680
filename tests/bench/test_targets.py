"""The standard benchmark's table. (The run itself takes minutes: ``make bench``.)"""

import pytest

from cartwheel.bench.run import BenchFailed
from cartwheel.bench.servers import Server, redis_version
from cartwheel.bench.standard import cases
from cartwheel.bench.targets import Comparison, Figures, markdown, rows


def figures(**changes):
    fields = {
        "at": "2025-01-01 00:00 UTC", "machine": {"processor": "any"}, "nodes": 3, "rounds": 3, "keys": 100_000,
        "value_bytes": 100, "ready_s": 2.0, "comparisons": [], "resident_bytes": [], "mix_peak_per_s": 20_000.0,
        "mix_p99_9_ms": [], "errors": {}, "skipped": [],
    }  # fmt: skip
    return Figures(**(fields | changes))


def met(**changes):
    return {row.what: row.met for row in rows(figures(**changes))}


def test_the_ratio_is_the_median_of_the_rounds_ratios():
    """Not the ratio of the medians: the machine may have slowed down for both between two rounds."""
    case = Comparison("GET", "get", 1, "no persistence", ours=[10, 50, 90], redis=[100, 100, 100])
    assert case.ratio == 0.5
    drifting = Comparison("GET", "get", 1, "no persistence", ours=[10, 40, 100], redis=[20, 80, 200])
    assert drifting.ratio == 0.5


@pytest.mark.parametrize(("ours", "expected"), [(34, False), (35, True)])
def test_a_ratio_meets_its_target_from_the_figure_itself_on(ours, expected):
    """At least means at least."""
    case = Comparison("GET", "get", 1, "no persistence", ratio_min=0.35, ours=[ours], redis=[100])
    assert met(comparisons=[case])["GET, against Redis (no persistence)"] is expected


@pytest.mark.parametrize(
    ("changes", "what", "expected"),
    [
        ({"ready_s": 4.9}, "`cartwheel dev` to `ready`", True),
        ({"ready_s": 5.0}, "`cartwheel dev` to `ready`", False),
        ({"resident_bytes": [1, 200_000_000]}, "memory of an idle node, 100,000 keys of 100 bytes", False),
        ({"resident_bytes": [1, 199_000_000]}, "memory of an idle node, 100,000 keys of 100 bytes", True),
        ({"mix_p99_9_ms": [90, 1, 24]}, "p99.9 of a 95/5 mix at half of the peak (10,000/s)", True),
        ({"mix_p99_9_ms": [90, 26, 24]}, "p99.9 of a 95/5 mix at half of the peak (10,000/s)", False),
    ],
)
def test_targets(changes, what, expected):
    """Each row is on one side of its target."""
    assert met(**changes)[what] is expected


def test_every_target_has_a_case():
    """All that redis-benchmark measures is in the report once, and what was not measured has no row."""
    flat = [case for group in cases().values() for case in group]
    assert len({case.name for case in flat}) == len(flat)
    assert set(met(comparisons=flat)) == {"`cartwheel dev` to `ready`"}
    for case in flat:
        case.ours, case.redis = [60_000.0, 50_000.0], [100_000.0, 100_000.0]
    assert len(met(comparisons=flat)) == 9


def test_report_reads_well():
    """Rates with their spread, ratios rounded down (3/8 is 0.37), and what is missing with its reason."""
    case = Comparison(
        "GET", "get", 1, "no persistence", ratio_min=0.35, ours=[30_000, 40_000, 20_000], redis=[80_000] * 3
    )
    report = markdown(figures(comparisons=[case], skipped=["memory: no /proc"], errors={"BUSY": 2}))
    assert "| GET, against Redis (no persistence) | 0.37 | at least 0.35 | met |" in report
    assert "| GET | 30,000 (20,000 to 40,000) | 80,000 (80,000 to 80,000) | no persistence | 0.37 |" in report
    assert "- memory: no /proc" in report
    assert "BUSY 2" in report


def test_a_server_that_does_not_start_shows_its_log(tmp_path):
    """The end of the log is in the message."""

    class Broken(Server):
        def ready(self):
            return False

    with pytest.raises(BenchFailed, match=r"ended with status 3; the end of its log:\nno luck"):
        Broken("it", ["sh", "-c", "echo no luck; exit 3"], tmp_path).__enter__()


def test_redis_version_is_a_version_or_none():
    """Whatever is installed here."""
    version = redis_version()
    assert version is None or version[0].isdigit()
