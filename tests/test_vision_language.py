"""Of a vision-language model the language model is merged and the rest is the base's, whatever modules are called."""

import json
import re

import numpy as np
import pico
import pytest
from merging import MergeWorld, different, rounded, same
from oracles import load, raw

from modelbuild.plan.language import language_of
from modelbuild.plan.layout import layout

VISION, PROJECTOR = "vision_tower.vision_model", "multi_modal_projector"
LAYOUTS = {
    "llava": {},
    "llava in one module": {
        r"language_model\.model\.": "model.language_model.",
        r"language_model\.lm_head": "lm_head",
        r"(vision_tower|multi_modal_projector)\.": r"model.\1.",
    },
    "llava as published": {
        r"language_model\.model\.": "model.",
        r"language_model\.lm_head": "lm_head",
        r"vision_tower\.": "model.vision_tower.vision_tower.",
        r"multi_modal_projector\.linear_(\d)": r"model.mm_projector.\1",
    },
    "qwen2-vl": {
        r"language_model\.model\.": "model.",
        r"language_model\.lm_head": "lm_head",
        r"vision_tower\.vision_model\.encoder\.layers": "visual.blocks",
        r"vision_tower\.vision_model\.": "visual.",
        r"multi_modal_projector\.": "visual.merger.",
    },
    "idefics": {
        r"language_model\.model\.": "model.text_model.",
        r"language_model\.lm_head": "lm_head",
        r"vision_tower\.vision_model\.": "model.vision_model.",
        r"multi_modal_projector\.": "model.connector.",
    },
    "internvl": {
        r"vision_tower\.vision_model\.": "vision_model.",
        r"multi_modal_projector\.linear_(\d)": r"mlp1.\1",
        r"language_model\.model\.embed_tokens": "language_model.model.tok_embeddings",
        r"language_model\.lm_head": "language_model.output",
    },
}
"""How the modules of pico's llava are called elsewhere: patterns at the start of names, the first that fits wins."""

LERP = '[merge.m]\nmethod = "lerp"\nbase = "a"\nmodels = [{ model = "b", t = %s }]\n'
NOTE = re.compile(r"m: only .* is merged; (\d+) tensors of .* are those of `a`: `only = \"\*\"` merges all")


def renamed(name, names):
    for old, new in names.items():
        found, count = re.subn(f"^{old}", new, name)
        if count:
            return found
    return name


class SeeingWorld(MergeWorld):
    """A world with vision-language models of any layout."""

    def seeing(self, name, kind="llava", flat=False, **options):
        """A pico llava with the names of a layout, `flat` with the text's config at the top of config.json."""
        self.model(name, "llava", **options)
        tensors = {renamed(old, LAYOUTS[kind]): tensor for old, tensor in self.source(name).items()}
        pico.write_safetensors(self.root / name / "model.safetensors", tensors)
        if flat:
            path = self.root / name / "config.json"
            config = json.loads(path.read_text())
            path.write_text(json.dumps(config.pop("text_config") | config))
        return self.age(name)


@pytest.fixture
def world(tmp_path):
    """A world of vision-language models."""
    return SeeingWorld(tmp_path)


def language(kind):
    """The names that the language model's tensors have in a layout, by those that they have in pico's llava."""
    sizes = {"hidden": 32, "intermediate": 64, "vocab": 64, "layers": 2, "heads": 4, "kv_heads": 4, "experts": 1}
    names = pico.shapes("llava", {**sizes, "vision_layers": 2})
    return {name: renamed(name, LAYOUTS[kind]) for name in names if name.startswith("language_model.")}


def halfway(a, b):
    return rounded(a + np.float32(0.5) * (b - a))


