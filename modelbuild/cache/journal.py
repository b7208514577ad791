"""The journal of an artifact that is being written: which tensors are finished, said only after their bytes are safe.

A line is the XXH3-64 of its text, a space, and the text: `[name, key, file, offset, bytes, checksum]` as JSON. Every
batch starts with a newline, so a line that a kill tore spoils no other.
"""

from __future__ import annotations

import contextlib
import json
import os
import threading
from collections.abc import Mapping
from dataclasses import astuple, dataclass

import xxhash

from modelbuild.cache.disk import Durability, sync_data

INTERVAL = 0.2
"""Seconds between two batches."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A finished tensor: where its bytes lie in the stage, and their checksum."""

    name: str
    key: str
    file: str
    offset: int
    nbytes: int
    checksum: str


def dump_entry(entry: Entry) -> bytes:
    """The entry as a line."""
    text = json.dumps(astuple(entry), separators=(",", ":")).encode()
    return xxhash.xxh3_64_hexdigest(text).encode() + b" " + text + b"\n"


def read_journal(path: str) -> tuple[dict[str, Entry], int]:
    """The latest entry of each tensor, and how many lines before the last one could not be read."""
    try:
        with open(path, "rb") as file:
            lines = [line for line in file.read().split(b"\n") if line]
    except FileNotFoundError:
        return {}, 0
    entries, unreadable = {}, 0
    for number, line in enumerate(lines, 1):
        entry = _parse(line)
        if entry is not None:
            entries[entry.name] = entry
        elif number < len(lines):
            unreadable += 1
    return entries, unreadable


def _parse(line: bytes) -> Entry | None:
    digest, _, text = line.partition(b" ")
    if xxhash.xxh3_64_hexdigest(text).encode() != digest:
        return None
    try:
        return Entry(*json.loads(text))
    except (ValueError, TypeError):
        return None


class Journal:
    """Appends entries from many threads; with durability "batch" a thread of its own syncs data, then writes lines."""

    def __init__(self, path: str, fds: Mapping[str, int], durability: Durability) -> None:
        self._fds, self._durability = fds, durability
        self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW, 0o644)
        self._pending: list[Entry] = []
        self._lock, self._writing = threading.Lock(), threading.Lock()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._error: OSError | None = None

    def record(self, entry: Entry) -> None:
        """Note that the entry's bytes are written. Raises OSError if earlier bytes could not be synced."""
        if self._error is not None:
            raise self._error
        with self._lock:
            self._pending.append(entry)
            if self._durability == "batch" and self._thread is None:
                self._thread = threading.Thread(target=self._run, name="journal", daemon=True)
                self._thread.start()
        if self._durability != "batch":
            self.flush()

    def _run(self) -> None:
        while not self._stop.wait(INTERVAL):
            try:
                self.flush()
            except OSError as error:
                self._error = error
                return

    def flush(self) -> None:
        """Sync the files of all entries so far, then write their lines.

        Raises OSError if data cannot be synced. That there is no room for the lines costs no more than work that is
        done twice after a kill, and is not an error.
        """
        with self._writing:
            with self._lock:
                batch, self._pending = self._pending, []
            if not batch:
                return
            if self._durability != "none":
                for name in sorted({entry.file for entry in batch}):
                    sync_data(self._fds[name])
            with contextlib.suppress(OSError):
                os.write(self._fd, b"\n" + b"".join(map(dump_entry, batch)))
                if self._durability != "none":
                    sync_data(self._fd)

    def close(self) -> None:
        """Write what is left, as far as that works, and stop."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
        with contextlib.suppress(OSError):
            if self._error is None:
                self.flush()
        os.close(self._fd)
