"""Builds from files of torch.save: the same weights as from safetensors, planned without torch, shard by shard."""

import json
import os
import shutil

import numpy as np
import pico
import pytest
import torch
from merging import MergeWorld
from pickled import Call, as_pickles, as_saved, old_name, save, torch_tensors
from safetensors.torch import save_file

from modelbuild.errors import BuildFailed, ModelbuildError, NotBuiltYet, SourceNotFound
from modelbuild.sources.buffers import is_recomputed

LERP = '[merge.m]\nmethod = "lerp"\nbase = "a"\nmodels = [ { model = "b", t = 0.25 } ]\n'
HEAVY = {"torch", "numba", "llvmlite", "transformers", "peft", "huggingface_hub", "safetensors"}
INDEX = "pytorch_model.bin.index.json"


@pytest.fixture
def world(tmp_path):
    root = tmp_path / "world"
    root.mkdir()
    return MergeWorld(root)


def weights(world, name):
    """The bytes of an output's weights, index and config; cards and provenance speak of the sources."""
    return {k: v for k, v in world.bytes(name).items() if k not in ("README.md", "modelbuild.json")}


def in_place_of_safetensors(world, *names, **options):
    """The same sources in another world, as files of torch.save."""
    for name in names:
        as_saved(world.root / name)
        world.age(name)
    old = MergeWorld(world.copy().root)
    for name in names:
        as_pickles(old.root / name, **options)
        old.age(name)
    return old


def turned(tensors):
    """The same tensors, stored transposed."""
    return {name: t.t().contiguous().t() if t.dim() == 2 else t for name, t in tensors.items()}


# --- the same result --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("old", [False, True], ids=["zip", "legacy"])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_a_build_from_old_files_has_the_bytes_of_one_from_safetensors(violet, dtype, old):
    """Two models, one in shards, and an adapter."""
    violet.model("red", seed=1, dtype=dtype).model("blue", seed=2, dtype=dtype, shards=3)
    violet.lora("style", "red", seed=3)
    pickled = in_place_of_safetensors(violet, "red", "blue", "style", legacy=old)
    assert not list(pickled.root.rglob("*.safetensors"))
    assert violet.build()["violet"].tensors == pickled.build()["violet"].tensors
    assert weights(violet, "violet") == weights(pickled, "violet")


def test_keys_are_those_of_other_files_but_an_adapters_are_those_of_its_tensors(violet):
    pickled = in_place_of_safetensors(violet, "red", "blue", "style")
    for name in ("red", "blue"):
        shutil.rmtree(pickled.root / name)
        shutil.copytree(violet.root / name, pickled.root / name)
        pickled.age(name)
    assert violet.build()["violet"].key == pickled.build()["violet"].key
    as_pickles(pickled.root / "blue")
    pickled.age("blue")
    again = pickled.build()["violet"]
    assert again.key != violet.build()["violet"].key
    assert weights(violet, "violet") == weights(pickled, "violet")


def test_transposed_and_tied_tensors_build_the_same(world):
    """Every matrix is saved as the transpose of one that lies in order, and one tensor has two names."""

    def change(tensors):
        found = {k: t.t().contiguous().t() if t.dim() == 2 else t for k, t in tensors.items()}
        if found.keys() >= {"lm_head.weight", "model.embed_tokens.weight"}:
            found["lm_head.weight"] = found["model.embed_tokens.weight"]
        return found

    world.model("a", seed=1).model("b", seed=2, shards=2)
    for name in ("a", "b"):
        tied = pico.read_tensors(world.root / name)["model.embed_tokens.weight"]
        world.tensor(name, "lm_head.weight", lambda _, tied=tied: tied[1])
    world.merge(LERP)
    pickled = in_place_of_safetensors(world, "a", "b", change=change)
    world.build()
    result = pickled.build()
    assert weights(world, "m") == weights(pickled, "m")
    assert any("stored out of order" in note and note.startswith("a: `pytorch_model.bin`") for note in result.notes)
    # What was copied is not looked at again, and may be thrown away.
    assert pickled.build()["m"].status == "fresh"
    shutil.rmtree(pickled.cache / "sources" / "copies")
    assert pickled.edit("t = 0.25", "t = 0.5").build()["m"].tensors.computed > 0
    assert weights(world.edit("t = 0.25", "t = 0.5").from_nothing(), "m") == weights(pickled, "m")


def test_a_transposed_adapter_is_the_same_adapter(violet):
    pickled = in_place_of_safetensors(violet, "style", change=turned)
    assert violet.build()["violet"].key == pickled.build()["violet"].key
    assert weights(violet, "violet") == weights(pickled, "violet")


