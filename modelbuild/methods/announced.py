"""Methods that are part of the format and not built by this version: what a Modelfile may say about them.

A method leaves this list when it gets a file of its own. Parameters and defaults follow mergekit 0.1.5, so that a
recipe means the same in both.
"""

from __future__ import annotations

from typing import Literal

from modelbuild.methods.base import Method, Parameter

Scope = Literal["merge", "input"]


def _number(
    name: str, scope: Scope, default: float | None, help: str, low: float | None = None, high: float | None = None
) -> Parameter:
    return Parameter(name, scope, "number", default, help, low, high)


def _announce(
    name: str,
    summary: str,
    paper: str,
    base: Literal["required", "optional", "none"],
    inputs: tuple[int, int | None],
    parameters: tuple[Parameter, ...],
) -> Method:
    return Method(name, summary, paper, 0, base, inputs, parameters)


ANNOUNCED: tuple[Method, ...] = (
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
            Parameter("architecture", "merge", "string", None, "mixtral, qwen, … where several fit", nullable=True),
            Parameter("prompt", "input", "strings", None, "texts that this expert is for", nullable=True),
            Parameter("negative_prompt", "input", "strings", None, "texts that this expert is not for", nullable=True),
            Parameter("shared", "input", "boolean", False, "an expert that works on every token"),
            _number("noise_scale", "input", 0.0, "noise added to this expert's weights", 0.0),
            _number("residual_scale", "input", 1.0, "scale of this expert's output"),
        ),
    ),
)
"""The methods known but not built: `step` is None."""
