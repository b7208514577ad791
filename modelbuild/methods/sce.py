"""sce: keep the elements that differ most between models, weigh models by energy, elect signs (2408.07990).

    dᵢ = xᵢ − B;  M keeps the int(select_topk·m) elements with the largest variance over the models, m those where it is
    not 0;  wᵢ = mean (M·dᵢ)² / Σ mean (M·dⱼ)²        equal where that sum is below 1e-6
    s = the sign of Σ M·dᵢ, + where it is 0
    y = B + Σ wᵢ·M·dᵢ / max(Σ wᵢ, 1e-6), over the models with sign(M·dᵢ) = s

(https://arxiv.org/abs/2408.07990.) Variances and energies are float64; of equal variances the lowest flat index is
kept. The vote is kernels/vote.py's, in float32.

Identities: with select_topk = 0 the base is taken as it is.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from modelbuild.methods._votes import Scores, held, kept_while_selecting, norms_of, selected
from modelbuild.methods.base import Compute, Method, Parameter, Request, Step, Take
from modelbuild.methods.streamed import Streamed, nothing
from modelbuild.methods.weights import number_of

if TYPE_CHECKING:
    from collections.abc import Generator, Sequence

    from numpy.typing import NDArray

    from modelbuild.kernels.mask import Mask
    from modelbuild.methods.base import Pass, Survey
    from modelbuild.plan.node import Node

LEAST = 1e-6
"""A smaller sum of energies says nothing about the models: they then weigh the same."""


def step(request: Request) -> Step:
    """Takes the base where no element is kept."""
    assert request.base is not None
    topk = min(1.0, float(request.shared["select_topk"] or 0.0))
    if topk == 0.0:
        return Take(-1)
    return Compute((("select_topk", topk),), (request.base, *request.inputs))


class Sce(Streamed):
    """The operation: inputs are the base and the models."""

    def memory(self, node: Node) -> int:
        """What is near the threshold."""
        return kept_while_selecting(node, 1)

    def surveys(self, node: Node) -> bool:
        """Elements are selected, and models weighed, first."""
        return True

    def prepare(self, node: Node, whole: Sequence[NDArray[Any]]) -> Survey:
        """Selects, weighs, elects: the paper's three letters."""
        from modelbuild.kernels.vote import Rule, Voter

        if node.count == 0:
            return nothing
        scores = _variances(node)
        mask = yield from _selected(node, scores)
        models = len(node.inputs) - 1
        energies = (yield from norms_of(node, [mask] * models, scores))[:, 2] / node.count
        total = float(energies.sum())
        weights = [float(e) / total if total >= LEAST else 1.0 / models for e in energies]
        return held(node, [Voter(mask, weight) for weight in weights], Rule("sum", "floored", late=True), scores)


def _selected(node: Node, scores: Scores) -> Generator[Pass | str, None, Mask]:
    from modelbuild.kernels.mask import band, everything
    from modelbuild.kernels.select import Selection

    topk = number_of(node, "select_topk")
    if topk >= 1.0:
        return everything()
    selection = Selection(node.count, lambda nonzero: [int(nonzero * topk)], "F32")

    def look(start: int, stop: int, inputs: Sequence[NDArray[Any]], scratch: NDArray[Any]) -> None:
        selection.show(start, stop, scores(start, stop, inputs, scratch))

    yield from selected([(selection, look)])
    return band(*selection.thresholds)


def _variances(node: Node) -> Scores:
    from modelbuild.kernels.scores import variance

    dtypes = [used.dtype for used in node.inputs]

    def scores(start: int, stop: int, inputs: Sequence[NDArray[Any]], scratch: NDArray[Any]) -> NDArray[Any]:
        found = scratch[: stop - start]
        variance(dtypes, inputs, found)
        return found

    return scores


METHOD = Method(
    name="sce",
    summary="keep the elements that differ most between models, weigh models by their energy, elect signs",
    paper="https://arxiv.org/abs/2408.07990",
    version=1,
    base="required",
    inputs=(1, None),
    parameters=(
        Parameter("select_topk", "merge", "number", 1.0, "share that is kept of the elements that vary", 0.0, 1.0),
    ),
    step=step,
    operation=Sce,
)
