"""Adapters that cannot be folded in: each is refused in the plan, by name, with the facts and where it stands."""

import json
import re

import numpy as np
import pico
import pytest
from hypothesis import given
from hypothesis import strategies as st
from merging import MergeWorld, different, rounded
from oracles import adapt

from modelbuild.adapters.lora import AdapterFault, _pattern_fits, locate

pytest.importorskip("peft")

PREFIX = "base_model.model."
LORA = '[merge.m]\nmethod = "lora"\nbase = "base"\nadapters = [{ adapter = "a", weight = %s }]\n'


@pytest.fixture
def world(tmp_path):
    return MergeWorld(tmp_path)


def rewrite(world, tensors=None, **config):
    """Puts other tensors into the adapter `a`, or other values into its config."""
    if tensors is not None:
        pico.write_safetensors(world.root / "a" / "adapter_model.safetensors", tensors)
    path = world.root / "a" / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | config))
    world.age("a")


def plain(world):
    """A model and an adapter of rank 8 on its queries and values."""
    return world.model("base", seed=1).lora("a", "base", seed=2)


def test_dora_is_refused_by_name(world):
    world.model("base", seed=1)
    adapt(world.root / "a", world.root / "base", r=4, target_modules=["q_proj"], use_dora=True)
    assert world.refusal(LORA % 1) == (
        "error: adapter `a` does not fit `base`: it uses DoRA, which is not built yet\n"
        "  --> Modelfile:8:13\n"
        "   |  `use_dora` is True"
    )


@pytest.mark.parametrize("initial", ["pissa", "pissa_niter_4", "olora"])
def test_an_initialisation_that_changes_the_base_is_refused(world, initial):
    world.model("base", seed=1)
    adapt(world.root / "a", world.root / "base", r=4, target_modules=["q_proj"], init_lora_weights=initial)
    assert world.refusal(LORA % 1) == (
        f"error: adapter `a` does not fit `base`: it was initialised with {initial}, which changes the base\n"
        "  --> Modelfile:8:13\n"
        f'   |  `init_lora_weights` is "{initial}"\n'
        "   |  added to the unchanged base it would give a wrong model\n\n"
        "hint: convert it with PEFT (`path_initial_model_for_weight_conversion`) to a plain LoRA first"
    )


@pytest.mark.parametrize("initial", ["gaussian", "orthogonal", True, False])
def test_an_initialisation_that_leaves_the_base_alone_is_none_of_our_business(world, initial):
    plain(world)
    expected = world.made(LORA % 1)
    rewrite(world, init_lora_weights=initial)
    assert different(world.made(LORA % 1), expected) == []


def test_adapters_of_parameters_are_refused(world):
    world.model("base", "mixtral", seed=1)
    adapt(world.root / "a", world.root / "base", "mixtral", r=4, target_modules=["q_proj"],
          target_parameters=["mlp.experts.gate_up_proj"])  # fmt: skip
    text = world.refusal(LORA % 1)
    assert "it uses LoRA on parameters (`target_parameters`), which is not built yet" in text
    assert "`target_parameters` is ['mlp.experts.gate_up_proj']" in text


def test_trained_token_rows_are_refused(world):
    world.model("base", seed=1)
    adapt(world.root / "a", world.root / "base", r=4, target_modules=["q_proj"], trainable_token_indices=[1, 2])
    assert "it uses `trainable_token_indices`, which is not built yet" in world.refusal(LORA % 1)


def test_another_type_of_adapter_is_refused_by_its_name(world):
    import peft

    world.model("base", seed=1)
    adapt(world.root / "a", world.root / "base", cls=peft.IA3Config, target_modules=["q_proj"],
          feedforward_modules=[])  # fmt: skip
    assert world.refusal(LORA % 1) == (
        "error: adapter `a` does not fit `base`: it is no LoRA\n"
        "  --> Modelfile:8:13\n"
        "   |  `peft_type` is 'IA3'\n\n"
        "hint: other types are not built yet"
    )


@pytest.mark.parametrize("option", ["kasa_config", "monteclora_config", "arrow_config", "use_bdlora",
                                    "alora_invocation_tokens", "layer_replication", "use_qalora"])  # fmt: skip
def test_options_that_change_what_the_tensors_mean_are_refused(world, option):
    plain(world)
    rewrite(world, **{option: [1]})
    assert f"`{option}` is [1]" in world.refusal(LORA % 1)


