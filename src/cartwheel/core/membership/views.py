"""How two nodes whose views differ come to the same one (section 4.8.1: "reconcile their persisted membership change histories").

    a small view     ViewPush: all of it, both ways
    a large one      ViewDigest ──> 8 bytes for each change, a version for each holding
                     <── ViewPush: what is lacking there; and a ViewDigest, if anything is lacking here
    a change of now  ViewPush on the epoch before it: a hundred bytes to everyone who has that view

What is told is put on a view that the receiver had when it was told, and views only grow: so after it the receiver knows all that
the sender knew, and never a change without the holdings that it rests on. A lost message costs a second.
"""

from __future__ import annotations

from collections.abc import Mapping

import xxhash

from cartwheel.core.messages import ViewDigest, ViewPush
from cartwheel.core.placement import Holding
from cartwheel.core.ring import Change, History
from cartwheel.core.types import NodeId

HASH_BYTES = 8

Holdings = Mapping[NodeId, Holding]


def digest_of(history: History, holdings: Holdings) -> ViewDigest:
    """What tells a view from any other."""
    return ViewDigest(b"".join(_hashed(history)), {node: holdings[node].version for node in sorted(holdings)})


def lacking(history: History, holdings: Holdings, theirs: ViewDigest) -> ViewPush | None:
    """What a node with that digest lacks of this view. None: nothing."""
    known = _hashes(theirs.changes)
    changes = [change for hash_, change in _hashed(history).items() if hash_ not in known]
    newer = [holdings[node] for node in sorted(holdings) if holdings[node].version > theirs.versions.get(node, -1)]
    if not changes and not newer:
        return None
    return ViewPush(History(changes).encode() if changes else b"", newer, whole=False)


def has_more(theirs: ViewDigest, history: History, holdings: Holdings) -> bool:
    """Whether that digest is of a view with anything that this one lacks."""
    if not _hashes(theirs.changes) <= _hashed(history).keys():
        return True
    return any(node not in holdings or version > holdings[node].version for node, version in theirs.versions.items())


def _hashed(history: History) -> dict[bytes, Change]:
    """The changes by the hashes of their records, in their order."""
    return {xxhash.xxh3_64_digest(record): change for record, change in history.records()}


def _hashes(data: bytes) -> set[bytes]:
    return {data[at : at + HASH_BYTES] for at in range(0, len(data), HASH_BYTES)}
