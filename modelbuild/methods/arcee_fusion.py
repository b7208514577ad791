"""arcee_fusion: take over the elements whose change is important.

    importance = |x − B| · KL(softmax of x's row ‖ softmax of B's row)        a tensor of one axis is one row
    y = x where importance ≥ median + 1.5·(third quartile − first quartile), else B

From mergekit's announcement of the method. Quartiles are exact elements of the tensor's importances, where mergekit
draws a sample of large tensors. A row whose importance is not a number, having NaN or infinity in it, is taken over.
Exact arithmetic: kernels/divergence.py in float64, rounded to float32, and kernels/vote.py. There is no identity: what
is important is not known from the plan.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from modelbuild.methods._votes import Scores, held, kept_while_selecting, selected
from modelbuild.methods.base import Compute, Method, Pass, Request, Step
from modelbuild.methods.streamed import Streamed, nothing

if TYPE_CHECKING:
    from collections.abc import Generator, Sequence

    from numpy.typing import NDArray

    from modelbuild.kernels.mask import Mask
    from modelbuild.methods.base import Survey
    from modelbuild.plan.node import Node


def step(request: Request) -> Step:
    """Computes, there being no parameters."""
    assert request.base is not None
    return Compute((), (request.base, request.inputs[0]))


class ArceeFusion(Streamed):
    """The operation: inputs are the base and the model."""

    def room(self, node: Node) -> int:
        """A row."""
        return _columns(node)

    def memory(self, node: Node) -> int:
        """What is near three quartiles."""
        return kept_while_selecting(node, 3)

    def surveys(self, node: Node) -> bool:
        """Rows are compared, and importances ranked, first."""
        return True

    def prepare(self, node: Node, whole: Sequence[NDArray[Any]]) -> Survey:
        """Compares rows, finds the threshold, and gives the kernel that takes over what is above."""
        from modelbuild.kernels.vote import Rule, Voter

        if node.count == 0:
            return nothing
        scores = yield from _importances(node)
        mask = yield from _above(node, scores)
        return held(node, [Voter(mask)], Rule(), scores)


def _columns(node: Node) -> int:
    return max(1, node.shape[-1] if len(node.shape) > 1 else node.count)


def _importances(node: Node) -> Generator[Pass | str, None, Scores]:
    import numpy as np

    from modelbuild.kernels.combine import table
    from modelbuild.kernels.divergence import divergences
    from modelbuild.kernels.scores import importance

    columns = _columns(node)
    dtypes = (node.inputs[0].dtype, node.inputs[1].dtype)
    rows = table(np.empty(node.count // columns, np.float32))

    def compare(start: int, stop: int, inputs: Sequence[NDArray[Any]], scratch: NDArray[Any]) -> None:
        rows.numbers[start // columns : stop // columns] = divergences(dtypes, columns, inputs[0], inputs[1])

    yield Pass(compare, unit=columns)

    def scores(start: int, stop: int, inputs: Sequence[NDArray[Any]], scratch: NDArray[Any]) -> NDArray[Any]:
        found = scratch[: stop - start]
        importance(dtypes, start, inputs[0], inputs[1], rows, columns, found)
        return found

    return scores


def _above(node: Node, scores: Scores) -> Generator[Pass | str, None, Mask]:
    """Keeps the importances from median + 1.5 times the distance of the quartiles on."""
    import numpy as np

    from modelbuild.kernels.magnitude import NAN
    from modelbuild.kernels.mask import band
    from modelbuild.kernels.select import Selection, Threshold, quantile_rank

    ranks = [quantile_rank(share, node.count) for share in (0.25, 0.5, 0.75)]
    selection = Selection(node.count, ranks, "F32", ties=False)

    def look(start: int, stop: int, inputs: Sequence[NDArray[Any]], scratch: NDArray[Any]) -> None:
        selection.show(start, stop, scores(start, stop, inputs, scratch))

    yield from selected([(selection, look)])
    first, median, third = (np.float32(found.value) for found in selection.thresholds)
    least = median + np.float32(1.5) * (third - first)
    # A threshold that is not a number keeps what is not one either, so that it shows.
    return band(Threshold(min(int(least.view(np.uint32)), NAN), node.count))


METHOD = Method(
    name="arcee_fusion",
    summary="take over the elements whose change is important",
    paper="https://www.arcee.ai/blog/meet-mergekit-v0-1-arcee-fusion-expanded-model-support-multi-gpu-acceleration",
    version=2,
    base="required",
    inputs=(1, 1),
    parameters=(),
    step=step,
    operation=ArceeFusion,
)
