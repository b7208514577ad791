"""Reads a lock, strictly: a lock that is only half understood would promise what nobody checks."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Any, NoReturn

from modelbuild.errors import LockOutOfDate, Where
from modelbuild.sources.lock import FORMAT, Lock, LockedFile, LockedOutput, LockedSource
from modelbuild.sources.strictjson import show

SIZE_LIMIT = 50_000_000
"""Bytes that a lock may have."""

HINT = "`modelbuild lock` writes it anew once it is out of the way"

_SHA256 = re.compile(r"[0-9a-f]{64}")
Path = tuple[str | int, ...]


def read(path: str | os.PathLike[str]) -> Lock | None:
    """The lock at `path`, or None where there is none.

    Raises LockOutOfDate, with line and column, for what is no lock, has values that no lock has or keys that this
    version does not know, and for a newer format, naming it.
    """
    try:
        with open(path, "rb") as file:
            data = file.read(SIZE_LIMIT + 1)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise LockOutOfDate(
            "the lock cannot be read", where=Where(os.fspath(path)), facts=[str(error.strerror)]
        ) from error
    return parse(data, os.fspath(path))


def parse(data: bytes, file: str) -> Lock:
    """The lock that `data` holds; `file` is what messages call it. Raises what `read` raises."""
    if len(data) > SIZE_LIMIT:
        raise LockOutOfDate("the lock is too large", where=Where(file), facts=[f"the limit is {SIZE_LIMIT} bytes"])
    try:
        text = data.decode("utf-8").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        facts = [f"it is not UTF-8 at byte {error.start}"]
        raise LockOutOfDate("the lock is damaged", where=Where(file), facts=facts, hint=HINT) from None
    return _Text(file, text).lock()


class _Text:
    """A lock's text and what tomli made of it; finds the place of what is wrong."""

    def __init__(self, file: str, text: str) -> None:
        self.file = file
        self.text = text
        self.raw = self.load()

    def load(self) -> dict[str, Any]:
        import tomli

        try:
            return tomli.loads(self.text)
        except tomli.TOMLDecodeError as error:
            where = Where(self.file, error.lineno, error.colno)
            message = "the lock is damaged"
            if self.text.split("\n")[error.lineno - 1].startswith(("<<<<<<<", "=======", ">>>>>>>")):
                message = "the lock holds two versions that were not merged"
            raise LockOutOfDate(message, where=where, facts=[error.msg], hint=HINT) from None
        except (RecursionError, ValueError):
            raise LockOutOfDate("the lock is damaged", where=Where(self.file), hint=HINT) from None

    def lock(self) -> Lock:
        self.check_format()
        self.check_keys((), self.raw, {"lock", "sources", "methods", "outputs"}, {"lock"})
        return Lock(
            {name: self.source(("sources", name), raw) for name, raw in self.table(("sources",)).items()},
            {name: self.version(("methods", name), raw) for name, raw in self.table(("methods",)).items()},
            {name: self.output(("outputs", name), raw) for name, raw in self.table(("outputs",)).items()},
        )

    def check_format(self) -> None:
        found = self.raw.get("lock")
        if type(found) is not int or found < 1:
            self.refuse(("lock",), f"expected `lock = {FORMAT}`")
        if found > FORMAT:
            methods = self.raw.get("methods")
            writer = methods.get("modelbuild") if isinstance(methods, dict) else None
            by = f", written by modelbuild {writer}" if isinstance(writer, str) and writer.isprintable() else ""
            facts = [f"it has format {found}{by}", f"this modelbuild knows format {FORMAT}"]
            hint = "use that release, or a newer one"
            raise LockOutOfDate(
                "the lock is from a newer modelbuild", where=self.place(("lock",)), facts=facts, hint=hint
            )

    def source(self, path: Path, raw: object) -> LockedSource:
        table = self.check_keys(path, raw, {"origin", "commit", "files"}, {"origin", "files"})
        origin = self.string((*path, "origin"), table["origin"])
        commit = self.string((*path, "commit"), table["commit"]) if "commit" in table else None
        return LockedSource(origin, self.files((*path, "files"), table["files"]), commit)

    def output(self, path: Path, raw: object) -> LockedOutput:
        table = self.check_keys(path, raw, {"key", "numerics", "files"}, {"key", "files"})
        key = self.string((*path, "key"), table["key"])
        bound = self.strings((*path, "numerics"), table["numerics"]) if "numerics" in table else ()
        return LockedOutput(key, self.files((*path, "files"), table["files"]), bound)

    def files(self, path: Path, raw: object) -> tuple[LockedFile, ...]:
        if not isinstance(raw, list):
            self.refuse(path, "expected a list of files")
        files = tuple(self.one_file((*path, index), entry) for index, entry in enumerate(raw))
        seen: set[str] = set()
        for index, file in enumerate(files):
            if file.name in seen:
                self.refuse((*path, index), f"{show(file.name)} is listed twice")
            seen.add(file.name)
        return tuple(sorted(files, key=lambda file: file.name))

    def one_file(self, path: Path, raw: object) -> LockedFile:
        keys = {"name", "size", "sha256"}
        table = self.check_keys(path, raw, keys, keys)
        size, sha256 = table["size"], table["sha256"]
        if type(size) is not int or size < 0:
            self.refuse((*path, "size"), "expected a number of bytes")
        if not isinstance(sha256, str) or not _SHA256.fullmatch(sha256):
            self.refuse((*path, "sha256"), "expected a SHA-256, 64 hexadecimal digits")
        return LockedFile(self.string((*path, "name"), table["name"]), size, sha256)

    def version(self, path: Path, raw: object) -> int | str:
        if type(raw) is not int and not (isinstance(raw, str) and raw):
            self.refuse(path, "expected a version, a number or a string")
        return raw

    def string(self, path: Path, raw: object) -> str:
        if not isinstance(raw, str) or not raw:
            self.refuse(path, "expected a string")
        return raw

    def strings(self, path: Path, raw: object) -> tuple[str, ...]:
        if not isinstance(raw, list) or not raw or not all(isinstance(entry, str) and entry for entry in raw):
            self.refuse(path, "expected a list of strings")
        if len(set(raw)) != len(raw):
            self.refuse(path, "expected each string once")
        return tuple(sorted(raw))

    def table(self, path: tuple[str]) -> Mapping[str, Any]:
        raw = self.raw.get(path[0], {})
        return raw if isinstance(raw, dict) else self.refuse(path, "expected a table")

    def check_keys(self, path: Path, raw: object, known: set[str], required: set[str]) -> Mapping[str, Any]:
        if not isinstance(raw, dict):
            self.refuse(path, "expected a table")
        for key in raw:
            if key not in known:
                self.refuse((*path, key), f"{show(key)} is not a key of a lock of format {FORMAT}")
        for key in sorted(required - raw.keys()):
            self.refuse(path, f"`{key}` is missing")
        return raw

    def place(self, path: Path) -> Where:
        from modelbuild.modelfile.positions import Positions

        positions = Positions(self.file, self.text, {})
        return positions.value(path) if path in positions else positions.key(path)

    def refuse(self, path: Path, fact: str) -> NoReturn:
        raise LockOutOfDate("the lock was edited or damaged", where=self.place(path), facts=[fact], hint=HINT)
