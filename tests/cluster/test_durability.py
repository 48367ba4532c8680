"""What is left of acknowledged writes when all nodes die at once, or the disk fails. Real processes, really killed."""

from __future__ import annotations

import resource
import signal
import threading
from pathlib import Path
from typing import Any

import pytest
from tests.cluster.cluster import Cluster, wait_until

from cartwheel.core.errors import CartwheelError

KEYS = 150
LANDED_S = 1.0
"""Enough for a sync, on any disk."""
BUFFER_FOR_EVER = """
from cartwheel.cli.main import main
from cartwheel.core import storage
storage.BUFFER_S = storage.BUFFER_WRITES = 1 << 60
main()
"""
"""A node whose buffer is written only when something is synced: what is left after a kill was synced, or taken along."""


@pytest.mark.parametrize("w", [2, 3])
def test_one_durable_copy_outlives_all_processes(tmp_path: Path, w: int) -> None:
    """Bucket durability ``one``: a write is there after a kill -9 of all nodes at once, a second after its ack for W = 2, and
    without delay for W = n, of which the one is a part. The buffers, which would hide a missing sync, are never written."""
    with Cluster(tmp_path, program=("-c", BUFFER_FOR_EVER)) as cluster:
        cluster.call(1, "CW.BUCKET", "SET", "quick", "durability", "one")
        wait_until(lambda: all(durability(cluster, k) == "one" for k in cluster.numbers), "all know of it")
        for number in cluster.numbers:
            with cluster.connect(number) as connection:
                for i in range(number, KEYS, len(cluster.numbers)):
                    connection.call("CW.PUT", f"k{i}", f"v{i}", "W", w, "BUCKET", "quick")
        if w < len(cluster.numbers):
            threading.Event().wait(LANDED_S)
        for number in cluster.numbers:
            cluster.send_signal(number, signal.SIGKILL)
        for number in cluster.numbers:
            cluster.kill(number)
        for number in cluster.numbers:
            cluster.start(number)
        cluster.wait_whole()
        lost = []
        with cluster.connect(1) as connection:
            for i in range(1, KEYS):
                reply: Any = connection.call("CW.GET", f"k{i}", "R", 3, "BUCKET", "quick")
                if reply[1] != [f"v{i}".encode()]:
                    lost.append(i)
        assert lost == []


def durability(cluster: Cluster, number: int) -> str:
    """As this node knows it."""
    found: list[bytes] = cluster.call(number, "CW.BUCKET", "GET", "quick")
    return found[found.index(b"durability") + 1].decode()


def write_until_it_ends(cluster: Cluster) -> int:
    """How many writes were acknowledged."""
    acked = 0
    try:
        with cluster.connect(1) as connection:
            while True:
                connection.call("SET", f"k{acked}", b"%d" % acked * 200_000)
                acked += 1
    except (CartwheelError, OSError):
        return acked


@pytest.mark.parametrize("engine", ["rocksdb", "lmdb"])
@pytest.mark.parametrize("level", ["sync", "memory"])
def test_a_node_on_a_full_disk_halts_and_acknowledges_nothing_more(tmp_path: Path, engine: str, level: str) -> None:
    """It ends by itself, with the reason in its log. What it acknowledged is there at its next start, unless the bucket's
    durability let it answer before the disk did."""
    with Cluster(tmp_path, size=1, engine=engine) as cluster:
        cluster.call(1, "CW.BUCKET", "SET", "0", "durability", level)
        # No file of the node may grow beyond 8 MiB from here on: write() fails with EFBIG, as with ENOSPC on a full disk.
        resource.prlimit(cluster.pid(1), resource.RLIMIT_FSIZE, (8 << 20, resource.RLIM_INFINITY))
        acked = write_until_it_ends(cluster)
        assert cluster.ended(1) == 1
        assert "halted: storage failed" in cluster.log(1).read_text()
        assert acked > 2
        cluster.start(1)
        cluster.wait_whole()
        if level == "sync":
            with cluster.connect(1) as connection:
                assert all(connection.call("GET", f"k{i}") == b"%d" % i * 200_000 for i in range(acked))
