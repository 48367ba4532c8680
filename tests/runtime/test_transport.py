"""Links between nodes: real sockets, real nodes, and strangers that must not become peers."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time

import pytest
import uvloop
from hypothesis import given
from hypothesis import strategies as st

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
    PROTOCOL_MAX,
    PROTOCOL_MIN,
    FrameReader,
    Hello,
    Proof,
    Refusal,
    Welcome,
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
        self.peers = Peers(self.node, boot=boot, secret=secret, submit=self._submit, seeds=seeds)
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
            writer.write(encode_hand(Hello(PROTOCOL_MIN, PROTOCOL_MAX, "shop", "a", 7, "b", b"x" * 16, 8)))
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
        writer.write(encode_hand(Welcome(PROTOCOL_MAX, "b", 1, b"y" * 16, proof)))
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
            writer.write(encode_hand(Hello(PROTOCOL_MIN, PROTOCOL_MAX, "shop", "a", 7, "b", b"x" * 16, 8)))
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
                            Welcome(PROTOCOL_MAX, "b", 1, b"y" * 16, prove(SECRET, "shop", "b", hello.challenge))
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
        reader.feed((101).to_bytes(4))


@given(st.binary(max_size=100))
def test_a_broken_handshake_is_a_peer_error(payload):
    """Any bytes in place of a handshake raise PeerError, never anything else."""
    with contextlib.suppress(PeerError):
        decode_hand(payload)


def test_an_epoch_travels_with_every_batch():
    """A batch decodes to what was sent, epoch included."""
    payload = encode_batch(b"epoch", [CountAsk(1, "b")])
    assert decode_batch(payload) == Batch(b"epoch", [CountAsk(1, "b")])
