"""Links between nodes: real sockets, real nodes, and strangers that must not become peers."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time

import msgspec
import pytest
import uvloop
from hypothesis import given
from hypothesis import strategies as st

from cartwheel import __version__
from cartwheel.core.config import Config
from cartwheel.core.errors import PeerError
from cartwheel.core.messages import (
    Batch,
    CountAsk,
    Event,
    Message,
    PeerDown,
    PeerUp,
    Received,
    decode_batch,
    encode_batch,
)
from cartwheel.core.node import Node
from cartwheel.core.ring import Change, ChangeKind, History, Member
from cartwheel.core.storage import MemoryEngine, Store
from cartwheel.runtime import transport
from cartwheel.runtime.frames import (
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
)
from cartwheel.runtime.transport import Peers

SECRET = b"the cluster's secret"
DEADLINE_S = 20.0


class Side:
    """One node's end: its links, and the events that they gave it."""

    def __init__(
        self,
        name: str,
        *,
        cluster: str = "shop",
        secret: bytes = SECRET,
        q: int = 8,
        boot: int = 1,
        address: str = "",
        seeds: tuple[str, ...] = (),
        protocols: Protocols = PROTOCOLS,
    ) -> None:
        config = Config(node=name, cluster=cluster, secret=secret, q=q, address=address)
        history = History(
            Change(f"first:{n}", 1, n, ChangeKind.JOIN, member=Member(n, "127.0.0.1:1", "h")) for n in ("a", "b")
        )
        self.name = name
        self.node = Node(config, Store(MemoryEngine()), history=history, stint=f"s{boot}", boot=boot)
        self.node.start(0.0, 1)
        self.events: list[Event] = []
        self.heard = asyncio.Event()
        self.peers = Peers(self.node, boot=boot, secret=secret, submit=self._submit, seeds=seeds, protocols=protocols)
        self.port = 0

    def _submit(self, event: Event) -> None:
        self.events.append(event)
        self.heard.set()

    async def listen(self) -> None:
        self.port = await self.peers.listen("127.0.0.1", 0)

    def dial(self, addresses: dict[str, str]) -> None:
        """Dial these, and nobody else."""
        self.node.addresses = lambda: addresses  # type: ignore[method-assign]
        self.peers.dial()

    async def until(self, kind: type) -> Event:
        """The first event of this kind, once it is there."""
        async with asyncio.timeout(DEADLINE_S):
            while True:
                for event in self.events:
                    if isinstance(event, kind):
                        return event
                self.heard.clear()
                await self.heard.wait()

    async def until_unreachable(self, node: str, words: str) -> None:
        """Wait until the reason why ``node`` is unreachable has these words in it."""
        async with asyncio.timeout(DEADLINE_S):
            while words not in self.node.local.unreachable.get(node, ""):  # noqa: ASYNC110 - nothing announces it
                await asyncio.sleep(0)


@contextlib.asynccontextmanager
async def sides(*made: Side):
    """Listen with all of them, and stop them in the end."""
    for side in made:
        await side.listen()
    try:
        yield
    finally:
        for side in made:
            await side.peers.stop()


def run(story) -> None:
    """Run a story on asyncio's own loop and on uvloop: they differ in what a closed transport allows."""
    for factory in (None, uvloop.new_event_loop):
        with asyncio.Runner(loop_factory=factory) as runner:
            runner.run(story())


def test_a_batch_for_a_connection_that_just_ended_is_dropped():
    """The link's keeper hears of its end a turn later: a batch sent in between must not raise (it halted a node)."""

    async def story() -> None:
        a, b = Side("a"), Side("b")
        async with sides(a, b):
            a.dial({"b": f"127.0.0.1:{b.port}"})
            await a.until(PeerUp)
            link = a.peers._links["b"]
            told = link.connection_lost
            raised: list[Exception] = []

            def send() -> None:
                a.peers.post("b", CountAsk(1, "0"))
                try:
                    a.peers.flush()
                except RuntimeError as error:
                    raised.append(error)

            def send_after_the_end(exc: Exception | None) -> None:
                asyncio.get_running_loop().call_soon(send)  # ahead of the keeper, in the next turn
                told(exc)

            link.connection_lost = send_after_the_end  # type: ignore[method-assign]
            for acceptor in list(b.peers._heard):
                acceptor.close("gone")
            await a.until(PeerDown)
            assert not raised

    run(story)


