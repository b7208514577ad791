"""Files that are in the cache already: those of another artifact with the same tensors at the same places.

A file of an artifact that is about to be written need not be: it is linked. The facts of both come from the plan and
from a manifest; nothing of the data is read, as it is not when a whole artifact is found again.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import TypeAlias

from modelbuild.cache.check import stamp
from modelbuild.cache.disk import token
from modelbuild.cache.nouns import Layout, Manifest, StoredTensor

Content: TypeAlias = "frozenset[tuple[str, str, int, int]]"
"""Name, key, offset and bytes of each tensor of a file."""

Stamp: TypeAlias = "tuple[int, int]"
"""Size and mtime."""


@dataclass(frozen=True, slots=True)
class Twin:
    """A published file by its path, with the stamp it is trusted for, its SHA-256 if that is known, and its tensors."""

    path: str
    stamp: Stamp
    sha256: str | None
    tensors: tuple[StoredTensor, ...]


def contents(layout: Layout, keys: Mapping[str, str]) -> dict[tuple[int, Content], str]:
    """The files of a layout by what they are to hold: their size and tensors. `keys` are the tensors' by name."""
    inside: dict[str, set[tuple[str, str, int, int]]] = {file: set() for file in layout.sizes}
    for name, (file, offset, nbytes) in layout.places.items():
        inside[file].add((name, keys[name], offset, nbytes))
    return {(size, frozenset(inside[file])): file for file, size in layout.sizes.items() if inside[file]}


def twins(layout: Layout, keys: Mapping[str, str], published: Iterable[tuple[str, Manifest]]) -> dict[str, Twin]:
    """For files of the layout the same file of a published artifact, given folders and manifests of some in turn."""
    wanted = contents(layout, keys)
    found: dict[str, Twin] = {}
    for folder, manifest in published if wanted else ():
        inside: dict[str, list[StoredTensor]] = {}
        for tensor in manifest.tensors:
            inside.setdefault(tensor.file, []).append(tensor)
        for file in manifest.files:
            tensors = tuple(inside.get(file.name, ()))
            content = frozenset((t.name, t.key, t.offset, t.nbytes) for t in tensors)
            name = wanted.get((file.size, content))
            if name is None or name in found:
                continue
            path = os.path.join(folder, file.name)
            trusted = stamp(path)
            if trusted is not None and _begins_with(path, layout.headers.get(name, b"")):
                found[name] = Twin(path, trusted, file.sha256, tensors)
        if len(found) == len(wanted):
            break
    return found


def link(twin: Twin, target: str, scratch: str) -> bool:
    """Makes `target` the same file as the twin; False where that cannot be: the twin is gone, or links are refused.

    What stood there, of an interrupted build, makes way once the link is there, in the folder `scratch` until then.
    """
    if is_same(twin.path, target):
        return True
    made = os.path.join(scratch, f".link.{token()}")
    try:
        os.link(twin.path, made, follow_symlinks=False)
    except OSError:
        return False
    os.replace(made, target)
    return True


def is_same(path: str, other: str) -> bool:
    """Whether both are there and names of one file."""
    try:
        return os.path.samestat(os.lstat(path), os.lstat(other))
    except OSError:
        return False


def sharing(folder: str, names: Iterable[str], others: Mapping[str, str]) -> dict[str, list[str]]:
    """Of the folders `others`, by key, those with files that are the named ones of `folder`: the names there."""
    inodes = _inodes(folder)
    wanted = {inodes[name] for name in names if name in inodes}
    same = {key: [name for name, inode in _inodes(other).items() if inode in wanted] for key, other in others.items()}
    return {key: found for key, found in same.items() if found}


def _inodes(folder: str) -> dict[str, int]:
    """The inode of each file of a folder by name; none where the folder is gone."""
    with suppress(OSError), os.scandir(folder) as entries:
        return {entry.name: entry.inode() for entry in entries}
    return {}


def _begins_with(path: str, header: bytes) -> bool:
    """Whether a file starts with these bytes."""
    try:
        with open(path, "rb", buffering=0) as file:
            return file.read(len(header)) == header
    except OSError:
        return False
