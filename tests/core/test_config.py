"""Bucket properties: from texts, within their ranges, and as the history gives them."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cartwheel.core.config import DURABILITY, MIB, PROPERTY_NAMES, BucketProps, bucket_props, lenient_bucket_props
from cartwheel.core.errors import ConfigError
from cartwheel.core.types import Durability, make_actor, node_of


def test_defaults():
    """The paper's common configuration (section 6): "(3,2,2)"; synced, and with siblings."""
    props = BucketProps().check()
    assert (props.n, props.r, props.w, props.pr, props.pw) == (3, 2, 2, 0, 0)
    assert (props.durability, props.reconcile, props.resp_siblings) == ("sync", "siblings", "newest")
    assert (props.value_bytes_max, props.key_bytes_max) == (1 << 20, 1 << 16)
    assert (props.siblings_warn, props.siblings_max) == (25, 100)
    assert DURABILITY == {
        "sync": Durability.SYNC,
        "one": Durability.MEMORY,
        "os": Durability.OS,
        "memory": Durability.MEMORY,
    }
    assert Durability.MEMORY < Durability.OS < Durability.SYNC


def test_texts_become_properties():
    """Every property can be set by text, on top of what was there."""
    texts = {
        "n": "5", "r": "1", "w": "5", "pr": "1", "pw": "5", "durability": "os", "reconcile": "lww", "resp_siblings": "error",
        "value_bytes_max": "10", "key_bytes_max": "11", "siblings_warn": "12", "siblings_max": "13",
    }  # fmt: skip
    assert set(texts) == set(PROPERTY_NAMES)
    props = bucket_props(texts)
    assert {name: str(value) for name, value in msgspec.structs.asdict(props).items()} == texts
    assert bucket_props({"r": "2"}, props) == msgspec.structs.replace(props, r=2)
    assert bucket_props({}) == BucketProps()


def test_ranges_are_inclusive():
    """The least and the most of every property."""
    least = {"n": 1, "r": 1, "w": 1, "pr": 0, "pw": 0}
    least |= {"value_bytes_max": 1, "key_bytes_max": 1, "siblings_warn": 1, "siblings_max": 1}
    most = dict.fromkeys(["n", "r", "w", "pr", "pw"], 15)
    most |= {"value_bytes_max": 67108864, "key_bytes_max": 65536, "siblings_warn": 10_000, "siblings_max": 10_000}
    for values in (least, most):
        assert bucket_props({name: str(value) for name, value in values.items()}) == BucketProps(**values)
    for name in ("value_bytes_max", "key_bytes_max", "siblings_warn", "siblings_max"):
        with pytest.raises(ConfigError, match=name):
            bucket_props({name: str(most[name] + 1)})


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        ({"m": "3"}, "unknown bucket property 'm'; known are n, r, w"),
        ({"n": "three"}, "n='three' must be a whole number"),
        ({"n": ""}, "n='' must be a whole number"),
        ({"durability": "fast"}, "durability='fast' must be one of sync, one, os, memory"),
        ({"reconcile": "LWW"}, "reconcile='LWW' must be one of siblings, lww"),
        ({"n": "0"}, "n=0 must lie between 1 and 15"),
        ({"n": "16"}, "n=16 must lie between 1 and 15"),
        ({"r": "4"}, "r=4 must lie between 1 and 3"),
        ({"w": "0"}, "w=0 must lie between 1 and 3"),
        ({"pr": "4"}, "pr=4 must lie between 0 and 3"),
        ({"pw": "-1"}, "pw=-1 must lie between 0 and 3"),
        ({"value_bytes_max": str(64 * MIB + 1)}, "value_bytes_max=67108865 must lie"),
        ({"key_bytes_max": "0"}, "key_bytes_max=0 must lie"),
        ({"siblings_warn": "0"}, "siblings_warn=0 must lie"),
        ({"siblings_max": "10001"}, "siblings_max=10001 must lie"),
        ({"n": "1"}, "r=2 must lie between 1 and 1"),
    ],
)
def test_bad_texts_are_refused(texts, message):
    """Each row is refused with a text that names the property and says what would do."""
    with pytest.raises(ConfigError, match=message):
        bucket_props(texts)


@pytest.mark.parametrize(
    ("texts", "expected", "exact"),
    [
        ({}, {}, True),
        ({"n": "1", "r": "1", "w": "1"}, {"n": 1, "r": 1, "w": 1}, True),
        (
            {"n": "1", "r": "1", "w": "1", "colour": "red"},
            {"n": 1, "r": 1, "w": 1},
            False,
        ),  # the known ones still count
        ({"reconcile": "crdt", "n": "5"}, {"n": 5}, False),
        ({"n": "1", "w": "3"}, {"n": 1, "r": 1, "w": 1}, False),  # two administrators, both right when they spoke
        ({"n": "99", "r": "20"}, {"n": 15, "r": 15}, False),
        ({"w": "x", "r": "1"}, {"r": 1}, False),
    ],
)
def test_the_history_is_read_leniently(texts, expected, exact):
    """Each row: what the history says of a bucket, what this version makes of it, and whether that is all of it."""
    assert lenient_bucket_props(texts) == (msgspec.structs.replace(BucketProps(), **expected), exact)


texts_of_newer_versions = st.dictionaries(
    st.sampled_from(PROPERTY_NAMES) | st.text(max_size=5),
    st.integers(-3, 20).map(str) | st.sampled_from(["sync", "lww", "error", "10000000000"]) | st.text(max_size=5),
)


@given(texts_of_newer_versions)
def test_whatever_the_history_says_the_properties_are_valid(texts):
    """Reading leniently never fails, and takes valid texts exactly as ``bucket_props`` does."""
    props, exact = lenient_bucket_props(texts)
    props.check()
    try:
        assert (props, True) == (bucket_props(texts), exact)
    except ConfigError:
        assert not exact


def test_actors():
    """An actor is a node during a stint; its node can be told from it."""
    assert make_actor("n1", "7k") == "n1/7k"
    assert node_of("n1/7k") == "n1"
