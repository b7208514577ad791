"""The output that stands where a new one is to go: what in it is not ours is brought to safety first."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping

from modelbuild.artifact import links
from modelbuild.artifact.edits import (
    PROVENANCE,
    Change,
    OutputFile,
    OutputRecord,
    check_output,
    file_sha256,
    recorded,
    same_file,
    stamp,
)


class Older:
    """What stands at `target`; `edited` is where its edits go, `files` what the new output will have there.

    An edited file gets a second name in `edited` while the older output still stands, so that nothing is lost by a kill
    at any moment; doing it twice changes nothing.
    """

    def __init__(
        self, target: str, previous: OutputRecord | None, edited: str, files: Mapping[str, OutputFile]
    ) -> None:
        self._target, self._edited, self._files = target, edited, files
        self._inode = os.lstat(target).st_ino if os.path.lexists(target) else None
        self._told: list[str] = []
        self._record = self._what_is_known(previous)

    def _what_is_known(self, previous: OutputRecord | None) -> OutputRecord | None:
        if self._inode is None or os.path.islink(self._target) or not os.path.isdir(self._target):
            return None
        theirs = recorded(self._target)
        if previous is None or previous.name != os.path.basename(self._target):
            return theirs
        return theirs if theirs is not None and self._is_of_another_build(theirs, previous) else previous

    def _is_of_another_build(self, theirs: OutputRecord, previous: OutputRecord) -> bool:
        """Whether the output is unedited by its own account, and not what `previous` wrote: two Modelfiles, one name.

        Where the account lists the same side files as `previous`, somebody edited the account itself.
        """
        listed, written = _digests(theirs), _digests(previous)
        return listed != written and all(change.kind != "edited" for change in check_output(self._target, theirs))

    def make_way(self) -> list[str]:
        """Bring edits to safety, or all of it if it is no output of ours; a sentence for each thing moved."""
        if self._inode is None:
            return []
        if self._record is not None:
            self._told = self._save(self._target, self._record)
            return self._told
        away = next(place for place in _names(self._edited) if not os.path.lexists(place))
        os.makedirs(os.path.dirname(away), exist_ok=True)
        os.rename(self._target, away)
        return [f"{self._target} was not written by modelbuild; it is now {away}"]

    def look_again(self, displaced: str) -> list[str]:
        """Bring to safety what was edited in the last moment, or in an output that another process put there.

        A sentence for each thing that `make_way` did not name.
        """
        same = os.stat(displaced).st_ino == self._inode if os.path.isdir(displaced) else False
        record = self._record if same else recorded(displaced)
        notes = self._save(displaced, record) if record is not None else []
        return [note for note in notes if note not in self._told]

    def _save(self, folder: str, record: OutputRecord) -> list[str]:
        notes = []
        for change in check_output(folder, record):
            path = os.path.join(folder, change.name)
            if change.kind == "weights" and record.key and not _looks_the_same(path, record.files[change.name]):
                notes.append(f"{os.path.join(self._target, change.name)} was changed or removed; it is made anew")
            if change.kind not in ("edited", "extra") or self._is_no_loss(change, path, record):
                continue
            away = _keep(path, os.path.join(self._edited, change.name))
            if away is not None:
                what = "added" if change.kind == "extra" else "edited"
                notes.append(f"{os.path.join(self._target, change.name)} was {what}; it is now {away}")
        return notes

    def _is_no_loss(self, change: Change, path: str, record: OutputRecord) -> bool:
        """Whether the new output has the same bytes, or, without a record, it is the provenance itself."""
        if change.name == PROVENANCE and not record.key:
            return True
        new = self._files.get(change.name)
        return new is not None and not new.is_weight and same_file(path, new.digest)


def _digests(record: OutputRecord) -> dict[str, str]:
    """The digests of an output's side files without modelbuild.json, which cannot list itself."""
    return {n: file.digest for n, file in record.files.items() if not file.is_weight and n != PROVENANCE}


def _looks_the_same(path: str, file: OutputFile) -> bool:
    """Whether a weight file has the size and time it was written with; a copy or a backup put back has no other."""
    found = stamp(path)
    return found is not None and found[:2] == (file.size, file.mtime_ns)


def _keep(path: str, away: str) -> str | None:
    """Give a file a second name at or beside `away`; that name, or None if its bytes are there already."""
    os.makedirs(os.path.dirname(away), exist_ok=True)
    for place in _names(away):
        if not os.path.lexists(place):
            if not links.hardlink(path, place):
                links.copy(path, place)
            return place
        if os.path.samestat(os.lstat(place), os.lstat(path)) or same_file(place, file_sha256(path)):
            return None
    raise AssertionError("names never end")


def _names(path: str) -> Iterator[str]:
    """`path`, then with a number before its suffix: README.md, README.2.md, …"""
    yield path
    stem, suffix = os.path.splitext(path)
    number = 2
    while True:
        yield f"{stem}.{number}{suffix}"
        number += 1
