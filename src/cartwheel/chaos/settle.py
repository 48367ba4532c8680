"""After the faults: wait until the owners of every key agree, and write down what they hold.

First the hints must have reached their nodes: while some are under way, owners may agree on what is not the latest. Then all
agree when each of the n owners of a key shows the same clock and the same versions (``CW.EXPLAIN``). Nodes are given time
to get there by themselves; when no further key has come to agree for ``PATIENCE_S``, the others are read, which repairs stale
replicas (section 5 of the paper). It is written down which keys needed that.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from cartwheel.chaos.cluster import HOST, Cluster
from cartwheel.chaos.history import Final, parse_value
from cartwheel.client.resp import CannotReach, Connection, ConnectionLost, ReplyError
from cartwheel.core.types import NodeId

TIMEOUT_S = 120.0
PATIENCE_S = 30.0
POLL_S = 0.25
CALL_TIMEOUT_S = 10.0
SLICE = 50
"""Keys asked about at once."""

Explained = dict[str, Any]


def settle(
    cluster: Cluster,
    keys: Sequence[str],
    write: Callable[[Final], None],
    trouble: Callable[[str], None],
    ended: threading.Event,
) -> float:
    """Wait, write a line for each key, and return how long it took. Runs in a thread, until ``ended`` at the latest."""
    began = time.monotonic()
    pending, was_read = list(keys), False
    turn = 0
    while (left := hints_left(cluster)) and not ended.is_set():
        if time.monotonic() - began > TIMEOUT_S:
            trouble(f"{TIMEOUT_S:g} s after healing there are hints left: {left}")
            break
        ended.wait(POLL_S)
    last_progress = time.monotonic()
    while pending and not ended.is_set():
        node = cluster.nodes[turn % len(cluster.nodes)]
        turn += 1
        agreed, open_ = _look(cluster.resp_port[node], pending)
        _write_down(cluster.resp_port[node], agreed, write, read=was_read)
        now = time.monotonic()
        if len(open_) < len(pending):
            last_progress = now
        pending = [key for key, _ in open_]
        if now - began > TIMEOUT_S:
            for key, explained in open_:
                write(_final(key, explained, [], read=True))
            break
        if now - last_progress > PATIENCE_S:
            was_read, last_progress = True, now
            _gets(cluster.resp_port[node], pending, n=0)
        if pending:
            ended.wait(POLL_S)
    return time.monotonic() - began


def hints_left(cluster: Cluster) -> str:
    """Which nodes keep how many hints for others, or do not say; "" if there are none: only then have the owners of a key all
    that was acknowledged."""
    [(_, answer)] = _calls(cluster.resp_port[cluster.nodes[0]], [("CW.HINTS", "JSON")], [""])
    if not isinstance(answer, bytes):
        return f"CW.HINTS: {answer}"
    found = []
    for holder, kept in json.loads(answer).items():
        if isinstance(kept, dict):
            found.append(f"{holder}: {kept['error']}")
        else:
            found += [f"{holder} keeps {each['hints']} for {each['intended']} ({each['waits']})" for each in kept]
    return "; ".join(found)


def _look(port: int, keys: Sequence[str]) -> tuple[list[tuple[str, Explained]], list[tuple[str, Explained]]]:
    """Which keys' owners agree, and which do not, each with what was explained."""
    agreed: list[tuple[str, Explained]] = []
    open_: list[tuple[str, Explained]] = []
    for key, answer in _calls(port, [("CW.EXPLAIN", key, "JSON") for key in keys], keys):
        explained: Explained = json.loads(answer) if isinstance(answer, bytes) else {"replicas": {"?": str(answer)}}
        (agreed if agree(explained) else open_).append((key, explained))
    return agreed, open_


def agree(explained: Explained) -> bool:
    """Whether all n owners answered, and hold the same."""
    replicas = list(explained["replicas"].values())
    if len(replicas) < explained.get("n", len(replicas) + 1):
        return False
    return all(isinstance(held, dict) and "error" not in held and held == replicas[0] for held in replicas)


def _write_down(
    port: int, agreed: Iterable[tuple[str, Explained]], write: Callable[[Final], None], *, read: bool
) -> None:
    found = list(agreed)
    if not found:
        return
    ns = {explained["n"] for _, explained in found}
    assert len(ns) == 1, f"one bucket, one n: {ns}"
    values = dict(_gets(port, [key for key, _ in found], n=ns.pop()))
    for key, explained in found:
        reply = values[key]
        if isinstance(reply, list):
            write(_final(key, explained, reply[1], read=read))
        else:
            write(_final(key, {"replicas": {"?": {"error": f"a get of all owners failed: {reply}"}}}, [], read=read))


def _final(key: str, explained: Explained, values: Sequence[bytes], *, read: bool) -> Final:
    parsed = [parse_value(value) for value in values]
    replicas: dict[NodeId, Any] = explained["replicas"]
    merged = explained.get("merged", {})
    cloud = [(actor, counter) for actor, counter in merged.get("cloud", [])]
    return Final(
        key,
        replicas,
        clock=merged.get("clock", {}),
        cloud=cloud,
        ids=[write_id for write_id, _ in parsed],
        sets=[f"{bits:x}" for _, bits in parsed],
        read=read,
    )


def _gets(port: int, keys: Sequence[str], *, n: int) -> list[tuple[str, Any]]:
    """Read the keys, from ``n`` replicas (0: as many as the bucket says)."""
    level = ("R", n) if n else ()
    return _calls(port, [("CW.GET", key, *level) for key in keys], keys)


def _calls(port: int, commands: Sequence[Sequence[str | int]], keys: Sequence[str]) -> list[tuple[str, Any]]:
    """One reply for each key: an error where it failed."""
    replies: list[Any] = []
    for start in range(0, len(commands), SLICE):
        part = commands[start : start + SLICE]
        try:
            with Connection(HOST, port, CALL_TIMEOUT_S) as connection:
                replies += connection.pipeline(part)
        except (CannotReach, ConnectionLost) as error:
            replies += [ReplyError.parse(f"LOST {error}")] * len(part)
    return list(zip(keys, replies, strict=True))
