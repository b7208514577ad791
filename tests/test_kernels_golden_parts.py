"""What methods are made of gives the bits it gave, on every kind of processor: digests of results on fixed inputs.

A changed digest means that every method that uses the part needs a new version.
"""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from kernel_tools import combine, matrix, measured, raw
from vote_tools import norms, thresholds, vote

from modelbuild.kernels.combine import table
from modelbuild.kernels.divergence import divergences
from modelbuild.kernels.gram import ColumnGram
from modelbuild.kernels.mask import band, drawn, everything, marked
from modelbuild.kernels.nearswap import nearswap
from modelbuild.kernels.ram import Active, Ram
from modelbuild.kernels.random import uniform
from modelbuild.kernels.rank import Marks, ranks
from modelbuild.kernels.scores import importance, variance
from modelbuild.kernels.vote import Rule, Voter
from modelbuild.methods._arcs import nuslerp, slerp
from modelbuild.methods._means import karcher, model_stock, multislerp
from modelbuild.methods._span import Span

GOLDEN = {
    "grams": "ff46017ffbb3ffa32a804f12614a1384",
    "combinations": "306cad4dc2c40e316df120a8dbabc6bb",
    "coefficients": "ef62302f10311f00598e3cf70e2e2c72",
    "selections": "52ed5c4eea4b6bff2a0f765303da5889",
    "randoms": "e7758e50682842640b92d6b4882605c1",
    "votes": "25ea00d7908a3f97d1801e4151f2faac",
    "others": "5e5e6e3506cbb97ff70e3ea58bfbdfc2",
}

SHAPE = (23, 307)
COLUMNS = SHAPE[1]
COUNT = SHAPE[0] * SHAPE[1]
DTYPES = ("BF16", "F16", "F32")


def fixed(seed, dtype="F32"):
    """Numbers from integer arithmetic alone, so that no library's generator can change them."""
    index = np.arange(COUNT, dtype=np.uint64) + np.uint64(seed * 1_000_003)
    mixed = (index * np.uint64(0x9E3779B97F4A7C15)) >> np.uint64(40)
    return raw((mixed.astype(np.float32) / np.float32(2**23) - 1) * np.float32(0.1), dtype)


def family(count, dtype="F32"):
    return [fixed(seed, dtype).reshape(SHAPE) for seed in range(count)]


def grams():
    for dtype in DTYPES:
        inputs = family(4, dtype)
        yield matrix(inputs, dtype=dtype)
        yield matrix(inputs, COLUMNS, anchored=True, dtype=dtype)
        yield measured(ColumnGram([dtype] * 4, COUNT, COLUMNS, anchored=False), inputs, COUNT, 1000)


def combinations():
    coefficients = fixed(9)[: COLUMNS * 3].astype(np.float64)
    for dtype in DTYPES:
        inputs, settings = family(4, dtype), {"dtypes": [dtype] * 4, "dtype": dtype}
        yield combine(inputs, coefficients[:4].reshape(1, 4), anchored=True, **settings)
        yield combine(inputs, coefficients[:69].reshape(23, 3), COLUMNS, **settings)
        yield combine(inputs, coefficients.reshape(COLUMNS, 3), COLUMNS, by_column=True, **settings)


def coefficients():
    two, four = (matrix(family(count), COLUMNS, anchored=True) for count in (2, 4))
    for t in (0.3, 1.7):
        yield slerp(Span(two, True), t)
        yield nuslerp(Span(two, True), t)
    yield model_stock(Span(four, False))
    yield multislerp(Span(four[:1], True), [0.1, 0.2, 0.3, 0.5])
    yield karcher(Span(four[:1], True))


def selections():
    base, model = (array.reshape(-1) for array in family(2, "BF16"))
    for threshold in thresholds(model, [1, 700, 3000, COUNT - 1], base, "BF16"):
        yield np.array([threshold.magnitude, threshold.cut])
    yield ranks(COLUMNS, "BF16", model, "BF16", base)


def marks():
    base, model = (array.reshape(-1) for array in family(2, "BF16"))
    found = Marks(COUNT, COLUMNS, ("BF16", "BF16"), 11, 0.5, 0.3)
    found.draw(0, COUNT, base, model)
    return found.words


def randoms():
    yield uniform(0x0123456789ABCDEF, 5, 5000)
    yield marks()


def votes():
    rules = Rule("sum", "agreeing", scale=0.7), Rule("count"), Rule("sum", "floored", late=True), Rule(divide="all")
    for dtype in DTYPES:
        inputs = family(5, dtype)
        flat = [array.reshape(-1) for array in inputs]
        outer, inner = thresholds(flat[1], [4000, 100], flat[0], dtype)
        masks = band(outer, inner), drawn(2**63 + 1, 0.4), marked(marks()), everything()
        yield norms(inputs, masks, dtype)
        voters = [Voter(mask, 0.3 * i + 0.1, 1.0 + 0.1 * i) for i, mask in enumerate(masks)]
        for rule in rules:
            yield vote(inputs, voters, rule, dtype)


def others():
    for dtype in DTYPES:
        inputs = [array.reshape(-1) for array in family(4, dtype)]
        dtypes, out, scores = [dtype] * 4, np.empty_like(inputs[0]), np.empty(COUNT, np.float32)
        variance(dtypes, inputs, scores)
        yield scores
        rows = divergences((dtype, dtype), COLUMNS, inputs[0], inputs[1])
        yield rows
        importance((dtype, dtype), 0, inputs[0], inputs[1], table(rows), COLUMNS, scores)
        yield scores
        active = Active(dtypes, 0.03)
        active.measure(inputs)
        yield active.result()
        Ram(dtypes, dtype, [1.0, 1.1, 1.2], 0.03).run(inputs, out)
        yield out
        nearswap((dtype, dtype), dtype, 0.05, inputs[0], inputs[1], out)
        yield out


PARTS = {part.__name__: part for part in (grams, combinations, coefficients, selections, randoms, votes, others)}


def digest(name):
    found = hashlib.sha256()
    for array in PARTS[name]():
        found.update(np.ascontiguousarray(array).tobytes())
    return found.hexdigest()[:32]


@pytest.mark.parametrize("name", PARTS)
def test_results_change_only_with_the_versions_of_the_methods(name):
    assert digest(name) == GOLDEN[name], f"{name} gives something else: raise the versions of the methods that use it"


@pytest.mark.parametrize("name", PARTS)
def test_the_digest_sees_a_change_of_one_value(name, monkeypatch):
    original = fixed

    def changed(seed, dtype="F32"):
        array = original(seed, dtype).copy()
        array[1000] = original(seed + 1, dtype)[1]
        array[3] = original(seed + 2, dtype)[2]
        return array

    monkeypatch.setattr(sys.modules[__name__], "fixed", changed)
    monkeypatch.setattr(sys.modules[__name__], "uniform", lambda key, start, stop: np.zeros(stop - start))
    assert digest(name) != GOLDEN[name]


def test_a_processor_without_wide_vectors_and_fused_operations_gives_the_same_bits():
    paths = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    env = {**os.environ, "NUMBA_CPU_NAME": "generic", "PYTHONPATH": paths}
    ran = subprocess.run([sys.executable, __file__], env=env, capture_output=True, text=True, check=True)
    assert json.loads(ran.stdout) == GOLDEN


if __name__ == "__main__":
    print(json.dumps({name: digest(name) for name in PARTS}))
