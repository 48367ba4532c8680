"""What the tests of hinted handoff share: a cluster without other repairs, and hints given to a node by hand."""

from __future__ import annotations

from tests.core.wire import WALL_MS, Wire

from cartwheel.core import versions
from cartwheel.core.hintstore import META_TOTAL
from cartwheel.core.messages import ReplicaRefused, ReplicaWrite, ReplicaWrote
from cartwheel.core.storage import Space, record_key, seal
from cartwheel.core.types import Durability
from cartwheel.core.versions import EMPTY, Record

READING = WALL_MS << 16


def cluster(names="abcd", **config):
    """Nodes without anti-entropy, which would mend what handing over leaves out, and with a budget for whatever there is to do:
    to the admission control the long steps of these tests look like an overloaded loop."""
    return Wire(
        list(names), ae_interval_s=0, background_records_per_s_min=10**6, background_records_per_s_max=10**6, **config
    )


def record_of(value: bytes | None, counter: int = 1, actor: str = "b/x") -> Record:
    """A record of one write."""
    return versions.put(EMPTY, {}, (actor, READING + counter), value)


def hint(wire, key, record, *, holder="a", intended="d", bucket="0", durability=Durability.SYNC):
    """Have a node keep a record for another, as a coordinator would. True if it acknowledged, None if it has not answered."""
    at = record_key(bucket, key)
    wire.sent.clear()
    message = ReplicaWrite([7], at, seal(at, versions.encode(record)), durability, READING, intended)
    wire.inject("b", holder, message)
    kinds = {type(message) for src, _, message in wire.sent if src == holder}
    return True if ReplicaWrote in kinds else False if ReplicaRefused in kinds else None


def owned_by(wire, *, owner, owned, n=3):
    """A key that a node owns, or does not."""
    local = wire.nodes["a"].local
    keys = (b"%d" % i for i in range(1000))
    return next(key for key in keys if (owner in local.owners(record_key("0", key), n)) is owned)


def totals(wire, holder="a"):
    """What a node keeps: intended node -> hints."""
    return {node: total.hints for node, total in wire.nodes[holder].local.hints.totals.items()}


def on_disk(wire, holder="a"):
    """The rows of a node's hints and of their totals."""
    engine = wire.engines[holder]
    rows = engine.scan(Space.HINTS, limit=10_000)
    return len(rows), len(engine.scan(Space.META, META_TOTAL, b"hints0", limit=100))


def travelled(wire, kind):
    """The messages of a kind sent so far."""
    return [message for _, _, message in wire.sent if isinstance(message, kind)]


def pass_seconds(wire, seconds, step=0.5):
    """Let time pass in steps."""
    for _ in range(round(seconds / step)):
        wire.advance(step)


def mint_here(wire, holder="a", counter=5):
    """A record whose write this node made."""
    return record_of(b"v", counter=counter, actor=wire.nodes[holder].local.actor)


def keep_own(wire, key, counter=5, holder="a", intended="d"):
    """What a fallback that coordinates does with its own copy."""
    at = record_key("0", key)
    local = wire.nodes[holder].local
    local.hints.put(intended, at, seal(at, versions.encode(mint_here(wire, holder, counter))), Durability.SYNC)
