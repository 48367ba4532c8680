"""CW.*: contexts, siblings, buckets, and the cluster's state."""

from __future__ import annotations

import json

import pytest
from tests.resp.door import Bare, running_door

from cartwheel import __version__
from cartwheel.core.context import Context, decode_token, encode_token
from cartwheel.core.messages import PROTOCOL_MAX


def test_the_shopping_cart(bare, key):
    """Two writes of the same context make siblings; one that has seen both makes them one."""
    context, values = bare.ask("CW.GET", key)
    assert values == []
    bare.ask("CW.PUT", key, "milk", "CONTEXT", context)
    bare.ask("CW.PUT", key, "bread", "CONTEXT", context)
    context, values = bare.ask("CW.GET", key)
    assert sorted(values) == [b"bread", b"milk"]
    bare.ask("CW.PUT", key, "bread,milk", "CONTEXT", context)
    assert bare.ask("CW.GET", key)[1] == [b"bread,milk"]


def test_a_put_returns_the_context_for_the_next(bare, key):
    """A chain of puts by one client leaves one value."""
    context = bare.ask("CW.PUT", key, "1")
    context = bare.ask("CW.PUT", key, "2", "CONTEXT", context)
    bare.ask("CW.PUT", key, "3", "CONTEXT", context)
    assert bare.ask("CW.GET", key)[1] == [b"3"]


def test_the_context_after_a_put_covers_no_sibling_unseen(bare, key):
    """What another wrote meanwhile stays."""
    bare.ask("CW.PUT", key, "other")
    context = bare.ask("CW.PUT", key, "mine")
    bare.ask("CW.PUT", key, "mine again", "CONTEXT", context)
    assert sorted(bare.ask("CW.GET", key)[1]) == [b"mine again", b"other"]


def test_contexts_cover_what_was_noted():
    """Single writes that were superseded unseen are in the context of a put and of a get, and in the explanation."""
    home = {"secret": b"secret", "bucket": "0", "key": b"k"}
    token = encode_token(Context({}, "", (("z/1", 5),)), **home)
    with running_door() as door, Bare(door.port) as bare:
        assert decode_token(bare.ask("CW.PUT", "k", "1", "CONTEXT", token), **home).dots == (("z/1", 5),)
        bare.ask("APPEND", "k", "2")
        assert decode_token(bare.ask("CW.GET", "k")[0], **home).dots == (("z/1", 5),)
        assert json.loads(bare.ask("CW.EXPLAIN", "k", "JSON"))["merged"]["cloud"] == [["z/1", 5]]
        assert decode_token(bare.ask("CW.DEL", "k"), **home).dots == (("z/1", 5),)


def test_without_a_context_a_put_supersedes_nothing(bare, key):
    """Unlike SET."""
    bare.ask("SET", key, "1")
    bare.ask("CW.PUT", key, "2")
    assert sorted(bare.ask("CW.GET", key)[1]) == [b"1", b"2"]
    bare.ask("SET", key, "3")
    assert bare.ask("CW.GET", key)[1] == [b"3"]


def test_delete(bare, key):
    """With a context only what it covers; without, what is read; and the context afterwards serves to write again."""
    bare.ask("CW.PUT", key, "1")
    old, _ = bare.ask("CW.GET", key)
    bare.ask("CW.PUT", key, "2")
    bare.ask("CW.DEL", key, "CONTEXT", old)
    assert bare.ask("CW.GET", key)[1] == [b"2"]
    context = bare.ask("CW.DEL", key)
    assert bare.ask("CW.GET", key)[1] == []
    assert bare.ask("GET", key) is None
    bare.ask("CW.PUT", key, "3", "CONTEXT", context)
    assert bare.ask("CW.GET", key)[1] == [b"3"]


def test_a_plain_get_shows_the_newest_and_counts(bare, door, key):
    """Or says that there are several, where the bucket wants it."""
    bare.ask("CW.PUT", key, "1")
    bare.ask("CW.PUT", key, "2")
    before = door.server.siblings_hidden
    assert bare.ask("GET", key) == b"2"
    assert door.server.siblings_hidden == before + 1
    bucket = f"b{abs(hash(key)) % 10**9}"
    assert bare.ask("CW.BUCKET", "SET", bucket, "resp_siblings", "error") == b"OK"
    assert bare.ask("SELECT", bucket) == b"OK"
    bare.ask("CW.PUT", key, "1")
    bare.ask("CW.PUT", key, "2")
    expected = "SIBLINGS key has 2 concurrent values, read them with CW.GET"
    assert bare.error("GET", key) == expected
    assert bare.error("APPEND", key, "x") == expected
    assert bare.ask("EXISTS", key) == 1
    assert bare.ask("DEL", key) == 1
    assert bare.ask("GET", key) is None


