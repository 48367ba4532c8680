"""``cartwheel bench``: the command line of the load generator. What it needs is imported when it runs, not before."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

DONE, FAILED, INTERRUPTED = 0, 1, 130


# fmt: off
@click.command(context_settings={"show_default": True})
@click.option("--node", "nodes", multiple=True, default=("127.0.0.1:7700",), metavar="HOST:PORT",
              help="A node's Redis door. May be repeated: connections are spread over the nodes.")
@click.option("--workload", type=click.Choice(["get", "put", "mixed", "read-mostly"]), default="mixed",
              help="mixed: half reads; read-mostly: 95 % reads.")
@click.option("--read-ratio", type=click.FloatRange(0, 1), help="Share of reads, instead of the workload's.")
@click.option("--keys", type=click.IntRange(1), default=100_000, help="How many different keys.")
@click.option("--distribution", type=click.Choice(["uniform", "zipfian"]), default="uniform",
              help="Which keys: all alike, or few of them very often.")
@click.option("--zipf-exponent", type=click.FloatRange(0, 10), default=0.99, help="How steep the zipfian is.")
@click.option("--seed", type=int, default=1, help="The same seed draws the same keys.")
@click.option("--value-bytes", type=click.IntRange(1), default=100, help="Size of a value.")
@click.option("--key-prefix", default="bench:", help="Keys are this and twelve digits. They are written over!")
@click.option("-c", "--connections", type=click.IntRange(1), default=50, help="Connections, in all.")
@click.option("-P", "--pipeline", type=click.IntRange(1), default=1, help="Requests in flight on each connection.")
@click.option("--duration", "duration_s", type=click.FloatRange(0.01), default=10.0, metavar="SECONDS",
              help="How long to measure.")
@click.option("-n", "--requests", type=click.IntRange(1), help="How many requests, instead of a duration.")
@click.option("--rate", "rate_per_s", type=click.FloatRange(0.01), metavar="PER_SECOND",
              help="Open loop: start so many requests a second on a fixed schedule, and count latency from there. "
                   "Without it, each connection waits for its reply before it sends the next request.")
@click.option("--warmup", "warmup_s", type=click.FloatRange(0), default=1.0, metavar="SECONDS",
              help="How long to run before measuring.")
@click.option("--preload/--no-preload", default=True, help="Write every key once before a workload that reads.")
@click.option("--processes", type=click.IntRange(1, 64), default=1, help="Processes that generate the load.")
@click.option("--series", "series_s", type=click.FloatRange(0.1), metavar="SECONDS",
              help="Also show mean and p99.9 of each window of so many seconds.")
@click.option("--timeout", "timeout_s", type=click.FloatRange(0.01), default=10.0, metavar="SECONDS",
              help="Give up on a connection that does not answer for so long.")
@click.option("--overload", type=click.FloatRange(1, 100), metavar="FACTOR",
              help="Measure the peak, offer so many times as much for the duration, then 0.7 times the peak; show what was "
                   "answered, refused with BUSY, and how soon all was well again. Wants many -c or -P.")
@click.option("--bucket", default="0", metavar="NAME", help="The bucket of the keys: a name, or a Redis database.")
@click.option("--durability", is_flag=False, flag_value="sync,one,os", default="", show_default=False, metavar="[LIST]",
              help="Compare the latency of writes under these durabilities, such as sync,one,os (if none is named). They take "
                   "turns, of the duration each, at the same rate: half of the first one's peak, unless there is a --rate.")
@click.option("--rounds", type=click.IntRange(1, 1000), default=3, help="How many turns each durability has.")
@click.option("--svg", "svg_file", type=click.Path(dir_okay=False, writable=True), metavar="FILE",
              help="With --durability: plot the p99.9 of writes over time, as in Dynamo's Figure 5.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON on standard output, and nothing else there.")
@click.option("--progress/--no-progress", default=True, help="Show how it goes (only on a terminal).")
def bench(*, as_json: bool, progress: bool, svg_file: str | None, durability: str, **options: Any) -> None:
    """Put load on a cluster (or any server that speaks the Redis protocol) and measure it.

    Latencies are in milliseconds as seen from here, from HDR histograms. Exit status: 0, or 1 if requests failed or the
    benchmark could not be carried out, or 2 for a wrong option.

    \b
    Examples:
      cartwheel bench --workload read-mostly --distribution zipfian
      cartwheel bench --node 127.0.0.1:7700 --node 127.0.0.1:7710 --rate 5000 --duration 60
      cartwheel bench --workload put --requests 100000 --json | jq .throughput_per_s
      cartwheel bench --overload 3 --duration 60 --connections 200 --pipeline 64
      cartwheel bench --durability sync,one --keys 20000 --svg figure5.svg
    """
    import msgspec
    from rich.console import Console

    from cartwheel.bench.durability import DurabilityResult, run_durability
    from cartwheel.bench.options import bench_options
    from cartwheel.bench.overload import OverloadResult, run_overload
    from cartwheel.bench.render import ProgressLine, figure_5, render_any
    from cartwheel.bench.result import BenchResult
    from cartwheel.bench.run import run_bench
    from cartwheel.core.errors import CartwheelError, ConfigError

    stderr = Console(stderr=True)
    try:
        checked = bench_options(durability, **options).check()
        if svg_file and not checked.durability:
            raise ConfigError("--svg goes with --durability")
        carry_out: Callable[..., BenchResult | OverloadResult | DurabilityResult] = run_bench
        if checked.overload or checked.durability:
            carry_out = run_overload if checked.overload else run_durability
        if progress:
            with ProgressLine(stderr) as line:
                result = carry_out(checked, line)
        else:
            result = carry_out(checked)
    except ConfigError as error:
        raise click.UsageError(str(error)) from error
    except CartwheelError as error:
        raise click.ClickException(str(error)) from error
    if as_json:
        click.echo(msgspec.json.format(msgspec.json.encode(result), indent=2))
    else:
        Console().print(render_any(result), highlight=False)
    if svg_file:
        assert isinstance(result, DurabilityResult)
        Path(svg_file).write_text(figure_5(result), "utf-8")
    interrupted = not isinstance(result, OverloadResult) and result.interrupted
    sys.exit(INTERRUPTED if interrupted else FAILED if result.failed else DONE)
# fmt: on


if __name__ == "__main__":
    bench()
