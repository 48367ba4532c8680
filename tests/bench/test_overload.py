"""``cartwheel bench --overload``, against a small real server that can do only so much."""

import json

import pytest
from click.testing import CliRunner
from tests.bench.resp_server import RespServer

from cartwheel.bench.command import bench
from cartwheel.bench.overload import RECOVERED, recovered_after


@pytest.mark.parametrize(
    ("shares", "expected"),
    [
        ([1.0, 1.0, 1.0, 1.0], 0.0),
        ([0.2, 0.9, 0.96, 1.0, RECOVERED], 2.0),
        ([1.3, 0.2, 1.0, 1.0, 1.0], 2.0),  # the burst of a queue that drains is no recovery
        ([0.5, 1.0, 1.0], None),  # not watched long enough to tell
        ([0.0] * 10, None),
        ([], None),
    ],
)
def test_recovery_is_three_good_seconds_in_a_row(shares, expected):
    """Each row: the shares answered second by second, and after how many seconds all was well."""
    assert recovered_after(shares) == expected


def run(server, *args):
    options = ("--node", server.address, "--overload", "3", "--warmup", "0", "--keys", "50", "-c", "4", "--no-progress")
    return CliRunner().invoke(bench, (*options, *args))


def test_what_is_refused_with_busy_is_no_failure():
    """Every third request is refused: shown as a share, and the exit status is 0."""

    def answer(server, command):
        refused = len(server.commands) % 3 == 0 and command[0] in {b"GET", b"SET"}
        return b"-BUSY later\r\n" if refused else server.honest(command)

    with RespServer(answer) as server:
        result = run(server, "--duration", "0.5", "--json", "--no-preload", "--pipeline", "4")
        assert result.exit_code == 0, result.output
        figures = json.loads(result.stdout)
    assert 0.2 < figures["busy_share"] < 0.5
    assert figures["errors"] == {}
    assert figures["offered_per_s"] == pytest.approx(3 * figures["peak_per_s"])
    assert figures["answered"]["count"] > 0


def test_other_errors_are_failures():
    """NOQUORUM is not what an overloaded cluster should say."""

    def answer(server, command):
        return b"-NOQUORUM no\r\n" if len(server.commands) % 50 == 0 else server.honest(command)

    with RespServer(answer) as server:
        result = run(server, "--duration", "0.3")
    assert result.exit_code == 1
    assert "NOQUORUM" in result.stdout
    assert "goodput" in result.stdout
    assert "of the peak" in result.stdout


def test_a_server_that_answers_nothing_right_has_no_peak():
    """A clear message, not a division by nothing."""
    with RespServer(lambda _server, command: b"-ERR no\r\n" if command[0] != b"PING" else b"+PONG\r\n") as server:
        result = run(server, "--duration", "0.2", "--no-preload")
    assert result.exit_code == 1
    assert "answered nothing" in result.output
