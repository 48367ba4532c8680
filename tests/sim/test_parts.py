"""The simulated disk, network and clocks keep their own promises."""

from __future__ import annotations

import itertools
import random
from collections import Counter

import pytest

from cartwheel.core.config import DURABILITY
from cartwheel.core.errors import StorageFailed
from cartwheel.core.messages import ClientGet
from cartwheel.core.storage import Space
from cartwheel.sim import swarm
from cartwheel.sim.acts import ActKind
from cartwheel.sim.clocks import SimClock, true_wall_ms
from cartwheel.sim.disks import SimDisk
from cartwheel.sim.faults import Fault, Kind, Plan
from cartwheel.sim.network import CALM, CLOG_S, MESSAGE_LIFETIME_S, SimNetwork, Weather
from cartwheel.sim.reach import Reach
from cartwheel.sim.world import World


def write(disk: SimDisk, key: bytes, value: bytes | None, *, sync: bool) -> None:
    """One batch with one record."""
    disk.apply([{key: value}, {}, {}], sync=sync)


def test_a_power_cut_keeps_what_was_synced_and_a_prefix_of_the_rest():
    """Over many cuts every prefix of the unsynced batches comes up, and nothing else."""
    states = [(b"synced", 0), (b"0", 0), (b"0", 1), (b"1", 1), (b"1", 2), (b"2", 2), (b"2", 3)]
    kept = set()
    for seed in range(60):
        disk = SimDisk()
        write(disk, b"a", b"synced", sync=True)
        for number in range(3):
            write(disk, b"a", b"%d" % number, sync=False)
            write(disk, b"b%d" % number, b"x", sync=False)
        lost = disk.power_cut(random.Random(seed))
        left = (disk.get(Space.RECORDS, b"a"), len(disk.scan(Space.RECORDS, b"b", limit=9)))
        assert left == states[6 - lost]
        kept.add(left)
        assert not disk.dirty
    assert kept == set(states)


def test_a_deleted_key_returns_with_a_power_cut():
    """Undoing a batch restores what it deleted."""
    disk = SimDisk()
    write(disk, b"a", b"1", sync=True)
    write(disk, b"a", None, sync=False)
    assert disk.get(Space.RECORDS, b"a") is None
    while disk.get(Space.RECORDS, b"a") is None:
        write(disk, b"a", None, sync=False)
        disk.power_cut(random.Random(1))
    assert disk.get(Space.RECORDS, b"a") == b"1"


def test_synced_tells_what_would_be_left():
    """``synced`` sees through all unsynced batches, and a sync makes them safe."""
    disk = SimDisk()
    write(disk, b"a", b"1", sync=True)
    write(disk, b"a", b"2", sync=False)
    write(disk, b"a", b"3", sync=False)
    assert (disk.get(Space.RECORDS, b"a"), disk.synced(Space.RECORDS, b"a")) == (b"3", b"1")
    write(disk, b"b", b"1", sync=True)
    assert (disk.synced(Space.RECORDS, b"a"), disk.dirty) == (b"3", False)


def test_a_failed_sync_fails_once_and_writes_nothing():
    """EIO: the caller halts; whoever starts next finds a disk that works."""
    disk = SimDisk()
    disk.fail_next_sync = True
    with pytest.raises(StorageFailed):
        write(disk, b"a", b"1", sync=True)
    assert disk.get(Space.RECORDS, b"a") is None
    write(disk, b"a", b"1", sync=True)


def test_a_flip_changes_one_bit_at_rest():
    """One bit of one record, or of a hint; none on an empty disk."""
    disk = SimDisk()
    assert disk.flip(random.Random(1)) is None
    write(disk, b"a", b"\x00" * 8, sync=True)
    assert disk.flip(random.Random(1)) == Space.RECORDS
    assert sum((disk.get(Space.RECORDS, b"a") or b"").hex().count(d) for d in "1248") == 1
    disk.apply([{b"a": None}, {}, {b"h": b"\x00" * 8}], sync=True)
    assert disk.flip(random.Random(1)) == Space.HINTS
    assert sum((disk.get(Space.HINTS, b"h") or b"").hex().count(d) for d in "1248") == 1


def network(**weather: float | bool) -> SimNetwork:
    """A network of a and b, linked."""
    made = SimNetwork(Weather(**weather), random.Random(1), Counter())  # type: ignore[arg-type]
    assert made.link("a", "b")
    return made


