"""Finding scores of known ranks in one pass, where it is known about which magnitude they have.

A `Probe` is a range of magnitudes, and a few in it that many scores have. A pass counts the scores above the range, and
in each block of the tensor those that have one of the few: comparisons, sixty-four at once. The other scores of the
range, which are to be few, are kept. Of differences between models in 16 bits hundreds of thousands are equal, of
float32 hardly any: neither takes long.

Counts are whole numbers and scores are kept with the block that they are of: stretches and threads change nothing.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from modelbuild.kernels.combine import BLOCK, table
from modelbuild.kernels.compile import kernel
from modelbuild.kernels.convert import address
from modelbuild.kernels.fma import Array, integers, words, words32
from modelbuild.kernels.lanes import LANES, fill_lanes, pick, population, within
from modelbuild.kernels.magnitude import NAN, measure
from modelbuild.kernels.ranked import ranked
from modelbuild.kernels.vectors import GRAIN
from modelbuild.kernels.workspace import Tables, workspace

COMMON = 4
"""The most magnitudes of a probe that are counted by themselves."""

FIELDS = 3 + COMMON
"""int64 values of a probe as loops read it: the range's first and what is behind its last, number and common ones."""


@dataclass(frozen=True, slots=True)
class Probe:
    """The magnitudes from `first` to `last`; of these at most `COMMON` are `common`, falling, and counted."""

    first: int
    last: int
    common: tuple[int, ...] = ()

    def row(self) -> list[int]:
        """The probe as a row of a table."""
        unused = [0] * (COMMON - len(self.common))
        return [self.first, self.last + 1, len(self.common), *self.common, *unused]


@dataclass(frozen=True, slots=True)
class Edge:
    """The score of a wanted rank: its magnitude, how many scores have it, and how many of these are kept.

    `last` is where the last of those stands: the block, and how many of them this one has up to there. None where that
    has not been counted.
    """

    magnitude: int
    equal: int
    keep: int
    last: tuple[int, int] | None


def place_in(counts: Array, number: int) -> tuple[int, int]:
    """Which of the entries the `number`th is counted in, and its number there."""
    up_to = np.cumsum(counts)
    entry = int(np.searchsorted(up_to, number))
    return entry, number - int(up_to[entry] - counts[entry])


@kernel("void(int64, int64, int64, int64, int64, int64, int64, int64, int64, int64, int64, int64, int64)")
def probe_loop(
    base: int,
    base_code: int,
    place: int,
    code: int,
    count: int,
    probes: int,
    number: int,
    above: int,
    alike: int,
    stride: int,
    found: int,
    kept: int,
    scratch: int,
) -> None:
    """For each probe, int64: how many scores are above its range, and of each block how many have a common magnitude.

    The latter go to `alike`, int64, `stride` entries for each of `COMMON` magnitudes of each probe. The others of its
    range go to `found`, which has room for `count` uint32 for each probe; how many of these there are up to each
    block's end to `kept`, int64.
    """
    higher, ends = integers(above), integers(kept)
    keys, bits = words32(scratch + 8 * BLOCK), words(scratch)
    blocks = (count + BLOCK - 1) // BLOCK
    for begin in range(0, count, BLOCK):
        size, block = min(BLOCK, count - begin), begin // BLOCK
        measure(base, base_code, place, code, begin, size, keys, scratch)
        groups = fill_lanes(keys, size)
        for probe in range(number):
            row = integers(probes + 8 * FIELDS * probe)
            for group in range(groups):
                higher[probe] += population(within(keys, group * LANES, row[1], NAN + 1 - row[1]))
                bits[group] = within(keys, group * LANES, row[0], row[1] - row[0])
            for index in range(row[2]):
                same = integers(alike + 8 * stride * (COMMON * probe + index))
                same[block] = 0
                for group in range(groups):
                    equal = within(keys, group * LANES, row[3 + index], 1)
                    same[block] += population(equal)
                    bits[group] &= ~equal
            entry = probe * blocks + block
            last = ends[entry - 1] if block else 0
            for group in range(groups):
                last += pick(bits[group], keys, group * LANES, words32(found + 4 * (count * probe + last)))
            ends[entry] = last


@dataclass(frozen=True, slots=True)
class Piece:
    """What was kept of a stretch: magnitudes, uint32, and how many there are up to each block's end."""

    ends: Array
    keys: Array


