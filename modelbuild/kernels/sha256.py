"""SHA-256 of several messages side by side in one thread, with the SHA instructions of x86 processors.

Each round of SHA-256 (FIPS 180-4) waits for the one before. One message leaves such a processor idle for half of its
time; the rounds of another, which wait for nothing of the first, fill it. hashlib takes one message at a time: on a
Zen 5 core 1.7 GB/s, where two side by side come to 2.6, three to 2.9 and four to 3.2.

The function is written in LLVM's own language, since numba has no such instructions; neither it nor a compiler of C is
needed. What comes of it is compared with hashlib before it is used.
"""

from __future__ import annotations

import ctypes
import hashlib
from collections.abc import Sequence
from functools import cache
from typing import Any, TypeAlias

from modelbuild.kernels import native
from modelbuild.kernels.compile import written

LLVM: TypeAlias = Any
"""A module, builder, value or type of llvmlite, which is not typed."""

LANES = 4
"""Messages side by side: more would not fit the registers."""

BLOCK = 64
"""Bytes that SHA-256 takes at a time."""

State: TypeAlias = "ctypes.Array[ctypes.c_uint32]"
"""The words a to h between two blocks."""


@cache
def fractions(count: int, power: int) -> tuple[int, ...]:
    """The first 32 bits of the fractions of the roots of the first primes, exactly: the constants of FIPS 180-4."""
    primes: list[int] = []
    number = 2
    while len(primes) < count:
        if all(number % prime for prime in primes):
            primes.append(number)
        number += 1
    return tuple(_root(prime << 32 * power, power) & 0xFFFFFFFF for prime in primes)


def _root(number: int, power: int) -> int:
    """The integer part of the square or cube root."""
    low, high = 0, number
    while low + 1 < high:
        middle = (low + high) // 2
        low, high = (middle, high) if middle**power <= number else (low, middle)
    return low


@written("void(int64, int64, int64)")
def blocks(symbol: str) -> str:
    """A function that takes `count` blocks of each of 1 to LANES messages into the messages' states.

    Its arguments are the address of a table with the address of a state and the address of its blocks for each message,
    the number of messages, and the count of blocks, which is at least 1. Another number of messages does nothing.
    """
    from llvmlite import ir

    word = ir.IntType(64)
    module = ir.Module()
    function = ir.Function(module, ir.FunctionType(ir.VoidType(), [word, word, word]), symbol)
    table, lanes, count = function.args
    end = function.append_basic_block("end")
    ir.IRBuilder(end).ret_void()
    choice = ir.IRBuilder(function.append_basic_block("choice"))
    function.blocks.reverse()
    ways = choice.switch(lanes, end)
    for number in range(1, LANES + 1):
        begin = function.append_basic_block(f"lanes{number}")
        ways.add_case(word(number), begin)
        _Side(module, ir.IRBuilder(begin), number).take_all(table, count, end)
    return str(module)


