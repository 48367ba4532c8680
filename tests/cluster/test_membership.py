"""Real node processes join, leave, are replaced, move and die, while clients write and read."""

from __future__ import annotations

import shutil
import signal
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from tests.cluster.cluster import Cluster, free_ports, wait_until
from tests.cluster.load import Load
from tests.resp.door import Bare

from cartwheel.client.resp import CannotReach, ReplyError, pack_command

RATE_SLOW = "400"
"""Records a second for background work: a hand-over of some thousand takes seconds, so that it can be cut short."""


def quick(
    folder: Path, *, size: int = 3, more: int = 0, zones: Mapping[int, str] | None = None, rate: str = "1000",
    request_timeout_s: str = "2", program: Sequence[str] = ("-m", "cartwheel"),
) -> Cluster:  # fmt: skip
    """A small ring, whose nodes do not keep for long what they have handed over."""
    return Cluster(
        folder,
        size=size,
        more=more,
        zones=zones,
        program=program,
        q="64",
        give_grace_s="0.3",
        background_records_per_s_max=rate,
        request_timeout_s=request_timeout_s,
    )


def verify(cluster: Cluster, number: int) -> None:
    """All replicas of all keys are alike, sooner or later."""

    def alike() -> bool:
        return "all replicas are identical" in cluster.cli(number, "verify").stdout

    wait_until(alike, "all replicas are identical")


def fill(cluster: Cluster, number: int, count: int) -> None:
    """So many keys."""
    with cluster.connect(number) as connection:
        for start in range(0, count, 100):
            connection.pipeline([["SET", f"fill{i}", f"value {i}"] for i in range(start, start + 100)])


def check_filled(cluster: Cluster, numbers: list[int], count: int) -> None:
    """All are read through each of these nodes."""
    for number in numbers:
        with cluster.connect(number) as connection:
            found = connection.call("MGET", *[f"fill{i}" for i in range(count)])
            assert found == [b"value %d" % i for i in range(count)]


def takes_over(cluster: Cluster, number: int) -> int:
    """From whom this node takes over, if it is in the middle of that: some records have come, and some are missing. Else 0."""
    status = cluster.status(number)
    sources = [row["source"] for row in status["transfer"]["gains"] if row["source"]]
    return int(sources[0][1:]) if sources and status["antientropy"]["received"] else 0


def test_a_cluster_grows_from_one_node_and_the_first_one_leaves(tmp_path: Path) -> None:
    """While all members are written and read: no error, no acknowledged write lost or not found; the leaver may be stopped."""
    with quick(tmp_path, size=1, more=3) as cluster, Load(cluster, 1) as load:
        cluster.join(2, 1)
        cluster.join(3, 2)
        cluster.commit(1)
        cluster.wait_settled([1, 2, 3])
        load.add(2, 3)
        cluster.join(4, 3)
        cluster.commit(3)
        cluster.wait_settled([1, 2, 3, 4])
        load.add(4)
        cluster.call(2, "CW.CLUSTER", "LEAVE", "n1")
        cluster.commit(3)
        load.wait_on([1], 5)
        load.end(1)
        cluster.wait_settled([2, 3, 4], also=[1])
        assert cluster.cli(2, "cluster", "safe-to-stop", "n1").returncode == 0
        assert "it may be stopped" in cluster.status(1)["notes"][0]
        assert cluster.stop(1) == 0
        load.wait_on([2, 3, 4])
        load.end(2, 3, 4)
        load.check_undisturbed(2, 3, 4)
        left = load.clients[1]
        assert (left.wrong, left.cut_off) == ([], "")
        assert all("n1 is no member" in text for text in left.refused)  # it may have left before its client did
        load.check_nothing_lost(2, 3, 4)
        verify(cluster, 3)


