"""What source files contain, as immutable nouns."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol


class Stamp(NamedTuple):
    """What tells that a file is still the one that was looked at."""

    device: int
    inode: int
    size: int
    mtime_ns: int
    ctime_ns: int


@dataclass(frozen=True, slots=True)
class SourceFile:
    """A file of a source: `name` within the source (`/` between folders), where it lies, what it is.

    A `remote` file is identified by what the Hub or the lock says of it; `path` is then where the Hub client puts it,
    and the stamp says nothing.
    """

    name: str
    path: str
    size: int
    sha256: str
    stamp: Stamp
    remote: Remote | None = field(default=None, compare=False, repr=False)


class Remote(Protocol):
    """How a file that may not lie on this machine comes here. All calls may come from many threads at once."""

    def local(self) -> SourceFile:
        """The file on this machine, brought here and checked where that was not done yet; raises what that raises."""

    def read(self, start: int, count: int) -> bytes:
        """So many bytes from `start` on, not checked against the digest; the rest of the file stays where it is."""


@dataclass(frozen=True, slots=True)
class SourceTensor:
    """A tensor at rest: safetensors dtype name (`BF16`), shape, its bytes at `offset` of `file`, counted from 0.

    `origin` is the source's own file where `file` is a copy in the cache, because in the source the bytes do not lie in
    order.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    file: SourceFile
    offset: int
    nbytes: int
    sha256: str | None = None
    """Digest of the tensor's own bytes; known for adapters only."""
    origin: SourceFile | None = None

    @property
    def source_file(self) -> SourceFile:
        """The file of the source that the tensor is in."""
        return self.origin or self.file


@dataclass(frozen=True, slots=True)
class SourceModel:
    """A base: its tensors by name in the order of the files, its config, and files to copy along.

    `config` and `generation` are None where the source has no such file. `side_files` are tokenizer files and the like,
    by name, never weights, indexes, configs or code. `origin` is what the lock calls it (`local:models/chronos`).
    """

    name: str
    origin: str
    commit: str | None
    tensors: Mapping[str, SourceTensor]
    files: tuple[SourceFile, ...]
    config: Mapping[str, Any] | None = None
    generation: Mapping[str, Any] | None = None
    side_files: Mapping[str, SourceFile] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    """What to know about the files, in sentences."""


@dataclass(frozen=True, slots=True)
class SourceAdapter:
    """A PEFT adapter: its tensors by key as they stand in the file, each with its own SHA-256, and its config."""

    name: str
    origin: str
    commit: str | None
    tensors: Mapping[str, SourceTensor]
    files: tuple[SourceFile, ...]
    config: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
