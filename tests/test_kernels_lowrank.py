"""The low-rank product is a chain of fused multiply-adds per part of k, and torch's to the bit on x86-64."""

import os
from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_tools import same_bits

from modelbuild.kernels.lowrank import pack, part_end, product
from modelbuild.kernels.microkernel import best

RANKS = [1, 7, 8, 16, 32, 64, 100, 128, 191, 192, 193, 200, 256, 257, 300, 320, 383, 384, 385, 512, 577]


def factors(rows, depth, columns, seed=0):
    rng = np.random.default_rng(seed)
    return rng.standard_normal((rows, depth), np.float32), rng.standard_normal((depth, columns), np.float32)


def whole(left, right, scale=1.0):
    out = np.empty(left.shape[0] * right.shape[1], np.float32)
    product(left, right, scale)(0, out.size, out)
    return out.reshape(left.shape[0], right.shape[1])


def parts(depth):
    bounds = [0]
    while bounds[-1] < depth:
        bounds.append(part_end(bounds[-1], depth))
    return bounds


def rounded(exact):
    """The float32 nearest to a fraction, ties to even, without rounding twice."""
    near = np.float32(float(exact))
    candidates = [near, np.nextafter(near, np.float32(-np.inf)), np.nextafter(near, np.float32(np.inf))]
    return min(candidates, key=lambda c: (abs(Fraction(float(c)) - exact), int(c.view(np.uint32)) & 1))


def chain(left, right):
    """One value of the product, by exact fractions rounded after every multiply-add."""
    total = None
    bounds = parts(len(left))
    for start, end in pairwise(bounds):
        part = np.float32(0)
        for k in range(start, end):
            part = rounded(Fraction(float(left[k])) * Fraction(float(right[k])) + Fraction(float(part)))
        total = part if total is None else np.float32(total + part)
    return total


def test_parts_of_k():
    assert parts(192) == [0, 192]
    assert parts(200) == [0, 100, 200]
    assert parts(193) == [0, 96, 192, 193]
    assert parts(383) == [0, 191, 382, 383]
    assert parts(384) == [0, 192, 384]
    assert parts(512) == [0, 192, 384, 512]


def test_a_product_by_hand():
    left, right = np.array([[1, 2], [3, 4]], np.float32), np.array([[5, 6, 7], [8, 9, 10]], np.float32)
    assert np.array_equal(whole(left, right, 0.5), np.array([[21, 24, 27], [47, 54, 61]]) / 2)


@pytest.mark.parametrize("depth", [3, 192, 193, 201, 385])
def test_every_value_is_the_chain_computed_exactly(depth):
    left, right = factors(2, depth, 3, seed=depth)
    expected = [[chain(left[r], right[:, c]) for c in range(3)] for r in range(2)]
    assert same_bits(whole(left, right), expected)


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="the order is that of torch on x86-64")
@pytest.mark.parametrize("depth", RANKS)
@pytest.mark.parametrize("shape", [(96, 160), (131, 77), (40, 1024)])
def test_the_product_is_torchs_to_the_bit(depth, shape):
    left, right = factors(shape[0], depth, shape[1], seed=depth)
    theirs = (torch.from_numpy(left) @ torch.from_numpy(right)) * 0.37
    assert same_bits(whole(left, right, 0.37), theirs.numpy())


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_any_stretch_of_the_product_has_the_bytes_of_the_whole(data):
    rows, columns = data.draw(st.integers(1, 20)), data.draw(st.integers(1, 120))
    depth = data.draw(st.sampled_from([1, 5, 194, 386]))
    left, right = factors(rows, depth, columns, seed=rows)
    expected = whole(left, right, -0.3).reshape(-1)
    start = data.draw(st.integers(0, rows * columns - 1))
    stop = data.draw(st.integers(start + 1, rows * columns))
    out = np.full(stop - start, np.nan, np.float32)
    product(left, right, -0.3)(start, stop, out)
    assert same_bits(out, expected[start:stop])


def test_nothing_is_written_beyond_the_stretch():
    left, right = factors(9, 4, 50)
    memory = np.full(450 + 200, 7.0, np.float32)
    product(left, right, 1.0)(13, 440, memory[100:527])
    assert (memory[:100] == 7).all()
    assert (memory[527:] == 7).all()


def test_packing_puts_each_panel_together_and_fills_the_last_with_zeros():
    columns = best().width
    right = np.arange(2 * (columns + 3), dtype=np.float32).reshape(2, -1)
    packed = pack(right)
    assert packed.shape == (2, 2, columns)
    assert np.array_equal(packed[0], right[:, :columns])
    assert np.array_equal(packed[1, :, :3], right[:, columns:])
    assert not packed[1, :, 3:].any()


def test_factors_that_do_not_fit_each_other_are_refused():
    with pytest.raises(ValueError, match="factors of shapes"):
        product(np.zeros((2, 3), np.float32), np.zeros((4, 5), np.float32), 1.0)
