"""The floors of the architecture: a module imports only from floors below its own, and core/ stays pure.

The tables here are complete: a module that stands on no floor fails the test, so whoever adds one decides where it belongs.
The checker reads the source with ``ast`` and runs none of it. It sees every import statement, also those under
``TYPE_CHECKING`` and inside functions. It does not see what Python hides from it (``getattr``), nor does it need to: it
guards against drift, not against malice.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

PACKAGE = "cartwheel"
SOURCE = Path(__file__).resolve().parent.parent / "src" / PACKAGE

CORE_FLOORS = [
    {"types", "errors", "config"},
    {"clock", "versions", "context", "ring", "quorum", "merkle"},
    {"placement"},
    {"messages", "storage", "hot"},
    {"hintstore"},
    {"local"},
    {"summary"},
    {
        *(
            "coordinator",
            "replica",
            "coverage",
            "membership",
            "hints",
            "transfer",
            "antientropy",
            "failure",
            "admission",
        ),
        *("reaper", "digests"),
    },
    {"node"},
]
"""The modules of core/ (a sub-package counts as one module). Modules of one floor do not import each other, except on the
lowest: ``config`` may use ``types``, and both may raise ``errors``."""

UPPER_FLOORS = [
    {"runtime", "sim", "client"},
    {"bench", "chaos", "console"},
    {"cli"},
    {"__main__"},
]
"""The folders above core/. Within one folder imports are free; folders of one floor do not import each other."""

FLOOR = {f"core.{module}": floor for floor, modules in enumerate(CORE_FLOORS) for module in modules} | {
    folder: floor for floor, folders in enumerate(UPPER_FLOORS, start=len(CORE_FLOORS)) for folder in folders
}
GROUND = {"", "core"}
"""``cartwheel/__init__.py`` and ``core/__init__.py``: they import nothing of ours, and anyone may import what they define."""

IMPURE_MODULES = {
    *("asyncio", "time", "random", "os", "socket", "uuid", "threading", "selectors", "subprocess", "secrets"),
    *("pathlib", "io", "logging"),
    *("concurrent", "multiprocessing", "select", "signal", "ssl", "tempfile", "shutil", "importlib"),
}
"""Clocks, dice, input and output, and the same by another door."""
IMPURE_BUILTINS = {"open", "hash", "print", "input", "eval", "exec", "__import__"}
"""``hash`` because that of bytes and str differs from process to process."""
CORE_LIBRARIES = {"msgspec", "xxhash"}
"""What core/ may use beside the standard library."""


def place_of(module: str) -> str:
    """What a dotted name below the package stands for in ``FLOOR``: ``core.ring.claim`` -> ``core.ring``."""
    parts = module.split(".")
    return ".".join(parts[:2]) if parts[0] == "core" else parts[0]


def imports_of(tree: ast.AST, package: str) -> Iterator[tuple[int, str]]:
    """Every import as (line, absolute dotted name); ``from a import b`` is ``a.b``, whether ``b`` is a module or not."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            origin = node.module or ""
            if node.level:
                above = package.split(".")[: len(package.split(".")) - (node.level - 1)]
                origin = ".".join([*above, origin]) if origin else ".".join(above)
            for alias in node.names:
                yield node.lineno, f"{origin}.{alias.name}"


