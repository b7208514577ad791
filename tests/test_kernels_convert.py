"""Conversions are exact one way and rounded to nearest even the other, for every pattern; torch is the oracle."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from modelbuild.kernels.convert import address, narrow, nonfinite, widen

ALL = np.arange(65536, dtype=np.uint16)
TORCH = {"BF16": torch.bfloat16, "F16": torch.float16}


def bits(array):
    return array.view(np.uint32)


def by_torch(floats, dtype):
    return torch.from_numpy(floats).to(TORCH[dtype]).view(torch.int16).numpy().view(np.uint16)


@pytest.mark.parametrize("dtype", ["BF16", "F16"])
def test_every_half_widens_to_the_float32_that_torch_gives(dtype):
    ours = widen(ALL, dtype)
    theirs = torch.from_numpy(ALL.view(np.int16)).view(TORCH[dtype]).float().numpy()
    assert ((bits(ours) == bits(theirs)) | (np.isnan(ours) & np.isnan(theirs))).all()
    assert np.isnan(ours).sum() == np.isnan(theirs).sum() > 0


@pytest.mark.parametrize("dtype", ["BF16", "F16"])
def test_every_half_survives_widening_and_narrowing_and_nan_becomes_quiet(dtype):
    wide = widen(ALL, dtype)
    quiet = {"BF16": 0x40, "F16": 0x200}[dtype]
    expected = np.where(np.isnan(wide), ALL | quiet, ALL)
    assert np.array_equal(narrow(wide, dtype), expected)


@pytest.mark.parametrize("dtype", ["BF16", "F16"])
def test_narrowing_rounds_as_torch_does_on_random_bits_and_around_every_half(dtype):
    rng = np.random.default_rng(0)
    middles = bits(widen(ALL[:-1], dtype)).astype(np.int64)
    gap = {"BF16": 1 << 15, "F16": 1 << 12}[dtype]
    near = np.concatenate([middles + gap + nudge for nudge in (-1, 0, 1)])
    patterns = np.concatenate([rng.integers(0, 2**32, 1_000_000), near, near // 2]).astype(np.uint32)
    floats = patterns.view(np.float32)
    floats = floats[~np.isnan(floats)]
    assert np.array_equal(narrow(floats, dtype), by_torch(floats, dtype))


@pytest.mark.parametrize(
    ("value", "dtype", "expected"),
    [
        (1.0, "BF16", 0x3F80),
        (1.0 + 2**-8, "BF16", 0x3F80),  # a tie goes to even
        (1.0 + 3 * 2**-8, "BF16", 0x3F82),
        (3.4e38, "BF16", 0x7F80),
        (float("-inf"), "BF16", 0xFF80),
        (2**-133, "BF16", 0x0001),
        (65504.0, "F16", 0x7BFF),
        (65519.99, "F16", 0x7BFF),
        (65520.0, "F16", 0x7C00),
        (-1e30, "F16", 0xFC00),
        (2**-24, "F16", 0x0001),
        (2**-25, "F16", 0x0000),  # a tie between 0 and the smallest
        (3 * 2**-25, "F16", 0x0002),
        (-0.0, "F16", 0x8000),
        (1023.5 * 2**-24, "F16", 0x0400),  # the largest subnormal's tie is the smallest normal
    ],
)
def test_narrowing_by_hand(value, dtype, expected):
    assert narrow(np.array([value], np.float32), dtype)[0] == expected


@pytest.mark.parametrize(("dtype", "place"), [("BF16", 16), ("F16", 13)])
def test_nan_keeps_its_sign_and_upper_payload_and_becomes_quiet(dtype, place):
    signalling = np.array([0x7F800001, 0xFF800001, 0x7FA00000], np.uint32).view(np.float32)
    ours = narrow(signalling, dtype)
    assert np.isnan(widen(ours, dtype)).all()
    assert [int(half) >> 15 for half in ours] == [0, 1, 0]
    assert int(ours[2]) & (0x200000 >> place)


def test_float32_is_copied_bit_by_bit():
    patterns = np.array([0, 0x80000000, 1, 0x7F800001, 0xFFC12345], np.uint32).view(np.float32)
    assert np.array_equal(bits(widen(patterns, "F32")), bits(patterns))
    assert np.array_equal(bits(narrow(patterns, "F32")), bits(patterns))


def test_shapes_are_kept_and_strided_arrays_are_read_in_order():
    matrix = narrow(np.arange(6, dtype=np.float32).reshape(2, 3), "BF16")
    assert np.array_equal(widen(matrix.T, "BF16"), [[0, 3], [1, 4], [2, 5]])


def test_memory_with_gaps_has_no_address():
    matrix = np.zeros((4, 6), np.float32)
    assert address(matrix[1:3]) == address(matrix) + 24
    for gaps in (matrix[:, :3], matrix.T, matrix.reshape(-1)[::2], matrix.reshape(-1)[::-1]):
        with pytest.raises(ValueError, match="strides"):
            address(gaps)


@pytest.mark.parametrize("dtype", ["BF16", "F16"])
def test_every_half_that_is_not_finite_is_counted(dtype):
    assert nonfinite(ALL, dtype) == (~np.isfinite(widen(ALL, dtype))).sum()


@pytest.mark.parametrize(("dtype", "infinity", "finite"), [("BF16", 0x7F80, 0x7F7F), ("F16", 0xFC00, 0xFBFF)])
def test_counts_do_not_run_over_in_a_large_tensor(dtype, infinity, finite):
    assert nonfinite(np.full(1_000_003, infinity, np.uint16), dtype) == 1_000_003
    assert nonfinite(np.full(1_000_003, finite, np.uint16), dtype) == 0


@settings(max_examples=50, deadline=None)
@given(st.lists(st.sampled_from([0.0, -1.5, 3e38, np.inf, -np.inf, np.nan]), max_size=40))
def test_float32_counts_are_numpys(values):
    array = np.array(values, np.float32)
    assert nonfinite(array, "F32") == np.count_nonzero(~np.isfinite(array))


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 20), st.integers(0, 20))
def test_counts_begin_and_end_anywhere(first, length):
    pattern = np.array([0x7F80, 0, 0xFFFF, 1, 0x8000] * 8, np.uint16)[first : first + length]
    assert nonfinite(pattern, "BF16") == np.count_nonzero((pattern & 0x7F80) == 0x7F80)
