"""One node, for real: data directory, engine, core, driver, links to the peers, and the Redis door.

Started from the inside out and stopped from the outside in: doors close first, then what is staged is committed, the clean stop
is marked, and the data directory is closed. A node that halts (a failed sync, a broken invariant) marks nothing: its next start
begins a new stint.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import resource
import secrets
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import msgspec

from cartwheel.core.config import BucketProps, Config
from cartwheel.core.errors import ConfigError, CorruptData, PeerError
from cartwheel.core.messages import Drain, PlanTold, Status
from cartwheel.core.node import Node
from cartwheel.core.ring import Change, ChangeKind, History, Member
from cartwheel.core.storage import Store
from cartwheel.core.types import Crowd
from cartwheel.runtime.addresses import join_address
from cartwheel.runtime.datadir import DataDir, known_q, open_datadir
from cartwheel.runtime.diskspace import watch_disk
from cartwheel.runtime.driver import Driver, wall_ms
from cartwheel.runtime.engines.salvage import facts_lost
from cartwheel.runtime.frames import Build
from cartwheel.runtime.resp.gateway import ClientEvent, DoorSettings
from cartwheel.runtime.resp.server import RespServer
from cartwheel.runtime.settings import ServerSettings
from cartwheel.runtime.transport import Peers, ask_seed

log = logging.getLogger(__name__)

DRAIN_S = 5.0
"""For what is under way when the node is told to stop."""
SEED_TIMEOUT_S = 5.0
STINT_EPOCH_S = 1_577_836_800
"""2020-01-01: stints count seconds from here, to be short."""
SWITCH_INTERVAL_S = 0.0005
"""Measured on a busy loop: a durable commit's median fell from 12 to 16 ms to 8 to 9; smaller ones gained nothing more."""
STINT_DIGITS = "0123456789abcdefghijklmnopqrstuvwxyz"


