"""Every method beside mergekit 0.1.5: its defaults, whole models, random masks, selections, and where we differ."""

import numpy as np
import pico
import pytest
import torch
from kernel_tools import raw, values
from merging import MergeWorld
from method_tools import applied
from recipes import RECIPES, VOTES, Recipe, with_

from modelbuild.digest import identity
from modelbuild.kernels.random import uniform
from modelbuild.methods.registry import methods

mergekit = pytest.importorskip("mergekit.merge_methods")
pytestmark = pytest.mark.mergekit
SIZE = {"layers": 2, "hidden": 32, "intermediate": 96, "vocab": 64}


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """A base and three models tuned from it, in float32."""
    world = MergeWorld(tmp_path_factory.mktemp("sources"))
    world.model("base", seed=1, dtype="float32", **SIZE)
    for number in range(3):
        world.model(f"m{number}", seed=10 + number, tuned_from=1, dtype="float32", **SIZE)
    return world


def built(sources, root, recipe):
    """The tensors of a recipe, as float32."""
    world = MergeWorld(root)
    for name in ("base", *recipe.names):
        world.put(name, sources.root / name)
    world.merge(recipe.toml()).build()
    return world.floats("m")


def inputs_of(sources, recipe, tensor):
    """The base, where there is one, and the models, in float64."""
    names = (["base"] if recipe.based else []) + recipe.names
    return [torch.from_numpy(sources.floats(name)[tensor]).double() for name in names]


def theirs(inputs, name, based=True, **parameters):
    """What mergekit makes of tensors."""
    given = [torch.as_tensor(array) for array in inputs]
    with torch.no_grad():
        return mergekit.merge_tensors(given, name, parameters=parameters, base_index=0 if based else None).numpy()


def near(found, expected, tolerance=1e-6):
    assert np.abs(found - expected).max() <= tolerance * np.sqrt(np.mean(np.square(expected, dtype=np.float64)))


# --- what a recipe means ----------------------------------------------------------------------------------------------

OURS = {"lerp", "lora", "moe"}
"""Methods that mergekit does not have as a method."""

SPELLED = {"nuslerp_flatten": "flatten", "nuslerp_row_wise": "row_wise"}
IDLE = {"int8_mask", "density of task_arithmetic", "rescale of task_arithmetic"}
"""What mergekit takes and what changes no result."""


def test_parameters_have_mergekits_names_and_defaults():
    for name, found in methods().items():
        if name in OURS or name not in {spec.spec.name for spec in mergekit.registered_methods()}:
            continue
        for parameter in mergekit.get(name).spec.parameters:
            if not IDLE.isdisjoint({parameter.name, f"{parameter.name} of {name}"}):
                continue
            own = found.parameter(SPELLED.get(parameter.name, parameter.name))
            assert own is not None, (name, parameter.name)
            assert (own.scope == "merge") == (parameter.scope.name == "SHARED"), (name, parameter.name)
            required = not isinstance(parameter.default, bool | int | float | None)
            assert own.default == (None if required else parameter.default), (name, parameter.name)


def test_every_method_that_mergekit_has_is_ours():
    assert {found.spec.name for found in mergekit.registered_methods()} <= set(methods())


# --- whole models -----------------------------------------------------------------------------------------------------


def mergekits(sources, out, recipe):
    """What mergekit makes of a recipe, from the same files, in float64."""
    from mergekit.config import MergeConfiguration
    from mergekit.merge import run_merge
    from mergekit.options import MergeOptions

    entries = [{"model": str(sources.root / f"m{i}"), "parameters": own} for i, own in enumerate(recipe.per_model)]
    config = {"merge_method": recipe.method, "models": entries, "dtype": "float64"}
    config["parameters"] = dict(recipe.shared if recipe.theirs is None else recipe.theirs)
    config |= {"base_model": str(sources.root / "base")} if recipe.based else {}
    options = MergeOptions(copy_tokenizer=False, write_model_card=False, quiet=True)
    run_merge(MergeConfiguration.model_validate(config), str(out), options)
    return {name: array for name, (_, array) in pico.read_tensors(out).items()}


WHOLE = [recipe for recipe in RECIPES if recipe.same and recipe.method not in ("linear", "task_arithmetic")]


@pytest.mark.parametrize("recipe", WHOLE, ids=lambda recipe: recipe.id)
def test_whole_models_are_mergekits(sources, tmp_path, recipe):
    (tmp_path / "ours").mkdir()
    ours, other = built(sources, tmp_path / "ours", recipe), mergekits(sources, tmp_path / "theirs", recipe)
    assert sorted(ours) == sorted(other)
    assert {array.dtype for array in other.values()} == {np.dtype("<f8")}
    for name, expected in other.items():
        near(ours[name], expected)


# --- random masks -----------------------------------------------------------------------------------------------------

