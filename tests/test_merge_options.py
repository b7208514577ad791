"""What every merge takes besides its method: dtypes, only, copy, config, generation, shards; and what it refuses."""

import json
from itertools import product

import numpy as np
import pytest
import torch
from merging import MergeWorld, different, fma, rounded, same, widened
from oracles import load, logits

LERP = '[merge.m]\nmethod = "lerp"\nbase = "a"\nmodels = [{ model = "b", t = 0.5 }]\n'
LINEAR = '[merge.m]\nmethod = "linear"\nmodels = [{ model = "a", weight = %s }, { model = "b", weight = %s }]\n'
CODES = {"bfloat16": "BF16", "float16": "F16", "float32": "F32"}


@pytest.fixture
def world(tmp_path):
    return MergeWorld(tmp_path)


@pytest.fixture
def pair(world):
    """Two llamas of two layers."""
    return world.model("a", seed=1).model("b", seed=2)


def half(a, b, code=None):
    """Halfway between two raw tensors, in the first one's dtype."""
    x, y = widened(a), widened(b)
    return rounded(fma(np.float32(0.5), y - x, x), code or a[0])


def with_tensor(world, name, a, b):
    """Two models that share everything but their seeds, with one tensor more in each."""
    world.model("a", seed=1, extra={name: a}).model("b", seed=2, extra={name: b})


# --- dtypes -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("first", "second", "out"), list(product(CODES, CODES, [None, *CODES])))
def test_any_mix_of_dtypes_is_float32_arithmetic_rounded_once(world, first, second, out):
    """A quarter of b is exact, so that torch, which rounds product and sum, and a fused multiply-add agree."""
    world.model("a", seed=1, dtype=first, layers=1).model("b", seed=2, dtype=second, layers=1)
    made = world.made(LINEAR % (0.75, 0.25) + (f'dtype = "{out}"\n' if out else ""))
    wanted = getattr(torch, out or first)
    for name, (code, raw) in made.items():
        x, y = (torch.from_numpy(np.array(world.floats(n)[name])) for n in "ab")
        expected = (x * 0.75 + y * 0.25).to(wanted)
        assert code == CODES[out or first]
        assert np.array_equal(widened((code, raw)), expected.float().numpy())
    assert world.config("m")["dtype"] == (out or first)


def test_a_dtype_in_settings_is_that_of_every_merge_that_has_none_of_its_own(pair):
    text = '[settings]\ndtype = "float32"\n' + LERP + LERP.replace("merge.m", "merge.n") + 'dtype = "float16"\n'
    pair.merge(text).build()
    assert {code for code, _ in pair.tensors("m").values()} == {"F32"}
    assert {code for code, _ in pair.tensors("n").values()} == {"F16"}


def test_an_intermediate_is_rounded_to_its_own_dtype(pair):
    """The same whether it is streamed or built."""
    text = LERP + '[merge.n]\nmethod = "lerp"\nbase = "a"\nmodels = [{ model = "m", t = 0.5 }]\ndtype = "float32"\n'
    pair.merge(text).build()
    a, b = pair.source("a"), pair.source("b")
    streamed = pair.tensors("n")
    for name in a:
        assert same(streamed[name], half(a[name], half(a[name], b[name]), "F32"))
    other = pair.copy()
    other.build("m")
    other.build("n")
    assert different(other.tensors("n"), streamed) == []


def test_a_cast_rounds_to_the_nearest_even_and_beyond_the_range_to_infinity(world):
    """Halfway cases of bfloat16, and what float16 cannot hold."""
    values = np.float32([1 + 2**-8, 1 + 3 * 2**-8, 1 + 2**-8 + 2**-20, -65520.0, 65519.0, 2**-24, 2**-25, 3 * 2**-26])
    with_tensor(world, "x", ("F32", values), ("F32", values))
    text = '[merge.m]\nmethod = "passthrough"\nmodels = [{ model = "a" }]\ndtype = "%s"\n'
    made = widened(world.made(text % "bfloat16")["x"])
    assert made.tolist() == [1, 1 + 2**-6, 1 + 2**-7, -65536, 65536, 2**-24, 2**-25, 3 * 2**-26]
    halves = widened(world.made(text % "float16")["x"])
    assert halves.tolist() == [1 + 2**-8, 1 + 3 * 2**-8, 1 + 2**-8, -np.inf, 65504, 2**-24, 0, 2**-24]
    assert halves.tolist() == torch.from_numpy(values).half().float().tolist()


