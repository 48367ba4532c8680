"""One machine of the simulated cluster, and the driver of its node: what ``runtime`` does with sockets, disks and threads.

Driver duties (see ``core.node`` and ``core.messages``): effects without a hold are performed at once, in order; held ones wait
until the group with every write staged before them is committed. Groups are committed one at a time; what is staged and held
meanwhile makes the next one. All events of one turn of the loop get one time, and what they want sent to one peer travels in one
frame at its end.

A crash may come between any two effects (``crash_after``). A kill keeps what was applied to the disk, and the batch under way
either whole or not at all; a loss of power keeps some prefix of what was not synced.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

from cartwheel.core import versions
from cartwheel.core.config import Config
from cartwheel.core.errors import CorruptData, StorageFailed
from cartwheel.core.hintstore import hint_key
from cartwheel.core.messages import (
    PROTOCOL_DIGESTS,
    PROTOCOL_MAX,
    Batch,
    DiskSpace,
    Effect,
    Event,
    Halt,
    Message,
    PeerDown,
    PeerUp,
    Received,
    Reply,
    Result,
    Tick,
    TurnEnd,
    ViewDigest,
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
TURN_S = 0.0005
"""A turn of the loop takes up to half a millisecond: what comes meanwhile belongs to it, and is answered when it ends."""
TICK = Tick()
TURN_END = TurnEnd()


class Surroundings(Protocol):
    """What a host needs from its world."""

    now: float

    def later(self, delay_s: float, handler: object, *args: object) -> None:
        """Call ``handler(*args)`` after a delay."""

    def awake(self, host: Host, handler: object, *args: object) -> bool:
        """Whether a host can take an event now; if it is paused, the event waits."""

    def transmit(self, src: NodeId, dst: NodeId, payload: bytes) -> None:
        """Put a frame on the network."""

    def replied(self, host: Host, call: Call, result: Result) -> None:
        """A node answers a client."""

    def staged(self, host: Host, space: Space, key: bytes, sealed: bytes | None) -> None:
        """A node stages a record, or a hint; None: it drops it."""

    def crashed(self, host: Host, kind: Kind, why: str) -> None:
        """A node is gone."""

    def trace(self, label: str, node: NodeId, payload: bytes = b"") -> None:
        """Something happened, in this order and no other."""


class WatchedStore(Store):
    """A store whose records and hints the world sees as they are staged."""

    __slots__ = ("host",)

    def __init__(self, host: Host) -> None:
        super().__init__(host.disk)
        self.host = host

    def stage(self, space: Space, key: bytes, value: bytes | None, durability: Durability) -> None:
        if space != Space.META:
            self.host.world.staged(self.host, space, key, value)
            self.host.keeps_hints |= space == Space.HINTS
        super().stage(space, key, value, durability)


class Host:
    """A machine: clock and disk outlive the process (``life`` counts the processes)."""

    def __init__(
        self, name: NodeId, world: Surroundings, clock: SimClock, dice: random.Random, *, sync_s: float, stutter: float
    ) -> None:
        self.name = name
        self.world = world
        self.clock = clock
        self.dice = dice
        self.sync_s = sync_s
        self.stutter = stutter
        self.disk = SimDisk()
        self.life = 0
        self.starting = False
        self.running = False
        self.paused_until = 0.0
        self.peers: tuple[NodeId, ...] = ()
        self.protocol = PROTOCOL_MAX
        self.keeps_hints = False  # ever
        self.waiting: list[tuple[object, tuple[object, ...]]] = []  # what came during the pause
        self.calls: dict[int, Call] = {}  # of clients that wait for an answer
        self.crash_after: tuple[int, Kind] | None = None
        self.handled = 0
        self._held: list[Effect] = []
        self._flying: Group | None = None
        self._own: list[Message] = []
        self._frames: dict[NodeId, list[Message]] = {}
        self._turn_s = 0.0  # the node's time in this turn, between two sendings; 0: no turn is under way
        self._last_s = 0.0
        self._space_at = 0.0  # when to report the disk's space again
        self.told_full = False  # the node has been told that its disk is nearly full

    # --- life ---

    def boot(self, config: Config, history: History) -> None:
        """Begin a process on what the disk holds; ``start`` follows."""
        assert not self.running
        self.life += 1
        self.starting, self.told_full = True, False
        self.store = WatchedStore(self)
        self.boot_nonce = self.dice.getrandbits(32)
        self.node = Node(
            config,
            self.store,
            history=history,
            stint=f"{self.dice.getrandbits(40):08x}",
            boot=self.boot_nonce,
        )

    def start(self) -> None:
        """The process begins to serve: what it stages at its start is committed first."""
        world = self.world
        self.starting, self.running = False, True
        self._last_s = self.clock.mono(world.now)
        self.node.start(self._last_s, self.clock.wall(world.now))
        group = self.store.take()
        self.disk.fail_next_sync = False
        self.disk.apply(group.spaces, sync=True)
        self.store.committed()
        world.trace("boot", self.name, self.node.local.actor.encode())

    def stop(self) -> None:
        """A clean stop: commit everything, mark it, and leave."""
        self.node.shutdown()
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
            slow_s, used = self.disk.slow_s, self.disk.used
            self.disk = SimDisk()
            self.disk.slow_s, self.disk.used = slow_s, used
        self._gone(kind, why)

    def _gone(self, kind: Kind, why: str) -> None:
        self.running = False
        self.paused_until = 0.0
        self.crash_after, self._flying, self._turn_s = None, None, 0.0
        self._held, self._own, self._frames = [], [], {}
        self.world.crashed(self, kind, why)

    # --- events ---

    def handle(self, event: Event) -> None:
        """Give the node an event, as part of the turn of the loop that is under way, or begins now."""
        if not self._turn_s:
            self._turn_s = self._last_s = max(self.clock.mono(self.world.now), math.nextafter(self._last_s, math.inf))
            self.world.later(self.dice.random() * TURN_S, self._end_turn, self.life)
        self._handle(event)

    def _handle(self, event: Event) -> bool:
        effects = self.node.handle(self._turn_s, self.clock.wall(self.world.now), event)
        self.handled += 1
        if self.handled % INVARIANTS_EVERY == 0:
            self.node.check()
        return self._perform(effects)

    def receive(self, src: NodeId, batch: Batch) -> None:
        """A frame has arrived. A build that does not know one of its messages would drop the connection, again and again."""
        if self.protocol < PROTOCOL_DIGESTS:
            assert not any(isinstance(message, ViewDigest) for message in batch.messages), "sent to an earlier protocol"
        self.handle(Received(src, batch))

    def tick(self) -> None:
        """Time has passed."""
        self.handle(TICK)
        if self.running and self.world.now >= self._space_at:
            self._space_at = self.world.now + 1.0
            self.handle(DiskSpace(self.disk.used))
            self.told_full = self.disk.used >= self.node.local.config.disk_used_max

    def peer_up(self, node: NodeId, protocol: int) -> None:
        """The transport has a connection."""
        self.handle(PeerUp(node, protocol))

    def peer_down(self, node: NodeId, reason: str) -> None:
        """The transport lost one."""
        self.handle(PeerDown(node, reason))

    def _end_turn(self, life: int) -> None:
        """Commit, release, hear ourselves, until nothing is left to do now; then send."""
        if self.life != life or not self.world.awake(self, self._end_turn, life):
            return
        while True:
            if not self._handle(TURN_END) or not self._maybe_commit():
                return
            if not self._own:
                break
            messages, self._own = self._own, []
            if not self._handle(Received(self.name, Batch(self.node.epoch, messages))):
                return
        self._turn_s = 0.0
        self._flush(len(self._frames))

    def _flush(self, most: int) -> None:
        """Send one frame to each peer that has messages, to ``most`` of them."""
        frames, self._frames = self._frames, {}
        for dst, messages in list(frames.items())[:most]:
            self.world.transmit(self.name, dst, encode_batch(self.node.epoch, messages))

    def _perform(self, effects: list[Effect], *, released: bool = False) -> bool:
        """Perform or hold each effect, in order. False: the node crashed on the way, having sent a part of its frames."""
        crash: Kind | None = None
        if self.crash_after is not None and len(effects) >= self.crash_after[0]:
            effects, crash = effects[: self.crash_after[0]], self.crash_after[1]
        halt = ""
        for effect in effects:
            if isinstance(effect, Halt):
                halt = effect.reason
                break
            if effect.hold > Durability.MEMORY and not released:
                self._held.append(effect)
            elif isinstance(effect, Reply):
                self._reply(effect)
            elif effect.dst == self.name:
                self._own.append(effect.message)
            else:
                self._frames.setdefault(effect.dst, []).append(effect.message)
        if halt or crash is not None:
            self._flush(self.dice.randint(0, len(self._frames)))
            self.crash(crash or Kind.KILL, halt or "between two effects")
            return False
        return True

    def _reply(self, effect: Reply) -> None:
        call: Call = effect.client
        if self.calls.pop(call.id, None) is not None:
            self.world.replied(self, call, effect.result)

    # --- commits ---

    def _maybe_commit(self) -> bool:
        """Commit the open group, if there is a reason to and none is under way: what needs no sync at once, else on the commit
        thread. What nobody waits for stays in the buffer for a while. False: the node crashed."""
        if self._flying is not None or not (self._held or self.store.due(self._last_s)):
            return True
        wanted = max((effect.hold for effect in self._held if not isinstance(effect, Halt)), default=Durability.MEMORY)
        group = self.store.take()
        sync = max(group.durability, wanted) >= Durability.SYNC and (any(group.spaces) or self.disk.dirty)
        held, self._held = self._held, []
        self._flying = group
        if not sync:
            return self._write(group, sync, held)
        delay_s = self.dice.expovariate(1.0 / self.sync_s)
        if self.dice.random() < self.stutter:
            delay_s *= 10
        delay_s += self.disk.slow_s * self.dice.uniform(0.5, 1.5)
        self.world.later(min(delay_s, COMMIT_S_MAX), self._commit, self.life, group, held)
        return True

    def _write(self, group: Group, sync: bool, held: list[Effect]) -> bool:
        try:
            self.disk.apply(group.spaces, sync=sync)
        except StorageFailed as error:
            self.crash(Kind.SYNC_ERROR, str(error))
            return False
        self._flying = None
        self.store.committed()
        return self._perform(held, released=True)

    def _commit(self, life: int, group: Group, held: list[Effect]) -> None:
        """The commit thread is done with a group: release, and end the turn."""
        if self.life != life or not self.world.awake(self, self._commit, life, group, held):
            return
        if not self._turn_s:
            self._turn_s = self._last_s = max(self.clock.mono(self.world.now), math.nextafter(self._last_s, math.inf))
        if self._write(group, True, held):
            self._end_turn(life)

    # --- for judges ---

    @property
    def hints_kept(self) -> int:
        """How many records this machine keeps for others."""
        return len(self.disk.scan(Space.HINTS, limit=1 << 30))

    def record(self, at: bytes, durability: Durability) -> Record:
        """What this machine has of a key, hints for others included: as good as synced, as written, or as staged."""
        if durability is Durability.SYNC:
            return self._gathered(at, self.disk.synced)
        if durability is Durability.OS or not self.running:
            return self._gathered(at, self.disk.get)
        return self._gathered(at, self.store.get)

    def holding(self, at: bytes) -> Record:
        """What the node knows of a key, staged or not, hints for others included."""
        return self._gathered(at, self.store.get)

    def _gathered(self, at: bytes, get: Callable[[Space, bytes], bytes | None]) -> Record:
        found = opened(at, get(Space.RECORDS, at))
        if self.keeps_hints:
            for node in self.peers:
                sealed = get(Space.HINTS, hint_key(node, at))
                if sealed is not None:
                    found = versions.merge(found, opened(at, sealed))
        return found


def hint_target(key: bytes) -> tuple[NodeId, bytes]:
    """The (intended node, record key) of a hint's key, see ``core.hintstore``."""
    end = 1 + key[0]
    return key[1:end].decode(), key[end:]


def opened(at: bytes, sealed: bytes | None) -> Record:
    """A stored record; the empty one if there is none, or bits of it flipped."""
    if sealed is None:
        return versions.EMPTY
    try:
        return versions.decode(unseal(at, sealed))
    except CorruptData:
        return versions.EMPTY