class _Side:
    """Writes the loop over the blocks of `lanes` messages side by side."""

    def __init__(self, module: LLVM, builder: LLVM, lanes: int) -> None:
        from llvmlite import ir

        self.module, self.builder, self.lanes = module, builder, range(lanes)
        self.word, self.vector = ir.IntType(64), ir.VectorType(ir.IntType(32), 4)
        self.constants = fractions(64, 3)

    def take_all(self, table: LLVM, count: LLVM, end: LLVM) -> None:
        """Loads the states, takes `count` blocks of each message, stores the states, goes on at `end`."""
        build, places = self.builder, [self.loaded(table, 16 * lane, self.word) for lane in self.lanes]
        data = [self.loaded(table, 16 * lane + 8, self.word) for lane in self.lanes]
        begun = [self.paired(self.loaded(place, 0), self.loaded(place, 16), (5, 4, 1, 0)) for place in places]
        begun += [self.paired(self.loaded(place, 0), self.loaded(place, 16), (7, 6, 3, 2)) for place in places]
        before, loop = build.block, build.function.append_basic_block()
        build.branch(loop)
        build.position_at_end(loop)
        offset, states = build.phi(self.word), [build.phi(self.vector) for _ in begun]
        after = self.block([build.add(place, offset) for place in data], states)
        for phi, first, later in zip((offset, *states), (self.word(0), *begun), (None, *after), strict=True):
            phi.add_incoming(first, before)
            phi.add_incoming(build.add(offset, self.word(BLOCK)) if later is None else later, loop)
        stop = build.mul(count, self.word(BLOCK))
        done = build.function.append_basic_block()
        build.cbranch(build.icmp_unsigned("<", offset.incomings[1][0], stop), loop, done)
        build.position_at_end(done)
        for lane, place in enumerate(places):
            pair = after[lane], after[lane + len(places)]
            self.store(place, 0, self.paired(*pair, (3, 2, 7, 6)))
            self.store(place, 16, self.paired(*pair, (1, 0, 5, 4)))
        build.branch(end)

    def block(self, places: Sequence[LLVM], states: Sequence[LLVM]) -> list[LLVM]:
        """The states after one more block: words a, b, e, f of all messages, then c, d, g, h of all.

        Four rounds of each message in turn, so that what waits for itself stands far apart.
        """
        build, number = self.builder, len(self.lanes)
        first, second = list(states[:number]), list(states[number:])
        schedule: list[list[LLVM]] = [[self.swapped(self.loaded(p, 16 * k)) for k in range(4)] for p in places]
        for step in range(16):
            for lane in self.lanes:
                words = schedule[lane]
                if step >= 4:
                    words.append(self.extended(*words[step - 4 :]))
                added = build.add(words[step], self.vector(list(self.constants[4 * step : 4 * step + 4])))
                upper = self.paired(added, added, (2, 3, 0, 1))
                middle = self.call("sha256rnds2", second[lane], first[lane], added)
                second[lane], first[lane] = middle, self.call("sha256rnds2", first[lane], middle, upper)
        return [build.add(old, new) for old, new in zip(states, (*first, *second), strict=True)]

    def extended(self, a: LLVM, b: LLVM, c: LLVM, d: LLVM) -> LLVM:
        """The next four words of a message's schedule, from the sixteen before."""
        mixed = self.builder.add(self.call("sha256msg1", a, b), self.paired(c, d, (1, 2, 3, 4)))
        return self.call("sha256msg2", mixed, d)

    def swapped(self, words: LLVM) -> LLVM:
        """Four words as a message has them, the highest byte first."""
        return self.call("bswap.v4i32", words, prefix="llvm.")

    def call(self, name: str, *values: LLVM, prefix: str = "llvm.x86.") -> LLVM:
        """An instruction of the processor."""
        from llvmlite import ir

        known = self.module.globals.get(prefix + name)
        kind = ir.FunctionType(self.vector, [self.vector] * len(values))
        return self.builder.call(known or ir.Function(self.module, kind, prefix + name), values)

    def paired(self, low: LLVM, high: LLVM, order: tuple[int, ...]) -> LLVM:
        """Four of the eight words of two vectors."""
        from llvmlite import ir

        mask = ir.Constant(ir.VectorType(ir.IntType(32), 4), list(order))
        return self.builder.shuffle_vector(low, high, mask)

    def loaded(self, place: LLVM, offset: int, kind: LLVM = None) -> LLVM:
        """The vector, or value of another kind, in memory at an address that need not be even."""
        return self.builder.load(self.pointer(place, offset, kind or self.vector), align=1)

    def store(self, place: LLVM, offset: int, value: LLVM) -> None:
        """Puts a vector into memory at an address that need not be even."""
        self.builder.store(value, self.pointer(place, offset, self.vector), align=1)

    def pointer(self, place: LLVM, offset: int, kind: LLVM) -> LLVM:
        """Memory at an address."""
        return self.builder.inttoptr(self.builder.add(place, self.word(offset)), kind.as_pointer())


class Lanes:
    """SHA-256 of up to `most` messages at a time, in pieces of whole blocks; the last piece of each is its own."""

    most = LANES
    grain = BLOCK
    """Every piece but the last is a multiple of this."""

    def begin(self) -> State:
        """The state of a message of which nothing is hashed yet."""
        return (ctypes.c_uint32 * 8)(*fractions(8, 2))

    def update(self, states: Sequence[State], pieces: Sequence[memoryview]) -> None:
        """Takes the next piece of each message; all are equally long, whole blocks, and can be written to."""
        if not (count := len(pieces[0]) // BLOCK):
            return
        table = (ctypes.c_int64 * (2 * len(states)))()
        table[::2] = [ctypes.addressof(state) for state in states]
        table[1::2] = [ctypes.addressof(ctypes.c_char.from_buffer(piece)) for piece in pieces]
        blocks(ctypes.addressof(table), len(states), count)

    def finish(self, state: State, rest: bytes, length: int) -> str:
        """The digest of a message of so many bytes in all, of which `rest`, less than a block, is not hashed yet."""
        padded = rest + b"\x80" + bytes(-(len(rest) + 9) % BLOCK) + (8 * length).to_bytes(8, "big")
        self.update([state], [memoryview(bytearray(padded))])
        return b"".join(word.to_bytes(4, "big") for word in state).hex()


@cache
def lanes() -> Lanes | None:
    """Hashing side by side, compiled or loaded; None where the processor has no such instructions, or errs."""
    if "+sha" not in native.processor()[2].split(","):
        return None
    try:
        found = Lanes()
        return found if all(_is_right(found, number) for number in range(1, LANES + 1)) else None
    except RuntimeError:
        return None


def _is_right(found: Lanes, number: int) -> bool:
    """Whether so many messages side by side come out as hashlib has them."""
    messages = [bytes((7 * lane + 31 * place) % 251 for place in range(3 * BLOCK + 5)) for lane in range(number)]
    states, whole = [found.begin() for _ in messages], 3 * BLOCK
    found.update(states, [memoryview(bytearray(message[:whole])) for message in messages])
    digests = [found.finish(state, m[whole:], len(m)) for state, m in zip(states, messages, strict=True)]
    return digests == [hashlib.sha256(message).hexdigest() for message in messages]
