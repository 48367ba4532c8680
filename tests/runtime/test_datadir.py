"""The data directory: made once, opened only by its own node, by one process at a time."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from cartwheel.core.errors import ConfigError, StorageFailed
from cartwheel.core.storage import Space
from cartwheel.runtime.datadir import FORMAT, open_datadir
from cartwheel.runtime.engines import ENGINES

MINE = {"cluster": "shop", "node": "a", "engine": "rocksdb", "q": 64}


def mode(path: Path) -> int:
    return path.stat().st_mode & 0o777


def identity_of(path: Path) -> dict[str, object]:
    content: dict[str, object] = json.loads((path / "CARTWHEEL").read_text())
    return content


@pytest.fixture
def mine(tmp_path):
    """A directory that was made for ``MINE``, closed."""
    path = tmp_path / "data"
    open_datadir(path, **MINE).close()
    return path


def test_a_copy_is_told_from_the_true_one(mine, tmp_path):
    """By its folder: so two processes never go on with one stint. A renamed folder is the same one; a copy is one only once."""
    shutil.copytree(mine, tmp_path / "copy")
    renamed = mine.rename(tmp_path / "renamed")
    for path, copied in (("copy", True), ("renamed", False), ("copy", False)):
        directory = open_datadir(tmp_path / path, **MINE)
        assert directory.copied is copied
        directory.close()
    assert renamed.exists()


def test_a_directory_of_an_earlier_build_is_no_copy(mine):
    """It does not say where it was."""
    identity = identity_of(mine)
    del identity["place"]
    (mine / "CARTWHEEL").write_text(json.dumps(identity))
    directory = open_datadir(mine, **MINE)
    assert not directory.copied
    directory.close()
    assert identity_of(mine)["place"]


@pytest.mark.parametrize("engine", ENGINES)
def test_made_where_there_was_none(engine, tmp_path):
    """A new directory, parents too, is private, says whose it is, and opens again for the same node."""
    path = tmp_path / "parent" / "data"
    directory = open_datadir(path, cluster="shop", node="a", engine=engine, q=64)
    assert mode(path) == 0o700
    assert directory.path == path
    assert directory.engine.name == engine
    assert directory.identity.created.endswith("+00:00")
    assert identity_of(path) == {
        "format": FORMAT, "cluster": "shop", "node": "a", "engine": engine, "q": 64, "created": directory.identity.created,
        "place": f"{path.stat().st_dev}:{path.stat().st_ino}",
    }  # fmt: skip
    assert (path / "lock").read_text() == f"{os.getpid()}\n"
    assert not (path / "CARTWHEEL.tmp").exists()
    directory.engine.apply(({b"k": b"v"}, {}, {}), sync=True)
    directory.close()

    again = open_datadir(path, cluster="shop", node="a", engine=engine, q=64)
    assert again.identity == directory.identity
    assert again.engine.get(Space.RECORDS, b"k") == (None if engine == "memory" else b"v")
    again.close()


@pytest.mark.parametrize("leftover", [[], ["lock"], ["CARTWHEEL.tmp", "lock"], ["lost+found"]], ids=str)
def test_made_in_an_empty_directory(leftover, tmp_path):
    """A new file system, or a start that was cut short, counts as empty."""
    for name in leftover:
        (tmp_path / name).touch()
    open_datadir(tmp_path, **MINE).close()
    assert identity_of(tmp_path)["node"] == "a"


def test_made_again_where_only_the_engine_is_missing(mine):
    """A start that was cut short after the identity was written is completed by the next."""
    for file in sorted((mine / "engine").iterdir()):
        file.unlink()
    (mine / "engine").rmdir()
    open_datadir(mine, **MINE).close()
    assert (mine / "engine").is_dir()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"cluster": "other"}, "belongs to cluster 'shop', not 'other'; name another directory"),
        ({"node": "b"}, "belongs to node 'a', not 'b'; name another directory"),
        ({"engine": "lmdb"}, "with the storage engine 'rocksdb', not 'lmdb'; set the engine to 'rocksdb'"),
        ({"q": 128}, "of a ring of 64 partitions, not 128: set q to 64"),
        ({"engine": "sqlite"}, "unknown storage engine 'sqlite': choose one of rocksdb, lmdb, memory"),
    ],
)
def test_only_its_own_node(mine, change, message):
    """Each row changes one thing that the directory was made for; the refusal names both sides and the remedy."""
    with pytest.raises(ConfigError) as caught:
        open_datadir(mine, **MINE | change)
    assert message in str(caught.value)
    open_datadir(mine, **MINE).close()  # and the refusal left it unlocked and unchanged


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "CARTWHEEL is damaged"),
        (b"{", "CARTWHEEL is damaged"),
        (b"\0" * 80, "CARTWHEEL is damaged"),
        (b"[1]", "CARTWHEEL is damaged"),
        (b'{"format": 2, "cluster": "shop"}', "missing required field `node`"),
        (b'{"format": "1"}', "CARTWHEEL is damaged"),
        (b'{"format": 3, "whatever": 1}', "has format 3, and this program knows formats up to 2"),
        (b'{"format": 1, "cluster": "shop"}', "has format 1, of a development build whose rings were cut otherwise"),
    ],
)
def test_what_the_identity_file_may_not_be(mine, content, message):
    """Damaged, incomplete, or of a newer program: refused with the file's place, not overwritten."""
    (mine / "CARTWHEEL").write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        open_datadir(mine, **MINE)
    assert message in str(caught.value)
    assert str(mine) in str(caught.value)
    assert (mine / "CARTWHEEL").read_bytes() == content


