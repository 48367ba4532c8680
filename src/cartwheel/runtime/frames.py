"""Frames and the handshake between nodes: what lies around the batches of ``core.messages``.

    frame      length (4 bytes, big endian) | payload        a frame of length 0 is a ping, or the pong that answers it
    handshake  dialer -> Hello;  acceptor -> Welcome or Refusal;  dialer -> Proof;  then frames of batches, one way

The dialer names whom it wants to reach; both sides prove with a keyed hash over the other's fresh challenge that they hold the
cluster's secret. So nodes of another cluster, a node behind a stale address, a node that dialed itself, and strangers are
told apart before any message is taken.

Versions: each side speaks a range of protocols, and the highest that both speak is spoken, on each connection for itself. So a
cluster can be upgraded node by node as long as neighbouring versions have a protocol in common; the core is told which
(``PeerUp``). Frames of the handshake only ever get further fields at their end, which an older peer passes over.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Iterator

import msgspec

from cartwheel.core.errors import PeerError
from cartwheel.core.messages import PROTOCOL_MAX, PROTOCOL_MIN
from cartwheel.core.types import NodeId

Protocols = tuple[int, int]
"""The lowest and the highest protocol that a side speaks."""
PROTOCOLS: Protocols = (PROTOCOL_MIN, PROTOCOL_MAX)
CHALLENGE_BYTES = 16
HELLO_BYTES_MAX = 4096
"""A stranger can make us buffer no more than this."""
FRAME_BYTES_MAX = 256 << 20
"""A record of 100 siblings of 1 MiB each (the default limits) and some; a longer frame is a broken peer."""
PING = b"\x00\x00\x00\x00"


class Hello(msgspec.Struct, array_like=True, tag="hello"):
    """Dialer to acceptor, first frame."""

    protocol_min: int
    protocol_max: int
    cluster: str
    node: NodeId
    boot: int
    """The dialer's boot nonce: two processes with one node id differ in it."""
    wanted: NodeId
    """"": whoever is there (a seed)."""
    challenge: bytes
    q: int
    """Partitions that the dialer's ring was founded with: a peer that cuts the ring otherwise would look for keys elsewhere. 0:
    it wants to know."""
    address: str = ""
    """``host:port`` where the dialer hears peers: an acceptor that does not know it dials back."""


class Welcome(msgspec.Struct, array_like=True, tag="welcome"):
    """Acceptor to dialer: you may speak this protocol."""

    protocol: int
    node: NodeId
    boot: int
    challenge: bytes
    proof: bytes
    q: int = 0
    """Partitions that the ring was founded with."""
    version: str = ""
    """Of the acceptor's program, for people. "": it is of a build that does not tell."""


class Refusal(msgspec.Struct, array_like=True, tag="refusal"):
    """Acceptor to dialer, before it closes."""

    reason: str


class Proof(msgspec.Struct, array_like=True, tag="proof"):
    """Dialer to acceptor, last frame of the handshake."""

    proof: bytes


_encoder = msgspec.msgpack.Encoder()
_decoder: msgspec.msgpack.Decoder[Hello | Welcome | Refusal | Proof] = msgspec.msgpack.Decoder(
    Hello | Welcome | Refusal | Proof
)


def frame(payload: bytes) -> bytes:
    """Put the length in front."""
    return len(payload).to_bytes(4) + payload


def encode_hand(hand: Hello | Welcome | Refusal | Proof) -> bytes:
    """A whole frame of the handshake."""
    return frame(_encoder.encode(hand))


def decode_hand(payload: bytes | memoryview) -> Hello | Welcome | Refusal | Proof:
    """Read a handshake frame's payload.

    Raises:
        PeerError: it is none.
    """
    try:
        return _decoder.decode(payload)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise PeerError(f"not a handshake: {error}") from None


def prove(secret: bytes, cluster: str, prover: NodeId, challenge: bytes) -> bytes:
    """Show that ``prover`` holds the cluster's secret, for one challenge."""
    text = b"cartwheel peer\0" + cluster.encode() + b"\0" + prover.encode() + b"\0" + challenge
    return hmac.digest(secret, text, hashlib.sha256)


def proven(proof: bytes, secret: bytes, cluster: str, prover: NodeId, challenge: bytes) -> bool:
    """Check such a proof."""
    return hmac.compare_digest(proof, prove(secret, cluster, prover, challenge))


def agree(ours: Protocols, theirs: Protocols) -> int | None:
    """The highest protocol that both sides speak. None: there is none."""
    highest = min(ours[1], theirs[1])
    return highest if highest >= max(ours[0], theirs[0]) else None


class Build(msgspec.Struct, frozen=True):
    """What a peer runs, for people who roll a cluster from one build to the next."""

    version: str = ""
    """"": not known."""
    protocol: int = 0
    """What is spoken with it. 0: nothing."""


class FrameReader:
    """Cut a stream into frames. ``limit`` bounds a frame; it is raised after the handshake."""

    __slots__ = ("_rest", "limit")

    def __init__(self) -> None:
        self.limit = HELLO_BYTES_MAX
        self._rest = bytearray()

    def feed(self, data: bytes) -> Iterator[bytes | memoryview]:
        """Take received bytes and give the payloads that are complete now, in order. They are valid until the next call, and must
        all be taken before it, unless the connection ends. ``limit`` may be raised between two: what ends a handshake and the
        first frame after it may arrive together.

        Raises:
            PeerError: a frame announces more than ``limit`` bytes. Nothing of it was buffered beyond what had arrived.
        """
        source: bytes | bytearray = data
        if self._rest:
            self._rest += data
            source = self._rest
        view = memoryview(source)
        at, end = 0, len(source)
        while end - at >= 4:
            length = int.from_bytes(view[at : at + 4])
            if length > self.limit:
                raise PeerError(f"a frame of {length} bytes exceeds {self.limit}")
            if end - at - 4 < length:
                break
            yield view[at + 4 : at + 4 + length]
            at += 4 + length
        if at or source is data:  # else one long frame is still arriving: copying it each time would be quadratic
            self._rest = bytearray(view[at:])
