"""The lock: what the sources were, to the byte, and the versions of all that outputs depend on.

`Modelfile.lock` is TOML, sorted by name; the same lock is the same text. `lockfile.py` reads it back.
"""

from __future__ import annotations

import json
import os
import re
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import IO

from modelbuild.errors import BuildFailed
from modelbuild.sources.content import SourceAdapter, SourceModel
from modelbuild.sources.strictjson import show

FORMAT = 1
"""The version of the lock's format."""

HEADING = "# Written by modelbuild. Keep it with the Modelfile; do not edit it by hand.\n"

_BARE = re.compile(r"[A-Za-z0-9_-]+")


@dataclass(frozen=True, slots=True)
class LockedFile:
    """A file: name within its source or artifact (`/` between folders), bytes, SHA-256 in hexadecimal."""

    name: str
    size: int
    sha256: str


@dataclass(frozen=True, slots=True)
class LockedSource:
    """A source: what the Modelfile calls it (`local:models/chronos`), the commit of a Hub source, every file used."""

    origin: str
    files: tuple[LockedFile, ...]
    commit: str | None = None


@dataclass(frozen=True, slots=True)
class LockedOutput:
    """A recorded artifact: its key, its weight, config and tokenizer files, and the numerics classes it is bound to."""

    key: str
    files: tuple[LockedFile, ...]
    numerics: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Lock:
    """A whole lock: sources, methods (modelbuild among them) with their versions, and recorded outputs, by name."""

    sources: Mapping[str, LockedSource] = field(default_factory=dict)
    methods: Mapping[str, int | str] = field(default_factory=dict)
    outputs: Mapping[str, LockedOutput] = field(default_factory=dict)


def from_sources(
    sources: Iterable[SourceModel | SourceAdapter],
    methods: Mapping[str, int | str],
    outputs: Mapping[str, LockedOutput] | None = None,
) -> Lock:
    """The lock of resolved sources, of `methods` (modelbuild and everything outputs depend on) and recorded outputs."""
    locked = {}
    for source in sources:
        files = sorted((LockedFile(file.name, file.size, file.sha256) for file in source.files), key=_by_name)
        locked[source.name] = LockedSource(source.origin, tuple(files), source.commit)
    return Lock(locked, dict(methods), dict(outputs or {}))


def render(lock: Lock) -> str:
    """The text of the lock: sources, methods and outputs, each sorted by name."""
    parts = [f"{HEADING}lock = {FORMAT}\n"]
    for name, source in sorted(lock.sources.items()):
        commit = f"commit = {_string(source.commit)}\n" if source.commit is not None else ""
        parts.append(f"[sources.{_key(name)}]\norigin = {_string(source.origin)}\n{commit}{_files(source.files)}")
    if lock.methods:
        lines = (f"{_key(name)} = {_version(version)}\n" for name, version in sorted(lock.methods.items()))
        parts.append("[methods]\n" + "".join(lines))
    for name, output in sorted(lock.outputs.items()):
        bound = f"numerics = [{', '.join(map(_string, sorted(output.numerics)))}]\n" if output.numerics else ""
        parts.append(f"[outputs.{_key(name)}]\nkey = {_string(output.key)}\n{bound}{_files(output.files)}")
    return "\n".join(parts)


def differences(old: Lock | None, new: Lock) -> list[str]:
    """What would change in the sources and methods of the lock `old` (None: there is none), a sentence for each change.

    Outputs are left out: they never make a lock out of date.
    """
    if old is None:
        return ["there is no lock yet"]
    return [*_source_changes(old, new), *_method_changes(old, new)]


def write(path: str | os.PathLike[str], lock: Lock) -> bool:
    """Writes the lock to `path`, whole or not at all, if its text is another; whether it was.

    Raises BuildFailed where the folder does not take it, and what `lockfile.read` raises: a lock that is there and not
    understood, perhaps of a newer modelbuild, is never overwritten.
    """
    from modelbuild.sources.lockfile import read

    text, place = render(lock), os.path.realpath(path)
    old = read(path)
    _sweep(place)
    if old is not None and render(old) == text:
        return False
    with _staged(path, place) as (file, staged):
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
        os.replace(staged, place)
    return True


