"""The judges that sit in during the run, because they need to see disks: C7 (dots) and C9 (durability).

``DotLedger`` sees every record that any node stages. A dot is the name of one write for ever, so it must always come with
the same key, value, expiry and request id; a new one must come from the node's present actor, rise above all its earlier
ones, and be minted on a record that accounts for its actor's earlier dots on the key (invariant A of ``versions``). This finds
a forgotten counter at the very mint, long before data is lost.

``check_durable`` counts, at the moment of an acknowledgement, on how many disks the write is.
"""

from __future__ import annotations

from collections.abc import Callable

from cartwheel.core.types import Actor, Dot, NodeId, node_of
from cartwheel.core.versions import Record, Version, accounts_for
from cartwheel.sim.history import Violation, dot_text


class DotLedger:
    """Every dot that was ever minted, and what it stands for."""

    def __init__(self) -> None:
        self.dots: dict[Dot, tuple[bytes, Version]] = {}
        self._highest: dict[Actor, int] = {}
        self._last_on_key: dict[tuple[bytes, Actor], int] = {}
        self._stamped: dict[tuple[Actor, int, bytes], Dot] = {}  # one stamp per request, stint and life

    def staged(
        self, node: NodeId, actor: Actor, boot: int, record_key: bytes, before: Callable[[], Record], record: Record
    ) -> tuple[list[Version], list[tuple[str, str]]]:
        """A node stages a record. Returns the versions that this mints, and what is wrong as (rule, text).

        ``before`` gives the record that it replaces; it is asked only for a mint.
        """
        minted: list[Version] = []
        wrong: list[tuple[str, str]] = []
        for version in record.versions:
            dot = version.dot
            known = self.dots.get(dot)
            if known is None:
                if version.actor == actor:
                    wrong += self._mint(node, boot, record_key, before(), version)
                    minted.append(version)
                elif node_of(version.actor) == node:
                    wrong.append(("C7", f"{node} mints {dot_text(dot)}, but goes by {actor} now"))
                    self.dots[dot] = record_key, version
                else:
                    wrong.append(("C7", f"{node} stages {dot_text(dot)}, which {node_of(version.actor)} never minted"))
                    self.dots[dot] = record_key, version
            elif known[0] != record_key or known[1] != version:
                wrong.append(("C7", f"{node} stages {dot_text(dot)} with {version!r}; it was minted with {known[1]!r}"))
        return minted, wrong

    def reaped(self, record_key: bytes, actor: Actor, record: Record) -> None:
        """The node that goes by ``actor`` has dropped this record, dead everywhere: it need not account for it any more."""
        at = record_key, actor
        if self._last_on_key.get(at, -1) <= record.clock.get(actor, -1):
            self._last_on_key.pop(at, None)

    def _mint(
        self, node: NodeId, boot: int, record_key: bytes, before: Record, version: Version
    ) -> list[tuple[str, str]]:
        dot, actor = version.dot, version.actor
        wrong: list[tuple[str, str]] = []
        if version.counter <= self._highest.get(actor, -1):
            wrong.append(("C7", f"{dot_text(dot)} is not above all earlier dots of its actor"))
        last = self._last_on_key.get((record_key, actor), -1)
        if last > before.clock.get(actor, -1):
            wrong.append(("C7", f"{dot_text(dot)} is minted without accounting for {dot_text((actor, last))}"))
        if version.request_id:
            stamped = self._stamped.setdefault((actor, boot, version.request_id), dot)
            if stamped != dot:
                wrong.append(("C7", f"{node} stamps a request twice: {dot_text(stamped)} and {dot_text(dot)}"))
        self.dots[dot] = record_key, version
        self._highest[actor] = max(version.counter, self._highest.get(actor, -1))
        self._last_on_key[record_key, actor] = max(version.counter, last)
        return wrong


def check_durable(key: str, acked: list[Dot], needed: int, holders: dict[NodeId, Record], at: float) -> list[Violation]:
    """C9: a put is acknowledged. ``acked`` are the mints of the write that the acknowledged context covers, ``holders`` what
    each node has of the key on its disk, as safe as the bucket demands: ``needed`` of them must account for every one.
    """
    if not acked:
        return [Violation("C9", key, "the acknowledged context covers no version of the write", at)]
    found = []
    for dot in acked:
        nodes = [node for node, record in sorted(holders.items()) if accounts_for(record, (dot,))]
        if len(nodes) < needed:
            where = ", ".join(nodes) or "no node"
            text = f"{dot_text(dot)} is acknowledged, but safe on {where} only: {needed} are needed"
            found.append(Violation("C9", key, text, at))
    return found
