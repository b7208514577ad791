"""The published methods on models of every structure: experts, biases, stacks of slices, tied and untied heads.

Every tensor of the output is what the method makes of the right tensors of the inputs, one by one; transformers loads
the output, with nothing missing and nothing left over.
"""

import shutil
from itertools import product

import numpy as np
import pico
import pytest
from merging import MergeWorld, same
from method_tools import applied, merge_text
from oracles import load, logits
from vocabularies import auto, model, word_level

METHODS = {
    "ties": {"weight": (0.6, 0.5), "density": 0.5},
    "dare_ties": {"weight": (0.6, 0.5), "density": (0.6, 0.3)},
    "della_linear": {"weight": (0.6, 0.5), "density": 0.6, "epsilon": 0.2},
    "breadcrumbs": {"weight": (0.6, 0.5), "density": 0.7, "gamma": 0.1},
    "sce": {"select_topk": 0.5},
    "ramplus_tl": {"epsilon": 0.005},
    "nuslerp": {"weight": (0.7, 0.3), "flatten": False},
    "multislerp": {"weight": (0.7, 0.5)},
    "karcher": {},
    "model_stock": {"filter_wise": True},
}
LOADED = ("dare_ties", "nuslerp")
"""Methods whose outputs are loaded: those of the others have the same names, shapes and config."""

EMBED, HEAD = "model.embed_tokens.weight", "lm_head.weight"
SMALL = {"layers": 2, "hidden": 16, "intermediate": 24, "vocab": 64, "dtype": "float32"}


def made_of(method, sources, says, tensor, rows=None):
    """What a method makes of a tensor of base, a and b; `rows` are its names there."""
    base, *models = [source[name] for source, name in zip(sources, rows or (tensor,) * 3, strict=True)]
    return applied(method, models, base, says, tensor=tensor, names=["a", "b"])


def merge_all(world, texts):
    """Builds a merge of each method, called by its name."""
    return world.merge("\n".join(texts)).build()


# --- experts and biases -----------------------------------------------------------------------------------------------


def save_by_transformers(folder, kind):
    """A tiny mixture of experts as transformers writes it."""
    import torch
    import transformers

    sizes = {"vocab_size": 64, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_experts": 3,
             "moe_intermediate_size": 8, "num_attention_heads": 2, "num_key_value_heads": 1, "num_experts_per_tok": 2,
             "shared_expert_intermediate_size": 8, "head_dim": 8, "max_position_embeddings": 64}  # fmt: skip
    torch.manual_seed(0)
    name = {"qwen2_moe": "Qwen2Moe", "qwen3_moe": "Qwen3Moe"}[kind]
    config = getattr(transformers, f"{name}Config")(**sizes)
    getattr(transformers, f"{name}ForCausalLM")(config).save_pretrained(folder)
    tuned = pico.read_tensors(folder)
    for seed, other in enumerate("ab"):
        shutil.copytree(folder, folder.parent / other)
        rng = np.random.default_rng(seed)
        changed = {n: (d, (t + 0.01 * rng.standard_normal(t.shape)).astype(np.float32)) for n, (d, t) in tuned.items()}
        pico.write_safetensors(folder.parent / other / "model.safetensors", changed)


@pytest.fixture(scope="module", params=["mixtral", "qwen2_moe", "qwen3_moe", "qwen2", "gpt2"])
def structure(request, tmp_path_factory):
    """A kind of model and a world in which every method has merged two fine-tunes of one."""
    kind = request.param
    world = MergeWorld(tmp_path_factory.mktemp(kind))
    if kind.endswith("_moe"):
        save_by_transformers(world.root / "base", kind)
        for name in ("base", "a", "b"):
            world.age(name)
    else:
        for seed, name in enumerate(("base", "a", "b")):
            world.model(name, kind, seed=seed, tuned_from=9, **SMALL)
    merge_all(world, [merge_text(name, "ab", says, "base", name) for name, says in METHODS.items()])
    return kind, world


@pytest.mark.parametrize("method", METHODS)
def test_experts_routers_and_biases_are_merged_tensor_by_tensor(structure, method):
    kind, world = structure
    sources = [world.floats(name) for name in ("base", "a", "b")]
    made = world.floats(method)
    assert made.keys() == sources[0].keys()
    for tensor, found in made.items():
        assert np.array_equal(found, made_of(method, sources, METHODS[method], tensor)), tensor
    wanted = {"mixtral": "experts.2.w1", "qwen2_moe": "shared_expert_gate", "qwen3_moe": "experts.2.down_proj",
              "qwen2": "q_proj.bias", "gpt2": "c_attn.bias"}[kind]  # fmt: skip
    assert any(wanted in tensor and not np.array_equal(made[tensor], sources[0][tensor]) for tensor in made)
    assert world.config(method) == world.config("base")
    if method in LOADED:
        answers = logits(load(world.out / method, kind))
        assert np.isfinite(answers).all()
        assert not np.array_equal(answers, logits(load(world.root / "base", kind)))


