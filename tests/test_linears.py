"""Which weights are linear layers, from names alone, against what transformers replaces in models of many kinds."""

import pytest
import torch
import transformers
from transformers.integrations.bitsandbytes import replace_with_bnb_linear
from transformers.quantizers.base import HfQuantizer

from modelbuild.formats._skips import in_memory, skip_entries
from modelbuild.formats.base import Unfit
from modelbuild.formats.linears import find_linears, head_names

TINY = {
    "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 96,
    "num_key_value_heads": 2, "max_position_embeddings": 64, "head_dim": 16, "pad_token_id": 0,
}  # fmt: skip
SMALL = {"d_model": 64, "d_ff": 128, "d_kv": 16, "num_layers": 2, "num_heads": 4, "vocab_size": 96}
KINDS = {
    "LlamaForCausalLM": ("LlamaConfig", TINY),
    "LlamaForSequenceClassification": ("LlamaConfig", TINY),
    "LlamaForTokenClassification": ("LlamaConfig", TINY),
    "LlamaModel": ("LlamaConfig", TINY),
    "MistralForCausalLM": ("MistralConfig", TINY),
    "Qwen2ForCausalLM": ("Qwen2Config", TINY | {"tie_word_embeddings": True}),
    "Qwen3ForCausalLM": ("Qwen3Config", TINY),
    "GemmaForCausalLM": ("GemmaConfig", TINY),
    "Gemma2ForCausalLM": ("Gemma2Config", TINY),
    "Gemma3ForCausalLM": ("Gemma3TextConfig", TINY),
    "PhiForCausalLM": ("PhiConfig", TINY),
    "Phi3ForCausalLM": ("Phi3Config", TINY),
    "StableLmForCausalLM": ("StableLmConfig", TINY),
    "Starcoder2ForCausalLM": ("Starcoder2Config", TINY),
    "CohereForCausalLM": ("CohereConfig", TINY),
    "Olmo2ForCausalLM": ("Olmo2Config", TINY),
    "GraniteForCausalLM": ("GraniteConfig", TINY),
    "SmolLM3ForCausalLM": ("SmolLM3Config", TINY),
    "GPTNeoXForCausalLM": ("GPTNeoXConfig", TINY),
    "GPTJForCausalLM": ("GPTJConfig", {"n_embd": 64, "n_layer": 2, "n_head": 4, "vocab_size": 96, "rotary_dim": 8}),
    "GPT2LMHeadModel": ("GPT2Config", {"n_embd": 64, "n_layer": 2, "n_head": 4, "vocab_size": 96}),
    "GPT2ForSequenceClassification": ("GPT2Config", {"n_embd": 64, "n_layer": 2, "n_head": 4, "vocab_size": 96}),
    "OpenAIGPTLMHeadModel": ("OpenAIGPTConfig", {"n_embd": 64, "n_layer": 2, "n_head": 4, "vocab_size": 96}),
    "GPTBigCodeForCausalLM": ("GPTBigCodeConfig", {"n_embd": 64, "n_layer": 2, "n_head": 4, "vocab_size": 96}),
    "GPTNeoForCausalLM": ("GPTNeoConfig", {
        "hidden_size": 64, "num_layers": 2, "num_heads": 4, "vocab_size": 96, "attention_types": [[["global"], 2]],
    }),
    "OPTForCausalLM": ("OPTConfig", TINY | {"ffn_dim": 128, "word_embed_proj_dim": 32}),
    "BloomForCausalLM": ("BloomConfig", {"hidden_size": 64, "n_layer": 2, "n_head": 4, "vocab_size": 96}),
    "MptForCausalLM": ("MptConfig", {"d_model": 64, "n_layers": 2, "n_heads": 4, "vocab_size": 96}),
    "MambaForCausalLM": ("MambaConfig", {"hidden_size": 64, "num_hidden_layers": 2, "vocab_size": 96}),
    "BertModel": ("BertConfig", TINY),
    "BertForMaskedLM": ("BertConfig", TINY),
    "BertForSequenceClassification": ("BertConfig", TINY),
    "BertForQuestionAnswering": ("BertConfig", TINY),
    "RobertaForMaskedLM": ("RobertaConfig", TINY),
    "DistilBertForMaskedLM": ("DistilBertConfig", {"dim": 64, "n_layers": 2, "n_heads": 4, "hidden_dim": 128}),
    "ElectraForSequenceClassification": ("ElectraConfig", TINY | {"embedding_size": 32}),
    "XLMRobertaModel": ("XLMRobertaConfig", TINY),
    "MPNetModel": ("MPNetConfig", TINY),
    "T5ForConditionalGeneration": ("T5Config", SMALL),
    "T5EncoderModel": ("T5Config", SMALL),
    "BartForConditionalGeneration": ("BartConfig", {
        "d_model": 64, "encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 128, "decoder_ffn_dim": 128,
        "encoder_attention_heads": 4, "decoder_attention_heads": 4, "vocab_size": 96,
    }),
    "ViTForImageClassification": ("ViTConfig", TINY | {"image_size": 32, "patch_size": 8}),
    "CLIPTextModel": ("CLIPTextConfig", TINY),
    "CLIPVisionModel": ("CLIPVisionConfig", TINY | {"image_size": 32, "patch_size": 8}),
    "WhisperForConditionalGeneration": ("WhisperConfig", {
        "d_model": 64, "encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 128, "decoder_ffn_dim": 128,
        "encoder_attention_heads": 4, "decoder_attention_heads": 4, "vocab_size": 96, "pad_token_id": 0,
    }),
}  # fmt: skip
"""Classes of transformers, with the class and the values of a tiny config."""


