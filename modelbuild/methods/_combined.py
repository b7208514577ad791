"""What the methods whose result lies in the span of their inputs have in common: one pass to measure, one to combine.

The inputs of a node are the base, where the method has one, and the models; without a base the first model takes its
place. The first pass measures a Gram matrix (kernels/gram.py), for the whole tensor or for each row or column; from it
the method finds a coefficient for each vector; the second pass combines (kernels/combination.py):

    y = x₀ + Σ cᵢ·(xᵢ − x₀)

so that weights that no model changed stay exactly as they are.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from modelbuild.methods._span import Span
from modelbuild.methods.base import Pass
from modelbuild.methods.streamed import Streamed, nothing

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from modelbuild.methods.base import Survey
    from modelbuild.plan.node import Node

By: TypeAlias = Literal["tensor", "row", "column"]

OPPOSITE = -0.99999
"""A lower cosine makes a warning: what lies between two such vectors is decided by their last bits."""


class Combined(Streamed):
    """The part of the operation that is the same for all; a method adds `coefficients`."""

    floats = 0

    def based(self, node: Node) -> bool:
        """Whether the first input is a base, and no vector itself."""
        return bool(node.param("base"))

    def by(self, node: Node) -> By:
        """What has coefficients of its own: the whole tensor, each row (its last axis), or each column (its first)."""
        return "tensor"

    @abstractmethod
    def coefficients(self, node: Node, span: Span) -> NDArray[Any]:
        """The coefficients [rows, vectors], float64, given what the models span."""

    def surveys(self, node: Node) -> bool:
        """The inputs are measured first."""
        return True

    def prepare(self, node: Node, whole: Sequence[NDArray[Any]]) -> Survey:
        """Measures, solves, and gives the kernel that combines."""
        from modelbuild.kernels.combination import Combination
        from modelbuild.kernels.gram import ColumnGram, Gram

        dtypes, anchored = [used.dtype for used in node.inputs], not self.based(node)
        by, columns = self._by(node)
        gram = (ColumnGram if by == "column" else Gram)(dtypes, node.count, columns, anchored=anchored)

        def measure(start: int, stop: int, inputs: Sequence[NDArray[Any]], scratch: NDArray[Any]) -> None:
            gram.measure(start, stop, inputs)

        yield Pass(measure)
        if node.count == 0:
            return nothing
        span = Span(gram.result(), anchored)
        if span.size > 1 and span.lowest_cosine() < OPPOSITE:
            yield "nearly opposite to each other, so that the least difference decides what is between them"
        mixture = Combination(
            dtypes, node.dtype, self.coefficients(node, span), columns, anchored=anchored, by_column=by == "column"
        )

        def combine(
            start: int, stop: int, inputs: Sequence[NDArray[Any]], out: NDArray[Any], scratch: NDArray[Any]
        ) -> None:
            mixture.run(start, stop, inputs, out)

        return combine

    def _by(self, node: Node) -> tuple[By, int]:
        """What has coefficients of its own, and how many elements a row is long."""
        by = self.by(node)
        if by == "tensor" or len(node.shape) < 2 or node.count == 0:
            return "tensor", max(1, node.count)
        if by == "row":
            return by, node.shape[-1]
        return by, node.count // node.shape[0]
