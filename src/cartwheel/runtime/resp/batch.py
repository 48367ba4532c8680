"""MULTI ... EXEC: a batch that is sent at once and answered at once, but neither isolated nor atomic.

EXEC answers an array, and the commands answer its elements: so EXEC writes only the array's header and puts the commands in
front of whatever else waits. They run like a pipeline: those that touch the same key in order, others side by side.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from cartwheel.runtime.resp import reply
from cartwheel.runtime.resp.registry import Args, command
from cartwheel.runtime.resp.reply import CommandError

if TYPE_CHECKING:
    from cartwheel.runtime.resp.protocol import Connection

NOTE = "a batch, not isolated: others see it half done, and a failed command stops none of the others"


@command("MULTI", "Begins a batch.", group="transactions", flags="noscript fast", in_multi=True, note=NOTE)
def multi(connection: Connection, args: Args) -> bytes:
    if connection.gateway.settings.multi == "refuse":
        raise CommandError(
            "ERR MULTI is refused here: a leaderless store cannot isolate a transaction. To run batches in order without"
            " isolation: CONFIG SET resp.multi batch"
        )
    if connection.queue is not None:
        raise CommandError("ERR MULTI calls can not be nested")
    connection.queue = []
    connection.multi_failed = False
    return reply.OK


@command("EXEC", "Runs the batch.", group="transactions", flags="noscript", in_multi=True, note=NOTE)
def exec_(connection: Connection, args: Args) -> bytes:
    batch = connection.queue
    if batch is None:
        raise CommandError("ERR EXEC without MULTI")
    connection.queue = None
    if connection.multi_failed:
        raise CommandError("EXECABORT Transaction discarded because of previous errors.")
    connection.put_first(batch)
    return b"*%d\r\n" % len(batch)


@command("DISCARD", "Forgets the batch.", group="transactions", flags="noscript fast", in_multi=True)
def discard(connection: Connection, args: Args) -> bytes:
    if connection.queue is None:
        raise CommandError("ERR DISCARD without MULTI")
    connection.queue = None
    return reply.OK


@command("UNWATCH", "Accepted: nothing is ever watched.", group="transactions", flags="noscript fast")
def unwatch(connection: Connection, args: Args) -> bytes:
    return reply.OK
