"""One machine of the simulated cluster, and the driver of its node: what ``runtime`` does with sockets, disks and threads.

Driver duties (see ``core.node`` and ``core.messages``): effects without a hold are performed at once, in order; held ones wait
until the group with every write staged before them is committed. Groups are committed one at a time; what is staged and held
meanwhile makes the next one. What one event wants sent to one peer travels in one frame.

A crash may come between any two effects (``crash_after``). A kill keeps what was applied to the disk, and the batch under way
either whole or not at all; a loss of power keeps some prefix of what was not synced.
"""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Protocol

from cartwheel.core import versions
from cartwheel.core.config import Config
from cartwheel.core.errors import CorruptData, StorageFailed
from cartwheel.core.messages import (
    Batch,
    Effect,
    Event,
    Halt,
    Message,
    PeerDown,
    PeerUp,
    Received,
    Reply,
    Result,
    Send,
    Tick,
    encode_batch,
)
from cartwheel.core.node import Node
from cartwheel.core.ring import History
from cartwheel.core.storage import Group, Space, Store, unseal
from cartwheel.core.types import Durability, NodeId
from cartwheel.core.versions import Record
from cartwheel.sim.clocks import SimClock
from cartwheel.sim.disks import SimDisk
from cartwheel.sim.faults import Kind

if TYPE_CHECKING:
    from cartwheel.sim.world import Call

INVARIANTS_EVERY = 16
"""``Node.check`` runs after every sixteenth event: it costs as much as the event itself."""
COMMIT_S_MAX = 3.0
"""The slowest sync of the slowest disk: longer than a request waits, but over before the judgement."""
TICK = Tick()


class Surroundings(Protocol):
    """What a host needs from its world."""

    now: float

    def later(self, delay_s: float, handler: object, *args: object) -> None:
        """Call ``handler(*args)`` after a delay."""

    def transmit(self, src: NodeId, dst: NodeId, payload: bytes) -> None:
        """Put a frame on the network."""

    def replied(self, host: Host, call: Call, result: Result) -> None:
        """A node answers a client."""

    def staged(self, host: Host, record_key: bytes, sealed: bytes) -> None:
        """A node stages a record."""

    def crashed(self, host: Host, kind: Kind, why: str) -> None:
        """A node is gone."""

    def trace(self, label: str, node: NodeId, payload: bytes = b"") -> None:
        """Something happened, in this order and no other."""


class WatchedStore(Store):
    """A store whose records the world sees as they are staged."""

    __slots__ = ("host",)

    def __init__(self, host: Host) -> None:
        super().__init__(host.disk)
        self.host = host

    def stage(self, space: Space, key: bytes, value: bytes | None, durability: Durability) -> None:
        if space == Space.RECORDS and value is not None:
            self.host.world.staged(self.host, key, value)
        super().stage(space, key, value, durability)


