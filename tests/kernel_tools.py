"""Running operations and kernels on small arrays, as the engine would: in stretches, whole inputs first."""

from itertools import pairwise

import numpy as np

from modelbuild.engine.program import finished
from modelbuild.kernels.combination import Combination
from modelbuild.kernels.convert import narrow, widen
from modelbuild.kernels.gram import Gram
from modelbuild.kernels.magnitude import NAN
from modelbuild.kernels.vectors import GRAIN
from modelbuild.methods.base import Request
from modelbuild.methods.operations import operation
from modelbuild.plan.node import Node, operation_node


def leaf(dtype="F32", shape=(4,), key="leaf"):
    return Node(key, "source", 1, (), (), dtype, tuple(shape))


def raw(values, dtype="F32"):
    return narrow(np.asarray(values, np.float32), dtype)


def values(array, dtype="F32"):
    return widen(array, dtype)


def node_of(name, params, inputs, dtype, shape=None):
    """The node for `inputs`, pairs of dtype and raw array."""
    leaves = tuple(leaf(code, array.shape, f"{name}{i}") for i, (code, array) in enumerate(inputs))
    return operation_node(name, 1, params, leaves, dtype, tuple(inputs[0][1].shape if shape is None else shape))


def run(name, params, inputs, dtype="F32", shape=None, cuts=()):
    """The raw result of an operation on `inputs`, computed in the stretches between `cuts`."""
    node = node_of(name, params, inputs, dtype, shape)
    op = operation(name)
    whole = op.whole(node)
    streamed = [array.reshape(-1) for i, (_, array) in enumerate(inputs) if i not in whole]
    out = np.zeros(node.count, np.float32 if dtype == "F32" else np.uint16)
    bounds = [0, *sorted({cut for cut in cuts if 0 < cut < node.count}), node.count]

    def stretches(bounds=bounds):
        for start, stop in pairwise(bounds):
            scratch = np.full(max(op.scratch(node), 1) * (stop - start), np.nan, np.float32)
            yield start, stop, [array[start:stop] for array in streamed], scratch

    def show(wanted):
        """A pass, in stretches that are as short as may be."""
        width = wanted.unit if wanted.unit > 1 else GRAIN
        for first, end in [(0, node.count)] if wanted.stretches is None else wanted.stretches:
            for start, stop, tiles, scratch in stretches([*range(first, end, width), end]):
                shown = range(len(tiles)) if wanted.inputs is None else wanted.inputs
                wanted.look(start, stop, [tiles[index] for index in shown], scratch)

    made = op.prepare(node, [inputs[i][1] for i in whole])
    kernel = finished(made, show, lambda text: None) if op.surveys(node) else made
    for start, stop, tiles, scratch in stretches():
        kernel(start, stop, tiles, out[start:stop], scratch)
    return out.reshape(node.shape)


def request(shared=None, per_input=(), base=None, count=None):
    """What a method is asked for one tensor, with leaves as inputs."""
    inputs = tuple(leaf(key=f"input{i}") for i in range(len(per_input) if count is None else count))
    return Request(base, inputs, shared or {}, tuple(per_input))


def same_bits(a, b):
    """Whether two float32 arrays are equal to the bit, any NaN being as good as another."""
    a, b = np.asarray(a, np.float32), np.asarray(b, np.float32)
    return bool(((a.view(np.uint32) == b.view(np.uint32)) | (np.isnan(a) & np.isnan(b))).all())


def tensors(count, shape=(6, 500), seed=0, spread=1e-2, dtype="F32"):
    """Raw tensors that differ from each other a little, as models of one family do."""
    rng = np.random.default_rng(seed)
    common = rng.standard_normal(shape)
    return [raw(common + spread * rng.standard_normal(shape), dtype) for _ in range(count)]


def differences(inputs, dtype="F32"):
    """The inputs but the first, less the first, in float32, flat."""
    first, *others = (values(array, dtype).reshape(-1) for array in inputs)
    return [other - first for other in others]


def measured(gram, inputs, count, step, order=1):
    """The Gram matrices of inputs measured in stretches of `step`, the last ones first where `order` is -1."""
    flat = [array.reshape(-1) for array in inputs]
    for start in list(range(0, count, step))[::order]:
        stop = min(start + step, count)
        gram.measure(start, stop, [array[start:stop] for array in flat])
    return gram.result()


def matrix(inputs, columns=None, anchored=False, dtype="F32", step=GRAIN, order=1):
    """The Gram matrices of inputs, measured in stretches of `step`."""
    count = inputs[0].size
    gram = Gram([dtype] * len(inputs), count, count if columns is None else columns, anchored=anchored)
    return measured(gram, inputs, count, step, order)


def combine(inputs, coefficients, columns=None, anchored=False, by_column=False, dtypes=None, dtype="F32", cuts=()):
    """The raw combination of inputs with coefficients, computed in the stretches between `cuts`."""
    count = inputs[0].size
    dtypes = dtypes or ["F32"] * len(inputs)
    columns = count if columns is None else columns
    mix = Combination(dtypes, dtype, np.asarray(coefficients), columns, anchored=anchored, by_column=by_column)
    out = np.zeros(count, np.float32 if dtype == "F32" else np.uint16)
    flat = [array.reshape(-1) for array in inputs]
    for start, stop in pairwise([0, *sorted({cut for cut in cuts if 0 < cut < count}), count]):
        mix.run(start, stop, [array[start:stop] for array in flat], out[start:stop])
    return out.reshape(inputs[0].shape)


ODD = [0.0, -0.0, 1e-45, -1e-45, 1.0, -1.0, 1.0, 3e38, np.inf, -np.inf, np.nan, -np.nan]


def magnitudes(scores):
    """Whole numbers that order as magnitudes do, by numpy."""
    return np.minimum(np.asarray(scores, np.float32).view(np.uint32) & 0x7FFF_FFFF, NAN).astype(np.int64)


def numbers(kind, count, seed=0):
    """Scores of a kind that selection may meet."""
    rng = np.random.default_rng(seed)
    normal = rng.standard_normal(count)
    return {
        "normal": normal,
        "few": np.round(normal * 3),
        "equal": np.full(count, -2.5),
        "zero": normal * 0,
        "sparse": np.where(rng.random(count) < 0.4, 0, np.round(normal * 200) / 200),
        "odd": np.resize(ODD, count),
        "tiny": normal * 1e-42,
        "rising": np.arange(count, dtype=np.float64),
        "close": 1 + np.arange(count) % 5 * 2.0**-23,
    }[kind].astype(np.float32)


KINDS = ["normal", "few", "equal", "zero", "sparse", "odd", "tiny", "rising", "close"]
