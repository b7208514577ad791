"""lerp: fma(t, b - a, a)."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_tools import leaf, raw, request, run, values

from modelbuild.methods.base import Compute, Take
from modelbuild.methods.lerp import METHOD, step


def decide(t):
    return step(request({}, [{"t": t}], base=leaf(key="base")))


@pytest.mark.parametrize("dtype", ["BF16", "F16", "F32"])
def test_four_numbers_by_hand(dtype):
    inputs = [(dtype, raw([0, 1, -2, 8], dtype)), (dtype, raw([4, 1, 2, 0], dtype))]
    result = values(run("lerp", (("t", 0.25),), inputs, dtype), dtype)
    assert np.array_equal(result, [1, 1, -1, 6])


def test_the_multiplication_is_fused_with_the_addition():
    third = np.float32(1) / np.float32(3)
    inputs = [("F32", raw([-1.0])), ("F32", raw([third - 1]))]
    fused = np.float32(np.float64(np.float32(0.1)) * np.float64(np.float32(third - 1) + 1.0) - 1.0)
    assert run("lerp", (("t", 0.1),), inputs)[0] == fused
    # t·(b − a) = 3·(1/3) = 1 + 2^-25, from which a = −1 leaves 2^-25; rounded in between it would leave 0.
    a, b = np.float32(-1), np.float32(-1) + np.float32(0.33333334)
    step_ = np.float32(b - a)
    exact = np.float64(3) * np.float64(step_) - 1.0
    assert run("lerp", (("t", 3.0),), [("F32", raw([a])), ("F32", raw([b]))])[0] == np.float32(exact)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(1, 4999), max_size=6), st.sampled_from(["BF16", "F16", "F32"]))
def test_any_cuts_give_the_same_bytes(cuts, dtype):
    rng = np.random.default_rng(4)
    inputs = [(dtype, raw(rng.standard_normal(5_000), dtype)), ("BF16", raw(rng.standard_normal(5_000), "BF16"))]
    expected = run("lerp", (("t", 0.9),), inputs, dtype)
    assert np.array_equal(run("lerp", (("t", 0.9),), inputs, dtype, cuts=cuts), expected)


def test_the_loop_for_bfloat16_agrees_with_the_loop_for_any_mix():
    rng = np.random.default_rng(5)
    a, b = (raw(rng.standard_normal(70_001), "BF16") for _ in range(2))
    fused = run("lerp", (("t", 0.7),), [("BF16", a), ("BF16", b)], "BF16")
    mixed = run("lerp", (("t", 0.7),), [("F32", values(a, "BF16")), ("BF16", b)], "BF16")
    assert np.array_equal(fused, mixed)


def test_both_ends_are_taken_as_they_are():
    assert decide(0) == Take(-1)
    assert decide(1) == Take(0)
    assert decide(1e-60) == Take(-1)


def test_in_between_and_beyond_is_computed_from_base_and_model():
    for t in (0.9, 1.5, -0.25):
        decision = decide(t)
        assert isinstance(decision, Compute)
        assert decision.params == (("t", t),)
        assert [node.key for node in decision.inputs] == ["base", "input0"]


def test_the_declaration():
    assert METHOD.base == "required"
    assert METHOD.inputs == (1, 1)