RANDOM = [
    Recipe("dare_linear", {}, VOTES),
    Recipe("dare_linear", {"rescale": False, "normalize": True}, VOTES),
    Recipe("dare_ties", {"normalize": True, "lambda": 0.7}, VOTES),
    # Where 0.5 and −0.4 agree, dividing by 0.1 makes ten times as much of every rounding.
    Recipe("della", {}, with_(epsilon=0.1), tolerance=2e-6),
    Recipe("della_linear", {"normalize": True}, with_(epsilon=0.1)),
]


@pytest.mark.parametrize("recipe", RANDOM, ids=lambda recipe: recipe.id)
def test_random_methods_are_mergekits_given_our_random_numbers(sources, tmp_path, monkeypatch, recipe):
    ours = built(sources, tmp_path, recipe)
    keys = []

    def bernoulli(probabilities, **_):
        numbers = uniform(keys.pop(0), 0, probabilities.numel()).reshape(probabilities.shape)
        return torch.from_numpy(numbers < probabilities.to(torch.float32).numpy()).to(probabilities.dtype)

    monkeypatch.setattr(torch, "bernoulli", bernoulli)
    stream = recipe.method.split("_")[0]
    for tensor, found in ours.items():
        keys += [int(identity("random/1", 0, stream, tensor, name)[:16], 16) for name in recipe.names]
        expected = theirs(inputs_of(sources, recipe, tensor), recipe.method, **recipe.mergekit())
        near(found, expected, recipe.tolerance)
        assert keys == []


