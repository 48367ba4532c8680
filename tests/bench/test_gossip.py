"""The measurement of gossip, at a size that takes no time."""

from __future__ import annotations

from cartwheel.bench.gossip import Cluster, measure


def test_all_know_within_ten_rounds_and_idle_nodes_say_little():
    """As the targets for 1,000 nodes, at 40."""
    found = measure(40, 5.0)
    assert 0 < found.idle_bytes_per_s < 2000
    assert 0 < found.told_s < 0.01
    assert 0 < found.gossiped_rounds <= 10
    assert found.gossiped_bytes > found.told_bytes > 40


def test_what_is_lost_is_lost():
    """The author's own messages are heard by one peer alone: so the rest is gossip's doing."""
    cluster = Cluster(10)
    cluster.run_until(1.0)
    cluster.lost = {"n0000": "n0009"}
    cluster.change("n0000", 50)
    cluster.run_until(cluster.now_s + 0.0015)
    told = [name for name, station in cluster.stations.items() if "carts" in station.local.buckets]
    assert told == ["n0000", "n0009"]
