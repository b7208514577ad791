"""mergekit 0.1.5 and an import of the same YAML: what mergekit accepts is imported, and builds to the same bits."""

import textwrap
from pathlib import Path

import pico
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from importing_tools import blocks, imported
from merging import MergeWorld, different, same

from modelbuild.importing.known import METHODS, RENAMED, without_effect
from modelbuild.methods.registry import methods
from modelbuild.modelfile.parse import parse_text
from modelbuild.modelfile.spec import Choices, Constant, Gradient
from modelbuild.plan.values import Level, Spot, resolve

pytest.importorskip("mergekit")
pytestmark = pytest.mark.mergekit
LAYERS = 5


# --- what mergekit knows ----------------------------------------------------------------------------------------------


def registered():
    from mergekit.merge_methods import registry

    return {method.spec.name: method.spec for method in registry.registered_methods()}


def test_the_methods_are_those_that_mergekit_registers():
    assert set(METHODS) == set(registered())


@pytest.mark.parametrize("name", METHODS)
def test_a_method_has_the_parameters_and_the_base_that_mergekit_says(name):
    spec, known = registered()[name], METHODS[name]
    assert set(known.shared) == {parameter.name for parameter in spec.shared_parameters}
    assert set(known.each) == {parameter.name for parameter in spec.input_parameters}
    bases = {"ignored": "input", "required": "required", "optional": "optional"}
    assert known.base == bases[spec.contract.base.value]


@pytest.mark.parametrize("name", METHODS)
def test_every_parameter_that_matters_has_a_place_in_a_modelfile(name):
    ours = methods()[name]
    for scope, names in (("merge", METHODS[name].shared), ("input", METHODS[name].each)):
        for parameter in names:
            declared = ours.parameter(RENAMED.get(parameter, parameter))
            if without_effect(name, parameter) is None:
                assert declared is not None, parameter
                assert declared.scope == scope, parameter


@pytest.mark.parametrize("name", METHODS)
def test_defaults_are_those_of_mergekit(name):
    for parameter in registered()[name].parameters:
        declared = methods()[name].parameter(RENAMED.get(parameter.name, parameter.name))
        if declared is not None and without_effect(name, parameter.name) is None:
            assert declared.default == (None if parameter.required else parameter.default), parameter.name


def test_the_examples_of_the_golden_file_are_recipes_to_mergekit():
    from mergekit.config import MergeConfiguration
    from mergekit.moe.config import MoEMergeConfig

    seen = 0
    for _, recipe, _ in blocks("import_golden.txt"):
        for document in yaml.safe_load_all(recipe):
            if "layer_slices" not in document:
                (MoEMergeConfig if "experts" in document else MergeConfiguration).model_validate(document)
                seen += 1
    assert seen > 25


# --- any recipe -------------------------------------------------------------------------------------------------------

truths = st.sampled_from([True, False, 0, 1, 0.0, 1.0, "yes", "Off", "true"])
share = st.floats(0.015625, 1, allow_nan=False, width=16)
names = st.sampled_from(["org/alpha-7b", "org/beta-7b@main", "other/alpha-7b", "x/gamma+y/style-lora", "z/delta"])
filters = st.sampled_from(["mlp", "self_attn", "layers.1.", "embed_tokens", "lm_head", "*", "", "layers.*.mlp", "a|b"])


@st.composite
def values(draw, everywhere=False):
    """A value of a number: a scalar, a gradient, or filters of these; `everywhere`: one for every tensor."""
    flat = st.one_of(share, st.sampled_from([0, 1, "5e-1"]), st.lists(share, min_size=1, max_size=4))
    entry = st.fixed_dictionaries({"value": flat}, optional={"filter": filters})
    found = draw(st.one_of(flat, st.lists(entry, min_size=1, max_size=4), entry))
    entries = [found] if isinstance(found, dict) else found
    if everywhere and isinstance(entries, list) and isinstance(entries[0], dict):
        return [*entries, {"value": draw(share)}]
    return found


def given_for(draw, method, scope, required):
    """`parameters` of a level: those of the method, with required ones where they have to be."""
    ours = {RENAMED.get(name, name): name for name in METHODS[method].parameters}
    found = {}
    for parameter in methods()[method].parameters:
        if parameter.name not in ours or (parameter.scope == "merge" and scope == "input"):
            continue
        needed = required and parameter.default is None and not parameter.nullable
        if not needed and not draw(st.booleans()):
            continue
        kinds = {
            "boolean": truths,
            "integer": st.integers(1, 9) | st.sampled_from(["3", 4.0]),
            "number": values(needed),
        }
        found[ours[parameter.name]] = draw(kinds[parameter.type])
    if draw(st.integers(0, 5)) == 0:
        found[draw(st.sampled_from(["int8_mask", "densty", "t2"]))] = True
    return found


