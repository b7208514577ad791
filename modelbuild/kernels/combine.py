"""The loops of linear, lerp, task_arithmetic, passthrough and cast; the methods' files define their arithmetic.

A tile is worked through in blocks that stay in the first-level cache, so one loop serves every mix of dtypes at the
speed of a loop made for it: each input is widened as it is read, the result rounded as it is written. All memory is
handed over as addresses; `scratch` is that of the operation's scratch memory, float32.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from modelbuild.kernels.compile import inlined, kernel
from modelbuild.kernels.convert import BF16, CODES, F16, address, expand, shrink
from modelbuild.kernels.fma import Array, Pointer, floats, fma, halves, integers
from modelbuild.kernels.halves import narrow_bf16, widen_bf16, widen_f16

if TYPE_CHECKING:
    from modelbuild.methods.base import Kernel
    from modelbuild.plan.node import Node

BLOCK = 2048
"""Elements worked on at a time: three float32 buffers of it fit a first-level cache of 32 KiB."""


@inlined
def add_product(place: int, code: int, start: int, count: int, weight: float, total: Pointer) -> None:
    """total = fma(weight, x, total), x being elements [start, start + count) of memory."""
    if code == BF16:
        source = halves(place + 2 * start)
        for i in range(count):
            total[i] = fma(weight, widen_bf16(source[i]), total[i])
    elif code == F16:
        source = halves(place + 2 * start)
        for i in range(count):
            total[i] = fma(weight, widen_f16(source[i]), total[i])
    else:
        values = floats(place + 4 * start)
        for i in range(count):
            total[i] = fma(weight, values[i], total[i])


@kernel("void(int64, int64, int64, int64, float32, int64, int64, int64, int64)")
def linear_loop(
    places: int,
    codes: int,
    weights: int,
    models: int,
    divisor: float,
    out: int,
    out_code: int,
    count: int,
    scratch: int,
) -> None:
    """The chain of fused multiply-adds over the models, divided by `divisor`, which 1 leaves as it is."""
    place, code, weight, total = integers(places), integers(codes), floats(weights), floats(scratch)
    for start in range(0, count, BLOCK):
        size = min(BLOCK, count - start)
        for i in range(size):
            total[i] = np.float32(0.0)
        for model in range(models):
            add_product(place[model], code[model], start, size, weight[model], total)
        if divisor != np.float32(1.0):
            for i in range(size):
                total[i] = total[i] / divisor
        shrink(total, out, out_code, start, size)


@kernel("void(int64, int64, int64, int64, float32, int64, int64, int64, int64)")
def lerp_loop(
    base: int,
    base_code: int,
    model: int,
    code: int,
    t: float,
    out: int,
    out_code: int,
    count: int,
    scratch: int,
) -> None:
    """fma(t, b - a, a)."""
    if base_code == BF16 and code == BF16 and out_code == BF16:
        first, second, target = halves(base), halves(model), halves(out)
        for i in range(count):
            low = widen_bf16(first[i])
            target[i] = narrow_bf16(fma(t, widen_bf16(second[i]) - low, low))
        return
    for start in range(0, count, BLOCK):
        size = min(BLOCK, count - start)
        a, b = floats(scratch), floats(scratch + 4 * size)
        expand(base, base_code, start, size, a)
        expand(model, code, start, size, b)
        for i in range(size):
            a[i] = fma(t, b[i] - a[i], a[i])
        shrink(a, out, out_code, start, size)


@kernel("void(int64, int64, int64, int64, float32, float32, int64, int64, int64, int64)")
def task_arithmetic_loop(
    places: int,
    codes: int,
    weights: int,
    models: int,
    divisor: float,
    scale: float,
    out: int,
    out_code: int,
    count: int,
    scratch: int,
) -> None:
    """Subtract, multiply, add; the base is the first place."""
    place, code, factor = integers(places), integers(codes), floats(weights)
    for start in range(0, count, BLOCK):
        size = min(BLOCK, count - start)
        base, total, model = floats(scratch), floats(scratch + 4 * size), floats(scratch + 8 * size)
        expand(place[0], code[0], start, size, base)
        for i in range(size):
            total[i] = np.float32(0.0)
        for index in range(models):
            weight = factor[index]
            expand(place[index + 1], code[index + 1], start, size, model)
            for i in range(size):
                total[i] = total[i] + weight * (model[i] - base[i])
        if divisor != np.float32(1.0):
            for i in range(size):
                total[i] = total[i] / divisor
        for i in range(size):
            total[i] = base[i] + total[i] * scale
        shrink(total, out, out_code, start, size)


@kernel("void(int64, int64, float32, int64, int64, int64, int64)")
def scale_loop(place: int, code: int, scale: float, out: int, out_code: int, count: int, scratch: int) -> None:
    """The values times `scale`, which 1 leaves as they are: then it is a cast."""
    values = floats(scratch)
    for start in range(0, count, BLOCK):
        size = min(BLOCK, count - start)
        expand(place, code, start, size, values)
        if scale != np.float32(1.0):
            for i in range(size):
                values[i] = values[i] * scale
        shrink(values, out, out_code, start, size)


def dtype_codes(nodes: Sequence[Node]) -> Array:
    """The dtypes of nodes as loops know them."""
    return np.array([CODES[node.dtype] for node in nodes], np.int64)


def places_of(inputs: Sequence[Array], count: int) -> list[int]:
    """Where the stretches lie; ValueError if one is not `count` elements long, which a loop could not notice."""
    if any(stretch.size != count for stretch in inputs):
        raise ValueError(f"a stretch of {count} elements, but inputs of {[stretch.size for stretch in inputs]}")
    return [address(stretch) for stretch in inputs]


@dataclass(frozen=True, slots=True)
class Table:
    """Numbers that a loop reads, kept in memory for as long as this lives, and where they lie."""

    numbers: Array
    place: int


def table(numbers: Array) -> Table:
    """A table of contiguous `numbers`."""
    return Table(numbers, address(numbers))


def _weights(node: Node) -> Table:
    return table(np.asarray(node.param("weights"), np.float64).astype(np.float32))


def linear(node: Node, divisor: float) -> Kernel:
    """The kernel of a node of operation "linear"; the sum is divided by `divisor`."""
    weights, division = _weights(node), np.float32(divisor)
    models, codes, out_code = len(weights.numbers), table(dtype_codes(node.inputs)), CODES[node.dtype]

    def run(start: int, stop: int, inputs: Sequence[Array], out: Array, scratch: Array) -> None:
        count = stop - start
        *places, target = places_of((*inputs, out), count)
        tiles = array("q", places)
        place, _ = tiles.buffer_info()
        linear_loop(place, codes.place, weights.place, models, division, target, out_code, count, address(scratch))

    return run


def lerp(node: Node) -> Kernel:
    """The kernel of a node of operation "lerp"."""
    t = np.float32(node.param("t"))  # type: ignore[arg-type]
    base_code, model_code = (int(code) for code in dtype_codes(node.inputs))
    out_code = CODES[node.dtype]

    def run(start: int, stop: int, inputs: Sequence[Array], out: Array, scratch: Array) -> None:
        count = stop - start
        base, model, target = places_of((*inputs, out), count)
        lerp_loop(base, base_code, model, model_code, t, target, out_code, count, address(scratch))

    return run


def task_arithmetic(node: Node, divisor: float) -> Kernel:
    """The kernel of a node of operation "task_arithmetic"; the sum is divided by `divisor`."""
    weights, division = _weights(node), np.float32(divisor)
    scale = np.float32(node.param("lambda"))  # type: ignore[arg-type]
    models, codes, out_code = len(weights.numbers), table(dtype_codes(node.inputs)), CODES[node.dtype]

    def run(start: int, stop: int, inputs: Sequence[Array], out: Array, scratch: Array) -> None:
        count = stop - start
        *places, target = places_of((*inputs, out), count)
        tiles = array("q", places)
        place, _ = tiles.buffer_info()
        task_arithmetic_loop(
            place, codes.place, weights.place, models, division, scale, target, out_code, count, address(scratch)
        )

    return run


def scaled(node: Node, scale: float) -> Kernel:
    """The kernel that multiplies the one input of a node by `scale`."""
    factor = np.float32(scale)
    code, out_code = CODES[node.inputs[0].dtype], CODES[node.dtype]

    def run(start: int, stop: int, inputs: Sequence[Array], out: Array, scratch: Array) -> None:
        count = stop - start
        place, target = places_of((*inputs, out), count)
        scale_loop(place, code, factor, target, out_code, count, address(scratch))

    return run
