"""Writing values."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cartwheel.core.messages import ClientGet, ClientPut, Failure, Found, PutRequest
from cartwheel.runtime.resp import reply
from cartwheel.runtime.resp.registry import ALL_KEYS, LATER, ONE_KEY, WAIT, Args, Waits, command
from cartwheel.runtime.resp.reply import CommandError
from cartwheel.runtime.resp.steps import PutSlot, Steps

if TYPE_CHECKING:
    from cartwheel.runtime.resp.protocol import Connection


@command("SET key value", "Sets the value of a key.", group="string", keys=ONE_KEY, write=True, by_hand=True)
def set_(connection: Connection, args: Args) -> Waits:
    key = args[1]
    if key in connection.writes or key in connection.reads:
        return WAIT
    connection.writes.add(key)
    slot = PutSlot(connection, key)
    connection.pending.append(slot)
    connection.under_way += 1
    connection.gateway.submit(ClientPut(slot, PutRequest(connection.bucket, key, args[2])))
    return LATER


@command("DEL key...", "Deletes keys.", group="generic", keys=ALL_KEYS, write=True)
def delete(connection: Connection, args: Args) -> Steps:
    keys = list(dict.fromkeys(args[1:]))
    found = yield [ClientGet(None, connection.bucket, key) for key in keys]
    events = []
    wall = connection.gateway.wall_ms()
    for key, one in zip(keys, found, strict=True):
        if not isinstance(one, Found):
            raise CommandError(reply.failure_text(one))
        if any(v.live(wall) for v in one.record.versions):
            events.append(ClientPut(None, PutRequest(connection.bucket, key, None, context=one.record.clock, coordinator=one.coordinator)))
    stored = yield events
    for one in stored:
        if isinstance(one, Failure):
            raise CommandError(reply.failure_text(one))
    return reply.integer(len(stored))
