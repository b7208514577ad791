"""linear: a weighted sum of models, the "model soup" (https://arxiv.org/abs/2203.05482).

    y = Σ wᵢ·xᵢ / Σ wᵢ        with `normalize`, else y = Σ wᵢ·xᵢ

Exact arithmetic, in float32 (wᵢ is the float64 parameter rounded once):

    acc = 0;  acc = fma(wᵢ, xᵢ, acc) in the order of `models`
    y = acc / s, s the sum of the weights as methods/weights.py adds them, with `normalize`
    one rounding to the output's dtype

Identities: a model at weight 0 is not read; where one model is left it is taken as it is, if `normalize` is on or its
weight is 1. A tensor whose weights are all 0, or whose normalised weights sum to 0, is refused.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from modelbuild.methods.base import Compute, Kernel, Method, Parameter, Refuse, Request, Step, Take
from modelbuild.methods.streamed import Streamed
from modelbuild.methods.weights import bad_divisor, divisor_of, nonzero, weights_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from modelbuild.plan.node import Node


def step(request: Request) -> Step:
    """Drops the models at weight 0; takes a lone model as it is where its coefficient is 1."""
    weights = weights_of(request)
    normalize = bool(request.shared["normalize"])
    kept = nonzero(weights)
    if not kept:
        return Refuse("all its weights are 0")
    remaining = tuple(weights[i] for i in kept)
    if normalize and (reason := bad_divisor(remaining)):
        return Refuse(reason)
    if len(kept) == 1 and (normalize or remaining[0] == 1.0):
        return Take(kept[0])
    params = (("weights", remaining), ("normalize", normalize))
    return Compute(params, tuple(request.inputs[i] for i in kept))


class Linear(Streamed):
    """The operation: inputs are the models at a weight that is not 0."""

    floats = 1

    def prepare(self, node: Node, whole: Sequence[NDArray[Any]]) -> Kernel:
        """The kernel of the weighted sum for one tensor."""
        from modelbuild.kernels.combine import linear

        return linear(node, divisor_of(node))


METHOD = Method(
    name="linear",
    summary="weighted sum of models, divided by the sum of the weights unless `normalize = false`",
    paper="https://arxiv.org/abs/2203.05482",
    version=1,
    base="none",
    inputs=(1, None),
    parameters=(
        Parameter("weight", "input", "number", None, "share of this model"),
        Parameter("normalize", "merge", "boolean", True, "divide by the sum of the weights"),
    ),
    step=step,
    operation=Linear,
)
