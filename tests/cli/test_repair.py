"""``cartwheel repair``: on a real cluster with a disk that was lost, and on one where not all can be compared."""

import json
import shutil

import pytest
from tests.cli.harness import Dev, invoke, wait_until

from cartwheel.client.resp import Connection


@pytest.fixture(scope="module")
def dev(tmp_path_factory):
    """Three real nodes with some keys."""
    running = Dev(tmp_path_factory.mktemp("repair") / "cluster").wait_ready()
    running.wait_whole()
    with Connection("127.0.0.1", running.port) as connection:
        connection.pipeline([("SET", f"k{i}", f"v{i}") for i in range(500)])
    yield running
    running.end()


def test_a_lost_disk_is_filled(dev):
    """Node 3 begins on an empty directory; when its repair is done, nothing is left to do."""
    assert dev.lever("kill", "3").returncode == 0
    (folder,) = dev.directory.glob("**/n3/**/CURRENT")
    shutil.rmtree(folder.parents[1])
    assert dev.lever("start", "3").returncode == 0
    dev.wait_whole()
    done = dev.at(3, "repair", "--json", "--timeout", "20")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert (told["finished"], told["failed"], told["done"]) == (True, 0, told["total"])
    again = dev.at(3, "repair", "--with", "n1", "--timeout", "20")
    assert again.returncode == 0, again.stderr
    assert ": 0 records received, 0 sent" in again.stdout
    verified = json.loads(dev.at(1, "verify", "--json").stdout)
    assert (verified["differing"], verified["missing"]) == (0, 0)
    assert dev.at(2, "repair", "--partition", "5").stdout.startswith("compared 2 of 2 (")


def test_what_cannot_be_compared_is_named(dev):
    """Exit code 1."""
    assert dev.lever("stop", "2").returncode == 0
    wait_until(lambda: "n2" in dev.status()["n1"]["unreachable"], "node 1 misses node 2")
    done = dev.at(1, "repair", "--partition", "5")
    assert done.returncode == 1
    assert done.stdout.startswith("compared 1 of 2 (")
    assert done.stderr.startswith("not all could be compared with n2: ")
    assert dev.at(1, "repair", "--partition", "999999").returncode == 1


def test_wrong_usage(tmp_path):
    """Exit code 2."""
    assert invoke("repair", "--partition", "x", home=tmp_path).returncode == 2
