"""Ranks within rows are those of a stable sort, and della's marks are drawn with the probability of the rank."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_tools import KINDS, magnitudes, numbers, raw, values

from modelbuild.kernels.random import uniform
from modelbuild.kernels.rank import Marks, ranks


def by_sorting(rows):
    order = np.argsort(magnitudes(rows).reshape(rows.shape), axis=1, kind="stable")
    return np.argsort(order, axis=1)


@pytest.mark.parametrize("columns", [1, 2, 31, 1023, 1024, 4100])
@pytest.mark.parametrize("kind", KINDS)
def test_ranks_are_those_of_a_stable_sort(kind, columns):
    rows = np.stack([numbers(kind, columns, seed) for seed in range(3)])
    assert np.array_equal(ranks(columns, "F32", rows.reshape(-1)).reshape(rows.shape), by_sorting(rows))


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(width=32), min_size=1, max_size=40))
def test_any_row(row):
    rows = np.array([row], np.float32)
    assert np.array_equal(ranks(len(row), "F32", rows[0]), by_sorting(rows)[0])


def test_by_hand():
    row = raw([0.5, -2, 0, 0.5, np.nan, -np.inf])
    assert ranks(6, "F32", row).tolist() == [1, 3, 0, 2, 5, 4]
    assert ranks(3, "F32", row).tolist() == [1, 2, 0, 0, 2, 1]


@pytest.mark.parametrize("dtype", ["BF16", "F16", "F32"])
def test_scores_may_be_differences_from_a_base(dtype):
    rng = np.random.default_rng(2)
    base = raw(rng.standard_normal((5, 3000)), dtype)
    model = raw(values(base, dtype) + 1e-2 * rng.standard_normal((5, 3000)), dtype)
    deltas = values(model, dtype) - values(base, dtype)
    found = ranks(3000, dtype, model.reshape(-1), dtype, base.reshape(-1))
    assert np.array_equal(found.reshape(5, 3000), by_sorting(deltas))


def test_no_rows_and_no_columns():
    assert ranks(5, "F32", np.zeros(0, np.float32)).size == ranks(0, "F32", np.zeros(0, np.float32)).size == 0


# --- marks ------------------------------------------------------------------------------------------------------------


def bits(marks, count):
    return np.unpackbits(marks.words.view(np.uint8), bitorder="little")[:count].astype(bool)


def drawn(base, model, columns, key=7, density=0.5, epsilon=0.2, step=None):
    count = model.size
    marks = Marks(count, columns, ("F32", "F32"), key, density, epsilon)
    step = step or max(count, 1)
    for start in range(0, count, step):
        stop = min(start + step, count)
        marks.draw(start, stop, base[start:stop], model[start:stop])
    return bits(marks, count)


def probabilities(deltas, density, epsilon):
    """In float32, one operation at a time."""
    columns = deltas.shape[1]
    share = by_sorting(deltas).astype(np.float32) / np.float32(columns - 1)
    return np.float32(density - epsilon) + share * np.float32(2) * np.float32(epsilon)


@pytest.mark.parametrize("shape", [(64, 3), (6, 192), (3, 1000), (1, 5000)])
def test_an_element_is_kept_where_its_number_is_below_its_probability(shape):
    rng = np.random.default_rng(shape[1])
    base, model = (rng.standard_normal(shape[0] * shape[1]).astype(np.float32) for _ in range(2))
    expected = uniform(7, 0, model.size).reshape(shape) < probabilities((model - base).reshape(shape), 0.5, 0.2)
    assert np.array_equal(drawn(base, model, shape[1]).reshape(shape), expected)


def test_the_largest_are_kept_most_often():
    shape = (2000, 64)
    model = np.tile(np.arange(64, dtype=np.float32), 2000)
    marks = drawn(np.zeros_like(model), model, 64).reshape(shape)
    shares = marks.mean(axis=0)
    expected = 0.3 + np.arange(64) / 63 * 0.4
    assert np.abs(shares - expected).max() < 5 * np.sqrt(0.25 / 2000)


def test_rows_of_one_are_kept_with_the_density():
    model = np.ones(64 * 500, np.float32)
    marks = drawn(np.zeros_like(model), model, 1)
    assert np.array_equal(marks, uniform(7, 0, model.size) < np.float32(0.5))


@settings(max_examples=20, deadline=None)
@given(st.sampled_from([(64, 3), (8, 8), (6, 64), (128, 100)]), st.integers(1, 5))
def test_stretches_of_rows_change_no_mark(shape, pieces):
    rng = np.random.default_rng(1)
    base, model = (rng.standard_normal(shape[0] * shape[1]).astype(np.float32) for _ in range(2))
    step = np.lcm(64, shape[1]) * pieces
    assert np.array_equal(drawn(base, model, shape[1], step=step), drawn(base, model, shape[1]))


def test_threads_change_no_mark():
    rng = np.random.default_rng(1)
    base, model = (rng.standard_normal(64 * 300).astype(np.float32) for _ in range(2))
    marks = Marks(model.size, 64, ("F32", "F32"), 7, 0.5, 0.2)
    with ThreadPoolExecutor(4) as pool:
        starts = range(0, model.size, 640)
        list(pool.map(lambda s: marks.draw(s, s + 640, base[s : s + 640], model[s : s + 640]), starts))
    assert np.array_equal(bits(marks, model.size), drawn(base, model, 64))


def test_another_key_gives_other_marks_and_another_model_does_not_change_the_numbers():
    model = np.zeros(64 * 64, np.float32)
    one, two = (drawn(model, model, 64, key) for key in (1, 2))
    assert 0.3 < (one != two).mean() < 0.7


@pytest.mark.parametrize(("start", "stop"), [(3, 6), (0, 5), (192, 194), (0, 66)])
def test_stretches_that_are_not_whole_rows_and_words_are_refused(start, stop):
    marks = Marks(3 * 640, 3, ("F32", "F32"), 7, 0.5, 0.2)
    tile = np.zeros(stop - start, np.float32)
    with pytest.raises(ValueError, match=r"whole rows|within a word"):
        marks.draw(start, stop, tile, tile)


def test_the_last_stretch_may_end_within_a_word():
    model = np.ones(70, np.float32)
    assert drawn(model * 0, model, 7).size == 70
