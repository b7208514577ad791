"""dare_linear: drop elements of the deltas at random, then add (https://arxiv.org/abs/2311.03099).

    dᵢ = xᵢ − B, each element kept with the probability `density`, then rescaled
    y = B + λ·Σ wᵢ·dᵢ        divided by Σ wᵢ with `normalize`

`rescale_by = "norm"`, as mergekit has it: a masked delta is scaled to the L1 norm that it had; `"density"`, as
published: by 1/density. Random numbers: methods/_votes.py. Exact arithmetic: kernels/vote.py, in float32.

Identities: a model at weight 0 or density 0 is not read; with none left, or λ = 0, the base is taken as it is.
"""

from __future__ import annotations

from modelbuild.methods._votes import (
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
    """Drops the models that add nothing; takes the base where none is left."""
    return vote_step(request, False, lambda request, index: (("keys", stream_key(request, "dare", index)),))


METHOD = Method(
    name="dare_linear",
    summary="drop elements of the deltas at random, then add",
    paper="https://arxiv.org/abs/2311.03099",
    version=1,
    base="required",
    inputs=(1, None),
    parameters=(WEIGHT, DENSITY, LAMBDA, *flags(False, True), RESCALE_BY),
    step=step,
    operation=Drawn,
    random=True,
)