def test_a_key_of_an_unknown_kind_is_named(world):
    plain(world)
    key = PREFIX + "model.layers.0.self_attn.q_proj.lora_diag"
    rewrite(world, {**world.source("a"), key: ("F32", np.ones(8, np.float32))})
    assert f"its key `{key}` is of a kind that is not known" in world.refusal(LORA % 1)


@pytest.mark.parametrize("leaf", ["lora_B", "lora_B.junk", "lora_B.default.weight", "lora_embedding_A.weight"])
def test_a_factor_under_a_name_that_peft_never_writes_is_refused(world, leaf):
    plain(world)
    key = PREFIX + f"model.layers.0.self_attn.q_proj.{leaf}"
    rewrite(world, {**world.source("a"), key: ("F32", np.ones((32, 8), np.float32))})
    assert f"its key `{key}` is of a kind that is not known" in world.refusal(LORA % 1)


def test_two_keys_for_one_factor_are_refused_and_both_named(world):
    plain(world)
    key = "model.layers.0.self_attn.q_proj.lora_B.weight"
    rewrite(world, {**world.source("a"), key: ("F32", np.ones((32, 8), np.float32))})
    assert world.refusal(LORA % 1) == (
        "error: adapter `a` does not fit `base`: two of its keys are the same factor\n"
        "  --> Modelfile:8:13\n"
        f"   |  `{PREFIX}{key}`\n"
        f"   |  `{key}`"
    )


@pytest.mark.parametrize(("weight", "alpha"), [(3e38, 16), (1, 1e300), (-2, 1.5e39), (1e10, 1e308)])
def test_a_weight_and_a_scaling_that_multiply_beyond_float32_are_refused(world, weight, alpha):
    plain(world)
    rewrite(world, lora_alpha=alpha)
    text = world.refusal(LORA % weight)
    assert "its weight and its scaling multiply to a number that is out of range" in text
    assert f"weight {weight:g} times alpha/r {alpha / 8:g} is more than float32 holds" in text


def test_keys_that_fit_nothing_are_named(world):
    plain(world)
    strangers = {PREFIX + f"model.layers.{n}.self_attn.q_proj.lora_{part}.weight":
                 world.source("a")[PREFIX + f"model.layers.0.self_attn.q_proj.lora_{part}.weight"]
                 for n in (2, 3, 4) for part in "AB"}  # fmt: skip
    rewrite(world, {**world.source("a"), **strangers})
    shown = list(strangers)[:5]
    assert world.refusal(LORA % 1) == (
        "error: adapter `a` does not fit `base`: 6 of its 14 keys fit no tensor of `base`\n"
        "  --> Modelfile:8:13\n" + "".join(f"   |  `{key}`\n" for key in shown) + "   |  and 1 more"
    )


def test_an_adapter_for_another_architecture_is_refused_as_that(world):
    world.model("base", seed=1).model("other", "gpt2", seed=1).lora("a", "other", seed=2, targets=("c_attn",))
    text = world.refusal(LORA % 1)
    assert "4 of its 4 keys fit no tensor of `base`" in text
    assert text.endswith("hint: the adapter was trained on a model with other tensor names")


def test_a_bias_that_the_base_does_not_have_is_named(world):
    plain(world)
    key = PREFIX + "model.layers.0.self_attn.q_proj.lora_B.bias"
    rewrite(world, {**world.source("a"), key: ("F32", np.ones(32, np.float32))})
    text = world.refusal(LORA % 1)
    assert "1 of its 9 keys fit no tensor of `base`" in text
    assert f"`{key}`" in text


def test_half_a_pair_is_refused(world):
    plain(world)
    key = PREFIX + "model.layers.1.self_attn.v_proj.lora_B.weight"
    rewrite(world, {name: tensor for name, tensor in world.source("a").items() if name != key})
    text = world.refusal(LORA % 1)
    assert "module `model.layers.1.self_attn.v_proj` has no lora_B" in text
    assert "`base_model.model.model.layers.1.self_attn.v_proj.lora_A.weight` is there" in text


def test_a_rank_that_contradicts_the_config_is_refused(world):
    plain(world)
    rewrite(world, r=16)
    assert world.refusal(LORA % 1) == (
        "error: adapter `a` does not fit `base`: the rank of module `model.layers.0.self_attn.q_proj` "
        "is not what the config says\n"
        "  --> Modelfile:8:13\n"
        "   |  `base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight` has rank 8\n"
        "   |  adapter_config.json says 16"
    )


def test_factors_that_do_not_multiply_are_refused(world):
    plain(world)
    key = PREFIX + "model.layers.0.self_attn.q_proj.lora_B.weight"
    rewrite(world, {**world.source("a"), key: ("F32", np.ones((32, 7), np.float32))})
    assert "the factors of module `model.layers.0.self_attn.q_proj` do not multiply" in world.refusal(LORA % 1)


