"""What the cache remembers, as immutable nouns. The formats are described in docs/cache.md."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """A tensor in a published file: `file` is a name within the artifact, `checksum` the XXH3 of its bytes in hex."""

    key: str
    name: str
    dtype: str
    shape: tuple[int, ...]
    file: str
    offset: int
    nbytes: int
    checksum: str


@dataclass(frozen=True, slots=True)
class StoredFile:
    """A published file: name within the artifact, size, mtime when published, XXH3 of it whole, SHA-256 when known."""

    name: str
    size: int
    mtime_ns: int
    checksum: str
    sha256: str | None = None


@dataclass(frozen=True, slots=True)
class Manifest:
    """The record of one published artifact: its key, its files, and every tensor with key, place and checksum.

    `complete` is True for the weights of a whole artifact, False for tensors of one that were kept on the way.
    """

    key: str
    name: str
    complete: bool
    files: tuple[StoredFile, ...]
    tensors: tuple[StoredTensor, ...]


@dataclass(frozen=True, slots=True)
class Located:
    """A cached tensor ready to be read: absolute path, offset, size, checksum, and the artifact it is part of."""

    key: str
    path: str
    offset: int
    nbytes: int
    checksum: str
    artifact: str


@dataclass(frozen=True, slots=True)
class Layout:
    """The files of an artifact before their bytes are known: for each file its total size and its header bytes.

    `places` maps a tensor name to (file, absolute offset, bytes). The header is written first, at offset 0.
    """

    sizes: Mapping[str, int]
    headers: Mapping[str, bytes]
    places: Mapping[str, tuple[str, int, int]]
