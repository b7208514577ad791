"""What mergekit 0.1.5 knows: its methods, their parameters, what becomes of a base_model, and the keys of its files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, TypeAlias

Base: TypeAlias = Literal["required", "optional", "input"]


@dataclass(frozen=True, slots=True)
class Known:
    """A method of mergekit: names of parameters of the merge and of each input.

    `base`: whether a base_model is required or optional as such, or counts as one more input ("input").
    """

    base: Base
    shared: tuple[str, ...] = ()
    each: tuple[str, ...] = ()

    @property
    def parameters(self) -> tuple[str, ...]:
        """The names of all parameters."""
        return (*self.shared, *self.each)


def _vectors(*more: str) -> Known:
    """A method of task vectors."""
    return Known("required", ("normalize", "rescale", "lambda", "int8_mask"), ("weight", "density", *more))


METHODS: Mapping[str, Known] = {
    "arcee_fusion": Known("required"),
    "breadcrumbs": _vectors("gamma"),
    "breadcrumbs_ties": _vectors("gamma"),
    "dare_linear": _vectors(),
    "dare_ties": _vectors(),
    "della": _vectors("epsilon"),
    "della_linear": _vectors("epsilon"),
    "karcher": Known("input", ("max_iter", "tol")),
    "linear": Known("input", ("normalize",), ("weight",)),
    "model_stock": Known("required", ("filter_wise",)),
    "multislerp": Known("optional", ("normalize_weights", "eps"), ("weight",)),
    "nearswap": Known("required", ("t",)),
    "nuslerp": Known("optional", ("nuslerp_flatten", "nuslerp_row_wise"), ("weight",)),
    "passthrough": Known("input", (), ("scale",)),
    "ram": Known("required", ("epsilon",)),
    "ramplus_tl": Known("required", ("r", "alpha", "epsilon")),
    "sce": Known("required", ("select_topk", "int8_mask")),
    "slerp": Known("required", ("t",)),
    "task_arithmetic": _vectors(),
    "ties": _vectors(),
}
"""Every method that 0.1.5 registers."""

RENAMED: Mapping[str, str] = {"nuslerp_flatten": "flatten", "nuslerp_row_wise": "row_wise"}
"""Parameters that have another name here."""

MASK = "it changes the dtype of a temporary, and no result"
_UNUSED: Mapping[tuple[str, str], str] = {
    ("task_arithmetic", "density"): "task_arithmetic drops no elements",
    ("task_arithmetic", "rescale"): "task_arithmetic drops no elements",
}


def without_effect(method: str, parameter: str) -> str | None:
    """Why mergekit reads this parameter and computes the same with or without it; None if it matters."""
    return MASK if parameter == "int8_mask" else _UNUSED.get((method, parameter))


RECIPE = (
    "name", "merge_method", "base_model", "models", "slices", "modules", "parameters", "dtype", "out_dtype",
    "tokenizer_source", "tokenizer", "chat_template",
)  # fmt: skip
MODEL = ("model", "parameters")
SOURCE = ("model", "layer_range", "parameters")
SLICE = ("sources", "base_model", "parameters", "residual_weight")
MODULE = ("slices", "models", "parameters")
TOKENIZER = ("source", "tokens", "pad_to_multiple_of")
TOKEN = ("source", "force")
MOE = ("name", "base_model", "experts", "gate_mode", "dtype", "experts_per_token", "shared_experts", "architecture")
EXPERT = ("source_model", "positive_prompts", "negative_prompts", "noise_scale", "residual_scale")
BAKLLAMA = ("name", "layer_slices", "embedding_source", "lm_head_source")
LAYERS = ("model", "start", "end", "scale")
DTYPES = ("bfloat16", "float16", "float32")
SHORT = {"bf16": "bfloat16", "fp16": "float16", "f16": "float16", "half": "float16", "fp32": "float32",
         "f32": "float32", "float": "float32"}  # fmt: skip
"""What recipes call dtypes, and mergekit does not."""