# --- what is language -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", LAYOUTS)
@pytest.mark.parametrize("flat", [False, True])
def test_only_the_language_model_is_merged_and_the_rest_is_the_bases(world, kind, flat):
    world.seeing("a", kind, flat, seed=1).seeing("b", kind, flat, seed=2)
    result = world.merge(LERP % "0.5").build()
    made, a, b = world.tensors("m"), world.floats("a"), world.floats("b")
    merged = set(language(kind).values())
    assert set(different(made, world.source("a"))) == merged
    assert all(same(made[name], halfway(a[name], b[name])) for name in merged)
    assert result["m"].tensors.computed == len(merged)
    assert result["m"].tensors.copied == len(made) - len(merged)
    (note,) = [note for note in result.notes if NOTE.fullmatch(note)]
    assert int(NOTE.fullmatch(note)[1]) == len(made) - len(merged)


def test_what_was_left_to_the_base_is_told_by_plan_and_how_to_change_that(world):
    world.seeing("a", seed=1).seeing("b", seed=2).merge(LERP % "0.5")
    assert world.run("plan").stdout.splitlines()[-2] == (
        "note: m: only `language_model` is merged; 43 tensors of `vision_tower`, `multi_modal_projector` are those of "
        '`a`: `only = "*"` merges all'
    )


def test_only_everything_merges_the_vision_tower_too(world):
    world.seeing("a", seed=1).seeing("b", seed=2)
    result = world.merge(LERP % "0.5" + 'only = ["*"]\n').build()
    assert len(different(world.tensors("m"), world.source("a"))) == len(world.tensors("m"))
    assert result["m"].tensors.copied == 0
    assert not any(NOTE.fullmatch(note) for note in result.notes)


def test_copy_leaves_more_to_the_base_and_only_decides_alone(world):
    world.seeing("a", seed=1).seeing("b", seed=2)
    world.merge(LERP % "0.5" + 'copy = "lm_head"\n').build()
    changed = different(world.tensors("m"), world.source("a"))
    assert set(changed) == set(language("llava").values()) - {"language_model.lm_head.weight"}
    world.merge(LERP % "0.5" + f'only = "{PROJECTOR}"\n').build()
    assert all(name.startswith(PROJECTOR) for name in different(world.tensors("m"), world.source("a")))


def test_towers_of_other_shapes_do_not_keep_language_models_from_merging(world):
    world.seeing("a", seed=1).seeing("b", seed=2)
    tensors = world.source("b")
    for name in [name for name in tensors if name.startswith(VISION)]:
        del tensors[name]
    tensors[f"{PROJECTOR}.linear_1.weight"] = ("BF16", np.zeros((3, 5), np.uint16))
    tensors["image_newline"] = ("BF16", np.zeros(5, np.uint16))
    pico.write_safetensors(world.root / "b" / "model.safetensors", tensors)
    world.age("b").merge(LERP % "0.5").build()
    assert set(different(world.tensors("m"), world.source("a"))) == set(language("llava").values())


def test_an_adapter_is_folded_wherever_it_was_trained(world):
    world.model("a", "llava", seed=1).lora("l", "a", seed=3, targets=("q_proj", "linear_1"))
    made = world.made('[merge.m]\nmethod = "lora"\nbase = "a"\nadapters = [{ adapter = "l" }]\n')
    assert any(name.startswith(PROJECTOR) for name in different(made, world.source("a")))


# --- layers -----------------------------------------------------------------------------------------------------------


def test_points_are_layers_of_the_language_model(world):
    world.seeing("a", seed=1, layers=1).seeing("b", seed=2, layers=1)
    told = world.refusal(LERP % "{ points = [[0, 1.0], [1, 0.0]] }")
    assert "`b` has 1 layers, numbered from 0" in told
    # The vision tower has two.
    world.merge(LERP % "{ points = [[0, 1.0], [1, 0.0]] }" + 'only = "*"\n').build()