def test_frames_are_lost_repeated_and_late_as_the_weather_says():
    """No loss: one copy each; much of both: none, one and two copies come up."""
    assert {len(network().arrivals("a", "b", 5.0)) for _ in range(50)} == {1}
    rough = network(loss=0.3, duplication=0.3)
    assert {len(rough.arrivals("a", "b", 5.0)) for _ in range(100)} == {0, 1, 2}


def test_an_ordered_network_never_overtakes():
    """First copies arrive in the order sent if ordered, and not always otherwise."""
    for ordered in (True, False):
        net = network(ordered=ordered, jitter_s=1.0)
        times = [net.arrivals("a", "b", now / 100)[0] for now in range(100)]
        assert (times == sorted(times)) is ordered


def test_cuts_add_up_and_heal():
    """A cut stops one direction, forbids a new link, and two cuts need two mendings; heal ends all."""
    net = network()
    net.cut((("a", "b"),), 1)
    net.cut((("a", "b"), ("b", "a")), 1)
    assert net.arrivals("a", "b", 0.0) == []
    net.cut((("a", "b"), ("b", "a")), -1)
    assert net.is_cut(("a", "b"))
    assert len(net.arrivals("b", "a", 0.0)) == 1
    assert not net.link("b", "a")
    net.heal()
    assert len(net.arrivals("a", "b", 0.0)) == 1
    net.unlink("a", "b")
    assert net.arrivals("a", "b", 0.0) == []


def test_a_clogged_direction_is_slow():
    """Frames come, seconds late."""
    net = network()
    net.clog((("a", "b"),), 1)
    latest = max(net.arrivals("a", "b", 0.0)[0] for _ in range(50))
    assert 1.0 < latest < CLOG_S + 1.0
    assert net.arrivals("b", "a", 0.0)[0] < 0.1


def test_clocks_are_off_drift_jump_and_settle():
    """The monotonic clock knows no jumps; settling brings the wall clock to the truth."""
    clock = SimClock(offset_ms=100, drift=0.01)
    assert clock.wall(0.0) == true_wall_ms(0.0) + 100
    assert clock.wall(100.0) == true_wall_ms(100.0) + 100 + 1000
    before = clock.mono(100.0)
    clock.jump(-5000)
    assert clock.mono(100.0) == before
    assert clock.wall(100.0) == true_wall_ms(100.0) - 3900
    clock.settle(100.0)
    assert abs(clock.wall(100.0) - true_wall_ms(100.0)) <= 1


