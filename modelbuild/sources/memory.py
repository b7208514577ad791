"""What is known about files that were seen before: their digests, and what they contain.

In the cache folder, under `sources/`:

- `stamps`: one line for each file that was hashed: its stamp (device, inode, size, mtime, ctime), its SHA-256, and a
  check of the line. Lines are only ever appended, each in one write, so several processes may do so at once.
- `contents/XX/SHA256.json`: what the file with this digest contains, under a first line that checks the rest.
- `copies/XX/SHA256.safetensors`: tensors of that file whose bytes do not lie in order in it (copies.py).
- `announced/XX/SHA256.json`: the same of a file on the Hub that nobody hashed here yet: what it is said to contain.

Everything here may be deleted or damaged at any time: a line or file that does not check is as good as absent, and
costs a reading. A disk that is full or read-only forgets; it never fails a build.
"""

from __future__ import annotations

import hashlib
import json
import os
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

from modelbuild.sources.content import SourceFile, Stamp
from modelbuild.sources.safetensors import Header, TensorEntry
from modelbuild.sources.stamps import racy, stamp_of

STAMPS_LIMIT = 10_000
"""Files that are remembered; the least recently hashed are forgotten first."""


@dataclass(frozen=True, slots=True)
class Contents:
    """What a file of weights contains; `digests`, where known, are the SHA-256 of the tensors' bytes, in order."""

    header: Header
    digests: tuple[str, ...] | None = None


