"""The proxy between nodes, with real sockets: what a cut stops, what it does not, and that healing loses nothing."""

from __future__ import annotations

import asyncio
import contextlib
import socket

from cartwheel.chaos.proxy import HOST, Proxy

DEADLINE_S = 20.0
ROUNDS = 20


class Peer:
    """A node's door for peers: keeps what it hears on each connection."""

    def __init__(self):
        self.heard: list[bytearray] = []
        self.closed: list[bool] = []
        self.writers: list[asyncio.StreamWriter] = []

    async def start(self):
        self.server = await asyncio.start_server(self._accept, HOST, 0)
        return self.server.sockets[0].getsockname()[1]

    async def _accept(self, reader, writer):
        number = len(self.heard)
        self.heard.append(bytearray())
        self.closed.append(False)
        self.writers.append(writer)
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(65536):
                self.heard[number] += data
        self.closed[number] = True
        writer.close()


class Net:
    """Nodes a and b with the proxy between them; and x and y, whose traffic tells that time has passed."""

    async def __aenter__(self):
        self.peers = {name: Peer() for name in "abxy"}
        self.proxy = Proxy({name: await peer.start() for name, peer in self.peers.items()})
        await self.proxy.start()
        self.writers = []
        _, self._clock = await self.dial("x", "y")
        return self

    async def __aexit__(self, *exc):
        for writer in self.writers:
            writer.transport.abort()
        for peer in self.peers.values():
            peer.server.close()
        await self.proxy.stop()

    def heard(self, name, number=0):
        """What the node has heard on its connection of that number."""
        heard = self.peers[name].heard
        return bytes(heard[number]) if number < len(heard) else None

    async def dial(self, a, b):
        """Have a dial b, through the proxy."""
        reader, writer = await asyncio.open_connection(HOST, self.proxy.ports[a, b])
        self.writers.append(writer)
        return reader, writer

    async def joined(self, a, b):
        """The same, and both ends are connected: b has heard ``hello``, and its own end is returned, too."""
        before = len(self.peers[b].heard)
        reader, writer = await self.dial(a, b)
        writer.write(b"hello ")
        await self.until(lambda: self.heard(b, before) == b"hello ")
        return reader, writer, self.peers[b].writers[before]

    async def until(self, condition):
        """Wait for it."""
        async with asyncio.timeout(DEADLINE_S):
            while not condition():  # noqa: ASYNC110 # what is waited for is mostly bytes in another object
                await asyncio.sleep(0)

    async def time_passes(self):
        """Enough turns of the loop that whatever could arrive has arrived: x and y have talked for a while."""
        for _ in range(ROUNDS):
            length = len(self.heard("y") or b"")
            self._clock.write(b".")
            await self.until(lambda length=length: len(self.heard("y") or b"") > length)


def story(body):
    """Run a test in an event loop of its own."""

    async def told():
        async with Net() as net:
            await body(net)

    asyncio.run(told())


def test_bytes_travel_both_ways():
    """In order, on as many connections as there are."""

    async def body(net):
        reader, writer, far = await net.joined("a", "b")
        writer.write(b"and more")
        far.write(b"answer")
        assert await reader.readexactly(6) == b"answer"
        await net.until(lambda: net.heard("b") == b"hello and more")
        await net.joined("a", "b")
        await net.joined("b", "a")
        assert net.proxy.carried["a", "b"] == len(b"hello and more" + b"hello ")
        assert net.proxy.carried["b", "a"] == len(b"answer" + b"hello ")

    story(body)


def test_a_one_way_cut_stops_one_direction_whoever_dialed():
    """With (a, b) cut, a is not heard, neither where it dialed nor where it was dialed; b is. Healing loses nothing."""

    async def body(net):
        from_a_reader, from_a, at_b = await net.joined("a", "b")
        _, from_b, at_a = await net.joined("b", "a")
        net.proxy.cut([("a", "b")])
        from_a.write(b"held")
        at_a.write(b"held, too")
        at_b.write(b"heard")
        from_b.write(b"heard, too")
        assert await from_a_reader.readexactly(5) == b"heard"
        await net.until(lambda: net.heard("a") == b"hello heard, too")
        await net.time_passes()
        assert net.heard("b") == b"hello "
        from_a.write(b" and more")
        net.proxy.heal()
        await net.until(lambda: net.heard("b") == b"hello held and more")

    story(body)


def test_a_cut_of_both_directions_stops_everything():
    """And what waits on either side arrives after healing, in order."""

    async def body(net):
        reader, writer, far = await net.joined("a", "b")
        net.proxy.cut([("a", "b"), ("b", "a")])
        writer.write(b"1")
        far.write(b"2")
        await net.time_passes()
        assert net.heard("b") == b"hello "
        net.proxy.heal()
        assert await reader.readexactly(1) == b"2"
        await net.until(lambda: net.heard("b") == b"hello 1")

    story(body)


