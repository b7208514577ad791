"""Adapters as PEFT itself makes, saves and merges them: the outputs are those of `merge_and_unload()`."""

import os

import numpy as np
import pytest
from merging import MergeWorld, chain, different, rounded, same, widened
from oracles import adapt, adapted, load, logits, state

pytest.importorskip("peft")

X86 = os.uname().machine == "x86_64"
RANKS = (7, 16, 64, 128, 192, 193, 256, 320, 384, 512)
PREFIX = "base_model.model."
LORA = '[merge.m]\nmethod = "lora"\nbase = "base"\nadapters = [{ adapter = "a", weight = %s }]\n'


@pytest.fixture
def world(tmp_path):
    return MergeWorld(tmp_path)


def folded(world, *, weight=1.0, kind="llama", prepare=None, **config):
    """Our output and PEFT's merged model, both as transformers has them in memory."""
    adapt(world.root / "a", world.root / "base", kind, prepare=prepare, **config)
    world.merge(LORA % weight).build()
    theirs = adapted(world.root / "a", world.root / "base", kind, weight=weight, prepare=prepare).merge_and_unload()
    return state(load(world.out / "m", kind)), state(theirs)


def changed(world):
    """How many tensors of the output are not the base's."""
    return len(different(world.tensors("m"), world.source("base")))


# --- bit for bit ------------------------------------------------------------------------------------------------------

PATTERNS = {"rank_pattern": {"layers.0.self_attn.q_proj": 4, "v_proj": 16},
            "alpha_pattern": {r"model\.layers\.\d+\.mlp\.up_proj": 3, "^model.layers.1.self_attn.*": 5}}  # fmt: skip
LINEAR = {
    "lora": ("llama", {"target_modules": ["q_proj", "v_proj"]}, 4),
    "rslora": ("llama", {"target_modules": "all-linear", "use_rslora": True}, 14),
    "patterns": ("llama", {"target_modules": "all-linear", **PATTERNS}, 14),
    "patterns with rslora": ("llama", {"target_modules": "all-linear", "use_rslora": True, **PATTERNS}, 14),
    "one module": ("llama", {"target_modules": ["model.layers.1.mlp.down_proj"]}, 1),
    "head": ("llama", {"target_modules": ["q_proj", "lm_head"]}, 3),
    "grouped keys": ("mistral", {"target_modules": ["q_proj", "k_proj", "v_proj"]}, 6),
    "conv1d": ("gpt2", {"target_modules": ["c_attn", "c_proj", "c_fc"], "fan_in_fan_out": True}, 8),
    "conv1d unsaid": ("gpt2", {"target_modules": ["c_attn", "c_proj"]}, 6),
    "conv1d, bare names": ("gpt2-bare", {"target_modules": ["c_attn", "c_proj"]}, 6),
    "flag on plain layers": ("llama", {"target_modules": ["q_proj"], "fan_in_fan_out": True}, 2),
    "encoder": ("bert", {"target_modules": ["query", "dense"]}, 9),
    "vision and language": ("llava", {"target_modules": ["q_proj", "linear_1", "lm_head"]}, 6),
    "modules_to_save": ("llama", {"target_modules": ["q_proj"], "modules_to_save": ["lm_head", "embed_tokens"]}, 4),
    "norms to save": ("llama", {"target_modules": ["q_proj"], "modules_to_save": ["norm"]}, 2 + 5),
    "all biases": ("gpt2", {"target_modules": ["c_attn", "c_proj"], "bias": "all"}, 6 + 13),
    "biases of tied": ("qwen2", {"target_modules": ["q_proj", "v_proj"], "bias": "all"}, 4 + 6),
    "own biases": ("qwen2", {"target_modules": ["q_proj"], "bias": "lora_only"}, 2 + 2),
    "bias of B": ("qwen2", {"target_modules": ["q_proj", "v_proj"], "lora_bias": True}, 4 + 4),
    "bias of B, both biases": ("bert", {"target_modules": ["query"], "lora_bias": True, "use_rslora": True}, 2 + 2),
}


@pytest.mark.skipif(not X86, reason="the order of sums is that of torch on x86-64")
@pytest.mark.parametrize("name", LINEAR)
def test_the_output_is_peft_merge_and_unload_to_the_bit(world, name):
    kind, config, tensors = LINEAR[name]
    world.model("base", kind, seed=1)
    ours, theirs = folded(world, kind=kind, r=8, lora_alpha=12, **config)
    assert different(ours, theirs) == []
    assert changed(world) == tensors


