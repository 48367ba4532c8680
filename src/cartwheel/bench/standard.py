"""The standard benchmark: ``make bench``, or ``python -m cartwheel.bench.standard``.

Starts a fresh local cluster and, where redis-server and redis-benchmark are installed, a lone Redis beside it, twice: one
that forgets (no persistence) and one that syncs every write (``appendfsync always``). All keep their data in one temporary
folder next to the report, so on the same file system. Then, in turn and several times, because machines drift:

    durability os      GET, alone and 16 in a pipeline, and SET        against the Redis that forgets
    durability sync    SET                                             against the Redis that syncs

each with one key, as redis-benchmark has it by default, and spread over 100,000 keys;
and, with our own generator, the latency of a 95/5 mix at half of what the cluster carries at most. Writes the figures to
``bench-results/latest.md`` and ``latest.json``. Exit status 0 also if a target is missed: the table says so.
"""

from __future__ import annotations

import datetime
import os
import platform
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import click
import msgspec

from cartwheel.bench.options import BenchOptions
from cartwheel.bench.run import BenchFailed, run_bench
from cartwheel.bench.servers import HOST, Cluster, Redis, redis_benchmark, redis_version
from cartwheel.bench.targets import Comparison, Figures, markdown
from cartwheel.core.errors import CartwheelError

KEYS = 100_000
VALUE_BYTES = 100
KEY_PREFIX = "key:"
"""That of redis-benchmark with ``-r``, so that its GETs find what we preload."""
IDLE_S = 3.0
"""How long a node rests before its memory is read: flushes and timers settle."""
FORGETS, SYNCS = "no persistence", "appendfsync always"

Say = Callable[[str], None]


def cases() -> dict[str, list[Comparison]]:
    """What redis-benchmark measures, by the durability that the bucket has meanwhile: with its one key, as it does unless told
    otherwise, and with keys spread over all that there are. A hot key is the easier case: its reads and writes of one moment
    share messages."""
    spread = f", {KEYS:,} keys"
    return {
        "os": [
            Comparison("GET", "get", 1, FORGETS, ratio_min=0.35),
            Comparison("GET" + spread, "get", 1, FORGETS, ratio_min=0.35, keys=KEYS),
            Comparison("GET, 16 in a pipeline", "get", 16, FORGETS, per_second_min=50_000),
            Comparison("GET, 16 in a pipeline" + spread, "get", 16, FORGETS, per_second_min=50_000, keys=KEYS),
            Comparison("SET, durability os", "set", 1, FORGETS, ratio_min=0.30),
            Comparison("SET, durability os" + spread, "set", 1, FORGETS, ratio_min=0.30, keys=KEYS),
        ],
        "sync": [
            Comparison("SET, durability sync", "set", 1, SYNCS, ratio_min=0.30),
            Comparison("SET, durability sync" + spread, "set", 1, SYNCS, ratio_min=0.30, keys=KEYS),
        ],
    }


class Plan(msgspec.Struct, frozen=True):
    """How much to measure."""

    rounds: int = 3
    requests: int = 100_000
    """Of each redis-benchmark command; pipelined ones send four times as many."""
    peak_s: float = 5.0
    mix_s: float = 10.0


QUICK = Plan(rounds=1, requests=20_000, peak_s=2.0, mix_s=3.0)


def measure(plan: Plan, nodes: int, port: int, folder: Path, say: Say) -> Figures:
    """Run everything; the servers live in ``folder``.

    Raises:
        CartwheelError: a server does not start, or a tool fails.
    """
    version = redis_version()
    machine = _machine(version, folder)
    skipped = [] if version else ["anything against Redis: redis-server or redis-benchmark is not installed"]
    with ExitStack() as stack:
        redis: dict[str, Redis] = {}
        if version:
            redis[FORGETS] = stack.enter_context(Redis("redis-server", folder / "forgets"))
            options = ("--appendonly", "yes", "--appendfsync", "always")
            redis[SYNCS] = stack.enter_context(Redis("redis-server", folder / "syncs", *options))
        say(f"starting {nodes} nodes")
        cluster = stack.enter_context(Cluster(nodes, port, folder / "cluster"))
        say(f"ready after {cluster.ready_s:.1f} s; writing {KEYS:,} keys")
        for addresses in [cluster.addresses, *((f"{HOST}:{server.port}",) for server in redis.values())]:
            _preload(addresses)
        time.sleep(IDLE_S)
        try:
            resident_bytes = cluster.resident_bytes()
        except BenchFailed as error:
            resident_bytes = []
            skipped.append(f"memory: {error}")
        comparisons = cases()
        if version:
            _compare_all(comparisons, cluster, redis, plan, skipped, say)
        peak, tails, errors = _mix(cluster, plan, say)
    return Figures(
        at=datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        machine=machine,
        nodes=nodes,
        rounds=plan.rounds,
        keys=KEYS,
        value_bytes=VALUE_BYTES,
        ready_s=cluster.ready_s,
        comparisons=[case for group in comparisons.values() for case in group] if version else [],
        resident_bytes=resident_bytes,
        mix_peak_per_s=peak,
        mix_p99_9_ms=tails,
        errors=errors,
        skipped=skipped,
    )