def import_violation(place: str, imported: str, places: set[str]) -> str | None:
    """Why ``place`` may not import this name, or None if it may."""
    root, _, below = imported.partition(".")
    if root != PACKAGE:
        if not place.startswith("core"):
            return None
        if root in IMPURE_MODULES:
            return (
                f"core/ may not import {root}: it is given the time, dice and storage, and returns what should happen"
            )
        if root not in sys.stdlib_module_names and root not in CORE_LIBRARIES:
            return f"core/ may not import {root}: beside the standard library it uses only {sorted(CORE_LIBRARIES)}"
        return None
    target = place_of(below)
    if target == place and place not in GROUND:
        return None
    if target not in FLOOR:
        # Either a name defined on the ground (`from cartwheel import __version__`), or a package as a whole, through
        # which any floor could be reached by attribute.
        is_package = target in {"", "core", "core.*", "*"} or target in places
        return f"import the module by its name, not {imported}" if is_package else None
    if place in GROUND:
        return f"an __init__ on the ground imports nothing of ours, but here {target}"
    mine, theirs = FLOOR[place], FLOOR[target]
    if theirs > mine:
        return f"{place} (floor {mine}) may not import {target} (floor {theirs}): imports go downwards"
    if theirs == mine and mine > 0:
        return f"{place} may not import {target}, its neighbour on floor {mine}: what both need belongs below them"
    return None


def violations(files: Mapping[str, str]) -> list[str]:
    """Check sources, given as path below the package -> text. One line per violation, in order."""
    found = []
    modules = {path: path.removesuffix(".py").removesuffix("__init__").strip("/").replace("/", ".") for path in files}
    places = {place_of(module) for module in modules.values()}
    for path in sorted(files):
        place = place_of(modules[path])
        if place not in FLOOR and place not in GROUND:
            table = "CORE_FLOORS" if place.startswith("core.") else "UPPER_FLOORS"
            found.append(f"{path}:1: {place} stands on no floor: place it on one in {table} of tests/test_layers.py")
            continue
        tree = ast.parse(files[path], path)
        folder = path.rpartition("/")[0].replace("/", ".")
        for line, imported in imports_of(tree, f"{PACKAGE}.{folder}".rstrip(".")):
            reason = import_violation(place, imported, places)
            if reason:
                found.append(f"{path}:{line}: {reason}")
        if place.startswith("core"):
            found.extend(
                f"{path}:{node.lineno}: core/ may not use the builtin {node.id}()"
                for node in ast.walk(tree)
                if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load) and node.id in IMPURE_BUILTINS
            )
    return found


def test_every_import_goes_downwards_and_core_is_pure():
    """The source tree keeps the floors."""
    files = {path.relative_to(SOURCE).as_posix(): path.read_text("utf-8") for path in SOURCE.rglob("*.py")}
    assert any(path.startswith("core/") for path in files), f"no sources at {SOURCE}"
    assert violations(files) == []


def test_no_module_stands_on_two_floors():
    """The tables name each module once."""
    assert len(FLOOR) == sum(map(len, CORE_FLOORS)) + sum(map(len, UPPER_FLOORS))


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("__init__.py", "__version__ = '1'"),
        ("core/__init__.py", ""),
        ("core/config.py", "from cartwheel.core.types import NodeId\nfrom cartwheel.core import errors"),
        ("core/ring.py", "import msgspec\nimport hashlib\nfrom cartwheel.core.types import NodeId"),
        ("core/ring/claim.py", "from . import fold\nfrom .fold import x\nimport cartwheel.core.ring.fold"),
        ("core/storage.py", "from cartwheel.core.versions import Record"),
        ("core/node.py", "from cartwheel.core.replica import Replica\nfrom cartwheel.core import coordinator"),
        ("core/clock.py", "class C:\n    def open(self): self.open()\n    __hash__ = None"),
        ("client/sync.py", "import socket\nfrom cartwheel.core.coordinator import Coordinator"),
        ("runtime/driver.py", "import asyncio, os, time\nfrom cartwheel import __version__\nprint(open(1))"),
        ("runtime/engines/lmdb.py", "import lmdb\nfrom cartwheel.runtime.driver import x\nfrom ..driver import y"),
        ("sim/world.py", "import random\nfrom cartwheel.core.node import Node"),
        ("cli/main.py", "from cartwheel.runtime import driver\nfrom cartwheel.sim.world import World"),
        ("cli/bench.py", "import cartwheel.bench.standard"),
    ],
)
def test_allowed(path, source):
    """Each row keeps the rules."""
    assert violations({path: source}) == []


