"""Words for messages: the nearest valid spelling, and values as a reader knows them."""

from __future__ import annotations

import json
from collections.abc import Iterable

from modelbuild.modelfile.keys import Toml

_LONGEST = 60
_MOST = 500


def nearest(word: str, known: Iterable[str]) -> str | None:
    """The spelling in `known` that `word` probably means, without regard to case; None if none is near."""
    spellings: dict[str, str] = {}
    for name in known:
        spellings.setdefault(name.casefold(), name)
        if len(spellings) >= _MOST:
            break
    folded = word[: 2 * _LONGEST].casefold()
    from difflib import get_close_matches  # only faults need it

    found = get_close_matches(folded, spellings, n=1, cutoff=0.6)
    return spellings[found[0]] if found else None


def did_you_mean(word: str, known: Iterable[str]) -> str | None:
    """The hint with the nearest spelling; None if none is near."""
    found = nearest(word, known)
    return f"did you mean `{found}`?" if found is not None else None


def shown(text: str) -> str:
    """Text on one line, at most 60 characters, without anything that a terminal would obey."""
    short = text if len(text) <= _LONGEST else text[: _LONGEST - 1] + "…"
    return "".join(char if char.isprintable() else json.dumps(char)[1:-1] for char in short)


def listed(names: Iterable[str]) -> str:
    """Names between backquotes with commas: "`a`, `b`"."""
    return ", ".join(f"`{shown(name)}`" for name in names)


def described(value: Toml) -> str:
    """What a value of the file is, for the end of a sentence: "the string "x"", "a list"."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return f'the string "{shown(value)}"'
    if isinstance(value, int | float):
        return f"the number {number(value)}"
    if isinstance(value, list) and 0 < len(value) <= 4 and all(type(entry) in (int, float) for entry in value):
        return f"the list [{', '.join(map(number, value))}]"
    if isinstance(value, list):
        return "a list" if value else "an empty list"
    return "a table" if isinstance(value, dict) else "a date or time"


def number(value: float) -> str:
    """A number as short as it can be told apart; integers of absurd length are cut."""
    if isinstance(value, int) and abs(value) >= 10**24:
        return f"{'-' if value < 0 else ''}{str(abs(value))[:12]}…"
    return f"{value:g}" if isinstance(value, float) and float(f"{value:g}") == value else str(value)
