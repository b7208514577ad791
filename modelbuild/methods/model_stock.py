"""model_stock: the point between the base and the models' mean that their angles suggest (2403.19522).

    c the mean over pairs of the cosine between xᵢ − B and xⱼ − B;  t = N·c / (1 + (N − 1)·c)
    y = t · (Σ xᵢ / N) + (1 − t) · B

(https://arxiv.org/abs/2403.19522.) With `filter_wise` each row has a t of its own. The product of two lengths counts as
1e-6 at least; where the divisor is smaller than 1e-6, t is 0. Angles are found in float64 from exact products, the
combination is B + Σ (t/N)·(xᵢ − B) in float32 (methods/_combined.py).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from modelbuild.methods import _means
from modelbuild.methods._combined import By, Combined
from modelbuild.methods.base import Compute, Method, Parameter, Request, Step

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from modelbuild.methods._span import Span
    from modelbuild.plan.node import Node


def step(request: Request) -> Step:
    """There is no identity: whether the models differ from the base is not known from the plan."""
    assert request.base is not None
    return Compute((("filter_wise", bool(request.shared["filter_wise"])),), (request.base, *request.inputs))


class ModelStock(Combined):
    """The operation: inputs are the base and the models."""

    def based(self, node: Node) -> bool:
        """The models' differences from the base are the vectors."""
        return True

    def by(self, node: Node) -> By:
        """Each row for itself, where it was asked for."""
        return "row" if node.param("filter_wise") else "tensor"

    def coefficients(self, node: Node, span: Span) -> NDArray[Any]:
        """The same share of every difference."""
        return _means.model_stock(span)


METHOD = Method(
    name="model_stock",
    summary="the point between base and the models' mean that their angles suggest",
    paper="https://arxiv.org/abs/2403.19522",
    version=1,
    base="required",
    inputs=(2, None),
    parameters=(Parameter("filter_wise", "merge", "boolean", False, "one angle per row, not per tensor"),),
    step=step,
    operation=ModelStock,
)
