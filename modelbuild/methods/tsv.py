"""tsv: keep each delta's leading singular vectors, made orthogonal across models (https://arxiv.org/abs/2412.00081).

    xᵢ − B = Uᵢ·diag(σᵢ)·Vᵢᵀ, of which the k largest σ stay
    U = [U₁ … U_N],  V = [V₁ … V_N],  Σ = diag(w₁·σ₁ … w_N·σ_N)
    y = B + λ·U⊥·Σ·V⊥ᵀ        M⊥ = P·Qᵀ for M = P·diag(s)·Qᵀ, the nearest matrix with orthonormal columns

TSV-Merge. k = int(density·min(rows, columns)), without `density` min(rows, columns) div N as published, at least 1;
N is the number of models that are left. With N·k above the number of rows U⊥ has orthonormal rows instead, and so V⊥.
For tensors that are no matrices, and the arithmetic, see methods/_spectral.py. Directions whose singular value is 0,
of a delta or where models share theirs, are left out; the published code takes vectors for them as they come.

Identities: a model at weight 0 is not read; with none left, or λ = 0, the base is taken as it is, and matrices at
density 0. One model whose directions all stay is that model: taken as it is at weight 1 and λ = 1, else
y = B + λ·w·(x − B).
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
from modelbuild.methods._spectrum import leading, one_thread, orthonormalize, recombine, working_memory
from modelbuild.methods.base import Method, Parameter, Request, Step, Take
from modelbuild.methods.weights import number_of

if TYPE_CHECKING:
    from torch import Tensor

    from modelbuild.methods._spectral import Passes
    from modelbuild.plan.node import Node, Params


def step(request: Request) -> Step:
    """Adds how many singular vectors of each model stay; one model that keeps all of them is not decomposed."""
    density = request.shared["density"]

    def own(shape: tuple[int, ...], models: int) -> Params | Take | None:
        side = min(shape[-2:])
        if density is not None and float(density) == 0.0:
            return Take(-1)
        rank = side // models if density is None else int(float(density) * side)
        return None if models == 1 and rank == side else (("rank", max(1, rank)),)

    return spectral_step(request, own)


class Tsv(Spectral):
    """The operation: inputs are the base and the models at a weight that is not 0."""

    def taken(self, node: Node) -> int:
        """The vectors of all models, and what making them orthonormal takes."""
        rows, columns = node.shape[-2:]
        rank = int(number_of(node, "rank")) * (len(node.inputs) - 1)
        return 8 * rank * (rows + columns) + max(working_memory(rows, rank), working_memory(columns, rank))

    def merge(self, node: Node, start: int, matrix: Tensor) -> Passes:
        """Decomposes one model after the other, makes their directions orthonormal, and puts them together."""
        import torch

        rank, weights = int(number_of(node, "rank")), weights_in(node)
        left, right = (matrix.new_empty((side, rank * len(weights)), dtype=torch.float64) for side in matrix.shape)
        values = matrix.new_empty(rank * len(weights), dtype=torch.float64)
        found = 0
        for index, weight in enumerate(weights, 1):
            finite = yield from difference(node, start, matrix, [(index, 1.0)])
            if not finite:
                yield NOT_FINITE
                matrix.fill_(float("nan"))
                return
            with one_thread():
                ours, own, theirs = leading(matrix, rank)
                stop = found + len(own)
                left[:, found:stop], values[found:stop], right[:, found:stop] = ours, own * weight, theirs
                found = stop
        with one_thread():
            _combine(left[:, :found], values[:found] * scale_in(node), right[:, :found], matrix)


def _combine(left: Tensor, values: Tensor, right: Tensor, into: Tensor) -> None:
    if not len(values):
        into.zero_()
        return
    orthonormalize(left)
    orthonormalize(right)
    recombine(left, values, right, into)


METHOD = Method(
    name="tsv",
    summary="keep each delta's leading singular vectors, made orthogonal across models",
    paper="https://arxiv.org/abs/2412.00081",
    version=1,
    base="required",
    inputs=(1, None),
    parameters=(
        WEIGHT,
        Parameter(
            "density", "merge", "number", None, "share of the singular vectors that each model keeps; 1/models as"
            " published", 0.0, 1.0, nullable=True,
        ),
        LAMBDA,
        SPECTRAL,
    ),
    step=step,
    operation=Tsv,
    libraries=lambda parameters: ("torch",),
)  # fmt: skip
