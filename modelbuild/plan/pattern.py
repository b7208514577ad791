"""Patterns: a piece of a tensor's name, `*` standing for anything. Linear time, never a regular expression."""

from __future__ import annotations

from collections.abc import Iterable


def matches(pattern: str, name: str) -> bool:
    """Whether `name` holds the pieces of `pattern` between its stars, one after the other."""
    start = 0
    for piece in pattern.split("*"):
        found = name.find(piece, start)
        if found < 0:
            return False
        start = found + len(piece)
    return True


def any_matches(patterns: Iterable[str], name: str) -> bool:
    """Whether one of the patterns is in `name`."""
    return any(matches(pattern, name) for pattern in patterns)
