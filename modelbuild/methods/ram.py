"""ram: copy what one model changed, average what several changed (https://arxiv.org/abs/2601.13572).

    dᵢ = xᵢ − B, active where |dᵢ| > epsilon;  y = B + the mean of the active dᵢ, or B where none is

Exact arithmetic: kernels/ram.py, in float32. There is no identity: what is active is not known from the plan.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from modelbuild.methods.base import Compute, Kernel, Method, Parameter, Request, Step
from modelbuild.methods.streamed import Streamed
from modelbuild.methods.weights import number_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from modelbuild.plan.node import Node

ACTIVE = Parameter("epsilon", "merge", "number", 1e-5, "a delta's element counts as changed above this", 0.0)


def step(request: Request) -> Step:
    """Computes, whatever the parameters."""
    assert request.base is not None
    return Compute((("epsilon", float(request.shared["epsilon"] or 0.0)),), (request.base, *request.inputs))


class Ram(Streamed):
    """The operation: inputs are the base and the models."""

    floats = 0

    def prepare(self, node: Node, whole: Sequence[NDArray[Any]]) -> Kernel:
        """The kernel for one tensor."""
        return mean_of_active(node, [1.0] * (len(node.inputs) - 1))


def mean_of_active(node: Node, factors: Sequence[float]) -> Kernel:
    """The kernel; what a model changed alone is multiplied with its factor."""
    from modelbuild.kernels.ram import Ram as Loop

    loop = Loop([used.dtype for used in node.inputs], node.dtype, factors, number_of(node, "epsilon"))

    def run(start: int, stop: int, inputs: Sequence[NDArray[Any]], out: NDArray[Any], scratch: NDArray[Any]) -> None:
        loop.run(inputs, out)

    return run


METHOD = Method(
    name="ram",
    summary="copy what one model changed, average what several changed",
    paper="https://arxiv.org/abs/2601.13572",
    version=1,
    base="required",
    inputs=(1, None),
    parameters=(ACTIVE,),
    step=step,
    operation=Ram,
)
