"""Kernels are compiled late, once for each processor, and the folder of compiled code is never a reason to fail."""

import ctypes
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from importlib.machinery import ModuleSpec
from pathlib import Path
from threading import Barrier

import numpy as np
import objects
import pytest

from modelbuild.kernels import compile as compiling
from modelbuild.kernels import diskcache
from modelbuild.kernels.compile import Kernel, on_first_compile
from modelbuild.kernels.convert import address, narrow_loop
from modelbuild.kernels.fma import floats
from modelbuild.kernels.native import Code

CHILD = """
import hashlib, sys
from modelbuild.kernels import compile, diskcache, convert, lowrank
assert "numba" not in sys.modules
assert "llvmlite" not in sys.modules
heard = []
compile.on_first_compile(heard.append)
import numpy as np
rng = np.random.default_rng(7)
left, right = rng.standard_normal((11, 200), np.float32), rng.standard_normal((200, 70), np.float32)
out = np.empty(770, np.float32)
if {product}:
    lowrank.product(left, right, 0.3)(0, 770, out)
halves = convert.narrow(left, "BF16")
digest = hashlib.sha256((out.tobytes() if {product} else b"") + halves.tobytes()).hexdigest()
assert ("numba" in sys.modules) == bool(heard), "numba is there to compile"
print(digest, len(heard), diskcache.folder())
"""


def start(cache, product=False, **env):
    environment = {**os.environ, "MODELBUILD_KERNEL_CACHE": str(cache), **env}
    script = CHILD.format(product=product)
    return subprocess.Popen([sys.executable, "-c", script], env=environment, stdout=subprocess.PIPE, text=True)


def finish(child):
    """The digest of the results, how often compiling was announced, and the folder."""
    out, _ = child.communicate(timeout=120)
    assert child.returncode == 0
    digest, heard, folder = out.split()
    return digest, int(heard), Path(folder)


def double_loop(place, count):
    """Twice the values."""
    values = floats(place)
    for i in range(count):
        values[i] = values[i] * np.float32(2)


@pytest.fixture
def double(tmp_path, monkeypatch):
    """A loop that nothing has compiled yet, with a folder of its own, and a name that this process did not use."""
    monkeypatch.setenv("MODELBUILD_KERNEL_CACHE", str(tmp_path / "kernels"))
    loop = Kernel(double_loop, "void(int64, int64)")
    monkeypatch.setattr(Kernel, "name", f"test.{tmp_path.name}")
    return loop


# --- once for each processor ------------------------------------------------------------------------------------------


def test_four_processes_may_compile_at_once_from_an_empty_folder(tmp_path):
    children = [start(tmp_path) for _ in range(4)]
    results = [finish(child) for child in children]
    assert len({digest for digest, _, _ in results}) == 1
    assert sum(heard for _, heard, _ in results) >= 1
    (folder,) = {folder for _, _, folder in results}
    assert [path.name for path in folder.iterdir()] == ["convert.narrow_loop.kernel"]
    again = finish(start(tmp_path))
    assert again == (results[0][0], 0, folder)


def test_a_file_is_the_same_whoever_writes_it(tmp_path):
    (one,), (two,) = (list(finish(start(tmp_path / name))[2].iterdir()) for name in ("one", "two"))
    assert one.read_bytes() == two.read_bytes()


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="names features of x86-64")
def test_processors_with_other_features_have_folders_of_their_own_and_the_same_bits(tmp_path):
    native = start(tmp_path, product=True)
    oldest = start(tmp_path, product=True, NUMBA_CPU_NAME="generic", NUMBA_CPU_FEATURES="")
    digest, _, folder = finish(native)
    other, heard, elsewhere = finish(oldest)
    assert other == digest
    assert heard == 1
    assert elsewhere != folder
    assert elsewhere.parent == folder.parent
    avx2 = start(tmp_path, product=True, NUMBA_CPU_NAME="haswell", NUMBA_CPU_FEATURES="+avx,+avx2,+fma")
    assert finish(avx2)[0] == digest
    assert finish(start(tmp_path, product=True, NUMBA_CPU_NAME="generic", NUMBA_CPU_FEATURES=""))[:2] == (digest, 0)
    if sys.platform.startswith("linux"):
        taken = objects.undefined(diskcache.read(elsewhere / "lowrank.product_loop.kernel").object)
        assert taken == {"fmaf"}, "what the processor cannot fuse, the C library does"


def test_many_threads_may_make_the_first_call_at_once(double, monkeypatch):
    made = []
    translate = compiling._translate
    monkeypatch.setattr(compiling, "_translate", lambda loop: made.append(loop) or translate(loop))
    together = Barrier(8)
    arrays = [np.full(1000, n, np.float32) for n in range(8)]

    def call(values):
        together.wait()
        double(address(values), values.size)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(call, arrays))
    assert made == [double]
    assert all((values == 2 * n).all() for n, values in enumerate(arrays))


