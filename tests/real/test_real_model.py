"""A real trained model goes through a build and still does its work: the example of sentence embeddings.

Run by tests/real/run, which fetches the model and builds the example; left out of a plain pytest.
"""

import importlib.util
import json
import os
import shutil
import sys
import warnings
from pathlib import Path

import numpy as np
import oracles
import pico
import pytest
import torch
from merging import different, fma, rounded, same, widened
from world import World

pytestmark = pytest.mark.real

EXAMPLE = Path(__file__).parents[2] / "examples" / "sentence-embeddings"
BASE = EXAMPLE / "models" / "all-MiniLM-L6-v2"
TUNED = EXAMPLE / "models" / "tuned"
NUDGE = EXAMPLE / "adapters" / "nudge"
MERGES = ("nudged", "blend", "average")
SHARES = {0: 0.6, 1: 0.52, 2: 0.44, 3: 0.36, 4: 0.28, 5: 0.2}
"""The t of `blend` at each layer: from 0.6 to 0.2 in five steps."""
SIDE_FILES = {
    "1_Pooling/config.json",
    "config.json",
    "config_sentence_transformers.json",
    "modules.json",
    "sentence_bert_config.json",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.txt",
}


def load_judge():
    spec = importlib.util.spec_from_file_location("judge", EXAMPLE / "judge.py")
    module = sys.modules["judge"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


judge = load_judge()


@pytest.fixture(scope="module")
def real(tmp_path_factory):
    """The example in a folder of its own, built from nothing on one thread."""
    if not (NUDGE / "adapter_config.json").exists():
        pytest.fail("the example was not run: tests/real/run does that")
    root = tmp_path_factory.mktemp("real")
    for folder in (BASE, TUNED, NUDGE):
        shutil.copytree(folder, root / folder.relative_to(EXAMPLE), copy_function=link)
    world = World(root).modelfile((EXAMPLE / "Modelfile").read_text(encoding="utf-8"))
    world.result = world.build(jobs=1)
    return world


def link(source, target):
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


@pytest.fixture(scope="module")
def base():
    return pico.read_tensors(BASE)


@pytest.fixture(scope="module")
def tuned():
    return pico.read_tensors(TUNED)


@pytest.fixture(scope="module")
def reference():
    """The embeddings that the model gives as it was trained."""
    return judge.embeddings(BASE)


def layer_of(name):
    parts = name.split(".")
    return int(parts[2]) if parts[:2] == ["encoder", "layer"] else None


# --- what it does -----------------------------------------------------------------------------------------------------


def test_the_model_itself_knows_which_sentences_belong_together(reference):
    found = judge.verdict(reference, reference)
    assert found.paired == 20
    assert found.least == pytest.approx(1, abs=1e-5)
    assert found.pairs > 0.6
    assert found.others < 0.1


@pytest.mark.parametrize("name", MERGES)
def test_embeddings_stay_near_those_of_the_base_and_in_their_order(real, reference, name):
    found = judge.verdict(reference, judge.embeddings(real.out / name))
    assert found.good
    assert 0.998 < found.least < 1
    assert found.pairs > found.others + 0.6


def test_a_blend_lies_nearer_to_each_of_its_ends_than_they_to_one_another(real, reference):
    fine_tune, blend = judge.embeddings(TUNED), judge.embeddings(real.out / "blend")
    apart = (reference * fine_tune).sum(1).mean()
    assert (reference * blend).sum(1).mean() > apart
    assert (fine_tune * blend).sum(1).mean() > apart


def test_the_judge_is_not_content_with_a_model_that_was_ruined(real, reference):
    copy = real.copy().edit("weight = 0.25", "weight = 40")
    copy.build("nudged")
    found = judge.verdict(reference, judge.embeddings(copy.out / "nudged"))
    assert not found.good
    assert found.least < 0.9


# --- bit for bit ------------------------------------------------------------------------------------------------------


def test_the_adapter_gives_the_bits_of_peft(real):
    import peft

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = peft.PeftModel.from_pretrained(oracles.load(BASE, "bert", whole=False), NUDGE)
    for module in model.modules():
        if hasattr(module, "set_scale"):
            module.set_scale("default", 0.25)
    theirs = oracles.state(model.merge_and_unload())
    ours = real.tensors("nudged")
    assert set(ours) - set(theirs) == {"embeddings.position_ids"}
    assert different({name: ours[name] for name in theirs}, theirs) == []


def test_the_adapter_changes_query_and_value_and_nothing_else(real, base):
    changed = {f"encoder.layer.{n}.attention.self.{part}.weight" for n in range(6) for part in ("query", "value")}
    assert set(different(real.tensors("nudged"), base)) == changed


def test_lerp_gives_the_bits_of_the_formula(real, tuned):
    nudged, blend = real.tensors("nudged"), real.tensors("blend")
    for name, tensor in blend.items():
        layer = layer_of(name)
        if layer is None:
            assert same(tensor, nudged[name]), name
            continue
        a, b = widened(nudged[name]), widened(tuned[name])
        assert same(tensor, rounded(fma(np.float32(SHARES[layer]), b - a, a), "F32")), name


def test_lerp_gives_the_bits_of_torch_where_torch_counts_from_the_same_end(real, tuned):
    nudged, blend = real.tensors("nudged"), real.tensors("blend")
    below_half = [name for name in blend if (layer := layer_of(name)) is not None and SHARES[layer] < 0.5]
    assert len(below_half) == 4 * 16
    for name in below_half:
        a, b = (torch.from_numpy(source[name][1].copy()) for source in (nudged, tuned))
        theirs = torch.lerp(a, b, float(np.float32(SHARES[layer_of(name)])))
        assert same(blend[name], ("F32", theirs.numpy())), name


def test_linear_gives_the_bits_of_the_formula_and_of_torch(real, base, tuned):
    nudged, average = real.tensors("nudged"), real.tensors("average")
    for name, (dtype, _) in base.items():
        if dtype != "F32":
            continue
        first, second, third = (widened(source[name]) for source in (base, tuned, nudged))
        # From zero, so that a weight that is -0.0 in all three (the model has one) becomes 0.0.
        total = fma(np.float32(2), first, np.float32(0))
        total = fma(np.float32(1), third, fma(np.float32(1), second, total))
        assert same(average[name], rounded(total / np.float32(4), "F32")), name
        theirs = torch.zeros(first.shape)
        for values, weight in ((first, 2), (second, 1), (third, 1)):
            theirs = theirs.add(torch.from_numpy(values.copy()), alpha=weight)
        assert same(average[name], ("F32", (theirs / 4).numpy())), name


# --- what is written --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MERGES)
def test_weights_are_float32_and_the_integer_buffer_is_copied(real, base, name):
    tensors = real.tensors(name)
    assert tensors.keys() == base.keys()
    assert {key for key, (dtype, _) in tensors.items() if dtype != "F32"} == {"embeddings.position_ids"}
    assert tensors["embeddings.position_ids"][0] == "I64"
    assert same(tensors["embeddings.position_ids"], base["embeddings.position_ids"])
    assert tensors["embeddings.position_ids"][1].tolist() == [list(range(512))]


@pytest.mark.parametrize("name", MERGES)
def test_transformers_loads_it_without_a_missing_or_unexpected_key(real, name):
    model = oracles.load(real.out / name, "bert")
    assert model.dtype == torch.float32
    loaded = oracles.state(model)
    assert different(loaded, {key: real.tensors(name)[key] for key in loaded}) == []


@pytest.mark.parametrize("name", MERGES)
def test_side_files_are_copied_byte_for_byte(real, name):
    made = real.bytes(name)
    assert made.keys() - SIDE_FILES == {"README.md", "model.safetensors", "modelbuild.json"}
    for path in SIDE_FILES:
        assert made[path] == (BASE / path).read_bytes(), path


def test_the_card_and_the_provenance_name_the_sources_and_no_place(real):
    made = real.bytes("blend")
    provenance = json.loads(made["modelbuild.json"])
    assert "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db" in json.dumps(provenance)
    for text in (made["modelbuild.json"], made["README.md"]):
        assert str(real.root).encode() not in text


def test_the_example_gave_the_same_bytes_in_its_own_folder(real):
    there = World(EXAMPLE)
    for name in MERGES:
        assert there.bytes(name) == real.bytes(name)


# --- what is computed -------------------------------------------------------------------------------------------------


def test_each_merge_computes_what_its_inputs_change(real):
    counts = {name: real.result[name].tensors for name in MERGES}
    assert (counts["nudged"].computed, counts["nudged"].copied) == (12, 92)
    # Sixteen tensors in each of six layers; the embeddings and the pooler are at t = 0.
    assert (counts["blend"].computed, counts["blend"].copied) == (96, 8)
    assert (counts["average"].computed, counts["average"].copied) == (103, 1)


def test_going_to_another_weight_and_back_computes_only_what_is_new(real):
    before = real.bytes("nudged")
    assert [artifact.status for artifact in real.build().artifacts] == ["fresh"] * 5
    there = real.edit("weight = 0.25", "weight = 0.5").build("nudged")["nudged"].tensors
    assert (there.computed, there.reused) == (12, 92)
    back = real.edit("weight = 0.5", "weight = 0.25").build("nudged")["nudged"].tensors
    assert (back.computed, back.reused) == (0, 104)
    assert real.bytes("nudged") == before


# --- packed by bitsandbytes -------------------------------------------------------------------------------------------

PACKED = {"nudged-int8": ("int8", None, 37), "nudged-nf4": ("nf4-dq", ["lm_head", "pooler.dense"], 36)}
"""The mode of each, what its config says is left alone, and how many linear layers are packed."""


@pytest.mark.parametrize("name", PACKED)
def test_a_packed_model_still_does_its_work(real, reference, name):
    folder = real.out / name
    found = judge.verdict(reference, judge.embeddings(folder), judge.near(folder))
    assert found.good
    assert 0.95 < found.least < judge.verdict(reference, judge.embeddings(real.out / "nudged")).least


@pytest.mark.parametrize("name", PACKED)
def test_a_packed_model_has_the_bits_of_transformers(real, name, tmp_path):
    from quantizing import packed_names, saved

    mode, skip, count = PACKED[name]
    theirs = pico.read_tensors(saved(real.out / "nudged", tmp_path / "theirs", mode, skip))
    ours = real.tensors(name)
    # A buffer that the model's file has and transformers makes anew is copied here.
    assert ours.keys() - theirs.keys() == {"embeddings.position_ids"}
    assert different({key: ours[key] for key in theirs}, theirs) == []
    assert len(packed_names(real.out / name)) == count
    settings = json.loads((real.out / name / "config.json").read_text())["quantization_config"]
    assert settings["llm_int8_skip_modules"] == skip


def test_packed_models_are_a_fraction_of_their_size(real):
    sizes = {name: (real.out / name / "model.safetensors").stat().st_size for name in ("nudged", *PACKED)}
    linear = 37 * 4 * 384 * 384  # at least: some layers are four times as large
    assert sizes["nudged"] - sizes["nudged-int8"] > linear * 0.7
    assert sizes["nudged-int8"] > sizes["nudged-nf4"]