def test_a_model_whose_config_names_no_dtype_is_built_with_that_of_its_tensors(world):
    world.model("a", seed=1, dtype="float16", config={"dtype": ...}).model("b", seed=2, dtype="float32")
    as_pickles(world.root / "a")
    as_pickles(world.root / "b", legacy=True)
    made = world.age("a").age("b").made(LERP)
    assert {dtype for dtype, _ in made.values()} == {"F16"}


@pytest.mark.parametrize("name", ["weights.bin", "weights.pt", "weights.pth"])
def test_one_file_is_a_source(world, name):
    world.model("a", seed=1).model("b", seed=2)
    saved = torch_tensors(world.root / "b")
    shutil.rmtree(world.root / "b")
    save(world.root / name, {"state_dict": saved, "epoch": 4})
    os.utime(world.root / name, (1, 1))
    world.modelfile('[base.a]\nsource = "a"\n[base.b]\nsource = "' + name + '"\n' + LERP)
    assert world.build()["m"].tensors.total == len(saved)
    assert f"b: `{name}`: its weights are those under `state_dict`" in world.plan().notes
    assert f"b: `{name}`: left out beside `state_dict`: `epoch`" in world.plan().notes


def test_notes_about_an_adapter_are_told_too(violet):
    violet = in_place_of_safetensors(violet, "style", change=lambda tensors: {**tensors, "step": 9})
    assert "style: `adapter_model.bin`: left out, being no tensors: `step`" in violet.plan().notes


# --- without torch ----------------------------------------------------------------------------------------------------


def test_planning_loads_torch_for_a_new_file_only(violet):
    old = in_place_of_safetensors(violet, "red", "style", change=turned)
    as_pickles(old.root / "blue", legacy=True)
    old.age("blue")

    def imported(*words):
        return {name.partition(".")[0] for name in old.imports(*words)} & HEAVY

    assert "torch" in imported("plan")
    for words in (["plan"], ["plan", "--json"], ["why", "violet"], ["lock"]):
        assert imported(*words) == set(), words
    assert old.run("build").returncode == 0
    (old.out / "violet" / "config.json").unlink()
    assert imported("build") == set()
    assert imported("plan") == set()
    # Without what was remembered, torch is asked again.
    shutil.rmtree(old.cache / "sources" / "contents")
    assert "torch" in imported("plan")


# --- which files ------------------------------------------------------------------------------------------------------


def test_safetensors_come_before_old_files(world):
    world.model("a", seed=1).model("b", seed=2)
    expected = world.made(LERP)
    save(world.root / "b" / "pytorch_model.bin", {"other": torch.ones(1)})
    (world.root / "b" / INDEX).write_text(json.dumps({"weight_map": {"other": "pytorch_model.bin"}}))
    save(world.root / "b" / "consolidated.00.pth", {"other": torch.ones(1)})
    made = world.age("b").made(LERP)
    assert made.keys() == expected.keys()
    assert all(np.array_equal(made[k][1], expected[k][1]) for k in made)


def test_an_old_adapter_beside_its_safetensors_is_not_looked_at(violet):
    before = violet.build()["violet"].key
    (violet.root / "style" / "adapter_model.bin").write_bytes(b"no weights")
    assert violet.age("style").build()["violet"].key == before


def test_what_training_leaves_beside_old_files_is_no_model(world):
    world.model("a", seed=1).model("b", seed=2)
    as_pickles(world.root / "b")
    for name in ("training_args.bin", "optimizer.pt", "optimizer.bin", "scheduler.pt", "rng_state_0.pth", "scaler.pt"):
        save(world.root / "b" / name, {"x": Call(print, "no")})
    os.rename(world.root / "b" / "pytorch_model.bin", world.root / "b" / "anything.pt")
    assert world.age("b").made(LERP)


@pytest.mark.parametrize(
    ("names", "error", "told"),
    [
        (["one.bin", "two.bin"], BuildFailed, "holds more than one model"),
        (["pytorch_model-00001-of-00002.bin"], SourceNotFound, "there are 1 of 2"),
        (["training_args.bin"], SourceNotFound, "has no safetensors file"),
        (["adapter_model.bin"], BuildFailed, "is an adapter, not a model"),
        (["model.ckpt"], NotBuiltYet, "has weights in `model.ckpt` only"),
    ],
)
def test_a_folder_that_is_not_one_model_is_refused(world, names, error, told):
    world.model("a", seed=1)
    (world.root / "b").mkdir()
    for name in names:
        save(world.root / "b" / name, {"w": torch.ones(1)})
    with pytest.raises(error) as caught:
        world.merge(LERP).build()
    assert told in caught.value.render()


# --- shards and indexes -----------------------------------------------------------------------------------------------


@pytest.fixture
def sharded(world):
    """A model `b` in three old shards."""
    world.model("a", seed=1).model("b", seed=2, shards=3)
    as_pickles(world.root / "b")
    return world.age("b")


