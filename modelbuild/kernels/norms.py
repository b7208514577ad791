"""Norms of deltas before and after they are masked: what votes are rescaled and weighted by.

For each model Σ |d|, Σ |Md| and Σ (Md)² of its differences from the base, float64, formed as gram.py forms its sums.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence

import numpy as np

from modelbuild.kernels.combine import places_of, table
from modelbuild.kernels.compile import kernel
from modelbuild.kernels.convert import address
from modelbuild.kernels.fma import Array, doubles, floats
from modelbuild.kernels.gram import fold, piece_count
from modelbuild.kernels.mask import DRAWN, Mask, apply, mask_table
from modelbuild.kernels.sums import LANE_FLOATS, magnitude_sum, square_sum
from modelbuild.kernels.vectors import GRAIN, check_stretch, codes_of, spread
from modelbuild.kernels.workspace import workspace

SUMS = 3
"""Of each model."""

LEAST = 1e-7
"""A smaller norm is not rescaled, nor rescaled to."""


@kernel("void(int64, int64, int64, int64, int64, int64, int64, int64, int64, int64)")
def norms_loop(
    places: int,
    codes: int,
    models: int,
    masks: int,
    probabilities: int,
    scores: int,
    start: int,
    count: int,
    pieces: int,
    scratch: int,
) -> None:
    """The sums of each block of elements [start, start + count), of each model, into the tensor's pieces."""
    lanes = scratch + 4 * DRAWN
    vectors = lanes + 4 * LANE_FLOATS
    chances = floats(probabilities)
    for begin in range(0, count, GRAIN):
        size = min(GRAIN, count - begin)
        spread(places, codes, models + 1, begin, size, vectors)
        block = (start + begin) // GRAIN
        given = scores + 4 * begin if scores else 0
        for model in range(models):
            row = vectors + 4 * size * (model + 1)
            sums = doubles(pieces + 8 * SUMS * (block * models + model))
            sums[0] = magnitude_sum(row, size, lanes)
            apply(masks, model, chances[model], start + begin, size, given, row, scratch)
            sums[1] = magnitude_sum(row, size, lanes)
            sums[2] = square_sum(row, size, lanes)


class Norms:
    """Measures the norms of models' deltas; `dtypes` are those of the base and of the models."""

    def __init__(self, dtypes: Sequence[str], count: int, masks: Sequence[Mask]) -> None:
        self._codes = codes_of(dtypes)
        self._masks, self._table = tuple(masks), mask_table(masks)
        self._chances = table(np.array([mask.probability for mask in masks], np.float32))
        self._count = count
        self._pieces = np.empty((piece_count(count, max(count, 1)), len(masks) * SUMS), np.float64)

    def measure(self, start: int, stop: int, inputs: Sequence[Array], scores: Array | None = None) -> None:
        """Measures elements [start, stop), given raw, by any thread; ValueError where none may begin."""
        check_stretch(start, stop, self._count)
        tiles = array("q", places_of(inputs, stop - start))
        given = places_of((scores,), stop - start)[0] if scores is not None else 0
        models = len(self._masks)
        scratch = address(workspace(DRAWN + LANE_FLOATS + (models + 1) * GRAIN))
        table_, chances, pieces = self._table.place, self._chances.place, address(self._pieces)
        norms_loop(
            tiles.buffer_info()[0],
            self._codes.place,
            models,
            table_,
            chances,
            given,
            start,
            stop - start,
            pieces,
            scratch,
        )

    def result(self) -> Array:
        """Σ |d|, Σ |Md| and Σ (Md)² of each model, [models, 3], float64, once every stretch is measured."""
        if not self._count:
            return np.zeros((len(self._masks), SUMS))
        return fold(self._pieces, 1, self._count).reshape(-1, SUMS)


def rescaling(before: float, after: float) -> float:
    """What a masked delta is multiplied with, so that Σ |Md| becomes Σ |d|; 1 where one of them is nearly 0."""
    return 1.0 if before < LEAST or after < LEAST else before / after
