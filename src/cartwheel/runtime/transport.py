"""Connections between nodes: each node dials every other, and sends over the connections it dialed.

One connection per direction: what A sends to B, requests and answers alike, goes over A's dial; B hears. So there is no tie to
break when both dial at once, and each direction has its own state (a one-way break is seen as such).

A link is **up** once the handshake is done. The dialer pings a second after the last ping, once that is answered; without a pong
within three, or on any error, the link is down, what was under way to that peer is reported lost, and dialing starts again with
growing, jittered pauses. The acceptor closes a connection on which it hears nothing for five seconds. Nobody closes after a stall
of its own loop (a process that was stopped, a busy machine) before it has read what lay in its buffers meanwhile.

Bounded in space: a link takes at most ``BUFFER_BYTES_MAX`` that the kernel has not; further batches are dropped and counted
(messages may be lost; the requests behind them end at their deadlines).

Bounded in time: **no message is handled later than MESSAGE_LIFETIME_S = 15 s after it was sent** (given to its link), however
long it lay in buffers or either process was stopped. Whoever forgets deletes relies on it: no old write comes after. The acceptor
knows it from its own clock alone:

    dialer to acceptor    ping k                      ping k+1   m1   m2        ping k+1 leaves only when pong k has come,
    acceptor to dialer            pong k, sent at t                             so m1 and m2 were sent after t

    m2 is read: it is younger than now - t. If that is too long, the connection is closed, and m2 is not handled.

In a healthy link t is one to two seconds back; a link that carries its pings in more than three seconds is closed by the dialer
before. What was sent on a closed connection and not handled is lost; the link that follows it carries nothing of it. The bound
assumes that the clock goes on while the machine is suspended (``CLOCK_BOOTTIME``), and counts a message as handled when its
handling begins: a process may be stopped there as well, but then nothing else that it does comes in between.
"""

from __future__ import annotations

import asyncio
import logging
import random
import secrets
import socket
import time
from collections.abc import Callable, Iterable, Mapping
from typing import cast

from cartwheel import __version__
from cartwheel.core.errors import PeerError
from cartwheel.core.messages import Event, Message, PeerDown, PeerUp, Received, decode_batch, encode_batch
from cartwheel.core.node import Node
from cartwheel.core.types import NodeId
from cartwheel.runtime.addresses import split_address
from cartwheel.runtime.frames import (
    CHALLENGE_BYTES,
    FRAME_BYTES_MAX,
    HELLO_BYTES_MAX,
    PING,
    PROTOCOLS,
    Build,
    FrameReader,
    Hello,
    Proof,
    Protocols,
    Refusal,
    Welcome,
    agree,
    decode_hand,
    encode_hand,
    frame,
    prove,
    proven,
)

log = logging.getLogger(__name__)

PING_S = 1.0
PONG_TIMEOUT_S = 3.0
SILENCE_TIMEOUT_S = 5.0
STALL_S = 0.25
"""A timer that fires so late says that the loop stalled, and nothing about the peer."""
MESSAGE_LIFETIME_S = 15.0
"""Far above what a healthy link needs, and below any time that somebody would wait before a delete is forgotten."""
HANDSHAKE_TIMEOUT_S = 5.0
DIAL_TIMEOUT_S = 3.0
SEED_S = 5.0
"""Between two looks at who is at a seed's address."""
CLONED_S = 10.0
"""So long a name that two processes use is shut out, before it is looked at again."""
BACKOFF_S = (0.05, 1.0)
"""First and longest pause between dials: a node that returns is noticed within about a second."""
NO_CONNECTION = (OSError, ValueError, OverflowError)
"""What a dial may raise. The last two: the address makes no sense, and a node that told it must not take others down."""
BUFFER_BYTES_MAX = 64 << 20
MESSAGES_PER_FRAME = 256
"""Bounds a frame, and how long the receiver is busy with one."""
CLOCK = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)
"""For the age of messages: it goes on while the machine sleeps, where the system has such a clock."""


