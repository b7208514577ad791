"""Collection: what leaves the cache, least recently used first; never what the last builds need or somebody pinned."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from modelbuild.cache import disk, locks
from modelbuild.cache.aside import whole_key
from modelbuild.cache.folders import MANIFEST, is_key
from modelbuild.cache.manifest import Garbage, parse_manifest
from modelbuild.cache.roots import read_pins, read_roots
from modelbuild.cache.store import DAY, LocalStore
from modelbuild.units import show_bytes


@dataclass(frozen=True, slots=True)
class Entry:
    """A published artifact as `cache ls` shows it: bytes of all its files, last use in seconds since 1970.

    `needed_by` are the notes of the workspaces whose last build needs it. `files` are the bytes of its files by inode:
    artifacts share those that are the same. `shown` are those that output folders share too. `name` is empty when its
    manifest cannot be read.
    """

    key: str
    name: str
    complete: bool
    nbytes: int
    used: float
    pinned: bool
    needed_by: tuple[str, ...]
    files: Mapping[int, int] = field(default_factory=dict)
    shown: frozenset[int] = frozenset()

    @property
    def linked(self) -> int:
        """The bytes that output folders share with it, which stay on the disk when it is removed."""
        return sum(self.files[file] for file in self.shown)

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
    found = {key: facts for key in store.artifacts() if (facts := _facts(store.path(key))) is not None}
    names = Counter(facts.st_ino for _, files in found.values() for facts in files)
    entries = []
    for key, (used, files) in found.items():
        shown = frozenset(facts.st_ino for facts in files if facts.st_nlink > names[facts.st_ino])
        needed_by = tuple(root.note for root in roots if key in root.keys)
        sizes = {facts.st_ino: facts.st_size for facts in files}
        title = _title(store.path(key), key)
        entries.append(Entry(key, *title, sum(sizes.values()), used, key in pins, needed_by, sizes, shown))
    return sorted(entries, key=lambda entry: (entry.used, entry.key))


def _facts(folder: str) -> tuple[float, list[os.stat_result]] | None:
    """The time of last use of an artifact's folder and the facts of its files; None if it is gone."""
    try:
        used = os.stat(folder).st_mtime
        with os.scandir(folder) as entries:
            return used, [entry.stat(follow_symlinks=False) for entry in entries]
    except FileNotFoundError:
        return None


def together(entries: Iterable[Entry]) -> int:
    """The bytes of artifacts on the disk, those of files that they share counted once."""
    files: dict[int, int] = {}
    for entry in entries:
        files.update(entry.files)
    return sum(files.values())


def _title(folder: str, key: str) -> tuple[str, bool]:
    try:
        with open(os.path.join(folder, MANIFEST), "rb") as file:
            manifest = parse_manifest(file.read(), key)
    except (OSError, Garbage):
        return "", False
    return manifest.name, manifest.complete


def size(store: LocalStore) -> int:
    """Bytes of all published artifacts."""
    return together(listing(store))


def verify(store: LocalStore) -> list[str]:
    """Read every byte of the cache; a sentence for each artifact that is damaged, which is set aside."""
    with store.shared("the check of the cache"):
        return [problem for key in store.artifacts() for problem in store.examine(key)]


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
        stays = [entry for entry in entries if entry not in chosen]
        before, after = together(entries), together(stays)
        stages = 0 if dry_run else _remove(store, chosen)
        if linked := _still_shown(chosen, stays):
            notes.append(f"{show_bytes(linked)} of that stay on the disk for now: output folders share these files")
        return GcResult(tuple(chosen), before, after, stages, tuple(notes))


def _still_shown(chosen: Iterable[Entry], stays: Iterable[Entry]) -> int:
    """The bytes of files that leave the cache with the chosen, and that output folders share."""
    left = {file for entry in stays for file in entry.files}
    gone = {file: entry.files[file] for entry in chosen for file in entry.shown if file not in left}
    return sum(gone.values())


def _choose(
    store: LocalStore, entries: list[Entry], max_size: int | None, max_age_days: float | None
) -> tuple[list[Entry], list[str]]:
    """The entries to remove, oldest first, and notes on what stays against the limits."""
    if unreadable := read_roots(store.folders)[1]:
        return [], [f"no artifact is removed, since what a build needs cannot be read: {path}" for path in unreadable]
    keys = {entry.key for entry in entries}
    oldest = None if max_age_days is None else time.time() - max_age_days * DAY
    chosen = [
        entry
        for entry in entries
        if not entry.stays and (whole_key(entry.key) in keys or (oldest is not None and entry.used < oldest))
    ]
    left = [entry for entry in entries if entry not in chosen]
    holders = Counter(file for entry in left for file in entry.files)
    total = together(left)
    for entry in left:
        if max_size is not None and total > max_size and not entry.stays:
            chosen.append(entry)
            holders.subtract(entry.files.keys())
            total -= sum(nbytes for file, nbytes in entry.files.items() if not holders[file])
    notes = []
    if max_size is not None and total > max_size:
        notes.append(f"{show_bytes(total)} stay, more than {show_bytes(max_size)}: {_reasons(entries)}")
    return chosen, notes


def _reasons(entries: list[Entry]) -> str:
    pinned = together(entry for entry in entries if entry.pinned)
    needed = together(entry for entry in entries if entry.needed_by and not entry.pinned)
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
