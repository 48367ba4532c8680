"""Seeds that once found a bug of ours, each with its story. ``test_runs`` repeats them all.

A plan is drawn from its seed by ``cartwheel.sim.swarm.draw``. When that function changes, old seeds mean other runs; therefore
each bug found here also lives on in ``cartwheel.sim.bugs``, where it must be caught again, and an entry names it. A shortened
plan (``--shrink`` prints it) means the same run whatever is drawn.
"""

from __future__ import annotations

from typing import NamedTuple

from cartwheel.sim.faults import Plan


class Regression(NamedTuple):
    """A run that must pass now, and must fail with the bug put back."""

    bug: str
    seed: int
    seconds: float
    story: str
    plan: Plan | None = None
    """The run itself; None: what the seed draws."""


REGRESSIONS = [
    Regression(
        "unknown-dot-forgotten", 1, 30.0,
        "A put whose context names a single write (the context after a put that left siblings) came to a coordinator that had "
        "not heard of that write. The quorum read for it failed, and the put was stamped all the same: what the client had "
        "seen stayed beside what replaced it. Now it is noted in the record's cloud.",
    ),
    Regression(
        "refusal-relayed", 11, 30.0,
        "A forwarded put was refused by the owner for want of a quorum, and the forwarder told its client 'rejected'. The "
        "network delivered a second copy of the Forward when the quorum was there again, so the put was done after all. Now a "
        "refusal of another node is relayed as 'unknown'.",
    ),
    Regression(
        "shortfall-relayed", 39, 30.0,
        "A node between two halves handed a put to an owner, which did not reach W nodes, and relayed its failure, though it "
        "reached W nodes itself: promise P3 was broken. Now it tries the other owners, and then coordinates the put itself.",
    ),
]  # fmt: skip
