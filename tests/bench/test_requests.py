"""The streams of requests: that they are what the options say."""

from collections import Counter
from itertools import islice
from random import Random

import hiredis
import pytest

from cartwheel.bench.options import BenchOptions
from cartwheel.bench.requests import GET, SET, preload, uniform, workload, zipfian

DRAWS = 50_000


def parse(payload):
    reader = hiredis.Reader()
    reader.feed(payload)
    command = reader.gets()
    assert reader.gets() is False, "one command, and nothing after it"
    return command


@pytest.mark.parametrize("exponent", [0.0, 0.5, 0.99, 1.0, 1.5])
def test_zipfian_frequencies_are_those_of_the_formula(exponent):
    """Key k is drawn in proportion to 1/(k+1)**s: each of the hottest ones, and the tail as a whole, within five sigma."""
    keys = 1000
    weights = [(rank + 1) ** -exponent for rank in range(keys)]
    draw = zipfian(keys, exponent, Random(7))
    counts = Counter(draw() for _ in range(DRAWS))
    groups = [range(rank, rank + 1) for rank in range(10)] + [range(10, 100), range(100, keys)]
    for group in groups:
        p = sum(weights[rank] for rank in group) / sum(weights)
        sigma = (DRAWS * p * (1 - p)) ** 0.5
        assert abs(sum(counts[rank] for rank in group) - DRAWS * p) < 5 * sigma + 1


def test_zipfian_never_leaves_the_keys():
    """The largest fraction that Random can return still draws the last key."""

    class Last(Random):
        def random(self):
            return 1 - 2**-53

    assert zipfian(3, 0.99, Last())() == 2
    assert zipfian(1, 0.99, Last())() == 0


def test_uniform_draws_every_key_alike():
    """Within five sigma."""
    draw = uniform(50, Random(7))
    counts = Counter(draw() for _ in range(DRAWS))
    assert sorted(counts) == list(range(50))
    sigma = (DRAWS * 0.02 * 0.98) ** 0.5
    assert all(abs(count - DRAWS / 50) < 5 * sigma for count in counts.values())


@pytest.mark.parametrize(
    ("options", "reads"),
    [
        ({"workload": "get"}, 1.0),
        ({"workload": "put"}, 0.0),
        ({"workload": "mixed"}, 0.5),
        ({"workload": "read-mostly"}, 0.95),
        ({"workload": "get", "read_ratio": 0.2}, 0.2),
    ],
)
def test_share_of_reads(options, reads):
    """Each workload has its share of reads; ``read_ratio`` overrides it."""
    kinds = Counter(kind for _, kind in islice(workload(BenchOptions(**options), 0), DRAWS))
    sigma = (DRAWS * reads * (1 - reads)) ** 0.5
    assert abs(kinds[GET] - DRAWS * reads) <= 5 * sigma
    assert kinds[GET] + kinds[SET] == DRAWS


def test_requests_are_what_they_say():
    """Payloads are whole commands on keys of the prefix, with values of the size; a percent sign does no harm."""
    options = BenchOptions(workload="mixed", keys=100, value_bytes=7, key_prefix="50%d:é:")
    for payload, kind in islice(workload(options, 0), 200):
        command = parse(payload)
        prefix, number = command[1][:-12].decode(), int(command[1][-12:])
        assert prefix == "50%d:é:"
        assert 0 <= number < 100
        if kind == GET:
            assert (command[0], len(command)) == (b"GET", 2)
        else:
            assert (command[0], len(command), len(command[2])) == (b"SET", 3, 7)


def test_the_same_seed_draws_the_same_requests():
    """Also the same process; another process or seed draws others."""

    def drawn(seed, process):
        return list(islice(workload(BenchOptions(seed=seed), process), 100))

    assert drawn(1, 0) == drawn(1, 0)
    assert drawn(1, 0) != drawn(1, 1)
    assert drawn(1, 0) != drawn(2, 0)


def test_preload_writes_every_key_once():
    """The processes share the keys, and none is written twice or not at all."""
    options = BenchOptions(keys=1001, processes=3, key_prefix="")
    numbers = [int(parse(payload)[1]) for process in range(3) for payload, _ in preload(options, process)]
    assert sorted(numbers) == list(range(1001))


def test_values_differ():
    """One value for all would flatter an engine that compresses."""
    payloads = islice(workload(BenchOptions(workload="put", keys=1), 0), 16)
    assert len({payload for payload, _ in payloads}) == 16
