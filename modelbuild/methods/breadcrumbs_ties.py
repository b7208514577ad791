"""breadcrumbs_ties: drop the smallest and largest elements, then elect signs (https://arxiv.org/abs/2312.06795).

    dᵢ = xᵢ − B, masked as in breadcrumbs; the rest is as in ties

Exact arithmetic: kernels/vote.py, in float32.

Identities: a model at weight 0 or density 0 is not read; with none left, or λ = 0, the base is taken as it is.
"""

from __future__ import annotations

from modelbuild.methods._votes import (
    CONSENSUS,
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
    """Drops the models that cannot vote; takes the base where none is left."""
    return vote_step(request, True, gammas)


METHOD = Method(
    name="breadcrumbs_ties",
    summary="drop the smallest and the largest elements of the deltas, then elect signs",
    paper="https://arxiv.org/abs/2312.06795",
    version=1,
    base="required",
    inputs=(1, None),
    parameters=(WEIGHT, DENSITY, GAMMA, LAMBDA, *flags(False, False, elected=True), CONSENSUS),
    step=step,
    operation=Crumbs,
)
