"""Membership: the history of changes, what each node holds, and the view folded from both (sections 4.8.1 and 4.8.2).

    administrator ── stage, commit, abandon ──> a record in the history ─┐
    a hand-over   ── this node's holding ────────────────────────────────┴─> staged durably, placed, then told to everyone
    every second  ── Gossip (the epoch alone) ──> a peer; epochs differ: views are exchanged (``views``) until they do not

The **history** is a grow-only set of change records, and a **holding** (``placement``) a register that one node writes: so nodes
unite what they know, in any order, and come to one ring with no leader. The **epoch** is the digest of both; it travels with
every batch, and a batch with another epoch makes both sides exchange views at once. What a node tells contains all that it knew
when it learned of any part of it, so a view never names a change without the holdings that it rests on.

A change is made known only after it is durable here. Nodes that are no members are told the view, and nothing else is heard from
them: a node that was removed learns of it so, wherever it turns up.

*Departs from the paper:* administrators stage changes, look at the plan, and commit; the paper issues each at once.

Invariants: ``epoch`` is equal on two nodes if, and only if, their histories and holdings are; a node's own holding is written by
it alone, and only its version grows.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import msgspec
import xxhash

from cartwheel.core.config import BucketProps, bucket_props, lenient_bucket_props
from cartwheel.core.errors import Code, ConfigError, CorruptData
from cartwheel.core.local import DEFAULT_PROPS, Local
from cartwheel.core.membership.views import digest_of, has_more, lacking
from cartwheel.core.messages import (
    PROTOCOL_DIGESTS,
    BucketChanged,
    ClientBucketSet,
    Failure,
    Gossip,
    JoinAsk,
    JoinTold,
    ViewDigest,
    ViewPush,
)
from cartwheel.core.placement import Holding, Placement, bitmap, check_holding, partitions_of, recut
from cartwheel.core.ring import Change, ChangeKind, Folded, History, Member, Ring, fold, remember, snapshot
from cartwheel.core.storage import Space
from cartwheel.core.types import Durability, NodeId

META_HISTORY = b"history"
META_RING = b"ring"
"""A snapshot: it saves the folding of a long history at the next start."""
META_HOLDING = b"holding/"
META_HOLDING_END = b"holding0"
GOSSIP_S = 1.0
"""The paper's: "each node contacts a peer chosen at random every second"."""
PUSH_INTERVAL_S = 1.0
"""At most one push of the same view to a peer whose view stays the same in this time: epochs differ in every batch until it has
arrived."""
EPOCH_BYTES = 16
HOLDINGS_MAX = 65_536

Parts = dict[int, set[int]]
"""n -> partitions."""