def indexed(world, change):
    """Changes the map of the index."""
    path = world.root / "b" / INDEX
    told = json.loads(path.read_text())
    told["weight_map"] = change(told["weight_map"])
    path.write_text(json.dumps(told))
    return world.age("b")


def test_shards_without_an_index_are_one_model(sharded):
    expected = sharded.made(LERP)
    (sharded.root / "b" / INDEX).unlink()
    made = sharded.age("b").made(LERP)
    assert {k: v[1].tobytes() for k, v in made.items()} == {k: v[1].tobytes() for k, v in expected.items()}


def test_an_index_is_held_to_its_shards(sharded):
    indexed(sharded, lambda m: {**m, "gone": "pytorch_model-00001-of-00003.bin"})
    text = sharded.refusal(LERP)
    assert "the index of `b` does not agree with its shards" in text
    assert "`gone` is not in `pytorch_model-00001-of-00003.bin`" in text


@pytest.mark.parametrize("name", ["../x.bin", "model.safetensors", "pytorch_model.bin/x.bin", "x.ckpt"])
def test_an_index_names_old_files_beside_it_alone(sharded, name):
    indexed(sharded, lambda m: {**m, "w": name})
    assert "is not an index to rely on" in sharded.refusal(LERP)


def test_a_shard_that_is_not_there_is_named(sharded):
    (sharded.root / "b" / "pytorch_model-00002-of-00003.bin").unlink()
    text = sharded.refusal(LERP, code=4)
    assert "lacks shards that its index names" in text
    assert "pytorch_model-00002-of-00003.bin" in text


def with_more(world, name, tensor):
    """Another tensor in the first shard, of which the index knows nothing."""
    path = world.root / "b" / "pytorch_model-00001-of-00003.bin"
    save(path, {**torch.load(path, weights_only=True), name: tensor})
    return world.age("b")


def test_a_tensor_that_the_index_leaves_out_is_refused_but_for_buffers_that_loading_computes(sharded):
    with_more(sharded, "model.layers.0.self_attn.rotary_emb.inv_freq", torch.ones(4))
    assert len(sharded.made(LERP)) == len(sharded.tensors("m"))
    with_more(sharded, "model.layers.0.more", torch.ones(4))
    shutil.rmtree(sharded.out)
    text = sharded.refusal(LERP)
    assert "`model.layers.0.more` of `pytorch_model-00001-of-00003.bin` is not in the index" in text
    assert "inv_freq" not in text


def test_a_tensor_in_two_old_shards_is_refused(sharded):
    (sharded.root / "b" / INDEX).unlink()
    with_more(sharded, "lm_head.weight", torch.ones(4))
    assert "holds a tensor twice" in sharded.refusal(LERP)


# --- errors -----------------------------------------------------------------------------------------------------------


def test_a_hostile_file_is_refused_at_its_line_with_exit_code_1(world, tmp_path):
    world.model("a", seed=1)
    (world.root / "b").mkdir()
    save(world.root / "b" / "pytorch_model.bin", {"w": Call(os.system, f"touch {tmp_path / 'marker'}")})
    world.merge(LERP)
    ran = world.run("build")
    assert ran.returncode == 1
    assert ran.stderr.startswith("error: `b/pytorch_model.bin` holds more than weights\n  --> Modelfile:4:")
    assert "asks for `posix.system`" in ran.stderr
    assert "Traceback" not in ran.stderr
    assert not (tmp_path / "marker").exists()


def test_a_damaged_old_file_is_refused_at_its_line(world):
    world.model("a", seed=1).model("b", seed=2)
    as_pickles(world.root / "b")
    path = world.root / "b" / old_name("model.safetensors")
    path.write_bytes(path.read_bytes()[:-5])
    text = world.refusal(LERP)
    assert text.startswith("error: `b/pytorch_model.bin` is not a file of weights to rely on\n  --> Modelfile:4:")


def test_a_file_that_is_edited_is_looked_into_again(world):
    world.model("a", seed=1).model("b", seed=2)
    as_pickles(world.root / "b")
    before = world.age("b").made(LERP)
    path = world.root / "b" / "pytorch_model.bin"
    save(path, {name: tensor + 1 for name, tensor in torch.load(path, weights_only=True).items()})
    after = world.age("b").made(LERP)
    assert not any(np.array_equal(before[name][1], after[name][1]) for name in before)


def test_inspect_shows_old_files_as_it_shows_safetensors(violet):
    pickled = in_place_of_safetensors(violet, "red", "style", legacy=True)
    save(pickled.root / "red" / "training_args.bin", {"x": Call(print, "no")})
    for name, file in (("red", "pytorch_model.bin"), ("style", "adapter_model.bin")):
        before, after = (json.loads(w.run("inspect", name, "--json").stdout) for w in (violet, pickled))
        assert {t.pop("file") for t in after["tensors"]} == {file}
        assert len({t.pop("file") for t in before["tensors"]}) == 1
        assert before == after
        assert json.loads(pickled.run("inspect", f"{name}/{file}", "--json").stdout)["tensors"]
    refused = pickled.run("inspect", "red/training_args.bin")
    assert refused.returncode == 1
    assert "holds more than weights" in refused.stderr


