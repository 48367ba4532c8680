"""The nodes' processes in the hands of whoever breaks them: one at a time has a node, and what was done to it is written down.

``hold`` gives a node to one that may end and start its process; others wait, or take another one. A process that ends though
nobody holds its node is a finding (``watch``).

Who is not there, or not to be counted on, is written down as *away*: before a new node is a member, while a process is dead or
frozen, from the commit by which a node leaves.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from contextlib import asynccontextmanager, contextmanager

from cartwheel.chaos.cluster import ChaosFailed, Cluster
from cartwheel.chaos.history import Away, Fault, Owners, Trouble
from cartwheel.core.types import NodeId

READY_TIMEOUT_S = 60.0
POLL_S = 0.02
WATCH_S = 0.1

Note = Callable[[Fault | Away | Owners | Trouble], None]


class Processes:
    """Of a cluster."""

    def __init__(self, cluster: Cluster, now: Callable[[], float], note: Note, absent: Iterable[NodeId] = ()) -> None:
        """``absent``: who is not there yet."""
        self.cluster = cluster
        self.now = now
        self.note = note
        self._stop = asyncio.Event()
        self._busy: set[NodeId] = set()
        self._absent: dict[NodeId, float] = dict.fromkeys(absent, 0.0)  # since when

    # --- time ---

    def stop(self) -> None:
        """Begin nothing new, and end what lasts."""
        self._stop.set()

    @property
    def stopping(self) -> bool:
        """Whether that has been said."""
        return self._stop.is_set()

    async def pause(self, seconds: float) -> None:
        """Wait so long, or until the run stops."""
        if seconds > 0:
            try:
                await asyncio.wait_for(self._stop.wait(), seconds)
            except TimeoutError:
                return

    async def moment(self) -> None:
        """Wait a moment, whether the run stops or not."""
        await asyncio.sleep(POLL_S)

    # --- whose turn it is ---

    def free(self) -> list[NodeId]:
        """Nodes that are there, and in nobody's hands."""
        return [node for node in self.cluster.nodes if node not in self._busy]

    def other_than(self, node: NodeId) -> NodeId | None:
        """A free node: this one, or else the next in the order of their names; None: there is none."""
        free = sorted(self.free())
        return next((each for each in free if each >= node), free[0] if free else None)

    @asynccontextmanager
    async def hold(self, node: NodeId) -> AsyncIterator[None]:
        """Wait until nobody else has this node; then it is ours."""
        while node in self._busy:
            await self.moment()
        self._busy.add(node)
        try:
            yield
        finally:
            self._busy.discard(node)

    # --- books ---

    @contextmanager
    def away(self, node: NodeId) -> Iterator[None]:
        """The node answers nobody meanwhile."""
        start = self.now()
        try:
            yield
        finally:
            self.note(Away(node, start, self.now()))

    def gone(self, node: NodeId) -> None:
        """From now on it is not counted on."""
        self._absent.setdefault(node, self.now())

    def came(self, node: NodeId) -> None:
        """From now on it is."""
        since = self._absent.pop(node, None)
        if since is not None:
            self.note(Away(node, since, self.now()))

    def close(self) -> None:
        """Write down who is not there at the end."""
        for node in list(self._absent):
            self.came(node)

    def trouble(self, rule: str, text: str) -> None:
        """Write down what must not happen."""
        self.note(Trouble(rule, text, self.now()))

    # --- life ---

    async def start(self, node: NodeId) -> float:
        """Start it and wait until it serves; how long that took. One that is to join finds no cluster while it is cut off from
        everyone, and says so: it is started again.

        Raises:
            ChaosFailed: it does not come.
        """
        cluster, began = self.cluster, self.now()
        cluster.start(node)
        while await asyncio.to_thread(cluster.status, node) is None:
            if self.now() - began > READY_TIMEOUT_S or not (cluster.running(node) or cluster.found_none(node)):
                raise ChaosFailed(f"{node} did not come back; its last words:\n{cluster.tail(node)}")
            if not cluster.running(node):
                began = self.now()
                cluster.start(node)
            await asyncio.sleep(POLL_S)
        return self.now() - began

    async def terminate(self, node: NodeId) -> None:
        """SIGTERM, and its clean end."""
        code = await asyncio.to_thread(self.cluster.terminate, node)
        if code != 0:
            self.trouble("STOP", f"{node} ended with {code} on SIGTERM: {self.cluster.tail(node, 1)}")

    async def watch(self) -> None:
        """A node that ends though nobody ended it is a finding. It is started again, so that the run goes on."""
        while True:
            for node in self.free():
                if not self.cluster.running(node):
                    text = f"{node} ended by itself with {self.cluster.exit_code(node)}: {self.cluster.tail(node, 3)}"
                    self.trouble("HALT", text)
                    self.cluster.start(node)
            await asyncio.sleep(WATCH_S)
