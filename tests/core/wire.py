"""Real nodes joined by a fake wire: every message is encoded, decoded and delivered in order, every group commits at once.

For tests of one path through the core, with the faults that a test asks for. Random ones are the simulator's business.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from itertools import count
from typing import Any

from cartwheel.core import versions
from cartwheel.core.config import Config
from cartwheel.core.messages import (
    Administered,
    Batch,
    ClientBucketSet,
    ClientCommit,
    ClientGet,
    ClientPut,
    ClientStage,
    Effect,
    Event,
    Message,
    PeerDown,
    PeerUp,
    PutRequest,
    Received,
    Reply,
    Send,
    Tick,
    TurnEnd,
    decode_batch,
    encode_batch,
)
from cartwheel.core.node import Node
from cartwheel.core.ring import Change, ChangeKind, History, Member
from cartwheel.core.storage import MemoryEngine, Space, Store, record_key
from cartwheel.core.types import Durability, NodeId
from cartwheel.core.versions import Record

WALL_MS = 1_800_000_000_000


def history_of(names: list[str]) -> History:
    """The history of a new cluster of these nodes."""
    return History(
        Change(
            id=f"first:{name}",
            at=i,
            author=name,
            kind=ChangeKind.JOIN,
            member=Member(node=name, address=f"127.0.0.1:{7000 + i}", host="h", zone=""),
        )
        for i, name in enumerate(names)
    )


class Wire:
    """A cluster in one thread.

    ``cut`` names the pairs (source, destination) whose messages vanish, ``lose`` picks single messages, ``repeat`` delivers
    everything twice, ``held`` names nodes whose groups do not commit, ``skew_ms`` sets clocks wrong, ``sent`` is what travelled.
    """

    def __init__(self, names: list[str], *, absent: Iterable[str] = (), q: int = 64, **config: Any) -> None:
        """``absent`` are members that never run: others hear what a test injects in their names."""
        self.now_s = 0.0
        self.wall_ms = WALL_MS
        self.skew_ms: dict[NodeId, int] = {}
        self.repeat = False
        self.lose: Callable[[NodeId, NodeId, Message], bool] = lambda src, dst, message: False
        self.sent: list[tuple[NodeId, NodeId, Message]] = []
        self.client = 0  # the last one
        self.halted: dict[NodeId, str] = {}
        self.engines = {name: MemoryEngine() for name in names}
        self.nodes: dict[NodeId, Node] = {}
        self.stores: dict[NodeId, Store] = {}
        self.replies: dict[Any, Any] = {}
        self.cut: set[tuple[NodeId, NodeId]] = set()
        self.held: set[NodeId] = set()  # nodes whose groups do not commit
        self._held_effects: dict[NodeId, list[Effect]] = {name: [] for name in names}
        self._queue: deque[tuple[NodeId, NodeId, bytes]] = deque()
        self._clients = count(1)
        self._boots = count(1)
        self._names = [*names, *absent]
        self._strangers: set[NodeId] = set()  # nodes that are not of the founding
        self._own_config: dict[NodeId, dict[str, Any]] = {}  # settings that are not everybody's
        self._config = {"q": q, "background_records_per_s_max": 4000, **config}  # four times the pace: shorter tests
        for name in names:
            self.boot(name, next(self._boots))
        for name in names:
            self.connect(name)
        self.advance(0)

    def boot(self, name: NodeId, boot: int) -> None:
        """Start a node on what its engine holds."""
        store = Store(self.engines[name])
        settings = {**self._config, **self._own_config.get(name, {})}
        config = Config(node=name, cluster="test", secret=b"s" * 32, **settings)
        history = history_of([] if name in self._strangers else self._names)
        node = Node(config, store, history=history, stint=f"s{boot}", boot=boot)
        self.nodes[name], self.stores[name] = node, store
        self._held_effects[name] = []
        node.start(self.now_s, self.wall(name))
        self._commit(name)

    def wall(self, name: NodeId) -> int:
        """What this node's clock shows."""
        return self.wall_ms + self.skew_ms.get(name, 0)

    def connect(self, name: NodeId) -> None:
        """This node finds all others that run."""
        for other in list(self.nodes):
            if other != name:
                self.handle(name, PeerUp(other))

    def crash(self, name: NodeId) -> None:
        """Lose a node and what it had not committed."""
        del self.nodes[name]
        for other in list(self.nodes):
            self.handle(other, PeerDown(name, "connection lost"))

    def stop(self, name: NodeId) -> None:
        """Stop a node cleanly."""
        self.nodes[name].shutdown()
        self._commit(name)
        self.crash(name)

    def restart(
        self, name: NodeId, *, disk: MemoryEngine | None = None, boot: int | None = None, **config: Any
    ) -> None:
        """Start a stopped or crashed node again, on its disk or another one, and from now on with these settings."""
        if disk is not None:
            self.engines[name] = disk
        if config:
            self._own_config.setdefault(name, {}).update(config)
        self.boot(name, next(self._boots) if boot is None else boot)
        self.connect(name)
        for other in list(self.nodes):
            if other != name:
                self.handle(other, PeerUp(name))

    # --- members ---

    def add(self, name: NodeId, **config: Any) -> None:
        """Start a node that is no member: it asks to join whomever it meets, once a second."""
        self._strangers.add(name)
        config = {"joins": True, "address": f"{name}:7702", "host": "h", **config}
        self.restart(name, disk=MemoryEngine(), **config)

    def join(self, *names: NodeId, at: NodeId) -> None:
        """Start nodes, and let them become members by one commit at node ``at``."""
        for name in names:
            self.add(name)
        self.wait_staged(*names, at=at)
        assert isinstance(self.commit(at), Administered), self.replies[self.client]

    def wait_staged(self, *names: NodeId, at: NodeId) -> None:
        """Let time pass until node ``at`` knows that these want to join: they ask members and each other, by lot."""
        for _ in range(20):
            if {change.subject for change in self.staged(at)} >= set(names):
                return
            self.advance(1)
        raise AssertionError(f"{names} have not been heard")

    def staged(self, at: NodeId) -> tuple[Change, ...]:
        """The changes that wait for a commit, as this node knows."""
        return self.nodes[at]._membership.folded.staged

    def stage(self, at: NodeId, kind: str, node: NodeId = "", **fields: Any) -> Any:
        """Stage a change through node ``at``."""
        return self.ask(at, ClientStage(0, kind, node, **fields))

    def commit(self, at: NodeId, *, force: bool = False) -> Any:
        """Commit what is staged. ``force``: though members do not answer."""
        return self.ask(at, ClientCommit(0, "", force))

    def change(self, at: NodeId, kind: str, node: NodeId = "", *, force: bool = False, **fields: Any) -> None:
        """Stage one change, and commit it."""
        for result in (self.stage(at, kind, node, **fields), self.commit(at, force=force)):
            assert isinstance(result, Administered), result

    # --- the network ---

    def split(self, *sides: str) -> None:
        """Let only nodes on one side hear each other (names are single letters); they do not know of it."""
        side = {name: i for i, names in enumerate(sides) for name in names}
        self.cut = {(a, b) for a in side for b in side if side[a] != side[b]}

    def heal(self) -> None:
        """End every split."""
        self.cut = set()

    def handle(self, name: NodeId, event: Event) -> None:
        """Give one event to a node, and run until the wire is quiet."""
        self.handle_at_once(name, event)
        self.run()

    def handle_at_once(self, name: NodeId, *events: Event) -> None:
        """Give events of one moment to a node; what it sends waits for ``run``."""
        self.now_s += 1e-6  # messages have left since the last moment
        for event in events:
            self._step(name, event)

    def run(self) -> None:
        """Deliver until nothing is under way."""
        while self._queue:
            src, dst, data = self._queue.popleft()
            batch = decode_batch(data)
            self.sent += [(src, dst, message) for message in batch.messages]
            batch.messages = [m for m in batch.messages if not self.lose(src, dst, m)]
            if dst in self.nodes and (src, dst) not in self.cut and batch.messages:
                for _ in range(1 + self.repeat):
                    self._step(dst, Received(src, batch))

    def inject(self, src: NodeId, dst: NodeId, *messages: Message, epoch: bytes | None = None) -> None:
        """Deliver a batch as if it came from ``src``."""
        if epoch is None:
            epoch = self.nodes[dst].epoch
        self.handle(dst, Received(src, decode_batch(encode_batch(epoch, list(messages)))))

    def _step(self, name: NodeId, event: Event) -> None:
        if name not in self.nodes:
            return  # it crashed while a message to itself was under way
        self.now_s += 1e-9  # events are never simultaneous here: each one's messages leave before the next
        node = self.nodes[name]
        effects = node.handle(self.now_s, self.wall(name), event) + node.handle(self.now_s, self.wall(name), TurnEnd())
        node.check()
        now = [e for e in effects if not getattr(e, "hold", Durability.MEMORY)]
        self._held_effects[name] += [e for e in effects if getattr(e, "hold", Durability.MEMORY)]
        self._perform(name, now)
        if name not in self.held:
            self._commit(name)

    def _commit(self, name: NodeId) -> None:
        store = self.stores[name]
        if store.staged:
            group = store.take()
            self.engines[name].apply(group.spaces, sync=True)
            store.committed()
        held, self._held_effects[name] = self._held_effects[name], []
        self._perform(name, held)

    def release(self, name: NodeId) -> None:
        """Let a held node's groups commit again."""
        self.held.discard(name)
        self._commit(name)
        self.run()

    def _perform(self, name: NodeId, effects: list[Effect]) -> None:
        for effect in effects:
            if isinstance(effect, Send):
                epoch = self.nodes[name].epoch
                if effect.dst == name:
                    self._step(name, Received(name, Batch(epoch, [effect.message])))
                else:
                    self._queue.append((name, effect.dst, encode_batch(epoch, [effect.message])))
            elif isinstance(effect, Reply):
                assert effect.client not in self.replies, "a client was answered twice"
                self.replies[effect.client] = effect.result
            else:
                self.halted[name] = effect.reason

    def pass_time(self, seconds: float) -> None:
        """Let time pass unnoticed."""
        self.now_s += seconds
        self.wall_ms += round(seconds * 1000)

    def advance(self, seconds: float) -> None:
        """Let time pass, with a tick at its end on every node."""
        self.pass_time(seconds)
        for name in list(self.nodes):
            self.handle(name, Tick())

    # --- what nodes hold ---

    def sealed(self, name: NodeId, key: bytes, bucket: str = "0") -> bytes | None:
        """The bytes that this node holds of a key, durable or staged."""
        return self.stores[name].get(Space.RECORDS, record_key(bucket, key))

    def record(self, name: NodeId, key: bytes, bucket: str = "0") -> Record:
        """What this node holds of a key."""
        sealed = self.sealed(name, key, bucket)
        return versions.EMPTY if sealed is None else versions.decode(sealed[8:])

    def values(self, name: NodeId, key: bytes, bucket: str = "0") -> list[bytes | None]:
        """The values of the versions that this node holds, sorted, tombstones first."""
        found = [v.value for v in self.record(name, key, bucket).versions]
        return sorted(found, key=lambda v: (v is not None, v))

    def damage(self, name: NodeId, key: bytes, bucket: str = "0") -> None:
        """Flip a bit of a record on this node's disk."""
        sealed = bytearray(self.sealed(name, key, bucket) or b"")
        sealed[-1] ^= 1
        self.engines[name].apply([{record_key(bucket, key): bytes(sealed)}, {}, {}], sync=True)
        self.nodes[name].local.hot.clear()  # damage on the disk shows when it is read from there

    def copy_disk(self, name: NodeId) -> MemoryEngine:
        """A backup of this node's disk."""
        copy = MemoryEngine()
        spaces = [dict(self.engines[name].scan(space, limit=1 << 30)) for space in Space]
        copy.apply(spaces, sync=True)  # type: ignore[arg-type]
        return copy

    # --- clients ---

    def set_bucket(self, at: NodeId, bucket: str, **props: object) -> Any:
        """Change a bucket's properties."""
        return self.ask(at, ClientBucketSet(0, bucket, {name: str(value) for name, value in props.items()}))

    def put(self, at: NodeId, key: bytes, value: bytes | None, *, bucket: str = "0", **fields: Any) -> Any:
        """put() through node ``at``: the result, or None while there is none."""
        client = self.client = next(self._clients)
        self.handle(at, ClientPut(client, PutRequest(bucket, key, value, **fields)))
        return self.replies.get(client)

    def get(self, at: NodeId, key: bytes, *, bucket: str = "0", **fields: Any) -> Any:
        """get() through node ``at``."""
        client = self.client = next(self._clients)
        self.handle(at, ClientGet(client, bucket, key, **fields))
        return self.replies.get(client)

    def ask(self, at: NodeId, event: Event) -> Any:
        """Any client event (its ``client`` is set here)."""
        event.client = self.client = next(self._clients)  # type: ignore[union-attr]
        self.handle(at, event)
        return self.replies.get(event.client)  # type: ignore[union-attr]
