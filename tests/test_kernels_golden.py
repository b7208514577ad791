"""A changed result needs a changed version: the digest of each operation's output on fixed inputs, by version."""

import hashlib

import numpy as np
import pytest
from kernel_tools import raw, run

from modelbuild.methods import _cast, lerp, linear, lora, passthrough, task_arithmetic

VERSIONS = {module.METHOD.name: module.METHOD.version for module in (linear, lerp, task_arithmetic, passthrough, lora)}
VERSIONS["cast"] = _cast.VERSION

GOLDEN = {
    ("linear", 1): "ca2bc1f8d9fb577b2bc5ecd1e8d3e7d3",
    ("lerp", 1): "8d6c966a1ba26a3fa1e2f14d36a11d81",
    ("task_arithmetic", 1): "2efbdbd244fc76c9718d6f75a668242d",
    ("passthrough", 1): "c18c8575599fd4496f09b2d9a419c8f8",
    ("cast", 1): "4e6d9befa8bc55f4c1caafedd4b1feb3",
    ("lora", 1): "92c2c2d6682b00cce15f81d037414c52",
}


def fixed(shape, seed, dtype):
    """Numbers from integer arithmetic alone, so that no library's generator can change them; with special values."""
    index = np.arange(np.prod(shape), dtype=np.uint64) + np.uint64(seed * 1_000_003)
    mixed = (index * np.uint64(0x9E3779B97F4A7C15)) >> np.uint64(40)
    floats = (mixed.astype(np.float32) / np.float32(2**23) - 1) * np.float32(0.1)
    if dtype != "F32" or len(shape) == 1:
        floats[:4] = [np.inf, -0.0, 1e-7, 65504]
    return dtype, raw(floats.reshape(shape), dtype)


MIX = [fixed((3001,), seed, dtype) for seed, dtype in enumerate(("BF16", "F16", "F32"))]
ADAPTED = [
    fixed((40, 75), 0, "BF16"), fixed((40, 200), 1, "F32"), fixed((200, 75), 2, "F32"), fixed((40, 75), 3, "F16"),
    fixed((40, 75), 4, "BF16"),
]  # fmt: skip
WEIGHTS = ("weights", (0.3, 0.6, -0.2))
CASES = {
    "linear": ((WEIGHTS, ("normalize", True)), MIX),
    "lerp": ((("t", 0.9),), MIX[:2]),
    "task_arithmetic": ((("weights", (0.3, 0.6)), ("lambda", 0.7), ("normalize", True)), MIX),
    "passthrough": ((("scale", 0.3),), MIX[2:]),
    "cast": ((), MIX[2:]),
    "lora": ((("terms", (("lowrank", 0.5, False, False), ("replace", 0.25), ("add", 0.5))),), ADAPTED),
}


def digest(name):
    params, inputs = CASES[name]
    outputs = [run(name, params, inputs, dtype).tobytes() for dtype in ("BF16", "F16", "F32")]
    return hashlib.sha256(b"".join(outputs)).hexdigest()[:32]


@pytest.mark.parametrize("name", CASES)
def test_results_change_only_with_the_version(name):
    assert digest(name) == GOLDEN[name, VERSIONS[name]], f"{name} computes something else: raise its version"


@pytest.mark.parametrize("name", CASES)
def test_the_digest_sees_a_change_of_one_bit(name, monkeypatch):
    params, inputs = CASES[name]
    dtype, array = inputs[0]
    changed = array.copy()
    changed.reshape(-1).view(np.uint16)[1000] ^= 0x100
    monkeypatch.setitem(CASES, name, (params, [(dtype, changed), *inputs[1:]]))
    assert digest(name) != GOLDEN[name, VERSIONS[name]]
