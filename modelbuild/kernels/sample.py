"""A sample of a tensor's scores, which says about which magnitude a score of some rank has.

It is taken in stretches that lie evenly over the tensor. Neighbours are alike, so what one stretch says is one
observation: how far off the sample may be is told from how much its stretches differ.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import sqrt

import numpy as np

from modelbuild.kernels.convert import address
from modelbuild.kernels.magnitude import NAN, measure_loop
from modelbuild.kernels.probe import COMMON, Probe
from modelbuild.kernels.ranked import ranked
from modelbuild.kernels.vectors import GRAIN

STRETCHES = 32
"""In how many places a sample is taken: a block of scores from each."""

ROOM = 8
"""Of so many scores one may be kept near a rank, besides equal ones: where more are near, all are counted instead."""

MANY = 0.01
"""The share of the scores from which on a magnitude is common."""

ERRORS, LEAST = 4.0, 8
"""How many standard errors a sample may be off, and that many scores besides."""


class Sample:
    """A sample of a tensor of `count` scores, which has a block for each of `STRETCHES`, or more.

    It is of the blocks [start, stop) in `stretches`, which are shown to `see`.
    """

    def __init__(self, count: int) -> None:
        self._count = count
        self._apart = count // STRETCHES // GRAIN * GRAIN
        self._keys = np.empty((STRETCHES, GRAIN), np.uint32)
        self.stretches = tuple((start, start + GRAIN) for start in range(0, STRETCHES * self._apart, self._apart))

    def see(self, start: int, scores: tuple[int, int, int, int], size: int, scratch: int) -> None:
        """Takes in the scores of the block that begins at `start`."""
        measure_loop(*scores, size, address(self._keys[start // self._apart]), scratch)

    @property
    def nonzero(self) -> int:
        """About how many scores of the tensor are not 0."""
        return round(np.count_nonzero(self._keys) / self._keys.size * self._count)

    def probes(self, ranks: Sequence[int], counted: bool) -> list[Probe] | None:
        """Where scores of these ranks, from 1 on, are to be looked for; None where too many others are near.

        With `counted` ranks are in proportion to the number of scores that are not 0, the sample's guess too.
        """
        seen = self._keys.size
        middles = [min(max(round(rank / self._count * seen), 1), seen) for rank in ranks]
        margins = [
            self._margin(magnitude, middle if counted else 0)
            for middle, magnitude in zip(middles, ranked(self._keys, middles), strict=True)
        ]
        around = list(zip(middles, margins, strict=True))
        lasts = ranked(self._keys, [max(middle - margin, 1) for middle, margin in around])
        firsts = ranked(self._keys, [min(middle + margin, seen) for middle, margin in around])
        probes = [
            self._probe(first if middle + margin <= seen else 0, last if middle > margin else NAN)
            for first, last, (middle, margin) in zip(firsts, lasts, around, strict=True)
        ]
        found = [probe for probe in probes if probe is not None]
        return found if len(found) == len(probes) else None

    def _margin(self, magnitude: int, share_of: int) -> int:
        """How many scores the sample may be off where its scores of a magnitude and above end.

        With `share_of` that is so many times what its scores that are not 0 may be off.
        """
        shares = np.count_nonzero(self._keys >= magnitude, axis=1) / GRAIN
        nonzero = np.count_nonzero(self._keys, axis=1) / GRAIN
        if share_of and nonzero.any():
            shares = shares - nonzero * (share_of / self._keys.size / nonzero.mean())
        error = float(shares.std(ddof=1)) / sqrt(STRETCHES)
        return round(ERRORS * error * self._keys.size) + LEAST

    def _probe(self, first: int, last: int) -> Probe | None:
        """The range with its common magnitudes; None where too many others are in it."""
        inside = self._keys[(self._keys >= first) & (self._keys <= last)]
        magnitudes, counts = np.unique(inside, return_counts=True)
        most = np.argsort(-counts, kind="stable")[:COMMON]
        most = most[counts[most] >= MANY * self._keys.size]
        # A quarter of the room is left for what the sample does not know.
        if len(inside) - int(counts[most].sum()) > 3 * self._keys.size // (4 * ROOM):
            return None
        return Probe(first, last, tuple(sorted(magnitudes[most].tolist(), reverse=True)))