def check_writable(path: str | os.PathLike[str]) -> None:
    """Raises BuildFailed, as `write` would, where the folder takes no lock; nothing stays of the attempt."""
    with _staged(path, os.path.realpath(path)):
        pass


@contextmanager
def _staged(path: str | os.PathLike[str], place: str) -> Iterator[tuple[IO[str], str]]:
    """An empty file beside the lock and its path; it is gone at the end, unless it took the lock's place."""
    staged = f"{place}.{os.getpid()}.{threading.get_ident()}.tmp"
    try:
        with open(staged, "w", encoding="utf-8", newline="\n") as file:
            yield file, staged
    except OSError as error:
        facts = [f"`{os.fspath(path)}`: {os.strerror(error.errno) if error.errno else error}"]
        raise BuildFailed("the lock could not be written", facts=facts) from error
    finally:
        with suppress(OSError):
            os.unlink(staged)


def _sweep(place: str) -> None:
    """Removes what writers that were killed left beside the lock more than a minute ago."""
    folder, name = os.path.split(place)
    left = re.compile(re.escape(name) + r"\.[0-9.]+\.tmp")
    with suppress(OSError):
        for entry in os.scandir(folder):
            if left.fullmatch(entry.name) and time.time() - entry.stat(follow_symlinks=False).st_mtime > 60:
                os.unlink(entry.path)


def _by_name(file: LockedFile) -> str:
    return file.name


def _files(files: Iterable[LockedFile]) -> str:
    lines = "".join(
        f"  {{ name = {_string(file.name)}, size = {file.size}, sha256 = {_string(file.sha256)} }},\n"
        for file in sorted(files, key=_by_name)
    )
    return f"files = [\n{lines}]\n"


def _key(name: str) -> str:
    return name if _BARE.fullmatch(name) else _string(name)


def _string(text: str) -> str:
    """A basic string of TOML: JSON's escapes are among its own, but for the delete character."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def _version(version: int | str) -> str:
    return _string(version) if isinstance(version, str) else str(version)


def _source_changes(old: Lock, new: Lock) -> list[str]:
    found = []
    for name in sorted(old.sources.keys() | new.sources.keys()):
        before, now = old.sources.get(name), new.sources.get(name)
        if now is None:
            found.append(f"source `{name}` is no longer used")
        elif before is None:
            found.append(f"source `{name}` is not in the lock")
        elif before != now:
            found += [f"source `{name}`: {change}" for change in _changes(before, now)]
    return found


def _changes(before: LockedSource, now: LockedSource) -> list[str]:
    found = []
    if before.origin != now.origin:
        found.append(f"{show(before.origin)} → {show(now.origin)}")
    if before.commit != now.commit:
        found.append(f"commit {before.commit or 'none'} → {now.commit or 'none'}")
    old, new = ({file.name: file for file in source.files} for source in (before, now))
    for name in sorted(old.keys() | new.keys()):
        if name not in new:
            found.append(f"{show(name)} is gone")
        elif name not in old:
            found.append(f"{show(name)} is new")
        elif old[name] != new[name]:
            found.append(f"{show(name)} changed, {old[name].sha256[:12]} → {new[name].sha256[:12]}")
    return found


def _method_changes(old: Lock, new: Lock) -> list[str]:
    found = []
    for name in sorted(old.methods.keys() | new.methods.keys()):
        before, now = old.methods.get(name), new.methods.get(name)
        if now is None:
            found.append(f"`{name}` is no longer used")
        elif before is None:
            found.append(f"`{name}` is not in the lock")
        elif before != now:
            found.append(f"`{name}` {before} → {now}")
    return found
