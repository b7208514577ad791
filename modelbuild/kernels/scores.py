"""Scores that masks choose by, one float32 for each element, where they are not the delta's own elements.

`variance`: of the models' differences from the base, Σ (d − mean)² / n in float64, rounded once: what sce selects by.
`importance`: |x − B|·k in float32, with one number k for each row: what arcee_fusion selects by; see divergence.py.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence

import numpy as np

from modelbuild.kernels.combine import BLOCK, Table, places_of
from modelbuild.kernels.compile import inlined, kernel
from modelbuild.kernels.convert import CODES, address
from modelbuild.kernels.fma import Array, Pointer, doubles, floats
from modelbuild.kernels.magnitude import score
from modelbuild.kernels.vectors import codes_of, spread
from modelbuild.kernels.workspace import workspace

STEP = BLOCK // 2
"""Elements worked on at a time: with three models still in the first-level cache."""


@inlined
def divide(values: Pointer, size: int, number: int) -> None:
    """Divides float64 by a whole number; by a power of two as a product, which is the same and takes less time."""
    divisor = np.float64(number)
    factor = 1.0 / divisor
    if number & (number - 1) == 0:
        for i in range(size):
            values[i] = values[i] * factor
    else:
        for i in range(size):
            values[i] = values[i] / divisor


@kernel("void(int64, int64, int64, int64, int64, int64)")
def variance_loop(places: int, codes: int, models: int, count: int, out: int, scratch: int) -> None:
    """The variances of elements; the base is the first place."""
    means, squares = doubles(scratch), doubles(scratch + 8 * STEP)
    vectors = scratch + 16 * STEP
    for begin in range(0, count, STEP):
        size = min(STEP, count - begin)
        spread(places, codes, models + 1, begin, size, vectors)
        for i in range(size):
            means[i] = 0.0
            squares[i] = 0.0
        for model in range(models):
            row = floats(vectors + 4 * size * (model + 1))
            for i in range(size):
                means[i] = means[i] + np.float64(row[i])
        divide(means, size, models)
        for model in range(models):
            row = floats(vectors + 4 * size * (model + 1))
            for i in range(size):
                away = np.float64(row[i]) - means[i]
                squares[i] = squares[i] + away * away
        divide(squares, size, models)
        result = floats(out + 4 * begin)
        for i in range(size):
            result[i] = np.float32(squares[i])


@kernel("void(int64, int64, int64, int64, int64, int64, int64, int64, int64, int64)")
def importance_loop(
    base: int,
    base_code: int,
    place: int,
    code: int,
    rows: int,
    start: int,
    columns: int,
    count: int,
    out: int,
    scratch: int,
) -> None:
    """The importances of elements [start, start + count) of rows of `columns`; `rows` has a float32 for each."""
    numbers = floats(rows)
    for begin in range(0, count, BLOCK):
        size = min(BLOCK, count - begin)
        score(base, base_code, place, code, begin, size, scratch)
        done = 0
        while done < size:
            index = start + begin + done
            row = index // columns
            length = min(size - done, (row + 1) * columns - index)
            factor = numbers[row]
            source, target = floats(scratch + 4 * done), floats(out + 4 * (begin + done))
            for i in range(length):
                target[i] = abs(source[i]) * factor
            done += length


def variance(dtypes: Sequence[str], inputs: Sequence[Array], out: Array) -> None:
    """Fills `out`, float32, with the variances of raw inputs, of which the first is the base."""
    *places, target = places_of((*inputs, out), out.size)
    tiles, codes, models = array("q", places), codes_of(dtypes), len(places) - 1
    scratch = address(workspace((models + 5) * STEP))
    variance_loop(tiles.buffer_info()[0], codes.place, models, out.size, target, scratch)


def importance(
    dtypes: Sequence[str], start: int, base: Array, model: Array, rows: Table, columns: int, out: Array
) -> None:
    """Fills `out`, float32, with the importances of elements from `start` on; `rows` is float32, for all rows."""
    first, place, target = places_of((base, model, out), out.size)
    base_code, code = (CODES[dtype] for dtype in dtypes)
    scratch = address(workspace(2 * BLOCK))
    importance_loop(first, base_code, place, code, rows.place, start, columns, out.size, target, scratch)
