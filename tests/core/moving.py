"""What the tests of hand-over share: clusters whose members come and go, and what must be true once that is done."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from tests.core.wire import Wire

from cartwheel.core.messages import Found, LeafDiff, LeafRows, Message, Stored, ViewPush
from cartwheel.core.placement import Slots
from cartwheel.core.storage import Space, record_key
from cartwheel.core.types import NodeId

KEYS = [b"%d" % i for i in range(120)]
GRACE_S = 2.0


def cluster(names: str = "abc", **config: Any) -> Wire:
    """Nodes that do without the rounds of anti-entropy, which would mend what a hand-over leaves out, and with a budget for
    whatever there is to do."""
    config = {"q": 16, "ae_interval_s": 0, "give_grace_s": GRACE_S, "reap_grace_s": 1e6, **config}
    return Wire(
        list(names), background_records_per_s_min=10**6, background_records_per_s_max=10**6, requests_max=1000, **config
    )


def filled(names: str = "abc", keys: Iterable[bytes] = KEYS, **config: Any) -> Wire:
    """The same, holding these keys, each its own value."""
    wire = cluster(names, **config)
    for key in keys:
        assert isinstance(wire.put(names[0], key, key), Stored)
    return wire


def slots(wire: Wire, key: bytes, at: NodeId = "a", n: int = 3) -> Slots:
    """Of a key, as a node sees them."""
    return wire.nodes[at].local.slots(record_key("0", key), n)


def gained(wire: Wire, gainer: NodeId, *, giver: NodeId | None = None, at: NodeId = "a") -> bytes:
    """A key that this node gains (from that one)."""
    for key in KEYS:
        for each, other in slots(wire, key, at).gainers.items():
            if other == gainer and giver in (None, each):
                return key
    raise AssertionError(f"{gainer} gains nothing")


def pass_s(wire: Wire, seconds: float, step_s: float = 0.25) -> None:
    """Let time pass, tick by tick."""
    for _ in range(round(seconds / step_s)):
        wire.advance(step_s)


def is_settled(wire: Wire) -> bool:
    """All see one ring, in which no partition moves, and nobody has anything left over."""
    takes_part = [node for node in wire.nodes.values() if node.local.serves]
    if len({node.epoch for node in takes_part}) != 1:
        return False
    placement = takes_part[0].local.placement
    assert placement is not None
    if placement.leaving or any(node._transfer.leftovers.status() for node in wire.nodes.values()):
        return False
    levels = takes_part[0].local.levels
    return not any(placement.slots(partition, n).moving for n in levels for partition in range(placement.ring.q))


def settle(wire: Wire, seconds: float = 60.0, each: Callable[[], None] = lambda: None) -> None:
    """Let time pass until all is where it should be; ``each`` is called every quarter of a second."""
    settled = 0
    for _ in range(round(seconds * 4)):
        wire.advance(0.25)
        each()
        settled = settled + 1 if is_settled(wire) else 0
        if settled == 4:  # what is left over is found a tick later
            return
    raise AssertionError({name: node._transfer.status() for name, node in wire.nodes.items()})


def holders(wire: Wire, key: bytes, bucket: str = "0") -> list[NodeId]:
    """Who holds anything of a key."""
    return [name for name in sorted(wire.nodes) if wire.sealed(name, key, bucket) is not None]


def check_copies(wire: Wire, keys: Iterable[bytes] = KEYS, *, n: int = 3, bucket: str = "0") -> None:
    """Each key is exactly on the owners that the ring names, in equal bytes, and no node keeps anything else."""
    ring = next(node.local.ring for node in wire.nodes.values() if node.local.is_member)
    assert ring is not None
    for key in keys:
        owners = ring.owners_of(ring.partition_of(record_key(bucket, key)), n)
        assert holders(wire, key, bucket) == sorted(owners), key
        assert len({wire.sealed(owner, key, bucket) for owner in owners}) == 1, key
    for name in wire.nodes:
        assert not wire.stores[name].scan(Space.HINTS, limit=1), f"{name} keeps a hint"


class Load:
    """Clients at every node: each write that was acknowledged must be read, anywhere, from then on."""

    def __init__(self, wire: Wire, keys: Iterable[bytes] = KEYS) -> None:
        self.wire = wire
        self.keys = list(keys)
        self.stored: dict[bytes, bytes] = {}
        self.turn = 0

    def step(self) -> None:
        """A write and a read at every node that serves, of other keys each time."""
        wire = self.wire
        for name in [name for name in sorted(wire.nodes) if wire.nodes[name].local.serves]:
            self.turn += 1
            key = self.keys[self.turn * 7 % len(self.keys)]
            value = b"%s.%d" % (key, self.turn)
            result = wire.put(name, key, value)
            assert isinstance(result, Stored), (name, key, result)
            self.stored[key] = value
            self.check(self.keys[self.turn * 11 % len(self.keys)], name)

    def check(self, key: bytes, at: NodeId) -> None:
        """A read at a node shows what was stored last."""
        result = self.wire.get(at, key)
        assert isinstance(result, Found), (at, key, result)
        values = [version.value for version in result.record.versions]
        assert self.stored.get(key, key) in values, (at, key, values)

    def check_all(self) -> None:
        """Every key, at every node that serves."""
        for name, node in self.wire.nodes.items():
            for key in self.keys if node.local.serves else ():
                self.check(key, name)


def without_views(*nodes: NodeId) -> Callable[[NodeId, NodeId, Message], bool]:
    """For ``Wire.lose``: nobody tells these nodes of a new view."""
    return lambda src, dst, message: isinstance(message, ViewPush) and dst in nodes


def records_to(wire: Wire, node: NodeId) -> int:
    """How many records background work has sent to a node."""
    kinds = LeafDiff | LeafRows
    return sum(len(message.rows) for _, dst, message in wire.sent if dst == node and isinstance(message, kinds))
