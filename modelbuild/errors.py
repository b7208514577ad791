"""Everything that can go wrong, as one small tree.

    ModelbuildError                 exit code
    ├── BuildFailed                 1   the build could not be done (shapes, adapters, a full disk)
    │   ├── NotBuiltYet             1   part of the format, but not of this version
    │   └── SourceChanged           1   a source was edited while it was being read
    ├── UsageError                  2   a wrong option or target
    │   └── ModelfileError          2   what the Modelfile alone shows
    ├── LockOutOfDate               3
    ├── SourceNotFound              4   not there, or no access
    ├── VerificationFailed          5
    ├── NotCached                   6   `--require-cached`
    └── Interrupted                 130

Each error carries one or more faults; a fault says what, where, the facts, and one hint.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol


class AsJson(Protocol):
    """What a command came to, as it stands in `--json`."""

    def as_json(self) -> dict[str, Any]:
        """The data."""


@dataclass(frozen=True, slots=True)
class Where:
    """A place in a text file: lines and columns count from 1; column 0 means the whole line, line 0 the whole file."""

    file: str
    line: int = 0
    column: int = 0

    def __str__(self) -> str:
        parts = [self.file, *(str(n) for n in (self.line, self.column) if n)]
        return ":".join(parts)


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing that is wrong: a sentence, where it stands, the facts behind it and at most one hint."""

    message: str
    where: Where | None = None
    facts: tuple[str, ...] = ()
    hint: str | None = None

    def render(self) -> str:
        """The fault as text, in the form that every error of modelbuild has."""
        lines = [f"error: {self.message}"]
        if self.where is not None:
            lines.append(f"  --> {self.where}")
        lines += [f"   |  {fact}" for fact in self.facts]
        if self.hint is not None:
            lines += ["", f"hint: {self.hint}"]
        return "\n".join(lines)


class ModelbuildError(Exception):
    """The root of the tree: what a user can cause, never a traceback."""

    exit_code = 1
    result: AsJson | None = None
    """What a build came to before it failed, where it was a build that did, or what a comparison came to."""

    def __init__(
        self,
        message: str | Sequence[Fault],
        *,
        where: Where | None = None,
        facts: Sequence[str] = (),
        hint: str | None = None,
    ) -> None:
        if isinstance(message, str):
            self.faults: tuple[Fault, ...] = (Fault(message, where, tuple(facts), hint),)
        else:
            self.faults = tuple(message)
        super().__init__(self.faults[0].message)

    def render(self) -> str:
        """All faults as text, one after the other with a blank line between."""
        return "\n\n".join(fault.render() for fault in self.faults)


class BuildFailed(ModelbuildError):
    """The build could not be done with these inputs or on this machine."""


class NotBuiltYet(BuildFailed):
    """Part of the Modelfile format that this version does not build yet."""


class SourceChanged(BuildFailed):
    """A source file was edited, truncated or replaced while it was being read."""


class UsageError(ModelbuildError):
    """A command line that makes no sense."""

    exit_code = 2


class ModelfileError(UsageError):
    """Faults that the Modelfile alone shows; nothing was read or built."""


class LockOutOfDate(ModelbuildError):
    """The lock would have to change and may not."""

    exit_code = 3


class SourceNotFound(ModelbuildError):
    """A source is not there, or may not be read."""

    exit_code = 4


class VerificationFailed(ModelbuildError):
    """Files are not what the lock or the cache say they are."""

    exit_code = 5


class NotCached(ModelbuildError):
    """`--require-cached`, and a tensor would have to be computed."""

    exit_code = 6


def of_system(error: OSError) -> BuildFailed:
    """What the operating system refused, as one of ours."""
    facts = [f"`{error.filename}`"] if error.filename else []
    return BuildFailed(f"the system refused: {error.strerror or error}", facts=facts)


class Interrupted(ModelbuildError):
    """Stopped by the user; what was finished is kept."""

    exit_code = 130
