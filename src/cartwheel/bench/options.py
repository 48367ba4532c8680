"""What a benchmark shall do. Part of the JSON result, so that a figure never travels without its circumstances."""

from __future__ import annotations

from typing import Literal

import msgspec

from cartwheel.client.resp import parse_address
from cartwheel.core.errors import ConfigError

Workload = Literal["get", "put", "mixed", "read-mostly"]
Distribution = Literal["uniform", "zipfian"]

READ_RATIO: dict[Workload, float] = {"get": 1.0, "put": 0.0, "mixed": 0.5, "read-mostly": 0.95}
"""YCSB's workloads C, (insert only), A and B."""

KEYS_MAX = 10**8
ZIPFIAN_KEYS_MAX = 10**7
"""The sampler keeps eight bytes for each key."""


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
            "timeout_s": (0.01, 3600),
        }  # fmt: skip
        for name, (low, high) in ranges.items():
            value = getattr(self, name)
            if value is not None and not low <= value <= high:
                raise ConfigError(f"{name.replace('_', ' ')} {value} must lie between {low:,} and {high:,}")
        if not self.nodes:
            raise ConfigError("name at least one node")
        for node in self.nodes:
            parse_address(node)
        return self
