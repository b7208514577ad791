"""breadcrumbs: drop the smallest and the largest elements of the deltas, then add (https://arxiv.org/abs/2312.06795).

    dᵢ = xᵢ − B, without its int(gamma·n) largest elements, of the others the int(density·n) largest
    y = B + λ·Σ wᵢ·dᵢ        divided by Σ wᵢ with `normalize`

Where too few would be left fewer large ones are dropped; exactly int(density·n) are kept, at least 1 where density > 0,
and of equal magnitudes the lowest flat index comes first. Exact arithmetic: kernels/vote.py, in float32.

Identities: a model at weight 0 or density 0 is not read; with none left, or λ = 0, the base is taken as it is.
"""

from __future__ import annotations

from modelbuild.methods._votes import (
    DENSITY,
    GAMMA,
    LAMBDA,
    WEIGHT,
    Crumbs,
    flags,
    gammas,
    vote_step,
)
from modelbuild.methods.base import Method, Request, Step


def step(request: Request) -> Step:
    """Drops the models that add nothing; takes the base where none is left."""
    return vote_step(request, False, gammas)


METHOD = Method(
    name="breadcrumbs",
    summary="drop the smallest and the largest elements of the deltas, then add",
    paper="https://arxiv.org/abs/2312.06795",
    version=1,
    base="required",
    inputs=(1, None),
    parameters=(WEIGHT, DENSITY, GAMMA, LAMBDA, *flags(False, False)),
    step=step,
    operation=Crumbs,
)
