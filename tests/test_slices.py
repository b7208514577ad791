"""Slices: which layers of which models meet, where the ends come from, and what every level of a parameter sees."""

import numpy as np
import pytest
from merging import MergeWorld, different, fma, rounded, same, widened
from oracles import load, logits

from modelbuild.errors import ModelfileError

UP = "model.layers.{}.mlp.up_proj.weight"
ENDS = ("model.embed_tokens.weight", "model.norm.weight", "lm_head.weight")


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """Three models of four layers."""
    world = MergeWorld(tmp_path_factory.mktemp("sources"))
    for seed, name in enumerate(("base", "a", "b"), start=1):
        world.model(name, seed=seed, layers=4)
    return world


@pytest.fixture
def world(sources, tmp_path):
    world = MergeWorld(tmp_path)
    for name in ("base", "a", "b"):
        world.put(name, sources.root / name)
    return world


def merge(head, *slices):
    """A sliced merge: the keys of the merge, then those of each slice."""
    return "\n".join(["[merge.m]", head, *(f"[[merge.m.slices]]\n{part}" for part in slices)]) + "\n"


def entry(model, start=None, end=None, **values):
    """An entry of `models` in a slice."""
    keys = [f'model = "{model}"']
    keys += [f"layers = [{start}, {end}]"] if start is not None else []
    return "{ " + ", ".join([*keys, *(f"{key} = {value}" for key, value in values.items())]) + " }"


def models(*entries):
    return f"models = [{', '.join(entries)}]"


def layer(tensors, number):
    """The raw tensors of one layer, by their name within it."""
    at = f"model.layers.{number}."
    return {name.removeprefix(at): tensor for name, tensor in tensors.items() if name.startswith(at)}


def mixed(a, b, t):
    """fma(t, b − a, a) of raw tensors, by name."""
    return {n: rounded(fma(np.float32(t), widened(b[n]) - widened(a[n]), widened(a[n]))) for n in a}


# --- every method -----------------------------------------------------------------------------------------------------


def test_passthrough_stacks_layers_in_order_and_computes_nothing(world):
    text = merge('method = "passthrough"', models(entry("a", 1, 3)), models(entry("b", 0, 1)), models(entry("a", 1, 2)))
    made, a, b = world.made(text), world.source("a"), world.source("b")
    for number, (model, own) in enumerate([(a, 1), (a, 2), (b, 0), (a, 1)]):
        assert different(layer(made, number), layer(model, own)) == []
    assert len(made) == 4 * 9 + 3
    counts = world.build()["m"].tensors
    assert (counts.total, counts.computed) == (39, 0)
    assert len({name for name in made if "layers.4." in name}) == 0


def test_linear_of_slices(world):
    both = models(entry("a", 0, 2, weight=0.75), entry("b", 2, 4, weight=0.25))
    made = world.made(merge('method = "linear"', both))
    a, b = world.floats("a"), world.floats("b")
    for number in range(2):
        expected = np.float32(0.75) * a[UP.format(number)] + np.float32(0.25) * b[UP.format(number + 2)]
        assert same(made[UP.format(number)], rounded(expected))
    assert same(made["lm_head.weight"], rounded(0.75 * a["lm_head.weight"] + 0.25 * b["lm_head.weight"]))


def test_lerp_of_slices_between_ranges_of_the_base_and_a_model(world):
    text = merge('method = "lerp"\nbase = "base"', "layers = [1, 3]\n" + models(entry("a", 0, 2, t=0.5)))
    made, base, a = world.made(text), world.source("base"), world.source("a")
    for number in range(2):
        expected = mixed(layer(base, number + 1), layer(a, number), 0.5)
        assert different(layer(made, number), expected) == []


