"""A tensor whose elements lie at strides, written in order, in pieces that a bounded buffer holds."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from math import prod
from typing import TypeAlias

from modelbuild.sources.content import SourceFile
from modelbuild.sources.reader import Reader
from modelbuild.sources.safetensors import TensorEntry

PIECE = 16 * 2**20
"""Bytes that are read, and bytes that are written, of one piece at most."""

Box: TypeAlias = "tuple[tuple[int, int], ...]"
"""For each dimension a start and a stop."""


def gather(
    reader: Reader,
    file: SourceFile,
    tensor: TensorEntry,
    itemsize: int,
    descriptor: int,
    start: int,
    piece: int = PIECE,
) -> None:
    """Writes the bytes of `tensor`, an entry with strides, in order to the descriptor, from byte `start` on.

    Raises what the reader raises, and OSError where the bytes cannot be written.
    """
    import numpy as np
    from numpy.lib.stride_tricks import as_strided

    strides = tensor.strides or ()
    whole = tuple((0, size) for size in tensor.shape)
    for box in _pieces(whole, strides, max(piece // itemsize, 1)):
        first = sum(begin * stride for (begin, _), stride in zip(box, strides, strict=True))
        raw = bytearray(_span(box, strides) * itemsize)
        reader.read_into(raw, file, tensor.start + first * itemsize)
        flat = np.frombuffer(raw, f"V{itemsize}")
        shape = [stop - begin for begin, stop in box]
        there = as_strided(flat, shape, [stride * itemsize for stride in strides], writeable=False)
        ordered = np.ascontiguousarray(there).reshape(-1).view(np.uint8).data
        _place(ordered, box, tensor.shape, itemsize, descriptor, start)


def _span(box: Box, strides: Sequence[int]) -> int:
    """Elements from the first of the box to its last, as they lie in the file."""
    return 1 + sum((stop - begin - 1) * stride for (begin, stop), stride in zip(box, strides, strict=True))


def _pieces(box: Box, strides: Sequence[int], most: int) -> Iterator[Box]:
    """The box, cut across what lies farthest apart until each part spans, and has, at most so many elements."""
    spans = [(stop - begin - 1) * stride for (begin, stop), stride in zip(box, strides, strict=True)]
    if _span(box, strides) <= most:
        if prod(stop - begin for begin, stop in box) <= most:
            yield box
            return
        spans = [stop - begin - 1 for begin, stop in box]
    cut = spans.index(max(spans))
    begin, stop = box[cut]
    middle = (begin + stop) // 2
    for half in ((begin, middle), (middle, stop)):
        yield from _pieces((*box[:cut], half, *box[cut + 1 :]), strides, most)


def _place(data: memoryview, box: Box, shape: Sequence[int], itemsize: int, descriptor: int, start: int) -> None:
    """Writes the elements of a box, in order, to their places in the whole tensor: one write for each run of them."""
    run, outer = 1, len(shape)
    while outer and run == prod(shape[outer:]):
        outer -= 1
        run *= box[outer][1] - box[outer][0]
    steps = [prod(shape[dimension + 1 :]) for dimension in range(len(shape))]
    inner = sum(box[d][0] * steps[d] for d in range(outer, len(shape)))
    for number in range(len(data) // (run * itemsize)):
        rest, offset = number, inner
        for dimension in reversed(range(outer)):
            begin, stop = box[dimension]
            rest, index = divmod(rest, stop - begin)
            offset += (begin + index) * steps[dimension]
        _write(descriptor, data[number * run * itemsize : (number + 1) * run * itemsize], start + offset * itemsize)


def _write(descriptor: int, data: memoryview, position: int) -> None:
    while data:
        count = os.pwrite(descriptor, data, position)
        data, position = data[count:], position + count
