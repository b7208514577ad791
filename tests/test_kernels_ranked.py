"""The magnitude of a rank is what sorting says it is."""

import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_tools import KINDS, magnitudes, numbers

from modelbuild.kernels.magnitude import NAN
from modelbuild.kernels.ranked import ranked


@pytest.mark.parametrize("count", [1, 2, 63, 64, 65, 1000, 70_001])
@pytest.mark.parametrize("kind", KINDS)
def test_every_rank_has_the_magnitude_that_sorting_gives_it(kind, count):
    keys = magnitudes(numbers(kind, count)).astype(np.uint32)
    ranks = sorted({1, 2, count // 3, count // 2, count - 1, count} & set(range(1, count + 1)))
    falling = np.sort(keys)[::-1]
    assert ranked(keys, ranks) == [int(falling[rank - 1]) for rank in ranks]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.one_of(st.sampled_from([0, 1, 0x7FFF, 0x8000, NAN]), st.integers(0, NAN)), min_size=1, max_size=200))
def test_any_magnitudes_in_any_order(keys):
    found = ranked(np.array(keys, np.uint32), range(1, len(keys) + 1))
    assert found == sorted(keys, reverse=True)


def test_ranks_come_back_in_the_order_they_were_asked_in():
    keys = np.array([5, 9, 7], np.uint32)
    assert ranked(keys, [3, 1, 2, 1]) == [5, 9, 7, 9]


def test_no_ranks_of_no_magnitudes():
    assert ranked(np.zeros(0, np.uint32), []) == []


def test_the_memory_that_ranking_many_takes_is_given_back():
    keys = np.full(1 << 20, 7, np.uint32)
    ranked(keys[:1], [1])
    tracemalloc.start()
    try:
        assert ranked(keys, [1 << 19]) == [7]
        left, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert left < keys.nbytes // 100
    assert keys.nbytes <= peak < 1.01 * keys.nbytes
