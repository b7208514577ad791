"""The magnitude of a float32 as a whole number that orders as it does, and counting magnitudes.

It is the bits without the sign, and every NaN the same: one more than infinity, so the largest of all. So numbers are
compared the same on every processor, whatever its treatment of denormals and of NaN.

A *score* is what is counted: the difference of an input from a base, rounded to float32, or, without a base (its
address is 0), a float32 of an input itself.
"""

from __future__ import annotations

import numpy as np

from modelbuild.kernels.combine import BLOCK
from modelbuild.kernels.compile import inlined, kernel, primitive
from modelbuild.kernels.convert import expand
from modelbuild.kernels.fma import LLVM, Pointer, floats, integers, words32

SCRATCH = 4 * BLOCK
"""float32 that the loops work in."""

NAN = 0x7F80_0001
"""The magnitude of every NaN."""

LOWER_BITS = 15
UPPER, LOWER = 1 << 16, 1 << LOWER_BITS
"""How many values the upper bits of a magnitude have, and the lower ones."""

ZEROS = UPPER - 1
"""The entry of a histogram of upper bits, which no magnitude has, that counts the scores that are 0."""


def magnitude(value: float) -> int:
    """The magnitude of a float32, as uint32."""
    raise NotImplementedError


@inlined
def score(base: int, base_code: int, place: int, code: int, start: int, size: int, scratch: int) -> Pointer:
    """The scores of elements [start, start + size), in `scratch`, which has room for twice as many."""
    values = floats(scratch)
    expand(place, code, start, size, values)
    if base != 0:
        first = floats(scratch + 4 * size)
        expand(base, base_code, start, size, first)
        for i in range(size):
            values[i] = values[i] - first[i]
    return values


@inlined
def count_equal(keys: Pointer, size: int, wanted: int, shift: int) -> int:
    """How many of the keys are `wanted` once `shift` bits are dropped."""
    found = np.uint32(0)
    target, drop = np.uint32(wanted), np.uint32(shift)
    for i in range(size):
        found += np.uint32(np.uint32(keys[i] >> drop) == target)
    return int(found)


@kernel("void(int64, int64, int64, int64, int64, int64, int64)")
def upper_loop(base: int, base_code: int, place: int, code: int, count: int, histogram: int, scratch: int) -> None:
    """Adds the scores to a histogram of their upper bits, int64; those that are 0 also to entry `ZEROS`."""
    bins = integers(histogram)
    keys = words32(scratch + 8 * BLOCK)
    for begin in range(0, count, BLOCK):
        size = min(BLOCK, count - begin)
        values = score(base, base_code, place, code, begin, size, scratch)
        for i in range(size):
            keys[i] = magnitude(values[i])
        bins[ZEROS] += count_equal(keys, size, 0, 0)
        for i in range(size):
            bins[keys[i] >> np.uint32(LOWER_BITS)] += 1


