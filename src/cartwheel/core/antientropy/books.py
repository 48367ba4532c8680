"""What the parts of anti-entropy keep in common: who shares what, when it was last compared, what was moved, what is damaged."""

from __future__ import annotations

from cartwheel.core.local import Local
from cartwheel.core.messages import (
    Fetch,
    Fetched,
    LeafDiff,
    LeafKeys,
    LeafRows,
    Message,
    TreeLeaves,
    TreeRoots,
)
from cartwheel.core.types import Durability, NodeId

DAMAGED_FILL_S = 60.0
"""A leaf that cannot be read is filled from the others for so long: its records then lie above the damage,"""
DAMAGED_REST_S = 3600.0
"""and left alone for so long: it still cannot be read, so comparing it would fill it again each time."""


class Shares:
    """Which partitions this node shares with whom, by n. Made once for each view of the ring."""

    def __init__(self, local: Local) -> None:
        self._local = local
        self._epoch = b""
        self._of: dict[int, dict[NodeId, list[int]]] = {}

    def at(self, n: int) -> dict[NodeId, list[int]]:
        """Peer -> the partitions that both of us own for buckets of this n. Peers in the order of their names."""
        local = self._local
        if self._epoch != local.epoch:
            self._epoch, self._of = local.epoch, {}
        shared = self._of.get(n)
        if shared is None:
            placement = local.placement
            assert placement is not None
            found: dict[NodeId, list[int]] = {}
            for partition in range(placement.ring.q):
                owners = placement.slots(partition, n).owners
                if local.node in owners:
                    for owner in owners:
                        found.setdefault(owner, []).append(partition)
            found.pop(local.node, None)
            shared = self._of[n] = dict(sorted(found.items()))
        return shared


class Ages:
    """When each partition was last compared in full with each of its other owners. In memory: a start counts as a comparison."""

    def __init__(self, local: Local, shares: Shares) -> None:
        self._local = local
        self._shares = shares
        self._checked: dict[tuple[int, NodeId], dict[int, float]] = {}
        self.since_s = 0.0

    def note(self, n: int, peer: NodeId, partition: int) -> None:
        """They are equal, or what differed is dealt with."""
        self._checked.setdefault((n, peer), {})[partition] = self._local.now_s

    def by_partition(self, trees: list[int]) -> dict[int, float]:
        """For each partition shared at one of these n: seconds since its last comparison with whom that is longest ago."""
        oldest: dict[int, float] = {}
        for n in trees:
            for peer, partitions in self._shares.at(n).items():
                checked = self._checked.get((n, peer), {})
                for partition in partitions:
                    at = checked.get(partition, self.since_s)
                    if at < oldest.get(partition, float("inf")):
                        oldest[partition] = at
        now_s = self._local.now_s
        return {partition: now_s - at for partition, at in sorted(oldest.items())}


class Damage:
    """Leaves of which the disk gives no rows (a scan raises CorruptData)."""

    def __init__(self, local: Local) -> None:
        self._local = local
        self._since: dict[int, float] = {}

    def note(self, leaf: int) -> None:
        """This leaf (counted over the whole ring) could not be read."""
        self._since.setdefault(leaf, self._local.now_s)

    def resting(self, first: int, end: int) -> int:
        """Which of the leaves from ``first`` to ``end`` are not to be compared now: a bitmap."""
        found = 0
        for leaf, since_s in list(self._since.items()) if self._since else ():
            age_s = self._local.now_s - since_s
            if age_s > DAMAGED_FILL_S + DAMAGED_REST_S:
                del self._since[leaf]
            elif age_s > DAMAGED_FILL_S and first <= leaf < end:
                found |= 1 << (leaf - first)
        return found


class Traffic:
    """Sends, and counts what was sent and moved."""

    def __init__(self, local: Local) -> None:
        self._local = local
        self.sent_bytes: dict[str, int] = {}
        """About: fields without the few bytes that frame them."""
        self.received = 0
        self.sent = 0

    def send(self, dst: NodeId, message: Message, hold: Durability = Durability.MEMORY) -> None:
        """Send to a peer."""
        kind, size = _weight(message)
        self.sent_bytes[kind] = self.sent_bytes.get(kind, 0) + size
        self._local.send(dst, message, hold)


def _weight(message: Message) -> tuple[str, int]:
    """The kind of a message, and about its bytes."""
    match message:
        case TreeRoots():
            return "roots", len(message.partitions) + len(message.roots) + len(message.epoch)
        case TreeLeaves():
            return "leaves", len(message.differing) + len(message.leaves) + len(message.unready)
        case LeafKeys():
            return "keys", len(message.keys) + 32
        case LeafDiff():
            return "rows", len(message.want) + rows_bytes(message.rows)
        case LeafRows():
            return "rows", rows_bytes(message.rows)
        case Fetch():
            return "fetch", len(message.record_key)
    assert isinstance(message, Fetched), message
    return "fetch", len(message.record_key) + len(message.sealed or b"")


def rows_bytes(rows: list[tuple[bytes, bytes]]) -> int:
    """Bytes of records under way."""
    return sum([len(record_key) + len(sealed) for record_key, sealed in rows])
