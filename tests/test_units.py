"""Sizes: what people write, in bytes, and back."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelbuild.units import parse_size, show_bytes


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("0", 0),
        ("4096", 4096),
        ("7B", 7),
        ("1KB", 1000),
        ("1kb", 1000),
        ("2 MB", 2_000_000),
        ("5GB", 5_000_000_000),
        ("1TB", 10**12),
        ("1KiB", 1024),
        ("512MiB", 512 * 2**20),
        ("1.5 GiB", 3 * 2**29),
        ("2gib", 2**31),
        (" 3G ", 3_000_000_000),
        ("0.1KB", 100),
        ("0.0001KB", 0),
    ],
)
def test_a_size_is_as_many_bytes_as_it_says(text, count):
    assert parse_size(text) == count


@pytest.mark.parametrize(
    "text", ["", "GB", "five", "-1GB", "1iB", "1.GB", ".5GB", "1e3", "1 2", "5GBs", "1PB", "٣GB", "9" * 16]
)
def test_what_is_no_size_is_refused(text):
    with pytest.raises(ValueError, match="is not a size"):
        parse_size(text)


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.0 kB"),
        (1500, "1.5 kB"),
        (999_949, "999.9 kB"),
        (999_999, "1.0 MB"),
        (26_031_728_640, "26.0 GB"),
        (5 * 10**15, "5000.0 TB"),
    ],
)
def test_bytes_are_shown_with_one_digit(count, text):
    assert show_bytes(count) == text


@given(st.integers(0, 10**15))
def test_what_is_shown_is_near_what_was_counted(count):
    assert abs(parse_size(show_bytes(count)) - count) <= max(count * 0.051, 0)
