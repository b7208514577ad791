"""Ranks within rows, and the random marks that della draws by them.

A score's rank is the number of scores of its row that come before it: smaller ones (magnitude.py), and of equal ones
those of lower index. Rows are sorted by the digits of their magnitudes, the lowest first; bits that all scores of a row
have in common, as the lower ones of bfloat16 differences, cost nothing.
"""

from __future__ import annotations

import numpy as np

from modelbuild.kernels.combine import BLOCK, places_of
from modelbuild.kernels.compile import inlined, kernel
from modelbuild.kernels.convert import CODES, address
from modelbuild.kernels.fma import Array, floats, integers, words, words32
from modelbuild.kernels.magnitude import magnitude, score
from modelbuild.kernels.random import GROUP, uniforms
from modelbuild.kernels.workspace import workspace

BINS = 2048
"""Entries of the histogram of a digit of 11 bits."""

WORD = 64


@inlined
def load_keys(
    base: int, base_code: int, place: int, code: int, first: int, columns: int, keys: int, scratch: int
) -> int:
    """Fills `keys`, int64, with magnitude·2³² + index for a row that begins at `first`; gives the bits that vary."""
    row = integers(keys)
    for begin in range(0, columns, BLOCK):
        size = min(BLOCK, columns - begin)
        values = score(base, base_code, place, code, first + begin, size, scratch)
        for i in range(size):
            row[begin + i] = (np.int64(magnitude(values[i])) << 32) | (begin + i)
    varying = 0
    for i in range(columns):
        varying |= row[i] ^ row[0]
    return varying >> 32


