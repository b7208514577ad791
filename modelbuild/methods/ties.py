"""ties: keep each delta's largest elements, elect signs, add what agrees (https://arxiv.org/abs/2306.01708).

    dᵢ = xᵢ − B, of which the int(density·n) largest by magnitude are kept, at least 1 where density > 0
    s = the sign of Σ wᵢ·dᵢ, + where it is 0        with `consensus = "count"`: of the sum of the signs
    y = B + λ·Σ wᵢ·dᵢ / Σ wᵢ, over the models with sign(wᵢ·dᵢ) = s; without `normalize` not divided

Of equal magnitudes at the threshold the lowest flat index is kept, so that exactly as many are kept as said. Exact
arithmetic: kernels/vote.py, in float32. With `rescale` a masked delta is scaled to the L1 norm that it had.

Identities: a model at weight 0 or density 0 is not read; with none left, or λ = 0, the base is taken as it is.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from modelbuild.methods._votes import (
    CONSENSUS,
    DENSITY,
    LAMBDA,
    WEIGHT,
    Voted,
    by_magnitude,
    flags,
    kept_while_selecting,
    vote_step,
)
from modelbuild.methods.base import Method, Request, Step
from modelbuild.methods.weights import numbers_of

if TYPE_CHECKING:
    from collections.abc import Generator

    from modelbuild.kernels.mask import Mask
    from modelbuild.methods.base import Pass
    from modelbuild.plan.node import Node


def step(request: Request) -> Step:
    """Drops the models that cannot vote; takes the base where none is left."""
    return vote_step(request, consensus=True)


class Ties(Voted):
    """The operation: inputs are the base and the models."""

    def memory(self, node: Node) -> int:
        """What is near one threshold for each model."""
        return kept_while_selecting(node, len(node.inputs) - 1)

    def masks(self, node: Node) -> Generator[Pass | str, None, list[Mask]]:
        """The largest elements of each delta."""
        from modelbuild.kernels.mask import band, everything
        from modelbuild.kernels.select import kept

        densities = numbers_of(node, "densities")
        if all(density >= 1.0 for density in densities):
            return [everything()] * len(densities)
        found = yield from by_magnitude(node, [[kept(density, node.count)] for density in densities])
        return [band(*thresholds) for thresholds in found]


METHOD = Method(
    name="ties",
    summary="keep each delta's largest elements, elect signs, average what agrees",
    paper="https://arxiv.org/abs/2306.01708",
    version=1,
    base="required",
    inputs=(1, None),
    parameters=(WEIGHT, DENSITY, LAMBDA, *flags(True, False, elected=True), CONSENSUS),
    step=step,
    operation=Ties,
)
