"""mergekit 0.1.5, given the same merge in its own words, writes the same tensors: whole recipes, bit for bit."""

import json

import numpy as np
import pico
import pytest
from merging import MergeWorld, different, same, widened

pytest.importorskip("mergekit")
pytestmark = pytest.mark.mergekit
LAYERS = 5


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """Three fine-tunes of one float32 model."""
    world = MergeWorld(tmp_path_factory.mktemp("sources"))
    for seed, name in enumerate(("base", "a", "b"), start=1):
        world.model(name, seed=seed, layers=LAYERS, dtype="float32", tuned_from=9)
    return world


@pytest.fixture
def world(sources, tmp_path):
    world = MergeWorld(tmp_path / "world")
    world.root.mkdir()
    for name in ("base", "a", "b"):
        world.put(name, sources.root / name)
    return world


def mergekits(world, recipe):
    """What mergekit makes of a recipe whose models are named as ours: its folder."""
    from mergekit.config import MergeConfiguration
    from mergekit.merge import run_merge
    from mergekit.options import MergeOptions

    def placed(value, key=""):
        if isinstance(value, dict):
            return {name: placed(inner, name) for name, inner in value.items()}
        if isinstance(value, list):
            return [placed(inner) for inner in value]
        return str(world.root / value) if key in ("model", "base_model") else value

    out = world.root.parent / "theirs"
    config = MergeConfiguration.model_validate({"dtype": "float32"} | placed(recipe))
    run_merge(config, str(out), MergeOptions(copy_tokenizer=False, write_model_card=False, quiet=True))
    return out


def check(world, text, recipe):
    """Builds both and compares every tensor; gives ours."""
    made = world.made(text)
    theirs = pico.read_tensors(mergekits(world, recipe))
    assert sorted(made) == sorted(theirs)
    assert different(made, theirs) == []
    return made


def models(**weights):
    """`models` of a recipe, each with a weight."""
    return [{"model": name, "parameters": {"weight": weight}} for name, weight in weights.items()]


def toml(value):
    """A value as the Modelfile has it: mergekit's filters are matches."""
    if isinstance(value, list) and isinstance(value[0], dict):
        entries = [
            (f'match = "{entry["filter"]}", ' if "filter" in entry else "") + f"value = {toml(entry['value'])}"
            for entry in value
        ]
        return "[" + ", ".join(f"{{ {entry} }}" for entry in entries) + "]"
    return json.dumps(value)


def linear(**weights):
    """The same `models` in a Modelfile."""
    entries = ", ".join(f'{{ model = "{name}", weight = {toml(weight)} }}' for name, weight in weights.items())
    return f'[merge.m]\nmethod = "linear"\nmodels = [{entries}]\n'


WEIGHTS = {
    "numbers": {"a": 0.3, "b": 0.9},
    "three": {"a": 0.3, "b": 0.9, "base": 0.41},
    "negative": {"a": 1.5, "b": -0.5},
    "gradient of two": {"a": 0.3, "b": [0.1, 0.9]},
    "gradient of as many as layers": {"a": [0.1, 0.7, 0.3, 0.9, 0.5], "b": 1.0},
    "gradient of more than layers": {"a": [0.1, 0.7, 0.3, 0.9, 0.5, 0.2, 0.8], "b": [1, 0.5]},
    "gradient of three": {"a": [0.25, 0.7, 0.3], "b": [0.9, 0.2, 0.6]},
    "filter": {"a": [{"filter": "mlp", "value": 0.8}, {"value": 0.1}], "b": 0.5},
    "filters of gradients": {
        "a": [
            {"filter": "mlp.down_proj", "value": [0.3, 0.25, 0.25, 0.15, 0.1]},
            {"filter": "self_attn", "value": [0.7, 0.25, 0.5, 0.45, 0.4]},
            {"filter": "embed_tokens", "value": 0.9},
            {"value": 0.05},
        ],
        "b": [{"filter": "norm", "value": 0.2}, {"filter": "lm_head", "value": 0.6}, {"value": 1.0}],
    },
    "the first filter that fits": {"a": [{"filter": "self_attn", "value": 0.9}, {"filter": "q_proj", "value": 0.2},
                                         {"value": 0.5}], "b": 0.3},
}  # fmt: skip


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("name", WEIGHTS)
def test_linear_with_any_weights(world, name, normalize):
    weights = WEIGHTS[name]
    recipe = {"merge_method": "linear", "models": models(**weights), "parameters": {"normalize": normalize}}
    made = check(world, f"{linear(**weights)}normalize = {toml(normalize)}\n", recipe)
    assert not any(same(tensor, world.source("b")[name]) for name, tensor in made.items())


