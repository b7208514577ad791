"""Gram matrices of the vectors of vectors.py: of a whole tensor, of each row, or of each column.

Products and sums are float64. A sum is formed as sums.py says for each piece, then over the pieces in order: a piece
is what the row (or the whole tensor) has in common with one block of `GRAIN` elements, counted from the tensor's start.
So nothing depends on the stretches that a tensor is measured in, as long as they begin at multiples of `GRAIN`: they
may be measured in any order, by any number of threads.

A column's sum runs over bands of `BAND` rows: in a band row by row, then over the bands in order. One thread measures
a band, from top to bottom.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence

import numpy as np

from modelbuild.kernels.combine import places_of
from modelbuild.kernels.compile import inlined, kernel
from modelbuild.kernels.convert import address
from modelbuild.kernels.fma import Array, doubles, floats
from modelbuild.kernels.sums import LANE_FLOATS, product_and_square_sum, product_sum, square_sum
from modelbuild.kernels.vectors import GRAIN, check_stretch, codes_of, spread
from modelbuild.kernels.workspace import workspace

BAND = 1024
"""Rows that one thread adds up, where a matrix is wanted for each column."""


@kernel("void(int64, int64, int64, int64, int64, int64, int64, int64, int64)")
def gram_loop(
    places: int, codes: int, inputs: int, first: int, start: int, count: int, columns: int, pieces: int, scratch: int
) -> None:
    """The lower triangles of all pieces of elements [start, start + count) of rows of `columns`.

    Vectors count from `first`. Piece p, counted as `piece_of` does, goes to entry p of `pieces`, float64.
    """
    pairs = (inputs - first) * (inputs - first + 1) // 2
    vectors = scratch + 4 * LANE_FLOATS
    for begin in range(0, count, GRAIN):
        size = min(GRAIN, count - begin)
        spread(places, codes, inputs, begin, size, vectors)
        done = 0
        while done < size:
            index = start + begin + done
            row = index // columns
            length = min(size - done, (row + 1) * columns - index)
            out = doubles(pieces + 8 * pairs * piece_of(index, columns))
            pair = 0
            for i in range(first, inputs):
                one = vectors + 4 * (size * i + done)
                for j in range(first, i - 1):
                    out[pair] = product_sum(vectors + 4 * (size * j + done), one, length, scratch)
                    pair += 1
                if i == first:
                    out[pair] = square_sum(one, length, scratch)
                    pair += 1
                else:
                    # Two sums in one loop: it is bound by making float64 of float32.
                    other = vectors + 4 * (size * (i - 1) + done)
                    out[pair], out[pair + 1] = product_and_square_sum(other, one, length, scratch)
                    pair += 2
            done += length


@inlined
def piece_of(index: int, columns: int) -> int:
    """The number of the piece that begins at element `index`; some numbers stay without a piece."""
    return index // columns + index // GRAIN


@kernel("void(int64, int64, int64, int64, int64)")
def fold_loop(pieces: int, width: int, rows: int, columns: int, out: int) -> None:
    """For each row the sum of its pieces in order, each `width` float64."""
    for row in range(rows):
        total = doubles(out + 8 * width * row)
        for i in range(width):
            total[i] = 0.0
        for number in range(piece_of(row * columns, columns), piece_of((row + 1) * columns - 1, columns) + 1):
            piece = doubles(pieces + 8 * width * number)
            for i in range(width):
                total[i] += piece[i]


@kernel("void(int64, int64, int64, int64, int64, int64, int64, int64, int64)")
def gram_columns_loop(
    places: int, codes: int, inputs: int, first: int, start: int, count: int, columns: int, bands: int, scratch: int
) -> None:
    """Adds the products of elements [start, start + count) to the bands: [band, pair, column], float64."""
    pairs = (inputs - first) * (inputs - first + 1) // 2
    for begin in range(0, count, GRAIN):
        size = min(GRAIN, count - begin)
        spread(places, codes, inputs, begin, size, scratch)
        done = 0
        while done < size:
            index = start + begin + done
            row = index // columns
            column = index - row * columns
            length = min(size - done, columns - column)
            pair = 0
            for i in range(first, inputs):
                for j in range(first, i + 1):
                    left, right = floats(scratch + 4 * (size * i + done)), floats(scratch + 4 * (size * j + done))
                    total = doubles(bands + 8 * ((row // BAND * pairs + pair) * columns + column))
                    for e in range(length):
                        total[e] += np.float64(left[e]) * np.float64(right[e])
                    pair += 1
            done += length


def fold(pieces: Array, rows: int, columns: int) -> Array:
    """The sums [rows, width] of pieces [pieces, width], float64."""
    out = np.empty((rows, pieces.shape[1]), np.float64)
    fold_loop(address(pieces), pieces.shape[1], rows, columns, address(out))
    return out


def piece_count(count: int, columns: int) -> int:
    """How many entries the pieces of a tensor of `count` elements in rows of `columns` take."""
    return piece_of(count - 1, columns) + 1 if count else 0


def square(triangles: Array, size: int) -> Array:
    """Lower triangles [..., pairs] as symmetric matrices [..., size, size]."""
    rows, columns = np.tril_indices(size)
    out = np.empty((*triangles.shape[:-1], size, size), np.float64)
    out[..., rows, columns] = triangles
    out[..., columns, rows] = triangles
    return out


class Gram:
    """Measures the Gram matrices of inputs of these dtypes: one for each row of `columns` elements.

    `anchored`: the first input is a vector itself (there is no base). Stretches are given to `measure` by any thread.
    """

    def __init__(self, dtypes: Sequence[str], count: int, columns: int, *, anchored: bool) -> None:
        self._codes = codes_of(dtypes)
        self._inputs, self._first = len(dtypes), 0 if anchored else 1
        self._count, self._columns = count, max(columns, 1)
        self.size = self._inputs - self._first
        self._pieces = self._room()

    def _room(self) -> Array:
        return np.empty((piece_count(self._count, self._columns), self.size * (self.size + 1) // 2), np.float64)

    def measure(self, start: int, stop: int, inputs: Sequence[Array]) -> None:
        """Measures elements [start, stop), of which `inputs` are the raw elements; ValueError where none may begin."""
        check_stretch(start, stop, self._count)
        tiles = array("q", places_of(inputs, stop - start))
        self._run(start, stop - start, tiles.buffer_info()[0])

    def _run(self, start: int, count: int, places: int) -> None:
        scratch = address(workspace(self._inputs * GRAIN + LANE_FLOATS))
        which, room = self._codes.place, address(self._pieces)
        gram_loop(places, which, self._inputs, self._first, start, count, self._columns, room, scratch)

    def result(self) -> Array:
        """The matrices [rows, vectors, vectors], float64, once every stretch is measured."""
        rows = self._count // self._columns
        return square(fold(self._pieces, rows, self._columns), self.size)


class ColumnGram(Gram):
    """Measures one Gram matrix for each column; a band of `BAND` rows is measured by one thread, in order."""

    def _room(self) -> Array:
        bands = -(-self._count // (self._columns * BAND))
        return np.zeros((bands, self.size * (self.size + 1) // 2, self._columns), np.float64)

    def measure(self, start: int, stop: int, inputs: Sequence[Array]) -> None:
        """Measures elements [start, stop), of which `inputs` are the raw elements."""
        tiles = array("q", places_of(inputs, stop - start))
        self._run(start, stop - start, tiles.buffer_info()[0])

    def _run(self, start: int, count: int, places: int) -> None:
        scratch = address(workspace(self._inputs * GRAIN))
        which, room = self._codes.place, address(self._pieces)
        gram_columns_loop(places, which, self._inputs, self._first, start, count, self._columns, room, scratch)

    def result(self) -> Array:
        """The matrices [columns, vectors, vectors], float64, once every stretch is measured."""
        total = np.zeros(self._pieces.shape[1:], np.float64)
        for band in self._pieces:
            total += band
        return square(np.ascontiguousarray(total.T), self.size)
