"""JSON from a stranger: bounded, UTF-8, without duplicate keys, without surprises in depth or numbers."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, NoReturn

DEPTH_LIMIT = 100
"""How deep lists and objects may lie in each other."""

DIGITS_LIMIT = 100
"""How many digits an integer may have."""


class Malformed(ValueError):
    """The text is not what it should be; the message completes the sentence "the file …"."""


def parse_object(data: bytes, *, finite: bool = False) -> dict[str, Any]:
    """The object that `data` holds as UTF-8 JSON; `finite` refuses NaN and Infinity.

    Raises Malformed for anything else: other encodings, duplicate keys, lone surrogates, deeper than `DEPTH_LIMIT`.
    """
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise Malformed(f"is not UTF-8 at byte {error.start}") from None
    constant: Callable[[str], Any] | None = _refuse_constant if finite else None
    try:
        value = json.loads(text, object_pairs_hook=_unique, parse_int=_integer, parse_constant=constant)
    except json.JSONDecodeError as error:
        raise Malformed(f"is not JSON: {error.msg} at line {error.lineno}, column {error.colno}") from None
    except RecursionError:
        raise Malformed(f"nests deeper than {DEPTH_LIMIT} levels") from None
    if not isinstance(value, dict):
        raise Malformed("does not hold a JSON object")
    _check_depth(value)
    if "\\u" in text:
        _check_encodable(value)
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in found if keys.count(key) > 1)
        raise Malformed(f"has the key {show(twice)} twice")
    return found


def _integer(text: str) -> int:
    if len(text) > DIGITS_LIMIT:
        raise Malformed(f"holds an integer of {len(text)} digits")
    if text == "-0":
        raise Malformed("holds the integer -0")
    return int(text)


def _refuse_constant(text: str) -> NoReturn:
    raise Malformed(f"holds {text}, which is not JSON")


def _check_depth(value: dict[str, Any]) -> None:
    """Level by level, so that depth costs no stack."""
    level: list[Any] = [value]
    for _ in range(DEPTH_LIMIT):
        level = [
            child
            for parent in level
            for child in (parent.values() if isinstance(parent, dict) else parent)
            if isinstance(child, (dict, list))
        ]
        if not level:
            return
    raise Malformed(f"nests deeper than {DEPTH_LIMIT} levels")


def _check_encodable(value: dict[str, Any]) -> None:
    """An escape can spell half of a surrogate pair, which no UTF-8 file could hold."""
    try:
        json.dumps(value, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError:
        raise Malformed("holds half of a surrogate pair") from None


def show(name: str) -> str:
    """A name from a stranger, in backquotes, cut to 120 characters and escaped, fit for one line of a message."""
    short = name if len(name) <= 120 else name[:117] + "..."
    return f"`{short}`" if short.isprintable() else "`" + short.encode("unicode_escape").decode("ascii") + "`"
