"""Hinted handoff: what a node keeps for another goes there once that is back (section 4.6).

    holder                                                intended node
      HintOffer: I keep so many for you        ─────────>   waits its turn among the holders
                                               <─────────   HintGrant: send so many
      HintDeliver: some, and so many are left  ─────────>   merges them durably
      removes those unchanged since            <─────────   HintTaken: they are durable; send so many more

**Pace.** The receiver grants credits, one delivery at a time to each holder, first come first served, and at most
``CREDITS`` records to all of them together, out of what its admission control allows: a node that returns to fifty holders is
not buried (Cassandra's is: dtests call it the thundering herd). Holders begin to offer at different times.

A node that can be reached is offered its hints even while writes are kept from it: if it is slow it grants few, if its disk is
nearly full none. Only so does a node whose disk is slow for ever get what it missed.

**A hint is removed** only when the intended node has told that it has it durably, and only if it is still what was sent. A hint
of a write that this very node coordinated, as a fallback, is what accounts for that write's dot here. When it goes, this node
would forget the dot: so it goes on as a new stint (versions, invariant A).

**A node that is no member any more** will not come back. Its hints are addressed anew, to an owner that the key has now, or
become records of ours, if that is this node: by one atomic write. Only after a while, for the ring that makes it a member may
not have arrived here yet.

*Departs from the paper:* it says neither how fast hints are delivered nor what becomes of those for a node that was removed.

Invariants (``check``): at most one delivery to a node is under way; the receiver's credits are within ``CREDITS``.

Cost: a tick looks at each intended node; memory is one delivery for each of them: ``DELIVERY_BYTES_MAX``, or one larger record.
"""

from __future__ import annotations

import xxhash

from cartwheel.core import versions
from cartwheel.core.errors import CorruptData
from cartwheel.core.hintstore import HintTotal
from cartwheel.core.local import Local
from cartwheel.core.messages import (
    ClientHints,
    HintDeliver,
    HintGrant,
    HintOffer,
    HintsAsk,
    HintsKept,
    HintStatus,
    HintsTold,
    HintTaken,
)
from cartwheel.core.storage import POSITION_BYTES, split_record_key, unseal
from cartwheel.core.types import Durability, NodeId

CREDITS = 256
"""Records that a node lets all holders together have under way to it: of 1 KB, a quarter of a megabyte, which take some
milliseconds to merge."""
GRANT_MIN = 16
"""Among many holders each gets at least so many at a time, and some wait: a delivery costs both sides a message and a sync."""
BUDGET_STEP = 16
"""Credits are asked of the admission control by so many records."""
GRANT_S = 3.0
"""A grant that was not used for so long is void: it, or its holder, was lost."""
DELIVERY_RECORDS_MAX = CREDITS
DELIVERY_BYTES_MAX = 256 << 10
"""A quarter of a megabyte: two milliseconds of a gigabit network. A larger record travels alone."""
OFFER_S = 1.0
"""Between two offers; the first one comes at a time within it that depends on the names of both nodes."""
ANSWER_S = 3.0
"""A delivery unanswered for so long is forgotten, and offered anew."""
REFUSED_S = 10.0
"""After a delivery of which nothing was taken, and something refused."""
STRANGER_S = 10.0
"""For so long a node must not have been a member before its hints are addressed anew."""
STRANGER_RECORDS = 64
"""Hints addressed anew in one tick: over a thousand a second."""
SCAN_BYTES = 64 << 10
"""About what one scan of a delivery reads at a time: hints differ in size, and what does not fit was read in vain."""


class Delivery:
    """The handing over of all hints for one node: passes over them in ring order, one delivery at a time."""

    __slots__ = ("cursor", "due_s", "id", "rows")

    def __init__(self, due_s: float) -> None:
        self.cursor = b""  # the record key from which this pass goes on
        self.due_s = due_s  # when to offer; with rows under way: when to give them up
        self.id = 0
        self.rows: list[tuple[bytes, bytes]] = []  # under way


