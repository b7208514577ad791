"""What goes wrong with vocabularies in silence elsewhere: rows of other tokens, ids of none, tensors that are none."""

import json

import numpy as np
import pytest
from merging import MergeWorld, same
from vocabularies import auto, model, word_level, world_of

EMBED = "model.embed_tokens.weight"
HALF = '[merge.m]\nmethod = "linear"\nmodels = [{ model = "a", weight = 0.5 }, { model = "b", weight = 0.5 }]\n'
LERP = '[merge.m]\nmethod = "lerp"\nbase = "a"\nmodels = [{ model = "b", t = 0.5 }]\n'


@pytest.fixture
def world(tmp_path):
    return MergeWorld(tmp_path)


# --- which tensors ----------------------------------------------------------------------------------------------------


BESIDE = {
    "word_embeddings_layernorm.weight": (8,),
    "word_embeddings_layernorm.bias": (5,),
    "lm_head.dense.weight": (8, 8),
    "lm_head.layer_norm.weight": (5,),
    "model.embed_tokens_extend.image_embed.glb_GN": (1, 1, 8),
    "embeddings.position_embeddings.weight": (5, 8),
    "cls.predictions.transform.dense.bias": (5,),
}
"""As BLOOM, RoBERTa, BERT and Phi name them; some by chance as long as there are tokens."""


def test_tensors_beside_the_vocabulary_keep_their_rows(world):
    values = {name: np.arange(np.prod(shape), dtype=np.float32) for name, shape in BESIDE.items()}
    extra = {name: ("F32", values[name].reshape(shape)) for name, shape in BESIDE.items()}
    for seed, (name, words) in enumerate({"a": "w x y z", "b": "z x y v"}.items(), start=1):
        model(world, name, word_level(world.root / name, words.split()), seed=seed, dtype="float32", extra=extra)
    made = world.made(HALF + 'tokenizer = "union"\n')
    assert made[EMBED][1].shape[0] == 6
    assert {name: made[name][1].shape for name in BESIDE} == BESIDE
    assert all(same(made[name], tensor) for name, tensor in extra.items())


@pytest.mark.parametrize(
    ("name", "columns"),
    [
        ("lm_head.decoder.weight", 8),
        ("lm_head.decoder.bias", None),
        ("cls.predictions.bias", None),
        ("generator_lm_head.bias", None),
        ("model.language_model.embed_tokens_per_layer.weight", 4),
    ],
)
def test_heads_of_any_name_get_the_vocabulary(world, name, columns):
    for seed, (model_name, words) in enumerate({"a": "w x", "b": "x w v"}.items(), start=1):
        size = word_level(world.root / model_name, words.split())
        table = np.repeat(np.arange(size, dtype=np.float32)[:, None] + 10 * seed, columns or 1, axis=1)
        extra = {name: ("F32", table if columns else table[:, 0])}
        model(world, model_name, size, seed=seed, dtype="float32", extra=extra)
    found = world.made(HALF + 'tokenizer = "union"\n')[name][1].reshape(4, -1)
    assert found[:, 0].tolist() == [15, (11 + 22) / 2, (12 + 21) / 2, 23]


# --- rows of other tokens ---------------------------------------------------------------------------------------------

CHOOSE = 'choose a vocabulary: tokenizer = "union", "base" or the name of an input'


@pytest.fixture
def permuted(world):
    """Two models of as many rows, three of which stand for other tokens."""
    return world_of(world, {"a": "x y z p", "b": "z y x q"})


def test_equally_many_rows_of_other_tokens_are_told(permuted):
    (note,) = permuted.merge(LERP).build().notes
    assert note == f"m: 3 of 5 rows are for other tokens in `b`: row 1 is `x` in `a` and `z` in `b`; {CHOOSE}"
    assert permuted.edit("0.5", "0.25").plan().notes == (note,)


@pytest.mark.parametrize(
    "text",
    [
        LERP + 'tokenizer = "base"\n',
        LERP + "pad_to_multiple_of = 1\n",
        LERP + 'copy = ["embed_tokens", "lm_head"]\n',
        LERP.replace("0.5", "[{ match = 'layers', value = 0.5 }, { value = 0 }]"),
    ],
)
def test_rows_that_do_not_meet_are_not_compared(permuted, text):
    notes = permuted.merge(text).plan().notes
    assert not any("other tokens" in note for note in notes)


def test_ends_of_a_model_whose_tokenizer_is_not_written_are_told(permuted):
    text = '[merge.m]\nmethod = "passthrough"\nends = "b"\n'
    for name in "ab":
        text += f'[[merge.m.slices]]\nlayers = [0, 1]\nmodels = [{{ model = "{name}" }}]\n'
    (note,) = permuted.merge(text).plan().notes
    assert note.startswith("m: 3 of 5 rows are for other tokens in `b`")


def test_rows_for_no_token_in_one_of_the_models_are_no_other_tokens(world):
    for seed, (name, words) in enumerate({"a": "x y", "b": "x y z"}.items(), start=1):
        word_level(world.root / name, words.split())
        model(world, name, 8, seed=seed)
    assert world.merge(LERP).plan().notes == ()


