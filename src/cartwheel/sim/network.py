"""The network between nodes: links that lose, delay, repeat and reorder frames, that are cut, clogged and re-established.

It is harsher than TCP on purpose: the nodes are written for messages that may be lost, repeated or late, so here they are,
also across a restart of the receiver. Half of the runs keep the order of frames on a link, as TCP does.

A **link** joins two nodes while both run and nothing is cut. It comes up some time after that becomes true (both are told
``PeerUp``). When one crashes, or the way is cut for long, each side may notice (``PeerDown``) after a while, or never: then
what it sends vanishes.
"""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass

from cartwheel.core.types import NodeId

Direction = tuple[NodeId, NodeId]


@dataclass(frozen=True, slots=True)
class Weather:
    """How the network behaves when nothing in particular is wrong with it."""

    delay_s: float = 0.0005
    """The least delay of a frame."""
    jitter_s: float = 0.001
    """The mean of what comes on top (exponential)."""
    loss: float = 0.0
    duplication: float = 0.0
    ordered: bool = True
    """Frames of one direction arrive in the order sent."""


CALM = Weather()


class SimNetwork:
    """All links. The world asks it when a frame arrives, and tells it who runs."""

    def __init__(self, weather: Weather, dice: random.Random, marks: Counter[str]) -> None:
        self.weather = weather
        self._dice = dice
        self._marks = marks
        self._up: set[frozenset[NodeId]] = set()
        self._cuts: Counter[Direction] = Counter()
        self._clogs: Counter[Direction] = Counter()
        self._latest: dict[Direction, float] = {}

    # --- links ---

    def linked(self, a: NodeId, b: NodeId) -> bool:
        """Whether the transport of both believes to be connected."""
        return frozenset((a, b)) in self._up

    def link(self, a: NodeId, b: NodeId) -> bool:
        """Try to connect. False if something is in the way."""
        if self._cuts[a, b] or self._cuts[b, a]:
            return False
        self._up.add(frozenset((a, b)))
        return True

    def unlink(self, a: NodeId, b: NodeId) -> None:
        """Drop a connection: the driver of each side is told by the world."""
        self._up.discard(frozenset((a, b)))

    # --- faults ---

    def cut(self, directions: tuple[Direction, ...], by: int) -> None:
        """Stop (1) or let pass (-1) what travels in these directions. Cuts add up."""
        for direction in directions:
            self._cuts[direction] += by

    def clog(self, directions: tuple[Direction, ...], by: int) -> None:
        """Hold up what travels in these directions, by up to ``CLOG_S``."""
        for direction in directions:
            self._clogs[direction] += by

    def is_cut(self, direction: Direction) -> bool:
        """Whether nothing passes in this direction."""
        return self._cuts[direction] > 0

    def heal(self) -> None:
        """End all faults; from now on it is calm."""
        self._cuts.clear()
        self._clogs.clear()
        self.weather = CALM

    # --- frames ---

    def arrivals(self, src: NodeId, dst: NodeId, now: float) -> list[float]:
        """When the copies of a frame sent now arrive: none, one or two."""
        direction = (src, dst)
        if self._cuts[direction] or not self.linked(src, dst):
            self._marks["net.unreachable"] += 1
            return []
        weather, dice = self.weather, self._dice
        if weather.loss and dice.random() < weather.loss:
            self._marks["net.lost"] += 1
            return []
        times = [now + self._delay(direction)]
        if weather.duplication and dice.random() < weather.duplication:
            self._marks["net.repeated"] += 1
            times.append(times[0] + min(self._delay(direction) * dice.choice((1, 1, 10, 1000)), REPEAT_S_MAX))
        if weather.ordered:
            times[0] = self._latest[direction] = max(times[0], self._latest.get(direction, 0.0))
        return times

    def _delay(self, direction: Direction) -> float:
        weather = self.weather
        delay_s = weather.delay_s + self._dice.expovariate(1.0) * weather.jitter_s
        if self._clogs[direction]:
            self._marks["net.clogged"] += 1
            delay_s += self._dice.uniform(0.0, CLOG_S)
        return delay_s


MESSAGE_LIFETIME_S = 15.0
"""No message is handled later than so after it was sent: the transport (``runtime.transport``) drops it."""
REPEAT_S_MAX = 6.0
"""How much later than the first a second copy arrives at most: after a restart in between, but before the judgement."""
CLOG_S = 5.0
"""How long a clogged direction holds up a frame at most: longer than a request's timeout."""
