"""Dynamo's section 6.2 as a simulation: laws of the placements, and its Figures 6 and 8 as the paper has them."""

from __future__ import annotations

from itertools import pairwise
from random import Random
from xml.etree import ElementTree

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cartwheel.bench.strategies import placement
from cartwheel.bench.strategies.figure_6 import Band, figure_6, load_at, out_of_balance, range_ends, requests
from cartwheel.bench.strategies.figure_8 import PAPER, figure_8
from cartwheel.bench.strategies.picture import picture
from cartwheel.bench.strategies.placement import RING_BITS, Placement
from cartwheel.bench.strategies.simulate import Options, simulate
from cartwheel.core.errors import ConfigError
from cartwheel.core.ring import Change, ChangeKind, Member, fold

RING = 1 << RING_BITS


@st.composite
def cases(draw):
    """(nodes, n, tokens a node, q, generator), with n <= nodes <= q."""
    nodes = draw(st.integers(1, 12))
    n = draw(st.integers(1, min(nodes, 4)))
    q = draw(st.integers(nodes, 80))
    return nodes, n, draw(st.integers(1, 8)), q, Random(draw(st.integers(0, 1 << 32)))


# --- laws of the placements ---


@settings(deadline=None, max_examples=60)
@given(cases())
def test_every_list_has_n_nodes_and_the_loads_add_up(case):
    """Of each strategy: n different nodes hold each range, all of them are nodes, and the ring is held n times."""
    nodes, n, tokens, q, random = case
    drawn = placement.draw_tokens(nodes, tokens, random)
    placed = [
        (placement.strategy_1(nodes, n, drawn), RING),
        (placement.strategy_2(nodes, n, drawn, q), q),
        (placement.strategy_3(nodes, n, tokens, random), nodes * tokens),
        (placement.founded(nodes, n, q), q),
        (placement.grown(nodes, n, q), q),
    ]
    for each, ring in placed:
        assert all(len(holders) == len(set(holders)) == n for holders in each.lists)
        assert all(0 <= node < nodes for holders in each.lists for node in holders)
        assert sum(each.widths) == ring
        assert len(each.loads()) == nodes
        assert sum(each.loads()) == n * ring
        assert 0 < each.efficiency() <= 1


def clockwise(drawn, position, n):
    """The dumb model: nodes by how far their nearest token is, clockwise from a position."""
    away = {}
    for token, node in drawn:
        away[node] = min(away.get(node, RING), (token - position) % RING)
    return tuple(sorted(away, key=away.__getitem__)[:n])


