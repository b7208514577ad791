"""Exact selection from a tensor that is seen in stretches, without sorting it: its k largest scores.

Scores are ordered by magnitude.py: by magnitude, NaN first of all; of equal ones the lowest flat index comes first.
What is kept is said by a `Threshold`: all above a magnitude, and of those equal to it the ones before some flat index.

A sample tells about where the scores of the wanted ranks are, and one pass finds them there (sample.py, probe.py). Of a
tensor that is not large everything is kept in that pass. Where the sample was wrong, which the counts show, or where
too many different scores are near, they are found by counting all:

    1. count the upper 16 bits of all magnitudes: the bucket of the k-th largest is known
    2. count the lower 15 bits in that bucket: the magnitude of the k-th largest is known; and how many scores of each
       block of the tensor are in the bucket
    3. where not all of the equal scores are kept, and the bucket holds others too: count the equal ones of each block

What is found is the same. Where not all of the equal scores are kept, the one block in which the last of them stands is
looked at in the end.

Counts are whole numbers, so threads, stretches and their order change nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import TypeAlias

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
    upper_loop,
)
from modelbuild.kernels.probe import Edge, Probe, Probing, place_in
from modelbuild.kernels.sample import ROOM, Sample
from modelbuild.kernels.vectors import GRAIN, check_stretch
from modelbuild.kernels.workspace import Tables, workspace

EVERYWHERE = 2**62
"""A flat index behind every tensor's end."""

LARGE = 1 << 18
"""Elements from which on a sample is taken first."""

NONZERO = Probe(0, 0, (0,))
"""Counts the scores that are not 0: they are above its range."""

See: TypeAlias = "Callable[[int, tuple[int, int, int, int], int, int], None]"
"""Takes the start of a piece, its scores, its size, and scratch. Scores are four numbers: address and dtype of a base,
or zeros, and of the input."""


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


