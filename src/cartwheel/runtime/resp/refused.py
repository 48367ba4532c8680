"""Commands of Redis that are refused, each with its reason and a way out.

Only names that Redis itself lacks are "unknown": whoever moves an application here should read why something does not work.
"""

from __future__ import annotations

from cartwheel.runtime.resp.registry import refuse

PLAIN = "is not supported: cartwheel stores plain values"
_HINTS = {
    "list": "keep one key per element, or the whole list as one value and write it with CW.PUT and its context",
    "set": "keep one key per member, or the whole set as one value and merge its siblings (CW.GET, CW.PUT)",
    "hash": "use one key per field, e.g. user:1:name",
    "sorted-set": "keep the scores in a value of your own and merge its siblings (CW.GET, CW.PUT)",
    "stream": "use a log or queue service for streams",
    "pubsub": "use a message broker for publish and subscribe",
    "geo": "keep positions in values of your own",
    "hyperloglog": "keep one key per element, or sketch in the application",
    "bitmap": "read the value with GETRANGE and write it with SETRANGE, byte by byte",
}
_NAMES = {
    "list": "BLMOVE BLMPOP BLPOP BRPOP BRPOPLPUSH LINDEX LINSERT LLEN LMOVE LMPOP LPOP LPOS LPUSH LPUSHX LRANGE LREM LSET"
    " LTRIM RPOP RPOPLPUSH RPUSH RPUSHX",
    "set": "SADD SCARD SDIFF SDIFFSTORE SINTER SINTERCARD SINTERSTORE SISMEMBER SMEMBERS SMISMEMBER SMOVE SPOP SRANDMEMBER"
    " SREM SSCAN SUNION SUNIONSTORE",
    "hash": "HDEL HEXISTS HEXPIRE HEXPIREAT HEXPIRETIME HGET HGETALL HINCRBY HINCRBYFLOAT HKEYS HLEN HMGET HMSET HPERSIST"
    " HPEXPIRE HPEXPIREAT HPEXPIRETIME HPTTL HRANDFIELD HSCAN HSET HSETNX HSTRLEN HTTL HVALS",
    "sorted-set": "BZMPOP BZPOPMAX BZPOPMIN ZADD ZCARD ZCOUNT ZDIFF ZDIFFSTORE ZINCRBY ZINTER ZINTERCARD ZINTERSTORE"
    " ZLEXCOUNT ZMPOP ZMSCORE ZPOPMAX ZPOPMIN ZRANDMEMBER ZRANGE ZRANGEBYLEX ZRANGEBYSCORE ZRANGESTORE ZRANK ZREM"
    " ZREMRANGEBYLEX ZREMRANGEBYRANK ZREMRANGEBYSCORE ZREVRANGE ZREVRANGEBYLEX ZREVRANGEBYSCORE ZREVRANK ZSCAN ZSCORE"
    " ZUNION ZUNIONSTORE",
    "stream": "XACK XADD XAUTOCLAIM XCLAIM XDEL XGROUP XINFO XLEN XPENDING XRANGE XREAD XREADGROUP XREVRANGE XSETID XTRIM",
    "pubsub": "PSUBSCRIBE PUBLISH PUBSUB PUNSUBSCRIBE SPUBLISH SSUBSCRIBE SUBSCRIBE SUNSUBSCRIBE UNSUBSCRIBE",
    "geo": "GEOADD GEODIST GEOHASH GEOPOS GEORADIUS GEORADIUSBYMEMBER GEORADIUSBYMEMBER_RO GEORADIUS_RO GEOSEARCH"
    " GEOSEARCHSTORE",
    "hyperloglog": "PFADD PFCOUNT PFDEBUG PFMERGE PFSELFTEST",
    "bitmap": "BITCOUNT BITFIELD BITFIELD_RO BITOP BITPOS GETBIT SETBIT",
}
for _group, _names in _NAMES.items():
    for _name in _names.split():
        refuse(_name, f"{_name} {PLAIN} ({_HINTS[_group]})", group=_group)

_COUNTERS = (
    "is not supported: read and write again would lose increments where two nodes count at once, and there are no merging"
    " counters yet (keep one key per writer, and sum them up)"
)
for _name in ("INCR", "INCRBY", "DECR", "DECRBY"):
    refuse(_name, f"{_name} {_COUNTERS}", group="string")
refuse("INCRBYFLOAT", f"INCRBYFLOAT {_COUNTERS}", group="string")
refuse("LCS", "LCS is not supported: read both values and compare them in the application", group="string")

refuse(
    "WATCH",
    "WATCH needs linearizable reads, which a leaderless store does not have (read with CW.GET and write with the context:"
    " what was written meanwhile stays as a sibling)",
    group="transactions",
)
_SCRIPTS = (
    "is not supported: a script would need one place where all its keys are, and nodes here share none (use CW.GET and CW.PUT"
    " in the application)"
)
for _name in ("EVAL", "EVALSHA", "EVAL_RO", "EVALSHA_RO", "SCRIPT", "FUNCTION", "FCALL", "FCALL_RO"):
    refuse(_name, f"{_name} {_SCRIPTS}", group="scripting")

_REPLICATION = (
    "is not supported: replication is by the ring, every node takes writes (see CW.RING and the bucket property w)"
)
for _name in ("WAIT", "WAITAOF", "REPLICAOF", "SLAVEOF", "PSYNC", "SYNC", "REPLCONF", "FAILOVER"):
    refuse(_name, f"{_name} {_REPLICATION}", group="server")
for _name in ("ROLE",):
    refuse(_name, f"{_name} is not supported: all nodes are equal (see CW.STATUS)", group="server")
for _name in ("BGSAVE", "SAVE", "BGREWRITEAOF", "LASTSAVE"):
    refuse(
        _name,
        f"{_name} is not supported: every acknowledged write is durable already (bucket property durability)",
        group="server",
    )
for _name in ("DUMP", "RESTORE", "RESTORE-ASKING", "MIGRATE"):
    refuse(
        _name,
        f"{_name} is not supported: Redis's own data format is not understood here (copy keys with GET and SET)",
        group="generic",
    )
for _name in ("MOVE", "SWAPDB"):
    refuse(
        _name,
        f"{_name} is not supported: buckets are independent of each other (COPY key newkey DB n, then DEL)",
        group="generic",
    )
for _name in ("SORT", "SORT_RO"):
    refuse(_name, f"{_name} {PLAIN} (sort in the application)", group="generic")
refuse(
    "MONITOR",
    "MONITOR is not supported: it would slow every request down (see INFO, CLIENT LIST and CW.STATUS)",
    group="server",
)
refuse("SHUTDOWN", "SHUTDOWN is not supported: stop the node's process with a signal, it ends in order", group="server")
refuse("DEBUG", "DEBUG is not supported", group="server")
refuse("LOLWUT", "LOLWUT is not supported", group="server")
for _name in ("ASKING", "READONLY", "READWRITE", "CLUSTER"):
    # Word for word as Redis without a cluster: cluster clients look for it, and fall back or say so.
    refuse(_name, "This instance has cluster support disabled", group="cluster")
