"""A mixture of experts: what is copied and under which name, what is computed, and what transformers makes of it."""

import json
import sys
from functools import partial

import numpy as np
import pico
import pytest
from merging import MergeWorld, rounded, same, widened

from modelbuild.engine.run import Limits
from modelbuild.engine.stretch import LEAST_TILE
from modelbuild.kernels.noise import normal
from modelbuild.kernels.random import uniform
from modelbuild.methods.moe import random_key
from modelbuild.options import Options
from modelbuild.report.terminal import Listener
from modelbuild.report.values import show_values
from modelbuild.resolved import values_with

LAYERS = 2
MIXED = """
    [merge.m]
    method = "moe"
    base = "a"
    gate_mode = "random"
    models = [ { model = "b" }, { model = "c" }, { model = "a" } ]
"""
NAMES = {
    "llama": ("block_sparse_moe", {"gate_proj": "w1", "up_proj": "w3", "down_proj": "w2"}),
    "qwen3": ("mlp", {name: name for name in ("gate_proj", "up_proj", "down_proj")}),
}
NAMES["mistral"] = NAMES["llama"]
KINDS = tuple(NAMES)

every_kind = pytest.mark.parametrize("kind", KINDS)


@pytest.fixture
def world(tmp_path):
    """No sources yet; they are named as the folders that are put here."""
    root = tmp_path / "world"
    root.mkdir()
    return MergeWorld(root)


@pytest.fixture
def three(world):
    """Three Mistral models of the same shapes."""
    return dense(world, "mistral")


def dense(world, kind, **options):
    for seed, name in enumerate(("a", "b", "c"), start=1):
        world.model(name, kind, seed=seed, **options)
    return world.merge(text(MIXED))


def text(merge):
    from textwrap import dedent

    return dedent(merge)


def counts(result, name="m"):
    found = next(artifact for artifact in result.artifacts if artifact.name == name)
    return found.tensors.computed, found.tensors.copied, found.tensors.reused


def expert(kind, layer, number, part):
    """The name that a tensor of an expert has in the mixture."""
    block, parts = NAMES[kind]
    return f"model.layers.{layer}.{block}.experts.{number}.{parts[part]}.weight"


def router(kind, layer):
    return f"model.layers.{layer}.{NAMES[kind][0]}.gate.weight"


# --- tensors ----------------------------------------------------------------------------------------------------------


@every_kind
def test_experts_are_the_models_mlps_and_the_rest_is_the_base(world, kind):
    result = dense(world, kind).build()
    made, base = world.tensors("m"), world.source("a")
    wanted = {name: tensor for name, tensor in base.items() if ".mlp." not in name}
    for layer in range(LAYERS):
        for number, model in enumerate(("b", "c", "a")):
            for part in ("gate_proj", "up_proj", "down_proj"):
                mlp = world.source(model)[f"model.layers.{layer}.mlp.{part}.weight"]
                wanted[expert(kind, layer, number, part)] = mlp
    routers = {router(kind, layer) for layer in range(LAYERS)}
    assert set(made) == set(wanted) | routers
    assert [name for name, tensor in wanted.items() if not same(made[name], tensor)] == []
    assert counts(result) == (LAYERS, len(wanted), 0)


@every_kind
def test_transformers_loads_every_tensor_and_runs(world, kind):
    oracles = pytest.importorskip("oracles")
    dense(world, kind).build()
    model = oracles.load(world.out / "m")
    assert type(model).__name__ == {"qwen3": "Qwen3MoeForCausalLM"}.get(kind, "MixtralForCausalLM")
    assert np.isfinite(oracles.logits(model)).all()


BARE = {
    "llama": ("rope_parameters", "rms_norm_eps", "num_key_value_heads", "tie_word_embeddings", "hidden_act"),
    "mistral": ("rope_parameters", "rms_norm_eps", "hidden_act"),
    "qwen3": ("rope_parameters", "rms_norm_eps", "hidden_act", "tie_word_embeddings"),
}


@pytest.mark.parametrize("bare", [False, True])
@every_kind
def test_where_all_experts_are_the_base_its_logits_are_the_base_s(world, kind, bare):
    """Whatever the router says, and whatever the config leaves to the class of the dense model."""
    oracles = pytest.importorskip("oracles")
    left_out = dict.fromkeys(BARE[kind], ...) if bare else {}
    for name in ("a", "b", "c"):
        world.model(name, kind, seed=7, dtype="float32", config=left_out)
    result = world.merge(text(MIXED)).build()
    dense_logits = oracles.logits(oracles.load(world.root / "a"))
    made = oracles.logits(oracles.load(world.out / "m"))
    assert np.abs(made - dense_logits).max() < 1e-5 * np.abs(dense_logits).max()
    assert any("all experts are the same" in note for note in result.notes)


