"""ram and nearswap by hand and by law; mergekit's bits are in test_votes_mergekit.py."""

from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_tools import raw, same_bits, tensors, values

from modelbuild.kernels.nearswap import nearswap
from modelbuild.kernels.ram import Active, Ram, amplification


def ram(inputs, factors=None, epsilon=0.5, dtype="F32", cuts=()):
    count = inputs[0].size
    merge = Ram([dtype] * len(inputs), dtype, factors or [1.0] * (len(inputs) - 1), epsilon)
    out = np.empty(count, inputs[0].dtype)
    for start, stop in pairwise([0, *sorted({cut for cut in cuts if 0 < cut < count}), count]):
        merge.run([array[start:stop] for array in inputs], out[start:stop])
    return out


def active(inputs, epsilon=0.5, step=100):
    found = Active(["F32"] * len(inputs), epsilon)
    for start in range(0, inputs[0].size, step):
        found.measure([array[start : start + step] for array in inputs])
    return found.result().tolist()


BASE, ONE, TWO = raw([10, 10, 10, 10]), raw([12, 10.25, 13, 10]), raw([10, 10, 6, 10.5])
"""Deltas (2, 0.25, 3, 0) and (0, 0, -4, 0.5), of which a quarter and a half are not active."""


def test_what_one_changed_is_copied_and_what_both_changed_is_averaged():
    assert ram([BASE, ONE, TWO]).tolist() == [12, 10, 9.5, 10]


def test_what_one_changed_alone_may_be_amplified():
    assert ram([BASE, ONE, TWO], [1.5, 9]).tolist() == [13, 10, 9.5, 10]


def test_active_elements_are_counted_shared_and_alone():
    assert active([BASE, ONE, TWO]) == [[1, 1], [1, 0]]
    assert active([BASE, ONE, TWO], 0.1) == [[1, 2], [1, 1]]
    assert active([BASE, BASE]) == [[0, 0]]


@pytest.mark.parametrize(
    ("shared", "own", "expected"), [(1, 10, 1.05), (5, 10, 1.1), (0, 10, 1), (3, 0, 1.1), (0, 0, 1)]
)
def test_the_amplification_grows_with_what_is_shared(shared, own, expected):
    assert amplification(shared, own, 0.5, 0.2, 1e-5) == pytest.approx(expected)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(1, 5999), max_size=5))
def test_cuts_change_no_bit(cuts):
    inputs = tensors(4, (6000,))
    assert same_bits(ram(inputs, [1.0, 1.5, 2.0], 1e-2, cuts=cuts), ram(inputs, [1.0, 1.5, 2.0], 1e-2))


def test_counts_are_the_same_from_any_stretches_and_threads():
    inputs = tensors(4, (30_000,))
    expected = active(inputs, 1e-2, 30_000)
    assert active(inputs, 1e-2, 7) == expected
    found = Active(["F32"] * 4, 1e-2)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda s: found.measure([array[s : s + 1000] for array in inputs]), range(0, 30_000, 1000)))
    assert found.result().tolist() == expected
    deltas = np.stack([np.abs(model - inputs[0]) > np.float32(1e-2) for model in inputs[1:]])
    among = deltas.sum(axis=0)
    assert expected == [[(row & (among > 1)).sum(), (row & (among == 1)).sum()] for row in deltas]


def test_models_in_another_order_change_the_last_place_at_most():
    base, *models = tensors(4, (3000,))
    one, two = ram([base, *models], epsilon=1e-2), ram([base, *models[::-1]], epsilon=1e-2)
    np.testing.assert_allclose(one, two, atol=3e-7)


def test_equal_models_are_themselves_and_unchanged_elements_stay():
    base, model = tensors(2, (3000,))
    assert np.abs(ram([base, model, model], epsilon=0.0) - model).max() <= 2.0**-23 * 4
    assert same_bits(ram([base, base, base], epsilon=0.0), base)
    assert same_bits(ram([base, model, model], epsilon=1e9), base)


def test_nan_is_active_and_goes_through():
    inputs = [raw([1, 1, 1]), raw([np.nan, 2, 1]), raw([1, 4, np.inf])]
    assert np.isnan(ram(inputs)).tolist() == [True, False, False]
    assert ram(inputs)[1:].tolist() == [3, np.inf]
    assert active(inputs) == [[1, 1], [1, 1]]


@pytest.mark.parametrize("dtype", ["BF16", "F16"])
def test_ram_widens_and_rounds_once(dtype):
    narrow = tensors(3, (3000,), dtype=dtype)
    wide = [values(array, dtype) for array in narrow]
    assert np.array_equal(ram(narrow, epsilon=1e-2, dtype=dtype), raw(ram(wide, epsilon=1e-2), dtype))


def test_factors_and_dtypes_must_fit():
    with pytest.raises(ValueError, match="2 models and a base, but 2 dtypes"):
        Ram(["F32"] * 2, "F32", [1, 1], 0.1)


# --- nearswap ---------------------------------------------------------------------------------------------------------


def swap(base, model, t, dtype="F32", cuts=()):
    out = np.empty(base.size, base.dtype)
    for start, stop in pairwise([0, *sorted({cut for cut in cuts if 0 < cut < base.size}), base.size]):
        nearswap((dtype, dtype), dtype, t, base[start:stop], model[start:stop], out[start:stop])
    return out


def test_near_models_are_taken_and_far_ones_by_their_distance():
    assert swap(raw([1, 1, 1, 1]), raw([1.5, 2, 3, -3]), 1).tolist() == [1.5, 2, 2, 0]


def test_at_zero_the_base_stays_and_far_beyond_the_model_is_taken():
    base, model = tensors(2, (3000,), spread=1.0)
    assert same_bits(swap(base, model, 0.0), base)
    assert same_bits(swap(base, model, 100.0), model)
    assert same_bits(swap(base, model, -1.0), base)


@settings(max_examples=40, deadline=None)
@given(st.floats(0, 2), st.integers(0, 5), st.lists(st.integers(1, 2999), max_size=3))
def test_results_lie_between_base_and_model_wherever_the_tensor_is_cut(t, seed, cuts):
    base, model = tensors(2, (3000,), seed, spread=1.0)
    found = swap(base, model, t, cuts=cuts)
    assert same_bits(found, swap(base, model, t))
    slack = np.spacing(np.maximum(np.abs(base), np.abs(model)))
    assert (found >= np.minimum(base, model) - slack).all()
    assert (found <= np.maximum(base, model) + slack).all()


@pytest.mark.parametrize("dtype", ["BF16", "F16"])
def test_nearswap_widens_and_rounds_once(dtype):
    narrow = tensors(2, (3000,), dtype=dtype)
    wide = [values(array, dtype) for array in narrow]
    assert np.array_equal(swap(*narrow, 5e-3, dtype), raw(swap(*wide, 5e-3), dtype))


def test_nearswap_lets_nan_through():
    assert np.isnan(swap(raw([1, np.nan, 1]), raw([np.nan, 1, 1]), 0.5)).tolist() == [True, True, False]
