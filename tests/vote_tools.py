"""Holding votes on small arrays as the engine would: thresholds first, then norms, then the vote, in stretches."""

from itertools import pairwise

import numpy as np

from modelbuild.kernels.norms import Norms, rescaling
from modelbuild.kernels.select import Selection
from modelbuild.kernels.vectors import GRAIN
from modelbuild.kernels.vote import Vote


def thresholds(scores, ranks, base=None, dtype="F32", base_dtype=None, ties=True):
    """The thresholds of ranks over flat scores, or over their differences from a base."""
    chosen = ranks if callable(ranks) else lambda nonzero: ranks
    base_dtype = None if base is None else base_dtype or dtype
    selection = Selection(scores.size, chosen, dtype, base_dtype, ties=ties)
    while wanted := selection.wanted():
        for start, stop in wanted:
            selection.show(start, stop, scores[start:stop], None if base is None else base[start:stop])
        selection.advance()
    return selection.thresholds


def flat(inputs):
    return [array.reshape(-1) for array in inputs]


def norms(inputs, masks, dtype="F32", scores=None, step=GRAIN, order=1):
    """Σ |d|, Σ |Md| and Σ (Md)² of each model, measured in stretches of `step`."""
    inputs, count = flat(inputs), inputs[0].size
    measure = Norms([dtype] * len(inputs), count, masks)
    for start in list(range(0, count, step))[::order]:
        part = slice(start, min(start + step, count))
        measure.measure(
            part.start, part.stop, [array[part] for array in inputs], None if scores is None else scores[part]
        )
    return measure.result()


def rescalings(inputs, masks, dtype="F32"):
    """What each model's masked delta is to be multiplied with."""
    return [rescaling(before, after) for before, after, _ in norms(inputs, masks, dtype)]


def vote(inputs, voters, rule, dtype="F32", scores=None, cuts=(), out_dtype=None):
    """The raw result of a vote over inputs, the base first, held in the stretches between `cuts`."""
    shape, inputs = inputs[0].shape, flat(inputs)
    count, out_dtype = inputs[0].size, out_dtype or dtype
    held = Vote([dtype] * len(inputs), out_dtype, voters, rule)
    out = np.zeros(count, np.float32 if out_dtype == "F32" else np.uint16)
    for start, stop in pairwise([0, *sorted({cut for cut in cuts if 0 < cut < count}), count]):
        part = slice(start, stop)
        held.run(start, stop, [array[part] for array in inputs], out[part], None if scores is None else scores[part])
    return out.reshape(shape)
