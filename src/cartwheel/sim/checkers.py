"""The judges: each promise of the store as a pure function over a history that returns its violations.

    C1     set + sibling merge    no acknowledged element of a set is lost, none appears that nobody added
    C2     exact supersession     a version goes only when a write that had seen it takes its place, and then for good: the
                                  main oracle. It is called C6 where a delete is undone
    LWW    last writer wins       the one that remains is no older than any acknowledged one
    C3     sessions               a process reads its own writes; going back in time is counted
    FRESH  quorums overlap        with R+W>N and no fallbacks a get sees every put acknowledged before it
    C4     causality              see ``causal``
    C5     convergence            some time after healing, all owners hold the same canonical bytes, nobody else holds
                                  anything, no hint is left, and each owner alone has all that was acknowledged
    C6     no resurrection        nothing that a delete covered lives anywhere, hints included
    SCAN   scan                   after healing, a walk through the pages shows each live key once
    C8     availability           while nothing disturbs the cluster, nothing fails; and no write fails whose coordinator reached
                                  W-1 other nodes all the while (P3)
    P7     honest failures        "rejected" means certainly not applied
    TTL    expiry                 a value is shown until it expires, and never after

C7 (dots) and C9 (durability) are asked while the run goes on; see ``ledgers``.

**How C2 works.** Each mint tells what it supersedes: the versions that its client had read (a blind write: what its
coordinator held). ``past(d)`` is the transitive closure, kept as an int bitset for each dot. A version d is *present* in a set
S of versions if it is in S or in the past of a member. Nothing acknowledged, nor anything that a client was shown, may ever
be absent from what is left at the end; and no two versions of which one is in the other's past may be seen together: that
would be a false sibling, or a deleted value risen again. Checking costs O(1) big-int operations per mint and read.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence

from cartwheel.core import messages
from cartwheel.core.errors import Code
from cartwheel.core.types import Dot, NodeId
from cartwheel.sim.history import Final, KeyHistory, Leftover, Mint, Status, Try, Violation, dot_text
from cartwheel.sim.reach import Reach


class Pasts:
    """The causal past of every dot of one key, as bitsets over the order of minting."""

    def __init__(self, mints: dict[Dot, Mint]) -> None:
        self.index: dict[Dot, int] = {}
        self._with_past: dict[Dot, int] = {}
        for dot, mint in mints.items():
            self.add(dot, mint.replaced)

    def add(self, dot: Dot, replaced: Iterable[Dot]) -> None:
        """One more dot, minted after all that are here; what it supersedes is among them, or unknown."""
        number = self.index[dot] = len(self.index)
        self._with_past[dot] = self.covered(replaced) | 1 << number

    def bits(self, dots: Iterable[Dot]) -> int:
        """The dots themselves. Unknown ones count for nothing: they are reported as such."""
        found = 0
        for dot in dots:
            if dot in self.index:
                found |= 1 << self.index[dot]
        return found

    def covered(self, dots: Iterable[Dot]) -> int:
        """The dots and all that they supersede: what is present in this set."""
        found = 0
        for dot in dots:
            found |= self._with_past.get(dot, 0)
        return found

    def superseded(self, dots: Iterable[Dot]) -> int:
        """What is in the past of some of the dots."""
        found = 0
        for dot in dots:
            if dot in self.index:
                found |= self._with_past[dot] & ~(1 << self.index[dot])
        return found

    def names(self, bits: int) -> list[Dot]:
        """The dots behind a bitset, in order of minting."""
        return [dot for dot, number in self.index.items() if bits >> number & 1]


def _told(history: KeyHistory, dots: Iterable[Dot]) -> str:
    """Dots for a message, each with its write."""
    return " ".join(
        f"{dot_text(dot)} (#{history.mints[dot].write})" if dot in history.mints else f"{dot_text(dot)} (nobody's)"
        for dot in dots
    )


def _check_seen(history: KeyHistory, pasts: Pasts, dots: Sequence[Dot], where: str, at: float) -> list[Violation]:
    """What holds for every set of versions that anyone sees together: each was written, and none supersedes another."""
    unknown = [dot for dot in dots if dot not in pasts.index]
    if unknown:
        return [
            Violation("C2", history.key, f"{where} shows versions that nobody wrote: {_told(history, unknown)}", at)
        ]
    both = pasts.bits(dots) & pasts.superseded(dots)
    if not both:
        return []
    gone = pasts.names(both)
    winners = [dot for dot in dots if pasts.superseded([dot]) & both]
    risen = any(history.mints[dot].tombstone for dot in winners)
    rule, what = ("C6", "a deleted version") if risen else ("C2", "a superseded version")
    text = f"{where} shows {what} beside what superseded it: {_told(history, gone)} in the past of {_told(history, winners)}"
    return [Violation(rule, history.key, text, at)]


def check_supersession(history: KeyHistory, *, shown_stays: bool = True) -> list[Violation]:
    """C2. What a client was shown must stay, acknowledged or not, for replicas show only what is durable; except where a disk
    was lost (not ``shown_stays``): it may have been the only one that had it."""
    pasts = Pasts(history.mints)
    found: list[Violation] = []
    shown: set[Dot] = set()
    for read in history.reads:
        if read.status is Status.OK:
            where = f"the get of p{read.process} via {read.node}"
            found += _check_seen(history, pasts, read.dots, where, read.completed_at)
            shown.update(read.dots)
    acked = pasts.bits(dot for write in history.writes.values() for dot in write.acked)
    dead = pasts.covered(history.reaped)
    for dots in sorted({final.dots for final in history.finals.values()}):
        nodes = ", ".join(sorted(node for node, final in history.finals.items() if final.dots == dots))
        found += _check_seen(history, pasts, dots, f"the final record of {nodes}", 0.0)
        covered = pasts.covered(dots) | dead
        lost = acked & ~covered
        if lost:
            told = _told(history, pasts.names(lost))
            found.append(Violation("C2", history.key, f"acknowledged and lost at {nodes}: {told}"))
        vanished = pasts.bits(shown) & ~covered & ~lost
        if vanished and shown_stays:
            told = _told(history, pasts.names(vanished))
            found.append(Violation("C2", history.key, f"shown to a client, then lost at {nodes}: {told}"))
    return found


def check_last_writer_wins(history: KeyHistory) -> list[Violation]:
    """LWW: at most one version remains; every acknowledged one is in its past, or older by the clock; and it is not in the past
    of an acknowledged one, for readings respect causality."""
    pasts = Pasts(history.mints)
    found: list[Violation] = []
    acked = {dot for write in history.writes.values() for dot in write.acked}
    for node, final in sorted(history.finals.items()):
        unknown = [dot for dot in final.dots if dot not in pasts.index]
        if unknown:
            found.append(Violation("LWW", history.key, f"{node} holds what nobody wrote: {_told(history, unknown)}"))
            continue
        if len(final.dots) > 1:
            found.append(Violation("LWW", history.key, f"{node} holds siblings: {_told(history, final.dots)}"))
        covered = pasts.covered((*final.dots, *history.reaped))
        risen = pasts.bits(final.dots) & pasts.superseded(sorted(acked))
        if risen:
            text = f"{node} holds {_told(history, final.dots)}, which an acknowledged write had superseded"
            found.append(Violation("LWW", history.key, text))
        newest = max(((counter, actor) for actor, counter in (*final.dots, *history.reaped)), default=(-1, ""))
        lost = [d for d in pasts.names(pasts.bits(acked) & ~covered) if (d[1], d[0]) > newest]
        if lost:
            text = f"{node} holds {_told(history, final.dots)} but newer ones were acknowledged: {_told(history, lost)}"
            found.append(Violation("LWW", history.key, text))
    return found


def check_set(
    key: str, attempted: set[int], acked: set[int], finals: dict[str, set[int]]
) -> tuple[list[Violation], int]:
    """C1, over the elements of a set that clients grow by read, union, put. Also counts the recovered ones: never
    acknowledged, but there."""
    found: list[Violation] = []
    recovered: set[int] = set()
    for node, elements in sorted(finals.items()):
        lost, phantom = acked - elements, elements - attempted
        if lost:
            found.append(Violation("C1", key, f"acknowledged elements lost at {node}: {sorted(lost)[:20]}"))
        if phantom:
            found.append(Violation("C1", key, f"elements at {node} that nobody added: {sorted(phantom)[:20]}"))
        recovered |= elements & attempted - acked
    return found, len(recovered)


def check_fresh(history: KeyHistory) -> list[Violation]:
    """FRESH: a get that begins after a put was acknowledged shows it, or what superseded it.

    Premise: R + W > N, and every ack and answer came from an owner (no fallback stood in for one).
    """
    pasts = Pasts(history.mints)
    acks = sorted((at, dot) for write in history.writes.values() for dot, at in write.acked.items())
    found: list[Violation] = []
    must, position = 0, 0
    for read in sorted(history.reads, key=lambda r: r.invoked_at):
        while position < len(acks) and acks[position][0] < read.invoked_at:
            must |= pasts.bits([acks[position][1]])
            position += 1
        if read.status is not Status.OK:
            continue
        missing = must & ~pasts.covered((*read.dots, *history.reaped))
        if missing:
            told = _told(history, pasts.names(missing)[:5])
            text = (
                f"the get of p{read.process} via {read.node} from {read.invoked_at:.3f} misses the acknowledged {told}"
            )
            found.append(Violation("FRESH", history.key, text, read.completed_at))
    return found


def check_sessions(history: KeyHistory, *, strict: bool = True) -> tuple[list[Violation], dict[str, int]]:
    """C3: read your writes, a violation if ``strict`` (the premise of FRESH holds), else counted; and how often a process
    read an older state than it had seen (monotonic reads), which quorums do not promise for writes under way."""
    pasts = Pasts(history.mints)
    counts = {"session.reads": 0, "session.stale_own": 0, "session.back_in_time": 0}
    found: list[Violation] = []
    reads = [r for r in history.reads if r.status is Status.OK]
    for process in sorted({r.process for r in reads}):
        writes = [w for w in history.writes.values() if w.process == process]
        mine = sorted((at, dot) for w in writes for dot, at in w.acked.items())
        own, seen, position = 0, 0, 0
        for read in sorted((r for r in reads if r.process == process), key=lambda r: r.invoked_at):
            while position < len(mine) and mine[position][0] < read.invoked_at:
                own |= pasts.bits([mine[position][1]])
                position += 1
            covered = pasts.covered((*read.dots, *history.reaped))
            counts["session.reads"] += 1
            counts["session.back_in_time"] += bool(seen & ~covered)
            if own & ~covered:
                counts["session.stale_own"] += 1
                if strict:
                    told = _told(history, pasts.names(own & ~covered)[:5])
                    text = f"p{process} via {read.node} does not read its own {told}"
                    found.append(Violation("C3", history.key, text, read.completed_at))
            seen |= pasts.bits(read.dots)
    return found, counts


def check_convergence(history: KeyHistory) -> list[Violation]:
    """C5: all owners hold identical bytes, and those are the canonical ones."""
    found: list[Violation] = []
    for node, final in sorted(history.finals.items()):
        if not final.canonical:
            found.append(Violation("C5", history.key, f"{node} holds bytes that are not canonical"))
    if len({_left(history, final) for final in history.finals.values()}) > 1:
        held = "; ".join(f"{n}: {_told(history, f.dots) or 'nothing'}" for n, f in sorted(history.finals.items()))
        found.append(Violation("C5", history.key, f"owners differ after healing: {held}"))
    return found


def _left(history: KeyHistory, final: Final) -> bytes | None:
    """What an owner holds, byte for byte; nothing, if it has yet to drop what another one has reaped a moment ago."""
    dead = bool(final.dots) and not final.live and all(dot in history.reaped for dot in final.dots)
    return None if dead else final.sealed


def check_leftovers(leftovers: Iterable[Leftover]) -> list[Violation]:
    """C5: when all hints are delivered, nothing lies on a node that does not own it."""
    found: list[Violation] = []
    for left in leftovers:
        what = f"still keeps a hint for {left.intended}" if left.intended else "holds a record that it does not own"
        found.append(Violation("C5", left.key, f"{left.node} {what}"))
    return found


def check_resurrection(
    history: KeyHistory, leftovers: Iterable[Leftover], *, shown_stays: bool = True
) -> list[Violation]:
    """C6: what a tombstone superseded lives nowhere: not on any owner, not on any other node, not in a hint. It counts if it was
    acknowledged, reaped, or (``shown_stays``, as in C2) shown: another may have vanished with the node that minted it."""
    pasts = Pasts(history.mints)
    tombstones = [dot for dot, mint in history.mints.items() if mint.tombstone]
    done = {dot for write in history.writes.values() for dot in write.acked} | set(history.reaped)
    if shown_stays:
        done.update(dot for read in history.reads if read.status is Status.OK for dot in read.dots)
    dead = pasts.superseded(dot for dot in tombstones if dot in done)
    found: list[Violation] = []
    places = [(f"{node}", final.live_dots) for node, final in sorted(history.finals.items())]
    for left in leftovers:
        place = f"a hint at {left.node} for {left.intended}" if left.intended else f"{left.node}, no owner,"
        places.append((place, left.live))
    for place, dots in places:
        risen = pasts.names(pasts.bits(dots) & dead)
        if risen:
            found.append(Violation("C6", history.key, f"{place} holds what was deleted: {_told(history, risen)}"))
    return found


def check_scan(histories: Iterable[KeyHistory], scanned: Sequence[str], *, ended: bool) -> list[Violation]:
    """SCAN: after healing, walking through the pages shows every live key once, and no other."""
    if not ended:
        return [Violation("SCAN", "", f"the walk did not reach its end; it showed {len(scanned)} keys")]
    found: list[Violation] = []
    finals = {history.key: any(final.live for final in history.finals.values()) for history in histories}
    for key, live in sorted(finals.items()):
        times = scanned.count(key)
        if times != live:
            found.append(Violation("SCAN", key, f"shown {times} times, but it is {'live' if live else 'not there'}"))
    return found + [Violation("SCAN", key, "nobody ever wrote it") for key in sorted(set(scanned) - finals.keys())]


def check_available(tries: Iterable[Try], disturbed: Sequence[tuple[float, float]]) -> list[Violation]:
    """C8: no request fails for want of a quorum while nothing disturbs the cluster. ``disturbed``: when something did."""
    found: list[Violation] = []
    for attempt in tries:
        if attempt.status is Status.OK or attempt.code not in {Code.NOQUORUM, None}:
            continue
        if any(word in attempt.text for word in EXCUSES):
            continue
        if any(start <= attempt.completed_at and attempt.invoked_at <= end for start, end in disturbed):
            continue
        why = f"{attempt.code} {attempt.text}" if attempt.code else "no answer"
        text = f"a request via {attempt.node} from {attempt.invoked_at:.3f} failed in quiet times: {why}"
        found.append(Violation("C8", "", text, attempt.completed_at))
    return found


VERDICT_S = 4.5
"""A node that relapsed often is trusted again after eight good probes, half a second apart (``core.failure``): so long before the
request nothing must have been wrong, either."""


def check_served(
    tries: Iterable[Try], reach: Reach, nodes: Sequence[NodeId], w: int, removed: Collection[NodeId] = ()
) -> list[Violation]:
    """C8, P3: a write whose coordinator reached W-1 other nodes all the while is not refused for want of a quorum, and not left
    without an answer, unless the reason given is another (busy, a full disk, a clock that is off). A coordinator that joins or
    leaves has no copy of its own that counts, so it must have reached W others; one that is ``removed`` is heard by nobody."""
    found: list[Violation] = []
    for attempt in tries:
        if attempt.node in removed:
            continue
        if not attempt.write or attempt.status is Status.OK or attempt.code not in {Code.NOQUORUM, None}:
            continue
        if any(word in attempt.text for word in EXCUSES):
            continue
        start, end = attempt.invoked_at - VERDICT_S, attempt.completed_at
        others = [other for other in nodes if other != attempt.node and reach.reached(attempt.node, other, start, end)]
        if len(others) >= (max(w - 1, 1) if attempt.node in nodes else w):
            why = f"{attempt.code} {attempt.text}" if attempt.code else "no answer"
            where = f"a write via {attempt.node} from {attempt.invoked_at:.3f}"
            text = f"{where} failed, though it reached {', '.join(others)}: {why}"
            found.append(Violation("C8", "", text, end))
    return found


EXCUSES = ("clock", "disk", "no member")
"""Words in the text of a refusal that name another reason than missing nodes."""


def check_views(views: Mapping[NodeId, messages.Status]) -> list[Violation]:
    """UP: long after healing each node finds each other one well again."""
    return [
        Violation("UP", "", f"{name} finds {member.node} {member.state} long after healing: {member.reason}")
        for name, view in sorted(views.items())
        for member in view.members
        if member.node != name and member.state != "up"
    ]


def check_settled(views: Mapping[NodeId, messages.Status]) -> list[Violation]:
    """MOVE: long after healing every hand-over is over, and nothing is left where it has no business."""
    found: list[Violation] = []
    for name, view in sorted(views.items()):
        waits = [f"{row.partitions} from {row.source or 'nobody'} ({row.waits})" for row in view.transfer.gains]
        if waits:
            found.append(Violation("MOVE", "", f"{name} still gains partitions: {', '.join(waits)}"))
        if view.transfer.leftovers:
            found.append(Violation("MOVE", "", f"{name} has records of {view.transfer.leftovers} partitions left over"))
    return found


def check_rejected(history: KeyHistory) -> list[Violation]:
    """P7: a write of which every try was rejected was never minted."""
    found: list[Violation] = []
    for mint in history.mints.values():
        write = history.writes.get(mint.write)
        if write is not None and write.status is Status.REJECTED:
            text = f"write #{write.id} was rejected, but {mint.node} minted {dot_text(mint.dot)} of it"
            found.append(Violation("P7", history.key, text, mint.at))
    return found


def check_expiry(history: KeyHistory, *, slack_ms: int) -> list[Violation]:
    """TTL: what is shown has not expired, and what has not expired is shown, give or take the clocks' error.

    Versions of one request count as one, so a hidden one may have a shown twin.
    """
    found: list[Violation] = []
    for read in history.reads:
        if read.status is not Status.OK:
            continue
        for dot in read.dots:
            mint = history.mints.get(dot)
            write = history.writes.get(mint.write) if mint is not None else None
            if mint is None or write is None or mint.tombstone:
                continue
            until, seen = write.expires_at_ms, write.id in read.shown
            if seen and 0 < until <= read.wall_ms - slack_ms:
                text = f"the get via {read.node} shows #{write.id}, {read.wall_ms - until} ms after it expired"
                found.append(Violation("TTL", history.key, text, read.completed_at))
            if not seen and (until == 0 or until > read.wall_ms + slack_ms):
                text = f"the get via {read.node} hides #{write.id}, which has not expired"
                found.append(Violation("TTL", history.key, text, read.completed_at))
    return found
