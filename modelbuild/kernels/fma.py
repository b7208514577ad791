"""The instructions that numba lacks: fused multiply-add, and memory at an address.

Each is a function here so that a loop reads like Python; inside a compiled loop it is one instruction. Called from
plain Python, they raise NotImplementedError.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any, TypeAlias

from modelbuild.kernels.compile import primitive

if TYPE_CHECKING:
    from numpy.typing import NDArray

Array: TypeAlias = "NDArray[Any]"
"""Memory with a dtype: float32 values, or the raw elements of a tensor."""

Pointer: TypeAlias = Any
"""Memory inside a loop: it has elements, to be read and written by index, and neither length nor owner."""

LLVM: TypeAlias = Any
"""A builder, value or type of llvmlite, or a type or function of numba: neither package is typed."""


def fma(a: float, b: float, c: float) -> float:
    """a·b + c of float32, rounded once: LLVM's `llvm.fma.f32`."""
    raise NotImplementedError


def floats(address: int) -> Pointer:
    """The float32 values in memory from `address` on."""
    raise NotImplementedError


def halves(address: int) -> Pointer:
    """The uint16 values in memory from `address` on."""
    raise NotImplementedError


def words(address: int) -> Pointer:
    """The uint64 values in memory from `address` on."""
    raise NotImplementedError


def integers(address: int) -> Pointer:
    """The int64 values in memory from `address` on."""
    raise NotImplementedError


def doubles(address: int) -> Pointer:
    """The float64 values in memory from `address` on."""
    raise NotImplementedError


def words32(address: int) -> Pointer:
    """The uint32 values in memory from `address` on."""
    raise NotImplementedError


def _fused(context: LLVM, a: LLVM, b: LLVM, c: LLVM) -> tuple[LLVM, LLVM]:
    from numba import types

    def emit(target: LLVM, builder: LLVM, signature: LLVM, args: LLVM) -> LLVM:
        return builder.fma(*args)

    return types.float32(types.float32, types.float32, types.float32), emit


def _pointer(element: LLVM) -> LLVM:
    from numba.extending import intrinsic

    types: LLVM = import_module("numba.core.types")
    kind = types.CPointer(element)

    @intrinsic
    def pointer(context: LLVM, address: LLVM) -> tuple[LLVM, LLVM]:
        def emit(target: LLVM, builder: LLVM, signature: LLVM, args: LLVM) -> LLVM:
            return builder.inttoptr(args[0], target.get_value_type(kind))

        return kind(types.int64), emit

    return pointer


def _register() -> None:
    from numba import types
    from numba.extending import intrinsic, overload

    fused: LLVM = intrinsic(_fused)
    overload(fma)(lambda a, b, c: lambda a, b, c: fused(a, b, c))
    for function, element in (
        (floats, types.float32),
        (halves, types.uint16),
        (words, types.uint64),
        (integers, types.int64),
        (doubles, types.float64),
        (words32, types.uint32),
    ):
        _overload_pointer(function, _pointer(element))


def _overload_pointer(function: LLVM, pointer: LLVM) -> None:
    from numba.extending import overload

    overload(function)(lambda address: lambda address: pointer(address))


primitive(_register)
