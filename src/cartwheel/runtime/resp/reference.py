"""Make the tables of docs/reference/redis.md from the table of commands.

python -m cartwheel.runtime.resp.reference docs/reference/redis.md
"""

from __future__ import annotations

import sys
from pathlib import Path

from cartwheel.runtime.resp import server  # noqa: F401  # fills the table of commands
from cartwheel.runtime.resp.registry import Command, commands

BEGIN = "<!-- made from the table of commands: begin -->"
END = "<!-- made from the table of commands: end -->"

_TITLES = {
    "cartwheel": "Our own",
    "string": "Values",
    "generic": "Keys",
    "transactions": "Batches",
    "connection": "Connections",
    "server": "The node",
}


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def _row(command: Command) -> str:
    support = f"with a difference: {command.note}" if command.note else "full"
    if command.name.startswith("CW."):
        support = command.note or "ours"
    syntax = command.syntax.replace("|", "\\|")
    return f"| `{syntax}` | {_cell(command.summary)} | {_cell(support)} |"


def _with_subcommands(command: Command) -> list[Command]:
    own = [command] if command.arguments or not command.subcommands or command.name == "COMMAND" else []
    return own + list(command.subcommands.values())


def tables() -> str:
    """The tables of working commands by group, and the list of refused ones with their reasons."""
    lines: list[str] = []
    working = [each for each in commands() if not each.reason]
    for group, title in _TITLES.items():
        lines += [f"### {title}", "", "| command | what it does | support |", "|---|---|---|"]
        lines += [_row(each) for command in working if command.group == group for each in _with_subcommands(command)]
        lines.append("")
    missing = {each.group for each in working} - set(_TITLES)
    assert not missing, f"groups without a title: {missing}"
    lines += ["### Refused", "", "| commands | answer |", "|---|---|"]
    by_reason: dict[str, list[str]] = {}
    for each in commands():
        if each.reason:
            by_reason.setdefault(each.reason.replace(each.name, "…", 1), []).append(each.name)
    for reason, names in by_reason.items():
        lines.append(f"| {', '.join(f'`{name}`' for name in names)} | `-ERR {_cell(reason)}` |")
    return "\n".join(lines)


def page(text: str) -> str:
    """The page with its tables made anew."""
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n\n{tables()}\n\n{END}{after}"


if __name__ == "__main__":
    path = Path(sys.argv[1])
    path.write_text(page(path.read_text("utf-8")), "utf-8")
