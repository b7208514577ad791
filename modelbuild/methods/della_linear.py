"""della_linear: drop small elements more often than large ones, then add (https://arxiv.org/abs/2406.11617).

    dᵢ = xᵢ − B, masked and rescaled as in della
    y = B + λ·Σ wᵢ·dᵢ        divided by Σ wᵢ with `normalize`

Exact arithmetic: kernels/vote.py, in float32.

Identities and refusals: those of della.
"""

from __future__ import annotations

from modelbuild.methods._votes import (
    DENSITY,
    EPSILON,
    LAMBDA,
    RESCALE_BY,
    WEIGHT,
    Ranked,
    chances,
    flags,
    vote_step,
)
from modelbuild.methods.base import Method, Request, Step


def step(request: Request) -> Step:
    """Drops the models that add nothing; takes the base where none is left."""
    return vote_step(request, False, chances)


METHOD = Method(
    name="della_linear",
    summary="drop small elements of the deltas more often than large ones, then add",
    paper="https://arxiv.org/abs/2406.11617",
    version=1,
    base="required",
    inputs=(1, None),
    parameters=(WEIGHT, DENSITY, EPSILON, LAMBDA, *flags(False, True), RESCALE_BY),
    step=step,
    operation=Ranked,
    random=True,
)
