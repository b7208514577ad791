"""Combinations of the vectors of vectors.py: x₀ + Σ cᵢ·vᵢ, with coefficients for the tensor, its rows or its columns.

Exact arithmetic, in float32 (cᵢ is a float64 rounded once; v₀, where the first input is a vector itself, is x₀):

    acc = 0;  acc = fma(cᵢ, vᵢ, acc) in order
    y = x₀ + acc, or x₀ itself where acc is 0; one rounding to the output's dtype

So an element that no input changed stays as it is, signed zeros included, wherever x₀ is no vector or its cᵢ is 0.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence

import numpy as np

from modelbuild.kernels.combine import BLOCK, places_of, table
from modelbuild.kernels.compile import inlined, kernel
from modelbuild.kernels.convert import CODES, address, shrink
from modelbuild.kernels.fma import Array, floats, fma
from modelbuild.kernels.vectors import codes_of, spread
from modelbuild.kernels.workspace import workspace


@inlined
def add_vector(coefficients: int, by_column: int, vector: int, size: int, total: int) -> None:
    """total = fma(c, v, total) for `size` elements, with one coefficient, or with one for each of them."""
    factors, values, sums = floats(coefficients), floats(vector), floats(total)
    if by_column == 0:
        factor = factors[0]
        for i in range(size):
            sums[i] = fma(factor, values[i], sums[i])
    else:
        for i in range(size):
            sums[i] = fma(factors[i], values[i], sums[i])


@kernel("void(int64, int64, int64, int64, int64, int64, int64, int64, int64, int64, int64, int64)")
def combination_loop(
    places: int,
    codes: int,
    inputs: int,
    first: int,
    coefficients: int,
    by_column: int,
    start: int,
    count: int,
    columns: int,
    out: int,
    out_code: int,
    scratch: int,
) -> None:
    """Elements [start, start + count) of rows of `columns`; vectors count from `first`.

    `coefficients` is [rows, vectors], or [vectors, columns] with `by_column`.
    """
    width = inputs - first
    for begin in range(0, count, BLOCK):
        size = min(BLOCK, count - begin)
        spread(places, codes, inputs, begin, size, scratch)
        sums = scratch + 4 * inputs * size
        base, total = floats(scratch), floats(sums)
        for i in range(size):
            total[i] = np.float32(0.0)
        done = 0
        while done < size:
            index = start + begin + done
            row = index // columns
            column = index - row * columns
            length = min(size - done, columns - column)
            for k in range(width):
                entry = k * columns + column if by_column else row * width + k
                vector = scratch + 4 * ((first + k) * size + done)
                add_vector(coefficients + 4 * entry, by_column, vector, length, sums + 4 * done)
            done += length
        for i in range(size):
            value = total[i]
            base[i] = base[i] if value == np.float32(0.0) else base[i] + value
        shrink(base, out, out_code, begin, size)


class Combination:
    """Combines inputs of these dtypes with coefficients [rows, vectors], one row of them for each `columns` elements.

    With `by_column` they are [columns, vectors]. `anchored`: the first input is a vector itself, the first of them.
    """

    def __init__(
        self, dtypes: Sequence[str], dtype: str, coefficients: Array, columns: int, *, anchored: bool, by_column: bool
    ) -> None:
        self._codes = codes_of(dtypes)
        self._out_code = CODES[dtype]
        self._inputs, self._first = len(dtypes), 0 if anchored else 1
        self._columns, self._by_column = max(columns, 1), int(by_column)
        oriented = coefficients.T if by_column else coefficients
        self._factors = table(np.ascontiguousarray(oriented, np.float32))
        if coefficients.shape[-1] != self._inputs - self._first:
            raise ValueError(f"{coefficients.shape[-1]} coefficients for {self._inputs - self._first} vectors")

    def run(self, start: int, stop: int, inputs: Sequence[Array], out: Array) -> None:
        """Fills `out` with elements [start, stop), of which `inputs` are the raw elements: any stretch will do."""
        *places, target = places_of((*inputs, out), stop - start)
        tiles = array("q", places)
        combination_loop(
            tiles.buffer_info()[0],
            self._codes.place,
            self._inputs,
            self._first,
            self._factors.place,
            self._by_column,
            start,
            stop - start,
            self._columns,
            target,
            self._out_code,
            address(workspace((self._inputs + 1) * BLOCK)),
        )