def test_whole_numbers_and_truth_values_keep_their_dtype_and_bytes(world):
    world.model("a", seed=1, extra=(buffers := {
        "model.layers.0.steps": ("I64", np.array([2**60, -1], np.int64)),
        "model.mask": ("BOOL", np.array([[1, 0], [0, 1]], np.uint8)),
        "model.small": ("I8", np.array([-128, 127], np.int8)),
    })).model("b", seed=2, extra=buffers)  # fmt: skip
    made = world.made(LERP + 'dtype = "float16"\n')
    assert all(same(made[name], tensor) for name, tensor in buffers.items())
    assert world.config("m")["dtype"] == "float16"


@pytest.mark.parametrize("dtype", ["BF16", "F16", "F32"])
def test_empty_scalar_and_single_tensors_are_merged_like_any(world, dtype):
    shapes = {"empty": (0,), "none": (3, 0, 2), "scalar": (), "single": (1,), "odd": (1, 1, 3)}
    one, two = ({name: rounded(np.full(shape, value), dtype) for name, shape in shapes.items()} for value in (1, 2))
    world.model("a", seed=1, extra=one).model("b", seed=2, extra=two)
    made = world.made(LERP)
    for name, shape in shapes.items():
        assert same(made[name], rounded(np.full(shape, 1.5), dtype))


# --- numbers that are none --------------------------------------------------------------------------------------------


def test_nan_and_infinities_are_kept_and_reported_by_name(world):
    a = np.float32([np.nan, np.inf, -np.inf, np.inf, 1, 65504])
    b = np.float32([1, 1, 1, -np.inf, np.inf, 65504])
    with_tensor(world, "model.odd.weight", rounded(a, "F16"), rounded(b, "F16"))
    result = world.merge(LINEAR % (1, 1) + "normalize = false\n").build()
    assert np.array_equal(widened(world.tensors("m")["model.odd.weight"]),
                          np.float32([np.nan, np.inf, -np.inf, np.nan, np.inf, np.inf]), equal_nan=True)  # fmt: skip
    assert "NaN or infinite values in `model.odd.weight` (6)" in result["m"].notes


def test_many_tensors_with_nan_are_counted_and_some_named(world):
    extra = {f"x{n}": rounded(np.full(3, np.nan)) for n in range(7)}
    world.model("a", seed=1, extra=extra).model("b", seed=2, extra=extra)
    (note,) = world.merge(LERP).build()["m"].notes
    assert note == "NaN or infinite values in `x0` (3), `x1` (3), `x2` (3), `x3` (3), `x4` (3) and 2 more"


def test_nan_in_a_tensor_that_is_only_copied_is_reported_as_well(world):
    world.model("a", seed=1, extra={"x": rounded(np.float32([1, np.nan, np.inf]))})
    result = world.merge('[merge.m]\nmethod = "passthrough"\nmodels = [{ model = "a" }]\n').build()
    assert same(world.tensors("m")["x"], world.source("a")["x"])
    assert result["m"].notes == ("NaN or infinite values in `x` (2)",)


def test_the_nan_of_a_model_at_weight_0_does_not_spread(world):
    with_tensor(world, "x", rounded(np.ones(4)), rounded(np.full(4, np.nan)))
    result = world.merge(LINEAR % (1, 0)).build()
    assert widened(world.tensors("m")["x"]).tolist() == [1, 1, 1, 1]
    assert (result["m"].notes, result["m"].tensors.computed) == ((), 0)


# --- only and copy ----------------------------------------------------------------------------------------------------


def test_only_merges_what_its_patterns_hold_and_takes_the_rest_from_the_donor(pair):
    made = pair.made(LERP + 'only = ["mlp", "layers.1.*q_proj"]\n')
    chosen = [name for name in made if "mlp" in name or "layers.1.self_attn.q_proj" in name]
    assert sorted(different(made, pair.source("a"))) == sorted(chosen)
    assert len(chosen) == 7


def test_copy_takes_what_its_patterns_hold_from_the_donor(pair):
    made = pair.made(LERP + 'copy = ["embed_tokens", "lm_head"]\n')
    kept = [name for name in made if name not in different(made, pair.source("a"))]
    assert sorted(kept) == ["lm_head.weight", "model.embed_tokens.weight"]


