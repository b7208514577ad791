"""dare_ties: drop elements of the deltas at random, then elect signs (https://arxiv.org/abs/2311.03099).

    dᵢ = xᵢ − B, each element kept with the probability `density`, then rescaled; the rest is as in ties

The masks are those of dare_linear with the same seed. Exact arithmetic: kernels/vote.py, in float32.

Identities: a model at weight 0 or density 0 is not read; with none left, or λ = 0, the base is taken as it is.
"""

from __future__ import annotations

from modelbuild.methods._votes import (
    CONSENSUS,
    DENSITY,
    LAMBDA,
    RESCALE_BY,
    WEIGHT,
    Drawn,
    flags,
    stream_key,
    vote_step,
)
from modelbuild.methods.base import Method, Request, Step


def step(request: Request) -> Step:
    """Drops the models that cannot vote; takes the base where none is left."""
    return vote_step(request, True, lambda request, index: (("keys", stream_key(request, "dare", index)),))


METHOD = Method(
    name="dare_ties",
    summary="drop elements of the deltas at random, then elect signs",
    paper="https://arxiv.org/abs/2311.03099",
    version=1,
    base="required",
    inputs=(1, None),
    parameters=(WEIGHT, DENSITY, LAMBDA, *flags(False, True, elected=True), RESCALE_BY, CONSENSUS),
    step=step,
    operation=Drawn,
    random=True,
)
