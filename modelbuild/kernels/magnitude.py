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
from modelbuild.kernels.convert import BF16, expand
from modelbuild.kernels.fma import LLVM, Pointer, floats, halves, integers, words32
from modelbuild.kernels.halves import widen_bf16

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
def measure(
    base: int, base_code: int, place: int, code: int, start: int, size: int, keys: Pointer, scratch: int
) -> None:
    """The magnitudes of the scores of elements [start, start + size); `scratch` has room for twice as many."""
    if base != 0 and base_code == BF16 and code == BF16:
        # By far the most common; in one loop it takes half of the time.
        ours, theirs = halves(place + 2 * start), halves(base + 2 * start)
        for i in range(size):
            keys[i] = magnitude(widen_bf16(ours[i]) - widen_bf16(theirs[i]))
        return
    values = score(base, base_code, place, code, start, size, scratch)
    for i in range(size):
        keys[i] = magnitude(values[i])


@inlined
def count_equal(keys: Pointer, size: int, wanted: int, shift: int) -> int:
    """How many of the keys are `wanted` once `shift` bits are dropped."""
    found = np.uint32(0)
    target, drop = np.uint32(wanted), np.uint32(shift)
    for i in range(size):
        found += np.uint32(np.uint32(keys[i] >> drop) == target)
    return int(found)


@kernel("void(int64, int64, int64, int64, int64, int64, int64)")
def measure_loop(base: int, base_code: int, place: int, code: int, count: int, out: int, scratch: int) -> None:
    """The magnitudes of the scores, uint32."""
    for begin in range(0, count, BLOCK):
        size = min(BLOCK, count - begin)
        measure(base, base_code, place, code, begin, size, words32(out + 4 * begin), scratch)


@kernel("void(int64, int64, int64, int64, int64, int64, int64)")
def upper_loop(base: int, base_code: int, place: int, code: int, count: int, histogram: int, scratch: int) -> None:
    """Adds the scores to a histogram of their upper bits, int64; those that are 0 also to entry `ZEROS`."""
    bins = integers(histogram)
    keys = words32(scratch + 8 * BLOCK)
    for begin in range(0, count, BLOCK):
        size = min(BLOCK, count - begin)
        measure(base, base_code, place, code, begin, size, keys, scratch)
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
        measure(base, base_code, place, code, begin, size, keys, scratch)
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


@kernel("void(int64, int64, int64, int64, int64, int64, int64, int64)")
def equal_loop(
    base: int, base_code: int, place: int, code: int, count: int, wanted: int, blocks: int, scratch: int
) -> None:
    """For each block of the stretch the number of scores whose magnitude is `wanted`, int64."""
    counts = integers(blocks)
    keys = words32(scratch + 8 * BLOCK)
    for begin in range(0, count, BLOCK):
        size = min(BLOCK, count - begin)
        measure(base, base_code, place, code, begin, size, keys, scratch)
        counts[begin // BLOCK] = count_equal(keys, size, wanted, 0)


@kernel("int64(int64, int64, int64, int64, int64, int64, int64, int64)")
def place_loop(
    base: int, base_code: int, place: int, code: int, count: int, wanted: int, number: int, scratch: int
) -> int:
    """How many scores of one block come before the one behind the `number`th whose magnitude is `wanted`."""
    keys = words32(scratch + 8 * BLOCK)
    measure(base, base_code, place, code, 0, count, keys, scratch)
    target, left = np.uint32(wanted), number
    for i in range(count):
        if left == 0:
            return i
        left -= int(keys[i] == target)
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