@pytest.mark.skipif(not X86, reason="the order of sums is that of torch on x86-64")
@pytest.mark.parametrize("rank", RANKS)
def test_every_rank_from_7_to_512_is_peft_to_the_bit(world, rank):
    world.model("base", seed=rank, layers=1, hidden=192, intermediate=328)
    ours, theirs = folded(world, r=rank, lora_alpha=rank, target_modules="all-linear")
    assert different(ours, theirs) == []
    assert changed(world) == 7


@pytest.mark.parametrize("rank", [16, 256])
def test_on_any_processor_nearly_every_weight_is_pefts_and_none_is_far_off(world, rank):
    world.model("base", seed=rank, layers=1, hidden=192, intermediate=328)
    ours, theirs = folded(world, r=rank, lora_alpha=rank, target_modules="all-linear")
    for name, tensor in ours.items():
        mine, other = widened(tensor), widened(theirs[name])
        assert (mine == other).mean() >= 0.999
        assert abs(mine - other).max() <= 2**-5 * np.sqrt((other**2).mean())


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
@pytest.mark.parametrize("weight", [0.25, -1.5])
@pytest.mark.parametrize("rslora", [False, True])
def test_a_weight_is_pefts_set_scale(world, kind, weight, rslora):
    world.model("base", kind, seed=1)
    target = ["c_attn", "c_fc"] if kind == "gpt2" else ["q_proj", "up_proj"]
    ours, theirs = folded(world, kind=kind, weight=weight, r=6, lora_alpha=10, use_rslora=rslora, target_modules=target)
    assert different(ours, theirs) == []
    assert changed(world) == 4


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
@pytest.mark.parametrize("file", ["bfloat16", "float32"])
def test_any_dtype_of_base_and_adapter_file_is_peft(world, dtype, file):
    world.model("base", seed=1, dtype=dtype)
    world.lora("a", "base", seed=2, dtype=file, targets=("q_proj", "down_proj"), rank=8)
    world.merge(LORA % 1).build()
    theirs = adapted(world.root / "a", world.root / "base").merge_and_unload()
    assert different(state(load(world.out / "m")), state(theirs)) == []
    assert changed(world) == 4


# --- identities -------------------------------------------------------------------------------------------------------


def test_at_weight_0_every_tensor_is_the_bases_and_nothing_is_computed(world):
    world.model("base", seed=1).lora("a", "base", seed=2, modules_to_save=("lm_head",))
    result = world.merge(LORA % 0).build()
    assert (result["m"].tensors.computed, result["m"].tensors.copied) == (0, 21)
    assert changed(world) == 0


def test_tensors_that_no_key_names_are_copied(world):
    world.model("base", seed=1).lora("a", "base", seed=2, targets=("q_proj",))
    tensors = world.merge(LORA % 0.5).build()["m"].tensors
    assert (tensors.total, tensors.computed, tensors.copied) == (21, 2, 19)


def test_a_replacement_alone_and_at_weight_1_is_taken_as_it_is(world):
    """It may then hold what no sum would give: a NaN of the base is gone."""
    world.model("base", seed=1, extra={"lm_head.weight": rounded(np.full((64, 32), np.nan))})
    world.lora("a", "base", seed=2, targets=("q_proj",), modules_to_save=("lm_head",))
    result = world.merge(LORA % 1).build()
    assert same(world.tensors("m")["lm_head.weight"], world.source("a")["base_model.model.lm_head.weight"])
    assert (result["m"].tensors.computed, result["m"].tensors.copied) == (2, 19)


def test_a_replacement_at_half_weight_is_halfway(world):
    world.model("base", seed=1).lora("a", "base", seed=2, targets=("q_proj",), modules_to_save=("lm_head",))
    made = world.made(LORA % 0.5)["lm_head.weight"]
    w, r = (widened(t) for t in (world.source("base")["lm_head.weight"], world.source("a")[PREFIX + "lm_head.weight"]))
    assert same(made, rounded(w + (r - w) * np.float32(0.5)))


# --- several adapters -------------------------------------------------------------------------------------------------


