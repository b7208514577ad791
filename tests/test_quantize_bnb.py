"""Format bnb, held to transformers' own saves byte for byte, to its answers, and to bitsandbytes' functions."""

import json

import numpy as np
import pico
import pytest
from quantizing import MODES, SIZES, Quantizing, logits, packed_names, saved, table

KINDS = ("llama", "mistral", "qwen2", "bert", "gpt2", "llava")
LINEAR = 14
"""Linear layers of the small Llama: seven in each of two layers."""


@pytest.fixture
def world(tmp_path):
    return Quantizing(tmp_path)


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    """A Llama in every mode, built once."""
    world = Quantizing(tmp_path_factory.mktemp("llama")).small("base")
    world.write(*(table(mode, "base", mode) for mode in MODES)).build()
    return world


# --- the same files ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("kind", KINDS)
def test_the_file_is_the_one_that_transformers_saves(world, kind, mode):
    world.small("base", kind).write(table("q", "base", mode)).build()
    theirs = saved(world.root / "base", world.root / "theirs", mode)
    assert world.weights("q") == (theirs / "model.safetensors").read_bytes()
    ours, config = world.config("q"), json.loads((theirs / "config.json").read_text())
    assert ours["quantization_config"] == config["quantization_config"]
    assert list(ours["quantization_config"]) == list(config["quantization_config"])
    assert ours["dtype"] == config["dtype"]


@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize("mode", ["nf4-dq", "int8"])
def test_a_model_of_another_dtype_is_packed_from_that_dtype(world, dtype, mode):
    world.small("base", dtype=dtype).write(table("q", "base", mode)).build()
    theirs = saved(world.root / "base", world.root / "theirs", mode)
    assert world.weights("q") == (theirs / "model.safetensors").read_bytes()
    assert world.config("q")["dtype"] == dtype
    if mode == "nf4-dq":
        state = state_of(world, "model.layers.0.mlp.up_proj", "nf4")
        assert state["dtype"] == dtype


def test_names_without_a_prefix_are_packed_into_the_same_tensors(world):
    world.small("base", "gpt2-bare").write(table("q", "base", "nf4")).build()
    theirs = pico.read_tensors(saved(world.root / "base", world.root / "theirs"))
    ours = {f"transformer.{name}": tensor for name, tensor in world.tensors("q").items()}
    assert ours.keys() == theirs.keys()
    assert all(ours[n][0] == t[0] and ours[n][1].tobytes() == t[1].tobytes() for n, t in theirs.items())


def test_a_head_and_last_layers_are_treated_as_transformers_treats_them(world):
    head = {"score.weight": ("BF16", pico.narrow("BF16", np.ones((2, 64), np.float32)))}
    config = {"architectures": ["LlamaForSequenceClassification"], "num_labels": 2, "pad_token_id": 3}
    world.small("base", drop=["lm_head.weight"], extra=head, config=config)
    world.write(table("q", "base")).build()
    theirs = saved(world.root / "base", world.root / "theirs")
    assert world.weights("q") == (theirs / "model.safetensors").read_bytes()
    assert "score.weight" not in packed_names(world.out / "q")


@pytest.mark.parametrize("mode", MODES)
def test_the_loaded_model_answers_as_that_of_transformers(llama, mode, tmp_path):
    ours = logits(llama.out / mode)
    assert np.array_equal(ours, logits(saved(llama.root / "base", tmp_path / "theirs", mode)))
    assert not np.array_equal(ours, logits(llama.root / "base"))
    assert np.abs(ours - logits(llama.root / "base")).max() < 1


@pytest.mark.parametrize("kind", ["bert", "qwen2", "gpt2"])
def test_other_architectures_load_and_answer_as_transformers_own(world, kind):
    world.small("base", kind).write(table("q", "base", "nf4-dq")).build()
    theirs = saved(world.root / "base", world.root / "theirs", "nf4-dq")
    assert np.array_equal(logits(world.out / "q", kind), logits(theirs, kind))


