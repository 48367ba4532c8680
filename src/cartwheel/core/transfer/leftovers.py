"""Leftovers: records of partitions that this node has no part in any more. It gave them, or was sent them by a coordinator with
an earlier view.

    found ──> compare with an owner (GIVEN) until it lacks nothing ──> wait ``give_grace_s`` ──> compare again
                     ^ it lacks something ────────────────────────────────────────────────────┘ │ nothing
                                                                                                v
                                                                         a new stint; remove them, a slice a tick

Comparing merges both ways, so what is here alone, or newer, is at an owner before it goes. That two trees are equal would say the
same, but under load they never are for long. The second comparison, a grace later, shows that the owner has it on its disk: a
group commit takes milliseconds. The new stint: with the records this node forgets dots of its own (versions, invariant A).

A corrupt record is in no tree (``summary``), so of a partition that is not ours it is noted by its key; it goes with the others.

A node that has left the ring and has nothing left over says so (``Membership.leave``): only then it is gone for the others.

Invariant: records are removed only if an owner lacked nothing of the partition twice, a grace apart.
"""

from __future__ import annotations

from collections.abc import Callable

from cartwheel.core import versions
from cartwheel.core.errors import CorruptData
from cartwheel.core.local import Local
from cartwheel.core.messages import Purpose
from cartwheel.core.placement import Placement
from cartwheel.core.storage import Space, split_record_key
from cartwheel.core.summary import Summary
from cartwheel.core.transfer.gains import Compare, Compared
from cartwheel.core.transfer.unseen import Part, Unseen
from cartwheel.core.types import NodeId

LOOK_S = 5.0
"""Between two looks at all partitions; a new view is looked at anew."""
REST_S = 1.0
"""After a comparison that did not end well."""
PARTS_MAX = 64
REMOVE_ROWS = 200
"""Records removed in one tick."""
DAMAGED_MAX = 1000
"""Corrupt records noted: more are found again by the next scrub."""
LOOK_ROWS = 10
"""To look at a part that is nearly empty costs about as much as to remove so many."""

Leave = Callable[[], None]
"""Told, again and again, that this node can leave."""


