"""How fast partitions go from one node to another when nobody wants anything else: one node with many keys, and a second one
joins.

Everything that the first has is to be at both, so each record crosses the wire once. Time runs from the commit until the
second has all partitions and counts for them; durability, checksums and hash trees are part of it.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path

from cartwheel.bench.growth import Say
from cartwheel.bench.growth_result import IdleResult, IdleRun, idle_run
from cartwheel.bench.judge import Judge
from cartwheel.bench.keyspace import fill
from cartwheel.bench.nodes import Nodes
from cartwheel.bench.run import BenchFailed, Progress
from cartwheel.bench.steady import key_name

SIZES = ((100, 1), (10_000, 10))
"""Bytes of a value, and by what the number of keys is divided."""
IDLE_S = 3.0
"""How long the node rests after it was filled: flushes and timers settle."""
LOOK_S = 0.1


def run_idle(
    keys: int, settings: Mapping[str, str], limit_s: float, folder: Path, progress: Progress, say: Say
) -> IdleResult:
    """Measure with small values, and with a tenth of the keys and large ones.

    Raises:
        BenchFailed: a node does not do its part, or it takes longer than ``limit_s``.
    """
    runs = []
    for value_bytes, divisor in SIZES:
        runs.append(_one(max(10, keys // divisor), value_bytes, settings, limit_s, folder / str(value_bytes), progress))
        run = runs[-1]
        say(
            f"{run.keys:,} keys with values of {run.value_bytes:,} bytes: {run.seconds:.1f} s, "
            f"{run.keys_per_s:,.0f} keys/s, {run.mb_per_s:.1f} MB/s"
        )
    return IdleResult(settings=dict(settings), runs=runs)


def _one(
    keys: int, value_bytes: int, settings: Mapping[str, str], limit_s: float, folder: Path, progress: Progress
) -> IdleRun:
    began_s = time.monotonic()

    def show(phase: str, done: int) -> None:
        progress(f"values of {value_bytes:,} bytes: {phase}", time.monotonic() - began_s, done, 0)

    with Nodes(folder, 2, settings) as nodes:
        nodes.found(1)
        fill(nodes.addresses[:1], Judge(keys), value_bytes, lambda done: show("filling", done))
        nodes.join(["n2"], "n1", lambda: time.sleep(LOOK_S))
        time.sleep(IDLE_S)
        before = nodes.look()
        began_s = time.monotonic()
        nodes.commit("n1")
        while not nodes.handed_over(look := nodes.look(), "n1"):
            if time.monotonic() - began_s > limit_s:
                raise BenchFailed(f"not handed over after {limit_s:g} s: {look.left} partitions left")
            show(f"{look.left:,} partitions to take over", look.records - before.records)
            time.sleep(LOOK_S)
        seconds = time.monotonic() - began_s
    return idle_run(
        keys, value_bytes, len(key_name(0)), seconds, look.records - before.records, look.row_bytes - before.row_bytes
    )
