"""Architectures are known by their tensor names alone; transformers loads what comes out and computes the same."""

import re

import numpy as np
import pico
import pytest
from merging import MergeWorld, chain, different, rounded, same, widened
from oracles import CLASSES, load, logits, raw, state

from modelbuild.plan.layout import comes_last, layout

KINDS = ("llama", "mistral", "mixtral", "qwen2", "bert", "gpt2", "gpt2-bare", "llava")
LAYERS = 3
STACKS = {
    "llama": {"model.layers": 3},
    "mistral": {"model.layers": 3},
    "mixtral": {"model.layers": 3},
    "qwen2": {"model.layers": 3},
    "bert": {"encoder.layer": 3},
    "gpt2": {"transformer.h": 3},
    "gpt2-bare": {"h": 3},
    "llava": {"vision_tower.vision_model.encoder.layers": 2, "language_model.model.layers": 3},
}
LAST = {
    "llama": ["model.norm.weight", "lm_head.weight"],
    "mistral": ["model.norm.weight", "lm_head.weight"],
    "mixtral": ["model.norm.weight", "lm_head.weight"],
    "qwen2": ["model.norm.weight"],
    "bert": ["pooler.dense.weight", "pooler.dense.bias"],
    "gpt2": ["transformer.ln_f.weight", "transformer.ln_f.bias"],
    "gpt2-bare": ["ln_f.weight", "ln_f.bias"],
}
LINEAR = """[merge.m]
method = "linear"
only = "*"
models = [{ model = "a", weight = 0.75 }, { model = "b", weight = 0.25 }]
"""
LERP = '[merge.m]\nmethod = "lerp"\nonly = "*"\nbase = "a"\nmodels = [{ model = "b", t = %s }]\n'


@pytest.fixture(scope="module", params=KINDS)
def pair(request, tmp_path_factory):
    """Two fine-tunes of one model of each architecture, and its kind."""
    world = MergeWorld(tmp_path_factory.mktemp(request.param))
    for seed, name in enumerate("ab", start=1):
        world.model(name, request.param, seed=seed, layers=LAYERS, tuned_from=9)
    return request.param, world


@pytest.fixture
def models(pair, tmp_path):
    """The two models in a world of the test's own."""
    kind, sources = pair
    world = MergeWorld(tmp_path)
    for name in "ab":
        world.put(name, sources.root / name)
    return kind, world


def sizes(tensors):
    return {name: raw.nbytes for name, (_, raw) in tensors.items()}


def merged(world, kind, share):
    """What a + share(name)·(b − a) is, of the models as transformers has them in memory, and the model with it."""
    import torch

    model, other = load(world.root / "a", kind), load(world.root / "b", kind).state_dict()
    result = {}
    for name, a in model.state_dict().items():
        t, b = share(name), other[name]
        result[name] = (a.float() + t * (b.float() - a.float())).to(a.dtype) if t and torch.is_floating_point(a) else a
    model.load_state_dict(result)
    return model


def layer_of(name):
    """The number of a layer in a name that transformers has in memory, and whether it is the vision tower's."""
    found = re.search(r"(?:layers?|h)\.(\d+)\.", name)
    return int(found[1]) if found else None


def check(world, kind, share):
    """The output must be, in transformers, the model that `share` describes: same tensors, same answers."""
    ours, theirs = load(world.out / "m", kind), merged(world, kind, share)
    assert different(state(ours), state(theirs)) == []
    assert np.array_equal(logits(ours, kind), logits(theirs, kind))
    assert not np.array_equal(logits(ours, kind), logits(load(world.root / "a", kind), kind))


# --- layers -----------------------------------------------------------------------------------------------------------


def test_stacks_and_layers_are_read_from_names(pair):
    kind, world = pair
    found = layout(sizes(world.source("a")))
    assert found.stacks == STACKS[kind]
    assert found.main == list(STACKS[kind])[-1]
    assert (found.layers, found.depth) == (LAYERS, LAYERS)


def test_what_lies_after_the_layers_is_known(pair):
    kind, world = pair
    if kind in LAST:
        names = world.source("a")
        places = layout(sizes(names)).places
        assert [name for name in names if name not in places and comes_last(name)] == LAST[kind]


def test_experts_are_inside_layers_and_no_stack_of_their_own():
    name = "model.layers.7.block_sparse_moe.experts.3.w1.weight"
    found = layout({name: 1})
    assert found.stacks == {"model.layers": 8}
    assert (found.places[name].layer, found.places[name].rest) == (7, "block_sparse_moe.experts.3.w1.weight")


@pytest.mark.parametrize("names", [
    ["mm_projector.0.weight", "mm_projector.2.weight"],
    ["classifier.1.bias"],
    ["model.norm.weight"],
    ["0.weight"],
    ["0.layer.weight"],
    ["layers.-1.mlp.weight"],
    ["layers.١.mlp.weight"],
])  # fmt: skip
def test_numbers_that_count_no_layers_make_no_stack(names):
    assert layout(dict.fromkeys(names, 1)).stacks == {}