class Leftovers:
    """What this node has, and should not."""

    def __init__(self, local: Local, summary: Summary, compare: Compare, leave: Leave) -> None:
        self._local = local
        self._summary = summary
        self._compare = compare
        self._leave = leave
        self.unseen = Unseen(summary)
        self._look_s = 0.0  # when all are looked at again: meanwhile records may have come by an earlier view
        self._parts: dict[Part, None] = {}
        self._safe_s: dict[Part, float] = {}  # since when an owner lacks nothing of it
        self._busy: set[NodeId] = set()
        self._rest_until_s: dict[NodeId, float] = {}
        self._removing: dict[Part, bytes] = {}  # from which record key on
        self._damaged: dict[bytes, None] = {}  # keys of corrupt records that may be among the leftovers
        self._damaged_new = False
        self.removed = 0

    def handle_tick(self) -> None:
        """Look, compare, remove."""
        local = self._local
        placement = local.placement
        assert placement is not None
        if local.now_s >= self._look_s:
            self.unseen.add_all()
        if self.unseen or self._damaged_new:
            self._look(placement)
        self._maybe_leave(placement)
        if self._parts and local.takes_writes:
            self._maybe_compare(placement)
        rows = REMOVE_ROWS
        while self._removing and rows > 0 and local.budget(1):
            rows -= self._remove_slice(placement)

    def note_corrupt(self, record_key: bytes) -> None:
        """This record turned out corrupt."""
        if len(self._damaged) < DAMAGED_MAX:
            self._damaged[record_key] = None
            self._damaged_new = True

    def _look(self, placement: Placement) -> None:
        """Find parts with records here that we have no part in."""
        local, trees = self._local, self._summary.trees
        if self.unseen.all:
            self._look_s = local.now_s + LOOK_S
            self._parts = {}
        self._damaged_new = False
        for part in self.unseen.take(placement.ring.q):
            n, partition = part
            self._parts.pop(part, None)
            empty = n not in trees or trees[n].is_empty(partition)
            if not empty and local.node not in placement.slots(partition, n).writers:
                self._parts[part] = None
        for record_key in [key for key in self._damaged if local.is_writer(local.node, key)]:
            del self._damaged[record_key]  # fetched, or found missing by a comparison
        for record_key in self._damaged:
            n = local.props(split_record_key(record_key)[0]).n
            self._parts[n, placement.ring.partition_of(record_key)] = None
        for known in (self._safe_s, self._removing):
            for part in [part for part in known if part not in self._parts]:
                del known[part]

    def _maybe_leave(self, placement: Placement) -> None:
        """If this node is no member any more: go, once nothing is here, and no slot is ours. (What we hold, but nobody is to
        gain, is none: the cluster is smaller than n now.)"""
        me, trees = self._local.node, self._summary.trees
        if me not in placement.leaving or self._parts or self._summary.unready or self._local.hints.totals:
            return
        for n in trees:
            for partition in range(placement.ring.q):
                if not trees[n].is_empty(partition) or me in placement.slots(partition, n).writers:
                    return
        self._leave()

    # --- making sure ---

    def _maybe_compare(self, placement: Placement) -> None:
        local = self._local
        by_owner: dict[NodeId, list[Part]] = {}
        for part in self._parts:
            if part in self._removing or not self._summary.ready(part[1]):
                continue
            if local.now_s < self._safe_s.get(part, float("-inf")) + local.config.give_grace_s:
                continue
            owners = [owner for owner in placement.slots(part[1], part[0]).owners if owner in local.reachable]
            if owners:
                by_owner.setdefault(owners[0], []).append(part)
        for owner, parts in by_owner.items():
            if owner not in self._busy and local.now_s >= self._rest_until_s.get(owner, 0.0):
                self._begin(owner, parts[:PARTS_MAX])

    def _begin(self, owner: NodeId, parts: list[Part]) -> None:
        def ended(session: Compared) -> None:
            self._busy.discard(owner)
            self._note(parts, session)
            if session.left:
                self._rest_until_s[owner] = self._local.now_s + REST_S

        if self._compare(owner, parts, Purpose.GIVEN, ended):
            self._busy.add(owner)

    def _note(self, parts: list[Part], session: Compared) -> None:
        local = self._local
        assert local.ring is not None
        safe: list[Part] = []
        for part in parts:
            if part in session.lacked:
                self._safe_s.pop(part, None)
                self._removing.pop(part, None)
            elif part in session.left:
                continue  # it says nothing
            elif local.now_s < self._safe_s.setdefault(part, local.now_s) + local.config.give_grace_s:
                continue  # the first time
            elif part in self._parts:
                safe.append(part)
        if safe:
            local.start_stint("given_away")
            self._removing.update({part: local.ring.bounds(part[1])[0] for part in safe})

    # --- removing ---

    def _remove_slice(self, placement: Placement) -> int:
        """Remove some records of a part. Returns what that cost: rows, and some for looking."""
        local, part = self._local, next(iter(self._removing))
        n, partition = part
        if local.node in placement.slots(partition, n).writers:
            del self._removing[part]
            return LOOK_ROWS
        start, (_, end) = self._removing[part], placement.ring.bounds(partition)
        try:
            rows = local.store.scan(Space.RECORDS, start, end, limit=REMOVE_ROWS)
        except CorruptData:
            rows = []  # the scrub finds it
        for record_key, sealed in rows:
            if local.props(split_record_key(record_key)[0]).n == n:
                self._remove(record_key, sealed)
        if len(rows) == REMOVE_ROWS:
            self._removing[part] = rows[-1][0] + b"\x00"
        else:
            del self._removing[part]
            self._safe_s.pop(part, None)
            self._parts.pop(part, None)
        return len(rows) + LOOK_ROWS

    def _remove(self, record_key: bytes, sealed: bytes) -> None:
        local = self._local
        entry = local.opened(record_key, sealed)
        if entry is None:
            local.remove_record(record_key, versions.EMPTY, None)
        else:
            local.remove_record(record_key, entry[1], entry[0])
        self._damaged.pop(record_key, None)
        local.count("records_given_away")
        self.removed += 1

    # --- for people ---

    def status(self) -> int:
        """How many parts are left over."""
        return len(self._parts)