def replaced(name, skip=None):
    """A tiny model in memory without values, its config as data, and the modules that transformers would quantise."""
    config_class, values = KINDS[name]
    config = getattr(transformers, config_class)(**values)
    config.architectures = [name]
    with torch.device("meta"):
        model = getattr(transformers, name)(config)
    model.tie_weights()
    tensors = stored(model)
    chosen = HfQuantizer.get_modules_to_not_convert(model, skip, model._keep_in_fp32_modules)
    settings = transformers.BitsAndBytesConfig(load_in_4bit=True)
    replace_with_bnb_linear(model, chosen, settings)
    modules = {path for path, module in model.named_modules() if type(module).__name__ == "Linear4bit"}
    return tensors, config.to_dict(), modules, model


def stored(model):
    """Dtype and shape of every tensor that would be saved: tied ones once, under the name of the first."""
    tied = getattr(model, "all_tied_weights_keys", {})
    return {name: ("BF16", tuple(t.shape)) for name, t in model.state_dict().items() if name not in tied}


@pytest.mark.parametrize("name", KINDS)
def test_the_linear_layers_of_a_model_are_those_that_transformers_replaces(name):
    tensors, config, modules, _ = replaced(name)
    found = find_linears(tensors, config)
    if not found.unsure:
        assert set(found.linear) == modules
        return
    # Where a name says too little, the config lists what was left; transformers obeys it.
    entries, lost = skip_entries([*found.left, *found.unsure], found.linear, head_names(config))
    assert lost == []
    assert set(found.linear) == replaced(name, entries)[2]


def test_only_the_weights_of_conv1d_modules_are_transposed():
    for name in ("GPT2LMHeadModel", "OpenAIGPTLMHeadModel", "GPTBigCodeForCausalLM", "LlamaForCausalLM"):
        tensors, config, _, model = replaced(name)
        packed = {path: module for path, module in model.named_modules() if type(module).__name__ == "Linear4bit"}
        turned = {path for path, module in packed.items() if module.source_cls.__name__ == "Conv1D"}
        assert find_linears(tensors, config).transposed == turned
        assert bool(turned) == (name in ("GPT2LMHeadModel", "OpenAIGPTLMHeadModel"))


# --- names alone ------------------------------------------------------------------------------------------------------


def kinds(*names, config=None, shape=(64, 64)):
    return find_linears(dict.fromkeys(names, ("BF16", shape)), {"model_type": "llama", **(config or {})})


