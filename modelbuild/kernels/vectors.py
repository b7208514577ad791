"""The vectors that methods measure and mix: the first input, and each other input's difference from it.

The difference is x − x₀, rounded to float32. It is what the methods call a delta where the first input is the base.
Without a base the first model takes its place, and is a vector itself: all models lie in the span of the first and
the differences from it, and what models of one family differ by is not lost beside what they have in common.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from modelbuild.kernels.combine import BLOCK, Table, table
from modelbuild.kernels.compile import inlined
from modelbuild.kernels.convert import CODES, expand
from modelbuild.kernels.fma import floats, integers

GRAIN = BLOCK
"""Elements, counted from the tensor's start, that are measured together: a stretch to measure begins at a multiple."""


@inlined
def spread(places: int, codes: int, inputs: int, start: int, size: int, vectors: int) -> None:
    """Fills `vectors`, one row of `size` float32 for each input: the first as it is, of the others the differences."""
    place, code = integers(places), integers(codes)
    first = floats(vectors)
    expand(place[0], code[0], start, size, first)
    for index in range(1, inputs):
        row = floats(vectors + 4 * size * index)
        expand(place[index], code[index], start, size, row)
        for i in range(size):
            row[i] = row[i] - first[i]


def codes_of(dtypes: Sequence[str]) -> Table:
    """Dtypes as loops know them."""
    return table(np.array([CODES[dtype] for dtype in dtypes], np.int64))


def check_stretch(start: int, stop: int, count: int) -> None:
    """ValueError if [start, stop) of `count` elements is no stretch that may be measured."""
    if start % GRAIN or (stop % GRAIN and stop != count) or not 0 <= start <= stop <= count:
        raise ValueError(f"[{start}, {stop}) of {count} elements is not made of whole blocks of {GRAIN}")
