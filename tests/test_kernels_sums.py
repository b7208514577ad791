"""Sums in float64: exact products, sixteen lanes, a fixed order; and the memory that threads keep."""

import math
import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modelbuild.kernels.compile import kernel
from modelbuild.kernels.convert import address
from modelbuild.kernels.fma import doubles
from modelbuild.kernels.sums import (
    LANE_FLOATS,
    LANES,
    magnitude_sum,
    product_and_square_sum,
    product_sum,
    square_sum,
)
from modelbuild.kernels.workspace import workspace


@kernel("void(int64, int64, int64, int64, int64)")
def sums_loop(x, y, count, out, totals):
    """All sums."""
    results = doubles(out)
    results[0] = product_sum(x, y, count, totals)
    results[1] = magnitude_sum(x, count, totals)
    results[2] = square_sum(y, count, totals)
    results[3], results[4] = product_and_square_sum(x, y, count, totals)


def sums(x, y):
    x, y = np.array(x, np.float32), np.array(y, np.float32)
    out, totals = np.empty(5, np.float64), np.full(LANE_FLOATS, np.nan, np.float32)
    sums_loop(address(x), address(y), x.size, address(out), address(totals))
    product, magnitude, square, *both = out.tolist()
    assert both == [product, square] or np.isnan(out).any()
    return product, magnitude, square


def in_lanes(terms):
    """The documented order, in plain Python."""
    lanes = [0.0] * LANES
    for i, term in enumerate(terms):
        lanes[i % LANES] += term
    for half in (8, 4, 2, 1):
        lanes = [lanes[i] + lanes[half + i] for i in range(half)]
    return lanes[0]


single = st.floats(-(2.0**100), 2.0**100, width=32)


def test_by_hand():
    assert sums([1, -2, 3], [4, 5, -6]) == (-24, 6, 77)
    assert sums([], []) == (0, 0, 0)
    assert sums([-0.0], [1]) == (0, 0, 1)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(single, single), max_size=70))
def test_sums_are_those_of_the_documented_order(pairs):
    x, y = ([pair[i] for pair in pairs] for i in (0, 1))
    expected = in_lanes([a * b for a, b in pairs]), in_lanes([abs(a) for a in x]), in_lanes([b * b for b in y])
    assert sums(x, y) == expected


@pytest.mark.parametrize("count", [1, 15, 16, 17, 2048, 5003])
def test_sums_are_right_to_a_few_places(count):
    rng = np.random.default_rng(count)
    x, y = (rng.standard_normal(count).astype(np.float32) for _ in range(2))
    products, magnitudes, squares = sums(x, y)
    exact = [float(a) * float(b) for a, b in zip(x, y, strict=True)]
    assert products == pytest.approx(math.fsum(exact), abs=1e-15 * count)
    assert magnitudes == pytest.approx(math.fsum(abs(float(a)) for a in x), rel=1e-14)
    assert squares == pytest.approx(math.fsum(float(b) ** 2 for b in y), rel=1e-14)


@pytest.mark.parametrize("odd", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("place", [0, 16, 20])
def test_what_is_no_number_is_not_lost(odd, place):
    x = np.ones(21)
    x[place] = odd
    products, magnitudes, _ = sums(x, np.ones(21))
    assert not np.isfinite(products)
    assert not np.isfinite(sums(np.ones(21), x)[2])
    assert np.isnan(magnitudes) if np.isnan(odd) else magnitudes == np.inf


def test_the_smallest_numbers_count():
    tiny = float(np.float32(1e-45))
    assert sums([1e-45] * 3, [1e-45] * 3) == (3 * tiny**2, 3 * tiny, 3 * tiny**2)


# --- memory -----------------------------------------------------------------------------------------------------------


def test_a_thread_keeps_its_memory_and_shares_it_with_nobody():
    first = workspace(1000)
    assert workspace(500) is first
    assert workspace(1000, "another") is not first
    seen = []
    thread = threading.Thread(target=lambda: seen.append(workspace(1000)))
    thread.start()
    thread.join()
    assert not np.shares_memory(seen[0], first)


def test_memory_grows_when_more_is_asked_for():
    grown = workspace(workspace(10).size + 1)
    assert grown.dtype == np.float32
    assert workspace(10) is grown