class Membership:
    """This node's copy of the history and the holdings."""

    def __init__(self, local: Local) -> None:
        self._local = local
        self._history = History()
        self._folded = Folded(fold(local.config.q, History()).ring, frozenset(), {})
        self._founding = self._folded.ring
        self._begun: dict[int, Ring] = {}
        self._holdings: dict[NodeId, Holding] = {}
        self._pushed: dict[NodeId, tuple[bytes, bytes, float]] = {}
        """Peer -> our epoch and its epoch when it was pushed to last, and when."""
        self._answered: tuple[NodeId, float] = "", 0.0  # whose digest came last, and when
        self.protocols: dict[NodeId, int] = {}
        """What is spoken with each peer."""
        self._history_bytes = 0
        self._size = 0  # about, of the view in bytes
        self._gossip_s = 0.0
        self._gossips = 0
        self._joins = local.config.joins
        self._join_waits = ""

    # --- life ---

    def start(self, first: History) -> None:
        """Take the view from the disk; a new disk starts with the founding history ``first``."""
        store = self._local.store
        try:
            remember(store.get(Space.META, META_RING) or b"")
        except CorruptData:
            self._local.count("snapshots_unreadable")
        stored = store.get(Space.META, META_HISTORY)
        for key, data in store.scan(Space.META, META_HOLDING, META_HOLDING_END, limit=HOLDINGS_MAX):
            del key
            holding = check_holding(msgspec.msgpack.decode(data, type=Holding))
            self._holdings[holding.node] = holding
        self._adopt(first if stored is None else History.decode(stored), [], keep=stored is None)
        self._maybe_tell_address()
        self._gossip_s = self._local.now_s + GOSSIP_S

    def _maybe_tell_address(self) -> None:
        """This node may have been started elsewhere."""
        local = self._local
        member = self._folded.ring.members.get(local.node)
        if member is not None and local.config.address not in ("", member.address):
            self.add(ChangeKind.ADDRESS, node=local.node, address=local.config.address)

    @property
    def history(self) -> History:
        """All changes that this node knows."""
        return self._history

    @property
    def folded(self) -> Folded:
        """What they amount to."""
        return self._folded

    def _adopt(self, history: History, holdings: Iterable[Holding], *, keep: bool) -> None:
        """Make this the view: on the disk if it is to be kept, then here."""
        local = self._local
        if keep:
            local.store.stage(Space.META, META_HISTORY, history.encode(), Durability.SYNC)
        if history is not self._history:
            self._history, self._history_bytes = history, len(history.encode())
            made_by = self._folded.made_by
            self._folded = fold(local.config.q, history)
            if keep and self._folded.made_by != made_by:
                local.store.stage(Space.META, META_RING, snapshot(self._folded), Durability.OS)
            self._founding = fold(local.config.q, [change for change in history if change.founding]).ring
            self._begun = _begun(local.config.q, history)
        for holding in holdings:
            self._holdings[holding.node] = holding
            data = msgspec.msgpack.encode(holding)
            local.store.stage(Space.META, META_HOLDING + holding.node.encode(), data, Durability.SYNC)
        self._size = self._history_bytes + sum(map(_size, self._holdings.values()))
        self._place()

    def _place(self) -> None:
        local, folded = self._local, self._folded
        buckets: dict[str, BucketProps] = {}
        for name, texts in folded.buckets.items():
            buckets[name], exact = lenient_bucket_props(texts)
            if not exact:
                local.count("bucket_props_ignored")
        placement = Placement(folded.ring, self._founding, folded.removed, self._holdings, self._begun, local.placement)
        local.place(placement, self._epoch(), buckets)
        self._begin_holding()

    def _epoch(self) -> bytes:
        """Of the history alone while nobody has told what it holds."""
        digest = self._history.digest()
        if not self._holdings:
            return digest
        told = [self._holdings[node] for node in sorted(self._holdings)]
        return hashlib.blake2b(digest + msgspec.msgpack.encode(told), digest_size=EPOCH_BYTES).digest()

    # --- what this node holds ---

    def _begin_holding(self) -> None:
        """A node that has joined, or joined again, tells that it holds nothing yet."""
        local = self._local
        known = self._holdings.get(local.node)
        new = known is None and local.node not in self._founding.members
        if local.is_member and (new or (known is not None and known.left)):
            q = self._folded.ring.q
            nothing = {n: bitmap(set(), q) for n in local.levels}
            seen = {} if known is None else known.seen
            version = 1 if known is None else known.version + 1
            self._tell_holding(Holding(local.node, version, q, nothing, seen=seen))

    def _mine(self) -> Holding:
        """What we hold, in partitions of the present ring, and what others may not know yet that we gave: to be told as a new
        version."""
        local, placement = self._local, self._local.placement
        assert placement is not None
        me, q = local.node, placement.ring.q
        own = self._holdings.get(me)
        held = {n: placement.held(me, n) for n in local.levels}
        given: dict[int, dict[NodeId, list[tuple[int, bytes]]]] = {}
        seen_now: dict[NodeId, int] = {}
        if own is not None:
            seen_now |= own.seen
            for n, by_gainer in own.given.items():
                for gainer, gifts in by_gainer.items():
                    known = self._holdings.get(gainer)
                    seen = 0 if known is None else known.seen.get(me, 0)
                    unseen = [(version, recut(data, own.q, q)) for version, data in gifts if version > seen]
                    if unseen:
                        given.setdefault(n, {})[gainer] = unseen
        for node in sorted(self._holdings):
            if any(me in by_gainer for by_gainer in self._holdings[node].given.values()):
                seen_now[node] = self._holdings[node].version
        return Holding(me, 1 if own is None else own.version + 1, q, held, given, seen=seen_now)

    def _tell_holding(self, holding: Holding) -> None:
        self._adopt(self._history, [holding], keep=False)
        for node in sorted(self._local.reachable):
            self._local.send(node, ViewPush(b"", [holding]), Durability.SYNC)

    def gain(self, parts: Parts) -> None:
        """We hold these from now on."""
        mine = self._mine()
        held = {n: mine.held.get(n, b"") for n in (*mine.held, *parts)}
        for n, partitions in parts.items():
            held[n] = bitmap(partitions_of(held[n]) | partitions, mine.q)
        self._tell_holding(msgspec.structs.replace(mine, held=held))

    def leave(self) -> None:
        """We are no member any more, and have nothing left over."""
        self._joins = False  # it asks again when it is told to, or started again to join
        mine = self._mine()
        nothing = {n: bitmap(set(), mine.q) for n in mine.held}  # if it joins again it must not count at once
        self._tell_holding(msgspec.structs.replace(mine, held=nothing, left=True))

    def give(self, gainer: NodeId, parts: Parts) -> None:
        """We hold these no more: ``gainer`` does."""
        mine = self._mine()
        for n, partitions in parts.items():
            mine.held[n] = bitmap(partitions_of(mine.held.get(n, b"")) - partitions, mine.q)
            gift = mine.version, bitmap(partitions, mine.q)
            mine.given.setdefault(n, {}).setdefault(gainer, []).append(gift)
        self._tell_holding(mine)

    # --- exchange ---

    def handle_tick(self) -> None:
        """Gossip with the next peer."""
        local = self._local
        if local.now_s < self._gossip_s:
            return
        self._gossip_s = local.now_s + GOSSIP_S
        peers = sorted(local.reachable)
        if peers:
            self._gossips += 1
            lot = xxhash.xxh3_64_intdigest(f"{local.node}/{self._gossips}".encode())
            peer = peers[lot % len(peers)]
            local.send(peer, Gossip())
            if self._joins and not local.is_peer(local.node):
                config = local.config
                local.send(peer, JoinAsk(Member(local.node, config.address, config.host, config.zone, config.weight)))

    def handle_gossip(self, src: NodeId, message: Gossip) -> None:
        """Its epoch came with the batch."""

    def handle_epoch(self, src: NodeId, epoch: bytes) -> None:
        """``src`` has another view: show it ours, or what tells it apart."""
        if self._answered == (src, self._local.now_s):
            return  # its digest was in this batch
        mine, theirs, pushed_s = self._pushed.get(src, (b"", b"", float("-inf")))
        now_s = self._local.now_s
        if (mine, theirs) != (self._local.epoch, epoch) or now_s - pushed_s >= PUSH_INTERVAL_S:
            self._pushed[src] = self._local.epoch, epoch, now_s
            self._show(src)

    def _by_digest(self, peer: NodeId) -> bool:
        """Whether to tell this peer only what it lacks."""
        return self._size > self._local.config.view_bytes_whole and self.protocols.get(peer, 0) >= PROTOCOL_DIGESTS

    def _show(self, dst: NodeId) -> None:
        if self._by_digest(dst):
            self._local.send(dst, digest_of(self._history, self._holdings), Durability.SYNC)
            return
        holdings = [self._holdings[node] for node in sorted(self._holdings)]
        self._local.send(dst, ViewPush(self._history.encode(), holdings), Durability.SYNC)

    def handle_digest(self, src: NodeId, message: ViewDigest) -> None:
        """Tell what ``src`` lacks; then, if we lack anything, what we know."""
        self._answered = src, self._local.now_s
        push = lacking(self._history, self._holdings, message)
        if push is not None:
            self._local.send(src, push, Durability.SYNC)
        if has_more(message, self._history, self._holdings):
            self._local.send(src, digest_of(self._history, self._holdings), Durability.SYNC)

    def handle_push(self, src: NodeId, message: ViewPush) -> None:
        """Unite; where the sender lacks something, show it. Repetition changes nothing."""
        if message.base not in (b"", self._local.epoch):
            return  # the epoch of its batch has told that our views differ
        try:
            theirs = History.decode(message.history) if message.history else self._history
            holdings = [check_holding(holding) for holding in message.holdings]
        except (CorruptData, RecursionError):
            self._local.count("histories_refused")
            return
        union = self._history.union(theirs)
        newer = [holding for holding in holdings if self._is_news(holding)]
        changed = union is not self._history
        if changed or newer:
            self._adopt(union, newer, keep=changed)
            self._local.count("histories_united")
            self._local.send(src, Gossip())
        if message.history and message.whole and (union.digest() != theirs.digest() or self._knows_more(holdings)):
            self.handle_epoch(src, b"")

    def _is_news(self, holding: Holding) -> bool:
        known = self._holdings.get(holding.node)
        return known is None or holding.version > known.version

    def _knows_more(self, holdings: list[Holding]) -> bool:
        told = {holding.node: holding.version for holding in holdings}
        return any(told.get(node, -1) < holding.version for node, holding in self._holdings.items())

    def handle_peer_up(self, node: NodeId, protocol: int) -> None:
        """A peer is back: it may have missed changes, or know some."""
        self.protocols[node] = protocol
        self._pushed.pop(node, None)
        if self._by_digest(node):
            self._local.send(node, Gossip())  # most often it has the same view
        else:
            self._show(node)

    # --- nodes that want to join ---

    def forget(self) -> None:
        """Be a node without a cluster, that asks to join one."""
        self._joins = True
        for node in sorted(self._holdings):
            self._local.store.stage(Space.META, META_HOLDING + node.encode(), None, Durability.SYNC)
        self._holdings = {}
        self._adopt(History(), [], keep=True)

    def handle_join_ask(self, src: NodeId, message: JoinAsk) -> None:
        """Stage the join of a stranger, once."""
        local, member = self._local, message.member
        if src != member.node:
            local.count("messages_refused")
        elif member.node in self._folded.removed:
            local.send(
                src,
                JoinTold(f"{member.node!r} was removed from this cluster for ever: take another name", refused=True),
            )
        elif not local.is_member:
            local.send(src, JoinTold(f"{local.node} is no member itself"))
        elif member.node in self._folded.ring.members:
            local.send(src, JoinTold("it is a member"))
        else:
            if not any(change.member is not None and change.member.node == src for change in self._folded.staged):
                self.add(ChangeKind.JOIN, member=member)
            text = (
                "its join is staged: look at 'cartwheel cluster plan', then 'cartwheel cluster commit', at any member"
            )
            local.send(src, JoinTold(text), Durability.SYNC)

    def handle_join_told(self, src: NodeId, message: JoinTold) -> None:
        """What the join that this node asked for waits for."""
        self._join_waits = f"{src}: {message.waits}"

    def addresses(self) -> dict[NodeId, str]:
        """Where to find everyone who takes part, or has asked to."""
        local, folded = self._local, self._folded
        assert local.placement is not None
        wanted = set(local.placement.peers)
        wanted.update(change.member.node for change in folded.staged if change.member is not None)
        return {
            node: address for node, address in sorted(folded.addresses.items()) if node in wanted and node != local.node
        }

    def why_not_stop(self, node: NodeId) -> list[str]:
        """Which keys would fall below their W, or have fewer than N copies, without this node."""
        local, placement = self._local, self._local.placement
        assert placement is not None
        found = []
        if node not in placement.peers:
            return [] if node in self._folded.removed or node in self._holdings else [f"{node} is not known here"]
        if node in placement.leaving:
            found.append(f"{node} leaves, and has not handed over everything yet")
        alive = (local.writable | {local.node}) - {node}
        for n in local.levels:
            names = [name for name, props in local.buckets.items() if props.n == n] or ["0"]
            needed = max(local.plan(name).w_needed for name in names)
            few = moving = 0
            for partition in range(placement.ring.q):
                slots = placement.slots(partition, n)
                if node in slots.writers:
                    few += sum(owner in alive for owner in slots.owners) < needed
                    moving += slots.moving
            if few:
                found.append(f"{few} partitions (n={n}) would have fewer than W={needed} owners that answer")
            if moving:
                found.append(f"{moving} partitions (n={n}) that it has a part in are being handed over")
        hints = local.hints.totals.get(node)
        if hints is not None:
            found.append(f"{hints.hints} hints for it are not delivered yet: it has just been away")
        return found

    def why_no_member(self) -> str:
        """For people who look at this node."""
        me = self._local.node
        if me in self._folded.removed:
            return f"{me} was removed from the cluster for ever: stop it; its data may be deleted"
        if self._local.is_peer(me):
            return f"{me} leaves: it hands over what it holds; do not stop it yet"
        known = self._holdings.get(me)
        if known is not None and known.left:
            if self._joins:
                return f"{me} has left, and asks to join again" + (f" ({self._join_waits})" if self._join_waits else "")
            return f"{me} has left, and holds nothing any more: it may be stopped"
        return f"{me} is no member of a cluster yet" + (f" ({self._join_waits})" if self._join_waits else "")

    # --- changes ---

    def add(self, kind: ChangeKind, **fields: object) -> Change:
        """Add a record to the history, and tell everyone.

        Raises:
            ValueError: it makes no sense in itself.
        """
        local = self._local
        at = max(local.mint(), self._latest() + 1)
        change = Change(id=f"{local.actor}:{at:x}", at=at, author=local.node, kind=kind, **fields)  # type: ignore[arg-type]
        base, alone = local.epoch, History([change])
        self._adopt(self._history.union(alone), [], keep=True)
        for node in sorted(local.reachable):
            if self._by_digest(node):
                local.send(node, ViewPush(alone.encode(), [], whole=False, base=base), Durability.SYNC)
            else:
                self._show(node)
        return change

    def set_bucket(self, event: ClientBucketSet) -> None:
        """Add a change of bucket properties."""
        local = self._local
        if not local.serves:
            text = f"{local.node} is no member of the cluster: ask one that is"
            local.reply(event.client, Failure(Code.INVALID, text))
            return
        try:
            bucket_props(event.props, local.props(event.bucket))
            self.add(ChangeKind.BUCKET, bucket=event.bucket, props=event.props)
        except (ConfigError, ValueError) as error:
            local.reply(event.client, Failure(Code.INVALID, str(error)))
            return
        local.reply(event.client, BucketChanged(), Durability.SYNC)

    def _latest(self) -> int:
        """The time of the last change we know: ours comes after it, however far ahead its author's clock was."""
        return self._history.changes[-1].at if self._history.changes else 0


def _size(holding: Holding) -> int:
    """About how many bytes it takes to tell."""
    return sum(map(len, holding.held.values())) + 32


def _begun(q: int, history: History) -> dict[int, Ring]:
    """n -> the ring at the time when a bucket first had it."""
    found: dict[int, Ring] = {}
    texts: dict[str, dict[str, str]] = {}
    for i, change in enumerate(history.changes):
        if change.kind is ChangeKind.BUCKET:
            of_bucket = texts.setdefault(change.bucket, {})
            of_bucket.update(change.props)
            n = lenient_bucket_props(of_bucket)[0].n
            if n != DEFAULT_PROPS.n and n not in found:
                found[n] = fold(q, history.changes[:i]).ring
    return found
