"""nearswap: where base and model are near each other the model is taken, the further apart the more of the base stays.

With a the base and b the model, in float32, every operation rounded, nothing fused:

    w = (1 / max(|a − b|, 1e-6))·t, clamped to [0, 1]
    y = w·b + (1 − w)·a, one rounding to the output's dtype
"""

from __future__ import annotations

import numpy as np

from modelbuild.kernels.combine import BLOCK, places_of
from modelbuild.kernels.compile import kernel
from modelbuild.kernels.convert import CODES, address, expand, shrink
from modelbuild.kernels.fma import Array, floats
from modelbuild.kernels.workspace import workspace

NEAREST = 1e-6


@kernel("void(int64, int64, int64, int64, float32, int64, int64, int64, int64)")
def nearswap_loop(
    base: int, base_code: int, model: int, code: int, t: float, count: int, out: int, out_code: int, scratch: int
) -> None:
    """The result, element by element."""
    one, zero, nearest = np.float32(1.0), np.float32(0.0), np.float32(NEAREST)
    for begin in range(0, count, BLOCK):
        size = min(BLOCK, count - begin)
        a, b = floats(scratch), floats(scratch + 4 * size)
        expand(base, base_code, begin, size, a)
        expand(model, code, begin, size, b)
        for i in range(size):
            away = abs(a[i] - b[i])
            w = one / (nearest if away < nearest else away) * t
            w = zero if w < zero else w
            w = one if w > one else w
            a[i] = w * b[i] + (one - w) * a[i]
        shrink(a, out, out_code, begin, size)


def nearswap(dtypes: tuple[str, str], dtype: str, t: float, base: Array, model: Array, out: Array) -> None:
    """Fills `out` with a stretch of which base and model are the raw elements."""
    first, place, target = places_of((base, model, out), out.size)
    base_code, code = (CODES[name] for name in dtypes)
    scratch = address(workspace(2 * BLOCK))
    nearswap_loop(first, base_code, place, code, t, out.size, target, CODES[dtype], scratch)
