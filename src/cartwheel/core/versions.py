"""The record of a key: its concurrent versions and the clock that tells what they supersede (section 4.4).

    Record
      clock     {"n1/7k": 412, "n2/9c": 388}         all writes accounted for: every dot (a, c) with c <= clock[a]
      versions  (dot ("n1/7k", 412), b"milk", ...)   the ones that nothing has superseded: the siblings
                (dot ("n2/9c", 388), None,   ...)    a tombstone is a version without a value
      cloud     (("n3/5d", 401),)                    and besides those of the clock, single ones: nearly always none

*Departs from the paper:* a vector clock per object cannot tell two concurrent writes through one coordinator apart: the
second erases the first, or false siblings breed without end (Riak lived through both). Here each live version keeps its own
**dot** beside the common clock (dotted version vectors, Preguica et al. 2010), so exactly what a context covers is dropped.

**The cloud.** A put may supersede a write that its coordinator has not heard of: its client wrote it a moment ago, elsewhere. An
entry in the clock would claim every earlier write of that actor, too, and they would be lost without a word. So such a dot is
noted alone, and leaves the cloud when a record whose clock covers it is merged in (a dot cloud: Almeida et al. 2014).

A record **accounts for** a dot iff its clock covers it or it is in its cloud.

Invariants:
1. ``clock`` covers the dot of every version, and no dot of the cloud; dots are distinct; versions and cloud are in dot order.
   Equal records are equal bytes.
2. ``merge`` is commutative, associative and idempotent. A version survives a merge iff it is live on both sides, or live on
   one and not accounted for by the other: nothing is lost that was not superseded, nothing superseded returns.
3. (A) An actor mints a dot for a key only if its record's *clock* covers all its earlier dots on that key: that makes an entry's
   claim true. A node that may have forgotten some, one with a dot of its own in the cloud above all, starts a new stint, i.e.
   goes on as a new actor.
4. A clock entry rises only by its own actor's mint, or to an entry of another record or context: never to a dot of the cloud.
5. What a record accounts for is closed: with a write, all that the write had superseded. So is what a context covers, as long as
   it is not over ``CONTEXT_DOTS_MAX``.

Clock and cloud are never pruned by size or age: that would make siblings out of ancestors (Riak kv#1864).
All functions are pure; O(versions + clock entries + cloud), all a handful.
"""

from __future__ import annotations

from collections.abc import Collection
from operator import itemgetter
from typing import Any

import msgspec

from cartwheel.core.errors import CorruptData
from cartwheel.core.types import Actor, Clock, Dot


