"""Compiled code is plain machine code: it needs neither numba nor Python, and a warm start imports no compiler."""

import threading
import time
from pathlib import Path

import numpy as np
import objects
import pytest

from modelbuild.kernels import (
    combination,
    combine,
    convert,
    diskcache,
    divergence,
    gram,
    lowrank,
    magnitude,
    native,
    nearswap,
    noise,
    norms,
    probe,
    ram,
    random,
    rank,
    ranked,
    router,
    scores,
    vote,
)
from modelbuild.kernels import compile as compiling
from modelbuild.kernels.compile import Kernel

SUMS = (gram, combination, norms, scores, divergence)
CHOICES = (magnitude, ranked, probe, random, rank, vote, ram, nearswap)
MIXTURES = (noise, router)
MODULES = (convert, combine, lowrank, *SUMS, *CHOICES, *MIXTURES)
KERNELS = {kernel.name: kernel for module in MODULES for kernel in vars(module).values() if isinstance(kernel, Kernel)}


def code_of(kernel):
    """The object code of a kernel, from disk where that can be."""
    kernel.compile()
    return diskcache.read(diskcache.folder() / f"{kernel.name}.kernel") or compiling._translate(kernel)


# --- what it stands on ------------------------------------------------------------------------------------------------


def test_every_loop_is_looked_at():
    assert len(KERNELS) >= 32
    written = {path.stem for path in Path(combine.__file__).parent.glob("*.py") if "\n@kernel(" in path.read_text()}
    assert written == {module.__name__.rpartition(".")[2] for module in MODULES}
    assert {"combine.linear_loop", "convert.nonfinite_loop", "lowrank.product_loop"} <= {*KERNELS}


@objects.needs_elf
@pytest.mark.parametrize("name", sorted(KERNELS))
def test_compiled_code_takes_nothing_from_elsewhere_but_basics_of_c(name):
    content = code_of(KERNELS[name]).object
    assert objects.undefined(content) <= objects.BASICS
    assert objects.offered(content) == {f"modelbuild.{name}"}


@objects.needs_elf
@pytest.mark.parametrize("name", sorted(KERNELS))
def test_no_loop_can_raise(name):
    # An exception would be a constant in the object code, and its caller would not look at it.
    assert not [name for name in objects.hidden(code_of(KERNELS[name]).object) if "pickle" in name]


def raises_loop(count):
    """A loop that raises."""
    if count > 7:
        raise ValueError("too many")


def allocates_loop(count):
    """A loop with memory of numba's."""
    values = np.empty(count, np.float32)
    values[:] = np.float32(1)
    return int(values.sum())


@objects.needs_elf
def test_loops_that_raise_or_need_numba_would_be_noticed():
    raising = compiling._translate(Kernel(raises_loop, "void(int64)")).object
    assert [name for name in objects.hidden(raising) if "pickle" in name]
    allocating = compiling._translate(Kernel(allocates_loop, "int64(int64)")).object
    assert [name for name in objects.undefined(allocating) if name.startswith("NRT_")]


# --- loading and calling ----------------------------------------------------------------------------------------------


def test_signatures_name_what_is_returned_and_taken():
    assert native.types("void(int64, float32)") == ("void", ("int64", "float32"))
    assert native.types("int64()") == ("int64", ())
    assert all({returned, *taken} <= {*native.C_TYPES} for returned, taken in map(native.types, signatures()))


def signatures():
    return [kernel.signature for kernel in KERNELS.values()]


def add_up_loop(a, b, c):
    """Sums of each type."""
    return a + int(b) + int(c)


def test_arguments_of_every_type_arrive_and_a_result_comes_back(monkeypatch):
    monkeypatch.setattr(Kernel, "name", "test.add_up_loop")
    code = compiling._translate(Kernel(add_up_loop, "int64(int64, float32, uint64)"))
    add_up = native.load(code)
    assert add_up(-(2**40), 2.0, 3) == 5 - 2**40
    assert add_up(0, np.float32(-7.5), 0) == -7


def test_what_is_no_object_code_is_refused():
    for content in (b"", b"garbage", bytes(1000)):
        with pytest.raises(RuntimeError):
            native.load(native.Code("modelbuild.x", "void()", content))


def test_code_without_the_function_is_refused(monkeypatch):
    monkeypatch.setattr(Kernel, "name", "test.lost_loop")
    code = compiling._translate(Kernel(add_up_loop, "int64(int64, float32, uint64)"))
    with pytest.raises(RuntimeError, match=r"without modelbuild\.found"):
        native.load(native.Code("modelbuild.found", code.signature, code.object))


def test_other_threads_run_while_a_loop_does():
    left, right = np.ones((512, 16384), np.float32), np.ones((16384, 512), np.float32)
    out = np.empty(512 * 512, np.float32)
    fill = lowrank.product(left, right, 1.0)
    fill(0, 1, out)
    worker = threading.Thread(target=fill, args=(0, out.size, out))
    turns, started = 0, time.monotonic()
    worker.start()
    while worker.is_alive() and time.monotonic() - started < 60:
        time.sleep(0.0001)
        turns += 1
    worker.join()
    assert (out == 16384).all()
    assert turns > 10


# --- the processor ----------------------------------------------------------------------------------------------------


def test_the_processor_is_the_one_that_numba_compiles_for():
    from numba.core.registry import cpu_target

    numbas = cpu_target.target_context.codegen().magic_tuple()
    assert native.processor()[:2] == tuple(numbas[:2])
    assert set(native.processor()[2].split(",")) >= set(numbas[2].split(","))


@pytest.mark.parametrize(
    ("env", "expected"),
    [
        ({"NUMBA_CPU_NAME": "haswell", "NUMBA_CPU_FEATURES": "+avx2"}, ("haswell", "+avx2")),
        ({"NUMBA_CPU_NAME": "generic"}, ("generic", "")),
        ({"NUMBA_CPU_FEATURES": ""}, (native.processor()[1], "")),
    ],
)
def test_another_processor_can_be_named(env, expected, monkeypatch):
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    assert native.processor.__wrapped__()[1:] == expected


# --- a whole build ----------------------------------------------------------------------------------------------------


def test_a_build_whose_kernels_were_compiled_before_does_not_import_numba(violet):
    assert violet.run("build").returncode == 0
    again = violet.copy()
    packages = {name.partition(".")[0] for name in again.imports("build")}
    assert "llvmlite" in packages, "something was computed"
    assert not packages & {"numba", "scipy", "torch"}
    assert again.bytes("violet") == violet.bytes("violet")
