"""passthrough and cast: one input, times a factor or rounded to another dtype."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_tools import raw, request, run, values

from modelbuild.methods.base import Compute, Take
from modelbuild.methods.operations import operation
from modelbuild.methods.passthrough import METHOD, step


@pytest.mark.parametrize("dtype", ["BF16", "F16", "F32"])
def test_four_numbers_by_hand(dtype):
    result = run("passthrough", (("scale", -0.5),), [(dtype, raw([1, -2, 0, 8], dtype))], dtype)
    assert np.array_equal(values(result, dtype), [-0.5, 1, -0.0, -4])


def test_the_product_is_rounded_once():
    # 1.0078125 · 1.0078125 = 1.01568603515625, whose bfloat16 is 1.015625.
    result = run("passthrough", (("scale", 1.0078125),), [("BF16", raw([1.0078125], "BF16"))], "BF16")
    assert values(result, "BF16")[0] == 1.015625


@pytest.mark.parametrize("scale", [None, 1, 1.0, 1 + 1e-12])
def test_without_a_scale_or_at_1_the_input_is_taken(scale):
    assert step(request({}, [{"scale": scale}])) == Take(0)


@pytest.mark.parametrize("scale", [0.5, 0.0, -1.0])
def test_any_other_scale_is_computed(scale):
    decision = step(request({}, [{"scale": scale}]))
    assert isinstance(decision, Compute)
    assert decision.params == (("scale", scale),)


def test_the_declaration():
    assert METHOD.base == "none"
    assert METHOD.inputs == (1, 1)
    assert METHOD.parameter("scale").nullable


@pytest.mark.parametrize("source", ["BF16", "F16", "F32"])
@pytest.mark.parametrize("target", ["BF16", "F16", "F32"])
def test_a_cast_is_torchs(source, target):
    kinds = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32}
    floats = np.concatenate([np.random.default_rng(8).standard_normal(5_000) * 1e-3, [1e30, -1e30, 6e-8, -0.0]])
    stored = raw(floats, source)
    expected = torch.from_numpy(values(stored, source)).to(kinds[target]).float().numpy()
    assert np.array_equal(values(run("cast", (), [(source, stored)], target), target), expected)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(1, 4999), max_size=6))
def test_any_cuts_give_the_same_bytes(cuts):
    stored = [("F32", raw(np.random.default_rng(4).standard_normal(5_000)))]
    assert np.array_equal(run("cast", (), stored, "BF16", cuts=cuts), run("cast", (), stored, "BF16"))
    scaled = run("passthrough", (("scale", 0.3),), stored, "F16")
    assert np.array_equal(run("passthrough", (("scale", 0.3),), stored, "F16", cuts=cuts), scaled)


def test_operations_are_found_by_name():
    for name in ("linear", "lerp", "task_arithmetic", "passthrough", "lora", "cast"):
        assert operation(name).floats >= 1
    for name in ("source", "base", "weights", "nonsense", "_cast"):
        with pytest.raises(KeyError):
            operation(name)