def test_fields_of_a_later_version_of_the_same_format_are_ignored(mine):
    """A field may be added without a new format."""
    (mine / "CARTWHEEL").write_text(json.dumps(identity_of(mine) | {"rack": "r1"}))
    open_datadir(mine, **MINE).close()


def test_a_directory_of_something_else(tmp_path):
    """Not empty and not ours: refused, and nothing is put into it."""
    for name in ("photos", "mail", "www", "etc"):
        (tmp_path / name).mkdir()
    with pytest.raises(ConfigError, match=r"is not empty and has no CARTWHEEL file.*etc, mail, photos, \.\.\.;"):
        open_datadir(tmp_path, **MINE)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["etc", "mail", "photos", "www"]


def test_an_engine_without_its_identity(mine):
    """If the identity file was lost, the data are nobody's: they are not taken over by whoever starts next."""
    (mine / "CARTWHEEL").unlink()
    with pytest.raises(ConfigError, match="it holds engine"):
        open_datadir(mine, **MINE)


def test_locked_by_this_process(mine):
    """Two opens at once would be two nodes: the second is refused and told who holds the lock; after close it may."""
    first = open_datadir(mine, **MINE)
    with pytest.raises(ConfigError, match=f"is in use by the process {os.getpid()};"):
        open_datadir(mine, **MINE)
    first.close()
    first.close()  # idempotent
    open_datadir(mine, **MINE).close()


HOLDER = """
import sys
from pathlib import Path
from cartwheel.runtime.datadir import open_datadir
directory = open_datadir(Path(sys.argv[1]), cluster="shop", node="a", engine="rocksdb", q=64)
print("open", flush=True)
sys.stdin.read()
"""


def test_locked_by_another_process_until_it_dies(mine):
    """The lock names the process that holds it; killing that process frees it, whatever the file says."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", HOLDER, str(mine)]
    with subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "open\n"
        with pytest.raises(ConfigError, match=f"in use by the process {child.pid};"):
            open_datadir(mine, **MINE)
        child.kill()
        child.wait()
    assert (mine / "lock").read_text() == f"{child.pid}\n"
    open_datadir(mine, **MINE).close()


def test_not_a_directory(tmp_path):
    """A file in the way is named."""
    file = tmp_path / "file"
    file.touch()
    for path in (file, file / "data"):
        with pytest.raises(ConfigError, match=f"data directory {path} cannot be used: (File exists|Not a directory)"):
            open_datadir(path, **MINE)


@pytest.mark.parametrize("made", [False, True])
def test_not_writable(made, tmp_path):
    """A user who may not write there is told so, whether the directory is new or his node's own."""
    path = tmp_path / "data"
    if made:
        open_datadir(path, **MINE).close()
        (path / "lock").chmod(0o400)
    else:
        path.mkdir()
    path.chmod(0o500)
    root = os.geteuid() == 0
    if root:
        os.chown(path, 65534, -1)
        for entry in path.iterdir():
            os.chown(entry, 65534, -1)
        for parent in path.parents[:-1]:  # pytest's own folders are closed to others
            parent.chmod(parent.stat().st_mode | 0o011)
        os.seteuid(65534)
    try:
        with pytest.raises(ConfigError, match=r"cannot be used: Permission denied .*/lock.*; the user"):
            open_datadir(path, **MINE)
    finally:
        if root:
            os.seteuid(0)
        path.chmod(0o700)


def test_an_engine_that_does_not_open_leaves_no_lock(mine):
    """When the engine's files are damaged the error is the engine's, and the lock is free for whoever repairs them."""
    current = mine / "engine" / "CURRENT"
    content = current.read_bytes()
    current.write_bytes(b"MANIFEST-nonsense\n")
    with pytest.raises(StorageFailed, match=r"rocksdb in .*data/engine: cannot be opened"):
        open_datadir(mine, **MINE)
    current.write_bytes(content)
    open_datadir(mine, **MINE).close()
