"""Which weights of a model are linear layers that transformers would quantise: known by names, shapes and config.

transformers replaces modules of the class `nn.Linear`, and GPT-2's `Conv1D`, but for the output head, what is tied, and
a last module without a bias. A file has no classes, so a matrix is taken for what its name says. Where a name says too
little the matrix is left alone and counted as unsure: the config then lists what was left, which transformers obeys.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from modelbuild.formats.base import Unfit

CONV1D = ("gpt2", "openai-gpt", "imagegpt", "decision_transformer")
"""Architectures that store some weights as [inputs, outputs]."""

_CONV1D_NAMES = ("c_", "q_attn")
_EMBEDDINGS = frozenset({
    "embed_tokens", "embed_positions", "embed_in", "wte", "wpe", "shared", "tok_embeddings", "tokens_embed",
    "positions_embed", "word_embeddings", "position_embeddings", "token_type_embeddings",
    "position_embedding", "token_embedding", "relative_attention_bias", "embeddings", "pos_embed",
})  # fmt: skip
_LIKE_EMBEDDINGS = re.compile(r"(?:^|_)(?:emb|embed|embds?|embedding|embeddings)(?:$|_)")
_HEADS = ("lm_head", "embed_out", "vocab_projector", "predictions.decoder", "lm_head.decoder")
_LAST = ("score", "classifier", "head", "qa_outputs", "output")
_FLOAT32 = dict.fromkeys(("t5", "mt5", "umt5", "udop", "pop2piano"), ("wo",))
"""Modules that an architecture always computes in float32, and that are not quantised for it."""
_OTHER_CLASSES = ("falcon", "idefics")
"""Architectures whose linear layers are of a class of their own, which transformers does not replace."""
_EXPERTS = re.compile(r"(?:^|\.)(?:[a-z_]*experts?|[a-z_]*moe|moe_[a-z_]*)\.")
_QUANTISED = (".qweight", ".weight_packed", ".weight_scale", ".absmax", ".SCB", ".scales", ".weight_scale_inv")
_FLOATS = ("BF16", "F16", "F32")

Tensors = Mapping[str, tuple[str, tuple[int, ...]]]


@dataclass(frozen=True, slots=True)
class Linears:
    """The modules of a model that have a matrix: those that are linear, and of these the ones stored transposed; heads
    and others that transformers leaves alone by itself; and those that were left alone because it is not certain."""

    linear: tuple[str, ...]
    transposed: frozenset[str]
    left: tuple[str, ...]
    unsure: tuple[str, ...]


def find_linears(tensors: Tensors, config: Mapping[str, Any] | None) -> Linears:
    """Sorts a model's matrices; raises Unfit for a model that cannot be quantised at all."""
    types = _model_types(config)
    _refuse(tensors, config, types)
    found: dict[str, list[str]] = {"linear": [], "left": [], "unsure": [], "embedding": []}
    for module in _matrices(tensors):
        found[_kind(module, tensors, types)].append(module)
    flips = bool(set(CONV1D) & set(types))
    turned = (m for m in found["linear"] if flips and _leaf(m).startswith(_CONV1D_NAMES))
    return Linears(tuple(found["linear"]), frozenset(turned), tuple(found["left"]), tuple(found["unsure"]))


def head_names(config: Mapping[str, Any] | None) -> tuple[str, ...]:
    """The names of output heads, stored or tied, that a model of this config may have in memory."""
    words = " ".join(str(name) for name in (config or {}).get("architectures") or ())
    return ("lm_head", "predictions.decoder", "lm_head.decoder") if "MaskedLM" in words else ("lm_head",)


def _matrices(tensors: Tensors) -> Iterator[str]:
    for name, (_, shape) in tensors.items():
        if name.endswith(".weight") and len(shape) == 2:
            yield name.removesuffix(".weight")


def _kind(module: str, tensors: Tensors, types: tuple[str, ...]) -> str:
    leaf = _leaf(module)
    if any(module == head or module.endswith(f".{head}") for head in _HEADS):
        return "left"
    if leaf in _LAST and f"{module}.bias" not in tensors and not re.search(r"\.\d+\.", module):
        return "left"
    if any(leaf in _FLOAT32.get(name, ()) for name in types):
        return "left"
    if leaf in _EMBEDDINGS:
        return "embedding"
    parent = module.rpartition(".")[0]
    attention = f"{parent}.in_proj_weight" in tensors  # its projection is of a class that is not replaced
    return "unsure" if attention or _LIKE_EMBEDDINGS.search(leaf) else "linear"


def _leaf(module: str) -> str:
    return module.rpartition(".")[2]


def _model_types(config: Mapping[str, Any] | None) -> tuple[str, ...]:
    parts = [config or {}, *(part for part in (config or {}).values() if isinstance(part, Mapping))]
    return tuple(str(part["model_type"]) for part in parts if "model_type" in part)


# --- what cannot be quantised -----------------------------------------------------------------------------------------


def _refuse(tensors: Tensors, config: Mapping[str, Any] | None, types: tuple[str, ...]) -> None:
    if config is None:
        raise Unfit("has no config.json, which says how to load it")
    _refuse_quantised(tensors, config)
    experts = [name for name in tensors if _EXPERTS.search(name)]
    if experts:
        raise Unfit(
            "is a mixture of experts, which bitsandbytes and transformers leave in 16 bits or do not load",
            [f"`{experts[0]}`, and {len(experts) - 1} more" if len(experts) > 1 else f"`{experts[0]}`"],
            "the other formats take experts, once they are built",
        )
    if other := set(_OTHER_CLASSES) & set(types):
        fact = f"transformers has a linear layer of its own for `{min(other)}`, and does not quantise it"
        raise Unfit("has no layers that transformers would quantise", [fact])
    wrong = [(name, tensors[name][0]) for name in (f"{m}.weight" for m in _matrices(tensors))]
    if facts := [f"`{name}` is {dtype}" for name, dtype in wrong if dtype not in _FLOATS]:
        raise Unfit("has weights in a dtype that is not quantised", facts[:5], "BF16, F16 and F32 are")


def _refuse_quantised(tensors: Tensors, config: Mapping[str, Any]) -> None:
    parts = [config, *(part for key, part in config.items() if key.endswith("_config") and isinstance(part, Mapping))]
    said = next((part["quantization_config"] for part in parts if part.get("quantization_config")), None)
    names = [name for name in tensors if name.endswith(_QUANTISED)]
    if said is None and not names:
        return
    method = said.get("quant_method") if isinstance(said, Mapping) else None
    facts = [f"its config.json says `quantization_config`: {method or 'set'}"] if said is not None else []
    facts += [f"it has `{names[0]}`"] if names else []
    raise Unfit("is quantised already", facts, "name the model that it was made from")
