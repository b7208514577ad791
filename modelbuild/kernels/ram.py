"""ram: a delta's element is active where it is larger than ε; what one model changed is copied, the rest averaged.

With dᵢ = xᵢ − B, active where |dᵢ| > ε (or NaN), and c the number of models that are active at the element, in float32,
nothing fused, in the order of the models:

    total = Σ over the active of dᵢ·λᵢ where c = 1, of dᵢ / c where c ≥ 2
    y = B + total, one rounding to the output's dtype

λᵢ is 1, or in ramplus_tl from how many of model i's active elements it shares with others: see `amplification`.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence

import numpy as np

from modelbuild.kernels.combine import BLOCK, places_of, table
from modelbuild.kernels.compile import inlined, kernel
from modelbuild.kernels.convert import CODES, address, shrink
from modelbuild.kernels.fma import Array, Pointer, floats, integers
from modelbuild.kernels.vectors import codes_of, spread
from modelbuild.kernels.workspace import Tables, workspace


@inlined
def count_active(rows: int, models: int, size: int, epsilon: float, active: Pointer) -> None:
    """How many models are active at each element; and sets what is not active to 0."""
    for i in range(size):
        active[i] = np.float32(0.0)
    for model in range(models):
        values = floats(rows + 4 * size * model)
        for i in range(size):
            # Written so that NaN is active.
            values[i] = np.float32(0.0) if abs(values[i]) <= epsilon else values[i]
            active[i] = active[i] + (np.float32(0.0) if values[i] == np.float32(0.0) else np.float32(1.0))


@kernel("void(int64, int64, int64, float32, int64, int64, int64)")
def active_loop(places: int, codes: int, models: int, epsilon: float, count: int, counts: int, scratch: int) -> None:
    """Adds to `counts`, int64 [models, 2], how many active elements of each model are shared, and its own alone."""
    totals = integers(counts)
    for begin in range(0, count, BLOCK):
        size = min(BLOCK, count - begin)
        spread(places, codes, models + 1, begin, size, scratch)
        rows = scratch + 4 * size
        active = floats(rows + 4 * size * models)
        count_active(rows, models, size, epsilon, active)
        for model in range(models):
            values = floats(rows + 4 * size * model)
            shared, own = np.uint32(0), np.uint32(0)
            for i in range(size):
                here = values[i] != np.float32(0.0)
                shared += np.uint32(here and active[i] > np.float32(1.0))
                own += np.uint32(here and active[i] == np.float32(1.0))
            totals[2 * model] += int(shared)
            totals[2 * model + 1] += int(own)


@kernel("void(int64, int64, int64, float32, int64, int64, int64, int64, int64)")
def ram_loop(
    places: int,
    codes: int,
    models: int,
    epsilon: float,
    factors: int,
    count: int,
    out: int,
    out_code: int,
    scratch: int,
) -> None:
    """The result, element by element; the base is the first place, `factors` are the λᵢ."""
    numbers = floats(factors)
    one = np.float32(1.0)
    for begin in range(0, count, BLOCK):
        size = min(BLOCK, count - begin)
        spread(places, codes, models + 1, begin, size, scratch)
        rows = scratch + 4 * size
        end = rows + 4 * size * models
        base, active, total = floats(scratch), floats(end), floats(end + 4 * size)
        count_active(rows, models, size, epsilon, active)
        for i in range(size):
            total[i] = np.float32(0.0)
        for model in range(models):
            values, factor = floats(rows + 4 * size * model), numbers[model]
            for i in range(size):
                alone = active[i] <= one
                total[i] = total[i] + (values[i] * factor if alone else values[i] / active[i])
        for i in range(size):
            base[i] = base[i] + total[i]
        shrink(base, out, out_code, begin, size)


class Active:
    """Counts each model's active elements: those it shares with others, and those that it has alone."""

    def __init__(self, dtypes: Sequence[str], epsilon: float) -> None:
        self._codes, self._epsilon = codes_of(dtypes), epsilon
        self._models = len(dtypes) - 1
        self._tables = Tables(self._models, 2)

    def measure(self, inputs: Sequence[Array]) -> None:
        """Counts a stretch, given raw, the base first: any stretch, in any order, by any thread."""
        tiles = array("q", places_of(inputs, inputs[0].size))
        scratch = address(workspace((self._models + 2) * BLOCK))
        places, count = tiles.buffer_info()[0], inputs[0].size
        active_loop(places, self._codes.place, self._models, self._epsilon, count, self._tables.own(), scratch)

    def result(self) -> Array:
        """Shared and own active elements of each model, int64 [models, 2], once every stretch is measured."""
        return self._tables.total()


def amplification(shared: int, own: int, r: float, alpha: float, epsilon: float) -> float:
    """λ of ramplus_tl for a model: 1 + r·ρ, ρ = shared / max(own, ε) clamped to [0, alpha]."""
    return 1.0 + r * min(max(shared / max(own, epsilon), 0.0), alpha)


class Ram:
    """Merges by ram: `dtypes` are those of the base and of the models, `factors` the models' λ."""

    def __init__(self, dtypes: Sequence[str], dtype: str, factors: Sequence[float], epsilon: float) -> None:
        if len(dtypes) != len(factors) + 1:
            raise ValueError(f"{len(factors)} models and a base, but {len(dtypes)} dtypes")
        self._codes, self._out_code, self._epsilon = codes_of(dtypes), CODES[dtype], epsilon
        self._models, self._factors = len(factors), table(np.array(factors, np.float32))

    def run(self, inputs: Sequence[Array], out: Array) -> None:
        """Fills `out` with a stretch of which `inputs` are the raw elements: any stretch will do."""
        *places, target = places_of((*inputs, out), out.size)
        tiles = array("q", places)
        scratch = address(workspace((self._models + 3) * BLOCK))
        place, factors = tiles.buffer_info()[0], self._factors.place
        epsilon, code = self._epsilon, self._out_code
        ram_loop(place, self._codes.place, self._models, epsilon, factors, out.size, target, code, scratch)
