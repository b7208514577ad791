"""The Kullback-Leibler divergence of each row of a model from the base's, by which arcee_fusion weighs differences.

With p = softmax(row of x) + 1e-8 and q = softmax(row of B) + 1e-8 it is Σ p·ln(p/q), in float64, and then rounded to
float32; what comes out negative, which it cannot be, is 0. Sums of a row run in `WIDTH` lanes, element i to lane
i mod `WIDTH`, which are added up by halves. Exponentials are taken of x less the row's largest element where one of the
row is as large as 256, else of x.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from modelbuild.kernels.combine import BLOCK, places_of
from modelbuild.kernels.compile import inlined, kernel
from modelbuild.kernels.convert import CODES, address, expand
from modelbuild.kernels.exponential import exponentials, logarithms
from modelbuild.kernels.fma import Array, Pointer, doubles, floats
from modelbuild.kernels.magnitude import magnitude
from modelbuild.kernels.workspace import workspace

WIDTH = 256
EPSILON = 1e-8
LARGE = 0x4380_0000
"""The magnitude of 256."""


@inlined
def clear(lanes: Pointer) -> None:
    """Sets the lanes to 0."""
    for i in range(WIDTH):
        lanes[i] = 0.0


@inlined
def add(values: Pointer, size: int, lanes: Pointer) -> None:
    """Adds a block of a row to the lanes."""
    for begin in range(0, size, WIDTH):
        for i in range(min(WIDTH, size - begin)):
            lanes[i] = lanes[i] + values[begin + i]


@inlined
def across(lanes: Pointer) -> float:
    """The sum of the lanes."""
    half = WIDTH // 2
    while half > 0:
        for i in range(half):
            lanes[i] = lanes[i] + lanes[half + i]
        half >>= 1
    total: float = lanes[0]
    return total


@inlined
def shift_of(place: int, code: int, first: int, columns: int, scratch: int) -> float:
    """What is taken away from a row's elements before their exponentials: 0 where none is large, else the largest."""
    values = floats(scratch)
    largest, shift = np.uint32(0), -np.inf
    for begin in range(0, columns, BLOCK):
        size = min(BLOCK, columns - begin)
        expand(place, code, first + begin, size, values)
        for i in range(size):
            key: Any = magnitude(values[i])
            largest = key if key > largest else largest
    if largest < np.uint32(LARGE):
        return 0.0
    for begin in range(0, columns, BLOCK):
        size = min(BLOCK, columns - begin)
        expand(place, code, first + begin, size, values)
        for i in range(size):
            shift = max(shift, np.float64(values[i]))
    return shift


@inlined
def softmax(place: int, code: int, first: int, columns: int, row: int, scratch: int) -> float:
    """Fills `row`, float64, with the exponentials of the row that begins at element `first`, and gives their sum."""
    shift = shift_of(place, code, first, columns, scratch)
    lanes = doubles(scratch + 12 * BLOCK)
    clear(lanes)
    for begin in range(0, columns, BLOCK):
        size = min(BLOCK, columns - begin)
        values, exponents = floats(scratch), doubles(row + 8 * begin)
        expand(place, code, first + begin, size, values)
        for i in range(size):
            exponents[i] = np.float64(values[i]) - shift
        exponentials(row + 8 * begin, size, scratch + 4 * BLOCK)
        add(exponents, size, lanes)
    return across(lanes)


@kernel("void(int64, int64, int64, int64, int64, int64, int64, int64)")
def divergence_loop(
    base: int, base_code: int, place: int, code: int, rows: int, columns: int, out: int, scratch: int
) -> None:
    """The divergences, float32, of whole rows."""
    result = floats(out)
    first_row = scratch + 12 * BLOCK + 8 * WIDTH
    second_row = first_row + 8 * columns
    ratios, lanes = doubles(scratch + 4 * BLOCK), doubles(scratch + 12 * BLOCK)
    for row in range(rows):
        whole_q = softmax(base, base_code, row * columns, columns, first_row, scratch)
        whole_p = softmax(place, code, row * columns, columns, second_row, scratch)
        clear(lanes)
        for begin in range(0, columns, BLOCK):
            size = min(BLOCK, columns - begin)
            q, p = doubles(first_row + 8 * begin), doubles(second_row + 8 * begin)
            for i in range(size):
                p[i] = p[i] / whole_p + EPSILON
                ratios[i] = p[i] / (q[i] / whole_q + EPSILON)
            logarithms(scratch + 4 * BLOCK, size, first_row + 8 * begin)
            for i in range(size):
                ratios[i] = p[i] * ratios[i]
            add(ratios, size, lanes)
        total = across(lanes)
        result[row] = np.float32(0.0 if total < 0.0 else total)


def divergences(dtypes: tuple[str, str], columns: int, base: Array, model: Array) -> Array:
    """The divergences, float32, of whole rows of `columns` elements of the raw model from those of the base."""
    first, place = places_of((base, model), model.size)
    rows = model.size // columns if columns else 0
    out = np.empty(rows, np.float32)
    base_code, code = (CODES[dtype] for dtype in dtypes)
    scratch = address(workspace(3 * BLOCK + 2 * WIDTH + 4 * columns))
    divergence_loop(first, base_code, place, code, rows, columns, address(out), scratch)
    return out
