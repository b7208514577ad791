"""The pico models are what transformers and PEFT themselves would have saved."""

import json
import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pico import (
    DTYPES,
    KINDS,
    narrow,
    read_floats,
    read_safetensors,
    read_tensors,
    save_lora,
    save_model,
    widen,
    write_safetensors,
)


def load(folder):
    import transformers

    transformers.logging.set_verbosity_error()
    kind = json.loads((folder / "config.json").read_text())["model_type"]
    auto = {"bert": transformers.AutoModel, "llava": transformers.AutoModelForImageTextToText}
    model, info = auto.get(kind, transformers.AutoModelForCausalLM).from_pretrained(folder, output_loading_info=True)
    return model, info


@pytest.mark.parametrize("kind", KINDS)
def test_transformers_loads_every_kind_without_a_missing_or_unexpected_tensor(tmp_path, kind):
    _, info = load(save_model(tmp_path / kind, kind, seed=1))
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert not info["mismatched_keys"]


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in ("llava", "gpt2-bare")])
def test_transformers_saves_the_same_tensors_bit_for_bit(tmp_path, kind):
    folder = save_model(tmp_path / kind, kind, seed=1, layers=3)
    model, _ = load(folder)
    model.save_pretrained(tmp_path / "again")
    assert_same(read_tensors(tmp_path / "again"), read_tensors(folder))


def assert_same(one, other):
    assert one.keys() == other.keys()
    for name, (dtype, raw) in one.items():
        assert dtype == other[name][0], name
        assert raw.shape == other[name][1].shape, name
        assert raw.tobytes() == other[name][1].tobytes(), name


@pytest.mark.parametrize("kind", ["llama", "mixtral", "gpt2"])
def test_config_names_only_keys_whose_value_transformers_keeps(tmp_path, kind):
    folder = save_model(tmp_path / kind, kind, seed=1)
    model, _ = load(folder)
    kept = model.config.to_dict()
    ours = json.loads((folder / "config.json").read_text())
    assert {key: kept.get(key) for key in ours if key != "dtype"} == {k: v for k, v in ours.items() if k != "dtype"}


def test_the_model_computes_and_the_tokenizer_speaks(tmp_path):
    import torch
    from transformers import AutoTokenizer

    folder = save_model(tmp_path / "m", seed=1)
    tokens = AutoTokenizer.from_pretrained(folder)("a b zzz", return_tensors="pt")
    assert tokens["input_ids"].tolist() == [[4, 5, 0]]
    model, _ = load(folder)
    with torch.no_grad():
        logits = model(**tokens).logits
    assert logits.shape == (1, 3, 64)
    assert torch.isfinite(logits).all()


def test_shards_and_their_index_hold_the_same_tensors(tmp_path):
    whole = save_model(tmp_path / "whole", seed=1)
    parts = save_model(tmp_path / "parts", seed=1, shards=3)
    index = json.loads((parts / "model.safetensors.index.json").read_text())
    assert sorted(set(index["weight_map"].values())) == [f"model-0000{n}-of-00003.safetensors" for n in (1, 2, 3)]
    assert index["metadata"]["total_size"] == sum(raw.nbytes for _, raw in read_tensors(whole).values())
    assert_same(read_tensors(parts), read_tensors(whole))
    assert not load(parts)[1]["missing_keys"]


def test_values_depend_on_seed_and_name_alone(tmp_path):
    two, three = (read_tensors(save_model(tmp_path / str(n), seed=1, layers=n)) for n in (2, 3))
    assert all(np.array_equal(raw, three[name][1]) for name, (_, raw) in two.items())
    other = read_tensors(save_model(tmp_path / "other", seed=2))
    assert not any(np.array_equal(raw, other[name][1]) for name, (_, raw) in two.items())


def test_reseed_changes_exactly_the_tensors_it_names(tmp_path):
    one = read_tensors(save_model(tmp_path / "one", seed=1))
    two = read_tensors(save_model(tmp_path / "two", seed=1, reseed={"layers.1.mlp.up_proj": 7}))
    changed = {name for name, (_, raw) in one.items() if not np.array_equal(raw, two[name][1])}
    assert changed == {"model.layers.1.mlp.up_proj.weight"}


def test_a_fine_tune_is_near_the_model_it_comes_from(tmp_path):
    base = read_floats(save_model(tmp_path / "base", seed=1))
    tuned = read_floats(save_model(tmp_path / "tuned", seed=2, tuned_from=1))
    for name, values in base.items():
        assert 0 < np.abs(values - tuned[name]).mean() < 0.02, name


def test_dtypes_extra_drop_and_config_shape_the_model(tmp_path):
    ids = np.arange(4, dtype=np.int64)[None]
    folder = save_model(
        tmp_path / "m", "mixtral", seed=1, dtype="float16", dtypes={"gate.weight": "float32"},
        extra={"buffer": ("I64", ids)}, drop=["lm_head.weight"], config={"note": "é", "use_cache": ...},
        dtype_key="torch_dtype",
    )  # fmt: skip
    tensors = read_tensors(folder)
    assert tensors["model.layers.0.block_sparse_moe.gate.weight"][0] == "F32"
    assert tensors["model.norm.weight"][0] == "F16"
    assert tensors["buffer"][1].tolist() == [[0, 1, 2, 3]]
    assert "lm_head.weight" not in tensors
    config = json.loads((folder / "config.json").read_text())
    assert config["torch_dtype"] == "float16"
    assert config["note"] == "é"
    assert "use_cache" not in config
    assert "dtype" not in config


