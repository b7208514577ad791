"""The two gradient merges of the examples, at small scale, bit for bit what their formulas say.

Models of 40 layers, as the real ones have, are 32 wide; the reference below knows nothing of modelbuild.
"""

import json
import re
from fractions import Fraction
from pathlib import Path

import numpy as np
import pico
import pytest
from hypothesis import given
from hypothesis import strategies as st
from merging import MergeWorld, different, fma, rounded, same, widened
from quantizing import saved

EXAMPLES = Path(__file__).parent.parent / "examples"
LAYERS, ALPHA, RANK, WEIGHT = 40, 16, 8, 0.25
TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
OUTSIDE = ("model.embed_tokens.weight", "model.norm.weight", "lm_head.weight")
finite = st.floats(width=32, allow_nan=False, allow_infinity=False)


# --- the formulas -----------------------------------------------------------------------------------------------------


def nearest_float32(value):
    """The float32 nearest to a fraction, found among the neighbours of a first guess; a tie goes to the even one."""
    guess = np.float32(float(value))
    around = [np.nextafter(guess, np.float32(-np.inf)), guess, np.nextafter(guess, np.float32(np.inf))]
    return min(around, key=lambda f: (abs(Fraction(float(f)) - value), int(f.view(np.uint32)) % 2))


@given(finite, finite, finite)
def test_the_reference_multiplies_and_adds_with_one_rounding(a, b, c):
    exact = Fraction(a) * Fraction(b) + Fraction(c)
    if abs(exact) < Fraction(2) ** 127:
        ours = fma(np.float32([a]), np.float32([b]), np.float32([c]))[0]
        assert ours == nearest_float32(exact)


def test_the_reference_does_not_round_twice():
    """1 + 2^-24 + 2^-60 is just above the middle of two float32; float64 loses the 2^-60, and would round to even."""
    a, b, c = np.float32([1 + 2**-12]), np.float32([2**-24]), np.float32([1])
    tiny = np.float32([2**-30])
    assert fma(tiny, tiny, np.float32(1))[0] == 1
    assert fma(a, b, c)[0] == np.float32(1 + 2**-23)
    assert np.float32(np.float64(1 + 2**-24) + np.float64(2**-60)) == 1
    assert fma(tiny, tiny, np.float64(1 + 2**-24))[0] == np.float32(1 + 2**-23)


def with_lora(base, adapter, config):
    """Every tensor of the base with the adapter folded in at 0.25: s·B·A as one chain over k, then one addition."""
    scale = np.float32(WEIGHT * config["lora_alpha"] / config["r"])
    result = dict(base)
    for key, tensor in adapter.items():
        if ".lora_A." not in key:
            continue
        name = key.removeprefix("base_model.model.").replace(".lora_A", "")
        a, b = widened(tensor), widened(adapter[key.replace("lora_A", "lora_B")])
        product = np.zeros((b.shape[0], a.shape[1]), np.float32)
        for k in range(a.shape[0]):
            product = fma(b[:, k : k + 1], a[k : k + 1, :], product)
        result[name] = rounded(widened(base[name]) + product * scale)
    return result


def gradient(base, other):
    """0.9 of `other` at layer 0, falling evenly to 0 at the 25th layer; nothing of it after that, or outside layers."""
    result = dict(base)
    for name in base:
        found = re.match(r"model\.layers\.(\d+)\.", name)
        if found and (layer := int(found[1])) < 24:
            t = np.float32(0.9 + (0.0 - 0.9) * (layer / 24))
            a, b = widened(base[name]), widened(other[name])
            result[name] = rounded(fma(t, b - a, a))
    return result


# --- the examples -----------------------------------------------------------------------------------------------------

SOURCES = {"elinas/chronos-13b-v2": "chronos", "jondurbin/airoboros-l2-13b-gpt4-2.0": "airoboros",
           "lemonilia/limarp-llama2": "limarp"}  # fmt: skip


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """The three sources, small: two fine-tunes of one model, and an adapter over all linear layers."""
    world = MergeWorld(tmp_path_factory.mktemp("sources"))
    for seed, name in enumerate(("chronos", "airoboros"), start=1):
        world.model(name, seed=seed, layers=LAYERS, intermediate=48, tuned_from=7, shards=2)
    return world.lora("limarp", "chronos", seed=3, rank=RANK, alpha=ALPHA, targets=TARGETS)


@pytest.fixture(scope="module")
def inputs(sources):
    config = json.loads((sources.root / "limarp" / "adapter_config.json").read_text())
    return sources.source("chronos"), sources.source("airoboros"), (sources.source("limarp"), config)


def example(sources, name, root):
    """The example's own Modelfile over the small sources."""
    text = (EXAMPLES / name / "Modelfile").read_text()
    for hub, local in SOURCES.items():
        assert f'"hf:{hub}"' in text
        text = text.replace(f'"hf:{hub}"', f'"{local}"')
    world = MergeWorld(root)
    for local in SOURCES.values():
        world.put(local, sources.root / local)
    return world.modelfile(text)


@pytest.fixture(scope="module")
def first(sources, tmp_path_factory):
    world = example(sources, "chronolima-airo-grad-l2-13b", tmp_path_factory.mktemp("first"))
    return world, world.build()


