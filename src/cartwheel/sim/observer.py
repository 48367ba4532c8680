"""What the judges are told while a run goes on: histories of keys, mints, acknowledgements, reaped records; and what is left.

It sees every record that a node stages, as its own or as a hint (C7), and every acknowledgement at its very moment (C9).
Judges see disks and true time; nodes see neither.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from cartwheel.core import versions
from cartwheel.core.config import DURABILITY
from cartwheel.core.messages import Stored
from cartwheel.core.ring import Ring
from cartwheel.core.storage import CHECKSUM_BYTES, Space, record_key, split_record_key
from cartwheel.core.types import Dot, NodeId
from cartwheel.core.versions import Record
from cartwheel.sim.clocks import true_wall_ms
from cartwheel.sim.history import Final, KeyHistory, Leftover, Mint, Write, parse_value, write_of
from cartwheel.sim.host import Host, hint_target, opened
from cartwheel.sim.ledgers import DotLedger, check_durable

if TYPE_CHECKING:
    from cartwheel.sim.world import World

BUCKET = "b"


class Observer:
    """The eyes of the judges."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.histories: dict[str, KeyHistory] = {}
        self.leftovers: list[Leftover] = []
        self._rotten: list[
            tuple[str, NodeId]
        ] = []  # (key, owner) of records that fail their checksum, and nobody has read yet
        self._ledger = DotLedger()
        self._ring: Ring | None = None
        self._durability = DURABILITY[world.plan.durability]

    def key_history(self, key: str) -> KeyHistory:
        """The story of a key so far."""
        found = self.histories.get(key)
        if found is None:
            found = self.histories[key] = KeyHistory(key)
        return found

    # --- while the run goes on ---

    def staged(self, host: Host, space: Space, key: bytes, sealed: bytes | None) -> None:
        """A node stages a record of its own, or a hint: C7. None: it lets go of it."""
        if space == Space.HINTS:
            if sealed is None:
                self.world.marks["hints.removed"] += 1
                return
            self.world.marks["hints.kept"] += 1
            key = hint_target(key)[1]
        elif sealed is None:
            if host.node.local.is_writer(host.name, key):
                self._note_reaped(host, key)
            else:
                self.world.marks["given_away"] += 1  # whether it is elsewhere, the end tells
            return
        record = versions.decode(memoryview(sealed)[CHECKSUM_BYTES:])
        before: list[Record] = []

        def held() -> Record:
            if not before:
                before.append(host.holding(key))
            return before[0]

        actor = host.node.local.actor
        minted, wrong = self._ledger.staged(host.name, actor, host.boot_nonce, key, held, record)
        if not minted and not wrong:
            return
        name = split_record_key(key)[1].decode()
        for rule, text in wrong:
            self.world.violate(rule, name, text)
        for version in minted:
            self._note_mint(host, name, version, held())

    def _note_reaped(self, host: Host, at: bytes) -> None:
        """A node drops a record for good: what it held counts as dead from now on, wherever it is."""
        held = opened(at, host.store.get(Space.RECORDS, at))
        name = split_record_key(at)[1].decode()
        self.world.marks["reaped"] += 1
        self._ledger.reaped(at, host.node.local.actor, held)
        for version in held.versions:
            self.key_history(name).reaped.setdefault(version.dot, self.world.now)
            expired = 0 < version.expires_at_ms <= true_wall_ms(self.world.now)
            if version.value is not None and not expired:
                self.world.violate("C6", name, f"{host.name} drops a record that shows a value: {version!r}")

    def _note_mint(self, host: Host, key: str, version: versions.Version, held: Record) -> None:
        world, history = self.world, self.key_history(key)
        write = history.writes.get(write_of(version.value, version.request_id) or 0)
        if write is None:
            world.violate("C7", key, f"{host.name} mints a version that no client asked for: {version!r}")
            return
        if (version.value, version.expires_at_ms) != (write.value, write.expires_at_ms):
            text = f"{host.name} mints {version!r} for write #{write.id}, which asked for {write.value!r}"
            world.violate("C7", key, text)
        if version.value is not None and host.told_full:
            world.violate("FULL", key, f"{host.name} mints {version!r}, though its disk is nearly full")
        replaced = write.read or ()
        if write.read is None or world.plan.reconcile == "lww":
            replaced += tuple(v.dot for v in held.versions)
        mint = Mint(version.dot, write.id, host.name, world.now, replaced, tombstone=version.value is None)
        history.mints[version.dot] = mint
        if write.dots and not version.request_id:
            text = f"write #{write.id} was sent once without a request id, but is minted again: {version!r}"
            world.violate("C7", key, text)
        write.dots.append(version.dot)
        world.marks["mints"] += 1

    def acknowledged(self, write: Write, stored: Stored) -> None:
        """A put is acknowledged: C9, and the dots that must never be lost from now on."""
        world = self.world
        acked = [dot for dot in write.dots if covered_by(stored, dot)]
        for dot in acked:
            write.acked.setdefault(dot, world.now)
        at = record_key(BUCKET, write.key.encode())
        holders = {name: host.record(at, self._durability) for name, host in world.hosts.items()}
        world.violations += check_durable(write.key, acked, world.plan.safe_copies, holders, world.now)

    # --- the end ---

    def owners(self, at: bytes) -> tuple[NodeId, ...]:
        """Who is to hold the key, in the end."""
        if self._ring is None:
            self._ring = self.world.ring
        return self._ring.owners_of(self._ring.partition_of(at), self.world.plan.n)

    def collect_finals(self) -> None:
        """Write into each history what the owners hold now, and gather what lies where it should not."""
        self._ring = self.world.ring
        wall_ms = true_wall_ms(self.world.now)
        for key, history in sorted(self.histories.items()):
            for node in self.owners(record_key(BUCKET, key.encode())):
                final = history.finals[node] = self._final(key, node, wall_ms)
                if final.sealed is not None and not final.canonical:
                    self._rotten.append((key, node))
        self.leftovers = [
            row for host in self.world.hosts.values() if self._counts(host) for row in self._leftovers_of(host)
        ]

    def _counts(self, host: Host) -> bool:
        """Whether what this machine has matters: not if it never ran, or was removed for ever."""
        return bool(host.life) and host.name not in self.world.removed

    def collect_mended(self) -> None:
        """Every key has been read by now: a record whose bits had flipped, unnoticed until then, must be whole again."""
        for key, node in self._rotten:
            self.histories[key].finals[node] = self._final(key, node, true_wall_ms(self.world.now))

    def _final(self, key: str, node: NodeId, wall_ms: int) -> Final:
        at = record_key(BUCKET, key.encode())
        sealed = self.world.hosts[node].store.get(Space.RECORDS, at)
        record = opened(at, sealed)
        canonical = sealed is None or versions.encode(record) == sealed[CHECKSUM_BYTES:]
        final = Final(sealed, tuple(v.dot for v in record.versions), canonical)
        final.live = bool(versions.siblings(record, wall_ms))
        for version in record.versions:
            if version.value is not None:
                final.live_dots += (version.dot,)
                final.elements |= parse_value(version.value)[1]
        return final

    def _leftovers_of(self, host: Host) -> list[Leftover]:
        """Records on nodes that do not own their keys, and hints."""
        found = []
        for at, sealed in host.store.scan(Space.RECORDS, limit=1 << 30):
            if host.name not in self.owners(at):
                found.append(_leftover(host.name, "", at, sealed))
        for key, sealed in host.store.scan(Space.HINTS, limit=1 << 30):
            intended, at = hint_target(key)
            found.append(_leftover(host.name, intended, at, sealed))
        return found


def covered_by(stored: Stored, dot: Dot) -> bool:
    """Whether an acknowledged context covers a write."""
    return dot[1] <= stored.clock.get(dot[0], -1) or dot in stored.dots


def _leftover(node: NodeId, intended: NodeId, at: bytes, sealed: bytes) -> Leftover:
    record = opened(at, sealed)
    live = tuple(v.dot for v in record.versions if v.value is not None)
    return Leftover(node, intended, split_record_key(at)[1].decode(), live)
