"""How full the disk is: once a second, the node is told (``core.failure`` decides what follows).

Two measures, of which the worse counts: the filesystem of the data directory, as ``df`` shows it (space that is reserved for root
is not ours), and the data directory against its quota, if it has one. Measured on a thread: a directory of a thousand files
takes milliseconds, and a network filesystem as long as it likes.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable
from pathlib import Path

from cartwheel.core.messages import DiskSpace

log = logging.getLogger(__name__)

INTERVAL_S = 1.0
"""At 1 GB a second, a disk of 100 GB whose last tenth is free fills up in ten."""


async def watch_disk(folder: Path, bytes_max: int, submit: Callable[[DiskSpace], None]) -> None:
    """Measure and tell, until cancelled. What cannot be measured is not told."""
    loop = asyncio.get_running_loop()
    told = ""
    while True:
        try:
            used = await loop.run_in_executor(None, used_fraction, folder, bytes_max)
        except OSError as error:
            if str(error) != told:
                told = str(error)
                log.warning("cannot measure the disk of %s: %s", folder, error)
        else:
            told = ""
            submit(DiskSpace(used))
        await asyncio.sleep(INTERVAL_S)


def used_fraction(folder: Path, bytes_max: int) -> float:
    """How full it is, 0 to 1: the filesystem, or the directory's quota of ``bytes_max`` (0: it has none).

    Raises:
        OSError: the folder is not there, or cannot be read.
    """
    status = os.statvfs(folder)
    used, free = status.f_blocks - status.f_bfree, status.f_bavail
    fraction = used / (used + free) if used + free else 0.0  # some filesystems have no size
    if bytes_max:
        fraction = max(fraction, folder_bytes(folder) / bytes_max)
    return min(1.0, fraction)


def folder_bytes(folder: Path) -> int:
    """The sizes of all files below, added up. Those that vanish meanwhile count nothing: an engine deletes its files."""
    total = 0
    with os.scandir(folder) as entries:
        for entry in entries:
            try:
                if entry.is_dir(follow_symlinks=False):
                    total += folder_bytes(Path(entry.path))
                elif entry.is_file(follow_symlinks=False):
                    total += entry.stat(follow_symlinks=False).st_size
            except FileNotFoundError:
                continue
    return total
