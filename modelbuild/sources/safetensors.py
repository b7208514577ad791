"""The header of a safetensors file, read strictly: no size, offset, name or key of it is believed unchecked.

The format: 8 bytes with the length of the header (little endian), a JSON object of names to dtype, shape and
`data_offsets`, then the tensors' bytes, which the entries cover exactly: no gap, no overlap, nothing behind them.
Stricter than the safetensors library in what docs/sources.md lists (duplicate keys, unknown keys, odd names).
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeGuard

from modelbuild.dtypes import ITEMSIZE
from modelbuild.errors import BuildFailed, SourceNotFound
from modelbuild.sources.strictjson import Malformed, parse_object, show

HEADER_LIMIT = 100_000_000
"""Bytes that a header may have; the safetensors library has the same limit."""

NAME_LIMIT = 1024
"""Characters that the name of a tensor may have."""

RANK_LIMIT = 64
"""Dimensions that a tensor may have; numpy and torch have the same limit."""

COUNT_LIMIT = 2**60
"""Elements that a tensor may have, also while its dimensions are multiplied up."""

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")


@dataclass(frozen=True, slots=True)
class TensorEntry:
    """A tensor in a file: safetensors dtype name, shape, and `nbytes` bytes at `start`, counted from the file's 0.

    `strides`, in elements, are those of a tensor whose bytes do not lie in order (files of torch.save alone); its first
    element is at `start`, and `nbytes` are what it has in order.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    nbytes: int
    strides: tuple[int, ...] | None = None


@dataclass(frozen=True, slots=True)
class Header:
    """What a file of weights contains: tensors, metadata, and where the data starts.

    Of a safetensors file the tensors are in the order of their bytes, which are all there is. A file of torch.save has
    a size of its own, `whole`, and `notes` about what it holds besides tensors.
    """

    tensors: tuple[TensorEntry, ...]
    metadata: Mapping[str, str]
    data_start: int
    notes: tuple[str, ...] = ()
    whole: int | None = None

    @property
    def size(self) -> int:
        """The number of bytes of the whole file."""
        if self.whole is not None:
            return self.whole
        return self.data_start + sum(tensor.nbytes for tensor in self.tensors)


def read_header(file: int | str | os.PathLike[str], size: int, *, name: str | None = None) -> Header:
    """The checked header of `file` (a descriptor or a path) that has `size` bytes; `name` is what messages call it.

    Raises BuildFailed for a file that is not exactly what the format says, SourceNotFound for one that may not be read.
    """
    called = name if name is not None else str(file)
    descriptor = file if isinstance(file, int) else _open(file, called)
    try:
        return _read(descriptor, size)
    except Malformed as error:
        raise BuildFailed(f"{show(called)} is not a safetensors file to rely on", facts=[f"it {error}"]) from None
    except OSError as error:
        raise BuildFailed(f"{show(called)} could not be read", facts=[str(error.strerror)]) from error
    finally:
        if not isinstance(file, int):
            os.close(descriptor)


def _open(path: str | os.PathLike[str], called: str) -> int:
    try:
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise SourceNotFound(f"{show(called)} cannot be opened", facts=[str(error.strerror)]) from error


def _read(descriptor: int, size: int) -> Header:
    length = header_length(_exactly(descriptor, min(size, 8), 0), size)
    return parse_header(_exactly(descriptor, length, 8), size)


def header_length(start: bytes, size: int) -> int:
    """The bytes of the header that the `start` of a file of `size` bytes announces; raises Malformed."""
    if size < 10:
        raise Malformed(f"has {size} bytes, fewer than the smallest header")
    length = int.from_bytes(start[:8], "little")
    if length > HEADER_LIMIT:
        raise Malformed(f"announces a header of {length} bytes; the limit is {HEADER_LIMIT}")
    if length > size - 8:
        raise Malformed(f"announces a header of {length} bytes, but has only {size} in all")
    return length


def _exactly(descriptor: int, count: int, offset: int) -> bytes:
    data = b""
    while len(data) < count:
        piece = os.pread(descriptor, count - len(data), offset + len(data))
        if not piece:
            raise Malformed(f"ends after {offset + len(data)} bytes, inside its header")
        data += piece
    return data


def parse_header(text: bytes, size: int) -> Header:
    """The header whose JSON is `text`, of a file of `size` bytes; raises Malformed, completing "the file …"."""
    if text[:1] != b"{":
        raise Malformed("has a header that does not start with {")
    raw = parse_object(text, finite=True)
    metadata = _metadata(raw.pop("__metadata__", {}))
    data_start = 8 + len(text)
    tensors = sorted(
        (_entry(name, entry, data_start) for name, entry in raw.items()),
        key=lambda tensor: (tensor.start, tensor.nbytes, tensor.name),
    )
    _check_cover(tensors, data_start, size)
    return Header(tuple(tensors), metadata, data_start)


def _metadata(value: object) -> dict[str, str]:
    if not isinstance(value, dict) or not all(isinstance(text, str) for text in value.values()):
        raise Malformed("has a `__metadata__` that is not an object of strings")
    return value


def check_name(name: str) -> str:
    """The name, which a tensor may have; raises Malformed for one that is empty, too long or no text to print."""
    if not name or len(name) > NAME_LIMIT or _CONTROL.search(name):
        raise Malformed(f"has a tensor named {show(name)}: empty, longer than {NAME_LIMIT} or with control characters")
    return name


def _entry(name: str, entry: object, data_start: int) -> TensorEntry:
    check_name(name)
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise Malformed(f"describes {show(name)} with other keys than dtype, shape and data_offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in ITEMSIZE:
        raise Malformed(f"gives {show(name)} the unknown dtype {show(str(dtype))}")
    if not _naturals(shape) or len(shape) > RANK_LIMIT:
        raise Malformed(f"gives {show(name)} a shape that is not a list of sizes")
    if not _naturals(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise Malformed(f"gives {show(name)} data_offsets that are not a start and an end")
    nbytes = offsets[1] - offsets[0]
    if _count(name, shape) * ITEMSIZE[dtype] != nbytes:
        raise Malformed(f"gives {show(name)} {nbytes} bytes, which is not the size of {dtype} {show(str(shape))}")
    return TensorEntry(name, dtype, tuple(shape), data_start + offsets[0], nbytes)


def _naturals(value: object) -> TypeGuard[list[int]]:
    """A list of integers from 0 on; True and False are none."""
    return isinstance(value, list) and all(type(item) is int and item >= 0 for item in value)


def _count(name: str, shape: list[int]) -> int:
    """The product of the dimensions, bounded at every step as readers with 64-bit integers need it."""
    count = 1
    for dimension in shape:
        count *= dimension
        if count > COUNT_LIMIT or dimension > COUNT_LIMIT:
            raise Malformed(f"gives {show(name)} the shape {show(str(shape))}, which overflows")
    return count


def _check_cover(tensors: list[TensorEntry], data_start: int, size: int) -> None:
    end = data_start
    for tensor in tensors:
        if tensor.start != end:
            kind = (
                "overlaps the tensor before it" if tensor.start < end else f"leaves {tensor.start - end} bytes unused"
            )
            raise Malformed(f"places {show(tensor.name)} so that it {kind}")
        end += tensor.nbytes
    if end != size:
        told = f"describes {end} bytes and has {size}"
        raise Malformed(f"is cut short: it {told}" if end > size else f"has bytes behind its tensors: it {told}")