def test_several_adapters_are_summed_in_float32_and_rounded_once(world):
    """The formula exactly; PEFT, which rounds after each adapter, within a step of bfloat16."""
    import peft

    world.model("base", seed=1)
    for name, seed, rank in (("a", 2, 8), ("b", 3, 4)):
        world.lora(name, "base", seed=seed, rank=rank, alpha=12, targets=("q_proj", "v_proj"))
    world.lora("c", "base", seed=4, rank=2, alpha=12, targets=("q_proj",))
    weights = {"a": 0.75, "b": -0.5, "c": 1.0}
    entries = ", ".join(f'{{ adapter = "{name}", weight = {weight} }}' for name, weight in weights.items())
    made = world.made(f'[merge.m]\nmethod = "lora"\nbase = "base"\nadapters = [{entries}]\n')
    base = world.source("base")
    for name in [n for n in base if "q_proj" in n or "v_proj" in n]:
        total = None
        for adapter, rank in (("a", 8), ("b", 4), ("c", 2)):
            factors = world.source(adapter)
            key = PREFIX + name.removesuffix("weight")
            if f"{key}lora_A.weight" in factors:
                b, a = (widened(factors[f"{key}lora_{part}.weight"]) for part in "BA")
                delta = chain(b, a) * np.float32(weights[adapter] * 12 / rank)
                total = delta if total is None else total + delta
        assert same(made[name], rounded(widened(base[name]) + total))

    model = peft.PeftModel.from_pretrained(load(world.root / "base"), world.root / "a", adapter_name="a")
    for name in ("b", "c"):
        model.load_adapter(world.root / name, adapter_name=name)
    for module in model.modules():
        for name, weight in weights.items():
            if hasattr(module, "set_scale"):
                module.set_scale(name, weight)
    theirs = state(model.merge_and_unload(adapter_names=list(weights)))
    for name in theirs:
        step = 2.0**-7 * abs(widened(theirs[name])).max()
        assert abs(widened(made[name]) - widened(theirs[name])).max() <= step


def test_an_adapter_twice_at_half_weight_is_the_adapter(world):
    world.model("base", seed=1, dtype="float32").lora("a", "base", seed=2)
    world.put("b", world.root / "a")
    halves = ", ".join(f'{{ adapter = "{name}", weight = 0.5 }}' for name in "ab")
    whole = world.made(LORA % 1)
    split = world.made(f'[merge.m]\nmethod = "lora"\nbase = "base"\nadapters = [{halves}]\n')
    assert different(whole, split) == []


def test_the_weight_of_an_adapter_may_follow_the_layers(world):
    world.model("base", seed=1, layers=3).lora("a", "base", seed=2, targets=("q_proj",))
    result = world.merge(LORA % "{ points = [[0, 1.0], [2, 0.0]] }").build()
    assert result["m"].tensors.computed == 2
    at = {name: world.tensors("m")[f"model.layers.{name}.self_attn.q_proj.weight"] for name in range(3)}
    for weight, layer in ((1.0, 0), (0.5, 1)):
        assert same(world.made(LORA % weight)[f"model.layers.{layer}.self_attn.q_proj.weight"], at[layer])
    assert same(world.source("base")["model.layers.2.self_attn.q_proj.weight"], at[2])


# --- embeddings and tied heads ----------------------------------------------------------------------------------------


def test_an_embedding_is_rounded_once_and_within_a_step_of_peft(world):
    world.model("base", seed=1)
    ours, theirs = folded(world, r=8, lora_alpha=16, target_modules=["embed_tokens"])
    name = "model.embed_tokens.weight"
    assert set(different(ours, theirs)) <= {name}
    factors = world.source("a")
    a, b = (widened(factors[f"{PREFIX}model.embed_tokens.lora_embedding_{part}"]) for part in "AB")
    assert same(ours[name], rounded(widened(world.source("base")[name]) + chain(a.T, b.T) * np.float32(2)))
    step = 2.0**-7 * abs(widened(theirs[name])).max()
    assert abs(widened(ours[name]) - widened(theirs[name])).max() <= step


def test_in_float32_an_embedding_is_pefts_to_the_bit(world):
    world.model("base", seed=1, dtype="float32")
    ours, theirs = folded(world, r=8, lora_alpha=16, target_modules=["embed_tokens"])
    assert different(ours, theirs) == []


TIED = {
    "embedding": {"target_modules": ["q_proj", "embed_tokens"]},
    "head": {"target_modules": ["q_proj", "lm_head"]},
    "saved embedding": {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"]},
    "saved head": {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]},
}


