"""Sums of float32 values in float64, in an order that is a function of their number alone.

Sixteen sums run side by side, value i going to sum i mod 16, each in order; then the upper half is added to the lower,
four times over. A product of two float32 is exact in float64, so that only the additions round. Written as LLVM
instructions: a compiler may not make sums side by side of one sum.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

import numpy as np

from modelbuild.kernels.compile import inlined, primitive
from modelbuild.kernels.fma import LLVM, doubles, floats

LANES = 16
"""Sums side by side."""

LANE_FLOATS = 4 * LANES
"""Room that two such sums take, in float32."""


def lane_products(x: int, y: int, count: int, totals: int) -> None:
    """Leaves at `totals` the lanes' sums of products of `count` values each, a multiple of `LANES`."""
    raise NotImplementedError


def lane_squares(x: int, count: int, totals: int) -> None:
    """Leaves at `totals` the lanes' sums of squares of `count` values, a multiple of `LANES`."""
    raise NotImplementedError


def lane_products_and_squares(x: int, y: int, count: int, totals: int) -> None:
    """Leaves at `totals` what `lane_products` does, and behind it what `lane_squares` does of the second values."""
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
def square_sum(x: int, count: int, totals: int) -> float:
    """Σ x² of `count` float32 at an address; `totals` is room for the lanes."""
    whole = count & ~(LANES - 1)
    lane_squares(x, whole, totals)
    values, lanes = floats(x), doubles(totals)
    for i in range(whole, count):
        lanes[i - whole] += np.float64(values[i]) * np.float64(values[i])
    return across(totals)


@inlined
def product_and_square_sum(x: int, y: int, count: int, totals: int) -> tuple[float, float]:
    """Σ x·y and Σ y² of `count` float32 at two addresses, as `product_sum` gives them; `totals` is room for both."""
    whole = count & ~(LANES - 1)
    lane_products_and_squares(x, y, whole, totals)
    left, right, lanes, squares = floats(x), floats(y), doubles(totals), doubles(totals + 8 * LANES)
    for i in range(whole, count):
        lanes[i - whole] += np.float64(left[i]) * np.float64(right[i])
        squares[i - whole] += np.float64(right[i]) * np.float64(right[i])
    return across(totals), across(totals + 8 * LANES)


@inlined
def magnitude_sum(x: int, count: int, totals: int) -> float:
    """Σ |x| of `count` float32 at an address; `totals` is room for the lanes."""
    whole = count & ~(LANES - 1)
    lane_magnitudes(x, whole, totals)
    values, lanes = floats(x), doubles(totals)
    for i in range(whole, count):
        lanes[i - whole] += np.float64(abs(values[i]))
    return across(totals)


Terms: TypeAlias = "Callable[[Sequence[LLVM], LLVM], list[LLVM]]"
"""Emits the terms of the vectors that begin at an element: one for each sum."""


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

    def widened(self, address: LLVM, index: LLVM) -> LLVM:
        """The vector that begins at element `index`, as float64."""
        return self.builder.fpext(self.load(address, index), self.double)

    def products(self, addresses: Sequence[LLVM], index: LLVM) -> list[LLVM]:
        """Exact products of two vectors."""
        left, right = (self.widened(address, index) for address in addresses)
        return [self.builder.fmul(left, right)]

    def squares(self, addresses: Sequence[LLVM], index: LLVM) -> list[LLVM]:
        """Exact squares of a vector."""
        value = self.widened(addresses[0], index)
        return [self.builder.fmul(value, value)]

    def products_and_squares(self, addresses: Sequence[LLVM], index: LLVM) -> list[LLVM]:
        """Exact products of two vectors, and squares of the second: it is widened once."""
        left, right = (self.widened(address, index) for address in addresses)
        return [self.builder.fmul(left, right), self.builder.fmul(right, right)]

    def magnitudes(self, addresses: Sequence[LLVM], index: LLVM) -> list[LLVM]:
        """A vector without its signs."""
        lanes = self.ir.VectorType(self.ir.IntType(32), LANES)
        bits = self.builder.bitcast(self.load(addresses[0], index), lanes)
        bits = self.builder.and_(bits, self.ir.Constant(lanes, [0x7FFF_FFFF] * LANES))
        return [self.builder.fpext(self.builder.bitcast(bits, self.single), self.double)]

    def loop(self, addresses: Sequence[LLVM], count: LLVM, totals: LLVM, terms: Terms, sums: int) -> None:
        """Adds up the terms of `count` elements, each to one of the sums, and stores their lanes one behind another."""
        builder, ir = self.builder, self.ir
        before = builder.block
        body, after = builder.append_basic_block("lanes"), builder.append_basic_block("store")
        zero, nothing = ir.Constant(self.word, 0), ir.Constant(self.double, [0.0] * LANES)
        builder.cbranch(builder.icmp_signed(">", count, zero), body, after)

        builder.position_at_end(body)
        index, running = builder.phi(self.word), [builder.phi(self.double) for _ in range(sums)]
        following = builder.add(index, ir.Constant(self.word, LANES))
        added = [builder.fadd(total, term) for total, term in zip(running, terms(addresses, index), strict=True)]
        builder.cbranch(builder.icmp_signed("<", following, count), body, after)
        index.add_incoming(zero, before)
        index.add_incoming(following, body)
        for total, one in zip(running, added, strict=True):
            total.add_incoming(nothing, before)
            total.add_incoming(one, body)

        builder.position_at_end(after)
        results = [builder.phi(self.double) for _ in range(sums)]
        for result, one in zip(results, added, strict=True):
            result.add_incoming(nothing, before)
            result.add_incoming(one, body)
        for number, result in enumerate(results):
            place = builder.add(totals, ir.Constant(self.word, 8 * LANES * number))
            builder.store(result, builder.inttoptr(place, self.double.as_pointer()), align=4)


def _instruction(terms: str, vectors: int, sums: int) -> LLVM:
    """A loop over so many vectors that forms so many sums of the emitter's `terms`."""
    from numba import types
    from numba.extending import intrinsic

    def generate(target: LLVM, builder: LLVM, signature: LLVM, args: LLVM) -> LLVM:
        emitter = _Emitter(builder)
        emitter.loop(args[:vectors], args[vectors], args[vectors + 1], getattr(emitter, terms), sums)
        return target.get_dummy_value()

    @intrinsic
    def of_one(context: LLVM, x: LLVM, count: LLVM, totals: LLVM) -> LLVM:
        return types.void(*(types.int64,) * 3), generate

    @intrinsic
    def of_two(context: LLVM, x: LLVM, y: LLVM, count: LLVM, totals: LLVM) -> LLVM:
        return types.void(*(types.int64,) * 4), generate

    return of_one if vectors == 1 else of_two


def _register() -> None:
    from numba.extending import overload

    products, both = _instruction("products", 2, 1), _instruction("products_and_squares", 2, 2)
    squares, magnitudes = _instruction("squares", 1, 1), _instruction("magnitudes", 1, 1)
    overload(lane_products)(lambda x, y, count, totals: lambda x, y, count, totals: products(x, y, count, totals))
    overload(lane_products_and_squares)(
        lambda x, y, count, totals: lambda x, y, count, totals: both(x, y, count, totals)
    )
    overload(lane_squares)(lambda x, count, totals: lambda x, count, totals: squares(x, count, totals))
    overload(lane_magnitudes)(lambda x, count, totals: lambda x, count, totals: magnitudes(x, count, totals))


primitive(_register)