class Version(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """One write that nothing has superseded yet."""

    actor: Actor
    counter: int
    """The coordinator's hybrid logical clock reading: the time of the write, too."""
    value: bytes | None
    """None: a tombstone."""
    expires_at_ms: int = 0
    """The wall time from which the version counts as deleted, in ms since 1970; 0: never."""
    request_id: bytes = b""
    """Names the client's request: a retry through another coordinator is another version with the same id."""

    @property
    def dot(self) -> Dot:
        """The name of this write."""
        return self.actor, self.counter

    def live(self, wall_ms: int) -> bool:
        """Whether this version shows a value at ``wall_ms``: neither a tombstone nor expired."""
        return self.value is not None and not 0 < self.expires_at_ms <= wall_ms


class Record(msgspec.Struct, frozen=True, array_like=True):
    """All that a replica knows of a key."""

    clock: Clock
    versions: tuple[Version, ...]
    cloud: tuple[Dot, ...] = ()
    """Has a default, so that the bytes of before there were clouds are read."""


CONTEXT_DOTS_MAX = 64
"""Dots in the context after a put: some 2 KB of token. They add up only while a client writes on beside others' writes and never
reads. The oldest go first: most likely they are known everywhere, and at worst one is a sibling until somebody writes over it."""

EMPTY = Record({}, ())
"""The record of a key that was never written."""

_encoder = msgspec.msgpack.Encoder(order="sorted")
_decoder = msgspec.msgpack.Decoder(Record)


def _dot_order(version: Version) -> Dot:
    return version.actor, version.counter


def covers(clock: Clock, version: Version) -> bool:
    """Whether a holder of ``clock`` has seen the write that made ``version``."""
    return version.counter <= clock.get(version.actor, -1)


def merge_clocks(ours: Clock, theirs: Clock) -> Clock:
    """The least clock that covers both. Returns one of its arguments where that suffices."""
    merged: Clock | None = None
    for actor, counter in theirs.items():
        if counter > ours.get(actor, -1):
            if merged is None:
                merged = dict(ours)
            merged[actor] = counter
    return ours if merged is None else merged


def descends(clock: Clock, other: Clock) -> bool:
    """Whether ``clock`` accounts for everything that ``other`` does."""
    for actor, counter in other.items():  # noqa: SIM110 - a loop: all() over a generator takes three times as long
        if counter > clock.get(actor, -1):
            return False
    return True


def _without(clock: Clock, dots: Collection[Dot]) -> tuple[Dot, ...]:
    """The dots that ``clock`` does not cover, in order."""
    return tuple(sorted({(actor, counter) for actor, counter in dots if counter > clock.get(actor, -1)}))


def _holds(versions: tuple[Version, ...], wanted: Version) -> bool:
    """Whether a version with the same dot is among ``versions``: the same write, so the same value."""
    counter, actor = wanted.counter, wanted.actor
    for version in versions:  # noqa: SIM110
        if version.counter == counter and version.actor == actor:
            return True
    return False


def merge(ours: Record, theirs: Record) -> Record:
    """Join what two replicas know (the paper's syntactic reconciliation).

    Returns ``ours`` or ``theirs`` itself where that is the result, so that callers can see by identity that nothing changed.
    """
    if ours is EMPTY and not theirs.cloud:
        return theirs
    our_versions, their_versions = ours.versions, theirs.versions
    our_clock, their_clock = ours.clock, theirs.clock
    if len(our_versions) == len(their_versions) == 1 and descends(their_clock, our_clock):
        (old,), (new,) = our_versions, their_versions
        is_new = new.counter > our_clock.get(new.actor, -1)
        if is_new and old.counter <= their_clock.get(old.actor, -1) and not ours.cloud:
            return theirs  # the usual write: newer in every respect
    our_cloud, their_cloud = ours.cloud, theirs.cloud
    kept = [v for v in our_versions if v.counter > their_clock.get(v.actor, -1) or _holds(their_versions, v)]
    if their_cloud:
        kept = [v for v in kept if v.dot not in their_cloud]
    kept_count = len(kept)
    kept += [v for v in their_versions if v.counter > our_clock.get(v.actor, -1) and v.dot not in our_cloud]
    clock = merge_clocks(our_clock, their_clock)
    cloud = _without(clock, our_cloud + their_cloud) if our_cloud or their_cloud else ()
    if clock is our_clock and cloud == our_cloud and kept_count == len(kept) == len(our_versions):
        return ours
    if (
        len(kept) == len(their_versions)
        and descends(their_clock, our_clock)
        and cloud == their_cloud
        and all(_holds(their_versions, v) for v in kept)
    ):
        return theirs
    kept.sort(key=_dot_order)
    return Record(clock, tuple(kept), cloud)


def put(
    record: Record,
    context: Clock,
    dot: Dot,
    value: bytes | None,
    *,
    seen: Collection[Dot] = (),
    expires_at_ms: int = 0,
    request_id: bytes = b"",
) -> Record:
    """Add a write: versions that ``context`` covers, and those in ``seen``, are superseded, the others stay as its siblings.

    ``context`` is what the client had read; ``record.clock`` supersedes all that this replica holds, ``{}`` nothing.
    The dot must be fresh, and the record's clock cover all earlier ones of its actor (invariant A). Dots in ``seen`` that the
    record does not account for yet are noted in its cloud: their versions will be gone as soon as they come.
    """
    actor, counter = dot
    held, cloud = record.clock, record.cloud
    assert counter > held.get(actor, -1), f"dot {dot} minted twice"
    if context is held and not (cloud or seen):  # the usual write: it supersedes all that is here
        return Record({**held, actor: counter}, (Version(actor, counter, value, expires_at_ms, request_id),))
    assert counter > context.get(actor, -1), f"context covers the new dot {dot}"
    kept = [v for v in record.versions if not covers(context, v) and v.dot not in seen]
    kept.append(Version(actor, counter, value, expires_at_ms, request_id))
    if len(kept) > 1:
        kept.sort(key=_dot_order)
    clock = {**merge_clocks(held, context), actor: counter}
    if cloud or seen:
        noted = _without(held, (*cloud, *seen))
        # Checked before the new entry hides it: the entry would claim all that this actor has forgotten.
        assert actor not in dict(noted), f"{dot} minted on {held}, which lacks one of {noted}"
        cloud = _without(clock, noted)
    return Record(clock, tuple(kept), cloud)


def accounts_for(record: Record, dots: Collection[Dot]) -> bool:
    """Whether the record knows all these writes, live or superseded."""
    clock, cloud = record.clock, record.cloud
    return all(counter <= clock.get(actor, -1) or (actor, counter) in cloud for actor, counter in dots)


def context_after_put(
    before: Record, after: Record, context: Clock, dot: Dot, seen: Collection[Dot] = ()
) -> tuple[Clock, tuple[Dot, ...]]:
    """What the client that made ``dot`` with ``context`` and ``seen`` has seen now, as (clock, dots beside it).

    ``before`` and ``after`` are the coordinator's record around the put. With no sibling left, all that the record accounts for
    was superseded on the way to this one version. Otherwise its clock would also cover siblings that the client never read,
    so the client's context grows by the one write: as an entry if ``context`` covered all earlier writes of this actor, else
    as a dot. The dots seen stay: the next coordinator may know this write from us alone, and not what it superseded.
    """
    if len(after.versions) == 1 and after.versions[0].dot == dot:
        return after.clock, after.cloud
    actor, counter = dot
    if context.get(actor, -1) >= before.clock.get(actor, -1):
        context = merge_clocks(context, {actor: counter})
    dots = _without(context, (*seen, dot))
    if len(dots) > CONTEXT_DOTS_MAX:
        dots = tuple(sorted(sorted(dots, key=itemgetter(1))[-CONTEXT_DOTS_MAX:]))
    return context, dots


def newest(record: Record) -> Version | None:
    """The version with the highest clock reading (ties: by actor), tombstones included; None if there is none."""
    versions = record.versions
    if len(versions) == 1:
        return versions[0]
    return max(versions, key=lambda v: (v.counter, v.actor), default=None)


def only_newest(record: Record) -> Record:
    """Last writer wins: the record with its newest version alone. Converges because readings respect causality."""
    if len(record.versions) < 2:
        return record
    winner = newest(record)
    assert winner is not None
    return Record(record.clock, (winner,), record.cloud)


def siblings(record: Record, wall_ms: int) -> list[Version]:
    """The live versions as a client sees them, in dot order: a write retried through another coordinator shows once.

    Only the same value is taken for the same write: one that stayed hidden behind a request id used twice would be lost
    with the next put, whose context covers it.
    """
    found: list[Version] = []
    for version in record.versions:
        if version.live(wall_ms) and not (version.request_id and _repeats(version, found)):
            found.append(version)
    return found


def _repeats(version: Version, found: list[Version]) -> bool:
    return any(other.request_id == version.request_id and other.value == version.value for other in found)


def by_request(record: Record, request_id: bytes) -> Version | None:
    """The version that an earlier try of this request left, if it is still there."""
    return next((v for v in record.versions if v.request_id == request_id), None)


def encode(record: Record) -> bytes:
    """The canonical bytes of a record: equal records, equal bytes, whatever order they were built in."""
    return _encoder.encode(record)


def decode(data: bytes | memoryview) -> Record:
    """Read canonical bytes.

    Raises:
        CorruptData: the bytes are not those of a record.
    """
    try:
        record = _decoder.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise CorruptData(f"not a record: {error}") from None
    return record


def check(record: Record) -> None:
    """Assert invariant 1."""
    dots = [v.dot for v in record.versions]
    assert dots == sorted(set(dots)), f"dots not distinct and in order: {dots}"
    for version in record.versions:
        assert covers(record.clock, version), f"clock {record.clock} does not cover {version.dot}"
    assert record.cloud == _without(record.clock, record.cloud), f"cloud not canonical: {record.cloud}"


def as_dict(record: Record) -> dict[str, Any]:
    """For ``explain``: clock and cloud, and each version's dot, size and fate."""
    return {
        "clock": dict(sorted(record.clock.items())),
        "versions": [
            {
                "dot": [v.actor, v.counter],
                "bytes": None if v.value is None else len(v.value),
                "tombstone": v.value is None,
                "expires_at_ms": v.expires_at_ms,
            }
            for v in record.versions
        ],
        "cloud": [list(dot) for dot in record.cloud],
    }


def strip(record: Record) -> Record:
    """The record without its values, for listing: it merges like the whole one."""
    return Record(
        record.clock,
        tuple(v if v.value is None else msgspec.structs.replace(v, value=b"") for v in record.versions),
        record.cloud,
    )