def test_older_ways_to_say_how_positions_turn_are_kept(world):
    oracles = pytest.importorskip("oracles")
    older = {"rope_parameters": ..., "rope_theta": 500.0, "rope_scaling": {"type": "linear", "factor": 4.0}}
    for name in ("a", "b", "c"):
        world.model(name, "llama", seed=7, dtype="float32", config=older)
    world.merge(text(MIXED)).build()
    dense_logits = oracles.logits(oracles.load(world.root / "a"))
    assert np.abs(oracles.logits(oracles.load(world.out / "m")) - dense_logits).max() < 1e-5


def test_mistral_keeps_its_window_and_llama_has_none(world):
    dense(world, "mistral", config={"sliding_window": 3}).build()
    assert world.config("m")["sliding_window"] == 3
    dense(world, "llama", config={"sliding_window": 3}).build()
    assert world.config("m")["sliding_window"] is None


def test_the_config_is_that_of_a_mixture(three):
    three.build()
    found, base = three.config("m"), three.config("a")
    assert found["architectures"] == ["MixtralForCausalLM"]
    assert (found["model_type"], found["num_local_experts"], found["num_experts_per_tok"]) == ("mixtral", 3, 2)
    same_keys = set(base) - {"architectures", "model_type"}
    assert {key: found[key] for key in same_keys} == {key: base[key] for key in same_keys}


def test_the_config_of_a_qwen3_mixture(world):
    dense(world, "qwen3").edit('"random"', '"random"\nexperts_per_token = 1').build()
    found = world.config("m")
    assert found["architectures"] == ["Qwen3MoeForCausalLM"]
    wanted = {
        "model_type": "qwen3_moe", "num_experts": 3, "num_experts_per_tok": 1, "norm_topk_prob": True,
        "decoder_sparse_step": 1, "mlp_only_layers": [], "moe_intermediate_size": 64, "head_dim": 8,
    }  # fmt: skip
    assert {key: found[key] for key in wanted} == wanted


def test_overrides_of_the_config_have_the_last_word(three):
    three.edit('base = "a"', 'base = "a"\nconfig = { router_aux_loss_coef = 0.5, num_experts_per_tok = 1 }').build()
    assert three.config("m")["router_aux_loss_coef"] == 0.5
    assert three.config("m")["num_experts_per_tok"] == 1


def test_code_of_the_dense_model_is_not_named(world):
    dense(world, "llama", config={"auto_map": {"AutoModel": "x.Y"}, "mlp_bias": False, "pretraining_tp": 1}).build()
    assert {"auto_map", "mlp_bias", "pretraining_tp"} & set(world.config("m")) == set()


def test_a_dtype_is_that_of_every_tensor(three):
    three.edit('base = "a"', 'base = "a"\ndtype = "float16"').build()
    assert {dtype for dtype, _ in three.tensors("m").values()} == {"F16"}
    assert three.config("m")["dtype"] == "float16"


def test_an_expert_of_another_dtype_is_cast_to_the_base_s(world):
    dense(world, "llama").model("b", "llama", seed=2, dtype="float32").build()
    given = world.source("b")["model.layers.1.mlp.up_proj.weight"]
    assert same(world.tensors("m")[expert("llama", 1, 0, "up_proj")], rounded(widened(given)))


def test_buffers_that_loading_computes_anew_are_left_out(world):
    buffer = {"model.layers.0.self_attn.rotary_emb.inv_freq": ("F32", np.ones(4, np.float32))}
    dense(world, "llama", extra=buffer).build()
    assert not [name for name in world.tensors("m") if "inv_freq" in name]


def test_tied_embeddings_stay_tied(world):
    oracles = pytest.importorskip("oracles")
    dense(world, "llama", config={"tie_word_embeddings": True}, drop=("lm_head.weight",)).build()
    assert "lm_head.weight" not in world.tensors("m")
    assert oracles.load(world.out / "m").config.tie_word_embeddings


# --- noise and scales -------------------------------------------------------------------------------------------------


def test_noise_is_normal_by_seed_tensor_and_name(three):
    three.edit('{ model = "b" }', '{ model = "b", noise_scale = 0.25 }').edit('base = "a"', 'base = "a"\nseed = 5')
    result = three.build()
    made = three.tensors("m")
    for layer in range(LAYERS):
        for part in ("gate_proj", "up_proj", "down_proj"):
            name = expert("mistral", layer, 0, part)
            given = three.source("b")[f"model.layers.{layer}.mlp.{part}.weight"]
            count = given[1].size
            noise = normal(int(random_key(5, name, "b"), 16), 0, count).reshape(given[1].shape)
            assert same(made[name], rounded(widened(given) + np.float32(0.25) * noise)), name
    assert counts(result)[0] == LAYERS * (1 + 3)