# --- slices -----------------------------------------------------------------------------------------------------------

SLICES = [
    ({"base": 0, "a": 1, "b": 0}, 2, {}),
    ({"base": 0, "a": 0, "b": 2}, 1, {}),
    ({"base": 2, "a": 2, "b": 2}, 2, 1),
]
"""Where each slice starts in each model, how many layers it has, and whether it has parameters of its own. Layers are
repeated, left out, and taken from other places in one model than in the others."""

OWN = {"density": 0.9, "select_topk": 0.9, "epsilon": 0.02, "weight": 0.8, "max_iter": 1, "flatten": True,
       "filter_wise": False}  # fmt: skip


def sliced(method, says):
    """The merge, and for each slice what it says in all."""
    shared = {key: value for key, value in says.items() if not isinstance(value, tuple)}
    head, tail = merge_text(method, "", shared, "base", method).split("models = ")[0], []
    said = []
    for starts, count, own in SLICES:
        has = {key: OWN[key] for key in says if key in OWN} if own else {}
        has = {key: value for key, value in has.items() if not isinstance(says[key], tuple)}
        entries = []
        for i, (name, start) in enumerate(starts.items()):
            values = {k: v[i - 1] for k, v in says.items() if isinstance(v, tuple) and name != "base"}
            words = [f'model = "{name}"', f"layers = [{start}, {start + count}]"]
            entries.append(", ".join([*words, *(f"{key} = {value}" for key, value in values.items())]))
        lines = [f"{key} = {str(value).lower()}" for key, value in has.items()]
        tail += [f"[[merge.{method}.slices]]", *lines, f"models = [ {', '.join(f'{{ {e} }}' for e in entries)} ]"]
        said.append(says | has)
    return "\n".join([head, *tail, ""]), said


@pytest.fixture(scope="module")
def stacked(tmp_path_factory):
    """Every method with a base on a stack of slices of models of four layers with biases."""
    world = MergeWorld(tmp_path_factory.mktemp("stacked"))
    for seed, name in enumerate(("base", "a", "b")):
        world.model(name, "qwen2", seed=seed, tuned_from=9, **SMALL | {"layers": 4})
    texts = {name: sliced(name, says) for name, says in METHODS.items() if name != "karcher"}
    merge_all(world, [text for text, _ in texts.values()])
    return world, {name: said for name, (_, said) in texts.items()}


@pytest.mark.parametrize("method", [name for name in METHODS if name != "karcher"])
def test_slices_repeat_prune_and_have_parameters_of_their_own(stacked, method):
    world, said = stacked
    sources, made = [world.floats(name) for name in ("base", "a", "b")], world.floats(method)
    total, own_matters, first = sum(count for _, count, _ in SLICES), False, 0
    assert world.config(method)["num_hidden_layers"] == len(world.config(method)["layer_types"]) == total == 5
    for (starts, count, _), says in zip(SLICES, said[method], strict=True):
        for index in range(count):
            at = f"model.layers.{first + index}."
            for tensor in [name for name in made if name.startswith(at)]:
                rows = [tensor.replace(at, f"model.layers.{start + index}.") for start in starts.values()]
                assert np.array_equal(made[tensor], made_of(method, sources, says, tensor, rows)), tensor
                own_matters |= not np.array_equal(made[tensor], made_of(method, sources, said[method][0], tensor, rows))
        first += count
    assert own_matters == (said[method][0] != said[method][-1])
    for tensor in (EMBED, "model.norm.weight"):
        says = said[method][0 if tensor == EMBED else -1]
        assert np.array_equal(made[tensor], made_of(method, sources, says, tensor))
    if method in LOADED:
        assert np.isfinite(logits(load(world.out / method, "qwen2"))).all()


# --- heads ------------------------------------------------------------------------------------------------------------

MIXTURES = ["".join(mixture) for mixture in product("tu", repeat=3)]
"""Tied or untied: the base, a and b."""

HEADED = {name: METHODS[name] for name in ("ties", "dare_ties", "nuslerp", "karcher", "model_stock")}


