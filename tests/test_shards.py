"""Layouts: the Hub's names, page-aligned data, and files that the safetensors library and transformers read."""

import json
import os
from math import prod

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pico import read_tensors, save_model

from modelbuild.artifact.shards import PAGE, index_json, index_name, plan_layout, shard_name
from modelbuild.plan.node import ITEMSIZE

PAGE_OF_BF16 = ("BF16", (2048,))


def write(folder, layout, tensors):
    """Writes the files of a layout as the engine does: header at 0, each tensor at its place."""
    folder.mkdir(exist_ok=True)
    for file, size in layout.sizes.items():
        data = bytearray(size)
        data[: len(layout.headers[file])] = layout.headers[file]
        for name, (place, offset, nbytes) in layout.places.items():
            if place == file:
                data[offset : offset + nbytes] = tensors[name][1].tobytes()
        (folder / file).write_bytes(data)
    if (index := index_json(layout)) is not None:
        (folder / index_name()).write_bytes(index)


def test_one_small_model_is_one_file_without_an_index():
    layout = plan_layout([("a", "BF16", (4,)), ("b", "F32", (2, 2))], 1000)
    assert list(layout.sizes) == ["model.safetensors"]
    assert index_json(layout) is None


def test_shards_fill_up_in_the_order_given():
    layout = plan_layout([(name, "U8", (4,)) for name in "abcde"], 8)
    assert {name: place[0] for name, place in layout.places.items()} == {
        "a": "model-00001-of-00003.safetensors",
        "b": "model-00001-of-00003.safetensors",
        "c": "model-00002-of-00003.safetensors",
        "d": "model-00002-of-00003.safetensors",
        "e": "model-00003-of-00003.safetensors",
    }


def test_a_tensor_larger_than_a_shard_has_one_of_its_own():
    layout = plan_layout([("a", "U8", (1,)), ("big", "U8", (100,)), ("c", "U8", (1,))], 10)
    assert [layout.places[name][0][6:11] for name in ("a", "big", "c")] == ["00001", "00002", "00003"]


def test_a_shard_may_be_exactly_full():
    assert len(plan_layout([("a", "U8", (5,)), ("b", "U8", (5,))], 10).sizes) == 1
    assert len(plan_layout([("a", "U8", (5,)), ("b", "U8", (6,))], 10).sizes) == 2


def test_an_adapter_is_one_file_whatever_its_size():
    layout = plan_layout([("a", "F32", (100,)), ("b", "F32", (100,))], None, stem="adapter_model")
    assert list(layout.sizes) == ["adapter_model.safetensors"]


def test_names_count_from_one_with_five_digits():
    assert shard_name(2, 12) == "model-00002-of-00012.safetensors"
    assert shard_name(1, 1, "adapter_model") == "adapter_model.safetensors"
    assert index_name() == "model.safetensors.index.json"


def test_whole_pages_come_first_then_wide_elements():
    layout = plan_layout(
        [("bytes", "U8", (3,)), ("bf16", "BF16", (5,)), ("page", *PAGE_OF_BF16), ("i64", "I64", (3,))], 10**6
    )
    start = len(layout.headers["model.safetensors"])
    offsets = {name: offset - start for name, (_, offset, _) in layout.places.items()}
    assert offsets == {"page": 0, "i64": 4096, "bf16": 4096 + 24, "bytes": 4096 + 34}
    assert layout.sizes["model.safetensors"] == start + 4096 + 37


def test_the_header_is_a_page_of_json_and_spaces():
    header = plan_layout([("a", "BF16", (2, 3))], 100).headers["model.safetensors"]
    assert len(header) == 4096
    assert int.from_bytes(header[:8], "little") == 4088
    assert header[8:].rstrip(b" ") == (
        b'{"__metadata__":{"format":"pt"},"a":{"dtype":"BF16","shape":[2,3],"data_offsets":[0,12]}}'
    )


def test_the_index_is_sorted_and_counts_data_bytes_only():
    layout = plan_layout([("b", "U8", (4,)), ("a", "U8", (2,))], 4)
    text = index_json(layout)
    assert json.loads(text) == {
        "metadata": {"total_size": 6},
        "weight_map": {"a": "model-00002-of-00002.safetensors", "b": "model-00001-of-00002.safetensors"},
    }
    assert text.index(b'"a"') < text.index(b'"b"')
    assert text.endswith(b"}\n")


def test_no_tensors_are_one_empty_file(tmp_path):
    from safetensors.numpy import load_file

    layout = plan_layout([], 10)
    write(tmp_path, layout, {})
    assert load_file(tmp_path / "model.safetensors") == {}


def llama(layers, hidden):
    """The matrices of a small Llama: attention has four of every seven, the mlp three."""
    yield "model.embed_tokens.weight", "BF16", (hidden, hidden)
    for n in range(layers):
        for part in ("self_attn.q", "mlp.up", "self_attn.k", "mlp.gate", "self_attn.v", "mlp.down", "self_attn.o"):
            yield f"model.layers.{n}.{part}_proj.weight", "BF16", (hidden, hidden)
        yield f"model.layers.{n}.input_layernorm.weight", "BF16", (hidden,)
    yield "lm_head.weight", "BF16", (hidden, hidden)


def files_of(layout):
    """The tensors of each file, in order of their places."""
    found = {file: [] for file in layout.sizes}
    for name, (file, offset, _) in sorted(layout.places.items(), key=lambda item: item[1][1]):
        found[file].append((offset, name))
    return [[name for _, name in sorted(names)] for names in found.values()]


