"""Make docs/reference/settings.md and cli.md from the program itself: ``python -m tests.cli.reference`` writes them.

What stands between the marks is made; what stands around them is written by hand. ``test_reference`` fails when they differ.
"""

from __future__ import annotations

import ast
import inspect
import itertools
import textwrap
from pathlib import Path

import click

from cartwheel.cli.main import COMMANDS, cli
from cartwheel.runtime import settings as module
from cartwheel.runtime.settings import SETTING_NAMES, ServerSettings, flag_of, variable_of

DOCS = Path(__file__).resolve().parents[2] / "docs" / "reference"
BEGIN, END = "<!-- made by tests/cli/reference.py: begin -->\n", "<!-- end -->\n"
OTHERS = ("bench",)
"""Commands that have a page of their own."""
WIDTH = 100


def field_docstrings() -> dict[str, str]:
    """The docstring below each field of ``ServerSettings``."""
    tree = ast.parse(inspect.getsource(module))
    body = next(node.body for node in tree.body if isinstance(node, ast.ClassDef) and node.name == "ServerSettings")
    found = {}
    for field, text in itertools.pairwise(body):
        if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant):
            assert isinstance(field.target, ast.Name)
            found[field.target.id] = " ".join(str(text.value.value).split())
    return found


def settings_table() -> str:
    """One row per setting."""
    rows = ["| setting | variable, flag | default | meaning |", "|---|---|---|---|"]
    texts, defaults = field_docstrings(), ServerSettings()
    for name in SETTING_NAMES:
        value, text = getattr(defaults, name), texts[name]
        if "Default" in text:
            shown = "see there"
        else:
            shown = f"`{str(value).lower() if isinstance(value, bool) else value}`"
        flag = flag_of(name) if not isinstance(value, bool) else f"{flag_of(name)}, --no-{flag_of(name)[2:]}"
        rows.append(f"| `{name}` | `{variable_of(name)}` `{flag}` | {shown} | {text} |")
    return "\n".join(rows) + "\n"


def command_reference() -> str:
    """The help of every command, as the program prints it."""
    parts = []
    names = list(cli.context_settings["help_option_names"])
    context = click.Context(
        cli, info_name="cartwheel", terminal_width=WIDTH, max_content_width=WIDTH, help_option_names=names
    )
    for name in COMMANDS:
        if name in OTHERS:
            continue
        command = cli.get_command(context, name)
        assert command is not None
        parts += _help(command, context, name, "##")
    return "\n".join(parts)


def _help(command: click.Command, parent: click.Context, name: str, heading: str) -> list[str]:
    context = click.Context(command, info_name=name, parent=parent, terminal_width=WIDTH, max_content_width=WIDTH)
    parts = [f"{heading} {context.command_path}\n", f"```text\n{_plain(command.get_help(context))}\n```\n"]
    if isinstance(command, click.Group):
        for each in command.list_commands(context):
            child = command.get_command(context, each)
            assert child is not None
            parts += _help(child, context, each, heading + "#")
    return parts


def _plain(text: str) -> str:
    return "\n".join(line.rstrip() for line in textwrap.dedent(text).strip().splitlines())


def filled(page: str, made: str) -> str:
    """A page with the part between the marks replaced."""
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n{made}\n{END}{after}"


PAGES = {"settings.md": settings_table, "cli.md": command_reference}

if __name__ == "__main__":
    for page, make in PAGES.items():
        path = DOCS / page
        path.write_text(filled(path.read_text("utf-8"), make()), "utf-8")