def test_other_pairs_do_not_notice():
    """A cut between a and b leaves a and x alone."""

    async def body(net):
        net.proxy.cut([("a", "b"), ("b", "a")])
        await net.joined("a", "x")
        await net.joined("x", "b")

    story(body)


def test_a_cut_replaces_the_one_before():
    """What is not named any more is healed."""

    async def body(net):
        _, writer, _ = await net.joined("a", "b")
        net.proxy.cut([("a", "b")])
        writer.write(b"held")
        net.proxy.cut([("b", "a")])
        await net.until(lambda: net.heard("b") == b"hello held")

    story(body)


def test_a_new_connection_waits_for_both_directions():
    """It is accepted, but the far end hears of it, and of what was sent on it, only after healing."""

    async def body(net):
        for cut in (("a", "b"), ("b", "a")):
            before = len(net.peers["b"].heard)
            net.proxy.cut([cut])
            _, writer = await net.dial("a", "b")
            writer.write(b"early")
            await net.time_passes()
            assert len(net.peers["b"].heard) == before
            net.proxy.heal()
            await net.until(lambda before=before: net.heard("b", before) == b"early")

    story(body)


def test_a_dialer_that_gave_up_during_a_cut_never_reaches_the_far_end():
    """As a SYN that was lost."""

    async def body(net):
        net.proxy.cut([("a", "b")])
        _, writer = await net.dial("a", "b")
        writer.write(b"gone")
        await net.until(lambda: any(relay.dialer.early for relay in net.proxy.relays))
        writer.transport.abort()
        await net.until(lambda: len(net.proxy.relays) == 1)  # that of x and y
        net.proxy.heal()
        await net.time_passes()
        assert net.heard("b") is None

    story(body)


def test_the_end_of_a_connection_travels_like_bytes():
    """At once when the way is open; after healing when it was cut."""

    async def body(net):
        _, writer, _ = await net.joined("a", "b")
        writer.close()
        await net.until(lambda: net.peers["b"].closed[0])
        _, writer, _ = await net.joined("a", "b")
        net.proxy.cut([("a", "b")])
        writer.write(b"last words")
        writer.close()
        await net.time_passes()
        assert not net.peers["b"].closed[1]
        net.proxy.heal()
        await net.until(lambda: net.peers["b"].closed[1])
        assert net.heard("b", 1) == b"hello last words"

    story(body)


def test_a_reset_that_the_proxy_notices_during_a_cut_waits_for_healing():
    """With (a, b) cut, b still writes to a, which is gone: the proxy hears so at once, b only after healing."""

    async def body(net):
        _, writer, far = await net.joined("a", "b")
        [relay] = [each for each in net.proxy.relays if each.dialer.direction == ("a", "b")]
        net.proxy.cut([("a", "b")])
        writer.transport.abort()

        def noticed():
            far.write(b"are you there?")
            return relay.dialer.closed

        await net.until(noticed)
        await net.time_passes()
        assert not net.peers["b"].closed[0]
        net.proxy.heal()
        await net.until(lambda: net.peers["b"].closed[0])

    story(body)


def test_nobody_listens_there():
    """The dialer is told by a closed connection."""

    async def body(net):
        net.peers["b"].server.close()
        await net.peers["b"].server.wait_closed()
        reader, _ = await net.dial("a", "b")
        async with asyncio.timeout(DEADLINE_S):
            assert await reader.read() == b""

    story(body)


def test_a_cut_holds_the_sender_back():
    """Buffers are bounded: a sender that goes on meets a full socket, not our memory. All it sent arrives after healing."""

    async def body(net):
        _, writer, _ = await net.joined("a", "b")
        sock = writer.get_extra_info("socket")
        net.proxy.cut([("a", "b")])
        before = net.proxy.carried["a", "b"]
        chunk, sent = b"z" * 65536, 0
        duplicate = socket.socket(fileno=sock.fileno())
        try:
            duplicate.setblocking(False)
            stuck = 0
            while stuck < ROUNDS:
                try:
                    sent += duplicate.send(chunk)
                    assert sent < 256 << 20, "nobody holds the sender back"
                except BlockingIOError:
                    stuck += 1
                    await net.time_passes()
        finally:
            duplicate.detach()
        assert net.proxy.carried["a", "b"] == before
        net.proxy.heal()
        await net.until(lambda: len(net.heard("b")) == len(b"hello ") + sent)

    story(body)


def test_every_pair_has_a_port_of_its_own():
    """And ``dial`` names those of one node."""

    async def body(net):
        ports = net.proxy.ports
        assert len(set(ports.values())) == len(ports) == 4 * 3
        assert net.proxy.dial("a") == ",".join(f"{b}={HOST}:{ports['a', b]}" for b in "bxy")

    story(body)
