"""``cartwheel verify``: what counts as alike, and a real cluster with and without differences."""

import json

import pytest
from tests.cli.harness import Dev, invoke, wait_until

from cartwheel.cli.verify import CORRUPT, Held, Part, Verifier, judge
from cartwheel.client.resp import Connection
from cartwheel.core import versions
from cartwheel.core.storage import Space, record_key, seal
from cartwheel.runtime.engines import open_engine

KEY = ("0", b"k")
A, B, GONE = Held("aa", live=True), Held("bb", live=True), Held("dd", live=False)
BAD = Held(CORRUPT, live=False)


def parts_of(*held):
    """What the nodes a, b, c hold of one key; None: nothing."""
    return {
        name: Part("e", ["a", "b", "c"], {"0": 3}, {} if each is None else {KEY: each})
        for name, each in zip("abc", held, strict=False)
    }


@pytest.mark.parametrize(
    ("held", "owners", "kind"),
    [
        ((A, A, A), "abc", None),
        ((GONE, GONE, GONE), "abc", None),
        ((A, A, B), "abc", "differing"),
        ((A, A, B), "ab", None),  # c does not own it
        ((A, GONE, None), "abc", "differing"),
        ((A, A, None), "abc", "missing"),
        ((GONE, None, GONE), "abc", "forgotten"),
        ((A, BAD, A), "abc", "corrupt"),
        ((A, BAD, None), "abc", "corrupt"),
        ((A, A), "abc", None),  # c was not asked, which is told elsewhere
        ((A, None), "abc", "missing"),
    ],
)
def test_what_is_alike(held, owners, kind):
    """Each row: what a, b and c hold, who of them owns the key, and what that is."""
    difference = judge(7, KEY, list(owners), parts_of(*held))
    assert (difference and difference.kind) == kind
    if difference is not None:
        assert list(difference.held) == [name for name, _ in zip(owners, held, strict=False)]


class Scripted(Verifier):
    """Nodes whose answers to each look are given."""

    def __init__(self, *looks):
        super().__init__({}, again=lambda: self.looks.pop(0))
        self.looks = list(looks)

    def _read(self, partitions):
        return iter([(partition, self.looks[0]) for partition in partitions])


@pytest.mark.parametrize(
    ("first", "then", "counts"),
    [
        ((A, A, B), (B, B, B), {"identical": 1, "settled": 1}),
        ((A, A, B), (A, A, B), {"differing": 1}),
        ((A, A, B), (A, A, None), {"missing": 1}),
        ((A, A, BAD), (A, A, A), {"identical": 1, "settled": 1, "mended": 1}),
        ((A, A, BAD), (A, A, BAD), {"corrupt": 1}),
        ((A, A, A), None, {"identical": 1}),
    ],
)
def test_what_differs_is_looked_at_once_more(first, then, counts):
    """Only the second look counts, and there is none when all is alike."""
    looks = [parts_of(*first)] + ([parts_of(*then)] if then else [])
    tally = Scripted(*looks).run([7], lambda _: None)
    names = ("identical", "differing", "missing", "corrupt", "forgotten", "settled", "mended")
    assert {name: getattr(tally, name) for name in names if getattr(tally, name)} == counts
    assert (tally.keys, tally.replicas, tally.partitions) == (1, 3, 1)
    assert tally.alike == ("identical" in counts)


def test_copies_elsewhere_are_counted_and_are_no_difference():
    """A node that does not own a key may still hold it."""
    parts = parts_of(A, A, A)
    for part in parts.values():
        part.owners = {"0": 2}
    tally = Scripted(parts).run([7], lambda _: None)
    assert (tally.elsewhere, tally.identical, tally.replicas, tally.alike) == (1, 1, 2, True)
    only = parts_of(None, None, A)
    for part in only.values():
        part.owners = {"0": 2}
    tally = Scripted(only).run([7], lambda _: None)
    assert (tally.elsewhere, tally.keys, tally.alike) == (1, 0, True)