@pytest.mark.parametrize("block", [32, 128, 4096])
def test_other_block_sizes_are_those_of_bitsandbytes(world, block):
    import torch
    from bitsandbytes import functional

    world.small("base").write(table("q", "base", "nf4", block_size=block)).build()
    name = "model.layers.1.mlp.down_proj"
    raw = pico.read_tensors(world.root / "base")[f"{name}.weight"][1]
    packed, state = functional.quantize_4bit(
        torch.from_numpy(raw.view(np.int16)).view(torch.bfloat16), blocksize=block, quant_type="nf4"
    )
    made = world.tensors("q")
    assert np.array_equal(made[f"{name}.weight"][1], packed.numpy())
    assert np.array_equal(made[f"{name}.weight.absmax"][1], state.absmax.numpy())
    assert state_of(world, name, "nf4")["blocksize"] == block


def test_a_model_in_smaller_blocks_loads(llama, world):
    world.small("base").write(table("q", "base", "nf4", block_size=32)).build()
    ours = logits(world.out / "q")
    assert np.abs(ours - logits(world.root / "base")).max() < 1
    assert not np.array_equal(ours, logits(llama.out / "nf4"))


# --- what is packed, and what is not ----------------------------------------------------------------------------------


def state_of(world, module, kind):
    raw = world.tensors("q")[f"{module}.weight.quant_state.bitsandbytes__{kind}"][1]
    return json.loads(raw.tobytes())


def test_heads_embeddings_norms_and_biases_stay_as_they_are(llama):
    base, made = pico.read_tensors(llama.root / "base"), llama.tensors("nf4")
    packed = packed_names(llama.out / "nf4")
    assert len(packed) == LINEAR
    for name in base.keys() - packed:
        assert made[name][0] == "BF16"
        assert made[name][1].tobytes() == base[name][1].tobytes()


def test_a_packed_weight_with_its_scales_counts_as_one_tensor(tmp_path):
    world = Quantizing(tmp_path).small("base").write(table("q", "base", "nf4-dq"))
    found = world.build()["q"]
    assert (found.tensors.total, found.tensors.computed, found.tensors.copied) == (21, LINEAR, 7)
    assert len(world.tensors("q")) == 7 + 6 * LINEAR


def test_int8_has_the_scale_of_each_row_and_the_format(llama):
    made = llama.tensors("int8")
    base = pico.read_floats(llama.root / "base")
    name = "model.layers.0.mlp.up_proj"
    scale = np.abs(base[f"{name}.weight"].astype(np.float16)).max(axis=1).astype(np.float32)
    assert np.array_equal(made[f"{name}.SCB"][1], scale)
    assert made[f"{name}.weight_format"][0] == "U8"
    assert made[f"{name}.weight_format"][1].tobytes() == b"\0"
    near = made[f"{name}.weight"][1] * (scale[:, None] / 127)
    assert np.abs(near - base[f"{name}.weight"]).max() <= scale.max() / 127


def test_a_gpt2_is_packed_the_way_it_computes_not_the_way_it_is_stored(world):
    world.small("base", "gpt2").write(table("q", "base")).build()
    name = "transformer.h.0.attn.c_attn"
    assert pico.read_tensors(world.root / "base")[f"{name}.weight"][1].shape == (64, 192)
    assert state_of(world, name, "nf4")["shape"] == [192, 64]


def test_numbers_that_are_not_finite_are_told_by_name(world):
    bad = pico.narrow("BF16", np.full((64, 64), np.inf, np.float32))
    world.small("base", extra={"model.layers.0.self_attn.q_proj.weight": ("BF16", bad)})
    notes = world.write(table("q", "base")).build()["q"].notes
    assert notes == ("NaN or infinite values in `model.layers.0.self_attn.q_proj.weight` (4096)",)


# --- from a merge -----------------------------------------------------------------------------------------------------

CHAIN = """
[merge.adapted]
method = "lora"
base = "one"
adapters = [ { adapter = "lora", weight = 0.5 } ]

[merge.blend]
method = "lerp"
base = "adapted"
models = [ { model = "two", t = 0.25 } ]
"""


@pytest.fixture
def chain(tmp_path):
    world = Quantizing(tmp_path).small("one").small("two", seed=2)
    return world.lora("lora", "one", seed=3, targets=("q_proj", "up_proj"))


