"""Routers from prompts: what they are made of, that transformers computes the same, and when they are made again."""

import hashlib
import json

import numpy as np
import pytest
from merging import MergeWorld, rounded, same, widened
from test_moe import counts, dense, router, text

from modelbuild.kernels.router import routed
from modelbuild.options import Options
from modelbuild.plan.demand import inputs_of
from modelbuild.report.terminal import Listener
from modelbuild.session import open_session

oracles = pytest.importorskip("oracles")

LAYERS = 3
PROMPTS = """
    [merge.m]
    method = "moe"
    base = "a"
    gate_mode = "MODE"
    models = [
      { model = "b", prompt = ["a b c", "d e"], negative_prompt = "f g" },
      { model = "c", prompt = "x y z w30" },
    ]
"""
MODES = ("cheap_embed", "hidden", "hidden_last", "hidden_avg")


@pytest.fixture
def world(tmp_path):
    root = tmp_path / "world"
    root.mkdir()
    return MergeWorld(root)


@pytest.fixture
def make(world):
    """Three models of a kind and the merge in a mode, not built."""

    def made(kind="llama", mode="hidden", dtype="float32", layers=LAYERS, **options):
        dense(world, kind, layers=layers, dtype=dtype, **options)
        return world.merge(text(PROMPTS).replace("MODE", mode))

    return made


def tokens(world, prompt):
    vocabulary = json.loads((world.root / "a" / "tokenizer.json").read_text())["model"]["vocab"]
    return [1, *(vocabulary[word] for word in prompt.split())]


def states(world, prompt, average):
    """The hidden state before each layer, float64, by transformers' own forward pass."""
    import torch

    model = oracles.load(world.root / "a", dtype=torch.float32)
    with torch.no_grad():
        found = model(input_ids=torch.tensor([tokens(world, prompt)]), output_hidden_states=True).hidden_states
    hidden = torch.stack(found[:-1])[:, 0].double().numpy()
    return hidden.mean(axis=1) if average else hidden[:, -1]


def unit(vector):
    return vector / np.linalg.norm(vector, axis=-1, keepdims=True)


def routers(world, kind="llama"):
    return np.stack([widened(world.tensors("m")[router(kind, layer)]) for layer in range(LAYERS)])


def expected(world, mode):
    """The routers [layers, experts, hidden] in float64."""
    if mode == "cheap_embed":
        embedding = widened(world.source("a")["model.embed_tokens.weight"]).astype(np.float64)

        def of(*prompts):
            return unit(sum(embedding[tokens(world, prompt)].sum(axis=0) for prompt in prompts))

        rows = np.stack([unit(of("a b c", "d e") - of("f g")), of("x y z w30")])
        return np.repeat(rows[None], LAYERS, axis=0)

    def of(*prompts):
        return sum(states(world, prompt, mode == "hidden_avg") for prompt in prompts) / len(prompts)

    return unit(np.stack([of("a b c", "d e") - of("f g"), of("x y z w30")], axis=1))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("kind", ["llama", "mistral", "qwen3"])
def test_routers_are_what_transformers_own_pass_gives(make, kind, mode):
    world = make(kind, mode)
    result = world.build()
    assert np.abs(routers(world, kind) - expected(world, mode)).max() < 5e-7
    assert counts(result)[0] == LAYERS
    oracles.load(world.out / "m")


def test_windows_of_attention_count(make):
    world = make("mistral", config={"sliding_window": 2})
    world.build()
    assert np.abs(routers(world, "mistral") - expected(world, "hidden")).max() < 5e-7


def test_a_config_that_leaves_much_to_its_class_counts_as_that_class(make):
    world = make("llama", config={"rope_parameters": ..., "rms_norm_eps": ..., "hidden_act": ...})
    world.build()
    assert np.abs(routers(world) - expected(world, "hidden")).max() < 5e-7


def test_models_of_one_layer_have_a_router_from_their_embedding(world):
    dense(world, "llama", layers=1, dtype="float32").merge(text(PROMPTS).replace("MODE", "hidden")).build()
    found = widened(world.tensors("m")[router("llama", 0)])
    embedding = widened(world.source("a")["model.embed_tokens.weight"])
    assert np.abs(found[1] - unit(embedding[tokens(world, "w30")[-1]])).max() < 1e-6


