"""The shortening of a failing run: fewer seconds, fewer faults, fewer steps of clients, and still the same rule is broken.

Delta debugging (ddmin, Zeller and Hildebrandt 2002): leave out half, then quarters, and so on, of the faults, then of the steps;
keep what still fails. Leaving a step out shifts times and dice of the network that come after it, so a shortened run is a run of
its own; but it is exactly repeatable, and most of what matters is left in it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TypeVar

from cartwheel.sim.faults import Plan
from cartwheel.sim.run import Report, run

T = TypeVar("T")
RUNS_MAX = 250
"""How many runs a shortening may take: some minutes."""
SECONDS_MIN = 2.0


class Shortening:
    """One failing plan on its way to a smaller one."""

    def __init__(self, plan: Plan, *, bug: str, note: Callable[[str], None], runs_max: int) -> None:
        self.bug = bug
        self.note = note
        self.runs_left = runs_max
        self.plan = plan
        self.report = run(plan, bug=bug)
        assert self.report.violations, "a run without violations has nothing to shrink"
        self.rule = self.report.violations[0].rule

    def accept(self, candidate: Plan) -> bool:
        """Go on with a plan if it still fails in the same way."""
        if self.runs_left <= 0:
            return False
        self.runs_left -= 1
        report = run(candidate, bug=self.bug)
        if not any(v.rule == self.rule for v in report.violations):
            return False
        self.plan, self.report = candidate, report
        steps = len(report.steps)
        self.note(f"{candidate.seconds:g} s, {len(candidate.faults)} faults, {steps} steps still break {self.rule}")
        return True

    def cut_time(self) -> None:
        """End soon after the violation; or, if it showed only in the end, after half the time, and half of that."""
        at = next((v.at for v in self.report.violations if v.rule == self.rule), 0.0)
        if 0 < at < self.plan.seconds - 1.0:
            self.accept(_until(self.plan, round(at + 0.5, 1)))
        while self.plan.seconds / 2 >= SECONDS_MIN and self.accept(_until(self.plan, round(self.plan.seconds / 2, 1))):
            pass

    def drop_faults(self) -> None:
        """Leave out faults."""
        ddmin(self.plan.faults, lambda kept: self.accept(self.plan.with_faults(tuple(kept))))

    def drop_acts(self) -> None:
        """Leave out what administrators do."""
        ddmin(self.plan.acts, lambda kept: self.accept(replace(self.plan, acts=tuple(kept))))

    def drop_steps(self) -> None:
        """Leave out what clients do."""
        ddmin(self.report.steps, lambda kept: self.accept(replace(self.plan, only=frozenset(kept))))


def shrink(
    plan: Plan, *, bug: str = "", note: Callable[[str], None] = lambda text: None, runs_max: int = RUNS_MAX
) -> Report:
    """The report of a small run that still breaks the same rule; its plan is in it."""
    work = Shortening(plan, bug=bug, note=note, runs_max=runs_max)
    work.cut_time()
    work.drop_acts()
    work.drop_faults()
    work.drop_steps()
    work.drop_faults()
    return work.report


def ddmin(items: Sequence[T], fails: Callable[[Sequence[T]], bool]) -> Sequence[T]:
    """What is left of ``items``, in order, when no piece that ddmin tries can be spared. ``fails`` must hold of the whole."""
    if not items or fails(()):
        return ()
    kept, pieces = items, 2
    while len(kept) >= 2:
        size = -(-len(kept) // pieces)
        for start in range(0, len(kept), size):
            rest = [*kept[:start], *kept[start + size :]]
            if rest and fails(rest):
                kept, pieces = rest, max(pieces - 1, 2)
                break
        else:
            if pieces >= len(kept):
                break
            pieces = min(len(kept), pieces * 2)
    return kept


def _until(plan: Plan, seconds: float) -> Plan:
    """The same run, but shorter."""
    faults = tuple(fault for fault in plan.faults if fault.at < seconds)
    return replace(plan, seconds=seconds, faults=faults, acts=tuple(act for act in plan.acts if act.at < seconds))