@pytest.mark.parametrize("name", TIED)
@pytest.mark.parametrize("kind", ["qwen2", "gpt2"])
def test_an_adapter_on_one_end_of_a_tied_model_unties_the_ends(world, kind, name):
    """The other end stays what it was, and the output says what the adapted model says."""
    names = {"q_proj": "c_attn", "embed_tokens": "wte"} if kind == "gpt2" else {}
    config = {key: [names.get(module, module) for module in modules] for key, modules in TIED[name].items()}
    world.model("base", kind, seed=1, dtype="float32")
    adapt(world.root / "a", world.root / "base", kind, r=4, **config)
    result = world.merge(LORA % 1).build()
    assert any("unties" in note for note in result.notes)
    assert world.config("m")["tie_word_embeddings"] is False
    made, base = world.tensors("m"), world.source("base")
    embedding = "transformer.wte.weight" if kind == "gpt2" else "model.embed_tokens.weight"
    kept = embedding if "head" in name else "lm_head.weight"
    assert made[kept][1].tobytes() == base[embedding][1].tobytes()
    assert not same(made[embedding], made["lm_head.weight"])
    theirs = logits(adapted(world.root / "a", world.root / "base", kind))
    assert np.allclose(logits(load(world.out / "m", kind)), theirs, rtol=0, atol=1e-4)
    assert abs(theirs - logits(load(world.root / "base", kind))).max() > 0.01


def test_a_tied_model_stays_tied_where_nothing_changes_its_ends(world):
    world.model("base", "qwen2", seed=1).lora("a", "base", seed=2)
    result = world.merge(LORA % 1).build()
    assert (result.notes, world.config("m")["tie_word_embeddings"]) == ((), True)
    assert "lm_head.weight" not in world.tensors("m")


@pytest.mark.parametrize("extra", ['copy = ["embed_tokens"]', 'only = ["self_attn"]', "weight = 0"])
def test_a_tied_model_stays_tied_where_the_change_of_its_embedding_is_left_out(world, extra):
    world.model("base", "qwen2", seed=1).lora("a", "base", seed=2, embedding=True)
    text = '[merge.m]\nmethod = "lora"\nbase = "base"\nadapters = [{ adapter = "a" }]\n'
    made = world.made(text + extra + "\n")
    assert same(made["model.embed_tokens.weight"], world.source("base")["model.embed_tokens.weight"])
    assert "lm_head.weight" not in made
    assert world.config("m")["tie_word_embeddings"] is True


def test_a_tied_model_that_stores_its_head_as_well_is_untied_in_its_config(world):
    world.model("base", seed=1, dtype="float32", config={"tie_word_embeddings": True})
    ends = world.source("base")
    world.model("base", seed=1, dtype="float32", config={"tie_word_embeddings": True},
                extra={"lm_head.weight": ends["model.embed_tokens.weight"]})  # fmt: skip
    adapt(world.root / "a", world.root / "base", r=4, target_modules=["embed_tokens"])
    world.merge(LORA % 1).build()
    assert world.config("m")["tie_word_embeddings"] is False
    theirs = logits(adapted(world.root / "a", world.root / "base"))
    assert np.allclose(logits(load(world.out / "m")), theirs, rtol=0, atol=1e-4)


def test_a_saved_copy_of_both_tied_ends_keeps_them_tied(world):
    world.model("base", "qwen2", seed=1)
    adapt(world.root / "a", world.root / "base", "qwen2", r=4, target_modules=["q_proj"],
          modules_to_save=["embed_tokens"], ensure_weight_tying=True)  # fmt: skip
    world.merge(LORA % 1).build()
    theirs = adapted(world.root / "a", world.root / "base", "qwen2").merge_and_unload()
    assert different(state(load(world.out / "m", "qwen2")), state(theirs)) == []
    assert world.config("m")["tie_word_embeddings"] is True


def test_a_vocabulary_that_the_adapter_extends_grows_in_weights_and_config(world):
    world.model("base", seed=1)
    adapt(world.root / "a", world.root / "base", r=4, target_modules=["q_proj", "embed_tokens", "lm_head"],
          prepare=lambda model: model.resize_token_embeddings(70))  # fmt: skip
    result = world.merge(LORA % 1).build()
    assert world.config("m")["vocab_size"] == 70
    assert any("`lm_head.weight` grows from 64 to 70 rows" in note for note in result.notes)
    theirs = adapted(world.root / "a", world.root / "base",
                     prepare=lambda model: model.resize_token_embeddings(70))  # fmt: skip
    ours = load(world.out / "m")
    assert np.allclose(logits(ours), logits(theirs), rtol=0, atol=0.05)
    assert logits(ours).shape[-1] == 70
