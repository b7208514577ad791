"""One bfloat16 or float16 to float32 and back, as integer instructions on their bits.

Written as LLVM instructions on 32-bit integers, because numba would compute them in 64 bits and a loop over them would
run at half the speed. See convert.py for what they promise.
"""

from __future__ import annotations

from collections.abc import Callable

from modelbuild.kernels.compile import primitive
from modelbuild.kernels.fma import LLVM

Emit = Callable[[LLVM, LLVM], LLVM]
"""From an LLVM builder and a 32-bit value to a 32-bit value."""

HALF = 0x3F00_0000
"""The float32 0.5, whose last place is 2^-24, the smallest float16."""


def widen_bf16(bits: int) -> float:
    """The float32 of bfloat16 bits."""
    raise NotImplementedError


def widen_f16(bits: int) -> float:
    """The float32 of float16 bits."""
    raise NotImplementedError


def narrow_bf16(value: float) -> int:
    """The bfloat16 bits of a float32."""
    raise NotImplementedError


def narrow_f16(value: float) -> int:
    """The float16 bits of a float32."""
    raise NotImplementedError


def _word(value: int) -> LLVM:
    from llvmlite import ir

    return ir.Constant(ir.IntType(32), value)


def _quiet_nan(b: LLVM, bits: LLVM, otherwise: LLVM, quieted: LLVM) -> LLVM:
    """`quieted` where the float32 `bits` are NaN."""
    magnitude = b.and_(bits, _word(0x7FFF_FFFF))
    return b.select(b.icmp_unsigned(">", magnitude, _word(0x7F80_0000)), quieted, otherwise)


def _emit_widen_bf16(b: LLVM, bits: LLVM) -> LLVM:
    wide = b.shl(bits, _word(16))
    return _quiet_nan(b, wide, wide, b.or_(wide, _word(0x40_0000)))


def _emit_narrow_bf16(b: LLVM, bits: LLVM) -> LLVM:
    odd = b.and_(b.lshr(bits, _word(16)), _word(1))
    rounded = b.lshr(b.add(b.add(bits, _word(0x7FFF)), odd), _word(16))
    return _quiet_nan(b, bits, rounded, b.or_(b.lshr(bits, _word(16)), _word(0x40)))


def _emit_widen_f16(b: LLVM, bits: LLVM) -> LLVM:
    from llvmlite import ir

    single = ir.FloatType()
    magnitude = b.shl(b.and_(bits, _word(0x7FFF)), _word(13))
    exponent = b.and_(magnitude, _word(0x0F80_0000))
    normal = b.add(magnitude, _word(112 << 23))
    infinite = b.add(magnitude, _word(224 << 23))
    quiet = b.or_(infinite, _word(0x40_0000))
    # A subnormal is m·2^-24: with the exponent of 2^-14 its bits are 2^-14 + m·2^-24, from which 2^-14 is taken.
    least = _word(113 << 23)
    difference = b.fsub(b.bitcast(b.add(magnitude, least), single), b.bitcast(least, single))
    value = b.select(b.icmp_unsigned("==", exponent, _word(0)), b.bitcast(difference, ir.IntType(32)), normal)
    value = b.select(b.icmp_unsigned("==", exponent, _word(0x0F80_0000)), infinite, value)
    value = b.select(b.icmp_unsigned(">", magnitude, _word(0x0F80_0000)), quiet, value)
    return b.or_(value, b.shl(b.and_(bits, _word(0x8000)), _word(16)))


def _emit_narrow_f16(b: LLVM, bits: LLVM) -> LLVM:
    from llvmlite import ir

    single = ir.FloatType()
    magnitude = b.and_(bits, _word(0x7FFF_FFFF))
    odd = b.and_(b.lshr(magnitude, _word(13)), _word(1))
    lowered = b.sub(magnitude, _word(112 << 23))
    normal = b.lshr(b.add(b.add(lowered, _word(0xFFF)), odd), _word(13))
    # Added to 0.5, a small number is rounded by the addition itself to a multiple of 2^-24.
    added = b.fadd(b.bitcast(magnitude, single), b.bitcast(_word(HALF), single))
    subnormal = b.sub(b.bitcast(added, ir.IntType(32)), _word(HALF))
    value = b.select(b.icmp_unsigned("<", magnitude, _word(113 << 23)), subnormal, normal)
    value = b.select(b.icmp_unsigned(">=", magnitude, _word(143 << 23)), _word(0x7C00), value)
    payload = b.and_(b.lshr(magnitude, _word(13)), _word(0x3FF))
    value = _quiet_nan(b, bits, value, b.or_(payload, _word(0x7E00)))
    return b.or_(value, b.and_(b.lshr(bits, _word(16)), _word(0x8000)))


def _widening(emit: Emit) -> LLVM:
    from llvmlite import ir
    from numba import types
    from numba.extending import intrinsic

    @intrinsic
    def convert(context: LLVM, bits: LLVM) -> LLVM:
        def generate(target: LLVM, builder: LLVM, signature: LLVM, args: LLVM) -> LLVM:
            word = builder.zext(args[0], ir.IntType(32))
            return builder.bitcast(emit(builder, word), ir.FloatType())

        return types.float32(types.uint16), generate

    return convert


def _narrowing(emit: Emit) -> LLVM:
    from llvmlite import ir
    from numba import types
    from numba.extending import intrinsic

    @intrinsic
    def convert(context: LLVM, value: LLVM) -> LLVM:
        def generate(target: LLVM, builder: LLVM, signature: LLVM, args: LLVM) -> LLVM:
            word = builder.bitcast(args[0], ir.IntType(32))
            return builder.trunc(emit(builder, word), ir.IntType(16))

        return types.uint16(types.float32), generate

    return convert


def _register() -> None:
    from numba.extending import overload

    bf16, f16 = _widening(_emit_widen_bf16), _widening(_emit_widen_f16)
    to_bf16, to_f16 = _narrowing(_emit_narrow_bf16), _narrowing(_emit_narrow_f16)
    overload(widen_bf16)(lambda bits: lambda bits: bf16(bits))
    overload(widen_f16)(lambda bits: lambda bits: f16(bits))
    overload(narrow_bf16)(lambda value: lambda value: to_bf16(value))
    overload(narrow_f16)(lambda value: lambda value: to_f16(value))


primitive(_register)
