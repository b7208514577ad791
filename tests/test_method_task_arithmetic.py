"""task_arithmetic: subtract, multiply, add, each rounded."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_tools import leaf, raw, request, run, same_bits, values

from modelbuild.methods.base import Compute, Refuse, Take
from modelbuild.methods.task_arithmetic import METHOD, step


def params(*weights, scale=1.0, normalize=False):
    return (("weights", tuple(map(float, weights))), ("lambda", scale), ("normalize", normalize))


def decide(*weights, scale=1.0, normalize=False):
    shared = {"lambda": scale, "normalize": normalize}
    return step(request(shared, [{"weight": w} for w in weights], base=leaf(key="base")))


@pytest.mark.parametrize("dtype", ["BF16", "F16", "F32"])
def test_four_numbers_by_hand(dtype):
    inputs = [(dtype, raw(row, dtype)) for row in ([1, 1, 1, 1], [3, 1, 1, 0], [1, 5, 1, 2])]
    result = values(run("task_arithmetic", params(1, 0.5), inputs, dtype), dtype)
    assert np.array_equal(result, [3, 3, 1, 0.5])
    result = values(run("task_arithmetic", params(1, 3, scale=2.0, normalize=True), inputs, dtype), dtype)
    assert np.array_equal(result, [2, 7, 1, 2])


def test_nothing_is_fused():
    # 3·(1/3 as float32) is rounded to 1 before -1 is added.
    third = np.float32(1) / np.float32(3)
    inputs = [("F32", raw([0.0])), ("F32", raw([1.0])), ("F32", raw([third]))]
    assert run("task_arithmetic", params(-1, 3), inputs)[0] == 0


def test_the_steps_are_those_of_the_formula_in_float32():
    rng = np.random.default_rng(6)
    base, *models = (rng.standard_normal(5_000).astype(np.float32) for _ in range(4))
    weights = np.array([0.3, -0.7, 1.1], np.float32)
    total = np.zeros(5_000, np.float32)
    for weight, model in zip(weights, models, strict=True):
        total = total + weight * (model - base)
    expected = base + (total / (weights[0] + weights[1] + weights[2])) * np.float32(0.7)
    inputs = [("F32", array) for array in (base, *models)]
    ours = run("task_arithmetic", params(0.3, -0.7, 1.1, scale=0.7, normalize=True), inputs)
    assert same_bits(ours, expected)


def test_weights_that_no_model_changed_stay_as_they_are():
    same = raw([0.1, -3e-5, 7, 1e-30], "BF16")
    inputs = [("BF16", same)] * 3
    assert np.array_equal(run("task_arithmetic", params(0.3, 0.9, scale=0.7), inputs, "BF16"), same)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(1, 4999), max_size=6), st.sampled_from(["BF16", "F16", "F32"]))
def test_any_cuts_give_the_same_bytes(cuts, dtype):
    rng = np.random.default_rng(4)
    inputs = [(code, raw(rng.standard_normal(5_000), code)) for code in ("BF16", "F16", "F32")]
    expected = run("task_arithmetic", params(0.9, 0.3), inputs, dtype)
    assert np.array_equal(run("task_arithmetic", params(0.9, 0.3), inputs, dtype, cuts=cuts), expected)


def test_the_base_is_taken_where_nothing_is_added():
    assert decide(0, 0) == Take(-1)
    assert decide(0.5, scale=0.0) == Take(-1)
    assert decide(0, 0, normalize=True) == Take(-1)


def test_models_at_weight_0_are_left_out():
    decision = decide(0, 0.5, scale=0.7)
    assert isinstance(decision, Compute)
    assert decision.params == (("weights", (0.5,)), ("lambda", 0.7), ("normalize", False))
    assert [node.key for node in decision.inputs] == ["base", "input1"]


def test_normalised_weights_without_a_sum_are_refused():
    assert decide(0.5, -0.5, normalize=True) == Refuse("its normalised weights sum to 0")
    assert decide(0.5, -0.5 + 1e-9, normalize=True) == Refuse("its normalised weights sum to 0")
    assert isinstance(decide(0.5, -0.5), Compute)


def test_the_declaration():
    assert METHOD.base == "required"
    assert METHOD.parameter("lambda").default == 1.0
    assert METHOD.parameter("normalize").default is False
