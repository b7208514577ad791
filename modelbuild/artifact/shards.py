"""The shape of an artifact's weight files before a byte of them is known.

The data of each file starts at a multiple of 4096, and so does every tensor whose size is one: such tensors can be
shared between files by reflink. The rest follow, those of wide elements first, so that every offset suits its dtype.
The bytes depend on the tensors and the settings alone.

Large weights are cut by modules: attention, mlp and the rest are in files of their own, each in the order of layers. So
a merge that changes one of them changes its files only; the others are the same bytes and are linked.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from math import prod
from typing import Literal, TypeAlias

from modelbuild.cache.nouns import Layout
from modelbuild.plan.layout import layout
from modelbuild.plan.node import ITEMSIZE

Tensor: TypeAlias = "tuple[str, str, tuple[int, ...]]"
"""Name, safetensors dtype name, shape."""

MODEL = "model"
ADAPTER = "adapter_model"
PAGE = 4096
"""Bytes of a file system block, the unit of a reflink."""

APART = 1_000_000_000
"""Bytes of weights from which on they are cut by modules, if nobody says how."""

SMALL = 16
"""A module with less than this part of all bytes has no files of its own."""


def plan_layout(
    tensors: Sequence[Tensor],
    shard_size: int | None,
    shards: Literal["modules", "order"] | None = None,
    stem: str = MODEL,
) -> Layout:
    """The safetensors files that hold `tensors`, filled in the order given, each with at most `shard_size` data bytes.

    A tensor larger than that has a file of its own; None means one file. With `shards` "modules" (by default where the
    weights are large) no file holds tensors of two modules. Files are named the Hub's way: `STEM.safetensors` alone,
    else `STEM-00001-of-00003.safetensors`. An offset counts from the start of its file.
    """
    total = sum(map(_nbytes, tensors))
    apart = shard_size is not None and (shards == "modules" or (shards is None and total >= APART))
    modules = _modules(tensors) if apart else [tensors]
    groups = [group for module in modules for group in _groups(module, shard_size)]
    sizes: dict[str, int] = {}
    headers: dict[str, bytes] = {}
    places: dict[str, tuple[str, int, int]] = {}
    for number, group in enumerate(groups, 1):
        file = shard_name(number, len(groups), stem)
        ordered = sorted(group, key=_rank)
        headers[file] = _header(ordered)
        end = len(headers[file])
        for tensor in ordered:
            places[tensor[0]] = (file, end, _nbytes(tensor))
            end += _nbytes(tensor)
        sizes[file] = end
    return Layout(sizes, headers, places)


def shard_name(number: int, count: int, stem: str = MODEL) -> str:
    """The name of shard `number`, counted from 1, of `count`."""
    return f"{stem}.safetensors" if count == 1 else f"{stem}-{number:05}-of-{count:05}.safetensors"


def index_name(stem: str = MODEL) -> str:
    """The name of the file that says which shard holds which tensor."""
    return f"{stem}.safetensors.index.json"


def index_json(layout: Layout) -> bytes | None:
    """The index of a layout of several files, as transformers writes it; None for a single file, which needs none."""
    if len(layout.sizes) == 1:
        return None
    total = sum(nbytes for _, _, nbytes in layout.places.values())
    weight_map = {name: file for name, (file, _, _) in layout.places.items()}
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    return (json.dumps(index, indent=2, sort_keys=True) + "\n").encode()


def _nbytes(tensor: Tensor) -> int:
    _, dtype, shape = tensor
    return prod(shape) * ITEMSIZE[dtype]


def _modules(tensors: Sequence[Tensor]) -> list[list[Tensor]]:
    """What stands outside the layers and the small modules together; then each module of the layers, in every stack."""
    sizes = {tensor[0]: _nbytes(tensor) for tensor in tensors}
    places = layout(sizes).places
    module = {name: (place.stack, place.rest.partition(".")[0]) for name, place in places.items()}
    weight: dict[tuple[str, str] | None, int] = {}
    total = sum(sizes.values())
    for name, nbytes in sizes.items():
        weight[module.get(name)] = weight.get(module.get(name), 0) + nbytes
    found: dict[tuple[str, str] | None, list[Tensor]] = {None: []}
    for tensor in tensors:
        own = module.get(tensor[0])
        found.setdefault(own if weight[own] * SMALL >= total else None, []).append(tensor)
    return [group for group in found.values() if group] or [[]]


def _groups(tensors: Iterable[Tensor], shard_size: int | None) -> list[list[Tensor]]:
    groups: list[list[Tensor]] = [[]]
    filled = 0
    for tensor in tensors:
        nbytes = _nbytes(tensor)
        if shard_size is not None and groups[-1] and filled + nbytes > shard_size:
            groups.append([])
            filled = 0
        groups[-1].append(tensor)
        filled += nbytes
    return groups


def _rank(tensor: Tensor) -> tuple[bool, int]:
    """Whole pages first; then wide elements before narrow ones, which keeps every offset a multiple of its element."""
    odd = _nbytes(tensor) % PAGE != 0
    return odd, -ITEMSIZE[tensor[1]] if odd else 0


def _header(ordered: Iterable[Tensor]) -> bytes:
    """The length and JSON of the header, padded with spaces so that the data starts at a multiple of PAGE."""
    entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for tensor in ordered:
        name, dtype, shape = tensor
        start, end = end, end + _nbytes(tensor)
        entries[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-(8 + len(text)) % PAGE)
    return len(text).to_bytes(8, "little") + text
