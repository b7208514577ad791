"""passthrough: one model's tensor as it is, or times a factor; the method of layer stacks ("frankenmerges").

    y = x        or, with `scale`, y = s·x

Exact arithmetic: float32 (s is the float64 parameter rounded once), one multiplication, one rounding to the output's
dtype.

Identities: without `scale`, or at scale 1, the input is taken as it is.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from modelbuild.methods.base import Compute, Kernel, Method, Parameter, Request, Step, Take
from modelbuild.methods.streamed import Streamed
from modelbuild.methods.weights import to_float32

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from modelbuild.plan.node import Node


def step(request: Request) -> Step:
    """Takes the input unless a `scale` other than 1 is given."""
    scale = request.per_input[0]["scale"]
    if scale is None or to_float32(float(scale)) == 1.0:
        return Take(0)
    return Compute((("scale", float(scale)),), (request.inputs[0],))


class Passthrough(Streamed):
    """The operation: one input times a factor."""

    floats = 1

    def prepare(self, node: Node, whole: Sequence[NDArray[Any]]) -> Kernel:
        """The kernel of the factor for one tensor."""
        from modelbuild.kernels.combine import scaled

        return scaled(node, node.param("scale"))  # type: ignore[arg-type]


METHOD = Method(
    name="passthrough",
    summary="one model's tensors as they are, or times `scale`; for stacks of layers",
    paper="",
    version=1,
    base="none",
    inputs=(1, 1),
    parameters=(
        Parameter("scale", "input", "number", None, "factor on the tensor; without it, a copy", nullable=True),
    ),
    step=step,
    operation=Passthrough,
)