# --- buffers ----------------------------------------------------------------------------------------------------------

MASK = ("U8", np.tril(np.ones((1, 1, 8, 8), np.uint8)))
WIDER = ("BOOL", np.tril(np.ones((1, 1, 16, 16), np.uint8)))
BUFFERS = {
    "model.layers.{}.self_attn.rotary_emb.inv_freq": ("F32", np.arange(4, dtype=np.float32)),
    "model.layers.{}.attn.bias": MASK,
    "model.layers.{}.attention.bias": MASK,
    "model.layers.{}.crossattention.bias": MASK,
    "model.layers.{}.attn.masked_bias": ("F32", np.float32(-1e9).reshape(())),
    "embeddings.position_ids": ("I64", np.arange(8).reshape(1, 8)),
}


@pytest.mark.parametrize("name", BUFFERS)
@pytest.mark.parametrize("where", ["a", "b", "both"])
def test_buffers_that_loading_computes_are_the_donors_or_left_out(world, name, where):
    names = sorted({name.format(0), name.format(1)})
    for model, seed in (("a", 1), ("b", 2)):
        dtype, raw = BUFFERS[name]
        extra = {n: (dtype, raw + raw.dtype.type(seed)) for n in names}
        world.model(model, seed=seed, extra=extra if where in (model, "both") else {})
        as_pickles(world.root / model)
        world.age(model)
    made = world.made(LERP)
    for n in names:
        assert (n in made) == (where != "b")
        if where != "b":
            assert np.array_equal(made[n][1], BUFFERS[name][1] + BUFFERS[name][1].dtype.type(1))
    more = " and 1 more" if len(names) > 1 else ""
    told = {
        "b": f"m: buffers that loading computes anew, and that only `b` has, are left out: `{names[0]}`{more}",
    }.get(where, f"m: buffers that loading computes anew are those of `a`: `{names[0]}`{more}")
    assert told in world.plan().notes


def test_masks_of_other_sizes_and_dtypes_meet(world):
    """Two GPT-2s, of which one was made for longer texts and by a later transformers."""
    for model, seed, mask in (("a", 1, MASK), ("b", 2, WIDER)):
        world.model(model, "gpt2", seed=seed, extra={"transformer.h.0.attn.bias": mask})
    made = world.made(LERP)
    assert np.array_equal(made["transformer.h.0.attn.bias"][1], MASK[1])


@pytest.mark.parametrize("name", ["model.layers.0.attn.bias", "model.layers.0.self_attn.rotary_emb.scale"])
def test_tensors_that_only_look_like_buffers_are_weights(world, name):
    """A bias has one dimension."""
    world.model("a", seed=1).model("b", seed=2, extra={name: ("F32", np.ones(8, np.float32))})
    assert f"`{name}` is only in `b`" in world.refusal(LERP)


@pytest.mark.parametrize(
    ("kind", "name", "tensor"),
    [
        ("gpt2", "transformer.h.0.attn.bias", torch.ones(1, 1, 64, 64)),
        ("llama", "model.layers.0.self_attn.rotary_emb.inv_freq", torch.ones(4)),
        ("bert", "embeddings.position_ids", torch.arange(64).view(1, 64)),
    ],
)
def test_transformers_leaves_out_the_same_buffers(tmp_path, kind, name, tensor):
    """Of such a buffer in a file it says nothing; of any other tensor that it has no use for it tells."""
    from transformers import AutoModel, AutoModelForCausalLM

    pico.save_model(tmp_path / "m", kind, seed=1, layers=1)
    loader, stray = (AutoModel if kind == "bert" else AutoModelForCausalLM), "transformer.stray"
    tensors = {**torch_tensors(tmp_path / "m"), name: tensor, stray: torch.ones(1)}
    save_file(tensors, tmp_path / "m" / "model.safetensors", metadata={"format": "pt"})
    _, told = loader.from_pretrained(tmp_path / "m", output_loading_info=True)
    assert list(told["unexpected_keys"]) == [stray]
    assert [n for n, t in tensors.items() if is_recomputed(n, t.shape)] == [name]


def test_an_error_of_a_source_is_one_of_ours(world):
    """Whatever a pickle does to torch, the user reads of the file."""
    world.model("a", seed=1)
    (world.root / "b").mkdir()
    (world.root / "b" / "pytorch_model.bin").write_bytes(b"\x80\x02.")
    with pytest.raises(ModelbuildError, match="not a file of weights to rely on"):
        world.merge(LERP).build()