def test_residual_scale_is_of_the_output_alone(three):
    three.edit('{ model = "c" }', '{ model = "c", residual_scale = 0.5 }')
    assert counts(three.build())[0] == LAYERS * (1 + 1)
    for part, factor in (("gate_proj", 1), ("up_proj", 1), ("down_proj", 0.5)):
        given = three.source("c")[f"model.layers.0.mlp.{part}.weight"]
        made = three.tensors("m")[expert("mistral", 0, 1, part)]
        assert same(made, rounded(widened(given) * np.float32(factor)))


def test_scales_may_run_over_the_layers(three):
    three.edit('{ model = "c" }', '{ model = "c", residual_scale = [1.0, 0.25], noise_scale = [0.0, 0.1] }')
    assert counts(three.build())[0] == LAYERS + 3


# --- the router -------------------------------------------------------------------------------------------------------


def test_a_random_router_is_normal_and_a_uniform_one_as_a_linear_layer_starts(three):
    three.build()
    key = int(random_key(0, router("mistral", 1), ""), 16)
    wanted = normal(key, 0, 3 * 32).reshape(3, 32)
    assert same(three.tensors("m")[router("mistral", 1)], rounded(wanted))
    three.edit('"random"', '"uniform_random"').build()
    middles = 2 * uniform(key, 0, 3 * 32).astype(np.float64) - 1 + 2.0**-24
    wanted = middles.astype(np.float32) * np.float32(np.sqrt(1 / 32))
    assert same(three.tensors("m")[router("mistral", 1)], rounded(wanted.reshape(3, 32)))


def test_the_routers_of_layers_are_drawn_apart(three):
    three.build()
    one, two = (three.tensors("m")[router("mistral", layer)] for layer in range(2))
    assert not same(one, two)


# --- what is built again ----------------------------------------------------------------------------------------------


def test_another_seed_draws_routers_and_noise_again_and_nothing_else(three):
    three.edit('{ model = "b" }', '{ model = "b", noise_scale = 0.25 }').build()
    again = three.edit('base = "a"', 'base = "a"\nseed = 5').build()
    assert counts(again)[0] == LAYERS * (1 + 3)
    assert "seed 0 → 5" in str(three.why("m").causes)


def test_another_noise_changes_one_expert(three):
    three.edit('{ model = "b" }', '{ model = "b", noise_scale = 0.25 }').build()
    again = three.edit("0.25", "0.5").build()
    assert counts(again)[0] == LAYERS * 3
    assert again.artifacts[0].reasons == (f"noise_scale of `b` 0.25 → 0.5 ({LAYERS * 3} tensors)",)


def test_a_model_that_changes_changes_its_expert(three):
    three.build()
    three.model("c", "mistral", seed=9)
    again = three.build()
    # Copied tensors of another file have other keys; the routers are what they were.
    assert counts(again)[0] == 0
    assert same(
        three.tensors("m")[expert("mistral", 0, 1, "up_proj")], three.source("c")["model.layers.0.mlp.up_proj.weight"]
    )


def test_a_further_expert_changes_no_tensor_of_the_others(three):
    three.build()
    before = three.tensors("m")
    three.model("d", "mistral", seed=4)
    three.path.write_text(
        '[base.d]\nsource = "d"\n' + three.text.replace('{ model = "a" }', '{ model = "a" }, { model = "d" }')
    )
    assert counts(three.build())[0] == LAYERS
    after = three.tensors("m")
    for name, tensor in before.items():
        rows = after[name][0], after[name][1][: len(tensor[1])]
        assert same(rows, tensor), name


NOISY = MIXED.replace('{ model = "b" }', '{ model = "b", noise_scale = 0.25, residual_scale = 0.5 }')


def test_the_same_bytes_for_any_threads_memory_tile_and_hash_seed(three, monkeypatch):
    three.merge(text(NOISY))
    wanted = three.from_nothing(jobs=1).bytes("m")
    assert three.from_nothing(jobs=4).bytes("m") == wanted
    assert three.from_nothing(jobs=2, memory="1MB").bytes("m") == wanted
    with monkeypatch.context() as patch:
        patch.setattr(sys.modules["modelbuild.build"], "Limits", partial(Limits, tile=LEAST_TILE))
        assert three.from_nothing(jobs=3).bytes("m") == wanted
    copy = three.copy()
    ran = copy.run("build", PYTHONHASHSEED="7")
    assert ran.returncode == 0, ran.stderr
    assert copy.bytes("m") == wanted