def test_slices_are_of_the_language_model_even_where_the_tower_is_heavier(world):
    wide = {"vision_tower.vision_model.encoder.layers.0.more.weight": ("BF16", np.ones((4096, 8), np.uint16))}
    for seed, name in enumerate("ab", start=1):
        world.model(name, "llava", seed=seed, layers=3, extra=wide)
    text = '[merge.m]\nmethod = "passthrough"\nslices = [\n'
    text += '{ layers = [0, 2], models = [ { model = "a" } ] }, { layers = [1, 3], models = [ { model = "b" } ] } ]\n'
    made = world.made(text)
    a, b = world.source("a"), world.source("b")
    at = "language_model.model.layers"
    assert same(made[f"{at}.3.mlp.up_proj.weight"], b[f"{at}.2.mlp.up_proj.weight"])
    rest = [name for name in a if not name.startswith("language_model")]
    assert all(same(made[name], a[name]) for name in rest)
    assert same(made["language_model.model.norm.weight"], b["language_model.model.norm.weight"])
    config = world.config("m")
    assert (config["text_config"]["num_hidden_layers"], config["vision_config"]["num_hidden_layers"]) == (4, 2)


def test_a_number_of_layers_that_the_config_leaves_out_is_written_where_slices_change_it(world):
    world.model("a", "llava", seed=1, layers=3)
    path = world.root / "a" / "config.json"
    config = json.loads(path.read_text())
    del config["text_config"]["num_hidden_layers"]
    path.write_text(json.dumps(config))
    world.age("a")
    world.merge(
        '[merge.m]\nmethod = "passthrough"\nslices = [{ layers = [0, 2], models = [{ model = "a" }] }]\n'
    ).build()
    assert world.config("m")["text_config"]["num_hidden_layers"] == 2
    load(world.out / "m", "llava")


def test_a_vocabulary_that_grows_is_that_of_the_text(world):
    world.model("a", "llava", seed=1, vocab=60).model("b", "llava", seed=2, vocab=64)
    world.merge('[merge.m]\nmethod = "linear"\ntokenizer = "union"\nmodels = [{ model = "a", weight = 1 }, '
                '{ model = "b", weight = 1 }]\n').build()  # fmt: skip
    config = world.config("m")
    assert config["text_config"]["vocab_size"] == 64
    assert "vocab_size" not in config
    assert world.tensors("m")["language_model.lm_head.weight"][1].shape == (64, 32)
    load(world.out / "m", "llava")


# --- text models ------------------------------------------------------------------------------------------------------


def in_text(name):
    """The name in a text model of what pico's llava calls `name`."""
    return name.removeprefix("language_model.")


@pytest.mark.parametrize("kind", [kind for kind in LAYOUTS if kind != "internvl"])
def test_a_text_model_is_merged_into_the_language_model(world, kind):
    world.seeing("a", kind, seed=1).model("b", "llama", seed=2)
    world.merge(LERP % "0.5").build()
    made, a, b = world.tensors("m"), world.floats("a"), world.floats("b")
    names = language(kind)
    assert {in_text(name) for name in names} == set(b)
    assert set(different(made, world.source("a"))) == set(names.values())
    assert all(same(made[new], halfway(a[new], b[in_text(name)])) for name, new in names.items())


@pytest.mark.parametrize("kind", [kind for kind in LAYOUTS if kind != "internvl"])
def test_the_language_model_is_merged_into_a_text_model(world, kind):
    world.model("a", "llama", seed=1).seeing("b", kind, seed=2)
    made = world.made(LERP % "0.5")
    a, b = world.floats("a"), world.floats("b")
    assert set(made) == set(a)
    assert all(same(made[in_text(n)], halfway(a[in_text(n)], b[new])) for n, new in language(kind).items())


def test_the_same_model_under_older_and_newer_names_merges(world):
    world.seeing("a", "llava in one module", seed=1).seeing("b", "llava", seed=2)
    made, a, b = world.made(LERP % "0.5"), world.floats("a"), world.floats("b")
    assert all(same(made[new], halfway(a[new], b[old])) for old, new in language("llava in one module").items())


def test_a_pattern_on_a_text_model_sees_its_own_names(world):
    world.seeing("a", seed=1).model("b", "llama", seed=2)
    own, others = '{ match = "language_model", value = 0 }', '{ match = "model.layers.1.", value = 0.5 }, { value = 0 }'
    made = world.made(LERP % f"[{own}, {others}]")
    changed = different(made, world.source("a"))
    assert changed
    assert all(name.startswith("language_model.model.layers.1.") for name in changed)