def test_a_head_is_left_alone_and_a_last_layer_with_a_bias_is_not():
    assert kinds("lm_head.weight", "model.embed_tokens.weight", "a.weight").left == ("lm_head",)
    assert kinds("language_model.lm_head.weight", "a.weight").left == ("language_model.lm_head",)
    assert kinds("score.weight", "a.weight").left == ("score",)
    found = find_linears({"score.weight": ("BF16", (2, 64)), "score.bias": ("BF16", (2,))}, {})
    assert (found.left, found.linear) == ((), ("score",))
    assert kinds("layers.0.attention.output.weight").linear == ("layers.0.attention.output",)


def test_only_matrices_called_weight_are_layers():
    tensors = {
        "a.weight": ("BF16", (64, 64)), "a.bias": ("BF16", (64,)), "norm.weight": ("BF16", (64,)),
        "conv.weight": ("BF16", (64, 3, 8, 8)), "a_log": ("F32", (64, 16)), "position_ids": ("I64", (1, 64)),
    }  # fmt: skip
    assert find_linears(tensors, {}).linear == ("a",)


def test_embeddings_are_known_by_name_and_doubtful_ones_are_left_alone():
    names = ("wte", "wpe", "embeddings.word_embeddings", "shared", "model.embed_tokens", "visual.pos_embed")
    assert kinds("a.weight", *(f"{name}.weight" for name in names)).unsure == ()
    doubtful = ("vision.patch_embedding", "time_embed_proj", "embed_state", "encoder.embedding_mapping")
    assert kinds("a.weight", *(f"{name}.weight" for name in doubtful)).unsure == doubtful
    assert kinds("a.member.weight", "b.remembers.weight").unsure == ()


def test_the_projection_of_torch_s_own_attention_is_left_alone():
    found = kinds("attn.in_proj_weight", "attn.out_proj.weight", "mlp.weight")
    assert (found.unsure, found.linear) == (("attn.out_proj",), ("mlp",))


@pytest.mark.parametrize("name", [
    "model.layers.0.block_sparse_moe.experts.0.w1.weight", "model.layers.0.mlp.experts.gate_up_proj",
    "model.layers.1.mlp.shared_experts.up_proj.weight", "model.layers.1.mlp.shared_expert.up_proj.weight",
    "model.layers.0.block_sparse_moe.input_linear.weight", "layers.0.feed_forward.experts.3.down_proj.weight",
])  # fmt: skip
def test_a_mixture_of_experts_is_refused(name):
    with pytest.raises(Unfit, match="mixture of experts") as caught:
        kinds("a.weight", name)
    assert caught.value.facts == (f"`{name}`",)


def test_names_that_only_sound_like_experts_are_not_refused():
    assert kinds("expertise.weight", "layers.0.moet.weight").linear == ("expertise", "layers.0.moet")


@pytest.mark.parametrize("suffix", ["weight.absmax", "qweight", "SCB", "weight_packed", "weight_scale"])
def test_a_model_with_scales_is_quantised_already(suffix):
    with pytest.raises(Unfit, match="quantised already") as caught:
        kinds("a.weight", f"b.{suffix}")
    assert caught.value.facts == (f"it has `b.{suffix}`",)


@pytest.mark.parametrize("config", [
    {"quantization_config": {"quant_method": "gptq"}},
    {"text_config": {"model_type": "llama", "quantization_config": {"quant_method": "gptq"}}},
])  # fmt: skip
def test_a_config_that_says_so_is_enough(config):
    with pytest.raises(Unfit, match="quantised already") as caught:
        kinds("a.weight", config=config)
    assert caught.value.facts == ("its config.json says `quantization_config`: gptq",)


@pytest.mark.parametrize("dtype", ["F64", "I8", "F8_E4M3", "I32"])
def test_weights_of_other_dtypes_are_refused_by_name(dtype):
    with pytest.raises(Unfit, match="a dtype that is not quantised") as caught:
        find_linears({"a.weight": (dtype, (64, 64)), "b.weight": ("BF16", (64, 64))}, {})
    assert caught.value.facts == (f"`a.weight` is {dtype}",)


