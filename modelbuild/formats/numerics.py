"""The numerics class of what an outside library computes: the versions and the kind of processor it repeats on.

    bitsandbytes 0.50.2, torch 2.13.0, x86-64 AVX512, 1 thread
    torch 2.13.0, AMD x86-64 AVX512, 1 thread                     products and decompositions of matrices

It is part of the key of every node that is bound to it, and of the lock. Nothing is imported to find it out.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Iterable, Sequence
from functools import cache
from importlib.util import find_spec

_LEVELS = (
    ("AVX512", {"avx512f", "avx512vl", "avx512bw", "avx512dq", "fma"}),
    ("AVX2", {"avx2", "fma"}),
)
"""What torch asks of a processor before it uses the widest vectors, whose sums come out otherwise."""

THREADS = "1 thread"
"""What the class of every library ends in."""


class MissingLibrary(Exception):
    """A package that computes what is asked for is not installed; `name` says which."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.name = name


def numerics_class(libraries: Sequence[str], algebra: bool = False) -> str:
    """The class of what these packages compute here on one thread; raises MissingLibrary.

    `algebra`: by products and decompositions of matrices, whose code is chosen by the processor's maker too.
    """
    versions = [f"{name} {library_version(name)}" for name in libraries]
    processor = f"{processor_maker()} {processor_family()}".strip() if algebra else processor_family()
    return ", ".join([*versions, processor, THREADS])


def takes_library(numerics: str | None) -> bool:
    """Whether a library computes a node of this class; that of a method from outside alone is its release."""
    return numerics is not None and numerics.endswith(THREADS)


def locked_class(libraries: Sequence[str], algebra: bool = False) -> dict[str, str | None]:
    """The same as the lock has it: by the first package's name its version and all that comes after; None where one
    is not installed.
    """
    try:
        name, _, rest = numerics_class(libraries, algebra).partition(" ")
    except MissingLibrary as missing:
        return {missing.name: None}
    return {name: rest}


def version(name: str) -> str:
    """The version of an installed package, as it is recorded; importlib.metadata is late to import a reader of mail."""
    from importlib.metadata import version

    return version(name)


def library_version(name: str) -> str:
    """The version of an installed package, without the part that says how it was built; raises MissingLibrary."""
    from importlib.metadata import PackageNotFoundError

    try:
        return version(name).partition("+")[0]
    except PackageNotFoundError:
        raise MissingLibrary(name) from None


def library_places(names: Iterable[str]) -> list[str]:
    """A file of each package that another version of it would replace, found without importing it."""
    specs = (find_spec(name) for name in sorted(names))
    return [spec.origin for spec in specs if spec is not None and spec.origin is not None]


@cache
def processor_family() -> str:
    """The kind of processor: its architecture, and the vectors that torch uses on it."""
    machine = {"x86_64": "x86-64", "AMD64": "x86-64", "aarch64": "arm64"}.get(platform.machine(), platform.machine())
    if machine != "x86-64":
        return machine
    # The variable by which torch is told to use less than there is.
    chosen = os.environ.get("ATEN_CPU_CAPABILITY", "").upper()
    flags = _flags()
    found = next((name for name, needed in _LEVELS if needed <= flags and chosen in ("", name)), chosen)
    return f"{machine} {found or 'SSE'}".strip()


@cache
def processor_maker() -> str:
    """Who made the processor, `Intel` or `AMD`; empty where the system does not say."""
    return {"GenuineIntel": "Intel", "AuthenticAMD": "AMD"}.get(_fact("vendor_id"), "")


def _flags() -> set[str]:
    return set(_fact("flags").split())


def _fact(name: str) -> str:
    """What the system says of its first processor under a name."""
    try:
        with open("/proc/cpuinfo", encoding="ascii", errors="replace") as file:
            line = next((line for line in file if line.startswith(name)), "")
    except OSError:
        return ""
    return line.partition(":")[2].strip()
