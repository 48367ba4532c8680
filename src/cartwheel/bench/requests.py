"""Which keys, which commands: endless (or finite) streams of encoded requests.

A request is ``(bytes to send, kind)``. The generator draws one for every reply it gets, so a draw must cost a few hundred
nanoseconds: keys have a fixed width, so that a command is a template to fill in, and values are made beforehand.

Zipfian keys: the key of rank ``k`` (from 1) is drawn with probability ``(1/k**s) / H`` where ``H`` is the sum of ``1/i**s``
over all ranks. The sums are tabulated and searched: exact, O(log n) a draw, eight bytes a key. Ranks are key numbers; YCSB
scatters them so that hot keys are no neighbours, but a ring places keys by their hash and has done so already.
"""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections.abc import Callable, Iterator
from itertools import accumulate
from random import Random
from typing import TypeAlias

from cartwheel.bench.options import BenchOptions

Request: TypeAlias = tuple[bytes, int]

GET, SET = 0, 1
KINDS = ("get", "set")
"""The names of the kinds of request, by number."""

VALUES = 16
"""Different values in turn, of random bytes: one value for all keys would flatter an engine that compresses."""
VALUES_BYTES_MAX = 16 << 20


def uniform(keys: int, random: Random) -> Callable[[], int]:
    """A function that draws a key number, 0 to ``keys`` - 1, each as likely as any other."""
    fraction = random.random
    return lambda: int(fraction() * keys)


def zipfian(keys: int, exponent: float, random: Random) -> Callable[[], int]:
    """A function that draws a key number; number ``k`` in proportion to ``1 / (k + 1)**exponent``."""
    sums = array("d", accumulate((rank + 1) ** -exponent for rank in range(keys)))
    total, fraction = sums[-1], random.random
    # A fraction is at most 1 - 2**-53: the product never rounds up to the total, which would be a rank too far.
    return lambda: bisect_right(sums, fraction() * total)


def _get_template(prefix: str) -> bytes:
    key = prefix.encode().replace(b"%", b"%%")
    return b"*2\r\n$3\r\nGET\r\n$%d\r\n" % (len(prefix.encode()) + 12) + key + b"%012d\r\n"


def _set_template(prefix: str) -> bytes:
    return _get_template(prefix).replace(b"*2\r\n$3\r\nGET", b"*3\r\n$3\r\nSET", 1)


def _values(options: BenchOptions, random: Random) -> list[bytes]:
    size = options.value_bytes
    count = max(1, min(VALUES, VALUES_BYTES_MAX // size))
    return [b"$%d\r\n%b\r\n" % (size, random.randbytes(size)) for _ in range(count)]


def workload(options: BenchOptions, process: int) -> Iterator[Request]:
    """The endless stream of one process: the same options and process, the same stream."""
    random = Random(f"{options.seed}/{process}")
    if options.distribution == "zipfian":
        draw = zipfian(options.keys, options.zipf_exponent, random)
    else:
        draw = uniform(options.keys, random)
    reads, fraction = options.reads, random.random
    get, put = _get_template(options.key_prefix), _set_template(options.key_prefix)
    values = _values(options, random)
    while True:
        for value in values:
            # A run of reads does not use up the value, but all the same each is written as often as any other.
            while fraction() < reads:
                yield get % draw(), GET
            yield put % draw() + value, SET


def preload(options: BenchOptions, process: int) -> Iterator[Request]:
    """This process's share of the keys, each written once."""
    random = Random(f"{options.seed}/{process}/preload")
    put = _set_template(options.key_prefix)
    values = _values(options, random)
    for number in range(process, options.keys, options.processes):
        yield put % number + values[number % len(values)], SET
