"""Context tokens: whatever is not, to the byte, what this cluster gave out for this very key is refused."""

import base64
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cartwheel.core.context import _FORMAT, TOKEN_BYTES_MAX, Context, _mac, decode_token, encode_token
from cartwheel.core.errors import BadContext

SECRET = b"s" * 32
HOME: dict[str, Any] = {"secret": SECRET, "bucket": "0", "key": b"k"}
CONTEXT = Context({"a/1": 117964800000000000, "b/1": 7}, "a", (("c/1", 9),))
TOKEN = encode_token(CONTEXT, **HOME)

clocks = st.dictionaries(st.text(max_size=20), st.integers(0, 2**63), max_size=5)
contexts = st.builds(
    Context,
    clocks,
    st.text(max_size=20),
    st.lists(st.tuples(st.text(max_size=9), st.integers(0, 2**63)), max_size=3).map(tuple),
)


@given(contexts, st.text(max_size=20), st.binary(max_size=40))
def test_round_trip(context, bucket, key):
    """A token given back for its own bucket and key yields the context; it is plain ASCII that needs no quoting."""
    token = encode_token(context, secret=SECRET, bucket=bucket, key=key)
    assert decode_token(token, secret=SECRET, bucket=bucket, key=key) == context
    assert set(token) <= set(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_")


def test_equal_contexts_are_equal_tokens():
    """The order in which a clock was filled does not show."""
    turned = Context({"b/1": 7, "a/1": 117964800000000000}, "a", (("c/1", 9),))
    assert encode_token(turned, **HOME) == TOKEN


def test_the_bytes_of_a_token():
    """Clients keep tokens across an upgrade, so their form must not change by accident."""
    assert TOKEN == b"AZOCo2EvMc8BoxhcUAAAAKNiLzEHoWGRkqNjLzEJCSVVgIX-pVvguiPiAOrhlg"
    assert decode_token(TOKEN, **HOME) == CONTEXT


@pytest.mark.parametrize(
    "context", [CONTEXT, Context({}), Context({"a/1": 1}), Context({"ab/1": 1}), Context({"abc/1": 1})]
)
def test_any_changed_character_is_refused(context):
    """Every other character at every place, also where base64 has bits to spare, and every truncation."""
    token = encode_token(context, **HOME)
    alphabet = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_+/= \n\x00\xff"
    for at in range(len(token)):
        with pytest.raises(BadContext):
            decode_token(token[:at], **HOME)
        for other in alphabet:
            if other != token[at]:
                with pytest.raises(BadContext):
                    decode_token(token[:at] + bytes((other,)) + token[at + 1 :], **HOME)


@pytest.mark.parametrize("extra", [b"=", b"==", b"A", b"AAAA", b"\n", b" "])
def test_an_appendix_is_refused(extra):
    """Nothing may follow, padding neither."""
    with pytest.raises(BadContext):
        decode_token(TOKEN + extra, **HOME)


@pytest.mark.parametrize(
    "elsewhere",
    [
        {**HOME, "key": b"l"},
        {**HOME, "key": b""},
        {**HOME, "bucket": "1"},
        {**HOME, "secret": b"t" * 32},  # another cluster
        {**HOME, "bucket": "0k", "key": b""},  # the same letters, parted elsewhere
        {**HOME, "bucket": "", "key": b"0k"},
    ],
)
def test_a_token_of_elsewhere_is_refused(elsewhere):
    """Each row differs in the key, the bucket or the cluster."""
    with pytest.raises(BadContext, match="another key, bucket or cluster"):
        decode_token(TOKEN, **elsewhere)


def test_a_long_token_is_refused_unread():
    """Its length alone is enough."""
    assert TOKEN_BYTES_MAX == 65536
    with pytest.raises(BadContext, match="longer than 65536"):
        decode_token(b"A" * (TOKEN_BYTES_MAX + 1), **HOME)
    with pytest.raises(BadContext, match="another version"):
        decode_token(b"A" * TOKEN_BYTES_MAX, **HOME)


@given(st.binary(max_size=80))
def test_arbitrary_bytes_are_refused(token):
    """Decoding raises nothing but BadContext, and never yields a context."""
    with pytest.raises(BadContext):
        decode_token(token, **HOME)


@given(st.binary(max_size=60) | st.just(b"\x94\x80\xa0\x90" + b"\x91" * 9000) | st.just(b"\x92\x80\xa1\xff"))
@settings(max_examples=60)
def test_arbitrary_contents_are_refused(contents):
    """Neither do contents that no node writes, though sealed with the right secret."""
    body = bytes((_FORMAT,)) + contents
    token = base64.urlsafe_b64encode(body + _mac(SECRET, "0", b"k", body)).rstrip(b"=")
    try:
        decode_token(token, **HOME)
    except BadContext:
        pass


def test_another_format_is_refused():
    """A version of this store that we do not know sealed it."""
    body = bytes((_FORMAT + 1,)) + b"\x92\x80\xa0"
    token = base64.urlsafe_b64encode(body + _mac(SECRET, "0", b"k", body)).rstrip(b"=")
    with pytest.raises(BadContext, match="another version"):
        decode_token(token, **HOME)
