"""Keys and values as TOML text, on one line."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any


def pairs(table: Mapping[str, Any]) -> list[str]:
    """Each key with its value: `key = value`."""
    return [f"{key_text(key)} = {value_text(value)}" for key, value in table.items()]


def key_text(key: str) -> str:
    """A key, in quotes where it needs them."""
    plain = key and all(c.isascii() and (c.isalnum() or c in "_-") for c in key)
    return key if plain else value_text(key)


def value_text(value: object) -> str:
    """A value: a scalar, a list or an inline table."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        # A JSON string is a TOML basic string, but for the character DEL and for pairs of surrogates.
        text = json.dumps(value, ensure_ascii=False)
        return text.replace("\x7f", "\\u007f")
    if isinstance(value, Mapping):
        return "{ " + ", ".join(pairs(value)) + " }" if value else "{}"
    if isinstance(value, Sequence):
        return "[" + ", ".join(map(value_text, value)) + "]"
    return repr(value)