def test_a_join_goes_on_after_kill_9_of_anybody(tmp_path: Path) -> None:
    """Killed in the middle and started again: whoever committed, who joins, and who gives. The hand-over goes on, nothing is
    lost."""
    count = 1200
    with quick(tmp_path, more=1, rate=RATE_SLOW) as cluster:
        fill(cluster, 1, count)
        cluster.join(4, 1)
        with Load(cluster, 2, 3) as load:
            cluster.commit(1)
            cluster.kill(1)
            load.wait_on([2, 3])
            cluster.start(1)
            wait_until(lambda: takes_over(cluster, 4), "n4 takes over")
            cluster.kill(4)
            cluster.start(4)
            giver = wait_until(lambda: takes_over(cluster, 4), "n4 goes on")
            cluster.kill(giver)
            cluster.start(giver)
            cluster.wait_settled([1, 2, 3, 4])
        check_filled(cluster, [1, 4], count)
        load.check_nothing_lost(1, 4)
        verify(cluster, 4)


def test_a_dead_node_is_replaced_and_never_comes_back(tmp_path: Path) -> None:
    """Its copies are made from the others. Started again it is told so, serves no client, and nobody hears it."""
    with quick(tmp_path, more=1) as cluster:
        fill(cluster, 1, 300)
        cluster.kill(3)
        cluster.join(4, 2)
        cluster.wait_staged("n4 joins", 1)
        wait_until(lambda: state_of(cluster, 1, 3) == "unreachable", "n1 notices")
        told = cluster.cli(1, "cluster", "replace", "--dead", "n3", "n4")
        assert (told.returncode, told.stdout.splitlines()[0]) == (
            0,
            "staged: n4 replaces n3, which is removed for ever",
        ), told
        wait_until(lambda: told.stdout.partition(": ")[2].splitlines()[0] in cluster.plan(2)["changes"], "n2 knows")
        assert len(cluster.plan(1)["changes"]) == 1
        cluster.commit(2)
        cluster.wait_settled([1, 2, 4])
        check_filled(cluster, [1, 2, 4], 300)
        cluster.start(3)
        wait_until(lambda: cluster.status(3)["notes"], "n3 is told")
        assert cluster.status(3)["notes"][0].startswith("n3 was removed from the cluster for ever")
        with pytest.raises(ReplyError, match="NOQUORUM n3 is no member of the cluster"):
            cluster.call(3, "SET", "fill1", "from the grave")
        with pytest.raises(ReplyError, match="no member"):
            cluster.call(3, "CW.CLUSTER", "LEAVE", "n1")
        with pytest.raises(ReplyError, match="no member"):
            cluster.call(3, "CW.BUCKET", "SET", "b", "w", "1")
        for number in (1, 2, 4):
            assert "n3" not in [member["node"] for member in cluster.status(number)["members"]]
            assert cluster.call(number, "GET", "fill1") == b"value 1"
        verify(cluster, 1)


def test_members_find_a_node_at_its_new_address(tmp_path: Path) -> None:
    """A node is started on another port for peers: it tells, and the others dial it there."""
    with quick(tmp_path, more=1) as cluster:
        assert cluster.stop(3) == 0
        cluster.peer_port[3] = cluster.peer_port.pop(4)
        cluster.start(3)
        address = f"127.0.0.1:{cluster.peer_port[3]}"

        def known() -> bool:
            found = [{m["node"]: m["address"] for m in cluster.status(k)["members"]}["n3"] for k in (1, 2, 3)]
            return found == [address] * 3

        wait_until(known, "all know the new address")
        cluster.wait_whole()
        changes = cluster.cli(1, "cluster", "history").stdout
        assert f"n3 is at {address}" in changes


def test_sigterm_drains(tmp_path: Path) -> None:
    """Clients of the others notice nothing of a node that is stopped cleanly; its own get answers to all that it has begun."""
    with quick(tmp_path) as cluster, Load(cluster, 1, 2) as load:
        for turn in range(3):
            with Bare(cluster.resp_port[3]) as client:
                client.send(b"".join(pack_command("SET", f"last{turn}.{i}", turn) for i in range(100)))
                assert client.read() == b"OK"  # all of them have been read by now
                cluster.send_signal(3, signal.SIGTERM)
                assert [client.read() for _ in range(99)] == [b"OK"] * 99
            assert cluster.ended(3) == 0
            load.wait_on([1, 2])
            cluster.start(3)
            cluster.wait_whole()
        load.end(1, 2)
        load.check_undisturbed(1, 2)
        load.check_nothing_lost(1, 2, 3)


