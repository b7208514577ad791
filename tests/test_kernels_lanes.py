"""Sixty-four magnitudes compared at once: each bit says what comparing one by one says."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modelbuild.kernels.compile import kernel
from modelbuild.kernels.convert import address
from modelbuild.kernels.fma import words, words32
from modelbuild.kernels.lanes import LANES, NEVER, fill_lanes, lowest, pick, population, within
from modelbuild.kernels.magnitude import NAN


@kernel("void(int64, int64, int64, int64, int64)")
def within_loop(keys, start, first, width, out):
    """The bits of 64 keys."""
    words(out)[0] = within(words32(keys), start, first, width)


@kernel("int64(uint64)")
def population_of(bits):
    """As a function."""
    return population(bits)


@kernel("int64(uint64)")
def lowest_of(bits):
    """As a function."""
    return lowest(bits)


@kernel("int64(int64, int64)")
def fill_loop(keys, size):
    """As a function."""
    return fill_lanes(words32(keys), size)


@kernel("int64(uint64, int64, int64, int64)")
def pick_loop(bits, keys, start, found):
    """As a function."""
    return pick(bits, words32(keys), start, words32(found))


def bits_of(mask):
    return sum(1 << place for place in np.flatnonzero(mask).tolist())


MAGNITUDES = st.one_of(st.sampled_from([0, 1, 7, 8, 9, NAN - 1, NAN, NEVER]), st.integers(0, NAN))


@settings(max_examples=100, deadline=None)
@given(st.lists(MAGNITUDES, min_size=LANES + 3, max_size=LANES + 3), st.integers(0, 3), MAGNITUDES, MAGNITUDES)
def test_a_range_is_compared_with_as_whole_numbers_are(keys, start, first, last):
    keys, out = np.array(keys, np.uint32), np.zeros(1, np.uint64)
    first, last = min(first, NAN), min(last, NAN)
    width = max(last - first + 1, 0)
    within_loop(address(keys), start, first, width, address(out))
    chosen = keys[start : start + LANES].astype(np.int64)
    assert int(out[0]) == bits_of((chosen >= first) & (chosen <= last))


def test_above_the_last_of_all_there_is_nothing():
    keys, out = np.full(LANES, NAN, np.uint32), np.ones(1, np.uint64)
    within_loop(address(keys), 0, NAN + 1, 0, address(out))
    assert out[0] == 0


@pytest.mark.parametrize("bits", [1, 2, 0x8000_0000_0000_0000, 0xFFFF_FFFF_FFFF_FFFF, 0x0F00_0000_0010_0000])
def test_bits_are_counted_and_found(bits):
    assert population_of(bits) == bits.bit_count()
    assert lowest_of(bits) == (bits & -bits).bit_length() - 1


@pytest.mark.parametrize("size", [0, 1, 63, 64, 65, 128])
def test_lanes_are_filled_up_with_what_no_number_is(size):
    keys = np.arange(192, dtype=np.uint32)
    groups = fill_loop(address(keys), size)
    assert groups == -(-size // LANES)
    assert keys[:size].tolist() == list(range(size))
    assert (keys[size : groups * LANES] == NEVER).all()
    assert keys[groups * LANES :].tolist() == list(range(groups * LANES, 192))


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**64 - 1))
def test_the_chosen_are_copied_in_order(bits):
    keys, found = np.arange(100, 100 + 2 * LANES, dtype=np.uint32), np.zeros(LANES + 1, np.uint32)
    number = pick_loop(bits, address(keys), 10, address(found))
    assert found[:number].tolist() == [110 + place for place in range(LANES) if bits >> place & 1]
    assert (found[number:] == 0).all()
