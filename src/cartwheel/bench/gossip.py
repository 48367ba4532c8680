"""What gossip costs, and how soon all know of a change: the membership of 10, 100 and 1,000 nodes in one process (section 4.8.1).

    python -m cartwheel.bench.gossip [--nodes 10,100,1000] [--seconds 20] [--json]

Every node is the core's own ``Membership``; each gossips every second, at a phase of its own; a message takes a millisecond.
Bytes are those of the frames as they are encoded for the wire. Three numbers for each size:

- **idle**: bytes that a node sends in a second in which nothing changes;
- **told**: how soon all know of a change whose author reaches everyone: it tells them itself;
- **gossiped**: the same if what the author sends itself is lost, but for one peer: rounds (seconds) until gossip has told all.
"""

from __future__ import annotations

import argparse
import heapq
import json
import random
from itertools import count
from typing import NamedTuple

from cartwheel.core.clock import HybridClock
from cartwheel.core.config import Config
from cartwheel.core.local import Local
from cartwheel.core.membership import GOSSIP_S, Membership
from cartwheel.core.messages import (
    PROTOCOL_MAX,
    Batch,
    ClientBucketSet,
    Gossip,
    Message,
    Send,
    ViewDigest,
    ViewPush,
    decode_batch,
    encode_batch,
)
from cartwheel.core.ring import Change, ChangeKind, History, Member
from cartwheel.core.storage import MemoryEngine, Store
from cartwheel.core.types import NodeId

WALL_MS = 1_800_000_000_000
LATENCY_S = 0.001
TICK_S = 0.05
FRAME_BYTES = 4
"""The length in front of each frame."""
GIVE_UP_S = 60.0


class Result(NamedTuple):
    """What was measured of a cluster of one size."""

    nodes: int
    idle_bytes_per_s: float
    told_s: float
    told_bytes: int
    """Sent by all nodes together for that change."""
    gossiped_rounds: float
    gossiped_bytes: int


class _Station:
    """One node's membership, and what drives it."""

    def __init__(self, name: NodeId, history: History, boot: int) -> None:
        self.name = name
        self.store = Store(MemoryEngine())
        config = Config(node=name, cluster="bench", secret=b"s" * 32)
        self.local = Local(config, self.store, HybridClock(last=0, skew_ms_max=500), stint="1", boot=boot)
        self.membership = Membership(self.local)
        self.handlers = {
            ViewPush: self.membership.handle_push,
            ViewDigest: self.membership.handle_digest,
            Gossip: self.membership.handle_gossip,
        }
        self.local.wall_ms = WALL_MS
        self.membership.start(history)


