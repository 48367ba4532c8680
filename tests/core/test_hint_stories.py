"""Hinted handoff under anything: random stories of writes, faults and time all end with every acknowledged write in its place."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st
from tests.core.hinted import READING, cluster, hint, on_disk, pass_seconds, totals

from cartwheel.core import versions
from cartwheel.core.messages import HintDeliver, HintGrant, HintOffer, HintTaken
from cartwheel.core.storage import record_key, seal
from cartwheel.core.types import Durability
from cartwheel.core.versions import EMPTY

STEPS = [HintOffer, HintGrant, HintDeliver, HintTaken]


@st.composite
def stories(draw):
    """What happens, in order: writes kept by a or c for d, faults, and time that passes."""
    write = st.tuples(st.just("write"), st.sampled_from("ac"), st.integers(0, 3), st.integers(0, 3))
    own = st.tuples(st.just("own"), st.sampled_from("ac"), st.integers(0, 3))
    fault = st.tuples(st.sampled_from(["crash", "stop", "restart", "hold", "release"]), st.sampled_from("acd"))
    lose = st.tuples(st.just("lose"), st.sampled_from(STEPS))
    time = st.tuples(st.just("time"), st.sampled_from([0.05, 0.5, 1.0, 4.0]))
    other = st.tuples(st.sampled_from(["lose nothing", "repeat"]))
    return draw(st.lists(write | own | fault | lose | time | other, max_size=30))


class Story:
    """A cluster to which things happen, and what was acknowledged meanwhile."""

    def __init__(self):
        self.wire = cluster(q=8)
        self.acked = [EMPTY] * 4
        self.counter = 0
        self.dots = set()

    def write(self, holder, key, actor):
        """A write by some other node that a holder keeps; half of them have seen the last one."""
        if holder not in self.wire.nodes:
            return
        self.counter += 1
        seen = self.acked[key] if self.counter % 2 else EMPTY
        record = versions.put(
            seen, seen.clock, (f"b/{actor}.{self.counter}", READING + self.counter), b"%d" % self.counter
        )
        if hint(self.wire, b"%d" % key, record, holder=holder):
            self.acked[key] = versions.merge(self.acked[key], record)

    def own(self, holder, key):
        """A write that a fallback coordinates: on all that it knows, with a dot of its own."""
        if holder not in self.wire.nodes or holder in self.wire.held:
            return
        local, at = self.wire.nodes[holder].local, record_key("0", b"%d" % key)
        known = local.known(at)
        dot = local.actor, local.clock.tick(self.wire.wall_ms)
        assert dot not in self.dots
        self.dots.add(dot)
        actor_reached = self.acked[key].clock.get(dot[0], -1)
        assert known.clock.get(dot[0], -1) >= actor_reached, "minted without accounting for earlier dots"
        record = versions.put(known, known.clock, dot, b"own")
        local.hints.put("d", at, seal(at, versions.encode(record)), Durability.SYNC)
        self.wire._commit(holder)
        self.acked[key] = versions.merge(self.acked[key], record)

    def fault(self, what, node):
        """Something happens to a node."""
        wire = self.wire
        if what in ("crash", "stop") and node in wire.nodes:
            if what == "stop" and node in wire.held:
                wire.release(node)
            getattr(wire, what)(node)
            wire.held.discard(node)
        elif what == "restart" and node not in wire.nodes:
            wire.restart(node)
        elif what == "hold" and node in wire.nodes:
            wire.held.add(node)
        elif what == "release" and node in wire.held:
            wire.release(node)

    def step(self, what, *args):
        """The next event of the story."""
        wire = self.wire
        if what in ("write", "own"):
            getattr(self, what)(*args)
        elif what == "lose":
            wire.lose = lambda src, dst, message: isinstance(message, args[0])
        elif what == "lose nothing":
            wire.lose = lambda src, dst, message: False
        elif what == "repeat":
            wire.repeat = not wire.repeat
        elif what == "time":
            wire.advance(args[0])
        else:
            self.fault(what, *args)

    def end(self):
        """All faults end, and time passes."""
        wire = self.wire
        wire.repeat, wire.lose = False, lambda src, dst, message: False
        for node in "acd":
            self.fault("release", node)
            self.fault("restart", node)
        pass_seconds(wire, 30)


@settings(max_examples=100, deadline=None)
@given(stories())
def test_whatever_happens_the_intended_node_ends_with_all_that_was_acknowledged(story):
    """And no hints are left. Its record may know more: a write that was never acknowledged may still arrive."""
    told = Story()
    for what, *args in story:
        told.step(what, *args)
    told.end()
    assert totals(told.wire, "a") == totals(told.wire, "c") == {}
    assert on_disk(told.wire, "a") == on_disk(told.wire, "c") == (0, 0)
    for key in range(4):
        held = told.wire.record("d", b"%d" % key)
        assert versions.merge(held, told.acked[key]) == held
