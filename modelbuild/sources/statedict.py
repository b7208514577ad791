"""From what a pickle holds to tensors with a place: state dicts, the wrappings they come in, and what is no tensor.

A state dict is a dict of names and tensors. A training checkpoint often has it under a key of its own, beside an
optimizer and counters; where that is unambiguous, it is taken. Numbers, strings and None in a state dict are counters
that somebody left there, and are left out. Everything else that is no plain tensor is refused by name.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, TypeAlias

from modelbuild.dtypes import ITEMSIZE
from modelbuild.sources.safetensors import COUNT_LIMIT, RANK_LIMIT, TensorEntry, check_name
from modelbuild.sources.strictjson import Malformed, show

if TYPE_CHECKING:
    import torch

WRAPPINGS = ("state_dict", "model_state_dict", "model", "module")
"""Keys that training programs keep a state dict under."""

DTYPES = {
    "bool": "BOOL", "uint8": "U8", "int8": "I8", "float8_e5m2": "F8_E5M2", "float8_e4m3fn": "F8_E4M3",
    "float8_e8m0fnu": "F8_E8M0", "int16": "I16", "uint16": "U16", "float16": "F16", "bfloat16": "BF16", "int32": "I32",
    "uint32": "U32", "float32": "F32", "float64": "F64", "int64": "I64", "uint64": "U64",
}  # fmt: skip
"""torch's name of each dtype, and ours."""

_RANK = {dtype: rank for rank, dtype in enumerate(ITEMSIZE)}


@dataclass(frozen=True, slots=True)
class Place:
    """Where in its file a storage lies."""

    offset: int
    nbytes: int


Find: TypeAlias = "Callable[[torch.UntypedStorage], Place]"
"""Finds a storage in the file; Malformed where it is not there."""


def entries(loaded: object, find: Find) -> tuple[tuple[TensorEntry, ...], tuple[str, ...]]:
    """The tensors of a state dict, and notes about what was left out; Malformed for everything else.

    Tensors are in the order that the safetensors library gives them when it saves the same dict, by dtype and name: so
    a file and its conversion are read in one order, and what is built from them is the same.
    """
    state, notes = _state_dict(loaded)
    tensors = {name: value for name, value in state.items() if not _is_counter(value)}
    if left_out := [name for name in state if name not in tensors]:
        notes.append(f"left out, being no tensors: {_listed(left_out)}")
    found = [_entry(check_name(name), value, find) for name, value in tensors.items()]
    found.sort(key=lambda tensor: (-_RANK[tensor.dtype], tensor.name))
    return tuple(found), tuple(notes)


def _state_dict(loaded: object) -> tuple[Mapping[str, object], list[str]]:
    """The dict that holds the tensors, and notes about what it was wrapped in."""
    outer = _strings(loaded, "its contents")
    if any(_is_tensor(value) for value in outer.values()):
        return outer, []
    inside = {key: outer[key] for key in WRAPPINGS if isinstance(outer.get(key), dict)}
    if not inside:
        if outer and not all(_is_counter(value) for value in outer.values()):
            raise Malformed(f"holds no tensors, but {_listed(list(outer))}")
        return outer, []
    if len(inside) > 1:
        raise Malformed(f"holds several state dicts: {_listed(list(inside))}")
    ((key, value),) = inside.items()
    notes = [f"its weights are those under {show(key)}"]
    if others := [name for name in outer if name != key]:
        notes.append(f"left out beside {show(key)}: {_listed(others)}")
    return _strings(value, show(key)), notes


def _strings(value: object, shown: str) -> Mapping[str, object]:
    if type(value) not in (dict, OrderedDict) or not isinstance(value, dict):
        raise Malformed(f"has {type(value).__name__} for {shown}, not names and tensors")
    for key in value:
        if not isinstance(key, str):
            raise Malformed(f"has a name in {shown} that is no text: {show(repr(key))}")
    return value


def _is_counter(value: object) -> bool:
    return value is None or isinstance(value, (bool, int, float, str))


def _is_tensor(value: object) -> bool:
    import torch

    return isinstance(value, torch.Tensor)


def _entry(name: str, value: object, find: Find) -> TensorEntry:
    """The tensor's entry; its strides where its bytes do not lie in order."""
    import torch

    if not isinstance(value, torch.Tensor):
        raise Malformed(f"holds a {type(value).__name__} called {show(name)}, which is no tensor")
    kind = _kind(value)
    if kind is not None:
        raise Malformed(f"holds {show(name)} as {kind}; only plain tensors are read")
    dtype = DTYPES.get(str(value.dtype).removeprefix("torch."))
    if dtype is None:
        raise Malformed(f"gives {show(name)} the dtype {show(str(value.dtype))}, which is not known")
    shape, strides = tuple(value.shape), tuple(value.stride())
    if len(shape) > RANK_LIMIT or max((prod(shape), *shape)) > COUNT_LIMIT:
        raise Malformed(f"gives {show(name)} the shape {show(str(list(shape)))}, which is too large")
    start = _start(name, value, shape, strides, find)
    ordered = value.is_contiguous()
    return TensorEntry(name, dtype, shape, start, prod(shape) * ITEMSIZE[dtype], None if ordered else strides)


def _kind(value: torch.Tensor) -> str | None:
    """What a tensor is, if not a plain one."""
    import torch

    if type(value) not in (torch.Tensor, torch.nn.Parameter):
        return f"a {type(value).__name__}"
    if value.layout != torch.strided:
        return "a sparse tensor"
    if value.is_quantized:
        return "a quantised tensor"
    return "a conjugated or negated view" if value.is_conj() or value.is_neg() else None


def _start(name: str, value: torch.Tensor, shape: tuple[int, ...], strides: tuple[int, ...], find: Find) -> int:
    """Where in the file the first element lies; every element has to lie in the tensor's storage."""
    storage = value.untyped_storage()
    if not prod(shape):
        return 0
    place = find(storage)
    if place.nbytes != storage.nbytes():
        raise Malformed(f"needs {storage.nbytes()} bytes for the storage of {show(name)}, and has {place.nbytes}")
    first = int(value.storage_offset())
    last = first + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))
    if any(number < 0 for number in (first, *strides)) or (last + 1) * value.element_size() > place.nbytes:
        raise Malformed(f"lets {show(name)} reach past its storage")
    return place.offset + first * value.element_size()


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return ", ".join(map(show, names[:5])) + more
