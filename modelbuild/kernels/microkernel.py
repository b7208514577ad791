"""The inner loop of a low-rank product: a block of output values held in vector registers while k runs.

    out[r, c] = (previous[r, c] + Σₖ left[r, k]·right[k, c])·scale

Each output value is one chain of fused multiply-adds over k, in order, from 0, whatever the size of the block or of
the processor's vectors. `previous` is what `out` holds, added where the flag of that name is not 0. In `block_8` to
`block_1`, `left`, `right` and `out` are addresses; a step is the number of elements from one row to the next; right is
[depth, width], packed. Numba would spill such a block to memory, hence LLVM instructions: for `rows` rows and
`vectors` vectors of `lanes` float32, one broadcast of left and one load of right for every multiply-add of a vector.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from modelbuild.kernels.compile import primitive
from modelbuild.kernels.fma import LLVM
from modelbuild.kernels.native import processor

Cell: TypeAlias = "tuple[int, int]"
"""A row and a column of vectors of a block."""

VECTORS = 3
"""Vectors in a row of a block: with eight rows 24 of AVX-512's 32 registers, with four rows 12 of AVX2's 16."""


@dataclass(frozen=True, slots=True)
class Shape:
    """The block that suits a processor: `tallest` rows of `VECTORS` vectors of `lanes` float32."""

    lanes: int
    tallest: int

    @property
    def width(self) -> int:
        """Columns of a block."""
        return self.lanes * VECTORS


def shape(features: str) -> Shape:
    """The block for a processor with these LLVM features: AVX-512, AVX, or 128-bit vectors."""
    enabled = set(features.split(","))
    if "+avx512f" in enabled:
        return Shape(16, 8)
    if "+avx" in enabled:
        return Shape(8, 4)
    return Shape(4, 4)


def best() -> Shape:
    """The block for this processor."""
    return shape(processor()[2])


def width() -> int:
    """Columns of a block on the processor that is compiled for."""
    raise NotImplementedError


def tallest() -> int:
    """Rows of the largest block that its registers hold."""
    raise NotImplementedError


def block_8(
    left: int, left_step: int, right: int, depth: int, out: int, out_step: int, previous: int, scale: float
) -> None:
    """Computes a block of eight rows."""
    raise NotImplementedError


def block_4(
    left: int, left_step: int, right: int, depth: int, out: int, out_step: int, previous: int, scale: float
) -> None:
    """Computes a block of four rows."""
    raise NotImplementedError


def block_2(
    left: int, left_step: int, right: int, depth: int, out: int, out_step: int, previous: int, scale: float
) -> None:
    """Computes a block of two rows."""
    raise NotImplementedError


def block_1(
    left: int, left_step: int, right: int, depth: int, out: int, out_step: int, previous: int, scale: float
) -> None:
    """Computes a block of one row."""
    raise NotImplementedError


def _vector_fma(module: LLVM, vector: LLVM) -> LLVM:
    """LLVM's fused multiply-add of vectors, which llvmlite has no name for."""
    from llvmlite import ir

    name = f"llvm.fma.v{vector.count}f32"
    if name not in module.globals:
        ir.Function(module, ir.FunctionType(vector, (vector, vector, vector)), name)
    return module.globals[name]


