"""All keys at once: written before a judged load begins, and read back after it has ended. A few threads, with pipelines."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from random import Random

import msgspec

from cartwheel.bench.judge import Finding, Judge, Outcome, value_of
from cartwheel.bench.run import BenchFailed
from cartwheel.bench.steady import PADDINGS, key_name
from cartwheel.client.resp import Connection, Reply, ReplyError, parse_address
from cartwheel.core.config import BucketProps
from cartwheel.core.errors import CartwheelError

THREADS_PER_NODE = 2
CHUNK = 200
CHUNK_BYTES = 1 << 20
TRIES = 8
PAUSE_S = 0.1
"""Before the second try, and twice as long before each next one."""
TIMEOUT_S = 30.0
SHOW_S = 0.2

Show = Callable[[int], None]
"""Called now and then with how many keys are done."""


class ReadBack(msgspec.Struct, frozen=True):
    """What the keys hold in the end."""

    keys: int
    seconds: float
    absent: int
    """Acknowledged, and not found at a quorum."""
    older: int
    """Acknowledged, and only an earlier value is found."""
    foreign: int
    """A value is found that nobody wrote."""
    elsewhere: int
    """Of those (the first ``CHUNK``): all replicas together do have it."""
    unread: int
    """No answer to be had."""
    examples: list[str]

    @property
    def lost(self) -> int:
        """Acknowledged, but absent or older."""
        return self.absent + self.older


def fill(addresses: Sequence[str], judge: Judge, value_bytes: int, show: Show) -> float:
    """Write every key once; return the seconds it took.

    Raises:
        BenchFailed: a write was not acknowledged, though it was tried ``TRIES`` times.
    """
    random = Random("fill")
    paddings = [random.randbytes(value_bytes) for _ in range(PADDINGS)]

    def put(connection: Connection, keys: range) -> None:
        numbers = {key: judge.begin_write(key) for key in keys}
        values = {key: value_of(key, number, paddings[key % PADDINGS]) for key, number in numbers.items()}
        for key, reply in _insist(connection, keys, lambda key: ("SET", key_name(key), values[key])):
            if isinstance(reply, ReplyError):
                raise BenchFailed(f"filling: {reply}")
            judge.end_write(key, Outcome.ACKED)

    began_s = time.perf_counter()
    _spread(addresses, judge.keys, _chunk(value_bytes), put, show)
    return time.perf_counter() - began_s


def read_back(addresses: Sequence[str], judge: Judge, value_bytes: int, show: Show) -> ReadBack:
    """Read every key, each through one of these nodes in turn, and judge what is there.

    Raises:
        BenchFailed: a node does not answer.
    """
    suspects: list[tuple[int, list[bytes], str]] = []
    unread: list[str] = []

    def get(connection: Connection, keys: range) -> None:
        for key, reply in _insist(connection, keys, lambda key: ("CW.GET", key_name(key))):
            if isinstance(reply, ReplyError):
                unread.append(f"key {key}: {reply}")
            elif not judge.is_there(key, values := _values(reply)):
                suspects.append((key, values, connection.address))

    began_s, known = time.perf_counter(), len(judge.examples)
    _spread(addresses, judge.keys, _chunk(value_bytes), get, show)
    seconds = time.perf_counter() - began_s
    suspects.sort()
    counts = dict.fromkeys(("absent", "older", "foreign"), 0)
    for key, values, address in suspects:
        lost = judge.read_back(key, values, f"read back at {address}") is Finding.LOST
        counts["foreign" if not lost else "older" if values else "absent"] += 1
    return ReadBack(
        keys=judge.keys,
        seconds=seconds,
        elsewhere=_elsewhere(addresses, judge, [key for key, _, _ in suspects[:CHUNK]]),
        unread=len(unread),
        examples=[*judge.examples[known:], *unread[:10]],
        **counts,
    )


def _elsewhere(addresses: Sequence[str], judge: Judge, keys: Sequence[int]) -> int:
    """How many of these show what was acknowledged once all replicas are asked."""
    replicas = min(len(addresses), BucketProps().n)
    with _connected(addresses[0]) as connection:
        replies = connection.pipeline([("CW.GET", key_name(key), "R", replicas) for key in keys])
    pairs = zip(keys, replies, strict=True)
    return sum(not isinstance(reply, ReplyError) and judge.is_there(key, _values(reply)) for key, reply in pairs)


def _values(reply: Reply) -> list[bytes]:
    assert isinstance(reply, list), reply
    values = reply[1]
    assert isinstance(values, list), values
    return [value for value in values if isinstance(value, bytes)]


def _chunk(value_bytes: int) -> int:
    return max(1, min(CHUNK, CHUNK_BYTES // value_bytes))


def _spread(
    addresses: Sequence[str], keys: int, chunk: int, work: Callable[[Connection, range], None], show: Show
) -> None:
    """Have threads work on all keys, chunk by chunk, in turn through these nodes."""
    workers = THREADS_PER_NODE * len(addresses)
    done = [0] * workers
    stopped = False

    def run(number: int) -> None:
        with _connected(addresses[number % len(addresses)]) as connection:
            for start in range(number * chunk, keys, workers * chunk):
                if stopped:
                    return
                part = range(start, min(start + chunk, keys))
                work(connection, part)
                done[number] += len(part)

    with ThreadPoolExecutor(workers) as threads:
        futures: list[Future[None]] = [threads.submit(run, number) for number in range(workers)]
        try:
            while wait(futures, SHOW_S).not_done and not any(each.done() and each.exception() for each in futures):
                show(sum(done))
        finally:
            stopped = True
    for each in futures:
        each.result()


def _insist(
    connection: Connection, keys: range, command: Callable[[int], tuple[str | bytes | int, ...]]
) -> Iterator[tuple[int, Reply]]:
    """A command for each key, and its reply. What is refused is tried again, with pauses; the last refusal is the reply."""
    left, pause_s = list(keys), PAUSE_S
    for attempt in range(TRIES):
        refused = []
        for key, reply in zip(left, connection.pipeline([command(key) for key in left]), strict=True):
            if isinstance(reply, ReplyError) and attempt < TRIES - 1:
                refused.append(key)
            else:
                yield key, reply
        if not refused:
            return
        left = refused
        time.sleep(pause_s)
        pause_s *= 2


@contextmanager
def _connected(address: str) -> Iterator[Connection]:
    """A connection; if it fails, so does the benchmark."""
    try:
        with Connection(*parse_address(address), TIMEOUT_S) as connection:
            yield connection
    except BenchFailed:
        raise
    except CartwheelError as error:
        raise BenchFailed(str(error)) from error