class Peers:
    """All links of one node: the outlet of its driver."""

    def __init__(
        self,
        node: Node,
        *,
        boot: int,
        secret: bytes,
        submit: Callable[[Event], None],
        seeds: Iterable[str] = (),
        elsewhere: Mapping[NodeId, str] | None = None,
        protocols: Protocols = PROTOCOLS,
    ) -> None:
        """
        Args:
            seeds: addresses of nodes that may know others (section 4.8.2).
            elsewhere: where to dial these nodes, in place of their addresses.
            protocols: the lowest and the highest to speak. Tests give others: two versions in one process.
        """
        self.node = node
        self.me: NodeId = node.local.node
        self.cluster = node.local.config.cluster
        self.boot = boot
        self.secret = secret
        self.submit = submit
        self._links: dict[NodeId, Link] = {}
        self._tasks: dict[NodeId, tuple[str, asyncio.Task[None]]] = {}  # with the address that it dials
        self._seeds: dict[str, asyncio.Task[None] | None] = dict.fromkeys(seeds)
        self._elsewhere = elsewhere or {}
        self.protocols = protocols
        self._placed: object = None  # the view from which we know whom to dial
        self._heard_from: dict[
            NodeId, str
        ] = {}  # who dialed us, and is not known to be at the address that it says: that
        self._boots: dict[NodeId, int] = {}  # of who dialed us last under this name
        self._cloned: dict[NodeId, float] = {}  # refused until then: two processes use this name
        self._heard: set[Acceptor] = set()
        self._outboxes: dict[NodeId, list[Message]] = {}
        self._server: asyncio.Server | None = None
        self._dialed: dict[NodeId, asyncio.Event] = {}  # set when this peer has dialed us

    async def listen(self, host: str, port: int) -> int:
        """Accept peers; return the port (0 asks the system for one)."""
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(lambda: Acceptor(self), host, port)
        bound: int = self._server.sockets[0].getsockname()[1]
        return bound

    def dial(self) -> None:
        """Keep a link to everyone who takes part, to strangers that dial us, and to the seeds; to nobody else."""
        self._placed = self.node.local.placement
        loop = asyncio.get_running_loop()
        wanted = {**self.node.addresses(), **self._heard_from, **self._elsewhere_known()}
        for node, (address, task) in list(self._tasks.items()):
            if wanted.get(node) != address:
                task.cancel()
                del self._tasks[node]
        for node, address in sorted(wanted.items()):
            if node != self.me and node not in self._tasks:
                self._tasks[node] = address, loop.create_task(self._keep_link(node, address))
        for address, running in self._seeds.items():
            if running is None:
                self._seeds[address] = loop.create_task(self._keep_seed(address))

    def add_seed(self, address: str) -> None:
        """Look for others there, too."""
        if address not in self._seeds:
            self._seeds[address] = asyncio.get_running_loop().create_task(self._keep_seed(address))

    def _elsewhere_known(self) -> dict[NodeId, str]:
        known = self.node.addresses()
        return {node: address for node, address in self._elsewhere.items() if node in known}

    async def stop(self) -> None:
        """Close everything."""
        tasks = [
            *(task for _, task in self._tasks.values()),
            *(task for task in self._seeds.values() if task is not None),
        ]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for acceptor in list(self._heard):
            acceptor.close()
        if self._server is not None:
            self._server.close()

    # --- sending ---

    def post(self, dst: NodeId, message: Message) -> None:
        """Add to a peer's outbox."""
        outbox = self._outboxes.get(dst)
        if outbox is not None:
            outbox.append(message)

    def flush(self) -> None:
        """Send each outbox as one write."""
        if self.node.local.placement is not self._placed:
            self.dial()
        for node, outbox in self._outboxes.items():
            if outbox:
                self._outboxes[node] = []
                self._links[node].send(outbox)

    def builds(self) -> dict[NodeId, Build]:
        """What this node runs, and everyone that it can send to."""
        return {self.me: Build(__version__, self.protocols[1])} | {
            node: Build(link.version, link.protocol) for node, link in self._links.items()
        }

    # --- links ---

    async def _keep_link(self, node: NodeId, address: str) -> None:
        loop = asyncio.get_running_loop()
        pause_s = BACKOFF_S[0]
        told = ""
        while True:
            reason = ""
            if node in self._links:  # found by a seed
                await asyncio.wait([self._links[node].lost])
            try:
                async with asyncio.timeout(DIAL_TIMEOUT_S):
                    _, link = await loop.create_connection(lambda: Link(self, node), *split_address(address))
                if await link.ready:
                    pause_s, told = BACKOFF_S[0], ""
                    self._link_up(link)
                reason = await link.lost
                self._link_down(link, reason)
            except NO_CONNECTION as error:
                reason = (error.strerror if isinstance(error, OSError) else "") or str(error) or "no connection"
            except asyncio.CancelledError:
                if node in self._links:
                    self._links[node].close("stopping")
                raise
            if reason != told:
                told = reason
                log.warning("no link to %s at %s: %s", node, address, reason)
            self.node.local.unreachable[node] = reason
            if await self._heard_within(node, pause_s * random.uniform(0.5, 1.0)):
                pause_s = BACKOFF_S[0]
            else:
                pause_s = min(BACKOFF_S[1], pause_s * 2)

    async def _keep_seed(self, address: str) -> None:
        """Find out who is there; if it is not linked, link to it."""
        loop = asyncio.get_running_loop()
        told = ""
        while True:
            reason = ""
            try:
                async with asyncio.timeout(DIAL_TIMEOUT_S):
                    _, link = await loop.create_connection(lambda: Link(self, ""), *split_address(address))
                if await link.ready:
                    if link.node == self.me or link.node in self._links:
                        link.close("it is known")
                    else:
                        self._link_up(link)
                reason = await link.lost
                self._link_down(link, reason)
            except NO_CONNECTION as error:
                reason = (error.strerror if isinstance(error, OSError) else "") or str(error) or "no connection"
            if reason not in (told, "it is known"):
                told = reason
                log.warning("seed %s: %s", address, reason)
            await asyncio.sleep(SEED_S * random.uniform(0.5, 1.0))

    async def _heard_within(self, node: NodeId, pause_s: float) -> bool:
        """Wait for the time of the next dial; no longer, if the peer dials us meanwhile: then it is there."""
        dialed = self._dialed.setdefault(node, asyncio.Event())
        dialed.clear()
        try:
            async with asyncio.timeout(pause_s):
                await dialed.wait()
        except TimeoutError:
            return False
        return True

    def _link_up(self, link: Link) -> None:
        log.info("connected to %s", link.node)
        self._links[link.node] = link
        self._outboxes[link.node] = []
        self.submit(PeerUp(link.node, link.protocol))

    def _link_down(self, link: Link, reason: str) -> None:
        if self._links.get(link.node) is link:
            del self._links[link.node], self._outboxes[link.node]
            self.submit(PeerDown(link.node, reason))

    # --- receiving ---

    def judge(self, hello: Hello) -> str | None:
        """Why this dialer is refused, or None."""
        if hello.cluster != self.cluster:
            return f"this is cluster {self.cluster!r}, not {hello.cluster!r}"
        if hello.node == self.me:
            return "that is my own node id" + (
                ": I dialed myself" if hello.boot == self.boot else ", in another process"
            )
        if hello.wanted not in ("", self.me):
            return f"this is node {self.me!r}, not {hello.wanted!r}"
        q = self.node.local.config.q
        if hello.q not in (0, q):
            return f"this ring has {q} partitions, yours {hello.q}: set q to {q} there, on an empty directory"
        if self._cloned.get(hello.node, 0.0) > asyncio.get_running_loop().time():
            return (
                f"two processes say that they are {hello.node!r} (a copied data directory?): stop one, and give it an empty "
                "directory and a name of its own"
            )
        lowest, highest = self.protocols
        if agree(self.protocols, (hello.protocol_min, hello.protocol_max)) is None:
            return (
                f"no common protocol: {lowest} to {highest} here, yours {hello.protocol_min} to {hello.protocol_max}: "
                "go from one to the other by a version between"
            )
        return None

    def hear(self, acceptor: Acceptor, node: NodeId, boot: int) -> None:
        """A peer has proven itself. If it began anew since we dialed it, our link leads to a process that is gone. If it is
        unknown, dial it back: it may want to join. If it is known elsewhere, dial it where it says: a copy of its data directory
        may have told another address, and be gone."""
        self._heard.add(acceptor)
        self._boots[node] = boot
        if acceptor.address not in ("", self.node.addresses().get(node)):
            self._heard_from[node] = acceptor.address
            self.dial()
        link = self._links.get(node)
        if link is not None and link.boot != boot:
            link.close("it started anew")
        self._dialed.setdefault(node, asyncio.Event()).set()

    def unhear(self, acceptor: Acceptor) -> None:
        """It is gone."""
        self._heard.discard(acceptor)
        if acceptor.src in self._heard_from and all(each.src != acceptor.src for each in self._heard):
            del self._heard_from[acceptor.src]
            self.dial()

    def check_alone(self, node: NodeId, boot: int) -> None:
        """A connection of this process has pinged. If another one under its name came later, both live: a copied data directory.
        Both mint the same dots, and nobody knows which is the true one: both are shut out until one is gone.

        Raises:
            PeerError: so it is.
        """
        if self._boots.get(node, boot) != boot:
            text = f"two processes say that they are {node!r} (a copied data directory?): both are shut out until one stops"
            log.critical(text)
            self.node.local.count("clones_shut_out")
            self._cloned[node] = asyncio.get_running_loop().time() + CLONED_S
            for acceptor in [each for each in self._heard if each.src == node]:
                acceptor.close(text)
            raise PeerError(text)


