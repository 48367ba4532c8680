"""What the Redis door needs from the node behind it, and the door's own settings.

The door never touches the core's state: it hands in an event whose ``client`` is an object of the door's own, and the driver
later calls ``client.resolve(result)`` exactly once, on the loop's thread, possibly before ``submit`` returns.
"""

from __future__ import annotations

from typing import Literal, Protocol

import msgspec

from cartwheel.core.config import MIB, BucketProps, Config
from cartwheel.core.messages import (
    ClientAbandon,
    ClientBucketSet,
    ClientCommit,
    ClientCount,
    ClientDigests,
    ClientExplain,
    ClientGet,
    ClientHints,
    ClientJoin,
    ClientPut,
    ClientRepair,
    ClientRepairStatus,
    ClientScan,
    ClientStage,
    PlanTold,
    Status,
)
from cartwheel.core.ring import Change
from cartwheel.core.types import Crowd
from cartwheel.runtime.frames import Build

ClientEvent = (
    ClientGet | ClientPut | ClientExplain | ClientScan | ClientCount | ClientDigests | ClientHints | ClientBucketSet
    | ClientRepair | ClientRepairStatus | ClientStage | ClientCommit | ClientAbandon
    | ClientJoin
)  # fmt: skip


class DoorSettings(msgspec.Struct):
    """Settings of the Redis door. ``CONFIG SET resp.<name>`` changes them in a running node (with ``-`` for ``_``)."""

    allow_best_effort_nx: bool = False
    """``SET NX`` and its kin cannot be atomic without a leader: two clients can both succeed. Only on demand, therefore."""
    allow_flush: bool = False
    """Whether ``FLUSHDB`` and ``FLUSHALL`` may delete everything."""
    multi: Literal["batch", "refuse"] = "batch"
    """What ``MULTI`` ... ``EXEC`` is: a batch run in order but not isolated, or an error."""
    output_bytes_max: int = 8 * MIB
    """A connection with more unsent output that takes none of it for a second is closed."""
    clients_max: int = 4096
    """Connections; one more is told so and closed."""
    idle_timeout_s: float = 0.0
    """A connection silent for so long is closed; 0: never, as in Redis."""
    requests_max: int = 256
    """Requests of one connection under way at once: a longer pipeline waits its turn at the door, unread."""
    command_bytes_max: int = 64 * MIB
    """The arguments of one command together: ``MSET`` of many large values is refused above it."""
    password: str = ""
    """What ``AUTH`` must give; "": none is needed."""


class Gateway(Protocol):
    """The node as the door sees it. The driver implements it; tests have a double over one store."""

    config: Config
    settings: DoorSettings
    engine_name: str
    started_at_ms: int

    def crowd(self) -> Crowd:
        """Whether new requests should wait or be refused. An event handed in to a full node is answered BUSY, at more expense."""

    def count_busy(self) -> None:
        """The door refused a request because of that."""

    def submit(self, event: ClientEvent) -> None:
        """Start a request; ``event.client.resolve(result)`` ends it."""

    def bucket_props(self, bucket: str) -> BucketProps:
        """The properties in force for a bucket, whether or not it was ever mentioned."""

    def buckets(self) -> list[str]:
        """The names of the buckets that have properties of their own or are known to hold keys."""

    def status(self) -> Status:
        """This node's view of itself and the cluster."""

    def builds(self) -> dict[str, Build]:
        """What this node runs, and the peers that it can send to."""

    def plan(self) -> PlanTold:
        """What the staged changes of membership would do."""

    def changes(self) -> list[tuple[Change, str]]:
        """The history of membership: each change, and what it says in words."""

    def safe_to_stop(self, node: str) -> list[str]:
        """Why a node may not be stopped now; empty: it may."""

    def add_seed(self, address: str) -> None:
        """Look for a cluster to join at this address."""

    def data_bytes(self) -> int:
        """About how many bytes the stored data takes."""

    def wall_ms(self) -> int:
        """The wall clock, in ms since 1970: what expiry is measured by."""
