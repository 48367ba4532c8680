"""Corrupt records: each is asked for at the other owners, one after the other.

The first good answer mends it (a merge into what counts as forgotten); the others are taken as well, for the first may be stale.
What cannot be had in ``TRIES_MAX`` tries is given up here: comparing the partition, once its tree is built anew, finds it.
"""

from __future__ import annotations

from collections import deque

from cartwheel.core.antientropy.books import Traffic
from cartwheel.core.antientropy.rows import Rows
from cartwheel.core.local import Local
from cartwheel.core.messages import Fetch, Fetched
from cartwheel.core.storage import split_record_key
from cartwheel.core.types import Durability, NodeId

FETCHES_MAX = 1000
"""Asked for at a time; more are left to the comparison of partitions."""
AT_ONCE_MAX = 64
"""Questions a tick."""
ANSWER_S = 3.0
TRIES_MAX = 20
"""A minute."""


class Fetching:
    """One corrupt record."""

    __slots__ = ("deadline_s", "mended", "owners", "tries")

    def __init__(self, owners: list[NodeId]) -> None:
        self.owners = deque(owners)  # those that have not answered
        self.deadline_s = 0.0  # when to ask (again)
        self.tries = 0
        self.mended = False


class Fetches:
    """This node's corrupt records, and its answers about others'."""

    def __init__(self, local: Local, rows: Rows, traffic: Traffic) -> None:
        self._local = local
        self._rows = rows
        self._traffic = traffic
        self._fetching: dict[bytes, Fetching] = {}

    def __len__(self) -> int:
        return len(self._fetching)

    def note(self, record_key: bytes) -> None:
        """This record of ours is corrupt (``Local.on_corrupt``)."""
        local = self._local
        if len(self._fetching) >= FETCHES_MAX or record_key in self._fetching or local.ring is None:
            return
        owners = local.owners(record_key, local.props(split_record_key(record_key)[0]).n)
        others = [owner for owner in owners if owner != local.node]
        if others and local.node in owners:
            self._fetching[record_key] = Fetching(others)

    def handle_tick(self) -> None:
        """Ask."""
        local = self._local
        asked = 0
        for record_key, fetching in list(self._fetching.items()):
            if asked >= AT_ONCE_MAX:
                break
            if local.now_s < fetching.deadline_s or not local.takes_writes:
                continue
            if fetching.tries >= TRIES_MAX:
                local.count("fetches_given_up")
                del self._fetching[record_key]
                continue
            if not local.budget(1):
                break
            asked += 1
            fetching.tries += 1
            fetching.deadline_s = local.now_s + ANSWER_S
            fetching.owners.rotate(-1)
            for owner in fetching.owners:
                if owner in local.reachable:
                    self._traffic.send(owner, Fetch(record_key))
                    break

    def handle_fetch(self, src: NodeId, message: Fetch) -> None:
        """Tell what we hold, if it is good."""
        sealed = self._rows.sealed(message.record_key)
        hold = Durability.MEMORY if sealed is None else self._local.pending(message.record_key)
        self._traffic.send(src, Fetched(message.record_key, sealed), hold)

    def handle_fetched(self, src: NodeId, message: Fetched) -> None:
        """An owner's copy, or none."""
        fetching = self._fetching.get(message.record_key)
        if fetching is None or src not in fetching.owners or not self._local.takes_writes:
            return
        if message.sealed is not None:
            held, changed = self._rows.take(message.record_key, message.sealed)
            self._traffic.received += changed
            if held is not None and not fetching.mended:
                fetching.mended = True
                self._local.count("corrupt_records_mended")
        fetching.owners.remove(src)
        fetching.deadline_s = 0.0  # on with the next one
        if not fetching.owners:
            if not fetching.mended:
                self._local.count("fetches_given_up")
            del self._fetching[message.record_key]
