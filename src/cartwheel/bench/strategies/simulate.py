"""The options of ``cartwheel ring simulate``, and both figures together.

The default takes about 7 s on one core: per seed 0.2 s for the strategies of Figure 8 and 0.3 s for the day of Figure 6. The rest
are Cartwheel's own rings, which need no seed; one that grows node by node is dear: 20 s at q = 32768, hence ``ring_q_max``.
"""

from __future__ import annotations

from typing import Final, Literal

import msgspec

from cartwheel.bench.strategies.figure_6 import POPULAR_KEYS, TOKENS, Figure6, figure_6
from cartwheel.bench.strategies.figure_8 import Figure8, figure_8
from cartwheel.core.errors import ConfigError
from cartwheel.core.ring.ring import Q_MAX

Which = Literal["6", "8", "all"]

NODES_MAX: Final = 200
"""A ring of so many nodes that joined one by one takes seconds; the cluster is made for fewer."""


class Options(msgspec.Struct, frozen=True, kw_only=True):
    """What to simulate. Part of the result, so that a figure never travels without its circumstances."""

    figure: Which = "all"
    nodes: int = 30
    n: int = 3
    seeds: int = 10
    """How many draws of each strategy are averaged."""
    seed: int = 1
    """The first of them; the others follow."""
    tokens_max: int = 1024
    """Figure 8: the most tokens a node. Sizes are the powers of two up to there, from 2 on."""
    q: int = 1024
    """The partitions of strategy 2 in Figure 8 and of Cartwheel's ring in Figure 6."""
    ring_q_max: int = 2048
    """Figure 8: the largest of Cartwheel's rings."""
    tokens: int = TOKENS
    """Figure 6: the tokens of a node in strategy 1."""
    popular_keys: int = POPULAR_KEYS
    """Figure 6: how many different keys are accessed in half an hour at the peak."""

    def check(self) -> Options:
        """Return self, or raise ``ConfigError`` naming the option that is wrong."""
        ranges = {
            "nodes": (1, NODES_MAX), "n": (1, NODES_MAX), "seeds": (1, 1000), "tokens_max": (2, 4096), "q": (1, Q_MAX),
            "ring_q_max": (1, Q_MAX), "tokens": (1, 4096), "popular_keys": (1, 1_000_000),
        }  # fmt: skip
        for name, (low, high) in ranges.items():
            flag, value = "--" + name.replace("_", "-"), getattr(self, name)
            if not low <= value <= high:
                raise ConfigError(f"{flag} {value} must lie between {low:,} and {high:,}")
        if self.n > self.nodes:
            raise ConfigError(f"--n {self.n} replicas need as many nodes; there are --nodes {self.nodes}")
        for name in ("tokens_max", "q", "ring_q_max"):
            value = getattr(self, name)
            if value & (value - 1):
                raise ConfigError(f"--{name.replace('_', '-')} {value} must be a power of two, such as 1024")
        if self.q < self.nodes:
            raise ConfigError(f"--q {self.q} partitions are too few for --nodes {self.nodes}: each needs one at least")
        return self


class Report(msgspec.Struct, frozen=True, omit_defaults=True):
    """What came out; a figure that was not asked for is None."""

    options: Options
    figure_8: Figure8 | None = None
    figure_6: Figure6 | None = None


def simulate(options: Options) -> Report:
    """Simulate what the options ask for.

    Raises:
        ConfigError: An option is out of range, or does not go with another.
    """
    options.check()
    seeds = range(options.seed, options.seed + options.seeds)
    nodes, n, q = options.nodes, options.n, options.q
    eight = six = None
    if options.figure != "6":
        eight = figure_8(
            nodes=nodes, n=n, seeds=seeds, q=q, tokens_max=options.tokens_max, ring_q_max=options.ring_q_max
        )
    if options.figure != "8":
        six = figure_6(nodes=nodes, n=n, seeds=seeds, q=q, tokens=options.tokens, popular_keys=options.popular_keys)
    return Report(options, eight, six)