def test_the_main_stack_is_the_heaviest_and_of_equals_the_first_by_name():
    tensors = {"b.0.x.weight": 10, "b.1.x.weight": 10, "a.0.x.weight": 15}
    assert layout(tensors).main == "b"
    assert layout(tensors | {"a.1.x.weight": 5}).main == "a"


def test_layers_may_be_missing_and_come_in_any_order():
    found = layout({"l.5.x.weight": 1, "l.0.x.weight": 1})
    assert (found.layers, sorted(found.by_layer)) == (6, [0, 5])


# --- merges -----------------------------------------------------------------------------------------------------------


def test_a_linear_merge_loads_and_answers_as_the_merged_state_dicts(models):
    kind, world = models
    world.merge(LINEAR).build()
    check(world, kind, lambda name: 0.25)


def test_a_lerp_by_layers_loads_and_answers_as_the_merged_state_dicts(models):
    """Layer 0 is b's, layer 1 halfway, layer 2 a's; what is in no layer is halfway."""
    kind, world = models
    result = world.merge(LERP % "{ points = [[0, 1.0], [2, 0.0]], rest = 0.5 }").build()
    by_layer = {0: 1.0, 1: 0.5, 2: 0.0, None: 0.5}
    check(world, kind, lambda name: by_layer[layer_of(name)])
    names = world.source("a")
    places = layout(sizes(names)).places
    halfway = [name for name in names if name not in places or places[name].layer == 1]
    assert (result["m"].tensors.computed, result["m"].tensors.copied) == (len(halfway), len(names) - len(halfway))


def test_a_gradient_runs_over_each_stack_and_the_rest_takes_its_first_value(models):
    kind, world = models
    world.merge(LERP % "[1.0, 0.0]").build()
    deep = {0: 1.0, 1: 0.5, 2: 0.0, None: 1.0}
    shallow = {0: 1.0, 1: 0.0}
    check(
        world, kind, lambda name: (shallow if "vision" in name and layer_of(name) is not None else deep)[layer_of(name)]
    )


def test_one_kind_of_tensor_may_be_chosen_by_a_piece_of_its_name(models):
    _, world = models
    world.merge(LERP % '[{ match = "att", value = 0.5 }, { value = 0 }]').build()
    made, a, b = world.tensors("m"), world.source("a"), world.source("b")
    for name, tensor in made.items():
        x, y = widened(a[name]), widened(b[name])
        assert same(tensor, rounded(x + np.float32(0.5) * (y - x)) if "att" in name else a[name])
    assert 0 < len(different(made, a)) < len(made)


def test_names_and_config_are_the_bases(models):
    _, world = models
    world.merge(LERP % "0.5").build()
    assert sorted(world.tensors("m")) == sorted(world.source("a"))
    for name in ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"):
        if (world.root / "a" / name).exists():
            assert (world.out / "m" / name).read_bytes() == (world.root / "a" / name).read_bytes()


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_another_dtype_is_in_every_weight_and_everywhere_config_names_one(models, dtype):
    kind, world = models
    world.merge(f'{LINEAR}dtype = "{dtype}"\n').build()
    code = {"float16": "F16", "float32": "F32"}[dtype]
    assert {found for found, _ in world.tensors("m").values()} == {code}
    config, base = world.config("m"), world.config("a")
    assert list(config) == list(base)
    assert config.pop("dtype") == dtype
    assert config.pop("text_config", {}).get("dtype") == (dtype if kind == "llava" else None)
    assert config.items() <= base.items()
    a, b = world.floats("a"), world.floats("b")
    made = world.tensors("m")
    assert all(same(made[n], rounded(np.float32(0.75) * a[n] + np.float32(0.25) * b[n], code)) for n in made)
    assert str(load(world.out / "m", kind).dtype) == f"torch.{dtype}"


def test_half_the_layers_make_a_model_of_half_the_layers(models):
    kind, world = models
    text = '[merge.m]\nmethod = "passthrough"\n[[merge.m.slices]]\nlayers = [1, 3]\nmodels = [{ model = "a" }]\n'
    world.merge(text).build()
    ours, theirs = load(world.out / "m", kind), load(world.root / "a", kind)
    keys = {"bert": "encoder.layer", "gpt2": "transformer.h", "llava": "model.language_model.layers"}
    stack = keys.get(kind.partition("-")[0], "model.layers")
    mine, other = state(ours), state(theirs)
    for name, tensor in mine.items():
        found = re.match(rf"{re.escape(stack)}\.(\d+)\.(.*)", name)
        assert same(tensor, other[f"{stack}.{int(found[1]) + 1}.{found[2]}" if found else name])
    assert len({name for name in mine if name.startswith(stack)}) * 3 == 2 * len(
        [n for n in other if n.startswith(stack)]
    )
    assert np.isfinite(logits(ours, kind)).all()


