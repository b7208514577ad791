"""Low-rank products and the sum of adapters; methods/lora.py defines the arithmetic around the product.

P[r, c] = Σₖ left[r, k]·right[k, c] is a chain of fused multiply-adds over k in order, from 0, started anew at the
bounds of the parts of k; the parts' sums are added in order. The parts, for K values of k:

    K ≤ 192        one part
    192 < K < 384  two halves of K // 2, and the last value alone where K is odd
    K ≥ 384        parts of 192, then the rest

These are the parts in which the matrix product that torch brings on x86-64 (MKL) adds, so that the result is that of
`B.float() @ A.float()` to the bit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from modelbuild.kernels.combine import BLOCK, places_of
from modelbuild.kernels.compile import inlined, kernel
from modelbuild.kernels.convert import CODES, address, expand, shrink, widen
from modelbuild.kernels.fma import Array, floats
from modelbuild.kernels.microkernel import best, block_1, block_2, block_4, block_8, tallest, width

if TYPE_CHECKING:
    from modelbuild.methods.base import Kernel
    from modelbuild.plan.node import Node

TALLEST = 8
"""Rows of the largest block on any processor."""

PART = 192
"""Values of k that are added in one chain, where there are many."""


@inlined
def part_end(start: int, depth: int) -> int:
    """Where the part of k ends that starts at `start`."""
    if PART < depth < 2 * PART:
        half = depth // 2
        return start + half if start < 2 * half else depth
    return min(start + PART, depth)


@inlined
def block(rows: int, left: int, depth: int, right: int, out: int, out_step: int, scale: float) -> None:
    """A block of `rows` at `out`, with all parts of k, each added to what is there; then scaled."""
    start = 0
    while True:
        end = part_end(start, depth)
        factor: Any = scale if end == depth else np.float32(1.0)
        here, packed, previous = left + 4 * start, right + 4 * start * width(), int(start > 0)
        if rows == 8:
            block_8(here, depth, packed, end - start, out, out_step, previous, factor)
        elif rows == 4:
            block_4(here, depth, packed, end - start, out, out_step, previous, factor)
        elif rows == 2:
            block_2(here, depth, packed, end - start, out, out_step, previous, factor)
        else:
            block_1(here, depth, packed, end - start, out, out_step, previous, factor)
        if end == depth:
            break
        start = end


@inlined
def panel(
    left: int, depth: int, right: int, rows: int, out: int, step: int, low: int, high: int, scale: float, edge: int
) -> None:
    """Columns [low, high) of one panel for `rows` rows; column `low` of the first row goes to `out`.

    Blocks are as wide as a panel: where the panel's columns are not all wanted, they go to `edge` and are copied.
    """
    row = 0
    whole = low == 0 and high == width()
    target, copied = floats(out), floats(edge)
    while row < rows:
        height = tallest()
        while height > rows - row:
            height //= 2
        source = left + 4 * row * depth
        if whole:
            block(height, source, depth, right, out + 4 * row * step, step, scale)
        else:
            block(height, source, depth, right, edge, width(), scale)
            for i in range(height):
                for c in range(high - low):
                    target[(row + i) * step + c] = copied[i * width() + low + c]
        row += height


@kernel("void(int64, int64, int64, int64, int64, int64, float32, int64, int64)")
def product_loop(
    left: int,
    right: int,
    depth: int,
    columns: int,
    start: int,
    stop: int,
    scale: float,
    out: int,
    edge: int,
) -> None:
    """Elements [start, stop) of the product times `scale` into `out`; `edge` has room for the tallest block.

    The stretch is a piece of a row, whole rows, and a piece of a row; any of them may be missing.
    """
    for index in range((columns + width() - 1) // width()):
        c0 = index * width()
        c1 = min(c0 + width(), columns)
        packed = right + 4 * index * depth * width()
        position = start
        while position < stop:
            row = position // columns
            column = position - row * columns
            if column == 0 and stop - position >= columns:
                rows = (stop - position) // columns
                end = columns
            else:
                rows = 1
                end = min(columns, column + stop - position)
            low, high = max(c0, column), min(c1, end)
            if low < high:
                first = out + 4 * (row * columns + low - start)
                panel(left + 4 * row * depth, depth, packed, rows, first, columns, low - c0, high - c0, scale, edge)
            position += rows * columns if rows > 1 or end - column == columns else end - column


@kernel("void(int64, int64, int64, int64, float32, int64, int64, int64)")
def replace_loop(
    base: int, base_code: int, other: int, code: int, weight: float, count: int, out: int, scratch: int
) -> None:
    """(other - base) * weight."""
    for start in range(0, count, BLOCK):
        size = min(BLOCK, count - start)
        a, b = floats(scratch), floats(out + 4 * start)
        expand(base, base_code, start, size, a)
        expand(other, code, start, size, b)
        for i in range(size):
            b[i] = (b[i] - a[i]) * weight


@kernel("void(int64, int64, float32, int64, int64)")
def scale_loop(other: int, code: int, factor: float, count: int, out: int) -> None:
    """Other * factor."""
    for start in range(0, count, BLOCK):
        size = min(BLOCK, count - start)
        values = floats(out + 4 * start)
        expand(other, code, start, size, values)
        for i in range(size):
            values[i] = values[i] * factor


@kernel("void(int64, int64, int64)")
def add_loop(total: int, term: int, count: int) -> None:
    """total = total + term."""
    into, values = floats(total), floats(term)
    for i in range(count):
        into[i] = into[i] + values[i]


@kernel("void(int64, int64, int64, int64, int64, int64, int64)")
def finish_loop(base: int, code: int, total: int, out: int, out_code: int, count: int, scratch: int) -> None:
    """base + total, rounded into memory."""
    sums, values = floats(total), floats(scratch)
    for start in range(0, count, BLOCK):
        size = min(BLOCK, count - start)
        expand(base, code, start, size, values)
        for i in range(size):
            values[i] = values[i] + sums[start + i]
        shrink(values, out, out_code, start, size)


def pack(right: Array) -> Array:
    """Float32 [K, columns] as panels [panels, K, width], the last filled up with zeros: each panel lies together."""
    columns = best().width
    depth, count = right.shape
    panels = -(-count // columns)
    packed = np.zeros((panels, depth, columns), np.float32)
    whole = count // columns
    packed[:whole] = right[:, : whole * columns].reshape(depth, whole, columns).swapaxes(0, 1)
    if whole < panels:
        packed[whole, :, : count - whole * columns] = right[:, whole * columns :]
    return packed


def product(left: Array, right: Array, scale: float) -> Callable[[int, int, Array], None]:
    """What computes elements [start, stop) of `scale`·left·right into a float32 array; float32 [rows, K], [K, columns].

    ValueError if the factors do not fit each other.
    """
    if left.ndim != 2 or right.ndim != 2 or left.shape[1] != right.shape[0]:
        raise ValueError(f"factors of shapes {left.shape} and {right.shape}")
    rows, packed = np.ascontiguousarray(left, np.float32), pack(right)
    depth, columns, strength = left.shape[1], right.shape[1], np.float32(scale)
    edge_size = TALLEST * packed.shape[2]

    def run(start: int, stop: int, out: Array) -> None:
        edge = np.empty(edge_size, np.float32)
        product_loop(address(rows), address(packed), depth, columns, start, stop, strength, address(out), address(edge))

    return run


def factor(raw: Array, dtype: str, transpose: bool) -> Array:
    """A stored factor as float32 [rows, columns], contiguous, after a transposition where asked."""
    values = widen(raw, dtype)
    return np.ascontiguousarray(values.T) if transpose else values


Term = Callable[[int, int, "Sequence[Array]", "Array", "Array"], None]
"""Computes elements [start, stop) of one term from the streamed inputs into an array, with free scratch."""


def lora(node: Node, whole: Sequence[Array]) -> Kernel:
    """The kernel of a node of operation "lora"; `whole` are the factors of its low-rank terms, in order, raw.

    ValueError if the factors fit neither each other nor the tensor.
    """
    terms = [*_terms(node, whole)]
    base_code, out_code = CODES[node.inputs[0].dtype], CODES[node.dtype]

    def run(start: int, stop: int, inputs: Sequence[Array], out: Array, scratch: Array) -> None:
        count = stop - start
        base, *_, target = places_of((*inputs, out), count)
        total, term, free = (scratch[i * count : (i + 1) * count] for i in range(3))
        terms[0](start, stop, inputs, total, free)
        for compute in terms[1:]:
            compute(start, stop, inputs, term, free)
            add_loop(address(total), address(term), count)
        finish_loop(base, base_code, address(total), target, out_code, count, address(free))

    return run


def _terms(node: Node, whole: Sequence[Array]) -> Iterator[Term]:
    """The terms of a node, in order; factors are taken from `whole`, the others are streamed after the base."""
    factors, index, streamed = iter(whole), 1, 1
    terms: Any = node.param("terms")
    for kind, strength, *flags in terms:
        if kind == "lowrank":
            left = factor(next(factors), node.inputs[index].dtype, flags[0])
            right = factor(next(factors), node.inputs[index + 1].dtype, flags[1])
            rows = node.shape[0] if node.shape else 1
            if (left.shape[0], right.shape[1]) != (rows, node.count // max(rows, 1)):
                raise ValueError(f"factors of shapes {left.shape} and {right.shape} for a tensor of shape {node.shape}")
            yield _low_rank(product(left, right, strength))
            index += 2
        else:
            code = CODES[node.inputs[index].dtype]
            if kind == "replace":
                yield _replacement(CODES[node.inputs[0].dtype], code, strength, streamed)
            else:
                yield _addition(code, strength, streamed)
            index += 1
            streamed += 1


def _low_rank(fill: Callable[[int, int, Array], None]) -> Term:
    return lambda start, stop, inputs, into, free: fill(start, stop, into)


def _replacement(base_code: int, code: int, weight: float, streamed: int) -> Term:
    strength = np.float32(weight)

    def fill(start: int, stop: int, inputs: Sequence[Array], into: Array, free: Array) -> None:
        base, other = address(inputs[0]), address(inputs[streamed])
        replace_loop(base, base_code, other, code, strength, stop - start, address(into), address(free))

    return fill


def _addition(code: int, scale: float, streamed: int) -> Term:
    strength = np.float32(scale)

    def fill(start: int, stop: int, inputs: Sequence[Array], into: Array, free: Array) -> None:
        scale_loop(address(inputs[streamed]), code, strength, stop - start, address(into))

    return fill
