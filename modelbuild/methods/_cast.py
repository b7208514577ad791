"""cast: a tensor rounded to another floating dtype; an operation that plans use, not a method of users.

Exact arithmetic: widened to float32, which is exact, then one rounding to nearest even.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from modelbuild.methods.streamed import Streamed

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from modelbuild.methods.base import Kernel
    from modelbuild.plan.node import Node


VERSION = 1
"""Of the result: nodes of casts name it."""


class Cast(Streamed):
    """The operation: one input."""

    floats = 1

    def prepare(self, node: Node, whole: Sequence[NDArray[Any]]) -> Kernel:
        """The kernel of the conversion for one tensor."""
        from modelbuild.kernels.combine import scaled

        return scaled(node, 1.0)