class _Connection(asyncio.Protocol):
    """What both ends share: frames in, a deadline for hearing something, closing with a reason."""

    def __init__(self, peers: Peers) -> None:
        self._peers = peers
        self._reader = FrameReader()
        self._transport: asyncio.Transport | None = None
        self._watch: asyncio.TimerHandle | None = None
        self._reason = "connection closed"

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's has the methods, not the base class
        sock = transport.get_extra_info("socket")
        if sock is not None and hasattr(socket, "TCP_USER_TIMEOUT"):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(SILENCE_TIMEOUT_S * 1000))
        self._expect(HANDSHAKE_TIMEOUT_S, "the handshake took too long")

    def data_received(self, data: bytes) -> None:
        try:
            for payload in self._reader.feed(data):
                self._frame(payload)
        except PeerError as error:
            self.close(str(error))

    def _frame(self, payload: bytes | memoryview) -> None:
        raise AssertionError("each end reads its own frames")

    def _expect(self, timeout_s: float, reason: str) -> None:
        """Close with ``reason`` unless this is called again within ``timeout_s``."""
        if self._watch is not None:
            self._watch.cancel()
        self._wait(timeout_s / 2, reason, last=False)

    def _wait(self, half_s: float, reason: str, *, last: bool) -> None:
        loop = asyncio.get_running_loop()
        self._watch = loop.call_later(half_s, self._overdue, loop.time() + half_s, half_s, reason, last)

    def _overdue(self, due: float, half_s: float, reason: str, last: bool) -> None:
        """Half of the time is over, or all of it. If this comes late, the loop stalled, and what was expected may lie in the
        kernel's buffer: the last half must go by with the loop at work."""
        if last and asyncio.get_running_loop().time() - due < STALL_S:
            self.close(reason)
        else:
            self._wait(half_s, reason, last=True)

    def _write(self, data: bytes) -> None:
        """Send, unless the connection has ended: between its end and ``connection_lost`` a turn of the loop may pass, and
        uvloop refuses to write then."""
        assert self._transport is not None
        if not self._transport.is_closing():
            self._transport.write(data)

    def close(self, reason: str = "closed") -> None:
        """Close at once."""
        if self._transport is not None and not self._transport.is_closing():
            self._reason = reason
            self._transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._watch is not None:
            self._watch.cancel()
        if exc is not None and self._reason == "connection closed":
            self._reason = str(exc)


