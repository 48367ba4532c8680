"""``cartwheel bench`` as a whole: real processes against a small real server."""

import json
import socket

import pytest
from click.testing import CliRunner
from tests.bench.resp_server import RespServer

from cartwheel.bench.command import bench
from cartwheel.bench.options import BenchOptions
from cartwheel.bench.run import run_bench
from cartwheel.core.errors import ConfigError


def run(*args):
    return CliRunner().invoke(bench, args)


def test_json_is_all_there_is_on_standard_output():
    """Two processes: every key is preloaded, every request made, spread over both nodes."""
    with RespServer() as one, RespServer() as two:
        two.data = one.data  # what is written to one node is read from the other
        result = run(
            *("--node", one.address, "--node", two.address, "--processes", "2", "--connections", "4", "--keys", "500"),
            *("--requests", "1000", "--warmup", "0", "--json", "--no-progress", "--distribution", "zipfian"),
        )
        assert result.exit_code == 0, result.stderr
        assert result.stderr == ""
        figures = json.loads(result.stdout)
        assert (figures["requests"], figures["misses"], figures["errors"]) == (1000, 0, {})
        assert figures["operations"]["all"]["count"] == 1000
        assert len(one.data) == 500
        pings = 2
        assert len(one.commands) + len(two.commands) == 500 + 1000 + pings
        assert min(len(one.commands), len(two.commands)) > 500


def test_errors_are_shown_and_make_the_exit_status_1():
    """A refused write is an error; reads go on."""

    def answer(server, command):
        return b"-NOQUORUM need W=2\r\n" if command[0] == b"SET" else server.honest(command)

    with RespServer(answer) as server:
        result = run(
            "--node", server.address, "--requests", "100", "--warmup", "0", "--no-preload", "--read-ratio", "0.5"
        )
    assert result.exit_code == 1
    assert "errors: " in result.stdout
    assert "NOQUORUM" in result.stdout
    assert "reads that found no value" in result.stdout


def test_preload_errors_are_told_apart():
    """They are errors of the run, under a name of their own."""

    def answer(server, command):
        return b"-BUSY\r\n" if command[0] == b"SET" else server.honest(command)

    with RespServer(answer) as server:
        options = BenchOptions(nodes=(server.address,), workload="get", keys=10, requests=10, warmup_s=0)
        result = run_bench(options)
    assert result.errors == {"preload: BUSY": 10}
    assert (result.requests, result.misses) == (10, 10)


def test_nobody_listens():
    """One line that says what to do, on standard error, and exit status 1."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        result = run("--node", f"127.0.0.1:{sock.getsockname()[1]}", "--json")
    assert result.exit_code == 1
    assert result.stdout == ""
    assert "connection refused; is it running? try 'cartwheel dev'" in result.stderr


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--workload", "delete"], "is not one of"),
        (["--node", "nowhere:x"], "is not a node's address"),
        (["--read-ratio", "1.5"], "not in the range"),
        (["--connections", "2", "--processes", "3"], "processes 3 must lie between 1 and 2"),
        (["--keys", "100000000", "--distribution", "zipfian"], "keys 100000000 must lie between 1 and 10,000,000"),
        (["--rate", "0"], "not in the range"),
        (["--frobnicate"], "No such option"),
    ],
)
def test_wrong_options(args, message):
    """Each row is told what is wrong with it, with exit status 2."""
    result = run(*args)
    assert result.exit_code == 2
    assert message in result.stderr


@pytest.mark.parametrize(
    "changes",
    [
        {"nodes": ()}, {"value_bytes": 0}, {"pipeline": 0}, {"duration_s": 0}, {"requests": 0}, {"warmup_s": -1},
        {"timeout_s": 0}, {"series_s": 0.01}, {"rate_per_s": 1e9}, {"zipf_exponent": -0.1}, {"keys": 0},
    ],
)  # fmt: skip
def test_options_are_checked_for_library_users_too(changes):
    """Each row is out of range."""
    with pytest.raises(ConfigError):
        BenchOptions(**changes).check()


def test_help_needs_no_heavy_imports():
    """The command's module loads without the histogram, rich and msgspec."""
    import subprocess
    import sys

    program = (
        "import sys, cartwheel.bench.command; print({'hdrh', 'rich', 'msgspec', 'multiprocessing'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
