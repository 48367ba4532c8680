"""The simulated disk, network and clocks keep their own promises."""

from __future__ import annotations

import random
from collections import Counter

import pytest

from cartwheel.core.errors import StorageFailed
from cartwheel.core.storage import Space
from cartwheel.sim import faults
from cartwheel.sim.clocks import SimClock, true_wall_ms
from cartwheel.sim.disks import SimDisk
from cartwheel.sim.faults import Kind
from cartwheel.sim.network import CLOG_S, SimNetwork, Weather


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
    """One bit of one record; none on an empty disk."""
    disk = SimDisk()
    assert disk.flip(random.Random(1)) is None
    write(disk, b"a", b"\x00" * 8, sync=True)
    assert disk.flip(random.Random(1)) == b"a"
    assert sum((disk.get(Space.RECORDS, b"a") or b"").hex().count(d) for d in "1248") == 1


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
    """What the checkers rely on holds for every plan drawn (``faults``, premises 1 and 2)."""
    profiles = set()
    for seed in range(400):
        plan = faults.draw(seed, seconds=60.0)
        assert plan == faults.draw(seed, seconds=60.0)
        profiles.add(plan.profile)
        kinds = {fault.kind for fault in plan.faults}
        losing = {node for fault in plan.faults if fault.kind in {Kind.FLIP, Kind.WIPE} for node in fault.nodes}
        assert losing <= {plan.victim}
        assert not plan.victim or plan.w > 1
        if plan.durability != "sync":
            assert not kinds & {Kind.POWER, Kind.SYNC_ERROR, Kind.WIPE}
        if plan.durability == "memory":
            assert not kinds & {Kind.KILL, Kind.STOP}
        assert all(0 < fault.at < plan.seconds for fault in plan.faults)
        assert len(plan.lines()) == 5 + len(plan.faults)
    assert profiles == set(faults.PROFILES)
