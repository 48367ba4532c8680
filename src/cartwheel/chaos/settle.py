"""After the faults: wait until the owners of every key agree, and write down what they hold.

First of all everybody must tell the same ring, whose members are those that are there, and have handed over all that is to be.
Then the hints must have reached their nodes: while some are under way, owners may agree on what is not the latest. Then all
agree when each of the n owners of a key shows the same clock and the same versions (``CW.EXPLAIN``). Nodes are given time
to get there by themselves; when no further key has come to agree for ``PATIENCE_S``, the others are read, which repairs stale
replicas (section 5 of the paper). It is written down which keys needed that. At last ``cartwheel verify`` compares all that
is on the disks.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
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

VERIFY_TIMEOUT_S = 60.0

Explained = dict[str, Any]
Trouble = Callable[[str, str], None]
"""Takes the rule that is broken, and how."""


@dataclass(frozen=True, slots=True)
class Told:
    """The ring that all nodes tell."""

    members: list[NodeId] = field(default_factory=list)
    epoch: str = ""
    changes: int = 0


@dataclass(frozen=True, slots=True)
class Settled:
    """How it ended."""

    agreed_s: float
    """Until all owners agreed."""
    ring: Told


def settle(
    cluster: Cluster,
    keys: Sequence[str],
    write: Callable[[Final], None],
    trouble: Trouble,
    ended: threading.Event,
) -> Settled:
    """Wait, write a line for each key, and return how long it took. Runs in a thread, until ``ended`` at the latest."""
    began = time.monotonic()
    ring = _wait_ring(cluster, trouble, ended)
    while (left := hints_left(cluster)) and not ended.is_set():
        if time.monotonic() - began > TIMEOUT_S:
            trouble("C5", f"{TIMEOUT_S:g} s after healing there are hints left: {left}")
            break
        ended.wait(POLL_S)
    _settle_keys(cluster, keys, write, ended, began)
    agreed_s = time.monotonic() - began
    _verify(cluster, trouble, ended)
    return Settled(agreed_s, ring)


def _settle_keys(
    cluster: Cluster, keys: Sequence[str], write: Callable[[Final], None], ended: threading.Event, began: float
) -> None:
    """Wait until the owners of each key agree, and write a line for it."""
    pending, was_read = list(keys), False
    turn = 0
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


# --- the ring ---


def _unsettled(cluster: Cluster) -> str:
    """What is still on the way: news of a change of the ring, a hand-over, who leaves, leftovers, hints; "" for nothing."""
    there = sorted(cluster.nodes)
    epochs = {}
    for node in there:
        view = cluster.status(node)
        if view is None:
            return f"no answer from {node}"
        members, transfer = sorted(each["node"] for each in view["members"]), view["transfer"]
        if members != there:
            return f"{node} tells the members {', '.join(members)}, there are {', '.join(there)}"
        if view["leaving"]:
            return f"{node} says that {', '.join(view['leaving'])} leaves still"
        if transfer["gains"]:
            waits = "; ".join(f"from {row['source'] or '-'}: {row['waits']}" for row in transfer["gains"])
            return f"{node} takes over {waits}"
        if transfer["leftovers"] or view["hints"]:
            return f"{node} has {transfer['leftovers']} leftovers, and hints for {len(view['hints'])} nodes"
        epochs[node] = view["epoch"]
    return f"epochs: {epochs}" if len(set(epochs.values())) > 1 else ""


def _wait_ring(cluster: Cluster, trouble: Trouble, ended: threading.Event) -> Told:
    """Wait until all is handed over and everybody tells the same ring."""
    end = time.monotonic() + TIMEOUT_S
    while (left := _unsettled(cluster)) and not ended.is_set():
        if time.monotonic() > end:
            trouble("RING", f"{TIMEOUT_S:g} s after healing the ring has not settled: {left}")
            break
        ended.wait(POLL_S)
    views = {node: cluster.status(node) for node in cluster.nodes}
    histories = {node: _history(cluster.resp_port[node]) for node in cluster.nodes}
    if len(set(histories.values())) > 1:
        trouble("RING", f"not all tell the same history: {histories}")
    view = next((view for view in views.values() if view is not None), None)
    if view is None or ended.is_set():
        return Told()
    told = next(iter(histories.values()))
    changes = len(json.loads(told)) if told.startswith("[") else 0
    return Told(sorted(each["node"] for each in view["members"]), view["epoch"], changes)


def _history(port: int) -> str:
    """Every change that a node knows; an error in words if it does not tell."""
    [(_, answer)] = _calls(port, [("CW.CLUSTER", "HISTORY", "JSON")], [""])
    return answer.decode() if isinstance(answer, bytes) else str(answer)


def _verify(cluster: Cluster, trouble: Trouble, ended: threading.Event) -> None:
    """``cartwheel verify``, until it finds all replicas identical."""
    command = [sys.executable, "-m", "cartwheel", "verify", "--node", f"{HOST}:{cluster.resp_port[cluster.nodes[0]]}"]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("CARTWHEEL_")}
    end = time.monotonic() + VERIFY_TIMEOUT_S
    while not ended.is_set():
        done = subprocess.run(
            command, capture_output=True, text=True, env=environment, timeout=VERIFY_TIMEOUT_S, check=False
        )
        if done.returncode == 0:
            return
        if time.monotonic() > end:
            trouble("VERIFY", f"replicas differ: {done.stdout[-500:]}{done.stderr[-300:]}")
            return
        ended.wait(POLL_S)


# --- hints and keys ---


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
