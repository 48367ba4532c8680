"""The faults of a plan, carried out on a world: what happens to machines and to links, and how all of it ends.

Each fault counts itself (``fault.<kind>``), tells ``reach`` whom it hinders, and notes which paths of the core were taken while
it lasted (``<kind> x <counter of the core>``), for the coverage report.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from cartwheel.core.types import NodeId
from cartwheel.sim.faults import Fault, Kind, fork
from cartwheel.sim.host import COMMIT_S_MAX, Host
from cartwheel.sim.marks import CROSS
from cartwheel.sim.network import CLOG_S, Direction

if TYPE_CHECKING:
    from cartwheel.sim.world import World

AFTERMATH_S = 3.0
"""What the core does so long after a fault still counts as its consequence."""
USED = 0.5
"""How full a healthy disk is."""


class Troubles:
    """What goes wrong in a world."""

    def __init__(self, world: World) -> None:
        self.world = world
        self._dice = fork(world.plan.seed, "troubles")
        for fault in world.plan.faults:
            world.later(fault.at, self._strike, fault)

    def _strike(self, fault: Fault) -> None:
        world = self.world
        if world.healed:
            return
        world.marks[f"fault.{fault.kind}"] += 1
        world.trace("fault", "", str(fault).encode())
        world.later(fault.for_s + AFTERMATH_S, self._note_paths, fault.kind, world.core_counters())
        if fault.kind is Kind.CUT:
            self._cut(fault.links, fault.for_s, noticed=fault.noticed)
        elif fault.kind is Kind.FLAP:
            self._flap(fault, world.now + fault.for_s)
        elif fault.kind is Kind.CLOG:
            world.network.clog(fault.links, 1)
            self._hinder_links(fault.links, fault.for_s + CLOG_S)
            world.later(fault.for_s, self._unclog, fault.links)
        else:
            for node in fault.nodes:
                self._afflict(world.hosts[node], fault)

    def _note_paths(self, kind: Kind, before: Counter[str]) -> None:
        """What the core did meanwhile. Under faults that overlap it counts for each."""
        for name, count in self.world.core_counters().items():
            if count > before[name]:
                self.world.marks[f"{kind}{CROSS}{name}"] += 1

    # --- machines ---

    def _afflict(self, host: Host, fault: Fault) -> None:
        world, kind, now = self.world, fault.kind, self.world.now
        if kind is Kind.JUMP:
            host.clock.jump(int(fault.amount))
        elif kind is Kind.SLOW_DISK:
            host.disk.slow_s = fault.amount
            world.reach.hindered((host.name,), now, now + fault.for_s + COMMIT_S_MAX)
            world.later(fault.for_s, self._quicken, host)
        elif kind is Kind.FULL:
            host.disk.used = fault.amount
            world.reach.hindered((host.name,), now, now + fault.for_s + 2.0)
            world.later(fault.for_s, self._tidy, host)
        elif not host.life:
            return
        elif kind is Kind.FLIP:
            space = host.disk.flip(self._dice)
            if space is not None:
                world.marks[f"disk.flipped_{space.name.lower()}"] += 1
                if host.running:
                    host.node.local.hot.clear()  # so that somebody meets it before the restart
        elif not host.running:
            return
        elif kind is Kind.PAUSE:
            host.paused_until = max(host.paused_until, now + fault.for_s)
            world.reach.hindered((host.name,), now, now + fault.for_s)
            world.later(fault.for_s, world.resume, host)
        elif kind is Kind.STOP:
            host.stop()
            world.later(fault.for_s, world.boot, host.name)
        elif kind is Kind.SYNC_ERROR:
            host.disk.fail_next_sync = True
            world.later(0.5, self._crash_now, host, host.life, fault)
        elif kind is Kind.WIPE:
            host.crash(kind, "the disk is replaced")
            world.later(fault.for_s, world.boot, host.name)
        else:
            host.crash_after = int(fault.amount), kind
            world.later(0.5, self._crash_now, host, host.life, fault)

    def _crash_now(self, host: Host, life: int, fault: Fault) -> None:
        """The chance that the fault waited for did not come, or it came."""
        world = self.world
        if host.running and host.life == life and not world.healed:
            if fault.kind is Kind.SYNC_ERROR and host.disk.fail_next_sync:
                host.disk.fail_next_sync = False
                return
            host.crash(fault.kind, "on time")
        if not host.running:
            world.later(fault.for_s, world.boot, host.name)

    def _quicken(self, host: Host) -> None:
        host.disk.slow_s = 0.0

    def _tidy(self, host: Host) -> None:
        host.disk.used = USED

    # --- links ---

    def _hinder_links(self, links: tuple[Direction, ...], for_s: float) -> None:
        for link in links:
            self.world.reach.hindered(link, self.world.now, self.world.now + for_s)

    def _flap(self, fault: Fault, until: float) -> None:
        """Cut, let pass, and so on."""
        world, dice = self.world, self._dice
        if world.healed or world.now >= until:
            return
        down_s = min(dice.uniform(0.3, 1.0) * fault.amount, until - world.now)
        world.marks["net.flapped"] += 1
        self._cut(fault.links, down_s, noticed=fault.noticed)
        world.later(down_s + dice.uniform(0.3, 1.0) * fault.amount, self._flap, fault, until)

    def _cut(self, links: tuple[Direction, ...], for_s: float, *, noticed: bool) -> None:
        world = self.world
        world.network.cut(links, 1)
        self._hinder_links(links, for_s)
        pairs = sorted({(min(a, b), max(a, b)) for a, b in links})
        if noticed:
            for a, b in pairs:
                world.later(self._dice.uniform(1.0, 4.0), self._lose_link, a, b)
        world.later(for_s, self._uncut, links, pairs)

    def _lose_link(self, a: NodeId, b: NodeId) -> None:
        """Keep-alives have failed, if the way is still cut."""
        world, network = self.world, self.world.network
        if (network.is_cut((a, b)) or network.is_cut((b, a))) and network.linked(a, b):
            world.unlink(a, b)
            world.notice(a, b, "timed out")
            world.later(self._dice.uniform(0.0, 2.0), world.notice, b, a, "timed out")

    def _uncut(self, links: tuple[Direction, ...], pairs: list[Direction]) -> None:
        if not self.world.healed:
            self.world.network.cut(links, -1)
        for a, b in pairs:
            self.world.later(self._dice.uniform(0.05, 1.0), self.world.connect, a, b)

    def _unclog(self, links: tuple[Direction, ...]) -> None:
        if not self.world.healed:
            self.world.network.clog(links, -1)

    # --- the end ---

    def heal(self) -> None:
        """End all faults and start every node; time then does the rest."""
        world = self.world
        world.healed = True
        world.network.heal()
        for name, host in world.hosts.items():
            host.paused_until = 0.0
            world.resume(host)
            host.crash_after = None
            host.disk.fail_next_sync = False
            host.disk.slow_s, host.disk.used = 0.0, USED
            host.clock.settle(world.now)
            world.boot(name)
        for i, a in enumerate(world.plan.nodes):
            for b in world.plan.nodes[i + 1 :]:
                world.later(self._dice.uniform(0.0, 0.2), world.connect, a, b)
