"""A cluster rolls from the previous commit's build to the present one, node by node, while clients write and read.

The previous build is made from ``git archive HEAD~1`` as ``make`` makes the present one, and put into a folder of its own; its
nodes import it from there, and the libraries from the environment of the tests. Where there is no previous commit (no repository,
a shallow clone), or it cannot be built or imported here, there is nothing to roll from: the test is skipped, with the reason.

Builds may differ so much that they cannot be mixed: no protocol in common, or another format of the data directory. Then a
refusal in plain words is what is due, and that is tested in place of the roll. Altered copies of the present build are always put
to that test.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import ModuleType

import pytest
from tests.cluster.cluster import DEADLINE_S, Cluster, environment, wait_until
from tests.cluster.load import Load

import cartwheel
from cartwheel.core.messages import PROTOCOL_MAX, PROTOCOL_MIN, driver
from cartwheel.runtime import datadir
from cartwheel.runtime.datadir import FORMAT

ROOT = Path(__file__).resolve().parents[2]
PREVIOUS = "HEAD~1"
PAIRS = 200
"""Keys in a bucket of two copies: with three nodes, its partitions change hands when weights do."""
PROBE = """
import json, sys
try:
    import cartwheel.cli.main, cartwheel.cli.start, cartwheel.runtime.server
    from cartwheel.runtime import datadir, frames
except Exception as error:
    print(json.dumps(f"{type(error).__name__}: {error}"))
    sys.exit()
print(json.dumps([cartwheel.__file__, [frames.PROTOCOL_MIN, frames.PROTOCOL_MAX], datadir.FORMAT]))
"""
"""Run with a build: what it is, or why it cannot be imported."""


@dataclass(frozen=True)
class Build:
    """A build of the package, in a folder of its own."""

    folder: Path
    protocols: tuple[int, int]
    """The lowest and the highest that it speaks."""
    format: int
    """Of its data directories."""


# --- builds ---


def run(*command: str | Path, cwd: Path = ROOT, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """Run a command to its end, in an environment in which git looks nowhere but in the working directory."""
    found = environment() if env is None else env
    return subprocess.run(
        [*map(str, command)],
        cwd=cwd,
        env={name: value for name, value in found.items() if not name.startswith("GIT_")},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        check=False,
    )


def needed(reason: str, done: subprocess.CompletedProcess[str]) -> str:
    """What a command printed. If it failed, the test is skipped for this reason, and with the last line of what it said."""
    if done.returncode:
        said = (done.stderr or done.stdout).strip().splitlines()
        pytest.skip(f"{reason}: {said[-1]}" if said else reason)
    return done.stdout.strip()


def look_into(folder: Path) -> Build:
    """Import the build in this folder, as its nodes will."""
    done = run(sys.executable, "-c", PROBE, env=environment(folder))
    assert done.returncode == 0, f"this test looks for things where that build does not have them: {done.stderr}"
    told = json.loads(done.stdout)
    if isinstance(told, str):
        pytest.skip(f"that build cannot be imported with the libraries that are here: {told}")
    file, protocols, format_ = told
    assert Path(file).is_relative_to(folder), f"{file} was imported, not what is in {folder}"
    return Build(folder, tuple(protocols), format_)


def build_of(commit: str, folder: Path) -> Build:
    """Build a commit of this repository, and unpack the wheel. Skips the test if that is not possible here."""
    if shutil.which("git") is None:
        pytest.skip("there is no git, so no previous build can be made")
    top = needed("no previous build can be made", run("git", "rev-parse", "--show-toplevel"))
    if Path(top).resolve() != ROOT:
        pytest.skip("no previous build can be made: these tests lie in somebody else's repository")
    if run("git", "rev-parse", "--verify", "--quiet", f"{commit}^{{commit}}").returncode:
        pytest.skip(f"no previous build can be made: {commit} is not here (a shallow clone, or the first commit)")
    archive, source, wheels, installed = (folder / name for name in ("source.zip", "source", "wheels", "installed"))
    needed("git cannot archive it", run("git", "archive", "--format=zip", "-o", archive, commit))
    with zipfile.ZipFile(archive) as packed:
        packed.extractall(source)
    hatchling = run(sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", wheels, cwd=source)
    needed("the previous commit does not build here", hatchling)
    pip = (sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps")
    needed("the previous build does not install here", run(*pip, "--target", installed, *wheels.glob("*.whl")))
    return look_into(installed)


def altered_build(folder: Path, module: ModuleType, **numbers: int) -> Build:
    """A copy of the present build in which these constants of one module have other values."""
    package = Path(cartwheel.__file__).parent
    shutil.copytree(package, folder / "cartwheel", ignore=shutil.ignore_patterns("__pycache__"))
    assert module.__file__ is not None
    file = folder / "cartwheel" / Path(module.__file__).relative_to(package)
    text = file.read_text()
    for name, number in numbers.items():
        text, found = re.subn(rf"^{name} = \d+$", f"{name} = {number}", text, flags=re.MULTILINE)
        assert found == 1, f"{name} is not set once in {module.__name__}"
    file.write_text(text)
    return look_into(folder)


@pytest.fixture(scope="module")
def previous(tmp_path_factory: pytest.TempPathFactory) -> Build:
    """The build of the previous commit."""
    return build_of(PREVIOUS, tmp_path_factory.mktemp("previous"))


# --- what a build that cannot be mixed with ours must say ---


def mixes(other: Build) -> bool:
    """Whether nodes of that build and of ours can be one cluster."""
    return max(PROTOCOL_MIN, other.protocols[0]) <= min(PROTOCOL_MAX, other.protocols[1])


def check_no_common_protocol(other: Build, folder: Path) -> None:
    """Neither takes the other as a peer, both say why in their logs, and both go on."""
    with running(Cluster(folder, size=2), {2: other.folder}) as cluster:
        words = re.compile(r"no link to n\d .*refused: no common protocol: \d+ to \d+ here")

        def told(number: int) -> bool:
            return bool(words.search(cluster.log(number).read_text()))

        for number in cluster.numbers:
            wait_until(partial(told, number), f"n{number} says why; logs in {cluster.folder}")
            assert serves(cluster, number)
            assert [m["node"] for m in cluster.status(number)["members"] if m["reachable"]] == [f"n{number}"]


def check_other_format(other: Build, folder: Path) -> None:
    """Our build does not start on a directory of that one, says so in one line, and leaves it as it was."""
    with running(Cluster(folder, size=1), {1: other.folder}) as cluster:
        cluster.call(1, "SET", "k", "v")
        assert cluster.stop(1) == 0
        refused = cluster.try_start(cluster.flags(1))
        assert (refused.returncode, refused.stdout) == (2, "")
        assert f"has format {other.format}" in refused.stderr
        assert refused.stderr.count("\n") == 1, refused.stderr
        cluster.start(1)
        wait_until(lambda: cluster.call(1, "GET", "k") == b"v", "its own build starts on it as before")


@contextmanager
def running(cluster: Cluster, builds: dict[int, Path]) -> Iterator[Cluster]:
    """Start these nodes, some of other builds, and wait until each serves: whether they are a cluster is the question."""
    cluster.builds |= builds
    with ExitStack() as stack:
        stack.push(cluster)
        for number in cluster.numbers:
            cluster.start(number)
        for number in cluster.numbers:
            wait_until(partial(serves, cluster, number), f"n{number} serves; logs in {cluster.folder}")
        yield cluster


def serves(cluster: Cluster, number: int) -> bool:
    """Whether a node answers its clients."""
    return bool(cluster.call(number, "PING") == b"PONG")


def test_builds_without_a_common_protocol_refuse_each_other(tmp_path: Path) -> None:
    """A version was left out: the new node does not get in, and both sides' logs say what each speaks."""
    beyond = PROTOCOL_MAX + 1
    later = altered_build(tmp_path / "later", driver, PROTOCOL_MIN=beyond, PROTOCOL_MAX=beyond)
    assert later.protocols == (beyond, beyond)
    check_no_common_protocol(later, tmp_path)