def test_a_batch_arrives_whole_and_in_order():
    """What is posted in one turn arrives as the peer's batch, with its epoch, in the order posted."""

    async def story() -> None:
        a, b = Side("a"), Side("b")
        async with sides(a, b):
            a.dial({"a": "ignored", "b": f"127.0.0.1:{b.port}"})
            await a.until(PeerUp)
            asked = [CountAsk(i, "0") for i in range(600)]  # more than one frame takes
            for message in asked:
                a.peers.post("b", message)
            a.peers.flush()
            got: list[Message] = []
            while len(got) < 600:
                received = await b.until(Received)
                assert isinstance(received, Received)
                assert received.src == "a"
                assert received.batch.epoch == a.node.epoch
                got += received.batch.messages
                b.events.remove(received)
            assert got == asked

    run(story)


def test_a_lost_peer_is_told_and_found_again():
    """When the peer goes away the node hears PeerDown; when it is back, PeerUp."""

    async def story() -> None:
        a, b = Side("a"), Side("b")
        async with sides(a, b):
            a.dial({"b": f"127.0.0.1:{b.port}"})
            await a.until(PeerUp)
            a.events.clear()
            await b.peers.stop()
            await a.until(PeerDown)
            a.peers.post("b", CountAsk(1, "0"))  # to nobody: dropped
            a.peers.flush()
            again = Side("b", boot=2)
            again.port = await again.peers.listen("127.0.0.1", b.port)
            await a.until(PeerUp)
            await again.peers.stop()

    run(story)


@pytest.mark.parametrize(
    ("dialer", "wanted", "words"),
    [
        ({"name": "a", "cluster": "other"}, "b", "this is cluster 'shop', not 'other'"),
        ({"name": "a", "secret": b"another secret 123"}, "b", "does not hold the cluster's secret"),
        ({"name": "a", "q": 16}, "b", "this ring has 8 partitions, yours 16"),
        ({"name": "b", "boot": 2}, "a", "my own node id, in another process"),
        ({"name": "a"}, "c", "this is node 'b', not 'c'"),
        ({"name": "a", "protocols": (8, 9)}, "b", "no common protocol: 2 to 3 here, yours 8 to 9"),
        ({"name": "a", "protocols": (1, 1)}, "b", "no common protocol: 2 to 3 here, yours 1 to 1"),
    ],
)
def test_who_does_not_belong_is_refused_with_the_reason(dialer, wanted, words):
    """Each row is a node that dials b and must not become its peer; it learns why."""

    async def story() -> None:
        b = Side("b")
        wrong = Side(**dialer)
        async with sides(b):
            wrong.dial({wanted: f"127.0.0.1:{b.port}"})
            await wrong.until_unreachable(wanted, words)
            assert not any(isinstance(event, PeerUp) for event in wrong.events)
            assert b.events == []
            await wrong.peers.stop()

    run(story)


@pytest.mark.parametrize(
    ("ours", "theirs", "agreed"),
    [
        ((2, 3), (2, 3), 3),
        ((2, 3), (2, 2), 2),
        ((2, 3), (3, 5), 3),
        ((2, 5), (3, 4), 4),
        ((2, 3), (4, 5), None),
        ((4, 5), (2, 3), None),
    ],
)
def test_the_highest_protocol_that_both_speak_is_spoken(ours, theirs, agreed):
    """Each row reads: of these two ranges, this one is agreed on, whoever dials."""
    assert agree(ours, theirs) == agree(theirs, ours) == agreed