@kernel("void(int64, int64, int64, int64, int64, int64, int64, int64, int64, int64)")
def lower_loop(
    base: int,
    base_code: int,
    place: int,
    code: int,
    count: int,
    wanted: int,
    buckets: int,
    histograms: int,
    blocks: int,
    scratch: int,
) -> None:
    """Adds the scores whose upper bits are one of the `wanted` to that bucket's histogram of their lower bits.

    For each bucket, where its table of blocks stands, int64, and the number of the bucket's scores in each block of
    the stretch goes there.
    """
    uppers, tables = integers(wanted), integers(blocks)
    keys, found = words32(scratch + 8 * BLOCK), words32(scratch + 12 * BLOCK)
    for begin in range(0, count, BLOCK):
        size = min(BLOCK, count - begin)
        values = score(base, base_code, place, code, begin, size, scratch)
        for i in range(size):
            keys[i] = magnitude(values[i])
        for bucket in range(buckets):
            upper = np.uint32(uppers[bucket])
            inside = 0
            for i in range(size):
                found[inside] = keys[i] & np.uint32(LOWER - 1)
                inside += int(np.uint32(keys[i] >> np.uint32(LOWER_BITS)) == upper)
            bins = integers(histograms + 8 * LOWER * bucket)
            for i in range(inside):
                bins[found[i]] += 1
            integers(tables[bucket])[begin // BLOCK] = inside


@kernel("void(int64, int64, int64, int64, int64, int64, int64, int64, int64, int64, int64, int64)")
def range_loop(
    base: int,
    base_code: int,
    place: int,
    code: int,
    count: int,
    first: int,
    buckets: int,
    above: int,
    histograms: int,
    blocks: int,
    stride: int,
    scratch: int,
) -> None:
    """Counts the scores whose upper bits are one of `buckets` values from `first` on, and those that are above.

    For each such value, int64: a histogram of the lower bits, and `stride` entries on the number in each block.
    """
    bins, rows, higher = integers(histograms), integers(blocks), integers(above)
    keys, found = words32(scratch + 8 * BLOCK), words32(scratch + 12 * BLOCK)
    least, width, half = np.uint32(first << LOWER_BITS), np.uint32(buckets << LOWER_BITS), np.uint32(1 << 31)
    for begin in range(0, count, BLOCK):
        size = min(BLOCK, count - begin)
        values = score(base, base_code, place, code, begin, size, scratch)
        for i in range(size):
            # What is below the least wraps around, behind all that can be above it.
            keys[i] = np.uint32(magnitude(values[i]) - least)
        beyond = np.uint32(0)
        for i in range(size):
            beyond += np.uint32((keys[i] >= width) & (keys[i] < half))
        higher[0] += int(beyond)
        inside = 0
        for i in range(size):
            found[inside] = keys[i]
            inside += int(keys[i] < width)
        for i in range(inside):
            bins[found[i]] += 1
        for bucket in range(buckets):
            rows[bucket * stride + begin // BLOCK] += count_equal(found, inside, bucket, LOWER_BITS)


@kernel("void(int64, int64, int64, int64, int64, int64, int64, int64)")
def equal_loop(
    base: int, base_code: int, place: int, code: int, count: int, wanted: int, blocks: int, scratch: int
) -> None:
    """For each block of the stretch the number of scores whose magnitude is `wanted`, int64."""
    counts = integers(blocks)
    keys = words32(scratch + 8 * BLOCK)
    for begin in range(0, count, BLOCK):
        size = min(BLOCK, count - begin)
        values = score(base, base_code, place, code, begin, size, scratch)
        for i in range(size):
            keys[i] = magnitude(values[i])
        counts[begin // BLOCK] = count_equal(keys, size, wanted, 0)


@kernel("int64(int64, int64, int64, int64, int64, int64, int64, int64)")
def place_loop(
    base: int, base_code: int, place: int, code: int, count: int, wanted: int, number: int, scratch: int
) -> int:
    """How many scores of one block come before the one behind the `number`th whose magnitude is `wanted`."""
    values = score(base, base_code, place, code, 0, count, scratch)
    target, left = np.uint32(wanted), number
    for i in range(count):
        if left == 0:
            return i
        left -= int(magnitude(values[i]) == target)
    return count


def _magnitude() -> LLVM:
    from llvmlite import ir
    from numba import types
    from numba.extending import intrinsic

    word = ir.IntType(32)

    @intrinsic
    def emitted(context: LLVM, value: LLVM) -> LLVM:
        def generate(target: LLVM, builder: LLVM, signature: LLVM, args: LLVM) -> LLVM:
            bits = builder.and_(builder.bitcast(args[0], word), ir.Constant(word, 0x7FFF_FFFF))
            nan = ir.Constant(word, NAN)
            return builder.select(builder.icmp_unsigned("<", bits, nan), bits, nan)

        return types.uint32(types.float32), generate

    return emitted


def _register() -> None:
    from numba.extending import overload

    emitted = _magnitude()
    overload(magnitude)(lambda value: lambda value: emitted(value))


primitive(_register)