class Hints:
    """This node as a holder of hints, and as one for which others hold some."""

    def __init__(self, local: Local) -> None:
        self._local = local
        self._store = local.hints
        self._deliveries: dict[NodeId, Delivery] = {}
        self._strangers: dict[NodeId, Delivery] = {}
        self._granted: dict[NodeId, tuple[int, float]] = {}  # holder -> credits, and when they lapse
        self._waiting: dict[NodeId, int] = {}  # holder -> how many it has; who came first is first
        self._asks: dict[int, Ask] = {}

    def start(self) -> None:
        """Find the hints that an earlier life kept."""
        self._store.start()

    # --- holding ---

    def handle_tick(self) -> None:
        """Offer what is due, give up what is overdue, address anew what has no node any more; and grant, and tell."""
        if self._store.totals or self._deliveries or self._strangers:
            self._tick_deliveries()
        if self._waiting:
            self._serve()
        if self._asks:
            self._tick_asks()

    def _tick_deliveries(self) -> None:
        local, totals = self._local, self._store.totals
        assert local.placement is not None
        members = local.placement.peers
        for intended in sorted(totals):
            if intended not in members or intended == local.node:
                self._deliveries.pop(intended, None)
                self._tick_stranger(intended)
                continue
            self._strangers.pop(intended, None)
            if intended not in local.reachable:
                self._deliveries.pop(intended, None)
                continue
            delivery = self._deliveries.get(intended)
            if delivery is None:
                self._deliveries[intended] = Delivery(local.now_s + _jitter_s(local.node, intended))
            elif local.now_s >= delivery.due_s:
                self._offer(intended, delivery)
        for under_way in (self._deliveries, self._strangers):
            for intended in [node for node in under_way if node not in totals]:
                del under_way[intended]

    def _offer(self, intended: NodeId, delivery: Delivery) -> None:
        local, total = self._local, self._store.totals[intended]
        if delivery.rows:
            local.count("hint_deliveries_lost")
            delivery.cursor = delivery.rows[0][0]
            delivery.rows = []
        delivery.due_s = local.now_s + OFFER_S
        local.send(intended, HintOffer(total.hints, total.bytes))

    def handle_grant(self, src: NodeId, message: HintGrant) -> None:
        """Deliver so many. A grant while a delivery is under way is a late or repeated one."""
        delivery = self._deliveries.get(src)
        if delivery is not None and not delivery.rows and message.records > 0:
            self._deliver(src, delivery, message.records)

    def _deliver(self, intended: NodeId, delivery: Delivery, records: int) -> None:
        local, store = self._local, self._store
        rows = self._collect(intended, delivery, min(records, DELIVERY_RECORDS_MAX))
        if not rows:
            delivery.due_s = local.now_s + OFFER_S
            return
        delivery.rows, delivery.id = rows, local.new_id()
        delivery.due_s = local.now_s + ANSWER_S
        hold = Durability.MEMORY
        if local.store.staged:
            hold = max(store.pending(intended, record_key) for record_key, _ in rows)
        left = max(store.totals[intended].hints - len(rows), 0)
        local.send(intended, HintDeliver(delivery.id, rows, left), hold)

    def _collect(self, intended: NodeId, delivery: Delivery, records: int) -> list[tuple[bytes, bytes]]:
        """The next rows of the pass, read now; a pass that is at its end begins again."""
        began = delivery.cursor
        rows = self._collect_on(intended, delivery, records)
        if not rows and began and not delivery.cursor and intended in self._store.totals:
            rows = self._collect_on(intended, delivery, records)
        return rows

    def _collect_on(self, intended: NodeId, delivery: Delivery, records: int) -> list[tuple[bytes, bytes]]:
        store = self._store
        rows: list[tuple[bytes, bytes]] = []
        began, size, seen = delivery.cursor, 0, False
        limit_max = _scan_rows(store.totals.get(intended))
        while len(rows) < records:
            limit = min(records - len(rows), limit_max)
            try:
                found = store.rows(intended, delivery.cursor, limit)
            except CorruptData:
                if limit > 1:
                    limit_max = 1  # as far as it can be read
                    continue
                self._step_over(delivery)
                return rows
            for record_key, sealed in found:
                seen = True
                if rows and size + len(record_key) + len(sealed) > DELIVERY_BYTES_MAX:
                    return rows
                delivery.cursor = record_key + b"\x00"
                if self._local.read_hint(intended, record_key, sealed) is not None:
                    rows.append((record_key, sealed))
                    size += len(record_key) + len(sealed)
            if len(found) < limit:
                delivery.cursor = b""
                if not began and not seen and intended in store.totals:
                    store.forget(intended)  # the total was wrong: there are none
                break
        return rows

    def _step_over(self, delivery: Delivery) -> None:
        """The engine cannot read on from here: go on with the next partition. What is damaged is dropped when it is asked for."""
        ring = self._local.ring
        assert ring is not None
        self._local.count("hints_unreadable")
        position = delivery.cursor[:POSITION_BYTES].ljust(POSITION_BYTES, b"\x00")
        delivery.cursor = ring.bounds(ring.partition_of(position))[1] or b""

    def handle_taken(self, src: NodeId, message: HintTaken) -> None:
        """The rows of this delivery are durable there: remove those that have not changed since, and go on."""
        local, store = self._local, self._store
        delivery = self._deliveries.get(src)
        if delivery is None or not delivery.rows or delivery.id != message.id:
            return  # late: it was forgotten, and will be repeated
        rows, delivery.rows = delivery.rows, []
        refused = set(message.refused)
        removed, minted = 0, False
        for place, (record_key, sealed) in enumerate(rows):
            if place not in refused and store.get(src, record_key) == sealed:
                store.remove(src, record_key, sealed)
                removed += 1
                minted = minted or self._is_ours(record_key, sealed)
        if minted:
            local.start_stint("handed_off")
        local.count("hints_delivered", removed)
        if refused:
            local.count("hints_not_taken", len(refused))
        delivery.due_s = local.now_s + (REFUSED_S if refused and not removed else OFFER_S)
        if removed and message.records > 0 and src in store.totals:
            self._deliver(src, delivery, message.records)

    def _is_ours(self, record_key: bytes, sealed: bytes) -> bool:
        """Whether a hint accounts for dots of our present actor. Searching its bytes for the name spares most decoding."""
        actor = self._local.actor
        if actor.encode() not in sealed:
            return False
        record = versions.decode(unseal(record_key, sealed))
        return actor in record.clock or any(dotted == actor for dotted, _ in record.cloud)

    # --- hints for who is no member ---

    def _tick_stranger(self, intended: NodeId) -> None:
        """Address some hints of a node that is no member, or is this one, to an owner of their keys."""
        local, store = self._local, self._store
        delivery = self._strangers.get(intended)
        if delivery is None:
            delivery = self._strangers[intended] = Delivery(local.now_s + STRANGER_S)
        if local.now_s < delivery.due_s:
            return
        for record_key, sealed in self._collect(intended, delivery, STRANGER_RECORDS):
            n = local.plan(split_record_key(record_key)[0]).props.n
            owners = local.owners(record_key, n)
            if not owners:
                continue  # nobody is a member
            if local.node in owners:
                local.absorb(record_key, sealed, Durability.SYNC)
            else:
                owner = next((owner for owner in owners if owner in local.writable), owners[0])
                local.keep_hint(owner, record_key, sealed, Durability.SYNC, limited=False)
            store.remove(intended, record_key, sealed)
            local.count("hints_readdressed")

    # --- receiving ---

    def handle_offer(self, src: NodeId, message: HintOffer) -> None:
        """A holder waits for credits. It has none: an offer means that nothing is under way."""
        self._granted.pop(src, None)
        self._waiting[src] = message.hints
        self._serve()

    def _serve(self, answered: NodeId = "") -> int:
        """Grant credits to those that wait, first come first served, as far as they go. What the holder ``answered`` gets is
        returned instead of sent: it goes with the answer."""
        local, granted, waiting = self._local, self._granted, self._waiting
        if not local.takes_writes:
            return 0
        for holder in [node for node, (_, until_s) in granted.items() if until_s <= local.now_s]:
            del granted[holder]
        free = CREDITS - sum(records for records, _ in granted.values())
        share = max(CREDITS // (len(granted) + len(waiting)), GRANT_MIN)
        told = 0
        for holder in list(waiting):
            records = self._afford(min(max(waiting[holder], 1), share, free))
            if not records:
                break
            del waiting[holder]
            granted[holder] = records, local.now_s + GRANT_S
            free -= records
            if holder == answered:
                told = records
            else:
                local.send(holder, HintGrant(records))
        return told

    def _afford(self, records: int) -> int:
        """So many of these as the admission control allows."""
        allowed = 0
        while allowed < records:
            step = min(BUDGET_STEP, records - allowed)
            if not self._local.budget(step):
                break
            allowed += step
        return allowed

    def handle_deliver(self, src: NodeId, message: HintDeliver) -> None:
        """Merge the rows, and tell once they are durable. Beyond the credits, too: it may be a repeated or late one."""
        local = self._local
        refused = []
        for place, (record_key, sealed) in enumerate(message.rows):
            try:
                plan = local.plan(split_record_key(record_key)[0])
                durability = Durability.SYNC if plan.one else max(plan.durability, Durability.OS)
                local.absorb(record_key, sealed, durability)
            except CorruptData:
                refused.append(place)
        local.count("hints_received", len(message.rows) - len(refused))
        self._granted.pop(src, None)
        self._waiting.pop(src, None)
        if message.left > 0:
            self._waiting[src] = message.left
        told = self._serve(answered=src) if self._waiting else 0
        local.send(src, HintTaken(message.id, told, refused), Durability.SYNC)

    def handle_peer_down(self, node: NodeId, reason: str) -> None:
        """Neither deliveries to it nor credits of it are under way any more."""
        self._deliveries.pop(node, None)
        self._granted.pop(node, None)
        self._waiting.pop(node, None)
        for request_id, ask in list(self._asks.items()):
            self._told(request_id, ask, node, reason)

    # --- for people ---

    def status(self) -> list[HintStatus]:
        """What is kept, by intended node."""
        found = []
        for intended in sorted(self._store.totals):
            total = self._store.totals[intended]
            delivery = self._deliveries.get(intended)
            delivering = delivery is not None and bool(delivery.rows)
            age_s = max(self._local.wall_ms - total.since_ms, 0) / 1000
            waits = "" if delivering else self._waits(intended)
            found.append(HintStatus(intended, total.hints, total.bytes, age_s, delivering, waits))
        return found

    def _waits(self, intended: NodeId) -> str:
        local = self._local
        assert local.placement is not None
        if intended not in local.placement.peers:
            return "not a member: goes to the owners"
        if intended not in local.reachable:
            return f"unreachable: {local.why_unreachable(intended)}"
        if intended in local.deletable and intended not in local.writable:
            return "its disk is nearly full"
        return "waits for credits"

    def ask(self, event: ClientHints) -> None:
        """Ask every member what it keeps."""
        local = self._local
        assert local.placement is not None
        ask = Ask(event.client, local.now_s + local.config.request_timeout_s)
        ask.holders[local.node] = self.status()
        request_id = local.new_id()
        self._asks[request_id] = ask
        for node in sorted(local.placement.peers):
            if node in local.reachable:
                ask.waiting.add(node)
                local.send(node, HintsAsk(request_id))
            elif node != local.node:
                ask.holders[node] = local.why_unreachable(node)
        self._maybe_tell(request_id, ask)

    @property
    def under_way(self) -> int:
        """Questions not answered yet."""
        return len(self._asks)

    def handle_ask(self, src: NodeId, message: HintsAsk) -> None:
        """Tell what is kept here."""
        self._local.send(src, HintsTold(message.id, self.status()))

    def handle_told(self, src: NodeId, message: HintsTold) -> None:
        """A member's answer."""
        ask = self._asks.get(message.id)
        if ask is not None:
            self._told(message.id, ask, src, message.kept)

    def _told(self, request_id: int, ask: Ask, node: NodeId, kept: list[HintStatus] | str) -> None:
        if node in ask.waiting:
            ask.waiting.discard(node)
            ask.holders[node] = kept
            self._maybe_tell(request_id, ask)

    def _maybe_tell(self, request_id: int, ask: Ask) -> None:
        if not ask.waiting:
            del self._asks[request_id]
            self._local.reply(ask.client, HintsKept(dict(sorted(ask.holders.items()))))

    def _tick_asks(self) -> None:
        for request_id, ask in list(self._asks.items()):
            if self._local.now_s >= ask.deadline_s:
                for node in sorted(ask.waiting):
                    self._told(request_id, ask, node, "no answer in time")

    def check(self) -> None:
        """Assert the invariants."""
        assert sum(records for records, _ in self._granted.values()) <= CREDITS, "more credits than there are"
        assert not self._granted.keys() & self._waiting.keys(), "a holder has credits and waits for some"
        for intended, total in self._store.totals.items():
            assert total.hints > 0 or not total.exact, f"a total without hints for {intended}"
        assert self._store.bytes == sum(total.bytes for total in self._store.totals.values())


class Ask:
    """A question to all members under way."""

    __slots__ = ("client", "deadline_s", "holders", "waiting")

    def __init__(self, client: object, deadline_s: float) -> None:
        self.client = client
        self.deadline_s = deadline_s
        self.holders: dict[NodeId, list[HintStatus] | str] = {}
        self.waiting: set[NodeId] = set()


def _jitter_s(holder: NodeId, intended: NodeId) -> float:
    """When within an interval this holder begins to offer to that node: the same at every run, different for each holder."""
    return OFFER_S * (xxhash.xxh3_64_intdigest(f"{holder}>{intended}".encode()) % 1000) / 1000


def _scan_rows(total: HintTotal | None) -> int:
    """How many hints to read at a time."""
    if total is None or not total.hints:
        return 1
    return max(1, min(SCAN_BYTES * total.hints // (total.bytes + 1), 128))
