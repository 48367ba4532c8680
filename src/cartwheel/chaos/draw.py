"""The plan of a chaos run: drawn whole from the seed before the first step, whatever the nodes will do.

The lane of the members is drawn first, over a **roster**: who is to be there after each change, if it takes as long as drawn. The
other lanes choose among those. What comes otherwise is for ``hand`` to make the best of.

New nodes are called n6, n7, and so on. A node that has left may join again, on an empty directory; one that was replaced never
comes back, but as a ``return``.

Invariants of a roster: it has from LEAST to ``most`` nodes; while disks are lost, the victim does not leave.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

from cartwheel.chaos.history import Direction
from cartwheel.chaos.nemesis import CALM_S, LASTS_S, LOSE_DISKS, MEMBERS, NETWORK, Act, ActKind, Nemesis, Step
from cartwheel.core.types import NodeId
from cartwheel.sim.faults import fork

GAP_S = (1.0, 6.0)
CYCLE_GAP_S = (0.0, 3.0)
LEAST, MOST = 4, 6
"""Nodes that stay and nodes that there are at most. One more than N=3, so that while one is away there are N still."""
NEW_MAX = 12
"""New names: the proxy has a port for each pair. When they are used up nobody is replaced any more."""
WEIGHTS = (0.5, 1.0, 2.0, 3.0)
ENTERED_S = 3.0
"""So long after it was started a new node may be struck by others, in the eyes of the plan."""


def draw(seed: int, kinds: Sequence[Nemesis], nodes: Sequence[NodeId], seconds: float) -> list[list[Step]]:
    """The lanes of a run: processes and disks, network, members."""
    dice = fork(seed, "nemesis")
    victim = dice.choice(nodes)
    roster = Roster(nodes, victim, stays=any(kind in LOSE_DISKS for kind in kinds))
    members = _lane(fork(seed, "members"), [k for k in kinds if k in MEMBERS], seconds, roster.step)
    striker = _Striker(nodes, victim, members)
    processes = [k for k in kinds if k not in NETWORK + MEMBERS]
    lanes = [_lane(dice, each, seconds, striker.step) for each in (processes, [k for k in kinds if k in NETWORK])]
    return [*lanes, members]


def names_of(lanes: Sequence[Sequence[Step]], founders: Sequence[NodeId]) -> list[NodeId]:
    """Everyone who will ever be there, founders first."""
    found = dict.fromkeys(founders)
    for step in (step for lane in lanes for step in lane):
        found.update(dict.fromkeys(act.node for act in step.acts))
    return list(found)


def first_victim(seed: int, nodes: Sequence[NodeId]) -> NodeId:
    """Whose disk is lost, as long as it is not replaced."""
    return fork(seed, "nemesis").choice(nodes)


def least(founders: Sequence[NodeId]) -> int:
    """How many members stay."""
    return min(LEAST, len(founders))


def most(founders: Sequence[NodeId]) -> int:
    """How many members there are at most."""
    return max(MOST, len(founders) + 1)


Make = Callable[[random.Random, Nemesis, float, float], Step | None]
"""Draw a step (dice, kind, at, length of the run); None: that kind cannot be now."""


def _lane(dice: random.Random, kinds: Sequence[Nemesis], seconds: float, make: Make) -> list[Step]:
    """Every kind comes before any comes twice, where it can."""
    steps: list[Step] = []
    bag: list[Nemesis] = []
    at, vain = CALM_S + dice.uniform(0.0, 2.0), 0
    while kinds and at < seconds - 2.0 and vain < len(kinds):
        if not bag:
            bag = list(kinds)
            dice.shuffle(bag)
        kind = bag.pop()
        step = make(dice, kind, at, seconds)
        if step is None:
            vain += 1
            continue
        vain = 0
        steps.append(step)
        at += step.for_s + dice.uniform(*GAP_S)
    return steps


def _duration(dice: random.Random, kind: Nemesis, left_s: float) -> float:
    shortest, longest = LASTS_S[kind]
    longest = max(shortest, min(longest, left_s / 2 if kind is Nemesis.PAUSE else left_s - 1.0))
    # Short ones are more frequent: they hit the moments in between, where the mistakes are.
    share: float = dice.random()
    return float(shortest * (longest / shortest) ** share)


class _Striker:
    """Draws the steps of processes, disks and network among those who are to be there."""

    def __init__(self, founders: Sequence[NodeId], victim: NodeId, members: Sequence[Step]) -> None:
        self._all = names_of([members], founders)
        self._steps = members
        self._founders = list(founders)
        self._victim = victim

    def step(self, dice: random.Random, kind: Nemesis, at: float, seconds: float) -> Step:
        """One step."""
        for_s = _duration(dice, kind, seconds - at)
        nodes, victim = self._there(at)
        if kind in NETWORK:
            links, label = _links(dice, kind, nodes, [node for node in self._all if node not in nodes])
            return Step(at, kind, links=links, for_s=for_s, label=label)
        if kind is Nemesis.ROLLING:
            return Step(at, kind, tuple(dice.sample(nodes, len(nodes))), for_s=for_s)
        return Step(at, kind, (victim if kind is Nemesis.WIPE else dice.choice(nodes),), for_s=for_s)

    def _there(self, at: float) -> tuple[list[NodeId], NodeId]:
        """Who, and who of them is the victim."""
        nodes, victim = dict.fromkeys(self._founders), self._victim
        for step in self._steps:
            for act in step.acts:
                if act.kind is ActKind.LEAVE and at >= step.at + step.for_s:
                    nodes.pop(act.node, None)
                if act.kind is ActKind.REPLACE and at >= step.at:
                    nodes.pop(act.other, None)
                    victim = act.node
                if act.kind in (ActKind.JOIN, ActKind.REPLACE) and at >= step.at + ENTERED_S:
                    nodes[act.node] = None
        return list(nodes), victim


def _links(
    dice: random.Random, kind: Nemesis, nodes: Sequence[NodeId], others: Sequence[NodeId]
) -> tuple[tuple[Direction, ...], str]:
    """The directions that are cut, and how people call it. ``others`` may be there by then, or come meanwhile: each stands on one
    side, too (of an isolated node: on the other one)."""
    shuffled = dice.sample(nodes, len(nodes))
    size = 1 if kind is Nemesis.ISOLATE else dice.randint(1, max(1, len(nodes) // 2))
    left, right, label = shuffled[:size], shuffled[size:], ""
    if kind is Nemesis.BRIDGE and len(right) > 1:
        label = f" over {right.pop()}"
    sides = f"{','.join(sorted(left))} {'->' if kind is Nemesis.ONEWAY else '|'} {','.join(sorted(right))}"
    for node in others:
        (right if kind is Nemesis.ISOLATE or dice.random() < 0.5 else left).append(node)
    links = [(a, b) for a in left for b in right]
    if kind is not Nemesis.ONEWAY:
        links += [(b, a) for a, b in links]
    return tuple(sorted(links)), sides + label


class Roster:
    """Who is to be there, step by step."""

    def __init__(self, founders: Sequence[NodeId], victim: NodeId, *, stays: bool) -> None:
        self.present = list(founders)
        self.victim = victim
        self._stays = stays  # the victim
        self._most, self._least = most(founders), least(founders)
        self._weights: dict[NodeId, float] = {}
        self._left: list[NodeId] = []
        self._barred: list[NodeId] = []
        self._next = len(founders) + 1
        self._last = len(founders) + NEW_MAX

    def step(self, dice: random.Random, kind: Nemesis, at: float, seconds: float) -> Step | None:
        """The next step."""
        for_s = _duration(dice, kind, seconds - at)
        if kind is Nemesis.CLONE:
            node, clean = dice.choice(self.present), dice.random() < 0.5
            label = f"of {node}, {'stopped' if clean else 'killed'}"
            return Step(at, kind, (node,), for_s=for_s, label=label, clean=clean)
        if kind is Nemesis.RETURN and self._barred:
            node = dice.choice(self._barred)
            return Step(at, kind, (node,), for_s=for_s, label=f"{node} is started again")
        acts = self._acts(dice, kind)
        if acts is None:
            return None
        label = ", ".join(f"{act} (at {act.at})" for act in acts)
        nodes = (acts[0].other,) if kind is Nemesis.RETURN else tuple(dict.fromkeys(act.node for act in acts))
        return Step(at, kind, nodes, for_s=for_s, label=label, acts=acts)

    def _acts(self, dice: random.Random, kind: Nemesis) -> tuple[Act, ...] | None:
        match kind:
            case Nemesis.JOIN:
                act = self._join(dice)
            case Nemesis.LEAVE:
                act = self._leave(dice, self.present)
            case Nemesis.REPLACE | Nemesis.RETURN:
                act = self._replace(dice)
            case Nemesis.WEIGHT:
                act = self._weight(dice, self.present)
            case _:
                return self._two(dice)
        return None if act is None else (act,)

    def _two(self, dice: random.Random) -> tuple[Act, ...]:
        """Two administrators who do not know of each other, not even that they may both change the same node."""
        here, there = dice.sample(self.present, 2)
        first = self._weight(dice, [here])
        second = self._leave(dice, [there]) if dice.random() < 0.5 else None
        return first, second or self._weight(dice, [there])

    def _join(self, dice: random.Random) -> Act | None:
        if len(self.present) >= self._most:
            return None
        again = self._left and dice.random() < 0.5
        if not again and self._next > self._last:
            return None
        node = self._left.pop() if again else self._new()
        self._weights.pop(node, None)
        act = Act(ActKind.JOIN, node, dice.choice(self.present))
        self.present.append(node)
        return act

    def _leave(self, dice: random.Random, asked: Sequence[NodeId]) -> Act | None:
        who = [node for node in self.present if not (self._stays and node == self.victim)]
        if len(self.present) <= self._least or not who:
            return None
        node = dice.choice(who)
        self.present.remove(node)
        self._left.append(node)
        at = [each for each in asked if each != node] or self.present
        return Act(ActKind.LEAVE, node, dice.choice(at))

    def _replace(self, dice: random.Random) -> Act | None:
        if self._next > self._last:
            return None
        old, node = self.victim, self._new()
        self.present.remove(old)
        self._barred.append(old)
        act = Act(ActKind.REPLACE, node, dice.choice(self.present), other=old)
        self.present.append(node)
        self._weights[node] = self._weights.get(old, 1.0)
        self.victim = node
        return act

    def _weight(self, dice: random.Random, asked: Sequence[NodeId]) -> Act:
        node = dice.choice(self.present)
        weight = dice.choice([each for each in WEIGHTS if each != self._weights.get(node, 1.0)])
        self._weights[node] = weight
        return Act(ActKind.WEIGHT, node, dice.choice(asked), weight=weight)

    def _new(self) -> NodeId:
        self._next += 1
        return f"n{self._next - 1}"


def draw_cycles(seed: int, count: int, nodes: Sequence[NodeId]) -> list[list[Step]]:
    """Kills in a row: each at some moment soon after the node killed before serves again, often before all its links are up."""
    dice = fork(seed, "cycles")
    steps = []
    for number in range(count):
        node, for_s = dice.choice(nodes), dice.uniform(0.05, 0.5)
        wait_s = dice.uniform(*CYCLE_GAP_S) if number else CALM_S
        steps.append(Step(0.0, Nemesis.KILL, (node,), for_s=for_s, wait_s=wait_s))
    return [steps]
