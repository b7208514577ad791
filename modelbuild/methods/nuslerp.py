"""nuslerp: slerp of two models by weight, or of their differences from a base; per tensor, row or column.

    t = w₂ / (w₁ + w₂)        ½ where |w₁ + w₂| < 1e-6
    y = slerp(a, b, t), or B + slerp(a − B, b − B, t) with a base

(Shoemake, https://doi.org/10.1145/325334.325242.) Vectors on one line (sin θ ≤ 1e-8, or opposite as far as float64
sums can tell, about 1e-6) are interpolated along it; one that is shorter than 1e-7 counts as at right angles to the
other. With `flatten = false` each row, the vector along the last axis, has an angle of its own; with `row_wise` as well
it is the vectors along the first axis, which keeps the meaning that mergekit's parameter of that name has. A tensor of
one axis is one vector.

Angles are found in float64 from exact products, so that differences that are nearly opposite, or tiny beside their
models, are right: mergekit takes the cosine in the models' dtype and falls back to a line. The combination is
methods/_combined.py's, in float32.

Identities: t = 0 takes the first model, t = 1 the second, each as it is.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from modelbuild.methods import _arcs
from modelbuild.methods._combined import By, Combined
from modelbuild.methods.base import Compute, Method, Parameter, Request, Step, Take
from modelbuild.methods.weights import number_of, to_float32, weights_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from modelbuild.methods._span import Span
    from modelbuild.plan.node import Node


def step(request: Request) -> Step:
    """Takes a model at whose end of the arc the result lies."""
    first, second = weights_of(request)
    t = _arcs.share(first, second)
    if to_float32(t) in (0.0, 1.0):
        return Take(int(t))
    by = "tensor" if request.shared["flatten"] else "column" if request.shared["row_wise"] else "row"
    inputs = request.inputs if request.base is None else (request.base, *request.inputs)
    return Compute((("t", t), ("by", by), ("base", request.base is not None)), inputs)


class Nuslerp(Combined):
    """The operation: inputs are the base, where there is one, and the two models."""

    def by(self, node: Node) -> By:
        """As the parameters say."""
        found = node.param("by")
        return "row" if found == "row" else "column" if found == "column" else "tensor"

    def coefficients(self, node: Node, span: Span) -> NDArray[Any]:
        """Where on the arc the result lies."""
        return _arcs.nuslerp(span, number_of(node, "t"))


METHOD = Method(
    name="nuslerp",
    summary="spherical interpolation of two models, or of their deltas from a base",
    paper="https://doi.org/10.1145/325334.325242",
    version=2,
    base="optional",
    inputs=(2, 2),
    parameters=(
        Parameter("weight", "input", "number", None, "share of this model"),
        Parameter("flatten", "merge", "boolean", True, "interpolate the tensor as one vector"),
        Parameter("row_wise", "merge", "boolean", False, "without `flatten`: along the first axis, not the last"),
    ),
    step=step,
    operation=Nuslerp,
)
