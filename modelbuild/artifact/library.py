"""The shape of weight files as the safetensors library would save them, for formats that other tools compare by digest.

Tensors of wide elements come first, in the library's order of dtypes, then by name, with nothing between them; the
header is padded to a multiple of eight bytes. The same tensors are the same bytes as `save_file` writes.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from math import prod

from modelbuild.artifact.shards import Tensor, shard_name
from modelbuild.cache.nouns import Layout
from modelbuild.plan.node import ITEMSIZE, Node
from modelbuild.plan.outputs import in_files
from modelbuild.plan.planned import Planned

_ORDER = (
    "U64", "I64", "F64", "F32", "U32", "I32", "BF16", "F16", "U16", "I16", "F8_E8M0", "F8_E4M3", "F8_E5M2", "I8", "U8",
    "BOOL",
)  # fmt: skip
"""The dtypes as the library sorts them."""


def library_layout(groups: Sequence[Sequence[Tensor]], shard_size: int | None) -> Layout:
    """The safetensors files that hold the tensors, each group in one file, each file at most `shard_size` data bytes.

    A group larger than that has a file of its own; None means one file.
    """
    shards = list(_shards(groups, shard_size))
    sizes: dict[str, int] = {}
    headers: dict[str, bytes] = {}
    places: dict[str, tuple[str, int, int]] = {}
    for number, tensors in enumerate(shards, 1):
        file = shard_name(number, len(shards))
        ordered = sorted(tensors, key=lambda tensor: (_ORDER.index(tensor[1]), tensor[0]))
        headers[file] = _header(ordered)
        end = len(headers[file])
        for tensor in ordered:
            places[tensor[0]] = (file, end, _nbytes(tensor))
            end += _nbytes(tensor)
        sizes[file] = end
    return Layout(sizes, headers, places)


def packed_layout(artifact: Planned, shard_size: int | None, lengths: Mapping[str, int]) -> Layout:
    """The files of an artifact with packed tensors; `lengths` are the bytes of late outputs by their names there."""
    return library_layout([_group(name, node, lengths) for name, node in artifact.tensors.items()], shard_size)


def _group(name: str, node: Node, lengths: Mapping[str, int]) -> list[Tensor]:
    late = [output.late for output in node.outputs] or [False]
    parts = zip(in_files(name, node).items(), late, strict=True)
    return [(file, part.dtype, (lengths[file],) if is_late else part.shape) for (file, part), is_late in parts]


def _shards(groups: Iterable[Sequence[Tensor]], shard_size: int | None) -> Iterable[list[Tensor]]:
    shard: list[Tensor] = []
    filled = 0
    for group in groups:
        nbytes = sum(map(_nbytes, group))
        if shard_size is not None and shard and filled + nbytes > shard_size:
            yield shard
            shard, filled = [], 0
        shard += group
        filled += nbytes
    yield shard


def _nbytes(tensor: Tensor) -> int:
    _, dtype, shape = tensor
    return prod(shape) * ITEMSIZE[dtype]


def _header(ordered: Iterable[Tensor]) -> bytes:
    """The length and JSON of the header, padded with spaces so that the data starts at a multiple of 8."""
    entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for tensor in ordered:
        name, dtype, shape = tensor
        start, end = end, end + _nbytes(tensor)
        entries[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text
