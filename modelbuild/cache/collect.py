"""Collection: what leaves the cache, least recently used first; never what the last builds need or somebody pinned."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass

from modelbuild.cache import disk, locks
from modelbuild.cache.aside import whole_key
from modelbuild.cache.folders import MANIFEST, is_key
from modelbuild.cache.manifest import Garbage, parse_manifest
from modelbuild.cache.roots import Root, read_pins, read_roots
from modelbuild.cache.store import DAY, LocalStore
from modelbuild.units import show_bytes


@dataclass(frozen=True, slots=True)
class Entry:
    """A published artifact as `cache ls` shows it: bytes of all its files, last use in seconds since 1970.

    `needed_by` are the notes of the workspaces whose last build needs it; `linked` are the bytes that output folders
    share with it, which stay on the disk when it is removed. `name` is empty when its manifest cannot be read.
    """

    key: str
    name: str
    complete: bool
    nbytes: int
    linked: int
    used: float
    pinned: bool
    needed_by: tuple[str, ...]

    @property
    def stays(self) -> bool:
        """Whether no limit removes it."""
        return self.pinned or bool(self.needed_by)


@dataclass(frozen=True, slots=True)
class GcResult:
    """What a collection removed (or would remove), the bytes of artifacts before and after, and what to know of it."""

    removed: tuple[Entry, ...]
    before: int
    after: int
    stages: int
    notes: tuple[str, ...]


def listing(store: LocalStore) -> list[Entry]:
    """Every published artifact, the least recently used first."""
    roots = [root for root in read_roots(store.folders)[0].values() if root.counts]
    pins = read_pins(store.folders)
    entries = [_entry(store, key, key in pins, roots) for key in store.artifacts()]
    return sorted((e for e in entries if e is not None), key=lambda e: (e.used, e.key))


def _entry(store: LocalStore, key: str, pinned: bool, roots: list[Root]) -> Entry | None:
    folder = store.path(key)
    try:
        used = os.stat(folder).st_mtime
        with os.scandir(folder) as entries:
            facts = [entry.stat(follow_symlinks=False) for entry in entries]
    except FileNotFoundError:
        return None
    linked = sum(f.st_size for f in facts if f.st_nlink > 1)
    needed_by = tuple(root.note for root in roots if key in root.keys)
    name, complete = _title(folder, key)
    return Entry(key, name, complete, sum(f.st_size for f in facts), linked, used, pinned, needed_by)


def _title(folder: str, key: str) -> tuple[str, bool]:
    try:
        with open(os.path.join(folder, MANIFEST), "rb") as file:
            manifest = parse_manifest(file.read(), key)
    except (OSError, Garbage):
        return "", False
    return manifest.name, manifest.complete


def size(store: LocalStore) -> int:
    """Bytes of all published artifacts."""
    return sum(entry.nbytes for entry in listing(store))


def verify(store: LocalStore) -> list[str]:
    """Read every byte of the cache; a sentence for each artifact that is damaged, which is set aside."""
    with store.shared("the check of the cache"):
        return [problem for key in store.artifacts() if (problem := store.examine(key)) is not None]


def gc(
    store: LocalStore,
    max_size: int | None = None,
    max_age_days: float | None = None,
    dry_run: bool = False,
    waiting: Callable[[str], None] = lambda _: None,
) -> GcResult:
    """Bring the cache under the limits: artifacts at most this many bytes together, none unused for this many days.

    Least recently used goes first; pins and what the last builds need stay, and the notes say when a limit cannot be
    reached for that reason. Also removed are old stages, damaged things set aside, and what kills left. Waits for
    builds to end, telling `waiting` whose; a kill leaves a cache in which every artifact is whole or gone.
    """
    with store.alone(waiting):
        entries = listing(store)
        chosen, notes = _choose(store, entries, max_size, max_age_days)
        before = sum(entry.nbytes for entry in entries)
        stages = 0 if dry_run else _remove(store, chosen)
        linked = sum(entry.linked for entry in chosen)
        if linked:
            notes.append(f"{show_bytes(linked)} of that stay on the disk for now: output folders share these files")
        return GcResult(tuple(chosen), before, before - sum(entry.nbytes for entry in chosen), stages, tuple(notes))


def _choose(
    store: LocalStore, entries: list[Entry], max_size: int | None, max_age_days: float | None
) -> tuple[list[Entry], list[str]]:
    """The entries to remove, oldest first, and notes on what stays against the limits."""
    if unreadable := read_roots(store.folders)[1]:
        return [], [f"no artifact is removed, since what a build needs cannot be read: {path}" for path in unreadable]
    keys = {entry.key for entry in entries}
    oldest = None if max_age_days is None else time.time() - max_age_days * DAY
    total = sum(entry.nbytes for entry in entries)
    chosen = [
        entry
        for entry in entries
        if not entry.stays and (whole_key(entry.key) in keys or (oldest is not None and entry.used < oldest))
    ]
    total -= sum(entry.nbytes for entry in chosen)
    for entry in entries if max_size is not None else ():
        if max_size is not None and total > max_size and not entry.stays and entry not in chosen:
            chosen.append(entry)
            total -= entry.nbytes
    notes = []
    if max_size is not None and total > max_size:
        notes.append(f"{show_bytes(total)} stay, more than {show_bytes(max_size)}: {_reasons(entries)}")
    return chosen, notes


def _reasons(entries: list[Entry]) -> str:
    pinned = sum(entry.nbytes for entry in entries if entry.pinned)
    needed = sum(entry.nbytes for entry in entries if entry.needed_by and not entry.pinned)
    parts = [f"the last builds need {show_bytes(needed)}"] if needed else []
    return " and ".join([*parts, *([f"{show_bytes(pinned)} are pinned"] if pinned else [])])


def _remove(store: LocalStore, chosen: list[Entry]) -> int:
    """Remove the chosen artifacts and all litter; the number of stages among it."""
    folders = store.folders
    for entry in chosen:
        disk.discard(store.path(entry.key), folders.trash)
    for name in os.listdir(folders.aside):
        disk.discard(os.path.join(folders.aside, name), folders.trash)
    stages = store.sweep()
    live = {*store.artifacts(), *os.listdir(folders.stages)}
    for name in os.listdir(folders.locks):
        if is_key(name) and name not in live:
            path = os.path.join(folders.locks, name)
            with locks.attempt(path) as free:
                if free:
                    disk.remove(path)
    return stages