@settings(deadline=None, max_examples=60)
@given(cases())
def test_strategies_1_and_2_against_the_dumb_model(case):
    """A range of strategy 1 lies before its token, one of strategy 2 before its end; both go to the nearest from there."""
    nodes, n, tokens, q, random = case
    drawn = placement.draw_tokens(nodes, tokens, random)
    first = placement.strategy_1(nodes, n, drawn)
    assert list(first.lists) == [clockwise(drawn, position, n) for position, _ in drawn]
    around = [(drawn[-1][0] - RING, -1), *drawn]
    assert list(first.widths) == [end - start for (start, _), (end, _) in pairwise(around)]
    second = placement.strategy_2(nodes, n, drawn, q)
    assert list(second.lists) == [clockwise(drawn, (number + 1) * RING // q, n) for number in range(q)]


@settings(deadline=None, max_examples=30)
@given(cases())
def test_strategy_3_gives_each_node_as_many_partitions(case):
    """Each node comes first on as many lists as it has tokens."""
    nodes, n, tokens, _, random = case
    heads = [holders[0] for holders in placement.strategy_3(nodes, n, tokens, random).lists]
    assert [heads.count(node) for node in range(nodes)] == [tokens] * nodes


@pytest.mark.parametrize(("nodes", "n", "q"), [(3, 3, 16), (5, 3, 64), (7, 2, 128), (30, 3, 64), (30, 4, 256)])
def test_founded_is_the_ring_that_a_new_cluster_has(nodes, n, q):
    """The simulation's shortcut (the claim, and a plain walk) gives what ``fold`` gives for first members that join at once."""
    names = [f"n{number:02}" for number in range(nodes)]
    ring = fold(
        q,
        [
            Change(id=name, at=at, author=name, kind=ChangeKind.JOIN, member=Member(name, f"{name}:1", f"host-{name}"))
            for at, name in enumerate(names)
        ],
    ).ring
    lists = [tuple(names[node] for node in holders) for holders in placement.founded(nodes, n, q).lists]
    assert lists == [ring.preference(partition)[:n] for partition in range(q)]


def test_efficiency_is_mean_to_highest():
    """Of two nodes that hold 3 and 1, it is 2 to 3."""
    assert Placement(2, [1, 2, 1], [(0,), (0,), (1,)]).efficiency() == pytest.approx(2 / 3)


# --- Figure 8 ---


@pytest.fixture(scope="module")
def eight():
    """The figure as the paper has it, over 20 seeds."""
    return figure_8(nodes=30, n=3, seeds=range(20), q=1024, tokens_max=1024, ring_q_max=1024)


def test_figure_8_is_the_papers(eight):
    """The sizes are 30 * 2^k; no strategy is further from the paper's value than chance and the reading by eye explain."""
    assert [row.metadata for row in eight.rows] == [30 * 2**k for k in range(1, 11)]
    for row in eight.rows:
        paper = PAPER[row.tokens]
        assert (row.strategy_1.paper, row.strategy_2.paper, row.strategy_3.paper) == paper
        assert row.strategy_1.mean == pytest.approx(paper[0], abs=0.02)
        assert row.strategy_2.mean == pytest.approx(paper[1], abs=0.025)
        assert row.strategy_3.mean == pytest.approx(paper[2], abs=0.01)


def test_figure_8_has_the_papers_order(eight):
    """Section 6.2: "strategy 3 achieves the best load balancing efficiency and strategy 2 has the worst". And 2 has a peak."""
    for row in eight.rows:
        assert row.strategy_3.mean > row.strategy_1.mean > row.strategy_2.mean - 0.001
    twos = {row.tokens: row.strategy_2.mean for row in eight.rows}
    assert max(twos, key=twos.__getitem__) in {64, 128, 256}
    assert twos[1024] < max(twos.values()) - 0.01


def test_the_claim_is_no_worse_than_the_papers_strategy_3(eight):
    """Where S divides q, at every size."""
    for row in eight.rows:
        assert row.claimed >= PAPER[row.tokens][2] - 0.01


def test_rings_whose_q_is_a_power_of_two(eight):
    """With 64 partitions some of 30 nodes have three and others two: no placement helps. At 1024 it matters little."""
    rings = {ring.q: ring for ring in eight.rings}
    assert list(rings) == [64, 128, 256, 512, 1024]
    assert rings[64].founded == pytest.approx(64 * 3 / 30 / 9, abs=1e-4)
    assert rings[1024].founded >= PAPER[32][2]
    assert rings[1024].grown >= PAPER[32][2] - 0.01


def test_another_cluster_has_no_values_of_the_papers():
    """They are of 30 nodes and N = 3."""
    for nodes, n in ((29, 3), (30, 2)):
        figure = figure_8(nodes=nodes, n=n, seeds=[1], q=64, tokens_max=4, ring_q_max=1)
        assert figure.rings == []
        assert {row.strategy_3.paper for row in figure.rows} == {None}


# --- Figure 6 ---


@pytest.mark.parametrize(
    ("loads", "expected"),
    [
        ([86, 100, 114], 0),
        (
            [85, 100, 115],
            2,
        ),  # "deviates from the average load by a value less than a certain threshold": 15 % is not less
        ([100, 100, 100, 200], 4),  # the mean is 125, so the others are 20 % below it
        ([7], 0),
        ([0, 0], 0),  # nobody asked for anything
    ],
)
def test_out_of_balance(loads, expected):
    """Each row: of nodes with these requests, so many are 15 % or more off the mean."""
    assert out_of_balance(loads) == expected


def test_the_day_has_three_peaks_and_a_night():
    """The load is a share of the peak; the night's is an eighth of it, as in the paper."""
    half_hours = [load_at(hour / 2) for hour in range(49)]
    assert (min(half_hours), max(half_hours)) == (0.125, 1.0)
    assert half_hours.count(1.0) == 3
    assert half_hours[0] == pytest.approx(half_hours[48])
    with pytest.raises(ValueError, match="no hour"):
        load_at(24.5)


def test_requests_reach_all_that_hold_the_key():
    """In proportion to the widths, and n nodes for each key."""
    placed = Placement(3, [3, 1], [(0, 1), (2, 1)])
    counts = requests(placed, range_ends(placed), 4000, Random(1))
    assert counts[1] == 4000
    assert counts[0] + counts[2] == 4000
    assert counts[0] == pytest.approx(3000, abs=150)


def test_figure_6_has_the_papers_shape():
    """The imbalance ratio "decreases with increasing load", from about 20 % to about 10 %; far less on Cartwheel's ring."""
    figure = figure_6(nodes=30, n=3, seeds=range(8), q=1024, tokens=44, popular_keys=12_000)
    assert [window.hour for window in figure.windows] == [hour / 2 for hour in range(48)]
    ratios = [band.strategy_1 for band in figure.bands]
    assert ratios == sorted(ratios, reverse=True)
    assert ratios[0] == pytest.approx(0.18, abs=0.04)
    assert ratios[-1] == pytest.approx(0.1, abs=0.03)
    assert all(band.claimed < band.strategy_1 / 2 for band in figure.bands)
    assert figure.bands[0].claimed > figure.bands[-1].claimed


def test_bands_are_the_mean_of_their_windows():
    """Every window is in one band."""
    figure = figure_6(nodes=5, n=2, seeds=[1], q=16, tokens=4, popular_keys=50)
    assert sum(band.windows for band in figure.bands) == 48
    for band in figure.bands:
        inside = [window for window in figure.windows if band.load_min < window.load <= band.load_max]
        assert isinstance(band, Band)
        assert band.windows == len(inside)
        assert band.strategy_1 == pytest.approx(sum(window.strategy_1 for window in inside) / len(inside), abs=1e-4)


# --- options, and both together ---

SMALL = {"nodes": 5, "n": 2, "seeds": 2, "tokens_max": 8, "q": 16, "ring_q_max": 32, "tokens": 4, "popular_keys": 60}


def test_a_seed_gives_the_same_figures():
    """The same options, the same report; another seed, another one."""
    report = simulate(Options(**SMALL))
    assert simulate(Options(**SMALL)) == report
    other = simulate(Options(**SMALL, seed=100))
    assert other.figure_8 != report.figure_8
    assert other.figure_6 != report.figure_6


@pytest.mark.parametrize(("figure", "eight", "six"), [("8", True, False), ("6", False, True), ("all", True, True)])
def test_only_what_was_asked_for(figure, eight, six):
    """Each row: with this figure asked for, Figure 8 and Figure 6 are there or not."""
    report = simulate(Options(**SMALL, figure=figure))
    assert (report.figure_8 is not None, report.figure_6 is not None) == (eight, six)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"nodes": 0}, "--nodes 0 must lie between 1 and 200"),
        ({"nodes": 201}, "--nodes 201"),
        ({"nodes": 2}, "--n 3 replicas need as many nodes; there are --nodes 2"),
        ({"n": 0}, "--n 0"),
        ({"seeds": 0}, "--seeds 0"),
        ({"tokens_max": 1}, "--tokens-max 1"),
        ({"tokens_max": 100}, "--tokens-max 100 must be a power of two"),
        ({"q": 1000}, "--q 1000 must be a power of two"),
        ({"q": 1 << 17}, "--q 131072"),
        ({"q": 16}, "--q 16 partitions are too few for --nodes 30"),
        ({"ring_q_max": 30}, "--ring-q-max 30 must be a power of two"),
        ({"tokens": 0}, "--tokens 0"),
        ({"popular_keys": 0}, "--popular-keys 0"),
    ],
)
def test_wrong_options(options, words):
    """Each row is refused with these words."""
    with pytest.raises(ConfigError) as caught:
        simulate(Options(**options))
    assert words in str(caught.value)