@inlined
def digit_width(varying: int, columns: int) -> int:
    """How many bits to sort by at a time: so that digits are few, and clearing their bins costs less than sorting."""
    first, last = 0, 0
    for place in range(31):
        if (varying >> place) & 1:
            last = place + 1
        elif last == 0:
            first = place + 1
    most = 8 if columns < 1024 else (10 if columns < 4096 else 11)
    bits = last - first
    digits = max((bits + most - 1) // most, 1)
    return (bits + digits - 1) // digits


@inlined
def sort_row(columns: int, keys: int, other: int, varying: int, bins: int) -> int:
    """Sorts the keys of a row by the bits that vary, and returns where the sorted ones are: at `keys` or at `other`."""
    counts = integers(bins)
    width = digit_width(varying, columns)
    mask = (1 << width) - 1
    shift = 32
    while varying != 0:
        while varying & 1 == 0:
            varying >>= 1
            shift += 1
        source, target = integers(keys), integers(other)
        for i in range(mask + 1):
            counts[i] = 0
        for i in range(columns):
            counts[(source[i] >> shift) & mask] += 1
        total = 0
        for i in range(mask + 1):
            here = counts[i]
            counts[i] = total
            total += here
        for i in range(columns):
            key = source[i]
            digit = (key >> shift) & mask
            target[counts[digit]] = key
            counts[digit] += 1
        keys, other = other, keys
        varying >>= width
        shift += width
    return keys


@inlined
def rank_row(
    base: int, base_code: int, place: int, code: int, first: int, columns: int, ranks: int, scratch: int
) -> None:
    """The ranks, uint32, of a row that begins at element `first`."""
    keys = scratch + 8 * BLOCK
    other = keys + 8 * columns
    bins = other + 8 * columns
    varying = load_keys(base, base_code, place, code, first, columns, keys, scratch)
    row = integers(sort_row(columns, keys, other, varying, bins))
    out = words32(ranks)
    for i in range(columns):
        out[row[i] & 0xFFFF_FFFF] = np.uint32(i)


@kernel("void(int64, int64, int64, int64, int64, int64, int64, int64)")
def ranks_loop(
    base: int, base_code: int, place: int, code: int, rows: int, columns: int, ranks: int, scratch: int
) -> None:
    """The ranks, uint32, of whole rows."""
    for row in range(rows):
        rank_row(base, base_code, place, code, row * columns, columns, ranks + 4 * row * columns, scratch)


@kernel(
    "void(int64, int64, int64, int64, int64, int64, int64, uint64, float32, float32, int64, int64)",
)
def marks_loop(
    base: int,
    base_code: int,
    place: int,
    code: int,
    start: int,
    rows: int,
    columns: int,
    key: int,
    least: float,
    epsilon: float,
    marks: int,
    scratch: int,
) -> None:
    """Sets, in the words of the tensor's bits, those of whole rows that begin at element `start`, as `Marks` says."""
    bits = words(marks)
    ranks = words32(scratch)
    drawn = scratch + 4 * columns
    work = drawn + 4 * (columns + 2 * GROUP)
    for row in range(rows):
        rank_row(base, base_code, place, code, row * columns, columns, scratch, work)
        first = start + row * columns
        group = first // GROUP
        uniforms(key, group, (first + columns - 1) // GROUP + 1 - group, drawn)
        numbers = floats(drawn + 4 * (first - group * GROUP))
        last = np.float32(max(columns - 1, 1))
        for i in range(columns):
            share = np.float32(ranks[i]) / last if columns > 1 else np.float32(0.5)
            keep = np.uint64(numbers[i] < least + share * np.float32(2.0) * epsilon)
            bits[(first + i) >> 6] |= keep << np.uint64((first + i) & 63)


def _scratch(columns: int) -> int:
    """Address of this thread's room for the loops."""
    floats_of_rows = 2 * BLOCK + 4 * columns + 2 * BINS + columns + columns + 2 * GROUP
    return address(workspace(floats_of_rows + 2))


def ranks(columns: int, dtype: str, scores: Array, base_dtype: str | None = None, base: Array | None = None) -> Array:
    """The ranks, uint32, of the scores of whole rows, given raw; of their differences where there is a base."""
    found = np.empty(scores.size, np.uint32)
    (place,) = places_of((scores,), scores.size)
    first = places_of((base,), scores.size)[0] if base is not None else 0
    first_code = CODES[base_dtype] if base_dtype else 0
    rows = scores.size // columns if columns else 0
    ranks_loop(first, first_code, place, CODES[dtype], rows, columns, address(found), _scratch(columns))
    return found


class Marks:
    """Which elements of a tensor della keeps, one bit for each.

    The scores, differences from a base, are kept with a probability that rises with their rank r in their row of C,
    from density − epsilon to density + epsilon: (density − epsilon) + r/(C − 1)·2·epsilon, in float32, where an
    element's random number is below it. In a row of one it is the density.
    """

    def __init__(
        self, count: int, columns: int, dtypes: tuple[str, str], key: int, density: float, epsilon: float
    ) -> None:
        self._count, self._columns, self._key = count, max(columns, 1), key
        self._codes = [CODES[dtype] for dtype in dtypes]
        self._least, self._epsilon = np.float32(density - epsilon), np.float32(epsilon)
        self.words = np.zeros(-(-count // WORD), np.uint64)

    def draw(self, start: int, stop: int, base: Array, scores: Array) -> None:
        """Marks whole rows, elements [start, stop), by any thread; ValueError unless they begin at whole words."""
        if start % WORD or start % self._columns or (stop - start) % self._columns:
            raise ValueError(
                f"[{start}, {stop}) is not made of whole rows of {self._columns} from a multiple of {WORD}"
            )
        if stop % WORD and stop != self._count:
            raise ValueError(f"[{start}, {stop}) ends within a word of {WORD}")
        first, place = places_of((base, scores), stop - start)
        rows = (stop - start) // self._columns
        codes, work = self._codes, _scratch(self._columns)
        least, epsilon, marks = self._least, self._epsilon, address(self.words)
        marks_loop(first, codes[0], place, codes[1], start, rows, self._columns, self._key, least, epsilon, marks, work)
