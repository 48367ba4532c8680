"""Commands of our own for operators: who is to be in the ring (section 4.8.1: "an administrator uses a command line tool").

    CW.CLUSTER LEAVE n4      ->  staged        CW.CLUSTER PLAN    ->  what it would do, and a digest
    CW.CLUSTER WEIGHT n2 2   ->  staged        CW.CLUSTER COMMIT  ->  all that is staged, if the plan is still that one

Any member will do: what is staged at one is known to all.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from cartwheel.core.clock import wall_ms_of
from cartwheel.core.messages import Administered, ClientAbandon, ClientCommit, ClientJoin, ClientStage, Failure, Result
from cartwheel.runtime.addresses import split_address
from cartwheel.runtime.resp import reply
from cartwheel.runtime.resp.access import text
from cartwheel.runtime.resp.registry import Args, command, container
from cartwheel.runtime.resp.reply import CommandError, failure_text
from cartwheel.runtime.resp.steps import Steps

if TYPE_CHECKING:
    from cartwheel.runtime.resp.protocol import Connection

container("CW.CLUSTER", "Who is in the ring: staging, planning and committing changes.", group="cartwheel")


def _administered(result: Result) -> bytes:
    if isinstance(result, Failure):
        raise CommandError(failure_text(result))
    assert isinstance(result, Administered), result
    return reply.bulk(result.text)


def _flag(args: Args, at: int, name: str) -> bool:
    """Whether the words from ``at`` on are this one; there may be no other."""
    rest = [text(word).upper() for word in args[at:]]
    if rest not in ([], [name]):
        which = f"{text(args[0])} {text(args[1])}".upper()
        raise CommandError(f"ERR syntax error: unexpected '{text(args[at])}', {which} knows {name}")
    return bool(rest)


@command("CW.CLUSTER|LEAVE node", "Stages that a member hands over all it holds, and leaves.", group="cartwheel")
def cw_cluster_leave(connection: Connection, args: Args) -> Steps:
    del connection
    return _administered((yield ClientStage(None, "leave", text(args[2]))))


@command("CW.CLUSTER|REMOVE node", "Stages that a dead node is removed, for ever.", group="cartwheel")
def cw_cluster_remove(connection: Connection, args: Args) -> Steps:
    del connection
    return _administered((yield ClientStage(None, "remove", text(args[2]))))


@command(
    "CW.CLUSTER|REPLACE old new [DEAD]",
    "Stages that a node which has asked to join takes over what another one owns.",
    group="cartwheel",
)
def cw_cluster_replace(connection: Connection, args: Args) -> Steps:
    del connection
    dead = _flag(args, 4, "DEAD")
    return _administered((yield ClientStage(None, "replace", text(args[2]), text(args[3]), barred=dead)))


@command("CW.CLUSTER|WEIGHT node weight", "Stages another weight for a member.", group="cartwheel")
def cw_cluster_weight(connection: Connection, args: Args) -> Steps:
    del connection
    try:
        weight = float(args[3])
    except ValueError:
        raise CommandError(f"ERR the weight must be a number, not '{text(args[3])}'") from None
    return _administered((yield ClientStage(None, "reweigh", text(args[2]), weight=weight)))


@command(
    "CW.CLUSTER|ZONE node zone [host]",
    "Stages that a member stands in another zone, or on another machine.",
    group="cartwheel",
)
def cw_cluster_zone(connection: Connection, args: Args) -> Steps:
    del connection
    host = text(args[4]) if len(args) > 4 else ""
    return _administered((yield ClientStage(None, "relocate", text(args[2]), zone=text(args[3]), host=host)))


@command("CW.CLUSTER|DOUBLE", "Stages that the ring has twice as many partitions.", group="cartwheel")
def cw_cluster_double(connection: Connection, args: Args) -> Steps:
    del connection, args
    return _administered((yield ClientStage(None, "double")))


@command("CW.CLUSTER|PLAN [JSON]", "What the staged changes would do.", group="cartwheel")
def cw_cluster_plan(connection: Connection, args: Args) -> bytes:
    as_json = _flag(args, 2, "JSON")
    told = connection.gateway.plan()
    if as_json:
        return reply.bulk(msgspec.json.encode(told))
    return reply.plain(msgspec.to_builtins(told), connection.resp3)


@command("CW.CLUSTER|COMMIT [DIGEST digest] [FORCE]", "Carries out what is staged.", group="cartwheel")
def cw_cluster_commit(connection: Connection, args: Args) -> Steps:
    del connection
    digest, force, words = "", False, [text(word) for word in reversed(args[2:])]
    while words:
        word = words.pop()
        if word.upper() == "FORCE":
            force = True
        elif word.upper() != "DIGEST":
            raise CommandError(f"ERR syntax error: unexpected '{word}', CW.CLUSTER COMMIT knows DIGEST FORCE")
        elif not words:
            raise CommandError("ERR syntax error: DIGEST needs a value")
        else:
            digest = words.pop()
    return _administered((yield ClientCommit(None, digest, force)))


@command("CW.CLUSTER|ABANDON", "Drops what is staged.", group="cartwheel")
def cw_cluster_abandon(connection: Connection, args: Args) -> Steps:
    del connection, args
    return _administered((yield ClientAbandon(None)))


@command("CW.CLUSTER|JOIN address", "This node, alone and empty, asks a cluster to let it join.", group="cartwheel")
def cw_cluster_join(connection: Connection, args: Args) -> Steps:
    address = text(args[2])
    try:
        split_address(address)
    except ValueError:
        raise CommandError(f"ERR '{address}' is not HOST:PORT, such as 10.0.0.1:7702") from None
    result = yield ClientJoin(None)
    if not isinstance(result, Failure):
        connection.gateway.add_seed(address)
    return _administered(result)


@command(
    "CW.CLUSTER|HISTORY [JSON]", "Every change of membership and of buckets, with author and time.", group="cartwheel"
)
def cw_cluster_history(connection: Connection, args: Args) -> bytes:
    as_json = _flag(args, 2, "JSON")
    told = [
        {
            "at_ms": 0 if change.founding else wall_ms_of(change.at),
            "author": change.author,
            "kind": str(change.kind),
            "change": words,
            "id": change.id,
        }
        for change, words in connection.gateway.changes()
    ]
    return reply.bulk(msgspec.json.encode(told)) if as_json else reply.plain(told, connection.resp3)


@command("CW.CLUSTER|SAFETOSTOP node [JSON]", "Why a node may not be stopped now; nothing: it may.", group="cartwheel")
def cw_cluster_safe_to_stop(connection: Connection, args: Args) -> bytes:
    as_json = _flag(args, 3, "JSON")
    told = connection.gateway.safe_to_stop(text(args[2]))
    return reply.bulk(msgspec.json.encode(told)) if as_json else reply.plain(told, connection.resp3)
