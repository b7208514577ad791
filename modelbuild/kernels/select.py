"""Exact selection from a tensor that is seen in stretches, without sorting: its k largest scores.

Scores are ordered by magnitude.py: by magnitude, NaN first of all; of equal ones the lowest flat index comes first.
What is kept is said by a `Threshold`: all above a magnitude, and of those equal to it the ones before some flat index.
It is found in these passes, of which the third is rarely needed:

    1. count the upper 16 bits of all magnitudes: the bucket of the k-th largest is known
    2. count the lower 15 bits in that bucket: the magnitude of the k-th largest is known; and how many scores of each
       block of the tensor are in the bucket
    3. where not all of the equal scores are kept, and the bucket holds others too: count the equal ones of each block
    4. where not all of the equal scores are kept: look at the one block in which the last of them stands

Of a large tensor whose ranks are known beforehand a sample tells where the k-th largest is about; then one pass does
for the first two: it counts what is above the few buckets around that place, and the bits of what is inside. Where the
sample was wrong, which the counts show, everything is done as above: what is found is the same.

Counts are whole numbers, so threads, stretches and their order change nothing.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass

import numpy as np

from modelbuild.kernels.combine import places_of
from modelbuild.kernels.convert import CODES, address
from modelbuild.kernels.fma import Array
from modelbuild.kernels.magnitude import (
    LOWER,
    LOWER_BITS,
    NAN,
    SCRATCH,
    UPPER,
    ZEROS,
    equal_loop,
    lower_loop,
    place_loop,
    range_loop,
    upper_loop,
)
from modelbuild.kernels.vectors import GRAIN, check_stretch
from modelbuild.kernels.workspace import workspace

EVERYWHERE = 2**62
"""A flat index behind every tensor's end."""


LARGE = 1 << 18
"""Elements from which on a sample is taken first."""

SAMPLES, SHARE = 8, 16
"""In how many places a sample is taken, and how many times the elements of the sample the tensor has."""

BUCKETS = 16
"""The most buckets that a pass over what a sample pointed at counts."""


@dataclass(frozen=True, slots=True)
class Threshold:
    """Keeps the scores whose magnitude is above `magnitude`, or equal and before the flat index `cut`."""

    magnitude: int
    cut: int

    @property
    def value(self) -> float:
        """The magnitude as a float32; NaN where it is that of NaN."""
        return float(np.uint32(self.magnitude).view(np.float32))


ALL = Threshold(0, EVERYWHERE)
NONE = Threshold(NAN, 0)


def kept(density: float, count: int) -> int:
    """How many of `count` elements a density keeps: all of them from 1 on, at least 1 above 0."""
    if density >= 1.0 or count == 0:
        return count
    return max(1, int(density * count)) if density > 0.0 else 0


def crumbs(density: float, gamma: float, count: int) -> tuple[int, int]:
    """The ranks between which breadcrumbs keeps: as many as `density` says, below the share `gamma` of the largest.

    The first is that of the last that is kept, the second that of the last that is dropped for being large: fewer than
    `gamma` says where else too few would be left.
    """
    target = kept(density, count)
    lowest = max(0, count - target - int(gamma * count))
    return count - lowest, count - lowest - target


def quantile_rank(q: float, count: int) -> int:
    """The rank, from the largest on, of element int(q·(count − 1)) of `count` scores in rising order."""
    return count - int(q * (count - 1))


def bucket_of(histogram: Array, rank: int) -> tuple[int, int]:
    """The entry that the `rank`th largest (from 1 on) is in, and how many are in the entries above it."""
    above = np.cumsum(histogram[::-1])
    place = int(np.searchsorted(above, rank))
    return len(histogram) - 1 - place, int(above[place - 1]) if place else 0


def around(histogram: Array, seen: int, share: float) -> tuple[int, int] | None:
    """The entries, first and last, between which the score lies that this share of all scores is above or equal to.

    Told from the histogram of a sample of `seen` scores, with room for its error: five standard deviations of a random
    sample, and a little of all, since neighbours are alike. None where that is no place within the sample.
    """
    middle = share * seen
    margin = 5.0 * math.sqrt(middle * (1.0 - share)) + 0.001 * seen + 16.0
    if middle - margin < 1.0 or middle + margin > seen:
        return None
    return bucket_of(histogram, math.ceil(middle + margin))[0], bucket_of(histogram, int(middle - margin))[0]


class Tables:
    """A table of whole numbers for each thread that counts, and their sum."""

    def __init__(self, *shape: int) -> None:
        self._shape = shape
        self._own: dict[int, Array] = {}

    def own(self) -> int:
        """Where this thread's table lies, int64."""
        thread = threading.get_ident()
        if thread not in self._own:
            self._own[thread] = np.zeros(self._shape, np.int64)
        return address(self._own[thread])

    def total(self) -> Array:
        """All threads' counts together; their tables are given up."""
        # Most often there is one thread, whose table will do: fresh memory is paid for page by page.
        total = self._own.popitem()[1] if self._own else np.zeros(self._shape, np.int64)
        while self._own:
            total += self._own.popitem()[1]
        return total