class Link(_Connection):
    """The dialer's end: sends batches and pings, hears pongs."""

    def __init__(self, peers: Peers, node: NodeId) -> None:
        super().__init__(peers)
        self.node = node
        loop = asyncio.get_running_loop()
        self.ready: asyncio.Future[bool] = loop.create_future()
        """True once the handshake is done, False if it failed."""
        self.lost: asyncio.Future[str] = loop.create_future()
        """Why the connection ended."""
        self._challenge = secrets.token_bytes(CHALLENGE_BYTES)
        self._ping: asyncio.TimerHandle | None = None  # None: a pong is outstanding
        self._pinged_s = 0.0
        self.boot = 0  # of the process that welcomed us,
        self.protocol = 0  # what it chose to speak on this connection,
        self.version = ""  # and what it runs

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        peers = self._peers
        hello = Hello(
            *peers.protocols,
            peers.cluster,
            peers.me,
            peers.boot,
            self.node,
            self._challenge,
            peers.node.local.config.q,
            peers.node.local.config.address,
        )
        self._write(encode_hand(hello))

    def _frame(self, payload: bytes | memoryview) -> None:
        if self.ready.done():
            self._pong(payload)
            return
        peers = self._peers
        hand = decode_hand(payload)
        if isinstance(hand, Refusal):
            self.close(f"refused: {hand.reason}")
        elif not isinstance(hand, Welcome) or self.node not in ("", hand.node):
            raise PeerError("an answer out of turn")
        elif not proven(hand.proof, peers.secret, peers.cluster, hand.node, self._challenge):
            self.close("it does not hold the cluster's secret")
        else:
            if agree(peers.protocols, (hand.protocol, hand.protocol)) is None:
                raise PeerError(f"it chose protocol {hand.protocol}, which was not offered")
            self.node = hand.node
            self.boot, self.protocol, self.version = hand.boot, hand.protocol, hand.version
            self._write(encode_hand(Proof(prove(peers.secret, peers.cluster, peers.me, hand.challenge))))
            self.ready.set_result(True)
            self._expect(PONG_TIMEOUT_S, "no pong in 3 s")
            self._send_ping()

    def _send_ping(self) -> None:
        self._ping = None
        self._pinged_s = asyncio.get_running_loop().time()
        self._write(PING)

    def _pong(self, payload: bytes | memoryview) -> None:
        """The peer has read all that was sent before the last ping. The next one goes out only now (see above)."""
        if len(payload) or self._ping is not None:
            raise PeerError("data on a one-way connection" if len(payload) else "a pong without a ping")
        self._expect(PONG_TIMEOUT_S, "no pong in 3 s")
        loop = asyncio.get_running_loop()
        self._ping = loop.call_later(max(0.0, self._pinged_s + PING_S - loop.time()), self._send_ping)

    def send(self, messages: list[Message]) -> None:
        """Send messages as one write, or drop them if the peer takes too little."""
        assert self._transport is not None
        if self._transport.get_write_buffer_size() > BUFFER_BYTES_MAX:
            self._peers.node.local.count("messages_dropped", len(messages))
            return
        epoch = self._peers.node.epoch
        if len(messages) <= MESSAGES_PER_FRAME:
            self._write(frame(encode_batch(epoch, messages)))
            return
        slices = range(0, len(messages), MESSAGES_PER_FRAME)
        self._write(b"".join(frame(encode_batch(epoch, messages[i : i + MESSAGES_PER_FRAME])) for i in slices))

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        if self._ping is not None:
            self._ping.cancel()
        if not self.ready.done():
            self.ready.set_result(False)
        if not self.lost.done():
            self.lost.set_result(self._reason)