def test_modules_have_files_of_their_own_in_the_order_of_layers():
    rest, attention, mlp = files_of(plan_layout(list(llama(3, 64)), 10**6, "modules"))
    assert {name.split(".")[3] for name in attention} == {"self_attn"}
    assert {name.split(".")[3] for name in mlp} == {"mlp"}
    assert [int(name.split(".")[2]) for name in attention] == [0] * 4 + [1] * 4 + [2] * 4
    assert "model.layers.2.input_layernorm.weight" in rest  # small: no file of its own
    assert {"model.embed_tokens.weight", "lm_head.weight"} <= set(rest)


def test_a_module_larger_than_a_shard_is_cut_further_and_never_mixed():
    files = files_of(plan_layout(list(llama(3, 64)), 5 * 64 * 64 * 2, "modules"))
    kinds = [{name.split(".")[3] if ".layers." in name else "" for name in file} for file in files]
    assert kinds[1:] == [{"self_attn"}] * 3 + [{"mlp"}] * 2


def test_large_weights_are_cut_by_modules_and_small_ones_are_not():
    large, small = list(llama(11, 2600)), list(llama(10, 2500))
    assert len(plan_layout(large, 5 * 10**9).sizes) == 3
    assert len(plan_layout(large, 5 * 10**9, "order").sizes) == 1
    assert len(plan_layout(small, 5 * 10**9).sizes) == 1
    assert len(plan_layout(large, None).sizes) == 1


def test_stacks_are_kept_apart_and_names_without_layers_together():
    tensors = [(f"{stack}.{n}.mlp.w", "U8", (1000,)) for n in range(2) for stack in ("visual.blocks", "model.layers")]
    tensors += [("mm_projector.0.weight", "U8", (900,)), ("head", "U8", (900,))]
    assert [len(file) for file in files_of(plan_layout(tensors, 10**6, "modules"))] == [2, 2, 2]
    assert len(files_of(plan_layout(tensors[-2:], 10**6, "modules"))) == 1
    assert files_of(plan_layout([], 10**6, "modules")) == [[]]


SHAPES = st.lists(st.integers(0, 40), max_size=3).map(tuple)
TENSORS = st.lists(
    st.tuples(
        st.text(st.characters(codec="utf-8"), min_size=1).filter(lambda name: name != "__metadata__"),
        st.sampled_from(["BF16", "F32", "U8", "I64", "F16", "BOOL"]),
        st.one_of(SHAPES, st.just((2048,)), st.just((64, 64))),
    ),
    unique_by=lambda tensor: tensor[0],
    max_size=12,
)


@given(TENSORS, st.integers(1, 20000), st.sampled_from([None, "modules", "order"]))
def test_every_byte_of_data_belongs_to_one_tensor_at_an_offset_that_suits_it(tensors, shard_size, shards):
    layout = plan_layout(tensors, shard_size, shards)
    assert layout.places.keys() == {name for name, _, _ in tensors}
    for file, size in layout.sizes.items():
        end = len(layout.headers[file])
        assert end % PAGE == 0
        inside = sorted((offset, nbytes) for place, offset, nbytes in layout.places.values() if place == file)
        for offset, nbytes in inside:
            assert offset == end
            end += nbytes
        assert end == size
        assert size - len(layout.headers[file]) <= shard_size or len([1 for _, nbytes in inside if nbytes]) == 1
    for name, dtype, shape in tensors:
        _, offset, nbytes = layout.places[name]
        assert nbytes == prod(shape) * ITEMSIZE[dtype]
        assert offset % ITEMSIZE[dtype] == 0
        assert nbytes % PAGE or offset % PAGE == 0


@given(TENSORS, st.integers(1, 20000))
def test_the_same_tensors_give_the_same_bytes(tensors, shard_size):
    one, two = plan_layout(tensors, shard_size), plan_layout(list(tensors), shard_size)
    assert one == two
    assert index_json(one) == index_json(two)


@given(TENSORS)
def test_the_safetensors_library_reads_every_layout(tmp_path_factory, tensors):
    from safetensors import safe_open

    folder = tmp_path_factory.mktemp("layout")
    layout = plan_layout(tensors, None)
    zeros = {name: (dtype, np.zeros(prod(shape) * ITEMSIZE[dtype], np.uint8)) for name, dtype, shape in tensors}
    write(folder, layout, zeros)
    with safe_open(folder / "model.safetensors", "np") as file:
        assert file.metadata() == {"format": "pt"}
        slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
    assert {(name, part.get_dtype(), tuple(part.get_shape())) for name, part in slices.items()} == set(tensors)


@pytest.mark.parametrize("shard_size", [10**6, 20000, 1])
def test_transformers_loads_the_layout_of_a_model_at_any_shard_size(tmp_path, shard_size):
    from transformers import AutoModelForCausalLM

    folder = save_model(tmp_path / "source", seed=1, hidden=64)
    tensors = read_tensors(folder)
    layout = plan_layout([(name, dtype, raw.shape) for name, (dtype, raw) in tensors.items()], shard_size)
    write(tmp_path / "out", layout, tensors)
    (tmp_path / "out" / "config.json").write_bytes((folder / "config.json").read_bytes())
    model, info = AutoModelForCausalLM.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    norm = model.state_dict()["model.norm.weight"].float().numpy()
    expected = AutoModelForCausalLM.from_pretrained(folder).state_dict()["model.norm.weight"].float().numpy()
    assert np.array_equal(norm, expected)
