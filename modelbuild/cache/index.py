"""Which artifacts hold which tensors, in SQLite: made from the manifests, and thrown away without loss.

It only says where to look; places and checksums are always read from the manifest itself.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, TypeVar

from modelbuild.cache.nouns import Manifest

if TYPE_CHECKING:
    import sqlite3

VERSION = 1
"""Of the tables; an index of another version is made anew."""

_SCHEMA = (
    "CREATE TABLE artifacts (artifact TEXT PRIMARY KEY, stamp TEXT NOT NULL) WITHOUT ROWID",
    "CREATE TABLE tensors (key TEXT, artifact TEXT, PRIMARY KEY (key, artifact)) WITHOUT ROWID",
    "CREATE INDEX tensors_of ON tensors (artifact)",
    "CREATE TABLE trusted (artifact TEXT, file TEXT, size INTEGER, mtime_ns INTEGER, PRIMARY KEY (artifact, file))",
    f"PRAGMA user_version = {VERSION}",
)
_CHUNK = 500

PATIENCE = 5.0
"""Seconds to wait for another process that writes the index."""

Answer = TypeVar("Answer")
Read = Callable[[str], "Manifest | None"]


class Index:
    """The index at `path`, opened at first use. Damage is noted and the index made anew; while it cannot be written
    or another process is long at it, one in memory does the same."""

    def __init__(self, path: str, notes: list[str]) -> None:
        self._path, self._notes = path, notes
        self._db: sqlite3.Connection | None = None
        self._lock = threading.RLock()

    def holders(self, present: Mapping[str, str], read: Read, keys: Iterable[str]) -> dict[str, int]:
        """How many of the keys each artifact holds, after the index was brought up to the artifacts present.

        `present` maps each artifact to a stamp of its manifest; `read` gives the manifest of one that is new.
        """
        wanted = list(dict.fromkeys(keys))

        def ask(db: sqlite3.Connection) -> dict[str, int]:
            self._refresh(db, present, read)
            counts: dict[str, int] = {}
            for start in range(0, len(wanted), _CHUNK):
                chunk = wanted[start : start + _CHUNK]
                marks = ",".join("?" * len(chunk))
                query = f"SELECT artifact, count(*) FROM tensors WHERE key IN ({marks}) GROUP BY artifact"
                for artifact, count in db.execute(query, chunk):
                    counts[artifact] = counts.get(artifact, 0) + count
            return counts

        return self._run(ask, len(present))

    def trust(self, artifact: str, file: str, size: int, mtime_ns: int) -> None:
        """Remember that a file was found sound with this size and mtime."""

        def write(db: sqlite3.Connection) -> None:
            db.execute("INSERT OR REPLACE INTO trusted VALUES (?, ?, ?, ?)", (artifact, file, size, mtime_ns))

        self._run(write)

    def trusted(self, artifact: str, file: str) -> tuple[int, int] | None:
        """Size and mtime with which a file was last found sound, if that was remembered."""

        def ask(db: sqlite3.Connection) -> tuple[int, int] | None:
            query = "SELECT size, mtime_ns FROM trusted WHERE artifact = ? AND file = ?"
            row: tuple[int, int] | None = db.execute(query, (artifact, file)).fetchone()
            return row

        return self._run(ask)

    def add(self, manifest: Manifest, stamp: str) -> None:
        """Enter a manifest that was just published."""
        self._run(lambda db: _enter(db, manifest, stamp))

    def close(self) -> None:
        """Close the file; the next use opens it again."""
        with self._lock:
            if self._db is not None:
                self._db.close()
            self._db = None

    def _refresh(self, db: sqlite3.Connection, present: Mapping[str, str], read: Read) -> None:
        known = dict(db.execute("SELECT artifact, stamp FROM artifacts"))
        for artifact in known:
            if present.get(artifact) != known[artifact]:
                _forget(db, artifact)
        for artifact, stamp in present.items():
            if known.get(artifact) != stamp and (manifest := read(artifact)) is not None:
                _enter(db, manifest, stamp)

    def _run(self, work: Callable[[sqlite3.Connection], Answer], present: int = 0) -> Answer:
        import sqlite3

        with self._lock:
            for _ in range(2):
                try:
                    db = self._db = self._db or self._open(present)
                    return _in_transaction(db, work)
                except sqlite3.Error as error:
                    self.close()
                    if "locked" in str(error):
                        break
                    present = 0
                    self._notes.append("the index of the cache was damaged; it was made anew from the manifests")
                    for suffix in ("", "-journal"):
                        with contextlib.suppress(OSError):
                            os.unlink(self._path + suffix)
            db = self._db = _connect(":memory:")
            _in_transaction(db, _create)
            return _in_transaction(db, work)

    def _open(self, present: int) -> sqlite3.Connection:
        if present and not os.path.exists(self._path):
            self._notes.append("the index of the cache was missing; it was made anew from the manifests")
        db = _connect(self._path)
        try:
            if _version(db) != VERSION:
                _in_transaction(db, _create)
        except BaseException:
            db.close()
            raise
        return db


def _connect(path: str) -> sqlite3.Connection:
    import sqlite3

    db = sqlite3.connect(path, timeout=PATIENCE, check_same_thread=False, isolation_level=None)
    db.execute("PRAGMA synchronous = OFF")
    return db


def _in_transaction(db: sqlite3.Connection, work: Callable[[sqlite3.Connection], Answer]) -> Answer:
    db.execute("BEGIN IMMEDIATE")
    try:
        answer = work(db)
    except BaseException:
        with contextlib.suppress(Exception):
            db.execute("ROLLBACK")
        raise
    db.execute("COMMIT")
    return answer


def _version(db: sqlite3.Connection) -> int:
    return int(db.execute("PRAGMA user_version").fetchone()[0])


def _create(db: sqlite3.Connection) -> None:
    """Make the tables, unless another process did so while this one waited."""
    if _version(db) == VERSION:
        return
    for (name,) in db.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall():
        db.execute(f'DROP TABLE "{name}"')
    for statement in _SCHEMA:
        db.execute(statement)


def _forget(db: sqlite3.Connection, artifact: str) -> None:
    for table in ("artifacts", "tensors", "trusted"):
        db.execute(f"DELETE FROM {table} WHERE artifact = ?", (artifact,))


def _enter(db: sqlite3.Connection, manifest: Manifest, stamp: str) -> None:
    _forget(db, manifest.key)
    db.execute("INSERT INTO artifacts VALUES (?, ?)", (manifest.key, stamp))
    rows = {(tensor.key, manifest.key) for tensor in manifest.tensors}
    db.executemany("INSERT INTO tensors VALUES (?, ?)", sorted(rows))
