"""Which of the magnitudes that lie in memory has a rank: by counting their upper bits, then the lower ones."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from modelbuild.kernels.compile import inlined, kernel
from modelbuild.kernels.convert import address
from modelbuild.kernels.fma import Array, Pointer, integers, words32
from modelbuild.kernels.lanes import LANES, pick, within
from modelbuild.kernels.magnitude import LOWER, LOWER_BITS, UPPER
from modelbuild.kernels.workspace import workspace


@inlined
def place_of(bins: Pointer, size: int, rank: int) -> tuple[int, int]:
    """The bin that the `rank`th largest, from 1 on, is in, and its rank within it."""
    left = rank
    for bin_ in range(size - 1, -1, -1):
        if left <= bins[bin_]:
            return bin_, left
        left -= bins[bin_]
    return 0, left


@kernel("void(int64, int64, int64, int64, int64, int64, int64)")
def ranked_loop(keys_at: int, count: int, ranks: int, number: int, found: int, bins_at: int, chosen_at: int) -> None:
    """For each of the ranks, int64, from the largest magnitude on, the magnitude that has it, int64.

    `bins_at` is room for UPPER + LOWER counts, `chosen_at` for `count` magnitudes, uint32.
    """
    keys, wanted, results = words32(keys_at), integers(ranks), integers(found)
    upper, lower, chosen = words32(bins_at), words32(bins_at + 4 * UPPER), words32(chosen_at)
    for i in range(UPPER):
        upper[i] = 0
    for i in range(count):
        upper[keys[i] >> np.uint32(LOWER_BITS)] += np.uint32(1)
    for index in range(number):
        bucket, rank = place_of(upper, UPPER, wanted[index])
        kept, whole = 0, count // LANES * LANES
        for start in range(0, whole, LANES):
            bits = within(keys, start, bucket << LOWER_BITS, LOWER)
            kept += pick(bits, keys, start, words32(chosen_at + 4 * kept))
        for i in range(whole, count):
            chosen[kept] = keys[i]
            kept += int(keys[i] >> np.uint32(LOWER_BITS) == bucket)
        for i in range(LOWER):
            lower[i] = 0
        for i in range(kept):
            lower[chosen[i] & np.uint32(LOWER - 1)] += np.uint32(1)
        place, _ = place_of(lower, LOWER, rank)
        results[index] = bucket << LOWER_BITS | place


def ranked(keys: Array, ranks: Sequence[int]) -> list[int]:
    """The magnitudes that have these ranks, from 1 for the largest on, among `keys`, uint32."""
    wanted, found = np.array(ranks, np.int64), np.empty(len(ranks), np.int64)
    bins = workspace(UPPER + LOWER, "ranked")
    # Those of a large tensor may be many: they are not kept for the thread's life.
    chosen = np.empty(keys.size, np.uint32)
    places = (address(wanted), len(ranks), address(found), address(bins), address(chosen))
    ranked_loop(address(keys), keys.size, *places)
    return found.tolist()
