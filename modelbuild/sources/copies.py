"""Tensors whose bytes do not lie in order in their file, copied into the cache in order.

torch.save keeps a transposed tensor as it lies in memory. Everything else here reads bytes in order, so such tensors
of a file are copied once, into `sources/copies/XX/SHA256.safetensors` of the cache, under the SHA-256 of the file they
came from. The copy's header says which file that was and what its own data hashes to: a copy that is damaged, cut short
or of another file is found out before it is used, and made again. It may be deleted at any time.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress

from modelbuild.dtypes import ITEMSIZE
from modelbuild.errors import BuildFailed
from modelbuild.sources.content import SourceFile
from modelbuild.sources.gather import gather
from modelbuild.sources.memory import Memory
from modelbuild.sources.reader import LocalReader
from modelbuild.sources.safetensors import TensorEntry
from modelbuild.sources.strictjson import show

_STEP = 2**20


def copied(
    file: SourceFile, tensors: Sequence[TensorEntry], memory: Memory, shown: str
) -> tuple[SourceFile, dict[str, int]]:
    """The copy of these tensors of `file`, and where in it the bytes of each start, by name.

    Raises BuildFailed where the copy would be larger than the file (a few numbers expanded to many), SourceChanged
    where the file is no longer the one that was identified, and OSError where the cache cannot be written.
    """
    total = sum(tensor.nbytes for tensor in tensors)
    if total > file.size:
        named = ", ".join(show(tensor.name) for tensor in tensors[:5])
        facts = [f"{named} would have {total} bytes, and the file has {file.size}"]
        raise BuildFailed(f"{show(shown)} holds tensors that are views of far fewer numbers", facts=facts)
    path = memory.place("copies", file.sha256, "safetensors")
    starts, end = {}, len(_header(file, tensors, ""))
    for tensor in tensors:
        starts[tensor.name], end = end, end + tensor.nbytes
    with _alone(path):
        found = _whole(path, file, tensors, memory)
        if found is None:
            _write(path, file, tensors, starts)
            found = _whole(path, file, tensors, memory)
    if found is None:
        raise BuildFailed(f"the copy of tensors of {show(shown)} in the cache is damaged as it is written")
    return found, starts


def _header(file: SourceFile, tensors: Sequence[TensorEntry], digest: str) -> bytes:
    """The header of the copy, as long for any digest of its data."""
    entries: dict[str, object] = {"__metadata__": {"source": file.sha256, "data": digest.rjust(64)}}
    end = 0
    for tensor in tensors:
        start, end = end, end + tensor.nbytes
        entries[tensor.name] = {"dtype": tensor.dtype, "shape": list(tensor.shape), "data_offsets": [start, end]}
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


@contextmanager
def _alone(path: str) -> Iterator[None]:
    """Lets one process at a time make the copy; which one does makes no difference."""
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(f"{path}.lock", "ab") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _whole(path: str, file: SourceFile, tensors: Sequence[TensorEntry], memory: Memory) -> SourceFile | None:
    """The copy, if it is there and holds what it should; its bytes are read only where its stamp is not known."""
    try:
        status = os.stat(path, follow_symlinks=False)
        stamp = memory.stamp(path, status)
        known = memory.digest(stamp)
        if known is None:
            read_ns = memory.clock()
            known = _check(path, file, tensors)
            if known is not None:
                memory.remember(stamp, known, read_ns)
    except OSError:
        return None
    return None if known is None else SourceFile(os.path.basename(path), path, status.st_size, known, stamp)


def _check(path: str, file: SourceFile, tensors: Sequence[TensorEntry]) -> str | None:
    """The SHA-256 of the copy; None if its header does not belong to the file and the data behind it."""
    length = len(_header(file, tensors, ""))
    with open(path, "rb") as copy:
        header = copy.read(length)
        whole, data = hashlib.sha256(header), hashlib.sha256()
        while part := copy.read(_STEP):
            whole.update(part)
            data.update(part)
    return whole.hexdigest() if header == _header(file, tensors, data.hexdigest()) else None


def _write(path: str, file: SourceFile, tensors: Sequence[TensorEntry], starts: dict[str, int]) -> None:
    """Writes the copy beside its place and moves it there when it is on the disk."""
    staged = f"{path}.{os.getpid()}.{time.monotonic_ns()}.tmp"
    descriptor = os.open(staged, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o444)
    try:
        with LocalReader() as reader:
            for tensor in tensors:
                gather(reader, file, tensor, ITEMSIZE[tensor.dtype], descriptor, starts[tensor.name])
            reader.check()
        length, data = len(_header(file, tensors, "")), hashlib.sha256()
        position = length
        while part := os.pread(descriptor, _STEP, position):
            data.update(part)
            position += len(part)
        os.pwrite(descriptor, _header(file, tensors, data.hexdigest()), 0)
        os.fsync(descriptor)
        os.replace(staged, path)
    except BaseException:
        with suppress(OSError):
            os.unlink(staged)
        raise
    finally:
        os.close(descriptor)