@pytest.fixture(scope="module")
def second(sources, tmp_path_factory):
    world = example(sources, "airolima-chronos-grad-l2-13b", tmp_path_factory.mktemp("second"))
    return world, world.build()


def test_chronolima_airo_is_its_formulas_to_the_bit(first, inputs):
    world, _ = first
    chronos, airoboros, limarp = inputs
    expected = gradient(with_lora(chronos, *limarp), airoboros)
    made = world.tensors("chronolima-airo")
    assert sorted(made) == sorted(expected)
    assert different(made, expected) == []


def test_airolima_chronos_is_its_formulas_to_the_bit(second, inputs):
    world, _ = second
    chronos, airoboros, limarp = inputs
    expected = gradient(chronos, with_lora(airoboros, *limarp))
    assert different(world.tensors("airolima-chronos"), expected) == []


def test_the_intermediate_is_the_same_when_it_is_a_target(first, inputs):
    world, _ = first
    world.build("chronolima")
    chronos, _, limarp = inputs
    assert different(world.tensors("chronolima"), with_lora(chronos, *limarp)) == []


def test_embeddings_final_norm_and_head_stay_those_of_the_base(first, second, inputs):
    chronos = inputs[0]
    for world, name in ((first[0], "chronolima-airo"), (second[0], "airolima-chronos")):
        assert all(same(world.tensors(name)[tensor], chronos[tensor]) for tensor in OUTSIDE)


def test_from_the_25th_layer_on_the_first_is_chronolima_and_the_second_chronos(first, second, inputs):
    chronos, _, limarp = inputs
    late = [name for name in chronos if any(f"model.layers.{n}." in name for n in range(24, LAYERS))]
    assert len(late) == 9 * 16
    chronolima = with_lora(chronos, *limarp)
    made, other = first[0].tensors("chronolima-airo"), second[0].tensors("airolima-chronos")
    assert all(same(made[name], chronolima[name]) for name in late)
    assert all(same(other[name], chronos[name]) for name in late)
    assert sum(not same(made[name], other[name]) for name in late) == 7 * 16


def test_what_the_25th_layer_ends_is_not_computed(first):
    """40 layers of 9 tensors, 7 of which the adapter touches, and 3 outside; 24 of the layers are blended."""
    _, result = first
    lora, blend = result["chronolima"], result["chronolima-airo"]
    assert (lora.status, lora.tensors.total, lora.tensors.computed, lora.tensors.copied) == ("streamed", 363, 280, 83)
    assert (blend.status, blend.tensors.total, blend.tensors.computed) == ("built", 363, 24 * 9)
    assert (blend.tensors.copied, blend.tensors.reused) == (16 * 2 + 3, 16 * 7)


def test_only_the_layers_that_are_blended_are_adapted(second):
    _, result = second
    lora, blend = result["airolima"], result["airolima-chronos"]
    assert (lora.tensors.total, lora.tensors.computed, lora.tensors.copied) == (363, 24 * 7, 24 * 2)
    assert (blend.tensors.computed, blend.tensors.copied, blend.tensors.reused) == (216, 147, 0)


def test_the_share_falls_evenly_from_nine_tenths_to_nothing(tmp_path):
    """r(L) = 0.9·(1 − L/24): between a model of zeros and one of ones, in float32, the output is r itself."""
    world = MergeWorld(tmp_path)
    shapes = {name: raw.shape for name, (_, raw) in world.model("x", layers=LAYERS, seed=1).source("x").items()}
    for name, value in (("zeros", 0.0), ("ones", 1.0)):
        filled = {tensor: ("F32", np.full(shape, value, np.float32)) for tensor, shape in shapes.items()}
        world.model(name, layers=LAYERS, dtype="float32", seed=1, extra=filled)
    points = "points = [[0, 0.9], [24, 0.0]]"
    made = world.made(
        f'[merge.m]\nmethod = "lerp"\nbase = "zeros"\nmodels = [{{ model = "ones", t = {{ {points} }} }}]\n'
    )
    for layer in range(LAYERS):
        share = max(0.0, 0.9 * (1 - layer / 24))
        values = widened(made[f"model.layers.{layer}.mlp.up_proj.weight"])
        assert np.allclose(values, share, rtol=0, atol=1e-7)
        assert (values == values.flat[0]).all()
    assert all((widened(made[name]) == 0).all() for name in OUTSIDE)


def test_building_an_example_again_does_nothing(first):
    world, _ = first
    again = world.build()
    assert (again["chronolima-airo"].status, again["chronolima-airo"].tensors.computed) == ("fresh", 0)


def test_each_ends_in_four_bits_as_transformers_packs_the_merge(first, second, tmp_path):
    for world, name in ((first[0], "chronolima-airo"), (second[0], "airolima-chronos")):
        theirs = saved(world.out / name, tmp_path / name, "nf4-dq") / "model.safetensors"
        assert (world.out / f"{name}-nf4" / "model.safetensors").read_bytes() == theirs.read_bytes()
    counts = first[1]["chronolima-airo-nf4"].tensors
    assert (counts.total, counts.computed) == (363, 280)


def test_config_and_tokenizer_are_those_of_the_base(first):
    world, _ = first
    made, base = world.out / "chronolima-airo", world.root / "chronos"
    for name in ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"):
        assert (made / name).read_bytes() == (base / name).read_bytes()
    assert pico.read_tensors(made).keys() == pico.read_tensors(base).keys()
