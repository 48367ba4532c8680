"""Real nodes joined by a fake wire: every message is encoded, decoded and delivered in order, every group commits at once.

For tests of one path through the core. Loss, delay and crashes are the simulator's business.
"""

from __future__ import annotations

from collections import deque
from itertools import count
from typing import Any

from cartwheel.core.config import Config
from cartwheel.core.messages import (
    Batch,
    ClientGet,
    ClientPut,
    Effect,
    Event,
    PeerDown,
    PeerUp,
    PutRequest,
    Received,
    Reply,
    Send,
    Tick,
    decode_batch,
    encode_batch,
)
from cartwheel.core.node import Node
from cartwheel.core.ring import Change, ChangeKind, History, Member
from cartwheel.core.storage import MemoryEngine, Store
from cartwheel.core.types import Durability, NodeId

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
    """A cluster in one thread. ``cut`` names the pairs (source, destination) whose messages vanish."""

    def __init__(self, names: list[str], *, q: int = 64, **config: Any) -> None:
        self.now_s = 0.0
        self.wall_ms = WALL_MS
        self.engines = {name: MemoryEngine() for name in names}
        self.nodes: dict[NodeId, Node] = {}
        self.stores: dict[NodeId, Store] = {}
        self.replies: dict[Any, Any] = {}
        self.cut: set[tuple[NodeId, NodeId]] = set()
        self.held: set[NodeId] = set()  # nodes whose groups do not commit
        self._held_effects: dict[NodeId, list[Effect]] = {name: [] for name in names}
        self._queue: deque[tuple[NodeId, NodeId, bytes]] = deque()
        self._clients = count(1)
        self._names = names
        self._config = {"q": q, **config}
        for i, name in enumerate(names):
            self.boot(name, i + 1)
        for name in names:
            for other in names:
                if other != name:
                    self.handle(name, PeerUp(other))

    def boot(self, name: NodeId, boot: int) -> None:
        """Start a node on what its engine holds."""
        store = Store(self.engines[name])
        config = Config(node=name, cluster="test", secret=b"s" * 32, **self._config)
        node = Node(config, store, history=history_of(self._names), stint=f"s{boot}", boot=boot, seed=boot)
        self.nodes[name], self.stores[name] = node, store
        self._held_effects[name] = []
        node.start(self.now_s, self.wall_ms)
        self._commit(name)

    def crash(self, name: NodeId) -> None:
        """Lose a node and what it had not committed."""
        del self.nodes[name]
        for other in self.nodes:
            self.handle(other, PeerDown(name, "connection lost"))

    def handle(self, name: NodeId, event: Event) -> None:
        """Give one event to a node, and run until the wire is quiet."""
        self._step(name, event)
        self.run()

    def run(self) -> None:
        """Deliver until nothing is under way."""
        while self._queue:
            src, dst, data = self._queue.popleft()
            if dst in self.nodes and (src, dst) not in self.cut:
                self._step(dst, Received(src, decode_batch(data)))

    def _step(self, name: NodeId, event: Event) -> None:
        effects = self.nodes[name].handle(self.now_s, self.wall_ms, event)
        self.nodes[name].check()
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

    def advance(self, seconds: float) -> None:
        """Let time pass, with a tick at its end on every node."""
        self.now_s += seconds
        self.wall_ms += int(seconds * 1000)
        for name in list(self.nodes):
            self.handle(name, Tick())

    # --- clients ---

    def put(self, at: NodeId, key: bytes, value: bytes | None, *, bucket: str = "0", **fields: Any) -> Any:
        """put() through node ``at``: the result, or None while there is none."""
        client = next(self._clients)
        self.handle(at, ClientPut(client, PutRequest(bucket, key, value, **fields)))
        return self.replies.get(client)

    def get(self, at: NodeId, key: bytes, *, bucket: str = "0", **fields: Any) -> Any:
        """get() through node ``at``."""
        client = next(self._clients)
        self.handle(at, ClientGet(client, bucket, key, **fields))
        return self.replies.get(client)

    def ask(self, at: NodeId, event: Event) -> Any:
        """Any client event (its ``client`` is set here)."""
        event.client = next(self._clients)  # type: ignore[union-attr]
        self.handle(at, event)
        return self.replies.get(event.client)  # type: ignore[union-attr]
