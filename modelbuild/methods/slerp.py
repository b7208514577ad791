"""slerp: spherical interpolation from the base to one model (Shoemake, https://doi.org/10.1145/325334.325242).

    y = sin((1−t)θ)/sin θ · a + sin(tθ)/sin θ · b        a the base, b the model, θ the angle between them

The vectors are the whole tensors, not of unit length. Where |cos θ| > 0.9995 y = (1−t)·a + t·b. The angle is found in
float64, the combination is a + c₀·a + c₁·(b − a) in float32 (methods/_combined.py).

Identities: t = 0 takes the base, t = 1 takes the model, each as it is.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from modelbuild.methods import _arcs
from modelbuild.methods._combined import Combined
from modelbuild.methods.base import Compute, Method, Parameter, Request, Step, Take
from modelbuild.methods.weights import number_of, to_float32

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from modelbuild.methods._span import Span
    from modelbuild.plan.node import Node


def step(request: Request) -> Step:
    """Takes the base at t = 0 and the model at t = 1."""
    assert request.base is not None
    t = float(request.shared["t"] or 0.0)
    if to_float32(t) == 0.0:
        return Take(-1)
    if to_float32(t) == 1.0:
        return Take(0)
    return Compute((("t", t),), (request.base, request.inputs[0]))


class Slerp(Combined):
    """The operation: inputs are the base and the model, both ends of the arc."""

    def based(self, node: Node) -> bool:
        """The base is one of the two vectors."""
        return False

    def coefficients(self, node: Node, span: Span) -> NDArray[Any]:
        """Where on the arc the result lies."""
        return _arcs.slerp(span, number_of(node, "t"))


METHOD = Method(
    name="slerp",
    summary="spherical interpolation from the base to one model",
    paper="https://doi.org/10.1145/325334.325242",
    version=1,
    base="required",
    inputs=(1, 1),
    parameters=(Parameter("t", "merge", "number", None, "0 is the base, 1 the model"),),
    step=step,
    operation=Slerp,
)
