"""Of which writes promise P3 speaks."""

from __future__ import annotations

import pytest

from cartwheel.chaos.history import Away, Fault, Kind, Op
from cartwheel.chaos.measure import Measured
from cartwheel.chaos.premise import Premise
from cartwheel.sim.history import Status

NODES = ["n1", "n2", "n3"]


def both(*pairs):
    return [link for a, b in pairs for link in ((a, b), (b, a))]


ISOLATED = Fault("isolate", "n1 | n2,n3", 10.0, 20.0, links=both(("n1", "n2"), ("n1", "n3")))
DEAF = Fault("oneway", "n2,n3 -> n1", 10.0, 20.0, links=[("n2", "n1"), ("n3", "n1")])
PAIR = Fault("split", "", 10.0, 20.0, links=both(("n1", "n2")))
FILLED = Fault("fill", "", 10.0, 20.0, ["n1"])
KILLED = Away("n3", 15.0, 17.0)


@pytest.mark.parametrize(
    ("node", "start", "end", "faults", "aways", "expected"),
    [
        ("n1", 0.0, 1.0, [], [], True),
        ("n3", 15.5, 15.6, [], [KILLED], False),  # it was dead
        ("n3", 14.9, 15.0, [], [KILLED], False),  # it died before it answered
        ("n3", 14.8, 14.9, [], [KILLED], True),
        ("n3", 17.1, 17.2, [], [KILLED], True),
        ("n2", 15.5, 15.6, [], [KILLED], True),  # two of three are up
        ("n1", 9.0, 9.9, [ISOLATED], [], True),
        ("n1", 9.0, 10.1, [ISOLATED], [], False),  # cut off before it ended
        ("n1", 12.0, 12.1, [ISOLATED], [], False),
        ("n2", 12.0, 12.1, [ISOLATED], [], True),
        ("n1", 20.1, 20.2, [ISOLATED], [], True),
        ("n1", 12.0, 12.1, [DEAF], [], False),  # it cannot hear an acknowledgement
        ("n1", 12.0, 12.1, [PAIR], [], True),  # n1 and n3
        ("n1", 15.5, 15.6, [PAIR], [KILLED], False),  # neither n2 nor n3
        ("n1", 14.0, 18.0, [PAIR], [KILLED], False),  # not all the time
        ("n2", 5.0, 30.0, [ISOLATED], [KILLED], False),
        ("n2", 15.5, 15.6, [FILLED], [], True),  # two of three have room
        ("n1", 15.5, 15.6, [FILLED], [], True),  # it need not be one of them
        ("n2", 15.5, 15.6, [FILLED], [KILLED], False),
        ("n2", 21.9, 22.0, [FILLED, ISOLATED], [Away("n3", 21.0, 23.0)], False),  # the room was not noticed yet
        ("n2", 22.1, 22.2, [FILLED, ISOLATED], [Away("n3", 21.0, 23.0)], True),
    ],
)
def test_premise(node, start, end, faults, aways, expected):
    assert Premise(NODES, 2, faults, aways).serves(node, start, end) is expected


def test_only_writes_that_are_served_count():
    measured = Measured()
    for kind, node, at, status in [
        (Kind.PUT, "n1", 12.0, Status.REJECTED),  # cut off: no promise
        (Kind.PUT, "n2", 12.0, Status.OK),
        (Kind.DELETE, "n3", 12.0, Status.UNKNOWN),  # served, and failed
        (Kind.GET, "n3", 12.0, Status.REJECTED),
        (Kind.ADD, "n1", 25.0, Status.OK),
    ]:
        measured.add(Op(seq=1, process=0, kind=kind, key="k", node=node, at=at, end=at + 0.1, status=status))
    rate = measured.served(Premise(NODES, 2, [ISOLATED], []))
    assert (rate.writes, rate.ok) == (3, 2)
    assert measured.writes.writes == 4
