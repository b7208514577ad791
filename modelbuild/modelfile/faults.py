"""Collecting what is wrong, so that all of it is told at once and in the order of the file."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from modelbuild.errors import Fault, ModelfileError, Where
from modelbuild.modelfile.keys import Toml
from modelbuild.modelfile.positions import Positions
from modelbuild.modelfile.spec import Path
from modelbuild.modelfile.suggest import described, did_you_mean, shown

MOST = 100
"""How many faults are told; the rest are counted."""


@dataclass(frozen=True, slots=True)
class UnknownMethod(Fault):
    """That there is no method `method`."""

    method: str = ""


class Faults:
    """The faults of one file, each at the place of its key or value."""

    def __init__(self, positions: Positions) -> None:
        self._positions = positions
        self._found: list[Fault] = []
        self._more = 0

    def __bool__(self) -> bool:
        return bool(self._found)

    def where(self, path: Path) -> Where:
        """Where the value at `path` stands."""
        return self._positions.value(path)

    def key(self, path: Path, message: str, *facts: str, hint: str | None = None) -> None:
        """Notes a fault at the key at `path`, or at the table around it if the key is not in the file."""
        self._add(message, path, False, facts, hint)

    def value(self, path: Path, message: str, *facts: str, hint: str | None = None) -> None:
        """Notes a fault at the value at `path`."""
        self._add(message, path, True, facts, hint)

    def expected(self, path: Path, name: str, wanted: str, value: Toml, *, hint: str | None = None) -> None:
        """Notes that the value at `path` is not the `wanted` that `name` takes."""
        self.value(path, f"{name} is {wanted}, not {described(value)}", hint=hint)

    def unknown(self, path: Path, message: str, word: str, known: Iterable[str], *facts: str) -> None:
        """Notes a key that there is not, with the nearest spelling as the hint."""
        self.key(path, message, *facts, hint=self._near(word, known))

    def unknown_value(self, path: Path, message: str, word: str, known: Iterable[str], *facts: str) -> None:
        """Notes a value that there is not, with the nearest spelling as the hint."""
        self.value(path, message, *facts, hint=self._near(word, known))

    def no_method(self, path: Path, name: str, known: Iterable[str], facts: Iterable[str], hint: str | None) -> None:
        """Notes that there is no method `name`; `hint` goes before the nearest of those that are `known`."""
        hint = hint or self._near(name, known) or "`modelbuild methods` lists them"
        message = f"there is no method `{shown(name)}`"
        self._keep(UnknownMethod(message, self._positions.value(path), tuple(facts), hint, name))

    def _near(self, word: str, known: Iterable[str]) -> str | None:
        return did_you_mean(word, known) if len(self._found) < MOST else None

    def _add(self, message: str, path: Path, at_value: bool, facts: tuple[str, ...], hint: str | None) -> None:
        where = self._positions.value(path) if at_value else self._positions.key(path)
        self._keep(Fault(message, where, facts, hint))

    def _keep(self, fault: Fault) -> None:
        if len(self._found) >= MOST:
            self._more += 1
        else:
            self._found.append(fault)

    def raise_all(self) -> None:
        """Raises ModelfileError with all faults in the order of the file; does nothing if there is none."""
        if not self._found:
            return
        found = sorted(self._found, key=lambda fault: _order(fault.where))
        if self._more:
            found.append(Fault(f"{self._more} more faults like these are not shown"))
        raise ModelfileError(found)


def _order(where: Where | None) -> tuple[int, int]:
    return (where.line, where.column) if where else (0, 0)
