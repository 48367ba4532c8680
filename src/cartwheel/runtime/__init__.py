"""The driver of a real node: asyncio, sockets, a storage engine and a commit thread around the pure core."""