def test_task_arithmetic_of_slices(world):
    text = merge('method = "task_arithmetic"\nbase = "base"', models(entry("base", 2, 3, weight=1), entry("a", 0, 1,
                 weight=0.5), entry("b", 1, 2, weight=-1.0)))  # fmt: skip
    made = world.made(text)
    w, x, y = (world.floats(name)[UP.format(n)] for name, n in (("base", 2), ("a", 0), ("b", 1)))
    assert same(made[UP.format(0)], rounded(w + (np.float32(0.5) * (x - w) - (y - w))))


# --- the base ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("part", "base_layer", "own_layer"), [
    (models(entry("base", 2, 3), entry("a", 0, 1, t=0.5)), 2, 0),
    ("layers = [1, 2]\n" + models(entry("a", 0, 1, t=0.5)), 1, 0),
    ("layers = [1, 2]\n" + models(entry("base", 0, 1), entry("a", t=0.5)), 0, 1),
    (models(entry("a", 3, 4, t=0.5)), 3, 3),
])  # fmt: skip
def test_the_base_takes_its_own_range_else_the_slices_else_the_models(world, part, base_layer, own_layer):
    made = world.made(merge('method = "lerp"\nbase = "base"', part))
    base, a = layer(world.source("base"), base_layer), layer(world.source("a"), own_layer)
    assert different(layer(made, 0), mixed(base, a, 0.5)) == []


def test_a_slice_of_the_base_alone_is_the_base(world):
    text = merge('method = "lerp"\nbase = "base"', models(entry("a", 0, 2, t=0.5)), models(entry("base", 2, 4)))
    result = world.merge(text).build()
    made, base = world.tensors("m"), world.source("base")
    assert all(different(layer(made, n), layer(base, n)) == [] for n in (2, 3))
    assert all(len(different(layer(made, n), layer(base, n))) == 9 for n in (0, 1))
    assert same(made["lm_head.weight"], base["lm_head.weight"])
    assert result["m"].tensors.computed == 2 * 9 + 1


def test_a_base_is_only_the_donor_of_config_for_a_method_without_one(world):
    """It may be an input as well, and need not have as many layers."""
    world.model("base", seed=1, layers=1, config={"rope_scaling": None, "use_cache": False})
    both = models(entry("base", 0, 1, weight=0.5), entry("a", 3, 4, weight=0.5))
    made = world.made(merge('method = "linear"\nbase = "base"', both, models(entry("b", 2, 3, weight=1.0))))
    assert same(made[UP.format(0)], rounded((world.floats("base")[UP.format(0)] + world.floats("a")[UP.format(3)]) / 2))
    assert same(made[UP.format(1)], world.source("b")[UP.format(2)])
    assert (world.config("m")["use_cache"], world.config("m")["num_hidden_layers"]) == (False, 2)


# --- the ends ---------------------------------------------------------------------------------------------------------


def test_what_is_before_the_layers_is_the_first_slices_and_what_is_after_the_lasts(world):
    made = world.made(merge('method = "passthrough"', models(entry("a", 0, 1)), models(entry("b", 0, 1))))
    a, b = world.source("a"), world.source("b")
    assert [same(made[name], model[name]) for name, model in zip(ENDS, (a, b, b), strict=True)] == [True] * 3


@pytest.mark.parametrize("name", ["a", "b"])
def test_ends_takes_all_of_them_from_one_input(world, name):
    slices = [models(entry("a", 0, 1)), models(entry("b", 0, 1))]
    made = world.made(merge(f'method = "passthrough"\nends = "{name}"', *slices))
    assert all(same(made[end], world.source(name)[end]) for end in ENDS)


def test_ends_may_be_of_two_models_that_give_no_layer(world):
    slices = [models(entry("base", 0, 2))]
    made = world.made(merge('method = "passthrough"\nbase = "base"\nends = ["a", "b"]', *slices))
    owners = dict(zip(ENDS, ("a", "b", "b"), strict=True))
    assert all(same(made[end], world.source(name)[end]) for end, name in owners.items())


def test_two_ends_of_one_model_are_one(world):
    slices = [models(entry("a", 0, 1)), models(entry("b", 0, 1))]
    one, two = (world.made(merge(f'method = "passthrough"\nends = {ends}', *slices)) for ends in ('"a"', '["a", "a"]'))
    assert list(one) == list(two)
    assert all(same(one[name], two[name]) for name in one)