def test_a_request_id_makes_a_retry_harmless(bare, key):
    """The same write twice is one value."""
    for _ in range(2):
        bare.ask("CW.PUT", key, "1", "ID", "request-1")
    assert bare.ask("CW.GET", key)[1] == [b"1"]


def test_expiry(bare, key):
    """EX gives a value its end."""
    bare.ask("CW.PUT", key, "1", "EX", "100")
    assert 90 < bare.ask("TTL", key) <= 100


@pytest.mark.parametrize(
    ("args", "error"),
    [
        (("CW.GET", "k", "R", "0"), "ERR R=0 must lie between 1 and n="),
        (("CW.GET", "k", "R", "16"), "ERR R=16 must lie between 1 and n="),
        (("CW.GET", "k", "R", "x"), "ERR value is not an integer"),
        (("CW.PUT", "k", "v", "W", "16"), "ERR W=16 must lie between 1 and n="),
        (("CW.PUT", "k", "v", "CONTEXT", "abc"), "BADCONTEXT the context is damaged"),
        (("CW.PUT", "k", "v", "CONTEXT", "\xff"), "BADCONTEXT the context is damaged"),
        (("CW.PUT", "k", "v", "CONTEXT"), "ERR syntax error: CONTEXT needs a value"),
        (("CW.PUT", "k", "v", "FOO", "1"), "ERR syntax error: unexpected 'FOO', CW.PUT knows CONTEXT W EX ID BUCKET"),
        (("CW.PUT", "k", "v", "EX", "0"), "ERR invalid expire time"),
        (("CW.PUT", "k", "v", "ID", "x" * 65), "ERR ID of 65 bytes is longer than 64"),
        (("CW.PUT", "k"), "ERR wrong number of arguments for 'cw.put' command"),
        (("CW.DEL", "k", "R", "1"), "ERR syntax error: unexpected 'R'"),
        (("CW.BUCKET", "SET", "b", "foo", "1"), "ERR"),
        (("CW.BUCKET", "SET", "b", "n", "99"), "ERR"),
        (("CW.BUCKET", "SET", "b", "n"), "ERR wrong number of arguments for 'cw.bucket|set' command"),
        (("CW.BUCKET", "SET", "a b", "n", "1"), "ERR invalid DB index"),
        (("CW.BUCKET", "FOO"), "ERR unknown subcommand 'FOO'. Try CW.BUCKET HELP."),
        (("CW.GET", "k", "BUCKET", "99"), "ERR DB index is out of range"),
        (("CW.STATUS", "FOO"), "ERR syntax error"),
        (("CW.DIGESTS", "x"), "ERR value is not an integer"),
        (("CW.DIGESTS", "-1"), "ERR partitions are numbered from 0 to"),
        (("CW.DIGESTS", "0", "FOO", "1"), "ERR syntax error: unexpected 'FOO', CW.DIGESTS knows CURSOR"),
        (("CW.DIGESTS", "0", "CURSOR"), "ERR syntax error: unexpected 'CURSOR'"),
        (("CW.DIGESTS", "0", "CURSOR", "xyz"), "ERR no such cursor"),
    ],
)
def test_errors(bare, args, error):
    """Each says what is wrong."""
    assert bare.error(*args).startswith(error)


def test_a_context_serves_only_its_own_key(bare, key):
    """It would supersede what its holder never read."""
    context = bare.ask("CW.PUT", key, "1")
    assert bare.error("CW.PUT", key + "2", "1", "CONTEXT", context).startswith("BADCONTEXT")
    assert bare.error("CW.PUT", key, "1", "CONTEXT", context, "BUCKET", "1").startswith("BADCONTEXT")


def test_explain(bare, key):
    """Readable as nested names and values, as a map, and as JSON."""
    bare.ask("CW.PUT", key, "1")
    flat = bare.ask("CW.EXPLAIN", key)
    told = json.loads(bare.ask("CW.EXPLAIN", key, "JSON"))
    assert flat[::2] == [name.encode() for name in told]
    assert told["replicas"]["n1"] == told["merged"]
    assert told["merged"]["versions"][0]["bytes"] == 1
    assert len(told["position"]) == 32
    bare.ask("HELLO", "3")
    assert bare.ask("CW.EXPLAIN", key)[b"partition"] == told["partition"]