def test_a_stop_waits_for_requests_under_way(tmp_path: Path) -> None:
    """A put that waits for a slow replica is answered before the process ends."""
    with quick(tmp_path, request_timeout_s="4") as cluster, Bare(cluster.resp_port[3]) as client:
        cluster.send_signal(1, signal.SIGSTOP)
        client.send(pack_command("CW.PUT", "k", "v", "W", 3))
        wait_until(lambda: cluster.status(3)["requests"], "the put is under way")
        cluster.send_signal(3, signal.SIGTERM)
        wait_until(lambda: state_of(cluster, 2, 3) == "stopping", "n2 knows that n3 stops")
        cluster.send_signal(1, signal.SIGCONT)
        assert isinstance(client.read(), bytes)
        assert cluster.ended(3) == 0


def test_a_stop_waits_until_replies_are_sent(tmp_path: Path) -> None:
    """A client that takes its time gets all of a long reply."""
    count, size = 16, 1 << 20
    with quick(tmp_path, size=1) as cluster, Bare(cluster.resp_port[1]) as client:
        cluster.call(1, "SET", "k", b"v" * size)
        client.send(pack_command("GET", "k") * count)
        wait_until(lambda: cluster.call(1, "INFO", "stats"), "n1 has read them")
        cluster.send_signal(1, signal.SIGTERM)
        wait_until(lambda: not accepts(cluster, 1), "n1 closes its door")
        assert [len(client.read()) for _ in range(count)] == [size] * count
        assert cluster.ended(1) == 0


def accepts(cluster: Cluster, number: int) -> bool:
    """Whether a node's Redis door takes new connections."""
    try:
        cluster.connect(number).close()
    except CannotReach:
        return False
    return True


def state_of(cluster: Cluster, observer: int, number: int) -> str:
    """What a node finds of another one."""
    return {m["node"]: str(m["state"]) for m in cluster.status(observer)["members"]}[f"n{number}"]


def test_a_zone_is_lost_and_comes_back(tmp_path: Path) -> None:
    """Three zones of two nodes: with one zone killed, every key is still read and written with r = w = 2."""
    zones = {number: "abc"[number % 3] for number in range(1, 7)}
    lost = [number for number, zone in zones.items() if zone == "a"]
    left = [number for number, zone in zones.items() if zone != "a"]
    with quick(tmp_path, size=6, zones=zones) as cluster:
        fill(cluster, 1, 300)
        for number in lost:
            cluster.kill(number)
        wait_until(
            lambda: all(sum(m["reachable"] for m in cluster.status(k)["members"]) == 4 for k in left), "they notice"
        )
        check_filled(cluster, left, 300)
        for number in left:
            with cluster.connect(number) as connection:
                replies = connection.pipeline([["SET", f"fill{i}", f"value {i}"] for i in range(300)])
                assert replies == [b"OK"] * 300
        for number in lost:
            cluster.start(number)
        cluster.wait_whole()
        wait_until(lambda: not any(cluster.status(k)["hints"] for k in left), "all hints are delivered")
        check_filled(cluster, lost, 300)
        verify(cluster, lost[0])


def test_one_seed_is_enough_and_a_member_needs_none(tmp_path: Path) -> None:
    """A node joins though the first of its seeds is dead; as a member it finds the others again by what is on its disk."""
    with quick(tmp_path, size=2, more=1) as cluster:
        dead = f"127.0.0.1:{free_ports(1)[0]}"
        cluster.join(3, 1, seeds=f"{dead},{cluster.seed(2)}")
        cluster.commit(1)
        cluster.wait_settled([1, 2, 3])
        assert cluster.stop(3) == 0
        cluster.start(3, join=dead)
        cluster.numbers.append(3)
        cluster.wait_whole()
        cluster.call(1, "SET", "k", "v")
        assert cluster.call(3, "GET", "k") == b"v"


REFUSED = {
    "a wrong secret": "it does not hold the cluster's secret",
    "another cluster": "this is cluster 'cartwheel', not 'other'",
    "a name that is taken": "that is my own node id",
    "a Redis port": "--join names the ports for peers of its members",
    "nobody there": "Connection refused",
    "the node itself": "Connection refused",
    "no address": "is not HOST:PORT",
    "no secret": "name it with --secret-file",
    "both": "exclude each other",
}


