"""linear: the weighted sum, fused in order, divided once."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_tools import raw, request, run, same_bits, values

from modelbuild.methods.base import Compute, Refuse, Take
from modelbuild.methods.linear import METHOD, step
from modelbuild.methods.weights import divisor, nonzero, to_float32


def params(*weights, normalize=True):
    return (("weights", tuple(map(float, weights))), ("normalize", normalize))


def decide(*weights, normalize=True):
    return step(request({"normalize": normalize}, [{"weight": w} for w in weights]))


def test_four_numbers_by_hand():
    inputs = [("F32", raw([1, 2, 3, 4])), ("F32", raw([5, 6, 7, 8]))]
    assert np.array_equal(run("linear", params(1, 3), inputs), [4, 5, 6, 7])
    assert np.array_equal(run("linear", params(1, 3, normalize=False), inputs), [16, 20, 24, 28])


@pytest.mark.parametrize("dtypes", [("BF16", "BF16", "BF16"), ("F16", "BF16", "F32"), ("F32", "F16", "BF16")])
def test_any_mix_of_dtypes_gives_the_same_numbers_where_they_are_exact(dtypes):
    inputs = [(dtypes[0], raw([1, 2, -3, 0.5], dtypes[0])), (dtypes[1], raw([3, 4, 5, 1.5], dtypes[1]))]
    assert np.array_equal(values(run("linear", params(1, 1), inputs, dtypes[2]), dtypes[2]), [2, 3, 1, 1])


def test_multiplications_are_fused_with_additions():
    # 3·(1/3 as float32) is 1 + 2^-25, which only a fused multiply-add keeps until 1 is subtracted.
    third = np.float32(1) / np.float32(3)
    inputs = [("F32", raw([1.0])), ("F32", raw([third]))]
    assert run("linear", params(-1, 3, normalize=False), inputs)[0] == np.float32(2**-25)


def test_the_order_of_models_is_the_order_of_additions():
    big, one = ("F32", raw([2.0**24])), ("F32", raw([1.0]))
    weights = params(1, 1, -1, normalize=False)
    assert run("linear", weights, [big, one, big])[0] == 0
    assert run("linear", params(1, -1, 1, normalize=False), [big, big, one])[0] == 1


def test_nan_and_infinity_go_through():
    inputs = [("BF16", raw([np.nan, np.inf, 1, np.inf], "BF16")), ("BF16", raw([1, 1, 1, -np.inf], "BF16"))]
    result = values(run("linear", params(1, 1), inputs, "BF16"), "BF16")
    assert np.isnan(result[[0, 3]]).all()
    assert result[1] == np.inf
    assert result[2] == 1


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(1, 9999), max_size=6), st.sampled_from(["BF16", "F16", "F32"]))
def test_any_cuts_give_the_same_bytes(cuts, dtype):
    rng = np.random.default_rng(3)
    inputs = [(code, raw(rng.standard_normal(10_000), code)) for code in ("BF16", "F16", "F32")]
    expected = run("linear", params(0.3, 0.5, -0.1), inputs, dtype)
    assert np.array_equal(run("linear", params(0.3, 0.5, -0.1), inputs, dtype, cuts=cuts), expected)


def test_a_stretch_of_the_wrong_length_is_noticed():
    with pytest.raises(ValueError, match="4 elements"):
        run("linear", params(1, 1), [("F32", raw([1, 2, 3, 4])), ("F32", raw([1, 2]))])


def test_models_at_weight_0_are_left_out():
    decision = decide(0.5, 0, 0.25, normalize=False)
    assert isinstance(decision, Compute)
    assert decision.params == (("weights", (0.5, 0.25)), ("normalize", False))
    assert [node.key for node in decision.inputs] == ["input0", "input2"]


def test_one_model_left_is_taken_where_its_coefficient_is_1():
    assert decide(0, 0.3) == Take(1)
    assert decide(1.0, 0.0, normalize=False) == Take(0)
    assert isinstance(decide(0.5, 0.0, normalize=False), Compute)


def test_weights_without_a_sum_are_refused():
    assert decide(0.5, -0.5) == Refuse("its normalised weights sum to 0")
    assert decide(0, 0) == Refuse("all its weights are 0")
    assert decide(0, 0, normalize=False) == Refuse("all its weights are 0")
    assert isinstance(decide(0.5, -0.5, normalize=False), Compute)


def test_weights_count_as_float32():
    assert nonzero([1e-60, 1.0, -0.0]) == (1,)
    assert to_float32(0.1) == float(np.float32(0.1))
    assert to_float32(1e300) == float("inf")


def test_the_sum_of_weights_by_hand():
    big = 2.0**24  # of float32, to which 1 cannot be added, but 2 can
    assert divisor([big, 1, 1]) == big
    assert divisor([1, 1, big]) == big + 2
    # Five: the fifth goes to the first before the others are added.
    assert divisor([1, big, 0, 0, 1]) == big + 2
    # Nine: the ninth comes first of all, then the eight.
    assert divisor([1, big, 0, 0, 0, 0, 0, 0, 1]) == big + 2
    assert divisor([big, 0, 0, 0, 0, 0, 0, 1, 1]) == big


@pytest.mark.parametrize("count", [*range(1, 41), 64, 100])
def test_the_sum_of_weights_is_torchs(count):
    for weights in np.random.default_rng(count).random((50, count)):
        assert divisor(weights.tolist()) == torch.from_numpy(weights.astype(np.float32))[None].sum(dim=1).item()


def test_the_declaration():
    assert METHOD.name == "linear"
    assert METHOD.base == "none"
    assert METHOD.parameter("weight").default is None
    assert METHOD.parameter("normalize").default is True
    assert same_bits(METHOD.operation().floats, 1)