class Acceptor(_Connection):
    """The accepting end: hears batches, answers pings."""

    def __init__(self, peers: Peers) -> None:
        super().__init__(peers)
        self._hello: Hello | None = None
        self._src: NodeId = ""
        self._sent_after_s = 0.0  # Invariant: what is read now was sent after this moment,
        self._answered_s = 0.0  # and what follows the next ping after this one
        self._challenge = secrets.token_bytes(CHALLENGE_BYTES)

    @property
    def src(self) -> NodeId:
        """Who dialed; "": it has not proven it yet."""
        return self._src

    @property
    def address(self) -> str:
        """Where the dialer hears others, as it says."""
        return self._hello.address if self._hello is not None else ""

    def _frame(self, payload: bytes | memoryview) -> None:
        if not self._src:
            self._greet(payload)
        elif len(payload):
            age_s = boottime() - self._sent_after_s
            if age_s > MESSAGE_LIFETIME_S:
                self._peers.node.local.count("messages_too_old")
                raise PeerError(f"a message may be {age_s:.0f} s old")
            self._peers.submit(Received(self._src, decode_batch(payload)))
        else:
            assert self._hello is not None
            self._peers.check_alone(self._src, self._hello.boot)
            self._sent_after_s, self._answered_s = self._answered_s, boottime()
            self._write(PING)
            self._expect(SILENCE_TIMEOUT_S, "silent for 5 s")

    def _greet(self, payload: bytes | memoryview) -> None:
        peers = self._peers
        hand = decode_hand(payload)
        if self._hello is None and isinstance(hand, Hello):
            reason = peers.judge(hand)
            if reason is not None:
                log.warning("refused a peer that says it is %r: %s", hand.node, reason)
                self._write(encode_hand(Refusal(reason)))
                assert self._transport is not None
                self._transport.close()
                return
            self._hello = hand
            protocol = agree(peers.protocols, (hand.protocol_min, hand.protocol_max))
            assert protocol is not None
            proof = prove(peers.secret, peers.cluster, peers.me, hand.challenge)
            q = peers.node.local.config.q
            self._sent_after_s = self._answered_s = boottime()
            self._write(encode_hand(Welcome(protocol, peers.me, peers.boot, self._challenge, proof, q, __version__)))
        elif self._hello is not None and isinstance(hand, Proof):
            if not proven(hand.proof, peers.secret, peers.cluster, self._hello.node, self._challenge):
                raise PeerError("it does not hold the cluster's secret")
            self._src = self._hello.node
            self._reader.limit = FRAME_BYTES_MAX
            peers.hear(self, self._src, self._hello.boot)
            self._expect(SILENCE_TIMEOUT_S, "silent for 5 s")
        else:
            raise PeerError("a handshake out of turn")

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._peers.unhear(self)
        if self._reason != "connection closed":
            log.info("connection from %s ended: %s", self._src or "a stranger", self._reason)