def test_slices_take_layers_of_text_models(world):
    world.seeing("a", seed=1, layers=2).model("b", "llama", seed=2, layers=3)
    text = '[merge.m]\nmethod = "passthrough"\nbase = "a"\nends = "a"\nslices = [\n'
    text += '{ layers = [0, 1], models = [ { model = "a" } ] }, { layers = [1, 3], models = [ { model = "b" } ] } ]\n'
    made = world.made(text)
    name = "model.layers.%d.mlp.up_proj.weight"
    assert same(made["language_model." + name % 2], world.source("b")[name % 2])
    load(world.out / "m", "llava")


@pytest.mark.parametrize("kind", ["llava", "llava in one module", "qwen2-vl"])
def test_a_tied_head_and_one_of_its_own_find_each_other(world, kind):
    tied = {"config": {"tie_word_embeddings": True}, "drop": ["lm_head.weight"]}
    world.seeing("a", kind, seed=1).model("b", "llama", seed=2, **tied)
    made, a, b = world.made(LERP % "0.5"), world.floats("a"), world.floats("b")
    head = language(kind)["language_model.lm_head.weight"]
    assert same(made[head], halfway(a[head], b["model.embed_tokens.weight"]))
    (world.root / "x").mkdir()
    world.model("x", "llama", seed=2)
    tensors = world.source("a")
    del tensors[head]
    pico.write_safetensors(world.root / "a" / "model.safetensors", tensors)
    path = world.root / "a" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"tie_word_embeddings": True}))
    made = world.age("a").made((LERP % "0.5").replace('"b"', '"x"'))
    embedding = language(kind)["language_model.model.embed_tokens.weight"]
    assert same(made[head], halfway(a[embedding], world.floats("x")["lm_head.weight"]))


def test_a_text_model_that_is_another_is_refused_by_its_shapes(world):
    world.seeing("a", seed=1).model("b", "llama", seed=2, intermediate=96)
    told = world.refusal(LERP % "0.5")
    assert "`language_model.model.layers.0.mlp.gate_proj.weight` is [64, 32] in `a` and [96, 32] in `b`" in told


def test_what_only_a_text_model_has_is_told_by_its_own_name(world):
    world.seeing("a", seed=1).model("b", "qwen2", seed=2, kv_heads=4)
    assert "`model.layers.0.self_attn.q_proj.bias` is only in `b`" in world.refusal(LERP % "0.5")


# --- transformers -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["llava", "llava in one module"])
@pytest.mark.parametrize("text", [False, True], ids=["vision-language", "text"])
def test_transformers_loads_what_it_would_be_merged_in_memory(world, kind, text):
    import torch

    world.seeing("a", kind, seed=1)
    world.model("b", "llama", seed=2) if text else world.seeing("b", kind, seed=2)
    world.merge(LERP % "0.25").build()
    made, a = (load(folder, "llava").state_dict() for folder in (world.out / "m", world.root / "a"))
    b = load(world.root / "b", "llama" if text else "llava").state_dict()
    merged = 0
    for name, tensor in a.items():
        if name.startswith(("model.language_model.", "lm_head.")):
            other = b[name.replace("model.language_model.", "model.") if text else name].float()
            tensor = (tensor.float() + 0.25 * (other - tensor.float())).to(torch.bfloat16)
            merged += 1
        assert same(raw(made[name]), raw(tensor)), name
    assert merged == len(language(kind))


def test_the_dtype_is_that_of_every_part_and_the_config_says_so(world):
    world.seeing("a", seed=1).seeing("b", seed=2)
    world.merge(LERP % "0.5" + 'dtype = "float16"\n').build()
    assert {dtype for dtype, _ in world.tensors("m").values()} == {"F16"}
    config = world.config("m")
    assert (config["dtype"], config["text_config"]["dtype"]) == ("float16", "float16")
    load(world.out / "m", "llava")


# --- what is no vision-language model ---------------------------------------------------------------------------------

LAYER = ("self_attn.q_proj.weight", "mlp.fc1.weight")


def stack(prefix, count=2):
    return [f"{prefix}.{n}.{rest}" for n in range(count) for rest in LAYER]


