"""Where every key and value of a TOML 1.1 text stands: a scanner of our own, since tomli tells values and no places.

It only runs on text that tomli accepted, so it need not check anything; a property test holds it to tomli. Linear in
the length of the text, and iterative, so that nesting costs no stack.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import tomli

# Never a possessive group: before 3.11.5 and 3.12.0 Python matched them wrongly (Debian 12 ships 3.11.2).
_SPACE = re.compile(r"[ \t\n]*+(?:#[^\n]*+\n[ \t\n]*+){0,4096}(?:#[^\n]*+)?")
_BLANK = re.compile(r"[ \t]*+")
_PART = re.compile(r"""[ \t]*+([A-Za-z0-9_-]++|"[^"\\]*+(?:\\.[^"\\]*+)*"|'[^']*+')[ \t]*+""")
_SCALAR = re.compile(
    r'''"""[^"\\]*+(?:(?:\\[\s\S]|"(?!""))[^"\\]*+)*"{3,5}'''
    r"""|'''[^']*+(?:'(?!'')[^']*+)*'{3,5}"""
    r'''|"[^"\\]*+(?:\\.[^"\\]*+)*"'''
    r"""|'[^']*+'"""
    r"""|\d{4}-\d\d-\d\d[ ]\d\d:[^\s,\]}#]*+"""
    r"""|[^\s,\]}#]++"""
)
_ATOM = r"[A-Za-z0-9+\-.:_]++"
_FLAT = re.compile(rf"\[[ \t\n]*+(?:{_ATOM}[ \t\n]*+,[ \t\n]*+)*(?:{_ATOM}[ \t\n]*+)?\]")
_ATOMS = re.compile(_ATOM)


class Twice(Exception):
    """A key that has a value already where it gets another; `offset` and `first` are where the two stand."""

    def __init__(self, name: str, offset: int, first: int) -> None:
        super().__init__(name)
        self.name = name
        self.offset = offset
        self.first = first


@dataclass(slots=True)
class Mark:
    """Where something stands: offsets of its key (`key`) and of its value (`start` to `end`), counted from 0.

    An element of an array has its value's offset for a key. A table made by headers or dotted keys has no value in one
    place: its `start` and `end` are -1, and its key is where it is first named. `inside` has what a table or array
    holds, by name or index; None for nothing, and for an array of plain numbers until `expand` is called.
    """

    key: int
    start: int = -1
    end: int = -1
    inside: dict[str | int, Mark] | None = None

    def last(self) -> Mark:
        """The newest element of an array of tables, in which its header's keys belong; the mark itself otherwise."""
        return self.inside[len(self.inside) - 1] if self.inside and 0 in self.inside else self

    def enter(self, part: str | int, pos: int) -> Mark:
        """The mark of what is called `part` inside this one, made with its key at `pos` if it is new."""
        if self.inside is None:
            self.inside = {}
        found = self.inside.get(part)
        if found is None:
            found = self.inside[part] = Mark(pos)
        return found


def scan(text: str) -> Mark:
    """The marks of all keys of `text`, which tomli accepts and whose newlines are `\\n`; the root is the file.

    Raises Twice for a text that tomli refuses for a key or a table that stands twice.
    """
    root = table = Mark(0)
    headers: set[int] = set()
    pos = _space(text, 0)
    while pos < len(text):
        if text.startswith("[[", pos):
            array, start, pos = _key(text, pos + 2, root)
            table = array.enter(len(array.inside or ()), start)
            pos += 2
        elif text[pos] == "[":
            before = pos
            table, start, pos = _key(text, pos + 1, root)
            if table.start >= 0 or id(table) in headers:
                raise Twice(text[before + 1 : pos].strip(), start, table.key)
            headers.add(id(table))
            pos += 1
        else:
            mark, start, pos = _new_key(text, pos, table)
            pos = _value(text, _skip(_BLANK, text, pos + 1), mark)
        pos = _space(text, pos)
    return root


def expand(text: str, mark: Mark) -> None:
    """Marks the elements of an array of plain numbers, which a scan leaves out for speed."""
    if mark.inside is None and mark.start >= 0 and _FLAT.match(text, mark.start):
        for found in _ATOMS.finditer(text, mark.start, mark.end):
            element = mark.enter(len(mark.inside or ()), found.start())
            element.start, element.end = found.span()


def _skip(pattern: re.Pattern[str], text: str, pos: int) -> int:
    found = pattern.match(text, pos)
    return found.end() if found else pos


def _space(text: str, pos: int) -> int:
    """The offset behind blanks, newlines and comments; a few thousand comments at a time, which bounds the memory."""
    while pos < len(text) and text[pos] in " \t\n#":
        pos = _skip(_SPACE, text, pos)
    return pos


def _key(text: str, pos: int, table: Mark) -> tuple[Mark, int, int]:
    """The mark of the key at `pos`, made where it is new; the offset of its last part, and of what follows it."""
    mark = table
    while True:
        found = _PART.match(text, pos)
        assert found is not None, "tomli accepted this key"
        start, pos = found.start(1), found.end()
        mark = mark.last().enter(_name(found[1]), start)
        if text[pos] != ".":
            return mark, start, pos
        pos += 1


def _new_key(text: str, pos: int, table: Mark) -> tuple[Mark, int, int]:
    """As `_key`, for a key that gets a value; raises Twice if it has one."""
    mark, start, end = _key(text, pos, table)
    if mark.start >= 0 or mark.inside:
        raise Twice(text[pos:end].strip(), start, mark.key)
    return mark, start, end


def _name(part: str) -> str:
    """The name that one part of a key spells."""
    if part[0] not in "\"'":
        return part
    return str(tomli.loads(f"x = {part}")["x"]) if "\\" in part else part[1:-1]


def _value(text: str, pos: int, mark: Mark) -> int:
    """Marks the value at `pos` and everything inside it; gives the offset behind it."""
    around: list[Mark] = []
    while True:
        mark.start = pos
        flat = _FLAT.match(text, pos)
        if flat:
            pos = mark.end = flat.end()
        elif text[pos] in "[{":
            around.append(mark)
            pos += 1
        else:
            pos = mark.end = _skip(_SCALAR, text, pos)
        while around:
            pos = _space(text, pos)
            if text[pos] == ",":
                pos = _space(text, pos + 1)
            if text[pos] not in "]}":
                break
            pos += 1
            around.pop().end = pos
        if not around:
            return pos
        inner = around[-1]
        if text[inner.start] == "[":
            mark = inner.enter(len(inner.inside or ()), pos)
        else:
            mark, _, pos = _new_key(text, pos, inner)
            pos = _skip(_BLANK, text, pos + 1)
