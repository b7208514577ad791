"""What must stay: the artifacts that the last build of each workspace needs, and those that somebody pinned."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Collection
from dataclasses import dataclass

from modelbuild.cache import disk
from modelbuild.cache.disk import Durability
from modelbuild.cache.folders import Folders, is_key


@dataclass(frozen=True, slots=True)
class Root:
    """What the last build of one workspace needs; `note` says for people which workspace it is.

    `path` is a file (its Modelfile) without which the workspace is gone and needs nothing; None if there is none.
    """

    workspace: str
    keys: frozenset[str]
    note: str
    path: str | None = None

    @property
    def counts(self) -> bool:
        """Whether the workspace is still there."""
        return self.path is None or os.path.lexists(self.path)


def write_root(folders: Folders, root: Root, durability: Durability) -> None:
    """Remember what a workspace needs, in the place of what it needed before."""
    body = {"keys": sorted(root.keys), "note": root.note, "path": root.path}
    disk.replace(folders.root_file(root.workspace), json.dumps(body, indent=1).encode() + b"\n", durability)


def read_roots(folders: Folders) -> tuple[dict[str, Root], list[str]]:
    """Every root by workspace, and the files that should be roots but cannot be read: what they need is unknown."""
    roots, unreadable = {}, []
    for name in sorted(os.listdir(folders.roots)):
        if not name.endswith(".json") or name.startswith("."):
            continue
        path = os.path.join(folders.roots, name)
        root = _read(name.removesuffix(".json"), path)
        if root is None:
            unreadable.append(path)
        else:
            roots[root.workspace] = root
    return roots, unreadable


def _read(workspace: str, path: str) -> Root | None:
    try:
        with open(path, "rb") as file:
            body = json.load(file)
        keys, note, where = body["keys"], body["note"], body["path"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
    sound = isinstance(keys, list) and all(isinstance(key, str) and is_key(key) for key in keys)
    if not sound or not isinstance(note, str) or not (where is None or isinstance(where, str)):
        return None
    return Root(workspace, frozenset(keys), note, where)


def set_pin(folders: Folders, key: str, on: bool) -> None:
    """Pin an artifact, or let it go; doing so twice is no error."""
    path = folders.pin(key)
    if on:
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW, 0o644))
    else:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)


def read_pins(folders: Folders) -> Collection[str]:
    """The keys that are pinned."""
    return frozenset(name for name in os.listdir(folders.pins) if is_key(name))