def heads(world, mixture, words=("x y", "x z", "y z w"), **options):
    """Three models, tied as the mixture says; untied they have a head of their own."""
    for seed, (name, tie, own) in enumerate(zip(("base", "a", "b"), mixture, words, strict=True)):
        size = word_level(world.root / name, own.split())
        drop = [HEAD] if tie == "t" else []
        config = {"tie_word_embeddings": tie == "t"}
        model(world, name, size, seed=seed, dtype="float32", config=config, drop=drop, tuned_from=9, **options)
    return world


@pytest.mark.parametrize("mixture", MIXTURES)
def test_tied_and_untied_heads_meet_in_any_mixture(tmp_path, mixture):
    """A tied model's head is its embedding; what comes out is tied only where all are."""
    world = heads(MergeWorld(tmp_path), mixture, words=("x y z",) * 3)
    merge_all(world, [merge_text(name, "ab", says, "base", name) for name, says in HEADED.items()])
    sources = [world.floats(name) for name in ("base", "a", "b")]
    used = [EMBED if tie == "t" else HEAD for tie in mixture]
    for method, says in HEADED.items():
        made, config = world.floats(method), world.config(method)
        assert np.array_equal(made[EMBED], made_of(method, sources, says, EMBED))
        assert (HEAD in made) == ("u" in mixture)
        assert config["tie_word_embeddings"] is (mixture == "ttt")
        if "u" in mixture:
            assert np.array_equal(made[HEAD], made_of(method, sources, says, HEAD, used))
        if method in LOADED:
            head = load(world.out / method).lm_head.weight.detach().numpy()
            assert np.array_equal(head, made[HEAD if "u" in mixture else EMBED])


TOKENS = ["<unk>", "x", "y", "z", "w"]
"""The union: the base's `x y`, then what a has more, `z`, then what b has more, `w`."""


def aligned(table, vocabularies, tables, place):
    """A model's rows in the order of the union: its own, else the base's, else the mean of those who have the token."""
    rows = []
    for token in TOKENS:
        owners = [i for i in (place, 0) if token in vocabularies[i]][:1]
        owners = owners or [i for i in range(3) if token in vocabularies[i]]
        found = [tables[i][vocabularies[i][token]] for i in owners]
        rows.append(np.float32(sum(row.astype(np.float64) for row in found) / len(found)))
    return np.array(rows, np.float32)


@pytest.mark.parametrize("mixture", MIXTURES)
def test_unions_of_tied_and_untied_models_are_merges_of_models_with_the_unions_rows(tmp_path, mixture):
    world = heads(MergeWorld(tmp_path), mixture)
    union = {name: says | {"tokenizer": "union"} for name, says in HEADED.items()}
    merge_all(world, [merge_text(name, "ab", says, "base", name) for name, says in union.items()])
    sources = [world.floats(name) for name in ("base", "a", "b")]
    vocabularies = [auto(world.root / name).get_vocab() for name in ("base", "a", "b")]
    for tensor in (EMBED, HEAD):
        tables = [source[tensor if tensor in source else EMBED] for source in sources]
        rows = [{tensor: aligned(tables[i], vocabularies, tables, i)} for i in range(3)]
        for method, says in HEADED.items():
            made = world.floats(method)
            if tensor == HEAD and mixture == "ttt":
                assert HEAD not in made
                continue
            assert np.array_equal(made[tensor], made_of(method, rows, says, tensor)), (method, tensor)
    for method in HEADED:
        assert world.config(method)["tie_word_embeddings"] is (mixture == "ttt")
        assert world.config(method)["vocab_size"] == len(TOKENS)
    assert auto(world.out / "ties").get_vocab() == {token: n for n, token in enumerate(TOKENS)}
    load(world.out / "ties")


def test_a_tied_output_is_what_the_same_models_untied_give(tmp_path):
    """The negative control of the mixtures: with other heads the embedding stays and the head does not."""
    for mixture in ("ttt", "tuu"):
        (tmp_path / mixture).mkdir()
    tied, untied = (heads(MergeWorld(tmp_path / mixture), mixture) for mixture in ("ttt", "tuu"))
    texts = [merge_text("ties", "ab", METHODS["ties"] | {"tokenizer": "union"}, "base")]
    made = [(merge_all(world, texts), world.tensors("m"))[1] for world in (tied, untied)]
    assert same(made[0][EMBED], made[1][EMBED])
    assert not same(made[1][HEAD], made[1][EMBED])
