"""Settings of the core: every limit has its unit in its name and its reason beside it."""

from __future__ import annotations

from typing import Any, Literal, get_args

import msgspec

from cartwheel.core.errors import ConfigError
from cartwheel.core.types import Durability, NodeId

MIB = 1 << 20

DurabilityName = Literal["sync", "one", "os", "memory"]
Reconcile = Literal["siblings", "lww"]
RespSiblings = Literal["newest", "error"]

DURABILITY = {
    "sync": Durability.SYNC,
    "one": Durability.MEMORY,  # what W waits for; one of the N is asked for SYNC besides (section 6.1)
    "os": Durability.OS,
    "memory": Durability.MEMORY,
}


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
    late_s: float = 0.2
    """A replica that has not answered for so long is late: a fallback is asked in its place, and if it answers nothing at all, it
    counts as unreachable. Ten times a busy disk's sync, and little enough that people do not notice."""
    ae_interval_s: float = 1.0
    """Anti-entropy compares with one node after the other, one in so long; 0: only when told to. With equal data that costs 10 KB
    and a millisecond."""
    ae_settle_s: float = 5.0
    """Anti-entropy leaves writes younger than this alone: they are on their way. Longer than a request may take by default, and
    than the clocks may differ."""
    scrub_days: float = 7.0
    """Every record is read and verified once in so long, though nobody asks for it; 0: never."""
    requests_min: int = 128
    requests_max: int = 8_000
    """Requests under way at one coordinator, between these bounds; more are answered BUSY. The limit follows how long they wait
    (``admission``). 128 keep a slow disk's group commit filled; 8,000 wait 0.1 s on a node that answers 80,000 a second."""
    admission_p99_s: float = 0.050
    """Background work makes way while the 99th percentile of reads is above it: the paper's figure (section 6.5). Requests that
    wait longer than this in the middle make the node let in fewer."""
    background_records_per_s_min: int = 200
    """What background work always gets, some 2 % of a processor: with less, replicas would not become identical in any time worth
    the name under lasting load."""
    background_records_per_s_max: int = 50_000
    """What it gets on a node that serves nobody: about what one core can take in. Under load ``admission`` gives less."""
    disk_used_max: float = 0.90
    """A node whose disk is so full takes only deletes: what is left is for tombstones, hints on their way, and compaction."""
    address: str = ""
    """``host:port`` where peers reach this node. If it is a member at another address, it tells. "": leave that as it is."""
    host: str = ""
    zone: str = ""
    weight: float = 1.0
    """The physical machine, the zone and the weight that it asks to join with."""
    joins: bool = False
    """It asks whatever members it meets to let it join."""
    view_bytes_whole: int = 4096
    """A view of the ring up to this size is told whole where two differ: a digest of it would save less than it costs in time."""
    door: str = ""
    """``host:port`` where tools reach this node's Redis door; told to the peers, for ``status``. "": not known."""
    hint_bytes_max_per_node: int = 1 << 30
    """1 GiB, keys and records: the hints kept here for one node. Of records of 1 KB an outage of a quarter of an hour at 1,000
    writes a second; what does not fit is another fallback's, or left to anti-entropy."""
    hint_bytes_max: int = 4 << 30
    """4 GiB: the hints kept here for all nodes together."""
    request_ids_max: int = 10_000
    """Request ids that a coordinator remembers, so that a retry is answered without a second write."""
    give_grace_s: float = 60.0
    """What was handed over stays for so long after the new owners have all of it, before it is removed."""
    reap_grace_s: float = 3600.0
    """A tombstone, or what has expired, stays for so long before its removal is considered. Safety does not rest on it (that is
    the barrier of ``reaper``): it saves rounds while nodes come and go."""
    reap_quarantine_s: float = 120.0
    """Between the two times that every member must agree to a removal: longer than the longest request (60 s) and two lifetimes
    of a message (15 s each), so nothing older than the first time is under way at the second."""
    reap_pause_s: float = 10.0
    """Between two looks at a partition that may hold dead records."""
