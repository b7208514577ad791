"""Merges of models whose vocabularies differ: every row is its token's, and the output is a model of one vocabulary."""

import json
import os

import numpy as np
import pico
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from merging import MergeWorld, same
from vocabularies import ENGLISH, JAPANESE, auto, model, spm, tokens, word_level, world_of

from modelbuild.errors import BuildFailed, NotCached
from modelbuild.report.terminal import Listener

EMBED, HEAD = "model.embed_tokens.weight", "lm_head.weight"
ENDS = (EMBED, HEAD)
HALF = '[merge.m]\nmethod = "linear"\nmodels = [{ model = "a", weight = 0.5 }, { model = "b", weight = 0.5 }]\n'
LERP = '[merge.m]\nmethod = "lerp"\nbase = "a"\nmodels = [{ model = "b", t = 0.5 }]\n'
COPY = '[merge.m]\nmethod = "passthrough"\nmodels = [{ model = "a" }]\n'


@pytest.fixture
def world(tmp_path):
    return MergeWorld(tmp_path)


@pytest.fixture
def two(world):
    """Two vocabularies that share two words, in other places."""
    return world_of(world, {"a": "x y z", "b": "z w x v"})


def rows(world, name, tensor=EMBED):
    """The rows of a tensor by token, as float32, and those for no token as a list."""
    table = world.floats(name)[tensor]
    vocabulary = auto(world.folder(name)).get_vocab()
    named = {token: table[number] for token, number in vocabulary.items() if number < len(table)}
    return named, [table[n] for n in range(len(table)) if n not in vocabulary.values()]


def half(x, y):
    return (np.float32(0.5) * x + np.float32(0.5) * y).astype(np.float32)


# --- rows -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tensor", ENDS)
def test_a_union_has_every_token_once_and_every_row_is_its_tokens(two, tensor):
    two.merge(HALF + 'tokenizer = "union"\n').build()
    a, b, m = (rows(two, name, tensor)[0] for name in ("a", "b", "m"))
    assert list(auto(two.out / "m").get_vocab().items() - auto(two.root / "a").get_vocab().items()) != []
    assert auto(two.out / "m").get_vocab() == {"<unk>": 0, "x": 1, "y": 2, "z": 3, "w": 4, "v": 5}
    for token in ("<unk>", "x", "z"):
        assert np.array_equal(m[token], half(a[token], b[token]))
    assert np.array_equal(m["y"], a["y"])
    assert np.array_equal(m["w"], b["w"])
    assert two.config("m")["vocab_size"] == 6


def test_the_base_fills_the_rows_that_others_lack(world):
    world_of(world, {"base": "x y", "a": "x", "b": "y"})
    text = '[merge.m]\nmethod = "linear"\nbase = "base"\nmodels = [{ model = "a", weight = 0.5 }, '
    world.merge(text + '{ model = "b", weight = 0.5 }]\ntokenizer = "union"\n').build()
    base, a, b, m = (rows(world, name)[0] for name in ("base", "a", "b", "m"))
    assert np.array_equal(m["x"], half(a["x"], base["x"]))
    assert np.array_equal(m["y"], half(base["y"], b["y"]))


def test_without_the_base_the_only_owners_row_or_the_mean_of_the_owners_fills_in(world):
    world_of(world, {"a": "x", "b": "x y z", "c": "z x"})
    models = ", ".join(f'{{ model = "{name}", weight = {w} }}' for name, w in (("a", 1.0), ("b", 0.0), ("c", 0.0)))
    world.merge(f'[merge.m]\nmethod = "linear"\nmodels = [{models}]\ntokenizer = "union"\n').build()
    b, c, m = (rows(world, name)[0] for name in ("b", "c", "m"))
    assert np.array_equal(m["y"], b["y"])
    mean = (b["z"].astype(np.float64) + c["z"]) / 2
    assert np.array_equal(m["z"], mean.astype(np.float32))


