"""Machine code: what processor it is for, made from LLVM's text, loaded into this process, called through ctypes.

None of this needs numba: LLVM alone is started, which takes some hundredths of a second.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

LLVM = Any
"""A module, type or value of llvmlite, which is not typed."""

C_TYPES: dict[str, Any] = {
    "void": None,
    "int64": ctypes.c_int64,
    "uint64": ctypes.c_uint64,
    "float32": ctypes.c_float,
}
"""What a signature may name."""


MAGIC = (b"\x7fELF", b"\xcf\xfa\xed\xfe")
"""How object code of Linux and of macOS begins."""


@dataclass(frozen=True, slots=True)
class Code:
    """Object code with one function: its name, its signature (`void(int64, float32)`), and the linker's file of it."""

    symbol: str
    signature: str
    object: bytes


def types(signature: str) -> tuple[str, tuple[str, ...]]:
    """The names of the types that a signature returns and takes."""
    returned, _, rest = signature.partition("(")
    names = (name.strip() for name in rest.removesuffix(")").split(","))
    return returned.strip(), tuple(name for name in names if name)


@cache
def processor() -> tuple[str, str, str]:
    """Target triple, processor name and features, as LLVM calls them.

    NUMBA_CPU_NAME and NUMBA_CPU_FEATURES stand in for the processor's own, as they do for numba.
    """
    import llvmlite.binding as llvm

    name = os.environ.get("NUMBA_CPU_NAME") or llvm.get_host_cpu_name()
    features = os.environ.get("NUMBA_CPU_FEATURES", "" if name.lower() == "generic" else None)
    return str(llvm.get_process_triple()), str(name), _features() if features is None else features


def _features() -> str:
    import llvmlite.binding as llvm

    try:
        return str(llvm.get_host_cpu_features().flatten())
    except RuntimeError:  # LLVM cannot tell on this platform
        return ""


def _machine() -> LLVM:
    """LLVM's back end for this processor; it fuses no operations of its own accord."""
    import llvmlite.binding as llvm

    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    triple, name, features = processor()
    # As numba has them: code placed by LLVM itself, anywhere in memory, is not relocated through tables on x86.
    where = {"reloc": "static" if triple.startswith("x86") else "default", "codemodel": "jitdefault", "jit": True}
    return llvm.Target.from_triple(triple).create_target_machine(cpu=name, features=features, opt=3, **where)


def emit(text: str, inner: str, symbol: str, signature: str) -> Code:
    """Object code from the text of an optimised module, in which numba compiled the function `inner`.

    Only `symbol` can be seen from outside. It takes the arguments alone, as a function of C does, and returns what
    `inner` leaves in memory; what numba has around it for Python is left out.
    """
    import llvmlite.binding as llvm

    machine = _machine()
    module = llvm.parse_assembly(text)
    module.link_in(llvm.parse_assembly(_wrapper(inner, symbol, signature)))
    for value in (*module.functions, *module.global_variables):
        if not value.is_declaration and value.name != symbol:
            value.linkage = "internal"
    _drop_unused(module, machine)
    return Code(symbol, signature, bytes(machine.emit_object(module)))


def assemble(text: str, symbol: str, signature: str) -> Code:
    """Object code from the text of a module with one function, `symbol`, written for this processor."""
    import llvmlite.binding as llvm

    machine = _machine()
    module = llvm.parse_assembly(text)
    module.verify()
    return Code(symbol, signature, bytes(machine.emit_object(module)))


def _drop_unused(module: LLVM, machine: LLVM) -> None:
    """Takes out of the module what cannot be reached from outside."""
    import llvmlite.binding as llvm

    if hasattr(llvm, "create_module_pass_manager"):  # llvmlite before 0.45
        old = llvm.create_module_pass_manager()
        old.add_global_dce_pass()
        old.run(module)
    else:
        new = llvm.create_new_module_pass_manager()
        new.add_global_dead_code_eliminate_pass()
        new.run(module, llvm.create_pass_builder(machine, llvm.create_pipeline_tuning_options()))


def _wrapper(inner: str, symbol: str, signature: str) -> str:
    """The text of a module with a function `symbol` that calls `inner` the way numba's functions are called.

    They take places for the result and for an exception before the arguments and return a status. Loops cannot raise.
    """
    from llvmlite import ir

    word = ir.IntType(64)
    known = {"void": ir.VoidType(), "int64": word, "uint64": word, "float32": ir.FloatType()}
    returned, taken = types(signature)
    arguments = [known[name] for name in taken]
    module = ir.Module()
    place = word.as_pointer()
    called = ir.Function(module, ir.FunctionType(ir.IntType(32), [place, place.as_pointer(), *arguments]), inner)
    function = ir.Function(module, ir.FunctionType(known[returned], arguments), symbol)
    builder = ir.IRBuilder(function.append_basic_block())
    result = builder.alloca(word)
    builder.call(called, [result, builder.alloca(place), *function.args])
    if returned == "void":
        builder.ret_void()
    else:
        builder.ret(builder.load(result))
    return str(module)


@cache
def _engine() -> LLVM:
    """What places object code in the memory of this process and keeps it there."""
    import llvmlite.binding as llvm

    return llvm.create_mcjit_compiler(llvm.parse_assembly(""), _machine())


def load(code: Code) -> Callable[..., Any]:
    """The function, callable from many threads at once: ctypes lets go of the GIL. RuntimeError if it is no such code.

    A symbol may be loaded once in a process; callers take turns.
    """
    import llvmlite.binding as llvm

    if not code.object.startswith(MAGIC):  # LLVM would crash
        raise RuntimeError(f"{code.symbol} comes with no object code")
    returned, taken = types(code.signature)
    prototype = ctypes.CFUNCTYPE(C_TYPES[returned], *(C_TYPES[name] for name in taken))
    engine = _engine()
    engine.add_object_file(llvm.ObjectFileRef.from_data(code.object))
    engine.finalize_object()
    if not (place := engine.get_function_address(code.symbol)):
        raise RuntimeError(f"object code without {code.symbol}")
    return prototype(place)
