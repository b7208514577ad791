"""iso_c: add the deltas, and give all directions of the sum the same weight (https://arxiv.org/abs/2502.04959).

    Δ = Σ wᵢ·(xᵢ − B) = U·diag(σ)·Vᵀ;  σ̄ = Σ σ / min(rows, columns)
    y = B + λ·σ̄·U·Vᵀ

Iso-C, isotropic merging in the common subspace. For tensors that are no matrices, and the arithmetic, see
methods/_spectral.py. Where singular values are 0 the published code takes U and V as they come; here such directions
are left out, so that a delta of 0 leaves the base as it is. (U·Vᵀ is the polar factor of Δ: no singular vectors of
their own are needed for it.)

Identities: a model at weight 0 is not read; with none left, or λ = 0, the base is taken as it is; a tensor that is
averaged is the model's where there is one, at weight 1 and λ = 1.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from modelbuild.methods._spectral import (
    LAMBDA,
    NOT_FINITE,
    SPECTRAL,
    WEIGHT,
    Spectral,
    difference,
    scale_in,
    spectral_step,
    weights_in,
)
from modelbuild.methods._spectrum import flatten, one_thread
from modelbuild.methods.base import Method, Request, Step

if TYPE_CHECKING:
    from torch import Tensor

    from modelbuild.methods._spectral import Passes
    from modelbuild.plan.node import Node


def step(request: Request) -> Step:
    """Adds no parameters; a matrix is always decomposed."""
    return spectral_step(request, lambda shape, models: ())


class IsoC(Spectral):
    """The operation: inputs are the base and the models at a weight that is not 0."""

    def taken(self, node: Node) -> int:
        """Nothing more: the matrix is changed where it stands."""
        return 0

    def merge(self, node: Node, start: int, matrix: Tensor) -> Passes:
        """Adds up, and makes the spectrum flat."""
        finite = yield from difference(node, start, matrix, list(enumerate(weights_in(node), 1)))
        if not finite:
            yield NOT_FINITE
            matrix.fill_(float("nan"))
            return
        with one_thread():
            flatten(matrix, scale_in(node))


METHOD = Method(
    name="iso_c",
    summary="add the deltas and make the spectrum of the sum flat",
    paper="https://arxiv.org/abs/2502.04959",
    version=1,
    base="required",
    inputs=(1, None),
    parameters=(WEIGHT, LAMBDA, SPECTRAL),
    step=step,
    operation=IsoC,
    libraries=lambda parameters: ("torch",),
)
