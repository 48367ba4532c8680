"""Mistakes on the command line: one line on standard error, the right exit code, never a traceback."""

import os
import subprocess
import sys

import pytest
from tests.cli.harness import free_base_port

from cartwheel import __version__
from cartwheel.cli.main import COMMANDS, run


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch, tmp_path):
    """Nothing of the developer's own takes part."""
    for name in ("CARTWHEEL_NODE", "CARTWHEEL_CONFIG", "XDG_DATA_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))


def complaint(capsys):
    """The one line on standard error."""
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1, captured.err
    assert "Traceback" not in captured.err
    return captured.err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["gett"], ["there is no command 'gett'", "did you mean 'get'", "cartwheel --help"]),
        (["--nonsense"], ["--nonsense", "cartwheel --help"]),
        (["get"], ["cartwheel get", "Missing argument", "KEY", "cartwheel get --help"]),
        (["put", "k"], ["VALUE"]),
        (["get", "k", "--r", "0"], ["--r"]),
        (["get", "k", "--node", "127.0.0.1:x"], ["not a node's address", "host:port"]),
        (["get", "k", "--node", "127.0.0.1:70000"], ["not a node's address"]),
        (["bucket", "set", "b"], ["PROPERTY=VALUE"]),
        (["bucket", "set", "b", "w3"], ["'w3' is not PROPERTY=VALUE"]),
        (["dev", "--nodes", "0"], ["--nodes"]),
        (["dev", "--port", "65530"], ["65530 to 65552", "--port"]),
        (["dev", "--engine", "paper"], ["--engine"]),
        (["dev", "kill", "two"], ["'two' is no node", "2 or n2"]),
        (["dev", "--fresh", "status"], ["--fresh", "'status'"]),
        (["dev", "explode", "2"], ["explode"]),
        (["start", "--q", "1000"], ["q='1000' (from --q)", "power of two"]),
        (["start", "--host", "0.0.0.0"], ["--insecure"]),
        (["start", "--config", "/no/such/file"], ["/no/such/file", "cannot read"]),
        (["start", "--secret-file", "/no/such/secret"], ["/no/such/secret"]),
        (["start", "--initial-cluster", "n1=127.0.0.1:1,n2=127.0.0.1:2"], ["secret_file"]),
        (["start", "--engin", "memory"], ["--engin"]),
    ],
)
def test_wrong_usage_is_one_line_and_exit_code_2(capsys, arguments, words):
    """Each row: this command line is refused with these words."""
    assert run(arguments) == 2
    line = complaint(capsys)
    for word in words:
        assert word in line


@pytest.mark.parametrize(
    "arguments",
    [["get", "k"], ["put", "k", "v"], ["del", "k"], ["explain", "k"], ["status"], ["ring"], ["bucket", "list"]]
    + [["bucket", "get", "b"], ["demo", "cart"]],
)
def test_no_node_there_is_one_line_and_exit_code_1(capsys, arguments):
    """Every client command says whom it could not reach, and what to do."""
    address = f"127.0.0.1:{free_base_port(1)}"
    assert run([*arguments, "--node", address]) == 1
    line = complaint(capsys)
    assert f"cannot reach a node at {address}" in line
    assert "cartwheel dev" in line


@pytest.mark.parametrize("verb", ["status", "kill", "stop", "start", "pause", "resume", "logs"])
def test_levers_without_a_cluster(capsys, tmp_path, verb):
    """They say where they looked."""
    assert run(["dev", verb, *([] if verb == "status" else ["1"]), "--data", str(tmp_path / "none")]) == 1
    assert str(tmp_path / "none") in complaint(capsys)


def test_an_interrupted_command_says_so(capsys, monkeypatch):
    """Ctrl-C is no traceback either; 130 is what shells expect."""

    def interrupt(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr("cartwheel.cli.common.connect", interrupt)
    assert run(["get", "k"]) == 130
    assert "interrupted" in capsys.readouterr().err


def test_a_reader_that_goes_away_is_no_error_message():
    """``cartwheel --help | true``."""
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(
        [sys.executable, "-m", "cartwheel", "--help"], stdout=writing, stderr=subprocess.PIPE, check=False
    )
    os.close(writing)
    assert (done.returncode, done.stderr) == (1, b"")


def test_the_version(capsys):
    """The one that the package has."""
    assert run(["--version"]) == 0
    assert capsys.readouterr().out == f"cartwheel {__version__}\n"


def test_every_command_has_help(capsys):
    """Its own, and one line in the table."""
    import click

    from cartwheel.cli.main import cli

    context = click.Context(cli)
    for name, (_, _, short) in COMMANDS.items():
        command = cli.get_command(context, name)
        assert command is not None
        assert run([name, "--help"]) == 0
        out = capsys.readouterr().out
        assert f"cartwheel {name}" in out
        assert short[0].isupper()
        assert short.endswith(".")


@pytest.mark.parametrize(
    ("arguments", "unwanted"),
    [
        (["--version"], {"msgspec", "hiredis", "rich", "uvloop", "rocksdict", "lmdb", "asyncio", "socket", "json"}),
        (["--help"], {"msgspec", "hiredis", "rich", "uvloop", "rocksdict", "lmdb", "asyncio"}),
        (["get", "k", "--node", "127.0.0.1:1"], {"rich", "uvloop", "rocksdict", "lmdb", "asyncio", "xxhash"}),
        (["dev", "status", "--data", "/nowhere"], {"uvloop", "rocksdict", "lmdb", "asyncio"}),
    ],
)
def test_commands_import_only_what_they_need(arguments, unwanted):
    """What makes the command line quick. (Its time in milliseconds would tell more about the machine.)"""
    code = f"import sys\nfrom cartwheel.cli.main import run\nrun({arguments!r})\nprint(*sys.modules, file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert unwanted & set(done.stderr.split()) == set()
