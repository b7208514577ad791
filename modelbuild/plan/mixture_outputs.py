"""The architectures of mixtures of experts: which dense models they are made from, what their tensors are called, and
the config.json that makes transformers compute, with all experts alike, what the dense model does.

The class of a mixture has other defaults than that of the dense model, so what the base's config leaves to its class is
written out.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

Config = Mapping[str, Any]

_THETA = 10000.0
"""The base of rotary positions where a dense model's config has none."""

_DROPPED = ("mlp_bias", "attention_bias", "pretraining_tp", "auto_map")
"""Keys of a dense model's config that say nothing of a mixture; `auto_map` names code of the dense model."""


@dataclass(frozen=True, slots=True)
class Mixture:
    """An architecture: `dense` are the model types that it is made from, each with what its class takes for keys that
    config.json may lack; `parts` the names of an expert's tensors, by those in the dense layer; `router` its router's;
    `attention` the other tensors that a layer may have. `extra` keys are set in config.json.
    """

    name: str
    class_name: str
    dense: Mapping[str, Config]
    parts: Mapping[str, str]
    router: str
    attention: frozenset[str]
    count_key: str
    kept: frozenset[str] = frozenset()
    extra: Config = field(default_factory=dict)

    def expert(self, part: str, number: int) -> str:
        """The name within the layer of a tensor of expert `number`, given its name in the dense layer."""
        return self.parts[part].format(number)


_LLAMA = {
    "hidden_act": "silu", "max_position_embeddings": 2048, "rms_norm_eps": 1e-6, "tie_word_embeddings": False,
    "initializer_range": 0.02, "attention_dropout": 0.0,
}  # fmt: skip
_MISTRAL = {**_LLAMA, "max_position_embeddings": 131072, "num_key_value_heads": 8, "sliding_window": 4096}
_QWEN3 = {
    **_LLAMA, "max_position_embeddings": 32768, "num_key_value_heads": 32, "head_dim": 128, "attention_bias": False,
}  # fmt: skip
_MATRICES = [f"self_attn.{letter}_proj.weight" for letter in "qkvo"]
_LAYER = frozenset({"input_layernorm.weight", "post_attention_layernorm.weight", *_MATRICES})

MIXTURES: tuple[Mixture, ...] = (
    Mixture(
        "mixtral",
        "MixtralForCausalLM",
        {"llama": _LLAMA, "mistral": _MISTRAL},
        {
            "mlp.gate_proj.weight": "block_sparse_moe.experts.{}.w1.weight",
            "mlp.down_proj.weight": "block_sparse_moe.experts.{}.w2.weight",
            "mlp.up_proj.weight": "block_sparse_moe.experts.{}.w3.weight",
        },
        "block_sparse_moe.gate.weight",
        _LAYER,
        "num_local_experts",
    ),
    Mixture(
        "qwen3_moe",
        "Qwen3MoeForCausalLM",
        {"qwen3": _QWEN3},
        {
            "mlp.gate_proj.weight": "mlp.experts.{}.gate_proj.weight",
            "mlp.up_proj.weight": "mlp.experts.{}.up_proj.weight",
            "mlp.down_proj.weight": "mlp.experts.{}.down_proj.weight",
        },
        "mlp.gate.weight",
        _LAYER
        | {"self_attn.q_norm.weight", "self_attn.k_norm.weight"}
        | {f"self_attn.{letter}_proj.bias" for letter in "qkvo"},
        "num_experts",
        frozenset({"attention_bias"}),
        {"decoder_sparse_step": 1, "mlp_only_layers": [], "norm_topk_prob": True},
    ),
)
"""The mixtures that are built, by name and in order."""


def of_model_type(model_type: object) -> Mixture | None:
    """The mixture that dense models of this type make; None where there is none."""
    return next((mixture for mixture in MIXTURES if model_type in mixture.dense), None)


def written_out(config: Config, mixture: Mixture) -> dict[str, Any]:
    """The config of a dense model with all that it leaves to its class: what a mixture's class takes otherwise."""
    defaults = mixture.dense[str(config["model_type"])]
    found = {**config, **{key: value for key, value in defaults.items() if key not in config}}
    if found.get("num_key_value_heads") is None:
        found["num_key_value_heads"] = found.get("num_attention_heads", 32)
    rope = found.get("rope_parameters")
    if isinstance(rope, Mapping):
        found["rope_parameters"] = {"rope_theta": found.get("rope_theta", _THETA), **rope}
    elif found.get("rope_theta") is None:
        found["rope_theta"] = _THETA
    return found


def config_of(config: Config, mixture: Mixture, experts: int, per_token: int) -> dict[str, Any]:
    """config.json of the mixture, made of that of the dense base."""
    found = written_out(config, mixture)
    if config["model_type"] == "llama" and "sliding_window" in config:
        found["sliding_window"] = None  # Llama has none, whatever its config says
    dropped = {*_DROPPED} - mixture.kept
    found = {key: value for key, value in found.items() if key not in dropped}
    found |= {"architectures": [mixture.class_name], "model_type": mixture.name}
    found |= {mixture.count_key: experts, "num_experts_per_tok": per_token, **mixture.extra}
    if mixture.name == "qwen3_moe":
        found["moe_intermediate_size"] = found["intermediate_size"]
    return found


def refusal(config: Config) -> str | None:
    """What about a dense model's config no mixture can express; None where there is nothing."""
    if config.get("model_type") == "qwen3" and config.get("use_sliding_window"):
        return "`use_sliding_window` is true: its layers are of two kinds, those of a mixture of one"
    return None