@given(st.floats(width=32), st.sampled_from(list(DTYPES.values())))
def test_narrow_rounds_as_torch_does(value, dtype):
    import torch

    kinds = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32}
    ours = widen(dtype, narrow(dtype, np.array([value], np.float32)))
    theirs = torch.tensor([value], dtype=torch.float32).to(kinds[dtype]).float().numpy()
    assert np.array_equal(ours, theirs, equal_nan=True)


def test_every_bfloat16_survives_widening_and_narrowing():
    bits = np.arange(65536, dtype=np.uint16)
    again = narrow("BF16", widen("BF16", bits))
    nan = np.isnan(widen("BF16", bits))
    assert np.array_equal(again[~nan], bits[~nan])
    assert np.isnan(widen("BF16", again[nan])).all()


def test_the_safetensors_library_reads_what_we_write(tmp_path):
    from safetensors.numpy import load_file

    tensors = {
        "b": ("F32", np.array([[1.5, -2.0]], np.float32)),
        "a": ("I64", np.array([3])),
        "0": ("F16", np.array(1, np.uint16)),
    }
    path = write_safetensors(tmp_path / "x.safetensors", tensors)
    theirs = load_file(path)
    assert theirs["b"].tolist() == [[1.5, -2.0]]
    assert theirs["a"].tolist() == [3]
    assert theirs["0"].shape == ()
    assert_same(read_safetensors(path), tensors)


LORAS = {
    "plain": ("llama", {}),
    "rslora": ("mistral", {"rslora": True, "targets": ("q_proj", "k_proj", "o_proj", "up_proj")}),
    "patterns": ("llama", {"rank_pattern": {"q_proj": 3}, "alpha_pattern": {"layers.1.v_proj": 5}}),
    "biases of all": ("qwen2", {"bias": "all"}),
    "biases of its own": ("qwen2", {"bias": "lora_only"}),
    "replaced modules": ("llama", {"modules_to_save": ("lm_head", "input_layernorm")}),
    "embedding": ("llama", {"embedding": True}),
    "embedding of a tied model": ("qwen2", {"embedding": True, "targets": ()}),
    "Conv1D": ("gpt2", {"targets": ("c_attn", "mlp.c_proj")}),
    "Conv1D, bare names": ("gpt2-bare", {"targets": ("c_attn",)}),
    "encoder": ("bert", {"targets": ("query", "dense"), "bias": "all"}),
    "attention beside experts": ("mixtral", {}),
    "vision and language": ("llava", {"targets": ("q_proj", "linear_1")}),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("case", LORAS)
def test_peft_loads_every_lora_and_saves_the_same_tensors_bit_for_bit(tmp_path, case):
    from peft import PeftModel

    kind, options = LORAS[case]
    base = save_model(tmp_path / "base", kind, seed=1)
    adapter = save_lora(tmp_path / "adapter", base, seed=2, rank=4, alpha=8, **options)
    peft = PeftModel.from_pretrained(load(base)[0], adapter)
    peft.save_pretrained(tmp_path / "again")
    assert_same(read_tensors(tmp_path / "again"), read_tensors(adapter))
    ours, theirs = (json.loads((x / "adapter_config.json").read_text()) for x in (adapter, tmp_path / "again"))
    free = ("base_model_name_or_path", "task_type", "target_modules")
    assert not [key for key in ours if key not in free and (ours[key] or None) != (theirs[key] or None)]
    assert sorted(ours["target_modules"]) == sorted(theirs["target_modules"])


@pytest.mark.filterwarnings("ignore")
def test_a_lora_changes_what_the_model_says(tmp_path):
    from peft import PeftModel

    base = save_model(tmp_path / "base", seed=1)
    adapter = save_lora(tmp_path / "adapter", base, seed=2)
    before = load(base)[0].model.layers[0].self_attn.q_proj.weight.float().detach().numpy()
    merged = PeftModel.from_pretrained(load(base)[0], adapter).merge_and_unload()
    after = merged.model.layers[0].self_attn.q_proj.weight.float().detach().numpy()
    key = "base_model.model.model.layers.0.self_attn.q_proj.lora_{}.weight"
    factors = read_floats(adapter)
    delta = 16 / 8 * factors[key.format("B")] @ factors[key.format("A")]
    assert np.abs(after - (before + delta)).max() < 2e-3
    assert np.abs(delta).mean() > 0.01


def test_a_half_precision_lora_keeps_its_dtype_in_the_file(tmp_path):
    base = save_model(tmp_path / "base", seed=1)
    adapter = read_tensors(save_lora(tmp_path / "adapter", base, seed=2, dtype="bfloat16"))
    assert {dtype for dtype, _ in adapter.values()} == {"BF16"}


def test_a_retrained_lora_differs_where_it_was_reseeded(tmp_path):
    base = save_model(tmp_path / "base", seed=1)
    one = read_tensors(save_lora(tmp_path / "one", base, seed=2))
    two = read_tensors(save_lora(tmp_path / "two", base, seed=2, reseed={"layers.0.self_attn.q_proj": 3}))
    changed = {name for name, (_, raw) in one.items() if not np.array_equal(raw, two[name][1])}
    stem = "base_model.model.model.layers.0.self_attn.q_proj.lora_"
    assert changed == {f"{stem}A.weight", f"{stem}B.weight"}
