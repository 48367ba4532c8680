"""The claim: which node owns which token after a change of membership, moving as little as can be.

Dynamo section 6.2, strategy 3: "each node is assigned Q/S tokens ... When a node leaves the system, its tokens are randomly
distributed to the remaining nodes such that these properties are preserved. Similarly, when a node joins the system it steals
tokens from nodes in the system in a way that preserves these properties." *Departs from the paper* twice: shares follow weight
(section 4.2 wants that for heterogeneous machines), and nothing is random, since every node must come to the same result alone.

The claim works in three steps:

1. **Quotas.** Each node is due ``q * weight / all weight`` tokens, rounded down or up. Among such roundings it takes one that
   moves the fewest tokens from where they are (``quotas``).
2. **Moves.** Nodes above quota give, nodes below receive. The givers' tokens are cut, in ring order, into as many segments as
   must move, and one token moves per segment. So a joiner's tokens lie evenly round the ring. Within a segment wins the move
   that brings the replica loads nearest to their targets while it makes few new replicas (``_Load`` weighs the one against the
   other), then the one that keeps the receiver's tokens furthest apart.

   ::

       before   A B C A B C A B C A B C          D joins at weight 1: quota 12 / 4 = 3, so three segments of four
                |------|-------|-------|
       after    D B C A D C A B D A B C          each of A, B, C gave one; in any three in a row no node comes twice

3. **Repair.** If a replica load is still out of tolerance, pairs of tokens trade owners where that helps, within the leave to
   move that invariant 3 gives, and for a bounded number of attempts.

An empty ring has nothing to keep: its quotas are dealt out directly, zones, hosts and nodes evenly mixed (``interleave``),
and then repaired.

Invariants, for any owners and members:

1. The number of tokens of a node is its share rounded down or up (a node due less than one token has one, if q allows).
2. The result depends on the arguments alone: integers only, no float, no ``hash()``, no order of a set.
   A trap: ``sum()`` of floats gives other last digits since Python 3.12, so nodes on two Pythons would have disagreed on a ring.
3. Tokens that change hands <= 1.2 times the least that the quotas require (repair uses what is left of it).

*Replica load* (the lists that have a node among their first entries) is planned for ``REPLICAS`` = 3, the paper's common N.
If a node's tokens are never less than N apart, it is a replica of exactly N partitions per token, so its replica load is as
even as its primary load. Zones and hosts bend that: where three zones exist, a zone holds one of three replicas at most,
whatever it weighs. The target of a node is its share by weight after such caps (``replica_targets``). It is aimed at, not
guaranteed: the earlier ring and the leave to move may not open a way. Measured at q = 1024; "off" is the distance of the worst
node's replica load from its target, beyond the 3 that one token carries. *Founded*: 60 clusters of 4 to 33 nodes. *Changed*: 1200
random joins, leaves and reweighs, one by one, that let a cluster wander between 4 and 30 nodes:

===================  ===========================  ===========================
rings within 5 %     equal weights                weights 0.25 to 4
hosts and zones      founded     changed          founded     changed
===================  ===========================  ===========================
no zones             100 %       100 %            100 %       97 %, worst 15 %
three zones          100 %       99 %             100 %       92 %
2 to 5 uneven zones  100 %       89 %             98 %        73 %
===================  ===========================  ===========================

With zones the worst are 0.3 to 1.2 off: rings of four to six nodes of very different weight where the last node of a zone left or
the first one came, which changes all targets at once, but asks for few tokens to move.

*Data moved* (entries of lists that are new, over the least possible; see ``plan``) in the same changes: in the median 1.1
without zones and 1.1 to 1.35 with zones, in joins 1.2 and 1.25 to 1.4; where each of three zones has many nodes a join costs
1.6 to 1.7. That is in the nature of quotas: with three zones each zone holds one replica of everything, so the joiner's data
comes from its own zone, but two thirds of its tokens must come from the others, where they are an exchange among neighbours.
Three nodes that join in one commit, one in each zone, take tokens from their own zones only: 1.07 to 1.16. Tokens moved were
1.05 to 1.1 times the least on average and never over 1.2.

Cost: O(q) to set up, then at most ``TRIES`` evaluations per moved token and max(q, ``REPAIRS``) rounds of ``PARTNERS`` trades; an
evaluation looks at the few partitions whose first three entries the token can touch. At q = 1024 that is 10 to 20 ms for most
changes, 0.2 s at worst; at q = 4096 with 100 nodes 0.35 s at worst. A thousand founders at q = 16384 take 0.1 s, in zones 0.3 to
0.5 s, five hundred joins in one commit to as many nodes 2 s. ``fold`` remembers the last rings.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from typing import Final

REPLICAS: Final = 3
"""The N that replica load is balanced for: "the common (N,R,W) configuration ... is (3,2,2)" (section 6)."""

SPACING: Final = 8
"""How far a token looks for another of the same node: buckets with n up to 7 profit from the distance."""

TRIES: Final = 12
"""Moves weighed per token moved. Measured over 300 changes: 24 and 64 come no nearer to the targets."""

REPAIRS: Final = 800
REPAIRS_PER_MOVE: Final = 16
"""Rounds of repair per change (or one for each token of the ring), and per token that must move: a change that moves little can
upset little."""

PARTNERS: Final = 4
"""Trades weighed per round of repair."""

PARTNER_DRAWS: Final = 7
"""Draws for a partner that errs to the other side, before any will do. Measured at q = 2048 with uneven zones and weights, joins
one by one: with 1 draw 68 % of the rings come within 5 % (beyond a token's worth), with 4 draws 78 %, with 7 95 %."""

WORK: Final = 250
"""Tokens looked at per change and token of the ring, 50 ns each: a bound on time where walks are long because a zone has few."""

CHOICE: Final = 6
"""Tokens that a founding weighs for a place on the ring: with more, the tokens of a node would come less evenly."""

_SCALE: Final = 1_000_000
"""Makes the squared deviations integers. Divided by a mean tolerance it is the price of a new replica: what one more costs for a
load that is off by half of its tolerance. Measured as above: at half the price 1.51 times the least data moves, at the price 1.37
times with loads as even, at three times the price 1.24 times, but with loads 10 to 20 % off."""

_PHASES: Final = 1 << 20
_PHASE: Final = 648_056
"""The golden section of it: multiples of it, modulo the whole, lie evenly however many there are."""

_FACTOR: Final = 48_271
_MODULUS: Final = 2**31 - 1
"""Founding and repair draw from the "minimal standard" generator (Park and Miller 1988): the same draws everywhere, no seed."""

Places = Sequence[tuple[int, int]]
"""For each node its (zone, host), numbered from 0; a host belongs to one zone."""

Lists = Sequence[Sequence[int]]
"""For each partition the first ``REPLICAS`` entries of its preference list."""


def quotas(q: int, weights: Sequence[int], held: Sequence[int]) -> list[int]:
    """How many tokens each node is due, nodes by index; ``held`` is how many each has now.

    Every quota is the share rounded down or up, but at least 1 if that is possible for all. Of the roundings it is one that
    needs the fewest tokens to move: a node keeps the count it has if that is still a rounding of its share.
    """
    whole = sum(weights)
    shares = [q * weight for weight in weights]  # in units of 1/whole of a token
    low = [share // whole for share in shares]
    if sum(max(1, tokens) for tokens in low) <= q:
        low = [max(1, tokens) for tokens in low]
    high = [max(floor, -(-share // whole)) for floor, share in zip(low, shares, strict=True)]
    due = [min(max(have, floor), ceiling) for have, floor, ceiling in zip(held, low, high, strict=True)]
    excess = sum(due) - q
    nodes = sorted(range(len(weights)), key=lambda i: (shares[i] - due[i] * whole, i))  # furthest above its share first
    if excess > 0:
        for node in [i for i in nodes if due[i] > low[i]][:excess]:
            due[node] -= 1
    elif excess < 0:
        for node in [i for i in reversed(nodes) if due[i] < high[i]][:-excess]:
            due[node] += 1
    assert sum(due) == q, "floors and ceilings enclose q"
    return due


def divide(total: int, weights: Sequence[int], cap: int) -> list[int]:
    """Divide ``total`` in proportion to the weights, none above ``cap``: what a capped one cannot take goes to the others."""
    capped: set[int] = set()
    while True:
        rest = total - cap * len(capped)
        whole = sum(weight for i, weight in enumerate(weights) if i not in capped)
        over = {i for i, weight in enumerate(weights) if i not in capped and rest * weight > cap * whole}
        if not over:
            return [cap if i in capped else rest * weight // max(1, whole) for i, weight in enumerate(weights)]
        capped |= over


def tolerance(target: int) -> int:
    """How far a replica load may be from its target before it is repaired: 5 %, but at least what one token carries."""
    return max(REPLICAS, target // 20)


class _Draws:
    """Numbers as if drawn at random: the same ones each time."""

    __slots__ = ("last",)

    def __init__(self) -> None:
        self.last = 1

    def below(self, size: int) -> int:
        """The next number from 0 to size - 1."""
        self.last = self.last * _FACTOR % _MODULUS
        return self.last % size


def interleave(counts: Sequence[int]) -> list[int]:
    """A circle in which each i comes ``counts[i]`` times, evenly and never close to itself if that can be, in a mixed order.

    Ideal places come first: the jth of i's stands at (j + phase) / count. Then, place by place, one of the first ``CHOICE`` that
    wait is drawn, among those that are far enough from their like on both sides. Who waits for too long comes first.
    """
    total, some = sum(counts), sum(1 for count in counts if count)
    if some < 2:
        return [i for i, count in enumerate(counts) for _ in range(count)]
    ideal = []
    for i, count in enumerate(counts):
        phase = i * _PHASE % _PHASES
        ideal += [((j * _PHASES + phase) * _PHASES // count, i) for j in range(count)]
    ranked = [i for _, i in sorted(ideal)]
    wish = min(SPACING - 1, max(REPLICAS - 1, some // 2))
    apart = [min(wish, (total + total // 50) // max(1, count) - 1) for count in counts]
    first, last = [2 * total] * len(counts), [-total] * len(counts)
    circle: list[int] = []
    waiting: list[int] = []  # ranks
    after, draws = 0, _Draws()
    for place in range(total):
        while len(waiting) < CHOICE and after < total:
            waiting.append(after)
            after += 1
        room = []  # how far each that waits would be from its like, less what it should be
        for rank in waiting:
            i = ranked[rank]
            room.append(min(place - last[i], first[i] + total - place) - apart[i])
        fit = [at for at, rank in enumerate(waiting) if room[at] > (-1 if place - rank > REPLICAS else 0)]
        fit = fit or [room.index(max(room))]
        chosen = fit[0] if place - waiting[fit[0]] > CHOICE else fit[draws.below(len(fit))]
        i = ranked[waiting.pop(chosen)]
        first[i] = min(first[i], place)
        last[i] = place
        circle.append(i)
    return circle


class Spread:
    """Where the first ``REPLICAS`` entries of a preference list may lie, reduced to two levels.

    ``coarse`` is the level at which the entries differ for sure: zones, or hosts if there is one zone, or nodes if there is one
    host. With three or more coarse places all entries differ there (``wide``). With two, the third entry differs from both in
    ``fine``: the next finer level that has three places.
    """

    __slots__ = ("coarse", "fine", "wide")

    def __init__(self, places: Places, present: Sequence[int]) -> None:
        """``present`` are the nodes that own tokens: the others' places are still out of reach of a walk."""
        zones, hosts = [zone for zone, _ in places], [host for _, host in places]
        levels = [zones, hosts, list(range(len(places)))]
        size = [len({level[node] for node in present}) for level in levels]
        coarse = next(i for i in range(3) if size[i] > 1)
        self.coarse = levels[coarse]
        self.wide = size[coarse] >= REPLICAS
        self.fine = levels[next(i for i in range(3) if size[i] >= REPLICAS)]


def replica_targets(q: int, weights: Sequence[int], places: Places) -> list[int]:
    """How many of the q partitions should list each node among their first three entries.

    In proportion to weight, within what the walk makes inevitable: an entry per coarse place if there are two or three of
    them, and never the same fine place twice. Needs at least three nodes.
    """
    spread = Spread(places, range(len(weights)))
    groups: dict[int, dict[int, list[int]]] = {}
    for node, (coarse, fine) in enumerate(zip(spread.coarse, spread.fine, strict=True)):
        groups.setdefault(coarse, {}).setdefault(fine, []).append(node)
    weigh = {coarse: sum(weights[i] for nodes in fines.values() for i in nodes) for coarse, fines in groups.items()}
    if spread.wide:
        parts = divide(REPLICAS * q, list(weigh.values()), q)
    else:  # two places: each is in every list, and the third entry falls to one that has another fine place
        (first, second), whole = weigh, sum(weigh.values())
        top = 2 * q if len(groups[first]) > 1 else q
        bottom = q if len(groups[second]) > 1 else 2 * q
        part = min(max(REPLICAS * q * weigh[first] // whole, bottom), top)
        parts = [part, REPLICAS * q - part]
    targets = [0] * len(weights)
    for fines, part in zip(groups.values(), parts, strict=True):
        inner = divide(part, [sum(weights[i] for i in nodes) for nodes in fines.values()], q)
        for nodes, piece in zip(fines.values(), inner, strict=True):
            for node, target in zip(nodes, divide(piece, [weights[i] for i in nodes], q), strict=True):
                targets[node] = target
    return targets


_Picks = tuple[int, int, int]
_Undo = list[tuple[int, _Picks, int]]
"""What ``give`` changed: (partition, its entries before, its reach before)."""


class _Load:
    """The replica loads of a ring that is being changed, and how far they are from their targets.

    ``cost`` is the sum over nodes of ((load - target) / tolerance) squared, and ``price`` for each entry of a list that was not
    in ``before``, the lists before the change. A leaver is a place of its own with target 0.
    Invariant: ``reach[p]`` is how many tokens past p the first entries of p extend; p + reach[p] never falls as p grows, so the
    partitions that token t can touch are found going back from t until one does not reach it.
    """

    __slots__ = (
        "before",
        "coarse",
        "cost",
        "fine",
        "load",
        "owners",
        "picks",
        "price",
        "q",
        "reach",
        "scale",
        "target",
        "wide",
        "work",
    )

    def __init__(self, owners: list[int], spread: Spread, target: list[int], before: Lists | None = None) -> None:
        self.q = len(owners)
        self.owners = owners * 2  # twice round, so that a walk needs no modulo
        leaver = len(target)
        self.coarse = [*spread.coarse, leaver]
        self.fine = [*spread.fine, leaver]
        self.wide = spread.wide
        self.target = [*target, 0]
        self.scale = [_SCALE // tolerance(goal) ** 2 for goal in self.target]
        self.price = _SCALE // tolerance(sum(target) // leaver) if before else 0
        self.before = before or [()] * self.q
        self.work = WORK * self.q
        self.load = [0] * (leaver + 1)
        self.picks = [(0, 0, 0)] * self.q
        self.reach = [0] * self.q
        for partition in range(self.q):
            picks, self.reach[partition] = self._walk(partition)
            self.picks[partition] = picks
            for node in picks:
                self.load[node] += 1
        self.cost = sum(
            self.price
            for picks, kept in zip(self.picks, self.before, strict=True)
            for node in picks
            if node not in kept
        )
        for have, goal, scale in zip(self.load, self.target, self.scale, strict=True):
            self.cost += (have - goal) ** 2 * scale

    def _walk(self, partition: int) -> tuple[_Picks, int]:
        """The first three entries of the partition's preference list, and how far from it the furthest token looked at is."""
        owners, coarse = self.owners, self.coarse
        first = owners[partition]
        home = coarse[first]
        at = partition + 1
        while coarse[second := owners[at]] == home:
            at += 1
        if self.wide:
            away = coarse[second]
            at += 1
            while (place := coarse[third := owners[at]]) == home or place == away:
                at += 1
            return (first, second, third), at - partition
        fine = self.fine
        home, away = fine[first], fine[second]
        other = partition + 1
        while (place := fine[third := owners[other]]) == home or place == away:
            other += 1
        return (first, second, third), max(at, other) - partition

    def give(self, token: int, node: int) -> _Undo:
        """Make ``node`` the owner of ``token``. Returns what ``take_back`` needs."""
        q, load, target, scale = self.q, self.load, self.target, self.scale
        self.owners[token] = self.owners[token + q] = node
        undo: _Undo = []
        back = 0  # ends: no walk goes once round
        while self.reach[partition := (token - back) % q] >= back:
            back += 1
            old = self.picks[partition]
            new, reach = self._walk(partition)
            self.work -= reach + 6
            undo.append((partition, old, self.reach[partition]))
            self.reach[partition] = reach
            if new == old:
                continue
            self.picks[partition] = new
            kept = self.before[partition]
            for loser in old:
                if loser not in new:
                    self.cost -= (2 * (load[loser] - target[loser]) - 1) * scale[loser]
                    load[loser] -= 1
                    if loser not in kept:
                        self.cost -= self.price
            for winner in new:
                if winner not in old:
                    self.cost += (2 * (load[winner] - target[winner]) + 1) * scale[winner]
                    load[winner] += 1
                    if winner not in kept:
                        self.cost += self.price
        return undo

    def take_back(self, token: int, node: int, undo: _Undo, cost: int) -> None:
        """Undo ``give``: ``node`` is the owner again, and the cost what it was."""
        self.owners[token] = self.owners[token + self.q] = node
        for partition, picks, reach in undo:
            if (undone := self.picks[partition]) is not picks:
                for loser in undone:
                    self.load[loser] -= 1
                for winner in picks:
                    self.load[winner] += 1
                self.picks[partition] = picks
            self.reach[partition] = reach
        self.cost = cost


class _Claim:
    """One change under way. Nodes are numbers; the one after the last stands for whoever left."""

    def __init__(self, owners: Sequence[int], weights: Sequence[int], places: Places, lists: Lists | None) -> None:
        leaver = len(weights)
        self.q = len(owners)
        self.nodes = range(leaver)
        self.before = [leaver if owner < 0 else owner for owner in owners]
        self.owners = list(self.before)
        self.held = [0] * (leaver + 1)  # Invariant: how often each occurs in owners
        for owner in self.owners:
            self.held[owner] += 1
        self.due = [*quotas(self.q, weights, self.held[:leaver]), 0]
        self.least = self._need()
        self.places = places
        self.lists = lists
        # With fewer nodes every load is given; with a node without tokens there are too few to balance.
        balanced = leaver > REPLICAS and min(self.due[:leaver]) > 0
        self.target = replica_targets(self.q, weights, places) if balanced else []
        self.load = self._weigh()

    def _need(self) -> int:
        return sum(max(0, due - held) for due, held in zip(self.due, self.held, strict=True))

    def _weigh(self) -> _Load | None:
        """The replica loads of the ring as it is now; None if there is nothing to balance."""
        present = [node for node in self.nodes if self.held[node]]
        if not self.target or len(present) < REPLICAS:
            return None
        return _Load(self.owners, Spread(self.places, present), self.target, self.lists)

    def found(self) -> None:
        """Deal out an empty ring: the zones are mixed evenly, in each zone its hosts, on each host its nodes."""
        nodes_at: dict[int, dict[int, list[int]]] = {}
        for node in self.nodes:
            zone, host = self.places[node]
            nodes_at.setdefault(zone, {}).setdefault(host, []).append(node)
        due = self.due
        zones = []
        for hosts in nodes_at.values():
            turns = [iter([nodes[i] for i in interleave([due[node] for node in nodes])]) for nodes in hosts.values()]
            order = interleave([sum(due[node] for node in nodes) for nodes in hosts.values()])
            zones.append([next(turns[i]) for i in order])
        ways = [iter(zone) for zone in zones]
        self.owners = [next(ways[i]) for i in interleave([len(zone) for zone in zones])]
        self.held = list(self.due)

    def move(self) -> None:
        """Bring every node to its quota (step 2). More than one pass only if a segment's givers have all given elsewhere."""
        held, due = self.held, self.due
        while need := self._need():
            given = [token for token, owner in enumerate(self.owners) if held[owner] > due[owner]]
            for k in range(need):
                segment = given[k * len(given) // need : (k + 1) * len(given) // need]
                tokens = [token for token in segment if held[self.owners[token]] > due[self.owners[token]]]
                if tokens:
                    self._give(*self._best(tokens))

    def _best(self, tokens: list[int]) -> tuple[int, int]:
        """The best (token, receiver) for one of these tokens to go to."""
        held, due, load = self.held, self.due, self.load
        tokens = tokens[:: 1 + (len(tokens) - 1) // TRIES]
        wanting = (node for node in self.nodes if held[node] < due[node])
        takers = heapq.nsmallest(max(1, TRIES // len(tokens)), wanting, key=lambda i: (held[i] - due[i], i))
        options = []
        for token in tokens:
            for node in takers:
                cost = 0
                if load is not None and load.work > 0:
                    kept = load.cost
                    undo = load.give(token, node)
                    cost = load.cost
                    load.take_back(token, self.owners[token], undo, kept)
                options.append((cost, -self._distance(token, node), token, node))
        return min(options)[2:]

    def _distance(self, token: int, node: int) -> int:
        """How many tokens from ``token`` the nearest one of ``node`` is, up to ``SPACING``."""
        owners, q = self.owners, self.q
        for distance in range(1, SPACING):
            if node in (owners[(token + distance) % q], owners[(token - distance) % q]):
                return distance
        return SPACING

    def _give(self, token: int, node: int) -> None:
        self.held[self.owners[token]] -= 1
        self.held[node] += 1
        self.owners[token] = node
        if self.load is not None:
            self.load.give(token, node)

    def repair(self) -> None:
        """Trade tokens in pairs while some replica load is out of tolerance (step 3)."""
        load = self.load = self._weigh()  # anew: by now the places of new nodes are in reach
        if load is None:
            return
        spare = self.least * 6 // 5 - sum(now != then for now, then in zip(self.owners, self.before, strict=True))
        origin: list[list[int]] = [[] for _ in self.held]
        mine: list[list[int]] = [[] for _ in self.held]
        for token, (owner, then) in enumerate(zip(self.owners, self.before, strict=True)):
            origin[then].append(token)
            mine[owner].append(token)
        draws = _Draws()
        for _ in range(min(max(REPAIRS, self.q), REPAIRS_PER_MOVE * self.least)):
            uneven = [i for i in self.nodes if abs(load.load[i] - load.target[i]) > tolerance(load.target[i])]
            if not uneven or load.work <= 0:
                return
            node = uneven[draws.below(len(uneven))]
            token = mine[node][draws.below(len(mine[node]))]
            # Between tokens of one old owner a trade is free: one goes home, the other goes instead.
            anyone = spare > 1 and draws.below(2)
            best = self._best_trade(load, draws, token, range(self.q) if anyone else origin[self.before[token]], spare)
            if best is None:
                continue
            moves, other = best
            spare -= moves
            partner = self.owners[other]
            self._give(token, partner)
            self._give(other, node)
            for trader, gone, come in ((node, token, other), (partner, other, token)):
                mine[trader].remove(gone)
                mine[trader].append(come)

    def _best_trade(
        self, load: _Load, draws: _Draws, token: int, partners: Sequence[int], spare: int
    ) -> tuple[int, int] | None:
        """The best of a few trades of this token, as (moves, other token); None if none makes the ring better."""
        node = self.owners[token]
        heavy = load.load[node] > load.target[node]
        options = []
        for _ in range(PARTNERS):
            other = token
            for _ in range(PARTNER_DRAWS):
                other = partners[draws.below(len(partners))]
                partner = self.owners[other]
                if (load.load[partner] > load.target[partner]) != heavy:
                    break
            moves = self._moves(token, other)
            if moves <= spare and self._may_trade(token, other):
                options.append((self._trade_cost(load, token, other), moves, other))
        if not options or (best := min(options))[0] >= load.cost:
            return None
        return best[1:]

    def _may_trade(self, token: int, other: int) -> bool:
        """A node's only token stays: between the two halves of a trade its zone might be off the ring, and a walk without end."""
        one, two = self.owners[token], self.owners[other]
        return one != two and self.held[one] > 1 and self.held[two] > 1

    def _moves(self, token: int, other: int) -> int:
        """How many more tokens are away from their old owners if these two trade owners."""
        now, then = self.owners, self.before
        one, two = now[token], now[other]
        return (then[token] == one) - (then[token] == two) + (then[other] == two) - (then[other] == one)

    def _trade_cost(self, load: _Load, token: int, other: int) -> int:
        """What the cost would be if these two traded owners."""
        one, two, kept = self.owners[token], self.owners[other], load.cost
        first = load.give(token, two)
        middle = load.cost
        second = load.give(other, one)
        cost = load.cost
        load.take_back(other, two, second, middle)
        load.take_back(token, one, first, kept)
        return cost


def claim(owners: Sequence[int], weights: Sequence[int], places: Places, lists: Lists | None = None) -> list[int]:
    """The owner of each token after the nodes became ``weights`` and ``places``; ``owners`` has -1 for a node that left.

    Nodes are numbers, in the order of their ids, that index ``weights`` (positive) and ``places``. ``lists`` are those before the
    change, with -1 for who left: new replicas are avoided where that can be. Pure and deterministic.
    """
    change = _Claim(owners, weights, places, lists)
    if max(owners) < 0:
        change.found()
    else:
        change.move()
    change.repair()
    return change.owners
