"""The merge of a Japanese and an English model that the examples have, small: as a Modelfile and as mergekit's YAML.

The example's own files, with sources beside them in the place of those on the Hub.
"""

from pathlib import Path

import numpy as np
import pytest
from importing_tools import imported
from merging import MergeWorld, same, widened
from method_tools import applied
from oracles import load, logits
from vocabularies import ENGLISH, JAPANESE, auto, model, spm, tokens

from modelbuild.modelfile.parse import load as load_modelfile

EXAMPLE = Path(__file__).parent.parent / "examples" / "superswallow"
HUB = {"tokyotech-llm/Swallow-70b-instruct-hf": "swallow", "allenai/tulu-2-dpo-70b": "tulu"}
EMBED, HEAD = "model.embed_tokens.weight", "lm_head.weight"
LAYERS = 9
"""Two for each step of the gradients, and one more."""

GRADIENTS = {"mlp.down_proj": [0.3, 0.25, 0.25, 0.15, 0.1], "mlp.gate_proj": [0.7, 0.25, 0.5, 0.45, 0.4],
             "mlp.up_proj": [0.7, 0.25, 0.5, 0.45, 0.4], "self_attn": [0.7, 0.25, 0.5, 0.45, 0.4]}  # fmt: skip


def local(text, prefix=""):
    for address, name in HUB.items():
        assert prefix + address in text
        text = text.replace(prefix + address, name)
    return text


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """The example, built."""
    world = MergeWorld(tmp_path_factory.mktemp("superswallow"))
    # Swallow's vocabulary is Llama's, and Japanese; each has been tuned from one Llama.
    sizes = {"swallow": spm(world.root / "swallow", JAPANESE + ENGLISH[:2], 460),
             "tulu": spm(world.root / "tulu", ENGLISH, 360)}  # fmt: skip
    for seed, (name, size) in enumerate(sizes.items(), start=1):
        model(world, name, size, seed=seed, tuned_from=9, layers=LAYERS, hidden=16)
    world.modelfile(local((EXAMPLE / "Modelfile").read_text(), "hf:"))
    result = world.build()
    world.counts = result["superswallow"].tensors
    return world


def share(name):
    """How much of Tulu a tensor takes, by the example's gradients; None where nothing."""
    values = next((values for piece, values in GRADIENTS.items() if piece in name), None)
    if values is None:
        return None
    at = int(name.split(".")[2]) / (LAYERS - 1) * (len(values) - 1)
    low = min(int(at), len(values) - 2)
    return values[low] + (values[low + 1] - values[low]) * (at - low)


def test_modelfile_and_yaml_are_one_plan(world):
    world.modelfile(local((EXAMPLE / "Modelfile").read_text(), "hf:"))
    ours = world.plan()["superswallow"]
    (world.root / "config.yml").write_text(local((EXAMPLE / "config.yml").read_text()))
    ran = world.run("import", "config.yml", "--out", "Imported")
    assert ran.returncode == 0, ran.stderr
    for file in ("config.yml", "Imported"):
        other = MergeWorld(world.root)
        other.path = world.root / file
        (planned,) = [found for found in other.plan().artifacts if found.kind == "merge"]
        assert planned.key == ours.key, file


def test_the_published_yaml_imports_as_the_example_without_a_note():
    found, spec = imported((EXAMPLE / "config.yml").read_text())
    ours = load_modelfile(str(EXAMPLE / "Modelfile"))
    theirs = spec.artifacts[found.name]
    assert theirs.method == ours.artifacts["superswallow"].method == "dare_ties"
    assert theirs.parameters == ours.artifacts["superswallow"].parameters
    assert [entry.parameters for entry in theirs.models] == [
        e.parameters for e in ours.artifacts["superswallow"].models
    ]
    assert found.notes == ()


def test_what_has_weight_0_is_swallows_and_is_not_computed(world):
    made, swallow = world.tensors("superswallow"), world.source("swallow")
    idle = [name for name in swallow if share(name) is None and name not in (EMBED, HEAD)]
    assert len(idle) == 2 * LAYERS + 1
    assert all(same(made[name], swallow[name]) for name in idle)
    blended = [name for name in swallow if share(name)]
    assert len(blended) == 7 * LAYERS
    assert not any(same(made[name], swallow[name]) for name in blended)
    assert world.counts.total == len(swallow) == len(blended) + len(idle) + 2
    # The embedding and the head have rows for tokens that Swallow has not.
    assert (world.counts.computed, world.counts.copied) == (len(blended) + 2, len(idle))


def test_what_is_blended_is_its_gradients(world):
    """With density 1 nothing is dropped: the election of one model is its own, so that it is B + w·d, rounded once."""
    made, swallow, tulu = (world.tensors("superswallow"), world.source("swallow"), world.source("tulu"))
    shares = {name: share(name) for name in swallow if share(name)}
    for name, weight in shares.items():
        base, other = widened(swallow[name]), widened(tulu[name])
        expected = base + np.float32(weight) * (other - base)
        assert np.array_equal(
            widened(made[name]), applied("dare_ties", [other], base, {"weight": weight}, dtype="BF16")
        )
        np.testing.assert_allclose(widened(made[name]), expected, rtol=2**-8)
    assert len({round(weight, 6) for weight in shares.values()}) > 10


def test_every_token_has_the_row_of_the_model_it_comes_from(world):
    made, swallow, tulu = (world.source(name) if name != "m" else world.tensors("superswallow")
                           for name in ("m", "swallow", "tulu"))  # fmt: skip
    both, own, other = (auto(world.folder(name)).get_vocab() for name in ("superswallow", "swallow", "tulu"))
    assert both.keys() == own.keys() | other.keys()
    assert {token: both[token] for token in own} == own
    assert len(both) == len(made[EMBED][1]) == len(made[HEAD][1]) == world.config("superswallow")["vocab_size"]
    new = other.keys() - own.keys()
    assert len(new) > 20
    for tensor in (EMBED, HEAD):
        assert np.array_equal(made[tensor][1][: len(own)], swallow[tensor][1])
        assert all(np.array_equal(made[tensor][1][both[token]], tulu[tensor][1][other[token]]) for token in new)


def test_it_loads_and_encodes_japanese_and_english_as_each_source_did(world):
    both, swallow, tulu = (auto(world.folder(name)) for name in ("superswallow", "swallow", "tulu"))
    assert all(tokens(both, line) == tokens(swallow, line) for line in JAPANESE)
    words = {word for line in ENGLISH for word in line.split()}
    whole = [word for word in words if len(tokens(tulu, word)) == 1]
    # Swallow knows a little English too: its merges come first, so that few words are spelled as it spells them.
    kept = [word for word in whole if tokens(both, word) == tokens(tulu, word)]
    assert len(kept) > 0.9 * len(whole) > 5
    assert all(tokens(both, word) == tokens(swallow, word) for word in {*whole} - {*kept})
    for line in [*JAPANESE, *ENGLISH, "the dog reads 日本語の文章 in the garden"]:
        assert both.decode(both(line)["input_ids"], skip_special_tokens=True).strip() == line.strip()
    loaded = load(world.out / "superswallow")
    assert np.isfinite(logits(loaded)).all()
    assert loaded.config.num_hidden_layers == LAYERS
