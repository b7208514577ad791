"""bitsandbytes, called a few rows at a time: blocks and rows are packed independently, so the bytes are the same.

A weight packed whole would take twenty bytes for each of its elements; its float32 copies alone, fresh from the system
each time, would cost more than the arithmetic.
"""

from __future__ import annotations

import importlib
import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from math import gcd
from typing import TYPE_CHECKING, Any

from modelbuild.errors import BuildFailed

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from modelbuild.formats.base import Emit
    from modelbuild.plan.node import Node

PIECE = 128 * 1024
"""Elements that are packed at a time, if a row has not more."""

_COMPILER = ("compile", "_disable_dynamo")
"""Decorators of torch that load its compiler, the second when what it decorates is called."""

_SCRATCH = 32
"""Bytes for each element of a piece: what bitsandbytes makes of it on the way."""


class BnbPacker:
    """Packs one weight with bitsandbytes."""

    def memory(self, node: Node) -> int:
        """The scales of the whole tensor in float32, some copies of them, and one piece on its way."""
        rows, columns = _shape(node)
        scales = rows if node.param("type") == "int8" else rows * columns // _block(node)
        piece = max(PIECE, columns * _row_step(node, columns))
        return 16 * scales + _SCRATCH * min(rows * columns, piece)

    @contextmanager
    def running(self) -> Iterator[None]:
        """One thread in torch, for whoever calls: a mean must not depend on how many there are."""
        import torch

        if "bitsandbytes" not in sys.modules:
            _import_quietly()

        before = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            yield
        finally:
            torch.set_num_threads(before)

    def pack(self, node: Node, raw: NDArray[Any], emit: Emit) -> None:
        """Packs one tensor; see formats/bnb.py for what comes of it."""
        import torch

        torch.set_num_threads(1)  # a setting of each thread
        with torch.inference_mode():
            if node.param("type") == "int8":
                _pack_int8(node, raw, emit)
            else:
                _pack_4bit(node, raw, emit)


def _import_quietly() -> None:
    """Imports bitsandbytes, which registers its operators, for packing alone.

    It would have functions that packing does not use compiled, and keep the compiler from others, and for both load
    torch's compiler: more than half of the time and a third of the memory that all of it takes. And on some processors
    it looks for a package `kernels`, to get code from the Hub with. Here nothing is compiled, there is no such package,
    and it says nothing about that.
    """
    import torch

    log = logging.getLogger("bitsandbytes")
    level = log.level
    replaced = {name: getattr(torch, name) for name in _COMPILER if hasattr(torch, name)}
    hidden = {"kernels": None} if "kernels" not in sys.modules else {}
    try:
        log.setLevel(logging.ERROR)
        sys.modules.update(hidden)  # type: ignore[arg-type]
        for name in replaced:
            setattr(torch, name, _as_it_is)
        importlib.import_module("bitsandbytes")
    finally:
        log.setLevel(level)
        for name, original in replaced.items():
            setattr(torch, name, original)
        for name in hidden:
            del sys.modules[name]


def _as_it_is(function: Any = None, **_: Any) -> Any:
    """What `torch.compile` gives, not compiled: the function, or a decorator."""
    return function if function is not None else _as_it_is


def _pack_int8(node: Node, raw: NDArray[Any], emit: Emit) -> None:
    import torch
    from bitsandbytes.functional import int8_vectorwise_quant

    scales = []
    for piece in _pieces(node, raw):
        packed, scale, _ = int8_vectorwise_quant(piece.to(torch.float16))
        emit("weight", _bytes(packed))
        scales.append(scale)
    emit("SCB", _bytes(torch.cat(scales)))
    emit("weight_format", b"\0")


def _pack_4bit(node: Node, raw: NDArray[Any], emit: Emit) -> None:
    import torch
    from bitsandbytes import functional

    kind, block = str(node.param("type")), _block(node)
    lookup: Any = functional.get_4bit_type
    made: Any = functional.QuantState
    scales = []
    dtype = torch.float32
    for piece in _pieces(node, raw):
        packed, state = functional.quantize_4bit(piece, blocksize=block, quant_type=kind, quant_storage=torch.uint8)
        emit("weight", _bytes(packed))
        scales.append(state.absmax)
        dtype = piece.dtype
    absmax = torch.cat(scales)
    facts: dict[str, Any] = {"shape": torch.Size(_shape(node)), "dtype": dtype, "blocksize": block, "quant_type": kind}
    facts["code"] = lookup(kind, device=absmax.device)
    if node.param("double_quant"):
        offset = absmax.mean()
        absmax, nested = functional.quantize_blockwise(absmax - offset, blocksize=256)
        facts |= {"offset": offset, "state2": nested}
    found = made(absmax=absmax, **facts).as_dict(packed=True)
    expected = {output.name: output for output in node.outputs if output.name != "weight"}
    if {f"weight.{name}" for name in found} != set(expected):
        raise BuildFailed("bitsandbytes gives other tensors than it did", facts=sorted(found), hint="install 0.50.2")
    for name, tensor in found.items():
        emit(f"weight.{name}", _bytes(tensor))


def _pieces(node: Node, raw: NDArray[Any]) -> Iterator[Any]:
    """The layer's weights, [outputs, inputs], some rows at a time: a whole number of blocks each but for the last."""
    import torch

    whole = torch.from_numpy(raw if raw.dtype.kind == "f" else raw.view("int16"))
    whole = whole.view({"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32}[node.inputs[0].dtype])
    turned = bool(node.param("transposed"))
    rows, columns = _shape(node)
    step = _row_step(node, columns)
    count = max(step, PIECE // max(1, columns) // step * step)
    for start in range(0, rows, count):
        stop = min(start + count, rows)
        yield whole[:, start:stop].T.contiguous() if turned else whole[start:stop]


def _shape(node: Node) -> tuple[int, int]:
    """Outputs and inputs of the layer."""
    rows, columns = node.inputs[0].shape
    return (columns, rows) if node.param("transposed") else (rows, columns)


def _block(node: Node) -> int:
    block = node.param("block_size")
    assert isinstance(block, int)
    return block


def _row_step(node: Node, columns: int) -> int:
    """The least number of rows that make whole blocks."""
    return 1 if node.param("type") == "int8" else _block(node) // gcd(columns, _block(node))


def _bytes(tensor: Any) -> bytes:
    return bytes(tensor.numpy().tobytes())
