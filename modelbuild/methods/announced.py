"""Methods that are part of the format and not built by this version: what a Modelfile may say about them.

A method leaves this list when it gets a file of its own. Parameters and defaults follow mergekit 0.1.5, so that a
recipe means the same in both.
"""

from __future__ import annotations

from typing import Literal

from modelbuild.methods.base import Method, Parameter, Scalar

Scope = Literal["merge", "input"]


def _number(
    name: str, scope: Scope, default: float | None, help: str, low: float | None = None, high: float | None = None
) -> Parameter:
    return Parameter(name, scope, "number", default, help, low, high)


def _flag(name: str, default: Scalar, help: str) -> Parameter:
    return Parameter(name, "merge", "boolean", default, help)


WEIGHT = _number("weight", "input", None, "share of this input")
DENSITY = _number("density", "input", 1.0, "share of the delta's elements that is kept", 0.0, 1.0)
LAMBDA = _number("lambda", "merge", 1.0, "scale of the merged delta")
CONSENSUS = Parameter(
    "consensus", "merge", "string", "sum", "what elects signs: sum or count of the deltas", choices=("sum", "count")
)  # fmt: skip


def _vector(normalize: bool, rescale: bool, *more: Parameter) -> tuple[Parameter, ...]:
    """The parameters shared by the methods that sparsify task vectors."""
    return (
        WEIGHT,
        DENSITY,
        *more,
        LAMBDA,
        _flag("normalize", normalize, "divide by the sum of the weights"),
        _flag("rescale", rescale, "scale what is kept back to the size of the whole delta"),
    )


def _announce(
    name: str,
    summary: str,
    paper: str,
    base: Literal["required", "optional", "none"],
    inputs: tuple[int, int | None],
    parameters: tuple[Parameter, ...],
) -> Method:
    return Method(name, summary, paper, 0, base, inputs, parameters)


_TIES = "https://arxiv.org/abs/2306.01708"
_DARE = "https://arxiv.org/abs/2311.03099"
_DELLA = "https://arxiv.org/abs/2406.11617"
_BREADCRUMBS = "https://arxiv.org/abs/2312.06795"
_RAM = "https://arxiv.org/abs/2601.13572"
_GAMMA = _number("gamma", "input", 0.01, "share of the largest elements that is dropped", 0.0, 1.0)
_EPSILON = _number("epsilon", "input", 0.15, "half the spread of the probability of being kept", 0.0, 1.0)
_ACTIVE = _number("epsilon", "merge", 1e-5, "a delta's element counts as changed above this", 0.0)

_VOTES = (
    _announce(
        "ties",
        "keep each delta's largest elements, elect signs, average what agrees",
        _TIES,
        "required",
        (1, None),
        (*_vector(True, False), CONSENSUS),
    ),
    _announce(
        "dare_linear",
        "drop elements of the deltas at random, then add",
        _DARE,
        "required",
        (1, None),
        _vector(False, True),
    ),
    _announce(
        "dare_ties",
        "drop elements of the deltas at random, then elect signs",
        _DARE,
        "required",
        (1, None),
        (*_vector(False, True), CONSENSUS),
    ),
    _announce(
        "della",
        "drop small elements of the deltas more often than large ones, then elect signs",
        _DELLA,
        "required",
        (1, None),
        (*_vector(True, True, _EPSILON), CONSENSUS),
    ),
    _announce(
        "della_linear",
        "drop small elements of the deltas more often than large ones, then add",
        _DELLA,
        "required",
        (1, None),
        _vector(False, True, _EPSILON),
    ),
    _announce(
        "breadcrumbs",
        "drop the smallest and the largest elements of the deltas, then add",
        _BREADCRUMBS,
        "required",
        (1, None),
        _vector(False, False, _GAMMA),
    ),
    _announce(
        "breadcrumbs_ties",
        "drop the smallest and the largest elements of the deltas, then elect signs",
        _BREADCRUMBS,
        "required",
        (1, None),
        (*_vector(False, False, _GAMMA), CONSENSUS),
    ),
    _announce(
        "sce",
        "keep the elements that differ most between models, weigh models by their energy, elect signs",
        "https://arxiv.org/abs/2408.07990",
        "required",
        (1, None),
        (_number("select_topk", "merge", 1.0, "share of the elements that is kept", 0.0, 1.0),),
    ),
    _announce(
        "ram",
        "copy what one model changed, average what several changed",
        _RAM,
        "required",
        (1, None),
        (_ACTIVE,),
    ),
    _announce(
        "ramplus_tl",
        "as ram, with what one model changed made larger to make up for the averaging",
        _RAM,
        "required",
        (1, None),
        (
            _number("r", "merge", 0.1, "strength of the amplification", 0.0),
            _number("alpha", "merge", 0.2, "largest ratio of shared to unique that counts", 0.0),
            _ACTIVE,
        ),
    ),
    _announce(
        "nearswap",
        "interpolate more where base and model are nearer",
        "https://huggingface.co/alchemonaut/QuartetAnemoi-70B-t0.0001",
        "required",
        (1, 1),
        (_number("t", "merge", None, "distance at which the model is taken whole", 0.0),),
    ),
    _announce(
        "arcee_fusion",
        "take over the elements whose change is important",
        "https://www.arcee.ai/blog/meet-mergekit-v0-1-arcee-fusion-expanded-model-support-multi-gpu-acceleration",
        "required",
        (1, 1),
        (),
    ),
)

_OTHERS = (
    _announce(
        "iso_c",
        "add the deltas and make the spectrum of the sum flat",
        "https://arxiv.org/abs/2502.04959",
        "required",
        (1, None),
        (LAMBDA,),
    ),
    _announce(
        "tsv",
        "keep each delta's leading singular vectors, made orthogonal across models",
        "https://arxiv.org/abs/2412.00081",
        "required",
        (1, None),
        (_number("density", "merge", None, "share of the singular vectors that each model keeps", 0.0, 1.0), LAMBDA),
    ),
    _announce(
        "moe",
        "a mixture of experts made from dense models",
        "https://arxiv.org/abs/2401.04088",
        "required",
        (1, None),
        (
            Parameter(
                "gate_mode",
                "merge",
                "string",
                "hidden",
                "where the router comes from",
                choices=("hidden", "hidden_avg", "hidden_last", "cheap_embed", "random", "uniform_random"),
            ),
            Parameter("experts_per_token", "merge", "integer", 2, "experts that work on one token", 1),
            Parameter("prompt", "input", "string", None, "text that this expert is for", nullable=True),
            Parameter("negative_prompt", "input", "string", None, "text that this expert is not for", nullable=True),
            _number("noise_scale", "input", 0.0, "noise added to this expert's weights", 0.0),
            _number("residual_scale", "input", 1.0, "scale of this expert's output"),
        ),
    ),
)

ANNOUNCED: tuple[Method, ...] = (*_VOTES, *_OTHERS)
"""The methods known but not built: `step` is None."""
