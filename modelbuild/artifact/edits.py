"""What was written into an output, so that what somebody changed in it is seen and never lost."""

from __future__ import annotations

import hashlib
import io
import json
import os
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from modelbuild.cache.check import examine
from modelbuild.cache.nouns import Manifest

PROVENANCE = "modelbuild.json"
"""The side file that says how an output was made; under `files` it has the SHA-256 of every other side file."""


@dataclass(frozen=True, slots=True)
class OutputFile:
    """A file of an output when it was written; `digest` is `sha256:…` of a side file and `xxh3:…` of a weight file."""

    size: int
    mtime_ns: int
    digest: str
    is_weight: bool
    inode: int


@dataclass(frozen=True, slots=True)
class OutputRecord:
    """What was written into the output `name` of the artifact `key`; files by name, `/` between folders.

    `notes` say what was moved out of the way when it was written, and how weight files are linked; they are not kept.
    """

    name: str
    key: str
    files: Mapping[str, OutputFile]
    notes: tuple[str, ...] = field(default=(), compare=False)

    def to_json(self) -> str:
        """The record as one JSON object."""
        rows = {name: [f.size, f.mtime_ns, f.digest, f.is_weight, f.inode] for name, f in sorted(self.files.items())}
        return json.dumps({"format": "modelbuild output 1", "name": self.name, "key": self.key, "files": rows})

    @staticmethod
    def from_json(text: str | bytes) -> OutputRecord | None:
        """The record that `to_json` gave; None for anything else."""
        try:
            body = json.loads(text)
            if body["format"] != "modelbuild output 1" or not all(type(body[k]) is str for k in ("name", "key")):
                return None
            files = {name: OutputFile(*row) for name, row in body["files"].items()}
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            return None
        if not all(_makes_sense(name, file) for name, file in files.items()):
            return None
        return OutputRecord(body["name"], body["key"], files)


def _makes_sense(name: str, file: OutputFile) -> bool:
    counts = all(type(n) is int for n in (file.size, file.mtime_ns, file.inode))
    return is_inside(name) and counts and type(file.digest) is str and type(file.is_weight) is bool


@dataclass(frozen=True, slots=True)
class Change:
    """A file of an output that is not as it was written.

    kind: "edited" or "missing" (a side file), "extra" (not written by modelbuild), "weights" (a weight file that is
    changed or missing).
    """

    name: str
    kind: Literal["edited", "missing", "extra", "weights"]


def is_inside(name: str) -> bool:
    """Whether a file name with `/` between folders stays inside the folder that it is joined to."""
    parts = name.split("/")
    return all(part not in ("", ".", "..") and not any(c in part for c in "\\\0\n") for part in parts)


def walk(folder: str) -> Iterator[str]:
    """The names of all files in a folder, `/` between folders, links by their own name and never followed."""
    for place, folders, names in os.walk(folder):
        linked = [name for name in folders if os.path.islink(os.path.join(place, name))]
        for name in (*names, *linked):
            yield os.path.relpath(os.path.join(place, name), folder).replace(os.sep, "/")


def file_sha256(path: str) -> str:
    """The digest of a file, `sha256:` and 64 hexadecimal digits; of a link, of where it points."""
    if os.path.islink(path):
        return "sha256:" + hashlib.sha256(b"link:" + os.fsencode(os.readlink(path))).hexdigest()
    with open(path, "rb") as file:
        return "sha256:" + hashlib.file_digest(file, "sha256").hexdigest()


def side_digests(side_files: Mapping[str, bytes | str]) -> dict[str, str]:
    """The SHA-256 of side files (their bytes, or the file to copy), as `modelbuild.json` carries them under `files`."""
    found = {}
    for name, content in sorted(side_files.items()):
        if name != PROVENANCE:
            with io.BytesIO(content) if isinstance(content, bytes) else open(content, "rb") as file:
                found[name] = hashlib.file_digest(file, "sha256").hexdigest()
    return found


def recorded(folder: str) -> OutputRecord | None:
    """What the output's own `modelbuild.json` says was written; None if it has none that can be read.

    Its sizes and times are -1, so every digest is compared; weight files have none, and count as changed.
    """
    try:
        with open(os.path.join(folder, PROVENANCE), "rb") as file:
            body: Any = json.load(file)
        digests, weights = dict(body["files"]), [str(weight["name"]) for weight in body.get("weights", ())]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None
    if not all(is_inside(name) for name in (*digests, *weights)):
        return None
    files = {name: OutputFile(-1, -1, f"sha256:{digest}", False, -1) for name, digest in digests.items()}
    files |= {name: OutputFile(-1, -1, "", True, -1) for name in weights}
    return OutputRecord(os.path.basename(folder), "", files)


def stamp(path: str) -> tuple[int, int, int] | None:
    """Size, mtime and inode of a file or link; None if there is none."""
    try:
        facts = os.lstat(path)
    except OSError:
        return None
    return facts.st_size, facts.st_mtime_ns, facts.st_ino


def check_output(
    target: str, record: OutputRecord, manifest: Manifest | None = None, doubtful: Collection[str] = ()
) -> list[Change]:
    """What in the output is not as it was written, sorted by name; read only where size, time or inode differ.

    A weight file that was only touched is told from a changed one by `manifest`, that of its artifact in the cache;
    without it, touched counts as changed. The weight files in `doubtful` are read whatever their size and time.
    """
    changes = [Change(name, "extra") for name in walk(target) if name not in record.files]
    for name, file in record.files.items():
        path = os.path.join(target, name)
        found = stamp(path)
        if found == (file.size, file.mtime_ns, file.inode) and name not in doubtful:
            continue
        if file.is_weight:
            if found is None or not _same_weights(target, name, file, manifest):
                changes.append(Change(name, "weights"))
        elif found is None:
            changes.append(Change(name, "missing"))
        elif not same_file(path, file.digest):
            changes.append(Change(name, "edited"))
    return sorted(changes, key=lambda change: change.name)


def same_file(path: str, digest: str) -> bool:
    """Whether the file, or link, at `path` can be read and has this digest."""
    try:
        return file_sha256(path) == digest
    except OSError:
        return False


def _same_weights(target: str, name: str, file: OutputFile, manifest: Manifest | None) -> bool:
    stored = next((f for f in manifest.files if f.name == name), None) if manifest is not None else None
    if manifest is None or stored is None or f"xxh3:{stored.checksum}" != file.digest:
        return False
    return name not in examine(target, manifest, (name,)).damaged and os.path.isfile(os.path.join(target, name))
