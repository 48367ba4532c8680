"""The table of commands, and what is made from it."""

from __future__ import annotations

from pathlib import Path

import pytest

from cartwheel.runtime.resp.reference import BEGIN, END, page, tables
from cartwheel.runtime.resp.registry import commands, find, parse_syntax

PAGE = Path(__file__).resolve().parent.parent.parent / "docs" / "reference" / "redis.md"


@pytest.mark.parametrize(
    ("syntax", "shown", "words"),
    [
        ("key", "key", 1),
        ("key...", "key [key ...]", 1),
        ("(key value)...", "key value [key value ...]", 2),
        ("key [NX | XX] [GET] [EX seconds | KEEPTTL]", "key [NX | XX] [GET] [EX seconds | KEEPTTL]", 1),
        ("[protover [AUTH username password]]", "[protover [AUTH username password]]", 0),
        ("<ON | OFF>", "<ON | OFF>", 1),
        ("[section...]", "[section [section ...]]", 0),
        ("a <ID id | TYPE type>...", "a <ID id | TYPE type> [<ID id | TYPE type> ...]", 3),
    ],
)
def test_syntax(syntax, shown, words):
    """A syntax is shown as Redis's own documentation would, and says how many words it takes."""
    arguments = parse_syntax(syntax)
    assert " ".join(map(str, arguments)) == shown
    assert sum(argument.words_min for argument in arguments) == words


@pytest.mark.parametrize(
    ("name", "arity"),
    [
        *(
            ("GET", 2),
            ("SET", -3),
            ("MSET", -3),
            ("DEL", -2),
            ("PING", -1),
            ("SELECT", 2),
            ("EXPIRE", -3),
            ("HELLO", -1),
        ),
        *(("SETEX", 4), ("GETRANGE", 4), ("SCAN", -2), ("COPY", -3), ("AUTH", -2), ("GETEX", -2), ("CONFIG", -2)),
        *(("CLIENT", -2), ("COMMAND", -1), ("INFO", -1), ("FLUSHDB", -1), ("KEYS", 2), ("MULTI", 1), ("RENAME", 3)),
    ],
)
def test_arity_as_in_redis(name, arity):
    """Clients check it."""
    command = find(name.encode())
    assert command is not None
    found = -command.low if command.subcommands else command.arity
    assert found == arity


def test_every_command_of_redis_is_known(redis_port):
    """None is called unknown: each works, or is refused with a reason."""
    import redis

    with redis.Redis(port=redis_port) as client:
        names = [name.upper() for name in client.command()]
    assert [name for name in names if find(name.encode()) is None] == []


def test_reasons_are_one_line_and_name_the_command():
    """So that a log says which one it was."""
    for command in commands():
        assert "\n" not in command.reason
        if command.reason and command.group != "cluster":
            assert command.reason.startswith(command.name)


def test_the_reference_is_in_sync():
    """To renew it: python -m cartwheel.runtime.resp.reference docs/reference/redis.md."""
    text = PAGE.read_text("utf-8")
    assert text == page(text)
    assert text.count(BEGIN) == text.count(END) == 1
    assert "CW.EXPLAIN" in tables()