@pytest.mark.parametrize(
    ("of_a", "of_b", "agreed"),
    [((2, 2), (2, 3), 2), ((2, 3), (2, 2), 2), ((2, 4), (3, 6), 4), (PROTOCOLS, PROTOCOLS, 3)],
)
def test_both_nodes_are_told_which_protocol_was_agreed(of_a, of_b, agreed):
    """Each dials the other, and both hear of the lower of their newest: an older peer gets nothing that it does not know."""

    async def story() -> None:
        a, b = Side("a", protocols=of_a), Side("b", protocols=of_b)
        async with sides(a, b):
            a.dial({"b": f"127.0.0.1:{b.port}"})
            b.dial({"a": f"127.0.0.1:{a.port}"})
            met = await a.until(PeerUp), await b.until(PeerUp)
            assert met == (PeerUp("b", agreed), PeerUp("a", agreed))
            assert a.peers.builds() == {"a": Build(__version__, of_a[1]), "b": Build(__version__, agreed)}

    run(story)


def test_a_peer_that_comes_back_as_an_older_build_is_spoken_to_as_such():
    """A node is rolled back: what was agreed holds for one connection, not for a name."""

    async def story() -> None:
        a, b = Side("a"), Side("b")
        async with sides(a, b):
            a.dial({"b": f"127.0.0.1:{b.port}"})
            assert await a.until(PeerUp) == PeerUp("b", PROTOCOLS[1])
            a.events.clear()
            await b.peers.stop()
            await a.until(PeerDown)
            again = Side("b", boot=2, protocols=(2, 2))
            await again.peers.listen("127.0.0.1", b.port)
            assert await a.until(PeerUp) == PeerUp("b", 2)
            await again.peers.stop()
            await a.until(PeerDown)

    run(story)


async def welcome(writer: asyncio.StreamWriter, reader: asyncio.StreamReader, *fields: object) -> None:
    """Answer a dialer as b would, with these fields after the usual ones."""
    hello = decode_hand(await reader.readexactly(int.from_bytes(await reader.readexactly(4))))
    assert isinstance(hello, Hello)
    protocol, *more = fields
    proof = prove(SECRET, "shop", "b", hello.challenge)
    writer.write(frame(msgspec.msgpack.encode(["welcome", protocol, "b", 1, b"y" * 16, proof, *more])))


@pytest.mark.parametrize("more", [(), (8,), (8, "1.2.3"), (8, "1.2.3", "of a later build", 4)])
def test_a_welcome_of_an_older_or_a_later_build_is_understood(more):
    """Fields are only appended: those that are missing have defaults, those that we do not know are passed over."""

    async def story() -> None:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await welcome(writer, reader, 2, *more)
            with contextlib.suppress(ConnectionError):
                await reader.read()
            writer.close()

        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        a = Side("a")
        a.dial({"b": f"127.0.0.1:{server.sockets[0].getsockname()[1]}"})
        assert await a.until(PeerUp) == PeerUp("b", 2)
        assert a.peers.builds()["b"] == Build("1.2.3" if len(more) > 1 else "", 2)
        await a.peers.stop()
        server.close()

    run(story)


def test_a_protocol_that_was_not_offered_is_no_agreement():
    """An acceptor that chooses another one is broken: nothing is sent to it."""

    async def story() -> None:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await welcome(writer, reader, PROTOCOLS[1] + 1)
            with contextlib.suppress(ConnectionError):
                assert await reader.read() == b""
            writer.close()

        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        a = Side("a")
        a.dial({"b": f"127.0.0.1:{server.sockets[0].getsockname()[1]}"})
        await a.until_unreachable("b", f"it chose protocol {PROTOCOLS[1] + 1}, which was not offered")
        assert a.events == []
        await a.peers.stop()
        server.close()

    run(story)


