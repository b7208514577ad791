"""What an import is made of: values with their places in the YAML file, models that recipes name, and findings."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

from modelbuild.errors import Fault, ModelfileError, Where
from modelbuild.modelfile.suggest import described


@dataclass(frozen=True, slots=True)
class Item:
    """A value with where it starts and, in a mapping, where its key stands.

    `value` is a scalar, a list of items, a dict from string to item, or a `Ref`; the same noun is what was read from
    the YAML file and what is written into the Modelfile.
    """

    value: Any
    where: Where
    key: Where | None = None

    @property
    def place(self) -> Where:
        """Where the key stands, else where the value does."""
        return self.key or self.where

    def but(self, value: Any) -> Item:
        """Another value at the same place."""
        return replace(self, value=value)

    def data(self) -> object:
        """The plain data of it, without places."""
        if isinstance(self.value, dict):
            return {key: inner.data() for key, inner in self.value.items()}
        return [inner.data() for inner in self.value] if isinstance(self.value, list) else self.value

    def told(self) -> str:
        """What the value is, for the end of a sentence."""
        if self.value is None:
            return "empty"
        if isinstance(self.value, list):
            return described([entry.value for entry in self.value])
        return "a mapping" if isinstance(self.value, dict) else described(self.value)


@dataclass(frozen=True, slots=True)
class Place:
    """A model or adapter as mergekit names it: a folder or a Hub repository, and a revision."""

    path: str
    revision: str | None = None


@dataclass(frozen=True, slots=True)
class Ref:
    """A model that a recipe names, with the adapter that mergekit merges into it first; `copy` tells several
    entries of one model apart, where it may stand once only."""

    model: Place
    lora: Place | None = None
    copy: int = 0


@dataclass(slots=True)
class Table:
    """One `[KIND.NAME]` to be written, with the comments above it; `key` is the path by which a `Ref` means it."""

    kind: str
    name: str
    where: Where
    entries: dict[str, Item] = field(default_factory=dict)
    comments: list[str] = field(default_factory=list)
    key: str | None = None


class Findings:
    """What is wrong with a YAML file, what of it is left out, and what a reader of the Modelfile should know."""

    def __init__(self) -> None:
        self.faults: list[Fault] = []
        self.notes: list[tuple[Where, str]] = []
        self.suspects: list[Fault] = []
        self._comments: list[str] = []

    def fault(self, where: Where, message: str, *facts: str, hint: str | None = None) -> None:
        """Something is wrong: no Modelfile comes of this file."""
        self.faults.append(Fault(message, where, facts, hint))

    def expected(self, item: Item, name: str, wanted: str, hint: str | None = None) -> None:
        """The value is not what `name` takes."""
        self.fault(item.where, f"{name} is {wanted}, not {item.told()}", hint=hint)

    def note(self, where: Where, text: str) -> None:
        """Something is left out, or means less than it seems: told to the user, and a comment of the Modelfile."""
        self.notes.append((where, text))
        file = where.file if where.file.startswith("hf:") else where.file.rsplit("/", 1)[-1]
        self.remark(f"{file}:{where.line}: {text}" + ("" if text.endswith("?") else "."))

    def unread(self, where: Where, text: str, hint: str | None = None) -> None:
        """A key that mergekit does not read: noted. Where a hint says what was meant, it stands among the faults, if
        there are any, since it may be the cause of them."""
        self.note(where, f"{text}, and it is left out" + (f"; {hint}" if hint else ""))
        if hint is not None:
            self.suspects.append(Fault(text, where, (), hint))

    def remark(self, text: str) -> None:
        """Something that a reader should know: a comment of the Modelfile, told once in each table."""
        if text not in self._comments:
            self._comments.append(text)

    @contextmanager
    def comments_of(self, table: Table) -> Iterator[None]:
        """Lets the comments that are found inside stand above this table."""
        before, self._comments = self._comments, table.comments
        try:
            yield
        finally:
            self._comments = before

    def stop(self) -> None:
        """Raises ModelfileError if anything is wrong, in the order of the file."""
        if self.faults:
            raise together(self.faults, self.suspects)


def together(faults: Iterable[Fault], suspects: Iterable[Fault]) -> ModelfileError:
    """The faults of a file and what may have caused them as one error, in the order of the file."""
    return ModelfileError(sorted([*suspects, *faults], key=_order))


def _order(fault: Fault) -> tuple[int, int]:
    return (fault.where.line, fault.where.column) if fault.where else (0, 0)
