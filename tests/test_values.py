"""`plan --values NAME`: what every parameter comes to, for methods that are built and for those that are not yet."""

import json
from pathlib import Path

import pytest

from modelbuild.errors import ModelbuildError
from modelbuild.modelfile.parse import parse_text
from modelbuild.options import Options
from modelbuild.report.terminal import Listener
from modelbuild.report.values import show_values
from modelbuild.resolved import values_with

EXAMPLE = Path(__file__).parent.parent / "examples" / "superswallow" / "config.yml"
LINEAR = '[merge.m]\nmethod = "linear"\nmodels = [{ model = "red", weight = %s }, { model = "blue", weight = 1 }]\n'
HUB = {"tokyotech-llm/Swallow-70b-instruct-hf": "swallow", "allenai/tulu-2-dpo-70b": "tulu"}


@pytest.fixture
def two(world):
    """Two models of four layers."""
    return world.model("red", seed=1, layers=4).model("blue", seed=2, layers=4)


def values(world, name, **options):
    return values_with(Options(modelfile=str(world.path), **options), name, Listener())


def shown(world, text, name="m", **options):
    sources = '[base.red]\nsource = "red"\n[base.blue]\nsource = "blue"\n'
    return show_values(values(world.modelfile(sources + text), name, **options))


def test_the_example_shows_what_its_gradients_did(world):
    """Eight layers; the vocabularies differ, as those of the real models do, which is no matter to the values."""
    world.model("swallow", seed=1, layers=8, vocab=96).model("tulu", seed=2, layers=8)
    recipe = EXAMPLE.read_text()
    for hub, local in HUB.items():
        recipe = recipe.replace(hub, local)
    world.path = world.root / "superswallow.yml"
    world.modelfile(recipe)
    assert (
        show_values(values(world, "superswallow"))
        == """\
superswallow: dare_ties, 75 tensors, 8 layers
  lambda: 1
  normalize: false
  rescale: true
  rescale_by: norm
  consensus: sum
  weight of `tulu`:
    layer  self_attn, mlp.gate_proj, mlp.up_proj  mlp.down_proj  input_layernorm, post_attention_layernorm
    0      0.7                                    0.3            0
    1      0.442857                               0.271429       0
    2      0.285714                               0.25           0
    3      0.428571                               0.25           0
    4      0.485714                               0.221429       0
    5      0.457143                               0.164286       0
    6      0.428571                               0.128571       0
    7      0.4                                    0.1            0
    outside the layers: 0
  density of `tulu`: 1"""
    )


def test_a_gradient_gives_its_first_value_outside_the_layers(two):
    told = shown(two, LINEAR % "[0.0, 1.0]")
    assert told.splitlines() == [
        "m: linear, 39 tensors, 4 layers",
        "  normalize: true",
        "  weight of `red`:",
        "    layer  all",
        "    0      0",
        "    1      0.333333",
        "    2      0.666667",
        "    3      1",
        "    outside the layers: 0",
        "  weight of `blue`: 1",
    ]


def test_layers_that_agree_share_a_row_and_tensors_outside_are_named(two):
    text = """[merge.m]
method = "lerp"
base = "red"
models = [{ model = "blue", t = [{ match = "embed", value = 0.9 },
                                 { value = { points = [[0, 0.5], [2, 0.25]], shape = "step" } }] }]
"""
    assert (
        shown(two, text)
        == """\
m: lerp, 39 tensors, 4 layers
  t of `blue`:
    layer  all
    0-1    0.5
    2-3    0.25
    model.embed_tokens.weight: 0.9
    model.norm.weight, lm_head.weight: 0"""
    )


def test_slices_say_which_layers_meet_and_where_a_model_has_no_part(two):
    text = """[merge.m]
method = "passthrough"
[[merge.m.slices]]
layers = [0, 3]
models = [{ model = "red" }]
[[merge.m.slices]]
models = [{ model = "blue", layers = [2, 4], scale = [{ match = "layers.3.", value = 0.5 }, { value = 2 }] }]
"""
    assert (
        shown(two, text)
        == """\
m: passthrough, 48 tensors, 5 layers
  layers 0-2: `red` 0-2
  layers 3-4: `blue` 2-3
  scale of `red`:
    layer  all
    0-2    none
    3-4    -
    model.embed_tokens.weight: none
    model.norm.weight, lm_head.weight: -
  scale of `blue`:
    layer  all
    0-2    -
    3      2
    4      0.5
    model.embed_tokens.weight: -
    model.norm.weight, lm_head.weight: 2"""
    )


