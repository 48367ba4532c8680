"""Membership: the history of changes, and the view of the ring folded from it (section 4.8.1).

The history is a grow-only set of change records: who joined or left, and what was set for a bucket. Nodes unite their
histories, and the ring and the bucket table are a deterministic fold of it: same history, same ring, with no leader. The
**epoch** is the history's digest; it travels with every batch of messages, and a batch with another epoch makes both sides
exchange histories at once. A change is made known only after it is durable here.

Only the first membership (fixed when the cluster is created) and bucket changes are made so far.
"""

from __future__ import annotations

from cartwheel.core.config import BucketProps, bucket_props, lenient_bucket_props
from cartwheel.core.errors import Code, ConfigError, CorruptData
from cartwheel.core.local import Local
from cartwheel.core.messages import BucketChanged, ClientBucketSet, Failure, HistoryPush
from cartwheel.core.ring import Change, ChangeKind, History, fold
from cartwheel.core.storage import Space
from cartwheel.core.types import Durability, NodeId

META_HISTORY = b"history"
PUSH_INTERVAL_S = 1.0
"""At most one push to a peer in this time: epochs differ in every batch until the push has arrived."""


class Membership:
    """This node's copy of the history."""

    def __init__(self, local: Local) -> None:
        self._local = local
        self._history = History()
        self._pushed_s: dict[NodeId, float] = {}

    def start(self, first: History) -> None:
        """Take the history from the disk; a new disk starts with ``first``."""
        stored = self._local.store.get(Space.META, META_HISTORY)
        self._adopt(first if stored is None else History.decode(stored), persist=stored is None)

    def _adopt(self, history: History, *, persist: bool) -> None:
        local = self._local
        self._history = history
        folded = fold(local.config.q, history.changes)
        buckets: dict[str, BucketProps] = {}
        for name, texts in folded.buckets.items():
            buckets[name], exact = lenient_bucket_props(texts)
            if not exact:
                local.count("bucket_props_ignored")
        local.place(folded.ring, history.digest(), buckets)
        if persist:
            local.store.stage(Space.META, META_HISTORY, history.encode(), Durability.SYNC)

    # --- exchange ---

    def handle_epoch(self, src: NodeId, epoch: bytes) -> None:
        """``src`` has another history: show it ours."""
        del epoch  # it differs; that is all we need to know
        now_s = self._local.now_s
        if now_s - self._pushed_s.get(src, float("-inf")) >= PUSH_INTERVAL_S:
            self._push(src)

    def _push(self, dst: NodeId) -> None:
        self._pushed_s[dst] = self._local.now_s
        self._local.send(dst, HistoryPush(self._history.encode()), Durability.SYNC)

    def handle_push(self, src: NodeId, message: HistoryPush) -> None:
        """Unite; where the sender lacks something, push back. Repetition changes nothing."""
        try:
            theirs = History.decode(message.history)
        except (CorruptData, RecursionError):
            self._local.count("histories_refused")
            return
        union = self._history.union(theirs)
        if union.digest() != self._history.digest():
            self._adopt(union, persist=True)
            self._local.count("histories_united")
        if union.digest() != theirs.digest():
            self._push(src)

    def handle_peer_up(self, node: NodeId) -> None:
        """A peer is back: it may have missed changes, or know some."""
        self._push(node)

    # --- changes ---

    def set_bucket(self, event: ClientBucketSet) -> None:
        """Add a change of bucket properties and tell everyone."""
        local = self._local
        try:
            bucket_props(event.props, local.props(event.bucket))
        except ConfigError as error:
            local.reply(event.client, Failure(Code.INVALID, str(error)))
            return
        at = max(local.mint(), self._latest() + 1)
        try:
            change = Change(
                id=f"{local.actor}:{at:x}",
                at=at,
                author=local.node,
                kind=ChangeKind.BUCKET,
                bucket=event.bucket,
                props=event.props,
            )
        except ValueError as error:
            local.reply(event.client, Failure(Code.INVALID, str(error)))
            return
        self._adopt(self._history.union(History([change])), persist=True)
        for node in sorted(local.reachable):
            self._push(node)
        local.reply(event.client, BucketChanged(), Durability.SYNC)

    def _latest(self) -> int:
        """The time of the last change we know: ours comes after it, however far ahead its author's clock was."""
        return self._history.changes[-1].at if self._history.changes else 0
