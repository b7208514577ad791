"""ramplus_tl: as ram, with what one model changed alone made larger (https://arxiv.org/abs/2601.13572).

    ρᵢ = the number of elements that model i shares as active with others / max(those it has alone, epsilon),
    clamped to [0, alpha];  λᵢ = 1 + r·ρᵢ
    y as in ram, but where model i alone is active it is B + λᵢ·dᵢ

Exact arithmetic: kernels/ram.py, in float32; counts are whole numbers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from modelbuild.methods.base import Compute, Method, Parameter, Pass, Request, Step
from modelbuild.methods.ram import ACTIVE, mean_of_active
from modelbuild.methods.streamed import Streamed
from modelbuild.methods.weights import number_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from modelbuild.methods.base import Survey
    from modelbuild.plan.node import Node


def step(request: Request) -> Step:
    """Computes, whatever the parameters."""
    assert request.base is not None
    params = tuple((name, float(request.shared[name] or 0.0)) for name in ("r", "alpha", "epsilon"))
    return Compute(params, (request.base, *request.inputs))


class RamPlus(Streamed):
    """The operation: inputs are the base and the models."""

    floats = 0

    def surveys(self, node: Node) -> bool:
        """Active elements are counted first."""
        return True

    def prepare(self, node: Node, whole: Sequence[NDArray[Any]]) -> Survey:
        """Counts, then merges."""
        from modelbuild.kernels.ram import Active, amplification

        r, alpha, epsilon = (number_of(node, name) for name in ("r", "alpha", "epsilon"))
        active = Active([used.dtype for used in node.inputs], epsilon)

        def look(start: int, stop: int, inputs: Sequence[NDArray[Any]], scratch: NDArray[Any]) -> None:
            active.measure(inputs)

        yield Pass(look)
        factors = [amplification(shared, own, r, alpha, epsilon) for shared, own in active.result().tolist()]
        return mean_of_active(node, factors)


METHOD = Method(
    name="ramplus_tl",
    summary="as ram, with what one model changed made larger to make up for the averaging",
    paper="https://arxiv.org/abs/2601.13572",
    version=1,
    base="required",
    inputs=(1, None),
    parameters=(
        Parameter("r", "merge", "number", 0.1, "strength of the amplification", 0.0),
        Parameter("alpha", "merge", "number", 0.2, "largest ratio of shared to unique that counts", 0.0),
        ACTIVE,
    ),
    step=step,
    operation=RamPlus,
)
