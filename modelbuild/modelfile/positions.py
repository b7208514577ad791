"""Places in a Modelfile by path, worked out when the first one is asked for."""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Iterator, Mapping
from functools import cached_property

from modelbuild.errors import Where
from modelbuild.modelfile.scan import Mark, expand, scan
from modelbuild.modelfile.spec import Path


class Positions(Mapping[Path, Where]):
    """Where each key stands, as a mapping from path to place; what `--set` gave stands at that option.

    `text` is what tomli accepted, with newlines `\\n`. `overrides` has the options by the path that each one set.
    """

    def __init__(self, file: str, text: str, overrides: Mapping[Path, str]) -> None:
        self._file = file
        self._text = text
        self._overrides = overrides

    @cached_property
    def _root(self) -> Mark:
        return scan(self._text)

    @cached_property
    def _lines(self) -> list[int]:
        return [0, *(found.end() for found in re.finditer("\n", self._text))]

    def _mark(self, path: Path) -> Mark | None:
        mark: Mark | None = self._root
        for part in path:
            if mark is None:
                return None
            expand(self._text, mark)
            mark = (mark.inside or {}).get(part)
        return mark

    def _at(self, offset: int) -> Where:
        line = bisect_right(self._lines, offset)
        return Where(self._file, line, offset - self._lines[line - 1] + 1)

    def _option(self, path: Path) -> Where | None:
        if self._overrides:
            for end in range(len(path), 0, -1):
                if (option := self._overrides.get(path[:end])) is not None:
                    return Where(option)
        return None

    def _made(self, path: Path) -> Where | None:
        """The option that made the table at `path`, if one did on the way to what it set."""
        made = (option for inner, option in self._overrides.items() if inner[: len(path)] == path)
        return next(map(Where, made), None)

    def __getitem__(self, path: Path) -> Where:
        if (option := self._option(path)) is not None:
            return option
        mark = self._mark(path)
        if mark is not None and path:
            return self._at(mark.key)
        if path and (option := self._made(path)) is not None:
            return option
        raise KeyError(path)

    def key(self, path: Path) -> Where:
        """Where the key at `path` stands, or else the nearest table around it that is in the file."""
        for end in range(len(path), 0, -1):
            if (found := self.get(path[:end])) is not None:
                return found
        return Where(self._file)

    def value(self, path: Path) -> Where:
        """Where the value at `path` starts; the key's place for a table that headers made."""
        mark = None if self._option(path) else self._mark(path)
        return self.key(path) if mark is None or mark.start < 0 else self._at(mark.start)

    def order(self, path: Path) -> int:
        """The offset in the text of the key at `path`, to sort by; -1 for what is not in it."""
        mark = self._mark(path)
        return mark.key if mark is not None else -1

    def __iter__(self) -> Iterator[Path]:
        rest: list[tuple[Path, Mark]] = [((), self._root)]
        while rest:
            path, mark = rest.pop()
            if path:
                yield path
            expand(self._text, mark)
            rest += [((*path, part), inner) for part, inner in reversed((mark.inside or {}).items())]

    def __len__(self) -> int:
        return sum(1 for _ in self)
