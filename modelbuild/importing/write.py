"""Tables as the text of a Modelfile, as a person would write it, and where everything in it comes from."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from modelbuild.errors import Where
from modelbuild.importing.nouns import Item, Ref, Table
from modelbuild.modelfile.spec import Path
from modelbuild.modelfile.toml import key_text, value_text

WIDTH = 112
"""Columns that a line takes if it can be broken."""

_LITERAL = re.compile(r"[^\x00-\x08\x0b-\x1f\x7f]*[^'\x00-\x08\x0b-\x1f\x7f]")
"""What can stand between triple quotes as it is."""


def plain(item: Item, names: Mapping[Ref, str]) -> Any:
    """The plain data of an item, models by their names."""
    if isinstance(item.value, dict):
        return {key: plain(inner, names) for key, inner in item.value.items()}
    if isinstance(item.value, list):
        return [plain(inner, names) for inner in item.value]
    return names[item.value] if isinstance(item.value, Ref) else item.value


def modelfile(head: Sequence[str], tables: Sequence[Table], names: Mapping[Ref, str]) -> str:
    """The text of a Modelfile: `head` above all as comments, then the tables in order."""
    parts = ["\n".join(line for text in head for line in _comment(text)), "modelfile = 1"]
    parts += [_table(table, names) for table in tables]
    return "\n\n".join(parts) + "\n"


def places(tables: Sequence[Table]) -> dict[Path, tuple[Where, Where]]:
    """Where each key and each value of the text comes from, by its path."""
    found: dict[Path, tuple[Where, Where]] = {}
    for table in tables:
        path: Path = (table.kind, str(table.name))
        found[path] = (table.where, table.where)
        for key, item in table.entries.items():
            _places(found, (*path, key), item)
    return found


def _places(found: dict[Path, tuple[Where, Where]], path: Path, item: Item) -> None:
    found[path] = (item.place, item.where)
    if isinstance(item.value, dict):
        for key, inner in item.value.items():
            _places(found, (*path, key), inner)
    elif isinstance(item.value, list):
        for index, inner in enumerate(item.value):
            _places(found, (*path, index), inner)


def _table(table: Table, names: Mapping[Ref, str]) -> str:
    title = f"{table.kind}.{table.name}"
    lines = [line for text in table.comments for line in _comment(text)]
    data = {key: plain(item, names) for key, item in table.entries.items()}
    slices, tokens = data.pop("slices", []), data.pop("tokens", {})
    lines += [f"[{title}]", *(_entry(key, value) for key, value in data.items())]
    for part in slices:
        lines += ["", f"[[{title}.slices]]", *(_entry(key, value) for key, value in part.items())]
    if tokens:
        lines += ["", f"[{title}.tokens]", *(_entry(key, value) for key, value in tokens.items())]
    return "\n".join(lines)


def _comment(text: str) -> list[str]:
    """The text as comments; what could end one or move a terminal does not get through."""
    safe = "".join(char if char.isprintable() else "?" for char in text)
    return textwrap.wrap(safe, WIDTH, initial_indent="# ", subsequent_indent="#   ", break_on_hyphens=False)


def _entry(key: str, value: Any) -> str:
    head = f"{key_text(key)} = "
    return head + _value(value, len(head), 0)


def _value(value: Any, column: int, indent: int) -> str:
    """A value that starts at a column, broken where it does not fit a line; `indent` is that of its line."""
    if isinstance(value, str) and "\n" in value and _LITERAL.fullmatch(value) and "'''" not in value:
        return f"'''\n{value}'''"
    flat = _flat(value)
    many = isinstance(value, list) and len(value) > 1 and all(isinstance(entry, dict) for entry in value)
    if column + len(flat) <= WIDTH and not (many and column + len(flat) > WIDTH // 2 + 8):
        return flat
    if isinstance(value, list) and any(isinstance(entry, dict | list | str) for entry in value):
        inner = " " * (indent + 2)
        lines = [f"{inner}{_value(entry, indent + 2, indent + 2)}," for entry in value]
        return "\n".join(["[", *lines, " " * indent + "]"])
    return _broken(value, column, indent) if isinstance(value, dict) else flat


def _broken(value: Mapping[str, Any], column: int, indent: int) -> str:
    """An inline table, whose own lists may be broken."""
    parts = []
    place = column + 2
    for key, inner in value.items():
        head = f"{key_text(key)} = "
        text = head + _value(inner, place + len(head), indent + 2)
        place = len(text) - text.rfind("\n") - 1 + (place if "\n" not in text else 0) + 2
        parts.append(text)
    return "{ " + ", ".join(parts) + " }"


def _flat(value: Any) -> str:
    """A value on one line; lists of tables have space within their brackets."""
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{key_text(key)} = {_flat(inner)}" for key, inner in value.items()) + " }"
    if isinstance(value, list):
        text = ", ".join(map(_flat, value))
        return f"[ {text} ]" if any(isinstance(entry, dict) for entry in value) else f"[{text}]"
    return value_text(value)
