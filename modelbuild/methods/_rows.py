"""rows: a tensor whose rows are those of other tensors, in another order; an operation that plans use, not users.

    y[i] = x[r]                      a row as it is
    y[i] = 0
    y[i] = (x₁[r₁] + … + xₙ[rₙ])/n   the mean of one row each of several tensors
    y[i] = (Σ y[j])/m                the mean of the m rows of the result that are none of these, for padding

A row of several inputs' dtypes is widened to float32, which is exact. Means are float64 sums, in the order of the
inputs or of the rows, divided in float64, and rounded once to the output's dtype (nearest even).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from modelbuild.methods.streamed import Streamed

if TYPE_CHECKING:
    from collections.abc import Sequence

    from modelbuild.methods.base import Kernel
    from modelbuild.plan.node import Node

VERSION = 1
"""Of the result: nodes of rows name it."""


class Rows(Streamed):
    """The operation: inputs are the tensors whose rows are taken. They are read at the rows, wherever those stand."""

    floats = 0

    def whole(self, node: Node) -> tuple[int, ...]:
        """None is streamed from its start to its end; the engine hands over what each can be read from."""
        return tuple(range(len(node.inputs)))

    def prepare(self, node: Node, whole: Sequence[Any]) -> Kernel:
        """The kernel for one tensor; `whole` are the inputs as kernels/rows.py reads them."""
        from modelbuild.kernels.rows import Gather

        return Gather(node, whole)