def test_compiling_is_announced_once_in_a_process(double, monkeypatch):
    heard = []
    monkeypatch.setattr(compiling, "_announced", False)
    monkeypatch.setattr(compiling, "_listeners", [])
    on_first_compile(heard.append)
    compiling.announce()
    double.compile()
    assert heard == [compiling.ANNOUNCEMENT]


# --- the folder -------------------------------------------------------------------------------------------------------


def test_a_damaged_file_is_compiled_anew_and_replaced(tmp_path):
    sound, _, folder = finish(start(tmp_path))
    (path,) = folder.iterdir()
    content = path.read_bytes()
    for damage in (b"", b"garbage", content[:-7], content[:3000] + b"\xff" + content[3001:]):
        assert damage != content
        path.write_bytes(damage)
        assert finish(start(tmp_path))[:2] == (sound, 1)
        assert path.read_bytes() == content


def test_a_sound_file_with_other_code_than_expected_is_compiled_anew(tmp_path):
    sound, _, folder = finish(start(tmp_path))
    (path,) = folder.iterdir()
    code = diskcache.read(path)
    others = (
        Code(code.symbol, code.signature, b"no object code"),
        Code(code.symbol, "void(int64)", code.object),
        Code("modelbuild.another", code.signature, code.object),
        Code(code.symbol, code.signature, code.object.replace(b"narrow_loop", b"narrow_look")),
    )
    for other in others:
        diskcache.write(path, other)
        assert finish(start(tmp_path))[:2] == (sound, 1)
        assert diskcache.read(path) == code


def test_a_folder_that_cannot_be_made_is_no_reason_to_fail(tmp_path):
    (tmp_path / "file").write_text("in the way")
    digest, heard, _ = finish(start(tmp_path / "file" / "kernels"))
    assert heard == 1
    assert digest == finish(start(tmp_path / "folder"))[0]


def test_the_folder_names_versions_sources_and_processor():
    names = diskcache.edition()
    assert "numba" in names
    assert "llvmlite" in names
    one, two = (diskcache.processor_name("x86_64", "zn/ver5", features) for features in ("+avx", "+avx,+avx512f"))
    assert one != two
    assert "/" not in one


def test_versions_are_those_that_the_installed_packages_have(monkeypatch, tmp_path):
    from importlib.metadata import version

    packages = ("numba", "llvmlite", "numpy", "pytest")
    assert [diskcache.installed(package) for package in packages] == [version(package) for package in packages]
    for name in ("numba-1.dist-info", "numba-2.dist-info"):
        (tmp_path / name).mkdir()
    spec = ModuleSpec("numba", None, origin=str(tmp_path / "numba" / "__init__.py"))
    for found in (spec, None):
        monkeypatch.setattr(diskcache, "find_spec", lambda package, found=found: found)
        assert diskcache.installed("numba") == version("numba"), "two folders, or none, say nothing"


def test_the_root_is_the_users_cache_folder_unless_one_is_named(monkeypatch):
    monkeypatch.delenv("MODELBUILD_KERNEL_CACHE", raising=False)
    assert diskcache.root().name == "kernels"
    monkeypatch.setenv("MODELBUILD_KERNEL_CACHE", "/elsewhere")
    assert diskcache.root() == Path("/elsewhere")


def test_what_is_written_is_read_back_and_nothing_else_is_left(tmp_path):
    path, code = tmp_path / "deep" / "x.kernel", Code("x", "void()", b"\n\x00code\n")
    diskcache.write(path, code)
    assert diskcache.read(path) == code
    assert [p.name for p in path.parent.iterdir()] == ["x.kernel"]
    path.write_bytes(path.read_bytes() + b"!")
    assert diskcache.read(path) is None
    assert diskcache.read(tmp_path / "missing") is None


@pytest.mark.parametrize("header", [b"", b"[]", b"7", b"{}", b'{"symbol": "x"}', b"\xff\xfe", b"cos\nsystem"])
def test_a_header_that_is_none_is_no_code(header):
    import hashlib

    payload = header + b"\ncode"
    assert diskcache.decode(hashlib.sha256(payload).digest() + payload) is None


# --- calls ------------------------------------------------------------------------------------------------------------


def test_numbas_own_settings_are_left_alone(double):
    import numba

    before = {name: getattr(numba.config, name) for name in dir(numba.config) if name.isupper()}
    double.compile()
    assert before == {name: getattr(numba.config, name) for name in before}


@pytest.mark.parametrize("wrong", ["7", 1.5, None, [1.0], np.zeros(3, np.float32)])
def test_a_kernel_takes_no_other_types_than_its_own(wrong):
    with pytest.raises(ctypes.ArgumentError):
        narrow_loop(wrong, 0, 0, 0)


def test_a_kernel_wants_all_its_arguments():
    with pytest.raises(TypeError):
        narrow_loop(0, 0, 0)
