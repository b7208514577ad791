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
            first, second = bytearray(count), bytearray(count)
            reader.read_into(first, one.file, one.offset + start)
            reader.read_into(second, other.file, other.offset + start)
            if first != second:
                return False
    return True