def test_routers_have_the_dtype_of_the_base_rounded_once(make):
    world = make("llama", "cheap_embed", dtype="bfloat16")
    world.build()
    found = world.tensors("m")[router("llama", 0)]
    assert same(found, rounded(expected(world, "cheap_embed")[0].astype(np.float32)))


def test_cheap_routers_are_free_and_those_of_hidden_states_are_bound(make):
    cheap = make("llama", "cheap_embed")
    cheap.build()
    about = json.loads((cheap.out / "m" / "modelbuild.json").read_text())
    assert (about["operations"], about["numerics"]) == ({"router": 1, "rows": 1}, [])
    assert "tokenizers = " in (cheap.root / "Modelfile.lock").read_text()
    hidden = cheap.edit("cheap_embed", "hidden")
    hidden.build()
    about = json.loads((hidden.out / "m" / "modelbuild.json").read_text())
    assert about["operations"] == {"router": 1, "rows": 1, "states": 1}
    (numerics,) = about["numerics"]
    assert numerics.startswith("transformers ")
    assert numerics.endswith(", 1 thread")
    assert f'transformers = "{numerics.removeprefix("transformers ")}"' in (hidden.root / "Modelfile.lock").read_text()
    assert f"computed by {numerics}" in (hidden.out / "m" / "README.md").read_text()
    assert "pip install 'modelbuild[moe]==" in (hidden.out / "m" / "README.md").read_text()


# --- what is built again ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["cheap_embed", "hidden"])
def test_another_prompt_makes_routers_again_and_nothing_else(make, mode):
    world = make(mode=mode)
    world.build()
    again = world.edit('"d e"', '"d h"').build()
    assert counts(again)[0] == LAYERS
    told = 'prompt of `b` ["a b c", "d e"] → ["a b c", "d h"]'
    assert again.artifacts[0].reasons == (f"{told} ({LAYERS} tensors)",)
    total = len(world.tensors("m"))
    assert counts(world.edit('"d h"', '"d e"').build()) == (0, 0, total)


def test_another_tokenizer_counts_by_the_tokens_it_makes(make):
    world = make(mode="cheap_embed")
    world.build()
    path = world.root / "a" / "tokenizer.json"
    data = json.loads(path.read_text())
    # A word that no prompt has moves: nothing is made again.
    data["model"]["vocab"]["w40"], data["model"]["vocab"]["w41"] = (data["model"]["vocab"][w] for w in ("w41", "w40"))
    path.write_text(json.dumps(data))
    world.age("a")
    assert counts(world.build())[0] == 0
    data["model"]["vocab"]["a"], data["model"]["vocab"]["w41"] = (data["model"]["vocab"][w] for w in ("w41", "a"))
    path.write_text(json.dumps(data))
    world.age("a")
    again = world.build()
    assert counts(again)[0] == LAYERS
    assert again.artifacts[0].reasons[0].startswith("tokenizer of `a` ")


def test_the_config_of_the_base_counts_for_hidden_states(make):
    world = make()
    world.build()
    path = world.root / "a" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"rms_norm_eps": 1e-3}))
    world.age("a")
    again = world.build()
    assert counts(again)[0] == LAYERS
    assert again.artifacts[0].reasons[0].startswith("config of `a` ")


def test_an_expert_that_changes_leaves_the_routers_alone(make):
    world = make()
    world.build()
    world.model("c", "llama", seed=9, layers=LAYERS, dtype="float32")
    assert counts(world.build())[0] == 0


def test_the_last_layer_of_the_base_is_not_read_for_routers(make):
    world = make()
    world.build()
    with open_session(Options(modelfile=str(world.path)), ["m"], Listener()) as session:
        node = session.plan.artifacts["m"].tensors[router("llama", 2)]
        read = {used.source.name for used in inputs_of(node) if used.source is not None}
    assert "model.layers.1.mlp.up_proj.weight" in read
    assert not [name for name in read if "layers.2." in name or "lm_head" in name]


@pytest.mark.parametrize("mode", ["cheap_embed", "hidden_avg"])
def test_the_same_bytes_for_any_threads_and_memory(make, mode):
    world = make(mode=mode)
    wanted = world.from_nothing(jobs=1).bytes("m")
    assert world.from_nothing(jobs=4).bytes("m") == wanted
    assert world.from_nothing(jobs=2, memory="1MB").bytes("m") == wanted
    copy = world.copy()
    ran = copy.run("build", PYTHONHASHSEED="7")
    assert ran.returncode == 0, ran.stderr
    assert copy.bytes("m") == wanted
    world.build()
    assert counts(world.build(no_cache=True))[0] == LAYERS