@pytest.mark.parametrize(("name", "density", "epsilon"), [("dare_linear", 0.3, None), ("della_linear", 0.5, 0.3)])
def test_random_masks_keep_as_much_and_what_mergekits_keep(name, density, epsilon):
    """By the rank in its row: all the same chance, or one that rises from density − epsilon to density + epsilon."""
    rng = np.random.default_rng(0)
    base, model = np.zeros((400, 50), np.float32), np.abs(rng.standard_normal((400, 50))).astype(np.float32) + 1
    says = {"weight": 1.0, "density": density, "rescale": False} | ({} if epsilon is None else {"epsilon": epsilon})
    torch.manual_seed(0)
    kept = [array != 0 for array in (applied(name, [model], base, says), theirs([base, model], name, **says))]
    ranks = model.argsort(axis=1).argsort(axis=1)
    for part in range(5):
        inside = (ranks // 10) == part
        low, high = density - (epsilon or 0), density + (epsilon or 0)
        chance = low + (high - low) * (10 * part + 4.5) / 49
        shares = [mask[inside].mean() for mask in kept]
        assert shares == pytest.approx([chance] * 2, abs=5 * np.sqrt(0.25 / inside.sum()))


# --- selections -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("density", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("name", ["ties", "breadcrumbs"])
def test_of_equal_magnitudes_as_many_are_kept_as_mergekit_keeps(name, density):
    """bfloat16 fine-tunes have many: what is above the threshold is kept by both, what is below by none."""
    rng = np.random.default_rng(0)
    base = values(raw(rng.standard_normal((40, 50)), "BF16"), "BF16")
    model = values(raw(base + 3e-3 * rng.standard_normal((40, 50)), "BF16"), "BF16")
    says = {"weight": 1.0, "density": density}
    ours, other = applied(name, [model], base, says), theirs([base, model], name, **says)
    size, kept = np.abs(model - base), int(density * base.size)
    top = int(0.01 * base.size) if name == "breadcrumbs" else 0
    ranked = np.sort(size.reshape(-1))[::-1]
    edges = {ranked[min(top + kept, base.size) - 1], *([ranked[top - 1]] if top else [])}
    differ = ours != other
    assert set(size[differ]) <= edges
    assert (~np.isin(size, list(edges))).sum() > base.size / 4
    zeros_kept = 0 in edges
    assert zeros_kept or (ours != base).sum() == (other != base).sum() == kept


def test_sce_is_mergekits_but_for_variances_at_the_threshold(sources, tmp_path):
    recipe = next(recipe for recipe in RECIPES if recipe.method == "sce")
    for tensor, found in built(sources, tmp_path, recipe).items():
        expected = theirs(inputs_of(sources, recipe, tensor), "sce", **recipe.mergekit())
        away = np.abs(found - expected) > 1e-6 * np.sqrt(np.mean(expected**2))
        assert away.sum() <= 1


def test_arcee_fusion_is_mergekits_but_for_importances_at_the_threshold(sources, tmp_path):
    recipe = next(recipe for recipe in RECIPES if recipe.method == "arcee_fusion")
    changed = 0
    for tensor, found in built(sources, tmp_path, recipe).items():
        inputs = inputs_of(sources, recipe, tensor)
        expected = theirs(inputs, "arcee_fusion")
        away = np.abs(found - expected) > 1e-6 * np.sqrt(np.mean(expected**2))
        assert away.sum() <= max(1, found.size // 500), tensor
        changed += (found != inputs[0].numpy()).sum()
    assert changed > 100


# --- closer than mergekit ---------------------------------------------------------------------------------------------

NARROW = [
    ("nuslerp", {"weight": (0.6, 0.4)}, {"weight": [0.6, 0.4]}, False),
    ("nuslerp", {"weight": (0.6, 0.4), "flatten": False}, {"weight": [0.6, 0.4], "nuslerp_flatten": False}, True),
    ("karcher", {}, {}, False),
    ("model_stock", {}, {}, True),
    ("model_stock", {"filter_wise": True}, {"filter_wise": True}, True),
]


@pytest.mark.parametrize(
    ("name", "says", "parameters", "based"), NARROW, ids=[f"{n[0]}-{i}" for i, n in enumerate(NARROW)]
)
def test_bfloat16_results_are_closer_to_float64_than_mergekits(name, says, parameters, based):
    rng = np.random.default_rng(0)
    common = rng.standard_normal((60, 80))
    narrow = [raw(common + 3e-2 * rng.standard_normal(common.shape), "BF16") for _ in range(2 + based)]
    wide = [values(array, "BF16") for array in narrow]
    truth = theirs([array.astype(np.float64) for array in wide], name, based, **parameters)
    halves = [torch.from_numpy(array.view(np.int16)).view(torch.bfloat16) for array in narrow]
    merged = mergekit.merge_tensors(halves, name, parameters=parameters, base_index=0 if based else None)
    base, models = (wide[0], wide[1:]) if based else (None, wide)
    ours = applied(name, models, base, says, dtype="BF16")
    off = [np.sqrt(np.mean((found - truth) ** 2)) for found in (ours, merged.float().numpy())]
    assert off[0] < off[1]
    # As near as rounding once allows: half a unit in the last place of 8 bits.
    assert (np.abs(ours - truth) <= 2.0**-8 * np.abs(truth) + 1e-6).all()
    assert not (np.abs(merged.float().numpy() - truth) <= 2.0**-8 * np.abs(truth) + 1e-6).all()


# --- otherwise, on purpose --------------------------------------------------------------------------------------------


def turned(angle, size=2000):
    """Two unit vectors whose angle is π less `angle`, in float32."""
    rng = np.random.default_rng(0)
    one, other = rng.standard_normal((2, size))
    one /= np.linalg.norm(one)
    other -= (other @ one) * one
    other /= np.linalg.norm(other)
    return one.astype(np.float32), (-np.cos(angle) * one + np.sin(angle) * other).astype(np.float32)


def test_between_nearly_opposite_deltas_is_an_arc_where_mergekits_float32_has_a_line():
    one, other = turned(1e-4)
    base = np.zeros_like(one)
    ours = applied("nuslerp", [one, other], base, {"weight": 1})
    assert np.linalg.norm(theirs([base, one, other], "nuslerp", weight=[1, 1])) < 1e-3
    assert np.linalg.norm(ours) == pytest.approx(1, rel=1e-3)


def test_between_opposite_models_is_a_line_where_mergekits_float64_has_anything():
    rng = np.random.default_rng(0)
    one = rng.standard_normal(24).astype(np.float32)
    other = np.float32(-3.7) * one
    line = 0.75 * one + 0.25 * other
    ours = applied("nuslerp", [one, other], None, {"weight": (3, 1)})
    near(ours, line, 1e-5)
    wide = [array.astype(np.float64) for array in (one, other)]
    assert np.linalg.norm(theirs(wide, "nuslerp", False, weight=[3, 1]) - line) > 1e3


def test_deltas_that_are_all_zero_leave_the_base_for_any_number_of_models_where_mergekit_refuses_three():
    base = np.random.default_rng(0).standard_normal((4, 6)).astype(np.float32)
    for name in ("nuslerp", "multislerp", "model_stock"):
        says = {} if name == "model_stock" else {"weight": 1}
        assert np.array_equal(applied(name, [base] * 2, base, says), base)
    assert np.array_equal(applied("multislerp", [base] * 3, base, {"weight": 1}), base)
    with pytest.raises(ValueError, match="antipodal"):
        theirs([base] * 4, "multislerp", weight=[1, 1, 1])


def test_a_base_given_to_karcher_is_no_model_as_it_is_in_mergekit(sources, tmp_path):
    based = Recipe("karcher", {}, ({}, {}), based=True)
    (tmp_path / "based").mkdir()
    (tmp_path / "plain").mkdir()
    ours = built(sources, tmp_path / "based", based)
    plain = built(sources, tmp_path / "plain", Recipe("karcher", {}, ({}, {}), based=False))
    for tensor, found in ours.items():
        inputs = inputs_of(sources, based, tensor)
        assert np.array_equal(found, plain[tensor])
        counted = theirs(inputs, "karcher")
        near(applied("karcher", [array.numpy() for array in inputs]), counted)
        assert np.abs(found - counted).max() > 1e-3