@pytest.mark.parametrize(
    ("path", "source", "reason"),
    [
        ("core/clock.py", "import time", "core/ may not import time"),
        ("core/clock.py", "from os import urandom", "core/ may not import os"),
        ("core/clock.py", "import asyncio.events as e", "core/ may not import asyncio"),
        ("core/clock.py", "def f():\n    import random", "clock.py:2: core/ may not import random"),
        ("core/__init__.py", "import logging", "core/ may not import logging"),
        ("core/types.py", "import lmdb", "beside the standard library"),
        ("core/types.py", "if TYPE_CHECKING:\n    import socket", "core/ may not import socket"),
        ("core/ring/claim.py", "import io", "core/ may not import io"),
        ("core/types.py", "f = open('x')", "builtin open()"),
        ("core/types.py", "x = 1\nhash(x)", "types.py:2: core/ may not use the builtin hash()"),
        ("core/types.py", "sorted(x, key=hash)", "builtin hash()"),
        ("core/types.py", "print(1)", "builtin print()"),
        # upwards
        ("core/types.py", "from cartwheel.core.ring import Ring", "(floor 0) may not import core.ring (floor 1)"),
        ("core/ring.py", "import cartwheel.core.messages", "imports go downwards"),
        ("core/ring.py", "from cartwheel.core import messages", "imports go downwards"),
        ("core/ring.py", "from . import node", "imports go downwards"),
        ("core/ring.py", "from .node import Node", "imports go downwards"),
        ("core/ring/claim.py", "from ..node import Node", "imports go downwards"),
        ("core/replica.py", "if TYPE_CHECKING:\n    from .node import Node", "imports go downwards"),
        ("core/node.py", "from cartwheel.runtime.driver import Driver", "imports go downwards"),
        ("core/node.py", "from cartwheel import runtime", "imports go downwards"),
        ("core/node.py", "from ..sim import world", "imports go downwards"),
        ("runtime/driver.py", "import cartwheel.cli.main", "imports go downwards"),
        ("sim/world.py", "from cartwheel.bench import standard", "imports go downwards"),
        # sideways
        ("core/ring.py", "from cartwheel.core.versions import Record", "its neighbour on floor"),
        ("core/messages.py", "from .storage import Storage", "its neighbour on floor"),
        ("core/replica.py", "from cartwheel.core import coordinator", "its neighbour on floor"),
        ("sim/world.py", "from cartwheel.runtime.driver import Driver", "its neighbour on floor"),
        ("client/sync.py", "from cartwheel import runtime", "its neighbour on floor"),
        ("bench/command.py", "import cartwheel.cli.main", "imports go downwards"),
        # packages as a whole, through which all floors are in reach
        ("core/ring.py", "import cartwheel", "by its name"),
        ("core/ring.py", "import cartwheel.core", "by its name"),
        ("core/ring.py", "from cartwheel import core", "by its name"),
        ("core/ring.py", "from cartwheel.core import *", "by its name"),
        ("core/ring.py", "from . import *", "by its name"),
        ("__init__.py", "from cartwheel.client.sync import Client", "imports nothing of ours"),
        ("core/__init__.py", "from cartwheel.core.node import Node", "imports nothing of ours"),
        ("core/__init__.py", "from . import node", "imports nothing of ours"),
        # no floor
        ("core/gossip.py", "", "core.gossip stands on no floor: place it on one in CORE_FLOORS"),
        ("core/gossip/rumour.py", "", "core.gossip stands on no floor"),
        ("tools/x.py", "", "tools stands on no floor: place it on one in UPPER_FLOORS"),
        ("utils.py", "", "utils stands on no floor"),
    ],
)
def test_forbidden(path, source, reason):
    """Each row breaks one rule once, and is told where and why."""
    found = violations({path: source})
    assert len(found) == 1
    assert found[0].startswith(path)
    assert reason in found[0]
