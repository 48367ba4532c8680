"""How full the disk is: as ``df`` says, or by the quota."""

from __future__ import annotations

import asyncio
import os
import shutil

import pytest

from cartwheel.core.messages import DiskSpace
from cartwheel.runtime import diskspace
from cartwheel.runtime.diskspace import folder_bytes, used_fraction, watch_disk


def statvfs(**fields: int) -> os.statvfs_result:
    order = ("bsize", "frsize", "blocks", "bfree", "bavail", "files", "ffree", "favail", "flag", "namemax")
    return os.statvfs_result([fields.get(name, 0) for name in order])


@pytest.mark.parametrize(
    ("blocks", "bfree", "bavail", "expected"),
    [
        (1000, 1000, 1000, 0.0),
        (1000, 500, 500, 0.5),
        (1000, 150, 100, 850 / 950),  # 50 are root's
        (1000, 50, 0, 1.0),
        (0, 0, 0, 0.0),
    ],
)
def test_the_filesystem_counts_as_df_has_it(tmp_path, monkeypatch, blocks, bfree, bavail, expected):
    """Used, of what is used or free for us."""
    monkeypatch.setattr(os, "statvfs", lambda _: statvfs(blocks=blocks, bfree=bfree, bavail=bavail))
    assert used_fraction(tmp_path, 0) == pytest.approx(expected)


def test_the_quota_counts_all_files_below(tmp_path, monkeypatch):
    """Also those in folders; not what a link points to."""
    monkeypatch.setattr(os, "statvfs", lambda _: statvfs(blocks=1000, bfree=900, bavail=900))
    (tmp_path / "engine").mkdir()
    (tmp_path / "engine" / "a").write_bytes(b"x" * 300)
    (tmp_path / "b").write_bytes(b"x" * 200)
    (tmp_path / "link").symlink_to(tmp_path / "b")
    assert folder_bytes(tmp_path) == 500
    assert used_fraction(tmp_path, 1000) == 0.5
    assert used_fraction(tmp_path, 100) == 1.0
    assert used_fraction(tmp_path, 100_000) == pytest.approx(0.1), "the worse of both"


def test_a_folder_that_vanishes_meanwhile_counts_nothing(tmp_path, monkeypatch):
    """An engine removes its files while they are counted."""
    (tmp_path / "gone").mkdir()
    (tmp_path / "kept").write_bytes(b"x" * 10)
    real = os.scandir

    def scandir(path):
        if str(path).endswith("gone"):
            shutil.rmtree(path)
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    assert folder_bytes(tmp_path) == 10


def test_the_node_is_told_again_and_again_and_nothing_while_it_cannot_be_measured(tmp_path, monkeypatch, caplog):
    """A measurement that fails is logged once, and is no report of a disk that is full, or empty."""
    monkeypatch.setattr(diskspace, "INTERVAL_S", 0.0)
    results = [0.1, OSError("gone"), OSError("gone"), 0.2]
    events: list[DiskSpace] = []

    def measure(folder, bytes_max):
        assert (folder, bytes_max) == (tmp_path, 7)
        result = results.pop(0) if results else 0.3
        if isinstance(result, OSError):
            raise result
        return result

    monkeypatch.setattr(diskspace, "used_fraction", measure)

    async def story() -> None:
        task = asyncio.get_running_loop().create_task(watch_disk(tmp_path, 7, events.append))
        while len(events) < 3:  # noqa: ASYNC110 - nothing announces it
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(story())
    assert [event.used for event in events[:3]] == [0.1, 0.2, 0.3]
    assert caplog.messages == [f"cannot measure the disk of {tmp_path}: gone"]
