"""Compares the files of an output with what they should be, by size and digest, reading each at most once."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from modelbuild.artifact.card import FILE as CARD
from modelbuild.artifact.edits import walk
from modelbuild.artifact.provenance import FILE as PROVENANCE
from modelbuild.sources.hashing import Progress, read_digests

SPEAKING = frozenset({CARD, PROVENANCE})
"""Files of an output that speak about the others: nothing is said of them."""

BUFFER = 2**20


@dataclass(frozen=True, slots=True)
class Facts:
    """What a file should be or is: its bytes, and its digest with the kind before it; empty where nobody looked.

    `sha256:` is of the bytes. `git:` is what git calls a file, the SHA-1 of `blob SIZE`, a zero byte, and the bytes.
    """

    size: int
    digest: str = ""

    def as_json(self) -> dict[str, Any]:
        """The facts as they stand in `--json`."""
        return {"size": self.size, "digest": self.digest or None}


@dataclass(frozen=True, slots=True)
class Compared:
    """A file of an output and what became of it: "same", "differs", "missing" from the output, or "extra" in it.

    `found` is None where there is no file, or something else than a plain file.
    """

    name: str
    status: Literal["same", "differs", "missing", "extra"]
    expected: Facts | None
    found: Facts | None

    def as_json(self) -> dict[str, Any]:
        """The comparison as it stands in `--json`."""
        expected, found = (facts.as_json() if facts is not None else None for facts in (self.expected, self.found))
        return {"name": self.name, "status": self.status, "expected": expected, "found": found}


def compare(
    folder: str,
    wanted: Mapping[str, Facts],
    threads: int | None = None,
    progress: Progress | None = None,
) -> tuple[Compared, ...]:
    """Every file that is wanted or that the folder has, sorted by name; those of a size that is wanted are read.

    Raises SourceChanged for a file that changes meanwhile, and SourceNotFound for one that may not be read.
    """
    there = _plain(folder, {*walk(folder)} - SPEAKING)
    same_size = [name for name, facts in wanted.items() if (found := there.get(name)) and found.size == facts.size]
    digests = _digests(folder, {name: wanted[name] for name in same_size}, threads, progress)
    return tuple(_compared(name, wanted.get(name), there, digests) for name in sorted({*wanted, *there}))


def _compared(
    name: str, expected: Facts | None, there: Mapping[str, Facts | None], digests: Mapping[str, str]
) -> Compared:
    if name not in there:
        return Compared(name, "missing", expected, None)
    size = there[name]
    if expected is None:
        return Compared(name, "extra", None, size)
    found = Facts(size.size, digests.get(name, "")) if size is not None else None
    return Compared(name, "same" if found == expected else "differs", expected, found)


def _plain(folder: str, names: Collection[str]) -> dict[str, Facts | None]:
    """The size of each file; None for what is no plain file."""
    found: dict[str, Facts | None] = {}
    for name in names:
        status = os.lstat(os.path.join(folder, name))
        found[name] = Facts(status.st_size) if stat.S_ISREG(status.st_mode) else None
    return found


def _digests(
    folder: str, wanted: Mapping[str, Facts], threads: int | None, progress: Progress | None
) -> dict[str, str]:
    """The digest of each file, of the kind that is wanted."""
    folder = os.path.abspath(folder)
    plain = [name for name, facts in wanted.items() if not facts.digest.startswith("git:")]
    read = read_digests([(name, os.path.join(folder, name)) for name in plain], threads, progress)
    found = {name: f"sha256:{file.sha256}" for name, file in zip(plain, read, strict=True)}
    others = [name for name in wanted if name not in found]
    return found | {name: f"git:{git_digest(os.path.join(folder, name))}" for name in others}


def git_digest(path: str) -> str:
    """The SHA-1 that git gives the file as a blob."""
    with open(path, "rb") as file:
        digest = hashlib.sha1(b"blob %d\0" % os.fstat(file.fileno()).st_size, usedforsecurity=False)
        while chunk := file.read(BUFFER):
            digest.update(chunk)
    return digest.hexdigest()
