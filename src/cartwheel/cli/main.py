"""The command ``cartwheel``: its table of commands, and how errors end.

Commands are loaded when they are called, not before: ``cartwheel get`` must not wait for the imports of ``cartwheel bench``.
Hence the table carries each command's one-line help, which is all that ``cartwheel --help`` needs.

Every error that we or the system raise on purpose ends as one line on standard error. What still shows a traceback is a bug
of ours, and is meant to look like one.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence
from typing import NoReturn

import click

from cartwheel import __version__
from cartwheel.core.errors import CartwheelError, ConfigError

OK, FAILED, USAGE, INTERRUPTED = 0, 1, 2, 130
"""Exit codes. 130 is the shells' convention for a program that Ctrl-C ended."""

COMMANDS: dict[str, tuple[str, str, str]] = {
    "dev": ("cartwheel.cli.dev", "dev", "Run a cluster on this machine, to try things out."),
    "demo": ("cartwheel.cli.demo", "demo", "Watch siblings come and go: on a running cluster, or under a split."),
    "get": ("cartwheel.cli.keys", "get", "Read a key: its value, or all its siblings."),
    "put": ("cartwheel.cli.keys", "put", "Write a key."),
    "del": ("cartwheel.cli.keys", "delete", "Delete a key."),
    "explain": ("cartwheel.cli.keys", "explain", "Where a key lives, and what each replica holds."),
    "status": ("cartwheel.cli.cluster", "status", "The cluster as one node sees it."),
    "hints": ("cartwheel.cli.cluster", "hints", "What nodes keep for others until those are back."),
    "ring": ("cartwheel.cli.ring", "ring", "The members and their shares of the ring; how rings spread the load."),
    "cluster": ("cartwheel.cli.membership", "cluster", "Who joins, leaves and weighs what: stage, plan, commit."),
    "verify": ("cartwheel.cli.verify", "verify", "Compare all replicas of all keys."),
    "repair": ("cartwheel.cli.repair", "repair", "Compare a node with the others now, and mend what differs."),
    "bucket": ("cartwheel.cli.bucket", "bucket", "Read and set the properties of buckets."),
    "bench": ("cartwheel.bench.command", "bench", "Load a cluster and measure it."),
    "chaos": ("cartwheel.cli.chaos", "chaos", "Break a cluster under load, and judge what it promised."),
    "start": ("cartwheel.cli.start", "start", "Run one node in the foreground."),
}
"""Name -> module, attribute, help. In the order in which people meet them."""


class LazyGroup(click.Group):
    """A group whose commands are imported when they are called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        del ctx
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        del ctx
        if cmd_name not in COMMANDS:
            return None
        module, attribute, _ = COMMANDS[cmd_name]
        command = getattr(importlib.import_module(module), attribute)
        assert isinstance(command, click.Command)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name = args[0]
        if name not in COMMANDS and not name.startswith("-"):
            import difflib

            near = difflib.get_close_matches(name, COMMANDS, n=1)
            ctx.fail(f"there is no command {name!r}" + (f"; did you mean {near[0]!r}?" if near else ""))
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        del ctx
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, _, text) in COMMANDS.items()])


@click.command(
    cls=LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="New here? 'cartwheel dev' starts three nodes; then use any Redis client on port 7700.",
)
@click.version_option(__version__, message="cartwheel %(version)s")
def cli() -> None:
    """Cartwheel: a leaderless, always-writeable key-value store, after Amazon's Dynamo."""


def run(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return the exit code. Errors are printed, not raised."""
    try:
        code = cli.main(args=arguments, prog_name="cartwheel", standalone_mode=False)
        sys.stdout.flush()
        return code if isinstance(code, int) else OK
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message(), err=True)
        return USAGE
    except click.UsageError as error:
        path = error.ctx.command_path if error.ctx else "cartwheel"
        message = " ".join(error.format_message().split())
        _complain(f"{message.rstrip('.')} (see '{path} --help')", path)
        return USAGE
    except click.ClickException as error:
        _complain(error.format_message())
        return FAILED
    except (click.Abort, KeyboardInterrupt):
        _complain("interrupted")
        return INTERRUPTED
    except ConfigError as error:
        _complain(str(error))
        return USAGE
    except CartwheelError as error:
        hint = "; is that a Cartwheel node?" if "unknown command 'CW." in str(error) else ""
        _complain(str(error) + hint)
        return FAILED
    except BrokenPipeError:
        # Whoever read our output has gone (`cartwheel ring | head`). Spare the interpreter the same complaint when it flushes.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    except OSError as error:
        _complain(f"{error.filename}: {error.strerror}" if error.filename else error.strerror or str(error))
        return FAILED


def _complain(message: str, path: str = "cartwheel") -> None:
    click.echo(f"{path}: {' '.join(message.split())}", err=True)


def main() -> NoReturn:
    """The entry point of the installed command."""
    sys.exit(run())