def test_a_stranger_finds_a_seed_and_is_dialed_back():
    """Whoever holds the cluster's secret may talk of membership, both ways: else nobody could join."""

    async def story() -> None:
        b = Side("b")
        async with sides(b):
            port = free_port()
            stranger = Side("stranger", address=f"127.0.0.1:{port}", seeds=(f"127.0.0.1:{b.port}",))
            await stranger.peers.listen("127.0.0.1", port)
            stranger.dial({})
            met, back = await stranger.until(PeerUp), await b.until(PeerUp)
            assert (met, back) == (PeerUp("b"), PeerUp("stranger"))
            await stranger.peers.stop()
            gone = await b.until(PeerDown)
            assert isinstance(gone, PeerDown)
            assert gone.node == "stranger"

    run(story)


def test_two_processes_of_one_name_are_both_shut_out():
    """A copied data directory: both would mint the same dots, and nobody knows which of them is the true one."""

    async def story() -> None:
        b, first, second = Side("b"), Side("a", boot=1), Side("a", boot=2)
        async with sides(b):
            for each in (first, second):
                each.dial({"b": f"127.0.0.1:{b.port}"})
                await each.until(PeerUp)
            for each in (first, second):
                await each.until_unreachable("b", "two processes say that they are 'a'")
            assert b.node.local.counters["clones_shut_out"] >= 1
            await first.peers.stop()
            await second.peers.stop()

    run(story)


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port: int = taken.getsockname()[1]
        return port


def test_a_node_that_dials_itself_is_told_so():
    """An address that leads back here would hand our own data to ourselves, and count our own ack twice."""

    async def story() -> None:
        a = Side("a")
        async with sides(a):
            a.dial({"b": f"127.0.0.1:{a.port}"})
            await a.until_unreachable("b", "I dialed myself")

    run(story)


def test_a_dialer_without_the_secret_sends_nothing_that_counts():
    """An acceptor takes no batch before the proof, and closes on a wrong one."""

    async def story() -> None:
        b = Side("b")
        async with sides(b):
            reader, writer = await asyncio.open_connection("127.0.0.1", b.port)
            writer.write(encode_hand(Hello(*PROTOCOLS, "shop", "a", 7, "b", b"x" * 16, 8)))
            size = int.from_bytes(await reader.readexactly(4))
            welcome = decode_hand(await reader.readexactly(size))
            assert isinstance(welcome, Welcome)
            writer.write(encode_hand(Proof(prove(b"guessed", "shop", "a", welcome.challenge))))
            writer.write(frame(encode_batch(b"", [CountAsk(1, "0")])))
            assert await reader.read() == b""
            assert b.events == []
            writer.close()

    run(story)


@pytest.mark.parametrize(
    "bytes_sent",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        b"\xff\xff\xff\xff",
        frame(b""),
        frame(b"\xc1garbage"),
        encode_hand(Proof(b"")),
        encode_hand(Refusal("no")),
    ],
    ids=["http", "huge frame", "ping", "garbage", "proof first", "refusal"],
)
def test_strange_bytes_end_the_connection_and_nothing_else(bytes_sent):
    """Whatever a stranger sends, the node goes on and takes the next peer."""

    async def story() -> None:
        a, b = Side("a"), Side("b")
        async with sides(a, b):
            reader, writer = await asyncio.open_connection("127.0.0.1", b.port)
            writer.write(bytes_sent)
            async with asyncio.timeout(DEADLINE_S):
                with contextlib.suppress(ConnectionResetError):
                    assert await reader.read() == b""
            writer.close()
            a.dial({"b": f"127.0.0.1:{b.port}"})
            await a.until(PeerUp)

    run(story)


