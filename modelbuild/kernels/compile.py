"""Compiling our loops: late, once for each processor, and never a mystery.

`kernel` marks a loop with its one signature, `inlined` a helper of loops. Importing a module that uses them compiles
nothing. The first call loads what an earlier process compiled (see diskcache.py and native.py); only where there is
nothing on disk is numba imported, to compile it. Every loop is compiled without fast-math, so that an operation is
rounded exactly where the source says so, and runs without the GIL.

Loops take numbers and addresses, work on memory through pointers (see fma.py), and contain nothing that can raise: so
they are functions of C, and compiled code stands on nothing of Python's or numba's.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any, TypeVar

from modelbuild.kernels import diskcache, native

Function = TypeVar("Function", bound=Callable[..., Any])

ANNOUNCEMENT = "compiling kernels for this processor, once; this takes some seconds"

_LOCK = threading.RLock()
_pending: list[Callable[[], None]] = []
_listeners: list[Callable[[str], None]] = []
_announced = False


class Kernel:
    """A loop that is compiled, or loaded from disk, when it is first called; safe to call from many threads."""

    def __init__(self, function: Callable[..., Any], signature: str) -> None:
        self.function = function
        self.signature = signature
        self._compiled: Callable[..., Any] | None = None

    def __call__(self, *args: Any) -> Any:
        """Runs the loop; an argument that is not a number of its type is a ctypes.ArgumentError."""
        return (self._compiled or self.compile())(*args)

    @property
    def name(self) -> str:
        """The loop's module and name, unique among kernels."""
        return f"{self.function.__module__.rpartition('.')[2]}.{self.function.__name__}"

    @property
    def symbol(self) -> str:
        """What its compiled code is called."""
        return f"modelbuild.{self.name}"

    def compile(self) -> Callable[..., Any]:
        """The compiled loop, from this process, from disk, or made now."""
        with _LOCK:
            if self._compiled is None:
                self._compiled = _build(self)
            return self._compiled


def kernel(signature: str) -> Callable[[Callable[..., Any]], Kernel]:
    """Marks a loop to be compiled for exactly these types: `void(int64, float32)`, see native.C_TYPES."""
    return lambda function: Kernel(function, signature)


class Written(Kernel):
    """A loop whose function gives the text of an LLVM module with a function of the name that it is handed."""


def written(signature: str) -> Callable[[Callable[[str], str]], Written]:
    """Marks a function that writes a loop in LLVM's own language, for what numba cannot say."""
    return lambda function: Written(function, signature)


def inlined(function: Function) -> Function:
    """Marks a function that loops call; it is compiled into each of them."""

    def register() -> None:
        from numba.extending import register_jitable

        register_jitable(error_model="numpy")(function)

    _pending.append(register)
    return function


def primitive(register: Callable[[], None]) -> None:
    """Has `register` called, once, before the next kernel is compiled: it teaches numba an instruction."""
    _pending.append(register)


def on_first_compile(listener: Callable[[str], None]) -> None:
    """Has `listener` called with one line of text before this process first compiles, and not if all is on disk."""
    with _LOCK:
        _listeners.append(listener)


def announce() -> None:
    """Tells the listeners, once in this process, that compiling begins."""
    global _announced
    if not _announced:
        _announced = True
        for listener in _listeners:
            listener(ANNOUNCEMENT)


def _build(loop: Kernel) -> Callable[..., Any]:
    """Loads or compiles; holds the lock of this module."""
    path = diskcache.folder() / f"{loop.name}.kernel"
    code = diskcache.read(path)
    if code is not None and (code.symbol, code.signature) == (loop.symbol, loop.signature):
        # The digest was right: what fails now was written by something else than this version.
        with suppress(RuntimeError):
            return native.load(code)
    code = _translate(loop)
    diskcache.write(path, code)
    return native.load(code)


def _translate(loop: Kernel) -> native.Code:
    """The loop as object code: by numba, or from what is written by hand, which takes no time worth announcing."""
    if isinstance(loop, Written):
        return native.assemble(loop.function(loop.symbol), loop.symbol, loop.signature)
    announce()
    from numba import cfunc

    while _pending:
        _pending.pop(0)()
    compiled: Any = cfunc(loop.signature, error_model="numpy", fastmath=False)(loop.function)
    inner: str = compiled.native_name.removeprefix("cfunc.")
    return native.emit(compiled.inspect_llvm(), inner, loop.symbol, loop.signature)
