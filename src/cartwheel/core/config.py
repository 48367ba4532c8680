"""Settings of the core: every limit has its unit in its name and its reason beside it."""

from __future__ import annotations

from typing import Any, Literal, get_args

import msgspec

from cartwheel.core.errors import ConfigError
from cartwheel.core.types import Durability, NodeId

MIB = 1 << 20

DurabilityName = Literal["sync", "os", "memory"]
Reconcile = Literal["siblings", "lww"]
RespSiblings = Literal["newest", "error"]

DURABILITY = {"sync": Durability.SYNC, "os": Durability.OS, "memory": Durability.MEMORY}


class BucketProps(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What holds for all keys of a bucket. Defaults are the paper's common (N, R, W) = (3, 2, 2) (section 6)."""

    n: int = 3
    r: int = 2
    w: int = 2
    pr: int = 0
    """How many of the R answers must come from primaries (the first n of the preference list)."""
    pw: int = 0
    durability: DurabilityName = "sync"
    reconcile: Reconcile = "siblings"
    """``siblings``: concurrent versions are kept and handed to the application. ``lww``: the newest by clock wins."""
    resp_siblings: RespSiblings = "newest"
    """What a plain Redis ``GET`` of siblings answers: the newest, or the error ``-SIBLINGS``."""
    value_bytes_max: int = MIB
    """1 MiB: the paper's objects are "usually less than 1 MB" (section 2.1)."""
    key_bytes_max: int = 64 * 1024
    siblings_warn: int = 25
    """Riak's ``warn_siblings``."""
    siblings_max: int = 100
    """Riak's ``max_siblings``: a client's write that would leave more is refused. A merge never is."""

    def check(self) -> BucketProps:
        """Return self, or raise ``ConfigError`` naming the property that is out of range."""
        for name, (low, high) in _ranges(self.n).items():
            value = getattr(self, name)
            if not low <= value <= high:
                raise ConfigError(f"bucket property {name}={value} must lie between {low} and {high}")
        return self


def _ranges(n: int) -> dict[str, tuple[int, int]]:
    return {
        "n": (1, 15), "r": (1, n), "w": (1, n), "pr": (0, n), "pw": (0, n),
        "value_bytes_max": (1, 64 * MIB), "key_bytes_max": (1, 64 * 1024),
        "siblings_warn": (1, 10_000), "siblings_max": (1, 10_000),
    }  # fmt: skip


PROPERTY_NAMES: tuple[str, ...] = BucketProps.__struct_fields__
_CHOICES = {
    "durability": get_args(DurabilityName),
    "reconcile": get_args(Reconcile),
    "resp_siblings": get_args(RespSiblings),
}


def bucket_props(texts: dict[str, str], base: BucketProps | None = None) -> BucketProps:
    """Make properties from their texts (as a client or the history gives them) on top of ``base``.

    Raises:
        ConfigError: an unknown name, a value that is no number or not among the choices, or out of range.
    """
    values = {name: _value(name, text) for name, text in texts.items()}
    return msgspec.structs.replace(base or BucketProps(), **values).check()


def lenient_bucket_props(texts: dict[str, str]) -> tuple[BucketProps, bool]:
    """Properties as the history gives them, and whether all were taken as they are.

    What this version does not understand is left out (a newer node may have set it), and what two administrators made
    impossible between them (n = 1 here, w = 3 there) is brought into its range: nodes of one version agree in any case.
    """
    values: dict[str, Any] = {}
    for name, text in texts.items():
        try:
            values[name] = _value(name, text)
        except ConfigError:
            continue
    exact = len(values) == len(texts)
    props = msgspec.structs.replace(BucketProps(), **values)
    lowest, highest = _ranges(props.n)["n"]
    ranges = _ranges(min(max(props.n, lowest), highest))
    fitting = {name: min(max(getattr(props, name), low), high) for name, (low, high) in ranges.items()}
    fitted = msgspec.structs.replace(props, **fitting)
    return fitted, exact and fitted == props


def _value(name: str, text: str) -> str | int:
    if name not in PROPERTY_NAMES:
        raise ConfigError(f"unknown bucket property {name!r}; known are {', '.join(PROPERTY_NAMES)}")
    if name in _CHOICES:
        if text not in _CHOICES[name]:
            raise ConfigError(f"bucket property {name}={text!r} must be one of {', '.join(_CHOICES[name])}")
        return text
    try:
        return int(text)
    except ValueError:
        raise ConfigError(f"bucket property {name}={text!r} must be a whole number") from None


class Config(msgspec.Struct, frozen=True):
    """What a node's core needs to know at its start, fixed until the next one."""

    node: NodeId
    cluster: str
    """The cluster's id: nodes of other clusters are refused."""
    secret: bytes
    """The cluster's key, the same on all nodes, that authenticates context tokens. Never logged."""
    q: int = 1024
    """Partitions of the ring: a power of two, fixed when the cluster is created (design: Q >> number of nodes)."""
    request_timeout_s: float = 2.0
    """A request's deadline unless it names its own. Long against a sync of a busy disk (tens of ms), short for a person.
    A get waits as long for the replicas that its reply did not need, to repair the stale ones (section 5)."""
    request_timeout_s_max: float = 60.0
    """The longest deadline that a request may name: it holds its place among ``requests_max`` so long."""
    skew_ms_max: int = 500
    """A peer's clock may be this far ahead before its new writes are refused."""
    clock_lease_ms: int = 1000
    """How far ahead of the clock its high-water mark is persisted; renewed at half of it while there are writes. A node that
    was killed waits about as long before it serves again."""
    requests_max: int = 20_000
    """Requests under way at one coordinator; more are answered BUSY."""
    request_ids_max: int = 10_000
    """Request ids that a coordinator remembers, so that a retry is answered without a second write."""
