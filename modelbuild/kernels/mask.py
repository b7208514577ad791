"""Masks over the elements of a delta: what of it takes part in a vote.

An element that a mask leaves out becomes 0, whatever it was. Every mask is a function of the element's flat index and
of scores that are known, so it is the same in any stretch:

    everything      nothing is left out
    band            the scores between two thresholds (select.py): kept by `low` and not by `high`
    random          the elements whose random number (random.py) is below a probability
    marked          the elements whose bit is set in a tensor's bits (rank.py)

The scores of a band are the delta's own elements, or those of a score that is given, one for each element of a stretch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from modelbuild.kernels.combine import BLOCK, Table, table
from modelbuild.kernels.compile import inlined
from modelbuild.kernels.convert import address
from modelbuild.kernels.fma import Array, Pointer, floats, integers, words, words32
from modelbuild.kernels.magnitude import NAN, magnitude
from modelbuild.kernels.random import GROUP, uniforms
from modelbuild.kernels.select import ALL, NONE, Threshold

EVERYTHING, BAND, RANDOM, MARKED = range(4)
ENTRIES = 6
"""int64 values of a mask in a table: its kind, then its thresholds, or its key, or where its bits lie."""

DRAWN = BLOCK + 2 * GROUP
"""float32 that drawing a mask takes."""


@dataclass(frozen=True, slots=True)
class Mask:
    """One mask; see `everything`, `band`, `drawn` and `marked`."""

    kind: int
    low: Threshold = ALL
    high: Threshold = NONE
    key: int = 0
    probability: float = 1.0
    words: Array | None = None

    def row(self) -> list[int]:
        """The mask as a row of a table."""
        if self.kind == BAND:
            return [BAND, self.low.magnitude, self.low.cut, self.high.magnitude, self.high.cut, 0]
        if self.kind == RANDOM:
            signed = self.key - 2**64 if self.key >= 2**63 else self.key
            return [RANDOM, signed, 0, 0, 0, 0]
        return [self.kind, address(self.words) if self.words is not None else 0, 0, 0, 0, 0]


def everything() -> Mask:
    """A mask that leaves nothing out."""
    return Mask(EVERYTHING)


def band(low: Threshold, high: Threshold = NONE) -> Mask:
    """Keeps the scores that `low` keeps, without those that `high` keeps too."""
    return Mask(BAND, low=low, high=high)


def drawn(key: int, probability: float) -> Mask:
    """Keeps each element with a probability, by the random numbers of a 64-bit key."""
    return Mask(RANDOM, key=key, probability=probability)


def marked(words: Array) -> Mask:
    """Keeps the elements whose bit is set; `words`, uint64, are those of the whole tensor."""
    return Mask(MARKED, words=words)


def mask_table(masks: Sequence[Mask]) -> Table:
    """The masks as loops read them; the bits of marked ones must be kept by the caller."""
    return table(np.array([mask.row() for mask in masks], np.int64).reshape(-1, ENTRIES))


@inlined
def keep_above(least: int, low: int, high: int, keys: Pointer, values: Pointer) -> None:
    """Zeroes those of the values [low, high) whose key is below `least`."""
    for i in range(low, high):
        values[i] = values[i] if keys[i] >= np.uint32(least) else np.float32(0.0)


@inlined
def drop_above(least: int, low: int, high: int, keys: Pointer, values: Pointer) -> None:
    """Zeroes those of the values [low, high) whose key is `least` or above."""
    for i in range(low, high):
        values[i] = np.float32(0.0) if keys[i] >= np.uint32(least) else values[i]


@inlined
def by_scores(row: Pointer, start: int, size: int, scores: int, values: int, scratch: int) -> None:
    """Zeroes the values whose score the upper threshold keeps, or the lower one does not."""
    given, keys, target = floats(scores), words32(scratch), floats(values)
    for i in range(size):
        keys[i] = magnitude(given[i])
    if not (0 < row[2] - start < size or 0 < row[4] - start < size):
        # Of the scores at a threshold all are kept here, or none: so it is in all blocks but two.
        first, last = row[1] + int(row[2] <= start), row[3] + int(row[4] <= start)
        least, width = np.uint32(first), np.uint32(max(last - first, 0))
        for i in range(size):
            target[i] = target[i] if np.uint32(keys[i] - least) < width else np.float32(0.0)
        return
    middle = min(max(row[2] - start, 0), size)
    keep_above(row[1], 0, middle, keys, target)
    keep_above(row[1] + 1, middle, size, keys, target)
    if row[3] != NAN or row[4] != 0:
        middle = min(max(row[4] - start, 0), size)
        drop_above(row[3], 0, middle, keys, target)
        drop_above(row[3] + 1, middle, size, keys, target)


@inlined
def by_marks(bits: Pointer, start: int, size: int, values: int) -> None:
    """Zeroes the values whose bit is not set, word by word."""
    done = 0
    while done < size:
        place = start + done
        word = bits[place >> 6] >> np.uint64(place & 63)
        length = min(64 - (place & 63), size - done)
        target = floats(values + 4 * done)
        for i in range(length):
            kept = (word >> np.uint64(i)) & np.uint64(1)
            target[i] = target[i] if kept != np.uint64(0) else np.float32(0.0)
        done += length


@inlined
def draw(key: int, probability: float, start: int, size: int, values: int, scratch: int) -> None:
    """Zeroes the values whose random number is not below a probability."""
    group = start // GROUP
    uniforms(key, group, (start + size - 1) // GROUP + 1 - group, scratch)
    target, numbers = floats(values), floats(scratch + 4 * (start - group * GROUP))
    for i in range(size):
        target[i] = target[i] if numbers[i] < probability else np.float32(0.0)


@inlined
def apply(
    masks: int, index: int, probability: float, start: int, size: int, scores: int, values: int, scratch: int
) -> None:
    """Applies mask `index` to `size` values, the first of which has the flat index `start`.

    `scores` are those given for the same elements, or 0.
    """
    row = integers(masks + 8 * ENTRIES * index)
    if row[0] == BAND:
        by_scores(row, start, size, scores if scores != 0 else values, values, scratch)
    elif row[0] == RANDOM:
        draw(row[1], probability, start, size, values, scratch)
    elif row[0] == MARKED:
        by_marks(words(row[1]), start, size, values)