def test_what_is_not_merged_has_no_values(two):
    text = (
        '[merge.m]\nmethod = "linear"\nweight = 1\nonly = ["layers"]\nmodels = [{ model = "red" }, { model = "blue" }]'
    )
    told = shown(two, text)
    assert told.endswith("  taken as they are: model.embed_tokens.weight, model.norm.weight, lm_head.weight")
    assert "weight of `red`: 1" in told


def test_weights_of_adapters_are_shown_without_reading_them(two):
    two.lora("style", "red", seed=3)
    (two.root / "style" / "adapter_model.safetensors").unlink()
    text = """[adapter.style]
source = "style"
[merge.m]
method = "lora"
base = "red"
adapters = [{ adapter = "style", weight = [{ match = "q_proj", value = [1.0, 0.4] }, { value = 0.25 }] }]
"""
    assert shown(two, text).splitlines()[:4] == [
        "m: lora, 39 tensors, 4 layers",
        "  weight of `style`:",
        "    layer  self_attn.q_proj  others",
        "    0      1                 0.25",
    ]


def test_merges_of_merges_that_are_not_built_yet_are_shown(two):
    text = """[merge.stack]
method = "ties"
base = "red"
[[merge.stack.slices]]
layers = [0, 2]
models = [{ model = "blue", weight = 1 }]
[[merge.stack.slices]]
layers = [1, 4]
models = [{ model = "blue", weight = 1 }]

[merge.m]
method = "slerp"
base = "stack"
t = [0.0, 1.0]
models = [{ model = "stack2" }]

[merge.stack2]
method = "linear"
models = [{ model = "stack", weight = 1 }]
"""
    told = shown(two, text)
    assert told.splitlines()[0] == "m: slerp, 48 tensors, 5 layers"
    assert "    2      0.5" in told


def test_an_override_is_shown(two):
    text = '[merge.m]\nmethod = "linear"\nmodels = [{ model = "red", weight = 1 }, { model = "blue", weight = 1 }]'
    assert "  weight of `red`: 0.125" in shown(two, text, overrides=("merge.m.models.0.weight=0.125",))


def test_values_that_no_build_would_take_are_shown_all_the_same(two):
    """Weights that sum to 0 are refused by a build; to see them is the first step to mend them."""
    text = '[merge.m]\nmethod = "linear"\nmodels = [{ model = "red", weight = 1 }, { model = "blue", weight = -1 }]'
    assert "  weight of `blue`: -1" in shown(two, text)
    with pytest.raises(ModelbuildError):
        two.build()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("red", "`red` is a source: there is nothing to build"),
        ("q", "`q` is no merge"),
        ("none", "`none` is not in"),
    ],
)
def test_only_a_merge_has_values(two, name, message):
    text = '[merge.m]\nmethod = "linear"\nweight = 1\nmodels = [{ model = "red" }]\n'
    text += '[quantize.q]\nmodel = "m"\nformat = "gguf"\ntype = "Q4_K_M"\n'
    with pytest.raises(ModelbuildError) as caught:
        shown(two, text, name)
    assert caught.value.exit_code == 2
    assert str(caught.value).startswith(message)


def test_slices_outside_of_a_model_are_told(two):
    text = '[merge.m]\nmethod = "passthrough"\n[[merge.m.slices]]\nlayers = [2, 9]\nmodels = [{ model = "red" }]'
    with pytest.raises(ModelbuildError) as caught:
        shown(two, text)
    assert caught.value.exit_code == 1


@pytest.mark.parametrize("kind", ["bert", "gpt2", "mixtral", "qwen2"])
def test_every_architecture_has_its_table(world, kind):
    world.model("red", kind, seed=1).model("blue", kind, seed=2)
    told = shown(
        world,
        '[merge.m]\nmethod = "linear"\nmodels = [{ model = "red", weight = [1, 0] }, { model = "blue", weight = 1 }]',
    )
    assert "  weight of `red`:\n    layer  all\n    0      1\n    1      0\n    outside the layers: 1" in told


# --- the command ------------------------------------------------------------------------------------------------------

LERP = """
    [base.red]
    source = "red"

    [base.blue]
    source = "blue"

    [merge.m]
    method = "lerp"
    base = "red"
    models = [ { model = "blue", t = [0.5, 1.0] } ]
"""


