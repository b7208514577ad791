"""mergekit 0.1.5, given the same vocabularies and choices, makes the same rows: compared by token, not by id, since the
order of its union is that of a hash table."""

import numpy as np
import pico
import pytest
from merging import MergeWorld
from vocabularies import ENGLISH, GERMAN, add_tokens, auto, byte_bpe, model

pytest.importorskip("mergekit")
pytestmark = pytest.mark.mergekit
ENDS = ("model.embed_tokens.weight", "lm_head.weight")


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """A base and two models in float32, with vocabularies of bytes that share some of their tokens."""
    from tokenizers import AddedToken

    world = MergeWorld(tmp_path_factory.mktemp("sources"))
    for seed, (name, corpus) in enumerate((("base", ENGLISH), ("a", GERMAN), ("b", ENGLISH + GERMAN)), start=1):
        byte_bpe(world.root / name, corpus, 300 + 10 * seed)
        size = add_tokens(
            world.root / name, *[AddedToken(f"<|{n}|>", special=True) for n in ("all", name, *"ab"[: seed - 1])]
        )
        model(world, name, size, seed=seed, dtype="float32", hidden=16)
    return world


@pytest.fixture
def world(sources, tmp_path):
    world = MergeWorld(tmp_path / "world")
    world.root.mkdir()
    for name in ("base", "a", "b"):
        world.put(name, sources.root / name)
    return world


def mergekits(world, recipe):
    """The folder of what mergekit makes of a recipe."""
    from mergekit.config import MergeConfiguration
    from mergekit.merge import run_merge
    from mergekit.options import MergeOptions

    def placed(value, key=""):
        if isinstance(value, dict):
            return {name: placed(inner, name) for name, inner in value.items()}
        if isinstance(value, list):
            return [placed(inner) for inner in value]
        return str(world.root / value) if key in ("model", "base_model") or value in ("a", "b") else value

    out = world.root.parent / "theirs"
    config = MergeConfiguration.model_validate({"dtype": "float32"} | placed(recipe))
    run_merge(config, str(out), MergeOptions(write_model_card=False, quiet=True))
    return out


def by_token(folder):
    """The rows of embedding and head by token, and those that stand for none."""
    vocabulary = auto(folder).get_vocab()
    tables = pico.read_floats(folder)
    named = {name: {token: tables[name][n] for token, n in vocabulary.items()} for name in ENDS}
    return named, {name: tables[name][max(vocabulary.values()) + 1 :] for name in ENDS}


def check(world, text, recipe):
    """Builds both, and compares every row; gives ours."""
    world.merge(text).build()
    (ours, our_padding), (theirs, their_padding) = by_token(world.out / "m"), by_token(mergekits(world, recipe))
    for name in ENDS:
        assert ours[name].keys() == theirs[name].keys()
        for token, row in ours[name].items():
            assert np.allclose(row, theirs[name][token], rtol=1e-6, atol=1e-8), token
        assert our_padding[name].shape == their_padding[name].shape
        assert np.allclose(our_padding[name], their_padding[name], rtol=1e-5, atol=1e-6)
    return ours


def weighted(*names):
    weights = {"base": 0.3, "a": 0.6, "b": 0.5}
    ours = ", ".join(f'{{ model = "{name}", weight = {weights[name]} }}' for name in names)
    theirs = [{"model": name, "parameters": {"weight": weights[name]}} for name in names]
    return f'[merge.m]\nmethod = "linear"\nmodels = [{ours}]\n', {"merge_method": "linear", "models": theirs}


@pytest.mark.parametrize("source", ["union", "b"])
@pytest.mark.parametrize("names", [("a", "b"), ("base", "a", "b")])
def test_linear_without_a_base_fills_rows_with_means_of_their_owners(world, source, names):
    """Not "base": without one mergekit takes the tokenizer of any model, by the order of a hash table."""
    text, recipe = weighted(*names)
    check(world, text + f'tokenizer = "{source}"\n', recipe | {"tokenizer": {"source": source}})


@pytest.mark.parametrize("source", ["union", "base", "a"])
def test_task_vectors_fill_rows_from_the_base(world, source):
    entries = ", ".join(f'{{ model = "{name}", weight = {w} }}' for name, w in (("a", 0.6), ("b", 0.5)))
    text = f'[merge.m]\nmethod = "task_arithmetic"\nbase = "base"\nmodels = [{entries}]\ntokenizer = "{source}"\n'
    recipe = {
        "merge_method": "task_arithmetic", "base_model": "base", "tokenizer": {"source": source},
        "models": [{"model": n, "parameters": {"weight": w}} for n, w in (("a", 0.6), ("b", 0.5))],
    }  # fmt: skip
    check(world, text, recipe)


def test_single_tokens_are_chosen_alike(world):
    text, recipe = weighted("a", "b")
    known = auto(world.root / "b").convert_ids_to_tokens(310)
    text += (
        'tokenizer = "union"\n[merge.m.tokens]\n'
        f'"<|a|>" = {{ model = "b", token = "{known}" }}\n'
        '"<|b|>" = { model = "a", token_id = 7, force = true }\n'
        '"<|all|>" = { model = "a", force = true }\n'
        '"<|new|>" = { zero = true }\n'
        '"Ġdie" = { zero = true, force = true }\n'
    )
    tokens = {
        "<|a|>": {"source": {"kind": "model_token", "model": "b", "token": known}},
        "<|b|>": {"source": {"kind": "model_token", "model": "a", "token_id": 7}, "force": True},
        "<|all|>": {"source": "a", "force": True},
        "<|new|>": {"source": {"kind": "zero"}},
        "Ġdie": {"source": {"kind": "zero"}, "force": True},
    }
    ours = check(world, text, recipe | {"tokenizer": {"source": "union", "tokens": tokens}})
    assert not ours[ENDS[0]]["<|new|>"].any()
    assert not ours[ENDS[0]]["Ġdie"].any()


@pytest.mark.parametrize("source", ["union", "a"])
def test_padding_rows_are_the_mean_alike(world, source):
    text, recipe = weighted("a", "b")
    text += f'tokenizer = "{source}"\npad_to_multiple_of = 64\n'
    check(world, text, recipe | {"tokenizer": {"source": source, "pad_to_multiple_of": 64}})
