"""Files laid out as the safetensors library does it: the same bytes as its own `save_file`, for any tensors."""

import json
from math import prod

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save, save_file

from modelbuild.artifact.library import library_layout
from modelbuild.artifact.shards import index_json
from modelbuild.dtypes import ITEMSIZE

NAMES = {
    "BOOL": "bool", "U8": "uint8", "I8": "int8", "F8_E5M2": "float8_e5m2", "F8_E4M3": "float8_e4m3fn",
    "F8_E8M0": "float8_e8m0fnu", "I16": "int16", "U16": "uint16", "F16": "float16", "BF16": "bfloat16",
    "I32": "int32", "U32": "uint32", "F32": "float32", "F64": "float64", "I64": "int64", "U64": "uint64",
}  # fmt: skip
"""What torch calls our dtypes."""

names = st.text(st.characters(codec="utf-8", exclude_categories=["Cs", "Cc"]), min_size=1, max_size=12)
tensors = st.dictionaries(
    names.filter(lambda name: name != "__metadata__"),
    st.tuples(st.sampled_from(sorted(ITEMSIZE)), st.lists(st.integers(0, 5), max_size=3).map(tuple)),
    max_size=8,
)


def data(name, dtype, shape):
    nbytes = prod(shape) * ITEMSIZE[dtype]
    return (name.encode() * nbytes)[:nbytes]


def tensor(name, dtype, shape):
    kind = getattr(torch, NAMES[dtype])
    content = bytearray(data(name, dtype, shape))
    if not content:
        return torch.empty(shape, dtype=kind)
    return torch.frombuffer(content, dtype=torch.uint8).view(kind).reshape(shape)


def theirs(found):
    """The bytes that the library writes."""
    return save({name: tensor(name, *entry) for name, entry in found.items()}, {"format": "pt"})


def ours(found):
    """The bytes that a layout of one file describes."""
    layout = library_layout([[(name, dtype, shape)] for name, (dtype, shape) in found.items()], None)
    (file,) = layout.sizes
    content = bytearray(layout.sizes[file])
    content[: len(layout.headers[file])] = layout.headers[file]
    for name, (_, offset, size) in layout.places.items():
        content[offset : offset + size] = data(name, *found[name])
    return bytes(content)


@given(tensors)
def test_any_tensors_are_the_file_that_the_library_writes(found):
    assert ours(found) == theirs(found)


def test_every_dtype_stands_where_the_library_puts_it():
    found = {f"{n:02}": (dtype, (3,)) for n, dtype in enumerate(sorted(ITEMSIZE))}
    assert ours(found) == theirs(found)
    assert set(NAMES) == set(ITEMSIZE)


def test_the_file_that_the_library_saves_is_ours(tmp_path):
    found = {"b": ("F32", (2,)), "a": ("U8", (3,))}
    save_file({name: tensor(name, *entry) for name, entry in found.items()}, tmp_path / "file", {"format": "pt"})
    assert (tmp_path / "file").read_bytes() == ours(found)


def test_a_group_is_never_cut_and_files_are_as_full_as_they_may_be():
    groups = [[(f"{n}.weight", "U8", (60,)), (f"{n}.absmax", "F32", (5,))] for n in range(5)]
    layout = library_layout(groups, 200)
    assert list(layout.sizes) == [f"model-0000{n}-of-00003.safetensors" for n in (1, 2, 3)]
    for n in range(5):
        assert layout.places[f"{n}.weight"][0] == layout.places[f"{n}.absmax"][0]
    index = json.loads(index_json(layout))
    assert index["metadata"]["total_size"] == 5 * 80
    assert index["weight_map"].keys() == layout.places.keys()


@pytest.mark.parametrize("size", [1, 79])
def test_a_group_that_is_larger_than_a_file_has_one_of_its_own(size):
    groups = [[(f"{n}", "U8", (80,))] for n in range(3)]
    assert len(library_layout(groups, size).sizes) == 3


def test_nothing_is_a_file_of_a_header():
    layout = library_layout([], None)
    assert layout.sizes == {"model.safetensors": len(layout.headers["model.safetensors"])}
    assert ours({}) == theirs({})
