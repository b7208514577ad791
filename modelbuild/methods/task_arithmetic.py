"""task_arithmetic: the base plus a weighted sum of task vectors (https://arxiv.org/abs/2212.04089).

    y = B + λ·Σ wᵢ·(xᵢ − B)        divided by Σ wᵢ with `normalize`

Exact arithmetic, in float32 (wᵢ and λ are the float64 parameters rounded once), every step rounded, nothing fused:

    acc = 0;  acc = acc + wᵢ·(xᵢ − B) in the order of `models`
    acc = acc / s, s the sum of the weights as methods/weights.py adds them, with `normalize`
    y = B + acc·λ, one rounding to the output's dtype

Identities: a model at weight 0 is not read; with all weights 0, or λ = 0, the base is taken as it is. A tensor whose
weights sum to less than 1e-8 is refused with `normalize`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from modelbuild.methods.base import Compute, Kernel, Method, Parameter, Refuse, Request, Step, Take
from modelbuild.methods.streamed import Streamed
from modelbuild.methods.weights import bad_divisor, divisor_of, nonzero, to_float32, weights_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from modelbuild.plan.node import Node

TINY = 1e-8
"""A smaller sum of weights is 0 to mergekit, which then does not divide; here the plan refuses."""


def step(request: Request) -> Step:
    """Drops the models at weight 0; takes the base where nothing is added to it."""
    assert request.base is not None
    weights = weights_of(request)
    scale = float(request.shared["lambda"] or 0.0)
    normalize = bool(request.shared["normalize"])
    kept = nonzero(weights)
    if not kept or to_float32(scale) == 0.0:
        return Take(-1)
    remaining = tuple(weights[i] for i in kept)
    if normalize and (reason := bad_divisor(remaining, TINY)):
        return Refuse(reason)
    params = (("weights", remaining), ("lambda", scale), ("normalize", normalize))
    return Compute(params, (request.base, *(request.inputs[i] for i in kept)))


class TaskArithmetic(Streamed):
    """The operation: inputs are the base and the models at a weight that is not 0."""

    floats = 3

    def prepare(self, node: Node, whole: Sequence[NDArray[Any]]) -> Kernel:
        """The kernel of the sum of task vectors for one tensor."""
        from modelbuild.kernels.combine import task_arithmetic

        return task_arithmetic(node, divisor_of(node))


METHOD = Method(
    name="task_arithmetic",
    summary="the base plus a weighted sum of the models' differences from it",
    paper="https://arxiv.org/abs/2212.04089",
    version=1,
    base="required",
    inputs=(1, None),
    parameters=(
        Parameter("weight", "input", "number", None, "share of this model's difference from the base"),
        Parameter("lambda", "merge", "number", 1.0, "factor on the sum of differences"),
        Parameter("normalize", "merge", "boolean", False, "divide by the sum of the weights"),
    ),
    step=step,
    operation=TaskArithmetic,
)
