"""mergekit 0.1.5 computes the same bits: linear in every dtype, task_arithmetic in float32.

The tensors' sizes are multiples of 32: of others, torch adds the last few values in another order from five models on.
"""

import numpy as np
import pytest
import torch
from kernel_tools import run, same_bits, values

pytestmark = pytest.mark.mergekit
DTYPES = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32}


@pytest.fixture(scope="module")
def merge():
    return pytest.importorskip("mergekit.merge_methods").merge_tensors


def tensors(count, dtype):
    torch.manual_seed(count)
    return [torch.randn(96, 320).to(DTYPES[dtype]) for _ in range(count)]


def ours(name, params, inputs, dtype):
    arrays = [t.numpy() if dtype == "F32" else t.view(torch.int16).numpy().view(np.uint16) for t in inputs]
    return values(run(name, params, [(dtype, array) for array in arrays], dtype), dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("count", [1, 2, 3, 7, 12])
def test_linear_is_mergekits_to_the_bit(merge, dtype, normalize, count):
    inputs, weights = tensors(count, dtype), tuple(0.1 + 0.317 * i for i in range(count))
    theirs = merge(inputs, "linear", parameters={"weight": list(weights), "normalize": normalize})
    params = (("weights", weights), ("normalize", normalize))
    assert same_bits(ours("linear", params, inputs, dtype), theirs.float().numpy())


@pytest.mark.parametrize("scale", [1.0, 0.7])
@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("count", [1, 2, 3, 7, 12])
def test_task_arithmetic_in_float32_is_mergekits_to_the_bit(merge, scale, normalize, count):
    inputs, weights = tensors(count + 1, "F32"), tuple(0.1 + 0.317 * i for i in range(count))
    settings = {"weight": list(weights), "normalize": normalize, "lambda": scale}
    theirs = merge(inputs, "task_arithmetic", parameters=settings, base_index=0)
    params = (("weights", weights), ("lambda", scale), ("normalize", normalize))
    assert same_bits(ours("task_arithmetic", params, inputs, "F32"), theirs.numpy())
