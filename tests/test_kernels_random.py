"""Philox4x32-10 and what is made of it: known answers, every index for itself, and fair."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modelbuild.kernels.convert import address
from modelbuild.kernels.random import COUNTERS, GROUP, uniform, words_loop

MASK = 2**32 - 1


def philox(counter, key):
    """The four words, written down from the paper."""
    c, (k0, k1) = list(counter), key
    for _ in range(10):
        even, odd = 0xD2511F53 * c[0], 0xCD9E8D57 * c[2]
        c = [(odd >> 32) ^ c[1] ^ k0, odd & MASK, (even >> 32) ^ c[3] ^ k1, even & MASK]
        k0, k1 = (k0 + 0x9E3779B9) & MASK, (k1 + 0xBB67AE85) & MASK
    return c


def words(key, low, high=0):
    """The words [place, counter] of one group."""
    out = np.zeros(GROUP, np.uint32)
    words_loop(key, low, high, address(out))
    return out.reshape(4, COUNTERS)


def joined(first, second):
    return second << 32 | first


KNOWN = [
    ((0,) * 4, (0,) * 2, (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((MASK,) * 4, (MASK,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]
"""The known answers that Random123 comes with."""


@pytest.mark.parametrize(("counter", "key", "expected"), KNOWN)
def test_known_answers(counter, key, expected):
    found = words(joined(*key), joined(*counter[:2]), joined(*counter[2:]))
    assert found[:, 0].tolist() == list(expected)
    assert philox(counter, key) == list(expected)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**64 - 1), st.integers(0, 2**63), st.integers(0, 2**64 - 1))
def test_every_counter_of_a_group_is_the_papers(key, low, high):
    found = words(key, low, high)
    for j in range(COUNTERS):
        counter = ((low + j) & MASK, (low + j) >> 32, high & MASK, high >> 32)
        assert found[:, j].tolist() == philox(counter, (key & MASK, key >> 32))


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**64 - 1), st.integers(0, 2**40))
def test_an_element_takes_the_documented_word(key, index):
    counter = 16 * (index // 64) + index % 16
    word = philox((counter & MASK, counter >> 32, 0, 0), (key & MASK, key >> 32))[index % 64 // 16]
    assert uniform(key, index, index + 1)[0] == np.float32((word >> 8) / 2**24)


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 500), st.integers(0, 500), st.integers(0, 2**64 - 1))
def test_where_a_stretch_begins_and_ends_changes_nothing(start, length, key):
    assert np.array_equal(uniform(key, start, start + length), uniform(key, 0, 1000)[start : start + length])


def test_numbers_lie_in_zero_to_one_and_are_exact():
    numbers = uniform(1, 0, 1 << 20)
    assert numbers.dtype == np.float32
    assert 0 <= numbers.min() < 1e-5
    assert 1 - 1e-5 < numbers.max() <= 1 - 2.0**-24
    assert np.array_equal(numbers.astype(np.float64) * 2**24, np.floor(numbers.astype(np.float64) * 2**24))


@pytest.mark.parametrize("key", [0, 1, 2**63 + 5])
def test_numbers_are_uniform_and_independent_of_their_neighbours_and_of_other_keys(key):
    # Each bound is five standard deviations of what a fair generator gives.
    count = 1 << 18
    numbers = uniform(key, 0, count).astype(np.float64)
    bins = np.histogram(numbers, 256, (0, 1))[0]
    chi = ((bins - count / 256) ** 2 / (count / 256)).sum()
    assert abs(chi - 255) < 5 * np.sqrt(2 * 255)
    assert abs(numbers.mean() - 0.5) < 5 * np.sqrt(1 / 12 / count)
    centred = numbers - 0.5
    other = uniform(key + 1, 0, count) - 0.5
    for shifted in (centred[1:], centred[16:], centred[64:], other):
        pairs = min(len(shifted), count)
        assert abs((centred[:pairs] * shifted[:pairs]).mean()) < 5 / 12 / np.sqrt(pairs)


@pytest.mark.parametrize("p", [0.0, 0.01, 0.5, 0.9, 1.0])
def test_what_is_below_a_probability_is_its_share(p):
    count = 1 << 18
    below = (uniform(9, 0, count) < np.float32(p)).sum()
    assert abs(below - p * count) <= 5 * np.sqrt(p * (1 - p) * count)


def test_no_elements_no_numbers():
    assert uniform(3, 70, 70).size == 0