@pytest.mark.parametrize("format_", [FORMAT - 1, FORMAT + 1])
def test_a_directory_of_another_format_is_refused_and_left_alone(tmp_path: Path, format_: int) -> None:
    """Up or down: better no start than a misread record."""
    check_other_format(altered_build(tmp_path / "other", datadir, FORMAT=format_), tmp_path)


# --- the roll ---


def test_a_cluster_rolls_from_the_previous_build_to_this_one(previous: Build, tmp_path: Path) -> None:
    """No client hears an error, no acknowledged write is lost or not found, all nodes stay of one view: while builds are mixed,
    while buckets and weights change at either, and while one node is rolled back and up again."""
    if not mixes(previous):
        check_no_common_protocol(previous, tmp_path)
        return
    if previous.format != FORMAT:
        check_other_format(previous, tmp_path)
        return
    # A small ring, and nobody keeps for long what was handed over. The timeout is for a busy machine: no request needs it.
    with (
        Cluster(tmp_path, build=previous.folder, q="64", give_grace_s="0.3", request_timeout_s="10") as cluster,
        Load(cluster, 1, 2, 3, roams=True) as load,
    ):
        change_bucket(cluster, 1, n=2, r=2, w=1)
        fill(cluster, 1)
        roll(cluster, load, 1, None)  # now n1 is new, n2 and n3 are old
        change_bucket(cluster, 2, value_bytes_max=100)
        change_weight(cluster, 3, "n1", 2)
        check_protocols(cluster, 1, previous)
        roll(cluster, load, 2, None)  # now only n3 is old
        change_bucket(cluster, 1, value_bytes_max=200)
        change_weight(cluster, 2, "n3", 3)
        check_protocols(cluster, 1, previous)
        roll(cluster, load, 2, previous.folder)  # and back
        change_bucket(cluster, 2, value_bytes_max=300)
        check_protocols(cluster, 1, previous)
        roll(cluster, load, 2, None)
        roll(cluster, load, 3, None)  # now all are new
        change_weight(cluster, 3, "n2", 9)
        for number in cluster.numbers:
            check_protocols(cluster, number, previous)
        load.end(*cluster.numbers)
        for client in load.clients.values():
            assert (client.refused, client.wrong) == ([], []), cluster.logs()
            assert len(client.lost) <= 5, client.lost  # a stop ends a connection under each client at most once
        load.check_nothing_lost(*cluster.numbers)
        check_filled(cluster)
        check_one_view(cluster)
        wait_until(partial(agrees, cluster, 1, "verify"), "all replicas are identical")
        troubles = [line for line in cluster.logs().splitlines() if re.search(r" ERROR | CRITICAL |not parse", line)]
        assert not troubles, cluster.logs()