def test_base_takes_the_donors_vocabulary_and_a_name_that_models(two):
    two.merge(LERP + 'tokenizer = "base"\n').build()
    assert auto(two.out / "m").get_vocab() == auto(two.root / "a").get_vocab()
    a, b, m = (rows(two, name)[0] for name in ("a", "b", "m"))
    assert np.allclose(m["x"], half(a["x"], b["x"]), atol=1e-7)
    assert np.array_equal(m["y"], a["y"])
    two.edit('tokenizer = "base"', 'tokenizer = "b"').build()
    assert auto(two.out / "m").get_vocab() == auto(two.root / "b").get_vocab()
    m = rows(two, "m")[0]
    assert np.array_equal(m["w"], b["w"])
    assert np.allclose(m["z"], half(a["z"], b["z"]), atol=1e-7)
    assert two.config("m")["vocab_size"] == 5


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_rows_keep_their_bits_in_any_dtype(world, dtype):
    world_of(world, {"a": "x y z", "b": "z w x v"}, dtype=dtype)
    world.merge(COPY.replace('{ model = "a" }', '{ model = "b" }') + 'base = "a"\ntokenizer = "union"\n').build()
    b, m = world.source("b")[EMBED], world.tensors("m")[EMBED]
    assert m[0] == b[0]
    ours, theirs = auto(world.out / "m").get_vocab(), auto(world.root / "b").get_vocab()
    assert all(np.array_equal(m[1][ours[token]], b[1][number]) for token, number in theirs.items())


def test_models_of_two_dtypes_are_filled_in_float32_and_rounded_once(world):
    for name, dtype, words, seed in (("a", "bfloat16", "x", 1), ("b", "float32", "x y", 2)):
        model(world, name, word_level(world.root / name, words.split()), seed=seed, dtype=dtype)
    world.merge(LERP + 'tokenizer = "union"\n').build()
    code, made = world.tensors("m")[EMBED]
    assert code == "BF16"
    assert np.array_equal(made[2], pico.narrow("BF16", rows(world, "b")[0]["y"]))


def test_everything_else_is_merged_as_if_there_were_one_vocabulary(two):
    two.merge(HALF + 'tokenizer = "union"\n').build()
    a, b, m = (two.floats(name) for name in ("a", "b", "m"))
    for name in a.keys() - set(ENDS):
        assert np.array_equal(m[name], half(a[name], b[name]))


VOCABULARIES = st.lists(st.lists(st.sampled_from("stuvwxyz"), unique=True, max_size=5), min_size=2, max_size=3)


