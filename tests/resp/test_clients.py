"""Real clients, as their users run them."""

from __future__ import annotations

import asyncio

import pytest
import redis
import redis.asyncio
from tests.resp.door import DEADLINE_S


@pytest.fixture(params=[2, 3], ids=["resp2", "resp3"])
def client(request, door):
    made = redis.Redis(
        port=door.port, protocol=request.param, client_name="tests", health_check_interval=1, socket_timeout=DEADLINE_S
    )
    with made:
        yield made


def test_values_round_trip(client, key):
    """Text, binary and empty values and keys come back as they went."""
    for value in (b"text", b"", bytes(range(256)), b"\r\n$1\r\n"):
        assert client.set(key, value) is True
        assert client.get(key) == value
        assert client.set(key.encode() + value, value) is True
        assert client.get(key.encode() + value) == value
    assert client.get(key + "/none") is None


def test_expiry(client, key):
    """Expiry is set, read, changed and taken away."""
    assert client.set(key, "1", ex=100)
    assert 90 < client.ttl(key) <= 100
    assert client.expire(key, 1000)
    assert 900_000 < client.pttl(key) <= 1_000_000
    assert client.persist(key)
    assert client.ttl(key) == -1
    assert client.ttl(key + "/none") == -2


def test_an_expired_key_is_gone(client, key):
    """Reading says so, whatever asks."""
    client.set(key, "1", pxat=1)
    assert client.get(key) is None
    assert client.exists(key) == 0
    assert client.ttl(key) == -2
    assert client.delete(key) == 0


def test_many_keys(client, key):
    """Several keys in one command."""
    names = [f"{key}/{number}" for number in range(300)]
    assert client.mset(dict.fromkeys(names, b"v"))
    assert client.mget([*names, key]) == [b"v"] * 300 + [None]
    assert client.exists(*names, names[0]) == 301
    assert client.delete(*names, key) == 300
    assert client.mget(names) == [None] * 300


@pytest.mark.parametrize("transaction", [True, False])
def test_pipelines(client, key, transaction):
    """In both forms a command sees what the ones before it did to its key."""
    pipe = client.pipeline(transaction=transaction)
    pipe.set(key, "1").get(key).append(key, "2").get(key).delete(key).get(key).ping()
    assert pipe.execute() == [True, b"1", 2, b"12", 1, None, True]


def test_a_long_pipeline(client, key):
    """Longer than what may be under way at once."""
    pipe = client.pipeline(transaction=False)
    for number in range(2000):
        pipe.set(f"{key}/{number % 7}", number)
        pipe.get(f"{key}/{number % 7}")
    found = pipe.execute()
    assert found[1::2] == [str(number).encode() for number in range(2000)]


def test_a_wrong_command_in_a_batch_spoils_it(client, key):
    """And nothing of it is run."""
    pipe = client.pipeline()
    pipe.set(key, "1")
    pipe.execute_command("SET", key)
    with pytest.raises(redis.exceptions.ResponseError, match="wrong number of arguments"):
        pipe.execute()
    assert client.get(key) is None


def test_a_megabyte(client, key):
    """The largest value allowed, ten times in one pipeline."""
    value = bytes(range(256)) * 4096
    assert client.set(key, value)
    pipe = client.pipeline(transaction=False)
    for _ in range(10):
        pipe.get(key)
    assert pipe.execute() == [value] * 10


def test_databases_are_apart(door, key):
    """``db=1`` is another bucket."""
    with redis.Redis(port=door.port, db=0) as first, redis.Redis(port=door.port, db=1) as second:
        first.set(key, "first")
        assert second.get(key) is None
        second.set(key, "second")
        assert first.get(key) == b"first"
        assert first.copy(key, key, destination_db=1, replace=True)
        assert second.get(key) == b"first"


def test_the_client_is_known_by_its_name(client):
    """CLIENT LIST and INFO parse as the client expects."""
    assert client.client_getname() in {"tests", b"tests"}
    me = client.client_info()
    assert me["name"] == "tests"
    assert me["lib-name"].startswith("redis-py")
    assert client.client_id() in {int(each["id"]) for each in client.client_list()}
    info = client.info()
    assert info["redis_version"] == "7.4.0"
    assert info["server_name"] == "cartwheel"
    assert info["cluster_enabled"] == 0
    assert client.info("keyspace") is not None


def test_what_clients_ask_at_times(client):
    """Settings, time, commands: parsed without an error."""
    assert client.config_get("save") == {"save": ""}
    assert client.config_get("maxmemory*")["maxmemory"] == "0"
    assert client.command_count() == len(client.command())
    assert client.command_getkeys("SET", "a", "b")[0] in {"a", b"a"}
    assert client.module_list() == []
    assert client.slowlog_get() == []
    assert client.time()[0] > 1_700_000_000
    assert client.acl_whoami() in {"default", b"default"}


def test_scan_finds_every_key(client, key):
    """In pages, with a pattern."""
    names = {f"{key}/{number}".encode() for number in range(200)}
    client.mset(dict.fromkeys(names, b"v"))
    escaped = key.replace("[", r"\[").replace("]", r"\]")
    assert set(client.scan_iter(match=f"{escaped}/*", count=7)) == names
    assert set(client.scan_iter(match=f"{escaped}/1?", count=500)) == {f"{key}/1{n}".encode() for n in range(10)}
    assert set(client.keys(f"{escaped}/*")) == names
    assert list(client.scan_iter(match=f"{escaped}/*", _type="list")) == []
    assert client.randomkey() is not None


@pytest.mark.parametrize(
    ("args", "reason"),
    [
        (("LPUSH", "x", "1"), "LPUSH is not supported: cartwheel stores plain values"),
        (("SET", "x", "1", "NX"), "CONFIG SET resp.allow-best-effort-nx yes"),
        (("SETNX", "x", "1"), "two clients can both succeed"),
        (("INCR", "x"), "would lose increments"),
        (("WATCH", "x"), "linearizable"),
        (("EVAL", "return 1", "0"), "CW.GET"),
        (("FLUSHALL",), "CONFIG SET resp.allow-flush yes"),
        (("CLUSTER", "NODES"), "This instance has cluster support disabled"),
        (("SUBSCRIBE", "x"), "message broker"),
        (("NOSUCH", "x"), "unknown command 'NOSUCH', with args beginning with: 'x'"),
        (("CONFIG", "REWRITE"), "configuration file"),
    ],
)
def test_refusals_say_why_and_leave_the_connection_usable(client, args, reason):
    """One line, and the next command works."""
    with pytest.raises(redis.exceptions.RedisError) as refused:
        client.execute_command(*args)
    assert reason in str(refused.value)
    assert client.ping()


def test_a_cluster_client_is_told_so_at_once(door):
    """It fails on connecting, with a plain reason."""
    with pytest.raises(redis.exceptions.RedisClusterException, match="Cluster mode is not enabled"):
        redis.RedisCluster(host="127.0.0.1", port=door.port)


@pytest.mark.parametrize("protocol", [2, 3])
def test_asyncio_client(door, key, protocol):
    """The asynchronous client does the same, many at a time."""

    async def story() -> None:
        async with redis.asyncio.Redis(port=door.port, protocol=protocol, client_name="a", db=2) as client:
            await client.set(key, "1")
            assert await asyncio.gather(*(client.get(key) for _ in range(50))) == [b"1"] * 50
            async with client.pipeline() as pipe:
                assert await pipe.set(key, "2").get(key).execute() == [True, b"2"]  # type: ignore[attr-defined]  # redis's types

    asyncio.run(story())
