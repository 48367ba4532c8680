"""Planted bugs: known traps of this kind of store, each of which the checkers must catch. They test the tests.

A bug replaces functions of the core while ``planted(name)`` is active, so the core itself has no switches. Most are mistakes that
real stores have made; some were our own, found by a seed. ``python -m cartwheel.sim --bug NAME`` runs with one,
``--bugs`` hunts each until it is caught.

    registry    the list, and how a bug is planted
    requests    bugs of the versions, and of the life of one put() or get()
    upkeep      bugs of what goes on behind: handoff, anti-entropy, reaping, failure detection
    moves       bugs of a ring that changes: views, hand-over, what is left over

To add one: a function there with ``@bug(*rules, trap=...)``, the rules of the checkers that should see it first and the trap
that it falls into, a docstring that tells the story, and a list of ``(owner, attribute, replacement)``. ``test_runs``
picks it up.
"""

from cartwheel.sim.bugs import moves, requests, upkeep
from cartwheel.sim.bugs.registry import BUGS, TRAPS, Bug, planted

__all__ = ["BUGS", "TRAPS", "Bug", "moves", "planted", "requests", "upkeep"]
