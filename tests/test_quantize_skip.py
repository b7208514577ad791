"""`skip`: what is left alone besides what the format leaves alone, in the file and in what config.json says of it."""

import json

import numpy as np
import pico
import pytest
from quantizing import Quantizing, logits, packed_names, saved, table


@pytest.fixture
def world(tmp_path):
    return Quantizing(tmp_path)


def skipped(world, name="q"):
    return world.config(name)["quantization_config"]["llm_int8_skip_modules"]


def check(world, kind="llama", mode="nf4"):
    """The output must be what transformers saves with the same list, and answer alike."""
    theirs = saved(world.root / "base", world.root / "theirs", mode, skip=skipped(world))
    assert world.weights("q") == (theirs / "model.safetensors").read_bytes()
    config = json.loads((theirs / "config.json").read_text())
    assert config["quantization_config"] == world.config("q")["quantization_config"]
    if kind != "llava":
        assert np.array_equal(logits(world.out / "q", kind), logits(theirs, kind))


def test_what_is_left_alone_in_any_case_changes_nothing(world):
    world.small("base").write(table("q", "base", skip=["lm_head", "embed_tokens"]), table("p", "base")).build("q", "p")
    assert world.weights("q") == world.weights("p")
    assert skipped(world) is skipped(world, "p") is None


@pytest.mark.parametrize("mode", ["nf4", "nf4-dq", "int8"])
def test_a_kind_of_layer_stays_as_it_is_and_transformers_knows(world, mode):
    world.small("base").write(table("q", "base", mode, skip=["mlp.down_proj", "lm_head"])).build()
    assert skipped(world) == ["lm_head", "down_proj"]
    packed = packed_names(world.out / "q")
    assert len(packed) == 12
    assert not [name for name in packed if "down_proj" in name]
    check(world, mode=mode)


def test_single_layers_stay_as_they_are(world):
    world.small("base", layers=3).write(table("q", "base", skip="layers.1.*_proj")).build()
    assert skipped(world)[1] == "layers.1.self_attn.q_proj" or "1.self_attn.q_proj" in skipped(world)
    assert {name.split(".")[2] for name in packed_names(world.out / "q")} == {"0", "2"}
    check(world)


def test_a_tied_head_stays_tied(world):
    world.small("base", "qwen2").write(table("q", "base", skip="o_proj")).build()
    assert skipped(world) == ["lm_head", "o_proj"]
    check(world, "qwen2")


def test_one_of_two_stacks_with_layers_of_the_same_names_stays(world):
    world.small("base", "llava").write(table("q", "base", skip="vision_tower")).build()
    assert not [name for name in packed_names(world.out / "q") if name.startswith("vision_tower")]
    assert len([name for name in packed_names(world.out / "q") if "language_model" in name]) == 14
    check(world, "llava")


def test_the_language_model_of_two_stacks_stays(world):
    world.small("base", "llava").write(table("q", "base", skip="language_model")).build()
    assert all(name.startswith(("vision_tower", "multi_modal")) for name in packed_names(world.out / "q"))
    check(world, "llava")


def test_a_model_whose_names_have_no_prefix_is_named_by_ends_that_fit(world):
    world.small("base", "gpt2-bare").write(table("q", "base", skip="mlp")).build()
    assert skipped(world) == ["lm_head", "mlp.c_fc", "mlp.c_proj"] or skipped(world)[1:] == ["c_fc", "mlp.c_proj"]
    theirs = saved(world.root / "base", world.root / "theirs", skip=skipped(world))
    assert len(packed_names(theirs)) == len(packed_names(world.out / "q")) == 4


def test_what_may_be_a_layer_or_an_embedding_is_left_alone_and_named(world):
    extra = {"time_embed_proj.weight": ("BF16", pico.narrow("BF16", np.ones((64, 64), np.float32)))}
    world.small("base", extra=extra).write(table("q", "base")).build()
    assert skipped(world) == ["lm_head", "time_embed_proj"]
    assert world.plan().notes == ("q: `time_embed_proj`: no telling if it is a linear layer; left alone",)
    assert "time_embed_proj.weight" not in packed_names(world.out / "q")


def test_a_pattern_that_is_in_no_name_is_told(world):
    world.small("base").write(table("q", "base", skip=["down_porj"]))
    assert "q: `down_porj` in `skip` is in no tensor's name" in world.plan().notes


# --- again ------------------------------------------------------------------------------------------------------------


def counts(result, name="q"):
    found = result[name].tensors
    return found.computed, found.copied, found.reused


@pytest.mark.parametrize("mode", ["nf4", "nf4-dq", "int8"])
def test_retyping_skip_computes_only_what_was_skipped(world, mode):
    world.small("base").write(table("q", "base", mode, skip="down_proj"))
    assert counts(world.build()) == (12, 9, 0)
    world.edit('skip = "down_proj"', 'skip = "up_proj"')
    again = world.build()
    # The two that were skipped are packed now; what was copied before is in the cache; two more are the base's.
    assert counts(again) == (2, 2, 17)
    assert again["q"].reasons == ("skip true → false (2 tensors)",)
    assert world.bytes("q") == world.from_nothing().bytes("q")
    world.edit('skip = "up_proj"', 'skip = "down_proj"')
    assert counts(world.build()) == (0, 0, 21)


def test_skipping_more_computes_nothing_and_loads_no_library(world):
    world.small("base").write(table("q", "base", "nf4-dq", skip="lm_head"))
    world.run("build")
    world.edit('skip = "lm_head"', 'skip = "up_proj"')
    assert {name.partition(".")[0] for name in world.imports("build")}.isdisjoint({"torch", "bitsandbytes"})
    assert len(packed_names(world.out / "q")) == 12
    check(world, mode="nf4-dq")