def test_a_tokenizer_that_cannot_be_read_is_not_compared(permuted):
    (permuted.root / "b" / "tokenizer.json").write_text("{")
    assert permuted.merge(LERP).build().notes == ()
    assert permuted.config("m")["vocab_size"] == 5


# --- ids of tokens that are gone --------------------------------------------------------------------------------------


def ids_of(world, name):
    return {key: value for key, value in world.config(name).items() if key.endswith(("_token_id", "_token_index"))}


@pytest.fixture
def losing(world):
    """Of the donor's five words the other model has two, and another end of text."""
    ids = {"bos_token_id": 1, "eos_token_id": [4, 5], "pad_token_id": 5, "sep_token_id": 4, "image_token_index": 3}
    for seed, (name, words) in enumerate({"a": "x y i </s> <pad>", "b": "end x"}.items(), start=1):
        size = word_level(world.root / name, words.split(), eos_token="end" if name == "b" else "</s>")
        config = ids if name == "a" else dict.fromkeys(ids, ...)
        model(world, name, size, seed=seed, config=config)
        generation = {"pad_token_id": 5} if name == "a" else {}
        (world.root / name / "generation_config.json").write_text(json.dumps(generation))
    return world


def test_ids_of_tokens_that_are_gone_are_those_of_their_roles_or_none(losing):
    result = losing.merge(LERP + 'tokenizer = "b"\n').build()
    assert ids_of(losing, "m") == {
        "bos_token_id": 2, "eos_token_id": [1], "pad_token_id": None, "sep_token_id": None, "image_token_index": 3
    }  # fmt: skip
    assert json.loads((losing.out / "m" / "generation_config.json").read_text()) == {"pad_token_id": None}
    assert result.notes[1:] == (
        "m: `eos_token_id` was `</s>`, `<pad>`, which the vocabulary has not: it is [1] instead",
        "m: `pad_token_id` was `<pad>`, which the vocabulary has not: it is null instead",
        "m: `sep_token_id` was `</s>`, which the vocabulary has not: it is null instead",
        "m: `image_token_index` was `i`, which the vocabulary has not: it stays, for want of another",
    )
    from oracles import load

    load(losing.out / "m")


def test_an_id_without_a_row_is_no_other_models_token_in_a_union(world):
    """A pad token that a tokenizer lists and for which no row was made: in the union that row is another token's."""
    for seed, (name, words) in enumerate({"a": "x <pad>", "b": "x y"}.items(), start=1):
        word_level(world.root / name, words.split())
        model(world, name, 2 if name == "a" else 3, seed=seed, config={"bos_token_id": 1, "pad_token_id": 2})
    result = world.merge(HALF + 'tokenizer = "union"\n').build()
    assert auto(world.out / "m").get_vocab() == {"<unk>": 0, "x": 1, "y": 2}
    assert (ids_of(world, "m")["bos_token_id"], ids_of(world, "m")["pad_token_id"]) == (1, None)
    assert "m: `pad_token_id` was `<pad>`, which the vocabulary has not: it is null instead" in result.notes


# --- tokens that no input has -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("token", "meant"),
    [("<new>", ""), ("<|im_strat|>", "; did you mean `<|im_start|>`?"), ("the dog", "; did you mean `ĠtheĠdog`?")],
)
def test_a_named_token_that_no_input_has_is_told(world, token, meant):
    special = ("<unk>", "<|im_start|>")
    for seed, (name, words) in enumerate({"a": "Ġthe", "b": "ĠtheĠdog"}.items(), start=1):
        model(world, name, word_level(world.root / name, words.split(), special), seed=seed)
    notes = world.merge(HALF + f'tokenizer = "union"\n[merge.m.tokens]\n"{token}" = {{ zero = true }}\n').plan().notes
    assert f"m: no input has the token `{token}`: it gets a row of its own{meant}" in notes


def test_a_choice_that_asks_for_a_token_spelled_otherwise_is_refused_with_the_spelling(world):
    world_of(world, {"a": "x", "b": "x ▁dog"})
    told = world.refusal(LERP + '[merge.m.tokens]\nx = { model = "b", token = "dog" }\n')
    assert told.startswith("error: `b` has no token `dog`, which [merge.m.tokens] asks for\n")
    assert told.endswith("hint: did you mean `▁dog`?")


def test_a_named_token_of_any_input_is_told_by_its_row_alone(world):
    world_of(world, {"a": "x", "b": "x y"})
    notes = world.merge(LERP + 'tokenizer = "base"\n[merge.m.tokens]\ny = "b"\n').plan().notes
    assert not any("no input has" in note for note in notes)


# --- sizes ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ['[merge.m.tokens]\n"<n>" = { zero = true }\n', "pad_to_multiple_of = 4000000000\n"])
def test_a_vocabulary_larger_than_any_is_refused_before_it_takes_memory(world, text):
    world_of(world, {"a": "x", "b": "x y"})
    path = world.root / "a" / "tokenizer.json"
    fast = json.loads(path.read_text())
    fast["added_tokens"].append({"id": 2**31 - 1, "content": "<far>", "special": True})
    path.write_text(json.dumps(fast))
    rows = 2**31 + 1 if "tokens" in text else 4000000000
    told = world.refusal(LERP + text)
    assert told.startswith(f"error: the vocabulary of `m` would have {rows} rows\n  --> Modelfile:")
    assert "the limit is 16777216" in told
