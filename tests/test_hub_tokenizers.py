"""Tokenizers on the Hub: large ones lie beside the weights there, and a plan that has to read them brings them."""

import hubserver
import pytest
from merging import MergeWorld
from vocabularies import auto, world_of

from modelbuild.errors import SourceNotFound

UNION = """
[base.a]
source = "hf:org/a"
[base.b]
source = "hf:org/b"
[merge.m]
method = "lerp"
base = "a"
models = [{ model = "b", t = 0.5 }]
tokenizer = "union"
"""


@pytest.fixture
def world(hub, tmp_path, monkeypatch):
    """Two models on the Hub whose tokenizer.json is stored as weights are, as all beyond ten megabytes."""
    monkeypatch.setattr(hubserver, "LARGE", (*hubserver.LARGE, "tokenizer.json"))
    world = world_of(MergeWorld(tmp_path), {"a": "x y", "b": "z x"})
    for name in "ab":
        hub.put(f"org/{name}", world.root / name)
    return world.modelfile(UNION)


def test_a_plan_brings_the_tokenizers_it_reads_and_no_weights(world, hub):
    assert "m: rows of `b`: 3 kept, 1 filled, 1 of its tokens are new to `a`" in world.plan().notes
    names = {path.name for path in hub.cache.glob("models--*/snapshots/*/*")}
    assert "tokenizer.json" in names
    assert "tokenizer.model" not in names
    assert "model.safetensors" not in names
    world.build()
    assert auto(world.out / "m").get_vocab() == {"<unk>": 0, "x": 1, "y": 2, "z": 3}


def test_a_chat_template_needs_no_vocabulary_but_the_outputs(world, hub):
    world.edit('tokenizer = "union"', "chat_template = \"{{ 'hi' }}\"").edit("t = 0.5", "t = 0.0").plan()
    (path,) = hub.cache.glob("models--*/snapshots/*/tokenizer.json")
    assert path.parts[-4] == "models--org--a"


def test_a_tokenizer_that_is_not_here_and_cannot_be_brought_is_named(world, hub):
    world.plan()
    for path in hub.cache.glob("models--org--b/snapshots/*/tokenizer.json"):
        path.resolve().unlink()
        path.unlink()
    with pytest.raises(SourceNotFound) as caught:
        world.plan(offline=True)
    assert "tokenizer.json" in caught.value.render()
