"""della: drop small elements more often than large ones, then elect signs (https://arxiv.org/abs/2406.11617).

    dᵢ = xᵢ − B, each element kept with a probability that rises with its rank by magnitude in its row,
    from density − epsilon to density + epsilon; then rescaled; the rest is as in ties

A row is the vector along the last axis; a tensor of one axis is one row. Of equal magnitudes the lower index ranks
lower. Random numbers: methods/_votes.py. Exact arithmetic: kernels/vote.py, in float32.

Identities: a model at weight 0 or density 0 is not read; with none left, or λ = 0, the base is taken as it is. A
density below 1 with density ± epsilon outside of (0, 1) is refused.
"""

from __future__ import annotations

from modelbuild.methods._votes import (
    CONSENSUS,
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
    """Drops the models that cannot vote; takes the base where none is left."""
    return vote_step(request, True, chances)


METHOD = Method(
    name="della",
    summary="drop small elements of the deltas more often than large ones, then elect signs",
    paper="https://arxiv.org/abs/2406.11617",
    version=1,
    base="required",
    inputs=(1, None),
    parameters=(WEIGHT, DENSITY, EPSILON, LAMBDA, *flags(True, True, elected=True), RESCALE_BY, CONSENSUS),
    step=step,
    operation=Ranked,
    random=True,
)
