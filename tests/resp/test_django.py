"""Django's own Redis cache."""

from __future__ import annotations

import pytest
import redis
from django.conf import settings
from django.core.cache.backends.redis import RedisCache
from tests.resp.door import Bare


@pytest.fixture(scope="module", autouse=True)
def _django():
    if not settings.configured:
        settings.configure()


def cache_of(door) -> RedisCache:
    return RedisCache(f"redis://127.0.0.1:{door.port}/5", {"KEY_PREFIX": "django", "TIMEOUT": 300})


def test_values_and_times(door):
    """set, get, touch, delete, has_key."""
    cache = cache_of(door)
    assert cache.get("none", "default") == "default"
    cache.set("a", {"x": [1, 2]})
    cache.set("n", 5, timeout=None)
    assert cache.get("a") == {"x": [1, 2]}
    assert cache.get("n") == 5
    assert cache.touch("a", 1000)
    assert not cache.touch("none")
    with Bare(door.port) as bare:
        bare.ask("SELECT", "5")
        assert 900 < bare.ask("TTL", cache.make_key("a")) <= 1000
    assert cache.has_key("a")
    assert cache.delete("a")
    assert not cache.delete("a")
    assert cache.get("a") is None
    cache.set("gone", 1, timeout=0)
    assert cache.get("gone") is None


def test_many(door):
    """set_many is a batch of MSET and EXPIREs."""
    cache = cache_of(door)
    values = {f"many{number}": number for number in range(50)}
    assert cache.set_many(values, timeout=100) == []
    assert cache.get_many([*values, "none"]) == values
    cache.delete_many(values)
    assert cache.get_many(values) == {}


def test_what_is_off_by_default(door):
    """``add`` and ``clear`` say why not."""
    cache = cache_of(door)
    with pytest.raises(redis.ResponseError, match="not atomic in a leaderless store"):
        cache.add("b", 1)
    with pytest.raises(redis.ResponseError, match=r"CONFIG SET resp\.allow-flush yes"):
        cache.clear()


def test_what_can_be_allowed(lenient_door):
    """``add`` at best effort, ``get_or_set``, ``clear``."""
    cache = cache_of(lenient_door)
    cache.delete("c")
    assert cache.add("c", 1, timeout=100)
    assert not cache.add("c", 2)
    assert cache.get("c") == 1
    assert cache.get_or_set("d", lambda: 7) == 7
    cache.clear()
    assert cache.get("c") is None