def test_a_silent_peer_is_given_up(monkeypatch):
    """A peer that keeps the connection but answers no ping (a hung process, a cut cable) is lost within the pong timeout."""
    monkeypatch.setattr(transport, "PING_S", 0.01)
    monkeypatch.setattr(transport, "PONG_TIMEOUT_S", 0.1)

    async def serve_silently(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        size = int.from_bytes(await reader.readexactly(4))
        hello = decode_hand(await reader.readexactly(size))
        assert isinstance(hello, Hello)
        proof = prove(SECRET, "shop", "b", hello.challenge)
        writer.write(encode_hand(Welcome(PROTOCOLS[1], "b", 1, b"y" * 16, proof)))
        with contextlib.suppress(ConnectionError):
            while await reader.read(1000):
                pass
        writer.close()

    async def story() -> None:
        server = await asyncio.start_server(serve_silently, "127.0.0.1", 0)
        a = Side("a")
        a.dial({"b": f"127.0.0.1:{server.sockets[0].getsockname()[1]}"})
        await a.until(PeerUp)
        down = await a.until(PeerDown)
        assert isinstance(down, PeerDown)
        assert "no pong" in down.reason
        await a.peers.stop()
        server.close()

    run(story)


def test_a_stall_of_our_own_loop_loses_no_peer(monkeypatch):
    """Both ends find their timers overdue, and the answers in the kernel's buffers: they read those first."""
    monkeypatch.setattr(transport, "PING_S", 0.02)
    monkeypatch.setattr(transport, "PONG_TIMEOUT_S", 0.1)
    monkeypatch.setattr(transport, "SILENCE_TIMEOUT_S", 0.1)

    async def story() -> None:
        a, b = Side("a"), Side("b")
        async with sides(a, b):
            a.dial({"b": f"127.0.0.1:{b.port}"})
            await a.until(PeerUp)
            for _ in range(3):
                time.sleep(0.4)  # noqa: ASYNC251 - this is the fault
                a.peers.post("b", CountAsk(1, "0"))
                a.peers.flush()
                await b.until(Received)
                b.events.clear()
            assert not any(isinstance(event, PeerDown) for event in a.events)

    run(story)


@pytest.mark.parametrize("age_s", [transport.MESSAGE_LIFETIME_S - 5, transport.MESSAGE_LIFETIME_S + 1])
def test_a_message_that_is_too_old_is_not_handled(monkeypatch, age_s):
    """The acceptor was stopped for so long while it lay in the kernel's buffer. Then there is a new link, and none of the old."""
    ahead_s = 0.0
    monkeypatch.setattr(transport, "boottime", lambda: time.monotonic() + ahead_s)
    monkeypatch.setattr(transport, "PING_S", 0.01)

    async def story() -> None:
        nonlocal ahead_s
        a, b = Side("a"), Side("b")
        async with sides(a, b):
            a.dial({"b": f"127.0.0.1:{b.port}"})
            await a.until(PeerUp)
            for i in range(100):  # young ones, while pings come and go
                a.peers.post("b", CountAsk(i, "0"))
                a.peers.flush()
                await b.until(Received)
                b.events.clear()
            a.events.clear()
            a.peers.post("b", CountAsk(1000, "0"))
            a.peers.flush()
            ahead_s += age_s
            if age_s < transport.MESSAGE_LIFETIME_S:
                await b.until(Received)
                assert a.events == []
                return
            await a.until(PeerDown)
            await a.until(PeerUp)
            a.peers.post("b", CountAsk(1001, "0"))
            a.peers.flush()
            received = await b.until(Received)
            assert isinstance(received, Received)
            assert received.batch.messages == [CountAsk(1001, "0")]
            assert b.node.local.counters["messages_too_old"] == 1

    run(story)


@pytest.mark.parametrize(("pauses_s", "handled"), [([9.0, 9.0], True), ([1.0, 16.0], False), ([16.0, 1.0], True)])
def test_a_ping_proves_only_that_what_follows_is_younger_than_the_last_pong(monkeypatch, pauses_s, handled):
    """Ping and message may have lain in the buffer together. Each row: the acceptor stops for so long before it reads each ping,
    and with the last one a message."""
    now_s = 1000.0
    monkeypatch.setattr(transport, "boottime", lambda: now_s)

    async def story() -> None:
        nonlocal now_s
        b = Side("b")
        async with sides(b):
            reader, writer = await asyncio.open_connection("127.0.0.1", b.port)
            writer.write(encode_hand(Hello(*PROTOCOLS, "shop", "a", 7, "b", b"x" * 16, 8)))
            welcome = decode_hand(await reader.readexactly(int.from_bytes(await reader.readexactly(4))))
            assert isinstance(welcome, Welcome)
            writer.write(encode_hand(Proof(prove(SECRET, "shop", "a", welcome.challenge))) + PING)
            for pause_s in pauses_s:
                assert await reader.readexactly(4) == PING
                now_s += pause_s
                writer.write(PING)
            writer.write(frame(encode_batch(b"", [CountAsk(1, "0")])))
            assert await reader.readexactly(4) == PING
            if handled:
                await b.until(Received)
            else:
                assert await reader.read() == b""
                assert b.events == []
            writer.close()

    run(story)


def test_the_next_ping_waits_for_the_pong(monkeypatch):
    """A pong that comes late delays the ping that follows: only so does a ping prove that what comes after it is young."""
    monkeypatch.setattr(transport, "PING_S", 0.001)
    counts: list[int] = []

    async def serve_slowly(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        frames, read = FrameReader(), 0
        while data := await reader.read(1000):
            for payload in frames.feed(data):
                if not read:
                    hello = decode_hand(payload)
                    assert isinstance(hello, Hello)
                    writer.write(
                        encode_hand(
                            Welcome(PROTOCOLS[1], "b", 1, b"y" * 16, prove(SECRET, "shop", "b", hello.challenge))
                        )
                    )
                read += 1
            pings = read - 2  # hello and proof came first
            if pings > len(counts):
                await asyncio.sleep(0.02)  # twenty pings' time
                counts.append(pings)
                writer.write(PING if len(counts) < 10 else PING + PING)
        writer.close()

    async def story() -> None:
        counts.clear()
        server = await asyncio.start_server(serve_slowly, "127.0.0.1", 0)
        a = Side("a")
        a.dial({"b": f"127.0.0.1:{server.sockets[0].getsockname()[1]}"})
        await a.until(PeerUp)
        down = await a.until(PeerDown)
        assert isinstance(down, PeerDown)
        assert down.reason == "a pong without a ping"
        assert counts == list(range(1, 11))
        await a.peers.stop()
        server.close()
        await server.wait_closed()

    run(story)


@given(st.lists(st.binary(max_size=200), max_size=8), st.data())
def test_frames_survive_any_chunking(payloads, data):
    """However the stream is cut, the same payloads come out, in order."""
    stream = b"".join(frame(payload) for payload in payloads)
    reader = FrameReader()
    found: list[bytes] = []
    while stream:
        size = data.draw(st.integers(1, len(stream)))
        chunk, stream = stream[:size], stream[size:]
        found += [bytes(each) for each in reader.feed(chunk)]
    assert found == payloads


def test_a_frame_over_the_limit_is_refused_from_its_length():
    """Four bytes that announce too much are enough to end it: nothing of it is buffered."""
    reader = FrameReader()
    reader.limit = 100
    with pytest.raises(PeerError, match="exceeds 100"):
        list(reader.feed((101).to_bytes(4)))


def test_the_limit_may_be_raised_between_two_frames_of_one_chunk():
    """The end of the handshake and a first large batch arrive together."""
    reader = FrameReader()
    large = b"x" * (reader.limit + 1)
    found = []
    for payload in reader.feed(frame(b"proof") + frame(large)):
        found.append(bytes(payload))
        reader.limit = len(large)
    assert found == [b"proof", large]


@given(st.binary(max_size=100))
def test_a_broken_handshake_is_a_peer_error(payload):
    """Any bytes in place of a handshake raise PeerError, never anything else."""
    with contextlib.suppress(PeerError):
        decode_hand(payload)


def test_an_epoch_travels_with_every_batch():
    """A batch decodes to what was sent, epoch included."""
    payload = encode_batch(b"epoch", [CountAsk(1, "b")])
    assert decode_batch(payload) == Batch(b"epoch", [CountAsk(1, "b")])
