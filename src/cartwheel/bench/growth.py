"""A cluster grows from three nodes to six and shrinks to three again, under a steady load that is judged.

    fill   baseline   start n4 n5 n6   grow   tidy   steady   shrink   tidy   stop n1 n2 n3   after   read back
           ├────────────────── the load goes on without a pause, at one rate ───────────────────┤

*grow* and *shrink* last from the commit until every partition has its new owners, as ``cartwheel cluster transfers`` says;
*tidy* until those who gave have removed what they handed over (which takes ``give_grace_s``, and nobody waits for it, but one
that leaves). Clients connect to the first three nodes. Once nodes are to leave, clients are told who stays: second tries and
new connections go there, while those that are open stay until they are refused.

Nodes are looked at every ``look_s`` in every phase, so the baseline bears that, too.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path

from cartwheel.bench.buckets import set_property
from cartwheel.bench.growth_result import GrowthOptions, GrowthResult, phases_of
from cartwheel.bench.keyspace import ReadBack
from cartwheel.bench.loadprocess import LoadProcess
from cartwheel.bench.nodes import Look, Nodes, names
from cartwheel.bench.run import Progress
from cartwheel.bench.steady import LoadOptions, LoadReport
from cartwheel.core.config import BucketProps

QUIET_LOOKS = 2
"""So many in a row must say that nothing is left over: right after a hand-over a node may not have noticed what it has."""
JOIN_LOOK_S = 0.5
FIRST = 3
BUCKET = "0"
"""That of a client that selects none."""

Say = Callable[[str], None]


class _TooLong(Exception):
    """A hand-over did not end within the limit."""


def run_growth(
    options: GrowthOptions, folder: Path, progress: Progress | None = None, say: Say | None = None
) -> GrowthResult:
    """Carry it out, with the nodes' data and logs in ``folder``. An interrupt (Ctrl-C) ends it early; the result then says so.

    Raises:
        ConfigError: an option is out of range.
        BenchFailed: a node ended or does not do what it is told, or the load generator could not do its part.
    """
    options.check()
    return Growth(options, folder, progress or (lambda *_: None), say or (lambda _: None)).run()


class Growth:
    """One run."""

    def __init__(self, options: GrowthOptions, folder: Path, progress: Progress, say: Say) -> None:
        self._options = options
        self._progress = progress
        self._say = say
        self._nodes = Nodes(folder, 2 * FIRST, options.settings)
        self._founders, self._joiners = names(range(1, FIRST + 1)), names(range(FIRST + 1, 2 * FIRST + 1))
        leavers = self._founders if options.leave == "first" else self._joiners
        self._leavers = leavers
        self._stayers = self._joiners if options.leave == "first" else self._founders
        self._load: LoadProcess
        self._last = Look(False, 0, 0, (), 0, 0, 0.0)
        self._marks: list[tuple[str, float, Look]] = []  # phases, when they began, and how far the hand-over was
        self._unfinished = ""

    def run(self) -> GrowthResult:
        """All of it."""
        interrupted, back = False, None
        nodes = self._nodes
        with nodes:
            self._say(f"starting {FIRST} nodes")
            nodes.found(FIRST)
            if self._options.strict:
                self._demand_owners()
            with LoadProcess(self._load_options(), self._show) as self._load:
                seconds = self._load.fill()
                self._say(f"{'filled':<22} {self._options.keys:,} keys in {seconds:.1f} s")
                self._load.start()
                self._mark("warming up")
                try:
                    self._story()
                except KeyboardInterrupt:
                    interrupted = True
                except _TooLong as error:
                    self._unfinished = str(error)
                    self._say(f"gave up: {error}")
                self._end_phase()
                report = self._load.stop()
                if not interrupted:
                    back = self._read_back()
        return self._result(report, back, interrupted=interrupted)

    def _demand_owners(self) -> None:
        props = BucketProps()
        for name, value in (("pr", props.r), ("pw", props.w)):
            set_property(self._nodes.addresses[:FIRST], BUCKET, name, str(value))

    def _load_options(self) -> LoadOptions:
        options = self._options
        return LoadOptions(
            addresses=self._nodes.addresses,
            first=tuple(map(self._nodes.number, self._founders)),
            keys=options.keys,
            rate_per_s=options.rate_per_s,
            value_bytes=options.value_bytes,
            read_ratio=options.read_ratio,
            distribution=options.distribution,
            connections=options.connections,
            pipeline=options.pipeline,
            seed=options.seed,
            timeout_s=options.timeout_s,
        )

    # --- the story ---

    def _story(self) -> None:
        options = self._options
        self._hold("warming up", options.warmup_s)
        self._hold("baseline", options.baseline_s)
        for group in self._groups(self._joiners):
            self._grow(group)
        self._hold("steady", options.steady_s)
        self._load.use(self._numbers(self._stayers))
        for group in self._groups(self._leavers):
            self._shrink(group)
        self._hold("after", options.baseline_s)

    def _groups(self, nodes: Sequence[str]) -> list[list[str]]:
        return [[name] for name in nodes] if self._options.one_by_one else [list(nodes)]

    def _grow(self, joiners: list[str]) -> None:
        at = self._founders[0]
        self._begin(f"start {' '.join(joiners)}")
        self._nodes.join(joiners, at, lambda: self._load.pump(JOIN_LOOK_S))
        self._begin(self._named("grow", joiners))
        self._nodes.commit(at)
        if self._options.spread:
            self._load.use(list(range(len(self._nodes.running))), spread=True)
        self._until(lambda look: self._nodes.handed_over(look, at))
        self._begin(self._named("tidy", joiners))
        self._until_tidy()

    def _shrink(self, leavers: list[str]) -> None:
        at = self._stayers[0]
        self._begin(self._named("shrink", leavers))
        self._nodes.stage_leave(leavers, at)
        self._nodes.commit(at)
        self._until(lambda look: self._nodes.handed_over(look, at))
        self._begin(self._named("tidy", leavers))
        self._until_tidy()
        self._begin(f"stop {' '.join(leavers)}")
        for name in leavers:
            while not self._nodes.may_stop(name, at):
                self._pause()
            self._nodes.stop(name, lambda: self._load.pump(0.1))

    def _named(self, what: str, nodes: list[str]) -> str:
        return f"{what} {nodes[0]}" if self._options.one_by_one else what

    # --- phases ---

    def _begin(self, name: str) -> None:
        """The next phase begins."""
        self._end_phase()
        self._load.begin_phase(name)
        self._mark(name)

    def _mark(self, name: str) -> None:
        self._look()
        self._marks.append((name, time.monotonic(), self._last))

    def _end_phase(self) -> None:
        """Say how the phase went that ends now."""
        name, began_s, before = self._marks[-1]
        records = self._look().records - before.records
        moved = f", {records:,} records handed over" if records else ""
        failed = f", {self._load.failed:,} failed" if self._load.failed else ""
        self._say(f"{name:<22} {time.monotonic() - began_s:6.1f} s {self._load.done:9,} operations{failed}{moved}")

    def _hold(self, name: str, seconds: float) -> None:
        """Go on like this for so long."""
        if self._marks[-1][0] != name:
            self._begin(name)
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            self._load.pump(min(self._options.look_s, left))
            self._look()

    def _until(self, reached: Callable[[Look], bool], looks: int = 1) -> None:
        """Wait until so many looks in a row show that it is so."""
        name, began_s, _ = self._marks[-1]
        good = 0
        while True:
            good = good + 1 if reached(self._look()) else 0
            if good >= looks:
                return
            if time.monotonic() - began_s > self._options.limit_s:
                why = (
                    "; ".join(self._last.waits)
                    or f"{self._last.left} partitions left, {self._last.leftovers} left over"
                )
                raise _TooLong(f"{name!r} is not done after {self._options.limit_s:g} s ({why})")
            self._pause()

    def _until_tidy(self) -> None:
        self._until(lambda look: look.tidy, QUIET_LOOKS)

    def _pause(self) -> None:
        self._load.pump(self._options.look_s)

    def _look(self) -> Look:
        self._last = self._nodes.look()
        return self._last

    def _show(self, phase: str, seconds: float, done: int, failed: int) -> None:
        """The line that says how it goes."""
        look = self._last
        parts = [phase]
        if look.left:
            parts.append(f"{look.left:,} partitions to take over")
        elif look.leftovers:
            parts.append(f"{look.leftovers:,} partitions to tidy up")
        self._progress(", ".join(parts), seconds, done, failed)

    # --- the end ---

    def _numbers(self, nodes: Sequence[str]) -> list[int]:
        return [self._nodes.number(name) for name in nodes]

    def _read_back(self) -> ReadBack:
        """Through all that are still there; after a whole run those are the ones that stay."""
        left = self._nodes.running
        addresses = [self._nodes.addresses[number] for number in self._numbers(left)]
        back = self._load.read_back(addresses if not self._unfinished else addresses[:FIRST])
        self._say(f"{'read back':<22} {back.seconds:6.1f} s {back.keys:9,} keys")
        return back

    def _result(self, report: LoadReport, back: ReadBack | None, *, interrupted: bool) -> GrowthResult:
        looks = [look for _, _, look in self._marks]
        looks += [self._last] * (len(report.phases) + 1 - len(looks))  # an interrupt may have come between the two
        return GrowthResult(
            options=self._options,
            phases=phases_of(report.phases, looks),
            read_back=back,
            examples=[*report.examples, *(back.examples if back is not None else [])],
            texts=report.texts,
            aside=report.aside,
            generator_busy=report.generator_busy,
            unfinished=self._unfinished,
            interrupted=interrupted,
        )
