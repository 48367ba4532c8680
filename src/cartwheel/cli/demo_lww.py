"""``cartwheel demo lww``: what two buckets make of the same writes on both sides of a split.

Clients on both sides add elements to a set, over and over: get, union, put with the context of the get. A ``siblings`` bucket
keeps the sets of both sides until somebody who has read both writes their union; an ``lww`` bucket keeps the newer of two
concurrent sets. So of the elements whose put was acknowledged the first loses none (section 4.4 of the paper: "an 'add to cart'
operation is never lost"), and the second all that only the older set had: that is for data which can bear it (section 6,
"timestamp based reconciliation").
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from cartwheel.cli.keys import read_siblings, write_value
from cartwheel.client.resp import Connection, ReplyError

if TYPE_CHECKING:
    from cartwheel.chaos.scratch import Scratch
    from cartwheel.core.types import NodeId

LEFT, RIGHT = ("n1", "n2"), ("n3", "n4", "n5")
CLIENTS = ("n1", "n2", "n3", "n4")
"""The nodes that clients add elements through, two on each side: a client for each."""
BUCKETS = ("lww", "siblings")
"""Their names, and how each reconciles."""


@dataclass(slots=True)
class Count:
    """What became of the elements of one bucket's set. Those of unknown outcome may be there or not: they are not lost."""

    acknowledged: set[str] = field(default_factory=set)
    failed: set[str] = field(default_factory=set)
    siblings: int = 0
    present: set[str] = field(default_factory=set)

    @property
    def lost(self) -> list[str]:
        """Acknowledged, and gone."""
        return sorted(self.acknowledged - self.present)


def key_on_both_sides(cluster: Scratch, bucket: str, prefix: str) -> tuple[str, list[NodeId]]:
    """A key with one owner on the left and two on the right, so that each side knows what was there before the split; and its
    owners."""
    for number in range(1000):
        key = f"{prefix}:{number}"
        explained = cluster.explain(bucket, key)
        owners = explained["preference"][: explained["n"]]
        if len(set(LEFT).intersection(owners)) == 1:
            return key, owners
    raise AssertionError("that is so for six keys in ten")


def make_buckets(cluster: Scratch) -> None:
    """Two buckets that differ in how they reconcile, known to all nodes."""
    with cluster.connect(cluster.nodes[0]) as connection:
        for bucket in BUCKETS:
            connection.call("CW.BUCKET", "SET", bucket, "reconcile", bucket)

    def known(node: NodeId) -> bool:
        with cluster.connect(node) as connection:
            answers = [connection.call("CW.BUCKET", "GET", bucket, "JSON") for bucket in BUCKETS]
        return all(
            isinstance(answer, bytes) and json.loads(answer)["reconcile"] == bucket
            for bucket, answer in zip(BUCKETS, answers, strict=True)
        )

    cluster.wait(lambda: all(map(known, cluster.nodes)), "all nodes know the buckets")


def run(cluster: Scratch, adds: int, say: Callable[[str], None]) -> tuple[dict[str, Count], float]:
    """The whole story: the count of each bucket, and how long the owners took to agree after the split, in seconds."""
    make_buckets(cluster)
    keys = {bucket: key_on_both_sides(cluster, bucket, "demo:set")[0] for bucket in BUCKETS}
    counts = {bucket: Count() for bucket in BUCKETS}
    with cluster.connect(cluster.nodes[0]) as connection:
        for bucket, key in keys.items():
            write_value(connection, key, b"[]", bucket)
    say("Two buckets, lww (the newest wins) and siblings, with an empty set in each.")

    took_s = cluster.split(LEFT, RIGHT)
    say(
        f"\n1. The network splits: {' '.join(LEFT)} | {' '.join(RIGHT)}. After {took_s:.1f} s each side misses the other."
    )
    with ThreadPoolExecutor(len(CLIENTS)) as threads:
        for done in [threads.submit(_add, cluster, node, keys, adds, counts) for node in CLIENTS]:
            done.result()
    say(
        f"\n2. {len(CLIENTS)} clients, two on each side, have added {adds} elements each to both sets: get, union, put with the\n"
        "   context of the get. Acknowledged: "
        + ", ".join(f"{len(count.acknowledged)} in {bucket}" for bucket, count in counts.items())
        + "."
    )

    agreed_s = cluster.heal() + cluster.wait_agree(keys.items())
    say(f"\n3. The network heals. After {agreed_s:.1f} s all hints were delivered, and all owners held the same.")
    with cluster.connect(cluster.nodes[-1]) as connection:
        for bucket, key in keys.items():
            _, values = read_siblings(connection, key, bucket, 3)
            counts[bucket].siblings = len(values)
            counts[bucket].present = set().union(*map(json.loads, values))
    return counts, agreed_s


def _add(cluster: Scratch, node: NodeId, keys: dict[str, str], adds: int, counts: dict[str, Count]) -> None:
    """One client. (Sets take elements from several threads.)"""
    with cluster.connect(node) as connection:
        for number in range(adds):
            for bucket, key in keys.items():
                element = f"{node}-{number}"
                acked = _add_one(connection, bucket, key, element)
                (counts[bucket].acknowledged if acked else counts[bucket].failed).add(element)


def _add_one(connection: Connection, bucket: str, key: str, element: str) -> bool:
    """Get, union, put. Whether the put was acknowledged."""
    try:
        context, values = read_siblings(connection, key, bucket)
        merged: Sequence[str] = sorted({element}.union(*map(json.loads, values)))
        write_value(connection, key, json.dumps(merged).encode(), bucket, context=context or None)
    except ReplyError:
        return False
    return True