class Memory:
    """Digests by stamp and contents by digest, kept in the cache folder `cache_root`; `clock` is in nanoseconds."""

    def __init__(self, cache_root: str | os.PathLike[str], clock: Callable[[], int] = time.time_ns) -> None:
        self.clock = clock
        self._cache = os.path.realpath(cache_root)
        self._folder = os.path.join(self._cache, "sources")
        self._stamps = os.path.join(self._folder, "stamps")
        self._known: dict[str, str] | None = None

    def stamp(self, path: str, status: os.stat_result) -> Stamp:
        """The stamp of the file at the absolute `path`, without ctime inside the cache, where links change it."""
        return stamp_of(status, linked=path.startswith(self._cache + os.sep))

    def digest(self, stamp: Stamp) -> str | None:
        """The SHA-256 of the file with this stamp, if it was ever hashed."""
        if self._known is None:
            self._known = self._load()
        line = self._known.get(_stamp_text(stamp))
        if line is None:
            return None
        sha256, _, check = line.partition(" ")
        return sha256 if check == _check(f"{_stamp_text(stamp)} {sha256}".encode()) else None

    def remember(self, stamp: Stamp, sha256: str, read_ns: int) -> None:
        """Keeps the digest of a file that was read from `read_ns` on, unless it was too young then."""
        if racy(stamp, read_ns):
            return
        text = f"{_stamp_text(stamp)} {sha256}"
        if self._known is not None:
            self._known[_stamp_text(stamp)] = f"{sha256} {_check(text.encode())}"
        # The line before may be torn; an empty line costs nothing.
        self._append(f"\n{text} {_check(text.encode())}\n".encode())

    def contents(self, file: SourceFile) -> Contents | None:
        """What the file contains, if the file of this digest was ever looked into."""
        return self._read(self.place("contents", file.sha256), file.size)

    def announced(self, file: SourceFile) -> Header | None:
        """The header that a file of this digest is said to have; whoever has the file compares."""
        told = self._read(self.place("announced", file.sha256), file.size)
        return told.header if told is not None else None

    def remember_announced(self, file: SourceFile, header: Header) -> None:
        """Keeps the header that a file which is not here is said to have."""
        self._write(self.place("announced", file.sha256), Contents(header))

    def forget_announced(self, file: SourceFile) -> None:
        """Forgets what a file was said to have."""
        with suppress(OSError):
            os.unlink(self.place("announced", file.sha256))

    def remember_contents(self, file: SourceFile, contents: Contents, read_ns: int) -> None:
        """Keeps what the file contains, looked up from `read_ns` on, unless the file was too young then."""
        if racy(file.stamp, read_ns):
            return
        self._write(self.place("contents", file.sha256), contents)

    def _read(self, place: str, size: int) -> Contents | None:
        try:
            with open(place, "rb") as stored:
                check, _, text = stored.read().partition(b"\n")
            if check != _check(text).encode():
                return None
            contents = _decode(json.loads(text))
        except (OSError, ValueError, TypeError, KeyError, RecursionError):
            return None
        return contents if contents.header.size == size else None

    def _write(self, place: str, contents: Contents) -> None:
        text = json.dumps(_encode(contents), separators=(",", ":")).encode()
        with suppress(OSError):
            _replace(place, _check(text).encode() + b"\n" + text)

    def place(self, folder: str, sha256: str, suffix: str = "json") -> str:
        """The path of what is kept in `folder` under the digest of a file."""
        return os.path.join(self._folder, folder, sha256[:2], f"{sha256}.{suffix}")

    def _append(self, line: bytes) -> None:
        with suppress(OSError):
            os.makedirs(self._folder, exist_ok=True)
            descriptor = os.open(self._stamps, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o666)
            try:
                os.write(descriptor, line)
            finally:
                os.close(descriptor)

    def _load(self) -> dict[str, str]:
        """Stamp to digest and check, later lines over earlier ones; checks are looked at when a digest is asked for."""
        try:
            with open(self._stamps, encoding="ascii", errors="replace") as stored:
                lines = [line for line in stored.read().split("\n") if line]
        except OSError:
            return {}
        known: dict[str, str] = {}
        for line in lines:
            fields = line.rsplit(" ", 2)
            if len(fields) == 3:
                known.pop(fields[0], None)
                known[fields[0]] = f"{fields[1]} {fields[2]}"
        if len(lines) > STAMPS_LIMIT:
            known = self._compact(known)
        return known

    def _compact(self, known: dict[str, str]) -> dict[str, str]:
        """Keeps the newest half of what fits; what another process appends meanwhile may be forgotten, no more."""
        kept = dict(list(known.items())[-STAMPS_LIMIT // 2 :])
        with suppress(OSError):
            _replace(self._stamps, "".join(f"{stamp} {rest}\n" for stamp, rest in kept.items()).encode())
        return kept


def _stamp_text(stamp: Stamp) -> str:
    return f"{stamp.device} {stamp.inode} {stamp.size} {stamp.mtime_ns} {stamp.ctime_ns}"


def _check(text: bytes) -> str:
    """Guards against damage, not against forgery."""
    return hashlib.sha256(text).hexdigest()[:16]


def _encode(contents: Contents) -> dict[str, object]:
    header = contents.header
    tensors = [[t.name, t.dtype, t.shape, t.start, t.nbytes, *_strides(t)] for t in header.tensors]
    return {
        "tensors": tensors,
        "metadata": dict(header.metadata),
        "data_start": header.data_start,
        "notes": header.notes,
        "whole": header.whole,
        "digests": contents.digests,
    }


def _decode(raw: dict[str, object]) -> Contents:
    tensors, metadata, data_start, digests = raw["tensors"], raw["metadata"], raw["data_start"], raw["digests"]
    if not isinstance(tensors, list) or not isinstance(metadata, dict) or not isinstance(data_start, int):
        raise TypeError
    entries = tuple(
        TensorEntry(name, dtype, tuple(shape), start, nbytes, tuple(strides[0]) if strides else None)
        for name, dtype, shape, start, nbytes, *strides in tensors
    )
    notes, whole = raw.get("notes", []), raw.get("whole")
    if not isinstance(notes, list) or not (whole is None or isinstance(whole, int)):
        raise TypeError
    known = tuple(digests) if isinstance(digests, list) and len(digests) == len(entries) else None
    return Contents(Header(entries, metadata, data_start, tuple(notes), whole), known)


def _strides(tensor: TensorEntry) -> list[tuple[int, ...]]:
    return [] if tensor.strides is None else [tensor.strides]


def _replace(path: str, data: bytes) -> None:
    os.makedirs(os.path.dirname(path), exist_ok=True)
    staged = f"{path}.{os.getpid()}.{threading.get_ident()}.{time.monotonic_ns()}.tmp"
    try:
        with open(staged, "xb") as file:
            file.write(data)
        os.replace(staged, path)
    except OSError:
        with suppress(OSError):
            os.unlink(staged)
        raise
