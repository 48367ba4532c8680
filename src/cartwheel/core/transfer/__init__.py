"""Hand-over: a node that is to own a partition catches up, and counts; one that owns it no more makes sure, and forgets it.

    gainer G                                        giver L, which keeps its slot meanwhile (``placement``)
      compares with L (GAINED), leaf by leaf  <──>    only what differs moves: a hand-over that was cut short goes on where it was
      HandOver(partitions)            ───────────>    sees the same slots, keeps no hint for G there: gives them, durably
      counts from now on              <───────────    HandedOver
                                                      compares with an owner (GIVEN) until the trees are equal; waits;
                                                      compares again; removes its records, as a new stint

While it goes on both are sent every write (``coordinator``), so what G lacks is what was there before: that is what it compares.
Anti-entropy's trees tell the difference (section 4.9: a confirmation round, so that nothing is transferred twice), its messages
carry the records, each with its checksum, and its pace is that of background work (section 6.5). A death on either side is just
another failure: nothing of this is remembered but what each node holds.

The parts: ``gains`` (catching up), ``gives`` (letting a gainer count) and ``leftovers`` (what is here and has no business here).
"""

from __future__ import annotations

from cartwheel.core.local import Local
from cartwheel.core.messages import TransferStatus
from cartwheel.core.placement import Changed
from cartwheel.core.summary import Summary
from cartwheel.core.transfer.gains import Compare, Gain, Gains
from cartwheel.core.transfer.gives import Give, Gives
from cartwheel.core.transfer.leftovers import Leave, Leftovers

__all__ = ["Transfer"]


class Transfer:
    """This node's part in the hand-over of partitions."""

    def __init__(
        self, local: Local, summary: Summary, *, compare: Compare, gain: Gain, give: Give, leave: Leave
    ) -> None:
        self.gains = Gains(local, summary, compare, gain)
        self.gives = Gives(local, give)
        self.leftovers = Leftovers(local, summary, compare, leave)

    def handle_place(self, changed: Changed) -> None:
        """There is a new view, in which these parts may have other slots."""
        self.gains.unseen.handle_place(changed)
        self.leftovers.unseen.handle_place(changed)

    def handle_tick(self) -> None:
        """Go on."""
        self.gains.handle_tick()
        self.leftovers.handle_tick()

    def status(self) -> TransferStatus:
        """A snapshot."""
        return TransferStatus(
            gains=self.gains.status(),
            gained=self.gains.gained,
            received=self.gains.received,
            given=self.gives.given,
            leftovers=self.leftovers.status(),
            removed=self.leftovers.removed,
        )