def test_hidden_states_are_made_once_for_all_layers(make, monkeypatch):
    from modelbuild.methods import _forward

    ran = []
    real = _forward.run_layers
    monkeypatch.setattr(_forward, "run_layers", lambda *args: ran.append(1) or real(*args))
    make().build(jobs=4)
    assert len(ran) == 1


def test_a_layer_s_weights_are_asked_for_when_its_turn_comes_and_not_kept(make, monkeypatch):
    import gc
    import weakref

    from modelbuild.methods import _forward

    asked, alive = [], []
    real = _forward.run_layers

    def watched(config, embedded, lengths, average, layer):
        def one(number):
            gc.collect()
            alive.append(sum(ref() is not None for refs in asked for ref in refs))
            found = layer(number)
            asked.append([weakref.ref(array) for array in found.values()])
            return found

        return real(config, embedded, lengths, average, one)

    monkeypatch.setattr(_forward, "run_layers", watched)
    make(layers=4).build()
    assert len(asked) == 3
    assert alive == [0, 0, 0]


BLEND = """
    [merge.blend]
    method = "linear"
    models = [ { model = "a", weight = 0.5 }, { model = "c", weight = 0.5 } ]
"""


@pytest.mark.parametrize("mode", ["cheap_embed", "hidden"])
def test_a_base_that_is_merged_first_gives_what_it_gives_stored(make, mode):
    world = make(mode=mode)
    world.merge(text(BLEND) + text(PROMPTS).replace("MODE", mode).replace('base = "a"', 'base = "blend"'))
    result = world.build("m")
    made = {name: tensor[1].tobytes() for name, tensor in world.tensors("m").items()}
    assert counts(result)[0] == LAYERS
    world.build("blend")
    stored = MergeWorld(world.copy().root)
    stored.put("blend", world.out / "blend")
    stored.merge(text(PROMPTS).replace("MODE", mode).replace('base = "a"', 'base = "blend"'))
    stored.build()
    assert {name: tensor[1].tobytes() for name, tensor in stored.tensors("m").items()} == made
    again = world.edit('"d e"', '"d h"').build("m")
    assert counts(again)[0] == LAYERS


def test_a_base_that_is_not_kept_is_made_layer_by_layer(make):
    world = make()
    both = text(BLEND) + text(PROMPTS).replace("MODE", "hidden").replace('base = "a"', 'base = "blend"')
    world.merge(both)
    world.build("m")
    loose = world.copy()
    loose.edit('method = "linear"', 'method = "linear"\nkeep = false').build("m")
    assert {n: t[1].tobytes() for n, t in loose.tensors("m").items()} == {
        n: t[1].tobytes() for n, t in world.tensors("m").items()
    }


def test_weights_that_are_not_a_layer_s_are_told(make):
    world = make(config={"num_attention_heads": 2})
    (folder, config) = world.root / "a", world.config("a")
    (folder / "config.json").write_text(json.dumps(config | {"num_key_value_heads": 1}))
    world.age("a")
    told = world.refusal()
    assert told.startswith("error: the weights of layer 0 are not those that transformers expects by the config\n")
    assert "size mismatch for self_attn.k_proj.weight" in told
    assert told.endswith("hint: routers by `cheap_embed` or `random` need no hidden states")


def test_a_damaged_intermediate_is_found_and_made_anew(make):
    world = make()
    world.merge(text(BLEND) + text(PROMPTS).replace("MODE", "hidden").replace('base = "a"', 'base = "blend"'))
    world.build("m")
    kept = [path for path in world.cache.rglob("*.safetensors") if path.stat().st_nlink == 1]
    assert kept
    for path in kept:
        path.chmod(0o644)
        data = bytearray(path.read_bytes())
        data[-200] ^= 1
        path.write_bytes(data)
    world.edit('"d e"', '"d h"').build("m")
    assert world.bytes("m") == world.from_nothing("m").bytes("m")


