"""mergekit-moe 0.1.5, given the same recipe in its own words: the same experts to the bit, the same routers nearly."""

import json
import warnings

import numpy as np
import pytest
import yaml
from merging import MergeWorld, widened
from test_moe import KINDS, dense, router, text

pytest.importorskip("mergekit")
oracles = pytest.importorskip("oracles")
pytestmark = pytest.mark.mergekit

LAYERS = 3
RECIPE = """
base_model: ./a
gate_mode: cheap_embed
dtype: float32
experts_per_token: 1
experts:
  - source_model: ./b
    positive_prompts: ["a b c", "d e f"]
    negative_prompts: ["g h i"]
    residual_scale: 0.5
  - source_model: ./c
    positive_prompts: ["x y z"]
"""


@pytest.fixture
def world(tmp_path):
    root = tmp_path / "world"
    root.mkdir()
    return MergeWorld(root)


def mergekits(world, recipe, seed=None):
    """What mergekit makes of the recipe: its folder."""
    from mergekit.moe.config import MoEMergeConfig
    from mergekit.options import MergeOptions
    from mergekit.scripts.moe import build

    data = yaml.safe_load(recipe)
    for entry, key in ((data, "base_model"), *((expert, "source_model") for expert in data["experts"])):
        entry[key] = str(world.root / entry[key])
    out = world.root.parent / "theirs"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        options = MergeOptions(quiet=True, random_seed=seed, device="cpu")
        build(MoEMergeConfig.model_validate(data), str(out), options, device="cpu")
    return out


def both(world, kind, recipe, dtype="float32"):
    """The states of the models that both make, in memory, where transformers calls all tensors alike."""
    dense(world, kind, layers=LAYERS, dtype=dtype)
    world.path = world.root / "config.yml"
    world.path.write_text(recipe)
    world.build()
    ours, theirs = (oracles.load(folder) for folder in (world.out / "world", mergekits(world, recipe)))
    return oracles.state(ours), oracles.state(theirs)


def is_router(name):
    return name.endswith(".gate.weight")


def cosines(ours, theirs):
    """The cosine of every row of every router."""
    found = []
    for name in filter(is_router, theirs):
        one, other = (widened(tensors[name]).astype(np.float64) for tensors in (ours, theirs))
        lengths = np.linalg.norm(one, axis=1) * np.linalg.norm(other, axis=1)
        found += list((one * other).sum(axis=1) / lengths)
    assert len(found) == LAYERS * 2
    return np.array(found)


@pytest.mark.parametrize("kind", KINDS)
def test_experts_are_the_same_to_the_bit_and_cheap_routers_to_the_seventh_digit(world, kind):
    ours, theirs = both(world, kind, RECIPE)
    assert sorted(ours) == sorted(theirs)
    assert [n for n in theirs if not is_router(n) and ours[n][1].tobytes() != theirs[n][1].tobytes()] == []
    for name in filter(is_router, theirs):
        assert np.abs(widened(ours[name]) - widened(theirs[name])).max() < 3e-7


@pytest.mark.parametrize("mode", ["hidden", "hidden_avg", "hidden_last"])
@pytest.mark.parametrize("kind", ["mistral", "qwen3"])
def test_routers_of_hidden_states_point_the_same_way(world, kind, mode):
    """mergekit runs the prompts in bfloat16, and differences of hidden states are right to two digits or three."""
    ours, theirs = both(world, kind, RECIPE.replace("cheap_embed", mode), "bfloat16")
    assert cosines(ours, theirs).min() > 0.9998


@pytest.mark.parametrize("mode", ["hidden", "hidden_avg"])
@pytest.mark.parametrize("kind", KINDS)
def test_where_mergekit_runs_the_prompts_in_float32_routers_are_the_same_to_the_sixth_digit(
    world, kind, mode, monkeypatch
):
    import torch
    from mergekit.moe import router as theirs_router

    real = theirs_router.AutoModelForCausalLM.from_pretrained

    class Precise:
        """Loads in float32, whatever is asked for."""

        @staticmethod
        def from_pretrained(*args, **options):
            return real(*args, **(options | {"torch_dtype": torch.float32}))

    monkeypatch.setattr(theirs_router, "AutoModelForCausalLM", Precise)
    ours, theirs = both(world, kind, RECIPE.replace("cheap_embed", mode))
    for name in filter(is_router, theirs):
        assert np.abs(widened(ours[name]) - widened(theirs[name])).max() < 2e-6


def test_the_configs_agree_on_what_a_mixture_is(world):
    dense(world, "mistral", layers=LAYERS, dtype="float32")
    world.path = world.root / "config.yml"
    world.path.write_text(RECIPE)
    world.build()
    ours, theirs = (oracles.load(folder).config for folder in (world.out / "world", mergekits(world, RECIPE)))
    ours, theirs = ours.to_dict(), theirs.to_dict()
    # mergekit leaves out the window of Mistral, which the base has, and writes out what transformers works out itself.
    apart = {key for key in theirs if ours[key] != theirs[key]} - {"_name_or_path", "dtype", "transformers_version"}
    assert apart == {"sliding_window", "head_dim"}
    assert (ours["head_dim"], theirs["head_dim"]) == (None, 8)


def test_a_recipe_of_mergekit_moe_is_imported_and_built(world):
    dense(world, "llama", layers=LAYERS)
    (world.root / "config.yml").write_text(RECIPE)
    world.path.unlink()
    ran = world.run("import", "config.yml")
    assert ran.returncode == 0, ran.stderr
    assert 'method = "moe"' in world.text
    ran = world.run("build")
    assert ran.returncode == 0, ran.stderr
    (folder,) = world.out.iterdir()
    assert json.loads((folder / "config.json").read_text())["num_experts_per_tok"] == 1
    made = oracles.load(folder)
    assert np.isfinite(oracles.logits(made)).all()


def test_random_routers_have_the_spread_of_mergekit_s(world):
    for mode in ("random", "uniform_random"):
        dense(world, "llama", layers=LAYERS, dtype="float32")
        recipe = RECIPE.replace("cheap_embed", mode)
        theirs = oracles.state(oracles.load(mergekits(world, recipe, seed=3)))
        table = text(
            '[merge.m]\nmethod = "moe"\nbase = "a"\ngate_mode = "MODE"\nmodels = [{ model = "b" }, { model = "c" }]\n'
        )
        world.merge(table.replace("MODE", mode)).build()
        ours = np.concatenate([widened(world.tensors("m")[router("llama", n)]) for n in range(LAYERS)])
        given = np.concatenate([widened(tensor) for name, tensor in theirs.items() if is_router(name)])
        assert abs(ours.std() / given.std() - 1) < 0.2
        assert abs(ours.mean() - given.mean()) < 0.2 * given.std() + 0.01
        assert (np.abs(ours).max() < np.sqrt(1 / 32)) == (mode == "uniform_random")
