"""The same bytes on any number of threads, in any memory, tile size, hash seed and cache state.

The Modelfile uses the methods of one pass on inputs of three dtypes; what it builds is compared file by file with a
first build. tests/test_methods.py does the same for the others.
"""

import sys
from functools import partial

import pytest
from recipes import RECIPES
from world import World

from modelbuild import checksum
from modelbuild.engine import block as engine_block
from modelbuild.engine import program as engine_program
from modelbuild.engine import run
from modelbuild.methods.registry import methods
from modelbuild.modelfile.parse import load
from modelbuild.modelfile.spec import Merge

TARGETS = ("stack", "sum", "cast")
SIZE = {"layers": 2, "hidden": 64, "intermediate": 320, "vocab": 264}

MODELFILE = """
    [settings]
    default = ["stack", "sum", "cast"]

    [base.bf16]
    source = "bf16"

    [base.f16]
    source = "f16"

    [base.f32]
    source = "f32"

    [adapter.narrow]
    source = "narrow"

    [adapter.wide]
    source = "wide"

    [merge.adapted]
    method = "lora"
    base = "bf16"
    adapters = [ { adapter = "narrow", weight = 0.75 }, { adapter = "wide", weight = [0.25, -0.5] } ]

    [merge.mixed]
    method = "linear"
    normalize = false
    models = [ { model = "adapted", weight = 0.5 }, { model = "f16", weight = 0.3 }, { model = "f32", weight = 0.2 } ]

    [merge.blend]
    method = "lerp"
    base = "mixed"
    models = [ { model = "f16", t = { points = [[0, 0.9], [1, 0.1]], rest = 0.35 } } ]

    [merge.sum]
    method = "task_arithmetic"
    base = "f32"
    normalize = true
    lambda = 0.7
    models = [ { model = "bf16", weight = 0.6 }, { model = "adapted", weight = 0.3 } ]

    [[merge.stack.slices]]
    layers = [0, 2]
    models = [ { model = "blend" } ]

    [[merge.stack.slices]]
    layers = [1, 2]
    models = [ { model = "adapted", scale = [ { match = "o_proj", value = 0.5 }, { match = "norm", value = 1.0 } ] } ]

    [merge.stack]
    method = "passthrough"
    config = { max_position_embeddings = 32 }

    [merge.cast]
    method = "passthrough"
    dtype = "float16"
    models = [ { model = "f32" } ]
"""


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """The world that every build here starts from, as a copy: no cache, nothing built."""
    root = tmp_path_factory.mktemp("determinism") / "world"
    root.mkdir()
    world = World(root)
    for seed, (name, dtype) in enumerate((("bf16", "bfloat16"), ("f16", "float16"), ("f32", "float32")), 1):
        world.model(name, seed=seed, dtype=dtype, shards=seed, **SIZE)
    world.lora("narrow", "bf16", seed=5, rank=7, targets=("q_proj", "down_proj"))
    world.lora("wide", "bf16", seed=6, rank=200, targets=("q_proj", "o_proj"), embedding=True, dtype="bfloat16")
    return world.modelfile(MODELFILE)


@pytest.fixture(scope="module")
def first(sources):
    """The files of every target, built from nothing by one thread."""
    world = sources.from_nothing(jobs=1)
    return {name: world.bytes(name) for name in TARGETS}


@pytest.fixture
def fresh(sources):
    """A copy of the world in which nothing was built yet."""
    return sources.copy()


def assert_same(world, first):
    for name in TARGETS:
        found = world.bytes(name)
        assert sorted(found) == sorted(first[name])
        assert [file for file, data in found.items() if data != first[name][file]] == []


def test_every_method_that_is_built_is_tried_here_or_in_its_own_tests(sources):
    used = {artifact.method for artifact in load(str(sources.path)).artifacts.values() if isinstance(artifact, Merge)}
    used |= {recipe.method for recipe in RECIPES} | {"moe"}  # test_moe.py and test_moe_routers.py
    assert used == {name for name, method in methods().items() if method.step is not None or method.takes == "adapters"}


@pytest.mark.parametrize("memory", ["64MB", "2GB"])
@pytest.mark.parametrize("jobs", [1, 4])
def test_threads_and_memory_change_no_byte(fresh, first, jobs, memory):
    fresh.build(jobs=jobs, memory=memory)
    assert_same(fresh, first)


@pytest.mark.parametrize(("tile", "block"), [(4096, 65536), (1000, 4000), (333, 3 * 1332)])
def test_small_tiles_and_parts_change_no_byte_of_the_weights(fresh, first, monkeypatch, tile, block):
    # Blocks are whole numbers of tiles of four bytes an element, as they are at their real sizes.
    monkeypatch.setattr(run, "TILE", tile)
    monkeypatch.setattr(sys.modules["modelbuild.build"], "Limits", partial(run.Limits, tile=tile))
    for module in (checksum, engine_block, engine_program):
        monkeypatch.setattr(module, "BLOCK", block)
    fresh.build(jobs=4)
    for name in TARGETS:
        assert weights(fresh.bytes(name)) == weights(first[name])


def weights(files):
    return {name: data for name, data in files.items() if name.endswith(".safetensors")}


@pytest.mark.parametrize("seed", range(10))
def test_the_hash_seed_changes_no_byte(fresh, first, seed):
    ran = fresh.run("build", PYTHONHASHSEED=str(seed))
    assert ran.returncode == 0, ran.stderr
    assert_same(fresh, first)


def test_a_warm_cache_changes_no_byte(fresh, first):
    # Every artifact on the way is in the cache whole before the targets are built.
    fresh.build("adapted", "mixed", "blend")
    result = fresh.build()
    assert result["adapted"].tensors.computed == 0
    assert_same(fresh, first)


def test_kept_intermediates_change_no_byte_of_the_weights(fresh, first):
    for name in ("adapted", "mixed", "blend"):
        fresh.edit(f"[merge.{name}]", f"[merge.{name}]\n    keep = true")
    fresh.build("stack")
    fresh.build("sum", "cast")
    for name in TARGETS:
        assert weights(fresh.bytes(name)) == weights(first[name])


def test_every_target_alone_is_what_it_is_together(fresh, first):
    for name in reversed(TARGETS):
        fresh.build(name)
    assert_same(fresh, first)


def test_the_order_of_tables_changes_no_byte(fresh, first):
    head, *tables = fresh.text.strip().split("\n\n")
    slices = [table for table in tables if table.startswith("[[")]
    others = [table for table in tables if not table.startswith("[[")]
    fresh.modelfile("\n\n".join([*slices, *reversed(others), head])).build()
    assert_same(fresh, first)


def test_the_folder_of_the_world_changes_no_byte(sources, first, tmp_path):
    elsewhere = World((sources.copy().root).rename(tmp_path / "another name"))
    elsewhere.build()
    assert_same(elsewhere, first)


def test_no_output_names_a_folder_of_this_machine(sources, first):
    for name in TARGETS:
        for file, data in first[name].items():
            assert str(sources.root.parent).encode() not in data, file
            assert sys.prefix.encode() not in data, file
