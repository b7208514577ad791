"""Random numbers that are a function of a key and an element's flat index: Philox4x32-10.

Salmon, Moraes, Dror and Shaw, "Parallel random numbers: as easy as 1, 2, 3" (https://doi.org/10.1145/2063384.2063405).
One 128-bit counter and a 64-bit key give four words of 32 bits. Counters go by groups of sixteen, for 64 elements, so
that the words of one place lie side by side: element i takes word (i mod 64) div 16 of counter 16·(i div 64) + i mod
16. A number is uniform on [0, 1): the word's upper 24 bits, times 2⁻²⁴, which float32 holds exactly.

So nothing but the key and the index decides: no tile size, thread, order, or other tensor. The rounds are written as
LLVM instructions on the sixteen counters at once: a compiler does not see that loops and calls would allow for that.
"""

from __future__ import annotations

import numpy as np

from modelbuild.kernels.compile import inlined, kernel, primitive
from modelbuild.kernels.convert import address
from modelbuild.kernels.fma import LLVM, Array, floats, words32

GROUP = 64
"""Elements that are made together."""

COUNTERS = 16
"""Counters of a group."""

ROUNDS = 10
MULTIPLIERS = 0xD2511F53, 0xCD9E8D57
WEYL = 0x9E3779B9, 0xBB67AE85
LOW = 0xFFFF_FFFF


def philox(key: int, low: int, high: int, out: int) -> None:
    """Leaves at `out` 64 words, uint32, of the 16 counters from the one with these halves on: the first words first."""
    raise NotImplementedError


@inlined
def uniforms(key: int, group: int, groups: int, out: int) -> None:
    """Fills `out`, float32, with the numbers of so many groups from `group` on."""
    words, values = words32(out), floats(out)
    for index in range(groups):
        philox(key, (group + index) * COUNTERS, 0, out + 4 * GROUP * index)
    for i in range(groups * GROUP):
        values[i] = np.float32(np.int32(words[i] >> np.uint32(8))) * np.float32(2.0**-24)


@kernel("void(uint64, uint64, uint64, int64)")
def words_loop(key: int, low: int, high: int, out: int) -> None:
    """The words of one group of counters."""
    philox(key, low, high, out)


@kernel("void(uint64, int64, int64, int64)")
def uniforms_loop(key: int, group: int, groups: int, out: int) -> None:
    """The numbers of so many groups."""
    uniforms(key, group, groups, out)


def uniform(key: int, start: int, stop: int) -> Array:
    """The numbers of elements [start, stop), float32, under a key of 64 bits."""
    first, last = start // GROUP, -(-stop // GROUP)
    values = np.empty((last - first) * GROUP, np.float32)
    uniforms_loop(key, first, last - first, address(values))
    return values[start - first * GROUP :][: stop - start]


class _Emitter:
    """Writes the rounds for the counters of a group, each word in 64 bits so that products are whole."""

    def __init__(self, builder: LLVM) -> None:
        from llvmlite import ir

        self.ir, self.builder = ir, builder
        self.lanes = ir.VectorType(ir.IntType(64), COUNTERS)

    def all(self, value: int) -> LLVM:
        """A constant in every lane."""
        return self.ir.Constant(self.lanes, [value] * COUNTERS)

    def spread(self, value: LLVM) -> LLVM:
        """A 64-bit value in every lane."""
        nothing = self.ir.Constant(self.lanes, self.ir.Undefined)
        lane = self.builder.insert_element(nothing, value, self.ir.Constant(self.ir.IntType(32), 0))
        first = self.ir.Constant(self.ir.VectorType(self.ir.IntType(32), COUNTERS), None)
        return self.builder.shuffle_vector(lane, nothing, first)

    def low(self, value: LLVM) -> LLVM:
        """The lower words."""
        return self.builder.and_(value, self.all(LOW))

    def high(self, value: LLVM) -> LLVM:
        """The upper words."""
        return self.builder.lshr(value, self.all(32))

    def words(self, key: LLVM, low: LLVM, high: LLVM) -> list[LLVM]:
        """The four words of each counter."""
        b = self.builder
        key, low, high = self.spread(key), self.spread(low), self.spread(high)
        low = b.add(low, self.ir.Constant(self.lanes, list(range(COUNTERS))))
        c = [self.low(low), self.high(low), self.low(high), self.high(high)]
        keys = [self.low(key), self.high(key)]
        for _ in range(ROUNDS):
            even, odd = b.mul(c[0], self.all(MULTIPLIERS[0])), b.mul(c[2], self.all(MULTIPLIERS[1]))
            first = b.xor(b.xor(self.high(odd), c[1]), keys[0])
            third = b.xor(b.xor(self.high(even), c[3]), keys[1])
            c = [first, self.low(odd), third, self.low(even)]
            keys = [self.low(b.add(word, self.all(step))) for word, step in zip(keys, WEYL, strict=True)]
        return c

    def store(self, words: list[LLVM], out: LLVM) -> None:
        """The words, as 32 bits, into memory."""
        narrow = self.ir.VectorType(self.ir.IntType(32), COUNTERS)
        for index, word in enumerate(words):
            place = self.builder.add(out, self.ir.Constant(self.ir.IntType(64), 4 * COUNTERS * index))
            value = self.builder.trunc(word, narrow)
            self.builder.store(value, self.builder.inttoptr(place, narrow.as_pointer()), align=4)


def _philox() -> LLVM:
    from numba import types
    from numba.extending import intrinsic

    @intrinsic
    def emitted(context: LLVM, key: LLVM, low: LLVM, high: LLVM, out: LLVM) -> LLVM:
        def generate(target: LLVM, builder: LLVM, signature: LLVM, args: LLVM) -> LLVM:
            emitter = _Emitter(builder)
            emitter.store(emitter.words(*args[:3]), args[3])
            return target.get_dummy_value()

        return types.void(types.uint64, types.uint64, types.uint64, types.int64), generate

    return emitted


def _register() -> None:
    from numba.extending import overload

    emitted = _philox()
    overload(philox)(lambda key, low, high, out: lambda key, low, high, out: emitted(key, low, high, out))


primitive(_register)