class _Emitter:
    """Writes the instructions of one block of `rows`: what its pieces share, and then the loop and the store."""

    def __init__(self, builder: LLVM, rows: int, block: Shape) -> None:
        from llvmlite import ir

        self.ir, self.builder, self.block, self.rows = ir, builder, block, rows
        self.word, self.single = ir.IntType(64), ir.FloatType()
        self.vector = ir.VectorType(self.single, block.lanes)
        self.cells = [(row, column) for row in range(rows) for column in range(VECTORS)]

    def number(self, value: int) -> LLVM:
        """A 64-bit constant."""
        return self.ir.Constant(self.word, value)

    def at(self, base: LLVM, elements: LLVM, kind: LLVM) -> LLVM:
        """A pointer to the element so far behind `base`, four bytes each."""
        offset = self.builder.mul(elements, self.number(4))
        return self.builder.inttoptr(self.builder.add(base, offset), kind.as_pointer())

    def spread(self, value: LLVM) -> LLVM:
        """A vector with the value in every lane."""
        ir, builder = self.ir, self.builder
        nothing = ir.Constant(self.vector, ir.Undefined)
        lane = builder.insert_element(nothing, value, ir.Constant(ir.IntType(32), 0))
        return builder.shuffle_vector(lane, nothing, ir.Constant(ir.VectorType(ir.IntType(32), self.block.lanes), None))

    def step(self, k: LLVM, totals: dict[Cell, LLVM], left: LLVM, left_step: LLVM, right: LLVM) -> dict[Cell, LLVM]:
        """One value of k: a row of right times a column of left, added to the totals."""
        builder = self.builder
        fused = _vector_fma(builder.module, self.vector)
        row_of_right = builder.mul(k, self.number(self.block.width))
        columns = []
        for column in range(VECTORS):
            place = builder.add(row_of_right, self.number(column * self.block.lanes))
            columns.append(builder.load(self.at(right, place, self.vector), align=4))
        sums = {}
        for row in range(self.rows):
            offset = builder.add(builder.mul(left_step, self.number(row)), k)
            factor = self.spread(builder.load(self.at(left, offset, self.single), align=4))
            for column in range(VECTORS):
                sums[row, column] = builder.call(fused, (factor, columns[column], totals[row, column]))
        return sums

    def store(self, results: dict[Cell, LLVM], out: LLVM, out_step: LLVM, previous: LLVM, scale: LLVM) -> None:
        """The results, or what is there plus the results, times the scale, into memory."""
        builder = self.builder
        factor = self.spread(scale)
        again = builder.icmp_signed("!=", previous, self.number(0))
        places = {}
        for row, column in self.cells:
            place = builder.add(builder.mul(out_step, self.number(row)), self.number(column * self.block.lanes))
            places[row, column] = self.at(out, place, self.vector)
        with builder.if_else(again) as (then, otherwise):
            with then:
                for cell, place in places.items():
                    total = builder.fadd(builder.load(place, align=4), results[cell])
                    builder.store(builder.fmul(total, factor), place, align=4)
            with otherwise:
                for cell, place in places.items():
                    builder.store(builder.fmul(results[cell], factor), place, align=4)


def _emit(builder: LLVM, rows: int, block: Shape, args: LLVM) -> None:
    """The instructions of one block of `rows`: a loop over k with all totals in registers, then the store."""
    left, left_step, right, depth, out, out_step, previous, scale = args
    emitter = _Emitter(builder, rows, block)
    before = builder.block
    loop, after = builder.append_basic_block("k"), builder.append_basic_block("store")
    builder.cbranch(builder.icmp_signed(">", depth, emitter.number(0)), loop, after)

    builder.position_at_end(loop)
    k = builder.phi(emitter.word)
    totals = {cell: builder.phi(emitter.vector) for cell in emitter.cells}
    sums = emitter.step(k, totals, left, left_step, right)
    following = builder.add(k, emitter.number(1))
    builder.cbranch(builder.icmp_signed("<", following, depth), loop, after)
    k.add_incoming(emitter.number(0), before)
    k.add_incoming(following, loop)

    builder.position_at_end(after)
    empty = emitter.ir.Constant(emitter.vector, None)
    results = {cell: builder.phi(emitter.vector) for cell in emitter.cells}
    for cell in emitter.cells:
        for value in (totals[cell], results[cell]):
            value.add_incoming(empty, before)
            value.add_incoming(sums[cell], loop)
    emitter.store(results, out, out_step, previous, scale)


def _block(rows: int, block: Shape) -> LLVM:
    from numba import types
    from numba.extending import intrinsic

    @intrinsic
    def emitted(context: LLVM, a: LLVM, b: LLVM, c: LLVM, d: LLVM, e: LLVM, f: LLVM, g: LLVM, h: LLVM) -> LLVM:
        def generate(target: LLVM, builder: LLVM, signature: LLVM, args: LLVM) -> LLVM:
            _emit(builder, rows, block, args)
            return target.get_dummy_value()

        return types.void(*(types.int64,) * 7, types.float32), generate

    return emitted


def _register() -> None:
    from numba.extending import overload

    chosen = best()
    columns, rows = chosen.width, chosen.tallest
    overload(width)(lambda: lambda: columns)
    overload(tallest)(lambda: lambda: rows)
    for function, height in ((block_8, 8), (block_4, 4), (block_2, 2), (block_1, 1)):
        _overload_block(function, _block(height, chosen))


def _overload_block(function: LLVM, emitted: LLVM) -> None:
    from numba.extending import overload

    overload(function)(lambda a, b, c, d, e, f, g, h: lambda a, b, c, d, e, f, g, h: emitted(a, b, c, d, e, f, g, h))


primitive(_register)
