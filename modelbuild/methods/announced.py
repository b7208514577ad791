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


LAMBDA = _number("lambda", "merge", 1.0, "scale of the merged delta")


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
)
"""The methods known but not built: `step` is None."""