@dataclass(slots=True)
class Found:
    """What came of a probe: the scores above its range, those of each common magnitude in each block, and the others.

    The others are `near`, in number; they are kept as `pieces`, by the start of the stretch, while they are few.
    """

    common: tuple[int, ...]
    alike: Array
    above: int = 0
    near: int = 0
    pieces: dict[int, Piece] = field(default_factory=dict)

    def edges(self, ranks: Sequence[int]) -> dict[int, Edge]:
        """The edges of those of the ranks that are in the range; of none where too many scores are in it."""
        kept = [piece.keys for piece in self.pieces.values()]
        if sum(map(len, kept)) < self.near:
            return {}
        keys = np.concatenate([np.empty(0, np.uint32), *kept])
        places = {rank: rank - self.above for rank in ranks}
        inside = {rank: place for rank, place in places.items() if 0 < place <= len(keys) + int(self.alike.sum())}
        found = {rank: self._among_common(place, keys) for rank, place in inside.items()}
        left = {rank: place for rank, place in found.items() if isinstance(place, int)}
        magnitudes = dict(zip(left, ranked(keys, list(left.values())), strict=True))
        return {
            rank: self._among_kept(edge, magnitudes[rank], keys) if isinstance(edge, int) else edge
            for rank, edge in found.items()
        }

    def _among_common(self, place: int, keys: Array) -> Edge | int:
        """The edge at a place, from 1 on, in the range if it has a common magnitude; else its place among the kept."""
        for magnitude, blocks in zip(self.common, self.alike, strict=False):
            before, equal = int(np.count_nonzero(keys > magnitude)), int(blocks.sum())
            if place <= before:
                break
            if place <= before + equal:
                return Edge(magnitude, equal, place - before, place_in(blocks, place - before))
            place -= equal
        return place

    def _among_kept(self, place: int, magnitude: int, keys: Array) -> Edge:
        """The edge at a place among the kept, which has this magnitude."""
        equal, above = (int(np.count_nonzero(chosen)) for chosen in (keys == magnitude, keys > magnitude))
        return Edge(magnitude, equal, place - above, self._place(magnitude, place - above))

    def _place(self, magnitude: int, number: int) -> tuple[int, int]:
        """The block of the `number`th of the kept scores of a magnitude, and its number there."""
        starts = sorted(self.pieces)
        counts = np.array([np.count_nonzero(self.pieces[start].keys == magnitude) for start in starts])
        index, number = place_in(counts, number)
        piece = self.pieces[starts[index]]
        blocks = np.searchsorted(piece.ends, np.flatnonzero(piece.keys == magnitude), "right")
        block = int(blocks[number - 1])
        return starts[index] // GRAIN + block, number - int(np.searchsorted(blocks, block))


class Probing:
    """A pass with probes over a tensor of `count` scores, given in stretches to `see`, by any threads.

    Of each probe's range at most `room` scores are kept.
    """

    def __init__(self, count: int, probes: Sequence[Probe], room: int) -> None:
        self._room, self._lock = room, threading.Lock()
        self._rows = table(np.array([probe.row() for probe in probes], np.int64).reshape(-1, FIELDS))
        self._above = Tables(len(probes))
        self._alike = np.zeros((len(probes), COMMON, -(-count // GRAIN)), np.int64)
        self._found = [Found(probe.common, alike) for probe, alike in zip(probes, self._alike, strict=True)]

    def see(self, start: int, scores: tuple[int, int, int, int], size: int, scratch: int) -> None:
        """Counts the scores of a stretch that begins at `start`, and keeps what is to be kept."""
        number, blocks = len(self._found), -(-size // GRAIN)
        keys = workspace(number * size, "kept").view(np.uint32)
        ends = np.zeros((number, blocks), np.int64)
        alike = address(self._alike.reshape(-1)[start // GRAIN :])
        places = (self._above.own(), alike, self._alike.shape[2], address(keys), address(ends))
        probe_loop(*scores, size, self._rows.place, number, *places, scratch)
        for index, found in enumerate(self._found):
            last = int(ends[index, -1])
            with self._lock:
                found.near += last
                fits = found.near <= self._room
            if last and fits:
                found.pieces[start] = Piece(ends[index], keys[index * size : index * size + last].copy())

    def results(self) -> Sequence[Found]:
        """What came of each probe, once every stretch was seen."""
        for found, above in zip(self._found, self._above.total().tolist(), strict=True):
            found.above = above
        return self._found