@settings(deadline=None, max_examples=8, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(VOCABULARIES, st.sampled_from(["union", "base", "m1"]), st.sampled_from([None, 4]))
def test_any_vocabularies_merge_by_token(tmp_path_factory, vocabularies, choice, multiple):
    """With one weight 1 and the others 0 the output is that model, in the output's order, with what it lacks filled."""
    world = MergeWorld(tmp_path_factory.mktemp("any"))
    names = [f"m{i}" for i in range(len(vocabularies))]
    world_of(world, dict(zip(names, vocabularies, strict=True)))
    models = ", ".join(f'{{ model = "{name}", weight = {float(name == "m1")} }}' for name in names)
    padding = f"pad_to_multiple_of = {multiple}\n" if multiple else ""
    world.merge(f'[merge.m]\nmethod = "linear"\nmodels = [{models}]\ntokenizer = "{choice}"\n{padding}').build()
    sources = [rows(world, name)[0] for name in names]
    m, others = rows(world, "m")
    for token, row in m.items():
        owners = [source[token] for source in sources if token in source]
        mean = sum(owner.astype(np.float64) for owner in owners) / len(owners)
        assert np.array_equal(row, sources[1].get(token, mean.astype(np.float32)))
    count = len(m) + len(others)
    assert count % (multiple or 1) == 0
    assert count - len(m) < (multiple or 1)
    for row in others:
        assert np.allclose(row, np.mean(list(m.values()), axis=0), atol=1e-6)


# --- single tokens ----------------------------------------------------------------------------------------------------


def test_a_token_can_come_from_a_model_from_another_token_or_be_zeros(two):
    two.merge(
        HALF + 'tokenizer = "union"\n[merge.m.tokens]\n'
        'y = { model = "b", token = "v" }\nw = { zero = true }\nv = { model = "a", token_id = 0 }\n'
        'x = { model = "a", force = true }\nz = "b"\n'
    ).build()
    a, b, m = (rows(two, name)[0] for name in ("a", "b", "m"))
    assert np.array_equal(m["y"], half(a["y"], b["v"]))
    assert np.array_equal(m["w"], half(0 * b["w"], b["w"]))
    assert np.array_equal(m["v"], half(a["<unk>"], b["v"]))
    assert np.array_equal(m["x"], a["x"])


def test_a_named_token_that_no_vocabulary_has_is_added(two):
    two.merge(LERP + 'tokenizer = "base"\n[merge.m.tokens]\n"<new>" = { model = "b", token = "v" }\n').build()
    b, m = rows(two, "b")[0], rows(two, "m")[0]
    assert np.array_equal(m["<new>"], b["v"])
    assert auto(two.out / "m").get_vocab() == {**auto(two.root / "a").get_vocab(), "<new>": 4}
    assert tokens(auto(two.out / "m"), "x <new> y") == ["x", "<new>", "y"]


def test_tokens_alone_are_for_the_donors_vocabulary(two):
    two.merge(COPY + 'base = "b"\n[merge.m.tokens]\nx = { zero = true, force = true }\n').build()
    m = rows(two, "m")[0]
    assert not m["x"].any()
    assert auto(two.out / "m").get_vocab() == auto(two.root / "b").get_vocab()


@pytest.mark.parametrize(
    ("choice", "told"),
    [
        ('{ model = "b", token = "q" }', "`b` has no token `q`, which [merge.m.tokens] asks for"),
        ('{ model = "b", token_id = 5 }', "`b` has no row 5, which [merge.m.tokens] asks for"),
        ('{ model = "b" }', "`b` has no token `y`, which [merge.m.tokens] asks for"),
    ],
)
def test_a_choice_that_cannot_be_met_is_refused_at_its_line(two, choice, told):
    text = HALF + f'tokenizer = "union"\n[merge.m.tokens]\ny = {choice}\n'
    refusal = two.refusal(text)
    assert refusal == f"error: {told}\n  --> Modelfile:{two.text.count(chr(10))}:1\n   |  `b` has 5 rows"


@pytest.mark.parametrize(
    ("choice", "told"),
    [
        ('"c"', "`c` is no input of [merge.m]"),
        ("3", "the token `y` is an input or a table, not the number 3"),
        ("{}", "the token `y` takes either `model` or `zero = true`"),
        ('{ model = "b", zero = true }', "the token `y` takes either `model` or `zero = true`"),
        ("{ zero = false }", "`zero` is true, or not there"),
        ('{ model = "c" }', "`c` is no input of [merge.m]"),
        ('{ model = "b", token = "x", token_id = 1 }', "`token` and `token_id` exclude each other"),
        ('{ zero = true, token = "x" }', "`token` has no meaning without `model`"),
        ('{ model = "b", token_id = -1 }', "`token_id` is an integer"),
        ('{ model = "b", frce = true }', "did you mean `force`?"),
        ('{ model = "b", force = 1 }', "`force` is true or false"),
    ],
)
def test_a_choice_that_makes_no_sense_is_a_fault_of_the_modelfile(two, choice, told):
    assert told in two.refusal(HALF + f"[merge.m.tokens]\ny = {choice}\n", code=2)


# --- padding ----------------------------------------------------------------------------------------------------------


def padded(world, name, words, size, **options):
    word_level(world.root / name, words.split())
    return model(world, name, size, **{"dtype": "float32", **options})


def test_padding_rows_are_the_mean_of_all_others(two):
    two.merge(HALF + 'tokenizer = "union"\npad_to_multiple_of = 8\n').build()
    made = two.floats("m")[EMBED]
    assert made.shape[0] == two.config("m")["vocab_size"] == 8
    assert np.allclose(made[6:], made[:6].mean(axis=0), atol=1e-6)
    assert np.array_equal(made[6], made[7])


def test_one_is_the_multiple_that_trims_padding(world):
    padded(world, "a", "x y", 16, seed=1)
    world.merge(COPY + "pad_to_multiple_of = 1\n").build()
    assert world.floats("m")[EMBED].shape[0] == world.config("m")["vocab_size"] == 3
    assert np.array_equal(world.floats("m")[HEAD], world.floats("a")[HEAD][:3])


def test_padding_is_kept_where_all_models_agree(world):
    for seed, name in enumerate("ab", start=1):
        padded(world, name, "x y", 16, seed=seed)
    result = world.merge(LERP + 'tokenizer = "base"\n').build()
    assert result.notes == ()
    a, b, m = (world.floats(name)[EMBED] for name in "abm")
    assert np.allclose(m, half(a, b), atol=1e-7)


def test_the_chosen_models_padding_is_kept_where_others_have_less(world):
    padded(world, "a", "x y", 6, seed=1)
    padded(world, "b", "x y z", 4, seed=2)
    world.merge(LERP + 'tokenizer = "base"\n').build()
    a, b, m = (world.floats(name)[EMBED] for name in "abm")
    assert m.shape[0] == world.config("m")["vocab_size"] == 6
    assert np.allclose(m[:3], half(a[:3], b[:3]), atol=1e-7)
    filled = b[:3].astype(np.float64).sum(axis=0) / 3
    assert np.allclose(m[4], half(a[4], filled), atol=1e-6)


def test_a_choice_that_changes_nothing_computes_nothing(world):
    for seed, name in enumerate("ab", start=1):
        padded(world, name, "x y", 3, seed=seed)
    world.merge(LERP.replace("0.5", "{ points = [[0, 0.5]] }") + 'tokenizer = "union"\n').build()
    assert all(same(world.tensors("m")[name], world.source("a")[name]) for name in ENDS)
    again = world.edit('tokenizer = "union"', 'tokenizer = "base"').build()
    assert again["m"].tensors.computed == 0


# --- ends, slices, heads, chains --------------------------------------------------------------------------------------


def test_tensors_that_are_left_to_the_donor_get_the_vocabulary_too(two):
    two.merge(LERP + 'tokenizer = "union"\ncopy = ["embed_tokens", "lm_head"]\n').build()
    a, b, m = (rows(two, name)[0] for name in ("a", "b", "m"))
    assert np.array_equal(m["x"], a["x"])
    assert np.array_equal(m["w"], b["w"])


def test_a_stack_of_two_models_has_rows_for_the_tokens_of_both(two):
    text = '[merge.m]\nmethod = "passthrough"\ntokenizer = "union"\n'
    for name in "ab":
        text += f'[[merge.m.slices]]\nlayers = [0, 1]\nmodels = [{{ model = "{name}" }}]\n'
    two.merge(text).build()
    a, b = rows(two, "a")[0], rows(two, "b")[0]
    m = rows(two, "m")[0]
    assert np.array_equal(m["y"], a["y"])
    assert np.array_equal(m["w"], b["w"])
    head = rows(two, "m", HEAD)[0]
    assert np.array_equal(head["w"], rows(two, "b", HEAD)[0]["w"])
    assert np.array_equal(head["y"], rows(two, "a", HEAD)[0]["y"])


def test_ends_of_one_model_get_the_vocabulary_too(two):
    text = '[merge.m]\nmethod = "passthrough"\ntokenizer = "union"\nends = "b"\n'
    for name in "ab":
        text += f'[[merge.m.slices]]\nlayers = [0, 1]\nmodels = [{{ model = "{name}" }}]\n'
    two.merge(text).build()
    b, m = rows(two, "b")[0], rows(two, "m")[0]
    assert np.array_equal(m["x"], b["x"])
    assert two.config("m")["vocab_size"] == 6


def test_a_model_that_gives_an_end_alone_gives_its_tokens(two):
    text = '[merge.m]\nmethod = "passthrough"\nbase = "a"\ntokenizer = "union"\nends = ["b", "a"]\n'
    text += '[[merge.m.slices]]\nlayers = [0, 1]\nmodels = [{ model = "a" }]\n'
    two.merge(text).build()
    a, b, m = (rows(two, name)[0] for name in "abm")
    assert np.array_equal(m["x"], b["x"])
    assert np.array_equal(m["w"], b["w"])
    assert np.array_equal(m["y"], a["y"])
    heads_of = {name: rows(two, name, HEAD)[0] for name in "abm"}
    assert np.array_equal(heads_of["m"]["x"], heads_of["a"]["x"])
    assert np.array_equal(heads_of["m"]["w"], heads_of["b"]["w"])
    assert two.config("m")["vocab_size"] == 6


def heads(world, tied):
    """Two models, tied where it says so; one more row in the second."""
    for seed, (name, words) in enumerate({"a": "x", "b": "x y"}.items(), start=1):
        size = word_level(world.root / name, words.split())
        options = {"drop": [HEAD]} if name in tied else {}
        config = {"tie_word_embeddings": name in tied}
        model(world, name, size, seed=seed, dtype="float32", config=config, **options)
    return world


@pytest.mark.parametrize("tied", ["a", "b", "ab"])
@pytest.mark.parametrize("choice", ["union", "base"])
def test_tied_heads_are_their_models_embeddings(tmp_path, tied, choice):
    world = heads(MergeWorld(tmp_path), tied)
    world.merge(LERP + f'tokenizer = "{choice}"\n').build()
    embeddings = [rows(world, name)[0] for name in "ab"]
    used = [embeddings[i] if name in tied else rows(world, name, HEAD)[0] for i, name in enumerate("ab")]
    made = world.floats("m")
    assert (HEAD in made) == (tied != "ab")
    assert world.config("m")["tie_word_embeddings"] is (tied == "ab")
    m = rows(world, "m", HEAD if tied != "ab" else EMBED)[0]
    assert np.allclose(m["x"], half(used[0]["x"], used[1]["x"]), atol=1e-7)
    if choice == "union":
        assert np.array_equal(m["y"], used[1]["y"])


def test_an_embedding_by_any_name_is_aligned_and_told_in_the_config(world):
    """State-space models call it `embeddings` and their layers otherwise than transformers of text do."""
    for seed, (name, words) in enumerate({"a": "x", "b": "x y"}.items(), start=1):
        size = word_level(world.root / name, words.split())
        table = pico.narrow("F32", np.random.default_rng(seed).standard_normal((size, 8)).astype(np.float32))
        model(
            world,
            name,
            size,
            seed=seed,
            dtype="float32",
            drop=ENDS,
            extra={"backbone.embeddings.weight": ("F32", table)},
        )
    made = world.made(LERP + 'tokenizer = "union"\n')
    assert made["backbone.embeddings.weight"][1].shape == (3, 8)
    assert world.config("m")["vocab_size"] == 3


def test_a_bias_of_the_head_has_rows_too(world):
    for seed, (name, words) in enumerate({"a": "x y", "b": "z x"}.items(), start=1):
        size = word_level(world.root / name, words.split())
        bias = np.arange(size, dtype=np.float32) + 10 * seed
        model(world, name, size, seed=seed, dtype="float32", extra={"lm_head.bias": ("F32", bias)})
    made = world.made(HALF + 'tokenizer = "union"\n')
    assert made["lm_head.bias"][1].tolist() == [15, (11 + 22) / 2, 12, 21]


def test_a_tied_model_may_store_its_head_all_the_same(world):
    for seed, name in enumerate("ab", start=1):
        drop = [HEAD] if name == "a" else []
        model(
            world,
            name,
            word_level(world.root / name, ["x"]),
            seed=seed,
            drop=drop,
            config={"tie_word_embeddings": True},
        )
    made = world.made(LERP)
    assert HEAD not in made
    assert world.config("m")["tie_word_embeddings"] is True


def test_a_merge_of_a_merge_is_aligned_like_any_model(world):
    world_of(world, {"a": "x y", "b": "y x", "c": "z y"})
    first = LERP.replace("merge.m", "merge.first") + 'tokenizer = "union"\n'
    second = '[merge.m]\nmethod = "lerp"\nbase = "first"\nmodels = [{ model = "c", t = 0.5 }]\ntokenizer = "union"\n'
    world.merge(first + second)
    # The computed embedding and head are written once, and rows are read from there.
    assert world.plan()["first"].kept == 2
    world.build()
    a, b, c, m = (rows(world, name)[0] for name in "abcm")
    assert np.allclose(m["y"], half(half(a["y"], b["y"]), c["y"]), atol=1e-7)
    assert np.array_equal(m["z"], c["z"])
    assert world.from_nothing().bytes("m") == world.bytes("m")


@pytest.mark.parametrize("keep", ["true", "false"])
def test_rows_of_a_computed_tensor_are_the_same_however_it_is_kept(world, keep):
    world_of(world, {"a": "x y", "b": "y x", "c": "z y"})
    first = LERP.replace("merge.m", "merge.first") + f'tokenizer = "union"\nkeep = {keep}\n'
    second = '[merge.m]\nmethod = "lerp"\nbase = "first"\nmodels = [{ model = "c", t = 0.5 }]\ntokenizer = "union"\n'
    world.merge(first + second).build()
    a, b, c, m = (rows(world, name)[0] for name in "abcm")
    assert np.allclose(m["y"], half(half(a["y"], b["y"]), c["y"]), atol=1e-7)
    assert np.array_equal(m["z"], c["z"])
    before = world.bytes("m")
    world.build(no_cache=True)
    assert world.bytes("m") == before


class Told(Listener):
    """Remembers what the user is told."""

    def __init__(self):
        super().__init__()
        self.said = []

    def say(self, text):
        self.said.append(text)


def test_a_damaged_computed_tensor_is_made_anew(world):
    world_of(world, {"a": "x y", "b": "y x", "c": "z y"})
    first = LERP.replace("merge.m", "merge.first") + 'tokenizer = "union"\n'
    second = '[merge.m]\nmethod = "lerp"\nbase = "first"\nmodels = [{ model = "c", t = 0.5 }]\ntokenizer = "union"\n'
    world.merge(first + second).build("first")
    raw = world.tensors("first")[EMBED][1].tobytes()
    (path,) = [path for path in world.cache.rglob("*.safetensors") if raw in path.read_bytes()]
    data = bytearray(path.read_bytes())
    data[data.index(raw) + 3] ^= 0x10
    before = path.stat()
    path.chmod(0o644)
    path.write_bytes(data)
    # As bits that rot: nothing about the file tells.
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    told = Told()
    world.build("m", listener=told)
    assert "1 tensor in the cache is damaged; it is made anew" in told.said
    assert world.bytes("m")["model.safetensors"] == world.from_nothing("m").bytes("m")["model.safetensors"]


def test_the_same_bytes_for_any_threads_memory_and_tile(two, monkeypatch):
    two.merge(HALF + 'tokenizer = "union"\npad_to_multiple_of = 32\n').build(jobs=1)
    first = two.bytes("m")
    assert two.from_nothing(jobs=4, memory="64MB").bytes("m") == first
    monkeypatch.setattr("modelbuild.kernels.rows.BLOCK", 8)
    assert two.from_nothing(jobs=2).bytes("m") == first


@pytest.mark.parametrize("seed", ["0", "7"])
def test_the_same_bytes_for_any_hash_seed(two, seed):
    two.merge(HALF + 'tokenizer = "union"\n[merge.m.tokens]\n"<n>" = { zero = true }\n').build()
    copy = two.copy()
    ran = copy.run("build", "--durability", "none", PYTHONHASHSEED=seed)
    assert ran.returncode == 0, ran.stderr
    assert copy.bytes("m") == two.bytes("m")


# --- files ------------------------------------------------------------------------------------------------------------


def texts(folder, *names):
    return {name: (folder / name).read_bytes() for name in names}


def test_the_files_of_a_vocabulary_that_is_one_models_are_its_own_byte_for_byte(two):
    (two.root / "b" / "LICENSE").write_text("b's")
    (two.root / "a" / "LICENSE").write_text("a's")
    names = ("tokenizer.json", "tokenizer_config.json")
    two.merge(LERP + 'tokenizer = "base"\n').build()
    assert texts(two.out / "m", *names) == texts(two.root / "a", *names)
    two.edit('"base"\n', '"b"\n').build()
    assert texts(two.out / "m", *names) == texts(two.root / "b", *names)
    assert (two.out / "m" / "LICENSE").read_text() == "a's"


def test_files_of_the_donors_tokenizer_that_another_has_not_are_left_out(two):
    (two.root / "a" / "special_tokens_map.json").write_text("{}")
    (two.root / "b" / "added_tokens.json").write_text("{}")
    two.merge(LERP + 'tokenizer = "b"\n').build()
    names = {path.name for path in (two.out / "m").iterdir()}
    assert "special_tokens_map.json" not in names
    assert "added_tokens.json" in names


def test_ids_in_the_configs_follow_their_tokens(world):
    for seed, (name, words) in enumerate({"a": "x s e", "b": "e x s p"}.items(), start=1):
        size = word_level(world.root / name, words.split())
        model(world, name, size, seed=seed, config={"bos_token_id": 2, "eos_token_id": [3, 1], "pad_token_id": None})
        ids = {"bos_token_id": 2, "eos_token_id": 3, "max_length": 3}
        (world.root / name / "generation_config.json").write_text(json.dumps(ids))
        if name == "b":
            config = json.loads((world.root / "b" / "config.json").read_text())
            kept = {key: value for key, value in config.items() if key not in ("bos_token_id", "eos_token_id")}
            (world.root / "b" / "config.json").write_text(json.dumps(kept | {"eos_token_id": 1}))
            (world.root / "b" / "generation_config.json").write_text("{}")
    world.merge(LERP + 'tokenizer = "b"\n').build()
    config = world.config("m")
    assert (config["bos_token_id"], config["eos_token_id"], config["pad_token_id"]) == (3, 1, None)
    generation = json.loads((world.out / "m" / "generation_config.json").read_text())
    assert generation == {"bos_token_id": 3, "eos_token_id": 1, "max_length": 3}
    world.edit('tokenizer = "b"\n', 'tokenizer = "b"\nconfig = { eos_token_id = 4 }\n').build()
    assert world.config("m")["eos_token_id"] == 4


def test_the_ids_of_a_union_are_the_donors(two):
    before = two.config("a")
    two.merge(LERP + 'tokenizer = "union"\n').build()
    assert {**two.config("m"), "vocab_size": 0} == {**before, "vocab_size": 0}


# --- what is told -----------------------------------------------------------------------------------------------------


def test_the_plan_tells_what_becomes_of_every_models_rows(two):
    notes = two.merge(HALF + 'tokenizer = "union"\n').plan().notes
    assert notes == (
        "m: rows of `a`: 4 kept, 2 filled",
        "m: rows of `b`: 5 kept, 1 filled, 2 of its tokens are new to `a`",
    )
    notes = two.edit('"union"', '"base"').plan().notes
    assert notes == ("m: rows of `b`: 3 kept, 1 filled, 2 dropped",)


def test_why_tells_that_the_vocabulary_changed(two):
    two.merge(LERP + 'tokenizer = "union"\n').build()
    two.edit('"union"', '"base"')
    causes = [cause for cause, _ in two.why("m", EMBED).causes]
    assert any(cause.startswith("rows of `b`") for cause in causes)
    assert any(cause.startswith("shape [6, 8] → [4, 8]") for cause in causes)
    assert two.why("m", "model.norm.weight").causes == ()


def test_why_of_a_tensor_names_the_tensors_whose_rows_it_has(two):
    two.merge(LERP + 'tokenizer = "union"\n').build()
    steps = two.why("m", EMBED).steps
    assert steps[0] == f"rows of {EMBED} of `a` from model.safetensors (F32 4×8)"
    assert [step.split()[0] for step in steps] == ["rows", "rows", "rows", "rows", "rows", "rows", "lerp"]


def test_a_build_without_anything_new_takes_rows_from_the_cache(two):
    two.merge(LERP + 'tokenizer = "union"\n').build()
    two.edit('"union"', '"base"').build()
    again = two.edit('"base"', '"union"').build(require_cached=True)
    assert again["m"].tensors.computed == 0
    two.edit("0.5", "0.25")
    with pytest.raises(NotCached):
        two.build(require_cached=True)


def test_without_a_choice_models_of_different_vocabularies_are_refused_with_the_fix(two):
    assert two.refusal(HALF) == (
        "error: `b` and `a` have different vocabularies\n"
        "  --> Modelfile:7:42\n"
        "   |  `model.embed_tokens.weight` has 4 rows in `a`, 5 in `b`\n"
        "   |  `lm_head.weight` has 4 rows in `a`, 5 in `b`\n\n"
        'hint: choose a vocabulary: tokenizer = "union", "base" or the name of an input; '
        'or leave these tensors to the donor: copy = ["embed_tokens", "lm_head"]'
    )


def test_a_model_without_a_tokenizer_has_the_donors_if_it_has_as_many_rows(two):
    model(two, "c", 4, seed=3, dtype="float32")
    result = two.merge(LERP.replace('"b"', '"c"') + 'tokenizer = "union"\n').build()
    assert result.notes == ("m: `c` has no tokenizer: its rows are taken to be those of `a`",)
    model(two, "d", 7, seed=3, dtype="float32")
    with pytest.raises(BuildFailed) as caught:
        two.merge(LERP.replace('"b"', '"d"') + 'tokenizer = "union"\n').build()
    refusal = caught.value.render()
    assert refusal.startswith("error: `d` has no tokenizer\n")
    assert "there is no tokenizer.json or tokenizer.model in it" in refusal


def test_a_tokenizer_that_cannot_be_read_is_refused_with_the_reason(two):
    (two.root / "b" / "tokenizer.json").write_text("{")
    assert two.refusal(LERP + 'tokenizer = "union"\n').startswith(
        "error: the tokenizer of `b` cannot be merged\n  --> Modelfile:9:1\n   |  its `tokenizer.json` is not JSON"
    )


def test_adapters_are_folded_into_the_vocabulary_that_is_there(two):
    two.lora("s", "a", seed=5)
    text = '[merge.m]\nmethod = "lora"\nbase = "a"\nadapters = [{ adapter = "s" }]\npad_to_multiple_of = 8\n'
    assert "`pad_to_multiple_of` has no meaning with method `lora`" in two.refusal(text, code=2)


# --- the case that unions are made for --------------------------------------------------------------------------------


def test_a_japanese_and_an_english_model_merge_into_one_that_reads_both(world):
    sizes = {
        "swallow": spm(world.root / "swallow", JAPANESE + ENGLISH[:2], 460),
        "tulu": spm(world.root / "tulu", ENGLISH, 360),
    }
    for seed, (name, size) in enumerate(sizes.items(), start=1):
        model(world, name, size, seed=seed)
    world.merge(
        '[merge.m]\nmethod = "task_arithmetic"\nbase = "swallow"\ntokenizer = "union"\n'
        'models = [{ model = "tulu", weight = [{ match = "mlp", value = 0.5 }, { value = 0 }] }]\n'
    )
    result = world.build()
    made, swallow = world.tensors("m"), world.source("swallow")
    unchanged = [name for name in swallow if "mlp" not in name and name not in ENDS]
    assert unchanged
    assert all(same(made[name], swallow[name]) for name in unchanged)
    assert result["m"].tensors.copied >= len(unchanged)
    both = auto(world.out / "m")
    assert len(both) == world.config("m")["vocab_size"] == made[EMBED][1].shape[0]
    own = auto(world.root / "swallow")
    assert all(tokens(both, line) == tokens(own, line) for line in JAPANESE)
    for line in ["the dog reads 日本語の文章", *ENGLISH]:
        assert both.decode(both(line)["input_ids"], skip_special_tokens=True).strip() == line
    ours, theirs = rows(world, "m")[0], rows(world, "swallow")[0]
    assert all(np.array_equal(ours[token], row) for token, row in theirs.items())
    from oracles import load

    load(world.out / "m")