@st.composite
def recipes(draw):
    """A recipe that mergekit accepts, as plain data."""
    method = draw(st.sampled_from(sorted(METHODS)))
    known, (low, high) = METHODS[method], methods()[method].inputs
    base = "org/base-7b" if known.base == "required" or (known.base == "optional" and draw(st.booleans())) else None
    count = draw(st.integers(low, high or 4))
    chosen = draw(st.lists(names, min_size=count, max_size=count, unique=True))
    recipe = {"merge_method": method} | ({"base_model": base} if base else {})
    top = draw(st.booleans())

    def listed(extra):
        entries = [
            {"model": name, "parameters": given_for(draw, method, "input", not top), **extra()} for name in chosen
        ]
        return [*entries, *([{"model": base, **extra()}] if base else [])]

    if draw(st.booleans()):
        recipe["models"] = listed(dict)
    else:
        length = draw(st.integers(1, 3))
        starts = st.integers(0, 4)
        recipe["slices"] = [
            {
                "sources": listed(
                    lambda: {
                        "layer_range": [start := draw(starts), draw(st.sampled_from([int, float, str]))(start + length)]
                    }
                ),
                "parameters": given_for(draw, method, "slice", False),
            }
            for _ in range(draw(st.integers(1, 3)))
        ]
    recipe["parameters"] = given_for(draw, method, "merge", True) if top else given_for_merge(draw, method)
    for key, choices in (("dtype", ["bfloat16", "float32", "torch.float16"]), ("out_dtype", ["float16", "float32"]),
                         ("tokenizer_source", ["union", "base", chosen[0]]), ("chat_template", ["auto", "{{ x\n }}"]),
                         ("unknown", [1, {"a": [1]}])):  # fmt: skip
        if draw(st.integers(0, 3)) == 0:
            recipe[key] = draw(st.sampled_from(choices))
    return recipe


def given_for_merge(draw, method):
    """The parameters of the merge alone, required ones included, and nothing of the inputs."""
    found = given_for(draw, method, "merge", True)
    return {name: value for name, value in found.items() if name not in METHODS[method].each}


@given(recipes(), st.booleans())
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_what_mergekit_accepts_is_imported_and_parses(recipe, flow):
    from mergekit.config import MergeConfiguration

    MergeConfiguration.model_validate(recipe)
    found, spec = imported(yaml.safe_dump(recipe, default_flow_style=flow, sort_keys=False))
    assert parse_text(found.text, "Modelfile").artifacts == spec.artifacts
    merge = spec.artifacts["made"]
    assert merge.method == recipe["merge_method"]
    assert ("unknown" in recipe) == any("`unknown`" in note for note in found.notes)


@given(recipes())
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_every_parameter_comes_to_what_mergekit_makes_of_it(recipe):
    """Every parameter of every tensor of a small model, at every level, by mergekit's own resolver."""
    from mergekit.config import ConfigReader, InputSliceDefinition, MergeConfiguration, OutputSliceDefinition
    from mergekit.parameter_resolver import resolve_parameters

    config = MergeConfiguration.model_validate(recipe)
    _, spec = imported(yaml.safe_dump(recipe, sort_keys=False))
    merge, method = spec.artifacts["made"], methods()[recipe["merge_method"]]
    theirs = registered()[recipe["merge_method"]]
    whole = config.slices
    if whole is None:
        sources = [InputSliceDefinition(layer_range=(0, 4), **entry.model_dump()) for entry in config.models]
        whole = [OutputSliceDefinition(sources=sources)]
    parts = merge.slices or (None,)
    first = 0
    for part, theirs_part in zip(parts, whole, strict=True):
        count = theirs_part.sources[0].layer_range[1] - theirs_part.sources[0].layer_range[0]
        reader = ConfigReader(config=config, slice_out=theirs_part, t=0)
        entries = part.models if part is not None else merge.models
        kept = [s for s in theirs_part.sources if METHODS[method.name].base == "input" or s.model != config.base_model]
        if METHODS[method.name].base != "input":
            entries = [entry for entry in entries if entry.name != merge.base]
        for index in range(count):
            for piece in ("self_attn.q_proj.weight", "mlp.up_proj.weight"):
                inner = {source.model: f"model.layers.{source.layer_range[0] + index}.{piece}" for source in kept}
                t = index / (count - 1) if count > 1 else 1
                name = f"model.layers.{first + index}.{piece}"
                shared, each = resolve_parameters(
                    theirs, tensor_name=name, inputs=inner, sources=reader.parameter_sources, t=t
                )
                outer = [Level(part.parameters, Spot(name, first + index, index, count))] if part else []
                outer.append(Level(merge.parameters, Spot(name, first + index, index, count)))
                agree(method, shared, outer)
                for entry, (model, source) in zip(entries, inner.items(), strict=True):
                    spot = Spot(source, first + index, index, count)
                    agree(method, each[model], [Level(entry.parameters, spot), *outer])
        first += count


