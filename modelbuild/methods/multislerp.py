"""multislerp: a weighted mean of any number of models on the sphere, at the weighted mean of their lengths.

    uᵢ = xᵢ / (|xᵢ| + eps)        xᵢ the model, or its difference from the base
    m = Σ wᵢ·uᵢ / |Σ wᵢ·uᵢ|;  v = Σ wᵢ·(uᵢ − ⟨uᵢ, m⟩·m)
    y = (cos |v| · m + sin |v| · v/|v|) · Σ wᵢ·|xᵢ|        (+ B)

https://goddard.blog/posts/multislerp-wow-what-a-cool-idea. The weights are divided by their sum first, unless
`normalize_weights = false`. Where the mean of the directions is shorter than `eps`, or no longer than what float64 sums
leave of directions that balance (about 1e-6), it has none, and the result is the weighted sum (mergekit does so for two
models and refuses more). Found in float64, combined as methods/_combined.py
says.

Identities: a model at weight 0 is not read; one that is left alone is taken as it is, with `normalize_weights`. A
tensor whose weights are all 0, or whose normalised weights sum to 0, is refused.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from modelbuild.methods import _means
from modelbuild.methods._combined import Combined
from modelbuild.methods.base import Compute, Method, Parameter, Refuse, Request, Step, Take
from modelbuild.methods.weights import bad_divisor, nonzero, number_of, numbers_of, weights_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from modelbuild.methods._span import Span
    from modelbuild.plan.node import Node


def step(request: Request) -> Step:
    """Drops the models at weight 0; takes a lone model as it is where its share is 1."""
    weights = weights_of(request)
    normalize = bool(request.shared["normalize_weights"])
    kept = nonzero(weights)
    if not kept:
        return Refuse("all its weights are 0")
    remaining = tuple(weights[i] for i in kept)
    if normalize and (reason := bad_divisor(remaining)):
        return Refuse(reason)
    if len(kept) == 1 and (normalize or remaining[0] == 1.0):
        return Take(kept[0])
    inputs = tuple(request.inputs[i] for i in kept)
    params = (
        ("weights", remaining),
        ("normalize", normalize),
        ("eps", float(request.shared["eps"] or 0.0)),
        ("base", request.base is not None),
    )
    return Compute(params, inputs if request.base is None else (request.base, *inputs))


class Multislerp(Combined):
    """The operation: inputs are the base, where there is one, and the models at a weight that is not 0."""

    def coefficients(self, node: Node, span: Span) -> NDArray[Any]:
        """The mean on the sphere; of one model its multiple."""
        weights = numbers_of(node, "weights")
        if span.size == 1:
            return span.coefficients(span.members()[0] * weights[0])
        return _means.multislerp(span, weights, bool(node.param("normalize")), number_of(node, "eps"))


METHOD = Method(
    name="multislerp",
    summary="weighted spherical mean of any number of models",
    paper="https://goddard.blog/posts/multislerp-wow-what-a-cool-idea",
    version=2,
    base="optional",
    inputs=(1, None),
    parameters=(
        Parameter("weight", "input", "number", None, "share of this model"),
        Parameter("normalize_weights", "merge", "boolean", True, "divide the weights by their sum"),
        Parameter("eps", "merge", "number", 1e-8, "least norm that counts as a direction", 0.0),
    ),
    step=step,
    operation=Multislerp,
)
