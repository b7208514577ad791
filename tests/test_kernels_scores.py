"""Variances between models: sums and divisions of float64 in the documented order, rounded once."""

import numpy as np
import pytest
from kernel_tools import differences, raw, same_bits, tensors, values

from modelbuild.kernels.scores import STEP, variance


def variances(inputs, dtype="F32"):
    out = np.full(inputs[0].size, np.nan, np.float32)
    variance([dtype] * len(inputs), [array.reshape(-1) for array in inputs], out)
    return out


def expected(inputs, dtype="F32"):
    """By numpy, which divides."""
    deltas = [delta.astype(np.float64) for delta in differences(inputs, dtype)]
    number = np.float64(len(deltas))
    mean = sum(deltas) / number
    return (sum((delta - mean) ** 2 for delta in deltas) / number).astype(np.float32)


def test_by_hand():
    base, one, two, three = (np.full(3, value, np.float32) for value in (1, 2, 4, 6))
    assert variances([base, one, three]).tolist() == [4, 4, 4]
    assert np.array_equal(variances([base, one, two, three]), np.full(3, np.float32(8 / 3)))
    assert variances([base, two]).tolist() == [0, 0, 0]


@pytest.mark.parametrize("models", [1, 2, 3, 5, 16, 49, 103])
def test_models_that_are_alike_do_not_vary(models):
    """Sums are divided: 49 times what 1/49 is in float64 is not 1."""
    model = np.append(np.random.default_rng(1).standard_normal(1000), 1).astype(np.float32)
    assert not variances([np.zeros_like(model), *[model] * models]).any()


@pytest.mark.parametrize("dtype", ["BF16", "F16", "F32"])
@pytest.mark.parametrize("models", [1, 2, 3, 4, 5, 8])
@pytest.mark.parametrize("count", [1, STEP - 1, STEP, STEP + 1, 5 * STEP + 7])
def test_they_are_what_numpy_says_to_the_bit(models, count, dtype):
    inputs = tensors(models + 1, (count,), dtype=dtype)
    assert same_bits(variances(inputs, dtype), expected(inputs, dtype))


def test_they_may_be_tiny_and_are_not_a_number_where_one_is_not():
    base = raw(np.zeros(4))
    inputs = [base, raw([1e-19, 1e-30, np.nan, np.inf]), raw([-1e-19, -1e-30, 1, 1])]
    found = values(variances(inputs))
    assert 0 < found[0] < 1.2e-38
    assert found[1] == 0
    assert np.isnan(found[2:]).all()