def agree(method, theirs, levels):
    for name, value in theirs.items():
        parameter = method.parameter(RENAMED.get(name, name))
        if without_effect(method.name, name) is None:
            wanted = pytest.approx(value, rel=1e-12, abs=0) if isinstance(value, float) else value
            assert resolve(parameter, levels) == wanted, name


# --- the same bits ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """Three fine-tunes of one float32 model, and an adapter."""
    world = MergeWorld(tmp_path_factory.mktemp("sources"))
    for seed, name in enumerate(("base", "a", "b"), start=1):
        world.model(name, seed=seed, layers=LAYERS, dtype="float32", tuned_from=9)
    return world


@pytest.fixture
def world(sources, tmp_path, monkeypatch):
    world = MergeWorld(tmp_path / "world")
    world.root.mkdir()
    for name in ("base", "a", "b"):
        world.put(name, sources.root / name)
    monkeypatch.chdir(world.root)
    return world


def mergekits(world, recipe):
    """What mergekit makes of a YAML in this folder."""
    from mergekit.config import MergeConfiguration
    from mergekit.merge import run_merge
    from mergekit.options import MergeOptions

    out = world.root.parent / "theirs"
    config = MergeConfiguration.model_validate(yaml.safe_load(recipe))
    run_merge(config, str(out), MergeOptions(copy_tokenizer=False, write_model_card=False, quiet=True))
    return pico.read_tensors(out)


def ours(world, recipe):
    """What a build of the YAML makes."""
    (world.root / "mix.yml").write_text(recipe)
    world.path = world.root / "mix.yml"
    world.build()
    return world.tensors("mix")


RECIPES = {
    "linear": """
        merge_method: linear
        models:
          - model: a
            parameters: {weight: [0.3, 0.8]}
          - model: b
            parameters: {weight: [{filter: mlp, value: 0.9}, {filter: embed, value: 2}, {value: [0.2, 0.7, 0.4]}]}
        dtype: float32
    """,
    "linear with the base as an input": """
        merge_method: linear
        base_model: base
        models: [{model: a, parameters: {weight: 0.3}}, {model: b}]
        parameters: {weight: 0.6, normalize: false}
        dtype: float32
    """,
    "linear over slices with filters of layers": """
        merge_method: linear
        parameters: {weight: [{filter: layers.3., value: 0.9}, {filter: layers.1, value: 0.2}, {value: 0.4}]}
        slices:
          - sources:
              - {model: a, layer_range: [0, 2]}
              - {model: b, layer_range: [2, 4], parameters: {weight: [{filter: mlp, value: 0.7}]}}
          - sources: [{model: b, layer_range: [3, 5]}, {model: a, layer_range: [1, 3]}]
        dtype: float32
    """,
    "task arithmetic with all that is ignored": """
        merge_method: task_arithmetic
        base_model: base
        models:
          - {model: base, parameters: {weight: 5}}
          - {model: a, parameters: {weight: [0.3, 0.8], density: 0.1}}
          - {model: b, parameters: {weight: {filter: self_attn, value: 0.9}}}
        parameters: {weight: -0.4, lambda: 0.7, normalize: true, int8_mask: true, rescale: true, foo: 1}
        normalize: false
        dtype: float32
    """,
    "task arithmetic over slices": """
        merge_method: task_arithmetic
        base_model: base
        slices:
          - sources:
              - {model: base, layer_range: [0, 2]}
              - {model: a, layer_range: [1, 3], parameters: {weight: [0.25, 0.75]}}
            parameters: {lambda: 0.5}
          - sources: [{model: base, layer_range: [2, 5]}, {model: b, layer_range: [2, 5], parameters: {weight: 0.5}}]
          - sources: [{model: base, layer_range: [4, 5]}]
        dtype: float32
    """,
    "slices with bases of their own": """
        merge_method: task_arithmetic
        base_model: base
        parameters: {weight: [{filter: layers.3., value: 0.9}, {filter: embed, value: 0.25}, {value: 0.4}], lambda: 0.7}
        slices:
          - sources: [{model: base, layer_range: [0, 2]}, {model: a, layer_range: [1, 3]}]
          - sources: [{model: base, layer_range: [2, 4]}, {model: b, layer_range: [2, 4]}]
            base_model: b
            parameters: {lambda: [0.5, 1.5]}
          - sources: [{model: a, layer_range: [4, 5]}, {model: b, layer_range: [3, 4]}]
            base_model: b
        dtype: float32
    """,
    "a stack": """
        merge_method: passthrough
        slices:
          - sources: [{model: a, layer_range: [0, 3]}]
          - sources:
              - model: b
                layer_range: [1, 4]
                parameters: {scale: [{filter: o_proj, value: 0.0}, {filter: down_proj, value: [0.25, 0.7]}, {value: 1}]}
          - sources: [{model: a, layer_range: [2, 5]}]
        dtype: float32
    """,
    "a stack whose ends are another's": """
        merge_method: passthrough
        slices:
          - sources: [{model: a, layer_range: [0, 0]}]
          - sources: [{model: b, layer_range: [0, 4]}]
          - sources: [{model: a, layer_range: [5, 5]}]
        dtype: float32
    """,
    "a stack with the head of another model": """
        merge_method: passthrough
        slices:
          - sources: [{model: a, layer_range: [0, 3]}]
          - sources: [{model: b, layer_range: [0, 0]}]
        dtype: float32
    """,
    "a stack between the ends of two models": """
        merge_method: passthrough
        slices:
          - sources: [{model: b, layer_range: [2, 2]}]
          - sources: [{model: a, layer_range: [1, 4]}]
          - sources: [{model: base, layer_range: [0, 0]}]
        dtype: float32
    """,
    "ties of the base alone": """
        merge_method: ties
        base_model: base
        models: [{model: base}]
        dtype: float32
    """,
    "a module": """
        merge_method: linear
        parameters: {weight: 0.5}
        modules:
          default:
            parameters: {weight: [{filter: mlp, value: 0.75}]}
            models: [{model: a}, {model: b, parameters: {weight: [{filter: norm, value: 0.1}]}}]
        dtype: float32
    """,
}


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_builds_to_the_bits_of_mergekit(world, name):
    recipe = textwrap.dedent(RECIPES[name])
    theirs = mergekits(world, recipe)
    made = ours(world, recipe)
    assert sorted(made) == sorted(theirs)
    assert different(made, theirs) == []


