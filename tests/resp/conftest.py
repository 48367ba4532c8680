"""Doors for tests. What clients see is tested twice: over the double, and over a whole node."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.resp.door import Bare, DoorThread, NodeThread, running_door, running_redis


def _folder(request: pytest.FixtureRequest, factory: pytest.TempPathFactory) -> Path | None:
    return factory.mktemp("node") if request.param == "node" else None


@pytest.fixture(scope="session", params=["double", "node"])
def door(request, tmp_path_factory) -> Iterator[DoorThread | NodeThread]:
    """One door for all tests of a process, with the defaults. Tests leave its settings alone and use keys of their own."""
    with running_door(_folder(request, tmp_path_factory)) as running:
        yield running


@pytest.fixture(scope="session", params=["double", "node"])
def lenient_door(request, tmp_path_factory) -> Iterator[DoorThread | NodeThread]:
    """A door on which all that is off by default is on."""
    folder = _folder(request, tmp_path_factory)
    with running_door(folder, allow_best_effort_nx=True, allow_flush=True) as running:
        yield running


@pytest.fixture(scope="session")
def redis_port(tmp_path_factory) -> Iterator[int]:
    """A real Redis, to compare with."""
    with running_redis(tmp_path_factory.mktemp("redis")) as port:
        yield port


@pytest.fixture
def bare(door) -> Iterator[Bare]:
    """A bare connection to the door."""
    with Bare(door.port) as client:
        yield client


@pytest.fixture
def key(request: pytest.FixtureRequest) -> str:
    """A key that no other test uses."""
    return f"key:{request.node.nodeid}"
