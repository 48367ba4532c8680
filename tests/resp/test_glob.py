"""The pattern matcher of SCAN, KEYS and CONFIG GET."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.resp.door import Bare

from cartwheel.runtime.resp.glob import matcher


@pytest.mark.parametrize(
    ("pattern", "matching", "other"),
    [
        (b"*", [b"", b"a", b"abc"], []),
        (b"", [b""], [b"a"]),
        (b"h?llo", [b"hello", b"hallo"], [b"hllo", b"heello"]),
        (b"h*llo", [b"hllo", b"heeello"], [b"hell"]),
        (b"h[ae]llo", [b"hello", b"hallo"], [b"hillo"]),
        (b"h[^e]llo", [b"hallo"], [b"hello"]),
        (b"h[a-b]llo", [b"hallo", b"hbllo"], [b"hcllo"]),
        (b"h[b-a]llo", [b"hallo", b"hbllo"], [b"hcllo"]),
        (rb"h\*llo", [b"h*llo"], [b"hello"]),
        (rb"h\[a]", [b"h[a]"], [b"ha"]),
        (rb"[\]]", [b"]"], [b"\\"]),
        (b"[abc", [b"a", b"c"], [b"[abc", b"d"]),
        (b"a*b*c", [b"abc", b"axxbxxc", b"abbcc"], [b"ab", b"acb"]),
        (b"\xff*", [b"\xff\x00"], [b"\x00\xff"]),
        (b"*a", [b"a", b"ba", b"aa"], [b"ab"]),
        (b"a\\", [b"a\\"], [b"a"]),
    ],
)
def test_patterns(pattern, matching, other):
    """Each pattern matches these names and not those."""
    matches = matcher(pattern)
    assert [name for name in matching + other if matches(name)] == matching


def test_many_stars_take_no_exponential_time():
    """The pattern that makes recursive matchers hang."""
    began = time.monotonic()
    assert not matcher(b"*a" * 50 + b"b")(b"a" * 2000)
    assert time.monotonic() - began < 5


PIECES = st.sampled_from([b"*", b"?", b"a", b"b", b"[", b"]", b"^", b"-", b"\\", b"[ab]", b"[^a]", b"[a-c]", b"c"])


@given(st.lists(st.lists(PIECES, max_size=7).map(b"".join), min_size=5, max_size=30))
def test_as_redis(redis_port, patterns):
    """A real Redis gives the same keys for any pattern."""
    # No empty key among them: Redis 7.0 takes it that ``**`` does not match it, though ``*`` does.
    names = [b"a", b"b", b"ab", b"ba", b"abc", b"a]", b"[a]", b"^", b"a-c", b"a\\", b"*", b"aab", b"-"]
    with Bare(redis_port) as redis:
        redis.ask("SELECT", "9")
        redis.ask("MSET", *[part for name in names for part in (name, b"1")])
        for pattern in patterns:
            matches = matcher(pattern)
            assert sorted(redis.ask("KEYS", pattern)) == sorted(name for name in names if matches(name)), pattern
