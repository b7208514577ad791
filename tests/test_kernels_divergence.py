"""Exponentials, logarithms and the divergence of rows: as right as a library's, from plain arithmetic."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_tools import raw, same_bits, tensors

from modelbuild.kernels.combine import BLOCK, table
from modelbuild.kernels.compile import kernel
from modelbuild.kernels.convert import address
from modelbuild.kernels.divergence import EPSILON, divergences
from modelbuild.kernels.exponential import exponentials, logarithms
from modelbuild.kernels.scores import importance

ULP = 2.0**-52


@kernel("void(int64, int64, int64)")
def exponentials_loop(place, size, scratch):
    """All of them."""
    exponentials(place, size, scratch)


@kernel("void(int64, int64, int64)")
def logarithms_loop(place, size, scratch):
    """All of them."""
    logarithms(place, size, scratch)


def computed(loop, numbers):
    found = np.array(numbers, np.float64)
    loop(address(found), found.size, address(np.empty_like(found)))
    return found


def divergence(base, model, dtype="F32"):
    return divergences((dtype, dtype), base.shape[-1], base.reshape(-1), model.reshape(-1))


def by_numpy(base, model):
    """The divergences in numpy's longest floating point."""

    def softmax(rows):
        rows = rows.astype(np.longdouble)
        powers = np.exp(rows - rows.max(axis=-1, keepdims=True))
        return powers / powers.sum(axis=-1, keepdims=True) + np.longdouble(EPSILON)

    p, q = softmax(model), softmax(base)
    return (p * np.log(p / q)).sum(axis=-1).astype(np.float64)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.floats(-700, 700), min_size=1, max_size=40))
def test_exponentials_are_the_librarys_but_for_the_last_places(numbers):
    expected = np.exp(np.array(numbers, np.longdouble)).astype(np.float64)
    np.testing.assert_allclose(computed(exponentials_loop, numbers), expected, rtol=4 * ULP)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.floats(1e-300, 1e300), min_size=1, max_size=40))
def test_logarithms_are_the_librarys_but_for_the_last_places(numbers):
    expected = np.log(np.array(numbers, np.longdouble)).astype(np.float64)
    np.testing.assert_allclose(computed(logarithms_loop, numbers), expected, rtol=4 * ULP, atol=1e-320)


@settings(max_examples=100, deadline=None)
@given(st.floats(-1e-3, 1e-3))
def test_logarithms_near_one_keep_their_digits(away):
    number = 1.0 + away
    expected = float(np.log(np.longdouble(number)))
    assert computed(logarithms_loop, [number])[0] == pytest.approx(expected, rel=4 * ULP, abs=0)


def test_known_numbers():
    assert computed(exponentials_loop, [0, 1, -1]).tolist() == pytest.approx([1, np.e, 1 / np.e], rel=2 * ULP)
    assert computed(exponentials_loop, [0])[0] == 1
    assert computed(logarithms_loop, [1, 2, 0.5, np.e]).tolist() == pytest.approx([0, np.log(2), -np.log(2), 1])
    assert computed(logarithms_loop, [1])[0] == 0


def test_what_is_far_below_counts_as_the_least_and_nan_stays():
    found = computed(exponentials_loop, [-1e9, -np.inf, np.nan])
    assert found[0] == found[1] == pytest.approx(np.exp(-700))
    assert np.isnan(found[2])


# --- rows -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("columns", [1, 2, 255, 256, 257, 2048, 5001])
@pytest.mark.parametrize("size", [1e-2, 1.0, 50.0, 400.0, 1e4])
def test_divergences_are_those_of_the_formula(columns, size):
    rng = np.random.default_rng(columns)
    base = raw(size * rng.standard_normal((6, columns)))
    model = raw(base + 0.1 * size * rng.standard_normal((6, columns)))
    np.testing.assert_allclose(divergence(base, model), by_numpy(base, model), rtol=2e-7, atol=2e-12)


def test_small_differences_are_seen_where_float32_sees_noise():
    base, model = tensors(2, (20, 2000), spread=1e-4)
    found = divergence(base, model)
    np.testing.assert_allclose(found, by_numpy(base, model), rtol=1e-5)
    assert (found > 0).all()


def test_four_numbers_by_hand():
    # Half and half against one to three: ½·ln(½ / ¼) + ½·ln(½ / ¾).
    base, model = raw([[0, np.log(3)]]), raw([[5, 5]])
    assert divergence(base, model)[0] == pytest.approx(0.5 * np.log(2) + 0.5 * np.log(2 / 3), abs=1e-7)


def test_equal_rows_do_not_diverge_and_a_shifted_row_hardly():
    base, _ = tensors(2, (9, 700))
    assert not divergence(base, base).any()
    assert (divergence(base, base + np.float32(3)) < 1e-12).all()
    assert not divergence(np.full((3, 5), -1000, np.float32), np.full((3, 5), 1000, np.float32)).any()


def test_rows_stand_each_for_itself():
    base, model = tensors(2, (7, 300))
    together = divergence(base, model)
    assert all(same_bits(divergence(base[i : i + 1], model[i : i + 1]), together[i : i + 1]) for i in range(7))


def test_what_is_no_number_stays_in_its_row():
    base, model = tensors(2, (3, 100))
    model[1, 5] = np.nan
    assert np.isnan(divergence(base, model)).tolist() == [False, True, False]
    model[1, 5] = np.inf
    assert np.isnan(divergence(base, model)).tolist() == [False, True, False]


def test_no_rows_and_no_columns():
    assert divergence(np.zeros((0, 5), np.float32), np.zeros((0, 5), np.float32)).size == 0
    assert divergence(np.zeros((5, 0), np.float32), np.zeros((5, 0), np.float32)).size == 0


# --- importances ------------------------------------------------------------------------------------------------------


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 5999), st.integers(0, 6000), st.sampled_from([1, 7, 600, 6000]))
def test_importances_of_any_stretch_are_differences_times_their_rows_number(start, length, columns):
    base, model = tensors(2, (6000,))
    numbers = np.linspace(0, 2, 6000 // columns + 1, dtype=np.float32)
    part = slice(start, min(start + length, 6000))
    out = np.empty(part.stop - part.start, np.float32)
    importance(("F32", "F32"), start, base[part], model[part], table(numbers), columns, out)
    expected = np.abs(model - base) * numbers[np.arange(6000) // columns]
    assert same_bits(out, expected[part])


def test_importances_span_blocks():
    base, model = tensors(2, (3 * BLOCK + 5,))
    out = np.empty(base.size, np.float32)
    importance(("F32", "F32"), 0, base, model, table(np.ones(1, np.float32)), base.size, out)
    assert same_bits(out, np.abs(model - base))
