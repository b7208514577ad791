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

from modelbuild.cache.nouns import Layout, Manifest, StoredTensor

Content: TypeAlias = "frozenset[tuple[str, str, int, int]]"
"""Name, key, offset and bytes of each tensor of a file."""


@dataclass(frozen=True, slots=True)
class Twin:
    """A published file by its path, with its SHA-256 if that is known, and its tensors."""

    path: str
    sha256: str | None
    tensors: tuple[StoredTensor, ...]


def contents(layout: Layout, keys: Mapping[str, str]) -> dict[tuple[int, Content], list[str]]:
    """The files of a layout by what they are to hold: their size and tensors. `keys` are the tensors' by name."""
    inside: dict[str, set[tuple[str, str, int, int]]] = {file: set() for file in layout.sizes}
    for name, (file, offset, nbytes) in layout.places.items():
        inside[file].add((name, keys[name], offset, nbytes))
    found: dict[tuple[int, Content], list[str]] = {}
    for file, size in layout.sizes.items():
        if inside[file]:
            found.setdefault((size, frozenset(inside[file])), []).append(file)
    return found


def twins(layout: Layout, keys: Mapping[str, str], published: Iterable[tuple[str, Manifest]]) -> dict[str, Twin]:
    """For files of the layout the same file of a published artifact, given their folders and manifests."""
    wanted = contents(layout, keys)
    found: dict[str, Twin] = {}
    for folder, manifest in published:
        inside: dict[str, list[StoredTensor]] = {}
        for tensor in manifest.tensors:
            inside.setdefault(tensor.file, []).append(tensor)
        for file in manifest.files:
            tensors = tuple(inside.get(file.name, ()))
            content = frozenset((t.name, t.key, t.offset, t.nbytes) for t in tensors)
            for name in wanted.get((file.size, content), ()):
                path = os.path.join(folder, file.name)
                if name not in found and _begins_with(path, layout.headers.get(name, b"")):
                    found[name] = Twin(path, file.sha256, tensors)
    return found


def link(twin: Twin, target: str) -> bool:
    """Makes `target` the same file as the twin; False where that cannot be: the twin is gone, or links are refused.

    What stood there, of an interrupted build, makes way.
    """
    with suppress(FileNotFoundError):
        if os.path.samestat(os.lstat(target), os.lstat(twin.path)):
            return True
        os.unlink(target)
    try:
        os.link(twin.path, target, follow_symlinks=False)
    except OSError:
        return False
    return True


def _begins_with(path: str, header: bytes) -> bool:
    """Whether a file starts with these bytes."""
    try:
        with open(path, "rb", buffering=0) as file:
            return file.read(len(header)) == header
    except OSError:
        return False
