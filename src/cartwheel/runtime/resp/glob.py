"""Match names against a pattern as Redis does: ``*`` ``?`` ``[abc]`` ``[a-z]`` ``[^a]`` and a backslash before any of them.

``fnmatch`` differs in all the corners (``[^a]``, escapes, unclosed brackets). Redis's own matcher recurses at every ``*``, so a
pattern of many stars can take exponential time; this one walks back only to the last star, which is enough: time is bounded
by pattern length times name length.
"""

from __future__ import annotations

from collections.abc import Callable

_Set = tuple[bool, tuple[tuple[int, int], ...]]
"""Whether it is negated, and its ranges."""
_ANY = -1
_STAR = -2
_Token = int | _Set
"""A byte, any byte, any number of bytes, or a set of bytes."""


def _set_at(pattern: bytes, at: int) -> tuple[_Set, int]:
    """The set that begins after ``[`` at ``at``, and where the pattern goes on. An unclosed one ends with the pattern."""
    size = len(pattern)
    negated = at < size and pattern[at] == 94
    at += negated
    ranges: list[tuple[int, int]] = []
    while at < size:
        char = pattern[at]
        if char == 92 and at + 1 < size:
            at += 1
            ranges.append((pattern[at], pattern[at]))
        elif char == 93:
            return (negated, tuple(ranges)), at + 1
        elif at + 2 < size and pattern[at + 1] == 45:
            low, high = sorted((char, pattern[at + 2]))
            ranges.append((low, high))
            at += 2
        else:
            ranges.append((char, char))
        at += 1
    return (negated, tuple(ranges)), size


def _tokens(pattern: bytes) -> list[_Token]:
    found: list[_Token] = []
    at, size = 0, len(pattern)
    while at < size:
        char = pattern[at]
        at += 1
        if char == 42:
            if not found or found[-1] != _STAR:
                found.append(_STAR)
        elif char == 63:
            found.append(_ANY)
        elif char == 91:
            token, at = _set_at(pattern, at)
            found.append(token)
        else:
            if char == 92 and at < size:
                char = pattern[at]
                at += 1
            found.append(char)
    return found


def _accepts(token: _Token, char: int) -> bool:
    if isinstance(token, int):
        return token in {_ANY, char}
    negated, ranges = token
    return any(low <= char <= high for low, high in ranges) != negated


def matcher(pattern: bytes) -> Callable[[bytes], bool]:
    """A function that says whether a name matches."""
    tokens = _tokens(pattern)
    if tokens == [_STAR]:
        return lambda name: True

    def matches(name: bytes) -> bool:
        at = token_at = 0
        star_at, star_from = -1, 0
        while at < len(name):
            if token_at < len(tokens) and tokens[token_at] == _STAR:
                star_at, star_from = token_at, at
                token_at += 1
            elif token_at < len(tokens) and _accepts(tokens[token_at], name[at]):
                at += 1
                token_at += 1
            elif star_at >= 0:
                star_from += 1
                at, token_at = star_from, star_at + 1
            else:
                return False
        return all(token == _STAR for token in tokens[token_at:])

    return matches
