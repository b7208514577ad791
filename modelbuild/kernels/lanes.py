"""Sixty-four magnitudes compared at once, and the bits that this leaves: instructions that numba lacks."""

from __future__ import annotations

import numpy as np

from modelbuild.kernels.compile import inlined, primitive
from modelbuild.kernels.fma import LLVM, Pointer

LANES = 64
"""Magnitudes that are compared at once."""

NEVER = 2**32 - 1
"""A magnitude that no number has, behind all others: it fills lanes up."""


def within(keys: Pointer, start: int, first: int, width: int) -> np.uint64:
    """A bit for each of 64 keys from `start` on, uint64: whether it is one of `width` magnitudes from `first` on."""
    raise NotImplementedError


def lowest(bits: np.uint64) -> int:
    """The place of the lowest bit that is set; at least one has to be."""
    raise NotImplementedError


def population(bits: np.uint64) -> int:
    """How many bits are set."""
    raise NotImplementedError


@inlined
def fill_lanes(keys: Pointer, size: int) -> int:
    """Fills the lanes behind `size` keys with `NEVER`; how many comparisons all take."""
    groups = (size + LANES - 1) // LANES
    for i in range(size, groups * LANES):
        keys[i] = np.uint32(NEVER)
    return groups


@inlined
def pick(bits: np.uint64, keys: Pointer, start: int, found: Pointer) -> int:
    """Copies those of 64 keys from `start` on whose bit is set to `found`; how many."""
    picked, left = 0, bits
    while left != np.uint64(0):
        found[picked] = keys[start + lowest(left)]
        left = np.uint64(left & (left - np.uint64(1)))
        picked += 1
    return picked


def _within() -> LLVM:
    from llvmlite import ir
    from numba import types
    from numba.extending import intrinsic

    word, lanes = ir.IntType(32), ir.VectorType(ir.IntType(32), LANES)

    def splat(builder: LLVM, value: LLVM) -> LLVM:
        nothing = ir.Constant(lanes, ir.Undefined)
        one = builder.insert_element(nothing, builder.trunc(value, word), ir.Constant(word, 0))
        return builder.shuffle_vector(one, nothing, ir.Constant(lanes, None))

    @intrinsic
    def emitted(context: LLVM, keys: LLVM, start: LLVM, first: LLVM, width: LLVM) -> LLVM:
        def generate(target: LLVM, builder: LLVM, signature: LLVM, args: LLVM) -> LLVM:
            place = builder.bitcast(builder.gep(args[0], [args[1]]), lanes.as_pointer())
            # What is below the first wraps around, behind all magnitudes.
            away = builder.sub(builder.load(place, align=4), splat(builder, args[2]))
            return builder.bitcast(builder.icmp_unsigned("<", away, splat(builder, args[3])), ir.IntType(64))

        return types.uint64(keys, types.int64, types.int64, types.int64), generate

    return emitted


def _counting(instruction: str) -> LLVM:
    from llvmlite import ir
    from numba import types
    from numba.extending import intrinsic

    @intrinsic
    def emitted(context: LLVM, bits: LLVM) -> LLVM:
        def generate(target: LLVM, builder: LLVM, signature: LLVM, args: LLVM) -> LLVM:
            if instruction == "ctpop":
                return builder.ctpop(args[0])
            return builder.cttz(args[0], ir.Constant(ir.IntType(1), 1))

        return types.int64(types.uint64), generate

    return emitted


def _register() -> None:
    from numba.extending import overload

    among, first, count = _within(), _counting("cttz"), _counting("ctpop")
    overload(within)(
        lambda keys, start, first, width: lambda keys, start, first, width: among(keys, start, first, width)
    )
    overload(lowest)(lambda bits: lambda bits: first(bits))
    overload(population)(lambda bits: lambda bits: count(bits))


primitive(_register)