def test_status_and_ring(bare):
    """The node tells its name, members, what they run, and partitions."""
    status = json.loads(bare.ask("CW.STATUS", "JSON"))
    assert status["node"] == "n1"
    assert [(m["node"], m["version"], m["protocol"]) for m in status["members"]] == [("n1", __version__, PROTOCOL_MAX)]
    ring = json.loads(bare.ask("CW.RING", "JSON"))
    assert ring["members"]["n1"]["partitions"] == status["q"]
    assert b"members" in bare.ask("CW.RING")
    assert b"n1" in bare.ask("CW.STATUS")


def test_digests(bare, key):
    """One row for each key of a partition, with the position, the checksum, and whether there is a value."""
    bare.ask("CW.PUT", key, "1")
    told = json.loads(bare.ask("CW.EXPLAIN", key, "JSON"))
    flat = bare.ask("CW.DIGESTS", str(told["partition"]))
    page = dict(zip(flat[::2], flat[1::2], strict=True))
    assert page[b"preference"] == [b"n1"]
    assert (page[b"cursor"], page[b"unreadable"]) == (b"", b"")
    (row,) = [row for row in page[b"rows"] if row[2] == key.encode()]
    assert (row[0].decode(), row[1], row[4]) == (told["position"], b"0", b"live")
    assert len(bytes.fromhex(row[3].decode())) == 8
    owners = page[b"owners"]
    assert dict(zip(owners[::2], owners[1::2], strict=True))[b"0"] == 1
    assert bare.ask("CW.DIGESTS", str(told["partition"]), "CURSOR", "f" * 40)[-1] == []


def test_buckets(bare, door, key):
    """Properties are set by name and seen in the bucket."""
    bucket = f"c{abs(hash(key)) % 10**9}"
    assert bare.ask("CW.BUCKET", "SET", bucket, "value_bytes_max", "10", "siblings_max", "7") == b"OK"
    assert json.loads(bare.ask("CW.BUCKET", "GET", bucket, "JSON"))["value_bytes_max"] == 10
    assert b"siblings_max" in bare.ask("CW.BUCKET", "GET", bucket)
    assert bucket.encode() in bare.ask("CW.BUCKET", "LIST")
    assert bare.error("CW.PUT", key, "x" * 11, "BUCKET", bucket).startswith("TOOBIG value of 11 bytes exceeds")
    with Bare(door.port) as other:
        other.ask("SELECT", bucket)
        assert other.error("SET", key, "x" * 11).startswith("TOOBIG value of 11 bytes exceeds the limit of 10 bytes")


def test_hints(bare):
    """What each member keeps for whom, or why that is not known. (The real node is alone and keeps none.)"""
    kept = {"intended": "n2", "hints": 3, "bytes": 4000, "age_s": 1.5, "delivering": False, "waits": "unreachable"}
    told = json.loads(bare.ask("CW.HINTS", "JSON"))
    assert told in ({"n1": []}, {"n1": [kept], "n2": {"error": "connection lost"}})
    flat = bare.ask("CW.HINTS")
    assert flat[::2] == [name.encode() for name in told]
    assert flat[3:] in ([], [[b"error", b"connection lost"]])
    assert bare.error("CW.HINTS", "FOO").startswith("ERR syntax error")


def test_repair(bare):
    """Starts one, and tells how far it is; in JSON for programs. (The real node is alone: it has nobody to compare with.)"""
    begun = bare.ask("CW.REPAIR", "START", "PARTITION", "3", "WITH", "n2", "JSON")
    if not isinstance(begun, bytes):
        assert str(begun) == "ERR n1 shares not partition 3 with n2"
        assert bare.error("CW.REPAIR", "STATUS") == "ERR no repair was asked for since this node started"
        return
    told = json.loads(begun)
    assert (told["id"], told["total"], told["finished"]) == (7, 1, False)
    plain = bare.ask("CW.REPAIR", "START")
    assert plain[plain.index(b"total") + 1] == 1024
    status = json.loads(bare.ask("CW.REPAIR", "STATUS", "json"))
    assert (status["done"], status["failed"], status["reasons"]) == (1000, 24, {"n2": "connection lost"})


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["START", "PARTITION"], "ERR syntax error: PARTITION needs a value"),
        (["START", "PARTITION", "x"], "ERR value is not an integer or out of range"),
        (["START", "ALL"], "ERR syntax error: unexpected 'ALL', CW.REPAIR START knows PARTITION WITH JSON"),
        (["START", "WITH", "n9"], "ERR n1 shares no partition with n9"),
        (["STATUS", "NOW"], "ERR syntax error: unexpected 'NOW', CW.REPAIR knows JSON"),
    ],
)
def test_a_repair_that_cannot_be(bare, words, text):
    """It is said why."""
    assert bare.error("CW.REPAIR", *words) == text
