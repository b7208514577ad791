"""What a build or a plan comes to: the same nouns for Python, `--json` and the report on the terminal."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import Any

from modelbuild.errors import ModelbuildError


@dataclass(frozen=True, slots=True)
class Counts:
    """An artifact's logical tensors: all of them, and those that this run needed by what became of them."""

    total: int
    computed: int = 0
    copied: int = 0
    reused: int = 0

    def as_json(self) -> dict[str, int]:
        """The counts as they stand in `--json`."""
        return {"total": self.total, "computed": self.computed, "copied": self.copied, "reused": self.reused}


@dataclass(frozen=True, slots=True)
class ErrorInfo:
    """An error as data: exit code, place and message, and the text as a terminal shows it."""

    exit_code: int
    message: str
    file: str | None = None
    line: int | None = None
    text: str = ""

    def as_json(self) -> dict[str, Any]:
        """The error as it stands in `--json`."""
        return {
            "exit_code": self.exit_code,
            "file": self.file,
            "line": self.line,
            "message": self.message,
            "text": self.text,
        }


@dataclass(frozen=True, slots=True)
class ArtifactResult:
    """What became of one artifact. `status`: built, fresh, streamed, failed or skipped; bytes, seconds of this run.

    `reasons` say why tensors were computed, most frequent first; `notes` what the user should know.
    """

    name: str
    kind: str
    key: str
    status: str
    path: str | None
    tensors: Counts
    read: int = 0
    written: int = 0
    seconds: float = 0.0
    reasons: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    error: ErrorInfo | None = None

    def as_json(self) -> dict[str, Any]:
        """The artifact as it stands in `--json`."""
        data: dict[str, Any] = {
            "name": self.name,
            "kind": self.kind,
            "key": self.key,
            "status": self.status,
            "path": self.path,
            "tensors": self.tensors.as_json(),
            "bytes": {"read": self.read, "written": self.written},
            "seconds": round(self.seconds, 3),
            "reasons": list(self.reasons),
            "notes": list(self.notes),
        }
        return data | ({"error": self.error.as_json()} if self.error is not None else {})


@dataclass(frozen=True, slots=True)
class Result:
    """What a build came to. `artifacts` are those that are built and were needed, in building order."""

    seconds: float
    artifacts: tuple[ArtifactResult, ...]
    notes: tuple[str, ...] = ()
    error: ErrorInfo | None = None
    peak_tensor_bytes: int = field(default=0, compare=False)

    def __getitem__(self, name: str) -> ArtifactResult:
        """The result of the artifact `name`; KeyError if it was not needed."""
        for artifact in self.artifacts:
            if artifact.name == name:
                return artifact
        raise KeyError(name)

    def as_json(self) -> dict[str, Any]:
        """The result as `build --json` prints it."""
        data: dict[str, Any] = {
            "seconds": round(self.seconds, 3),
            "artifacts": [artifact.as_json() for artifact in self.artifacts],
            "notes": list(self.notes),
        }
        return data | ({"error": self.error.as_json()} if self.error is not None else {})


def error_info(error: ModelbuildError) -> ErrorInfo:
    """An error as data."""
    fault = error.faults[0]
    where = fault.where
    line = where.line if where is not None and where.line else None
    return ErrorInfo(error.exit_code, fault.message, where.file if where is not None else None, line, error.render())


def shown_path(path: str) -> str:
    """A path as messages name it: relative to this folder where it lies in it."""
    relative = os.path.relpath(path)
    return path if relative.startswith("..") else relative
