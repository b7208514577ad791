"""Random numbers, normal and uniform: right in every quantile, each a function of its index alone."""

import hashlib
from statistics import NormalDist

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_tools import raw, run, same_bits, values

from modelbuild.kernels.convert import address
from modelbuild.kernels.noise import NORMAL, SCRATCH, UNIFORM, drawn_loop, normal
from modelbuild.kernels.random import uniform
from modelbuild.methods import moe

KEY = 0x0123_4567_89AB_CDEF
HEX = f"{KEY:016x}"
COUNT = 10_000


def middles(start, stop):
    """The middle of each number's step, between -1 and 1, in float64."""
    return 2 * uniform(KEY, start, stop).astype(np.float64) - 1 + 2.0**-24


def test_a_normal_number_is_the_quantile_of_its_uniform_one():
    found = normal(KEY, 0, COUNT)
    exact = [NormalDist().inv_cdf((x + 1) / 2) for x in middles(0, COUNT)]
    assert np.abs(found / np.array(exact) - 1).max() < 1e-5
    assert np.abs(found - exact).max() < 2e-6


def test_the_tails_are_right_too():
    far = [i for i, x in enumerate(middles(0, 2_000_000)) if 1 - abs(x) < 2e-3]
    assert len(far) > 1000
    found, x = normal(KEY, 0, 2_000_000)[far], middles(0, 2_000_000)[far]
    exact = np.array([NormalDist().inv_cdf((value + 1) / 2) for value in x])
    assert np.abs(found / exact - 1).max() < 2e-6


def test_the_numbers_are_distributed_as_they_should_be():
    found = normal(KEY, 0, 1_000_000).astype(np.float64)
    assert abs(found.mean()) < 0.005
    assert abs(found.std() - 1) < 0.005
    assert abs((found**3).mean()) < 0.02
    assert abs((found**4).mean() - 3) < 0.05
    assert np.isfinite(found).all()


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 5000), st.integers(1, 5000))
def test_any_stretch_has_the_numbers_of_its_elements(start, count):
    assert same_bits(normal(KEY, start, start + count), normal(KEY, 0, 10_000)[start : start + count])


def test_uniform_numbers_lie_between_minus_and_plus_the_scale():
    out = np.empty(COUNT, np.float32)
    scratch = np.empty(SCRATCH, np.float32)
    drawn_loop(KEY, UNIFORM, np.float32(0.25), 0, COUNT, address(out), 2, address(scratch))
    assert same_bits(out, middles(0, COUNT).astype(np.float32) * np.float32(0.25))
    assert -0.25 < out.min() < -0.2499
    assert 0.2499 < out.max() < 0.25
    assert UNIFORM != NORMAL


def test_other_keys_give_other_numbers():
    assert abs(np.corrcoef(normal(KEY, 0, COUNT), normal(KEY + 1, 0, COUNT))[0, 1]) < 0.05


# --- the operations ---------------------------------------------------------------------------------------------------


def params(noise, scale):
    return (("noise", noise), ("scale", scale), ("key", HEX))


@pytest.mark.parametrize("dtype", ["BF16", "F16", "F32"])
@pytest.mark.parametrize(("noise", "scale"), [(0.5, 1.0), (0.0, 0.25), (0.1, -3.0)])
def test_noise_is_added_and_then_scaled_every_step_rounded(dtype, noise, scale):
    given = raw(np.linspace(-2, 2, 5000), dtype)
    sigma, factor = np.float32(noise), np.float32(scale)
    wanted = values(given, dtype)
    if noise:
        wanted = wanted + sigma * normal(KEY, 0, 5000)
    made = run("moe", params(noise, scale), [(dtype, given)], dtype)
    assert made.tobytes() == raw(wanted * factor, dtype).tobytes()


def test_stretches_cut_anywhere_give_the_same_bytes():
    given = [("BF16", raw(np.linspace(-2, 2, 9000), "BF16"))]
    whole = run("moe", params(0.3, 2.0), given, "F16")
    assert run("moe", params(0.3, 2.0), given, "F16", cuts=(1, 63, 64, 2047, 2048, 5000)).tobytes() == whole.tobytes()


def test_a_stretch_of_another_length_is_refused():
    from kernel_tools import node_of

    from modelbuild.kernels.noise import noisy

    node = node_of("moe", params(0.3, 2.0), [("F32", np.zeros(8, np.float32))], "F32")
    kernel = noisy(node, HEX, 0.3, 2.0)
    with pytest.raises(ValueError, match="a stretch of 8 elements"):
        kernel(0, 8, [np.zeros(7, np.float32)], np.zeros(8, np.float32), np.zeros(8, np.float32))


def drawn(kind, scale, dtype, shape=(8, 40), cuts=()):
    return run("drawn", (("kind", kind), ("scale", scale), ("key", HEX)), [], dtype, shape, cuts)


def test_a_drawn_router_is_the_numbers_times_their_scale():
    found = values(drawn("normal", 1.0, "F32"), "F32")
    assert same_bits(found.reshape(-1), normal(KEY, 0, 320))
    halves = values(drawn("uniform", 0.5, "F32"), "F32").reshape(-1)
    assert same_bits(halves, middles(0, 320).astype(np.float32) * np.float32(0.5))
    assert drawn("normal", 1.0, "BF16", cuts=(3, 100)).tobytes() == drawn("normal", 1.0, "BF16").tobytes()


GOLDEN = {("moe", 1): "699adaaea80faeebcc155882483dcea7", ("drawn", 1): "4ca05e34b9777579a14d6ae541e979a2"}


@pytest.mark.parametrize("name", ["moe", "drawn"])
def test_results_change_only_with_the_version(name):
    dtypes = ("BF16", "F16", "F32")
    if name == "moe":
        given = raw((np.arange(5000) % 97 - 48) / 64)
        made = [run("moe", params(0.3, 0.7), [("F32", given)], dtype) for dtype in dtypes]
    else:
        made = [drawn(kind, 0.7, dtype, (3, 1111)) for kind in ("normal", "uniform") for dtype in dtypes]
    found = hashlib.sha256(b"".join(array.tobytes() for array in made)).hexdigest()[:32]
    assert found == GOLDEN[name, moe.METHOD.version], f"{name} computes something else: raise the version of moe"
