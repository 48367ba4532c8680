"""Record keys and seals. (Engines and the Store have one contract test, with the engines.)"""

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cartwheel.core.errors import CorruptData
from cartwheel.core.storage import (
    BUCKET_BYTES_MAX,
    BUFFER_S,
    BUFFER_WRITES,
    MemoryEngine,
    Space,
    Store,
    record_key,
    seal,
    split_record_key,
    unseal,
)
from cartwheel.core.types import Durability

buckets = st.text(max_size=60)


@given(buckets, st.binary(max_size=80))
def test_a_record_key_names_its_bucket_and_key(bucket, key):
    """It splits into what it was made of, and begins with the position: MD5 of bucket and key (section 4.1)."""
    at = record_key(bucket, key)
    assert split_record_key(at) == (bucket, key)
    assert at[:16] == hashlib.md5(at[16:]).digest()


def test_record_keys_of_other_buckets_differ():
    """("a", b"bc") is not ("ab", b"c"): the length of the bucket's name parts them."""
    assert record_key("a", b"bc") != record_key("ab", b"c")


def test_the_bytes_of_a_record_key():
    """Where a record lies must not change by accident."""
    assert record_key("0", b"cart:7") == bytes.fromhex("af80234a26509306348e9c16741f05aa") + b"\x010cart:7"


def test_the_longest_bucket_name():
    """255 bytes of UTF-8 fit, 256 do not."""
    name = "é" * 127 + "x"
    assert len(name.encode()) == BUCKET_BYTES_MAX
    assert split_record_key(record_key(name, b"k")) == (name, b"k")
    with pytest.raises(ValueError, match="byte"):
        record_key(name + "x", b"k")


@pytest.mark.parametrize("bad", [b"", b"x" * 16, b"x" * 16 + b"\x02\xff\xff"])
def test_what_is_no_record_key_is_corrupt(bad):
    """Too short to hold a position and a length, or a bucket name that is no text."""
    with pytest.raises(CorruptData):
        split_record_key(bad)


@given(st.binary(max_size=40), st.binary(max_size=40))
def test_a_seal_holds(key, record):
    """What was sealed under a key is read back under it, without a copy."""
    sealed = seal(key, record)
    assert unseal(key, sealed) == record
    assert isinstance(unseal(key, sealed), memoryview)
    assert unseal(key, sealed).obj is sealed


def test_the_bytes_of_a_seal():
    """A record sealed by this version is read by all later ones."""
    assert seal(b"key", b"record").hex() == "da17411a6ff3adf0" + b"record".hex()


def test_every_flipped_bit_is_found():
    """In the checksum or in the record; so is every truncation, and a record that lies under another key."""
    key, sealed = record_key("0", b"cart:7"), seal(record_key("0", b"cart:7"), b"\x92\x80\x90 some record")
    for at in range(len(sealed)):
        for bit in range(8):
            flipped = bytearray(sealed)
            flipped[at] ^= 1 << bit
            with pytest.raises(CorruptData, match="cart:7"):
                unseal(key, bytes(flipped))
        with pytest.raises(CorruptData):
            unseal(key, sealed[:at])
    with pytest.raises(CorruptData):
        unseal(record_key("0", b"cart:8"), sealed)


def test_when_the_open_group_is_due():
    """At once if somebody waits for it; else once it is old enough, or large enough, and never if it is empty."""
    store = Store(MemoryEngine())
    assert not store.due(100.0)
    store.stage(Space.RECORDS, b"k", b"1", Durability.MEMORY)
    assert not store.due(200.0)
    store.stage(Space.META, b"k", b"1", Durability.MEMORY)
    assert not store.due(200.0 + BUFFER_S * 0.9)
    assert store.due(200.0 + BUFFER_S)
    store.take()
    store.committed()
    assert not store.due(300.0)
    for i in range(BUFFER_WRITES - 1):
        store.stage(Space.RECORDS, b"%d" % i, b"1", Durability.MEMORY)
    store.stage(Space.RECORDS, b"0", b"2", Durability.MEMORY)
    assert not store.due(300.0)
    store.stage(Space.HINTS, b"k", None, Durability.MEMORY)
    assert store.due(300.0)
    store.take()
    store.committed()
    store.stage(Space.RECORDS, b"k", b"1", Durability.OS)
    assert store.due(300.0)
