"""Three real node processes: what the cluster promises, seen from outside."""

from __future__ import annotations

import json
import random
import threading
from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from tests.cluster.cluster import Cluster, wait_until

from cartwheel.client.resp import Connection, ReplyError
from cartwheel.core.errors import CartwheelError


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A cluster that the tests of this module share; each uses keys of its own."""
    with Cluster(tmp_path_factory.mktemp("cluster")) as running:
        yield running


def as_list(reply: Any) -> list[Any]:
    """A reply that must be an array."""
    assert isinstance(reply, list), reply
    return reply


def values(reply: Any) -> list[bytes]:
    """The values of a CW.GET reply, sorted."""
    return sorted(reply[1])


def test_what_one_node_stored_every_node_reads(cluster: Cluster) -> None:
    """A SET through any node is read by a GET through any other at once: R + W > N with all nodes healthy."""
    for writer in cluster.numbers:
        for reader in cluster.numbers:
            value = f"{writer}-{reader}"
            assert cluster.call(writer, "SET", "shared", value) == b"OK"
            assert cluster.call(reader, "GET", "shared") == value.encode()


@pytest.mark.parametrize("value", [b"", b"\x00\xff\r\n$5\r\n", b"m" * (1 << 20)], ids=["empty", "binary", "1 MiB"])
def test_values_come_back_byte_for_byte(cluster: Cluster, value: bytes) -> None:
    """Empty values, protocol bytes and the largest value allowed survive the way through three nodes."""
    key = b"bytes\x00" + value[:8]
    assert cluster.call(1, "SET", key, value) == b"OK"
    assert cluster.call(2, "GET", key) == value


def test_two_puts_with_one_old_context_leave_two_siblings_everywhere(cluster: Cluster) -> None:
    """Both branches survive on all replicas; a put with the merged context leaves one version on all of them."""
    cluster.call(1, "CW.PUT", "cart", "milk")
    old, _ = cluster.call(1, "CW.GET", "cart")
    cluster.call(1, "CW.PUT", "cart", "milk eggs", "CONTEXT", old)
    cluster.call(2, "CW.PUT", "cart", "milk flour", "CONTEXT", old)
    wait_for_versions(cluster, "cart", 2)
    merged, found = cluster.call(3, "CW.GET", "cart")
    assert sorted(found) == [b"milk eggs", b"milk flour"]
    cluster.call(3, "CW.PUT", "cart", "milk eggs flour", "CONTEXT", merged)
    wait_for_versions(cluster, "cart", 1)
    assert values(cluster.call(1, "CW.GET", "cart")) == [b"milk eggs flour"]


def wait_for_versions(cluster: Cluster, key: str, count: int) -> None:
    """Wait until all three replicas hold the same record with so many versions: the last ack may trail the reply."""

    def settled() -> bool:
        records = [replica["versions"] for replica in cluster.explain(1, key)["replicas"].values()]
        return len(records) == 3 and all(len(r) == count and r == records[0] for r in records)

    wait_until(settled, f"{count} versions of {key} on all replicas")


def test_interleaved_writers_with_stale_contexts_lose_nothing(cluster: Cluster) -> None:
    """100 writers through one node, each going on from its own last context: all their last values live, and no more."""
    writers = 100
    contexts: dict[int, bytes] = {}
    with cluster.connect(1) as connection:
        first, _ = as_list(connection.call("CW.GET", "busy"))
        order = [writer for writer in range(writers) for _ in range(3)]
        random.Random(7).shuffle(order)
        turns = dict.fromkeys(range(writers), 0)
        for writer in order:
            turns[writer] += 1
            context = contexts.get(writer, first)
            said: Any = connection.call("CW.PUT", "busy", f"{writer}:{turns[writer]}", "CONTEXT", context)
            contexts[writer] = said
        _, found = as_list(connection.call("CW.GET", "busy"))
    assert sorted(found) == sorted(f"{writer}:3".encode() for writer in range(writers))


def test_a_retry_with_the_same_request_id_is_one_write(cluster: Cluster) -> None:
    """A put repeated with its request id, through the same or another node, leaves one value."""
    for number in (1, 1, 2, 3):
        cluster.call(number, "CW.PUT", "retried", "once", "ID", "request-1")
    assert cluster.call(2, "CW.GET", "retried")[1] == [b"once"]


def test_a_delete_removes_only_what_its_context_covers(cluster: Cluster) -> None:
    """A value written beside the deleted one, unseen by the deleter, stays."""
    cluster.call(1, "CW.PUT", "gone", "seen")
    context, _ = cluster.call(2, "CW.GET", "gone")
    cluster.call(3, "CW.PUT", "gone", "unseen")
    cluster.call(1, "CW.DEL", "gone", "CONTEXT", context)
    assert cluster.call(2, "CW.GET", "gone")[1] == [b"unseen"]


def test_a_forged_or_foreign_context_is_refused(cluster: Cluster) -> None:
    """A context is bound to its key and authenticated."""
    context = cluster.call(1, "CW.PUT", "mine", "1")
    with pytest.raises(ReplyError, match="BADCONTEXT"):
        cluster.call(1, "CW.PUT", "yours", "1", "CONTEXT", context)
    flipped = bytes((context[0] ^ 1,)) + context[1:]
    with pytest.raises(ReplyError, match="BADCONTEXT"):
        cluster.call(1, "CW.PUT", "mine", "1", "CONTEXT", flipped)


def test_a_bucket_property_set_at_one_node_holds_at_all(cluster: Cluster) -> None:
    """Properties travel with the membership history."""
    cluster.call(1, "CW.BUCKET", "SET", "small", "value_bytes_max", "10")

    def everywhere() -> bool:
        return all(b"10" in json.dumps(bucket(cluster, k)).encode() for k in cluster.numbers)

    wait_until(everywhere, "the limit is known at all nodes")
    for number in cluster.numbers:
        with cluster.connect(number) as connection:
            connection.call("SELECT", "small")
            assert connection.call("SET", "k", "0123456789") == b"OK"
            with pytest.raises(ReplyError, match="TOOBIG"):
                connection.call("SET", "k", "0123456789x")


def bucket(cluster: Cluster, number: int) -> Any:
    """The reply to CW.BUCKET GET small, as text."""
    found = cluster.call(number, "CW.BUCKET", "GET", "small")
    return [str(part) for part in found]


class Load(threading.Thread):
    """A client that writes distinct keys through one node as fast as it can, and notes what was acknowledged."""

    def __init__(self, cluster: Cluster, number: int, name: str) -> None:
        super().__init__(daemon=True)
        self.cluster, self.number, self.prefix = cluster, number, name
        self.tried = 0
        self.acked: list[str] = []
        self.refused: list[str] = []
        self.cut_off = ""
        self._done = threading.Event()

    def run(self) -> None:
        try:
            with self.cluster.connect(self.number) as connection:
                while not self._done.is_set():
                    self._step(connection)
        except (CartwheelError, OSError) as error:
            self.cut_off = f"after {self.tried}: {error}"  # our node was killed

    def _step(self, connection: Connection) -> None:
        self.tried += 1
        key = f"{self.prefix}:{self.tried}"
        try:
            connection.call("SET", key, f"value of {key}")
            self.acked.append(key)
            if self.tried % 7 == 0:
                connection.call("GET", key)
        except ReplyError as error:
            self.refused.append(str(error))

    def stop(self) -> None:
        """End and wait."""
        self._done.set()
        self.join()


@pytest.mark.parametrize("engine", ["rocksdb", "lmdb"])
def test_kill_9_of_a_node_under_load_loses_no_acknowledged_write(tmp_path: Path, engine: str) -> None:
    """While each node in turn is killed and comes back, requests to living nodes succeed, and every acked key is there."""
    with Cluster(tmp_path, engine=engine) as cluster:
        loads: list[Load] = []
        for victim in cluster.numbers:
            round_loads = [Load(cluster, number, f"{victim}.{number}") for number in cluster.numbers]
            loads += round_loads
            for load in round_loads:
                load.start()
            wait_until(partial(all_on, round_loads), "the load is on")
            cluster.kill(victim)
            marks = {load: len(load.acked) for load in round_loads if load.number != victim}
            wait_until(partial(all_on, marks, marks), "others go on")
            cluster.start(victim)
            cluster.wait_whole()
            for load in round_loads:
                load.stop()
            assert [(load.refused[:3], load.cut_off) for load in marks] == [([], "")] * 2, logs(cluster)
        check_all_there(cluster, loads)


def all_on(loads: Iterable[Load], marks: Mapping[Load, int] | None = None) -> bool:
    """Whether each load got 50 writes acknowledged (since the mark), or failed, which the test then reports."""
    return all(len(x.acked) > (marks or {}).get(x, 0) + 50 or x.cut_off or x.refused for x in loads)


def logs(cluster: Cluster) -> str:
    """All that the nodes printed, for the report of a failure."""
    return "\n".join(cluster.log(number).read_text() for number in cluster.numbers)


def check_all_there(cluster: Cluster, loads: list[Load]) -> None:
    """Every acknowledged key is read through every node."""
    keys = [key for load in loads for key in load.acked]
    for number in cluster.numbers:
        with cluster.connect(number) as connection:
            for start in range(0, len(keys), 500):
                part = keys[start : start + 500]
                found = as_list(connection.call("MGET", *part))
                lost = [key for key, value in zip(part, found, strict=True) if value != f"value of {key}".encode()]
                assert not lost, f"acknowledged, but missing at n{number}: {lost[:5]}"


def test_kill_9_of_all_nodes_at_once_loses_no_acknowledged_write(tmp_path: Path) -> None:
    """What was acknowledged with durability sync is on the disks of W nodes."""
    with Cluster(tmp_path) as cluster:
        loads = [Load(cluster, number, f"all.{number}") for number in cluster.numbers]
        for load in loads:
            load.start()
        wait_until(lambda: all(len(load.acked) > 100 for load in loads), "the load is on")
        for number in cluster.numbers:
            cluster.kill(number)
        for load in loads:
            load.stop()
        for number in cluster.numbers:
            cluster.start(number)
        cluster.wait_whole()
        check_all_there(cluster, loads)


def test_a_clean_stop_keeps_the_stint_and_a_kill_begins_a_new_one(tmp_path: Path) -> None:
    """Only a node that may have forgotten something goes on as a new actor. A clean stop exits with 0."""
    with Cluster(tmp_path, size=1) as cluster:
        first = cluster.status(1)["stint"]
        assert cluster.stop(1) == 0
        cluster.start(1)
        cluster.wait_whole()
        assert cluster.status(1)["stint"] == first
        cluster.kill(1)
        cluster.start(1)
        cluster.wait_whole()
        assert cluster.status(1)["stint"] != first


def test_one_node_alone_serves_and_says_that_it_is_alone(tmp_path: Path) -> None:
    """In a cluster of fewer nodes than n, n is what there is."""
    with Cluster(tmp_path, size=1) as cluster:
        assert cluster.call(1, "SET", "k", "v") == b"OK"
        assert cluster.call(1, "GET", "k") == b"v"
        assert "1 node" in " ".join(cluster.status(1)["notes"])


def test_too_few_replicas_answer_noquorum_with_the_reasons(tmp_path: Path) -> None:
    """With two of three nodes killed, a write is refused and names them; when one returns, writes succeed again."""
    with Cluster(tmp_path) as cluster:
        cluster.kill(2)
        cluster.kill(3)
        wait_until(lambda: sum(m["reachable"] for m in cluster.status(1)["members"]) == 1, "n1 notices")
        with pytest.raises(ReplyError, match=r"NOQUORUM need W=2, got 1 \(n2: .*; n3: .*\)"):
            cluster.call(1, "SET", "k", "v")
        cluster.start(2)
        cluster.wait_whole(1, 2)
        assert cluster.call(1, "SET", "k", "v") == b"OK"


def test_a_node_of_another_cluster_is_refused(tmp_path: Path) -> None:
    """A node whose secret differs never becomes a peer."""
    with Cluster(tmp_path) as cluster:
        cluster.stop(3)
        secret = tmp_path / "secret"
        secret.write_text("another secret, as long as needed")
        cluster.start(3)
        wait_until(lambda: cluster.call(3, "PING") == b"PONG", "n3 runs")
        wait_until(lambda: "secret" in cluster.log(3).read_text() + cluster.log(1).read_text(), "the refusal is logged")
        assert not any(m["reachable"] for m in cluster.status(3)["members"] if m["node"] != "n3")