def test_ends_of_a_base_are_not_merged(world):
    text = merge('method = "lerp"\nbase = "base"\nends = "base"', models(entry("a", 0, 4, t=0.5)))
    made = world.made(text)
    assert all(same(made[end], world.source("base")[end]) for end in ENDS)
    assert world.build()["m"].tensors.total == 39


# --- what every level sees --------------------------------------------------------------------------------------------

STEPS = '{ points = [[0, 1.0], [1, 0.5], [2, 0.0]], shape = "step" }'


def shares(made, world, numbers):
    """t of each output layer, read off the up projection between `base` and `a` at the given layers of both."""
    found = []
    for number, own in enumerate(numbers):
        base, a = (widened(world.source(name)[UP.format(own)]) for name in ("base", "a"))
        apart = abs(a - base) > 0.01
        found.append(float(np.median((widened(made[UP.format(number)]) - base)[apart] / (a - base)[apart])))
    return found


def test_points_on_a_model_see_its_own_layers(world):
    text = merge('method = "lerp"\nbase = "base"', models(entry("a", 1, 4, t=STEPS)))
    assert shares(world.made(text), world, [1, 2, 3]) == pytest.approx([0.5, 0.0, 0.0], abs=0.02)


@pytest.mark.parametrize("where", ["merge", "slice"])
def test_points_on_a_slice_or_merge_see_the_outputs_layers(world, where):
    head = 'method = "lerp"\nbase = "base"' + (f"\nt = {STEPS}" if where == "merge" else "")
    part = (f"t = {STEPS}\n" if where == "slice" else "") + models(entry("a", 1, 4))
    assert shares(world.made(merge(head, part)), world, [1, 2, 3]) == pytest.approx([1.0, 0.5, 0.0], abs=0.02)


def test_a_match_on_a_model_sees_its_own_names_and_on_the_merge_the_outputs(world):
    head = 'method = "lerp"\nbase = "base"\n'
    chosen = '[{ match = "layers.1.", value = 1.0 }, { value = 0.0 }]'
    own = world.made(merge(head, models(entry("a", 1, 3, t=chosen))))
    assert shares(own, world, [1, 2]) == pytest.approx([1.0, 0.0], abs=0.02)
    outputs = world.made(merge(f"{head}t = {chosen}", models(entry("a", 1, 3))))
    assert shares(outputs, world, [1, 2]) == pytest.approx([0.0, 1.0], abs=0.02)


def test_the_nearest_level_that_fits_decides(world):
    head = 'method = "lerp"\nbase = "base"\nt = 1.0'
    only_up = '[{ match = "mlp.up_proj", value = 0.5 }]'
    text = merge(head, models(entry("a", 0, 1, t=only_up)), "t = 0.0\n" + models(entry("a", 1, 2, t=only_up)))
    made, base, a = world.made(text), world.source("base"), world.source("a")
    for number, other in ((0, a), (1, base)):
        halfway = mixed(layer(base, number), layer(a, number), 0.5)
        expected = layer(other, number) | {"mlp.up_proj.weight": halfway["mlp.up_proj.weight"]}
        assert different(layer(made, number), expected) == []


def test_a_gradient_starts_anew_in_every_slice(world):
    head = 'method = "lerp"\nbase = "base"\nt = [0.0, 1.0]'
    text = merge(head, models(entry("a", 0, 3)), models(entry("a", 0, 1)))
    assert shares(world.made(text), world, [0, 1, 2, 0]) == pytest.approx([0.0, 0.5, 1.0, 1.0], abs=0.02)


# --- config -----------------------------------------------------------------------------------------------------------


