"""Sums of float32 values in float64, in an order that is a function of their number alone.

Sixteen sums run side by side, value i going to sum i mod 16, each in order; then the upper half is added to the lower,
four times over. A product of two float32 is exact in float64, so that only the additions round. Written as LLVM
instructions: a compiler may not make sums side by side of one sum.
"""

from __future__ import annotations

import numpy as np

from modelbuild.kernels.compile import inlined, primitive
from modelbuild.kernels.fma import LLVM, doubles, floats

LANES = 16
"""Sums side by side."""

LANE_FLOATS = 2 * LANES
"""Room that they take, in float32."""


def lane_products(x: int, y: int, count: int, totals: int) -> None:
    """Leaves at `totals` the lanes' sums of products of `count` values each, a multiple of `LANES`."""
    raise NotImplementedError


def lane_magnitudes(x: int, count: int, totals: int) -> None:
    """Leaves at `totals` the lanes' sums of magnitudes of `count` values, a multiple of `LANES`."""
    raise NotImplementedError


@inlined
def across(totals: int) -> float:
    """The sum of all lanes."""
    lanes = doubles(totals)
    half = LANES // 2
    while half > 0:
        for i in range(half):
            lanes[i] += lanes[i + half]
        half >>= 1
    total: float = lanes[0]
    return total


@inlined
def product_sum(x: int, y: int, count: int, totals: int) -> float:
    """Σ x·y of `count` float32 at two addresses; `totals` is room for the lanes."""
    whole = count & ~(LANES - 1)
    lane_products(x, y, whole, totals)
    left, right, lanes = floats(x), floats(y), doubles(totals)
    for i in range(whole, count):
        lanes[i - whole] += np.float64(left[i]) * np.float64(right[i])
    return across(totals)


@inlined
def magnitude_sum(x: int, count: int, totals: int) -> float:
    """Σ |x| of `count` float32 at an address; `totals` is room for the lanes."""
    whole = count & ~(LANES - 1)
    lane_magnitudes(x, whole, totals)
    values, lanes = floats(x), doubles(totals)
    for i in range(whole, count):
        lanes[i - whole] += np.float64(abs(values[i]))
    return across(totals)


class _Emitter:
    """Writes a loop over vectors of float32 whose float64 sums stay in registers."""

    def __init__(self, builder: LLVM) -> None:
        from llvmlite import ir

        self.ir, self.builder = ir, builder
        self.word = ir.IntType(64)
        self.single, self.double = ir.VectorType(ir.FloatType(), LANES), ir.VectorType(ir.DoubleType(), LANES)

    def load(self, address: LLVM, index: LLVM) -> LLVM:
        """The vector of float32 that begins at element `index`."""
        place = self.builder.add(address, self.builder.mul(index, self.ir.Constant(self.word, 4)))
        return self.builder.load(self.builder.inttoptr(place, self.single.as_pointer()), align=4)

    def widened(self, value: LLVM) -> LLVM:
        """A vector as float64."""
        return self.builder.fpext(value, self.double)

    def products(self, addresses: LLVM, index: LLVM) -> LLVM:
        """Exact products of two vectors."""
        left, right = (self.widened(self.load(address, index)) for address in addresses)
        return self.builder.fmul(left, right)

    def magnitudes(self, addresses: LLVM, index: LLVM) -> LLVM:
        """A vector without its signs."""
        lanes = self.ir.VectorType(self.ir.IntType(32), LANES)
        bits = self.builder.bitcast(self.load(addresses[0], index), lanes)
        bits = self.builder.and_(bits, self.ir.Constant(lanes, [0x7FFF_FFFF] * LANES))
        return self.widened(self.builder.bitcast(bits, self.single))

    def loop(self, addresses: LLVM, count: LLVM, totals: LLVM, term: LLVM) -> None:
        """Adds up the terms of `count` elements and stores the lanes."""
        builder, ir = self.builder, self.ir
        before = builder.block
        body, after = builder.append_basic_block("lanes"), builder.append_basic_block("store")
        zero, nothing = ir.Constant(self.word, 0), ir.Constant(self.double, [0.0] * LANES)
        builder.cbranch(builder.icmp_signed(">", count, zero), body, after)

        builder.position_at_end(body)
        index, running = builder.phi(self.word), builder.phi(self.double)
        following = builder.add(index, ir.Constant(self.word, LANES))
        added = builder.fadd(running, term(addresses, index))
        builder.cbranch(builder.icmp_signed("<", following, count), body, after)
        for phi, first, again in ((index, zero, following), (running, nothing, added)):
            phi.add_incoming(first, before)
            phi.add_incoming(again, body)

        builder.position_at_end(after)
        result = builder.phi(self.double)
        result.add_incoming(nothing, before)
        result.add_incoming(added, body)
        builder.store(result, builder.inttoptr(totals, self.double.as_pointer()), align=4)


def _products() -> LLVM:
    from numba import types
    from numba.extending import intrinsic

    @intrinsic
    def emitted(context: LLVM, x: LLVM, y: LLVM, count: LLVM, totals: LLVM) -> LLVM:
        def generate(target: LLVM, builder: LLVM, signature: LLVM, args: LLVM) -> LLVM:
            emitter = _Emitter(builder)
            emitter.loop(args[:2], args[2], args[3], emitter.products)
            return target.get_dummy_value()

        return types.void(*(types.int64,) * 4), generate

    return emitted


def _magnitudes() -> LLVM:
    from numba import types
    from numba.extending import intrinsic

    @intrinsic
    def emitted(context: LLVM, x: LLVM, count: LLVM, totals: LLVM) -> LLVM:
        def generate(target: LLVM, builder: LLVM, signature: LLVM, args: LLVM) -> LLVM:
            emitter = _Emitter(builder)
            emitter.loop(args[:1], args[1], args[2], emitter.magnitudes)
            return target.get_dummy_value()

        return types.void(*(types.int64,) * 3), generate

    return emitted


def _register() -> None:
    from numba.extending import overload

    products, magnitudes = _products(), _magnitudes()
    overload(lane_products)(lambda x, y, count, totals: lambda x, y, count, totals: products(x, y, count, totals))
    overload(lane_magnitudes)(lambda x, count, totals: lambda x, count, totals: magnitudes(x, count, totals))


primitive(_register)