def roll(cluster: Cluster, load: Load, number: int, build: Path | None) -> None:
    """As docs/operate/upgrade.md says: ask, stop, start the other build (None: the present one), wait until all is well. The
    load goes on all the while."""
    others = [k for k in cluster.numbers if k != number]
    for other in others:
        wait_until(
            partial(agrees, cluster, other, "cluster", "safe-to-stop", f"n{number}"), f"n{number} may be stopped"
        )
    assert cluster.stop(number) == 0, cluster.logs()
    load.wait_on(load.clients)
    if build is None:
        del cluster.builds[number]
    else:
        cluster.builds[number] = build
    cluster.start(number)
    for each in cluster.numbers:
        wait_until(partial(agrees, cluster, each, "status"), f"n{each} says that all is well; logs in {cluster.folder}")
    load.wait_on(load.clients)


def agrees(cluster: Cluster, number: int, *command: str) -> bool:
    """Whether a command that is sent to this node exits with 0."""
    return cluster.cli(number, *command).returncode == 0


def change_bucket(cluster: Cluster, number: int, **props: int) -> None:
    """Change the bucket at this node; all others hear of it."""
    cluster.call(number, "CW.BUCKET", "SET", "pairs", *(word for pair in props.items() for word in pair))

    def known() -> bool:
        found = [json.loads(cluster.call(k, "CW.BUCKET", "GET", "pairs", "JSON")) for k in cluster.numbers]
        return all(each[name] == value for each in found for name, value in props.items())

    wait_until(known, f"the bucket has {props} everywhere")


def change_weight(cluster: Cluster, number: int, node: str, weight: int) -> None:
    """Stage and commit another weight at this node; partitions of two copies change hands, and all end with one ring."""
    before = handed_over(cluster)
    cluster.call(number, "CW.CLUSTER", "WEIGHT", node, weight)
    cluster.wait_staged(f"{node} has weight {weight}", *cluster.numbers)
    cluster.commit(number)
    wait_until(lambda: handed_over(cluster) > before, "partitions change hands")
    cluster.wait_settled(cluster.numbers)
    check_one_view(cluster)
    check_filled(cluster)


def handed_over(cluster: Cluster) -> int:
    """Partitions that the nodes have taken over since they were started."""
    return sum(cluster.status(k)["transfer"]["gained"] for k in cluster.numbers)


def check_one_view(cluster: Cluster) -> None:
    """All nodes have the same epoch, and so the same members, ring and holdings; and the same members in words."""

    def alike() -> bool:
        views = [cluster.status(k) for k in cluster.numbers]
        places = [[(m["node"], m["address"], m["weight"], m["partitions"]) for m in v["members"]] for v in views]
        return len({v["epoch"] for v in views}) == 1 and all(each == places[0] for each in places)

    wait_until(alike, "all nodes have one view")


def check_protocols(cluster: Cluster, number: int, previous: Build) -> None:
    """A node of the present build speaks with each peer the newest that both know."""
    mixed = min(PROTOCOL_MAX, previous.protocols[1])
    expected = {f"n{k}": mixed if k in cluster.builds else PROTOCOL_MAX for k in cluster.numbers}

    def spoken() -> bool:
        return {m["node"]: m["protocol"] for m in cluster.status(number)["members"]} == expected

    wait_until(spoken, f"n{number} speaks {expected}")


def fill(cluster: Cluster, number: int) -> None:
    """Write the keys of two copies."""
    with cluster.connect(number) as connection:
        connection.call("SELECT", "pairs")
        replies = connection.pipeline([["SET", f"pair{i}", f"value {i}"] for i in range(PAIRS)])
        assert replies == [b"OK"] * PAIRS


def check_filled(cluster: Cluster) -> None:
    """They are read through every node."""
    for number in cluster.numbers:
        with cluster.connect(number) as connection:
            connection.call("SELECT", "pairs")
            found = connection.call("MGET", *[f"pair{i}" for i in range(PAIRS)])
            assert found == [b"value %d" % i for i in range(PAIRS)], f"through n{number}"