OTHERS = {
    "t5": (["shared.weight", *stack("encoder.block"), *stack("decoder.block"), "lm_head.weight"], {"d_model": 8}),
    "bart": (["model.shared.weight", *stack("model.encoder.layers"), *stack("model.decoder.layers")], {}),
    "bart with all its embeddings": (
        [
            *(f"model.{part}.embed_tokens.weight" for part in ("encoder", "decoder")),
            *stack("model.encoder.layers"),
            *stack("model.decoder.layers"),
            "model.shared.weight",
        ],
        {},
    ),
    "bert": (["embeddings.word_embeddings.weight", *stack("encoder.layer"), "pooler.dense.weight"], {}),
    "whisper": (
        [
            "model.encoder.conv1.weight",
            "model.decoder.embed_tokens.weight",
            *stack("model.encoder.layers"),
            *stack("model.decoder.layers"),
            "proj_out.weight",
        ],
        {"d_model": 8, "encoder_layers": 2, "decoder_layers": 2, "num_mel_bins": 80},
    ),
    "an encoder and a decoder by their configs": (
        ["shared.weight", *stack("encoder.layers"), *stack("decoder.layers")],
        {"encoder": {"hidden_size": 8}, "decoder": {"hidden_size": 8}},
    ),
    "llama": (["model.embed_tokens.weight", *stack("model.layers"), "lm_head.weight"], {"quantization_config": {}}),
    "gpt2": (["wte.weight", "wpe.weight", *stack("h"), "ln_f.weight"], {}),
    "clip": (
        [
            "text_model.embeddings.token_embedding.weight",
            *stack("text_model.encoder.layers"),
            *stack("vision_model.encoder.layers"),
        ],
        {"text_config": {"hidden_size": 8}, "vision_config": {"hidden_size": 8}},
    ),
}


@pytest.mark.parametrize("kind", OTHERS)
def test_everything_is_merged_of_models_of_other_kinds(world, kind):
    names, config = OTHERS[kind]
    for seed, source in enumerate("ab", start=1):
        world.model(source, "llama", seed=seed)
        values = np.random.default_rng(seed).standard_normal((len(names), 8, 8), np.float32)
        tensors = {name: ("F32", value) for name, value in zip(names, values, strict=True)}
        pico.write_safetensors(world.root / source / "model.safetensors", tensors)
        (world.root / source / "config.json").write_text(json.dumps(config))
        world.age(source)
    result = world.merge(LERP % "0.5").build()
    assert result["m"].tensors.computed == len(names)
    assert not any("is merged;" in note for note in result.notes)


@pytest.mark.parametrize("kind", OTHERS)
def test_the_main_stack_of_models_of_other_kinds_is_the_heaviest(kind):
    names, config = OTHERS[kind]
    sizes = {name: 1 + ("encoder" in name) for name in names}
    found = layout(sizes)
    known = language_of(sizes, found, config)
    assert known is None or known.alone
    assert known is None or all(name in known for name in names)


def test_an_embedding_within_a_layer_is_no_second_language_model():
    own = ["model.language_model.embed_tokens.weight", *stack("model.language_model.layers")]
    own += ["model.language_model.layers.1.embed_tokens.weight", "lm_head.weight"]
    names = [*own, *stack("model.visual.blocks")]
    found = language_of(names, layout(dict.fromkeys(names, 1)), None)
    assert [name for name in names if name in found] == own


def test_values_are_shown_for_the_language_model_alone(world):
    world.seeing("a", seed=1).model("b", "llama", seed=2).merge(LERP % "0.5")
    found = json.loads(world.run("plan", "--values", "m", "--json").stdout)["tensors"]
    valued = {tensor["name"] for tensor in found if tensor["inputs"]}
    assert valued == set(language("llava").values())


def test_towers_are_known_by_their_names_where_there_is_no_config():
    names = ["model.embed_tokens.weight", *stack("model.layers"), *stack("audio_tower.layers"), "lm_head.weight"]
    found = language_of(names, layout(dict.fromkeys(names, 1)), None)
    assert [name for name in names if name not in found] == stack("audio_tower.layers")