def room(count: int) -> int:
    """How many of `count` scores are kept at most, for each rank, while it is looked for: magnitudes of 4 bytes."""
    return max(min(count, LARGE), count // ROOM)


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
    place, number = place_in(histogram[::-1], rank)
    return len(histogram) - 1 - place, rank - number


@dataclass(frozen=True, slots=True)
class _Pass:
    """The stretches [start, stop) that are to be seen, and what sees them."""

    stretches: tuple[tuple[int, int], ...]
    see: See


class Selection:
    """Finds the thresholds that keep so many of a tensor's scores as `ranks` says, or says given how many are not 0.

    Scores are of `dtype`, or differences from a base of `base_dtype`. While `wanted` names stretches, they are to be
    given to `show`, in pieces that begin at multiples of `GRAIN`, in any order and by any threads; then `advance` is
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

    def wanted(self) -> tuple[tuple[int, int], ...]:
        """The stretches [start, stop) that are to be shown next; none when the thresholds are known."""
        return () if self._now is None else self._now.stretches

    def show(self, start: int, stop: int, scores: Array, base: Array | None = None) -> None:
        """Counts elements [start, stop), given raw; ValueError where none may begin."""
        assert self._now is not None
        check_stretch(start, stop, self._count)
        if start == stop:
            return
        place, first = (*places_of((scores,), stop - start), 0)
        if base is not None:
            (first,) = places_of((base,), stop - start)
        self._now.see(start, (first, self._base_code, place, self._code), stop - start, address(workspace(SCRATCH)))

    def advance(self) -> None:
        """Draws the conclusions once all of the wanted stretches were shown."""
        self._now = next(self._passes, None)

    # --- the passes ---------------------------------------------------------------------------------------------------

    def _run(self) -> Generator[_Pass, None, None]:
        if self._count == 0 or not (callable(self._ranks) or any(self._asked(0))):
            self.thresholds = tuple(NONE for _ in self._asked(0))
            return
        found = yield from self._probed()
        ranks, edges = found if found is not None else (yield from self._counted())
        # Only where equal scores part it matters where they stand.
        open_ends = {rank: edge for rank, edge in edges.items() if self._ties and edge.keep < edge.equal}
        cuts = yield from self._cuts(open_ends)
        known = {rank: Threshold(edge.magnitude, cuts.get(rank, EVERYWHERE)) for rank, edge in edges.items()}
        self.thresholds = tuple(known.get(rank, NONE) for rank in ranks)

    def _asked(self, nonzero: int) -> list[int]:
        """The ranks, 0 and all at the ends, where so many scores are not 0."""
        ranks = self._ranks(nonzero) if callable(self._ranks) else self._ranks
        return [max(0, min(rank, self._count)) for rank in ranks]

    def _whole(self, see: See) -> _Pass:
        return _Pass(((0, self._count),), see)

    def _probed(self) -> Generator[_Pass, None, tuple[list[int], dict[int, Edge]] | None]:
        """The ranks and their edges, from a pass over where they are thought to be; None if they are not there."""
        probes = [Probe(0, NAN)] if self._count < LARGE else (yield from self._sampled())
        if probes is None:
            return None
        counted = [NONZERO] if callable(self._ranks) else []
        probing = Probing(self._count, [*counted, *probes], room(self._count))
        yield self._whole(probing.see)
        results = probing.results()
        nonzero = results[0].above if counted else self._count
        ranks = self._asked(nonzero)
        wanted = sorted({rank for rank in ranks if rank > 0})
        edges = {rank: edge for result in results[len(counted) :] for rank, edge in result.edges(wanted).items()}
        return (ranks, edges) if len(edges) == len(wanted) else None

    def _sampled(self) -> Generator[_Pass, None, list[Probe] | None]:
        """Where to look for the ranks."""
        sample = Sample(self._count)
        yield _Pass(sample.stretches, sample.see)
        ranks = sorted({rank for rank in self._asked(sample.nonzero) if rank > 0})
        return sample.probes(ranks, callable(self._ranks))

    def _counted(self) -> Generator[_Pass, None, tuple[list[int], dict[int, Edge]]]:
        """The ranks and their edges, from counting all scores by their upper bits, then by their lower ones."""
        upper = Tables(UPPER)
        yield self._whole(lambda _, scores, size, scratch: upper_loop(*scores, size, upper.own(), scratch))
        histogram = upper.total()
        zeros = int(histogram[ZEROS])
        histogram[ZEROS] = 0
        ranks = self._asked(self._count - zeros)
        edges = yield from self._edges(histogram, sorted({rank for rank in ranks if rank > 0}))
        return ranks, edges

    def _edges(self, histogram: Array, ranks: Sequence[int]) -> Generator[_Pass, None, dict[int, Edge]]:
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
            keep = rank - before - above
            # Where the bucket has them alone, the blocks of the bucket are theirs.
            last = place_in(blocks[row], keep) if equal == histograms[row].sum() else None
            edges[rank] = Edge(bucket << LOWER_BITS | low, equal, keep, last)
        return edges

    def _cuts(self, edges: dict[int, Edge]) -> Generator[_Pass, None, dict[int, int]]:
        """The flat index, for each rank, before which equal scores are kept."""
        magnitudes = {edge.magnitude for edge in edges.values() if edge.last is None}
        missing = {magnitude: np.zeros(-(-self._count // GRAIN), np.int64) for magnitude in sorted(magnitudes)}

        def see(start: int, scores: tuple[int, int, int, int], size: int, scratch: int) -> None:
            for magnitude, blocks in missing.items():
                equal_loop(*scores, size, magnitude, address(blocks[start // GRAIN :]), scratch)

        if missing:
            yield self._whole(see)
        cuts = {}
        for rank, edge in edges.items():
            block, number = edge.last or place_in(missing[edge.magnitude], edge.keep)
            cuts[rank] = yield from self._place(block, edge.magnitude, number)
        return cuts

    def _place(self, block: int, magnitude: int, number: int) -> Generator[_Pass, None, int]:
        """The flat index behind the `number`th score of this magnitude in a block."""
        start = block * GRAIN
        found: list[int] = []

        def see(_: int, scores: tuple[int, int, int, int], size: int, scratch: int) -> None:
            found.append(place_loop(*scores, size, magnitude, number, scratch))

        yield _Pass(((start, min(start + GRAIN, self._count)),), see)
        return start + found[0]
