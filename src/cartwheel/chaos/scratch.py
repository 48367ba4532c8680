"""A scratch cluster that synchronous code can split and heal: for demonstrations.

Nodes and proxy are those of a chaos run; the proxy's event loop runs in a thread of its own. Everything lives in a temporary
directory, which goes with the cluster, however it ends.

    with Scratch() as cluster:
        cluster.split(["n1", "n2"], ["n3", "n4", "n5"])
        ...
        cluster.heal()
        cluster.wait_agree([("0", "a key")])

Each wait is for a condition, with a deadline. Not thread-safe, except ``connect``.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from cartwheel.chaos.cluster import HOST, ChaosFailed, Cluster
from cartwheel.chaos.proxy import Proxy
from cartwheel.chaos.settle import agree, hints_left
from cartwheel.client.resp import Connection
from cartwheel.core.errors import CartwheelError
from cartwheel.core.types import NodeId

TIMEOUT_S = 60.0
"""For the start, for finding a split or its end, and for agreement, each: seconds on a calm machine."""
CALL_TIMEOUT_S = 10.0
LOOP_TIMEOUT_S = 30.0
"""For the proxy, which does what it is told at once, but may take a second for each server that it closes."""
POLL_S = 0.05


class Scratch:
    """The nodes n1 to n``size``, ready when the ``with`` block begins.

    Raises:
        ChaosFailed: what was waited for did not come within ``timeout_s``, or a node ended by itself.
    """

    def __init__(self, *, size: int = 5, timeout_s: float = TIMEOUT_S) -> None:
        self._timeout_s = timeout_s
        self.folder = Path(tempfile.mkdtemp(prefix="cartwheel-demo-"))
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="proxy", daemon=True)
        try:
            self.cluster = Cluster(self.folder, size=size)
        except BaseException:
            shutil.rmtree(self.folder, ignore_errors=True)
            self._loop.close()
            raise
        self.nodes: list[NodeId] = self.cluster.nodes
        self._proxy = Proxy(self.cluster.peer_port)
        self.cluster.dial = self._proxy.dial

    def __enter__(self) -> Self:
        self._thread.start()
        try:
            asyncio.run_coroutine_threadsafe(self._proxy.start(), self._loop).result()
            for node in self.nodes:
                self.cluster.start(node)
            self.wait(self.cluster.whole, "all nodes serve and reach each other")
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()

    def _end(self) -> None:
        """Stop everything and leave nothing behind."""
        self.cluster.stop_all()
        with contextlib.suppress(TimeoutError):
            asyncio.run_coroutine_threadsafe(self._proxy.stop(), self._loop).result(LOOP_TIMEOUT_S)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
        shutil.rmtree(self.folder, ignore_errors=True)

    def connect(self, node: NodeId) -> Connection:
        """A client's connection: clients reach every node, whatever is cut."""
        return Connection(HOST, self.cluster.resp_port[node], CALL_TIMEOUT_S)

    def split(self, left: Sequence[NodeId], right: Sequence[NodeId]) -> float:
        """Let the two halves not hear each other; after how many seconds every node had found that.

        A write that was handed to an owner on the other side before it was found silent would arrive there when the split heals,
        as a second stamp of the same put: so we wait before we go on.
        """
        sides = [(a, b) for a in left for b in right]
        self._in_loop(lambda: self._proxy.cut([*sides, *((b, a) for a, b in sides)]))
        other = {node: set(right) for node in left} | {node: set(left) for node in right}
        return self.wait(lambda: all(self._misses(node, other[node]) for node in other), "each side misses the other")

    def _misses(self, node: NodeId, others: set[NodeId]) -> bool:
        status = self.cluster.status(node)
        return status is not None and others == {each["node"] for each in status["members"] if each["state"] != "up"}

    def heal(self) -> float:
        """Let everybody hear everybody again; after how many seconds all had found that."""
        self._in_loop(self._proxy.heal)
        return self.wait(lambda: all(self._misses(node, set()) for node in self.nodes), "all reach each other again")

    def wait_agree(self, keys: Iterable[tuple[str, str]]) -> float:
        """Wait until no hint is left and the owners of each (bucket, key) hold the same, with nobody reading them; how long that
        took, in seconds."""
        wanted = list(keys)
        return self.wait(
            lambda: not hints_left(self.cluster) and all(agree(self.explain(*each)) for each in wanted),
            "all hints are delivered and all owners hold the same",
        )

    def explain(self, bucket: str, key: str) -> dict[str, Any]:
        """``CW.EXPLAIN`` of a key."""
        with self.connect(self.nodes[0]) as connection:
            answer = connection.call("CW.EXPLAIN", key, "BUCKET", bucket, "JSON")
        assert isinstance(answer, bytes), "CW.EXPLAIN ... JSON answers with a document"
        explained: dict[str, Any] = json.loads(answer)
        return explained

    def _in_loop(self, act: Callable[[], None]) -> None:
        async def acting() -> None:
            act()

        asyncio.run_coroutine_threadsafe(acting(), self._loop).result(LOOP_TIMEOUT_S)

    def wait(self, condition: Callable[[], bool], what: str) -> float:
        """Wait until ``condition`` is true, and return after how many seconds it was. ``what`` says what should come true."""
        began, last = time.monotonic(), ""
        while True:
            try:
                if condition():
                    return time.monotonic() - began
                last = ""
            except CartwheelError as error:  # a node that is not reached, or not yet
                last = f" ({error})"
            if ended := [node for node in self.nodes if not self.cluster.running(node)]:
                raise ChaosFailed(f"{ended[0]} has ended; its last words: {self.cluster.tail(ended[0])}")
            if time.monotonic() - began > self._timeout_s:
                raise ChaosFailed(f"waited {self._timeout_s:g} s in vain: {what}{last}")
            time.sleep(POLL_S)
