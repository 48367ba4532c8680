"""What anti-entropy costs: two nodes in one process, with many equal records, then a few that differ, then one disk lost.

    python -m cartwheel.bench.repair [--keys 1000000] [--stale 100]

Counts the bytes of all messages as they are encoded for the wire, and the records that moved. Time is that of both nodes' work on
one core, without network or disk.
"""

from __future__ import annotations

import argparse
import random
import time
from collections import deque

from cartwheel.core import versions
from cartwheel.core.clock import reading
from cartwheel.core.config import Config
from cartwheel.core.messages import (
    Effect,
    LeafDiff,
    LeafRows,
    PeerUp,
    Received,
    Send,
    Tick,
    TreeRoots,
    decode_batch,
    encode_batch,
)
from cartwheel.core.node import Node
from cartwheel.core.ring import Change, ChangeKind, History, Member
from cartwheel.core.storage import MemoryEngine, Space, Store, Writes, record_key, seal
from cartwheel.core.types import Durability, NodeId
from cartwheel.core.versions import Record, Version

WALL_MS = 1_800_000_000_000
OLD = reading(WALL_MS - 3_600_000)
TICK_S = 0.05
NODES = ("a", "b")


class Pair:
    """Two nodes and the wire between them."""

    def __init__(self, disks: dict[NodeId, MemoryEngine]) -> None:
        self.now_s = 0.0
        self.bytes = 0
        self.moved = 0
        self.rounds = 0
        self.slowest_s = 0.0
        self.disks = disks
        self.stores = {name: Store(disk) for name, disk in disks.items()}
        self.nodes: dict[NodeId, Node] = {}
        self._queue: deque[tuple[NodeId, NodeId, bytes]] = deque()
        members = [
            Change(id=name, at=i, author=name, kind=ChangeKind.JOIN, member=Member(name, f"{name}:1", f"host-{name}"))
            for i, name in enumerate(NODES)
        ]
        for boot, name in enumerate(NODES, start=1):
            config = Config(node=name, cluster="bench", secret=b"s" * 32, background_records_per_s_max=1_000_000)
            self.nodes[name] = Node(config, self.stores[name], history=History(members), stint="1", boot=boot)
            self.nodes[name].start(0.0, WALL_MS)
            self._commit(name)
        for name in NODES:
            self._step(name, PeerUp(NODES[name == "a"]))
        while any(node.status().antientropy.unready for node in self.nodes.values()):
            self.tick()

    def count_anew(self) -> None:
        """Forget what was counted."""
        self.bytes = self.moved = self.rounds = 0
        self.slowest_s = 0.0

    def tick(self) -> None:
        """A twentieth of a second passes for both."""
        self.now_s += TICK_S
        for name in NODES:
            self._step(name, Tick())
        while self._queue:
            src, dst, data = self._queue.popleft()
            self._step(dst, Received(src, decode_batch(data)))

    def run_rounds(self, rounds: int) -> None:
        """Until so many comparisons were begun, and a second longer."""
        while self.rounds < rounds:
            self.tick()
        for _ in range(10):
            self.tick()

    def _step(self, name: NodeId, event: Received | PeerUp | Tick) -> None:
        begun_s = time.thread_time()
        effects = self.nodes[name].handle(self.now_s, WALL_MS, event)
        if isinstance(event, Received):
            self.slowest_s = max(self.slowest_s, time.thread_time() - begun_s)
        self._commit(name)
        for effect in effects:
            self._send(name, effect)

    def _send(self, name: NodeId, effect: Effect) -> None:
        if isinstance(effect, Send) and effect.dst != name:
            message = effect.message
            data = encode_batch(self.nodes[name].epoch, [message])
            self.bytes += len(data)
            if isinstance(message, LeafDiff | LeafRows):
                self.moved += len(message.rows)
            self.rounds += isinstance(message, TreeRoots)
            self._queue.append((name, effect.dst, data))

    def _commit(self, name: NodeId) -> None:
        store = self.stores[name]
        if store.staged:
            self.disks[name].apply(store.take().spaces, sync=False)
            store.committed()


def rows_of(keys: int) -> Writes:
    """So many records with values of 100 bytes."""
    encoded = versions.encode(Record({"x/1": OLD}, (Version("x/1", OLD, b"v" * 100),)))
    return {at: seal(at, encoded) for at in (record_key("0", b"key:%d" % i) for i in range(keys))}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--keys", type=int, default=1_000_000)
    parser.add_argument("--stale", type=int, default=100)
    options = parser.parse_args()
    rows = rows_of(options.keys)
    disks = {name: MemoryEngine() for name in NODES}
    for disk in disks.values():
        disk.apply([rows, {}, {}], sync=True)
    begun_s = time.thread_time()
    pair = Pair(disks)
    print(f"{options.keys:,} equal records on each of two nodes; trees built in {time.thread_time() - begun_s:.1f} s")

    def measure(what: str, rounds: int) -> None:
        begun_s = time.thread_time()
        pair.count_anew()
        pair.run_rounds(rounds)
        print(
            f"{what}: {pair.bytes:,} bytes, {pair.rounds} questions for roots, {pair.moved:,} records moved, "
            f"{time.thread_time() - begun_s:.2f} s, longest message {pair.slowest_s * 1000:.1f} ms"
        )

    measure("equal", 2)
    changed = Record({"x/1": OLD + 1}, (Version("x/1", OLD + 1, b"w" * 100),))
    local = pair.nodes["a"].local
    for at in random.Random(1).sample(sorted(rows), options.stale):
        local.write_record(at, local.read_record(at), changed, Durability.OS)
    measure(f"{options.stale} stale on one node", 2)
    measure("equal again", 2)
    begun_s = time.thread_time()
    fresh = Pair({"a": disks["a"], "b": MemoryEngine()})
    while len(fresh.disks["b"].scan(Space.RECORDS, limit=1 << 30)) < options.keys:
        for _ in range(20):
            fresh.tick()
    spent_s = time.thread_time() - begun_s
    print(
        f"one disk lost, the other's trees to be built: {fresh.bytes:,} bytes, {fresh.moved:,} records moved, "
        f"{spent_s:.1f} s of both nodes' work ({options.keys / spent_s:,.0f} a second), "
        f"longest message {fresh.slowest_s * 1000:.1f} ms"
    )


if __name__ == "__main__":
    main()
