"""Sines, cosines and angles from plain arithmetic: as right as a library's, and the same everywhere."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modelbuild.methods._angles import HALF_PI, HALF_PI_PARTS, PI, angle, sine_cosine

ULP = 2.0**-52


def both(x):
    sine, cosine = sine_cosine(np.array([x]))
    return float(sine[0]), float(cosine[0])


def arc(sine, cosine):
    return float(angle(np.array([sine]), np.array([cosine]))[0])


@settings(max_examples=500, deadline=None)
@given(st.floats(-1e4, 1e4))
def test_sine_and_cosine_are_those_of_the_library_but_for_the_last_place(x):
    sine, cosine = both(x)
    # math is right to the last place; ours loses one more near the roots, where π/2 is taken away.
    assert abs(sine - math.sin(x)) <= 2 * ULP
    assert abs(cosine - math.cos(x)) <= 2 * ULP


@settings(max_examples=300, deadline=None)
@given(st.floats(0, 1e-3))
def test_small_sines_are_right_relatively(x):
    assert both(x)[0] == pytest.approx(math.sin(x), rel=4 * ULP)
    assert both(PI - x)[0] == pytest.approx(math.sin(PI - x), rel=4 * ULP, abs=1e-24)


@pytest.mark.parametrize(
    ("x", "sine", "cosine"),
    [(0.0, 0.0, 1.0), (PI / 6, 0.5, math.sqrt(3) / 2), (HALF_PI, 1.0, 0.0), (PI, 0.0, -1.0), (-HALF_PI, -1.0, 0.0)],
)
def test_angles_that_everybody_knows(x, sine, cosine):
    assert both(x) == pytest.approx((sine, cosine), abs=2 * ULP)


def test_the_parts_of_half_a_turn_are_whole_and_short():
    assert sum(HALF_PI_PARTS) == HALF_PI
    for part in HALF_PI_PARTS[:2]:
        mantissa, _ = math.frexp(part)
        assert (mantissa * 2**33).is_integer()
    # The first two leave what a float64 of π/2 leaves out: 6.123…e-17.
    assert (HALF_PI_PARTS[0] - HALF_PI) + HALF_PI_PARTS[1] + HALF_PI_PARTS[2] == pytest.approx(6.123233995736766e-17)


@settings(max_examples=500, deadline=None)
@given(st.floats(0, math.pi), st.floats(1e-3, 1e3))
def test_an_angle_is_found_from_its_sine_and_cosine_of_any_length(theta, length):
    found = arc(max(length * math.sin(theta), 0.0), length * math.cos(theta))
    assert abs(found - theta) <= 4 * ULP


@settings(max_examples=300, deadline=None)
@given(st.floats(0, 1), st.floats(-1, 1))
def test_angles_are_the_librarys(sine, cosine):
    assert abs(arc(sine, cosine) - math.atan2(sine, cosine + 0.0)) <= 4 * ULP


@pytest.mark.parametrize("tiny", [1e-3, 1e-8, 1e-15, 1e-300, 5e-324])
def test_tiny_angles_keep_all_their_digits(tiny):
    assert arc(tiny, 1.0) == pytest.approx(tiny, rel=1e-6)
    assert arc(math.sin(tiny), math.cos(tiny)) == pytest.approx(tiny, rel=4 * ULP)
    assert arc(tiny, -1.0) == pytest.approx(PI, abs=2 * tiny)


def test_no_direction_and_no_number_raise_nothing():
    assert arc(0.0, 0.0) == 0.0
    assert math.isnan(arc(math.nan, 1.0))
    assert all(math.isnan(value) for value in both(math.nan))


def test_many_are_computed_as_one_is():
    x = np.linspace(-7, 7, 1001)
    sine, cosine = sine_cosine(x)
    for i in range(0, x.size, 50):
        assert both(x[i]) == (sine[i], cosine[i])