def test_config_has_as_many_layers_and_as_many_entries_as_there_are_layers(world):
    types = ["full_attention", "sliding_attention", "full_attention", "sliding_attention"]
    config = {"layer_types": types, "use_sliding_window": True, "sliding_window": 8, "max_window_layers": 0}
    world.model("a", "qwen2", seed=1, layers=4, config=config)
    text = merge('method = "passthrough"', models(entry("a", 1, 2)), models(entry("a", 0, 4)))
    world.merge(text).build()
    made = world.config("m")
    assert (made["num_hidden_layers"], made["layer_types"]) == (5, [types[1], *types])
    assert np.isfinite(logits(load(world.out / "m", "qwen2"))).all()


def test_a_stack_of_all_layers_in_order_is_the_model(world):
    made = world.made(merge('method = "passthrough"', models(entry("a", 0, 2)), models(entry("a", 2, 4))))
    assert different(made, world.source("a")) == []
    assert (world.out / "m" / "config.json").read_bytes() == (world.root / "a" / "config.json").read_bytes()


def test_slices_of_a_merge_are_slices_of_what_it_makes(world):
    first = '[merge.half]\nmethod = "lerp"\nbase = "a"\nmodels = [{ model = "b", t = 0.5 }]\n'
    made = world.made(first + merge('method = "passthrough"', models(entry("half", 3, 4)), models(entry("a", 0, 1))))
    assert different(layer(made, 0), mixed(layer(world.source("a"), 3), layer(world.source("b"), 3), 0.5)) == []
    assert different(layer(made, 1), layer(world.source("a"), 0)) == []


def test_layers_of_a_model_with_another_prefix_get_the_donors(tmp_path):
    world = MergeWorld(tmp_path)
    world.model("a", "gpt2", seed=1).model("b", "gpt2-bare", seed=2)
    text = merge('method = "passthrough"\nends = "a"', models(entry("a", 0, 1)), models(entry("b", 1, 2)))
    made = world.made(text)
    assert same(made["transformer.h.1.mlp.c_fc.weight"], world.source("b")["h.1.mlp.c_fc.weight"])
    load(world.out / "m", "gpt2")


def test_slices_of_a_vision_model_cut_its_language_model(tmp_path):
    world = MergeWorld(tmp_path)
    world.model("a", "llava", seed=1, layers=3)
    made = world.made(merge('method = "passthrough"', models(entry("a", 0, 1)), models(entry("a", 2, 3))))
    source = world.source("a")
    vision = [name for name in source if name.startswith("vision_tower.")]
    assert vision
    assert all(same(made[name], source[name]) for name in vision)
    assert world.config("m")["text_config"]["num_hidden_layers"] == 2
    assert world.config("m")["vision_config"]["num_hidden_layers"] == 2
    load(world.out / "m", "llava")


# --- what is refused --------------------------------------------------------------------------------------------------


def test_a_range_past_the_layers_is_refused_with_both_numbers(world):
    text = merge('method = "passthrough"', models(entry("a", 0, 2)), models(entry("b", 2, 6)))
    assert world.refusal(text) == (
        "error: entry 2 of `slices` in [merge.m] reaches past the layers of `b`\n"
        "  --> Modelfile:12:11\n"
        "   |  it takes layers 2 to 5\n"
        "   |  `b` has layers 0 to 3\n\n"
        "hint: ranges are half-open: [0, 16] is layers 0 to 15"
    )


def test_a_range_past_the_layers_of_the_base_is_refused(world):
    world.model("base", seed=1, layers=2)
    text = merge('method = "lerp"\nbase = "base"', models(entry("a", 2, 4, t=0.5)))
    assert "entry 1 of `slices` in [merge.m] reaches past the layers of `base`" in world.refusal(text)


def test_a_model_without_layers_has_none_to_slice(tmp_path):
    world = MergeWorld(tmp_path)
    names = world.model("a", seed=1, layers=1).source("a")
    world.model("a", seed=1, layers=1, drop=[name for name in names if "layers" in name])
    text = merge('method = "passthrough"', models(entry("a", 0, 1)))
    assert "no layers were found in the tensor names of `a`" in world.refusal(text)


