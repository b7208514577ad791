"""Coefficients of multislerp, karcher and model_stock: means of any number of models."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from typing import TYPE_CHECKING, Any

from modelbuild.methods._angles import angle, sine_cosine
from modelbuild.methods._span import Span, quiet, unit_interval, weighted

if TYPE_CHECKING:
    from numpy.typing import NDArray


@quiet
def multislerp(span: Span, weights: Sequence[float], normalize: bool = True, eps: float = 1e-8) -> NDArray[Any]:
    """The coefficients [1, models] of a weighted mean on the sphere, formed in the tangent space at the models' mean.

    https://goddard.blog/posts/multislerp-wow-what-a-cool-idea. A mean shorter than `eps`, or than can be told from
    none, has no direction: then the result is the plain weighted sum, as mergekit has it for two models (it refuses
    more).
    """
    import numpy as np

    members = span.members()
    if len(members) == 1:
        return span.coefficients(members[0])
    total = _in_order(weights) if normalize else 1.0
    shares = [weight / total for weight in weights]
    lengths = [span.norm(member) for member in members]
    units = [member / (length + eps)[:, None] for member, length in zip(members, lengths, strict=True)]
    mean = weighted(units, shares)
    length = span.norm(mean)
    if length[0] < eps or length[0] <= _blur(span, units, shares)[0]:
        return span.coefficients(weighted(members, shares))
    mean = mean / length[:, None]
    tangents = [unit - span.inner(unit, mean)[:, None] * mean for unit in units]
    tangent = weighted(tangents, shares)
    step = span.norm(tangent) + eps
    sine, cosine = sine_cosine(step)
    result = weighted([mean, tangent], [cosine, sine / step])
    scale = sum((length * share for length, share in zip(lengths, shares, strict=True)), np.zeros(1))
    return span.coefficients(result * scale[:, None])


@quiet
def karcher(span: Span, max_iter: int = 10, tol: float = 1e-5) -> NDArray[Any]:
    """The coefficients [1, models] of the Riemannian mean of the models' directions, at their mean length.

    H. Karcher, https://doi.org/10.1002/cpa.3160300502, found by going along the mean of the logarithms until the step
    is shorter than `tol`, as in https://arxiv.org/abs/2603.04972. Models no longer than `tol` have no direction; with
    none left the result is zero. Where directions balance the first is where it starts; one that is opposite to where
    it stands has no logarithm, and does not pull.
    """
    members = span.members()
    if len(members) == 1:
        return span.coefficients(members[0])
    lengths = [span.norm(member) for member in members]
    directed = [i for i, length in enumerate(lengths) if not length[0] <= tol]
    if not directed:
        return span.coefficients(members[0] * 0.0)
    units = [members[i] / lengths[i][:, None] for i in directed]
    mean = weighted(units, [1.0 / len(units)] * len(units))
    length = span.norm(mean)
    balanced = length[0] < tol or length[0] <= _blur(span, units, [1.0 / len(units)] * len(units))[0]
    mean = units[0] if balanced else mean / length[:, None]
    for _ in range(max_iter):
        tangent = _mean_logarithm(span, mean, units, tol)
        step = span.norm(tangent)
        if step[0] < tol:
            break
        sine, cosine = sine_cosine(step)
        mean = weighted([mean, tangent], [cosine, sine / step])
        length = span.norm(mean)
        if length[0] > tol:
            mean = mean / length[:, None]
    scale = sum(lengths[1:], lengths[0]) / len(lengths)
    return span.coefficients(mean * scale[:, None])


def _mean_logarithm(span: Span, mean: NDArray[Any], units: Sequence[NDArray[Any]], tol: float) -> NDArray[Any]:
    """The mean of the tangents at `mean` that lead to the units, each as long as its arc; arcs under `tol` are 0."""
    tangent = mean * 0.0
    for unit in units:
        cosine = unit_interval(span.inner(mean, unit))
        across = unit - cosine[:, None] * mean
        sine = span.norm(across)
        arc = angle(sine, cosine)
        opposite = cosine[0] < 0.0 and sine[0] <= span.blur(unit)[0] + span.blur(mean)[0]
        if arc[0] < tol or opposite:
            continue
        tangent = tangent + across * (arc / sine_cosine(arc)[0] / len(units))[:, None]
    return tangent


@quiet
def model_stock(span: Span) -> NDArray[Any]:
    """The coefficients [rows, models] of the point between the base and the mean of two or more models (2403.19522).

    With c the mean of the cosines between the models' differences from the base, and N models, it is t = N·c / (1 +
    (N − 1)·c) of the way from the base to the mean. Where the divisor is 0 it is the base.
    """
    import numpy as np

    members = span.members()
    count = len(members)
    lengths = [span.norm(member) for member in members]
    pairs = list(combinations(range(count), 2))
    total = np.zeros(span.gram.shape[0])
    for i, j in pairs:
        scale = np.maximum(lengths[i] * lengths[j], 1e-6)
        total = total + unit_interval(span.inner(members[i], members[j]) / scale)
    cosine = total / len(pairs)
    divisor = 1.0 + (count - 1) * cosine
    singular = np.abs(divisor) < 1e-6
    t = np.where(singular, 0.0, count * cosine / np.where(singular, 1.0, divisor))
    return span.coefficients(weighted(members, [t / count] * count))


def _blur(span: Span, units: Sequence[NDArray[Any]], shares: Sequence[float]) -> NDArray[Any]:
    """How short a mean of directions cannot be told from none."""
    return sum((span.blur(unit) * abs(share) for unit, share in zip(units, shares, strict=True)), 0.0 * units[0][:, 0])


def _in_order(values: Sequence[float]) -> float:
    total = 0.0
    for value in values:
        total += value
    return total
