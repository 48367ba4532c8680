"""Context tokens: what a ``get`` hands to the client, for its next ``put`` to hand back (sections 4.1 and 4.4).

    token = base64url( version byte | msgpack [clock, coordinator, dots] | MAC )
    MAC   = keyed BLAKE2b, 16 bytes, over bucket, key and all before it

A token is opaque to clients, bound to its key, and authenticated with the cluster's secret: a forged context with a huge
counter would silently swallow every later write of that actor (it would count as "already seen"), and a token of another
key would supersede what its holder never read. The **coordinator** is the node that answered the read fastest; a put
through a non-owner goes there first (section 5: it likely keeps "read your writes").

**Dots beside the clock.** The context after a ``put`` that left siblings must cover that put and what its client had read,
but not siblings the client never saw. A clock cannot always say so (an entry covers everything up to it), so such a context
keeps single writes as dots beside the clock. After a ``get`` the dots are the record's cloud (``versions``): nearly always none.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac

import msgspec

from cartwheel.core.errors import BadContext
from cartwheel.core.types import Clock, Dot, NodeId

_FORMAT = 1
_MAC_BYTES = 16
TOKEN_BYTES_MAX = 64 * 1024
"""Far above any honest clock (some 30 bytes per coordinator); bounds what a forger can make us hash."""


class Context(msgspec.Struct, frozen=True, array_like=True):
    """The inside of a token."""

    clock: Clock
    coordinator: NodeId = ""
    dots: tuple[Dot, ...] = ()


_encoder = msgspec.msgpack.Encoder(order="sorted")
_decoder = msgspec.msgpack.Decoder(Context)


def _mac(secret: bytes, bucket: str, key: bytes, body: bytes) -> bytes:
    name = bucket.encode()
    digest = hashlib.blake2b(key=hashlib.sha256(secret).digest(), digest_size=_MAC_BYTES, person=b"cartwheel-ctx")
    digest.update(len(name).to_bytes(2) + name + len(key).to_bytes(4) + key + body)
    return digest.digest()


def encode_token(context: Context, *, secret: bytes, bucket: str, key: bytes) -> bytes:
    """The token for a context: ASCII, without padding, fit for pasting into a shell or a header."""
    body = bytes((_FORMAT,)) + _encoder.encode(context)
    return base64.urlsafe_b64encode(body + _mac(secret, bucket, key, body)).rstrip(b"=")


def decode_token(token: bytes, *, secret: bytes, bucket: str, key: bytes) -> Context:
    """Read a token.

    Raises:
        BadContext: it is damaged, forged, of another key or cluster, or of a format that this version does not know.
    """
    if len(token) > TOKEN_BYTES_MAX:
        raise BadContext(f"the context is longer than {TOKEN_BYTES_MAX} bytes")
    try:
        raw = base64.b64decode(token + b"=" * (-len(token) % 4), altchars=b"-_", validate=True)
    except (binascii.Error, ValueError):
        raise BadContext("the context is damaged: it is not base64url as this store hands out") from None
    if base64.urlsafe_b64encode(raw).rstrip(b"=") != token:
        raise BadContext("the context is damaged: it is not base64url as this store hands out")
    body, mac = raw[:-_MAC_BYTES], raw[-_MAC_BYTES:]
    if not body or body[0] != _FORMAT:
        raise BadContext("the context is damaged, or of another version of this store")
    if not hmac.compare_digest(mac, _mac(secret, bucket, key, body)):
        raise BadContext("the context is damaged, or of another key, bucket or cluster: read the key again")
    try:
        return _decoder.decode(body[1:])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BadContext(f"the context does not parse: {error}") from None