@dataclass(frozen=True, slots=True)
class _Pass:
    """A stretch that is to be seen, and how: `see` is given the start of a piece, its scores, its size and scratch.

    The scores are four numbers: address and dtype of a base, or zeros, and of the input.
    """

    start: int
    stop: int
    see: Callable[[int, tuple[int, int, int, int], int, int], None]


@dataclass(frozen=True, slots=True)
class _Edge:
    """The score of a wanted rank: its magnitude, how many scores have it, and how many of these are kept.

    `blocks` is how many of them are in each block of the tensor, None where that has not been counted.
    """

    magnitude: int
    equal: int
    keep: int
    blocks: Array | None


class Selection:
    """Finds the thresholds that keep so many of a tensor's scores as `ranks` says, or says given how many are not 0.

    Scores are of `dtype`, or differences from a base of `base_dtype`. While `wanted` names a stretch, all of it is to
    be given to `show`, in pieces that begin at multiples of `GRAIN`, in any order and by any threads; then `advance` is
    called. With `ties` false, the equal scores at a threshold are kept all: for quantiles.
    """

    def __init__(
        self,
        count: int,
        ranks: Sequence[int] | Callable[[int], Sequence[int]],
        dtype: str,
        base_dtype: str | None = None,
        *,
        ties: bool = True,
    ) -> None:
        self._count, self._ranks, self._ties = count, ranks, ties
        self._base_code, self._code = CODES[base_dtype] if base_dtype else 0, CODES[dtype]
        self.thresholds: tuple[Threshold, ...] = ()
        self._passes = self._run()
        self._now: _Pass | None = next(self._passes, None)

    def wanted(self) -> tuple[int, int] | None:
        """The stretch [start, stop) that is to be shown next; None when the thresholds are known."""
        return None if self._now is None else (self._now.start, self._now.stop)

    def show(self, start: int, stop: int, scores: Array, base: Array | None = None) -> None:
        """Counts elements [start, stop), given raw; ValueError where none may begin."""
        assert self._now is not None
        check_stretch(start, stop, self._count)
        place, first = (*places_of((scores,), stop - start), 0)
        if base is not None:
            (first,) = places_of((base,), stop - start)
        self._now.see(start, (first, self._base_code, place, self._code), stop - start, address(workspace(SCRATCH)))

    def advance(self) -> None:
        """Draws the conclusions once all of the wanted stretch was shown."""
        self._now = next(self._passes, None)

    # --- the passes ---------------------------------------------------------------------------------------------------

    def _run(self) -> Generator[_Pass, None, None]:
        if self._count == 0:
            self.thresholds = tuple(NONE for _ in self._asked(0))
            return
        if not callable(self._ranks) and self._count >= LARGE:
            ranks = [min(rank, self._count) for rank in self._ranks]
            edges = yield from self._guessed(sorted({rank for rank in ranks if rank > 0}))
            if edges is not None:
                yield from self._conclude(ranks, edges)
                return
        upper = Tables(UPPER)
        yield self._whole(lambda _, scores, size, scratch: upper_loop(*scores, size, upper.own(), scratch))
        histogram = upper.total()
        zeros = int(histogram[ZEROS])
        histogram[ZEROS] = 0
        ranks = [min(rank, self._count) for rank in self._asked(self._count - zeros)]
        edges = yield from self._edges(histogram, sorted({rank for rank in ranks if rank > 0}))
        yield from self._conclude(ranks, edges)

    def _asked(self, nonzero: int) -> Sequence[int]:
        return self._ranks(nonzero) if callable(self._ranks) else self._ranks

    def _conclude(self, ranks: Sequence[int], edges: dict[int, _Edge]) -> Generator[_Pass, None, None]:
        """Sets the thresholds of the ranks, once it is known where equal scores part."""
        open_ends = {rank: edge for rank, edge in edges.items() if self._ties and edge.keep < edge.equal}
        cuts = yield from self._cuts(open_ends)
        found = {rank: Threshold(edge.magnitude, cuts.get(rank, EVERYWHERE)) for rank, edge in edges.items()}
        self.thresholds = tuple(found.get(rank, NONE) for rank in ranks)

    def _whole(self, see: Callable[[int, tuple[int, int, int, int], int, int], None]) -> _Pass:
        return _Pass(0, self._count, see)

    def _edges(self, histogram: Array, ranks: Sequence[int]) -> Generator[_Pass, None, dict[int, _Edge]]:
        """The edge of each rank, from the histogram of the upper bits and a pass over the lower ones."""
        places = {rank: bucket_of(histogram, rank) for rank in ranks}
        buckets = sorted({bucket for bucket, _ in places.values()})
        if not buckets:
            return {}
        uppers = np.array(buckets, np.int64)
        blocks = np.zeros((len(buckets), -(-self._count // GRAIN)), np.int64)
        lower = Tables(len(buckets), LOWER)

        def see(start: int, scores: tuple[int, int, int, int], size: int, scratch: int) -> None:
            rows = np.array([address(row[start // GRAIN :]) for row in blocks], np.int64)
            lower_loop(*scores, size, address(uppers), len(buckets), lower.own(), address(rows), scratch)

        yield self._whole(see)
        histograms = lower.total()
        edges = {}
        for rank, (bucket, before) in places.items():
            row = buckets.index(bucket)
            low, above = bucket_of(histograms[row], rank - before)
            equal = int(histograms[row][low])
            alone = equal == histograms[row].sum()
            magnitude = bucket << LOWER_BITS | low
            edges[rank] = _Edge(magnitude, equal, rank - before - above, blocks[row] if alone else None)
        return edges

    def _guessed(self, ranks: Sequence[int]) -> Generator[_Pass, None, dict[int, _Edge] | None]:
        """The edge of each rank, from a sample and a pass over what it points at; None where it is not there."""
        sample = Tables(UPPER)
        size = max(GRAIN, self._count // (SHARE * SAMPLES) // GRAIN * GRAIN)
        for index in range(SAMPLES):
            start = index * self._count // SAMPLES // GRAIN * GRAIN
            yield _Pass(
                start, start + size, lambda _, scores, size, scratch: upper_loop(*scores, size, sample.own(), scratch)
            )
        histogram = sample.total()
        histogram[ZEROS] = 0
        found = {rank: around(histogram, SAMPLES * size, rank / self._count) for rank in ranks}
        ranges = {rank: place for rank, place in found.items() if place is not None and place[1] - place[0] < BUCKETS}
        if len(ranges) < len(ranks):
            return None
        counted = yield from self._ranges(sorted(set(ranges.values())))
        edges = {rank: self._edge(rank, ranges[rank][0], *counted[ranges[rank]]) for rank in ranks}
        known = {rank: edge for rank, edge in edges.items() if edge is not None}
        return known if len(known) == len(edges) else None

    def _ranges(
        self, ranges: Sequence[tuple[int, int]]
    ) -> Generator[_Pass, None, dict[tuple[int, int], tuple[int, Array, Array]]]:
        """For each range of buckets how many scores are above it, and of each bucket the lower bits and the blocks."""
        count = -(-self._count // GRAIN)
        above = {place: Tables(1) for place in ranges}
        lower = {place: Tables(place[1] - place[0] + 1, LOWER) for place in ranges}
        blocks = {place: np.zeros((place[1] - place[0] + 1, count), np.int64) for place in ranges}

        def see(start: int, scores: tuple[int, int, int, int], size: int, scratch: int) -> None:
            for place in ranges:
                rows = address(blocks[place].reshape(-1)[start // GRAIN :])
                buckets = place[1] - place[0] + 1
                range_loop(
                    *scores, size, place[0], buckets, above[place].own(), lower[place].own(), rows, count, scratch
                )

        yield self._whole(see)
        return {place: (int(above[place].total()[0]), lower[place].total(), blocks[place]) for place in ranges}

    def _edge(self, rank: int, first: int, above: int, histograms: Array, blocks: Array) -> _Edge | None:
        """The edge of a rank among the buckets from `first` on; None if it is not there."""
        inside = histograms.sum(axis=1)
        if not above < rank <= above + int(inside.sum()):
            return None
        row, before = bucket_of(inside, rank - above)
        low, over = bucket_of(histograms[row], rank - above - before)
        equal = int(histograms[row][low])
        magnitude = (first + row) << LOWER_BITS | low
        return _Edge(magnitude, equal, rank - above - before - over, blocks[row] if equal == inside[row] else None)

    def _cuts(self, edges: dict[int, _Edge]) -> Generator[_Pass, None, dict[int, int]]:
        """The flat index, for each rank, before which equal scores are kept."""
        counted = {edge.magnitude: edge.blocks for edge in edges.values()}
        missing = {key: np.zeros(-(-self._count // GRAIN), np.int64) for key, found in counted.items() if found is None}

        def see(start: int, scores: tuple[int, int, int, int], size: int, scratch: int) -> None:
            for magnitude, blocks in missing.items():
                equal_loop(*scores, size, magnitude, address(blocks[start // GRAIN :]), scratch)

        if missing:
            yield self._whole(see)
        cuts = {}
        for rank, edge in edges.items():
            found = counted[edge.magnitude]
            blocks = np.cumsum(missing[edge.magnitude] if found is None else found)
            block = int(np.searchsorted(blocks, edge.keep))
            cuts[rank] = yield from self._place(
                block, edge.magnitude, edge.keep - (int(blocks[block - 1]) if block else 0)
            )
        return cuts

    def _place(self, block: int, magnitude: int, number: int) -> Generator[_Pass, None, int]:
        """The flat index behind the `number`th score of this magnitude in a block."""
        start = block * GRAIN
        found: list[int] = []

        def see(_: int, scores: tuple[int, int, int, int], size: int, scratch: int) -> None:
            found.append(place_loop(*scores, size, magnitude, number, scratch))

        yield _Pass(start, min(start + GRAIN, self._count), see)
        return start + found[0]