def test_a_base_of_another_width_is_refused_with_all_three_shapes(world):
    world.model("base", seed=1).model("wide", seed=1, hidden=64).lora("a", "wide", seed=2, targets=("q_proj",))
    text = world.refusal(LORA % 1)
    assert text.startswith(
        "error: adapter `a` does not fit `base`: its factors do not fit `model.layers.0.self_attn.q_proj.weight`\n"
        "  --> Modelfile:10:13\n"
        "   |  `model.layers.0.self_attn.q_proj.weight` is [32, 32]\n"
        "   |  `base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight` is [8, 64]\n"
        "   |  `base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight` is [64, 8]\n\n"
        "hint: the adapter was trained on another model"
    )


def test_of_two_adapters_the_one_that_does_not_fit_is_named(world):
    plain(world).model("wide", seed=1, hidden=64).lora("b", "wide", seed=2, targets=("q_proj",))
    text = world.refusal('[merge.m]\nmethod = "lora"\nbase = "base"\nadapters = [{ adapter = "a" }, { adapter = "b" }]')
    assert "adapter `b` does not fit `base`" in text
    assert "adapter `a` does not fit" not in text


@pytest.mark.parametrize("pattern", ["(a+)+b", "(x|y)*", "(?=a)a", r"(.)\1", ".*" * 20 + "x", "a?" * 30 + "a" * 30,
                                     "(a|a)" * 20 + "b", "[x]" * 100, ".*.*.*x", ".*a+", "a{1,9}.*",
                                     "(.|.|.|.|.|.|.|.)(.|.|.|.|.|.|.|.)(.|.|.|.|.|.|.|.)x"])  # fmt: skip
def test_a_pattern_that_could_take_forever_is_refused_at_once(world, pattern):
    plain(world)
    rewrite(world, rank_pattern={pattern: 4})
    assert "a pattern in adapter_config.json is too intricate" in world.refusal(LORA % 1)


@pytest.mark.parametrize("pattern", [".*", r"layers\.\d+\.self_attn\.q_proj", r"layers\.(0|1|2|3)\..*", "[qkv]_proj"])
def test_a_pattern_with_one_repetition_is_held_against_the_name(pattern):
    assert _pattern_fits(pattern, "model.layers.3.self_attn.q_proj")
    assert _pattern_fits(pattern, "lm_head") is (pattern == ".*")


def test_no_pattern_is_held_against_a_name_of_absurd_length():
    assert not _pattern_fits("q_proj", "a." * 5000 + "b")
    with pytest.raises(AdapterFault):
        _pattern_fits(".*x", "a." * 5000 + "b")


@given(st.text("ab._", max_size=6), st.text("ab.-", max_size=10))
def test_plain_patterns_fit_as_peft_has_them_fit(pattern, module):
    assert _pattern_fits(pattern, module) is (re.match(rf"(.*\.)?({pattern})$", module) is not None)


def test_a_pattern_that_is_no_regular_expression_is_refused(world):
    plain(world)
    rewrite(world, alpha_pattern={"q_proj[": 4})
    assert "a pattern in adapter_config.json is not valid" in world.refusal(LORA % 1)


@pytest.mark.parametrize(("alpha", "shown"), [("1e999", "inf"), ("NaN", "nan"), ('"16"', "'16'"), ("true", "True")])
def test_an_alpha_that_is_no_finite_number_is_refused(world, alpha, shown):
    plain(world)
    path = world.root / "a" / "adapter_config.json"
    path.write_text(path.read_text().replace('"lora_alpha": 16', f'"lora_alpha": {alpha}'))
    world.age("a")
    assert world.refusal(LORA % 1) == (
        "error: adapter `a` does not fit `base`: `lora_alpha` of module `model.layers.0.self_attn.q_proj` "
        "is no finite number\n"
        "  --> Modelfile:8:13\n"
        f"   |  it is {shown}"
    )


def test_a_missing_alpha_is_refused(world):
    plain(world)
    rewrite(world, lora_alpha=None)
    assert "adapter_config.json has no `lora_alpha`" in world.refusal(LORA % 1)


def test_factors_of_whole_numbers_are_refused(world):
    plain(world)
    key = PREFIX + "model.layers.0.self_attn.q_proj.lora_B.weight"
    rewrite(world, {**world.source("a"), key: ("I32", np.ones((32, 8), np.int32))})
    text = world.refusal(LORA % 1)
    assert f"its key `{key}` is of a dtype that is not computed with" in text
    assert "its dtype is I32" in text