def test_copy_has_the_last_word_over_only(pair):
    made = pair.made(LERP + 'only = ["mlp"]\ncopy = ["layers.0."]\n')
    assert set(different(made, pair.source("a"))) == {n for n in made if "layers.1.mlp" in n}


def test_what_is_copied_is_rounded_to_the_dtype_as_well(pair):
    made = pair.made(LERP + 'only = ["mlp"]\ndtype = "float32"\n')
    assert {code for code, _ in made.values()} == {"F32"}
    assert np.array_equal(widened(made["lm_head.weight"]), pair.floats("a")["lm_head.weight"])


def test_models_that_differ_elsewhere_fit_where_they_are_merged(world):
    """Another vocabulary, another number of layers and a tensor more: only what is merged has to agree."""
    world.model("a", seed=1).model("b", seed=2, vocab=66, layers=3, extra={"x": rounded(np.ones(2))})
    made = world.made(LERP + 'only = ["layers.0.", "layers.1."]\n')
    assert len(different(made, world.source("a"))) == 2 * 9


# --- config, generation, shards ---------------------------------------------------------------------------------------


def test_config_overrides_keys_and_reaches_into_tables(pair):
    pair.merge(LERP + "config = { max_position_embeddings = 128, rope_parameters = { factor = 2.0 } }\n").build()
    made, base = pair.config("m"), pair.config("a")
    assert made["max_position_embeddings"] == 128
    assert made["rope_parameters"] == {**base["rope_parameters"], "factor": 2.0}
    same_keys = [key for key in base if key not in ("max_position_embeddings", "rope_parameters")]
    assert all(made[key] == base[key] for key in same_keys)
    assert list(made) == list(base)


def test_config_of_a_merge_goes_on_to_what_is_made_of_it(pair):
    later = (
        '[merge.n]\nmethod = "lerp"\nbase = "m"\nmodels = [{ model = "b", t = 0.5 }]\nconfig = { use_cache = false }\n'
    )
    pair.merge(f"{LERP}config = {{ max_position_embeddings = 128 }}\n{later}").build()
    assert (pair.config("n")["max_position_embeddings"], pair.config("n")["use_cache"]) == (128, False)


def test_generation_overrides_generation_config(pair):
    pair.merge(LERP + "generation = { temperature = 0.7, do_sample = true }\n").build()
    made, base = (json.loads((pair.folder(name) / "generation_config.json").read_text()) for name in "ma")
    assert made == base | {"temperature": 0.7, "do_sample": True}
    assert load(pair.out / "m").generation_config.temperature == 0.7


def test_another_config_computes_no_tensor(pair):
    pair.merge(LERP).build()
    again = pair.merge(LERP + "config = { use_cache = false }\n").build()["m"]
    assert (again.status, again.tensors.computed, again.tensors.reused) == ("built", 0, 21)
    assert pair.config("m")["use_cache"] is False


def test_shards_are_no_larger_than_asked_and_the_index_names_each(pair):
    pair.merge('[settings]\nshard_size = "12KB"\n' + LERP).build()
    out = pair.out / "m"
    index = json.loads((out / "model.safetensors.index.json").read_text())
    shards = sorted(path.name for path in out.glob("*.safetensors"))
    assert sorted(set(index["weight_map"].values())) == shards
    assert shards[0] == f"model-00001-of-{len(shards):05}.safetensors"
    assert len(shards) > 3
    for name in shards:
        own = [tensor for tensor, file in index["weight_map"].items() if file == name]
        assert sum(pair.tensors("m")[tensor][1].nbytes for tensor in own) <= 12_000
    assert index["metadata"]["total_size"] == sum(raw.nbytes for _, raw in pair.tensors("m").values())
    whole = pair.copy()
    whole.edit('[settings]\nshard_size = "12KB"\n', "").build()
    assert different(pair.tensors("m"), whole.tensors("m")) == []
    assert np.array_equal(logits(load(out)), logits(load(whole.out / "m")))


# --- what does not fit ------------------------------------------------------------------------------------------------


def test_another_number_of_layers_is_said_first_and_once(world):
    world.model("a", seed=1).model("b", seed=2, layers=3)
    assert world.refusal(LERP) == (
        "error: `b` does not fit `a` in merge `m`: it has another number of layers\n"
        "  --> Modelfile:8:11\n"
        "   |  `a` has 2 layers, `b` has 3\n\n"
        "hint: choose equally many layers of each with `slices`"
    )


