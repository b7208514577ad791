"""lerp: a straight line from the base to one model.

    y = a + t·(b − a)        a the base, b the model

Exact arithmetic, in float32 (t is the float64 parameter rounded once): y = fma(t, b − a, a), one rounding to the
output's dtype.

Identities: t = 0 takes the base, t = 1 takes the model, each as it is.
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
    """Takes the base at t = 0 and the model at t = 1."""
    assert request.base is not None
    t = float(request.per_input[0]["t"] or 0.0)
    if to_float32(t) == 0.0:
        return Take(-1)
    if to_float32(t) == 1.0:
        return Take(0)
    return Compute((("t", t),), (request.base, request.inputs[0]))


class Lerp(Streamed):
    """The operation: inputs are the base and the model."""

    floats = 2

    def prepare(self, node: Node, whole: Sequence[NDArray[Any]]) -> Kernel:
        """The kernel of the line for one tensor."""
        from modelbuild.kernels.combine import lerp

        return lerp(node)


METHOD = Method(
    name="lerp",
    summary="straight line from the base (t = 0) to one model (t = 1)",
    paper="",
    version=1,
    base="required",
    inputs=(1, 1),
    parameters=(Parameter("t", "input", "number", None, "how far from the base towards the model"),),
    step=step,
    operation=Lerp,
)
