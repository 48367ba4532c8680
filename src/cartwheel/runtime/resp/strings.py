"""Reading values."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cartwheel.core.messages import ClientGet
from cartwheel.runtime.resp.registry import LATER, ONE_KEY, WAIT, Args, Waits, command
from cartwheel.runtime.resp.steps import GetSlot

if TYPE_CHECKING:
    from cartwheel.runtime.resp.protocol import Connection


@command("GET key", "The value of a key.", group="string", keys=ONE_KEY, flags="fast", by_hand=True)
def get(connection: Connection, args: Args) -> Waits:
    key = args[1]
    if key in connection.writes:
        return WAIT
    reads = connection.reads
    reads[key] = reads.get(key, 0) + 1
    slot = GetSlot(connection, key)
    connection.pending.append(slot)
    connection.under_way += 1
    connection.gateway.submit(ClientGet(slot, connection.bucket, key))
    return LATER
