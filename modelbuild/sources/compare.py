"""Whether two tensors at rest are the same bytes: for buffers that cannot be merged and so must agree."""

from __future__ import annotations

from modelbuild.sources.content import SourceTensor
from modelbuild.sources.reader import LocalReader

_STEP = 2**20


def same_bytes(one: SourceTensor, other: SourceTensor) -> bool:
    """Whether the tensors hold the same bytes; reads both until they differ. Raises what a reader raises."""
    if one.nbytes != other.nbytes:
        return False
    with LocalReader() as reader:
        for start in range(0, one.nbytes, _STEP):
            count = min(_STEP, one.nbytes - start)
            if _bytes(reader, one, start, count) != _bytes(reader, other, start, count):
                return False
    return True


def _bytes(reader: LocalReader, tensor: SourceTensor, start: int, count: int) -> bytes | bytearray:
    """A stretch of a tensor; of a file on the Hub that stretch alone."""
    if tensor.file.remote is not None:
        return tensor.file.remote.read(tensor.offset + start, count)
    data = bytearray(count)
    reader.read_into(data, tensor.file, tensor.offset + start)
    return data