def test_plans_keep_the_premises():
    """What the checkers rely on holds for every plan drawn (``faults``, premises 1 and 2), whatever the profile."""
    drawn, seen, durabilities, acts = set(), set(), set(), set()
    for seed in range(400):
        profile = "" if seed % 2 else list(swarm.PROFILES)[seed // 2 % len(swarm.PROFILES)]
        plan = swarm.draw(seed, seconds=60.0, profile=profile)
        assert plan == swarm.draw(seed, seconds=60.0, profile=profile)
        drawn.add(plan.profile)
        kinds = {fault.kind for fault in plan.faults}
        seen |= kinds
        assert kinds <= {kind for kind, _ in plan.mix} <= set(swarm.PROFILES[plan.profile].kinds)
        durabilities.add(plan.durability)
        loses = {Kind.FLIP, Kind.WIPE}
        if plan.durability in {"memory", "one"}:
            loses.add(Kind.KILL)
        losing = {node for fault in plan.faults if fault.kind in loses for node in fault.nodes}
        assert losing <= {plan.victim}
        assert not plan.victim or plan.w > 1
        if plan.durability != "sync":
            assert not kinds & {Kind.POWER, Kind.SYNC_ERROR, Kind.WIPE, Kind.FLIP}
        assert plan.calm == (plan.profile == "calm") or not plan.faults
        assert all(0 < fault.at < plan.seconds for fault in plan.faults)
        assert len(plan.lines()) == 6 + len(plan.faults) + len(plan.acts)
        acts |= {act.kind for act in plan.acts}
        assert len(plan.steady) >= 3
        assert set(plan.passing) <= set(plan.founders)
        assert {act.node for act in plan.acts if act.kind in {ActKind.JOIN, ActKind.REPLACE}} == set(plan.joiners)
        assert all(set(act.asked) <= set(plan.steady) for act in plan.acts)
    assert acts == set(ActKind)
    assert drawn == set(swarm.PROFILES)
    assert seen == set(Kind)
    assert durabilities == set(DURABILITY)


def quiet(*faults: Fault, seconds: float = 60.0) -> World:
    """Three nodes and nothing but these faults."""
    nodes = ("n1", "n2", "n3")
    world = World(Plan(1, seconds, nodes, "swarm", clock_offset_ms=(0,) * 3, clock_drift=(0.0,) * 3, faults=faults))
    world.run_until(3.0)
    return world


def test_a_paused_node_takes_what_waited_in_order_but_nothing_too_old():
    """After a pause everything that came happens in the order in which it came; a message past its lifetime does not."""
    world = quiet(Fault(5.0, Kind.PAUSE, ("n1",), for_s=30.0))
    world.run_until(6.0)
    host = world.hosts["n1"]
    handled = host.handled
    world.run_until(34.0)
    assert host.handled == handled
    waiting = len(host.waiting)
    assert waiting
    world.run_until(36.0)
    assert host.waiting == []
    assert host.handled > handled
    assert world.marks["net.expired"] > 0
    assert MESSAGE_LIFETIME_S < 30.0


def test_a_flapping_split_comes_and_goes():
    """A flap cuts its links several times, and they pass in between and afterwards."""
    world = quiet(Fault(5.0, Kind.FLAP, links=(("n1", "n2"),), for_s=10.0, amount=1.0))
    cut = []
    for step in range(40):
        world.run_until(5.0 + step / 2)
        cut.append(world.network.is_cut(("n1", "n2")))
    changes = sum(a != b for a, b in itertools.pairwise(cut))
    assert changes >= 5
    assert world.marks["net.flapped"] >= 4
    assert not any(cut[-8:])


def test_a_full_disk_is_told_to_its_node_and_a_slow_one_takes_its_time():
    """While the fault lasts the node knows (it refuses writes), and commits take what they are said to take."""
    full = quiet(Fault(5.0, Kind.FULL, ("n1",), for_s=5.0, amount=0.95))
    full.run_until(7.0)
    assert not full.hosts["n1"].node.local.takes_writes
    full.run_until(12.0)
    assert full.hosts["n1"].node.local.takes_writes
    slow = quiet(Fault(5.0, Kind.SLOW_DISK, ("n1",), for_s=5.0, amount=2.0))
    slow.run_until(6.0)
    assert slow.hosts["n1"].disk.slow_s == 2.0
    slow.run_until(11.0)
    assert slow.hosts["n1"].disk.slow_s == 0.0


def test_healing_ends_everything_at_once():
    """A pause of a minute, a cut, a crash: after ``heal`` all nodes run and reach one another."""
    world = quiet(
        Fault(4.0, Kind.PAUSE, ("n1",), for_s=60.0),
        Fault(4.0, Kind.CUT, links=(("n2", "n3"),), for_s=60.0),
        Fault(4.0, Kind.KILL, ("n2",), for_s=60.0),
    )
    world.run_until(6.0)
    world.troubles.heal()
    world.run_until(9.0)
    for name, host in world.hosts.items():
        assert host.running
        assert host.node.local.reachable == set(world.plan.nodes) - {name}
    assert world.network.weather == CALM
    answers = []
    world.call("n1", ClientGet(None, "b", b"k"), lambda status, result: answers.append(status), timeout_s=4.0)
    world.run_until(10.0)
    assert answers == ["ok"]


def test_the_books_of_reach():
    """Two nodes reached each other in a span if they were connected all the while, and nothing hindered either or their link."""
    reach = Reach()
    reach.told("a", "b", 1.0)
    assert not reach.reached("a", "b", 1.0, 2.0)  # only one of them knows
    reach.told("b", "a", 1.5)
    assert reach.reached("a", "b", 1.5, 9.0)
    assert reach.reached("b", "a", 1.5, 9.0)
    assert not reach.reached("a", "b", 1.2, 9.0)
    reach.hindered(("b", "a"), 3.0, 4.0)
    reach.hindered(("a",), 6.0, 7.0)
    assert not reach.reached("a", "b", 2.0, 3.5)
    assert not reach.reached("a", "b", 6.5, 6.6)
    assert reach.reached("a", "b", 4.5, 5.5)
    assert reach.well("b", 6.5, 6.6)
    assert not reach.well("a", 6.5, 6.6)
    reach.dropped("b", "a", 10.0)
    assert reach.reached("a", "b", 8.0, 10.0)
    assert not reach.reached("a", "b", 8.0, 10.5)
    reach.told("a", "b", 11.0)
    reach.told("b", "a", 11.0)
    assert not reach.reached("a", "b", 9.0, 12.0)
    assert reach.reached("a", "b", 11.0, 12.0)
