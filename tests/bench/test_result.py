"""Histograms, their merging, and the JSON result."""

import json

import msgspec
import pytest
from hdrh.histogram import HdrHistogram
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from cartwheel.bench.options import BenchOptions
from cartwheel.bench.render import render
from cartwheel.bench.result import LATENCY_US_MAX, BenchResult, Report, encoded_histogram, latency, merge

LATENCIES = st.lists(st.integers(1, LATENCY_US_MAX), min_size=1, max_size=60)


def counts(latencies):
    return {value: latencies.count(value) for value in latencies}


def report(windows, **changes):
    fields = {
        "answered": sum(n for window in windows for kind in window for n in kind.values()),
        "misses": 0, "errors": {}, "unsent": 0, "elapsed_s": 2.0, "cpu_s": 1.0, "windows": windows,
    }  # fmt: skip
    return Report(**(fields | changes))


@given(st.lists(LATENCIES, min_size=1, max_size=4))
def test_merged_percentiles_are_those_of_all_latencies(parts):
    """However the latencies are spread over processes, the figures are those of one sorted list."""
    everything = sorted(value for part in parts for value in part)
    figures = latency(counts(part) for part in parts)
    assert figures.count == len(everything)
    for percentile, measured in (
        (50, figures.p50_ms),
        (90, figures.p90_ms),
        (99, figures.p99_ms),
        (99.9, figures.p99_9_ms),
    ):
        enough = next(value for i, value in enumerate(everything, 1) if i * 1000 >= len(everything) * percentile * 10)
        assert measured == enough / 1000
    assert figures.max_ms == everything[-1] / 1000
    assert figures.mean_ms == pytest.approx(sum(everything) / len(everything) / 1000)


@settings(max_examples=10)  # the library takes its time
@given(LATENCIES)
def test_the_encoded_histogram_holds_the_same_latencies(latencies):
    """Another program that decodes it finds each latency, to 0.1 %."""
    decoded = HdrHistogram.decode(encoded_histogram(counts(latencies)))
    found = [
        item.value_iterated_to
        for item in decoded.get_recorded_iterator()
        for _ in range(item.count_at_value_iterated_to)
    ]
    assert found == pytest.approx(sorted(latencies), rel=0.001, abs=1)


def test_what_took_longer_than_the_histogram_can_say_still_counts():
    """Days are an hour there, not lost; the figures know better."""
    figures = latency([{LATENCY_US_MAX * 5: 2}], encode=True)
    assert (figures.count, figures.max_ms) == (2, LATENCY_US_MAX * 5 / 1000)
    decoded = HdrHistogram.decode(figures.histogram)
    assert decoded.get_total_count() == 2
    assert decoded.get_max_value() == pytest.approx(LATENCY_US_MAX, rel=0.001)


def test_no_latencies_at_all():
    """A run of which every request failed has a result, too."""
    result = merge(BenchOptions(), [report([[{}, {}]], errors={"NOQUORUM": 3})])
    assert (result.requests, result.failed, result.operations["all"].count) == (0, 3, 0)
    assert "get" not in result.operations


def test_merge_adds_what_the_processes_measured():
    """Counts and errors add up; the time is the longest, since they ran at once."""
    one = report([[{10: 4}, {20: 1}]], errors={"timeout": 1, "BUSY": 2}, misses=1, elapsed_s=1.0)
    two = report([[{10: 4}, {}]], errors={"BUSY": 1}, unsent=5, elapsed_s=2.0, cpu_s=1.8)
    result = merge(BenchOptions(processes=2), [one, two])
    assert (result.requests, result.misses, result.unsent, result.failed) == (9, 1, 5, 4)
    assert result.errors == {"BUSY": 3, "timeout": 1}
    assert (result.elapsed_s, result.throughput_per_s) == (2.0, 4.5)
    assert result.generator_busy == pytest.approx(1.0)
    assert {kind: figures.count for kind, figures in result.operations.items()} == {"get": 8, "set": 1, "all": 9}
    assert result.series == []


def test_series_merges_window_by_window():
    """A process that has fewer windows (it ended sooner) is missing only in the last ones."""
    one = report([[{10: 1}, {}], [{30: 1}, {}]])
    two = report([[{10: 2}, {}]])
    result = merge(BenchOptions(processes=2, series_s=0.5), [one, two])
    assert [(window.start_s, window.operations["get"].count) for window in result.series] == [(0, 3), (0.5, 1)]
    assert result.operations["get"].count == 4


def test_json_has_the_documented_shape():
    """Other programs rely on these names: a change of one is a change of ``format``."""
    result = merge(BenchOptions(series_s=1.0), [report([[{1500: 3}, {}]])])
    encoded = msgspec.json.encode(result)
    assert msgspec.json.decode(encoded, type=BenchResult) == result
    plain = json.loads(encoded)
    assert list(plain) == [
        "options", "requests", "elapsed_s", "throughput_per_s", "misses", "errors", "unsent", "operations", "series",
        "generator_busy", "interrupted", "format",
    ]  # fmt: skip
    figures = plain["operations"]["get"]
    assert list(figures) == ["count", "mean_ms", "p50_ms", "p90_ms", "p99_ms", "p99_9_ms", "max_ms", "histogram"]
    decoded = HdrHistogram.decode(figures["histogram"])
    assert decoded.get_total_count() == 3
    assert decoded.get_value_at_percentile(50) == pytest.approx(1500, rel=0.001)
    assert plain["options"]["workload"] == "mixed"
    assert plain["format"] == 1


@pytest.mark.parametrize(
    ("changes", "remark"),
    [
        ({"errors": {"NOQUORUM": 2}}, "errors: 2 (NOQUORUM 2)"),
        ({"misses": 4}, "reads that found no value: 4"),
        ({"unsent": 7}, "7 requests were due but never sent"),
        ({"cpu_s": 1.99}, "the load generator itself was busy"),
    ],
)
def test_remarks(changes, remark):
    """Each row's circumstance is pointed out to the reader, and only then."""

    def shown(result):
        console = Console(width=200)
        with console.capture() as captured:
            console.print(render(result))
        return captured.get()

    assert remark in shown(merge(BenchOptions(), [report([[{10: 4}, {}]], **changes)]))
    assert remark not in shown(merge(BenchOptions(), [report([[{10: 4}, {}]])]))


def test_table_shows_each_kind_and_the_series():
    """Milliseconds with three digits; a window in which a kind did not occur shows dashes."""
    windows = [[{1234: 5}, {250: 5}], [{1234: 5}, {}]]
    console = Console(width=200)
    with console.capture() as captured:
        console.print(render(merge(BenchOptions(series_s=1.0), [report(windows)])))
    lines = [line.split() for line in captured.get().splitlines()]
    assert ["get", "10", "5", "1.23", "1.23", "1.23", "1.23", "1.23"] in lines
    assert ["set", "5", "2", "0.250", "0.250", "0.250", "0.250", "0.250"] in lines
    assert ["1", "5", "1.23", "1.23", "0", "-", "-"] in lines