def test_layers_of_classes_that_transformers_does_not_replace_are_refused():
    with pytest.raises(Unfit, match="no layers that transformers would quantise"):
        kinds("h.0.dense.weight", config={"model_type": "falcon"})
    config = transformers.FalconConfig(hidden_size=64, num_hidden_layers=1, num_attention_heads=4, vocab_size=96)
    with torch.device("meta"):
        model = transformers.FalconForCausalLM(config)
    replace_with_bnb_linear(model, ["lm_head"], transformers.BitsAndBytesConfig(load_in_4bit=True))
    assert not [module for module in model.modules() if type(module).__name__ == "Linear4bit"]


def test_a_model_without_a_config_is_refused():
    with pytest.raises(Unfit, match=r"no config\.json"):
        find_linears({"a.weight": ("BF16", (64, 64))}, None)


# --- what config.json names -------------------------------------------------------------------------------------------

PARTS = ("self_attn.q_proj", "mlp.up_proj", "mlp.gate_proj")
LAYERS = [f"model.layers.{n}.{part}" for n in range(12) for part in PARTS]


def entries_for(left, heads=("lm_head",)):
    return skip_entries(left, [module for module in LAYERS if module not in left], heads)


def test_a_kind_of_layer_is_named_once_by_its_last_part():
    assert entries_for([m for m in LAYERS if m.endswith("q_proj")]) == (["lm_head", "q_proj"], [])
    assert entries_for([m for m in LAYERS if "mlp" in m]) == (["lm_head", "up_proj", "gate_proj"], [])


def test_one_layer_is_named_by_as_much_as_tells_it_apart():
    left = [m for m in LAYERS if ".layers.1." in m]
    entries, lost = entries_for(left)
    assert entries == ["lm_head", *(f"layers.1.{part}" for part in PARTS)]
    assert lost == []
    # Layer 11 ends like layer 1 does: what is named must not be the end of its name.
    assert not [module for module in LAYERS if module not in left and any(module.endswith(e) for e in entries)]


def test_the_entries_leave_alone_exactly_what_was_left_in_transformers_own_words():
    from transformers.quantizers.quantizers_utils import should_convert_module

    for left in ([LAYERS[3]], LAYERS[:7], [m for m in LAYERS if "0" in m], LAYERS[1::5]):
        entries, lost = entries_for(left)
        assert lost == []
        assert [m for m in LAYERS if not should_convert_module(m, entries)] == [m for m in LAYERS if m in left]
        assert not should_convert_module("lm_head", entries)


def test_a_layer_that_cannot_be_named_without_another_is_told():
    assert skip_entries(["proj"], ["q.proj"], []) == ([], ["proj"])
    assert skip_entries(["a+b"], [], []) == ([], ["a+b"])


@pytest.mark.parametrize("name", ["a(b", "(a+)+b", "[", "a b", "a|b", "ä"])
def test_names_that_mean_something_as_regular_expressions_are_never_entries(name):
    assert skip_entries([name, "z"], ["c"], ["lm_head"]) == (["lm_head", "z"], [name])
    assert skip_entries(["z"], [name], []) == (["z"], [])


def test_modules_that_have_other_names_in_memory_are_named_as_they_end_there():
    assert in_memory("language_model.model.layers.0.mlp.up_proj") == "language_model.layers.0.mlp.up_proj"
    assert in_memory("vision_tower.vision_model.encoder.layers.0.mlp.fc1") == "vision_tower.encoder.layers.0.mlp.fc1"
    text, vision = "language_model.model.layers.0.q_proj", "vision_tower.vision_model.encoder.layers.0.q_proj"
    assert skip_entries([vision], [text], []) == (["encoder.layers.0.q_proj"], [])
    assert skip_entries([text], [vision], []) == (["language_model.layers.0.q_proj"], [])


def test_a_model_of_masks_has_heads_of_other_names():
    assert head_names({"architectures": ["LlamaForCausalLM"]}) == ("lm_head",)
    assert "predictions.decoder" in head_names({"architectures": ["BertForMaskedLM"]})
    assert head_names(None) == head_names({"architectures": None}) == ("lm_head",)