@pytest.mark.parametrize(("part", "message"), [
    (models(entry("a", 0, 2), entry("b", 0, 3)), "the ranges of a slice are not equally long"),
    (models(entry("a", 2, 2)), "[2, 2] is not a range of layers"),
    (models(entry("a", 3, 1)), "[3, 1] is not a range of layers"),
    (models(entry("a", -1, 1)), "[-1, 1] is not a range of layers"),
    (models(entry("a")), "`a` has no `layers` in this slice"),
    ("models = []", "`models` is empty"),
])  # fmt: skip
def test_ranges_that_make_no_sense_are_faults_of_the_modelfile(world, part, message):
    with pytest.raises(ModelfileError) as caught:
        world.merge(merge('method = "linear"\nweight = 1.0', part)).build()
    assert message in caught.value.render()


def test_layers_of_another_width_are_refused_even_where_nothing_is_merged(world):
    world.model("b", seed=2, layers=4, intermediate=48)
    text = merge('method = "passthrough"', models(entry("a", 0, 2)), models(entry("b", 2, 4)))
    assert world.refusal(text) == (
        "error: `b` does not fit `a` in merge `m`: its layers are of another kind\n"
        "  --> Modelfile:12:11\n"
        "   |  `mlp.down_proj.weight` is [32, 48] in layer 2 of `b`, [32, 64] in `a`\n"
        "   |  `mlp.gate_proj.weight` is [48, 32] in layer 2 of `b`, [64, 32] in `a`\n"
        "   |  `mlp.up_proj.weight` is [48, 32] in layer 2 of `b`, [64, 32] in `a`\n"
        "   |  `mlp.down_proj.weight` is [32, 48] in layer 3 of `b`, [32, 64] in `a`\n"
        "   |  `mlp.gate_proj.weight` is [48, 32] in layer 3 of `b`, [64, 32] in `a`\n"
        "   |  and 1 more"
    )


def test_layers_with_more_tensors_are_refused(world):
    world.model("b", "qwen2", seed=2, layers=4, kv_heads=4)
    text = merge('method = "linear"', models(entry("a", 0, 1, weight=0.5), entry("b", 1, 2, weight=0.5)))
    assert "`model.layers.1.self_attn.q_proj.bias` is only in `b`" in world.refusal(text)


def test_ends_of_different_vocabularies_are_refused(world):
    world.model("b", seed=2, layers=4, vocab=66)
    slices = [models(entry("a", 0, 1)), models(entry("b", 0, 1))]
    assert world.refusal(merge('method = "passthrough"', *slices)) == (
        "error: `b` and `a` have different vocabularies\n"
        "  --> Modelfile:12:11\n"
        "   |  `lm_head.weight` has 64 rows in `a`, 66 in `b`\n\n"
        "hint: take both ends from one model: ends = NAME"
    )
    world.made(merge('method = "passthrough"\nends = "a"', *slices))


def test_a_missing_head_at_the_end_is_refused(world):
    world.model("b", seed=2, layers=4, drop=["lm_head.weight"])
    slices = [models(entry("a", 0, 1)), models(entry("b", 0, 1))]
    assert "`lm_head.weight` is not in `b`" in world.refusal(merge('method = "passthrough"', *slices))


def test_points_past_the_layers_of_the_output_are_refused(world):
    head = 'method = "lerp"\nbase = "base"\nt = { points = [[0, 1.0], [3, 0.0]] }'
    text = world.refusal(merge(head, models(entry("a", 0, 2))))
    assert "points reach past the layers of the output" in text
    assert "the output has 2 layers, numbered from 0" in text


def test_points_past_the_layers_of_a_model_are_refused_with_its_name(world):
    points = "{ points = [[0, 1.0], [4, 0.0]] }"
    text = world.refusal(merge('method = "lerp"\nbase = "base"', models(entry("a", 0, 2, t=points))))
    assert "points reach past the layers of `a`" in text
    assert "`a` has 4 layers, numbered from 0" in text
