"""Magnitudes order as numbers do, and counting them forgets none."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_tools import KINDS, magnitudes, numbers

from modelbuild.kernels.compile import kernel
from modelbuild.kernels.convert import address
from modelbuild.kernels.fma import floats, words32
from modelbuild.kernels.magnitude import (
    LOWER,
    LOWER_BITS,
    NAN,
    SCRATCH,
    UPPER,
    ZEROS,
    equal_loop,
    lower_loop,
    magnitude,
    place_loop,
    upper_loop,
)
from modelbuild.kernels.vectors import GRAIN

COUNT = 2 * GRAIN + 77


@kernel("void(int64, int64, int64)")
def magnitudes_loop(place, count, out):
    """All of them."""
    values, keys = floats(place), words32(out)
    for i in range(count):
        keys[i] = magnitude(values[i])


def ours(values):
    values = np.array(values, np.float32)
    keys = np.empty(values.size, np.uint32)
    magnitudes_loop(address(values), values.size, address(keys))
    return keys.astype(np.int64)


ROOM = np.empty(SCRATCH, np.float32)


def scratch():
    return address(ROOM)


@settings(max_examples=200, deadline=None)
@given(st.floats(width=32, allow_nan=False), st.floats(width=32, allow_nan=False))
def test_magnitudes_order_as_numbers_without_their_signs(a, b):
    one, two = ours([a, b])
    assert (one < two) == (abs(a) < abs(b))
    assert (one == two) == (abs(a) == abs(b))


@pytest.mark.parametrize("bits", [0x7F80_0001, 0xFF80_0001, 0x7FC0_0000, 0xFFFF_FFFF, 0x7FFF_FFFF])
def test_every_nan_is_the_same_and_above_infinity(bits):
    found = ours(np.array([bits, 0x7F80_0000, 0xFF80_0000], np.uint32).view(np.float32))
    assert found.tolist() == [NAN, NAN - 1, NAN - 1]


def test_magnitudes_are_numpys():
    patterns = np.random.default_rng(0).integers(0, 2**32, 100_000).astype(np.uint32).view(np.float32)
    assert np.array_equal(ours(patterns), magnitudes(patterns))


@pytest.mark.parametrize("kind", KINDS)
def test_the_upper_histogram_counts_every_score_and_zeros_besides(kind):
    scores = numbers(kind, COUNT)
    histogram = np.zeros(UPPER, np.int64)
    upper_loop(0, 0, address(scores), 2, COUNT, address(histogram), scratch())
    expected = np.bincount(magnitudes(scores) >> LOWER_BITS, minlength=UPPER)
    expected[ZEROS] = (scores == 0).sum()
    assert np.array_equal(histogram, expected)


@pytest.mark.parametrize("kind", KINDS)
def test_the_lower_histogram_counts_one_bucket_and_how_many_of_it_each_block_has(kind):
    scores = numbers(kind, COUNT)
    keys = magnitudes(scores)
    wanted = np.unique(keys >> LOWER_BITS)[[0, -1]].astype(np.int64)
    histograms, blocks = np.zeros((2, LOWER), np.int64), np.zeros((2, 3), np.int64)
    places = np.array([address(row) for row in blocks], np.int64)
    lower_loop(0, 0, address(scores), 2, COUNT, address(wanted), 2, address(histograms), address(places), scratch())
    for row, upper in enumerate(wanted):
        inside = keys >> LOWER_BITS == upper
        assert np.array_equal(histograms[row], np.bincount(keys[inside] & (LOWER - 1), minlength=LOWER))
        assert np.array_equal(blocks[row], np.add.reduceat(inside.astype(np.int64), [0, GRAIN, 2 * GRAIN]))


@pytest.mark.parametrize("kind", KINDS)
def test_equal_scores_are_counted_and_found(kind):
    scores = numbers(kind, COUNT)
    keys = magnitudes(scores)
    wanted = int(keys[COUNT // 2])
    blocks = np.zeros(3, np.int64)
    equal_loop(0, 0, address(scores), 2, COUNT, wanted, address(blocks), scratch())
    assert np.array_equal(blocks, np.add.reduceat((keys == wanted).astype(np.int64), [0, GRAIN, 2 * GRAIN]))
    first = np.flatnonzero(keys[:GRAIN] == wanted)
    for number in {0, 1, len(first) // 2, len(first)} & {*range(len(first) + 1)}:
        found = place_loop(0, 0, address(scores), 2, GRAIN, wanted, number, scratch())
        assert found == (first[number - 1] + 1 if number else 0)