def test_a_replacement_of_whole_numbers_is_refused(world):
    world.model("base", seed=1).lora("a", "base", seed=2, modules_to_save=("lm_head",))
    key = PREFIX + "lm_head.weight"
    rewrite(world, {**world.source("a"), key: ("I64", np.ones((64, 32), np.int64))})
    assert "it changes `lm_head.weight` in a dtype that is not computed with" in world.refusal(LORA % 1)


def test_two_keys_for_one_tensor_are_refused(world):
    world.model("base", seed=1).lora("a", "base", seed=2, modules_to_save=("lm_head",))
    saved = world.source("a")[PREFIX + "lm_head.weight"]
    rewrite(world, {**world.source("a"), PREFIX + "lm_head.modules_to_save.weight": saved})
    assert "two of its keys replace the same tensor" in world.refusal(LORA % 1)


def test_a_replacement_of_another_shape_must_be_alone_and_whole(world):
    world.model("base", seed=1).lora("a", "base", seed=2, modules_to_save=("norm",))
    key = PREFIX + "model.norm.weight"
    rewrite(world, {**world.source("a"), key: rounded(np.ones(33))})
    text = world.refusal(LORA % 0.5)
    assert "a replacement of another shape can only be taken whole, alone and at weight 1" in text
    assert "`model.norm.weight` is [32]" in text


def test_points_past_the_layers_are_refused(world):
    plain(world)
    assert world.refusal(LORA % "{ points = [[0, 1.0], [2, 0.0]] }") == (
        "error: points reach past the layers of `base`\n"
        "  --> Modelfile:8:30\n"
        "   |  the last point is at layer 2\n"
        "   |  `base` has 2 layers, from 0"
    )


def test_a_vocabulary_that_grows_at_one_end_only_is_refused(world):
    world.model("base", seed=1).lora("a", "base", seed=2, modules_to_save=("lm_head",))
    grown = world.source("a")
    grown[PREFIX + "lm_head.weight"] = rounded(np.zeros((66, 32)))
    rewrite(world, grown)
    assert world.refusal(LORA % 1) == (
        "error: the adapters of merge `m` leave embedding and head with different vocabularies\n"
        "  --> Modelfile:8:1\n"
        "   |  `model.embed_tokens.weight` has 64 rows\n"
        "   |  `lm_head.weight` has 66 rows\n\n"
        "hint: save the adapter with both: `save_embedding_layers=True`"
    )


# --- which module a key means -----------------------------------------------------------------------------------------

LAYER = "layers.0.self_attn.q_proj"


@pytest.mark.parametrize(("module", "base"), [
    (f"model.{LAYER}", f"model.{LAYER}"),
    (f"model.{LAYER}", LAYER),
    (LAYER, f"model.{LAYER}"),
    (f"model.{LAYER}", f"language_model.model.{LAYER}"),
    (f"model.language_model.{LAYER}", f"language_model.model.{LAYER}"),
    (f"model.vision_tower.encoder.{LAYER}", f"vision_tower.vision_model.encoder.{LAYER}"),
    ("lm_head", "language_model.lm_head"),
])  # fmt: skip
def test_a_module_is_found_under_other_leading_names(module, base):
    assert locate([module], {f"{base}.weight": None}) == {module: base}


@pytest.mark.parametrize(("module", "base"), [
    (f"model.vision_tower.{LAYER}", f"language_model.model.{LAYER}"),
    (f"model.{LAYER}", "model.layers.1.self_attn.q_proj"),
    (f"model.{LAYER}", "model.layers.0.self_attn.k_proj"),
])  # fmt: skip
def test_a_module_is_not_taken_for_another_part_of_the_model(module, base):
    assert locate([module], {f"{base}.weight": None}) == {}


def test_each_part_of_a_model_is_found_under_its_own_leading_names():
    modules = [f"model.language_model.{LAYER}", f"model.vision_tower.encoder.{LAYER}", "lm_head"]
    base = [f"language_model.model.{LAYER}", f"vision_tower.vision_model.encoder.{LAYER}", "language_model.lm_head"]
    assert locate(modules, {f"{name}.weight": None for name in base}) == dict(zip(modules, base, strict=True))


def test_no_two_modules_are_found_in_the_same():
    found = locate([f"model.{LAYER}", f"other.{LAYER}", LAYER], {f"model.{LAYER}.weight": None})
    assert found == {f"model.{LAYER}": f"model.{LAYER}"}
