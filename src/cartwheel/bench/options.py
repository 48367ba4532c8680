"""What a benchmark shall do. Part of the JSON result, so that a figure never travels without its circumstances."""

from __future__ import annotations

from typing import Any, Literal, cast

import msgspec

from cartwheel.client.resp import parse_address
from cartwheel.core.config import DURABILITY, DurabilityName
from cartwheel.core.errors import ConfigError

Workload = Literal["get", "put", "mixed", "read-mostly"]
Distribution = Literal["uniform", "zipfian"]

READ_RATIO: dict[Workload, float] = {"get": 1.0, "put": 0.0, "mixed": 0.5, "read-mostly": 0.95}
"""YCSB's workloads C, (insert only), A and B."""

KEYS_MAX = 10**8
ZIPFIAN_KEYS_MAX = 10**7
"""The sampler keeps eight bytes for each key."""


def bench_options(durability: str = "", **options: Any) -> BenchOptions:
    """Options from a command line, where ``durability`` is a list with commas.

    Raises:
        ConfigError: a durability that there is not.
    """
    names = tuple(filter(None, durability.split(",")))
    for name in names:
        if name not in DURABILITY:
            raise ConfigError(f"durability {name!r} is none of {', '.join(DURABILITY)}")
    return BenchOptions(durability=cast("tuple[DurabilityName, ...]", names), **options)


class BenchOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The options of one run. Totals (connections, rate, requests) are shared out among the processes."""

    nodes: tuple[str, ...] = ("127.0.0.1:7700",)
    """Addresses of RESP doors. Connections are spread over them in turn; one that breaks goes on to the next."""
    workload: Workload = "mixed"
    read_ratio: float | None = None
    """Overrides the workload's share of reads."""
    keys: int = 100_000
    distribution: Distribution = "uniform"
    zipf_exponent: float = 0.99
    """YCSB's constant: of 100,000 keys, the hottest one gets 8 % of the requests."""
    seed: int = 1
    value_bytes: int = 100
    key_prefix: str = "bench:"
    """Keys are this and twelve digits. Not ``key:`` as in redis-benchmark, lest a bench writes over somebody's keys."""
    connections: int = 50
    pipeline: int = 1
    """Requests in flight on each connection."""
    duration_s: float = 10.0
    requests: int | None = None
    """Stop after so many requests instead of after ``duration_s``."""
    rate_per_s: float | None = None
    """Open loop: requests start on a fixed schedule, so many a second, and latency counts from there. None: closed loop, each
    connection sends its next request when a reply comes."""
    warmup_s: float = 1.0
    preload: bool = True
    """Write every key once before a workload that reads."""
    processes: int = 1
    series_s: float | None = None
    """Also report each window of so many seconds by itself (the paper's Figure 4)."""
    overload: float | None = None
    """Offer so many times the peak, and see what becomes of the cluster (``overload``)."""
    bucket: str = "0"
    """Whose keys: a name, or the number of a Redis database."""
    durability: tuple[DurabilityName, ...] = ()
    """Measure these in turns, each in a bucket of its own, and compare them (``durability``)."""
    rounds: int = 3
    """How often each durability has its turn."""
    timeout_s: float = 10.0
    """A connection that owes replies and sends none for so long is closed; its requests count as errors."""

    @property
    def reads(self) -> float:
        """The share of requests that read, 0 to 1."""
        return READ_RATIO[self.workload] if self.read_ratio is None else self.read_ratio

    def check(self) -> BenchOptions:
        """Return self, or raise ``ConfigError`` naming the option that is out of range."""
        ranges: dict[str, tuple[float, float]] = {
            "read_ratio": (0, 1),
            "keys": (1, ZIPFIAN_KEYS_MAX if self.distribution == "zipfian" else KEYS_MAX),
            "zipf_exponent": (0, 10), "value_bytes": (1, 64 << 20), "connections": (1, 10_000), "pipeline": (1, 10_000),
            "duration_s": (0.01, 30 * 86400), "requests": (1, 10**12), "rate_per_s": (0.01, 10**7),
            "warmup_s": (0, 86400), "processes": (1, min(64, self.connections)), "series_s": (0.1, 86400),
            "timeout_s": (0.01, 3600), "rounds": (1, 1000), "overload": (1, 100),
        }  # fmt: skip
        for name, (low, high) in ranges.items():
            value = getattr(self, name)
            if value is not None and not low <= value <= high:
                raise ConfigError(f"{name.replace('_', ' ')} {value} must lie between {low:,} and {high:,}")
        if self.durability and (self.reads >= 1 or self.requests or self.overload or self.bucket != "0"):
            raise ConfigError(
                "durability is measured on writes, for a time, in buckets of its own, and not under overload"
            )
        if len(set(self.durability)) < len(self.durability):
            raise ConfigError("each durability is named once")
        if not self.nodes:
            raise ConfigError("name at least one node")
        for node in self.nodes:
            parse_address(node)
        return self