class Cluster:
    """So many of them, and the wire between them."""

    def __init__(self, nodes: int, seed: int = 1) -> None:
        self.now_s = 0.0
        self.sent_bytes = 0
        self.lost: dict[NodeId, NodeId] = {}
        """Author -> the only peer that hears its pushes."""
        self._dice = random.Random(seed)
        self._queue: list[tuple[float, int, NodeId, NodeId, bytes]] = []
        self._order = count()
        names = [f"n{i:04d}" for i in range(nodes)]
        history = History(
            Change(
                id=name, at=i, author=name, kind=ChangeKind.JOIN, member=Member(name, f"10.0.0.1:{i + 1}", f"h-{name}")
            )
            for i, name in enumerate(names)
        )
        self.stations = {name: _Station(name, history, boot) for boot, name in enumerate(names, start=1)}
        for name, station in self.stations.items():
            station.local.reachable = set(names) - {name}
            station.membership.protocols.update(dict.fromkeys(names, PROTOCOL_MAX))
        self._tick_at = [(self._dice.uniform(0.0, GOSSIP_S), name) for name in names]
        heapq.heapify(self._tick_at)

    def run_until(self, end_s: float) -> None:
        """Let time pass."""
        while True:
            tick_s = self._tick_at[0][0]
            frame_s = self._queue[0][0] if self._queue else float("inf")
            if min(tick_s, frame_s) > end_s:
                self.now_s = end_s
                return
            if tick_s <= frame_s:
                self.now_s, name = heapq.heappop(self._tick_at)
                heapq.heappush(self._tick_at, (self.now_s + GOSSIP_S, name))
                station = self._enter(name)
                station.membership.handle_tick()
            else:
                self.now_s, _, src, name, data = heapq.heappop(self._queue)
                station = self._enter(name)
                self._receive(station, src, decode_batch(data))
            self._leave(station)

    def change(self, author: NodeId, value: int) -> None:
        """Set a property of a bucket at one node."""
        station = self._enter(author)
        station.membership.set_bucket(ClientBucketSet(0, "carts", {"siblings_max": str(value)}))
        self._leave(station)

    @property
    def agree(self) -> bool:
        """Whether all have one view."""
        return len({station.local.epoch for station in self.stations.values()}) == 1

    def _enter(self, name: NodeId) -> _Station:
        station = self.stations[name]
        station.local.now_s, station.local.wall_ms, station.local.out = self.now_s, WALL_MS + int(self.now_s * 1000), []
        return station

    def _receive(self, station: _Station, src: NodeId, batch: Batch) -> None:
        """As ``Node`` does."""
        for message in batch.messages:
            self.handle(station, src, message)
        if batch.epoch != station.local.epoch:
            station.membership.handle_epoch(src, batch.epoch)

    def handle(self, station: _Station, src: NodeId, message: Message) -> None:
        """One message."""
        station.handlers[type(message)](src, message)  # type: ignore[operator]

    def _leave(self, station: _Station) -> None:
        """Commit, and send one frame to each peer."""
        if station.store.staged:
            station.store.take()
            station.store.committed()
        frames: dict[NodeId, list[Message]] = {}
        for effect in station.local.out:
            if isinstance(effect, Send):
                frames.setdefault(effect.dst, []).append(effect.message)
        for dst, messages in frames.items():
            only = self.lost.get(station.name, dst)
            if only != dst and any(isinstance(message, ViewPush) for message in messages):
                continue
            data = encode_batch(station.local.epoch, messages)
            self.sent_bytes += len(data) + FRAME_BYTES
            heapq.heappush(self._queue, (self.now_s + LATENCY_S, next(self._order), station.name, dst, data))


def measure(nodes: int, seconds: float) -> Result:
    """All three numbers."""
    cluster = Cluster(nodes)
    cluster.run_until(2.0)
    begun, bytes_before = cluster.now_s, cluster.sent_bytes
    cluster.run_until(begun + seconds)
    idle = (cluster.sent_bytes - bytes_before) / seconds / nodes
    author = min(cluster.stations)
    told_s, told_bytes = _spread(cluster, author, 50, step_s=LATENCY_S)
    cluster.run_until(cluster.now_s + 2.0)
    cluster.lost = {author: max(cluster.stations)}
    rounds_s, gossiped_bytes = _spread(cluster, author, 60, step_s=TICK_S)
    return Result(nodes, idle, told_s, told_bytes, rounds_s / GOSSIP_S, gossiped_bytes)


def _spread(cluster: Cluster, author: NodeId, value: int, *, step_s: float) -> tuple[float, int]:
    """Make a change. Returns how long it took until all knew it, and the bytes sent meanwhile."""
    begun_s, bytes_before = cluster.now_s, cluster.sent_bytes
    cluster.change(author, value)
    while not cluster.agree:
        if cluster.now_s - begun_s > GIVE_UP_S:
            raise SystemExit(f"after {GIVE_UP_S:g} s not all of {len(cluster.stations)} nodes know of the change")
        cluster.run_until(cluster.now_s + step_s)
    return cluster.now_s - begun_s, cluster.sent_bytes - bytes_before


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nodes", default="10,100,1000", help="Sizes of the cluster.")
    parser.add_argument("--seconds", type=float, default=20.0, help="How long nothing changes.")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    results = [measure(int(nodes), options.seconds) for nodes in options.nodes.split(",")]
    if options.json:
        print(json.dumps([result._asdict() for result in results]))
        return
    print(f"{'nodes':>6} {'idle B/s a node':>16} {'told in':>9} {'bytes':>12} {'gossiped, rounds':>17} {'bytes':>12}")
    for each in results:
        print(
            f"{each.nodes:6,} {each.idle_bytes_per_s:16,.0f} {each.told_s * 1000:6.0f} ms {each.told_bytes:12,} "
            f"{each.gossiped_rounds:17.1f} {each.gossiped_bytes:12,}"
        )


if __name__ == "__main__":
    main()