def test_the_smallest_cluster():
    """One node holds everything: it is as loaded as the mean, always."""
    report = simulate(Options(**SMALL | {"nodes": 1, "n": 1}))
    assert {row.strategy_1.mean for row in report.figure_8.rows} == {1.0}
    assert {window.strategy_1 for window in report.figure_6.windows} == {0.0}
    ElementTree.fromstring(picture(report))


# --- the picture ---

SVG = "{http://www.w3.org/2000/svg}"


def drawn(report):
    """The elements of a picture by kind."""
    root = ElementTree.fromstring(picture(report))
    return {kind: root.findall(f"{SVG}{kind}") for kind in ("polyline", "circle", "path", "text", "rect")}


def test_the_picture_of_figure_8_shows_lines_and_the_papers_marks():
    """A line for each strategy with a point for each size, further right and (strategy 3) higher for more; a mark each."""
    report = simulate(Options(figure="8", seeds=1, tokens_max=64, ring_q_max=128))
    parts = drawn(report)
    lines = [line.get("points").split() for line in parts["polyline"]]
    assert sorted(len(line) for line in lines) == [2, 2, 6, 6, 6]
    threes = [tuple(map(float, point.split(","))) for point in lines[-1]]
    assert all(left < right for (left, _), (right, _) in pairwise(threes))
    steps = {round(right - left) for (left, _), (right, _) in pairwise(threes)}
    assert max(steps) - min(steps) <= 1, "a doubling is as wide everywhere"
    assert threes[-1][1] < threes[0][1]
    in_legend = 1
    assert len(parts["circle"]) == len(parts["path"]) == 6 + in_legend
    texts = [text.text for text in parts["text"]]
    assert {"60", "1,920", "0.4", "1.0"} <= set(texts)
    assert any("metadata" in text and "logarithmic" in text for text in texts)
    assert any("mean load / highest load" in text for text in texts)


def test_a_picture_without_the_papers_values_says_nothing_of_them():
    """Another cluster than the paper's has neither marks nor a legend for them."""
    parts = drawn(simulate(Options(**SMALL, figure="8")))
    assert parts["circle"] == parts["path"] == []
    assert not any("paper" in text.text for text in parts["text"])


def test_the_picture_of_both_is_two_panels():
    """Figure 6 stands below Figure 8: two lines of nodes and one of load, 48 half hours each."""
    report = simulate(Options(**SMALL))
    parts = drawn(report)
    days = [line for line in parts["polyline"] if len(line.get("points").split()) == 48]
    assert len(days) == 3
    tops = [min(float(point.split(",")[1]) for point in line.get("points").split()) for line in days]
    assert min(tops) > 440
    titles = [text for text in parts["text"] if "Dynamo, Figure" in text.text]
    assert [float(title.get("y")) for title in titles] == [22.0, 462.0]
