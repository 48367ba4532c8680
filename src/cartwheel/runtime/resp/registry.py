"""The table of commands: what each is called, how it is written, what it touches, and the function that serves it.

A command is declared once, by the decorator on its function, with its **syntax** as people write it:

    SET key value [NX | XX] [GET] [EX seconds | PX milliseconds | KEEPTTL]
    MGET key...                        three dots: once or more
    MSET (key value)...                round brackets: a group; <A | B>: one of these

From the syntax follow the arity, ``COMMAND DOCS`` (from which redis-cli makes its hints) and the reference in docs/. A handler
is either a plain function returning the reply, or a generator that yields events for the node and gets their results back (see
``steps``); handlers of the two hottest commands do their own bookkeeping (``by_hand``).
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import msgspec

if TYPE_CHECKING:
    from cartwheel.runtime.resp.protocol import Connection

Args = list[bytes]
Handler = Callable[["Connection", Args], Any]


class Waits:
    """What a handler done by hand returns instead of a reply, see ``WAIT`` and ``LATER``."""

    __slots__ = ()


WAIT: Final = Waits()
"""Nothing was done: run the command again when an earlier one is finished."""
LATER: Final = Waits()
"""The command is under way; its reply has its place in the connection's order."""


class Keys(NamedTuple):
    """Where a command's keys are, as Redis says it: first, last (negative: from the end), and the step. (0, 0, 0): none."""

    first: int
    last: int
    step: int

    def of(self, args: Args) -> Args:
        """The keys among a command's arguments."""
        if not self.first:
            return []
        last = self.last if self.last >= 0 else len(args) + self.last
        return args[self.first : last + 1 : self.step]


NO_KEYS = Keys(0, 0, 0)
ONE_KEY = Keys(1, 1, 1)
ALL_KEYS = Keys(1, -1, 1)
KEY_VALUES = Keys(1, -1, 2)


class Argument(msgspec.Struct):
    """One part of a syntax."""

    name: str
    type: str
    token: str = ""
    optional: bool = False
    multiple: bool = False
    parts: list[Argument] = []

    @property
    def words_min(self) -> int:
        """How many words it takes at least."""
        if self.optional:
            return 0
        words = 1 if self.token else 0
        if self.type == "oneof":
            return words + min(part.words_min for part in self.parts)
        if self.type == "block":
            return words + sum(part.words_min for part in self.parts)
        return words if self.type == "pure-token" else words + 1

    @property
    def fixed(self) -> bool:
        """Whether it always takes the same number of words."""
        if self.optional or self.multiple:
            return False
        counts = {part.words_min for part in self.parts}
        return all(part.fixed for part in self.parts) and (self.type != "oneof" or len(counts) == 1)

    def __str__(self) -> str:
        text = (" | " if self.type == "oneof" else " ").join(map(str, self.parts)) or self.name
        if self.type == "pure-token":
            text = self.token
        elif self.token:
            text = f"{self.token} {text}"
        if self.type == "oneof" and not self.optional:
            text = f"<{text}>"
        if self.multiple:
            text = f"{text} [{text} ...]"
        return f"[{text}]" if self.optional else text


class Command:
    """A command, or one of its subcommands."""

    __slots__ = (
        "arguments", "barrier", "by_hand", "flags", "group", "high", "in_multi", "keyed", "keys", "low", "name", "note", "reason",
        "run", "steps", "subcommands", "summary", "untrusted", "write",
    )  # fmt: skip

    def __init__(self, name: str, run: Handler, *, group: str, summary: str) -> None:
        self.name = name
        self.run = run
        self.group = group
        self.summary = summary
        self.arguments: list[Argument] = []
        self.low = 1
        self.high = 1 << 30
        self.keys = NO_KEYS
        self.keyed = False
        """It has keys: on a full node it is refused."""
        self.flags: tuple[str, ...] = ()
        self.write = False
        self.steps = False
        """``run`` is a generator function."""
        self.by_hand = False
        """``run`` returns a reply, WAIT or LATER."""
        self.barrier = False
        """It starts only when all earlier commands of its connection are finished, and later ones wait for it."""
        self.in_multi = False
        """It runs at once even between MULTI and EXEC."""
        self.untrusted = False
        """It may be used before AUTH."""
        self.note = ""
        """How it differs from Redis, for the reference."""
        self.reason = ""
        """Why it is refused; "": it works."""
        self.subcommands: dict[str, Command] = {}

    @property
    def arity(self) -> int:
        """As Redis counts: all words; negative: at least so many."""
        return self.low if self.high == self.low else -self.low

    @property
    def syntax(self) -> str:
        """How it is written, for people."""
        return " ".join([self.name.replace("|", " "), *map(str, self.arguments)])


TABLE: dict[bytes, Command] = {}
"""Name in upper or lower case -> command, refused ones included."""


_WORDS = re.compile(r"\.\.\.|[\[\]()<>|]|[^\s\[\]()<>|]+?(?=\.\.\.|[\s\[\]()<>|]|$)")
_INTEGERS = {
    "seconds",
    "milliseconds",
    "count",
    "index",
    "start",
    "end",
    "offset",
    "n",
    "id",
    "timestamp",
    "replicas",
    "destination-db",
}


