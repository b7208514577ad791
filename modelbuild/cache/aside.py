"""What happens to a damaged artifact: it is taken out of its place, and its sound tensors stay within reach."""

from __future__ import annotations

import contextlib
import os

from modelbuild.cache import disk
from modelbuild.cache.check import Health, file_checksum, listed, stamp
from modelbuild.cache.folders import MANIFEST, Folders
from modelbuild.cache.manifest import dump_manifest
from modelbuild.cache.nouns import Manifest, StoredFile, StoredTensor

_REST = "-rest-"


def folder_inode(folders: Folders, key: str) -> int | None:
    """The inode of an artifact's folder, which tells it from one published later under the same key."""
    try:
        return os.lstat(folders.artifact(key)).st_ino
    except OSError:
        return None


def set_aside(folders: Folders, key: str, inode: int | None) -> str | None:
    """Move the artifact whose folder has this inode to `aside/` in one step; where it lies now.

    None if another process was first, and perhaps has published a sound one since.
    """
    if inode is None or folder_inode(folders, key) != inode:
        return None
    away = os.path.join(folders.aside, f"{key.partition(_REST)[0]}-{disk.token()}")
    try:
        os.rename(folders.artifact(key), away)
    except OSError:
        return None
    _forget_stamps(folders)
    return away


def _forget_stamps(folders: Folders) -> None:
    """Output folders may show what was damaged: no build may be taken for one with nothing to do."""
    with contextlib.suppress(OSError):
        for workspace in os.listdir(folders.records):
            for name in os.listdir(os.path.join(folders.records, workspace)):
                if name.startswith("stamp-"):
                    os.unlink(os.path.join(folders.records, workspace, name))


def whole_key(key: str) -> str | None:
    """The key of the artifact that `key` is a salvaged rest of; None if it is none."""
    whole, rest, _ = key.partition(_REST)
    return whole if rest else None


def salvage(folders: Folders, manifest: Manifest, health: Health, inode: int | None) -> str | None:
    """Set a damaged artifact aside; its sound tensors come back as an incomplete artifact of their own.

    The sentence says what was damaged and how much has to be made anew; None if another process was first.
    """
    away = set_aside(folders, manifest.key, inode)
    if away is None:
        return None
    damage = "; ".join(f"`{name}`: {reason}" for name, reason in health.damaged.items())
    lost = [tensor.name for tensor in manifest.tensors if tensor not in set(health.sound)]
    redo = (
        f"{len(lost)} of {len(manifest.tensors)} tensors are made anew ({listed(lost)})" if lost else "it is made anew"
    )
    kept = None
    with contextlib.suppress(OSError, EOFError):
        kept = _keep_sound(folders, away, manifest, health.sound)
    where = os.path.relpath(folders.artifact(kept) if kept else away, folders.root)
    return f"`{manifest.name}` in the cache was damaged ({damage}): set aside as {where}; {redo}"


def _keep_sound(folders: Folders, away: str, manifest: Manifest, sound: tuple[StoredTensor, ...]) -> str | None:
    """Publish what was set aside once more, under a key of its own, as nothing but its sound tensors."""
    if not sound:
        return None
    key = f"{manifest.key.partition(_REST)[0]}{_REST}{disk.token()}"
    files = []
    for name in sorted({tensor.file for tensor in sound}):
        path = os.path.join(away, name)
        facts = stamp(path)
        if facts is None:
            return None
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
        try:
            digest = file_checksum(fd, facts[0], [tensor for tensor in sound if tensor.file == name])
        finally:
            os.close(fd)
        files.append(StoredFile(name, *facts, digest))
    rest = Manifest(key, manifest.name, False, tuple(files), sound)
    disk.replace(os.path.join(away, MANIFEST), dump_manifest(rest), "batch")
    os.rename(away, folders.artifact(key))
    return key
