"""Between bfloat16, float16 and float32, by their bits, and counting what is not finite.

Widening is exact. Narrowing rounds to nearest, ties to even; beyond the range becomes infinity; subnormals are kept.
NaN stays NaN: made quiet, with its sign and as much of its payload as fits. The same bits on every processor, whatever
its treatment of float16 or of denormals.
"""

from __future__ import annotations

import numpy as np

from modelbuild.kernels.compile import inlined, kernel
from modelbuild.kernels.fma import Array, Pointer, floats, halves, words
from modelbuild.kernels.halves import narrow_bf16, narrow_f16, widen_bf16, widen_f16

BF16, F16, F32 = 0, 1, 2
CODES = {"BF16": BF16, "F16": F16, "F32": F32}
"""How loops know the dtype of memory."""


def _lanes(width: int, exponent: int) -> tuple[int, tuple[int, ...]]:
    """The exponent's bits, and for `nonfinite_loop`: those, their lowest, the place of the sign, 1, in every lane."""
    ones = sum(1 << place for place in range(0, 64, width))
    return exponent, (exponent * ones, (exponent & -exponent) * ones, width - 1, ones)


LANES = {"BF16": _lanes(16, 0x7F80), "F16": _lanes(16, 0x7C00), "F32": _lanes(32, 0x7F80_0000)}


@inlined
def expand(address: int, code: int, start: int, count: int, into: Pointer) -> None:
    """Fills `into` with elements [start, start + count) of memory, as float32."""
    if code == BF16:
        source = halves(address + 2 * start)
        for i in range(count):
            into[i] = widen_bf16(source[i])
    elif code == F16:
        source = halves(address + 2 * start)
        for i in range(count):
            into[i] = widen_f16(source[i])
    else:
        values = floats(address + 4 * start)
        for i in range(count):
            into[i] = values[i]


@inlined
def shrink(values: Pointer, address: int, code: int, start: int, count: int) -> None:
    """Rounds `values` into elements [start, start + count) of memory."""
    if code == BF16:
        target = halves(address + 2 * start)
        for i in range(count):
            target[i] = narrow_bf16(values[i])
    elif code == F16:
        target = halves(address + 2 * start)
        for i in range(count):
            target[i] = narrow_f16(values[i])
    else:
        wide = floats(address + 4 * start)
        for i in range(count):
            wide[i] = values[i]


@kernel("void(int64, int64, int64, int64)")
def widen_loop(address: int, code: int, count: int, into: int) -> None:
    """The whole of memory as float32."""
    expand(address, code, 0, count, floats(into))


@kernel("void(int64, int64, int64, int64)")
def narrow_loop(values: int, address: int, code: int, count: int) -> None:
    """The whole of the float32 `values`, rounded into memory."""
    shrink(floats(values), address, code, 0, count)


@kernel("int64(int64, int64, uint64, uint64, uint64, uint64)")
def nonfinite_loop(address: int, count: int, exponent: int, carry: int, shift: int, ones: int) -> int:
    """How many lanes of `count` words have all exponent bits set: adding 1 to such an exponent reaches the sign bit."""
    data = words(address)
    total = 0
    # A lane of 16 bits counts to 65535 before it would spill into its neighbour.
    for block in range(0, count, 65535):
        lanes = np.uint64(0)
        for i in range(block, min(block + 65535, count)):
            lanes += (((data[i] & exponent) + carry) >> shift) & ones
        for lane in range(4):
            total += int((lanes >> np.uint64(16 * lane)) & np.uint64(65535))
    return total


def nonfinite(raw: Array, dtype: str) -> int:
    """How many of the raw elements, contiguous, are NaN or infinite."""
    raw = raw.reshape(-1)
    exponent, constants = LANES[dtype]
    whole = raw.nbytes // 8
    found: int = nonfinite_loop(address(raw), whole, *constants) if whole else 0
    if raw.nbytes > whole * 8:
        rest: Array = raw[whole * 8 // raw.itemsize :].view(np.uint32 if dtype == "F32" else np.uint16)
        found += int(np.count_nonzero((rest & exponent) == exponent))
    return found


def address(array: Array) -> int:
    """Where the first element of an array lies in memory; ValueError if not all lie one behind the other."""
    interface = array.__array_interface__
    if interface["strides"] is not None:
        raise ValueError(f"an array of strides {array.strides}, which a loop would read as one stretch")
    place: int = interface["data"][0]
    return place


def widen(raw: Array, dtype: str) -> Array:
    """The float32 values of raw elements (uint16 for BF16 and F16, float32 for F32), contiguous, in the same shape."""
    raw = np.ascontiguousarray(raw)
    values = np.empty(raw.shape, np.float32)
    widen_loop(address(raw), CODES[dtype], raw.size, address(values))
    return values


def narrow(values: Array, dtype: str) -> Array:
    """The raw elements of float32 values rounded to `dtype`, contiguous, in the same shape."""
    values = np.ascontiguousarray(values, np.float32)
    raw = np.empty(values.shape, np.float32 if dtype == "F32" else np.uint16)
    narrow_loop(address(values), address(raw), CODES[dtype], raw.size)
    return raw