def test_a_join_that_cannot_be_is_refused_in_one_line(tmp_path: Path) -> None:
    """Whatever is wrong with the seed: the reason, exit code 1 or 2, no traceback, and no data directory that stands in the
    way."""
    wrong = tmp_path / "wrong"
    wrong.touch(mode=0o600)
    wrong.write_text("another secret, as long as needed")
    with quick(tmp_path, size=1, more=1) as cluster:
        good = {"join": cluster.seed(1), "peer_port": str(cluster.peer_port[2])}
        cases: dict[str, dict[str, str]] = {
            "a wrong secret": {"secret_file": str(wrong)},
            "another cluster": {"cluster": "other"},
            "a name that is taken": {"node": "n1"},
            "a Redis port": {"join": f"127.0.0.1:{cluster.resp_port[1]}"},
            "nobody there": {"join": f"127.0.0.1:{free_ports(1)[0]}"},
            "the node itself": {"join": cluster.seed(2)},
            "no address": {"join": "n1"},
            "no secret": {"secret_file": ""},
            "both": {"initial_cluster": f"n2=127.0.0.1:{cluster.peer_port[2]}"},
        }
        tries = []
        for flags in cases.values():
            merged = {**cluster.flags(2), "initial_cluster": "", **good, "data": str(tmp_path / "n2"), **flags}
            tries.append({name: value for name, value in merged.items() if value})
        with ThreadPoolExecutor(3) as threads:
            ended = list(threads.map(cluster.try_start, tries))
        for case, each in zip(cases, ended, strict=True):
            assert each.returncode in (1, 2), (case, each)
            assert REFUSED[case] in each.stderr, (case, each)
            assert (each.stdout, each.stderr.count("\n")) == ("", 1), (case, each)
        assert not (tmp_path / "n2").exists()


def test_a_copied_data_directory_shuts_both_out(tmp_path: Path) -> None:
    """Two processes under one name would mint the same dots. Both are shut out, with a reason; when one stops the other is
    back."""
    program = (
        "-c",
        "from cartwheel.runtime import transport; transport.CLONED_S = 1.0; from cartwheel.cli.main import main; main()",
    )
    with quick(tmp_path, more=1, program=program) as cluster:
        fill(cluster, 1, 100)
        assert cluster.stop(3) == 0
        shutil.copytree(tmp_path / "n3", tmp_path / "copy")
        cluster.start(3)
        cluster.wait_whole()
        elsewhere = cluster.founders().replace(cluster.seed(3), cluster.seed(4))
        cluster.start(4, node="n3", data=str(tmp_path / "copy"), initial_cluster=elsewhere)
        text = "two processes say that they are 'n3' (a copied data directory?): both are shut out until one stops"
        wait_until(lambda: all(text in cluster.log(k).read_text() for k in (1, 2)), "n1 and n2 notice")
        wait_until(lambda: all("two processes say" in cluster.log(k).read_text() for k in (3, 4)), "both are told")
        assert cluster.call(1, "SET", "k", "v") == b"OK"
        cluster.kill(4)
        cluster.wait_whole()
        cluster.call(3, "SET", "k", "w")
        assert cluster.call(1, "GET", "k") == b"w"
        verify(cluster, 1)


def test_a_member_that_has_left_comes_back_only_when_told(tmp_path: Path) -> None:
    """It was started to join; but once it is made to leave, it does not ask again by itself: the next commit must not bring it
    back."""
    with quick(tmp_path, size=1, more=1) as cluster:
        cluster.join(2, 1)
        cluster.commit(1)
        cluster.wait_settled([1, 2])
        fill(cluster, 1, 100)
        cluster.call(1, "CW.CLUSTER", "LEAVE", "n2")
        cluster.commit(1)
        cluster.wait_settled([1], also=[2])
        assert cluster.status(2)["notes"][0] == "n2 has left, and holds nothing any more: it may be stopped"
        assert cluster.plan(1)["changes"] == []
        cluster.call(2, "CW.CLUSTER", "JOIN", cluster.seed(1))
        cluster.wait_staged("n2 joins", 1)
        cluster.commit(1)
        cluster.wait_settled([1, 2])
        check_filled(cluster, [1, 2], 100)