@pytest.fixture(scope="module")
def dev(tmp_path_factory):
    """Three real nodes with some keys."""
    running = Dev(tmp_path_factory.mktemp("verify") / "cluster").wait_ready()
    running.wait_whole()
    with Connection(*("127.0.0.1", running.port)) as connection:
        replies = connection.pipeline([("SET", f"k{i}", f"v{i}") for i in range(300)])
        replies += connection.pipeline([("CW.PUT", f"k{i}", "v", "BUCKET", "other") for i in range(30)])
        replies += connection.pipeline([("DEL", f"k{i}") for i in range(5)])
        assert not any(isinstance(reply, Exception) for reply in replies)
    yield running
    running.end()


def verified(dev, *arguments):
    """The exit code and the JSON."""
    done = dev.at(1, "verify", "--json", *arguments)
    assert done.stdout, done.stderr
    return done.returncode, json.loads(done.stdout)


def wait_doors_known(dev):
    """Until node 1 knows where the others take clients."""
    dev.wait_whole()
    wait_until(lambda: verified(dev, "--partition", "0")[1]["not_asked"] == {}, "node 1 knows all doors")


def test_a_healthy_cluster_is_identical(dev):
    """Every key is counted, and each of its three replicas."""
    wait_doors_known(dev)
    code, told = verified(dev)
    assert (code, told["alike"]) == (0, True), told
    assert (told["keys"], told["identical"], told["replicas"]) == (330, 330, 990)
    assert (told["differing"], told["missing"], told["corrupt"], told["differences"]) == (0, 0, 0, [])
    done = dev.at(2, "verify")
    assert done.returncode == 0
    assert "all replicas are identical" in done.stdout


def test_planted_differences_are_found(dev):
    """Records put into a stopped node's engine behind its back: one differs, one is there alone, one fails its checksum."""
    wait_doors_known(dev)
    assert dev.lever("stop", "3").returncode == 0
    (folder,) = dev.directory.glob("**/n3/**/CURRENT")  # where RocksDB lies
    engine = open_engine("rocksdb", folder.parent)
    other, alone, corrupt = (record_key("0", key) for key in (b"k100", b"planted", b"k200"))
    record = versions.put(versions.EMPTY, {}, ("n3/planted", 1), b"planted")
    rows = {at: seal(at, versions.encode(record)) for at in (other, alone)}
    broken = engine.get(Space.RECORDS, corrupt)
    assert broken is not None
    rows[corrupt] = broken[:-1] + bytes([broken[-1] ^ 1])
    engine.apply((rows, {}, {}), sync=True)
    engine.close()
    assert dev.lever("start", "3").returncode == 0
    wait_doors_known(dev)
    code, told = verified(dev)
    assert code == 1, told
    assert not told["alike"]
    kinds = {each["key"]: each["kind"] for each in told["differences"]}
    assert kinds["k100"] == "differing"
    assert kinds["planted"] == "missing"
    # A node that reads a corrupt record asks the others for a good one: it may be there a second later.
    assert told["corrupt"] + told["mended"] == 1
    held = next(each["held"] for each in told["differences"] if each["key"] == "planted")
    assert [held["n1"], held["n2"]] == ["missing", "missing"]
    assert len(held["n3"]) == 16
    done = dev.at(1, "verify")
    assert done.returncode == 1
    assert "differing: k100 in bucket 0, partition " in done.stdout


def test_a_member_that_cannot_be_asked_is_named(dev):
    """The others are compared all the same, but that is not enough."""
    wait_doors_known(dev)
    assert dev.lever("stop", "2").returncode == 0
    code, told = verified(dev, "--partition", "3")
    assert code == 1
    assert list(told["not_asked"]) == ["n2"]
    assert not told["alike"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["--partition", "x"], "not a valid integer"), (["--partition", "-1"], "not in the range"), (["extra"], "extra")],
)
def test_wrong_usage(arguments, message, tmp_path):
    """Exit code 2."""
    done = invoke("verify", *arguments, home=tmp_path)
    assert done.returncode == 2
    assert message in done.stderr


def test_a_partition_that_is_not_there(dev):
    """Exit code 2, too, though only a node knows."""
    done = dev.at(1, "verify", "--partition", "1000000")
    assert done.returncode == 2
    assert "partitions are numbered from 0 to" in done.stderr