def test_a_model_with_an_adapter_is_what_mergekit_merges_first(world):
    world.lora("style", "a", seed=7)
    recipe = "merge_method: linear\ndtype: float32\nmodels:\n- {model: a+style, parameters: {weight: 1}}\n"
    made = ours(world, recipe + "- {model: b, parameters: {weight: 0}}\n")
    out = pico.read_tensors(adapted(world))
    assert sorted(name for name in out if not same(out[name], world.source("a")[name])) != []
    assert different(made, out) == []


def adapted(world):
    """The model with its adapter as mergekit merges it: by PEFT."""
    from mergekit.common import ModelReference

    return Path(ModelReference.parse("a+style").merged(cache_dir=str(world.root.parent / "merged")).model.path)


def test_dtype_of_the_output_is_rounded_to_once(world):
    recipe = "merge_method: linear\ndtype: float32\nout_dtype: bfloat16\nmodels:\n"
    recipe += "- {model: a, parameters: {weight: 0.3}}\n- {model: b, parameters: {weight: 0.9}}\n"
    theirs = mergekits(world, recipe)
    assert different(ours(world, recipe), theirs) == []
    assert {dtype for dtype, _ in theirs.values()} == {"BF16"}


def test_a_chain_of_recipes_is_one_build(world):
    """Two documents: mergekit-multi writes the first to the disk, and the second reads it."""
    first = (
        "merge_method: linear\nmodels:\n- {model: a, parameters: {weight: 1}}\n- {model: b, parameters: {weight: 3}}\n"
    )
    second = "merge_method: task_arithmetic\nbase_model: base\nmodels: [{model: step, parameters: {weight: 0.5}}]\n"
    made = ours(world, f"name: step\ndtype: float32\n{first}---\ndtype: float32\n{second}")
    mergekits(world, f"dtype: float32\n{first}")
    (world.root.parent / "theirs").rename(world.root / "step")
    assert different(made, mergekits(world, f"dtype: float32\n{second}")) == []
    assert not (world.out / "step").exists()


def test_values_of_the_law_are_of_every_form():
    """The law above is worth what its recipes are: they reach constants, gradients and choices."""
    recipe = "merge_method: linear\nmodels:\n- {model: a/a, parameters: {weight: %s}}\n"
    forms = {"0.5": Constant, "[0.5, 1]": Gradient, "[{filter: mlp, value: 1}]": Choices}
    for text, form in forms.items():
        _, spec = imported(recipe % text)
        assert isinstance(spec.artifacts["made"].models[0].parameters["weight"], form)
