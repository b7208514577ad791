"""Every method on whole models: mergekit's numbers, and the same bytes whatever the machine has to work with."""

from importlib import import_module
from itertools import count

import numpy as np
import pico
import pytest
from merging import MergeWorld
from recipes import RECIPES

from modelbuild import checksum
from modelbuild.engine import block, program
from modelbuild.engine.run import Limits
from modelbuild.engine.stretch import LEAST_TILE, Stretch
from modelbuild.methods import passthrough
from modelbuild.methods.registry import methods

SIZE = {"layers": 1, "hidden": 64, "intermediate": 320, "vocab": 264}

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
    built = {found.name for found in methods().values() if found.step is not None and found.takes == "models"}
    assert {recipe.method for recipe in RECIPES} == built - {"moe"}  # its tensors are others: test_moe.py


@pytest.mark.parametrize("recipe", [recipe for recipe in RECIPES if recipe.same], ids=lambda recipe: recipe.id)
def test_every_method_gives_what_mergekit_gives_in_float64(recipe, merges, sources):
    """What is not the same by definition is held to mergekit in test_methods_mergekit.py."""
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


# --- the same bytes ---------------------------------------------------------------------------------------------------

CONDITIONS = {
    "one thread": {"jobs": 1},
    "four threads": {"jobs": 4},
    "little memory": {"jobs": 4, "memory": "1MB"},
    "small tiles": {"jobs": 3, "tile": LEAST_TILE},
    "small parts": {"jobs": 4, "tile": LEAST_TILE, "part": 4 * LEAST_TILE},
    "hash seed 1": {"seed": 1},
    "hash seed 2": {"seed": 2, "jobs": 3, "memory": "1MB"},
}
MERGES = {f"r{i}": recipe.toml(f"r{i}") for i, recipe in enumerate(RECIPES)}
MERGES["lora"] = """[merge.lora]
method = "lora"
base = "base"
adapters = [ { adapter = "narrow", weight = 0.7 }, { adapter = "wide", weight = -0.5 } ]
"""
NAMES = dict(zip(MERGES, [*IDS, "lora"], strict=True))


def put_all(root, sources):
    """A world with every recipe as a merge, and a merge of adapters."""
    world = MergeWorld(root)
    for name in ("base", "m0", "m1", "m2"):
        world.put(name, sources / "bfloat16" / name)
    for seed, (name, rank) in enumerate({"narrow": 7, "wide": 200}.items()):
        world.lora(name, "base", seed=seed, rank=rank, targets=("q_proj", "down_proj"))
    return world.merge("\n".join(MERGES.values()))


def watched(monkeypatch, tile=None, part=None):
    """Sets the size of tiles and parts, and gives the limits of builds and the sizes of tiles as they come."""
    limits, sizes = [], []
    plain = Stretch.tile

    def limited(*args, **options):
        limits.append(Limits(*args, **options, **({} if tile is None else {"tile": tile})))
        return limits[-1]

    def tile_of(self, begin, end):
        sizes.append(end - begin)
        return plain(self, begin, end)

    monkeypatch.setattr(import_module("modelbuild.build"), "Limits", limited)
    monkeypatch.setattr(Stretch, "tile", tile_of)
    if part is not None:
        for module in (checksum, block, program):
            monkeypatch.setattr(module, "BLOCK", part)
    return limits, sizes


@pytest.fixture(scope="module")
def everywhere(tmp_path_factory, sources):
    """The weight files of every merge, and what was seen of the build, by condition; each is built once."""
    found = {}
    for condition, options in CONDITIONS.items():
        world = put_all(tmp_path_factory.mktemp("everywhere"), sources)
        options = dict(options)
        seen = None
        with pytest.MonkeyPatch.context() as patch:
            if "seed" in options:
                words = [f"--{key}={value}" for key, value in options.items() if key != "seed"]
                ran = world.run("build", *words, PYTHONHASHSEED=str(options["seed"]))
                assert ran.returncode == 0, ran.stderr
            else:
                seen = watched(patch, options.pop("tile", None), options.pop("part", None))
                world.build(**options)
        files = {name: world.bytes(name) for name in MERGES}
        found[condition] = ({name: weights(data) for name, data in files.items()}, seen)
    return found


def weights(files):
    return {name: data for name, data in files.items() if name.endswith(".safetensors")}


@pytest.mark.parametrize("condition", [condition for condition in CONDITIONS if condition != "one thread"])
@pytest.mark.parametrize("name", MERGES, ids=NAMES.get)
def test_the_same_bytes_for_any_threads_memory_tile_part_and_hash_seed(everywhere, name, condition):
    assert everywhere[condition][0][name] == everywhere["one thread"][0][name]


def test_the_conditions_are_as_different_as_they_say(everywhere):
    seen = {condition: found[1] for condition, found in everywhere.items() if found[1] is not None}
    threads = {condition: {limit.threads for limit in limits} for condition, (limits, _) in seen.items()}
    assert threads["one thread"] == {1}
    assert threads["four threads"] == threads["little memory"] == {4}
    # The factors of adapters are read whole, whatever a tile is.
    tiles = {condition: sizes for condition, (_, sizes) in seen.items()}
    whole = SIZE["hidden"] * SIZE["intermediate"]
    assert {condition for condition, sizes in tiles.items() if whole in sizes} == {"one thread", "four threads"}
    assert len(tiles["small tiles"]) > 2 * len(tiles["one thread"]) < len(tiles["small parts"])
    made = [everywhere["one thread"][0][name] for name in MERGES]
    assert len({data for files in made for data in files.values()}) == len(MERGES)


def test_a_method_that_knows_its_tiles_is_found_out(tmp_path, sources, monkeypatch):
    """The negative control: a value that depends on where a stretch begins."""
    plain = passthrough.METHOD.operation.prepare

    def prepare(self, node, whole):
        kernel = plain(self, node, whole)

        def run(start, stop, inputs, out, scratch):
            kernel(start, stop, inputs, out, scratch)
            out[0] = start % 1000

        return run

    monkeypatch.setattr(passthrough.METHOD.operation, "prepare", prepare)
    made = []
    for name, tile in (("whole", None), ("tiles", LEAST_TILE)):
        root = tmp_path / name
        root.mkdir()
        world = put_all(root, sources)
        with pytest.MonkeyPatch.context() as patch:
            watched(patch, tile)
            target = next(key for key, name in NAMES.items() if name.startswith("passthrough"))
            world.build(target)
        made.append(weights(world.bytes(target)))
    assert made[0] != made[1]


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
    assert weights(world.bytes("m")) == weights(plain)