async def ask_seed(address: str, *, cluster: str, node: NodeId, secret: bytes, timeout_s: float) -> int:
    """How many partitions the ring of the cluster at this address was founded with.

    Raises:
        PeerError: it refuses us, or is not of our cluster.
        OSError: it cannot be reached in time.
    """
    challenge = secrets.token_bytes(CHALLENGE_BYTES)
    async with asyncio.timeout(timeout_s):
        reader, writer = await asyncio.open_connection(*split_address(address))
        try:
            writer.write(encode_hand(Hello(*PROTOCOLS, cluster, node, 0, "", challenge, 0)))
            length = int.from_bytes(await reader.readexactly(4))
            if length > HELLO_BYTES_MAX:
                raise PeerError("it is no node of ours")
            hand = decode_hand(await reader.readexactly(length))
        except asyncio.IncompleteReadError:
            raise PeerError("it hangs up: is that the port for peers?") from None
        finally:
            writer.close()
    if isinstance(hand, Refusal):
        raise PeerError(hand.reason)
    if not isinstance(hand, Welcome) or not proven(hand.proof, secret, cluster, hand.node, challenge):
        raise PeerError("it does not hold the cluster's secret: copy the secret_file of its nodes")
    return hand.q


def boottime() -> float:
    """Seconds on the clock by which messages age."""
    return time.clock_gettime(CLOCK)
