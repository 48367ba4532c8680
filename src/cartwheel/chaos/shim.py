"""A disk that answers EIO: a library to be loaded before the C library (``LD_PRELOAD``), made with the C compiler found here.

While the file that ``CARTWHEEL_CHAOS_EIO`` names exists, every fsync and fdatasync of the process fails. Afterwards they succeed
again, like those of a kernel that has dropped the pages it could not write: which is why a node must not try again, but halt.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

from cartwheel.core.errors import CartwheelError

VARIABLE = "CARTWHEEL_CHAOS_EIO"
COMPILE_TIMEOUT_S = 60.0

SOURCE = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdlib.h>
#include <unistd.h>

static int broken(void) {
    const char *trigger = getenv("CARTWHEEL_CHAOS_EIO");
    int before = errno, found = trigger != NULL && access(trigger, F_OK) == 0;
    errno = before;
    return found;
}

#define SYNC(name)                                                      \
    int name(int fd) {                                                  \
        static int (*real)(int);                                        \
        if (broken()) { errno = EIO; return -1; }                       \
        if (real == NULL) real = (int (*)(int))dlsym(RTLD_NEXT, #name); \
        return real(fd);                                                \
    }

SYNC(fsync)
SYNC(fdatasync)
"""


class NoShim(CartwheelError):
    """The library cannot be made here; the message says why."""


def unavailable() -> str | None:
    """Why disks cannot be broken on this machine; None if they can."""
    if os.uname().sysname != "Linux":
        return "breaking syncs works with LD_PRELOAD, on Linux only"
    if compiler() is None:
        return "breaking syncs needs a C compiler (cc), and there is none here"
    return None


def compiler() -> str | None:
    """The C compiler, if there is one."""
    return shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")


def build(folder: Path) -> Path:
    """Compile the library into ``folder``.

    Raises:
        NoShim: there is no compiler, or it fails.
    """
    why, found = unavailable(), compiler()
    if why is not None or found is None:
        raise NoShim(why or "there is no C compiler")
    source, library = folder / "eio.c", folder / "eio.so"
    source.write_text(SOURCE)
    done = subprocess.run(
        [found, "-shared", "-fPIC", "-O1", "-o", str(library), str(source), "-ldl"],
        capture_output=True, text=True, timeout=COMPILE_TIMEOUT_S, check=False,
    )  # fmt: skip
    if done.returncode:
        raise NoShim(f"{found} cannot make the library that breaks syncs: {done.stderr.strip()[:300]}")
    return library