class Server:
    """One running node. Also the Redis door's gateway to it."""

    def __init__(self, settings: ServerSettings, datadir: DataDir) -> None:
        self.server_settings = settings
        self.settings = DoorSettings(
            allow_flush=settings.allow_flush, allow_best_effort_nx=settings.allow_best_effort_nx
        )
        self.config = core_config(settings)
        self.engine_name = datadir.identity.engine
        self.started_at_ms = wall_ms()
        self.halted: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        """Done, with the reason, when the node must stop by itself."""
        self._datadir = datadir
        boot = secrets.randbits(32)
        store = Store(datadir.engine)
        with _own_facts():
            self.node = Node(
                self.config,
                store,
                history=first_history(settings),
                stint=new_stint(),
                boot=boot,
                copied=datadir.copied,
            )
        if datadir.copied:
            log.warning("%s is a copy of another folder, or was moved: this is a new stint of the node", datadir.path)
        self._driver = Driver(self.node, store, datadir.engine, on_halt=self._halt)
        self._peers = Peers(
            self.node,
            boot=boot,
            secret=settings.secret,
            submit=self._driver.submit,
            seeds=settings.join,
            elsewhere=settings.dial,
        )
        self.resp = RespServer(self, settings.host, settings.resp_port)
        self.submit: Callable[[ClientEvent], None] = self._driver.submit
        self._disk_watch: asyncio.Task[None] | None = None
        self.crowd: Callable[[], Crowd] = self.node.crowd

    async def start(self) -> None:
        """Open the doors. When this returns, the node serves."""
        asyncio.get_running_loop().set_exception_handler(self._on_loop_error)
        with _own_facts():
            self._driver.start(self._peers)
        self._disk_watch = asyncio.get_running_loop().create_task(
            watch_disk(self._datadir.path, self.server_settings.disk_bytes_max, self._driver.submit)
        )
        await self._peers.listen(self.server_settings.host, self.server_settings.peer_port)
        self._peers.dial()
        await self.resp.start()

    async def drain(self) -> None:
        """Before a stop: tell the peers, so that they ask others at once, and answer what is under way."""
        self._driver.submit(Drain())
        deadline_s = asyncio.get_running_loop().time() + DRAIN_S
        self.resp.close_door()
        while self.node.requests_under_way or self.resp.unanswered:
            if asyncio.get_running_loop().time() > deadline_s:
                break
            await asyncio.sleep(0.01)  # the core has no events for it, and a stop is no hurry

    async def stop(self) -> None:
        """Close the doors, commit what is staged, mark the clean stop, close the data directory."""
        await self.resp.stop()
        if self._disk_watch is not None:
            self._disk_watch.cancel()
        await self._peers.stop()
        await self._driver.stop()
        self._datadir.close()

    def _halt(self, reason: str) -> None:
        if not self.halted.done():
            self.halted.set_result(reason)

    def _on_loop_error(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """An exception that nobody handled is our bug: a node with a broken invariant must not go on."""
        error = context.get("exception")
        if isinstance(error, Exception) and not isinstance(error, OSError):
            log.critical("internal error", exc_info=error)
            self._driver.halt(f"internal error: {error!r}")
        else:
            loop.default_exception_handler(context)

    # --- the gateway ---

    def count_busy(self) -> None:
        """The door refused a request."""
        self.node.local.count("busy")

    def bucket_props(self, bucket: str) -> BucketProps:
        """The properties in force."""
        return self.node.local.props(bucket)

    def buckets(self) -> list[str]:
        """Buckets with properties of their own, or with keys here."""
        return sorted({*self.node.local.buckets, *self.node.buckets_with_keys()})

    def status(self) -> Status:
        """This node's view."""
        return self.node.status()

    def builds(self) -> dict[str, Build]:
        """What this node runs, and the peers that it can send to."""
        return self._peers.builds()

    def plan(self) -> PlanTold:
        """What the staged changes would do."""
        return self.node.plan()

    def changes(self) -> list[tuple[Change, str]]:
        """The history of membership, each change with what it says in words."""
        return self.node.changes()

    def safe_to_stop(self, node: str) -> list[str]:
        """Why a node may not be stopped now."""
        return self.node.safe_to_stop(node)

    def add_seed(self, address: str) -> None:
        """Look for a cluster to join there."""
        self._peers.add_seed(address)

    def data_bytes(self) -> int:
        """About the size of the stored data."""
        return self._datadir.engine.size_bytes()

    def wall_ms(self) -> int:
        """The wall clock."""
        return wall_ms()


@contextmanager
def _own_facts() -> Iterator[None]:
    """What is read in here must be readable."""
    try:
        yield
    except CorruptData as error:
        raise facts_lost(error) from error


def core_config(settings: ServerSettings) -> Config:
    """The core's part of the settings."""
    return Config(
        node=settings.node,
        cluster=settings.cluster,
        secret=settings.secret,
        q=settings.q,
        request_timeout_s=settings.request_timeout_s,
        skew_ms_max=settings.skew_ms_max,
        admission_p99_s=settings.admission_p99_s,
        background_records_per_s_max=settings.background_records_per_s_max,
        give_grace_s=settings.give_grace_s,
        door=join_address(settings.advertise_host, settings.resp_port),
        address=join_address(settings.advertise_host, settings.peer_port),
        host=settings.advertise_host,
        zone=settings.zone,
        weight=settings.weight,
        joins=bool(settings.join),
    )


def first_history(settings: ServerSettings) -> History:
    """The history of a new cluster: its first members join, in the order of their names, the same on every node. A node that
    joins another cluster begins with none."""
    if settings.join:
        return History()
    members = sorted(settings.initial_cluster, key=lambda spec: spec.node)
    return History(
        Change(
            id=f"{settings.cluster}:first:{spec.node}",
            at=number,
            author=spec.node,
            kind=ChangeKind.JOIN,
            member=Member(spec.node, spec.address, spec.host, spec.zone, spec.weight),
        )
        for number, spec in enumerate(members)
    )


def new_stint() -> str:
    """A stint name that this node never had: milliseconds since 2020 and two random digits, in base 36."""
    number = (int(time.time() * 1000) - STINT_EPOCH_S * 1000) * 1296 + secrets.randbelow(1296)
    digits = ""
    while number:
        number, digit = divmod(number, 36)
        digits = STINT_DIGITS[digit] + digits
    return digits


def run(settings: ServerSettings, on_ready: Callable[[Server], None]) -> int:
    """Run one node until SIGTERM or SIGINT (0), or until it halts (1).

    Raises:
        ConfigError: the data directory is refused.
        OSError: a port is taken.
    """
    assert_assertions()
    raise_file_limit()
    if settings.join:
        settings = msgspec.structs.replace(settings, q=founding_q(settings))
    datadir = open_datadir(
        settings.data, cluster=settings.cluster, node=settings.node, engine=settings.engine, q=settings.q
    )
    try:
        with asyncio.Runner(loop_factory=loop_factory()) as runner:
            return runner.run(_serve(settings, datadir, on_ready))
    finally:
        datadir.close()


def founding_q(settings: ServerSettings) -> int:
    """How many partitions the cluster that this node joins was founded with: as the data directory says, or else a seed.

    Raises:
        ConfigError: no seed tells.
    """
    known = known_q(settings.data)
    if known is not None:
        return known
    reasons = []
    for seed in settings.join:
        try:
            return asyncio.run(
                ask_seed(
                    seed,
                    cluster=settings.cluster,
                    node=settings.node,
                    secret=bytes(settings.secret),
                    timeout_s=SEED_TIMEOUT_S,
                )
            )
        except TimeoutError:
            reasons.append(f"{seed}: no answer in {SEED_TIMEOUT_S:g} s")
        except (OSError, UnicodeError, PeerError) as error:
            number = error.errno if isinstance(error, OSError) else None
            reasons.append(f"{seed}: {os.strerror(number) if number else error}")  # asyncio's own text says less
    raise ConfigError(
        f"no cluster to join was found ({'; '.join(reasons)}): --join names the ports for peers of its members"
    )


async def _serve(settings: ServerSettings, datadir: DataDir, on_ready: Callable[[Server], None]) -> int:
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    server = Server(settings, datadir)
    try:
        await server.start()
        spare_the_collector()
        favour_commits()
        on_ready(server)
        server.halted.add_done_callback(lambda _: stop.set())
        await stop.wait()
        if not server.halted.done():
            await server.drain()
    finally:
        await server.stop()
    if server.halted.done():
        log.critical("halted: %s", server.halted.result())
        return 1
    return 0


def loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """uvloop where it exists, else asyncio's own loop."""
    try:
        import uvloop
    except ImportError:
        return None
    return uvloop.new_event_loop


def favour_commits() -> None:
    """Let the commit thread have the interpreter soon after its sync: by default it may wait 5 ms for a busy loop."""
    sys.setswitchinterval(SWITCH_INTERVAL_S)


def spare_the_collector() -> None:
    """Requests make no reference cycles, so collect seldom, and never look again at what was made at the start."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 50)


def assert_assertions() -> None:
    """Refuse to run where assertions are off: they guard the data."""
    if sys.flags.optimize:
        raise SystemExit("cartwheel does not run under python -O: its assertions guard your data")


def raise_file_limit() -> None:
    """Use the hard limit of open files: each client and each table of the engine takes one."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