def test_embeddings_and_head_take_the_first_value_of_a_gradient(world):
    made = check(world, linear(a=[1.0, 0.0], b=[0.0, 1.0]),
                 {"merge_method": "linear", "models": models(a=[1.0, 0.0], b=[0.0, 1.0])})  # fmt: skip
    a, b = world.source("a"), world.source("b")
    first = ["model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"]
    assert all(same(made[name], a[name]) for name in [*first, "model.layers.0.mlp.up_proj.weight"])
    assert same(made["model.layers.4.mlp.up_proj.weight"], b["model.layers.4.mlp.up_proj.weight"])


def test_a_weight_on_the_merge_is_the_one_of_models_that_have_none(world):
    entries = [{"model": "a", "parameters": {"weight": 0.3}}, {"model": "b"}]
    check(world, '[merge.m]\nmethod = "linear"\nweight = [0.6, 0.2]\nmodels = [{ model = "a", weight = 0.3 }, '
                 '{ model = "b" }]\n',
          {"merge_method": "linear", "parameters": {"weight": [0.6, 0.2]}, "models": entries})  # fmt: skip


def test_a_filter_that_nothing_fits_leaves_it_to_the_merge(world):
    chosen = [{"filter": "mlp", "value": 0.3}]
    recipe = {"merge_method": "linear", "parameters": {"weight": 0.9}, "models": models(a=chosen, b=0.5)}
    check(world, linear(a=chosen, b=0.5) + "weight = 0.9\n", recipe)


def test_a_model_at_weight_0_is_not_read_where_mergekit_multiplies_and_divides(world):
    """With `normalize` a is taken as it is; mergekit computes 1.5·a / 1.5, which rounds twice."""
    made = world.made(linear(a=1.5, b=0))
    theirs = pico.read_tensors(mergekits(world, {"merge_method": "linear", "models": models(a=1.5, b=0)}))
    assert different(made, world.source("a")) == []
    assert all(np.allclose(widened(made[n]), widened(theirs[n]), rtol=2**-23, atol=0) for n in theirs)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_linear_of_half_precision_is_mergekits_in_float32_rounded_once(world, dtype):
    for seed, name in enumerate("ab", start=1):
        world.model(name, seed=seed, layers=2, dtype=dtype)
    check(world, linear(a=0.3, b=[0.1, 0.9]),
          {"merge_method": "linear", "models": models(a=0.3, b=[0.1, 0.9]), "out_dtype": dtype})  # fmt: skip


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("scale", [1.0, 0.7, -1.3])
def test_task_arithmetic(world, normalize, scale):
    weights = {"a": [0.3, 0.8], "b": [{"filter": "self_attn", "value": 0.9}, {"value": -0.4}]}
    recipe = {"merge_method": "task_arithmetic", "base_model": "base", "models": models(**weights),
              "parameters": {"normalize": normalize, "lambda": scale}}  # fmt: skip
    text = linear(**weights).replace('"linear"', '"task_arithmetic"\nbase = "base"')
    check(world, f"{text}normalize = {toml(normalize)}\nlambda = {scale}\n", recipe)


def test_tied_heads_and_biases_go_through_task_arithmetic(world):
    for seed, name in enumerate(("base", "a", "b"), start=1):
        world.model(name, "qwen2", seed=seed, layers=2, dtype="float32")
    text = linear(a=0.7, b=0.4).replace('"linear"', '"task_arithmetic"\nbase = "base"')
    made = check(world, text, {"merge_method": "task_arithmetic", "base_model": "base", "models": models(a=0.7, b=0.4)})
    assert "lm_head.weight" not in made
    assert "model.layers.0.self_attn.q_proj.bias" in made


# --- slices -----------------------------------------------------------------------------------------------------------


def sliced(method, *slices, **parameters):
    """A Modelfile and a recipe of slices: each a list of (model, start, end, parameters)."""
    lines = ["[merge.m]", f'method = "{method}"', *(f"{key} = {toml(value)}" for key, value in parameters.items())]
    parts = []
    for entries in slices:
        models = []
        for model, start, end, values in entries:
            own = "".join(f", {key} = {toml(value)}" for key, value in values.items())
            models.append(f'{{ model = "{model}", layers = [{start}, {end}]{own} }}')
        lines += ["[[merge.m.slices]]", f"models = [{', '.join(models)}]"]
        parts.append({"sources": [{"model": m, "layer_range": [s, e], "parameters": v} for m, s, e, v in entries]})
    base = {"base_model": parameters.pop("base")} if "base" in parameters else {}
    return "\n".join(lines), {"merge_method": method, "slices": parts, "parameters": parameters, **base}


def test_a_stack_of_layers(world):
    made = check(world, *sliced("passthrough", [("a", 0, 3, {})], [("b", 1, 4, {})], [("a", 2, 5, {})]))
    a, b = world.source("a"), world.source("b")
    assert same(made["model.layers.3.mlp.up_proj.weight"], b["model.layers.1.mlp.up_proj.weight"])
    assert same(made["model.layers.8.mlp.up_proj.weight"], a["model.layers.4.mlp.up_proj.weight"])
    theirs = json.loads((world.root.parent / "theirs" / "config.json").read_text())
    assert theirs["num_hidden_layers"] == world.config("m")["num_hidden_layers"] == 9


