"""A sample says where to look: the score of a rank is there, unless the sample was taken in the wrong places."""

from itertools import pairwise

import numpy as np
import pytest
from kernel_tools import KINDS, magnitudes, numbers

from modelbuild.kernels.convert import address
from modelbuild.kernels.magnitude import NAN, SCRATCH
from modelbuild.kernels.sample import ROOM, Sample
from modelbuild.kernels.vectors import GRAIN

COUNT = 1 << 20


def taken(scores):
    sample, scratch = Sample(len(scores)), np.empty(SCRATCH, np.float32)
    for start, stop in sample.stretches:
        sample.see(start, (0, 0, address(scores[start:stop]), 2), stop - start, address(scratch))
    return sample


def test_stretches_are_blocks_that_lie_evenly_over_the_tensor():
    stretches = Sample(COUNT + 4711).stretches
    starts = [start for start, _ in stretches]
    assert all(stop - start == GRAIN and start % GRAIN == 0 for start, stop in stretches)
    assert {b - a for a, b in pairwise(starts)} == {COUNT // 32}
    assert starts[0] == 0


@pytest.mark.parametrize("share", [1e-6, 0.001, 0.01, 0.3, 0.5, 0.9, 1])
@pytest.mark.parametrize("kind", KINDS)
def test_the_score_of_a_rank_is_where_it_says(kind, share):
    scores = np.random.default_rng(1).permutation(numbers(kind, COUNT))
    rank = max(1, int(share * COUNT))
    keys = np.sort(magnitudes(scores))[::-1]
    for probe in taken(scores).probes([rank], False) or ():
        assert probe.first <= keys[rank - 1] <= probe.last
        others = (keys >= probe.first) & (keys <= probe.last) & ~np.isin(keys, probe.common)
        assert others.sum() <= COUNT // ROOM


@pytest.mark.parametrize("share", [0.01, 0.3, 0.5])
def test_of_different_scores_few_are_near(share):
    scores = np.random.default_rng(2).standard_normal(COUNT).astype(np.float32)
    (probe,) = taken(scores).probes([int(share * COUNT)], False)
    keys = magnitudes(scores)
    assert 0 < ((keys >= probe.first) & (keys <= probe.last)).mean() < 0.03
    assert probe.common == ()


def test_what_many_scores_have_is_told_apart():
    rng = np.random.default_rng(3)
    scores = rng.choice(np.array([0.5, 1, 2, 3], np.float32), COUNT, p=[0.4, 0.2, 0.3, 0.1])
    (probe,) = taken(scores).probes([int(0.4 * COUNT)], False)
    low, high = magnitudes(np.array([1, 2], np.float32)).tolist()
    assert (probe.first, probe.last, probe.common) == (low, high, (high, low))


def test_the_largest_and_the_smallest_are_looked_for_up_to_the_end():
    scores = np.random.default_rng(4).standard_normal(COUNT).astype(np.float32)
    largest, smallest = taken(scores).probes([1, COUNT], False)
    assert largest.last == NAN
    assert smallest.first == 0


def test_stretches_that_differ_make_the_range_wider():
    rng = np.random.default_rng(5)
    alike = rng.standard_normal(COUNT).astype(np.float32)
    factors = np.repeat(rng.uniform(0.9, 1.1, COUNT // GRAIN), GRAIN).astype(np.float32)
    (narrow,) = taken(alike).probes([COUNT // 2], False)
    (wide,) = taken(alike * factors).probes([COUNT // 2], False)
    assert wide.first < narrow.first < narrow.last < wide.last


def test_where_they_have_nothing_in_common_it_does_not_say():
    scores = np.repeat(np.arange(1, 33, dtype=np.float32), COUNT // 32)
    scores *= np.random.default_rng(6).uniform(1, 2, COUNT).astype(np.float32)
    assert taken(scores).probes([COUNT // 2], False) is None


def test_how_many_scores_are_not_zero_is_guessed():
    scores = np.random.default_rng(7).standard_normal(COUNT).astype(np.float32)
    scores[np.random.default_rng(8).random(COUNT) < 0.25] = 0
    assert abs(taken(scores).nonzero / np.count_nonzero(scores) - 1) < 0.01


def test_a_rank_that_comes_from_that_guess_is_where_it_says_too():
    """Where zeros are unevenly spread the rank and the guess are wrong together: the range is not much wider."""
    rng = np.random.default_rng(9)
    scores = rng.standard_normal(COUNT).astype(np.float32)
    scores[rng.random(COUNT) < np.repeat(rng.uniform(0, 0.6, COUNT // GRAIN), GRAIN)] = 0
    sample = taken(scores)
    (probe,) = sample.probes([sample.nonzero // 3], True)
    keys = np.sort(magnitudes(scores))[::-1]
    assert probe.first <= keys[np.count_nonzero(scores) // 3 - 1] <= probe.last
    (alone,) = sample.probes([sample.nonzero // 3], False)
    assert alone.first < probe.first < probe.last < alone.last
