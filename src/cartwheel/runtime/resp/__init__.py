"""The Redis door: any Redis client can talk to a node through it (``RespServer``).

    server        listens, keeps connections and counts, flushes once per loop turn
    protocol      one connection: order, overlap, limits        parser   bytes -> commands      reply   replies -> bytes
    steps         requests under way                            gateway  what the node offers   registry  the table of commands
    connection  introspection  strings  writes  expiry  keyspace  batch  own  refused            the commands themselves

See docs/reference/redis.md for what each command does, and how it differs from Redis.
"""