def test_a_build_from_what_is_cached_alone_needs_no_library(make, monkeypatch):
    from modelbuild.methods import _forward

    world = make()
    world.build()
    monkeypatch.setattr(_forward, "run_layers", None)
    assert world.build().artifacts[0].status == "fresh"


# --- given ------------------------------------------------------------------------------------------------------------


GIVEN = """
    [merge.n]
    method = "moe"
    base = "a"
    gate_mode = "given"
    router = "other"
    models = [ { model = "b" }, { model = "c" } ]
"""


def test_routers_of_another_model_are_taken_as_they_are(world):
    dense(world, "llama").model("other", "mixtral", seed=4, experts=2, dtypes={"gate.weight": "float32"})
    result = world.merge(text(GIVEN)).build()
    for layer in range(2):
        name = router("llama", layer)
        assert same(world.tensors("n")[name], world.source("other")[name])
    assert counts(result, "n") == (0, len(world.tensors("n")), 0)


def test_routers_may_come_in_a_file_of_their_own(world):
    import pico

    given = {router("qwen3", n): ("F32", np.arange(64, dtype=np.float32).reshape(2, 32) + n) for n in range(2)}
    dense(world, "llama")
    pico.write_safetensors(world.root / "routers.safetensors", given)
    table = '[base.other]\nsource = "routers.safetensors"\n'
    world.modelfile(
        world.sources() + table + text(GIVEN).replace('base = "a"', 'base = "a"\ndtype = "bfloat16"')
    ).build()
    found = world.tensors("n")[router("llama", 1)]
    assert same(found, rounded(given[router("qwen3", 1)][1]))


def test_routers_of_a_mixture_that_is_built_first(world):
    dense(world, "llama").merge(text(PROMPTS).replace("MODE", "random") + text(GIVEN).replace("other", "m"))
    world.build("m", "n")
    assert same(world.tensors("n")[router("llama", 0)], world.tensors("m")[router("llama", 0)])


# --- the kernel -------------------------------------------------------------------------------------------------------


def test_a_router_of_vectors_that_can_be_added_up_in_the_head():
    vectors = np.array([[3, 0], [5, 0], [0, 4], [0, 2]], np.float32)
    assert routed(vectors, [(2, 1), (1, 0)], False).tolist() == [
        [np.float32(0.70710678), np.float32(-0.70710678)],
        [0, 1],
    ]
    assert routed(vectors[:3], [(2, 1)], True).tolist() == [[np.float32(0.70710678), np.float32(-0.70710678)]]


def test_a_vector_of_nothing_stays_nothing():
    assert routed(np.zeros((2, 3), np.float32), [(1, 1)], True).tolist() == [[0, 0, 0]]


def test_the_result_changes_only_with_the_version():
    from kernel_tools import raw, run

    from modelbuild.methods import moe

    given = raw(((np.arange(7 * 300) * 37 % 101 - 50) / 64).reshape(7, 300))
    made = [
        run(
            "router",
            (("counts", ((2, 1), (3, 0), (1, 0))), ("unit", unit)),
            [("F32", given)],
            dtype,
            (3, 300),
            (5, 301),
        )
        for unit in (True, False)
        for dtype in ("BF16", "F16", "F32")
    ]
    found = hashlib.sha256(b"".join(array.tobytes() for array in made)).hexdigest()[:32]
    assert found == {1: "cf4095aa4f1a708c124e4606ef67b3d3"}[moe.METHOD.version], (
        "router computes something else: raise the version of moe"
    )


def test_counts_that_are_not_those_of_the_vectors_are_refused():
    with pytest.raises(ValueError, match="2 vectors, but counts of 3"):
        routed(np.zeros((2, 3), np.float32), [(2, 1)], True)


def test_a_large_tokenizer_on_the_hub_is_brought_for_the_plan(world, hub, monkeypatch):
    import hubserver

    monkeypatch.setattr(hubserver, "LARGE", (*hubserver.LARGE, "tokenizer.json"))
    dense(world, "llama")
    for name in ("a", "b", "c"):
        hub.put(f"org/{name}", world.root / name)
        (world.root / name).rename(world.root.parent / name)
    sources = "".join(f'[base.{name}]\nsource = "hf:org/{name}"\n' for name in ("a", "b", "c"))
    world.modelfile(sources + text(PROMPTS).replace("MODE", "cheap_embed"))
    assert world.plan()["m"].tensors.computed == 2
