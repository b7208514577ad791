"""What source files contain, looked up in memory, or in the files themselves where they were never seen before."""

from __future__ import annotations

import os
from collections.abc import Sequence

from modelbuild.sources.content import SourceFile, SourceTensor
from modelbuild.sources.copies import copied
from modelbuild.sources.hashing import Progress, Stretch, hash_stretches
from modelbuild.sources.memory import Contents, Memory
from modelbuild.sources.pickles import is_pickle_name, read_pickled_header
from modelbuild.sources.safetensors import Header, read_header
from modelbuild.sources.stamps import changed, difference, open_regular, same


def look_into(file: SourceFile, memory: Memory, shown: str) -> Header:
    """The header of a file of weights, remembered under its digest; raises BuildFailed for a bad one.

    The file's name says whether it is a safetensors file or one of torch.save.
    """
    known = memory.contents(file)
    if known is not None:
        return known.header
    read_ns = memory.clock()
    header = _read(file, shown)
    memory.remember_contents(file, Contents(header), read_ns)
    return header


def look_into_adapter(
    file: SourceFile, memory: Memory, shown: str, threads: int | None, progress: Progress | None = None
) -> tuple[Header, Sequence[str]]:
    """The header of an adapter's file and the SHA-256 of each tensor's bytes, in order, remembered under its digest."""
    known = memory.contents(file)
    if known is not None and known.digests is not None:
        return known.header, known.digests
    read_ns = memory.clock()
    header = known.header if known is not None else _read(file, shown)
    found = [""] * len(header.tensors)
    stretches = [
        Stretch(shown, tensor.file.path, tensor.file.stamp, tensor.offset, tensor.offset + tensor.nbytes)
        for tensor in at_rest(header, file, memory, shown).values()
    ]
    hash_stretches(stretches, threads, found.__setitem__, progress)
    memory.remember_contents(file, Contents(header, tuple(found)), read_ns)
    return header, found


def at_rest(header: Header, file: SourceFile, memory: Memory, shown: str) -> dict[str, SourceTensor]:
    """The tensors of a file by name, in the header's order; those whose bytes do not lie in order are in a copy.

    Raises what making the copy raises.
    """
    strided = [tensor for tensor in header.tensors if tensor.strides is not None]
    copy, starts = copied(file, strided, memory, shown) if strided else (file, {})
    return {
        t.name: SourceTensor(t.name, t.dtype, t.shape, file, t.start, t.nbytes)
        if t.strides is None
        else SourceTensor(t.name, t.dtype, t.shape, copy, starts[t.name], t.nbytes, origin=file)
        for t in header.tensors
    }


def _read(file: SourceFile, shown: str) -> Header:
    """The header, read between two looks at the stamp, so that it is the header of the bytes that were hashed."""
    descriptor = open_regular(file.path, shown)
    try:
        before = os.fstat(descriptor)
        if not same(file.stamp, before):
            raise changed(shown, difference(file.stamp, before))
        read = read_pickled_header if is_pickle_name(file.name) else read_header
        header = read(descriptor, file.size, name=shown)
        after = os.fstat(descriptor)
        if not same(file.stamp, after):
            raise changed(shown, difference(file.stamp, after))
    finally:
        os.close(descriptor)
    return header
