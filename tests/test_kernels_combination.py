"""Combinations x₀ + Σ cᵢ·vᵢ: fused multiply-adds in order, for a tensor, its rows or its columns."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_tools import combine, raw, same_bits, tensors, values

from modelbuild.kernels.combination import Combination


def fused(c, v, total):
    """fma of float32 by float64: the product is exact, the sum here rounded twice, which can be seen in few values."""
    return (np.float64(c) * v.astype(np.float64) + total).astype(np.float32)


def test_four_numbers_by_hand():
    base, one, two = raw([1, 2, 3, 4]), raw([2, 2, 3, 2]), raw([1, 5, 3, 5])
    assert combine([base, one, two], [[0.5, 2]]).tolist() == [1.5, 8, 3, 5]
    # Without a base: x₁ + 1·x₁ + 0.5·(x₂ − x₁).
    assert combine([base, one], [[1, 0.5]], anchored=True).tolist() == [2.5, 4, 6, 7]
    assert combine([base, one], [[1], [2]], columns=2).tolist() == [2, 2, 3, 0]
    assert combine([base, one], [[1], [2]], columns=2, by_column=True).tolist() == [2, 2, 3, 0]
    assert combine([raw([1, 2, 3, 4]), raw([2, 3, 4, 5])], [[1], [2]], columns=2, by_column=True).tolist() == [
        2,
        4,
        4,
        6,
    ]


@pytest.mark.parametrize("anchored", [True, False])
@pytest.mark.parametrize("by", ["tensor", "row", "column"])
def test_results_are_those_of_the_formula(by, anchored):
    inputs = tensors(4, (37, 211))
    rng = np.random.default_rng(1)
    vectors = ([inputs[0]] if anchored else []) + [x - inputs[0] for x in inputs[1:]]
    sets = {"tensor": 1, "row": 37, "column": 211}[by]
    coefficients = rng.standard_normal((sets, len(vectors)))
    found = combine(inputs, coefficients, None if by == "tensor" else 211, anchored, by == "column")
    rounded = coefficients.astype(np.float32)
    total = np.zeros((37, 211), np.float32)
    for k, vector in enumerate(vectors):
        factor = rounded[:, k].reshape(1, -1) if by == "column" else rounded[:, k].reshape(-1, 1)
        total = fused(factor, vector, total)
    expected = inputs[0] + total
    different = found != expected
    assert different.mean() < 1e-3, "the oracle rounds twice"
    np.testing.assert_allclose(found, expected, rtol=3e-7, atol=1e-6)


def test_products_are_fused():
    x = np.float32(1 + 2**-12)
    # 1·(−1), then (1+u)·(1+u) − 1 = 2u + u²: unfused, u² would be lost.
    found = combine([raw([0]), raw([-1]), raw([x])], [[1, x]])
    assert found[0] == 2 * 2.0**-12 + 2.0**-24
    assert x * x - 1 == 2 * 2.0**-12


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 5999), max_size=5), st.booleans(), st.booleans(), st.sampled_from([1, 3, 1000, 6000]))
def test_cuts_change_no_bit(cuts, anchored, by_column, columns):
    inputs = tensors(3, (6000,))
    rng = np.random.default_rng(columns)
    sets = columns if by_column else 6000 // columns
    coefficients = rng.standard_normal((sets, 3 if anchored else 2))
    whole = combine(inputs, coefficients, columns, anchored, by_column)
    assert same_bits(combine(inputs, coefficients, columns, anchored, by_column, cuts=cuts), whole)


@pytest.mark.parametrize("dtype", ["BF16", "F16"])
def test_inputs_of_any_dtype_are_widened_and_the_result_is_rounded_once(dtype):
    narrow = tensors(3, (5000,), dtype=dtype)
    wide = [values(array, dtype) for array in narrow]
    expected = raw(combine(wide, [[0.3, 0.4]]), dtype)
    assert np.array_equal(combine(narrow, [[0.3, 0.4]], dtypes=[dtype] * 3, dtype=dtype), expected)
    mixed = combine([narrow[0], wide[1], narrow[2]], [[0.3, 0.4]], dtypes=[dtype, "F32", dtype], dtype=dtype)
    assert np.array_equal(mixed, expected)


def test_what_no_input_changed_stays_to_the_bit_signed_zeros_too():
    base = np.array([-0.0, 0.0, 1e-45, -3e38, np.inf, 0.1], np.float32)
    for coefficients in ([[0.3, -7]], [[-1, -1]]):
        finite = base[[0, 1, 2, 3, 5]]
        assert same_bits(combine([finite] * 3, coefficients), finite)
    assert same_bits(combine([base[:4]] * 3, [[0, 0.5, 0.5]], anchored=True), base[:4])


def test_nan_and_infinity_go_through():
    found = combine([raw([1, 2, 3]), raw([np.nan, np.inf, 3])], [[0.5]])
    assert np.isnan(found[0])
    assert found[1] == np.inf
    assert found[2] == 3


def test_no_model_and_an_empty_tensor():
    assert combine([raw([1, 2])], np.zeros((1, 0))).tolist() == [1, 2]
    assert combine([raw([])] * 2, [[1]]).tolist() == []


def test_a_wrong_number_of_coefficients_or_elements_is_refused():
    with pytest.raises(ValueError, match="coefficients"):
        combine(tensors(3), [[1]])
    mix = Combination(["F32"] * 2, "F32", np.ones((1, 1)), 4, anchored=False, by_column=False)
    with pytest.raises(ValueError, match="a stretch of 4 elements"):
        mix.run(0, 4, [raw([1, 2, 3, 4]), raw([1, 2])], np.zeros(4, np.float32))