def test_a_build_without_the_cache_finds_the_same(three):
    three.merge(text(NOISY)).build()
    again = three.build(no_cache=True)
    assert counts(again)[0] == LAYERS * 4


def test_models_that_are_merged_and_adapted_first_are_experts_too(world):
    dense(world, "llama").lora("style", "b", seed=3, targets=("q_proj", "down_proj"))
    blend = """
        [merge.blend]
        method = "linear"
        models = [ { model = "b", weight = 0.5 }, { model = "c", weight = 0.5 } ]
        [merge.styled]
        method = "lora"
        base = "b"
        adapters = [ { adapter = "style" } ]
    """
    mixed = MIXED.replace('{ model = "b" }', '{ model = "blend" }').replace('{ model = "c" }', '{ model = "styled" }')
    world.merge(text(blend) + text(mixed))
    world.build("blend")
    world.build("styled")
    result = world.build("m")
    made = world.tensors("m")
    for number, model in enumerate(("blend", "styled")):
        for part in ("gate_proj", "down_proj"):
            mlp = world.tensors(model)[f"model.layers.1.mlp.{part}.weight"]
            assert same(made[expert("llama", 1, number, part)], mlp)
    # The adapter's attention is the expert's own: it is no part of the mixture.
    assert counts(result, "m")[0] == LAYERS
    apart = world.copy()
    apart.build("m")
    assert {n: t[1].tobytes() for n, t in apart.tensors("m").items()} == {n: t[1].tobytes() for n, t in made.items()}


def test_a_vocabulary_may_be_chosen(world):
    dense(world, "llama").model("b", "llama", seed=2, vocab=70)
    world.edit('base = "a"', 'base = "a"\ntokenizer = "union"').build()
    assert world.config("m")["vocab_size"] == 70
    made = world.tensors("m")["model.embed_tokens.weight"][1]
    assert (made[:64] == world.source("a")["model.embed_tokens.weight"][1]).all()
    assert (made[64:] == world.source("b")["model.embed_tokens.weight"][1][64:]).all()


def test_experts_of_other_vocabularies_are_noted(world):
    dense(world, "llama").model("b", "llama", seed=2, vocab=70)
    assert "m: `b` has 70 tokens, `a` has 64, which are those of the mixture" in world.build().notes


# --- what is told -----------------------------------------------------------------------------------------------------


def test_the_plan_counts_what_the_build_does(three):
    plan = three.plan()["m"].tensors
    assert (plan.computed, plan.copied, plan.reused) == counts(three.build())


def test_the_values_are_told(three):
    three.merge(text(NOISY))
    shown = show_values(values_with(Options(modelfile=str(three.path)), "m", Listener()))
    assert shown.splitlines()[0] == "m: moe, 35 tensors, 2 layers"
    assert "  gate_mode: random" in shown
    assert "  noise_scale of `b`:" in shown
    assert "  residual_scale of `b`:" in shown


def test_a_mixture_of_a_mixture_of_layers_has_the_layers_that_were_chosen(world):
    oracles = pytest.importorskip("oracles")
    dense(world, "qwen3")
    stack = """
        [merge.tall]
        method = "passthrough"
        slices = [
          { layers = [0, 2], models = [ { model = "a" } ] },
          { layers = [1, 2], models = [ { model = "b" } ] },
        ]
    """
    world.merge(
        text(stack) + text(MIXED).replace('"a"', '"tall"').replace('"b"', '"high"').replace(', { model = "c" }', "")
    )
    world.path.write_text(world.text + text(stack).replace("tall", "high").replace('model = "b"', 'model = "c"'))
    world.build("m")
    assert world.config("m")["num_hidden_layers"] == 3
    oracles.load(world.out / "m")


def test_the_card_and_the_provenance_tell_the_recipe(three):
    three.build()
    about = json.loads((three.out / "m" / "modelbuild.json").read_text())
    assert about["methods"] == {"moe": 1}
    assert about["operations"] == {"drawn": 1}
    assert about["recipe"][-1]["gate_mode"] == "random"
    assert "- m: moe of a, b, c" in (three.out / "m" / "README.md").read_text()


def test_a_build_with_nothing_to_do_is_fresh(three):
    three.build()
    assert three.build().artifacts[0].status == "fresh"
    assert pico.read_tensors(three.out / "m")
