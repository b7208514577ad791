"""Whether cached bytes are still what was published: by size and time quickly, by XXH3 when there is doubt.

The checksum of a file is the XXH3 of the checksums of its stretches in order: its tensors, and what lies between them
(the header, padding). So it is known without reading a file a second time, and a damaged tensor is found by name.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import xxhash

from modelbuild.cache.nouns import Manifest, StoredFile, StoredTensor
from modelbuild.checksum import BLOCK, combine

_WORKERS = 8
_local = threading.local()

Item = TypeVar("Item")
Answer = TypeVar("Answer")


@dataclass(frozen=True, slots=True)
class Health:
    """What a full check of an artifact found: files that are damaged, each with the reason, and the sound tensors."""

    damaged: Mapping[str, str]
    sound: tuple[StoredTensor, ...]


def in_parallel(work: Callable[[Item], Answer], items: Sequence[Item]) -> list[Answer]:
    """`work` of every item, in order, by as many threads as the machine has processors (at most eight)."""
    workers = min(_WORKERS, os.cpu_count() or 1, len(items))
    if workers <= 1:
        return [work(item) for item in items]
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(workers) as pool:
        return list(pool.map(work, items))


def checksum_span(fd: int, offset: int, nbytes: int) -> str:
    """The checksum of `nbytes` bytes at `offset` of an open file. Raises EOFError when the file ends before."""
    buffer = getattr(_local, "buffer", None)
    need = min(nbytes, BLOCK)
    if buffer is None or len(buffer) < need:
        buffer = _local.buffer = bytearray(need)
    digests = []
    for start in range(offset, max(offset + nbytes, offset + 1), BLOCK):
        block = memoryview(buffer)[: min(BLOCK, offset + nbytes - start)]
        _read(fd, block, start)
        digests.append(xxhash.xxh3_128_digest(block))
    return combine(digests)


def _read(fd: int, block: memoryview, offset: int) -> None:
    done = 0
    while done < len(block):
        count = os.preadv(fd, [block[done:]], offset + done)
        if count == 0:
            raise EOFError(f"the file ends at {offset + done}")
        done += count


def file_checksum(fd: int, size: int, tensors: Iterable[StoredTensor]) -> str:
    """The checksum of a file of `size` bytes whose tensors have the checksums they say; reads what none covers."""
    parts, position = [], 0
    for tensor in sorted((t for t in tensors if t.nbytes), key=lambda t: t.offset):
        if tensor.offset > position:
            parts.append(checksum_span(fd, position, tensor.offset - position))
        parts.append(tensor.checksum)
        position = tensor.offset + tensor.nbytes
    if position < size:
        parts.append(checksum_span(fd, position, size - position))
    return combine([bytes.fromhex(part) for part in parts])


def doubtful(folder: str, files: Iterable[StoredFile]) -> list[str]:
    """The names of files whose size or time is not the recorded one, or that are no plain files at all."""
    return [file.name for file in files if stamp(os.path.join(folder, file.name)) != (file.size, file.mtime_ns)]


def stamp(path: str) -> tuple[int, int] | None:
    """Size and mtime of a plain file; None if there is none."""
    try:
        facts = os.lstat(path)
    except OSError:
        return None
    return (facts.st_size, facts.st_mtime_ns) if facts.st_mode & 0o170000 == 0o100000 else None


def examine(folder: str, manifest: Manifest, names: Collection[str] | None = None) -> Health:
    """Read every byte of the named files of an artifact (all, if None); tensors of other files count as sound."""
    damaged: dict[str, str] = {}
    sound: list[StoredTensor] = []
    for file in manifest.files:
        tensors = [tensor for tensor in manifest.tensors if tensor.file == file.name]
        if names is not None and file.name not in names:
            sound += tensors
            continue
        reason, good = _examine_file(os.path.join(folder, file.name), file, tensors)
        sound += good
        if reason:
            damaged[file.name] = reason
    return Health(damaged, tuple(sound))


def _examine_file(path: str, file: StoredFile, tensors: Sequence[StoredTensor]) -> tuple[str, list[StoredTensor]]:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    except OSError as error:
        return ("it is missing" if isinstance(error, FileNotFoundError) else f"{error.strerror}"), []
    good: list[StoredTensor] = []
    try:
        fits = in_parallel(lambda tensor: holds(fd, tensor.offset, tensor.nbytes, tensor.checksum), tensors)
        good = [tensor for tensor, fit in zip(tensors, fits, strict=True) if fit]
        size = os.fstat(fd).st_size
        if size != file.size:
            return f"it has {size} bytes instead of {file.size}", good
        if len(good) < len(tensors):
            bad = [tensor.name for tensor, fit in zip(tensors, fits, strict=True) if not fit]
            return f"wrong bytes in {listed(bad)}", good
        return ("" if file_checksum(fd, size, tensors) == file.checksum else "wrong bytes in its header"), good
    except (OSError, EOFError) as error:
        return f"it cannot be read: {error}", good
    finally:
        os.close(fd)


def holds(fd: int, offset: int, nbytes: int, expected: str) -> bool:
    """Whether the bytes at `offset` have the expected checksum; bytes that cannot be read have not."""
    try:
        return checksum_span(fd, offset, nbytes) == expected
    except (OSError, EOFError):
        return False


def listed(names: Sequence[str]) -> str:
    """Names for a message: the first three, and how many more there are."""
    text = ", ".join(f"`{name}`" for name in names[:3])
    return text if len(names) <= 3 else f"{text} and {len(names) - 3} more"