def test_a_stack_takes_its_ends_from_the_first_and_the_last_slice(world):
    made = check(world, *sliced("passthrough", [("a", 0, 1, {})], [("b", 4, 5, {})]))
    assert same(made["model.embed_tokens.weight"], world.source("a")["model.embed_tokens.weight"])
    assert same(made["model.norm.weight"], world.source("b")["model.norm.weight"])
    assert same(made["lm_head.weight"], world.source("b")["lm_head.weight"])
    assert world.config("m")["num_hidden_layers"] == 2


def test_a_stack_with_doubled_layers_scaled_down(world):
    scale = [{"filter": "o_proj", "value": 0.0}, {"filter": "down_proj", "value": [0.25, 0.7]}, {"value": 1.0}]
    text, recipe = sliced("passthrough", [("a", 0, 3, {})], [("a", 1, 3, {"scale": scale})], [("a", 3, 5, {})])
    made = check(world, text, recipe)
    assert not widened(made["model.layers.3.self_attn.o_proj.weight"]).any()


def test_gradients_start_anew_in_every_slice_and_one_layer_takes_the_last_value(world):
    first = [("a", 0, 2, {"weight": [0.1, 0.9]}), ("b", 1, 3, {"weight": [0.8, 0.3]})]
    single = [("a", 2, 3, {"weight": [0.25, 0.75]}), ("b", 0, 1, {"weight": 0.5})]
    last = [("b", 3, 5, {"weight": [0.6, 0.2]}), ("a", 3, 5, {"weight": 1.0})]
    made = check(world, *sliced("linear", first, single, last, normalize=False))
    a, b = world.floats("a"), world.floats("b")
    name = "model.layers.{}.mlp.up_proj.weight"
    expected = np.float32(0.75) * a[name.format(2)] + np.float32(0.5) * b[name.format(0)]
    assert np.allclose(widened(made[name.format(2)]), expected, rtol=0, atol=1e-7)
    outside = np.float32(0.6) * b["lm_head.weight"] + a["lm_head.weight"]
    assert np.allclose(widened(made["lm_head.weight"]), outside, rtol=0, atol=1e-7)


def test_filters_and_gradients_of_a_model_see_its_own_layers(world):
    """Layer 1 of the output comes from layer 2 of a and layer 3 of b."""
    own = [{"filter": "layers.3.", "value": 0.9}, {"value": 0.1}]
    parts = [("a", 1, 3, {"weight": [{"filter": "layers.1.", "value": 0.8}, {"value": 0.2}]}),
             ("b", 2, 4, {"weight": own})]  # fmt: skip
    made = check(world, *sliced("linear", parts, normalize=False))
    name, a, b = "model.layers.{}.mlp.up_proj.weight", world.floats("a"), world.floats("b")
    for layer, weights in ((0, (0.8, 0.1)), (1, (0.2, 0.9))):
        expected = weights[0] * a[name.format(layer + 1)] + weights[1] * b[name.format(layer + 2)]
        assert np.allclose(widened(made[name.format(layer)]), expected, rtol=0, atol=1e-6)


def test_task_arithmetic_of_slices_with_a_base_in_each(world):
    parts = [
        [("base", 0, 2, {}), ("a", 0, 2, {"weight": [0.3, 0.6]}), ("b", 1, 3, {"weight": 0.4})],
        [("base", 2, 5, {}), ("a", 2, 5, {"weight": 0.5})],
    ]
    check(world, *sliced("task_arithmetic", *parts, base="base"))


def test_the_gradient_merge_of_the_examples_is_what_mergekit_makes_of_its_slices(world):
    """0.9 at layer 0, falling to 0 at layer 2; equal but for the order in which two products are added."""
    model = '{ model = "a", t = { points = [[0, 0.9], [2, 0.0]] } }'
    ours = world.made(f'[merge.m]\nmethod = "lerp"\nbase = "base"\nmodels = [{model}]\n')
    shares = {"base": (1, [0.1, 1.0]), "a": (0, [0.9, 0.0])}
    weights = {
        name: [{"filter": "embed_tokens", "value": out}, {"value": inner}] for name, (out, inner) in shares.items()
    }
    parts = [(name, 0, 3, {"weight": weight}) for name, weight in weights.items()]
    _, recipe = sliced("linear", parts, [("base", 3, 5, {"weight": 1.0})])
    theirs = pico.read_tensors(mergekits(world, recipe))
    assert ours.keys() == theirs.keys()
    assert all(np.allclose(widened(ours[name]), widened(theirs[name]), rtol=0, atol=1e-6) for name in ours)
    assert all("layers.0." in name or "layers.1." in name for name in different(ours, theirs))