def test_fewer_layers_are_said_before_other_misfits(world):
    world.model("a", seed=1, layers=3).model("b", seed=2, vocab=66)
    first, second = world.refusal(LERP).split("\n\nerror: ")
    assert "`a` has 3 layers, `b` has 2" in first
    assert second.startswith("`b` and `a` have different vocabularies")
    assert "layers.2" not in first + second


def test_of_several_stacks_the_one_is_named_that_differs(world):
    world.model("a", "llava", seed=1).model("b", "llava", seed=2, layers=3)
    text = world.refusal(LERP)
    assert "`a` has 2 layers in `language_model.model.layers`, `b` has 3" in text
    assert text.count("error:") == 1


def test_missing_tensors_are_named(world):
    world.model("a", seed=1).model("b", seed=2, drop=["lm_head.weight", "model.layers.1.mlp.up_proj.weight"])
    assert world.refusal(LERP) == (
        "error: `b` does not fit `a` in merge `m`: tensors are missing\n"
        "  --> Modelfile:8:11\n"
        "   |  `model.layers.1.mlp.up_proj.weight` is not in `b`\n"
        "   |  `lm_head.weight` is not in `b`\n\n"
        "hint: restrict the merge to what both have (only = [PATTERN]), or take it from the donor (copy = [PATTERN])"
    )


def test_extra_tensors_are_named_and_of_many_the_first(world):
    world.model("a", seed=1).model("b", seed=2, extra={f"x{n}": rounded(np.ones(2)) for n in range(7)})
    assert world.refusal(LERP) == (
        "error: `b` does not fit `a` in merge `m`: it has tensors that `a` lacks\n"
        "  --> Modelfile:8:11\n"
        "   |  `x0` is only in `b`\n"
        "   |  `x1` is only in `b`\n"
        "   |  `x2` is only in `b`\n"
        "   |  `x3` is only in `b`\n"
        "   |  `x4` is only in `b`\n"
        "   |  and 2 more\n\n"
        "hint: restrict the merge to what both have (only = [PATTERN]), or take it from the donor (copy = [PATTERN])"
    )
    assert "x0" not in world.made(LERP + 'copy = ["x"]\n')


def test_an_extra_tensor_that_only_asks_for_is_refused(world):
    world.model("a", seed=1).model("b", seed=2, extra={"model.layers.0.mlp.x": rounded(np.ones(2))})
    assert "`model.layers.0.mlp.x` is only in `b`" in world.refusal(LERP + 'only = ["mlp"]\n')
    world.made(LERP + 'only = ["self_attn"]\n')


@pytest.mark.parametrize("name", ["model.layers.0.self_attn.rotary_emb.inv_freq", "transformer.h.0.attn.masked_bias"])
@pytest.mark.parametrize("where", ["a", "b"])
def test_buffers_that_loading_recomputes_may_be_in_one_model_only(world, name, where):
    for seed, model in enumerate("ab", start=1):
        world.model(model, seed=seed, extra={name: ("F32", np.ones(4, np.float32))} if model == where else {})
    made = world.made(LERP)
    assert (name in made) == (where == "a")


def test_other_shapes_are_named_with_both(world):
    with_tensor(world, "x", rounded(np.ones((2, 3))), rounded(np.ones((3, 2))))
    assert world.refusal(LERP) == (
        "error: `b` does not fit `a` in merge `m`: shapes differ\n"
        "  --> Modelfile:8:11\n"
        "   |  `x` is [2, 3] in `a` and [3, 2] in `b`"
    )


def test_another_vocabulary_is_refused_with_its_size_and_may_be_left_to_the_donor(world):
    world.model("a", seed=1).model("b", seed=2, vocab=66)
    assert world.refusal(LERP) == (
        "error: `b` and `a` have different vocabularies\n"
        "  --> Modelfile:8:11\n"
        "   |  `model.embed_tokens.weight` has 64 rows in `a`, 66 in `b`\n"
        "   |  `lm_head.weight` has 64 rows in `a`, 66 in `b`\n\n"
        'hint: choose a vocabulary: tokenizer = "union", "base" or the name of an input; '
        "or leave these tensors to the donor: "
        'copy = ["embed_tokens", "lm_head"]'
    )
    made = world.made(LERP + 'copy = ["embed_tokens", "lm_head"]\n')
    assert same(made["lm_head.weight"], world.source("a")["lm_head.weight"])


