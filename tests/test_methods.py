"""Every method on whole models: mergekit's numbers, and the same bytes whatever the machine has to work with."""

import sys
from functools import partial
from itertools import count

import numpy as np
import pico
import pytest
from merging import MergeWorld
from recipes import RECIPES

from modelbuild.engine.run import Limits
from modelbuild.engine.stretch import LEAST_TILE
from modelbuild.methods.registry import methods

SIZE = {"layers": 2, "hidden": 64, "intermediate": 320, "vocab": 264}

IDS = [recipe.id for recipe in RECIPES]


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """A base and three models tuned from it, in float32 and in bfloat16."""
    root = tmp_path_factory.mktemp("sources")
    for dtype in ("float32", "bfloat16"):
        folder = root / dtype
        pico.save_model(folder / "base", seed=1, dtype=dtype, **SIZE)
        for number in range(3):
            pico.save_model(folder / f"m{number}", seed=10 + number, tuned_from=1, dtype=dtype, **SIZE)
    return root


@pytest.fixture
def merges(tmp_path, sources):
    """Builds a recipe from the sources of a dtype, with options, each time in a world of its own."""

    numbers = count()

    def made(recipe, dtype="float32", **options):
        root = tmp_path / str(next(numbers))
        root.mkdir()
        world = MergeWorld(root)
        for name in ("base", *recipe.names):
            world.put(name, sources / dtype / name)
        world.merge(recipe.toml())
        world.build(**options)
        return world

    return made


def test_there_is_a_recipe_for_every_method_that_merges_models():
    simple = {"linear", "lerp", "lora", "moe", "passthrough", "task_arithmetic"}
    built = {found.name for found in methods().values() if found.step is not None}
    assert {recipe.method for recipe in RECIPES} == built - simple


@pytest.mark.parametrize("recipe", RECIPES, ids=IDS)
def test_every_method_gives_what_mergekit_gives_in_float64(recipe, merges, sources):
    if not recipe.same:
        pytest.skip("not the same by definition: see the method's own tests")
    merge_tensors = pytest.importorskip("mergekit.merge_methods").merge_tensors
    import torch

    ours = merges(recipe).floats("m")
    folder = sources / "float32"
    given = [pico.read_floats(folder / name) for name in (["base"] if recipe.based else []) + recipe.names]
    for name, values in ours.items():
        wide = [torch.from_numpy(tensors[name]).double() for tensors in given]
        base = 0 if recipe.based else None
        theirs = merge_tensors(wide, recipe.method, parameters=recipe.mergekit(), base_index=base).numpy()
        limit = recipe.tolerance * np.sqrt(np.mean(theirs**2))
        assert np.abs(values - theirs).max() <= limit, name


@pytest.mark.parametrize("recipe", RECIPES, ids=IDS)
def test_the_same_bytes_for_any_threads_memory_and_tile(recipe, merges, monkeypatch):
    expected = merges(recipe, "bfloat16", jobs=1).bytes("m")
    assert merges(recipe, "bfloat16", jobs=4).bytes("m") == expected
    assert merges(recipe, "bfloat16", jobs=2, memory="1MB").bytes("m") == expected
    monkeypatch.setattr(sys.modules["modelbuild.build"], "Limits", partial(Limits, tile=LEAST_TILE))
    assert merges(recipe, "bfloat16", jobs=3).bytes("m") == expected


@pytest.mark.parametrize("recipe", RECIPES, ids=IDS)
def test_computed_inputs_give_the_bytes_that_stored_ones_give(recipe, merges, sources, tmp_path):
    """A model that is itself merged, at the same values, changes nothing: it is spilled once and read back."""
    plain = merges(recipe, "bfloat16").bytes("m")
    world = MergeWorld(tmp_path)
    for name in ("base", *recipe.names):
        world.put(name if name != "m0" else "source", sources / "bfloat16" / name)
    doubled = '[merge.m0]\nmethod = "linear"\nnormalize = false\nmodels = [ { model = "twice", weight = 0.5 } ]\n'
    twice = '[merge.twice]\nmethod = "passthrough"\nmodels = [ { model = "source", scale = 2.0 } ]\n'
    world.merge(doubled + twice + recipe.toml())
    world.build("m")
    assert {name: data for name, data in world.bytes("m").items() if name.endswith(".safetensors")} == {
        name: data for name, data in plain.items() if name.endswith(".safetensors")
    }
