"""Gram matrices: float64 sums of exact products, the same for any stretches, threads and order of measuring."""

from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_tools import differences, matrix, measured, raw, tensors, values

from modelbuild.kernels.gram import BAND, ColumnGram, Gram, piece_count, square
from modelbuild.kernels.vectors import GRAIN

SHAPES = [(1, 1), (3, 1), (1, 5), (7, 300), (2, 2048), (3, 5000), (1, 9001), (700, 9)]


def vectors_of(inputs, anchored, dtype="F32"):
    """The vectors as float64, in one row each."""
    own = [values(inputs[0], dtype).reshape(-1)] if anchored else []
    return np.stack([*own, *differences(inputs, dtype)]).astype(np.float64)


@pytest.mark.parametrize("anchored", [True, False])
@pytest.mark.parametrize("dtype", ["BF16", "F16", "F32"])
@pytest.mark.parametrize("count", [2, 3, 6])
def test_one_matrix_for_a_tensor(count, dtype, anchored):
    inputs = tensors(count, dtype=dtype)
    vectors = vectors_of(inputs, anchored, dtype)
    found = matrix(inputs, anchored=anchored, dtype=dtype)
    assert found.shape == (1, len(vectors), len(vectors))
    np.testing.assert_allclose(found[0], vectors @ vectors.T, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("anchored", [True, False])
@pytest.mark.parametrize("shape", SHAPES)
def test_one_matrix_for_each_row_and_for_each_column(shape, anchored):
    inputs = tensors(3, shape)
    vectors = vectors_of(inputs, anchored).reshape(-1, *shape)
    rows = matrix(inputs, shape[1], anchored)
    np.testing.assert_allclose(rows, np.einsum("irc,jrc->rij", vectors, vectors), rtol=1e-12, atol=1e-13)
    gram = ColumnGram(["F32"] * 3, shape[0] * shape[1], shape[1], anchored=anchored)
    columns = measured(gram, inputs, shape[0] * shape[1], GRAIN)
    np.testing.assert_allclose(columns, np.einsum("irc,jrc->cij", vectors, vectors), rtol=1e-12, atol=1e-13)


def test_four_numbers_by_hand():
    base, one, two = raw([1, 2, 3, 4]), raw([2, 2, 3, 2]), raw([1, 5, 3, 5])
    # Differences: (1, 0, 0, -2) and (0, 3, 0, 1).
    assert matrix([base, one, two]).tolist() == [[[5, -2], [-2, 10]]]
    assert matrix([base, one, two], 2).tolist() == [[[1, 0], [0, 9]], [[4, -2], [-2, 1]]]
    assert matrix([base, one], anchored=True).tolist() == [[[30, -7], [-7, 5]]]


def test_products_are_exact_and_only_sums_round():
    # Squares of 24-bit numbers have 48 bits; sixteen of them, one for each lane, still fit in 53.
    numbers = np.array([2**24 - 1 - 2 * i for i in range(16)], np.float32)
    found = matrix([np.zeros(16, np.float32), numbers])
    assert Fraction(float(found[0, 0, 0])) == sum(Fraction(int(n)) ** 2 for n in numbers)


def test_the_order_of_addition_is_the_documented_one():
    rng = np.random.default_rng(5)
    x = rng.standard_normal(2 * GRAIN + 37).astype(np.float32)
    squares = x.astype(np.float64) ** 2
    total = 0.0
    for begin in range(0, x.size, GRAIN):
        piece = squares[begin : begin + GRAIN]
        lanes = [0.0] * 16
        for i, square_ in enumerate(piece):
            lanes[i % 16] += square_
        for half in (8, 4, 2, 1):
            lanes = [lanes[i] + lanes[i + half] for i in range(half)]
        total += lanes[0]
    assert matrix([np.zeros_like(x), x])[0, 0, 0] == total


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 4), st.sampled_from([1, -1]), st.sampled_from(SHAPES), st.integers(0, 3))
def test_stretches_and_their_order_change_no_bit(grains, order, shape, seed):
    inputs = tensors(3, shape, seed)
    for columns in (None, shape[1]):
        whole = matrix(inputs, columns, step=max(GRAIN, -(-inputs[0].size // GRAIN) * GRAIN))
        assert np.array_equal(matrix(inputs, columns, step=grains * GRAIN, order=order), whole)


def test_threads_change_no_bit():
    inputs = tensors(3, (40, 3000))
    flat, count = [array.reshape(-1) for array in inputs], inputs[0].size
    gram = Gram(["F32"] * 3, count, 3000, anchored=True)
    with ThreadPoolExecutor(4) as pool:
        starts = range(0, count, GRAIN)
        list(pool.map(lambda s: gram.measure(s, min(s + GRAIN, count), [a[s : s + GRAIN] for a in flat]), starts))
    assert np.array_equal(gram.result(), matrix(inputs, 3000, True, step=count + GRAIN - count % GRAIN))


def test_columns_go_by_bands_whatever_the_stretches():
    shape = (2 * BAND + 5, 3)
    inputs = tensors(2, shape)
    count = inputs[0].size
    results = []
    for step in (1, 100, BAND * 3, count):
        results.append(measured(ColumnGram(["F32"] * 2, count, 3, anchored=True), inputs, count, step))
    assert all(np.array_equal(result, results[0]) for result in results)
    squares = inputs[0].astype(np.float64) ** 2
    bands = [np.add.accumulate(squares[begin : begin + BAND])[-1] for begin in range(0, shape[0], BAND)]
    assert np.array_equal(results[0][:, 0, 0], (bands[0] + bands[1]) + bands[2])


def test_bands_may_be_measured_in_any_order():
    inputs = tensors(2, (BAND * 2, 4))
    step = BAND * 4
    forward, backward = (
        measured(ColumnGram(["F32"] * 2, 2 * step, 4, anchored=True), inputs, 2 * step, step, order)
        for order in (1, -1)
    )
    assert np.array_equal(forward, backward)


def test_models_in_another_order_give_the_same_matrix_in_another_order():
    base, *models = tensors(4)
    order = [2, 0, 1]
    found = matrix([base, *models])[0]
    again = matrix([base, *(models[i] for i in order)])[0]
    assert np.array_equal(again, found[np.ix_(order, order)])


def test_equal_models_and_a_model_like_the_base():
    base, model = tensors(2)
    found = matrix([base, model, model, base])[0]
    assert found[0, 0] == found[0, 1] == found[1, 1] > 0
    assert not found[2].any()


def test_numbers_of_every_size_and_none():
    tiny, huge = np.float32(1e-45), np.float32(3e38)
    found = matrix([np.zeros(2, np.float32), np.array([tiny, 0], np.float32), np.array([0, huge], np.float32)])[0]
    assert found[0, 0] == float(tiny) ** 2 > 0
    assert found[1, 1] == float(huge) ** 2
    for odd in (np.nan, np.inf):
        found = matrix([np.zeros(3, np.float32), np.array([1, odd, 1], np.float32), np.ones(3, np.float32)])[0]
        assert not np.isfinite(found[0, 0])
        assert found[1, 1] == 3


def test_a_tensor_without_elements():
    empty = np.zeros(0, np.float32)
    assert matrix([empty, empty], anchored=True).tolist() == []
    assert piece_count(0, 5) == 0


@pytest.mark.parametrize(("start", "stop"), [(1, GRAIN), (0, GRAIN - 1), (GRAIN, 0), (0, 4 * GRAIN), (-GRAIN, GRAIN)])
def test_stretches_that_cut_a_block_are_refused(start, stop):
    gram = Gram(["F32"] * 2, 3 * GRAIN + 7, 3 * GRAIN + 7, anchored=True)
    tile = np.zeros(max(stop - start, 0), np.float32)
    with pytest.raises(ValueError, match="whole blocks"):
        gram.measure(start, stop, [tile, tile])


def test_triangles_become_symmetric_matrices():
    assert square(np.array([1.0, 2.0, 3.0]), 2).tolist() == [[1, 2], [2, 3]]