class Host:
    """A machine: clock and disk outlive the process (``life`` counts the processes)."""

    def __init__(self, name: NodeId, world: Surroundings, clock: SimClock, dice: random.Random, sync_s: float) -> None:
        self.name = name
        self.world = world
        self.clock = clock
        self.dice = dice
        self.sync_s = sync_s
        self.disk = SimDisk()
        self.life = 0
        self.running = False
        self.paused_until = 0.0
        self.calls: dict[int, Call] = {}  # of clients that wait for an answer
        self.crash_after: tuple[int, Kind] | None = None
        self.handled = 0
        self._held: list[Effect] = []
        self._flying: Group | None = None

    # --- life ---

    def boot(self, config: Config, history: History) -> None:
        """Start a process on what the disk holds."""
        assert not self.running
        world = self.world
        self.life += 1
        self.running = True
        self.crash_after, self._held, self._flying = None, [], None
        self.store = WatchedStore(self)
        self.boot_nonce = self.dice.getrandbits(32)
        self.node = Node(
            config,
            self.store,
            history=history,
            stint=f"{self.dice.getrandbits(40):08x}",
            boot=self.boot_nonce,
        )
        self.node.start(self.clock.mono(world.now), self.clock.wall(world.now))
        group = self.store.take()
        self.disk.fail_next_sync = False
        self.disk.apply(group.spaces, sync=True)
        self.store.committed()
        world.trace("boot", self.name, self.node.local.actor.encode())

    def stop(self) -> None:
        """A clean stop: commit everything, mark it, and leave."""
        self.node.shutdown(self.clock.wall(self.world.now))
        groups = [self._flying] if self._flying is not None else []
        if groups:
            self.disk.apply(groups[0].spaces, sync=False)
            self.store.committed()
        self.disk.fail_next_sync = False
        self.disk.apply(self.store.take().spaces, sync=True)
        self._gone(Kind.STOP, "stopped")

    def crash(self, kind: Kind, why: str) -> None:
        """The process ends here and now."""
        flying = self._flying
        if flying is not None and (kind is not Kind.KILL or self.dice.random() < 0.5):
            self.disk.apply(flying.spaces, sync=False)
        if kind in {Kind.POWER, Kind.SYNC_ERROR}:  # after a failed sync, the kernel may have dropped any dirty page
            lost = self.disk.power_cut(self.dice)
            why += f", {lost} batches lost"
        if kind is Kind.WIPE:
            slow = self.disk.slow
            self.disk = SimDisk()
            self.disk.slow = slow
        self._gone(kind, why)

    def _gone(self, kind: Kind, why: str) -> None:
        self.running = False
        self.paused_until = 0.0
        self.crash_after, self._held, self._flying = None, [], None
        self.world.crashed(self, kind, why)

    # --- events ---

    def handle(self, event: Event) -> None:
        """Give the node an event and do what it wants."""
        now = self.world.now
        effects = self.node.handle(self.clock.mono(now), self.clock.wall(now), event)
        self.handled += 1
        if self.handled % INVARIANTS_EVERY == 0:
            self.node.check()
        if self._perform(effects):
            self._maybe_commit()

    def receive(self, src: NodeId, batch: Batch) -> None:
        """A frame has arrived."""
        self.handle(Received(src, batch))

    def tick(self) -> None:
        """Time has passed."""
        self.handle(TICK)

    def peer_up(self, node: NodeId) -> None:
        """The transport has a connection."""
        self.handle(PeerUp(node))

    def peer_down(self, node: NodeId, reason: str) -> None:
        """The transport lost one."""
        self.handle(PeerDown(node, reason))

    def _perform(self, effects: list[Effect], *, released: bool = False) -> bool:
        """Perform or hold each effect, in order. False: the node crashed on the way."""
        crash: Kind | None = None
        if self.crash_after is not None and len(effects) >= self.crash_after[0]:
            effects, crash = effects[: self.crash_after[0]], self.crash_after[1]
        frames: dict[NodeId, list[Message]] = {}
        world = self.world
        halt = ""
        for effect in effects:
            if isinstance(effect, Halt):
                halt = effect.reason
                break
            if effect.hold > Durability.MEMORY and not released:
                self._held.append(effect)
            elif isinstance(effect, Send):
                frames.setdefault(effect.dst, []).append(effect.message)
            else:
                self._reply(effect)
        for dst, messages in frames.items():
            if dst == self.name:
                world.later(0.0, self._loop_back, self.life, messages)
            else:
                world.transmit(self.name, dst, encode_batch(self.node.epoch, messages))
        if halt or crash is not None:
            self.crash(crash or Kind.KILL, halt or "between two effects")
            return False
        return True

    def _loop_back(self, life: int, messages: list[Message]) -> None:
        if self.running and self.life == life:
            self.handle(Received(self.name, Batch(self.node.epoch, messages)))

    def _reply(self, effect: Reply) -> None:
        call: Call = effect.client
        if self.calls.pop(call.id, None) is not None:
            self.world.replied(self, call, effect.result)

    # --- commits ---

    def _maybe_commit(self) -> None:
        """Close the open group and commit it, if there is a reason to and none is under way."""
        if self._flying is not None or not (self._held or self.store.staged):
            return
        wanted = max((effect.hold for effect in self._held if not isinstance(effect, Halt)), default=Durability.MEMORY)
        group = self.store.take()
        sync = max(group.durability, wanted) >= Durability.SYNC and (any(group.spaces) or self.disk.dirty)
        held, self._held = self._held, []
        self._flying = group
        delay_s = 0.0
        if sync:
            delay_s = self.dice.expovariate(1.0 / self.sync_s) * self.disk.slow
            if self.dice.random() < 0.01:
                delay_s *= 10
            delay_s = min(delay_s, COMMIT_S_MAX)
        elif any(group.spaces):
            delay_s = 0.00005 * self.disk.slow
        self.world.later(delay_s, self._commit, self.life, group, sync, held)

    def _commit(self, life: int, group: Group, sync: bool, held: list[Effect]) -> None:
        if self.life != life or not self.running:
            return
        try:
            self.disk.apply(group.spaces, sync=sync)
        except StorageFailed as error:
            self.crash(Kind.SYNC_ERROR, str(error))
            return
        self._flying = None
        self.store.committed()
        if self._perform(held, released=True):
            self._maybe_commit()

    # --- for judges ---

    def record(self, record_key: bytes, durability: Durability) -> Record:
        """What this machine's disk has of a key: as good as synced, or as written, or with what is only staged."""
        if durability is Durability.SYNC:
            sealed = self.disk.synced(Space.RECORDS, record_key)
        elif durability is Durability.OS or not self.running:
            sealed = self.disk.get(Space.RECORDS, record_key)
        else:
            sealed = self.store.get(Space.RECORDS, record_key)
        if sealed is None:
            return versions.EMPTY
        try:
            return versions.decode(unseal(record_key, sealed))
        except CorruptData:
            return versions.EMPTY