def _type_of(name: str) -> str:
    if name in {"key", "source", "destination", "newkey"}:
        return "key"
    if name.startswith("unix-time"):
        return "unix-time"
    if name == "pattern":
        return "pattern"
    return "integer" if name in _INTEGERS else "string"


_CLOSING = {"(": ")", "<": ">"}


class _Syntax:
    """A recursive reader of syntaxes; they are ours, so a mistake is an assertion."""

    def __init__(self, text: str) -> None:
        self.words = _WORDS.findall(text)
        self.at = 0

    def peek(self) -> str:
        return self.words[self.at] if self.at < len(self.words) else ""

    def take(self) -> str:
        word = self.peek()
        self.at += 1
        return word

    def choice(self, closing: str) -> list[list[Argument]]:
        """Alternatives up to the closing bracket, each a sequence."""
        found = [self.sequence()]
        while self.peek() == "|":
            self.take()
            found.append(self.sequence())
        last = self.take()
        assert last == closing, (self.words, last, closing)
        return found

    def sequence(self) -> list[Argument]:
        found: list[Argument] = []
        while self.peek() not in {"", "|", ")", "]", ">"}:
            found.append(self.one())
        return found

    def one(self) -> Argument:
        word = self.take()
        if word == "[":
            argument = _together(self.choice("]"))
            argument.optional = True
        elif word in "(<":
            argument = _together(self.choice(_CLOSING[word]))
        elif word.isupper():
            following = self.peek()
            if following and following[0].islower():
                name = self.take()
                argument = Argument(name, _type_of(name), token=word)
            else:
                argument = Argument(word.lower(), "pure-token", token=word)
        else:
            argument = Argument(word, _type_of(word))
        if self.peek() == "...":
            self.take()
            argument.multiple = True
        return argument


def _together(alternatives: list[list[Argument]]) -> Argument:
    parts = [
        each[0] if len(each) == 1 else Argument("-".join(part.name for part in each), "block", parts=each)
        for each in alternatives
    ]
    if len(parts) == 1:
        return parts[0]
    return Argument("-or-".join(part.name for part in parts), "oneof", parts=parts)


def parse_syntax(text: str) -> list[Argument]:
    """The arguments of a syntax, without the command's name."""
    reader = _Syntax(text)
    found = reader.sequence()
    assert reader.at == len(reader.words), text
    return found


def _register(command: Command) -> None:
    name = command.name.encode()
    if b"|" in name:
        parent, _, sub = command.name.partition("|")
        TABLE[parent.encode()].subcommands[sub] = command
        return
    assert name not in TABLE, f"{command.name} is declared twice"
    TABLE[name] = TABLE[name.lower()] = command


def command(
    syntax: str,
    summary: str,
    *,
    group: str,
    keys: Keys = NO_KEYS,
    write: bool = False,
    flags: str = "",
    note: str = "",
    by_hand: bool = False,
    barrier: bool = False,
    in_multi: bool = False,
    untrusted: bool = False,
) -> Callable[[Handler], Handler]:
    """Declare a command; its first word is its name (``CONFIG|GET``: a subcommand, whose parent is declared before)."""
    name, _, rest = syntax.partition(" ")

    def declare(run: Handler) -> Handler:
        made = Command(name, run, group=group, summary=summary)
        made.arguments = parse_syntax(rest)
        made.low = len(name.split("|")) + sum(argument.words_min for argument in made.arguments)
        if all(argument.fixed for argument in made.arguments):
            made.high = made.low
        made.keys, made.write, made.note = keys, write, note
        made.keyed = bool(keys.first)
        made.steps = inspect.isgeneratorfunction(run)
        made.by_hand, made.barrier, made.in_multi, made.untrusted = by_hand, barrier, in_multi, untrusted
        made.flags = ("write" if write else "readonly", *flags.split()) if keys.first else tuple(flags.split())
        _register(made)
        return run

    return declare


def container(name: str, summary: str, *, group: str, untrusted: bool = False) -> None:
    """Declare a command that is only a name for its subcommands."""

    def run(connection: Connection, args: Args) -> Any:
        raise AssertionError("the dispatcher chooses the subcommand")

    made = Command(name, run, group=group, summary=summary)
    made.low = 2
    made.untrusted = untrusted
    _register(made)


def refuse(name: str, reason: str, *, group: str) -> None:
    """Declare a command of Redis that is not supported, and why."""

    def run(connection: Connection, args: Args) -> Any:
        raise AssertionError("the dispatcher refuses it")

    made = Command(name, run, group=group, summary="")
    made.reason = reason
    _register(made)


def commands() -> Iterator[Command]:
    """All commands, refused ones too, by name."""
    for name in sorted(name for name in TABLE if name.isupper()):
        yield TABLE[name]


def find(name: bytes) -> Command | None:
    """The command with this name, in any case."""
    return TABLE.get(name) or TABLE.get(name.upper())
