"""Set up the buckets that are measured."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence

from cartwheel.bench.run import BenchFailed
from cartwheel.client.resp import CannotReach, Connection, ConnectionLost, ReplyError, parse_address

CALL_TIMEOUT_S = 10.0
POLL_S = 0.02


def set_durability(nodes: Sequence[str], bucket: str, durability: str) -> None:
    """``set_property``, of the durability."""
    set_property(nodes, bucket, "durability", durability)


def set_property(nodes: Sequence[str], bucket: str, name: str, value: str) -> None:
    """Set a property of a bucket, and wait until each of these nodes knows.

    Raises:
        BenchFailed: a node refuses, or it takes too long.
    """
    try:
        with _connect(nodes[0]) as connection:
            connection.call("CW.BUCKET", "SET", bucket, name, value)
        deadline = time.monotonic() + CALL_TIMEOUT_S
        while not all(_property(node, bucket, name) == value for node in nodes):
            if time.monotonic() > deadline:
                raise BenchFailed(f"the nodes do not all learn of {name}={value}")
            time.sleep(POLL_S)
    except (CannotReach, ConnectionLost, ReplyError) as error:
        raise BenchFailed(f"cannot set {name}={value}: {error}") from error


def _property(node: str, bucket: str, name: str) -> str:
    with _connect(node) as connection:
        answer = connection.call("CW.BUCKET", "GET", bucket, "JSON")
    assert isinstance(answer, bytes)
    return str(json.loads(answer)[name])


def _connect(node: str) -> Connection:
    return Connection(*parse_address(node), CALL_TIMEOUT_S)
