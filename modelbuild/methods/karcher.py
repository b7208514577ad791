"""karcher: the Riemannian mean of the models' directions, at their mean length (https://doi.org/10.1002/cpa.3160300502).

    uᵢ = xᵢ / |xᵢ|;  m the point with Σ log_m(uᵢ) = 0, found step by step: m ← exp_m(Σ log_m(uᵢ) / N)
    y = m · Σ |xᵢ| / N

until a step is shorter than `tol`, at most `max_iter` times. The first model's direction is where directions that
balance start; one that is opposite to where the iteration stands, as far as float64 sums can tell, has no logarithm and
does not pull, so that the result is never longer than the mean length. Every iterate lies in the span of the models, so
that the whole iteration runs on their Gram matrix, in float64. Combined as methods/_combined.py says. A base is the
donor of config and tokenizer only (mergekit counts it as one more model: list it among `models` for that).

Identities: one model is taken as it is.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from modelbuild.methods import _means
from modelbuild.methods._combined import Combined
from modelbuild.methods.base import Compute, Method, Parameter, Request, Step, Take
from modelbuild.methods.weights import number_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from modelbuild.methods._span import Span
    from modelbuild.plan.node import Node


def step(request: Request) -> Step:
    """Takes a lone model as it is."""
    if len(request.inputs) == 1:
        return Take(0)
    max_iter, tol = request.shared["max_iter"], request.shared["tol"]
    return Compute((("max_iter", int(max_iter or 0)), ("tol", float(tol or 0.0))), request.inputs)


class Karcher(Combined):
    """The operation: inputs are the models."""

    def based(self, node: Node) -> bool:
        """There is no base."""
        return False

    def coefficients(self, node: Node, span: Span) -> NDArray[Any]:
        """The mean, after the iteration."""
        return _means.karcher(span, int(number_of(node, "max_iter")), number_of(node, "tol"))


METHOD = Method(
    name="karcher",
    summary="the Riemannian mean of the models on the sphere",
    paper="https://doi.org/10.1002/cpa.3160300502",
    version=2,
    base="none",
    inputs=(1, None),
    parameters=(
        Parameter("max_iter", "merge", "integer", 10, "most iterations", 1),
        Parameter("tol", "merge", "number", 1e-5, "stop when the step is smaller", 0.0),
    ),
    step=step,
    operation=Karcher,
)