@pytest.mark.parametrize("mode", ["nf4-dq", "int8"])
def test_a_streamed_merge_is_packed_as_if_it_had_been_written(chain, mode):
    result = chain.write(CHAIN, table("q", "blend", mode)).build("q")
    assert [(a.name, a.status) for a in result.artifacts] == [
        ("adapted", "streamed"), ("blend", "streamed"), ("q", "built"),
    ]  # fmt: skip
    streamed = chain.weights("q")
    other = chain.copy()
    other.build("blend")
    theirs = saved(other.out / "blend", other.root / "theirs", mode)
    assert streamed == (theirs / "model.safetensors").read_bytes()


def test_a_merge_that_is_a_target_too_is_read_back_and_packed_to_the_same_bytes(chain):
    chain.write(CHAIN, table("q", "blend", "nf4-dq"))
    alone = chain.from_nothing("q")
    chain.build("blend", "q")
    assert chain.weights("q") == alone.weights("q")


def test_the_value_that_is_packed_is_rounded_to_the_merge_s_dtype(chain):
    """Float32 arithmetic on its way through the merge must not reach bitsandbytes."""
    chain.write(CHAIN, table("q", "blend")).build("q")
    assert state_of(chain, "model.layers.0.mlp.up_proj", "nf4")["dtype"] == "bfloat16"
    chain.edit("t = 0.25 } ]", 't = 0.25 } ]\ndtype = "float32"').build("q")
    assert state_of(chain, "model.layers.0.mlp.up_proj", "nf4")["dtype"] == "float32"


def test_two_formats_of_one_merge_compute_the_merge_once(chain):
    chain.write(CHAIN, table("a", "blend", "nf4"), table("b", "blend", "int8"))
    result = chain.build("a", "b")
    assert result["blend"].tensors.computed == 21
    assert (result["a"].tensors.computed, result["b"].tensors.computed) == (LINEAR, LINEAR)
    for name in ("a", "b"):
        assert chain.weights(name) == chain.from_nothing(name).weights(name)


# --- beside the weights -----------------------------------------------------------------------------------------------


def test_side_files_are_the_model_s(llama):
    for name in ("generation_config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
        assert (llama.out / "nf4" / name).read_bytes() == (llama.root / "base" / name).read_bytes()
    ours = llama.config("nf4")
    base = json.loads((llama.root / "base" / "config.json").read_text())
    assert {key: value for key, value in ours.items() if key != "quantization_config"} == base


def test_card_and_provenance_say_what_it_is_and_what_computed_it(llama):
    card = (llama.out / "nf4-dq" / "README.md").read_text()
    document = json.loads((llama.out / "nf4-dq" / "modelbuild.json").read_text())
    (numerics,) = document["numerics"]
    assert document["kind"] == "quantize"
    assert document["methods"] == document["operations"] == {"bnb": 1}
    assert numerics.startswith("bitsandbytes 0.50.2, torch ")
    assert "- nf4-dq: base as bnb nf4\n  computed by bitsandbytes 0.50.2" in card
    assert "pip install 'modelbuild[bnb]==" in card
    assert "- quantize\n" in card


def test_shards_hold_a_weight_and_its_scales_together_and_load(world):
    world.small("base").write('[settings]\nshard_size = "20KB"\n', table("q", "base", "nf4-dq")).build()
    index = json.loads((world.out / "q" / "model.safetensors.index.json").read_text())
    files = index["weight_map"]
    assert len(set(files.values())) > 2
    for name in packed_names(world.out / "q"):
        assert {files[other] for other in files if other.startswith(f"{name}.")} == {files[name]}
    assert index["metadata"]["total_size"] == sum(raw.nbytes for _, raw in world.tensors("q").values())
    whole = world.copy().edit('shard_size = "20KB"', 'shard_size = "5GB"')
    whole.build()
    assert np.array_equal(logits(world.out / "q"), logits(whole.out / "q"))


def test_sizes_suit_the_tests(llama):
    assert all(SIZES[name] % 32 == 0 for name in ("hidden", "intermediate", "vocab"))
    assert llama.plan("nf4").notes == ()
