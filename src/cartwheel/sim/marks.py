"""Coverage marks: what must have happened somewhere in a large batch of runs, or the batch proves less than it seems to.

Three sorts, all counted in ``World.marks``: what the simulator did (``fault.kill``, ``net.lost``), the counters of the core
(``core.puts_forwarded``), and each kind of fault crossed with each counter (``pause x read_repairs``): that path was taken
while, or shortly after, that fault lasted. The names of the core's counters are read from its sources, so a new one is expected
at once.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from pathlib import Path

from cartwheel.core import node
from cartwheel.sim.faults import Kind

CROSS = " x "
_COUNT = re.compile(r"""\bcount\(\s*"([a-z_]+)"[,)]""")

SIMULATED = (
    *(f"fault.{kind}" for kind in Kind),
    *(f"crash.{kind}" for kind in (Kind.KILL, Kind.POWER, Kind.STOP, Kind.SYNC_ERROR, Kind.WIPE)),
    *(
        "net.lost",
        "net.repeated",
        "net.clogged",
        "net.cut",
        "net.unreachable",
        "net.peer_down",
        "net.flapped",
        "net.expired",
    ),
    *("client.hung_up", "client.retried", "client.sent_again"),
    *(
        "disk.flipped_records",
        "disk.flipped_hints",
        "mints",
        "siblings",
        "replayed",
        "hints.kept",
        "hints.removed",
        "reaped",
    ),
)
STINTS = ("stints_amnesia", "stints_corrupt")
"""Counters whose names the core puts together."""
RARE = frozenset({
    "busy",  # needs more clients than a run has
    "bucket_props_ignored", "histories_refused",  # needs nodes of different versions
    "siblings_over_warning",
})  # fmt: skip
"""Counters that runs of this simulator need not reach; each says why."""


def core_counters() -> list[str]:
    """The names of the counters that the core's sources name."""
    found = set(STINTS)
    for path in sorted(Path(node.__file__).parent.rglob("*.py")):
        found.update(_COUNT.findall(path.read_text(encoding="utf-8")))
    return sorted(found - RARE)


def expected() -> list[str]:
    """Every mark that a large batch should hit, but for the crossed ones."""
    return [*SIMULATED, *(f"core.{name}" for name in core_counters())]


def never_hit(marks: Collection[str]) -> list[str]:
    """For people: what of it did not happen, then for each kind of fault the paths of the core never taken under it."""
    missed = [name for name in expected() if name not in marks]
    lines = [f"never hit: {', '.join(missed) or 'nothing'}"]
    for kind in Kind:
        if f"fault.{kind}" in marks:
            paths = [name for name in core_counters() if f"{kind}{CROSS}{name}" not in marks]
            lines.append(f"never hit under {kind}: {', '.join(paths) or 'nothing'}")
    return lines