# --- what is special to one -------------------------------------------------------------------------------------------


def test_float32_routers_stay_float32_between_bfloat16_experts(tmp_path):
    world = MergeWorld(tmp_path)
    for seed, name in enumerate("ab", start=1):
        world.model(name, "mixtral", seed=seed, dtypes={"moe.gate.": "float32"})
    made = world.made(LINEAR)
    assert {code for name, (code, _) in made.items() if "moe.gate." in name} == {"F32"}
    assert {code for name, (code, _) in made.items() if "moe.gate." not in name} == {"BF16"}
    assert world.config("m")["dtype"] == "bfloat16"


def test_an_adapter_of_single_experts_is_folded_into_those(tmp_path):
    world = MergeWorld(tmp_path)
    world.model("a", "mixtral", seed=1)
    world.lora("l", "a", seed=2, rank=4, alpha=8, targets=("experts.1.w1", "experts.2.w2", "gate"))
    made = world.made('[merge.m]\nmethod = "lora"\nbase = "a"\nadapters = [{ adapter = "l" }]\n')
    base, factors = world.source("a"), world.source("l")
    touched = [name for name in base if re.search(r"experts\.(1\.w1|2\.w2)|moe\.gate", name)]
    assert sorted(different(made, base)) == sorted(touched)
    for name in touched:
        key = f"base_model.model.{name.removesuffix('weight')}"
        b, a = (widened(factors[f"{key}lora_{part}.weight"]) for part in "BA")
        assert same(made[name], rounded(widened(base[name]) + chain(b, a) * np.float32(2)))
    load(world.out / "m", "mixtral")


def test_a_tied_head_stays_unwritten(tmp_path):
    world = MergeWorld(tmp_path)
    for seed, name in enumerate("ab", start=1):
        world.model(name, "qwen2", seed=seed)
    assert "lm_head.weight" not in world.made(LINEAR)
    assert world.config("m")["tie_word_embeddings"] is True
    model = load(world.out / "m", "qwen2")
    assert same(raw(model.lm_head.weight), world.tensors("m")["model.embed_tokens.weight"])


def test_only_the_language_model_of_a_vision_model_can_be_merged(tmp_path):
    world = MergeWorld(tmp_path)
    for seed, name in enumerate("ab", start=1):
        world.model(name, "llava", seed=seed)
    made = world.made(LINEAR.replace('only = "*"', 'only = ["language_model"]'))
    changed = different(made, world.source("a"))
    assert sorted(changed) == sorted(name for name in made if name.startswith("language_model."))
    assert CLASSES["llava"] == "AutoModelForImageTextToText"
    load(world.out / "m", "llava")


# --- leading names ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("donor", "other"), [("gpt2", "gpt2-bare"), ("gpt2-bare", "gpt2")])
def test_models_with_and_without_a_leading_name_merge_under_the_donors_names(tmp_path, donor, other):
    world = MergeWorld(tmp_path)
    world.model("a", donor, seed=1).model("b", other, seed=2)
    made, a, b = world.made(LERP % "0.5"), world.floats("a"), world.floats("b")
    assert set(made) == set(a)
    bare = {name.removeprefix("transformer."): values for name, values in b.items()}
    assert all(same(made[name], halfway(a[name], bare[name.removeprefix("transformer.")])) for name in a)
    load(world.out / "m", "gpt2")


def test_a_pattern_on_a_model_sees_its_own_leading_name_or_none(tmp_path):
    world = MergeWorld(tmp_path)
    world.model("a", "gpt2", seed=1).model("b", "gpt2-bare", seed=2)
    choices = '[{ match = "transformer.", value = 1 }, { match = "h.1.mlp", value = 0.5 }, { value = 0 }]'
    changed = different(world.made(LERP % choices), world.source("a"))
    assert sorted(changed) == sorted(name for name in world.source("a") if name.startswith("transformer.h.1.mlp"))


def test_a_model_that_was_saved_without_its_head_merges_where_the_head_is_left_to_the_donor(tmp_path):
    world = MergeWorld(tmp_path)
    world.model("a", "mistral", seed=1).model("b", "mistral", seed=2)
    path = world.root / "b" / "model.safetensors"
    bare = {name.removeprefix("model."): raw for name, raw in pico.read_safetensors(path).items() if "head" not in name}
    pico.write_safetensors(path, bare)
    world.age("b")
    assert "`lm_head.weight` is not in `b`" in world.refusal(LERP % "0.5")
    made = world.made(LERP.replace("only", 'copy = "lm_head"\nonly') % "0.5")
    a, b = world.floats("a"), world.floats("b")
    assert same(made["lm_head.weight"], world.source("a")["lm_head.weight"])
    assert all(same(made[f"model.{name}"], halfway(a[f"model.{name}"], b[name])) for name in b)


def halfway(a, b):
    return rounded(a + np.float32(0.5) * (b - a), "BF16")