def _options(addresses: tuple[str, ...], **options: object) -> BenchOptions:
    given = {"nodes": addresses, "keys": KEYS, "value_bytes": VALUE_BYTES, "key_prefix": KEY_PREFIX}
    return msgspec.convert(given | options, BenchOptions)


def _preload(addresses: tuple[str, ...]) -> None:
    result = run_bench(_options(addresses, workload="get", requests=1, warmup_s=0))
    if result.errors:
        raise BenchFailed(f"writing the keys to {addresses[0]} failed: {result.errors}")


def _compare_all(
    comparisons: dict[str, list[Comparison]],
    cluster: Cluster,
    redis: dict[str, Redis],
    plan: Plan,
    skipped: list[str],
    say: Say,
) -> None:
    """Fill in the comparisons, round by round. One that fails is skipped, with its reason; the others go on."""
    for number in range(plan.rounds):
        for durability, group in comparisons.items():
            try:
                cluster.set_durability(durability)
                for case in group:
                    _compare(case, cluster, redis[case.against], plan, ours_first=number % 2 == 0)
                    say(f"round {number + 1}: {case.name}: {case.ours[-1]:,.0f}/s, Redis {case.redis[-1]:,.0f}/s")
            except BenchFailed as error:
                skipped.append(f"round {number + 1} of durability {durability}: {error}")
                say(skipped[-1])


def _compare(case: Comparison, cluster: Cluster, redis: Redis, plan: Plan, *, ours_first: bool) -> None:
    """Measure one case on both, one after the other."""
    requests = plan.requests * (4 if case.pipeline > 1 else 1)
    ports = [cluster.ports[0], redis.port]
    rates = {
        port: redis_benchmark(
            port, case.test, pipeline=case.pipeline, requests=requests, keys=case.keys, value_bytes=VALUE_BYTES
        )
        for port in (ports if ours_first else reversed(ports))
    }
    case.ours.append(rates[cluster.ports[0]])
    case.redis.append(rates[redis.port])


def _mix(cluster: Cluster, plan: Plan, say: Say) -> tuple[float, list[float], dict[str, int]]:
    """The peak of a 95/5 mix over all nodes, then each round's p99.9 in milliseconds at half of it, and the errors."""
    options = _options(cluster.addresses, workload="read-mostly", preload=False)
    peak = run_bench(msgspec.structs.replace(options, duration_s=plan.peak_s))
    say(f"95/5 mix: peak {peak.throughput_per_s:,.0f}/s")
    errors = Counter(peak.errors)
    tails = []
    for _ in range(plan.rounds):
        half = msgspec.structs.replace(options, duration_s=plan.mix_s, rate_per_s=peak.throughput_per_s / 2)
        result = run_bench(half)
        errors.update(result.errors)
        if result.unsent:
            errors["not sent in time"] += result.unsent
        tails.append(result.operations["all"].p99_9_ms)
        say(f"95/5 mix at half of it: p99.9 {tails[-1]:.1f} ms")
    return peak.throughput_per_s, tails, dict(errors)


def _machine(version: str | None, folder: Path) -> dict[str, str]:
    cpu = platform.processor() or platform.machine()
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                cpu = line.partition(":")[2].strip()
                break
    except OSError:
        pass
    return {
        "processor": f"{cpu}, {os.cpu_count()} cores",
        "system": f"{platform.system()} {platform.release()}",
        "file system": _file_system(folder),
        "load average before": f"{os.getloadavg()[0]:.1f}",
        "Python": platform.python_version(),
        "Redis": version or "none",
    }


def _file_system(folder: Path) -> str:
    """Its type. A sync is free on a tmpfs, so that a reader ought to know."""
    try:
        mounts = [line.split() for line in Path("/proc/mounts").read_text().splitlines()]
    except OSError:
        return "unknown"
    # The last mount of the longest path that the folder is in.
    inside = [
        (len(mount[1]), number, mount[2]) for number, mount in enumerate(mounts) if folder.is_relative_to(mount[1])
    ]
    return max(inside, default=(0, 0, "unknown"))[2]


@click.command()
@click.option("--quick", is_flag=True, help="One short round: to see that it works, not to quote.")
@click.option("--nodes", type=click.IntRange(1, 9), default=3, show_default=True)
@click.option(
    "--port", type=click.IntRange(1, 65000), default=27700, show_default=True, help="The first node's Redis door."
)
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), default=Path("bench-results"), show_default=True,
              help="Folder for the report; the servers' data lie there while it runs.")  # fmt: skip
def main(quick: bool, nodes: int, port: int, out: Path) -> None:
    """Measure a fresh local cluster side by side with a lone Redis, and write the figures to latest.md and latest.json."""
    out.mkdir(parents=True, exist_ok=True)

    def say(text: str) -> None:
        click.echo(text, err=True)

    try:
        with tempfile.TemporaryDirectory(prefix="run-", dir=out, ignore_cleanup_errors=True) as folder:
            figures = measure(QUICK if quick else Plan(), nodes, port, Path(folder).resolve(), say)
    except CartwheelError as error:
        raise click.ClickException(str(error)) from error
    report = markdown(figures)
    (out / "latest.md").write_text(report)
    (out / "latest.json").write_bytes(msgspec.json.format(msgspec.json.encode(figures), indent=2))
    click.echo(report)


if __name__ == "__main__":
    main()
