"""C4: causal consistency of one key, by the bad patterns of Bouajjani et al. (POPL 2017), in multi-value form.

A history is causally consistent unless it shows one of these. *Causally before* is the closure of two relations: a write comes
after all that its context named, and a read after every write that its session had passed on by then.

    CyclicCO          writes that supersede one another in a circle
    ThinAirRead       a read of a value that nobody wrote, or that was not written to this key
    WriteCORead       a read that returns x, though a y that supersedes x is causally before it, and not present
    WriteCOInitRead   a read that returns nothing, though a write that nobody deleted is causally before it
    WriteCOHidden     a read that returns something else, but not what is causally before it: siblings must be shown, too

A version is *present* in a read if it is returned, or in the past of one that is, or dead (its tombstone is reaped).

The first two are violations anywhere. The other three need a premise: no get carries its session's context, so a replica
that is behind cannot know, and only overlapping quorums (``Plan.fresh``) make a session see what it has written. A session's past
is what it *passed on*: its acknowledged writes and all that their contexts named. What it only saw does not enter: quorums do
not promise monotonic reads of writes under way (``checkers.check_sessions`` counts those).

Cost: O(1) big-int operations for each mint and read.
"""

from __future__ import annotations

from cartwheel.core.types import Dot
from cartwheel.sim.history import KeyHistory, Read, Status, Violation, dot_text


def check_causal(history: KeyHistory, *, strict: bool = True) -> tuple[list[Violation], int]:
    """C4. Not ``strict``: reads that are behind their sessions are counted, not found wrong. Returns their number, too."""
    circle = find_circle({dot: mint.replaced for dot, mint in history.mints.items()})
    if circle:
        told = " < ".join(dot_text(dot) for dot in circle)
        return [Violation("C4", history.key, f"CyclicCO: {told}")], 0
    found = [v for read in history.reads if read.status is Status.OK for v in _thin_air(history, read)]
    order = {dot: number for number, dot in enumerate(history.mints)}
    past: dict[Dot, int] = {}
    for dot in history.mints:
        _close(history, order, past, dot)
    behind = 0
    for process in sorted({read.process for read in history.reads}):
        for read, missing in _behind(history, order, past, process):
            behind += 1
            if strict:
                found.append(_told(history, order, past, read, missing))
    return found, behind


def find_circle(replaced: dict[Dot, tuple[Dot, ...]]) -> list[Dot]:
    """Dots each of which supersedes the next, the last one the first; empty if there are none. Depth first, without recursion."""
    done: set[Dot] = set()
    for root in replaced:
        path: list[Dot] = []
        stack: list[tuple[Dot, bool]] = [(root, False)]
        while stack:
            dot, leaving = stack.pop()
            if leaving:
                path.pop()
                done.add(dot)
            elif dot in path:
                return path[path.index(dot) :]
            elif dot not in done and dot in replaced:
                path.append(dot)
                stack.append((dot, True))
                stack.extend((below, False) for below in replaced[dot])
    return []


def _close(history: KeyHistory, order: dict[Dot, int], past: dict[Dot, int], dot: Dot) -> None:
    """Set ``past[dot]``: the dot and all that it supersedes, as bits. There is no circle."""
    stack = [dot]
    while stack:
        top = stack[-1]
        below = [d for d in history.mints[top].replaced if d in order and d not in past]
        if below:
            stack += below
            continue
        bits = 1 << order[top]
        for other in history.mints[top].replaced:
            bits |= past.get(other, 0)
        past[top] = bits
        stack.pop()


def _thin_air(history: KeyHistory, read: Read) -> list[Violation]:
    where = f"the get of p{read.process} via {read.node}"
    nobodys = [f"#{number}" for number in read.shown if number not in history.writes]
    nobodys += [dot_text(dot) for dot in read.dots if dot not in history.mints]
    if not nobodys:
        return []
    return [Violation("C4", history.key, f"ThinAirRead: {where} shows {' '.join(nobodys)}", read.completed_at)]


def _behind(history: KeyHistory, order: dict[Dot, int], past: dict[Dot, int], process: int) -> list[tuple[Read, int]]:
    """The reads of a session that miss something of its past, and what (as bits)."""
    dead = 0
    for dot in history.reaped:
        dead |= past.get(dot, 0)
    passed = sorted(
        (at, past.get(dot, 0))
        for write in history.writes.values()
        if write.process == process
        for dot, at in write.acked.items()
    )
    found: list[tuple[Read, int]] = []
    before, position = 0, 0
    reads = (read for read in history.reads if read.process == process and read.status is Status.OK)
    for read in sorted(reads, key=lambda read: read.invoked_at):
        while position < len(passed) and passed[position][0] < read.invoked_at:
            before |= passed[position][1]
            position += 1
        present = dead
        for dot in read.dots:
            present |= past.get(dot, 0)
        if before & ~present:
            found.append((read, before & ~present))
    return found


def _told(history: KeyHistory, order: dict[Dot, int], past: dict[Dot, int], read: Read, missing: int) -> Violation:
    """Which of the three patterns it is."""
    names = [dot for dot, number in order.items() if missing >> number & 1]
    over = [dot for dot in read.dots if any(past[y] >> order[dot] & 1 for y in names if dot in order)]
    if over:
        pattern, returned = "WriteCORead", f"returns {' '.join(map(dot_text, over))}, but not"
    elif not read.dots:
        pattern, returned = "WriteCOInitRead", "returns nothing, not even"
    else:
        pattern, returned = "WriteCOHidden", f"returns {' '.join(map(dot_text, read.dots))}, but not"
    told = " ".join(f"{dot_text(dot)} (#{history.mints[dot].write})" for dot in names[-5:])
    text = f"{pattern}: p{read.process} via {read.node} {returned} {told}, which its session had passed on"
    return Violation("C4", history.key, text, read.completed_at)