def test_the_command_prints_the_table_or_the_data(two):
    two.modelfile(LERP)
    ran = two.run("plan", "--values", "m")
    assert (ran.returncode, ran.stderr) == (0, "")
    assert ran.stdout == show_values(values(two, "m")) + "\n"
    data = json.loads(two.run("plan", "--values", "m", "--json").stdout)
    assert (data["name"], data["method"], data["slices"]) == ("m", "lerp", [])
    assert len(data["tensors"]) == 39
    by_name = {tensor["name"]: tensor for tensor in data["tensors"]}
    assert by_name["model.layers.3.mlp.up_proj.weight"] == {
        "name": "model.layers.3.mlp.up_proj.weight", "layer": 3, "kind": "mlp.up_proj.weight",
        "parameters": {}, "inputs": {"blue": {"t": 1.0}},
    }  # fmt: skip
    assert by_name["lm_head.weight"]["layer"] is None


def test_the_values_are_those_that_a_build_uses(two):
    """What the plan decided for each tensor, against the table."""
    from modelbuild.session import open_session

    two.modelfile(LERP)
    with open_session(Options(modelfile=str(two.path)), ["m"], Listener()) as session:
        decisions = session.plan.artifacts["m"].decisions
    for tensor in values(two, "m").tensors:
        assert dict(decisions[tensor.name].parameters) == {"t of `blue`": tensor.inputs["blue"]["t"]}


def test_the_command_takes_one_name_and_no_targets(two):
    two.modelfile(LERP)
    ran = two.run("plan", "m", "--values", "m")
    assert (ran.returncode, ran.stdout) == (2, "")
    assert ran.stderr == "error: `--values` is of one merge, `m`\n\nhint: leave out `m`\n"


def test_nothing_is_written_but_what_is_known_of_sources(two):
    two.modelfile(LERP)
    two.run("plan", "--values", "m")
    assert not (two.root / "Modelfile.lock").exists()
    assert not two.out.exists()


def test_prompts_of_a_mixture_are_shown_as_text(two):
    text = """[merge.m]
method = "moe"
base = "red"
models = [{ model = "blue", prompt = ["a", "b"] }, { model = "red", prompt = "c" }]
"""
    assert "  prompt of `blue`: a\\nb" in shown(two, text)
    assert parse_text(text + '[base.red]\nsource = "x"\n[base.blue]\nsource = "y"', "M")


def test_a_model_with_an_adapter_gives_names_and_layers_like_any_other(two):
    """The adapter's merge comes first in `models`, so that the names of tensors are asked of it."""
    two.lora("style", "red", seed=3)
    text = '[adapter.style]\nsource = "style"\n[merge.tuned]\nmethod = "lora"\nbase = "red"\n'
    text += 'adapters = [ { adapter = "style", weight = 0.5 } ]\n'
    text += LINEAR.replace('"red"', '"tuned"') % "[0, 1]"
    assert shown(two, text).splitlines()[2:] == [
        "  weight of `tuned`:",
        "    layer  all",
        "    0      0",
        "    1      0.333333",
        "    2      0.666667",
        "    3      1",
        "    outside the layers: 0",
        "  weight of `blue`: 1",
    ]
    assert shown(two, text, "tuned").splitlines()[1:] == ["  weight of `style`: 0.5"]


def test_layers_that_are_taken_as_they_are_stand_in_no_row(two):
    text = '[merge.m]\nmethod = "task_arithmetic"\nbase = "red"\n'
    for layers, models in (("[0, 1]", '{ model = "blue", weight = 0.25 }'), ("[1, 2]", '{ model = "red" }'),
                           ("[2, 4]", '{ model = "blue", weight = 0.25 }'),
                           ("[3, 4]", '{ model = "blue", weight = 0.5 }')):  # fmt: skip
        text += f"[[merge.m.slices]]\nlayers = {layers}\nmodels = [ {models} ]\n"
    lines = shown(two, text).splitlines()
    assert lines[1:5] == [
        "  layer 0: `blue` 0", "  layer 1: `red` 1", "  layers 2-3: `blue` 2-3", "  layer 4: `blue` 3",
    ]  # fmt: skip
    start = lines.index("    layer  all")
    assert lines[start + 1 : start + 4] == ["    0      0.25", "    2-3    0.25", "    4      0.5"]
    assert "model.layers.1." in lines[-1]
