"""Mixtures of experts that cannot be made: each is told with the facts, in the plan at the latest."""

from textwrap import dedent

import numpy as np
import pico
import pytest
from merging import MergeWorld
from test_moe import dense

from modelbuild.formats import numerics


def golden(text):
    return dedent(text).lstrip("\n")


class Refusing(MergeWorld):
    """A world whose refusals end as lines do."""

    def refusal(self, text=None, code=1):
        return super().refusal(text, code) + "\n"


@pytest.fixture
def world(tmp_path):
    root = tmp_path / "world"
    root.mkdir()
    return Refusing(root)


def merge(models='{ model = "b" }, { model = "c" }', gate='gate_mode = "random"', more=""):
    return f'[merge.m]\nmethod = "moe"\nbase = "a"\n{gate}\nmodels = [ {models} ]\n{more}'


@pytest.fixture
def three(world):
    return dense(world, "llama")


PROMPTED = '{ model = "b", prompt = "x" }, { model = "c", prompt = "y" }'


# --- what the Modelfile alone shows -----------------------------------------------------------------------------------


ALONE = {
    "one expert": (merge('{ model = "b" }'), "`moe` takes at least two models"),
    "more for a token than there are": (
        merge(more="experts_per_token = 3"),
        "error: [merge.m] has fewer experts than work on one token\n"
        "  --> Modelfile:12:1\n   |  it has 2\n   |  `experts_per_token` is 3\n",
    ),
    "none for a token": (merge(more="experts_per_token = 0"), "`experts_per_token` is an integer of at least 1"),
    "slices": (
        merge(more='slices = [ { layers = [0, 1], models = [ { model = "b" } ] } ]'),
        "`slices` has no meaning with method `moe`",
    ),
    "only": (merge(more='only = ["mlp"]'), "`only` has no meaning with method `moe`"),
    "copy": (merge(more='copy = ["mlp"]'), "`copy` has no meaning with method `moe`"),
    "an unknown mode": (merge(gate='gate_mode = "randon"'), "hint: did you mean `random`?"),
    "an unknown architecture": (
        merge(more='architecture = "mixtrel"'),
        "error: there is no mixture of experts `mixtrel`\n  --> Modelfile:12:16\n"
        "   |  built are `mixtral`, `qwen3_moe`\n\nhint: did you mean `mixtral`?\n",
    ),
    "an architecture that is not built": (
        merge(more='architecture = "deepseek"'),
        "mixtures of experts by architecture `deepseek` are not built yet",
    ),
    "no prompts": (
        merge('{ model = "b", prompt = "x" }, { model = "c" }', ""),
        "error: expert `c` has no `prompt`\n  --> Modelfile:11:43\n"
        "   |  `gate_mode` hidden makes the router from texts that each expert is for\n\n"
        'hint: `gate_mode = "random"` does without\n',
    ),
    "the same prompts": (
        merge(PROMPTED.replace('"y"', '"x"'), 'gate_mode = "cheap_embed"'),
        "error: all experts of [merge.m] have the same prompts\n  --> Modelfile:11:1\n"
        "   |  the router could not tell them apart\n",
    ),
    "for and against": (
        merge(PROMPTED.replace('"x"', '"x", negative_prompt = "x"'), ""),
        "error: expert `b` is for what it is not for\n",
    ),
    "a mode by tensors": (
        merge(gate='gate_mode = [ { match = "mlp", value = "random" } ]'),
        "`gate_mode` is the same for every tensor: it has no choices",
    ),
    "no router": (
        merge(gate='gate_mode = "given"'),
        "error: [merge.m] has no `router`\n  --> Modelfile:10:1\n   |  `gate_mode` says that it is given\n\n"
        "hint: `router = NAME` of a base or merge that has routers\n",
    ),
    "a router for nothing": (
        merge(more='router = "c"'),
        "error: `router` is not used\n  --> Modelfile:12:1\n   |  `gate_mode` is random\n\n"
        'hint: `gate_mode = "given"` takes the routers from it\n',
    ),
    "a router that is nothing": (
        merge(gate='gate_mode = "given"\nrouter = "d"'),
        "there is no artifact `d`",
    ),
    "a router that is itself": (merge(gate='gate_mode = "given"\nrouter = "m"'), "`m` is made from itself"),
    "a router elsewhere": (
        '[merge.m]\nmethod = "linear"\nrouter = "a"\nmodels = [ { model = "b", weight = 1 } ]\n',
        "error: `router` has no meaning with method `linear`\n",
    ),
    "noise below nothing": (
        merge('{ model = "b", noise_scale = -1 }, { model = "c" }'),
        "`noise_scale` is a number of at least 0",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", ALONE)
def test_what_the_modelfile_alone_shows(three, name):
    written, message = ALONE[name]
    assert message in three.refusal(written, code=2)


MEANT = {
    "mergekit's word": (
        merge('{ model = "b", positive_prompts = ["x"] }, { model = "c", prompt = "y" }', ""),
        "error: entry 1 of `models` in [merge.m] has no key `positive_prompts`\n"
        "  --> Modelfile:11:27\n\nhint: here it is called `prompt`\n",
    ),
    "a misspelled prompt": (
        merge('{ model = "b", promt = "x" }, { model = "c", prompt = "y" }', ""),
        "error: entry 1 of `models` in [merge.m] has no key `promt`\n"
        "  --> Modelfile:11:27\n\nhint: did you mean `prompt`?\n",
    ),
    "a prompt of another type": (
        merge('{ model = "b", prompt = 3 }, { model = "c", prompt = "y" }', ""),
        "error: `prompt` is a string or a list of strings, not the number 3\n  --> Modelfile:11:36\n",
    ),
    "a mode that is none": (
        merge(gate='gate_mode = "cheap-embed"'),
        "error: `gate_mode` is one of `hidden`, `hidden_avg`, `hidden_last`, `cheap_embed`, `random`, "
        '`uniform_random`, `given`, not the string "cheap-embed"\n'
        "  --> Modelfile:10:13\n\nhint: did you mean `cheap_embed`?\n",
    ),
}


@pytest.mark.parametrize("name", MEANT)
def test_a_key_that_is_wrong_is_not_told_as_missing_too(three, name):
    text, told = MEANT[name]
    assert three.refusal(text, code=2) == told


LISTS = {"[]": "this list is empty", '["x", 3]': "not everything in this list is a string"}


@pytest.mark.parametrize(("prompt", "fact"), LISTS.items())
def test_a_list_that_is_none_of_prompts_is_told_as_that(three, prompt, fact):
    told = three.refusal(merge(f'{{ model = "b", prompt = {prompt} }}, {{ model = "c", prompt = "y" }}', ""), code=2)
    assert told == f"error: `prompt` is a string or a list of strings\n  --> Modelfile:11:36\n   |  {fact}\n"


def test_the_experts_of_mergekit_are_models_here(three):
    text = merge().replace("models = ", "experts = ")
    told = three.refusal(text, code=2)
    assert told == "error: [merge.m] has no key `experts`\n  --> Modelfile:11:1\n\nhint: here it is called `models`\n"


def test_shared_experts_are_not_built_yet(three):
    shared = '{ model = "b" }, { model = "c" }, { model = "a", shared = true }'
    assert three.refusal(merge(shared)) == golden("""
        error: `m` needs shared experts, which this version does not build yet
          --> Modelfile:11:1
           |  the Modelfile is right, and a later version builds it
    """)


# --- what the inputs show ---------------------------------------------------------------------------------------------


def test_a_base_of_another_kind(world):
    dense(world, "qwen2")
    assert world.refusal(merge()) == golden("""
        error: `a` makes no mixture of experts
          --> Modelfile:7:8
           |  `a` is of type qwen2
           |  mixtral is made from llama or mistral models
           |  qwen3_moe is made from qwen3 models
    """)


def test_a_base_that_does_not_make_what_is_asked_for(three):
    assert three.refusal(merge(more='architecture = "qwen3_moe"')).startswith(
        "error: `a` makes no mixture of experts by architecture `qwen3_moe`\n  --> Modelfile:12:1\n"
    )


def test_the_beginning_of_an_architecture_is_enough(world):
    dense(world, "qwen3").merge(merge(more='architecture = "Qwen"')).build()
    assert world.config("m")["model_type"] == "qwen3_moe"


def test_a_base_without_a_whole_mlp(three):
    three.model("a", "llama", seed=1, drop=["model.layers.1.mlp.gate_proj.weight"])
    assert three.refusal(merge()) == golden("""
        error: `a` makes no mixture of experts
          --> Modelfile:7:8
           |  `model.layers.1.mlp.gate_proj.weight` is missing
    """)


def test_a_base_without_layers(three):
    layers = [name for name in three.source("a") if ".layers." in name]
    three.model("a", "llama", seed=1, drop=layers)
    assert "no layers were found in its tensors' names" in three.refusal(merge())


def test_an_embedding_of_another_width(three):
    three.model("a", "llama", seed=1, extra={"model.embed_tokens.weight": ("BF16", np.zeros((64, 16), np.uint16))})
    assert "`model.embed_tokens.weight` has rows of 16, its layers take 32" in three.refusal(CHEAP)


def test_a_base_without_a_config(three):
    (three.root / "a" / "config.json").unlink()
    assert "`a` has no config.json that says what it is" in three.refusal(merge())


def test_an_expert_of_another_kind(three):
    three.model("c", "qwen3", seed=3)
    assert three.refusal(merge()) == golden("""
        error: `c` cannot be an expert beside `a`
          --> Modelfile:7:8
           |  `c` is of type qwen3
           |  `a` is of type llama
    """)


def test_an_expert_with_another_activation(three):
    three.model("c", "llama", seed=3, config={"hidden_act": "gelu"})
    text = three.refusal(merge())
    assert "   |  `c` has the activation gelu\n   |  `a` has silu, and a mixture has one\n" in text


def test_an_expert_of_another_width(three):
    three.model("c", "llama", seed=3, intermediate=96)
    text = three.refusal(merge())
    assert text.startswith("error: `c` does not fit `a` in merge `m`: shapes differ\n  --> Modelfile:11:29\n")
    assert "is [64, 32] in `a` and [96, 32] in `c`" in text
    assert "hint" not in text


@pytest.mark.parametrize("layers", [1, 3])
def test_an_expert_of_another_depth(three, layers):
    three.model("c", "llama", seed=3, layers=layers)
    text = three.refusal(merge())
    assert f"it has another number of layers\n  --> Modelfile:11:29\n   |  `a` has 2 layers, `c` has {layers}\n" in text


def test_an_expert_without_one_of_its_tensors(three):
    three.model("c", "llama", seed=3, drop=["model.layers.1.mlp.up_proj.weight"])
    text = three.refusal(merge())
    assert "tensors are missing" in text
    assert "`model.layers.1.mlp.up_proj.weight` is not in `c`" in text


@pytest.mark.parametrize("name", ["a", "c"])
def test_biases_of_an_mlp_have_no_place(three, name):
    bias = {"model.layers.0.mlp.up_proj.bias": ("BF16", np.zeros(64, np.uint16))}
    three.model(name, "llama", seed=3, extra=bias)
    text = three.refusal(merge())
    told = {"a": "`a` has tensors that a layer of mixtral has not", "c": "it has tensors that `a` lacks"}
    assert told[name] in text
    assert "`model.layers.0.mlp.up_proj.bias`" in text


def test_biases_of_attention_have_no_place_in_mixtral(three):
    bias = {"model.layers.1.self_attn.q_proj.bias": ("BF16", np.zeros(32, np.uint16))}
    three.model("a", "llama", seed=1, extra=bias)
    assert three.refusal(merge()) == golden("""
        error: `a` has tensors that a layer of mixtral has not
          --> Modelfile:7:8
           |  `model.layers.1.self_attn.q_proj.bias`
    """)


def test_windows_of_some_layers_have_no_place_in_qwen3_moe(world):
    dense(world, "qwen3", config={"use_sliding_window": True, "sliding_window": 4})
    assert "`use_sliding_window` is true" in world.refusal(merge())


def test_weights_that_are_not_computed_with(three):
    int8 = {"model.layers.0.mlp.up_proj.weight": ("I8", np.zeros((64, 32), np.int8))}
    three.model("c", "llama", seed=3, extra=int8)
    assert "is BF16 in `a`, I8 in `c`" in three.refusal(merge())


# --- prompts ----------------------------------------------------------------------------------------------------------


CHEAP = merge(PROMPTED, 'gate_mode = "cheap_embed"')


def test_a_base_without_a_tokenizer(world):
    dense(world, "llama", tokenizer=False)
    assert world.refusal(CHEAP) == golden("""
        error: `a` has no tokenizer for prompts
          --> Modelfile:10:1
           |  there is no tokenizer.json in it
           |  prompts are read by it
    """)


def test_a_tokenizer_that_is_none(three):
    (three.root / "a" / "tokenizer.json").write_text('{"version": 1}')
    assert three.refusal(CHEAP).startswith("error: the tokenizer of `a` cannot be read\n  --> Modelfile:10:1\n")


def test_a_prompt_of_no_tokens(three):
    for file in ("tokenizer_config.json", "special_tokens_map.json"):
        (three.root / "a" / file).unlink()
    assert three.refusal(CHEAP.replace('"x"', '" "')) == golden("""
        error: a prompt has no tokens: ` `
          --> Modelfile:10:1
    """)


def test_a_token_without_a_row(three):
    pico.save_tokenizer(three.root / "a", 80)
    text = three.refusal(CHEAP.replace('"x"', '"w70"'))
    assert "   |  `w70` has token 74\n   |  the embedding has 64 rows\n" in text


@pytest.mark.parametrize(("library", "mode"), [("tokenizers", "cheap_embed"), ("transformers", "hidden")])
def test_a_library_that_is_not_installed(three, monkeypatch, library, mode):
    real = numerics.version
    monkeypatch.setattr(numerics, "version", lambda name: real("no-such-package" if name == library else name))
    assert three.refusal(merge(PROMPTED, f'gate_mode = "{mode}"')) == golden(f"""
        error: routers by prompts need {library}, which is not installed
          --> Modelfile:10:1
           |  the routers of a mixture are made from prompts by it, with the weights of `a`

        hint: pip install 'modelbuild[moe]'
    """)


def test_a_random_router_takes_no_library(three, monkeypatch):
    monkeypatch.setattr(numerics, "version", lambda name: numerics.MissingLibrary(name))
    three.merge(merge(PROMPTED)).build()


# --- routers that are given -------------------------------------------------------------------------------------------


def test_routers_that_do_not_fit(three):
    three.model("other", "mixtral", seed=4, experts=3, layers=1)
    text = three.refusal(merge(gate='gate_mode = "given"\nrouter = "other"'))
    assert text == golden("""
        error: the routers of `other` do not fit `m`
          --> Modelfile:13:1
           |  `model.layers.0.block_sparse_moe.gate.weight` is [3, 32] of BF16, for this mixture it is [2, 32]
           |  there is no `block_sparse_moe.gate.weight` in layer 1
    """)