def test_whole_numbers_that_differ_are_refused_and_may_be_copied(world):
    with_tensor(world, "x", ("I64", np.arange(3)), ("I64", np.arange(3) + 1))
    assert world.refusal(LERP) == (
        "error: `b` and `a` differ in tensors that cannot be merged\n"
        "  --> Modelfile:8:11\n"
        "   |  `x` (I64) has other values in `b`\n\n"
        "hint: only BF16, F16 and F32 are computed with; take them from the donor: copy = [PATTERN]"
    )
    assert same(world.made(LERP + 'copy = ["x"]\n')["x"], ("I64", np.arange(3)))


@pytest.mark.parametrize(("a", "b"), [("I32", "I64"), ("I64", "F32"), ("F32", "I64"), ("F64", "F32"), ("F32", "F64")])
def test_dtypes_that_do_not_go_together_are_refused(world, a, b):
    numpy = {"I32": np.int32, "I64": np.int64, "F32": np.float32, "F64": np.float64}
    with_tensor(world, "x", (a, np.ones(3, numpy[a])), (b, np.ones(3, numpy[b])))
    assert f"`x` is {a} in `a`, {b} in `b`" in world.refusal(LERP)


def test_weights_that_sum_to_nothing_are_refused_by_the_tensors_name(pair):
    weight = '[{ match = "layers.1.mlp", value = -1.0 }, { value = 1.0 }]'
    assert pair.refusal(LINEAR % (1.0, weight)) == (
        "error: merge `m` cannot compute some tensors\n"
        "  --> Modelfile:5:8\n"
        "   |  `model.layers.1.mlp.gate_proj.weight`: its normalised weights sum to 0\n"
        "   |  `model.layers.1.mlp.up_proj.weight`: its normalised weights sum to 0\n"
        "   |  `model.layers.1.mlp.down_proj.weight`: its normalised weights sum to 0"
    )
    pair.made(LINEAR % (1.0, weight) + "normalize = false\n")


def test_weights_that_are_all_0_are_refused(pair):
    assert "`model.norm.weight`: all its weights are 0" in pair.refusal(
        LINEAR % (0, '[{ match = "norm", value = 0 }, { value = 1 }]')
    )


def test_a_tensor_without_a_value_is_named_with_what_it_lacks(pair):
    text = pair.refusal(LINEAR % (1, '[{ match = "layers", value = 1 }]'))
    assert text == (
        "error: no value for weight of `b` in merge `m`\n"
        "  --> Modelfile:5:8\n"
        "   |  `model.embed_tokens.weight`\n"
        "   |  `model.norm.weight`\n"
        "   |  `lm_head.weight`\n\n"
        "hint: add an entry without `match` that fits everything else, or set it on the merge"
    )


def test_points_past_the_layers_are_refused_at_their_place(pair):
    text = LERP.replace("t = 0.5", "t = { points = [[0, 1.0], [2, 0.0]] }")
    assert pair.refusal(text) == (
        "error: points reach past the layers of `b`\n"
        "  --> Modelfile:8:26\n"
        "   |  the last point is at layer 2\n"
        "   |  `b` has 2 layers, numbered from 0"
    )
    nested = LERP.replace("t = 0.5", 't = [{ match = "mlp", value = { points = [[9, 1.0]] } }, { value = 0 }]')
    assert "the last point is at layer 9" in pair.refusal(nested)


def test_every_misfit_of_a_merge_is_told_at_once(world):
    world.model("a", seed=1).model("b", seed=2, drop=["lm_head.weight"], extra={"x": rounded(np.ones(2))})
    world.model("c", seed=3, vocab=66)
    text = world.refusal(
        '[merge.m]\nmethod = "linear"\nweight = 1\nmodels = [{ model = "a" }, { model = "b" }, { model = "c" }]\n'
    )
    assert text.count("error:") == 3
    for fact in ("`lm_head.weight` is not in `b`", "`x` is only in `b`", "has 64 rows in `a`, 66 in `c`"):
        assert fact in text


def test_nothing_is_written_when_the_plan_refuses(world):
    world.model("a", seed=1).model("b", seed=2, vocab=66)
    world.refusal(LERP)
    assert not list((world.root / "cache").rglob("*.safetensors"))
    assert not (world.root / "Modelfile.lock").exists()
